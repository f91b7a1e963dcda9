//! What a store keeps of prices: versions of lists, what is held back, and costs that changed.

use chrono::{DateTime, NaiveDate, Utc};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::record::CostSource;

/// How many versions are read at a time.
pub(super) const VERSIONS_PER_READ: i32 = 50;

/// A version of a price list.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PriceVersion {
    /// Counts the versions of all sources.
    pub number: i64,
    /// Its name, as rows name it.
    pub version: String,
    /// Whose list it is.
    pub source: String,
    /// From when its prices hold for models that had others before.
    pub effective_from: DateTime<Utc>,
    /// What it changes, in JSON.
    pub catalogue: String,
}

/// A version that is to be kept.
#[derive(Debug, Clone, Copy)]
pub struct NewPriceVersion<'a> {
    /// Its name; a number is appended if there is one of that name already.
    pub version: &'a str,
    /// Whose list it is.
    pub source: &'a str,
    /// From when its prices hold for models that had others before.
    pub effective_from: DateTime<Utc>,
    /// What it changes since the version of the number `since`, in JSON.
    pub catalogue: &'a str,
    /// The number of the source's last version; 0 if it has none.
    pub since: i64,
}

/// How it stands with a source of prices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriceRefresh {
    /// Whose list it is.
    pub source: String,
    /// When it was last read in full.
    pub checked_at: DateTime<Utc>,
    /// Changes that wait for a person's word, in JSON, and what looks wrong about them.
    pub held_back: Option<(String, String)>,
}

/// Which rows are to be costed anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CostQuery {
    /// Rows that started at this moment or later.
    pub since: DateTime<Utc>,
    /// Rows that started before this moment.
    pub until: DateTime<Utc>,
    /// Only rows of this provider.
    pub provider: Option<String>,
    /// Only rows of this model: the served one, else the requested one.
    pub model: Option<String>,
}

/// Another cost for a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CostChange {
    /// The row.
    pub id: Uuid,
    /// Its day.
    pub day: NaiveDate,
    /// The cost that it had when this was computed; `None` was unknown.
    pub old_cost_usd: Option<Decimal>,
    /// The cost that it is to have.
    pub cost_usd: Decimal,
    /// The part of it that another party bills, if it is told.
    pub cost_upstream_usd: Option<Decimal>,
    /// Where that comes from.
    pub cost_source: CostSource,
    /// The version of the price list, if it comes from one.
    pub price_version: Option<String>,
}
