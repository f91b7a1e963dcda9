//! The counters of an exposition held against rows.

use std::collections::BTreeMap;

use rust_decimal::Decimal;
use serde_json::{Value, json};
use taffrail::record::UsageRecord;

/// The columns of tokens and the `type` label that each is counted under.
pub(crate) const TOKENS: [(&str, &str); 11] = [
    ("input_tokens", "input"),
    ("cache_read_tokens", "cache_read"),
    ("cache_write_5m_tokens", "cache_write"),
    ("cache_write_1h_tokens", "cache_write"),
    ("cache_write_tokens", "cache_write"),
    ("output_tokens", "output"),
    ("reasoning_tokens", "reasoning"),
    ("input_audio_tokens", "input_audio"),
    ("output_audio_tokens", "output_audio"),
    ("input_image_tokens", "input_image"),
    ("output_image_tokens", "output_image"),
];

/// Sums by what is summed and its labels.
type Sums = BTreeMap<Vec<String>, Decimal>;

/// Operations that cost nothing by themselves.
const CONTROL: [&str; 6] = [
    "moderation",
    "models",
    "count_tokens",
    "batch",
    "files",
    "control",
];

/// Fails unless the counters of `exposition` are what these rows, as `taffrail logs` prints
/// them, sum up to: requests, tokens, units, cost, unpriced requests, responses by fidelity and
/// code, and bytes. With `attribution`, requests, tokens and cost by those labels too.
pub(crate) fn assert_counters_agree(exposition: &str, rows: &[Value], attribution: &[&str]) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut expected = Sums::new();
    for row in rows {
        let provider = text(&row["provider"]);
        let model = match row["model_served"]
            .as_str()
            .or(row["model_requested"].as_str())
        {
            Some(model) => model.to_owned(),
            None => "unknown".to_owned(),
        };
        let operation = text(&row["operation"]);
        let labels: Vec<String> = attribution
            .iter()
            .map(|label| text(&row["attribution"][label]))
            .collect();
        let call = [
            vec![provider.clone(), model.clone(), operation.clone()],
            labels,
        ]
        .concat();
        let call: Vec<&str> = call.iter().map(String::as_str).collect();
        let mut add = |family: &str, labels: &[&str], quantity: Decimal| {
            let key = std::iter::once(&family)
                .chain(labels)
                .map(|s| (*s).to_owned());
            *expected.entry(key.collect()).or_default() += quantity;
        };
        let outcome = text(&row["outcome"]);
        add(
            "requests",
            &[&[outcome.as_str()], &call[..]].concat(),
            1.into(),
        );
        for (column, kind) in TOKENS {
            if let Some(tokens) = row[column].as_i64() {
                add("tokens", &[&[kind], &call[..]].concat(), tokens.into());
            }
        }
        for (unit, quantity) in row["units"].as_object().into_iter().flatten() {
            let quantity = quantity.as_str().unwrap().parse().unwrap();
            add("units", &[&[unit.as_str()], &call[..3]].concat(), quantity);
        }
        let is_control = CONTROL.contains(&operation.as_str());
        if let Some(cost) = row["cost_usd"].as_str() {
            let source = text(&row["cost_source"]);
            let labels = [&[source.as_str()], &call[..]].concat();
            add("cost_usd", &labels, cost.parse().unwrap());
        } else if let Some(reason) = row["unpriced_reason"].as_str().filter(|_| !is_control) {
            add("unpriced_requests", &[reason, &provider, &model], 1.into());
        }
        if let Some(code) = row["http_status"].as_i64() {
            add("http_responses", &[&code.to_string(), &provider], 1.into());
            if !is_control {
                let fidelity = text(&row["fidelity"]);
                add("metered_responses", &[&fidelity, &provider], 1.into());
            }
        }
        for column in ["request_bytes", "response_bytes"] {
            let bytes = row[column].as_i64().unwrap_or(0);
            add(column, &[&provider], bytes.into());
        }
    }
    expected.retain(|_, quantity| !quantity.is_zero());
    let actual = counters(exposition, attribution);
    assert_eq!(
        actual.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>()
    );
    for (series, quantity) in expected {
        let difference = (actual[&series] - quantity).abs();
        // The exposition has floats, the rows are exact.
        let is_equal = difference <= quantity.abs() * Decimal::new(1, 12);
        assert!(is_equal, "{series:?}: {} for {quantity}", actual[&series]);
    }
}

/// The counters that are not zero, by the name's middle and the labels in the order above.
fn counters(exposition: &str, attribution: &[&str]) -> Sums {
    let families: [(&str, &[&str]); 9] = [
        ("requests", &["outcome", "provider", "model", "operation"]),
        ("tokens", &["type", "provider", "model", "operation"]),
        ("cost_usd", &["source", "provider", "model", "operation"]),
        ("units", &["unit", "provider", "model", "operation"]),
        ("unpriced_requests", &["reason", "provider", "model"]),
        ("http_responses", &["code", "provider"]),
        ("metered_responses", &["fidelity", "provider"]),
        ("request_bytes", &["provider"]),
        ("response_bytes", &["provider"]),
    ];
    let mut sums = Sums::new();
    for (family, names) in families {
        let is_attributed = ["requests", "tokens", "cost_usd"].contains(&family);
        let names = [names, if is_attributed { attribution } else { &[] }].concat();
        for (labels, value) in samples(exposition, &format!("taffrail_{family}_total")) {
            let labels = names
                .iter()
                .map(|name| labels.get(*name).cloned().unwrap_or_default());
            let key = std::iter::once(family.to_owned()).chain(labels).collect();
            *sums.entry(key).or_default() += value;
        }
    }
    sums.retain(|_, value| !value.is_zero());
    sums
}

/// The samples of that name: labels and value.
pub(crate) fn samples(exposition: &str, name: &str) -> Vec<(BTreeMap<String, String>, Decimal)> {
    let mut samples = Vec::new();
    for line in exposition.lines() {
        let Some(rest) = line.strip_prefix(name) else {
            continue;
        };
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once("} ").unwrap(),
            None if rest.starts_with(' ') => ("", rest.trim_start()),
            None => continue,
        };
        let value: f64 = value.parse().unwrap();
        let labels = labels.split_terminator("\",").map(|label| {
            let (name, value) = label.split_once("=\"").unwrap();
            (name.to_owned(), value.trim_end_matches('"').to_owned())
        });
        samples.push((labels.collect(), Decimal::from_f64_retain(value).unwrap()));
    }
    samples
}

/// The columns of a record that the counters are made of, as `taffrail logs` prints them.
pub(crate) fn row_of(record: &UsageRecord) -> Value {
    let mut row = json!({
        "provider": record.provider,
        "operation": record.operation,
        "model_requested": record.model_requested,
        "model_served": record.model_served,
        "outcome": record.outcome,
        "http_status": record.http_status,
        "fidelity": record.fidelity,
        "request_bytes": record.request_bytes,
        "response_bytes": record.response_bytes,
        "cost_usd": record.cost_usd,
        "cost_source": record.cost_source,
        "unpriced_reason": record.unpriced_reason,
        "attribution": record.caller.attribution,
        "units": {},
    });
    for (unit, quantity) in record.usage.iter() {
        match unit.is_token() {
            true => row[format!("{unit}_tokens")] = json!(record.usage.tokens(unit)),
            false => row["units"][unit.as_str()] = json!(quantity),
        }
    }
    row
}
