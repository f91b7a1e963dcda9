//! The store's housekeeping: room for the rows of the days to come, and an end for what is older
//! than its retention.
//!
//! In: a store and [`Retention`]. Out: partitions, and rows, sums and readings of balances that are
//! gone, counted; a line in the log for each day of rows. Whole days go, by the store's clock, and the sums outlive the rows.
//! The store remembers which days are gone, so that a record which comes late is refused and never
//! counted twice.
//!
//! Each step is a short transaction that the drain need not wait for, and a run may end after any
//! of them: the next one goes on. Several processes may keep the same house.

use std::time::Duration;

use chrono::{Days, NaiveDate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::metrics::{Metrics, Retained};
use crate::store::{Store, StoreError};

/// How many days after today partitions are made for. Far more than the time between two runs, so
/// that an exporter may be away for a week before a batch has to make its own.
const DAYS_AHEAD: Days = Days::new(7);

/// How often a run goes round before it gives up, and how long it waits after the first time; the
/// wait doubles. Half a minute in all: long enough for a reader to finish, and the next run comes.
const ROUNDS_MAX: u32 = 6;
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// How long rows are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// The age at which a day of detailed rows is dropped. Its hour and day buckets stay.
    #[serde(with = "calendar")]
    #[schemars(with = "String")]
    pub logs: Duration,
    /// The age at which hour and day buckets are dropped.
    #[serde(with = "calendar")]
    #[schemars(with = "String")]
    pub aggregates: Duration,
    /// The age at which readings of balances are dropped: 31 days or more, since bills are told from
    /// them.
    #[serde(with = "calendar")]
    #[schemars(with = "String")]
    pub balances: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            logs: 90 * calendar::DAY,
            aggregates: 3 * calendar::YEAR,
            balances: 3 * calendar::YEAR,
        }
    }
}

/// Makes partitions ahead and drops what is too old. What the store cannot do just now, because
/// somebody reads or it is away, is tried again a few times.
///
/// # Errors
/// [`StoreError::Unavailable`], [`StoreError::Locked`] or [`StoreError::Unusable`]; what was done
/// until then stays done.
pub async fn keep_house(
    store: &Store,
    retention: &Retention,
    metrics: &Metrics,
) -> Result<(), StoreError> {
    let mut pause = PAUSE_MIN;
    for _ in 1..ROUNDS_MAX {
        match go_round(store, retention, metrics).await {
            Err(error) if error.is_retryable() => {
                tracing::info!(%error, "housekeeping goes on in a moment");
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            done => return done,
        }
    }
    go_round(store, retention, metrics).await
}

/// Does everything that is left to do. Rows come last, because a reader can hold them.
async fn go_round(
    store: &Store,
    retention: &Retention,
    metrics: &Metrics,
) -> Result<(), StoreError> {
    let today = store.today().await?;
    store.prepare_days(today, today + DAYS_AHEAD).await?;
    let before = first_kept(today, retention.aggregates);
    let mut buckets = 0;
    while let dropped @ 1.. = store.drop_aggregates(before).await? {
        buckets += dropped;
        metrics.retention_dropped(Retained::Aggregates, dropped);
    }
    if buckets > 0 {
        tracing::info!(buckets, %before, "dropped old sums");
    }
    let before = first_kept(today, retention.balances);
    let mut readings = 0;
    while let dropped @ 1.. = store.drop_balances(before).await? {
        readings += dropped;
        metrics.retention_dropped(Retained::Balances, dropped);
    }
    if readings > 0 {
        tracing::info!(readings, %before, "dropped old readings of balances");
    }
    let before = first_kept(today, retention.logs);
    // A job is remembered for as long as its row: so long, a late look at it makes no second one.
    while let dropped @ 1.. = store.drop_jobs(before).await? {
        metrics.retention_dropped(Retained::Jobs, dropped);
    }
    let mut last = None;
    while let Some(day) = store.drop_logs(before).await? {
        if last.replace(day) != Some(day) {
            metrics.retention_dropped(Retained::LogDays, 1);
            tracing::info!(%day, "drops the rows of a day; its sums stay");
        }
    }
    Ok(())
}

/// The first day that is kept: all that belongs to an earlier one is older than `age`.
fn first_kept(today: NaiveDate, age: Duration) -> NaiveDate {
    let days = age.as_secs().div_ceil(calendar::DAY.as_secs());
    let first = today.checked_sub_days(Days::new(days));
    // What is kept for longer than there are dates is kept for ever; a store need not know
    // the year -9000.
    first.unwrap_or_default().max(NaiveDate::default())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_kept_until_its_last_moment_is_old_enough() {
        let today: NaiveDate = "2026-11-24".parse().unwrap();
        for (age, first) in [
            (calendar::DAY, "2026-11-23"),
            (calendar::DAY + Duration::from_secs(1), "2026-11-22"),
            (90 * calendar::DAY, "2026-08-26"),
            (calendar::YEAR, "2025-11-23"),
            (1_000_000 * calendar::YEAR, "1970-01-01"),
            (Duration::MAX, "1970-01-01"),
        ] {
            assert_eq!(first_kept(today, age).to_string(), first, "{age:?}");
        }
    }
}
