//! The families of the catalogue, registered and typed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeMetric;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::catalogue::{self, Descriptor, Kind};
use super::labels::Labels;
use super::values::{ExactCounter, ReadCounter};

/// A gauge that is set to floats.
pub(super) type GaugeF64 = Gauge<f64, AtomicU64>;

/// A metric that a family can be made of.
pub(super) trait Metric:
    EncodeMetric + TypedMetric + Clone + fmt::Debug + Send + Sync + 'static
{
    /// A new metric, at zero.
    fn of(descriptor: &Descriptor) -> Self;
}

impl Metric for Histogram {
    fn of(descriptor: &Descriptor) -> Histogram {
        Histogram::new(descriptor.buckets.iter().copied())
    }
}

macro_rules! start_at_default {
    ($($metric:ty),+) => {
        $(impl Metric for $metric {
            fn of(_: &Descriptor) -> $metric {
                <$metric>::default()
            }
        })+
    };
}

start_at_default!(Counter, Gauge, GaugeF64, ExactCounter, ReadCounter);

/// Makes the metrics of one family.
#[derive(Debug, Clone, Copy)]
struct Constructor(&'static Descriptor);

impl<M: Metric> MetricConstructor<M> for Constructor {
    fn new_metric(&self) -> M {
        M::of(self.0)
    }
}

/// A registered family: its descriptor, the names of its labels, its series.
#[derive(Debug)]
pub(super) struct LabelledFamily<M> {
    pub(super) descriptor: &'static Descriptor,
    names: Box<[Arc<str>]>,
    series: Family<Labels, M, Constructor>,
}

impl<M: Metric> LabelledFamily<M> {
    /// The series with these label values, created if it is new.
    pub(super) fn with(&self, values: &[&str]) -> M {
        let labels = Labels::new(&self.names, values);
        self.series.get_or_create_owned(&labels)
    }

    /// Whether there is a series with these label values.
    pub(super) fn contains(&self, values: &[&str]) -> bool {
        let labels = Labels::new(&self.names, values);
        self.series.get(&labels).is_some()
    }

    /// Takes the series with these label values out of the exposition.
    pub(super) fn remove(&self, values: &[&str]) {
        self.series.remove(&Labels::new(&self.names, values));
    }
}

/// Registers families.
struct Registrar<'a> {
    registry: &'a mut Registry,
    attribution: &'a [Arc<str>],
}

impl Registrar<'_> {
    fn family<M: Metric>(&mut self, descriptor: &'static Descriptor) -> LabelledFamily<M> {
        let series = Family::new_with_constructor(Constructor(descriptor));
        // The library adds the suffix of counters itself.
        let name = match descriptor.kind {
            Kind::Counter => descriptor.name.trim_end_matches("_total"),
            Kind::Gauge | Kind::Histogram => descriptor.name,
        };
        self.registry
            .register(name, descriptor.help, series.clone());
        let own = descriptor.labels.iter().map(|name| Arc::from(*name));
        let attribution = self.attribution.iter().filter(|_| descriptor.attribution);
        LabelledFamily {
            descriptor,
            names: own.chain(attribution.cloned()).collect(),
            series,
        }
    }
}

/// Every family, in the order of the catalogue.
#[derive(Debug)]
pub(super) struct Families {
    pub(super) requests: LabelledFamily<Counter>,
    pub(super) http_responses: LabelledFamily<Counter>,
    pub(super) request_duration: LabelledFamily<Histogram>,
    pub(super) first_token: LabelledFamily<Histogram>,
    pub(super) per_output_token: LabelledFamily<Histogram>,
    pub(super) job_duration: LabelledFamily<Histogram>,
    pub(super) jobs_open: LabelledFamily<Gauge>,
    pub(super) job_ends_waiting: LabelledFamily<Gauge>,
    pub(super) jobs_limited: LabelledFamily<Counter>,
    pub(super) overhead: LabelledFamily<Histogram>,
    pub(super) in_flight: LabelledFamily<Gauge>,
    pub(super) request_bytes: LabelledFamily<Counter>,
    pub(super) response_bytes: LabelledFamily<Counter>,
    pub(super) ratelimit_remaining: LabelledFamily<GaugeF64>,
    pub(super) ratelimit_limit: LabelledFamily<GaugeF64>,
    pub(super) rewrites: LabelledFamily<Counter>,
    pub(super) connections: LabelledFamily<Gauge>,
    pub(super) connections_refused: LabelledFamily<Counter>,
    pub(super) handshake_failures: LabelledFamily<Counter>,
    pub(super) tls_certificate_expiry: LabelledFamily<GaugeF64>,
    pub(super) upstream_retries: LabelledFamily<Counter>,
    pub(super) proxy_errors: LabelledFamily<Counter>,
    pub(super) tokens: LabelledFamily<Counter>,
    pub(super) units: LabelledFamily<ExactCounter>,
    pub(super) cost: LabelledFamily<ExactCounter>,
    pub(super) spend: LabelledFamily<GaugeF64>,
    pub(super) cache_effect: LabelledFamily<ExactCounter>,
    pub(super) unpriced: LabelledFamily<Counter>,
    pub(super) metered_responses: LabelledFamily<Counter>,
    pub(super) records: LabelledFamily<Counter>,
    pub(super) journal_pending_records: LabelledFamily<GaugeF64>,
    pub(super) journal_bytes: LabelledFamily<GaugeF64>,
    pub(super) journal_bytes_max: LabelledFamily<GaugeF64>,
    pub(super) journal_oldest_record_age: LabelledFamily<GaugeF64>,
    pub(super) journal_fsync_duration: LabelledFamily<Histogram>,
    pub(super) journal_faults: LabelledFamily<Counter>,
    pub(super) late_commits: LabelledFamily<Counter>,
    pub(super) store_up: LabelledFamily<GaugeF64>,
    pub(super) store_batch_duration: LabelledFamily<Histogram>,
    pub(super) store_retries: LabelledFamily<Counter>,
    pub(super) balance: LabelledFamily<GaugeF64>,
    pub(super) balance_threshold: LabelledFamily<GaugeF64>,
    pub(super) balance_burn: LabelledFamily<GaugeF64>,
    pub(super) balance_time_left: LabelledFamily<GaugeF64>,
    pub(super) balance_last_success: LabelledFamily<GaugeF64>,
    pub(super) balance_sync_up: LabelledFamily<GaugeF64>,
    pub(super) balance_syncs: LabelledFamily<Counter>,
    pub(super) balance_sync_duration: LabelledFamily<Histogram>,
    pub(super) account_state: LabelledFamily<GaugeF64>,
    pub(super) provider_spend: LabelledFamily<GaugeF64>,
    pub(super) unmetered_spend: LabelledFamily<GaugeF64>,
    pub(super) reconciled_until: LabelledFamily<GaugeF64>,
    pub(super) bill_reads: LabelledFamily<Counter>,
    pub(super) receipts: LabelledFamily<Counter>,
    pub(super) receipt_calls: LabelledFamily<Counter>,
    pub(super) price_models: LabelledFamily<GaugeF64>,
    pub(super) price_last_success: LabelledFamily<GaugeF64>,
    pub(super) price_refreshes: LabelledFamily<Counter>,
    pub(super) price_held_back: LabelledFamily<GaugeF64>,
    pub(super) retention_dropped: LabelledFamily<Counter>,
    pub(super) schedule_runs: LabelledFamily<Counter>,
    pub(super) schedule_last_success: LabelledFamily<GaugeF64>,
    pub(super) injector_reviews: LabelledFamily<Counter>,
    pub(super) injector_warnings: LabelledFamily<Counter>,
    pub(super) injector_certificate_expiry: LabelledFamily<GaugeF64>,
    pub(super) injector_certificate_checks: LabelledFamily<Counter>,
    pub(super) series_limited: LabelledFamily<Counter>,
    pub(super) meter_panics: LabelledFamily<Counter>,
    pub(super) build_info: LabelledFamily<GaugeF64>,
    pub(super) process_cpu: LabelledFamily<ReadCounter>,
    pub(super) process_resident: LabelledFamily<GaugeF64>,
    pub(super) process_virtual: LabelledFamily<GaugeF64>,
    pub(super) process_open_fds: LabelledFamily<GaugeF64>,
    pub(super) process_max_fds: LabelledFamily<GaugeF64>,
    pub(super) process_start_time: LabelledFamily<GaugeF64>,
    pub(super) process_threads: LabelledFamily<GaugeF64>,
}

impl Families {
    /// Registers every family; those that are attributed have the `attribution` labels too.
    pub(super) fn register(registry: &mut Registry, attribution: &[Arc<str>]) -> Families {
        let mut registrar = Registrar {
            registry,
            attribution,
        };
        Families {
            requests: registrar.family(&catalogue::REQUESTS),
            http_responses: registrar.family(&catalogue::HTTP_RESPONSES),
            request_duration: registrar.family(&catalogue::REQUEST_DURATION),
            first_token: registrar.family(&catalogue::TIME_TO_FIRST_TOKEN),
            per_output_token: registrar.family(&catalogue::TIME_PER_OUTPUT_TOKEN),
            job_duration: registrar.family(&catalogue::JOB_DURATION),
            jobs_open: registrar.family(&catalogue::JOBS_OPEN),
            job_ends_waiting: registrar.family(&catalogue::JOB_ENDS_WAITING),
            jobs_limited: registrar.family(&catalogue::JOBS_LIMITED),
            overhead: registrar.family(&catalogue::OVERHEAD),
            in_flight: registrar.family(&catalogue::REQUESTS_IN_FLIGHT),
            request_bytes: registrar.family(&catalogue::REQUEST_BYTES),
            response_bytes: registrar.family(&catalogue::RESPONSE_BYTES),
            ratelimit_remaining: registrar.family(&catalogue::RATELIMIT_REMAINING),
            ratelimit_limit: registrar.family(&catalogue::RATELIMIT_LIMIT),
            rewrites: registrar.family(&catalogue::REWRITES),
            connections: registrar.family(&catalogue::CONNECTIONS),
            connections_refused: registrar.family(&catalogue::CONNECTIONS_REFUSED),
            handshake_failures: registrar.family(&catalogue::TLS_HANDSHAKE_FAILURES),
            tls_certificate_expiry: registrar.family(&catalogue::TLS_CERTIFICATE_EXPIRY),
            upstream_retries: registrar.family(&catalogue::UPSTREAM_RETRIES),
            proxy_errors: registrar.family(&catalogue::PROXY_ERRORS),
            tokens: registrar.family(&catalogue::TOKENS),
            units: registrar.family(&catalogue::UNITS),
            cost: registrar.family(&catalogue::COST),
            spend: registrar.family(&catalogue::SPEND),
            cache_effect: registrar.family(&catalogue::CACHE_EFFECT),
            unpriced: registrar.family(&catalogue::UNPRICED_REQUESTS),
            metered_responses: registrar.family(&catalogue::METERED_RESPONSES),
            records: registrar.family(&catalogue::RECORDS),
            journal_pending_records: registrar.family(&catalogue::JOURNAL_PENDING_RECORDS),
            journal_bytes: registrar.family(&catalogue::JOURNAL_BYTES),
            journal_bytes_max: registrar.family(&catalogue::JOURNAL_MAX_BYTES),
            journal_oldest_record_age: registrar.family(&catalogue::JOURNAL_OLDEST_RECORD_AGE),
            journal_fsync_duration: registrar.family(&catalogue::JOURNAL_FSYNC_DURATION),
            journal_faults: registrar.family(&catalogue::JOURNAL_FAULTS),
            late_commits: registrar.family(&catalogue::LATE_COMMITS),
            store_up: registrar.family(&catalogue::STORE_UP),
            store_batch_duration: registrar.family(&catalogue::STORE_BATCH_DURATION),
            store_retries: registrar.family(&catalogue::STORE_RETRIES),
            balance: registrar.family(&catalogue::BALANCE),
            balance_threshold: registrar.family(&catalogue::BALANCE_THRESHOLD),
            balance_burn: registrar.family(&catalogue::BALANCE_BURN),
            balance_time_left: registrar.family(&catalogue::BALANCE_TIME_LEFT),
            balance_last_success: registrar.family(&catalogue::BALANCE_LAST_SUCCESS),
            balance_sync_up: registrar.family(&catalogue::BALANCE_SYNC_UP),
            balance_syncs: registrar.family(&catalogue::BALANCE_SYNCS),
            balance_sync_duration: registrar.family(&catalogue::BALANCE_SYNC_DURATION),
            account_state: registrar.family(&catalogue::ACCOUNT_STATE),
            provider_spend: registrar.family(&catalogue::PROVIDER_SPEND),
            unmetered_spend: registrar.family(&catalogue::UNMETERED_SPEND),
            reconciled_until: registrar.family(&catalogue::RECONCILED_UNTIL),
            bill_reads: registrar.family(&catalogue::BILL_READS),
            receipts: registrar.family(&catalogue::RECEIPTS),
            receipt_calls: registrar.family(&catalogue::RECEIPT_CALLS),
            price_models: registrar.family(&catalogue::PRICE_MODELS),
            price_last_success: registrar.family(&catalogue::PRICE_LAST_SUCCESS),
            price_refreshes: registrar.family(&catalogue::PRICE_REFRESHES),
            price_held_back: registrar.family(&catalogue::PRICE_HELD_BACK),
            retention_dropped: registrar.family(&catalogue::RETENTION_DROPPED),
            schedule_runs: registrar.family(&catalogue::SCHEDULE_RUNS),
            schedule_last_success: registrar.family(&catalogue::SCHEDULE_LAST_SUCCESS),
            injector_reviews: registrar.family(&catalogue::INJECTOR_REVIEWS),
            injector_warnings: registrar.family(&catalogue::INJECTOR_WARNINGS),
            injector_certificate_expiry: registrar.family(&catalogue::INJECTOR_CERTIFICATE_EXPIRY),
            injector_certificate_checks: registrar.family(&catalogue::INJECTOR_CERTIFICATE_CHECKS),
            series_limited: registrar.family(&catalogue::SERIES_LIMITED),
            meter_panics: registrar.family(&catalogue::METER_PANICS),
            build_info: registrar.family(&catalogue::BUILD_INFO),
            process_cpu: registrar.family(&catalogue::PROCESS_CPU),
            process_resident: registrar.family(&catalogue::PROCESS_RESIDENT_MEMORY),
            process_virtual: registrar.family(&catalogue::PROCESS_VIRTUAL_MEMORY),
            process_open_fds: registrar.family(&catalogue::PROCESS_OPEN_FDS),
            process_max_fds: registrar.family(&catalogue::PROCESS_MAX_FDS),
            process_start_time: registrar.family(&catalogue::PROCESS_START_TIME),
            process_threads: registrar.family(&catalogue::PROCESS_THREADS),
        }
    }
}
