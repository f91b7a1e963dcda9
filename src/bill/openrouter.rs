//! OpenRouter's activity: credits, which are US dollars, by UTC day, model and endpoint, for a
//! management key.
//!
//! Source: OpenRouter's OpenAPI file, `GET /api/v1/activity`, read 2026-11-24. It covers the last 30
//! completed UTC days, on one page, and lists what happened alone: a day without a line had none.
//! `usage` is what the account pays. `byok_usage_inference` is what others bill for requests with a
//! key of the user's own, and is no part of it.

use chrono::NaiveDate;
use serde::Deserialize;

use super::{BillApi, Page, Period};
use crate::ask::{Answer, Ask, Fault};
use crate::balance::{Domain, Exact, document};

const HOST: &str = "https://openrouter.ai";

/// OpenRouter's activity API.
pub(super) struct OpenRouter;

#[derive(Deserialize)]
struct Document {
    data: Vec<Activity>,
}

#[derive(Deserialize)]
struct Activity {
    /// `2025-08-24`; some deployments add a time of midnight.
    date: String,
    usage: Exact,
}

impl BillApi for OpenRouter {
    fn domains(&self) -> &'static [Domain] {
        &[Domain {
            name: "openrouter.ai",
            host: HOST,
            currency: "USD",
        }]
    }

    fn name(&self) -> &'static str {
        "activity"
    }

    fn key(&self) -> &'static str {
        "a management key"
    }

    fn first(&self, _: Period, _: Option<&str>) -> Ask {
        Ask::get(HOST, "/api/v1/activity")
    }

    fn read(&self, period: Period, _: &Ask, answer: &Answer) -> Result<Page, Fault> {
        let Document { data } = document(answer)?;
        let mut page = Page::of_all(period);
        for Activity { date, usage } in data {
            let day: Option<NaiveDate> = date.get(..10).and_then(|day| day.parse().ok());
            let day = day.ok_or_else(|| Fault::malformed("a date is none"))?;
            page.add(period, day, usage.0);
        }
        Ok(page)
    }
}
