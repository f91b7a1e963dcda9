//! Jobs whose processes are gone: what they told the store becomes a row after all.
//!
//! In: a store, the configuration of jobs, the price book. Out: rows. A process that lives settles
//! its jobs itself; what is found here has waited for longer than that takes. The id of a row is
//! that of its half and a job has one row, so several exporters, or a process that comes back, do
//! no harm.

use crate::metrics::Metrics;
use crate::price::CurrentBook;
use crate::proxy::jobs::{Config, row_of_halves};
use crate::store::{OverdueJob, Store, StoreError};

/// Records the jobs that wait in vain: for their other half since `join_grace`, or for their end
/// since the deadline that whoever submitted them has told, and the grace.
///
/// # Errors
/// [`StoreError::Unavailable`], [`StoreError::TimedOut`] or [`StoreError::Unusable`]; what was
/// recorded until then stays.
pub async fn record_overdue(
    store: &Store,
    config: &Config,
    prices: &CurrentBook,
    metrics: &Metrics,
) -> Result<(), StoreError> {
    loop {
        let mut recorded = 0;
        // Whoever submitted a job records it at the deadline itself, if it lives.
        for job in store.overdue_jobs(config.join_grace).await? {
            recorded += record(store, job, prices, metrics).await?;
        }
        if recorded == 0 {
            return Ok(());
        }
        tracing::info!(jobs = recorded, "recorded jobs whose processes are gone");
    }
}

/// Records a job; returns how many rows that made.
async fn record(
    store: &Store,
    job: OverdueJob,
    prices: &CurrentBook,
    metrics: &Metrics,
) -> Result<u64, StoreError> {
    let Some(record) = row_of_halves(&prices.load(), job.submit, job.end) else {
        return Ok(0);
    };
    let reason = match store.apply(std::slice::from_ref(&record)).await {
        Ok(applied) => match applied.rejected.first() {
            None => {
                if applied.stored > 0 {
                    metrics.observe(&record);
                }
                return Ok(applied.stored);
            }
            Some((_, rejection)) => rejection.to_string(),
        },
        Err(StoreError::Rejected(reason)) => reason,
        Err(error) => return Err(error),
    };
    let job_id = record.job_id;
    tracing::error!(job_id, reason, "a job cannot be recorded");
    Ok(0)
}
