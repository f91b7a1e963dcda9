//! Readings of accounts as rows, and what traffic shows of accounts.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

use super::StoreError;
use super::query::timestamp;
use crate::balance::{Balance, BalanceKind};
use crate::fault::Outcome;

/// How far back readings are looked for, in days: long enough for a long outage, short enough to
/// be quick.
pub(super) const LATEST_DAYS: i64 = 30;

/// How many readings of an account are returned for each way to end: the last, and the one before
/// it to tell how fast money goes.
pub(super) const LATEST_EACH: i64 = 2;

/// The result of a reading that succeeded.
const OK: &str = "ok";

/// A reading of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalanceReading {
    /// The provider's name.
    pub provider: String,
    /// The account's name.
    pub account: String,
    /// Its scheduled time, or its own if it was asked for. An account has one reading for each.
    pub slot: DateTime<Utc>,
    /// When it was read.
    pub read_at: DateTime<Utc>,
    /// `ok`, or the class of its fault.
    pub result: String,
    /// What was read; empty if it failed.
    pub balances: Vec<Balance>,
    /// What is to be said of it, in a line; why it failed if it did.
    pub detail: Option<String>,
    /// The answer as JSON, without anything that could be a key.
    pub raw: Option<String>,
}

impl BalanceReading {
    /// Whether it succeeded.
    pub fn is_ok(&self) -> bool {
        self.result == OK
    }
}

/// What traffic shows of an account: the last time that its provider refused a request for a
/// reason that is the account's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountSignal {
    /// The provider's name.
    pub provider: String,
    /// The fingerprint of the key, where the request had one.
    pub key_fingerprint: Option<String>,
    /// What it was refused for: quota exhausted, account locked, or rate limited.
    pub outcome: Outcome,
    /// When.
    pub at: DateTime<Utc>,
    /// Whether a request with that key succeeded since.
    pub is_over: bool,
}

/// A row of `api_provider_balances`; decimals and times as text.
#[derive(Debug, Clone, Serialize, Deserialize, sqlx::FromRow)]
pub(super) struct Part {
    pub(super) provider: String,
    pub(super) account: String,
    pub(super) slot: String,
    pub(super) part: i16,
    pub(super) read_at: String,
    pub(super) result: String,
    pub(super) kind: Option<String>,
    pub(super) currency: Option<String>,
    pub(super) balance: Option<String>,
    pub(super) detail: Option<String>,
    pub(super) raw: Option<String>,
}

/// The rows of a reading, one at least.
pub(super) fn parts(reading: &BalanceReading) -> Vec<Part> {
    let row = |index: usize, balance: Option<&Balance>| Part {
        provider: reading.provider.clone(),
        account: reading.account.clone(),
        slot: timestamp(reading.slot),
        part: i16::try_from(index).unwrap_or(i16::MAX),
        read_at: timestamp(reading.read_at),
        result: reading.result.clone(),
        kind: balance.map(|balance| balance.kind.as_str().to_owned()),
        currency: balance.map(|balance| balance.currency.clone()),
        balance: balance.and_then(|balance| Some(balance.amount?.to_string())),
        // The others would only repeat it.
        detail: reading.detail.clone().filter(|_| index == 0),
        raw: reading.raw.clone().filter(|_| index == 0),
    };
    if reading.balances.is_empty() {
        return vec![row(0, None)];
    }
    let balances = reading.balances.iter().enumerate();
    balances
        .map(|(index, balance)| row(index, Some(balance)))
        .collect()
}

/// The readings that rows come to, by account and time.
pub(super) fn readings(parts: Vec<Part>) -> Result<Vec<BalanceReading>, StoreError> {
    let unreadable = |what: &str| StoreError::Unusable(format!("a balance has no readable {what}"));
    let time = |text: &str| {
        text.parse::<DateTime<Utc>>()
            .map_err(|_| unreadable("time"))
    };
    let mut readings: BTreeMap<(String, String, DateTime<Utc>), BalanceReading> = BTreeMap::new();
    for part in parts {
        let slot = time(&part.slot)?;
        let read_at = time(&part.read_at)?;
        let amount = part
            .balance
            .as_deref()
            .map(|text| text.parse::<Decimal>().map_err(|_| unreadable("amount")));
        let balance = match (part.kind.as_deref(), part.currency) {
            (Some(kind), Some(currency)) => Some(Balance {
                kind: BalanceKind::from_name(kind).ok_or_else(|| unreadable("kind"))?,
                currency,
                amount: amount.transpose()?,
            }),
            _ => None,
        };
        let key = (part.provider.clone(), part.account.clone(), slot);
        let reading = readings.entry(key).or_insert(BalanceReading {
            provider: part.provider,
            account: part.account,
            slot,
            read_at,
            result: part.result,
            balances: Vec::new(),
            detail: None,
            raw: None,
        });
        reading.balances.extend(balance);
        reading.detail = reading.detail.take().or(part.detail);
        reading.raw = reading.raw.take().or(part.raw);
    }
    Ok(readings.into_values().collect())
}

/// An [`AccountSignal`] as the store answers it.
#[derive(Debug, Deserialize, sqlx::FromRow)]
pub(super) struct Signal {
    pub(super) provider: String,
    pub(super) key_fingerprint: Option<String>,
    pub(super) outcome: String,
    pub(super) at: String,
    pub(super) is_over: bool,
}

impl Signal {
    /// `None` if it is of another version.
    pub(super) fn read(self) -> Option<AccountSignal> {
        Some(AccountSignal {
            provider: self.provider,
            key_fingerprint: self.key_fingerprint,
            outcome: Outcome::from_name(&self.outcome)?,
            at: self.at.parse().ok()?,
            is_over: self.is_over,
        })
    }
}
