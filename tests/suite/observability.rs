//! The dashboards and alerts end to end: the real binary under the traffic of its demo, a real
//! Prometheus with the rules of `alerts/`, an Alertmanager, and Postgres. Every query of every
//! dashboard answers, a low balance fires, and every panel is drawn.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use taffrail::clock;

use crate::support::chart::root;
use crate::support::eventually::eventually;
use crate::support::stand::Stand;

/// Queries that answer nothing here, and why: dashboard, panel, `refId`s.
const SILENT: &[(&str, &str, &str, &str)] = &[
    ("overview", "Today against last week", "A", WEEK),
    ("overview", "What changed since last week", "ABCD", WEEK),
    ("cost", "What caching saved", "A", "no such metric yet"),
    ("latency", "Open jobs", "C", GOOD_DAY),
    (
        "log",
        "Costs that were changed",
        "A",
        "nothing was costed anew",
    ),
    ("self", "Records not stored, by reason", "A", GOOD_DAY),
    ("self", "Trouble on the way to the store", "C", GOOD_DAY),
    ("self", "Connections", "B", GOOD_DAY),
    ("self", "Admission reviews", "A", INJECTOR),
    ("self", "Warnings in reviews", "A", INJECTOR),
    ("self", "Certificate lasts for", "A", INJECTOR),
    ("self", "Looks at the certificate", "A", INJECTOR),
];
const WEEK: &str = "Prometheus has no samples of a week ago";
const GOOD_DAY: &str = "it shows troubles above zero alone, and there is none";
const INJECTOR: &str = "no injector runs";

/// A query of a panel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Query {
    board: String,
    panel: String,
    id: String,
    /// PromQL or SQL, as it stands in the dashboard.
    text: String,
    is_sql: bool,
    is_instant: bool,
}

impl Query {
    fn is_silent(&self) -> bool {
        SILENT.iter().any(|(board, panel, ids, _)| {
            *board == self.board && *panel == self.panel && ids.contains(&self.id)
        })
    }
}

fn boards() -> BTreeMap<String, Value> {
    let files = std::fs::read_dir(root().join("grafana")).unwrap();
    let paths = files.map(|file| file.unwrap().path());
    let boards = paths.filter(|path| path.extension().is_some_and(|end| end == "json"));
    let named = boards.map(|path| {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        (name, serde_json::from_str(&text).unwrap())
    });
    named.collect()
}

fn queries(name: &str, board: &Value) -> Vec<Query> {
    let panels = board["panels"].as_array().unwrap().iter();
    let nested = |panel: &Value| panel["panels"].as_array().cloned().unwrap_or_default();
    let all: Vec<Value> = panels
        .flat_map(|panel| [vec![panel.clone()], nested(panel)].concat())
        .collect();
    let mut queries = Vec::new();
    for panel in &all {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = |key: &str| target[key].as_str().map(str::to_owned);
            let (expr, sql) = (text("expr"), text("rawSql"));
            queries.push(Query {
                board: name.to_owned(),
                panel: panel["title"].as_str().unwrap().to_owned(),
                id: text("refId").unwrap(),
                is_sql: sql.is_some(),
                text: expr.or(sql).unwrap(),
                is_instant: target["instant"] == true,
            });
        }
    }
    queries
}

/// A query with the variables of its dashboard as they are at first, where all is chosen.
fn filled(query: &Query, variables: &BTreeMap<String, Vec<String>>) -> String {
    let mut text = query.text.clone();
    // The longer names first, so that none stands in another.
    for (name, values) in variables.iter().rev() {
        let quoted = values
            .iter()
            .map(|value| format!("'{}'", value.replace('\'', "''")));
        let quoted: Vec<String> = quoted.collect();
        let plain = values.join("|");
        text = text
            .replace(&format!("${{{name}:sqlstring}}"), &quoted.join(","))
            .replace(&format!("${{{name}:regex}}"), &plain)
            .replace(&format!("${{{name}}}"), &plain)
            .replace(&format!("${name}"), &plain);
    }
    text
}

/// What stands for Grafana's own variables in PromQL: ranges of a few scrapes.
fn own_variables() -> BTreeMap<String, Vec<String>> {
    let pairs = [
        ("__rate_interval", "20s"),
        ("__interval", "5s"),
        ("__range", "60s"),
    ];
    let pairs = pairs.map(|(name, value)| (name.to_owned(), vec![value.to_owned()]));
    pairs.into()
}

/// The macros of Grafana's Postgres, for the last hours.
fn expanded(sql: &str, now: DateTime<Utc>) -> String {
    let quoted = |time: DateTime<Utc>| format!("'{}'", time.to_rfc3339());
    let (from, to) = (quoted(now - TimeDelta::hours(2)), quoted(now));
    let mut text = sql
        .replace("$__timeFrom()", &from)
        .replace("$__timeTo()", &to);
    while let Some((before, rest)) = text.split_once("$__timeFilter(") {
        let (column, after) = rest.split_once(')').unwrap();
        text = format!("{before}{column} between {from} and {to}{after}");
    }
    text
}

/// The values that the variables of a dashboard begin with.
async fn variables(stand: &Stand, board: &Value) -> BTreeMap<String, Vec<String>> {
    let mut variables = own_variables();
    for variable in board["templating"]["list"].as_array().unwrap() {
        let name = variable["name"].as_str().unwrap().to_owned();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let values = match (text(&variable["allValue"]), text(&variable["query"])) {
            (Some(all), _) => vec![all],
            (None, Some(sql)) if variable["type"] == "query" => {
                let rows = stand.read(&sql).await.unwrap();
                assert!(!rows.is_empty(), "the variable {name} has no values");
                rows.into_iter().flatten().collect()
            }
            _ => vec![text(&variable["current"]["value"]).unwrap_or_default()],
        };
        variables.insert(name, values);
    }
    variables
}

/// Whether a query answers with a sample or a row.
async fn answers(
    stand: &Stand,
    query: &Query,
    variables: &BTreeMap<String, Vec<String>>,
) -> Result<bool, String> {
    let text = filled(query, variables);
    let text = expanded(&text, clock::wall());
    assert!(
        !text.contains("${") && !text.contains("$__"),
        "{query:?}: a variable is left in {text}"
    );
    if query.is_sql {
        let rows = stand.read(&text).await?;
        let is_there = |value: &String| value != "null";
        return Ok(rows.iter().flatten().any(is_there));
    }
    let result = stand.prometheus_query(&text, query.is_instant).await?;
    let is_number = |sample: &Value| sample[1].as_str().is_some_and(|value| value != "NaN");
    Ok(result.iter().any(|series| {
        is_number(&series["value"])
            || series["values"]
                .as_array()
                .into_iter()
                .flatten()
                .any(is_number)
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_query_of_every_dashboard_answers() {
    let Some(stand) = Stand::shared().await else {
        return;
    };
    let boards = boards();
    let all: BTreeSet<Query> = boards
        .iter()
        .flat_map(|(name, board)| queries(name, board))
        .collect();
    for (board, panel, ids, _) in SILENT {
        for id in ids.chars() {
            let stands = |query: &Query| {
                (&*query.board, &*query.panel, &*query.id) == (*board, *panel, &*id.to_string())
            };
            assert!(all.iter().any(stands), "there is no {board}: {panel}: {id}");
        }
    }
    let mut waiting: Vec<Query> = all.into_iter().filter(|query| !query.is_silent()).collect();
    assert!(waiting.len() > 100);
    eventually("every query answers", async || {
        let mut silent = Vec::new();
        for (name, board) in &boards {
            let own = waiting.iter().filter(|query| query.board == *name);
            let own: Vec<&Query> = own.collect();
            if own.is_empty() {
                continue;
            }
            let variables = variables(stand, board).await;
            for query in own {
                match answers(stand, query, &variables).await {
                    Ok(true) => {}
                    Ok(false) => silent.push(query.clone()),
                    Err(error) => panic!("{query:?}: {error}"),
                }
            }
        }
        waiting = silent;
        waiting.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_low_balance_reaches_alertmanager() {
    let Some(stand) = Stand::shared().await else {
        return;
    };
    eventually("the alert is there", async || {
        let alerts = stand.alerts().await;
        alerts.iter().any(|alert| {
            let labels = &alert["labels"];
            labels["alertname"] == "TaffrailBalanceCritical"
                && labels["severity"] == "critical"
                && labels["provider"] == "replicate"
                && labels["account"] == "team"
                && alert["annotations"]["description"]
                    .as_str()
                    .is_some_and(|text| {
                        text.starts_with("replicate/team has ")
                            && text.contains(" USD left (ledger)")
                    })
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_panel_of_every_dashboard_is_drawn() {
    let Some(stand) = Stand::shared().await else {
        return;
    };
    let Some(panels) = stand.draw().await else {
        return;
    };
    let mut titles: BTreeMap<String, usize> = BTreeMap::new();
    for panel in &panels {
        let (board, title) = (
            panel["board"].as_str().unwrap(),
            panel["title"].as_str().unwrap(),
        );
        assert_eq!(panel["errors"], serde_json::json!([]), "{board}: {title}");
        assert!(
            panel["drawn"].is_string(),
            "{board}: {title} is not drawn: {panel}"
        );
        *titles.entry(board.to_owned()).or_default() += 1;
    }
    let count = |board: &Value| {
        let panels = board["panels"].as_array().unwrap().iter();
        panels.filter(|panel| panel["type"] != "row").count()
    };
    let expected = boards()
        .iter()
        .map(|(name, board)| (name.clone(), count(board)))
        .collect();
    assert_eq!(titles, expected);
}
