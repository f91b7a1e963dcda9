//! The certificate that the injector makes for itself: what is made, and when the next one is.
//!
//! Each certificate has an authority of its own, whose key is thrown away once it has signed: what
//! the Secret holds can vouch for nothing else. A new certificate waits until its authority is
//! trusted everywhere, and the authority before it is trusted on until the next renewal, so that
//! processes that serve the one or the other are all believed. Pure: the time is passed in.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{RootCertStore, ServerConfig};

use crate::proxy::{Validity, server_config};

/// How long before now a certificate holds from, for clocks that are behind.
const BACKDATED: Duration = Duration::from_hours(1);
/// How long an authority outlives its certificate.
const OUTLIVED: Duration = Duration::from_hours(24);
/// How many authorities are trusted at a time: of the certificate served, and of the one before or
/// after it.
const AUTHORITIES_MAX: usize = 2;

const AUTHORITIES_KEY: &str = "ca.crt";
const CERTIFICATE_KEY: &str = "tls.crt";
const PRIVATE_KEY: &str = "tls.key";
const NEXT_CERTIFICATE_KEY: &str = "next.crt";
const NEXT_PRIVATE_KEY: &str = "next.key";
const NEXT_FROM_KEY: &str = "next.from";

/// A certificate with its key, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Pair {
    certificate: String,
    key: String,
}

/// What the Secret holds.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Held {
    /// Whom to trust, as PEM, the newest last.
    authorities: Vec<String>,
    serving: Pair,
    /// What is served next, and from when.
    next: Option<(Pair, DateTime<Utc>)>,
}

/// How certificates are made.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    /// The name that the API server calls.
    pub(super) name: String,
    pub(super) lifetime: Duration,
    /// How long a new one is trusted before it is served.
    pub(super) overlap: Duration,
}

impl Held {
    /// What the data of a Secret says; `None` if it says nothing whole.
    pub(super) fn from_data(data: &BTreeMap<String, Vec<u8>>) -> Option<Held> {
        let text = |key: &str| String::from_utf8(data.get(key)?.clone()).ok();
        let pair = |certificate: &str, key: &str| {
            Some(Pair {
                certificate: text(certificate)?,
                key: text(key)?,
            })
        };
        let next = || {
            let from = DateTime::parse_from_rfc3339(&text(NEXT_FROM_KEY)?).ok()?;
            Some((pair(NEXT_CERTIFICATE_KEY, NEXT_PRIVATE_KEY)?, from.to_utc()))
        };
        const END: &str = "-----END CERTIFICATE-----";
        let bundle = text(AUTHORITIES_KEY)?;
        let authorities = bundle.split_inclusive(END).map(str::trim);
        let authorities = authorities.filter(|pem| pem.ends_with(END));
        Some(Held {
            authorities: authorities.map(|pem| format!("{pem}\n")).collect(),
            serving: pair(CERTIFICATE_KEY, PRIVATE_KEY)?,
            next: next(),
        })
    }

    /// The data of a Secret that says this.
    pub(super) fn to_data(&self) -> BTreeMap<&'static str, String> {
        let mut data = BTreeMap::from([
            (AUTHORITIES_KEY, self.bundle()),
            (CERTIFICATE_KEY, self.serving.certificate.clone()),
            (PRIVATE_KEY, self.serving.key.clone()),
        ]);
        if let Some((next, from)) = &self.next {
            data.insert(NEXT_CERTIFICATE_KEY, next.certificate.clone());
            data.insert(NEXT_PRIVATE_KEY, next.key.clone());
            data.insert(NEXT_FROM_KEY, from.to_rfc3339());
        }
        data
    }

    /// Whom to trust, as PEM.
    pub(super) fn bundle(&self) -> String {
        self.authorities.concat()
    }

    /// The certificate to serve, as PEM: what tells one from another.
    pub(super) fn certificate(&self) -> &str {
        &self.serving.certificate
    }

    /// When the certificate to serve expires.
    pub(super) fn expiry(&self) -> io::Result<DateTime<Utc>> {
        expiry(self.serving.certificate.as_bytes())
    }

    /// The certificate to serve, if whoever trusts the authorities believes it for that name.
    pub(super) fn server(&self, name: &str, now: DateTime<Utc>) -> io::Result<Arc<ServerConfig>> {
        let chain = chain(self.serving.certificate.as_bytes())?;
        let mut roots = RootCertStore::empty();
        for authority in &self.authorities {
            for certificate in self::chain(authority.as_bytes())? {
                roots.add(certificate).map_err(invalid)?;
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(invalid)?;
        let name = ServerName::try_from(name).map_err(invalid)?;
        let seconds = u64::try_from(now.timestamp()).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let leaf = chain
            .first()
            .ok_or_else(|| invalid_text("no certificate"))?;
        verifier
            .verify_server_cert(leaf, &[], &name, &[], now)
            .map_err(invalid)?;
        // The parser's own words can quote the key.
        let key = PrivateKeyDer::from_pem_slice(self.serving.key.as_bytes())
            .map_err(|_| invalid_text("no private key"))?;
        server_config(chain, key)
    }
}

/// What the Secret is to hold now, if it is something else than it holds. `is_trusted` says that
/// all its authorities have been published already.
///
/// # Errors
/// When no certificate can be made.
pub(super) fn step(
    held: Option<&Held>,
    is_trusted: bool,
    terms: &Terms,
    now: DateTime<Utc>,
) -> io::Result<Option<Held>> {
    let Some(held) = held.filter(|held| held.server(&terms.name, now).is_ok()) else {
        let (authority, serving) = make(terms, now)?;
        return Ok(Some(Held {
            authorities: vec![authority],
            serving,
            next: None,
        }));
    };
    if let Some((next, from)) = &held.next {
        let is_due = is_trusted && now >= *from;
        return Ok(is_due.then(|| Held {
            authorities: held.authorities.clone(),
            serving: next.clone(),
            next: None,
        }));
    }
    if now < held.expiry()? - terms.lifetime / 3 {
        return Ok(None);
    }
    let (authority, next) = make(terms, now)?;
    let mut authorities = held.authorities.clone();
    authorities.push(authority);
    let surplus = authorities.len().saturating_sub(AUTHORITIES_MAX);
    authorities.drain(..surplus);
    Ok(Some(Held {
        authorities,
        serving: held.serving.clone(),
        next: Some((next, now + terms.overlap)),
    }))
}

/// When the first certificate of a PEM text expires.
///
/// # Errors
/// When there is none.
pub(super) fn expiry(pem: &[u8]) -> io::Result<DateTime<Utc>> {
    Ok(Validity::of_pem(pem)?.until)
}

/// A new authority, as PEM, and a certificate of it.
fn make(terms: &Terms, now: DateTime<Utc>) -> io::Result<(String, Pair)> {
    let mut params = CertificateParams::new(Vec::new()).map_err(io::Error::other)?;
    params
        .distinguished_name
        .push(DnType::CommonName, "Taffrail injector");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(terms.name.clone())],
        excluded_subtrees: Vec::new(),
    });
    hold(&mut params, now, terms.lifetime + OUTLIVED);
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let authority = params.self_signed(&key).map_err(io::Error::other)?.pem();
    let issuer = Issuer::new(params, key);

    let names = vec![terms.name.clone()];
    let mut params = CertificateParams::new(names).map_err(io::Error::other)?;
    // A common name is at most 64 characters, and nobody looks at it.
    params
        .distinguished_name
        .push(DnType::CommonName, "taffrail");
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    hold(&mut params, now, terms.lifetime);
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let certificate = params.signed_by(&key, &issuer).map_err(io::Error::other)?;
    let pair = Pair {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    };
    Ok((authority, pair))
}

fn hold(params: &mut CertificateParams, now: DateTime<Utc>, lifetime: Duration) {
    let seconds = u64::try_from(now.timestamp()).unwrap_or_default();
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    params.not_before = now - BACKDATED;
    params.not_after = now + lifetime;
}

fn chain(pem: &[u8]) -> io::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(invalid)
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn invalid_text(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "taffrail-injector.taffrail.svc";

    fn terms() -> Terms {
        Terms {
            name: NAME.to_owned(),
            lifetime: Duration::from_hours(90 * 24),
            overlap: Duration::from_mins(5),
        }
    }

    fn start() -> DateTime<Utc> {
        "2026-11-24T12:00:00Z".parse().unwrap()
    }

    fn days(count: u64) -> Duration {
        Duration::from_hours(24 * count)
    }

    fn stored(held: &Held) -> Held {
        let data = held.to_data().into_iter();
        let data = data.map(|(key, text)| (key.to_owned(), text.into_bytes()));
        Held::from_data(&data.collect()).unwrap()
    }

    #[test]
    fn a_certificate_is_replaced_without_a_moment_in_which_it_is_not_believed() {
        let first = step(None, false, &terms(), start()).unwrap().unwrap();
        assert!(stored(&first) == first);
        assert_eq!(first.expiry().unwrap(), start() + days(90));
        let early = start() + days(59);
        assert!(step(Some(&first), true, &terms(), early).unwrap().is_none());

        let renewal = start() + days(60);
        let both = step(Some(&first), true, &terms(), renewal)
            .unwrap()
            .unwrap();
        assert!(stored(&both) == both);
        assert_eq!(both.authorities.len(), 2);
        assert_eq!(both.certificate(), first.certificate());
        // It waits for its time, and for the authority to be published.
        for (is_trusted, waited) in [(true, 299), (false, 301)] {
            let now = renewal + Duration::from_secs(waited);
            assert!(
                step(Some(&both), is_trusted, &terms(), now)
                    .unwrap()
                    .is_none()
            );
        }
        let now = renewal + Duration::from_secs(300);
        let second = step(Some(&both), true, &terms(), now).unwrap().unwrap();
        assert_ne!(second.certificate(), first.certificate());
        // Whoever trusts what was published before believes the old one and the new one.
        assert_eq!(second.bundle(), both.bundle());
        second.server(NAME, now).unwrap();
        let old = Held {
            serving: first.serving.clone(),
            ..second.clone()
        };
        old.server(NAME, now).unwrap();
        // The next renewal drops the oldest authority.
        let later = now + days(60);
        let third = step(Some(&second), true, &terms(), later).unwrap().unwrap();
        assert_eq!(third.authorities.len(), 2);
        assert_eq!(third.authorities[0], second.authorities[1]);
    }

    #[test]
    fn what_does_not_hold_is_made_anew() {
        let first = step(None, false, &terms(), start()).unwrap().unwrap();
        let other = step(None, false, &terms(), start()).unwrap().unwrap();
        let expired = start() + days(91);
        let is_new = |held: &Held, terms: &Terms, now| {
            let made = step(Some(held), true, terms, now).unwrap();
            made.is_some_and(|made| made.certificate() != first.certificate())
        };
        assert!(is_new(&first, &terms(), expired));
        let renamed = Terms {
            name: "other.taffrail.svc".to_owned(),
            ..terms()
        };
        assert!(is_new(&first, &renamed, start()));
        let swapped = Held {
            authorities: other.authorities.clone(),
            ..first.clone()
        };
        assert!(is_new(&swapped, &terms(), start()));
        let mut mixed = first.clone();
        mixed.serving.key = other.serving.key.clone();
        assert!(is_new(&mixed, &terms(), start()));
        assert!(Held::from_data(&BTreeMap::new()).is_none());
    }

    #[test]
    fn an_authority_vouches_for_nothing_else() {
        let held = step(None, false, &terms(), start()).unwrap().unwrap();
        assert!(held.server("kubernetes.default.svc", start()).is_err());
    }
}
