//! The books of records by stage: counted as records move, shown as one moment.
//!
//! What moves a record counts it a little before or after it moves, so counters that are read
//! one by one show records in two places or in none. A scrape therefore looks for a moment at
//! which the books balance, and shows that one. Books that never balance are shown as they are:
//! that they do not is what the laws are there to tell.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::counter::Counter;

use super::series::Handles;
use super::vocabulary::{Reason, Stage};

/// Room for the records of every stage and reason.
const PLACES: usize = Stage::ALL.len() * Reason::ALL.len();

/// How often a scrape looks for a moment at which the books balance.
pub(super) const LOOKS_MAX: u32 = 500;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Records {
    counted: [AtomicU64; PLACES],
    shown: Handles<Counter>,
}

/// The books at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Books([u64; PLACES]);

fn place(stage: Stage, reason: Reason) -> usize {
    stage as usize * Reason::ALL.len() + reason as usize
}

impl Records {
    pub(super) fn new() -> Records {
        Records {
            counted: [const { AtomicU64::new(0) }; PLACES],
            shown: Handles::new(PLACES),
        }
    }

    /// Counts records, which the next [`Records::show`] shows.
    pub(super) fn count(&self, stage: Stage, reason: Reason, count: u64) {
        if let Some(counted) = self.counted.get(place(stage, reason)) {
            counted.fetch_add(count, Ordering::SeqCst);
        }
    }

    pub(super) fn books(&self) -> Books {
        Books(
            self.counted
                .each_ref()
                .map(|counted| counted.load(Ordering::SeqCst)),
        )
    }

    /// Raises the counters to the books; `make` makes one that is not there. To be called by one
    /// at a time.
    pub(super) fn show(&self, books: Books, make: impl Fn(Stage, Reason) -> Counter) {
        for &stage in Stage::ALL {
            for &reason in Reason::ALL {
                let count = books.at(stage, reason);
                if count > 0
                    && let Some(shown) =
                        self.shown.get(place(stage, reason), || make(stage, reason))
                {
                    shown.inc_by(count.saturating_sub(shown.get()));
                }
            }
        }
    }
}

impl Books {
    /// The books with these records added that the journal could not read back.
    pub(super) fn with_unreadable(mut self, unreadable: u64) -> Books {
        if let Some(count) = self
            .0
            .get_mut(place(Stage::DeadLettered, Reason::Unreadable))
        {
            *count += unreadable;
        }
        self
    }

    fn at(&self, stage: Stage, reason: Reason) -> u64 {
        self.0
            .get(place(stage, reason))
            .copied()
            .unwrap_or_default()
    }

    fn stage(&self, stage: Stage) -> u64 {
        Reason::ALL
            .iter()
            .map(|&reason| self.at(stage, reason))
            .sum()
    }

    /// Whether both laws of docs/metrics.md hold.
    pub(super) fn balance(&self, pending: u64) -> bool {
        let recovered = self.at(Stage::Journaled, Reason::Recovered);
        let journaled = self.stage(Stage::Journaled);
        let beyond = [Stage::Stored, Stage::Duplicate, Stage::DeadLettered];
        let beyond: u64 = beyond.into_iter().map(|stage| self.stage(stage)).sum();
        self.stage(Stage::Completed) + recovered == journaled + self.stage(Stage::Dropped)
            && journaled == beyond + pending
    }
}
