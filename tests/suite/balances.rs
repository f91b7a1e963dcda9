//! Balances: every case of every billing API, accounts that fail beside others, restarts, fleets,
//! and that no key shows up anywhere.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Timelike as _, Utc};
use rust_decimal::Decimal;
use taffrail::ask::{Ask, FaultClass};
use taffrail::balance;
use taffrail::clock;
use taffrail::config::{Account, Secret, TopUp};
use taffrail::exporter::balances::{self, Balances, Filter};
use taffrail::exporter::fetch::{BODY_BYTES_MAX, Fetcher};
use taffrail::exporter::parts::Parts;
use taffrail::metrics::exposition::Format;
use taffrail::metrics::{Config, Metrics};
use taffrail::proxy::{ProviderConfig, Providers, tls_config};
use taffrail::store::{self, BalanceReading, Store};

use crate::exposition::chat;
use crate::support::binary::{Home, Scrape, eventually, get};
use crate::support::postgres::{Cluster, Version};
use crate::support::vendor::{Asked, Finish, Reply, Vendor};

/// Every six hours.
const CRON: &str = "0 0 */6 * * *";

/// Never in a test.
const YEARLY: &str = "0 0 0 1 1 *";

fn reply(status: u16, body: &str) -> Reply {
    Reply {
        status: format!("{status} Whatever"),
        ..Reply::json(body)
    }
}

fn fetcher(timeout: Duration) -> Fetcher {
    Fetcher::new(&tls_config(None).unwrap(), timeout).unwrap()
}

async fn sqlite(dir: &Path) -> Store {
    let config = store::Config {
        url: format!("sqlite://{}/taffrail.db", dir.display()),
        ..store::Config::default()
    };
    Store::open(&config).await.unwrap()
}

fn account(provider: &str, name: &str) -> Account {
    Account {
        provider: provider.to_owned(),
        name: name.to_owned(),
        api_key: Some(Secret::new("KEY")),
        ..Account::default()
    }
}

/// The providers of these accounts, all billed at one place.
fn billed_at(accounts: &[Account], url: &str) -> Providers {
    let settings = ProviderConfig {
        billing_url: Some(url.to_owned()),
        ..ProviderConfig::default()
    };
    let names = accounts.iter().map(|account| account.provider.clone());
    names.map(|name| (name, settings.clone())).collect()
}

struct Reader {
    balances: Balances,
    metrics: Arc<Metrics>,
}

impl Reader {
    fn new(accounts: Vec<Account>, url: &str, store: &Store) -> Reader {
        let metrics = Arc::new(Metrics::new(&Config::default(), &[], &[]));
        let balances = Balances::new(Parts {
            providers: billed_at(&accounts, url),
            accounts,
            fetcher: fetcher(Duration::from_secs(10)),
            store: store.clone(),
            metrics: metrics.clone(),
            timeout: Duration::from_secs(30),
            holder: clock::new_id().to_string(),
            pepper: String::new(),
            config: balances::Config {
                cron: CRON.to_owned(),
                rows_kept: Duration::from_hours(24 * 90),
            },
        });
        Reader { balances, metrics }
    }

    async fn sync(&self) -> Vec<BalanceReading> {
        self.balances.sync(&Filter::default()).await
    }

    fn exposition(&self) -> String {
        let text = self.metrics.encode(Format::Text, clock::instant());
        String::from_utf8(text).unwrap()
    }
}

/// A reading as the fixtures have it.
fn told(reading: &BalanceReading) -> String {
    let balances = reading.balances.iter().map(|own| {
        let amount = own.amount.map_or("none".to_owned(), |it| it.to_string());
        format!("{} {} {amount}", own.kind.as_str(), own.currency)
    });
    let balances: Vec<String> = balances.collect();
    let told = format!("{} {}", reading.result, balances.join(", "));
    told.trim_end().to_owned()
}

/// A call and its answer.
#[derive(Debug, Default)]
struct Exchange {
    asked: Vec<String>,
    status: u16,
    body: String,
}

fn exchanges(text: &str) -> (Vec<Exchange>, String) {
    let mut exchanges: Vec<Exchange> = Vec::new();
    let mut expected = String::new();
    let mut was_answer = true;
    for line in text.lines() {
        if let Some(asked) = line.strip_prefix("> ") {
            if was_answer {
                exchanges.push(Exchange::default());
            }
            was_answer = false;
            exchanges.last_mut().unwrap().asked.push(asked.to_owned());
        } else if let Some(status) = line.strip_prefix("< ") {
            was_answer = true;
            exchanges.last_mut().unwrap().status = status.parse().unwrap();
        } else if let Some(result) = line.strip_prefix("= ") {
            result.clone_into(&mut expected);
        } else {
            exchanges.last_mut().unwrap().body += line;
        }
    }
    (exchanges, expected)
}

/// What was asked, in the lines that the fixture has.
fn lines_of(asked: &Asked, wanted: &[String]) -> Vec<String> {
    let first = format!("{} {}", asked.method, asked.target);
    let headers = wanted.iter().skip(1).map(|line| {
        let name = line.split_once(": ").unwrap().0;
        format!("{name}: {}", asked.header(name).unwrap_or("absent"))
    });
    std::iter::once(first).chain(headers).collect()
}

#[tokio::test]
async fn every_case_of_every_billing_api_comes_to_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(dir.path()).await;
    let mut cases = 0;
    for vendor in balance::VENDORS {
        let folder = Path::new("tests/fixtures/balances").join(vendor);
        let files = std::fs::read_dir(&folder).unwrap_or_else(|_| panic!("no {folder:?}"));
        let mut names = Vec::new();
        for file in files.map(|file| file.unwrap().path()) {
            let case = file.file_stem().unwrap().to_str().unwrap().to_owned();
            let (exchanges, expected) = exchanges(&std::fs::read_to_string(&file).unwrap());
            let replies = exchanges.iter().map(|own| reply(own.status, &own.body));
            let replies = Mutex::new(replies.collect::<VecDeque<Reply>>());
            let billing = Vendor::start(move |_| {
                let next = replies.lock().unwrap().pop_front();
                next.unwrap_or_else(|| reply(500, "asked too often"))
            })
            .await;
            let account = Account {
                billing_id: (vendor == "xai").then(|| "team-1".to_owned()),
                ..account(vendor, &case)
            };
            let reader = Reader::new(vec![account], &billing.url(), &store);
            let readings = reader.sync().await;
            assert_eq!(
                told(&readings[0]),
                expected,
                "{vendor}/{case}: {readings:?}"
            );
            let asked = billing.asked();
            assert_eq!(asked.len(), exchanges.len(), "{vendor}/{case}");
            for (asked, exchange) in asked.iter().zip(&exchanges) {
                let wanted = &exchange.asked;
                assert_eq!(&lines_of(asked, wanted), wanted, "{vendor}/{case}");
            }
            names.push(case);
            cases += 1;
        }
        for case in ["good", "empty", "forbidden", "malformed", "rate-limited"] {
            assert!(
                names.iter().any(|own| own == case),
                "{vendor} has no case {case}"
            );
        }
    }
    // What was read is what the store has.
    let kept = store.latest_balances().await.unwrap();
    assert_eq!(kept.len(), cases);
    let deepseek = kept
        .iter()
        .find(|own| own.provider == "deepseek" && own.account == "good");
    assert_eq!(
        told(deepseek.unwrap()),
        "ok prepaid CNY 110.00, prepaid USD 4.25"
    );
    store.close().await;
}

#[tokio::test]
async fn a_vendors_own_hosts_are_asked_where_nothing_else_is_configured() {
    for vendor in balance::VENDORS {
        let api = balance::api(vendor).unwrap();
        let subject = balance::Subject {
            billing_id: Some("x"),
            currency: "USD",
        };
        let Ask { host, path, .. } = api.first(&subject).unwrap();
        assert!(
            host.starts_with("https://") && !host.ends_with('/'),
            "{host}"
        );
        assert!(path.starts_with('/'), "{path}");
    }
}

#[tokio::test]
async fn no_key_goes_to_another_host_and_no_answer_is_read_without_end() {
    let other = Vendor::start(|_| reply(200, "{}")).await;
    let place = format!("{}/elsewhere", other.url());
    let billing = Vendor::start(move |asked| match asked.target.as_str() {
        "/away" => reply(302, "").with("location", &place),
        "/slash" => reply(307, "").with("location", "/slash/"),
        "/slash/" => reply(200, "found"),
        "/round" => reply(302, "").with("location", "/round"),
        "/silent" => reply(200, "{").finish(Finish::Silent),
        "/cut" => reply(200, "{").finish(Finish::CutOff),
        _ => Reply::json(vec![b' '; BODY_BYTES_MAX + 1]),
    })
    .await;
    let key = Secret::new("canary-key");
    let url = billing.url();
    let fetch = async |path: &str, timeout: u64| {
        let ask = Ask::get("https://vendor.invalid", path);
        let fetcher = fetcher(Duration::from_millis(timeout));
        fetcher.fetch(&ask, Some(&url), Some(&key)).await
    };
    assert_eq!(fetch("/slash", 9_000).await.unwrap().body, "found");
    for (path, timeout, class, detail) in [
        (
            "/away",
            9_000,
            FaultClass::Error,
            "a redirect to another host",
        ),
        ("/round", 9_000, FaultClass::Error, "too many redirects"),
        (
            "/silent",
            300,
            FaultClass::Timeout,
            "no whole answer in 300ms",
        ),
        (
            "/long",
            60_000,
            FaultClass::Error,
            "the answer is longer than 16777216 bytes",
        ),
    ] {
        let fault = fetch(path, timeout).await.unwrap_err();
        assert_eq!(
            (fault.class, fault.detail.as_str()),
            (class, detail),
            "{path}"
        );
    }
    let fault = fetch("/cut", 9_000).await.unwrap_err();
    assert_eq!(fault.class, FaultClass::Error, "{fault}");
    assert!(!fault.detail.contains("127.0.0.1"), "{fault}");
    assert!(other.asked().is_empty());
    let ask = Ask::get("https://vendor.invalid", "/");
    let fault = fetcher(Duration::from_secs(9));
    let fault = fault
        .fetch(&ask, Some("http://127.0.0.1:9"), Some(&key))
        .await
        .unwrap_err();
    assert!(fault.detail.starts_with("cannot connect: "), "{fault}");
    let odd = Secret::new("two\nlines");
    let fetcher = fetcher(Duration::from_secs(9));
    let fault = fetcher
        .fetch(&ask, Some(&url), Some(&odd))
        .await
        .unwrap_err();
    assert_eq!(fault.class, FaultClass::Auth);
    assert!(!fault.detail.contains("two"), "{fault}");
}

/// The billing APIs of ten accounts, of which four fail, each in its own way. Keys are echoed where
/// a careless vendor would.
fn ten_accounts(asked: &Asked) -> Reply {
    let key = asked.header("authorization").unwrap_or_default().to_owned();
    let is = |name: &str| key.contains(name);
    match asked.target.as_str() {
        "/api/v1/credits" if is("canary-or-prod") => reply(
            200,
            r#"{"data":{"total_credits":1500.5,"total_usage":25.75}}"#,
        ),
        "/api/v1/credits" => reply(
            403,
            r#"{"error":{"message":"Only management keys can perform this operation","code":403}}"#,
        ),
        "/api/v1/key" => reply(
            200,
            r#"{"data":{"label":"sk-or-v1-can...ary","limit":100,"limit_remaining":74.5}}"#,
        ),
        "/v1/account/billing?expand=credits" => reply(
            200,
            r#"{"username":"acme","credits":{"current_balance":24.5,"currency":"USD"}}"#,
        ),
        "/user/balance" => reply(
            200,
            r#"{"is_available":true,"balance_infos":[{"currency":"CNY","total_balance":"110.00","granted_balance":"10.00","topped_up_balance":"100.00"}]}"#,
        ),
        // The key is wrong.
        "/v1/user/balance" => reply(
            401,
            &format!(r#"{{"id":"1","name":"unauthorized","errors":["{key} is not a key"]}}"#),
        ),
        "/dream-machine/v1/credits" => reply(429, r#"{"detail":"slow down"}"#),
        "/v1/organization" => reply(200, "{").finish(Finish::Silent),
        "/api/v0/users/current/" => reply(200, "<html>maintenance</html>"),
        "/api/v1/activity" if is("canary-or-prod") => reply(200, r#"{"data":[]}"#),
        "/api/v1/activity" => reply(
            403,
            r#"{"error":{"message":"Only management keys can perform this operation","code":403}}"#,
        ),
        "/api/v1/generation?id=gen-0" if is("canary-or-prod") => reply(
            404,
            r#"{"error":{"message":"Generation gen-0 not found","code":404}}"#,
        ),
        "/api/v1/generation?id=gen-0" => reply(
            401,
            &format!(r#"{{"error":{{"message":"{key} is no key","code":401}}}}"#),
        ),
        target if target.starts_with("/v1/models/usage?") => reply(
            200,
            r#"{"time_series":[],"next_cursor":null,"has_more":false}"#,
        ),
        target if target.starts_with("/v1/models/billing-events?") => reply(
            403,
            r#"{"error":{"type":"authorization_error","message":"an ordinary key"}}"#,
        ),
        target => reply(500, &format!("{target}?")),
    }
}

const TEN_ACCOUNTS: &str = r#"
[[accounts]]
provider = "openrouter"
name = "prod"
api_key = "canary-or-prod-0123456789abcdef"
warning_below = 50
critical_below = 10
[[accounts]]
provider = "openrouter"
name = "staging"
api_key = "canary-or-staging-0123456789abcdef"
[[accounts]]
provider = "fal"
name = "main"
api_key_file = "fal-key"
[[accounts]]
provider = "deepseek"
name = "main"
api_key = "canary-deepseek-0123456789abcdef"
[[accounts]]
provider = "stability"
name = "main"
api_key = "canary-stability-0123456789abcdef"
[[accounts]]
provider = "luma"
name = "main"
api_key = "canary-luma-0123456789abcdef"
[[accounts]]
provider = "runway"
name = "main"
api_key = "canary-runway-0123456789abcdef"
[[accounts]]
provider = "vast"
name = "main"
api_key = "canary-vast-0123456789abcdef"
[[accounts]]
provider = "replicate"
name = "main"
[[accounts]]
provider = "anthropic"
name = "main"
top_ups = [{ at = "2026-01-01", amount = 500 }, { at = "2026-02-01", amount = "250.50" }]
"#;

/// A home with the ten accounts.
fn home_of_ten(url: &str) -> Home {
    let mut tables =
        format!("[schedule]\nbalances = \"{YEARLY}\"\ncall_timeout = \"2s\"\njitter = \"1ms\"\n");
    for provider in [
        "openrouter",
        "fal",
        "deepseek",
        "stability",
        "luma",
        "runway",
        "vast",
    ] {
        tables += &format!("[providers.{provider}]\nbilling_url = \"{url}\"\n");
    }
    let home = Home::with(&(tables + TEN_ACCOUNTS));
    std::fs::write(home.path().join("fal-key"), "canary-fal-0123456789abcdef\n").unwrap();
    home
}

/// A table without the widths and the ages of its cells.
fn cells(table: &str) -> Vec<Vec<&str>> {
    table
        .lines()
        .map(|line| {
            line.split("  ")
                .map(str::trim)
                .filter(|cell| !cell.is_empty())
                .collect()
        })
        .collect()
}

#[tokio::test]
async fn accounts_that_fail_leave_the_others_alone_and_say_why() {
    let billing = Vendor::start(ten_accounts).await;
    let home = home_of_ten(&billing.url());
    let ran = home.run(&["sync"]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    println!("{}", ran.stdout);
    let rows = cells(&ran.stdout);
    let row = |provider: &str, account: &str| {
        let row = rows
            .iter()
            .find(|row| row.first() == Some(&provider) && row.get(1) == Some(&account));
        row.unwrap_or_else(|| panic!("{provider}/{account}: {}", ran.stdout))
            .join(" | ")
    };
    for (provider, account, shown) in [
        ("openrouter", "prod", "1,474.75 | USD | prepaid | now | ok"),
        (
            "openrouter",
            "staging",
            "74.50 | USD | key_limit | now | ok",
        ),
        ("fal", "main", "24.50 | USD | prepaid | now | ok"),
        ("deepseek", "main", "110.00 | CNY | prepaid | now | ok"),
        (
            "stability",
            "main",
            "— | — | — | — | FAILED: auth | HTTP 401",
        ),
        (
            "luma",
            "main",
            "— | — | — | — | FAILED: rate_limited | HTTP 429: slow down",
        ),
        (
            "runway",
            "main",
            "— | — | — | — | FAILED: timeout | no whole answer in 2s",
        ),
        (
            "vast",
            "main",
            "— | — | — | — | FAILED: error | the answer is not as documented: it is not JSON",
        ),
        (
            "replicate",
            "main",
            "— | — | — | — | unsupported | this provider has no API that tells a balance",
        ),
        ("anthropic", "main", "750.50 | USD | ledger | now | ok"),
    ] {
        let shown_now = row(provider, account)
            .replace(" s ago", "")
            .replace("| 5 |", "| now |");
        let expected = format!("{provider} | {account} | {shown}");
        assert!(shown_now.starts_with(&expected), "{shown_now}\n{expected}");
    }
    assert!(
        ran.stdout
            .ends_with("4 of 10 accounts could not be read.\n"),
        "{}",
        ran.stdout
    );

    // The store has it all.
    let ran = home
        .run(&["balances", "--format", "json", "--provider", "openrouter"])
        .await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let lines: Vec<serde_json::Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(
        (&lines[0]["balance"], &lines[0]["kind"]),
        (&"1474.75".into(), &"prepaid".into())
    );
    assert_eq!(home.run(&["balances"]).await.code, Some(1));
    let csv = home
        .run(&["balances", "--format", "csv", "--account", "staging"])
        .await
        .stdout;
    assert!(
        csv.starts_with("provider,account,kind,currency,balance,"),
        "{csv}"
    );
    assert!(
        csv.contains("openrouter,staging,key_limit,USD,74.5,"),
        "{csv}"
    );
    assert_eq!(
        home.run(&["sync", "--account", "nobody"]).await.code,
        Some(1)
    );
}

#[tokio::test]
async fn no_key_shows_up_anywhere() {
    let billing = Vendor::start(ten_accounts).await;
    let mut home = home_of_ten(&billing.url());
    home.set("LOG__LEVEL", "trace");
    let server = home.start().await;
    let scrape = server
        .once("all accounts were read", |scrape| {
            let count = scrape.sum("taffrail_balance_syncs_total", &[]);
            count >= 10
        })
        .await;
    let post = b"POST /-/sync?provider=stability HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let answer = crate::support::http::ask(server.admin, post).await;
    assert_eq!(answer.status, 500);
    let answer = String::from_utf8(answer.body).unwrap();
    assert!(
        answer.contains(r#""result":"auth""#) && answer.contains(r#""failed":1"#),
        "{answer}"
    );
    let check = home.run(&["check"]).await;
    let shown = home.run(&["balances", "--format", "json"]).await;
    let config = home.run(&["config"]).await;
    let log = server.stop().await;
    assert!(log.contains("TRACE"), "not at trace level");
    assert!(log.contains("a balance could not be read"), "{log}");
    let database = std::fs::read(home.database()).unwrap();
    let mut places: Vec<(String, Vec<u8>)> = [
        ("log", log),
        ("metrics", scrape.0),
        ("answer", answer),
        ("check", check.stdout + &check.stderr),
        ("balances", shown.stdout + &shown.stderr),
        ("config", config.stdout),
    ]
    .map(|(name, text)| (name.to_owned(), text.into_bytes()))
    .to_vec();
    places.push(("database".to_owned(), database));
    for (path, bytes) in home.files() {
        let name = path.display().to_string();
        if !name.ends_with("taffrail.toml") && !name.ends_with("fal-key") {
            places.push((name, bytes));
        }
    }
    for (name, bytes) in places {
        let text = String::from_utf8_lossy(&bytes);
        if let Some(at) = text.find("canary") {
            let around = &text.as_bytes()[at.saturating_sub(100)..(at + 60).min(text.len())];
            panic!("a key is in {name}: {}", String::from_utf8_lossy(around));
        }
    }
}

#[tokio::test]
async fn check_says_what_is_wrong_with_an_account_and_how_to_mend_it() {
    let billing = Vendor::start(ten_accounts).await;
    let mut home = home_of_ten(&billing.url());
    home.set("ROLE", "exporter");
    let ran = home.run(&["check"]).await;
    assert_eq!(ran.code, Some(1));
    let line = |name: &str| {
        let mut lines = ran.stdout.lines();
        lines
            .find(|line| line.contains(name))
            .unwrap_or_else(|| panic!("{}", ran.stdout))
    };
    for (name, words) in [
        (
            "balance openrouter/prod",
            &["ok", "1474.75 USD (prepaid)"][..],
        ),
        (
            "balance stability/main",
            &[
                "FAIL",
                "HTTP 401",
                "wanted is an ordinary key",
                "api_key_file",
            ],
        ),
        (
            "balance runway/main",
            &["FAIL", "no whole answer in 2s", "check egress rules"],
        ),
        ("balance replicate/main", &["skip", "declare top_ups"]),
        ("balance anthropic/main", &["ok", "ledger"]),
        ("bill openrouter/prod", &["ok", "activity answers"]),
        (
            "bill openrouter/staging",
            &[
                "skip",
                "HTTP 403",
                "wanted is a management key",
                "from the balance",
            ],
        ),
        ("bill fal/main", &["ok", "usage answers"]),
        (
            "bill anthropic/main",
            &["skip", "there is no key", "an admin key"],
        ),
        ("receipt openrouter/prod", &["ok", "generation answers"]),
        (
            "receipt openrouter/staging",
            &[
                "FAIL",
                "HTTP 401",
                "wanted is a key of the account",
                "api_key_file",
            ],
        ),
        (
            "receipt fal/main",
            &[
                "FAIL",
                "an ordinary key",
                "wanted is a key of scope ADMIN",
                "admin_key_file",
            ],
        ),
    ] {
        let line = line(name);
        assert!(words.iter().all(|word| line.contains(word)), "{line}");
    }
}

#[tokio::test]
async fn a_balance_survives_a_restart_and_ages_while_it_cannot_be_read() {
    let is_up = Arc::new(Mutex::new(true));
    let switch = is_up.clone();
    let billing = Vendor::start(move |_| match *switch.lock().unwrap() {
        true => reply(200, r#"{"data":{"total_credits":100,"total_usage":40}}"#),
        false => reply(503, "down"),
    })
    .await;
    let home = Home::with(&format!(
        "[schedule]\nbalances = \"{YEARLY}\"\n[providers.openrouter]\nbilling_url = \"{}\"\n\
         [[accounts]]\nprovider = \"openrouter\"\nname = \"prod\"\napi_key = \"k\"\nwarning_below = 50\n",
        billing.url()
    ));
    let own = [("provider", "openrouter"), ("account", "prod")];
    let stamp = |scrape: &Scrape| scrape.total("taffrail_balance_last_success_timestamp_seconds");
    let server = home.start().await;
    let first = server
        .once("the balance is shown", |scrape| {
            scrape.total("taffrail_balance") > 0.0
        })
        .await;
    assert_eq!(first.sum("taffrail_balance", &own), 60);
    assert_eq!(first.sum("taffrail_balance_threshold", &own), 50);
    assert_eq!(first.sum("taffrail_balance_sync_up", &own), 1);
    assert_eq!(first.sum("taffrail_account_state", &[("state", "ok")]), 1);
    server.stop().await;

    *is_up.lock().unwrap() = false;
    // The slot has its reading, so nobody is asked for it again at the start.
    let asked_for_balance = || {
        let asked = billing.asked();
        asked
            .iter()
            .filter(|asked| asked.target.contains("credits"))
            .count()
    };
    let asked = asked_for_balance();
    let server = home.start().await;
    let loaded = server
        .once("the balance is shown again", |scrape| {
            scrape.total("taffrail_balance") > 0.0
        })
        .await;
    assert_eq!(loaded.sum("taffrail_balance", &own), 60);
    assert_eq!(stamp(&loaded).to_string(), stamp(&first).to_string());
    assert_eq!(asked_for_balance(), asked);

    let ran = home.run(&["sync"]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.stdout);
    let post =
        b"POST /-/sync HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    crate::support::http::ask(server.admin, post).await;
    let (_, text) = get(server.admin, "/metrics").await;
    let failed = Scrape(text);
    assert_eq!(failed.sum("taffrail_balance", &own), 60);
    assert_eq!(failed.sum("taffrail_balance_sync_up", &own), 0);
    assert_eq!(stamp(&failed).to_string(), stamp(&first).to_string());
    server.stop().await;
}

/// Records that cost money now, each on its own.
fn costs(
    provider: &str,
    dollars: &[&str],
    at: DateTime<Utc>,
) -> Vec<taffrail::record::UsageRecord> {
    let record = |cost: &&str| {
        let mut record = chat(provider, "m");
        record.id = clock::new_id();
        record.started_at = at;
        record.cost_usd = taffrail::money::Usd::from_json_number(cost);
        record
    };
    dollars.iter().map(record).collect()
}

/// A login that may do what the exporter does, and no more.
async fn exporter_login(database: &crate::support::postgres::Database) -> String {
    let name = format!("exporter_{}", clock::new_id().simple());
    database
        .execute(&format!(
            "create role {name} login in role taffrail_balance"
        ))
        .await;
    database.url().replace("postgres@", &format!("{name}@"))
}

async fn a_ledger_and_a_balance_in(writer: &Store, store: &Store) {
    let now = clock::wall();
    // In this hour, whatever the minute.
    let this_hour = now.with_minute(0).unwrap().with_second(0).unwrap();
    let records = [
        costs("anthropic", &["1.25", "0.000001"], this_hour),
        costs("openrouter", &["48"], this_hour),
    ];
    let applied = writer.apply(&records.concat()).await.unwrap();
    assert_eq!(applied.stored, 3);
    let billing =
        Vendor::start(|_| reply(200, r#"{"data":{"total_credits":100,"total_usage":40}}"#)).await;
    let ledger = Account {
        top_ups: vec![TopUp {
            at: now - TimeDelta::days(1),
            amount: Decimal::from(20),
        }],
        ..account("anthropic", "main")
    };
    let accounts = vec![ledger, account("openrouter", "prod")];
    let reader = Reader::new(accounts.clone(), &billing.url(), store);
    reader.balances.run().await.unwrap();
    let text = reader.exposition();
    for line in [
        r#"taffrail_balance{provider="anthropic",account="main",kind="ledger",currency="USD"} 18.749999"#,
        r#"taffrail_balance{provider="openrouter",account="prod",kind="prepaid",currency="USD"} 60"#,
        // 48 dollars in a day.
        r#"taffrail_balance_burn_per_hour{provider="openrouter",account="prod",currency="USD"} 2"#,
    ] {
        assert!(text.contains(line), "{text}");
    }
    let left = Scrape(text).total("taffrail_balance_time_left_seconds");
    // Thirty hours for the one, and more for the other.
    assert!(left > 30.0 * 3_600.0 - 60.0, "{left}");
    // Once for the slot, whoever comes next.
    let other = Reader::new(accounts, &billing.url(), store);
    other.balances.run().await.unwrap();
    reader.balances.run().await.unwrap();
    assert_eq!(billing.asked().len(), 1);
    let shown = other.exposition();
    assert!(
        shown.contains(r#"account="prod",kind="prepaid",currency="USD"} 60"#),
        "{shown}"
    );
    assert_eq!(store.latest_balances().await.unwrap().len(), 2);
    // What was asked for is a reading of its own.
    assert_eq!(reader.sync().await.len(), 2);
    assert_eq!(store.latest_balances().await.unwrap().len(), 4);
}

/// Accounts of one provider, whose traffic is told apart by its keys.
async fn ledgers_of_several_accounts_in(writer: &Store, store: &Store) {
    let now = clock::wall();
    let by = |key: &str, dollars: &str| {
        let mut records = costs("anthropic", &[dollars], now - TimeDelta::hours(1));
        records[0].caller.key_fingerprint = Some(key.into());
        records.remove(0)
    };
    let records = [
        by("9f86d081884c7d65", "1.25"),
        by("9f86d081884c7d65", "0.5"),
        by("4bf92f3577b34da6", "3"),
        by("0000000000000000", "7"),
    ];
    assert_eq!(writer.apply(&records).await.unwrap().stored, 4);
    let ledger = |name: &str, keys: Option<&str>, days: i64| Account {
        key_fingerprints: keys.map(str::to_owned),
        top_ups: vec![TopUp {
            at: now - TimeDelta::days(days),
            amount: Decimal::from(20),
        }],
        ..account("anthropic", name)
    };
    let accounts = vec![
        ledger("one", Some("9f86d081884c7d65"), 1),
        ledger("other", Some("4bf92f3577b34da6 5555555555555555"), 1),
        ledger("old", Some("4bf92f3577b34da6"), 91),
        ledger("whose", None, 1),
    ];
    let reader = Reader::new(accounts, "http://127.0.0.1:9", store);
    let readings = reader.sync().await;
    let told: Vec<(&str, &str, Option<String>, &str)> = readings
        .iter()
        .map(|it| {
            let amount = it.balances.first().and_then(|balance| balance.amount);
            let amount = amount.map(|amount| amount.normalize().to_string());
            let detail = it.detail.as_deref().unwrap_or_default();
            (it.account.as_str(), it.result.as_str(), amount, detail)
        })
        .collect();
    let expected = [
        ("old", "unsupported", None, "kept for 90 days"),
        ("one", "ok", Some("18.25"), ""),
        ("other", "ok", Some("17"), ""),
        (
            "whose",
            "unsupported",
            None,
            "name its keys in accounts[].key_fingerprints",
        ),
    ];
    for ((account, result, amount, detail), (own, ended, left, word)) in told.iter().zip(expected) {
        assert_eq!((*account, *result, amount.as_deref()), (own, ended, left));
        assert!(detail.contains(word), "{detail}");
    }
}

#[tokio::test]
async fn ledgers_and_burn_rates_come_from_the_sums_of_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(dir.path()).await;
    a_ledger_and_a_balance_in(&store, &store).await;
    store.close().await;
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(dir.path()).await;
    ledgers_of_several_accounts_in(&store, &store).await;
    store.close().await;
}

#[tokio::test]
async fn ledgers_and_burn_rates_come_from_the_sums_of_postgres() {
    let Some(cluster) = Cluster::shared(Version::Default).await else {
        return;
    };
    let database = cluster.database().await;
    let config = |url: String| store::Config {
        url,
        ..store::Config::default()
    };
    let owner = Store::open(&config(database.url())).await.unwrap();
    let url = exporter_login(&database).await;
    let exporter = Store::open(&config(url)).await.unwrap();
    ledgers_of_several_accounts_in(&owner, &exporter).await;
    owner
        .drop_balances(clock::wall().date_naive() + TimeDelta::days(1))
        .await
        .unwrap();
    database
        .execute("delete from taffrail.api_usage_logs; delete from taffrail.api_usage_aggregates")
        .await;
    a_ledger_and_a_balance_in(&owner, &exporter).await;
    exporter.close().await;
    owner.close().await;
}

/// A store's account of readings: a failure gives way to a success, a success to nothing.
async fn one_reading_a_slot(store: &Store) {
    let now = clock::wall();
    let reading = |result: &str, amount: Option<i64>| BalanceReading {
        provider: "openrouter".to_owned(),
        account: "prod".to_owned(),
        slot: now,
        read_at: now,
        result: result.to_owned(),
        balances: amount
            .into_iter()
            .flat_map(|amount| {
                ["USD", "CNY"].map(|currency| balance::Balance {
                    kind: balance::BalanceKind::Prepaid,
                    currency: currency.to_owned(),
                    amount: Some(Decimal::from(amount)),
                })
            })
            .collect(),
        detail: Some("a word".to_owned()),
        raw: Some(r#"{"a":1}"#.to_owned()),
    };
    let good = reading("ok", Some(5));
    for (next, is_taken) in [
        (reading("timeout", None), true),
        (reading("error", None), false),
        (good.clone(), true),
        (reading("auth", None), false),
        (reading("ok", Some(7)), false),
    ] {
        assert_eq!(
            store.record_balance(&next).await.unwrap(),
            is_taken,
            "{next:?}"
        );
    }
    assert_eq!(store.latest_balances().await.unwrap(), [good]);
}

#[tokio::test]
async fn a_slot_has_one_reading() {
    let dir = tempfile::tempdir().unwrap();
    let store = sqlite(dir.path()).await;
    one_reading_a_slot(&store).await;
    store.close().await;
    let Some(cluster) = Cluster::shared(Version::Default).await else {
        return;
    };
    let database = cluster.database().await;
    let config = store::Config {
        url: database.url(),
        ..store::Config::default()
    };
    let store = Store::open(&config).await.unwrap();
    one_reading_a_slot(&store).await;
    let lasting = Duration::from_secs(3600);
    assert!(store.take_lease("balances", "one", lasting).await.unwrap());
    assert!(!store.take_lease("balances", "two", lasting).await.unwrap());
    assert!(
        store
            .take_lease("balances", "one", Duration::ZERO)
            .await
            .unwrap()
    );
    assert!(store.take_lease("balances", "two", lasting).await.unwrap());
    store.close().await;
}

#[tokio::test]
async fn a_fleet_reads_once_though_its_reader_sleeps_past_its_lease() {
    let Some(cluster) = Cluster::shared(Version::Default).await else {
        return;
    };
    let database = cluster.database().await;
    // The first that asks waits for an answer, and shall sleep.
    let first = Arc::new(Mutex::new(None::<String>));
    let asker = first.clone();
    let billing = Vendor::start(move |asked| {
        let key = asked.header("authorization").unwrap().to_owned();
        let mut asker = asker.lock().unwrap();
        let is_first = asker.get_or_insert(key.clone()) == &key;
        let good = reply(200, r#"{"data":{"total_credits":100,"total_usage":40}}"#);
        match is_first {
            true => good.finish(Finish::Silent),
            false => good,
        }
    })
    .await;
    let home = |key: &str| {
        let mut home = Home::with(&format!(
            "[schedule]\nbalances = \"*/2 * * * * *\"\njitter = \"1ms\"\ntimeout = \"3s\"\n\
             [providers.openrouter]\nbilling_url = \"{}\"\n\
             [[accounts]]\nprovider = \"openrouter\"\nname = \"prod\"\napi_key = \"{key}\"\n",
            billing.url()
        ));
        home.set("ROLE", "exporter");
        home.set("STORE__URL", database.url());
        home
    };
    let homes = ["one", "two", "three"].map(home);
    homes[0].run(&["migrate"]).await;
    let mut servers = Vec::new();
    for home in &homes {
        servers.push(home.start().await);
    }
    eventually("one of them asks", async || first.lock().unwrap().is_some()).await;
    let sleeper = first.lock().unwrap().clone().unwrap();
    let sleeper = ["Bearer one", "Bearer two", "Bearer three"]
        .iter()
        .position(|own| **own == sleeper);
    servers[sleeper.unwrap()].signal("STOP").await;
    let count = async || -> u64 {
        let sql = "select count(*) from taffrail.api_provider_balances where result = 'ok'";
        database.query(sql).await[0][0].parse().unwrap()
    };
    eventually("another one reads", async || count().await >= 2).await;
    servers[sleeper.unwrap()].signal("CONT").await;
    let before = count().await;
    eventually("they go on", async || count().await >= before + 2).await;
    let doubled = database
        .query(
            "select slot from taffrail.api_provider_balances \
             group by provider, account, slot having count(*) > 1",
        )
        .await;
    assert!(doubled.is_empty(), "{doubled:?}");
    // Readings stand at the moments that the schedule names.
    let odd = database
        .query(
            "select slot from taffrail.api_provider_balances \
             where extract(second from slot)::numeric % 2 <> 0",
        )
        .await;
    assert!(odd.is_empty(), "{odd:?}");
    for server in servers {
        server.stop().await;
    }
}

#[tokio::test]
async fn a_key_is_the_one_that_its_file_or_variable_has_now() {
    let billing =
        Vendor::start(|_| reply(200, r#"{"data":{"total_credits":100,"total_usage":40}}"#)).await;
    let mut home = Home::with(&format!(
        "[schedule]\nbalances = \"* * * * * *\"\njitter = \"1ms\"\n\
         [providers.openrouter]\nbilling_url = \"{}\"\n\
         [[accounts]]\nprovider = \"openrouter\"\nname = \"file\"\napi_key_file = \"key\"\n\
         [[accounts]]\nprovider = \"openrouter\"\nname = \"env\"\napi_key_env = \"OPENROUTER_API_KEY\"\n",
        billing.url()
    ));
    home.set("ROLE", "exporter");
    home.set_variable("OPENROUTER_API_KEY", "canary-of-the-variable");
    let file = home.path().join("key");
    std::fs::write(&file, "canary-before\n").unwrap();
    let server = home.start().await;
    let asked_with = |key: &str| {
        let key = format!("Bearer {key}");
        let asked = billing.asked();
        let with = asked
            .iter()
            .filter(|it| it.header("authorization") == Some(&key));
        with.count()
    };
    eventually("both keys are used", async || {
        asked_with("canary-before") > 0 && asked_with("canary-of-the-variable") > 0
    })
    .await;
    std::fs::write(&file, "canary-after\n").unwrap();
    eventually("the new key is used", async || {
        asked_with("canary-after") > 0
    })
    .await;
    // What was under way may still end; from then on the old key is not used.
    let before = asked_with("canary-before");
    let after = asked_with("canary-after");
    eventually("it is used again", async || {
        asked_with("canary-after") > after + 1
    })
    .await;
    assert!(asked_with("canary-before") <= before + 1);
    // A file that is gone is said, and the other account goes on.
    std::fs::remove_file(&file).unwrap();
    let auth = [("account", "file"), ("result", "auth")];
    let scrape = server
        .once("the file is missed", |scrape| {
            scrape.sum("taffrail_balance_syncs_total", &auth) > 0
        })
        .await;
    let shown = [("account", "file"), ("kind", "prepaid")];
    assert_eq!(scrape.sum("taffrail_balance", &shown), 60);
    let log = server.stop().await;
    assert!(!log.contains("canary"), "{log}");
}

#[tokio::test]
async fn what_traffic_shows_is_the_accounts_whose_key_it_carries() {
    let vendor = Vendor::start(|asked| match asked.target.as_str() {
        "/api/v1/credits" => reply(200, r#"{"data":{"total_credits":100,"total_usage":40}}"#),
        _ => reply(
            429,
            r#"{"error":{"code":429,"message":"Rate limit exceeded"}}"#,
        ),
    })
    .await;
    let account = |name: &str| {
        format!(
            "[[accounts]]\nprovider = \"openrouter\"\nname = \"{name}\"\napi_key = \"sk-{name}\"\n"
        )
    };
    let home = Home::with(&format!(
        "[schedule]\nbalances = \"{YEARLY}\"\n[providers.openrouter]\nupstream = \"{}\"\n{}{}",
        vendor.url(),
        account("busy"),
        account("idle")
    ));
    let server = home.start().await;
    let body = r#"{"model":"a/b","messages":[]}"#;
    let request = format!(
        "POST /openrouter/api/v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer sk-busy\r\n\
         content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let state = |scrape: &Scrape, account, state| {
        let labels = [("account", account), ("state", state)];
        scrape.sum("taffrail_account_state", &labels)
    };
    let post =
        b"POST /-/sync HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let answer = crate::support::http::ask(server.proxy, request.as_bytes()).await;
    assert_eq!(answer.status, 429);
    server.stored(1).await;
    let answer = crate::support::http::ask(server.admin, post).await;
    assert_eq!(answer.status, 200);
    let scrape = server.scrape().await;
    assert_eq!(state(&scrape, "busy", "throttled"), 1, "{}", scrape.0);
    assert_eq!(state(&scrape, "idle", "ok"), 1, "{}", scrape.0);
    server.stop().await;
}

#[tokio::test]
async fn traffic_shows_that_an_account_has_nothing_left() {
    let vendor = Vendor::start(|_| {
        reply(402, r#"{"title":"Insufficient credit","detail":"You have insufficient credit to run this model.","status":402}"#)
    })
    .await;
    let home = Home::with(&format!(
        "[schedule]\nbalances = \"{YEARLY}\"\n[providers.replicate]\nupstream = \"{}\"\n\
         [[accounts]]\nprovider = \"replicate\"\nname = \"main\"\n",
        vendor.url()
    ));
    let server = home.start().await;
    let body = r#"{"version":"a/b","input":{}}"#;
    let request = format!(
        "POST /replicate/v1/predictions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer r8_x\r\n\
         content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let answer = crate::support::http::ask(server.proxy, request.as_bytes()).await;
    assert_eq!(answer.status, 402);
    server.stored(1).await;
    let post =
        b"POST /-/sync HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let answer = crate::support::http::ask(server.admin, post).await;
    // That a provider tells no balance is no failure.
    assert_eq!(answer.status, 200);
    let (_, text) = get(server.admin, "/metrics").await;
    let scrape = Scrape(text);
    let state = |state| {
        scrape.sum(
            "taffrail_account_state",
            &[("account", "main"), ("state", state)],
        )
    };
    assert_eq!((state("exhausted"), state("ok")), (1, 0), "{}", scrape.0);
    assert!(
        !scrape.0.contains("taffrail_balance_sync_up{"),
        "{}",
        scrape.0
    );
    server.stop().await;
}
