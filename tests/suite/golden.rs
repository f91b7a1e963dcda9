//! Every fixture, whole and cut in every way, means what its `expect.json` says.
//!
//! A fixture is a folder `tests/fixtures/<provider>/<case>/`: `request.http` and `response.http`
//! (head, blank line, raw body), `about.toml` (where it comes from), and `expect.json`, which
//! `UPDATE_GOLDEN=1` rewrites and a human reviews.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use taffrail::provider::{
    self, Call, End, JobCall, JobStage, JobView, Milestone, Part, Provider, RateLimit, Report,
    RequestFacts, RequestHead, ResponseHead, StatedCost, StreamOptions,
};
use taffrail::wire::inflate::Inflater;

/// Cutting a body once at each byte is quadratic; longer bodies are cut at as many places.
const SINGLE_CUTS_MAX: usize = 4096;

/// How often a body is cut at several random places.
const MULTI_CUTS: u64 = 24;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "read by people; the test only checks that it is there"
)]
struct About {
    /// `documented`: the vendor's documentation, SDK or a public recording shows these bytes or
    /// this shape. `synthetic`: made to show a trouble.
    origin: Origin,
    date: String,
    source: String,
    /// What the case is about.
    about: String,
    #[serde(default)]
    end: Ending,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Origin {
    Documented,
    Synthetic,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ending {
    #[default]
    Complete,
    Truncated,
    Cancelled,
    TimedOut,
}

impl From<Ending> for End {
    fn from(ending: Ending) -> End {
        match ending {
            Ending::Complete => End::Complete,
            Ending::Truncated => End::Truncated,
            Ending::Cancelled => End::Cancelled,
            Ending::TimedOut => End::TimedOut,
        }
    }
}

/// A case as it is on disk.
pub(crate) struct Fixture {
    pub(crate) folder: PathBuf,
    pub(crate) request: Message,
    pub(crate) response: Message,
    pub(crate) end: End,
}

/// Start line, headers and body.
pub(crate) struct Message {
    pub(crate) start: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Message {
    fn read(path: &Path) -> Message {
        let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let split = bytes
            .windows(2)
            .position(|pair| pair == b"\n\n")
            .unwrap_or_else(|| panic!("{}: no blank line after the head", path.display()));
        let head = std::str::from_utf8(&bytes[..split]).unwrap();
        let mut lines = head.lines();
        let start = lines.next().unwrap().to_owned();
        let headers = lines
            .map(|line| {
                let (name, value) = line.split_once(": ").unwrap();
                (
                    name.parse::<HeaderName>().unwrap(),
                    value.parse::<HeaderValue>().unwrap(),
                )
            })
            .collect();
        Message {
            start,
            headers,
            body: bytes[split + 2..].to_vec(),
        }
    }

    pub(crate) fn word(&self, index: usize) -> &str {
        self.start.split(' ').nth(index).unwrap()
    }
}

impl Fixture {
    fn read(folder: PathBuf) -> Fixture {
        let text = fs::read_to_string(folder.join("about.toml")).unwrap();
        let about: About = figment::Figment::from(figment::providers::Data::<
            figment::providers::Toml,
        >::string(&text))
        .extract()
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        Fixture {
            request: Message::read(&folder.join("request.http")),
            response: Message::read(&folder.join("response.http")),
            end: about.end.into(),
            folder,
        }
    }

    pub(crate) fn name(&self) -> String {
        self.folder.file_name().unwrap().to_string_lossy().into()
    }

    fn method(&self) -> Method {
        self.request.word(0).parse().unwrap()
    }

    pub(crate) fn with_request_head<T>(&self, then: impl FnOnce(RequestHead<'_>) -> T) -> T {
        let target = self.request.word(1);
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        then(RequestHead {
            method: &self.method(),
            path,
            query,
            headers: &self.request.headers,
        })
    }

    pub(crate) fn response_head(&self) -> ResponseHead<'_> {
        ResponseHead {
            status: StatusCode::from_bytes(self.response.word(1).as_bytes()).unwrap(),
            headers: &self.response.headers,
        }
    }

    pub(crate) fn call(&self, provider: &dyn Provider) -> Call {
        self.with_request_head(|head| provider.recognise(head))
    }

    fn facts(&self, provider: &dyn Provider, call: &Call, cuts: &[usize]) -> RequestFacts {
        let mut reader = self.with_request_head(|head| provider.read_request(call, head));
        for piece in pieces(&self.request.body, cuts) {
            reader.push(piece);
        }
        reader.end();
        reader.facts().clone()
    }

    /// The report, and in which piece the first token was.
    fn report(
        &self,
        provider: &dyn Provider,
        call: &Call,
        facts: &RequestFacts,
        cuts: &[usize],
    ) -> (Report, Option<usize>) {
        let mut meter = provider.meter(call, self.response_head());
        let mut inflater = Inflater::for_headers(&self.response.headers);
        let mut first_token = None;
        for (index, piece) in pieces(&self.response.body, cuts).enumerate() {
            inflater.push(piece, &mut |decoded| {
                if meter.push(decoded) == Some(Milestone::FirstToken) {
                    assert_eq!(first_token, None, "a milestone is passed once");
                    first_token = Some(index);
                }
            });
        }
        inflater.end();
        (meter.finish(self.end, facts), first_token)
    }
}

/// The fixtures of a provider, in the order of their names.
pub(crate) fn fixtures(provider: &str) -> Vec<Fixture> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(provider);
    let mut folders: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    folders.sort();
    folders.into_iter().map(Fixture::read).collect()
}

/// The provider whose fixtures are in the folder of that name.
pub(crate) fn provider_of(folder: &str) -> Arc<dyn Provider> {
    provider::builtin(folder).unwrap_or_else(|| provider::chat_dialect(folder))
}

/// `body` cut at these places, which ascend.
fn pieces<'a>(body: &'a [u8], cuts: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    let ends = cuts.iter().copied().chain(std::iter::once(body.len()));
    starts.zip(ends).map(|(start, end)| &body[start..end])
}

/// A small generator (SplitMix64), so that every run cuts alike.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((bits ^ (bits >> 31)) % limit as u64).unwrap()
    }
}

/// All the ways in which a body of that length is cut besides byte by byte.
fn cuttings(length: usize) -> Vec<Vec<usize>> {
    let mut cuttings = vec![Vec::new()];
    if length < 2 {
        return cuttings;
    }
    let mut random = Random(length as u64);
    if length <= SINGLE_CUTS_MAX {
        cuttings.extend((1..length).map(|cut| vec![cut]));
    } else {
        cuttings.extend((0..SINGLE_CUTS_MAX / 8).map(|_| vec![1 + random.below(length - 1)]));
    }
    for count in 0..MULTI_CUTS {
        let mut cuts: Vec<usize> = (0..2 + count * 2)
            .map(|_| 1 + random.below(length - 1))
            .collect();
        cuts.sort_unstable();
        cuts.dedup();
        cuttings.push(cuts);
    }
    cuttings
}

/// Checks the fixtures of one provider.
fn check(folder: &str) {
    let provider = provider_of(folder);
    let provider = provider.as_ref();
    for fixture in fixtures(folder) {
        let case = format!("{folder}/{}", fixture.name());
        let call = fixture.call(provider);

        let request_bytes: Vec<usize> = (1..fixture.request.body.len()).collect();
        let facts = fixture.facts(provider, &call, &request_bytes);
        for cuts in cuttings(fixture.request.body.len()) {
            let cut = fixture.facts(provider, &call, &cuts);
            assert_eq!(cut, facts, "{case}: request cut at {cuts:?}");
        }

        let bytes: Vec<usize> = (1..fixture.response.body.len()).collect();
        let (report, first_token) = fixture.report(provider, &call, &facts, &bytes);
        let is_encoded = fixture.response.headers.contains_key("content-encoding");
        for cuts in cuttings(fixture.response.body.len()) {
            let (cut, cut_token) = fixture.report(provider, &call, &facts, &cuts);
            assert_eq!(cut, report, "{case}: response cut at {cuts:?}");
            // Byte by byte, a piece's index is a position in the body.
            let piece = first_token.map(|at| cuts.iter().filter(|cut| **cut <= at).count());
            if is_encoded {
                assert_eq!(cut_token.is_some(), piece.is_some(), "{case}: {cuts:?}");
            } else {
                assert_eq!(cut_token, piece, "{case}: first token, cut at {cuts:?}");
            }
        }

        let shown = first_token.map(|at| {
            if is_encoded {
                "somewhere in the encoded body".to_owned()
            } else {
                let before = &fixture.response.body[at.saturating_sub(39)..=at];
                String::from_utf8_lossy(before).into_owned()
            }
        });
        let actual = json!({
            "call": call_json(&call),
            "request": facts_json(&facts),
            "usage_injection": provider.needs_usage_injection(&call),
            "rate_limits": limits_json(&provider.rate_limits(&fixture.response.headers)),
            "first_token_at_the_end_of": shown,
            "report": report_json(&report),
        });
        let path = fixture.folder.join("expect.json");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, serde_json::to_string_pretty(&actual).unwrap() + "\n").unwrap();
        } else {
            let expected = fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let expected: Value = serde_json::from_str(&expected).unwrap();
            assert_eq!(actual, expected, "{case}");
        }
    }
}

/// An object of the members that are not null.
fn known(members: Value) -> Value {
    let Value::Object(members) = members else {
        panic!("not an object");
    };
    let known: Map<String, Value> = members
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .collect();
    Value::Object(known)
}

// Each of these takes its value apart whole, so that a field that is added later cannot be
// forgotten here.

fn call_json(call: &Call) -> Value {
    let Call {
        operation,
        route,
        model,
        job,
    } = call;
    let job = job.as_ref().map(|job| match job {
        JobCall::Submit => json!("submit"),
        JobCall::Follow(id) => json!({ "follow": id }),
    });
    known(json!({ "operation": operation, "route": route, "model": model, "job": job }))
}

fn facts_json(facts: &RequestFacts) -> Value {
    let RequestFacts {
        model,
        stream,
        stream_options,
        service_tier,
        images,
        image_variant,
        qualifiers,
        characters,
        complete,
    } = facts;
    let stream_options = stream_options
        .map(|StreamOptions { include_usage }| json!({ "include_usage": include_usage }));
    known(json!({
        "model": model,
        "stream": stream,
        "stream_options": stream_options,
        "service_tier": service_tier,
        "images": images,
        "image_variant": image_variant,
        "qualifiers": (!qualifiers.is_empty()).then_some(qualifiers),
        "characters": characters,
        "complete": complete,
    }))
}

fn limits_json(limits: &[RateLimit]) -> Value {
    limits
        .iter()
        .map(
            |RateLimit {
                 kind,
                 limit,
                 remaining,
             }| {
                known(json!({ "kind": kind, "limit": limit, "remaining": remaining }))
            },
        )
        .collect()
}

fn report_json(report: &Report) -> Value {
    let Report {
        outcome,
        error_code,
        error_message,
        finish_reason,
        model_served,
        upstream_provider,
        service_tier,
        region,
        provider_request_id,
        image_variant,
        qualifiers,
        parts,
        stated_cost,
        raw_usage,
        fidelity,
        estimated,
        job,
    } = report;
    let job = job.as_ref().map(job_json);
    let parts: Value = parts
        .iter()
        .map(|Part { model, usage }| known(json!({ "model": model, "usage": usage })))
        .collect();
    let stated_cost = stated_cost.map(|StatedCost { total, upstream }| {
        known(json!({
            "total": total.to_string(),
            "upstream": upstream.map(|usd| usd.to_string()),
        }))
    });
    known(json!({
        "outcome": outcome,
        "error_code": error_code,
        "error_message": error_message,
        "finish_reason": finish_reason,
        "model_served": model_served,
        "upstream_provider": upstream_provider,
        "service_tier": service_tier,
        "region": region,
        "provider_request_id": provider_request_id,
        "image_variant": image_variant,
        "qualifiers": (!qualifiers.is_empty()).then_some(qualifiers),
        "parts": parts,
        "stated_cost": stated_cost,
        "raw_usage": raw_usage,
        "fidelity": fidelity,
        "estimated": estimated,
        "job": job,
    }))
}

fn job_json(job: &JobView) -> Value {
    let JobView {
        id,
        stage,
        queue,
        run,
    } = job;
    let stage = match stage {
        JobStage::Open => "open",
        JobStage::Ended => "ended",
        JobStage::Settled => "settled",
    };
    let seconds = |time: &Option<Duration>| time.map(|time| time.as_secs_f64());
    known(json!({ "id": id, "stage": stage, "queue": seconds(queue), "run": seconds(run) }))
}

#[test]
fn openai_means_what_its_fixtures_say() {
    check("openai");
}

#[test]
fn azure_means_what_its_fixtures_say() {
    check("azure");
}

#[test]
fn anthropic_means_what_its_fixtures_say() {
    check("anthropic");
}

#[test]
fn openrouter_means_what_its_fixtures_say() {
    check("openrouter");
}

#[test]
fn replicate_means_what_its_fixtures_say() {
    check("replicate");
    check("replicate-stream");
}

#[test]
fn fal_means_what_its_fixtures_say() {
    check("fal");
    check("fal-queue");
    check("fal-rest");
}

#[test]
fn the_chat_dialect_means_what_its_fixtures_say() {
    check("chat");
}

/// What every vendor of chat must show, by a word in the names of its cases.
#[test]
fn the_fixtures_of_chat_vendors_cover_the_usual_troubles() {
    const TROUBLES: [&str; 8] = [
        "whole",
        "stream",
        "cache",
        "error",
        "error-in-stream",
        "gzip",
        "truncated",
        "client-gone",
    ];
    for folder in ["openai", "azure", "anthropic", "openrouter", "chat"] {
        let names: Vec<String> = fixtures(folder).iter().map(Fixture::name).collect();
        for trouble in TROUBLES {
            assert!(
                names.iter().any(|name| name.contains(trouble)),
                "{folder} has no fixture of {trouble}"
            );
        }
    }
}
