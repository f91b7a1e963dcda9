//! Configuration: the sum of the parts' own `Config` types, and how it is loaded, checked and
//! shown.
//!
//! Defaults, then the file (`taffrail.toml`), then the environment (`TAFFRAIL_…`, `__` between
//! levels), then the command line; a later layer wins key by key. In: paths and variables that
//! the caller passes. Out: a [`Loaded`] configuration, or every problem in it at once.
//!
//! No other module imports this one except the wiring: a part is given its own `Config` and
//! never sees the rest. Nothing here prints a secret, whether the value is good or bad.
//!
//! The types are below; `load` has the layers and the problems, `validate` the rules that span
//! keys, `effective` the printed configuration, `reference` the documentation made from it.

mod effective;
mod load;
mod reference;
mod validate;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::telemetry;

pub use load::{
    CONFIG_VARIABLE, DEFAULT_FILE, ENV_PREFIX, KeyPath, Loaded, Origin, Problem, Problems, Sources,
    load,
};
pub use reference::{json_schema, markdown};

/// The providers that Taffrail knows by name, each with the upstream that is used unless
/// configuration says otherwise; `None` where there is no common one.
pub const BUILT_IN_PROVIDERS: &[(&str, Option<&str>)] = &[
    ("openai", Some("https://api.openai.com")),
    ("azure", None),
    ("anthropic", Some("https://api.anthropic.com")),
    ("openrouter", Some("https://openrouter.ai")),
    ("replicate", Some("https://api.replicate.com")),
    ("fal", Some("https://fal.run")),
];

/// Everything that can be configured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What this process does: everything on one machine, only the proxy beside an application,
    /// or only the exporter of balances and prices.
    pub role: Role,
    /// The proxy that applications talk to.
    pub proxy: Proxy,
    /// The listener for metrics, probes and administration.
    pub admin: Admin,
    /// The journal on local disk that records wait in until the store has them.
    pub journal: Journal,
    /// Where rows live.
    pub store: Store,
    /// What is metered, and how.
    pub meter: Meter,
    /// Labels that say for whom a request was made.
    pub attribution: Attribution,
    /// Providers whose defaults are overridden, and further ones that are declared, by name.
    pub providers: BTreeMap<String, Provider>,
    /// Accounts whose balances are read.
    pub accounts: Vec<Account>,
    /// When periodic work runs.
    pub schedule: Schedule,
    /// Asynchronous jobs: predictions, queued images, videos, background responses.
    pub jobs: Jobs,
    /// How long rows are kept.
    pub retention: Retention,
    /// Prices beyond the embedded catalogue.
    pub prices: Prices,
    /// Taffrail's own log, on standard error.
    pub log: telemetry::Config,
}

/// What this process does.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Both, for one machine.
    #[default]
    All,
    /// Proxy, meter, journal and drain.
    Sidecar,
    /// Balances, prices, reconciliation, partitions and retention.
    Exporter,
}

/// The proxy that applications talk to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Proxy {
    /// The address that applications send their requests to.
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// The URL at which applications reach the proxy, for job URLs that are pointed back at it.
    /// Unset, it is `http://` and the listen address.
    pub public_url: Option<String>,
    /// A second address, for SDKs that insist on https.
    #[schemars(with = "Option<String>")]
    pub tls_listen: Option<SocketAddr>,
    /// The certificate chain of `tls_listen`, in PEM. Unset, a local certificate authority is
    /// made.
    pub tls_cert_file: Option<PathBuf>,
    /// The private key of `tls_cert_file`, in PEM.
    pub tls_key_file: Option<PathBuf>,
    /// Further certificate authorities that upstreams may be signed by, in PEM, beside the usual
    /// public ones.
    pub upstream_ca_file: Option<PathBuf>,
    /// Connections from applications at a time; further ones wait to be accepted.
    pub connections_max: u32,
    /// The longest head of a request or response.
    #[schemars(with = "String")]
    pub head_bytes_max: ByteSize,
    /// How long name resolution, TCP and TLS to an upstream may take together.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub connect_timeout: Duration,
    /// How long an application may take to send a request's head.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub header_timeout: Duration,
    /// How long an upstream may stay silent before the request ends as `upstream_timeout`.
    /// Reasoning models are silent for minutes.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub idle_timeout: Duration,
    /// How long requests in flight may take to finish once the process is told to stop.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub shutdown_grace: Duration,
    /// Threads that relay traffic. Unset, there is one per CPU, up to 4.
    pub threads: Option<u16>,
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 4800)),
            public_url: None,
            tls_listen: None,
            tls_cert_file: None,
            tls_key_file: None,
            upstream_ca_file: None,
            connections_max: 10_000,
            head_bytes_max: ByteSize::kib(64),
            connect_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_mins(15),
            shutdown_grace: Duration::from_secs(300),
            threads: None,
        }
    }
}

/// The listener for metrics, probes and administration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// The address of `/metrics`, the probes and the landing page.
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// A file with the bearer token that state-changing requests from other machines need.
    /// Unset, such requests are refused.
    pub token_file: Option<PathBuf>,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 10480)),
            token_file: None,
        }
    }
}

/// The journal on local disk that records wait in until the store has them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Journal {
    /// The directory of the segments; made if it is missing.
    pub dir: PathBuf,
    /// Bytes that may wait on disk while the store is down; what does not fit is counted as
    /// dropped.
    #[schemars(with = "String")]
    pub max_bytes: ByteSize,
    /// The size at which a segment is closed and the next one opened.
    #[schemars(with = "String")]
    pub segment_bytes: ByteSize,
    /// How often appended records are forced to disk: what a power failure can cost.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub fsync_interval: Duration,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("./taffrail-data/journal"),
            max_bytes: ByteSize::gib(1),
            segment_bytes: ByteSize::mib(8),
            fsync_interval: Duration::from_millis(200),
        }
    }
}

/// Where rows live.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// `sqlite://` and a path, or `postgres://user:password@host/database`.
    pub url: String,
    /// A file that holds the URL, so that its password stays out of this file.
    pub url_file: Option<PathBuf>,
    /// Whether the schema is brought up to date at start.
    pub migrate: bool,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            url: "sqlite://./taffrail-data/taffrail.db".to_owned(),
            url_file: None,
            migrate: true,
        }
    }
}

/// What is metered, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Meter {
    /// Whether `stream_options.include_usage` is added to OpenAI-style streams that lack it, and
    /// the extra event is taken out of the answer.
    pub usage_injection: bool,
    /// Whether the absolute URLs of a job are pointed back at the proxy, so that polls and
    /// results stay metered.
    pub rewrite_job_urls: bool,
    /// What happens upstream when the application hangs up: `cancel` ends the call at once,
    /// `drain` reads the answer to its end, within limits.
    pub on_client_disconnect: OnClientDisconnect,
    /// Whether polls, listings and other control calls become rows of their own.
    pub control_rows: bool,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            usage_injection: true,
            rewrite_job_urls: true,
            on_client_disconnect: OnClientDisconnect::Cancel,
            control_rows: false,
        }
    }
}

/// What happens upstream when the application hangs up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnClientDisconnect {
    /// The upstream call ends at once: a meter must not change the bill.
    #[default]
    Cancel,
    /// The answer is read to its end, within limits, so that its usage is known.
    Drain,
}

/// Labels that say for whom a request was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Attribution {
    /// Labels with a fixed value, on every request of this process: `team = "search"`.
    pub r#static: BTreeMap<String, String>,
    /// Labels whose value comes from a request header: `feature = "x-taffrail-feature"`. The
    /// number of values is bounded; further ones count as `other`.
    pub headers: BTreeMap<String, String>,
}

/// A provider whose defaults are overridden, or one that is declared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Provider {
    /// The URL that requests go to; the path after the provider's name is appended. Needed for
    /// `azure` and for declared providers.
    pub upstream: Option<String>,
    /// The language that a declared provider speaks: `chat` is the OpenAI-compatible one.
    pub dialect: Option<Dialect>,
    /// The URL of the billing and price API, where it is another than the upstream.
    pub billing_url: Option<String>,
}

/// The language that a declared provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// OpenAI-compatible chat completions.
    Chat,
}

/// An account whose balance is read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Account {
    /// The provider's name. Required.
    pub provider: String,
    /// The account's name, as the `account` label. Required, and unique for the provider.
    pub name: String,
    /// The key that the balance is read with. Prefer `api_key_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub api_key: Option<Secret>,
    /// A file that holds the key.
    pub api_key_file: Option<PathBuf>,
}

/// When periodic work runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// When balances are read: a cron expression of six fields, the first one seconds, in UTC.
    pub balances: String,
    /// When prices are refreshed: a cron expression of six fields, in UTC.
    pub prices: String,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            balances: "0 0 */6 * * *".to_owned(),
            prices: "0 30 3 * * *".to_owned(),
        }
    }
}

/// Asynchronous jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Jobs {
    /// How long a job may go without anyone asking for its end before Taffrail asks itself.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub followup_after: Duration,
    /// How long the half of a job that one process saw waits for the half of another.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub join_grace: Duration,
    /// The age at which a job whose end was never seen is recorded as `unresolved`.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub deadline: Duration,
}

impl Default for Jobs {
    fn default() -> Self {
        Self {
            followup_after: Duration::from_mins(10),
            join_grace: Duration::from_hours(1),
            deadline: Duration::from_hours(24),
        }
    }
}

/// How long rows are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// The age at which a day of detailed rows is dropped.
    #[serde(with = "calendar")]
    #[schemars(with = "String")]
    pub logs: Duration,
    /// The age at which hour and day buckets are dropped.
    #[serde(with = "calendar")]
    #[schemars(with = "String")]
    pub aggregates: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            logs: 90 * calendar::DAY,
            aggregates: 3 * calendar::YEAR,
        }
    }
}

/// Prices beyond the embedded catalogue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Prices {
    /// A file of prices that take precedence over the catalogue: negotiated rates, own models.
    pub overlay_file: Option<PathBuf>,
}

/// A text that is shown nowhere.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

/// What is shown in place of a secret.
pub const REDACTED: &str = "[redacted]";

impl Secret {
    /// Wraps a secret text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one request that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

/// Durations of days and years, written as people write them (`90d`, `3y`) instead of in the
/// average months that `humantime` prefers.
mod calendar {
    use std::time::Duration;

    pub(super) use humantime_serde::deserialize;

    /// A day.
    pub(super) const DAY: Duration = Duration::from_hours(24);
    /// A year of 365.25 days, as `humantime` reads it.
    pub(super) const YEAR: Duration = Duration::from_secs(31_557_600);

    pub(super) fn serialize<S: serde::Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        for (unit, letter) in [(YEAR, 'y'), (DAY, 'd')] {
            let units = duration.as_secs() / unit.as_secs();
            let whole = Duration::from_secs(units.saturating_mul(unit.as_secs())) == *duration;
            if units > 0 && whole {
                return serializer.serialize_str(&format!("{units}{letter}"));
            }
        }
        humantime_serde::serialize(duration, serializer)
    }
}
