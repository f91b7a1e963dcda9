//! xAI's prepaid credit: a text in US cents, negative for credit.
//!
//! Source: docs.x.ai/developers/management-api, `GET /v1/billing/teams/{team}/prepaid/balance`, read
//! 2026-11-24. The host and the key differ from those of the traffic.

use super::exact::Exact;
use super::{BalanceApi, Domain, Next, Subject, document, prepaid};
use crate::ask::{Answer, Ask, Fault, FaultClass};
use rust_decimal::Decimal;
use serde::Deserialize;

const HOST: &str = "https://management-api.x.ai";

/// Xai's billing API.
pub(super) struct Xai;

#[derive(Deserialize)]
struct Document {
    total: Total,
}

#[derive(Deserialize)]
struct Total {
    val: Exact,
}

impl BalanceApi for Xai {
    fn domains(&self) -> &'static [Domain] {
        &[Domain {
            name: "x.ai",
            host: HOST,
            currency: "USD",
        }]
    }

    fn key(&self) -> &'static str {
        "a management key, and billing_id = the id of the team"
    }

    fn first(&self, subject: &Subject<'_>) -> Result<Ask, Fault> {
        let Some(team) = subject.billing_id else {
            let detail = "accounts[].billing_id is not set: it is the id of the team";
            return Err(Fault::new(FaultClass::Error, detail));
        };
        let path = format!("/v1/billing/teams/{team}/prepaid/balance");
        Ok(Ask::get(HOST, path))
    }

    fn read(&self, subject: &Subject<'_>, _: &Ask, answer: &Answer) -> Result<Next, Fault> {
        let document: Document = document(answer)?;
        Ok(prepaid(
            subject.currency,
            -document.total.val.0 / Decimal::ONE_HUNDRED,
        ))
    }
}
