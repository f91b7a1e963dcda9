//! DeepInfra's balance as its payment provider has it, in US dollars, negative for credit.
//!
//! Source: the API's own description of `GET /payment/checklist`. It names the sign; that the amount
//! is in dollars and not in cents was not seen in a bill (2026-11-24).

use super::exact::Exact;
use super::{BalanceApi, Domain, Next, Subject, document, prepaid};
use crate::ask::{Answer, Ask, Fault};
use serde::Deserialize;

const HOST: &str = "https://api.deepinfra.com";

/// DeepInfra's billing API.
pub(super) struct DeepInfra;

#[derive(Deserialize)]
struct Document {
    stripe_balance: Exact,
}

impl BalanceApi for DeepInfra {
    fn domains(&self) -> &'static [Domain] {
        &[Domain {
            name: "deepinfra.com",
            host: HOST,
            currency: "USD",
        }]
    }

    fn key(&self) -> &'static str {
        "an ordinary key"
    }

    fn first(&self, _: &Subject<'_>) -> Result<Ask, Fault> {
        Ok(Ask::get(HOST, "/payment/checklist"))
    }

    fn read(&self, subject: &Subject<'_>, _: &Ask, answer: &Answer) -> Result<Next, Fault> {
        let document: Document = document(answer)?;
        Ok(prepaid(subject.currency, -document.stripe_balance.0))
    }
}
