//! What vendors say that single requests cost, for rows whose cost nobody saw. Pure: answers in,
//! dollars of requests out.
//!
//! A file for each vendor, as with bills: it knows the path, how many requests a call asks for, by
//! which of a row's ids the vendor knows a request, and what an answer that says nothing looks like.
//! A receipt that is not clear is no cost. **Adding a vendor** is one file and two lines here.

mod fal;
mod openrouter;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;

use crate::ask::{Answer, Ask, Fault};
use crate::money::Usd;
use crate::record::StatedCost;

/// A vendor's API that tells what a request cost, in US dollars.
pub trait ReceiptApi: Sync {
    /// What the vendor calls it.
    fn name(&self) -> &'static str;

    /// What kind of key it wants, in a few words for a person.
    fn key(&self) -> &'static str;

    /// Whether that is the account's `admin_key`, where it has one, and not its `api_key`.
    fn wants_admin_key(&self) -> bool;

    /// How many requests one call asks for at most.
    fn ids_per_call(&self) -> usize;

    /// The id that the vendor knows a request by, of those that its row has.
    fn id(&self, request_id: Option<String>, job_id: Option<String>) -> Option<String>;

    /// An id that no request has, to ask about without asking for anything.
    fn nobodys_id(&self) -> &'static str;

    /// What is asked first about requests, the first of which started at `since`.
    fn first(&self, ids: &[&str], since: DateTime<Utc>) -> Ask;

    /// Reads the answer to what was asked about requests.
    ///
    /// # Errors
    /// What the vendor said instead. That it does not know a request, or not yet, is none.
    fn read(&self, ids: &[&str], asked: &Ask, answer: &Answer) -> Result<Page, Fault>;
}

/// A page of receipts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Its lines. A request may have several, on several pages: they add up.
    pub lines: Vec<Line>,
    /// What is to be asked for the next one.
    pub next: Option<Ask>,
}

/// What a line of a receipt says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The request.
    pub id: String,
    /// What it cost; `None` if the line does not say so clearly.
    pub cost: Option<StatedCost>,
}

/// What is known of a request once every page was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receipt {
    /// It cost this much.
    Clear(StatedCost),
    /// The vendor knows it, and does not say clearly what it cost.
    Unclear,
    /// The vendor does not know it, or not yet.
    Missing,
}

/// The receipts of requests, as their pages come.
#[derive(Debug, Clone, Default)]
pub struct Receipts(BTreeMap<String, Option<StatedCost>>);

impl Receipts {
    /// Takes up a line. One that is not clear makes its request's receipt unclear for good.
    pub fn add(&mut self, Line { id, cost }: Line) {
        self.0
            .entry(id)
            .and_modify(|sum| *sum = sum.zip(cost).map(|(sum, cost)| plus(sum, cost)))
            .or_insert(cost);
    }

    /// What is known of a request. A refund may make it free; more than that nobody pays back.
    pub fn of(&self, id: &str) -> Receipt {
        match self.0.get(id) {
            None => Receipt::Missing,
            Some(Some(cost)) if cost.total.dollars() >= Decimal::ZERO => Receipt::Clear(*cost),
            Some(_) => Receipt::Unclear,
        }
    }
}

fn plus(one: StatedCost, other: StatedCost) -> StatedCost {
    let upstream = match (one.upstream, other.upstream) {
        (Some(one), Some(other)) => Some((one + other).normalize()),
        (one, other) => one.or(other),
    };
    StatedCost {
        total: (one.total + other.total).normalize(),
        upstream,
    }
}

/// The vendors that tell what a request cost, by the provider's name.
pub const VENDORS: [&str; 2] = ["fal", "openrouter"];

/// The API of a provider's receipts; `None` if it has none.
pub fn api(provider: &str) -> Option<&'static dyn ReceiptApi> {
    Some(match provider {
        "fal" => &fal::Fal,
        "openrouter" => &openrouter::OpenRouter,
        _ => return None,
    })
}

/// A cost to one party alone.
fn whole(dollars: Decimal) -> StatedCost {
    StatedCost {
        total: Usd::new(dollars).normalize(),
        upstream: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: &str, cost: Option<&str>) -> Line {
        Line {
            id: id.to_owned(),
            cost: cost.map(|cost| whole(cost.parse().unwrap())),
        }
    }

    #[test]
    fn lines_of_a_request_add_up_and_one_that_is_not_clear_spoils_it() {
        let mut receipts = Receipts::default();
        for line in [
            line("charged", Some("0.05")),
            line("charged", Some("0.01")),
            line("refunded", Some("0.05")),
            line("refunded", Some("-0.05")),
            line("paid back more", Some("-0.05")),
            line("unclear", Some("0.05")),
            line("unclear", None),
            line("unclear", Some("0.05")),
        ] {
            receipts.add(line);
        }
        for (id, receipt) in [
            ("charged", Receipt::Clear(whole("0.06".parse().unwrap()))),
            ("refunded", Receipt::Clear(whole(Decimal::ZERO))),
            ("paid back more", Receipt::Unclear),
            ("unclear", Receipt::Unclear),
            ("Charged", Receipt::Missing),
        ] {
            assert_eq!(receipts.of(id), receipt, "{id}");
        }
    }
}
