//! Look-alikes of OpenAI, Anthropic, OpenRouter, Replicate and fal on loopback.
//!
//! In: the requests that an SDK sends. Out: answers with the vendors' own bytes, headers and
//! manners: chunked events at a human pace, usage only when it is asked for (OpenAI), comments
//! while waiting and a stated cost (OpenRouter), cache counts (Anthropic), jobs that are polled
//! by the URLs of the answers before (Replicate, fal's queue), and each vendor's own errors. What an answer consumes follows from the question alone, so that a client can
//! work out beforehand what it will be billed ([`foresee`]) and a test can hold the rows to it.
//!
//! A request may ask to be served badly with the header [`CASE_HEADER`]. Nothing here knows of
//! Taffrail: the proxy in front must be as transparent as before the real vendors.
//!
//! Here are the questions, the counting and the listener; what Replicate and fal make is in
//! `work`, what billing APIs answer in `billing`, and the vendors' bytes are in a module each.

mod anthropic;
pub mod billing;
mod fal;
mod models;
mod openai;
mod openrouter;
mod play;
mod replicate;
mod work;

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use self::models::Model;
use self::play::{Play, Reply};
use self::work::Jobs;
use super::dice::Dice;
use crate::clock;
use crate::fault::Outcome;
use crate::money::Usd;
use crate::record::UnpricedReason;
use crate::usage::{Unit, Usage};

/// The header by which a request asks to be served badly; its values are the names of [`Case`].
pub const CASE_HEADER: &str = "x-demo-case";

/// The longest request that a look-alike reads.
const REQUEST_BYTES_MAX: usize = 4 << 20;

/// The fewest tokens that go into a prompt cache (OpenAI and Anthropic, 2026-11).
const CACHED_TOKENS_MIN: u64 = 1024;

/// A vendor that is looked like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Vendor {
    /// OpenAI.
    OpenAi,
    /// Anthropic.
    Anthropic,
    /// OpenRouter.
    OpenRouter,
    /// Replicate.
    Replicate,
    /// fal.
    Fal,
}

impl Vendor {
    /// Every vendor, in the order of the report.
    pub const ALL: [Vendor; 5] = [
        Vendor::OpenAi,
        Vendor::Anthropic,
        Vendor::OpenRouter,
        Vendor::Replicate,
        Vendor::Fal,
    ];

    /// Taffrail's label for the vendor.
    pub const fn name(self) -> &'static str {
        match self {
            Vendor::OpenAi => "openai",
            Vendor::Anthropic => "anthropic",
            Vendor::OpenRouter => "openrouter",
            Vendor::Replicate => "replicate",
            Vendor::Fal => "fal",
        }
    }

    /// Taffrail's routes, and configuration keys, for the vendor's hosts.
    pub const fn routes(self) -> &'static [&'static str] {
        match self {
            Vendor::OpenAi => &["openai"],
            Vendor::Anthropic => &["anthropic"],
            Vendor::OpenRouter => &["openrouter"],
            Vendor::Replicate => &["replicate"],
            Vendor::Fal => &["fal", "fal-queue"],
        }
    }
}

/// How a request wants to be served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Case {
    /// Well.
    #[default]
    Good,
    /// Well, at a quarter of the pace.
    Slow,
    /// Refused: too many tokens a minute.
    RateLimited,
    /// Refused: the account has no credit left.
    QuotaExhausted,
    /// Refused: too many users.
    Overloaded,
    /// An error after a good beginning: in the middle of a stream that began with 200, or of a
    /// job that was accepted.
    ErrorInStream,
    /// The connection breaks in the middle of the answer; Replicate and fal serve well.
    Truncated,
}

impl Case {
    /// Every case.
    pub const ALL: [Case; 7] = [
        Case::Good,
        Case::Slow,
        Case::RateLimited,
        Case::QuotaExhausted,
        Case::Overloaded,
        Case::ErrorInStream,
        Case::Truncated,
    ];

    /// The value of [`CASE_HEADER`].
    pub const fn as_str(self) -> &'static str {
        match self {
            Case::Good => "good",
            Case::Slow => "slow",
            Case::RateLimited => "rate-limited",
            Case::QuotaExhausted => "quota-exhausted",
            Case::Overloaded => "overloaded",
            Case::ErrorInStream => "error-in-stream",
            Case::Truncated => "truncated",
        }
    }

    fn of(headers: &HeaderMap) -> Case {
        let named = |case: &Case| {
            headers
                .get(CASE_HEADER)
                .is_some_and(|value| value.as_bytes() == case.as_str().as_bytes())
        };
        Case::ALL.into_iter().find(named).unwrap_or_default()
    }
}

/// What a request will turn out to be: the truth that a row is held to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foresight {
    /// The model that the row is about.
    pub model: &'static str,
    /// How the request ends.
    pub outcome: Outcome,
    /// The status of the answer.
    pub status: StatusCode,
    /// What it is said to have consumed, as far as it is said.
    pub usage: Usage,
    /// What the vendor charges, if its prices are known here: it states them (OpenRouter), or
    /// they are a look-alike's (Replicate, fal).
    pub charged: Option<Usd>,
    /// Why nobody can know what it costs, if so.
    pub unpriced: Option<UnpricedReason>,
}

/// Works out what becomes of a well-formed request, whose stream the client drops half-way if
/// `is_cancelled`; `None` if the look-alike would refuse it as wrong.
pub fn foresee(
    vendor: Vendor,
    path: &str,
    body: &[u8],
    case: Case,
    is_cancelled: bool,
) -> Option<Foresight> {
    let endpoint = Endpoint::of(vendor, &Method::POST, path)?;
    let ask = Ask::read(vendor, endpoint, body).ok()?;
    let answer = Answer::to(&ask);
    let (outcome, status) = match case {
        _ if is_cancelled => (Outcome::ClientCancelled, StatusCode::OK),
        Case::Good | Case::Slow => (Outcome::Ok, StatusCode::OK),
        Case::RateLimited => (Outcome::RateLimited, StatusCode::TOO_MANY_REQUESTS),
        Case::QuotaExhausted => (Outcome::QuotaExhausted, quota_status(vendor)),
        Case::Overloaded => (Outcome::UpstreamError, overload_status(vendor)),
        Case::ErrorInStream if ask.is_stream => (Outcome::UpstreamError, StatusCode::OK),
        Case::ErrorInStream => (Outcome::UpstreamError, overload_status(vendor)),
        Case::Truncated => (Outcome::UpstreamTruncated, StatusCode::OK),
    };
    let (usage, charged) = match outcome {
        Outcome::Ok => (answer.usage(), openrouter::stated_cost(&ask, &answer)),
        // Anthropic says at the beginning of a stream what the input was.
        _ if status == StatusCode::OK && ask.is_stream && vendor == Vendor::Anthropic => {
            (answer.usage_at_start(), None)
        }
        _ => (Usage::new(), None),
    };
    Some(Foresight {
        // Only an answer names the model that gave it.
        model: match status {
            StatusCode::OK => ask.model.served,
            _ => ask.model.id,
        },
        outcome,
        status,
        unpriced: match outcome {
            Outcome::ClientCancelled | Outcome::UpstreamTruncated if usage.is_empty() => {
                Some(UnpricedReason::Incomplete)
            }
            _ => None,
        },
        usage,
        charged,
    })
}

/// The same of a request to Replicate or fal, whose answer is all there is or, if `is_job`, a job
/// that the client follows to its end, or cancels before it has begun if `is_cancelled`.
pub fn foresee_work(
    vendor: Vendor,
    path: &str,
    body: &[u8],
    case: Case,
    is_job: bool,
    is_cancelled: bool,
) -> Option<Foresight> {
    let work = match vendor {
        Vendor::Replicate => replicate::order(path, body, case),
        Vendor::Fal => fal::order(path, body, case),
        _ => return None,
    };
    Some(work.ok()?.foresight(case, is_job, is_cancelled))
}

const fn quota_status(vendor: Vendor) -> StatusCode {
    match vendor {
        Vendor::OpenAi => StatusCode::TOO_MANY_REQUESTS,
        Vendor::Anthropic => StatusCode::BAD_REQUEST,
        Vendor::OpenRouter | Vendor::Replicate => StatusCode::PAYMENT_REQUIRED,
        Vendor::Fal => StatusCode::FORBIDDEN,
    }
}

fn overload_status(vendor: Vendor) -> StatusCode {
    match vendor {
        Vendor::OpenAi | Vendor::Fal => StatusCode::SERVICE_UNAVAILABLE,
        // Anthropic's "overloaded", which has no name in the registry of statuses.
        Vendor::Anthropic => StatusCode::from_u16(529).unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
        Vendor::OpenRouter | Vendor::Replicate => StatusCode::BAD_GATEWAY,
    }
}

/// What a path is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    Chat,
    Responses,
    Messages,
    Embeddings,
    Models,
}

impl Endpoint {
    fn of(vendor: Vendor, method: &Method, path: &str) -> Option<Endpoint> {
        let endpoint = match (vendor, method.as_str(), path) {
            (Vendor::OpenAi, "POST", "/v1/chat/completions")
            | (Vendor::OpenRouter, "POST", "/api/v1/chat/completions") => Endpoint::Chat,
            (Vendor::OpenAi, "POST", "/v1/responses") => Endpoint::Responses,
            (Vendor::OpenAi, "POST", "/v1/embeddings") => Endpoint::Embeddings,
            (Vendor::Anthropic, "POST", "/v1/messages") => Endpoint::Messages,
            (Vendor::OpenAi | Vendor::Anthropic, "GET", "/v1/models")
            | (Vendor::OpenRouter, "GET", "/api/v1/models") => Endpoint::Models,
            _ => return None,
        };
        Some(endpoint)
    }
}

/// A question, as far as the answer depends on it.
#[derive(Debug, Clone)]
struct Ask {
    endpoint: Endpoint,
    model: &'static Model,
    /// Texts to embed; one for everything else.
    inputs: u64,
    prompt_tokens: u64,
    /// Tokens of the prompt that the caller wants cached, and whether for an hour (Anthropic).
    marked_tokens: u64,
    is_marked_for_an_hour: bool,
    is_stream: bool,
    includes_usage: bool,
    output_tokens_max: u64,
    dice: Dice,
}

/// Why there is no answer to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Refusal {
    NoSuchPath,
    NoKey,
    TooLong,
    Malformed,
    NoSuchModel(String),
}

impl Ask {
    fn read(vendor: Vendor, endpoint: Endpoint, body: &[u8]) -> Result<Ask, Refusal> {
        let body: Value = serde_json::from_slice(body).map_err(|_| Refusal::Malformed)?;
        let name = body.get("model").and_then(Value::as_str);
        let name = name.ok_or(Refusal::Malformed)?;
        let model = Model::find(vendor, name)
            .filter(|model| model.is_embedding() == (endpoint == Endpoint::Embeddings))
            .ok_or_else(|| Refusal::NoSuchModel(name.to_owned()))?;

        let mut prompt = Prompt::default();
        for key in ["system", "instructions", "input", "messages"] {
            if let Some(value) = body.get(key) {
                prompt.take(value);
            }
        }
        let inputs = match body.get("input").and_then(Value::as_array) {
            Some(texts) if endpoint == Endpoint::Embeddings => texts.len(),
            _ => 1,
        };
        let flag = |pointer: &str| body.pointer(pointer).and_then(Value::as_bool);
        let limit = ["max_tokens", "max_completion_tokens", "max_output_tokens"]
            .iter()
            .find_map(|key| body.get(key).and_then(Value::as_u64));
        Ok(Ask {
            endpoint,
            model,
            inputs: u64::try_from(inputs).unwrap_or(1),
            prompt_tokens: tokens_of(prompt.characters),
            marked_tokens: tokens_of(prompt.marked_characters),
            is_marked_for_an_hour: prompt.is_marked_for_an_hour,
            is_stream: flag("/stream").unwrap_or(false),
            includes_usage: flag("/stream_options/include_usage").unwrap_or(false),
            output_tokens_max: limit.unwrap_or(u64::MAX),
            dice: Dice::of(&format!("{name} {}", prompt.text)),
        })
    }
}

/// A token is about four characters of English, and every prompt has a few of its own.
const fn tokens_of(characters: u64) -> u64 {
    match characters {
        0 => 0,
        _ => characters.div_ceil(4) + 3,
    }
}

/// The words of a question, gathered from whichever shape they come in.
#[derive(Debug, Default)]
struct Prompt {
    text: String,
    characters: u64,
    marked_characters: u64,
    is_marked_for_an_hour: bool,
}

impl Prompt {
    fn take(&mut self, value: &Value) {
        match value {
            Value::String(text) => {
                self.characters += u64::try_from(text.chars().count()).unwrap_or(0);
                self.text.push_str(text);
            }
            Value::Array(values) => values.iter().for_each(|value| self.take(value)),
            Value::Object(block) => {
                for key in ["content", "text"] {
                    if let Some(value) = block.get(key) {
                        self.take(value);
                    }
                }
                if let Some(mark) = block.get("cache_control") {
                    // A mark covers everything up to it.
                    self.marked_characters = self.characters;
                    self.is_marked_for_an_hour |= mark.get("ttl") == Some(&Value::from("1h"));
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

/// An answer: what it consumes and what it says.
#[derive(Debug, Clone)]
struct Answer {
    /// All input tokens, whichever way the vendor splits them.
    input: u64,
    cache_read: u64,
    cache_write: u64,
    /// All output tokens, reasoning included.
    output: u64,
    reasoning: u64,
    is_cut_short: bool,
    pieces: Vec<String>,
    cache_lifetime: Lifetime,
    first_token: Duration,
    pace: (u64, u64),
    dice: Dice,
}

/// How long what was written to the cache stays there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lifetime {
    FiveMinutes,
    OneHour,
    Unstated,
}

/// The most pieces that an answer is streamed in.
const PIECES_MAX: u64 = 60;

impl Answer {
    fn to(ask: &Ask) -> Answer {
        let model = ask.model;
        let mut dice = ask.dice.clone();
        let wanted = dice.between(model.output_tokens);
        let output = wanted.min(ask.output_tokens_max);
        let reasoning = output * model.reasoning_percent * dice.between((40, 160)) / 10_000;
        let (cache_read, cache_write) = Answer::cache(ask, &mut dice);

        let visible = output - reasoning.min(output);
        let count = visible.div_ceil(6).clamp(1, PIECES_MAX);
        let pieces = match model.is_embedding() {
            true => Vec::new(),
            false => (0..count)
                .map(|_| dice.prose((visible * 4 / count).max(1)))
                .collect(),
        };
        Answer {
            input: ask.prompt_tokens,
            cache_read,
            cache_write,
            output,
            reasoning,
            is_cut_short: output < wanted,
            pieces,
            cache_lifetime: match (model.vendor, ask.is_marked_for_an_hour) {
                (Vendor::Anthropic, true) => Lifetime::OneHour,
                (Vendor::Anthropic, false) => Lifetime::FiveMinutes,
                _ => Lifetime::Unstated,
            },
            first_token: Duration::from_millis(dice.between(model.first_token_millis)),
            pace: model.pace_millis,
            dice,
        }
    }

    /// How many tokens are read from the cache and written to it: for Anthropic what the caller
    /// marked, for the others whatever is long enough. One prompt in six is new to the cache.
    fn cache(ask: &Ask, dice: &mut Dice) -> (u64, u64) {
        let is_new = dice.chance(16);
        let tokens = match ask.model.vendor {
            Vendor::Anthropic => ask.marked_tokens,
            // OpenAI caches in steps of 128 tokens.
            _ => ask.prompt_tokens * dice.between((60, 95)) / 100 / 128 * 128,
        };
        if ask.model.is_embedding() || tokens < CACHED_TOKENS_MIN {
            return (0, 0);
        }
        let writes = ask.model.vendor == Vendor::Anthropic || ask.model.states_cache_writes;
        match is_new {
            true if writes => (0, tokens),
            true => (0, 0),
            false => (tokens, 0),
        }
    }

    /// The same counts, disjoint; quantities of zero are left out.
    fn usage(&self) -> Usage {
        let write = match self.cache_lifetime {
            Lifetime::FiveMinutes => Unit::CacheWrite5m,
            Lifetime::OneHour => Unit::CacheWrite1h,
            Lifetime::Unstated => Unit::CacheWrite,
        };
        let quantities = [
            (Unit::Input, self.uncached()),
            (Unit::CacheRead, self.cache_read),
            (write, self.cache_write),
            (Unit::Output, self.output - self.reasoning),
            (Unit::Reasoning, self.reasoning),
        ];
        let mut usage = Usage::new();
        for (unit, quantity) in quantities {
            if quantity > 0 {
                usage.set(unit, quantity);
            }
        }
        usage
    }

    /// What Anthropic states before the first token: the input, and one token of output.
    fn usage_at_start(&self) -> Usage {
        let mut usage = self.usage();
        usage.clear(Unit::Reasoning);
        usage.with(Unit::Output, 1)
    }

    const fn uncached(&self) -> u64 {
        self.input - self.cache_read - self.cache_write
    }

    fn text(&self) -> String {
        self.pieces.concat()
    }
}

/// What differs between two answers to the same question: ids and the time.
#[derive(Debug)]
struct Stamp {
    id: String,
    created_seconds: i64,
    created: String,
}

impl Stamp {
    fn now() -> Stamp {
        let now = clock::wall();
        Stamp {
            id: clock::new_id().simple().to_string(),
            created_seconds: now.timestamp(),
            created: now.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        }
    }
}

/// A text as a JSON string.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A look-alike that listens; it stops when it is dropped.
#[derive(Debug)]
pub struct LookAlike {
    vendor: Vendor,
    /// A listener for each of the vendor's routes, in their order.
    listeners: Vec<(SocketAddr, AbortOnDropHandle<()>)>,
}

impl LookAlike {
    /// Starts the look-alike of `vendor`, each of its hosts on a free port of loopback.
    ///
    /// # Errors
    ///
    /// If no port can be had.
    pub async fn start(vendor: Vendor) -> io::Result<LookAlike> {
        let mut listeners = Vec::new();
        for route in vendor.routes() {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            let address = listener.local_addr()?;
            let site = Site {
                vendor,
                route,
                origin: origin(address),
                jobs: Jobs::default(),
            };
            let accept = tokio::spawn(accept(listener, Arc::new(site)));
            listeners.push((address, AbortOnDropHandle::new(accept)));
        }
        Ok(LookAlike { vendor, listeners })
    }

    /// Taffrail's routes for the vendor's hosts, each with the URL that stands for the host's own
    /// (`https://api.openai.com`).
    pub fn upstreams(&self) -> impl Iterator<Item = (&'static str, String)> {
        let origins = self.listeners.iter().map(|(address, _)| origin(*address));
        self.vendor.routes().iter().copied().zip(origins)
    }
}

fn origin(address: SocketAddr) -> String {
    format!("http://{address}")
}

/// A host of a vendor's.
#[derive(Debug)]
struct Site {
    vendor: Vendor,
    /// Taffrail's route for it.
    route: &'static str,
    /// What its own URLs begin with.
    origin: String,
    jobs: Jobs,
}

async fn accept(listener: TcpListener, site: Arc<Site>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => { connections.spawn(serve(stream, Arc::clone(&site))); }
                // Out of file descriptors, most likely: the next try may wait a little.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, site: Arc<Site>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let site = Arc::clone(&site);
        async move { Ok::<_, Infallible>(respond(&site, request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
    // Broken connections are part of the play, whichever side breaks them.
    drop(served);
}

async fn respond(site: &Site, request: Request<Incoming>) -> Response<Play> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, REQUEST_BYTES_MAX).collect().await;
    let body = body.map(|body| body.to_bytes());
    let reply = reply(site, &head, body.map_err(|_| Refusal::TooLong));
    tokio::time::sleep(reply.latency).await;
    reply.into_response(&head.headers)
}

fn reply(site: &Site, head: &Parts, body: Result<Bytes, Refusal>) -> Reply {
    let stamp = Stamp::now();
    let (vendor, case) = (site.vendor, Case::of(&head.headers));
    let asked = || body.clone().and_then(|body| read(vendor, head, &body));
    match vendor {
        Vendor::OpenAi => match asked() {
            Ok(asked) => openai::reply(asked.as_ref(), case, &stamp),
            Err(refusal) => openai::refuse(&refusal, &stamp),
        },
        Vendor::Anthropic => match asked() {
            Ok(asked) => anthropic::reply(asked.as_ref(), case, &stamp),
            Err(refusal) => anthropic::refuse(&refusal, &stamp),
        },
        Vendor::OpenRouter => match asked() {
            Ok(asked) => openrouter::reply(asked.as_ref(), case, &stamp),
            Err(refusal) => openrouter::refuse(&refusal),
        },
        Vendor::Replicate => match body {
            Ok(body) => replicate::reply(site, head, &body, &stamp),
            Err(refusal) => replicate::refuse(&refusal),
        },
        Vendor::Fal => match body {
            Ok(body) => fal::reply(site, head, &body, &stamp),
            Err(refusal) => fal::refuse(&refusal),
        },
    }
}

/// Whether there is a key, whatever it is.
fn has_key(headers: &HeaderMap) -> bool {
    ["authorization", "x-api-key"]
        .iter()
        .any(|name| headers.get(*name).is_some_and(|key| key.len() > 4))
}

/// The question of a request; none if it asks for the list of models.
fn read(vendor: Vendor, head: &Parts, body: &[u8]) -> Result<Option<(Ask, Answer)>, Refusal> {
    let endpoint = Endpoint::of(vendor, &head.method, head.uri.path());
    let endpoint = endpoint.ok_or(Refusal::NoSuchPath)?;
    let has_key = has_key(&head.headers);
    if endpoint == Endpoint::Models && (has_key || vendor == Vendor::OpenRouter) {
        return Ok(None);
    }
    if !has_key {
        return Err(Refusal::NoKey);
    }
    let ask = Ask::read(vendor, endpoint, body)?;
    let answer = Answer::to(&ask);
    Ok(Some((ask, answer)))
}

#[cfg(test)]
mod tests;
