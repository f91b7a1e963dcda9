//! The books of records by stage: counted as records move, shown as one moment.
//!
//! Counters that are read one by one show records in two places or in none. What moves a record
//! therefore counts it while the journal is locked, and a scrape copies the books while it is
//! locked as well. That they do not balance then means a fault, and is shown as it is.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::counter::Counter;

use super::series::Handles;
use super::vocabulary::{Reason, Stage};

/// Room for the records of every stage and reason.
const PLACES: usize = Stage::ALL.len() * Reason::ALL.len();

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
}
