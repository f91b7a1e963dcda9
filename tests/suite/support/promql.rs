//! What can be said of a PromQL expression without a Prometheus: which metrics, labels and values
//! it names, whether they exist, and which labels its result has.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

use promql_parser::label::{self, MatchOp, Matcher};
use promql_parser::parser::value::ValueType;
use promql_parser::parser::{
    self, AggregateExpr, BinModifier, BinaryExpr, Call, Expr, LabelModifier,
    VectorMatchCardinality, VectorSelector, token,
};
use serde_norway::Value;
use taffrail::metrics::catalogue::{self, Descriptor, Kind};

/// Labels of something that has them.
pub(crate) type Labels = BTreeSet<String>;

/// Labels that Prometheus sets on every target.
const OF_TARGETS: &[&str] = &["job", "instance", "namespace"];

/// The attribution label that rules and dashboards ask for.
const ATTRIBUTION: &str = "team";

/// Labels whose values nobody can list.
const OPEN: &[&str] = &[
    "account",
    "code",
    "currency",
    "model",
    "provider",
    "version",
    ATTRIBUTION,
];

/// What dashboards put for a variable: a pattern for every value.
pub(crate) const ANY: &str = ".*";

/// Budgets are recorded by whoever has some; `alerts/budgets.yaml` says how.
const BUDGETS: [(&str, &[&str]); 2] = [
    ("team:taffrail_budget_usd:month", &[ATTRIBUTION]),
    ("taffrail:taffrail_budget_usd:month", &[]),
];

/// The functions that make something of counters.
const RATES: &[&str] = &["rate", "irate", "increase", "resets"];

/// The counter whose exact values are compared with each other, by the laws of conservation.
const EXACT: &str = "taffrail_records_total";

/// The rules of a file of `alerts/`.
pub(crate) fn rules(file: &str) -> Vec<Value> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("alerts");
    let text = std::fs::read_to_string(path.join(file)).unwrap();
    let file: Value = serde_norway::from_str(&text).unwrap();
    let groups = file["groups"].as_sequence().unwrap();
    let rules = groups
        .iter()
        .map(|group| group["rules"].as_sequence().unwrap());
    rules.flatten().cloned().collect()
}

/// The metrics that are recorded, with their labels.
static RECORDED: LazyLock<BTreeMap<String, Labels>> = LazyLock::new(|| {
    let set = |labels: &[&str]| labels.iter().map(|it| (*it).to_owned()).collect();
    let budgets = BUDGETS
        .iter()
        .map(|(name, labels)| ((*name).to_owned(), set(labels)));
    let mut recorded: BTreeMap<String, Labels> = budgets.collect();
    for rule in rules("rules.yaml") {
        let (Some(name), Some(expr)) = (rule["record"].as_str(), rule["expr"].as_str()) else {
            panic!("a rule that records nothing: {rule:?}")
        };
        let labels = review_with(&recorded, expr).labels;
        recorded.insert(name.to_owned(), labels);
    }
    recorded
});

/// The family of ours that a sample is of.
pub(crate) fn family(sample: &str) -> Option<&'static Descriptor> {
    let is_it = |family: &&&Descriptor| match family.kind {
        Kind::Histogram => ["_bucket", "_sum", "_count"]
            .iter()
            .any(|suffix| sample.strip_suffix(suffix) == Some(family.name)),
        Kind::Counter | Kind::Gauge => family.name == sample,
    };
    catalogue::ALL.iter().find(is_it).copied()
}

/// The labels of all metrics together.
fn every_label() -> impl Iterator<Item = &'static str> {
    let own = catalogue::ALL.iter().flat_map(|family| family.labels);
    own.copied()
        .chain([ATTRIBUTION])
        .chain(OF_TARGETS.iter().copied())
}

/// The values that a label can have, by the reference, which a test holds to the code; `None` where
/// nobody can list them.
fn values(label: &str) -> Option<Vec<&'static str>> {
    if OPEN.contains(&label) || OF_TARGETS.contains(&label) {
        return None;
    }
    let quoted = |text: &'static str, mark: char| text.split(mark).skip(1).step_by(2).collect();
    match label {
        "task" => Some(quoted(include_str!("../../../src/app.rs"), '"')),
        "alertstate" => Some(vec!["firing", "pending"]),
        "severity" => Some(vec!["critical", "warning", "info"]),
        _ => {
            let reference = include_str!("../../../docs/metrics.md");
            let start = format!("| `{label}` | ");
            let row = reference
                .lines()
                .find_map(|line| line.strip_prefix(&start))?;
            Some(quoted(row, '`'))
        }
    }
}

/// What an expression names, what is wrong with it, and what it comes to.
#[derive(Default)]
pub(crate) struct Review {
    pub(crate) faults: Vec<String>,
    pub(crate) selectors: Vec<VectorSelector>,
    /// Those of its range selectors.
    pub(crate) windows: Vec<Duration>,
    /// The labels of its result.
    pub(crate) labels: Labels,
}

impl Review {
    /// The metrics that it names.
    pub(crate) fn metrics(&self) -> impl Iterator<Item = &str> {
        self.selectors.iter().filter_map(|it| it.name.as_deref())
    }
}

/// Reviews an expression of a rule or a panel.
pub(crate) fn review(text: &str) -> Review {
    review_with(&RECORDED, text)
}

fn review_with(recorded: &BTreeMap<String, Labels>, text: &str) -> Review {
    let mut reviewer = Reviewer {
        recorded,
        review: Review::default(),
    };
    match parser::parse(text) {
        Ok(expr) => reviewer.review.labels = reviewer.expr(&expr),
        Err(problem) => reviewer.fault(format!("does not parse: {problem}")),
    }
    reviewer.review
}

/// Reviews a selector alone, of which only labels are asked: counters may stand as they are.
pub(crate) fn review_selector(text: &str) -> Review {
    let mut reviewer = Reviewer {
        recorded: &RECORDED,
        review: Review::default(),
    };
    match parser::parse(text) {
        Ok(Expr::VectorSelector(selector)) => {
            reviewer.review.labels = reviewer.selector(&selector);
        }
        Ok(_) => reviewer.fault(format!("{text} is no selector")),
        Err(problem) => reviewer.fault(format!("does not parse: {problem}")),
    }
    reviewer.review
}

struct Reviewer<'a> {
    recorded: &'a BTreeMap<String, Labels>,
    review: Review,
}

impl Reviewer<'_> {
    fn fault(&mut self, fault: String) {
        self.review.faults.push(fault);
    }

    /// The labels of a metric's series; `None` if there is no such metric.
    fn labels_of(&self, sample: &str) -> Option<Labels> {
        if let Some(labels) = self.recorded.get(sample) {
            return Some(labels.clone());
        }
        let mut labels = match family(sample) {
            Some(family) => {
                let mut labels = family.labels.to_vec();
                labels.extend(family.attribution.then_some(ATTRIBUTION));
                labels.extend(sample.ends_with("_bucket").then_some("le"));
                labels
            }
            None if sample == "up" => Vec::new(),
            // An alert has the labels of its expression.
            None if sample == "ALERTS" => {
                let mut labels = vec!["alertname", "alertstate", "severity"];
                labels.extend(every_label());
                labels
            }
            None => return None,
        };
        labels.extend(OF_TARGETS);
        Some(labels.into_iter().map(str::to_owned).collect())
    }

    fn selector(&mut self, selector: &VectorSelector) -> Labels {
        self.review.selectors.push(selector.clone());
        let name = selector.name.as_deref().unwrap_or_default();
        let Some(labels) = self.labels_of(name) else {
            self.fault(format!("no metric is named {name}"));
            // One fault is enough: what asks for its labels is not wrong too.
            return every_label().map(str::to_owned).collect();
        };
        for matcher in &selector.matchers.matchers {
            if labels.contains(&matcher.name) {
                self.matcher(name, matcher);
            } else {
                self.fault(format!("{name} has no label {}", matcher.name));
            }
        }
        labels
    }

    /// A value that is written out must be one that the label can have.
    fn matcher(&mut self, metric: &str, matcher: &Matcher) {
        let is_pattern = matches!(matcher.op, MatchOp::Re(_) | MatchOp::NotRe(_));
        if matcher.value == ANY {
            if !is_pattern {
                let label = &matcher.name;
                self.fault(format!(
                    "{metric} compares {label} with a list of values by ="
                ));
            }
            return;
        }
        let known = match matcher.name.as_str() {
            "alertname" => {
                let alerts = rules("alerts.yaml");
                let names = alerts.iter().filter_map(|alert| alert["alert"].as_str());
                if !names.clone().any(|name| matcher.is_match(name)) {
                    self.fault(format!("no alert is named {}", matcher.value));
                }
                return;
            }
            label => values(label),
        };
        let Some(known) = known else { return };
        for value in matcher.value.split('|').filter(|value| !value.is_empty()) {
            if !known.contains(&value) {
                let label = &matcher.name;
                self.fault(format!("{label}={value:?} of {metric} is no value"));
            }
        }
    }

    /// Whether a metric only rises.
    fn is_counter(name: &str) -> bool {
        family(name).is_some_and(|family| family.kind != Kind::Gauge)
    }

    fn expr(&mut self, expr: &Expr) -> Labels {
        match expr {
            Expr::VectorSelector(selector) => {
                let name = selector.name.as_deref().unwrap_or_default();
                if Self::is_counter(name) && name != EXACT {
                    self.fault(format!("{name} stands outside rate() and increase()"));
                }
                self.selector(selector)
            }
            Expr::MatrixSelector(matrix) => {
                self.review.windows.push(matrix.range);
                self.selector(&matrix.vs)
            }
            Expr::Call(call) => self.call(call),
            Expr::Aggregate(aggregate) => self.aggregate(aggregate),
            Expr::Binary(binary) => self.binary(binary),
            Expr::Paren(paren) => self.expr(&paren.expr),
            Expr::Unary(unary) => self.expr(&unary.expr),
            Expr::Subquery(subquery) => self.expr(&subquery.expr),
            Expr::NumberLiteral(_) | Expr::StringLiteral(_) | Expr::Extension(_) => Labels::new(),
        }
    }

    fn call(&mut self, call: &Call) -> Labels {
        let function = call.func.name;
        let arguments = &call.args.args;
        for argument in arguments {
            if let Expr::MatrixSelector(matrix) = argument.as_ref() {
                let name = matrix.vs.name.as_deref().unwrap_or_default();
                let is_rate = RATES.contains(&function);
                let is_gauge = family(name).is_some_and(|it| it.kind == Kind::Gauge);
                if is_rate && (is_gauge || self.recorded.contains_key(name)) {
                    self.fault(format!("{function}() of {name}, which is a gauge"));
                }
                if !is_rate && Self::is_counter(name) {
                    self.fault(format!("{name} stands outside rate() and increase()"));
                }
            }
        }
        let mut labels = Labels::new();
        for argument in arguments {
            labels.extend(self.expr(argument));
        }
        if function == "histogram_quantile" && !labels.remove("le") {
            self.fault("histogram_quantile() of something without le".to_owned());
        }
        match function {
            "label_replace" => {
                if let Some(Expr::StringLiteral(name)) = arguments.get(1).map(AsRef::as_ref) {
                    labels.insert(name.val.clone());
                }
            }
            "vector" | "scalar" => labels.clear(),
            _ => {}
        }
        labels
    }

    fn aggregate(&mut self, aggregate: &AggregateExpr) -> Labels {
        if let Some(parameter) = &aggregate.param {
            self.expr(parameter);
        }
        let labels = self.expr(&aggregate.expr);
        if let Some(modifier) = &aggregate.modifier {
            self.all_exist(&modifier.labels().labels, &labels);
        }
        // The likes of topk() choose among series and leave them as they are.
        let chooses = [
            token::T_TOPK,
            token::T_BOTTOMK,
            token::T_LIMITK,
            token::T_LIMIT_RATIO,
        ];
        if chooses.contains(&aggregate.op.id()) {
            return labels;
        }
        match &aggregate.modifier {
            Some(LabelModifier::Include(kept)) => kept.labels.iter().cloned().collect(),
            Some(LabelModifier::Exclude(dropped)) => without(&labels, &dropped.labels),
            None => Labels::new(),
        }
    }

    fn binary(&mut self, binary: &BinaryExpr) -> Labels {
        let (left, right) = (self.expr(&binary.lhs), self.expr(&binary.rhs));
        if binary.lhs.value_type() == ValueType::Scalar {
            return right;
        }
        if binary.rhs.value_type() == ValueType::Scalar {
            return left;
        }
        let modifier = binary.modifier.clone().unwrap_or_default();
        let BinModifier { card, matching, .. } = &modifier;
        let is_or = binary.op.id() == token::T_LOR;
        match matching {
            Some(LabelModifier::Include(on)) => {
                self.all_exist(&on.labels, &left);
                self.all_exist(&on.labels, &right);
            }
            _ if is_or => {}
            _ => {
                let ignored = matching.as_ref().map(|it| it.labels().labels.clone());
                let ignored = ignored.unwrap_or_default();
                let (left, right) = (without(&left, &ignored), without(&right, &ignored));
                if left != right {
                    self.fault(format!("{left:?} never match {right:?}"));
                }
            }
        }
        if is_or {
            return &left | &right;
        }
        if binary.op.is_set_operator() {
            return left;
        }
        let with = |labels: Labels, more: &label::Labels| {
            labels.into_iter().chain(more.labels.clone()).collect()
        };
        match (card, matching) {
            (VectorMatchCardinality::ManyToOne(more), _) => with(left, more),
            (VectorMatchCardinality::OneToMany(more), _) => with(right, more),
            (_, Some(LabelModifier::Include(on))) => on.labels.iter().cloned().collect(),
            (_, Some(LabelModifier::Exclude(ignored))) => without(&left, &ignored.labels),
            (_, None) => left,
        }
    }

    fn all_exist(&mut self, named: &[String], labels: &Labels) {
        for label in named {
            if !labels.contains(label) {
                self.fault(format!("nothing there has a label {label}"));
            }
        }
    }
}

fn without(labels: &Labels, dropped: &[String]) -> Labels {
    let kept = labels.iter().filter(|label| !dropped.contains(label));
    kept.cloned().collect()
}
