//! The bodies of intents and records: numbered fields, so that a field can be added without a
//! new format version, and neither side spells names or escapes text.
//!
//! The encoding is that of Protocol Buffers
//! (<https://protobuf.dev/programming-guides/encoding/>), so that `protoc --decode_raw` shows a
//! body to people. Numbers are unsigned varints, everything else is bytes: text, words of an
//! enumeration by their names, a pair as the length of its first part (one byte) and its parts,
//! a decimal as its scale (the sign in the highest bit) and its mantissa, little-endian without
//! leading zeros. What is unknown has no field. The job of an intent is JSON: it is rare, and
//! holds a whole report.
//!
//! A body of version 1 is JSON as a whole, which no body in fields begins like.

use std::str::from_utf8;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use uuid::Uuid;

use crate::caller::{Caller, Instance};
use crate::fault::Outcome;
use crate::money::Usd;
use crate::record::{CostSource, Fidelity, Intent, Operation, UnpricedReason, UsageRecord};
use crate::usage::{Unit, Usage};

/// What a frame can hold besides its id.
pub trait Body {
    /// Appends the encoding.
    ///
    /// # Errors
    /// If a part has no encoding.
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), serde_json::Error>;
}

/// Bytes as they are, for what is no body of this version.
impl Body for [u8] {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        out.extend_from_slice(self);
        Ok(())
    }
}

/// The numbers of the fields. One that was ever written is never used for anything else.
mod field {
    // Of intents and records.
    pub(super) const STARTED_AT: u32 = 1;
    pub(super) const PROVIDER: u32 = 2;
    pub(super) const OPERATION: u32 = 3;
    pub(super) const METHOD: u32 = 4;
    pub(super) const ROUTE: u32 = 5;
    pub(super) const MODEL_REQUESTED: u32 = 6;
    pub(super) const KEY_FINGERPRINT: u32 = 7;
    pub(super) const ATTRIBUTION: u32 = 8;
    pub(super) const TRACE_ID: u32 = 9;
    pub(super) const SPAN_ID: u32 = 10;
    // Of intents.
    pub(super) const JOB: u32 = 11;
    // Of records.
    pub(super) const INSTANCE: u32 = 12;
    pub(super) const NAMESPACE: u32 = 13;
    pub(super) const POD: u32 = 14;
    pub(super) const OUTCOME: u32 = 15;
    pub(super) const MODEL_SERVED: u32 = 16;
    pub(super) const UPSTREAM_PROVIDER: u32 = 17;
    pub(super) const SERVICE_TIER: u32 = 18;
    pub(super) const STREAMED: u32 = 19;
    pub(super) const JOB_ID: u32 = 20;
    pub(super) const POLLS: u32 = 21;
    pub(super) const PROVIDER_REQUEST_ID: u32 = 22;
    pub(super) const HTTP_STATUS: u32 = 23;
    pub(super) const ERROR_CODE: u32 = 24;
    pub(super) const ERROR_MESSAGE: u32 = 25;
    pub(super) const FINISH_REASON: u32 = 26;
    pub(super) const DURATION_US: u32 = 27;
    pub(super) const FIRST_BYTE_US: u32 = 28;
    pub(super) const FIRST_TOKEN_US: u32 = 29;
    pub(super) const OVERHEAD_US: u32 = 30;
    pub(super) const QUEUE_US: u32 = 31;
    pub(super) const RUN_US: u32 = 32;
    pub(super) const REQUEST_BYTES: u32 = 33;
    pub(super) const RESPONSE_BYTES: u32 = 34;
    pub(super) const QUANTITY: u32 = 35;
    pub(super) const FIDELITY: u32 = 36;
    pub(super) const RAW_USAGE: u32 = 37;
    pub(super) const COST_USD: u32 = 38;
    pub(super) const COST_UPSTREAM_USD: u32 = 39;
    pub(super) const COST_SOURCE: u32 = 40;
    pub(super) const PRICE_VERSION: u32 = 41;
    pub(super) const UNPRICED_REASON: u32 = 42;
    pub(super) const RECOSTED_AT: u32 = 43;
}

const NUMBER: u32 = 0;
const BYTES: u32 = 2;

/// The bit of a decimal's first byte that says that it is negative; its scale is at most 28.
const NEGATIVE: u8 = 0x80;

impl Body for Intent {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        let mut fields = Fields(out);
        fields.number(field::STARTED_AT, micros(self.started_at));
        fields.text(field::PROVIDER, &self.provider);
        fields.text(field::OPERATION, self.operation.as_str());
        fields.text(field::METHOD, &self.method);
        fields.text(field::ROUTE, &self.route);
        fields.known_text(field::MODEL_REQUESTED, self.model_requested.as_deref());
        fields.caller(&self.caller);
        if let Some(job) = &self.job {
            fields.bytes(field::JOB, &serde_json::to_vec(job)?);
        }
        Ok(())
    }
}

impl Body for UsageRecord {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        let mut fields = Fields(out);
        fields.number(field::STARTED_AT, micros(self.started_at));
        fields.text(field::PROVIDER, &self.provider);
        fields.text(field::OPERATION, self.operation.as_str());
        fields.text(field::METHOD, &self.method);
        fields.text(field::ROUTE, &self.route);
        fields.text(field::INSTANCE, &self.instance.instance);
        fields.text(field::OUTCOME, self.outcome.as_str());
        fields.text(field::FIDELITY, self.fidelity.as_str());
        fields.number(field::STREAMED, u64::from(self.streamed));
        for (field, text) in [
            (field::NAMESPACE, self.instance.namespace.as_deref()),
            (field::POD, self.instance.pod.as_deref()),
            (field::MODEL_REQUESTED, self.model_requested.as_deref()),
            (field::MODEL_SERVED, self.model_served.as_deref()),
            (field::UPSTREAM_PROVIDER, self.upstream_provider.as_deref()),
            (field::SERVICE_TIER, self.service_tier.as_deref()),
            (field::JOB_ID, self.job_id.as_deref()),
            (
                field::PROVIDER_REQUEST_ID,
                self.provider_request_id.as_deref(),
            ),
            (field::ERROR_CODE, self.error_code.as_deref()),
            (field::ERROR_MESSAGE, self.error_message.as_deref()),
            (field::FINISH_REASON, self.finish_reason.as_deref()),
            (field::RAW_USAGE, self.raw_usage.as_deref()),
            (field::PRICE_VERSION, self.price_version.as_deref()),
            (field::COST_SOURCE, self.cost_source.map(CostSource::as_str)),
            (
                field::UNPRICED_REASON,
                self.unpriced_reason.map(UnpricedReason::as_str),
            ),
        ] {
            fields.known_text(field, text);
        }
        for (field, number) in [
            (field::POLLS, self.polls.map(u64::from)),
            (field::HTTP_STATUS, self.http_status.map(u64::from)),
            (field::DURATION_US, self.duration_us),
            (field::FIRST_BYTE_US, self.first_byte_us),
            (field::FIRST_TOKEN_US, self.first_token_us),
            (field::OVERHEAD_US, self.overhead_us),
            (field::QUEUE_US, self.queue_us),
            (field::RUN_US, self.run_us),
            (field::REQUEST_BYTES, self.request_bytes),
            (field::RESPONSE_BYTES, self.response_bytes),
            (field::RECOSTED_AT, self.recosted_at.map(micros)),
        ] {
            if let Some(number) = number {
                fields.number(field, number);
            }
        }
        for (field, cost) in [
            (field::COST_USD, self.cost_usd),
            (field::COST_UPSTREAM_USD, self.cost_upstream_usd),
        ] {
            if let Some(cost) = cost {
                fields.pair(field, "", decimal(cost.dollars()).as_ref());
            }
        }
        for (unit, quantity) in self.usage.iter() {
            fields.pair(field::QUANTITY, unit.as_str(), decimal(quantity).as_ref());
        }
        fields.caller(&self.caller);
        Ok(())
    }
}

/// Writes fields.
struct Fields<'o>(&'o mut Vec<u8>);

impl Fields<'_> {
    fn varint(&mut self, mut number: u64) {
        loop {
            let [low, ..] = number.to_le_bytes();
            number >>= 7;
            if number == 0 {
                return self.0.push(low);
            }
            self.0.push(low | 0x80);
        }
    }

    fn key(&mut self, field: u32, wire_type: u32) {
        self.varint(u64::from(field << 3 | wire_type));
    }

    fn number(&mut self, field: u32, number: u64) {
        self.key(field, NUMBER);
        self.varint(number);
    }

    fn length(&mut self, length: usize) {
        self.varint(u64::try_from(length).unwrap_or(u64::MAX));
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.key(field, BYTES);
        self.length(bytes.len());
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, field: u32, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    fn known_text(&mut self, field: u32, text: Option<&str>) {
        if let Some(text) = text {
            self.text(field, text);
        }
    }

    /// A pair of a name, of which at most 255 bytes are kept, and bytes.
    fn pair(&mut self, field: u32, name: &str, value: &[u8]) {
        let name = name.as_bytes();
        let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
        let name = name.get(..usize::from(length)).unwrap_or(name);
        self.key(field, BYTES);
        self.length(1 + name.len() + value.len());
        self.0.push(length);
        self.0.extend_from_slice(name);
        self.0.extend_from_slice(value);
    }

    fn caller(&mut self, caller: &Caller) {
        self.known_text(field::KEY_FINGERPRINT, caller.key_fingerprint.as_deref());
        for (label, value) in &caller.attribution {
            self.pair(field::ATTRIBUTION, label, value.as_bytes());
        }
        self.known_text(field::TRACE_ID, caller.trace_id.as_deref());
        self.known_text(field::SPAN_ID, caller.span_id.as_deref());
    }
}

/// A time in microseconds since 1970, as the bits of a signed number.
fn micros(time: DateTime<Utc>) -> u64 {
    u64::from_le_bytes(time.timestamp_micros().to_le_bytes())
}

fn time_of(micros: u64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_micros(i64::from_le_bytes(micros.to_le_bytes()))
}

/// An encoded decimal.
struct EncodedDecimal {
    bytes: [u8; 17],
    length: usize,
}

impl AsRef<[u8]> for EncodedDecimal {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&self.bytes)
    }
}

fn decimal(decimal: Decimal) -> EncodedDecimal {
    let mantissa = decimal.mantissa();
    let sign = if mantissa < 0 { NEGATIVE } else { 0 };
    let scale = u8::try_from(decimal.scale()).unwrap_or_default();
    let magnitude = mantissa.unsigned_abs();
    let mut bytes = [0; 17];
    if let Some((first, rest)) = bytes.split_first_mut() {
        *first = scale | sign;
        rest.copy_from_slice(&magnitude.to_le_bytes());
    }
    let zeros = usize::try_from(magnitude.leading_zeros() / 8).unwrap_or_default();
    EncodedDecimal {
        bytes,
        length: 17 - zeros,
    }
}

fn decimal_of(bytes: &[u8]) -> Option<Decimal> {
    let (first, rest) = bytes.split_first()?;
    let mut magnitude = [0; 16];
    magnitude.get_mut(..rest.len())?.copy_from_slice(rest);
    let magnitude = i128::try_from(u128::from_le_bytes(magnitude)).ok()?;
    let mantissa = match first & NEGATIVE {
        0 => magnitude,
        _ => -magnitude,
    };
    Decimal::try_from_i128_with_scale(mantissa, u32::from(first & !NEGATIVE)).ok()
}

/// The value of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    fn number(self) -> Option<u64> {
        match self {
            Value::Number(number) => Some(number),
            Value::Bytes(_) => None,
        }
    }

    fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Value::Bytes(bytes) => Some(bytes),
            Value::Number(_) => None,
        }
    }

    fn text(self) -> Option<&'a str> {
        from_utf8(self.bytes()?).ok()
    }

    fn owned(self) -> Option<String> {
        self.text().map(str::to_owned)
    }

    /// The parts of a pair.
    fn pair(self) -> Option<(&'a str, &'a [u8])> {
        let (length, rest) = self.bytes()?.split_first()?;
        let (name, value) = rest.split_at_checked(usize::from(*length))?;
        Some((from_utf8(name).ok()?, value))
    }

    fn dollars(self) -> Option<Usd> {
        let (_, value) = self.pair()?;
        decimal_of(value).map(Usd::new)
    }
}

/// Takes a varint off the front.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7F);
        if bits << shift >> shift != bits {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Takes a field off the front.
fn next_field<'a>(bytes: &mut &'a [u8]) -> Option<(u32, Value<'a>)> {
    let key = u32::try_from(varint(bytes)?).ok()?;
    let value = match key & 7 {
        NUMBER => Value::Number(varint(bytes)?),
        BYTES => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            let (value, rest) = bytes.split_at_checked(length)?;
            *bytes = rest;
            Value::Bytes(value)
        }
        _ => return None,
    };
    Some((key >> 3, value))
}

/// Whether a body is the JSON of version 1.
fn is_json(body: &[u8]) -> bool {
    body.first() == Some(&b'{')
}

/// The record with that id and body; `None` if the body is not one.
pub fn record(id: Uuid, body: &[u8]) -> Option<UsageRecord> {
    if is_json(body) {
        return serde_json::from_slice(body).ok();
    }
    let read = read(id, body)?;
    read.is_record.then_some(read.record)
}

/// The intent with that id and body; `None` if the body is not one.
pub fn intent(id: Uuid, body: &[u8]) -> Option<Intent> {
    if is_json(body) {
        return serde_json::from_slice(body).ok();
    }
    let Read { record, job, .. } = read(id, body)?;
    let job = match job {
        None => None,
        Some(json) => Some(serde_json::from_slice(json).ok()?),
    };
    Some(Intent {
        id,
        started_at: record.started_at,
        provider: record.provider,
        operation: record.operation,
        method: record.method,
        route: record.route,
        model_requested: record.model_requested,
        caller: record.caller,
        job,
    })
}

/// What the fields of a body say.
struct Read<'a> {
    record: UsageRecord,
    /// Whether it says how the request ended.
    is_record: bool,
    job: Option<&'a [u8]>,
}

/// A record of which nothing is known yet.
fn blank(id: Uuid) -> UsageRecord {
    let intent = Intent {
        id,
        started_at: DateTime::UNIX_EPOCH,
        provider: Arc::from(""),
        operation: Operation::Other,
        method: String::new(),
        route: String::new(),
        model_requested: None,
        caller: Caller::default(),
        job: None,
    };
    UsageRecord {
        unpriced_reason: None,
        ..intent.interrupted(Instance::default())
    }
}

/// Reads the fields; those of a later version are passed over.
fn read(id: Uuid, mut body: &[u8]) -> Option<Read<'_>> {
    let mut record = blank(id);
    let mut usage = Usage::new();
    let (mut has_start, mut has_operation, mut has_outcome) = (false, false, false);
    let mut job = None;
    while !body.is_empty() {
        let (field, value) = next_field(&mut body)?;
        match field {
            field::STARTED_AT => {
                record.started_at = time_of(value.number()?)?;
                has_start = true;
            }
            field::PROVIDER => record.provider = value.text()?.into(),
            field::OPERATION => {
                record.operation = Operation::from_name(value.text()?)?;
                has_operation = true;
            }
            field::METHOD => record.method = value.owned()?,
            field::ROUTE => record.route = value.owned()?,
            field::MODEL_REQUESTED => record.model_requested = Some(value.owned()?),
            field::KEY_FINGERPRINT => record.caller.key_fingerprint = Some(value.owned()?),
            field::ATTRIBUTION => {
                let (label, value) = value.pair()?;
                let value = from_utf8(value).ok()?;
                let attribution = &mut record.caller.attribution;
                attribution.insert(label.to_owned(), value.to_owned());
            }
            field::TRACE_ID => record.caller.trace_id = Some(value.owned()?),
            field::SPAN_ID => record.caller.span_id = Some(value.owned()?),
            field::JOB => job = Some(value.bytes()?),
            field::INSTANCE => record.instance.instance = value.text()?.into(),
            field::NAMESPACE => record.instance.namespace = Some(value.text()?.into()),
            field::POD => record.instance.pod = Some(value.text()?.into()),
            field::OUTCOME => {
                record.outcome = Outcome::from_name(value.text()?)?;
                has_outcome = true;
            }
            field::MODEL_SERVED => record.model_served = Some(value.owned()?),
            field::UPSTREAM_PROVIDER => record.upstream_provider = Some(value.owned()?),
            field::SERVICE_TIER => record.service_tier = Some(value.owned()?),
            field::STREAMED => record.streamed = value.number()? != 0,
            field::JOB_ID => record.job_id = Some(value.owned()?),
            field::POLLS => record.polls = Some(value.number()?.try_into().ok()?),
            field::PROVIDER_REQUEST_ID => record.provider_request_id = Some(value.owned()?),
            field::HTTP_STATUS => record.http_status = Some(value.number()?.try_into().ok()?),
            field::ERROR_CODE => record.error_code = Some(value.owned()?),
            field::ERROR_MESSAGE => record.error_message = Some(value.owned()?),
            field::FINISH_REASON => record.finish_reason = Some(value.owned()?),
            field::DURATION_US => record.duration_us = Some(value.number()?),
            field::FIRST_BYTE_US => record.first_byte_us = Some(value.number()?),
            field::FIRST_TOKEN_US => record.first_token_us = Some(value.number()?),
            field::OVERHEAD_US => record.overhead_us = Some(value.number()?),
            field::QUEUE_US => record.queue_us = Some(value.number()?),
            field::RUN_US => record.run_us = Some(value.number()?),
            field::REQUEST_BYTES => record.request_bytes = Some(value.number()?),
            field::RESPONSE_BYTES => record.response_bytes = Some(value.number()?),
            field::QUANTITY => {
                let (unit, quantity) = value.pair()?;
                // A unit of a later version is passed over.
                if let Some(unit) = Unit::from_name(unit) {
                    usage.set(unit, decimal_of(quantity)?);
                }
            }
            field::FIDELITY => record.fidelity = Fidelity::from_name(value.text()?)?,
            field::RAW_USAGE => record.raw_usage = Some(value.owned()?),
            field::COST_USD => record.cost_usd = Some(value.dollars()?),
            field::COST_UPSTREAM_USD => record.cost_upstream_usd = Some(value.dollars()?),
            field::COST_SOURCE => {
                record.cost_source = Some(CostSource::from_name(value.text()?)?);
            }
            field::PRICE_VERSION => record.price_version = Some(value.owned()?),
            field::UNPRICED_REASON => {
                record.unpriced_reason = Some(UnpricedReason::from_name(value.text()?)?);
            }
            field::RECOSTED_AT => record.recosted_at = Some(time_of(value.number()?)?),
            _ => {}
        }
    }
    record.usage = usage;
    (has_start && has_operation).then_some(Read {
        record,
        is_record: has_outcome,
        job,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> Uuid {
        Uuid::parse_str("0198c000-0000-7000-8000-000000000001").unwrap()
    }

    fn time(micros: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(micros).unwrap()
    }

    /// A record with something in every field.
    fn full() -> UsageRecord {
        let text = |text: &str| Some(text.to_owned());
        UsageRecord {
            id: id(),
            started_at: time(1_755_561_984_000_001),
            instance: Instance {
                instance: "host".into(),
                namespace: Some("space".into()),
                pod: Some("pod-0".into()),
            },
            provider: "openai".into(),
            operation: Operation::Chat,
            method: "POST".into(),
            route: "/v1/chat/completions".into(),
            model_requested: text("gpt-4o-mini"),
            model_served: text("gpt-4o-mini-2024-07-18"),
            upstream_provider: text("Azure"),
            service_tier: text("flex"),
            streamed: true,
            job_id: text("job"),
            polls: Some(3),
            provider_request_id: text("req_1"),
            outcome: Outcome::ContentFiltered,
            http_status: Some(200),
            error_code: text("code"),
            error_message: text("says \"no\"\n模型"),
            finish_reason: text("stop"),
            duration_us: Some(u64::MAX),
            first_byte_us: Some(0),
            first_token_us: Some(1),
            overhead_us: Some(127),
            queue_us: Some(128),
            run_us: Some(1 << 35),
            request_bytes: Some(573),
            response_bytes: Some(1302),
            usage: Usage::new()
                .with(Unit::Input, 1117)
                .with(Unit::Output, 0)
                .with(Unit::AudioSecond, Decimal::new(-95, 1))
                .with(Unit::ComputeSecond, Decimal::MAX),
            fidelity: Fidelity::Inconsistent,
            raw_usage: text(r#"{"prompt_tokens":1117}"#),
            cost_usd: Usd::from_json_number("0.00016755"),
            cost_upstream_usd: Usd::from_json_number("1.50"),
            // Of no row, so not of the journal.
            cache_effect_usd: None,
            cost_source: Some(CostSource::Estimated),
            price_version: text("2025-08-19+1a2b3c4d"),
            unpriced_reason: Some(UnpricedReason::Incomplete),
            recosted_at: Some(time(-1)),
            caller: Caller {
                key_fingerprint: text("0011223344556677"),
                attribution: [("team", "search"), ("feature", "")]
                    .map(|(label, value)| (label.to_owned(), value.to_owned()))
                    .into(),
                trace_id: text("4bf92f3577b34da6a3ce929d0e0e4736"),
                span_id: text("00f067aa0ba902b7"),
            },
        }
    }

    fn encoded(body: &(impl Body + ?Sized)) -> Vec<u8> {
        let mut out = Vec::new();
        body.encode(&mut out).unwrap();
        out
    }

    #[test]
    fn a_record_survives_its_encoding_full_and_empty() {
        let mut empty = blank(id());
        empty.instance.instance = "host".into();
        for expected in [full(), empty] {
            let read = record(id(), &encoded(&expected));
            assert_eq!(read.as_ref(), Some(&expected));
            // The scale of a decimal too, which equality passes over.
            assert_eq!(format!("{read:?}"), format!("{:?}", Some(&expected)));
            let json = serde_json::to_vec(&expected).unwrap();
            assert_eq!(record(id(), &json), Some(expected));
        }
    }

    #[test]
    fn an_intent_survives_its_encoding_with_its_job() {
        let full = full();
        let plain = Intent {
            id: id(),
            started_at: full.started_at,
            provider: full.provider,
            operation: full.operation,
            method: full.method,
            route: full.route,
            model_requested: full.model_requested,
            caller: full.caller,
            job: None,
        };
        let job = crate::record::Job {
            id: "job".into(),
            http_status: Some(201),
            ..crate::record::Job::default()
        };
        let of_job = Intent {
            job: Some(job),
            ..plain.clone()
        };
        for expected in [plain, of_job] {
            let bytes = encoded(&expected);
            assert_eq!(record(id(), &bytes), None, "an intent is no record");
            assert_eq!(intent(id(), &bytes), Some(expected));
        }
    }

    #[test]
    fn a_field_or_unit_of_a_later_version_is_passed_over() {
        let expected = full();
        let mut bytes = encoded(&expected);
        let mut fields = Fields(&mut bytes);
        fields.number(1000, 7);
        fields.text(1001, "later");
        fields.pair(field::QUANTITY, "parsec", &[0, 1]);
        assert_eq!(record(id(), &bytes), Some(expected));
    }

    #[test]
    fn every_cut_of_a_body_and_every_changed_byte_is_read_without_a_panic() {
        let whole = encoded(&full());
        for cut in 0..whole.len() {
            record(id(), &whole[..cut]);
            for byte in [0, 0x7F, 0x80, 0xFF] {
                let mut changed = whole.clone();
                changed[cut] = byte;
                record(id(), &changed);
            }
        }
        for bad in [&b""[..], b"\"strange\"", b"\x08", b"\x0d\0\0\0\0"] {
            assert_eq!(record(id(), bad), None, "{bad:?}");
        }
        let endless = [&[0x08][..], &[0x80; 10], &[0]].concat();
        assert_eq!(record(id(), &endless), None);
    }

    #[test]
    fn decimals_keep_their_scale() {
        for text in ["0", "0.00", "-0.5", "79228162514264337593543950335"] {
            let value: Decimal = text.parse().unwrap();
            let read = decimal_of(decimal(value).as_ref()).unwrap();
            assert_eq!(read.to_string(), text);
        }
        assert_eq!(decimal_of(&[29, 1]), None);
        assert_eq!(decimal_of(&[0; 18]), None);
        assert_eq!(decimal_of(&[]), None);
    }
}
