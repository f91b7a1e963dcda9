//! The only reader of clocks, and the only maker of ids from them.

use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};
use tokio::time::Instant;
use uuid::Uuid;

/// The time of day, to the microsecond.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the wall clock"
)]
pub fn wall() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6)
}

/// A point in time for measuring durations; paused together with tokio's clock in tests.
pub fn instant() -> Instant {
    Instant::now()
}

/// A new UUIDv7 of now, monotonic within the process.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that makes ids from the clock"
)]
pub fn new_id() -> Uuid {
    Uuid::now_v7()
}

/// A duration in whole microseconds.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
