//! `taffrail backfill`, by the real binary on both stores: sums that were spoilt are made anew from
//! the rows, and nothing else changes.

use sqlx::{Connection, SqliteConnection};
use taffrail::store::{Config, Dimension, Store, UsageQuery, UsageRow};

use crate::postgres::{count, fresh, records};
use crate::store::at;
use crate::support::binary::Home;

const SPOIL: [&str; 3] = [
    "update api_usage_aggregates set requests = requests + 1, cost_usd = null",
    "delete from api_usage_aggregates where granularity = 'hour'",
    "update api_usage_aggregates set model = model || ' of no row'",
];

/// A home whose store is at `url` and holds the rows of two days.
async fn home(url: &str) -> Home {
    let mut home = Home::without_provider();
    home.set("STORE__URL", url);
    let store = open(url).await;
    store.apply(&records()).await.unwrap();
    store.close().await;
    home
}

async fn open(url: &str) -> Store {
    let config = Config {
        url: url.to_owned(),
        ..Config::default()
    };
    Store::open(&config).await.unwrap()
}

/// What the sums tell, by everything that they know.
async fn sums(url: &str) -> Vec<UsageRow> {
    let store = open(url).await;
    let mut all = Vec::new();
    for time in [Dimension::Hour, Dimension::Day] {
        let query = UsageQuery {
            since: at("2026-11-23T00:00:00Z"),
            by: vec![
                time,
                Dimension::Namespace,
                Dimension::Provider,
                Dimension::Model,
                Dimension::Operation,
                Dimension::Attribution("team".into()),
            ],
        };
        let mut rows = store.usage(&query).await.unwrap();
        rows.sort_by(|a, b| a.group.cmp(&b.group));
        all.extend(rows);
    }
    store.close().await;
    all
}

async fn sums_are_made_anew(url: &str, spoil: impl AsyncFn(&'static str)) {
    let home = home(url).await;
    let before = sums(url).await;
    for statement in SPOIL {
        spoil(statement).await;
        assert_ne!(sums(url).await, before, "{statement}");
        // Twice: it changes nothing that is right.
        for _ in 0..2 {
            let ran = home
                .run(&["backfill", "--from", "2026-11-23", "--to", "2026-11-25"])
                .await;
            assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
            assert!(
                ran.stdout
                    .contains(": the sums from 2026-11-23 to before 2026-11-25 are made anew, in "),
                "{}",
                ran.stdout
            );
            assert_eq!(sums(url).await, before, "{statement}");
        }
    }
    // A day alone: the other one stays as it is.
    spoil(SPOIL[0]).await;
    let ran = home
        .run(&["backfill", "--from", "2026-11-24", "--to", "2026-11-25"])
        .await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let after = sums(url).await;
    for (row, then) in after.iter().zip(&before) {
        let is_made = then.group[0].as_ref().unwrap().starts_with("2026-11-24");
        assert_eq!(row == then, is_made, "{row:?}");
    }
}

#[tokio::test]
async fn the_embedded_store_makes_its_sums_anew() {
    let folder = tempfile::TempDir::new().unwrap();
    let url = format!("sqlite://{}/taffrail.db", folder.path().display());
    sums_are_made_anew(&url, async |statement| {
        let mut connection = SqliteConnection::connect(&url).await.unwrap();
        sqlx::query(statement)
            .execute(&mut connection)
            .await
            .unwrap();
    })
    .await;
}

#[tokio::test]
async fn postgres_makes_its_sums_anew() {
    let Some(database) = fresh().await else {
        return;
    };
    sums_are_made_anew(&database.url(), async |statement| {
        database
            .execute(&format!("set search_path = taffrail; {statement}"))
            .await;
    })
    .await;
}

#[tokio::test]
async fn days_whose_rows_are_gone_keep_their_sums() {
    let Some(database) = fresh().await else {
        return;
    };
    let url = database.url();
    let home = home(&url).await;
    count(
        &database,
        "select count(taffrail.drop_oldest_partition('2026-11-24'))",
    )
    .await;
    let before = sums(&url).await;
    let ran = home.run(&["backfill", "--from", "2026-11-23"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
    assert!(
        ran.stderr
            .contains("cannot make the sums of 2026-11-23 anew: ")
            && ran
                .stderr
                .contains("the rows before 2026-11-24 have been dropped"),
        "{}",
        ran.stderr
    );
    assert_eq!(sums(&url).await, before);
}

#[tokio::test]
async fn there_must_be_days_and_a_store() {
    let home = Home::without_provider();
    let ran = home
        .run(&["backfill", "--from", "2026-11-24", "--to", "2026-11-24"])
        .await;
    assert_eq!(ran.code, Some(2));
    assert!(
        ran.stderr.contains("--to names the day after the last"),
        "{}",
        ran.stderr
    );
    let ran = home.run(&["backfill", "--from", "2026-11-24"]).await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("no database at "), "{}", ran.stderr);
    assert!(!home.database().exists());
}
