//! Anthropic's bytes: messages and the list of models.
//!
//! Source: <https://docs.anthropic.com/en/api/messages>, as of 2026-11. `input_tokens` leaves
//! the cache's tokens out; a stream states the input in its first event and the output, as a
//! running total, in the last but one.

use http::StatusCode;

use super::models::Model;
use super::play::{Events, Reply};
use super::{
    Answer, Ask, Case, Lifetime, Refusal, Stamp, Vendor, overload_status, quota_status, quoted,
};

pub(super) fn reply(asked: Option<&(Ask, Answer)>, case: Case, stamp: &Stamp) -> Reply {
    let Some((ask, answer)) = asked else {
        return signed(models(stamp), stamp);
    };
    let reply = match (case, ask.is_stream) {
        (Case::RateLimited, _) => error(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limit_error",
            "This request would exceed your organization's rate limit of 400,000 input tokens per \
             minute. For details, refer to: https://docs.claude.com/en/api/rate-limits.",
            stamp,
        )
        .with("retry-after", "2")
        .with("x-should-retry", "true"),
        (Case::QuotaExhausted, _) => error(
            quota_status(Vendor::Anthropic),
            "invalid_request_error",
            "Your credit balance is too low to access the Anthropic API. Please go to Plans & \
             Billing to upgrade or purchase credits.",
            stamp,
        ),
        (Case::Overloaded, _) | (Case::ErrorInStream, false) => error(
            overload_status(Vendor::Anthropic),
            "overloaded_error",
            "Overloaded",
            stamp,
        )
        .with("x-should-retry", "true"),
        (_, true) => Reply::stream(answer, case, events(ask, answer, stamp))
            .with("content-type", "text/event-stream; charset=utf-8"),
        (_, false) => Reply::unary(answer, case, message(ask, answer, stamp)),
    };
    signed(limits(reply, ask, stamp), stamp)
}

pub(super) fn refuse(refusal: &Refusal, stamp: &Stamp) -> Reply {
    let (status, kind, message) = match refusal {
        Refusal::NoSuchPath => (
            StatusCode::NOT_FOUND,
            "not_found_error",
            "Not Found".to_owned(),
        ),
        Refusal::NoKey => (
            StatusCode::UNAUTHORIZED,
            "authentication_error",
            "x-api-key header is required".to_owned(),
        ),
        Refusal::TooLong => (
            StatusCode::PAYLOAD_TOO_LARGE,
            "request_too_large",
            "Request exceeds the maximum size".to_owned(),
        ),
        Refusal::Malformed => (
            StatusCode::BAD_REQUEST,
            "invalid_request_error",
            "The request body is not valid JSON".to_owned(),
        ),
        Refusal::NoSuchModel(name) => (
            StatusCode::NOT_FOUND,
            "not_found_error",
            format!("model: {name}"),
        ),
    };
    signed(error(status, kind, &message, stamp), stamp)
}

/// The headers that every answer carries.
fn signed(reply: Reply, stamp: &Stamp) -> Reply {
    reply.with("request-id", format!("req_{}", stamp.id)).with(
        "anthropic-organization-id",
        "00000000-0000-4000-8000-00000000de30",
    )
}

/// The headroom that every answer about a model states.
fn limits(mut reply: Reply, ask: &Ask, stamp: &Stamp) -> Reply {
    let mut dice = ask.dice.clone();
    let limits = [
        ("requests", 4_000_u64),
        ("tokens", 480_000),
        ("input-tokens", 400_000),
        ("output-tokens", 80_000),
    ];
    for (kind, limit) in limits {
        let remaining = limit * dice.between((80, 99)) / 100;
        let header = |what| format!("anthropic-ratelimit-{kind}-{what}");
        reply = reply
            .with(&header("limit"), limit.to_string())
            .with(&header("remaining"), remaining.to_string())
            .with(&header("reset"), &stamp.created);
    }
    reply
}

fn error(status: StatusCode, kind: &str, message: &str, stamp: &Stamp) -> Reply {
    Reply::json(status, error_object(kind, message, stamp))
}

fn error_object(kind: &str, message: &str, stamp: &Stamp) -> String {
    let (message, id) = (quoted(message), &stamp.id);
    format!(
        r#"{{"type":"error","error":{{"type":"{kind}","message":{message}}},"request_id":"req_{id}"}}"#
    )
}

fn models(stamp: &Stamp) -> Reply {
    let created = &stamp.created;
    let ids: Vec<&str> = Model::all(Vendor::Anthropic)
        .map(|model| model.id)
        .collect();
    let models: Vec<String> = ids
        .iter()
        .map(|id| {
            format!(
                r#"{{"type":"model","id":"{id}","display_name":"{id}","created_at":"{created}"}}"#
            )
        })
        .collect();
    let ends = [ids.first(), ids.last()].map(|id| quoted(id.copied().unwrap_or_default()));
    let ([first, last], models) = (ends, models.join(","));
    Reply::json(
        StatusCode::OK,
        format!(r#"{{"data":[{models}],"has_more":false,"first_id":{first},"last_id":{last}}}"#),
    )
}

fn stop_reason(answer: &Answer) -> &'static str {
    match answer.is_cut_short {
        true => "max_tokens",
        false => "end_turn",
    }
}

/// The usage object of a whole message, and of the beginning of a stream, where the output is
/// one token and thinking has not begun.
fn usage(answer: &Answer, output: u64, thinking: Option<u64>) -> String {
    let (input, read, write) = (answer.uncached(), answer.cache_read, answer.cache_write);
    let (five_minutes, one_hour) = match answer.cache_lifetime {
        Lifetime::OneHour => (0, write),
        _ => (write, 0),
    };
    let details = thinking.map(details).unwrap_or_default();
    format!(
        r#"{{"input_tokens":{input},"cache_creation_input_tokens":{write},"cache_read_input_tokens":{read},"cache_creation":{{"ephemeral_5m_input_tokens":{five_minutes},"ephemeral_1h_input_tokens":{one_hour}}},"output_tokens":{output}{details},"service_tier":"standard","inference_geo":"global"}}"#
    )
}

/// The usage object of the end of a stream, which has no split of the cache's lifetimes.
fn final_usage(answer: &Answer) -> String {
    let (input, read, write) = (answer.uncached(), answer.cache_read, answer.cache_write);
    let (output, details) = (answer.output, details(answer.reasoning));
    format!(
        r#"{{"input_tokens":{input},"cache_creation_input_tokens":{write},"cache_read_input_tokens":{read},"output_tokens":{output}{details}}}"#
    )
}

fn details(thinking: u64) -> String {
    format!(r#","output_tokens_details":{{"thinking_tokens":{thinking}}}"#)
}

fn message(ask: &Ask, answer: &Answer, stamp: &Stamp) -> String {
    let (id, model, text) = (&stamp.id, ask.model.served, quoted(&answer.text()));
    let stop = stop_reason(answer);
    let usage = usage(answer, answer.output, Some(answer.reasoning));
    format!(
        r#"{{"id":"msg_{id}","type":"message","role":"assistant","model":"{model}","content":[{{"type":"text","text":{text}}}],"stop_reason":"{stop}","stop_sequence":null,"usage":{usage}}}"#
    )
}

fn event(kind: &str, json: &str) -> String {
    format!("event: {kind}\ndata: {json}\n\n")
}

fn events(ask: &Ask, answer: &Answer, stamp: &Stamp) -> Events {
    let (id, model) = (&stamp.id, ask.model.served);
    let (stop, begun, ended) = (
        stop_reason(answer),
        usage(answer, 1, None),
        final_usage(answer),
    );
    let start = format!(
        r#"{{"type":"message_start","message":{{"id":"msg_{id}","type":"message","role":"assistant","model":"{model}","content":[],"stop_reason":null,"stop_sequence":null,"usage":{begun}}}}}"#
    );
    let delta = |piece: &String| {
        let text = quoted(piece);
        let json = format!(
            r#"{{"type":"content_block_delta","index":0,"delta":{{"type":"text_delta","text":{text}}}}}"#
        );
        event("content_block_delta", &json)
    };
    let end = format!(
        r#"{{"type":"message_delta","delta":{{"stop_reason":"{stop}","stop_sequence":null}},"usage":{ended}}}"#
    );
    Events {
        opening: vec![
            event("message_start", &start),
            event(
                "content_block_start",
                r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
            ),
            event("ping", r#"{"type": "ping"}"#),
        ],
        deltas: answer.pieces.iter().map(delta).collect(),
        closing: vec![
            event(
                "content_block_stop",
                r#"{"type":"content_block_stop","index":0}"#,
            ),
            event("message_delta", &end),
            event("message_stop", r#"{"type":"message_stop"}"#),
        ],
        failure: vec![event(
            "error",
            &error_object("overloaded_error", "Overloaded", stamp),
        )],
    }
}
