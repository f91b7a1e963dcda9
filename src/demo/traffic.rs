//! The demo's clients: a few applications of a few teams, all talking at once through the proxy.
//!
//! Which requests are made follows from a seed and a number alone, so that every client knows
//! beforehand what each of its requests will be billed. A job is followed by the URLs that the
//! answers name, as the vendors' own clients do. What the clients saw is added up in [`Counts`],
//! without any help from Taffrail: the report is held to it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::dice::Dice;
use super::lookalike::{CASE_HEADER, Case, Foresight, Vendor, foresee, foresee_work};
use crate::fault::Outcome;
use crate::money::Usd;
use crate::record::Operation;
use crate::usage::Usage;

/// How many clients there are. Enough to overlap, few enough for a laptop's core.
const CLIENTS: u64 = 12;

/// How long a client thinks between two requests, in milliseconds.
const THINKING_MILLIS: (u64, u64) = (60, 420);

/// How long a client waits for an answer to end before it counts it as a surprise.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a client waits before it asks how its job is.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How often an impatient client asks.
const POLLS_BEFORE_GIVING_UP: u32 = 2;

/// The attribution label of the demo, and the header that gives its value.
pub const FEATURE_LABEL: &str = "feature";
/// See [`FEATURE_LABEL`].
pub const FEATURE_HEADER: &str = "x-taffrail-feature";

/// The attribution label for the team that a feature belongs to, and its header.
pub const TEAM_LABEL: &str = "team";
/// See [`TEAM_LABEL`].
pub const TEAM_HEADER: &str = "x-taffrail-team";

/// A use that an application makes of a provider.
struct App {
    feature: &'static str,
    vendor: Vendor,
    path: &'static str,
    model: &'static str,
    /// The range of the prompt's length, in characters.
    prompt: (u64, u64),
    shape: Shape,
}

/// How an application asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// For an answer in one piece.
    Unary,
    /// For a compressed answer in one piece.
    Gzip,
    /// For a stream.
    Stream,
    /// For a stream with its usage, in OpenAI's way.
    StreamWithUsage,
    /// For a job that is held until its end, in Replicate's way.
    Wait,
    /// For a job, and then how it is, until it has ended.
    Job,
}

impl Shape {
    const fn is_stream(self) -> bool {
        matches!(self, Shape::Stream | Shape::StreamWithUsage)
    }
}

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";
const OPENROUTER_CHAT: &str = "/api/v1/chat/completions";
const PREDICTIONS: &str = "/v1/predictions";

/// The version of the model that is asked for without its name.
const SDXL_VERSION: &str = "39ed52f2a78e934b3ba6e2a89f5b1c712de7dfea535525255b1aa35c5565e08b";

const APPS: &[App] = &[
    App {
        feature: "support-chat",
        vendor: Vendor::OpenAi,
        path: CHAT,
        model: "gpt-4o-mini",
        prompt: (600, 6_000),
        shape: Shape::Stream,
    },
    App {
        feature: "support-chat",
        vendor: Vendor::OpenAi,
        path: CHAT,
        model: "gpt-6-luna",
        prompt: (400, 9_000),
        shape: Shape::StreamWithUsage,
    },
    App {
        feature: "agents",
        vendor: Vendor::OpenAi,
        path: "/v1/responses",
        model: "gpt-6.1-sol",
        prompt: (2_000, 12_000),
        shape: Shape::Stream,
    },
    App {
        feature: "search",
        vendor: Vendor::OpenAi,
        path: "/v1/embeddings",
        model: "text-embedding-3-small",
        prompt: (200, 3_000),
        shape: Shape::Unary,
    },
    App {
        feature: "code-review",
        vendor: Vendor::Anthropic,
        path: MESSAGES,
        model: "claude-sonnet-5-5",
        prompt: (500, 5_000),
        shape: Shape::Stream,
    },
    App {
        feature: "code-review",
        vendor: Vendor::Anthropic,
        path: MESSAGES,
        model: "claude-opus-5-5",
        prompt: (500, 4_000),
        shape: Shape::Stream,
    },
    App {
        feature: "triage",
        vendor: Vendor::Anthropic,
        path: MESSAGES,
        model: "claude-haiku-5-5",
        prompt: (200, 1_500),
        shape: Shape::Gzip,
    },
    App {
        feature: "summaries",
        vendor: Vendor::OpenRouter,
        path: OPENROUTER_CHAT,
        model: "meta-llama/llama-3.3-70b-instruct",
        prompt: (3_000, 10_000),
        shape: Shape::Stream,
    },
    App {
        feature: "summaries",
        vendor: Vendor::OpenRouter,
        path: OPENROUTER_CHAT,
        model: "google/gemini-2.5-flash",
        prompt: (2_000, 9_000),
        shape: Shape::Unary,
    },
    App {
        feature: "agents",
        vendor: Vendor::OpenRouter,
        path: OPENROUTER_CHAT,
        model: "anthropic/claude-sonnet-5.5",
        prompt: (1_000, 8_000),
        shape: Shape::Stream,
    },
    App {
        feature: "summaries",
        vendor: Vendor::Replicate,
        path: "/v1/models/meta/meta-llama-3-70b-instruct/predictions",
        model: "meta/meta-llama-3-70b-instruct",
        prompt: (1_000, 6_000),
        shape: Shape::Job,
    },
    App {
        feature: "thumbnails",
        vendor: Vendor::Replicate,
        path: "/v1/models/black-forest-labs/flux-schnell/predictions",
        model: "black-forest-labs/flux-schnell",
        prompt: (40, 200),
        shape: Shape::Wait,
    },
    App {
        feature: "marketing",
        vendor: Vendor::Replicate,
        path: PREDICTIONS,
        model: "stability-ai/sdxl",
        prompt: (60, 300),
        shape: Shape::Job,
    },
    App {
        feature: "marketing",
        vendor: Vendor::Fal,
        path: "/fal-ai/flux/dev",
        model: "fal-ai/flux/dev",
        prompt: (60, 300),
        shape: Shape::Unary,
    },
    App {
        feature: "thumbnails",
        vendor: Vendor::Fal,
        path: "/fal-ai/flux/schnell",
        model: "fal-ai/flux/schnell",
        prompt: (40, 200),
        shape: Shape::Job,
    },
    App {
        feature: "marketing",
        vendor: Vendor::Fal,
        path: "/fal-ai/kling-video/v2.1/standard/text-to-video",
        model: "fal-ai/kling-video/v2.1/standard/text-to-video",
        prompt: (60, 300),
        shape: Shape::Job,
    },
];

/// The troubles of the day: what happens, to which application, and whether its client gives up.
/// Every one of them comes to pass in the shortest demo.
const TROUBLES: &[(Case, &str, bool)] = &[
    (Case::Slow, "claude-opus-5-5", true),
    (Case::RateLimited, "gpt-6.1-sol", false),
    (Case::Overloaded, "claude-sonnet-5-5", false),
    (Case::Truncated, "gpt-6-luna", false),
    (Case::QuotaExhausted, "text-embedding-3-small", false),
    (Case::ErrorInStream, "meta/meta-llama-3-70b-instruct", false),
    (Case::Slow, "stability-ai/sdxl", true),
    (Case::ErrorInStream, "fal-ai/flux/schnell", false),
    (Case::RateLimited, "fal-ai/flux/dev", false),
    (
        Case::QuotaExhausted,
        "black-forest-labs/flux-schnell",
        false,
    ),
    (Case::ErrorInStream, "claude-sonnet-5-5", false),
    (Case::Slow, "gpt-6.1-sol", true),
    (Case::ErrorInStream, "anthropic/claude-sonnet-5.5", false),
    (Case::RateLimited, "google/gemini-2.5-flash", false),
    (Case::Slow, "claude-sonnet-5-5", true),
    (Case::Truncated, "meta-llama/llama-3.3-70b-instruct", false),
];

/// The number of the first request that chance alone decides on, after each application and each
/// trouble has had its turn.
pub(super) const FIRST_BY_CHANCE: u64 = 32;

/// How many in a hundred requests run into a trouble, once each trouble has been.
const TROUBLE_PERCENT: u64 = 12;

/// A request of a client, and what will become of it.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) vendor: Vendor,
    feature: &'static str,
    pub(super) path: &'static str,
    pub(super) body: String,
    shape: Shape,
    case: Case,
    /// Whether the client drops the stream after its first pieces, or cancels the job.
    gives_up: bool,
    pub(super) foresight: Foresight,
}

impl Plan {
    /// The `number`th request of a demo with that seed.
    pub(super) fn of(seed: u64, number: u64) -> Option<Plan> {
        let mut dice = Dice::new(seed ^ number.wrapping_mul(0x9e37_79b9));
        let (index, troubles) = (usize::try_from(number).ok()?, APPS.len()..);
        let trouble = if troubles.contains(&index) && index - APPS.len() < TROUBLES.len() {
            TROUBLES.get(index - APPS.len())
        } else if troubles.contains(&index) && dice.chance(TROUBLE_PERCENT) {
            dice.pick(TROUBLES)
        } else {
            None
        };
        let (case, app, gives_up) = match trouble {
            Some((case, model, gives_up)) => {
                let app = APPS.iter().find(|app| app.model == *model)?;
                (*case, app, *gives_up)
            }
            None => {
                let app = APPS.get(index).or_else(|| dice.pick(APPS))?;
                (Case::Good, app, false)
            }
        };
        let body = app.body(&mut dice);
        let (vendor, path, bytes) = (app.vendor, app.path, body.as_bytes());
        let foresight = match vendor {
            Vendor::Replicate | Vendor::Fal => {
                let is_job = vendor == Vendor::Replicate || app.shape == Shape::Job;
                foresee_work(vendor, path, bytes, case, is_job, gives_up)?
            }
            _ => foresee(vendor, path, bytes, case, gives_up)?,
        };
        Some(Plan {
            vendor: app.vendor,
            feature: app.feature,
            path: app.path,
            body,
            shape: app.shape,
            case,
            gives_up,
            foresight,
        })
    }

    fn request(&self, proxy: SocketAddr) -> anyhow::Result<Request<Full<Bytes>>> {
        let route = match (self.vendor, self.shape) {
            (Vendor::Fal, Shape::Job) => "fal-queue",
            (vendor, _) => vendor.name(),
        };
        let mut request = self
            .request_to(proxy, &format!("/{route}{}", self.path))
            .method(Method::POST)
            .header(header::CONTENT_TYPE, "application/json");
        if self.case != Case::Good {
            request = request.header(CASE_HEADER, self.case.as_str());
        }
        if self.shape == Shape::Wait {
            request = request.header("prefer", "wait");
        }
        if self.shape == Shape::Gzip {
            request = request.header(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        }
        let body = Full::new(Bytes::from(self.body.clone()));
        request.body(body).context("cannot build a request")
    }

    /// A request of the application, with its key, to a path of the proxy.
    fn request_to(&self, proxy: SocketAddr, path: &str) -> http::request::Builder {
        let request = Request::builder()
            .uri(path)
            .header(header::HOST, proxy.to_string())
            .header(FEATURE_HEADER, self.feature)
            .header(TEAM_HEADER, team(self.feature));
        let key = format!("demo-key-of-{}", self.feature);
        let (name, key) = match self.vendor {
            Vendor::Anthropic => {
                let request = request.header("anthropic-version", "2023-06-01");
                return request.header("x-api-key", format!("sk-ant-{key}"));
            }
            Vendor::Replicate => (header::AUTHORIZATION, format!("Bearer r8_{key}")),
            Vendor::Fal => (header::AUTHORIZATION, format!("Key {key}")),
            _ => (header::AUTHORIZATION, format!("Bearer sk-{key}")),
        };
        request.header(name, key)
    }

    /// Whom its row is attributed to.
    pub(super) fn attribution(&self) -> BTreeMap<String, String> {
        let labels = [
            (FEATURE_LABEL, self.feature),
            (TEAM_LABEL, team(self.feature)),
        ];
        labels
            .map(|(label, value)| (label.to_owned(), value.to_owned()))
            .into()
    }

    /// What its row says was asked.
    pub(super) fn operation(&self) -> Operation {
        match self.path {
            CHAT | MESSAGES | OPENROUTER_CHAT => Operation::Chat,
            "/v1/responses" => Operation::Responses,
            "/v1/embeddings" => Operation::Embeddings,
            _ => Operation::Prediction,
        }
    }

    /// Whether it asks for a stream.
    pub(super) const fn is_stream(&self) -> bool {
        self.shape.is_stream()
    }

    /// What the client will see of it.
    fn expected(&self) -> Seen {
        match self.foresight.outcome {
            Outcome::ClientCancelled => Seen::GivenUp,
            Outcome::UpstreamTruncated => Seen::BrokenOff,
            Outcome::JobFailed => Seen::Failed,
            Outcome::Ok if self.shape == Shape::Wait => Seen::Ended(StatusCode::CREATED),
            _ => Seen::Ended(self.foresight.status),
        }
    }
}

/// The team that a feature belongs to.
fn team(feature: &str) -> &'static str {
    match feature {
        "support-chat" | "triage" => "support",
        "agents" | "search" => "platform",
        "code-review" => "engineering",
        "summaries" => "research",
        _ => "marketing",
    }
}

impl App {
    /// The body of a request, in the words of the vendor.
    fn body(&self, dice: &mut Dice) -> String {
        let characters = dice.between(self.prompt);
        let prompt = serde_json::Value::from(dice.prose(characters));
        let model = self.model;
        let mut body = match (self.vendor, self.path) {
            (Vendor::Anthropic, _) => {
                // The rules of the house, long enough to be worth a place in the cache.
                let rules = serde_json::Value::from(Dice::of(self.feature).prose(6_400));
                let lifetime = match self.model {
                    "claude-opus-5-5" => r#","ttl":"1h""#,
                    _ => "",
                };
                format!(
                    r#"{{"model":"{model}","max_tokens":1024,"system":[{{"type":"text","text":{rules},"cache_control":{{"type":"ephemeral"{lifetime}}}}}],"messages":[{{"role":"user","content":{prompt}}}]"#
                )
            }
            (Vendor::Replicate, PREDICTIONS) => {
                format!(r#"{{"version":"{SDXL_VERSION}","input":{{"prompt":{prompt}}}"#)
            }
            (Vendor::Replicate, _) if self.shape == Shape::Wait => {
                let count = dice.between((1, 4));
                format!(r#"{{"input":{{"prompt":{prompt},"num_outputs":{count}}}"#)
            }
            (Vendor::Replicate, _) => format!(r#"{{"input":{{"prompt":{prompt}}}"#),
            (Vendor::Fal, path) if path.ends_with("-to-video") => {
                format!(r#"{{"prompt":{prompt},"duration":"5""#)
            }
            (Vendor::Fal, _) => {
                let count = dice.between((1, 4));
                format!(r#"{{"prompt":{prompt},"image_size":"landscape_4_3","num_images":{count}"#)
            }
            (_, "/v1/responses" | "/v1/embeddings") => {
                format!(r#"{{"model":"{model}","input":{prompt}"#)
            }
            _ => {
                format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":{prompt}}}]"#)
            }
        };
        if self.shape.is_stream() {
            body.push_str(r#","stream":true"#);
        }
        if self.shape == Shape::StreamWithUsage {
            body.push_str(r#","stream_options":{"include_usage":true}"#);
        }
        body.push('}');
        body
    }
}

/// What a client saw of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// It ended as its framing promised.
    Ended(StatusCode),
    /// It broke off.
    BrokenOff,
    /// The client dropped it, or cancelled the job.
    GivenUp,
    /// The job failed.
    Failed,
}

/// How a job is, as its client reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    /// It has not ended; ask again there.
    Open {
        poll: String,
        cancel: String,
    },
    /// It has ended, and its result is there.
    Made {
        result: String,
    },
    /// It has ended, and this was the result.
    Ended,
    Failed,
}

impl Told {
    /// What an answer about a job says, in the vendor's words.
    fn read(vendor: Vendor, body: &[u8]) -> anyhow::Result<Told> {
        let body: Value = serde_json::from_slice(body).context("a job's answer is no JSON")?;
        let text = |pointer: &str| {
            let text = body.pointer(pointer).and_then(Value::as_str);
            text.map(str::to_owned)
                .with_context(|| format!("a job's answer has no {pointer}"))
        };
        let (poll, cancel) = match vendor {
            Vendor::Fal => ("/status_url", "/cancel_url"),
            _ => ("/urls/get", "/urls/cancel"),
        };
        Ok(match text("/status")?.as_str() {
            "succeeded" => Told::Ended,
            "failed" => Told::Failed,
            "COMPLETED" if body.get("error").is_some() => Told::Failed,
            "COMPLETED" => Told::Made {
                result: text("/response_url")?,
            },
            _ => Told::Open {
                poll: text(poll)?,
                cancel: text(cancel)?,
            },
        })
    }
}

/// A sum over requests of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many there were.
    pub requests: u64,
    /// What they consumed, as far as the vendor said.
    pub usage: Usage,
    /// The sum of what the vendor charged, as far as its prices are known here.
    pub charged: Option<Usd>,
    /// How many of them cost something that nobody can know.
    pub unpriced: u64,
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.requests += other.requests;
        self.usage = Usage::total_of([&self.usage, &other.usage]);
        self.unpriced += other.unpriced;
        self.charged = match (self.charged, other.charged) {
            (Some(mine), Some(theirs)) => Some(mine + theirs),
            (mine, theirs) => mine.or(theirs),
        };
    }
}

/// What a request was about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Who was asked.
    pub vendor: Vendor,
    /// The model that the row is about.
    pub model: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// The value of the attribution label.
    pub feature: &'static str,
}

/// What the clients counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// The sums, to which a job counts once.
    pub tallies: BTreeMap<Key, Tally>,
    /// How often a job was asked for.
    pub polls: u64,
    /// Requests that became something else than was foreseen.
    pub surprises: Vec<String>,
}

impl Counts {
    /// How many requests there were.
    pub fn requests(&self) -> u64 {
        self.tallies.values().map(|tally| tally.requests).sum()
    }

    fn add(&mut self, other: Counts) {
        for (key, tally) in other.tallies {
            self.tallies.entry(key).or_default().add(&tally);
        }
        self.polls += other.polls;
        self.surprises.extend(other.surprises);
    }

    fn record(&mut self, plan: &Plan, seen: anyhow::Result<Seen>) {
        let (expected, foresight) = (plan.expected(), &plan.foresight);
        match seen {
            Ok(seen) if seen == expected => {}
            Ok(seen) => self.surprises.push(format!(
                "{} {}: expected {expected:?}, saw {seen:?}",
                plan.vendor.name(),
                foresight.model
            )),
            Err(error) => self.surprises.push(format!(
                "{} {}: expected {expected:?}: {error:#}",
                plan.vendor.name(),
                foresight.model
            )),
        }
        let key = Key {
            vendor: plan.vendor,
            model: foresight.model,
            outcome: foresight.outcome,
            feature: plan.feature,
        };
        self.tallies.entry(key).or_default().add(&Tally {
            requests: 1,
            usage: foresight.usage.clone(),
            charged: foresight.charged,
            unpriced: u64::from(foresight.unpriced.is_some()),
        });
    }
}

/// Sends traffic to the proxy: new requests until `until` or until `stop`, whichever is first;
/// those under way are finished.
pub async fn run(proxy: SocketAddr, seed: u64, until: Instant, stop: CancellationToken) -> Counts {
    let numbers = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for index in 0..CLIENTS {
        let client = Client {
            proxy,
            seed,
            dice: Dice::new(seed.wrapping_add(index)),
            connection: None,
        };
        clients.spawn(client.run(Arc::clone(&numbers), until, stop.clone()));
    }
    let mut counts = Counts::default();
    while let Some(joined) = clients.join_next().await {
        match joined {
            Ok(counted) => counts.add(counted),
            Err(error) => counts.surprises.push(format!("a client ended: {error}")),
        }
    }
    counts
}

struct Client {
    proxy: SocketAddr,
    seed: u64,
    dice: Dice,
    connection: Option<Connection>,
}

struct Connection {
    sender: SendRequest<Full<Bytes>>,
    _driver: AbortOnDropHandle<()>,
}

impl Client {
    async fn run(
        mut self,
        numbers: Arc<AtomicU64>,
        until: Instant,
        stop: CancellationToken,
    ) -> Counts {
        let mut counts = Counts::default();
        loop {
            let pause = Duration::from_millis(self.dice.between(THINKING_MILLIS));
            tokio::select! {
                biased;
                () = stop.cancelled() => return counts,
                () = tokio::time::sleep_until(until) => return counts,
                () = tokio::time::sleep(pause) => {}
            }
            let number = numbers.fetch_add(1, Ordering::Relaxed);
            let Some(plan) = Plan::of(self.seed, number) else {
                counts.surprises.push(format!("no plan for {number}"));
                continue;
            };
            let performed = self.perform(&plan, &mut counts.polls);
            let seen = match tokio::time::timeout(ANSWER_TIMEOUT, performed).await {
                Ok(seen) => seen,
                Err(_) => Err(anyhow::anyhow!("no end after {ANSWER_TIMEOUT:?}")),
            };
            counts.record(&plan, seen);
        }
    }

    /// Sends the request, and follows the job that the answer tells of, if it is one.
    async fn perform(&mut self, plan: &Plan, polls: &mut u64) -> anyhow::Result<Seen> {
        let is_job = plan.shape == Shape::Job;
        let drops = plan.gives_up && !is_job;
        let (seen, body) = self.exchange(plan.request(self.proxy)?, drops).await?;
        match seen {
            Seen::Ended(status) if is_job && status.is_success() => {
                self.follow(plan, body, polls).await
            }
            _ => Ok(seen),
        }
    }

    /// Asks how a job is until it has ended, at the URLs that the answers name.
    async fn follow(
        &mut self,
        plan: &Plan,
        mut answer: Vec<u8>,
        all_polls: &mut u64,
    ) -> anyhow::Result<Seen> {
        let mut polls = 0;
        loop {
            let poll = match Told::read(plan.vendor, &answer)? {
                Told::Ended => return Ok(Seen::Ended(StatusCode::OK)),
                Told::Failed => return Ok(Seen::Failed),
                Told::Made { result } => {
                    let request = self.follow_up(plan, Method::GET, &result)?;
                    let (seen, _) = self.exchange(request, false).await?;
                    return Ok(seen);
                }
                Told::Open { cancel, .. } if plan.gives_up && polls == POLLS_BEFORE_GIVING_UP => {
                    let request = self.follow_up(plan, Method::POST, &cancel)?;
                    self.exchange(request, false).await?;
                    return Ok(Seen::GivenUp);
                }
                Told::Open { poll, .. } => poll,
            };
            tokio::time::sleep(POLL_INTERVAL).await;
            polls += 1;
            *all_polls += 1;
            let request = self.follow_up(plan, Method::GET, &poll)?;
            (_, answer) = self.exchange(request, false).await?;
        }
    }

    /// A request to a URL that an answer named, which must lead through the proxy.
    fn follow_up(
        &self,
        plan: &Plan,
        method: Method,
        url: &str,
    ) -> anyhow::Result<Request<Full<Bytes>>> {
        let path = url.strip_prefix(&format!("http://{}", self.proxy));
        let path = path.with_context(|| format!("{url} leads past the proxy"))?;
        let request = plan.request_to(self.proxy, path).method(method);
        request
            .body(Full::default())
            .context("cannot build a request")
    }

    /// Sends a request on the kept connection, or on a new one, and reads the answer: its first
    /// pieces alone if the client `drops` it.
    async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
        drops: bool,
    ) -> anyhow::Result<(Seen, Vec<u8>)> {
        let mut connection = match self.connection.take() {
            Some(connection) if !connection.sender.is_closed() => connection,
            _ => self.connect().await?,
        };
        connection.sender.ready().await?;
        let response = connection.sender.send_request(request).await?;
        let status = response.status();
        let mut body = response.into_body();
        let (mut frames, mut read) = (0, Vec::new());
        while let Some(frame) = body.frame().await {
            frames += 1;
            match frame {
                Err(_) => return Ok((Seen::BrokenOff, read)),
                // The connection is dropped with it.
                Ok(_) if drops && frames > FRAMES_BEFORE_GIVING_UP => {
                    return Ok((Seen::GivenUp, read));
                }
                Ok(frame) => read.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
            }
        }
        self.connection = Some(connection);
        Ok((Seen::Ended(status), read))
    }

    async fn connect(&self) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(self.proxy)
            .await
            .with_context(|| format!("cannot connect to {}", self.proxy))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(async move {
            // Its end is seen by the request that is under way.
            drop(connection.await);
        });
        Ok(Connection {
            sender,
            _driver: AbortOnDropHandle::new(driver),
        })
    }
}

/// The pieces that an impatient client reads: enough to have seen the model begin.
const FRAMES_BEFORE_GIVING_UP: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_fixes_the_requests() {
        let told = |seed, number| Plan::of(seed, number).map(|plan| plan.body);
        assert_eq!(told(7, 40), told(7, 40));
        assert_ne!(told(7, 40), told(8, 40));
        assert_ne!(told(7, 40), told(7, 41));
    }

    #[test]
    fn every_application_and_every_trouble_comes_to_pass_in_the_shortest_demo() {
        let first = u64::try_from(APPS.len() + TROUBLES.len()).unwrap();
        assert_eq!(first, FIRST_BY_CHANCE);
        let plans: Vec<Plan> = (0..first)
            .map(|number| Plan::of(1, number).unwrap())
            .collect();
        let models: Vec<&str> = plans.iter().map(|plan| plan.foresight.model).collect();
        let served = "gpt-4o-mini-2024-07-18";
        for app in APPS {
            let model = if app.model == "gpt-4o-mini" {
                served
            } else {
                app.model
            };
            assert!(models.contains(&model), "{model}");
        }
        for outcome in [
            Outcome::Ok,
            Outcome::RateLimited,
            Outcome::QuotaExhausted,
            Outcome::UpstreamError,
            Outcome::UpstreamTruncated,
            Outcome::ClientCancelled,
            Outcome::JobFailed,
        ] {
            let found = plans.iter().any(|plan| plan.foresight.outcome == outcome);
            assert!(found, "{outcome}");
        }
        let cached = plans.iter().filter(|plan| {
            let usage = &plan.foresight.usage;
            usage.get(crate::usage::Unit::CacheRead).is_some()
        });
        assert!(cached.count() > 3);
    }

    #[test]
    fn a_surprise_is_kept_beside_the_count() {
        let plan = Plan::of(1, 0).unwrap();
        let mut counts = Counts::default();
        counts.record(&plan, Ok(plan.expected()));
        assert_eq!((counts.requests(), counts.surprises.len()), (1, 0));
        counts.record(&plan, Ok(Seen::BrokenOff));
        counts.record(&plan, Err(anyhow::anyhow!("refused")));
        assert_eq!((counts.requests(), counts.surprises.len()), (3, 2));
    }
}
