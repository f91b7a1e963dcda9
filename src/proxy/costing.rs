//! What a meter reported, entered into a record and priced.

use std::sync::Arc;

use crate::clock::micros;
use crate::fault::Outcome;
use crate::money::Usd;
use crate::price::{Missing, PriceBook, Query};
use crate::provider::{End, Report};
use crate::qualifier::Qualifiers;
use crate::record::{CostSource, Fidelity, UnpricedReason, UsageRecord};
use crate::usage::Usage;

/// What a request asked for that its price can depend on.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) image_variant: Option<&'a str>,
    pub(super) qualifiers: &'a Qualifiers,
}

/// Enters what a meter reported, and prices it.
pub(super) fn enter(
    prices: &PriceBook,
    record: &mut UsageRecord,
    report: Report,
    asked: Asked<'_>,
) {
    record.outcome = report.outcome;
    record.fidelity = report.fidelity;
    record.usage = Usage::total_of(report.parts.iter().map(|part| &part.usage));
    match (report.stated_cost, report.fidelity) {
        (Some(stated), _) => {
            record.cost_usd = Some(stated.total);
            record.cost_upstream_usd = stated.upstream;
            record.cost_source = Some(CostSource::Provider);
        }
        // What is missing of a malformed usage would count as free.
        (None, Fidelity::Malformed) => {
            record.unpriced_reason = Some(UnpricedReason::UsageMissing);
        }
        (None, _) if record.usage.is_empty() => {}
        (None, fidelity) => match price(prices, record, &report, asked) {
            Ok(priced) => {
                let is_inferred =
                    report.estimated || priced.is_estimated || fidelity != Fidelity::Complete;
                record.cost_usd = Some(priced.cost.normalize());
                record.price_version = Some(priced.version.to_string());
                record.cost_source = Some(match is_inferred {
                    true => CostSource::Estimated,
                    false => CostSource::Catalog,
                });
            }
            Err(reason) => record.unpriced_reason = Some(reason),
        },
    }
    if let Some(job) = report.job {
        record.job_id = Some(job.id);
        record.queue_us = job.queue.map(micros);
        record.run_us = job.run.map(micros);
    }
    record.error_code = report.error_code;
    record.error_message = report.error_message;
    record.finish_reason = report.finish_reason;
    // A view of a job may not repeat what its submit told.
    record.model_served = report.model_served.or(record.model_served.take());
    record.upstream_provider = report.upstream_provider;
    record.service_tier = report.service_tier;
    record.provider_request_id = report
        .provider_request_id
        .or(record.provider_request_id.take());
    record.raw_usage = report.raw_usage;
}

/// The cost of all parts of a response.
struct Total {
    cost: Usd,
    version: Arc<str>,
    is_estimated: bool,
}

/// Prices the parts one by one; there is a cost only if every part has one.
fn price(
    prices: &PriceBook,
    record: &UsageRecord,
    report: &Report,
    asked: Asked<'_>,
) -> Result<Total, UnpricedReason> {
    let served = report
        .model_served
        .as_deref()
        .or(record.model_served.as_deref())
        .or(record.model_requested.as_deref());
    let mut total = Total {
        cost: Usd::ZERO,
        version: "".into(),
        is_estimated: false,
    };
    for part in report.parts.iter().filter(|part| !part.usage.is_empty()) {
        let model = part
            .model
            .as_deref()
            .or(served)
            .ok_or(UnpricedReason::ModelMissing)?;
        let priced = prices.price(&Query {
            provider: &record.provider,
            model,
            usage: &part.usage,
            service_tier: report.service_tier.as_deref(),
            region: report.region.as_deref(),
            image_variant: asked.image_variant.or(report.image_variant.as_deref()),
            // What is billed is what the provider states.
            qualifiers: [&report.qualifiers, asked.qualifiers],
            operation: record.operation,
            at: record.started_at,
        });
        let missing = priced
            .missing
            .map_or(UnpricedReason::ModelUnknown, Missing::reason);
        total.cost = total.cost + priced.cost.ok_or(missing)?;
        total.version = priced.version;
        total.is_estimated |= priced.estimated;
    }
    Ok(total)
}

/// Why a record without any usage has no cost. An error that the provider answered is not
/// counted as missing usage: no usage was due. A job was accepted, and may have run for a while
/// before it failed or was stopped.
pub(super) fn unpriced_without_usage(record: &UsageRecord, end: End) -> Option<UnpricedReason> {
    if record.operation.is_control() {
        return None;
    }
    if end != End::Complete {
        return Some(UnpricedReason::Incomplete);
    }
    match record.outcome {
        Outcome::Ok | Outcome::ContentFiltered => Some(UnpricedReason::UsageMissing),
        _ => record.job_id.as_ref().map(|_| UnpricedReason::UsageMissing),
    }
}
