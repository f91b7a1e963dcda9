//! Rows whose cost only their provider can tell, and how often it was asked.

use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{StoreError, parse_sum};

/// Which rows are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UncertainQuery {
    /// The provider.
    pub provider: String,
    /// Rows that started at this moment or later.
    pub since: DateTime<Utc>,
    /// Rows that started before this moment.
    pub until: DateTime<Utc>,
    /// Only rows of keys with these fingerprints; `None` are all.
    pub keys: Option<Vec<String>>,
    /// How often a row is asked about at most.
    pub tries_max: u32,
    /// How many rows are returned at most: those that were asked about least, oldest first.
    pub limit: u32,
}

/// Rows that were found, and how many there are in all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uncertain {
    /// Some of them.
    pub rows: Vec<UncertainCost>,
    /// How many more there are.
    pub left: u64,
}

/// A row whose cost is unknown or an estimate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UncertainCost {
    /// The row.
    pub id: Uuid,
    /// Its day.
    pub day: NaiveDate,
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// The provider's id of the request.
    pub provider_request_id: Option<String>,
    /// The provider's id of the job.
    pub job_id: Option<String>,
    /// The estimate.
    pub cost_usd: Option<Decimal>,
    /// How often its provider was asked about it.
    pub tries: u32,
}

/// That a provider was asked about a row, and did not tell its cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiptTry {
    /// The row.
    pub id: Uuid,
    /// How often it was asked about now.
    pub tries: u32,
    /// How long it is not asked about again.
    pub pause: Duration,
}

/// An [`UncertainCost`] as the store answers it; decimals and times as text.
#[derive(Debug, Deserialize, sqlx::FromRow)]
pub(super) struct UncertainLine {
    pub(super) id: String,
    pub(super) day: String,
    pub(super) started_at: String,
    pub(super) provider_request_id: Option<String>,
    pub(super) job_id: Option<String>,
    pub(super) cost_usd: Option<String>,
    pub(super) tries: i64,
    pub(super) all_rows: i64,
}

impl UncertainLine {
    fn read(self) -> Result<UncertainCost, StoreError> {
        let unreadable = |what| StoreError::Unusable(format!("a row's {what} is not readable"));
        let cost = self.cost_usd.as_deref().map(parse_sum).transpose()?;
        let cost = cost.map(|cost| cost.rounded(28).ok_or_else(|| unreadable("cost")));
        Ok(UncertainCost {
            id: self.id.parse().map_err(|_| unreadable("id"))?,
            day: self.day.parse().map_err(|_| unreadable("day"))?,
            started_at: self
                .started_at
                .parse()
                .map_err(|_| unreadable("started_at"))?,
            provider_request_id: self.provider_request_id,
            job_id: self.job_id,
            cost_usd: cost.transpose()?,
            tries: u32::try_from(self.tries).unwrap_or(u32::MAX),
        })
    }
}

/// What lines come to.
pub(super) fn uncertain(lines: Vec<UncertainLine>) -> Result<Uncertain, StoreError> {
    let all = lines.first().map_or(0, |line| line.all_rows);
    let rows: Vec<UncertainCost> = lines
        .into_iter()
        .map(UncertainLine::read)
        .collect::<Result<_, _>>()?;
    let all = usize::try_from(all).unwrap_or_default();
    let left = all.saturating_sub(rows.len());
    Ok(Uncertain {
        rows,
        left: u64::try_from(left).unwrap_or(u64::MAX),
    })
}

/// A [`ReceiptTry`] as the store is told of it.
#[derive(Debug, Serialize)]
pub(super) struct TryLine {
    id: Uuid,
    tries: u32,
    pause_seconds: f64,
}

impl TryLine {
    pub(super) fn of(told: &ReceiptTry) -> TryLine {
        TryLine {
            id: told.id,
            tries: told.tries,
            pause_seconds: told.pause.as_secs_f64(),
        }
    }
}
