//! The journal against a real disk and against one that fails, tears and forgets.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "the helpers of a test fail as a test does"
)]

mod model;
mod sim;

use std::path::Path;
use std::sync::Arc;

use bytesize::ByteSize;
use chrono::{DateTime, Utc};
use proptest::test_runner::{Config as ProptestConfig, RngSeed};
use taffrail::caller::{Caller, Instance};
use taffrail::fault::Outcome;
use taffrail::journal::disk::{Disk, LocalDisk};
use taffrail::journal::{
    Batch, Config, FsyncInterval, Journal, OpenError, Placement, Recovery, dead_letters,
};
use taffrail::record::{Intent, Operation, UsageRecord};
use uuid::Uuid;

/// Seeded, so that a run is like any other; `PROPTEST_RNG_SEED` gives another one.
fn quick(cases: u32) -> ProptestConfig {
    let seed = std::env::var("PROPTEST_RNG_SEED").ok();
    ProptestConfig {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(seed.map_or(1, |seed| seed.parse().unwrap())),
        ..ProptestConfig::default()
    }
}

fn id(n: u64) -> Uuid {
    Uuid::from_u64_pair(0x0198_c000_0000_7000, 0x8000_0000_0000_0000 | n)
}

fn intent(n: u64) -> Intent {
    Intent {
        id: id(n),
        started_at: start(n),
        provider: "openai".into(),
        operation: Operation::Chat,
        method: "POST".into(),
        route: "/v1/chat/completions".into(),
        model_requested: Some("gpt-4o-mini".into()),
        caller: Caller::default(),
    }
}

fn start(n: u64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_755_561_984 + i64::try_from(n).unwrap(), 0).unwrap()
}

fn record(n: u64) -> UsageRecord {
    let mut record = intent(n).interrupted(Instance::default());
    record.outcome = Outcome::Ok;
    record.duration_us = Some(500_000);
    record
}

fn config(dir: &Path) -> Config {
    Config {
        dir: dir.to_owned(),
        ..Config::default()
    }
}

fn open(config: &Config) -> (Journal, Recovery) {
    open_on(config, Arc::new(LocalDisk))
}

fn open_on(config: &Config, disk: Arc<dyn Disk>) -> (Journal, Recovery) {
    Journal::open_unattended(config, disk, Arc::new(|_| {})).unwrap()
}

/// Reads and commits everything that is pending.
fn drain(journal: &Journal) -> Vec<UsageRecord> {
    let mut records = Vec::new();
    while let Some(batch) = journal.next_batch(500, 1 << 20).unwrap() {
        records.extend(batch.records);
        journal.commit(batch.upto);
    }
    records
}

#[test]
fn records_come_out_in_order_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, recovery) = open(&config(dir.path()));
    assert_eq!(recovery, Recovery::default());
    assert_eq!(journal.next_batch(10, 1 << 20).unwrap(), None);
    for n in 0..5 {
        journal.intent(&intent(n)).unwrap();
        assert_eq!(journal.record(&record(n)).unwrap(), Placement::Disk);
    }
    let batch = journal.next_batch(2, 1 << 20).unwrap().unwrap();
    assert_eq!(batch.records, [record(0), record(1)]);
    assert_eq!(
        journal.next_batch(2, 1 << 20).unwrap().unwrap(),
        batch,
        "the same again until it is committed"
    );
    assert_eq!(journal.commit(batch.upto), 2);
    assert_eq!(journal.commit(batch.upto), 0, "a position commits once");
    assert_eq!(drain(&journal), [record(2), record(3), record(4)]);
    assert_eq!(journal.stats().pending_records, 0);
}

#[test]
fn a_reopened_journal_returns_what_is_pending_and_what_was_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    for n in 0..4 {
        journal.intent(&intent(n)).unwrap();
    }
    journal.record(&record(0)).unwrap();
    journal.record(&record(2)).unwrap();
    journal.abandon(id(3));
    let Batch { upto, .. } = journal.next_batch(1, 1 << 20).unwrap().unwrap();
    journal.commit(upto);
    drop(journal);

    let (journal, recovery) = open(&config(dir.path()));
    let expected = Recovery {
        orphans: vec![intent(1)],
        records: 1,
        ..Recovery::default()
    };
    assert_eq!(recovery, expected);
    assert_eq!(drain(&journal), [record(2)]);
    drop(journal);

    let (journal, recovery) = open(&config(dir.path()));
    assert_eq!(
        recovery.orphans,
        [intent(1)],
        "until a record closes it, however often its segment is deleted"
    );
    journal.record(&record(1)).unwrap();
    drop(journal);
    let (journal, recovery) = open(&config(dir.path()));
    assert_eq!(recovery.orphans, []);
    assert_eq!(drain(&journal), [record(1)]);
}

#[test]
fn two_processes_cannot_share_a_journal() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    let refused =
        Journal::open_unattended(&config(dir.path()), Arc::new(LocalDisk), Arc::new(|_| {}))
            .unwrap_err();
    assert!(matches!(&refused, OpenError::Locked { .. }), "{refused:?}");
    let message = refused.to_string();
    assert!(
        message.contains(dir.path().to_str().unwrap()),
        "the message names the directory: {message}"
    );
    drop(journal);
    open(&config(dir.path()));
}

#[test]
fn segments_are_deleted_once_their_records_are_committed() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        segment_bytes: ByteSize::b(1500),
        ..config(dir.path())
    };
    let (journal, _) = open(&config);
    journal.intent(&intent(1000)).unwrap();
    for n in 0..50 {
        journal.record(&record(n)).unwrap();
    }
    assert!(journal.stats().segments > 10);
    assert_eq!(drain(&journal), (0..50).map(record).collect::<Vec<_>>());
    assert_eq!(journal.stats().segments, 1);
    drop(journal);
    let (_, recovery) = open(&config);
    assert_eq!(
        recovery.orphans,
        [intent(1000)],
        "an open intent outlives the segment that it was written to"
    );
}

#[test]
fn dead_letters_are_read_back_past_a_broken_line() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    assert_eq!(dead_letters(dir.path()).unwrap().count(), 0);
    journal.dead_letter(&record(1), "23514: check").unwrap();
    let path = dir.path().join("dead-letters.jsonl");
    let mut text = std::fs::read(&path).unwrap();
    text.extend_from_slice(b"{\"at\":");
    std::fs::write(&path, text).unwrap();
    journal.dead_letter(&record(2), "22P05: escape").unwrap();
    let letters: Vec<_> = dead_letters(dir.path())
        .unwrap()
        .map(|letter| letter.ok().map(|letter| (letter.reason, letter.record)))
        .collect();
    assert_eq!(
        letters,
        [
            Some(("23514: check".to_owned(), record(1))),
            None,
            Some(("22P05: escape".to_owned(), record(2))),
        ]
    );
}

#[test]
fn the_thread_syncs_on_its_interval_and_ends_with_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        fsync_interval: FsyncInterval::Every(std::time::Duration::from_millis(1)),
        ..config(dir.path())
    };
    let (sender, receiver) = std::sync::mpsc::sync_channel(16);
    // A full channel has told enough.
    let observer = Arc::new(move |duration| sender.try_send(duration).unwrap_or_default());
    let (journal, _) = Journal::open(&config, Arc::new(LocalDisk), observer).unwrap();
    journal.record(&record(1)).unwrap();
    receiver.recv().unwrap();
    drop(journal);
    open(&config);
}

#[tokio::test]
async fn a_waiting_drain_is_woken_by_the_first_record() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    let mut wait = std::pin::pin!(journal.wait());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(wait.as_mut().poll(&mut context).is_pending());
    journal.intent(&intent(1)).unwrap();
    assert!(wait.as_mut().poll(&mut context).is_pending());
    journal.record(&record(1)).unwrap();
    wait.await;
    journal.wait().await;
}
