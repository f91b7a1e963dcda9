//! Anthropic's cost report: texts of decimals in US cents, by UTC day, for an admin key.
//!
//! Source: platform.claude.com/docs/en/api/admin/cost_report, `GET /v1/organizations/cost_report`,
//! read 2026-11-24: at most 31 days a page, the default 7; five minutes late as a rule. "Time buckets
//! that end before" `ending_at` come, so that the last day may be left out where it ends just then:
//! it is asked for a second later. Spend of the priority tier is in no cost report. Without
//! `group_by` a bucket has one result or none.

use chrono::{DateTime, NaiveDate, Utc};
use rust_decimal::Decimal;
use serde::Deserialize;

use super::{BillApi, Page, Period, check_usd, midnight, next_page};
use crate::ask::{Answer, Ask, Fault, KeyPlace};
use crate::balance::{Domain, Exact, document};

const HOST: &str = "https://api.anthropic.com";

/// Anthropic's cost report.
pub(super) struct Anthropic;

#[derive(Deserialize)]
struct Document {
    data: Vec<Bucket>,
    #[serde(default)]
    has_more: bool,
    next_page: Option<String>,
}

#[derive(Deserialize)]
struct Bucket {
    starting_at: DateTime<Utc>,
    results: Vec<Cost>,
}

#[derive(Deserialize)]
struct Cost {
    currency: String,
    /// In cents.
    amount: Exact,
}

impl BillApi for Anthropic {
    fn domains(&self) -> &'static [Domain] {
        &[Domain {
            name: "anthropic.com",
            host: HOST,
            currency: "USD",
        }]
    }

    fn name(&self) -> &'static str {
        "cost_report"
    }

    fn key(&self) -> &'static str {
        "an admin key (sk-ant-admin…)"
    }

    fn first(&self, period: Period, _: Option<&str>) -> Ask {
        let Period { from, to } = period;
        Ask::get(
            HOST,
            format!(
                "/v1/organizations/cost_report?starting_at={from}T00:00:00Z&ending_at={to}T00:00:01Z&bucket_width=1d&limit=31"
            ),
        )
        .key(KeyPlace::Header(http::HeaderName::from_static("x-api-key")))
        .header("anthropic-version", "2023-06-01")
    }

    fn read(&self, period: Period, asked: &Ask, answer: &Answer) -> Result<Page, Fault> {
        let document: Document = document(answer)?;
        let mut page = Page::new();
        for bucket in document.data {
            let day: NaiveDate = bucket.starting_at.date_naive();
            if midnight(day) != bucket.starting_at {
                return Err(Fault::malformed("a bucket is no day"));
            }
            page.add(period, day, Decimal::ZERO);
            for Cost { currency, amount } in bucket.results {
                check_usd(&currency)?;
                page.add(period, day, amount.0 / Decimal::ONE_HUNDRED);
            }
        }
        let next = document.next_page.filter(|_| document.has_more);
        page.next = next.map(|cursor| next_page(asked, "page", &cursor));
        Ok(page)
    }
}
