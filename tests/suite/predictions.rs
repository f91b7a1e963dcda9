//! Replicate's predictions through the proxy: one row each, whoever asks and however often.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use rust_decimal::Decimal;
use serde_json::Value;
use taffrail::fault::Outcome;
use taffrail::price::PriceBook;
use taffrail::provider;
use taffrail::record::{Fidelity, Operation, UsageRecord};
use taffrail::usage::Unit;

use crate::chat_jobs::exchange;
use crate::golden::fixtures;
use crate::support::binary::{Home, Server};
use crate::support::http::{Seen, ask};
use crate::support::sidecar::{Setup, Sidecar, route};
use crate::support::vendor::{Reply, Vendor};

const MODEL: &str = "meta/meta-llama-3-8b-instruct";
const JOB: &str = "gm3qorzdhgbfurvjtvhg6dckhu";
const AUTHORIZATION: &str = "authorization: Bearer r8_canary0123456789";

/// What a fixture's response has for a body.
fn body(case: &str) -> String {
    let fixture = fixtures("replicate")
        .into_iter()
        .find(|fixture| fixture.name() == case)
        .unwrap();
    String::from_utf8(fixture.response.body).unwrap()
}

/// A sidecar before a vendor who answers with these, one after the other.
async fn sidecar(answers: Vec<String>) -> (Vendor, Sidecar) {
    let next = AtomicUsize::new(0);
    let vendor = Vendor::start(move |_| {
        let answer = &answers[next.fetch_add(1, Ordering::Relaxed)];
        Reply::json(answer.clone())
    })
    .await;
    let replicate = provider::builtin("replicate").unwrap();
    let routes = vec![route("replicate", replicate, &vendor.url())];
    let sidecar = Sidecar::start_setup(Setup::new(routes));
    (vendor, sidecar)
}

/// Creates a prediction through the proxy at that address, with a header line more.
async fn create(proxy: SocketAddr, header: &str) -> Seen {
    let body = r#"{"input":{"prompt":"Say hi."}}"#;
    let request = format!(
        "POST /replicate/v1/models/{MODEL}/predictions HTTP/1.1\r\nhost: a\r\n{header}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let seen = ask(proxy, request.as_bytes()).await;
    assert_eq!(seen.status, 200);
    seen
}

async fn poll(proxy: SocketAddr) {
    let request = format!("GET /replicate/v1/predictions/{JOB} HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(ask(proxy, request.as_bytes()).await.status, 200);
}

/// 39 × 0.05 + 149 × 0.25 dollars for a million.
fn assert_settled(record: &UsageRecord) {
    assert_eq!(record.operation, Operation::Prediction);
    assert_eq!(record.outcome, Outcome::Ok);
    assert_eq!(record.fidelity, Fidelity::Complete);
    assert_eq!(record.model(), Some(MODEL));
    assert_eq!(record.job_id.as_deref(), Some(JOB));
    assert_eq!(record.queue_us, Some(772_000));
    assert_eq!(record.run_us, Some(2_100_000));
    assert_eq!(record.usage.tokens(Unit::Input), Some(39));
    assert_eq!(record.usage.tokens(Unit::Output), Some(149));
    let cost = record.cost_usd.map(|cost| cost.to_string());
    assert_eq!(cost.as_deref(), Some("0.0000392"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prediction_makes_one_row_however_often_it_is_asked_for() {
    let (_vendor, sidecar) = sidecar(vec![
        body("create-model"),
        body("get-starting"),
        body("get-processing"),
        body("get-succeeded-tokens"),
        body("get-succeeded-tokens"),
        body("create-wait-succeeded"),
    ])
    .await;
    create(sidecar.address, AUTHORIZATION).await;
    for _ in 0..4 {
        poll(sidecar.address).await;
    }
    // Held until its end, a create makes its row at once, and no more rows are before it.
    create(sidecar.address, AUTHORIZATION).await;
    let records = sidecar.records(2).await;
    for record in &records {
        assert_settled(record);
    }
    assert_eq!(records[0].polls, Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_name_of_its_own_costs_what_was_asked_for() {
    let internal = |case: &str| {
        let name = "replicate-internal/llama-3-8b-instruct-int8-triton";
        body(case).replace(MODEL, name)
    };
    let (_vendor, sidecar) = sidecar(vec![
        body("create-internal-model"),
        internal("get-succeeded-tokens"),
    ])
    .await;
    create(sidecar.address, AUTHORIZATION).await;
    poll(sidecar.address).await;
    let records = sidecar.records(1).await;
    assert_settled(&records[0]);
    assert_eq!(records[0].model_served, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_that_come_after_the_end_are_waited_for() {
    let (_vendor, sidecar) = sidecar(vec![
        body("create-wait-succeeded-without-metrics"),
        body("get-succeeded-tokens"),
    ])
    .await;
    create(sidecar.address, AUTHORIZATION).await;
    poll(sidecar.address).await;
    let records = sidecar.records(1).await;
    assert_settled(&records[0]);
}

/// Creates a prediction through the real binary; returns what it was told and how the vendor was asked.
async fn created_with(setting: Option<(&str, &str)>) -> (Value, Value, Vendor, (Home, Server)) {
    let told: Value = serde_json::from_str(&body("create-model")).unwrap();
    let answer = body("create-model");
    let vendor = Vendor::start(move |_| Reply::json(answer.clone())).await;
    let mut home = Home::with(&format!(
        "[providers.replicate]\nupstream = \"{}\"\n",
        vendor.url()
    ));
    if let Some((key, value)) = setting {
        home.set(key, value);
    }
    let server = home.start().await;
    let seen = create(server.proxy, "accept-encoding: gzip").await;
    let seen = serde_json::from_slice(&seen.body).unwrap();
    (told, seen, vendor, (home, server))
}

const REWRITES: &str = "taffrail_rewrites_total";

#[tokio::test]
async fn the_urls_of_a_job_lead_back_through_the_proxy() {
    let (mut told, seen, vendor, (_home, server)) = created_with(None).await;
    let own = format!("http://{}", server.proxy);
    let path = format!("/v1/predictions/{JOB}");
    assert_eq!(seen["urls"]["get"], format!("{own}/replicate{path}"));
    assert_eq!(
        seen["urls"]["cancel"],
        format!("{own}/replicate{path}/cancel")
    );
    let stream = told["urls"]["stream"].as_str().unwrap();
    let stream = stream.replace(
        "https://stream.replicate.com",
        &format!("{own}/replicate-stream"),
    );
    assert_eq!(seen["urls"]["stream"], stream);
    // The page for people leads where it did, and nothing else is changed.
    for url in ["get", "cancel", "stream"] {
        told["urls"][url] = seen["urls"][url].clone();
    }
    assert_eq!(seen, told);
    let asked = &vendor.asked()[0];
    assert_eq!(asked.header("accept-encoding"), Some("identity"));
    let kind = [("provider", "replicate"), ("kind", "job_urls")];
    assert_eq!(server.scrape().await.sum(REWRITES, &kind), 1);
}

#[tokio::test]
async fn the_urls_of_a_job_lead_to_where_applications_reach_the_proxy() {
    let setting = ("PROXY__PUBLIC_URL", "https://ai.example.com/taffrail/");
    let (_, seen, ..) = created_with(Some(setting)).await;
    assert_eq!(
        seen["urls"]["get"],
        format!("https://ai.example.com/taffrail/replicate/v1/predictions/{JOB}")
    );
}

#[tokio::test]
async fn the_urls_of_a_job_stay_where_that_is_wanted() {
    let (told, seen, vendor, (_home, server)) =
        created_with(Some(("METER__REWRITE_JOB_URLS", "false"))).await;
    assert_eq!(seen, told);
    assert_eq!(vendor.asked()[0].header("accept-encoding"), Some("gzip"));
    assert_eq!(
        server.scrape().await.sum(REWRITES, &[("kind", "job_urls")]),
        0
    );
}

/// A binary before a vendor who answers a create with `create`, and everything else with `then`.
async fn binary(create: &str, then: &str, settings: &[(&str, &str)]) -> (Vendor, Home) {
    let (create, then) = (body(create), body(then));
    let vendor = Vendor::start(move |asked| {
        let answer = if asked.method == "POST" {
            &create
        } else {
            &then
        };
        Reply::json(answer.clone())
    })
    .await;
    let mut home = Home::with(&format!(
        "[providers.replicate]\nupstream = \"{}\"\n",
        vendor.url()
    ));
    for (key, value) in settings {
        home.set(key, *value);
    }
    (vendor, home)
}

#[tokio::test]
async fn a_job_that_nobody_asks_for_is_asked_for_with_the_key_of_its_submit() {
    let settings = [("JOBS__FOLLOWUP_AFTER", "1s"), ("LOG__LEVEL", "trace")];
    let (vendor, home) = binary("create-model", "get-succeeded-tokens", &settings).await;
    let server = home.start().await;
    create(server.proxy, AUTHORIZATION).await;
    server.stored(1).await;
    let log = server.stop().await;
    let rows = home.logs().await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["outcome"], "ok");
    assert_eq!(rows[0]["cost_usd"], "0.0000392");
    assert_eq!(rows[0]["polls"], 1);
    let asked = vendor.asked();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[1].target, format!("/v1/predictions/{JOB}"));
    assert_eq!(
        asked[1].header("authorization"),
        AUTHORIZATION.split_once(": ").map(|(_, key)| key)
    );
    // The key was in memory alone.
    assert!(!log.contains("canary"), "{log}");
    for (path, bytes) in home.files() {
        let holds = memchr::memmem::find(&bytes, b"canary").is_some();
        assert!(!holds, "{}", path.display());
    }
}

/// A job's row, where that is the price list and the job ends as that fixture says.
async fn priced_by(overlay: &str, end: &str) -> Value {
    let (_vendor, mut home) = binary("create-model", end, &[]).await;
    std::fs::write(home.path().join("prices.toml"), overlay).unwrap();
    home.set("PRICES__OVERLAY_FILE", "prices.toml");
    let server = home.start().await;
    create(server.proxy, AUTHORIZATION).await;
    poll(server.proxy).await;
    server.stored(1).await;
    server.stop().await;
    home.logs().await.remove(0)
}

#[tokio::test]
async fn a_job_is_charged_by_its_time_and_the_hardware_that_the_price_list_says() {
    let time_only = "get-succeeded-time-only";
    let unlisted = priced_by("", time_only).await;
    assert_eq!(unlisted["cost_usd"], Value::Null);
    assert_eq!(unlisted["unpriced_reason"], "model_unknown");
    let model = unlisted["model_served"].as_str().unwrap();
    let listed = priced_by(
        &format!("[models.replicate]\n\"{model}\" = \"gpu-l40s\"\n"),
        time_only,
    )
    .await;
    let rate: Decimal = "0.000975".parse().unwrap();
    let cost = rate * Decimal::new(4_484_541, 6);
    assert_eq!(listed["cost_usd"], cost.normalize().to_string());
    assert_eq!(listed["cost_source"], "catalog");
    // The rate is the catalogue's; which hardware it is, the file said.
    assert_eq!(listed["price_version"], PriceBook::embedded().version());
    // A deployment has hardware of its own, whatever it serves.
    let both = "[models.replicate]\n\
        \"stability-ai/sdxl\" = \"gpu-l40s\"\n\"acme/my-app-image-generator\" = \"gpu-t4\"\n";
    let deployed = priced_by(both, "get-deployment").await;
    assert_eq!(deployed["cost_usd"], "0.0004725");
}

#[tokio::test]
async fn a_training_that_nobody_asks_for_makes_a_row_at_a_price_of_its_own() {
    let (create, created) = exchange("replicate", "training-create");
    let (_, ended) = exchange("replicate", "training-get");
    let vendor = Vendor::start(move |asked| match &*asked.method {
        "POST" => created.clone(),
        _ => ended.clone(),
    })
    .await;
    let mut home = Home::with(&format!(
        "[providers.replicate]\nupstream = \"{}\"\n",
        vendor.url()
    ));
    let overlay = "[models.replicate.\"ostris/flux-dev-lora-trainer\"]\ncompute_second = 9\n\
        when = [{ operation = \"training\", compute_second = 0.001525 }]\n";
    std::fs::write(home.path().join("prices.toml"), overlay).unwrap();
    home.set("PRICES__OVERLAY_FILE", "prices.toml");
    home.set("JOBS__FOLLOWUP_AFTER", "1s");
    let server = home.start().await;
    assert_eq!(ask(server.proxy, &create).await.status, 201);
    server.stored(1).await;
    server.stop().await;
    let rows = home.logs().await;
    let [row] = rows.as_slice() else {
        panic!("{rows:#?}")
    };
    assert_eq!(row["operation"], "training");
    assert_eq!(row["outcome"], "ok");
    assert_eq!(row["model_requested"], "ostris/flux-dev-lora-trainer");
    assert_eq!(row["run_us"], 445_703_000);
    assert_eq!(row["cost_usd"], "0.679697075");
    let follow_up = &vendor.asked()[1].target;
    assert_eq!(follow_up, "/v1/trainings/zz4ibbonubfz7carwiefibzgga");
}

#[tokio::test]
async fn a_video_costs_what_its_mode_and_length_do() {
    let by = |mode: &str| {
        format!(
            "[models.replicate.\"kwaivgi/kling-v2.1\"]\nwhen = [\
             {{ mode = \"{mode}\", audio = false, seconds = 5, billable_unit = 0.45 }}, \
             {{ mode = \"{mode}\", audio = false, seconds = 10, billable_unit = 0.9 }}]\n"
        )
    };
    let row = priced_by(&by("pro"), "get-succeeded-video").await;
    assert_eq!(row["cost_usd"], "0.45");
    assert_eq!(row["cost_source"], "catalog");
    assert!(
        row["price_version"]
            .as_str()
            .unwrap()
            .starts_with("overlay-")
    );
    let other = priced_by(&by("standard"), "get-succeeded-video").await;
    assert_eq!(other["unpriced_reason"], "price_missing");
    // Nothing tells the resolution of that video.
    let unknown = "[models.replicate.\"kwaivgi/kling-v2.1\"]\n\
        when = [{ resolution = \"720p\", video_second = 0.05 }]\n";
    let row = priced_by(unknown, "get-succeeded-video").await;
    assert_eq!(row["cost_usd"], Value::Null);
    assert_eq!(row["unpriced_reason"], "qualifier_unknown");
}

#[tokio::test]
async fn a_job_survives_the_death_of_the_process() {
    let (_vendor, home) = binary("create-model", "get-succeeded-tokens", &[]).await;
    let server = home.start().await;
    create(server.proxy, AUTHORIZATION).await;
    server.process.kill().await;
    let server = home.start().await;
    poll(server.proxy).await;
    poll(server.proxy).await;
    server.stored(1).await;
    server.stop().await;
    let rows = home.logs().await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["outcome"], "ok");
    assert_eq!(rows[0]["model_requested"], MODEL);
    assert_eq!(rows[0]["cost_usd"], "0.0000392");
    // How often it was asked for before is not known.
    assert_eq!(rows[0]["polls"], Value::Null);
}

#[tokio::test]
async fn a_job_whose_end_is_never_seen_is_unresolved_at_the_deadline() {
    let settings = [
        ("JOBS__FOLLOWUP_AFTER", "1s"),
        ("JOBS__JOIN_GRACE", "1s"),
        ("JOBS__DEADLINE", "3s"),
    ];
    let (_vendor, home) = binary("create-model", "get-processing", &settings).await;
    let server = home.start().await;
    create(server.proxy, AUTHORIZATION).await;
    server.stored(1).await;
    server.stop().await;
    let rows = home.logs().await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["outcome"], "unresolved");
    assert_eq!(rows[0]["cost_usd"], Value::Null);
    assert_eq!(rows[0]["unpriced_reason"], "incomplete");
    assert_eq!(rows[0]["job_id"], JOB);
}
