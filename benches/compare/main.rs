//! What Taffrail costs beside nginx, measured in one run on one machine.
//!
//! `cargo bench --bench compare`; `-- unary`, `-- streams`, `-- memory`, `-- tls` and `-- start` for
//! one part, and a number after it for other than five rounds. An earlier build joins in where
//! `TAFFRAIL_BASELINE` is its absolute path. Linux only: CPU time and memory come from `/proc`.
//!
//! The proxies have one CPU, everything else another. All run at once and are loaded in turns, in
//! the other order every other round. CPU is the run time of all threads, of Taffrail until the
//! last row is in the store. The client speaks plain HTTP always, and to the upstream directly.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a benchmark fails by panicking and tells by printing"
)]

mod load;
mod proxy;
mod upstream;

/// The throwaway servers of the tests, and the real binary.
#[path = "../../tests/suite/support"]
#[expect(dead_code, unused_imports, reason = "the tests use the rest of it")]
mod support {
    pub(crate) mod binary;
    pub(crate) mod certificate;
    pub(crate) mod chat;
    pub(crate) mod eventually;
    pub(crate) mod http;
    pub(crate) mod postgres;
    pub(crate) mod upstream;
}

use std::collections::BTreeMap;
use std::time::Duration;

use taffrail::clock;

use load::Pattern;
use proxy::{Cpu, Kind, Proxy, Setting};
use upstream::{Answer, EVENTS};

/// Rounds, unless told otherwise; the medians count.
const ROUNDS: usize = 5;

/// How long a proxy is loaded in a round.
const SLICE: Duration = Duration::from_secs(2);

/// Streams that are open at once when memory is measured.
const STREAMS: usize = 1_000;

/// Starts of each proxy.
const STARTS: usize = 11;

/// A load, and what its figures are divided by.
struct Load {
    title: &'static str,
    answer: Answer,
    pattern: Pattern,
    connections: u32,
    /// What CPU is counted for, and how many of them a request has.
    unit: &'static str,
    units: u64,
}

const UNARY: [Load; 2] = [
    Load {
        title: "Requests, as many as 16 connections bring",
        answer: Answer::Whole,
        pattern: Pattern::Closed,
        connections: 16,
        unit: "request",
        units: 1,
    },
    Load {
        title: "Requests, 1,000 a second over 32 connections",
        answer: Answer::Whole,
        pattern: Pattern::Open { per_second: 1_000 },
        connections: 32,
        unit: "request",
        units: 1,
    },
];

const STREAMING: [Load; 2] = [
    Load {
        title: "Streams of 102 events that come together, 16 connections",
        answer: Answer::Together,
        pattern: Pattern::Closed,
        connections: 16,
        unit: "event",
        units: EVENTS,
    },
    Load {
        title: "Streams of 102 events that come 5 ms apart, 64 connections",
        answer: Answer::Apart,
        pattern: Pattern::Closed,
        connections: 64,
        unit: "event",
        units: EVENTS,
    },
];

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    let wants = |name: &str| arguments.is_empty() || arguments[0] == name;
    let rounds = arguments
        .get(1)
        .map_or(ROUNDS, |text| text.parse().unwrap());
    // A worker beside the main thread reads the proxies' logs while that one waits.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    runtime.unwrap().block_on(async {
        let mut setting = Setting::prepare().await;
        if wants("unary") {
            compare(&setting, &UNARY, rounds).await;
        }
        if wants("streams") {
            compare(&setting, &STREAMING, rounds).await;
        }
        if wants("memory") {
            memory(&setting, rounds).await;
        }
        if wants("start") {
            start(&setting).await;
        }
        if wants("tls") {
            setting.is_tls = true;
            compare(&setting, &UNARY, rounds).await;
            compare(&setting, &STREAMING, rounds).await;
        }
    });
}

/// What a proxy did in a round.
struct Slice {
    /// Microseconds for a unit.
    cpu: f64,
    /// The same, by the names of the threads.
    threads: BTreeMap<String, f64>,
    per_second: f64,
    /// Microseconds, if the load measures them.
    delays: Option<[f64; 2]>,
}

async fn compare(setting: &Setting, loads: &[Load], rounds: usize) {
    let mut proxies = Vec::new();
    for kind in setting.kinds() {
        let mut proxy = setting.proxy(kind).await;
        proxy.start(setting).await;
        proxies.push(proxy);
    }
    for load in loads {
        let mut slices: Vec<Vec<Slice>> = proxies.iter().map(|_| Vec::new()).collect();
        let mut foreign = Vec::new();
        for round in 0..rounds {
            let mut order: Vec<usize> = (0..proxies.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for index in order {
                let (slice, others) = measure(&proxies[index], load).await;
                slices[index].push(slice);
                foreign.push(others);
            }
        }
        let upstream = if setting.is_tls { "TLS" } else { "plain" };
        println!("\n{}; {upstream} upstream; {rounds} rounds\n", load.title);
        print(load, &proxies, &slices);
        println!(
            "\nOthers took {:.0} % of the proxies' CPU (median; at most {:.0} %).",
            median(&foreign) * 100.0,
            foreign.iter().copied().fold(0.0, f64::max) * 100.0
        );
    }
    for proxy in &mut proxies {
        proxy.stop().await;
    }
}

/// Loads a proxy for a slice. Also what part of the proxies' CPU others took meanwhile.
async fn measure(proxy: &Proxy, load: &Load) -> (Slice, f64) {
    let request = load.answer.request(proxy.kind.prefix());
    let mut before = Cpu::default();
    let mut busy = Duration::ZERO;
    let started = clock::instant();
    let seen = load::run(
        proxy.address,
        &request,
        load.pattern,
        load.connections,
        SLICE,
        || {
            before = proxy.cpu();
            busy = proxy::busy();
        },
    );
    proxy.rest().await;
    let threads = proxy.cpu().since(&before);
    let taken: Duration = threads.values().sum();
    let others = (proxy::busy() - busy).saturating_sub(taken);
    let units = (seen.requests * load.units) as f64;
    let micros = |cpu: Duration| cpu.as_secs_f64() * 1e6 / units;
    let delay = |percent: usize| seen.delays[(seen.delays.len() - 1) * percent / 100] as f64 / 1e3;
    let slice = Slice {
        cpu: micros(taken),
        threads: threads
            .into_iter()
            .map(|(name, cpu)| (name, micros(cpu)))
            .collect(),
        per_second: seen.requests as f64 / seen.elapsed.as_secs_f64(),
        delays: (!seen.delays.is_empty()).then(|| [50, 99].map(delay)),
    };
    let others = others.as_secs_f64() / started.elapsed().as_secs_f64();
    (slice, others)
}

fn print(load: &Load, proxies: &[Proxy], slices: &[Vec<Slice>]) {
    let position = |kind| proxies.iter().position(|proxy| proxy.kind == kind);
    let of = |index: usize, value: &dyn Fn(&Slice) -> f64| -> Vec<f64> {
        slices[index].iter().map(value).collect()
    };
    let nginx = position(Kind::Nginx);
    let direct = position(Kind::Direct).unwrap();
    // In each round by itself.
    let ratio = |index, value: &dyn Fn(&Slice) -> f64| match nginx {
        Some(nginx) => range(&pair(&of(index, value), &of(nginx, value), |a, b| a / b), 2),
        None => "–".to_owned(),
    };
    let has_delays = slices[direct][0].delays.is_some();
    let unit = load.unit;
    if has_delays {
        println!(
            "| | CPU, µs per {unit} | to nginx's | p50 over direct, µs | p99 over direct, µs |"
        );
    } else {
        println!("| | CPU, µs per {unit} | to nginx's | requests per second | to nginx's |");
    }
    println!("|---|---|---|---|---|");
    for (index, proxy) in proxies.iter().enumerate() {
        let cpu: &dyn Fn(&Slice) -> f64 = &|slice| slice.cpu;
        let per_second: &dyn Fn(&Slice) -> f64 = &|slice| slice.per_second;
        let (taken, beside) = match index == direct {
            true => ("–".to_owned(), "–".to_owned()),
            false => (range(&of(index, cpu), 2), ratio(index, cpu)),
        };
        let [third, fourth] = match has_delays {
            true => [0, 1].map(|which| {
                let delay: &dyn Fn(&Slice) -> f64 = &|slice| slice.delays.unwrap()[which];
                if index == direct {
                    return format!("({})", range(&of(direct, delay), 0));
                }
                let added = pair(&of(index, delay), &of(direct, delay), |a, b| a - b);
                range(&added, 0)
            }),
            false => [range(&of(index, per_second), 0), ratio(index, per_second)],
        };
        println!(
            "| {} | {taken} | {beside} | {third} | {fourth} |",
            proxy.kind.name()
        );
    }
    for (proxy, slices) in proxies.iter().zip(slices) {
        let names: Vec<&String> = slices[0].threads.keys().collect();
        if names.len() > 1 {
            let part = |name: &String| {
                let taken = |slice: &Slice| slice.threads.get(name).copied().unwrap_or_default();
                let taken: Vec<f64> = slices.iter().map(taken).collect();
                format!("{name} {:.2}", median(&taken))
            };
            let parts: Vec<String> = names.into_iter().map(part).collect();
            println!("\n{} by thread: {}", proxy.kind.name(), parts.join(", "));
        }
    }
}

/// Memory of a process that serves: after its start, at most under load, and for open streams.
async fn memory(setting: &Setting, rounds: usize) {
    println!("\nMemory, MB resident; {rounds} rounds\n");
    println!("| | idle | at most, under 256 connections | for each 1,000 open streams |");
    println!("|---|---|---|---|");
    for kind in setting.kinds() {
        let mut figures: [Vec<f64>; 3] = Default::default();
        for _ in 0..rounds {
            let mut proxy = setting.proxy(kind).await;
            proxy.start(setting).await;
            let request = Answer::Whole.request(kind.prefix());
            let Some((idle, _)) = proxy.resident() else {
                break;
            };
            let streams = load::open_streams(proxy.address, kind.prefix(), STREAMS);
            let (open, _) = proxy.resident().unwrap();
            drop(streams);
            proxy.stop().await;
            proxy.start(setting).await;
            load::run(proxy.address, &request, Pattern::Closed, 256, SLICE, || {});
            proxy.rest().await;
            let (_, peak) = proxy.resident().unwrap();
            proxy.stop().await;
            let per_stream = (open - idle) as f64 / STREAMS as f64 * 1e3;
            for (figures, bytes) in figures
                .iter_mut()
                .zip([idle as f64, peak as f64, per_stream])
            {
                figures.push(bytes / 1e6);
            }
        }
        if !figures[0].is_empty() {
            let [idle, peak, streams] = figures.map(|figures| range(&figures, 1));
            println!("| {} | {idle} | {peak} | {streams} |", kind.name());
        }
    }
}

/// From the start of the process to the end of the first answer through it.
async fn start(setting: &Setting) {
    println!("\nStart to first answer, ms; {STARTS} starts\n");
    println!("| | ms |");
    println!("|---|---|");
    for kind in setting.kinds() {
        if kind == Kind::Direct {
            continue;
        }
        let mut proxy = setting.proxy(kind).await;
        let request = Answer::Whole.request(kind.prefix());
        let mut times = Vec::new();
        // The first makes files, and the tables of the store.
        for number in 0..=STARTS {
            let started = clock::instant();
            proxy.spawn(setting);
            load::first_answer(proxy.address, &request);
            let elapsed = started.elapsed();
            if number > 0 {
                times.push(elapsed.as_secs_f64() * 1e3);
            }
            proxy.stop().await;
        }
        println!("| {} | {} |", kind.name(), range(&times, 1));
    }
}

fn pair(ones: &[f64], others: &[f64], combine: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    ones.iter()
        .zip(others)
        .map(|(&one, &other)| combine(one, other))
        .collect()
}

/// The median, and the least and the greatest.
fn range(values: &[f64], decimals: usize) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!(
        "{:.decimals$} [{least:.decimals$}–{greatest:.decimals$}]",
        median(values)
    )
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
