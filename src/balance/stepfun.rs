//! StepFun's balance, in yuan: vouchers and cash together.
//!
//! Source: platform.stepfun.com, `GET /v1/accounts`, read 2026-11-24.

use super::exact::Exact;
use super::{BalanceApi, Domain, Next, Subject, document, prepaid};
use crate::ask::{Answer, Ask, Fault};
use serde::Deserialize;

const HOST: &str = "https://api.stepfun.com";

/// StepFun's billing API.
pub(super) struct StepFun;

#[derive(Deserialize)]
struct Document {
    balance: Exact,
}

impl BalanceApi for StepFun {
    fn domains(&self) -> &'static [Domain] {
        &[Domain {
            name: "stepfun.com",
            host: HOST,
            currency: "CNY",
        }]
    }

    fn key(&self) -> &'static str {
        "an ordinary key"
    }

    fn first(&self, _: &Subject<'_>) -> Result<Ask, Fault> {
        Ok(Ask::get(HOST, "/v1/accounts"))
    }

    fn read(&self, subject: &Subject<'_>, _: &Ask, answer: &Answer) -> Result<Next, Fault> {
        let document: Document = document(answer)?;
        Ok(prepaid(subject.currency, document.balance.0))
    }
}
