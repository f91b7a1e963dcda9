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

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::exporter::housekeeping::Retention;
use crate::exporter::{receipts, reconcile, schedule};
use crate::proxy::{self, AttributionConfig, MeterConfig, Providers, jobs};
use crate::{admin, injector, journal, metrics, store, telemetry};

pub use crate::exporter::account::{Account, TopUp};
pub use crate::secret::{REDACTED, Secret};
pub use load::{
    CONFIG_VARIABLE, DEFAULT_FILE, ENV_PREFIX, KeyPath, Loaded, Origin, Problem, Problems, Sources,
    load,
};
pub use reference::{json_schema, markdown};

/// Everything that can be configured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What this process does: everything on one machine, only the proxy beside an application,
    /// only the exporter, which does once for a fleet what runs by the clock, or only the injector,
    /// which puts the sidecar into pods of Kubernetes.
    pub role: Role,
    /// The proxy that applications talk to.
    pub proxy: proxy::Config,
    /// The listener for metrics, probes and administration.
    pub admin: admin::Config,
    /// The journal on local disk that records wait in until the store has them.
    pub journal: journal::Config,
    /// Where rows live.
    pub store: store::Config,
    /// Bounds of the metrics.
    pub metrics: metrics::Config,
    /// What is metered, and how.
    pub meter: MeterConfig,
    /// Labels that say for whom a request was made.
    pub attribution: AttributionConfig,
    /// Providers whose defaults are overridden, and further ones that are declared, by name.
    pub providers: Providers,
    /// Accounts whose balances are read.
    pub accounts: Vec<Account>,
    /// When periodic work runs. Where an expression names days of the month and days of the week,
    /// a day must be both.
    pub schedule: schedule::Config,
    /// How providers' bills are held against what was metered.
    pub reconcile: reconcile::Config,
    /// How providers are asked what requests cost whose cost is unknown or an estimate.
    pub receipts: receipts::Config,
    /// Asynchronous jobs: predictions, queued images, videos, background responses.
    pub jobs: jobs::Config,
    /// How long rows are kept.
    pub retention: Retention,
    /// The injector of the sidecar in Kubernetes.
    pub injector: injector::Config,
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
    /// Puts the sidecar into pods of Kubernetes.
    Injector,
}

impl Role {
    /// Its name in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::All => "all",
            Role::Sidecar => "sidecar",
            Role::Exporter => "exporter",
            Role::Injector => "injector",
        }
    }

    /// Whether it needs the keys of `accounts`.
    pub fn reads_balances(self) -> bool {
        matches!(self, Role::All | Role::Exporter)
    }

    /// Whether it relays traffic, and so has a journal.
    pub fn relays_traffic(self) -> bool {
        matches!(self, Role::All | Role::Sidecar)
    }
}

/// Prices beyond the embedded catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Prices {
    /// A file of prices that take precedence over the catalogue: negotiated rates, own models.
    pub overlay_file: Option<PathBuf>,
    /// How often a process looks in the store for versions that it does not have.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub poll_interval: Duration,
}

impl Default for Prices {
    fn default() -> Prices {
        Prices {
            overlay_file: None,
            poll_interval: Duration::from_mins(5),
        }
    }
}
