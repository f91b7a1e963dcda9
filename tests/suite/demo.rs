//! The demo: what it reports is what its clients counted, what it suggests works, and nothing
//! that was said stays behind.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use rust_decimal::Decimal;
use taffrail::clock;
use taffrail::demo::dice::WORDS;
use taffrail::demo::lookalike::Vendor;
use taffrail::demo::traffic::{self, Counts};
use taffrail::demo::{Demo, Setting};
use taffrail::fault::Outcome;
use taffrail::usage::{Unit, Usage};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

/// The vendors' list prices of 2026-11, in US dollars for a million tokens: uncached input, cache
/// reads, cache writes (an hour's for the model that asks for an hour), output.
const PRICES: [(&str, [&str; 4]); 7] = [
    ("gpt-6.1-sol", ["2", "0.1", "2.5", "10"]),
    ("gpt-6-luna", ["0.1", "0.01", "0.125", "0.5"]),
    ("gpt-4o-mini-2024-07-18", ["0.15", "0.075", "0", "0.6"]),
    ("text-embedding-3-small", ["0.02", "0", "0", "0"]),
    ("claude-opus-5-5", ["4", "0.2", "8", "20"]),
    ("claude-sonnet-5-5", ["2", "0.1", "2.5", "10"]),
    ("claude-haiku-5-5", ["0.1", "0.01", "0.125", "0.5"]),
];

pub(crate) fn list_price(model: &str, usage: &Usage) -> Decimal {
    let (_, prices) = PRICES.iter().find(|(name, _)| *name == model).unwrap();
    let price = |unit| match unit {
        Unit::Input => prices[0],
        Unit::CacheRead => prices[1],
        Unit::CacheWrite | Unit::CacheWrite5m | Unit::CacheWrite1h => prices[2],
        Unit::Output | Unit::Reasoning => prices[3],
        unit => panic!("no vendor sells {unit}"),
    };
    let costs = usage.iter().map(|(unit, tokens)| {
        price(unit).parse::<Decimal>().unwrap() * tokens / Decimal::from(1_000_000)
    });
    costs.sum()
}

/// Requests, tokens and cost of each provider and model, as the clients know them.
fn expected(counts: &Counts) -> BTreeMap<(String, String), (u64, Decimal, Decimal)> {
    let mut expected: BTreeMap<_, (u64, Decimal, Decimal)> = BTreeMap::new();
    for (key, tally) in &counts.tallies {
        let cost = match (key.vendor, tally.charged) {
            (Vendor::OpenAi | Vendor::Anthropic, None) if tally.usage.is_empty() => Decimal::ZERO,
            (Vendor::OpenAi | Vendor::Anthropic, None) => list_price(key.model, &tally.usage),
            (_, charged) => charged.unwrap_or_default().dollars(),
        };
        let name = (key.vendor.name().to_owned(), key.model.to_owned());
        let sums = expected.entry(name).or_default();
        sums.0 += tally.requests;
        sums.1 += tally
            .usage
            .iter()
            .filter(|(unit, _)| unit.is_token())
            .map(|(_, tokens)| tokens)
            .sum::<Decimal>();
        sums.2 += cost;
    }
    for sums in expected.values_mut() {
        sums.2 = sums.2.normalize();
    }
    expected
}

/// The same from the lines of `taffrail usage --format json`.
fn reported(lines: &str) -> BTreeMap<(String, String), (u64, Decimal, Decimal)> {
    let rows = lines.lines().map(|line| {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| row[key].as_str().unwrap().to_owned();
        let tokens = Unit::ALL.iter().filter(|unit| unit.is_token()).map(|unit| {
            let quantity = &row[format!("{unit}_tokens")];
            match quantity.as_str() {
                Some(quantity) => quantity.parse().unwrap(),
                None => quantity.as_i64().map_or(Decimal::ZERO, Decimal::from),
            }
        });
        let cost = row["cost_usd"]
            .as_str()
            .map_or(Decimal::ZERO, |cost| cost.parse().unwrap());
        let sums = (
            row["requests"].as_u64().unwrap(),
            tokens.sum(),
            cost.normalize(),
        );
        ((text("provider"), text("model")), sums)
    });
    rows.collect()
}

/// Why rows have no cost, by model and outcome.
type Reasons = BTreeMap<(String, String), String>;

/// What the rows of Replicate and fal say: why some have no cost, after a look at whether each is
/// a job or a run of its own.
fn unpriced(rows: &str) -> Reasons {
    let (mut reasons, mut jobs) = (Reasons::new(), BTreeSet::new());
    for row in rows.lines() {
        let row: serde_json::Value = serde_json::from_str(row).unwrap();
        let text = |key: &str| row[key].as_str().map(str::to_owned);
        if !["replicate", "fal"].contains(&row["provider"].as_str().unwrap()) {
            continue;
        }
        assert_eq!(row["operation"], "prediction", "{row}");
        if let Some(job) = text("job_id") {
            assert!(jobs.insert(job), "a job was counted twice: {row}");
        }
        if let Some(reason) = text("unpriced_reason") {
            let model = text("model_served").or_else(|| text("model_requested"));
            reasons.insert((model.unwrap(), text("outcome").unwrap()), reason);
        }
    }
    assert!(!jobs.is_empty());
    reasons
}

async fn shell(command: &str) -> String {
    let output = Command::new("sh")
        .arg("-c")
        .arg(command)
        .output()
        .await
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// The outcomes of the rows that a `logs` command shows.
async fn newest(logs: &str) -> Vec<String> {
    let rows = shell(&format!("{logs} --format json")).await;
    let outcome = |row: &str| {
        let row: serde_json::Value = serde_json::from_str(row).unwrap();
        row["outcome"].as_str().unwrap().to_owned()
    };
    rows.lines().map(outcome).collect()
}

/// Every byte below a folder.
fn bytes_below(folder: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => bytes.extend(bytes_below(&path)),
            false => bytes.extend(std::fs::read(&path).unwrap()),
        }
    }
    bytes
}

fn holds(bytes: &[u8], word: &str) -> bool {
    memchr::memmem::find(bytes, word.as_bytes()).is_some()
}

/// Whether a tool is there; a gate that has `CI` set must have it.
async fn has_curl() -> bool {
    let is_there = Command::new("curl").arg("--version").output().await.is_ok();
    let is_gate = std::env::var_os("CI").is_some_and(|ci| ci == "1");
    assert!(is_there || !is_gate, "curl is not installed");
    is_there
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_reports_what_its_clients_counted_and_suggests_what_works() {
    let program = env!("CARGO_BIN_EXE_taffrail");
    let demo = Demo::start(Setting::default()).await.unwrap();
    let until = clock::instant() + Duration::from_secs(5);
    let counts = traffic::run(demo.proxy(), 7, until, CancellationToken::new()).await;

    // Long enough for everything that the demo has to show.
    for outcome in [
        Outcome::Ok,
        Outcome::RateLimited,
        Outcome::QuotaExhausted,
        Outcome::UpstreamError,
        Outcome::UpstreamTruncated,
        Outcome::ClientCancelled,
        Outcome::JobFailed,
    ] {
        let has = counts.tallies.keys().any(|key| key.outcome == outcome);
        assert!(has, "no {outcome} among {} requests", counts.requests());
    }

    // Outcome by outcome and feature by feature, to the token.
    assert_eq!(
        demo.differences(&counts).await.unwrap(),
        Vec::<String>::new()
    );

    // What `taffrail usage` says, to the last digit of the cost.
    let config = demo.folder().join("taffrail.toml");
    let usage = format!(
        "{program} usage --by provider,model --format json --config {}",
        config.display()
    );
    assert_eq!(reported(&shell(&usage).await), expected(&counts));

    // Each job is one row, however often it was asked for, with its price or with the reason why
    // it has none.
    let config = config.display();
    let logs = format!("{program} logs --all --format json --config {config}");
    let time = "meta/meta-llama-3-70b-instruct";
    let video = "fal-ai/kling-video/v2.1/standard/text-to-video";
    let reasons = [
        ("stability-ai/sdxl", "ok", "model_unknown"),
        (video, "ok", "model_unknown"),
        // It failed, and states the time that its model has no price for.
        (time, "job_failed", "price_missing"),
        // These state nothing, and may have run for a while.
        ("fal-ai/flux/schnell", "job_failed", "usage_missing"),
        ("stability-ai/sdxl", "client_cancelled", "usage_missing"),
    ]
    .map(|(model, outcome, reason)| {
        let row = (model.to_owned(), outcome.to_owned());
        (row, reason.to_owned())
    });
    assert_eq!(unpriced(&shell(&logs).await), Reasons::from(reasons));
    assert!(counts.polls > 0);

    let mut table = Vec::new();
    demo.report(&mut table).await.unwrap();
    let table = String::from_utf8(table).unwrap();
    assert!(
        [
            "claude-opus-5-5",
            "stability-ai/sdxl",
            "fal-ai/flux/dev",
            "Total"
        ]
        .iter()
        .all(|name| table.contains(name)),
        "{table}"
    );

    if has_curl().await {
        let [ask, trouble, logs, usage, metrics] = &demo.suggestions(program)[..] else {
            panic!("other suggestions than this test knows");
        };
        let answer = shell(&ask.1).await;
        assert!(answer.contains("chat.completion.chunk"), "{answer}");
        assert!(answer.ends_with("data: [DONE]\n\n"), "{answer}");
        assert!(WORDS.iter().any(|word| answer.contains(word)), "{answer}");
        let refusal = shell(&trouble.1).await;
        assert!(refusal.contains("rate_limit_exceeded"), "{refusal}");
        let expected = ["rate_limited", "ok"];
        let deadline = clock::instant() + Duration::from_secs(10);
        while newest(&logs.1).await != expected {
            assert!(clock::instant() < deadline, "{:?}", newest(&logs.1).await);
        }
        let usage = shell(&usage.1).await;
        assert!(
            usage.contains("mine") && usage.contains("code-review"),
            "{usage}"
        );
        let metrics = shell(&metrics.1).await;
        assert!(metrics.contains(r#"provider="anthropic""#), "{metrics}");
    } else {
        println!("SKIP: curl is not installed, so the suggestions were not tried");
    }

    let kept = bytes_below(demo.folder());
    assert!(holds(&kept, "claude-opus-5-5"));
    // Shorter words may be in there by chance.
    for word in WORDS.iter().filter(|word| word.len() > 5) {
        assert!(!holds(&kept, word), "`{word}` was kept");
    }
    for secret in ["Ahoy!", "demo-key-of", "sk-demo", "sk-ant"] {
        assert!(!holds(&kept, secret), "`{secret}` was kept");
    }

    let folder = demo.folder().to_owned();
    demo.stop().await.unwrap();
    assert!(!folder.exists());
}

#[tokio::test]
async fn a_demo_that_ends_by_itself_leaves_a_report_and_nothing_else() {
    let scratch = tempfile::tempdir().unwrap();
    // Whoever has the usual ports, the demo must do without them.
    let _taken = [4800, 10480].map(|port| TcpListener::bind(("127.0.0.1", port)));
    let output = Command::new(env!("CARGO_BIN_EXE_taffrail"))
        .args(["demo", "--seconds", "1"])
        .env("TMPDIR", scratch.path())
        .output()
        .await
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stdout}{stderr}");
    assert!(
        stdout.contains("openrouter") && stdout.contains("Total"),
        "{stdout}"
    );
    assert!(stdout.contains("The clients counted the same"), "{stdout}");
    assert!(stdout.contains("Jobs count once"), "{stdout}");
    assert!(
        stderr.contains("the proxy listens on another port"),
        "{stderr}"
    );
    assert!(stderr.contains("requests ("), "{stderr}");
    assert_eq!(bytes_below(scratch.path()), b"");
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}
