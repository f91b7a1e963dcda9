//! OpenRouter: a router with OpenAI's and Anthropic's APIs as skins, which states what a call
//! cost and who answered it.
//!
//! <https://openrouter.ai/docs/llms.txt>. `cost` is in US dollars and charged to the account at
//! OpenRouter; with bring-your-own-key the party behind it sends a second bill.

use std::borrow::Cow;
use std::sync::LazyLock;

use http::HeaderMap;

use super::failure::Failure;
use super::response::Vendor;
use super::route::{self, Route, Segments, route};
use super::{
    Call, JobCall, Meter, Provider, RateLimit, RequestHead, RequestReader, ResponseHead,
    StatedCost, anthropic, chat, common_rate_limits, request, url_selector,
};
use crate::fault::Outcome;
use crate::money::Usd;
use crate::record::Operation;
use crate::wire::json::Selector;
use crate::wire::json::Step::{Each, Key};

/// Route, configuration key and label.
pub(crate) const NAME: &str = "openrouter";

const UPSTREAM: &str = "https://openrouter.ai";

/// The provider.
pub(crate) struct OpenRouter;

static VENDOR: Vendor = Vendor {
    // The id that `/generation` is asked with, for the cost of what stated none.
    request_id_headers: &["x-generation-id"],
    refine,
};

/// The URLs of a video that a client follows with its key, where they are absolute.
static JOB_URLS: LazyLock<Selector> =
    LazyLock::new(|| url_selector(&[&[Key("polling_url")], &[Key("unsigned_urls"), Each]]));

const VIDEOS: &str = "/api/v1/videos";
const VIDEO: &str = "/api/v1/videos/{id}";

static ROUTES: &[Route] = &[
    route("POST", "/api/v1/chat/completions", Operation::Chat),
    route("POST", "/api/v1/responses", Operation::Responses),
    route("POST", "/api/v1/messages", Operation::Chat),
    route("POST", "/api/v1/completions", Operation::Completion),
    route("POST", "/api/v1/embeddings", Operation::Embeddings),
    route("POST", "/api/v1/rerank", Operation::Rerank),
    route("POST", "/api/v1/images", Operation::Image),
    route("POST", "/api/v1/audio/speech", Operation::Speech),
    route(
        "POST",
        "/api/v1/audio/transcriptions",
        Operation::Transcription,
    ),
    route("POST", VIDEOS, Operation::Video),
    route(
        "POST",
        "/api/v1/presets/{slug}/chat/completions",
        Operation::Chat,
    ),
    route(
        "POST",
        "/api/v1/presets/{slug}/responses",
        Operation::Responses,
    ),
    route("POST", "/api/v1/presets/{slug}/messages", Operation::Chat),
    route(
        "POST",
        "/api/v1/messages/count_tokens",
        Operation::CountTokens,
    ),
    route("GET", "/api/v1/embeddings/models", Operation::Models),
    route("GET", "/api/v1/images/models/*", Operation::Models),
    route("GET", "/api/v1/videos/models", Operation::Models),
    route("GET", "/api/v1/models/*", Operation::Models),
    route("GET", "/api/v1/model/*", Operation::Models),
    route("GET", "/api/v1/videos/{id}/content", Operation::Control),
    route("GET", VIDEO, Operation::Control),
    route("GET", "/api/v1/generation", Operation::Control),
    route("GET", "/api/v1/generation/content", Operation::Control),
    route("GET", "/api/v1/credits", Operation::Control),
    route("GET", "/api/v1/key", Operation::Control),
    route("GET", "/api/v1/auth/key", Operation::Control),
    route("*", "/api/v1/auth/keys/*", Operation::Control),
    route("*", "/api/v1/keys/*", Operation::Control),
    route("GET", "/api/v1/activity", Operation::Control),
    route("GET", "/api/v1/providers", Operation::Control),
    route("POST", "/api/v1/analytics/query", Operation::Control),
];

impl Provider for OpenRouter {
    fn name(&self) -> &str {
        NAME
    }

    fn default_upstream(&self) -> Option<&'static str> {
        Some(UPSTREAM)
    }

    fn recognise(&self, head: RequestHead<'_>) -> Call {
        let segments = Segments::of(head.path);
        let (operation, template) = match route::find(ROUTES, "", head.method, segments.from(0)) {
            Some((route, template)) => (route.operation, template),
            None => (route::unknown(head.method), route::UNKNOWN_ROUTE),
        };
        let job = match template {
            VIDEOS => Some(JobCall::Submit),
            VIDEO => segments.get(3).and_then(route::name).map(JobCall::Follow),
            _ => None,
        };
        Call {
            operation,
            route: Cow::Borrowed(template),
            model: None,
            job,
        }
    }

    fn read_request(&self, call: &Call, head: RequestHead<'_>) -> Box<dyn RequestReader> {
        request::reader(call.operation, head)
    }

    fn meter(&self, call: &Call, head: ResponseHead<'_>) -> Box<dyn Meter> {
        let cost = cost_of_cached(head);
        if call.route.ends_with("/messages") {
            Box::new(anthropic::meter(call, head, &VENDOR).with_default_cost(cost))
        } else {
            Box::new(chat::meter(call, head, &VENDOR).with_default_cost(cost))
        }
    }

    fn follow_up(&self, call: &Call, target: &str, job_id: &str) -> Option<String> {
        chat::follow_up(call, target, job_id)
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

/// An answer out of OpenRouter's own cache is free.
fn cost_of_cached(head: ResponseHead<'_>) -> Option<StatedCost> {
    let status = head.headers.get("x-openrouter-cache-status")?;
    status
        .as_bytes()
        .eq_ignore_ascii_case(b"HIT")
        .then_some(StatedCost {
            total: Usd::ZERO,
            upstream: None,
        })
}

/// OpenRouter sends a 403 for what a guardrail stopped, which shared words would take for a bad
/// key; the metadata tells them apart, and the message where there is none.
fn refine(failure: &Failure) -> Option<Outcome> {
    let is_forbidden = failure.status == 403 || failure.code.as_deref() == Some("403");
    let is_moderated = ["moderation", "flagged", "guardrail"]
        .iter()
        .any(|word| failure.says(word));
    (is_forbidden && is_moderated).then_some(Outcome::ContentFiltered)
}
