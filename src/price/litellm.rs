//! LiteLLM's price file, `model_prices_and_context_window.json`: an object by model.
//!
//! Figures are US dollars for one token, character, second, image or page. A key ends with the
//! tier (`_batches`, `_flex`, `_priority`, `_ultrafast`) after the length of the context above
//! which it holds (`_above_200k_tokens`), if any. Keys about costs that no rate here stands for are
//! counted and passed over; so is a model that nothing is known of afterwards. Source: the entry
//! `sample_spec` of the file, and its keys, version 1.110.2.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::import::{Imported, NAMES, Names};
use super::list::{ModelName, Reading};
use super::number;
use crate::usage::Unit;

/// What is priced by the token or character.
const TOKENS: [(&str, Unit); 11] = [
    ("input_cost_per_token", Unit::Input),
    ("output_cost_per_token", Unit::Output),
    ("cache_read_input_token_cost", Unit::CacheRead),
    ("cache_creation_input_token_cost", Unit::CacheWrite),
    (
        "cache_creation_input_token_cost_above_1hr",
        Unit::CacheWrite1h,
    ),
    ("output_cost_per_reasoning_token", Unit::Reasoning),
    ("input_cost_per_audio_token", Unit::InputAudio),
    ("output_cost_per_audio_token", Unit::OutputAudio),
    ("input_cost_per_image_token", Unit::InputImage),
    ("output_cost_per_image_token", Unit::OutputImage),
    ("input_cost_per_character", Unit::Character),
];

const TIERS: [(&str, &str); 4] = [
    ("_batches", "batch"),
    ("_flex", "flex"),
    ("_priority", "priority"),
    ("_ultrafast", "ultrafast"),
];

/// Prices of one piece of work: the mode of a model that is billed by it, the key, the unit.
const WORK: [(&str, &str, Unit); 7] = [
    ("image_generation", "output_cost_per_image", Unit::Image),
    (
        "audio_transcription",
        "input_cost_per_second",
        Unit::AudioSecond,
    ),
    (
        "audio_transcription",
        "output_cost_per_second",
        Unit::AudioSecond,
    ),
    (
        "video_generation",
        "output_cost_per_video_per_second",
        Unit::VideoSecond,
    ),
    (
        "video_generation",
        "output_cost_per_second",
        Unit::VideoSecond,
    ),
    ("rerank", "input_cost_per_query", Unit::Search),
    ("ocr", "ocr_cost_per_page", Unit::Page),
];

/// Keys that change what the others mean, in ways that no rate here can follow.
const CONDITIONS: [&str; 2] = ["tiered_pricing", "off_peak_pricing"];

/// Reads the file; `None` if it is another object.
pub(super) fn read(models: &Map<String, Value>) -> Option<Imported> {
    let is_entry = |entry: &Value| entry.get("litellm_provider").is_some();
    if !models.values().any(is_entry) {
        return None;
    }
    let mut reading = Reading::default();
    let mut foreign_models = 0;
    for (key, entry) in models.iter().filter(|(key, _)| *key != "sample_spec") {
        let provider = entry.get("litellm_provider").and_then(Value::as_str);
        let provider = provider.unwrap_or_default();
        let (Some(names), Value::Object(entry)) = (
            NAMES.iter().find(|names| names.litellm.contains(&provider)),
            entry,
        ) else {
            foreign_models += 1;
            continue;
        };
        let name = ModelName::new(names.provider, model_name(names, key));
        if is_of_a_region_or_size(names, &name.model) {
            reading.pass_over("(names with a region or a size)");
            continue;
        }
        // Names with and without prefix repeat each other; the plain one is meant.
        if name.model.len() < key.len() && models.contains_key(&name.model) {
            continue;
        }
        match price(&mut reading, &name.model, entry) {
            Ok(Some(price)) => reading.take(name, price),
            Ok(None) => {}
            Err(reason) => reading.reject(name, reason),
        }
    }
    Some(Imported {
        source: "litellm",
        reading,
        foreign_models,
    })
}

fn model_name<'a>(names: &Names, key: &'a str) -> &'a str {
    let mut prefixes = names.prefixes.iter();
    let name = prefixes.find_map(|prefix| key.strip_prefix(prefix));
    name.unwrap_or(key)
}

/// LiteLLM lists `us-east-1/model` and `1024-x-1024/model` as models of their own; no provider
/// calls a model by such a name.
fn is_of_a_region_or_size(names: &Names, model: &str) -> bool {
    let Some((first, _)) = model.split_once('/') else {
        return false;
    };
    ["azure", "bedrock"].contains(&names.provider)
        || first.contains("-x-")
        || ["hd", "standard", "low", "medium", "high"].contains(&first)
}

#[derive(Default)]
struct Rates {
    base: Map<String, Value>,
    above: BTreeMap<u64, Map<String, Value>>,
}

impl Rates {
    fn into_table(mut self) -> Map<String, Value> {
        let above: Vec<Value> = self
            .above
            .into_iter()
            .map(|(tokens, mut rates)| {
                rates.insert("tokens".to_owned(), tokens.into());
                Value::Object(rates)
            })
            .collect();
        if !above.is_empty() {
            self.base.insert("above".to_owned(), above.into());
        }
        self.base
    }
}

/// A model's entry in our own form; `None` if none of its keys is a rate here.
fn price(
    reading: &mut Reading,
    model: &str,
    entry: &Map<String, Value>,
) -> Result<Option<Value>, String> {
    if let Some(key) = CONDITIONS.iter().find(|key| entry.contains_key(**key)) {
        return Err(format!(
            "{key} says when its prices hold, which is not read"
        ));
    }
    let mut tiers: BTreeMap<&str, Rates> = BTreeMap::new();
    let mode = entry
        .get("mode")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let mut work = None;
    for (key, value) in entry {
        if value.is_null() {
            continue;
        }
        if let Some((unit, limit, tier)) = token_rate(key) {
            let rate = number::per_one(unit, value).map_err(|why| format!("{key} is {why}"))?;
            // A write that costs nothing is how LiteLLM says that it has no price of its own.
            if rate.is_zero() && !matches!(unit, Unit::Input | Unit::Output) {
                continue;
            }
            let rates = tiers.entry(tier).or_default();
            let rates = match limit {
                None => &mut rates.base,
                Some(limit) => rates.above.entry(limit).or_default(),
            };
            rates.insert(unit.as_str().to_owned(), rate.to_string().into());
        } else if let Some((_, _, unit)) = WORK.iter().find(|it| it.0 == mode && it.1 == key) {
            let rate = number::per_one(*unit, value).map_err(|why| format!("{key} is {why}"))?;
            if !rate.is_zero() {
                work = Some((*unit, rate));
            }
        } else if key == "search_context_cost_per_query" {
            let medium = value.get("search_context_size_medium");
            if let Some(medium) = medium.filter(|it| !it.is_null()) {
                let rate = number::per_one(Unit::Search, medium);
                let rate = rate.map_err(|why| format!("{key} is {why}"))?;
                let base = &mut tiers.entry("").or_default().base;
                base.insert("search".to_owned(), rate.to_string().into());
            }
        } else if key.contains("cost") || key.contains("price") || key.contains("pricing") {
            reading.pass_over(key);
        }
    }
    let mut standard = tiers.remove("").unwrap_or_default();
    // Tokens measure the same work, where there are prices of tokens.
    let has_tokens = ["output", "output_image", "output_audio", "input_audio"];
    if let Some((unit, rate)) = work
        && !has_tokens.iter().any(|it| standard.base.contains_key(*it))
    {
        standard
            .base
            .insert(unit.as_str().to_owned(), rate.to_string().into());
    }
    settle(&mut standard, model, mode);
    if standard.base.is_empty() {
        return Ok(None);
    }
    let mut table = standard.into_table();
    let mut listed = Map::new();
    for (tier, mut rates) in tiers {
        settle(&mut rates, model, mode);
        if !rates.base.is_empty() || !rates.above.is_empty() {
            listed.insert(tier.to_owned(), Value::Object(rates.into_table()));
        }
    }
    if !listed.is_empty() {
        table.insert("tiers".to_owned(), Value::Object(listed));
    }
    if let Some(sizes) = entry
        .get("search_context_cost_per_query")
        .and_then(Value::as_object)
        && table.contains_key("search")
        && sizes
            .values()
            .any(|rate| Some(rate) != sizes.values().next())
    {
        table.insert("estimate".to_owned(), vec!["search"].into());
    }
    Ok(Some(Value::Object(table)))
}

/// The unit, the length of the context and the tier that a key is about.
fn token_rate(key: &str) -> Option<(Unit, Option<u64>, &'static str)> {
    let tier = TIERS.iter().find_map(|(suffix, tier)| {
        let key = key.strip_suffix(suffix)?;
        Some((key, *tier))
    });
    let (key, tier) = tier.unwrap_or((key, ""));
    let (key, limit) = match key
        .strip_suffix("k_tokens")
        .and_then(|key| key.rsplit_once("_above_"))
    {
        Some((key, thousands)) => (key, Some(thousands.parse::<u64>().ok()?.checked_mul(1000)?)),
        None => (key, None),
    };
    let (_, unit) = TOKENS.iter().find(|(known, _)| *known == key)?;
    Some((*unit, limit, tier))
}

fn settle(rates: &mut Rates, model: &str, mode: &str) {
    let is_short = model.contains("claude") || rates.base.contains_key("cache_write_1h");
    for table in std::iter::once(&mut rates.base).chain(rates.above.values_mut()) {
        if is_short && let Some(rate) = table.remove("cache_write") {
            table.insert("cache_write_5m".to_owned(), rate);
        }
        // Nothing is put out, and so nothing is free.
        if ["embedding", "rerank"].contains(&mode) && table.get("output") == Some(&"0".into()) {
            table.remove("output");
        }
    }
    rates.above.retain(|_, table| !table.is_empty());
}
