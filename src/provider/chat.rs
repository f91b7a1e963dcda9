//! The OpenAI dialect: chat and text completions, responses, embeddings, images, audio, and the
//! calls around them, as OpenAI defined them and some thirty vendors follow.
//!
//! Input and output tokens are wholes here, with cached, audio, image and reasoning tokens
//! inside (<https://platform.openai.com/docs/api-reference>). They are settled into disjoint
//! quantities; where parts exceed their whole, the whole wins.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use http::{HeaderMap, Method};
use rust_decimal::Decimal;

use super::cost::Costs;
use super::object::{elements, members, supersede, word};
use super::response::Quantity::{AudioSeconds, Breakdown, Object, Pages, Timings, VideoSeconds};
use super::response::{
    Counts, Field, Quantity, ResponseMeter, Row, Settled, Table, Vendor, set_known,
};
use super::route::{self, Route, Segments, route};
use super::{
    Call, JobCall, Meter, Part, Provider, RateLimit, RequestHead, RequestReader, ResponseHead,
    common_rate_limits, job_operation, request,
};
use crate::record::Operation;
use crate::usage::{Unit, Usage};
use crate::wire::json::Step::{self, Each, Key};

/// A vendor that speaks the dialect.
pub(crate) struct Chat {
    name: Arc<str>,
    upstream: Option<&'static str>,
    vendor: &'static Vendor,
}

/// What holds for vendors of which nothing more is known.
pub(crate) static VENDOR: Vendor = Vendor {
    request_id_headers: &["x-request-id"],
    refine: |_| None,
};

impl Chat {
    /// A vendor that the configuration declares.
    pub(crate) fn declared(name: impl Into<Arc<str>>) -> Chat {
        Chat {
            name: name.into(),
            upstream: None,
            vendor: &VENDOR,
        }
    }

    /// A built-in vendor.
    pub(crate) fn built_in(
        name: &'static str,
        upstream: &'static str,
        vendor: &'static Vendor,
    ) -> Chat {
        Chat {
            name: name.into(),
            upstream: Some(upstream),
            vendor,
        }
    }
}

impl Provider for Chat {
    fn name(&self) -> &str {
        &self.name
    }

    fn default_upstream(&self) -> Option<&'static str> {
        self.upstream
    }

    fn recognise(&self, head: RequestHead<'_>) -> Call {
        recognise(head)
    }

    fn read_request(&self, call: &Call, head: RequestHead<'_>) -> Box<dyn RequestReader> {
        request::reader(call.operation, head)
    }

    fn meter(&self, call: &Call, head: ResponseHead<'_>) -> Box<dyn Meter> {
        Box::new(meter(call, head, self.vendor))
    }

    fn follow_up(&self, call: &Call, target: &str, job_id: &str) -> Option<String> {
        follow_up(call, target, job_id)
    }

    fn needs_usage_injection(&self, call: &Call) -> bool {
        states_usage_on_demand(call)
    }

    fn rate_limits(&self, headers: &HeaderMap) -> Vec<RateLimit> {
        common_rate_limits(headers)
    }
}

/// Whether a stream of that call states usage only when `include_usage` asks for it.
pub(crate) fn states_usage_on_demand(call: &Call) -> bool {
    matches!(call.operation, Operation::Chat | Operation::Completion)
}

/// How many segments may precede the path that OpenAI defined, such as `/openai/v1` (Groq),
/// `/inference/v1` (Fireworks) or `/api/paas/v4` (z.ai).
const PREFIX_SEGMENTS_MAX: usize = 4;

/// What a call is, wherever the vendor's prefix ends. A model in the query is the call's.
pub(crate) fn recognise(head: RequestHead<'_>) -> Call {
    let segments = Segments::of(head.path);
    let found = (0..=PREFIX_SEGMENTS_MAX).find_map(|start| {
        let (route, template) = route::find(ROUTES, "/v1", head.method, segments.from(start))?;
        let before = start.checked_sub(1).and_then(|index| segments.get(index));
        let template = if before == Some("v1") {
            route.template
        } else {
            template
        };
        let job = job(head.method, route.template, segments.get(start + 1));
        Some((route.operation, template, job))
    });
    let (operation, template, job) =
        found.unwrap_or_else(|| (route::unknown(head.method), route::UNKNOWN_ROUTE, None));
    let model = match operation {
        Operation::Realtime => route::query_value(head.query, "model").and_then(route::name),
        _ => None,
    };
    Call {
        operation,
        route: Cow::Borrowed(template),
        model,
        job,
    }
}

/// The place of a call of that template in the life of a job, where `id` would name the job.
fn job(method: &Method, template: &str, id: Option<&str>) -> Option<JobCall> {
    let asks = match template {
        "/v1/responses"
        | "/v1/videos"
        | "/v1/videos/edits"
        | "/v1/videos/extensions"
        | "/v1/videos/{id}/remix"
        | "/v1/batches" => {
            return Some(JobCall::Submit).filter(|_| method == Method::POST);
        }
        "/v1/responses/{id}" | "/v1/videos/{id}" | "/v1/batches/{id}" => Method::GET,
        "/v1/responses/{id}/cancel" | "/v1/batches/{id}/cancel" => Method::POST,
        _ => return None,
    };
    id.filter(|_| *method == asks)
        .and_then(route::name)
        .map(JobCall::Follow)
}

/// The path that tells how the job is that this call to `target` has submitted: beside it, below
/// whatever prefix the vendor has, by the same version of Azure's API.
pub(crate) fn follow_up(call: &Call, target: &str, job_id: &str) -> Option<String> {
    let collection = match call.operation {
        Operation::Video => "/videos",
        Operation::Batch => "/batches",
        _ => "/responses",
    };
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let (base, _) = path.split_once(collection)?;
    let version = route::query_value(query, "api-version")
        .map(|version| format!("?api-version={version}"))
        .unwrap_or_default();
    Some(format!("{base}{collection}/{job_id}{version}"))
}

/// The paths that OpenAI defined, and a few that its followers added. A vendor's prefix may
/// stand in the place of `/v1`.
static ROUTES: &[Route] = &[
    route("POST", "/v1/chat/completions", Operation::Chat),
    route("POST", "/v1/responses", Operation::Responses),
    route("POST", "/v1/embeddings", Operation::Embeddings),
    route("POST", "/v1/completions", Operation::Completion),
    route("POST", "/v1/fim/completions", Operation::Completion),
    route("POST", "/v1/rerank", Operation::Rerank),
    route("POST", "/v1/images/generations", Operation::Image),
    route("POST", "/v1/images/edits", Operation::Image),
    route("POST", "/v1/images/variations", Operation::Image),
    route("POST", "/v1/audio/speech", Operation::Speech),
    route("POST", "/v1/audio/transcriptions", Operation::Transcription),
    route("POST", "/v1/audio/translations", Operation::Transcription),
    route("POST", "/v1/moderations", Operation::Moderation),
    route("*", "/v1/chat/completions/{id}/*", Operation::Control),
    route("POST", "/v1/responses/compact", Operation::Responses),
    route("POST", "/v1/responses/input_tokens", Operation::CountTokens),
    route("*", "/v1/responses/{id}/cancel", Operation::Control),
    route("*", "/v1/responses/{id}/input_items", Operation::Control),
    route("*", "/v1/responses/{id}", Operation::Control),
    route("*", "/v1/models", Operation::Models),
    route("*", "/v1/models/*", Operation::Models),
    route("POST", "/v1/batches", Operation::Batch),
    route("*", "/v1/batches/{id}/cancel", Operation::Control),
    route("*", "/v1/batches/{id}", Operation::Control),
    route("*", "/v1/batches", Operation::Control),
    route("*", "/v1/files/{id}/content", Operation::Files),
    route("*", "/v1/files/{id}", Operation::Files),
    route("*", "/v1/files", Operation::Files),
    route("*", "/v1/uploads/*", Operation::Files),
    route("POST", "/v1/videos", Operation::Video),
    route("POST", "/v1/videos/edits", Operation::Video),
    route("POST", "/v1/videos/extensions", Operation::Video),
    route("POST", "/v1/videos/{id}/remix", Operation::Video),
    route("*", "/v1/videos/{id}/content", Operation::Control),
    route("*", "/v1/videos/{id}", Operation::Control),
    route("GET", "/v1/realtime", Operation::Realtime),
    route("POST", "/v1/realtime/calls", Operation::Realtime),
    route("POST", "/v1/realtime/*", Operation::Control),
    route("POST", "/v1/fine_tuning/jobs", Operation::Training),
    route("*", "/v1/fine_tuning/*", Operation::Control),
    route("POST", "/v1/threads/runs", Operation::Other),
    route("POST", "/v1/threads/{id}/runs", Operation::Other),
    route(
        "POST",
        "/v1/threads/{id}/runs/{id}/submit_tool_outputs",
        Operation::Other,
    ),
    route("*", "/v1/threads/*", Operation::Control),
    route("*", "/v1/assistants/*", Operation::Control),
    route("*", "/v1/conversations/*", Operation::Control),
    route("*", "/v1/vector_stores/*", Operation::Control),
    route("*", "/v1/organization/*", Operation::Control),
    route("POST", "/v1/ocr", Operation::Other),
];

/// A meter for a response of the dialect.
pub(crate) fn meter(
    call: &Call,
    head: ResponseHead<'_>,
    vendor: &'static Vendor,
) -> ResponseMeter<ChatCounts> {
    // What follows a job shows what its submit would show at its end.
    let operation = match &call.job {
        Some(JobCall::Follow(_)) => job_operation(&call.route),
        _ => call.operation,
    };
    let table: &'static Table = match operation {
        Operation::Responses => &RESPONSES,
        Operation::Image | Operation::Speech | Operation::Transcription | Operation::Video => {
            &MEDIA
        }
        Operation::Batch => &BATCH,
        _ => &COMPLETIONS,
    };
    ResponseMeter::new(table, vendor, operation, head).of_job(call.job.as_ref())
}

/// Completions and whatever else states `usage` at the top, whole or in chunks.
static COMPLETIONS: LazyLock<Table> = LazyLock::new(|| Table::new(COMPLETION_ROWS));
const DELTA: [Step; 3] = [Key("choices"), Each, Key("delta")];
const COMPLETION_ROWS: &[Row] = &[
    (Field::Model, &[Key("model")]),
    (Field::RequestId, &[Key("id")]),
    (Field::UpstreamProvider, &[Key("provider")]),
    (Field::ServiceTier, &[Key("service_tier")]),
    (
        Field::FinishReason,
        &[Key("choices"), Each, Key("finish_reason")],
    ),
    (Field::Usage(Object), &[Key("usage")]),
    // Groq states usage here in streams that were not asked for any. With both, both are the
    // same usage.
    (Field::Usage(Object), &[Key("x_groq"), Key("usage")]),
    (Field::Usage(Breakdown), &[Key("usage_breakdown")]),
    (
        Field::Usage(Breakdown),
        &[Key("x_groq"), Key("usage_breakdown")],
    ),
    // Moonshot, in streams.
    (Field::Usage(Object), &[Key("choices"), Each, Key("usage")]),
    // llama.cpp, also where no usage was asked for.
    (Field::Usage(Timings), &[Key("timings")]),
    // Mistral's OCR.
    (
        Field::Usage(Pages),
        &[Key("usage_info"), Key("pages_processed")],
    ),
    (
        Field::Content,
        &[DELTA[0], DELTA[1], DELTA[2], Key("content")],
    ),
    (
        Field::Content,
        &[DELTA[0], DELTA[1], DELTA[2], Key("reasoning")],
    ),
    (
        Field::Content,
        &[DELTA[0], DELTA[1], DELTA[2], Key("reasoning_content")],
    ),
    (
        Field::Content,
        &[DELTA[0], DELTA[1], DELTA[2], Key("reasoning_details")],
    ),
    (
        Field::Content,
        &[DELTA[0], DELTA[1], DELTA[2], Key("tool_calls")],
    ),
    (
        Field::Content,
        &[DELTA[0], DELTA[1], DELTA[2], Key("function_call")],
    ),
    (
        Field::Content,
        &[DELTA[0], DELTA[1], DELTA[2], Key("audio")],
    ),
    (
        Field::Content,
        &[DELTA[0], DELTA[1], DELTA[2], Key("images")],
    ),
    (
        Field::Refusal,
        &[DELTA[0], DELTA[1], DELTA[2], Key("refusal")],
    ),
    (
        Field::Refusal,
        &[Key("choices"), Each, Key("message"), Key("refusal")],
    ),
    (Field::Content, &[Key("choices"), Each, Key("text")]),
    (Field::Error, &[Key("error")]),
    (Field::ErrorText, &[Key("error")]),
    (Field::ErrorCode, &[Key("error"), Key("code")]),
    (Field::ErrorType, &[Key("error"), Key("type")]),
    (Field::ErrorMessage, &[Key("error"), Key("message")]),
    (
        Field::ErrorExact,
        &[Key("error"), Key("metadata"), Key("error_type")],
    ),
    (
        Field::ErrorFlag,
        &[Key("error"), Key("metadata"), Key("reasons")],
    ),
    (Field::Error, &[Key("choices"), Each, Key("error")]),
    (
        Field::ErrorCode,
        &[Key("choices"), Each, Key("error"), Key("code")],
    ),
    (
        Field::ErrorMessage,
        &[Key("choices"), Each, Key("error"), Key("message")],
    ),
    (
        Field::ErrorExact,
        &[
            Key("choices"),
            Each,
            Key("error"),
            Key("metadata"),
            Key("error_type"),
        ],
    ),
    // vLLM: the event itself is the error.
    (Field::Type, &[Key("object")]),
    (Field::OwnType, &[Key("type")]),
    (Field::OwnCode, &[Key("code")]),
    (Field::OwnMessage, &[Key("message")]),
];

/// The Responses API: a response, or events of which some hold one.
static RESPONSES: LazyLock<Table> = LazyLock::new(|| Table::new(RESPONSE_ROWS));
const IN: Step = Key("response");
const RESPONSE_ROWS: &[Row] = &[
    (Field::Type, &[Key("type")]),
    (Field::Model, &[Key("model")]),
    (Field::Model, &[IN, Key("model")]),
    (Field::RequestId, &[Key("id")]),
    (Field::RequestId, &[IN, Key("id")]),
    (Field::UpstreamProvider, &[Key("provider")]),
    (Field::UpstreamProvider, &[IN, Key("provider")]),
    (Field::ServiceTier, &[Key("service_tier")]),
    (Field::ServiceTier, &[IN, Key("service_tier")]),
    (Field::Status, &[Key("status")]),
    (Field::Status, &[IN, Key("status")]),
    (Field::Background, &[Key("background")]),
    (Field::Background, &[IN, Key("background")]),
    (
        Field::IncompleteReason,
        &[Key("incomplete_details"), Key("reason")],
    ),
    (
        Field::IncompleteReason,
        &[IN, Key("incomplete_details"), Key("reason")],
    ),
    (Field::Usage(Object), &[Key("usage")]),
    (Field::Usage(Object), &[IN, Key("usage")]),
    (Field::Item, &[Key("output"), Each]),
    (Field::ItemType, &[Key("output"), Each, Key("type")]),
    (
        Field::ItemAction,
        &[Key("output"), Each, Key("action"), Key("type")],
    ),
    (
        Field::ContentType,
        &[Key("output"), Each, Key("content"), Each, Key("type")],
    ),
    (Field::Item, &[IN, Key("output"), Each]),
    (Field::ItemType, &[IN, Key("output"), Each, Key("type")]),
    (
        Field::ItemAction,
        &[IN, Key("output"), Each, Key("action"), Key("type")],
    ),
    (
        Field::ContentType,
        &[IN, Key("output"), Each, Key("content"), Each, Key("type")],
    ),
    (Field::Item, &[Key("item")]),
    (Field::ItemType, &[Key("item"), Key("type")]),
    (
        Field::ItemAction,
        &[Key("item"), Key("action"), Key("type")],
    ),
    (Field::Error, &[Key("error")]),
    (Field::ErrorText, &[Key("error")]),
    (Field::ErrorCode, &[Key("error"), Key("code")]),
    (Field::ErrorType, &[Key("error"), Key("type")]),
    (Field::ErrorMessage, &[Key("error"), Key("message")]),
    (
        Field::ErrorExact,
        &[Key("error"), Key("metadata"), Key("error_type")],
    ),
    (Field::ErrorExact, &[Key("error_type")]),
    (Field::Error, &[IN, Key("error")]),
    (Field::ErrorCode, &[IN, Key("error"), Key("code")]),
    (Field::ErrorMessage, &[IN, Key("error"), Key("message")]),
    (Field::ErrorExact, &[IN, Key("error_type")]),
    (Field::OwnCode, &[Key("code")]),
    (Field::OwnMessage, &[Key("message")]),
];

/// Images, speech, transcriptions and videos.
static MEDIA: LazyLock<Table> = LazyLock::new(|| Table::new(MEDIA_ROWS));
const MEDIA_ROWS: &[Row] = &[
    (Field::Type, &[Key("type")]),
    (Field::Model, &[Key("model")]),
    (Field::RequestId, &[Key("id")]),
    (Field::GenerationId, &[Key("generation_id")]),
    (Field::UpstreamProvider, &[Key("provider")]),
    (Field::ServiceTier, &[Key("service_tier")]),
    (Field::Status, &[Key("status")]),
    (Field::Usage(Object), &[Key("usage")]),
    (Field::Usage(AudioSeconds), &[Key("duration")]),
    (Field::Usage(VideoSeconds), &[Key("seconds")]),
    (Field::Size, &[Key("size")]),
    (Field::Images, &[Key("data")]),
    (Field::Error, &[Key("error")]),
    (Field::ErrorText, &[Key("error")]),
    (Field::ErrorCode, &[Key("error"), Key("code")]),
    (Field::ErrorType, &[Key("error"), Key("type")]),
    (Field::ErrorMessage, &[Key("error"), Key("message")]),
    (
        Field::ErrorExact,
        &[Key("error"), Key("metadata"), Key("error_type")],
    ),
    (Field::OwnCode, &[Key("code")]),
    (Field::OwnMessage, &[Key("message")]),
];

/// Batches, which state the usage of all their requests once they are over.
static BATCH: LazyLock<Table> = LazyLock::new(|| Table::new(BATCH_ROWS));
const FAULT: [Step; 3] = [Key("errors"), Key("data"), Each];
const BATCH_ROWS: &[Row] = &[
    (Field::Model, &[Key("model")]),
    (Field::RequestId, &[Key("id")]),
    (Field::Status, &[Key("status")]),
    (Field::Usage(Object), &[Key("usage")]),
    // What is wrong with the input.
    (Field::Error, &FAULT),
    (
        Field::ErrorCode,
        &[FAULT[0], FAULT[1], FAULT[2], Key("code")],
    ),
    (
        Field::ErrorMessage,
        &[FAULT[0], FAULT[1], FAULT[2], Key("message")],
    ),
];

/// The usage of the dialect, field by field as it was last stated.
#[derive(Debug, Clone, Default)]
pub(crate) struct ChatCounts {
    /// All input tokens, and those of them that are told apart.
    input: Option<Decimal>,
    cached: Option<Decimal>,
    cached_audio: Option<Decimal>,
    cached_image: Option<Decimal>,
    cache_write: Option<Decimal>,
    input_audio: Option<Decimal>,
    input_image: Option<Decimal>,
    /// All output tokens, and those of them that are told apart.
    output: Option<Decimal>,
    reasoning: Option<Decimal>,
    output_audio: Option<Decimal>,
    output_image: Option<Decimal>,
    /// Whether the output was told apart at all.
    has_output_details: bool,
    total: Option<Decimal>,
    /// Reasoning beside the output (Perplexity).
    reasoning_beside: Option<Decimal>,
    audio_seconds: Option<Decimal>,
    searches: Option<Decimal>,
    search_units: Option<Decimal>,
    pages: Option<Decimal>,
    costs: Costs,
    /// llama.cpp's own measures: input evaluated, input taken from its cache, output.
    timed_input: Option<Decimal>,
    timed_cached: Option<Decimal>,
    timed_output: Option<Decimal>,
    /// What is stated beside usage.
    duration: Option<Decimal>,
    video_seconds: Option<Decimal>,
    /// The same usage by model.
    breakdown: Vec<(String, ChatCounts)>,
}

/// Whether both input and output must be stated.
fn generates_text(operation: Operation) -> bool {
    matches!(
        operation,
        Operation::Chat | Operation::Completion | Operation::Responses
    )
}

impl Counts for ChatCounts {
    fn read(&mut self, quantity: Quantity, text: &str) -> bool {
        match quantity {
            Object => members(text, &mut |key, text| self.usage_member(key, text)),
            Timings => members(text, &mut |key, text| match key {
                "prompt_n" => supersede(&mut self.timed_input, text),
                "cache_n" => supersede(&mut self.timed_cached, text),
                "predicted_n" => supersede(&mut self.timed_output, text),
                _ => {}
            }),
            Breakdown => self.read_breakdown(text),
            // A member of that name may be something else at another vendor.
            Pages => {
                supersede(&mut self.pages, text);
                true
            }
            AudioSeconds => {
                supersede(&mut self.duration, text);
                true
            }
            VideoSeconds => {
                supersede(&mut self.video_seconds, text);
                true
            }
        }
    }

    fn settle(&self, operation: Operation, _served: Option<&str>) -> Settled {
        let mut settled = Settled {
            stated_cost: self.costs.stated(),
            ..Settled::default()
        };
        let mut usage = Usage::new();
        let inferred = self.with_inferred_output(operation);
        settled.is_estimated = inferred.is_some();
        let counts = inferred.as_ref().unwrap_or(self);
        settled.is_inconsistent = !counts.settle_tokens(operation, &mut usage);
        settled.is_lacking =
            generates_text(operation) && counts.input.is_some() != counts.output.is_some();
        set_known(&mut usage, Unit::AudioSecond, self.audio_seconds);
        set_known(&mut usage, Unit::Search, self.searches);
        set_known(&mut usage, Unit::BillableUnit, self.search_units);
        set_known(&mut usage, Unit::Page, self.pages);
        if operation == Operation::Transcription && usage.is_empty() && self.duration.is_some() {
            // Without usage the length of the audio is what comes nearest to it.
            set_known(&mut usage, Unit::AudioSecond, self.duration);
            settled.is_estimated = true;
        }
        if operation == Operation::Video {
            set_known(&mut usage, Unit::VideoSecond, self.video_seconds);
        }
        if usage.is_empty() {
            return settled;
        }
        let parts = self.settle_breakdown(operation);
        let is_split = !parts.is_empty();
        if is_split && Usage::total_of(parts.iter().map(|part| &part.usage)) == usage {
            settled.parts = parts;
        } else {
            settled.is_inconsistent |= is_split;
            settled.parts = vec![Part { model: None, usage }];
        }
        settled
    }
}

impl ChatCounts {
    fn usage_member(&mut self, key: &str, text: &str) {
        match key {
            "prompt_tokens" | "input_tokens" => supersede(&mut self.input, text),
            "completion_tokens" | "output_tokens" => supersede(&mut self.output, text),
            "total_tokens" => supersede(&mut self.total, text),
            "prompt_tokens_details"
            | "prompt_token_details"
            | "input_tokens_details"
            | "input_token_details" => {
                members(text, &mut |key, text| self.input_detail(key, text));
            }
            "completion_tokens_details"
            | "completion_token_details"
            | "output_tokens_details"
            | "output_token_details" => {
                members(text, &mut |key, text| self.output_detail(key, text));
            }
            // Moonshot, Mistral and DeepSeek, beside or in place of the detail.
            "cached_tokens" | "num_cached_tokens" | "prompt_cache_hit_tokens" => {
                supersede(&mut self.cached, text);
            }
            "reasoning_tokens" => supersede(&mut self.reasoning_beside, text),
            "seconds" | "prompt_audio_seconds" => supersede(&mut self.audio_seconds, text),
            // OpenRouter; what is in `tool_calls_requested` is the same.
            "server_tool_use_details" | "server_tool_use" => {
                members(text, &mut |key, text| {
                    if key == "web_search_requests" {
                        supersede(&mut self.searches, text);
                    }
                });
            }
            // Perplexity.
            "num_search_queries" => supersede(&mut self.searches, text),
            // What rerankers bill by.
            "search_units" => supersede(&mut self.search_units, text),
            _ => {
                self.costs.read(key, text);
            }
        }
    }

    fn input_detail(&mut self, key: &str, text: &str) {
        match key {
            "cached_tokens" => supersede(&mut self.cached, text),
            "cache_write_tokens" => supersede(&mut self.cache_write, text),
            "audio_tokens" => supersede(&mut self.input_audio, text),
            "image_tokens" => supersede(&mut self.input_image, text),
            "cached_tokens_details" => {
                members(text, &mut |key, text| match key {
                    "audio_tokens" => supersede(&mut self.cached_audio, text),
                    "image_tokens" => supersede(&mut self.cached_image, text),
                    _ => {}
                });
            }
            _ => {}
        }
    }

    fn output_detail(&mut self, key: &str, text: &str) {
        match key {
            "reasoning_tokens" => supersede(&mut self.reasoning, text),
            "audio_tokens" => supersede(&mut self.output_audio, text),
            "image_tokens" => supersede(&mut self.output_image, text),
            "text_tokens" => {}
            _ => return,
        }
        self.has_output_details = true;
    }

    fn read_breakdown(&mut self, text: &str) -> bool {
        let mut breakdown = Vec::new();
        let is_object = members(text, &mut |key, text| {
            if key == "models" {
                elements(text, &mut |text| {
                    let mut model = None;
                    let mut counts = ChatCounts::default();
                    members(text, &mut |key, text| match key {
                        "model" => model = word(text.as_bytes()).map(Cow::into_owned),
                        "usage" => {
                            counts.read(Object, text);
                        }
                        _ => {}
                    });
                    if let Some(model) = model {
                        breakdown.push((model, counts));
                    }
                });
            }
        });
        self.breakdown = breakdown;
        is_object
    }

    /// The same counts with the output that the total leaves over, where none is stated: the
    /// legacy completions omit it when it is zero.
    fn with_inferred_output(&self, operation: Operation) -> Option<ChatCounts> {
        let (Some(input), None, Some(total)) = (self.input, self.output, self.total) else {
            return None;
        };
        (generates_text(operation) && total >= input).then(|| ChatCounts {
            output: Some(total - input),
            ..self.clone()
        })
    }

    fn settle_breakdown(&self, operation: Operation) -> Vec<Part> {
        let mut parts: Vec<Part> = Vec::new();
        for (model, counts) in &self.breakdown {
            let mut usage = Usage::new();
            counts.settle_tokens(operation, &mut usage);
            match parts
                .iter_mut()
                .find(|part| part.model.as_ref() == Some(model))
            {
                Some(part) => part.usage = Usage::total_of([&part.usage, &usage]),
                None => parts.push(Part {
                    model: Some(model.clone()),
                    usage,
                }),
            }
        }
        parts.retain(|part| !part.usage.is_empty());
        parts
    }

    /// Sets the disjoint token quantities; false if parts exceeded their whole.
    fn settle_tokens(&self, operation: Operation, usage: &mut Usage) -> bool {
        let is_unstated = self.input.is_none() && self.output.is_none() && self.total.is_none();
        if is_unstated && self.timed_output.is_some() {
            // What the cache gave was not evaluated.
            set_known(usage, Unit::Input, self.timed_input);
            set_known(usage, Unit::CacheRead, self.timed_cached);
            set_known(usage, Unit::Output, self.timed_output);
            return true;
        }

        let has_input_only = matches!(operation, Operation::Embeddings | Operation::Rerank);
        let input = if has_input_only {
            // Voyage and rerankers state a total alone, and all of it was read.
            self.input.or(self.total)
        } else {
            self.input
        };
        // Cached audio and images are cache reads; the rest of them is not.
        let beside_cache = |all: Option<Decimal>, cached: Option<Decimal>| match (all, cached) {
            (Some(all), Some(cached)) => Some(all.saturating_sub(cached).max(Decimal::ZERO)),
            (all, _) => all,
        };
        let is_input_whole = split(
            input,
            &[
                (Unit::CacheRead, self.cached),
                (Unit::CacheWrite, self.cache_write),
                (
                    Unit::InputAudio,
                    beside_cache(self.input_audio, self.cached_audio),
                ),
                (
                    Unit::InputImage,
                    beside_cache(self.input_image, self.cached_image),
                ),
            ],
            Unit::Input,
            usage,
        );

        let (reasoning_inside, reasoning_beside) = self.place_reasoning();
        // Neither the image nor the speech models tell their output apart, which is all of one
        // kind: https://platform.openai.com/docs/pricing.
        let rest = match operation {
            Operation::Image if !self.has_output_details => Unit::OutputImage,
            Operation::Speech if !self.has_output_details => Unit::OutputAudio,
            _ => Unit::Output,
        };
        let is_output_whole = split(
            self.output,
            &[
                (Unit::Reasoning, reasoning_inside),
                (Unit::OutputAudio, self.output_audio),
                (Unit::OutputImage, self.output_image),
            ],
            rest,
            usage,
        );
        if let Some(beside) = reasoning_beside {
            let inside = usage.get(Unit::Reasoning).unwrap_or_default();
            usage.set(Unit::Reasoning, inside.saturating_add(beside));
        }
        is_input_whole && is_output_whole
    }

    /// Reasoning tokens inside the output, and those beside it.
    ///
    /// Inside is the rule. xAI and Gemini's compatible API count them beside, and their total
    /// shows it. Perplexity's are a member of the usage itself and billed beside the output.
    fn place_reasoning(&self) -> (Option<Decimal>, Option<Decimal>) {
        if let (Some(reasoning), Some(input), Some(output), Some(total)) =
            (self.reasoning, self.input, self.output, self.total)
            && !reasoning.is_zero()
            && input.saturating_add(output).saturating_add(reasoning) == total
        {
            return (None, Some(reasoning));
        }
        match (self.reasoning, self.reasoning_beside) {
            (Some(inside), _) => (Some(inside), None),
            (None, Some(beside)) if self.searches.is_some() => (None, Some(beside)),
            (None, inside) => (inside, None),
        }
    }
}

/// Splits a whole into parts and the rest, each part at most what is left; without a whole the
/// parts stand alone. False if the parts exceeded the whole.
fn split(
    whole: Option<Decimal>,
    parts: &[(Unit, Option<Decimal>)],
    rest: Unit,
    usage: &mut Usage,
) -> bool {
    let mut left = whole;
    let mut fits = true;
    for (unit, quantity) in parts {
        let Some(quantity) = *quantity else { continue };
        let taken = left.map_or(quantity, |left| quantity.min(left));
        fits &= taken == quantity;
        left = left.map(|left| left - taken);
        usage.set(*unit, taken);
    }
    if let Some(left) = left {
        usage.set(rest, left);
    }
    fits
}
