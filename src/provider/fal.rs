//! fal: models that run while the caller waits (`fal.run`), or as jobs in a queue
//! (`queue.fal.run`), OpenAI's dialect below a router of theirs, and what is around them
//! (`rest.fal.ai`).
//!
//! <https://fal.ai/docs>. What a run consumed stands in a header, in the endpoint's own unit of
//! billing, never in the body; what such a unit costs is the price book's to know. Without the
//! header, what the output shows is counted, as an estimate. An endpoint is named by the path
//! alone. A job is submitted under its endpoint, and followed under the endpoint's first two
//! names.

use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::Duration;

use http::{HeaderMap, HeaderName, Method};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;

use super::chat::{self, ChatCounts};
use super::failure::{self, Failure};
use super::object::{members, quantity, supersede, word};
use super::response::Quantity::Object;
use super::response::{
    Counts, MESSAGE_BYTES_MAX, Settled, USAGE_BYTES_MAX, Vendor, WORD_BYTES_MAX, replace,
    request_id, set_known,
};
use super::route::{self, Route, Segments, route};
use super::source::{Documents, Framing, Source};
use super::{
    Call, End, Forwarding, JobCall, JobStage, JobView, Meter, Milestone, NAME_BYTES_MAX, Part,
    Provider, RateLimit, Report, RequestFacts, RequestHead, RequestReader, ResponseHead,
    common_rate_limits, input, request, url_selector,
};
use crate::fault::{Outcome, ProviderError};
use crate::qualifier::{Qualifier, Qualifiers};
use crate::record::{Fidelity, Operation};
use crate::usage::{Unit, Usage};
use crate::wire::json::Step::{self, Each, Key};
use crate::wire::json::{Found, Kind, Path, Picker, Selector, Status, Want};

/// Route and configuration key of the host where the caller waits, and label of all of them.
pub(crate) const RUN: &str = "fal";

/// Route and configuration key of the queue's host.
pub(crate) const QUEUE: &str = "fal-queue";

/// Route and configuration key of the host for uploads, tokens and the account.
pub(crate) const REST: &str = "fal-rest";

/// The vendor's API at one of its hosts.
pub(crate) struct Fal(pub(crate) Host);

/// What the vendor's JavaScript client asks of a proxy.
pub(crate) static FORWARDING: Forwarding = Forwarding {
    route: "fal-proxy",
    header: HeaderName::from_static("x-fal-target-url"),
    hosts: "fal.run, queue.fal.run, rest.fal.ai",
    resolve,
};

/// What may come before the owner of an endpoint.
const NAMESPACES: [&str; 2] = ["workflows", "comfy"];

/// The URLs of a job that its follow-ups go to.
static JOB_URLS: LazyLock<Selector> = LazyLock::new(|| {
    url_selector(&[
        &[Key("status_url")],
        &[Key("response_url")],
        &[Key("cancel_url")],
    ])
});

/// A host of the vendor's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    /// Runs an endpoint while the caller waits.
    Run,
    /// Takes jobs, and tells how they are.
    Queue,
    /// Takes uploads, gives tokens, and tells of the account.
    Rest,
}

impl Host {
    const fn name(self) -> &'static str {
        match self {
            Host::Run => RUN,
            Host::Queue => QUEUE,
            Host::Rest => REST,
        }
    }

    const fn upstream(self) -> &'static str {
        match self {
            Host::Run => "https://fal.run",
            Host::Queue => "https://queue.fal.run",
            Host::Rest => "https://rest.fal.ai",
        }
    }
}

/// The provider at the host of `url`, and the path there. The host must be spelled to the byte as
/// it is above, without a user or a port: nothing is left that two readers of URLs could take
/// for different hosts.
fn resolve(url: &str) -> Option<(&'static str, &str)> {
    let slash = url.strip_prefix("https://")?.find('/')?;
    let (origin, path) = url.split_at_checked("https://".len() + slash)?;
    let host = [Host::Run, Host::Queue, Host::Rest]
        .into_iter()
        .find(|host| host.upstream() == origin)?;
    (!path.contains('#')).then_some((host.name(), path))
}

static REST_ROUTES: &[Route] = &[
    route("POST", "/storage/*", Operation::Files),
    route("POST", "/tokens/*", Operation::Control),
];

static VENDOR: Vendor = Vendor {
    request_id_headers: &["x-fal-request-id"],
    refine,
};

const BILLABLE_UNITS: &str = "x-fal-billable-units";
const ERROR_TYPE: &str = "x-fal-error-type";

/// Below it OpenAI's dialect begins.
const OPENAI_BASE: &str = "/openrouter/router/openai";

const ENDPOINT: &str = "/{endpoint}";
const STREAM: &str = "/{endpoint}/stream";
const REALTIME: &str = "/{endpoint}/realtime";
const RESULT: &str = "/{endpoint}/requests/{id}";
const RESPONSE: &str = "/{endpoint}/requests/{id}/response";
const STATUS: &str = "/{endpoint}/requests/{id}/status";
const STATUS_STREAM: &str = "/{endpoint}/requests/{id}/status/stream";
const CANCEL: &str = "/{endpoint}/requests/{id}/cancel";

impl Provider for Fal {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn label(&self) -> &str {
        RUN
    }

    fn default_upstream(&self) -> Option<&'static str> {
        Some(self.0.upstream())
    }

    fn recognise(&self, head: RequestHead<'_>) -> Call {
        let known = match self.0 {
            Host::Run => recognise_run(head),
            Host::Queue => recognise_job(head),
            Host::Rest => recognise_rest(head),
        };
        known.unwrap_or_else(|| Call {
            operation: route::unknown(head.method),
            route: Cow::Borrowed(route::UNKNOWN_ROUTE),
            model: None,
            job: None,
        })
    }

    fn read_request(&self, call: &Call, head: RequestHead<'_>) -> Box<dyn RequestReader> {
        match call.operation {
            Operation::Prediction => Box::new(InputReader::new()),
            operation => request::reader(operation, head),
        }
    }

    fn meter(&self, call: &Call, head: ResponseHead<'_>) -> Box<dyn Meter> {
        match Place::of(call) {
            Some(place) => Box::new(FalMeter::new(place, call, head)),
            None => Box::new(chat::meter(call, head, &VENDOR)),
        }
    }

    fn follow_up(&self, call: &Call, _target: &str, job_id: &str) -> Option<String> {
        // What follows a job up goes without the endpoint's further parts.
        let mut names = call.model.as_deref()?.split('/');
        let (mut owner, mut alias) = (names.next()?.to_owned(), names.next()?);
        if NAMESPACES.contains(&owner.as_str()) {
            owner = format!("{owner}/{alias}");
            alias = names.next()?;
        }
        Some(format!("/{owner}/{alias}/requests/{job_id}"))
    }

    fn job_urls(&self, call: &Call) -> Option<&'static Selector> {
        call.job.as_ref().map(|_| &*JOB_URLS)
    }

    fn needs_usage_injection(&self, _call: &Call) -> bool {
        false
    }

    fn rate_limits(&self, headers: &HeaderMap) -> Vec<RateLimit> {
        common_rate_limits(headers)
    }
}

/// A call at the host where the caller waits, if it is known.
fn recognise_run(head: RequestHead<'_>) -> Option<Call> {
    if let Some(path) = route::strip_base(OPENAI_BASE, head.path) {
        let call = chat::recognise(RequestHead { path, ..head });
        return (call.route != route::UNKNOWN_ROUTE).then(|| Call {
            route: Cow::Owned(format!("{OPENAI_BASE}{}", call.route)),
            // fal's own jobs are at the queue's host.
            job: None,
            ..call
        });
    }
    let names = Segments::of(head.path);
    if !may_run(head.method, &names) {
        return None;
    }
    let (operation, template, last) = match names.from(2) {
        [.., "realtime"] if head.method == Method::GET => {
            (Operation::Realtime, REALTIME, "realtime")
        }
        [.., "stream"] => (Operation::Prediction, STREAM, "stream"),
        _ => (Operation::Prediction, ENDPOINT, ""),
    };
    Some(Call {
        operation,
        route: Cow::Borrowed(template),
        model: endpoint(head.path, last),
        job: None,
    })
}

/// A call at the queue's host, if it is known.
fn recognise_job(head: RequestHead<'_>) -> Option<Call> {
    let names = Segments::of(head.path);
    let followed = match (head.method, names.from(0)) {
        (&Method::GET, [_, _, .., "requests", id]) => Some((RESULT, id)),
        (&Method::GET, [_, _, .., "requests", id, "response"]) => Some((RESPONSE, id)),
        (&Method::GET, [_, _, .., "requests", id, "status"]) => Some((STATUS, id)),
        (&Method::GET, [_, _, .., "requests", id, "status", "stream"]) => Some((STATUS_STREAM, id)),
        (&Method::PUT, [_, _, .., "requests", id, "cancel"]) => Some((CANCEL, id)),
        _ => None,
    };
    if let Some((template, id)) = followed {
        // The path has not the whole endpoint any more, and half a name has no price.
        return Some(Call {
            operation: Operation::Control,
            route: Cow::Borrowed(template),
            model: None,
            job: route::name(id).map(JobCall::Follow),
        });
    }
    may_run(head.method, &names).then(|| Call {
        operation: Operation::Prediction,
        route: Cow::Borrowed(ENDPOINT),
        model: endpoint(head.path, ""),
        job: Some(JobCall::Submit),
    })
}

/// Whether the names are those of an endpoint, and the method one that runs it. Clients may send
/// the input as a query, with a GET.
fn may_run(method: &Method, names: &Segments<'_>) -> bool {
    let is_run = matches!(*method, Method::POST | Method::GET);
    is_run && names.get(1).is_some() && !names.from(2).contains(&"requests")
}

/// A call at the host where nothing runs, if it is known.
fn recognise_rest(head: RequestHead<'_>) -> Option<Call> {
    let names = Segments::of(head.path);
    let (known, template) = route::find(REST_ROUTES, "", head.method, names.from(0))?;
    Some(Call {
        operation: known.operation,
        route: Cow::Borrowed(template),
        model: None,
        job: None,
    })
}

/// The endpoint of a path that ends in `last`: `owner/alias` and whatever else is between.
fn endpoint(path: &str, last: &str) -> Option<String> {
    let mut names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    if !last.is_empty() {
        names.pop();
    }
    route::name(&names.join("/"))
}

/// What is only said here.
///
/// An account without balance is "locked" by a 403. A runner that was waited for in vain has a
/// type of error of its own for each thing that it can be late with.
fn refine(failure: &Failure) -> Option<Outcome> {
    if failure.status == 403 && failure.says("exhausted balance") {
        return Some(Outcome::QuotaExhausted);
    }
    if failure.status == 403 && failure.says("user is locked") {
        return Some(Outcome::AccountLocked);
    }
    let word = failure.exact.as_deref().or(failure.kind.as_deref())?;
    match word {
        "client_cancelled" | "client_disconnected" => Some(Outcome::ClientCancelled),
        _ if word.ends_with("_timeout") => Some(Outcome::UpstreamTimeout),
        _ => None,
    }
}

/// Reads what a price may depend on out of an endpoint's input. The endpoint is named by the
/// path; a `model` in the input is the endpoint's own business.
struct InputReader {
    picker: Picker<'static>,
    values: InputValues,
    facts: RequestFacts,
}

/// The values of the first of [`INPUTS`]; those of the others are qualifiers.
type InputValues = [Option<String>; 5];

static INPUTS: LazyLock<Selector> = LazyLock::new(|| {
    let path = |steps| Path {
        steps,
        want: Want::Text(32),
    };
    let mut paths = vec![
        path(&[Key("num_images")]),
        path(&[Key("image_size")]),
        path(&[Key("image_size"), Key("width")]),
        path(&[Key("image_size"), Key("height")]),
        path(&[Key("quality")]),
    ];
    paths.extend(input::paths(&input::IN_BODY));
    Selector::new(&paths)
});

impl InputReader {
    fn new() -> InputReader {
        InputReader {
            picker: Picker::new(&INPUTS),
            values: InputValues::default(),
            facts: RequestFacts::default(),
        }
    }
}

impl InputReader {
    fn found(
        values: &mut InputValues,
        qualifiers: &mut Qualifiers,
        index: usize,
        found: &Found<'_>,
    ) {
        match (values.get_mut(index), found) {
            (Some(value), Found::Text(text)) => *value = word(text).map(Cow::into_owned),
            (Some(_), _) => {}
            (None, _) => {
                let index = index.saturating_sub(values.len());
                input::found(qualifiers, &input::IN_BODY, index, found);
            }
        }
    }
}

impl RequestReader for InputReader {
    fn push(&mut self, bytes: &[u8]) {
        let InputReader {
            picker,
            values,
            facts,
        } = self;
        let qualifiers = &mut facts.qualifiers;
        picker.push(bytes, &mut |index, found| {
            InputReader::found(values, qualifiers, index, &found);
        });
    }

    fn facts(&self) -> &RequestFacts {
        &self.facts
    }

    fn end(&mut self) {
        let InputReader {
            picker,
            values,
            facts,
        } = self;
        let qualifiers = &mut facts.qualifiers;
        let status = picker.end(&mut |index, found| {
            InputReader::found(values, qualifiers, index, &found);
        });
        let [images, size, width, height, quality] = values;
        let sides = || Some(format!("{}x{}", width.as_deref()?, height.as_deref()?));
        let resolution = facts.qualifiers.get(Qualifier::Resolution);
        let size = size.take().or_else(sides);
        let size = size.or_else(|| resolution.map(str::to_owned));
        facts.image_variant = match (size, quality) {
            (size, None) => size,
            (Some(size), Some(quality)) => Some(format!("{size}/{quality}")),
            (None, Some(quality)) => Some(format!("default/{quality}")),
        };
        facts.images = images.as_deref().and_then(|count| count.parse().ok());
        facts.complete = status == Status::Complete;
    }
}

/// Which question of a run or job a response answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Run this, I wait.
    Run,
    /// Run this, I come back.
    Submit,
    /// How is it?
    Status,
    /// What has it made?
    Result,
    /// Stop it.
    Cancel,
}

impl Place {
    /// The place of a call that a [`FalMeter`] reads the response to.
    fn of(call: &Call) -> Option<Place> {
        match &*call.route {
            STATUS | STATUS_STREAM => Some(Place::Status),
            RESULT | RESPONSE => Some(Place::Result),
            CANCEL => Some(Place::Cancel),
            _ if call.job == Some(JobCall::Submit) => Some(Place::Submit),
            ENDPOINT | STREAM => Some(Place::Run),
            _ => None,
        }
    }
}

/// What a value in a response means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    /// How many images there are.
    Images,
    /// One of several images, or the only one.
    Image,
    Width,
    Height,
    /// Something else that was made.
    Video,
    Output,
    /// Its length in seconds.
    Seconds,
    /// The usage object of an endpoint that is a language model.
    Usage,
    Timings,
    /// Of a job.
    RequestId,
    Progress,
    Metrics,
    /// Of an error: a text, an object, or a list of what is wrong with the input.
    Error,
    ErrorType,
    Message,
    Kind,
}

impl Field {
    fn want(self) -> Want {
        match self {
            Field::Images => Want::Count,
            Field::Image | Field::Video | Field::Output => Want::Kind,
            Field::Usage | Field::Timings | Field::Metrics => Want::Text(USAGE_BYTES_MAX),
            Field::Error | Field::Message => Want::Text(MESSAGE_BYTES_MAX),
            Field::RequestId => Want::Text(NAME_BYTES_MAX),
            _ => Want::Text(WORD_BYTES_MAX),
        }
    }
}

type Row = (Field, &'static [Step]);

static SELECTOR: LazyLock<Selector> = LazyLock::new(|| {
    let path = |(field, steps): &Row| Path {
        steps,
        want: field.want(),
    };
    let paths: Vec<Path> = ROWS.iter().map(path).collect();
    Selector::new(&paths)
});

const ROWS: &[Row] = &[
    (Field::Images, &[Key("images")]),
    (Field::Image, &[Key("images"), Each]),
    (Field::Width, &[Key("images"), Each, Key("width")]),
    (Field::Height, &[Key("images"), Each, Key("height")]),
    (Field::Image, &[Key("image")]),
    (Field::Width, &[Key("image"), Key("width")]),
    (Field::Height, &[Key("image"), Key("height")]),
    (Field::Video, &[Key("video")]),
    (Field::Seconds, &[Key("video"), Key("duration")]),
    (Field::Output, &[Key("audio")]),
    (Field::Seconds, &[Key("audio"), Key("duration")]),
    (Field::Output, &[Key("audio_file")]),
    (Field::Seconds, &[Key("audio_file"), Key("duration")]),
    (Field::Output, &[Key("audio_url")]),
    (Field::Seconds, &[Key("duration")]),
    (Field::Output, &[Key("output")]),
    (Field::Output, &[Key("text")]),
    (Field::Usage, &[Key("usage")]),
    (Field::Timings, &[Key("timings")]),
    (Field::RequestId, &[Key("request_id")]),
    (Field::Progress, &[Key("status")]),
    (Field::Metrics, &[Key("metrics")]),
    (Field::Error, &[Key("error")]),
    (Field::Message, &[Key("error"), Key("message")]),
    (Field::Kind, &[Key("error"), Key("type")]),
    (Field::ErrorType, &[Key("error_type")]),
    (Field::Message, &[Key("detail")]),
    (Field::Message, &[Key("detail"), Each, Key("msg")]),
    (Field::Kind, &[Key("detail"), Each, Key("type")]),
];

/// A meter of one response.
struct FalMeter {
    source: Source,
    answer: Answer,
}

impl FalMeter {
    fn new(place: Place, call: &Call, head: ResponseHead<'_>) -> FalMeter {
        let framing = Framing::of(head, Operation::Prediction);
        let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
        FalMeter {
            source: Source::new(framing, &SELECTOR),
            answer: Answer {
                place,
                followed: match &call.job {
                    Some(JobCall::Follow(id)) => Some(id.clone()),
                    _ => None,
                },
                status: head.status.as_u16(),
                header_request_id: request_id(&VENDOR, head),
                stated_units: text(BILLABLE_UNITS).map(str::to_owned),
                error_type: text(ERROR_TYPE)
                    .filter(|word| !word.is_empty() && word.len() <= WORD_BYTES_MAX)
                    .map(str::to_owned),
                output: Output::default(),
                document: Document::default(),
                usage: None,
                raw_usage: None,
                timings: None,
                metrics: None,
                request_id: None,
                progress: None,
                failure: None,
                is_streamed: framing.is_stream(),
                is_token_seen: false,
                is_marked: false,
                is_oversize: false,
                is_malformed: false,
            },
        }
    }
}

impl Meter for FalMeter {
    fn push(&mut self, bytes: &[u8]) -> Option<Milestone> {
        let was_token_seen = self.answer.is_token_seen;
        self.source.push(bytes, &mut self.answer);
        (self.answer.is_token_seen && !was_token_seen).then_some(Milestone::FirstToken)
    }

    fn finish(self: Box<Self>, end: End, _request: &RequestFacts) -> Report {
        let FalMeter { source, mut answer } = *self;
        source.end(&mut answer);
        answer.report(end)
    }
}

/// What an output shows of its size.
#[derive(Debug, Clone, Default)]
struct Output {
    images: Option<u64>,
    megapixels: Option<u64>,
    has_video: bool,
    seconds: Option<Decimal>,
}

/// What was found in the document at hand.
#[derive(Debug, Default)]
struct Document {
    output: Output,
    width: Option<u64>,
    height: Option<u64>,
    failure: Failure,
    has_error: bool,
    has_detail: bool,
}

/// What a response said so far.
struct Answer {
    place: Place,
    /// The job that is asked for, by the path.
    followed: Option<String>,
    status: u16,
    header_request_id: Option<String>,
    /// The header's text.
    stated_units: Option<String>,
    error_type: Option<String>,
    output: Output,
    document: Document,
    usage: Option<ChatCounts>,
    raw_usage: Option<String>,
    timings: Option<String>,
    metrics: Option<String>,
    request_id: Option<String>,
    progress: Option<String>,
    failure: Option<Failure>,
    is_streamed: bool,
    is_token_seen: bool,
    /// Whether nothing that matters can follow.
    is_marked: bool,
    is_oversize: bool,
    is_malformed: bool,
}

impl Documents for Answer {
    fn framed(&mut self, is_streamed: bool) {
        self.is_streamed = is_streamed;
    }

    fn found(&mut self, index: usize, found: Found<'_>) {
        let Some((field, _)) = ROWS.get(index) else {
            return;
        };
        match found {
            Found::Text(b"null") => {}
            Found::Text(text) => self.text_found(*field, text),
            Found::TooLong => self.is_oversize |= *field == Field::Usage,
            Found::Kind { kind, empty } => {
                let is_something =
                    matches!(kind, Kind::String | Kind::Array | Kind::Object) && !empty;
                if is_something {
                    self.something_found(*field);
                }
            }
            Found::Count(count) => {
                self.document.output.images = Some(count);
                self.is_token_seen |= self.is_streamed && count > 0;
            }
        }
    }

    fn named(&mut self, name: &[u8]) {
        self.document.has_error |= name == b"error";
    }

    fn marked(&mut self) {
        self.is_marked = true;
    }

    fn ended(&mut self, status: Status) {
        match status {
            Status::Empty | Status::Complete => {}
            Status::Partial | Status::Malformed => self.is_malformed = true,
            Status::TooDeep => self.is_oversize = true,
        }
        let Document {
            output,
            failure,
            has_error,
            has_detail,
            ..
        } = std::mem::take(&mut self.document);
        // Each event of a stream shows all that there is by then.
        let known = &mut self.output;
        known.images = output.images.or(known.images);
        known.megapixels = output.megapixels.or(known.megapixels);
        known.seconds = output.seconds.or(known.seconds);
        known.has_video |= output.has_video;
        // The first failure is the cause of those that follow.
        let is_failure = has_error || has_detail && self.status >= 400;
        if is_failure && self.failure.is_none() {
            self.failure = Some(failure);
        }
        self.is_marked |= self.place == Place::Status && self.has_ended();
    }
}

impl Answer {
    fn something_found(&mut self, field: Field) {
        let document = &mut self.document;
        match field {
            Field::Image => {
                document.output.images.get_or_insert(1);
                (document.width, document.height) = (None, None);
            }
            Field::Video => document.output.has_video = true,
            _ => {}
        }
        self.is_token_seen |= self.is_streamed && self.place == Place::Run;
    }

    fn text_found(&mut self, field: Field, text: &[u8]) {
        let document = &mut self.document;
        match field {
            Field::Width => {
                document.width = number(text);
                document.sized();
            }
            Field::Height => {
                document.height = number(text);
                document.sized();
            }
            Field::Seconds => {
                if let Ok(text) = std::str::from_utf8(text) {
                    supersede(&mut document.output.seconds, text);
                }
            }
            Field::Usage => self.usage_found(text),
            Field::Timings => self.timings = object(text),
            Field::Metrics => self.metrics = object(text),
            Field::RequestId => replace(&mut self.request_id, text),
            Field::Progress => replace(&mut self.progress, text),
            Field::Error => {
                document.has_error |= matches!(text.first(), Some(b'"' | b'{')) && text != b"\"\"";
                replace(&mut document.failure.message, text);
            }
            Field::ErrorType => {
                replace(&mut document.failure.exact, text);
                document.has_error |= document.failure.exact.is_some();
            }
            // Of several things that are wrong the first is told.
            Field::Message => {
                document.has_detail |= text.first() != Some(&b'{');
                if document.failure.message.is_none() {
                    replace(&mut document.failure.message, text);
                }
            }
            Field::Kind => {
                document.has_detail = true;
                if document.failure.kind.is_none() {
                    replace(&mut document.failure.kind, text);
                }
            }
            Field::Images | Field::Image | Field::Video | Field::Output => {}
        }
    }

    fn usage_found(&mut self, text: &[u8]) {
        let Some(text) = object(text) else {
            // A member of that name may be something else in the output of some model.
            return;
        };
        self.usage
            .get_or_insert_with(ChatCounts::default)
            .read(Object, &text);
        self.raw_usage = Some(text);
        self.is_oversize = false;
    }

    fn has_ended(&self) -> bool {
        self.progress.as_deref() == Some("COMPLETED")
    }

    fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    fn report(mut self, end: End) -> Report {
        let is_broken_off = end != End::Complete && !self.is_marked;
        // Half a document is a fault only where the whole of it came.
        self.is_malformed &= end == End::Complete;
        // An error needs no words: a page of HTML from a proxy on the way is one too.
        let has_words = self.failure.is_some();
        if self.status >= 400 && !has_words {
            self.failure = Some(Failure::default());
        }
        let stage = self.stage(is_broken_off, has_words);
        let error = self.error(stage);

        let settled = match &self.usage {
            Some(counts) => counts.settle(Operation::Prediction, None),
            None => Settled::default(),
        };
        let is_stated = self.stated_units().is_some() || is_usable(&settled);
        let parts = self.parts(&settled, is_stated);
        let is_due = match self.place {
            Place::Run => self.is_success() && self.status != 202,
            Place::Submit => self.is_success() && self.status != 202 && stage.is_none(),
            Place::Result => self.is_success() && stage == Some(JobStage::Settled),
            Place::Status | Place::Cancel => false,
        };
        let outcome = match &error {
            Some(error) => error.outcome,
            None if is_broken_off => match end {
                End::Complete | End::Truncated => Outcome::UpstreamTruncated,
                End::Cancelled => Outcome::ClientCancelled,
                End::TimedOut => Outcome::UpstreamTimeout,
            },
            None => failure::of_status(self.status),
        };
        // A run that was stopped may have consumed more than is told.
        let fidelity = if is_broken_off || outcome == Outcome::ClientCancelled {
            Fidelity::Partial
        } else if self.is_oversize {
            Fidelity::Oversize
        } else if settled.is_inconsistent {
            Fidelity::Inconsistent
        } else if is_stated || !is_due || error.is_some() {
            Fidelity::Complete
        } else if self.is_malformed || self.stated_units.is_some() {
            Fidelity::Malformed
        } else {
            Fidelity::Silent
        };
        Report {
            outcome,
            raw_usage: self.raw_usage(),
            job: stage.and_then(|stage| self.job(stage)),
            error_code: error.as_ref().and_then(|error| error.code.clone()),
            error_message: error.and_then(|error| error.message),
            finish_reason: None,
            model_served: None,
            upstream_provider: None,
            service_tier: None,
            region: None,
            image_variant: None,
            qualifiers: Qualifiers::default(),
            provider_request_id: self.header_request_id.or(self.request_id),
            estimated: !is_stated && !parts.is_empty(),
            parts,
            stated_cost: settled.stated_cost,
            fidelity,
        }
    }

    /// How far the job is, if the response tells of one.
    fn stage(&self, is_broken_off: bool, has_words: bool) -> Option<JobStage> {
        let is_refused = self.status >= 400;
        match self.place {
            Place::Run => None,
            Place::Submit => {
                (self.is_success() && self.request_id.is_some()).then_some(JobStage::Open)
            }
            Place::Status if !self.is_success() => None,
            Place::Status if self.has_ended() && self.failure.is_some() => Some(JobStage::Settled),
            Place::Status if self.has_ended() => Some(JobStage::Ended),
            Place::Status => Some(JobStage::Open),
            // Asked to stop, a job may still come to its end. What came too late tells nothing.
            Place::Cancel => self.is_success().then_some(JobStage::Open),
            Place::Result if is_refused => self.stage_of_refused_result(has_words),
            Place::Result if !self.is_success() => None,
            Place::Result if self.status == 202 => Some(JobStage::Open),
            Place::Result if is_broken_off => Some(JobStage::Ended),
            Place::Result => Some(JobStage::Settled),
        }
    }

    /// A job's result has the status that its model answered with, so that what the model refused
    /// must be told from what the queue refused.
    fn stage_of_refused_result(&self, has_words: bool) -> Option<JobStage> {
        let failure = self.failure.as_ref()?;
        if failure.says("still in progress") {
            return Some(JobStage::Open);
        }
        let is_typed = self.error_type.is_some() || failure.exact.is_some();
        let is_the_models = match self.status {
            401 | 403 | 404 | 405 | 408 | 409 | 429 => false,
            400..=499 => has_words,
            // A proxy on the way fails without the id of any request.
            _ => is_typed || has_words && self.header_request_id.is_some(),
        };
        is_the_models.then_some(JobStage::Settled)
    }

    fn job(&self, stage: JobStage) -> Option<JobView> {
        let id = self.followed.clone().or_else(|| self.request_id.clone())?;
        let mut run = None;
        if let Some(metrics) = &self.metrics {
            members(metrics, &mut |key, text| {
                if key == "inference_time" {
                    run = quantity(text)
                        .and_then(|seconds| seconds.to_f64())
                        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                }
            });
        }
        Some(JobView {
            id,
            stage,
            queue: None,
            run,
        })
    }

    /// The error as a row tells it. A job that has failed of itself is no failure of the call.
    fn error(&mut self, stage: Option<JobStage>) -> Option<ProviderError> {
        let mut failure = self.failure.take()?;
        failure.status = self.status;
        failure.exact = failure.exact.or(self.error_type.take());
        let mut error = failure.conclude(refine);
        if stage == Some(JobStage::Settled) && error.outcome == Outcome::UpstreamError {
            error.outcome = Outcome::JobFailed;
        }
        Some(error)
    }

    /// The units that the header states.
    fn stated_units(&self) -> Option<Decimal> {
        self.stated_units.as_deref().and_then(quantity)
    }

    /// What was consumed: what is stated, and what the output shows beside it. The megapixels
    /// and seconds that stand in for units which nobody stated are left out once they are.
    fn parts(&self, settled: &Settled, is_stated: bool) -> Vec<Part> {
        let is_of_use = self.status < 400 && matches!(self.place, Place::Run | Place::Result);
        let mut usage = match settled.parts.first() {
            Some(part) => part.usage.clone(),
            None => Usage::new(),
        };
        if matches!(self.place, Place::Run | Place::Result) {
            set_known(&mut usage, Unit::BillableUnit, self.stated_units());
        }
        if is_of_use {
            let Output {
                images,
                megapixels,
                has_video,
                seconds,
            } = self.output;
            set_known(&mut usage, Unit::Image, images.map(Decimal::from));
            let seconds_unit = match has_video {
                true => Unit::VideoSecond,
                false => Unit::AudioSecond,
            };
            set_known(&mut usage, seconds_unit, seconds);
            if !is_stated {
                let megapixels = megapixels.map(Decimal::from);
                set_known(&mut usage, Unit::Megapixel, megapixels);
            }
        }
        if usage.is_empty() {
            return Vec::new();
        }
        vec![Part { model: None, usage }]
    }

    /// What the usage was read from: the header, and the members of the body that measure.
    fn raw_usage(&self) -> Option<String> {
        let units = self.stated_units.as_deref();
        let units = units.map(|text| serde_json::Value::from(text).to_string());
        let stated = [
            (BILLABLE_UNITS, &units),
            ("timings", &self.timings),
            ("metrics", &self.metrics),
            ("usage", &self.raw_usage),
        ];
        let members: Vec<String> = stated
            .into_iter()
            .filter_map(|(key, text)| Some(format!("\"{key}\":{}", text.as_ref()?)))
            .collect();
        (!members.is_empty()).then(|| format!("{{{}}}", members.join(",")))
    }
}

impl Document {
    /// Counts an image of which both sides are known. A megapixel is 1024 × 1024 pixels, and
    /// each image is rounded up to whole ones.
    fn sized(&mut self) {
        const PIXELS: u64 = 1024 * 1024;
        if let (Some(width), Some(height)) = (self.width, self.height) {
            let megapixels = width.saturating_mul(height).div_ceil(PIXELS);
            let known = self.output.megapixels.unwrap_or_default();
            self.output.megapixels = Some(known.saturating_add(megapixels));
            (self.width, self.height) = (None, None);
        }
    }
}

fn is_usable(settled: &Settled) -> bool {
    !settled.parts.is_empty() || settled.stated_cost.is_some()
}

/// A whole number.
fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text)
        .ok()
        .and_then(quantity)
        .and_then(|number| number.to_u64())
}

/// The text of an object; `None` for anything else.
fn object(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?;
    members(text, &mut |_, _| {}).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(host: Host, method: Method, path: &str) -> Call {
        let headers = HeaderMap::new();
        Fal(host).recognise(RequestHead {
            method: &method,
            path,
            query: None,
            headers: &headers,
        })
    }

    #[test]
    fn an_endpoint_is_the_whole_path() {
        let long = format!("/a{}", "/b".repeat(20));
        for (path, template, model) in [
            ("/fal-ai/flux/dev", ENDPOINT, "fal-ai/flux/dev"),
            ("//fal-ai//flux/", ENDPOINT, "fal-ai/flux"),
            ("/fal-ai/flux%2Ddev", ENDPOINT, "fal-ai/flux-dev"),
            ("/workflows/acme/poster", ENDPOINT, "workflows/acme/poster"),
            ("/comfy/acme/upscale/stream", STREAM, "comfy/acme/upscale"),
            // An alias may be called so; only what follows an alias is not part of the name.
            ("/acme/stream", ENDPOINT, "acme/stream"),
            ("/openrouter/router", ENDPOINT, "openrouter/router"),
            (&long, ENDPOINT, long.trim_start_matches('/')),
        ] {
            let call = call(Host::Run, Method::POST, path);
            assert_eq!(call.operation, Operation::Prediction, "{path}");
            assert_eq!(
                (&*call.route, call.model.as_deref()),
                (template, Some(model))
            );
            assert_eq!(call.job, None);
        }
        let by_query = call(Host::Run, Method::GET, "/fal-ai/flux/dev");
        assert_eq!(by_query, call(Host::Run, Method::POST, "/fal-ai/flux/dev"));
        let too_long = format!("/a/{}", "b".repeat(NAME_BYTES_MAX));
        assert_eq!(call(Host::Run, Method::POST, &too_long).model, None);
    }

    #[test]
    fn a_job_is_submitted_by_its_endpoint_and_followed_by_its_id() {
        let submit = call(Host::Queue, Method::POST, "/fal-ai/flux/dev");
        assert_eq!(submit.job, Some(JobCall::Submit));
        assert_eq!(submit.model.as_deref(), Some("fal-ai/flux/dev"));
        for (method, tail, template) in [
            (Method::GET, "", RESULT),
            (Method::GET, "/response", RESPONSE),
            (Method::GET, "/status", STATUS),
            (Method::GET, "/status/stream", STATUS_STREAM),
            (Method::PUT, "/cancel", CANCEL),
        ] {
            for endpoint in ["fal-ai/flux", "fal-ai/flux/dev", "workflows/acme/poster"] {
                let path = format!("/{endpoint}/requests/4711{tail}");
                let followed = call(Host::Queue, method.clone(), &path);
                assert_eq!(
                    followed,
                    Call {
                        operation: Operation::Control,
                        route: template.into(),
                        model: None,
                        job: Some(JobCall::Follow("4711".to_owned())),
                    },
                    "{path}"
                );
            }
        }
        for (method, path) in [
            (Method::GET, "/fal-ai/flux/requests"),
            (Method::GET, "/fal-ai/flux/requests/4711/cancel"),
            (Method::POST, "/fal-ai/flux/requests/4711/again"),
            (Method::GET, "/health"),
            (Method::PUT, "/fal-ai/flux"),
            (Method::DELETE, "/fal-ai/flux/requests/4711"),
        ] {
            let call = call(Host::Queue, method, path);
            assert_eq!((&*call.route, call.job), (route::UNKNOWN_ROUTE, None));
        }
    }

    #[test]
    fn the_routers_surface_is_of_the_dialect_and_bounded() {
        let chat = call(
            Host::Run,
            Method::POST,
            "/openrouter/router/openai/v1/chat/completions",
        );
        assert_eq!((chat.operation, chat.model), (Operation::Chat, None));
        let odd = call(Host::Run, Method::POST, "/openrouter/router/openai/v1/4711");
        assert_eq!(odd.route, route::UNKNOWN_ROUTE);
    }

    #[test]
    fn a_target_is_a_path_at_a_known_host() {
        for (url, name, path) in [
            ("https://fal.run/fal-ai/flux/dev", RUN, "/fal-ai/flux/dev"),
            (
                "https://queue.fal.run/a/b?logs=1&u=https://x/",
                QUEUE,
                "/a/b?logs=1&u=https://x/",
            ),
            ("https://rest.fal.ai/", REST, "/"),
        ] {
            assert_eq!(resolve(url), Some((name, path)), "{url}");
        }
    }

    #[test]
    fn a_megapixel_is_rounded_up_for_each_image() {
        let megapixels = |sides: &[(u64, u64)]| {
            let mut document = Document::default();
            for (width, height) in sides {
                document.width = Some(*width);
                document.height = Some(*height);
                document.sized();
            }
            document.output.megapixels
        };
        assert_eq!(megapixels(&[]), None);
        assert_eq!(megapixels(&[(1024, 1024)]), Some(1));
        assert_eq!(megapixels(&[(1024, 1025)]), Some(2));
        assert_eq!(megapixels(&[(512, 512), (1, 1)]), Some(2));
        assert_eq!(
            megapixels(&[(u64::MAX, 2)]),
            Some(u64::MAX.div_ceil(1 << 20))
        );
    }
}
