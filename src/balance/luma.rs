//! Luma's balance, in US cents.
//!
//! Source: docs.lumalabs.ai, `GET /dream-machine/v1/credits`, read 2026-11-24.

use super::exact::Exact;
use super::{BalanceApi, Domain, Next, Subject, document, prepaid};
use crate::ask::{Answer, Ask, Fault};
use rust_decimal::Decimal;
use serde::Deserialize;

const HOST: &str = "https://api.lumalabs.ai";

/// Luma's billing API.
pub(super) struct Luma;

#[derive(Deserialize)]
struct Document {
    credit_balance: Exact,
}

impl BalanceApi for Luma {
    fn domains(&self) -> &'static [Domain] {
        &[Domain {
            name: "lumalabs.ai",
            host: HOST,
            currency: "USD",
        }]
    }

    fn key(&self) -> &'static str {
        "an ordinary key"
    }

    fn first(&self, _: &Subject<'_>) -> Result<Ask, Fault> {
        Ok(Ask::get(HOST, "/dream-machine/v1/credits"))
    }

    fn read(&self, subject: &Subject<'_>, _: &Ask, answer: &Answer) -> Result<Next, Fault> {
        let document: Document = document(answer)?;
        Ok(prepaid(
            subject.currency,
            document.credit_balance.0 / Decimal::ONE_HUNDRED,
        ))
    }
}
