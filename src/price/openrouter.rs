//! OpenRouter's models API: `GET /api/v1/models`, which needs no key.
//!
//! Prices are decimal texts in US dollars for one token, request or search; `-1` is a price that
//! depends on where a router sends the request. `overrides` hold above a length of the prompt or
//! within hours of the day, the later before the earlier. Source: OpenRouter's OpenAPI document,
//! schema `PublicPricing`, 2026-08.

use rust_decimal::Decimal;
use serde_json::{Map, Value, json};

use super::api::{PriceApi, Unreadable, not_empty};
use super::list::{ModelName, Reading};
use super::number;
use crate::ask::{Ask, KeyPlace};
use crate::usage::Unit;

const PROVIDER: &str = "openrouter";

const HOST: &str = "https://openrouter.ai";

/// The rates that this crate has a unit for.
const UNITS: [(&str, Unit); 10] = [
    ("prompt", Unit::Input),
    ("completion", Unit::Output),
    ("internal_reasoning", Unit::Reasoning),
    ("input_cache_read", Unit::CacheRead),
    ("input_cache_write", Unit::CacheWrite),
    ("input_cache_write_1h", Unit::CacheWrite1h),
    ("audio", Unit::InputAudio),
    ("audio_output", Unit::OutputAudio),
    ("web_search", Unit::Search),
    ("request", Unit::Request),
];

/// What an override says of when it holds.
const CONDITIONS: [&str; 3] = ["min_prompt_tokens", "utc_start", "utc_end"];

/// A reading of the list.
#[derive(Debug, Default)]
pub(super) struct OpenRouterPrices {
    reading: Reading,
    is_read: bool,
}

impl PriceApi for OpenRouterPrices {
    fn ask(&self) -> Option<Ask> {
        let ask = || Ask::get(HOST, "/api/v1/models").key(KeyPlace::Nowhere);
        (!self.is_read).then(ask)
    }

    fn take(&mut self, body: &[u8]) -> Result<(), Unreadable> {
        let malformed = |problem: &str| Unreadable::Malformed(problem.to_owned());
        let answer: Value = serde_json::from_slice(body)
            .map_err(|error| malformed(&format!("no JSON: {error}")))?;
        let models = answer.get("data").and_then(Value::as_array);
        for model in models.ok_or_else(|| malformed("no array `data`"))? {
            let id = model.get("id").and_then(Value::as_str).unwrap_or_default();
            let name = ModelName::new(PROVIDER, id);
            match model.get("pricing") {
                Some(Value::Object(pricing)) => read(&mut self.reading, name, pricing),
                _ => self.reading.reject(name, "no object `pricing`"),
            }
        }
        self.is_read = true;
        Ok(())
    }

    fn is_refused(&mut self) -> bool {
        false
    }

    fn finish(self: Box<Self>) -> Result<Reading, Unreadable> {
        not_empty(self.reading)
    }
}

fn read(reading: &mut Reading, name: ModelName, pricing: &Map<String, Value>) {
    match entry(reading, &name.model, pricing) {
        Ok(entry) => reading.take(name, entry),
        Err(reason) => reading.reject(name, reason),
    }
}

/// A model's entry in our own form.
fn entry(
    reading: &mut Reading,
    model: &str,
    pricing: &Map<String, Value>,
) -> Result<Value, String> {
    // Whether the other figures are before or after it is documented nowhere.
    let discount = pricing.get("discount").filter(|it| !it.is_null());
    if discount.is_some_and(|it| number::decimal(it) != Some(Decimal::ZERO)) {
        return Err("discounted, and from what is not said".to_owned());
    }
    for field in pricing.keys() {
        let is_known = UNITS.iter().any(|(known, _)| known == field);
        if !is_known && !["discount", "overrides"].contains(&field.as_str()) {
            reading.pass_over(&format!("pricing.{field}"));
        }
    }
    let mut base = rates(pricing)?;
    if !["input", "output", "request"]
        .iter()
        .any(|it| base.contains_key(*it))
    {
        return Err("no price of prompt, completion or request".to_owned());
    }
    settle_cache_writes(&mut base, model);
    let mut above = Vec::new();
    let mut hourly = Vec::new();
    let overrides = pricing.get("overrides").and_then(Value::as_array);
    for table in overrides.into_iter().flatten().filter_map(Value::as_object) {
        let unknown = table.keys().find(|field| {
            let is_rate = UNITS.iter().any(|(known, _)| known == field);
            !is_rate && !CONDITIONS.contains(&field.as_str())
        });
        if let Some(field) = unknown {
            return Err(format!("overrides.{field} is not known"));
        }
        let mut rates = rates(table)?;
        settle_cache_writes(&mut rates, model);
        let hours = hours(table)?;
        match (table.get("min_prompt_tokens"), hours) {
            (Some(tokens), None) => {
                let tokens = tokens.as_u64().ok_or("min_prompt_tokens is no number")?;
                rates.insert("tokens".to_owned(), tokens.into());
                // The later wins, and ours may not repeat a limit.
                above.retain(|other: &Map<String, Value>| {
                    other.get("tokens") != rates.get("tokens")
                });
                above.push(rates);
            }
            (None, Some(hours)) => {
                let mut whole = base.clone();
                whole.extend(rates);
                whole.insert("hours".to_owned(), hours.into());
                hourly.push(whole);
            }
            _ => return Err("an override that holds for lengths and hours at once".to_owned()),
        }
    }
    if !above.is_empty() && !hourly.is_empty() {
        return Err("overrides of lengths and of hours together".to_owned());
    }
    if !above.is_empty() {
        base.insert("above".to_owned(), json!(above));
    }
    if hourly.is_empty() {
        return Ok(Value::Object(base));
    }
    let prices = std::iter::once(base).chain(hourly);
    Ok(prices.map(Value::Object).collect())
}

/// The rates that are stated. A zero beside other prices is how the API says that something has no
/// price of its own, not that it is free.
fn rates(table: &Map<String, Value>) -> Result<Map<String, Value>, String> {
    let mut rates = Map::new();
    for (field, unit) in UNITS {
        let Some(value) = table.get(field).filter(|value| !value.is_null()) else {
            continue;
        };
        if number::decimal(value) == Some(Decimal::NEGATIVE_ONE) {
            return Err(format!("{field} is -1: it varies"));
        }
        let rate = number::per_one(unit, value).map_err(|why| format!("{field} is {why}"))?;
        let is_main = matches!(unit, Unit::Input | Unit::Output);
        if is_main || !rate.is_zero() {
            rates.insert(unit.as_str().to_owned(), rate.to_string().into());
        }
    }
    Ok(rates)
}

/// Claude's unqualified write price is the five-minute one, wherever Claude is sold.
fn settle_cache_writes(rates: &mut Map<String, Value>, model: &str) {
    if (model.contains("claude") || rates.contains_key("cache_write_1h"))
        && let Some(rate) = rates.remove("cache_write")
    {
        rates.insert("cache_write_5m".to_owned(), rate);
    }
}

/// `utc_start` and `utc_end` as our lists have them: `HHMM` as text or number.
fn hours(table: &Map<String, Value>) -> Result<Option<String>, String> {
    let time = |field: &str| match table.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let digits = match value {
                Value::String(text) => text.replace(':', ""),
                value => format!("{:0>4}", value.to_string()),
            };
            match digits.split_at_checked(2) {
                Some((hour, minute)) if digits.len() == 4 => Ok(Some(format!("{hour}:{minute}"))),
                _ => Err(format!("{field} is no time of day")),
            }
        }
    };
    match (time("utc_start")?, time("utc_end")?) {
        (Some(start), Some(end)) => Ok(Some(format!("{start}-{end}"))),
        (None, None) => Ok(None),
        _ => Err("hours with one end".to_owned()),
    }
}
