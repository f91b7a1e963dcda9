//! What a listener with TLS shows to its clients: a certificate from files, or one that the local
//! authority issues. Looked at for each connection, so that a renewed one is served without a
//! restart.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Days, TimeDelta, Utc};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::proxy::authority::{Authority, RENEWAL_DAYS};

/// How long until a renewal that failed is tried again.
const RETRY_AFTER: TimeDelta = TimeDelta::hours(1);

/// The certificate that applications are shown.
pub struct ServerTls {
    source: Source,
    served: Mutex<Served>,
}

enum Source {
    Files { certificate: PathBuf, key: PathBuf },
    Authority(Box<Authority>),
}

/// What is served, and until when.
struct Served {
    config: Arc<ServerConfig>,
    until: Until,
}

#[derive(PartialEq, Eq)]
enum Until {
    /// The files are others than these.
    Changed([FileState; 2]),
    /// It is later than this.
    Time(DateTime<Utc>),
}

/// What differs between a file and the one that it was.
#[derive(PartialEq, Eq)]
struct FileState {
    inode: u64,
    modified: (i64, i64),
    bytes: u64,
}

impl FileState {
    fn of(path: &Path) -> io::Result<FileState> {
        // Kubernetes changes what a link leads to, which this follows.
        let found = std::fs::metadata(path).map_err(|error| naming(path, error))?;
        Ok(FileState {
            inode: found.ino(),
            modified: (found.mtime(), found.mtime_nsec()),
            bytes: found.len(),
        })
    }
}

impl ServerTls {
    /// Serves the certificates of one file with the key of another, both PEM.
    ///
    /// # Errors
    /// When a file cannot be read, or the key is not the certificate's.
    pub fn from_files(certificate: &Path, key: &Path) -> io::Result<ServerTls> {
        let source = Source::Files {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        };
        // What is read after the look at the state may be newer, and then is read once more.
        let until = Until::Changed([FileState::of(certificate)?, FileState::of(key)?]);
        let config = read(certificate, key)?;
        let served = Mutex::new(Served { config, until });
        Ok(ServerTls { source, served })
    }

    /// Serves what a local authority issues.
    ///
    /// # Errors
    /// When it cannot issue a certificate.
    pub fn from_authority(authority: Authority, now: DateTime<Utc>) -> io::Result<ServerTls> {
        let (config, until) = issue(&authority, now)?;
        Ok(ServerTls {
            source: Source::Authority(Box::new(authority)),
            served: Mutex::new(Served { config, until }),
        })
    }

    /// What to serve a connection that is made at `now`.
    pub fn config(&self, now: DateTime<Utc>) -> Arc<ServerConfig> {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let renewed = match (&self.source, &served.until) {
            (Source::Authority(authority), Until::Time(until)) if now > *until => {
                issue(authority, now).map_err(|error| (error, Until::Time(now + RETRY_AFTER)))
            }
            (Source::Files { certificate, key }, Until::Changed(states)) => {
                let found = FileState::of(certificate)
                    .and_then(|certificate| Ok([certificate, FileState::of(key)?]));
                match found {
                    Ok(found) if found != *states => match read(certificate, key) {
                        Ok(config) => Ok((config, Until::Changed(found))),
                        Err(error) => Err((error, Until::Changed(found))),
                    },
                    // While files are exchanged, one may be missing for a moment.
                    _ => return served.config.clone(),
                }
            }
            _ => return served.config.clone(),
        };
        match renewed {
            Ok((config, until)) => {
                *served = Served { config, until };
                tracing::info!("the served certificate is renewed");
            }
            // Once for each state of the files, so that half an exchange is tried again.
            Err((error, until)) => {
                served.until = until;
                tracing::warn!(%error, "cannot renew the served certificate; the one before is served on");
            }
        }
        served.config.clone()
    }
}

fn issue(authority: &Authority, now: DateTime<Utc>) -> io::Result<(Arc<ServerConfig>, Until)> {
    let (certificate, key) = authority.issue(now)?;
    let config = server_config(vec![certificate], key)?;
    Ok((config, Until::Time(now + Days::new(RENEWAL_DAYS))))
}

fn read(certificate: &Path, key: &Path) -> io::Result<Arc<ServerConfig>> {
    let invalid = |path: &Path, problem: String| {
        naming(path, io::Error::new(io::ErrorKind::InvalidData, problem))
    };
    let pem = |path: &Path| std::fs::read(path).map_err(|error| naming(path, error));
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem(certificate)?)
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(certificate, error.to_string()))?;
    if chain.is_empty() {
        return Err(invalid(certificate, "no certificate in it".to_owned()));
    }
    // The parser's own words can quote the file.
    let private = PrivateKeyDer::from_pem_slice(&pem(key)?)
        .map_err(|_| invalid(key, "no private key in it".to_owned()))?;
    server_config(chain, private).map_err(|error| {
        let problem = format!("not a key for {}: {error}", certificate.display());
        invalid(key, problem)
    })
}

/// Serves a certificate, with those between it and its authority.
///
/// # Errors
/// When the key is not the certificate's.
pub fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> io::Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn naming(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issued_certificate_is_renewed_before_it_expires() {
        let dir = tempfile::tempdir().unwrap();
        let made: DateTime<Utc> = "2026-11-24T12:00:00Z".parse().unwrap();
        let authority = Authority::open(dir.path(), &[], made).unwrap();
        let tls = ServerTls::from_authority(authority, made).unwrap();
        let first = tls.config(made);
        let renewal = made + Days::new(RENEWAL_DAYS);
        assert!(Arc::ptr_eq(&first, &tls.config(renewal)));
        let second = tls.config(renewal + TimeDelta::seconds(1));
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(Arc::ptr_eq(
            &second,
            &tls.config(renewal + Days::new(RENEWAL_DAYS))
        ));
    }
}
