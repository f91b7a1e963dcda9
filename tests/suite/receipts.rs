//! Receipts: what requests cost whose cost nobody saw is asked for by the real scheduler, of billing
//! APIs on loopback, and kept in both stores.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::sync::Mutex;

use chrono::TimeDelta;
use rust_decimal::Decimal;
use serde_json::Value;
use taffrail::clock;
use taffrail::fault::Outcome;
use taffrail::money::Usd;
use taffrail::provider;
use taffrail::record::{CostSource, Operation, UnpricedReason, UsageRecord};
use taffrail::store::{Config, Dimension, LogQuery, Store, UsageQuery};
use taffrail::usage::{Unit, Usage};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::postgres::{fresh, sums_kept as sums_kept_in_postgres};
use crate::store::{Sums, id, record, sums_kept, sums_of_rows};
use crate::support::binary::{Home, Server};
use crate::support::http::ask;
use crate::support::sidecar::Sidecar;
use crate::support::vendor::{Asked, Finish, Framing, Reply, Vendor};

/// The keys, which nobody may show.
const OPENROUTER_KEY: &str = "canary-openrouter-0123456789abcdef";
const FAL_KEY: &str = "canary-fal-admin-0123456789abcdef";

fn refused(status: &str, body: &str) -> Reply {
    Reply {
        status: status.to_owned(),
        ..Reply::json(body)
    }
}

/// A generation as OpenRouter tells of it.
fn generation(id: &str, rest: &str) -> Reply {
    Reply::json(format!(
        r#"{{"data":{{"id":"{id}","upstream_id":"chatcmpl-1","cache_discount":null,{rest},"created_at":"2026-11-24T10:00:00.433273+00:00","model":"openai/gpt-4o-mini","app_id":12345,"streamed":true,"cancelled":true,"provider_name":"OpenAI","latency":1250,"moderation_latency":null,"generation_time":1200,"finish_reason":null,"native_finish_reason":null,"tokens_prompt":10,"tokens_completion":2,"native_tokens_prompt":10,"native_tokens_completion":2,"native_tokens_reasoning":0,"native_tokens_cached":0,"num_media_prompt":null,"num_media_completion":null,"num_search_results":null,"origin":"https://openrouter.ai/","api_type":"completions","router":null}}}}"#
    ))
}

/// OpenRouter: its chat breaks off or falls silent, its speech tells no cost, and of its generations
/// it knows the first only when it is asked for the second time.
fn openrouter(asked: &Asked, times: &mut BTreeMap<String, u32>) -> Reply {
    let (path, query) = asked.target.split_once('?').unwrap_or((&asked.target, ""));
    let first = |id: &str| {
        format!(
            "data: {{\"id\":\"{id}\",\"provider\":\"OpenAI\",\"model\":\"openai/gpt-4o-mini\",\"object\":\"chat.completion.chunk\",\"created\":1,\"choices\":[{{\"index\":0,\"delta\":{{\"role\":\"assistant\",\"content\":\"Hel\"}},\"finish_reason\":null,\"native_finish_reason\":null,\"logprobs\":null}}]}}\n\n"
        )
    };
    match path {
        "/api/v1/chat/completions" if asked.json()["user"] == "cut" => {
            Reply::events(first("gen-cut")).finish(Finish::CutOff)
        }
        "/api/v1/chat/completions" => Reply::events(first("gen-left")).finish(Finish::Silent),
        "/api/v1/audio/speech" => Reply {
            headers: vec![("content-type".to_owned(), "audio/mpeg".to_owned())],
            framing: Framing::Chunked,
            ..Reply::json(vec![0xff, 0xfb, 0x90, 0x00])
        }
        .with("x-generation-id", "gen-speech"),
        "/api/v1/generation"
            if asked.header("authorization") != Some(&format!("Bearer {OPENROUTER_KEY}")) =>
        {
            refused(
                "401 Unauthorized",
                r#"{"error":{"message":"No auth credentials found","code":401}}"#,
            )
        }
        "/api/v1/generation" => {
            let id = query.strip_prefix("id=").unwrap();
            let time = times.entry(id.to_owned()).or_default();
            *time += 1;
            match id {
                // The first call of all is one too many.
                "gen-cut" if *time == 1 => refused(
                    "429 Too Many Requests",
                    // A careless vendor, here and below.
                    &format!(
                        r#"{{"error":{{"code":429,"message":"Rate limit exceeded for {OPENROUTER_KEY}"}}}}"#
                    ),
                ),
                "gen-cut" if *time > 2 => generation(
                    id,
                    r#""total_cost":4.2e-4,"usage":0.00042,"is_byok":false,"upstream_inference_cost":0"#,
                ),
                "gen-left" => generation(
                    id,
                    r#""total_cost":0.0001,"usage":0.0001,"is_byok":true,"upstream_inference_cost":0.002"#,
                ),
                "gen-speech" => generation(
                    id,
                    r#""total_cost":0.015,"usage":0.015,"is_byok":false,"upstream_inference_cost":null"#,
                ),
                "gen-mixed" => generation(
                    id,
                    r#""total_cost":0.0021,"usage":0.0001,"is_byok":true,"upstream_inference_cost":0.002"#,
                ),
                "gen-other" => generation(
                    &format!("gen-{OPENROUTER_KEY}"),
                    r#""total_cost":7,"usage":7,"is_byok":false,"upstream_inference_cost":0"#,
                ),
                _ => refused(
                    "404 Not Found",
                    &format!(
                        r#"{{"error":{{"message":"Generation {id} not found for {OPENROUTER_KEY}","code":404}}}}"#
                    ),
                ),
            }
        }
        // Balances and bills are of no interest here.
        _ => refused(
            "404 Not Found",
            r#"{"error":{"message":"Not found","code":404}}"#,
        ),
    }
}

/// fal's billing events, on two pages.
fn fal(asked: &Asked) -> Reply {
    let (path, query) = asked.target.split_once('?').unwrap_or((&asked.target, ""));
    if path != "/v1/models/billing-events" {
        return refused("404 Not Found", r#"{"detail":"Not Found"}"#);
    }
    if asked.header("authorization") != Some(&format!("Key {FAL_KEY}")) {
        return refused(
            "403 Forbidden",
            r#"{"error":{"type":"authorization_error","message":"wrong scope","request_id":"r","docs_url":"https://fal.ai"}}"#,
        );
    }
    let pairs: Vec<(&str, &str)> = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .collect();
    let value = |name: &str| pairs.iter().find(|(own, _)| *own == name).map(|it| it.1);
    // Without it fal tells of the last 24 hours alone.
    let start: chrono::DateTime<chrono::Utc> = value("start").unwrap().parse().unwrap();
    assert!(start < clock::wall() - TimeDelta::hours(30), "{query}");
    let wanted = |id: &str| pairs.contains(&("request_id", id));
    let event = |id: &str, cost: &str| {
        format!(
            r#"{{"request_id":"{id}","endpoint_id":"fal-ai/flux/dev","timestamp":"2026-11-24T10:30:45Z","output_units":2,"unit_price":0.025,"percent_discount":null,{cost}}}"#
        )
    };
    let total =
        |cost: &str| format!(r#""cost_subtotal":0.05,"cost_discount":0,"cost_total":{cost}"#);
    let (events, next) = match value("cursor") {
        None => (
            [
                ("f-charged", total("0.05")),
                ("f-refunded", total("0.05")),
                ("f-same", total("0.03")),
                ("somebody-elses", total("99")),
            ],
            r#""next_cursor":"Mg==","has_more":true"#,
        ),
        Some("Mg%3D%3D") => (
            [
                ("f-charged", total("0.01")),
                ("f-refunded", total("-0.05")),
                ("f-nano", r#""cost_estimate_nano_usd":45000000"#.to_owned()),
                ("f-unclear", r#""cost_estimate_nano_usd":null"#.to_owned()),
            ],
            r#""next_cursor":null,"has_more":false"#,
        ),
        Some(cursor) => panic!("{cursor}"),
    };
    let events: Vec<String> = events
        .iter()
        .filter(|(id, _)| wanted(id) || *id == "somebody-elses")
        .map(|(id, cost)| event(id, cost))
        .collect();
    Reply::json(format!(
        r#"{{"billing_events":[{}],{next}}}"#,
        events.join(",")
    ))
}

/// What the sidecar sees of requests whose cost nobody tells, as of two days ago.
async fn traffic(vendor: &Vendor) -> Vec<UsageRecord> {
    let sidecar = Sidecar::start(vendor.address, provider::builtin("openrouter").unwrap());
    let request = |path: &str, body: &str| {
        format!(
            "POST /up{path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer sk-or-v1-traffic\r\n\
             content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
    };
    let chat = |user: &str| {
        let body = format!(
            r#"{{"model":"openai/gpt-4o-mini","stream":true,"user":"{user}","messages":[]}}"#
        );
        request("/api/v1/chat/completions", &body)
    };
    ask(sidecar.address, chat("cut").as_bytes()).await;
    let speech = request(
        "/api/v1/audio/speech",
        r#"{"model":"openai/gpt-4o-mini-tts","input":"hi","voice":"alloy"}"#,
    );
    assert_eq!(ask(sidecar.address, speech.as_bytes()).await.status, 200);
    let mut client = TcpStream::connect(sidecar.address).await.unwrap();
    client.write_all(chat("leaves").as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("gen-left") {
        assert_ne!(client.read_buf(&mut seen).await.unwrap(), 0);
    }
    drop(client);
    let mut records = sidecar.records(3).await;
    records.sort_by_key(|record| record.provider_request_id.clone());
    for record in &mut records {
        record.provider = "openrouter".into();
    }
    let known: Vec<_> = records
        .iter()
        .map(|it| (it.provider_request_id.as_deref(), it.outcome, it.cost_usd))
        .collect();
    assert_eq!(
        known,
        [
            (Some("gen-cut"), Outcome::UpstreamTruncated, None),
            (Some("gen-left"), Outcome::ClientCancelled, None),
            (Some("gen-speech"), Outcome::Ok, None),
        ]
    );
    // Asked about last, so that what it breaks breaks nothing else.
    for name in [
        "gen-mixed",
        "gen-never",
        "gen-other",
        "no-id-of-theirs",
        "gen-stated",
    ] {
        let mut record = records[0].clone();
        record.provider_request_id = Some(name.to_owned());
        if name == "gen-stated" {
            record.cost_usd = Some(Usd::new(Decimal::ONE));
            record.cost_source = Some(CostSource::Provider);
            record.unpriced_reason = None;
        }
        records.push(record);
    }
    records
}

/// Rows of fal's, priced by estimates.
fn images() -> Vec<UsageRecord> {
    let image = |name: &str| {
        let mut image = record(clock::wall(), 0);
        image.provider = "fal".into();
        image.operation = Operation::Image;
        image.model_requested = Some("fal-ai/flux/dev".to_owned());
        image.model_served = None;
        image.usage = Usage::new();
        image.usage.set(Unit::Image, 1);
        image.cost_usd = Some(Usd::new(Decimal::new(3, 2)));
        image.cost_upstream_usd = None;
        image.cost_source = Some(CostSource::Estimated);
        image.price_version = Some("2026-11-24-46443b8c".to_owned());
        image.unpriced_reason = None;
        image.provider_request_id = Some(name.to_owned());
        image
    };
    let mut images: Vec<_> = [
        "f-charged",
        "f-nano",
        "f-none",
        "f-refunded",
        "f-same",
        "f-unclear",
    ]
    .map(image)
    .into();
    // A queued one is known by its job, and has had no price at all.
    let mut queued = image("gateway-1");
    queued.job_id = Some("f-nano".to_owned());
    images[1] = UsageRecord {
        cost_usd: None,
        cost_source: None,
        price_version: None,
        unpriced_reason: Some(UnpricedReason::ModelUnknown),
        ..queued
    };
    images
}

/// Each on its own millisecond of two days ago, in their order.
fn place(records: &mut [UsageRecord]) {
    let start = clock::wall() - TimeDelta::days(2);
    for (number, record) in (0..).zip(records) {
        record.started_at = start + TimeDelta::milliseconds(number);
        record.id = id(record.started_at, number.cast_unsigned());
    }
}

async fn open(url: &str) -> Store {
    let config = Config {
        url: url.to_owned(),
        ..Config::default()
    };
    Store::open(&config).await.unwrap()
}

/// An exporter that asks every second, and again at once.
fn exporter(vendor: &Vendor, url: &str) -> Home {
    let place = vendor.url();
    let mut home = Home::with(&format!(
        "[schedule]\nreceipts = \"* * * * * *\"\njitter = \"0s\"\n\
         [receipts]\nafter = \"10ms\"\ntries = 3\npause = \"1ms\"\n\
         [providers.openrouter]\nbilling_url = \"{place}\"\n\
         [providers.fal]\nbilling_url = \"{place}\"\n\
         [[accounts]]\nprovider = \"openrouter\"\nname = \"prod\"\napi_key = \"{OPENROUTER_KEY}\"\n\
         [[accounts]]\nprovider = \"fal\"\nname = \"main\"\napi_key = \"canary-fal-ordinary\"\nadmin_key_file = \"fal-admin\"\n\
         [[accounts]]\nprovider = \"anthropic\"\nname = \"none\"\n"
    ));
    home.set("ROLE", "exporter");
    home.set("STORE__URL", url);
    home.set("LOG__LEVEL", "trace");
    std::fs::write(home.path().join("fal-admin"), format!("{FAL_KEY}\n")).unwrap();
    home
}

/// How often each id was asked for.
fn asked_for(vendor: &Vendor) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for asked in vendor.asked() {
        let query = asked.target.split_once('?').map_or("", |it| it.1);
        for pair in query.split('&') {
            if let Some((_, id)) = pair.split_once("id=") {
                *counts.entry(id.to_owned()).or_default() += 1;
            }
        }
    }
    counts
}

async fn everything_is_told_or_given_up(server: &Server) -> String {
    let given_up = [("provider", "openrouter"), ("result", "given_up")];
    let of_fal = [("provider", "fal"), ("result", "given_up")];
    let scrape = server
        .once("the rest is given up", |scrape| {
            // Those that have no id of theirs, that it does not know, tells unclearly or wrongly.
            scrape.sum("taffrail_receipts_total", &given_up) == 4
                && scrape.sum("taffrail_receipts_total", &of_fal) == 2
        })
        .await;
    for (provider, result, rows) in [
        ("openrouter", "settled", 3),
        ("openrouter", "missing", 4),
        ("openrouter", "unclear", 3),
        ("openrouter", "deferred", 0),
        ("fal", "settled", 4),
        ("fal", "missing", 3),
        ("fal", "unclear", 3),
    ] {
        let labels = [("provider", provider), ("result", result)];
        let found = scrape.sum("taffrail_receipts_total", &labels);
        assert_eq!(found, rows, "{provider} {result}: {}", scrape.0);
    }
    let limited = [("provider", "openrouter"), ("result", "rate_limited")];
    assert_eq!(scrape.sum("taffrail_receipt_calls_total", &limited), 1);
    let wrong = [("provider", "openrouter"), ("result", "error")];
    assert_eq!(scrape.sum("taffrail_receipt_calls_total", &wrong), 3);
    let failed = [("task", "receipts"), ("result", "error")];
    assert!(scrape.sum("taffrail_schedule_runs_total", &failed) >= 3);
    // With nobody left to ask about, all is well.
    let succeeded = [("task", "receipts"), ("result", "ok")];
    let rested = server
        .once("a run succeeds", |scrape| {
            scrape.sum("taffrail_schedule_runs_total", &succeeded) > 0
        })
        .await;
    rested.0
}

async fn costs_are_asked_for(url: &str, exporter_url: &str, sums: impl AsyncFn() -> Sums) {
    let times: Mutex<BTreeMap<String, u32>> = Mutex::default();
    let vendor = Vendor::start(move |asked| match asked.target.starts_with("/api/") {
        true => openrouter(asked, &mut times.lock().unwrap()),
        false => fal(asked),
    })
    .await;
    let store = open(url).await;
    let mut records = traffic(&vendor).await;
    records.extend(images());
    place(&mut records);
    let all = u64::try_from(records.len()).unwrap();
    assert_eq!(store.apply(&records).await.unwrap().stored, all);

    let home = exporter(&vendor, exporter_url);
    let server = home.start().await;
    let shown = everything_is_told_or_given_up(&server).await;
    let log = server.stop().await;

    let mut owner = home;
    owner.set("STORE__URL", url);
    owner.set("LOG__LEVEL", "info");
    let rows = owner.logs().await;
    let of = |name: &str| {
        let mut rows = rows.iter();
        let is_it = |row: &&Value| row["provider_request_id"] == name || row["job_id"] == name;
        rows.find(is_it).unwrap()
    };
    for (name, cost, source) in [
        ("gen-cut", Some("0.00042"), Some("provider")),
        ("gen-left", Some("0.0021"), Some("provider")),
        ("gen-speech", Some("0.015"), Some("provider")),
        ("gen-mixed", None, None),
        ("gen-never", None, None),
        ("gen-other", None, None),
        ("gen-stated", Some("1"), Some("provider")),
        ("f-charged", Some("0.06"), Some("provider")),
        ("f-nano", Some("0.045"), Some("provider")),
        ("f-none", Some("0.03"), Some("estimated")),
        ("f-refunded", Some("0"), Some("provider")),
        ("f-same", Some("0.03"), Some("provider")),
        ("f-unclear", Some("0.03"), Some("estimated")),
    ] {
        let row = of(name);
        let (cost, source) = (Value::from(cost), Value::from(source));
        assert_eq!(
            (&row["cost_usd"], &row["cost_source"]),
            (&cost, &source),
            "{row}"
        );
        let is_told = source == "provider" && name != "gen-stated";
        assert_eq!(row["recosted_at"].is_string(), is_told, "{row}");
        assert_eq!(row["unpriced_reason"].is_null(), !cost.is_null(), "{row}");
        let is_listed = source == "estimated";
        assert_eq!(row["price_version"].is_string(), is_listed, "{row}");
    }
    assert_eq!(of("gen-left")["cost_upstream_usd"], "0.002");
    assert_eq!(of("gen-cut")["cost_upstream_usd"], Value::Null);
    let all_rows = LogQuery {
        limit: 100,
        before: None,
        provider: None,
        outcome: None,
    };
    let kept = store.logs(&all_rows).await.unwrap();
    assert_eq!(sums().await, sums_of_rows(&kept));

    let by_provider = UsageQuery {
        since: clock::wall() - TimeDelta::days(4),
        by: vec![Dimension::Provider],
    };
    for row in store.usage(&by_provider).await.unwrap() {
        let upstream = row.totals.cost_upstream_usd.and_then(|sum| sum.rounded(6));
        let expected = (row.group[0].as_deref() == Some("openrouter")).then(|| Decimal::new(2, 3));
        assert_eq!(upstream, expected, "{row:?}");
    }

    // Nobody is asked about what is known, nor more often than is allowed.
    let asked = asked_for(&vendor);
    let times = |id: &str| asked.get(id).copied().unwrap_or_default();
    for (name, count) in [
        ("gen-cut", 3),
        ("gen-left", 1),
        ("gen-never", 3),
        ("gen-other", 3),
        ("gen-stated", 0),
        ("no-id-of-theirs", 0),
        ("f-none", 6),
        ("f-same", 2),
        ("gateway-1", 0),
    ] {
        assert_eq!(times(name), count, "{name}: {asked:?}");
    }

    assert!(log.contains("TRACE"), "not at trace level");
    let mut texts = vec![shown, log];
    texts.extend(rows.iter().map(Value::to_string));
    for (path, bytes) in owner.files() {
        if !path.ends_with("taffrail.toml") && !path.ends_with("fal-admin") {
            texts.push(String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    for text in texts {
        if let Some(at) = text.find("canary") {
            let end = text.floor_char_boundary(at + 200);
            panic!("a key is shown: {}", text.get(at..end).unwrap());
        }
    }
    store.close().await;
}

#[tokio::test]
async fn costs_that_nobody_saw_are_asked_for_in_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/data/taffrail.db", dir.path().display());
    costs_are_asked_for(&url, &url, async || sums_kept(dir.path()).await).await;
}

#[tokio::test]
async fn costs_that_nobody_saw_are_asked_for_in_postgres() {
    let Some(database) = fresh().await else {
        return;
    };
    open(&database.url()).await.close().await;
    // The exporter has no right but its own.
    let login = format!("exporter_{}", clock::new_id().simple());
    let create = format!("create role {login} login in role taffrail_balance");
    database.execute(&create).await;
    let own = database
        .url()
        .replace("//postgres@", &format!("//{login}@"));
    let sums = async || sums_kept_in_postgres(&database).await;
    costs_are_asked_for(&database.url(), &own, sums).await;
    let changes = database
        .query(
            "select count(*)::text, count(old_cost_usd)::text, count(new_price_version)::text, \
             count(distinct id)::text from taffrail.api_cost_changes",
        )
        .await;
    assert_eq!(changes, [["7", "3", "0", "7"]]);
}

/// A store with rows of OpenRouter's that have no cost, each of a key.
async fn store_of(url: &str, rows: &[(&str, &str)]) -> Store {
    let store = open(url).await;
    let mut records: Vec<UsageRecord> = rows
        .iter()
        .map(|(name, key)| {
            let mut row = record(clock::wall(), 0);
            row.provider = "openrouter".into();
            row.cost_usd = None;
            row.cost_source = None;
            row.cost_upstream_usd = None;
            row.price_version = None;
            row.unpriced_reason = Some(UnpricedReason::Incomplete);
            row.provider_request_id = Some((*name).to_owned());
            row.caller.key_fingerprint = Some((*key).into());
            row
        })
        .collect();
    place(&mut records);
    store.apply(&records).await.unwrap();
    store
}

#[tokio::test]
async fn each_account_asks_about_its_own_traffic_and_no_more_than_a_run_may() {
    let vendor = Vendor::start(|asked| {
        let Some(id) = asked.target.strip_prefix("/api/v1/generation?id=") else {
            return refused(
                "404 Not Found",
                r#"{"error":{"message":"Not found","code":404}}"#,
            );
        };
        generation(
            id,
            r#""total_cost":0.5,"usage":0.5,"is_byok":false,"upstream_inference_cost":0"#,
        )
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/data/taffrail.db", dir.path().display());
    let (one, other) = ("00000000000000aa", "00000000000000bb");
    let rows = [
        ("gen-a1", one),
        ("gen-a2", one),
        ("gen-a3", one),
        ("gen-b1", other),
        ("gen-nobodys", "00000000000000cc"),
    ];
    let store = store_of(&url, &rows).await;
    let account = |name: &str, key: &str| {
        format!(
            "[[accounts]]\nprovider = \"openrouter\"\nname = \"{name}\"\napi_key = \"key-{name}\"\nkey_fingerprints = \"{key}\"\n"
        )
    };
    let mut home = Home::with(&format!(
        "[schedule]\nreceipts = \"* * * * * *\"\njitter = \"0s\"\n\
         [receipts]\nafter = \"10ms\"\ncalls_per_run = 2\npause = \"1ms\"\n\
         [providers.openrouter]\nbilling_url = \"{}\"\n{}{}",
        vendor.url(),
        account("a", one),
        account("b", other)
    ));
    home.set("ROLE", "exporter");
    home.set("STORE__URL", &url);
    let server = home.start().await;
    let settled = |account| [("account", account), ("result", "settled")];
    let scrape = server
        .once("all are settled", |scrape| {
            scrape.sum("taffrail_receipts_total", &settled("a")) == 3
                && scrape.sum("taffrail_receipts_total", &settled("b")) == 1
        })
        .await;
    let deferred = [("result", "deferred")];
    assert_eq!(
        scrape.sum("taffrail_receipts_total", &deferred),
        1,
        "{}",
        scrape.0
    );
    server.stop().await;
    for asked in vendor.asked() {
        if let Some(id) = asked.target.strip_prefix("/api/v1/generation?id=gen-") {
            let key = asked.header("authorization").unwrap();
            assert_eq!(key, format!("Bearer key-{}", &id[..1]), "{id}");
        }
    }
    assert_eq!(asked_for(&vendor).len(), 4);
    store.close().await;
}

#[tokio::test]
async fn receipts_without_end_and_a_wrong_key_change_nothing() {
    let vendor = Vendor::start(|asked| {
        let cursor = asked.target.split("&cursor=").nth(1).unwrap_or("0");
        match asked.target.starts_with("/v1/models/billing-events?") {
            // A part of the sum is no cost.
            true => Reply::json(format!(
                r#"{{"billing_events":[{{"request_id":"f-1","cost_total":0.01}}],"next_cursor":"{}","has_more":true}}"#,
                cursor.parse::<u32>().unwrap() + 1
            )),
            false => refused("401 Unauthorized", r#"{"error":{"message":"No auth credentials found","code":401}}"#),
        }
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/data/taffrail.db", dir.path().display());
    let store = store_of(&url, &[("gen-1", "00000000000000aa")]).await;
    let mut image = images().remove(0);
    image.provider_request_id = Some("f-1".to_owned());
    let mut images = [image];
    place(&mut images);
    store.apply(&images).await.unwrap();
    let mut home = exporter(&vendor, &url);
    home.set("SCHEDULE__RECEIPTS", "0 0 0 1 1 *");
    let server = home.start().await;
    let scrape = server
        .once("both were asked", |scrape| {
            let failed = [("task", "receipts"), ("result", "error")];
            scrape.sum("taffrail_schedule_runs_total", &failed) == 1
        })
        .await;
    for (provider, result) in [("openrouter", "auth"), ("fal", "error")] {
        let labels = [("provider", provider), ("result", result)];
        assert_eq!(
            scrape.sum("taffrail_receipt_calls_total", &labels),
            1,
            "{}",
            scrape.0
        );
    }
    assert_eq!(scrape.total("taffrail_receipts_total").to_string(), "0");
    let log = server.stop().await;
    assert!(
        log.contains("its pages have no end") && log.contains("wanted is a key of the account")
    );
    let asked = vendor.asked();
    let pages = asked
        .iter()
        .filter(|it| it.target.starts_with("/v1/models/billing-events?"));
    assert_eq!(pages.count(), 20);
    home.set("LOG__LEVEL", "info");
    let costs: Vec<Value> = home
        .logs()
        .await
        .iter()
        .map(|row| row["cost_usd"].clone())
        .collect();
    assert_eq!(costs.len(), 2);
    assert!(
        costs.contains(&Value::Null) && costs.contains(&"0.03".into()),
        "{costs:?}"
    );
    store.close().await;
}
