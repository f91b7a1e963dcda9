//! OpenRouter's credits, in US dollars, for a management key; for an ordinary one what that key may
//! still spend.
//!
//! Source: OpenRouter's OpenAPI file of August 2026, `GET /api/v1/credits` and `GET /api/v1/key`.
//! The former may be a minute old.

use serde::Deserialize;

use super::exact::Exact;
use super::{Balance, BalanceApi, BalanceKind, Domain, Next, Subject, document, prepaid};
use crate::ask::{Answer, Ask, Fault};

const HOST: &str = "https://openrouter.ai";
const CREDITS: &str = "/api/v1/credits";
const KEY: &str = "/api/v1/key";

/// OpenRouter's billing API.
pub(super) struct OpenRouter;

#[derive(Deserialize)]
struct Document<T> {
    data: T,
}

#[derive(Deserialize)]
struct Credits {
    total_credits: Exact,
    total_usage: Exact,
}

#[derive(Deserialize)]
struct Key {
    /// Null for a key without a limit; absent is something else.
    #[serde(deserialize_with = "Option::deserialize")]
    limit_remaining: Option<Exact>,
}

impl BalanceApi for OpenRouter {
    fn domains(&self) -> &'static [Domain] {
        &[Domain {
            name: "openrouter.ai",
            host: HOST,
            currency: "USD",
        }]
    }

    fn key(&self) -> &'static str {
        "a management key; an ordinary one tells its own limit alone"
    }

    fn first(&self, _: &Subject<'_>) -> Result<Ask, Fault> {
        Ok(Ask::get(HOST, CREDITS))
    }

    fn read(&self, subject: &Subject<'_>, asked: &Ask, answer: &Answer) -> Result<Next, Fault> {
        if asked.path == KEY {
            let Document { data }: Document<Key> = document(answer)?;
            return Ok(Next::Balances(vec![Balance {
                kind: BalanceKind::KeyLimit,
                currency: subject.currency.to_owned(),
                amount: data.limit_remaining.map(|remaining| remaining.0),
            }]));
        }
        if matches!(answer.status.as_u16(), 401 | 403) {
            return Ok(Next::Ask(Ask::get(HOST, KEY)));
        }
        let Document { data }: Document<Credits> = document(answer)?;
        Ok(prepaid(
            subject.currency,
            data.total_credits.0.saturating_sub(data.total_usage.0),
        ))
    }
}
