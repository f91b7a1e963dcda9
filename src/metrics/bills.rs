//! The metrics of bills: what providers say was spent, and what of it nobody metered.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;

use super::families::{GaugeF64, LabelledFamily};
use super::{BillWindow, Metrics, SyncResult, set, timestamp_seconds};

/// What is shown of an account's bills. What is `None` or not listed is unknown, and has no series.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BillView {
    /// The end of the last day whose bill is known.
    pub until: Option<DateTime<Utc>>,
    /// What was billed in each window, and what of it was not metered.
    pub windows: Vec<(BillWindow, Option<Decimal>, Option<Decimal>)>,
}

impl Metrics {
    /// Starts the counters of an account's bills at 0.
    pub fn bills(&self, provider: &str, account: &str) {
        for result in SyncResult::ALL {
            let labels = [provider, account, result.as_str()];
            self.families.bill_reads.with(&labels);
        }
    }

    /// Counts a reading of an account's bill.
    pub fn bill_read(&self, provider: &str, account: &str, result: SyncResult) {
        let labels = [provider, account, result.as_str()];
        self.families.bill_reads.with(&labels).inc();
    }

    /// Shows an account's bills as they are known now.
    pub fn bill_view(&self, provider: &str, account: &str, view: &BillView) {
        let families = &self.families;
        for window in BillWindow::ALL {
            let labels = [provider, account, window.as_str()];
            let own = view.windows.iter().find(|(own, _, _)| own == window);
            let (spend, unmetered) = own.map_or((None, None), |(_, spend, rest)| (*spend, *rest));
            show(&families.provider_spend, &labels, spend);
            show(&families.unmetered_spend, &labels, unmetered);
        }
        let labels = [provider, account];
        match view.until {
            Some(until) => set(
                &families.reconciled_until,
                &labels,
                timestamp_seconds(until),
            ),
            None => families.reconciled_until.remove(&labels),
        }
    }
}

fn show(family: &LabelledFamily<GaugeF64>, labels: &[&str], amount: Option<Decimal>) {
    // The nearest float, for the exposition alone.
    match amount.and_then(|amount| amount.to_f64()) {
        Some(amount) => set(family, labels, amount),
        None => family.remove(labels),
    }
}
