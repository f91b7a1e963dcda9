//! Reading what is left in accounts.
//!
//! In: the accounts, a sender, a store. Out: rows, and the metrics of accounts. Each account is
//! read on its own: what one of them does, a hang or a panic included, concerns no other. A reading
//! belongs to a *slot*, the moment that the schedule names, by the clock of the store; an account
//! has one reading for each. In a fleet a lease says who reads, and the others show what the store
//! has. A holder that is gone is replaced when its lease has run out; one that wakes after that can
//! do no harm, since the slot has its reading already.
//!
//! `standing` says what it all comes to. A store that is away keeps nobody from reading; what could
//! not be kept is kept later.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use croner::Cron;
use rust_decimal::Decimal;
use serde::Serialize;
use tokio::task::JoinSet;

use super::account::Account;
use super::fetch::Fetcher;
use super::parts::Parts;
use super::schedule::cron_parser;
use super::standing::Known;
use super::traffic::{Claims, Share};
use super::trial::{self, Trial};
use crate::ask::{DETAIL_CHARS_MAX, Fault, FaultClass};
use crate::balance::{self, Balance, BalanceApi, BalanceKind, Next, Subject};
use crate::clock;
use crate::metrics::{AccountView, Level, SyncResult};
use crate::proxy::{Providers, fingerprint};
use crate::store::{
    AccountSignal, BalanceReading, DecimalSum, Dimension, Store, StoreError, UsageQuery, UsageRow,
};

/// The lease of whoever reads balances.
const LEASE: &str = "balances";

/// How many calls one account may need.
const CALLS_MAX: usize = 3;

/// How many accounts are read at a time.
const ACCOUNTS_AT_A_TIME: usize = 8;

/// How far back what traffic cost says how fast money goes.
const BURN_WINDOW: TimeDelta = TimeDelta::hours(24);

/// How far back refusals are looked for.
const SIGNALS_WINDOW: Duration = Duration::from_hours(24);

/// When balances are read, and what their ledgers rest on.
pub struct Config {
    /// When they are read: a cron expression of six fields.
    pub cron: String,
    /// How long rows are kept, which the ledgers of several accounts of a provider are made of.
    pub rows_kept: Duration,
}

/// Reads balances.
pub struct Balances {
    parts: Parts<Config>,
    cron: Option<Cron>,
    watched: Vec<Arc<Watched>>,
    state: Mutex<State>,
    /// Held by a run, so that there is one at a time.
    turn: tokio::sync::Mutex<()>,
}

/// An account and how its balance is had.
struct Watched {
    /// Its place among the accounts.
    index: usize,
    account: Account,
    source: Source,
    /// Whether its provider has no other account, so that all its traffic is this one's.
    is_alone: bool,
}

enum Source {
    /// By the vendor's API.
    Api {
        api: &'static dyn BalanceApi,
        /// Where its calls go, if not to the vendor's hosts.
        host: Option<String>,
        currency: String,
    },
    /// What was paid in less what the traffic cost.
    Ledger,
    /// Not at all, and why.
    None(&'static str),
}

#[derive(Default)]
struct State {
    known: BTreeMap<(String, String), Known>,
    shown: BTreeMap<(String, String), AccountView>,
    /// Readings that the store could not take, the last of each account.
    unkept: BTreeMap<(String, String), BalanceReading>,
    /// Whether a run of this process has come to its end.
    has_run: bool,
}

/// Which accounts are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only those of this provider.
    pub provider: Option<String>,
    /// Only those of this name.
    pub account: Option<String>,
}

impl Filter {
    /// Whether an account is meant.
    pub fn takes(&self, provider: &str, account: &str) -> bool {
        self.provider.as_deref().is_none_or(|own| own == provider)
            && self.account.as_deref().is_none_or(|own| own == account)
    }
}

/// A reading as the JSON of `POST /-/sync`.
#[derive(Debug, Serialize)]
pub struct SyncLine<'a> {
    provider: &'a str,
    account: &'a str,
    result: &'a str,
    balances: Vec<BalanceLine<'a>>,
    detail: Option<&'a str>,
    read_at: DateTime<Utc>,
}

#[derive(Debug, Serialize)]
struct BalanceLine<'a> {
    kind: &'static str,
    currency: &'a str,
    amount: Option<Decimal>,
}

impl<'a> SyncLine<'a> {
    /// The line of a reading.
    pub fn of(reading: &'a BalanceReading) -> SyncLine<'a> {
        let balance = |own: &'a Balance| BalanceLine {
            kind: own.kind.as_str(),
            currency: &own.currency,
            amount: own.amount.map(|amount| amount.normalize()),
        };
        SyncLine {
            provider: &reading.provider,
            account: &reading.account,
            result: &reading.result,
            balances: reading.balances.iter().map(balance).collect(),
            detail: reading.detail.as_deref(),
            read_at: reading.read_at,
        }
    }
}

/// Whether a reading is a failure: that a provider tells no balance is none.
pub fn is_failure(reading: &BalanceReading) -> bool {
    !reading.is_ok() && reading.result != FaultClass::Unsupported.as_str()
}

impl Balances {
    /// Shows nothing and asks nobody yet.
    pub fn new(parts: Parts<Config>) -> Balances {
        let watched: Vec<Arc<Watched>> = parts
            .accounts
            .iter()
            .enumerate()
            .map(|(index, account)| {
                let of_provider = |other: &&Account| other.provider == account.provider;
                let count = parts.accounts.iter().filter(of_provider).count();
                Arc::new(Watched {
                    index,
                    account: account.clone(),
                    source: source(account, &parts.providers),
                    is_alone: count == 1,
                })
            })
            .collect();
        for Watched { account, .. } in watched.iter().map(AsRef::as_ref) {
            let thresholds: Vec<(Level, Decimal)> = [
                (Level::Warning, account.warning_below),
                (Level::Critical, account.critical_below),
            ]
            .into_iter()
            .filter_map(|(level, amount)| Some((level, amount?)))
            .collect();
            parts
                .metrics
                .account(&account.provider, &account.name, &thresholds);
        }
        Balances {
            cron: cron_parser().parse(&parts.config.cron).ok(),
            parts,
            watched,
            state: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Reads what is due: every account that has no reading for the last moment of the schedule,
    /// and in the first run of a process those too whose reading failed. Then shows how all stand.
    ///
    /// # Errors
    /// When the store cannot be used, after all has been read and shown that can be; and when
    /// every account fails.
    pub async fn run(&self) -> anyhow::Result<()> {
        let _turn = self.turn.lock().await;
        let loaded = self.load().await;
        let now = match &loaded {
            Ok(now) => *now,
            Err(_) => clock::wall(),
        };
        let slot = self.slot(now);
        let due = self.due(slot);
        let mut outcome = loaded.map(drop);
        if !due.is_empty() {
            // A run ends within its timeout, and then has until half of it to be written down.
            let lasting = self.parts.timeout.mul_f32(1.5);
            let lease = self
                .parts
                .store
                .take_lease(LEASE, &self.parts.holder, lasting);
            // Without a store there is no fleet to agree with, and to ask twice does no harm.
            if lease.await.unwrap_or(true) {
                // Another one may have read while this one waited.
                if outcome.is_ok() {
                    outcome = self.load().await.map(drop);
                }
                let due = self.due(slot);
                let readings = self.read_all(due, Some(slot)).await;
                let (all, failed) = (readings.len(), readings.iter().filter(|it| is_failure(it)));
                let failed = failed.count();
                if all > 0 && failed == all {
                    anyhow::bail!("none of {all} balances could be read");
                }
            }
        }
        self.state().has_run = true;
        Ok(outcome?)
    }

    /// Reads accounts now, whatever the schedule says; by account.
    pub async fn sync(&self, filter: &Filter) -> Vec<BalanceReading> {
        let _turn = self.turn.lock().await;
        if let Err(error) = self.load().await {
            tracing::warn!(%error, "balances are read without what the store knows");
        }
        let wanted = self.watched.iter().filter(|it| {
            let Account { provider, name, .. } = &it.account;
            filter.takes(provider, name)
        });
        self.read_all(wanted.cloned().collect(), None).await
    }

    /// How many readings the store could not take.
    pub fn unkept(&self) -> usize {
        self.state().unkept.len()
    }

    /// Keeps what waits for the store, takes over what it has, and shows how all accounts stand.
    /// Returns the store's time.
    async fn load(&self) -> Result<DateTime<Utc>, StoreError> {
        let loaded = self.learn().await;
        self.show();
        loaded
    }

    async fn learn(&self) -> Result<DateTime<Utc>, StoreError> {
        let store = &self.parts.store;
        let now = store.now().await?;
        let waiting: Vec<BalanceReading> = self.state().unkept.values().cloned().collect();
        for reading in waiting {
            store.record_balance(&reading).await?;
            self.state().unkept.remove(&key(&reading));
        }
        let readings = store.latest_balances().await?;
        let signals = store.account_signals(SIGNALS_WINDOW).await?;
        let costs = costs(store, now - BURN_WINDOW).await?;
        let mut state = self.state();
        for reading in readings {
            state.known.entry(key(&reading)).or_default().take(reading);
        }
        for watched in &self.watched {
            let account = &watched.account;
            let known = state.known.entry(watched.key()).or_default();
            known.cost_per_hour = match costs.get(&account.provider) {
                Some(cost) if watched.is_alone => cost
                    .cost
                    .map(|cost| (cost / Decimal::from(BURN_WINDOW.num_hours())).round_dp(6)),
                _ => None,
            };
            let own = account.current_key().ok().flatten();
            let own = own.and_then(|own| fingerprint(&self.parts.pepper, own.expose()));
            let is_own = |signal: &&AccountSignal| {
                let is_same = own.is_some() && signal.key_fingerprint == own;
                signal.provider == account.provider && (is_same || watched.is_alone)
            };
            known.signals = signals.iter().filter(is_own).cloned().collect();
        }
        Ok(now)
    }

    /// The last moment of the schedule that is not after `now`.
    fn slot(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        // The library keeps the fraction of the second that it is given.
        let now = now.trunc_subsecs(0);
        let cron = self.cron.as_ref();
        cron.and_then(|cron| cron.find_previous_occurrence(&now, true).ok())
            .unwrap_or(now)
    }

    fn due(&self, slot: DateTime<Utc>) -> Vec<Arc<Watched>> {
        let state = self.state();
        let is_due = |watched: &&Arc<Watched>| {
            let known = state.known.get(&watched.key());
            let of_slot = known.map(|known| &known.readings[..]).unwrap_or_default();
            // One that was asked for since will do as well.
            let mut of_slot = of_slot.iter().filter(|own| own.slot >= slot);
            !of_slot.any(|own| own.is_ok() || state.has_run)
        };
        self.watched.iter().filter(is_due).cloned().collect()
    }

    /// Reads accounts beside each other; keeps and shows each as it comes.
    async fn read_all(
        &self,
        wanted: Vec<Arc<Watched>>,
        slot: Option<DateTime<Utc>>,
    ) -> Vec<BalanceReading> {
        let claims = Claims::of(&self.parts.accounts, &self.parts.pepper);
        let rows_kept = self.parts.config.rows_kept;
        let mut waiting = wanted.into_iter();
        let mut running = JoinSet::new();
        let mut names = BTreeMap::new();
        let mut readings = Vec::new();
        loop {
            while running.len() < ACCOUNTS_AT_A_TIME
                && let Some(watched) = waiting.next()
            {
                let (fetcher, store) = (self.parts.fetcher.clone(), self.parts.store.clone());
                let own = watched.key();
                let share = claims.share(watched.index).unwrap_or(Share::All);
                let handle = running.spawn(async move {
                    let ledger = (&store, &share, rows_kept);
                    watched.read(&fetcher, ledger).await
                });
                names.insert(handle.id(), own);
            }
            let Some(ended) = running.join_next_with_id().await else {
                break;
            };
            let (id, mut read) = match ended {
                Ok((id, read)) => (id, read),
                // Whatever the vendor sent: it concerns this account alone.
                Err(error) => (
                    error.id(),
                    Read::failed(Fault::malformed("it broke the reader")),
                ),
            };
            let Some((provider, account)) = names.remove(&id) else {
                continue;
            };
            let result = read.result();
            self.parts
                .metrics
                .balance_sync(&provider, &account, result, read.duration);
            let at = clock::wall();
            let reading = BalanceReading {
                provider,
                account,
                slot: slot.unwrap_or(at),
                read_at: at,
                result: result.as_str().to_owned(),
                balances: std::mem::take(&mut read.balances),
                detail: read.detail.take(),
                raw: read.raw.take(),
            };
            self.take(&reading).await;
            readings.push(reading);
        }
        readings.sort_by(|one, other| {
            (&one.provider, &one.account).cmp(&(&other.provider, &other.account))
        });
        readings
    }

    /// Keeps and shows a reading.
    async fn take(&self, reading: &BalanceReading) {
        let detail = reading.detail.as_deref();
        let (provider, account) = (&reading.provider, &reading.account);
        if is_failure(reading) {
            tracing::warn!(
                provider,
                account,
                result = reading.result,
                detail,
                "a balance could not be read; it is read again at the next time"
            );
        } else {
            tracing::debug!(
                provider,
                account,
                result = reading.result,
                detail,
                "read a balance"
            );
        }
        {
            let mut state = self.state();
            let known = state.known.entry(key(reading)).or_default();
            known.take(reading.clone());
        }
        if let Err(error) = self.parts.store.record_balance(reading).await {
            tracing::warn!(provider, account, %error, "a balance waits for the store");
            self.state().unkept.insert(key(reading), reading.clone());
        }
        self.show();
    }

    /// Shows how every account stands.
    fn show(&self) {
        let now = clock::wall();
        let mut state = self.state();
        let state = &mut *state;
        for watched in &self.watched {
            let own = watched.key();
            let Some(known) = state.known.get(&own) else {
                continue;
            };
            let view = known.view(now);
            let before = state.shown.entry(own).or_default();
            let Account { provider, name, .. } = &watched.account;
            self.parts
                .metrics
                .account_view(provider, name, before, &view);
            *before = view;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks for the balance of every account that an API tells one of, and keeps nothing.
pub async fn try_out(accounts: &[Account], providers: &Providers, fetcher: &Fetcher) -> Vec<Trial> {
    trial::each(accounts.iter().cloned(), |account| {
        let source = source(&account, providers);
        let fetcher = fetcher.clone();
        async move {
            match &source {
                Source::Ledger => {
                    Ok("kept as a ledger of top_ups less the traffic's cost".to_owned())
                }
                Source::None(why) => Err(Fault::new(FaultClass::Unsupported, *why)),
                Source::Api {
                    api,
                    host,
                    currency,
                } => {
                    let watched = Watched {
                        index: 0,
                        account,
                        source: Source::Ledger,
                        is_alone: true,
                    };
                    watched
                        .ask(*api, host.as_deref(), currency, &fetcher)
                        .await
                        .told()
                }
            }
        }
    })
    .await
}

fn key(reading: &BalanceReading) -> (String, String) {
    (reading.provider.clone(), reading.account.clone())
}

/// How a balance of an account is had.
fn source(account: &Account, providers: &Providers) -> Source {
    match balance::api(&account.provider) {
        Some(api) => {
            let settings = providers.get(&account.provider);
            let (host, currency) = balance::place(
                api,
                settings.and_then(|it| it.billing_url.as_deref()),
                settings.and_then(|it| it.upstream.as_deref()),
            );
            Source::Api {
                api,
                host: host.map(str::to_owned),
                currency: account
                    .currency
                    .clone()
                    .unwrap_or_else(|| currency.to_owned()),
            }
        }
        None if account.top_ups.is_empty() => Source::None(
            "this provider has no API that tells a balance; declare top_ups to keep a ledger",
        ),
        None => Source::Ledger,
    }
}

/// What came of reading an account.
struct Read {
    balances: Vec<Balance>,
    fault: Option<FaultClass>,
    detail: Option<String>,
    raw: Option<String>,
    duration: Duration,
}

impl Read {
    fn of(balances: Vec<Balance>) -> Read {
        Read {
            balances,
            fault: None,
            detail: None,
            raw: None,
            duration: Duration::ZERO,
        }
    }

    fn failed(fault: Fault) -> Read {
        Read {
            fault: Some(fault.class),
            detail: Some(fault.detail.chars().take(DETAIL_CHARS_MAX).collect()),
            ..Read::of(Vec::new())
        }
    }

    /// In a line.
    fn told(self) -> Result<String, Fault> {
        if let Some(class) = self.fault {
            return Err(Fault::new(class, self.detail.unwrap_or_default()));
        }
        let amount = |own: &Balance| match own.amount {
            Some(amount) => format!(
                "{} {} ({})",
                amount.normalize(),
                own.currency,
                own.kind.as_str()
            ),
            None => format!("no limit ({})", own.kind.as_str()),
        };
        let balances: Vec<String> = self.balances.iter().map(amount).collect();
        Ok(balances.join(", "))
    }

    fn result(&self) -> SyncResult {
        match self.fault {
            None => SyncResult::Ok,
            Some(FaultClass::Auth) => SyncResult::Auth,
            Some(FaultClass::RateLimited) => SyncResult::RateLimited,
            Some(FaultClass::Timeout) => SyncResult::Timeout,
            Some(FaultClass::Unsupported) => SyncResult::Unsupported,
            Some(FaultClass::Error) => SyncResult::Error,
        }
    }
}

impl Watched {
    fn key(&self) -> (String, String) {
        (self.account.provider.clone(), self.account.name.clone())
    }

    async fn read(&self, fetcher: &Fetcher, ledger: (&Store, &Share, Duration)) -> Read {
        let began = clock::instant();
        let mut read = match &self.source {
            Source::Api {
                api,
                host,
                currency,
            } => self.ask(*api, host.as_deref(), currency, fetcher).await,
            Source::Ledger => match self.ledger(ledger).await {
                Ok(read) => read,
                Err(error) => Read::failed(Fault::new(FaultClass::Error, error.to_string())),
            },
            Source::None(why) => Read::failed(Fault::new(FaultClass::Unsupported, *why)),
        };
        read.duration = began.elapsed();
        read
    }

    /// Asks the vendor until it has told.
    async fn ask(
        &self,
        api: &dyn BalanceApi,
        host: Option<&str>,
        currency: &str,
        fetcher: &Fetcher,
    ) -> Read {
        let subject = Subject {
            billing_id: self.account.billing_id.as_deref(),
            currency,
        };
        let key = match self.account.current_key() {
            Ok(key) => key,
            Err(fault) => return Read::failed(fault),
        };
        let mut ask = match api.first(&subject) {
            Ok(ask) => ask,
            Err(fault) => return Read::failed(fault),
        };
        for _ in 0..CALLS_MAX {
            let answer = match fetcher.fetch(&ask, host, key.as_ref()).await {
                Ok(answer) => answer,
                Err(fault) => return Read::failed(fault),
            };
            let raw = balance::scrubbed(&answer.body, key.as_ref());
            match api.read(&subject, &ask, &answer) {
                Ok(Next::Ask(next)) => ask = next,
                Ok(Next::Balances(balances)) => {
                    let is_unlimited = balances.iter().any(|own| own.amount.is_none());
                    let detail = is_unlimited.then(|| "the key has no limit of its own".to_owned());
                    return Read {
                        detail,
                        raw,
                        ..Read::of(balances)
                    };
                }
                Err(fault) => {
                    let fault = fault.without(key.as_ref()).helped(api.key());
                    return Read {
                        raw,
                        ..Read::failed(fault)
                    };
                }
            }
        }
        Read::failed(Fault::malformed("it leads from call to call"))
    }

    /// What was paid in, less what the account's traffic cost since the first payment: since its hour
    /// where all of the provider's traffic is the account's.
    async fn ledger(
        &self,
        (store, share, rows_kept): (&Store, &Share, Duration),
    ) -> Result<Read, StoreError> {
        let unsupported =
            |detail: String| Ok(Read::failed(Fault::new(FaultClass::Unsupported, detail)));
        let top_ups = &self.account.top_ups;
        let now = store.now().await?;
        let since = top_ups.iter().map(|top_up| top_up.at).min().unwrap_or(now);
        let provider = &self.account.provider;
        let cost = match share {
            Share::All => costs(store, since).await?.remove(provider),
            Share::Named(_) | Share::Own(_) => {
                let kept = TimeDelta::from_std(rows_kept).unwrap_or(TimeDelta::MAX);
                if now
                    .checked_sub_signed(kept)
                    .is_some_and(|first| since < first)
                {
                    return unsupported(format!(
                        "its traffic is told by its keys, from rows, which are kept for {} days: \
                         declare what was left at a later day as the first of top_ups",
                        kept.num_days()
                    ));
                }
                cost_of_keys(store, provider, (since, now), share).await?
            }
        };
        if cost.is_none() && matches!(share, Share::Own(_)) {
            return unsupported(
                "a ledger needs to know whose the traffic is, and the account's own key was not \
                 seen: name its keys in accounts[].key_fingerprints"
                    .to_owned(),
            );
        }
        let cost = cost.unwrap_or_default();
        let paid = top_ups
            .iter()
            .filter(|top_up| top_up.at <= now)
            .fold(Decimal::ZERO, |sum, it| sum.saturating_add(it.amount));
        let currency = self.account.currency.as_deref().unwrap_or("USD");
        if currency != "USD" {
            return unsupported(format!(
                "costs are in USD, so a ledger in {currency} cannot be kept"
            ));
        }
        let unpriced = cost.unpriced_requests;
        let ledger = Balance {
            kind: BalanceKind::Ledger,
            currency: currency.to_owned(),
            amount: Some(paid.saturating_sub(cost.cost.unwrap_or_default())),
        };
        Ok(Read {
            detail: (unpriced > 0)
                .then(|| format!("{unpriced} requests of unknown cost are not taken off")),
            ..Read::of(vec![ledger])
        })
    }
}

/// What traffic has cost.
#[derive(Debug, Clone, Default)]
struct Cost {
    /// Of the requests whose cost is known, without what another party bills.
    cost: Option<Decimal>,
    unpriced_requests: i64,
}

/// What a provider's traffic of some keys has cost within a window; `None` if there was none.
async fn cost_of_keys(
    store: &Store,
    provider: &str,
    window: (DateTime<Utc>, DateTime<Utc>),
    share: &Share,
) -> Result<Option<Cost>, StoreError> {
    let seen = store.metered_spend(provider, window).await?;
    let own = seen
        .iter()
        .filter(|spend| share.has(spend.key_fingerprint.as_deref()));
    let cost = own.fold(None, |sum: Option<Cost>, spend| {
        let Cost {
            cost,
            unpriced_requests,
        } = sum.unwrap_or_default();
        let rounded = |sum: Option<DecimalSum>| sum.and_then(|sum| sum.rounded(12));
        let upstream = rounded(spend.cost_upstream_usd).unwrap_or_default();
        let charged = rounded(spend.cost_usd).map(|all| all.saturating_sub(upstream));
        Some(Cost {
            cost: match (cost, charged) {
                (Some(cost), Some(charged)) => Some(cost.saturating_add(charged)),
                (cost, charged) => cost.or(charged),
            },
            unpriced_requests: unpriced_requests.saturating_add(spend.unpriced_requests),
        })
    });
    Ok(cost)
}

/// What each provider's traffic has cost since the hour of `since`, as the sums know it: the
/// exporter need not be allowed to read rows.
async fn costs(store: &Store, since: DateTime<Utc>) -> Result<BTreeMap<String, Cost>, StoreError> {
    let seconds = since.timestamp().div_euclid(3_600) * 3_600;
    let rows = store
        .usage(&UsageQuery {
            since: DateTime::from_timestamp(seconds, 0).unwrap_or(since),
            by: vec![Dimension::Provider],
        })
        .await?;
    let cost = |row: UsageRow| {
        let provider = row.group.into_iter().next()??;
        let rounded = |sum: Option<DecimalSum>| sum.and_then(|sum| sum.rounded(12));
        let upstream = rounded(row.totals.cost_upstream_usd).unwrap_or_default();
        let cost = rounded(row.totals.cost_usd).map(|all| all.saturating_sub(upstream));
        let unpriced_requests = row.totals.unpriced_requests;
        Some((
            provider,
            Cost {
                cost,
                unpriced_requests,
            },
        ))
    };
    Ok(rows.into_iter().filter_map(cost).collect())
}
