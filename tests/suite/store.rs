//! The store on a real SQLite file: exactly once, exact sums, paging, migrations, two processes.

#![expect(
    clippy::unwrap_used,
    clippy::string_slice,
    reason = "helpers of tests fail as tests do"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use rust_decimal::Decimal;
use sqlx::{Connection, Row, SqliteConnection};
use taffrail::caller::{Caller, Instance};
use taffrail::fault::Outcome;
use taffrail::money::Usd;
use taffrail::record::{CostSource, Fidelity, Intent, Operation, UsageRecord};
use taffrail::store::{
    Applied, Config, Dimension, LogQuery, LogRow, Rejection, Store, StoreError, TOKEN_COLUMNS,
    Totals, UsageQuery, UsageRow,
};
use taffrail::usage::Unit;
use uuid::Uuid;

pub(crate) fn config(folder: &Path) -> Config {
    Config {
        url: format!("sqlite://{}/data/taffrail.db", folder.display()),
        ..Config::default()
    }
}

pub(crate) fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

/// The UUIDv7 of that moment, told from others of the moment by a number.
pub(crate) fn id(at: DateTime<Utc>, number: u64) -> Uuid {
    let millis = u64::try_from(at.timestamp_millis()).unwrap();
    let mut random = [0; 10];
    random[2..].copy_from_slice(&number.to_be_bytes());
    uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
}

/// A finished chat request with every kind of column filled.
pub(crate) fn record(started_at: DateTime<Utc>, number: u64) -> UsageRecord {
    let intent = Intent {
        id: id(started_at, number),
        started_at,
        provider: "openai".into(),
        operation: Operation::Chat,
        method: "POST".into(),
        route: "/v1/chat/completions".into(),
        model_requested: Some("gpt-4o-mini".into()),
        caller: Caller {
            key_fingerprint: Some("9f86d081884c7d65".into()),
            attribution: [("team".to_owned(), "search".to_owned())].into(),
            trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736".into()),
            span_id: Some("00f067aa0ba902b7".into()),
        },
        job: None,
    };
    let mut record = intent.interrupted(Instance {
        instance: "web-7d9f".into(),
        namespace: Some("shop".into()),
        pod: Some("web-7d9f".into()),
    });
    record.model_served = Some("gpt-4o-mini-2024-07-18".into());
    record.service_tier = Some("default".into());
    record.streamed = true;
    record.provider_request_id = Some("chatcmpl-1".into());
    record.outcome = Outcome::Ok;
    record.http_status = Some(200);
    record.finish_reason = Some("stop".into());
    record.duration_us = Some(1_234_567);
    record.first_byte_us = Some(210_000);
    record.first_token_us = Some(245_000);
    record.overhead_us = Some(42);
    record.request_bytes = Some(812);
    record.response_bytes = Some(20_480);
    record.usage.set(Unit::Input, 1_000);
    record.usage.set(Unit::CacheRead, 200);
    record.usage.set(Unit::Output, 59);
    record.fidelity = Fidelity::Complete;
    record.raw_usage = Some(r#"{"prompt_tokens":1200,"completion_tokens":59}"#.into());
    record.cost_usd = Usd::from_json_number("0.0002004");
    record.cost_source = Some(CostSource::Catalog);
    record.price_version = Some("2026-11-01".into());
    record.unpriced_reason = None;
    record
}

fn noon() -> DateTime<Utc> {
    at("2026-11-23T12:00:00Z")
}

fn all_rows() -> LogQuery {
    LogQuery {
        limit: 10_000,
        before: None,
        provider: None,
        outcome: None,
    }
}

fn ids(rows: &[LogRow]) -> Vec<String> {
    rows.iter()
        .map(|row| row.get("id").as_text().unwrap().to_owned())
        .collect()
}

async fn connect(folder: &Path) -> SqliteConnection {
    let url = format!("sqlite://{}/data/taffrail.db", folder.display());
    SqliteConnection::connect(&url).await.unwrap()
}

pub(crate) type Sums =
    BTreeMap<Vec<String>, (i64, i64, Option<Decimal>, BTreeMap<String, Decimal>)>;

/// The sums that the table of rows implies, counted independently of the store: keys as in the
/// aggregates, then requests, unpriced requests, cost, and the quantities by column or unit.
pub(crate) fn sums_of_rows(rows: &[LogRow]) -> Sums {
    let mut sums = Sums::new();
    for row in rows {
        let text = |column: &str| row.get(column).as_text().map(str::to_owned);
        let started_at = text("started_at").unwrap();
        let outcome = Outcome::from_name(&text("outcome").unwrap()).unwrap();
        for (granularity, start) in [
            ("hour", format!("{}:00:00Z", &started_at[..13])),
            ("day", format!("{}T00:00:00Z", &started_at[..10])),
        ] {
            let key = vec![
                granularity.to_owned(),
                start,
                text("namespace").unwrap_or_default(),
                text("provider").unwrap(),
                text("model_served")
                    .or(text("model_requested"))
                    .unwrap_or_default(),
                text("operation").unwrap(),
                outcome.class().as_str().to_owned(),
                json(row, "attribution"),
            ];
            let sum = sums.entry(key).or_default();
            sum.0 += 1;
            sum.1 += i64::from(text("unpriced_reason").is_some());
            if let Some(cost) = text("cost_usd") {
                *sum.2.get_or_insert_default() += cost.parse::<Decimal>().unwrap();
            }
            for (_, column) in TOKEN_COLUMNS {
                if let Some(tokens) = row.get(column).as_integer() {
                    *sum.3.entry((*column).to_owned()).or_default() += Decimal::from(tokens);
                }
            }
            let units: BTreeMap<String, Decimal> = match json(row, "units").as_str() {
                "" => BTreeMap::new(),
                units => serde_json::from_str(units).unwrap(),
            };
            for (unit, quantity) in units {
                *sum.3.entry(unit).or_default() += quantity;
            }
        }
    }
    sums
}

fn json(row: &LogRow, column: &str) -> String {
    match row.get(column) {
        taffrail::store::Value::Json(json) => json.to_string(),
        _ => String::new(),
    }
}

/// The sums that the store keeps.
pub(crate) async fn sums_kept(folder: &Path) -> Sums {
    let rows = sqlx::query("select * from api_usage_aggregates")
        .fetch_all(&mut connect(folder).await)
        .await
        .unwrap();
    rows.iter()
        .map(|row| {
            let key = (0..8).map(|index| row.get(index)).collect();
            let cost: Option<&str> = row.get("cost_usd");
            let mut quantities = BTreeMap::new();
            for (_, column) in TOKEN_COLUMNS {
                if let Some(tokens) = row.get::<Option<i64>, _>(*column) {
                    quantities.insert((*column).to_owned(), Decimal::from(tokens));
                }
            }
            if let Some(units) = row.get::<Option<&str>, _>("units") {
                let units: BTreeMap<String, Decimal> = serde_json::from_str(units).unwrap();
                quantities.extend(units);
            }
            let sum = (
                row.get("requests"),
                row.get("unpriced_requests"),
                cost.map(|cost| cost.parse().unwrap()),
                quantities,
            );
            (key, sum)
        })
        .collect()
}

/// Asserts that the sums kept are those of the rows; of a store of at most 10,000 rows.
pub(crate) async fn assert_sums_equal_rows(folder: &Path, store: &Store) {
    let rows = store.logs(&all_rows()).await.unwrap();
    assert_eq!(sums_kept(folder).await, sums_of_rows(&rows));
}

#[tokio::test]
async fn a_row_holds_everything_that_the_record_knew() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&config(folder.path())).await.unwrap();
    let mut record = record(at("2026-11-23T12:00:00.000001Z"), 1);
    record.usage.set(Unit::Image, 2);
    record.usage.set(Unit::Megapixel, Decimal::new(2_10, 2));
    let applied = store.apply(std::slice::from_ref(&record)).await.unwrap();
    assert_eq!(
        applied,
        Applied {
            stored: 1,
            ..Applied::default()
        }
    );
    let rows = store.logs(&all_rows()).await.unwrap();
    let line = serde_json::to_string(&rows[0]).unwrap();
    let expected = concat!(
        r#"{"id":"01a20846-fe00-7000-8000-000000000001","day":"2026-11-23","#,
        r#""started_at":"2026-11-23T12:00:00.000001Z","instance":"web-7d9f","#,
        r#""namespace":"shop","pod":"web-7d9f","provider":"openai","operation":"chat","#,
        r#""method":"POST","route":"/v1/chat/completions","model_requested":"gpt-4o-mini","#,
        r#""model_served":"gpt-4o-mini-2024-07-18","upstream_provider":null,"#,
        r#""service_tier":"default","streamed":true,"job_id":null,"polls":null,"#,
        r#""provider_request_id":"chatcmpl-1","outcome":"ok","http_status":200,"#,
        r#""error_code":null,"error_message":null,"finish_reason":"stop","#,
        r#""duration_us":1234567,"first_byte_us":210000,"first_token_us":245000,"#,
        r#""overhead_us":42,"queue_us":null,"run_us":null,"request_bytes":812,"#,
        r#""response_bytes":20480,"input_tokens":1000,"cache_read_tokens":200,"#,
        r#""cache_write_5m_tokens":null,"cache_write_1h_tokens":null,"#,
        r#""cache_write_tokens":null,"output_tokens":59,"reasoning_tokens":null,"#,
        r#""input_audio_tokens":null,"output_audio_tokens":null,"#,
        r#""input_image_tokens":null,"output_image_tokens":null,"#,
        r#""units":{"image":"2","megapixel":"2.1"},"fidelity":"complete","#,
        r#""raw_usage":{"prompt_tokens":1200,"completion_tokens":59},"#,
        r#""cost_usd":"0.0002004","cost_upstream_usd":null,"cost_source":"catalog","#,
        r#""price_version":"2026-11-01","unpriced_reason":null,"recosted_at":null,"#,
        r#""key_fingerprint":"9f86d081884c7d65","attribution":{"team":"search"},"#,
        r#""trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","span_id":"00f067aa0ba902b7"}"#,
    );
    assert_eq!(line, expected);
}

#[tokio::test]
async fn a_replay_an_overlap_and_a_doubled_record_count_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&config(folder.path())).await.unwrap();
    let records: Vec<_> = (0..120).map(|number| record(noon(), number)).collect();
    let applied = |stored, duplicates| Applied {
        stored,
        duplicates,
        rejected: Vec::new(),
    };
    assert_eq!(store.apply(&records[..80]).await.unwrap(), applied(80, 0));
    assert_eq!(store.apply(&records[..80]).await.unwrap(), applied(0, 80));
    assert_eq!(store.apply(&records[60..]).await.unwrap(), applied(40, 20));
    let doubled = [record(noon(), 500), record(noon(), 500)];
    assert_eq!(store.apply(&doubled).await.unwrap(), applied(1, 1));

    assert_eq!(store.logs(&all_rows()).await.unwrap().len(), 121);
    assert_sums_equal_rows(folder.path(), &store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_beside_each_other_keep_the_sums_exact() {
    let folder = tempfile::tempdir().unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4_u64 {
        let store = Store::open(&config(folder.path())).await.unwrap();
        writers.spawn(async move {
            let mut stored = 0;
            for batch in 0..10 {
                // Half of each batch is the other writers' too.
                let shared = (0..10).map(|number| batch * 10 + number);
                let own = (0..10).map(|number| 1_000 * (writer + 1) + batch * 10 + number);
                let records: Vec<_> = shared.chain(own).map(|n| record(noon(), n)).collect();
                stored += store.apply(&records).await.unwrap().stored;
            }
            stored
        });
    }
    let stored: u64 = writers.join_all().await.into_iter().sum();
    assert_eq!(stored, 100 + 4 * 100);
    let store = Store::open_read_only(&config(folder.path())).await.unwrap();
    assert_sums_equal_rows(folder.path(), &store).await;
}

/// Records that differ in everything that a sum is keyed by.
fn any_record() -> impl Strategy<Value = UsageRecord> {
    (
        0_u64..40,
        0_i64..50,
        prop::sample::select(vec!["openai", "fal"]),
        prop::sample::select(Outcome::ALL.to_vec()),
        prop::option::of(0_i64..1_000_000_000),
        prop::option::of(0_u32..5_000),
        prop::option::of(0_i64..900),
        prop::sample::select(vec![None, Some("search"), Some("ads")]),
    )
        .prop_map(
            |(number, hours, provider, outcome, cost, tokens, tenths, team)| {
                // Several records can share an id; the first to be applied is the row.
                let mut record = record(noon() + TimeDelta::hours(hours), number);
                record.id = id(noon(), number);
                record.provider = provider.into();
                record.outcome = outcome;
                record.model_served = (number % 3 > 0).then(|| format!("model-{}", number % 3));
                record.model_requested = None;
                record.cost_usd = cost.map(|cost| Usd::new(Decimal::new(cost, 12)));
                record.usage = taffrail::usage::Usage::new();
                if let Some(tokens) = tokens {
                    record.usage.set(Unit::Output, tokens);
                }
                if let Some(tenths) = tenths {
                    record.usage.set(Unit::VideoSecond, Decimal::new(tenths, 1));
                }
                record.caller.attribution = team
                    .map(|team| ("team".to_owned(), team.to_owned()))
                    .into_iter()
                    .collect();
                record
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sums_equal_the_sums_over_rows_whatever_is_replayed(
        batches in prop::collection::vec(prop::collection::vec(any_record(), 0..70), 1..6),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(&config(folder.path())).await.unwrap();
            let mut stored = 0;
            for batch in &batches {
                let applied = store.apply(batch).await.unwrap();
                assert_eq!(applied.stored + applied.duplicates, batch.len() as u64);
                stored += applied.stored;
            }
            let distinct: BTreeSet<Uuid> = batches.iter().flatten().map(|record| record.id).collect();
            assert_eq!(stored, distinct.len() as u64);
            assert_eq!(store.logs(&all_rows()).await.unwrap().len(), distinct.len());
            assert_sums_equal_rows(folder.path(), &store).await;
        });
    }
}

#[tokio::test]
async fn poison_is_refused_with_a_reason_and_the_others_land() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&config(folder.path())).await.unwrap();
    let poisoned = |number, poison: fn(&mut UsageRecord)| {
        let mut record = record(noon(), number);
        poison(&mut record);
        record
    };
    let batch = [
        record(noon(), 0),
        poisoned(1, |record| record.model_served = Some("a\0b".into())),
        poisoned(2, |record| {
            record.model_served = Some("m".repeat(10_000_000))
        }),
        poisoned(3, |record| record.duration_us = Some(u64::MAX)),
        poisoned(4, |record| record.usage.set(Unit::Output, Decimal::MAX)),
        poisoned(5, |record| {
            record.started_at = at("9999-12-31T23:59:59.999999Z")
        }),
        poisoned(6, |record| record.started_at += TimeDelta::days(366 * 9000)),
        record(noon(), 7),
    ];
    let applied = store.apply(&batch).await.unwrap();
    let expected = Applied {
        stored: 4,
        duplicates: 0,
        rejected: vec![
            (
                2,
                Rejection::TextTooLong {
                    column: "model_served",
                    bytes: 10_000_000,
                },
            ),
            (
                3,
                Rejection::OutOfRange {
                    column: "duration_us",
                },
            ),
            (
                4,
                Rejection::OutOfRange {
                    column: "output_tokens",
                },
            ),
            (
                6,
                Rejection::OutOfRange {
                    column: "started_at",
                },
            ),
        ],
    };
    assert_eq!(applied, expected);
    assert_eq!(store.logs(&all_rows()).await.unwrap().len(), 4);
    assert_sums_equal_rows(folder.path(), &store).await;
}

#[tokio::test]
async fn a_sum_that_no_column_can_hold_refuses_the_batch_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&config(folder.path())).await.unwrap();
    let mut most = record(noon(), 1);
    most.usage.set(Unit::Output, i64::MAX);
    store.apply(&[most]).await.unwrap();
    let error = store
        .apply(&[record(noon(), 2), record(noon(), 3)])
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Rejected(_)), "{error}");
    assert!(!error.is_retryable());
    assert_eq!(store.logs(&all_rows()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn money_of_any_size_is_summed_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&config(folder.path())).await.unwrap();
    let with_cost = |number, cost: &str| {
        let mut record = record(noon(), number);
        record.cost_usd = Usd::from_json_number(cost);
        record
    };
    let batch = [
        with_cost(1, "123456789.000000001"),
        with_cost(2, "0.0000000000000000000000000001"),
        with_cost(3, "-0.5"),
    ];
    store.apply(&batch).await.unwrap();
    let rows = store
        .usage(&UsageQuery {
            since: noon(),
            by: Vec::new(),
        })
        .await
        .unwrap();
    assert_eq!(
        rows[0].totals.cost_usd.unwrap().to_string(),
        "123456788.5000000010000000000000000001"
    );
}

fn sorted(mut rows: Vec<UsageRow>) -> Vec<UsageRow> {
    rows.sort_by(|left, right| left.group.cmp(&right.group));
    rows
}

/// The groups of those records, summed without a store.
fn grouped(
    records: &[UsageRecord],
    group: impl Fn(&UsageRecord) -> Vec<Option<String>>,
) -> Vec<UsageRow> {
    let mut groups: BTreeMap<Vec<Option<String>>, Totals> = BTreeMap::new();
    for record in records {
        let sum = groups.entry(group(record)).or_default();
        *sum = sum.clone().checked_add(&Totals::of(record)).unwrap();
    }
    groups
        .into_iter()
        .map(|(group, totals)| UsageRow { group, totals })
        .collect()
}

#[tokio::test]
async fn usage_counts_exactly_the_window_by_any_dimension() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&config(folder.path())).await.unwrap();
    // Three days, a record every 13 minutes.
    let records: Vec<UsageRecord> = (0..330)
        .map(|number| {
            let started_at = at("2026-11-21T00:00:00Z") + TimeDelta::minutes(13 * number);
            let number = u64::try_from(number).unwrap();
            let mut record = record(started_at, number);
            record.provider = ["openai", "anthropic"][usize::from(number % 5 == 0)].into();
            record.model_served = (number % 7 > 0).then(|| format!("model-{}", number % 7));
            record.outcome = Outcome::ALL[usize::try_from(number % 4).unwrap()];
            record.instance.instance = format!("web-{}", number % 2).into();
            record.cost_usd = record.cost_usd.filter(|_| number % 3 > 0);
            if number % 6 == 0 {
                record.caller.attribution.clear();
                record.caller.key_fingerprint = None;
            }
            record
        })
        .collect();
    store.apply(&records).await.unwrap();

    for since in [
        "2026-11-20T10:20:30Z",
        "2026-11-21T00:00:00Z",
        "2026-11-22T05:19:00Z",
        "2026-11-22T05:19:00.000001Z",
        "2026-11-23T00:00:00Z",
        "2026-11-23T17:40:00Z",
        "2026-11-25T00:00:00Z",
    ] {
        let since = at(since);
        let window: Vec<UsageRecord> = records
            .iter()
            .filter(|record| record.started_at >= since)
            .cloned()
            .collect();
        let ask = |by: &[Dimension]| UsageQuery {
            since,
            by: by.to_vec(),
        };
        let team = Dimension::Attribution("team".into());

        assert_eq!(
            store.usage(&ask(&[])).await.unwrap(),
            grouped(&window, |_| Vec::new())
        );
        assert_eq!(
            sorted(
                store
                    .usage(&ask(&[Dimension::Provider, Dimension::Model]))
                    .await
                    .unwrap()
            ),
            grouped(&window, |record| vec![
                Some(record.provider.to_string()),
                record.model().map(str::to_owned),
            ])
        );
        assert_eq!(
            sorted(
                store
                    .usage(&ask(&[Dimension::Day, Dimension::Namespace, team.clone()]))
                    .await
                    .unwrap()
            ),
            grouped(&window, |record| vec![
                Some(record.started_at.format("%Y-%m-%d").to_string()),
                record.instance.namespace.as_deref().map(str::to_owned),
                record.caller.attribution.get("team").cloned(),
            ])
        );
        assert_eq!(
            sorted(
                store
                    .usage(&ask(&[Dimension::Hour, Dimension::Operation]))
                    .await
                    .unwrap()
            ),
            grouped(&window, |record| vec![
                Some(record.started_at.format("%Y-%m-%dT%H:00Z").to_string()),
                Some("chat".to_owned()),
            ])
        );
        let detailed = [
            Dimension::Outcome,
            Dimension::Key,
            Dimension::Instance,
            Dimension::ServiceTier,
            Dimension::Hour,
            Dimension::Day,
            team,
            Dimension::Model,
        ];
        assert_eq!(
            sorted(store.usage(&ask(&detailed)).await.unwrap()),
            grouped(&window, |record| vec![
                Some(record.outcome.to_string()),
                record.caller.key_fingerprint.clone(),
                Some(record.instance.instance.to_string()),
                record.service_tier.clone(),
                Some(record.started_at.format("%Y-%m-%dT%H:00Z").to_string()),
                Some(record.started_at.format("%Y-%m-%d").to_string()),
                record.caller.attribution.get("team").cloned(),
                record.model().map(str::to_owned),
            ])
        );
    }
    assert_eq!(store.attribution_labels().await.unwrap(), ["team"]);
}

#[tokio::test]
async fn logs_are_filtered_and_newest_first() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&config(folder.path())).await.unwrap();
    let mut early = record(noon(), 1);
    early.outcome = Outcome::RateLimited;
    let late = record(noon() + TimeDelta::seconds(1), 2);
    let mut other = record(noon() + TimeDelta::seconds(2), 3);
    other.provider = "fal".into();
    let twin = record(noon(), 4);
    store
        .apply(&[other.clone(), early.clone(), twin.clone(), late.clone()])
        .await
        .unwrap();
    let names = |records: &[&UsageRecord]| -> Vec<String> {
        records.iter().map(|record| record.id.to_string()).collect()
    };

    let rows = store.logs(&all_rows()).await.unwrap();
    assert_eq!(ids(&rows), names(&[&other, &late, &twin, &early]));
    let of_openai = LogQuery {
        provider: Some("openai".into()),
        ..all_rows()
    };
    let rows = store.logs(&of_openai).await.unwrap();
    assert_eq!(ids(&rows), names(&[&late, &twin, &early]));
    let limited = LogQuery {
        outcome: Some(Outcome::RateLimited),
        ..all_rows()
    };
    assert_eq!(ids(&store.logs(&limited).await.unwrap()), names(&[&early]));
    let after_late = LogQuery {
        before: Some(late.id),
        limit: 1,
        ..all_rows()
    };
    assert_eq!(
        ids(&store.logs(&after_late).await.unwrap()),
        names(&[&twin])
    );
    let unknown = LogQuery {
        before: Some(Uuid::nil()),
        ..all_rows()
    };
    let error = store.logs(&unknown).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "no row has the id 00000000-0000-0000-0000-000000000000"
    );
}

#[tokio::test]
async fn paging_visits_each_row_once_while_new_rows_arrive() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&config(folder.path())).await.unwrap();
    // Four rows share each moment, so that a page can end between equals.
    let first: Vec<_> = (0..97)
        .map(|number| {
            let moment = i64::try_from(number / 4).unwrap();
            record(noon() + TimeDelta::seconds(moment), number)
        })
        .collect();
    store.apply(&first).await.unwrap();
    let mut seen = Vec::new();
    let mut before = None;
    for page in 0..50 {
        let rows = store
            .logs(&LogQuery {
                limit: 10,
                before,
                ..all_rows()
            })
            .await
            .unwrap();
        let Some(last) = ids(&rows).pop() else { break };
        before = Some(last.parse().unwrap());
        seen.extend(ids(&rows));
        let new = record(noon() + TimeDelta::hours(1), 1_000 + page);
        store.apply(&[new]).await.unwrap();
    }
    let mut expected: Vec<_> = first
        .iter()
        .map(|record| (record.started_at, record.id.to_string()))
        .collect();
    expected.sort_by(|left, right| right.cmp(left));
    let expected: Vec<_> = expected.into_iter().map(|(_, id)| id).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_store_is_made_from_nothing_by_many_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let mut opening = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let config = config.clone();
        opening.spawn(async move { Store::open(&config).await.map(|_| ()) });
    }
    while let Some(opened) = opening.join_next().await {
        opened.unwrap().unwrap();
    }
    let tables: Vec<String> = sqlx::query_scalar(
        "select name from sqlite_schema where type = 'table' and name not like '%sqlx%' order by 1",
    )
    .fetch_all(&mut connect(folder.path()).await)
    .await
    .unwrap();
    assert_eq!(
        tables,
        [
            "api_cost_changes",
            "api_jobs",
            "api_provider_balances",
            "api_receipt_tries",
            "api_reconciliations",
            "api_usage_aggregates",
            "api_usage_logs",
            "price_refreshes",
            "price_versions",
            "retention",
        ]
    );
}

#[tokio::test]
async fn the_schema_must_be_this_versions() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let error = Store::open_read_only(&config).await.unwrap_err();
    assert!(matches!(error, StoreError::Missing(_)), "{error}");
    assert!(
        error.to_string().contains("start `taffrail run`"),
        "{error}"
    );

    let unmigrated = Config {
        migrate: false,
        ..config.clone()
    };
    let error = Store::open(&unmigrated).await.unwrap_err().to_string();
    assert!(error.contains("run `taffrail migrate`"), "{error}");
    let error = Store::open_read_only(&config)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("run `taffrail migrate`"), "{error}");

    Store::migrate(&config).await.unwrap();
    Store::open(&unmigrated).await.unwrap();
    Store::open_read_only(&config)
        .await
        .unwrap()
        .ping()
        .await
        .unwrap();

    sqlx::query(
        "insert into _sqlx_migrations (version, description, success, checksum, execution_time) \
         values (9999, 'of the future', true, x'00', 0)",
    )
    .execute(&mut connect(folder.path()).await)
    .await
    .unwrap();
    for opened in [
        Store::open(&config).await,
        Store::open_read_only(&config).await,
    ] {
        let error = opened.unwrap_err().to_string();
        assert!(error.contains("a newer version of taffrail"), "{error}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_is_named_as_unusable() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    std::fs::create_dir(folder.path().join("data")).unwrap();
    std::fs::write(
        folder.path().join("data/taffrail.db"),
        "not a database ".repeat(99),
    )
    .unwrap();
    for opened in [
        Store::open(&config).await,
        Store::open_read_only(&config).await,
    ] {
        let error = opened.unwrap_err();
        assert!(matches!(error, StoreError::Unusable(_)), "{error}");
        assert!(error.to_string().contains("not a database"), "{error}");
    }
}

#[tokio::test]
async fn a_reader_does_not_write() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let writer = Store::open(&config).await.unwrap();
    let reader = Store::open_read_only(&config).await.unwrap();
    assert!(reader.apply(&[record(noon(), 1)]).await.is_err());
    writer.apply(&[record(noon(), 1)]).await.unwrap();
    assert_eq!(reader.logs(&all_rows()).await.unwrap().len(), 1);
    writer.close().await;
    reader.close().await;
    // No server is running and its side files are gone.
    let reader = Store::open_read_only(&config).await.unwrap();
    assert_eq!(reader.logs(&all_rows()).await.unwrap().len(), 1);
}

/// Started again as a child process, this test is the reader.
#[tokio::test]
async fn another_process_reads_what_was_committed_while_this_one_writes() {
    const FOLDER: &str = "TAFFRAIL_TEST_STORE_FOLDER";
    const NAME: &str = "store::another_process_reads_what_was_committed_while_this_one_writes";
    if let Some(folder) = std::env::var_os(FOLDER) {
        let reader = Store::open_read_only(&config(Path::new(&folder)))
            .await
            .unwrap();
        println!("rows={}", reader.logs(&all_rows()).await.unwrap().len());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&config(folder.path())).await.unwrap();
    for number in 1..=3 {
        store.apply(&[record(noon(), number)]).await.unwrap();
        // The reader runs while a transaction of the writer is open.
        let mut open = connect(folder.path()).await;
        let transaction = open.begin_with("begin immediate").await.unwrap();
        let child = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(FOLDER, folder.path())
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        drop(transaction);
        let output = String::from_utf8_lossy(&child.stdout);
        assert!(output.contains(&format!("rows={number}")), "{output}");
    }
}
