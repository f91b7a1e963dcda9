//! Moonshot's balance: yuan on api.moonshot.cn, US dollars on api.moonshot.ai; vouchers and cash
//! together.
//!
//! Source: platform.moonshot.ai/docs, `GET /v1/users/me/balance`, read 2026-11-24.

use super::exact::Exact;
use super::{BalanceApi, Domain, Next, Subject, document, prepaid};
use crate::ask::{Answer, Ask, Fault};
use serde::Deserialize;

const HOST: &str = "https://api.moonshot.ai";

/// Moonshot's billing API.
pub(super) struct Moonshot;

#[derive(Deserialize)]
struct Document {
    code: i64,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    available_balance: Exact,
}

impl BalanceApi for Moonshot {
    fn domains(&self) -> &'static [Domain] {
        &[
            Domain {
                name: "moonshot.ai",
                host: HOST,
                currency: "USD",
            },
            Domain {
                name: "moonshot.cn",
                host: "https://api.moonshot.cn",
                currency: "CNY",
            },
        ]
    }

    fn key(&self) -> &'static str {
        "an ordinary key"
    }

    fn first(&self, _: &Subject<'_>) -> Result<Ask, Fault> {
        Ok(Ask::get(HOST, "/v1/users/me/balance"))
    }

    fn read(&self, subject: &Subject<'_>, _: &Ask, answer: &Answer) -> Result<Next, Fault> {
        let document: Document = document(answer)?;
        match document.data {
            Some(data) if document.code == 0 => {
                Ok(prepaid(subject.currency, data.available_balance.0))
            }
            _ => Err(Fault::malformed(&format!("code {}", document.code))),
        }
    }
}
