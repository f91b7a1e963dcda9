//! Random operations on the journal, with the process or the machine ending at any of them,
//! against a model of what must and may be there afterwards.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use bytesize::ByteSize;
use proptest::prelude::*;
use taffrail::journal::disk::Disk;
use taffrail::journal::{Config, FsyncInterval, Journal, Placement, Recovery};
use uuid::Uuid;

use super::sim::{Crash, Faults, SimDisk};
use super::{drain, id, intent, record};

#[derive(Debug, Clone)]
enum Step {
    /// An intent of a new request.
    Intent,
    /// The record of the request that has been open the longest, or of one without an intent.
    Record,
    /// The oldest open request needs no record.
    Abandon,
    /// At most that many records are read and committed.
    Commit(usize),
    /// Records are read, as if the store then failed.
    Read(usize),
    Maintain,
    Sync,
    Reopen,
    Fault(Faults),
    /// The end comes that many operations later.
    Crash(Crash, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let fault = prop_oneof![
        3 => Just(Faults::default()),
        1 => Just(Faults { capacity: Some(0), ..Faults::default() }),
        1 => (500_usize..3000).prop_map(|bytes| Faults { capacity: Some(bytes), ..Faults::default() }),
        1 => any::<bool>().prop_map(|no_truncate| Faults {
            torn_appends: true,
            no_truncate,
            ..Faults::default()
        }),
        1 => Just(Faults { failing_syncs: true, ..Faults::default() }),
    ];
    prop_oneof![
        8 => Just(Step::Intent),
        12 => Just(Step::Record),
        2 => Just(Step::Abandon),
        4 => (1_usize..8).prop_map(Step::Commit),
        1 => (1_usize..8).prop_map(Step::Read),
        4 => Just(Step::Maintain),
        1 => Just(Step::Sync),
        1 => Just(Step::Reopen),
        2 => fault.prop_map(Step::Fault),
        2 => (prop_oneof![Just(Crash::Process), Just(Crash::Power)], 0_u64..12)
            .prop_map(|(crash, operations)| Step::Crash(crash, operations)),
    ]
}

fn config(fsync_interval: FsyncInterval, max_bytes: u64) -> Config {
    Config {
        dir: "/journal".into(),
        max_bytes: ByteSize::b(max_bytes),
        segment_bytes: ByteSize::b(450),
        memory_bytes: ByteSize::b(700),
        fsync_interval,
    }
}

fn number(id: Uuid) -> u64 {
    id.as_u64_pair().1 & 0xffff_ffff
}

/// The journal, and what is known of it.
struct World {
    disk: SimDisk,
    config: Config,
    journal: Option<Journal>,
    next: u64,
    /// Requests with an acknowledged intent and neither record nor abandonment.
    open: Vec<u64>,
    /// Intents and closings that were under way at a crash, failed, or are known to memory only.
    maybe_open: BTreeSet<u64>,
    /// The open ones that are known to be durable.
    durable_open: BTreeSet<u64>,
    /// What is pending, in order.
    live: Vec<u64>,
    /// Records that are on disk and not committed.
    on_disk: BTreeSet<u64>,
    /// Those of them that are known to be durable.
    durable: BTreeSet<u64>,
    /// Records in memory, or under way at a crash.
    maybe: BTreeSet<u64>,
    /// Records whose commit did not come to its end.
    replayable: BTreeSet<u64>,
    committed: BTreeSet<u64>,
    /// Records whose `fsync` may have failed in an earlier process. A later one cannot know.
    suspect: BTreeSet<u64>,
    faulty: bool,
    any_fault: bool,
    failed_syncs: bool,
    /// Whether a file may end in bytes that could not be cut off.
    uncuttable: bool,
    crash: Crash,
}

impl World {
    fn new(seed: u64, config: Config) -> World {
        let mut world = World {
            disk: SimDisk::seeded(seed),
            config,
            journal: None,
            next: 0,
            open: Vec::new(),
            maybe_open: BTreeSet::new(),
            durable_open: BTreeSet::new(),
            live: Vec::new(),
            on_disk: BTreeSet::new(),
            durable: BTreeSet::new(),
            maybe: BTreeSet::new(),
            replayable: BTreeSet::new(),
            committed: BTreeSet::new(),
            suspect: BTreeSet::new(),
            faulty: false,
            any_fault: false,
            failed_syncs: false,
            uncuttable: false,
            crash: Crash::Process,
        };
        world.open();
        world
    }

    fn open_on(&self, disk: &SimDisk) -> Option<(Journal, Recovery)> {
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        Journal::open_unattended(&self.config, disk, Arc::new(|_| {})).ok()
    }

    /// Opens the journal; a crash on the way is one more crash.
    fn open(&mut self) {
        loop {
            match self.open_on(&self.disk) {
                Some((journal, _)) if !self.disk.is_dead() => {
                    self.journal = Some(journal);
                    return;
                }
                _ => {
                    assert!(self.disk.is_dead(), "only the end of the process refuses");
                    self.disk.restart(self.crash);
                }
            }
        }
    }

    fn run(&mut self, step: &Step) {
        let journal = self.journal.as_ref().unwrap();
        match step {
            Step::Intent => {
                let n = self.next;
                self.next += 1;
                let appended = journal.intent(&intent(n)).is_ok();
                if self.disk.is_dead() {
                    self.maybe_open.insert(n);
                } else if appended {
                    self.open.push(n);
                }
            }
            Step::Record => {
                let n = match self.open.first() {
                    Some(_) => self.open.remove(0),
                    None => {
                        self.next += 1;
                        self.next - 1
                    }
                };
                let placed = journal.record(&record(n));
                if self.disk.is_dead() {
                    self.maybe.insert(n);
                    self.maybe_open.insert(n);
                } else {
                    match placed {
                        Ok(Placement::Disk) => {
                            self.live.push(n);
                            self.on_disk.insert(n);
                            if self.config.fsync_interval == FsyncInterval::Always {
                                self.durable.insert(n);
                            }
                        }
                        Ok(Placement::Memory) => {
                            self.live.push(n);
                            self.maybe.insert(n);
                            self.maybe_open.insert(n);
                        }
                        Err(_) => {
                            // Its intent may stand; that is one more trace of it.
                            self.maybe_open.insert(n);
                            assert!(self.faulty || journal.stats().fault.is_some());
                        }
                    }
                }
            }
            Step::Abandon => {
                if !self.open.is_empty() {
                    let n = self.open.remove(0);
                    journal.abandon(id(n));
                    if self.disk.is_dead() || journal.stats().fault.is_some() {
                        self.maybe_open.insert(n);
                    }
                }
            }
            Step::Commit(count) => {
                if let Some(batch) = journal.next_batch(*count, 1 << 20).ok().flatten() {
                    let read: Vec<u64> = batch.records.iter().map(|r| number(r.id)).collect();
                    assert_eq!(
                        read,
                        self.live[..read.len()],
                        "the pending records, in order"
                    );
                    let committed = journal.commit(batch.upto);
                    assert_eq!(committed, u64::try_from(read.len()).unwrap());
                    self.live.drain(..read.len());
                    for n in read {
                        if !self.live.contains(&n) {
                            self.on_disk.remove(&n);
                            self.durable.remove(&n);
                            self.maybe.remove(&n);
                        }
                        self.committed.insert(n);
                        if self.faulty || self.disk.is_dead() {
                            self.replayable.insert(n);
                        }
                    }
                } else {
                    assert!(self.live.is_empty() || self.disk.is_dead());
                }
            }
            Step::Read(count) => {
                let batch = journal.next_batch(*count, 1 << 20).ok().flatten();
                let read: Vec<u64> = batch
                    .iter()
                    .flat_map(|batch| &batch.records)
                    .map(|record| number(record.id))
                    .collect();
                assert_eq!(read, self.live[..read.len()]);
            }
            Step::Maintain => journal.maintain(),
            Step::Sync => {
                let synced = journal.sync().is_ok();
                if synced && !self.disk.is_dead() {
                    let known = |n: &&u64| !self.suspect.contains(n);
                    self.durable.extend(self.live.iter().filter(known));
                    self.durable_open = self.open.iter().filter(known).copied().collect();
                }
            }
            Step::Reopen => {
                self.journal = None;
                self.disk.restart(Crash::Process);
                self.crash = Crash::Process;
                self.faulty = false;
                self.reopen();
                return;
            }
            Step::Fault(faults) => {
                self.faulty = !matches!(
                    faults,
                    Faults {
                        capacity: None,
                        torn_appends: false,
                        failing_syncs: false,
                        ..
                    }
                );
                self.any_fault |= self.faulty;
                self.failed_syncs |= faults.failing_syncs;
                self.uncuttable |= faults.no_truncate;
                self.disk.set_faults(faults.clone());
            }
            Step::Crash(crash, operations) => {
                self.crash = *crash;
                self.disk.crash_at(self.disk.operations() + operations);
            }
        }
        if self.disk.is_dead() {
            self.journal = None;
            self.disk.restart(self.crash);
            self.faulty = false;
            if self.crash == Crash::Power {
                self.on_disk.clone_from(&self.durable);
                let survivors = &self.durable_open;
                self.maybe_open.extend(&self.open);
                self.open.retain(|n| survivors.contains(n));
                self.replayable.extend(&self.committed);
                self.maybe.extend(&self.live);
                self.any_fault = true;
            }
            self.reopen();
            return;
        }
        let stats = self.journal.as_ref().unwrap().stats();
        assert_eq!(
            stats.pending_records,
            u64::try_from(self.live.len()).unwrap()
        );
        let disk_bytes = u64::try_from(self.disk.segment_bytes()).unwrap();
        if self.uncuttable {
            assert!(
                stats.disk_bytes >= disk_bytes,
                "never more than is known of"
            );
        } else {
            assert_eq!(stats.disk_bytes, disk_bytes);
        }
        if stats.memory_records == 0 && stats.fault.is_none() {
            // Whatever was in memory is on disk by now.
            self.on_disk.extend(&self.live);
            for n in &self.live {
                self.maybe.remove(n);
            }
        }
    }

    /// Compares what an opening finds with what must and may be there, and goes on from it.
    fn reopen(&mut self) {
        let copy = self.disk.copy();
        let (journal, recovery) = self.open_on(&copy).unwrap();
        let found: Vec<u64> = drain(&journal).iter().map(|r| number(r.id)).collect();
        let unique: BTreeSet<u64> = found.iter().copied().collect();

        if self.failed_syncs {
            // The segment whose sync failed may hold copies of what was written again.
            self.replayable.extend(&self.committed);
        }
        let missing: Vec<_> = self.on_disk.difference(&unique).collect();
        assert!(missing.is_empty(), "lost: {missing:?} of {found:?}");
        let may: BTreeSet<u64> = self.maybe.union(&self.replayable).copied().collect();
        let extra: Vec<_> = unique
            .difference(&self.on_disk)
            .filter(|n| !may.contains(n))
            .collect();
        assert!(extra.is_empty(), "unexpected: {extra:?} of {found:?}");
        if !self.any_fault {
            let in_order: Vec<u64> = self
                .live
                .iter()
                .copied()
                .filter(|n| unique.contains(n))
                .collect();
            let live: BTreeSet<u64> = in_order.iter().copied().collect();
            let rest: Vec<u64> = found.iter().copied().filter(|n| live.contains(n)).collect();
            assert_eq!(rest, in_order, "in order, and nothing doubled");
        }

        let orphans: BTreeSet<u64> = recovery.orphans.iter().map(|i| number(i.id)).collect();
        for n in &self.open {
            assert!(orphans.contains(n), "intent {n} is gone");
        }
        for n in &orphans {
            let may = self.open.contains(n)
                || self.maybe_open.contains(n)
                || self.crash == Crash::Power
                || self.any_fault;
            assert!(may, "{n} was not under way");
        }
        for orphan in &recovery.orphans {
            assert_eq!(*orphan, intent(number(orphan.id)));
        }

        self.live = found;
        self.on_disk = unique;
        let on_disk = &self.on_disk;
        if self.crash == Crash::Power {
            self.durable.clone_from(on_disk);
            self.durable_open.clone_from(&orphans);
            self.suspect.clear();
            self.failed_syncs = false;
        } else {
            if self.failed_syncs {
                self.suspect = on_disk.union(&orphans).copied().collect();
            }
            self.durable.retain(|n| on_disk.contains(n));
            self.durable_open.retain(|n| orphans.contains(n));
        }
        self.maybe.clear();
        self.maybe_open.clear();
        self.open = orphans.into_iter().collect();
        self.crash = Crash::Process;
        self.open();
    }

    fn end(mut self) {
        self.run(&Step::Reopen);
        let journal = self.journal.as_ref().unwrap();
        let read: Vec<u64> = drain(journal).iter().map(|r| number(r.id)).collect();
        assert_eq!(read, self.live);
        // Bounded, but for open intents that were moved.
        assert!(journal.stats().disk_bytes <= self.config.max_bytes.as_u64() + 1_400);
    }
}

fn run(seed: u64, config: Config, steps: &[Step]) -> u64 {
    let mut world = World::new(seed, config);
    for step in steps {
        world.run(step);
    }
    let operations = world.disk.operations();
    world.end();
    operations
}

proptest! {
    #![proptest_config(super::quick(500))]

    #[test]
    fn acknowledged_records_survive_whatever_happens(
        seed in any::<u64>(),
        always in any::<bool>(),
        max_bytes in prop::sample::select(&[1_400, 7_000]),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let interval = if always {
            FsyncInterval::Always
        } else {
            Config::default().fsync_interval
        };
        run(seed, config(interval, max_bytes), &steps);
    }
}

/// A walk through everything that touches the disk.
fn script() -> Vec<Step> {
    use Step::{Abandon, Commit, Fault, Intent, Maintain, Record, Sync};
    let mut steps = Vec::new();
    for _ in 0..3 {
        steps.extend([Intent, Intent, Record, Intent, Record, Abandon, Maintain]);
        steps.extend([Record, Record, Record, Commit(2), Intent, Sync, Record]);
        steps.extend([Record, Commit(5), Maintain, Record, Commit(5), Commit(5)]);
    }
    let failing_syncs = true;
    steps.extend([
        Record,
        Fault(Faults {
            failing_syncs,
            ..Faults::default()
        }),
    ]);
    steps.extend([
        Maintain,
        Record,
        Fault(Faults::default()),
        Maintain,
        Maintain,
    ]);
    let capacity = Some(0);
    steps.extend([
        Fault(Faults {
            capacity,
            ..Faults::default()
        }),
        Record,
        Record,
    ]);
    steps.extend([
        Fault(Faults::default()),
        Maintain,
        Maintain,
        Commit(9),
        Commit(9),
    ]);
    steps
}

#[test]
fn a_crash_at_every_operation_loses_nothing_that_was_acknowledged() {
    for interval in [Config::default().fsync_interval, FsyncInterval::Always] {
        let operations = run(1, config(interval, 20_000), &script());
        assert!(operations > 60, "the script touches the disk: {operations}");
        for at in 0..operations {
            for crash in [Crash::Process, Crash::Power] {
                for seed in 0..2 {
                    let mut steps = vec![Step::Crash(crash, at)];
                    steps.extend(script());
                    run(seed, config(interval, 20_000), &steps);
                }
            }
        }
    }
}

#[test]
fn the_simulated_disk_forgets_what_was_not_synced() {
    let path = Path::new("/file");
    let lost = (0..64).any(|seed| {
        let disk = SimDisk::seeded(seed);
        let file = disk.create(path).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        file.append(b"synced").unwrap();
        file.sync().unwrap();
        file.append(b" or not").unwrap();
        disk.restart(Crash::Process);
        assert_eq!(disk.content(path).unwrap(), b"synced or not");
        disk.restart(Crash::Power);
        let content = disk.content(path).unwrap();
        assert!(content.starts_with(b"synced"));
        content != b"synced or not"
    });
    assert!(lost);
}
