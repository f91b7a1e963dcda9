//! Meters a response: finds the values that a dialect's table names, in JSON or in events, and
//! settles them into a [`Report`].
//!
//! A dialect is a table of paths and a [`Counts`] that knows its usage object; everything that
//! the dialects share is here. Memory is constant: no body and no event is held, only the
//! values that the table names, each within its limit.

use std::sync::LazyLock;

use rust_decimal::Decimal;

use super::failure::{self, Failure};
use super::object::{merge, word};
use super::source::{Documents, Framing, Source};
use super::{
    End, JobCall, JobStage, JobView, Meter, Milestone, NAME_BYTES_MAX, Part, Report, RequestFacts,
    ResponseHead, StatedCost,
};
use crate::fault::Outcome;
use crate::qualifier::Qualifiers;
use crate::record::{Fidelity, Operation};
use crate::usage::{Unit, Usage};
use crate::wire::json::Step::{self, Key};
use crate::wire::json::{Found, Kind, Path, Selector, Status, Want};

/// The longest usage object that is read. Real ones have some hundred bytes; Anthropic's list of
/// iterations adds about 300 for each.
pub(crate) const USAGE_BYTES_MAX: usize = 32 * 1024;

/// The longest error message that is read; rows keep 256 characters of it.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4096;

/// The longest word (a type, a code, a reason) that is read.
pub(crate) const WORD_BYTES_MAX: usize = 128;

/// The tier that batches are priced by.
pub(crate) const BATCH_TIER: &str = "batch";

/// What a value means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    /// The model that answers.
    Model,
    /// The vendor's id of the response, or of the job that it is about.
    RequestId,
    /// The vendor's id of what was generated, where it has one besides.
    GenerationId,
    /// The party behind a router.
    UpstreamProvider,
    /// The tier that is billed.
    ServiceTier,
    /// Why the answer ended.
    FinishReason,
    /// How far the response is, in the Responses API and in jobs.
    Status,
    /// Whether a response is made in the background, as a job.
    Background,
    /// Why a response is incomplete.
    IncompleteReason,
    /// A value for the dialect's [`Counts`].
    Usage(Quantity),
    /// The size of a video.
    Size,
    /// An array of images.
    Images,
    /// Content of an event, a real token unless it is empty.
    Content,
    /// A refusal in the model's words.
    Refusal,
    /// The type of content of which one is a refusal.
    ContentType,
    /// The type of an event or object.
    Type,
    /// An item of output, which may be a call of a built-in tool.
    Item,
    /// The type of that item.
    ItemType,
    /// What that item did.
    ItemAction,
    /// An error: an object, or its message.
    Error,
    /// The message of an error that is a string.
    ErrorText,
    /// A member of an error.
    ErrorCode,
    /// A member of an error.
    ErrorType,
    /// A member of an error.
    ErrorMessage,
    /// The most exact word for an error.
    ErrorExact,
    /// What tripped a filter.
    ErrorFlag,
    /// A member of a body or event that is itself an error.
    OwnCode,
    /// A member of a body or event that is itself an error.
    OwnType,
    /// A member of a body or event that is itself an error.
    OwnMessage,
}

/// A value that states quantities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quantity {
    /// The usage object.
    Object,
    /// The usage of each model of a call that used several (Groq).
    Breakdown,
    /// What llama.cpp measures.
    Timings,
    /// Pages read (Mistral).
    Pages,
    /// Seconds of the audio that was transcribed.
    AudioSeconds,
    /// Seconds of the video that is made.
    VideoSeconds,
}

impl Field {
    fn want(self) -> Want {
        match self {
            Field::Model | Field::RequestId | Field::GenerationId | Field::UpstreamProvider => {
                Want::Text(NAME_BYTES_MAX)
            }
            Field::Usage(Quantity::Object | Quantity::Breakdown | Quantity::Timings) => {
                Want::Text(USAGE_BYTES_MAX)
            }
            Field::ErrorText | Field::ErrorMessage | Field::OwnMessage => {
                Want::Text(MESSAGE_BYTES_MAX)
            }
            Field::Content | Field::Refusal | Field::Item | Field::Error | Field::ErrorFlag => {
                Want::Kind
            }
            Field::Images => Want::Count,
            _ => Want::Text(WORD_BYTES_MAX),
        }
    }
}

/// A meaning and the path that leads to it.
pub(crate) type Row = (Field, &'static [Step]);

/// The paths of a dialect and what they mean.
#[derive(Debug)]
pub(crate) struct Table {
    rows: &'static [Row],
    selector: Selector,
}

impl Table {
    /// A table of these rows, to be made once for each dialect.
    pub(crate) fn new(rows: &'static [Row]) -> Table {
        let path = |(field, steps): &Row| Path {
            steps,
            want: field.want(),
        };
        let paths: Vec<Path> = rows.iter().map(path).collect();
        Table {
            rows,
            selector: Selector::new(&paths),
        }
    }
}

/// The quantities that a dialect's responses state, as a running snapshot.
pub(crate) trait Counts: Default + Send + 'static {
    /// Takes a later statement, which supersedes field by field; false if it is not what it
    /// should be. Null is never shown.
    fn read(&mut self, quantity: Quantity, text: &str) -> bool;

    /// What the statements come to, for a call of that operation to the model `served`.
    fn settle(&self, operation: Operation, served: Option<&str>) -> Settled;
}

/// What [`Counts`] come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settled {
    /// Disjoint quantities by model; none is empty.
    pub(crate) parts: Vec<Part>,
    /// Whether some parts exceeded their whole.
    pub(crate) is_inconsistent: bool,
    /// Whether input or output is missing where there must be both: the parts are not all that
    /// was consumed.
    pub(crate) is_lacking: bool,
    /// Whether a quantity was inferred.
    pub(crate) is_estimated: bool,
    /// The cost, if stated.
    pub(crate) stated_cost: Option<StatedCost>,
    /// The tier, where the usage object has it.
    pub(crate) service_tier: Option<String>,
    /// A region that changes the price.
    pub(crate) region: Option<String>,
}

/// What differs between vendors that speak the same dialect.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vendor {
    /// Headers that may hold the vendor's id of the request, the best first.
    pub(crate) request_id_headers: &'static [&'static str],
    /// Outcomes that only this vendor means; `None` leaves it to the shared vocabulary.
    pub(crate) refine: fn(&Failure) -> Option<Outcome>,
}

/// A meter of one response.
pub(crate) struct ResponseMeter<C> {
    source: Source,
    answer: Answer<C>,
}

impl<C: Counts> ResponseMeter<C> {
    /// A meter that looks for what `table` names, or for an error if the status says so.
    pub(crate) fn new(
        table: &'static Table,
        vendor: &'static Vendor,
        operation: Operation,
        head: ResponseHead<'_>,
    ) -> ResponseMeter<C> {
        let status = head.status.as_u16();
        let table = if status >= 400 { &ERRORS } else { table };
        // Nothing is looked for in a list of models or a gigabyte of files.
        let framing = if operation.is_control() && status < 400 {
            Framing::Opaque
        } else {
            Framing::of(head, operation)
        };
        ResponseMeter {
            source: Source::new(framing, &table.selector),
            answer: Answer {
                rows: table.rows,
                vendor,
                operation,
                status,
                header_request_id: request_id(vendor, head),
                role: None,
                default_cost: None,
                counts: C::default(),
                model: None,
                size: None,
                request_id: None,
                generation_id: None,
                upstream_provider: None,
                service_tier: None,
                finish_reason: None,
                progress: None,
                is_background: None,
                has_concluded: false,
                incomplete_reason: None,
                first_usage: Vec::new(),
                last_usage: Vec::new(),
                images: None,
                searches: 0,
                failure: None,
                ending: Ending::Open,
                is_streamed: framing.is_stream(),
                is_token_seen: false,
                is_filtered: false,
                is_usage_final: true,
                is_oversize: false,
                is_malformed: false,
                event: Event::default(),
            },
        }
    }

    /// The same meter with a cost that holds unless the response states one.
    pub(crate) fn with_default_cost(mut self, cost: Option<StatedCost>) -> ResponseMeter<C> {
        self.answer.default_cost = cost;
        self
    }

    /// The same meter for the answer to a call with that place in the life of a job.
    pub(crate) fn of_job(mut self, job: Option<&JobCall>) -> ResponseMeter<C> {
        self.answer.role = job.map(|job| match job {
            JobCall::Submit => Role::Submit,
            JobCall::Follow(_) => Role::Follow,
        });
        self
    }
}

impl<C: Counts> Meter for ResponseMeter<C> {
    fn push(&mut self, bytes: &[u8]) -> Option<Milestone> {
        let was_token_seen = self.answer.is_token_seen;
        self.source.push(bytes, &mut self.answer);
        (self.answer.is_token_seen && !was_token_seen).then_some(Milestone::FirstToken)
    }

    fn finish(self: Box<Self>, end: End, request: &RequestFacts) -> Report {
        let ResponseMeter { source, mut answer } = *self;
        let was_malformed = answer.is_malformed;
        source.end(&mut answer);
        // Half a document is a fault only where the whole of it came.
        if end != End::Complete {
            answer.is_malformed = was_malformed;
        }
        answer.report(end, request)
    }
}

/// The vendor's id of the request, out of the headers.
pub(crate) fn request_id(vendor: &Vendor, head: ResponseHead<'_>) -> Option<String> {
    vendor
        .request_id_headers
        .iter()
        .filter_map(|name| head.headers.get(*name)?.to_str().ok())
        .find(|id| !id.is_empty() && id.len() <= NAME_BYTES_MAX)
        .map(str::to_owned)
}

/// How far a response has come to its own end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    /// Something must follow.
    Open,
    /// The answer has a finish reason; usage may follow.
    Finished,
    /// The vendor's end mark was seen, or the whole of a JSON body: nothing that matters
    /// follows, and a client that leaves now leaves nothing behind.
    Marked,
}

/// What a call has to do with the job that its answer may tell of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It may have started the job.
    Submit,
    /// It asks for the job.
    Follow,
}

/// What was found in the document at hand.
#[derive(Debug, Default)]
struct Event {
    error: Failure,
    has_error: bool,
    own: Failure,
    is_own_error: bool,
    has_usage: bool,
    items: Items,
    /// Searches among the items so far, and the item that is being read.
    searches: u64,
    item: Option<Item>,
    is_used: bool,
}

/// Whose items an event holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Items {
    /// Those of the whole response.
    #[default]
    Response,
    /// One that begins, to be told again when it is done.
    Added,
    /// One that is done, to be told again by the response.
    Done,
}

#[derive(Debug, Clone, Copy, Default)]
struct Item {
    is_search_call: bool,
    is_other_action: bool,
}

/// What a response said so far.
struct Answer<C> {
    rows: &'static [Row],
    vendor: &'static Vendor,
    operation: Operation,
    status: u16,
    header_request_id: Option<String>,
    role: Option<Role>,
    default_cost: Option<StatedCost>,
    counts: C,
    model: Option<String>,
    size: Option<String>,
    request_id: Option<String>,
    generation_id: Option<String>,
    upstream_provider: Option<String>,
    service_tier: Option<String>,
    finish_reason: Option<String>,
    progress: Option<String>,
    is_background: Option<bool>,
    /// Whether a whole document told that nothing more will be made.
    has_concluded: bool,
    incomplete_reason: Option<String>,
    first_usage: Vec<u8>,
    last_usage: Vec<u8>,
    images: Option<u64>,
    searches: u64,
    failure: Option<Failure>,
    ending: Ending,
    is_streamed: bool,
    is_token_seen: bool,
    is_filtered: bool,
    /// Whether usage was seen in or after the event that reported the failure, if any did.
    is_usage_final: bool,
    is_oversize: bool,
    is_malformed: bool,
    event: Event,
}

/// Takes over a word that differs from what is known. Words repeat in every event of a stream,
/// so the usual case must cost a comparison and no memory.
pub(crate) fn replace(known: &mut Option<String>, text: &[u8]) {
    let quoted = text
        .strip_prefix(b"\"")
        .and_then(|rest| rest.strip_suffix(b"\""));
    if let (Some(known), Some(content)) = (known.as_deref(), quoted)
        && known.as_bytes() == content
    {
        return;
    }
    if let Some(later) = word(text) {
        *known = Some(later.into_owned());
    }
}

impl<C: Counts> Documents for Answer<C> {
    fn framed(&mut self, is_streamed: bool) {
        self.is_streamed = is_streamed;
    }

    fn found(&mut self, index: usize, found: Found<'_>) {
        let Some((field, _)) = self.rows.get(index) else {
            return;
        };
        match found {
            Found::Text(b"null") => {}
            Found::Text(text) => self.text_found(*field, text),
            Found::TooLong => {
                if let Field::Usage(_) = field {
                    self.is_oversize = true;
                }
            }
            Found::Kind { kind, empty } => {
                let is_something =
                    matches!(kind, Kind::String | Kind::Array | Kind::Object) && !empty;
                if is_something || *field == Field::Item {
                    self.something_found(*field);
                }
            }
            Found::Count(count) => self.images = Some(count),
        }
    }

    fn named(&mut self, name: &[u8]) {
        if name == b"error" {
            self.event.own_error_found();
        }
    }

    fn marked(&mut self) {
        self.ending = Ending::Marked;
    }

    fn ended(&mut self, status: Status) {
        match status {
            Status::Empty | Status::Complete => {}
            Status::Partial | Status::Malformed => self.is_malformed = true,
            Status::TooDeep => self.is_oversize = true,
        }
        self.has_concluded |= matches!(status, Status::Complete | Status::TooDeep)
            && self.progress.as_deref().is_some_and(is_conclusion);
        if !self.event.is_used {
            return;
        }
        let mut event = std::mem::take(&mut self.event);
        event.item_ended();
        // The response at its end tells all items again. Until then, and where a gateway leaves
        // them out there, those that are done are counted.
        match event.items {
            Items::Response if event.searches > 0 => self.searches = event.searches,
            Items::Done => self.searches = self.searches.saturating_add(event.searches),
            Items::Response | Items::Added => {}
        }
        let failure = if event.has_error {
            Some(event.error)
        } else if event.is_own_error || self.status >= 400 {
            Some(event.own)
        } else {
            None
        };
        // The first failure is the cause of those that follow.
        if let Some(failure) = failure
            && self.failure.is_none()
        {
            self.failure = Some(failure);
            self.is_usage_final = false;
        }
        self.is_usage_final |= event.has_usage;
    }
}

impl<C: Counts> Answer<C> {
    fn something_found(&mut self, field: Field) {
        match field {
            Field::Content => self.is_token_seen |= self.is_streamed,
            Field::Refusal => {
                self.is_token_seen |= self.is_streamed;
                self.is_filtered = true;
            }
            Field::Item => {
                self.event.is_used = true;
                self.event.item_ended();
                self.event.item = Some(Item::default());
            }
            Field::Error => {
                self.event.is_used = true;
                self.event.has_error = true;
            }
            Field::ErrorFlag => {
                self.event.is_used = true;
                self.event.error.is_flagged = true;
            }
            _ => {}
        }
    }

    fn text_found(&mut self, field: Field, text: &[u8]) {
        let event = &mut self.event;
        match field {
            Field::Model => replace(&mut self.model, text),
            Field::RequestId => replace(&mut self.request_id, text),
            Field::GenerationId => replace(&mut self.generation_id, text),
            Field::UpstreamProvider => replace(&mut self.upstream_provider, text),
            Field::ServiceTier => replace(&mut self.service_tier, text),
            Field::FinishReason => {
                replace(&mut self.finish_reason, text);
                if self.finish_reason.is_some() {
                    self.ending = self.ending.max(Ending::Finished);
                }
                self.is_filtered |= word(text).is_some_and(|word| failure::is_filter(&word));
            }
            Field::Size => replace(&mut self.size, text),
            Field::Status => replace(&mut self.progress, text),
            Field::Background => self.is_background = Some(text == b"true"),
            Field::IncompleteReason => {
                replace(&mut self.incomplete_reason, text);
                self.is_filtered |= word(text).is_some_and(|word| failure::is_filter(&word));
            }
            Field::Usage(quantity) => self.usage_found(quantity, text),
            Field::ContentType => self.is_filtered |= text == b"\"refusal\"",
            Field::Type => self.type_found(text),
            Field::ItemType => {
                if let Some(item) = &mut event.item {
                    item.is_search_call = text == b"\"web_search_call\"";
                }
            }
            // Opening and reading a page that was found is no search, and free.
            Field::ItemAction => {
                if let Some(item) = &mut event.item {
                    item.is_other_action = text != b"\"search\"";
                }
            }
            Field::ErrorText | Field::ErrorMessage => replace(&mut event.error.message, text),
            Field::ErrorCode => replace(&mut event.error.code, text),
            Field::ErrorType => replace(&mut event.error.kind, text),
            Field::ErrorExact => replace(&mut event.error.exact, text),
            Field::OwnCode => replace(&mut event.own.code, text),
            Field::OwnMessage => replace(&mut event.own.message, text),
            Field::OwnType => {
                replace(&mut event.own.kind, text);
                if text == b"\"error\"" {
                    event.own_error_found();
                }
            }
            Field::Images
            | Field::Content
            | Field::Refusal
            | Field::Item
            | Field::Error
            | Field::ErrorFlag => return,
        }
        if matches!(
            field,
            Field::ErrorText
                | Field::ErrorMessage
                | Field::ErrorCode
                | Field::ErrorType
                | Field::ErrorExact
                | Field::OwnCode
                | Field::OwnMessage
                | Field::OwnType
        ) {
            self.event.is_used = true;
        }
    }

    fn usage_found(&mut self, quantity: Quantity, text: &[u8]) {
        self.event.is_used = true;
        let is_read = std::str::from_utf8(text).is_ok_and(|text| self.counts.read(quantity, text));
        if !is_read {
            self.is_malformed = true;
            return;
        }
        self.event.has_usage = true;
        // What could not be read before is superseded now.
        self.is_oversize = false;
        self.is_malformed = false;
        if quantity == Quantity::Object {
            let usage = if self.first_usage.is_empty() {
                &mut self.first_usage
            } else {
                &mut self.last_usage
            };
            usage.clear();
            usage.extend_from_slice(text);
        }
    }

    /// What the type of an event says, with its quotes.
    fn type_found(&mut self, text: &[u8]) {
        match text {
            b"\"error\"" | b"\"response.error\"" => self.event.own_error_found(),
            b"\"message_stop\""
            | b"\"response.completed\""
            | b"\"response.incomplete\""
            | b"\"response.failed\""
            | b"\"speech.audio.done\""
            | b"\"transcript.text.done\"" => self.ending = Ending::Marked,
            b"\"image_generation.completed\"" | b"\"image_edit.completed\"" => {
                self.ending = Ending::Marked;
                self.is_token_seen |= self.is_streamed;
                self.images = Some(self.images.map_or(1, |images| images.saturating_add(1)));
            }
            b"\"content_block_delta\""
            | b"\"image_generation.text_chunk\""
            | b"\"image_generation.partial_image\""
            | b"\"image_edit.partial_image\"" => self.is_token_seen |= self.is_streamed,
            b"\"response.output_item.added\"" => {
                self.event.is_used = true;
                self.event.items = Items::Added;
            }
            b"\"response.output_item.done\"" => {
                self.event.is_used = true;
                self.event.items = Items::Done;
            }
            _ if text.ends_with(b".delta\"") => {
                self.is_token_seen |= self.is_streamed;
                self.is_filtered |= text == b"\"response.refusal.delta\"";
            }
            _ => {}
        }
    }

    fn is_pending(&self) -> bool {
        matches!(
            self.progress.as_deref(),
            Some("queued" | "pending" | "in_progress")
        )
    }

    /// How far the job is that the response tells of, if it tells of one.
    fn stage(&self) -> Option<JobStage> {
        let role = self.role?;
        // What has no id or says not how far it is could not be asked for.
        self.request_id.as_ref().and(self.progress.as_ref())?;
        // Every video and batch is a job. A response is one if it says so; where it says nothing, one that
        // is not there yet. That a finished one is shown again makes it none: it has its row.
        let is_job = match (self.operation, self.is_background, role) {
            (Operation::Video | Operation::Batch, ..) => true,
            (_, Some(is_background), _) => is_background,
            (_, None, _) => self.is_pending() && !self.is_streamed,
        };
        is_job.then_some(match self.has_concluded {
            true => JobStage::Settled,
            false => JobStage::Open,
        })
    }

    /// Whether this call, answered like that, must state usage.
    fn is_usage_due(&self, stage: Option<JobStage>) -> bool {
        let is_answered = self.status == 101 || (200..300).contains(&self.status);
        let is_due = match stage {
            Some(JobStage::Settled) => {
                matches!(self.progress.as_deref(), Some("completed" | "incomplete"))
            }
            _ if self.role == Some(Role::Follow) => false,
            Some(_) => self.is_streamed,
            None => self.is_streamed || !self.is_pending(),
        };
        is_answered && self.status != 202 && !self.operation.is_control() && is_due
    }

    /// Whether the response may tell what was consumed: the answer to a call may, and of the views
    /// of a job that of its end.
    fn tells_usage(&self, stage: Option<JobStage>) -> bool {
        match stage {
            Some(stage) => stage == JobStage::Settled,
            None => self.role != Some(Role::Follow),
        }
    }

    /// What was consumed, as far as it is owed.
    fn settled(&self, stage: Option<JobStage>) -> Settled {
        if !self.tells_usage(stage) {
            return Settled::default();
        }
        let mut settled = self.counts.settle(self.operation, self.model.as_deref());
        if self.operation == Operation::Batch {
            settled.service_tier = Some(BATCH_TIER.to_owned());
        }
        settled.stated_cost = settled.stated_cost.or(self.default_cost);
        if self.operation == Operation::Video {
            // The seconds are promised when a video begins, and owed once it is there.
            match (stage, self.progress.as_deref()) {
                (Some(_), Some("completed")) => {}
                (Some(_), _) => settled.parts.clear(),
                (None, _) => settled.is_estimated |= !settled.parts.is_empty(),
            }
        }
        settled
    }

    fn report(mut self, end: End, request: &RequestFacts) -> Report {
        let stage = self.stage();
        let end_of_job = self
            .progress
            .as_deref()
            .filter(|_| stage == Some(JobStage::Settled));
        let is_cancelled = end_of_job == Some("cancelled");
        // An error needs no words: a page of HTML from a proxy on the way is one too.
        let is_error = self.status >= 400
            || self.finish_reason.as_deref() == Some("error")
            || matches!(end_of_job, Some("failed" | "expired"));
        if is_error && self.failure.is_none() {
            self.failure = Some(Failure::default());
        }
        let is_answered = self.failure.is_none();

        let mut settled = self.settled(stage);
        let stated_cost = settled.stated_cost;
        // Images are a usage by themselves, searches are not: they are billed beside tokens.
        let is_image_counted = self.operation == Operation::Image && self.images.is_some();
        let is_usable = !settled.parts.is_empty() || stated_cost.is_some() || is_image_counted;
        let tells_usage = self.tells_usage(stage);
        if tells_usage {
            self.add_tallies(&mut settled);
        }

        let is_usage_due = self.is_usage_due(stage);
        let is_generation = matches!(
            self.operation,
            Operation::Chat | Operation::Completion | Operation::Responses
        );
        let is_broken_off = match end {
            End::Complete => {
                self.is_streamed
                    && self.ending == Ending::Open
                    && is_generation
                    && is_usage_due
                    && is_answered
            }
            _ => match self.ending {
                Ending::Marked => false,
                Ending::Finished => !is_usable,
                Ending::Open => true,
            },
        };
        let is_usage_lost = !is_answered
            && self.is_streamed
            && self.status < 400
            && !(is_usable && self.is_usage_final);
        // What was stopped may have consumed more than is told.
        let is_stopped = is_cancelled && !is_usable;
        let fidelity = if is_broken_off || is_usage_lost || is_stopped {
            Fidelity::Partial
        } else if self.is_oversize && tells_usage {
            Fidelity::Oversize
        } else if settled.is_inconsistent {
            Fidelity::Inconsistent
        } else if settled.is_lacking && stated_cost.is_none() {
            Fidelity::Malformed
        } else if is_usable || !is_usage_due || !is_answered {
            Fidelity::Complete
        } else if self.is_malformed {
            Fidelity::Malformed
        } else {
            Fidelity::Silent
        };

        // Speech states nothing: its price is by the characters that were asked for.
        let mut is_estimated = settled.is_estimated;
        if self.operation == Operation::Speech
            && is_usage_due
            && is_answered
            && settled.parts.is_empty()
            && let Some(characters) = request.characters
        {
            add(&mut settled.parts, Unit::Character, characters);
            is_estimated = true;
        }

        let error = self.failure.take().map(|mut failure| {
            failure.status = self.status;
            let mut error = failure.conclude(self.vendor.refine);
            // A job that has failed of itself is no failure of the call.
            if stage == Some(JobStage::Settled) && error.outcome == Outcome::UpstreamError {
                error.outcome = Outcome::JobFailed;
            }
            error
        });
        let outcome = match &error {
            Some(error) => error.outcome,
            None if is_cancelled => Outcome::ClientCancelled,
            None if is_broken_off => match end {
                End::Complete | End::Truncated => Outcome::UpstreamTruncated,
                End::Cancelled => Outcome::ClientCancelled,
                End::TimedOut => Outcome::UpstreamTimeout,
            },
            None if self.is_filtered => Outcome::ContentFiltered,
            None => failure::of_status(self.status),
        };
        let raw_usage = self.raw_usage().filter(|_| tells_usage);
        let job = stage
            .zip(self.request_id.clone())
            .map(|(stage, id)| JobView {
                id,
                stage,
                queue: None,
                run: None,
            });
        let provider_request_id = match (self.role, &job) {
            // The id of this call is none of the job's, and the job's own is said already.
            (Some(Role::Follow), Some(_)) => self.generation_id,
            _ => self
                .header_request_id
                .or(self.generation_id)
                .or(self.request_id),
        };
        Report {
            outcome,
            error_code: error.as_ref().and_then(|error| error.code.clone()),
            error_message: error.and_then(|error| error.message),
            finish_reason: self
                .finish_reason
                .or(self.incomplete_reason)
                .or(self.progress.filter(|word| is_conclusion(word))),
            model_served: self.model,
            upstream_provider: self.upstream_provider,
            // `auto` is what was asked for, until the tier is decided.
            service_tier: settled
                .service_tier
                .or(self.service_tier)
                .filter(|tier| tier != "auto"),
            region: settled.region,
            provider_request_id,
            image_variant: self.size.filter(|_| self.operation == Operation::Video),
            qualifiers: Qualifiers::default(),
            parts: settled.parts,
            stated_cost,
            raw_usage,
            fidelity,
            estimated: is_estimated,
            job,
        }
    }

    /// Adds what was counted in the body itself.
    fn add_tallies(&self, settled: &mut Settled) {
        if self.operation == Operation::Image
            && let Some(images) = self.images
        {
            add(&mut settled.parts, Unit::Image, images);
        }
        if self.searches > 0 {
            add(&mut settled.parts, Unit::Search, self.searches);
        }
    }

    fn raw_usage(&self) -> Option<String> {
        let first = std::str::from_utf8(&self.first_usage).ok()?;
        let last = std::str::from_utf8(&self.last_usage).ok()?;
        match (first, last) {
            ("", _) => None,
            (only, "") => Some(only.to_owned()),
            (first, last) => Some(merge(first, last)),
        }
    }
}

/// Whether that is the status of what nothing more will be added to.
fn is_conclusion(status: &str) -> bool {
    matches!(
        status,
        "completed" | "incomplete" | "failed" | "cancelled" | "expired"
    )
}

impl Event {
    fn own_error_found(&mut self) {
        self.is_used = true;
        self.is_own_error = true;
    }

    fn item_ended(&mut self) {
        if let Some(item) = self.item.take()
            && item.is_search_call
            && !item.is_other_action
        {
            self.searches = self.searches.saturating_add(1);
        }
    }
}

/// Sets a quantity that is known.
pub(crate) fn set_known(usage: &mut Usage, unit: Unit, quantity: Option<Decimal>) {
    if let Some(quantity) = quantity {
        usage.set(unit, quantity);
    }
}

/// Sets a quantity of the call's own model.
fn add(parts: &mut Vec<Part>, unit: Unit, quantity: u64) {
    match parts.iter_mut().find(|part| part.model.is_none()) {
        Some(part) => part.usage.set(unit, quantity),
        None => parts.push(Part {
            model: None,
            usage: Usage::new().with(unit, quantity),
        }),
    }
}

/// Where the vendors put an error in the body of an HTTP error.
static ERRORS: LazyLock<Table> = LazyLock::new(|| Table::new(ERROR_ROWS));
const ERROR_ROWS: &[Row] = &[
    (Field::Error, &[Key("error")]),
    (Field::ErrorText, &[Key("error")]),
    (Field::ErrorCode, &[Key("error"), Key("code")]),
    (Field::ErrorType, &[Key("error"), Key("type")]),
    (Field::ErrorMessage, &[Key("error"), Key("message")]),
    (Field::ErrorExact, &[Key("error"), Key("error_type")]),
    (
        Field::ErrorExact,
        &[Key("error"), Key("metadata"), Key("error_type")],
    ),
    (
        Field::ErrorExact,
        &[Key("error"), Key("details"), Key("error_code")],
    ),
    (
        Field::ErrorFlag,
        &[Key("error"), Key("metadata"), Key("reasons")],
    ),
    (
        Field::ErrorFlag,
        &[Key("error"), Key("metadata"), Key("patterns")],
    ),
    (
        Field::ErrorFlag,
        &[Key("error"), Key("metadata"), Key("flagged_input")],
    ),
    (Field::OwnCode, &[Key("code")]),
    (Field::OwnType, &[Key("type")]),
    (Field::OwnMessage, &[Key("message")]),
    (Field::OwnMessage, &[Key("detail")]),
    (Field::RequestId, &[Key("request_id")]),
];

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};

    use super::*;
    use crate::provider::{Call, chat};

    fn call(operation: Operation) -> Call {
        Call {
            operation,
            route: "/v1/x".into(),
            model: None,
            job: None,
        }
    }

    fn report(status: u16, operation: Operation, body: &str) -> Report {
        let headers = HeaderMap::new();
        let head = ResponseHead {
            status: StatusCode::from_u16(status).unwrap(),
            headers: &headers,
        };
        let mut meter = chat::meter(&call(operation), head, &chat::VENDOR);
        meter.push(body.as_bytes());
        Box::new(meter).finish(End::Complete, &RequestFacts::default())
    }

    /// A usage object of exactly that many bytes.
    fn usage_of(bytes: usize) -> String {
        const FRAME: &str = r#"{"prompt_tokens":5,"completion_tokens":7,"x":""}"#;
        let padding = "y".repeat(bytes - FRAME.len());
        format!(r#"{{"prompt_tokens":5,"completion_tokens":7,"x":"{padding}"}}"#)
    }

    #[test]
    fn usage_is_read_up_to_its_limit_and_beyond_it_said_to_be_oversize() {
        for (bytes, fidelity) in [
            (USAGE_BYTES_MAX - 1, Fidelity::Complete),
            (USAGE_BYTES_MAX, Fidelity::Complete),
            (USAGE_BYTES_MAX + 1, Fidelity::Oversize),
        ] {
            let body = format!(r#"{{"usage":{}}}"#, usage_of(bytes));
            let report = report(200, Operation::Chat, &body);
            assert_eq!(report.fidelity, fidelity, "{bytes}");
            assert_eq!(report.parts.is_empty(), fidelity == Fidelity::Oversize);
        }
    }

    #[test]
    fn usage_after_an_oversized_one_still_counts() {
        let large = usage_of(USAGE_BYTES_MAX + 1);
        let small = r#"{"prompt_tokens":5,"completion_tokens":8}"#;
        let after = format!(
            "data: {{\"usage\":{large}}}\n\ndata: {{\"usage\":{small}}}\n\ndata: [DONE]\n\n"
        );
        let report_after = report(200, Operation::Chat, &after);
        assert_eq!(report_after.fidelity, Fidelity::Complete);
        assert_eq!(report_after.raw_usage.as_deref(), Some(small));

        let before = format!(
            "data: {{\"usage\":{small}}}\n\ndata: {{\"usage\":{large}}}\n\ndata: [DONE]\n\n"
        );
        assert_eq!(
            report(200, Operation::Chat, &before).fidelity,
            Fidelity::Oversize
        );
    }

    #[test]
    fn a_name_beyond_its_limit_is_taken_as_absent() {
        // The limit counts the quotes.
        for (bytes, is_known) in [
            (NAME_BYTES_MAX - 3, true),
            (NAME_BYTES_MAX - 2, true),
            (NAME_BYTES_MAX - 1, false),
        ] {
            let body = format!(r#"{{"model":"{}"}}"#, "m".repeat(bytes));
            let report = report(200, Operation::Chat, &body);
            assert_eq!(report.model_served.is_some(), is_known, "{bytes}");
        }
    }

    #[test]
    fn a_message_beyond_its_limit_leaves_the_code() {
        for (bytes, is_known) in [
            (MESSAGE_BYTES_MAX - 2, true),
            (MESSAGE_BYTES_MAX - 1, false),
        ] {
            let message = "x ".repeat(bytes / 2 + 1);
            let message = message.get(..bytes).unwrap();
            let body = format!(r#"{{"error":{{"message":"{message}","code":"model_not_found"}}}}"#);
            let report = report(404, Operation::Chat, &body);
            assert_eq!(report.error_message.is_some(), is_known, "{bytes}");
            assert_eq!(report.error_code.as_deref(), Some("model_not_found"));
        }
    }

    #[test]
    fn searches_without_usage_are_no_usage() {
        let body = r#"{"status":"completed","output":[{"type":"web_search_call"}],"usage":null}"#;
        let report = report(200, Operation::Responses, body);
        assert_eq!(report.fidelity, Fidelity::Silent);
        assert_eq!(
            report.parts,
            [Part {
                model: None,
                usage: Usage::new().with(Unit::Search, 1)
            }]
        );
    }

    #[test]
    fn tokens_are_passed_once_and_only_by_events() {
        let headers = HeaderMap::new();
        let head = ResponseHead {
            status: StatusCode::OK,
            headers: &headers,
        };
        let event = br#"{"choices":[{"delta":{"content":"a"}}]}"#;
        let call = call(Operation::Chat);
        let mut whole = chat::meter(&call, head, &chat::VENDOR);
        assert_eq!(whole.push(event), None);
        let mut events = chat::meter(&call, head, &chat::VENDOR);
        assert_eq!(events.push(b"data: "), None);
        assert_eq!(events.push(event), Some(Milestone::FirstToken));
        assert_eq!(events.push(b"\n\ndata: "), None);
        assert_eq!(events.push(event), None);
    }
}
