//! Reads price lists: the embedded catalogue and the user's overlay, which share one schema.
//!
//! In: the text of `catalog.json` or of a TOML overlay. Out: models by provider, or every
//! problem with the key it is at. Nothing is guessed: an unknown key, unit or shape is a problem.
//!
//! An entry of a model is a table of rates by unit, with `above`, `when`, `tiers`, `variants`,
//! `regions`, `estimate`, `billable_unit_is`, `from`, `hours` and `source` beside them; an array of such
//! tables, of which the last that is active holds; or the name of the model that it costs the
//! same as. The full description, with examples, is docs/prices.md.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::Arc;

use chrono::{NaiveDate, NaiveTime};
use figment::Figment;
use figment::providers::{Format, Toml};
use rust_decimal::Decimal;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::rates::{
    Condition, Conditions, Hours, Layer, ModelPrices, OPERATION, Price, Rate, RateSet, Rates,
};
use crate::money::parse_decimal;
use crate::qualifier::Qualifier;
use crate::record::Operation;
use crate::usage::Unit;

/// The catalogue that is built in; see `scripts/build_price_catalogue.py`.
pub(super) const EMBEDDED: &str = include_str!("catalog.json");

/// A model's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// Its own prices.
    Prices(Arc<ModelPrices>),
    /// The prices of the model of that name.
    SameAs(Box<str>),
}

/// The entries of one provider.
#[derive(Debug, Default)]
pub(super) struct ProviderEntries {
    pub(super) name: String,
    pub(super) falls_back_to: Vec<Box<str>>,
    pub(super) models: Vec<(String, Entry)>,
}

/// One thing that is wrong with an overlay.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}; accepted: {accepted}")]
pub struct Problem {
    /// The key, from the root of the file (`models.openai."gpt-4o".input`).
    pub key: String,
    /// What is wrong with it.
    pub problem: String,
    /// What would be accepted there.
    pub accepted: String,
}

/// Everything that is wrong with an overlay.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("price overlay: {}", lines(.problems))]
pub struct OverlayError {
    /// The problems, in the order of the file's keys; never empty.
    pub problems: Vec<Problem>,
}

fn lines(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
    lines.join("\n")
}

/// The embedded catalogue, of which a model's entry is read only when its turn comes: the whole
/// as values would be the most memory that the process ever takes at rest.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Catalogue<'a> {
    version: String,
    #[serde(rename = "sources")]
    _sources: IgnoredAny,
    #[serde(borrow)]
    providers: BTreeMap<&'a str, ProviderTable<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderTable<'a> {
    #[serde(default)]
    falls_back_to: Vec<Box<str>>,
    #[serde(borrow)]
    models: BTreeMap<&'a str, &'a RawValue>,
}

/// The version and the entries of the embedded catalogue's text.
pub(super) fn read_catalogue(text: &str) -> Result<(Arc<str>, Vec<ProviderEntries>), OverlayError> {
    let unreadable =
        |error: serde_json::Error| unreadable(&error.to_string(), "a price catalogue in JSON");
    let catalogue: Catalogue<'_> = serde_json::from_str(text).map_err(unreadable)?;
    let version: Arc<str> = catalogue.version.into();
    let mut reader = Reader::of(Layer::Catalog, version.clone());
    let root = Key::ROOT;
    let mut entries = Vec::with_capacity(catalogue.providers.len());
    for (name, table) in catalogue.providers {
        let at = root.then(name);
        let mut models = Vec::with_capacity(table.models.len());
        for (model, entry) in table.models {
            let value = serde_json::from_str(entry.get()).map_err(unreadable)?;
            if let Some(entry) = reader.entry(&at.then(model), &value) {
                models.push((model.to_owned(), entry));
            }
        }
        entries.push(ProviderEntries {
            name: name.to_owned(),
            falls_back_to: table.falls_back_to,
            models,
        });
    }
    reader.finish((version, entries))
}

/// The prices by model by provider of a list as it is kept, in JSON; `null` is a model that is
/// listed no more. Read a model at a time, as the catalogue is.
pub(super) type ListText<'a> = BTreeMap<&'a str, BTreeMap<&'a str, Option<&'a RawValue>>>;

/// The entries of a list as it is kept, without the models that are listed no more.
pub(super) fn read_list(
    layer: Layer,
    version: &Arc<str>,
    text: &str,
) -> Result<Vec<ProviderEntries>, OverlayError> {
    let unreadable =
        |error: serde_json::Error| unreadable(&error.to_string(), "a price list in JSON");
    let list: ListText<'_> = serde_json::from_str(text).map_err(unreadable)?;
    let mut reader = Reader::of(layer, version.clone());
    let mut entries = Vec::with_capacity(list.len());
    for (name, listed) in list {
        let at = Key::ROOT;
        let at = at.then(name);
        let mut models = Vec::with_capacity(listed.len());
        for (model, entry) in listed {
            let Some(entry) = entry else { continue };
            let value = serde_json::from_str(entry.get()).map_err(unreadable)?;
            if let Some(entry) = reader.entry(&at.then(model), &value) {
                models.push((model.to_owned(), entry));
            }
        }
        entries.push(ProviderEntries {
            name: name.to_owned(),
            falls_back_to: Vec::new(),
            models,
        });
    }
    reader.finish(entries)
}

/// Every problem of one model's entry, or none.
pub(super) fn check_entry(provider: &str, model: &str, entry: &Value) -> Result<(), OverlayError> {
    let mut reader = Reader::default();
    let at = Key::ROOT;
    let at = at.then(provider);
    reader.entry(&at.then(model), entry);
    reader.finish(())
}

/// The entries of an overlay's text.
pub(super) fn read_overlay(
    version: &Arc<str>,
    text: &str,
) -> Result<Vec<ProviderEntries>, OverlayError> {
    let document = match Figment::from(Toml::string(text)).extract::<Map<String, Value>>() {
        Ok(document) => document,
        Err(error) => return Err(unreadable(&error.to_string(), "a table in TOML")),
    };
    let mut reader = Reader::of(Layer::Overlay, version.clone());
    let root = Key::ROOT;
    let mut entries = Vec::new();
    for (key, value) in &document {
        let at = root.then(key);
        match (key.as_str(), value) {
            ("models", Value::Object(providers)) => {
                for (name, value) in providers {
                    let models = reader.models(&at.then(name), value);
                    entries.push(ProviderEntries {
                        name: name.clone(),
                        falls_back_to: Vec::new(),
                        models,
                    });
                }
            }
            ("models", _) => reader.problem(&at, "not a table", "a table of providers"),
            _ => reader.problem(&at, "unknown key", "models"),
        }
    }
    reader.finish(entries)
}

fn unreadable(error: &str, accepted: &str) -> OverlayError {
    // The parsers quote the text in the middle lines; position and cause are in the others.
    let mut lines = error.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    let problem = match lines.next_back() {
        Some(last) => format!("{first}: {last}"),
        None => first.to_owned(),
    };
    OverlayError {
        problems: vec![Problem {
            key: "file".to_owned(),
            problem,
            accepted: accepted.to_owned(),
        }],
    }
}

/// Where in the document a value is; spelled out only when something is wrong there.
#[derive(Clone, Copy)]
pub(super) struct Key<'a> {
    parent: Option<&'a Key<'a>>,
    name: &'a str,
}

impl<'a> Key<'a> {
    pub(super) const ROOT: Key<'static> = Key {
        parent: None,
        name: "",
    };

    pub(super) fn then<'b>(&'b self, name: &'b str) -> Key<'b>
    where
        'a: 'b,
    {
        Key {
            parent: Some(self),
            name,
        }
    }
}

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(parent) = self.parent else {
            return Ok(());
        };
        if parent.parent.is_some() {
            write!(f, "{parent}.")?;
        }
        let is_bare = !self.name.is_empty()
            && self
                .name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if is_bare {
            f.write_str(self.name)
        } else {
            f.write_char('"')?;
            for character in self.name.chars() {
                match character {
                    '"' | '\\' => write!(f, "\\{character}")?,
                    character if character.is_control() => {
                        write!(f, "{}", character.escape_default())?;
                    }
                    character => f.write_char(character)?,
                }
            }
            f.write_char('"')
        }
    }
}

/// Collects problems while it reads, and stamps prices with the list that they are from.
#[derive(Default)]
pub(super) struct Reader {
    layer: Layer,
    version: Arc<str>,
    problems: Vec<Problem>,
}

impl Reader {
    fn of(layer: Layer, version: Arc<str>) -> Reader {
        Reader {
            layer,
            version,
            problems: Vec::new(),
        }
    }

    pub(super) fn problem(&mut self, at: &Key<'_>, problem: &str, accepted: impl Into<String>) {
        self.problems.push(Problem {
            key: at.to_string(),
            problem: problem.to_owned(),
            accepted: accepted.into(),
        });
    }

    pub(super) fn finish<T>(self, value: T) -> Result<T, OverlayError> {
        if self.problems.is_empty() {
            Ok(value)
        } else {
            Err(OverlayError {
                problems: self.problems,
            })
        }
    }

    fn models(&mut self, at: &Key<'_>, value: &Value) -> Vec<(String, Entry)> {
        let Value::Object(models) = value else {
            self.problem(at, "not a table", "a table of models");
            return Vec::new();
        };
        let mut entries = Vec::with_capacity(models.len());
        for (name, value) in models {
            if let Some(entry) = self.entry(&at.then(name), value) {
                entries.push((name.clone(), entry));
            }
        }
        entries
    }

    fn entry(&mut self, at: &Key<'_>, value: &Value) -> Option<Entry> {
        let prices = match value {
            Value::String(name) => return Some(Entry::SameAs(name.as_str().into())),
            Value::Object(table) => vec![self.price(at, table)],
            Value::Array(tables) if !tables.is_empty() => {
                let mut prices = Vec::with_capacity(tables.len());
                for (index, value) in tables.iter().enumerate() {
                    let index = index.to_string();
                    let at = at.then(&index);
                    match value {
                        Value::Object(table) => prices.push(self.price(&at, table)),
                        _ => self.problem(&at, "not a table", "a table of rates"),
                    }
                }
                prices
            }
            _ => {
                self.problem(
                    at,
                    "not a price",
                    "a table of rates, an array of such tables, or the name of a model that costs the same",
                );
                return None;
            }
        };
        Some(Entry::Prices(Arc::new(ModelPrices { prices })))
    }

    fn price(&mut self, at: &Key<'_>, table: &Map<String, Value>) -> Price {
        let mut price = Price {
            layer: self.layer,
            version: self.version.clone(),
            ..Price::default()
        };
        let problems_before = self.problems.len();
        for (name, value) in table {
            let key = at.then(name);
            match (name.as_str(), value) {
                ("from", value) => price.from = self.date(&key, value),
                ("hours", value) => price.hours = self.hours(&key, value),
                ("above", value) => price.standard.above = self.above(&key, value),
                ("when", value) => price.when = self.when(&key, value),
                ("variants", Value::Object(variants)) => {
                    for (variant, value) in variants {
                        let key = key.then(variant);
                        let rates = self.rates(&key, value, &[]);
                        price.variants.push((variant.as_str().into(), rates));
                    }
                }
                ("tiers", Value::Object(tiers)) => {
                    for (tier, value) in tiers {
                        let rates = self.rate_set(&key.then(tier), value);
                        price.tiers.push((tier.as_str().into(), rates));
                    }
                }
                ("regions", Value::Object(regions)) => {
                    for (region, value) in regions {
                        if let Some(factor) = self.factor(&key.then(region), value) {
                            price.regions.push((region.as_str().into(), factor));
                        }
                    }
                }
                ("variants" | "tiers" | "regions", _) => {
                    self.problem(&key, "not a table", "a table");
                }
                ("estimate", value) => price.estimate = self.units(&key, value),
                ("billable_unit_is", value) => price.billable_unit_is = self.unit(&key, value),
                ("source", Value::String(_)) => {}
                ("source", _) => self.problem(&key, "not a text", "where the figures come from"),
                _ => {
                    if let Some(rate) = self.rate(&key, name, value, &PRICE_KEYS) {
                        price.standard.base.push(rate);
                    }
                }
            }
        }
        if !price.has_rates() && self.problems.len() == problems_before {
            self.problem(at, "no rate", rate_keys(&PRICE_KEYS));
        }
        // Some thousand prices are held for as long as the process lives.
        price.standard.base.shrink_to_fit();
        price.tiers.shrink_to_fit();
        price
    }

    fn rate_set(&mut self, at: &Key<'_>, value: &Value) -> RateSet {
        let above = match value.get("above") {
            Some(value) => self.above(&at.then("above"), value),
            None => Vec::new(),
        };
        RateSet {
            base: self.rates(at, value, &["above"]),
            above,
        }
    }

    /// Rates by unit, leaving `others` to the caller.
    fn rates(&mut self, at: &Key<'_>, value: &Value, others: &[&str]) -> Rates {
        let Value::Object(table) = value else {
            self.problem(at, "not a table", rate_keys(others));
            return Vec::new();
        };
        let rates = table
            .iter()
            .filter(|(name, _)| !others.contains(&name.as_str()))
            .filter_map(|(name, value)| self.rate(&at.then(name), name, value, others));
        let mut rates: Rates = rates.collect();
        rates.shrink_to_fit();
        rates
    }

    fn rate(
        &mut self,
        at: &Key<'_>,
        name: &str,
        value: &Value,
        others: &[&str],
    ) -> Option<(Unit, Rate)> {
        let Some(unit) = Unit::from_name(name) else {
            self.problem(at, "unknown key", rate_keys(others));
            return None;
        };
        let rate = match value {
            Value::String(text) => Rate::published(unit, text),
            Value::Number(number) => Rate::published(unit, &number.to_string()),
            _ => None,
        };
        if rate.is_none() {
            self.problem(
                at,
                "not a price",
                "US dollars of zero or more, as a number, a decimal text or a fraction (\"0.36/3600\")",
            );
        }
        Some((unit, rate?))
    }

    fn above(&mut self, at: &Key<'_>, value: &Value) -> Vec<(Decimal, Rates)> {
        let Value::Array(tables) = value else {
            self.problem(at, "not an array of tables", "tables with tokens and rates");
            return Vec::new();
        };
        let mut above = Vec::with_capacity(tables.len());
        for (index, value) in tables.iter().enumerate() {
            let index = index.to_string();
            let at = at.then(&index);
            let rates = self.rates(&at, value, &["tokens"]);
            match value.get("tokens").and_then(Value::as_u64) {
                Some(tokens) => above.push((Decimal::from(tokens), rates)),
                None => self.problem(
                    &at.then("tokens"),
                    "not a number of tokens",
                    "a whole number; the rates hold for requests with more input tokens",
                ),
            }
        }
        above.sort_by(|(a, _), (b, _)| b.cmp(a));
        if above.windows(2).any(|pair| match pair {
            [(a, _), (b, _)] => a == b,
            _ => false,
        }) {
            self.problem(at, "the same limit twice", "one table for each limit");
        }
        above
    }

    fn when(&mut self, at: &Key<'_>, value: &Value) -> Vec<(Conditions, Rates)> {
        let Value::Array(tables) = value else {
            self.problem(
                at,
                "not an array of tables",
                "tables with conditions and rates",
            );
            return Vec::new();
        };
        let mut when = Vec::with_capacity(tables.len());
        for (index, value) in tables.iter().enumerate() {
            let index = index.to_string();
            let at = at.then(&index);
            let rates = self.rates(&at, value, &CONDITION_KEYS);
            let table = value.as_object().into_iter().flatten();
            let stated: Vec<_> = table
                .filter(|(name, _)| CONDITION_KEYS.contains(&name.as_str()))
                .collect();
            if stated.is_empty() {
                self.problem(&at, "no condition", CONDITION_KEYS.join(", "));
            }
            let conditions: Conditions = stated
                .into_iter()
                .filter_map(|(name, value)| self.condition(&at.then(name), name, value))
                .collect();
            if rates.is_empty() {
                self.problem(&at, "no rate", rate_keys(&CONDITION_KEYS));
            }
            when.push((conditions, rates));
        }
        when
    }

    fn condition(&mut self, at: &Key<'_>, name: &str, value: &Value) -> Option<Condition> {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Bool(_) | Value::Number(_) => value.to_string(),
            _ => String::new(),
        };
        let (condition, accepted) = match Qualifier::from_name(name) {
            None => (
                Operation::from_name(&text).map(Condition::Of),
                "an operation, as rows name it, such as \"training\"",
            ),
            Some(Qualifier::Seconds) => (
                parse_decimal(&text)
                    .filter(|seconds| *seconds > Decimal::ZERO)
                    .map(Condition::UpToSeconds),
                "a number of seconds; the rates hold for clips of up to so many",
            ),
            Some(Qualifier::Audio) => (
                Qualifier::Audio
                    .read(&text)
                    .map(|value| Condition::Is(Qualifier::Audio, value.into())),
                "true or false",
            ),
            Some(qualifier) => (
                qualifier
                    .read(&text)
                    .map(|value| Condition::Is(qualifier, value.into())),
                "the vendor's word for it, such as \"720p\"",
            ),
        };
        if condition.is_none() {
            self.problem(at, "not a condition", accepted);
        }
        condition
    }

    fn factor(&mut self, at: &Key<'_>, value: &Value) -> Option<Decimal> {
        let factor = match value {
            Value::String(text) => parse_decimal(text),
            Value::Number(number) => parse_decimal(&number.to_string()),
            _ => None,
        };
        let factor = factor.filter(|factor| *factor > Decimal::ZERO);
        if factor.is_none() {
            self.problem(at, "not a factor", "a number above zero, such as 1.1");
        }
        factor
    }

    fn units(&mut self, at: &Key<'_>, value: &Value) -> Vec<Unit> {
        let units: Option<Vec<Unit>> = value.as_array().and_then(|names| {
            let unit = |name: &Value| name.as_str().and_then(Unit::from_name);
            names.iter().map(unit).collect()
        });
        if units.is_none() {
            self.problem(at, "not an array of units", rate_keys(&[]));
        }
        units.unwrap_or_default()
    }

    fn unit(&mut self, at: &Key<'_>, value: &Value) -> Option<Unit> {
        let unit = value.as_str().and_then(Unit::from_name);
        if unit.is_none() {
            self.problem(at, "not a unit", rate_keys(&[]));
        }
        unit
    }

    fn date(&mut self, at: &Key<'_>, value: &Value) -> Option<chrono::DateTime<chrono::Utc>> {
        let date = value
            .as_str()
            .and_then(|text| text.parse::<NaiveDate>().ok())
            .map(|date| date.and_time(NaiveTime::MIN).and_utc());
        if date.is_none() {
            self.problem(at, "not a date", "a day in quotes, such as \"2026-03-13\"");
        }
        date
    }

    fn hours(&mut self, at: &Key<'_>, value: &Value) -> Option<Hours> {
        let time = |text| NaiveTime::parse_from_str(text, "%H:%M").ok();
        let hours = value
            .as_str()
            .and_then(|text| text.split_once('-'))
            .and_then(|(start, end)| Some(Hours(time(start)?, time(end)?)));
        if hours.is_none() {
            self.problem(
                at,
                "not hours of a day",
                "two times in UTC, such as \"16:30-00:30\"",
            );
        }
        hours
    }
}

/// What a table of `when` may hold besides rates.
const CONDITION_KEYS: [&str; 7] = [
    OPERATION,
    Qualifier::Resolution.as_str(),
    Qualifier::Upscale.as_str(),
    Qualifier::Audio.as_str(),
    Qualifier::Seconds.as_str(),
    Qualifier::Mode.as_str(),
    Qualifier::Variant.as_str(),
];

/// What an entry may hold besides rates.
const PRICE_KEYS: [&str; 10] = [
    "above",
    "when",
    "tiers",
    "variants",
    "regions",
    "estimate",
    "billable_unit_is",
    "from",
    "hours",
    "source",
];

fn rate_keys(others: &[&str]) -> String {
    let units = Unit::ALL.iter().map(|unit| unit.as_str());
    let keys: Vec<&str> = units.chain(others.iter().copied()).collect();
    keys.join(", ")
}
