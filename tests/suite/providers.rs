//! What holds for every provider, whatever it is sent.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use http::{HeaderMap, Method, StatusCode};
use proptest::prelude::*;
use taffrail::fault::Outcome;
use taffrail::provider::{
    self, End, JobStage, Provider, Report, RequestFacts, RequestHead, ResponseHead,
};
use taffrail::record::{Fidelity, Operation};

use crate::golden::{self, Fixture};
use crate::wire::properties;

fn all() -> Vec<Arc<dyn Provider>> {
    let mut all: Vec<_> = provider::BUILTIN
        .iter()
        .map(|name| provider::builtin(name).expect("a built-in provider is found by its name"))
        .collect();
    all.push(provider::chat_dialect("chat"));
    all
}

/// The fixtures of all providers that have any, with their provider.
fn all_fixtures() -> Vec<(Arc<dyn Provider>, Fixture)> {
    all()
        .into_iter()
        .flat_map(|provider| {
            let fixtures = golden::fixtures(provider.name());
            fixtures
                .into_iter()
                .map(move |fixture| (Arc::clone(&provider), fixture))
        })
        .collect()
}

const ENDS: [End; 4] = [End::Complete, End::Truncated, End::Cancelled, End::TimedOut];

fn head<'a>(method: &'a Method, path: &'a str, headers: &'a HeaderMap) -> RequestHead<'a> {
    RequestHead {
        method,
        path,
        query: None,
        headers,
    }
}

/// What a report must never be, whatever was read.
fn check_sanity(report: &Report, case: &str) {
    for part in &report.parts {
        assert!(!part.usage.is_empty(), "{case}: a part of nothing");
        for (unit, quantity) in part.usage.iter() {
            assert!(!quantity.is_sign_negative(), "{case}: {unit} is {quantity}");
        }
    }
    let texts = [
        &report.error_code,
        &report.error_message,
        &report.finish_reason,
        &report.model_served,
        &report.upstream_provider,
        &report.service_tier,
        &report.region,
        &report.provider_request_id,
    ];
    for text in texts.into_iter().flatten() {
        assert!(!text.is_empty(), "{case}: an empty text is no text");
        assert!(text.chars().count() <= 256, "{case}: {text}");
    }
    if report.outcome == Outcome::Ok {
        assert_eq!(report.error_message, None, "{case}");
    }
}

#[test]
fn every_provider_goes_by_its_own_name() {
    for name in provider::BUILTIN {
        assert_eq!(provider::builtin(name).unwrap().name(), *name);
    }
    assert!(provider::builtin("nobody").is_none());
    assert_eq!(provider::chat_dialect("groq").name(), "groq");
    assert_eq!(provider::chat_dialect("groq").default_upstream(), None);
}

#[test]
fn default_upstreams_are_plain_origins() {
    for provider in all() {
        let Some(upstream) = provider.default_upstream() else {
            continue;
        };
        let uri: http::Uri = upstream.parse().unwrap();
        assert_eq!(uri.scheme_str(), Some("https"), "{upstream}");
        assert!(!upstream.ends_with('/'), "{upstream}");
    }
}

/// Ids that must not show up in a route.
const IDS: [&str; 4] = ["resp_0123456789abcdef", "4711", "%2e%2e", "ünïcode"];

#[test]
fn routes_are_of_a_bounded_set_and_hold_no_ids() {
    const WORDS: [&str; 19] = [
        "v1",
        "api",
        "openai",
        "deployments",
        "anthropic",
        "messages",
        "chat",
        "completions",
        "responses",
        "files",
        "batches",
        "videos",
        "presets",
        "models",
        "realtime",
        "content",
        "predictions",
        "trainings",
        "cancel",
    ];
    let headers = HeaderMap::new();
    for provider in all() {
        let mut routes = BTreeSet::new();
        // Every path of up to four segments that mixes words of these APIs with ids.
        let segments: Vec<&str> = WORDS.iter().chain(&IDS).copied().collect();
        let mut paths = vec![String::new()];
        for _ in 0..3 {
            let longer: Vec<String> = paths
                .iter()
                .flat_map(|path| {
                    segments
                        .iter()
                        .map(move |segment| format!("{path}/{segment}"))
                })
                .collect();
            paths.extend(longer);
            paths.sort();
            paths.dedup();
        }
        for path in &paths {
            for method in [Method::GET, Method::POST, Method::DELETE] {
                let call = provider.recognise(head(&method, path, &headers));
                routes.insert(call.route.into_owned());
            }
        }
        for route in &routes {
            assert!(route.starts_with('/'), "{route}");
            assert!(!IDS.iter().any(|id| route.contains(id)), "{route}");
        }
        assert!(routes.len() < 200, "{}: {}", provider.name(), routes.len());
    }
}

#[test]
fn odd_paths_are_recognised_as_something() {
    let headers = HeaderMap::new();
    let long = "/a".repeat(20_000);
    let odd = [
        "",
        "/",
        "//",
        "*",
        "?",
        "/v1",
        "/v1/",
        "v1/chat/completions",
        "/%",
        "/%zz/\u{0}",
        "/openai/deployments",
        "/openai/deployments/",
        "/openai/deployments/%ff/chat/completions",
        "/api/v1/presets//messages",
        "/🎉/🎉",
        &long,
    ];
    for provider in all() {
        for path in odd {
            for method in [
                Method::GET,
                Method::POST,
                Method::CONNECT,
                Method::from_bytes(b"ODD").unwrap(),
            ] {
                let call = provider.recognise(head(&method, path, &headers));
                assert!(call.route.len() < 100, "{path}: {}", call.route);
            }
        }
    }
}

#[test]
fn what_is_unknown_may_cost_unless_it_only_reads() {
    let headers = HeaderMap::new();
    for provider in all() {
        let operation = |method: &Method| {
            provider
                .recognise(head(method, "/no/such/path", &headers))
                .operation
        };
        assert_eq!(operation(&Method::PUT), Operation::Other);
        assert_eq!(operation(&Method::DELETE), Operation::Control);
        // At fal each path names a model, which a GET runs as well.
        let (post, get) = match provider.name() {
            "fal" | "fal-queue" => (Operation::Prediction, Operation::Prediction),
            _ => (Operation::Other, Operation::Control),
        };
        assert_eq!(operation(&Method::POST), post);
        assert_eq!(operation(&Method::GET), get);
    }
}

#[test]
fn control_calls_never_report_usage_of_their_own() {
    for (provider, fixture) in all_fixtures() {
        let call = fixture.call(provider.as_ref());
        // What follows a job tells the usage of the job.
        if !call.operation.is_control() || call.job.is_some() {
            continue;
        }
        let mut meter = provider.meter(&call, fixture.response_head());
        meter.push(&fixture.response.body);
        let report = meter.finish(End::Complete, &RequestFacts::default());
        // What a job consumed is the job's.
        if report.job.is_some() {
            continue;
        }
        assert_eq!(report.parts, [], "{}", fixture.name());
        assert_eq!(report.stated_cost, None, "{}", fixture.name());
    }
}

#[test]
fn every_prefix_of_every_response_makes_sense_whatever_its_end() {
    for (provider, fixture) in all_fixtures() {
        if fixture.response.headers.contains_key("content-encoding") {
            continue;
        }
        let body = &fixture.response.body;
        let call = fixture.call(provider.as_ref());
        let status = fixture.response_head().status;
        let step = (body.len() / 150).max(1);
        for length in (0..=body.len()).step_by(step) {
            for end in ENDS {
                let case = format!(
                    "{} {}: {length} bytes, {end:?}",
                    provider.name(),
                    fixture.name()
                );
                let mut meter = provider.meter(&call, fixture.response_head());
                meter.push(&body[..length]);
                let report = meter.finish(end, &RequestFacts::default());
                check_sanity(&report, &case);
                let is_open = matches!(report.fidelity, Fidelity::Partial);
                if status.is_client_error() || status.is_server_error() {
                    // What failed may be billed all the same, where the head says so.
                    if !fixture
                        .response
                        .headers
                        .contains_key("x-fal-billable-units")
                    {
                        assert_eq!(report.parts, [], "{case}");
                    }
                    assert!(report.outcome != Outcome::Ok, "{case}");
                } else if length == 0 && end != End::Complete {
                    let expected = match end {
                        End::Complete | End::Truncated => Outcome::UpstreamTruncated,
                        End::Cancelled => Outcome::ClientCancelled,
                        End::TimedOut => Outcome::UpstreamTimeout,
                    };
                    assert_eq!((report.outcome, is_open), (expected, true), "{case}");
                }
                // A job that was cancelled is at its end, which is told in full.
                let is_job_end = matches!(
                    report.finish_reason.as_deref(),
                    Some("canceled" | "cancelled" | "aborted")
                );
                let is_transport = !is_job_end
                    && matches!(
                        report.outcome,
                        Outcome::ClientCancelled | Outcome::UpstreamTruncated
                    );
                assert!(!is_transport || is_open, "{case}: {:?}", report.fidelity);
            }
        }
    }
}

/// Heads under which a body may come.
fn response_heads() -> Vec<(StatusCode, HeaderMap)> {
    let types = [
        None,
        Some("application/json"),
        Some("text/event-stream"),
        Some("text/html"),
        Some("audio/mpeg"),
        Some("\u{1}"),
    ];
    let mut heads = Vec::new();
    for status in [200, 202, 204, 304, 429, 500] {
        for content_type in types {
            let mut headers = HeaderMap::new();
            if let Some(value) = content_type.and_then(|text| text.parse().ok()) {
                headers.insert(http::header::CONTENT_TYPE, value);
            }
            heads.push((StatusCode::from_u16(status).unwrap(), headers));
        }
    }
    heads
}

type ProviderCalls = (Arc<dyn Provider>, Vec<provider::Call>);

/// Every provider with a call of each of its routes. Properties are tried many times; the
/// fixtures are read once.
static ALL_CALLS: LazyLock<Vec<ProviderCalls>> = LazyLock::new(|| {
    all()
        .into_iter()
        .map(|provider| {
            let calls = calls(provider.as_ref());
            (provider, calls)
        })
        .collect()
});

/// A call of each route that a provider knows, from its fixtures.
fn calls(provider: &dyn Provider) -> Vec<provider::Call> {
    let mut calls: Vec<provider::Call> = Vec::new();
    for fixture in golden::fixtures(provider.name()) {
        let call = fixture.call(provider);
        if calls.iter().all(|known| known.route != call.route) {
            calls.push(call);
        }
    }
    calls
}

#[test]
fn nothing_at_all_is_never_complete_where_usage_was_due() {
    let request = RequestFacts::default();
    for (provider, calls) in ALL_CALLS.iter() {
        for call in calls {
            for (status, headers) in response_heads() {
                let head = ResponseHead {
                    status,
                    headers: &headers,
                };
                let report = provider.meter(call, head).finish(End::Complete, &request);
                check_sanity(&report, &call.route);
                let tells_all = report
                    .job
                    .as_ref()
                    .is_some_and(|job| job.stage == JobStage::Settled);
                let is_answer = status != 202 && !call.operation.is_control();
                let is_due = status.is_success() && (is_answer || tells_all);
                assert_eq!(
                    report.fidelity == Fidelity::Complete,
                    !is_due,
                    "{} {} {status} {headers:?}: {:?}",
                    provider.name(),
                    call.route,
                    report.fidelity
                );
            }
        }
    }
}

/// Bytes that look like the bodies of these APIs, and bytes that do not.
fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..24),
        proptest::sample::select(vec![
            "data: ",
            "\n\n",
            "\r\n",
            "event: error",
            ": x",
            "{",
            "}",
            "[",
            "]",
            "\"usage\":",
            "\"choices\":",
            "\"error\":",
            "\"message\":",
            "\"type\":",
            "null",
            "-1",
            "1e999",
            "\"prompt_tokens\":",
            "\"input_tokens\":",
            "\"completion_tokens\":",
            "99999999999999999999999999999",
            "\"cost\":",
            "\"delta\":",
            "\"content\":",
            "\"\\ud800\"",
            ",",
            "[DONE]",
            "\"iterations\":",
            "\"cache_creation\":",
            "\"output\":",
            "\"data\":",
            "\"seconds\":",
            "\"usage_breakdown\":",
            "\"models\":",
            "\"message_delta\"",
            "\"response\":",
            "7",
            "0.5",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
    ];
    proptest::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

/// Pieces of what Replicate and fal answer, and are asked.
const JOB_PIECES: [&str; 48] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\n",
    "\"",
    "null",
    "true",
    "-1",
    "0.5",
    "1e999",
    "3",
    "\"id\":\"p1\"",
    "\"id\":\"\"",
    "\"status\":\"succeeded\"",
    "\"status\":\"failed\"",
    "\"status\":\"processing\"",
    "\"status\":\"IN_QUEUE\"",
    "\"status\":\"COMPLETED\"",
    "\"model\":\"a/b\"",
    "\"version\":\"a/b:c\"",
    "\"deployment\":\"app\"",
    "\"error\":",
    "\"metrics\":{",
    "\"predict_time\":",
    "\"image_count\":",
    "\"video_output_duration_seconds\":",
    "\"resolution_target\":\"720p\"",
    "\"with_audio\":",
    "\"input\":{",
    "\"duration\":\"8s\"",
    "\"started_at\":\"2026-01-01T00:00:00Z\"",
    "\"completed_at\":\"2026-01-01T00:00:09Z\"",
    "\"output\":",
    "\"request_id\":\"r1\"",
    "\"images\":[",
    "\"width\":1024",
    "\"height\":768",
    "\"video\":{",
    "\"usage\":{",
    "\"detail\":",
    "\"error_type\":\"request_timeout\"",
    "data: ",
    "event: output\n",
    "event: done\n",
    "\n\n",
];

fn job_pieces() -> impl Strategy<Value = String> {
    let pieces = proptest::collection::vec(proptest::sample::select(&JOB_PIECES[..]), 0..40);
    // Half of them are documents, so that it is not the first brace alone that is met.
    (pieces, any::<bool>()).prop_map(|(pieces, is_document)| match is_document {
        true => format!("{{{}}}", pieces.join(",")),
        false => pieces.concat(),
    })
}

#[test]
fn the_meters_of_jobs_are_shown_ends_too() {
    let settled = br#"{"id":"p1","status":"succeeded","metrics":{"predict_time":0.5}}"#;
    let stages: BTreeSet<_> = (0..2_000)
        .filter_map(|seed| {
            // Spread over all of its bits, which choose one thing each.
            properties::job_meters(settled, u64::wrapping_mul(seed, 0x9E37_79B9_7F4A_7C15))
        })
        .collect();
    assert!(stages.contains(&JobStage::Settled), "{stages:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_meters_of_jobs_make_sense_of_anything(body in job_pieces(), seed: u64) {
        properties::job_meters(body.as_bytes(), seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn garbage_means_the_same_however_it_is_cut(body in bodies(), cut in any::<prop::sample::Index>()) {
        let request = RequestFacts::default();
        let heads = response_heads();
        for (provider, calls) in ALL_CALLS.iter() {
            for call in calls.iter().step_by(3) {
                let (status, headers) = &heads[cut.index(heads.len())];
                let head = ResponseHead { status: *status, headers };
                let end = ENDS[cut.index(ENDS.len())];
                let report = |pieces: &[&[u8]]| {
                    let mut meter = provider.meter(call, head);
                    for piece in pieces {
                        meter.push(piece);
                    }
                    meter.finish(end, &request)
                };
                let whole = report(&[&body]);
                check_sanity(&whole, &call.route);
                let (left, right) = body.split_at(cut.index(body.len() + 1));
                prop_assert_eq!(&whole, &report(&[left, right]));
                let bytes: Vec<&[u8]> = body.chunks(1).collect();
                prop_assert_eq!(&whole, &report(&bytes));
            }
        }
    }

    #[test]
    fn a_garbled_request_is_read_as_far_as_it_makes_sense(body in bodies()) {
        let mut headers = HeaderMap::new();
        for content_type in ["application/json", "multipart/form-data; boundary=x", "multipart/form-data"] {
            headers.insert(http::header::CONTENT_TYPE, content_type.parse().unwrap());
            for (provider, calls) in ALL_CALLS.iter() {
                for call in calls.iter().step_by(5) {
                    let mut reader = provider.read_request(call, head(&Method::POST, "/", &headers));
                    reader.push(&body);
                    reader.end();
                    let facts = reader.facts();
                    prop_assert!(facts.model.as_ref().is_none_or(|model| !model.is_empty()));
                }
            }
        }
    }
}

#[test]
fn a_large_request_costs_no_memory_and_hides_no_model() {
    let headers = HeaderMap::new();
    let provider = provider::builtin("openai").unwrap();
    let method = Method::POST;
    let head = head(&method, "/v1/chat/completions", &headers);
    let call = provider.recognise(head);
    let mut reader = provider.read_request(&call, head);
    reader.push(
        br#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":""#,
    );
    let chunk = [b'A'; 64 * 1024];
    for _ in 0..64 {
        reader.push(&chunk);
    }
    reader.push(br#""}}]}],"model":"gpt-4o"}"#);
    reader.end();
    assert_eq!(
        reader.facts(),
        &RequestFacts {
            model: Some("gpt-4o".into()),
            complete: true,
            ..RequestFacts::default()
        }
    );
}
