//! Vast.ai's credit, in US dollars.
//!
//! Source: docs.vast.ai, `GET /api/v0/users/current/`, read 2026-11-24. Without the final slash it
//! redirects.

use super::exact::Exact;
use super::{BalanceApi, Domain, Next, Subject, document, prepaid};
use crate::ask::{Answer, Ask, Fault};
use serde::Deserialize;

const HOST: &str = "https://console.vast.ai";

/// Vast's billing API.
pub(super) struct Vast;

#[derive(Deserialize)]
struct Document {
    credit: Exact,
}

impl BalanceApi for Vast {
    fn domains(&self) -> &'static [Domain] {
        &[Domain {
            name: "vast.ai",
            host: HOST,
            currency: "USD",
        }]
    }

    fn key(&self) -> &'static str {
        "an ordinary key that may read the account"
    }

    fn first(&self, _: &Subject<'_>) -> Result<Ask, Fault> {
        Ok(Ask::get(HOST, "/api/v0/users/current/"))
    }

    fn read(&self, subject: &Subject<'_>, _: &Ask, answer: &Answer) -> Result<Next, Fault> {
        let document: Document = document(answer)?;
        Ok(prepaid(subject.currency, document.credit.0))
    }
}
