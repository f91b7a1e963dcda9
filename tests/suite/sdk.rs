//! The vendors' own SDKs, unmodified, through the real binary: what they report is what the rows
//! say, and they cannot tell that anything is in between.
//!
//! The scripts are in `tests/sdk`; `scripts/test-setup.sh` makes their environment. `node` is about
//! the SDKs for Node.

mod node;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;

use rust_decimal::Decimal;
use serde_json::{Value, json};
use taffrail::demo::lookalike::{Case, LookAlike, Vendor as Likeness, foresee};
use taffrail::money::Usd;
use taffrail::provider::End;
use taffrail::usage::{Unit, Usage};
use tokio::process::Command;

use crate::demo::list_price;
use crate::golden::{Fixture, fixtures};
use crate::support::binary::{Home, Server};
use crate::support::books::{TOKENS, assert_counters_agree, samples};
use crate::support::vendor::{Asked, Finish, Framing, Reply, Vendor};

/// What no one must find again: the keys and a word of the prompts.
const SECRETS: [&str; 7] = [
    "sk-openai-secret-key",
    "sk-ant-secret-key",
    "sk-or-secret-key",
    "azure-secret-key",
    "Xyzzyprompt",
    "fal-secret-key",
    "r8-secret-key",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The interpreter that has the SDKs; without it a test is skipped, or fails in CI.
fn python() -> Option<PathBuf> {
    interpreter("python", "target/sdk-venv/pyvenv.cfg")
}

/// The interpreter of that name, if what it needs is there too.
fn interpreter(name: &str, needed: &str) -> Option<PathBuf> {
    let interpreter = root().join("target/sdk-venv/bin").join(name);
    if interpreter.exists() && root().join(needed).exists() {
        return Some(interpreter);
    }
    let is_ci = std::env::var("CI").as_deref() == Ok("1");
    assert!(!is_ci, "no SDKs: run scripts/test-setup.sh");
    eprintln!("SKIP: no SDKs: run scripts/test-setup.sh");
    None
}

/// Runs a script against `base` and returns what it reported, by call.
async fn run(python: &Path, script: &str, base: &str, feature: &str) -> BTreeMap<String, Value> {
    run_with(python, script, base, feature, &[]).await
}

/// As [`run`], with more in the environment.
async fn run_with(
    python: &Path,
    script: &str,
    base: &str,
    feature: &str,
    env: &[(&str, &str)],
) -> BTreeMap<String, Value> {
    let child = Command::new(python)
        .arg(root().join("tests/sdk").join(script))
        .env_clear()
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PROXY", base)
        .env("FEATURE", feature)
        .env("OPENAI_BASE_URL", format!("{base}/openai/v1"))
        .env("OPENAI_API_KEY", SECRETS[0])
        .env("ANTHROPIC_BASE_URL", format!("{base}/anthropic"))
        .env("ANTHROPIC_API_KEY", SECRETS[1])
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let errors = String::from_utf8_lossy(&child.stderr).into_owned();
    assert!(child.status.success(), "{script}: {errors}");
    let lines = String::from_utf8(child.stdout).unwrap();
    let mut calls = BTreeMap::new();
    for line in lines.lines() {
        let mut facts: Value = serde_json::from_str(line).unwrap();
        let call = facts["call"].take().as_str().unwrap().to_owned();
        facts.as_object_mut().unwrap().remove("call");
        assert!(calls.insert(call.clone(), facts).is_none(), "{call} twice");
    }
    let versions = calls.remove("versions").unwrap();
    eprintln!("{script}: {} calls with {versions}", calls.len());
    calls
}

/// The rows by the feature that they are labelled with.
fn by_feature(rows: &[Value]) -> HashMap<&str, Vec<&Value>> {
    let mut map: HashMap<&str, Vec<&Value>> = HashMap::new();
    for row in rows {
        let feature = row["attribution"]["feature"].as_str().unwrap();
        map.entry(feature).or_default().push(row);
    }
    map
}

/// A sidecar's home with these tables in its configuration, which logs all that it can.
fn home(tables: &str) -> Home {
    let mut home = Home::with(tables);
    home.set("ROLE", "sidecar");
    home.set("LOG__FORMAT", "json");
    home.set("LOG__LEVEL", "debug");
    home
}

/// Every row, once `count` are stored.
async fn rows_of(home: &Home, server: &Server, count: usize) -> Vec<Value> {
    server.stored(count).await;
    let rows = home.logs().await;
    assert_eq!(rows.len(), count);
    rows
}

/// Holds everything that is left behind to be free of secrets, and the rows to be all there are.
async fn finish(home: &Home, server: Server, rows: &[Value]) {
    let log = server.stop().await;
    assert_eq!(home.logs().await.len(), rows.len());
    let mut left = home.files();
    // Beside the configuration at least a segment and the database.
    assert!(
        left.len() > 2,
        "only {:?}",
        left.iter().map(|(path, _)| path).collect::<Vec<_>>()
    );
    left.push(("the log".into(), log.into_bytes()));
    for (path, bytes) in left {
        for secret in SECRETS {
            let found = memchr::memmem::find(&bytes, secret.as_bytes());
            assert!(found.is_none(), "{secret} in {}", path.display());
        }
    }
}

/// The quantities of a row that are not zero.
fn usage_of(row: &Value) -> Usage {
    let mut usage = Usage::new();
    for unit in Unit::ALL.iter().filter(|unit| unit.is_token()) {
        if let Some(tokens) = row[format!("{unit}_tokens")]
            .as_u64()
            .filter(|tokens| *tokens > 0)
        {
            usage.set(*unit, tokens);
        }
    }
    usage
}

/// The usage that an SDK reported, in disjoint quantities that are not zero, by the vendors'
/// documentation: OpenAI's details are inside the totals, Anthropic's cache is beside the input.
fn usage_reported(usage: &Value) -> Usage {
    let count = |pointer: &str| usage.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let first = |pointers: [&str; 2]| pointers.map(count).into_iter().max().unwrap();
    let input = first(["/prompt_tokens", "/input_tokens"]);
    let output = first(["/completion_tokens", "/output_tokens"]);
    let detail = |kind: &str, name: &str| {
        let [chat, other] = match kind {
            "input" => ["prompt", "input"],
            _ => ["completion", "output"],
        };
        first([
            &format!("/{chat}_tokens_details/{name}"),
            &format!("/{other}_tokens_details/{name}"),
        ])
    };
    let is_anthropic = usage.get("cache_read_input_tokens").is_some();
    let quantities = if is_anthropic {
        let thinking = detail("output", "thinking_tokens");
        let long = count("/cache_creation/ephemeral_1h_input_tokens");
        vec![
            (Unit::Input, input),
            (Unit::CacheRead, count("/cache_read_input_tokens")),
            (Unit::CacheWrite1h, long),
            (
                Unit::CacheWrite5m,
                count("/cache_creation_input_tokens") - long,
            ),
            (Unit::Output, output - thinking),
            (Unit::Reasoning, thinking),
        ]
    } else {
        let (read, write) = (
            detail("input", "cached_tokens"),
            detail("input", "cache_write_tokens"),
        );
        let reasoning = detail("output", "reasoning_tokens");
        vec![
            (Unit::Input, input - read - write),
            (Unit::CacheRead, read),
            (Unit::CacheWrite, write),
            (Unit::Output, output - reasoning),
            (Unit::Reasoning, reasoning),
        ]
    };
    let mut known = Usage::new();
    for (unit, quantity) in quantities
        .into_iter()
        .filter(|(_, quantity)| *quantity != 0)
    {
        known.set(unit, quantity);
    }
    known
}

/// The cost that OpenRouter stated to the SDK, to all parties.
fn cost_reported(usage: &Value) -> Option<Decimal> {
    let dollars = |value: &Value| Usd::from_json_number(&value.to_string()).unwrap().dollars();
    let charged = dollars(usage.get("cost")?);
    Some(match usage["is_byok"].as_bool() {
        Some(true) => charged + dollars(&usage["cost_details"]["upstream_inference_cost"]),
        _ => charged,
    })
}

fn cost_of(row: &Value) -> Option<Decimal> {
    row["cost_usd"].as_str().map(|cost| cost.parse().unwrap())
}

/// What the look-alikes will say of a chat stream that states no usage to its client.
fn foreseen(prompt: &str) -> Usage {
    let body = json!({
        "model": "gpt-6-luna",
        "messages": [{ "role": "user", "content": prompt }],
        "stream": true,
        "stream_options": { "include_usage": true },
    });
    let path = "/v1/chat/completions";
    let body = body.to_string();
    foresee(Likeness::OpenAi, path, body.as_bytes(), Case::Good, false)
        .unwrap()
        .usage
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sdks_get_what_they_ask_for_and_the_rows_say_what_they_were_told() {
    let Some(python) = python() else { return };
    let mut config = "[attribution]\nstatic = { team = \"search\" }\n\
                      headers = { feature = \"x-taffrail-feature\" }\n"
        .to_owned();
    let mut lookalikes = Vec::new();
    for vendor in Likeness::ALL {
        let lookalike = LookAlike::start(vendor).await.unwrap();
        for (route, upstream) in lookalike.upstreams() {
            config += &format!("[providers.{route}]\nupstream = \"{upstream}\"\n");
        }
        lookalikes.push(lookalike);
    }
    let home = home(&config);
    let server = home.start().await;
    let base = format!("http://{}", server.proxy);
    let calls = run(&python, "vendors.py", &base, "x-taffrail-feature").await;

    // One call was tried a second time.
    let rows = rows_of(&home, &server, calls.len() + 1).await;
    let of_feature = by_feature(&rows);
    for (call, facts) in &calls {
        let rows = &of_feature[call.as_str()];
        for row in rows {
            assert_eq!(
                row["attribution"],
                json!({ "team": "search", "feature": call })
            );
            assert_eq!(
                row["key_fingerprint"].as_str().map(str::len),
                Some(16),
                "{call}"
            );
        }
        check_call(call, facts, rows, &calls);
    }
    assert_eq!(of_feature.len(), calls.len());

    let exposition = server.scrape().await.0;
    assert_counters_agree(&exposition, &rows, &["team", "feature"]);
    let stage = |stage: &str| {
        samples(&exposition, "taffrail_records_total")
            .iter()
            .filter(|(labels, _)| labels["stage"] == stage)
            .map(|(_, value)| *value)
            .sum::<Decimal>()
    };
    let stages = [
        "completed",
        "journaled",
        "stored",
        "dropped",
        "dead_lettered",
    ]
    .map(stage);
    let all = Decimal::from(rows.len());
    assert_eq!(stages, [all, all, all, Decimal::ZERO, Decimal::ZERO]);
    let streams: usize = rows
        .iter()
        .filter(|row| row["streamed"] == true && !row["first_token_us"].is_null())
        .count();
    let observed = samples(&exposition, "taffrail_time_to_first_token_seconds_count");
    let observed: Decimal = observed.iter().map(|(_, value)| value).sum();
    assert_eq!(observed, streams.into());
    let in_flight = samples(&exposition, "taffrail_requests_in_flight");
    assert!(
        in_flight.iter().all(|(_, value)| value.is_zero()),
        "{in_flight:?}"
    );
    finish(&home, server, &rows).await;
}

/// Holds the rows of one call to what its SDK reported.
fn check_call(call: &str, facts: &Value, rows: &[&Value], calls: &BTreeMap<String, Value>) {
    let shown = || format!("{call}: {facts:#}\n{:#}", json!(rows));
    let row = rows[0];
    let outcome = row["outcome"].as_str().unwrap();
    let trouble = [
        "rate-limited",
        "quota-exhausted",
        "overloaded",
        "error-in-stream",
        "truncated",
    ]
    .into_iter()
    .find(|trouble| call.ends_with(trouble));
    let count = if call == "openai-rate-limited" { 2 } else { 1 };
    assert_eq!(rows.len(), count, "{}", shown());

    if let Some(trouble) = trouble {
        let error = facts["error"].as_str().unwrap();
        let status = facts["status"].as_i64();
        let (classes, expected): (&[&str], _) = match trouble {
            "rate-limited" => (&["RateLimitError"], "rate_limited"),
            // OpenAI's is a 429, Anthropic's a 400, OpenRouter's a 402.
            "quota-exhausted" => (
                &["RateLimitError", "BadRequestError", "APIStatusError"],
                "quota_exhausted",
            ),
            "overloaded" => (
                &["InternalServerError", "OverloadedError"],
                "upstream_error",
            ),
            "error-in-stream" => (
                &["APIError", "APIStatusError", "OverloadedError"],
                "upstream_error",
            ),
            _ => (
                &["RemoteProtocolError", "APIConnectionError", "APIError"],
                "upstream_truncated",
            ),
        };
        assert!(classes.contains(&error), "{}", shown());
        for row in rows {
            assert_eq!(row["outcome"], expected, "{}", shown());
            if let Some(status) = status {
                assert_eq!(row["http_status"], status, "{}", shown());
            }
        }
        return;
    }
    if call.ends_with("closed") {
        assert_eq!(outcome, "client_cancelled", "{}", shown());
        assert_eq!(row["fidelity"], "partial", "{}", shown());
        assert!(!row["first_token_us"].is_null(), "{}", shown());
        // Anthropic says at the start what the input was, so there is something to pay.
        let is_anthropic = row["provider"] == "anthropic";
        assert_eq!(cost_of(row).is_some(), is_anthropic, "{}", shown());
        if is_anthropic {
            assert_eq!(
                usage_of(row),
                usage_reported(&facts["usage"]),
                "{}",
                shown()
            );
            assert_eq!(row["cost_source"], "estimated", "{}", shown());
        }
        return;
    }

    assert_eq!(facts.get("error"), None, "{}", shown());
    assert_eq!(outcome, "ok", "{}", shown());
    assert_eq!(row["model_served"], facts["model"], "{}", shown());
    if row["provider"] == "openrouter" {
        assert_eq!(row["provider_request_id"], facts["id"], "{}", shown());
    } else {
        assert_eq!(
            row["provider_request_id"],
            facts["request_id"],
            "{}",
            shown()
        );
    }
    let is_stream = facts.get("events").is_some() || call.ends_with("helper");
    assert_eq!(row["streamed"], is_stream, "{}", shown());
    assert_eq!(!row["first_token_us"].is_null(), is_stream, "{}", shown());
    if call == "chat-stream-refused" {
        assert!(facts["usage"].is_null(), "{}", shown());
        assert_eq!(row["fidelity"], "silent", "{}", shown());
        assert_eq!(usage_of(row), Usage::new(), "{}", shown());
        assert_eq!(row["unpriced_reason"], "usage_missing", "{}", shown());
        return;
    }
    assert_eq!(row["fidelity"], "complete", "{}", shown());
    let expected = if !facts["usage"].is_null() {
        usage_reported(&facts["usage"])
    } else if let Some(index) = call.strip_prefix("async-chat-") {
        let again = "and again ".repeat(index.parse().unwrap());
        foreseen(&format!("Where is the log streamed? Xyzzyprompt {again}"))
    } else {
        // The same question, asked in a way that states the usage to the client.
        usage_reported(&calls[&format!("{call}-usage")]["usage"])
    };
    assert_eq!(usage_of(row), expected, "{}", shown());
    // Nobody is shown an event that was not asked for.
    let asked_for = u64::from(call.ends_with("-usage"));
    if row["operation"] == "chat" && row["provider"] == "openai" && is_stream {
        assert_eq!(facts["without_choices"], asked_for, "{}", shown());
    }
    let cost = match cost_reported(&facts["usage"]) {
        Some(stated) => stated,
        None => list_price(facts["model"].as_str().unwrap(), &usage_of(row)),
    };
    assert_eq!(
        cost_of(row).map(|cost| cost.normalize()),
        Some(cost.normalize()),
        "{}",
        shown()
    );
    let source = if row["provider"] == "openrouter" {
        "provider"
    } else {
        "catalog"
    };
    assert_eq!(row["cost_source"], source, "{}", shown());
}

/// Tells the upstream which fixture to answer with, and labels the row.
const CASE: &str = "x-case";

/// The fixture that a call is answered with, at this attempt.
fn fixture_of<'a>(call: &'a str, attempt: &str) -> &'a str {
    match call.split_once(" then ") {
        Some((first, _)) if attempt == "0" => first,
        Some((_, then)) => then,
        None => call.split(' ').next().unwrap(),
    }
}

fn reply(fixture: &Fixture, asked: &Asked) -> Reply {
    let message = &fixture.response;
    let mut headers: Vec<(String, String)> = message
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    // So that the SDK does not wait for long before it tries again.
    headers.push(("retry-after-ms".to_owned(), "1".to_owned()));
    let content_type = message.headers.get("content-type");
    let is_stream = content_type.is_some_and(|value| value == "text/event-stream");
    let mut body = message.body.clone();
    let wants_usage = asked.json()["stream_options"]["include_usage"] == true;
    if asked.header(CASE).unwrap().ends_with("without usage") && !wants_usage {
        let text = String::from_utf8(body).unwrap();
        let events = text
            .split_inclusive("\n\n")
            .filter(|event| !event.contains(r#""usage":{"#));
        body = events.collect::<String>().into_bytes();
    }
    Reply {
        status: message.start.strip_prefix("HTTP/1.1 ").unwrap().to_owned(),
        headers,
        body,
        framing: if is_stream {
            Framing::Chunked
        } else {
            Framing::Length
        },
        finish: match fixture.end {
            End::Truncated => Finish::CutOff,
            _ => Finish::Complete,
        },
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sdks_report_through_the_proxy_what_they_report_without_it() {
    let Some(python) = python() else { return };
    let names = ["openai", "azure", "anthropic", "openrouter"];
    let all: HashMap<String, Fixture> = names
        .into_iter()
        .flat_map(|folder| {
            let named = move |fixture: Fixture| (format!("{folder}/{}", fixture.name()), fixture);
            fixtures(folder).into_iter().map(named)
        })
        .collect();
    let expectation = |name: &str| -> Value {
        let path = all[name].folder.join("expect.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let expected: HashMap<String, Value> = all
        .keys()
        .map(|name| (name.clone(), expectation(name)))
        .collect();
    let upstream = Vendor::start(move |asked| {
        let call = asked.header(CASE).unwrap_or_default();
        let attempt = asked.header("x-stainless-retry-count").unwrap_or("0");
        match all.get(fixture_of(call, attempt)) {
            Some(fixture) => reply(fixture, asked),
            None => panic!("no fixture {call:?}"),
        }
    })
    .await;

    let mut config = format!(
        "[attribution]\nheaders = {{ feature = \"{CASE}\" }}\n[meter]\ncontrol_rows = true\n"
    );
    for name in names {
        config += &format!("[providers.{name}]\nupstream = \"{}\"\n", upstream.url());
    }
    let home = home(&config);
    let server = home.start().await;
    let base = format!("http://{}", server.proxy);
    let direct = upstream.url();
    let (calls, direct) = tokio::join!(
        run(&python, "fixtures.py", &base, CASE),
        run(&python, "fixtures.py", &direct, CASE),
    );
    assert_eq!(
        calls.keys().collect::<Vec<_>>(),
        direct.keys().collect::<Vec<_>>()
    );
    for (call, facts) in &calls {
        assert_eq!(facts, &direct[call], "{call}");
    }

    // One call was tried a second time, and one a third.
    let rows = rows_of(&home, &server, calls.len() + 3).await;
    let of_feature = by_feature(&rows);
    assert_eq!(of_feature.len(), calls.len());
    for call in calls.keys() {
        let mut rows = of_feature[call.as_str()].clone();
        rows.sort_by_key(|row| row["started_at"].as_str());
        for (attempt, row) in rows.iter().enumerate() {
            let expected = &expected[fixture_of(call, &attempt.to_string())];
            check_row(call, row, expected);
        }
    }
    assert_counters_agree(&server.scrape().await.0, &rows, &["feature"]);
    finish(&home, server, &rows).await;
}

/// Holds a row to the `expect.json` of the fixture that answered.
fn check_row(call: &str, row: &Value, expected: &Value) {
    let report = &expected["report"];
    for key in [
        "model_served",
        "upstream_provider",
        "service_tier",
        "provider_request_id",
        "outcome",
        "error_code",
        "error_message",
        "finish_reason",
    ] {
        assert_eq!(row[key], report[key], "{call}: {key}");
    }
    // A client that leaves at an error in a stream may do so before the stream's end is there.
    let may_leave = call.contains("error-in-stream");
    if !(may_leave && row["fidelity"] == "partial") {
        assert_eq!(row["fidelity"], report["fidelity"], "{call}: fidelity");
    }
    assert_eq!(row["operation"], expected["call"]["operation"], "{call}");
    assert_eq!(row["route"], expected["call"]["route"], "{call}");
    assert!(row["key_fingerprint"].is_string(), "{call}");
    let has_first_token = !expected["first_token_at_the_end_of"].is_null();
    assert_eq!(!row["first_token_us"].is_null(), has_first_token, "{call}");
    // Twice the same object, through two texts.
    let raw = report["raw_usage"]
        .as_str()
        .map_or(Value::Null, |raw| serde_json::from_str(raw).unwrap());
    assert_eq!(row["raw_usage"], raw, "{call}");

    let mut sums: BTreeMap<String, Decimal> = BTreeMap::new();
    for part in report["parts"].as_array().unwrap() {
        for (unit, quantity) in part["usage"].as_object().unwrap() {
            let quantity: Decimal = quantity.as_str().unwrap().parse().unwrap();
            *sums.entry(unit.clone()).or_default() += quantity;
        }
    }
    let mut actual: BTreeMap<String, Decimal> = BTreeMap::new();
    for (column, _) in TOKENS {
        if let Some(tokens) = row[column].as_i64() {
            let unit = column.strip_suffix("_tokens").unwrap();
            actual.insert(unit.to_owned(), tokens.into());
        }
    }
    for (unit, quantity) in row["units"].as_object().into_iter().flatten() {
        actual.insert(unit.clone(), quantity.as_str().unwrap().parse().unwrap());
    }
    assert_eq!(actual, sums, "{call}");
    if let Some(stated) = report.get("stated_cost") {
        assert_eq!(row["cost_usd"], stated["total"], "{call}");
        assert_eq!(row["cost_source"], "provider", "{call}");
    }
}

/// The response of a fixture.
fn reply_of(folder: &str, case: &str) -> Reply {
    let fixture = fixtures(folder)
        .into_iter()
        .find(|fixture| fixture.name() == case)
        .unwrap_or_else(|| panic!("no fixture {folder}/{case}"));
    let message = &fixture.response;
    let fields = message.headers.iter();
    Reply {
        status: message.start.strip_prefix("HTTP/1.1 ").unwrap().to_owned(),
        headers: fields
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect(),
        ..Reply::json(message.body.clone())
    }
}

/// A reply with other words in the place of some.
fn in_words(mut reply: Reply, words: &[(&str, &str)]) -> Reply {
    let mut body = String::from_utf8(reply.body).unwrap();
    for (old, new) in words {
        assert!(body.contains(old), "no {old} in {body}");
        body = body.replace(old, new);
    }
    reply.body = body.into_bytes();
    reply
}

/// How often each thing was asked for.
#[derive(Default)]
struct Counts(Mutex<HashMap<String, usize>>);

impl Counts {
    fn next(&self, what: &str) -> usize {
        let mut counts = self.0.lock().unwrap();
        let count = counts.entry(what.to_owned()).or_default();
        *count += 1;
        *count - 1
    }
}

/// fal's host of models that run while the caller waits.
async fn fal_run() -> Vendor {
    Vendor::start(|asked| match asked.target.as_str() {
        "/fal-ai/flux/dev" => reply_of("fal", "image"),
        "/fal-ai/locked" => reply_of("fal", "error-403-locked"),
        target => panic!("{target} of fal.run"),
    })
    .await
}

/// fal's queue, whose jobs are done at the third look.
async fn fal_queue() -> Vendor {
    const JOB: &str = "764cabcf-b745-4b3e-ae38-1200304cf45b";
    let counts = Counts::default();
    Vendor::start(move |asked| {
        let path = asked.target.split('?').next().unwrap();
        let rest = path.strip_prefix("/fal-ai/flux").unwrap();
        if rest == "/dev" {
            let id = format!("764cabcf-b745-4b3e-ae38-{:012}", counts.next(path));
            return in_words(reply_of("fal-queue", "submit"), &[(JOB, &id)]);
        }
        let id = rest.strip_prefix("/requests/").unwrap();
        match id.strip_suffix("/status") {
            None => reply_of("fal-queue", "result"),
            Some(id) => {
                let case = match counts.next(id) {
                    0 => "status-queued",
                    1 => "status-in-progress",
                    _ => "status-completed",
                };
                in_words(reply_of("fal-queue", case), &[(JOB, id)])
            }
        }
    })
    .await
}

/// A prediction whose output is streamed.
const STREAMED: &str = "streamedhgbfurvjtvhg6dckhu";

/// Replicate, which waits for one model unless it is to be streamed, and lets the other be asked
/// for.
async fn replicate() -> Vendor {
    const LLAMA: &str = "meta/meta-llama-3-8b-instruct";
    const SCHNELL: &str = "black-forest-labs/flux-schnell";
    const JOB: &str = "gm3qorzdhgbfurvjtvhg6dckhu";
    const OTHER: &str = "schnellzdhgbfurvjtvhg6dckh";
    let counts = Counts::default();
    Vendor::start(move |asked| {
        let path = asked.target.strip_prefix("/v1").unwrap();
        let model = path.strip_prefix("/models/");
        match model.and_then(|rest| rest.strip_suffix("/predictions")) {
            Some(LLAMA) if asked.header("prefer") == Some("wait") => {
                reply_of("replicate", "create-wait-succeeded")
            }
            Some(LLAMA) => in_words(reply_of("replicate", "create-model"), &[(JOB, STREAMED)]),
            Some(SCHNELL) => in_words(
                reply_of("replicate", "create-model"),
                &[(JOB, OTHER), (LLAMA, SCHNELL)],
            ),
            _ if path.strip_prefix("/predictions/") == Some(STREAMED) => in_words(
                reply_of("replicate", "get-succeeded-tokens"),
                &[(JOB, STREAMED)],
            ),
            _ => {
                assert_eq!(path.strip_prefix("/predictions/"), Some(OTHER));
                match counts.next(path) {
                    0 => in_words(
                        reply_of("replicate", "get-processing"),
                        &[(JOB, OTHER), (LLAMA, SCHNELL)],
                    ),
                    _ => in_words(
                        reply_of("replicate", "get-succeeded-image"),
                        &[(JOB, OTHER)],
                    ),
                }
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_made_over_https_and_each_makes_one_row() {
    let Some(python) = python() else { return };
    let vendors = [
        ("fal", fal_run().await),
        ("fal-queue", fal_queue().await),
        ("replicate", replicate().await),
    ];
    let mut config = String::new();
    for (name, vendor) in &vendors {
        config += &format!("[providers.{name}]\nupstream = \"{}\"\n", vendor.url());
    }
    let mut home = home(&config);
    home.set("PROXY__TLS_LISTEN", "127.0.0.1:0");
    let server = home.start().await;
    let trusted = home.path().join("bundle.pem");
    let ca = home.run(&["ca"]).await;
    assert_eq!(ca.code, Some(0), "{}", ca.stderr);
    std::fs::write(&trusted, ca.stdout).unwrap();
    let port = server.proxy_tls().port();
    let base = format!("http://{}", server.proxy);
    let env = [
        ("SSL_CERT_FILE", trusted.to_str().unwrap()),
        ("FAL_KEY", &format!("an-id:{}", SECRETS[5])),
        ("FAL_RUN_HOST", &format!("localhost:{port}/fal")),
        ("FAL_QUEUE_RUN_HOST", &format!("localhost:{port}/fal-queue")),
        ("REPLICATE_API_TOKEN", SECRETS[6]),
        ("REPLICATE_BASE_URL", &format!("{base}/replicate")),
        ("REPLICATE_POLL_INTERVAL", "0.01"),
    ];
    let calls = run_with(&python, "images.py", &base, "x-none", &env).await;

    let images = json!(["https://v3.fal.media/files/a/b0.jpg"]);
    for call in [
        "fal-run",
        "fal-run-async",
        "fal-submit",
        "fal-submit-async",
        "fal-subscribe",
    ] {
        assert_eq!(calls[call]["images"], images, "{call}: {}", calls[call]);
    }
    let updates = json!(["Completed", "InProgress", "Queued"]);
    assert_eq!(calls["fal-subscribe"]["updates"], updates);
    let refused = &calls["fal-refused"];
    assert_eq!(refused["status"], 403, "{refused}");
    assert_eq!(calls["replicate-run"]["output"], "Hello");
    let output = json!(["https://replicate.delivery/x/out-0.webp"]);
    assert_eq!(calls["replicate-run-polled"]["output"], output);

    let rows = rows_of(&home, &server, 8).await;
    let mut seen: Vec<Value> = rows
        .iter()
        .map(|row| {
            let of = ["model_requested", "outcome", "polls", "units", "cost_usd"];
            json!(of.map(|key| row[key].clone()))
        })
        .collect();
    seen.sort_by_key(Value::to_string);
    let made = |polls: Value| {
        let units = json!({ "billable_unit": "1", "image": "1" });
        json!(["fal-ai/flux/dev", "ok", polls, units, "0.025"])
    };
    // A job is polled until it is done; who subscribes looks once more before the result.
    let expected = [
        made(json!(4)),
        made(json!(4)),
        made(json!(5)),
        made(Value::Null),
        made(Value::Null),
    ];
    assert_eq!(seen[1..6], expected);
    let locked = json!(["fal-ai/locked", "account_locked", null, null, null]);
    assert_eq!(seen[6], locked);
    let polled = json!({ "compute_second": "0.432", "image": "1" });
    let polled = json!(["black-forest-labs/flux-schnell", "ok", 2, polled, "0.003"]);
    assert_eq!(seen[0], polled);
    let waited = json!({ "compute_second": "2.1" });
    let waited = json!([
        "meta/meta-llama-3-8b-instruct",
        "ok",
        null,
        waited,
        "0.0000392"
    ]);
    assert_eq!(seen[7], waited);
    let ids: BTreeSet<&str> = rows
        .iter()
        .filter_map(|row| row["job_id"].as_str())
        .collect();
    assert_eq!(ids.len(), 5);
    for call in ["fal-submit", "fal-submit-async"] {
        assert!(ids.contains(calls[call]["request_id"].as_str().unwrap()));
    }
    // Submits, polls and results, all of them through the proxy: the vendors' own hosts are not
    // those that the URLs in their answers name.
    let asked = vendors.each_ref().map(|(_, vendor)| vendor.asked().len());
    assert_eq!(asked, [3, 3 + 4 + 4 + 5, 2 + 2]);
    let scrape = server.quiet().await;
    let sum = |family, labels: &[_]| scrape.sum(family, labels);
    assert_eq!(sum("taffrail_units_total", &[("unit", "image")]), 6);
    let predictions = [("operation", "prediction")];
    assert_eq!(sum("taffrail_requests_total", &predictions), 8);
    assert_eq!(sum("taffrail_tls_handshake_failures_total", &[]), 0);
    finish(&home, server, &rows).await;
}
