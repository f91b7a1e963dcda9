//! The real binary killed at random moments under load: nothing that a client saw complete is
//! missing, nothing is there twice, and the sums are those of the rows.
//!
//! `TAFFRAIL_TORTURE=1` (`make torture`) runs the long forms. The seed is printed;
//! `TAFFRAIL_SEED` repeats a run as far as the machine's timing allows.

use std::collections::BTreeSet;
use std::time::Duration;

use bytesize::ByteSize;
use rust_decimal::Decimal;
use taffrail::clock;
use taffrail::store::LogRow;

use crate::postgres;
use crate::store::{sums_kept, sums_of_rows};
use crate::support::binary::{Chance, Home, Scrape, is_long, number, outcome};
use crate::support::chat::{Ask, Chat};
use crate::support::load::{Driver, assert_rows_tell_the_truth};

/// Holds the counters of a process to the rows that it made.
fn assert_counters_are_of_rows(scrape: &Scrape, rows: &[&LogRow], interrupted: u64) {
    let count = u64::try_from(rows.len()).unwrap() + interrupted;
    assert_eq!(scrape.stage("completed"), count);
    assert_eq!(scrape.stage("dropped"), 0);
    assert_eq!(scrape.stage("dead_lettered"), 0);
    assert_eq!(scrape.sum("taffrail_requests_total", &[]), count);
    for (label, column) in [("input", "input_tokens"), ("output", "output_tokens")] {
        let tokens: i64 = rows
            .iter()
            .filter_map(|row| row.get(column).as_integer())
            .sum();
        let counted = scrape.sum("taffrail_tokens_total", &[("type", label)]);
        assert_eq!(i64::try_from(counted).ok(), Some(tokens), "{column}");
    }
    let cost: Decimal = rows
        .iter()
        .filter_map(|row| row.get("cost_usd").as_text())
        .map(|cost| cost.parse::<Decimal>().unwrap())
        .sum();
    let cost: f64 = cost.to_string().parse().unwrap();
    let counted = scrape.total("taffrail_cost_usd_total");
    assert!((counted - cost).abs() <= cost * 1e-12, "{counted} {cost}");
}

/// The number that a field of a log event says, summed over the events that say it.
fn logged(log: &str, message: &str, field: &str) -> u64 {
    log.lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap_or_default())
        .filter(|event| event["message"] == message)
        .map(|event| event[field].as_u64().unwrap())
        .sum()
}

/// Half of the requests are streams of a few hundred milliseconds.
fn ask(number: u64, chance: &mut Chance) -> Ask {
    let is_stream = number.is_multiple_of(2);
    Ask {
        number,
        events: if is_stream { 3 + chance.below(6) } else { 0 },
        pace: if is_stream {
            chance.millis(20, 80)
        } else {
            chance.millis(0, 50)
        },
        is_held: false,
        asks_usage: number.is_multiple_of(4),
    }
}

/// Kills the binary again and again at 100 requests a second, and holds its rows to the truth;
/// returns the rows.
async fn kill_under_load(chat: &Chat, home: &Home, kills: u32) -> Vec<LogRow> {
    let longest_ms = if is_long() { 6_000 } else { 1_500 };
    let mut chance = Chance::seeded();
    let of_driver = Chance(chance.below(u64::MAX));
    let driving = Driver::start(Duration::from_millis(10), of_driver, ask);
    let mut startups = Vec::new();
    for _ in 0..kills {
        let process = home.spawn();
        if chance.below(5) == 0 {
            // In the middle of its start.
            tokio::time::sleep(chance.millis(0, 150)).await;
            process.kill().await;
            continue;
        }
        let server = process.ready().await;
        startups.push(server.startup);
        driving.proxy_is(Some(server.proxy));
        tokio::time::sleep(chance.millis(20, longest_ms)).await;
        server.process.kill().await;
        driving.proxy_is(None);
    }
    let server = home.start().await;
    startups.push(server.startup);
    let first_of_last = driving.proxy_is(Some(server.proxy));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let truth = driving.stop().await;

    let scrape = server.quiet().await;
    let log = server.stop().await;
    let rows = home.rows().await;
    assert_rows_tell_the_truth(&rows, &truth, &chat.received());
    let of_last: Vec<&LogRow> = rows
        .iter()
        .filter(|row| number(row) >= first_of_last)
        .collect();
    let interrupted = logged(
        &log,
        "took over what the last process left in the journal",
        "interrupted",
    );
    assert_counters_are_of_rows(&scrape, &of_last, interrupted);
    let interrupted = rows.iter().filter(|row| outcome(row) == "interrupted");
    let interrupted = interrupted.count();
    assert!(interrupted > 0, "no kill met a request under way");
    startups.sort_unstable();
    eprintln!(
        "{kills} kills: {} requests sent, {} completed, {} broken off, {} rows, {interrupted} of them interrupted; \
         from start to ready {:?} in the middle, {:?} at most",
        truth.next,
        truth.completed.len(),
        truth.broken,
        rows.len(),
        startups[startups.len() / 2],
        startups[startups.len() - 1],
    );
    assert!(startups[startups.len() - 1] < Duration::from_secs(1));
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_moment_loses_and_doubles_nothing() {
    let chat = Chat::start().await;
    let home = Home::new(chat.address);
    let kills = if is_long() { 50 } else { 8 };
    let rows = kill_under_load(&chat, &home, kills).await;
    assert_eq!(sums_kept(home.path()).await, sums_of_rows(&rows));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_moment_loses_and_doubles_nothing_in_postgres() {
    let Some(database) = postgres::fresh().await else {
        return;
    };
    let chat = Chat::start().await;
    let mut home = Home::new(chat.address);
    home.set("STORE__URL", database.url());
    let kills = if is_long() { 200 } else { 8 };
    let rows = kill_under_load(&chat, &home, kills).await;
    assert_eq!(postgres::sums_kept(&database).await, sums_of_rows(&rows));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_journal_does_not_hold_up_the_start() {
    let count: u64 = if is_long() { 100_000 } else { 10_000 };
    let home = Home::without_provider();
    let bytes = home.fill_journal(count, ByteSize::mib(8));

    let server = home.start().await;
    let startup = server.startup;
    let started = clock::instant();
    let scrape = server.quiet().await;
    let shipping = started.elapsed();
    assert_eq!(
        scrape.sum("taffrail_records_total", &[("reason", "recovered")]),
        count
    );
    assert_eq!(scrape.stage("stored"), count);
    server.stop().await;
    let rows = home.rows().await;
    let numbers: BTreeSet<u64> = rows.iter().map(number).collect();
    assert_eq!(numbers, (0..count).collect());
    assert_eq!(sums_kept(home.path()).await, sums_of_rows(&rows));
    eprintln!(
        "{count} records ({bytes} bytes) pending: ready after {startup:?}, stored after {shipping:?}"
    );
    assert!(startup < Duration::from_secs(1), "{startup:?}");
}
