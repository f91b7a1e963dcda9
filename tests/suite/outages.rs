//! What a Postgres that fails does to rows and traffic: nothing, whatever it does.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::sync::Arc;
use std::time::Duration;

use taffrail::clock;
use taffrail::fault::Outcome;
use taffrail::record::UsageRecord;
use taffrail::store::{Config, LogQuery, Store, StoreError};
use tokio::task::JoinSet;

use crate::postgres::count;
use crate::server::serve;
use crate::store::{at, record};
use crate::support::binary::{Chance, Home, eventually, number};
use crate::support::chat::Chat;
use crate::support::fault::{FaultProxy, Sender};
use crate::support::postgres::{Cluster, Database, PgBouncer, Version};

/// How many groups have sums that differ from the sums of the rows.
pub(crate) const DIFFERENCES: &str = "
    select count(*)
    from (
        select granularity, model, attribution, sum(requests) as requests, sum(cost_usd) as cost,
            sum(input_tokens) as tokens
        from taffrail.api_usage_aggregates
        group by 1, 2, 3
    ) as kept
    full join (
        select granularity, coalesce(model_served, model_requested, '') collate \"C\" as model,
            attribution, count(*) as requests, sum(cost_usd) as cost, sum(input_tokens) as tokens
        from taffrail.api_usage_logs, unnest(array['hour', 'day'] collate \"C\") as granularity
        group by 1, 2, 3
    ) as implied using (granularity, model, attribution)
    where (kept.requests, kept.cost, kept.tokens)
        is distinct from (implied.requests, implied.cost, implied.tokens)";

const ROWS: &str = "select count(*) from taffrail.api_usage_logs";

fn config(url: String) -> Config {
    Config {
        url,
        ..Config::default()
    }
}

/// A batch of records of their own, over a few models.
fn batch(first: u64, count: u64) -> Vec<UsageRecord> {
    (first..first + count)
        .map(|number| {
            let mut record = record(at("2026-11-23T12:00:00Z"), number);
            record.model_served = Some(format!("model-{}", number % 40));
            record
        })
        .collect()
}

#[tokio::test]
async fn a_database_that_is_away_at_the_start_gets_every_row_when_it_comes() {
    let Some(mut cluster) = Cluster::start(Version::Default, &[]).await else {
        return;
    };
    let database = cluster.database().await;
    cluster.stop_immediate().await;
    let chat = Chat::start().await;
    let mut home = Home::new(chat.address);
    home.set("STORE__URL", database.url());
    home.set("STORE__DRAIN__RETRY_MAX", "1s");
    let server = home.start().await;
    serve(&server, 0..20).await;
    eventually("the store is away", async || {
        let scrape = server.scrape().await;
        scrape.0.contains("\ntaffrail_store_up 0") && scrape.law_holds()
    })
    .await;
    assert_eq!(server.scrape().await.stage("stored"), 0);
    cluster.start_again().await;
    assert_eq!(server.quiet().await.stage("stored"), 20);
    // A crash of the database under way.
    serve(&server, 20..30).await;
    cluster.restart_immediate().await;
    serve(&server, 30..40).await;
    let scrape = server.quiet().await;
    assert!(scrape.law_holds(), "{scrape:?}");
    server.stop().await;
    let store = Store::open_read_only(&config(database.url()))
        .await
        .unwrap();
    let query = LogQuery {
        limit: 1_000,
        before: None,
        provider: None,
        outcome: Some(Outcome::Ok),
    };
    let mut numbers: Vec<u64> = store
        .logs(&query)
        .await
        .unwrap()
        .iter()
        .map(number)
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..40).collect::<Vec<_>>());
    assert_eq!(count(&database, DIFFERENCES).await, 0);
    let ran = home.run(&["usage", "--format", "csv"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
}

#[tokio::test]
async fn connections_that_break_at_any_byte_lose_and_double_nothing() {
    let cuts = if std::env::var_os("TAFFRAIL_TORTURE").is_some() {
        500
    } else {
        60
    };
    let Some(cluster) = Cluster::shared(Version::Default).await else {
        return;
    };
    let database = cluster.database().await;
    let proxy = FaultProxy::start(cluster.address()).await;
    Store::migrate(&config(database.url())).await.unwrap();
    let through = config(database.through(proxy.address()).url());
    let mut chance = Chance::seeded();
    let mut broken = 0;
    for round in 0..cuts {
        let sender = if round % 2 == 0 {
            Sender::Client
        } else {
            Sender::Server
        };
        // The connection's start takes some hundred bytes each way, a batch some thousand.
        let bytes = match sender {
            Sender::Client => chance.below(9_000),
            Sender::Server => chance.below(900),
        };
        proxy.cut_after(sender, bytes);
        let store = Store::lazy(&through).unwrap();
        let batch = batch(round * 10, 10);
        loop {
            match store.apply(&batch).await {
                Ok(applied) => {
                    assert_eq!(applied.stored + applied.duplicates, 10);
                    break;
                }
                Err(StoreError::Unavailable(_)) => broken += 1,
                Err(error) => panic!("{error}"),
            }
        }
    }
    eprintln!("{broken} calls broke in {cuts} cuts");
    assert!(broken > cuts / 4, "{broken} of {cuts}");
    assert_eq!(count(&database, ROWS).await, 10 * cuts.cast_signed());
    assert_eq!(count(&database, DIFFERENCES).await, 0);
}

/// Applies batches from many stores at once; returns transactions a second.
async fn write_at_once(database: &Database, stores: u64, batches: u64) -> f64 {
    let url = Arc::new(database.url());
    let started = clock::instant();
    let mut writers = JoinSet::new();
    for writer in 0..stores {
        let url = url.clone();
        writers.spawn(async move {
            let store = Store::lazy(&config(url.to_string())).unwrap();
            for number in 0..batches {
                let mut batch = batch((writer * batches + number) * 20, 20);
                for record in &mut batch {
                    record.instance.instance = format!("pod-{writer}").into();
                }
                // What locks out another waits; nothing may be refused.
                assert_eq!(store.apply(&batch).await.unwrap().stored, 20);
            }
            store.close().await;
        });
    }
    writers.join_all().await;
    let transactions = u32::try_from(stores * batches).unwrap();
    f64::from(transactions) / started.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_the_same_sums_never_wait_for_each_other_in_a_ring() {
    for version in [Version::Default, Version::V18] {
        let Some(cluster) = Cluster::shared(version).await else {
            return;
        };
        let database = cluster.database().await;
        Store::migrate(&config(database.url())).await.unwrap();
        let rate = write_at_once(&database, 32, 20).await;
        eprintln!("{version:?}: 32 writers, {rate:.0} transactions of 20 rows a second");
        assert_eq!(count(&database, ROWS).await, 32 * 20 * 20);
        assert_eq!(count(&database, DIFFERENCES).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_in_transaction_mode_serves_a_fleet() {
    let Some(cluster) = Cluster::shared(Version::Default).await else {
        return;
    };
    let database = cluster.database().await;
    let settings = [("default_pool_size", "5"), ("max_client_conn", "2000")];
    let Some(bouncer) = PgBouncer::start(cluster, &settings).await else {
        return;
    };
    let through = database.through(bouncer.address());
    Store::migrate(&config(through.url())).await.unwrap();
    let fleet = if std::env::var_os("TAFFRAIL_TORTURE").is_some() {
        1_000
    } else {
        150
    };
    write_at_once(&through, fleet, 2).await;
    let pool = bouncer.pool(&through).await;
    assert!(pool.servers_active + pool.servers_idle <= 5, "{pool:?}");
    assert_eq!(count(&database, ROWS).await, fleet.cast_signed() * 2 * 20);
    assert_eq!(count(&database, DIFFERENCES).await, 0);
}

#[tokio::test]
async fn a_lock_a_standby_and_a_backend_that_ends_are_waited_out() {
    let Some(cluster) = Cluster::start(Version::Default, &[("wal_level", "replica")]).await else {
        return;
    };
    let database = cluster.database().await;
    let store = Store::open(&config(database.url())).await.unwrap();
    store.apply(&batch(0, 10)).await.unwrap();
    let mut holder = database.client().await;
    sqlx::raw_sql("begin; lock table taffrail.api_usage_logs in access exclusive mode")
        .execute(&mut holder)
        .await
        .unwrap();
    let asked = clock::instant();
    let error = store.apply(&batch(10, 10)).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(
        asked.elapsed() < Duration::from_secs(10),
        "{:?}",
        asked.elapsed()
    );
    sqlx::raw_sql("rollback")
        .execute(&mut holder)
        .await
        .unwrap();
    store.apply(&batch(10, 10)).await.unwrap();

    database
        .execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'taffrail'")
        .await;
    // The backend ends a moment later than it is asked to, so the first call may come through.
    eventually(
        "the batch is taken on another connection",
        async || match store.apply(&batch(20, 10)).await {
            Ok(_) => true,
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                false
            }
        },
    )
    .await;
    let standby = cluster.standby().await;
    let there = database.through(standby.address());
    let store = Store::open(&config(there.url())).await.unwrap();
    let error = store.apply(&batch(30, 10)).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert_eq!(count(&database, ROWS).await, 30);
    assert_eq!(count(&database, DIFFERENCES).await, 0);
}
