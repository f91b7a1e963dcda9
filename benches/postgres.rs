//! What the Postgres store costs: ways to bring a batch of rows in, side by side on one server,
//! and the time that answers take when there are many rows.
//!
//! `cargo bench --bench postgres -- ingest` and `-- queries [MILLIONS]`; both without arguments.
//! The server is a throwaway one. Linux only: CPU time comes from `/proc`.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::cast_precision_loss,
    reason = "a benchmark fails by panicking and tells by printing"
)]

/// The throwaway servers of the tests.
#[path = "../tests/suite/support"]
#[expect(dead_code, reason = "the tests use the rest of it")]
mod support {
    pub(crate) mod certificate;
    pub(crate) mod eventually;
    pub(crate) mod postgres;
}

use std::fmt::Write as _;
use std::time::Duration;

use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use serde::{Serialize, Serializer};
use sqlx::postgres::PgArguments;
use sqlx::{Arguments as _, AssertSqlSafe, Connection as _, PgConnection, raw_sql};
use taffrail::caller::{Caller, Instance};
use taffrail::clock;
use taffrail::fault::Outcome;
use taffrail::money::Usd;
use taffrail::record::{CostSource, Intent, Operation, UsageRecord};
use taffrail::store::{
    COLUMNS, Config, Dimension, Kind, LogQuery, LogRow, Store, UsageQuery, Value,
};
use taffrail::usage::Unit;
use uuid::{Builder, Uuid};

use support::postgres::{Cluster, Database, Version};

/// Rows of a batch, and batches of a round: the drain's batch, under backlog.
const BATCH_ROWS: usize = 500;
const BATCHES: usize = 60;

/// Rounds of each way, in turns; the median counts.
const ROUNDS: usize = 5;

/// How often a question is asked; the median and the worst count.
const ASKED: usize = 11;

/// The days over which the rows of the questions lie, and how many millions they are.
const DAYS: u64 = 60;
const MILLIONS: u64 = 10;

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    let wants = |name: &str| arguments.is_empty() || arguments[0] == name;
    let millions = arguments
        .get(1)
        .map_or(MILLIONS, |text| text.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(async {
        // As a server in production, but for its memory: a commit is on disk.
        let settings = [
            ("fsync", "on"),
            ("shared_buffers", "512MB"),
            ("max_wal_size", "8GB"),
        ];
        let cluster = Cluster::start(Version::Default, &settings)
            .await
            .expect("needs Postgres");
        if wants("ingest") {
            ingest(&cluster).await;
        }
        if wants("queries") {
            queries(&cluster, millions).await;
        }
    });
}

fn config(database: &Database) -> Config {
    Config {
        url: database.url(),
        ..Config::default()
    }
}

// Ways to bring rows in.

/// How a batch reaches the server. The row's insertion and the sums are the same statement in all.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// What the store does: one JSON text, one call.
    Json,
    /// The same, decoded by the server to its binary form first.
    Jsonb,
    /// An array for each column, one call.
    Arrays,
    /// COPY into a temporary table, then one call. Needs a session.
    Copy,
}

impl Way {
    const ALL: [(Way, &str); 4] = [
        (Way::Json, "one JSON text (record_usage)"),
        (Way::Jsonb, "one jsonb"),
        (Way::Arrays, "an array for each column (unnest)"),
        (Way::Copy, "COPY to a temporary table"),
    ];
}

/// What a round took, per row.
#[derive(Debug, Clone, Copy)]
struct Cost {
    rows_per_second: f64,
    client_us: f64,
    server_us: f64,
}

async fn ingest(cluster: &Cluster) {
    let database = cluster.database().await;
    let store = Store::open(&config(&database)).await.unwrap();
    // Rows as the store makes them.
    let start = "2026-11-23T12:00:00Z".parse().unwrap();
    let records: Vec<UsageRecord> = (0..BATCH_ROWS * BATCHES)
        .map(|number| record(start, number as u64))
        .collect();
    for batch in records.chunks(BATCH_ROWS) {
        store.apply(batch).await.unwrap();
    }
    let rows = all_rows(&store).await;
    assert_eq!(rows.len(), records.len());
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    prepare(&mut connection).await;

    println!(
        "ways in: {} batches of {BATCH_ROWS} rows, medians of {ROUNDS} rounds",
        BATCHES
    );
    println!(
        "{:38} {:>8} {:>14} {:>14}",
        "", "rows/s", "client µs/row", "server µs/row"
    );
    let mut costs = vec![Vec::new(); Way::ALL.len()];
    for _ in 0..ROUNDS {
        for ((way, _), costs) in Way::ALL.iter().zip(&mut costs) {
            costs.push(round(*way, &mut connection, &rows).await);
        }
    }
    for ((_, name), costs) in Way::ALL.iter().zip(&costs) {
        let median = |of: fn(&Cost) -> f64| median(costs.iter().map(of).collect());
        println!(
            "{name:38} {:8.0} {:14.1} {:14.1}",
            median(|cost| cost.rows_per_second),
            median(|cost| cost.client_us),
            median(|cost| cost.server_us)
        );
    }
    // The whole of it, from the record on.
    let mut whole = Vec::new();
    for _ in 0..ROUNDS {
        empty(&mut connection).await;
        let (started, cpu) = (clock::instant(), cpu("thread-self"));
        for batch in records.chunks(BATCH_ROWS) {
            assert_eq!(store.apply(batch).await.unwrap().stored, BATCH_ROWS as u64);
        }
        let rows = records.len() as f64;
        let used = (self::cpu("thread-self") - cpu).as_secs_f64();
        whole.push((rows / started.elapsed().as_secs_f64(), used * 1e6 / rows));
    }
    println!(
        "{:38} {:8.0} {:14.1}",
        "Store::apply, from records on",
        median(whole.iter().map(|(rate, _)| *rate).collect()),
        median(whole.iter().map(|(_, client)| *client).collect()),
    );
    store.close().await;
}

/// Makes a function for each way from the body of the real one: where the rows come from differs.
async fn prepare(connection: &mut PgConnection) {
    let body: String = sqlx::query_scalar(
        "select prosrc from pg_proc where oid = 'taffrail.record_usage(text)'::regprocedure",
    )
    .fetch_one(&mut *connection)
    .await
    .unwrap();
    let reading = {
        let start = body
            .find("    select array_agg(rows)")
            .expect("the reading");
        let end = start + body[start..].find(';').expect("its end");
        start..end
    };
    // What has arrays or a table need not be collected first.
    let with = |source: &str, days_of: &str| {
        format!(
            "{}    select array_agg(distinct day order by day) into days from {days_of}{}",
            &body[..reading.start],
            body[reading.end..].replace("unnest(incoming)", source)
        )
    };
    let types: Vec<(String, String)> = sqlx::query_as(
        "select attname::text, format_type(atttypid, atttypmod) from pg_attribute \
         where attrelid = 'taffrail.api_usage_logs'::regclass and attnum > 0 order by attnum",
    )
    .fetch_all(&mut *connection)
    .await
    .unwrap();
    let type_of = |name: &str| &types.iter().find(|(column, _)| column == name).unwrap().1;
    let mut cast = String::new();
    let mut arrays = String::new();
    let mut parameters = String::new();
    let mut columns = String::new();
    for (index, (name, kind)) in COLUMNS.iter().enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        write!(cast, "{separator}c{index}::{} as {name}", type_of(name)).unwrap();
        write!(arrays, "{separator}c{index}").unwrap();
        write!(columns, "{separator}{name} {}", type_of(name)).unwrap();
        let array = match kind {
            Kind::Text | Kind::Json => "text[]",
            Kind::Integer => "bigint[]",
            Kind::Boolean => "boolean[]",
        };
        write!(parameters, "{separator}c{index} {array}").unwrap();
    }
    let jsonb = body.replace(
        "json_populate_recordset(null::taffrail.incoming_usage, batch::json)",
        "jsonb_populate_recordset(null::taffrail.incoming_usage, batch)",
    );
    assert_ne!(jsonb, body);
    let functions = [
        ("by_jsonb", "batch jsonb", jsonb),
        (
            "by_arrays",
            parameters.as_str(),
            // A name of its own for the arrays, since the columns are named as the parameters.
            with(
                &format!("(select {cast} from unnest({arrays}) as incoming({arrays})) as rows"),
                "(select unnest(c1)::date as day) as rows",
            ),
        ),
        ("by_copy", "", with("incoming_rows", "incoming_rows")),
    ];
    raw_sql(AssertSqlSafe(format!(
        "create temporary table incoming_rows ({columns}) on commit delete rows"
    )))
    .execute(&mut *connection)
    .await
    .unwrap();
    for (name, parameters, body) in functions {
        let sql = format!(
            "create function taffrail.{name}({parameters}) returns bigint language plpgsql as $body$\n\
             #variable_conflict use_column\n{}$body$",
            body.trim_start()
        );
        raw_sql(AssertSqlSafe(sql))
            .execute(&mut *connection)
            .await
            .unwrap();
    }
}

async fn empty(connection: &mut PgConnection) {
    raw_sql("truncate taffrail.api_usage_logs, taffrail.api_usage_aggregates; checkpoint")
        .execute(connection)
        .await
        .unwrap();
}

async fn round(way: Way, connection: &mut PgConnection, rows: &[LogRow]) -> Cost {
    empty(connection).await;
    let backend: i32 = sqlx::query_scalar("select pg_backend_pid()")
        .fetch_one(&mut *connection)
        .await
        .unwrap();
    let backend = backend.to_string();
    let (started, client, server) = (clock::instant(), cpu("thread-self"), cpu(&backend));
    for batch in rows.chunks(BATCH_ROWS) {
        let stored = send(way, connection, batch).await;
        assert_eq!(stored, batch.len() as i64, "{way:?}");
    }
    let count = rows.len() as f64;
    let per_row = |time: Duration| time.as_secs_f64() * 1e6 / count;
    Cost {
        rows_per_second: count / started.elapsed().as_secs_f64(),
        client_us: per_row(cpu("thread-self") - client),
        server_us: per_row(cpu(&backend) - server),
    }
}

async fn send(way: Way, connection: &mut PgConnection, batch: &[LogRow]) -> i64 {
    let mut transaction = connection.begin().await.unwrap();
    let stored = match way {
        Way::Json | Way::Jsonb => {
            let call = match way {
                Way::Json => "select taffrail.record_usage($1)",
                _ => "select taffrail.by_jsonb($1::jsonb)",
            };
            sqlx::query_scalar(call)
                .bind(json(batch))
                .persistent(false)
                .fetch_one(&mut *transaction)
                .await
        }
        Way::Arrays => {
            let places: Vec<String> = (1..=COLUMNS.len())
                .map(|place| format!("${place}"))
                .collect();
            let call = format!("select taffrail.by_arrays({})", places.join(", "));
            let mut arguments = PgArguments::default();
            for (index, (_, kind)) in COLUMNS.iter().enumerate() {
                let values = batch.iter().map(|row| &row.values()[index]);
                bind(&mut arguments, *kind, values);
            }
            sqlx::query_scalar_with(AssertSqlSafe(call), arguments)
                .persistent(false)
                .fetch_one(&mut *transaction)
                .await
        }
        Way::Copy => {
            let mut copy = transaction
                .copy_in_raw("copy incoming_rows from stdin")
                .await
                .unwrap();
            copy.send(copied(batch).into_bytes()).await.unwrap();
            copy.finish().await.unwrap();
            sqlx::query_scalar("select taffrail.by_copy()")
                .persistent(false)
                .fetch_one(&mut *transaction)
                .await
        }
    };
    transaction.commit().await.unwrap();
    stored.unwrap()
}

/// As the store sends it: unknown values left out, `raw_usage` as text.
fn json(batch: &[LogRow]) -> String {
    serde_json::to_string(&batch.iter().map(Sent).collect::<Vec<_>>()).unwrap()
}

struct Sent<'a>(&'a LogRow);

impl Serialize for Sent<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let known = COLUMNS
            .iter()
            .zip(self.0.values())
            .filter(|(_, value)| **value != Value::Null);
        serializer.collect_map(known.map(|((name, _), value)| match value {
            Value::Json(json) if *name == "raw_usage" => (name, Value::Text(json.clone())),
            value => (name, value.clone()),
        }))
    }
}

/// Binds a column of a batch as an array.
fn bind<'a>(arguments: &mut PgArguments, kind: Kind, values: impl Iterator<Item = &'a Value>) {
    let added = match kind {
        Kind::Text | Kind::Json => arguments.add(values.map(text).collect::<Vec<_>>()),
        Kind::Integer => arguments.add(values.map(Value::as_integer).collect::<Vec<_>>()),
        Kind::Boolean => arguments.add(
            values
                .map(|value| match value {
                    Value::Boolean(value) => Some(*value),
                    _ => None,
                })
                .collect::<Vec<_>>(),
        ),
    };
    added.unwrap();
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::Text(text) | Value::Json(text) => Some(text),
        _ => None,
    }
}

/// The text format of COPY.
fn copied(batch: &[LogRow]) -> String {
    let mut out = String::new();
    for row in batch {
        for (index, value) in row.values().iter().enumerate() {
            if index > 0 {
                out.push('\t');
            }
            match value {
                Value::Null => out.push_str("\\N"),
                Value::Integer(number) => write!(out, "{number}").unwrap(),
                Value::Boolean(value) => out.push(if *value { 't' } else { 'f' }),
                Value::Text(text) | Value::Json(text) => {
                    for letter in text.chars() {
                        match letter {
                            '\\' => out.push_str("\\\\"),
                            '\t' => out.push_str("\\t"),
                            '\n' => out.push_str("\\n"),
                            '\r' => out.push_str("\\r"),
                            letter => out.push(letter),
                        }
                    }
                }
            }
        }
        out.push('\n');
    }
    out
}

async fn all_rows(store: &Store) -> Vec<LogRow> {
    let mut rows: Vec<LogRow> = Vec::new();
    loop {
        let before = rows.last().map(id);
        let page = store.logs(&logs(10_000, before)).await.unwrap();
        if page.is_empty() {
            return rows;
        }
        rows.extend(page);
    }
}

fn id(row: &LogRow) -> Uuid {
    row.get("id").as_text().unwrap().parse().unwrap()
}

fn logs(limit: u32, before: Option<Uuid>) -> LogQuery {
    LogQuery {
        limit,
        before,
        provider: None,
        outcome: None,
    }
}

/// A row like those of an application that chats: five models, two teams, one namespace.
fn record(start: DateTime<Utc>, number: u64) -> UsageRecord {
    let started_at = start + TimeDelta::milliseconds(number.cast_signed());
    let millis = started_at.timestamp_millis().cast_unsigned();
    let mut random = [0; 10];
    random[..8].copy_from_slice(&number.to_be_bytes());
    let model = format!("gpt-4.1-{}", number % 5);
    let intent = Intent {
        id: Builder::from_unix_timestamp_millis(millis, &random).into_uuid(),
        started_at,
        provider: "openai".into(),
        operation: Operation::Chat,
        method: "POST".into(),
        route: "/v1/chat/completions".into(),
        model_requested: Some(model.clone()),
        caller: Caller {
            key_fingerprint: Some("9f86d081884c7d65".into()),
            attribution: [("team".to_owned(), format!("team-{}", number % 2))].into(),
            trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736".into()),
            span_id: Some("00f067aa0ba902b7".into()),
        },
        job: None,
    };
    let mut record = intent.interrupted(Instance {
        instance: "web-7d9f".into(),
        namespace: Some("shop".into()),
        pod: Some("web-7d9f".into()),
    });
    record.model_served = Some(format!("{model}-2025-04-14"));
    record.service_tier = Some("default".into());
    record.streamed = true;
    record.provider_request_id = Some(format!("chatcmpl-B9MHDbslfkBeAs8l4bebGdF{number}"));
    record.outcome = Outcome::Ok;
    record.http_status = Some(200);
    record.finish_reason = Some("stop".into());
    record.duration_us = Some(1_234_567);
    record.first_byte_us = Some(210_000);
    record.first_token_us = Some(245_000);
    record.overhead_us = Some(42);
    record.request_bytes = Some(812);
    record.response_bytes = Some(20_480);
    record.usage.set(Unit::Input, 1_000 + number);
    record.usage.set(Unit::CacheRead, 200);
    record.usage.set(Unit::Output, 59);
    record.raw_usage = Some(
        r#"{"prompt_tokens":1200,"completion_tokens":59,"total_tokens":1259,"prompt_tokens_details":{"cached_tokens":200,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}"#
            .into(),
    );
    record.cost_usd = Usd::from_json_number("0.0002004");
    record.cost_source = Some(CostSource::Catalog);
    record.price_version = Some("2026-11-01".into());
    record.unpriced_reason = None;
    record
}

// Questions.

/// Fills a day with rows as of a fleet: 4 providers, 40 models, 6 teams, 8 namespaces, of whose
/// requests one in 50 fails.
const FILL: &str = "
    insert into taffrail.api_usage_logs (
        id, day, started_at, instance, namespace, pod, provider, operation, method, route,
        model_requested, model_served, streamed, provider_request_id, outcome, http_status,
        finish_reason, duration_us, first_byte_us, overhead_us, request_bytes, response_bytes,
        input_tokens, cache_read_tokens, output_tokens, fidelity, raw_usage, cost_usd, cost_source,
        price_version, key_fingerprint, attribution, trace_id, span_id
    )
    select
        (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || '7'
            || lpad(to_hex(number % 4096), 3, '0') || '8' || lpad(to_hex(number), 15, '0'))::uuid,
        $1::date, at, 'web-' || number % 200, 'ns-' || number % 8, 'web-' || number % 200,
        (array['openai', 'anthropic', 'openrouter', 'azure'])[1 + number % 4], 'chat', 'POST',
        '/v1/chat/completions', 'model-' || number % 40, 'model-' || number % 40 || '-2026-01-01',
        true, 'chatcmpl-' || number,
        case when number % 50 > 0 then 'ok' when number % 100 > 0 then 'rate_limited' else 'upstream_error' end,
        200, 'stop', 1234567, 210000, 42, 812, 20480, 1000 + number % 900, 200, 59, 'complete',
        '{\"prompt_tokens\":1200,\"completion_tokens\":59,\"total_tokens\":1259}', 0.0002004,
        'catalog', '2026-11-01', 'fingerprint-' || number % 20,
        jsonb_build_object('team', 'team-' || number % 6),
        '4bf92f3577b34da6a3ce929d0e0e4736', '00f067aa0ba902b7'
    from (
        select number, $1::date::timestamp at time zone 'UTC' + number * interval '1 day' / $2::bigint as at
        from generate_series(0, $2::bigint - 1) as number
    ) as numbers";

async fn queries(cluster: &Cluster, millions: u64) {
    let database = cluster.database().await;
    let store = Store::open(&config(&database)).await.unwrap();
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    let last: NaiveDate = "2026-11-23".parse().unwrap();
    let per_day = millions * 1_000_000 / DAYS;
    let mut filling = Duration::ZERO;
    let mut summing = Duration::ZERO;
    for ago in (0..DAYS).rev() {
        let day = last - Days::new(ago);
        let started = clock::instant();
        raw_sql(AssertSqlSafe(format!(
            "select taffrail.ensure_partition('{day}')"
        )))
        .execute(&mut connection)
        .await
        .unwrap();
        sqlx::query(FILL)
            .bind(day)
            .bind(per_day.cast_signed())
            .execute(&mut connection)
            .await
            .unwrap();
        filling += started.elapsed();
        let started = clock::instant();
        store.backfill(day).await.unwrap();
        summing += started.elapsed();
        eprint!("\r{day}");
    }
    eprintln!();
    raw_sql("vacuum analyze")
        .execute(&mut connection)
        .await
        .unwrap();
    let size: String = sqlx::query_scalar(
        "select pg_size_pretty(sum(pg_total_relation_size(inhrelid))) || ' of rows, ' \
         || pg_size_pretty(pg_total_relation_size('taffrail.api_usage_aggregates')) || ' of sums' \
         from pg_inherits where inhparent = 'taffrail.api_usage_logs'::regclass",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    let rows = per_day * DAYS;
    println!("questions: {rows} rows over {DAYS} days, {size}");
    println!(
        "backfill: {:.0} rows/s",
        rows as f64 / summing.as_secs_f64()
    );
    println!(
        "{:44} {:>10} {:>10}",
        "asked with nothing cached by the program", "median ms", "worst ms"
    );
    // The last day is over at midnight.
    let now: DateTime<Utc> = "2026-11-24T00:00:00Z".parse().unwrap();
    let team = || Dimension::Attribution("team".into());
    let usage = [
        (
            "usage --since 24h",
            24,
            vec![Dimension::Provider, Dimension::Model],
        ),
        (
            "usage --since 24h --by hour,team",
            24,
            vec![Dimension::Hour, team()],
        ),
        (
            "usage --since 30d",
            30 * 24,
            vec![Dimension::Provider, Dimension::Model],
        ),
        (
            "usage --since 30d --by day,team",
            30 * 24,
            vec![Dimension::Day, team()],
        ),
        (
            "usage --since 24h --by outcome (from rows)",
            24,
            vec![Dimension::Outcome],
        ),
        (
            "usage --since 24h --by key (from rows)",
            24,
            vec![Dimension::Key],
        ),
    ];
    for (name, hours, by) in usage {
        // Not at a full hour: the part of an hour is read from rows.
        let query = UsageQuery {
            since: now - TimeDelta::hours(hours) + TimeDelta::minutes(7),
            by,
        };
        ask(name, async || {
            assert!(!store.usage(&query).await.unwrap().is_empty())
        })
        .await;
    }
    let middle: Uuid = sqlx::query_scalar(
        "select id from taffrail.api_usage_logs where started_at >= '2026-10-25' order by started_at limit 1",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    let pages = [
        ("logs", logs(50, None)),
        (
            "logs --before (a row of the middle)",
            logs(50, Some(middle)),
        ),
        (
            "logs --provider azure",
            LogQuery {
                provider: Some("azure".into()),
                ..logs(50, None)
            },
        ),
        (
            "logs --outcome rate_limited",
            LogQuery {
                outcome: Some(Outcome::RateLimited),
                ..logs(50, None)
            },
        ),
        (
            "logs --outcome timeout (there is none)",
            LogQuery {
                outcome: Some(Outcome::UpstreamTimeout),
                ..logs(50, None)
            },
        ),
        (
            "logs --provider fal (there is none)",
            LogQuery {
                provider: Some("fal".into()),
                ..logs(50, None)
            },
        ),
    ];
    for (name, query) in pages {
        ask(name, async || drop(store.logs(&query).await.unwrap())).await;
    }
    store.close().await;
}

async fn ask(name: &str, question: impl AsyncFn()) {
    let mut times = Vec::new();
    for _ in 0..ASKED {
        let started = clock::instant();
        question().await;
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    let worst = times.iter().copied().fold(0.0, f64::max);
    println!("{name:44} {:10.1} {worst:10.1}", median(times));
}

/// The time on a CPU of a thread, by its directory in `/proc`.
fn cpu(task: &str) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{task}/schedstat")).unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
