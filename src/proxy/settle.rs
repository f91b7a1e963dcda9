//! The settlement: everything that is known of one request, turned into its record exactly once,
//! however the request ends.
//!
//! The end can be the response's last byte, a failure of the provider, the client's going away
//! (then the settlement is dropped), or a panic; [`Settlement`] hands its record to the ledger
//! in each of these cases and never twice.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use http::{HeaderMap, StatusCode, header};
use tokio::time::Instant;

use crate::caller::Instance;
use crate::clock::{self, micros};
use crate::fault::Outcome;
use crate::ledger::Ledger;
use crate::metrics::{InFlight, Phase as Half, Rewrite};
use crate::price::CurrentBook;
use crate::provider::{
    Call, End, JobCall, JobStage, JobView, Meter, Milestone, Provider, Report, RequestFacts,
    ResponseHead,
};
use crate::proxy::body::RequestTap;
use crate::proxy::costing::{self, Asked};
use crate::proxy::guard::guarded;
use crate::proxy::jobs::{FollowUp, Jobs};
use crate::proxy::refusal::Refusal;
use crate::record::{Fidelity, Intent, Job, Operation, UnpricedReason, UsageRecord};
use crate::wire::inflate::{Decoding, Inflater};

/// What every settlement of a process shares.
pub(super) struct Books {
    pub(super) ledger: Ledger,
    pub(super) prices: Arc<CurrentBook>,
    pub(super) instance: Instance,
    pub(super) jobs: Arc<Jobs>,
    /// Whether control calls make rows too.
    pub(super) control_rows: bool,
    /// Set when the process gives up waiting for what is under way.
    pub(super) is_aborting: Arc<AtomicBool>,
    /// Requests that are not settled.
    pub(super) under_way: Arc<AtomicUsize>,
}

/// The response as the meter sees it: a decoded copy, metered.
struct ResponseTap {
    inflater: Inflater,
    meter: Option<Box<dyn Meter>>,
    panics: u32,
}

impl ResponseTap {
    /// Shows bytes to the meter. A meter that panics is dropped: the traffic goes on unmetered.
    fn push(&mut self, bytes: &[u8]) -> Option<Milestone> {
        let mut meter = self.meter.take()?;
        let mut milestone = None;
        let pushed = guarded(|| {
            self.inflater.push(bytes, &mut |decoded| {
                milestone = milestone.or(meter.push(decoded));
            });
        });
        match pushed {
            Some(()) => self.meter = Some(meter),
            None => self.panics += 1,
        }
        milestone
    }

    fn finish(mut self, end: End, request: &RequestFacts) -> (Option<Report>, u32) {
        let Some(meter) = self.meter.take() else {
            return (None, self.panics);
        };
        let finished = guarded(|| {
            self.inflater.end();
            let mut report = meter.finish(end, request);
            if self.inflater.status() != Decoding::Ok {
                report.fidelity = Fidelity::Undecodable;
            }
            report
        });
        let panics = self.panics + u32::from(finished.is_none());
        (finished, panics)
    }
}

/// A request under way.
pub(super) struct Opening {
    pub(super) started: Instant,
    pub(super) provider: Arc<dyn Provider>,
    pub(super) name: Arc<str>,
    pub(super) call: Call,
    /// How to ask later for the job that the call may submit.
    pub(super) submit: Option<Submit>,
    pub(super) request: Rc<RefCell<RequestTap>>,
    pub(super) _in_flight: InFlight,
    /// The client connection's phase, told when the response is over.
    pub(super) phase: Arc<crate::proxy::stream::Phase>,
}

/// What of a call that submits a job asking for it takes.
pub(super) struct Submit {
    /// The path and the query at the provider.
    pub(super) target: String,
    /// The key and what goes with it.
    pub(super) headers: HeaderMap,
}

struct Open {
    books: Rc<Books>,
    /// Becomes the record when the request is settled.
    intent: Option<Intent>,
    opening: Opening,
    tap: Option<ResponseTap>,
    status: Option<u16>,
    is_streamed: bool,
    first_byte_us: Option<u64>,
    first_token_us: Option<u64>,
    request_overhead_us: u64,
    response_bytes: u64,
}

/// See the module's text.
pub(super) struct Settlement(Option<Box<Open>>);

impl Settlement {
    /// Opens a settlement. The model of `intent` may follow with the request's body.
    pub(super) fn open(books: Rc<Books>, intent: Intent, opening: Opening) -> Settlement {
        books.under_way.fetch_add(1, Ordering::Relaxed);
        Settlement(Some(Box::new(Open {
            books,
            intent: Some(intent),
            opening,
            tap: None,
            status: None,
            is_streamed: false,
            first_byte_us: None,
            first_token_us: None,
            request_overhead_us: 0,
            response_bytes: 0,
        })))
    }

    /// Writes the intent, if the call will make a row.
    pub(super) fn intend(&mut self) {
        let Some(open) = &mut self.0 else { return };
        if open.makes_row() {
            open.note_model();
            if let Some(intent) = &open.intent {
                open.books.ledger.begin(intent);
            }
        }
    }

    /// Notes what Taffrail spent on the request before it went out.
    pub(super) fn sent(&mut self, overhead: std::time::Duration) {
        let Some(open) = &mut self.0 else { return };
        open.request_overhead_us = micros(overhead);
        open.books
            .ledger
            .metrics()
            .overhead(Half::Request, overhead);
    }

    /// Takes the response's head.
    pub(super) fn head(&mut self, status: StatusCode, headers: &HeaderMap) {
        let Some(open) = &mut self.0 else { return };
        open.status = Some(status.as_u16());
        open.is_streamed = is_event_stream(headers);
        let Opening {
            provider,
            name,
            call,
            ..
        } = &open.opening;
        let metrics = open.books.ledger.metrics();
        match guarded(|| provider.rate_limits(headers)) {
            Some(limits) if limits.is_empty() => {}
            Some(limits) => metrics.rate_limits(name, &limits, clock::instant()),
            None => metrics.meter_panic(),
        }
        let meter = guarded(|| provider.meter(call, ResponseHead { status, headers }));
        open.tap = Some(ResponseTap {
            inflater: Inflater::for_headers(headers),
            panics: u32::from(meter.is_none()),
            meter,
        });
    }

    /// Shows the next bytes of the response's body, as they came over the wire.
    pub(super) fn see(&mut self, bytes: &[u8]) {
        let Some(open) = &mut self.0 else { return };
        open.response_bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let elapsed = || Some(micros(open.opening.started.elapsed()));
        if open.first_byte_us.is_none() {
            open.first_byte_us = elapsed();
        }
        let milestone = open.tap.as_mut().and_then(|tap| tap.push(bytes));
        if milestone == Some(Milestone::FirstToken) && open.first_token_us.is_none() {
            open.first_token_us = elapsed();
        }
    }

    /// Notes bytes that are relayed unmetered, through an upgraded connection.
    pub(super) fn tunnelled(&mut self, request_bytes: u64, response_bytes: u64) {
        let Some(open) = &mut self.0 else { return };
        open.opening.request.borrow_mut().tunnelled(request_bytes);
        open.response_bytes += response_bytes;
    }

    /// Counts a change to the response.
    pub(super) fn rewritten(&self, kind: Rewrite) {
        let Some(open) = &self.0 else { return };
        let metrics = open.books.ledger.metrics();
        metrics.rewrite(&open.opening.name, kind);
    }

    /// Settles: the record is in the journal when this returns.
    pub(super) fn finish(&mut self, end: End) {
        if let Some(open) = self.0.take() {
            open.settle(Conclusion::Ended(end));
        }
    }

    /// Settles a response that was read to its end after the client had gone.
    pub(super) fn finish_unread(&mut self) {
        if let Some(open) = self.0.take() {
            open.settle(Conclusion::Unread);
        }
    }

    /// Moves the settlement out, for a task that outlives the response.
    pub(super) fn take(&mut self) -> Settlement {
        Settlement(self.0.take())
    }

    /// Settles a request that Taffrail answered in the provider's place.
    pub(super) fn fail(&mut self, refusal: &Refusal) {
        if let Some(open) = self.0.take() {
            open.settle(Conclusion::Refused(refusal));
        }
    }
}

impl Drop for Settlement {
    fn drop(&mut self) {
        self.finish(End::Cancelled);
    }
}

/// Whether the response is a stream of events.
pub(super) fn is_event_stream(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| {
            value
                .trim_start()
                .to_ascii_lowercase()
                .starts_with("text/event-stream")
        })
}

enum Conclusion<'a> {
    Ended(End),
    /// The response was read to its end, but its client had gone.
    Unread,
    Refused(&'a Refusal),
}

/// What a response told of a job.
struct Seen {
    view: JobView,
    report: Report,
}

/// Leaves of a report on a job what belongs to the call that asked for it: the job's usage and
/// fate are the job's alone.
fn own_part(report: &mut Report, status: Option<u16>) {
    report.outcome = status.map_or(Outcome::Ok, Outcome::from_status);
    report.parts.clear();
    report.stated_cost = None;
    report.raw_usage = None;
    report.fidelity = Fidelity::Complete;
    report.error_code = None;
    report.error_message = None;
}

impl Open {
    /// Takes over the model that the request's body has named by now.
    fn note_model(&mut self) {
        let request = self.opening.request.borrow();
        let model = &request.facts().model;
        if let Some(intent) = &mut self.intent
            && model.is_some()
            && intent.model_requested != *model
        {
            intent.model_requested.clone_from(model);
        }
    }

    fn makes_row(&self) -> bool {
        self.books.control_rows || !self.opening.call.operation.is_control()
    }

    /// Whether this call makes no row of its own: the job that it tells of makes one, once it is
    /// settled, unless this call has submitted it and tells of its end at once.
    fn is_control_call_of(&self, view: &JobView) -> bool {
        match self.opening.call.job {
            Some(JobCall::Submit) => view.stage != JobStage::Settled,
            Some(JobCall::Follow(_)) => true,
            None => false,
        }
    }

    /// How to ask for the job that this request has submitted.
    fn follow_up(&self, job_id: &str) -> Option<FollowUp> {
        let Opening {
            provider,
            call,
            submit,
            ..
        } = &self.opening;
        let Submit { target, headers } = submit.as_ref()?;
        let path = guarded(|| provider.follow_up(call, target, job_id)).flatten()?;
        Some(FollowUp {
            path: format!("/{}{path}", provider.name()),
            headers: headers.clone(),
        })
    }

    /// The intent of the job that this request has submitted.
    fn intent_of_job(&self, record: &UsageRecord, id: String) -> Intent {
        let request = self.opening.request.borrow();
        Intent {
            id: record.id,
            started_at: record.started_at,
            provider: record.provider.clone(),
            operation: record.operation,
            method: record.method.clone(),
            route: record.route.clone(),
            model_requested: record.model_requested.clone(),
            caller: record.caller.clone(),
            job: Some(Job {
                id,
                http_status: record.http_status,
                model_served: record.model_served.clone(),
                provider_request_id: record.provider_request_id.clone(),
                request_bytes: record.request_bytes,
                response_bytes: record.response_bytes,
                first_byte_us: record.first_byte_us,
                overhead_us: record.overhead_us,
                image_variant: request.facts().image_variant.clone(),
                qualifiers: request.facts().qualifiers.clone(),
                end: None,
            }),
        }
    }

    fn settle(mut self: Box<Self>, conclusion: Conclusion<'_>) {
        let started = clock::instant();
        let books = self.books.clone();
        let makes_row = self.makes_row();
        self.note_model();
        let Some(intent) = self.intent.take() else {
            return;
        };
        let (mut record, seen) = self.record(intent, conclusion);
        match (&self.opening.call.job, seen) {
            // The job's row is made when it is settled; for now this is a control call.
            (Some(JobCall::Submit), Some(seen)) => {
                let intent = self.intent_of_job(&record, seen.view.id.clone());
                record.operation = Operation::Control;
                record.unpriced_reason = None;
                books.ledger.count(&record);
                let has_ended = seen.view.stage == JobStage::Ended;
                let follow_up = self.follow_up(&seen.view.id);
                books
                    .jobs
                    .accept(intent, has_ended.then_some(seen.report), follow_up);
            }
            (_, seen) => {
                if makes_row {
                    books.ledger.complete(&record);
                } else {
                    books.ledger.count(&record);
                }
                if let Some(seen) = seen {
                    books.jobs.see(&record, seen.view, seen.report);
                }
            }
        }
        books
            .ledger
            .metrics()
            .overhead(Half::Response, started.elapsed());
        books.under_way.fetch_sub(1, Ordering::Relaxed);
        self.opening.phase.wait();
    }

    fn record(
        &mut self,
        intent: Intent,
        conclusion: Conclusion<'_>,
    ) -> (UsageRecord, Option<Seen>) {
        let settling = clock::instant();
        let mut record = intent.interrupted(self.books.instance.clone());
        let request = self.opening.request.clone();
        let request = request.borrow();
        let facts = request.facts();
        self.count_panics(request.panics());
        record.request_bytes = Some(request.bytes());
        record.response_bytes = Some(self.response_bytes);
        record.duration_us = Some(micros(self.opening.started.elapsed()));
        record.first_byte_us = self.first_byte_us;
        record.first_token_us = self.first_token_us;
        record.http_status = self.status;
        // A first token is seen in events only, whatever the type that they came under.
        record.streamed = self.is_streamed || self.first_token_us.is_some();
        record.unpriced_reason = None;

        let is_unread = matches!(conclusion, Conclusion::Unread);
        let end = match conclusion {
            Conclusion::Ended(end) => end,
            Conclusion::Unread => End::Complete,
            Conclusion::Refused(refusal) => {
                record.outcome = refusal.outcome();
                record.error_code = Some(refusal.kind.to_owned());
                record.unpriced_reason = refusal
                    .may_have_cost()
                    .then_some(UnpricedReason::Incomplete);
                record.overhead_us = Some(self.request_overhead_us);
                return (record, None);
            }
        };
        let finished = self.tap.take().map(|tap| tap.finish(end, facts));
        let report = finished.and_then(|(report, panics)| {
            self.count_panics(panics);
            report
        });
        let mut seen = None;
        match report {
            Some(mut report) => {
                if let Some(view) = report.job.clone()
                    && self.is_control_call_of(&view)
                {
                    let whole = report.clone();
                    own_part(&mut report, self.status);
                    seen = Some(Seen {
                        view,
                        report: whole,
                    });
                }
                costing::enter(
                    &self.books.prices.load(),
                    &mut record,
                    report,
                    Asked {
                        image_variant: facts.image_variant.as_deref(),
                        qualifiers: &facts.qualifiers,
                    },
                );
            }
            // Nobody read the response: all that is known is what the transport shows.
            None => record.outcome = unread_outcome(end, self.status),
        }
        if is_unread && record.outcome == Outcome::Ok {
            record.outcome = Outcome::ClientCancelled;
        }
        // A response that has said its last word is not spoilt by the end of its connection.
        if end == End::Cancelled && record.outcome == Outcome::ClientCancelled {
            if self.books.is_aborting.load(Ordering::Relaxed) {
                record.outcome = Outcome::Interrupted;
            } else if std::thread::panicking() {
                record.outcome = Outcome::ProxyError;
            }
        }
        if record.cost_usd.is_none() && record.unpriced_reason.is_none() {
            record.unpriced_reason = costing::unpriced_without_usage(&record, end);
        }
        record.overhead_us = Some(self.request_overhead_us + micros(settling.elapsed()));
        (record, seen)
    }

    fn count_panics(&self, panics: u32) {
        for _ in 0..panics {
            self.books.ledger.metrics().meter_panic();
        }
    }
}

/// How a request ended whose response no meter has read.
fn unread_outcome(end: End, status: Option<u16>) -> Outcome {
    match end {
        End::Complete => status.map_or(Outcome::Ok, Outcome::from_status),
        End::Truncated => Outcome::UpstreamTruncated,
        End::Cancelled => Outcome::ClientCancelled,
        End::TimedOut => Outcome::UpstreamTimeout,
    }
}
