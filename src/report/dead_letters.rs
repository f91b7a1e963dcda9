//! `taffrail logs --dead-letter`: the records that the store refused, newest first.

use std::collections::HashSet;
use std::io;
use std::path::Path;

use chrono::{DateTime, SecondsFormat, Utc};

use super::logs::check_limit;
use super::table::{Footer, Grid, UNKNOWN, printable, shown_time, write_left_out};
use super::{Format, LogsRequest, ReportError, write_csv, write_json_line};
use crate::journal::{self, DEAD_LETTER_FILE, DeadLetter};

/// The columns of the CSV form.
const COLUMNS: [&str; 9] = [
    "at",
    "id",
    "started_at",
    "provider",
    "operation",
    "model",
    "outcome",
    "reason",
    "record",
];

/// Writes the dead letters of the journal in `dir`, the last one put aside first; returns how
/// many lines of the file cannot be understood, which are left out.
///
/// As JSON one object a line with the whole letter, as in the file: `at`, `reason` and `record`.
/// As CSV the record is a column of JSON. A record that was put aside again after a crash shows
/// once, as it was the last time.
///
/// # Errors
///
/// [`ReportError::DeadLetters`], [`ReportError::UnknownDeadLetter`], [`ReportError::Limit`], and
/// the writer's.
pub fn dead_letters(
    dir: &Path,
    request: &LogsRequest,
    out: &mut dyn io::Write,
) -> Result<u64, ReportError> {
    check_limit(request.limit)?;
    let (mut letters, damaged) = read(dir).map_err(|source| ReportError::DeadLetters {
        path: dir.join(DEAD_LETTER_FILE),
        source,
    })?;
    if let Some(id) = request.before {
        let at = letters.iter().position(|letter| letter.record.id == id);
        let at = at.ok_or(ReportError::UnknownDeadLetter(id))?;
        letters.drain(..=at);
    }
    letters.retain(|letter| is_asked_for(letter, request));
    let limit = request
        .limit
        .and_then(|limit| usize::try_from(limit).ok())
        .unwrap_or(usize::MAX);
    let is_cut = letters.len() > limit;
    letters.truncate(limit);
    match request.format {
        Format::Json => {
            for letter in &letters {
                write_json_line(out, letter)?;
            }
        }
        Format::Csv => {
            let records: io::Result<Vec<_>> = letters.iter().map(csv_record).collect();
            write_csv(out, [COLUMNS])?;
            write_csv(out, records?)?;
        }
        Format::Table if letters.is_empty() => {
            writeln!(out, "{}", no_letters(dir, request, damaged))?;
        }
        Format::Table => {
            writeln!(out, "Dead letters, newest first, {}\n", dir.display())?;
            write_table(out, &letters, request.width)?;
            if let (true, Some(last)) = (is_cut, letters.last()) {
                writeln!(
                    out,
                    "\nOlder ones: `taffrail logs --dead-letter --before {}`",
                    last.record.id
                )?;
            }
        }
    }
    Ok(damaged)
}

/// The letters, the last one put aside first, and how many lines cannot be understood. The
/// journal limits the file, so that all of it can be held.
fn read(dir: &Path) -> io::Result<(Vec<DeadLetter>, u64)> {
    let mut letters = Vec::new();
    let mut damaged = 0;
    for letter in journal::dead_letters(dir)? {
        match letter {
            Ok(letter) => letters.push(letter),
            Err(error) => match error.kind() {
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => damaged += 1,
                // Not the line but the file, and so every further one.
                _ => return Err(error),
            },
        }
    }
    letters.reverse();
    let mut seen = HashSet::new();
    letters.retain(|letter| seen.insert(letter.record.id));
    Ok((letters, damaged))
}

fn is_asked_for(letter: &DeadLetter, request: &LogsRequest) -> bool {
    let provider = request.provider.as_deref();
    provider.is_none_or(|provider| provider == &*letter.record.provider)
        && request
            .outcome
            .is_none_or(|outcome| outcome == letter.record.outcome)
}

fn no_letters(dir: &Path, request: &LogsRequest, damaged: u64) -> String {
    let dir = dir.display();
    if request.before.is_some() {
        format!("No older dead letters in {dir}.")
    } else if request.provider.is_some() || request.outcome.is_some() {
        format!(
            "No such dead letters in {dir}. Leave out `--provider` and `--outcome` to see whether \
             there are others."
        )
    } else if damaged > 0 {
        format!("No dead letters in {dir} that can be read.")
    } else {
        format!("No dead letters in {dir}: the store has refused no record.")
    }
}

fn csv_record(letter: &DeadLetter) -> io::Result<[String; COLUMNS.len()]> {
    let record = &letter.record;
    let rfc3339 = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::AutoSi, true);
    Ok([
        rfc3339(letter.at),
        record.id.to_string(),
        rfc3339(record.started_at),
        record.provider.to_string(),
        record.operation.to_string(),
        record.model().unwrap_or_default().to_owned(),
        record.outcome.to_string(),
        letter.reason.clone(),
        serde_json::to_string(record)?,
    ])
}

fn write_table(
    out: &mut dyn io::Write,
    letters: &[DeadLetter],
    width: Option<u16>,
) -> io::Result<()> {
    let mut grid = Grid::default();
    let texts =
        |text: &dyn Fn(&DeadLetter) -> String| letters.iter().map(text).collect::<Vec<String>>();
    grid.text(
        "Put aside (UTC)".to_owned(),
        texts(&|letter| shown_time(letter.at)),
    );
    grid.text(
        "Id".to_owned(),
        texts(&|letter| letter.record.id.to_string()),
    );
    grid.text(
        "Provider".to_owned(),
        texts(&|letter| printable(&letter.record.provider)),
    );
    grid.wrapping_text(
        "Model".to_owned(),
        texts(&|letter| {
            let model = letter.record.model();
            model.map_or_else(|| UNKNOWN.to_owned(), printable)
        }),
    );
    grid.wrapping_text(
        "Reason".to_owned(),
        texts(&|letter| printable(&letter.reason)),
    );
    // In a narrow terminal the least telling columns go first.
    let left_out = grid.fit(width, &["Id", "Model", "Provider"]);
    writeln!(out, "{}", grid.render(width, Footer::None))?;
    write_left_out(out, &left_out)?;
    writeln!(
        out,
        "\nThe store will never take these; docs/journal.md says what to do about them."
    )
}
