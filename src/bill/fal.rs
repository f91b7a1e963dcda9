//! fal's usage: dollars by UTC day and endpoint, discounts taken off, for a key of scope ADMIN.
//!
//! Source: fal.ai/docs/platform-apis/v1/models/usage and its OpenAPI file, read 2026-11-24: `end`
//! is exclusive, `bound_to_timeframe=false` keeps it as it is given, and a day without use has no
//! bucket. `cost_total` is what is charged; answers of before mid-2026 have `cost` alone, which is the
//! same where there is no discount. Serverless and compute are billed elsewhere and are not in it.

use chrono::{DateTime, FixedOffset};
use serde::Deserialize;

use super::{BillApi, Page, Period, check_usd, next_page};
use crate::ask::{Answer, Ask, Fault, KeyPlace};
use crate::balance::{Domain, Exact, document};

const HOST: &str = "https://api.fal.ai";

/// fal's usage API.
pub(super) struct Fal;

#[derive(Deserialize)]
struct Document {
    time_series: Vec<Bucket>,
    #[serde(default)]
    has_more: bool,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct Bucket {
    bucket: DateTime<FixedOffset>,
    results: Vec<Usage>,
}

#[derive(Deserialize)]
struct Usage {
    cost_total: Option<Exact>,
    cost: Option<Exact>,
    currency: String,
}

impl BillApi for Fal {
    fn domains(&self) -> &'static [Domain] {
        &[
            Domain {
                name: "fal.ai",
                host: HOST,
                currency: "USD",
            },
            // Where the traffic goes.
            Domain {
                name: "fal.run",
                host: HOST,
                currency: "USD",
            },
        ]
    }

    fn name(&self) -> &'static str {
        "usage"
    }

    fn key(&self) -> &'static str {
        "a key of scope ADMIN"
    }

    fn first(&self, period: Period, _: Option<&str>) -> Ask {
        let Period { from, to } = period;
        Ask::get(
            HOST,
            format!(
                "/v1/models/usage?start={from}T00:00:00Z&end={to}T00:00:00Z&timezone=UTC&timeframe=day&bound_to_timeframe=false&expand=time_series&limit=50"
            ),
        )
        .key(KeyPlace::Authorization("Key"))
    }

    fn read(&self, period: Period, asked: &Ask, answer: &Answer) -> Result<Page, Fault> {
        let document: Document = document(answer)?;
        let mut page = Page::of_all(period);
        for bucket in document.time_series {
            let day = bucket.bucket.to_utc().date_naive();
            for usage in bucket.results {
                check_usd(&usage.currency)?;
                let cost = usage.cost_total.or(usage.cost);
                let cost = cost.ok_or_else(|| Fault::malformed("a line has no cost"))?;
                page.add(period, day, cost.0);
            }
        }
        let next = document.next_cursor.filter(|_| document.has_more);
        page.next = next.map(|cursor| next_page(asked, "cursor", &cursor));
        Ok(page)
    }
}
