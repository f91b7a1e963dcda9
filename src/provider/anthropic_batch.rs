//! Anthropic's batches of messages: jobs whose usage stands in the results alone, a line for each
//! message.
//!
//! <https://docs.anthropic.com/en/docs/build-with-claude/batch-processing>. The batch itself says
//! how far it is; whoever reads the results to their end settles it. Memory is constant but for a
//! sum by model.

use std::sync::LazyLock;

use http::Method;
use memchr::memchr;

use super::anthropic::MessageCounts;
use super::object::word;
use super::response::{BATCH_TIER, Counts, Quantity, USAGE_BYTES_MAX, WORD_BYTES_MAX};
use super::{
    Call, End, JobCall, JobStage, JobView, Meter, Milestone, NAME_BYTES_MAX, Part, Report,
    RequestFacts, ResponseHead, route, url_selector,
};
use crate::fault::Outcome;
use crate::qualifier::Qualifiers;
use crate::record::{Fidelity, Operation};
use crate::usage::Usage;
use crate::wire::json::Step::Key;
use crate::wire::json::{Found, Path, Picker, Selector, Status, Want};

pub(super) const BATCHES: &str = "/v1/messages/batches";
pub(super) const BATCH: &str = "/v1/messages/batches/{id}";
pub(super) const CANCEL: &str = "/v1/messages/batches/{id}/cancel";
pub(super) const RESULTS: &str = "/v1/messages/batches/{id}/results";

/// The URL that the results are fetched by.
pub(super) static JOB_URLS: LazyLock<Selector> =
    LazyLock::new(|| url_selector(&[&[Key("results_url")]]));

/// How many models of one batch are told apart.
const MODELS_MAX: usize = 64;

/// The place of a call of that template in the life of a batch, where `id` would name it.
pub(super) fn job(method: &Method, template: &str, id: Option<&str>) -> Option<JobCall> {
    let follows = match template {
        BATCHES => return Some(JobCall::Submit).filter(|_| method == Method::POST),
        BATCH => method == Method::GET,
        RESULTS | CANCEL => true,
        _ => false,
    };
    id.filter(|_| follows)
        .and_then(route::name)
        .map(JobCall::Follow)
}

/// The path of a batch's results, which are refused until there are some.
pub(super) fn follow_up(target: &str, job_id: &str) -> Option<String> {
    let path = target.split('?').next()?.trim_end_matches('/');
    path.ends_with("/batches")
        .then(|| format!("{path}/{job_id}/results"))
}

/// A meter for the answer to a call about a batch; `None` for others and for errors.
pub(super) fn meter(call: &Call, head: ResponseHead<'_>) -> Option<Box<dyn Meter>> {
    let job = call.job.as_ref().filter(|_| head.status.is_success())?;
    Some(match job {
        JobCall::Follow(id) if call.route.ends_with("/results") => {
            Box::new(ResultsMeter::new(id.clone()))
        }
        _ => Box::new(BatchMeter {
            picker: Picker::new(&STANDING),
            id: None,
            standing: None,
            is_submit: *job == JobCall::Submit && head.status.as_u16() != 202,
        }),
    })
}

/// A report on a batch of which nothing is known to be consumed.
fn report(outcome: Outcome, fidelity: Fidelity, job: Option<JobView>) -> Report {
    Report {
        outcome,
        error_code: None,
        error_message: None,
        finish_reason: None,
        model_served: None,
        upstream_provider: None,
        service_tier: Some(BATCH_TIER.to_owned()),
        region: None,
        provider_request_id: None,
        image_variant: None,
        qualifiers: Qualifiers::default(),
        parts: Vec::new(),
        stated_cost: None,
        raw_usage: None,
        fidelity,
        estimated: false,
        job,
    }
}

fn outcome(end: End) -> Outcome {
    match end {
        End::Complete => Outcome::Ok,
        End::Truncated => Outcome::UpstreamTruncated,
        End::Cancelled => Outcome::ClientCancelled,
        End::TimedOut => Outcome::UpstreamTimeout,
    }
}

fn view(id: String, stage: JobStage) -> JobView {
    JobView {
        id,
        stage,
        queue: None,
        run: None,
    }
}

/// Reads how far a batch is.
struct BatchMeter {
    picker: Picker<'static>,
    id: Option<String>,
    standing: Option<String>,
    /// Whether the answer must tell of a batch.
    is_submit: bool,
}

static STANDING: LazyLock<Selector> = LazyLock::new(|| {
    Selector::new(&[
        Path {
            steps: &[Key("id")],
            want: Want::Text(NAME_BYTES_MAX),
        },
        Path {
            steps: &[Key("processing_status")],
            want: Want::Text(WORD_BYTES_MAX),
        },
    ])
});

impl Meter for BatchMeter {
    fn push(&mut self, bytes: &[u8]) -> Option<Milestone> {
        let BatchMeter {
            picker,
            id,
            standing,
            ..
        } = self;
        picker.push(bytes, &mut |index, found| {
            if let Found::Text(text) = found {
                let slot = if index == 0 { &mut *id } else { &mut *standing };
                *slot = word(text).map(|word| word.into_owned());
            }
        });
        None
    }

    fn finish(mut self: Box<Self>, end: End, _request: &RequestFacts) -> Report {
        let is_whole = self.picker.end(&mut |_, _| {}) == Status::Complete;
        let stage = match self.standing.as_deref() {
            Some("ended") if is_whole => JobStage::Ended,
            _ => JobStage::Open,
        };
        let end = if is_whole { End::Complete } else { end };
        let job = self.id.zip(self.standing).map(|(id, _)| view(id, stage));
        // What it consumed is told by its results.
        let fidelity = match &job {
            _ if end != End::Complete => Fidelity::Partial,
            Some(job) if job.stage == JobStage::Ended => Fidelity::Silent,
            None if self.is_submit => Fidelity::Silent,
            _ => Fidelity::Complete,
        };
        report(outcome(end), fidelity, job)
    }
}

/// Adds up the results of a batch.
struct ResultsMeter {
    id: String,
    picker: Picker<'static>,
    line: Line,
    /// Whether something of a line was read.
    is_within: bool,
    sums: Vec<Part>,
    is_lacking: bool,
    is_inconsistent: bool,
    is_malformed: bool,
}

/// What a line says.
#[derive(Default)]
struct Line {
    model: Option<String>,
    counts: Option<MessageCounts>,
    is_oversize: bool,
}

static LINE: LazyLock<Selector> = LazyLock::new(|| {
    Selector::new(&[
        Path {
            steps: &[Key("result"), Key("message"), Key("model")],
            want: Want::Text(NAME_BYTES_MAX),
        },
        Path {
            steps: &[Key("result"), Key("message"), Key("usage")],
            want: Want::Text(USAGE_BYTES_MAX),
        },
    ])
});

impl Line {
    fn found(&mut self, index: usize, found: Found<'_>) {
        match found {
            Found::Text(text) if index == 0 => {
                self.model = word(text).map(|word| word.into_owned());
            }
            Found::Text(text) => {
                if let Ok(text) = std::str::from_utf8(text) {
                    let counts = self.counts.get_or_insert_default();
                    counts.read(Quantity::Object, text);
                }
            }
            _ => self.is_oversize |= index == 1,
        }
    }
}

impl ResultsMeter {
    fn new(id: String) -> ResultsMeter {
        ResultsMeter {
            id,
            picker: Picker::new(&LINE),
            line: Line::default(),
            is_within: false,
            sums: Vec::new(),
            is_lacking: false,
            is_inconsistent: false,
            is_malformed: false,
        }
    }

    fn piece(&mut self, bytes: &[u8]) {
        self.is_within |= bytes.iter().any(|byte| !byte.is_ascii_whitespace());
        let ResultsMeter { picker, line, .. } = self;
        picker.push(bytes, &mut |index, found| line.found(index, found));
    }

    fn line_ended(&mut self) {
        let ResultsMeter { picker, line, .. } = self;
        let status = picker.end(&mut |index, found| line.found(index, found));
        picker.reset();
        let line = std::mem::take(&mut self.line);
        if !std::mem::take(&mut self.is_within) {
            return;
        }
        self.is_malformed |= status != Status::Complete || line.is_oversize;
        // What failed, was cancelled or came too late has no message and is not billed.
        let Some(counts) = line.counts else { return };
        let settled = counts.settle(Operation::Batch, line.model.as_deref());
        self.is_lacking |= settled.is_lacking;
        self.is_inconsistent |= settled.is_inconsistent;
        for part in settled.parts {
            self.add(part.model.or_else(|| line.model.clone()), &part.usage);
        }
    }

    fn add(&mut self, model: Option<String>, usage: &Usage) {
        let is_full = self.sums.len() >= MODELS_MAX;
        match self.sums.iter_mut().find(|sum| sum.model == model) {
            Some(sum) => sum.usage = Usage::total_of([&sum.usage, usage]),
            None if is_full => self.is_lacking = true,
            None => self.sums.push(Part {
                model,
                usage: usage.clone(),
            }),
        }
    }
}

impl Meter for ResultsMeter {
    fn push(&mut self, bytes: &[u8]) -> Option<Milestone> {
        let mut rest = bytes;
        while let Some(at) = memchr(b'\n', rest) {
            let (line, after) = rest.split_at(at);
            rest = after.get(1..).unwrap_or_default();
            self.piece(line);
            self.line_ended();
        }
        self.piece(rest);
        None
    }

    fn finish(mut self: Box<Self>, end: End, _request: &RequestFacts) -> Report {
        if end == End::Complete {
            self.line_ended();
        }
        // Half of the results is half of the usage: someone else may read them to their end.
        let (stage, fidelity) = match end {
            End::Complete if self.is_malformed || self.is_lacking => {
                (JobStage::Settled, Fidelity::Malformed)
            }
            End::Complete if self.is_inconsistent => (JobStage::Settled, Fidelity::Inconsistent),
            End::Complete if self.sums.is_empty() => (JobStage::Settled, Fidelity::Silent),
            End::Complete => (JobStage::Settled, Fidelity::Complete),
            _ => (JobStage::Ended, Fidelity::Partial),
        };
        let model_served = match self.sums.as_slice() {
            [only] => only.model.clone(),
            _ => None,
        };
        let parts = match end {
            End::Complete => self.sums,
            _ => Vec::new(),
        };
        Report {
            model_served,
            parts,
            ..report(outcome(end), fidelity, Some(view(self.id, stage)))
        }
    }
}
