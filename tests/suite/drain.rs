//! The drain between a real journal and a real store: nothing lost, nothing twice, nothing stuck.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::{Connection, SqliteConnection};
use taffrail::clock;
use taffrail::journal::disk::{Disk, LocalDisk};
use taffrail::journal::{self, DEAD_LETTER_FILE, Journal, dead_letters};
use taffrail::record::UsageRecord;
use taffrail::store::drain::{Config as DrainConfig, Drain, Event, Shipped};
use taffrail::store::{Config, LogQuery, Store, StoreError};
use taffrail::usage::Unit;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::store::{assert_sums_equal_rows, at, record};
use crate::support::fault::FaultProxy;
use crate::support::postgres::{Cluster, Database, Version};

/// A drain that hardly waits, so that tests do not.
fn impatient() -> DrainConfig {
    DrainConfig {
        batch_delay: Duration::from_millis(1),
        retry_min: Duration::from_millis(1),
        retry_max: Duration::from_millis(2),
        ..DrainConfig::default()
    }
}

fn store_config(folder: &Path) -> Config {
    Config {
        busy_timeout: Duration::from_millis(5),
        ..crate::store::config(folder)
    }
}

fn journal_dir(folder: &Path) -> std::path::PathBuf {
    folder.join("journal")
}

fn open_journal(folder: &Path) -> Arc<Journal> {
    let config = journal::Config {
        dir: journal_dir(folder),
        ..journal::Config::default()
    };
    let disk: Arc<dyn Disk> = Arc::new(LocalDisk);
    Arc::new(crate::support::journal::open_journal(&config, &disk).0)
}

fn records(count: u64) -> Vec<UsageRecord> {
    (0..count)
        .map(|number| record(at("2026-11-23T12:00:00Z"), number))
        .collect()
}

struct Running {
    shutdown: CancellationToken,
    task: JoinHandle<()>,
    events: mpsc::Receiver<Event>,
}

impl Running {
    fn start(journal: &Arc<Journal>, store: &Store, config: DrainConfig) -> Running {
        let (sender, events) = mpsc::channel(100_000);
        let observe = Arc::new(move |event| sender.try_send(event).unwrap());
        let drain = Drain::new(Arc::clone(journal), store.clone(), config, 1, observe);
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(drain.run(shutdown.clone()));
        Running {
            shutdown,
            task,
            events,
        }
    }

    async fn next(&mut self) -> Event {
        let next = tokio::time::timeout(Duration::from_secs(30), self.events.recv());
        next.await.unwrap().unwrap()
    }

    /// The sum of the shipments until they are of that many records.
    async fn shipped(&mut self, records: u64) -> Shipped {
        let mut sum = Shipped::default();
        while sum.stored + sum.duplicates + sum.dead_lettered + sum.lost < records {
            if let Event::Shipped(shipped) = self.next().await {
                sum.stored += shipped.stored;
                sum.duplicates += shipped.duplicates;
                sum.dead_lettered += shipped.dead_lettered;
                sum.lost += shipped.lost;
            }
        }
        sum
    }

    async fn stop(self) {
        self.shutdown.cancel();
        let stopped = tokio::time::timeout(Duration::from_secs(30), self.task);
        stopped.await.unwrap().unwrap();
    }
}

async fn stored_rows(store: &Store) -> usize {
    let query = LogQuery {
        limit: 10_000,
        before: None,
        provider: None,
        outcome: None,
    };
    store.logs(&query).await.unwrap().len()
}

#[tokio::test]
async fn records_are_visible_within_a_second_of_their_journaling() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open_journal(folder.path());
    let store = Store::open(&store_config(folder.path())).await.unwrap();
    let mut running = Running::start(&journal, &store, DrainConfig::default());
    let started = clock::instant();
    for record in records(3) {
        journal.record(&record).unwrap();
    }
    let shipped = running.shipped(3).await;
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
    assert_eq!((shipped.stored, shipped.duplicates), (3, 0));
    assert_eq!(stored_rows(&store).await, 3);
    assert_eq!(journal.stats().pending_records, 0);
    running.stop().await;
}

#[tokio::test]
async fn a_backlog_is_shipped_in_full_batches() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open_journal(folder.path());
    let store = Store::open(&store_config(folder.path())).await.unwrap();
    for record in records(1_234) {
        journal.record(&record).unwrap();
    }
    let mut running = Running::start(&journal, &store, impatient());
    assert_eq!(running.next().await, Event::Up(true));
    for expected in [500, 500, 234] {
        let Event::Shipped(shipped) = running.next().await else {
            panic!("no shipment")
        };
        assert_eq!(shipped.stored, expected);
        assert!(shipped.duration > Duration::ZERO);
    }
    running.stop().await;
    assert_eq!(stored_rows(&store).await, 1_234);
}

#[tokio::test]
async fn a_backlog_of_large_records_waits_for_no_others_either() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open_journal(folder.path());
    let store = Store::open(&store_config(folder.path())).await.unwrap();
    for mut record in records(20) {
        record.raw_usage = Some(format!("\"{}\"", "x".repeat(1_000)));
        journal.record(&record).unwrap();
    }
    // A wait before each of the ten batches would be three seconds.
    let config = DrainConfig {
        batch_bytes: bytesize::ByteSize::kib(4),
        batch_delay: Duration::from_millis(300),
        ..impatient()
    };
    let mut running = Running::start(&journal, &store, config);
    let started = clock::instant();
    assert_eq!(running.shipped(20).await.stored, 20);
    assert!(
        started.elapsed() < Duration::from_millis(1_500),
        "{:?}",
        started.elapsed()
    );
    running.stop().await;
}

#[tokio::test]
async fn a_crash_between_the_two_commits_doubles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&store_config(folder.path())).await.unwrap();
    let journal = open_journal(folder.path());
    for record in records(30) {
        journal.record(&record).unwrap();
    }
    let batch = journal.next_batch(20, 1 << 20).unwrap().unwrap();
    store.apply(&batch.records).await.unwrap();
    // The process dies here: the journal never hears of it.
    drop(journal);

    let journal = open_journal(folder.path());
    assert_eq!(journal.stats().pending_records, 30);
    let mut running = Running::start(&journal, &store, impatient());
    let shipped = running.shipped(30).await;
    assert_eq!((shipped.stored, shipped.duplicates), (10, 20));
    running.stop().await;
    assert_eq!(stored_rows(&store).await, 30);
    assert_sums_equal_rows(folder.path(), &store).await;
}

#[tokio::test]
async fn poison_is_put_aside_with_its_reason_and_the_others_land() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open_journal(folder.path());
    let store = Store::open(&store_config(folder.path())).await.unwrap();
    let mut records = records(100);
    records[40].duration_us = Some(u64::MAX);
    // These two fit a row each and together no sum: the store can only refuse the batch.
    records[13].usage.set(Unit::Output, i64::MAX);
    records[77].usage.set(Unit::Output, i64::MAX);
    for record in &mut records {
        if record.usage.tokens(Unit::Output) == Some(59) {
            record.usage.clear(Unit::Output);
        }
        journal.record(record).unwrap();
    }
    let mut running = Running::start(&journal, &store, impatient());
    let shipped = running.shipped(100).await;
    assert_eq!(
        (shipped.stored, shipped.dead_lettered, shipped.lost),
        (98, 2, 0)
    );
    running.stop().await;
    assert_eq!(stored_rows(&store).await, 98);
    assert_sums_equal_rows(folder.path(), &store).await;
    let mut letters: Vec<_> = dead_letters(&journal_dir(folder.path()))
        .unwrap()
        .map(|letter| letter.unwrap())
        .map(|letter| (letter.record.id, letter.reason))
        .collect();
    letters.sort();
    let expected = [
        (
            records[40].id,
            "duration_us is beyond the range of its column".to_owned(),
        ),
        (
            records[77].id,
            "a sum leaves the range of its column".to_owned(),
        ),
    ];
    assert_eq!(letters, expected);
    assert_eq!(journal.stats().pending_records, 0);
}

#[tokio::test]
async fn poison_that_cannot_be_put_aside_is_lost_and_counted_and_blocks_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open_journal(folder.path());
    let store = Store::open(&store_config(folder.path())).await.unwrap();
    std::fs::create_dir(journal_dir(folder.path()).join(DEAD_LETTER_FILE)).unwrap();
    let mut records = records(3);
    records[1].duration_us = Some(u64::MAX);
    for record in &records {
        journal.record(record).unwrap();
    }
    let mut running = Running::start(&journal, &store, impatient());
    let shipped = running.shipped(3).await;
    assert_eq!(
        (shipped.stored, shipped.dead_lettered, shipped.lost),
        (2, 0, 1)
    );
    running.stop().await;
}

#[tokio::test]
async fn a_batch_that_a_shutdown_interrupts_is_taken_up_again_and_counted_once() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open_journal(folder.path());
    let store = Store::open(&store_config(folder.path())).await.unwrap();
    // Two of three are stored when the third, which cannot be put aside, makes the drain wait.
    std::fs::create_dir(journal_dir(folder.path()).join(DEAD_LETTER_FILE)).unwrap();
    let mut records = records(3);
    records[1].duration_us = Some(u64::MAX);
    for record in &records {
        journal.record(record).unwrap();
    }
    let shutdown = CancellationToken::new();
    let (sender, mut events) = mpsc::channel(1_000);
    let observe = {
        let shutdown = shutdown.clone();
        Arc::new(move |event| {
            if event == Event::Retry {
                shutdown.cancel();
            }
            sender.try_send(event).unwrap();
        })
    };
    Drain::new(Arc::clone(&journal), store, impatient(), 1, observe)
        .run(shutdown)
        .await;
    let mut shipments = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let Event::Shipped(shipped) = event {
            shipments.push((shipped.stored, shipped.duplicates, shipped.lost));
        }
    }
    assert_eq!(shipments, [(2, 0, 1)]);
    assert_eq!(journal.stats().pending_records, 0);
}

async fn locked(folder: &TempDir) -> SqliteConnection {
    let url = format!("sqlite://{}/data/taffrail.db", folder.path().display());
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    sqlx::query("begin immediate")
        .execute(&mut connection)
        .await
        .unwrap();
    connection
}

async fn retries(running: &mut Running, count: usize) {
    for _ in 0..count {
        while running.next().await != Event::Retry {}
    }
}

#[tokio::test]
async fn a_store_that_is_away_is_tried_until_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open_journal(folder.path());
    let store = Store::open(&store_config(folder.path())).await.unwrap();
    let lock = locked(&folder).await;
    for record in records(5) {
        journal.record(&record).unwrap();
    }
    let mut running = Running::start(&journal, &store, impatient());
    assert_eq!(running.next().await, Event::Up(false));
    retries(&mut running, 3).await;
    assert_eq!(journal.stats().pending_records, 5);
    drop(lock);
    while running.next().await != Event::Up(true) {}
    let shipped = running.shipped(5).await;
    assert_eq!((shipped.stored, shipped.duplicates), (5, 0));
    running.stop().await;
}

#[tokio::test]
async fn a_store_that_cannot_be_opened_at_first_is_opened_later() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open_journal(folder.path());
    let in_the_way = folder.path().join("data");
    std::fs::write(&in_the_way, "a file where the folder should be").unwrap();
    let store = Store::lazy(&store_config(folder.path())).unwrap();
    for record in records(5) {
        journal.record(&record).unwrap();
    }
    let mut running = Running::start(&journal, &store, impatient());
    retries(&mut running, 3).await;
    std::fs::remove_file(in_the_way).unwrap();
    assert_eq!(running.shipped(5).await.stored, 5);
    running.stop().await;
}

#[tokio::test]
async fn a_schema_that_does_not_fit_keeps_everything_until_it_is_mended() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open_journal(folder.path());
    let config = Config {
        migrate: false,
        ..store_config(folder.path())
    };
    let store = Store::lazy(&config).unwrap();
    for record in records(5) {
        journal.record(&record).unwrap();
    }
    let mut running = Running::start(&journal, &store, impatient());
    assert_eq!(running.next().await, Event::Up(false));
    retries(&mut running, 3).await;
    assert_eq!(journal.stats().pending_records, 5);
    let letters = dead_letters(&journal_dir(folder.path())).unwrap().count();
    assert_eq!(letters, 0);
    let patient = Config {
        busy_timeout: Duration::from_secs(5),
        ..config
    };
    Store::migrate(&patient).await.unwrap();
    assert_eq!(running.shipped(5).await.stored, 5);
    running.stop().await;
}

#[tokio::test]
async fn a_shutdown_ships_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open_journal(folder.path());
    let store = Store::open(&store_config(folder.path())).await.unwrap();
    let config = DrainConfig {
        batch_delay: Duration::from_secs(3_600),
        ..DrainConfig::default()
    };
    for record in records(700) {
        journal.record(&record).unwrap();
    }
    let running = Running::start(&journal, &store, config);
    running.stop().await;
    assert_eq!(stored_rows(&store).await, 700);
    assert_eq!(journal.stats().pending_records, 0);
}

#[tokio::test]
async fn a_shutdown_leaves_to_the_journal_what_the_store_does_not_take_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open_journal(folder.path());
    let store = Store::open(&store_config(folder.path())).await.unwrap();
    let lock = locked(&folder).await;
    for record in records(5) {
        journal.record(&record).unwrap();
    }
    let config = DrainConfig {
        shutdown_timeout: Duration::from_millis(50),
        ..impatient()
    };
    let mut running = Running::start(&journal, &store, config.clone());
    retries(&mut running, 1).await;
    running.stop().await;
    drop(lock);
    assert_eq!(journal.stats().pending_records, 5);

    let mut running = Running::start(&journal, &store, config);
    assert_eq!(running.shipped(5).await.stored, 5);
    running.stop().await;
}

/// A database in which every insertion of rows runs `body` first, which finds the number of rows
/// in `many` and can raise, and then notes that number in `sizes`.
async fn hindered(body: &str) -> Option<(Database, Store)> {
    let database = Cluster::shared(Version::Default).await?.database().await;
    let config = Config {
        url: database.url(),
        ..Config::default()
    };
    let store = Store::open(&config).await.unwrap();
    let trigger = format!(
        "create sequence tries;
         create table sizes (at int generated always as identity, size int);
         create function hinder() returns trigger language plpgsql as $$
         declare
             many bigint := (select count(*) from rows);
         begin
             {body}
             insert into public.sizes (size) values (many);
             return null;
         end $$;
         create trigger hinder after insert on taffrail.api_usage_logs
             referencing new table as rows for each statement
             execute function hinder()"
    );
    database.execute(&trigger).await;
    Some((database, store))
}

/// The batches that the store took, in their order.
async fn sizes(database: &Database) -> Vec<u64> {
    let rows = database.query("select size from sizes order by at").await;
    rows.iter().map(|row| row[0].parse().unwrap()).collect()
}

#[tokio::test]
async fn batches_shrink_to_what_the_store_can_do_in_time_and_grow_back() {
    let too_slow = "if many > 7 then raise query_canceled; end if;";
    let Some((database, store)) = hindered(too_slow).await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let journal = open_journal(folder.path());
    let config = DrainConfig {
        batch_records: 100,
        ..impatient()
    };
    let all = records(2_000);
    for record in &all[..200] {
        journal.record(record).unwrap();
    }
    let mut running = Running::start(&journal, &store, config);
    let shipped = running.shipped(200).await;
    assert_eq!((shipped.stored, shipped.duplicates), (200, 0));
    let taken = sizes(&database).await;
    // 100, 50, 25 and 12 were too many, and so is every 8 that is tried between.
    assert_eq!((taken[0], taken.iter().max()), (6, Some(&7)), "{taken:?}");
    assert_eq!(taken.iter().sum::<u64>(), 200);
    assert!(taken.len() < 50, "{taken:?}");

    database
        .execute("drop trigger hinder on taffrail.api_usage_logs")
        .await;
    for record in &all[200..] {
        journal.record(record).unwrap();
    }
    let mut largest = 0;
    while journal.stats().pending_records > 0 {
        if let Event::Shipped(shipped) = running.next().await {
            largest = shipped.stored.max(largest);
        }
    }
    running.stop().await;
    assert_eq!(largest, 100);
    assert_eq!(stored_rows(&store).await, 2_000);
    store.close().await;
}

#[tokio::test]
async fn one_record_at_a_time_is_the_least_and_a_store_that_is_away_shrinks_nothing() {
    // Two halvings lead to one record, which is then tried until it goes.
    let body = "if nextval('public.tries') <= 8 then raise query_canceled; end if;";
    let Some((database, store)) = hindered(body).await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let journal = open_journal(folder.path());
    let config = DrainConfig {
        batch_records: 4,
        ..impatient()
    };
    for record in records(10) {
        journal.record(&record).unwrap();
    }
    let mut running = Running::start(&journal, &store, config.clone());
    assert_eq!(running.shipped(10).await.stored, 10);
    running.stop().await;
    assert_eq!(sizes(&database).await, [1, 1, 2, 3, 3]);
    store.close().await;

    let body = "if nextval('public.tries') <= 8 then raise lock_not_available; end if;";
    let (database, store) = hindered(body).await.unwrap();
    for record in records(10) {
        journal.record(&record).unwrap();
    }
    let mut running = Running::start(&journal, &store, config);
    assert_eq!(running.shipped(10).await.stored, 10);
    running.stop().await;
    assert_eq!(sizes(&database).await, [4, 4, 2]);
    store.close().await;
}

#[tokio::test]
async fn a_backlog_gets_through_where_a_full_batch_never_would() {
    // 20 rows take nine minutes, and the limit of a statement ends them; 10 take half a second.
    let slow = "perform pg_sleep(0.001 * power(2, many - 1));";
    let Some((database, store)) = hindered(slow).await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let journal = open_journal(folder.path());
    let config = DrainConfig {
        batch_records: 20,
        ..impatient()
    };
    for record in records(30) {
        journal.record(&record).unwrap();
    }
    let mut running = Running::start(&journal, &store, config);
    assert_eq!(running.shipped(30).await.stored, 30);
    running.stop().await;
    assert_eq!(sizes(&database).await, [10, 10, 10]);
    assert_eq!(stored_rows(&store).await, 30);
    store.close().await;
}

#[tokio::test]
async fn a_call_that_nobody_answers_times_out() {
    let Some(cluster) = Cluster::shared(Version::Default).await else {
        return;
    };
    let proxy = FaultProxy::start(cluster.address()).await;
    let database = cluster.database().await.through(proxy.address());
    let config = Config {
        url: database.url(),
        ..Config::default()
    };
    let store = Store::open(&config).await.unwrap();
    proxy.stall(true);
    // Nothing but time can pass now.
    tokio::time::pause();
    let error = store.apply(&records(1)).await.unwrap_err();
    assert!(matches!(error, StoreError::TimedOut(_)), "{error}");
    assert!(error.is_retryable());
    tokio::time::resume();
    proxy.stall(false);
    assert_eq!(store.apply(&records(1)).await.unwrap().stored, 1);
    store.close().await;
}
