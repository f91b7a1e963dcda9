//! The rules of `alerts/` against the metrics that exist, their runbooks, and promtool.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_norway::Value;

use crate::support::promql::{review, rules};

const HEADINGS: [&str; 6] = [
    "## Meaning",
    "## Impact",
    "## First look",
    "## Causes, likeliest first",
    "## Fix",
    "## If it is a false alarm",
];

fn alerts(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("alerts")
        .join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(alerts(path)).unwrap()
}

fn text<'a>(rule: &'a Value, key: &str) -> &'a str {
    rule[key]
        .as_str()
        .unwrap_or_else(|| panic!("{key} of {rule:?}"))
}

#[test]
fn every_expression_names_metrics_labels_and_values_that_exist() {
    for file in ["rules.yaml", "alerts.yaml"] {
        for rule in rules(file) {
            let expr = text(&rule, "expr");
            assert_eq!(review(expr).faults, Vec::<String>::new(), "{expr}");
        }
    }
}

#[test]
fn a_recorded_metric_is_named_after_its_labels() {
    for rule in rules("rules.yaml") {
        let name = text(&rule, "record");
        let labels: Vec<String> = review(text(&rule, "expr")).labels.into_iter().collect();
        let level = if labels.is_empty() {
            "taffrail".to_owned()
        } else {
            labels.join("_")
        };
        assert_eq!(name.split(':').next(), Some(level.as_str()), "{name}");
    }
}

#[test]
fn what_is_wrong_with_an_expression_is_found() {
    for (expr, fault) in [
        ("sum(", "does not parse"),
        ("taffrail_balances", "no metric is named taffrail_balances"),
        (
            "taffrail_balance{color=\"red\"}",
            "taffrail_balance has no label color",
        ),
        (
            "sum by (color) (taffrail_balance)",
            "nothing there has a label color",
        ),
        (
            "taffrail_balance{kind=\"cash\"}",
            "kind=\"cash\" of taffrail_balance is no value",
        ),
        (
            "rate(taffrail_requests_total{outcome=~\"ok|slow\"}[5m])",
            "outcome=\"slow\" of taffrail_requests_total is no value",
        ),
        (
            "taffrail_schedule_last_success_timestamp_seconds{task=\"sleep\"}",
            "task=\"sleep\" of",
        ),
        (
            "ALERTS{alertname=\"TaffrailBored\"}",
            "no alert is named TaffrailBored",
        ),
        (
            "taffrail_requests_total",
            "taffrail_requests_total stands outside rate()",
        ),
        (
            "max_over_time(taffrail_requests_total[5m])",
            "stands outside rate()",
        ),
        (
            "rate(taffrail_balance[5m])",
            "rate() of taffrail_balance, which is a gauge",
        ),
        (
            "histogram_quantile(0.9, sum(rate(taffrail_request_duration_seconds_bucket[5m])))",
            "histogram_quantile() of something without le",
        ),
        (
            "sum by (provider) (taffrail_balance) / sum by (account) (taffrail_balance)",
            "never match",
        ),
        (
            "taffrail_balance > on (color) taffrail_balance",
            "nothing there has a label color",
        ),
    ] {
        let faults = review(expr).faults;
        assert!(
            faults.iter().any(|it| it.contains(fault)),
            "{expr}: {faults:?}"
        );
    }
}

#[test]
fn every_alert_has_its_words_its_runbook_and_its_tests() {
    let tests =
        ["money", "traffic", "taffrail", "days"].map(|group| read(&format!("tests/{group}.yaml")));
    let tests = tests.concat();
    let mut pages = BTreeSet::new();
    for alert in rules("alerts.yaml") {
        let name = text(&alert, "alert");
        let severity = text(&alert["labels"], "severity");
        assert!(
            ["critical", "warning", "info"].contains(&severity),
            "{name}"
        );
        let annotations = &alert["annotations"];
        let summary = text(annotations, "summary");
        assert!(!summary.contains("{{"), "{name}: a summary has no labels");
        let description = text(annotations, "description");
        assert!(description.contains("$value"), "{name}: no value");
        let labels = review(text(&alert, "expr")).labels;
        for annotation in [description, text(annotations, "dashboard_url")] {
            let named = annotation.split("$labels.").skip(1);
            for rest in named {
                let end = rest.find(|it: char| !it.is_ascii_alphanumeric() && it != '_');
                let label = &rest[..end.unwrap_or(rest.len())];
                assert!(
                    labels.contains(label),
                    "{name}: no label {label} in {labels:?}"
                );
            }
        }
        let runbook = format!("https://runbooks.example/{name}.md");
        assert_eq!(text(annotations, "runbook_url"), runbook);
        let dashboard = text(annotations, "dashboard_url");
        assert!(
            dashboard.starts_with("https://grafana.example/d/taffrail-"),
            "{name}"
        );
        let page = read(&format!("runbooks/{name}.md"));
        let headings: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with("## "))
            .collect();
        assert_eq!(headings, HEADINGS, "{name}");
        let expr = text(&alert, "expr");
        assert!(
            page.contains(expr),
            "{name}: the runbook shows another expression"
        );
        assert!(tests.contains(&format!("\"{name} fires\"")), "{name}");
        assert!(tests.contains(&format!("\"{name} is silent: ")), "{name}");
        pages.insert(format!("{name}.md"));
    }
    let found = std::fs::read_dir(alerts("runbooks")).unwrap();
    let found = found.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(
        found.collect::<BTreeSet<String>>(),
        pages,
        "runbooks and alerts"
    );
}

#[test]
fn promtool_is_content_with_the_rules_and_their_tests() {
    for arguments in [
        &[
            "check",
            "rules",
            "rules.yaml",
            "alerts.yaml",
            "budgets.yaml",
        ][..],
        &[
            "test",
            "rules",
            "tests/money.yaml",
            "tests/traffic.yaml",
            "tests/taffrail.yaml",
            "tests/days.yaml",
        ],
    ] {
        let promtool = Command::new("promtool")
            .args(arguments)
            .current_dir(alerts(""))
            .output();
        let Ok(output) = promtool else {
            assert!(std::env::var("CI").is_err(), "CI=1 and no promtool");
            eprintln!("SKIP: no promtool");
            return;
        };
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
    }
}
