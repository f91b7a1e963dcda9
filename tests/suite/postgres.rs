//! The store on a real Postgres: the same rows, sums and pages as the embedded one, exactly once.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;

use chrono::TimeDelta;
use rust_decimal::Decimal;
use sqlx::{Connection, PgConnection};
use taffrail::fault::Outcome;
use taffrail::record::UsageRecord;
use taffrail::store::{Config, Dimension, LogQuery, Store, TOKEN_COLUMNS, UsageQuery};
use tempfile::TempDir;

use crate::server::serve;
use crate::store::{Sums, at, config as sqlite_config, record};
use crate::support::binary::{Home, eventually};
use crate::support::chat::Chat;
use crate::support::postgres::{Cluster, Database, Setup, Version};

/// An empty database of the cluster that all tests share; `None` where there is no Postgres.
pub(crate) async fn fresh() -> Option<Database> {
    Some(Cluster::shared(Version::Default).await?.database().await)
}

fn config(database: &Database) -> Config {
    Config {
        url: database.url(),
        ..Config::default()
    }
}

pub(crate) async fn count(database: &Database, sql: &'static str) -> i64 {
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    sqlx::query_scalar(sql)
        .fetch_one(&mut connection)
        .await
        .unwrap()
}

/// The sums that the database keeps, in the form of [`crate::store::sums_of_rows`].
pub(crate) async fn sums_kept(database: &Database) -> Sums {
    let tokens: Vec<&str> = TOKEN_COLUMNS.iter().map(|(_, column)| *column).collect();
    let asked = format!(
        "select granularity, to_char(bucket_start at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
            namespace, provider, model, operation, outcome_class, attribution,
            requests, unpriced_requests, cost_usd, units, {}
         from taffrail.api_usage_buckets",
        tokens.join(", ")
    );
    let known = |value: &String| (value != "null").then(|| value.clone());
    let decimal = |value: String| value.parse::<Decimal>().unwrap();
    let rows = database.query(&asked).await;
    let sums = rows.into_iter().map(|row| {
        let mut key = row[..8].to_vec();
        let attribution: serde_json::Value = serde_json::from_str(&key[7]).unwrap();
        key[7] = attribution.to_string();
        let mut quantities: BTreeMap<String, Decimal> = match known(&row[11]) {
            Some(units) => serde_json::from_str(&units).unwrap(),
            None => BTreeMap::new(),
        };
        for (column, value) in tokens.iter().zip(&row[12..]) {
            if let Some(value) = known(value) {
                quantities.insert((*column).to_owned(), decimal(value));
            }
        }
        let whole = |index: usize| row[index].parse().unwrap();
        let cost = known(&row[10]).map(decimal);
        (key, (whole(8), whole(9), cost, quantities))
    });
    sums.collect()
}

/// Records of two days, some of them alike, some unknown.
pub(crate) fn records() -> Vec<UsageRecord> {
    (0..400_u64)
        .map(|number| {
            let start = at("2026-11-23T22:10:00Z") + TimeDelta::seconds(30 * number.cast_signed());
            let mut record = record(start, number);
            if number % 7 == 0 {
                record.model_served = None;
                record.cost_usd = None;
            }
            if number % 5 == 0 {
                record.caller.attribution.clear();
            }
            if number % 3 == 0 {
                record.instance.namespace = None;
            }
            record
        })
        .collect()
}

fn logs(limit: u32) -> LogQuery {
    LogQuery {
        limit,
        before: None,
        provider: None,
        outcome: None,
    }
}

#[tokio::test]
async fn rows_sums_and_pages_are_those_of_the_embedded_store() {
    let Some(database) = fresh().await else {
        return;
    };
    let folder = TempDir::new().unwrap();
    let postgres = Store::open(&config(&database)).await.unwrap();
    let sqlite = Store::open(&sqlite_config(folder.path())).await.unwrap();
    let records = records();
    for store in [&postgres, &sqlite] {
        // A replay, an overlap and a doubled record count once.
        for range in [0..200, 0..200, 100..400] {
            store.apply(&records[range]).await.unwrap();
        }
        let doubled = [records[3].clone(), records[3].clone()];
        let applied = store.apply(&doubled).await.unwrap();
        assert_eq!((applied.stored, applied.duplicates), (0, 2));
    }
    for by in [
        vec![],
        vec![Dimension::Provider, Dimension::Model],
        vec![Dimension::Hour, Dimension::Attribution("team".into())],
        vec![Dimension::Day],
        vec![Dimension::Namespace],
        vec![Dimension::Outcome, Dimension::Instance],
    ] {
        for since in [
            "2026-11-23T22:33:00Z",
            "2026-11-24T00:00:00Z",
            "2027-01-01T00:00:00Z",
        ] {
            let query = UsageQuery {
                since: at(since),
                by: by.clone(),
            };
            let mut theirs = postgres.usage(&query).await.unwrap();
            let mut ours = sqlite.usage(&query).await.unwrap();
            theirs.sort_by(|a, b| a.group.cmp(&b.group));
            ours.sort_by(|a, b| a.group.cmp(&b.group));
            assert_eq!(theirs, ours, "{by:?} since {since}");
        }
    }
    let mut query = logs(150);
    loop {
        let theirs = postgres.logs(&query).await.unwrap();
        assert_eq!(theirs, sqlite.logs(&query).await.unwrap());
        let Some(last) = theirs.last() else { break };
        query.before = Some(last.get("id").as_text().unwrap().parse().unwrap());
    }
    assert_eq!(
        postgres.attribution_labels().await.unwrap(),
        sqlite.attribution_labels().await.unwrap()
    );
    postgres.close().await;
}

#[tokio::test]
async fn an_outcome_has_the_same_class_in_the_database() {
    let Some(database) = fresh().await else {
        return;
    };
    Store::migrate(&config(&database)).await.unwrap();
    for outcome in Outcome::ALL {
        let asked = format!("select taffrail.outcome_class('{outcome}')");
        let told = database.query(&asked).await;
        assert_eq!(told, [[outcome.class().as_str().to_owned()]], "{outcome}");
    }
}

#[tokio::test]
async fn what_would_spoil_a_sum_for_ever_is_refused() {
    let Some(database) = fresh().await else {
        return;
    };
    Store::migrate(&config(&database)).await.unwrap();
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    // A login that may only bring in rows need not be the program.
    sqlx::raw_sql("set role taffrail_ingest")
        .execute(&mut connection)
        .await
        .unwrap();
    let mut call = async |number: usize, column: &str, value: serde_json::Value| {
        let row = serde_json::json!({
            "id": format!("019aafe0-0000-7000-8000-{number:012}"), "day": "2026-11-23",
            "started_at": "2026-11-23T12:00:00Z", "instance": "pod", "provider": "openai",
            "operation": "chat", "method": "POST", "route": "/", "streamed": false,
            "outcome": "ok", "fidelity": "exact", column: value,
        });
        sqlx::query_scalar::<_, i64>("select taffrail.record_usage($1)")
            .bind(format!("[{row}]"))
            .fetch_one(&mut connection)
            .await
    };
    let good = [
        ("cost_usd", "1.5".into()),
        ("units", serde_json::json!({})),
        ("units", serde_json::json!({"images": "2"})),
    ];
    for (number, (column, value)) in good.iter().enumerate() {
        assert_eq!(call(number, column, value.clone()).await.unwrap(), 1);
    }
    let mut bad = vec![("units", serde_json::json!(["1"]))];
    for value in ["NaN", "Infinity", "-Infinity", "abc"] {
        bad.push(("cost_usd", value.into()));
        bad.push(("cost_upstream_usd", value.into()));
        // The first of its unit, and one that is added.
        bad.push(("units", serde_json::json!({"images": value})));
        bad.push(("units", serde_json::json!({"seconds": value})));
    }
    for (number, (column, value)) in bad.into_iter().enumerate() {
        let error = call(100 + number, column, value.clone()).await.unwrap_err();
        let code = error.as_database_error().unwrap().code().unwrap();
        // Of a value, so that the batch is halved until the row is found.
        assert!(["22", "23"].contains(&&code[..2]), "{value}: {error}");
    }
    let sums =
        "select requests, cost_usd, cost_upstream_usd, units from taffrail.api_usage_buckets";
    let expected = ["3", "1.5", "null", r#"{"images": "2"}"#];
    assert_eq!(database.query(sums).await, [expected; 2]);
    assert_eq!(
        count(&database, "select count(*) from taffrail.api_usage_logs").await,
        3
    );
}

#[tokio::test]
async fn a_password_that_changed_is_read_again() {
    let setup = Setup {
        password: Some("old"),
        ..Setup::default()
    };
    let Some(cluster) = Cluster::start_as(setup).await else {
        return;
    };
    let database = cluster.database().await;
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "old\n").unwrap();
    let url = database.url().replace(":old@", "@");
    assert!(!url.contains("old"), "{url}");
    let store = Store::open(&Config {
        url,
        password_file: Some(file.clone()),
        ..Config::default()
    })
    .await
    .unwrap();
    let mut client = database.client().await;
    sqlx::raw_sql(
        "alter role current_user password 'new';
         select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'taffrail'",
    )
    .execute(&mut client)
    .await
    .unwrap();
    for _ in 0..2 {
        assert!(store.apply(&records()[..1]).await.is_err());
    }
    std::fs::write(&file, "new").unwrap();
    eventually("the new password is used", async || {
        store.apply(&records()[..1]).await.is_ok()
    })
    .await;
    store.close().await;
}

#[tokio::test]
async fn why_there_is_no_connection_is_told_with_the_place() {
    let setup = Setup {
        password: Some("s3cret"),
        ..Setup::default()
    };
    let Some(mut cluster) = Cluster::start_as(setup).await else {
        return;
    };
    let database = cluster.database().await;
    database
        .execute("create role crowd login password 's3cret' connection limit 0")
        .await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (url, name) = (database.url(), database.name());
    let place = format!("postgres {}/{name}", cluster.address());
    let cases = [
        (
            url.replace("s3cret", "guess"),
            format!(
                "the store cannot be used until it is mended: cannot connect to {place}: \
                 password authentication failed for user \"postgres\" (SQLSTATE 28P01)"
            ),
        ),
        (
            url.replace(name, "nowhere"),
            format!(
                "the store cannot be used until it is mended: cannot connect to postgres \
                 {}/nowhere: database \"nowhere\" does not exist (SQLSTATE 3D000)",
                cluster.address()
            ),
        ),
        (
            url.replace("postgres:s3cret", "crowd:s3cret"),
            format!(
                "the store is not available: cannot connect to {place}: too many connections for \
                 role \"crowd\" (SQLSTATE 53300)"
            ),
        ),
        (
            database.through(silent.local_addr().unwrap()).url(),
            format!(
                "the store is not available: cannot connect to postgres {}/{name}: no answer \
                 within 300ms",
                silent.local_addr().unwrap()
            ),
        ),
    ];
    let config = |url: &str| Config {
        url: url.to_owned(),
        connect_timeout: std::time::Duration::from_millis(300),
        ..Config::default()
    };
    for (url, told) in cases {
        let error = Store::open(&config(&url)).await.unwrap_err();
        assert_eq!(error.to_string(), told);
    }
    cluster.stop_fast().await;
    let told = format!(
        "the store is not available: cannot connect to {place}: Connection refused (os error 111)"
    );
    let error = Store::open(&config(&url)).await.unwrap_err();
    assert_eq!(error.to_string(), told);

    // All who say it to a human.
    let chat = Chat::start().await;
    let mut home = Home::new(chat.address);
    home.set("STORE__URL", &url);
    home.set("STORE__CONNECT_TIMEOUT", "300ms");
    home.set("STORE__DRAIN__SHUTDOWN_TIMEOUT", "10ms");
    let ran = home.run(&["usage"]).await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.ends_with(&format!("{told}\n")), "{}", ran.stderr);
    let ran = home.run(&["check"]).await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.stdout.contains(&told), "{}", ran.stdout);
    let server = home.start().await;
    serve(&server, 0..1).await;
    eventually("the log says it", async || {
        server.process.log().contains(&told)
    })
    .await;
    let log = server.stop().await;
    assert!(!log.contains("s3cret"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_writes_and_one_reads_and_none_is_left_when_they_are_idle() {
    let Some(database) = fresh().await else {
        return;
    };
    let config = Config {
        idle_timeout: std::time::Duration::from_secs(1),
        ..config(&database)
    };
    let config_of_day = Config {
        idle_timeout: std::time::Duration::from_hours(24),
        ..config.clone()
    };
    let open = async || {
        let open = "select count(*) from pg_stat_activity
            where application_name = 'taffrail' and datname = current_database()";
        count(&database, open).await
    };
    let store = Store::open(&config).await.unwrap();
    for round in 0..2 {
        let mut at_once = tokio::task::JoinSet::new();
        for number in 0..20 {
            let (store, records) = (store.clone(), records());
            let records = records[number * 20..][..20].to_vec();
            at_once.spawn(async move { store.apply(&records).await.unwrap().stored });
        }
        let stored = at_once.join_all().await;
        assert_eq!(stored.iter().sum::<u64>(), [400, 0][round]);
        assert_eq!(open().await, 1);
        store.logs(&logs(1)).await.unwrap();
        assert_eq!(open().await, 2);
        eventually("none is left", async || open().await == 0).await;
    }
    for end in ["its close", "its drop"] {
        let store = Store::open(&config_of_day).await.unwrap();
        store.logs(&logs(1)).await.unwrap();
        assert_eq!(open().await, 2);
        if end == "its close" {
            store.close().await;
        }
        drop(store);
        let what = format!("none is left after {end}");
        eventually(&what, async || open().await == 0).await;
    }
}

#[tokio::test]
async fn what_a_provider_wrote_lands_whatever_it_is() {
    let Some(database) = fresh().await else {
        return;
    };
    let store = Store::open(&config(&database)).await.unwrap();
    let mut odd = record(at("2026-11-23T12:00:00Z"), 1);
    odd.raw_usage = Some(r#"{"a":"\u0000 \ud800","b":1.50,"b":2}"#.into());
    odd.model_served = Some("nul\0 \u{1}\u{7f}\u{feff}💸".into());
    assert_eq!(store.apply(&[odd]).await.unwrap().stored, 1);
    let rows = store.logs(&logs(1)).await.unwrap();
    let line = serde_json::to_string(&rows).unwrap();
    assert!(
        line.contains(r#""raw_usage":{"a":"\u0000 \ud800","b":1.50,"b":2}"#),
        "{line}"
    );
    assert_eq!(
        rows[0].get("model_served").as_text(),
        Some("nul \u{1}\u{7f}\u{feff}💸")
    );
    store.close().await;
}

#[tokio::test]
async fn a_day_that_was_dropped_stays_dropped_and_its_sums_stay() {
    let Some(database) = fresh().await else {
        return;
    };
    let store = Store::open(&config(&database)).await.unwrap();
    let old = records();
    store.apply(&old).await.unwrap();
    let sums =
        "select sum(requests)::bigint from taffrail.api_usage_buckets where granularity = 'day'";
    let all = count(&database, sums).await;
    let drop = "select count(taffrail.drop_oldest_partition('2026-11-24'))";
    assert_eq!(count(&database, drop).await, 1);
    assert_eq!(count(&database, drop).await, 0);
    assert_eq!(count(&database, sums).await, all);
    let left = count(&database, "select count(*) from taffrail.api_usage_logs").await;
    assert!((1..all).contains(&left), "{left} of {all}");
    // What comes late for that day is refused with a reason, and not counted twice.
    let late = store.apply(&old[..1]).await.unwrap_err().to_string();
    assert!(
        late.contains("2026-11-23 has been dropped by retention"),
        "{late}"
    );
    assert_eq!(count(&database, sums).await, all);
    store.close().await;
}

#[tokio::test]
async fn many_may_migrate_at_once_and_each_role_has_its_rights_alone() {
    let Some(database) = fresh().await else {
        return;
    };
    let opening = (0..4).map(|_| {
        let config = config(&database);
        tokio::spawn(async move { Store::open(&config).await.unwrap().close().await })
    });
    for opened in opening.collect::<Vec<_>>() {
        opened.await.unwrap();
    }
    // Which statement each role may make.
    let statements = [
        (
            "select count(*) from taffrail.api_usage_logs",
            [false, false, true],
        ),
        (
            "select count(*) from taffrail.api_usage_buckets",
            [false, true, true],
        ),
        (
            "select count(*) from taffrail.api_provider_balances",
            [false, true, true],
        ),
        (
            "select count(*) from taffrail.api_reconciliations",
            [false, true, true],
        ),
        (
            "select taffrail.record_reconciliations('[]')",
            [false, true, false],
        ),
        (
            "select taffrail.uncertain_costs('openai', now(), now(), null, 8, 1)",
            [false, true, false],
        ),
        ("select taffrail.state_costs('[]')", [false, true, false]),
        (
            "select taffrail.note_receipt_tries('[]', now())",
            [false, true, false],
        ),
        ("select taffrail.recost_usage('[]')", [false; 3]),
        (
            "select count(*) from taffrail.api_receipt_tries",
            [false; 3],
        ),
        (
            "select taffrail.metered_spend('openai', now(), now())",
            [false, true, false],
        ),
        ("select count(*) from taffrail.api_jobs", [false; 3]),
        ("select taffrail.record_usage('[]')", [true, true, false]),
        ("select taffrail.exchange_jobs('[]')", [true, false, false]),
        (
            "select taffrail.overdue_jobs('1 h', 1)",
            [false, true, false],
        ),
        (
            "select taffrail.drop_balances('2000-01-01', 1)",
            [false, true, false],
        ),
        (
            "select taffrail.drop_jobs('2000-01-01', 1)",
            [false, true, false],
        ),
        ("select taffrail.schema_version()", [true, true, true]),
        (
            "select taffrail.backfill_usage_aggregates('2026-11-23', '2026-11-24')",
            [false; 3],
        ),
        (
            "select taffrail.drop_oldest_partition('2000-01-01')",
            [false, true, false],
        ),
        ("delete from taffrail.api_usage_logs", [false; 3]),
        (
            "update taffrail.api_usage_logs set cost_usd = 0",
            [false; 3],
        ),
        (
            "update taffrail.api_usage_aggregates set cost_usd = 0",
            [false; 3],
        ),
        ("truncate taffrail.api_usage_aggregates", [false; 3]),
        ("delete from taffrail.reader_scopes", [false; 3]),
    ];
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    for (statement, allowed) in statements {
        for (role, allowed) in ["ingest", "balance", "reader"].into_iter().zip(allowed) {
            let asked = format!("begin; set local role taffrail_{role}; {statement}; commit");
            let done = sqlx::raw_sql(sqlx::AssertSqlSafe(asked))
                .execute(&mut connection)
                .await;
            assert_eq!(done.is_ok(), allowed, "{role}: {statement}: {done:?}");
            sqlx::raw_sql("rollback")
                .execute(&mut connection)
                .await
                .unwrap();
        }
    }
}
