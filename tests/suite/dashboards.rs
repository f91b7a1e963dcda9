//! The dashboards of `grafana/` against the metrics and tables that exist, against what Grafana
//! reads, and against rules of ours.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod board;
mod lint;
mod promql;
mod schema;
mod sql;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use taffrail::metrics::catalogue;

use self::board::{Board, Boards};
use self::lint::{link, lint, rules};
use crate::support;
use crate::support::chart::root;

#[test]
fn every_dashboard_keeps_the_rules() {
    let boards = board::all();
    let uids: Vec<&str> = boards.keys().map(String::as_str).collect();
    let expected = [
        "taffrail-balances",
        "taffrail-cost",
        "taffrail-latency",
        "taffrail-log",
        "taffrail-overview",
        "taffrail-self",
    ];
    assert_eq!(uids, expected);
    let faults = boards.values().flat_map(|board| lint(board, &boards));
    let faults: Vec<String> = faults
        .map(|(rule, fault)| format!("{fault} ({rule})"))
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The dashboard that [`BROKEN`] breaks.
fn sound() -> Value {
    let path = root().join("tests/fixtures/grafana/sound.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn faults_of(json: Value) -> Vec<(&'static str, String)> {
    let boards: Boards = board::all();
    lint(&Board::new("sound.json", json), &boards)
}

/// Where the sound dashboard is changed, to what (null removes), the rule that minds, and its words.
type Broken = (&'static str, Value, &'static str, &'static str);

/// The pointers of the sound dashboard's panels, and of the first expression of its graph.
const STAT: &str = "/panels/1";
const GRAPH: &str = "/panels/2";
const EXPR: &str = "/panels/2/targets/0/expr";

fn broken() -> Vec<Broken> {
    let at = |panel: &str, rest: &str| -> &'static str { format!("{panel}{rest}").leak() };
    vec![
        (
            "/uid",
            json!("other"),
            "uid",
            "the uid is not taffrail-sound",
        ),
        (
            "/title",
            json!("Sound"),
            "words",
            "the title does not begin with",
        ),
        ("/description", json!(null), "words", "no description"),
        (
            "/editable",
            json!(true),
            "settings",
            "editable is not false",
        ),
        ("/id", json!(7), "settings", "it has id"),
        ("/tags", json!([]), "settings", "no tag taffrail"),
        ("/links", json!([]), "settings", "no menu"),
        (
            "/time/from",
            json!("2026-11-01T00:00:00Z"),
            "times",
            "time.from is not relative",
        ),
        (
            "/refresh",
            json!("1s"),
            "times",
            "it refreshes every \"1s\"",
        ),
        (
            "/templating/list/2/name",
            json!("model"),
            "variables",
            "there is no variable provider",
        ),
        (
            at(STAT, "/title"),
            json!("Requests of $cluster"),
            "variables",
            "no variable cluster",
        ),
        (
            "/templating/list/2",
            json!({
                "name": "provider",
                "type": "query",
                "datasource": {"type": "prometheus", "uid": "${datasource}"},
                "definition": "label_values(taffrail_jobs_open{job=~\"$job\"}, model)",
                "query": {"query": "label_values(taffrail_jobs_open{job=~\"$job\"}, model)"},
            }),
            "variable queries",
            "the variable provider: taffrail_jobs_open{job=~\"$job\"} has no label model",
        ),
        (
            at(STAT, "/title"),
            json!("Answers"),
            "titles",
            "\"Answers\" is the title of two panels",
        ),
        (
            at(STAT, "/id"),
            json!(3),
            "panel ids",
            "two panels have the id 3",
        ),
        (
            at(STAT, "/gridPos/w"),
            json!(25),
            "grid",
            "panel \"Requests\" is not within 24 columns",
        ),
        (
            at(GRAPH, "/gridPos/x"),
            json!(5),
            "grid",
            "panel \"Answers\" lies on another",
        ),
        (at(STAT, "/title"), json!(""), "panel words", "no title"),
        (
            at(STAT, "/description"),
            json!(null),
            "panel words",
            "panel \"Requests\": no description",
        ),
        (
            at(STAT, "/fieldConfig/defaults/unit"),
            json!(null),
            "unit",
            "no unit",
        ),
        (
            at(STAT, "/fieldConfig/defaults/noValue"),
            json!(null),
            "no value",
            "what no value means",
        ),
        (
            at(STAT, "/fieldConfig/defaults/thresholds/steps/1/value"),
            json!(3),
            "thresholds",
            "[-inf, 3.0, 2.0] do not ascend",
        ),
        (
            at(STAT, "/datasource/uid"),
            json!("P1809F7CD0C75ACF3"),
            "datasource",
            "its datasource \"P1809F7CD0C75ACF3\" is no variable of \"prometheus\"",
        ),
        (
            at(STAT, "/targets"),
            json!([]),
            "targets",
            "it asks nothing",
        ),
        (
            at(STAT, "/targets/0/expr"),
            json!(null),
            "targets",
            "an empty query",
        ),
        (
            "/panels/3/targets/0/instant",
            json!(false),
            "targets",
            "a table of a range of times",
        ),
        (
            "/panels/3/transformations/0/options/renameByName",
            json!({"provider": "Provider", "Value #B": "Requests"}),
            "columns",
            "renameByName names a column \"Value #B\" that is not there",
        ),
        (
            "/panels/3/fieldConfig/overrides/0/matcher/options",
            json!("Answers"),
            "columns",
            "an override names a column \"Answers\"",
        ),
        (
            at(GRAPH, "/fieldConfig/defaults/links/0/url"),
            json!("/d/taffrail-none?var-provider=x"),
            "links",
            "leads to no dashboard",
        ),
        (
            at(GRAPH, "/fieldConfig/defaults/links/0/url"),
            json!("/d/taffrail-log?var-color=x"),
            "links",
            "names a variable \"color\"",
        ),
        (
            at(GRAPH, "/fieldConfig/defaults/links/0/url"),
            json!("/d/taffrail-log?var-model=${__field.labels.model}"),
            "labels of links",
            "a link names the label \"model\"",
        ),
        (
            at(GRAPH, "/targets/0/legendFormat"),
            json!("{{model}}"),
            "legend",
            "\"model\"",
        ),
        (
            at(GRAPH, "/targets/0/legendFormat"),
            json!(""),
            "legend",
            "no legend",
        ),
        (
            EXPR,
            json!(
                "sum by (provider) (rate(taffrail_requests_total{provider=~\"$provider\"}[$__rate_interval]))"
            ),
            "job",
            "taffrail_requests_total without job=~\"$job\"",
        ),
        (
            EXPR,
            json!("sum by (provider) (rate(taffrail_requests_total{job=~\"$job\"}[5m]))"),
            "windows",
            "a window of 300s",
        ),
        (
            EXPR,
            json!("sum by (provider) (increase(taffrail_requests_total{job=~\"$job\"}[$__range]))"),
            "windows",
            "$__range in a range query",
        ),
        (
            EXPR,
            json!("sum by (provider) (taffrail_requests_total{job=~\"$job\"})"),
            "expressions",
            "taffrail_requests_total stands outside rate()",
        ),
    ]
}

#[test]
fn every_rule_finds_what_it_is_for() {
    assert_eq!(faults_of(sound()), []);
    let mut proven = BTreeSet::new();
    for (pointer, value, rule, words) in broken() {
        let mut json = sound();
        let (place, key) = pointer.rsplit_once('/').unwrap();
        let place = json.pointer_mut(place).unwrap();
        match place {
            Value::Array(items) => items[key.parse::<usize>().unwrap()] = value,
            other => other[key] = value,
        }
        let faults = faults_of(json);
        let is_found = |(by, fault): &&(&str, String)| *by == rule && fault.contains(words);
        assert!(
            faults.iter().any(|it| is_found(&it)),
            "{pointer}: not {words:?} by {rule:?} but {faults:?}"
        );
        proven.insert(rule);
    }
    assert_eq!(proven, rules(), "each rule has a case");
}

#[test]
fn every_metric_is_shown_or_watched_or_for_trouble_alone() {
    let boards = board::all();
    let panels = boards.values().flat_map(Board::panels);
    let mut used: BTreeSet<String> = panels.flat_map(promql::metrics).collect();
    for file in ["rules.yaml", "alerts.yaml"] {
        for rule in support::promql::rules(file) {
            let review = support::promql::review(rule["expr"].as_str().unwrap());
            used.extend(review.metrics().map(str::to_owned));
        }
    }
    let families = used
        .iter()
        .filter_map(|sample| support::promql::family(sample));
    let families: BTreeSet<&str> = families.map(|family| family.name).collect();
    let all = catalogue::ALL.iter().filter(|family| !family.diagnostic);
    let unused: Vec<&str> = all
        .map(|family| family.name)
        .filter(|name| !families.contains(name))
        .collect();
    assert_eq!(unused, Vec::<&str>::new());
}

/// Alerts whose panel shows the same thing by other metrics, with its title.
const BY_OTHER_METRICS: [(&str, &str); 6] = [
    ("TaffrailAbsent", "Versions"),
    ("TaffrailBalanceSyncFailing", "Syncs by result"),
    ("TaffrailBudgetPace", "Spend by team"),
    ("TaffrailErrorBudgetBurnSlow", "Failed share by provider"),
    ("TaffrailSpendSpike", "Spend by model"),
    ("TaffrailTargetDown", "Versions"),
];

#[test]
fn every_alert_leads_to_a_panel_that_shows_what_it_is_about() {
    let boards = board::all();
    for alert in support::promql::rules("alerts.yaml") {
        let url = alert["annotations"]["dashboard_url"].as_str().unwrap();
        assert!(url.starts_with("https://grafana.example/d/"), "{url}");
        assert_eq!(link(url, None, &boards), Vec::<String>::new());
        let (uid, id) = url["https://grafana.example/d/".len()..]
            .split_once("?viewPanel=")
            .unwrap_or_else(|| panic!("{url}: no panel"));
        let id = id.split('&').next().unwrap();
        let panel = boards[uid].panel(id).unwrap();
        let shown = promql::metrics(panel);
        let review = support::promql::review(alert["expr"].as_str().unwrap());
        let is_shown = review
            .metrics()
            .any(|metric| shown.iter().any(|it| it == metric));
        let (name, title) = (
            alert["alert"].as_str().unwrap(),
            board::text(panel, "title"),
        );
        assert!(
            is_shown || BY_OTHER_METRICS.contains(&(name, title)),
            "{name}: {uid} {title:?} shows {shown:?}"
        );
    }
    for wrong in [
        "https://grafana.example/d/taffrail-none",
        "https://grafana.example/d/taffrail-self?var-provider={{ $labels.provider }}",
        "https://grafana.example/d/taffrail-self?viewPanel=9999",
    ] {
        assert_eq!(link(wrong, None, &boards).len(), 1, "{wrong}");
    }
}
