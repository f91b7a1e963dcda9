//! Days that a demo did not live through: rows for the days before today, so that there is a last
//! week to compare with and a bill to hold against what was metered.
//!
//! The same requests that the clients make, thinner, and priced by the catalogue. Everything
//! follows from the day alone, ids too, so that writing it twice changes nothing and a look-alike
//! of a billing API can work out what it bills.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Datelike, Days, NaiveDate, NaiveTime, TimeDelta, Utc, Weekday};
use rust_decimal::Decimal;
use uuid::Builder;

use super::dice::Dice;
use super::traffic::{self, Plan};
use crate::caller::{Caller, Instance};
use crate::fault::Outcome;
use crate::price::{PriceBook, Query};
use crate::qualifier::Qualifiers;
use crate::record::{CostSource, Fidelity, UnpricedReason, UsageRecord};
use crate::store::{Store, StoreError};

/// How many requests there are on a working day, and on a day of the weekend.
const REQUESTS_PER_DAY: (u32, u32) = (240, 90);

/// The most records that are written at a time.
const BATCH_RECORDS: usize = 500;

/// The requests of days past, by the day.
#[derive(Debug, Clone, Default)]
pub struct History {
    days: BTreeMap<NaiveDate, Vec<UsageRecord>>,
}

impl History {
    /// The `count` days before `today`.
    pub fn before(today: NaiveDate, count: u32) -> History {
        let book = PriceBook::embedded();
        let days = (1..=u64::from(count)).filter_map(|ago| today.checked_sub_days(Days::new(ago)));
        History {
            days: days.map(|day| (day, records(day, &book))).collect(),
        }
    }

    /// What the requests to a provider on a day cost, as far as the provider bills it.
    pub fn spent(&self, provider: &str, day: NaiveDate) -> Decimal {
        let records = self.days.get(&day).into_iter().flatten();
        let own = records.filter(|record| &*record.provider == provider);
        let costs = own.filter_map(|record| {
            let others = record.cost_upstream_usd.unwrap_or_default();
            Some(record.cost_usd?.dollars() - others.dollars())
        });
        costs.sum()
    }

    /// Writes all of it.
    ///
    /// # Errors
    ///
    /// The store's.
    pub async fn write(&self, store: &Store) -> Result<(), StoreError> {
        if let (Some((first, _)), Some((last, _))) =
            (self.days.first_key_value(), self.days.last_key_value())
        {
            store.prepare_days(*first, *last).await?;
        }
        for batch in self.days.values().flat_map(|day| day.chunks(BATCH_RECORDS)) {
            store.apply(batch).await?;
        }
        Ok(())
    }
}

fn records(day: NaiveDate, book: &PriceBook) -> Vec<UsageRecord> {
    let count = match day.weekday() {
        Weekday::Sat | Weekday::Sun => REQUESTS_PER_DAY.1,
        _ => REQUESTS_PER_DAY.0,
    };
    let seed = Dice::of(&day.to_string()).bits();
    let midnight = day.and_time(NaiveTime::MIN).and_utc();
    let apart = TimeDelta::seconds(86_400 / i64::from(count));
    (0..count)
        .filter_map(|number| {
            let plan = Plan::of(seed, u64::from(number) + traffic::FIRST_BY_CHANCE)?;
            let started_at = midnight + apart * i32::try_from(number).ok()?;
            Some(record(&plan, started_at, book))
        })
        .collect()
}

/// What the row of a request would have been.
fn record(plan: &Plan, started_at: DateTime<Utc>, book: &PriceBook) -> UsageRecord {
    let foresight = &plan.foresight;
    let mut dice = Dice::of(&format!("{started_at} {}", plan.body));
    let random: Vec<u8> = dice
        .bits()
        .to_be_bytes()
        .into_iter()
        .chain([0, 1])
        .collect();
    let random = random.try_into().unwrap_or_default();
    let millis = u64::try_from(started_at.timestamp_millis()).unwrap_or_default();
    let unasked = Qualifiers::default();
    let priced = book.price(&Query {
        provider: plan.vendor.name(),
        model: foresight.model,
        usage: &foresight.usage,
        service_tier: None,
        region: None,
        image_variant: None,
        qualifiers: [&unasked, &unasked],
        operation: plan.operation(),
        at: started_at,
    });
    let is_ok = foresight.outcome == Outcome::Ok;
    let cost_usd = foresight.charged.or(priced.cost);
    let first_token_us = 1_000 * dice.between((120, 900));
    UsageRecord {
        id: Builder::from_unix_timestamp_millis(millis, &random).into_uuid(),
        started_at,
        instance: Instance {
            instance: "demo-yesterday".into(),
            ..Instance::default()
        },
        provider: Arc::from(plan.vendor.name()),
        operation: plan.operation(),
        method: "POST".to_owned(),
        route: plan.path.to_owned(),
        model_requested: Some(foresight.model.to_owned()),
        model_served: is_ok.then(|| foresight.model.to_owned()),
        upstream_provider: None,
        service_tier: None,
        streamed: plan.is_stream(),
        job_id: None,
        polls: None,
        provider_request_id: None,
        outcome: foresight.outcome,
        http_status: Some(foresight.status.as_u16()),
        error_code: None,
        error_message: None,
        finish_reason: is_ok.then(|| "stop".to_owned()),
        duration_us: Some(first_token_us + 1_000 * dice.between((200, 6_000))),
        first_byte_us: Some(first_token_us / 2),
        first_token_us: plan.is_stream().then_some(first_token_us),
        overhead_us: Some(dice.between((60, 400))),
        queue_us: None,
        run_us: None,
        request_bytes: u64::try_from(plan.body.len()).ok(),
        response_bytes: Some(dice.between((400, 40_000))),
        usage: foresight.usage.clone(),
        fidelity: match foresight.usage.is_empty() {
            true => Fidelity::Silent,
            false => Fidelity::Complete,
        },
        raw_usage: None,
        cost_usd,
        cost_upstream_usd: None,
        cache_effect_usd: None,
        cost_source: cost_usd.map(|_| match foresight.charged {
            Some(_) => CostSource::Provider,
            None => CostSource::Catalog,
        }),
        price_version: priced.cost.map(|_| priced.version.to_string()),
        unpriced_reason: match cost_usd {
            Some(_) => None,
            None => foresight
                .unpriced
                .or(priced.missing.map(crate::price::Missing::reason))
                .or((!is_ok).then_some(UnpricedReason::UsageMissing)),
        },
        recosted_at: None,
        caller: Caller {
            attribution: plan.attribution(),
            ..Caller::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_past_is_always_the_same_and_costs_something() {
        let today: NaiveDate = "2026-11-24".parse().unwrap();
        let (once, again) = (History::before(today, 3), History::before(today, 2));
        assert_eq!(once.days.len(), 3);
        for (day, records) in &again.days {
            assert_eq!(&once.days[day], records);
            assert!(records.iter().all(|record| record.day() == *day));
            for provider in ["openai", "anthropic", "openrouter", "fal"] {
                assert!(
                    once.spent(provider, *day) > Decimal::ZERO,
                    "{provider} {day}"
                );
            }
        }
        // A Sunday is quiet.
        let count = |day: &str| once.days[&day.parse().unwrap()].len();
        assert!(count("2026-11-22") < count("2026-11-23"));
        assert_eq!(once.spent("openai", today), Decimal::ZERO);
    }
}
