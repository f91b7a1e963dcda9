//! What the tasks that ask providers about accounts have in common.

use std::sync::Arc;
use std::time::Duration;

use super::account::Account;
use super::fetch::Fetcher;
use crate::metrics::Metrics;
use crate::proxy::Providers;
use crate::store::Store;

/// What a task on accounts needs, with a configuration of its own.
pub struct Parts<Config> {
    /// The accounts.
    pub accounts: Vec<Account>,
    /// Where providers' calls go.
    pub providers: Providers,
    /// The sender.
    pub fetcher: Fetcher,
    /// Where rows, and what is read, are kept.
    pub store: Store,
    /// What is counted and shown in.
    pub metrics: Arc<Metrics>,
    /// How long a run may take.
    pub timeout: Duration,
    /// What this process is called in leases.
    pub holder: String,
    /// What keys the fingerprints of keys.
    pub pepper: String,
    /// The task's own.
    pub config: Config,
}
