//! The settlement: everything that is known of one request, turned into its record exactly once,
//! however the request ends.
//!
//! The end can be the response's last byte, a failure of the provider, the client's going away
//! (then the settlement is dropped), or a panic; [`Settlement`] hands its record to the ledger
//! in each of these cases and never twice.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use chrono::{DateTime, Utc};
use http::{HeaderMap, StatusCode, header};
use tokio::time::Instant;
use uuid::Uuid;

use crate::caller::{Caller, Instance};
use crate::clock::{self, micros};
use crate::fault::Outcome;
use crate::ledger::Ledger;
use crate::metrics::{InFlight, Phase as Half};
use crate::price::{Missing, PriceBook, Query};
use crate::provider::{Call, End, Meter, Milestone, Part, Provider, Report, ResponseHead};
use crate::proxy::body::RequestTap;
use crate::record::{CostSource, Fidelity, Intent, UnpricedReason, UsageRecord};
use crate::usage::Usage;
use crate::wire::inflate::{Decoding, Inflater};

/// What every settlement of a process shares.
pub(super) struct Books {
    pub(super) ledger: Ledger,
    pub(super) prices: Arc<PriceBook>,
    pub(super) instance: Instance,
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
        let pushed = catch_unwind(AssertUnwindSafe(|| {
            self.inflater.push(bytes, &mut |decoded| {
                milestone = milestone.or(meter.push(decoded));
            });
        }));
        match pushed {
            Ok(()) => self.meter = Some(meter),
            Err(_) => self.panics += 1,
        }
        milestone
    }

    fn finish(
        mut self,
        end: End,
        request: &crate::provider::RequestFacts,
    ) -> (Option<Report>, u32) {
        let Some(meter) = self.meter.take() else {
            return (None, self.panics);
        };
        let finished = catch_unwind(AssertUnwindSafe(|| {
            self.inflater.end();
            let mut report = meter.finish(end, request);
            if self.inflater.status() != Decoding::Ok {
                report.fidelity = match self.inflater.status() {
                    Decoding::TooLarge => Fidelity::Oversize,
                    _ => Fidelity::Undecodable,
                };
            }
            report
        }));
        match finished {
            Ok(report) => (Some(report), self.panics),
            Err(_) => (None, self.panics + 1),
        }
    }
}

/// A request under way.
pub(super) struct Opening {
    pub(super) id: Uuid,
    pub(super) started_at: DateTime<Utc>,
    pub(super) started: Instant,
    pub(super) provider: Arc<dyn Provider>,
    pub(super) name: Arc<str>,
    pub(super) call: Call,
    pub(super) method: String,
    pub(super) caller: Caller,
    pub(super) request: Rc<RefCell<RequestTap>>,
    pub(super) _in_flight: InFlight,
    /// The client connection's phase, told when the response is over.
    pub(super) phase: Arc<crate::proxy::stream::Phase>,
}

struct Open {
    books: Rc<Books>,
    opening: Opening,
    tap: Option<ResponseTap>,
    has_intent: bool,
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
    pub(super) fn open(books: Rc<Books>, opening: Opening) -> Settlement {
        books.under_way.fetch_add(1, Ordering::Relaxed);
        Settlement(Some(Box::new(Open {
            books,
            opening,
            tap: None,
            has_intent: false,
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
            open.books.ledger.begin(&open.intent());
            open.has_intent = true;
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
        let provider = &open.opening.provider;
        let limits = provider.rate_limits(headers);
        if !limits.is_empty() {
            open.books
                .ledger
                .metrics()
                .rate_limits(&open.opening.name, &limits, clock::instant());
        }
        let meter = provider.meter(&open.opening.call, ResponseHead { status, headers });
        open.tap = Some(ResponseTap {
            inflater: Inflater::for_headers(headers),
            meter: Some(meter),
            panics: 0,
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

    /// Settles a request that got no response from the provider.
    pub(super) fn fail(&mut self, outcome: Outcome, code: &'static str) {
        if let Some(open) = self.0.take() {
            open.settle(Conclusion::Failed(outcome, code));
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

enum Conclusion {
    Ended(End),
    /// The response was read to its end, but its client had gone.
    Unread,
    Failed(Outcome, &'static str),
}

impl Open {
    fn makes_row(&self) -> bool {
        self.books.control_rows || !self.opening.call.operation.is_control()
    }

    fn intent(&self) -> Intent {
        let Opening {
            id,
            started_at,
            name,
            call,
            method,
            caller,
            request,
            ..
        } = &self.opening;
        Intent {
            id: *id,
            started_at: *started_at,
            provider: name.clone(),
            operation: call.operation,
            method: method.clone(),
            route: call.route.to_string(),
            model_requested: request
                .borrow()
                .facts()
                .model
                .clone()
                .or_else(|| call.model.clone()),
            caller: caller.clone(),
        }
    }

    fn settle(mut self: Box<Self>, conclusion: Conclusion) {
        let started = clock::instant();
        let books = self.books.clone();
        let makes_row = self.makes_row();
        let record = self.record(conclusion);
        if makes_row {
            books.ledger.complete(&record);
        } else {
            books.ledger.count(&record);
        }
        books
            .ledger
            .metrics()
            .overhead(Half::Response, started.elapsed());
        books.under_way.fetch_sub(1, Ordering::Relaxed);
        self.opening.phase.wait();
    }

    fn record(&mut self, conclusion: Conclusion) -> UsageRecord {
        let settling = clock::instant();
        let mut record = self.intent().interrupted(self.books.instance.clone());
        let request = self.opening.request.borrow();
        let facts = request.facts().clone();
        let mut panics = request.panics();
        record.request_bytes = Some(request.bytes());
        drop(request);
        record.response_bytes = Some(self.response_bytes);
        record.duration_us = Some(micros(self.opening.started.elapsed()));
        record.first_byte_us = self.first_byte_us;
        record.first_token_us = self.first_token_us;
        record.http_status = self.status;
        record.streamed = self.is_streamed;
        record.fidelity = Fidelity::Partial;

        let is_unread = matches!(conclusion, Conclusion::Unread);
        let end = match conclusion {
            Conclusion::Ended(end) => end,
            Conclusion::Unread => End::Complete,
            Conclusion::Failed(outcome, code) => {
                record.outcome = outcome;
                record.error_code = Some(code.to_owned());
                record.fidelity = Fidelity::Silent;
                record.overhead_us = Some(self.request_overhead_us);
                return record;
            }
        };
        let is_aborted = end == End::Cancelled && self.books.is_aborting.load(Ordering::Relaxed);
        let finished = self.tap.take().map(|tap| tap.finish(end, &facts));
        let report = finished.and_then(|(report, meter_panics)| {
            panics += meter_panics;
            report
        });
        for _ in 0..panics {
            self.books.ledger.metrics().meter_panic();
        }
        let (outcome, parts, stated, region, is_estimated) = match report {
            None => (
                record.http_status.map_or(Outcome::Ok, Outcome::from_status),
                Vec::new(),
                None,
                None,
                false,
            ),
            Some(report) => {
                record.error_code = report.error_code;
                record.error_message = report.error_message;
                record.finish_reason = report.finish_reason;
                record.model_served = report.model_served;
                record.upstream_provider = report.upstream_provider;
                record.service_tier = report.service_tier;
                record.provider_request_id = report.provider_request_id;
                record.raw_usage = report.raw_usage;
                record.fidelity = report.fidelity;
                record.usage = Usage::total_of(report.parts.iter().map(|part| &part.usage));
                (
                    report.outcome,
                    report.parts,
                    report.stated_cost,
                    report.region,
                    report.estimated,
                )
            }
        };
        record.outcome = match (outcome, end) {
            _ if is_aborted => Outcome::Interrupted,
            // What the provider itself said of the failure is more than that it broke off.
            (Outcome::Ok | Outcome::ContentFiltered, End::Truncated) => Outcome::UpstreamTruncated,
            (Outcome::Ok | Outcome::ContentFiltered, End::TimedOut) => Outcome::UpstreamTimeout,
            (_, End::Cancelled) => Outcome::ClientCancelled,
            _ if is_unread => Outcome::ClientCancelled,
            (outcome, _) => outcome,
        };
        record.unpriced_reason = None;
        if let Some(stated) = stated {
            record.cost_usd = Some(stated.total);
            record.cost_upstream_usd = stated.upstream;
            record.cost_source = Some(CostSource::Provider);
        } else {
            let ended = end == End::Complete;
            self.price(
                &mut record,
                &parts,
                region.as_deref(),
                &facts,
                is_estimated || !ended,
                ended,
            );
        }
        record.overhead_us = Some(self.request_overhead_us + micros(settling.elapsed()));
        record
    }

    /// Prices the parts one by one; the row has a cost only if every part has one.
    fn price(
        &self,
        record: &mut UsageRecord,
        parts: &[Part],
        region: Option<&str>,
        facts: &crate::provider::RequestFacts,
        is_estimated: bool,
        ended: bool,
    ) {
        if record.usage.is_empty() {
            record.unpriced_reason = unpriced_without_usage(record, ended);
            return;
        }
        let mut total = crate::money::Usd::ZERO;
        let mut is_estimated = is_estimated;
        for part in parts.iter().filter(|part| !part.usage.is_empty()) {
            let requested = record.model_requested.as_deref();
            let served = part.model.as_deref().or(record.model_served.as_deref());
            let Some(model) = served.or(requested) else {
                record.unpriced_reason = Some(UnpricedReason::ModelMissing);
                return;
            };
            let query = Query {
                provider: &self.opening.name,
                model,
                usage: &part.usage,
                service_tier: record.service_tier.as_deref(),
                region,
                image_variant: facts.image_variant.as_deref(),
                at: record.started_at,
            };
            let priced = self.books.prices.price(&query);
            record.price_version = Some(priced.version.to_string());
            match (priced.cost, priced.missing) {
                (Some(cost), _) => total = total + cost,
                (None, missing) => {
                    record.unpriced_reason = Some(match missing {
                        Some(Missing::Unit(_)) => UnpricedReason::PriceMissing,
                        _ => UnpricedReason::ModelUnknown,
                    });
                    record.price_version = None;
                    return;
                }
            }
            is_estimated |= priced.estimated;
        }
        record.cost_usd = Some(total.normalize());
        record.cost_source = Some(if is_estimated {
            CostSource::Estimated
        } else {
            CostSource::Catalog
        });
    }
}

/// Why a record without any usage has no cost. An error that the provider answered is not
/// counted as missing usage: no usage was due.
fn unpriced_without_usage(record: &UsageRecord, ended: bool) -> Option<UnpricedReason> {
    if record.operation.is_control() {
        return None;
    }
    if !ended {
        return Some(UnpricedReason::Incomplete);
    }
    match record.outcome {
        Outcome::Ok | Outcome::ContentFiltered => Some(UnpricedReason::UsageMissing),
        _ => None,
    }
}
