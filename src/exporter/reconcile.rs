//! Reconciliation: what a provider billed for a day against what was metered on it. The difference
//! is traffic that nobody metered, or a wrong price.
//!
//! In: the accounts, a sender, a store. Out: a row for each account and UTC day, and gauges made of
//! the rows, so that they outlive a restart. Only closed days are asked for, some hours after their
//! end because bills come late, and recent ones are asked for again because vendors change them.
//! Each account is on its own: one that fails or hangs stops no other. What is unknown has no gauge
//! and no amount.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use rust_decimal::Decimal;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::account::Account;
use super::fetch::Fetcher;
use super::parts::Parts;
use super::traffic::{Claims, Share};
use super::trial::{self, Trial};
use crate::ask::{DETAIL_CHARS_MAX, Fault, FaultClass};
use crate::balance::BalanceKind;
use crate::bill::drop::{self, Payment, Snapshot};
use crate::bill::{self, BillApi, Period, midnight, next_day};
use crate::clock;
use crate::metrics::{BillView, BillWindow, SyncResult};
use crate::proxy::Providers;
use crate::store::{KeySpend, Metered, Reconciliation, StoreError};

/// The lease of whoever reconciles.
const LEASE: &str = "reconcile";

/// How many pages a bill may have: a page holds some days at least.
const PAGES_MAX: usize = 40;

/// How many accounts are read at a time.
const ACCOUNTS_AT_A_TIME: usize = 8;

/// How far back gauges look: the longest window, ended as long ago as a bill may be late.
const SHOWN_DAYS: u64 = 60;

/// How bills are held against what was metered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long after its end a UTC day is asked for, because bills come late.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub lag: Duration,
    /// How many closed days are asked for each time, because vendors change recent ones: 1 to 30.
    pub days: u32,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            lag: Duration::from_hours(6),
            days: 7,
        }
    }
}

/// Holds bills against what was metered.
pub struct Reconciler {
    parts: Arc<Parts<Config>>,
}

/// What was billed for days, each with the window that it counts for.
type Bill = BTreeMap<NaiveDate, Billed>;

struct Billed {
    window: (DateTime<Utc>, DateTime<Utc>),
    usd: Decimal,
    source: &'static str,
    detail: Option<String>,
}

impl Reconciler {
    /// Shows the accounts' counters and asks nobody yet.
    pub fn new(parts: Parts<Config>) -> Reconciler {
        for account in &parts.accounts {
            parts.metrics.bills(&account.provider, &account.name);
        }
        Reconciler {
            parts: Arc::new(parts),
        }
    }

    /// Reads the bills of the last closed days and shows what is known.
    ///
    /// # Errors
    /// When the store cannot be used, and when accounts failed, after all others were done.
    pub async fn run(&self) -> anyhow::Result<()> {
        let parts = &self.parts;
        let now = parts.now().await?;
        // What is known is shown before anybody is asked: a process may be new.
        self.show(now).await?;
        let Some(done) = parts.under_lease(LEASE, self.reconcile(now)).await? else {
            return Ok(());
        };
        let failed = done?;
        if failed > 0 {
            let all = parts.accounts.len();
            anyhow::bail!(
                "{failed} of {all} bills could not be read; `taffrail reconcile` says why"
            );
        }
        Ok(())
    }

    /// Reads, keeps and shows; returns how many accounts failed.
    async fn reconcile(&self, now: DateTime<Utc>) -> Result<usize, StoreError> {
        let period = period(now, &self.parts.config);
        let mut waiting = 0..self.parts.accounts.len();
        let mut running = JoinSet::new();
        let mut of_task = BTreeMap::new();
        let mut failed = 0;
        loop {
            while running.len() < ACCOUNTS_AT_A_TIME
                && let Some(index) = waiting.next()
            {
                let parts = self.parts.clone();
                let task = running.spawn(async move { of_account(&parts, index, period).await });
                of_task.insert(task.id(), index);
            }
            let Some(ended) = running.join_next_with_id().await else {
                return Ok(failed);
            };
            let (id, rows) = match ended {
                Ok((id, rows)) => (id, rows),
                // Whatever the vendor sent: it concerns this account alone.
                Err(error) => (error.id(), Err(Fault::malformed("it broke the reader"))),
            };
            let Some(index) = of_task.remove(&id) else {
                continue;
            };
            failed += usize::from(self.take(index, period, rows).await?);
            // Another one may be long in coming.
            self.show(now).await?;
        }
    }

    /// Keeps and counts what came of an account; returns whether it failed.
    async fn take(
        &self,
        index: usize,
        period: Period,
        rows: Result<Vec<Reconciliation>, Fault>,
    ) -> Result<bool, StoreError> {
        let Some(account) = self.parts.accounts.get(index) else {
            return Ok(false);
        };
        let (provider, name) = (&account.provider, &account.name);
        let (rows, result) = match rows {
            Ok(rows) => (rows, SyncResult::Ok),
            Err(fault) => {
                let result = SyncResult::of(fault.class);
                if result != SyncResult::Unsupported {
                    let detail = fault.detail.as_str();
                    tracing::warn!(
                        provider,
                        account = name,
                        result = result.as_str(),
                        detail,
                        "a bill could not be read; it is read again at the next time"
                    );
                }
                (failed_rows(account, period, &fault), result)
            }
        };
        self.parts.metrics.bill_read(provider, name, result);
        self.parts.store.record_reconciliations(&rows).await?;
        Ok(!matches!(result, SyncResult::Ok | SyncResult::Unsupported))
    }

    /// Shows what the store knows.
    async fn show(&self, now: DateTime<Utc>) -> Result<(), StoreError> {
        let since = now.date_naive() - Days::new(SHOWN_DAYS);
        let rows = self.parts.store.reconciliations(since).await?;
        for account in &self.parts.accounts {
            let is_own = |row: &&Reconciliation| {
                row.provider == account.provider && row.account == account.name
            };
            let own: BTreeMap<NaiveDate, &Reconciliation> = rows
                .iter()
                .filter(is_own)
                .filter(|row| row.provider_spend_usd.is_some())
                .map(|row| (row.day, row))
                .collect();
            let view = view(&own);
            self.parts
                .metrics
                .bill_view(&account.provider, &account.name, &view);
        }
        Ok(())
    }
}

/// The closed days that are asked for.
fn period(now: DateTime<Utc>, config: &Config) -> Period {
    let lag = TimeDelta::from_std(config.lag).unwrap_or(TimeDelta::MAX);
    let closed = now.checked_sub_signed(lag).unwrap_or_default();
    let to = closed.date_naive();
    let days = Days::new(u64::from(config.days.clamp(1, bill::DAYS_MAX)));
    Period {
        from: to.checked_sub_days(days).unwrap_or(to),
        to,
    }
}

/// What is shown of an account, by its days with a bill: windows that end with the last of them, and
/// that know every day.
fn view(days: &BTreeMap<NaiveDate, &Reconciliation>) -> BillView {
    let Some(last) = days.keys().next_back().copied() else {
        return BillView::default();
    };
    let mut view = BillView {
        until: Some(midnight(next_day(last))),
        ..BillView::default()
    };
    for window in BillWindow::ALL {
        let first = last - Days::new(window.days().saturating_sub(1));
        let rows: Vec<_> = days.range(first..=last).map(|(_, row)| *row).collect();
        if u64::try_from(rows.len()).is_ok_and(|count| count == window.days()) {
            let sum = |amounts: Option<Vec<Decimal>>| {
                amounts.map(|all| all.into_iter().fold(Decimal::ZERO, Decimal::saturating_add))
            };
            let spend = rows.iter().map(|row| row.provider_spend_usd).collect();
            let unmetered = rows.iter().map(|row| row.unmetered_usd()).collect();
            view.windows.push((*window, sum(spend), sum(unmetered)));
        }
    }
    view
}

/// The days of an account whose bill could not be read.
fn failed_rows(account: &Account, period: Period, fault: &Fault) -> Vec<Reconciliation> {
    let detail: String = fault.detail.chars().take(DETAIL_CHARS_MAX).collect();
    let row = |day| Reconciliation {
        provider: account.provider.clone(),
        account: account.name.clone(),
        day,
        window: (midnight(day), midnight(next_day(day))),
        read_at: clock::wall(),
        result: fault.class.as_str().to_owned(),
        source: None,
        provider_spend_usd: None,
        metered: None,
        detail: Some(detail.clone()),
    };
    period.days().map(row).collect()
}

/// The days of an account.
async fn of_account(
    parts: &Parts<Config>,
    index: usize,
    period: Period,
) -> Result<Vec<Reconciliation>, Fault> {
    let Some(account) = parts.accounts.get(index) else {
        return Ok(Vec::new());
    };
    let bill = match bill::api(&account.provider) {
        None => from_balances(parts, account, period).await?,
        Some(api) => match from_api(&parts.providers, &parts.fetcher, account, api, period).await {
            Ok(bill) => bill,
            // A balance may be told to a key that the bill is not told to.
            Err(fault) if matches!(fault.class, FaultClass::Auth | FaultClass::Unsupported) => {
                match from_balances(parts, account, period).await {
                    Ok(bill) => bill,
                    Err(_) => return Err(fault),
                }
            }
            Err(fault) => return Err(fault),
        },
    };
    let claims = Claims::of(&parts.accounts, &parts.pepper);
    let mut rows = Vec::with_capacity(bill.len());
    for (day, billed) in bill {
        let seen = parts
            .store
            .metered_spend(&account.provider, billed.window)
            .await
            .map_err(|error| Fault::new(FaultClass::Error, error.to_string()))?;
        let metered = metered(&seen, index, &claims);
        let detail = billed.detail.or_else(|| {
            metered.is_none().then(|| {
                "which of the provider's traffic is this account's is not known: name its keys in \
                 accounts[].key_fingerprints"
                    .to_owned()
            })
        });
        rows.push(Reconciliation {
            provider: account.provider.clone(),
            account: account.name.clone(),
            day,
            window: billed.window,
            read_at: clock::wall(),
            result: SyncResult::Ok.as_str().to_owned(),
            source: Some(billed.source.to_owned()),
            provider_spend_usd: Some(billed.usd),
            metered,
            detail,
        });
    }
    Ok(rows)
}

/// The bill as the vendor's API tells it, page by page.
async fn from_api(
    providers: &Providers,
    fetcher: &Fetcher,
    account: &Account,
    api: &dyn BillApi,
    period: Period,
) -> Result<Bill, Fault> {
    let Some(key) = account.bill_key()? else {
        let detail = format!(
            "there is no key to read its bill with: wanted is {}",
            api.key()
        );
        return Err(Fault::new(FaultClass::Unsupported, detail));
    };
    let settings = providers.get(&account.provider);
    let host = bill::place(
        api,
        settings.and_then(|it| it.billing_url.as_deref()),
        settings.and_then(|it| it.upstream.as_deref()),
    );
    let mut days: BTreeMap<NaiveDate, Decimal> = BTreeMap::new();
    let mut ask = api.first(period, account.billing_id.as_deref());
    for _ in 0..PAGES_MAX {
        let page = match fetcher.fetch(&ask, host, Some(&key)).await {
            Ok(answer) => api.read(period, &ask, &answer),
            Err(fault) => Err(fault),
        };
        let page = page.map_err(|fault| fault.without(Some(&key)).helped(api.key()))?;
        for (day, usd) in page.days {
            let sum = days.entry(day).or_default();
            *sum = sum.saturating_add(usd);
        }
        match page.next {
            Some(next) if next != ask => ask = next,
            Some(_) => return Err(Fault::malformed("a page leads to itself")),
            None => {
                let billed = |usd, day| Billed {
                    window: (midnight(day), midnight(next_day(day))),
                    usd,
                    source: api.name(),
                    detail: None,
                };
                return Ok(days
                    .into_iter()
                    .map(|(day, usd)| (day, billed(usd, day)))
                    .collect());
            }
        }
    }
    Err(Fault::malformed("the bill has no end"))
}

/// Asks for yesterday's bill of every account whose provider has an API of bills.
pub async fn try_out(accounts: &[Account], providers: &Providers, fetcher: &Fetcher) -> Vec<Trial> {
    let have_api = |account: &&Account| bill::api(&account.provider).is_some();
    trial::each(accounts.iter().filter(have_api).cloned(), |account| {
        let (providers, fetcher) = (providers.clone(), fetcher.clone());
        async move {
            let today = clock::wall().date_naive();
            let period = Period {
                from: today - Days::new(1),
                to: today,
            };
            let Some(api) = bill::api(&account.provider) else {
                return Err(Fault::new(FaultClass::Unsupported, "no bills"));
            };
            let bill = from_api(&providers, &fetcher, &account, api, period).await;
            match bill {
                Ok(_) => Ok(format!("{} answers", api.name())),
                // As when it is read by the clock: the key was not given for bills.
                Err(fault) if fault.class == FaultClass::Auth && !account.has_admin_key() => {
                    let detail = format!(
                        "{}; until there is an admin_key, bills are told from the balance, if there \
                         is one",
                        fault.detail
                    );
                    Err(Fault::new(FaultClass::Unsupported, detail))
                }
                Err(fault) => Err(fault),
            }
        }
    })
    .await
}

/// What a prepaid balance fell by, day by day.
async fn from_balances(
    parts: &Parts<Config>,
    account: &Account,
    period: Period,
) -> Result<Bill, Fault> {
    let unsupported = |detail: String| Fault::new(FaultClass::Unsupported, detail);
    let readings = parts
        .store
        .balance_readings(
            (&account.provider, &account.name),
            drop::reach(period.from, period.to),
        )
        .await
        .map_err(|error| Fault::new(FaultClass::Error, error.to_string()))?;
    let mut currencies = BTreeSet::new();
    let mut snapshots = Vec::new();
    for reading in &readings {
        let prepaid = reading
            .balances
            .iter()
            .filter(|own| own.kind == BalanceKind::Prepaid);
        for balance in prepaid {
            currencies.insert(balance.currency.as_str());
            snapshots.extend(balance.amount.map(|balance| Snapshot {
                at: reading.read_at,
                balance,
            }));
        }
    }
    let currency = match currencies.iter().collect::<Vec<_>>()[..] {
        [currency] => *currency,
        [] => {
            return Err(unsupported(
                "there is neither an API that tells the bill nor a prepaid balance to tell it from"
                    .to_owned(),
            ));
        }
        _ => return Err(unsupported("its balance has several currencies".to_owned())),
    };
    let rate = match (currency, account.usd_rate) {
        (_, Some(rate)) => rate,
        ("USD", None) => Decimal::ONE,
        (currency, None) => {
            return Err(unsupported(format!(
                "its balance is in {currency}: set accounts[].usd_rate, the US dollars for one of it"
            )));
        }
    };
    let payments: Vec<Payment> = account
        .top_ups
        .iter()
        .map(|own| Payment {
            at: own.at,
            amount: own.amount,
        })
        .collect();
    let mut bill = Bill::new();
    for day in period.days() {
        let Some(drop) = drop::of_day(day, &snapshots, &payments) else {
            continue;
        };
        let detail = (!drop.undeclared.is_zero()).then(|| {
            format!(
                "the balance rose by {} {currency} that no top_ups declare: what was spent \
                 meanwhile is missing from the bill",
                drop.undeclared.normalize()
            )
        });
        bill.insert(
            day,
            Billed {
                window: (drop.from, drop.to),
                usd: drop.spent.saturating_mul(rate),
                source: "balance",
                detail,
            },
        );
    }
    if bill.is_empty() {
        return Err(unsupported(
            "there are not yet balance readings at the beginning and the end of a day".to_owned(),
        ));
    }
    Ok(bill)
}

/// What was seen of an account's traffic; `None` if nobody can tell which it is.
fn metered(seen: &[KeySpend], index: usize, claims: &Claims<'_>) -> Option<Metered> {
    let share = claims.share(index)?;
    let key = |spend: &KeySpend| spend.key_fingerprint.clone();
    let is_own = |spend: &&KeySpend| share.has(key(spend).as_deref());
    let mine: Vec<&KeySpend> = seen.iter().filter(is_own).collect();
    // Its silence says nothing.
    if mine.is_empty() && matches!(share, Share::Own(_)) {
        return None;
    }
    let is_claimed = |spend: &KeySpend| claims.is_claimed(index, key(spend).as_deref());
    let unclaimed = seen.iter().filter(|it| !is_own(it) && !is_claimed(it));
    let count = |length: usize| i32::try_from(length).unwrap_or(i32::MAX);
    let amounts = |of: fn(&KeySpend) -> Option<crate::store::DecimalSum>| {
        let known = mine.iter().filter_map(|spend| of(spend)?.rounded(18));
        known.reduce(Decimal::saturating_add)
    };
    let (all, upstream) = (
        amounts(|spend| spend.cost_usd),
        amounts(|spend| spend.cost_upstream_usd),
    );
    let unpriced_requests = mine.iter().map(|spend| spend.unpriced_requests).sum();
    let cost_usd = match all {
        Some(all) => Some(all.saturating_sub(upstream.unwrap_or_default())),
        // Nothing was seen that costs something.
        None if unpriced_requests == 0 => Some(Decimal::ZERO),
        None => None,
    };
    Some(Metered {
        cost_usd,
        upstream_usd: upstream.filter(|upstream| !upstream.is_zero()),
        requests: mine.iter().map(|spend| spend.requests).sum(),
        unpriced_requests,
        keys: count(
            mine.iter()
                .filter(|it| it.key_fingerprint.is_some())
                .count(),
        ),
        unclaimed_keys: count(unclaimed.count()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::fingerprint;
    use crate::secret::Secret;

    #[test]
    fn a_day_is_asked_for_once_its_lag_is_over() {
        let config = Config::default();
        let period = |now: &str| {
            let Period { from, to } = period(now.parse().unwrap(), &config);
            format!("{from} {to}")
        };
        assert_eq!(period("2026-11-24T05:59:59Z"), "2026-11-16 2026-11-23");
        assert_eq!(period("2026-11-24T06:00:00Z"), "2026-11-17 2026-11-24");
    }

    fn spend(key: Option<&str>, cost: Option<&str>, upstream: Option<&str>) -> KeySpend {
        KeySpend {
            key_fingerprint: key.map(str::to_owned),
            requests: 2,
            unpriced_requests: i64::from(cost.is_none()),
            cost_usd: cost.map(|text| text.parse().unwrap()),
            cost_upstream_usd: upstream.map(|text| text.parse().unwrap()),
        }
    }

    #[test]
    fn traffic_is_an_accounts_by_its_keys_or_because_there_is_no_other() {
        let account = |key: &str, fingerprints: &[&str]| Account {
            provider: "openrouter".to_owned(),
            name: key.to_owned(),
            api_key: Some(Secret::new(key)),
            key_fingerprints: Some(fingerprints.join(" ")),
            ..Account::default()
        };
        let own = fingerprint("", "own").unwrap();
        let seen = [
            spend(Some("a"), Some("3"), Some("1")),
            spend(Some(&own), Some("10"), None),
            spend(None, None, None),
        ];
        let told = |accounts: &[Account]| {
            let own = metered(&seen, 0, &Claims::of(accounts, ""))?;
            let text = |amount: Option<Decimal>| amount.map(|own| own.to_string());
            Some((
                text(own.cost_usd),
                text(own.upstream_usd),
                (own.requests, own.unpriced_requests),
                (own.keys, own.unclaimed_keys),
            ))
        };
        let some = |amount: &str| Some(amount.to_owned());
        // Alone, all is its own, whatever its key is.
        assert_eq!(
            told(&[account("management", &[])]),
            Some((some("12"), some("1"), (6, 1), (2, 0)))
        );
        // What another party bills is no part of it.
        assert_eq!(
            told(&[account("management", &["a"]), account("own", &[])]),
            Some((some("2"), some("1"), (2, 0), (1, 1)))
        );
        // Alone with keys, the others are nobody's.
        assert_eq!(
            told(&[account("management", &["a"])]),
            Some((some("2"), some("1"), (2, 0), (1, 2)))
        );
        // Its own key is one of the traffic's.
        assert_eq!(
            told(&[account("own", &[]), account("management", &[])]),
            Some((some("10"), None, (2, 0), (1, 2)))
        );
        // Nobody can tell.
        assert_eq!(
            told(&[account("management", &[]), account("other", &[])]),
            None
        );
        // A key that was named and not seen has spent nothing here.
        assert_eq!(
            told(&[account("management", &["c"]), account("other", &["d"])]),
            Some((some("0"), None, (0, 0), (0, 3)))
        );
    }
}
