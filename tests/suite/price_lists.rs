//! Prices that change: what providers' lists say, how they come into force under load, and how the
//! costs of rows are computed anew, on both stores.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use chrono::TimeDelta;
use proptest::prelude::*;
use rust_decimal::Decimal;
use serde_json::{Value, json};
use taffrail::money::{Usd, parse_decimal};
use taffrail::price::{PriceApi, PriceList, Reading, Unreadable, import, price_api};
use taffrail::record::CostSource;
use taffrail::store::{Config, CostChange, NewPriceVersion, Store, StoreError};
use taffrail::usage::{Unit, Usage};

use crate::postgres::{fresh, sums_kept as sums_kept_in_postgres};
use crate::store::{Sums, at, record, sums_kept, sums_of_rows};
use crate::support::binary::{Home, Server, eventually};
use crate::support::http::ask;
use crate::support::vendor::{Reply, Vendor};

fn fixture(provider: &str, name: &str) -> Vec<u8> {
    let root = env!("CARGO_MANIFEST_DIR");
    std::fs::read(format!(
        "{root}/tests/fixtures/prices/{provider}/{name}.json"
    ))
    .unwrap()
}

fn api(provider: &str, models: &[&str]) -> Box<dyn PriceApi> {
    let models: Vec<String> = models.iter().map(|&model| model.to_owned()).collect();
    price_api(provider, &PriceList::default(), &models).unwrap()
}

fn read(provider: &str, name: &str) -> Result<Reading, Unreadable> {
    let mut api = api(provider, &["fal-ai/flux/dev"]);
    api.take(&fixture(provider, name))?;
    assert_eq!(api.ask(), None);
    api.finish()
}

fn entries(reading: &Reading) -> BTreeMap<String, Value> {
    let names = reading.list.names();
    names
        .map(|name| {
            let entry = reading.list.entry(name).unwrap();
            (name.model.clone(), serde_json::from_str(entry).unwrap())
        })
        .collect()
}

fn reasons(reading: &Reading) -> BTreeMap<&str, &str> {
    let rejected = reading.rejected.iter();
    rejected
        .map(|it| (it.model.model.as_str(), it.reason.as_str()))
        .collect()
}

#[test]
fn openrouters_list_is_read_as_documented() {
    let ask = api("openrouter", &[]).ask().unwrap();
    assert_eq!(
        (ask.host, &*ask.path),
        ("https://openrouter.ai", "/api/v1/models")
    );
    let reading = read("openrouter", "good").unwrap();
    let expected = json!({
        "acme/plain": {"input": "2.5", "output": "10", "cache_read": "1.25"},
        "anthropic/claude-next": {
            "input": "3", "output": "15", "cache_read": "0.3", "cache_write_5m": "3.75",
            "cache_write_1h": "6", "search": "0.01",
            "above": [{"tokens": 200_000, "input": "6", "output": "22.5"}],
        },
        "acme/by-night": [
            {"input": "1", "output": "2"},
            {"input": "0.5", "output": "2", "hours": "16:30-00:30"},
        ],
        "acme/numbers": {"input": "0.15", "output": "0.6"},
        "acme/free:free": {"input": "0", "output": "0"},
    });
    assert_eq!(json!(entries(&reading)), expected);
    assert_eq!(
        reasons(&reading),
        BTreeMap::from([
            ("openrouter/auto", "prompt is -1: it varies"),
            ("acme/negative", "prompt is negative"),
            ("acme/absurd", "prompt is too dear to be a price"),
            ("acme/words", "prompt is not a number"),
            ("acme/discounted", "discounted, and from what is not said"),
            ("acme/twice", "listed twice, with different prices"),
            ("acme/none", "no object `pricing`"),
        ])
    );
    assert_eq!(reading.passed_over.get("pricing.image_output"), Some(&1));
    assert_eq!(read("openrouter", "empty"), Err(Unreadable::Empty));
    for name in ["malformed", "rate-limited"] {
        let read = read("openrouter", name);
        assert!(matches!(read, Err(Unreadable::Malformed(_))), "{name}");
    }
}

#[test]
fn fals_list_is_read_as_documented() {
    let reading = read("fal", "good").unwrap();
    let expected = json!({
        "fal-ai/flux/dev": {"billable_unit": "0.025", "billable_unit_is": "megapixel"},
        "fal-ai/kling-video/v2.1/pro/text-to-video": {"billable_unit": "0.09"},
        "fal-ai/text": {"billable_unit": "0.5"},
    });
    assert_eq!(json!(entries(&reading)), expected);
    assert_eq!(
        reasons(&reading),
        BTreeMap::from([
            ("fal-ai/euro", "in EUR, not in US dollars"),
            ("fal-ai/negative", "unit_price is negative"),
        ])
    );
    assert_eq!(read("fal", "empty"), Err(Unreadable::Empty));
    for name in ["malformed", "rate-limited"] {
        assert!(
            matches!(read("fal", name), Err(Unreadable::Malformed(_))),
            "{name}"
        );
    }
}

#[test]
fn fal_is_asked_for_fifty_endpoints_at_a_time_and_for_halves_of_what_it_refuses() {
    let names: Vec<String> = (0..51).map(|number| format!("a/m{number:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut fal = api("fal", &names);
    let asked = |fal: &dyn PriceApi| fal.ask().unwrap().path.matches("endpoint_id=").count();
    assert_eq!(asked(&*fal), 50);
    assert!(fal.is_refused());
    assert_eq!(asked(&*fal), 25);
    fal.take(&fixture("fal", "good")).unwrap();
    assert_eq!(asked(&*fal), 25);
    fal.take(&fixture("fal", "good")).unwrap();
    assert_eq!(asked(&*fal), 1);
    // One that is unknown is left out; there is nothing after it.
    assert!(fal.is_refused());
    assert_eq!(fal.ask(), None);
    let reading = fal.finish().unwrap();
    assert!(reasons(&reading)["a/m50"].contains("knows no such endpoint"));
    // What could change the question is not asked for.
    assert_eq!(
        api("fal", &["a/b&currency=EUR", "no-slash", "a/ b"]).ask(),
        None
    );
}

#[test]
fn litellms_file_is_taken_by_what_its_keys_say() {
    let file = json!({
        "sample_spec": {"litellm_provider": "openai", "input_cost_per_token": 1},
        "gpt-x": {
            "litellm_provider": "openai", "mode": "chat",
            "input_cost_per_token": 2.5e-6, "output_cost_per_token": 1e-5,
            "input_cost_per_token_batches": 1.25e-6,
            "input_cost_per_token_above_272k_tokens": 5e-6,
            "cache_read_input_token_cost": 1.25e-6,
            "cache_creation_input_token_cost": 0.0,
            "code_interpreter_cost_per_session": 0.03,
        },
        "claude-x": {
            "litellm_provider": "anthropic", "mode": "chat",
            "input_cost_per_token": 3e-6, "output_cost_per_token": 1.5e-5,
            "cache_creation_input_token_cost": 3.75e-6,
            "cache_creation_input_token_cost_above_1hr": 6e-6,
        },
        "tiered": {"litellm_provider": "openai", "input_cost_per_token": 1e-6, "tiered_pricing": []},
        "1024-x-1024/painter": {"litellm_provider": "openai", "input_cost_per_pixel": 1e-8},
        "elsewhere": {"litellm_provider": "nobody-knows", "input_cost_per_token": 1e-6},
    });
    let imported = import(&file.to_string()).unwrap();
    let expected = json!({
        "gpt-x": {
            "input": "2.5", "output": "10", "cache_read": "1.25",
            "tiers": {"batch": {"input": "1.25"}},
            "above": [{"tokens": 272_000, "input": "5"}],
        },
        "claude-x": {"input": "3", "output": "15", "cache_write_5m": "3.75", "cache_write_1h": "6"},
    });
    assert_eq!(json!(entries(&imported.reading)), expected);
    assert_eq!((imported.source, imported.foreign_models), ("litellm", 1));
    assert!(reasons(&imported.reading)["tiered"].contains("tiered_pricing"));
    let passed_over = &imported.reading.passed_over;
    assert_eq!(
        passed_over.get("code_interpreter_cost_per_session"),
        Some(&1)
    );
}

#[test]
fn genai_prices_file_is_taken_under_names_that_it_spells_out() {
    let file = json!([{
        "id": "anthropic", "name": "Anthropic", "api_pattern": "x",
        "models": [
            {
                "id": "claude-x",
                "match": {"or": [{"equals": "claude-x-20260101"}, {"starts_with": "claude-x"}]},
                "prices": [
                    {"prices": {"input_mtok": 4, "output_mtok": 20}},
                    {"constraint": {"start_date": "2026-10-01"}, "prices": {
                        "input_mtok": {"base": 3, "tiers": [{"start": 200_000, "price": 6}]},
                        "output_mtok": 15, "cache_write_mtok": 3.75,
                        "requests_kcount": 5, "storage_searches_kcount": 1,
                    }},
                ],
            },
        ],
    }, {"id": "nobody-knows", "models": [{"id": "m", "match": {"equals": "m"}, "prices": {}}]}]);
    let imported = import(&file.to_string()).unwrap();
    let entry = json!([
        {"input": "4", "output": "20"},
        {
            "from": "2026-10-01", "input": "3", "output": "15", "cache_write_5m": "3.75",
            "request": "0.005", "above": [{"tokens": 200_000, "input": "6"}],
        },
    ]);
    let expected = json!({"claude-x": entry, "claude-x-20260101": entry});
    assert_eq!(json!(entries(&imported.reading)), expected);
    assert_eq!(
        (imported.source, imported.foreign_models),
        ("genai-prices", 1)
    );
    assert!(
        imported
            .reading
            .passed_over
            .contains_key("storage_searches_kcount")
    );
    for no_list in [
        "[]",
        "{}",
        "{\"a\":1}",
        "[1]",
        "7",
        "<html>",
        "[{\"models\":[]}]",
    ] {
        assert!(import(no_list).is_err(), "{no_list}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for provider in ["openrouter", "fal"] {
            let mut api = api(provider, &["a/b"]);
            let _taken = api.take(&bytes).is_ok();
            let _read = api.finish().is_ok();
        }
        let _imported = import(&String::from_utf8_lossy(&bytes)).is_ok();
    }
}

const MODEL: &str = "acme/plain";

/// OpenRouter with one model of interest and others, at a price that can be changed.
struct OpenRouter {
    vendor: Vendor,
    /// The price of a prompt's million tokens.
    price: Arc<Mutex<String>>,
    is_limiting: Arc<AtomicBool>,
}

impl OpenRouter {
    async fn start() -> OpenRouter {
        let price = Arc::new(Mutex::new("2".to_owned()));
        let is_limiting = Arc::new(AtomicBool::new(false));
        let (asked_price, limits) = (price.clone(), is_limiting.clone());
        let number = AtomicU64::new(0);
        let vendor = Vendor::start(move |asked| {
            if asked.target != "/api/v1/models" {
                let id = number.fetch_add(1, Ordering::Relaxed);
                let body = json!({
                    "id": format!("gen-{id}"), "model": MODEL, "object": "chat.completion",
                    "provider": "Acme",
                    "choices": [{"index": 0, "finish_reason": "stop",
                        "message": {"role": "assistant", "content": "hi"}}],
                    "usage": {"prompt_tokens": 1_000_000, "completion_tokens": 0,
                        "total_tokens": 1_000_000},
                });
                return Reply::json(body.to_string());
            }
            if limits.load(Ordering::Relaxed) {
                let mut reply = Reply::json(fixture("openrouter", "rate-limited"));
                reply.status = "429 Too Many Requests".to_owned();
                return reply;
            }
            let price = parse_decimal(&asked_price.lock().unwrap()).unwrap();
            let per_token = (price / Decimal::from(1_000_000)).normalize().to_string();
            let body = json!({"data": [
                {"id": MODEL, "pricing": {"prompt": per_token, "completion": "0.00001"}},
                {"id": "acme/other", "pricing": {"prompt": "0.000001", "completion": "0.000001"}},
            ]});
            Reply::json(body.to_string())
        })
        .await;
        OpenRouter {
            vendor,
            price,
            is_limiting,
        }
    }

    fn set_price(&self, price: &str) {
        price.clone_into(&mut self.price.lock().unwrap());
    }

    /// A home that asks for prices every second.
    fn home(&self, store: Option<&str>) -> Home {
        let mut home = Home::with(&format!(
            "[providers.openrouter]\nupstream = \"{}\"\n\
             [[accounts]]\nprovider = \"openrouter\"\nname = \"prod\"\napi_key = \"sk-or-canary\"\n\
             [schedule]\nprices = \"* * * * * *\"\njitter = \"1ms\"\n\
             [prices]\npoll_interval = \"200ms\"\n",
            self.vendor.url()
        ));
        if let Some(url) = store {
            home.set("STORE__URL", url);
        }
        home
    }
}

async fn chat(server: &Server) {
    let body = format!(r#"{{"model":"{MODEL}","messages":[]}}"#);
    let request = format!(
        "POST /openrouter/api/v1/chat/completions HTTP/1.1\r\nhost: x\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(ask(server.proxy, request.as_bytes()).await.status, 200);
}

fn refused(status: &str, body: &str) -> Reply {
    Reply {
        status: status.to_owned(),
        ..Reply::json(body)
    }
}

/// How many refreshes of OpenRouter's prices ended like this.
async fn refreshes(server: &Server, result: &str) -> u64 {
    let labels = [
        ("provider", "openrouter"),
        ("source", "api"),
        ("result", result),
    ];
    let scrape = server.scrape().await;
    scrape.sum("taffrail_price_refreshes_total", &labels)
}

fn costs(rows: &[Value]) -> Vec<(String, String)> {
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    rows.iter()
        .map(|row| (text(row, "cost_usd"), text(row, "price_version")))
        .collect()
}

async fn prices_change_under_load(store: Option<&str>) {
    let openrouter = OpenRouter::start().await;
    let home = openrouter.home(store);
    let server = home.start().await;
    // Until there is a price the model is unknown.
    chat(&server).await;
    eventually("the list is read", async || {
        refreshes(&server, "ok").await >= 1
    })
    .await;
    for _ in 0..5 {
        chat(&server).await;
    }
    openrouter.set_price("3");
    let is_dearer = async || {
        chat(&server).await;
        let rows = home.logs().await;
        costs(&rows).iter().any(|(cost, _)| cost == "3")
    };
    eventually("the new price is in force", is_dearer).await;
    for _ in 0..5 {
        chat(&server).await;
    }
    let is_stored = async || {
        let rows = home.logs().await;
        costs(&rows).iter().take(5).all(|(cost, _)| cost == "3")
    };
    eventually("the rows are stored", is_stored).await;
    let mut rows = home.logs().await;
    rows.reverse();
    let listed = costs(&rows);
    let priced: Vec<_> = listed.iter().filter(|(cost, _)| !cost.is_empty()).collect();
    let changed_at = priced.iter().position(|(cost, _)| cost == "3").unwrap();
    // Each kind of row has one version, and the first kind ends where the second begins.
    let (before, after) = priced.split_at(changed_at);
    assert!(
        before.iter().all(|it| *it == before[0]) && before[0].0 == "2",
        "{before:?}"
    );
    assert!(after.iter().all(|it| *it == after[0]), "{after:?}");
    assert_ne!(before[0].1, after[0].1);
    assert!(after[0].1.starts_with("openrouter-"), "{after:?}");

    // What looks wrong is held back and shown, until somebody accepts it.
    openrouter.set_price("300");
    eventually("the price is held back", async || {
        let scrape = server.scrape().await;
        scrape.sum("taffrail_price_held_back_concerns", &[]) == 1
    })
    .await;
    let diff = home.run(&["prices", "diff"]).await;
    assert!(diff.stdout.contains("input 2 -> 3"), "{}", diff.stdout);
    assert!(
        diff.stdout
            .contains("looks wrong: openrouter acme/plain: input from 3 to 300"),
        "{}",
        diff.stdout
    );
    let refresh = ["prices", "refresh", "--provider", "openrouter"];
    let refused = home.run(&refresh).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
    let accepted = home.run(&[&refresh[..], &["--accept"]].concat()).await;
    assert_eq!(
        accepted.code,
        Some(0),
        "{} {}",
        accepted.stdout,
        accepted.stderr
    );
    eventually("the accepted price is in force", async || {
        chat(&server).await;
        costs(&home.logs().await)
            .iter()
            .any(|(cost, _)| cost == "300")
    })
    .await;

    // A fault leaves every price as it is, and is counted by its class.
    openrouter.is_limiting.store(true, Ordering::Relaxed);
    eventually("the limit is counted", async || {
        refreshes(&server, "rate_limited").await >= 1
    })
    .await;
    let log = server.stop().await;
    assert!(!log.contains("sk-or-canary"));
}

#[tokio::test]
async fn prices_change_under_load_with_the_embedded_store() {
    prices_change_under_load(None).await;
}

#[tokio::test]
async fn prices_change_under_load_with_postgres() {
    let Some(database) = fresh().await else {
        return;
    };
    prices_change_under_load(Some(&database.url())).await;
}

#[tokio::test]
async fn fals_prices_come_by_the_schedule_though_fal_limits_the_calls() {
    let limits = AtomicU64::new(2);
    let vendor = Vendor::start(move |asked| {
        if asked.target.starts_with("/v1/models/pricing?") {
            if asked.header("authorization") != Some("Key canary-fal") {
                return refused("401 Unauthorized", r#"{"error":{"type":"authorization_error"}}"#);
            }
            let is_limited = limits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            });
            if is_limited.is_ok() {
                let body = r#"{"error":{"type":"rate_limited","message":"canary-fal: slow down"}}"#;
                return refused("429 Too Many Requests", body).with("retry-after", "1");
            }
            let priced = r#"{"endpoint_id":"acme/sketch","unit_price":0.025,"unit":"images","currency":"USD"}"#;
            let prices = match asked.target.contains("acme%2Fsketch") || asked.target.contains("acme/sketch") {
                true => priced,
                false => "",
            };
            return Reply::json(format!(
                r#"{{"prices":[{prices}],"next_cursor":null,"has_more":false}}"#
            ));
        }
        Reply::json(r#"{"images":[{"url":"https://v3.fal.media/a.jpg","width":8,"height":8}]}"#)
            .with("x-fal-request-id", "764cabcf-b745-4b3e-ae38-1200304cf45b")
            .with("x-fal-billable-units", "2")
    })
    .await;
    let home = Home::with(&format!(
        "[providers.fal]\nupstream = \"{}\"\n\
         [[accounts]]\nprovider = \"fal\"\nname = \"main\"\napi_key = \"canary-fal\"\n\
         [schedule]\nprices = \"* * * * * *\"\njitter = \"1ms\"\n\
         [prices]\npoll_interval = \"200ms\"\n",
        vendor.url()
    ));
    let server = home.start().await;
    let request =
        b"POST /fal/acme/sketch HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
        content-length: 2\r\nconnection: close\r\n\r\n{}";
    // It is asked for once there was traffic of it.
    assert_eq!(ask(server.proxy, request).await.status, 200);
    server.stored(1).await;
    let is_listed = async || {
        assert_eq!(ask(server.proxy, request).await.status, 200);
        let rows = home.logs().await;
        costs(&rows)
            .iter()
            .any(|(cost, version)| cost == "0.05" && version.starts_with("fal-"))
    };
    eventually("fal's own price is in force", is_listed).await;
    let scrape = server.scrape().await;
    let of_fal = |result| {
        let labels = [("provider", "fal"), ("result", result)];
        scrape.sum("taffrail_price_refreshes_total", &labels)
    };
    // Two limits, and no refresh failed for them.
    assert!(
        of_fal("ok") >= 1 && of_fal("rate_limited") == 0,
        "{}",
        scrape.0
    );
    let log = server.stop().await;
    assert!(!log.contains("canary-fal"), "{log}");
}

#[tokio::test]
async fn a_sidecar_reads_versions_and_the_exporter_alone_adds_them() {
    let Some(database) = fresh().await else {
        return;
    };
    open(&database.url()).await.close().await;
    let as_role = async |role: &str| {
        let login = format!("{role}_{}", taffrail::clock::new_id().simple());
        let create = format!("create role {login} login in role {role}");
        database.execute(&create).await;
        open(&database.url().replace("postgres@", &format!("{login}@"))).await
    };
    let version = |since| NewPriceVersion {
        version: "openrouter-2026-11-24-12345678",
        source: "openrouter",
        effective_from: at("2026-11-24T12:00:00Z"),
        catalogue: r#"{"openrouter":{"a/b":{"input":"1"}}}"#,
        since,
    };
    let exporter = as_role("taffrail_balance").await;
    assert_eq!(
        exporter.add_price_version(&version(0)).await.unwrap(),
        Some(1)
    );
    // Who compared with an older list than there is adds nothing.
    assert_eq!(exporter.add_price_version(&version(0)).await.unwrap(), None);
    assert_eq!(
        exporter.add_price_version(&version(1)).await.unwrap(),
        Some(2)
    );
    let held_back = Some(("{}", "looks wrong"));
    exporter
        .note_price_refresh("openrouter", held_back)
        .await
        .unwrap();
    let refreshes = exporter.price_refreshes().await.unwrap();
    assert_eq!(
        refreshes[0].held_back,
        Some(("{}".to_owned(), "looks wrong".to_owned()))
    );
    let sidecar = as_role("taffrail_ingest").await;
    let versions = sidecar.price_versions(0).await.unwrap();
    let names: Vec<&str> = versions.iter().map(|it| it.version.as_str()).collect();
    assert_eq!(
        names,
        [
            "openrouter-2026-11-24-12345678",
            "openrouter-2026-11-24-12345678-2"
        ]
    );
    assert_eq!(versions[1].effective_from, at("2026-11-24T12:00:00Z"));
    assert_eq!(sidecar.price_versions(2).await.unwrap(), []);
    let changes = [CostChange {
        id: taffrail::clock::new_id(),
        day: at("2026-11-24T12:00:00Z").date_naive(),
        old_cost_usd: None,
        cost_usd: Decimal::ONE,
        cost_upstream_usd: None,
        cost_source: CostSource::Catalog,
        price_version: Some("v".to_owned()),
    }];
    for store in [&sidecar, &exporter] {
        assert!(matches!(
            store.recost(&changes).await,
            Err(StoreError::Unusable(_))
        ));
    }
    // What providers state is the exporter's to take in.
    assert_eq!(exporter.state_costs(&changes).await.unwrap(), 0);
    let refused = sidecar.state_costs(&changes).await;
    assert!(matches!(refused, Err(StoreError::Unusable(_))));
    let refused = sidecar.add_price_version(&version(2)).await;
    assert!(matches!(refused, Err(StoreError::Unusable(_))));
}

/// A home without a server, whose store holds rows of OpenRouter's that have no price, a wrong
/// one, or one that the provider stated.
async fn home_with_rows(url: Option<&str>) -> Home {
    let mut home = Home::without_provider();
    let own = format!("sqlite://{}", home.database().display());
    home.set("STORE__URL", url.unwrap_or(&own));
    let store = open(url.unwrap_or(&own)).await;
    let mut records = Vec::new();
    for number in 0..60_u64 {
        let mut row = record(
            at("2026-11-23T22:10:00Z") + TimeDelta::minutes(3 * number.cast_signed()),
            number,
        );
        row.provider = "openai".into();
        row.model_requested = Some("acme-new".into());
        row.model_served = None;
        row.service_tier = None;
        row.usage = Usage::new()
            .with(Unit::Input, number * 1000)
            .with(Unit::Output, 10);
        (row.cost_usd, row.cost_source, row.price_version) = (None, None, None);
        row.unpriced_reason = Some(taffrail::record::UnpricedReason::ModelUnknown);
        if number % 3 == 0 {
            row.cost_usd = Some(Usd::new(Decimal::new(42, 3)));
            row.cost_source = Some(CostSource::Provider);
            row.unpriced_reason = None;
        }
        records.push(row);
    }
    store.apply(&records).await.unwrap();
    store.close().await;
    home
}

async fn open(url: &str) -> Store {
    let config = Config {
        url: url.to_owned(),
        ..Config::default()
    };
    Store::open(&config).await.unwrap()
}

async fn rows_are_costed_anew(url: Option<&str>, sums_kept: impl AsyncFn(&Home) -> Sums) {
    let home = home_with_rows(url).await;
    let kept = async || sums_kept(&home).await;
    let list = |price: f64| {
        json!({"acme-new": {"litellm_provider": "openai", "mode": "chat",
            "input_cost_per_token": price, "output_cost_per_token": 1e-5}})
    };
    let path = home.path().join("prices.json");
    let import = async |price: f64, from: &str| {
        std::fs::write(&path, list(price).to_string()).unwrap();
        let ran = home
            .run(&["prices", "import", "prices.json", "--from", from])
            .await;
        assert_eq!(ran.code, Some(0), "{} {}", ran.stdout, ran.stderr);
    };
    import(1e-6, "2026-11-01").await;
    let recost = async |more: &[&str]| {
        let since = [
            "prices",
            "recost",
            "--since",
            "2026-11-23",
            "--until",
            "2026-11-26",
        ];
        let ran = home.run(&[&since[..], more].concat()).await;
        assert_eq!(ran.code, Some(0), "{} {}", ran.stdout, ran.stderr);
        ran.stdout
    };
    let before = kept().await;
    let told = recost(&["--dry-run"]).await;
    assert!(
        told.contains("40 rows looked at; 40 would cost something else"),
        "{told}"
    );
    assert_eq!(kept().await, before);
    assert!(
        recost(&[])
            .await
            .contains("40 rows looked at; 40 cost something else")
    );
    // Again: there is nothing left to do.
    assert!(
        recost(&[])
            .await
            .contains("40 rows looked at; 0 cost something else")
    );
    assert_eq!(kept().await, sums_of_rows(&home.rows().await));

    // Another price from a day on changes the rows since that day alone.
    import(2e-6, "2026-11-24").await;
    assert!(
        recost(&["--provider", "anthropic"])
            .await
            .contains("0 rows looked at")
    );
    recost(&["--provider", "openai", "--model", "acme-new"]).await;
    for row in home.logs().await {
        let cost = parse_decimal(row["cost_usd"].as_str().unwrap()).unwrap();
        if row["cost_source"] == "provider" {
            assert_eq!(
                (cost, &row["recosted_at"]),
                (Decimal::new(42, 3), &Value::Null)
            );
            continue;
        }
        let is_later = row["started_at"].as_str().unwrap() >= "2026-11-24";
        let input = Decimal::from(row["input_tokens"].as_i64().unwrap());
        let rate = Decimal::new(1 + i64::from(is_later), 6);
        assert_eq!(cost, input * rate + Decimal::new(1, 4), "{row}");
        assert_eq!(row["unpriced_reason"], Value::Null);
        assert!(
            row["price_version"]
                .as_str()
                .unwrap()
                .starts_with("litellm-")
        );
        assert!(row["recosted_at"].is_string());
    }
    let moved = kept().await;
    assert_eq!(moved, sums_of_rows(&home.rows().await));
    // Sums that were moved are those that are made of the rows.
    let ran = home
        .run(&["backfill", "--from", "2026-11-23", "--to", "2026-11-26"])
        .await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(kept().await, moved);
}

#[tokio::test]
async fn rows_are_costed_anew_in_the_embedded_store() {
    rows_are_costed_anew(None, async |home| sums_kept(home.path()).await).await;
}

#[tokio::test]
async fn rows_are_costed_anew_in_postgres() {
    let Some(database) = fresh().await else {
        return;
    };
    let url = database.url();
    rows_are_costed_anew(Some(&url), async |_| sums_kept_in_postgres(&database).await).await;
    let changes = database
        .query("select count(*)::text, count(old_cost_usd)::text from taffrail.api_cost_changes")
        .await;
    let [all, again] = [0, 1].map(|index| changes[0][index].parse::<u64>().unwrap());
    assert!(all > 40 && again == all - 40, "{all} {again}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
    #[test]
    fn sums_stay_the_sums_of_the_rows(
        changes in proptest::collection::vec((0_usize..40, 0_i64..1_000_000, 0_u32..12, any::<bool>()), 1..60)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (kept, of_rows) = runtime.block_on(async {
            let folder = tempfile::TempDir::new().unwrap();
            let url = format!("sqlite://{}/data/taffrail.db", folder.path().display());
            let store = open(&url).await;
            let records: Vec<_> = (0..40_u64)
                .map(|number| {
                    let mut row = record(at("2026-11-23T23:40:00Z") + TimeDelta::minutes(number.cast_signed()), number);
                    row.cost_source = row.cost_usd.map(|_| CostSource::Catalog);
                    row
                })
                .collect();
            store.apply(&records).await.unwrap();
            let mut costs: Vec<Option<Decimal>> =
                records.iter().map(|row| row.cost_usd.map(Usd::dollars)).collect();
            for (number, mantissa, scale, is_stale) in changes {
                let row = &records[number];
                let cost = Decimal::new(mantissa, scale);
                let change = CostChange {
                    id: row.id,
                    day: row.day(),
                    old_cost_usd: match is_stale {
                        true => Some(Decimal::NEGATIVE_ONE),
                        false => costs[number],
                    },
                    cost_usd: cost,
                    cost_upstream_usd: None,
                    cost_source: CostSource::Catalog,
                    price_version: Some("v".to_owned()),
                };
                let changed = store.recost(&[change.clone(), change]).await.unwrap();
                let is_other = costs[number] != Some(cost);
                assert_eq!(changed, u64::from(!is_stale && is_other));
                if !is_stale {
                    costs[number] = Some(cost);
                }
            }
            let rows = store.logs(&taffrail::store::LogQuery {
                limit: 100, before: None, provider: None, outcome: None,
            }).await.unwrap();
            store.close().await;
            (sums_kept(folder.path()).await, sums_of_rows(&rows))
        });
        prop_assert_eq!(kept, of_rows);
    }
}
