//! The one door through which a settled request leaves traffic: metrics first, then journal.
//!
//! Nothing here can fail or wait for long. The append to the journal is one `write(2)`; what the
//! disk refuses the journal keeps in memory or counts as dropped.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::clock;
use crate::journal::{self, Journal};
use crate::metrics::{Metrics, Reason, Stage};
use crate::record::{Intent, UsageRecord};

/// An append that takes longer than this is counted as late: the response's end waited for it.
const COMMIT_WAIT_MAX: Duration = Duration::from_millis(5);

/// Where requests are entered when they start and when they end.
#[derive(Clone)]
pub struct Ledger {
    metrics: Arc<Metrics>,
    journal: Arc<Journal>,
}

impl Ledger {
    /// A ledger over these two.
    pub fn new(metrics: Arc<Metrics>, journal: Arc<Journal>) -> Ledger {
        Ledger { metrics, journal }
    }

    /// The metrics, for what is no record.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Notes that a request is under way, so that a crash leaves a trace of it. A request whose
    /// intent cannot be written goes on: only a crash during it would go unseen.
    pub fn begin(&self, intent: &Intent) {
        if let Err(error) = self.journal.intent(intent) {
            tracing::debug!(%error, "intent not written");
        }
    }

    /// Takes back what [`Ledger::begin`] noted: the request makes no row.
    pub fn abandon(&self, id: Uuid) {
        self.journal.abandon(id);
    }

    /// Enters a finished request that makes a row. It is counted while the journal takes it, so
    /// that a scrape sees it in all its places or in none.
    pub fn complete(&self, record: &UsageRecord) {
        self.metrics.observe(record);
        let started = clock::instant();
        let placed = self.journal.record_with(record, |placed| {
            self.metrics.records(Stage::Completed, Reason::None, 1);
            match placed {
                Ok(_) => self.metrics.records(Stage::Journaled, Reason::None, 1),
                Err(reason) => self.metrics.records(Stage::Dropped, dropped(reason), 1),
            }
        });
        if let Err(error) = placed {
            tracing::debug!(%error, id = %record.id, "record dropped");
        }
        if started.elapsed() > COMMIT_WAIT_MAX {
            self.metrics.late_commit();
        }
    }

    /// Enters a finished request that makes no row.
    pub fn count(&self, record: &UsageRecord) {
        self.metrics.observe(record);
    }
}

/// The counter's word for what the journal refused.
fn dropped(reason: journal::Reason) -> Reason {
    match reason {
        journal::Reason::JournalFull | journal::Reason::TooManyIntents => Reason::JournalFull,
        journal::Reason::DiskFull | journal::Reason::DiskError => Reason::JournalFailed,
        journal::Reason::TooLarge | journal::Reason::Unencodable => Reason::Unencodable,
    }
}
