//! The local certificate authority, for applications whose SDK insists on https.
//!
//! In: a directory, and the names that this machine goes by. Out: a certificate to trust, and
//! certificates for those names. The authority is made once and is constrained to those names
//! (RFC 5280, section 4.2.1.10), so that who trusts it trusts it for nothing else. Its key never
//! leaves the directory, and certificates that it issues are kept in memory only.

use std::fs::Permissions;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Datelike as _, Days, Utc};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};

const KEY_FILE: &str = "ca.key";
const CERTIFICATE_FILE: &str = "ca.pem";

/// It is in the certificates of every version: who changes it breaks the authorities that exist.
const AUTHORITY_NAME: &str = "Taffrail local authority";

/// How long an authority holds: longer than a machine, so that nothing watches over it.
const AUTHORITY_DAYS: u64 = 3650;

/// How long an issued certificate holds.
const ISSUED_DAYS: u64 = 30;

/// How long an issued certificate is served: it is renewed long before it expires, since the
/// clocks of applications differ.
pub(super) const RENEWAL_DAYS: u64 = 20;

/// A local certificate authority.
pub struct Authority {
    dir: PathBuf,
    pem: String,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    /// Those that it may vouch for.
    names: Vec<String>,
}

impl Authority {
    /// The authority in a directory; it is made if there is none. It vouches for the loopback
    /// names and for `own_names`: host names or IP addresses.
    ///
    /// # Errors
    /// When the directory cannot be read or written, or its key and certificate are not each
    /// other's.
    pub fn open(dir: &Path, own_names: &[String], now: DateTime<Utc>) -> io::Result<Authority> {
        let names = names(own_names);
        let in_dir = |error: io::Error| {
            let message = format!("certificate authority in {}: {error}", dir.display());
            io::Error::new(error.kind(), message)
        };
        let open = || -> io::Result<Authority> {
            std::fs::create_dir_all(dir)?;
            let key = read_or_make(&dir.join(KEY_FILE), 0o600, || {
                Ok(KeyPair::generate()
                    .map_err(io::Error::other)?
                    .serialize_pem())
            })?;
            let key = KeyPair::from_pem(&key).map_err(invalid)?;
            let params = authority_params(&names, now)?;
            let pem = read_or_make(&dir.join(CERTIFICATE_FILE), 0o644, || {
                let certificate = params.self_signed(&key).map_err(io::Error::other)?;
                Ok(certificate.pem())
            })?;
            let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(invalid)?;
            Ok(Authority {
                dir: dir.to_owned(),
                pem,
                certificate,
                issuer: Issuer::new(params, key),
                names: Vec::new(),
            })
        };
        let mut authority = open().map_err(in_dir)?;
        let (vouched_for, others): (Vec<String>, Vec<String>) = names
            .into_iter()
            .partition(|name| authority.vouches_for(name, now).is_ok());
        if vouched_for.is_empty() {
            let what = match authority.vouches_for(LOCALHOST, now) {
                Err(error) => error.to_string(),
                Ok(()) => "it vouches for nothing".to_owned(),
            };
            let what = format!("{what}; remove the directory and another is made");
            return Err(in_dir(io::Error::new(io::ErrorKind::InvalidData, what)));
        }
        if !others.is_empty() {
            tracing::warn!(
                names = others.join(", "),
                dir = %dir.display(),
                "the certificate authority was made for other names and cannot vouch for these; \
                 remove its directory and another is made"
            );
        }
        authority.names = vouched_for;
        Ok(authority)
    }

    /// Its certificate, as PEM: what applications are to trust.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Where it lives.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The names that it vouches for.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// A new certificate for its names, with the key.
    pub(super) fn issue(
        &self,
        now: DateTime<Utc>,
    ) -> io::Result<(CertificateDer<'static>, PrivateKeyDer<'static>)> {
        self.issue_for(&self.names, now)
    }

    fn issue_for(
        &self,
        names: &[String],
        now: DateTime<Utc>,
    ) -> io::Result<(CertificateDer<'static>, PrivateKeyDer<'static>)> {
        let mut params = CertificateParams::new(names).map_err(io::Error::other)?;
        params
            .distinguished_name
            .push(DnType::CommonName, LOCALHOST);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        hold(&mut params, now, ISSUED_DAYS);
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(io::Error::other)?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok((certificate.der().clone(), key.into()))
    }

    /// Whether an application that trusts it accepts its certificate for a name.
    fn vouches_for(&self, name: &str, now: DateTime<Utc>) -> io::Result<()> {
        let (certificate, _key) = self.issue_for(&[name.to_owned()], now)?;
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).map_err(invalid)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(invalid)?;
        let name = ServerName::try_from(name).map_err(invalid)?;
        let seconds = u64::try_from(now.timestamp()).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        verifier
            .verify_server_cert(&certificate, &[], &name, &[], now)
            .map_err(invalid)?;
        Ok(())
    }
}

const LOCALHOST: &str = "localhost";

/// The loopback names and those of `own` that can be in a certificate.
fn names(own: &[String]) -> Vec<String> {
    let loopback: [String; 3] = [
        LOCALHOST.to_owned(),
        Ipv4Addr::LOCALHOST.to_string(),
        Ipv6Addr::LOCALHOST.to_string(),
    ];
    let mut names = Vec::from(loopback);
    for name in own {
        if ServerName::try_from(name.as_str()).is_ok() && !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

fn authority_params(names: &[String], now: DateTime<Utc>) -> io::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new()).map_err(io::Error::other)?;
    params
        .distinguished_name
        .push(DnType::CommonName, AUTHORITY_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let permitted = names.iter().map(|name| match name.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) if ip.is_loopback() => {
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([127, 0, 0, 0], 8))
        }
        Ok(IpAddr::V4(ip)) => {
            GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(ip.into(), 32))
        }
        Ok(IpAddr::V6(ip)) => {
            GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(ip.into(), 128))
        }
        Err(_) => GeneralSubtree::DnsName(name.clone()),
    });
    // A permitted name permits what is below it, and a host may be called as a top-level domain is.
    let is_host = |name: &&String| *name != LOCALHOST && name.parse::<IpAddr>().is_err();
    let below = names.iter().filter(is_host);
    let below = below.map(|name| GeneralSubtree::DnsName(format!(".{name}")));
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: permitted.collect(),
        excluded_subtrees: below.collect(),
    });
    hold(&mut params, now, AUTHORITY_DAYS);
    Ok(params)
}

/// From a day before now, for clocks that are behind.
fn hold(params: &mut CertificateParams, now: DateTime<Utc>, days: u64) {
    let midnight = |date: chrono::NaiveDate| {
        let small = |number: u32| u8::try_from(number).unwrap_or(1);
        rcgen::date_time_ymd(date.year(), small(date.month()), small(date.day()))
    };
    let today = now.date_naive();
    params.not_before = midnight(today - Days::new(1));
    params.not_after = midnight(today + Days::new(days));
}

/// The text of a file, which is made first if it is missing. Where two processes make it at the
/// same time, both get the text of the one that was first.
fn read_or_make(
    path: &Path,
    mode: u32,
    make: impl FnOnce() -> io::Result<String>,
) -> io::Result<String> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        read => return read,
    }
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(dir)?;
    file.write_all(make()?.as_bytes())?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error.error);
        }
        _ => {}
    }
    std::fs::read_to_string(path)
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn own(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn it_vouches_for_its_own_names_and_for_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let now = at("2026-11-24T12:00:00Z");
        let own = own(&["web-7f9c", "10.1.2.3", "not a name", "dev", "localhost"]);
        let authority = Authority::open(dir.path(), &own, now).unwrap();
        let expected = [
            "localhost",
            "127.0.0.1",
            "::1",
            "web-7f9c",
            "10.1.2.3",
            "dev",
        ];
        assert_eq!(authority.names(), expected);
        for name in ["127.8.9.1", "in.localhost"] {
            authority.vouches_for(name, now).unwrap();
        }
        for name in [
            "api.openai.com",
            "web.dev",
            "web-7f9d",
            "10.1.2.4",
            "::2",
            "local",
        ] {
            let error = authority.vouches_for(name, now).unwrap_err();
            assert!(
                error.to_string().contains("NameConstraint"),
                "{name}: {error}"
            );
        }
    }

    #[test]
    fn it_is_made_once_and_its_key_is_its_owners() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("data/ca");
        let now = at("2026-11-24T12:00:00Z");
        let first = Authority::open(&dir, &own(&["web-1"]), now).unwrap();
        let mode = |file: &str| {
            std::fs::metadata(dir.join(file))
                .unwrap()
                .permissions()
                .mode()
        };
        assert_eq!(mode(KEY_FILE) & 0o777, 0o600);
        // Another machine's name is not what it was made for.
        let again = Authority::open(&dir, &own(&["web-2"]), now + Days::new(3000)).unwrap();
        assert_eq!(again.pem(), first.pem());
        assert_eq!(again.names(), ["localhost", "127.0.0.1", "::1"]);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2);
    }

    #[test]
    fn a_key_of_another_is_refused() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let now = at("2026-11-24T12:00:00Z");
        Authority::open(one.path(), &[], now).unwrap();
        Authority::open(other.path(), &[], now).unwrap();
        let key = other.path().join(KEY_FILE);
        std::fs::copy(key, one.path().join(KEY_FILE)).unwrap();
        let refused = Authority::open(one.path(), &[], now).map(|_| ());
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("remove the directory"), "{error}");
    }
}
