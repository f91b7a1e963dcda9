//! Providers: what each vendor's API means, and nothing else. Pure: bytes in, facts out.
//!
//! A provider recognises a call from its head, reads the request as it streams, and meters the
//! response as it streams. **Adding a provider** is one file, one fixture folder and two lines
//! here.
//!
//! What the dialects share has its own files: `route` knows paths, `request` reads what is asked,
//! `source` splits what is answered into documents, `response` meters it, `failure` says what an
//! error means.

mod anthropic;
mod anthropic_batch;
mod azure;
mod chat;
mod cost;
mod failure;
mod fal;
mod input;
mod object;
mod openai;
mod openrouter;
mod replicate;
mod request;
mod response;
mod route;
mod source;

use std::sync::Arc;

use http::HeaderName;

use crate::qualifier::Qualifiers;
use crate::record::Operation;
use crate::wire::json::{Path, Selector, Step, Want};

pub use crate::record::{JobStage, JobView, Part, Report, StatedCost};

/// The head of a request, as it goes to the provider.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a http::Method,
    /// The path at the provider, without Taffrail's route prefix.
    pub path: &'a str,
    /// The query, without `?`.
    pub query: Option<&'a str>,
    /// The headers.
    pub headers: &'a http::HeaderMap,
}

/// The head of a response.
#[derive(Debug, Clone, Copy)]
pub struct ResponseHead<'a> {
    /// The status.
    pub status: http::StatusCode,
    /// The headers.
    pub headers: &'a http::HeaderMap,
}

/// A call as its head tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What is asked.
    pub operation: Operation,
    /// The path with ids replaced by placeholders (`/v1/batches/{id}`), of a bounded set.
    pub route: std::borrow::Cow<'static, str>,
    /// The model, where the path names it.
    pub model: Option<String>,
    /// Its place in the life of an asynchronous job, if it has one.
    pub job: Option<JobCall>,
}

/// A call's place in the life of an asynchronous job, as its head tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobCall {
    /// It may start one, which the response names.
    Submit,
    /// It asks how the job of this id is, for its result, or for its end.
    Follow(String),
}

/// What the body of a request says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestFacts {
    /// The model.
    pub model: Option<String>,
    /// Whether a stream is asked for, where the body says so.
    pub stream: Option<bool>,
    /// Whether the body has a `stream_options` member, and what `include_usage` in it is.
    pub stream_options: Option<StreamOptions>,
    /// The tier asked for.
    pub service_tier: Option<String>,
    /// How many images are asked for.
    pub images: Option<u64>,
    /// Size and quality of an image or video, where a price depends on them: `1024x1024/hd`,
    /// `1280x720` without a quality, `default/hd` without a size.
    pub image_variant: Option<String>,
    /// What else a price can depend on.
    pub qualifiers: Qualifiers,
    /// Characters of the input text, for speech.
    pub characters: Option<u64>,
    /// Whether the body was read to its end as what its type says.
    pub complete: bool,
}

/// The `stream_options` member of an OpenAI-style request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamOptions {
    /// The value of `include_usage`, if it is a boolean.
    pub include_usage: Option<bool>,
}

/// Reads a request's body as it streams, in constant memory.
pub trait RequestReader: Send {
    /// Takes the next bytes.
    fn push(&mut self, bytes: &[u8]);
    /// What is known by now; final once the body has ended.
    fn facts(&self) -> &RequestFacts;
    /// Takes the end of the body.
    fn end(&mut self);
}

/// The longest name of a model, tier or party, and the longest id, that is read, in bytes. A
/// longer one is taken as absent.
pub const NAME_BYTES_MAX: usize = 256;

/// A moment in a response that the caller stamps with the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Milestone {
    /// The first real token: not a comment, a ping or a role-only delta.
    FirstToken,
}

/// How the response's body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As the framing promised.
    Complete,
    /// The provider broke it off.
    Truncated,
    /// The client went away.
    Cancelled,
    /// The provider fell silent for longer than the limit.
    TimedOut,
}

/// Meters one response. Cannot fail: what it cannot read it reports as such.
pub trait Meter: Send {
    /// Takes the next decoded bytes of the body.
    fn push(&mut self, bytes: &[u8]) -> Option<Milestone>;
    /// Takes the end.
    fn finish(self: Box<Self>, end: End, request: &RequestFacts) -> Report;
}

/// Headroom that a response's headers state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// `requests` or `tokens`.
    pub kind: &'static str,
    /// The limit, if stated.
    pub limit: Option<u64>,
    /// What remains, if stated.
    pub remaining: Option<u64>,
}

/// A vendor's API.
pub trait Provider: Send + Sync {
    /// Route and configuration key alike.
    fn name(&self) -> &str;
    /// What records, metrics, prices and accounts call the vendor. A vendor whose API is at
    /// several hosts has a provider for each, all of one label.
    fn label(&self) -> &str {
        self.name()
    }
    /// The upstream that is used unless configuration overrides it; `None` if there is no
    /// default (a declared upstream).
    fn default_upstream(&self) -> Option<&'static str>;
    /// What a call is, from its head.
    fn recognise(&self, head: RequestHead<'_>) -> Call;
    /// A reader for the request's body.
    fn read_request(&self, call: &Call, head: RequestHead<'_>) -> Box<dyn RequestReader>;
    /// A meter for the response; it is given the body decoded from its content encoding.
    fn meter(&self, call: &Call, head: ResponseHead<'_>) -> Box<dyn Meter>;
    /// The path of a GET, and its query, that tells how the job of this id is, which this call to
    /// `target`, a path and its query, has submitted; `None` if there is none.
    fn follow_up(&self, call: &Call, target: &str, job_id: &str) -> Option<String> {
        let _ = (call, target, job_id);
        None
    }
    /// Where the answer to this call holds URLs of a job, which lead past the proxy unless they are
    /// changed; `None` if it holds none.
    fn job_urls(&self, call: &Call) -> Option<&'static Selector> {
        let _ = call;
        None
    }
    /// Whether a stream of this call states usage only when `stream_options.include_usage` asks.
    fn needs_usage_injection(&self, call: &Call) -> bool;
    /// Headroom stated in the headers.
    fn rate_limits(&self, headers: &http::HeaderMap) -> Vec<RateLimit>;
}

/// The names of the providers that are built in.
pub const BUILTIN: &[&str] = &[
    openai::NAME,
    azure::NAME,
    anthropic::NAME,
    openrouter::NAME,
    replicate::API,
    replicate::STREAM,
    fal::RUN,
    fal::QUEUE,
    fal::REST,
];

/// The built-in provider of that name.
pub fn builtin(name: &str) -> Option<Arc<dyn Provider>> {
    Some(match name {
        openai::NAME => Arc::new(openai::openai()),
        azure::NAME => Arc::new(azure::Azure),
        anthropic::NAME => Arc::new(anthropic::Anthropic),
        openrouter::NAME => Arc::new(openrouter::OpenRouter),
        replicate::API => Arc::new(replicate::Replicate(replicate::Host::Api)),
        replicate::STREAM => Arc::new(replicate::Replicate(replicate::Host::Stream)),
        fal::RUN => Arc::new(fal::Fal(fal::Host::Run)),
        fal::QUEUE => Arc::new(fal::Fal(fal::Host::Queue)),
        fal::REST => Arc::new(fal::Fal(fal::Host::Rest)),
        _ => return None,
    })
}

/// A route without an upstream of its own. A request to it says in a header which URL it is
/// for, and goes on by the route of the provider at that URL's host, to whatever upstream that
/// route has.
#[derive(Debug)]
pub struct Forwarding {
    /// The route: the whole path.
    pub route: &'static str,
    /// The header that holds the URL.
    pub header: HeaderName,
    /// The hosts that are known, for people.
    pub hosts: &'static str,
    /// The name of the provider at the URL's host, and the URL's path and query; `None` unless it
    /// is an https URL at a known host.
    pub resolve: fn(&str) -> Option<(&'static str, &str)>,
}

/// The forwarding of that route, if it is one.
pub fn forwarding(route: &str) -> Option<&'static Forwarding> {
    (route == fal::FORWARDING.route).then_some(&fal::FORWARDING)
}

/// A declared provider that speaks the OpenAI dialect (`dialect = "chat"`), under its own name.
pub fn chat_dialect(name: impl Into<Arc<str>>) -> Arc<dyn Provider> {
    Arc::new(chat::Chat::declared(name))
}

/// What the job is that a call of that route asks for.
pub fn job_operation(route: &str) -> Operation {
    let kinds = [
        ("/videos", Operation::Video),
        ("/responses", Operation::Responses),
        ("/batches", Operation::Batch),
        ("/trainings", Operation::Training),
    ];
    let kind = kinds.into_iter().find(|(part, _)| route.contains(part));
    kind.map_or(Operation::Prediction, |(_, operation)| operation)
}

/// The longest URL of a job that is changed.
pub const JOB_URL_BYTES_MAX: usize = 2048;

/// A selector of URLs at these paths.
fn url_selector(paths: &[&'static [Step]]) -> Selector {
    let paths: Vec<Path> = paths
        .iter()
        .map(|steps| Path {
            steps,
            want: Want::Text(JOB_URL_BYTES_MAX),
        })
        .collect();
    Selector::new(&paths)
}

/// Headroom as most vendors state it: OpenAI's and its followers' `x-ratelimit-limit-requests`,
/// Anthropic's `anthropic-ratelimit-requests-limit`, and OpenRouter's `x-ratelimit-limit`, which
/// counts requests.
fn common_rate_limits(headers: &http::HeaderMap) -> Vec<RateLimit> {
    const fn stated(
        kind: &'static str,
        limit: &'static str,
        remaining: &'static str,
    ) -> (&'static str, HeaderName, HeaderName) {
        (
            kind,
            HeaderName::from_static(limit),
            HeaderName::from_static(remaining),
        )
    }
    static STATED: [(&str, HeaderName, HeaderName); 5] = [
        stated(
            "requests",
            "x-ratelimit-limit-requests",
            "x-ratelimit-remaining-requests",
        ),
        stated(
            "tokens",
            "x-ratelimit-limit-tokens",
            "x-ratelimit-remaining-tokens",
        ),
        stated(
            "requests",
            "anthropic-ratelimit-requests-limit",
            "anthropic-ratelimit-requests-remaining",
        ),
        stated(
            "tokens",
            "anthropic-ratelimit-tokens-limit",
            "anthropic-ratelimit-tokens-remaining",
        ),
        stated("requests", "x-ratelimit-limit", "x-ratelimit-remaining"),
    ];
    // Most responses state none, and one look at each name tells.
    let may_state = |name: &HeaderName| {
        let name = name.as_str();
        name.starts_with("x-ratelimit-") || name.starts_with("anthropic-ratelimit-")
    };
    if !headers.keys().any(may_state) {
        return Vec::new();
    }
    let number = |name: &HeaderName| headers.get(name)?.to_str().ok()?.trim().parse().ok();
    let mut limits: Vec<RateLimit> = Vec::new();
    for &(kind, ref limit, ref remaining) in &STATED {
        let (limit, remaining) = (number(limit), number(remaining));
        let is_new = limits.iter().all(|known| known.kind != kind);
        if is_new && (limit.is_some() || remaining.is_some()) {
            limits.push(RateLimit {
                kind,
                limit,
                remaining,
            });
        }
    }
    limits
}
