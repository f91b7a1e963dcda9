//! A row of `api_usage_logs`: the contract's columns, and how a record becomes one.
//!
//! Both stores insert these values and read these values; `taffrail logs` prints them. What a
//! table cannot hold is refused here, before any statement, with a reason for the dead letter.

use std::borrow::Cow;
use std::sync::Arc;

use chrono::{Datelike, NaiveDate};
use memchr::{memchr, memchr2};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::money::Usd;
use crate::record::UsageRecord;
use crate::usage::Unit;

use super::query::timestamp;

/// The largest text that a column takes. Names and messages are far shorter; the provider's own
/// usage object is the largest thing that a row carries.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;

/// The type of a column, as the contract's JSON shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text, which includes ids, timestamps and decimals.
    Text,
    /// A whole number.
    Integer,
    /// True or false.
    Boolean,
    /// A JSON object.
    Json,
}

/// The columns of `api_usage_logs`, in the order of the contract.
pub const COLUMNS: &[(&str, Kind)] = &[
    ("id", Kind::Text),
    ("day", Kind::Text),
    ("started_at", Kind::Text),
    ("instance", Kind::Text),
    ("namespace", Kind::Text),
    ("pod", Kind::Text),
    ("provider", Kind::Text),
    ("operation", Kind::Text),
    ("method", Kind::Text),
    ("route", Kind::Text),
    ("model_requested", Kind::Text),
    ("model_served", Kind::Text),
    ("upstream_provider", Kind::Text),
    ("service_tier", Kind::Text),
    ("streamed", Kind::Boolean),
    ("job_id", Kind::Text),
    ("polls", Kind::Integer),
    ("provider_request_id", Kind::Text),
    ("outcome", Kind::Text),
    ("http_status", Kind::Integer),
    ("error_code", Kind::Text),
    ("error_message", Kind::Text),
    ("finish_reason", Kind::Text),
    ("duration_us", Kind::Integer),
    ("first_byte_us", Kind::Integer),
    ("first_token_us", Kind::Integer),
    ("overhead_us", Kind::Integer),
    ("queue_us", Kind::Integer),
    ("run_us", Kind::Integer),
    ("request_bytes", Kind::Integer),
    ("response_bytes", Kind::Integer),
    ("input_tokens", Kind::Integer),
    ("cache_read_tokens", Kind::Integer),
    ("cache_write_5m_tokens", Kind::Integer),
    ("cache_write_1h_tokens", Kind::Integer),
    ("cache_write_tokens", Kind::Integer),
    ("output_tokens", Kind::Integer),
    ("reasoning_tokens", Kind::Integer),
    ("input_audio_tokens", Kind::Integer),
    ("output_audio_tokens", Kind::Integer),
    ("input_image_tokens", Kind::Integer),
    ("output_image_tokens", Kind::Integer),
    ("units", Kind::Json),
    ("fidelity", Kind::Text),
    ("raw_usage", Kind::Json),
    ("cost_usd", Kind::Text),
    ("cost_upstream_usd", Kind::Text),
    ("cost_source", Kind::Text),
    ("price_version", Kind::Text),
    ("unpriced_reason", Kind::Text),
    ("recosted_at", Kind::Text),
    ("key_fingerprint", Kind::Text),
    ("attribution", Kind::Json),
    ("trace_id", Kind::Text),
    ("span_id", Kind::Text),
];

/// The token units that have a column, in the order of their columns.
pub const TOKEN_COLUMNS: &[(Unit, &str)] = &[
    (Unit::Input, "input_tokens"),
    (Unit::CacheRead, "cache_read_tokens"),
    (Unit::CacheWrite5m, "cache_write_5m_tokens"),
    (Unit::CacheWrite1h, "cache_write_1h_tokens"),
    (Unit::CacheWrite, "cache_write_tokens"),
    (Unit::Output, "output_tokens"),
    (Unit::Reasoning, "reasoning_tokens"),
    (Unit::InputAudio, "input_audio_tokens"),
    (Unit::OutputAudio, "output_audio_tokens"),
    (Unit::InputImage, "input_image_tokens"),
    (Unit::OutputImage, "output_image_tokens"),
];

/// The value of a column. Texts are shared, since the driver of SQLite wants them for a thread of its
/// own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Absent, which is not zero.
    Null,
    /// Text, a timestamp, an id or a decimal.
    Text(Arc<str>),
    /// A whole number.
    Integer(i64),
    /// True or false.
    Boolean(bool),
    /// JSON on one line.
    Json(Arc<str>),
}

impl Value {
    /// The text, if the value is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The whole number, if the value is one.
    pub fn as_integer(&self) -> Option<i64> {
        match self {
            Value::Integer(number) => Some(*number),
            _ => None,
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Null => serializer.serialize_none(),
            Value::Text(text) => serializer.serialize_str(text),
            Value::Integer(number) => serializer.serialize_i64(*number),
            Value::Boolean(value) => serializer.serialize_bool(*value),
            // Verbatim, so that no number of the provider's passes through a float.
            Value::Json(json) => match serde_json::from_str::<&RawValue>(json) {
                Ok(raw) => raw.serialize(serializer),
                Err(_) => serializer.serialize_str(json),
            },
        }
    }
}

/// A row, its values in the order of [`COLUMNS`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRow {
    values: Vec<Value>,
}

impl LogRow {
    /// A row of these values, which are as many as the columns and in their order.
    pub(crate) fn new(values: Vec<Value>) -> LogRow {
        debug_assert_eq!(values.len(), COLUMNS.len());
        LogRow { values }
    }

    /// The value of that column; [`Value::Null`] if there is no such column.
    pub fn get(&self, column: &str) -> &Value {
        COLUMNS
            .iter()
            .position(|(name, _)| *name == column)
            .and_then(|index| self.values.get(index))
            .unwrap_or(&Value::Null)
    }

    /// The values, in the order of [`COLUMNS`].
    pub fn values(&self) -> &[Value] {
        &self.values
    }
}

/// One object, its keys the contract's columns.
impl Serialize for LogRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.values.len()))?;
        for ((name, _), value) in COLUMNS.iter().zip(&self.values) {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// Why a record cannot become a row. Names the column, never the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// A text is longer than [`TEXT_BYTES_MAX`].
    #[error("{column} is {bytes} bytes long, {TEXT_BYTES_MAX} is the limit")]
    TextTooLong {
        /// The column.
        column: &'static str,
        /// How long the text is.
        bytes: usize,
    },
    /// A number does not fit a 64-bit integer column, or a time lies beyond the year 9999.
    #[error("{column} is beyond the range of its column")]
    OutOfRange {
        /// The column.
        column: &'static str,
    },
    /// The row's day has been dropped, so it is not known any more whether the row was there.
    #[error("the day {day} has been dropped by retention")]
    DayDropped {
        /// The day.
        day: NaiveDate,
    },
    /// A number of tokens is negative or has a fraction.
    #[error("{column} is not a whole number of tokens")]
    NotWhole {
        /// The column.
        column: &'static str,
    },
}

/// The row of a record.
///
/// # Errors
///
/// The first column whose value the table cannot hold.
pub(crate) fn encode(record: &UsageRecord) -> Result<LogRow, Rejection> {
    let mut row = Encoder {
        values: Vec::with_capacity(COLUMNS.len()),
    };
    let instance = &record.instance;
    let caller = &record.caller;
    let mut id = Uuid::encode_buffer();
    row.text("id", Some(record.id.hyphenated().encode_lower(&mut id)))?;
    let day = in_range("day", record.day())?.to_string();
    row.text("day", Some(&day))?;
    in_range("started_at", record.started_at.date_naive())?;
    row.text("started_at", Some(&timestamp(record.started_at)))?;
    row.text("instance", Some(&*instance.instance))?;
    row.text("namespace", instance.namespace.as_deref())?;
    row.text("pod", instance.pod.as_deref())?;
    row.text("provider", Some(&*record.provider))?;
    row.text("operation", Some(record.operation.as_str()))?;
    row.text("method", Some(record.method.as_str()))?;
    row.text("route", Some(record.route.as_str()))?;
    row.text("model_requested", record.model_requested.as_deref())?;
    row.text("model_served", record.model_served.as_deref())?;
    row.text("upstream_provider", record.upstream_provider.as_deref())?;
    row.text("service_tier", record.service_tier.as_deref())?;
    row.push("streamed", Value::Boolean(record.streamed));
    row.text("job_id", record.job_id.as_deref())?;
    row.integer("polls", record.polls.map(u64::from))?;
    row.text("provider_request_id", record.provider_request_id.as_deref())?;
    row.text("outcome", Some(record.outcome.as_str()))?;
    row.integer("http_status", record.http_status.map(u64::from))?;
    row.text("error_code", record.error_code.as_deref())?;
    row.text("error_message", record.error_message.as_deref())?;
    row.text("finish_reason", record.finish_reason.as_deref())?;
    row.integer("duration_us", record.duration_us)?;
    row.integer("first_byte_us", record.first_byte_us)?;
    row.integer("first_token_us", record.first_token_us)?;
    row.integer("overhead_us", record.overhead_us)?;
    row.integer("queue_us", record.queue_us)?;
    row.integer("run_us", record.run_us)?;
    row.integer("request_bytes", record.request_bytes)?;
    row.integer("response_bytes", record.response_bytes)?;
    for (unit, column) in TOKEN_COLUMNS {
        row.tokens(column, *unit, record)?;
    }
    row.json("units", units(record).as_deref())?;
    row.text("fidelity", Some(record.fidelity.as_str()))?;
    let raw_usage = record.raw_usage.as_deref().map(one_line);
    row.json("raw_usage", raw_usage.as_deref())?;
    let amount = |usd: Option<Usd>| usd.map(|usd| usd.normalize().to_string());
    row.text("cost_usd", amount(record.cost_usd).as_deref())?;
    let upstream = amount(record.cost_upstream_usd);
    row.text("cost_upstream_usd", upstream.as_deref())?;
    row.text(
        "cost_source",
        record.cost_source.map(|source| source.as_str()),
    )?;
    row.text("price_version", record.price_version.as_deref())?;
    row.text(
        "unpriced_reason",
        record.unpriced_reason.map(|reason| reason.as_str()),
    )?;
    let recosted_at = record.recosted_at.map(timestamp);
    row.text("recosted_at", recosted_at.as_deref())?;
    row.text("key_fingerprint", caller.key_fingerprint.as_deref())?;
    row.json("attribution", Some(&attribution(record)))?;
    row.text("trace_id", caller.trace_id.as_deref())?;
    row.text("span_id", caller.span_id.as_deref())?;
    Ok(LogRow::new(row.values))
}

/// Appends values, each under the name of the column whose turn it is.
struct Encoder {
    values: Vec<Value>,
}

impl Encoder {
    fn push(&mut self, column: &'static str, value: Value) {
        debug_assert_eq!(
            COLUMNS.get(self.values.len()).map(|(name, _)| *name),
            Some(column)
        );
        self.values.push(value);
    }

    fn text(&mut self, column: &'static str, text: Option<&str>) -> Result<(), Rejection> {
        let value = match text {
            Some(text) => Value::Text(bounded(column, text)?),
            None => Value::Null,
        };
        self.push(column, value);
        Ok(())
    }

    fn json(&mut self, column: &'static str, json: Option<&str>) -> Result<(), Rejection> {
        let value = match json {
            Some(json) => Value::Json(bounded(column, json)?),
            None => Value::Null,
        };
        self.push(column, value);
        Ok(())
    }

    fn integer(&mut self, column: &'static str, number: Option<u64>) -> Result<(), Rejection> {
        let value = match number {
            Some(number) => {
                Value::Integer(i64::try_from(number).map_err(|_| Rejection::OutOfRange { column })?)
            }
            None => Value::Null,
        };
        self.push(column, value);
        Ok(())
    }

    fn tokens(
        &mut self,
        column: &'static str,
        unit: Unit,
        record: &UsageRecord,
    ) -> Result<(), Rejection> {
        if let Some(quantity) = record.usage.get(unit)
            && (!quantity.is_integer() || quantity.is_sign_negative() && !quantity.is_zero())
        {
            return Err(Rejection::NotWhole { column });
        }
        let tokens = record.usage.tokens(unit);
        if tokens.is_none() && record.usage.get(unit).is_some() {
            return Err(Rejection::OutOfRange { column });
        }
        self.integer(column, tokens)
    }
}

/// The day, if its text sorts with the others'.
fn in_range(column: &'static str, day: NaiveDate) -> Result<NaiveDate, Rejection> {
    if !(0..=9999).contains(&day.year()) {
        return Err(Rejection::OutOfRange { column });
    }
    Ok(day)
}

/// The text, if it is not too long, without NUL, which Postgres cannot hold.
fn bounded(column: &'static str, text: &str) -> Result<Arc<str>, Rejection> {
    if text.len() > TEXT_BYTES_MAX {
        let bytes = text.len();
        return Err(Rejection::TextTooLong { column, bytes });
    }
    Ok(without_nul(text).into())
}

/// The text without NUL.
pub(super) fn without_nul(text: &str) -> Cow<'_, str> {
    match memchr(0, text.as_bytes()) {
        Some(_) => text.replace('\0', "").into(),
        None => text.into(),
    }
}

/// The quantities that have no column of their own, by unit; `None` if none is known.
fn units(record: &UsageRecord) -> Option<String> {
    let others: serde_json::Map<String, serde_json::Value> = record
        .usage
        .iter()
        .filter(|(unit, _)| !unit.is_token())
        .map(|(unit, quantity)| {
            let quantity = quantity.normalize().to_string();
            (unit.as_str().to_owned(), quantity.into())
        })
        .collect();
    (!others.is_empty()).then(|| serde_json::Value::Object(others).to_string())
}

/// The attribution as JSON, keys sorted, so that equal ones are equal text.
fn attribution(record: &UsageRecord) -> String {
    let labels = record.caller.attribution.iter();
    let labels: serde_json::Map<String, serde_json::Value> = labels
        .map(|(name, value)| (without_nul(name).into_owned(), without_nul(value).into()))
        .collect();
    serde_json::Value::Object(labels).to_string()
}

/// JSON text on one line; text that is not JSON becomes a JSON string.
fn one_line(json: &str) -> Cow<'_, str> {
    // A line break in JSON is white space: inside a string it would be escaped.
    if serde_json::from_str::<&RawValue>(json).is_ok() {
        return match memchr2(b'\n', b'\r', json.as_bytes()) {
            Some(_) => json.replace(['\n', '\r'], " ").into(),
            None => json.into(),
        };
    }
    serde_json::Value::from(json).to_string().into()
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use rust_decimal::Decimal;
    use uuid::Uuid;

    use super::*;
    use crate::caller::{Caller, Instance};
    use crate::record::{Intent, Operation};

    fn record() -> UsageRecord {
        Intent {
            id: Uuid::parse_str("0198c000-0000-7000-8000-000000000001").unwrap(),
            started_at: DateTime::from_timestamp(1_755_561_984, 5_000).unwrap(),
            provider: "openai".into(),
            operation: Operation::Chat,
            method: "POST".into(),
            route: "/v1/chat/completions".into(),
            model_requested: Some("gpt-4o-mini".into()),
            caller: Caller::default(),
            job: None,
        }
        .interrupted(Instance::default())
    }

    #[test]
    fn every_column_of_the_contract_is_filled_in_its_order() {
        let row = encode(&record()).unwrap();
        assert_eq!(row.values().len(), COLUMNS.len());
        assert_eq!(
            row.get("started_at").as_text(),
            Some("2025-08-19T00:06:24.000005Z")
        );
        assert_eq!(row.get("model_requested").as_text(), Some("gpt-4o-mini"));
        assert_eq!(row.get("attribution"), &Value::Json("{}".into()));
        assert_eq!(row.get("units"), &Value::Null);
        assert_eq!(row.get("no_such_column"), &Value::Null);
    }

    #[test]
    fn every_token_unit_has_a_column_and_no_other_unit_has() {
        let with_column: Vec<Unit> = TOKEN_COLUMNS.iter().map(|(unit, _)| *unit).collect();
        let tokens: Vec<Unit> = Unit::ALL
            .iter()
            .copied()
            .filter(|unit| unit.is_token())
            .collect();
        assert_eq!(with_column, tokens);
    }

    #[test]
    fn a_text_is_taken_at_the_limit_and_refused_above_it() {
        let mut at_limit = record();
        at_limit.model_requested = Some("m".repeat(TEXT_BYTES_MAX));
        assert!(encode(&at_limit).is_ok());
        at_limit.model_requested = Some("m".repeat(TEXT_BYTES_MAX + 1));
        assert_eq!(
            encode(&at_limit).unwrap_err().to_string(),
            "model_requested is 65537 bytes long, 65536 is the limit"
        );
    }

    #[test]
    fn tokens_are_whole_and_in_range_or_refused() {
        let with_input = |quantity: Decimal| {
            let mut record = record();
            record.usage.set(Unit::Input, quantity);
            encode(&record).map(|row| row.get("input_tokens").clone())
        };
        let column = "input_tokens";
        assert_eq!(
            with_input(Decimal::from(i64::MAX)),
            Ok(Value::Integer(i64::MAX))
        );
        assert_eq!(with_input(Decimal::new(30, 1)), Ok(Value::Integer(3)));
        assert_eq!(
            with_input(Decimal::from(i64::MAX) + Decimal::ONE),
            Err(Rejection::OutOfRange { column })
        );
        assert_eq!(
            with_input(Decimal::MAX),
            Err(Rejection::OutOfRange { column })
        );
        assert_eq!(
            with_input(Decimal::new(15, 1)),
            Err(Rejection::NotWhole { column })
        );
        assert_eq!(
            with_input(Decimal::NEGATIVE_ONE),
            Err(Rejection::NotWhole { column })
        );
    }

    #[test]
    fn nul_is_dropped_everywhere() {
        let mut record = record();
        record.model_served = Some("gpt\0-4o".into());
        record
            .caller
            .attribution
            .insert("te\0am".into(), "se\0arch".into());
        let row = encode(&record).unwrap();
        assert_eq!(row.get("model_served").as_text(), Some("gpt-4o"));
        assert_eq!(
            row.get("attribution"),
            &Value::Json(r#"{"team":"search"}"#.into())
        );
    }

    #[test]
    fn raw_usage_keeps_its_digits_on_one_line() {
        let mut record = record();
        record.raw_usage = Some("{\n  \"cost\": 0.10000000000000000001\r\n}".into());
        let row = encode(&record).unwrap();
        let line = serde_json::to_string(&row).unwrap();
        assert!(
            line.contains(r#""raw_usage":{   "cost": 0.10000000000000000001  }"#),
            "{line}"
        );
        record.raw_usage = Some("{\"cut\": ".into());
        assert_eq!(
            encode(&record).unwrap().get("raw_usage"),
            &Value::Json(r#""{\"cut\": ""#.into())
        );
    }
}
