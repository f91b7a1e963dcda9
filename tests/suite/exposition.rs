//! The exposition as a scraper sees it: golden files, the catalogue, the formats against each
//! other, promtool, the bounds on series, and `docs/metrics.md`.

#![expect(
    clippy::float_cmp,
    reason = "the values of the exposition are whole numbers or the very decimals expected"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use prometheus_client::encoding::prometheus_protobuf::prometheus_data_model::MetricFamily;
use prost::Message;
use rust_decimal::Decimal;
use taffrail::balance::BalanceKind;
use taffrail::caller::{Caller, Instance};
use taffrail::fault::{Outcome, OutcomeClass};
use taffrail::metrics::catalogue::{self, Descriptor, Group, Kind};
use taffrail::metrics::exposition::Format;
use taffrail::metrics::{
    AccountState, AccountView, BillView, BillWindow, Config, HandshakeFault, JobLimit,
    JournalFault, JournalReading, Level, Limit, Listener, Metrics, Phase, PriceResult, ProxyError,
    Reason, ReceiptResult, ReviewResult, Rewrite, RunResult, Spend, Stage, SyncResult, Window,
    labels, process,
};
use taffrail::money::Usd;
use taffrail::provider::RateLimit;
use taffrail::record::{CostSource, Fidelity, Intent, Operation, UnpricedReason, UsageRecord};
use taffrail::usage::{Unit, Usage};
use tokio::time::Instant;
use uuid::Uuid;

/// A streamed chat that ended well, with usage and a cost.
pub(crate) fn chat(provider: &str, model: &str) -> UsageRecord {
    let intent = Intent {
        id: Uuid::nil(),
        started_at: DateTime::UNIX_EPOCH,
        provider: provider.into(),
        operation: Operation::Chat,
        method: "POST".to_owned(),
        route: "/v1/chat/completions".to_owned(),
        model_requested: Some(model.to_owned()),
        caller: Caller::default(),
        job: None,
    };
    UsageRecord {
        streamed: true,
        outcome: Outcome::Ok,
        http_status: Some(200),
        duration_us: Some(2_500_000),
        first_token_us: Some(500_000),
        request_bytes: Some(1_000),
        response_bytes: Some(20_000),
        usage: Usage::new().with(Unit::Input, 12).with(Unit::Output, 101),
        fidelity: Fidelity::Complete,
        cost_usd: Usd::from_json_number("0.000123"),
        cost_source: Some(CostSource::Catalog),
        unpriced_reason: None,
        ..intent.interrupted(Instance::default())
    }
}

fn by_team(team: &str, record: UsageRecord) -> UsageRecord {
    let attribution = BTreeMap::from([("team".to_owned(), team.to_owned())]);
    let caller = Caller {
        attribution,
        ..Caller::default()
    };
    UsageRecord { caller, ..record }
}

fn metrics(config: &Config) -> Metrics {
    Metrics::new(config, &["team".to_owned()], &["anthropic", "openai"])
}

/// The samples of the text exposition, by name and labels.
fn samples(metrics: &Metrics) -> BTreeMap<String, f64> {
    parse(&text(metrics, Format::Text))
}

fn text(metrics: &Metrics, format: Format) -> String {
    String::from_utf8(metrics.encode(format, now())).unwrap()
}

pub(crate) fn parse(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
            (
                series.to_owned(),
                value.parse().expect("a value is a number"),
            )
        })
        .collect()
}

/// The sum of a family's samples over all labels.
fn total(samples: &BTreeMap<String, f64>, name: &str) -> f64 {
    let of_family = samples
        .iter()
        .filter(|(series, _)| series.as_str() == name || series.starts_with(&format!("{name}{{")));
    of_family.map(|(_, value)| value).sum()
}

/// Some time, the same throughout the process.
fn now() -> Instant {
    static NOW: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *NOW.get_or_init(taffrail::clock::instant)
}

/// Metrics in which every family has a series, with fixed values.
fn touched() -> Metrics {
    let metrics = metrics(&Config::default());
    metrics.observe(&by_team("search", chat("openai", "gpt-4o-mini")));
    metrics.observe(&by_team(
        "search",
        UsageRecord {
            model_served: Some("claude-sonnet-4-5".to_owned()),
            usage: Usage::new()
                .with(Unit::Input, 700)
                .with(Unit::CacheRead, 2_000)
                .with(Unit::CacheWrite5m, 300)
                .with(Unit::CacheWrite1h, 30)
                .with(Unit::Output, 40)
                .with(Unit::Reasoning, 11)
                .with(Unit::Search, 2),
            cost_source: Some(CostSource::Provider),
            cache_effect_usd: Usd::from_json_number("0.005085"),
            ..chat("anthropic", "claude-sonnet-4-5-latest")
        },
    ));
    metrics.observe(&UsageRecord {
        cache_effect_usd: Usd::from_json_number("-0.00075"),
        ..chat("anthropic", "claude-sonnet-4-5")
    });
    metrics.observe(&UsageRecord {
        operation: Operation::Image,
        streamed: false,
        first_token_us: None,
        queue_us: Some(1_200_000),
        run_us: Some(8_000_000),
        usage: Usage::new()
            .with(Unit::Image, 1)
            .with(Unit::Megapixel, Decimal::new(1_048_576, 6)),
        cost_usd: None,
        cost_source: None,
        unpriced_reason: Some(UnpricedReason::ModelUnknown),
        ..chat("openai", "gpt-image-1")
    });
    metrics.observe(&UsageRecord {
        outcome: Outcome::RateLimited,
        http_status: Some(429),
        streamed: false,
        first_token_us: None,
        usage: Usage::new(),
        cost_usd: None,
        cost_source: None,
        ..chat("openai", "gpt-4o-mini")
    });
    metrics.observe(&UsageRecord {
        operation: Operation::Models,
        model_requested: None,
        streamed: false,
        first_token_us: None,
        usage: Usage::new(),
        cost_usd: None,
        cost_source: None,
        fidelity: Fidelity::Silent,
        unpriced_reason: Some(UnpricedReason::UsageMissing),
        ..chat("openai", "")
    });
    std::mem::forget(metrics.in_flight("openai"));
    std::mem::forget(metrics.job_open("openai"));
    std::mem::forget(metrics.job_end_waiting("openai"));
    metrics.job_limited(JobLimit::Open);
    std::mem::forget(metrics.connection(Listener::Proxy));
    metrics.connection_refused(Listener::Proxy);
    metrics.handshake_failed(HandshakeFault::Refused);
    metrics.overhead(Phase::Request, Duration::from_micros(80));
    metrics.overhead(Phase::Response, Duration::from_micros(20));
    metrics.rewrite("openai", Rewrite::UsageInjection);
    metrics.upstream_retry("openai");
    metrics.proxy_error(ProxyError::UnknownProvider);
    let limits = [
        limit("requests", Some(500), Some(499)),
        limit("tokens", Some(200_000), Some(0)),
    ];
    metrics.rate_limits("openai", &limits, now());
    metrics.records(Stage::Completed, Reason::None, 10);
    metrics.records(Stage::Journaled, Reason::None, 9);
    metrics.records(Stage::Dropped, Reason::JournalFull, 1);
    metrics.records(Stage::Journaled, Reason::Recovered, 3);
    metrics.records(Stage::Stored, Reason::None, 7);
    metrics.records(Stage::Duplicate, Reason::None, 2);
    metrics.records(Stage::DeadLettered, Reason::Rejected, 1);
    metrics.watch_journal(Box::new(|_| JournalReading {
        pending_records: 2,
        unreadable_records: 0,
        faults: vec![(JournalFault::TornTail, 1)],
        bytes: 4_096,
        bytes_max: 1 << 30,
        oldest_record_age: Some(Duration::from_millis(1_500)),
    }));
    metrics.on_scrape(Box::new(|metrics| {
        metrics.process(&process::Reading {
            cpu_seconds: Some(1.25),
            resident_bytes: Some(1e7),
            virtual_bytes: Some(5e8),
            threads: Some(4.0),
            open_fds: Some(20.0),
            max_fds: Some(1024.0),
            start_time_seconds: Some(1_700_000_000.5),
        });
    }));
    metrics.journal_fsync(Duration::from_micros(900));
    metrics.late_commit();
    metrics.store_up(true);
    metrics.store_batch(Duration::from_millis(12));
    metrics.store_retry();
    metrics.spend(vec![spend(Window::Day, "gpt-4o-mini", "1.25")]);
    metrics.price_models("openai", "catalog", 60);
    let then = DateTime::from_timestamp(1_700_000_000, 500_000_000).unwrap();
    metrics.price_refresh("openrouter", "api", PriceResult::Ok, then);
    metrics.price_refresh("openrouter", "api", PriceResult::Error, then);
    metrics.price_held_back("openrouter", "api", 0);
    metrics.account("fal", "prod", &[(Level::Warning, Decimal::TEN)]);
    metrics.balance_sync("fal", "prod", SyncResult::Ok, Duration::from_millis(300));
    let view = AccountView {
        balances: vec![("prepaid", "USD".to_owned(), Decimal::new(245_031, 4))],
        burn_per_hour: vec![("USD".to_owned(), Decimal::new(5, 1))],
        time_left: vec![("USD".to_owned(), Duration::from_secs(176_400))],
        last_success: Some(then),
        is_up: Some(true),
        state: Some(AccountState::Ok),
    };
    metrics.account_view("fal", "prod", &AccountView::default(), &view);
    metrics.retention();
    metrics.bills("fal", "prod");
    metrics.bill_read("fal", "prod", SyncResult::Ok);
    metrics.receipts("fal", "prod");
    metrics.receipt("fal", "prod", ReceiptResult::Settled, 2);
    metrics.receipt_call("fal", "prod", SyncResult::Ok);
    let bills = BillView {
        until: Some(then),
        windows: vec![(
            BillWindow::Day,
            Some(Decimal::new(125, 1)),
            Some(Decimal::new(25, 1)),
        )],
    };
    metrics.bill_view("fal", "prod", &bills);
    metrics.schedule_task("prices");
    metrics.schedule_run("prices", RunResult::Ok, then);
    metrics.injector();
    metrics.injector_review(ReviewResult::Injected, 1);
    metrics.injector_certificate_check(RunResult::Ok);
    metrics.injector_certificate_expiry(then);
    metrics.tls_certificate_expiry(then);
    metrics.meter_panic();
    metrics
}

fn spend(window: Window, model: &str, usd: &str) -> Spend {
    Spend {
        window,
        provider: "openai".to_owned(),
        model: Some(model.to_owned()),
        attribution: vec![Some("search".to_owned())],
        usd: usd.parse().unwrap(),
    }
}

fn limit(kind: &'static str, limit: Option<u64>, remaining: Option<u64>) -> RateLimit {
    RateLimit {
        kind,
        limit,
        remaining,
    }
}

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Holds a file of the repository to what the code says; `UPDATE_GOLDEN=1` rewrites it.
fn assert_golden(path: &str, actual: &str) {
    let file = in_repository(path);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        expected == actual,
        "{path} differs from what the code says; UPDATE_GOLDEN=1 rewrites it, review the change"
    );
}

#[test]
fn the_exposition_equals_its_golden_files() {
    let metrics = touched();
    let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    for (path, format) in [
        ("tests/golden/metrics.txt", Format::Text),
        ("tests/golden/metrics.openmetrics", Format::OpenMetrics),
    ] {
        let text = text(&metrics, format).replace(&version, "version=\"0.0.0\"");
        assert_golden(path, &text);
    }
}

/// A family as the text exposition describes it.
#[derive(Debug, Default, PartialEq)]
struct Exposed {
    help: String,
    kind: String,
    labels: BTreeSet<BTreeSet<String>>,
}

/// The names of the labels of a series; no value of ours has a comma or an equals sign in it.
fn label_names(series: &str) -> BTreeSet<String> {
    let labels = series.split_once('{').map_or("", |(_, labels)| labels);
    let pairs = labels.split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn every_family_is_exposed_as_the_catalogue_says() {
    let text = text(&touched(), Format::Text);
    let mut exposed: Vec<(String, Exposed)> = Vec::new();
    for line in text.lines() {
        if let Some((name, help)) = line
            .strip_prefix("# HELP ")
            .map(|rest| rest.split_once(' ').unwrap())
        {
            let help = help.to_owned();
            exposed.push((
                name.to_owned(),
                Exposed {
                    help,
                    ..Exposed::default()
                },
            ));
            continue;
        }
        let (name, family) = exposed.last_mut().unwrap();
        if let Some(kind) = line.strip_prefix(&format!("# TYPE {name} ")) {
            family.kind = kind.to_owned();
        } else {
            let series = line.rsplit_once(' ').unwrap().0;
            assert!(
                series.starts_with(name.as_str()),
                "{line} stands under {name}"
            );
            let mut labels = label_names(series);
            labels.remove("le");
            family.labels.insert(labels);
        }
    }
    let expected: Vec<(String, Exposed)> = catalogue::ALL
        .iter()
        .map(|family| {
            let own = family.labels.iter().map(|label| (*label).to_owned());
            let attribution = family.attribution.then(|| "team".to_owned());
            let exposed = Exposed {
                help: format!("{}.", family.help),
                kind: family.kind.as_str().to_owned(),
                labels: BTreeSet::from([own.chain(attribution).collect()]),
            };
            (family.name.to_owned(), exposed)
        })
        .collect();
    assert_eq!(exposed, expected);
}

#[test]
fn names_follow_the_conventions() {
    for family in catalogue::ALL {
        let name = family.name;
        let is_ours = name.starts_with("taffrail_") || name.starts_with("process_");
        assert!(is_ours, "{name}");
        assert_eq!(
            name.ends_with("_total"),
            family.kind == Kind::Counter,
            "{name}"
        );
        let is_histogram = family.kind == Kind::Histogram;
        assert_eq!(is_histogram, !family.buckets.is_empty(), "{name}");
        if is_histogram {
            assert!(name.ends_with("_seconds"), "{name}");
            assert!(family.buckets.is_sorted_by(|a, b| a < b), "{name}");
            assert!(
                family.buckets.iter().all(|bound| bound.is_finite()),
                "{name}"
            );
        }
        assert!(
            !family.help.ends_with('.'),
            "{name}: the exposition adds the full stop"
        );
    }
    let names: BTreeSet<&str> = catalogue::ALL.iter().map(|family| family.name).collect();
    assert_eq!(names.len(), catalogue::ALL.len(), "every name is used once");
}

fn whole(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap())
}

/// The samples of the protobuf exposition, named as in the text.
fn decode(mut body: &[u8]) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    while !body.is_empty() {
        let family = MetricFamily::decode_length_delimited(&mut body).unwrap();
        for metric in &family.metric {
            let labels: Vec<String> = metric
                .label
                .iter()
                .map(|pair| format!("{}={:?}", pair.name, pair.value))
                .collect();
            let mut put = |suffix: &str, le: Option<String>, value: f64| {
                let le = le.map(|le| format!("le=\"{le}\""));
                let labels: Vec<String> = labels.iter().cloned().chain(le).collect();
                let labels = match labels.is_empty() {
                    true => String::new(),
                    false => format!("{{{}}}", labels.join(",")),
                };
                samples.insert(format!("{}{suffix}{labels}", family.name), value);
            };
            if let Some(counter) = &metric.counter {
                put("", None, counter.value);
            }
            if let Some(gauge) = &metric.gauge {
                put("", None, gauge.value);
            }
            if let Some(histogram) = &metric.histogram {
                for bucket in &histogram.bucket {
                    let bound = match bucket.upper_bound {
                        f64::INFINITY => "+Inf".to_owned(),
                        0.000_025 => "2.5e-05".to_owned(),
                        0.000_05 => "5e-05".to_owned(),
                        bound => format!("{bound:?}"),
                    };
                    put("_bucket", Some(bound), whole(bucket.cumulative_count));
                }
                put("_sum", None, histogram.sample_sum);
                put("_count", None, whole(histogram.sample_count));
            }
        }
    }
    samples
}

#[test]
fn the_three_formats_say_the_same() {
    let metrics = touched();
    let expected = samples(&metrics);
    assert!(expected.len() > 300);
    assert_eq!(parse(&text(&metrics, Format::OpenMetrics)), expected);
    assert_eq!(decode(&metrics.encode(Format::Protobuf, now())), expected);
}

#[test]
fn the_openmetrics_text_is_well_formed() {
    let text = text(&touched(), Format::OpenMetrics);
    assert!(text.ends_with("\n# EOF\n"));
    let mut families = BTreeSet::new();
    let mut family = String::new();
    let mut kind = String::new();
    let mut last_bucket: Option<(String, f64)> = None;
    for line in text.lines().filter(|line| *line != "# EOF") {
        assert!(!line.trim().is_empty(), "blank lines are not allowed");
        if let Some(rest) = line.strip_prefix("# HELP ") {
            family = rest.split_once(' ').unwrap().0.to_owned();
            assert!(families.insert(family.clone()), "{family} is interleaved");
            assert!(
                !family.ends_with("_total"),
                "{family} is the name of samples"
            );
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, type_name) = rest.split_once(' ').unwrap();
            assert_eq!(name, family);
            kind = type_name.to_owned();
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let value: f64 = value.parse().unwrap();
            let name = series.split('{').next().unwrap();
            let suffix = name.strip_prefix(family.as_str()).unwrap();
            let allowed: &[&str] = match kind.as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "histogram" => &["_bucket", "_sum", "_count"],
                other => panic!("{other} is not a type of ours"),
            };
            assert!(allowed.contains(&suffix), "{line} under type {kind}");
            match suffix {
                "_bucket" => {
                    let (labels, bound) = series.rsplit_once("le=\"").unwrap();
                    assert!(
                        bound.starts_with("+Inf") || bound.contains(['.', 'e']),
                        "{line}"
                    );
                    if let Some((previous, count)) = &last_bucket
                        && previous == labels
                    {
                        assert!(value >= *count, "{line}: buckets are cumulative");
                    }
                    last_bucket = Some((labels.to_owned(), value));
                }
                "_count" => assert_eq!(Some(value), last_bucket.as_ref().map(|(_, count)| *count)),
                _ => {}
            }
        }
    }
}

/// Whether a tool is there. Where it is missing a test is skipped, loudly, and fails under `CI=1`.
pub(crate) fn has_tool(name: &str) -> bool {
    let found = Command::new(name).arg("--version").output().is_ok();
    if !found {
        assert!(
            std::env::var("CI").as_deref() != Ok("1"),
            "{name} is not installed"
        );
        eprintln!("SKIP: {name} is not installed");
    }
    found
}

#[test]
fn promtool_has_nothing_to_say_of_the_text() {
    if !has_tool("promtool") {
        return;
    }
    let check = |text: &str| {
        let mut promtool = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = promtool.stdin.take().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
        drop(stdin);
        let output = promtool.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    let text = text(&touched(), Format::Text);
    assert_eq!(check(&text), (true, String::new()));
    let (succeeded, _) = check(&text.replace("# HELP taffrail_connections ", "# HELP x "));
    assert!(!succeeded, "promtool would have found a missing help text");
}

#[test]
fn a_model_name_cannot_break_out_of_its_label() {
    let metrics = metrics(&Config::default());
    let name = "a\"} 1\\\ntaffrail_cost_usd_total{model=\"b";
    metrics.observe(&chat("openai", name));
    let cleaned = "a\"} 1\\taffrail_cost_usd_total{model=\"b";
    let escaped = "a\\\"} 1\\\\taffrail_cost_usd_total{model=\\\"b";
    for format in [Format::Text, Format::OpenMetrics] {
        let text = text(&metrics, format);
        let line = format!(
            "taffrail_requests_total{{provider=\"openai\",model=\"{escaped}\",operation=\"chat\",outcome=\"ok\",team=\"\"}} 1\n"
        );
        assert!(text.contains(&line), "{text}");
        assert_eq!(text.matches("\ntaffrail_cost_usd_total{").count(), 1);
    }
    let mut body = &metrics.encode(Format::Protobuf, now())[..];
    let family = MetricFamily::decode_length_delimited(&mut body).unwrap();
    assert_eq!(family.metric[0].label[1].value, cleaned);
}

#[test]
fn absent_quantities_make_no_series() {
    let metrics = metrics(&Config::default());
    metrics.observe(&UsageRecord {
        usage: Usage::new().with(Unit::Output, 0),
        cost_usd: Some(Usd::ZERO),
        ..chat("openai", "free")
    });
    let samples = samples(&metrics);
    let of_model = |name: &str| {
        let found = samples
            .iter()
            .filter(|(series, _)| series.starts_with(name) && series.contains("model=\"free\""));
        found
            .map(|(series, value)| (series.as_str(), *value))
            .collect::<Vec<_>>()
    };
    let labels = r#"provider="openai",model="free",operation="chat""#;
    let tokens = format!(r#"taffrail_tokens_total{{{labels},type="output",team=""}}"#);
    assert_eq!(of_model("taffrail_tokens_total"), [(tokens.as_str(), 0.0)]);
    let cost = format!(r#"taffrail_cost_usd_total{{{labels},source="catalog",team=""}}"#);
    assert_eq!(of_model("taffrail_cost_usd_total"), [(cost.as_str(), 0.0)]);
    assert_eq!(of_model("taffrail_unpriced_requests_total"), []);
}

#[test]
fn control_calls_are_requests_and_nothing_more() {
    let metrics = metrics(&Config::default());
    let before = samples(&metrics);
    metrics.observe(&UsageRecord {
        operation: Operation::Control,
        model_requested: None,
        streamed: false,
        first_token_us: None,
        usage: Usage::new(),
        fidelity: Fidelity::Silent,
        cost_usd: None,
        cost_source: None,
        unpriced_reason: Some(UnpricedReason::UsageMissing),
        ..chat("openai", "")
    });
    let after = samples(&metrics);
    let mut changed: BTreeMap<&str, f64> = BTreeMap::new();
    for (series, value) in &after {
        if before.get(series) != Some(value) && !series.contains("_bucket") {
            changed.insert(series, *value);
        }
    }
    let labels = r#"provider="openai",model="unknown",operation="control",outcome="ok""#;
    let requests = format!(r#"taffrail_requests_total{{{labels},team=""}}"#);
    let count = format!("taffrail_request_duration_seconds_count{{{labels}}}");
    let sum = format!("taffrail_request_duration_seconds_sum{{{labels}}}");
    let expected = BTreeMap::from([
        (requests.as_str(), 1.0),
        (count.as_str(), 1.0),
        (sum.as_str(), 2.5),
        (
            r#"taffrail_http_responses_total{provider="openai",code="200"}"#,
            1.0,
        ),
        (
            r#"taffrail_request_bytes_total{provider="openai"}"#,
            1_000.0,
        ),
        (
            r#"taffrail_response_bytes_total{provider="openai"}"#,
            20_000.0,
        ),
    ]);
    assert_eq!(changed, expected);
}

#[test]
fn token_times_are_those_of_whole_streams() {
    let first = "taffrail_time_to_first_token_seconds_count";
    let sum = "taffrail_time_per_output_token_seconds_sum";
    let count = "taffrail_time_per_output_token_seconds_count";
    let seen = |record: UsageRecord| {
        let metrics = metrics(&Config::default());
        metrics.observe(&record);
        let samples = samples(&metrics);
        [first, count, sum].map(|name| total(&samples, name))
    };
    let stream = || chat("openai", "m");
    // Two seconds for the hundred tokens after the first.
    assert_eq!(seen(stream()), [1.0, 1.0, 0.02]);
    let with_reasoning = stream().usage.with(Unit::Reasoning, 100);
    assert_eq!(
        seen(UsageRecord {
            usage: with_reasoning,
            ..stream()
        }),
        [1.0, 1.0, 0.01]
    );
    assert_eq!(
        seen(UsageRecord {
            streamed: false,
            ..stream()
        }),
        [0.0, 0.0, 0.0]
    );
    assert_eq!(
        seen(UsageRecord {
            first_token_us: None,
            ..stream()
        }),
        [0.0, 0.0, 0.0]
    );
    assert_eq!(
        seen(UsageRecord {
            duration_us: None,
            ..stream()
        }),
        [1.0, 0.0, 0.0]
    );
    let cancelled = Outcome::ClientCancelled;
    assert_eq!(
        seen(UsageRecord {
            outcome: cancelled,
            ..stream()
        }),
        [1.0, 0.0, 0.0]
    );
    let partial = Fidelity::Partial;
    assert_eq!(
        seen(UsageRecord {
            fidelity: partial,
            ..stream()
        }),
        [1.0, 0.0, 0.0]
    );
    for tokens in [0, 1] {
        let usage = Usage::new().with(Unit::Output, tokens);
        assert_eq!(seen(UsageRecord { usage, ..stream() }), [1.0, 0.0, 0.0]);
    }
}

#[test]
fn a_stated_rate_limit_expires_and_zero_is_shown() {
    let metrics = metrics(&Config::default());
    let shown = |at: Instant| {
        let text = String::from_utf8(metrics.encode(Format::Text, at)).unwrap();
        let found = parse(&text).into_iter();
        found
            .filter(|(series, _)| series.starts_with("taffrail_ratelimit"))
            .collect::<Vec<_>>()
    };
    let named = |name: &str, kind: &str, value: f64| {
        (
            format!("taffrail_ratelimit_{name}{{provider=\"openai\",kind=\"{kind}\"}}"),
            value,
        )
    };
    let (start, minute) = (now(), Duration::from_secs(60));
    assert_eq!(shown(start), []);
    metrics.rate_limits("openai", &[limit("tokens", Some(100), Some(0))], start);
    assert_eq!(
        shown(start),
        [
            named("limit", "tokens", 100.0),
            named("remaining", "tokens", 0.0)
        ]
    );
    let later = start + 5 * minute;
    metrics.rate_limits("openai", &[limit("tokens", None, Some(7))], later);
    let both = [
        named("limit", "tokens", 100.0),
        named("remaining", "tokens", 7.0),
    ];
    assert_eq!(shown(start + 10 * minute), both);
    let one = [named("remaining", "tokens", 7.0)];
    assert_eq!(shown(start + 11 * minute), one);
    assert_eq!(shown(start + 16 * minute), []);
    metrics.rate_limits(
        "openai",
        &[limit("tokens", Some(100), None)],
        start + 20 * minute,
    );
    assert_eq!(
        shown(start + 20 * minute),
        [named("limit", "tokens", 100.0)]
    );
}

#[test]
fn guards_count_what_is_open() {
    let metrics = metrics(&Config::default());
    let open = || {
        let samples = samples(&metrics);
        (
            samples[r#"taffrail_requests_in_flight{provider="openai"}"#],
            samples[r#"taffrail_connections{listener="proxy"}"#],
        )
    };
    assert_eq!(open(), (0.0, 0.0));
    let (first, second) = (metrics.in_flight("openai"), metrics.in_flight("openai"));
    let connection = metrics.connection(Listener::Proxy);
    assert_eq!(open(), (2.0, 1.0));
    drop((first, connection));
    assert_eq!(open(), (1.0, 0.0));
    drop(second);
    assert_eq!(open(), (0.0, 0.0));
}

#[test]
fn a_million_model_names_make_a_bounded_exposition() {
    const NAMES: u32 = 1_000_000;
    let config = Config::default();
    let metrics = metrics(&config);
    let mut record = chat("openai", "");
    for name in 0..NAMES {
        record.model_requested = Some(format!("made-up-model-{name}"));
        metrics.observe(&record);
    }
    let started = taffrail::clock::instant();
    let text = text(&metrics, Format::Text);
    let taken = started.elapsed();
    let samples = parse(&text);
    println!("{} samples, {} bytes, {taken:?}", samples.len(), text.len());
    assert_eq!(total(&samples, "taffrail_requests_total"), f64::from(NAMES));
    assert_eq!(
        total(&samples, "taffrail_tokens_total"),
        f64::from(NAMES) * 113.0
    );
    assert_eq!(total(&samples, "taffrail_cost_usd_total"), 123.0);
    let count = "taffrail_request_duration_seconds_count";
    assert_eq!(total(&samples, count), f64::from(NAMES));
    let requests = samples
        .iter()
        .filter(|(series, _)| series.starts_with("taffrail_requests_total{"));
    let (other, named): (Vec<_>, Vec<_>) =
        requests.partition(|(series, _)| series.contains("model=\"other\""));
    let named_count = u32::try_from(named.len()).unwrap();
    assert!(named_count > 100, "{named_count}");
    assert!(named.iter().all(|(_, value)| **value == 1.0));
    let other: f64 = other.iter().map(|(_, value)| **value).sum();
    assert_eq!(other, f64::from(NAMES - named_count));
    // The budget, the series that are there from the start, and those of `other`.
    assert!(samples.len() <= config.series + 400, "{}", samples.len());
    assert!(text.len() < 2 << 20, "{}", text.len());
    let limited =
        |limit: &str| samples[&format!("taffrail_series_limited_total{{limit=\"{limit}\"}}")];
    assert_eq!(limited("models"), f64::from(NAMES - 200));
    assert!(limited("series") > 0.0);
}

#[test]
fn every_limit_on_label_values_bites_and_counts() {
    let config = Config {
        models_per_provider: 4,
        attribution_values: 2,
        ..Config::default()
    };
    let metrics = metrics(&config);
    let refused = |model: &str| UsageRecord {
        outcome: Outcome::ClientError,
        http_status: Some(404),
        ..chat("openai", model)
    };
    // Names that are only ever refused take half of the places.
    for model in ["typo-1", "typo-2", "typo-3"] {
        metrics.observe(&refused(model));
    }
    for (model, team) in [("a", "x"), ("b", "y"), ("c", "z"), ("a", "x")] {
        metrics.observe(&by_team(team, chat("openai", model)));
    }
    metrics.observe(&chat("unheard-of", "a"));
    metrics.observe(&UsageRecord {
        http_status: Some(999),
        ..chat("openai", "a")
    });
    let samples = samples(&metrics);
    let requests = |provider: &str, model: &str, outcome: &str, team: &str| {
        let series = format!(
            "taffrail_requests_total{{provider=\"{provider}\",model=\"{model}\",operation=\"chat\",outcome=\"{outcome}\",team=\"{team}\"}}"
        );
        samples.get(&series).copied()
    };
    assert_eq!(requests("openai", "typo-2", "client_error", ""), Some(1.0));
    assert_eq!(requests("openai", "typo-3", "client_error", ""), None);
    assert_eq!(requests("openai", "other", "client_error", ""), Some(1.0));
    assert_eq!(requests("openai", "a", "ok", "x"), Some(2.0));
    assert_eq!(requests("openai", "b", "ok", "y"), Some(1.0));
    assert_eq!(requests("openai", "other", "ok", "other"), Some(1.0));
    assert_eq!(requests("other", "a", "ok", ""), Some(1.0));
    assert_eq!(
        samples[r#"taffrail_http_responses_total{provider="openai",code="other"}"#],
        1.0
    );
    let limited: Vec<f64> = Limit::ALL
        .iter()
        .map(|limit| {
            samples[&format!(
                "taffrail_series_limited_total{{limit=\"{}\"}}",
                limit.as_str()
            )]
        })
        .collect();
    assert_eq!(limited, [1.0, 2.0, 1.0, 0.0, 0.0], "{:?}", Limit::ALL);
}

#[test]
fn a_spent_budget_moves_new_combinations_to_other() {
    // What one combination takes: its counters, and three histograms.
    let one = 5 + 3 * 18;
    let requests = |samples: &BTreeMap<String, f64>, model: &str, team: &str| {
        let series = format!(
            "taffrail_requests_total{{provider=\"openai\",model=\"{model}\",operation=\"chat\",outcome=\"ok\",team=\"{team}\"}}"
        );
        samples.get(&series).copied()
    };
    let observed = |series: usize| {
        let metrics = metrics(&Config {
            series,
            ..Config::default()
        });
        for (team, model) in [
            ("x", "first"),
            ("x", "second"),
            ("y", "third"),
            ("x", "first"),
        ] {
            metrics.observe(&by_team(team, chat("openai", model)));
        }
        samples(&metrics)
    };
    let samples = observed(one);
    assert_eq!(requests(&samples, "first", "x"), Some(2.0));
    assert_eq!(requests(&samples, "other", "other"), Some(2.0));
    assert_eq!(
        samples[r#"taffrail_series_limited_total{limit="series"}"#],
        2.0
    );

    // Where the rest is too little for a histogram, a combination is split, and nothing is lost.
    let samples = observed(one + 1);
    assert_eq!(requests(&samples, "second", "x"), Some(1.0));
    assert_eq!(requests(&samples, "other", "other"), Some(1.0));
    let count = "taffrail_request_duration_seconds_count";
    let other = r#"{provider="openai",model="other",operation="chat",outcome="ok"}"#;
    assert_eq!(samples[&format!("{count}{other}")], 2.0);
    assert_eq!(total(&samples, count), 4.0);
    assert_eq!(
        samples[r#"taffrail_series_limited_total{limit="series"}"#],
        2.0
    );
}

#[test]
fn concurrent_requests_are_all_counted() {
    const THREADS: u32 = 4;
    const REQUESTS: u32 = 2_000;
    let metrics = Arc::new(metrics(&Config::default()));
    let barrier = Arc::new(std::sync::Barrier::new(THREADS as usize));
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (metrics, barrier) = (Arc::clone(&metrics), Arc::clone(&barrier));
            std::thread::spawn(move || {
                barrier.wait();
                for request in 0..REQUESTS {
                    let model = format!("model-{}", request % 7);
                    let _in_flight = metrics.in_flight("openai");
                    metrics.observe(&by_team("x", chat("openai", &model)));
                    metrics.records(Stage::Completed, Reason::None, 1);
                    if request % 500 == 0 {
                        metrics.encode(Format::Protobuf, now());
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let samples = samples(&metrics);
    let requests = f64::from(THREADS * REQUESTS);
    assert_eq!(total(&samples, "taffrail_requests_total"), requests);
    assert_eq!(
        total(&samples, "taffrail_request_duration_seconds_count"),
        requests
    );
    assert_eq!(total(&samples, "taffrail_tokens_total"), requests * 113.0);
    assert_eq!(total(&samples, "taffrail_cost_usd_total"), 0.984);
    assert_eq!(total(&samples, "taffrail_requests_in_flight"), 0.0);
    assert_eq!(
        samples[r#"taffrail_records_total{stage="completed",reason="none"}"#],
        requests
    );
}

#[test]
fn money_is_summed_exactly() {
    let metrics = metrics(&Config::default());
    // In floats ten times 0.1 is 0.9999999999999999, and the last part would vanish.
    for cost in ["0.1"; 10].iter().chain(&["0.0000000000001"]) {
        metrics.observe(&UsageRecord {
            cost_usd: Usd::from_json_number(cost),
            ..chat("openai", "m")
        });
    }
    let text = text(&metrics, Format::Text);
    let line = text
        .lines()
        .find(|line| line.starts_with("taffrail_cost_usd_total"));
    assert_eq!(line.unwrap().rsplit_once(' ').unwrap().1, "1.0000000000001");
}

/// The two sides of each conservation law: what went in, and where it is now.
pub(crate) fn books(samples: &BTreeMap<String, f64>) -> [(f64, f64); 2] {
    let stage = |stage: &str, is_counted: fn(&str) -> bool| -> f64 {
        let prefix = format!("taffrail_records_total{{stage=\"{stage}\"");
        let found = samples
            .iter()
            .filter(|(series, _)| series.starts_with(&prefix));
        found
            .filter(|(series, _)| is_counted(series))
            .map(|(_, value)| value)
            .sum()
    };
    let all = |_: &str| true;
    let is_new = |series: &str| !series.contains("reason=\"recovered\"");
    [
        (
            stage("completed", all),
            stage("journaled", is_new) + stage("dropped", all),
        ),
        (
            stage("journaled", all),
            stage("stored", all)
                + stage("duplicate", all)
                + stage("dead_lettered", all)
                + samples["taffrail_journal_pending_records"],
        ),
    ]
}

#[test]
fn the_books_can_be_balanced_from_the_exposition() {
    let metrics = touched();
    assert_eq!(books(&samples(&metrics)), [(10.0, 10.0), (12.0, 12.0)]);
    metrics.records(Stage::Completed, Reason::None, 1);
    assert_eq!(
        books(&samples(&metrics)),
        [(11.0, 10.0), (12.0, 12.0)],
        "a loss is seen"
    );
}

#[test]
fn what_is_known_in_advance_starts_at_zero() {
    let samples = samples(&metrics(&Config::default()));
    for (name, series) in [
        ("taffrail_requests_in_flight", 2),
        ("taffrail_jobs_open", 2),
        ("taffrail_job_ends_waiting", 2),
        ("taffrail_jobs_limited_total", JobLimit::ALL.len()),
        ("taffrail_request_bytes_total", 2),
        ("taffrail_response_bytes_total", 2),
        ("taffrail_upstream_retries_total", 2),
        ("taffrail_rewrites_total", 2 * Rewrite::ALL.len()),
        ("taffrail_metered_responses_total", 2 * Fidelity::ALL.len()),
        ("taffrail_overhead_seconds_count", Phase::ALL.len()),
        ("taffrail_connections", Listener::ALL.len()),
        ("taffrail_connections_refused_total", Listener::ALL.len()),
        (
            "taffrail_tls_handshake_failures_total",
            HandshakeFault::ALL.len(),
        ),
        ("taffrail_proxy_errors_total", ProxyError::ALL.len()),
        ("taffrail_records_total", 11),
        ("taffrail_journal_faults_total", JournalFault::ALL.len()),
        ("taffrail_journal_fsync_duration_seconds_count", 1),
        ("taffrail_late_commits_total", 1),
        ("taffrail_store_batch_duration_seconds_count", 1),
        ("taffrail_store_retries_total", 1),
        ("taffrail_series_limited_total", Limit::ALL.len()),
        ("taffrail_meter_panics_total", 1),
    ] {
        let found: Vec<f64> = samples
            .iter()
            .filter(|(key, _)| key.split('{').next() == Some(name))
            .map(|(_, value)| *value)
            .collect();
        assert_eq!(found, vec![0.0; series], "{name}");
    }
    // What nobody has said yet is absent.
    assert_eq!(samples.get("taffrail_store_up"), None);
    assert_eq!(samples.get("process_cpu_seconds_total"), None);
}

#[test]
fn attribution_labels_that_cannot_be_are_left_out() {
    let names = ["team", "provider", "2nd", "team", "cost_centre"].map(str::to_owned);
    let metrics = Metrics::new(&Config::default(), &names, &["openai"]);
    metrics.observe(&by_team("x", chat("openai", "m")));
    let series = r#"taffrail_requests_total{provider="openai",model="m",operation="chat",outcome="ok",team="x",cost_centre=""}"#;
    assert_eq!(samples(&metrics)[series], 1.0);
}

#[test]
fn the_configuration_has_defaults_and_refuses_unknown_keys() {
    let read = |text: &str| serde_json::from_str::<Config>(text);
    assert_eq!(read("{}").unwrap(), Config::default());
    let config = read(r#"{"series": 5, "ratelimit_expiry": "1m"}"#).unwrap();
    let expected = Config {
        series: 5,
        ratelimit_expiry: Duration::from_secs(60),
        ..Config::default()
    };
    assert_eq!(config, expected);
    assert!(read(r#"{"serie": 5}"#).is_err());
}

#[test]
fn the_reference_says_what_the_code_does() {
    assert_golden("docs/metrics.md", &reference());
}

/// `docs/metrics.md`.
fn reference() -> String {
    let mut out = String::new();
    out.push_str(INTRODUCTION);
    for (group, title, text) in GROUPS {
        writeln!(out, "\n## {title}\n\n{text}\n").unwrap();
        out.push_str("| metric | type | labels | meaning |\n|---|---|---|---|\n");
        for family in catalogue::ALL
            .iter()
            .filter(|family| family.group == *group)
        {
            let mark = if family.diagnostic { " †" } else { "" };
            let (name, kind) = (family.name, family.kind.as_str());
            let (labels, help) = (label_list(family), family.help);
            writeln!(out, "| `{name}`{mark} | {kind} | {labels} | {help} |").unwrap();
        }
        if *group == Group::Records {
            out.push_str(BOOKS);
        }
    }
    out.push_str("\n## Buckets\n\n| histogram | upper bounds |\n|---|---|\n");
    for family in catalogue::ALL
        .iter()
        .filter(|family| !family.buckets.is_empty())
    {
        let bounds: Vec<String> = family.buckets.iter().map(f64::to_string).collect();
        writeln!(out, "| `{}` | {} |", family.name, bounds.join(", ")).unwrap();
    }
    out.push_str("\n## Labels\n\n| label | values |\n|---|---|\n");
    let labels = catalogue::ALL.iter().flat_map(|family| family.labels);
    for label in labels.copied().collect::<BTreeSet<_>>() {
        writeln!(out, "| `{label}` | {} |", label_values(label)).unwrap();
    }
    limits(&mut out);
    conventions(&mut out);
    out
}

const INTRODUCTION: &str = "\
# Metrics

Made from `src/metrics/catalogue.rs` by `UPDATE_GOLDEN=1 cargo test --test suite exposition`; a test holds this page to the code.

`GET /metrics` on the admin listener (port 10480) answers in Prometheus text 0.0.4, OpenMetrics 1.0.0 or protobuf, whichever the
scraper's `Accept` header prefers; without a preference it is text 0.0.4. All three say the same: names, labels, order, and the
`le` of buckets, which have OpenMetrics' form (`le=\"1.0\"`) everywhere, so a server that changes the format sees no new series.

- Everything is counted once, when a request has ended. Polls, listings and other control calls are counted as requests with
  their own `operation`; that they state no usage and no cost counts neither as unpriced nor as unmetered.
- Absent is not zero: a quantity, a cost or a state that nobody stated has no series; a price of 0 has one, at 0.
- Series whose labels are known in advance start at 0. Those with a model, an operation or a status code cannot: they appear with
  their first value, which `rate()` and `increase()` do not see as a rise. For exact totals use the rows.
- Money is summed exactly, to 28 significant digits, and becomes a float only when it is exposed. A negative cost (a refund) is left
  out, because a counter that falls looks like a restart.
- Counters start at 0 with the process, and no series ever goes away but those of rate limits that have expired and of spend
  whose day or month is over.

† For looking into trouble; not part of the stable contract, may change in any release.
";

const GROUPS: &[(Group, &str, &str)] = &[
    (
        Group::Traffic,
        "Traffic",
        "Durations start when the request's head has arrived. The time to the first token is observed for streams only; the time per \
         output token for streams that ended well and whose usage is complete, as (duration − time to the first token) ÷ (output and \
         reasoning tokens − 1). Where a provider hides its reasoning, the first token comes after it, and this mean is too low.",
    ),
    (
        Group::Usage,
        "Usage and cost",
        "Token types are disjoint: `input` is what no other type covers, so a sum over types never counts a token twice. Cache writes of \
         all lifetimes are one type here; the rows tell them apart. `taffrail_cache_effect_usd_total` compares a request with what it would have \
         cost had all its cached tokens been plain input, by list prices also where the provider states the cost; `saved` less `extra` is what \
         caching brought. `taffrail_spend_usd` is read from the store by the exporter: it knows what \
         pods spent that Prometheus saw once or never. Several exporters of one store say the same: take `max`, then `sum`. It falls back when \
         its window begins anew, and when rows are costed anew.",
    ),
    (
        Group::Records,
        "Records, journal, store",
        "What became of each record. The journal's numbers are read at the scrape, the others are counted as they happen.",
    ),
    (
        Group::Balances,
        "Balances",
        "As the providers tell them, by schedule; docs/balances.md has what each of them tells. A failed reading leaves the balance as it \
         was and lets its timestamp age. Join with the thresholds on `provider` and `account`: \
         `taffrail_balance_threshold > on (provider, account) group_left taffrail_balance`.",
    ),
    (
        Group::Upkeep,
        "Prices and schedule",
        "A timestamp that ages says more than an error that is counted: alert on `time() - …_last_success_timestamp_seconds`.",
    ),
    (
        Group::Injection,
        "Injector",
        "Only `taffrail run --role injector` has values for these.",
    ),
    (
        Group::Process,
        "Taffrail itself",
        "The `process_*` metrics are read from `/proc` and absent where there is none.",
    ),
];

const BOOKS: &str = "
### Nothing is lost silently

Two laws hold at every scrape: it shows a moment at which no record is on its way between two counters. Records that were in the
journal when the process started are counted as `journaled` with reason `recovered`, so that the second law holds across restarts.

```promql
# completed = journaled + dropped
sum(taffrail_records_total{stage=\"completed\"})
  - sum(taffrail_records_total{stage=\"journaled\", reason!=\"recovered\"}) - sum(taffrail_records_total{stage=\"dropped\"})

# journaled = stored + duplicate + dead-lettered + pending
sum(taffrail_records_total{stage=\"journaled\"})
  - sum(taffrail_records_total{stage=~\"stored|duplicate|dead_lettered\"}) - sum(taffrail_journal_pending_records)
```
";

fn label_list(family: &Descriptor) -> String {
    let own = family.labels.iter().map(|label| format!("`{label}`"));
    let attribution = family.attribution.then(|| "attribution".to_owned());
    own.chain(attribution).collect::<Vec<_>>().join(", ")
}

fn words<'a>(values: impl IntoIterator<Item = &'a str>) -> String {
    let values: Vec<String> = values
        .into_iter()
        .map(|value| format!("`{value}`"))
        .collect();
    values.join(", ")
}

/// What a label's values are. Panics for a label that this page does not explain.
fn label_values(label: &str) -> String {
    let mut token_types: Vec<&str> = Unit::ALL
        .iter()
        .filter_map(|unit| unit.token_type())
        .collect();
    token_types.dedup();
    let units = Unit::ALL.iter().filter(|unit| !unit.is_token());
    let classes = words(OutcomeClass::ALL.iter().map(|class| class.as_str()));
    match label {
        "provider" => "a configured provider (the names are below), or `other`".to_owned(),
        "model" => format!(
            "the model that answered, else the one that was asked for, cut to {} bytes and cleaned of control characters; \
             `unknown` where the call names none; `other` beyond a limit",
            labels::LABEL_BYTES_MAX
        ),
        "operation" => words(Operation::ALL.iter().map(|operation| operation.as_str())),
        "outcome" => format!(
            "{}; on histograms only {classes}",
            words(Outcome::ALL.iter().map(|outcome| outcome.as_str()))
        ),
        "code" => "`100` to `599`, or `other`".to_owned(),
        "phase" => format!(
            "of jobs `queue`, `run`; of overhead {}",
            words(Phase::ALL.iter().map(|phase| phase.as_str()))
        ),
        "account" => "an account's name in the configuration".to_owned(),
        "currency" => {
            "a currency (ISO 4217) or the provider's own unit, such as `credits`".to_owned()
        }
        "effect" => "`saved` where caching made a request cheaper, `extra` where it made it dearer"
            .to_owned(),
        "window" => format!(
            "of spend {}; of bills {}: so many of the last closed UTC days",
            words(Window::ALL.iter().map(|window| window.as_str())),
            words(BillWindow::ALL.iter().map(|window| window.as_str()))
        ),
        "state" => words(AccountState::ALL.iter().map(|state| state.as_str())),
        "level" => words(Level::ALL.iter().map(|level| level.as_str())),
        "kind" => format!(
            "of balances {}; of rate limits `requests`, `tokens`; of rewrites {}; of journal faults {}",
            words(BalanceKind::ALL.iter().map(|kind| kind.as_str())),
            words(Rewrite::ALL.iter().map(|rewrite| rewrite.as_str())),
            words(JournalFault::ALL.iter().map(|fault| fault.as_str()))
        ),
        "listener" => words(Listener::ALL.iter().map(|listener| listener.as_str())),
        "reason" => format!(
            "of unpriced requests {}; of records {}; of proxy errors {}; of TLS handshakes {}",
            words(UnpricedReason::ALL.iter().map(|reason| reason.as_str())),
            words(Reason::ALL.iter().map(|reason| reason.as_str())),
            words(ProxyError::ALL.iter().map(|reason| reason.as_str())),
            words(HandshakeFault::ALL.iter().map(|reason| reason.as_str()))
        ),
        "type" => words(token_types),
        "unit" => words(units.map(|unit| unit.as_str())),
        "source" => format!(
            "of cost {}; of prices where they come from",
            words(CostSource::ALL.iter().map(|source| source.as_str()))
        ),
        "fidelity" => words(Fidelity::ALL.iter().map(|fidelity| fidelity.as_str())),
        "stage" => words(Stage::ALL.iter().map(|stage| stage.as_str())),
        "result" => format!(
            "of balances {}; of the others {}",
            words(SyncResult::ALL.iter().map(|result| result.as_str())),
            words(RunResult::ALL.iter().map(|result| result.as_str()))
        ),
        "task" => "a scheduled task".to_owned(),
        "limit" => format!(
            "of label values {}; of jobs {}",
            words(Limit::ALL.iter().map(|limit| limit.as_str())),
            words(JobLimit::ALL.iter().map(|limit| limit.as_str()))
        ),
        "version" => "the version of Taffrail".to_owned(),
        other => panic!("the label {other} is not explained"),
    }
}

fn limits(out: &mut String) {
    let config = Config::default();
    out.push_str("\n## Limits\n\nWhat is beyond a limit is counted as `other`, so sums stay right, and in `taffrail_series_limited_total`.\n\n");
    out.push_str("| limit | key | default | bites as |\n|---|---|---|---|\n");
    let rows = [
        (
            "models of a provider",
            "`metrics.models_per_provider`",
            config.models_per_provider.to_string(),
            "`limit=\"models\"`; names that the provider has only ever refused can take half of the places",
        ),
        (
            "values of an attribution label",
            "`metrics.attribution_values`",
            config.attribution_values.to_string(),
            "`limit=\"attribution_values\"`",
        ),
        (
            "samples of label combinations that traffic brings",
            "`metrics.series`",
            config.series.to_string(),
            "`limit=\"series\"`; model and attribution of a new combination become `other`",
        ),
        (
            "groups of `taffrail_spend_usd`",
            "`metrics.spend_groups`",
            config.spend_groups.to_string(),
            "`limit=\"spend_groups\"`; the dearest keep series of their own",
        ),
        (
            "providers",
            "those configured",
            String::new(),
            "`limit=\"providers\"`",
        ),
        (
            "attribution labels",
            "constant",
            labels::ATTRIBUTION_LABELS_MAX.to_string(),
            "refused at the start",
        ),
        (
            "bytes of a label value",
            "constant",
            labels::LABEL_BYTES_MAX.to_string(),
            "cut",
        ),
        (
            "age of a stated rate limit",
            "`metrics.ratelimit_expiry`",
            humantime::format_duration(config.ratelimit_expiry).to_string(),
            "the series goes away",
        ),
    ];
    for (limit, key, default, effect) in rows {
        writeln!(out, "| {limit} | {key} | {default} | {effect} |").unwrap();
    }
}

fn conventions(out: &mut String) {
    out.push_str(
        "\n## OpenTelemetry\n\nTaffrail has metric names of its own, because the GenAI semantic conventions are in development and their names still move. This is how \
         they correspond (semantic-conventions-genai, as of November 2026).\n\n| metric | GenAI semantic conventions |\n|---|---|\n",
    );
    for family in catalogue::ALL {
        if let Some(otel) = family.otel {
            writeln!(out, "| `{}` | {otel} |", family.name).unwrap();
        }
    }
    out.push_str("\n| label | attribute |\n|---|---|\n");
    for (label, attribute) in [
        (
            "`provider`",
            "`gen_ai.provider.name`, with the values below",
        ),
        (
            "`model`",
            "`gen_ai.response.model`, else `gen_ai.request.model`",
        ),
        (
            "`operation`",
            "`gen_ai.operation.name`: `chat` and `responses` are `chat`, `completion` is `text_completion`, `embeddings` is itself; the others have no well-known value",
        ),
        (
            "`type`",
            "`gen_ai.token.type`: `input`, `cache_read`, `cache_write`, `input_audio`, `input_image` are `input`; `output`, `reasoning`, `output_audio`, `output_image` are `output`. The `usage.input_tokens` and `usage.output_tokens` counters are the sums of the two; `gen_ai.token.modality` is in the type's name",
        ),
        ("`outcome`", "`error.type`, where it is not `ok`"),
    ] {
        writeln!(out, "| {label} | {attribute} |").unwrap();
    }
    out.push_str("\nProviders, whether built in or declared under the name they usually have; a declared one of another name stands for itself.\n");
    out.push_str("\n| `provider` | `gen_ai.provider.name` |\n|---|---|\n");
    for (ours, theirs) in catalogue::PROVIDERS {
        writeln!(out, "| `{ours}` | `{theirs}` |").unwrap();
    }
}

/// Timestamps are seconds since 1970, whatever the source's resolution.
#[test]
fn timestamps_are_in_seconds() {
    let metrics = metrics(&Config::default());
    let then: DateTime<Utc> = DateTime::from_timestamp(1_700_000_000, 250_000_000).unwrap();
    metrics.schedule_run("balances", RunResult::Error, then);
    let name = r#"taffrail_schedule_last_success_timestamp_seconds{task="balances"}"#;
    assert_eq!(samples(&metrics).get(name), None, "a failure is no success");
    metrics.schedule_run("balances", RunResult::Ok, then);
    assert_eq!(samples(&metrics)[name], 1_700_000_000.25);
}

/// The counters of records and the pending ones, as they are scraped.
fn record_lines(metrics: &Metrics) -> Vec<String> {
    text(metrics, Format::Text)
        .lines()
        .filter(|line| {
            line.starts_with("taffrail_records_total{")
                || line.starts_with("taffrail_journal_pending_records ")
        })
        .filter(|line| !line.ends_with(" 0"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_scrape_shows_the_books_at_the_moment_of_the_journal() {
    let metrics = Arc::new(Metrics::new(&Config::default(), &[], &["openai"]));
    metrics.records(Stage::Completed, Reason::None, 4);
    metrics.records(Stage::Journaled, Reason::None, 4);
    let weak = Arc::downgrade(&metrics);
    metrics.watch_journal(Box::new(move |look| {
        // A record moves before the moment of the reading, and another one after it.
        let journal_one = || {
            let metrics = weak.upgrade().unwrap();
            metrics.records(Stage::Completed, Reason::None, 1);
            metrics.records(Stage::Journaled, Reason::None, 1);
        };
        journal_one();
        look();
        journal_one();
        JournalReading {
            pending_records: 4,
            unreadable_records: 1,
            faults: Vec::new(),
            bytes: 0,
            bytes_max: 0,
            oldest_record_age: None,
        }
    }));
    assert_eq!(
        record_lines(&metrics),
        [
            "taffrail_records_total{stage=\"completed\",reason=\"none\"} 5",
            "taffrail_records_total{stage=\"dead_lettered\",reason=\"unreadable\"} 1",
            "taffrail_records_total{stage=\"journaled\",reason=\"none\"} 5",
            "taffrail_journal_pending_records 4",
        ]
    );
}

/// The series of what was spent, as they are scraped.
fn spend_lines(metrics: &Metrics) -> Vec<String> {
    let text = text(metrics, Format::Text);
    let lines = text
        .lines()
        .filter(|line| line.starts_with("taffrail_spend_usd{"));
    lines.map(str::to_owned).collect()
}

#[test]
fn each_reading_of_spend_replaces_the_one_before() {
    let metrics = metrics(&Config::default());
    metrics.spend(vec![
        spend(Window::Day, "a", "0.5"),
        spend(Window::Month, "a", "7.25"),
        spend(Window::Month, "b", "1"),
    ]);
    metrics.spend(vec![
        spend(Window::Month, "a", "7.5"),
        spend(Window::Month, "", "2"),
    ]);
    assert_eq!(
        spend_lines(&metrics),
        [
            r#"taffrail_spend_usd{provider="openai",model="a",window="month",team="search"} 7.5"#,
            r#"taffrail_spend_usd{provider="openai",model="unknown",window="month",team="search"} 2"#,
        ]
    );
}

#[test]
fn the_dearest_groups_have_series_of_their_own_and_the_sum_stays_right() {
    let metrics = metrics(&Config {
        spend_groups: 2,
        ..Config::default()
    });
    let groups = [("a", "1"), ("b", "4"), ("c", "2"), ("d", "0.5")];
    let groups = groups.map(|(model, usd)| spend(Window::Day, model, usd));
    metrics.spend(groups.to_vec());
    assert_eq!(
        spend_lines(&metrics),
        [
            r#"taffrail_spend_usd{provider="openai",model="b",window="day",team="search"} 4"#,
            r#"taffrail_spend_usd{provider="openai",model="c",window="day",team="search"} 2"#,
            r#"taffrail_spend_usd{provider="openai",model="other",window="day",team="other"} 1.5"#,
        ]
    );
    let limited = samples(&metrics)[r#"taffrail_series_limited_total{limit="spend_groups"}"#];
    assert_eq!(limited, 2.0);
}

#[test]
fn books_that_do_not_balance_are_shown_as_they_are() {
    let metrics = Metrics::new(&Config::default(), &[], &["openai"]);
    metrics.records(Stage::Completed, Reason::None, 2);
    metrics.records(Stage::Journaled, Reason::None, 1);
    metrics.watch_journal(Box::new(|_| JournalReading {
        pending_records: 1,
        unreadable_records: 0,
        faults: Vec::new(),
        bytes: 0,
        bytes_max: 0,
        oldest_record_age: None,
    }));
    assert_eq!(
        record_lines(&metrics),
        [
            "taffrail_records_total{stage=\"completed\",reason=\"none\"} 2",
            "taffrail_records_total{stage=\"journaled\",reason=\"none\"} 1",
            "taffrail_journal_pending_records 1",
        ]
    );
}
