//! Replicate: predictions and trainings, which are asynchronous jobs, and the calls around them.
//!
//! <https://replicate.com/docs/reference/http>. A job is the same object in the answers to its
//! create, its polls and its cancel. Once it has ended, its `metrics` state what it consumed;
//! its cost is stated nowhere, nor the hardware that it ran on.

use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::Duration;

use chrono::{DateTime, FixedOffset};
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;

use super::failure::{self, Failure};
use super::object::{members, quantity, scalar, word};
use super::response::{MESSAGE_BYTES_MAX, USAGE_BYTES_MAX};
use super::route::{self, Route, Segments, route};
use super::{
    Call, End, JobCall, JobStage, JobView, Meter, Milestone, NAME_BYTES_MAX, Part, Provider,
    RateLimit, Report, RequestFacts, RequestHead, RequestReader, ResponseHead, input, request,
    url_selector,
};
use crate::fault::{Outcome, ProviderError};
use crate::qualifier::{Qualifier, Qualifiers};
use crate::record::{Fidelity, Operation};
use crate::usage::{Unit, Usage};
use crate::wire::json::Step::{self, Key};
use crate::wire::json::{self, Found, Path, Picker, Selector, Status, Want};
use crate::wire::sse::{Decoder, Piece};

/// Route and configuration key of each host; the first one is the label of both.
pub(crate) const API: &str = "replicate";
pub(crate) const STREAM: &str = "replicate-stream";

/// The provider, at one of its hosts.
pub(crate) struct Replicate(pub(crate) Host);

/// A host of the vendor's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    /// Takes jobs, and tells how they are.
    Api,
    /// Streams their output.
    Stream,
}

/// The URLs of a job that its follow-ups go to; `web` is a page for people.
static JOB_URLS: LazyLock<Selector> = LazyLock::new(|| {
    url_selector(&[
        &[Key("urls"), Key("get")],
        &[Key("urls"), Key("cancel")],
        &[Key("urls"), Key("stream")],
    ])
});

static ROUTES: &[Route] = &[
    route("GET", "/v1/predictions/{id}", Operation::Control),
    route("POST", "/v1/predictions", Operation::Prediction),
    route(
        "POST",
        "/v1/models/{owner}/{name}/predictions",
        Operation::Prediction,
    ),
    route(
        "POST",
        "/v1/deployments/{owner}/{name}/predictions",
        Operation::Prediction,
    ),
    route("POST", "/v1/predictions/{id}/cancel", Operation::Control),
    route("GET", "/v1/trainings/{id}", Operation::Control),
    route("POST", "/v1/trainings/{id}/cancel", Operation::Control),
    route(
        "POST",
        "/v1/models/{owner}/{name}/versions/{version}/trainings",
        Operation::Training,
    ),
    route("GET", "/v1/predictions", Operation::Control),
    route("GET", "/v1/trainings", Operation::Control),
    route("GET", "/v1/models/*", Operation::Models),
    route("DELETE", "/v1/models/*", Operation::Models),
    // Search is a method of its own here: QUERY.
    route("*", "/v1/models", Operation::Models),
    route("*", "/v1/models/{owner}/{name}", Operation::Models),
    route("GET", "/v1/collections/*", Operation::Models),
    route("GET", "/v1/search", Operation::Models),
    route("*", "/v1/deployments", Operation::Control),
    route("*", "/v1/deployments/{owner}/{name}", Operation::Control),
    route("GET", "/v1/account", Operation::Control),
    route("GET", "/v1/hardware", Operation::Control),
    route("GET", "/v1/webhooks/default/secret", Operation::Control),
    route("*", "/v1/files", Operation::Files),
    route("*", "/v1/files/{id}", Operation::Files),
    route("GET", "/v1/files/{id}/download", Operation::Files),
    route("GET", "/v1/streams/*", Operation::Control),
];

/// The output of a prediction as it is made, at a host of its own whose paths are also those of
/// files. It is asked for as events, which no file is.
static STREAMS: &[Route] = &[route("GET", "/v1/files/*", Operation::Control)];

impl Provider for Replicate {
    fn name(&self) -> &str {
        match self.0 {
            Host::Api => API,
            Host::Stream => STREAM,
        }
    }

    fn label(&self) -> &str {
        API
    }

    fn default_upstream(&self) -> Option<&'static str> {
        Some(match self.0 {
            Host::Api => "https://api.replicate.com",
            Host::Stream => "https://stream.replicate.com",
        })
    }

    fn recognise(&self, head: RequestHead<'_>) -> Call {
        let segments = Segments::of(head.path);
        let find = |table| route::find(table, "", head.method, segments.from(0));
        let stream = asks_for_events(head.headers)
            .then(|| find(STREAMS))
            .flatten();
        let Some((route, template)) = stream.or_else(|| find(ROUTES)) else {
            return Call {
                operation: route::unknown(head.method),
                route: Cow::Borrowed(route::UNKNOWN_ROUTE),
                model: None,
                job: None,
            };
        };
        let is_of_job = template.starts_with("/v1/predictions/{id}")
            || template.starts_with("/v1/trainings/{id}");
        let (model, job) = if is_of_job {
            let id = segments.get(2).and_then(route::name);
            (None, id.map(JobCall::Follow))
        } else if route.operation.is_control() {
            (None, None)
        } else {
            (owned_name(&segments), Some(JobCall::Submit))
        };
        Call {
            operation: route.operation,
            route: Cow::Borrowed(template),
            model,
            job,
        }
    }

    fn read_request(&self, call: &Call, head: RequestHead<'_>) -> Box<dyn RequestReader> {
        if call.operation == Operation::Prediction {
            Box::new(PredictionReader {
                picker: Picker::new(&CREATE),
                facts: RequestFacts::default(),
            })
        } else {
            request::reader(call.operation, head)
        }
    }

    fn meter(&self, call: &Call, head: ResponseHead<'_>) -> Box<dyn Meter> {
        let is_stream = call.operation == Operation::Control && call.job.is_none();
        if is_stream && head.status.as_u16() < 400 && says_events(head.headers.get(CONTENT_TYPE)) {
            Box::new(StreamMeter::new())
        } else {
            Box::new(DocumentMeter::new(call, head))
        }
    }

    fn follow_up(&self, call: &Call, _target: &str, job_id: &str) -> Option<String> {
        let kind = match call.operation {
            Operation::Training => "trainings",
            _ => "predictions",
        };
        Some(format!("/v1/{kind}/{job_id}"))
    }

    fn job_urls(&self, call: &Call) -> Option<&'static Selector> {
        call.job.as_ref().map(|_| &*JOB_URLS)
    }

    fn needs_usage_injection(&self, _call: &Call) -> bool {
        false
    }

    fn rate_limits(&self, headers: &HeaderMap) -> Vec<RateLimit> {
        let remaining = headers
            .get("ratelimit-remaining")
            .and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let limit = remaining.map(|remaining| RateLimit {
            kind: "requests",
            limit: None,
            remaining: Some(remaining),
        });
        limit.into_iter().collect()
    }
}

fn asks_for_events(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT)
        .iter()
        .any(|value| says_events(Some(value)))
}

fn says_events(value: Option<&http::HeaderValue>) -> bool {
    value
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.to_ascii_lowercase().contains("text/event-stream"))
}

/// The `owner/name` of a model or deployment in the path.
fn owned_name(segments: &Segments<'_>) -> Option<String> {
    let owner = segments.get(2).and_then(route::name)?;
    let name = segments.get(3).and_then(route::name)?;
    let both = format!("{owner}/{name}");
    (both.len() <= NAME_BYTES_MAX).then_some(both)
}

/// Reads which model a prediction is asked of, where the path does not say, and what its price can
/// depend on.
struct PredictionReader {
    picker: Picker<'static>,
    facts: RequestFacts,
}

static CREATE: LazyLock<Selector> = LazyLock::new(|| {
    let mut paths = vec![Path {
        steps: &[Key("version")],
        want: Want::Text(NAME_BYTES_MAX),
    }];
    paths.extend(input::paths(&input::IN_INPUT));
    Selector::new(&paths)
});

impl RequestReader for PredictionReader {
    fn push(&mut self, bytes: &[u8]) {
        let PredictionReader { picker, facts } = self;
        picker.push(bytes, &mut |index, found| match (index, &found) {
            (0, Found::Text(text)) => {
                facts.model = word(text).as_deref().and_then(model_of);
            }
            _ => {
                let index = index.saturating_sub(1);
                input::found(&mut facts.qualifiers, &input::IN_INPUT, index, &found);
            }
        });
    }

    fn facts(&self) -> &RequestFacts {
        &self.facts
    }

    fn end(&mut self) {
        self.facts.complete = self.picker.end(&mut |_, _| {}) == Status::Complete;
    }
}

/// The model of a version: `owner/name`, whether or not a version's id follows (`owner/name:id`).
/// An id alone names no model; the response does.
fn model_of(version: &str) -> Option<String> {
    let (name, _) = version.split_once(':').unwrap_or((version, ""));
    name.contains('/').then(|| name.to_owned())
}

/// A member of a job, or of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Id,
    Model,
    Deployment,
    Status,
    Error,
    CreatedAt,
    StartedAt,
    CompletedAt,
    Metrics,
    Title,
    Detail,
}

static DOCUMENT: LazyLock<Selector> = LazyLock::new(|| {
    let path = |(_, steps, limit): &(Field, &'static [Step], usize)| Path {
        steps,
        want: Want::Text(*limit),
    };
    let mut paths: Vec<Path> = MEMBERS.iter().map(path).collect();
    // What was asked for stays in the job until an hour after its end.
    paths.extend(input::paths(&input::IN_INPUT));
    Selector::new(&paths)
});
const MEMBERS: &[(Field, &[Step], usize)] = &[
    (Field::Id, &[Key("id")], NAME_BYTES_MAX),
    (Field::Model, &[Key("model")], NAME_BYTES_MAX),
    (Field::Deployment, &[Key("deployment")], NAME_BYTES_MAX),
    (Field::Status, &[Key("status")], NAME_BYTES_MAX),
    (Field::Error, &[Key("error")], MESSAGE_BYTES_MAX),
    (Field::CreatedAt, &[Key("created_at")], NAME_BYTES_MAX),
    (Field::StartedAt, &[Key("started_at")], NAME_BYTES_MAX),
    (Field::CompletedAt, &[Key("completed_at")], NAME_BYTES_MAX),
    (Field::Metrics, &[Key("metrics")], USAGE_BYTES_MAX),
    (Field::Title, &[Key("title")], NAME_BYTES_MAX),
    (Field::Detail, &[Key("detail")], MESSAGE_BYTES_MAX),
];

/// What a document said, the last of duplicate members.
#[derive(Debug, Default)]
struct Document {
    id: Option<String>,
    model: Option<String>,
    deployment: Option<String>,
    status: Option<String>,
    error: Option<String>,
    created_at: Option<DateTime<FixedOffset>>,
    started_at: Option<DateTime<FixedOffset>>,
    completed_at: Option<DateTime<FixedOffset>>,
    metrics: Option<String>,
    title: Option<String>,
    detail: Option<String>,
    asked: Qualifiers,
    is_oversize: bool,
}

impl Document {
    fn found(&mut self, index: usize, found: Found<'_>) {
        let Some((field, ..)) = MEMBERS.get(index) else {
            let index = index.saturating_sub(MEMBERS.len());
            return input::found(&mut self.asked, &input::IN_INPUT, index, &found);
        };
        match found {
            Found::Text(b"null") => {}
            Found::Text(text) => self.text_found(*field, text),
            _ => self.is_oversize |= *field == Field::Metrics,
        }
    }

    fn text_found(&mut self, field: Field, text: &[u8]) {
        if field == Field::Metrics {
            self.metrics = std::str::from_utf8(text).ok().map(str::to_owned);
            self.is_oversize = false;
            return;
        }
        let Some(word) = word(text) else { return };
        let time = || DateTime::parse_from_rfc3339(&word).ok();
        match field {
            Field::CreatedAt => self.created_at = time(),
            Field::StartedAt => self.started_at = time(),
            Field::CompletedAt => self.completed_at = time(),
            Field::Id => self.id = Some(word.into_owned()),
            Field::Model => self.model = Some(word.into_owned()),
            Field::Deployment => self.deployment = Some(word.into_owned()),
            Field::Status => self.status = Some(word.into_owned()),
            Field::Error => self.error = Some(word.into_owned()),
            Field::Title => self.title = Some(word.into_owned()),
            Field::Detail => self.detail = Some(word.into_owned()),
            Field::Metrics => {}
        }
    }

    /// How the job stands. A word that is not known means what the other members show.
    fn standing(&self) -> Standing {
        match self.status.as_deref() {
            Some("succeeded") => Standing::Succeeded,
            Some("failed") => Standing::Failed,
            // By a call, or by the deadline that the caller set: `aborted` before it ran.
            Some("canceled" | "aborted") => Standing::Canceled,
            Some("starting" | "processing") => Standing::Open,
            _ if self.completed_at.is_none() => Standing::Open,
            _ if self.error.is_some() => Standing::Failed,
            _ => Standing::Succeeded,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Open,
    Succeeded,
    Failed,
    Canceled,
}

/// Meters the answer to a call about one job, and any error. All other answers are not looked
/// at: a list or a model's page holds metrics that nobody owes for this call.
struct DocumentMeter {
    picker: Option<Picker<'static>>,
    document: Document,
    http_status: u16,
    /// Whether an answer that tells of no job lacks something.
    is_job_due: bool,
    /// Whether the caller would ask again in this way, had the job told less than all.
    is_poll: bool,
    /// What a job that fails has done.
    failed: &'static str,
    /// The deployment in the path.
    deployment: Option<String>,
}

impl DocumentMeter {
    fn new(call: &Call, head: ResponseHead<'_>) -> DocumentMeter {
        let http_status = head.status.as_u16();
        let is_read = call.job.is_some() || http_status >= 400;
        let is_answered = (200..300).contains(&http_status) && http_status != 202;
        let is_deployment = call.route.starts_with("/v1/deployments/");
        DocumentMeter {
            picker: is_read.then(|| Picker::new(&DOCUMENT)),
            document: Document::default(),
            http_status,
            is_job_due: is_answered && !call.operation.is_control(),
            is_poll: call.route.ends_with("/{id}"),
            failed: if call.route.contains("/trainings") {
                "training_failed"
            } else {
                "prediction_failed"
            },
            deployment: call.model.clone().filter(|_| is_deployment),
        }
    }
}

impl Meter for DocumentMeter {
    fn push(&mut self, bytes: &[u8]) -> Option<Milestone> {
        if let Some(picker) = &mut self.picker {
            let document = &mut self.document;
            picker.push(bytes, &mut |index, found| document.found(index, found));
        }
        None
    }

    fn finish(mut self: Box<Self>, end: End, _request: &RequestFacts) -> Report {
        let document = &mut self.document;
        let status = self
            .picker
            .as_mut()
            .map(|picker| picker.end(&mut |index, found| document.found(index, found)));
        // Whoever has the whole document has been told all.
        let end = match status {
            Some(Status::Complete) => End::Complete,
            _ => end,
        };
        match status {
            Some(_) if self.http_status >= 400 => self.problem(end),
            Some(Status::Complete) => self.job(),
            Some(status) => self.fragment(status, end),
            None => self.nothing(end),
        }
    }
}

impl DocumentMeter {
    /// An HTTP error: `application/problem+json`, or whatever a proxy on the way answers.
    fn problem(self, end: End) -> Report {
        let failure = Failure {
            status: self.http_status,
            kind: self.document.title,
            message: self.document.detail.or(self.document.error),
            ..Failure::default()
        };
        let error = failure.conclude(|_| None);
        with_error(plain(self.http_status, end), error)
    }

    /// An answer that tells of no job.
    fn nothing(&self, end: End) -> Report {
        let mut report = plain(self.http_status, end);
        if end == End::Complete && self.is_job_due {
            report.fidelity = Fidelity::Silent;
        }
        report
    }

    /// A document that is not whole, or no JSON. Members may be missing, so nothing of the job
    /// but its id is believed.
    fn fragment(self, status: Status, end: End) -> Report {
        let mut report = self.nothing(end);
        if end == End::Complete {
            match status {
                Status::TooDeep => report.fidelity = Fidelity::Oversize,
                Status::Partial | Status::Malformed => report.fidelity = Fidelity::Malformed,
                Status::Empty | Status::Complete => {}
            }
        }
        let model = self.document.model;
        report.model_served = model.filter(|model| !model.starts_with(INTERNAL));
        report.job = self.document.id.map(|id| JobView {
            id,
            stage: JobStage::Open,
            queue: None,
            run: None,
        });
        report
    }

    fn job(self) -> Report {
        let mut report = self.nothing(End::Complete);
        let standing = self.document.standing();
        let Document {
            id,
            model,
            deployment,
            status,
            error,
            created_at,
            started_at,
            completed_at,
            metrics,
            asked,
            is_oversize,
            ..
        } = self.document;
        report.model_served = model.filter(|model| !model.starts_with(INTERNAL));
        let Some(id) = id else { return report };

        let mut stated = Metrics {
            qualifiers: asked,
            ..Metrics::default()
        };
        if let Some(metrics) = &metrics {
            stated.read(metrics);
        }
        // What never ran consumed nothing, and states nothing.
        let has_run = started_at.is_some() || standing == Standing::Succeeded;
        let is_told = !stated.usage.is_empty() || stated.is_negative || is_oversize;
        // The answer to a create or a cancel can be ahead of the metrics. A poll that shows the
        // end shows all there will be, as nobody polls after it.
        let stage = match standing {
            Standing::Open => JobStage::Open,
            _ if has_run && !is_told && !self.is_poll => JobStage::Ended,
            _ => JobStage::Settled,
        };
        report.fidelity = if is_oversize {
            Fidelity::Oversize
        } else if stated.is_malformed {
            Fidelity::Malformed
        } else if stated.is_negative {
            Fidelity::Inconsistent
        } else if is_told || !has_run || standing == Standing::Open {
            Fidelity::Complete
        } else {
            Fidelity::Silent
        };
        let between =
            |from: Option<DateTime<_>>, to: Option<DateTime<_>>| (to? - from?).to_std().ok();
        report.job = Some(JobView {
            id,
            stage,
            queue: between(created_at, started_at),
            run: stated
                .usage
                .get(Unit::ComputeSecond)
                .and_then(duration)
                .or_else(|| between(started_at, completed_at)),
        });

        // A deployment is billed by its own hardware, not as the model that it serves, so what
        // it does is priced under its own name. The path has that name with its owner.
        let deployment = deployment
            .filter(|name| name.contains('/') || self.deployment.is_none())
            .or(self.deployment);
        if !stated.usage.is_empty() {
            report.parts.push(Part {
                model: deployment,
                usage: stated.usage,
            });
        }
        report.qualifiers = stated.qualifiers;
        report.raw_usage = metrics;
        match standing {
            Standing::Open => return report,
            Standing::Succeeded => {}
            Standing::Failed => report = with_error(report, failed(self.failed, error)),
            Standing::Canceled => report.outcome = Outcome::ClientCancelled,
        }
        report.finish_reason = status;
        report
    }
}

/// The owner of what stands behind an official model at times. It has neither a name that anyone
/// asked for nor a price; the model that was asked for has both.
const INTERNAL: &str = "replicate-internal/";

/// A metric and the unit that it counts in. Of several for one unit the first holds: what
/// Replicate bills by comes before what a model measured of itself.
///
/// The outputs of a model that is billed by each of them are its billing units.
const METRICS: [(&str, Unit); 16] = [
    ("token_input_count", Unit::Input),
    ("input_token_count", Unit::Input),
    ("token_output_count", Unit::Output),
    ("output_token_count", Unit::Output),
    ("image_output_count", Unit::Image),
    ("image_count", Unit::Image),
    ("video_output_total_pixel_count", Unit::Megapixel),
    ("video_output_duration_seconds", Unit::VideoSecond),
    ("audio_output_duration_seconds", Unit::AudioSecond),
    ("predict_time", Unit::ComputeSecond),
    ("character_input_count", Unit::Character),
    ("training_step_count", Unit::TrainingStep),
    ("unspecified_billing_metric", Unit::BillableUnit),
    ("generic_output_count", Unit::BillableUnit),
    ("video_output_count", Unit::BillableUnit),
    ("audio_output_count", Unit::BillableUnit),
];

const PIXELS_PER_MEGAPIXEL: Decimal = Decimal::from_parts(1_000_000, 0, 0, false, 0);

/// A metric that a price depends on.
const QUALIFIERS: [(&str, Qualifier); 5] = [
    ("resolution_target", Qualifier::Resolution),
    ("resolution_upscale_target", Qualifier::Upscale),
    ("with_audio", Qualifier::Audio),
    ("motion_mode", Qualifier::Mode),
    ("model_variant", Qualifier::Variant),
];

/// What the `metrics` of a job come to.
#[derive(Debug, Default)]
struct Metrics {
    usage: Usage,
    /// What was asked for, as far as they do not say what was billed.
    qualifiers: Qualifiers,
    /// Whether a quantity is below zero, which is none. `predict_time` can be by months.
    is_negative: bool,
    /// Whether they are no object.
    is_malformed: bool,
}

impl Metrics {
    fn read(&mut self, text: &str) {
        let mut stated: [Option<&str>; METRICS.len()] = [None; METRICS.len()];
        let is_object = members(text, &mut |key, text| {
            let slots = METRICS.iter().zip(&mut stated);
            if let Some((_, slot)) = slots.into_iter().find(|((name, _), _)| *name == key) {
                *slot = Some(text);
            }
            let qualifier = QUALIFIERS.iter().find(|(name, _)| *name == key);
            if let (Some((_, qualifier)), Some(value)) = (qualifier, scalar(text.as_bytes())) {
                self.qualifiers.set(*qualifier, &value);
            }
        });
        self.is_malformed = !is_object;
        for ((_, unit), text) in METRICS.into_iter().zip(stated) {
            let Some(text) = text else { continue };
            match quantity(text) {
                Some(pixels) if unit == Unit::Megapixel => {
                    let megapixels = pixels.checked_div(PIXELS_PER_MEGAPIXEL);
                    self.state(unit, megapixels.unwrap_or_default());
                }
                Some(quantity) => self.state(unit, quantity),
                None => self.is_negative |= json::decimal_of(text.as_bytes()).is_some(),
            }
        }
        // How long a clip was to be is what prices go by; what came out measures a bit more.
        let measured = [Unit::VideoSecond, Unit::AudioSecond];
        let measured = measured.into_iter().find_map(|unit| self.usage.get(unit));
        if let (None, Some(seconds)) = (self.qualifiers.get(Qualifier::Seconds), measured) {
            self.qualifiers
                .set(Qualifier::Seconds, &seconds.to_string());
        }
    }

    fn state(&mut self, unit: Unit, quantity: Decimal) {
        if self.usage.get(unit).is_none() {
            self.usage.set(unit, quantity);
        }
    }
}

/// So many seconds, to the nanosecond.
fn duration(seconds: Decimal) -> Option<Duration> {
    let nanos = seconds
        .checked_mul(Decimal::from(1_000_000_000))?
        .to_u64()?;
    Some(Duration::from_nanos(nanos))
}

/// The error of a job that failed: `fallback` unless its text holds one of Replicate's codes.
fn failed(fallback: &str, message: Option<String>) -> ProviderError {
    let code = message.as_deref().and_then(code_of);
    Failure {
        exact: code.map(str::to_owned),
        kind: Some(fallback.to_owned()),
        message,
        ..Failure::default()
    }
    .conclude(|failure| {
        let is_filtered = ["flagged as sensitive", "nsfw content"]
            .iter()
            .any(|phrase| failure.says(phrase));
        Some(match failure.exact.as_deref() {
            Some("E005") => Outcome::ContentFiltered,
            _ if is_filtered => Outcome::ContentFiltered,
            // It was not started in time.
            Some("E6716") => Outcome::UpstreamTimeout,
            _ => Outcome::JobFailed,
        })
    })
}

/// The code in the text of an error: `E1001`, or of three digits in the models that Replicate
/// resells (<https://replicate.com/docs/reference/error-codes>).
fn code_of(message: &str) -> Option<&str> {
    message
        .split(|c: char| !c.is_ascii_alphanumeric())
        .find(|word| {
            word.strip_prefix('E').is_some_and(|digits| {
                matches!(digits.len(), 3 | 4) && digits.bytes().all(|byte| byte.is_ascii_digit())
            })
        })
}

/// What can be said of a response by its status and end alone.
fn plain(http_status: u16, end: End) -> Report {
    let broken_off = match end {
        End::Complete => None,
        End::Truncated => Some(Outcome::UpstreamTruncated),
        End::Cancelled => Some(Outcome::ClientCancelled),
        End::TimedOut => Some(Outcome::UpstreamTimeout),
    };
    Report {
        outcome: broken_off.unwrap_or_else(|| failure::of_status(http_status)),
        error_code: None,
        error_message: None,
        finish_reason: None,
        model_served: None,
        upstream_provider: None,
        service_tier: None,
        region: None,
        provider_request_id: None,
        parts: Vec::new(),
        stated_cost: None,
        raw_usage: None,
        image_variant: None,
        qualifiers: Qualifiers::default(),
        fidelity: if broken_off.is_some() {
            Fidelity::Partial
        } else {
            Fidelity::Complete
        },
        estimated: false,
        job: None,
    }
}

fn with_error(report: Report, error: ProviderError) -> Report {
    Report {
        outcome: error.outcome,
        error_code: error.code,
        error_message: error.message,
        ..report
    }
}

/// Meters the output of a prediction as it is made. It states neither usage nor which
/// prediction it is of.
struct StreamMeter {
    decoder: Decoder,
    events: Events,
}

/// What the events said.
struct Events {
    picker: Picker<'static>,
    kind: Event,
    has_begun: bool,
    is_token_seen: bool,
    failure: Option<String>,
    has_failed: bool,
    is_done: bool,
    reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Output,
    Error,
    Done,
    Other,
}

static EVENT: LazyLock<Selector> = LazyLock::new(|| {
    Selector::new(&[
        Path {
            steps: &[Key("detail")],
            want: Want::Text(MESSAGE_BYTES_MAX),
        },
        Path {
            steps: &[Key("reason")],
            want: Want::Text(NAME_BYTES_MAX),
        },
    ])
});

impl StreamMeter {
    fn new() -> StreamMeter {
        StreamMeter {
            decoder: Decoder::new(),
            events: Events {
                picker: Picker::new(&EVENT),
                kind: Event::Other,
                has_begun: false,
                is_token_seen: false,
                failure: None,
                has_failed: false,
                is_done: false,
                reason: None,
            },
        }
    }
}

impl Events {
    fn piece(&mut self, piece: Piece<'_>) {
        match piece {
            Piece::Name(name) => {
                self.kind = match name {
                    b"output" => Event::Output,
                    b"error" => Event::Error,
                    b"done" => Event::Done,
                    _ => Event::Other,
                };
            }
            Piece::Data(bytes) => match self.kind {
                Event::Output => self.is_token_seen = true,
                Event::Error | Event::Done => self.push(bytes),
                Event::Other => {}
            },
            Piece::End => {
                self.has_begun = true;
                let is_whole = self.picker.end(&mut |_, _| {}) == Status::Complete;
                self.picker.reset();
                match std::mem::replace(&mut self.kind, Event::Other) {
                    Event::Error => self.has_failed = true,
                    Event::Done => self.is_done |= is_whole,
                    Event::Output | Event::Other => {}
                }
            }
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        let Events {
            picker,
            failure,
            reason,
            ..
        } = self;
        picker.push(bytes, &mut |index, found| {
            if let Found::Text(text) = found
                && let Some(word) = word(text)
            {
                let slot = if index == 0 {
                    &mut *failure
                } else {
                    &mut *reason
                };
                *slot = Some(word.into_owned());
            }
        });
    }
}

impl Meter for StreamMeter {
    fn push(&mut self, bytes: &[u8]) -> Option<Milestone> {
        let StreamMeter { decoder, events } = self;
        let was_token_seen = events.is_token_seen;
        decoder.push(bytes, &mut |piece| events.piece(piece));
        (events.is_token_seen && !was_token_seen).then_some(Milestone::FirstToken)
    }

    fn finish(self: Box<Self>, end: End, _request: &RequestFacts) -> Report {
        let StreamMeter {
            mut decoder,
            mut events,
        } = *self;
        // The last event may lack its blank line.
        decoder.end(&mut |piece| events.piece(piece));
        let has_failed = events.has_failed || events.reason.as_deref() == Some("error");
        let end = match end {
            _ if events.is_done || has_failed => End::Complete,
            // What begins must end with `done`.
            End::Complete if events.has_begun => End::Truncated,
            end => end,
        };
        let mut report = plain(200, end);
        if has_failed {
            report = with_error(report, failed("prediction_failed", events.failure));
        } else if events.is_done && events.reason.as_deref() == Some("canceled") {
            report.outcome = Outcome::ClientCancelled;
        }
        report.finish_reason = events.reason;
        report
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode};

    use super::*;

    fn call(path: &str) -> Call {
        let headers = HeaderMap::new();
        Replicate(Host::Api).recognise(RequestHead {
            method: &Method::GET,
            path,
            query: None,
            headers: &headers,
        })
    }

    fn meter(call: &Call) -> Box<dyn Meter> {
        let headers = HeaderMap::new();
        let head = ResponseHead {
            status: StatusCode::OK,
            headers: &headers,
        };
        Replicate(Host::Api).meter(call, head)
    }

    fn report(body: &str) -> Report {
        let mut meter = meter(&call("/v1/predictions/p1"));
        meter.push(body.as_bytes());
        meter.finish(End::Complete, &RequestFacts::default())
    }

    #[test]
    fn an_image_in_the_answer_hides_nothing_behind_it() {
        let mut meter = meter(&call("/v1/predictions/p1"));
        meter.push(br#"{"id":"p1","input":{"metrics":{"predict_time":9}},"output":["data:image/png;base64,"#);
        let chunk = [b'A'; 64 * 1024];
        for _ in 0..128 {
            meter.push(&chunk);
        }
        meter.push(br#""],"status":"succeeded","metrics":{"predict_time":0.5,"image_count":1}}"#);
        let report = meter.finish(End::Complete, &RequestFacts::default());
        let usage = Usage::new()
            .with(Unit::Image, 1)
            .with(Unit::ComputeSecond, Decimal::new(5, 1));
        assert_eq!(report.parts, [Part { model: None, usage }]);
        assert_eq!(report.fidelity, Fidelity::Complete);
        assert_eq!(report.job.unwrap().stage, JobStage::Settled);
    }

    #[test]
    fn a_version_names_a_model_or_none() {
        for (version, model) in [
            (
                "meta/meta-llama-3-8b-instruct",
                Some("meta/meta-llama-3-8b-instruct"),
            ),
            (
                "replicate/hello-world:5c7d5dc6",
                Some("replicate/hello-world"),
            ),
            ("5c7d5dc6dd8bf75c1acaa8565735e798", None),
            (":a/b", None),
            ("", None),
        ] {
            assert_eq!(model_of(version).as_deref(), model, "{version}");
        }
    }

    #[test]
    fn a_code_is_found_in_the_text_of_an_error() {
        for (message, code) in [
            ("flagged as sensitive (E005)", Some("E005")),
            ("E6716: Timeout starting prediction", Some("E6716")),
            (
                "Director: unexpected error handling prediction (E9243)",
                Some("E9243"),
            ),
            ("E12 E12345 HE005 E00x", None),
            ("", None),
        ] {
            assert_eq!(code_of(message), code, "{message}");
        }
    }

    #[test]
    fn times_that_run_backwards_are_unknown() {
        let body = r#"{"id":"p1","status":"succeeded","created_at":"2026-01-01T00:00:05Z",
            "started_at":"2026-01-01T00:00:03Z","completed_at":"2026-01-01T00:00:01+00:00"}"#;
        let job = report(body).job.unwrap();
        assert_eq!((job.queue, job.run), (None, None));
        let job = report(r#"{"id":"p1","started_at":"soon","metrics":{"predict_time":1e30}}"#).job;
        assert_eq!(job.unwrap().run, None);
    }

    #[test]
    fn a_deployment_is_priced_under_its_own_name() {
        let priced_as = |body: &str| report(body).parts.remove(0).model;
        let of = |deployment: &str| {
            format!(
                r#"{{"id":"p1","status":"succeeded","model":"a/b","deployment":{deployment},"metrics":{{"predict_time":1}}}}"#
            )
        };
        assert_eq!(priced_as(&of("null")), None);
        assert_eq!(priced_as(&of(r#""acme/app""#)).as_deref(), Some("acme/app"));
        assert_eq!(priced_as(&of(r#""app""#)).as_deref(), Some("app"));
    }

    #[test]
    fn an_id_beyond_its_limit_is_no_job() {
        for (bytes, is_known) in [(NAME_BYTES_MAX - 2, true), (NAME_BYTES_MAX - 1, false)] {
            let body = format!(r#"{{"id":"{}","status":"starting"}}"#, "p".repeat(bytes));
            assert_eq!(report(&body).job.is_some(), is_known, "{bytes}");
        }
    }
}
