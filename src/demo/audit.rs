//! The demo's check of itself: the rows in the store against what the clients counted.
//!
//! Pure: rows and counts in, differences out. The clients know what their requests consume
//! before they send them, so agreement is no tautology.

use std::collections::{BTreeMap, BTreeSet};

use super::traffic::{Counts, FEATURE_LABEL, Key, Tally};
use crate::store::{DecimalSum, Dimension, Totals, UsageRow};
use crate::usage::Unit;

/// What the rows must be grouped by for [`differences`].
pub fn dimensions() -> Vec<Dimension> {
    vec![
        Dimension::Provider,
        Dimension::Model,
        Dimension::Outcome,
        Dimension::Attribution(FEATURE_LABEL.to_owned()),
        Dimension::Instance,
    ]
}

/// What the rows say otherwise than the clients, a line each; none if they agree. Rows of
/// features that no client has are someone else's: a person who tries the demo out. So are those of
/// other instances than `instance`: another demo that shares the store.
pub fn differences(counts: &Counts, rows: &[UsageRow], instance: &str) -> Vec<String> {
    let features: BTreeSet<&str> = counts.tallies.keys().map(|key| key.feature).collect();
    let mut rows: BTreeMap<[String; 4], &Totals> = rows
        .iter()
        .filter(|row| row.group.last() == Some(&Some(instance.to_owned())))
        .filter_map(|row| Some((names_of_row(row)?, &row.totals)))
        .filter(|([.., feature], _)| features.contains(feature.as_str()))
        .collect();
    let nothing = Totals::default();
    let mut differences = Vec::new();
    for (key, tally) in &counts.tallies {
        let names = names_of_key(key);
        let totals = rows.remove(&names).unwrap_or(&nothing);
        let differing = compare(tally, totals).into_iter();
        differences
            .extend(differing.map(|difference| format!("{}: {difference}", names.join(" "))));
    }
    for (names, totals) in rows {
        let requests = totals.requests;
        differences.push(format!(
            "{}: {requests} requests that no client sent",
            names.join(" ")
        ));
    }
    differences
}

fn names_of_row(row: &UsageRow) -> Option<[String; 4]> {
    let names: Vec<String> = row
        .group
        .iter()
        .take(4)
        .map(|name| name.clone().unwrap_or_default())
        .collect();
    names.try_into().ok()
}

fn names_of_key(key: &Key) -> [String; 4] {
    [
        key.vendor.name(),
        key.model,
        key.outcome.as_str(),
        key.feature,
    ]
    .map(str::to_owned)
}

fn compare(tally: &Tally, totals: &Totals) -> Vec<String> {
    let mut differences = Vec::new();
    let mut hold = |what: &str, clients: String, rows: String| {
        if clients != rows {
            differences.push(format!(
                "{what}: the clients say {clients}, the rows {rows}"
            ));
        }
    };
    hold(
        "requests",
        tally.requests.to_string(),
        totals.requests.to_string(),
    );
    for unit in Unit::ALL {
        let clients = DecimalSum::from(tally.usage.get(*unit).unwrap_or_default());
        let rows = totals.quantities.get(unit).copied().unwrap_or_default();
        hold(unit.as_str(), clients.to_string(), rows.to_string());
    }
    let unknown = || "unknown".to_owned();
    let charged = match tally.charged {
        Some(charged) => Some(DecimalSum::from(charged.dollars()).to_string()),
        None if tally.unpriced == tally.requests => Some(unknown()),
        // For the price catalogue to know.
        None => None,
    };
    if let Some(charged) = charged {
        let rows = totals.cost_usd.map(|cost| cost.to_string());
        hold("cost", charged, rows.unwrap_or_else(unknown));
    }
    hold(
        "unpriced requests",
        tally.unpriced.to_string(),
        totals.unpriced_requests.to_string(),
    );
    differences
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::lookalike::Vendor;
    use crate::fault::Outcome;
    use crate::money::Usd;
    use crate::usage::Usage;

    fn counts() -> Counts {
        let key = Key {
            vendor: Vendor::OpenRouter,
            model: "m",
            outcome: Outcome::Ok,
            feature: "f",
        };
        let tally = Tally {
            requests: 2,
            usage: Usage::new().with(Unit::Input, 30).with(Unit::Output, 4),
            charged: Usd::from_json_number("0.0012"),
            unpriced: 0,
        };
        Counts {
            tallies: BTreeMap::from([(key, tally)]),
            polls: 0,
            surprises: Vec::new(),
        }
    }

    fn row(feature: Option<&str>, totals: Totals) -> UsageRow {
        row_of("here", feature, totals)
    }

    fn row_of(instance: &str, feature: Option<&str>, totals: Totals) -> UsageRow {
        let group = [
            Some("openrouter"),
            Some("m"),
            Some("ok"),
            feature,
            Some(instance),
        ];
        UsageRow {
            group: group.map(|name| name.map(str::to_owned)).to_vec(),
            totals,
        }
    }

    fn totals() -> Totals {
        let sum = |quantity: i64| DecimalSum::from(rust_decimal::Decimal::from(quantity));
        Totals {
            requests: 2,
            cost_usd: Some(DecimalSum::from(rust_decimal::Decimal::new(12, 4))),
            quantities: BTreeMap::from([(Unit::Input, sum(30)), (Unit::Output, sum(4))]),
            ..Totals::default()
        }
    }

    #[test]
    fn rows_that_agree_differ_in_nothing() {
        let rows = [
            row(Some("f"), totals()),
            row(Some("mine"), totals()),
            row(None, totals()),
            row_of("elsewhere", Some("f"), totals()),
        ];
        assert_eq!(differences(&counts(), &rows, "here"), Vec::<String>::new());
    }

    #[test]
    fn every_disagreement_is_named() {
        let mut wrong = totals();
        wrong.requests = 1;
        wrong.quantities.remove(&Unit::Output);
        wrong.cost_usd = None;
        assert_eq!(
            differences(&counts(), &[row(Some("f"), wrong)], "here"),
            [
                "openrouter m ok f: requests: the clients say 2, the rows 1",
                "openrouter m ok f: output: the clients say 4, the rows 0",
                "openrouter m ok f: cost: the clients say 0.0012, the rows unknown",
            ]
        );
        let mut jobs = counts();
        for tally in jobs.tallies.values_mut() {
            (tally.charged, tally.unpriced) = (None, 2);
        }
        assert_eq!(
            differences(&jobs, &[row(Some("f"), totals())], "here"),
            [
                "openrouter m ok f: cost: the clients say unknown, the rows 0.0012",
                "openrouter m ok f: unpriced requests: the clients say 2, the rows 0",
            ]
        );
        let mut unsent = row(Some("f"), totals());
        unsent.group[2] = Some("rate_limited".to_owned());
        assert_eq!(
            differences(&counts(), &[row(Some("f"), totals()), unsent], "here"),
            ["openrouter m rate_limited f: 2 requests that no client sent"]
        );
    }
}
