//! The PromQL of panels and variables: what it names exists, and what it makes is what legends and
//! links ask for.

use serde_json::Value;
use taffrail::metrics::catalogue::Kind;

use super::board::{Board, Boards, links, list, references, substitute, text};
use crate::support::promql::{self, ANY, Review};

/// What is put for the intervals of Grafana: lengths that nobody would write.
const RATE_INTERVAL: &str = "241s";
const RANGE: &str = "86399s";
const INTERVAL: &str = "59s";

/// Windows that a panel may choose itself: of what happens too seldom for `$__rate_interval`, and
/// of sums of an hour or day.
const WINDOWS: &[&str] = &[RATE_INTERVAL, RANGE, "3600s", "21600s", "86400s"];

/// An expression as Grafana would send it, with everything chosen.
fn expanded(expression: &str) -> String {
    substitute(expression, |variable| {
        Some(match variable.name {
            "__rate_interval" => RATE_INTERVAL.to_owned(),
            "__range" => RANGE.to_owned(),
            "__interval" => INTERVAL.to_owned(),
            _ => ANY.to_owned(),
        })
    })
}

fn review(target: &Value) -> Option<Review> {
    let expression = target["expr"].as_str()?;
    Some(promql::review(&expanded(expression)))
}

/// The labels of what a query answers.
pub(super) fn labels(target: &Value) -> promql::Labels {
    review(target).map_or_else(promql::Labels::new, |review| review.labels)
}

fn reviews(panel: &Value) -> impl Iterator<Item = Review> {
    list(panel, "targets").iter().filter_map(review)
}

/// Every metric that a panel names.
pub(super) fn metrics(panel: &Value) -> Vec<String> {
    let names = |review: Review| -> Vec<String> { review.metrics().map(str::to_owned).collect() };
    reviews(panel).flat_map(names).collect()
}

pub(super) fn expressions(panel: &Value, _: &Board, _: &Boards) -> Vec<String> {
    reviews(panel).flat_map(|review| review.faults).collect()
}

/// Several releases may be in one Prometheus, and other software with metrics of the same name.
pub(super) fn job(panel: &Value, _: &Board, _: &Boards) -> Vec<String> {
    let mut problems = Vec::new();
    for target in list(panel, "targets") {
        let expression = text(target, "expr");
        let Some(review) = review(target) else {
            continue;
        };
        for selector in review.selectors {
            let name = selector.name.unwrap_or_default();
            let matchers = &selector.matchers.matchers;
            let is_matched = matchers
                .iter()
                .any(|it| it.name == "job" && it.value == ANY);
            let is_chosen = is_matched && expression.contains("job=~\"$job\"");
            if promql::family(&name).is_some() && !is_chosen {
                problems.push(format!("{name} without job=~\"$job\""));
            }
        }
    }
    problems
}

/// A window of one's own fits one scrape interval and one width of the screen.
pub(super) fn windows(panel: &Value, _: &Board, _: &Boards) -> Vec<String> {
    let mut problems = Vec::new();
    for target in list(panel, "targets") {
        let Some(review) = review(target) else {
            continue;
        };
        for window in review.windows {
            let window = format!("{}s", window.as_secs());
            if !WINDOWS.contains(&window.as_str()) {
                problems.push(format!("a window of {window}"));
            }
            // Every point of a graph would look back as far as the whole graph.
            if window == RANGE && target["instant"] != true {
                problems.push("a window of $__range in a range query".to_owned());
            }
        }
    }
    problems
}

/// A legend shows labels that are there.
pub(super) fn legend(panel: &Value, _: &Board, _: &Boards) -> Vec<String> {
    let mut problems = Vec::new();
    for target in list(panel, "targets") {
        let labels = labels(target);
        let legend = text(target, "legendFormat");
        let named = legend.split("{{").skip(1);
        for label in named.filter_map(|it| it.split("}}").next()) {
            if !labels.contains(label.trim()) {
                problems.push(format!("the legend names {label:?}, {labels:?} are there"));
            }
        }
        let is_series = !target["expr"].is_null() && panel["type"] != "table";
        if is_series && legend.is_empty() {
            problems.push("no legend".to_owned());
        }
    }
    problems
}

/// A link at a point of a graph takes along labels that every series of it has.
pub(super) fn labels_of_links(panel: &Value, _: &Board, _: &Boards) -> Vec<String> {
    let mut problems = Vec::new();
    for url in links(panel) {
        for reference in references(url) {
            let Some(label) = reference.path.strip_prefix("labels.") else {
                continue;
            };
            for target in list(panel, "targets") {
                if !labels(target).contains(label) {
                    problems.push(format!(
                        "a link names the label {label:?} that is not there"
                    ));
                }
            }
        }
    }
    problems
}

/// The queries of variables: `label_values(selector, label)`, of the datasource variable.
pub(super) fn variable_queries(board: &Board, _: &Boards) -> Vec<String> {
    let mut problems = Vec::new();
    for variable in board.variables() {
        let name = text(variable, "name");
        if variable["type"] != "query" || variable["datasource"]["type"] != "prometheus" {
            continue;
        }
        if variable["datasource"]["uid"] != "${datasource}" {
            problems.push(format!("the variable {name} has a datasource of its own"));
        }
        let query = text(&variable["query"], "query");
        if variable["definition"] != query {
            problems.push(format!("the variable {name} has two queries"));
        }
        let inside = query.strip_prefix("label_values(");
        let inside = inside.and_then(|it| it.strip_suffix(')'));
        let Some((selector, label)) = inside.and_then(|it| it.rsplit_once(", ")) else {
            problems.push(format!("the variable {name} asks {query:?}"));
            continue;
        };
        let review = promql::review_selector(&expanded(selector));
        let mut wrong = review.faults.clone();
        if !review.labels.contains(label) {
            wrong.push(format!("{selector} has no label {label}"));
        }
        if label != "job" && !selector.contains("job=~\"$job\"") {
            wrong.push(format!("{selector} without job=~\"$job\""));
        }
        // A counter whose labels traffic brings has no series before the first request.
        let metric = review.metrics().next().and_then(promql::family);
        if metric.is_some_and(|it| it.kind == Kind::Histogram) {
            wrong.push(format!("{selector} is a histogram: too many series"));
        }
        let wrong = wrong.into_iter();
        problems.extend(wrong.map(|it| format!("the variable {name}: {it}")));
    }
    problems
}
