//! An open-loop driver: it sends a request at every tick, whatever became of the ones before, and
//! knows what must be in the store for them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use taffrail::clock;
use taffrail::store::LogRow;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::binary::{Chance, number, outcome};
use super::chat::Ask;
use super::http::{Ending, read_response};

/// How long a connection may have been idle to be used again: servers close those that are longer.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// What the driver knows.
#[derive(Default)]
pub(crate) struct Truth {
    /// Where the proxy is, while there is one.
    proxy: Option<SocketAddr>,
    /// Connections that may be used again, and since when; the last one is the latest.
    idle: Vec<(TcpStream, Instant)>,
    /// The number of the next request; all below it were sent, or tried.
    pub(crate) next: u64,
    /// Requests whose client saw the last byte of the response.
    pub(crate) completed: BTreeMap<u64, Ask>,
    /// Requests that were broken off.
    pub(crate) broken: u64,
    /// Responses that no kill explains.
    wrong: Vec<String>,
    /// From the tick of a request to the last byte of its response, since the last look.
    latencies: Vec<Duration>,
}

/// Sends requests at a rate of its own.
pub(crate) struct Driver {
    truth: Mutex<Truth>,
    chance: Mutex<Chance>,
    under_way: TaskTracker,
    ask: fn(u64, &mut Chance) -> Ask,
}

/// A driver at work.
pub(crate) struct Driving {
    driver: Arc<Driver>,
    task: JoinHandle<()>,
}

/// How long most requests took.
#[derive(Debug)]
#[expect(dead_code, reason = "they are printed")]
pub(crate) struct Latency {
    requests: usize,
    p50: Duration,
    p99: Duration,
}

impl Driver {
    /// Sends what `ask` makes of a request's number. Nothing is sent before
    /// [`Driving::proxy_is`] says where to.
    pub(crate) fn start(
        interval: Duration,
        chance: Chance,
        ask: fn(u64, &mut Chance) -> Ask,
    ) -> Driving {
        let driver = Arc::new(Driver {
            truth: Mutex::default(),
            chance: Mutex::new(chance),
            under_way: TaskTracker::new(),
            ask,
        });
        let task = tokio::spawn(driver.clone().drive(interval));
        Driving { driver, task }
    }

    /// Runs until it is dropped.
    async fn drive(self: Arc<Driver>, interval: Duration) {
        let mut ticks = tokio::time::interval(interval);
        loop {
            let tick = ticks.tick().await;
            let mut truth = self.truth.lock().unwrap();
            let Some(proxy) = truth.proxy else { continue };
            let ask = (self.ask)(truth.next, &mut self.chance.lock().unwrap());
            truth.next += 1;
            let idle = truth.idle.pop();
            let connection = match idle {
                Some((connection, since)) if since + IDLE_MAX > tick => Some(connection),
                _ => None,
            };
            self.under_way
                .spawn(self.clone().send(ask, tick, proxy, connection));
        }
    }

    async fn send(
        self: Arc<Driver>,
        ask: Ask,
        tick: Instant,
        proxy: SocketAddr,
        connection: Option<TcpStream>,
    ) {
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
        let ended = clock::instant();
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
                truth.latencies.push(ended - tick);
                if truth.proxy == Some(proxy) {
                    truth.idle.push((connection, ended));
                }
            }
            Ending::Truncated | Ending::NoResponse => truth.broken += 1,
            Ending::Stuck => truth.wrong.push(format!("{ask:?} is stuck")),
        }
    }
}

impl Driving {
    /// Says where the proxy is; returns the number of the first request that goes there.
    pub(crate) fn proxy_is(&self, proxy: Option<SocketAddr>) -> u64 {
        let mut truth = self.driver.truth.lock().unwrap();
        truth.proxy = proxy;
        truth.idle.clear();
        truth.next
    }

    /// How long requests took since this was asked last.
    pub(crate) fn latency(&self) -> Latency {
        let mut latencies = std::mem::take(&mut self.driver.truth.lock().unwrap().latencies);
        latencies.sort_unstable();
        let at = |percent: usize| latencies[latencies.len() * percent / 100];
        Latency {
            requests: latencies.len(),
            p50: at(50),
            p99: at(99),
        }
    }

    /// Sends no more, and waits for the responses that are under way.
    pub(crate) async fn stop(self) -> Truth {
        self.task.abort();
        self.driver.under_way.close();
        self.driver.under_way.wait().await;
        std::mem::take(&mut *self.driver.truth.lock().unwrap())
    }
}

/// Holds the rows to what the driver and the provider know.
pub(crate) fn assert_rows_tell_the_truth(rows: &[LogRow], truth: &Truth, received: &BTreeSet<u64>) {
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
