//! Bills against what was metered, as rows.

use chrono::{DateTime, NaiveDate, Utc};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

use super::query::timestamp;
use super::{DecimalSum, StoreError, parse_sum};

/// The result of a day whose bill was read.
const OK: &str = "ok";

/// A day of an account: the provider's bill against what was metered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reconciliation {
    /// The provider's name.
    pub provider: String,
    /// The account's name.
    pub account: String,
    /// The UTC day. An account has one row for each.
    pub day: NaiveDate,
    /// From when to when the bill counts: midnights, or the balance readings next to them.
    pub window: (DateTime<Utc>, DateTime<Utc>),
    /// When the bill was read.
    pub read_at: DateTime<Utc>,
    /// `ok`, or the class of its fault.
    pub result: String,
    /// Where the bill is from.
    pub source: Option<String>,
    /// What the provider says was spent, in US dollars.
    pub provider_spend_usd: Option<Decimal>,
    /// What was seen.
    pub metered: Option<Metered>,
    /// What is to be said of it, in a line; why it failed if it did.
    pub detail: Option<String>,
}

/// What was seen of an account's traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metered {
    /// What it cost, without what another party bills; `None` if no request's cost is known.
    pub cost_usd: Option<Decimal>,
    /// What another party bills for it.
    pub upstream_usd: Option<Decimal>,
    /// How many requests there were.
    pub requests: i64,
    /// How many of them cost something unknown.
    pub unpriced_requests: i64,
    /// How many keys made them.
    pub keys: i32,
    /// How many further keys made requests to the provider that no account claims.
    pub unclaimed_keys: i32,
}

impl Reconciliation {
    /// Whether the bill was read.
    pub fn is_ok(&self) -> bool {
        self.result == OK
    }

    /// What was billed and not seen; negative if more was metered than billed.
    pub fn unmetered_usd(&self) -> Option<Decimal> {
        let metered = self.metered.as_ref()?.cost_usd?;
        Some(self.provider_spend_usd?.saturating_sub(metered))
    }
}

/// What the requests of a key cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySpend {
    /// The fingerprint of the key, where the requests had one.
    pub key_fingerprint: Option<String>,
    /// How many requests there were.
    pub requests: i64,
    /// How many of them cost something unknown.
    pub unpriced_requests: i64,
    /// The sum of the known costs, in US dollars.
    pub cost_usd: Option<DecimalSum>,
    /// The part of it that another party bills.
    pub cost_upstream_usd: Option<DecimalSum>,
}

/// A [`KeySpend`] as the store answers it; decimals as text.
#[derive(Debug, Deserialize)]
pub(super) struct SpendLine {
    key_fingerprint: Option<String>,
    requests: i64,
    unpriced_requests: i64,
    cost_usd: Option<String>,
    cost_upstream_usd: Option<String>,
}

impl SpendLine {
    pub(super) fn read(self) -> Result<KeySpend, StoreError> {
        let sum = |text: Option<String>| text.as_deref().map(parse_sum).transpose();
        Ok(KeySpend {
            key_fingerprint: self.key_fingerprint,
            requests: self.requests,
            unpriced_requests: self.unpriced_requests,
            cost_usd: sum(self.cost_usd)?,
            cost_upstream_usd: sum(self.cost_upstream_usd)?,
        })
    }
}

/// The columns of `api_reconciliations`, in the order of [`Line`].
pub(super) const COLUMNS: [&str; 17] = [
    "provider",
    "account",
    "day",
    "window_start",
    "window_end",
    "read_at",
    "result",
    "source",
    "provider_spend_usd",
    "metered_usd",
    "unmetered_usd",
    "upstream_usd",
    "requests",
    "unpriced_requests",
    "metered_keys",
    "unclaimed_keys",
    "detail",
];

/// A row of `api_reconciliations`; decimals, days and times as text.
#[derive(Debug, Clone, Serialize, Deserialize, sqlx::FromRow)]
pub(super) struct Line {
    pub(super) provider: String,
    pub(super) account: String,
    pub(super) day: String,
    pub(super) window_start: String,
    pub(super) window_end: String,
    pub(super) read_at: String,
    pub(super) result: String,
    pub(super) source: Option<String>,
    pub(super) provider_spend_usd: Option<String>,
    pub(super) metered_usd: Option<String>,
    pub(super) unmetered_usd: Option<String>,
    pub(super) upstream_usd: Option<String>,
    pub(super) requests: Option<i64>,
    pub(super) unpriced_requests: Option<i64>,
    pub(super) metered_keys: Option<i32>,
    pub(super) unclaimed_keys: Option<i32>,
    pub(super) detail: Option<String>,
}

impl Line {
    pub(super) fn of(row: &Reconciliation) -> Line {
        let text = |amount: Option<Decimal>| amount.map(|own| own.normalize().to_string());
        let metered = row.metered.as_ref();
        Line {
            provider: row.provider.clone(),
            account: row.account.clone(),
            day: row.day.to_string(),
            window_start: timestamp(row.window.0),
            window_end: timestamp(row.window.1),
            read_at: timestamp(row.read_at),
            result: row.result.clone(),
            source: row.source.clone(),
            provider_spend_usd: text(row.provider_spend_usd),
            metered_usd: text(metered.and_then(|own| own.cost_usd)),
            unmetered_usd: text(row.unmetered_usd()),
            upstream_usd: text(metered.and_then(|own| own.upstream_usd)),
            requests: metered.map(|own| own.requests),
            unpriced_requests: metered.map(|own| own.unpriced_requests),
            metered_keys: metered.map(|own| own.keys),
            unclaimed_keys: metered.map(|own| own.unclaimed_keys),
            detail: row.detail.clone(),
        }
    }

    pub(super) fn read(self) -> Result<Reconciliation, StoreError> {
        let unreadable =
            |what: &str| StoreError::Unusable(format!("a reconciliation has no readable {what}"));
        let time = |text: &str| text.parse().map_err(|_| unreadable("time"));
        let amount = |text: Option<String>| {
            let amount = text.map(|text| text.parse::<Decimal>());
            amount.transpose().map_err(|_| unreadable("amount"))
        };
        let metered = match self.requests {
            None => None,
            Some(requests) => Some(Metered {
                cost_usd: amount(self.metered_usd)?,
                upstream_usd: amount(self.upstream_usd)?,
                requests,
                unpriced_requests: self.unpriced_requests.unwrap_or_default(),
                keys: self.metered_keys.unwrap_or_default(),
                unclaimed_keys: self.unclaimed_keys.unwrap_or_default(),
            }),
        };
        Ok(Reconciliation {
            provider: self.provider,
            account: self.account,
            day: self.day.parse().map_err(|_| unreadable("day"))?,
            window: (time(&self.window_start)?, time(&self.window_end)?),
            read_at: time(&self.read_at)?,
            result: self.result,
            source: self.source,
            provider_spend_usd: amount(self.provider_spend_usd)?,
            metered,
            detail: self.detail,
        })
    }
}
