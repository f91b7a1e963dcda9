//! fal's pricing API: `GET /v1/models/pricing?endpoint_id=a&endpoint_id=b`, which needs a key.
//!
//! It tells the price of one billing unit of the endpoints that are named, 50 at most, and what
//! that unit is called. A response states how many of them it was billed, so that the price of a
//! `billable_unit` is exact whatever it is called; a few names say what can stand in where a
//! response states none. Source: fal.ai/docs/platform-apis/v1/models/pricing, 2026-11.

use std::collections::{BTreeSet, VecDeque};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::api::{PriceApi, Unreadable, not_empty};
use super::list::{ModelName, PriceList, Reading};
use super::number;
use crate::ask::{Ask, KeyPlace};
use crate::usage::Unit;

const PROVIDER: &str = "fal";

const HOST: &str = "https://api.fal.ai";

/// How many endpoints one question names: the API's own limit.
const ENDPOINTS_PER_ASK_MAX: usize = 50;

/// How many endpoints are asked for at most; more are those of somebody who makes names up.
const ENDPOINTS_MAX: usize = 2_000;

#[derive(Deserialize)]
struct Answer {
    prices: Vec<Map<String, Value>>,
    #[serde(default)]
    next_cursor: Option<String>,
    #[serde(default)]
    has_more: bool,
}

/// A reading of the prices of some endpoints.
#[derive(Debug, Default)]
pub(super) struct FalPrices {
    waiting: VecDeque<Vec<String>>,
    cursor: Option<String>,
    reading: Reading,
}

impl FalPrices {
    /// Asks for what was listed before and for the endpoints besides.
    pub(super) fn of(before: &PriceList, models: &[String]) -> FalPrices {
        let listed = before.names().map(|name| name.model.as_str());
        let endpoints: BTreeSet<&str> = listed
            .chain(models.iter().map(String::as_str))
            .filter(|name| is_endpoint(name))
            .take(ENDPOINTS_MAX)
            .collect();
        let endpoints: Vec<String> = endpoints.into_iter().map(str::to_owned).collect();
        let batches = endpoints.chunks(ENDPOINTS_PER_ASK_MAX);
        FalPrices {
            waiting: batches.map(<[String]>::to_vec).collect(),
            ..FalPrices::default()
        }
    }
}

/// Whether a name can be that of an endpoint, and needs no escapes in a query.
fn is_endpoint(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    name.contains('/') && name.chars().all(is_plain)
}

impl PriceApi for FalPrices {
    fn ask(&self) -> Option<Ask> {
        let batch = self.waiting.front()?;
        let mut path = "/v1/models/pricing?".to_owned();
        let names: Vec<String> = batch.iter().map(|id| format!("endpoint_id={id}")).collect();
        path.push_str(&names.join("&"));
        if let Some(cursor) = &self.cursor {
            path.push_str("&cursor=");
            path.push_str(cursor);
        }
        Some(Ask::get(HOST, path).key(KeyPlace::Authorization("Key")))
    }

    fn take(&mut self, body: &[u8]) -> Result<(), Unreadable> {
        let answer: Answer = serde_json::from_slice(body)
            .map_err(|error| Unreadable::Malformed(error.to_string()))?;
        for price in &answer.prices {
            let id = price.get("endpoint_id").and_then(Value::as_str);
            let name = ModelName::new(PROVIDER, id.unwrap_or_default());
            match entry(price) {
                Ok(entry) => self.reading.take(name, entry),
                Err(reason) => self.reading.reject(name, reason),
            }
        }
        let next = answer.next_cursor.filter(|_| answer.has_more);
        // The same page again would have no end.
        let next = next.filter(|next| is_cursor(next) && self.cursor.as_ref() != Some(next));
        if next.is_none() {
            self.waiting.pop_front();
        }
        self.cursor = next;
        Ok(())
    }

    /// One endpoint that is gone spoils the question, so it is asked for in halves.
    fn is_refused(&mut self) -> bool {
        let Some(mut batch) = self.waiting.pop_front() else {
            return false;
        };
        self.cursor = None;
        if let [only] = &mut *batch {
            let name = ModelName::new(PROVIDER, std::mem::take(only));
            self.reading.reject(name, "the API knows no such endpoint");
        } else {
            let rest = batch.split_off(batch.len() / 2);
            self.waiting.push_front(rest);
            self.waiting.push_front(batch);
        }
        true
    }

    fn finish(self: Box<Self>) -> Result<Reading, Unreadable> {
        not_empty(self.reading)
    }
}

fn is_cursor(cursor: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.=~".contains(c);
    cursor.len() <= 512 && cursor.chars().all(is_plain)
}

/// An endpoint's entry in our own form.
fn entry(price: &Map<String, Value>) -> Result<Value, String> {
    match price.get("currency").and_then(Value::as_str) {
        Some("USD") => {}
        Some(other) => {
            let other: String = other.chars().take(8).flat_map(char::escape_debug).collect();
            return Err(format!("in {other}, not in US dollars"));
        }
        None => return Err("in no stated currency".to_owned()),
    }
    let amount = price.get("unit_price").ok_or("no unit_price")?;
    let rate = number::as_listed(Unit::BillableUnit, amount)
        .map_err(|why| format!("unit_price is {why}"))?;
    let mut entry = Map::new();
    entry.insert("billable_unit".to_owned(), rate.to_string().into());
    let unit = price.get("unit").and_then(Value::as_str);
    if let Some(unit) = unit.and_then(measured_unit) {
        entry.insert("billable_unit_is".to_owned(), unit.as_str().into());
    }
    Ok(Value::Object(entry))
}

/// What a billing unit measures, where its name leaves no doubt: seconds may be those of a video,
/// of sound or of hardware.
fn measured_unit(name: &str) -> Option<Unit> {
    match name.to_ascii_lowercase().as_str() {
        "image" | "images" => Some(Unit::Image),
        "megapixel" | "megapixels" => Some(Unit::Megapixel),
        "compute second" | "compute seconds" => Some(Unit::ComputeSecond),
        "video second" | "video seconds" => Some(Unit::VideoSecond),
        "audio second" | "audio seconds" => Some(Unit::AudioSecond),
        "request" | "requests" => Some(Unit::Request),
        _ => None,
    }
}
