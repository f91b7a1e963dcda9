//! What the parts of a request cost by themselves: reading, metering, pricing, counting and
//! journalling one chat completion, and the decoders of streams for each event.
//!
//! `cargo bench --bench micro`, and a part of a name for some of them alone. Criterion compares
//! with the last run. These figures serve to judge a change to a part; what it is worth in a
//! proxy `cargo bench --bench compare` tells.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark fails by panicking"
)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use taffrail::caller::{Caller, Instance};
use taffrail::clock;
use taffrail::fault::Outcome;
use taffrail::journal::codec::{self, Body as _};
use taffrail::journal::disk::LocalDisk;
use taffrail::journal::{self, Journal};
use taffrail::metrics::{self, Metrics};
use taffrail::price::{PriceBook, Query};
use taffrail::provider::{
    Call, End, Meter, Provider, Report, RequestFacts, RequestHead, ResponseHead, builtin,
};
use taffrail::qualifier::Qualifiers;
use taffrail::record::{CostSource, Fidelity, Intent, Operation, UsageRecord};
use taffrail::usage::{Unit, Usage};
use taffrail::wire::json::{Path, Picker, Selector, Step, Want};
use taffrail::wire::sse::Decoder;

const EVENT: &str = "data: {\"id\":\"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG\",\"object\":\
    \"chat.completion.chunk\",\"created\":1741570283,\"model\":\"gpt-4o-mini-2024-07-18\",\
    \"service_tier\":\"default\",\"system_fingerprint\":\"fp_06737a9306\",\"choices\":[{\"index\":0,\
    \"delta\":{\"content\":\" miles\"},\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n";

/// Events that one read brings.
const EVENTS: usize = 100;

/// A request's body of some 600 bytes.
fn question() -> String {
    let question = "How far has the ship run since noon, by the log? ".repeat(10);
    format!(
        "{{\"model\":\"gpt-4o-mini\",\"messages\":[{{\"role\":\"user\",\"content\":\"{question}\"\
         }}],\"temperature\":0.2}}"
    )
}

/// A response's body of some 1,300 bytes.
fn answer() -> String {
    let text = "Since noon the log has run out forty-two miles and a half. ".repeat(12);
    format!(
        "{{\"id\":\"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG\",\"object\":\"chat.completion\",\
         \"created\":1741570283,\"model\":\"gpt-4o-mini-2024-07-18\",\"choices\":[{{\"index\":0,\
         \"message\":{{\"role\":\"assistant\",\"content\":\"{text}\",\"refusal\":null,\
         \"annotations\":[]}},\"logprobs\":null,\"finish_reason\":\"stop\"}}],\"usage\":{USAGE},\
         \"service_tier\":\"default\",\"system_fingerprint\":\"fp_06737a9306\"}}"
    )
}

const USAGE: &str = "{\"prompt_tokens\":1117,\"completion_tokens\":46,\"total_tokens\":1163,\
    \"prompt_tokens_details\":{\"cached_tokens\":0,\"audio_tokens\":0},\
    \"completion_tokens_details\":{\"reasoning_tokens\":0,\"audio_tokens\":0,\
    \"accepted_prediction_tokens\":0,\"rejected_prediction_tokens\":0}}";

fn headers(content_type: &'static str) -> HeaderMap {
    let content_type = HeaderValue::from_static(content_type);
    HeaderMap::from_iter([(header::CONTENT_TYPE, content_type)])
}

/// A call, as its head tells it.
struct Asked {
    provider: Arc<dyn Provider>,
    headers: HeaderMap,
}

impl Asked {
    fn new() -> Asked {
        Asked {
            provider: builtin("openai").expect("built in"),
            headers: headers("application/json"),
        }
    }

    fn head(&self) -> RequestHead<'_> {
        RequestHead {
            method: &Method::POST,
            path: "/v1/chat/completions",
            query: None,
            headers: &self.headers,
        }
    }

    fn call(&self) -> Call {
        self.provider.recognise(self.head())
    }

    fn meter(&self, content_type: &'static str) -> Box<dyn Meter> {
        let head = ResponseHead {
            status: StatusCode::OK,
            headers: &headers(content_type),
        };
        self.provider.meter(&self.call(), head)
    }

    fn report(&self, answer: &str) -> Report {
        let mut meter = self.meter("application/json");
        meter.push(answer.as_bytes());
        meter.finish(End::Complete, &RequestFacts::default())
    }
}

fn usage() -> Usage {
    Usage::new()
        .with(Unit::Input, 1117)
        .with(Unit::CacheRead, 0)
        .with(Unit::Output, 46)
        .with(Unit::Reasoning, 0)
}

fn intent() -> Intent {
    Intent {
        id: clock::new_id(),
        started_at: clock::wall(),
        provider: "openai".into(),
        operation: taffrail::record::Operation::Chat,
        method: "POST".into(),
        route: "/v1/chat/completions".into(),
        model_requested: Some("gpt-4o-mini".into()),
        caller: Caller {
            key_fingerprint: Some("0011223344556677".into()),
            ..Caller::default()
        },
        job: None,
    }
}

fn record(intent: Intent) -> UsageRecord {
    UsageRecord {
        model_served: Some("gpt-4o-mini-2024-07-18".into()),
        service_tier: Some("default".into()),
        provider_request_id: Some("req_fd0fb8b1e0e6de0c".into()),
        outcome: Outcome::Ok,
        http_status: Some(200),
        finish_reason: Some("stop".into()),
        duration_us: Some(431_000),
        first_byte_us: Some(430_000),
        overhead_us: Some(60),
        request_bytes: Some(573),
        response_bytes: Some(1302),
        usage: usage(),
        fidelity: Fidelity::Complete,
        raw_usage: Some(USAGE.into()),
        cost_usd: taffrail::money::Usd::from_json_number("0.00019515"),
        cost_source: Some(CostSource::Catalog),
        price_version: Some("2025-08-19+1a2b3c4d".into()),
        unpriced_reason: None,
        ..intent.interrupted(Instance::default())
    }
}

/// Reading what is asked and what is answered.
fn reading(criterion: &mut Criterion) {
    let (question, answer) = (question(), answer());
    let asked = Asked::new();
    let mut group = criterion.benchmark_group("reading");
    group.bench_function("recognise a call", |bench| bench.iter(|| asked.call()));
    group.bench_function("read a request", |bench| {
        let call = asked.call();
        bench.iter(|| {
            let mut reader = asked.provider.read_request(&call, asked.head());
            reader.push(question.as_bytes());
            reader.end();
            reader.facts().complete
        });
    });
    group.bench_function("pick from an answer", |bench| {
        let path = |steps| Path {
            steps,
            want: Want::Text(4096),
        };
        let paths: [&[Step]; 2] = [&[Step::Key("model")], &[Step::Key("usage")]];
        let selector = Selector::new(&paths.map(path));
        bench.iter(|| {
            let mut picker = Picker::new(&selector);
            picker.push(answer.as_bytes(), &mut |index, found| {
                black_box((index, found));
            });
            picker.end(&mut |_, _| {})
        });
    });
    group.bench_function("meter an answer", |bench| {
        bench.iter(|| asked.report(&answer));
    });
    group.finish();
}

/// Reading a hundred events at once; criterion says what one takes as well.
fn streaming(criterion: &mut Criterion) {
    let events = EVENT.repeat(EVENTS);
    let asked = Asked::new();
    let mut group = criterion.benchmark_group("events");
    group.throughput(Throughput::Elements(u64::try_from(EVENTS).unwrap()));
    group.bench_function("decode", |bench| {
        let mut decoder = Decoder::new();
        bench.iter(|| {
            decoder.push(events.as_bytes(), &mut |piece| {
                black_box(piece);
            });
        });
    });
    group.bench_function("meter", |bench| {
        let mut meter = asked.meter("text/event-stream");
        bench.iter(|| meter.push(events.as_bytes()));
    });
    group.finish();
}

/// What a settled request costs.
fn settling(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("settling");
    let book = PriceBook::embedded();
    let usage = usage();
    group.bench_function("price", |bench| {
        let none = Qualifiers::default();
        let query = Query {
            provider: "openai",
            model: "gpt-4o-mini-2024-07-18",
            usage: &usage,
            service_tier: Some("default"),
            region: None,
            image_variant: None,
            qualifiers: [&none, &none],
            operation: Operation::Chat,
            at: clock::wall(),
        };
        bench.iter(|| book.price(black_box(&query)));
    });
    let record_of = || record(intent());
    group.bench_function("count in the metrics", |bench| {
        let metrics = Metrics::new(&metrics::Config::default(), &[], &["openai"]);
        let record = record_of();
        bench.iter(|| metrics.observe(black_box(&record)));
    });
    group.bench_function("encode a record", |bench| {
        let record = record_of();
        let mut bytes = Vec::new();
        bench.iter(|| {
            bytes.clear();
            record.encode(&mut bytes).unwrap();
            bytes.len()
        });
    });
    group.bench_function("decode a record", |bench| {
        let record = record_of();
        let mut bytes = Vec::new();
        record.encode(&mut bytes).unwrap();
        bench.iter(|| codec::record(record.id, black_box(&bytes)).unwrap());
    });
    group.bench_function("append intent and record", |bench| {
        let dir = tempfile::tempdir().unwrap();
        let config = journal::Config {
            dir: dir.path().to_owned(),
            // Some hundred MB; nothing drains it.
            max_bytes: bytesize::ByteSize::gib(8),
            ..journal::Config::default()
        };
        let (journal, _) = Journal::open(&config, Arc::new(LocalDisk), Arc::new(|_| {})).unwrap();
        let pair = || {
            let intent = intent();
            (intent.clone(), record(intent))
        };
        bench.iter_batched(
            pair,
            |(intent, record)| {
                journal.intent(&intent).unwrap();
                journal.record(&record).unwrap();
                (intent, record)
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// Short runs: the journal's takes some hundred MB of disk meanwhile.
fn short() -> Criterion {
    Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! {
    name = benches;
    config = short();
    targets = reading, streaming, settling
}
criterion_main!(benches);
