//! `taffrail usage`: what was spent, by group.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::table::{Cost, Footer, Grid, UNKNOWN, printable, shown_time, thousands, write_left_out};
use super::{Format, ParseOptionError, ReportError, write_json_line};
use crate::store::{DecimalSum, Dimension, Store, TOKEN_COLUMNS, Totals, UsageQuery, UsageRow};
use crate::usage::Unit;

/// Windows from this length on begin on a whole hour, where sums alone answer: they outlive the
/// rows, which may be gone at the window's beginning.
const LONG_WINDOW: TimeDelta = TimeDelta::days(7);

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
        Dimension::Namespace => "Namespace",
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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn every_unit_has_a_column_of_its_own_kind() {
        let mut shown: Vec<Unit> = MEASURES
            .iter()
            .flat_map(|(_, units)| units.iter().copied())
            .collect();
        shown.sort_unstable();
        assert_eq!(shown, Unit::ALL);
    }
}
