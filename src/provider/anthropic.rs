//! Anthropic's Messages API, spoken by Anthropic, by Azure's Foundry and by OpenRouter.
//!
//! Unlike OpenAI's, `input_tokens` does not include cached tokens, and the usage of a stream
//! begins in `message_start` and is superseded field by field by `message_delta`
//! (<https://docs.anthropic.com/en/api/messages>).

use std::borrow::Cow;
use std::sync::LazyLock;

use http::HeaderMap;
use rust_decimal::Decimal;

use super::cost::Costs;
use super::object::{elements, members, supersede, word};
use super::response::Quantity::{self, Object};
use super::response::{Counts, Field, ResponseMeter, Row, Settled, Table, Vendor, set_known};
use super::route::{self, Route, Segments, route};
use super::{
    Call, Meter, Part, Provider, RateLimit, RequestHead, RequestReader, ResponseHead,
    anthropic_batch, chat, common_rate_limits, request,
};
use crate::record::Operation;
use crate::usage::{Unit, Usage};
use crate::wire::json::Selector;
use crate::wire::json::Step::{self, Key};

/// Route, configuration key and label.
pub(crate) const NAME: &str = "anthropic";

const UPSTREAM: &str = "https://api.anthropic.com";

/// The provider.
pub(crate) struct Anthropic;

static VENDOR: Vendor = Vendor {
    request_id_headers: &["request-id"],
    refine: |_| None,
};

static ROUTES: &[Route] = &[
    route("POST", "/v1/messages", Operation::Chat),
    route("POST", "/v1/messages/count_tokens", Operation::CountTokens),
    route("POST", anthropic_batch::BATCHES, Operation::Batch),
    route("GET", anthropic_batch::RESULTS, Operation::Control),
    route("POST", anthropic_batch::CANCEL, Operation::Control),
    route("*", anthropic_batch::BATCH, Operation::Control),
    route("*", anthropic_batch::BATCHES, Operation::Control),
    route("POST", "/v1/complete", Operation::Completion),
    // Compatible with OpenAI's.
    route("POST", COMPATIBLE, Operation::Chat),
    route("*", "/v1/models", Operation::Models),
    route("*", "/v1/models/{id}", Operation::Models),
    route("*", "/v1/files", Operation::Files),
    route("*", "/v1/files/{id}", Operation::Files),
    route("*", "/v1/files/{id}/content", Operation::Files),
    route("*", "/v1/skills/*", Operation::Control),
    route("*", "/v1/organizations/*", Operation::Control),
];

const COMPATIBLE: &str = "/v1/chat/completions";

impl Provider for Anthropic {
    fn name(&self) -> &str {
        NAME
    }

    fn default_upstream(&self) -> Option<&'static str> {
        Some(UPSTREAM)
    }

    fn recognise(&self, head: RequestHead<'_>) -> Call {
        recognise(head)
    }

    fn read_request(&self, call: &Call, head: RequestHead<'_>) -> Box<dyn RequestReader> {
        request::reader(call.operation, head)
    }

    fn meter(&self, call: &Call, head: ResponseHead<'_>) -> Box<dyn Meter> {
        if call.route == COMPATIBLE {
            Box::new(chat::meter(call, head, &VENDOR))
        } else if let Some(batch) = anthropic_batch::meter(call, head) {
            batch
        } else {
            Box::new(meter(call, head, &VENDOR))
        }
    }

    fn follow_up(&self, _call: &Call, target: &str, job_id: &str) -> Option<String> {
        anthropic_batch::follow_up(target, job_id)
    }

    fn job_urls(&self, call: &Call) -> Option<&'static Selector> {
        call.job.as_ref().map(|_| &*anthropic_batch::JOB_URLS)
    }

    fn needs_usage_injection(&self, _call: &Call) -> bool {
        false
    }

    fn rate_limits(&self, headers: &HeaderMap) -> Vec<RateLimit> {
        common_rate_limits(headers)
    }
}

/// What a call is.
pub(crate) fn recognise(head: RequestHead<'_>) -> Call {
    let segments = Segments::of(head.path);
    let (operation, template) = match route::find(ROUTES, "", head.method, segments.from(0)) {
        Some((route, template)) => (route.operation, template),
        None => (route::unknown(head.method), route::UNKNOWN_ROUTE),
    };
    Call {
        operation,
        route: Cow::Borrowed(template),
        model: None,
        job: anthropic_batch::job(head.method, template, segments.get(3)),
    }
}

/// A meter for a response of the Messages API.
pub(crate) fn meter(
    call: &Call,
    head: ResponseHead<'_>,
    vendor: &'static Vendor,
) -> ResponseMeter<MessageCounts> {
    ResponseMeter::new(&MESSAGES, vendor, call.operation, head)
}

static MESSAGES: LazyLock<Table> = LazyLock::new(|| Table::new(MESSAGE_ROWS));
const START: Step = Key("message");
const MESSAGE_ROWS: &[Row] = &[
    (Field::Type, &[Key("type")]),
    (Field::Model, &[Key("model")]),
    (Field::Model, &[START, Key("model")]),
    (Field::RequestId, &[Key("id")]),
    (Field::RequestId, &[START, Key("id")]),
    // OpenRouter.
    (Field::UpstreamProvider, &[Key("provider")]),
    (Field::UpstreamProvider, &[START, Key("provider")]),
    (Field::FinishReason, &[Key("stop_reason")]),
    (Field::FinishReason, &[START, Key("stop_reason")]),
    (Field::FinishReason, &[Key("delta"), Key("stop_reason")]),
    (Field::Usage(Object), &[Key("usage")]),
    (Field::Usage(Object), &[START, Key("usage")]),
    // The legacy text completions.
    (Field::Content, &[Key("completion")]),
    (Field::Error, &[Key("error")]),
    (Field::ErrorText, &[Key("error")]),
    (Field::ErrorCode, &[Key("error"), Key("code")]),
    (Field::ErrorType, &[Key("error"), Key("type")]),
    (Field::ErrorMessage, &[Key("error"), Key("message")]),
    (Field::ErrorExact, &[Key("error"), Key("error_type")]),
    (
        Field::ErrorExact,
        &[Key("error"), Key("details"), Key("error_code")],
    ),
];

/// The usage of a message, field by field as it was last stated.
#[derive(Debug, Clone, Default)]
pub(crate) struct MessageCounts {
    tokens: Tokens,
    searches: Option<Decimal>,
    service_tier: Option<String>,
    inference_geo: Option<String>,
    speed: Option<String>,
    iterations: Vec<Iteration>,
    costs: Costs,
}

#[derive(Debug, Clone, Default)]
struct Tokens {
    input: Option<Decimal>,
    cache_read: Option<Decimal>,
    /// All cache writes, and those of them whose lifetime is told.
    cache_write: Option<Decimal>,
    cache_write_5m: Option<Decimal>,
    cache_write_1h: Option<Decimal>,
    output: Option<Decimal>,
    /// Inside the output.
    thinking: Option<Decimal>,
}

#[derive(Debug, Clone, Default)]
struct Iteration {
    is_message: bool,
    model: Option<String>,
    tokens: Tokens,
}

impl Counts for MessageCounts {
    fn read(&mut self, quantity: Quantity, text: &str) -> bool {
        match quantity {
            Object => members(text, &mut |key, text| self.usage_member(key, text)),
            _ => true,
        }
    }

    fn settle(&self, _operation: Operation, served: Option<&str>) -> Settled {
        let (own, is_consistent) = self.tokens.settle();
        let mut settled = Settled {
            is_inconsistent: !is_consistent,
            is_lacking: self.tokens.input.is_some() != self.tokens.output.is_some(),
            stated_cost: self.costs.stated(),
            service_tier: match self.speed.as_deref() {
                Some("fast") => Some("fast".to_owned()),
                _ => self.service_tier.clone(),
            },
            region: self
                .inference_geo
                .clone()
                .filter(|geo| !matches!(&**geo, "global" | "not_available")),
            ..Settled::default()
        };
        settled.parts = if self.iterations.is_empty() {
            vec![Part {
                model: None,
                usage: own,
            }]
        } else {
            let (parts, are_consistent) = self.settle_iterations(served);
            settled.is_inconsistent |= !are_consistent;
            parts
        };
        if let Some(searches) = self.searches {
            match settled.parts.iter_mut().find(|part| part.model.is_none()) {
                Some(part) => part.usage.set(Unit::Search, searches),
                None => settled.parts.push(Part {
                    model: None,
                    usage: Usage::new().with(Unit::Search, searches),
                }),
            }
        }
        settled.parts.retain(|part| !part.usage.is_empty());
        settled
    }
}

impl MessageCounts {
    fn usage_member(&mut self, key: &str, text: &str) {
        match key {
            "server_tool_use" => {
                members(text, &mut |key, text| {
                    // Fetching a page is free.
                    if key == "web_search_requests" {
                        supersede(&mut self.searches, text);
                    }
                });
            }
            "service_tier" => supersede_word(&mut self.service_tier, text),
            "inference_geo" => supersede_word(&mut self.inference_geo, text),
            "speed" => supersede_word(&mut self.speed, text),
            "iterations" => self.read_iterations(text),
            _ => {
                if !self.tokens.read(key, text) {
                    self.costs.read(key, text);
                }
            }
        }
    }

    fn read_iterations(&mut self, text: &str) {
        let mut iterations = Vec::new();
        let is_array = elements(text, &mut |text| {
            let mut iteration = Iteration::default();
            members(text, &mut |key, text| match key {
                "type" => iteration.is_message = text == "\"message\"",
                "model" => supersede_word(&mut iteration.model, text),
                _ => {
                    iteration.tokens.read(key, text);
                }
            });
            iterations.push(iteration);
        });
        if is_array {
            self.iterations = iterations;
        }
    }

    /// A part for each iteration, and whether they agree with the usage of the whole.
    ///
    /// The usage at the top is the sum of the iterations of type `message` alone; compaction,
    /// an advisor and a fallback are billed beside it. Each iteration stays a part of its own,
    /// because the price of a long context is decided for each, and not for their sum.
    fn settle_iterations(&self, served: Option<&str>) -> (Vec<Part>, bool) {
        let messages = || {
            self.iterations
                .iter()
                .filter(|iteration| iteration.is_message)
        };
        let sum = Tokens::sum(messages().map(|iteration| &iteration.tokens));
        let is_sum = sum.wholes() == self.tokens.wholes();

        let mut is_consistent = is_sum || messages().next().is_none();
        let mut thinking = self.tokens.thinking.filter(|_| is_sum);
        let mut parts = Vec::new();
        for iteration in &self.iterations {
            let mut tokens = iteration.tokens.clone();
            if iteration.is_message && is_sum {
                if messages().count() == 1 {
                    tokens = self.tokens.clone();
                } else {
                    tokens.take_details(&self.tokens, &mut thinking);
                }
            }
            let (usage, fits) = tokens.settle();
            is_consistent &= fits;
            if !usage.is_empty() {
                let model = iteration.model.clone();
                parts.push(Part {
                    model: model.filter(|model| served != Some(model)),
                    usage,
                });
            }
        }
        (parts, is_consistent)
    }
}

impl Tokens {
    /// Takes a member of a usage object; false if it is none about tokens.
    fn read(&mut self, key: &str, text: &str) -> bool {
        match key {
            "input_tokens" => supersede(&mut self.input, text),
            "cache_read_input_tokens" => supersede(&mut self.cache_read, text),
            "cache_creation_input_tokens" => supersede(&mut self.cache_write, text),
            "output_tokens" => supersede(&mut self.output, text),
            "cache_creation" => {
                members(text, &mut |key, text| match key {
                    "ephemeral_5m_input_tokens" => supersede(&mut self.cache_write_5m, text),
                    "ephemeral_1h_input_tokens" => supersede(&mut self.cache_write_1h, text),
                    _ => {}
                });
            }
            "output_tokens_details" => {
                members(text, &mut |key, text| {
                    if key == "thinking_tokens" {
                        supersede(&mut self.thinking, text);
                    }
                });
            }
            _ => return false,
        }
        true
    }

    /// Takes over what only the usage at the top tells: thinking, of which `left` is not yet
    /// told to be anyone's, and the lifetime of cache writes, if one alone is in use.
    fn take_details(&mut self, top: &Tokens, left: &mut Option<Decimal>) {
        if let (None, Some(output), Some(left)) = (self.thinking, self.output, left) {
            let thinking = output.min(*left);
            self.thinking = Some(thinking);
            *left -= thinking;
        }
        if self.cache_write_5m.is_none() && self.cache_write_1h.is_none() {
            let is_used = |tokens: Option<Decimal>| tokens.is_some_and(|tokens| !tokens.is_zero());
            match (is_used(top.cache_write_5m), is_used(top.cache_write_1h)) {
                (true, false) => self.cache_write_5m = self.cache_write,
                (false, true) => self.cache_write_1h = self.cache_write,
                _ => {}
            }
        }
    }

    /// The quantities that every iteration states; for comparing sums, where what is not stated
    /// adds nothing.
    fn wholes(&self) -> [Decimal; 4] {
        [self.input, self.cache_read, self.cache_write, self.output].map(Option::unwrap_or_default)
    }

    fn sum<'a>(all: impl Iterator<Item = &'a Tokens>) -> Tokens {
        let mut sum = Tokens::default();
        for tokens in all {
            let [input, cache_read, cache_write, output] = tokens.wholes();
            for (slot, quantity) in [
                (&mut sum.input, input),
                (&mut sum.cache_read, cache_read),
                (&mut sum.cache_write, cache_write),
                (&mut sum.output, output),
            ] {
                *slot = Some(slot.unwrap_or_default().saturating_add(quantity));
            }
        }
        sum
    }

    /// The disjoint quantities, and whether the parts fit their wholes.
    fn settle(&self) -> (Usage, bool) {
        let mut usage = Usage::new();
        let mut fits = true;
        let mut set = |unit, quantity| set_known(&mut usage, unit, quantity);
        set(Unit::Input, self.input);
        set(Unit::CacheRead, self.cache_read);

        let (short, long) = (self.cache_write_5m, self.cache_write_1h);
        match self.cache_write {
            None => {
                set(Unit::CacheWrite5m, short);
                set(Unit::CacheWrite1h, long);
            }
            Some(all) if short.is_none() && long.is_none() => set(Unit::CacheWrite, Some(all)),
            Some(all) => {
                let (short, long) = (short.unwrap_or_default(), long.unwrap_or_default());
                // A total grows past its split when a stream states the split at its start only.
                // The excess is of the lifetime in use; with both or neither, of none that is
                // known.
                let excess = all.saturating_sub(short.saturating_add(long));
                if excess.is_sign_negative() && !excess.is_zero() {
                    fits = false;
                    let short = short.min(all);
                    set(Unit::CacheWrite5m, Some(short));
                    set(Unit::CacheWrite1h, Some(long.min(all - short)));
                } else {
                    let (more_short, more_long) = match (short.is_zero(), long.is_zero()) {
                        (false, true) => (excess, Decimal::ZERO),
                        (true, false) => (Decimal::ZERO, excess),
                        _ => {
                            if !excess.is_zero() {
                                set(Unit::CacheWrite, Some(excess));
                            }
                            (Decimal::ZERO, Decimal::ZERO)
                        }
                    };
                    set(Unit::CacheWrite5m, Some(short.saturating_add(more_short)));
                    set(Unit::CacheWrite1h, Some(long.saturating_add(more_long)));
                }
            }
        }

        match (self.output, self.thinking) {
            (Some(output), Some(thinking)) => {
                fits &= thinking <= output;
                let thinking = thinking.min(output);
                set(Unit::Reasoning, Some(thinking));
                set(Unit::Output, Some(output - thinking));
            }
            (output, thinking) => {
                set(Unit::Output, output);
                set(Unit::Reasoning, thinking);
            }
        }
        (usage, fits)
    }
}

fn supersede_word(known: &mut Option<String>, text: &str) {
    if let Some(later) = word(text.as_bytes())
        && known.as_deref() != Some(&*later)
    {
        *known = Some(later.into_owned());
    }
}
