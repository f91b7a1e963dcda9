//! `taffrail usage`, `logs`, `balances`, `reconcile` and `prices list`: rows and sums of the store, balances, dead letters and prices, as
//! a table for people, or as JSON lines and CSV for programs.
//!
//! A question and what answers it go in, text comes out on a writer; nothing here reads a clock, a
//! configuration or a terminal, except [`terminal_width`] for the caller to pass on. What is
//! unknown is never shown as zero: a table has `—` for it, JSON has null, CSV nothing.
//!
//! A file for each report, and `table.rs` for what their tables share.

mod balances;
mod dead_letters;
mod logs;
mod prices;
mod reconcile;
mod table;
mod usage;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Serialize;
use uuid::Uuid;

pub use self::balances::balances;
pub use self::dead_letters::dead_letters;
pub use self::logs::{LOGS_LIMIT_DEFAULT, LOGS_LIMIT_MAX, LogsRequest, logs};
pub use self::prices::{PricesRequest, price_changes, prices};
pub use self::reconcile::reconcile;
pub use self::table::terminal_width;
pub use self::usage::{Since, UsageRequest, usage};
use crate::store::{Dimension, StoreError};

/// How a report is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// Aligned columns for a terminal.
    #[default]
    Table,
    /// One JSON object a line.
    Json,
    /// Comma-separated values with a header.
    Csv,
}

impl Format {
    /// Every format.
    pub const ALL: &'static [Format] = &[Format::Table, Format::Json, Format::Csv];

    /// The name, as in `--format`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Format::Table => "table",
            Format::Json => "json",
            Format::Csv => "csv",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is not what an option accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not {what}: accepted are {accepted}")]
pub struct ParseOptionError {
    given: String,
    what: &'static str,
    accepted: &'static str,
}

impl FromStr for Format {
    type Err = ParseOptionError;

    fn from_str(text: &str) -> Result<Format, ParseOptionError> {
        let format = Format::ALL.iter().find(|format| format.as_str() == text);
        format.copied().ok_or_else(|| ParseOptionError {
            given: text.to_owned(),
            what: "a format",
            accepted: "table, json and csv",
        })
    }
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The store does not answer, or not this question.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The writer takes no more.
    #[error("cannot write the report")]
    Write(#[from] io::Error),
    /// The limit is out of range.
    #[error("the limit is {0}: accepted are 1 to {LOGS_LIMIT_MAX}, and --all for all rows")]
    Limit(u32),
    /// The file of the dead letters cannot be read.
    #[error("cannot read {}", .path.display())]
    DeadLetters {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Ask for another dead letter.
    #[error("no dead letter has the id {0}")]
    UnknownDeadLetter(Uuid),
    /// No request of the window has this attribution label, and no request ever had.
    #[error(
        "`{name}` is not a dimension: accepted are {named} and the attribution labels in use{labels}",
        named = names_of(Dimension::NAMED),
        labels = labels_in_use(.labels),
    )]
    UnknownDimension {
        /// What was asked for.
        name: String,
        /// The attribution labels in use.
        labels: Vec<String>,
    },
}

fn names_of(dimensions: &[Dimension]) -> String {
    let names: Vec<&str> = dimensions.iter().map(Dimension::as_str).collect();
    names.join(", ")
}

fn labels_in_use(labels: &[String]) -> String {
    if labels.is_empty() {
        return ", of which there are none".to_owned();
    }
    format!(": {}", labels.join(", "))
}

fn write_json_line(out: &mut dyn io::Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    writeln!(out)
}

fn write_csv<R, F>(out: &mut dyn io::Write, records: impl IntoIterator<Item = R>) -> io::Result<()>
where
    R: IntoIterator<Item = F>,
    F: AsRef<[u8]>,
{
    let mut csv = csv::Writer::from_writer(out);
    for record in records {
        csv.write_record(record)?;
    }
    csv.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_found_by_its_name() {
        for format in Format::ALL {
            assert_eq!(format.as_str().parse(), Ok(*format));
        }
        let error = "yaml".parse::<Format>().unwrap_err().to_string();
        assert_eq!(
            error,
            "`yaml` is not a format: accepted are table, json and csv"
        );
    }
}
