//! OpenAI's bytes: chat completions, responses, embeddings and the list of models.
//!
//! Source: <https://platform.openai.com/docs/api-reference>, as of 2026-11. A chat stream states
//! its usage only if `stream_options.include_usage` asks for it, in one extra chunk; the Responses
//! API always does, in its last event.

use http::StatusCode;

use super::models::Model;
use super::play::{Events, Reply};
use super::{Answer, Ask, Case, Endpoint, Refusal, Stamp, Vendor, overload_status, quoted};
use crate::demo::dice::Dice;

pub(super) fn reply(asked: Option<&(Ask, Answer)>, case: Case, stamp: &Stamp) -> Reply {
    let Some((ask, answer)) = asked else {
        return signed(models(stamp), stamp);
    };
    let reply = match (case, ask.endpoint, ask.is_stream) {
        (Case::RateLimited, ..) => rate_limited(ask),
        (Case::QuotaExhausted, ..) => quota_exhausted(),
        (Case::Overloaded, ..) | (Case::ErrorInStream, _, false) => overloaded(),
        (_, Endpoint::Embeddings, _) => Reply::unary(answer, case, embeddings(ask, answer)),
        (_, Endpoint::Responses, true) => events(answer, case, response_events(ask, answer, stamp)),
        (_, Endpoint::Responses, false) => {
            let response = response(ask, answer, stamp, Status::Completed);
            Reply::unary(answer, case, response)
        }
        (_, _, true) => events(answer, case, chat_events(ask, answer, stamp)),
        (_, _, false) => Reply::unary(answer, case, chat(ask, answer, stamp)),
    };
    let millis = reply.latency.as_millis().to_string();
    signed(limits(reply, ask), stamp).with("openai-processing-ms", millis)
}

pub(super) fn refuse(refusal: &Refusal, stamp: &Stamp) -> Reply {
    let (status, message, code) = match refusal {
        Refusal::NoSuchPath => (
            StatusCode::NOT_FOUND,
            "Invalid URL".to_owned(),
            "null".to_owned(),
        ),
        Refusal::NoKey => (
            StatusCode::UNAUTHORIZED,
            "You didn't provide an API key. You need to provide your API key in an Authorization \
             header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
                .to_owned(),
            "null".to_owned(),
        ),
        Refusal::TooLong => (
            StatusCode::PAYLOAD_TOO_LARGE,
            "The request is too large.".to_owned(),
            "null".to_owned(),
        ),
        Refusal::Malformed => (
            StatusCode::BAD_REQUEST,
            "We could not parse the JSON body of your request.".to_owned(),
            "null".to_owned(),
        ),
        Refusal::NoSuchModel(name) => (
            StatusCode::NOT_FOUND,
            format!("The model `{name}` does not exist or you do not have access to it."),
            quoted("model_not_found"),
        ),
    };
    signed(
        error(status, &message, "invalid_request_error", &code),
        stamp,
    )
}

/// The headers that every answer carries.
fn signed(reply: Reply, stamp: &Stamp) -> Reply {
    reply
        .with("x-request-id", format!("req_{}", stamp.id))
        .with("openai-version", "2020-10-01")
        .with("openai-organization", "org-demo")
        .with("openai-project", "proj_demo")
}

/// The headroom that every answer about a model states.
fn limits(reply: Reply, ask: &Ask) -> Reply {
    let mut dice = ask.dice.clone();
    reply
        .with("x-ratelimit-limit-requests", "10000")
        .with(
            "x-ratelimit-remaining-requests",
            dice.between((9_700, 9_999)).to_string(),
        )
        .with("x-ratelimit-reset-requests", "6ms")
        .with("x-ratelimit-limit-tokens", "2000000")
        .with(
            "x-ratelimit-remaining-tokens",
            dice.between((1_700_000, 1_999_000)).to_string(),
        )
        .with("x-ratelimit-reset-tokens", "30ms")
}

/// `code` is JSON, because it may be null.
fn error(status: StatusCode, message: &str, kind: &str, code: &str) -> Reply {
    let message = quoted(message);
    Reply::json(
        status,
        format!(
            "{{\n    \"error\": {{\n        \"message\": {message},\n        \"type\": \"{kind}\",\n        \
             \"param\": null,\n        \"code\": {code}\n    }}\n}}\n"
        ),
    )
}

fn rate_limited(ask: &Ask) -> Reply {
    let message = format!(
        "Rate limit reached for {} in organization org-demo on tokens per min (TPM): Limit \
         2000000, Used 1999412, Requested 1204. Please try again in 18ms. Visit \
         https://platform.openai.com/account/rate-limits to learn more.",
        ask.model.id
    );
    let code = quoted("rate_limit_exceeded");
    error(StatusCode::TOO_MANY_REQUESTS, &message, "tokens", &code)
        .with("retry-after-ms", "18")
        .with("retry-after", "1")
}

fn quota_exhausted() -> Reply {
    error(
        StatusCode::TOO_MANY_REQUESTS,
        "You exceeded your current quota, please check your plan and billing details. For more \
         information on this error, read the docs: \
         https://platform.openai.com/docs/guides/error-codes/api-errors.",
        "insufficient_quota",
        &quoted("insufficient_quota"),
    )
}

fn overloaded() -> Reply {
    error(
        overload_status(Vendor::OpenAi),
        "The server is currently overloaded with other requests. Sorry about that! You can retry \
         your request.",
        "server_error",
        &quoted("server_error"),
    )
}

fn events(answer: &Answer, case: Case, events: Events) -> Reply {
    Reply::stream(answer, case, events).with("content-type", "text/event-stream; charset=utf-8")
}

fn models(stamp: &Stamp) -> Reply {
    let created = stamp.created_seconds;
    let models: Vec<String> = Model::all(Vendor::OpenAi)
        .map(|model| {
            let id = model.id;
            format!(r#"{{"id":"{id}","object":"model","created":{created},"owned_by":"system"}}"#)
        })
        .collect();
    let models = models.join(",");
    Reply::json(
        StatusCode::OK,
        format!(r#"{{"object":"list","data":[{models}]}}"#),
    )
}

fn finish_reason(answer: &Answer) -> &'static str {
    match answer.is_cut_short {
        true => "length",
        false => "stop",
    }
}

fn chat_usage(answer: &Answer) -> String {
    let Answer {
        input,
        output,
        cache_read,
        cache_write,
        reasoning,
        ..
    } = answer;
    let total = input + output;
    format!(
        r#"{{"prompt_tokens":{input},"completion_tokens":{output},"total_tokens":{total},"prompt_tokens_details":{{"cached_tokens":{cache_read},"audio_tokens":0,"cache_write_tokens":{cache_write}}},"completion_tokens_details":{{"reasoning_tokens":{reasoning},"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}}}"#
    )
}

fn chat(ask: &Ask, answer: &Answer, stamp: &Stamp) -> String {
    let (id, created, model) = (&stamp.id, stamp.created_seconds, ask.model.served);
    let (text, finish, usage) = (
        quoted(&answer.text()),
        finish_reason(answer),
        chat_usage(answer),
    );
    format!(
        r#"{{"id":"chatcmpl-{id}","object":"chat.completion","created":{created},"model":"{model}","choices":[{{"index":0,"message":{{"role":"assistant","content":{text},"refusal":null,"annotations":[]}},"logprobs":null,"finish_reason":"{finish}"}}],"usage":{usage},"service_tier":"default","system_fingerprint":"fp_{model}"}}"#
    )
}

fn chat_events(ask: &Ask, answer: &Answer, stamp: &Stamp) -> Events {
    let (id, created, model) = (&stamp.id, stamp.created_seconds, ask.model.served);
    let chunk = |choices: &str, usage: &str| {
        let usage = match (ask.includes_usage, usage) {
            (false, _) => String::new(),
            (true, usage) => format!(r#","usage":{usage}"#),
        };
        format!(
            "data: {{\"id\":\"chatcmpl-{id}\",\"object\":\"chat.completion.chunk\",\
             \"created\":{created},\"model\":\"{model}\",\"service_tier\":\"default\",\
             \"system_fingerprint\":\"fp_{model}\",\"choices\":[{choices}]{usage},\
             \"obfuscation\":\"{}\"}}\n\n",
            "x".repeat(choices.len() % 8)
        )
    };
    let choice = |delta: &str, finish: &str| {
        format!(r#"{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish}}}"#)
    };
    let role = choice(
        r#"{"role":"assistant","content":"","refusal":null}"#,
        "null",
    );
    let finish = choice("{}", &quoted(finish_reason(answer)));
    let mut closing = vec![chunk(&finish, "null")];
    if ask.includes_usage {
        closing.push(chunk("", &chat_usage(answer)));
    }
    closing.push("data: [DONE]\n\n".to_owned());
    let delta = |piece: &String| {
        let delta = format!(r#"{{"content":{}}}"#, quoted(piece));
        chunk(&choice(&delta, "null"), "null")
    };
    Events {
        opening: vec![chunk(&role, "null")],
        deltas: answer.pieces.iter().map(delta).collect(),
        closing,
        failure: vec![
            "data: {\"error\":{\"message\":\"The server had an error while processing your \
             request. Sorry about that!\",\"type\":\"server_error\",\"param\":null,\"code\":null}}\
             \n\n"
                .to_owned(),
        ],
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    InProgress,
    Completed,
    Failed,
}

/// The response object, as it is at some point of its life.
fn response(ask: &Ask, answer: &Answer, stamp: &Stamp, status: Status) -> String {
    let (id, created, model) = (&stamp.id, stamp.created_seconds, ask.model.served);
    let (word, details) = match (status, answer.is_cut_short) {
        (Status::InProgress, _) => ("in_progress", "null"),
        (Status::Failed, _) => ("failed", "null"),
        (Status::Completed, true) => ("incomplete", r#"{"reason":"max_output_tokens"}"#),
        (Status::Completed, false) => ("completed", "null"),
    };
    let error = match status {
        Status::Failed => {
            r#"{"code":"server_error","message":"The model failed to generate a response."}"#
        }
        _ => "null",
    };
    let (output, usage) = match status {
        Status::Completed => (message(answer, stamp), response_usage(answer)),
        _ => (String::new(), "null".to_owned()),
    };
    format!(
        r#"{{"id":"resp_{id}","object":"response","created_at":{created},"status":"{word}","background":false,"error":{error},"incomplete_details":{details},"instructions":null,"max_output_tokens":null,"model":"{model}","output":[{output}],"parallel_tool_calls":true,"previous_response_id":null,"reasoning":{{"effort":"medium","summary":null}},"service_tier":"default","store":true,"temperature":1.0,"text":{{"format":{{"type":"text"}},"verbosity":"medium"}},"tool_choice":"auto","tools":[],"top_p":1.0,"truncation":"disabled","usage":{usage},"user":null,"metadata":{{}}}}"#
    )
}

fn message(answer: &Answer, stamp: &Stamp) -> String {
    let (id, text) = (&stamp.id, quoted(&answer.text()));
    format!(
        r#"{{"id":"msg_{id}","type":"message","status":"completed","content":[{{"type":"output_text","annotations":[],"logprobs":[],"text":{text}}}],"role":"assistant"}}"#
    )
}

fn response_usage(answer: &Answer) -> String {
    let Answer {
        input,
        output,
        cache_read,
        cache_write,
        reasoning,
        ..
    } = answer;
    let total = input + output;
    format!(
        r#"{{"input_tokens":{input},"input_tokens_details":{{"cached_tokens":{cache_read},"cache_write_tokens":{cache_write}}},"output_tokens":{output},"output_tokens_details":{{"reasoning_tokens":{reasoning}}},"total_tokens":{total}}}"#
    )
}

/// Numbers the events of a response as they are made.
struct Numbered(u64);

impl Numbered {
    fn event(&mut self, kind: &str, members: &str) -> String {
        let number = self.0;
        self.0 += 1;
        format!(
            "event: {kind}\ndata: \
             {{\"type\":\"{kind}\",\"sequence_number\":{number},{members}}}\n\n"
        )
    }
}

fn response_events(ask: &Ask, answer: &Answer, stamp: &Stamp) -> Events {
    let id = &stamp.id;
    let mut numbered = Numbered(0);
    let place = format!(r#""item_id":"msg_{id}","output_index":0,"content_index":0"#);
    let begun = format!(
        r#""response":{}"#,
        response(ask, answer, stamp, Status::InProgress)
    );
    let item = format!(
        r#""output_index":0,"item":{{"id":"msg_{id}","type":"message","status":"in_progress","content":[],"role":"assistant"}}"#
    );
    let part = |text: &str| {
        format!(
            r#"{place},"part":{{"type":"output_text","annotations":[],"logprobs":[],"text":{text}}}"#
        )
    };
    let opening = vec![
        numbered.event("response.created", &begun),
        numbered.event("response.in_progress", &begun),
        numbered.event("response.output_item.added", &item),
        numbered.event("response.content_part.added", &part("\"\"")),
    ];
    let deltas = answer
        .pieces
        .iter()
        .map(|piece| {
            let delta = format!(r#"{place},"delta":{},"logprobs":[]"#, quoted(piece));
            numbered.event("response.output_text.delta", &delta)
        })
        .collect();
    let text = quoted(&answer.text());
    let done = format!(r#"{place},"text":{text},"logprobs":[]"#);
    let item = format!(r#""output_index":0,"item":{}"#, message(answer, stamp));
    let ended = |status| format!(r#""response":{}"#, response(ask, answer, stamp, status));
    let last = match answer.is_cut_short {
        true => "response.incomplete",
        false => "response.completed",
    };
    let failed = numbered.event("response.failed", &ended(Status::Failed));
    Events {
        opening,
        deltas,
        closing: vec![
            numbered.event("response.output_text.done", &done),
            numbered.event("response.content_part.done", &part(&text)),
            numbered.event("response.output_item.done", &item),
            numbered.event(last, &ended(Status::Completed)),
        ],
        failure: vec![failed],
    }
}

/// The length of the vectors of `text-embedding-3-small`.
const DIMENSIONS: usize = 1536;

fn embeddings(ask: &Ask, answer: &Answer) -> String {
    let mut dice = ask.dice.clone();
    let vectors: Vec<String> = (0..ask.inputs)
        .map(|index| {
            let vector = vector(&mut dice);
            format!(r#"{{"object":"embedding","index":{index},"embedding":[{vector}]}}"#)
        })
        .collect();
    let (vectors, model, tokens) = (vectors.join(","), ask.model.served, answer.input);
    format!(
        r#"{{"object":"list","data":[{vectors}],"model":"{model}","usage":{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}}}"#
    )
}

fn vector(dice: &mut Dice) -> String {
    let component = |_| {
        let sign = if dice.chance(50) { "-" } else { "" };
        format!("{sign}0.0{:07}", dice.between((0, 9_999_999)))
    };
    let components: Vec<String> = (0..DIMENSIONS).map(component).collect();
    components.join(",")
}
