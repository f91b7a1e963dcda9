//! Reconciliation: spend that bypassed the sidecar is found, by the real scheduler, in both stores.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use rust_decimal::Decimal;
use serde_json::Value;
use taffrail::balance::{Balance, BalanceKind};
use taffrail::clock;
use taffrail::provider;
use taffrail::record::UsageRecord;
use taffrail::store::{BalanceReading, Config, Store};
use tempfile::TempDir;

use crate::postgres::fresh;
use crate::store::{id, record};
use crate::support::binary::{Home, Scrape};
use crate::support::http::ask;
use crate::support::sidecar::Sidecar;
use crate::support::vendor::{Asked, Finish, Reply, Vendor};

/// What a chat costs.
const COST: &str = "0.00123";

/// The keys, which nobody may show.
const CANARIES: [&str; 3] = [
    "canary-management",
    "canary-openai-admin",
    "canary-anthropic",
];

fn yesterday() -> NaiveDate {
    clock::wall().date_naive() - TimeDelta::days(1)
}

fn noon(day: NaiveDate) -> DateTime<Utc> {
    day.and_hms_opt(12, 0, 0).unwrap().and_utc()
}

/// A chat completion of OpenRouter.
const CHAT: &str = r#"{"id":"gen-1","provider":"OpenAI","model":"openai/gpt-4o-mini","object":"chat.completion","created":1,"choices":[{"index":0,"finish_reason":"stop","native_finish_reason":"stop","message":{"role":"assistant","content":"hi"}}],"usage":{"prompt_tokens":194,"completion_tokens":25,"total_tokens":219,"cost":0.00123,"is_byok":false}}"#;

/// Vendors at one place: OpenRouter, which bills what it has answered as of yesterday; OpenAI, which
/// refuses the key and quotes it; Anthropic, which is asked too often.
async fn vendors(chats: Arc<AtomicU32>) -> Vendor {
    Vendor::start(move |asked: &Asked| {
        let path = asked.target.split('?').next().unwrap();
        let refused = |status: &str, body: &str| Reply {
            status: status.to_owned(),
            ..Reply::json(body)
        };
        match path {
            "/api/v1/chat/completions" => {
                chats.fetch_add(1, Ordering::SeqCst);
                Reply::json(CHAT)
            }
            "/api/v1/activity" => {
                let cost: Decimal = COST.parse().unwrap();
                let usage = cost * Decimal::from(chats.load(Ordering::SeqCst));
                Reply::json(format!(
                    r#"{{"data":[{{"date":"{}","model":"openai/gpt-4o-mini","model_permaslug":"openai/gpt-4o-mini","endpoint_id":"e","provider_name":"OpenAI","usage":{usage},"byok_usage_inference":0,"requests":5,"prompt_tokens":1,"completion_tokens":1,"reasoning_tokens":0}}]}}"#,
                    yesterday()
                ))
            }
            "/api/v1/credits" => {
                Reply::json(r#"{"data":{"total_credits":100.5,"total_usage":25.75}}"#)
            }
            "/v1/organization/costs" => refused(
                "403 Forbidden",
                r#"{"error":{"message":"the key canary-openai-admin has no scope api.usage.read","type":"invalid_request_error","param":null,"code":"missing_scope"}}"#,
            ),
            _ => refused(
                "429 Too Many Requests",
                r#"{"type":"error","error":{"type":"rate_limit_error","message":"slow down"},"request_id":"req_1"}"#,
            ),
        }
    })
    .await
}

/// Five chats, of which the sidecar sees three. What it saw, as of yesterday.
async fn traffic(vendors: &Vendor) -> Vec<UsageRecord> {
    let openrouter = provider::builtin("openrouter").unwrap();
    let sidecar = Sidecar::start(vendors.address, openrouter);
    let body = r#"{"model":"openai/gpt-4o-mini","messages":[]}"#;
    let request = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer sk-or-v1-traffic\r\n\
             content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
    };
    for _ in 0..3 {
        let through = request("/up/api/v1/chat/completions");
        assert_eq!(ask(sidecar.address, through.as_bytes()).await.status, 200);
    }
    for _ in 0..2 {
        let past = request("/api/v1/chat/completions");
        assert_eq!(ask(vendors.address, past.as_bytes()).await.status, 200);
    }
    let mut records = sidecar.records(3).await;
    for (number, record) in (0..).zip(&mut records) {
        record.provider = "openrouter".into();
        record.started_at = noon(yesterday());
        record.id = id(record.started_at, number);
    }
    records
}

async fn open(url: &str) -> Store {
    let config = Config {
        url: url.to_owned(),
        ..Config::default()
    };
    Store::open(&config).await.unwrap()
}

fn exporter(vendors: &Vendor, url: &str) -> Home {
    let place = vendors.url();
    let mut home = Home::with(&format!(
        "[reconcile]\nlag = \"0s\"\n\
         [providers.openrouter]\nbilling_url = \"{place}\"\n\
         [providers.openai]\nbilling_url = \"{place}\"\n\
         [providers.anthropic]\nbilling_url = \"{place}\"\n\
         [[accounts]]\nprovider = \"openai\"\nname = \"org\"\nadmin_key_file = \"admin-key\"\n\
         [[accounts]]\nprovider = \"anthropic\"\nname = \"org\"\nadmin_key = \"canary-anthropic\"\n\
         [[accounts]]\nprovider = \"openrouter\"\nname = \"prod\"\napi_key = \"canary-management\"\n\
         [[accounts]]\nprovider = \"replicate\"\nname = \"main\"\n"
    ));
    home.set("ROLE", "exporter");
    home.set("STORE__URL", url);
    std::fs::write(home.path().join("admin-key"), "canary-openai-admin\n").unwrap();
    home
}

/// The value of a series.
fn shown(scrape: &Scrape, series: &str) -> Option<String> {
    scrape
        .0
        .lines()
        .find_map(|line| Some(line.strip_prefix(series)?.trim().to_owned()))
}

async fn bypassing_spend_is_found(url: &str, exporter_url: &str) {
    let vendors = vendors(Arc::default()).await;
    let store = open(url).await;
    let records = traffic(&vendors).await;
    let applied = store.apply(&records).await.unwrap();
    assert_eq!(applied.stored, 3);
    let home = exporter(&vendors, exporter_url);
    let server = home.start().await;
    let scrape = server
        .once("the bill is shown", |scrape| {
            scrape.total("taffrail_unmetered_spend_usd") > 0.0
                && scrape.sum("taffrail_bill_reads_total", &[("provider", "replicate")]) > 0
        })
        .await;
    // Five were billed and three were seen.
    for (series, value) in [
        (
            r#"taffrail_provider_spend_usd{provider="openrouter",account="prod",window="1d"}"#,
            Some("0.00615"),
        ),
        (
            r#"taffrail_unmetered_spend_usd{provider="openrouter",account="prod",window="1d"}"#,
            Some("0.00246"),
        ),
        (
            r#"taffrail_unmetered_spend_usd{provider="openrouter",account="prod",window="7d"}"#,
            Some("0.00246"),
        ),
        // Of seven days nothing says what thirty cost.
        (
            r#"taffrail_unmetered_spend_usd{provider="openrouter",account="prod",window="30d"}"#,
            None,
        ),
        (
            r#"taffrail_bill_reads_total{provider="openrouter",account="prod",result="ok"}"#,
            Some("1"),
        ),
        (
            r#"taffrail_bill_reads_total{provider="openai",account="org",result="auth"}"#,
            Some("1"),
        ),
        (
            r#"taffrail_bill_reads_total{provider="anthropic",account="org",result="rate_limited"}"#,
            Some("1"),
        ),
        (
            r#"taffrail_bill_reads_total{provider="replicate",account="main",result="unsupported"}"#,
            Some("1"),
        ),
        (
            r#"taffrail_provider_spend_usd{provider="openai",account="org",window="1d"}"#,
            None,
        ),
    ] {
        let found = shown(&scrape, series);
        assert_eq!(found.as_deref(), value, "{series}\n{}", scrape.0);
    }

    let ran = home.run(&["reconcile", "--format", "json"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let lines: Vec<Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |provider: &str| {
        lines
            .iter()
            .find(|line| line["provider"] == provider)
            .unwrap()
    };
    let own = of("openrouter");
    for (member, value) in [
        ("provider_spend_usd", "0.00615"),
        ("metered_usd", "0.00369"),
        ("unmetered_usd", "0.00246"),
        ("source", "activity"),
    ] {
        assert_eq!(own[member], value, "{own}");
    }
    assert_eq!(own["unmetered_share"], 0.4, "{own}");
    assert_eq!(
        (&own["requests"], &own["unpriced_requests"]),
        (&3.into(), &0.into())
    );
    assert_eq!((&own["days"], &own["days_unknown"]), (&7.into(), &0.into()));
    let refused = of("openai");
    assert_eq!(refused["provider_spend_usd"], Value::Null);
    let cause = refused["causes"][0]["cause"].as_str().unwrap();
    assert!(
        cause.contains("HTTP 403") && cause.contains("an admin key"),
        "{cause}"
    );
    let ran = home.run(&["reconcile", "--provider", "openrouter"]).await;
    assert!(ran.stdout.contains("0.0025"), "{}", ran.stdout);

    let log = server.stop().await;
    let mut texts = vec![scrape.0, log, ran.stdout, ran.stderr];
    texts.extend(lines.iter().map(Value::to_string));
    for (path, bytes) in home.files() {
        if !path.ends_with("taffrail.toml") && !path.ends_with("admin-key") {
            texts.push(String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    for row in store
        .reconciliations(yesterday() - TimeDelta::days(30))
        .await
        .unwrap()
    {
        texts.push(format!("{row:?}"));
    }
    for text in texts {
        for canary in CANARIES {
            assert!(!text.contains(canary), "{canary} is shown in {text}");
        }
    }
    store.close().await;
}

#[tokio::test]
async fn spend_that_bypasses_the_sidecar_is_found_in_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/taffrail.db", dir.path().display());
    bypassing_spend_is_found(&url, &url).await;
}

#[tokio::test]
async fn spend_that_bypasses_the_sidecar_is_found_in_postgres() {
    let Some(database) = fresh().await else {
        return;
    };
    open(&database.url()).await.close().await;
    // The exporter has no right but its own.
    let login = format!("exporter_{}", clock::new_id().simple());
    database
        .execute(&format!(
            "create role {login} login in role taffrail_balance"
        ))
        .await;
    let own = database
        .url()
        .replace("//postgres@", &format!("//{login}@"));
    bypassing_spend_is_found(&database.url(), &own).await;
    let reader = format!("reader_{}", clock::new_id().simple());
    database
        .execute(&format!(
            "create role {reader} login in role taffrail_reader"
        ))
        .await;
    let url = database
        .url()
        .replace("//postgres@", &format!("//{reader}@"));
    let config = Config {
        url,
        ..Config::default()
    };
    let store = Store::open_read_only(&config).await.unwrap();
    let rows = store.reconciliations(yesterday()).await.unwrap();
    assert_eq!(rows.len(), 4, "{rows:?}");
    store.close().await;
}

/// A store with readings of a balance.
async fn store_of(readings: &[(i64, &str)], currency: &str) -> (TempDir, Store, String) {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/taffrail.db", dir.path().display());
    let store = open(&url).await;
    for (hours, balance) in readings {
        let at = yesterday().and_hms_opt(0, 0, 5).unwrap().and_utc() + TimeDelta::hours(*hours);
        let reading = BalanceReading {
            provider: "deepseek".to_owned(),
            account: "main".to_owned(),
            slot: at,
            read_at: at,
            result: "ok".to_owned(),
            balances: vec![Balance {
                kind: BalanceKind::Prepaid,
                currency: currency.to_owned(),
                amount: Some(balance.parse().unwrap()),
            }],
            detail: None,
            raw: None,
        };
        assert!(store.record_balance(&reading).await.unwrap());
    }
    (dir, store, url)
}

/// What `taffrail reconcile` says of an account whose provider tells no bill.
async fn told_of_balances(currency: &str, more: &str) -> Value {
    let readings = [(0, "50"), (6, "48"), (12, "147"), (24, "146.5")];
    let (_dir, store, url) = store_of(&readings, currency).await;
    let mut seen = record(noon(yesterday()), 1);
    seen.provider = "deepseek".into();
    store.apply(&[seen]).await.unwrap();
    let refusing = Vendor::start(|_| Reply {
        status: "500 Broken".to_owned(),
        ..Reply::json("{}")
    })
    .await;
    let mut home = Home::with(&format!(
        "[reconcile]\nlag = \"0s\"\n\
         [providers.deepseek]\nbilling_url = \"{}\"\n\
         [[accounts]]\nprovider = \"deepseek\"\nname = \"main\"\napi_key = \"k\"\n{more}",
        refusing.url()
    ));
    home.set("STORE__URL", url);
    home.set("ROLE", "exporter");
    let server = home.start().await;
    server
        .once("it was tried", |scrape| {
            scrape.sum("taffrail_schedule_runs_total", &[("task", "reconcile")]) > 0
        })
        .await;
    server.stop().await;
    let ran = home.run(&["reconcile", "--format", "json"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    store.close().await;
    serde_json::from_str(&ran.stdout).unwrap()
}

#[tokio::test]
async fn where_no_api_tells_the_bill_the_balance_does() {
    // A payment that nobody declared.
    let told = told_of_balances("USD", "").await;
    assert_eq!(told["provider_spend_usd"], "2.5", "{told}");
    assert_eq!(told["metered_usd"], "0.0002004", "{told}");
    assert_eq!(told["source"], "balance", "{told}");
    let cause = told["causes"][0]["cause"].as_str().unwrap();
    assert!(cause.contains("rose by 99 USD"), "{cause}");
    // The same, declared: 1 was spent while it came.
    let declared = format!("top_ups = [{{ at = \"{}\", amount = 100 }}]\n", yesterday());
    let told = told_of_balances("USD", &declared).await;
    assert_eq!(told["provider_spend_usd"], "3.5", "{told}");
    // Another currency is not compared unless somebody says what it is worth.
    let told = told_of_balances("CNY", &declared).await;
    assert_eq!(told["provider_spend_usd"], Value::Null, "{told}");
    let cause = told["causes"][0]["cause"].as_str().unwrap();
    assert!(cause.contains("accounts[].usd_rate"), "{cause}");
    let told = told_of_balances("CNY", &format!("usd_rate = \"0.14\"\n{declared}")).await;
    assert_eq!(told["provider_spend_usd"], "0.49", "{told}");
}

#[tokio::test]
async fn a_bill_that_is_read_again_holds_and_a_failure_takes_no_bills_place() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&format!("sqlite://{}/taffrail.db", dir.path().display())).await;
    let mut bills = Vec::new();
    let row = |usd: Option<&str>, result: &str| taffrail::store::Reconciliation {
        provider: "openai".to_owned(),
        account: "org".to_owned(),
        day: yesterday(),
        window: (noon(yesterday()), noon(yesterday())),
        read_at: noon(yesterday()),
        result: result.to_owned(),
        source: None,
        provider_spend_usd: usd.map(|usd| usd.parse().unwrap()),
        metered: None,
        detail: None,
    };
    for (usd, result) in [
        (None, "auth"),
        (Some("1.5"), "ok"),
        (None, "timeout"),
        (Some("1.75"), "ok"),
    ] {
        store
            .record_reconciliations(&[row(usd, result)])
            .await
            .unwrap();
        let rows = store.reconciliations(yesterday()).await.unwrap();
        let bill = rows[0].provider_spend_usd.map(|usd| usd.to_string());
        bills.push(bill);
        assert_eq!(rows.len(), 1);
    }
    let text = |bill: &str| Some(bill.to_owned());
    assert_eq!(bills, [None, text("1.5"), text("1.5"), text("1.75")]);
    store.close().await;
}

/// A table of an account of fal's, by its name, which is its key too.
fn of_fal(name: &str) -> String {
    format!("[[accounts]]\nprovider = \"fal\"\nname = \"{name}\"\napi_key = \"key-{name}\"\n")
}

#[tokio::test]
async fn an_account_that_hangs_delays_no_other_and_a_bill_has_an_end() {
    let vendor = Vendor::start(|asked| {
        let key = asked.header("authorization").unwrap_or_default();
        let empty = r#"{"time_series":[],"billing_events":[],"next_cursor":null,"has_more":false}"#;
        match (asked.target.starts_with("/v1/models/usage?"), key) {
            (true, "Key key-hangs") => Reply::json(empty).finish(Finish::Silent),
            // Each page leads to another one.
            (true, "Key key-endless") => {
                let cursor = asked.target.split("&cursor=").nth(1).unwrap_or("0");
                let next = cursor.parse::<u32>().unwrap() + 1;
                Reply::json(format!(
                    r#"{{"time_series":[],"next_cursor":"{next}","has_more":true}}"#
                ))
            }
            _ => Reply::json(empty),
        }
    })
    .await;
    let names: Vec<String> = (0..10).map(|number| format!("other{number}")).collect();
    let mut tables = format!(
        "[schedule]\ncall_timeout = \"10m\"\ntimeout = \"10m\"\n\
         [providers.fal]\nbilling_url = \"{}\"\n{}{}",
        vendor.url(),
        of_fal("hangs"),
        of_fal("endless")
    );
    for name in &names {
        tables += &of_fal(name);
    }
    let mut home = Home::with(&tables);
    home.set("ROLE", "exporter");
    let server = home.start().await;
    let scrape = server
        .once("all others are read and shown", |scrape| {
            let ok = scrape.sum("taffrail_bill_reads_total", &[("result", "ok")]);
            let error = [("account", "endless"), ("result", "error")];
            let last = [("account", "other9"), ("window", "1d")];
            let shown =
                r#"taffrail_provider_spend_usd{provider="fal",account="other9",window="1d"} 0"#;
            let is_shown =
                scrape.0.contains(shown) && scrape.sum("taffrail_provider_spend_usd", &last) == 0;
            ok == 10 && is_shown && scrape.sum("taffrail_bill_reads_total", &error) == 1
        })
        .await;
    let hanging = [("account", "hangs")];
    assert_eq!(scrape.sum("taffrail_bill_reads_total", &hanging), 0);
    let endless = vendor.asked();
    let pages = endless.iter().filter(|asked| {
        let key = asked.header("authorization");
        key == Some("Key key-endless") && asked.target.starts_with("/v1/models/usage?")
    });
    assert_eq!(pages.count(), 40);
    let log = server.stop().await;
    assert!(log.contains("the bill has no end"), "{log}");
}
