//! The usage record: one per request that can cost money, and the only type that crosses from
//! traffic to storage.
//!
//! Plain data. The journal encodes it by `journal/codec.rs`, dead letters and open jobs as JSON
//! with the field names below; a field that is added later must have a default, so that what is
//! kept stays readable.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, SecondsFormat, Utc};
use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

use crate::caller::{Caller, Instance};
use crate::fault::Outcome;
use crate::money::Usd;
use crate::qualifier::Qualifiers;
use crate::usage::Usage;

macro_rules! names {
    ($(#[$meta:meta])* $type:ident { $($(#[$doc:meta])* $variant:ident = $name:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $type { $($(#[$doc])* #[serde(rename = $name)] $variant),+ }

        impl $type {
            /// Every value, in the order of the declaration.
            pub const ALL: &'static [$type] = &[$($type::$variant),+];

            /// The name in rows and labels.
            pub const fn as_str(self) -> &'static str {
                match self { $($type::$variant => $name),+ }
            }

            /// The value of that name, if there is one.
            pub fn from_name(name: &str) -> Option<$type> {
                match name { $($name => Some($type::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

names! {
    /// What was asked of the provider, as the `operation` column and label.
    Operation {
        /// Chat completions, and Anthropic's messages.
        Chat = "chat",
        /// Legacy text completions.
        Completion = "completion",
        /// OpenAI's Responses API.
        Responses = "responses",
        /// Embeddings.
        Embeddings = "embeddings",
        /// Reranking.
        Rerank = "rerank",
        /// Image generation, edits and variations.
        Image = "image",
        /// Speech from text.
        Speech = "speech",
        /// Text from speech, translated or not.
        Transcription = "transcription",
        /// Video generation.
        Video = "video",
        /// Realtime sessions over a websocket.
        Realtime = "realtime",
        /// A prediction or other job.
        Prediction = "prediction",
        /// A training or fine-tuning job.
        Training = "training",
        /// Moderation, which is free.
        Moderation = "moderation",
        /// Lists of models and prices.
        Models = "models",
        /// Counting tokens without generating.
        CountTokens = "count_tokens",
        /// A batch of requests, as a job.
        Batch = "batch",
        /// Files: uploaded, listed or downloaded.
        Files = "files",
        /// Polls, listings, accounts and other calls that never generate.
        Control = "control",
        /// Everything that the provider's file does not recognise.
        Other = "other",
    }
}

impl Operation {
    /// Whether a call of this kind never costs anything by itself: it is counted in the metrics
    /// and makes no row unless `meter.control_rows` asks for it. What is not recognised may
    /// cost, so [`Operation::Other`] is not a control call.
    pub const fn is_control(self) -> bool {
        matches!(
            self,
            Operation::Moderation
                | Operation::Models
                | Operation::CountTokens
                | Operation::Files
                | Operation::Control
        )
    }
}

names! {
    /// How far the report of a response can be trusted, as the `fidelity` column and label.
    Fidelity {
        /// The provider's usage was seen in full.
        Complete = "complete",
        /// The response broke off; what had been seen by then is carried.
        Partial = "partial",
        /// The response ended well and stated no usage.
        Silent = "silent",
        /// Parts of the usage exceed their whole; the whole was taken.
        Inconsistent = "inconsistent",
        /// The response was not what its type says.
        Malformed = "malformed",
        /// A part that the meter needed exceeded its limit.
        Oversize = "oversize",
        /// The content encoding is unknown, broken, or beyond the limits of decoding.
        Undecodable = "undecodable",
    }
}

names! {
    /// Where a cost comes from, as the `cost_source` column and the `source` label.
    CostSource {
        /// The provider stated it.
        Provider = "provider",
        /// The price catalogue times the usage that the provider stated.
        Catalog = "catalog",
        /// The price catalogue times usage that is partly inferred.
        Estimated = "estimated",
    }
}

names! {
    /// Why a request has no cost, as the `unpriced_reason` column and the `reason` label.
    UnpricedReason {
        /// No model could be told.
        ModelMissing = "model_missing",
        /// The catalogue does not know the model.
        ModelUnknown = "model_unknown",
        /// The model is known, a quantity used has no price.
        PriceMissing = "price_missing",
        /// The price depends on a resolution, a size, sound or a length that is not known.
        QualifierUnknown = "qualifier_unknown",
        /// The provider stated no usage, of a job also where it failed or was stopped.
        UsageMissing = "usage_missing",
        /// The request did not end, so its usage is not final.
        Incomplete = "incomplete",
    }
}

/// One request or job, settled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRecord {
    /// UUIDv7 made when the request started.
    pub id: Uuid,
    /// When the request started, to the microsecond.
    #[serde(serialize_with = "rfc3339")]
    pub started_at: DateTime<Utc>,
    /// The process that metered it.
    #[serde(flatten)]
    pub instance: Instance,
    /// The provider's name: route, configuration key and label alike.
    pub provider: Arc<str>,
    /// What was asked.
    pub operation: Operation,
    /// The HTTP method.
    pub method: String,
    /// The path with ids replaced by placeholders, without query.
    pub route: String,
    /// The model as requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_requested: Option<String>,
    /// The model that the provider says it used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_served: Option<String>,
    /// The party behind a router, as the router names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_provider: Option<String>,
    /// The tier that was billed: `flex`, `priority`, `batch`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_tier: Option<String>,
    /// Whether the response was a stream of events.
    pub streamed: bool,
    /// The provider's id of the job, for asynchronous work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<String>,
    /// How often the job was polled up to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub polls: Option<u32>,
    /// The provider's id of the request or generation; never a key of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_request_id: Option<String>,
    /// How it ended.
    pub outcome: Outcome,
    /// The provider's HTTP status, if it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    /// The provider's error code or type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    /// The provider's message, scrubbed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// The provider's own word for why the answer ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
    /// From the request's arrival to the end of the response; unknown if nobody saw the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
    /// From the request's arrival to the first byte of the response's body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte_us: Option<u64>,
    /// From the request's arrival to the first real token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token_us: Option<u64>,
    /// Time that Taffrail itself spent on the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overhead_us: Option<u64>,
    /// The job's time in the provider's queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_us: Option<u64>,
    /// The job's time running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_us: Option<u64>,
    /// Bytes of the request's body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_bytes: Option<u64>,
    /// Bytes of the response's body, as they came over the wire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_bytes: Option<u64>,
    /// What was consumed.
    #[serde(default)]
    pub usage: Usage,
    /// How far the usage can be trusted.
    pub fidelity: Fidelity,
    /// The provider's own usage object, as JSON text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw_usage: Option<String>,
    /// The cost to all parties together; `None` is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<Usd>,
    /// The part of the cost that another party bills.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_upstream_usd: Option<Usd>,
    /// How much cheaper the request was for what it read from and wrote to caches, by list prices;
    /// negative if it was dearer. Counted by metrics and not kept in rows.
    #[serde(skip)]
    pub cache_effect_usd: Option<Usd>,
    /// Where the cost comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_source: Option<CostSource>,
    /// The version of the price catalogue that priced it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_version: Option<String>,
    /// Why there is no cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpriced_reason: Option<UnpricedReason>,
    /// When the cost was computed anew, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recosted_at: Option<DateTime<Utc>>,
    /// Who asked.
    #[serde(flatten)]
    pub caller: Caller,
}

impl UsageRecord {
    /// The UTC day of the id: the partition that the row lives in, however late it is stored.
    pub fn day(&self) -> NaiveDate {
        day_of(self.id).unwrap_or_else(|| self.started_at.date_naive())
    }

    /// The model that the row is about: the served one if told, else the requested one.
    pub fn model(&self) -> Option<&str> {
        self.model_served
            .as_deref()
            .or(self.model_requested.as_deref())
    }
}

/// As chrono writes a time, which does so digit by digit through the serializer.
fn rfc3339<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

/// The UTC day in a UUIDv7; `None` for ids of another version.
pub fn day_of(id: Uuid) -> Option<NaiveDate> {
    let (seconds, nanos) = id.get_timestamp()?.to_unix();
    let time = DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)?;
    Some(time.date_naive())
}

/// A model and what it consumed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The model; `None` means the call's own.
    pub model: Option<String>,
    /// What it consumed.
    pub usage: Usage,
}

/// A cost that the provider stated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatedCost {
    /// To all parties together.
    pub total: Usd,
    /// The part that another party bills, as with bring-your-own-key.
    pub upstream: Option<Usd>,
}

/// What a response said, once it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How it ended: from status, body and in-stream errors, else from how its body ended. A client
    /// that leaves after the provider's end mark (`[DONE]`, `message_stop`, a whole JSON body)
    /// has cancelled nothing, so the caller has nothing to override.
    pub outcome: Outcome,
    /// The provider's error code or type.
    pub error_code: Option<String>,
    /// The provider's error message, scrubbed.
    pub error_message: Option<String>,
    /// The provider's own word for why the answer ended.
    pub finish_reason: Option<String>,
    /// The model that answered.
    pub model_served: Option<String>,
    /// The party behind a router.
    pub upstream_provider: Option<String>,
    /// The tier that is billed.
    pub service_tier: Option<String>,
    /// A region that changes the price (`us`).
    pub region: Option<String>,
    /// The provider's id of the request or generation.
    pub provider_request_id: Option<String>,
    /// The size of a video (`1280x720`), which counts where the request did not say one.
    pub image_variant: Option<String>,
    /// What else a price can depend on, as the response states it.
    #[serde(default, skip_serializing_if = "Qualifiers::is_empty")]
    pub qualifiers: Qualifiers,
    /// The consumption, in disjoint units; none of the parts is empty. Each is priced by itself,
    /// and several may be of one model: a long context is dearer for each, not for their sum.
    pub parts: Vec<Part>,
    /// The cost, if stated.
    pub stated_cost: Option<StatedCost>,
    /// The provider's own usage object, as JSON text.
    pub raw_usage: Option<String>,
    /// How far the usage can be trusted. An HTTP error, a control call and a job that was merely
    /// accepted owe none: they are complete without parts.
    pub fidelity: Fidelity,
    /// Whether a quantity was inferred by us instead of being stated.
    pub estimated: bool,
    /// The job that the response is about, if it is about one.
    pub job: Option<JobView>,
}

/// What a response tells of an asynchronous job. Outcome, usage and the rest of its [`Report`]
/// are then the job's, as far as this view knows them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobView {
    /// The provider's id of the job.
    pub id: String,
    /// How far it is.
    pub stage: JobStage,
    /// Its time in the provider's queue, if stated.
    pub queue: Option<Duration>,
    /// Its time running, if stated.
    pub run: Option<Duration>,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStage {
    /// It waits or runs.
    Open,
    /// It has ended; what it consumed another view tells.
    Ended,
    /// It has ended, and this view tells all that will be told of it.
    Settled,
}

/// A promise that a record will follow: written when a request starts, so that a crash leaves a
/// trace of what was under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The id that the record will have.
    pub id: Uuid,
    /// When the request started.
    #[serde(serialize_with = "rfc3339")]
    pub started_at: DateTime<Utc>,
    /// The provider's name.
    pub provider: Arc<str>,
    /// What was asked.
    pub operation: Operation,
    /// The HTTP method.
    pub method: String,
    /// The path with ids replaced by placeholders.
    pub route: String,
    /// The model as requested, if known by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_requested: Option<String>,
    /// Who asked.
    #[serde(flatten)]
    pub caller: Caller,
    /// The job that it has become, once the provider has accepted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Job>,
}

/// An asynchronous job that a provider has accepted: what its submit tells of its row, or what was
/// seen of its end by a process that had not submitted it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The provider's id of the job.
    pub id: String,
    /// The status of the answer to the submit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    /// The model that the answer named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_served: Option<String>,
    /// The provider's id of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_request_id: Option<String>,
    /// Bytes of the request's body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_bytes: Option<u64>,
    /// Bytes of the response's body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_bytes: Option<u64>,
    /// From the request's arrival to the first byte of the response's body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte_us: Option<u64>,
    /// Time that Taffrail itself spent on the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overhead_us: Option<u64>,
    /// Size and quality asked for, where a price depends on them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_variant: Option<String>,
    /// What else was asked for that a price can depend on.
    #[serde(default, skip_serializing_if = "Qualifiers::is_empty")]
    pub qualifiers: Qualifiers,
    /// Its end. The intent is then that of the call that saw it, and the job another process's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Box<JobEnd>>,
}

/// The end of a job, as a view of it told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEnd {
    /// When it was first seen to have ended.
    #[serde(serialize_with = "rfc3339")]
    pub at: DateTime<Utc>,
    /// What the view told.
    pub report: Report,
}

impl JobEnd {
    /// Whether the view told all that will be told of the job.
    pub fn is_settled(&self) -> bool {
        let view = self.report.job.as_ref();
        view.is_some_and(|view| view.stage == JobStage::Settled)
    }
}

/// What one process knows of a job: its submit, or its end if the intent's job has one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobHalf {
    /// The process.
    #[serde(flatten)]
    pub instance: Instance,
    /// The intent that it keeps open for the job.
    pub intent: Intent,
    /// Of a submit: when its process gives the job up, if ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_at: Option<DateTime<Utc>>,
}

impl JobHalf {
    /// The end, if it is that half.
    pub fn end(&self) -> Option<&JobEnd> {
        self.intent.job.as_ref()?.end.as_deref()
    }
}

impl Intent {
    /// The record of a request whose end nobody saw, because the process died.
    pub fn interrupted(self, instance: Instance) -> UsageRecord {
        let is_job = self.job.is_some();
        let job = self.job.unwrap_or_default();
        UsageRecord {
            id: self.id,
            started_at: self.started_at,
            instance,
            provider: self.provider,
            operation: self.operation,
            method: self.method,
            route: self.route,
            model_requested: self.model_requested,
            model_served: job.model_served,
            upstream_provider: None,
            service_tier: None,
            streamed: false,
            job_id: is_job.then_some(job.id),
            polls: None,
            provider_request_id: job.provider_request_id,
            outcome: Outcome::Interrupted,
            http_status: job.http_status,
            error_code: None,
            error_message: None,
            finish_reason: None,
            duration_us: None,
            first_byte_us: job.first_byte_us,
            first_token_us: None,
            overhead_us: job.overhead_us,
            queue_us: None,
            run_us: None,
            request_bytes: job.request_bytes,
            response_bytes: job.response_bytes,
            usage: Usage::new(),
            fidelity: Fidelity::Partial,
            raw_usage: None,
            cost_usd: None,
            cost_upstream_usd: None,
            cache_effect_usd: None,
            cost_source: None,
            price_version: None,
            unpriced_reason: Some(UnpricedReason::Incomplete),
            recosted_at: None,
            caller: self.caller,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intent() -> Intent {
        Intent {
            id: Uuid::parse_str("0198c000-0000-7000-8000-000000000001").unwrap(),
            started_at: DateTime::from_timestamp(1_755_561_984, 0).unwrap(),
            provider: "openai".into(),
            operation: Operation::Chat,
            method: "POST".into(),
            route: "/v1/chat/completions".into(),
            model_requested: Some("gpt-4o-mini".into()),
            caller: Caller::default(),
            job: None,
        }
    }

    #[test]
    fn a_record_survives_its_encoding() {
        let mut record = intent().interrupted(Instance::default());
        record.usage.set(crate::usage::Unit::Input, 3);
        record.cost_usd = Usd::from_json_number("0.000012");
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<UsageRecord>(&text).unwrap(), record);
    }

    #[test]
    fn the_day_comes_from_the_id() {
        let record = intent().interrupted(Instance::default());
        assert_eq!(record.day(), day_of(record.id).unwrap());
        assert_eq!(day_of(Uuid::nil()), None);
    }
}
