//! Certificates that are made for one test.

use chrono::{Datelike as _, NaiveDate};
use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// A certificate with its key, and who vouches for it.
pub(crate) struct Issued {
    /// The certificate (PEM) to trust for this one to hold.
    pub(crate) authority: String,
    pub(crate) certificate: Certificate,
    pub(crate) key: KeyPair,
}

/// A certificate for a name, by an authority of its own.
pub(crate) fn issue(name: &str) -> Issued {
    by_authority(name, params(name))
}

/// As [`issue`], but its time is over.
pub(crate) fn expired(name: &str) -> Issued {
    let mut params = params(name);
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    by_authority(name, params)
}

/// As [`issue`], from one day to the beginning of another.
pub(crate) fn issue_between(name: &str, since: NaiveDate, until: NaiveDate) -> Issued {
    let begin = |day: NaiveDate| {
        let (month, day_of_month) = (u8::try_from(day.month()), u8::try_from(day.day()));
        rcgen::date_time_ymd(day.year(), month.unwrap(), day_of_month.unwrap())
    };
    let mut params = params(name);
    (params.not_before, params.not_after) = (begin(since), begin(until));
    by_authority(name, params)
}

/// A certificate that nobody but its key vouches for.
pub(crate) fn self_signed(name: &str) -> Issued {
    let key = KeyPair::generate().unwrap();
    let certificate = params(name).self_signed(&key).unwrap();
    Issued {
        authority: certificate.pem(),
        certificate,
        key,
    }
}

fn params(name: &str) -> CertificateParams {
    CertificateParams::new(vec![name.to_owned()]).unwrap()
}

fn by_authority(name: &str, params: CertificateParams) -> Issued {
    let key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    let own_name = format!("authority of {name}");
    authority
        .distinguished_name
        .push(DnType::CommonName, own_name);
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = authority.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate().unwrap();
    Issued {
        authority: pem,
        certificate: params.signed_by(&key, &issuer).unwrap(),
        key,
    }
}
