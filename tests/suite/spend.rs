//! What was spent today and this month: the exporter's metric, from both stores.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;

use chrono::{DateTime, Datelike as _, TimeDelta, Utc};
use taffrail::clock;
use taffrail::exporter::spend::show_spend;
use taffrail::metrics::exposition::Format;
use taffrail::metrics::{Metrics, labels};
use taffrail::money::Usd;
use taffrail::record::UsageRecord;
use taffrail::store::{Config, Store};
use tempfile::TempDir;

use crate::exposition::parse;
use crate::store::record;
use crate::support::postgres::{Cluster, Version};

/// A request of a model that cost so much; `None` is unknown.
fn request(at: DateTime<Utc>, number: u64, model: &str, usd: Option<&str>) -> UsageRecord {
    UsageRecord {
        model_served: Some(model.to_owned()),
        cost_usd: usd.map(|usd| Usd::from_json_number(usd).unwrap()),
        ..record(at, number)
    }
}

async fn open(url: &str) -> Store {
    let config = Config {
        url: url.to_owned(),
        ..Config::default()
    };
    Store::open(&config).await.unwrap()
}

/// The series of the metric, without what they have in common.
fn shown(metrics: &Metrics) -> BTreeMap<String, f64> {
    let text = String::from_utf8(metrics.encode(Format::Text, clock::instant())).unwrap();
    let spend = parse(&text).into_iter().filter_map(|(series, value)| {
        let labels = series.strip_prefix("taffrail_spend_usd{provider=\"openai\",model=")?;
        Some((labels.trim_end_matches('}').to_owned(), value))
    });
    spend.collect()
}

async fn shows_day_and_month(store: &Store) {
    let now = clock::wall();
    let noon = now.date_naive().and_hms_opt(0, 0, 1).unwrap().and_utc();
    // The first of the month has no earlier day; all is of today then.
    let earlier = match noon.day() {
        1 => noon,
        _ => noon - TimeDelta::days(1),
    };
    let last_month = noon - TimeDelta::days(i64::from(noon.day()));
    let all = [
        request(noon, 1, "both", Some("0.25")),
        request(noon, 2, "both", Some("0.5")),
        request(noon, 3, "unknown-price", None),
        request(earlier, 4, "both", Some("1")),
        request(earlier, 5, "earlier", Some("3")),
        request(last_month, 6, "both", Some("100")),
    ];
    store.apply(&all).await.unwrap();
    let metrics = Metrics::new(&Default::default(), &["team".to_owned()], &["openai"]);
    show_spend(store, &metrics).await.unwrap();
    let is_first = noon.day() == 1;
    let day = if is_first { (1.75, 3.0) } else { (0.75, 0.0) };
    let expected = [
        ("\"both\",window=\"day\",team=\"search\"", day.0),
        ("\"both\",window=\"month\",team=\"search\"", 1.75),
        ("\"earlier\",window=\"day\",team=\"search\"", day.1),
        ("\"earlier\",window=\"month\",team=\"search\"", 3.0),
    ];
    let expected = expected.map(|(labels, value)| (labels.to_owned(), value));
    assert_eq!(shown(&metrics), expected.into());
}

#[tokio::test]
async fn sqlite_tells_what_was_spent_today_and_this_month() {
    let dir = TempDir::new().unwrap();
    let store = open(&format!("sqlite://{}/taffrail.db", dir.path().display())).await;
    shows_day_and_month(&store).await;
}

#[tokio::test]
async fn postgres_tells_what_was_spent_today_and_this_month() {
    let Some(cluster) = Cluster::shared(Version::Default).await else {
        return;
    };
    let store = open(&cluster.database().await.url()).await;
    shows_day_and_month(&store).await;
}

#[test]
fn attribution_cannot_take_the_name_of_the_window() {
    assert!(labels::check_attribution_label("window").is_err());
}
