//! What metering a stream costs: the memory of a live meter, and the time for an event.
//!
//! `cargo bench --bench meter`. Linux only: memory and CPU time come from `/proc`.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a benchmark fails by panicking and tells by printing"
)]

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use taffrail::provider::{Meter, RequestHead, ResponseHead, builtin};

/// How many meters are alive at once.
const METERS: u64 = 10_000;

/// How many events are timed, and how many times; the median counts.
const EVENTS: u64 = 200_000;
const ROUNDS: usize = 7;

/// A provider, the path of its chat, and two events of some 300 bytes.
struct Dialect {
    provider: &'static str,
    path: &'static str,
    first: &'static str,
    event: &'static str,
}

const DIALECTS: [Dialect; 2] = [
    Dialect {
        provider: "openai",
        path: "/v1/chat/completions",
        first: "data: {\"id\":\"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG\",\"object\":\
            \"chat.completion.chunk\",\"created\":1741570283,\"model\":\"gpt-4o-mini-2024-07-18\",\
            \"service_tier\":\"default\",\"system_fingerprint\":\"fp_06737a9306\",\"choices\":[{\
            \"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\
            \"finish_reason\":null}],\"usage\":null}\n\n",
        event: "data: {\"id\":\"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG\",\"object\":\
            \"chat.completion.chunk\",\"created\":1741570283,\"model\":\"gpt-4o-mini-2024-07-18\",\
            \"service_tier\":\"default\",\"system_fingerprint\":\"fp_06737a9306\",\"choices\":[{\
            \"index\":0,\"delta\":{\"content\":\" miles\"},\"logprobs\":null,\
            \"finish_reason\":null}],\"usage\":null}\n\n",
    },
    Dialect {
        provider: "anthropic",
        path: "/v1/messages",
        first: "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\
            \"msg_01XFDUDYJgAACzvnptvVoYEL\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\
            \"claude-sonnet-4-20250514\",\"content\":[],\"stop_reason\":null,\"stop_sequence\":\
            null,\"usage\":{\"input_tokens\":25,\"cache_read_input_tokens\":0,\
            \"cache_creation_input_tokens\":0,\"output_tokens\":1}}}\n\n",
        event: "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\
            \"delta\":{\"type\":\"text_delta\",\"text\":\" The log is towed astern, and its rotor \
            turns once for every fixed length of water that it passes, so that the dial on the \
            taffrail shows the miles that have been run through the water.\"}}\n\n",
    },
];

impl Dialect {
    fn meter(&self) -> Box<dyn Meter> {
        let provider = builtin(self.provider).expect("built in");
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream"),
        );
        let call = provider.recognise(RequestHead {
            method: &Method::POST,
            path: self.path,
            query: None,
            headers: &headers,
        });
        let head = ResponseHead {
            status: StatusCode::OK,
            headers: &headers,
        };
        provider.meter(&call, head)
    }

    /// Bytes for each of many meters in the middle of an event.
    fn memory(&self) -> u64 {
        let (half, _) = self.event.split_at(self.event.len() / 2);
        let before = resident();
        let meters: Vec<Box<dyn Meter>> = (0..METERS)
            .map(|_| {
                let mut meter = self.meter();
                for piece in [self.first, self.event, half] {
                    meter.push(piece.as_bytes());
                }
                meter
            })
            .collect();
        let after = resident();
        drop(meters);
        (after - before) / METERS
    }

    /// Nanoseconds for each of many events that come that many at a time.
    fn time(&self, together: usize) -> u64 {
        let events = self.event.repeat(together);
        let mut meter = self.meter();
        meter.push(self.first.as_bytes());
        let pushes = EVENTS / u64::try_from(together).unwrap();
        let mut rounds: Vec<u64> = (0..ROUNDS)
            .map(|_| {
                let before = cpu();
                for _ in 0..pushes {
                    meter.push(events.as_bytes());
                }
                (cpu() - before) / EVENTS
            })
            .collect();
        rounds.sort_unstable();
        *rounds.get(ROUNDS / 2).unwrap()
    }
}

/// Resident memory in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kib.parse::<u64>().unwrap() << 10
}

/// Nanoseconds that this thread has run.
fn cpu() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split_whitespace().next().unwrap().parse().unwrap()
}

fn main() {
    for dialect in &DIALECTS {
        println!(
            "{}: {} bytes for a live meter; an event of {} bytes takes {} ns alone, {} ns in a \
             hundred",
            dialect.provider,
            dialect.memory(),
            dialect.event.len(),
            dialect.time(1),
            dialect.time(100),
        );
    }
}
