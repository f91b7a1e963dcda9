//! The embedded store: one SQLite file in WAL mode, one writer, readers beside it.
//!
//! A batch is one `begin immediate` transaction, so that what it reads of the sums nobody else
//! can change before it writes them. Amounts are decimal text, because SQLite's numbers are
//! 64-bit integers and floats; sums are made here, exactly, and written as absolute values.
//! Sources: sqlite.org/wal.html, sqlite.org/rescode.html.

mod prices;
mod receipts;
mod reconciliations;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Days, NaiveDate, NaiveTime, TimeDelta, Utc};
use futures_util::TryStreamExt;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions, QueryBuilder, Row, Sqlite as Db, SqliteConnection};
use tokio::sync::OnceCell;

use crate::clock;
use crate::fault::Outcome;
use crate::record::{Operation, UsageRecord};

use super::balances::{self, AccountSignal, BalanceReading, Part, Signal};
use super::jobs::{Answer, JobNews, JobQuery, Overdue, OverdueJob, Told, bare};
use super::query::{
    Dimension, Granularity, LogQuery, Source, Totals, UsageQuery, UsageRow, bucket_start, sources,
    timestamp,
};
use super::row::{COLUMNS, Kind, LogRow, Rejection, TOKEN_COLUMNS, Value, encode, without_nul};
use super::{
    Applied, BALANCES_PER_DROP, Config, JOBS_PER_DROP, OVERDUE_MAX, ROWS_PER_STATEMENT, StoreError,
    parse_sum, parse_units,
};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// Readers that can read at a time; each is a connection with its own cache.
const READERS_MAX: u32 = 4;

/// The pages of a new file; an old one keeps its own. A row is some 700 bytes and every page is two
/// writes, so that larger pages than SQLite's 4 KB cost fewer.
const PAGE_BYTES: u32 = 8192;

/// The most rows that are dropped at a time: the drain waits for that transaction, some ten
/// milliseconds.
const ROWS_PER_DROP: i64 = 1_000;

/// A SQLite store.
#[derive(Debug, Clone)]
pub struct Sqlite {
    path: PathBuf,
    /// Absent where the store was opened for reading.
    writer: Option<Arc<Writer>>,
    readers: SqlitePool,
}

/// The connection that writes, opened at its first use. One connection: SQLite has one writer,
/// and waiting for it here is fair.
#[derive(Debug)]
struct Writer {
    config: Config,
    pool: OnceCell<SqlitePool>,
}

impl Sqlite {
    pub(super) fn lazy(path: PathBuf, config: &Config) -> Sqlite {
        let readers = pool(READERS_MAX).connect_lazy_with(reader_options(&path, config));
        let writer = Writer {
            config: config.clone(),
            pool: OnceCell::new(),
        };
        Sqlite {
            path,
            writer: Some(Arc::new(writer)),
            readers,
        }
    }

    pub(super) async fn open(path: PathBuf, config: &Config) -> Result<Sqlite, StoreError> {
        let store = Sqlite::lazy(path, config);
        store.writer().await?;
        Ok(store)
    }

    pub(super) async fn open_read_only(
        path: PathBuf,
        config: &Config,
    ) -> Result<Sqlite, StoreError> {
        if !path.exists() {
            return Err(StoreError::Missing(path));
        }
        let store = Sqlite {
            writer: None,
            ..Sqlite::lazy(path, config)
        };
        store.check_schema().await?;
        Ok(store)
    }

    /// The connection that writes; opens it, and with it the database, at first.
    async fn writer(&self) -> Result<&SqlitePool, StoreError> {
        let Some(writer) = &self.writer else {
            return Err(StoreError::Config(
                "the store was opened for reading".to_owned(),
            ));
        };
        writer
            .pool
            .get_or_try_init(|| self.open_writer(&writer.config))
            .await
    }

    async fn open_writer(&self, config: &Config) -> Result<SqlitePool, StoreError> {
        if let Some(folder) = self
            .path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            std::fs::create_dir_all(folder)
                .map_err(|error| StoreError::Unavailable(error.to_string()))?;
        }
        let options = options(&self.path, config)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .page_size(PAGE_BYTES)
            // The journal forgets what the store committed, so a commit must survive power loss.
            .synchronous(SqliteSynchronous::Full);
        let writer = connect_patiently(options, config.busy_timeout)
            .await
            .map_err(classify)?;
        if config.migrate {
            migrate(&writer).await?;
        }
        self.check_schema().await?;
        Ok(writer)
    }

    /// Refuses a database whose schema is older or newer than this build's.
    async fn check_schema(&self) -> Result<(), StoreError> {
        let needed = MIGRATIONS.iter().map(|migration| migration.version).max();
        let version: Result<Option<i64>, sqlx::Error> =
            sqlx::query_scalar("select max(version) from _sqlx_migrations where success")
                .fetch_one(&self.readers)
                .await;
        let version = match version {
            Ok(version) => version,
            // There is no such table: another program's file, or one whose first migration has
            // not been committed. A damaged file is neither.
            Err(error) if primary_code(&error) == Some(ERROR) => None,
            Err(error) => return Err(classify(error)),
        };
        if version < needed {
            return Err(StoreError::Unusable(format!(
                "{} has no schema or an older one; run `taffrail migrate`",
                self.path.display()
            )));
        }
        if version > needed {
            return Err(super::newer_schema(&self.description()));
        }
        Ok(())
    }

    pub(super) async fn apply(&self, records: &[UsageRecord]) -> Result<Applied, StoreError> {
        let writer = self.writer().await?;
        let mut transaction = writer
            .begin_with("begin immediate")
            .await
            .map_err(classify)?;
        let kept_from = kept_from(&mut transaction).await?;
        let mut applied = Applied::default();
        let mut sums = BTreeMap::new();
        // Some rows at a time, so that a batch is in memory once and not in every form.
        for (chunk, records) in records.chunks(ROWS_PER_STATEMENT).enumerate() {
            let mut rows: Vec<(LogRow, &UsageRecord)> = Vec::with_capacity(records.len());
            for (index, record) in records.iter().enumerate() {
                match encode_kept(record, kept_from) {
                    Ok(row) if pass_gate(&mut transaction, record, &row).await? => {
                        rows.push((row, record));
                    }
                    Ok(_) => applied.duplicates += 1,
                    Err(rejection) => {
                        let index = chunk * ROWS_PER_STATEMENT + index;
                        applied.rejected.push((index, rejection));
                    }
                }
            }
            let mut inserted = insert_new(&mut transaction, &rows).await?;
            for (row, record) in rows {
                if !inserted.take(row.get("id")) {
                    applied.duplicates += 1;
                    continue;
                }
                applied.stored += 1;
                let group = Group::of(record, &row);
                add_to_sums(&mut sums, record.started_at, group, &Totals::of(record))?;
            }
        }
        add_to_buckets(&mut transaction, sums).await?;
        transaction.commit().await.map_err(classify)?;
        Ok(applied)
    }

    pub(super) async fn backfill(&self, day: NaiveDate) -> Result<u64, StoreError> {
        let writer = self.writer().await?;
        let mut transaction = writer
            .begin_with("begin immediate")
            .await
            .map_err(classify)?;
        // The rows of a day are those of its ids or, where an id was made a moment before or after
        // midnight, of one beside it.
        if let Some(kept_from) = kept_from(&mut transaction).await?
            && day <= kept_from
        {
            return Err(StoreError::Rejected(format!(
                "the rows before {kept_from} have been dropped; their sums are all that is left \
                 of them"
            )));
        }
        let sums = sums_of_rows(&mut transaction, day).await?;
        let [start, end] = bounds(day);
        sqlx::query(
            "delete from api_usage_aggregates where bucket_start >= ? and bucket_start < ?",
        )
        .bind(bucket_start(start))
        .bind(bucket_start(end))
        .execute(&mut *transaction)
        .await
        .map_err(classify)?;
        let buckets = add_to_buckets(&mut transaction, sums).await?;
        transaction.commit().await.map_err(classify)?;
        u64::try_from(buckets).map_err(|error| StoreError::Rejected(error.to_string()))
    }

    pub(super) async fn drop_balances(&self, before: NaiveDate) -> Result<u64, StoreError> {
        let [end, _] = bounds(before);
        let dropped = sqlx::query(
            "delete from api_provider_balances where (provider, account, slot, part) in ( \
                 select provider, account, slot, part from api_provider_balances \
                 where read_at < ? limit ? \
             )",
        )
        .bind(timestamp(end))
        .bind(BALANCES_PER_DROP)
        .execute(self.writer().await?)
        .await
        .map_err(classify)?;
        Ok(dropped.rows_affected())
    }

    /// By the clock of this machine, which the database is on.
    pub(super) async fn today(&self) -> Result<NaiveDate, StoreError> {
        self.writer().await?;
        Ok(clock::wall().date_naive())
    }

    /// Drops at most [`ROWS_PER_DROP`] rows of the oldest day.
    pub(super) async fn drop_logs(
        &self,
        before: NaiveDate,
    ) -> Result<Option<NaiveDate>, StoreError> {
        let writer = self.writer().await?;
        let mut transaction = writer
            .begin_with("begin immediate")
            .await
            .map_err(classify)?;
        // There is an index of started_at and none of the day, which is the same but for rows of
        // a moment around midnight.
        let [end, _] = bounds(before);
        let oldest: Option<(NaiveDate, DateTime<Utc>)> = sqlx::query_as(
            "select day, started_at from api_usage_logs where started_at < ? and day < ? \
             order by started_at limit 1",
        )
        .bind(timestamp(end))
        .bind(before)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(classify)?;
        let Some((day, started_at)) = oldest else {
            return Ok(None);
        };
        // Before the first row goes: what comes for that day now cannot be told from what is gone.
        sqlx::query(
            "insert into retention (kept_from, changed_at) values (?, ?) on conflict ((true)) \
             do update set kept_from = max(kept_from, excluded.kept_from), \
             changed_at = excluded.changed_at",
        )
        .bind(day + Days::new(1))
        .bind(timestamp(clock::wall()))
        .execute(&mut *transaction)
        .await
        .map_err(classify)?;
        sqlx::query(
            "delete from api_usage_logs where id in (select id from api_usage_logs \
             where started_at >= ? and started_at < ? and day <= ? order by started_at limit ?)",
        )
        .bind(timestamp(started_at))
        .bind(timestamp(started_at + TimeDelta::days(1)))
        .bind(day)
        .bind(ROWS_PER_DROP)
        .execute(&mut *transaction)
        .await
        .map_err(classify)?;
        transaction.commit().await.map_err(classify)?;
        Ok(Some(day))
    }

    /// Drops the buckets that start at the earliest moment.
    pub(super) async fn drop_aggregates(&self, before: NaiveDate) -> Result<u64, StoreError> {
        let writer = self.writer().await?;
        let mut transaction = writer
            .begin_with("begin immediate")
            .await
            .map_err(classify)?;
        // One minimum for each granularity: the key begins with it.
        let first: Option<String> = sqlx::query_scalar(
            "select min(start) from ( \
                 select min(bucket_start) as start from api_usage_aggregates \
                 where granularity = 'hour' \
                 union all \
                 select min(bucket_start) from api_usage_aggregates where granularity = 'day' \
             )",
        )
        .fetch_one(&mut *transaction)
        .await
        .map_err(classify)?;
        let [end, _] = bounds(before);
        let Some(first) = first.filter(|first| *first < bucket_start(end)) else {
            return Ok(0);
        };
        let dropped = sqlx::query(
            "delete from api_usage_aggregates \
             where granularity in ('hour', 'day') and bucket_start = ?",
        )
        .bind(first)
        .execute(&mut *transaction)
        .await
        .map_err(classify)?;
        transaction.commit().await.map_err(classify)?;
        Ok(dropped.rows_affected())
    }

    pub(super) async fn exchange_jobs(
        &self,
        jobs: &[JobQuery],
    ) -> Result<Vec<JobNews>, StoreError> {
        let writer = self.writer().await?;
        let mut transaction = writer
            .begin_with("begin immediate")
            .await
            .map_err(classify)?;
        let now = timestamp(clock::wall());
        let mut news = Vec::new();
        for told in jobs.iter().map(Told::of) {
            if told.id.is_some() {
                tell(&mut transaction, &told, &now).await?;
            }
            if told.end_half.is_none() {
                news.extend(ask(&mut transaction, &told).await?);
            }
        }
        transaction.commit().await.map_err(classify)?;
        Ok(news)
    }

    pub(super) async fn overdue_jobs(
        &self,
        grace: Duration,
    ) -> Result<Vec<OverdueJob>, StoreError> {
        self.writer().await?;
        let grace = TimeDelta::from_std(grace).ok();
        let before = grace.and_then(|grace| clock::wall().checked_sub_signed(grace));
        let before = timestamp(before.unwrap_or_default());
        let jobs: Vec<(Option<String>, Option<String>)> = sqlx::query_as(
            "select submit_half, end_half from api_jobs \
             where recorded_at is null and updated_at <= ? \
                 and (end_half is not null or deadline_at <= ?) \
             order by updated_at limit ?",
        )
        .bind(&before)
        .bind(&before)
        .bind(OVERDUE_MAX)
        .fetch_all(&self.readers)
        .await
        .map_err(classify)?;
        let job = |(submit_half, end_half)| {
            let overdue = Overdue {
                submit_half,
                end_half,
            };
            overdue.job()
        };
        Ok(jobs.into_iter().map(job).collect())
    }

    pub(super) async fn drop_jobs(&self, before: NaiveDate) -> Result<u64, StoreError> {
        let writer = self.writer().await?;
        let [end, _] = bounds(before);
        let dropped = sqlx::query(
            "delete from api_jobs where (provider, job_id) in ( \
                 select provider, job_id from api_jobs where recorded_at < ? limit ? \
             )",
        )
        .bind(timestamp(end))
        .bind(JOBS_PER_DROP)
        .execute(writer)
        .await
        .map_err(classify)?;
        Ok(dropped.rows_affected())
    }

    /// By the clock of this machine, which the database is on.
    pub(super) async fn now(&self) -> Result<DateTime<Utc>, StoreError> {
        self.writer().await?;
        Ok(clock::wall())
    }

    pub(super) async fn record_balance(
        &self,
        reading: &BalanceReading,
    ) -> Result<bool, StoreError> {
        let writer = self.writer().await?;
        let mut transaction = writer
            .begin_with("begin immediate")
            .await
            .map_err(classify)?;
        let mut is_taken = false;
        for part in balances::parts(reading) {
            if part.part > 0 && !is_taken {
                break;
            }
            let done = sqlx::query(
                "insert into api_provider_balances (provider, account, slot, part, read_at, \
                 result, kind, currency, balance, detail, raw) \
                 values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
                 on conflict (provider, account, slot, part) do update set \
                 read_at = excluded.read_at, result = excluded.result, kind = excluded.kind, \
                 currency = excluded.currency, balance = excluded.balance, \
                 detail = excluded.detail, raw = excluded.raw \
                 where api_provider_balances.result <> 'ok' and excluded.result = 'ok'",
            )
            .bind(part.provider)
            .bind(part.account)
            .bind(part.slot)
            .bind(part.part)
            .bind(part.read_at)
            .bind(part.result)
            .bind(part.kind)
            .bind(part.currency)
            .bind(part.balance)
            .bind(part.detail)
            .bind(part.raw)
            .execute(&mut *transaction)
            .await
            .map_err(classify)?;
            is_taken = done.rows_affected() > 0;
        }
        transaction.commit().await.map_err(classify)?;
        Ok(is_taken)
    }

    pub(super) async fn latest_balances(&self) -> Result<Vec<BalanceReading>, StoreError> {
        let since = clock::wall() - TimeDelta::days(balances::LATEST_DAYS);
        let parts: Vec<Part> = sqlx::query_as(
            "select provider, account, slot, part, read_at, result, kind, currency, balance, \
             detail, raw from ( \
                 select *, dense_rank() over ( \
                     partition by provider, account, result = 'ok' order by slot desc \
                 ) as age \
                 from api_provider_balances where read_at > ? \
             ) where age <= ? order by provider, account, slot, part",
        )
        .bind(timestamp(since))
        .bind(balances::LATEST_EACH)
        .fetch_all(&self.readers)
        .await
        .map_err(classify)?;
        balances::readings(parts)
    }

    pub(super) async fn account_signals(
        &self,
        lasting: Duration,
    ) -> Result<Vec<AccountSignal>, StoreError> {
        let since = TimeDelta::from_std(lasting).unwrap_or(TimeDelta::MAX);
        let since = clock::wall().checked_sub_signed(since).unwrap_or_default();
        let signals: Vec<Signal> = sqlx::query_as(
            "select provider, key_fingerprint, outcome, at, exists ( \
                 select 1 from api_usage_logs as later \
                 where later.provider = refused.provider \
                     and later.key_fingerprint is refused.key_fingerprint \
                     and later.outcome = 'ok' and later.started_at > refused.at \
             ) as is_over \
             from ( \
                 select provider, key_fingerprint, outcome, max(started_at) as at \
                 from api_usage_logs \
                 where outcome in ('quota_exhausted', 'account_locked', 'rate_limited') \
                     and outcome <> 'ok' and started_at > ? \
                 group by provider, key_fingerprint, outcome \
             ) as refused",
        )
        .bind(timestamp(since))
        .fetch_all(&self.readers)
        .await
        .map_err(classify)?;
        Ok(signals.into_iter().filter_map(Signal::read).collect())
    }

    pub(super) async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageRow>, StoreError> {
        let mut select = QueryBuilder::<Db>::new("");
        for (index, source) in sources(query).iter().enumerate() {
            if index > 0 {
                select.push(" union all ");
            }
            push_select(source, &mut select, &query.by);
        }
        let mut groups: HashMap<Vec<Option<String>>, Totals> = HashMap::new();
        let mut rows = select.build().fetch(&self.readers);
        while let Some(row) = rows.try_next().await.map_err(classify)? {
            let (group, totals) = decode_usage(&row, query.by.len())?;
            let sum = groups.remove(&group).unwrap_or_default();
            groups.insert(group, added(sum, &totals)?);
        }
        Ok(groups
            .into_iter()
            .map(|(group, totals)| UsageRow { group, totals })
            .collect())
    }

    pub(super) async fn logs(&self, query: &LogQuery) -> Result<Vec<LogRow>, StoreError> {
        let mut select = QueryBuilder::<Db>::new("select ");
        push_columns(&mut select);
        select.push(" from api_usage_logs where true");
        if let Some(before) = query.before {
            let id = before.hyphenated().to_string();
            let started_at: Option<String> =
                sqlx::query_scalar("select started_at from api_usage_logs where id = ?")
                    .bind(&id)
                    .fetch_optional(&self.readers)
                    .await
                    .map_err(classify)?;
            let started_at = started_at.ok_or(StoreError::UnknownRow(before))?;
            select.push(" and (started_at, id) < (");
            select.push_bind(started_at).push(", ");
            select.push_bind(id).push(")");
        }
        if let Some(provider) = &query.provider {
            select.push(" and provider = ").push_bind(provider);
        }
        if let Some(outcome) = query.outcome {
            select.push(" and outcome = ").push_bind(outcome.as_str());
            if outcome != Outcome::Ok {
                // The index of outcomes holds these alone.
                select.push(" and outcome <> 'ok'");
            }
        }
        select.push(" order by started_at desc, id desc limit ");
        select.push_bind(i64::from(query.limit));
        let rows = select
            .build()
            .fetch_all(&self.readers)
            .await
            .map_err(classify)?;
        rows.iter().map(decode_log).collect()
    }

    pub(super) async fn attribution_labels(&self) -> Result<Vec<String>, StoreError> {
        sqlx::query_scalar(
            "select distinct label.key from api_usage_aggregates, json_each(attribution) as label \
             where granularity = 'day' order by 1",
        )
        .fetch_all(&self.readers)
        .await
        .map_err(classify)
    }

    pub(super) async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("select 1 from api_usage_logs limit 1")
            .fetch_optional(&self.readers)
            .await
            .map_err(classify)?;
        Ok(())
    }

    pub(super) fn description(&self) -> String {
        format!("sqlite {}", self.path.display())
    }

    pub(super) async fn close(&self) {
        self.readers.close().await;
        let writer = self.writer.as_ref();
        if let Some(pool) = writer.and_then(|writer| writer.pool.get()) {
            pool.close().await;
        }
    }
}

fn options(path: &Path, config: &Config) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(config.busy_timeout)
        .disable_statement_logging()
}

fn reader_options(path: &Path, config: &Config) -> SqliteConnectOptions {
    options(path, config)
        .create_if_missing(false)
        .read_only(true)
}

fn pool(connections_max: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections_max)
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
}

/// Applies the migrations that the database lacks, all or none. SQLite's migrator takes no lock
/// of its own, so one transaction around it keeps two processes apart.
async fn migrate(writer: &SqlitePool) -> Result<(), StoreError> {
    let mut transaction = writer
        .begin_with("begin immediate")
        .await
        .map_err(classify)?;
    MIGRATIONS
        .run_direct(None, &mut *transaction, false)
        .await
        .map_err(|error| match error {
            MigrateError::Execute(error) => classify(error),
            MigrateError::VersionMissing(_) => super::newer_schema("the database"),
            error => StoreError::Unusable(error.to_string()),
        })?;
    transaction.commit().await.map_err(classify)
}

/// Connects a writer. Several processes that open a new database at once get in each other's way:
/// the switch to the write-ahead log needs the file alone, and SQLite does not wait for that as it
/// waits for other locks.
async fn connect_patiently(
    options: SqliteConnectOptions,
    patience: Duration,
) -> Result<SqlitePool, sqlx::Error> {
    const BUSY: &str = "5";
    const STEP: Duration = Duration::from_millis(20);
    let started = clock::instant();
    loop {
        let connected = pool(1).connect_with(options.clone()).await;
        let is_busy = matches!(&connected, Err(sqlx::Error::Database(error))
            if error.code().is_some_and(|code| code == BUSY));
        if !is_busy || started.elapsed() >= patience {
            return connected;
        }
        tokio::time::sleep(STEP).await;
    }
}

/// SQLite's code of a statement that does not fit the schema.
const ERROR: i32 = 1;

/// The primary code of an error of SQLite, which is the low byte of its extended one.
fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let code = error.as_database_error()?.code()?;
    Some(code.parse::<i32>().ok()? & 0xff)
}

/// What the caller does about an error of SQLite.
fn classify(error: sqlx::Error) -> StoreError {
    const CORRUPT: i32 = 11;
    const SCHEMA: i32 = 17;
    const TOOBIG: i32 = 18;
    const CONSTRAINT: i32 = 19;
    const MISMATCH: i32 = 20;
    const RANGE: i32 = 25;
    const NOTADB: i32 = 26;

    match &error {
        sqlx::Error::Database(database) => match primary_code(&error) {
            Some(TOOBIG | CONSTRAINT | MISMATCH | RANGE) => {
                StoreError::Rejected(database.to_string())
            }
            Some(ERROR | CORRUPT | SCHEMA | NOTADB) => StoreError::Unusable(database.to_string()),
            _ => StoreError::Unavailable(database.to_string()),
        },
        _ => super::classify_driver(error),
    }
}

/// `left` and `right` together, or the error of a sum that no column can hold.
fn added(left: Totals, right: &Totals) -> Result<Totals, StoreError> {
    left.checked_add(right)
        .ok_or_else(|| StoreError::Rejected("a sum leaves the range of its column".to_owned()))
}

fn push_columns(query: &mut QueryBuilder<Db>) {
    let mut columns = query.separated(", ");
    for (name, _) in COLUMNS {
        columns.push(name);
    }
}

/// From which day on rows are kept, once some have been dropped.
async fn kept_from(connection: &mut SqliteConnection) -> Result<Option<NaiveDate>, StoreError> {
    sqlx::query_scalar("select kept_from from retention")
        .fetch_optional(connection)
        .await
        .map_err(classify)
}

/// The row of a record, unless its day has been dropped.
fn encode_kept(record: &UsageRecord, kept_from: Option<NaiveDate>) -> Result<LogRow, Rejection> {
    let day = record.day();
    if kept_from.is_some_and(|first| day < first) {
        return Err(Rejection::DayDropped { day });
    }
    encode(record)
}

/// Notes that a job gets its row. Whether it may: a job has one, whatever its id.
async fn pass_gate(
    connection: &mut SqliteConnection,
    record: &UsageRecord,
    row: &LogRow,
) -> Result<bool, StoreError> {
    // The calls that ask for a job have rows of their own, if any.
    let job_id = row.get("job_id").as_text();
    let Some(job_id) = job_id.filter(|_| record.operation != Operation::Control) else {
        return Ok(true);
    };
    let id = row.get("id").as_text();
    let now = timestamp(clock::wall());
    let recorded: String = sqlx::query_scalar(
        "insert into api_jobs as known (provider, job_id, id, recorded_at, updated_at) \
         values (?, ?, ?, ?, ?) \
         on conflict (provider, job_id) do update set \
             id = case when known.recorded_at is null then excluded.id else known.id end, \
             submit_half = null, \
             end_half = null, \
             recorded_at = coalesce(known.recorded_at, excluded.recorded_at), \
             updated_at = excluded.updated_at \
         returning id",
    )
    .bind(bare(&record.provider))
    .bind(job_id)
    .bind(id)
    .bind(&now)
    .bind(&now)
    .fetch_one(connection)
    .await
    .map_err(classify)?;
    Ok(Some(recorded.as_str()) == id)
}

/// Takes in a half of a job without a row: the first of its kind, or an end that tells more.
async fn tell(
    connection: &mut SqliteConnection,
    told: &Told<'_>,
    now: &str,
) -> Result<(), StoreError> {
    sqlx::query(
        "insert into api_jobs as known (provider, job_id, id, submitted_at, deadline_at, ended_at, \
             is_settled, submit_half, end_half, updated_at) \
         values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
         on conflict (provider, job_id) do update set \
             id = case when excluded.submit_half is null then known.id else excluded.id end, \
             submitted_at = coalesce(excluded.submitted_at, known.submitted_at), \
             deadline_at = coalesce(excluded.deadline_at, known.deadline_at), \
             submit_half = coalesce(excluded.submit_half, known.submit_half), \
             ended_at = coalesce(known.ended_at, excluded.ended_at), \
             is_settled = max(known.is_settled, excluded.is_settled), \
             end_half = coalesce(excluded.end_half, known.end_half), \
             updated_at = excluded.updated_at \
         where known.recorded_at is null \
             and case when excluded.end_half is null \
                 then known.submit_half is null \
                 else known.end_half is null or excluded.is_settled > known.is_settled \
             end",
    )
    .bind(&*told.provider)
    .bind(&*told.job_id)
    .bind(&told.id)
    .bind(&told.submitted_at)
    .bind(&told.deadline_at)
    .bind(&told.ended_at)
    .bind(told.is_settled.unwrap_or_default())
    .bind(&told.submit_half)
    .bind(&told.end_half)
    .bind(now)
    .execute(connection)
    .await
    .map_err(classify)?;
    Ok(())
}

/// What others know of a job.
async fn ask(
    connection: &mut SqliteConnection,
    told: &Told<'_>,
) -> Result<Option<JobNews>, StoreError> {
    let found: Option<(bool, Option<String>)> = sqlx::query_as(
        "select recorded_at is not null, end_half from api_jobs \
         where provider = ? and job_id = ? and (recorded_at is not null or end_half is not null)",
    )
    .bind(&*told.provider)
    .bind(&*told.job_id)
    .fetch_optional(connection)
    .await
    .map_err(classify)?;
    Ok(found.map(|(is_recorded, end_half)| {
        let answer = Answer {
            provider: told.provider.clone().into_owned(),
            job_id: told.job_id.clone().into_owned(),
            is_recorded,
            end_half,
        };
        answer.news()
    }))
}

/// Which rows of a statement are new.
enum Inserted {
    All,
    /// The ids, each once, so that a record that is twice in a batch counts once.
    Some(HashSet<String>),
}

impl Inserted {
    fn take(&mut self, id: &Value) -> bool {
        match self {
            Inserted::All => true,
            Inserted::Some(ids) => id.as_text().is_some_and(|id| ids.remove(id)),
        }
    }
}

/// Inserts the rows whose id is new.
async fn insert_new(
    connection: &mut SqliteConnection,
    rows: &[(LogRow, &UsageRecord)],
) -> Result<Inserted, StoreError> {
    if rows.is_empty() {
        return Ok(Inserted::All);
    }
    let mut insert = QueryBuilder::<Db>::new("insert into api_usage_logs (");
    push_columns(&mut insert);
    insert.push(") ");
    insert.push_values(rows, |mut values, (row, _)| {
        for value in row.values() {
            match value {
                Value::Null => values.push_bind(None::<&str>),
                Value::Text(text) | Value::Json(text) => values.push_bind(text.clone()),
                Value::Integer(number) => values.push_bind(*number),
                Value::Boolean(value) => values.push_bind(*value),
            };
        }
    });
    insert.push(" on conflict (id) do nothing");
    let done = insert.build().execute(&mut *connection).await;
    let done = done.map_err(classify)?;
    let new = done.rows_affected();
    if u64::try_from(rows.len()).is_ok_and(|rows| rows == new) {
        return Ok(Inserted::All);
    }
    if new == 0 {
        return Ok(Inserted::Some(HashSet::new()));
    }
    // A new row has the rowid after the highest there is, so these are the last ones. To return the
    // ids from every insert would cost each row a trip between threads.
    let ids: Vec<String> =
        sqlx::query_scalar("select id from api_usage_logs order by rowid desc limit ?")
            .bind(i64::try_from(new).unwrap_or(i64::MAX))
            .fetch_all(connection)
            .await
            .map_err(classify)?;
    Ok(Inserted::Some(ids.into_iter().collect()))
}

/// The key of a row of sums; ordered as the table's primary key.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Bucket<'a> {
    granularity: Granularity,
    start: DateTime<Utc>,
    group: Group<'a>,
}

/// What the requests of a bucket have in common beside their time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Group<'a> {
    namespace: Cow<'a, str>,
    provider: Cow<'a, str>,
    model: Cow<'a, str>,
    operation: Cow<'a, str>,
    outcome_class: &'static str,
    attribution: Arc<str>,
}

impl<'a> Group<'a> {
    /// The group of a record, which has that row.
    fn of(record: &'a UsageRecord, row: &LogRow) -> Group<'a> {
        let namespace = record.instance.namespace.as_deref();
        let attribution = match row.get("attribution") {
            Value::Json(json) => json.clone(),
            _ => Arc::default(),
        };
        Group {
            namespace: without_nul(namespace.unwrap_or_default()),
            provider: without_nul(&record.provider),
            model: without_nul(record.model().unwrap_or_default()),
            operation: record.operation.as_str().into(),
            outcome_class: record.outcome.class().as_str(),
            attribution,
        }
    }
}

/// The sums of a UTC day as its rows tell them.
async fn sums_of_rows(
    connection: &mut SqliteConnection,
    day: NaiveDate,
) -> Result<Sums<'static>, StoreError> {
    const KEY_COLUMNS: usize = 7;
    let mut select = QueryBuilder::<Db>::new(
        "select started_at, namespace, provider, coalesce(model_served, model_requested), \
         operation, outcome, attribution, 1, unpriced_reason is not null",
    );
    push_sum_columns(&mut select);
    let [start, end] = bounds(day);
    select.push(" from api_usage_logs where started_at >= ");
    select.push_bind(timestamp(start));
    select.push(" and started_at < ");
    select.push_bind(timestamp(end));
    let mut sums = BTreeMap::new();
    let mut rows = select.build().fetch(connection);
    while let Some(row) = rows.try_next().await.map_err(classify)? {
        let (key, totals) = decode_usage(&row, KEY_COLUMNS)?;
        let mut key = key.into_iter().map(Option::unwrap_or_default);
        let mut next = || key.next().unwrap_or_default();
        let unreadable = |what| StoreError::Unusable(format!("a row's {what} is not readable"));
        let started_at = next().parse().map_err(|_| unreadable("started_at"))?;
        let group = Group {
            namespace: next().into(),
            provider: next().into(),
            model: next().into(),
            operation: next().into(),
            outcome_class: Outcome::from_name(&next())
                .ok_or_else(|| unreadable("outcome"))?
                .class()
                .as_str(),
            attribution: next().into(),
        };
        add_to_sums(&mut sums, started_at, group, &totals)?;
    }
    Ok(sums)
}

/// Sums by the hour that they start with.
type Sums<'a> = BTreeMap<(DateTime<Utc>, Group<'a>), Totals>;

fn add_to_sums<'a>(
    sums: &mut Sums<'a>,
    started_at: DateTime<Utc>,
    group: Group<'a>,
    totals: &Totals,
) -> Result<(), StoreError> {
    let key = (Granularity::Hour.start(started_at), group);
    let sum = sums.entry(key).or_default();
    *sum = added(std::mem::take(sum), totals)?;
    Ok(())
}

/// Adds sums to the buckets of their hours and days; returns how many buckets those are.
async fn add_to_buckets(
    connection: &mut SqliteConnection,
    sums: Sums<'_>,
) -> Result<usize, StoreError> {
    let mut buckets = BTreeMap::new();
    for ((hour, group), totals) in sums {
        for granularity in [Granularity::Day, Granularity::Hour] {
            let bucket = Bucket {
                granularity,
                start: granularity.start(hour),
                group: group.clone(),
            };
            let sum: &mut Totals = buckets.entry(bucket).or_default();
            *sum = added(std::mem::take(sum), &totals)?;
        }
    }
    for (bucket, totals) in &buckets {
        add_to_bucket(connection, bucket, totals).await?;
    }
    Ok(buckets.len())
}

/// The first moment of a UTC day, and of the next one.
fn bounds(day: NaiveDate) -> [DateTime<Utc>; 2] {
    let start = day.and_time(NaiveTime::MIN).and_utc();
    [start, start + TimeDelta::days(1)]
}

/// The columns that rows and sums have in common, after those of the group.
const SUM_COLUMNS_FIXED: usize = 4;

/// Adds `totals` to the sums of a bucket.
async fn add_to_bucket(
    connection: &mut SqliteConnection,
    bucket: &Bucket<'_>,
    totals: &Totals,
) -> Result<(), StoreError> {
    let mut select = QueryBuilder::<Db>::new("select requests, unpriced_requests");
    push_sum_columns(&mut select);
    select.push(
        " from api_usage_aggregates where (granularity, bucket_start, namespace, provider, model, \
         operation, outcome_class, attribution) = (",
    );
    push_key(&mut select, bucket);
    select.push(")");
    let before = select
        .build()
        .fetch_optional(&mut *connection)
        .await
        .map_err(classify)?;
    let before = match before {
        Some(row) => decode_usage(&row, 0)?.1,
        None => Totals::default(),
    };
    let after = added(before, totals)?;

    let mut upsert = QueryBuilder::<Db>::new(
        "insert or replace into api_usage_aggregates (granularity, bucket_start, namespace, provider, \
         model, operation, outcome_class, attribution, requests, unpriced_requests",
    );
    push_sum_columns(&mut upsert);
    upsert.push(") values (");
    push_key(&mut upsert, bucket);
    upsert.push(", ").push_bind(after.requests);
    upsert.push(", ").push_bind(after.unpriced_requests);
    for cost in [after.cost_usd, after.cost_upstream_usd] {
        upsert
            .push(", ")
            .push_bind(cost.map(|cost| cost.to_string()));
    }
    for (unit, _) in TOKEN_COLUMNS {
        let tokens = match after.quantities.get(unit) {
            Some(sum) => Some(sum.to_i64().ok_or_else(|| {
                StoreError::Rejected("a sum leaves the range of its column".to_owned())
            })?),
            None => None,
        };
        upsert.push(", ").push_bind(tokens);
    }
    let units: BTreeMap<&str, String> = after
        .quantities
        .iter()
        .filter(|(unit, _)| !unit.is_token())
        .map(|(unit, sum)| (unit.as_str(), sum.to_string()))
        .collect();
    let units = (!units.is_empty())
        .then(|| serde_json::to_string(&units))
        .transpose()
        .map_err(|error| StoreError::Rejected(error.to_string()))?;
    upsert.push(", ").push_bind(units).push(")");
    upsert.build().execute(connection).await.map_err(classify)?;
    Ok(())
}

fn push_key(query: &mut QueryBuilder<Db>, bucket: &Bucket<'_>) {
    let mut key = query.separated(", ");
    key.push_bind(bucket.granularity.as_str());
    key.push_bind(bucket_start(bucket.start));
    let group = &bucket.group;
    key.push_bind(&*group.namespace);
    key.push_bind(&*group.provider);
    key.push_bind(&*group.model);
    key.push_bind(&*group.operation);
    key.push_bind(group.outcome_class);
    key.push_bind(group.attribution.clone());
}

/// `, cost_usd, cost_upstream_usd, input_tokens, …, units`
fn push_sum_columns(query: &mut QueryBuilder<Db>) {
    query.push(", cost_usd, cost_upstream_usd");
    for (_, column) in TOKEN_COLUMNS {
        query.push(", ").push(column);
    }
    query.push(", units");
}

/// Selects the group and the sums of a source, without summing them.
fn push_select(source: &Source, select: &mut QueryBuilder<Db>, by: &[Dimension]) {
    let (table, time, format): (_, _, fn(DateTime<Utc>) -> String) = match source.granularity {
        None => ("api_usage_logs", "started_at", timestamp),
        Some(_) => ("api_usage_aggregates", "bucket_start", bucket_start),
    };
    select.push("select ");
    for dimension in by {
        match dimension {
            Dimension::Provider => select.push("provider"),
            Dimension::Model if source.granularity.is_some() => select.push("nullif(model, '')"),
            Dimension::Model => select.push("coalesce(model_served, model_requested)"),
            Dimension::Operation => select.push("operation"),
            Dimension::Outcome => select.push("outcome"),
            Dimension::Day => select.push(format_args!("substr({time}, 1, 10)")),
            Dimension::Hour => select.push(format_args!("substr({time}, 1, 13) || ':00Z'")),
            Dimension::Key => select.push("key_fingerprint"),
            Dimension::Instance => select.push("instance"),
            // Unknown is the empty text in the key of the sums.
            Dimension::Namespace => select.push("nullif(namespace, '')"),
            Dimension::ServiceTier => select.push("service_tier"),
            Dimension::Attribution(label) => select.push("attribution ->> ").push_bind(label),
        };
        select.push(", ");
    }
    select.push(match source.granularity {
        None => "1, unpriced_reason is not null",
        Some(_) => "requests, unpriced_requests",
    });
    push_sum_columns(select);
    select.push(format_args!(" from {table} where {time} >= "));
    select.push_bind(format(source.from));
    if let Some(to) = source.to {
        select.push(format_args!(" and {time} < "));
        select.push_bind(format(to));
    }
    if let Some(granularity) = source.granularity {
        select.push(" and granularity = ");
        select.push_bind(granularity.as_str());
    }
}

/// The group and the sums of a row of [`push_select`].
fn decode_usage(
    row: &SqliteRow,
    dimensions: usize,
) -> Result<(Vec<Option<String>>, Totals), StoreError> {
    let group = (0..dimensions)
        .map(|index| row.try_get(index))
        .collect::<Result<_, _>>()
        .map_err(classify)?;
    let sum = |index: usize| -> Result<Option<_>, StoreError> {
        let text: Option<&str> = row.try_get(dimensions + index).map_err(classify)?;
        text.map(parse_sum).transpose()
    };
    let mut totals = Totals {
        requests: row.try_get(dimensions).map_err(classify)?,
        unpriced_requests: row.try_get(dimensions + 1).map_err(classify)?,
        cost_usd: sum(2)?,
        cost_upstream_usd: sum(3)?,
        quantities: BTreeMap::new(),
    };
    let first_token = dimensions + SUM_COLUMNS_FIXED;
    for (index, (unit, _)) in TOKEN_COLUMNS.iter().enumerate() {
        let tokens: Option<i64> = row.try_get(first_token + index).map_err(classify)?;
        if let Some(tokens) = tokens {
            totals.quantities.insert(*unit, tokens.into());
        }
    }
    let units: Option<&str> = row
        .try_get(first_token + TOKEN_COLUMNS.len())
        .map_err(classify)?;
    if let Some(units) = units {
        totals.quantities.extend(parse_units(units)?);
    }
    Ok((group, totals))
}

fn decode_log(row: &SqliteRow) -> Result<LogRow, StoreError> {
    let mut values = Vec::with_capacity(COLUMNS.len());
    for (index, (_, kind)) in COLUMNS.iter().enumerate() {
        let value = match kind {
            Kind::Text => row
                .try_get::<Option<String>, _>(index)
                .map(|text| text.map(|text| Value::Text(text.into()))),
            Kind::Json => row
                .try_get::<Option<String>, _>(index)
                .map(|json| json.map(|json| Value::Json(json.into()))),
            Kind::Integer => row
                .try_get::<Option<i64>, _>(index)
                .map(|number| number.map(Value::Integer)),
            Kind::Boolean => row
                .try_get::<Option<bool>, _>(index)
                .map(|value| value.map(Value::Boolean)),
        };
        values.push(value.map_err(classify)?.unwrap_or(Value::Null));
    }
    Ok(LogRow::new(values))
}
