//! fal's billing events: what each request cost, discounts taken off, for a key of scope ADMIN.
//!
//! Source: fal.ai/docs/platform-apis/v1/models/billing-events, read 2026-11-24: 1 to 50 ids a call,
//! `start` is 24 hours ago unless it is given, a span has 90 days at most, pages have cursors. A
//! failed request may have no event, and one that is charged has it with a delay: no event is not a
//! cost of zero. `cost_total` is what is charged; answers of before mid-2026 have it in billionths of
//! a dollar alone.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use rust_decimal::Decimal;
use serde::Deserialize;

use super::{Line, Page, ReceiptApi, whole};
use crate::ask::{Answer, Ask, Fault, KeyPlace};
use crate::balance::{Exact, document};
use crate::bill::{next_page, push_encoded};

const HOST: &str = "https://api.fal.ai";

/// How long before the start of a request its event cannot be: clocks differ.
const MARGIN: TimeDelta = TimeDelta::hours(1);

const NANOS_PER_USD: Decimal = Decimal::from_parts(1_000_000_000, 0, 0, false, 0);

/// fal's billing events.
pub(super) struct Fal;

#[derive(Deserialize)]
struct Document {
    billing_events: Vec<Event>,
    #[serde(default)]
    has_more: bool,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct Event {
    request_id: String,
    cost_total: Option<Exact>,
    cost_estimate_nano_usd: Option<Exact>,
}

impl ReceiptApi for Fal {
    fn name(&self) -> &'static str {
        "billing_events"
    }

    fn key(&self) -> &'static str {
        "a key of scope ADMIN"
    }

    fn wants_admin_key(&self) -> bool {
        true
    }

    fn ids_per_call(&self) -> usize {
        50
    }

    fn id(&self, request_id: Option<String>, job_id: Option<String>) -> Option<String> {
        // A queued request is known by the id that its submit gave it.
        job_id.or(request_id)
    }

    fn nobodys_id(&self) -> &'static str {
        "00000000-0000-0000-0000-000000000000"
    }

    fn first(&self, ids: &[&str], since: DateTime<Utc>) -> Ask {
        let since = since.checked_sub_signed(MARGIN).unwrap_or(since);
        let since = since.to_rfc3339_opts(SecondsFormat::Secs, true);
        let mut path = format!("/v1/models/billing-events?start={since}&limit=100");
        for id in ids {
            path.push_str("&request_id=");
            push_encoded(&mut path, id);
        }
        Ask::get(HOST, path).key(KeyPlace::Authorization("Key"))
    }

    fn read(&self, _: &[&str], asked: &Ask, answer: &Answer) -> Result<Page, Fault> {
        let document: Document = document(answer)?;
        let line = |event: Event| {
            let nanos = event.cost_estimate_nano_usd;
            let nanos = nanos.and_then(|nanos| nanos.0.checked_div(NANOS_PER_USD));
            Line {
                id: event.request_id,
                cost: event.cost_total.map(|cost| cost.0).or(nanos).map(whole),
            }
        };
        let next = document.next_cursor.filter(|_| document.has_more);
        Ok(Page {
            lines: document.billing_events.into_iter().map(line).collect(),
            next: next.map(|cursor| next_page(asked, "cursor", &cursor)),
        })
    }
}
