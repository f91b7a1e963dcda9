//! What can be asked of a store, and the sums that it answers with.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, SecondsFormat, Utc};
use uuid::Uuid;

use crate::fault::Outcome;
use crate::record::UsageRecord;
use crate::usage::Unit;

use super::sum::DecimalSum;

/// A timestamp as stored and shown: RFC 3339 in UTC with microseconds, which sorts as text.
pub(crate) fn timestamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// What usage can be grouped by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dimension {
    /// The provider's name.
    Provider,
    /// The served model, else the requested one.
    Model,
    /// What was asked.
    Operation,
    /// How it ended.
    Outcome,
    /// The UTC day on which the request started.
    Day,
    /// The UTC hour in which the request started.
    Hour,
    /// The fingerprint of the key.
    Key,
    /// The process that metered it.
    Instance,
    /// The Kubernetes namespace of that process.
    Namespace,
    /// The tier that was billed.
    ServiceTier,
    /// An attribution label.
    Attribution(String),
}

impl Dimension {
    /// The dimensions with a name of their own; any other name is an attribution label's.
    pub const NAMED: &'static [Dimension] = &[
        Dimension::Provider,
        Dimension::Model,
        Dimension::Operation,
        Dimension::Outcome,
        Dimension::Day,
        Dimension::Hour,
        Dimension::Key,
        Dimension::Instance,
        Dimension::Namespace,
        Dimension::ServiceTier,
    ];

    /// The name, as in `--by`.
    pub fn as_str(&self) -> &str {
        match self {
            Dimension::Provider => "provider",
            Dimension::Model => "model",
            Dimension::Operation => "operation",
            Dimension::Outcome => "outcome",
            Dimension::Day => "day",
            Dimension::Hour => "hour",
            Dimension::Key => "key",
            Dimension::Instance => "instance",
            Dimension::Namespace => "namespace",
            Dimension::ServiceTier => "service_tier",
            Dimension::Attribution(label) => label,
        }
    }

    /// Whether the aggregates know it; the others need the rows.
    pub(crate) const fn is_aggregated(&self) -> bool {
        match self {
            Dimension::Provider
            | Dimension::Model
            | Dimension::Operation
            | Dimension::Day
            | Dimension::Hour
            | Dimension::Namespace
            | Dimension::Attribution(_) => true,
            Dimension::Outcome | Dimension::Key | Dimension::Instance | Dimension::ServiceTier => {
                false
            }
        }
    }
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text cannot name a dimension.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a dimension: accepted are provider, model, operation, outcome, day, hour, key, \
     instance, namespace, service_tier and the names of attribution labels"
)]
pub struct ParseDimensionError(String);

/// A named dimension, else an attribution label of that name. Whether a label of that name
/// exists only the store can tell.
impl FromStr for Dimension {
    type Err = ParseDimensionError;

    fn from_str(text: &str) -> Result<Dimension, ParseDimensionError> {
        let text = text.trim();
        let named = Dimension::NAMED.iter().find(|named| named.as_str() == text);
        if let Some(named) = named {
            return Ok(named.clone());
        }
        // The form of a Prometheus label name, which attribution labels have too.
        let is_label = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
            && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_label {
            return Err(ParseDimensionError(text.to_owned()));
        }
        Ok(Dimension::Attribution(text.to_owned()))
    }
}

/// What was spent, by group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageQuery {
    /// Requests that started at or after this moment.
    pub since: DateTime<Utc>,
    /// The dimensions of a group; none asks for the total alone.
    pub by: Vec<Dimension>,
}

/// A group of requests and what they spent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageRow {
    /// The group's value of each dimension of the query; `None` is unknown.
    pub group: Vec<Option<String>>,
    /// What its requests spent.
    pub totals: Totals,
}

/// What a set of requests spent. Sums are exact, and absent where no request knew the quantity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// How many requests there were.
    pub requests: i64,
    /// How many of them cost something unknown; an error that the provider answered is none of
    /// them, though it has no cost either.
    pub unpriced_requests: i64,
    /// The sum of the known costs, in US dollars.
    pub cost_usd: Option<DecimalSum>,
    /// The part of it that another party bills.
    pub cost_upstream_usd: Option<DecimalSum>,
    /// The sums of the known quantities.
    pub quantities: BTreeMap<Unit, DecimalSum>,
}

impl Totals {
    /// What one request spent.
    pub fn of(record: &UsageRecord) -> Totals {
        let sum = |usd: crate::money::Usd| DecimalSum::from(usd.dollars());
        Totals {
            requests: 1,
            unpriced_requests: i64::from(record.unpriced_reason.is_some()),
            cost_usd: record.cost_usd.map(sum),
            cost_upstream_usd: record.cost_upstream_usd.map(sum),
            quantities: record
                .usage
                .iter()
                .map(|(unit, quantity)| (unit, quantity.into()))
                .collect(),
        }
    }

    /// Adds `other`; `None` if a sum leaves its range.
    #[must_use]
    pub fn checked_add(mut self, other: &Totals) -> Option<Totals> {
        self.requests = self.requests.checked_add(other.requests)?;
        self.unpriced_requests = self
            .unpriced_requests
            .checked_add(other.unpriced_requests)?;
        self.cost_usd = checked_add_known(self.cost_usd, other.cost_usd)?;
        self.cost_upstream_usd =
            checked_add_known(self.cost_upstream_usd, other.cost_upstream_usd)?;
        for (unit, quantity) in &other.quantities {
            let sum = self.quantities.entry(*unit).or_default();
            *sum = sum.checked_add(*quantity)?;
        }
        Some(self)
    }
}

/// The sum of what is known of two quantities; the outer `None` if it leaves its range.
fn checked_add_known(
    left: Option<DecimalSum>,
    right: Option<DecimalSum>,
) -> Option<Option<DecimalSum>> {
    match (left, right) {
        (Some(left), Some(right)) => left.checked_add(right).map(Some),
        (known, None) | (None, known) => Some(known),
    }
}

/// The detailed rows, newest `started_at` first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogQuery {
    /// At most that many rows.
    pub limit: u32,
    /// Only rows that come after the row of this id, which means older ones.
    pub before: Option<Uuid>,
    /// Only rows of this provider.
    pub provider: Option<String>,
    /// Only rows that ended like this.
    pub outcome: Option<Outcome>,
}

/// How long a bucket of the sums is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Granularity {
    Day,
    Hour,
}

impl Granularity {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Granularity::Day => "day",
            Granularity::Hour => "hour",
        }
    }

    const fn seconds(self) -> i64 {
        match self {
            Granularity::Day => 86_400,
            Granularity::Hour => 3_600,
        }
    }

    /// The start of the bucket that `at` lies in.
    pub(super) fn start(self, at: DateTime<Utc>) -> DateTime<Utc> {
        let start = at.timestamp().div_euclid(self.seconds()) * self.seconds();
        DateTime::from_timestamp(start, 0).unwrap_or(at)
    }

    /// The first start of a bucket that is not before `at`.
    fn next_start(self, at: DateTime<Utc>) -> DateTime<Utc> {
        let start = self.start(at);
        if start == at {
            return at;
        }
        DateTime::from_timestamp(start.timestamp() + self.seconds(), 0).unwrap_or(at)
    }
}

/// The start of a bucket as stored: the timestamps of rows without their fraction.
pub(super) fn bucket_start(start: DateTime<Utc>) -> String {
    start.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// A table and the part of time that is read from it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Source {
    /// `None` for the rows.
    pub(super) granularity: Option<Granularity>,
    pub(super) from: DateTime<Utc>,
    pub(super) to: Option<DateTime<Utc>>,
}

/// Where a query reads: sums for the whole hours and days, rows for what comes before the first
/// whole hour, so that the window is exact and long windows are cheap. Dimensions that the sums
/// do not have are read from the rows alone.
pub(super) fn sources(query: &UsageQuery) -> Vec<Source> {
    let since = query.since;
    if !query.by.iter().all(Dimension::is_aggregated) {
        return vec![Source {
            granularity: None,
            from: since,
            to: None,
        }];
    }
    let first_hour = Granularity::Hour.next_start(since);
    let mut sources = vec![Source {
        granularity: None,
        from: since,
        to: Some(first_hour),
    }];
    if query.by.contains(&Dimension::Hour) {
        sources.push(Source {
            granularity: Some(Granularity::Hour),
            from: first_hour,
            to: None,
        });
    } else {
        let first_day = Granularity::Day.next_start(first_hour);
        sources.push(Source {
            granularity: Some(Granularity::Hour),
            from: first_hour,
            to: Some(first_day),
        });
        sources.push(Source {
            granularity: Some(Granularity::Day),
            from: first_day,
            to: None,
        });
    }
    sources.retain(|source| source.to.is_none_or(|to| source.from < to));
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dimension_is_found_by_its_name() {
        for dimension in Dimension::NAMED {
            assert_eq!(dimension.as_str().parse().as_ref(), Ok(dimension));
        }
        let team = Dimension::Attribution("team".into());
        assert_eq!(" team ".parse(), Ok(team));
    }

    #[test]
    fn what_cannot_be_a_dimension_is_refused_with_what_is_accepted() {
        for text in ["", "cost-center", "1st", "$.team", "team,model"] {
            let error = text.parse::<Dimension>().unwrap_err().to_string();
            assert!(error.contains("accepted are provider, model"), "{error}");
        }
    }

    #[test]
    fn unknown_and_zero_stay_apart_in_a_sum() {
        let unknown = Totals {
            requests: 1,
            unpriced_requests: 1,
            ..Totals::default()
        };
        let free = Totals {
            requests: 1,
            cost_usd: Some(DecimalSum::ZERO),
            ..Totals::default()
        };
        let both = unknown.clone().checked_add(&unknown).unwrap();
        assert_eq!(both.cost_usd, None);
        let mixed = both.checked_add(&free).unwrap();
        assert_eq!(
            (mixed.cost_usd, mixed.unpriced_requests),
            (Some(DecimalSum::ZERO), 2)
        );
    }

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn plan(since: &str, by: &[Dimension]) -> Vec<Source> {
        sources(&UsageQuery {
            since: at(since),
            by: by.to_vec(),
        })
    }

    fn source(granularity: Option<Granularity>, from: &str, to: Option<&str>) -> Source {
        Source {
            granularity,
            from: at(from),
            to: to.map(at),
        }
    }

    #[test]
    fn a_window_is_read_from_rows_then_hours_then_days() {
        assert_eq!(
            plan("2026-11-23T05:07:09Z", &[Dimension::Model]),
            [
                source(None, "2026-11-23T05:07:09Z", Some("2026-11-23T06:00:00Z")),
                source(
                    Some(Granularity::Hour),
                    "2026-11-23T06:00:00Z",
                    Some("2026-11-24T00:00:00Z")
                ),
                source(Some(Granularity::Day), "2026-11-24T00:00:00Z", None),
            ]
        );
    }

    #[test]
    fn a_window_of_whole_days_needs_the_days_alone() {
        assert_eq!(
            plan("2026-11-23T00:00:00Z", &[Dimension::Day]),
            [source(Some(Granularity::Day), "2026-11-23T00:00:00Z", None)]
        );
    }

    #[test]
    fn hours_are_never_read_from_days_and_details_from_rows_alone() {
        let since = "2026-11-23T05:00:00Z";
        assert_eq!(
            plan(since, &[Dimension::Hour]),
            [source(Some(Granularity::Hour), since, None)]
        );
        assert_eq!(
            plan(since, &[Dimension::Model, Dimension::Outcome]),
            [source(None, since, None)]
        );
    }
}
