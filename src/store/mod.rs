//! The store: where settled records become rows, and where `taffrail usage` and `taffrail logs`
//! read them.
//!
//! Records go in by [`Store::apply`], in batches: one transaction inserts those whose id is new
//! and feeds the hour and day sums from exactly those, so that a batch may be replayed, overlap
//! another or hold a record twice, and the sums still equal the sums over the rows. Rows and
//! sums come out by [`Store::usage`] and [`Store::logs`].
//!
//! A store is never on the path of a request: only [`drain`] writes, and it can wait. Errors are
//! told apart by what the caller does about them: wait, split the batch, hold, or stop.

mod balances;
pub mod drain;
mod jobs;
mod postgres;
mod prices;
mod query;
mod receipts;
mod reconciliations;
mod row;
mod slot;
mod sqlite;
mod sum;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use uuid::Uuid;

use crate::record::UsageRecord;
use crate::usage::Unit;

pub use balances::{AccountSignal, BalanceReading};
pub use jobs::{JobNews, JobQuery, OverdueJob};
pub use postgres::Postgres;
pub use prices::{CostChange, CostQuery, NewPriceVersion, PriceRefresh, PriceVersion};
pub use query::{Dimension, LogQuery, ParseDimensionError, Totals, UsageQuery, UsageRow};
pub use receipts::{ReceiptTry, Uncertain, UncertainCost, UncertainQuery};
pub use reconciliations::{KeySpend, Metered, Reconciliation};
pub use row::{COLUMNS, Kind, LogRow, Rejection, TEXT_BYTES_MAX, TOKEN_COLUMNS, Value};
pub use sqlite::Sqlite;
pub use sum::{DecimalSum, ParseSumError};

/// The most rows that one statement inserts: enough to spread the cost of a statement, few
/// enough to stay far below the limit of 32,766 parameters.
const ROWS_PER_STATEMENT: usize = 50;

/// The most jobs that are recorded in the place of processes that are gone, at a time.
const OVERDUE_MAX: i32 = 500;

/// The most jobs that one call drops.
const JOBS_PER_DROP: i32 = 1_000;

/// The most rows of readings that one call drops.
const BALANCES_PER_DROP: i32 = 1_000;

/// Where rows are kept.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The database: `sqlite://` and the path of its file, which is created with its folder when
    /// the server starts, or `postgres://user@host:port/database`. Off this machine Postgres is
    /// spoken to over TLS with a verified certificate; `?sslrootcert=FILE` names a private CA.
    pub url: String,
    /// A file that holds `url`, for URLs with a password in them.
    pub url_file: Option<PathBuf>,
    /// Whether the server brings the schema up to date when it starts. Without it, run
    /// `taffrail migrate` after an update.
    pub migrate: bool,
    /// A file that holds the password of a Postgres URL without one. It is read for every
    /// new connection, so that a changed password needs no restart.
    pub password_file: Option<PathBuf>,
    /// How long connecting to Postgres may take.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub connect_timeout: Duration,
    /// How long a connection to Postgres is kept without use.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub idle_timeout: Duration,
    /// How long a statement waits for another process that holds a SQLite database, before the
    /// batch is tried again later.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub busy_timeout: Duration,
    /// How records move from the journal to the store.
    pub drain: drain::Config,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            url: "sqlite://./taffrail-data/taffrail.db".to_owned(),
            url_file: None,
            migrate: true,
            password_file: None,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_mins(1),
            busy_timeout: Duration::from_secs(5),
            drain: drain::Config::default(),
        }
    }
}

/// What became of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Rows inserted.
    pub stored: u64,
    /// Records whose id was there already, in the store or earlier in the batch, or whose job has
    /// its row.
    pub duplicates: u64,
    /// Records that cannot be rows: their index in the batch, and why.
    pub rejected: Vec<(usize, Rejection)>,
}

/// Why a store did not do what was asked; variants by what the caller does about it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Stop: the configuration cannot work.
    #[error("cannot use `store.url`: {0}")]
    Config(String),
    /// Stop: there is nothing to read yet.
    #[error(
        "no database at {} yet: start `taffrail run`, which creates it, or point `store.url` at \
         the one to read", .0.display()
    )]
    Missing(PathBuf),
    /// Try again later: the store is busy, unreachable or out of space.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// Try again later, with less: the store did not do it in the time that a call may take.
    #[error("the store is too slow: {0}")]
    TimedOut(String),
    /// Try again later: somebody else holds what the call needs alone.
    #[error("somebody else holds a lock: {0}")]
    Locked(String),
    /// Split the batch: it holds a record that the store cannot take.
    #[error("the store refuses the batch: {0}")]
    Rejected(String),
    /// Hold and call a human: the schema is not this version's, or the database is damaged.
    #[error("the store cannot be used until it is mended: {0}")]
    Unusable(String),
    /// Ask for another row.
    #[error("no row has the id {0}")]
    UnknownRow(Uuid),
}

impl StoreError {
    /// Whether the same call can succeed later without anyone's help.
    pub const fn is_retryable(&self) -> bool {
        matches!(
            self,
            StoreError::Unavailable(_) | StoreError::TimedOut(_) | StoreError::Locked(_)
        )
    }
}

/// A store of one kind or another.
#[derive(Debug, Clone)]
pub enum Store {
    /// A file on this machine.
    Sqlite(Sqlite),
    /// A server that many processes share.
    Postgres(Postgres),
}

impl Store {
    /// Opens the store for writing; creates it and brings its schema up to date if `config` says
    /// so.
    ///
    /// # Errors
    ///
    /// [`StoreError::Config`], [`StoreError::Unavailable`], [`StoreError::TimedOut`] or
    /// [`StoreError::Unusable`].
    pub async fn open(config: &Config) -> Result<Store, StoreError> {
        if is_postgres(&config.url) {
            return Postgres::open(config).await.map(Store::Postgres);
        }
        let path = sqlite_path(&config.url)?;
        Sqlite::open(path, config).await.map(Store::Sqlite)
    }

    /// A store that is opened for writing at its first use, as [`Store::open`] does: for a server,
    /// which must serve whatever state the store is in.
    ///
    /// # Errors
    ///
    /// [`StoreError::Config`].
    pub fn lazy(config: &Config) -> Result<Store, StoreError> {
        if is_postgres(&config.url) {
            return Postgres::lazy(config).map(Store::Postgres);
        }
        let path = sqlite_path(&config.url)?;
        Ok(Store::Sqlite(Sqlite::lazy(path, config)))
    }

    /// Opens the store for reading beside a server that writes.
    ///
    /// # Errors
    ///
    /// As [`Store::open`], and [`StoreError::Missing`] if there is no database yet.
    pub async fn open_read_only(config: &Config) -> Result<Store, StoreError> {
        if is_postgres(&config.url) {
            return Postgres::open_read_only(config).await.map(Store::Postgres);
        }
        let path = sqlite_path(&config.url)?;
        Sqlite::open_read_only(path, config)
            .await
            .map(Store::Sqlite)
    }

    /// Opens a store that is there already for writing.
    ///
    /// # Errors
    ///
    /// As [`Store::open`], and [`StoreError::Missing`] if there is no database yet.
    pub async fn open_existing(config: &Config) -> Result<Store, StoreError> {
        Store::open_read_only(config).await?.close().await;
        Store::open(config).await
    }

    /// Brings the schema up to date, for `taffrail migrate`; creates the store if need be.
    ///
    /// # Errors
    ///
    /// As [`Store::open`].
    pub async fn migrate(config: &Config) -> Result<(), StoreError> {
        let config = Config {
            migrate: true,
            ..config.clone()
        };
        Store::open(&config).await?.close().await;
        Ok(())
    }

    /// Inserts the records whose id is new and adds them to the sums, in one transaction.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`], [`StoreError::TimedOut`], [`StoreError::Rejected`] or
    /// [`StoreError::Unusable`]; nothing has been applied then, unless a connection broke while it
    /// committed: applying the batch again is right in any case.
    pub async fn apply(&self, records: &[UsageRecord]) -> Result<Applied, StoreError> {
        match self {
            Store::Sqlite(store) => store.apply(records).await,
            Store::Postgres(store) => store.apply(records).await,
        }
    }

    /// Makes the sums of a UTC day anew from its rows, in one transaction, and returns how many
    /// buckets it has now. Servers may write meanwhile.
    ///
    /// # Errors
    ///
    /// [`StoreError::Rejected`] if retention has dropped rows of the day,
    /// [`StoreError::Unavailable`] or [`StoreError::Unusable`].
    pub async fn backfill(&self, day: NaiveDate) -> Result<u64, StoreError> {
        match self {
            Store::Sqlite(store) => store.backfill(day).await,
            Store::Postgres(store) => store.backfill(day).await,
        }
    }

    /// The UTC day by the clock of the store, which is one for a fleet. Brings the schema up to
    /// date if that is wanted and needed.
    ///
    /// # Errors
    ///
    /// As [`Store::open`].
    pub async fn today(&self) -> Result<NaiveDate, StoreError> {
        match self {
            Store::Sqlite(store) => store.today().await,
            Store::Postgres(store) => store.today().await,
        }
    }

    /// Makes the partitions of the days from `first` to `last` that are missing, where the store
    /// has partitions.
    ///
    /// # Errors
    ///
    /// [`StoreError::Rejected`] if a day was dropped or lies too far ahead,
    /// [`StoreError::Unavailable`], [`StoreError::Locked`] or [`StoreError::Unusable`].
    pub async fn prepare_days(&self, first: NaiveDate, last: NaiveDate) -> Result<(), StoreError> {
        match self {
            // Its rows are in one table.
            Store::Sqlite(_) => Ok(()),
            Store::Postgres(store) => store.prepare_days(first, last).await,
        }
    }

    /// Drops rows of the oldest day before `before`, all or some of them, and says of which day;
    /// `None` if there are none left. Their sums stay, and from then on records of that day or an
    /// earlier one are refused.
    ///
    /// # Errors
    ///
    /// [`StoreError::Locked`] if somebody reads the rows, [`StoreError::Unavailable`] or
    /// [`StoreError::Unusable`].
    pub async fn drop_logs(&self, before: NaiveDate) -> Result<Option<NaiveDate>, StoreError> {
        match self {
            Store::Sqlite(store) => store.drop_logs(before).await,
            Store::Postgres(store) => store.drop_logs(before).await,
        }
    }

    /// Drops sums of buckets that start before a day, some of them; returns how many, which is 0
    /// if there are none left.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`], [`StoreError::Locked`] or [`StoreError::Unusable`].
    pub async fn drop_aggregates(&self, before: NaiveDate) -> Result<u64, StoreError> {
        match self {
            Store::Sqlite(store) => store.drop_aggregates(before).await,
            Store::Postgres(store) => store.drop_aggregates(before).await,
        }
    }

    /// Tells what this process knows of jobs, each of them once, and returns what others know of
    /// those whose end it does not tell.
    ///
    /// # Errors
    ///
    /// As [`Store::apply`]; the same may be told again.
    pub async fn exchange_jobs(&self, jobs: &[JobQuery]) -> Result<Vec<JobNews>, StoreError> {
        match self {
            Store::Sqlite(store) => store.exchange_jobs(jobs).await,
            Store::Postgres(store) => store.exchange_jobs(jobs).await,
        }
    }

    /// Some of the jobs without a row of which nothing new has come for `grace`, although their end
    /// was seen or their deadline is that long ago; oldest first.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`], [`StoreError::TimedOut`] or [`StoreError::Unusable`].
    pub async fn overdue_jobs(&self, grace: Duration) -> Result<Vec<OverdueJob>, StoreError> {
        match self {
            Store::Sqlite(store) => store.overdue_jobs(grace).await,
            Store::Postgres(store) => store.overdue_jobs(grace).await,
        }
    }

    /// Forgets jobs that got their row before a day, some of them; returns how many, which is 0
    /// if there are none left.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`], [`StoreError::Locked`] or [`StoreError::Unusable`].
    pub async fn drop_jobs(&self, before: NaiveDate) -> Result<u64, StoreError> {
        match self {
            Store::Sqlite(store) => store.drop_jobs(before).await,
            Store::Postgres(store) => store.drop_jobs(before).await,
        }
    }

    /// Drops readings of balances of before a day, some rows of them; returns how many, which is 0
    /// if there are none left.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`], [`StoreError::Locked`] or [`StoreError::Unusable`].
    pub async fn drop_balances(&self, before: NaiveDate) -> Result<u64, StoreError> {
        match self {
            Store::Sqlite(store) => store.drop_balances(before).await,
            Store::Postgres(store) => store.drop_balances(before).await,
        }
    }

    /// The versions of price lists after the one of that number, oldest first, some of them; none if
    /// there are no later ones.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::TimedOut`] or [`StoreError::Unusable`].
    pub async fn price_versions(&self, after: i64) -> Result<Vec<PriceVersion>, StoreError> {
        match self {
            Store::Sqlite(store) => store.price_versions(after).await,
            Store::Postgres(store) => store.price_versions(after).await,
        }
    }

    /// Keeps a version of a price list and returns its number; `None` if the source has a later
    /// version than the one that it changes.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::TimedOut`] or [`StoreError::Unusable`].
    pub async fn add_price_version(
        &self,
        version: &NewPriceVersion<'_>,
    ) -> Result<Option<i64>, StoreError> {
        match self {
            Store::Sqlite(store) => store.add_price_version(version).await,
            Store::Postgres(store) => store.add_price_version(version).await,
        }
    }

    /// Notes that a source of prices was read in full just now, and what of it is held back: the
    /// changes, and what looks wrong about them.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::TimedOut`] or [`StoreError::Unusable`].
    pub async fn note_price_refresh(
        &self,
        source: &str,
        held_back: Option<(&str, &str)>,
    ) -> Result<(), StoreError> {
        match self {
            Store::Sqlite(store) => store.note_price_refresh(source, held_back).await,
            Store::Postgres(store) => store.note_price_refresh(source, held_back).await,
        }
    }

    /// How it stands with the sources of prices, by name.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::TimedOut`] or [`StoreError::Unusable`].
    pub async fn price_refreshes(&self) -> Result<Vec<PriceRefresh>, StoreError> {
        match self {
            Store::Sqlite(store) => store.price_refreshes().await,
            Store::Postgres(store) => store.price_refreshes().await,
        }
    }

    /// Rows whose cost comes from a price list, or is unknown for lack of one: by start, then id,
    /// after those of the last call.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::TimedOut`] or [`StoreError::Unusable`].
    pub async fn costed_rows(
        &self,
        query: &CostQuery,
        after: Option<(DateTime<Utc>, Uuid)>,
        limit: u32,
    ) -> Result<Vec<LogRow>, StoreError> {
        match self {
            Store::Sqlite(store) => store.costed_rows(query, after, limit).await,
            Store::Postgres(store) => store.costed_rows(query, after, limit).await,
        }
    }

    /// Gives rows another cost, moves their sums along and keeps what was, in one transaction;
    /// returns how many rows changed. A row that has another cost by now is left alone, and one
    /// whose cost the provider stated in any case.
    ///
    /// # Errors
    /// As [`Store::apply`]; the same may be asked again.
    pub async fn recost(&self, changes: &[CostChange]) -> Result<u64, StoreError> {
        match self {
            Store::Sqlite(store) => store.recost(changes).await,
            Store::Postgres(store) => store.recost(changes).await,
        }
    }

    /// Rows whose cost is unknown or an estimate, and that their provider may know by an id.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::TimedOut`] or [`StoreError::Unusable`].
    pub async fn uncertain_costs(&self, query: &UncertainQuery) -> Result<Uncertain, StoreError> {
        match self {
            Store::Sqlite(store) => store.uncertain_costs(query).await,
            Store::Postgres(store) => store.uncertain_costs(query).await,
        }
    }

    /// As [`Store::recost`], for what providers state: for an exporter, which may do no more.
    ///
    /// # Errors
    /// As [`Store::apply`]; the same may be told again.
    pub async fn state_costs(&self, changes: &[CostChange]) -> Result<u64, StoreError> {
        match self {
            Store::Sqlite(store) => store.recost(changes).await,
            Store::Postgres(store) => store.state_costs(changes).await,
        }
    }

    /// Notes that providers were asked about rows and did not tell their cost, and forgets those that
    /// were not asked about since a moment.
    ///
    /// # Errors
    /// As [`Store::apply`]; the same may be told again.
    pub async fn note_receipt_tries(
        &self,
        tries: &[ReceiptTry],
        forget_before: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        match self {
            Store::Sqlite(store) => store.note_receipt_tries(tries, forget_before).await,
            Store::Postgres(store) => store.note_receipt_tries(tries, forget_before).await,
        }
    }

    /// The time by the clock of the store, which is one for a fleet. Brings the schema up to date
    /// if that is wanted and needed.
    ///
    /// # Errors
    ///
    /// As [`Store::open`].
    pub async fn now(&self) -> Result<DateTime<Utc>, StoreError> {
        match self {
            Store::Sqlite(store) => store.now().await,
            Store::Postgres(store) => store.now().await,
        }
    }

    /// Takes or keeps a lease for `lasting` by the clock of the store; whether `holder` has it now.
    /// A file on one machine has one exporter, which always does.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`], [`StoreError::TimedOut`] or [`StoreError::Unusable`].
    pub async fn take_lease(
        &self,
        name: &str,
        holder: &str,
        lasting: Duration,
    ) -> Result<bool, StoreError> {
        match self {
            Store::Sqlite(_) => Ok(true),
            Store::Postgres(store) => store.take_lease(name, holder, lasting).await,
        }
    }

    /// Keeps a reading of an account, once for its slot; whether it was taken. One that succeeded
    /// takes the place of one that did not.
    ///
    /// # Errors
    ///
    /// As [`Store::apply`].
    pub async fn record_balance(&self, reading: &BalanceReading) -> Result<bool, StoreError> {
        match self {
            Store::Sqlite(store) => store.record_balance(reading).await,
            Store::Postgres(store) => store.record_balance(reading).await,
        }
    }

    /// The last two readings of each account that succeeded, and the last two that did not, of the
    /// last 30 days; by account and slot.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`], [`StoreError::TimedOut`] or [`StoreError::Unusable`].
    pub async fn latest_balances(&self) -> Result<Vec<BalanceReading>, StoreError> {
        match self {
            Store::Sqlite(store) => store.latest_balances().await,
            Store::Postgres(store) => store.latest_balances().await,
        }
    }

    /// What traffic of the time `lasting` shows of accounts.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`], [`StoreError::TimedOut`] or [`StoreError::Unusable`].
    pub async fn account_signals(
        &self,
        lasting: Duration,
    ) -> Result<Vec<AccountSignal>, StoreError> {
        match self {
            Store::Sqlite(store) => store.account_signals(lasting).await,
            Store::Postgres(store) => store.account_signals(lasting).await,
        }
    }

    /// What requests to a provider cost that started within a window (its end excluded), by key.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`], [`StoreError::TimedOut`] or [`StoreError::Unusable`].
    pub async fn metered_spend(
        &self,
        provider: &str,
        window: (DateTime<Utc>, DateTime<Utc>),
    ) -> Result<Vec<KeySpend>, StoreError> {
        match self {
            Store::Sqlite(store) => store.metered_spend(provider, window).await,
            Store::Postgres(store) => store.metered_spend(provider, window).await,
        }
    }

    /// Takes in bills against what was metered, one for each account and day. The last bill holds,
    /// and a failure takes the place of no bill.
    ///
    /// # Errors
    ///
    /// As [`Store::apply`]; the same may be told again.
    pub async fn record_reconciliations(&self, rows: &[Reconciliation]) -> Result<(), StoreError> {
        match self {
            Store::Sqlite(store) => store.record_reconciliations(rows).await,
            Store::Postgres(store) => store.record_reconciliations(rows).await,
        }
    }

    /// Bills against what was metered from a day on, by account and day.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`], [`StoreError::TimedOut`] or [`StoreError::Unusable`].
    pub async fn reconciliations(
        &self,
        since: NaiveDate,
    ) -> Result<Vec<Reconciliation>, StoreError> {
        match self {
            Store::Sqlite(store) => store.reconciliations(since).await,
            Store::Postgres(store) => store.reconciliations(since).await,
        }
    }

    /// The readings of an account that succeeded within a window, in the order of time, without
    /// their raw answers.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`], [`StoreError::TimedOut`] or [`StoreError::Unusable`].
    pub async fn balance_readings(
        &self,
        account: (&str, &str),
        window: (DateTime<Utc>, DateTime<Utc>),
    ) -> Result<Vec<BalanceReading>, StoreError> {
        match self {
            Store::Sqlite(store) => store.balance_readings(account, window).await,
            Store::Postgres(store) => store.balance_readings(account, window).await,
        }
    }

    /// What was spent, by group, in no particular order. Groups without requests are absent.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`], [`StoreError::TimedOut`] or [`StoreError::Unusable`].
    pub async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageRow>, StoreError> {
        match self {
            Store::Sqlite(store) => store.usage(query).await,
            Store::Postgres(store) => store.usage(query).await,
        }
    }

    /// The detailed rows, newest `started_at` first, rows of one moment by falling id.
    ///
    /// # Errors
    ///
    /// [`StoreError::UnknownRow`] if `query.before` is not the id of a row,
    /// [`StoreError::Unavailable`], [`StoreError::TimedOut`] or [`StoreError::Unusable`].
    pub async fn logs(&self, query: &LogQuery) -> Result<Vec<LogRow>, StoreError> {
        match self {
            Store::Sqlite(store) => store.logs(query).await,
            Store::Postgres(store) => store.logs(query).await,
        }
    }

    /// The attribution labels in use, sorted.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`], [`StoreError::TimedOut`] or [`StoreError::Unusable`].
    pub async fn attribution_labels(&self) -> Result<Vec<String>, StoreError> {
        match self {
            Store::Sqlite(store) => store.attribution_labels().await,
            Store::Postgres(store) => store.attribution_labels().await,
        }
    }

    /// Whether the store answers.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`], [`StoreError::TimedOut`] or [`StoreError::Unusable`].
    pub async fn ping(&self) -> Result<(), StoreError> {
        match self {
            Store::Sqlite(store) => store.ping().await,
            Store::Postgres(store) => store.ping().await,
        }
    }

    /// The kind of store and where it is, without credentials.
    pub fn description(&self) -> String {
        match self {
            Store::Sqlite(store) => store.description(),
            Store::Postgres(store) => store.description(),
        }
    }

    /// Closes the connections; what was committed is safe without it.
    pub async fn close(&self) {
        match self {
            Store::Sqlite(store) => store.close().await,
            Store::Postgres(store) => store.close().await,
        }
    }
}

/// Whether the URL is one of Postgres.
fn is_postgres(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}

/// What the caller does about an error that the driver made and no database.
fn classify_driver(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Decode(_)
        | sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::ColumnIndexOutOfBounds { .. }
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::TypeNotFound { .. } => StoreError::Unusable(error.to_string()),
        sqlx::Error::Encode(_) => StoreError::Rejected(error.to_string()),
        // No TLS where it is asked for, or a certificate that does not hold.
        sqlx::Error::Tls(error) => StoreError::Unusable(format!("no TLS: {error}")),
        sqlx::Error::Io(error) if is_of_certificate(&error) => {
            StoreError::Unusable(error.to_string())
        }
        sqlx::Error::Io(error) => StoreError::Unavailable(error.to_string()),
        _ => StoreError::Unavailable(error.to_string()),
    }
}

/// Whether a handshake ended because of the server's certificate.
fn is_of_certificate(error: &std::io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    matches!(cause, Some(rustls::Error::InvalidCertificate(_)))
}

fn newer_schema(store: &str) -> StoreError {
    StoreError::Unusable(format!(
        "{store} has the schema of a newer version of taffrail; use that version or a newer one, \
         or point `store.url` at another database"
    ))
}

fn parse_sum(text: &str) -> Result<DecimalSum, StoreError> {
    text.parse()
        .map_err(|_| StoreError::Unusable("a row's decimal is not readable".to_owned()))
}

/// The quantities of the `units` column; a unit of a newer version is not this one's to sum.
fn parse_units(json: &str) -> Result<BTreeMap<Unit, DecimalSum>, StoreError> {
    let units: BTreeMap<String, String> = serde_json::from_str(json)
        .map_err(|_| StoreError::Unusable("a row's units are not readable".to_owned()))?;
    units
        .iter()
        .filter_map(|(name, quantity)| Some((Unit::from_name(name)?, quantity)))
        .map(|(unit, quantity)| Ok((unit, parse_sum(quantity)?)))
        .collect()
}

/// The file of a SQLite URL.
fn sqlite_path(url: &str) -> Result<PathBuf, StoreError> {
    const ACCEPTED: &str = "accepted is sqlite://PATH, as in \
        sqlite://./taffrail-data/taffrail.db, and postgres://USER@HOST:PORT/DATABASE";
    // The scheme alone is quoted: the rest of a URL can hold a password.
    let Some((scheme, path)) = url.split_once("://") else {
        return Err(StoreError::Config(format!("it has no scheme; {ACCEPTED}")));
    };
    if scheme != "sqlite" {
        let problem = format!("`{scheme}://` is not a kind of store of this build; {ACCEPTED}");
        return Err(StoreError::Config(problem));
    }
    if path.is_empty() || path.starts_with(':') || path.contains('?') {
        let problem = format!("it does not name a file; {ACCEPTED}");
        return Err(StoreError::Config(problem));
    }
    Ok(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_file_or_says_what_is_accepted() {
        assert_eq!(
            sqlite_path("sqlite://./a b/c.db").unwrap(),
            PathBuf::from("./a b/c.db")
        );
        assert_eq!(
            sqlite_path("sqlite:///var/lib/t.db").unwrap(),
            PathBuf::from("/var/lib/t.db")
        );
        for url in [
            "",
            "taffrail.db",
            "sqlite://",
            "sqlite://:memory:",
            "sqlite://a?mode=rw",
            "mysql://root:hunter2@db/x",
        ] {
            let error = sqlite_path(url).unwrap_err().to_string();
            assert!(error.contains("accepted is sqlite://PATH"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn the_default_is_readable_as_a_file() {
        let config: Config = serde_json::from_str("{}").unwrap();
        assert_eq!(config, Config::default());
        assert!(sqlite_path(&config.url).is_ok());
    }
}
