//! What a listener with TLS shows to its clients: a certificate from files, or one that the local
//! authority issues. Looked at for each connection, so that a renewed one is served without a
//! restart. And how long such a certificate holds.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Days, TimeDelta, Utc};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::proxy::authority::{Authority, RENEWAL_DAYS};

/// How long until a renewal that failed is tried again.
const RETRY_AFTER: TimeDelta = TimeDelta::hours(1);

/// A certificate ends soon when this part of its time is left, and at most so many days: whatever
/// renews certificates does so earlier, with a third left or so.
const LAST_PART: i32 = 5;
const LAST_DAYS: TimeDelta = TimeDelta::days(14);

/// When a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From when.
    pub since: DateTime<Utc>,
    /// When it expires.
    pub until: DateTime<Utc>,
}

impl Validity {
    /// Of the first certificate of a PEM text: those behind it vouch for it.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn of_pem(pem: &[u8]) -> io::Result<Validity> {
        let first = CertificateDer::pem_slice_iter(pem).next();
        let first = first.ok_or_else(|| io::Error::other("no certificate in it"))?;
        Validity::of(&first.map_err(io::Error::other)?)
    }

    fn of(certificate: &CertificateDer<'_>) -> io::Result<Validity> {
        let (_, certificate) = X509Certificate::from_der(certificate).map_err(io::Error::other)?;
        let stated = certificate.validity();
        let time = |seconds| {
            DateTime::from_timestamp(seconds, 0)
                .ok_or_else(|| io::Error::other("a certificate of an impossible time"))
        };
        Ok(Validity {
            since: time(stated.not_before.timestamp())?,
            until: time(stated.not_after.timestamp())?,
        })
    }

    /// Whether so little of its time is left that whatever renews it has most likely failed.
    pub fn ends_soon(&self, now: DateTime<Utc>) -> bool {
        let last = ((self.until - self.since) / LAST_PART).min(LAST_DAYS);
        self.until - now < last
    }
}

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
    validity: Validity,
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
        let (config, validity) = read(certificate, key)?;
        let served = Served {
            config,
            validity,
            until,
        };
        Ok(ServerTls {
            source,
            served: Mutex::new(served),
        })
    }

    /// Serves what a local authority issues.
    ///
    /// # Errors
    /// When it cannot issue a certificate.
    pub fn from_authority(authority: Authority, now: DateTime<Utc>) -> io::Result<ServerTls> {
        let served = issue(&authority, now)?;
        Ok(ServerTls {
            source: Source::Authority(Box::new(authority)),
            served: Mutex::new(served),
        })
    }

    /// What to serve a connection that is made at `now`.
    pub fn config(&self, now: DateTime<Utc>) -> Arc<ServerConfig> {
        self.served(now).config.clone()
    }

    /// When the certificate that is served at `now` holds.
    pub fn validity(&self, now: DateTime<Utc>) -> Validity {
        self.served(now).validity
    }

    fn served(&self, now: DateTime<Utc>) -> MutexGuard<'_, Served> {
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
                        Ok((config, validity)) => Ok(Served {
                            config,
                            validity,
                            until: Until::Changed(found),
                        }),
                        Err(error) => Err((error, Until::Changed(found))),
                    },
                    // While files are exchanged, one may be missing for a moment.
                    _ => return served,
                }
            }
            _ => return served,
        };
        match renewed {
            Ok(renewed) => {
                *served = renewed;
                tracing::info!("the served certificate is renewed");
            }
            // Once for each state of the files, so that half an exchange is tried again.
            Err((error, until)) => {
                served.until = until;
                tracing::warn!(%error, "cannot renew the served certificate; the one before is served on");
            }
        }
        served
    }
}

fn issue(authority: &Authority, now: DateTime<Utc>) -> io::Result<Served> {
    let (certificate, key) = authority.issue(now)?;
    Ok(Served {
        validity: Validity::of(&certificate)?,
        config: server_config(vec![certificate], key)?,
        until: Until::Time(now + Days::new(RENEWAL_DAYS)),
    })
}

fn read(certificate: &Path, key: &Path) -> io::Result<(Arc<ServerConfig>, Validity)> {
    let invalid = |path: &Path, problem: String| {
        naming(path, io::Error::new(io::ErrorKind::InvalidData, problem))
    };
    let pem = |path: &Path| std::fs::read(path).map_err(|error| naming(path, error));
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem(certificate)?)
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(certificate, error.to_string()))?;
    let Some(first) = chain.first() else {
        return Err(invalid(certificate, "no certificate in it".to_owned()));
    };
    let validity = Validity::of(first).map_err(|error| invalid(certificate, error.to_string()))?;
    // The parser's own words can quote the file.
    let private = PrivateKeyDer::from_pem_slice(&pem(key)?)
        .map_err(|_| invalid(key, "no private key in it".to_owned()))?;
    let config = server_config(chain, private).map_err(|error| {
        let problem = format!("not a key for {}: {error}", certificate.display());
        invalid(key, problem)
    })?;
    Ok((config, validity))
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
        assert!(tls.validity(renewal).until > renewal + Days::new(RENEWAL_DAYS));
    }

    #[test]
    fn the_last_part_of_a_certificates_time_is_soon_over() {
        let since: DateTime<Utc> = "2026-01-01T00:00:00Z".parse().unwrap();
        let hours = TimeDelta::hours;
        for (holds, left, is_soon) in [
            (hours(90 * 24), hours(15 * 24), false),
            (hours(90 * 24), hours(13 * 24), true),
            (hours(24), hours(8), false),
            (hours(24), hours(4), true),
            (hours(24), hours(-1), true),
        ] {
            let until = since + holds;
            let validity = Validity { since, until };
            assert_eq!(validity.ends_soon(until - left), is_soon, "{holds} {left}");
        }
    }
}
