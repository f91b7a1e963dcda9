//! The state of the journal: which records are where, what is open, what the disk can do.
//!
//! One thread at a time; [`super::Journal`] holds it under its lock and does the slow work
//! (reading, `fsync`, removal) outside of it. Never waits for anything but a `write(2)`.
//!
//! Every record has a sequence number for as long as the process lives. Records on disk come
//! before records in memory: once one went to memory, later ones follow it there until
//! [`Log::resume_step`] has moved all of them to disk, so the order never changes. A record is
//! pending from its append until [`Log::commit`] passes its number.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::disk::{Disk, DiskFile, append_all, read_range};
use super::segment::{self, HEADER_BYTES, Header, Kind, Piece};
use super::{Placement, Reason, Recovery, Stats, codec};
use crate::clock;
use crate::record::Intent;

/// How many intents may be open at once. Far above any number of requests in flight; it bounds
/// what a caller that never closes them can make us hold.
const OPEN_INTENTS_MAX: usize = 65_536;

/// The part of `max_bytes` that is left to records: a sixteenth. Without an intent a request is
/// only missing if the process dies in it, without a record it is missing for certain.
const INTENTS_SPARE: u64 = 16;

/// How many bytes of appended, not yet synced frames are held, so that they can be written again
/// if `fsync` fails. 200 ms of 20 MB/s; beyond it the oldest are let go, and a failing `fsync`
/// leaves those to what the file still has.
const HELD_BYTES_MAX: usize = 4 << 20;

/// How many bytes one write moves from memory to disk, so that appends get their turn between.
const MOVE_BYTES_MAX: usize = 256 << 10;

/// After a failure, how many rounds of maintenance are skipped at most: 6.4 s at 200 ms.
const HOLD_OFF_ROUNDS_MAX: u32 = 32;

/// How often reading a segment may fail in a row before its records are given up, so that one
/// bad sector does not keep all later records from being shipped.
const READ_FAILURES_MAX: u32 = 10;

/// The largest file that is read as a segment.
pub(super) const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// The largest cursor file that is read: 20,000 segments.
const CURSOR_BYTES_MAX: usize = 1 << 20;

const SEGMENT_SUFFIX: &str = ".seg";
const QUARANTINE_SUFFIX: &str = ".seg.bad";
const CURSOR_NAME: &str = "cursor";
const HEADER_LEN: u64 = 32;

/// What the configuration allows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) max_bytes: u64,
    pub(super) segment_bytes: u64,
    pub(super) memory_bytes: usize,
    /// Whether a record is synced before it is acknowledged.
    pub(super) sync_always: bool,
    /// Whether unsynced frames are held for a failing `fsync`.
    pub(super) hold_unsynced: bool,
}

/// An encoded frame.
#[derive(Debug, Clone)]
pub(super) struct Framed {
    pub(super) kind: Kind,
    pub(super) id: Uuid,
    pub(super) bytes: Arc<[u8]>,
}

impl Framed {
    pub(super) fn new(kind: Kind, id: Uuid, bytes: Vec<u8>) -> Framed {
        let bytes = bytes.into();
        Framed { kind, id, bytes }
    }

    fn abandoned(id: Uuid) -> Framed {
        Framed::new(Kind::Abandoned, id, segment::encode_abandoned(id))
    }

    fn len(&self) -> u64 {
        wide(self.bytes.len())
    }
}

/// A segment file that is still there.
#[derive(Debug)]
struct Segment {
    number: u64,
    /// From its header; nil if that is damaged.
    id: Uuid,
    /// Where the next frame goes, or the end of the last intact one.
    len: u64,
    /// What the file takes on disk, as far as we know.
    file_bytes: u64,
    /// The sequence number of its first indexed record.
    first: u64,
    /// Where its indexed records start.
    starts: Vec<u32>,
    /// Up to where it is known to be durable, or given up as such.
    synced: u64,
    /// Open while there may be something to sync.
    file: Option<Arc<dyn DiskFile>>,
    /// Holds something unreadable, so that the file is kept aside in the end.
    damaged: bool,
    /// Holds frames beyond `len` that were written again elsewhere.
    cut: bool,
    read_failures: u32,
    /// Up to where the last process had its records stored; those are not indexed.
    stored: u64,
}

impl Segment {
    /// The sequence number after its last record.
    fn end(&self) -> u64 {
        self.first.saturating_add(wide(self.starts.len()))
    }

    fn holds(&self, seq: u64) -> bool {
        (self.first..self.end()).contains(&seq)
    }

    /// Where record number `seq` starts.
    fn start_of(&self, seq: u64) -> Option<u64> {
        let index = usize::try_from(seq.checked_sub(self.first)?).ok()?;
        self.starts.get(index).copied().map(u64::from)
    }
}

/// An intent without a record, or what closes one on disk once the disk is well.
#[derive(Debug)]
struct Open {
    frame: Framed,
    /// The segment that holds the frame; `None` until it can be written.
    segment: Option<u64>,
}

/// A frame that is written but not known to be durable.
#[derive(Debug)]
struct Held {
    segment: u64,
    start: u64,
    frame: Framed,
}

/// Counts since the journal was opened.
#[derive(Debug, Default)]
struct Counters {
    disk_records: u64,
    memory_records: u64,
    dropped: Vec<(Reason, u64)>,
    committed: u64,
    quarantined_frames: u64,
    unreadable_records: u64,
    quarantined_segments: u64,
    fsyncs: u64,
    fsync_errors: u64,
    write_errors: u64,
    hint_errors: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Log {
    fsync: Fsync,
    dir: PathBuf,
    limits: Limits,
    segments: VecDeque<Segment>,
    /// The file of the last segment, while it takes appends.
    active: Option<Arc<dyn DiskFile>>,
    next_number: u64,
    next_seq: u64,
    committed: u64,
    memory: VecDeque<Framed>,
    memory_bytes: usize,
    open: HashMap<Uuid, Open>,
    held: VecDeque<Held>,
    held_bytes: usize,
    /// Bytes of all segment files that are still there.
    disk_bytes: u64,
    /// Why records go to memory now.
    fault: Option<Reason>,
    resume_backoff: Backoff,
    sync_backoff: Backoff,
    dir_dirty: bool,
    /// Said once, as it may come and go with every segment while a store catches up.
    warned_full: bool,
    /// Pending records that turned out to be unreadable.
    unreadable: BTreeSet<u64>,
    counters: Counters,
}

/// Where the next records are.
#[derive(Debug)]
pub(super) enum Plan {
    Nothing,
    Disk {
        number: u64,
        path: PathBuf,
        /// The numbers and offsets of the readable ones.
        starts: Vec<(u64, u32)>,
        end: u64,
        upto: u64,
    },
    Memory {
        frames: Vec<Framed>,
        upto: u64,
    },
}

/// A segment to be synced.
#[derive(Debug)]
pub(super) struct SyncJob {
    pub(super) number: u64,
    pub(super) len: u64,
    pub(super) path: PathBuf,
    pub(super) file: Option<Arc<dyn DiskFile>>,
}

/// A segment file whose records are all stored.
#[derive(Debug)]
pub(super) struct Doomed {
    number: u64,
    damaged: bool,
    bytes: u64,
}

/// Makes files durable, and tells how long each took.
#[derive(Clone)]
pub(super) struct Fsync {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) observe: super::FsyncObserver,
}

impl std::fmt::Debug for Fsync {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fsync").field("disk", &self.disk).finish()
    }
}

impl Fsync {
    pub(super) fn run(&self, job: &SyncJob) -> io::Result<()> {
        let file = match &job.file {
            Some(file) => Arc::clone(file),
            None => self.disk.open(&job.path)?,
        };
        let started = clock::instant();
        let result = file.sync();
        (self.observe)(started.elapsed());
        result
    }
}

/// Rounds of maintenance to leave out after failures, twice as many each time.
#[derive(Debug, Default)]
struct Backoff {
    rounds: u32,
    left: u32,
}

impl Backoff {
    fn fail(&mut self) {
        self.rounds = self.rounds.saturating_mul(2).clamp(1, HOLD_OFF_ROUNDS_MAX);
        self.left = self.rounds;
    }

    fn reset(&mut self) {
        *self = Backoff::default();
    }

    /// Whether to leave this round out.
    fn holds(&mut self) -> bool {
        let holds = self.left > 0;
        self.left = self.left.saturating_sub(1);
        holds
    }
}

/// How far [`Log::resume_step`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Records go to disk again.
    Done,
    /// Some moved; call again.
    More,
    /// The disk does not take them yet.
    Stuck,
}

impl Log {
    /// Reads what is on disk. A file that cannot be read or understood is left where it is.
    pub(super) fn open(fsync: Fsync, dir: PathBuf, limits: Limits) -> io::Result<(Log, Recovery)> {
        let names = fsync.disk.list(&dir)?;
        let number = |name: &str, suffix| name.strip_suffix(suffix)?.parse::<u64>().ok();
        let mut numbers: Vec<u64> = names
            .iter()
            .filter_map(|name| number(name, SEGMENT_SUFFIX))
            .collect();
        numbers.sort_unstable();
        let quarantined = names
            .iter()
            .filter_map(|name| number(name, QUARANTINE_SUFFIX));
        let highest = numbers.iter().copied().chain(quarantined).max();
        let mut log = Log {
            fsync,
            dir,
            limits,
            segments: VecDeque::new(),
            active: None,
            next_number: highest.map_or(1, |number| number.saturating_add(1)),
            next_seq: 0,
            committed: 0,
            memory: VecDeque::new(),
            memory_bytes: 0,
            open: HashMap::new(),
            held: VecDeque::new(),
            held_bytes: 0,
            disk_bytes: 0,
            fault: None,
            resume_backoff: Backoff::default(),
            sync_backoff: Backoff::default(),
            // What the last process made may not be durable either.
            dir_dirty: true,
            warned_full: false,
            unreadable: BTreeSet::new(),
            counters: Counters::default(),
        };
        let cursor = log.read_cursor().unwrap_or_default();
        let mut recovery = Recovery::default();
        for number in numbers {
            log.recover(number, &cursor, &mut recovery);
        }
        recovery.orphans = log.orphans();
        recovery.records = log.next_seq;
        recovery.quarantined_frames = log.counters.quarantined_frames;
        Ok((log, recovery))
    }

    fn recover(&mut self, number: u64, cursor: &HashMap<Uuid, u64>, recovery: &mut Recovery) {
        let path = segment_path(&self.dir, number);
        let read = || {
            let file = self.fsync.disk.open(&path)?;
            let len = file.size()?;
            let len = usize::try_from(len)
                .ok()
                .filter(|_| len <= SEGMENT_BYTES_MAX)
                .ok_or(io::ErrorKind::FileTooLarge)?;
            read_range(&*file, 0, len)
        };
        let bytes = match read() {
            Ok(bytes) => bytes,
            Err(error) => {
                recovery.unreadable_segments += 1;
                tracing::error!(%error, path = %path.display(), "journal segment is unreadable; it is left as it is");
                return;
            }
        };
        let (id, mut damaged) = match segment::read_header(&bytes) {
            Header::Known { id } => (id, false),
            Header::Foreign { version } => {
                recovery.foreign_segments += 1;
                tracing::error!(version, path = %path.display(), "journal segment has another format version; it is left as it is");
                return;
            }
            // A file that was made but never filled is what a power loss leaves.
            Header::Broken => (Uuid::nil(), !bytes.iter().all(|&byte| byte == 0)),
        };
        // The cursor is believed about the segments that it names, and no others.
        let stored = cursor.get(&id).copied().unwrap_or(0);
        let mut len = HEADER_LEN.min(wide(bytes.len()));
        let mut starts = Vec::new();
        for piece in segment::scan(&bytes) {
            match piece {
                Piece::Frame { start, end, frame } => {
                    len = wide(end);
                    match frame.kind {
                        Kind::Intent => {
                            let bytes = bytes.get(start..end).unwrap_or_default().to_vec();
                            let frame = Framed::new(frame.kind, frame.id, bytes);
                            let segment = Some(number);
                            self.open.insert(frame.id, Open { frame, segment });
                        }
                        Kind::Record | Kind::Abandoned => {
                            self.open.remove(&frame.id);
                        }
                    }
                    if frame.kind == Kind::Record && wide(start) >= stored {
                        starts.extend(u32::try_from(start));
                    }
                }
                Piece::Bad { start, end } => {
                    self.counters.quarantined_frames += 1;
                    damaged = true;
                    tracing::error!(start, end, path = %path.display(), "journal segment is damaged; the file will be kept aside");
                }
                Piece::Torn { start } => {
                    recovery.torn_tails += 1;
                    tracing::warn!(start, path = %path.display(), "journal segment ends in half a frame");
                }
            }
        }
        let file_bytes = wide(bytes.len());
        self.disk_bytes += file_bytes;
        self.segments.push_back(Segment {
            number,
            id,
            len,
            file_bytes,
            first: self.next_seq,
            // The process that wrote it may have died before it was durable.
            synced: 0,
            file: None,
            damaged,
            cut: false,
            read_failures: 0,
            stored,
            starts,
        });
        self.next_seq = self
            .segments
            .back()
            .map_or(self.next_seq, |segment| segment.end());
    }

    /// The intents that were open when the last process ended.
    fn orphans(&mut self) -> Vec<Intent> {
        let mut orphans = Vec::with_capacity(self.open.len());
        let mut undecodable = Vec::new();
        for (id, open) in &self.open {
            let frame = segment::read_frame(&open.frame.bytes, 0);
            match frame.and_then(|frame| codec::intent(frame.id, frame.body)) {
                Some(intent) => orphans.push(intent),
                None => undecodable.push((*id, open.segment)),
            }
        }
        for (id, number) in undecodable {
            self.open.remove(&id);
            self.counters.quarantined_frames += 1;
            self.damage(number);
        }
        orphans.sort_by_key(|intent| (intent.started_at, intent.id));
        orphans
    }

    fn segment_mut(&mut self, number: u64) -> Option<&mut Segment> {
        self.segments
            .iter_mut()
            .find(|segment| segment.number == number)
    }

    fn damage(&mut self, number: Option<u64>) {
        if let Some(segment) = number.and_then(|number| self.segment_mut(number)) {
            segment.damaged = true;
        }
    }

    pub(super) fn intent(&mut self, frame: Framed) -> Result<(), Reason> {
        if let Some(reason) = self.fault {
            return Err(reason);
        }
        if self.open.len() >= OPEN_INTENTS_MAX {
            return Err(Reason::TooManyIntents);
        }
        if self.room() < self.limits.max_bytes / INTENTS_SPARE {
            return Err(Reason::JournalFull);
        }
        let segment = Some(self.write(std::slice::from_ref(&frame), false)?);
        self.open.insert(frame.id, Open { frame, segment });
        Ok(())
    }

    /// Appends a record to disk, or holds it in memory if the disk does not take it.
    pub(super) fn record(&mut self, frame: Framed) -> Result<Placement, Reason> {
        if self.fault.is_none() && self.write(std::slice::from_ref(&frame), false).is_ok() {
            self.next_seq += 1;
            self.open.remove(&frame.id);
            if self.limits.sync_always && !self.sync_inline() {
                self.counters.memory_records += 1;
                return Ok(Placement::Memory);
            }
            self.counters.disk_records += 1;
            return Ok(Placement::Disk);
        }
        let reason = self.fault.unwrap_or(Reason::DiskError);
        let len = frame.bytes.len();
        if self.memory_bytes.saturating_add(len) > self.limits.memory_bytes {
            self.open.remove(&frame.id);
            return Err(reason);
        }
        // Its intent may be on disk, where the record may never get to; a later start must not
        // take the request for an interrupted one.
        if let Some(open) = self.open.get_mut(&frame.id) {
            open.frame = Framed::abandoned(frame.id);
            open.segment = None;
        }
        self.memory.push_back(frame);
        self.memory_bytes += len;
        self.next_seq += 1;
        self.counters.memory_records += 1;
        Ok(Placement::Memory)
    }

    pub(super) fn count_dropped(&mut self, reason: Reason) {
        let dropped = &mut self.counters.dropped;
        match dropped.iter_mut().find(|(of, _)| *of == reason) {
            Some((_, count)) => *count += 1,
            None => dropped.push((reason, 1)),
        }
    }

    pub(super) fn abandon(&mut self, id: Uuid) {
        let Some(mut open) = self.open.remove(&id) else {
            return;
        };
        let frame = Framed::abandoned(id);
        if self.fault.is_some() || self.write(std::slice::from_ref(&frame), false).is_err() {
            open.frame = frame;
            open.segment = None;
            self.open.insert(id, open);
        }
    }

    /// The sequence number of the first record in memory, or of the next one on disk.
    fn memory_seq(&self) -> u64 {
        self.next_seq.saturating_sub(wide(self.memory.len()))
    }

    /// Appends frames to the active segment with one write; returns its number.
    ///
    /// Fails with the file as it was before, and then sets the fault that sends records to
    /// memory.
    fn write(&mut self, frames: &[Framed], beyond_limit: bool) -> Result<u64, Reason> {
        let joined;
        let bytes: &[u8] = match frames {
            [frame] => &frame.bytes,
            _ => {
                joined = frames
                    .iter()
                    .flat_map(|frame| frame.bytes.iter().copied())
                    .collect::<Vec<u8>>();
                &joined
            }
        };
        let len = wide(bytes.len());
        if !beyond_limit && self.room() < len {
            return Err(self.fill());
        }
        let file = self.active_for(len)?;
        let appended = append_all(&*file, bytes);
        let memory_seq = self.memory_seq();
        let Some(segment) = self.segments.back_mut() else {
            return Err(Reason::DiskError);
        };
        if let Err(error) = appended {
            // What follows must not come after half a frame. If the file cannot be cut either, a
            // scan finds its way past the rest.
            if file.truncate(segment.len).is_err() {
                segment.file_bytes += len;
                self.disk_bytes += len;
            }
            self.active = None;
            self.remove_if_empty();
            return Err(self.fail(&error));
        }
        for frame in frames {
            if frame.kind == Kind::Record {
                if segment.starts.is_empty() {
                    segment.first = memory_seq;
                }
                segment.starts.extend(u32::try_from(segment.len));
            }
            if self.limits.hold_unsynced {
                self.held_bytes += frame.bytes.len();
                self.held.push_back(Held {
                    segment: segment.number,
                    start: segment.len,
                    frame: frame.clone(),
                });
            }
            segment.len += frame.len();
        }
        segment.file_bytes += len;
        self.disk_bytes += len;
        let number = segment.number;
        while self.held_bytes > HELD_BYTES_MAX {
            self.let_go();
        }
        Ok(number)
    }

    fn let_go(&mut self) {
        let held = self.held.pop_front();
        let bytes = held.map_or(self.held_bytes, |held| held.frame.bytes.len());
        self.held_bytes = self.held_bytes.saturating_sub(bytes);
    }

    /// How many more bytes of frames the journal may take.
    fn room(&self) -> u64 {
        let header = if self.active.is_none() { HEADER_LEN } else { 0 };
        self.limits
            .max_bytes
            .saturating_sub(self.disk_bytes)
            .saturating_sub(header)
    }

    /// The file to append that many bytes to: the active one, or a new one if that is full.
    fn active_for(&mut self, len: u64) -> Result<Arc<dyn DiskFile>, Reason> {
        if let Some(segment) = self.segments.back() {
            let full = segment.len.saturating_add(len) > self.limits.segment_bytes
                && segment.len > HEADER_LEN;
            // The records of a segment are numbered without gaps, but some may have been
            // committed straight from memory since its last one.
            let gap = !segment.starts.is_empty() && segment.end() != self.memory_seq();
            if full || gap {
                self.active = None;
            }
        }
        if let Some(file) = &self.active {
            return Ok(Arc::clone(file));
        }
        let number = self.next_number;
        self.next_number = self.next_number.saturating_add(1);
        let path = segment_path(&self.dir, number);
        let id = clock::new_id();
        let created = self.fsync.disk.create(&path).and_then(|file| {
            match append_all(&*file, &segment::header(id)) {
                Ok(()) => Ok(file),
                Err(error) => {
                    // Left behind, it would read as a torn segment; no harm.
                    if self.fsync.disk.remove(&path).is_err() {
                        self.counters.write_errors += 1;
                    }
                    Err(error)
                }
            }
        });
        let file = created.map_err(|error| self.fail(&error))?;
        self.dir_dirty = true;
        self.disk_bytes += HEADER_LEN;
        self.segments.push_back(Segment {
            number,
            id,
            len: HEADER_LEN,
            file_bytes: HEADER_LEN,
            first: self.memory_seq(),
            starts: Vec::new(),
            synced: 0,
            file: Some(Arc::clone(&file)),
            damaged: false,
            cut: false,
            read_failures: 0,
            stored: 0,
        });
        self.active = Some(Arc::clone(&file));
        Ok(file)
    }

    /// Takes the last segment away if nothing was ever written to it, so that a disk that fails
    /// again and again does not fill with empty files.
    fn remove_if_empty(&mut self) {
        let empty = self.active.is_none()
            && self
                .segments
                .back()
                .is_some_and(|segment| segment.len <= HEADER_LEN && !segment.damaged);
        if !empty {
            return;
        }
        if let Some(segment) = self.segments.pop_back() {
            if self
                .fsync
                .disk
                .remove(&segment_path(&self.dir, segment.number))
                .is_err()
            {
                self.segments.push_back(segment);
            } else {
                self.disk_bytes = self.disk_bytes.saturating_sub(segment.file_bytes);
            }
        }
    }

    /// Notes that the journal has reached its limit.
    fn fill(&mut self) -> Reason {
        if !std::mem::replace(&mut self.warned_full, true) {
            tracing::warn!(bytes = self.disk_bytes, dir = %self.dir.display(), "journal has reached its limit; records are held in memory");
        }
        // Sealed, or it could never be deleted and nothing would make room.
        self.active = None;
        self.fault = Some(Reason::JournalFull);
        Reason::JournalFull
    }

    /// Notes that the disk failed; records go to memory from here on.
    fn fail(&mut self, error: &io::Error) -> Reason {
        let reason = match error.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Reason::DiskFull,
            _ => Reason::DiskError,
        };
        self.counters.write_errors += 1;
        if self.fault.is_none() {
            tracing::warn!(%error, dir = %self.dir.display(), "journal cannot write; records are held in memory");
        }
        self.fault = Some(reason);
        self.resume_backoff.fail();
        reason
    }

    /// Whether this round of maintenance should try to write again, and whether to sync.
    pub(super) fn next_round(&mut self) -> (bool, bool) {
        let sync = !self.sync_backoff.holds();
        let resume = !self.resume_backoff.holds();
        // Under `always` what is written is synced at once, so both wait for each other.
        (resume && (sync || !self.limits.sync_always), sync)
    }

    pub(super) fn fault(&self) -> Option<Reason> {
        self.fault
    }

    /// Moves some records from memory to disk, if the disk takes them again.
    pub(super) fn resume_step(&mut self) -> Step {
        if self.fault.is_none() {
            return Step::Done;
        }
        if !self.memory.is_empty() {
            let chunk = self.next_chunk();
            if chunk.is_empty() {
                self.fill();
                return Step::Stuck;
            }
            if self.write(&chunk, false).is_err() {
                return Step::Stuck;
            }
            for frame in &chunk {
                self.memory.pop_front();
                self.memory_bytes = self.memory_bytes.saturating_sub(frame.bytes.len());
            }
            return Step::More;
        }
        if self.room() == 0 {
            self.fill();
            return Step::Stuck;
        }
        if self.active_for(0).is_err() || self.place_open().is_err() {
            return Step::Stuck;
        }
        self.tidy();
        self.fault = None;
        if !self.limits.hold_unsynced {
            // Else the next sync that succeeds does it.
            self.resume_backoff.reset();
        }
        tracing::info!(dir = %self.dir.display(), "journal writes to disk again");
        Step::Done
    }

    fn next_chunk(&self) -> Vec<Framed> {
        let room = self.room();
        let mut bytes = 0;
        self.memory
            .iter()
            .enumerate()
            .take_while(|(index, frame)| {
                bytes += frame.bytes.len();
                wide(bytes) <= room && (*index == 0 || bytes <= MOVE_BYTES_MAX)
            })
            .map(|(_, frame)| frame.clone())
            .collect()
    }

    /// Writes what is open and not on disk.
    fn place_open(&mut self) -> Result<(), Reason> {
        let frames: Vec<Framed> = self
            .open
            .values()
            .filter(|open| open.segment.is_none())
            .map(|open| open.frame.clone())
            .collect();
        self.place(&frames)
    }

    fn place(&mut self, frames: &[Framed]) -> Result<(), Reason> {
        for frame in frames {
            // They are few and small, and without them a segment could never be deleted.
            let number = self.write(std::slice::from_ref(frame), true)?;
            if frame.kind == Kind::Intent {
                if let Some(open) = self.open.get_mut(&frame.id) {
                    open.segment = Some(number);
                }
            } else {
                self.open.remove(&frame.id);
            }
        }
        Ok(())
    }

    /// Removes what was written again elsewhere, best effort: a copy that stays is replayed.
    fn tidy(&mut self) {
        let (disk, dir) = (&self.fsync.disk, &self.dir);
        let mut freed = 0;
        self.segments.retain_mut(|segment| {
            if !std::mem::take(&mut segment.cut) {
                return true;
            }
            let path = segment_path(dir, segment.number);
            let empty = segment.len <= HEADER_LEN && !segment.damaged;
            if empty && disk.remove(&path).is_ok() {
                freed += segment.file_bytes;
                return false;
            }
            let cut = disk.open(&path).and_then(|file| file.truncate(segment.len));
            if cut.is_ok() {
                freed += segment.file_bytes.saturating_sub(segment.len);
                segment.file_bytes = segment.len;
            }
            true
        });
        self.disk_bytes = self.disk_bytes.saturating_sub(freed);
        self.dir_dirty = true;
    }

    /// Where the log ends: the last segment and its length.
    pub(super) fn end(&self) -> (u64, u64) {
        let last = self.segments.back();
        last.map_or((0, 0), |segment| (segment.number, segment.len))
    }

    /// The first segment with something before `end` that is not yet durable.
    pub(super) fn next_sync(&self, end: (u64, u64)) -> Option<SyncJob> {
        let (last, last_len) = end;
        let segment = self
            .segments
            .iter()
            .take_while(|segment| segment.number <= last)
            .find(|segment| {
                let len = if segment.number == last {
                    segment.len.min(last_len)
                } else {
                    segment.len
                };
                segment.synced < len
            })?;
        Some(SyncJob {
            number: segment.number,
            len: segment.len,
            path: segment_path(&self.dir, segment.number),
            file: segment.file.clone(),
        })
    }

    /// Whether files were made, renamed or removed since the directory was last synced. The
    /// caller syncs it, or gives the flag back.
    pub(super) fn take_dir_dirty(&mut self) -> bool {
        std::mem::take(&mut self.dir_dirty)
    }

    pub(super) fn dir_sync_failed(&mut self) {
        self.dir_dirty = true;
        self.counters.fsync_errors += 1;
        self.sync_backoff.fail();
    }

    /// Notes that a segment is durable up to a length.
    pub(super) fn synced(&mut self, number: u64, len: u64) {
        self.counters.fsyncs += 1;
        self.sync_backoff.reset();
        if self.fault.is_none() {
            self.resume_backoff.reset();
        }
        let active =
            self.active.is_some() && self.segments.back().is_some_and(|s| s.number == number);
        if let Some(segment) = self.segment_mut(number) {
            segment.synced = segment.synced.max(len);
            if segment.synced >= segment.len && !active {
                segment.file = None;
            }
        }
        while self
            .held
            .front()
            .is_some_and(|held| (held.segment, held.start) < (number, len))
        {
            self.let_go();
        }
    }

    /// Notes that a segment could not be made durable. Its pages may be lost while they are
    /// marked clean, so it is never synced again: what is held of it, and all that was appended
    /// after that, goes back to memory, from where [`Log::resume_step`] writes it to a new file.
    pub(super) fn sync_failed(&mut self, number: u64, error: &io::Error) {
        self.counters.fsync_errors += 1;
        self.sync_backoff.fail();
        tracing::error!(%error, number, dir = %self.dir.display(), "journal segment could not be synced; it is written again");
        let held_from = self.held.front().map(|held| held.segment);
        if held_from.is_some_and(|from| number < from) {
            // Of a segment of an earlier process nothing is held; the page cache has it still.
            if let Some(segment) = self.segment_mut(number) {
                segment.synced = segment.len;
                segment.file = None;
            }
            return;
        }
        self.active = None;
        let held = std::mem::take(&mut self.held);
        self.held_bytes = 0;
        let from = held.front().map(|held| (held.segment, held.start));
        for segment in &mut self.segments {
            if let Some((of, start)) = from.filter(|(of, _)| segment.number >= *of) {
                let start = if segment.number == of {
                    start
                } else {
                    HEADER_LEN
                };
                let kept = segment
                    .starts
                    .partition_point(|&record| u64::from(record) < start);
                segment.starts.truncate(kept);
                segment.len = start;
                segment.synced = start;
                segment.cut = true;
                segment.file = None;
            }
            if segment.number == number {
                segment.synced = segment.len;
                segment.file = None;
            }
        }
        let mut seq = self.memory_seq();
        for Held { frame, .. } in held.into_iter().rev() {
            match frame.kind {
                Kind::Record => {
                    seq = seq.saturating_sub(1);
                    if seq >= self.committed {
                        self.memory_bytes += frame.bytes.len();
                        self.memory.push_front(frame);
                    }
                }
                Kind::Intent => {
                    if let Some(open) = self.open.get_mut(&frame.id) {
                        open.segment = None;
                    }
                }
                Kind::Abandoned => {
                    let segment = None;
                    self.open.insert(frame.id, Open { frame, segment });
                }
            }
        }
        self.fault = Some(Reason::DiskError);
    }

    /// Syncs on the appending thread; `false` if the record is back in memory.
    fn sync_inline(&mut self) -> bool {
        if self.take_dir_dirty() && self.fsync.disk.sync_dir(&self.dir).is_err() {
            self.dir_sync_failed();
        }
        let end = self.end();
        while let Some(job) = self.next_sync(end) {
            let (number, len) = (job.number, job.len);
            match self.fsync.run(&job) {
                Ok(()) => self.synced(number, len),
                Err(error) => {
                    self.sync_failed(number, &error);
                    return false;
                }
            }
        }
        !self.dir_dirty
    }

    /// Where the first pending records are.
    pub(super) fn plan(&mut self, max_records: usize, max_bytes: usize) -> Plan {
        let seq = self.committed;
        if seq >= self.next_seq {
            return Plan::Nothing;
        }
        if seq >= self.memory_seq() {
            let mut bytes = 0;
            let frames: Vec<Framed> = self
                .memory
                .iter()
                .take(max_records.max(1))
                .enumerate()
                .take_while(|(index, frame)| {
                    bytes += frame.bytes.len();
                    *index == 0 || bytes <= max_bytes
                })
                .map(|(_, frame)| frame.clone())
                .collect();
            let upto = seq.saturating_add(wide(frames.len()));
            return Plan::Memory { frames, upto };
        }
        let Some(segment) = self.segments.iter().find(|segment| segment.holds(seq)) else {
            return Plan::Nothing;
        };
        let index = usize::try_from(seq - segment.first).unwrap_or(usize::MAX);
        let rest = segment.starts.get(index..).unwrap_or_default();
        let begin = rest.first().copied().map_or(0, u64::from);
        let limit = begin.saturating_add(wide(max_bytes));
        // A record ends where the next one starts, at the latest.
        let end_of = |index: usize| rest.get(index + 1).copied().map_or(segment.len, u64::from);
        let count = (0..rest.len().min(max_records))
            .take_while(|&index| end_of(index) <= limit)
            .count()
            .max(1);
        Plan::Disk {
            number: segment.number,
            path: segment_path(&self.dir, segment.number),
            starts: (seq..)
                .zip(rest.iter().take(count).copied())
                .filter(|(seq, _)| !self.unreadable.contains(seq))
                .collect(),
            end: end_of(count - 1),
            upto: seq.saturating_add(wide(count)),
        }
    }

    /// Notes that a pending record cannot be read; counted once.
    pub(super) fn unreadable(&mut self, seq: u64, number: Option<u64>) {
        if self.unreadable.insert(seq) {
            self.counters.quarantined_frames += 1;
            self.damage(number);
            tracing::error!(?number, dir = %self.dir.display(), "journal record is unreadable; its file will be kept aside");
        }
    }

    /// Notes that a segment could not be read. After too many times in a row its records are
    /// given up: `true`.
    pub(super) fn read_failed(&mut self, number: u64) -> bool {
        let committed = self.committed;
        let Some(segment) = self.segment_mut(number) else {
            return false;
        };
        segment.read_failures += 1;
        if segment.read_failures < READ_FAILURES_MAX {
            return false;
        }
        for seq in committed..segment.end() {
            self.unreadable(seq, Some(number));
        }
        true
    }

    pub(super) fn read_succeeded(&mut self, number: u64) {
        if let Some(segment) = self.segment_mut(number) {
            segment.read_failures = 0;
        }
    }

    /// Takes records before `upto` as stored; returns how many that are.
    pub(super) fn commit(&mut self, upto: u64) -> u64 {
        let upto = upto.min(self.next_seq);
        let committed = upto.saturating_sub(self.committed);
        self.committed = self.committed.max(upto);
        while self.memory_seq() < self.committed {
            match self.memory.pop_front() {
                Some(frame) => {
                    self.memory_bytes = self.memory_bytes.saturating_sub(frame.bytes.len());
                }
                None => break,
            }
        }
        let pending = self.unreadable.split_off(&self.committed);
        self.counters.unreadable_records += wide(self.unreadable.len());
        self.unreadable = pending;
        self.counters.committed += committed;
        committed
    }

    /// Takes segments out of the log whose records are all committed, oldest first, after their
    /// open intents have been written to the active one. The flag says whether any were.
    pub(super) fn prune(&mut self) -> (Vec<Doomed>, bool) {
        let count = self.prunable();
        let last = count
            .checked_sub(1)
            .and_then(|last| self.segments.get(last));
        let Some(last) = last.map(|segment| segment.number) else {
            return (Vec::new(), false);
        };
        let intents: Vec<Framed> = self
            .open
            .values()
            .filter(|open| open.segment.is_some_and(|number| number <= last))
            .map(|open| open.frame.clone())
            .collect();
        if !intents.is_empty() {
            let broken = self
                .fault
                .is_some_and(|reason| reason != Reason::JournalFull);
            if broken || self.place(&intents).is_err() {
                return (Vec::new(), false);
            }
        }
        let doomed = self.segments.drain(..count).map(|segment| Doomed {
            number: segment.number,
            damaged: segment.damaged,
            bytes: segment.file_bytes,
        });
        (doomed.collect(), !intents.is_empty())
    }

    /// How many of the oldest segments hold nothing pending and give back at least as much as
    /// moving their open intents takes; else intents that fill whole segments would be moved
    /// again and again.
    fn prunable(&self) -> usize {
        let done = |(index, segment): &(usize, &Segment)| {
            let active = self.active.is_some() && index + 1 == self.segments.len();
            let stored = segment.starts.is_empty() || segment.end() <= self.committed;
            // What was cut off may be in memory still, and here alone on disk.
            stored && !active && !segment.cut
        };
        let (mut count, mut bytes, mut moved) = (0, 0, 0);
        for (index, segment) in self.segments.iter().enumerate().take_while(done) {
            bytes += segment.len;
            moved += self
                .open
                .values()
                .filter(|open| open.segment == Some(segment.number))
                .map(|open| open.frame.len())
                .sum::<u64>();
            if moved.saturating_mul(2) <= bytes {
                count = index + 1;
            }
        }
        count
    }

    /// Notes that a segment file is gone.
    pub(super) fn removed(&mut self, doomed: &Doomed) {
        self.disk_bytes = self.disk_bytes.saturating_sub(doomed.bytes);
        self.dir_dirty = true;
        if doomed.damaged {
            self.counters.quarantined_segments += 1;
        }
    }

    pub(super) fn hint_failed(&mut self) {
        self.counters.hint_errors += 1;
    }

    /// The cursor file: a line for each segment with stored records, saying up to where, and a
    /// checksum.
    pub(super) fn cursor(&self) -> String {
        let mut text = String::from("1\n");
        for segment in &self.segments {
            let stored = match segment.start_of(self.committed) {
                Some(first) if self.committed > segment.first => first,
                None if segment.end() <= self.committed && !segment.starts.is_empty() => {
                    segment.len
                }
                _ => segment.stored,
            };
            // A segment with a damaged header cannot be named.
            if stored > HEADER_LEN && !segment.id.is_nil() {
                text.push_str(&format!("{} {stored}\n", segment.id));
            }
        }
        let crc = crc32c::crc32c(text.as_bytes());
        text.push_str(&format!("{crc:08x}\n"));
        text
    }

    /// Reads the cursor file; anything but an intact one is no cursor.
    fn read_cursor(&self) -> Option<HashMap<Uuid, u64>> {
        let file = self.fsync.disk.open(&self.cursor_path()).ok()?;
        let text = read_range(&*file, 0, CURSOR_BYTES_MAX).ok()?;
        let text = std::str::from_utf8(&text).ok()?.strip_suffix('\n')?;
        let (lines, crc) = text.split_at_checked(text.rfind('\n')? + 1)?;
        if u32::from_str_radix(crc, 16).ok()? != crc32c::crc32c(lines.as_bytes()) {
            return None;
        }
        let lines = lines.strip_prefix("1\n")?.lines();
        lines
            .map(|line| {
                let (id, offset) = line.split_once(' ')?;
                Some((id.parse().ok()?, offset.parse().ok()?))
            })
            .collect()
    }

    pub(super) fn pending(&self) -> u64 {
        self.next_seq.saturating_sub(self.committed)
    }

    pub(super) fn committed(&self) -> u64 {
        self.committed
    }

    fn pending_bytes(&self) -> u64 {
        let disk: u64 = self
            .segments
            .iter()
            .filter(|segment| segment.end() > self.committed && !segment.starts.is_empty())
            .map(|segment| {
                let begin = segment.start_of(self.committed).unwrap_or(HEADER_LEN);
                segment.len.saturating_sub(begin)
            })
            .sum();
        disk.saturating_add(wide(self.memory_bytes))
    }

    pub(super) fn stats(&self) -> Stats {
        let counters = &self.counters;
        let intents = self.open.values();
        Stats {
            pending_records: self.pending(),
            pending_bytes: self.pending_bytes(),
            memory_records: wide(self.memory.len()),
            memory_bytes: wide(self.memory_bytes),
            oldest_record_at: None,
            open_intents: wide(intents.filter(|o| o.frame.kind == Kind::Intent).count()),
            segments: wide(self.segments.len()),
            disk_bytes: self.disk_bytes,
            disk_records_total: counters.disk_records,
            memory_records_total: counters.memory_records,
            dropped_total: counters.dropped.clone(),
            committed_total: counters.committed,
            quarantined_frames_total: counters.quarantined_frames,
            unreadable_records_total: counters.unreadable_records,
            quarantined_segments_total: counters.quarantined_segments,
            fsyncs_total: counters.fsyncs,
            fsync_errors_total: counters.fsync_errors,
            write_errors_total: counters.write_errors,
            hint_errors_total: counters.hint_errors,
            fault: self.fault,
        }
    }

    pub(super) fn cursor_path(&self) -> PathBuf {
        self.dir.join(CURSOR_NAME)
    }
}

fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:08}{SEGMENT_SUFFIX}"))
}

impl Doomed {
    /// Deletes the file, or keeps it aside if it holds something that could not be read.
    pub(super) fn execute(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        let number = self.number;
        let path = segment_path(dir, number);
        let result = if self.damaged {
            let aside = dir.join(format!("{number:08}{QUARANTINE_SUFFIX}"));
            disk.rename(&path, &aside)
        } else {
            disk.remove(&path)
        };
        match result {
            // Somebody else removed it, which is as good.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.damaged
    }
}

/// The quarantined files among the names of a directory, oldest first.
pub(super) fn quarantined(names: &[String]) -> Vec<&String> {
    let mut names: Vec<_> = names
        .iter()
        .filter(|name| name.ends_with(QUARANTINE_SUFFIX))
        .collect();
    names.sort();
    names
}

/// A size as a file offset; no machine has memory that a `u64` cannot count.
pub(super) fn wide(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

const _: () = assert!(HEADER_BYTES == 32, "HEADER_LEN says so too");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::disk::LocalDisk;

    fn frame(kind: Kind, n: u128, bytes: usize) -> Framed {
        let id = Uuid::from_u128(n);
        let body = "x".repeat(bytes);
        Framed::new(
            kind,
            id,
            segment::encode(kind, id, body.as_bytes()).unwrap(),
        )
    }

    fn log(dir: &Path) -> Log {
        let fsync = Fsync {
            disk: Arc::new(LocalDisk),
            observe: Arc::new(|_| {}),
        };
        let limits = Limits {
            max_bytes: 64 << 20,
            segment_bytes: 8 << 20,
            memory_bytes: 16 << 20,
            sync_always: false,
            hold_unsynced: true,
        };
        Log::open(fsync, dir.to_owned(), limits).unwrap().0
    }

    /// The sequence numbers before which the next batches end, until nothing is pending.
    fn drained(log: &mut Log) -> Vec<u64> {
        let mut ends = Vec::new();
        loop {
            let (records, upto) = match log.plan(1, 1 << 20) {
                Plan::Nothing => return ends,
                Plan::Disk { starts, upto, .. } => (starts.len(), upto),
                Plan::Memory { frames, upto } => (frames.len(), upto),
            };
            assert_eq!(records, 1);
            assert_eq!(log.commit(upto), 1);
            ends.push(upto);
        }
    }

    #[test]
    fn records_committed_from_memory_between_two_steps_leave_no_gap_in_a_segment() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path());
        log.fault = Some(Reason::DiskError);
        for n in 0..20 {
            let frame = frame(Kind::Record, n, 64 << 10);
            assert_eq!(log.record(frame), Ok(Placement::Memory));
        }
        assert_eq!(log.resume_step(), Step::More, "256 KiB at a time");
        let moved = 20 - u64::try_from(log.memory.len()).unwrap();
        assert!((1..6).contains(&moved));
        // What was moved, and two more straight from memory.
        assert_eq!(log.commit(moved + 2), moved + 2);
        while log.resume_step() == Step::More {}
        assert_eq!(log.fault, None);
        assert_eq!(drained(&mut log), (moved + 3..=20).collect::<Vec<_>>());
    }

    #[test]
    fn held_frames_are_bounded_and_those_let_go_stay_where_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path());
        for n in 0..100 {
            let frame = frame(Kind::Record, n, 100 << 10);
            assert_eq!(log.record(frame), Ok(Placement::Disk));
            assert!(log.held_bytes <= HELD_BYTES_MAX);
        }
        let held = log.held.len();
        assert!((30..50).contains(&held));
        let segment = log.held.front().unwrap().segment;
        log.sync_failed(segment, &io::Error::other("ill"));
        assert_eq!(log.memory.len(), held);
        while log.resume_step() == Step::More {}
        assert_eq!(log.memory.len(), 0);
        assert_eq!(drained(&mut log), (1..=100).collect::<Vec<_>>());
    }

    #[test]
    fn intents_leave_the_last_room_to_records() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path());
        log.limits.max_bytes = 16_000;
        let taken = (0..1_000)
            .take_while(|&n| log.intent(frame(Kind::Intent, n, 66)).is_ok())
            .count();
        // 91 bytes each, as long as a sixteenth is free.
        assert_eq!(taken, (16_000 - 32 - 1_000) / 91 + 1);
        assert_eq!(log.fault, None);
        assert_eq!(log.record(frame(Kind::Record, 0, 100)), Ok(Placement::Disk));
    }

    #[test]
    fn open_intents_are_limited() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path());
        for n in 0..OPEN_INTENTS_MAX {
            let n = u128::try_from(n).unwrap();
            let frame = Framed::abandoned(Uuid::from_u128(n));
            let segment = None;
            log.open.insert(frame.id, Open { frame, segment });
        }
        let refused = log.intent(frame(Kind::Intent, 1 << 70, 1));
        assert_eq!(refused, Err(Reason::TooManyIntents));
        log.abandon(Uuid::from_u128(3));
        log.open.remove(&Uuid::from_u128(3));
        assert_eq!(log.intent(frame(Kind::Intent, 1 << 70, 1)), Ok(()));
    }
}
