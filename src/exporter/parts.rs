//! What the tasks that ask providers about accounts have in common.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::account::Account;
use super::fetch::Fetcher;
use crate::metrics::Metrics;
use crate::proxy::Providers;
use crate::store::{Store, StoreError};

/// How much longer a lease lasts than a run may take.
const LEASE_MARGIN: Duration = Duration::from_secs(30);

/// How often the store is tried, and how long is waited after the first time; the wait doubles, to
/// two minutes in all.
const TRIES_MAX: u32 = 8;
const PAUSE_MIN: Duration = Duration::from_secs(1);

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

impl<Config> Parts<Config> {
    /// The store's time, once it answers: a store that starts beside this process is waited for,
    /// because the next run is hours away.
    pub(super) async fn now(&self) -> Result<DateTime<Utc>, StoreError> {
        let mut pause = PAUSE_MIN;
        for _ in 1..TRIES_MAX {
            match self.store.now().await {
                Err(error) if error.is_retryable() => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                told => return told,
            }
        }
        self.store.now().await
    }

    /// Does the work under a lease and gives it back, so that whoever comes next need not wait for
    /// its end; none while another process has it.
    pub(super) async fn under_lease<T>(
        &self,
        lease: &str,
        work: impl Future<Output = T>,
    ) -> Result<Option<T>, StoreError> {
        let lasting = self.timeout + LEASE_MARGIN;
        if !self.store.take_lease(lease, &self.holder, lasting).await? {
            return Ok(None);
        }
        let done = work.await;
        self.store
            .take_lease(lease, &self.holder, Duration::ZERO)
            .await?;
        Ok(Some(done))
    }
}
