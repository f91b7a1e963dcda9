//! The metrics: every family that Taffrail exposes, fed by traffic, journal, store and schedule,
//! and rendered for a scrape.
//!
//! Facts go in through the methods of [`Metrics`], bytes come out of [`Metrics::encode`]. Names,
//! types, labels and help texts are in [`catalogue`], and `docs/metrics.md` is made of it. No
//! method fails, waits for anything but a short lock, or reads a clock. Label values that traffic
//! brings are bounded here, whatever the caller passes: by [`Config`], with a counter for every
//! bound that bites (`taffrail_series_limited_total`). No key, URL, prompt or id is a label.
//!
//! [`labels`] has the bounds on values, `series` the handles and the budget, `records` the books
//! by stage, `spend` what the store says was spent, [`exposition`] the
//! formats, [`process`] the numbers of the process.

mod accounts;
mod bills;
pub mod catalogue;
pub mod exposition;
mod families;
pub mod labels;
pub mod process;
mod receipts;
mod records;
mod series;
mod spend;
mod values;
mod vocabulary;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use chrono::{DateTime, Utc};
use prometheus_client::encoding::prometheus_protobuf;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use tokio::time::Instant;

pub use self::accounts::AccountView;
pub use self::bills::BillView;
use self::exposition::Format;
use self::families::{Families, GaugeF64, LabelledFamily};
use self::labels::{ATTRIBUTION_LABELS_MAX, Names, OTHER, Slot, UNKNOWN, clean};
use self::records::Records;
use self::series::{Budget, Handles, Key, Series, SeriesMap};
pub use self::spend::Spend;
use self::values::ExactCounter;
pub use self::vocabulary::{
    AccountState, BillWindow, HandshakeFault, JobLimit, JournalFault, Level, Limit, Listener,
    Phase, PriceResult, ProxyError, Reason, ReceiptResult, Retained, ReviewResult, Rewrite,
    RunResult, Stage, SyncResult, Window,
};
use crate::fault::Outcome;
use crate::money::Usd;
use crate::provider::RateLimit;
use crate::record::{Fidelity, UsageRecord};
use crate::usage::Unit;

/// Limits of the metrics.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How many models of one provider have a label value of their own; further ones are counted
    /// as `other`. Names that the provider has only ever refused can take half of them.
    pub models_per_provider: usize,
    /// How many values of one attribution label are shown; further ones are counted as `other`.
    pub attribution_values: usize,
    /// How many samples the label combinations that traffic brings may make together, where a
    /// histogram makes one for each of its buckets; further combinations are counted as `other`.
    pub series: usize,
    /// How many combinations of provider, model and attribution `taffrail_spend_usd` shows of a
    /// window, the dearest first; what the others cost is added up as `other`.
    pub spend_groups: usize,
    /// How long a rate limit that a provider stated is shown without being stated anew.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub ratelimit_expiry: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            models_per_provider: 200,
            attribution_values: 100,
            series: 10_000,
            spend_groups: 1_000,
            ratelimit_expiry: Duration::from_secs(600),
        }
    }
}

/// The combinations that start at 0, so that the first loss is already a rise.
const RECORDS_AT_START: &[(Stage, Reason)] = &[
    (Stage::Completed, Reason::None),
    (Stage::Journaled, Reason::None),
    (Stage::Journaled, Reason::Recovered),
    (Stage::Dropped, Reason::JournalFull),
    (Stage::Dropped, Reason::JournalFailed),
    (Stage::Dropped, Reason::Unencodable),
    (Stage::Stored, Reason::None),
    (Stage::Duplicate, Reason::None),
    (Stage::DeadLettered, Reason::Rejected),
    (Stage::DeadLettered, Reason::Unreadable),
    (Stage::DeadLettered, Reason::Unwritable),
];

/// What the journal says of itself at a scrape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalReading {
    /// Records that the store has not taken yet.
    pub pending_records: u64,
    /// Bytes that the journal occupies.
    pub bytes: u64,
    /// Records that could not be read back and were passed over, since the start.
    pub unreadable_records: u64,
    /// Faults that were met and survived, since the start.
    pub faults: Vec<(JournalFault, u64)>,
    /// Bytes that it may occupy.
    pub bytes_max: u64,
    /// Age of the oldest pending record; `None` if there is none.
    pub oldest_record_age: Option<Duration>,
}

/// Asked at every scrape. Calls its argument at the moment that the reading describes, while no
/// record moves.
pub type JournalWatch = Box<dyn Fn(&mut dyn FnMut()) -> JournalReading + Send + Sync>;

/// Called at the start of every scrape to refresh what is read and not pushed.
pub type ScrapeHook = Box<dyn Fn(&Metrics) + Send + Sync>;

/// Every metric of the process.
pub struct Metrics {
    config: Config,
    registry: Registry,
    hooks: RwLock<Vec<Arc<ScrapeHook>>>,
    attribution: Box<[Arc<str>]>,
    attribution_values: Box<[Names]>,
    budget: Budget,
    providers: HashMap<Box<str>, ProviderMetrics>,
    /// Made when a provider that is not configured turns up.
    other_provider: OnceLock<ProviderMetrics>,
    families: Families,
    records: Records,
    spend_shown: spend::Shown,
    journal: OnceLock<JournalWatch>,
    /// Held by the one scrape that is rendered.
    rendering: Mutex<()>,
    limited: Handles<Counter>,
    overhead: Handles<Histogram>,
    late_commits: Counter,
    meter_panics: Counter,
    journal_fsync: Histogram,
    store_batch: Histogram,
    store_retries: Counter,
}

/// The handles of one provider.
#[derive(Debug)]
struct ProviderMetrics {
    name: Arc<str>,
    models: Names,
    series: SeriesMap,
    in_flight: Gauge,
    jobs_open: Gauge,
    job_ends_waiting: Gauge,
    request_bytes: Counter,
    response_bytes: Counter,
    upstream_retries: Counter,
    rewrites: Handles<Counter>,
    fidelity: Handles<Counter>,
    codes: Handles<Counter>,
    odd_code: OnceLock<Counter>,
    rate_limits: Mutex<Vec<StatedLimit>>,
}

/// A rate limit as a response stated it.
#[derive(Debug)]
struct StatedLimit {
    kind: &'static str,
    limit: Option<(u64, Instant)>,
    remaining: Option<(u64, Instant)>,
}

/// Counts a request as in flight until it is dropped.
#[derive(Debug)]
#[must_use = "the request is in flight until this is dropped"]
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Counts a job as kept until it is dropped.
#[derive(Debug)]
#[must_use = "the job is kept until this is dropped"]
pub struct KeptJob(Gauge);

impl KeptJob {
    fn of(gauge: &Gauge) -> KeptJob {
        gauge.inc();
        KeptJob(gauge.clone())
    }
}

impl Drop for KeptJob {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Counts a connection as open until it is dropped.
#[derive(Debug)]
#[must_use = "the connection is open until this is dropped"]
pub struct Connection(Gauge);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl ProviderMetrics {
    fn new(name: &str, families: &Families) -> ProviderMetrics {
        let provider = ProviderMetrics {
            name: name.into(),
            models: Names::default(),
            series: SeriesMap::default(),
            in_flight: families.in_flight.with(&[name]),
            jobs_open: families.jobs_open.with(&[name]),
            job_ends_waiting: families.job_ends_waiting.with(&[name]),
            request_bytes: families.request_bytes.with(&[name]),
            response_bytes: families.response_bytes.with(&[name]),
            upstream_retries: families.upstream_retries.with(&[name]),
            rewrites: Handles::new(Rewrite::ALL.len()),
            fidelity: Handles::new(Fidelity::ALL.len()),
            codes: Handles::new(CODES),
            odd_code: OnceLock::new(),
            rate_limits: Mutex::default(),
        };
        for rewrite in Rewrite::ALL {
            provider.rewrites(families, *rewrite);
        }
        for fidelity in Fidelity::ALL {
            provider.fidelity(families, *fidelity);
        }
        provider
    }

    fn rewrites(&self, families: &Families, rewrite: Rewrite) -> Option<&Counter> {
        let make = || families.rewrites.with(&[&self.name, rewrite.as_str()]);
        self.rewrites.get(rewrite as usize, make)
    }

    fn fidelity(&self, families: &Families, fidelity: Fidelity) -> Option<&Counter> {
        let make = || {
            families
                .metered_responses
                .with(&[&self.name, fidelity.as_str()])
        };
        self.fidelity.get(fidelity as usize, make)
    }

    fn code(&self, families: &Families, budget: &Budget, code: u16) -> &Counter {
        let make = |label: &str| budget.create_plain(&families.http_responses, &self.name, label);
        let index = usize::from(code).checked_sub(usize::from(CODE_MIN));
        index
            .and_then(|index| self.codes.get(index, || make(&code.to_string())))
            .unwrap_or_else(|| self.odd_code.get_or_init(|| make(OTHER)))
    }
}

/// Status codes that have a label value of their own: those of the classes that RFC 9110 defines.
const CODE_MIN: u16 = 100;
const CODES: usize = 500;

impl Metrics {
    /// Registers every family and starts at 0 what is known in advance.
    ///
    /// `attribution_labels` are the configured names; those that
    /// [`labels::check_attribution_label`] refuses, and those beyond
    /// [`ATTRIBUTION_LABELS_MAX`], are left out. `providers` are the configured ones; everything
    /// said of another provider is counted as `other`.
    pub fn new(config: &Config, attribution_labels: &[String], providers: &[&str]) -> Metrics {
        let mut attribution: Vec<Arc<str>> = Vec::new();
        for name in attribution_labels {
            let is_new = !attribution.iter().any(|known| known.as_ref() == name);
            if is_new && labels::check_attribution_label(name).is_ok() {
                attribution.push(name.as_str().into());
            }
        }
        attribution.truncate(ATTRIBUTION_LABELS_MAX);

        let mut registry = Registry::default();
        let families = Families::register(&mut registry, &attribution);
        let metrics = Metrics {
            config: config.clone(),
            registry,
            hooks: RwLock::default(),
            attribution_values: attribution.iter().map(|_| Names::default()).collect(),
            attribution: attribution.into(),
            budget: Budget::new(config.series),
            providers: providers
                .iter()
                .map(|name| (Box::from(*name), ProviderMetrics::new(name, &families)))
                .collect(),
            other_provider: OnceLock::new(),
            records: Records::new(),
            spend_shown: spend::Shown::default(),
            journal: OnceLock::new(),
            rendering: Mutex::default(),
            limited: Handles::new(Limit::ALL.len()),
            overhead: Handles::new(Phase::ALL.len()),
            late_commits: families.late_commits.with(&[]),
            meter_panics: families.meter_panics.with(&[]),
            journal_fsync: families.journal_fsync_duration.with(&[]),
            store_batch: families.store_batch_duration.with(&[]),
            store_retries: families.store_retries.with(&[]),
            families,
        };
        metrics.start_at_zero();
        metrics
    }

    /// Makes the series that are known in advance, so that their first rise is one.
    fn start_at_zero(&self) {
        let families = &self.families;
        families
            .build_info
            .with(&[env!("CARGO_PKG_VERSION")])
            .set(1.0);
        for listener in Listener::ALL {
            families.connections.with(&[listener.as_str()]);
            families.connections_refused.with(&[listener.as_str()]);
        }
        for reason in HandshakeFault::ALL {
            families.handshake_failures.with(&[reason.as_str()]);
        }
        for reason in ProxyError::ALL {
            families.proxy_errors.with(&[reason.as_str()]);
        }
        for fault in JournalFault::ALL {
            families.journal_faults.with(&[fault.as_str()]);
        }
        for limit in JobLimit::ALL {
            families.jobs_limited.with(&[limit.as_str()]);
        }
        for limit in Limit::ALL {
            self.limited(*limit, 0);
        }
        for phase in Phase::ALL {
            self.overhead_histogram(*phase);
        }
        for (stage, reason) in RECORDS_AT_START {
            families.records.with(&[stage.as_str(), reason.as_str()]);
        }
    }

    /// Counts a settled request: outcome, status, durations, bytes, consumption, cost and trust.
    ///
    /// Control calls (polls, listings, files) are counted as requests; that they have no usage
    /// and no cost is as it should be, so it counts neither as unpriced nor as unmetered.
    pub fn observe(&self, record: &UsageRecord) {
        let provider = self.provider(&record.provider);
        let series = self.series(provider, record);
        self.observe_traffic(provider, &series, record);
        self.observe_usage(&series, record);
        let is_response = record.http_status.is_some();
        if is_response && !record.operation.is_control() {
            count(provider.fidelity(&self.families, record.fidelity), 1);
        }
    }

    fn observe_traffic(&self, provider: &ProviderMetrics, series: &Series, record: &UsageRecord) {
        let (families, budget) = (&self.families, &self.budget);
        let outcome = record.outcome;
        let requests = series.requests.get(outcome as usize, || {
            budget.create(&families.requests, series, outcome.as_str())
        });
        count(requests, 1);
        if let Some(code) = record.http_status {
            provider.code(families, budget, code).inc();
        }
        if let Some(bytes) = record.request_bytes {
            provider.request_bytes.inc_by(bytes);
        }
        if let Some(bytes) = record.response_bytes {
            provider.response_bytes.inc_by(bytes);
        }
        if let Some(duration_us) = record.duration_us {
            let class = outcome.class();
            let duration = series.duration.get(class as usize, || {
                budget.create(&families.request_duration, series, class.as_str())
            });
            observe(duration, duration_us);
        }
        if let Some(first_token_us) = record.first_token_us.filter(|_| record.streamed) {
            let first_token = series
                .first_token
                .get(0, || budget.create(&families.first_token, series, ""));
            observe(first_token, first_token_us);
        }
        if let Some(seconds) = seconds_per_output_token(record) {
            let per_output_token = series
                .per_output_token
                .get(0, || budget.create(&families.per_output_token, series, ""));
            if let Some(histogram) = per_output_token {
                histogram.observe(seconds);
            }
        }
        let phases = [("queue", record.queue_us), ("run", record.run_us)];
        for (index, (phase, micros)) in phases.into_iter().enumerate() {
            if let Some(micros) = micros {
                let job_duration = series.job_duration.get(index, || {
                    budget.create(&families.job_duration, series, phase)
                });
                observe(job_duration, micros);
            }
        }
        if series.was_limited() {
            self.limited(Limit::Series, 1);
        }
    }

    fn observe_usage(&self, series: &Series, record: &UsageRecord) {
        let (families, budget) = (&self.families, &self.budget);
        for (unit, quantity) in record.usage.iter() {
            if let Some(kind) = unit.token_type() {
                let tokens = series.tokens.get(unit as usize, || {
                    budget.create(&families.tokens, series, kind)
                });
                count(tokens, quantity.to_u64().unwrap_or(0));
            } else {
                let units = series.units.get(unit as usize, || {
                    budget.create(&families.units, series, unit.as_str())
                });
                add(units, quantity);
            }
        }
        if let Some(effect) = record.cache_effect_usd.map(Usd::dollars) {
            let is_dearer = effect.is_sign_negative();
            let effects = series.cache_effect.get(usize::from(is_dearer), || {
                let name = if is_dearer { "extra" } else { "saved" };
                budget.create(&families.cache_effect, series, name)
            });
            add(effects, effect.abs());
        }
        if let Some((cost, source)) = record.cost_usd.zip(record.cost_source) {
            let spent = series.cost.get(source as usize, || {
                budget.create(&families.cost, series, source.as_str())
            });
            add(spent, cost.dollars());
        } else if let Some(reason) = record.unpriced_reason
            && !record.operation.is_control()
        {
            let unpriced = series.unpriced.get(reason as usize, || {
                budget.create(&families.unpriced, series, reason.as_str())
            });
            count(unpriced, 1);
        }
    }

    /// The provider's handles; those of `other` if it is not configured.
    fn provider(&self, name: &str) -> &ProviderMetrics {
        self.providers.get(name).unwrap_or_else(|| {
            self.limited(Limit::Providers, 1);
            self.other_provider
                .get_or_init(|| ProviderMetrics::new(OTHER, &self.families))
        })
    }

    /// The handles of the record's combination of labels.
    fn series(&self, provider: &ProviderMetrics, record: &UsageRecord) -> Arc<Series> {
        let mut key = Key {
            model: Slot::ABSENT,
            operation: record.operation,
            attribution: [Slot::ABSENT; ATTRIBUTION_LABELS_MAX],
        };
        let model = record.model().unwrap_or_default();
        if !model.is_empty() {
            // A name that is merely refused may be a typing error or made up, and must not take
            // the places of real ones.
            let limit = match record.outcome {
                Outcome::ClientError => self.config.models_per_provider.div_ceil(2),
                _ => self.config.models_per_provider,
            };
            key.model = provider.models.slot(model, limit);
        }
        if key.model == Slot::OTHER {
            self.limited(Limit::Models, 1);
        }
        let attribution = &record.caller.attribution;
        let values = self.attribution.iter().zip(&self.attribution_values);
        for ((name, names), slot) in values.zip(&mut key.attribution) {
            if let Some(value) = attribution.get(name.as_ref()) {
                *slot = names.slot(value, self.config.attribution_values);
            }
            if *slot == Slot::OTHER {
                self.limited(Limit::AttributionValues, 1);
            }
        }
        self.budget
            .series(&provider.series, &provider.name, key, || {
                let attribution = self.attribution.iter().zip(&key.attribution);
                let attribution = attribution.map(|(name, slot)| {
                    let value = attribution_of(record, name);
                    shown(*slot, value, "")
                });
                (shown(key.model, model, UNKNOWN), attribution.collect())
            })
    }

    /// Counts a request as in flight until the guard is dropped.
    pub fn in_flight(&self, provider: &str) -> InFlight {
        let gauge = self.provider(provider).in_flight.clone();
        gauge.inc();
        InFlight(gauge)
    }

    /// Counts a job that was submitted as open until the guard is dropped.
    pub fn job_open(&self, provider: &str) -> KeptJob {
        KeptJob::of(&self.provider(provider).jobs_open)
    }

    /// Counts the end of another's job as waiting for the store until the guard is dropped.
    pub fn job_end_waiting(&self, provider: &str) -> KeptJob {
        KeptJob::of(&self.provider(provider).job_ends_waiting)
    }

    /// Counts a job that was not kept because of that limit.
    pub fn job_limited(&self, limit: JobLimit) {
        self.families.jobs_limited.with(&[limit.as_str()]).inc();
    }

    /// Counts a connection of `listener` as open until the guard is dropped.
    pub fn connection(&self, listener: Listener) -> Connection {
        let gauge = self.families.connections.with(&[listener.as_str()]);
        gauge.inc();
        Connection(gauge)
    }

    /// Counts a connection that was closed at once because the listener was at its limit.
    pub fn connection_refused(&self, listener: Listener) {
        let refused = &self.families.connections_refused;
        refused.with(&[listener.as_str()]).inc();
    }

    /// Counts a TLS handshake with a client that failed.
    pub fn handshake_failed(&self, reason: HandshakeFault) {
        let failures = &self.families.handshake_failures;
        failures.with(&[reason.as_str()]).inc();
    }

    /// Takes the rate limits that a response stated at `now`. What is not stated keeps the value
    /// that was stated last, until [`Config::ratelimit_expiry`] has passed since then.
    pub fn rate_limits(&self, provider: &str, limits: &[RateLimit], now: Instant) {
        if limits.is_empty() {
            return;
        }
        let mut stated = lock(&self.provider(provider).rate_limits);
        for limit in limits {
            let index = stated.iter().position(|known| known.kind == limit.kind);
            let index = index.unwrap_or_else(|| {
                stated.push(StatedLimit {
                    kind: limit.kind,
                    limit: None,
                    remaining: None,
                });
                stated.len() - 1
            });
            if let Some(known) = stated.get_mut(index) {
                known.limit = limit.limit.map(|value| (value, now)).or(known.limit);
                known.remaining = limit
                    .remaining
                    .map(|value| (value, now))
                    .or(known.remaining);
            }
        }
    }

    /// Takes time that Taffrail added to a request.
    pub fn overhead(&self, phase: Phase, overhead: Duration) {
        if let Some(histogram) = self.overhead_histogram(phase) {
            histogram.observe(overhead.as_secs_f64());
        }
    }

    fn overhead_histogram(&self, phase: Phase) -> Option<&Histogram> {
        let make = || self.families.overhead.with(&[phase.as_str()]);
        self.overhead.get(phase as usize, make)
    }

    /// Counts a message that Taffrail changed.
    pub fn rewrite(&self, provider: &str, rewrite: Rewrite) {
        count(self.provider(provider).rewrites(&self.families, rewrite), 1);
    }

    /// Counts a request that was sent anew because a pooled connection had gone stale.
    pub fn upstream_retry(&self, provider: &str) {
        self.provider(provider).upstream_retries.inc();
    }

    /// Counts a request that Taffrail answered itself with an error.
    pub fn proxy_error(&self, reason: ProxyError) {
        self.families.proxy_errors.with(&[reason.as_str()]).inc();
    }

    /// Counts a panic in a meter.
    pub fn meter_panic(&self) {
        self.meter_panics.inc();
    }

    /// Counts a response that ended before its record was in the journal.
    pub fn late_commit(&self) {
        self.late_commits.inc();
    }

    /// Counts `count` records as having reached `stage`.
    pub fn records(&self, stage: Stage, reason: Reason, count: u64) {
        self.records.count(stage, reason, count);
    }

    /// Has `watch` asked at every scrape what the journal says of itself; the first one counts.
    pub fn watch_journal(&self, watch: JournalWatch) {
        self.journal.get_or_init(|| watch);
    }

    /// Shows the records by stage, and the journal at the same moment.
    fn settle_records(&self) {
        let mut books = self.records.books();
        if let Some(watch) = self.journal.get() {
            let reading = watch(&mut || books = self.records.books());
            books = books.with_unreadable(reading.unreadable_records);
            self.journal(&reading);
        }
        self.records.show(books, |stage, reason| {
            let labels = [stage.as_str(), reason.as_str()];
            self.families.records.with(&labels)
        });
    }

    fn journal(&self, reading: &JournalReading) {
        let families = &self.families;
        set(
            &families.journal_pending_records,
            &[],
            float(reading.pending_records),
        );
        set(&families.journal_bytes, &[], float(reading.bytes));
        set(&families.journal_bytes_max, &[], float(reading.bytes_max));
        let age = reading.oldest_record_age.unwrap_or_default();
        set(&families.journal_oldest_record_age, &[], age.as_secs_f64());
        for (fault, total) in &reading.faults {
            let shown = families.journal_faults.with(&[fault.as_str()]);
            shown.inc_by(total.saturating_sub(shown.get()));
        }
    }

    /// Takes the duration of an fsync of the journal.
    pub fn journal_fsync(&self, duration: Duration) {
        self.journal_fsync.observe(duration.as_secs_f64());
    }

    /// Takes whether the store answered. Until the first call the metric is absent.
    pub fn store_up(&self, is_up: bool) {
        set(&self.families.store_up, &[], f64::from(u8::from(is_up)));
    }

    /// Takes the time that the store took to commit a batch.
    pub fn store_batch(&self, duration: Duration) {
        self.store_batch.observe(duration.as_secs_f64());
    }

    /// Counts a batch that will be tried again.
    pub fn store_retry(&self) {
        self.store_retries.inc();
    }

    /// Takes how many models the price book knows. `provider` and `source` come from
    /// configuration or code, never from traffic.
    pub fn price_models(&self, provider: &str, source: &str, models: u64) {
        set(
            &self.families.price_models,
            &[provider, source],
            float(models),
        );
    }

    /// Counts an attempt to fetch prices that ended at `now`.
    pub fn price_refresh(
        &self,
        provider: &str,
        source: &str,
        result: PriceResult,
        now: DateTime<Utc>,
    ) {
        let refreshes = &self.families.price_refreshes;
        refreshes.with(&[provider, source, result.as_str()]).inc();
        if result == PriceResult::Ok {
            let timestamp = timestamp_seconds(now);
            set(
                &self.families.price_last_success,
                &[provider, source],
                timestamp,
            );
        }
    }

    /// Takes how much about a source's new prices looks wrong, so that they are held back.
    pub fn price_held_back(&self, provider: &str, source: &str, concerns: u64) {
        let held_back = &self.families.price_held_back;
        set(held_back, &[provider, source], float(concerns));
    }

    /// Starts the counters of retention at 0.
    pub fn retention(&self) {
        for kind in Retained::ALL {
            self.retention_dropped(*kind, 0);
        }
    }

    /// Counts what retention dropped.
    pub fn retention_dropped(&self, kind: Retained, dropped: u64) {
        let dropped_of_kind = self.families.retention_dropped.with(&[kind.as_str()]);
        dropped_of_kind.inc_by(dropped);
    }

    /// Counts a run of a scheduled task that ended at `now`.
    pub fn schedule_run(&self, task: &'static str, result: RunResult, now: DateTime<Utc>) {
        self.families
            .schedule_runs
            .with(&[task, result.as_str()])
            .inc();
        if result == RunResult::Ok {
            let timestamp = timestamp_seconds(now);
            set(&self.families.schedule_last_success, &[task], timestamp);
        }
    }

    /// Starts the counters of a scheduled task at 0.
    pub fn schedule_task(&self, task: &'static str) {
        for result in RunResult::ALL {
            self.families.schedule_runs.with(&[task, result.as_str()]);
        }
    }

    /// Starts the counters of the injector at 0.
    pub fn injector(&self) {
        for result in ReviewResult::ALL {
            self.families.injector_reviews.with(&[result.as_str()]);
        }
        self.families.injector_warnings.with(&[]);
        for result in RunResult::ALL {
            let checks = &self.families.injector_certificate_checks;
            checks.with(&[result.as_str()]);
        }
    }

    /// Counts a review of the injector with its warnings.
    pub fn injector_review(&self, result: ReviewResult, warnings: usize) {
        let reviews = &self.families.injector_reviews;
        reviews.with(&[result.as_str()]).inc();
        let warnings = u64::try_from(warnings).unwrap_or(u64::MAX);
        self.families.injector_warnings.with(&[]).inc_by(warnings);
    }

    /// Counts a look at the injector's certificate.
    pub fn injector_certificate_check(&self, result: RunResult) {
        let checks = &self.families.injector_certificate_checks;
        checks.with(&[result.as_str()]).inc();
    }

    /// Takes the time at which the certificate of `proxy.tls_listen` expires.
    pub fn tls_certificate_expiry(&self, expiry: DateTime<Utc>) {
        let families = &self.families.tls_certificate_expiry;
        set(families, &[], timestamp_seconds(expiry));
    }

    /// Takes the time at which the injector's certificate expires.
    pub fn injector_certificate_expiry(&self, expiry: DateTime<Utc>) {
        let families = &self.families.injector_certificate_expiry;
        set(families, &[], timestamp_seconds(expiry));
    }

    /// Takes the numbers of the process; for a scrape hook.
    pub fn process(&self, reading: &process::Reading) {
        let families = &self.families;
        if let Some(seconds) = reading.cpu_seconds {
            families.process_cpu.with(&[]).set(seconds);
        }
        let gauges = [
            (&families.process_resident, reading.resident_bytes),
            (&families.process_virtual, reading.virtual_bytes),
            (&families.process_open_fds, reading.open_fds),
            (&families.process_max_fds, reading.max_fds),
            (&families.process_start_time, reading.start_time_seconds),
            (&families.process_threads, reading.threads),
        ];
        for (family, value) in gauges {
            if let Some(value) = value {
                set(family, &[], value);
            }
        }
    }

    /// Has `hook` called at the start of every scrape, to refresh what is read and not pushed.
    /// It must be quick, and must not call [`Metrics::encode`].
    pub fn on_scrape(&self, hook: ScrapeHook) {
        let mut hooks = self.hooks.write().unwrap_or_else(PoisonError::into_inner);
        hooks.push(Arc::new(hook));
    }

    /// The whole exposition in `format`. `now` decides which stated rate limits have expired.
    ///
    /// Takes up to some 10 ms of CPU at the limits of [`Config`]: not for a thread that relays
    /// traffic.
    pub fn encode(&self, format: Format, now: Instant) -> Vec<u8> {
        let _turn = lock(&self.rendering);
        let hooks = self
            .hooks
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for hook in hooks {
            hook(self);
        }
        self.settle_records();
        self.refresh_rate_limits(now);
        // Encoding fails only where a label set does, and ours write to memory.
        let families = prometheus_protobuf::encode(&self.registry).unwrap_or_default();
        exposition::render(families, format)
    }

    fn refresh_rate_limits(&self, now: Instant) {
        let (limits, remainings) = (
            &self.families.ratelimit_limit,
            &self.families.ratelimit_remaining,
        );
        let expiry = self.config.ratelimit_expiry;
        for provider in self.providers.values().chain(self.other_provider.get()) {
            for stated in lock(&provider.rate_limits).iter_mut() {
                let labels = [provider.name.as_ref(), stated.kind];
                for (family, reading) in [
                    (limits, &mut stated.limit),
                    (remainings, &mut stated.remaining),
                ] {
                    let is_stale = |seen: Instant| now.saturating_duration_since(seen) > expiry;
                    match *reading {
                        Some((_, seen)) if is_stale(seen) => {
                            *reading = None;
                            family.remove(&labels);
                        }
                        Some((value, _)) => set(family, &labels, float(value)),
                        None => {}
                    }
                }
            }
        }
    }

    fn limited(&self, limit: Limit, count: u64) {
        let make = || self.families.series_limited.with(&[limit.as_str()]);
        self::count(self.limited.get(limit as usize, make), count);
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// The mean time per output token after the first, for streams that ended well and whose tokens
/// are known. The reasoning that a provider streams counts as output; where it hides it, the time
/// up to the first token covers reasoning as well, and this mean is too low.
fn seconds_per_output_token(record: &UsageRecord) -> Option<f64> {
    let is_whole =
        record.streamed && record.outcome == Outcome::Ok && record.fidelity == Fidelity::Complete;
    let micros = record.duration_us?.checked_sub(record.first_token_us?)?;
    let reasoning = record.usage.tokens(Unit::Reasoning).unwrap_or(0);
    let tokens = record.usage.tokens(Unit::Output)?.saturating_add(reasoning);
    (is_whole && tokens > 1)
        .then(|| Duration::from_micros(micros).as_secs_f64() / float(tokens - 1))
}

/// The value of an attribution label in a record.
fn attribution_of<'a>(record: &'a UsageRecord, name: &str) -> &'a str {
    let value = record.caller.attribution.get(name);
    value.map(String::as_str).unwrap_or_default()
}

/// The label value for a slot: the value itself if it has a place.
fn shown(slot: Slot, value: &str, absent: &str) -> Box<str> {
    match slot {
        Slot::ABSENT => absent.into(),
        Slot::OTHER => OTHER.into(),
        _ => clean(value).into(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(counter: Option<&Counter>, by: u64) {
    if let Some(counter) = counter {
        counter.inc_by(by);
    }
}

fn add(counter: Option<&ExactCounter>, amount: Decimal) {
    if let Some(counter) = counter {
        counter.add(amount);
    }
}

fn observe(histogram: Option<&Histogram>, micros: u64) {
    if let Some(histogram) = histogram {
        histogram.observe(Duration::from_micros(micros).as_secs_f64());
    }
}

fn set(family: &LabelledFamily<GaugeF64>, labels: &[&str], value: f64) {
    family.with(labels).set(value);
}

#[expect(
    clippy::cast_precision_loss,
    reason = "the exposition has floats only; exact up to 2^53"
)]
fn float(value: u64) -> f64 {
    value as f64
}

/// Seconds since 1970, to the microsecond.
fn timestamp_seconds(time: DateTime<Utc>) -> f64 {
    Duration::from_micros(u64::try_from(time.timestamp_micros()).unwrap_or(0)).as_secs_f64()
}
