//! The metrics of accounts: what is left, how long it lasts, how reading it went.

use std::time::Duration;

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;

use super::families::{GaugeF64, LabelledFamily};
use super::{AccountState, Level, Metrics, SyncResult, set, timestamp_seconds};

/// What is shown of an account. What is `None` or not listed is unknown, and has no series.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AccountView {
    /// What is left, by kind and currency.
    pub balances: Vec<(&'static str, String, Decimal)>,
    /// What is spent in an hour, by currency.
    pub burn_per_hour: Vec<(String, Decimal)>,
    /// How long it lasts, by currency.
    pub time_left: Vec<(String, Duration)>,
    /// When it was last read.
    pub last_success: Option<DateTime<Utc>>,
    /// Whether the last reading succeeded.
    pub is_up: Option<bool>,
    /// What can be expected of it.
    pub state: Option<AccountState>,
}

impl Metrics {
    /// Shows the thresholds of an account, and starts its counters at 0.
    pub fn account(&self, provider: &str, account: &str, thresholds: &[(Level, Decimal)]) {
        for result in SyncResult::ALL {
            let labels = [provider, account, result.as_str()];
            self.families.balance_syncs.with(&labels);
        }
        for (level, amount) in thresholds {
            let labels = [provider, account, level.as_str()];
            set(&self.families.balance_threshold, &labels, float(*amount));
        }
    }

    /// Counts a reading of an account's balance.
    pub fn balance_sync(
        &self,
        provider: &str,
        account: &str,
        result: SyncResult,
        duration: Duration,
    ) {
        let families = &self.families;
        let syncs = &families.balance_syncs;
        syncs.with(&[provider, account, result.as_str()]).inc();
        let durations = families.balance_sync_duration.with(&[provider, account]);
        durations.observe(duration.as_secs_f64());
    }

    /// Shows an account as it is now, in place of how it was shown `before`.
    pub fn account_view(
        &self,
        provider: &str,
        account: &str,
        before: &AccountView,
        now: &AccountView,
    ) {
        let families = &self.families;
        for (kind, currency, _) in &before.balances {
            let is_gone =
                |(own, other, _): &(&str, String, Decimal)| (own, other) != (kind, currency);
            if now.balances.iter().all(is_gone) {
                let labels = [provider, account, kind, currency.as_str()];
                families.balance.remove(&labels);
            }
        }
        for (kind, currency, amount) in &now.balances {
            let labels = [provider, account, kind, currency.as_str()];
            set(&families.balance, &labels, float(*amount));
        }
        let burn: Vec<(&str, f64)> = now
            .burn_per_hour
            .iter()
            .map(|(currency, amount)| (currency.as_str(), float(*amount)))
            .collect();
        let left: Vec<(&str, f64)> = now
            .time_left
            .iter()
            .map(|(currency, time)| (currency.as_str(), time.as_secs_f64()))
            .collect();
        let place = [provider, account];
        let burnt = before.burn_per_hour.iter().map(|(currency, _)| currency);
        show(&families.balance_burn, place, burnt, &burn);
        let timed = before.time_left.iter().map(|(currency, _)| currency);
        show(&families.balance_time_left, place, timed, &left);
        let labels = [provider, account];
        if let Some(at) = now.last_success {
            let family = &families.balance_last_success;
            set(family, &labels, timestamp_seconds(at));
        }
        match now.is_up {
            Some(is_up) => set(
                &families.balance_sync_up,
                &labels,
                f64::from(u8::from(is_up)),
            ),
            None => families.balance_sync_up.remove(&labels),
        }
        for state in AccountState::ALL {
            let labels = [provider, account, state.as_str()];
            match now.state {
                Some(own) => {
                    let is_own = f64::from(u8::from(own == *state));
                    set(&families.account_state, &labels, is_own);
                }
                None => families.account_state.remove(&labels),
            }
        }
    }
}

/// Sets the series of an account by currency, and removes those that are no more.
fn show<'a>(
    family: &LabelledFamily<GaugeF64>,
    [provider, account]: [&str; 2],
    before: impl Iterator<Item = &'a String>,
    now: &[(&str, f64)],
) {
    for currency in before {
        if now.iter().all(|(own, _)| own != currency) {
            family.remove(&[provider, account, currency]);
        }
    }
    for (currency, value) in now {
        set(family, &[provider, account, currency], *value);
    }
}

/// The nearest float, for the exposition alone.
fn float(amount: Decimal) -> f64 {
    amount.to_f64().unwrap_or(f64::NAN)
}
