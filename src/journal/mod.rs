//! The journal: an append-only log of intents and records on local disk, between the request
//! path and the store.
//!
//! In go intents (a request starts) and records (it is settled); out come records in the order
//! of their appending, for the drain, and after a crash the intents that never got a record. A
//! record is kept until [`Journal::commit`] says that the store has it.
//!
//! The segment files are the one truth. The cursor file only spares a restart the replay of what
//! is stored already; lost, stale or garbage, it costs that replay and nothing else, because the
//! store takes a record once by its id. `segment.rs` describes the bytes, `codec.rs` what is in
//! them, `log.rs` the rules, `disk.rs` the file operations, docs/journal.md the guarantees.
//!
//! The journal must never stop the process from starting because of what a file holds, never
//! delete what it could not read, and never let the request path wait for anything but one
//! `write(2)`: `fsync` runs on a thread of its own (except under `always`). When the disk does
//! not take a record it goes to a bounded memory, from which the drain ships it as well; only
//! when that is full is it dropped, with the reason, and counted.

pub mod codec;
mod dead_letter;
pub mod disk;
mod log;
pub mod segment;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytesize::ByteSize;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use uuid::Uuid;

pub use dead_letter::{DEAD_LETTER_FILE, DeadLetter, DeadLetterError, dead_letters};
use disk::{Disk, LockGuard, read_range};
use log::{Doomed, Framed, Fsync, Limits, Log, Plan, Step, wide};
use segment::{EncodeError, Kind};

use crate::record::{Intent, UsageRecord};

/// How often maintenance runs when no interval is configured.
const MAINTENANCE_INTERVAL: Duration = Duration::from_millis(200);

/// The shortest interval that is honoured; a shorter one would only keep the disk busy.
const FSYNC_INTERVAL_MIN: Duration = Duration::from_millis(1);

/// How many damaged segment files are kept aside; beyond it the oldest are deleted.
const QUARANTINED_FILES_MAX: usize = 16;

const LOCK_NAME: &str = "lock";

/// Where the journal is and what it may take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The directory of the journal. It must be on a disk that survives a restart of the
    /// process, and belong to one process alone.
    pub dir: PathBuf,
    /// The most that the journal takes on disk. Beyond it records are held in memory, then
    /// dropped and counted.
    #[schemars(with = "String")]
    pub max_bytes: ByteSize,
    /// The size of a segment file. Space is given back by whole segments.
    #[schemars(with = "String")]
    pub segment_bytes: ByteSize,
    /// The most memory for records that the disk does not take.
    #[schemars(with = "String")]
    pub memory_bytes: ByteSize,
    /// How often appended records are made durable: an interval (what a power loss may cost), or
    /// `always` (each record before it is acknowledged, on the request's path), or `never` (the
    /// operating system decides). The death of the process alone loses nothing in any case.
    #[schemars(extend("x-accepted" = "\"always\", \"never\" or a duration of 1ms or more"))]
    pub fsync_interval: FsyncInterval,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            dir: PathBuf::from("./taffrail-data/journal"),
            max_bytes: ByteSize::gib(1),
            segment_bytes: ByteSize::mib(8),
            memory_bytes: ByteSize::mib(16),
            fsync_interval: FsyncInterval::Every(MAINTENANCE_INTERVAL),
        }
    }
}

/// When appended records are made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum FsyncInterval {
    /// Once in that time, on a thread of its own.
    Every(Duration),
    /// Before a record is acknowledged.
    Always,
    /// When the operating system likes.
    Never,
}

impl TryFrom<String> for FsyncInterval {
    type Error = String;

    fn try_from(text: String) -> Result<FsyncInterval, String> {
        match text.as_str() {
            "always" => Ok(FsyncInterval::Always),
            "never" => Ok(FsyncInterval::Never),
            _ => match humantime::parse_duration(&text) {
                Ok(interval) if interval >= FSYNC_INTERVAL_MIN => {
                    Ok(FsyncInterval::Every(interval))
                }
                _ => Err(format!(
                    "expected `always`, `never` or a duration of at least 1ms such as `200ms`, got `{text}`"
                )),
            },
        }
    }
}

impl From<FsyncInterval> for String {
    fn from(interval: FsyncInterval) -> String {
        interval.to_string()
    }
}

impl fmt::Display for FsyncInterval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FsyncInterval::Every(interval) => humantime::format_duration(*interval).fmt(f),
            FsyncInterval::Always => f.write_str("always"),
            FsyncInterval::Never => f.write_str("never"),
        }
    }
}

/// Called with the duration of every `fsync` of a segment, for a histogram.
pub type FsyncObserver = Arc<dyn Fn(Duration) + Send + Sync>;

/// Where a record went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// To disk: it survives the death of the process.
    Disk,
    /// To memory: it will be shipped, or written once the disk takes it, unless the process dies
    /// first.
    Memory,
}

/// Why something could not be appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The journal has reached `max_bytes`.
    JournalFull,
    /// The disk, or the quota on it, is full.
    DiskFull,
    /// The disk fails otherwise.
    DiskError,
    /// The record is larger than a frame may be.
    TooLarge,
    /// The record has no encoding.
    Unencodable,
    /// Too many requests are under way to promise a record for each.
    TooManyIntents,
}

impl Reason {
    /// Every reason.
    pub const ALL: &'static [Reason] = &[
        Reason::JournalFull,
        Reason::DiskFull,
        Reason::DiskError,
        Reason::TooLarge,
        Reason::Unencodable,
        Reason::TooManyIntents,
    ];

    /// The name in labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::JournalFull => "journal_full",
            Reason::DiskFull => "disk_full",
            Reason::DiskError => "disk_error",
            Reason::TooLarge => "too_large",
            Reason::Unencodable => "unencodable",
            Reason::TooManyIntents => "too_many_intents",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<EncodeError> for Reason {
    fn from(error: EncodeError) -> Reason {
        match error {
            EncodeError::TooLarge => Reason::TooLarge,
            EncodeError::Json(_) => Reason::Unencodable,
        }
    }
}

/// An intent or record that the journal did not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot append to the journal: {reason}")]
pub struct AppendError {
    /// Why, for the counter.
    pub reason: Reason,
}

/// Why the journal could not be opened; each is for the operator to mend.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "journal directory {} is in use by another process; give each process its own `journal.dir`",
        dir.display()
    )]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// It cannot be made, locked or listed.
    #[error(
        "cannot use journal directory {}; `journal.dir` must name a directory that this process may write to",
        dir.display()
    )]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The maintenance thread could not be started.
    #[error("cannot start the journal's thread")]
    Thread(#[source] io::Error),
}

/// Records could not be read; to be tried again later.
#[derive(Debug, thiserror::Error)]
#[error("cannot read journal segment {}", path.display())]
pub struct ReadError {
    /// The file.
    pub path: PathBuf,
    /// What the operating system said.
    #[source]
    pub source: io::Error,
}

/// Not everything is durable.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// A file or the directory could not be synced.
    #[error("cannot sync the journal")]
    Fsync(#[source] io::Error),
    /// There are records in memory that the disk does not take.
    #[error("the journal holds records in memory: {reason}")]
    NotWritten {
        /// Why.
        reason: Reason,
    },
}

/// What opening found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Intents of the last process without a record, oldest first. The caller appends a record
    /// for each (see [`Intent::interrupted`]).
    pub orphans: Vec<Intent>,
    /// Records that are pending.
    pub records: u64,
    /// Segments that end in half a frame, as a crash leaves them.
    pub torn_tails: u64,
    /// Stretches of damage and frames that could not be understood.
    pub quarantined_frames: u64,
    /// Segments of another format version, left as they are.
    pub foreign_segments: u64,
    /// Segments that could not be read, left as they are.
    pub unreadable_segments: u64,
}

/// A place in the order of records, of this process alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(u64);

/// Records to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// In the order of their appending.
    pub records: Vec<UsageRecord>,
    /// What to [`Journal::commit`] once all of them are stored.
    pub upto: Position,
    /// Whether these are all that were pending: neither of the limits, nor the end of a segment,
    /// kept any out.
    pub is_all: bool,
}

/// The state of the journal, for gauges and counters. Totals count since the opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// Records appended and not committed, in memory or on disk.
    pub pending_records: u64,
    /// Bytes that the drain has yet to read, the intents among the records included.
    pub pending_bytes: u64,
    /// The pending records that are in memory only.
    pub memory_records: u64,
    /// Their bytes.
    pub memory_bytes: u64,
    /// When the oldest pending record was settled; unknown if there is none or it is unreadable.
    pub oldest_record_at: Option<DateTime<Utc>>,
    /// Intents without a record.
    pub open_intents: u64,
    /// Segment files.
    pub segments: u64,
    /// Their bytes.
    pub disk_bytes: u64,
    /// Records that went to disk at once.
    pub disk_records_total: u64,
    /// Records that went to memory at first.
    pub memory_records_total: u64,
    /// Records that were lost, by reason.
    pub dropped_total: Vec<(Reason, u64)>,
    /// Records committed, unreadable ones that were passed over included.
    pub committed_total: u64,
    /// Stretches of damage found, and records that turned out unreadable.
    pub quarantined_frames_total: u64,
    /// The part of them that was pending: records that will never be shipped. They are among
    /// `committed_total`.
    pub unreadable_records_total: u64,
    /// Segment files kept aside because of them.
    pub quarantined_segments_total: u64,
    /// Segments synced.
    pub fsyncs_total: u64,
    /// Failed syncs of a segment or of the directory.
    pub fsync_errors_total: u64,
    /// Failed creations and appends.
    pub write_errors_total: u64,
    /// Failures to write the cursor, remove a segment or keep one aside; each is made up for
    /// later.
    pub hint_errors_total: u64,
    /// Why records go to memory now, if they do.
    pub fault: Option<Reason>,
}

/// The journal. Dropping it stops its thread and gives up the directory; call
/// [`Journal::sync`] first.
#[derive(Debug)]
pub struct Journal {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the maintenance thread shares with the callers. Locks are taken in the order of the
/// fields: `reader`, `round`, `log`.
struct Shared {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    fsync: Fsync,
    interval: FsyncInterval,
    /// Serialises reading and committing; holds what could not be removed yet.
    reader: Mutex<Reader>,
    /// Serialises rounds of maintenance.
    round: Mutex<()>,
    log: Mutex<Log>,
    filled: Notify,
    /// The time of the record at a position, once it was read for the gauge.
    oldest: Mutex<Option<(u64, Option<DateTime<Utc>>)>>,
    stopping: Mutex<bool>,
    stop: Condvar,
    _lock: LockGuard,
}

#[derive(Debug, Default)]
struct Reader {
    /// Segments to remove, oldest first: a later one may hold what closes an earlier one's
    /// intents.
    doomed: VecDeque<Doomed>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("dir", &self.dir)
            .field("interval", &self.interval)
            .finish_non_exhaustive()
    }
}

/// A poisoned lock is taken all the same: a panic elsewhere must not stop the metering.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Journal {
    /// Opens the journal in its directory, which is made if missing, and starts its thread.
    ///
    /// # Errors
    /// If the directory is in use or not usable. What is in the files is never an error.
    pub fn open(
        config: &Config,
        disk: Arc<dyn Disk>,
        on_fsync: FsyncObserver,
    ) -> Result<(Journal, Recovery), OpenError> {
        let (mut journal, recovery) = Journal::open_unattended(config, disk, on_fsync)?;
        let shared = Arc::clone(&journal.shared);
        let thread = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || shared.attend())
            .map_err(OpenError::Thread)?;
        journal.thread = Some(thread);
        Ok((journal, recovery))
    }

    /// As [`Journal::open`], but without a thread: the caller runs [`Journal::maintain`].
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn open_unattended(
        config: &Config,
        disk: Arc<dyn Disk>,
        on_fsync: FsyncObserver,
    ) -> Result<(Journal, Recovery), OpenError> {
        let dir = config.dir.clone();
        let unusable = |source| OpenError::Directory {
            dir: dir.clone(),
            source,
        };
        disk.make_dir(&dir).map_err(unusable)?;
        let guard = disk
            .lock(&dir.join(LOCK_NAME))
            .map_err(unusable)?
            .ok_or_else(|| OpenError::Locked { dir: dir.clone() })?;
        let interval = config.fsync_interval;
        let limits = Limits {
            max_bytes: config.max_bytes.as_u64(),
            segment_bytes: config.segment_bytes.as_u64().min(log::SEGMENT_BYTES_MAX),
            memory_bytes: usize::try_from(config.memory_bytes.as_u64()).unwrap_or(usize::MAX),
            sync_always: interval == FsyncInterval::Always,
            hold_unsynced: interval != FsyncInterval::Never,
        };
        let fsync = Fsync {
            disk: Arc::clone(&disk),
            observe: on_fsync,
        };
        let (log, recovery) = Log::open(fsync.clone(), dir.clone(), limits).map_err(unusable)?;
        let shared = Shared {
            disk,
            dir,
            fsync,
            interval,
            reader: Mutex::default(),
            round: Mutex::default(),
            log: Mutex::new(log),
            filled: Notify::new(),
            oldest: Mutex::default(),
            stopping: Mutex::new(false),
            stop: Condvar::new(),
            _lock: guard,
        };
        // Segments that hold nothing pending, of a crash before their removal.
        shared.remove_stored(&mut lock(&shared.reader));
        let journal = Journal {
            shared: Arc::new(shared),
            thread: None,
        };
        Ok((journal, recovery))
    }

    /// Promises a record: should the process die before [`Journal::record`] or
    /// [`Journal::abandon`] of that id, the next opening returns the intent.
    ///
    /// # Errors
    /// If it could not be written, which costs no more than that.
    pub fn intent(&self, intent: &Intent) -> Result<(), AppendError> {
        let append = || {
            let bytes = segment::encode(Kind::Intent, intent.id, intent)?;
            lock(&self.shared.log).intent(Framed::new(Kind::Intent, intent.id, bytes))
        };
        append().map_err(|reason| AppendError { reason })
    }

    /// Appends a record, with one `write(2)` on the calling thread.
    ///
    /// # Errors
    /// If it is lost: neither the disk nor the memory takes it. It is counted by the reason why
    /// the disk does not.
    pub fn record(&self, record: &UsageRecord) -> Result<Placement, AppendError> {
        self.record_with(record, |_| ())
    }

    /// As [`Journal::record`]; `counted` is told what became of the record at the same moment at
    /// which [`Journal::stats_with`] sees it.
    ///
    /// # Errors
    /// As [`Journal::record`].
    pub fn record_with(
        &self,
        record: &UsageRecord,
        counted: impl FnOnce(Result<Placement, Reason>),
    ) -> Result<Placement, AppendError> {
        let encoded = segment::encode(Kind::Record, record.id, record);
        let mut log = lock(&self.shared.log);
        let first = log.pending() == 0;
        let placed = match encoded {
            Ok(bytes) => log.record(Framed::new(Kind::Record, record.id, bytes)),
            Err(error) => Err(Reason::from(error)),
        };
        counted(placed);
        match placed {
            Ok(placement) => {
                drop(log);
                if first {
                    self.shared.filled.notify_waiters();
                }
                Ok(placement)
            }
            Err(reason) => {
                log.count_dropped(reason);
                Err(AppendError { reason })
            }
        }
    }

    /// Takes an intent back: the request needs no record.
    pub fn abandon(&self, id: Uuid) {
        lock(&self.shared.log).abandon(id);
    }

    /// The first pending records, in order: at most `max_records` whose encoding takes at most
    /// about `max_bytes`, but at least one; the same ones again until they are committed. `None`
    /// if there are none.
    ///
    /// Blocks on reading a file.
    ///
    /// # Errors
    /// If they cannot be read now. After ten failures in a row the rest of that segment is given
    /// up and counted, and the file kept aside.
    pub fn next_batch(
        &self,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Option<Batch>, ReadError> {
        let mut reader = lock(&self.shared.reader);
        self.shared.next_batch(&mut reader, max_records, max_bytes)
    }

    /// Takes the records before a position as stored, and gives back the space of segments that
    /// hold no others. Returns how many records this committed.
    ///
    /// Blocks on writing the cursor and removing files.
    pub fn commit(&self, upto: Position) -> u64 {
        self.commit_with(upto, || ())
    }

    /// As [`Journal::commit`]; `counted` is called at the moment at which the records are no longer
    /// pending, before what that leaves to be done on disk.
    pub fn commit_with(&self, upto: Position, counted: impl FnOnce()) -> u64 {
        let mut reader = lock(&self.shared.reader);
        self.shared.commit(&mut reader, upto, counted)
    }

    /// Waits until there are pending records.
    pub async fn wait(&self) {
        loop {
            let filled = self.shared.filled.notified();
            if lock(&self.shared.log).pending() > 0 {
                return;
            }
            filled.await;
        }
    }

    /// Writes what is in memory, and makes everything durable. Blocks.
    ///
    /// # Errors
    /// If something is not durable.
    pub fn sync(&self) -> Result<(), SyncError> {
        let _round = lock(&self.shared.round);
        self.shared.resume();
        self.shared.sync_all().map_err(SyncError::Fsync)?;
        match lock(&self.shared.log).fault() {
            None => Ok(()),
            Some(reason) => Err(SyncError::NotWritten { reason }),
        }
    }

    /// One round of what the thread does: makes appended records durable, and moves records from
    /// memory to disk if it takes them again. Blocks.
    pub fn maintain(&self) {
        self.shared.maintain();
    }

    /// The state of the journal. May read one record from disk.
    pub fn stats(&self) -> Stats {
        self.stats_with(|| ())
    }

    /// As [`Journal::stats`]; `look` is called at the moment that they describe, while no record
    /// moves. It must be quick: requests wait for it.
    pub fn stats_with(&self, look: impl FnOnce()) -> Stats {
        let oldest = self.shared.oldest_record_at();
        let mut stats = {
            let log = lock(&self.shared.log);
            look();
            log.stats()
        };
        stats.oldest_record_at = oldest;
        stats
    }

    /// Puts aside a record that the store will never take, durably, and with the reason.
    ///
    /// # Errors
    /// If it could not be written, or the file has reached its limit.
    pub fn dead_letter(&self, record: &UsageRecord, reason: &str) -> Result<(), DeadLetterError> {
        let _reader = lock(&self.shared.reader);
        dead_letter::append(&*self.shared.disk, &self.shared.dir, record, reason)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        *lock(&self.shared.stopping) = true;
        self.shared.stop.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by its own hook.
            drop(thread.join());
        }
    }
}

impl Shared {
    /// The life of the maintenance thread.
    fn attend(&self) {
        let interval = match self.interval {
            FsyncInterval::Every(interval) => interval,
            FsyncInterval::Always | FsyncInterval::Never => MAINTENANCE_INTERVAL,
        };
        let mut stopping = lock(&self.stopping);
        while !*stopping {
            let waited = self.stop.wait_timeout(stopping, interval);
            stopping = waited.unwrap_or_else(PoisonError::into_inner).0;
            if *stopping {
                break;
            }
            drop(stopping);
            self.maintain();
            stopping = lock(&self.stopping);
        }
    }

    fn maintain(&self) {
        let _round = lock(&self.round);
        let (resume, sync) = lock(&self.log).next_round();
        if resume {
            self.resume();
        }
        let sync = sync && self.interval != FsyncInterval::Never;
        if sync && self.sync_all().is_err() && self.interval != FsyncInterval::Always {
            // Synced or not, a file outlives the process; memory does not.
            self.resume();
        }
    }

    fn resume(&self) {
        // Appends get their turn between the steps.
        loop {
            let step = lock(&self.log).resume_step();
            if step != Step::More {
                return;
            }
        }
    }

    /// Syncs all that was appended before, without holding the log meanwhile. What is appended
    /// in the meantime may wait for the next round.
    fn sync_all(&self) -> io::Result<()> {
        let (end, dirty) = {
            let mut log = lock(&self.log);
            (log.end(), log.take_dir_dirty())
        };
        if dirty && let Err(error) = self.disk.sync_dir(&self.dir) {
            lock(&self.log).dir_sync_failed();
            return Err(error);
        }
        loop {
            let Some(job) = lock(&self.log).next_sync(end) else {
                return Ok(());
            };
            let result = self.fsync.run(&job);
            let mut log = lock(&self.log);
            match result {
                Ok(()) => log.synced(job.number, job.len),
                Err(error) => {
                    log.sync_failed(job.number, &error);
                    return Err(error);
                }
            }
        }
    }

    fn next_batch(
        &self,
        reader: &mut Reader,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Option<Batch>, ReadError> {
        loop {
            let (plan, end) = {
                let mut log = lock(&self.log);
                (
                    log.plan(max_records, max_bytes),
                    log.committed() + log.pending(),
                )
            };
            let (records, upto) = match plan {
                Plan::Nothing => return Ok(None),
                Plan::Memory { frames, upto } => {
                    let first = upto.saturating_sub(wide(frames.len()));
                    let decoded = (first..)
                        .zip(frames)
                        .map(|(seq, frame)| (seq, decode(&frame.bytes, 0)))
                        .collect();
                    (self.readable(decoded, None), upto)
                }
                Plan::Disk {
                    number,
                    path,
                    starts,
                    end,
                    upto,
                } => match self.read(&path, &starts, end) {
                    Ok(decoded) => {
                        lock(&self.log).read_succeeded(number);
                        (self.readable(decoded, Some(number)), upto)
                    }
                    Err(source) => {
                        if lock(&self.log).read_failed(number) {
                            continue;
                        }
                        return Err(ReadError { path, source });
                    }
                },
            };
            let is_all = upto >= end;
            let upto = Position(upto);
            if records.is_empty() {
                // None of them can be read; they are counted and must not block the rest.
                self.commit(reader, upto, || ());
                continue;
            }
            return Ok(Some(Batch {
                records,
                upto,
                is_all,
            }));
        }
    }

    fn read(
        &self,
        path: &Path,
        starts: &[(u64, u32)],
        end: u64,
    ) -> io::Result<Vec<(u64, Option<UsageRecord>)>> {
        let Some(&(_, first)) = starts.first() else {
            return Ok(Vec::new());
        };
        let begin = u64::from(first);
        let len = usize::try_from(end.saturating_sub(begin)).unwrap_or(usize::MAX);
        let bytes = read_range(&*self.disk.open(path)?, begin, len)?;
        Ok(starts
            .iter()
            .map(|&(seq, start)| {
                let offset = usize::try_from(start.saturating_sub(first)).unwrap_or(usize::MAX);
                (seq, decode(&bytes, offset))
            })
            .collect())
    }

    /// Counts those that cannot be decoded, and returns the others.
    fn readable(
        &self,
        decoded: Vec<(u64, Option<UsageRecord>)>,
        number: Option<u64>,
    ) -> Vec<UsageRecord> {
        decoded
            .into_iter()
            .filter_map(|(seq, record)| {
                if record.is_none() {
                    lock(&self.log).unreadable(seq, number);
                }
                record
            })
            .collect()
    }

    fn commit(&self, reader: &mut Reader, upto: Position, counted: impl FnOnce()) -> u64 {
        let committed = {
            let mut log = lock(&self.log);
            counted();
            log.commit(upto.0)
        };
        self.write_cursor();
        self.remove_stored(reader);
        if lock(&self.log).fault() == Some(Reason::JournalFull) {
            self.resume();
        }
        committed
    }

    fn write_cursor(&self) {
        let (cursor, path) = {
            let log = lock(&self.log);
            (log.cursor(), log.cursor_path())
        };
        let new = path.with_extension("new");
        let written = self
            .disk
            .write(&new, cursor.as_bytes())
            .and_then(|()| self.disk.rename(&new, &path));
        if written.is_err() {
            lock(&self.log).hint_failed();
        }
    }

    /// Removes segments that hold nothing pending.
    fn remove_stored(&self, reader: &mut Reader) {
        let (doomed, moved) = lock(&self.log).prune();
        reader.doomed.extend(doomed);
        if moved && self.interval != FsyncInterval::Never {
            // The old copies of the intents must not go before the new ones are durable.
            let _round = lock(&self.round);
            if self.sync_all().is_err() {
                self.resume();
                return;
            }
        }
        while let Some(doomed) = reader.doomed.front() {
            if let Err(error) = doomed.execute(&*self.disk, &self.dir) {
                tracing::warn!(%error, dir = %self.dir.display(), "journal segment could not be removed; it is tried again");
                lock(&self.log).hint_failed();
                return;
            }
            lock(&self.log).removed(doomed);
            if doomed.is_damaged() {
                self.trim_quarantine();
            }
            reader.doomed.pop_front();
        }
    }

    fn trim_quarantine(&self) {
        let Ok(names) = self.disk.list(&self.dir) else {
            return;
        };
        let aside = log::quarantined(&names);
        let surplus = aside.len().saturating_sub(QUARANTINED_FILES_MAX);
        for name in aside.into_iter().take(surplus) {
            tracing::error!(
                name,
                "too many damaged journal segments are kept aside; the oldest is deleted"
            );
            if self.disk.remove(&self.dir.join(name)).is_err() {
                lock(&self.log).hint_failed();
            }
        }
    }

    /// When the first pending record was settled. While the drain is reading or committing, the
    /// last answer has to do: a scrape must not wait for a slow disk.
    fn oldest_record_at(&self) -> Option<DateTime<Utc>> {
        let (committed, pending) = {
            let log = lock(&self.log);
            (log.committed(), log.pending())
        };
        if pending == 0 {
            return None;
        }
        let known = *lock(&self.oldest);
        if let Some((_, oldest)) = known.filter(|(at, _)| *at == committed) {
            return oldest;
        }
        let Ok(mut reader) = self.reader.try_lock() else {
            return known.and_then(|(_, oldest)| oldest);
        };
        let batch = self.next_batch(&mut reader, 1, 0).ok().flatten()?;
        let oldest = batch.records.first().and_then(settled_at);
        *lock(&self.oldest) = Some((lock(&self.log).committed(), oldest));
        oldest
    }
}

/// The record in the frame at an offset, if it is intact.
fn decode(bytes: &[u8], start: usize) -> Option<UsageRecord> {
    let frame = segment::read_frame(bytes, start).filter(|frame| frame.kind == Kind::Record)?;
    codec::record(frame.id, frame.body)
}

/// When a record was settled: at its end, or its start if nobody saw the end.
fn settled_at(record: &UsageRecord) -> Option<DateTime<Utc>> {
    let micros = i64::try_from(record.duration_us.unwrap_or(0)).ok()?;
    record
        .started_at
        .checked_add_signed(TimeDelta::microseconds(micros))
}
