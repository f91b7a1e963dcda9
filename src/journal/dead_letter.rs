//! Dead letters: records that the store will never take, one JSON object a line, in a file
//! beside the segments.
//!
//! The file is for people. Nothing reads it but the command line, and nothing deletes it; its
//! size is limited.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::disk::{Disk, append_all, read_range};
use super::log::wide;
use crate::clock;
use crate::record::UsageRecord;

/// The name of the file in the journal's directory.
pub const DEAD_LETTER_FILE: &str = "dead-letters.jsonl";

/// The largest the file gets: some hundred thousand records, far more than anyone will look at.
const DEAD_LETTERS_BYTES_MAX: u64 = 64 << 20;

/// A record that the store refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// When it was put aside.
    pub at: DateTime<Utc>,
    /// Why.
    pub reason: String,
    /// The record as it was.
    pub record: UsageRecord,
}

/// Why a record could not be put aside.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// The file has reached its limit; move it away.
    #[error("{DEAD_LETTER_FILE} has reached {DEAD_LETTERS_BYTES_MAX} bytes")]
    Full,
    /// It could not be encoded.
    #[error("cannot encode a dead letter")]
    Encode(#[source] serde_json::Error),
    /// It could not be written.
    #[error("cannot write {DEAD_LETTER_FILE}")]
    Write(#[source] io::Error),
}

pub(super) fn append(
    disk: &dyn Disk,
    dir: &Path,
    record: &UsageRecord,
    reason: &str,
) -> Result<(), DeadLetterError> {
    let letter = DeadLetter {
        at: clock::wall(),
        reason: reason.to_owned(),
        record: record.clone(),
    };
    let mut line = serde_json::to_vec(&letter).map_err(DeadLetterError::Encode)?;
    line.push(b'\n');
    let path = dir.join(DEAD_LETTER_FILE);
    let file = match disk.open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            disk.create(&path).and_then(|file| {
                disk.sync_dir(dir)?;
                Ok(file)
            })
        }
        file => file,
    }
    .map_err(DeadLetterError::Write)?;
    let len = file.size().map_err(DeadLetterError::Write)?;
    if len.saturating_add(wide(line.len())) > DEAD_LETTERS_BYTES_MAX {
        return Err(DeadLetterError::Full);
    }
    let mut write = || {
        // Half a line, of a crash or a full disk, must not spoil the next one.
        if len > 0 && read_range(&*file, len - 1, 1)? != b"\n" {
            line.insert(0, b'\n');
        }
        append_all(&*file, &line)?;
        file.sync()
    };
    write().map_err(DeadLetterError::Write)
}

/// The dead letters in a journal's directory, oldest first; none if there is no file. A line
/// that cannot be understood is an error of its own, and the next ones follow.
///
/// # Errors
/// If the file cannot be opened.
pub fn dead_letters(dir: &Path) -> io::Result<impl Iterator<Item = io::Result<DeadLetter>>> {
    let file = match File::open(dir.join(DEAD_LETTER_FILE)) {
        Ok(file) => Some(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let lines = file.map(|file| BufReader::new(file).split(b'\n'));
    Ok(lines.into_iter().flatten().filter_map(|line| match line {
        Ok(line) if line.is_empty() => None,
        Ok(line) => Some(serde_json::from_slice(&line).map_err(io::Error::from)),
        Err(error) => Some(Err(error)),
    }))
}
