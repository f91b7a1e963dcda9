//! Who reads what: logins with and without scopes, at every table and by every command.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use taffrail::clock;
use taffrail::store::{Config, LogQuery, Store, StoreError, UsageQuery};
use uuid::Uuid;

use crate::store::record;
use crate::support::binary::Home;
use crate::support::postgres::{Cluster, Database, Version};

/// How many rows there are of each namespace and team; any sum of them tells which it is made of.
const ROWS: [(Option<&str>, Option<&str>, u64); 5] = [
    (Some("shop"), Some("search"), 1),
    (Some("shop"), Some("ads"), 2),
    (Some("lab"), Some("search"), 4),
    (Some("lab"), Some("ads"), 8),
    (None, None, 16),
];

/// A database with these rows; also the id of a row of the lab.
async fn filled() -> Option<(Database, Uuid)> {
    let database = Cluster::shared(Version::Default).await?.database().await;
    let config = Config {
        url: database.url(),
        ..Config::default()
    };
    let store = Store::open(&config).await.unwrap();
    let (mut records, mut of_lab) = (Vec::new(), None);
    for (namespace, team, count) in ROWS {
        for _ in 0..count {
            let number = u64::try_from(records.len()).unwrap();
            let mut record = record(clock::wall(), number);
            record.instance.namespace = namespace.map(Into::into);
            let label = team.map(|team| ("team".to_owned(), team.to_owned()));
            record.caller.attribution = label.into_iter().collect();
            if namespace == Some("lab") {
                of_lab = Some(record.id);
            }
            records.push(record);
        }
    }
    store.apply(&records).await.unwrap();
    store.close().await;
    database
        .execute(
            "insert into taffrail.api_provider_balances (provider, account, slot, read_at, result)
             values ('openrouter', 'main', now(), now(), 'ok')",
        )
        .await;
    Some((database, of_lab.unwrap()))
}

/// Makes a login of the readers, with scopes of namespace and team as SQL; returns its URL.
async fn reader(database: &Database, scopes: &[(&str, &str)]) -> String {
    // A login belongs to the whole cluster, where others make theirs.
    let name = format!("reader_{}", clock::new_id().simple());
    let mut sql = format!("create role {name} login in role taffrail_reader;");
    for (namespace, team) in scopes {
        sql +=
            &format!("insert into taffrail.reader_scopes values ('{name}', {namespace}, {team});");
    }
    database.execute(&sql).await;
    database.url().replace("postgres@", &format!("{name}@"))
}

async fn number(url: &str, sql: &str) -> Result<i64, String> {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let answer = sqlx::query_scalar(AssertSqlSafe(sql)).persistent(false);
    let answer = answer.fetch_one(&mut connection).await;
    answer.map_err(|error| error.to_string())
}

async fn open(url: &str) -> Store {
    let config = Config {
        url: url.to_owned(),
        ..Config::default()
    };
    Store::open_read_only(&config).await.unwrap()
}

const ALL_LOGS: LogQuery = LogQuery {
    limit: 100,
    before: None,
    provider: None,
    outcome: None,
};

/// Asserts that a login reads exactly that many rows, and their sums, whichever way it asks.
async fn assert_reads(url: &str, rows: i64, balances: i64) {
    let sums = |table| {
        format!(
            "select coalesce(sum(requests), 0)::bigint from taffrail.{table} where granularity = "
        )
    };
    let (aggregates, buckets) = (sums("api_usage_aggregates"), sums("api_usage_buckets"));
    for (sql, expected) in [
        ("select count(*) from taffrail.api_usage_logs", rows),
        (&format!("{aggregates} 'hour'"), rows),
        (&format!("{aggregates} 'day'"), rows),
        (&format!("{buckets} 'hour'"), rows),
        (&format!("{buckets} 'day'"), rows),
        (
            "select count(*) from taffrail.api_provider_balances",
            balances,
        ),
    ] {
        assert_eq!(number(url, sql).await, Ok(expected), "{url}: {sql}");
    }
    let store = open(url).await;
    let query = UsageQuery {
        since: clock::wall() - chrono::TimeDelta::hours(24),
        by: Vec::new(),
    };
    let usage = store.usage(&query).await.unwrap();
    let requests: i64 = usage.iter().map(|row| row.totals.requests).sum();
    let logs = store.logs(&ALL_LOGS).await.unwrap();
    let found = (requests, i64::try_from(logs.len()).unwrap());
    assert_eq!(found, (rows, rows), "{url}");
    store.close().await;

    let mut home = Home::without_provider();
    home.set("STORE__URL", url);
    let ran = home.run(&["logs", "--format", "json"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(i64::try_from(ran.stdout.lines().count()), Ok(rows), "{url}");
    let ran = home
        .run(&["usage", "--by", "namespace", "--format", "csv"])
        .await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let mut lines = ran.stdout.lines().map(|line| line.split(','));
    let at = lines.next().unwrap().position(|name| name == "requests");
    let requests = lines.map(|mut line| line.nth(at.unwrap()).unwrap().parse::<i64>().unwrap());
    assert_eq!(requests.sum::<i64>(), rows, "{url}: {}", ran.stdout);
}

#[tokio::test]
async fn a_login_reads_what_its_scopes_allow_and_a_login_without_scopes_everything() {
    let Some((database, of_lab)) = filled().await else {
        return;
    };
    let cases: [(&[(&str, &str)], i64); 6] = [
        (&[("'shop'", "null")], 1 + 2),
        (&[("null", "'search'")], 1 + 4),
        (&[("'shop'", "'search'")], 1),
        (&[("'shop'", "null"), ("null", "'ads'")], 1 + 2 + 8),
        (&[("'nowhere'", "null")], 0),
        (&[("''", "null")], 0),
    ];
    for (scopes, rows) in cases {
        let url = reader(&database, scopes).await;
        assert_reads(&url, rows, 0).await;
    }
    assert_reads(&reader(&database, &[]).await, 31, 1).await;

    // Not even that there is a row of others.
    let url = reader(&database, &[("'shop'", "null")]).await;
    let store = open(&url).await;
    let beyond = LogQuery {
        before: Some(of_lab),
        ..ALL_LOGS
    };
    let error = store.logs(&beyond).await.unwrap_err();
    assert!(
        matches!(error, StoreError::UnknownRow(id) if id == of_lab),
        "{error}"
    );
    store.close().await;
}

#[tokio::test]
async fn a_scope_cannot_be_shed_or_changed_by_its_login() {
    let Some((database, _)) = filled().await else {
        return;
    };
    let url = reader(&database, &[("'shop'", "null")]).await;
    let count = "select count(*) from taffrail.api_usage_logs";
    let mut connection = PgConnection::connect(&url).await.unwrap();
    for attempt in [
        "set role taffrail_reader",
        "set row_security = off",
        "select set_config('search_path', 'pg_temp', false)",
    ] {
        sqlx::raw_sql(attempt)
            .execute(&mut connection)
            .await
            .unwrap();
        let answer = sqlx::query_scalar::<_, i64>(count).persistent(false);
        match answer.fetch_one(&mut connection).await {
            Ok(rows) => assert_eq!(rows, 3, "{attempt}"),
            // Without row security the server refuses rather than show more.
            Err(error) => assert!(error.to_string().contains("row-level security"), "{error}"),
        }
        sqlx::raw_sql("reset all; reset role")
            .execute(&mut connection)
            .await
            .unwrap();
    }
    for attempt in [
        "select count(*) from taffrail.reader_scopes",
        "select count(*) from taffrail.api_jobs",
        "with shed as (delete from taffrail.reader_scopes returning 1) select count(*) from shed",
        "select taffrail.record_usage('[]')",
    ] {
        let refused = number(&url, attempt).await.unwrap_err();
        assert!(
            refused.contains("permission denied"),
            "{attempt}: {refused}"
        );
    }
    // A partition is a table of its own.
    let partition =
        "select c.oid::regclass::text from pg_inherits join pg_class c on c.oid = inhrelid
        where inhparent = 'taffrail.api_usage_logs'::regclass limit 1";
    let partition = database.query(partition).await.remove(0).remove(0);
    let refused = number(&url, &format!("select count(*) from {partition}")).await;
    assert!(
        refused.unwrap_err().contains("permission denied"),
        "{partition}"
    );
}
