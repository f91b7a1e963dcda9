//! Series of label combinations that traffic brings: found quickly, created within limits.
//!
//! A combination of model, operation and attribution resolves to a [`Series`], which keeps a
//! handle for every counter and histogram that it has touched; a request that is like an earlier
//! one costs two or three map look-ups and no allocation. New label sets draw on one budget of
//! samples. Once it is spent, new combinations are counted under `other`, whose sets are limited
//! by the enumerations alone. Nothing is ever evicted: a counter that vanishes breaks rates.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

use super::catalogue::Descriptor;
use super::families::{LabelledFamily, Metric};
use super::labels::{ATTRIBUTION_LABELS_MAX, OTHER, Slot};
use super::values::ExactCounter;
use crate::fault::{Outcome, OutcomeClass};
use crate::record::{CostSource, Operation, UnpricedReason};
use crate::usage::Unit;

/// What tells the series of one provider apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) model: Slot,
    pub(super) operation: Operation,
    pub(super) attribution: [Slot; ATTRIBUTION_LABELS_MAX],
}

/// Handles of one family, by the position of the family's last label in its enumeration.
#[derive(Debug)]
pub(super) struct Handles<M>(Box<[OnceLock<M>]>);

impl<M> Handles<M> {
    /// Empty handles for an enumeration of `count` values.
    pub(super) fn new(count: usize) -> Handles<M> {
        Handles((0..count).map(|_| OnceLock::new()).collect())
    }

    /// The handle at `index`, made on first use; `None` if the index is outside the enumeration.
    pub(super) fn get(&self, index: usize, make: impl FnOnce() -> M) -> Option<&M> {
        self.0.get(index).map(|cell| cell.get_or_init(make))
    }
}

/// The handles of one combination of provider, model, operation and attribution.
#[derive(Debug)]
pub(super) struct Series {
    provider: Arc<str>,
    model: Box<str>,
    operation: Operation,
    attribution: Box<[Box<str>]>,
    /// Whether this is where combinations beyond the budget are counted.
    is_overflow: bool,
    /// Whether one of the handles is counted under `other`.
    was_limited: AtomicBool,
    pub(super) requests: Handles<Counter>,
    pub(super) duration: Handles<Histogram>,
    pub(super) first_token: Handles<Histogram>,
    pub(super) per_output_token: Handles<Histogram>,
    pub(super) job_duration: Handles<Histogram>,
    pub(super) tokens: Handles<Counter>,
    pub(super) units: Handles<ExactCounter>,
    pub(super) cost: Handles<ExactCounter>,
    pub(super) cache_effect: Handles<ExactCounter>,
    pub(super) unpriced: Handles<Counter>,
}

impl Series {
    fn new(
        provider: &Arc<str>,
        model: Box<str>,
        operation: Operation,
        attribution: Box<[Box<str>]>,
        is_overflow: bool,
    ) -> Series {
        Series {
            provider: Arc::clone(provider),
            model,
            operation,
            attribution,
            is_overflow,
            was_limited: AtomicBool::new(is_overflow),
            requests: Handles::new(Outcome::ALL.len()),
            duration: Handles::new(OutcomeClass::ALL.len()),
            first_token: Handles::new(1),
            per_output_token: Handles::new(1),
            job_duration: Handles::new(2),
            tokens: Handles::new(Unit::ALL.len()),
            units: Handles::new(Unit::ALL.len()),
            cost: Handles::new(CostSource::ALL.len()),
            cache_effect: Handles::new(2),
            unpriced: Handles::new(UnpricedReason::ALL.len()),
        }
    }

    /// Whether something of this combination is counted under `other`.
    pub(super) fn was_limited(&self) -> bool {
        self.was_limited.load(Ordering::Relaxed)
    }

    /// The label values for a family: provider, model and operation where it has them, the given
    /// value for its remaining label, then attribution.
    fn values<'a>(
        &'a self,
        descriptor: &Descriptor,
        last: &'a str,
        model: &'a str,
        attribution: impl Fn(&'a str) -> &'a str,
    ) -> Vec<&'a str> {
        let own = descriptor.labels.iter().map(|label| match *label {
            "provider" => self.provider.as_ref(),
            "model" => model,
            "operation" => self.operation.as_str(),
            _ => last,
        });
        let values = self.attribution.iter().filter(|_| descriptor.attribution);
        own.chain(values.map(|value| attribution(value))).collect()
    }
}

/// The series of one provider.
#[derive(Debug, Default)]
pub(super) struct SeriesMap(RwLock<HashMap<Key, Arc<Series>>>);

impl SeriesMap {
    fn find(&self, key: &Key) -> Option<Arc<Series>> {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        map.get(key).map(Arc::clone)
    }

    fn insert(&self, key: Key, series: Series) -> Arc<Series> {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(map.entry(key).or_insert_with(|| Arc::new(series)))
    }
}

/// How many samples the label sets that traffic brings may have together.
#[derive(Debug)]
pub(super) struct Budget {
    samples_max: usize,
    samples: AtomicUsize,
    /// Serialises the creation of series, so that a set is paid for once.
    creation: Mutex<()>,
}

impl Budget {
    pub(super) fn new(samples_max: usize) -> Budget {
        Budget {
            samples_max,
            samples: AtomicUsize::new(0),
            creation: Mutex::new(()),
        }
    }

    /// Whether nothing is left.
    fn is_spent(&self) -> bool {
        self.samples.load(Ordering::Relaxed) >= self.samples_max
    }

    fn take(&self, samples: usize) -> bool {
        let take = |used: usize| {
            used.checked_add(samples)
                .filter(|sum| *sum <= self.samples_max)
        };
        let taken = self
            .samples
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        if taken.is_err() {
            // What is left is too little for a histogram: nothing new is begun with it.
            self.samples.store(self.samples_max, Ordering::Relaxed);
        }
        taken.is_ok()
    }

    /// The series of `key`, or the one that stands for `other` once the budget is spent. A new
    /// one takes its model and attribution values from `values`.
    pub(super) fn series(
        &self,
        map: &SeriesMap,
        provider: &Arc<str>,
        key: Key,
        values: impl FnOnce() -> (Box<str>, Box<[Box<str>]>),
    ) -> Arc<Series> {
        if let Some(series) = map.find(&key) {
            return series;
        }
        let (model, attribution) = values();
        if !self.is_spent() {
            let series = Series::new(provider, model, key.operation, attribution, false);
            return map.insert(key, series);
        }
        let overflow = Key {
            model: Slot::OTHER,
            operation: key.operation,
            attribution: [Slot::OTHER; ATTRIBUTION_LABELS_MAX],
        };
        map.find(&overflow).unwrap_or_else(|| {
            let others = attribution.iter().map(|_| OTHER.into()).collect();
            let series = Series::new(provider, OTHER.into(), key.operation, others, true);
            map.insert(overflow, series)
        })
    }

    /// The metric of `series` in `family`, whose remaining label has the value
    /// `last`.
    pub(super) fn create<M: Metric>(
        &self,
        family: &LabelledFamily<M>,
        series: &Series,
        last: &str,
    ) -> M {
        let values = series.values(family.descriptor, last, &series.model, |value| value);
        let _creation = self.creation.lock().unwrap_or_else(PoisonError::into_inner);
        if series.is_overflow || family.contains(&values) || self.take(family.descriptor.samples())
        {
            return family.with(&values);
        }
        series.was_limited.store(true, Ordering::Relaxed);
        family.with(&series.values(family.descriptor, last, OTHER, |_| OTHER))
    }

    /// As [`Budget::create`], for a family that is labelled by provider and one value.
    pub(super) fn create_plain<M: Metric>(
        &self,
        family: &LabelledFamily<M>,
        provider: &str,
        last: &str,
    ) -> M {
        let _creation = self.creation.lock().unwrap_or_else(PoisonError::into_inner);
        if family.contains(&[provider, last]) || self.take(1) {
            family.with(&[provider, last])
        } else {
            family.with(&[provider, OTHER])
        }
    }
}
