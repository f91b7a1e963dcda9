//! genai-prices' `data.json`: an array of providers with their models.
//!
//! Prices are US dollars for a million tokens (`…_mtok`) or characters (`…_mchars`), a thousand
//! requests, searches or pages (`…_kcount`, `…_kpages`); with `tiers`, those above a length of the
//! context. Of several prices the last whose day or hours it is holds. A model is called by its
//! `id` and by what its `match` spells out as `equals`; patterns are not expanded. Source:
//! `prices/data.schema.json` of github.com/pydantic/genai-prices.

use std::collections::BTreeMap;

use rust_decimal::Decimal;
use serde_json::{Map, Value};

use super::import::{Imported, NAMES};
use super::list::{ModelName, Reading};
use super::number::{self, NoPrice};
use crate::usage::Unit;

/// The fields that this crate has a unit for.
const UNITS: [(&str, Unit); 12] = [
    ("input_mtok", Unit::Input),
    ("output_mtok", Unit::Output),
    ("cache_read_mtok", Unit::CacheRead),
    ("cache_write_mtok", Unit::CacheWrite),
    ("cache_write_5m_mtok", Unit::CacheWrite5m),
    ("cache_write_1h_mtok", Unit::CacheWrite1h),
    ("output_reasoning_mtok", Unit::Reasoning),
    ("input_audio_mtok", Unit::InputAudio),
    ("output_audio_mtok", Unit::OutputAudio),
    ("input_image_mtok", Unit::InputImage),
    ("output_image_mtok", Unit::OutputImage),
    ("input_mchars", Unit::Character),
];

const THOUSANDS: [(&str, Unit); 3] = [
    ("web_searches_kcount", Unit::Search),
    ("requests_kcount", Unit::Request),
    ("input_document_kpages", Unit::Page),
];

/// What a model says besides, which has nothing to do with what it costs.
const OTHER_FIELDS: [&str; 8] = [
    "id",
    "name",
    "description",
    "match",
    "context_window",
    "price_comments",
    "deprecated",
    "prices",
];

/// Reads the file; `None` if it is another array.
pub(super) fn read(providers: &[Value]) -> Option<Imported> {
    if !providers.iter().any(|it| it.get("models").is_some()) {
        return None;
    }
    let mut reading = Reading::default();
    let mut foreign_models = 0;
    for provider in providers {
        let id = provider
            .get("id")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let models = provider.get("models").and_then(Value::as_array);
        let models = models.map(Vec::as_slice).unwrap_or_default();
        let Some(names) = NAMES.iter().find(|names| names.genai_prices.contains(&id)) else {
            foreign_models += u64::try_from(models.len()).unwrap_or_default();
            continue;
        };
        for model in models.iter().filter_map(Value::as_object) {
            let id = model.get("id").and_then(Value::as_str).unwrap_or_default();
            // Google's list has Claude as Vertex sells it.
            if names.provider == "gemini" && id.starts_with("claude") {
                foreign_models += 1;
                continue;
            }
            for field in model
                .keys()
                .filter(|it| !OTHER_FIELDS.contains(&it.as_str()))
            {
                reading.pass_over(field);
            }
            match entry(&mut reading, id, model.get("prices")) {
                Ok(Some(entry)) => {
                    for name in spelled_out(id, model.get("match")) {
                        reading.take(ModelName::new(names.provider, name), entry.clone());
                    }
                }
                Ok(None) => {}
                Err(reason) => reading.reject(ModelName::new(names.provider, id), reason),
            }
        }
    }
    Some(Imported {
        source: "genai-prices",
        reading,
        foreign_models,
    })
}

/// The names that a model is called by in full.
fn spelled_out<'a>(id: &'a str, clause: Option<&'a Value>) -> Vec<&'a str> {
    fn equals<'a>(clause: &'a Value, names: &mut Vec<&'a str>) {
        if let Some(name) = clause.get("equals").and_then(Value::as_str) {
            names.push(name);
        }
        let parts = clause.get("or").and_then(Value::as_array);
        for part in parts.into_iter().flatten() {
            equals(part, names);
        }
    }
    let mut names = vec![id];
    if let Some(clause) = clause {
        equals(clause, &mut names);
    }
    names.sort_unstable();
    names.dedup();
    names
}

/// A model's entry in our own form; `None` if none of its fields is a rate here.
fn entry(reading: &mut Reading, id: &str, prices: Option<&Value>) -> Result<Option<Value>, String> {
    let mut entries = Vec::new();
    match prices {
        Some(Value::Object(prices)) => entries.extend(price(reading, id, prices)?),
        Some(Value::Array(conditional)) => {
            for condition in conditional {
                let prices = condition.get("prices").and_then(Value::as_object);
                let prices = prices.ok_or("a price without `prices`")?;
                let Some(mut price) = price(reading, id, prices)? else {
                    continue;
                };
                for (name, value) in condition
                    .get("constraint")
                    .and_then(Value::as_object)
                    .into_iter()
                    .flatten()
                {
                    match (name.as_str(), value.as_str()) {
                        ("start_date", Some(day)) => price.insert("from".to_owned(), day.into()),
                        ("start_time" | "end_time", Some(_)) => None,
                        _ => return Err(format!("constraint.{name} is not known")),
                    };
                }
                if let Some(hours) = hours(condition.get("constraint"))? {
                    price.insert("hours".to_owned(), hours.into());
                }
                entries.push(price);
            }
        }
        _ => return Err("no prices".to_owned()),
    }
    let mut entries: Vec<Value> = entries.into_iter().map(Value::Object).collect();
    Ok(match entries.len() {
        0 => None,
        1 => entries.pop(),
        _ => Some(Value::Array(entries)),
    })
}

/// `00:30:00Z` to `16:30:00Z` as our lists have it.
fn hours(constraint: Option<&Value>) -> Result<Option<String>, String> {
    let time = |name| {
        let time = constraint
            .and_then(|it| it.get(name))
            .and_then(Value::as_str);
        match time.map(|time| time.strip_suffix('Z').unwrap_or(time)) {
            None => Ok(None),
            Some(time) => match (time.get(..5), time.get(5..)) {
                (Some(minutes), Some("" | ":00")) => Ok(Some(minutes)),
                _ => Err(format!("constraint.{name} is no time in UTC")),
            },
        }
    };
    match (time("start_time")?, time("end_time")?) {
        (Some(start), Some(end)) => Ok(Some(format!("{start}-{end}"))),
        (None, None) => Ok(None),
        _ => Err("hours with one end".to_owned()),
    }
}

fn price(
    reading: &mut Reading,
    id: &str,
    prices: &Map<String, Value>,
) -> Result<Option<Map<String, Value>>, String> {
    let mut table = Map::new();
    let mut above: BTreeMap<u64, Map<String, Value>> = BTreeMap::new();
    let put = |table: &mut Map<String, Value>, unit: Unit, rate: Decimal| {
        table.insert(unit.as_str().to_owned(), rate.to_string().into());
    };
    for (field, value) in prices.iter().filter(|(_, value)| !value.is_null()) {
        let bad = |why: NoPrice| format!("{field} is {why}");
        if let Some((_, unit)) = UNITS.iter().find(|(known, _)| known == field) {
            let base = value.get("base").unwrap_or(value);
            put(
                &mut table,
                *unit,
                number::as_listed(*unit, base).map_err(bad)?,
            );
            let tiers = value.get("tiers").and_then(Value::as_array);
            for tier in tiers.into_iter().flatten() {
                let start = tier.get("start").and_then(Value::as_u64);
                let (Some(start), Some(rate)) = (start, tier.get("price")) else {
                    return Err(format!("{field}: a tier without start and price"));
                };
                let rate = number::as_listed(*unit, rate).map_err(bad)?;
                put(above.entry(start).or_default(), *unit, rate);
            }
        } else if let Some((_, unit)) = THOUSANDS.iter().find(|(known, _)| known == field) {
            let rate = number::as_listed(*unit, value).map_err(bad)?;
            put(
                &mut table,
                *unit,
                (rate / Decimal::ONE_THOUSAND).normalize(),
            );
        } else {
            reading.pass_over(field);
        }
    }
    if table.is_empty() {
        return Ok(None);
    }
    let is_short = id.contains("claude") || table.contains_key("cache_write_1h");
    for table in std::iter::once(&mut table).chain(above.values_mut()) {
        if is_short && let Some(rate) = table.remove("cache_write") {
            table.entry("cache_write_5m").or_insert(rate);
        }
    }
    if !above.is_empty() {
        let above = above.into_iter().map(|(tokens, mut rates)| {
            rates.insert("tokens".to_owned(), tokens.into());
            Value::Object(rates)
        });
        table.insert("above".to_owned(), above.collect());
    }
    Ok(Some(table))
}
