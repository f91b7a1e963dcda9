//! fal's credit, in US dollars: by the platform's API for an admin key, else by the one of fal's own
//! dashboard, which is not documented and answers a bare number.
//!
//! Source: docs.fal.ai, `GET /v1/account/billing?expand=credits`, and programs that use
//! `rest.alpha.fal.ai/billing/user_balance`, read 2026-11-24. The latter lags by about one call.

use serde::Deserialize;

use super::exact::Exact;
use super::{BalanceApi, Domain, Next, Subject, document, prepaid};
use crate::ask::{Answer, Ask, Fault, FaultClass, KeyPlace};

const HOST: &str = "https://api.fal.ai";
const DASHBOARD_HOST: &str = "https://rest.alpha.fal.ai";
const BILLING: &str = "/v1/account/billing?expand=credits";
const USER_BALANCE: &str = "/billing/user_balance";
const KEY: KeyPlace = KeyPlace::Authorization("Key");

/// fal's billing APIs.
pub(super) struct Fal;

#[derive(Deserialize)]
struct Document {
    credits: Credits,
}

#[derive(Deserialize)]
struct Credits {
    current_balance: Exact,
    currency: String,
}

impl BalanceApi for Fal {
    fn domains(&self) -> &'static [Domain] {
        const AI: Domain = Domain {
            name: "fal.ai",
            host: HOST,
            currency: "USD",
        };
        &[
            AI,
            Domain {
                name: "fal.run",
                ..AI
            },
        ]
    }

    fn key(&self) -> &'static str {
        "an admin key; an ordinary one reads an API that fal does not document"
    }

    fn first(&self, _: &Subject<'_>) -> Result<Ask, Fault> {
        Ok(Ask::get(HOST, BILLING).key(KEY))
    }

    fn read(&self, subject: &Subject<'_>, asked: &Ask, answer: &Answer) -> Result<Next, Fault> {
        let status = answer.status.as_u16();
        if asked.path == USER_BALANCE {
            if matches!(status, 404 | 405 | 410) {
                return Err(Fault::new(
                    FaultClass::Unsupported,
                    "fal tells no balance for this key; give an admin key",
                ));
            }
            let Exact(amount) = document(answer)?;
            return Ok(prepaid(subject.currency, amount));
        }
        if matches!(status, 401 | 403 | 404 | 405 | 410) {
            return Ok(Next::Ask(Ask::get(DASHBOARD_HOST, USER_BALANCE).key(KEY)));
        }
        let Document { credits } = document(answer)?;
        Ok(prepaid(&credits.currency, credits.current_balance.0))
    }
}
