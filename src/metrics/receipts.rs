//! The metrics of receipts: what became of rows that providers were asked about.

use super::{Metrics, ReceiptResult, SyncResult};

impl Metrics {
    /// Starts the counters of an account's receipts at 0.
    pub fn receipts(&self, provider: &str, account: &str) {
        for result in ReceiptResult::ALL {
            self.receipt(provider, account, *result, 0);
        }
        for result in SyncResult::ALL {
            let labels = [provider, account, result.as_str()];
            self.families.receipt_calls.with(&labels);
        }
    }

    /// Counts rows of an account by what became of them.
    pub fn receipt(&self, provider: &str, account: &str, result: ReceiptResult, rows: u64) {
        let labels = [provider, account, result.as_str()];
        self.families.receipts.with(&labels).inc_by(rows);
    }

    /// Counts a question, with all of its pages.
    pub fn receipt_call(&self, provider: &str, account: &str, result: SyncResult) {
        let labels = [provider, account, result.as_str()];
        self.families.receipt_calls.with(&labels).inc();
    }
}
