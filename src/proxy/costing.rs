//! What a meter reported, entered into a record and priced.

use std::borrow::Cow;
use std::sync::Arc;

use crate::clock::micros;
use crate::fault::Outcome;
use crate::money::Usd;
use crate::price::{Missing, PriceBook, Query};
use crate::provider::{End, Part, Report};
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
    let mut listed = None;
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
        (None, fidelity) => {
            match price(prices, record, &report, asked, |usage| Cow::Borrowed(usage)) {
                Ok(priced) => {
                    let is_inferred =
                        report.estimated || priced.is_estimated || fidelity != Fidelity::Complete;
                    listed = Some(priced.cost);
                    record.cost_usd = Some(priced.cost.normalize());
                    record.price_version = Some(priced.version.to_string());
                    record.cost_source = Some(match is_inferred {
                        true => CostSource::Estimated,
                        false => CostSource::Catalog,
                    });
                }
                Err(reason) => record.unpriced_reason = Some(reason),
            }
        }
    }
    record.cache_effect_usd = cache_effect(prices, record, &report, asked, listed);
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
    usage_of: fn(&Usage) -> Cow<'_, Usage>,
) -> Result<Total, UnpricedReason> {
    let mut total = Total {
        cost: Usd::ZERO,
        version: "".into(),
        is_estimated: false,
    };
    for part in report.parts.iter().filter(|part| !part.usage.is_empty()) {
        let usage = usage_of(&part.usage);
        let query = query(record, report, asked, part, &usage);
        let priced = prices.price(&query.ok_or(UnpricedReason::ModelMissing)?);
        let missing = priced
            .missing
            .map_or(UnpricedReason::ModelUnknown, Missing::reason);
        total.cost = total.cost + priced.cost.ok_or(missing)?;
        total.version = priced.version;
        total.is_estimated |= priced.estimated;
    }
    Ok(total)
}

/// What to ask the price book for `usage` of a part of a response; `None` if no model is named.
fn query<'a>(
    record: &'a UsageRecord,
    report: &'a Report,
    asked: Asked<'a>,
    part: &'a Part,
    usage: &'a Usage,
) -> Option<Query<'a>> {
    let models = [
        &part.model,
        &report.model_served,
        &record.model_served,
        &record.model_requested,
    ];
    Some(Query {
        provider: &record.provider,
        model: models.into_iter().find_map(Option::as_deref)?,
        usage,
        service_tier: report.service_tier.as_deref(),
        region: report.region.as_deref(),
        image_variant: asked.image_variant.or(report.image_variant.as_deref()),
        // What is billed is what the provider states.
        qualifiers: [&report.qualifiers, asked.qualifiers],
        operation: record.operation,
        at: record.started_at,
    })
}

/// How much cheaper caches made a response, by list prices whoever stated its cost; negative if
/// they made it dearer. `None` if there were no cached tokens, or something has no price.
/// `listed` is its cost by list prices, where that is known.
fn cache_effect(
    prices: &PriceBook,
    record: &UsageRecord,
    report: &Report,
    asked: Asked<'_>,
    listed: Option<Usd>,
) -> Option<Usd> {
    if !report.parts.iter().any(|part| part.usage.has_cached()) {
        return None;
    }
    let cost = |usage_of| Some(price(prices, record, report, asked, usage_of).ok()?.cost);
    let uncached = cost(|usage| Cow::Owned(usage.uncached()))?;
    let listed = listed.or_else(|| cost(|usage| Cow::Borrowed(usage)))?;
    Some(Usd::new(uncached.dollars() - listed.dollars()))
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

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use uuid::Uuid;

    use super::*;
    use crate::caller::{Caller, Instance};
    use crate::record::{Intent, Operation};
    use crate::usage::Unit;

    fn effect(model: &str, usage: Usage) -> Option<String> {
        let intent = Intent {
            id: Uuid::nil(),
            started_at: DateTime::from_timestamp(1_764_000_000, 0).unwrap(),
            provider: "anthropic".into(),
            operation: Operation::Chat,
            method: "POST".to_owned(),
            route: "/v1/messages".to_owned(),
            model_requested: Some(model.to_owned()),
            caller: Caller::default(),
            job: None,
        };
        let record = intent.interrupted(Instance::default());
        let report = Report {
            outcome: Outcome::Ok,
            error_code: None,
            error_message: None,
            finish_reason: None,
            model_served: None,
            upstream_provider: None,
            service_tier: None,
            region: None,
            provider_request_id: None,
            image_variant: None,
            qualifiers: Qualifiers::default(),
            parts: vec![Part { model: None, usage }],
            stated_cost: None,
            raw_usage: None,
            fidelity: Fidelity::Complete,
            estimated: false,
            job: None,
        };
        let asked = Asked {
            image_variant: None,
            qualifiers: &Qualifiers::default(),
        };
        let effect = cache_effect(&PriceBook::embedded(), &record, &report, asked, None)?;
        Some(effect.normalize().to_string())
    }

    #[test]
    fn what_caches_saved_is_the_difference_to_plain_input() {
        // 3 USD a million for input, 0.30 to read, 3.75 to write for five minutes.
        let model = "claude-sonnet-4-5";
        let read = Usage::new()
            .with(Unit::Input, 10)
            .with(Unit::CacheRead, 90_000);
        assert_eq!(effect(model, read.clone()).as_deref(), Some("0.243"));
        let written = Usage::new().with(Unit::CacheWrite5m, 90_000);
        assert_eq!(effect(model, written).as_deref(), Some("-0.0675"));
        let both = read.with(Unit::CacheWrite5m, 90_000);
        assert_eq!(effect(model, both).as_deref(), Some("0.1755"));
    }

    #[test]
    fn without_cached_tokens_or_a_price_there_is_no_effect() {
        let plain = Usage::new().with(Unit::Input, 10).with(Unit::Output, 5);
        assert_eq!(effect("claude-sonnet-4-5", plain.clone()), None);
        assert_eq!(
            effect("claude-sonnet-4-5", plain.with(Unit::CacheRead, 0)),
            None
        );
        let cached = Usage::new().with(Unit::CacheRead, 10);
        assert_eq!(effect("no-such-model", cached), None);
    }
}
