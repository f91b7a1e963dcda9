//! What was spent since the day or the month began, as the store has it.
//!
//! Counters of a pod that lives a minute are seen once or twice, and what they held at first is no
//! rise to `rate()`. These gauges come from the store instead: they know every pod, outlive each,
//! and fall back to nothing when their window begins anew. Each reading replaces the one before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;

use super::labels::{OTHER, UNKNOWN, clean};
use super::vocabulary::{Limit, Window};
use super::{Metrics, lock, set};

/// What a group of requests cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spend {
    /// Since when.
    pub window: Window,
    /// Its provider.
    pub provider: String,
    /// Its model, if one is known.
    pub model: Option<String>,
    /// Its values of [`Metrics::attribution_labels`].
    pub attribution: Vec<Option<String>>,
    /// US dollars.
    pub usd: Decimal,
}

/// The labels of the series that are shown.
#[derive(Debug, Default)]
pub(super) struct Shown(Mutex<BTreeSet<Vec<String>>>);

impl Metrics {
    /// The names of the attribution labels, in the order in which values are given.
    pub fn attribution_labels(&self) -> impl Iterator<Item = &str> {
        self.attribution.iter().map(AsRef::as_ref)
    }

    /// Shows `groups` and nothing that was shown before; a scrape sees all of it or none. The
    /// dearest [`super::Config::spend_groups`] groups of a window have series of their own, the
    /// others are added up under `other`.
    pub fn spend(&self, groups: Vec<Spend>) {
        let mut sums: BTreeMap<Window, BTreeMap<Vec<String>, Decimal>> = BTreeMap::new();
        for group in groups {
            let labels = self.spend_labels(&group);
            let sum = sums.entry(group.window).or_default().entry(labels);
            *sum.or_default() += group.usd;
        }
        let mut series = BTreeMap::new();
        for sums in sums.into_values() {
            let mut sums: Vec<_> = sums.into_iter().collect();
            sums.sort_by_key(|(_, usd)| std::cmp::Reverse(*usd));
            for (place, (mut labels, usd)) in sums.into_iter().enumerate() {
                if place >= self.config.spend_groups {
                    self.limited(Limit::SpendGroups, 1);
                    without_details(&mut labels);
                }
                *series.entry(labels).or_insert(Decimal::ZERO) += usd;
            }
        }
        let _no_scrape = lock(&self.rendering);
        let mut shown = lock(&self.spend_shown.0);
        let family = &self.families.spend;
        for labels in shown.iter().filter(|labels| !series.contains_key(*labels)) {
            family.remove(&values(labels));
        }
        for (labels, usd) in &series {
            if let Some(usd) = usd.to_f64() {
                set(family, &values(labels), usd);
            }
        }
        *shown = series.into_keys().collect();
    }

    /// The label values of a group, in the order of the catalogue.
    fn spend_labels(&self, group: &Spend) -> Vec<String> {
        let model = group.model.as_deref().filter(|model| !model.is_empty());
        let window = group.window.as_str();
        let own =
            [&group.provider, model.unwrap_or(UNKNOWN), window].map(|value| clean(value).into());
        let attribution = (0..self.attribution.len()).map(|index| {
            let value = group.attribution.get(index).and_then(Option::as_deref);
            clean(value.unwrap_or_default()).into()
        });
        own.into_iter().chain(attribution).collect()
    }
}

/// Leaves the provider and the window.
fn without_details(labels: &mut [String]) {
    for (index, value) in labels.iter_mut().enumerate() {
        if index != 0 && index != 2 {
            OTHER.clone_into(value);
        }
    }
}

fn values(labels: &[String]) -> Vec<&str> {
    labels.iter().map(String::as_str).collect()
}
