//! The catalogue of metrics: every family that Taffrail exposes, with its name, type, labels and
//! help, written once.
//!
//! Families are registered from these descriptors, `docs/metrics.md` is generated from them, and
//! tests hold the exposition to them, so a name, a label or a help text can be changed here only.
//! A change of a name or label is a breaking change of the contract.

/// The type of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only rises, until the process restarts.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts observations by bucket.
    Histogram,
}

impl Kind {
    /// The type's name in the exposition formats.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// What a family is about; the sections of `docs/metrics.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Requests as the application made them.
    Traffic,
    /// What requests consumed and cost.
    Usage,
    /// The way of a record from the end of its request to the store.
    Records,
    /// What is left in accounts.
    Balances,
    /// Prices and scheduled tasks.
    Upkeep,
    /// The injector of the sidecar in Kubernetes.
    Injection,
    /// Taffrail itself.
    Process,
}

/// One family.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Descriptor {
    /// The name: of the samples for counters (with `_total`), of the family otherwise.
    pub name: &'static str,
    /// The type.
    pub kind: Kind,
    /// The labels of every series, in the order in which values are given.
    pub labels: &'static [&'static str],
    /// Whether the configured attribution labels follow.
    pub attribution: bool,
    /// The help text, without a full stop; the exposition adds one.
    pub help: &'static str,
    /// The upper bounds of a histogram's buckets, without the last one, which is infinite.
    pub buckets: &'static [f64],
    /// What it is about.
    pub group: Group,
    /// The nearest name in OpenTelemetry's GenAI semantic conventions, if there is one.
    pub otel: Option<&'static str>,
    /// Whether it is there to look into trouble and not part of the stable contract.
    pub diagnostic: bool,
}

const fn family(
    kind: Kind,
    group: Group,
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Descriptor {
    Descriptor {
        name,
        kind,
        labels,
        attribution: false,
        help,
        buckets: &[],
        group,
        otel: None,
        diagnostic: false,
    }
}

impl Descriptor {
    /// The samples of one series: for a histogram its buckets, the infinite one, sum and count.
    pub const fn samples(&self) -> usize {
        match self.kind {
            Kind::Counter | Kind::Gauge => 1,
            Kind::Histogram => self.buckets.len() + 3,
        }
    }

    const fn attributed(mut self) -> Descriptor {
        self.attribution = true;
        self
    }

    const fn buckets(mut self, bounds: &'static [f64]) -> Descriptor {
        self.buckets = bounds;
        self
    }

    const fn otel(mut self, name: &'static str) -> Descriptor {
        self.otel = Some(name);
        self
    }

    const fn diagnostic(mut self) -> Descriptor {
        self.diagnostic = true;
        self
    }
}

use Group::{Balances, Injection, Process, Records, Traffic, Upkeep, Usage};
use Kind::{Counter, Gauge, Histogram};

/// Requests that ended.
pub const REQUESTS: Descriptor = family(
    Counter,
    Traffic,
    "taffrail_requests_total",
    &["provider", "model", "operation", "outcome"],
    "Requests that ended, by how they ended",
)
.attributed()
.otel("gen_ai.client.operation.duration (its count)");

/// Responses by status.
pub const HTTP_RESPONSES: Descriptor = family(
    Counter,
    Traffic,
    "taffrail_http_responses_total",
    &["provider", "code"],
    "Responses that the provider gave, by HTTP status code",
);

/// Duration of requests.
pub const REQUEST_DURATION: Descriptor = family(
    Histogram,
    Traffic,
    "taffrail_request_duration_seconds",
    &["provider", "model", "operation", "outcome"],
    "From the arrival of a request to the end of its response",
)
// A cached completion takes 50 ms, a chat answer seconds, a reasoning model or a synchronous
// image minutes; providers cut off at 10 to 15 minutes.
.buckets(&[
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0,
])
.otel("gen_ai.client.operation.duration");

/// Time to the first token of a stream.
pub const TIME_TO_FIRST_TOKEN: Descriptor = family(
    Histogram,
    Traffic,
    "taffrail_time_to_first_token_seconds",
    &["provider", "model"],
    "From the arrival of a request to the first token of its stream",
)
// Readers notice from 0.2 s on; long prompts and reasoning that is not streamed push it to two
// minutes.
.buckets(&[
    0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0,
])
.otel("gen_ai.client.operation.time_to_first_chunk");

/// Time per output token of a stream.
pub const TIME_PER_OUTPUT_TOKEN: Descriptor = family(
    Histogram,
    Traffic,
    "taffrail_time_per_output_token_seconds",
    &["provider", "model"],
    "Mean time per output token after the first one, per complete stream",
)
// From 1,000 tokens a second on special hardware to one in 2.5 s, where a stream is as good as
// stuck.
.buckets(&[
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5,
])
.otel("gen_ai.server.time_per_output_token");

/// Phases of jobs.
pub const JOB_DURATION: Descriptor = family(
    Histogram,
    Traffic,
    "taffrail_job_duration_seconds",
    &["provider", "model", "phase"],
    "Time that jobs spent in the provider's queue and running",
)
// Images take seconds, videos minutes, trainings hours; queues can be empty.
.buckets(&[
    0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0,
]);

/// Jobs that are not settled.
pub const JOBS_OPEN: Descriptor = family(
    Gauge,
    Traffic,
    "taffrail_jobs_open",
    &["provider"],
    "Jobs submitted through this process that have no row yet",
);

/// Ends of others' jobs.
pub const JOB_ENDS_WAITING: Descriptor = family(
    Gauge,
    Traffic,
    "taffrail_job_ends_waiting",
    &["provider"],
    "Ends of jobs that another process submitted, which the store has not taken yet",
);

/// Jobs beyond a limit.
pub const JOBS_LIMITED: Descriptor = family(
    Counter,
    Traffic,
    "taffrail_jobs_limited_total",
    &["limit"],
    "Jobs that got a row before their time because too many were kept",
);

/// Time added by Taffrail.
pub const OVERHEAD: Descriptor = family(
    Histogram,
    Traffic,
    "taffrail_overhead_seconds",
    &["phase"],
    "Time that Taffrail itself added to requests and responses",
)
// Some 100 µs are usual, so the resolution is finest there; 250 ms would be a fault of
// Taffrail's.
.buckets(&[
    0.000_025, 0.000_05, 0.000_1, 0.000_2, 0.000_3, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025,
    0.05, 0.1, 0.25,
]);

/// Requests under way.
pub const REQUESTS_IN_FLIGHT: Descriptor = family(
    Gauge,
    Traffic,
    "taffrail_requests_in_flight",
    &["provider"],
    "Requests that have arrived and whose responses have not ended",
);

/// Bytes of request bodies.
pub const REQUEST_BYTES: Descriptor = family(
    Counter,
    Traffic,
    "taffrail_request_bytes_total",
    &["provider"],
    "Bytes of the bodies of requests",
);

/// Bytes of response bodies.
pub const RESPONSE_BYTES: Descriptor = family(
    Counter,
    Traffic,
    "taffrail_response_bytes_total",
    &["provider"],
    "Bytes of the bodies of responses, as they came over the wire",
);

/// Headroom stated by the provider.
pub const RATELIMIT_REMAINING: Descriptor = family(
    Gauge,
    Traffic,
    "taffrail_ratelimit_remaining",
    &["provider", "kind"],
    "What the provider's latest response said remains of the rate limit",
);

/// Limit stated by the provider.
pub const RATELIMIT_LIMIT: Descriptor = family(
    Gauge,
    Traffic,
    "taffrail_ratelimit_limit",
    &["provider", "kind"],
    "The rate limit that the provider's latest response stated",
);

/// Rewrites of requests and responses.
pub const REWRITES: Descriptor = family(
    Counter,
    Traffic,
    "taffrail_rewrites_total",
    &["provider", "kind"],
    "Messages that Taffrail changed, by the declared exception that allows it",
);

/// Open connections.
pub const CONNECTIONS: Descriptor = family(
    Gauge,
    Traffic,
    "taffrail_connections",
    &["listener"],
    "Open connections from clients",
)
.diagnostic();

/// Connections refused at the limit.
pub const CONNECTIONS_REFUSED: Descriptor = family(
    Counter,
    Traffic,
    "taffrail_connections_refused_total",
    &["listener"],
    "Connections closed at once because the listener's limit was reached",
)
.diagnostic();

/// Failed TLS handshakes.
pub const TLS_HANDSHAKE_FAILURES: Descriptor = family(
    Counter,
    Traffic,
    "taffrail_tls_handshake_failures_total",
    &["reason"],
    "TLS handshakes with clients that failed",
)
.diagnostic();

/// Expiry of the certificate for https.
pub const TLS_CERTIFICATE_EXPIRY: Descriptor = family(
    Gauge,
    Traffic,
    "taffrail_tls_certificate_expiry_timestamp_seconds",
    &[],
    "When the certificate that `proxy.tls_listen` serves expires; absent without that listener",
);

/// Retries of upstream exchanges.
pub const UPSTREAM_RETRIES: Descriptor = family(
    Counter,
    Traffic,
    "taffrail_upstream_retries_total",
    &["provider"],
    "Requests sent anew because a pooled connection had gone stale",
)
.diagnostic();

/// Requests that Taffrail answered itself.
pub const PROXY_ERRORS: Descriptor = family(
    Counter,
    Traffic,
    "taffrail_proxy_errors_total",
    &["reason"],
    "Requests that Taffrail answered itself with an error",
)
.diagnostic();

/// Tokens consumed.
pub const TOKENS: Descriptor = family(
    Counter,
    Usage,
    "taffrail_tokens_total",
    &["provider", "model", "operation", "type"],
    "Tokens consumed; the types are disjoint and add up",
)
.attributed()
.otel("gen_ai.client.inference.usage.* and gen_ai.client.token.usage (its sum)");

/// Other units consumed.
pub const UNITS: Descriptor = family(
    Counter,
    Usage,
    "taffrail_units_total",
    &["provider", "model", "operation", "unit"],
    "Billed quantities other than tokens",
);

/// Money spent.
pub const COST: Descriptor = family(
    Counter,
    Usage,
    "taffrail_cost_usd_total",
    &["provider", "model", "operation", "source"],
    "US dollars spent, by where the price came from",
)
.attributed();

/// Money spent, as the store has it.
pub const SPEND: Descriptor = family(
    Gauge,
    Usage,
    "taffrail_spend_usd",
    &["provider", "model", "window"],
    "US dollars spent since the start of the UTC day or month, by all processes, as the store has it",
)
.attributed();

/// What caching changed.
pub const CACHE_EFFECT: Descriptor = family(
    Counter,
    Usage,
    "taffrail_cache_effect_usd_total",
    &["provider", "model", "effect"],
    "US dollars by which requests with cached tokens were cheaper or dearer than without, by list prices",
);

/// Requests without a known cost.
pub const UNPRICED_REQUESTS: Descriptor = family(
    Counter,
    Usage,
    "taffrail_unpriced_requests_total",
    &["provider", "model", "reason"],
    "Requests whose cost is unknown, by reason",
);

/// Trust in metered responses.
pub const METERED_RESPONSES: Descriptor = family(
    Counter,
    Usage,
    "taffrail_metered_responses_total",
    &["provider", "fidelity"],
    "Responses that were metered, by how far their usage can be trusted",
);

/// Records by stage.
pub const RECORDS: Descriptor = family(
    Counter,
    Records,
    "taffrail_records_total",
    &["stage", "reason"],
    "Usage records by the stage that they reached",
);

/// Records that wait in the journal.
pub const JOURNAL_PENDING_RECORDS: Descriptor = family(
    Gauge,
    Records,
    "taffrail_journal_pending_records",
    &[],
    "Records in the journal that the store has not taken yet",
);

/// Size of the journal.
pub const JOURNAL_BYTES: Descriptor = family(
    Gauge,
    Records,
    "taffrail_journal_bytes",
    &[],
    "Bytes that the journal occupies",
);

/// Limit of the journal's size.
pub const JOURNAL_MAX_BYTES: Descriptor = family(
    Gauge,
    Records,
    "taffrail_journal_max_bytes",
    &[],
    "Bytes that the journal may occupy before records are dropped",
)
.diagnostic();

/// Age of the journal's oldest record.
pub const JOURNAL_OLDEST_RECORD_AGE: Descriptor = family(
    Gauge,
    Records,
    "taffrail_journal_oldest_record_age_seconds",
    &[],
    "Age of the oldest record that the store has not taken yet, 0 if there is none",
);

/// Duration of fsync.
pub const JOURNAL_FSYNC_DURATION: Descriptor = family(
    Histogram,
    Records,
    "taffrail_journal_fsync_duration_seconds",
    &[],
    "Duration of the journal's fsync calls",
)
// From a local NVMe disk to a network disk in trouble.
.buckets(&[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
]);

/// Faults of the journal.
pub const JOURNAL_FAULTS: Descriptor = family(
    Counter,
    Records,
    "taffrail_journal_faults_total",
    &["kind"],
    "Faults that the journal met and survived",
)
.diagnostic();

/// Records journaled after their response's end.
pub const LATE_COMMITS: Descriptor = family(
    Counter,
    Records,
    "taffrail_late_commits_total",
    &[],
    "Responses that ended before their record was in the journal, because the wait is bounded",
);

/// Whether the store answers.
pub const STORE_UP: Descriptor = family(
    Gauge,
    Records,
    "taffrail_store_up",
    &[],
    "Whether the latest attempt to reach the store succeeded",
);

/// Duration of batches.
pub const STORE_BATCH_DURATION: Descriptor = family(
    Histogram,
    Records,
    "taffrail_store_batch_duration_seconds",
    &[],
    "Time that the store took to commit a batch of records",
)
// From an embedded store to a database at its statement timeout.
.buckets(&[
    0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
]);

/// Retries of batches.
pub const STORE_RETRIES: Descriptor = family(
    Counter,
    Records,
    "taffrail_store_retries_total",
    &[],
    "Batches that the store did not take and that are tried again",
);

/// What is left.
pub const BALANCE: Descriptor = family(
    Gauge,
    Balances,
    "taffrail_balance",
    &["provider", "account", "kind", "currency"],
    "What is left in an account, in its own currency or unit, as last read; absent while unknown or without limit",
);

/// When somebody is to be told.
pub const BALANCE_THRESHOLD: Descriptor = family(
    Gauge,
    Balances,
    "taffrail_balance_threshold",
    &["provider", "account", "level"],
    "The configured balance below which an alert is wanted, by how urgent it is",
);

/// How fast it goes.
pub const BALANCE_BURN: Descriptor = family(
    Gauge,
    Balances,
    "taffrail_balance_burn_per_hour",
    &["provider", "account", "currency"],
    "What an account spends in an hour: by what its traffic cost in the last day, else by its last two balances; absent while unknown",
);

/// How long it lasts.
pub const BALANCE_TIME_LEFT: Descriptor = family(
    Gauge,
    Balances,
    "taffrail_balance_time_left_seconds",
    &["provider", "account", "currency"],
    "How long the balance lasts if it goes on as fast; absent while unknown",
);

/// Age of balances.
pub const BALANCE_LAST_SUCCESS: Descriptor = family(
    Gauge,
    Balances,
    "taffrail_balance_last_success_timestamp_seconds",
    &["provider", "account"],
    "When the balance was last read",
);

/// Whether the last reading succeeded.
pub const BALANCE_SYNC_UP: Descriptor = family(
    Gauge,
    Balances,
    "taffrail_balance_sync_up",
    &["provider", "account"],
    "1 if the last reading of the balance succeeded, 0 if it failed; absent where the provider tells none",
);

/// Readings of balances.
pub const BALANCE_SYNCS: Descriptor = family(
    Counter,
    Balances,
    "taffrail_balance_syncs_total",
    &["provider", "account", "result"],
    "Attempts to read a balance, by how they ended",
);

/// Duration of readings.
pub const BALANCE_SYNC_DURATION: Descriptor = family(
    Histogram,
    Balances,
    "taffrail_balance_sync_duration_seconds",
    &["provider", "account"],
    "How long reading a balance took, all its calls together",
)
.buckets(&[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]);

/// What can be expected of an account.
pub const ACCOUNT_STATE: Descriptor = family(
    Gauge,
    Balances,
    "taffrail_account_state",
    &["provider", "account", "state"],
    "1 for the state that an account is in, by its balance and by what its traffic shows; absent while nothing is known",
);

/// What providers billed.
pub const PROVIDER_SPEND: Descriptor = family(
    Gauge,
    Balances,
    "taffrail_provider_spend_usd",
    &["provider", "account", "window"],
    "What a provider says an account spent in the last closed UTC days; absent while a day of them is unknown",
);

/// What nobody metered.
pub const UNMETERED_SPEND: Descriptor = family(
    Gauge,
    Balances,
    "taffrail_unmetered_spend_usd",
    &["provider", "account", "window"],
    "The provider's bill less what the metered requests cost in the same days, negative if they cost more; absent while unknown",
);

/// The age of bills.
pub const RECONCILED_UNTIL: Descriptor = family(
    Gauge,
    Balances,
    "taffrail_reconciled_until_timestamp_seconds",
    &["provider", "account"],
    "The end of the last UTC day whose bill is known, which the windows end with",
);

/// Readings of bills.
pub const BILL_READS: Descriptor = family(
    Counter,
    Balances,
    "taffrail_bill_reads_total",
    &["provider", "account", "result"],
    "Attempts to read the bill of an account, by how they ended",
);

/// Receipts.
pub const RECEIPTS: Descriptor = family(
    Counter,
    Balances,
    "taffrail_receipts_total",
    &["provider", "account", "result"],
    "Rows of unknown or estimated cost that a provider was asked about, or was to be, by what became of them",
);

/// Questions for receipts.
pub const RECEIPT_CALLS: Descriptor = family(
    Counter,
    Balances,
    "taffrail_receipt_calls_total",
    &["provider", "account", "result"],
    "Questions to a provider what requests cost, by how they ended",
);

/// Size of the price book.
pub const PRICE_MODELS: Descriptor = family(
    Gauge,
    Upkeep,
    "taffrail_price_models",
    &["provider", "source"],
    "Models that the price book has a price for",
);

/// Age of prices.
pub const PRICE_LAST_SUCCESS: Descriptor = family(
    Gauge,
    Upkeep,
    "taffrail_price_last_success_timestamp_seconds",
    &["provider", "source"],
    "When prices were last fetched",
);

/// Price refreshes.
pub const PRICE_REFRESHES: Descriptor = family(
    Counter,
    Upkeep,
    "taffrail_price_refreshes_total",
    &["provider", "source", "result"],
    "Attempts to fetch prices",
);

/// Prices that wait for a person's word.
pub const PRICE_HELD_BACK: Descriptor = family(
    Gauge,
    Upkeep,
    "taffrail_price_held_back_concerns",
    &["provider", "source"],
    "What looks wrong about new prices that wait for `taffrail prices refresh --accept`",
);

/// What retention has dropped.
pub const RETENTION_DROPPED: Descriptor = family(
    Counter,
    Upkeep,
    "taffrail_retention_dropped_total",
    &["kind"],
    "What was older than its retention and was dropped: whole days of rows, and rows of the others",
);

/// Runs of scheduled tasks.
pub const SCHEDULE_RUNS: Descriptor = family(
    Counter,
    Upkeep,
    "taffrail_schedule_runs_total",
    &["task", "result"],
    "Runs of scheduled tasks",
);

/// Age of scheduled tasks.
pub const SCHEDULE_LAST_SUCCESS: Descriptor = family(
    Gauge,
    Upkeep,
    "taffrail_schedule_last_success_timestamp_seconds",
    &["task"],
    "When a scheduled task last succeeded",
);

/// Reviews of pods.
pub const INJECTOR_REVIEWS: Descriptor = family(
    Counter,
    Injection,
    "taffrail_injector_reviews_total",
    &["result"],
    "Admission reviews that the injector answered, by what became of the pod",
);

/// Warnings in reviews.
pub const INJECTOR_WARNINGS: Descriptor = family(
    Counter,
    Injection,
    "taffrail_injector_warnings_total",
    &[],
    "Warnings in the injector's answers: annotations that do not hold, pods that it leaves alone",
);

/// Expiry of the injector's certificate.
pub const INJECTOR_CERTIFICATE_EXPIRY: Descriptor = family(
    Gauge,
    Injection,
    "taffrail_injector_certificate_expiry_timestamp_seconds",
    &[],
    "When the certificate that the injector serves expires; absent while it has none",
);

/// Looks after the injector's certificate.
pub const INJECTOR_CERTIFICATE_CHECKS: Descriptor = family(
    Counter,
    Injection,
    "taffrail_injector_certificate_checks_total",
    &["result"],
    "Looks at the injector's certificate, its Secret and the webhook's configuration",
);

/// Limits on label values that bit.
pub const SERIES_LIMITED: Descriptor = family(
    Counter,
    Process,
    "taffrail_series_limited_total",
    &["limit"],
    "Observations counted under `other` because a limit on label values was reached",
);

/// Panics in meters.
pub const METER_PANICS: Descriptor = family(
    Counter,
    Process,
    "taffrail_meter_panics_total",
    &[],
    "Panics in meters, caught without harm to the request",
);

/// The build.
pub const BUILD_INFO: Descriptor = family(
    Gauge,
    Process,
    "taffrail_build_info",
    &["version"],
    "The running build, always 1",
);

/// CPU time of the process.
pub const PROCESS_CPU: Descriptor = family(
    Counter,
    Process,
    "process_cpu_seconds_total",
    &[],
    "User and system CPU time spent",
);

/// Resident memory.
pub const PROCESS_RESIDENT_MEMORY: Descriptor = family(
    Gauge,
    Process,
    "process_resident_memory_bytes",
    &[],
    "Resident memory",
);

/// Virtual memory.
pub const PROCESS_VIRTUAL_MEMORY: Descriptor = family(
    Gauge,
    Process,
    "process_virtual_memory_bytes",
    &[],
    "Virtual memory",
);

/// Open file descriptors.
pub const PROCESS_OPEN_FDS: Descriptor = family(
    Gauge,
    Process,
    "process_open_fds",
    &[],
    "Open file descriptors",
);

/// Limit of file descriptors.
pub const PROCESS_MAX_FDS: Descriptor = family(
    Gauge,
    Process,
    "process_max_fds",
    &[],
    "File descriptors that may be open",
);

/// Start of the process.
pub const PROCESS_START_TIME: Descriptor = family(
    Gauge,
    Process,
    "process_start_time_seconds",
    &[],
    "When the process started, in seconds since 1970",
);

/// Threads of the process.
pub const PROCESS_THREADS: Descriptor = family(Gauge, Process, "process_threads", &[], "Threads");

/// Every family, in the order of the exposition.
pub const ALL: &[&Descriptor] = &[
    &REQUESTS,
    &HTTP_RESPONSES,
    &REQUEST_DURATION,
    &TIME_TO_FIRST_TOKEN,
    &TIME_PER_OUTPUT_TOKEN,
    &JOB_DURATION,
    &JOBS_OPEN,
    &JOB_ENDS_WAITING,
    &JOBS_LIMITED,
    &OVERHEAD,
    &REQUESTS_IN_FLIGHT,
    &REQUEST_BYTES,
    &RESPONSE_BYTES,
    &RATELIMIT_REMAINING,
    &RATELIMIT_LIMIT,
    &REWRITES,
    &CONNECTIONS,
    &CONNECTIONS_REFUSED,
    &TLS_HANDSHAKE_FAILURES,
    &TLS_CERTIFICATE_EXPIRY,
    &UPSTREAM_RETRIES,
    &PROXY_ERRORS,
    &TOKENS,
    &UNITS,
    &COST,
    &SPEND,
    &CACHE_EFFECT,
    &UNPRICED_REQUESTS,
    &METERED_RESPONSES,
    &RECORDS,
    &JOURNAL_PENDING_RECORDS,
    &JOURNAL_BYTES,
    &JOURNAL_MAX_BYTES,
    &JOURNAL_OLDEST_RECORD_AGE,
    &JOURNAL_FSYNC_DURATION,
    &JOURNAL_FAULTS,
    &LATE_COMMITS,
    &STORE_UP,
    &STORE_BATCH_DURATION,
    &STORE_RETRIES,
    &BALANCE,
    &BALANCE_THRESHOLD,
    &BALANCE_BURN,
    &BALANCE_TIME_LEFT,
    &BALANCE_LAST_SUCCESS,
    &BALANCE_SYNC_UP,
    &BALANCE_SYNCS,
    &BALANCE_SYNC_DURATION,
    &ACCOUNT_STATE,
    &PROVIDER_SPEND,
    &UNMETERED_SPEND,
    &RECONCILED_UNTIL,
    &BILL_READS,
    &RECEIPTS,
    &RECEIPT_CALLS,
    &PRICE_MODELS,
    &PRICE_LAST_SUCCESS,
    &PRICE_REFRESHES,
    &PRICE_HELD_BACK,
    &RETENTION_DROPPED,
    &SCHEDULE_RUNS,
    &SCHEDULE_LAST_SUCCESS,
    &INJECTOR_REVIEWS,
    &INJECTOR_WARNINGS,
    &INJECTOR_CERTIFICATE_EXPIRY,
    &INJECTOR_CERTIFICATE_CHECKS,
    &SERIES_LIMITED,
    &METER_PANICS,
    &BUILD_INFO,
    &PROCESS_CPU,
    &PROCESS_RESIDENT_MEMORY,
    &PROCESS_VIRTUAL_MEMORY,
    &PROCESS_OPEN_FDS,
    &PROCESS_MAX_FDS,
    &PROCESS_START_TIME,
    &PROCESS_THREADS,
];

/// Taffrail's provider names and the values of `gen_ai.provider.name` for them. A name that the
/// conventions do not list stands for itself, as they allow.
///
/// Source: semantic-conventions-genai, registry attribute `gen_ai.provider.name`, read
/// 2026-11-24.
pub const PROVIDERS: &[(&str, &str)] = &[
    ("openai", "openai"),
    ("azure", "azure.ai.openai"),
    ("anthropic", "anthropic"),
    ("openrouter", "openrouter"),
    ("replicate", "replicate"),
    ("fal", "fal"),
    ("gemini", "gcp.gemini"),
    ("vertex", "gcp.vertex_ai"),
    ("bedrock", "aws.bedrock"),
    ("mistral", "mistral_ai"),
    ("groq", "groq"),
    ("deepseek", "deepseek"),
    ("xai", "x_ai"),
    ("together", "together"),
    ("fireworks", "fireworks"),
    ("cohere", "cohere"),
    ("perplexity", "perplexity"),
    ("moonshot", "moonshot_ai"),
    ("siliconflow", "siliconflow"),
    ("novita", "novita"),
    ("stepfun", "stepfun"),
    ("deepinfra", "deepinfra"),
    ("cerebras", "cerebras"),
    ("zai", "zai"),
    ("huggingface", "huggingface"),
    ("voyage", "voyage"),
    ("ollama", "ollama"),
    ("vllm", "vllm"),
    ("elevenlabs", "elevenlabs"),
    ("deepgram", "deepgram"),
    ("assemblyai", "assemblyai"),
    ("stability", "stability"),
    ("luma", "luma"),
    ("runway", "runway"),
    ("runpod", "runpod"),
];
