//! The rules of `alerts/` against the metrics that exist, their runbooks, and promtool.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use promql_parser::label::MatchOp;
use promql_parser::parser::{self, Expr, VectorSelector};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde_norway::Value;
use taffrail::metrics::catalogue::{self, Kind};

/// Labels that Prometheus sets on every target.
const OF_TARGETS: &[&str] = &["job", "instance", "namespace"];

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

/// The rules of a file.
fn rules(path: &str) -> Vec<Value> {
    let file: Value = serde_norway::from_str(&read(path)).unwrap();
    let groups = file["groups"].as_sequence().unwrap();
    let rules = groups
        .iter()
        .map(|group| group["rules"].as_sequence().unwrap());
    rules.flatten().cloned().collect()
}

fn text<'a>(rule: &'a Value, key: &str) -> &'a str {
    rule[key]
        .as_str()
        .unwrap_or_else(|| panic!("{key} of {rule:?}"))
}

/// The labels of a metric of ours; `None` if there is none of that name.
fn labels_of(sample: &str) -> Option<(Kind, Vec<&'static str>)> {
    let own = catalogue::ALL.iter().find(|family| match family.kind {
        Kind::Histogram => ["_bucket", "_sum", "_count"]
            .iter()
            .any(|suffix| sample.strip_suffix(suffix) == Some(family.name)),
        Kind::Counter | Kind::Gauge => family.name == sample,
    });
    if let Some(family) = own {
        let mut labels = family.labels.to_vec();
        labels.extend(family.attribution.then_some("team"));
        labels.extend(sample.ends_with("_bucket").then_some("le"));
        return Some((family.kind, labels));
    }
    None
}

/// What is wrong with the metrics that an expression names.
#[derive(Default)]
struct Review {
    recorded: BTreeSet<String>,
    faults: Vec<String>,
}

impl Review {
    fn selector(&mut self, selector: &VectorSelector, is_range: bool) {
        let name = selector.name.as_deref().unwrap_or_default();
        if self.recorded.contains(name) || name == "up" || name.contains("_budget_usd:") {
            return;
        }
        let Some((kind, labels)) = labels_of(name) else {
            return self.faults.push(format!("no metric is named {name}"));
        };
        let is_exact = name == "taffrail_records_total";
        if kind != Kind::Gauge && !is_range && !is_exact {
            self.faults
                .push(format!("{name} stands outside rate() and increase()"));
        }
        for matcher in &selector.matchers.matchers {
            let label = matcher.name.as_str();
            if !labels.contains(&label) && !OF_TARGETS.contains(&label) {
                self.faults.push(format!("{name} has no label {label}"));
            }
            // A value that is written out must occur in the reference, which a test holds to the code.
            let values = matcher.value.split('|');
            let is_literal = matches!(
                matcher.op,
                MatchOp::Equal | MatchOp::NotEqual | MatchOp::Re(_)
            );
            for value in values.filter(|_| is_literal && labels.contains(&label)) {
                let known = include_str!("../../docs/metrics.md").contains(&format!("`{value}`"));
                let is_task = label == "task";
                if !known && !is_task {
                    self.faults
                        .push(format!("{label}={value:?} of {name} is no value"));
                }
            }
        }
    }
}

impl ExprVisitor for Review {
    type Error = String;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, String> {
        match expr {
            Expr::MatrixSelector(matrix) => self.selector(&matrix.vs, true),
            Expr::VectorSelector(selector) => self.selector(selector, false),
            _ => {}
        }
        Ok(true)
    }
}

#[test]
fn every_expression_names_metrics_labels_and_values_that_exist() {
    let recording = rules("rules.yaml");
    let recorded = recording.iter().map(|rule| text(rule, "record").to_owned());
    let mut review = Review {
        recorded: recorded.collect(),
        ..Review::default()
    };
    for rule in recording.iter().chain(&rules("alerts.yaml")) {
        let expr = parser::parse(text(rule, "expr")).unwrap();
        walk_expr(&mut review, &expr).unwrap();
    }
    assert_eq!(review.faults, Vec::<String>::new());
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
