//! What the client sees and what the record says, through the real proxy: every fixture, the
//! option that asks for usage, and attribution.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use rust_decimal::Decimal;
use serde_json::{Value, json};
use taffrail::app::App;
use taffrail::caller::Caller;
use taffrail::clock;
use taffrail::fault::Outcome;
use taffrail::price::{PriceBook, Query};
use taffrail::provider::{self, End};
use taffrail::proxy::{AttributionConfig, ProviderConfig};
use taffrail::qualifier::Qualifiers;
use taffrail::record::{Fidelity, Operation, UsageRecord};
use taffrail::usage::{Unit, Usage};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::golden::{Fixture, fixtures, provider_of};
use crate::support::books::{assert_counters_agree, row_of, samples};
use crate::support::http::{Ending, Seen, ask, ask_and_leave};
use crate::support::sidecar::{Setup, Sidecar, route};
use crate::support::vendor::{self, Asked, Finish, Framing, Reply, Vendor};

/// The folders of fixtures whose records are those of their calls; a job's is not. The last one is a
/// provider that configuration declares.
const FOLDERS: [&str; 7] = [
    "openai",
    "azure",
    "anthropic",
    "openrouter",
    "fal",
    "fal-rest",
    "chat",
];

/// Tells the upstream which fixture to answer with, and becomes a label of the record.
const CASE: &str = "x-case";

/// A fixture on its way through the proxy.
struct Case {
    folder: &'static str,
    fixture: Fixture,
    expect: Value,
    framing: Framing,
    /// Whether the request's body is sent in chunks.
    is_chunked: bool,
    is_injected: bool,
    /// Whether the body streams through and is padded where it gets no option.
    is_padded: bool,
}

impl Case {
    /// Every fixture, with every framing in turn. What tells of a job is not a row by itself, and
    /// has tests of its own.
    fn all(with_injection: bool) -> Vec<Case> {
        let all = FOLDERS
            .into_iter()
            .flat_map(|folder| fixtures(folder).into_iter().map(move |case| (folder, case)));
        let cases = all.enumerate().map(|(index, (folder, fixture))| {
            let expect = std::fs::read(fixture.folder.join("expect.json")).unwrap();
            let expect: Value = serde_json::from_slice(&expect).unwrap();
            // A close is the end of what has no other framing, so it cannot come early.
            let framings = match fixture.end {
                End::Complete => vec![Framing::Length, Framing::Chunked, Framing::UntilClose],
                End::Truncated => vec![Framing::Length, Framing::Chunked],
                End::Cancelled | End::TimedOut => vec![Framing::Chunked],
            };
            let is_chunked = index % 2 == 1;
            let is_injected = with_injection && wants_injection(&fixture, &expect, is_chunked);
            let headers = &fixture.request.headers;
            let is_json = headers
                .get("content-type")
                .is_some_and(|t| t == "application/json");
            let may_be = with_injection && is_json && expect["usage_injection"] == true;
            Case {
                is_padded: may_be && is_chunked && !is_injected,
                is_injected,
                folder,
                framing: framings[index % framings.len()],
                is_chunked,
                fixture,
                expect,
            }
        });
        cases
            .filter(|case| case.expect["report"].get("job").is_none())
            .collect()
    }

    fn name(&self) -> String {
        format!("{}/{}", self.folder, self.fixture.name())
    }

    fn is_upgrade(&self) -> bool {
        self.fixture.request.headers.contains_key("upgrade")
    }

    fn request(&self) -> Vec<u8> {
        let message = &self.fixture.request;
        let (method, target) = (message.word(0), message.word(1));
        let mut head = format!(
            "{method} /{}{target} HTTP/1.1\r\nhost: a\r\n{CASE}: {}\r\n",
            self.folder,
            self.name()
        );
        for (name, value) in &message.headers {
            head += &format!("{name}: {}\r\n", value.to_str().unwrap());
        }
        if self.is_upgrade() && !message.headers.contains_key("connection") {
            head += "connection: upgrade\r\n";
        }
        let body = match (method, self.is_chunked) {
            ("GET", _) => Vec::new(),
            (_, true) => {
                head += "transfer-encoding: chunked\r\n";
                let size = format!("{:x}\r\n", message.body.len());
                let whole = [size.as_bytes(), &message.body, b"\r\n0\r\n\r\n"].concat();
                match message.body.is_empty() {
                    true => b"0\r\n\r\n".to_vec(),
                    false => whole,
                }
            }
            (_, false) => {
                head += &format!("content-length: {}\r\n", message.body.len());
                message.body.clone()
            }
        };
        head += "\r\n";
        [head.as_bytes(), &body].concat()
    }

    fn reply(&self) -> Reply {
        let message = &self.fixture.response;
        let headers = message
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
        Reply {
            status: message.start.strip_prefix("HTTP/1.1 ").unwrap().to_owned(),
            headers: headers.collect(),
            body: message.body.clone(),
            framing: self.framing,
            finish: match self.fixture.end {
                End::Complete => Finish::Complete,
                End::Truncated => Finish::CutOff,
                End::Cancelled | End::TimedOut => Finish::Silent,
            },
        }
    }

    async fn ask(&self, sidecar: std::net::SocketAddr) -> Seen {
        match self.fixture.end {
            End::Cancelled => {
                ask_and_leave(sidecar, &self.request(), self.fixture.response.body.len()).await
            }
            _ => ask(sidecar, &self.request()).await,
        }
    }

    /// What the application must see: the fixture, to the byte.
    fn expected_response(&self) -> Seen {
        let message = &self.fixture.response;
        let mut headers: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        for (name, value) in &message.headers {
            let values = headers.entry(name.to_string()).or_default();
            values.push(value.as_bytes().to_vec());
        }
        let is_filtered = self.is_injected && is_plain_event_stream(&self.fixture);
        Seen {
            status: message.word(1).parse().unwrap(),
            headers,
            body: match is_filtered {
                true => without_usage_events(&message.body),
                false => message.body.clone(),
            },
            trailers: BTreeMap::new(),
            ending: match self.fixture.end {
                End::Complete => Ending::Complete,
                _ => Ending::Truncated,
            },
        }
    }

    /// What the provider must have been asked: the fixture, to the byte, or with the option.
    fn assert_asked(&self, asked: &Asked, upstream: &Vendor) {
        let message = &self.fixture.request;
        let mut expected: BTreeMap<String, String> = message
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        expected.insert(CASE.to_owned(), self.name());
        expected.insert("host".to_owned(), upstream.address.to_string());
        if self.is_injected || self.is_padded {
            expected.insert("accept-encoding".to_owned(), "identity".to_owned());
        }
        let mut actual = asked.headers.clone();
        for of_one_hop in ["connection", "content-length", "transfer-encoding"] {
            expected.remove(of_one_hop);
            actual.remove(of_one_hop);
        }
        assert_eq!(actual, expected, "{}", self.name());
        assert_eq!(asked.method, message.word(0), "{}", self.name());
        assert_eq!(asked.target, message.word(1), "{}", self.name());
        if self.is_injected {
            let mut body: Value = serde_json::from_slice(&message.body).unwrap();
            if !body["stream_options"].is_object() {
                body["stream_options"] = json!({});
            }
            body["stream_options"]["include_usage"] = json!(true);
            assert_eq!(asked.json(), body, "{}", self.name());
        } else if self.is_padded {
            let padded = [&message.body, padding().as_bytes()].concat();
            assert_eq!(asked.body, padded, "{}", self.name());
        } else {
            assert_eq!(asked.body, message.body, "{}", self.name());
        }
    }

    /// What the record must say, according to `expect.json`.
    fn expected_record(&self, prices: &PriceBook) -> Value {
        let (call, request, report) = (
            &self.expect["call"],
            &self.expect["request"],
            &self.expect["report"],
        );
        let message = &self.fixture.response;
        let content_type = message.headers.get("content-type");
        let is_event_stream =
            content_type.is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
        let has_first_token = !self.expect["first_token_at_the_end_of"].is_null();
        let cost = self.expected_cost(prices);
        json!({
            "provider": provider_of(self.folder).label(),
            "operation": call["operation"],
            "method": self.fixture.request.word(0),
            "route": call["route"],
            "model_requested": request.get("model").or(call.get("model")),
            "model_served": report.get("model_served"),
            "upstream_provider": report.get("upstream_provider"),
            "service_tier": report.get("service_tier"),
            "streamed": is_event_stream || has_first_token,
            "provider_request_id": report.get("provider_request_id"),
            "outcome": report["outcome"],
            "http_status": message.word(1).parse::<u16>().unwrap(),
            "error_code": report.get("error_code"),
            "error_message": report.get("error_message"),
            "finish_reason": report.get("finish_reason"),
            "has_first_byte": !message.body.is_empty(),
            "has_first_token": has_first_token,
            "request_bytes": self.fixture.request.body.len(),
            "response_bytes": message.body.len(),
            "usage": total(&report["parts"]),
            "fidelity": report["fidelity"],
            "raw_usage": report.get("raw_usage"),
            "cost": cost,
            "caller": json!({ "attribution": { "case": self.name() } }),
        })
    }

    /// The cost that was stated, or else that of each part by the catalogue, or why there is
    /// none.
    fn expected_cost(&self, prices: &PriceBook) -> Value {
        let (report, request) = (&self.expect["report"], &self.expect["request"]);
        if let Some(stated) = report.get("stated_cost") {
            return json!([stated["total"], "provider", stated.get("upstream")]);
        }
        let is_cut = self.fixture.end != End::Complete;
        let usage = total(&report["parts"]);
        let operation = self.expect["call"]["operation"].as_str().unwrap();
        if report["fidelity"] == "malformed" {
            return json!("usage_missing");
        }
        if usage.is_empty() {
            let owes_usage =
                ["ok", "content_filtered"].contains(&report["outcome"].as_str().unwrap());
            return match Operation::from_name(operation).unwrap().is_control() {
                true => Value::Null,
                false if is_cut => json!("incomplete"),
                false if owes_usage => json!("usage_missing"),
                false => Value::Null,
            };
        }
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let own = text(&report["model_served"])
            .or(text(&request["model"]))
            .or(text(&self.expect["call"]["model"]));
        let qualifiers = |of: &Value| -> Qualifiers {
            serde_json::from_value(of["qualifiers"].clone()).unwrap_or_default()
        };
        let (stated, asked) = (qualifiers(report), qualifiers(request));
        let mut cost = Decimal::ZERO;
        let mut is_estimated = report["fidelity"] != "complete";
        is_estimated |= report["estimated"] == true;
        for part in report["parts"].as_array().unwrap() {
            let Some(model) = text(&part["model"]).or(own.clone()) else {
                return json!("model_missing");
            };
            let usage: Usage = serde_json::from_value(part["usage"].clone()).unwrap();
            let priced = prices.price(&Query {
                provider: provider_of(self.folder).label(),
                model: &model,
                usage: &usage,
                service_tier: report["service_tier"].as_str(),
                region: report["region"].as_str(),
                image_variant: request["image_variant"].as_str(),
                qualifiers: [&stated, &asked],
                operation: Operation::from_name(operation).unwrap(),
                at: clock::wall(),
            });
            match (priced.cost, priced.missing) {
                (Some(part), _) => cost += part.dollars(),
                (None, missing) => return json!(missing.unwrap().reason()),
            }
            is_estimated |= priced.estimated;
        }
        let source = if is_estimated { "estimated" } else { "catalog" };
        json!([cost.normalize().to_string(), source, null])
    }
}

/// Whether the option is to be added to that request, read without any code of the proxy. While a
/// body streams through, there is no way back into options that it has.
fn wants_injection(fixture: &Fixture, expect: &Value, is_chunked: bool) -> bool {
    let body: Value = serde_json::from_slice(&fixture.request.body).unwrap_or_default();
    let wants_option = match body.get("stream_options") {
        None => true,
        Some(_) if is_chunked => false,
        Some(Value::Object(options)) => !options.contains_key("include_usage"),
        Some(options) => options.is_null(),
    };
    expect["usage_injection"] == true && body["stream"] == true && wants_option
}

fn is_plain_event_stream(fixture: &Fixture) -> bool {
    let headers = &fixture.response.headers;
    !headers.contains_key("content-encoding")
        && headers
            .get("content-type")
            .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

/// A stream less the events that state usage and nothing else.
fn without_usage_events(stream: &[u8]) -> Vec<u8> {
    let stream = std::str::from_utf8(stream).unwrap();
    assert!(!stream.contains('\r'), "this knows one kind of line only");
    let events = stream.split_inclusive("\n\n").filter(|event| {
        let data: Vec<&str> = event
            .lines()
            .filter_map(|line| line.strip_prefix("data:"))
            .collect();
        let data: Value = serde_json::from_str(&data.join("\n")).unwrap_or_default();
        data["choices"] != json!([]) || !data["usage"].is_object()
    });
    events.collect::<String>().into_bytes()
}

/// The quantities of all parts together.
fn total(parts: &Value) -> serde_json::Map<String, Value> {
    let mut sums: BTreeMap<&str, Decimal> = BTreeMap::new();
    for part in parts.as_array().unwrap() {
        for (unit, quantity) in part["usage"].as_object().unwrap() {
            let quantity: Decimal = quantity.as_str().unwrap().parse().unwrap();
            *sums.entry(unit).or_default() += quantity;
        }
    }
    sums.into_iter()
        .map(|(unit, sum)| (unit.to_owned(), json!(sum.to_string())))
        .collect()
}

/// A record in the shape of [`Case::expected_record`]. Takes it apart whole, so that a field
/// that is added later cannot be forgotten here.
fn record_json(record: &UsageRecord) -> Value {
    let UsageRecord {
        id,
        started_at,
        instance: _,
        provider,
        operation,
        method,
        route,
        model_requested,
        model_served,
        upstream_provider,
        service_tier,
        streamed,
        job_id,
        polls,
        provider_request_id,
        outcome,
        http_status,
        error_code,
        error_message,
        finish_reason,
        duration_us,
        first_byte_us,
        first_token_us,
        overhead_us,
        queue_us,
        run_us,
        request_bytes,
        response_bytes,
        usage,
        fidelity,
        raw_usage,
        cost_usd,
        cost_upstream_usd,
        // Of metrics, not of rows.
        cache_effect_usd: _,
        cost_source,
        price_version,
        unpriced_reason,
        recosted_at,
        caller,
    } = record;
    assert_eq!((job_id, polls, recosted_at), (&None, &None, &None));
    assert_eq!((queue_us, run_us), (&None, &None));
    assert_eq!(id.get_version_num(), 7);
    assert!(*started_at <= clock::wall());
    // Times come in order.
    let duration = duration_us.unwrap();
    let first_byte = first_byte_us.unwrap_or(0);
    assert!(first_byte <= first_token_us.unwrap_or(first_byte));
    assert!(first_byte.max(first_token_us.unwrap_or(0)) <= duration);
    assert!(overhead_us.unwrap() <= duration + 1000);
    let is_of_catalogue = cost_source.is_some_and(|source| source.as_str() != "provider");
    assert_eq!(price_version.is_some(), is_of_catalogue);
    let cost = match (cost_usd, unpriced_reason) {
        (Some(cost), None) => json!([cost.to_string(), cost_source, cost_upstream_usd]),
        (None, reason) => json!(reason),
        (Some(_), Some(reason)) => panic!("a cost, and {reason}"),
    };
    json!({
        "provider": provider,
        "operation": operation,
        "method": method,
        "route": route,
        "model_requested": model_requested,
        "model_served": model_served,
        "upstream_provider": upstream_provider,
        "service_tier": service_tier,
        "streamed": streamed,
        "provider_request_id": provider_request_id,
        "outcome": outcome,
        "http_status": http_status,
        "error_code": error_code,
        "error_message": error_message,
        "finish_reason": finish_reason,
        "has_first_byte": first_byte_us.is_some(),
        "has_first_token": first_token_us.is_some(),
        "request_bytes": request_bytes,
        "response_bytes": response_bytes,
        "usage": usage,
        "fidelity": fidelity,
        "raw_usage": raw_usage,
        "cost": cost,
        "caller": caller,
    })
}

/// A sidecar with a route for each folder, in front of one upstream.
fn sidecar_of_folders(upstream: &Vendor, with_injection: bool, idle_timeout: Duration) -> Sidecar {
    let routes = FOLDERS.map(|folder| {
        let mut route = route(folder, provider_of(folder), &upstream.url());
        route.usage_injection = with_injection;
        route
    });
    let mut setup = Setup::new(routes.into());
    setup.config.idle_timeout = idle_timeout;
    setup.meter.control_rows = true;
    setup.attribution.headers = BTreeMap::from([("case".to_owned(), CASE.to_owned())]);
    Sidecar::start_setup(setup)
}

/// Sends these through a sidecar, all at once, and holds everything to the fixtures.
async fn run(cases: Vec<Case>, with_injection: bool, idle_timeout: Duration) {
    let replies = cases.iter().map(|case| (case.name(), case.reply()));
    let upstream = Vendor::start_by(CASE, replies.collect()).await;
    let sidecar = sidecar_of_folders(&upstream, with_injection, idle_timeout);
    let cases: Vec<Arc<Case>> = cases.into_iter().map(Arc::new).collect();
    let asking: Vec<_> = cases
        .iter()
        .cloned()
        .map(|case| tokio::spawn(async move { case.ask(sidecar.address).await }))
        .collect();
    for (case, seen) in cases.iter().zip(asking) {
        assert_eq!(
            seen.await.unwrap(),
            case.expected_response(),
            "{}",
            case.name()
        );
    }

    let asked = upstream.asked();
    assert_eq!(asked.len(), cases.len());
    let asked: HashMap<&str, &Asked> = asked
        .iter()
        .map(|asked| (asked.header(CASE).unwrap(), asked))
        .collect();
    let records = sidecar.records(cases.len()).await;
    let by_case: HashMap<&str, &UsageRecord> = records
        .iter()
        .map(|record| (record.caller.attribution["case"].as_str(), record))
        .collect();
    let prices = PriceBook::embedded();
    for case in &cases {
        let name = case.name();
        case.assert_asked(asked[name.as_str()], &upstream);
        let record = record_json(by_case[name.as_str()]);
        assert_eq!(record, case.expected_record(&prices), "{name}");
    }

    let rows: Vec<Value> = records.iter().map(row_of).collect();
    assert_counters_agree(&sidecar.exposition(), &rows, &[]);
    let injected = cases.iter().filter(|case| case.is_injected).count();
    let counted: Decimal = samples(&sidecar.exposition(), "taffrail_rewrites_total")
        .into_iter()
        .filter(|(labels, _)| labels["kind"] == "usage_injection")
        .map(|(_, value)| value)
        .sum();
    assert_eq!(counted, injected.into());
    if with_injection && cases.len() > 1 {
        assert!(injected > 10, "only {injected} fixtures get the option");
    }
}

/// Longer than any of these tests.
const NEVER: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fixture_passes_untouched_and_its_record_says_what_it_means() {
    let (silent, cases): (Vec<Case>, _) = Case::all(false)
        .into_iter()
        .partition(|case| case.fixture.end == End::TimedOut);
    run(cases, false, NEVER).await;
    run(silent, false, Duration::from_millis(300)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asking_for_usage_changes_no_record_and_removes_only_what_it_added() {
    let cases = Case::all(true).into_iter().filter(|case| {
        // The filter holds the last bytes until it knows what they are, so that a client cannot
        // tell when to leave.
        let is_held = case.is_injected && case.fixture.end == End::Cancelled;
        case.fixture.end != End::TimedOut && !is_held
    });
    run(cases.collect(), true, NEVER).await;
}

/// By hand, from the vendors' price lists of 2026-11: dollars for a million tokens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn costs_are_what_the_vendors_price_lists_say() {
    let by_hand = [
        // 48 × 0.15 + 14 × 0.60
        ("openai/chat-whole", "0.0000156"),
        ("azure/chat-whole", "0.0000156"),
        // 2 × 0.02
        ("openai/embeddings", "0.00000004"),
        // 10 × 5 + 40 × 10 + 1,056 × 40
        ("openai/image-tokens", "0.04269"),
        // 4 × 2.5 + 10 × 6 + 45 × 10
        ("openai/transcription-tokens", "0.00052"),
        // 6 × 3 + 574 × 3.75 + 20,443 × 0.30 + 489 × 15
        ("anthropic/message-whole-cache", "0.0156384"),
        // 10 × 3 + 1,000 × 3.75 + 5,000 × 0.30 + 40 × 15
        ("anthropic/message-stream-cache-split-kept", "0.00588"),
        // Stated.
        ("openrouter/chat-whole", "0.0012"),
        ("openrouter/messages-stream", "0.00071"),
        ("openrouter/embeddings", "0.0000001"),
        // A unit, and without the header four megapixels, at 0.025; what the endpoint states.
        ("fal/image", "0.025"),
        ("fal/image-without-units", "0.1"),
        ("fal/llm-usage-and-cost", "0.0000231"),
    ];
    let cases: Vec<Case> = Case::all(false)
        .into_iter()
        .filter(|case| by_hand.iter().any(|(name, _)| case.name() == *name))
        .collect();
    let replies = cases.iter().map(|case| (case.name(), case.reply()));
    let upstream = Vendor::start_by(CASE, replies.collect()).await;
    let sidecar = sidecar_of_folders(&upstream, false, NEVER);
    for case in &cases {
        case.ask(sidecar.address).await;
    }
    let records = sidecar.records(by_hand.len()).await;
    let costs = records.iter().map(|record| {
        let name = record.caller.attribution["case"].clone();
        (
            name,
            record.cost_usd.map(|cost| cost.normalize().to_string()),
        )
    });
    let expected = by_hand.map(|(name, cost)| (name.to_owned(), Some(cost.to_owned())));
    assert_eq!(
        costs.collect::<BTreeMap<_, _>>(),
        expected.into_iter().collect()
    );
}

/// (6 × 2 + 574 × 2.50 + 20,443 × 0.10 + 489 × 10) × 1.1 dollars for a million: inference that
/// stays in the US costs a tenth more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_region_that_answered_is_in_the_cost() {
    let fixture = fixtures("anthropic")
        .into_iter()
        .find(|fixture| fixture.name() == "message-whole-cache")
        .unwrap();
    let body = String::from_utf8(fixture.response.body).unwrap();
    let body = body.replace("claude-sonnet-4-5-20250929", "claude-sonnet-5-5");
    let body = body.replace(r#""inference_geo":"global""#, r#""inference_geo":"us""#);
    let upstream = Vendor::start(move |_| Reply::json(body.clone())).await;
    let sidecar = sidecar_of_chats(&upstream);
    let path = "/anthropic/v1/messages";
    let body = question(path, "", SMALL);
    post(&sidecar, path, body.as_bytes(), Sending::Whole).await;
    let record = sidecar.records(1).await.remove(0);
    let cost = record.cost_usd.map(|cost| cost.to_string());
    assert_eq!(cost.as_deref(), Some("0.00921943"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_calls_are_counted_as_requests_and_make_no_row() {
    let upstream = Vendor::start(|_| Reply::json(r#"{"input_tokens":14}"#)).await;
    let sidecar = sidecar_of_chats(&upstream);
    let models = b"GET /openai/v1/models HTTP/1.1\r\nhost: a\r\n\r\n";
    assert_eq!(ask(sidecar.address, models).await.status, 200);
    for path in ["/anthropic/v1/messages/count_tokens", OPENAI_CHAT] {
        let body = question(path, "", SMALL);
        post(&sidecar, path, body.as_bytes(), Sending::Whole).await;
    }
    // The chat comes last, so that rows of the others would be here by now.
    let record = sidecar.records(1).await.remove(0);
    assert_eq!(record.operation, Operation::Chat);
    let exposition = sidecar.exposition();
    let count = |name: &str, label: &str| -> BTreeMap<String, u64> {
        samples(&exposition, name)
            .into_iter()
            .filter(|(_, value)| !value.is_zero())
            .map(|(labels, value)| (labels[label].clone(), value.try_into().unwrap()))
            .collect()
    };
    let ones = |values: &[&str]| -> BTreeMap<String, u64> {
        values
            .iter()
            .map(|value| ((*value).to_owned(), 1))
            .collect()
    };
    assert_eq!(
        count("taffrail_requests_total", "operation"),
        ones(&["chat", "count_tokens", "models"])
    );
    // What states no usage by its nature is neither unmetered nor unpriced.
    let unpriced = count("taffrail_unpriced_requests_total", "reason");
    assert_eq!(unpriced, ones(&["usage_missing"]));
    let metered = count("taffrail_metered_responses_total", "fidelity");
    assert_eq!(metered, ones(&["silent"]));
    assert_eq!(samples(&exposition, "taffrail_tokens_total"), []);
    let stages = count("taffrail_records_total", "stage");
    assert_eq!(stages, ones(&["completed", "journaled"]));
}

// The option that asks for usage.

/// A chat stream as OpenAI sends it, with the event of usage only for those who ask, and
/// compressed for those who accept that.
fn chat_like_openai(asked: &Asked) -> Reply {
    let body = asked.json();
    let model = body["model"].as_str().unwrap_or_default();
    if body["stream"] != true {
        return Reply::json(served_by(model, &chat_whole()));
    }
    let wants_usage = body["stream_options"]["include_usage"] == true;
    let stream = if wants_usage {
        [CONTENT, USAGE, DONE].concat()
    } else {
        [CONTENT, DONE].concat()
    };
    let stream = served_by(model, &stream);
    let accepts_gzip = asked
        .header("accept-encoding")
        .is_some_and(|value| value.contains("gzip"));
    match accepts_gzip {
        true => Reply::events(gzip(stream.as_bytes())).with("content-encoding", "gzip"),
        false => Reply::events(stream),
    }
    .with("x-request-id", "req_1")
}

/// The same answer by another model.
fn served_by(model: &str, answer: &str) -> String {
    match model {
        GROQ_MODEL => answer.replace("gpt-4o-mini-2024-07-18", GROQ_MODEL),
        _ => answer.to_owned(),
    }
}

const GROQ_MODEL: &str = "openai/gpt-oss-20b";

const CONTENT: &str = concat!(
    r#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
    "\n\n",
    r#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,"delta":{"content":"Ahoi"},"finish_reason":null}]}"#,
    "\n\n",
    r#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
    "\n\n",
);
const USAGE: &str = concat!(
    r#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-4o-mini-2024-07-18","choices":[],"usage":{"prompt_tokens":1200,"completion_tokens":300,"total_tokens":1500,"prompt_tokens_details":{"cached_tokens":1024,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0}}}"#,
    "\n\n",
);
const DONE: &str = "data: [DONE]\n\n";

fn chat_whole() -> String {
    let usage = USAGE.split_once(r#""usage":"#).unwrap().1.trim_end();
    format!(
        r#"{{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"gpt-4o-mini-2024-07-18","choices":[{{"index":0,"message":{{"role":"assistant","content":"Ahoi"}},"finish_reason":"stop"}}],"usage":{usage}"#
    )
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The usage of every answer of [`chat_like_openai`], and its cost in dollars for a million:
/// 176 × 0.15 + 1,024 × 0.075 + 300 × 0.60, or 176 × 0.075 + 1,024 × 0.0375 + 300 × 0.30.
fn assert_metered(record: &UsageRecord, case: &str) {
    let expected = Usage::new()
        .with(Unit::Input, 176)
        .with(Unit::CacheRead, 1024)
        .with(Unit::Output, 300)
        .with(Unit::InputAudio, 0)
        .with(Unit::Reasoning, 0)
        .with(Unit::OutputAudio, 0);
    assert_eq!(record.usage, expected, "{case}");
    assert_eq!(record.outcome, Outcome::Ok, "{case}");
    assert_eq!(record.fidelity, Fidelity::Complete, "{case}");
    let expected = match record.model() {
        Some(GROQ_MODEL) => "0.0001416",
        _ => "0.0002832",
    };
    let cost = record.cost_usd.map(|cost| cost.to_string());
    assert_eq!(cost.as_deref(), Some(expected), "{case}");
}

/// How a body is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    Whole,
    Chunked,
}

/// Sends a body through the sidecar as an SDK does.
async fn post(sidecar: &Sidecar, path: &str, body: &[u8], sending: Sending) -> Seen {
    ask(sidecar.address, &post_bytes(path, body, sending)).await
}

fn post_bytes(path: &str, body: &[u8], sending: Sending) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
         authorization: Bearer sk-test\r\naccept-encoding: gzip, deflate\r\n"
    );
    match sending {
        Sending::Whole => {
            let length = format!("content-length: {}\r\n\r\n", body.len());
            [head.as_bytes(), length.as_bytes(), body].concat()
        }
        Sending::Chunked => {
            let mut request = (head + "transfer-encoding: chunked\r\n\r\n").into_bytes();
            for piece in body.chunks(9_973) {
                request.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                request.extend_from_slice(piece);
                request.extend_from_slice(b"\r\n");
            }
            request.extend_from_slice(b"0\r\n\r\n");
            request
        }
    }
}

/// Where an option may be added: the providers, with the path of their chat.
const CHATS: [(&str, &str); 3] = [
    ("openai", OPENAI_CHAT),
    (
        "azure",
        "/azure/openai/deployments/mini/chat/completions?api-version=1",
    ),
    ("groq", "/groq/openai/v1/chat/completions"),
];

fn sidecar_of_chats(upstream: &Vendor) -> Sidecar {
    let names = ["openai", "azure", "groq", "openrouter", "anthropic"];
    let routes = names.map(|name| {
        let provider = provider::builtin(name).unwrap_or_else(|| provider::chat_dialect(name));
        route(name, provider, &upstream.url())
    });
    Sidecar::start_setup(Setup::new(routes.into()))
}

/// The body of a request to `path` with `members`, filled up with a prompt of `bytes` bytes.
fn question(path: &str, members: &str, bytes: usize) -> String {
    let prompt = "a".repeat(bytes);
    let model = model_of(path);
    format!(r#"{{"model":"{model}",{members}"messages":[{{"role":"user","content":"{prompt}"}}]}}"#)
}

const OPENAI_CHAT: &str = "/openai/v1/chat/completions";

fn model_of(path: &str) -> &'static str {
    match path.starts_with("/groq/") {
        true => GROQ_MODEL,
        false => "gpt-4o-mini",
    }
}

/// Small bodies are held whole, larger ones stream through.
const SMALL: usize = 10;
const LARGE: usize = 300_000;

fn injections(sidecar: &Sidecar, provider: &str) -> Option<f64> {
    sidecar.sample(&format!(
        "taffrail_rewrites_total{{provider=\"{provider}\",kind=\"usage_injection\"}}"
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_would_state_no_usage_is_metered_and_the_client_sees_none_of_it() {
    let upstream = Vendor::start(chat_like_openai).await;
    let sidecar = sidecar_of_chats(&upstream);
    let mut count = 0;
    for (provider, path) in CHATS {
        let before = count;
        for bytes in [SMALL, LARGE] {
            for sending in [Sending::Whole, Sending::Chunked] {
                let case = format!("{provider} {bytes} {sending:?}");
                let body = question(path, r#""stream":true,"#, bytes);
                let seen = post(&sidecar, path, body.as_bytes(), sending).await;
                let expected = Seen {
                    status: 200,
                    headers: [
                        ("content-type", "text/event-stream; charset=utf-8"),
                        ("x-request-id", "req_1"),
                    ]
                    .map(|(name, value)| (name.to_owned(), vec![value.as_bytes().to_vec()]))
                    .into(),
                    body: served_by(model_of(path), &[CONTENT, DONE].concat()).into_bytes(),
                    trailers: BTreeMap::new(),
                    ending: Ending::Complete,
                };
                assert_eq!(seen, expected, "{case}");

                let asked = upstream.asked().pop().unwrap();
                assert_eq!(asked.header("accept-encoding"), Some("identity"), "{case}");
                let expected = body.strip_suffix('}').unwrap().to_owned() + OPTION + "}";
                assert!(asked.body == expected.as_bytes(), "{case}");
                let length = asked.header("content-length").map(str::to_owned);
                let expected = (sending == Sending::Whole).then(|| expected.len().to_string());
                assert_eq!(length, expected, "{case}");

                let record = sidecar.records(1).await.remove(0);
                assert_metered(&record, &case);
                assert_eq!(record.request_bytes, Some(body.len() as u64), "{case}");
                assert!(record.first_token_us.is_some() && record.streamed, "{case}");
                count += 1;
            }
        }
        assert_eq!(
            injections(&sidecar, provider),
            Some(f64::from(count - before))
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_needs_no_option_reaches_the_provider_untouched() {
    let upstream = Vendor::start(chat_like_openai).await;
    let sidecar = sidecar_of_chats(&upstream);
    let asking = r#""stream":true,"#;
    let cases = [
        // It asks for usage itself, and gets the event.
        (
            OPENAI_CHAT,
            r#""stream":true,"stream_options":{"include_usage":true},"#,
        ),
        // It says that it wants none.
        (
            OPENAI_CHAT,
            r#""stream":true,"stream_options":{"include_usage":false},"#,
        ),
        (OPENAI_CHAT, r#""stream":false,"#),
        (OPENAI_CHAT, ""),
        // Other calls have no such option.
        ("/openai/v1/responses", asking),
        ("/openai/v1/embeddings", asking),
        // Other providers state usage anyway, or do not know the option.
        ("/openrouter/api/v1/chat/completions", asking),
        ("/anthropic/v1/messages", asking),
        ("/anthropic/v1/chat/completions", asking),
        ("/azure/anthropic/v1/messages", asking),
    ];
    for (path, members) in cases {
        for sending in [Sending::Whole, Sending::Chunked] {
            let body = question(path, members, SMALL);
            let seen = post(&sidecar, path, body.as_bytes(), sending).await;
            let asked = upstream.asked().pop().unwrap();
            let case = format!("{path} {members} {sending:?}");
            let is_streamed_in = sending == Sending::Chunked && path == OPENAI_CHAT;
            if is_streamed_in {
                // Padding, since it is not known beforehand whether there is a need.
                let body = asked.body.strip_suffix(padding().as_bytes()).unwrap();
                assert_eq!(
                    String::from_utf8_lossy(body),
                    question(path, members, SMALL),
                    "{case}"
                );
                assert_eq!(asked.header("accept-encoding"), Some("identity"), "{case}");
            } else {
                assert_eq!(String::from_utf8_lossy(&asked.body), body, "{case}");
                let accepted = asked.header("accept-encoding");
                assert_eq!(accepted, Some("gzip, deflate"), "{case}");
            }
            assert!(
                asked.is_whole && seen.ending == Ending::Complete,
                "{case}: {seen:?}"
            );
            assert!(seen.body == chat_like_openai(&asked).body, "{case}");
            sidecar.records(1).await;
        }
    }
    for provider in ["openai", "azure", "groq", "openrouter", "anthropic"] {
        assert_eq!(injections(&sidecar, provider), Some(0.0), "{provider}");
    }
}

/// The option as it follows the other members.
const OPTION: &str = r#","stream_options":{"include_usage":true}"#;

/// What stands in its place in a body that streams through without needing it.
fn padding() -> String {
    " ".repeat(OPTION.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_request_that_needs_no_option_is_padded_to_the_length_announced() {
    let upstream = Vendor::start(chat_like_openai).await;
    let sidecar = sidecar_of_chats(&upstream);
    for members in [
        "",
        r#""stream":false,"#,
        r#""stream":true,"stream_options":{"include_usage":true},"#,
        r#""stream":true,"stream_options":{"include_usage":false},"#,
    ] {
        for (_, path) in CHATS {
            for sending in [Sending::Whole, Sending::Chunked] {
                let case = format!("{path} {members} {sending:?}");
                let body = question(path, members, LARGE);
                let seen = post(&sidecar, path, body.as_bytes(), sending).await;
                let asked = upstream.asked().pop().unwrap();
                let padded = body.clone() + &padding();
                assert!(asked.body == padded.as_bytes(), "{case}");
                let expected: Value = serde_json::from_str(&body).unwrap();
                assert!(asked.json() == expected, "{case}");
                let length = asked.header("content-length").map(str::to_owned);
                let expected = (sending == Sending::Whole).then(|| padded.len().to_string());
                assert_eq!(length, expected, "{case}");
                assert!(seen.body == chat_like_openai(&asked).body, "{case}");
                let record = sidecar.records(1).await.remove(0);
                assert_eq!(record.request_bytes, Some(body.len() as u64), "{case}");
                if !members.contains("false}") {
                    assert_metered(&record, &case);
                }
            }
        }
    }
    // What cannot be read as JSON passes as it is, and so does what is encoded.
    for (body, header) in [
        ("x".repeat(LARGE), ""),
        (
            question(OPENAI_CHAT, r#""stream":true,"#, LARGE),
            "content-encoding: gzip\r\n",
        ),
    ] {
        let request = post_bytes(OPENAI_CHAT, body.as_bytes(), Sending::Whole);
        let at = "POST /openai/v1/chat/completions HTTP/1.1\r\n".len();
        let request = [&request[..at], header.as_bytes(), &request[at..]].concat();
        ask(sidecar.address, &request).await;
        let asked = upstream.asked().pop().unwrap();
        assert!(asked.is_whole);
        assert!(String::from_utf8(asked.body).unwrap().trim_end() == body);
    }
    for provider in ["openai", "azure", "groq"] {
        assert_eq!(injections(&sidecar, provider), Some(0.0), "{provider}");
        let padded = format!("taffrail_rewrites_total{{provider=\"{provider}\",kind=\"padding\"}}");
        let expected = if provider == "openai" { 9.0 } else { 8.0 };
        assert_eq!(sidecar.sample(&padded), Some(expected), "{provider}");
    }
}

/// The response breaks off at each of these places; what was promised for a whole one holds for
/// the part that came.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_breaks_off_keeps_every_event_but_that_of_usage() {
    let whole = [CONTENT, USAGE, DONE].concat();
    let usage_at = CONTENT.len();
    let done_at = usage_at + USAGE.len();
    let cases = [
        // In the head of the first event, in the second one, after the content.
        (3, Outcome::UpstreamTruncated, false),
        (300, Outcome::UpstreamTruncated, false),
        (usage_at, Outcome::UpstreamTruncated, false),
        // Within the event of usage: half an event is nobody's.
        (usage_at + 100, Outcome::UpstreamTruncated, false),
        // Once the answer has a finish reason and its usage, nothing that counts is missing.
        (done_at, Outcome::Ok, true),
        (whole.len(), Outcome::Ok, true),
    ];
    for (cut, outcome, has_usage) in cases {
        let stream = whole[..cut].to_owned();
        let sent = stream.clone();
        let upstream =
            Vendor::start(move |_| Reply::events(stream.clone()).finish(Finish::CutOff)).await;
        let sidecar = sidecar_of_chats(&upstream);
        let body = question(OPENAI_CHAT, r#""stream":true,"#, SMALL);

        let seen = post(&sidecar, OPENAI_CHAT, body.as_bytes(), Sending::Whole).await;
        assert_eq!(seen.ending, Ending::Truncated, "{cut}");
        let shown = String::from_utf8(seen.body).unwrap();
        let expected = without_usage_events(sent.as_bytes());
        assert_eq!(shown, String::from_utf8(expected).unwrap(), "{cut}");
        let record = sidecar.records(1).await.remove(0);
        assert_eq!(record.outcome, outcome, "{cut}");
        assert_eq!(
            record.usage.tokens(Unit::Output),
            has_usage.then_some(300),
            "{cut}"
        );
        assert_eq!(record.cost_usd.is_some(), has_usage, "{cut}");
        assert_eq!(injections(&sidecar, "openai"), Some(1.0), "{cut}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_an_injected_stream_is_recorded_as_gone() {
    let upstream = Vendor::start(|_| Reply::events(CONTENT).finish(Finish::Silent)).await;
    let sidecar = sidecar_of_chats(&upstream);
    let body = question(OPENAI_CHAT, r#""stream":true,"#, SMALL);
    let request = post_bytes(OPENAI_CHAT, body.as_bytes(), Sending::Whole);
    let seen = ask_and_leave(sidecar.address, &request, CONTENT.len()).await;
    assert_eq!(seen.body, CONTENT.as_bytes());
    let record = sidecar.records(1).await.remove(0);
    assert_eq!(record.outcome, Outcome::ClientCancelled);
    assert_eq!(record.usage, Usage::new());
    assert_eq!(record.fidelity, Fidelity::Partial);
    assert_eq!(record.cost_usd, None);
    assert!(record.first_token_us.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_request_that_breaks_off_reaches_the_provider_as_broken() {
    let body = question(OPENAI_CHAT, r#""stream":true,"#, LARGE);
    for sending in [Sending::Whole, Sending::Chunked] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let provider = provider::builtin("openai").unwrap();
        let sidecar = Sidecar::start_setup(Setup::new(vec![route("openai", provider, &url)]));
        let mut client = TcpStream::connect(sidecar.address).await.unwrap();
        let request = post_bytes(OPENAI_CHAT, body.as_bytes(), sending);
        client.write_all(&request[..LARGE / 2]).await.unwrap();
        let (mut provider, _) = listener.accept().await.unwrap();
        let mut seen = vec![0; 1000];
        provider.read_exact(&mut seen).await.unwrap();
        client.shutdown().await.unwrap();
        // A reset is as good as a close.
        provider.read_to_end(&mut seen).await.ok();
        let (asked, _) = vendor::parse(&seen).unwrap();
        assert!(!asked.is_whole, "{sending:?}");
        assert!(body.as_bytes().starts_with(&asked.body), "{sending:?}");
        let record = sidecar.records(1).await.remove(0);
        assert_eq!(record.outcome, Outcome::ClientCancelled, "{sending:?}");
        assert_eq!(record.cost_usd, None, "{sending:?}");
        assert_eq!(injections(&sidecar, "openai"), Some(0.0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_option_is_added_as_configuration_says() {
    let upstream = Vendor::start(chat_like_openai).await;
    // The switch for all, the switches of three providers, and who gets the option.
    let cases = [
        (true, [None, None, None], [true, true, true]),
        (false, [None, None, None], [false, false, false]),
        (false, [None, Some(true), None], [false, true, false]),
        (true, [Some(false), None, Some(true)], [false, true, true]),
    ];
    for (switch, of_providers, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        let mut config = taffrail::config::Config::default();
        config.proxy.listen = ([127, 0, 0, 1], 0).into();
        config.admin.listen = ([127, 0, 0, 1], 0).into();
        config.journal.dir = dir.path().join("journal");
        config.store.url = format!("sqlite://{}/t.db", dir.path().display());
        config.meter.usage_injection = switch;
        for ((name, _), usage_injection) in CHATS.iter().zip(of_providers) {
            let settings = ProviderConfig {
                upstream: Some(upstream.url()),
                usage_injection,
                ..ProviderConfig::default()
            };
            config.providers.insert((*name).to_owned(), settings);
        }
        let app = App::start(&config).unwrap();
        let mut seen = Vec::new();
        for (_, path) in CHATS {
            let body = question(path, r#""stream":true,"#, SMALL);
            let request = post_bytes(path, body.as_bytes(), Sending::Whole);
            let answer = ask(app.proxy_address().unwrap(), &request).await;
            assert_eq!(answer.status, 200);
            let asked = upstream.asked().pop().unwrap();
            seen.push(asked.json()["stream_options"]["include_usage"] == true);
            if seen.last() == Some(&false) {
                assert_eq!(asked.body, body.as_bytes());
                assert_eq!(asked.header("accept-encoding"), Some("gzip, deflate"));
            }
        }
        assert_eq!(seen, expected, "{switch} {of_providers:?}");
        app.stop(std::future::pending()).await.unwrap();
    }
}

// Attribution.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_and_traces_reach_the_record_and_only_what_is_the_providers_reaches_it() {
    let upstream = Vendor::start(chat_like_openai).await;
    let provider = provider::builtin("openai").unwrap();
    let mut setup = Setup::new(vec![route("openai", provider, &upstream.url())]);
    let pairs = |pairs: &[(&str, &str)]| {
        let owned = pairs
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
        owned.collect::<BTreeMap<_, _>>()
    };
    setup.attribution = AttributionConfig {
        fixed: pairs(&[("team", "search"), ("stage", "prod")]),
        headers: pairs(&[("feature", "x-taffrail-feature"), ("tenant", "x-tenant")]),
    };
    // `stage` is a label of Taffrail's own, which configuration refuses and metrics leave out.
    let sidecar = Sidecar::start_setup(setup);
    let body = question(OPENAI_CHAT, "", SMALL);
    let request = |extra: &str| {
        let request = post_bytes(OPENAI_CHAT, body.as_bytes(), Sending::Whole);
        let at = "POST /openai/v1/chat/completions HTTP/1.1\r\n".len();
        [&request[..at], extra.as_bytes(), &request[at..]].concat()
    };
    let trace = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let traceparent = format!("00-{}-{}-01", trace.0, trace.1);
    let labelled = format!(
        "X-Taffrail-Feature: summaries\r\nx-taffrail-unknown: secret\r\nx-tenant: acme\r\n\
         traceparent: {traceparent}\r\ntracestate: a=b\r\n"
    );
    ask(sidecar.address, &request(&labelled)).await;
    ask(sidecar.address, &request("traceparent: 00-junk\r\n")).await;

    let callers: Vec<Caller> = sidecar
        .records(2)
        .await
        .into_iter()
        .map(|record| record.caller)
        .collect();
    let key_fingerprint = callers[0].key_fingerprint.clone();
    assert!(
        key_fingerprint
            .as_ref()
            .is_some_and(|print| print.len() == 16)
    );
    let mut attribution = pairs(&[("team", "search"), ("stage", "prod")]);
    let unlabelled = Caller {
        key_fingerprint: key_fingerprint.clone(),
        attribution: attribution.clone(),
        trace_id: None,
        span_id: None,
    };
    attribution.extend(pairs(&[("feature", "summaries"), ("tenant", "acme")]));
    let labelled = Caller {
        key_fingerprint,
        attribution,
        trace_id: Some(trace.0.to_owned()),
        span_id: Some(trace.1.to_owned()),
    };
    assert_eq!(callers, [labelled, unlabelled]);

    let asked = upstream.asked();
    let names: Vec<&str> = asked[0].headers.keys().map(String::as_str).collect();
    let expected = [
        "accept-encoding",
        "authorization",
        "content-length",
        "content-type",
        "host",
        "traceparent",
        "tracestate",
        "x-tenant",
    ];
    assert_eq!(names, expected);
    assert_eq!(asked[0].header("traceparent"), Some(traceparent.as_str()));

    let exposition = sidecar.exposition();
    for (name, count) in [
        ("taffrail_requests_total", "1"),
        ("taffrail_cost_usd_total", "0.0002832"),
    ] {
        for (feature, tenant) in [("summaries", "acme"), ("", "")] {
            let sums = samples(&exposition, name)
                .into_iter()
                .filter(|(labels, _)| {
                    let label = |name: &str| labels.get(name).map_or("", String::as_str);
                    let names = (label("team"), label("feature"), label("tenant"));
                    names == ("search", feature, tenant) && !labels.contains_key("stage")
                })
                .map(|(_, value)| value.round_dp(12))
                .sum::<Decimal>();
            assert_eq!(sums.normalize().to_string(), count, "{name} {feature}");
        }
    }
    assert!(!exposition.contains("secret"));
}
