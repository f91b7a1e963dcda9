//! OpenRouter's generations: what one of them cost, in credits, which are US dollars, for a key of
//! the account.
//!
//! Source: OpenRouter's OpenAPI file, `GET /api/v1/generation`, and its page on usage accounting, read
//! 2026-11-24. A generation is not found (404, with an error of OpenRouter's own) for a while after
//! it ended, longer if its stream was broken off. `total_cost` and `usage` are what the account is
//! charged. With a key of the user's own the party behind OpenRouter bills
//! `upstream_inference_cost` besides, which is 0 or null otherwise.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Deserialize;

use super::{Line, Page, ReceiptApi, whole};
use crate::ask::{Answer, Ask, Fault};
use crate::balance::{Exact, document};
use crate::bill::push_encoded;
use crate::money::Usd;
use crate::record::StatedCost;

const HOST: &str = "https://openrouter.ai";

/// What the ids of generations begin with.
const PREFIX: &str = "gen-";

/// OpenRouter's generations.
pub(super) struct OpenRouter;

#[derive(Deserialize)]
struct Document {
    data: Generation,
}

#[derive(Deserialize)]
struct Generation {
    id: String,
    total_cost: Option<Exact>,
    usage: Option<Exact>,
    is_byok: Option<bool>,
    upstream_inference_cost: Option<Exact>,
}

/// What OpenRouter says of what it does not find. A place that is not OpenRouter's says something
/// else.
#[derive(Deserialize)]
struct NotFound {
    #[serde(rename = "error")]
    _error: NotFoundError,
}

#[derive(Deserialize)]
struct NotFoundError {
    #[serde(rename = "message")]
    _message: String,
}

impl Generation {
    /// What it cost, if that is clear. OpenRouter does not document what `total_cost` holds beside
    /// `usage` with a key of the user's own: only where both are the same it is the charge alone.
    fn cost(&self) -> Option<StatedCost> {
        let charged = self.total_cost?.0;
        if self.is_byok != Some(true) {
            return Some(whole(charged));
        }
        let upstream = self.upstream_inference_cost?.0;
        let is_clear = self.usage?.0 == charged && upstream >= Decimal::ZERO;
        is_clear.then(|| StatedCost {
            total: Usd::new(charged.saturating_add(upstream)).normalize(),
            upstream: Some(Usd::new(upstream).normalize()),
        })
    }
}

impl ReceiptApi for OpenRouter {
    fn name(&self) -> &'static str {
        "generation"
    }

    fn key(&self) -> &'static str {
        "a key of the account"
    }

    fn wants_admin_key(&self) -> bool {
        false
    }

    fn ids_per_call(&self) -> usize {
        1
    }

    fn id(&self, request_id: Option<String>, _: Option<String>) -> Option<String> {
        request_id.filter(|id| id.starts_with(PREFIX))
    }

    fn nobodys_id(&self) -> &'static str {
        "gen-0"
    }

    fn first(&self, ids: &[&str], _: DateTime<Utc>) -> Ask {
        let mut path = "/api/v1/generation?id=".to_owned();
        push_encoded(&mut path, ids.first().unwrap_or(&""));
        Ask::get(HOST, path)
    }

    fn read(&self, ids: &[&str], _: &Ask, answer: &Answer) -> Result<Page, Fault> {
        let is_unknown = answer.status == http::StatusCode::NOT_FOUND
            && serde_json::from_slice::<NotFound>(&answer.body).is_ok();
        if is_unknown {
            return Ok(Page::default());
        }
        let Document { data } = document(answer)?;
        if !ids.contains(&data.id.as_str()) {
            return Err(Fault::malformed("it is of another generation"));
        }
        let cost = data.cost();
        Ok(Page {
            lines: vec![Line { id: data.id, cost }],
            next: None,
        })
    }
}
