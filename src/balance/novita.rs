//! Novita's balance: texts in units of 1/10,000 US dollar. What is available includes the line of
//! credit.
//!
//! Source: novita.ai/docs/api-reference/basic-get-user-balance, read 2026-11-24.

use super::exact::Exact;
use super::{BalanceApi, Domain, Next, Subject, document, prepaid};
use crate::ask::{Answer, Ask, Fault};
use rust_decimal::Decimal;
use serde::Deserialize;

const HOST: &str = "https://api.novita.ai";

/// Novita's billing API.
pub(super) struct Novita;

/// Units in a US dollar.
const UNITS_PER_USD: Decimal = Decimal::from_parts(10_000, 0, 0, false, 0);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    available_balance: Exact,
}

impl BalanceApi for Novita {
    fn domains(&self) -> &'static [Domain] {
        &[Domain {
            name: "novita.ai",
            host: HOST,
            currency: "USD",
        }]
    }

    fn key(&self) -> &'static str {
        "an ordinary key"
    }

    fn first(&self, _: &Subject<'_>) -> Result<Ask, Fault> {
        Ok(Ask::get(HOST, "/openapi/v1/billing/balance/detail"))
    }

    fn read(&self, subject: &Subject<'_>, _: &Ask, answer: &Answer) -> Result<Next, Fault> {
        let document: Document = document(answer)?;
        Ok(prepaid(
            subject.currency,
            document.available_balance.0 / UNITS_PER_USD,
        ))
    }
}
