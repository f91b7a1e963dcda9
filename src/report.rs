//! `taffrail usage`, `logs` and `prices list`: rows and sums of the store as a table for people, or as
//! JSON lines and CSV for programs.
//!
//! A question and a store go in, text comes out on a writer; nothing here reads a clock, a
//! configuration or a terminal, except [`terminal_width`] for the caller to pass on. What is
//! unknown is never shown as zero: a table has `—` for it, JSON has null, CSV nothing.

mod prices;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use comfy_table::{Cell, TableStyle};
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, LineStyle, Table};
use rust_decimal::Decimal;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use uuid::Uuid;

pub use self::prices::{PricesRequest, prices};
use crate::fault::Outcome;
use crate::store::{
    COLUMNS, DecimalSum, Dimension, LogQuery, LogRow, Store, StoreError, TOKEN_COLUMNS, Totals,
    UsageQuery, UsageRow, Value,
};
use crate::usage::Unit;

/// The rows that `taffrail logs` shows unless told otherwise.
pub const LOGS_LIMIT_DEFAULT: u32 = 50;

/// The most rows that `taffrail logs --limit` takes; `--all` has no limit.
pub const LOGS_LIMIT_MAX: u32 = 10_000;

/// The rows that are held at a time while all of them are written.
const PAGE_ROWS: u32 = 1_000;

/// Windows from this length on begin on a whole hour, where sums alone answer: they outlive the
/// rows, which may be gone at the window's beginning.
const LONG_WINDOW: TimeDelta = TimeDelta::days(7);

/// What stands for an unknown value in a table.
const UNKNOWN: &str = "—";

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

/// Where the window of a report begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// So long ago.
    Ago(Duration),
    /// At that moment.
    At(DateTime<Utc>),
}

impl Since {
    /// The beginning of the window that ends `now`. Windows of seven days and more begin on the
    /// whole hour before.
    pub fn resolve(self, now: DateTime<Utc>) -> DateTime<Utc> {
        let since = match self {
            Since::At(at) => at,
            Since::Ago(duration) => TimeDelta::from_std(duration)
                .ok()
                .and_then(|duration| now.checked_sub_signed(duration))
                .unwrap_or(DateTime::UNIX_EPOCH),
        };
        let since = since.max(DateTime::UNIX_EPOCH);
        if now - since < LONG_WINDOW {
            return since;
        }
        let hour = since.timestamp().div_euclid(3_600) * 3_600;
        DateTime::from_timestamp(hour, 0).unwrap_or(since)
    }
}

/// `24h`, `7d`, `1h 30m`; or an RFC 3339 timestamp, or a date, which begins at midnight UTC.
impl FromStr for Since {
    type Err = ParseOptionError;

    fn from_str(text: &str) -> Result<Since, ParseOptionError> {
        let text = text.trim();
        // Zero looks back at nothing.
        if let Ok(duration) = humantime::parse_duration(text)
            && !duration.is_zero()
        {
            return Ok(Since::Ago(duration));
        }
        let midnight = format!("{text}T00:00:00Z");
        DateTime::parse_from_rfc3339(text)
            .or_else(|_| DateTime::parse_from_rfc3339(&midnight))
            .map(|at| Since::At(at.to_utc()))
            .map_err(|_| ParseOptionError {
                given: text.to_owned(),
                what: "a beginning",
                accepted: "a duration (24h, 7d), a date (2026-11-24) and a timestamp \
                           (2026-11-24T05:00:00Z)",
            })
    }
}

/// What `taffrail usage` is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageRequest {
    /// Where the window begins.
    pub since: Since,
    /// What to group by; none shows the total alone.
    pub by: Vec<Dimension>,
    /// How to write it.
    pub format: Format,
    /// The width to fit a table in, in characters; `None` for as wide as it gets.
    pub width: Option<u16>,
}

impl Default for UsageRequest {
    fn default() -> UsageRequest {
        UsageRequest {
            since: Since::Ago(Duration::from_secs(24 * 60 * 60)),
            by: vec![Dimension::Provider, Dimension::Model],
            format: Format::Table,
            width: None,
        }
    }
}

/// What `taffrail logs` is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogsRequest {
    /// At most that many rows, [`LOGS_LIMIT_MAX`] at most; `None` for all there are.
    pub limit: Option<u32>,
    /// Only rows that come after the row of this id, which means older ones.
    pub before: Option<Uuid>,
    /// Only rows of this provider.
    pub provider: Option<String>,
    /// Only rows that ended like this.
    pub outcome: Option<Outcome>,
    /// How to write it.
    pub format: Format,
    /// The width to fit a table in, in characters; `None` for as wide as it gets.
    pub width: Option<u16>,
}

impl Default for LogsRequest {
    fn default() -> LogsRequest {
        LogsRequest {
            limit: Some(LOGS_LIMIT_DEFAULT),
            before: None,
            provider: None,
            outcome: None,
            format: Format::Table,
            width: None,
        }
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

/// The width of the terminal that standard output is, if it is one.
pub fn terminal_width() -> Option<u16> {
    Table::new().width()
}

/// Writes what was spent from `request.since` until `now`.
///
/// As JSON one object a line and group, as CSV one record: the dimensions by name, `requests`,
/// `unpriced_requests`, `cost_usd`, `cost_upstream_usd`, the token columns of `api_usage_logs`,
/// and `units` with the other quantities. Only a table has a total.
///
/// # Errors
///
/// The store's, the writer's, and [`ReportError::UnknownDimension`].
pub async fn usage(
    store: &Store,
    request: &UsageRequest,
    now: DateTime<Utc>,
    out: &mut dyn io::Write,
) -> Result<(), ReportError> {
    let query = UsageQuery {
        since: request.since.resolve(now),
        by: request.by.clone(),
    };
    let mut rows = store.usage(&query).await?;
    rows.retain(|row| row.totals.requests > 0);
    refuse_unknown_labels(store, &query.by, &rows).await?;
    rows.sort_by(|left, right| usage_order(&query.by, left, right));
    match request.format {
        Format::Table => {
            let range = format!(
                "Usage from {} to {} UTC, {}",
                shown_time(query.since),
                shown_time(now),
                store.description()
            );
            write_usage_table(out, &range, &query.by, &rows, request.width)?;
        }
        Format::Json => {
            for row in &rows {
                write_json_line(out, &UsageLine { by: &query.by, row })?;
            }
        }
        Format::Csv => write_usage_csv(out, &query.by, &rows)?,
    }
    Ok(())
}

/// Refuses attribution labels that no row has a value for and the store has never seen: a typing
/// error would look like traffic without attribution.
async fn refuse_unknown_labels(
    store: &Store,
    by: &[Dimension],
    rows: &[UsageRow],
) -> Result<(), ReportError> {
    for (index, dimension) in by.iter().enumerate() {
        let Dimension::Attribution(name) = dimension else {
            continue;
        };
        let is_seen = |row: &UsageRow| row.group.get(index).is_some_and(Option::is_some);
        if rows.is_empty() || rows.iter().any(is_seen) {
            continue;
        }
        let labels = store.attribution_labels().await?;
        if !labels.contains(name) {
            let name = name.clone();
            return Err(ReportError::UnknownDimension { name, labels });
        }
    }
    Ok(())
}

/// Earliest first where time is a dimension; then the dearest, the most requests, the name.
fn usage_order(by: &[Dimension], left: &UsageRow, right: &UsageRow) -> Ordering {
    let times = by
        .iter()
        .zip(left.group.iter().zip(&right.group))
        .filter(|(dimension, _)| matches!(dimension, Dimension::Day | Dimension::Hour))
        .map(|(_, (left, right))| left.cmp(right));
    let by_time = times.fold(Ordering::Equal, Ordering::then);
    by_time
        .then_with(|| right.totals.cost_usd.cmp(&left.totals.cost_usd))
        .then_with(|| right.totals.requests.cmp(&left.totals.requests))
        .then_with(|| left.group.cmp(&right.group))
}

/// A column of quantities: its heading, and the units that it sums.
type Measure = (&'static str, &'static [Unit]);

const MEASURES: &[Measure] = &[
    ("Input\ntokens", &[Unit::Input]),
    ("Cache read\ntokens", &[Unit::CacheRead]),
    (
        "Cache write\ntokens",
        &[Unit::CacheWrite5m, Unit::CacheWrite1h, Unit::CacheWrite],
    ),
    ("Output\ntokens", &[Unit::Output]),
    ("Reasoning\ntokens", &[Unit::Reasoning]),
    ("Audio in\ntokens", &[Unit::InputAudio]),
    ("Audio out\ntokens", &[Unit::OutputAudio]),
    ("Image in\ntokens", &[Unit::InputImage]),
    ("Image out\ntokens", &[Unit::OutputImage]),
    ("Images", &[Unit::Image]),
    ("Megapixels", &[Unit::Megapixel]),
    ("Video\nseconds", &[Unit::VideoSecond]),
    ("Audio\nseconds", &[Unit::AudioSecond]),
    ("Compute\nseconds", &[Unit::ComputeSecond]),
    ("Characters", &[Unit::Character]),
    ("Pages", &[Unit::Page]),
    ("Searches", &[Unit::Search]),
    ("Priced\nrequests", &[Unit::Request]),
    ("Training\nsteps", &[Unit::TrainingStep]),
    ("Billable\nunits", &[Unit::BillableUnit]),
];

/// The sum of those units, if any is known.
fn measured(totals: &Totals, units: &[Unit]) -> Option<DecimalSum> {
    units
        .iter()
        .filter_map(|unit| totals.quantities.get(unit))
        .try_fold(None, |sum: Option<DecimalSum>, quantity| {
            Some(Some(sum.unwrap_or_default().checked_add(*quantity)?))
        })
        .flatten()
}

fn write_usage_table(
    out: &mut dyn io::Write,
    range: &str,
    by: &[Dimension],
    rows: &[UsageRow],
    width: Option<u16>,
) -> io::Result<()> {
    if rows.is_empty() {
        return writeln!(
            out,
            "{range}\n\nNo requests in this window. Send some through the proxy (`taffrail run` \
             shows where it listens),\nor look further back: `taffrail usage --since 30d`."
        );
    }
    let total = rows.iter().try_fold(Totals::default(), |total, row| {
        total.checked_add(&row.totals)
    });
    let total = total.unwrap_or_default();
    let everything: Vec<&Totals> = rows.iter().map(|row| &row.totals).chain([&total]).collect();

    let mut grid = Grid::default();
    for (index, dimension) in by.iter().enumerate() {
        let mut cells: Vec<String> = rows
            .iter()
            .map(|row| row.group.get(index).cloned().flatten())
            .map(|value| value.map_or_else(|| UNKNOWN.to_owned(), |value| printable(&value)))
            .collect();
        cells.push(if index == 0 { "Total" } else { "" }.to_owned());
        grid.wrapping_text(heading(dimension), cells);
    }
    let count = |count: i64| Some(DecimalSum::from(count));
    grid.numbers(
        "Requests",
        everything.iter().map(|totals| count(totals.requests)),
    );
    for (heading, units) in MEASURES {
        if measured(&total, units).is_some() {
            grid.numbers(
                heading,
                everything.iter().map(|totals| measured(totals, units)),
            );
        }
    }
    grid.costs(
        "Cost\nUSD",
        everything.iter().map(|totals| Cost::of(totals)),
    );
    if total.cost_upstream_usd.is_some() {
        let upstream = everything.iter().map(|totals| Cost {
            known: totals.cost_upstream_usd,
            is_partial: false,
        });
        grid.costs("Of it billed\nupstream USD", upstream);
    }
    grid.numbers(
        "Unpriced\nrequests",
        everything
            .iter()
            .map(|totals| count(totals.unpriced_requests)),
    );
    // In a narrow terminal the least telling columns go first.
    let (telling, others): (Vec<&Measure>, Vec<&Measure>) = MEASURES
        .iter()
        .rev()
        .partition(|(_, units)| matches!(units, [Unit::Input | Unit::Output]));
    let expendable: Vec<&str> = ["Of it billed\nupstream USD"]
        .into_iter()
        .chain(others.iter().chain(&telling).map(|(heading, _)| *heading))
        .collect();
    let left_out = grid.fit(width, &expendable);
    writeln!(out, "{range}\n\n{}", grid.render(width, Footer::Total))?;
    write_left_out(out, &left_out)?;
    if total.unpriced_requests > 0 {
        writeln!(
            out,
            "\nThe cost of {} of {} requests is not known; `unpriced_reason` in\n\
             `taffrail logs --format json` says why.",
            thousands(&total.unpriced_requests.to_string()),
            thousands(&total.requests.to_string()),
        )?;
        if everything.iter().any(|totals| Cost::of(totals).is_partial) {
            writeln!(out, "≥ marks a sum from which such costs are missing.")?;
        }
    }
    Ok(())
}

/// Says which columns a narrow terminal has no room for.
fn write_left_out(out: &mut dyn io::Write, headings: &[String]) -> io::Result<()> {
    if headings.is_empty() {
        return Ok(());
    }
    let headings: Vec<String> = headings
        .iter()
        .map(|heading| heading.replace('\n', " ").to_lowercase())
        .collect();
    writeln!(
        out,
        "\nLeft out to fit the terminal (`--format json` has them):\n{}.",
        headings.join(", ")
    )
}

fn heading(dimension: &Dimension) -> String {
    match dimension {
        Dimension::Provider => "Provider",
        Dimension::Model => "Model",
        Dimension::Operation => "Operation",
        Dimension::Outcome => "Outcome",
        Dimension::Day => "Day (UTC)",
        Dimension::Hour => "Hour (UTC)",
        Dimension::Key => "Key",
        Dimension::Instance => "Instance",
        Dimension::ServiceTier => "Service tier",
        Dimension::Attribution(label) => label,
    }
    .to_owned()
}

/// A group as a line of JSON.
struct UsageLine<'a> {
    by: &'a [Dimension],
    row: &'a UsageRow,
}

impl Serialize for UsageLine<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let totals = &self.row.totals;
        let mut map = serializer.serialize_map(None)?;
        for (dimension, value) in self.by.iter().zip(&self.row.group) {
            map.serialize_entry(dimension.as_str(), value)?;
        }
        map.serialize_entry("requests", &totals.requests)?;
        map.serialize_entry("unpriced_requests", &totals.unpriced_requests)?;
        map.serialize_entry("cost_usd", &totals.cost_usd)?;
        map.serialize_entry("cost_upstream_usd", &totals.cost_upstream_usd)?;
        for (unit, column) in TOKEN_COLUMNS {
            let tokens = totals.quantities.get(unit).map(|sum| sum.to_i64());
            map.serialize_entry(column, &tokens)?;
        }
        map.serialize_entry("units", &other_units(totals))?;
        map.end()
    }
}

/// The quantities that have no column of their own; `None` if none is known.
fn other_units(totals: &Totals) -> Option<BTreeMap<&'static str, DecimalSum>> {
    let units: BTreeMap<_, _> = totals
        .quantities
        .iter()
        .filter(|(unit, _)| !unit.is_token())
        .map(|(unit, sum)| (unit.as_str(), *sum))
        .collect();
    (!units.is_empty()).then_some(units)
}

fn write_usage_csv(out: &mut dyn io::Write, by: &[Dimension], rows: &[UsageRow]) -> io::Result<()> {
    let mut csv = csv::Writer::from_writer(out);
    let sums = [
        "requests",
        "unpriced_requests",
        "cost_usd",
        "cost_upstream_usd",
    ];
    let tokens = TOKEN_COLUMNS.iter().map(|(_, column)| *column);
    let header = by.iter().map(Dimension::as_str).chain(sums).chain(tokens);
    csv.write_record(header.chain(["units"]))?;
    for row in rows {
        let totals = &row.totals;
        let mut record: Vec<String> = Vec::new();
        let shown = |sum: Option<&DecimalSum>| sum.map(ToString::to_string).unwrap_or_default();
        record.extend(
            row.group
                .iter()
                .map(|value| value.clone().unwrap_or_default()),
        );
        record.push(totals.requests.to_string());
        record.push(totals.unpriced_requests.to_string());
        record.push(shown(totals.cost_usd.as_ref()));
        record.push(shown(totals.cost_upstream_usd.as_ref()));
        for (unit, _) in TOKEN_COLUMNS {
            record.push(shown(totals.quantities.get(unit)));
        }
        let units = other_units(totals).map(|units| serde_json::to_string(&units));
        record.push(units.transpose()?.unwrap_or_default());
        csv.write_record(record)?;
    }
    csv.flush()
}

/// Writes the detailed rows, newest first.
///
/// # Errors
///
/// The store's, the writer's, and [`ReportError::Limit`].
pub async fn logs(
    store: &Store,
    request: &LogsRequest,
    out: &mut dyn io::Write,
) -> Result<(), ReportError> {
    if let Some(limit) = request.limit
        && !(1..=LOGS_LIMIT_MAX).contains(&limit)
    {
        return Err(ReportError::Limit(limit));
    }
    if request.format == Format::Csv {
        write_csv(out, [COLUMNS.iter().map(|(name, _)| *name)])?;
    }
    // A table is laid out as a whole, unless it has no limit.
    let page_rows = match (request.format, request.limit) {
        (Format::Table, _) => LOGS_LIMIT_MAX,
        _ => PAGE_ROWS,
    };
    let mut query = LogQuery {
        limit: 0,
        before: request.before,
        provider: request.provider.clone(),
        outcome: request.outcome,
    };
    let mut remaining = request.limit;
    let mut is_first_page = true;
    loop {
        query.limit = remaining.map_or(page_rows, |remaining| remaining.min(page_rows));
        let rows = store.logs(&query).await?;
        let is_last_page = rows.len() < usize::try_from(query.limit).unwrap_or(usize::MAX);
        let last = rows.last().and_then(|row| row.get("id").as_text());
        let last = last.and_then(|id| Uuid::parse_str(id).ok());
        match request.format {
            Format::Json => {
                for row in &rows {
                    write_json_line(out, row)?;
                }
            }
            Format::Csv => {
                write_csv(
                    out,
                    rows.iter().map(|row| row.values().iter().map(csv_field)),
                )?;
            }
            Format::Table if rows.is_empty() && is_first_page => {
                writeln!(out, "{}", no_rows(request, &store.description()))?;
            }
            Format::Table if rows.is_empty() => {}
            Format::Table => {
                let title = format!("Requests, newest first, {}", store.description());
                write_logs_table(out, &title, &rows, request.width)?;
            }
        }
        remaining = remaining.map(|remaining| remaining.saturating_sub(query.limit));
        if is_last_page || remaining == Some(0) {
            if let (Format::Table, false, Some(last)) = (request.format, is_last_page, last) {
                writeln!(out, "\nOlder rows: `taffrail logs --before {last}`")?;
            }
            return Ok(());
        }
        query.before = last;
        is_first_page = false;
    }
}

fn no_rows(request: &LogsRequest, description: &str) -> String {
    let next = if request.before.is_some() {
        "There are no older ones."
    } else if request.provider.is_some() || request.outcome.is_some() {
        "Leave out `--provider` and `--outcome` to see whether there are others."
    } else {
        "Send a request through the proxy; `taffrail run` shows where it listens."
    };
    format!("No such requests, {description}. {next}")
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

fn csv_field(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Text(text) | Value::Json(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        Value::Boolean(value) => value.to_string(),
    }
}

fn write_logs_table(
    out: &mut dyn io::Write,
    title: &str,
    rows: &[LogRow],
    width: Option<u16>,
) -> io::Result<()> {
    let mut grid = Grid::default();
    let text = |column: &'static str| {
        let cells = rows.iter().map(move |row| match row.get(column).as_text() {
            Some(text) => printable(text),
            None => UNKNOWN.to_owned(),
        });
        cells.collect::<Vec<_>>()
    };
    let started_at = rows.iter().map(|row| {
        let started_at = row.get("started_at").as_text().unwrap_or(UNKNOWN);
        // Down to the second; the JSON form has the rest.
        let seconds: String = started_at.chars().take(19).collect();
        seconds.replace('T', " ")
    });
    let model = rows.iter().map(|row| {
        let model = row.get("model_served").as_text();
        let model = model.or_else(|| row.get("model_requested").as_text());
        model.map_or_else(|| UNKNOWN.to_owned(), printable)
    });
    let status = rows
        .iter()
        .map(|row| match row.get("http_status").as_integer() {
            Some(status) => status.to_string(),
            None => UNKNOWN.to_owned(),
        });
    let tokens = |is_wanted: fn(Unit) -> bool| {
        rows.iter().map(move |row| {
            TOKEN_COLUMNS
                .iter()
                .filter(|(unit, _)| is_wanted(*unit))
                .filter_map(|(_, column)| row.get(column).as_integer())
                .reduce(i64::saturating_add)
                .map(DecimalSum::from)
        })
    };
    let seconds = |column: &'static str| {
        rows.iter().map(move |row| {
            let micros = row.get(column).as_integer()?;
            // To the millisecond, so that every row has as many digits.
            let seconds = Decimal::new(micros, 6).round_dp(3);
            Some(DecimalSum::from(seconds))
        })
    };
    let costs = rows.iter().map(|row| Cost {
        known: row
            .get("cost_usd")
            .as_text()
            .and_then(|cost| cost.parse().ok()),
        is_partial: false,
    });
    grid.text("Started (UTC)".to_owned(), started_at.collect());
    grid.text("Provider".to_owned(), text("provider"));
    grid.text("Operation".to_owned(), text("operation"));
    grid.wrapping_text("Model".to_owned(), model.collect());
    grid.text("Outcome".to_owned(), text("outcome"));
    grid.text("Status".to_owned(), status.collect());
    grid.numbers("Tokens\nin", tokens(Unit::is_input_token));
    grid.numbers(
        "Tokens\nout",
        tokens(|unit| unit.is_token() && !unit.is_input_token()),
    );
    grid.costs("Cost\nUSD", costs);
    grid.numbers("Duration\ns", seconds("duration_us"));
    grid.numbers("First token\ns", seconds("first_token_us"));
    grid.text("Id".to_owned(), text("id"));
    // In a narrow terminal the least telling columns go first.
    let left_out = grid.fit(
        width,
        &[
            "Operation",
            "First token\ns",
            "Id",
            "Status",
            "Duration\ns",
            "Provider",
            "Tokens\nin",
            "Tokens\nout",
        ],
    );
    writeln!(out, "{title}\n\n{}", grid.render(width, Footer::None))?;
    write_left_out(out, &left_out)
}

/// A cost in a table.
#[derive(Debug, Clone, Copy)]
struct Cost {
    known: Option<DecimalSum>,
    /// Whether requests of unknown cost are missing from it.
    is_partial: bool,
}

impl Cost {
    fn of(totals: &Totals) -> Cost {
        Cost {
            known: totals.cost_usd,
            is_partial: totals.cost_usd.is_some() && totals.unpriced_requests > 0,
        }
    }
}

/// Decimal places of a cost: never less than cents, never more than a millionth.
const COST_PLACES: std::ops::RangeInclusive<u32> = 2..=6;

/// The most decimal places of a quantity.
const QUANTITY_PLACES_MAX: u32 = 3;

/// The places at which the smallest of the amounts still has two digits, so that a column of
/// amounts is aligned on its points and hides none of them.
fn cost_places(amounts: impl Iterator<Item = DecimalSum>) -> u32 {
    let smallest = amounts
        .filter_map(|amount| amount.rounded(28))
        .map(|amount| amount.abs())
        .filter(|amount| !amount.is_zero())
        .min();
    let Some(smallest) = smallest else {
        return *COST_PLACES.start();
    };
    COST_PLACES
        .clone()
        .find(|places| smallest * Decimal::from(10_u64.pow(*places)) >= Decimal::TEN)
        .unwrap_or(*COST_PLACES.end())
}

/// An amount at that many places; one that is too small to show is not shown as zero.
fn shown_amount(amount: DecimalSum, places: u32) -> String {
    let Some(rounded) = amount.rounded(places) else {
        return amount.to_string();
    };
    if rounded.is_zero() && amount != DecimalSum::ZERO {
        let least = Decimal::new(1, places);
        return if amount > DecimalSum::ZERO {
            format!("<{least}")
        } else {
            format!(">-{least}")
        };
    }
    let places = usize::try_from(places).unwrap_or_default();
    thousands(&format!("{rounded:.places$}"))
}

/// A plain decimal with its whole digits in groups of three: `-1,234,567.8901`.
fn thousands(number: &str) -> String {
    let (sign, digits) = match number.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", number),
    };
    let (whole, fraction) = match digits.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (digits, None),
    };
    let mut grouped = String::from(sign);
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if let Some(fraction) = fraction {
        grouped.push('.');
        grouped.push_str(fraction);
    }
    grouped
}

/// A text from outside, without what could rewrite the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|character| {
            let hidden = matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if character.is_control() || hidden {
                '\u{fffd}'
            } else {
                character
            }
        })
        .collect()
}

fn shown_time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S").to_string()
}

/// Whether the last row of a table sums the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Footer {
    None,
    Total,
}

/// A table column by column.
#[derive(Debug, Default)]
struct Grid {
    columns: Vec<GridColumn>,
}

#[derive(Debug)]
struct GridColumn {
    heading: String,
    alignment: CellAlignment,
    /// Whether its texts may be broken to fit a narrow terminal.
    can_wrap: bool,
    cells: Vec<String>,
}

impl GridColumn {
    /// The characters that it needs at least.
    fn width_min(&self) -> usize {
        let lines = self.heading.lines();
        let lines = lines.chain(self.cells.iter().map(String::as_str));
        let width = lines.map(|line| line.chars().count()).max().unwrap_or(0);
        if self.can_wrap {
            return width.min(usize::from(WRAPPED_WIDTH_MIN));
        }
        width
    }
}

/// The width in characters that a text keeps when it is broken.
const WRAPPED_WIDTH_MIN: u16 = 16;

/// Characters between two columns.
const GAP: u16 = 2;

impl Grid {
    fn text(&mut self, heading: String, cells: Vec<String>) {
        self.columns.push(GridColumn {
            heading,
            alignment: CellAlignment::Left,
            can_wrap: false,
            cells,
        });
    }

    fn wrapping_text(&mut self, heading: String, cells: Vec<String>) {
        self.text(heading, cells);
        if let Some(column) = self.columns.last_mut() {
            column.can_wrap = true;
        }
    }

    /// Right-aligned, never broken: a number broken in two is another number.
    fn right(&mut self, heading: &str, cells: Vec<String>) {
        self.columns.push(GridColumn {
            heading: heading.to_owned(),
            alignment: CellAlignment::Right,
            can_wrap: false,
            cells,
        });
    }

    fn numbers(&mut self, heading: &str, numbers: impl Iterator<Item = Option<DecimalSum>>) {
        let numbers: Vec<Option<DecimalSum>> = numbers.collect();
        // As many places as the numbers need, the same for all.
        let places = numbers
            .iter()
            .flatten()
            .filter_map(|number| number.rounded(QUANTITY_PLACES_MAX))
            .map(|number| number.normalize().scale())
            .max()
            .unwrap_or(0);
        let cells = numbers.iter().map(|number| match number {
            Some(number) => shown_amount(*number, places),
            None => UNKNOWN.to_owned(),
        });
        self.right(heading, cells.collect());
    }

    fn costs(&mut self, heading: &str, costs: impl Iterator<Item = Cost>) {
        let costs: Vec<Cost> = costs.collect();
        let places = cost_places(costs.iter().filter_map(|cost| cost.known));
        let cells = costs.iter().map(|cost| match cost.known {
            Some(amount) if cost.is_partial => format!("≥ {}", shown_amount(amount, places)),
            Some(amount) => shown_amount(amount, places),
            None => UNKNOWN.to_owned(),
        });
        self.right(heading, cells.collect());
    }

    /// Drops columns in the given order until the table fits the width; the headings of those
    /// that had to go.
    fn fit(&mut self, width: Option<u16>, expendable: &[&str]) -> Vec<String> {
        let Some(width) = width.map(usize::from) else {
            return Vec::new();
        };
        let mut left_out = Vec::new();
        for heading in expendable {
            if self.width_min() <= width {
                break;
            }
            let before = self.columns.len();
            self.columns.retain(|column| column.heading != *heading);
            if self.columns.len() < before {
                left_out.push((*heading).to_owned());
            }
        }
        left_out
    }

    fn width_min(&self) -> usize {
        let gaps = self.columns.len().saturating_sub(1) * usize::from(GAP);
        let columns = self.columns.iter().map(GridColumn::width_min);
        columns.sum::<usize>() + gaps
    }

    fn render(&self, width: Option<u16>, footer: Footer) -> String {
        let mut table = Table::new();
        let rule = LineStyle::none().fill('─');
        table.load_style(TableStyle::new().header_separator(rule));
        table.force_no_tty();
        table.set_header(self.columns.iter().map(|column| Cell::new(&column.heading)));
        let rows = self.columns.first().map_or(0, |column| column.cells.len());
        for row in 0..rows {
            let cells = self.columns.iter().map(|column| column.cells.get(row));
            table.add_row(cells.map(|cell| Cell::new(cell.map_or("", String::as_str))));
        }
        let last = self.columns.len().saturating_sub(1);
        for (index, (column, look)) in self.columns.iter().zip(table.column_iter_mut()).enumerate()
        {
            look.set_cell_alignment(column.alignment);
            look.set_padding((0, if index < last { GAP } else { 0 }));
            if !column.can_wrap {
                look.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        if let Some(width) = width {
            table.set_content_arrangement(ContentArrangement::Dynamic);
            table.set_width(width);
        }
        let mut lines: Vec<String> = table
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect();
        if footer == Footer::Total {
            let is_rule = |line: &&String| line.starts_with('─');
            let rule = lines.iter().find(is_rule).cloned();
            let total = lines.iter().rposition(|line| line.starts_with("Total"));
            if let (Some(rule), Some(total)) = (rule, total) {
                lines.insert(total, rule);
            }
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(text: &str) -> DecimalSum {
        text.parse().unwrap()
    }

    #[test]
    fn digits_are_grouped_in_threes() {
        for (plain, shown) in [
            ("0", "0"),
            ("999", "999"),
            ("1000", "1,000"),
            ("-1234567.8901", "-1,234,567.8901"),
        ] {
            assert_eq!(thousands(plain), shown);
        }
    }

    #[test]
    fn a_column_of_costs_shows_its_smallest_with_two_digits() {
        let places = |texts: &[&str]| cost_places(texts.iter().map(|text| sum(text)));
        assert_eq!(places(&[]), 2);
        assert_eq!(places(&["0", "12.3456"]), 2);
        assert_eq!(places(&["12.3456", "0.099"]), 3);
        assert_eq!(places(&["12.3456", "0.00012"]), 5);
        assert_eq!(places(&["0.0000000001"]), 6);
    }

    #[test]
    fn an_amount_too_small_to_show_is_not_shown_as_zero() {
        assert_eq!(shown_amount(sum("0.0000001"), 6), "<0.000001");
        assert_eq!(shown_amount(sum("-0.0000001"), 6), ">-0.000001");
        assert_eq!(shown_amount(sum("0"), 6), "0.000000");
        assert_eq!(shown_amount(sum("1234.5"), 2), "1,234.50");
    }

    #[test]
    fn a_beginning_is_a_duration_a_date_or_a_timestamp() {
        let at = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        let now = at("2026-11-24T05:06:07Z");
        let resolved = |text: &str| text.parse::<Since>().unwrap().resolve(now);
        assert_eq!(resolved("24h"), at("2026-11-23T05:06:07Z"));
        assert_eq!(resolved("1h 30m"), at("2026-11-24T03:36:07Z"));
        assert_eq!(resolved("2026-11-24"), at("2026-11-24T00:00:00Z"));
        assert_eq!(
            resolved("2026-11-24T04:00:00+01:00"),
            at("2026-11-24T03:00:00Z")
        );
        assert_eq!(resolved("7d"), at("2026-11-17T05:00:00Z"));
        assert_eq!(resolved("6d 23h"), at("2026-11-17T06:06:07Z"));
        assert_eq!(resolved("100000y"), DateTime::UNIX_EPOCH);
        let error = "yesterday".parse::<Since>().unwrap_err().to_string();
        assert!(
            error.contains("accepted are a duration (24h, 7d)"),
            "{error}"
        );
    }

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

    #[test]
    fn what_could_rewrite_a_terminal_is_not_printed() {
        assert_eq!(
            printable("gpt\u{1b}[2J\u{202e}-4o"),
            "gpt\u{fffd}[2J\u{fffd}-4o"
        );
    }

    #[test]
    fn every_unit_has_a_column_of_its_own_kind() {
        let mut shown: Vec<Unit> = MEASURES
            .iter()
            .flat_map(|(_, units)| units.iter().copied())
            .collect();
        shown.sort_unstable();
        assert_eq!(shown, Unit::ALL);
    }
}
