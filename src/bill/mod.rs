//! What vendors' bills are asked for and what they say. Pure: answers in, dollars of days out.
//!
//! A file for each vendor, which knows its host, its path, its pages, the unit and the day, with its
//! source. The exporter sends what is asked and shows the API what came back, page by page. **Adding
//! a vendor** is one file, one fixture folder and two lines here. Where no vendor tells what was
//! spent, [`mod@drop`] tells it from what was left at two moments. [`receipt`] is what vendors say of
//! single requests.

mod anthropic;
pub mod drop;
mod fal;
mod openai;
mod openrouter;
pub mod receipt;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use chrono::{DateTime, Days, NaiveDate, NaiveTime, Utc};
use rust_decimal::Decimal;

use crate::ask::{Answer, Ask, Fault};
use crate::balance::Domain;

/// The most days that a bill is asked for at once: OpenRouter remembers no more.
pub const DAYS_MAX: u32 = 30;

/// A vendor's API that tells what was spent, by UTC day, in US dollars.
pub trait BillApi: Sync {
    /// Its domains, the usual one first.
    fn domains(&self) -> &'static [Domain];

    /// What the vendor calls it, as in `source` of a row.
    fn name(&self) -> &'static str;

    /// What kind of key it wants, in a few words for a person.
    fn key(&self) -> &'static str;

    /// What is asked first. `billing_id` narrows it down, where the vendor knows such a thing.
    fn first(&self, period: Period, billing_id: Option<&str>) -> Ask;

    /// Reads the answer to what was asked.
    ///
    /// # Errors
    /// What the vendor said instead of a bill.
    fn read(&self, period: Period, asked: &Ask, answer: &Answer) -> Result<Page, Fault>;
}

/// Whole UTC days, `to` excluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    /// The first day.
    pub from: NaiveDate,
    /// The day after the last one.
    pub to: NaiveDate,
}

impl Period {
    /// Its days.
    pub fn days(self) -> impl Iterator<Item = NaiveDate> {
        self.from.iter_days().take_while(move |day| *day < self.to)
    }

    /// Whether a day is one of them.
    pub fn has(self, day: NaiveDate) -> bool {
        self.from <= day && day < self.to
    }
}

/// The first moment of a UTC day.
pub fn midnight(day: NaiveDate) -> DateTime<Utc> {
    day.and_time(NaiveTime::MIN).and_utc()
}

/// The day after.
pub fn next_day(day: NaiveDate) -> NaiveDate {
    day.checked_add_days(Days::new(1)).unwrap_or(day)
}

/// A page of a bill.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// What was spent on each day that the page tells of, in US dollars: to be added up over pages.
    /// A day that no page tells of is unknown.
    pub days: BTreeMap<NaiveDate, Decimal>,
    /// What is to be asked for the next one.
    pub next: Option<Ask>,
}

impl Page {
    /// A page that knows nothing yet.
    fn new() -> Page {
        Page::default()
    }

    /// A page that tells of every day of a period: what it does not list was not spent.
    fn of_all(period: Period) -> Page {
        Page {
            days: period.days().map(|day| (day, Decimal::ZERO)).collect(),
            next: None,
        }
    }

    /// Takes note that a day is told of, and adds what was spent on it, if it is of the period.
    fn add(&mut self, period: Period, day: NaiveDate, usd: Decimal) {
        if period.has(day) {
            let sum = self.days.entry(day).or_default();
            *sum = sum.saturating_add(usd);
        }
    }
}

/// The vendors whose bill can be asked for, by the provider's name.
pub const VENDORS: [&str; 4] = ["anthropic", "fal", "openai", "openrouter"];

/// The API of a provider's bill; `None` if it has none.
pub fn api(provider: &str) -> Option<&'static dyn BillApi> {
    Some(match provider {
        "anthropic" => &anthropic::Anthropic,
        "fal" => &fal::Fal,
        "openai" => &openai::OpenAi,
        "openrouter" => &openrouter::OpenRouter,
        _ => return None,
    })
}

/// The host in place of the vendor's own, if any: what the configuration names for bills, else an
/// upstream that is not the vendor's.
pub fn place<'a>(
    api: &dyn BillApi,
    billing_url: Option<&'a str>,
    upstream: Option<&'a str>,
) -> Option<&'a str> {
    let is_elsewhere = |url: &&str| !api.domains().iter().any(|domain| domain.has(url));
    billing_url.or_else(|| upstream.filter(is_elsewhere))
}

/// The call for the page that `cursor` names, where `parameter` carries cursors and comes last.
fn next_page(asked: &Ask, parameter: &str, cursor: &str) -> Ask {
    let mark = format!("&{parameter}=");
    let first = asked.path.split(&mark).next().unwrap_or_default();
    let mut path = format!("{first}{mark}");
    push_encoded(&mut path, cursor);
    Ask {
        path,
        ..asked.clone()
    }
}

/// Appends a value to a query, percent-encoded.
fn push_encoded(path: &mut String, value: &str) {
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                path.push(char::from(byte));
            }
            // Writing to a text never fails.
            _ => write!(path, "%{byte:02X}").unwrap_or_default(),
        }
    }
}

/// Refuses what is not in US dollars.
fn check_usd(currency: &str) -> Result<(), Fault> {
    match currency.eq_ignore_ascii_case("usd") {
        true => Ok(()),
        false => Err(Fault::malformed("an amount is not in US dollars")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vendor_has_an_api_on_its_own_domain() {
        for vendor in VENDORS {
            let domains = api(vendor).unwrap().domains();
            assert!(domains[0].has(domains[0].host), "{vendor}");
        }
        assert!(api("replicate").is_none());
    }

    #[test]
    fn calls_go_to_the_vendor_unless_another_place_is_named() {
        let openai = api("openai").unwrap();
        let here = "http://127.0.0.1:9";
        assert_eq!(place(openai, None, None), None);
        assert_eq!(place(openai, None, Some("https://eu.api.openai.com")), None);
        assert_eq!(place(openai, None, Some(here)), Some(here));
        let fal = api("fal").unwrap();
        assert_eq!(place(fal, None, Some("https://fal.run")), None);
        assert_eq!(
            place(openai, Some(here), Some("https://api.openai.com")),
            Some(here)
        );
    }

    #[test]
    fn a_cursor_takes_the_place_of_the_one_before() {
        let ask = Ask::get("https://example.com", "/bill?limit=7");
        let second = next_page(&ask, "page", "a b/=");
        assert_eq!(second.path, "/bill?limit=7&page=a%20b%2F%3D");
        assert_eq!(next_page(&second, "page", "c").path, "/bill?limit=7&page=c");
    }
}
