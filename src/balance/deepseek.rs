//! DeepSeek's balances: texts, one for each currency that the account has; given and paid in
//! together.
//!
//! Source: api-docs.deepseek.com, `GET /user/balance`, read 2026-11-24.

use super::exact::Exact;
use super::{Balance, BalanceApi, BalanceKind, Domain, Next, Subject, document};
use crate::ask::{Answer, Ask, Fault};
use serde::Deserialize;

const HOST: &str = "https://api.deepseek.com";

/// DeepSeek's billing API.
pub(super) struct DeepSeek;

#[derive(Deserialize)]
struct Document {
    balance_infos: Vec<Info>,
}

#[derive(Deserialize)]
struct Info {
    currency: String,
    total_balance: Exact,
}

impl BalanceApi for DeepSeek {
    fn domains(&self) -> &'static [Domain] {
        &[Domain {
            name: "deepseek.com",
            host: HOST,
            currency: "CNY",
        }]
    }

    fn key(&self) -> &'static str {
        "an ordinary key"
    }

    fn first(&self, _: &Subject<'_>) -> Result<Ask, Fault> {
        Ok(Ask::get(HOST, "/user/balance"))
    }

    fn read(&self, _: &Subject<'_>, _: &Ask, answer: &Answer) -> Result<Next, Fault> {
        let document: Document = document(answer)?;
        if document.balance_infos.is_empty() {
            return Err(Fault::malformed("it lists no balance"));
        }
        let balance = |info: Info| Balance {
            kind: BalanceKind::Prepaid,
            currency: info.currency,
            amount: Some(info.total_balance.0),
        };
        let balances = document.balance_infos.into_iter().map(balance);
        Ok(Next::Balances(balances.collect()))
    }
}
