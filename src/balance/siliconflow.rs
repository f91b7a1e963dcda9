//! SiliconFlow's balance: US dollars on api.siliconflow.com, yuan on api.siliconflow.cn; what was
//! given and what was paid in together.
//!
//! Source: docs.siliconflow.com, `GET /v1/user/info`, read 2026-11-24. The code of a success is
//! 20000.

use super::exact::Exact;
use super::{BalanceApi, Domain, Next, Subject, document, prepaid};
use crate::ask::{Answer, Ask, Fault};
use serde::Deserialize;

const HOST: &str = "https://api.siliconflow.com";

/// SiliconFlow's billing API.
pub(super) struct SiliconFlow;

#[derive(Deserialize)]
struct Document {
    code: i64,
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    total_balance: Exact,
}

impl BalanceApi for SiliconFlow {
    fn domains(&self) -> &'static [Domain] {
        &[
            Domain {
                name: "siliconflow.com",
                host: HOST,
                currency: "USD",
            },
            Domain {
                name: "siliconflow.cn",
                host: "https://api.siliconflow.cn",
                currency: "CNY",
            },
        ]
    }

    fn key(&self) -> &'static str {
        "an ordinary key"
    }

    fn first(&self, _: &Subject<'_>) -> Result<Ask, Fault> {
        Ok(Ask::get(HOST, "/v1/user/info"))
    }

    fn read(&self, subject: &Subject<'_>, _: &Ask, answer: &Answer) -> Result<Next, Fault> {
        let document: Document = document(answer)?;
        match document.data {
            Some(data) if document.code == 20_000 => {
                Ok(prepaid(subject.currency, data.total_balance.0))
            }
            _ => Err(Fault::malformed(&format!("code {}", document.code))),
        }
    }
}
