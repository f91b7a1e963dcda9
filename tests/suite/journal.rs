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
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use taffrail::caller::{Caller, Instance};
use taffrail::fault::Outcome;
use taffrail::journal::disk::{Disk, LocalDisk};
use taffrail::journal::segment::{self, Kind};
use taffrail::journal::{
    Batch, Config, FsyncInterval, Journal, OpenError, Placement, Reason, Recovery, dead_letters,
};
use taffrail::money::Usd;
use taffrail::record::{CostSource, Intent, Operation, UsageRecord};
use taffrail::usage::Unit;
use uuid::Uuid;

use crate::support::journal::open_journal;

use sim::{Crash, Faults, SimDisk};

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
        job: None,
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
    open_journal(config, &disk)
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
        segment_bytes: ByteSize::b(500),
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

/// The body of the segment file that a journal with these in it would have.
fn segment_of(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = segment::header(id(u64::from(u32::MAX))).to_vec();
    bytes.extend(frames.iter().flatten());
    bytes
}

fn intent_frame(n: u64) -> Vec<u8> {
    segment::encode(Kind::Intent, id(n), &intent(n)).unwrap()
}

fn record_frame(n: u64) -> Vec<u8> {
    segment::encode(Kind::Record, id(n), &record(n)).unwrap()
}

/// A record with something in every kind of field.
fn full_record() -> UsageRecord {
    let mut full = record(3);
    full.usage = full.usage.with(Unit::Input, 12).with(Unit::Output, 345);
    full.cost_usd = Usd::from_json_number("0.0012345");
    full.cost_source = Some(CostSource::Catalog);
    full.instance.pod = Some("pod-0".into());
    full.caller
        .attribution
        .insert("team".into(), "search".into());
    full.raw_usage = Some(r#"{"prompt_tokens":12,"completion_tokens":345}"#.into());
    full
}

#[test]
fn a_journal_of_every_version_is_read() {
    for name in ["v1.bin", "v2.bin"] {
        check_fixture(name);
    }
}

fn check_fixture(name: &str) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/journal");
    let fixture = fixtures.join(name);
    // Written once and never again: it stands for the files that are out there.
    if !fixture.exists() && std::env::var_os("UPDATE_GOLDEN").is_some() {
        let frames = [
            intent_frame(1),
            intent_frame(2),
            intent_frame(3),
            record_frame(1),
            segment::encode(Kind::Record, id(3), &full_record()).unwrap(),
            intent_frame(4),
            segment::encode_abandoned(id(4)),
        ];
        std::fs::create_dir_all(fixture.parent().unwrap()).unwrap();
        std::fs::write(&fixture, segment_of(&frames)).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(&fixture, dir.path().join("00000001.seg")).unwrap();
    let (journal, recovery) = open(&config(dir.path()));
    let expected = Recovery {
        orphans: vec![intent(2)],
        records: 2,
        ..Recovery::default()
    };
    assert_eq!(recovery, expected);
    assert_eq!(drain(&journal), [record(1), full_record()]);
}

#[test]
fn a_segment_of_another_version_is_neither_read_nor_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("00000007.seg");
    let mut foreign = segment_of(&[record_frame(1)]);
    foreign[8] = 3;
    let crc = crc32c::crc32c(&foreign[..28]).to_le_bytes();
    foreign[28..32].copy_from_slice(&crc);
    std::fs::write(&path, &foreign).unwrap();
    let (journal, recovery) = open(&config(dir.path()));
    let expected = Recovery {
        foreign_segments: 1,
        ..Recovery::default()
    };
    assert_eq!(recovery, expected);
    journal.record(&record(2)).unwrap();
    assert_eq!(drain(&journal), [record(2)]);
    drop(journal);
    open(&config(dir.path()));
    assert_eq!(std::fs::read(&path).unwrap(), foreign);
}

#[test]
fn damage_is_counted_passed_over_and_kept_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("00000001.seg");
    // A record that a later version wrote: intact, and of no use to this one.
    let strange = segment::encode(Kind::Record, id(3), b"strange".as_slice()).unwrap();
    let frames = [record_frame(1), record_frame(2), strange, record_frame(4)];
    let mut bytes = segment_of(&frames);
    bytes[32 + frames[0].len() + 40] ^= 1;
    std::fs::write(&path, &bytes).unwrap();

    let (journal, recovery) = open(&config(dir.path()));
    let expected = Recovery {
        records: 3,
        quarantined_frames: 1,
        ..Recovery::default()
    };
    assert_eq!(recovery, expected);
    assert_eq!(drain(&journal), [record(1), record(4)]);
    let stats = journal.stats();
    assert_eq!(
        stats.quarantined_frames_total, 2,
        "the flipped, the strange"
    );
    assert_eq!(stats.quarantined_segments_total, 1);
    assert_eq!(stats.pending_records, 0);
    assert!(!path.exists());
    let aside = dir.path().join("00000001.seg.bad");
    assert_eq!(std::fs::read(aside).unwrap(), bytes);
    drop(journal);
    let (_, recovery) = open(&config(dir.path()));
    assert_eq!(recovery, Recovery::default(), "what is aside is done with");
}

#[test]
fn only_so_many_damaged_segments_are_kept_aside() {
    let dir = tempfile::tempdir().unwrap();
    for number in 1..=20 {
        let mut bytes = segment_of(&[record_frame(number)]);
        bytes[100] ^= 1;
        std::fs::write(dir.path().join(format!("{number:08}.seg")), bytes).unwrap();
    }
    let (_journal, recovery) = open(&config(dir.path()));
    assert_eq!(recovery.quarantined_frames, 20);
    let mut names: Vec<String> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains(".seg"))
        .collect();
    names.sort();
    let newest: Vec<String> = (5..=20).map(|n| format!("{n:08}.seg.bad")).collect();
    assert_eq!(names, newest);
}

#[test]
fn a_lost_or_garbage_cursor_costs_a_replay_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        segment_bytes: ByteSize::b(1_200),
        ..config(dir.path())
    };
    let (journal, _) = open(&config);
    for n in 0..20 {
        journal.record(&record(n)).unwrap();
    }
    let batch = journal.next_batch(2, 1 << 20).unwrap().unwrap();
    journal.commit(batch.upto);
    drop(journal);
    let path = dir.path().join("cursor");
    let good = std::fs::read(&path).unwrap();
    let pending: Vec<_> = (2..20).map(record).collect();
    let all: Vec<_> = (0..20).map(record).collect();
    let found = |cursor: Option<&[u8]>| {
        let copy = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
        let cursor_path = copy.path().join("cursor");
        match cursor {
            Some(bytes) => std::fs::write(cursor_path, bytes).unwrap(),
            None => std::fs::remove_file(cursor_path).unwrap(),
        }
        let config = Config {
            dir: copy.path().to_owned(),
            ..config.clone()
        };
        drain(&open(&config).0)
    };
    assert_eq!(found(Some(&good)), pending);
    assert_eq!(found(None), all);
    assert_eq!(found(Some(b"")), all);
    assert_eq!(found(Some(&[0xff; 4096])), all);
    assert_eq!(found(Some(b"1\n00000000\n")), all);
    for byte in 0..good.len() {
        let mut bad = good.clone();
        bad[byte] ^= 1 << (byte % 8);
        // The case of a hexadecimal digit says nothing.
        if !bad.eq_ignore_ascii_case(&good) {
            assert_eq!(found(Some(&bad)), all, "byte {byte}");
        }
    }
}

#[test]
fn a_cursor_of_another_journal_is_not_believed() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&one, &other] {
        let (journal, _) = open(&config(dir.path()));
        for n in 0..3 {
            journal.record(&record(n)).unwrap();
        }
        if dir.path() == one.path() {
            drain(&journal);
        }
    }
    std::fs::copy(one.path().join("cursor"), other.path().join("cursor")).unwrap();
    let (journal, _) = open(&config(other.path()));
    assert_eq!(drain(&journal).len(), 3);
}

/// A segment file as a journal writes it, with every record and where it starts and ends.
fn sample() -> (Vec<u8>, Vec<(usize, usize, u64)>) {
    let mut bytes = segment_of(&[]);
    let mut records = Vec::new();
    for n in 0..6 {
        bytes.extend(intent_frame(n));
        let start = bytes.len();
        bytes.extend(record_frame(n));
        records.push((start, bytes.len(), n));
    }
    (bytes, records)
}

proptest! {
    #![proptest_config(quick(10_000))]

    #[test]
    fn every_record_that_damage_did_not_hit_is_recovered(
        flips in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
        zeros in prop::option::of((any::<prop::sample::Index>(), 1_usize..600)),
    ) {
        let (mut bytes, records) = sample();
        let mut hit = vec![false; bytes.len()];
        for flip in &flips {
            let bit = flip.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            hit[bit / 8] = true;
        }
        if let Some((start, len)) = &zeros {
            let start = start.index(bytes.len());
            let end = (start + len).min(bytes.len());
            for at in start..end {
                hit[at] |= bytes[at] != 0;
                bytes[at] = 0;
            }
        }
        let end = cut.map_or(bytes.len(), |cut| cut.index(bytes.len() + 1));
        bytes.truncate(end);
        let intact: Vec<u64> = records
            .iter()
            .filter(|(start, stop, _)| *stop <= end && !hit[*start..*stop].contains(&true))
            .map(|(_, _, n)| *n)
            .collect();

        let disk = SimDisk::seeded(0);
        let config = config(Path::new("/journal"));
        disk.create(Path::new("/journal/00000001.seg")).unwrap();
        disk.set_content(Path::new("/journal/00000001.seg"), &bytes);
        let (journal, recovery) = open_on(&config, Arc::new(disk.clone()));
        let found: Vec<u64> = drain(&journal)
            .iter()
            .map(|record| record.id.as_u64_pair().1 & 0xffff)
            .collect();
        // Two flips of one bit, or zeros over a flip, can leave a frame as it was.
        let found_hit: Vec<_> = found.iter().filter(|n| !intact.contains(n)).collect();
        prop_assert!(flips.len() > 1 || found_hit.is_empty(), "{found_hit:?}");
        for n in &intact {
            prop_assert!(found.contains(n), "record {n} is gone");
        }
        prop_assert!(found.is_sorted());
        for orphan in recovery.orphans {
            journal.record(&orphan.interrupted(Instance::default())).unwrap();
        }
        drain(&journal);
        let aside = disk.content(Path::new("/journal/00000001.seg.bad"));
        prop_assert_eq!(disk.content(Path::new("/journal/00000001.seg")), None);
        if recovery.quarantined_frames > 0 {
            prop_assert!(hit[..end].contains(&true));
            prop_assert_eq!(aside, Some(bytes));
        }
    }
}

#[test]
fn a_full_disk_costs_nothing_until_the_memory_is_full_and_then_exactly_what_is_counted() {
    let disk = SimDisk::seeded(7);
    let config = Config {
        memory_bytes: ByteSize::kib(8),
        ..config(Path::new("/journal"))
    };
    let (journal, _) = open_on(&config, Arc::new(disk.clone()));
    let mut expected = Vec::new();
    for n in 0..5 {
        assert_eq!(journal.record(&record(n)).unwrap(), Placement::Disk);
        expected.push(record(n));
    }
    disk.set_faults(Faults {
        capacity: Some(disk.used() + 100),
        ..Faults::default()
    });
    let (mut held, mut dropped) = (0, 0);
    for n in 5..100 {
        match journal.record(&record(n)) {
            Ok(placement) => {
                assert_eq!(placement, Placement::Memory);
                expected.push(record(n));
                held += 1;
            }
            Err(error) => {
                assert_eq!(error.reason, Reason::DiskFull);
                dropped += 1;
            }
        }
        journal.maintain();
    }
    assert!(held > 10 && dropped > 10, "{held} held, {dropped} dropped");
    assert_eq!(
        journal.intent(&intent(1)).unwrap_err().reason,
        Reason::DiskFull
    );
    let stats = journal.stats();
    assert_eq!(stats.pending_records, 5 + held);
    assert_eq!(stats.memory_records, held);
    assert!(stats.memory_bytes <= 8 << 10);
    assert_eq!(stats.dropped_total, [(Reason::DiskFull, dropped)]);
    assert_eq!(stats.fault, Some(Reason::DiskFull));

    let first = journal.next_batch(8, 1 << 20).unwrap().unwrap();
    assert_eq!(first.records, expected[..5]);
    journal.commit(first.upto);
    let second = journal.next_batch(3, 1 << 20).unwrap().unwrap();
    assert_eq!(second.records, expected[5..8], "straight from memory");
    journal.commit(second.upto);

    disk.set_faults(Faults::default());
    // At most 32 rounds are left out after failures.
    for _ in 0..33 {
        journal.maintain();
    }
    let stats = journal.stats();
    assert_eq!((stats.memory_records, stats.fault), (0, None));
    assert_eq!(journal.record(&record(200)).unwrap(), Placement::Disk);
    expected.push(record(200));
    drop(journal);
    let (journal, recovery) = open_on(&config, Arc::new(disk));
    assert_eq!(recovery.torn_tails + recovery.quarantined_frames, 0);
    assert_eq!(drain(&journal), expected[8..]);
}

#[test]
fn a_journal_at_its_limit_holds_records_in_memory_and_resumes_when_the_store_does() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        max_bytes: ByteSize::kib(5),
        segment_bytes: ByteSize::b(1_280),
        ..config(dir.path())
    };
    let (journal, _) = open(&config);
    let placements: Vec<_> = (0..60)
        .map(|n| journal.record(&record(n)).unwrap())
        .collect();
    let on_disk = placements
        .iter()
        .take_while(|placement| **placement == Placement::Disk)
        .count();
    assert!((20..50).contains(&on_disk), "{on_disk}");
    assert!(
        placements[on_disk..]
            .iter()
            .all(|placement| *placement == Placement::Memory)
    );
    assert!(journal.stats().disk_bytes <= 5 << 10);
    assert_eq!(journal.stats().fault, Some(Reason::JournalFull));
    let batch = journal.next_batch(500, 1 << 20).unwrap().unwrap();
    journal.commit(batch.upto);
    let mut read = batch.records;
    assert!(journal.stats().memory_records < 60 - u64::try_from(on_disk).unwrap());
    read.extend(drain(&journal));
    assert_eq!(read, (0..60).map(record).collect::<Vec<_>>());
    assert_eq!(journal.record(&record(60)).unwrap(), Placement::Disk);
    assert_eq!(journal.stats().fault, None);
}

#[test]
fn half_a_frame_that_cannot_be_cut_off_spoils_nothing() {
    let disk = SimDisk::seeded(3);
    let config = config(Path::new("/journal"));
    let (journal, _) = open_on(&config, Arc::new(disk.clone()));
    journal.record(&record(0)).unwrap();
    disk.set_faults(Faults {
        torn_appends: true,
        no_truncate: true,
        ..Faults::default()
    });
    assert_eq!(journal.record(&record(1)).unwrap(), Placement::Memory);
    disk.set_faults(Faults::default());
    journal.sync().unwrap();
    assert_eq!(journal.record(&record(2)).unwrap(), Placement::Disk);
    drop(journal);
    let (journal, recovery) = open_on(&config, Arc::new(disk));
    assert_eq!(recovery.quarantined_frames, 0, "torn is not damaged");
    assert_eq!(drain(&journal), [record(0), record(1), record(2)]);
}

#[test]
fn a_segment_whose_sync_failed_is_written_anew_and_never_synced_again() {
    for fsync_interval in [Config::default().fsync_interval, FsyncInterval::Always] {
        let disk = SimDisk::seeded(3);
        let config = Config {
            fsync_interval,
            ..config(Path::new("/journal"))
        };
        let (journal, _) = open_on(&config, Arc::new(disk.clone()));
        journal.intent(&intent(9)).unwrap();
        disk.set_faults(Faults {
            failing_syncs: true,
            ..Faults::default()
        });
        journal.record(&record(0)).unwrap();
        journal.record(&record(1)).unwrap();
        journal.sync().unwrap_err();
        let stats = journal.stats();
        assert!(stats.fsync_errors_total > 0);
        assert_eq!(stats.pending_records, 2);
        disk.set_faults(Faults::default());
        journal.sync().unwrap();
        drop(journal);
        disk.restart(Crash::Power);
        let (journal, recovery) = open_on(&config, Arc::new(disk));
        assert_eq!(recovery.orphans, [intent(9)]);
        assert_eq!(drain(&journal), [record(0), record(1)]);
    }
}

#[test]
fn a_segment_that_cannot_be_read_is_given_up_in_the_end_and_kept() {
    let disk = SimDisk::seeded(3);
    let config = config(Path::new("/journal"));
    let (journal, _) = open_on(&config, Arc::new(disk.clone()));
    for n in 0..3 {
        journal.record(&record(n)).unwrap();
    }
    disk.set_faults(Faults {
        no_reads: true,
        ..Faults::default()
    });
    for _ in 0..9 {
        journal.next_batch(2, 1 << 20).unwrap_err();
    }
    assert_eq!(journal.next_batch(2, 1 << 20).unwrap(), None);
    let stats = journal.stats();
    assert_eq!(stats.pending_records, 0);
    assert_eq!(stats.quarantined_frames_total, 3);
    disk.set_faults(Faults::default());
    journal.record(&record(3)).unwrap();
    assert_eq!(drain(&journal), [record(3)]);
}

#[test]
fn a_record_too_large_for_a_frame_is_refused_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    let mut large = record(1);
    large.raw_usage = Some("x".repeat(segment::PAYLOAD_BYTES_MAX));
    assert_eq!(journal.record(&large).unwrap_err().reason, Reason::TooLarge);
    assert_eq!(journal.stats().dropped_total, [(Reason::TooLarge, 1)]);
    journal.record(&record(2)).unwrap();
    assert_eq!(drain(&journal), [record(2)]);
}

#[test]
fn a_batch_keeps_to_its_limits_and_holds_at_least_one_record() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    for n in 0..10 {
        journal.record(&record(n)).unwrap();
    }
    let size = record_frame(0).len();
    let count = |records, bytes| {
        let batch = journal.next_batch(records, bytes).unwrap().unwrap();
        batch.records.len()
    };
    assert_eq!(count(3, 1 << 20), 3);
    assert_eq!(count(100, 1 << 20), 10);
    assert_eq!(count(100, 4 * size), 4);
    assert_eq!(count(100, 4 * size - 1), 3);
    assert_eq!(count(100, 0), 1);
    assert_eq!(count(0, 0), 1);
}

#[test]
fn stats_say_what_is_pending_and_since_when() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(&config(dir.path()));
    assert_eq!(journal.stats().oldest_record_at, None);
    journal.intent(&intent(1)).unwrap();
    for n in 1..4 {
        journal.record(&record(n)).unwrap();
    }
    let size = u64::try_from(record_frame(1).len()).unwrap();
    let half = chrono::TimeDelta::milliseconds(500);
    let stats = journal.stats();
    assert_eq!(stats.pending_records, 3);
    assert_eq!(stats.pending_bytes, 3 * size);
    assert_eq!(stats.oldest_record_at, Some(start(1) + half));
    assert_eq!(stats.open_intents, 0);
    assert_eq!(stats.disk_records_total, 3);
    let batch = journal.next_batch(2, 1 << 20).unwrap().unwrap();
    journal.commit(batch.upto);
    let stats = journal.stats();
    assert_eq!(stats.pending_records, 1);
    assert_eq!(stats.pending_bytes, size);
    assert_eq!(stats.oldest_record_at, Some(start(3) + half));
    assert_eq!(stats.committed_total, 2);
    let on_disk = std::fs::metadata(dir.path().join("00000001.seg")).unwrap();
    assert_eq!(stats.disk_bytes, on_disk.len());
}

#[test]
fn many_threads_append_without_mixing_and_in_their_own_order() {
    const THREADS: u64 = 8;
    const RECORDS: u64 = 500;
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        segment_bytes: ByteSize::kib(64),
        fsync_interval: FsyncInterval::Every(std::time::Duration::from_millis(2)),
        ..config(dir.path())
    };
    let (journal, _) = Journal::open(&config, Arc::new(LocalDisk), Arc::new(|_| {})).unwrap();
    let mut read = Vec::new();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let journal = &journal;
            scope.spawn(move || {
                for index in 0..RECORDS {
                    let n = thread * RECORDS + index;
                    journal.intent(&intent(n)).unwrap();
                    assert_eq!(journal.record(&record(n)).unwrap(), Placement::Disk);
                }
            });
        }
        // The drain runs at the same time.
        while read.len() < usize::try_from(THREADS * RECORDS).unwrap() {
            read.extend(drain(&journal));
        }
    });
    let mut by_thread = vec![Vec::new(); usize::try_from(THREADS).unwrap()];
    for record in read {
        let n = record.id.as_u64_pair().1 & 0xffff_ffff;
        by_thread[usize::try_from(n / RECORDS).unwrap()].push(record);
    }
    for (thread, records) in (0..THREADS).zip(by_thread) {
        let expected: Vec<_> = (thread * RECORDS..(thread + 1) * RECORDS)
            .map(record)
            .collect();
        assert_eq!(records, expected);
    }
    assert_eq!(journal.stats().open_intents, 0);
}

#[test]
fn a_hundred_thousand_pending_records_are_recovered_within_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = record_frame(0);
    let payload = &bytes[9 + 16..];
    for segment in 0..10 {
        let frames: Vec<Vec<u8>> = (0..10_000)
            .map(|n| segment::encode(Kind::Record, id(segment * 10_000 + n), payload).unwrap())
            .collect();
        let path = dir.path().join(format!("{segment:08}.seg"));
        std::fs::write(path, segment_of(&frames)).unwrap();
    }
    let started = taffrail::clock::instant();
    let (journal, recovery) = open(&config(dir.path()));
    let elapsed = started.elapsed();
    assert_eq!(recovery.records, 100_000);
    assert_eq!(journal.stats().pending_records, 100_000);
    assert!(elapsed.as_secs_f64() < 1.0, "{elapsed:?}");
}

#[test]
fn the_fsync_interval_reads_and_prints_its_three_forms() {
    for (text, interval) in [
        ("always", FsyncInterval::Always),
        ("never", FsyncInterval::Never),
        (
            "250ms",
            FsyncInterval::Every(std::time::Duration::from_millis(250)),
        ),
    ] {
        let json = format!("{{\"fsync_interval\":\"{text}\"}}");
        let config: Config = serde_json::from_str(&json).unwrap();
        assert_eq!(config.fsync_interval, interval);
        assert_eq!(interval.to_string(), text);
    }
    for bad in ["", "sometimes", "0s", "999us", "-1s"] {
        let error = FsyncInterval::try_from(bad.to_owned()).unwrap_err();
        assert!(error.contains("`always`, `never` or a duration"), "{error}");
    }
    let text = serde_json::to_string(&Config::default()).unwrap();
    assert_eq!(
        serde_json::from_str::<Config>(&text).unwrap(),
        Config::default()
    );
}

#[test]
fn a_request_recorded_or_abandoned_in_memory_alone_is_not_taken_for_an_interrupted_one() {
    let disk = SimDisk::seeded(3);
    let config = config(Path::new("/journal"));
    let (journal, _) = open_on(&config, Arc::new(disk.clone()));
    for n in 0..3 {
        journal.intent(&intent(n)).unwrap();
    }
    disk.set_faults(Faults {
        capacity: Some(0),
        ..Faults::default()
    });
    assert_eq!(journal.record(&record(0)).unwrap(), Placement::Memory);
    journal.abandon(id(1));
    assert_eq!(drain(&journal), [record(0)], "never on disk");
    disk.set_faults(Faults::default());
    journal.sync().unwrap();
    drop(journal);
    let (_, recovery) = open_on(&config, Arc::new(disk));
    assert_eq!(recovery.orphans, [intent(2)]);
}

#[test]
fn intents_that_fill_whole_segments_are_not_moved_again_and_again() {
    let disk = SimDisk::seeded(3);
    let config = Config {
        segment_bytes: ByteSize::b(400),
        ..config(Path::new("/journal"))
    };
    let (journal, _) = open_on(&config, Arc::new(disk.clone()));
    for n in 0..40 {
        journal.intent(&intent(n)).unwrap();
    }
    let before = disk.operations();
    for n in 100..150 {
        journal.record(&record(n)).unwrap();
        assert_eq!(drain(&journal), [record(n)]);
    }
    let operations = disk.operations() - before;
    assert!(operations < 50 * 8, "{operations} for 50 records");
    assert!(
        journal.stats().segments < 30,
        "{}",
        journal.stats().segments
    );
    drop(journal);
    let (_, recovery) = open_on(&config, Arc::new(disk));
    assert_eq!(recovery.orphans, (0..40).map(intent).collect::<Vec<_>>());
}

#[test]
fn a_journal_of_one_segment_resumes_as_well() {
    let dir = tempfile::tempdir().unwrap();
    // To the last byte, so that not even a header fits beside it.
    let size = 32 + 4 * record_frame(0).len();
    let config = Config {
        max_bytes: ByteSize::b(u64::try_from(size).unwrap()),
        ..config(dir.path())
    };
    let (journal, _) = open(&config);
    for round in 0..5 {
        for n in 0..20 {
            journal.record(&record(round * 20 + n)).unwrap();
        }
        assert_eq!(journal.stats().fault, Some(Reason::JournalFull));
        let records: Vec<_> = (round * 20..(round + 1) * 20).map(record).collect();
        assert_eq!(drain(&journal), records);
        assert_eq!(journal.stats().fault, None);
    }
}
