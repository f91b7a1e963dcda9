//! RunPod's balance, in US dollars, by GraphQL: an error comes with status 200.
//!
//! Source: docs.runpod.io and graphql-spec.runpod.io, `myself.clientBalance`, read 2026-11-24.

use super::exact::Exact;
use super::{BalanceApi, Domain, Next, Subject, document, prepaid};
use crate::ask::{Answer, Ask, Fault, FaultClass};
use crate::fault::scrub;
use serde::Deserialize;

const HOST: &str = "https://api.runpod.io";

/// RunPod's billing API.
pub(super) struct RunPod;

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    errors: Vec<GraphQlError>,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct GraphQlError {
    message: String,
}

#[derive(Deserialize)]
struct Data {
    myself: Option<Myself>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Myself {
    client_balance: Exact,
}

impl BalanceApi for RunPod {
    fn domains(&self) -> &'static [Domain] {
        &[
            Domain {
                name: "runpod.io",
                host: HOST,
                currency: "USD",
            },
            Domain {
                name: "runpod.ai",
                host: HOST,
                currency: "USD",
            },
        ]
    }

    fn key(&self) -> &'static str {
        "a key that may read GraphQL"
    }

    fn first(&self, _: &Subject<'_>) -> Result<Ask, Fault> {
        Ok(Ask::post_json(
            HOST,
            "/graphql",
            r#"{"query":"query { myself { clientBalance } }"}"#,
        ))
    }

    fn read(&self, subject: &Subject<'_>, _: &Ask, answer: &Answer) -> Result<Next, Fault> {
        let document: Document = document(answer)?;
        if let Some(error) = document.errors.first() {
            return Err(Fault::new(FaultClass::Error, scrub(&error.message)));
        }
        match document.data.and_then(|data| data.myself) {
            Some(myself) => Ok(prepaid(subject.currency, myself.client_balance.0)),
            // Who asks is nobody.
            None => Err(Fault::new(
                FaultClass::Auth,
                "the key is not accepted: there is no `myself`",
            )),
        }
    }
}
