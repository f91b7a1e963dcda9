//! `taffrail logs`: the detailed rows, newest first.

use std::io;

use rust_decimal::Decimal;
use uuid::Uuid;

use super::table::{Cost, Footer, Grid, UNKNOWN, printable, write_left_out};
use super::{Format, ReportError, write_csv, write_json_line};
use crate::fault::Outcome;
use crate::store::{COLUMNS, DecimalSum, LogQuery, LogRow, Store, TOKEN_COLUMNS, Value};
use crate::usage::Unit;

/// The rows that `taffrail logs` shows unless told otherwise.
pub const LOGS_LIMIT_DEFAULT: u32 = 50;

/// The most rows that `taffrail logs --limit` takes; `--all` has no limit.
pub const LOGS_LIMIT_MAX: u32 = 10_000;

/// The rows that are held at a time while all of them are written.
const PAGE_ROWS: u32 = 1_000;

/// What `taffrail logs` is asked: of the rows, or of the dead letters.
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
    check_limit(request.limit)?;
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

/// Refuses a limit out of range; without one everything is asked for.
pub(super) fn check_limit(limit: Option<u32>) -> Result<(), ReportError> {
    match limit {
        Some(limit) if !(1..=LOGS_LIMIT_MAX).contains(&limit) => Err(ReportError::Limit(limit)),
        _ => Ok(()),
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

fn csv_field(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Text(text) | Value::Json(text) => text.to_string(),
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
