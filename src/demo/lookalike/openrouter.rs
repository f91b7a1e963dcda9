//! OpenRouter's bytes: chat completions and the list of models.
//!
//! Source: <https://openrouter.ai/docs/api-reference>, as of 2026-11. Every answer states its
//! usage and its cost; a stream begins with comments while the upstream is waited for. With the
//! caller's own key at the upstream (`is_byok`), `cost` is OpenRouter's fee alone.

use http::StatusCode;
use rust_decimal::Decimal;

use super::models::{Model, Route};
use super::play::{Events, Reply};
use super::{Answer, Ask, Case, Refusal, Stamp, Vendor, overload_status, quota_status, quoted};
use crate::money::Usd;

/// What OpenRouter takes of the upstream's price when the caller's own key pays it.
const BYOK_FEE_PERCENT: i64 = 5;

pub(super) fn reply(asked: Option<&(Ask, Answer)>, case: Case, stamp: &Stamp) -> Reply {
    let Some((ask, answer)) = asked else {
        return models(stamp);
    };
    let upstream = ask.model.route.as_ref().map_or("", |route| route.upstream);
    match (case, ask.is_stream) {
        (Case::RateLimited, _) => {
            let raw = format!(
                "{} is temporarily rate-limited upstream. Please retry shortly.",
                ask.model.id
            );
            let metadata = format!(
                r#","metadata":{{"provider_name":"{upstream}","raw":"{raw}","error_type":"rate_limit_exceeded"}}"#
            );
            error(
                StatusCode::TOO_MANY_REQUESTS,
                "Provider returned error",
                &metadata,
            )
        }
        (Case::QuotaExhausted, _) => error(
            quota_status(Vendor::OpenRouter),
            "Insufficient credits. Add more using https://openrouter.ai/credits",
            "",
        ),
        (Case::Overloaded, _) | (Case::ErrorInStream, false) => {
            let metadata = format!(
                r#","metadata":{{"provider_name":"{upstream}","error_type":"provider_unavailable"}}"#
            );
            error(
                overload_status(Vendor::OpenRouter),
                "Provider returned error",
                &metadata,
            )
        }
        (_, true) => Reply::stream(answer, case, events(ask, answer, stamp))
            .with("content-type", "text/event-stream")
            .with("x-generation-id", generation_id(stamp)),
        (_, false) => Reply::unary(answer, case, chat(ask, answer, stamp))
            .with("x-generation-id", generation_id(stamp)),
    }
}

pub(super) fn refuse(refusal: &Refusal) -> Reply {
    let (status, message) = match refusal {
        Refusal::NoSuchPath => (StatusCode::NOT_FOUND, "Not Found".to_owned()),
        Refusal::NoKey => (
            StatusCode::UNAUTHORIZED,
            "No auth credentials found".to_owned(),
        ),
        Refusal::TooLong => (
            StatusCode::PAYLOAD_TOO_LARGE,
            "Request body too large".to_owned(),
        ),
        Refusal::Malformed => (
            StatusCode::BAD_REQUEST,
            "Invalid JSON in request body".to_owned(),
        ),
        Refusal::NoSuchModel(name) => (
            StatusCode::BAD_REQUEST,
            format!("{name} is not a valid model ID"),
        ),
    };
    error(status, &message, "")
}

fn error(status: StatusCode, message: &str, metadata: &str) -> Reply {
    let (message, code) = (quoted(message), status.as_u16());
    Reply::json(
        status,
        format!(
            r#"{{"error":{{"message":{message},"code":{code}{metadata}}},"user_id":"user_demo"}}"#
        ),
    )
}

fn generation_id(stamp: &Stamp) -> String {
    format!("gen-{}-{}", stamp.created_seconds, stamp.id)
}

/// The parts of a cost, in US dollars.
struct Cost {
    /// What OpenRouter charges.
    charged: Decimal,
    /// What the upstream charges for the input and for the output.
    upstream: (Decimal, Decimal),
    is_byok: bool,
}

impl Cost {
    fn of(route: &Route, answer: &Answer) -> Cost {
        let upstream = route.upstream_cost(answer.uncached(), answer.cache_read, answer.output);
        let whole = upstream.0 + upstream.1;
        Cost {
            charged: match route.is_byok {
                true => whole * Decimal::new(BYOK_FEE_PERCENT, 2),
                false => whole,
            },
            upstream,
            is_byok: route.is_byok,
        }
    }
}

/// The cost of an answer to all parties together, where OpenRouter states it.
pub(super) fn stated_cost(ask: &Ask, answer: &Answer) -> Option<Usd> {
    let cost = Cost::of(ask.model.route.as_ref()?, answer);
    let upstream = match cost.is_byok {
        true => cost.upstream.0 + cost.upstream.1,
        false => Decimal::ZERO,
    };
    Some(Usd::new(cost.charged + upstream))
}

fn usage(ask: &Ask, answer: &Answer) -> String {
    let Answer {
        input,
        output,
        cache_read,
        reasoning,
        ..
    } = answer;
    let total = input + output;
    let cost = ask.model.route.as_ref().map(|route| {
        let cost = Cost::of(route, answer);
        let (charged, is_byok) = (cost.charged.normalize(), cost.is_byok);
        let (prompt, completion) = (cost.upstream.0.normalize(), cost.upstream.1.normalize());
        let upstream = match is_byok {
            true => (prompt + completion).normalize().to_string(),
            false => "null".to_owned(),
        };
        format!(
            r#","cost":{charged},"is_byok":{is_byok},"cost_details":{{"upstream_inference_cost":{upstream},"upstream_inference_prompt_cost":{prompt},"upstream_inference_completions_cost":{completion}}}"#
        )
    });
    let cost = cost.unwrap_or_default();
    format!(
        r#"{{"prompt_tokens":{input},"completion_tokens":{output},"total_tokens":{total}{cost},"prompt_tokens_details":{{"cached_tokens":{cache_read},"audio_tokens":0,"video_tokens":0}},"completion_tokens_details":{{"reasoning_tokens":{reasoning},"image_tokens":0}}}}"#
    )
}

fn finish_reasons(ask: &Ask, answer: &Answer) -> (&'static str, &'static str) {
    let upstream = ask.model.route.as_ref().map_or("", |route| route.upstream);
    match (answer.is_cut_short, upstream) {
        (true, "Google") => ("length", "MAX_TOKENS"),
        (true, _) => ("length", "max_tokens"),
        (false, "Google") => ("stop", "STOP"),
        (false, "Amazon Bedrock") => ("stop", "end_turn"),
        (false, _) => ("stop", "stop"),
    }
}

/// The members that begin every object: id, provider, model.
fn head(ask: &Ask, stamp: &Stamp, object: &str) -> String {
    let (id, created, model) = (
        generation_id(stamp),
        stamp.created_seconds,
        ask.model.served,
    );
    let upstream = ask.model.route.as_ref().map_or("", |route| route.upstream);
    format!(
        r#""id":"{id}","provider":"{upstream}","model":"{model}","object":"{object}","created":{created}"#
    )
}

fn chat(ask: &Ask, answer: &Answer, stamp: &Stamp) -> String {
    let (head, usage) = (head(ask, stamp, "chat.completion"), usage(ask, answer));
    let (text, (finish, native)) = (quoted(&answer.text()), finish_reasons(ask, answer));
    format!(
        r#"{{{head},"choices":[{{"logprobs":null,"finish_reason":"{finish}","native_finish_reason":"{native}","index":0,"message":{{"role":"assistant","content":{text},"refusal":null,"reasoning":null}}}}],"usage":{usage}}}"#
    )
}

const COMMENT: &str = ": OPENROUTER PROCESSING\n\n";

fn events(ask: &Ask, answer: &Answer, stamp: &Stamp) -> Events {
    let head = head(ask, stamp, "chat.completion.chunk");
    let chunk = |text: &str, finish: &str, native: &str, usage: &str| {
        let text = quoted(text);
        format!(
            "data: {{{head},\"choices\":[{{\"index\":0,\"delta\":{{\"role\":\"assistant\",\
             \"content\":{text}}},\"finish_reason\":{finish},\"native_finish_reason\":{native},\
             \"logprobs\":null}}]{usage}}}\n\n"
        )
    };
    let (finish, native) = finish_reasons(ask, answer);
    let usage = format!(r#","usage":{}"#, usage(ask, answer));
    let delta = |piece: &String| chunk(piece, "null", "null", "");
    Events {
        opening: vec![COMMENT.to_owned(), COMMENT.to_owned()],
        deltas: answer.pieces.iter().map(delta).collect(),
        closing: vec![
            chunk("", &quoted(finish), &quoted(native), ""),
            chunk("", "null", "null", &usage),
            "data: [DONE]\n\n".to_owned(),
        ],
        failure: vec![format!(
            "data: {{{head},\"error\":{{\"code\":502,\"message\":\"Provider disconnected \
             unexpectedly\",\"metadata\":{{\"error_type\":\"provider_unavailable\"}}}},\
             \"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"\"}},\
             \"finish_reason\":\"error\"}}]}}\n\n"
        )],
    }
}

fn models(stamp: &Stamp) -> Reply {
    Reply::json(StatusCode::OK, price_list(stamp.created_seconds))
}

/// The list of models with their prices.
pub(super) fn price_list(created: i64) -> String {
    let models: Vec<String> = Model::all(Vendor::OpenRouter)
        .filter_map(|model| {
            let (prompt, cached, completion) = model.route.as_ref()?.cents_per_million;
            let price = |cents| Decimal::new(cents, 8).normalize();
            let id = model.id;
            let (prompt, cached, completion) = (price(prompt), price(cached), price(completion));
            Some(format!(
                r#"{{"id":"{id}","canonical_slug":"{id}","name":"{id}","created":{created},"context_length":131072,"pricing":{{"prompt":"{prompt}","completion":"{completion}","input_cache_read":"{cached}"}}}}"#
            ))
        })
        .collect();
    let models = models.join(",");
    format!(r#"{{"data":[{models}]}}"#)
}
