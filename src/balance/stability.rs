//! Stability AI's balance: credits of 0.01 USD each, kept as credits.
//!
//! Source: platform.stability.ai, `GET /v1/user/balance`, read 2026-11-24.

use super::exact::Exact;
use super::{BalanceApi, Domain, Next, Subject, document, prepaid};
use crate::ask::{Answer, Ask, Fault};
use serde::Deserialize;

const HOST: &str = "https://api.stability.ai";

/// Stability's billing API.
pub(super) struct Stability;

#[derive(Deserialize)]
struct Document {
    credits: Exact,
}

impl BalanceApi for Stability {
    fn domains(&self) -> &'static [Domain] {
        &[Domain {
            name: "stability.ai",
            host: HOST,
            currency: "credits",
        }]
    }

    fn key(&self) -> &'static str {
        "an ordinary key"
    }

    fn first(&self, _: &Subject<'_>) -> Result<Ask, Fault> {
        Ok(Ask::get(HOST, "/v1/user/balance"))
    }

    fn read(&self, subject: &Subject<'_>, _: &Ask, answer: &Answer) -> Result<Next, Fault> {
        let document: Document = document(answer)?;
        Ok(prepaid(subject.currency, document.credits.0))
    }
}
