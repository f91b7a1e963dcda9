//! Receipts: what providers say that requests cost whose cost nobody saw, such as a stream that was
//! broken off, or whose cost is an estimate.
//!
//! In: the accounts, a sender, a store. Out: rows with the cost that their provider states, their
//! sums, and a line in `api_cost_changes` for each. A cost that a provider stated is never asked for
//! again, and what it does not tell stays what it was. A row is asked about a while after its start,
//! and again after twice the time each, until it is told, asked about often enough, or too old.
//!
//! Each account is on its own, and asks with its own key about its own traffic.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::account::Account;
use super::fetch::Fetcher;
use super::parts::Parts;
use super::traffic::Claims;
use super::trial::{self, Trial};
use crate::ask::{Fault, FaultClass};
use crate::bill;
use crate::bill::receipt::{self, Receipt, ReceiptApi, Receipts};
use crate::clock;
use crate::metrics::{ReceiptResult, SyncResult};
use crate::money::Usd;
use crate::proxy::Providers;
use crate::record::CostSource;
use crate::store::{CostChange, ReceiptTry, StoreError, UncertainCost, UncertainQuery};

/// The lease of whoever asks for receipts.
const LEASE: &str = "receipts";

/// How many pages the receipts of one call may have.
const PAGES_MAX: usize = 20;

/// The longest time that receipts are asked for: fal tells of no more than 90 days at once.
pub const LOOKBACK_MAX: Duration = Duration::from_hours(24 * 89);

/// How providers are asked what requests cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long after its start a row is first asked about, because providers know later. The time
    /// to the next attempt is twice as long each.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub after: Duration,
    /// The age at which a row is asked about no more: 89 days at most.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub lookback: Duration,
    /// How often a row is asked about at most: 1 to 30.
    pub tries: u32,
    /// How many calls a run makes for an account at most; the rest waits for the next run. With 0 no
    /// receipts are asked for.
    pub calls_per_run: u32,
    /// How long is waited between two calls for an account.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub pause: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            after: Duration::from_mins(10),
            lookback: Duration::from_hours(24 * 7),
            tries: 8,
            calls_per_run: 200,
            pause: Duration::from_millis(250),
        }
    }
}

/// Asks for receipts.
pub struct Collector {
    parts: Arc<Parts<Config>>,
}

/// Why an account's receipts were not all asked for.
enum Stop {
    /// The provider did not answer as it should.
    Vendor(Fault),
    /// There is nothing to ask with.
    NoKey(Fault),
    Store(StoreError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Stop {
        Stop::Store(error)
    }
}

impl Collector {
    /// Shows the accounts' counters and asks nobody yet.
    pub fn new(parts: Parts<Config>) -> Collector {
        for account in &parts.accounts {
            if receipt::api(&account.provider).is_some() {
                parts.metrics.receipts(&account.provider, &account.name);
            }
        }
        Collector {
            parts: Arc::new(parts),
        }
    }

    /// Asks about the rows that are due.
    ///
    /// # Errors
    /// When the store cannot be used, and when accounts failed, after all others were done.
    pub async fn run(&self) -> anyhow::Result<()> {
        let parts = &self.parts;
        if parts.config.calls_per_run == 0 {
            return Ok(());
        }
        // Brings the schema up to date, if that is this process's to do.
        let now = parts.now().await?;
        let Some(failed) = parts.under_lease(LEASE, self.ask_each(now)).await? else {
            return Ok(());
        };
        anyhow::ensure!(
            failed.is_empty(),
            "receipts of {} were not all asked for",
            failed.join(", ")
        );
        Ok(())
    }

    /// Accounts beside each other; returns those that failed.
    async fn ask_each(&self, now: DateTime<Utc>) -> Vec<String> {
        let mut running = JoinSet::new();
        let mut failed = Vec::new();
        for (index, account) in self.parts.accounts.iter().enumerate() {
            let Some(api) = receipt::api(&account.provider) else {
                continue;
            };
            let parts = self.parts.clone();
            running.spawn(async move {
                let done = OfAccount::run(&parts, index, api, now).await;
                (index, done)
            });
        }
        while let Some(ended) = running.join_next().await {
            let (index, done) = match ended {
                Ok((index, done)) => (index, done),
                // Whatever the vendor sent: it concerns this account alone.
                Err(error) => {
                    tracing::error!(%error, "an answer broke the reader of receipts");
                    failed.push("an account".to_owned());
                    continue;
                }
            };
            let Some(account) = self.parts.accounts.get(index) else {
                continue;
            };
            let (provider, account) = (&account.provider, &account.name);
            match done {
                Ok(()) => continue,
                // An account may be there for its balance alone.
                Err(Stop::NoKey(fault)) => {
                    tracing::debug!(provider, account, %fault, "no receipts are asked for");
                    continue;
                }
                Err(Stop::Vendor(fault)) => tracing::warn!(
                    provider,
                    account,
                    result = fault.class.as_str(),
                    detail = fault.detail,
                    "receipts could not be read; they are asked for again at the next time"
                ),
                Err(Stop::Store(error)) => {
                    tracing::warn!(provider, account, %error, "receipts could not be kept");
                }
            }
            failed.push(format!("{provider}/{account}"));
        }
        failed
    }
}

/// Asking for the receipts of an account.
struct OfAccount<'a> {
    parts: &'a Parts<Config>,
    account: &'a Account,
    api: &'static dyn ReceiptApi,
    now: DateTime<Utc>,
}

impl OfAccount<'_> {
    async fn run(
        parts: &Parts<Config>,
        index: usize,
        api: &'static dyn ReceiptApi,
        now: DateTime<Utc>,
    ) -> Result<(), Stop> {
        let Some(account) = parts.accounts.get(index) else {
            return Ok(());
        };
        let own = OfAccount {
            parts,
            account,
            api,
            now,
        };
        let claims = Claims::of(&parts.accounts, &parts.pepper);
        let keys = claims.share(index).and_then(|share| {
            let keys = share.keys()?;
            Some(keys.iter().cloned().collect())
        });
        own.ask_all(keys).await
    }

    async fn ask_all(&self, keys: Option<Vec<String>>) -> Result<(), Stop> {
        let (config, metrics) = (&self.parts.config, &self.parts.metrics);
        let (provider, name) = (&self.account.provider, &self.account.name);
        let before = |age: Duration| {
            let age = TimeDelta::from_std(age).unwrap_or(TimeDelta::MAX);
            self.now.checked_sub_signed(age).unwrap_or_default()
        };
        let ids_per_call = self.api.ids_per_call();
        let calls = usize::try_from(config.calls_per_run).unwrap_or(usize::MAX);
        let limit = calls.saturating_mul(ids_per_call);
        let query = UncertainQuery {
            provider: provider.clone(),
            since: before(config.lookback.min(LOOKBACK_MAX)),
            until: before(config.after),
            keys,
            tries_max: config.tries,
            limit: u32::try_from(limit).unwrap_or(u32::MAX),
        };
        let found = self.parts.store.uncertain_costs(&query).await?;
        metrics.receipt(provider, name, ReceiptResult::Deferred, found.left);
        let (mut asked, mut nameless) = (Vec::new(), Vec::new());
        for mut row in found.rows {
            let (request_id, job_id) = (row.provider_request_id.take(), row.job_id.take());
            match self.api.id(request_id, job_id) {
                Some(id) => asked.push((id, row)),
                None => nameless.push(row),
            }
        }
        // They would be found again and again before those that can be asked about.
        self.note(nameless.iter(), |_| config.tries).await?;
        for (number, some) in asked.chunks(ids_per_call).enumerate() {
            if number > 0 {
                tokio::time::sleep(config.pause).await;
            }
            let ids: Vec<&str> = some.iter().map(|(id, _)| id.as_str()).collect();
            let since = some.iter().map(|(_, row)| row.started_at).min();
            let question = Question {
                account: self.account,
                api: self.api,
                ids: &ids,
                since: since.unwrap_or(self.now),
                pause: config.pause,
            };
            let asked = question
                .ask(&self.parts.providers, &self.parts.fetcher)
                .await;
            metrics.receipt_call(provider, name, call_result(&asked));
            let receipts = match asked {
                Ok(receipts) => receipts,
                Err(stop) => {
                    // One that breaks the answer must not stand before the others for ever.
                    if let Stop::Vendor(fault) = &stop
                        && matches!(fault.class, FaultClass::Error | FaultClass::Timeout)
                    {
                        self.note(some.iter().map(|(_, row)| row), one_more).await?;
                    }
                    return Err(stop);
                }
            };
            self.take(some, &receipts).await?;
        }
        Ok(())
    }

    /// Keeps what receipts say, and notes who was asked about for nothing.
    async fn take(
        &self,
        asked: &[(String, UncertainCost)],
        receipts: &Receipts,
    ) -> Result<(), StoreError> {
        let (mut changes, mut untold) = (Vec::new(), Vec::new());
        let (mut missing, mut unclear) = (0, 0);
        for (id, row) in asked {
            match receipts.of(id) {
                Receipt::Clear(cost) => changes.push(CostChange {
                    id: row.id,
                    day: row.day,
                    old_cost_usd: row.cost_usd,
                    cost_usd: cost.total.dollars(),
                    cost_upstream_usd: cost.upstream.map(Usd::dollars),
                    cost_source: CostSource::Provider,
                    price_version: None,
                }),
                Receipt::Unclear => {
                    unclear += 1;
                    untold.push(row);
                }
                Receipt::Missing => {
                    missing += 1;
                    untold.push(row);
                }
            }
        }
        let settled = match changes.is_empty() {
            true => 0,
            false => self.parts.store.state_costs(&changes).await?,
        };
        self.count(ReceiptResult::Settled, settled);
        self.count(ReceiptResult::Missing, missing);
        self.count(ReceiptResult::Unclear, unclear);
        self.note(untold.into_iter(), one_more).await
    }

    /// Notes that rows were asked about for nothing, and how often that makes.
    async fn note<'r>(
        &self,
        rows: impl Iterator<Item = &'r UncertainCost>,
        tries: impl Fn(u32) -> u32,
    ) -> Result<(), StoreError> {
        let config = &self.parts.config;
        let lookback = config.lookback.min(LOOKBACK_MAX);
        let tries: Vec<ReceiptTry> = rows
            .map(|row| {
                let tries = tries(row.tries);
                let factor = 2_u32.saturating_pow(tries);
                ReceiptTry {
                    id: row.id,
                    tries,
                    pause: config.after.saturating_mul(factor).min(lookback),
                }
            })
            .collect();
        if tries.is_empty() {
            return Ok(());
        }
        let given_up = tries.iter().filter(|own| own.tries >= config.tries).count();
        let lookback = TimeDelta::from_std(lookback).unwrap_or(TimeDelta::MAX);
        // A row that is older is not asked about, so that nothing need be known of it.
        let forget_before = self.now.checked_sub_signed(lookback).unwrap_or_default();
        self.parts
            .store
            .note_receipt_tries(&tries, forget_before)
            .await?;
        let given_up = u64::try_from(given_up).unwrap_or(u64::MAX);
        self.count(ReceiptResult::GivenUp, given_up);
        Ok(())
    }

    fn count(&self, result: ReceiptResult, rows: u64) {
        let (provider, name) = (&self.account.provider, &self.account.name);
        self.parts.metrics.receipt(provider, name, result, rows);
    }
}

/// What is asked about requests at once.
struct Question<'a> {
    account: &'a Account,
    api: &'static dyn ReceiptApi,
    ids: &'a [&'a str],
    /// When the first of them started.
    since: DateTime<Utc>,
    /// How long is waited before each further page.
    pause: Duration,
}

impl Question<'_> {
    /// Asks, to the last page of the answer.
    async fn ask(&self, providers: &Providers, fetcher: &Fetcher) -> Result<Receipts, Stop> {
        let key = match self.api.wants_admin_key() {
            true => self.account.bill_key(),
            false => self.account.current_key(),
        };
        let no_key = || {
            let detail = format!("there is no key to ask with: wanted is {}", self.api.key());
            Stop::NoKey(Fault::new(FaultClass::Unsupported, detail))
        };
        let key = key.map_err(Stop::Vendor)?.ok_or_else(no_key)?;
        let settings = providers.get(&self.account.provider);
        let host = bill::api(&self.account.provider).and_then(|api| {
            let billing_url = settings.and_then(|it| it.billing_url.as_deref());
            let upstream = settings.and_then(|it| it.upstream.as_deref());
            bill::place(api, billing_url, upstream)
        });
        let mut receipts = Receipts::default();
        let mut ask = self.api.first(self.ids, self.since);
        for page_number in 0..PAGES_MAX {
            if page_number > 0 {
                tokio::time::sleep(self.pause).await;
            }
            let page = match fetcher.fetch(&ask, host, Some(&key)).await {
                Ok(answer) => self.api.read(self.ids, &ask, &answer),
                Err(fault) => Err(fault),
            };
            let helped = |fault: Fault| fault.without(Some(&key)).helped(self.api.key());
            let page = page.map_err(|fault| Stop::Vendor(helped(fault)))?;
            page.lines.into_iter().for_each(|line| receipts.add(line));
            match page.next {
                None => return Ok(receipts),
                Some(next) if next == ask => break,
                Some(next) => ask = next,
            }
        }
        Err(Stop::Vendor(Fault::malformed("its pages have no end")))
    }
}

/// Asks the provider of every account that tells receipts about a request that nobody made.
pub async fn try_out(accounts: &[Account], providers: &Providers, fetcher: &Fetcher) -> Vec<Trial> {
    let have_api = |account: &&Account| receipt::api(&account.provider).is_some();
    trial::each(accounts.iter().filter(have_api).cloned(), |account| {
        let (providers, fetcher) = (providers.clone(), fetcher.clone());
        async move {
            let Some(api) = receipt::api(&account.provider) else {
                return Err(Fault::new(FaultClass::Unsupported, "no receipts"));
            };
            let question = Question {
                account: &account,
                api,
                ids: &[api.nobodys_id()],
                since: clock::wall(),
                pause: Duration::ZERO,
            };
            match question.ask(&providers, &fetcher).await {
                Ok(_) => Ok(format!("{} answers", api.name())),
                Err(Stop::Vendor(fault) | Stop::NoKey(fault)) => Err(fault),
                Err(Stop::Store(error)) => Err(Fault::new(FaultClass::Error, error.to_string())),
            }
        }
    })
    .await
}

fn one_more(tries: u32) -> u32 {
    tries.saturating_add(1)
}

fn call_result(asked: &Result<Receipts, Stop>) -> SyncResult {
    match asked {
        Ok(_) => SyncResult::Ok,
        Err(Stop::Vendor(fault) | Stop::NoKey(fault)) => SyncResult::of(fault.class),
        Err(Stop::Store(_)) => SyncResult::Error,
    }
}
