//! What a Postgres that fails does to rows and traffic: nothing, whatever it does.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use taffrail::clock;
use taffrail::fault::Outcome;
use taffrail::record::UsageRecord;
use taffrail::store::{Config, LogQuery, Store, StoreError};
use tokio::task::JoinSet;

use crate::postgres::{count, sums_kept};
use crate::server::serve;
use crate::store::{at, record, sums_of_rows};
use crate::support::binary::{Chance, Home, Scrape, Server, eventually, get, is_long, number};
use crate::support::chat::{Ask, Chat};
use crate::support::fault::{FaultProxy, Sender};
use crate::support::load::{Driver, Driving, assert_rows_tell_the_truth};
use crate::support::memory::Memory;
use crate::support::postgres::{Cluster, Database, PgBouncer, Setup, Version};

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

/// When rows must come after the database is back: the longest wait before a retry, and some.
const RETURN_MAX: Duration = Duration::from_secs(12);

/// How much memory an outage may take.
const OUTAGE_GROWTH_MAX: u64 = 16 << 20;

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
    let server = home.start().await;
    assert!(server.startup < Duration::from_secs(1));
    serve(&server, 0..20).await;
    eventually("the store is away", async || {
        let scrape = server.scrape().await;
        is_away(&scrape) && scrape.law_holds()
    })
    .await;
    assert_eq!(server.scrape().await.stage("stored"), 0);
    cluster.start_again().await;
    let returned = clock::instant();
    assert_eq!(server.quiet().await.stage("stored"), 20);
    assert!(returned.elapsed() < RETURN_MAX);
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
    let cuts = if is_long() { 500 } else { 60 };
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
        let batches = if is_long() { 200 } else { 20 };
        let rate = write_at_once(&database, 32, batches).await;
        eprintln!("{version:?}: 32 writers, {rate:.0} transactions of 20 rows a second");
        // Of the rows of a fleet, so that it is no slower than one that catches up.
        assert!(!is_long() || rate * 20.0 >= 5_000.0, "{rate}");
        assert_eq!(
            count(&database, ROWS).await,
            32 * 20 * batches.cast_signed()
        );
        assert_eq!(count(&database, DIFFERENCES).await, 0);
    }
}

#[tokio::test]
async fn calls_that_name_the_same_buckets_in_any_order_do_not_deadlock() {
    const CLIENTS: u64 = 32;
    const BUCKETS: usize = 20;
    for version in [Version::Default, Version::V18] {
        let Some(cluster) = Cluster::shared(version).await else {
            return;
        };
        let database = cluster.database().await;
        Store::migrate(&config(database.url())).await.unwrap();
        // 40 buckets of one shard, so that every two calls meet.
        database
            .execute(
                "create table bucket (like taffrail.api_usage_aggregates);
                insert into bucket (
                    granularity, bucket_start, namespace, provider, model, operation, outcome_class,
                    attribution, shard, requests, unpriced_requests, cost_usd, input_tokens
                )
                select 'hour', '2026-11-23T12:00:00Z', 'shop', 'openai', 'model-' || number, 'chat', 'ok',
                    '{\"team\": \"a\"}', 0, 1, 0, 0.000123, 1000
                from generate_series(1, 40) as number",
            )
            .await;
        let call = format!(
            "select taffrail.upsert_usage_aggregate(variadic array(
                select row(bucket.*)::taffrail.api_usage_aggregates from bucket order by random() limit {BUCKETS}
            ))"
        )
        .replace('\n', " ");
        let transactions = if is_long() { 1_000 } else { 20 };
        let Some(rate) = cluster
            .pgbench(&database, &call, CLIENTS, transactions)
            .await
        else {
            return;
        };
        eprintln!("{version:?}: 32 clients, {rate:.0} transactions of 20 buckets a second");
        assert!(!is_long() || rate >= 1_000.0, "{rate}");
        let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
        assert_eq!(count(&database, deadlocks).await, 0);
        let sums = database
            .query(
                "select count(*), sum(requests), sum(cost_usd) = sum(requests) * 0.000123,
                    bool_and(input_tokens = requests * 1000)
                from taffrail.api_usage_aggregates",
            )
            .await;
        let added = CLIENTS * transactions * BUCKETS as u64;
        assert_eq!(sums, [["40", &added.to_string(), "t", "t"]]);
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
    let fleet = if is_long() { 1_000 } else { 150 };
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

#[tokio::test]
async fn a_database_that_is_away_for_a_whole_run_gets_its_rows_in_the_next() {
    let Some(mut cluster) = Cluster::start(Version::Default, &[]).await else {
        return;
    };
    let database = cluster.database().await;
    cluster.stop_fast().await;
    let chat = Chat::start().await;
    let mut home = Home::new(chat.address);
    home.set("STORE__URL", database.url());
    for run in 0..2 {
        let server = home.start().await;
        assert!(server.startup < Duration::from_secs(1));
        serve(&server, run * 20..(run + 1) * 20).await;
        eventually("the store is away", async || {
            is_away(&server.scrape().await)
        })
        .await;
        assert_eq!(get(server.admin, "/-/ready").await.0, 200);
        let scrape = server.scrape().await;
        assert_eq!((scrape.stage("stored"), scrape.stage("dropped")), (0, 0));
        server.stop().await;
    }
    let server = home.start().await;
    cluster.start_again().await;
    let returned = clock::instant();
    assert_eq!(server.quiet().await.stage("stored"), 40);
    assert!(returned.elapsed() < RETURN_MAX);
    server.stop().await;
    let rows = home.rows().await;
    let mut numbers: Vec<u64> = rows.iter().map(number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..40).collect::<Vec<_>>());
    assert_eq!(sums_kept(&database).await, sums_of_rows(&rows));
}

fn is_away(scrape: &Scrape) -> bool {
    scrape.0.contains("\ntaffrail_store_up 0")
}

/// The real binary at 200 requests a second, half of them streams, with a database as its store.
struct Loaded {
    chat: Chat,
    home: Home,
    server: Server,
    driving: Driving,
}

impl Loaded {
    /// Starts it; some hundred rows are stored when this returns.
    async fn start(database: &Database) -> Loaded {
        let ask = |number: u64, _: &mut Chance| Ask {
            events: if number.is_multiple_of(2) { 3 } else { 0 },
            asks_usage: number.is_multiple_of(4),
            ..Ask::plain(number)
        };
        let chat = Chat::start().await;
        let mut home = Home::new(chat.address);
        home.set("STORE__URL", database.url());
        let server = home.start().await;
        let driving = Driver::start(Duration::from_millis(5), Chance::seeded(), ask);
        driving.proxy_is(Some(server.proxy));
        server.stored(500).await;
        Loaded {
            chat,
            home,
            server,
            driving,
        }
    }

    fn say(&self, when: &str) {
        eprintln!("{when}: {:?}", self.driving.latency());
    }

    /// Waits, as the load goes on, until a store that is back has what waited for it.
    async fn catch_up(&self) {
        let back = clock::instant();
        let stored = async || self.server.scrape().await.stage("stored");
        let before = stored().await;
        let mut first = before;
        eventually("rows come after the outage", async || {
            first = stored().await;
            first > before
        })
        .await;
        let shipping = clock::instant();
        assert!(shipping - back < RETURN_MAX, "{:?}", shipping - back);
        let mut last = first;
        eventually("the backlog is stored", async || {
            let scrape = self.server.scrape().await;
            last = scrape.stage("stored");
            // What comes in a second waits for its batch at any time.
            scrape.sum("taffrail_journal_pending_records", &[]) < 200
        })
        .await;
        let rows = u32::try_from(last - first).unwrap();
        let rate = f64::from(rows) / shipping.elapsed().as_secs_f64();
        eprintln!(
            "first rows {:?} after the return, then {rows} rows at {rate:.0} a second",
            shipping - back
        );
    }

    /// Ends it, and holds the rows to the truth: every request was answered and has its one row.
    async fn finish(self, database: &Database) {
        let truth = self.driving.stop().await;
        let scrape = self.server.quiet().await;
        self.server.stop().await;
        let rows = self.home.rows().await;
        assert_rows_tell_the_truth(&rows, &truth, &self.chat.received());
        let sent = usize::try_from(truth.next).unwrap();
        eprintln!("{sent} requests, {} rows", rows.len());
        assert_eq!(truth.broken, 0, "requests failed");
        assert_eq!((truth.completed.len(), rows.len()), (sent, sent));
        assert_eq!(scrape.stage("completed"), truth.next);
        assert_eq!(scrape.stage("dropped"), 0);
        assert_eq!(scrape.stage("dead_lettered"), 0);
        assert_eq!(sums_kept(database).await, sums_of_rows(&rows));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_outage_fails_no_request_and_fills_no_memory_and_its_rows_come() {
    let outage = Duration::from_secs(if is_long() { 600 } else { 15 });
    let Some(mut cluster) = Cluster::start(Version::Default, &[]).await else {
        return;
    };
    let database = cluster.database().await;
    let loaded = Loaded::start(&database).await;
    loaded.say("at the start");
    tokio::time::sleep(outage / 20).await;
    loaded.say("before the outage");
    let memory = Memory::of(&loaded.server);
    let resident = memory.resident();
    let away = async {
        cluster.stop_fast().await;
        tokio::time::sleep(outage).await;
        loaded.say("during the outage");
        let scrape = loaded.server.scrape().await;
        assert!(is_away(&scrape) && scrape.law_holds());
        assert_eq!(get(loaded.server.admin, "/-/ready").await.0, 200);
        let pending = scrape.sum("taffrail_journal_pending_records", &[]);
        let bytes = scrape.sum("taffrail_journal_bytes", &[]);
        eprintln!("{pending} records wait, {} bytes each", bytes / pending);
        let growth = memory.resident().saturating_sub(resident);
        eprintln!("memory at the end of the outage: {growth} bytes more");
        cluster.start_again().await;
        loaded.catch_up().await;
        loaded.say("while its rows were stored");
    };
    let growth = memory.growth(away).await;
    eprintln!("memory at most: {growth} bytes more");
    loaded.finish(&database).await;
    assert!(growth <= OUTAGE_GROWTH_MAX, "{growth} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_locked_holds_up_rows_and_no_request() {
    /// Those of the sidecar.
    const CONNECTIONS: &str = "select count(*) from pg_stat_activity
        where application_name = 'taffrail' and datname = current_database()";
    let hold = Duration::from_secs(if is_long() { 60 } else { 8 });
    let Some(cluster) = Cluster::shared(Version::Default).await else {
        return;
    };
    let database = cluster.database().await;
    let loaded = Loaded::start(&database).await;
    let mut holder = database.client().await;
    sqlx::raw_sql("begin; lock table taffrail.api_usage_logs in access exclusive mode")
        .execute(&mut holder)
        .await
        .unwrap();
    loaded.say("before");
    let mut most = 0;
    let watch = async {
        loop {
            most = count(&database, CONNECTIONS).await.max(most);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(hold, watch).await.unwrap_err();
    loaded.say("while it was locked");
    let scrape = loaded.server.scrape().await;
    assert!(is_away(&scrape) && scrape.law_holds());
    sqlx::raw_sql("rollback")
        .execute(&mut holder)
        .await
        .unwrap();
    loaded.catch_up().await;
    loaded.finish(&database).await;
    eprintln!("{most} connections at most");
    assert!((1..=2).contains(&most), "{most}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_the_database_holds_up_rows_and_no_request() {
    let full = Duration::from_secs(if is_long() { 60 } else { 3 });
    let setup = Setup {
        small_disk: Some(ByteSize::mib(64)),
        ..Setup::default()
    };
    let Some(cluster) = Cluster::start_as(setup).await else {
        return;
    };
    let database = cluster.database_on_small_disk().await;
    let loaded = Loaded::start(&database).await;
    loaded.say("before");
    let ballast = cluster.small_disk().join("ballast");
    let error = std::fs::write(&ballast, vec![0; 64 << 20]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    let away = async || is_away(&loaded.server.scrape().await);
    eventually("the disk is full", away).await;
    tokio::time::sleep(full).await;
    loaded.say("while the disk was full");
    let scrape = loaded.server.scrape().await;
    assert!(is_away(&scrape) && scrape.law_holds());
    let log = loaded.server.process.log();
    assert!(log.contains("No space left on device"), "{log}");
    std::fs::remove_file(ballast).unwrap();
    loaded.catch_up().await;
    loaded.finish(&database).await;
}
