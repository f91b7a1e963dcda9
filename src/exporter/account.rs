//! The accounts whose balances are read, as the configuration declares them.

use std::path::PathBuf;

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use rust_decimal::Decimal;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ask::{Fault, FaultClass};
use crate::secret::Secret;

/// An account whose balance is read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Account {
    /// The provider's name. Required.
    pub provider: String,
    /// The account's name, as the `account` label. Required, and unique for the provider.
    pub name: String,
    /// The key that the balance is read with; docs/balances.md says which kind each provider
    /// wants. Prefer `api_key_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub api_key: Option<Secret>,
    /// A file that holds the key. It is read at each sync, so that a key can be rotated.
    pub api_key_file: Option<PathBuf>,
    /// The variable of the environment that holds the key, such as `OPENROUTER_API_KEY`.
    pub api_key_env: Option<String>,
    /// The key that the bill is read with, where that is another one: an admin key of OpenAI or
    /// Anthropic. Prefer `admin_key_file`. Unset, it is the one that the balance is read with.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub admin_key: Option<Secret>,
    /// A file that holds `admin_key`. It is read each time.
    pub admin_key_file: Option<PathBuf>,
    /// The fingerprints of the keys whose traffic this account pays for, as `taffrail usage --by key`
    /// shows them, with spaces between. Needed where a provider has several accounts; unset, the
    /// only account of a provider pays for all of its traffic.
    pub key_fingerprints: Option<String>,
    /// The provider's own id of the account, where its billing API wants one: xAI's team id. With
    /// OpenAI it is the project that the bill is of, in place of the organisation.
    pub billing_id: Option<String>,
    /// The currency of `top_ups`, and of a balance whose currency neither the API nor its host
    /// tells, as ISO 4217 has it. Unset, it is the provider's usual one.
    pub currency: Option<String>,
    /// The balance below which somebody is to look, exported as a gauge.
    #[serde(deserialize_with = "amount::optional")]
    #[schemars(with = "Option<f64>")]
    pub warning_below: Option<Decimal>,
    /// The balance below which somebody is to be woken, exported as a gauge.
    #[serde(deserialize_with = "amount::optional")]
    #[schemars(with = "Option<f64>")]
    pub critical_below: Option<Decimal>,
    /// How many US dollars one of the balance's currency is, to tell the bill from a balance that is
    /// not in dollars.
    #[serde(deserialize_with = "amount::optional")]
    #[schemars(with = "Option<f64>")]
    pub usd_rate: Option<Decimal>,
    /// What was paid in, where no API tells the balance: it is then kept as a ledger, these less
    /// what the traffic has cost since the first of them.
    pub top_ups: Vec<TopUp>,
}

impl Account {
    /// The key as it is now: that of the file, so that it can be rotated, else the configured one.
    ///
    /// # Errors
    /// When the file cannot be read or is empty.
    pub fn current_key(&self) -> Result<Option<Secret>, Fault> {
        key_of(self.api_key_file.as_ref(), self.api_key.as_ref())
    }

    /// Its `key_fingerprints`, one by one.
    pub fn fingerprints(&self) -> impl Iterator<Item = &str> {
        let all = self.key_fingerprints.as_deref().unwrap_or_default();
        all.split_ascii_whitespace()
    }

    /// Whether it has a key for bills alone.
    pub fn has_admin_key(&self) -> bool {
        self.admin_key.is_some() || self.admin_key_file.is_some()
    }

    /// The key that the bill is read with, as it is now.
    ///
    /// # Errors
    /// As [`Account::current_key`].
    pub fn bill_key(&self) -> Result<Option<Secret>, Fault> {
        match key_of(self.admin_key_file.as_ref(), self.admin_key.as_ref())? {
            Some(key) => Ok(Some(key)),
            None => self.current_key(),
        }
    }
}

/// The key that a file holds now, else the configured one.
fn key_of(file: Option<&PathBuf>, configured: Option<&Secret>) -> Result<Option<Secret>, Fault> {
    let Some(path) = file else {
        return Ok(configured.cloned());
    };
    let cannot = |why: String| {
        let path = path.display();
        let detail = format!("cannot read the key from {path}: {why}");
        Fault::new(FaultClass::Auth, detail)
    };
    let text = std::fs::read_to_string(path).map_err(|error| cannot(error.to_string()))?;
    let text = text.trim();
    if text.is_empty() {
        return Err(cannot("it is empty".to_owned()));
    }
    Ok(Some(Secret::new(text)))
}

/// A payment into an account.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TopUp {
    /// When it was paid in. A date is its first moment in UTC. Required.
    #[serde(deserialize_with = "moment")]
    #[schemars(with = "String")]
    pub at: DateTime<Utc>,
    /// How much: a number, or the text of one. Required.
    #[serde(deserialize_with = "amount::required")]
    #[schemars(with = "f64")]
    pub amount: Decimal,
}

/// A date, which is its first moment in UTC, or a timestamp.
fn moment<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<DateTime<Utc>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let date = text.parse::<NaiveDate>();
    date.map(|day| day.and_time(NaiveTime::MIN).and_utc())
        .or_else(|_| text.parse())
        .map_err(|_| serde::de::Error::custom("not a date or a timestamp"))
}

/// Decimals as people write them: as a number or as text. A float is taken as the shortest text
/// that reads as it, which is what was written.
mod amount {
    use rust_decimal::Decimal;
    use serde::{Deserialize, Deserializer, de};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Integer(i64),
        Float(f64),
        Text(String),
    }

    impl Written {
        fn read<E: de::Error>(self) -> Result<Decimal, E> {
            let text = match self {
                Written::Integer(number) => number.to_string(),
                Written::Float(number) => number.to_string(),
                Written::Text(text) => text,
            };
            crate::money::parse_decimal(&text).ok_or_else(|| E::custom("not an amount"))
        }
    }

    pub(super) fn required<'de, D: Deserializer<'de>>(from: D) -> Result<Decimal, D::Error> {
        Written::deserialize(from)?.read()
    }

    pub(super) fn optional<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Decimal>, D::Error> {
        Option::<Written>::deserialize(from)?
            .map(Written::read)
            .transpose()
    }
}
