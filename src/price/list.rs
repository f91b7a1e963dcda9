//! What a source lists, and how two lists of it differ.
//!
//! In: models with their prices, as a reader of somebody's format found them. Out: the changes
//! since the list before, in the form that is kept and that [`super::PriceBook::lay`] takes, and
//! what about them looks wrong. Entries are kept as text in our own form, so that a list is small
//! and two entries are the same if their texts are.

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde_json::{Map, Value};

use super::catalog::{self, ListText};
use super::rates::Layer;
use super::{OverlayError, Price, PriceBook, digest};
use crate::usage::Unit;

/// The longest name of a model, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// The factor from which on a change of a price looks like another unit.
const FACTOR_MAX: Decimal = Decimal::from_parts(10, 0, 0, false, 0);

/// The share of models, in hundredths, above which their absence looks like half an answer.
const DROPPED_PERCENT_MAX: usize = 20;

/// The name of a model, with its provider's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelName {
    /// The provider's name.
    pub provider: String,
    /// The model's name at the provider.
    pub model: String,
}

impl ModelName {
    /// A name.
    pub fn new(provider: impl Into<String>, model: impl Into<String>) -> ModelName {
        ModelName {
            provider: provider.into(),
            model: model.into(),
        }
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.provider, self.model)
    }
}

/// A model that a source lists and that is not taken, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The model, shortened if it is no name.
    pub model: ModelName,
    /// What is wrong with it.
    pub reason: String,
}

/// Every model of a source, with its prices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PriceList {
    models: BTreeMap<ModelName, Box<str>>,
}

/// What a reader found: the list, what it did not take, and what it does not know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// What is taken.
    pub list: PriceList,
    /// What is not, with the reason.
    pub rejected: Vec<Rejected>,
    /// Fields that say something about prices and that no rate here stands for, by how many
    /// models have them.
    pub passed_over: BTreeMap<String, u64>,
}

impl Reading {
    /// Takes a model's entry in our own form, unless something is wrong with it.
    pub(super) fn take(&mut self, model: ModelName, entry: Value) {
        if let Err(reason) = check_name(&model) {
            return self.reject(model, reason);
        }
        if let Err(error) = catalog::check_entry(&model.provider, &model.model, &entry) {
            let problem = error.problems.first();
            let reason = problem.map(|it| format!("{}: {}", it.key, it.problem));
            return self.reject(model, reason.unwrap_or_default());
        }
        let text = entry.to_string();
        match self.list.models.get(&model) {
            Some(listed) if **listed != *text => {
                self.list.models.remove(&model);
                self.reject(model, "listed twice, with different prices");
            }
            _ if self.is_contradictory(&model) => {}
            _ => {
                self.list.models.insert(model, text.into());
            }
        }
    }

    /// Whether the model was taken out because it was listed twice.
    fn is_contradictory(&self, model: &ModelName) -> bool {
        let twice = |it: &Rejected| it.model == *model && it.reason.starts_with("listed twice");
        self.rejected.iter().any(twice)
    }

    /// Notes that a model is not taken.
    pub(super) fn reject(&mut self, mut model: ModelName, reason: impl Into<String>) {
        for name in [&mut model.provider, &mut model.model] {
            if check_text(name).is_err() {
                *name = name.chars().take(40).flat_map(char::escape_debug).collect();
            }
        }
        self.rejected.push(Rejected {
            model,
            reason: reason.into(),
        });
    }

    /// Notes that a field was not understood.
    pub(super) fn pass_over(&mut self, field: &str) {
        *self.passed_over.entry(field.to_owned()).or_default() += 1;
    }
}

fn check_name(model: &ModelName) -> Result<(), &'static str> {
    check_text(&model.provider)?;
    check_text(&model.model)
}

/// A name that can be a label, a key of JSON without escapes, and a line of a report.
fn check_text(name: &str) -> Result<(), &'static str> {
    let is_plain = |c: char| !c.is_control() && c != '"' && c != '\\';
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(is_plain) {
        return Err("not the name of a model");
    }
    Ok(())
}

impl PriceList {
    /// How many models it has.
    pub fn len(&self) -> usize {
        self.models.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.models.is_empty()
    }

    /// The names of its models.
    pub fn names(&self) -> impl Iterator<Item = &ModelName> {
        self.models.keys()
    }

    /// What a model's entry is, in our own form.
    pub fn entry(&self, model: &ModelName) -> Option<&str> {
        self.models.get(model).map(|entry| &**entry)
    }

    /// Takes up the changes of a version, as they are kept.
    ///
    /// # Errors
    /// When the text is not what [`Changes::to_json`] makes.
    pub fn take_up(&mut self, json: &str) -> Result<(), serde_json::Error> {
        let changes = Changes::from_json(json)?;
        for (model, entry) in changes.models {
            match entry {
                Some(entry) => self.models.insert(model, entry),
                None => self.models.remove(&model),
            };
        }
        Ok(())
    }

    /// What is different from the list before.
    pub fn changes_since(&self, before: &PriceList) -> Changes {
        let mut changes = Changes::default();
        for (model, entry) in &self.models {
            if before.models.get(model) != Some(entry) {
                let entry = Some(entry.clone());
                changes.models.insert(model.clone(), entry);
            }
        }
        changes.listed_before = before.len();
        for model in before.models.keys() {
            if !self.models.contains_key(model) {
                changes.models.insert(model.clone(), None);
            }
        }
        changes
    }
}

/// What changes with a version of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    models: BTreeMap<ModelName, Option<Box<str>>>,
    /// How many models the list before has.
    listed_before: usize,
}

/// Why changes are not taken without a person's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Concern {
    /// A price becomes more than ten times as high or as low, or begins or ends to be zero.
    Jump {
        /// The model.
        model: ModelName,
        /// What it is the price of.
        unit: Unit,
        /// The price now, of a million tokens or characters or of one of anything else.
        from: Decimal,
        /// The price to come.
        to: Decimal,
    },
    /// More than a fifth of the models are listed no more.
    Dropped {
        /// How many.
        models: usize,
        /// Of how many.
        of: usize,
    },
}

impl fmt::Display for Concern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Concern::Jump {
                model,
                unit,
                from,
                to,
            } => write!(f, "{model}: {unit} from {from} to {to}"),
            Concern::Dropped { models, of } => {
                write!(f, "{models} of {of} models are listed no more")
            }
        }
    }
}

impl Changes {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.models.is_empty()
    }

    /// How many models are new or have other prices.
    pub fn priced(&self) -> usize {
        self.models.values().flatten().count()
    }

    /// How many models are listed no more.
    pub fn dropped(&self) -> usize {
        self.models.len() - self.priced()
    }

    /// The models, with their new entry; `None` is listed no more.
    pub fn models(&self) -> impl Iterator<Item = (&ModelName, Option<&str>)> {
        let models = self.models.iter();
        models.map(|(model, entry)| (model, entry.as_deref()))
    }

    /// The form that is kept: entries by model by provider, `null` for what is listed no more.
    pub fn to_json(&self) -> String {
        let mut providers: Map<String, Value> = Map::new();
        for (model, entry) in &self.models {
            let entry = entry
                .as_deref()
                .and_then(|it| serde_json::from_str(it).ok());
            let listed = providers
                .entry(&model.provider)
                .or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(listed) = listed {
                listed.insert(model.model.clone(), entry.unwrap_or_default());
            }
        }
        Value::Object(providers).to_string()
    }

    /// Reads the form that is kept.
    ///
    /// # Errors
    /// When it is another text.
    pub fn from_json(json: &str) -> Result<Changes, serde_json::Error> {
        let mut changes = Changes::default();
        for (provider, models) in serde_json::from_str::<ListText<'_>>(json)? {
            for (model, entry) in models {
                let name = ModelName::new(provider, model);
                let entry = entry.map(|entry| {
                    let value: Option<Value> = serde_json::from_str(entry.get()).ok();
                    value.unwrap_or_default().to_string().into_boxed_str()
                });
                changes.models.insert(name, entry);
            }
        }
        Ok(changes)
    }

    /// The name of the version that these changes make: the source, the day, and a hash.
    pub fn version(&self, source: &str, at: DateTime<Utc>) -> String {
        let day = at.date_naive();
        format!("{source}-{day}-{}", digest(&self.to_json()))
    }

    /// What about these changes looks wrong, beside the prices that hold at `now`.
    ///
    /// # Errors
    /// When an entry is not readable.
    pub fn concerns(
        &self,
        layer: Layer,
        book: &PriceBook,
        now: DateTime<Utc>,
    ) -> Result<Vec<Concern>, OverlayError> {
        let mut concerns = Vec::new();
        if self.dropped() * 100 > self.listed_before * DROPPED_PERCENT_MAX {
            concerns.push(Concern::Dropped {
                models: self.dropped(),
                of: self.listed_before,
            });
        }
        let json = self.to_json();
        for listed in catalog::read_list(layer, &"".into(), &json)? {
            for (model, entry) in &listed.models {
                let catalog::Entry::Prices(new) = entry else {
                    continue;
                };
                let old = book.prices(&listed.name, model);
                let pair = old.and_then(|old| old.at(now)).zip(new.at(now));
                for (unit, from, to) in pair.into_iter().flat_map(|(old, new)| jumps(old, new)) {
                    concerns.push(Concern::Jump {
                        model: ModelName::new(&listed.name, model),
                        unit,
                        from,
                        to,
                    });
                }
            }
        }
        Ok(concerns)
    }
}

/// The units whose price changes by more than the factor.
fn jumps<'a>(
    old: &'a Price,
    new: &'a Price,
) -> impl Iterator<Item = (Unit, Decimal, Decimal)> + use<'a> {
    Unit::ALL.iter().filter_map(|unit| {
        let rate = |price: &Price| {
            let rate = price.rate(*unit, None, Decimal::ZERO)?;
            Some(rate.as_published(*unit).dollars())
        };
        let (from, to) = (rate(old)?, rate(new)?);
        let (low, high) = (from.min(to), from.max(to));
        let is_jump = high > low.saturating_mul(FACTOR_MAX);
        is_jump.then_some((*unit, from, to))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn list(models: &[(&str, Value)]) -> PriceList {
        let mut reading = Reading::default();
        for (model, entry) in models {
            reading.take(ModelName::new("p", *model), entry.clone());
        }
        assert_eq!(reading.rejected, []);
        reading.list
    }

    fn now() -> DateTime<Utc> {
        "2026-11-24T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn changes_are_what_differs_and_survive_their_form() {
        let before = list(&[("a", json!({"input": "1"})), ("b", json!({"input": "2"}))]);
        let after = list(&[("b", json!({"input": "3"})), ("c", json!({"input": "4"}))]);
        let changes = after.changes_since(&before);
        let json = changes.to_json();
        assert_eq!(
            json,
            r#"{"p":{"a":null,"b":{"input":"3"},"c":{"input":"4"}}}"#
        );
        let mut taken_up = before.clone();
        taken_up.take_up(&json).unwrap();
        assert_eq!(taken_up, after);
        assert!(after.changes_since(&taken_up).is_empty());
        assert!(changes.version("x", now()).starts_with("x-2026-11-24-"));
    }

    #[test]
    fn a_fifth_may_go_and_a_price_may_change_tenfold_but_no_more() {
        let entries: Vec<(String, Value)> = (0..10)
            .map(|index| (format!("m{index}"), json!({"input": "1"})))
            .collect();
        let refs: Vec<(&str, Value)> = entries.iter().map(|(m, e)| (&**m, e.clone())).collect();
        let before = list(&refs);
        let mut book = PriceBook::embedded();
        let json = before.changes_since(&PriceList::default()).to_json();
        let version = super::super::Version {
            name: "v",
            layer: Layer::Api,
            effective_from: now(),
            catalogue: &json,
        };
        book.lay(version, now()).unwrap();
        let concerns = |after: &PriceList| {
            let changes = after.changes_since(&before);
            changes.concerns(Layer::Api, &book, now()).unwrap()
        };
        assert_eq!(concerns(&list(&refs[2..])), []);
        assert_eq!(
            concerns(&list(&refs[3..])),
            [Concern::Dropped { models: 3, of: 10 }]
        );
        let with = |price: &str| {
            let mut refs = refs.clone();
            refs[0].1 = json!({ "input": price });
            list(&refs)
        };
        for fine in ["10", "0.1", "1"] {
            assert_eq!(concerns(&with(fine)), [], "{fine}");
        }
        for jump in ["10.01", "0.099", "0"] {
            assert_eq!(concerns(&with(jump)).len(), 1, "{jump}");
        }
    }

    #[test]
    fn what_is_listed_twice_differently_is_not_taken_at_all() {
        let mut reading = Reading::default();
        let mut take = |price: &str| {
            reading.take(ModelName::new("p", "m"), json!({ "input": price }));
        };
        take("1");
        take("1");
        take("2");
        take("1");
        assert!(reading.list.is_empty());
        assert_eq!(reading.rejected.len(), 1);
    }

    #[test]
    fn no_name_is_taken_that_could_not_be_shown() {
        let mut reading = Reading::default();
        for name in ["", "a\"b", "a\\b", "a\nb", &"x".repeat(257)] {
            reading.take(ModelName::new("p", name), json!({"input": "1"}));
        }
        assert!(reading.list.is_empty());
        assert_eq!(reading.rejected.len(), 5);
    }
}
