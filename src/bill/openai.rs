//! OpenAI's costs: dollars by UTC day, for an admin key; `billing_id` narrows them to a project.
//!
//! Source: OpenAI's API reference, `GET /v1/organization/costs`, read 2026-11-24: `start_time`
//! inclusive, `end_time` exclusive, buckets of a day, at most 180 a page. A day without spend has a
//! bucket without results. Recent days still change.

use chrono::{DateTime, NaiveDate};
use serde::Deserialize;

use super::{BillApi, Page, Period, check_usd, midnight, next_page};
use crate::ask::{Answer, Ask, Fault};
use crate::balance::{Domain, Exact, document};

const HOST: &str = "https://api.openai.com";

/// OpenAI's costs API.
pub(super) struct OpenAi;

#[derive(Deserialize)]
struct Document {
    data: Vec<Bucket>,
    #[serde(default)]
    has_more: bool,
    next_page: Option<String>,
}

#[derive(Deserialize)]
struct Bucket {
    /// In seconds since 1970.
    start_time: i64,
    results: Vec<Cost>,
}

#[derive(Deserialize)]
struct Cost {
    amount: Amount,
}

#[derive(Deserialize)]
struct Amount {
    value: Exact,
    currency: String,
}

impl BillApi for OpenAi {
    fn domains(&self) -> &'static [Domain] {
        &[Domain {
            name: "openai.com",
            host: HOST,
            currency: "USD",
        }]
    }

    fn name(&self) -> &'static str {
        "costs"
    }

    fn key(&self) -> &'static str {
        "an admin key (sk-admin-…) that may read usage"
    }

    fn first(&self, period: Period, billing_id: Option<&str>) -> Ask {
        let [start, end] = [period.from, period.to].map(|day| midnight(day).timestamp());
        let project = billing_id.map_or(String::new(), |id| format!("&project_ids[]={id}"));
        Ask::get(
            HOST,
            format!(
                "/v1/organization/costs?start_time={start}&end_time={end}&bucket_width=1d&limit=31{project}"
            ),
        )
    }

    fn read(&self, period: Period, asked: &Ask, answer: &Answer) -> Result<Page, Fault> {
        let document: Document = document(answer)?;
        let mut page = Page::new();
        for bucket in document.data {
            let day = day(bucket.start_time).ok_or_else(|| Fault::malformed("a time is none"))?;
            page.add(period, day, rust_decimal::Decimal::ZERO);
            for Cost { amount } in bucket.results {
                check_usd(&amount.currency)?;
                page.add(period, day, amount.value.0);
            }
        }
        let next = document.next_page.filter(|_| document.has_more);
        page.next = next.map(|cursor| next_page(asked, "page", &cursor));
        Ok(page)
    }
}

/// The day that begins then.
fn day(start: i64) -> Option<NaiveDate> {
    let start = DateTime::from_timestamp(start, 0)?;
    Some(start.date_naive()).filter(|day| midnight(*day) == start)
}
