//! How an account stands, from what is known of it: pure, so that every case can be tried.
//!
//! In: its last readings, what its traffic shows and what it cost. Out: an [`AccountView`]. What is
//! unknown stays unknown: no burn rate, no time left and no state is ever made up.

use chrono::{DateTime, TimeDelta, Utc};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use std::time::Duration;

use crate::ask::FaultClass;
use crate::balance::{Balance, BalanceKind};
use crate::fault::Outcome;
use crate::metrics::{AccountState, AccountView};
use crate::store::{AccountSignal, BalanceReading};

/// How long a provider counts as slowing an account down after it refused a request for that.
pub(super) const THROTTLED_FOR: TimeDelta = TimeDelta::minutes(5);

/// The longest time that is said to be left, in hours; what lasts longer is not used up at all.
const HOURS_LEFT_MAX: i64 = 24 * 365 * 10;

/// What is known of an account.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Known {
    /// The last readings, oldest first.
    pub(super) readings: Vec<BalanceReading>,
    /// What traffic shows of it.
    pub(super) signals: Vec<AccountSignal>,
    /// What its traffic cost in an hour of the last day, in US dollars, where that can be told.
    pub(super) cost_per_hour: Option<Decimal>,
}

impl Known {
    /// Takes in a reading; of each slot the one that succeeded, and of the past what is needed.
    pub(super) fn take(&mut self, reading: BalanceReading) {
        let same = |own: &BalanceReading| own.slot == reading.slot;
        match self.readings.iter_mut().find(|own| same(own)) {
            Some(own) if own.is_ok() => {}
            Some(own) => *own = reading,
            None => self.readings.push(reading),
        }
        self.readings.sort_by_key(|reading| reading.read_at);
        // The last two of each kind of end.
        for is_ok in [true, false] {
            let count = self.readings.iter().filter(|own| own.is_ok() == is_ok);
            let mut surplus = count.count().saturating_sub(2);
            self.readings.retain(|own| {
                let goes = own.is_ok() == is_ok && surplus > 0;
                surplus -= usize::from(goes);
                !goes
            });
        }
    }

    /// The last reading.
    pub(super) fn last(&self) -> Option<&BalanceReading> {
        self.readings.last()
    }

    /// The last reading that succeeded.
    pub(super) fn last_ok(&self) -> Option<&BalanceReading> {
        self.readings.iter().rev().find(|reading| reading.is_ok())
    }

    /// How the account stands at `now`.
    pub(super) fn view(&self, now: DateTime<Utc>) -> AccountView {
        let last_ok = self.last_ok();
        let balances = last_ok.map_or(&[][..], |reading| &reading.balances);
        let mut view = AccountView {
            balances: balances
                .iter()
                .filter_map(|own| Some((own.kind.as_str(), own.currency.clone(), own.amount?)))
                .collect(),
            last_success: last_ok.map(|reading| reading.read_at),
            is_up: match self.last() {
                Some(reading) if reading.result == FaultClass::Unsupported.as_str() => None,
                last => last.map(BalanceReading::is_ok),
            },
            state: self.state(now),
            ..AccountView::default()
        };
        for balance in balances {
            let Some(burn) = self.burn_per_hour(balance) else {
                continue;
            };
            view.burn_per_hour.push((balance.currency.clone(), burn));
            let age = last_ok.map_or(TimeDelta::zero(), |reading| now - reading.read_at);
            if let Some(left) = time_left(balance, burn, age) {
                view.time_left.push((balance.currency.clone(), left));
            }
        }
        view
    }

    /// What is spent of a balance in an hour: by the metered cost if it is in dollars, else by how
    /// much it fell between the last two readings. One that rose was topped up, which says nothing.
    fn burn_per_hour(&self, balance: &Balance) -> Option<Decimal> {
        if balance.currency == "USD"
            && let Some(cost) = self.cost_per_hour
        {
            return Some(cost);
        }
        let mut ok = self.readings.iter().rev().filter(|own| own.is_ok());
        let (last, before) = (ok.next()?, ok.next()?);
        let is_same = |own: &&Balance| own.kind == balance.kind && own.currency == balance.currency;
        let amount_before = before.balances.iter().find(is_same)?.amount?;
        let spent = amount_before.checked_sub(balance.amount?)?;
        let seconds = (last.read_at - before.read_at).num_seconds();
        if spent.is_sign_negative() || seconds <= 0 {
            return None;
        }
        let per_second = spent.checked_div(seconds.into())?;
        per_second
            .checked_mul(Decimal::from(3_600))
            .map(|rate| rate.round_dp(6))
    }

    /// What can be expected of the account: what the provider said last counts.
    fn state(&self, now: DateTime<Utc>) -> Option<AccountState> {
        let last_ok = self.last_ok();
        let has_money = last_ok.and_then(has_money);
        let of = |wanted: Outcome| {
            let signals = self.signals.iter().filter(move |own| own.outcome == wanted);
            signals.filter(|own| !own.is_over).map(|own| own.at).max()
        };
        // A balance that was read since and is not used up has mended it.
        let is_mended = |at: DateTime<Utc>| {
            has_money == Some(true) && last_ok.is_some_and(|reading| reading.read_at > at)
        };
        let holds = |at: Option<DateTime<Utc>>| at.is_some_and(|at| !is_mended(at));
        let last = self.last().filter(|reading| !reading.is_ok());
        let is_locked = |reading: &BalanceReading| {
            reading
                .detail
                .as_deref()
                .is_some_and(|detail| detail.contains("User is locked"))
        };
        let is_unpaid = |reading: &BalanceReading| {
            reading
                .detail
                .as_deref()
                .is_some_and(|detail| detail.starts_with("HTTP 402"))
        };
        if last.is_some_and(is_locked) || holds(of(Outcome::AccountLocked)) {
            return Some(AccountState::Locked);
        }
        if has_money == Some(false)
            || last.is_some_and(is_unpaid)
            || holds(of(Outcome::QuotaExhausted))
        {
            return Some(AccountState::Exhausted);
        }
        if of(Outcome::RateLimited).is_some_and(|at| now - at < THROTTLED_FOR) {
            return Some(AccountState::Throttled);
        }
        last_ok.map(|_| AccountState::Ok)
    }
}

/// Whether anything is left; `None` for a ledger, which may lack a top-up that nobody declared.
fn has_money(reading: &BalanceReading) -> Option<bool> {
    let told = reading.balances.iter();
    let mut told = told
        .filter(|own| own.kind != BalanceKind::Ledger)
        .peekable();
    told.peek()?;
    // Without limit is enough.
    Some(told.any(|own| own.amount.is_none_or(|amount| amount > Decimal::ZERO)))
}

/// How long a balance that was read `age` ago lasts; `None` if nothing is spent or nothing is known.
fn time_left(balance: &Balance, burn: Decimal, age: TimeDelta) -> Option<Duration> {
    let hours = balance.amount?.checked_div(burn)?;
    if hours > Decimal::from(HOURS_LEFT_MAX) {
        return None;
    }
    let seconds = hours.checked_mul(Decimal::from(3_600))?.to_f64()?;
    let left = seconds - age.as_seconds_f64();
    // What is used up lasts for no time, which is known.
    Some(Duration::from_secs_f64(left.max(0.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hour: u32) -> DateTime<Utc> {
        let text = format!("2026-11-24T{hour:02}:00:00Z");
        text.parse().unwrap()
    }

    fn reading(
        hour: u32,
        result: &str,
        amounts: &[(BalanceKind, &str, Option<i64>)],
    ) -> BalanceReading {
        BalanceReading {
            provider: "openrouter".to_owned(),
            account: "prod".to_owned(),
            slot: at(hour),
            read_at: at(hour),
            result: result.to_owned(),
            balances: amounts
                .iter()
                .map(|(kind, currency, amount)| Balance {
                    kind: *kind,
                    currency: (*currency).to_owned(),
                    amount: amount.map(Decimal::from),
                })
                .collect(),
            detail: None,
            raw: None,
        }
    }

    fn usd(hour: u32, amount: i64) -> BalanceReading {
        reading(hour, "ok", &[(BalanceKind::Prepaid, "USD", Some(amount))])
    }

    fn known(readings: impl IntoIterator<Item = BalanceReading>) -> Known {
        let mut known = Known::default();
        readings.into_iter().for_each(|reading| known.take(reading));
        known
    }

    fn signal(hour: u32, outcome: Outcome, is_over: bool) -> AccountSignal {
        AccountSignal {
            provider: "openrouter".to_owned(),
            key_fingerprint: None,
            outcome,
            at: at(hour),
            is_over,
        }
    }

    #[test]
    fn a_failure_keeps_the_balance_and_lets_it_age() {
        let view = known([usd(1, 20), reading(7, "timeout", &[])]).view(at(8));
        assert_eq!(
            view.balances,
            [("prepaid", "USD".to_owned(), Decimal::from(20))]
        );
        assert_eq!((view.last_success, view.is_up), (Some(at(1)), Some(false)));
        assert_eq!(view.state, Some(AccountState::Ok));
        assert_eq!(
            known([reading(7, "unsupported", &[])]).view(at(8)),
            AccountView::default()
        );
    }

    #[test]
    fn what_is_spent_is_told_by_cost_else_by_two_balances_and_never_made_up() {
        assert_eq!(known([usd(1, 20)]).view(at(1)).burn_per_hour, []);
        // Topped up.
        let risen = known([usd(1, 20), usd(7, 50)]).view(at(7));
        assert_eq!((risen.burn_per_hour, risen.time_left), (vec![], vec![]));
        let fallen = known([usd(1, 20), usd(7, 8)]).view(at(8));
        assert_eq!(fallen.burn_per_hour, [("USD".to_owned(), Decimal::from(2))]);
        let hours = |hours: u64| Duration::from_secs(hours * 3_600);
        // Four hours at seven, of which one has gone by.
        assert_eq!(fallen.time_left, [("USD".to_owned(), hours(3))]);
        let mut costed = known([usd(1, 20), usd(7, 8)]);
        costed.cost_per_hour = Some(Decimal::from(4));
        assert_eq!(costed.view(at(8)).time_left, [("USD".to_owned(), hours(1))]);
        // Used up since.
        assert_eq!(
            costed.view(at(12)).time_left,
            [("USD".to_owned(), hours(0))]
        );
        // Nothing is spent: for ever is no number.
        costed.cost_per_hour = Some(Decimal::ZERO);
        assert_eq!(costed.view(at(8)).time_left, []);
        // Metered dollars say nothing of credits.
        let mut credits = known([reading(
            7,
            "ok",
            &[(BalanceKind::Prepaid, "credits", Some(8))],
        )]);
        credits.cost_per_hour = Some(Decimal::from(4));
        assert_eq!(credits.view(at(8)).burn_per_hour, []);
    }

    #[test]
    fn the_state_is_what_was_shown_last() {
        let with = |readings: &[BalanceReading], signals: &[AccountSignal]| {
            let mut known = known(readings.iter().cloned());
            known.signals = signals.to_vec();
            known.view(at(8)).state
        };
        let nobody = reading(7, "unsupported", &[]);
        assert_eq!(with(&[], &[]), None);
        assert_eq!(with(&[usd(7, 0)], &[]), Some(AccountState::Exhausted));
        let refused = signal(6, Outcome::QuotaExhausted, false);
        assert_eq!(
            with(
                std::slice::from_ref(&nobody),
                std::slice::from_ref(&refused)
            ),
            Some(AccountState::Exhausted)
        );
        // A balance that was read since, or a request that succeeded since, has mended it.
        assert_eq!(
            with(&[usd(7, 5)], std::slice::from_ref(&refused)),
            Some(AccountState::Ok)
        );
        assert_eq!(
            with(&[usd(5, 5)], std::slice::from_ref(&refused)),
            Some(AccountState::Exhausted)
        );
        assert_eq!(
            with(&[usd(5, 5)], &[signal(6, Outcome::QuotaExhausted, true)]),
            Some(AccountState::Ok)
        );
        assert_eq!(
            with(&[usd(5, 5)], &[signal(6, Outcome::AccountLocked, false)]),
            Some(AccountState::Locked)
        );
        // Hours ago.
        assert_eq!(
            with(&[usd(5, 5)], &[signal(6, Outcome::RateLimited, false)]),
            Some(AccountState::Ok)
        );
        assert_eq!(
            with(&[usd(5, 5)], &[signal(8, Outcome::RateLimited, false)]),
            Some(AccountState::Throttled)
        );
        // What nobody declared may have been paid in.
        let ledger = reading(7, "ok", &[(BalanceKind::Ledger, "USD", Some(-1))]);
        assert_eq!(with(&[ledger], &[]), Some(AccountState::Ok));
        let no_limit = reading(7, "ok", &[(BalanceKind::KeyLimit, "USD", None)]);
        assert_eq!(with(&[no_limit], &[]), Some(AccountState::Ok));
        let mut locked = reading(7, "auth", &[]);
        locked.detail = Some("HTTP 403: User is locked. Reason: Exhausted balance.".to_owned());
        assert_eq!(with(&[usd(5, 5), locked], &[]), Some(AccountState::Locked));
    }
}
