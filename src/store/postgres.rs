//! The production store: Postgres 15 or newer, straight or through PgBouncer in transaction mode.
//!
//! A batch is one call of `taffrail.record_usage`, which inserts what is new and feeds the sums
//! from exactly that; the login may have no other right. Nothing depends on the state of a
//! session: every call is one transaction with statements of no name, there is no `LISTEN`, and
//! no startup parameter that a pooler would not know. Sources: the Postgres manual's appendix A
//! (error codes), pgbouncer.org/features.html.

mod prices;
mod receipts;
mod reconciliations;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use serde::de::DeserializeOwned;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgRow, PgSslMode};
use sqlx::{
    ConnectOptions, Connection, Decode, PgConnection, Postgres as Db, QueryBuilder, Row, Type,
};
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use crate::fault::Outcome;
use crate::record::UsageRecord;

use super::balances::{self, AccountSignal, BalanceReading, Signal};
use super::jobs::{Answer, JobNews, JobQuery, Overdue, OverdueJob, Told};
use super::query::{Dimension, LogQuery, Source, Totals, UsageQuery, UsageRow, sources};
use super::row::{COLUMNS, Kind, LogRow, TOKEN_COLUMNS, Value, encode};
use super::slot::{Slot, Turn};
use super::{
    Applied, BALANCES_PER_DROP, Config, JOBS_PER_DROP, OVERDUE_MAX, StoreError, parse_sum,
    parse_units,
};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// The table that lists what has been migrated.
const MIGRATIONS_TABLE: &str = "taffrail._sqlx_migrations";

/// The key of the lock that keeps two who migrate apart: "taffrail" as a number.
const MIGRATION_LOCK: i64 = 0x7461_6666_7261_696c;

/// Limits what one call may take, so that a lock or a slow disk does not hold a connection for
/// ever. They are set for the transaction alone.
const BEGIN: &str = "begin; set local lock_timeout = '5s'; set local statement_timeout = '15s'; set local time zone 'UTC'";
const BEGIN_READING: &str = "begin transaction read only; set local statement_timeout = '60s'; \
     set local time zone 'UTC'";
const BEGIN_BACKFILLING: &str = "begin; set local lock_timeout = '60s'; set local time zone 'UTC'";
const BEGIN_MIGRATING: &str = "begin; set local lock_timeout = '60s'; set local time zone 'UTC'";

/// How long a call may take, before its connection is given up. Longer than what the server
/// itself allows a statement, so that it is the server who ends what is only slow.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
const READ_TIMEOUT: Duration = Duration::from_secs(70);
const MIGRATION_TIMEOUT: Duration = Duration::from_mins(10);
const BACKFILL_TIMEOUT: Duration = Duration::from_hours(1);

/// The most rows of sums that one call drops.
const SUMS_PER_DROP: i32 = 1_000;

/// A Postgres store: a connection that writes, and one that answers whoever asks.
#[derive(Debug, Clone)]
pub struct Postgres {
    writer: Slot,
    reader: Slot,
    config: Arc<Config>,
    description: String,
}

impl Postgres {
    pub(super) fn lazy(config: &Config) -> Result<Postgres, StoreError> {
        Ok(Postgres {
            writer: Slot::default(),
            reader: Slot::default(),
            config: Arc::new(config.clone()),
            description: description(&options(config)?),
        })
    }

    pub(super) async fn open(config: &Config) -> Result<Postgres, StoreError> {
        let store = Postgres::lazy(config)?;
        store.prepare().await?;
        Ok(store)
    }

    pub(super) async fn open_read_only(config: &Config) -> Result<Postgres, StoreError> {
        let store = Postgres::lazy(config)?;
        store.check_schema(&store.reader).await?;
        Ok(store)
    }

    /// Brings the schema up to date if that is wanted and needed, and refuses another one.
    async fn prepare(&self) -> Result<(), StoreError> {
        if self.config.migrate && self.schema_version(&self.writer).await? < newest() {
            self.migrate().await?;
        }
        self.check_schema(&self.writer).await
    }

    async fn check_schema(&self, slot: &Slot) -> Result<(), StoreError> {
        let version = self.schema_version(slot).await?;
        if version < newest() {
            return Err(StoreError::Unusable(format!(
                "{} has no schema or an older one; run `taffrail migrate` as its owner",
                self.description
            )));
        }
        if version > newest() {
            return Err(super::newer_schema(&self.description));
        }
        Ok(())
    }

    async fn schema_version(&self, slot: &Slot) -> Result<Option<i64>, StoreError> {
        let mut lent = self.connection(slot).await?;
        let done = timeout(CALL_TIMEOUT, schema_version(&mut lent.1)).await;
        self.settle(lent, done).await
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        let mut lent = self.connection(&self.writer).await?;
        let done = timeout(MIGRATION_TIMEOUT, migrate(&mut lent.1)).await;
        self.settle(lent, done).await
    }

    /// The connection of a slot; made if there is none.
    async fn connection(&self, slot: &Slot) -> Result<(Turn, PgConnection), StoreError> {
        let (turn, kept) = slot.turn().await;
        let connection = match kept {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        Ok((turn, connection))
    }

    async fn connect(&self) -> Result<PgConnection, StoreError> {
        // The password, or the whole URL, may have been changed.
        let mut config = Config::clone(&self.config);
        if let Some(file) = &config.url_file
            && let Ok(url) = std::fs::read_to_string(file)
        {
            url.trim().clone_into(&mut config.url);
        }
        let options = options(&config)?;
        let limit = config.connect_timeout;
        let error = match timeout(limit, options.connect()).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => classify(error),
            Err(_) => StoreError::Unavailable(format!("no answer within {limit:?}")),
        };
        let told = |reason| format!("cannot connect to {}: {reason}", description(&options));
        Err(match error {
            StoreError::Unavailable(reason) => StoreError::Unavailable(told(reason)),
            StoreError::Unusable(reason) => StoreError::Unusable(told(reason)),
            error => error,
        })
    }

    /// Ends a call. A connection on which it did not end in time, or which may be broken, is
    /// closed without waiting: a network that swallows packets answers nothing.
    async fn settle<T>(
        &self,
        (turn, mut connection): (Turn, PgConnection),
        done: Result<Result<T, StoreError>, Elapsed>,
    ) -> Result<T, StoreError> {
        let done = done.unwrap_or_else(|_| {
            Err(StoreError::TimedOut(format!(
                "{} did not answer a call",
                self.description
            )))
        });
        let is_sound = match &done {
            Ok(_) => true,
            Err(StoreError::Unavailable(_) | StoreError::TimedOut(_)) => false,
            // The transaction is rolled back with the next message.
            Err(_) => matches!(timeout(CALL_TIMEOUT, connection.ping()).await, Ok(Ok(()))),
        };
        if is_sound {
            turn.give_back(connection, self.config.idle_timeout);
        }
        done
    }

    pub(super) async fn apply(&self, records: &[UsageRecord]) -> Result<Applied, StoreError> {
        let mut applied = Applied::default();
        // Row by row, so that a batch is in memory once and not in every form at a time.
        let mut batch = vec![b'['];
        let mut rows = 0_u64;
        for (index, record) in records.iter().enumerate() {
            match encode(record) {
                Ok(row) => {
                    if rows > 0 {
                        batch.push(b',');
                    }
                    serde_json::to_writer(&mut batch, &Incoming(row))
                        .map_err(|error| StoreError::Rejected(error.to_string()))?;
                    rows += 1;
                }
                Err(rejection) => applied.rejected.push((index, rejection)),
            }
        }
        if rows == 0 {
            return Ok(applied);
        }
        batch.push(b']');
        let batch =
            str::from_utf8(&batch).map_err(|error| StoreError::Rejected(error.to_string()))?;
        let stored = match self.record_usage(batch).await {
            // The schema is looked at when it does not fit, not before every batch.
            Err(StoreError::Unusable(_)) => {
                self.prepare().await?;
                self.record_usage(batch).await?
            }
            stored => stored?,
        };
        applied.stored = u64::try_from(stored).unwrap_or_default();
        applied.duplicates = rows.saturating_sub(applied.stored);
        Ok(applied)
    }

    async fn record_usage(&self, batch: &str) -> Result<i64, StoreError> {
        let mut call = QueryBuilder::new("select taffrail.record_usage(");
        call.push_bind(batch).push(")");
        self.call(call).await
    }

    pub(super) async fn backfill(&self, day: NaiveDate) -> Result<u64, StoreError> {
        let mut call = QueryBuilder::new("select taffrail.backfill_usage_aggregates(");
        call.push_bind(day).push(", ");
        call.push_bind(day).push(" + 1)");
        let limits = (BEGIN_BACKFILLING, BACKFILL_TIMEOUT);
        let buckets: i64 = self.call_within(limits, call).await?;
        Ok(u64::try_from(buckets).unwrap_or_default())
    }

    /// Calls a function; returns its value.
    async fn call<T>(&self, call: QueryBuilder<Db>) -> Result<T, StoreError>
    where
        T: Type<Db> + for<'r> Decode<'r, Db> + Send + Unpin,
    {
        self.call_within((BEGIN, CALL_TIMEOUT), call).await
    }

    /// As [`Postgres::call`], within limits of the server's and of its own.
    async fn call_within<T>(
        &self,
        (begin, limit): (&'static str, Duration),
        mut call: QueryBuilder<Db>,
    ) -> Result<T, StoreError>
    where
        T: Type<Db> + for<'r> Decode<'r, Db> + Send + Unpin,
    {
        let mut lent = self.connection(&self.writer).await?;
        let done = timeout(limit, call_function(&mut lent.1, begin, &mut call)).await;
        self.settle(lent, done).await
    }

    pub(super) async fn today(&self) -> Result<NaiveDate, StoreError> {
        self.prepare().await?;
        self.call(QueryBuilder::new("select current_date")).await
    }

    pub(super) async fn prepare_days(
        &self,
        first: NaiveDate,
        last: NaiveDate,
    ) -> Result<(), StoreError> {
        let mut call = QueryBuilder::new(
            "select count(taffrail.ensure_partition(day::date)) from generate_series(",
        );
        call.push_bind(first).push("::timestamp, ");
        call.push_bind(last)
            .push("::timestamp, interval '1 day') as day");
        let _days: i64 = self.call(call).await?;
        Ok(())
    }

    pub(super) async fn drop_logs(
        &self,
        before: NaiveDate,
    ) -> Result<Option<NaiveDate>, StoreError> {
        let mut call = QueryBuilder::new("select taffrail.drop_oldest_partition(");
        call.push_bind(before).push(")");
        self.call(call).await
    }

    pub(super) async fn drop_aggregates(&self, before: NaiveDate) -> Result<u64, StoreError> {
        let mut call = QueryBuilder::new("select taffrail.drop_aggregates(");
        call.push_bind(before).push(", ");
        call.push_bind(SUMS_PER_DROP).push(")");
        let dropped: i64 = self.call(call).await?;
        Ok(u64::try_from(dropped).unwrap_or_default())
    }

    pub(super) async fn exchange_jobs(
        &self,
        jobs: &[JobQuery],
    ) -> Result<Vec<JobNews>, StoreError> {
        let told: Vec<Told<'_>> = jobs.iter().map(Told::of).collect();
        let batch = serde_json::to_string(&told)
            .map_err(|error| StoreError::Rejected(error.to_string()))?;
        let call = || {
            let mut call = QueryBuilder::new("select taffrail.exchange_jobs(");
            call.push_bind(batch.clone()).push(")");
            self.call::<String>(call)
        };
        let answers = match call().await {
            Err(StoreError::Unusable(_)) => {
                self.prepare().await?;
                call().await?
            }
            answers => answers?,
        };
        let answers: Vec<Answer> = parse_answer(&answers)?;
        Ok(answers.into_iter().map(Answer::news).collect())
    }

    pub(super) async fn overdue_jobs(
        &self,
        grace: Duration,
    ) -> Result<Vec<OverdueJob>, StoreError> {
        self.prepare().await?;
        let mut call = QueryBuilder::new("select taffrail.overdue_jobs(make_interval(secs => ");
        call.push_bind(grace.as_secs_f64()).push("), ");
        call.push_bind(OVERDUE_MAX).push(")");
        let jobs: String = self.call(call).await?;
        let jobs: Vec<Overdue> = parse_answer(&jobs)?;
        Ok(jobs.into_iter().map(Overdue::job).collect())
    }

    pub(super) async fn drop_jobs(&self, before: NaiveDate) -> Result<u64, StoreError> {
        let mut call = QueryBuilder::new("select taffrail.drop_jobs(");
        call.push_bind(before).push(", ");
        call.push_bind(JOBS_PER_DROP).push(")");
        let dropped: i64 = self.call(call).await?;
        Ok(u64::try_from(dropped).unwrap_or_default())
    }

    pub(super) async fn drop_balances(&self, before: NaiveDate) -> Result<u64, StoreError> {
        let mut call = QueryBuilder::new("select taffrail.drop_balances(");
        call.push_bind(before).push(", ");
        call.push_bind(BALANCES_PER_DROP).push(")");
        let dropped: i64 = self.call(call).await?;
        Ok(u64::try_from(dropped).unwrap_or_default())
    }

    pub(super) async fn now(&self) -> Result<DateTime<Utc>, StoreError> {
        self.prepare().await?;
        self.call(QueryBuilder::new("select now()")).await
    }

    pub(super) async fn take_lease(
        &self,
        name: &str,
        holder: &str,
        lasting: Duration,
    ) -> Result<bool, StoreError> {
        let mut call = QueryBuilder::new("select taffrail.take_lease(");
        call.push_bind(name).push(", ");
        call.push_bind(holder).push(", make_interval(secs => ");
        call.push_bind(lasting.as_secs_f64()).push("))");
        self.call(call).await
    }

    pub(super) async fn record_balance(
        &self,
        reading: &BalanceReading,
    ) -> Result<bool, StoreError> {
        let reading = serde_json::to_string(&balances::parts(reading))
            .map_err(|error| StoreError::Rejected(error.to_string()))?;
        let mut call = QueryBuilder::new("select taffrail.record_balance(");
        call.push_bind(reading).push(")");
        self.call(call).await
    }

    pub(super) async fn latest_balances(&self) -> Result<Vec<BalanceReading>, StoreError> {
        let mut select = QueryBuilder::new(
            "select coalesce(json_agg(json_build_object( \
                 'provider', provider, 'account', account, 'slot', slot, 'part', part, \
                 'read_at', read_at, 'result', result, 'kind', kind, 'currency', currency, \
                 'balance', balance::text, 'detail', detail, 'raw', raw::text \
             ) order by provider, account, slot, part), '[]')::text \
             from ( \
                 select *, dense_rank() over ( \
                     partition by provider, account, result = 'ok' order by slot desc \
                 ) as age \
                 from taffrail.api_provider_balances where read_at > now() - ",
        );
        select.push_bind(balances::LATEST_DAYS);
        select.push("::int * interval '1 day') as readings where age <= ");
        select.push_bind(balances::LATEST_EACH);
        let rows = self.read(select).await?;
        let json: &str = match rows.first() {
            Some(row) => row.try_get(0).map_err(classify)?,
            None => "[]",
        };
        balances::readings(parse_answer(json)?)
    }

    pub(super) async fn account_signals(
        &self,
        lasting: Duration,
    ) -> Result<Vec<AccountSignal>, StoreError> {
        let mut call = QueryBuilder::new("select taffrail.account_signals(make_interval(secs => ");
        call.push_bind(lasting.as_secs_f64()).push("))");
        let signals: String = self.call(call).await?;
        let signals: Vec<Signal> = parse_answer(&signals)?;
        Ok(signals.into_iter().filter_map(Signal::read).collect())
    }

    pub(super) async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageRow>, StoreError> {
        let rows = self.read(usage_query(query)).await?;
        let dimensions = query.by.len();
        let decoded = rows.iter().map(|row| decode_usage(row, dimensions));
        decoded.filter_map(Result::transpose).collect()
    }

    pub(super) async fn logs(&self, query: &LogQuery) -> Result<Vec<LogRow>, StoreError> {
        if let Some(before) = query.before {
            let mut select =
                QueryBuilder::<Db>::new("select from taffrail.api_usage_logs where id = ");
            select.push_bind(before);
            if self.read(select).await?.is_empty() {
                return Err(StoreError::UnknownRow(before));
            }
        }
        let rows = self.read(logs_query(query)).await?;
        rows.iter().map(decode_log).collect()
    }

    pub(super) async fn attribution_labels(&self) -> Result<Vec<String>, StoreError> {
        let select = QueryBuilder::new(
            "select distinct jsonb_object_keys(attribution) collate \"C\" \
             from taffrail.api_usage_aggregates where granularity = 'day' order by 1",
        );
        let rows = self.read(select).await?;
        rows.iter()
            .map(|row| row.try_get(0).map_err(classify))
            .collect()
    }

    async fn read(&self, mut select: QueryBuilder<Db>) -> Result<Vec<PgRow>, StoreError> {
        let mut lent = self.connection(&self.reader).await?;
        let done = timeout(READ_TIMEOUT, read(&mut lent.1, &mut select)).await;
        self.settle(lent, done).await
    }

    pub(super) async fn ping(&self) -> Result<(), StoreError> {
        self.check_schema(&self.reader).await
    }

    pub(super) fn description(&self) -> String {
        self.description.clone()
    }

    pub(super) async fn close(&self) {
        tokio::join!(self.writer.close(), self.reader.close());
    }
}

/// Which database it is, without credentials.
fn description(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or(options.get_username());
    match options.get_socket() {
        Some(socket) => format!("postgres {}:{database}", socket.display()),
        None => format!(
            "postgres {}:{}/{database}",
            options.get_host(),
            options.get_port()
        ),
    }
}

/// How to connect: as the URL says, with the password of its file, and safely.
fn options(config: &Config) -> Result<PgConnectOptions, StoreError> {
    let problem = |problem: String| StoreError::Config(problem);
    // The driver's own words could quote the URL, and with it a password.
    let mut options = PgConnectOptions::from_str(&config.url).map_err(|_| {
        problem(
            "it is not a URL of Postgres; accepted is postgres://USER@HOST:PORT/DATABASE".into(),
        )
    })?;
    if let Some(file) = &config.password_file {
        let password = std::fs::read_to_string(file)
            .map_err(|error| problem(format!("store.password_file {}: {error}", file.display())))?;
        options = options.password(password.trim_end_matches(['\r', '\n']));
    }
    // The driver would say that there is no file, and not which.
    let parameters = config.url.split(['?', '&']).skip(1);
    let authority = parameters
        .filter_map(|parameter| parameter.split_once('='))
        .find(|(name, _)| ["sslrootcert", "ssl-root-cert", "ssl-ca"].contains(name));
    if let Some((name, file)) = authority.filter(|(_, file)| !file.contains('%')) {
        std::fs::metadata(file).map_err(|error| problem(format!("{name} {file}: {error}")))?;
    }
    let is_here = options.get_socket().is_some()
        || options.get_host().starts_with('/')
        || options.get_host() == "localhost"
        || options
            .get_host()
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.is_loopback());
    if !is_here {
        let is_stated = config.url.contains("sslmode=") || config.url.contains("ssl-mode=");
        options = match options.get_ssl_mode() {
            PgSslMode::VerifyFull => options,
            _ if !is_stated => options.ssl_mode(PgSslMode::VerifyFull),
            _ => {
                return Err(problem(
                    "off this machine only sslmode=verify-full is safe; sslrootcert=FILE names \
                     the CA of a server with a private certificate"
                        .to_owned(),
                ));
            }
        };
    }
    Ok(options
        .application_name("taffrail")
        // A pooler in transaction mode knows neither this parameter nor statements with a name.
        .extra_float_digits(None)
        .statement_cache_capacity(0)
        .disable_statement_logging())
}

fn newest() -> Option<i64> {
    MIGRATIONS.iter().map(|migration| migration.version).max()
}

async fn schema_version(connection: &mut PgConnection) -> Result<Option<i64>, StoreError> {
    let version = async {
        let mut transaction = connection.begin_with(BEGIN_READING).await?;
        let is_there: bool =
            sqlx::query_scalar("select to_regprocedure('taffrail.schema_version()') is not null")
                .persistent(false)
                .fetch_one(&mut *transaction)
                .await?;
        let version = match is_there {
            true => {
                sqlx::query_scalar("select taffrail.schema_version()")
                    .persistent(false)
                    .fetch_one(&mut *transaction)
                    .await?
            }
            false => None,
        };
        transaction.commit().await?;
        Ok(version)
    };
    version.await.map_err(classify)
}

async fn call_function<T>(
    connection: &mut PgConnection,
    begin: &'static str,
    call: &mut QueryBuilder<Db>,
) -> Result<T, StoreError>
where
    T: Type<Db> + for<'r> Decode<'r, Db> + Send + Unpin,
{
    let value = async {
        let mut transaction = connection.begin_with(begin).await?;
        let value = call
            .build_query_scalar()
            .persistent(false)
            .fetch_one(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(value)
    };
    value.await.map_err(classify)
}

/// What a function has answered in JSON.
fn parse_answer<T: DeserializeOwned>(json: &str) -> Result<T, StoreError> {
    serde_json::from_str(json)
        .map_err(|error| StoreError::Unusable(format!("an answer is not readable: {error}")))
}

async fn read(
    connection: &mut PgConnection,
    select: &mut QueryBuilder<Db>,
) -> Result<Vec<PgRow>, StoreError> {
    let rows = async {
        let mut transaction = connection.begin_with(BEGIN_READING).await?;
        let rows = select
            .build()
            .persistent(false)
            .fetch_all(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(rows)
    };
    rows.await.map_err(classify)
}

/// Applies the migrations that the database lacks, all or none. The lock belongs to the
/// transaction, because a pooler does not keep sessions.
async fn migrate(connection: &mut PgConnection) -> Result<(), StoreError> {
    let mut transaction = connection
        .begin_with(BEGIN_MIGRATING)
        .await
        .map_err(classify)?;
    let encoding: String = sqlx::query_scalar("select current_setting('server_encoding')")
        .persistent(false)
        .fetch_one(&mut *transaction)
        .await
        .map_err(classify)?;
    if encoding != "UTF8" {
        return Err(StoreError::Unusable(format!(
            "the database's encoding is {encoding}; make one with encoding UTF8"
        )));
    }
    sqlx::query("select pg_advisory_xact_lock($1)")
        .bind(MIGRATION_LOCK)
        .persistent(false)
        .execute(&mut *transaction)
        .await
        .map_err(classify)?;
    // Not `create schema if not exists`: that asks for a right which the owner of a schema that
    // is there need not have.
    let has_schema: bool = sqlx::query_scalar("select to_regnamespace('taffrail') is not null")
        .persistent(false)
        .fetch_one(&mut *transaction)
        .await
        .map_err(classify)?;
    if !has_schema {
        sqlx::raw_sql("create schema taffrail")
            .execute(&mut *transaction)
            .await
            .map_err(classify)?;
    }
    let mut migrator = Migrator::with_migrations(MIGRATIONS.iter().cloned().collect());
    migrator.set_locking(false);
    migrator.dangerous_set_table_name(MIGRATIONS_TABLE);
    migrator
        .run_direct(None, &mut *transaction, false)
        .await
        .map_err(|error| match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
                match classify(error) {
                    // There is no record to blame.
                    StoreError::Rejected(reason) => StoreError::Unusable(reason),
                    error => error,
                }
            }
            MigrateError::VersionMissing(_) => super::newer_schema("the database"),
            error => StoreError::Unusable(error.to_string()),
        })?;
    transaction.commit().await.map_err(classify)
}

/// What the caller does about an error, by the class of its SQLSTATE.
fn classify(error: sqlx::Error) -> StoreError {
    match &error {
        sqlx::Error::Database(database) => {
            let code = database.code().unwrap_or_default();
            let told = format!("{} (SQLSTATE {code})", database.message());
            match code.get(..2).unwrap_or_default() {
                _ if code == "42501" => StoreError::Unusable(format!(
                    "{told}; docs/postgres.md says which login may do what"
                )),
                // What a value is or breaks; a limit of the program, such as the size of a key.
                "22" | "23" | "54" => StoreError::Rejected(told),
                // Authorisation, a database or schema that is not there, a statement that does
                // not fit it, damage.
                "28" | "3D" | "3F" | "42" => StoreError::Unusable(told),
                _ if code == "55P03" => StoreError::Locked(told),
                _ if code == "XX001" || code == "XX002" => StoreError::Unusable(told),
                // Cancelled, which is what the limit of a statement does.
                _ if code == "57014" => StoreError::TimedOut(told),
                // Rolled back, locked, read only, full, shutting down, or not known: it passes.
                _ => StoreError::Unavailable(told),
            }
        }
        _ => super::classify_driver(error),
    }
}

/// A row as `record_usage` takes it: the contract's columns, but `raw_usage` as text, so that the
/// server does not decode what a provider wrote.
struct Incoming(LogRow);

impl Serialize for Incoming {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let known = |(_, value): &(_, &Value)| **value != Value::Null;
        let mut map = serializer.serialize_map(None)?;
        for ((name, _), value) in COLUMNS.iter().zip(self.0.values()).filter(known) {
            match value {
                Value::Json(json) if *name == "raw_usage" => map.serialize_entry(name, &**json)?,
                value => map.serialize_entry(name, value)?,
            }
        }
        map.end()
    }
}

/// The columns that hold decimals, in the order in which a sum is selected.
fn decimal_columns() -> impl Iterator<Item = &'static str> {
    let costs = ["cost_usd", "cost_upstream_usd"];
    costs
        .into_iter()
        .chain(TOKEN_COLUMNS.iter().map(|(_, column)| *column))
}

fn usage_query(query: &UsageQuery) -> QueryBuilder<Db> {
    let dimensions = query.by.len();
    let mut select = QueryBuilder::new("select ");
    for index in 0..dimensions {
        select.push(format_args!("d{index}, "));
    }
    select.push("sum(requests)::bigint, sum(unpriced_requests)::bigint");
    for column in decimal_columns() {
        select.push(format_args!(", sum({column})::text"));
    }
    select.push(", taffrail.sum_units(units)::text from (");
    for (index, source) in sources(query).iter().enumerate() {
        if index > 0 {
            select.push(" union all ");
        }
        push_select(source, &mut select, &query.by);
    }
    select.push(") as parts");
    for index in 0..dimensions {
        select.push(if index == 0 { " group by " } else { ", " });
        select.push(format_args!("d{index}"));
    }
    select
}

/// Selects the group and the sums of a source, without summing them.
fn push_select(source: &Source, select: &mut QueryBuilder<Db>, by: &[Dimension]) {
    let (table, time) = match source.granularity {
        None => ("taffrail.api_usage_logs", "started_at"),
        Some(_) => ("taffrail.api_usage_aggregates", "bucket_start"),
    };
    select.push("select ");
    for (index, dimension) in by.iter().enumerate() {
        match dimension {
            Dimension::Provider => select.push("provider"),
            Dimension::Model if source.granularity.is_some() => select.push("nullif(model, '')"),
            Dimension::Model => select.push("coalesce(model_served, model_requested)"),
            Dimension::Operation => select.push("operation"),
            Dimension::Outcome => select.push("outcome"),
            Dimension::Day => select.push(format_args!("to_char({time}, 'YYYY-MM-DD')")),
            Dimension::Hour => select.push(format_args!(
                "to_char({time}, 'YYYY-MM-DD\"T\"HH24\":00Z\"')"
            )),
            Dimension::Key => select.push("key_fingerprint"),
            Dimension::Instance => select.push("instance"),
            // Unknown is the empty text in the key of the sums.
            Dimension::Namespace => select.push("nullif(namespace, '')"),
            Dimension::ServiceTier => select.push("service_tier"),
            Dimension::Attribution(label) => {
                select.push("attribution ->> ").push_bind(label.clone())
            }
        };
        select.push(format_args!("::text as d{index}, "));
    }
    select.push(match source.granularity {
        None => "1 as requests, (unpriced_reason is not null)::int as unpriced_requests",
        Some(_) => "requests, unpriced_requests",
    });
    for column in decimal_columns() {
        select.push(", ").push(column);
    }
    select.push(format_args!(", units from {table} where {time} >= "));
    select.push_bind(source.from);
    if let Some(to) = source.to {
        select.push(format_args!(" and {time} < ")).push_bind(to);
    }
    match source.granularity {
        Some(granularity) => {
            select
                .push(" and granularity = ")
                .push_bind(granularity.as_str());
        }
        // A row's day can differ from its start by the moment in which its id was made.
        None => {
            select
                .push(" and day >= ")
                .push_bind(source.from.date_naive());
            select.push(" - 1");
        }
    }
}

/// The group and the sums of a row of [`usage_query`]; `None` if it counts no request.
fn decode_usage(row: &PgRow, dimensions: usize) -> Result<Option<UsageRow>, StoreError> {
    let Some(requests) = row.try_get(dimensions).map_err(classify)? else {
        return Ok(None);
    };
    let group = (0..dimensions)
        .map(|index| row.try_get(index))
        .collect::<Result<_, _>>()
        .map_err(classify)?;
    let sum = |index: usize| {
        let text: Option<&str> = row.try_get(dimensions + index).map_err(classify)?;
        text.map(parse_sum).transpose()
    };
    let mut totals = Totals {
        requests,
        unpriced_requests: row.try_get(dimensions + 1).map_err(classify)?,
        cost_usd: sum(2)?,
        cost_upstream_usd: sum(3)?,
        quantities: BTreeMap::new(),
    };
    for (index, (unit, _)) in TOKEN_COLUMNS.iter().enumerate() {
        if let Some(tokens) = sum(4 + index)? {
            totals.quantities.insert(*unit, tokens);
        }
    }
    let units = dimensions + 4 + TOKEN_COLUMNS.len();
    if let Some(units) = row.try_get(units).map_err(classify)? {
        totals.quantities.extend(parse_units(units)?);
    }
    Ok(Some(UsageRow { group, totals }))
}

/// The columns of a row as [`decode_log`] reads them.
fn push_log_columns(select: &mut QueryBuilder<Db>) {
    let mut columns = select.separated(", ");
    for (name, kind) in COLUMNS {
        match (kind, *name) {
            (_, "started_at" | "recosted_at") => columns.push(format_args!(
                "to_char({name}, 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
            )),
            (Kind::Text | Kind::Json, _) => columns.push(format_args!("{name}::text")),
            (Kind::Integer, _) => columns.push(format_args!("{name}::bigint")),
            (Kind::Boolean, _) => columns.push(name),
        };
    }
}

fn logs_query(query: &LogQuery) -> QueryBuilder<Db> {
    let mut select = QueryBuilder::new("select ");
    push_log_columns(&mut select);
    select.push(" from taffrail.api_usage_logs where true");
    if let Some(before) = query.before {
        select.push(
            " and (started_at, id) < (select started_at, id from taffrail.api_usage_logs where id = ",
        );
        select.push_bind(before).push(")");
    }
    if let Some(provider) = &query.provider {
        select.push(" and provider = ").push_bind(provider.clone());
    }
    if let Some(outcome) = query.outcome {
        select.push(" and outcome = ").push_bind(outcome.as_str());
        if outcome != Outcome::Ok {
            // The index of outcomes holds these alone.
            select.push(" and outcome <> 'ok'");
        }
    }
    select.push(" order by api_usage_logs.started_at desc, api_usage_logs.id desc limit ");
    select.push_bind(i64::from(query.limit));
    select
}

fn decode_log(row: &PgRow) -> Result<LogRow, StoreError> {
    let mut values = Vec::with_capacity(COLUMNS.len());
    for (index, (name, kind)) in COLUMNS.iter().enumerate() {
        let value = match kind {
            Kind::Text => row
                .try_get::<Option<String>, _>(index)
                .map(|text| text.map(|text| Value::Text(text.into()))),
            Kind::Json => row.try_get::<Option<String>, _>(index).map(|json| {
                json.map(|json| {
                    // What a provider wrote is kept as text; the others the server has rewritten.
                    let json = if *name == "raw_usage" {
                        json
                    } else {
                        compact(json)
                    };
                    Value::Json(json.into())
                })
            }),
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

/// JSON without white space and with its keys sorted, as rows are encoded.
fn compact(json: String) -> String {
    serde_json::from_str::<serde_json::Value>(&json).map_or(json, |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(url: &str) -> Result<PgConnectOptions, StoreError> {
        options(&Config {
            url: url.to_owned(),
            ..Config::default()
        })
    }

    #[test]
    fn off_this_machine_certificates_are_verified_or_nothing_is_sent() {
        let mode = |url| at(url).map(|options| options.get_ssl_mode());
        for url in [
            "postgres://me@db.example.com/x",
            "postgres://me@10.0.0.7/x?sslmode=verify-full",
        ] {
            assert!(matches!(mode(url), Ok(PgSslMode::VerifyFull)), "{url}");
        }
        for weak in ["disable", "allow", "prefer", "require", "verify-ca"] {
            let url = format!("postgres://me:hunter2@db.example.com/x?sslmode={weak}");
            let error = at(&url).unwrap_err().to_string();
            assert!(
                error.contains("only sslmode=verify-full is safe"),
                "{error}"
            );
            assert!(!error.contains("hunter2"), "{error}");
        }
        for url in [
            "postgres://me@127.0.0.1/x",
            "postgres://me@localhost:6432/x?sslmode=disable",
        ] {
            assert!(!matches!(mode(url), Ok(PgSslMode::VerifyFull)), "{url}");
        }
    }

    #[test]
    fn what_is_no_url_is_refused_without_being_quoted() {
        let error = at("postgres://me:hunter2@:nonsense/x")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("accepted is postgres://USER@HOST:PORT/DATABASE"),
            "{error}"
        );
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_password_and_a_ca_come_from_their_files_or_the_start_says_why_not() {
        let config = Config {
            url: "postgres://me@localhost/x".to_owned(),
            password_file: Some("/nowhere/password".into()),
            ..Config::default()
        };
        let error = options(&config).unwrap_err().to_string();
        assert!(
            error.contains("store.password_file /nowhere/password"),
            "{error}"
        );
        let error = at("postgres://me@db.example.com/x?sslrootcert=/nowhere/ca.pem")
            .unwrap_err()
            .to_string();
        assert!(error.contains("sslrootcert /nowhere/ca.pem: "), "{error}");
    }
}
