//! The store's housekeeping: partitions ahead, retention, and what comes too late.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, NaiveTime, TimeDelta, Utc};
use serde_json::Value;
use sqlx::Connection as _;
use taffrail::clock;
use taffrail::exporter::housekeeping::{Retention, keep_house};
use taffrail::journal::disk::LocalDisk;
use taffrail::journal::{self, Journal};
use taffrail::metrics::exposition::Format;
use taffrail::metrics::{self, Metrics};
use taffrail::record::UsageRecord;
use taffrail::store::{BalanceReading, Config, Dimension, LogQuery, Store, StoreError, UsageQuery};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::outages::DIFFERENCES;
use crate::postgres::{count, fresh};
use crate::store::record;
use crate::support::binary::{Home, Scrape, Server, eventually};
use crate::support::fault::FaultProxy;
use crate::support::postgres::{Cluster, Database, Version};

/// A time of the day that is so many days before today.
fn days_ago(days: i64, time: &str) -> DateTime<Utc> {
    let time: NaiveTime = time.parse().unwrap();
    (clock::wall().date_naive() - TimeDelta::days(days))
        .and_time(time)
        .and_utc()
}

/// Requests of one day, told from others by their numbers.
fn requests(days: i64, numbers: std::ops::Range<u64>) -> Vec<UsageRecord> {
    numbers
        .map(|number| record(days_ago(days, "12:30:00"), number))
        .collect()
}

async fn open(url: &str) -> Store {
    let config = Config {
        url: url.to_owned(),
        ..Config::default()
    };
    Store::open(&config).await.unwrap()
}

/// A home whose exporter keeps the house of the store at `url`.
fn exporter(url: &str) -> Home {
    let mut home = Home::without_provider();
    home.set("STORE__URL", url);
    home.set("ROLE", "exporter");
    home.set("RETENTION__AGGREGATES", "98d");
    home
}

async fn house_is_kept(server: &Server) {
    let ok = [("task", "housekeeping"), ("result", "ok")];
    server
        .once("the house is kept", |scrape| {
            scrape.sum("taffrail_schedule_runs_total", &ok) > 0
        })
        .await;
}

/// The days of the partitions, in order.
async fn partitions(database: &Database) -> Vec<String> {
    let rows = database
        .query(
            "select right(inhrelid::regclass::text, 8) from pg_inherits
             where inhparent = 'taffrail.api_usage_logs'::regclass order by 1",
        )
        .await;
    rows.into_iter().flatten().collect()
}

/// Day and requests, as `taffrail usage` tells them.
async fn usage(home: &Home) -> Vec<(String, i64)> {
    let asked = [
        "usage", "--since", "150d", "--by", "day", "--format", "json",
    ];
    let ran = home.run(&asked).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let mut days: Vec<(String, i64)> = ran
        .stdout
        .lines()
        .map(|line| {
            let row: Value = serde_json::from_str(line).unwrap();
            let day = row["day"].as_str().unwrap().to_owned();
            (day, row["requests"].as_i64().unwrap())
        })
        .collect();
    days.sort();
    days
}

/// Day and requests, as `taffrail logs` lists them.
async fn logs(home: &Home) -> Vec<(String, i64)> {
    let mut days = std::collections::BTreeMap::new();
    for row in home.logs().await {
        *days
            .entry(row["day"].as_str().unwrap().to_owned())
            .or_default() += 1;
    }
    days.into_iter().collect()
}

fn day(days: i64) -> String {
    days_ago(days, "00:00:00").date_naive().to_string()
}

#[tokio::test]
async fn partitions_of_a_week_are_there_when_the_exporter_has_started() {
    let Some(database) = fresh().await else {
        return;
    };
    open(&database.url()).await.close().await;
    // With no right but its own.
    let login = format!("exporter_{}", clock::new_id().simple());
    database
        .execute(&format!(
            "create role {login} login in role taffrail_balance"
        ))
        .await;
    let url = database
        .url()
        .replace("//postgres@", &format!("//{login}@"));
    let home = exporter(&url);
    let server = home.start().await;
    house_is_kept(&server).await;
    let today = clock::wall().date_naive();
    let week = today.iter_days().take(8);
    let week: Vec<String> = week.map(|day| day.format("%Y%m%d").to_string()).collect();
    assert_eq!(partitions(&database).await, week);
    let scrape = server.scrape().await;
    let at = scrape.total("taffrail_schedule_last_success_timestamp_seconds");
    assert!(at > 1.7e9, "{at}");
    let log = server.stop().await;
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    assert!(!log.contains("Job creator"), "{log}");
}

/// Old rows go and their sums stay, older sums go too, and what comes late is put aside.
async fn what_is_old_goes(url: &str) {
    let store = open(url).await;
    for (days, count) in [(100, 3), (99, 4), (95, 5), (91, 6), (90, 7), (0, 8)] {
        store.apply(&requests(days, 0..count)).await.unwrap();
    }
    store.close().await;
    let mut home = exporter(url);
    let server = home.start().await;
    house_is_kept(&server).await;
    server.stop().await;
    let kept = vec![(day(90), 7), (day(0), 8)];
    let mut sums = vec![(day(95), 5), (day(91), 6)];
    sums.extend(kept.clone());
    assert_eq!(logs(&home).await, kept);
    assert_eq!(usage(&home).await, sums);

    // A journal that was away for long: rows that were stored before, one that was not, and one
    // of today.
    let config = journal::Config {
        dir: home.journal(),
        ..journal::Config::default()
    };
    let (journal, _) = Journal::open(&config, Arc::new(LocalDisk), Arc::new(|_| {})).unwrap();
    let mut late = requests(95, 4..6);
    late.extend(requests(91, 0..1));
    late.extend(requests(0, 8..9));
    for record in &late {
        journal.record(record).unwrap();
    }
    drop(journal);
    home.set("ROLE", "all");
    let server = home.start().await;
    let scrape = server.quiet().await;
    assert_eq!(
        (scrape.stage("stored"), scrape.stage("dead_lettered")),
        (1, 3)
    );
    house_is_kept(&server).await;
    server.stop().await;
    let ran = home
        .run(&["logs", "--dead-letter", "--format", "json"])
        .await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    for days in [95, 91] {
        let reason = format!("the day {} has been dropped by retention", day(days));
        assert!(ran.stdout.contains(&reason), "{reason}: {}", ran.stdout);
    }
    *sums.last_mut().unwrap() = (day(0), 9);
    assert_eq!(usage(&home).await, sums);
    assert_eq!(logs(&home).await, sums[2..]);
    let from = day(91);
    let ran = home.run(&["backfill", "--from", &from]).await;
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stderr
            .contains("have been dropped; their sums are all that is left"),
        "{}",
        ran.stderr
    );
    assert_eq!(usage(&home).await, sums);
}

#[tokio::test]
async fn what_is_old_goes_from_the_embedded_store() {
    let folder = TempDir::new().unwrap();
    what_is_old_goes(&format!("sqlite://{}/t.db", folder.path().display())).await;
}

#[tokio::test]
async fn what_is_old_goes_from_postgres() {
    let Some(database) = fresh().await else {
        return;
    };
    what_is_old_goes(&database.url()).await;
    let old: NaiveDate = day(90).parse().unwrap();
    let first = old.format("%Y%m%d").to_string();
    assert_eq!(partitions(&database).await.first(), Some(&first));
}

#[tokio::test]
async fn a_reader_of_an_old_day_stops_neither_writers_nor_the_rest_and_then_it_goes() {
    let Some(database) = fresh().await else {
        return;
    };
    let store = open(&database.url()).await;
    store.apply(&requests(100, 0..5)).await.unwrap();
    store.apply(&requests(95, 0..5)).await.unwrap();
    let mut reader = database.client().await;
    sqlx::raw_sql("begin; select count(*) from taffrail.api_usage_logs")
        .execute(&mut reader)
        .await
        .unwrap();
    let mut home = exporter(&database.url());
    // Whenever it gives up, it comes again at once.
    home.set("SCHEDULE__HOUSEKEEPING", "* * * * * *");
    let server = home.start().await;
    // A writer would give up after five seconds in a queue behind the one who drops.
    let mut number = 5;
    let tries = |log: String| log.matches("somebody else holds a lock").count();
    eventually("it was tried again and again", async || {
        number += 1;
        for days in [95, 0] {
            let batch = requests(days, number..number + 1);
            assert_eq!(store.apply(&batch).await.unwrap().stored, 1);
        }
        tries(server.process.log()) >= 3
    })
    .await;
    assert!(partitions(&database).await.len() >= 2 + 8);
    assert_eq!(usage(&home).await.first().unwrap().0, day(95), "old sums");
    reader.close().await.unwrap();
    house_is_kept(&server).await;
    server.stop().await;
    assert_eq!(partitions(&database).await.len(), 8);
    let written = i64::try_from(number).unwrap();
    assert_eq!(
        usage(&home).await,
        [(day(95), written), (day(0), written - 5)]
    );
    store.close().await;
}

/// Records come for a day while it is dropped: each is stored once or refused with the reason.
async fn late_records_race_with_retention(url: &str) {
    let store = open(url).await;
    store.apply(&requests(95, 0..50)).await.unwrap();
    let mut writers = JoinSet::new();
    for writer in 0..4_u64 {
        let store = store.clone();
        writers.spawn(async move {
            let (mut stored, mut refused) = (0, 0);
            for number in 0.. {
                let first = 100 + 10_000 * writer + 2 * number;
                // The refused ones of a batch of one kind only; the drain would halve it.
                match store.apply(&requests(95, first..first + 2)).await {
                    Ok(applied) => {
                        stored += applied.stored;
                        refused += applied.rejected.len();
                        for (_, rejection) in applied.rejected {
                            assert!(rejection.to_string().contains("dropped by retention"));
                        }
                    }
                    Err(StoreError::Rejected(reason)) => {
                        assert!(reason.contains("dropped by retention"), "{reason}");
                        refused += 2;
                    }
                    Err(error) => panic!("{error:?}"),
                }
                if refused > 20 {
                    break;
                }
            }
            stored
        });
    }
    let before = days_ago(90, "00:00:00").date_naive();
    eventually("nothing is left", async || {
        match store.drop_logs(before).await {
            Ok(day) => day.is_none(),
            Err(error) => {
                assert!(error.is_retryable(), "{error:?}");
                false
            }
        }
    })
    .await;
    let stored: u64 = writers.join_all().await.into_iter().sum();
    assert_eq!(store.drop_logs(before).await.unwrap(), None);
    let sums = store
        .usage(&UsageQuery {
            since: days_ago(99, "00:00:00"),
            by: vec![Dimension::Day],
        })
        .await
        .unwrap();
    let all: i64 = sums.iter().map(|row| row.totals.requests).sum();
    assert_eq!(u64::try_from(all).unwrap(), 50 + stored);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_records_race_with_retention_in_the_embedded_store() {
    let folder = TempDir::new().unwrap();
    let url = format!("sqlite://{}/t.db", folder.path().display());
    late_records_race_with_retention(&url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_records_race_with_retention_in_postgres() {
    let Some(database) = fresh().await else {
        return;
    };
    late_records_race_with_retention(&database.url()).await;
}

#[tokio::test]
async fn the_embedded_store_drops_a_day_by_and_by_and_takes_records_meanwhile() {
    let folder = TempDir::new().unwrap();
    let store = open(&format!("sqlite://{}/t.db", folder.path().display())).await;
    store.apply(&requests(95, 0..2_500)).await.unwrap();
    // A moment before midnight by the id, a moment after it by the start.
    let mut odd = record(days_ago(95, "23:59:59.999"), 9_999);
    odd.started_at += TimeDelta::milliseconds(2);
    store.apply(&[odd]).await.unwrap();
    store.apply(&requests(91, 0..1)).await.unwrap();
    let before = days_ago(90, "00:00:00").date_naive();
    let mut dropped = Vec::new();
    while let Some(day) = store.drop_logs(before).await.unwrap() {
        dropped.push(day.to_string());
        let late = store.apply(&requests(95, 2_600..2_601)).await.unwrap();
        assert_eq!((late.stored, late.rejected.len()), (0, 1));
        let number = u64::try_from(dropped.len()).unwrap();
        let fresh = store.apply(&requests(0, number..number + 1)).await.unwrap();
        assert_eq!(fresh.stored, 1);
    }
    assert_eq!(dropped, [day(95), day(95), day(95), day(91)]);
    let query = LogQuery {
        limit: 10,
        before: None,
        provider: None,
        outcome: None,
    };
    assert_eq!(store.logs(&query).await.unwrap().len(), 4);
    let query = UsageQuery {
        since: days_ago(99, "00:00:00"),
        by: vec![],
    };
    let all = store.usage(&query).await.unwrap();
    assert_eq!(all[0].totals.requests, 2_500 + 1 + 1 + 4);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_across_midnight_make_the_days_that_are_missing() {
    let Some(database) = fresh().await else {
        return;
    };
    let store = open(&database.url()).await;
    assert_eq!(partitions(&database).await, [""; 0]);
    let mut tasks = JoinSet::new();
    for writer in 0..4_u64 {
        // Two processes, with connections of their own.
        let store = match writer % 2 {
            0 => store.clone(),
            _ => open(&database.url()).await,
        };
        tasks.spawn(async move {
            for batch in 0..10 {
                // Every batch has another midnight in it, later and later.
                let midnight = days_ago(20, "00:00:00") + TimeDelta::days(batch);
                let numbers = (0..20_i64).map(|number| {
                    let at = midnight + TimeDelta::milliseconds(100 * (number - 10));
                    record(at, 1_000 * writer + number.unsigned_abs())
                });
                let records: Vec<_> = numbers.collect();
                assert_eq!(store.apply(&records).await.unwrap().stored, 20);
            }
        });
    }
    let keeper = store.clone();
    let metrics = Metrics::new(&metrics::Config::default(), &[], &[]);
    tasks.spawn(async move {
        for _ in 0..5 {
            keep_house(&keeper, &Retention::default(), &metrics)
                .await
                .unwrap();
        }
    });
    tasks.join_all().await;
    assert_eq!(count(&database, DIFFERENCES).await, 0);
    let rows = count(&database, "select count(*) from taffrail.api_usage_logs").await;
    assert_eq!(rows, 4 * 10 * 20);
    assert_eq!(partitions(&database).await.len(), 11 + 8);
    store.close().await;
}

#[tokio::test]
async fn a_store_that_answers_no_more_does_not_hold_up_the_end() {
    let Some(cluster) = Cluster::shared(Version::Default).await else {
        return;
    };
    let database = cluster.database().await;
    let proxy = FaultProxy::start(cluster.address()).await;
    for role in ["exporter", "all"] {
        let mut home = exporter(&database.through(proxy.address()).url());
        home.set("ROLE", role);
        home.set("SCHEDULE__HOUSEKEEPING", "* * * * * *");
        let server = home.start().await;
        house_is_kept(&server).await;
        proxy.stall(true);
        // A run lasts longer than its way to its beginning only if it waits for the store.
        let skipped = |scrape: &Scrape| {
            let labels = [("task", "housekeeping"), ("result", "skipped")];
            scrape.sum("taffrail_schedule_runs_total", &labels)
        };
        let before = skipped(&server.scrape().await);
        let waits = |scrape: &Scrape| skipped(scrape) >= before + 8;
        server.once("a run waits", waits).await;
        let asked = clock::instant();
        server.stop().await;
        let took = asked.elapsed();
        assert!(took < Duration::from_secs(10), "{role}: {took:?}");
        proxy.stall(false);
    }
}

/// Readings of an account, so many days ago.
async fn readings_end_with_their_retention(store: &Store) {
    for (account, days) in [("kept", 31), ("old", 32), ("old", 33), ("new", 0)] {
        let at = days_ago(days, "00:00:00");
        let reading = BalanceReading {
            provider: "fal".to_owned(),
            account: account.to_owned(),
            slot: at,
            read_at: at,
            result: "timeout".to_owned(),
            balances: Vec::new(),
            detail: None,
            raw: None,
        };
        assert!(store.record_balance(&reading).await.unwrap());
    }
    let metrics = Metrics::new(&metrics::Config::default(), &[], &[]);
    let retention = Retention {
        balances: Duration::from_hours(24 * 31),
        ..Retention::default()
    };
    for _ in 0..2 {
        keep_house(store, &retention, &metrics).await.unwrap();
    }
    let text = String::from_utf8(metrics.encode(Format::Text, clock::instant())).unwrap();
    let line = r#"taffrail_retention_dropped_total{kind="balances"} 2"#;
    assert!(text.contains(line), "{text}");
    assert_eq!(
        store
            .drop_balances(days_ago(30, "00:00:00").date_naive())
            .await
            .unwrap(),
        1
    );
    let latest = store.latest_balances().await.unwrap();
    let left: Vec<&str> = latest.iter().map(|it| it.account.as_str()).collect();
    assert_eq!(left, ["new"]);
}

#[tokio::test]
async fn readings_of_balances_end_with_their_retention_in_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&format!("sqlite://{}/taffrail.db", dir.path().display())).await;
    readings_end_with_their_retention(&store).await;
    store.close().await;
}

#[tokio::test]
async fn readings_of_balances_end_with_their_retention_in_postgres() {
    let Some(database) = fresh().await else {
        return;
    };
    open(&database.url()).await.close().await;
    let login = format!("keeper_{}", clock::new_id().simple());
    let create = format!("create role {login} login in role taffrail_balance");
    database.execute(&create).await;
    let own = database
        .url()
        .replace("//postgres@", &format!("//{login}@"));
    let store = open(&own).await;
    readings_end_with_their_retention(&store).await;
    store.close().await;
}
