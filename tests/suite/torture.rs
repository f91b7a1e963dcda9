//! The real binary killed at random moments under load: nothing that a client saw complete is
//! missing, nothing is there twice, and the sums are those of the rows.
//!
//! `TAFFRAIL_TORTURE=1` (`make torture`) runs the long forms. The seed is printed;
//! `TAFFRAIL_SEED` repeats a run as far as the machine's timing allows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytesize::ByteSize;
use rust_decimal::Decimal;
use taffrail::clock;
use taffrail::store::LogRow;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use crate::store::{sums_kept, sums_of_rows};
use crate::support::binary::{Chance, Home, Scrape, number, outcome};
use crate::support::chat::{Ask, Chat};
use crate::support::http::{Ending, read_response};

/// 100 requests a second.
const REQUEST_INTERVAL: Duration = Duration::from_millis(10);

/// Whether the long forms run.
fn is_long() -> bool {
    std::env::var_os("TAFFRAIL_TORTURE").is_some_and(|value| value != "0")
}

/// What the driver knows.
#[derive(Default)]
struct Truth {
    /// Where the proxy is, while there is one.
    proxy: Option<SocketAddr>,
    /// Connections that may be used again.
    idle: Vec<TcpStream>,
    /// The number of the next request; all below it were sent, or tried.
    next: u64,
    /// Ticks at which there was no proxy.
    missed: u64,
    /// Requests whose client saw the last byte of the response.
    completed: BTreeMap<u64, Ask>,
    /// Requests that a killed proxy broke off.
    broken: u64,
    /// Responses that no kill explains.
    wrong: Vec<String>,
}

/// Sends a request at every tick, whatever became of the ones before.
struct Driver {
    truth: Mutex<Truth>,
    chance: Mutex<Chance>,
    under_way: TaskTracker,
}

impl Driver {
    fn new(chance: Chance) -> Arc<Driver> {
        Arc::new(Driver {
            truth: Mutex::default(),
            chance: Mutex::new(chance),
            under_way: TaskTracker::new(),
        })
    }

    /// Runs until it is dropped.
    async fn drive(self: Arc<Driver>) {
        let mut ticks = tokio::time::interval(REQUEST_INTERVAL);
        loop {
            ticks.tick().await;
            let mut truth = self.truth.lock().unwrap();
            let Some(proxy) = truth.proxy else {
                truth.missed += 1;
                continue;
            };
            let ask = self.ask(truth.next);
            truth.next += 1;
            let connection = truth.idle.pop();
            self.under_way
                .spawn(self.clone().send(ask, proxy, connection));
        }
    }

    /// Half of the requests are streams of a few hundred milliseconds.
    fn ask(&self, number: u64) -> Ask {
        let mut chance = self.chance.lock().unwrap();
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

    async fn send(self: Arc<Driver>, ask: Ask, proxy: SocketAddr, connection: Option<TcpStream>) {
        let connected = match connection {
            Some(connection) => Ok(connection),
            None => TcpStream::connect(proxy).await,
        };
        let Ok(mut connection) = connected else {
            self.truth.lock().unwrap().broken += 1;
            return;
        };
        connection.set_nodelay(true).ok();
        // The proxy may be killed in the middle of it.
        connection.write_all(&ask.request()).await.ok();
        let mut rest = Vec::new();
        let seen = read_response(&mut connection, &mut rest, false).await;
        let mut truth = self.truth.lock().unwrap();
        match seen.ending {
            Ending::Complete => {
                let body = String::from_utf8(seen.body).unwrap();
                let is_whole = match ask.events {
                    0 => body.ends_with('}'),
                    _ => body.ends_with("data: [DONE]\n\n"),
                };
                let has_usage = ask.events == 0 || ask.asks_usage;
                let is_right = seen.status == 200
                    && is_whole
                    && body.contains(&format!("\"{}\"", ask.response_id()))
                    && body.contains("prompt_tokens") == has_usage
                    && rest.is_empty();
                if !is_right {
                    truth.wrong.push(format!("{ask:?}: {} {body}", seen.status));
                }
                truth.completed.insert(ask.number, ask);
                if truth.proxy == Some(proxy) {
                    truth.idle.push(connection);
                }
            }
            Ending::Truncated | Ending::NoResponse => truth.broken += 1,
            Ending::Stuck => truth.wrong.push(format!("{ask:?} is stuck")),
        }
    }

    /// Says where the proxy is; returns the number of the first request that goes there.
    fn proxy_is(&self, proxy: Option<SocketAddr>) -> u64 {
        let mut truth = self.truth.lock().unwrap();
        truth.proxy = proxy;
        truth.idle.clear();
        truth.next
    }
}

/// Holds the rows to what the driver and the provider know.
fn assert_rows_tell_the_truth(rows: &[LogRow], truth: &Truth, received: &BTreeSet<u64>) {
    assert_eq!(truth.wrong, Vec::<String>::new());
    let mut by_number = BTreeMap::new();
    let mut twice = Vec::new();
    for row in rows {
        if by_number.insert(number(row), row).is_some() {
            twice.push(number(row));
        }
    }
    assert_eq!(twice, Vec::<u64>::new(), "requests with two rows");
    let ids: Vec<&str> = rows
        .iter()
        .filter_map(|row| row.get("provider_request_id").as_text())
        .collect();
    let distinct: BTreeSet<&str> = ids.iter().copied().collect();
    assert_eq!(ids.len(), distinct.len(), "responses with two rows");

    let missing: Vec<u64> = truth
        .completed
        .keys()
        .copied()
        .filter(|number| !by_number.contains_key(number))
        .collect();
    assert_eq!(missing, Vec::<u64>::new(), "completed, and no row");
    for (number, ask) in &truth.completed {
        let row = by_number[number];
        let integer = |column: &str| row.get(column).as_integer();
        let (input, output) = ask.tokens();
        assert_eq!(outcome(row), "ok", "request {number}");
        assert_eq!(
            row.get("provider_request_id").as_text(),
            Some(ask.response_id().as_str())
        );
        assert_eq!(integer("input_tokens"), i64::try_from(input).ok());
        assert_eq!(integer("output_tokens"), i64::try_from(output).ok());
        assert!(row.get("cost_usd").as_text().is_some(), "request {number}");
    }
    // What reached the provider may cost money, so it has a row, whether anyone saw its end.
    let unseen: Vec<&u64> = received
        .iter()
        .filter(|number| !by_number.contains_key(number))
        .collect();
    assert_eq!(unseen, Vec::<&u64>::new(), "at the provider, and no row");
    for (number, row) in &by_number {
        assert!(*number < truth.next, "no request had number {number}");
        assert!(
            matches!(outcome(row), "ok" | "interrupted"),
            "request {number} is {}",
            outcome(row)
        );
    }
}

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_moment_loses_and_doubles_nothing() {
    let (kills, longest_ms) = if is_long() { (50, 6_000) } else { (8, 1_500) };
    let mut chance = Chance::seeded();
    let chat = Chat::start().await;
    let home = Home::new(chat.address);
    let driver = Driver::new(Chance(chance.below(u64::MAX)));
    let driving = tokio::spawn(driver.clone().drive());
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
        driver.proxy_is(Some(server.proxy));
        tokio::time::sleep(chance.millis(20, longest_ms)).await;
        server.process.kill().await;
        driver.proxy_is(None);
    }
    let server = home.start().await;
    startups.push(server.startup);
    let first_of_last = driver.proxy_is(Some(server.proxy));
    tokio::time::sleep(Duration::from_secs(1)).await;
    driving.abort();
    driver.under_way.close();
    driver.under_way.wait().await;

    let scrape = server.quiet().await;
    let log = server.stop().await;
    let rows = home.rows().await;
    let truth = std::mem::take(&mut *driver.truth.lock().unwrap());
    assert_rows_tell_the_truth(&rows, &truth, &chat.received());
    assert_eq!(sums_kept(home.path()).await, sums_of_rows(&rows));
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
