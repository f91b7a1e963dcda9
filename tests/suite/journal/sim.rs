//! A disk in memory that can die at any operation, fill up, take half a write and fail `fsync`,
//! and that forgets after a power loss what was not made durable.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use taffrail::journal::disk::{Disk, DiskFile, LockGuard};

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    /// It is killed; the operating system keeps what was written.
    Process,
    /// The machine stops; what was not synced may be there, in part, or not.
    Power,
}

/// What the disk does wrong from now on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    /// The most bytes that all files may have.
    pub(crate) capacity: Option<usize>,
    /// Appends take some of the bytes and then fail.
    pub(crate) torn_appends: bool,
    /// Files cannot be cut.
    pub(crate) no_truncate: bool,
    /// `fsync` of a file fails, and the next one claims to have done it.
    pub(crate) failing_syncs: bool,
    /// Files cannot be read.
    pub(crate) no_reads: bool,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<u64, Content>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    next_file: u64,
    random: u64,
    operations: u64,
    crash_at: Option<u64>,
    dead: bool,
    faults: Faults,
    locked: Arc<AtomicBool>,
}

#[derive(Debug, Clone, Default)]
struct Content {
    current: Vec<u8>,
    durable: Vec<u8>,
    /// What a failed `fsync` marked clean without writing it.
    lost: Vec<(usize, usize)>,
}

/// The disk; clones are the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct SimDisk(Arc<Mutex<State>>);

fn dead() -> io::Error {
    io::Error::other("the process has ended")
}

impl State {
    /// Splitmix64.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number up to and including `max`.
    fn up_to(&mut self, max: usize) -> usize {
        let max = u64::try_from(max).unwrap();
        usize::try_from(self.random() % (max + 1)).unwrap()
    }

    /// Counts an operation that changes something. `Some(true)`: the process ends now, with the
    /// operation done in part or whole; `Some(false)`: it ends before.
    fn operate(&mut self) -> io::Result<bool> {
        if self.dead {
            return Err(dead());
        }
        let at = self.operations;
        self.operations += 1;
        if self.crash_at == Some(at) {
            self.dead = true;
            if self.random().is_multiple_of(2) {
                return Err(dead());
            }
            return Ok(true);
        }
        Ok(false)
    }

    fn used(&self) -> usize {
        let named = self
            .names
            .values()
            .collect::<std::collections::BTreeSet<_>>();
        named
            .into_iter()
            .map(|file| self.files[file].current.len())
            .sum()
    }

    fn room(&self) -> usize {
        let capacity = self.faults.capacity.unwrap_or(usize::MAX);
        capacity.saturating_sub(self.used())
    }

    fn alive<T>(&self, result: T) -> io::Result<T> {
        if self.dead { Err(dead()) } else { Ok(result) }
    }

    fn lose_power(&mut self) {
        let changed: Vec<PathBuf> = self
            .names
            .iter()
            .filter(|(name, file)| self.durable_names.get(*name) != Some(file))
            .map(|(name, _)| name.clone())
            .chain(
                self.durable_names
                    .keys()
                    .filter(|name| !self.names.contains_key(*name))
                    .cloned(),
            )
            .collect();
        for name in changed {
            if self.random().is_multiple_of(2) {
                match self.names.get(&name).copied() {
                    Some(file) => self.durable_names.insert(name, file),
                    None => self.durable_names.remove(&name),
                };
            }
        }
        self.names = self.durable_names.clone();
        let files: Vec<u64> = self.files.keys().copied().collect();
        for file in files {
            let Content {
                current,
                durable,
                lost,
            } = self.files[&file].clone();
            let mut survived = durable.clone();
            if current.len() > durable.len() {
                let kept = self.up_to(current.len() - durable.len());
                survived.extend_from_slice(&current[durable.len()..durable.len() + kept]);
                for (start, end) in lost {
                    let end = end.min(survived.len());
                    if start < end {
                        survived[start..end].fill(0);
                    }
                }
                // Blocks reach the disk in any order.
                if kept > 0 && self.random().is_multiple_of(3) {
                    let start = durable.len() + self.up_to(kept - 1);
                    let end = (start + self.up_to(64)).min(survived.len());
                    survived[start..end].fill(0);
                }
            } else if current.len() < durable.len() && self.random().is_multiple_of(2) {
                survived = current;
            }
            let content = Content {
                current: survived.clone(),
                durable: survived,
                lost: Vec::new(),
            };
            self.files.insert(file, content);
        }
    }
}

impl SimDisk {
    pub(crate) fn seeded(seed: u64) -> SimDisk {
        let disk = SimDisk::default();
        disk.state().random = seed;
        disk
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// An independent disk with the same content.
    pub(crate) fn copy(&self) -> SimDisk {
        let state = self.state();
        SimDisk(Arc::new(Mutex::new(State {
            files: state.files.clone(),
            names: state.names.clone(),
            durable_names: state.durable_names.clone(),
            next_file: state.next_file,
            ..State::default()
        })))
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// Ends the process at the operation of that number, counted from 0.
    pub(crate) fn crash_at(&self, operation: u64) {
        self.state().crash_at = Some(operation);
    }

    pub(crate) fn operations(&self) -> u64 {
        self.state().operations
    }

    pub(crate) fn used(&self) -> usize {
        self.state().used()
    }

    /// Bytes of the segment files.
    pub(crate) fn segment_bytes(&self) -> usize {
        let state = self.state();
        let segments = state
            .names
            .iter()
            .filter(|(name, _)| name.extension().is_some_and(|extension| extension == "seg"));
        segments
            .map(|(_, file)| state.files[file].current.len())
            .sum()
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// Starts anew after the end of a process.
    pub(crate) fn restart(&self, crash: Crash) {
        let mut state = self.state();
        if crash == Crash::Power {
            state.lose_power();
        }
        state.dead = false;
        state.crash_at = None;
        state.faults = Faults::default();
        state.locked = Arc::default();
    }

    pub(crate) fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state();
        let file = state.names.get(path)?;
        Some(state.files[file].current.clone())
    }

    pub(crate) fn set_content(&self, path: &Path, bytes: &[u8]) {
        let mut state = self.state();
        let file = state.names[path];
        let content = state.files.get_mut(&file).unwrap();
        content.current = bytes.to_vec();
        content.durable = bytes.to_vec();
    }
}

impl Disk for SimDisk {
    fn make_dir(&self, _: &Path) -> io::Result<()> {
        self.state().alive(())
    }

    fn lock(&self, _: &Path) -> io::Result<Option<LockGuard>> {
        #[derive(Debug)]
        struct Guard(Arc<AtomicBool>);
        impl Drop for Guard {
            fn drop(&mut self) {
                self.0.store(false, Ordering::SeqCst);
            }
        }
        let locked = {
            let state = self.state();
            state.alive(Arc::clone(&state.locked))?
        };
        if locked.swap(true, Ordering::SeqCst) {
            return Ok(None);
        }
        Ok(Some(Box::new(Guard(locked))))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        let names = state.names.keys().filter_map(|path| {
            let name = path.strip_prefix(dir).ok()?;
            Some(name.to_str()?.to_owned())
        });
        state.alive(names.collect())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        let dies = state.operate()?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = state.next_file;
        state.next_file += 1;
        state.files.insert(file, Content::default());
        state.names.insert(path.to_owned(), file);
        if dies {
            return Err(dead());
        }
        let disk = self.clone();
        Ok(Arc::new(SimFile { disk, file }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.state();
        let file = state.names.get(path).copied();
        let file = state.alive(file)?.ok_or(io::ErrorKind::NotFound)?;
        let disk = self.clone();
        Ok(Arc::new(SimFile { disk, file }))
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let dies = state.operate()?;
        let file = match state.names.get(path) {
            Some(file) => *file,
            None => {
                let file = state.next_file;
                state.next_file += 1;
                state.names.insert(path.to_owned(), file);
                file
            }
        };
        state.files.insert(file, Content::default());
        let room = state.room().min(bytes.len());
        let taken = if dies { state.up_to(room) } else { room };
        if let Some(content) = state.files.get_mut(&file) {
            content.current.extend_from_slice(&bytes[..taken]);
        }
        if taken < bytes.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        let dies = state.operate()?;
        let file = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), file);
        if dies { Err(dead()) } else { Ok(()) }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let dies = state.operate()?;
        state.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        if dies { Err(dead()) } else { Ok(()) }
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        let mut state = self.state();
        let dies = state.operate()?;
        state.durable_names = state.names.clone();
        if dies { Err(dead()) } else { Ok(()) }
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    file: u64,
}

impl DiskFile for SimFile {
    fn append(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.disk.state();
        let dies = state.operate()?;
        let mut taken = state.room().min(bytes.len());
        if taken == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        // The first call takes a part, the next one nothing.
        if state.faults.torn_appends {
            taken = state.up_to(taken - 1);
            if taken == 0 {
                return Err(io::Error::other("the disk is ill"));
            }
        }
        if dies {
            taken = state.up_to(taken);
        }
        let file = state.files.get_mut(&self.file).unwrap();
        file.current.extend_from_slice(&bytes[..taken]);
        if dies { Err(dead()) } else { Ok(taken) }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let state = self.disk.state();
        if state.faults.no_reads {
            return Err(io::Error::other("the disk is ill"));
        }
        let offset = usize::try_from(offset).unwrap();
        let rest = state.files[&self.file]
            .current
            .get(offset..)
            .unwrap_or_default();
        let read = rest.len().min(buffer.len());
        buffer[..read].copy_from_slice(&rest[..read]);
        state.alive(read)
    }

    fn size(&self) -> io::Result<u64> {
        let state = self.disk.state();
        let size = u64::try_from(state.files[&self.file].current.len()).unwrap();
        state.alive(size)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let dies = state.operate()?;
        if state.faults.no_truncate {
            return Err(io::Error::other("the disk is ill"));
        }
        let file = state.files.get_mut(&self.file).unwrap();
        file.current.truncate(usize::try_from(len).unwrap());
        if dies { Err(dead()) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let dies = state.operate()?;
        let failing = state.faults.failing_syncs;
        let file = state.files.get_mut(&self.file).unwrap();
        if failing {
            let len = file.durable.len();
            file.lost.push((len, file.current.len().max(len)));
            return Err(io::Error::other("the disk is ill"));
        }
        file.durable = file.current.clone();
        for (start, end) in file.lost.clone() {
            let end = end.min(file.durable.len());
            if start < end {
                file.durable[start..end].fill(0);
            }
        }
        if dies { Err(dead()) } else { Ok(()) }
    }
}
