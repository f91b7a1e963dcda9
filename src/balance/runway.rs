//! Runway's balance: credits of 0.01 USD each, kept as credits.
//!
//! Source: docs.dev.runwayml.com, `GET /v1/organization`, read 2026-11-24; the API wants its version
//! in a header.

use super::exact::Exact;
use super::{BalanceApi, Domain, Next, Subject, document, prepaid};
use crate::ask::{Answer, Ask, Fault};
use serde::Deserialize;

const HOST: &str = "https://api.dev.runwayml.com";

/// Runway's billing API.
pub(super) struct Runway;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    credit_balance: Exact,
}

impl BalanceApi for Runway {
    fn domains(&self) -> &'static [Domain] {
        &[Domain {
            name: "runwayml.com",
            host: HOST,
            currency: "credits",
        }]
    }

    fn key(&self) -> &'static str {
        "an ordinary key"
    }

    fn first(&self, _: &Subject<'_>) -> Result<Ask, Fault> {
        Ok(Ask::get(HOST, "/v1/organization").header("x-runway-version", "2024-11-06"))
    }

    fn read(&self, subject: &Subject<'_>, _: &Ask, answer: &Answer) -> Result<Next, Fault> {
        let document: Document = document(answer)?;
        Ok(prepaid(subject.currency, document.credit_balance.0))
    }
}
