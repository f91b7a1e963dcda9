//! What vendors' billing APIs are asked and what they answer. Pure: answers in, balances out.
//!
//! A file for each vendor, which knows its host, its path, where the key goes, the unit, the sign
//! and the currency, with its source. The exporter sends what is asked and shows the API what came
//! back, until it has read a balance. **Adding a vendor** is one file, one fixture folder and two
//! lines here; it needs no provider of traffic.

mod deepgram;
mod deepinfra;
mod deepseek;
mod elevenlabs;
mod exact;
mod fal;
mod luma;
mod moonshot;
mod novita;
mod openrouter;
mod raw;
mod runpod;
mod runway;
mod siliconflow;
mod stability;
mod stepfun;
mod vast;
mod xai;

use rust_decimal::Decimal;
use serde::de::DeserializeOwned;

use crate::ask::{Answer, Ask, Fault};

pub(crate) use exact::Exact;
pub use raw::{RAW_BYTES_MAX, scrubbed};

/// A vendor's billing API.
pub trait BalanceApi: Sync {
    /// Its domains, the usual one first.
    fn domains(&self) -> &'static [Domain];

    /// What kind of key it wants, in a few words for a person.
    fn key(&self) -> &'static str;

    /// What is asked first.
    ///
    /// # Errors
    /// When the configuration of the account lacks something.
    fn first(&self, subject: &Subject<'_>) -> Result<Ask, Fault>;

    /// Reads the answer to what was asked.
    ///
    /// # Errors
    /// What the vendor said instead of a balance.
    fn read(&self, subject: &Subject<'_>, asked: &Ask, answer: &Answer) -> Result<Next, Fault>;
}

/// A domain of a vendor, which may have its own currency and its own billing host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Domain {
    /// The domain; its hosts are this one and those below it.
    pub name: &'static str,
    /// Its billing host, as a URL.
    pub host: &'static str,
    /// The currency of its balances, where an answer does not tell.
    pub currency: &'static str,
}

/// Whose balance is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject<'a> {
    /// The vendor's own id of the account, if it is configured.
    pub billing_id: Option<&'a str>,
    /// The currency of the host that is asked.
    pub currency: &'a str,
}

/// What comes of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Ask on.
    Ask(Ask),
    /// The balances, at least one, each of its own currency.
    Balances(Vec<Balance>),
}

/// What is left in an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balance {
    /// What it is.
    pub kind: BalanceKind,
    /// The currency (ISO 4217), or the vendor's own unit: `credits`, `hours`.
    pub currency: String,
    /// How much, negative if the account is in debt; `None` if it has no limit.
    pub amount: Option<Decimal>,
}

/// What a balance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BalanceKind {
    /// Money or credits that were paid for in advance.
    Prepaid,
    /// What one key may still spend.
    KeyLimit,
    /// What was paid in, less what the traffic has cost.
    Ledger,
}

impl BalanceKind {
    /// Every kind.
    pub const ALL: [BalanceKind; 3] = [
        BalanceKind::Prepaid,
        BalanceKind::KeyLimit,
        BalanceKind::Ledger,
    ];

    /// The name in labels and rows.
    pub const fn as_str(self) -> &'static str {
        match self {
            BalanceKind::Prepaid => "prepaid",
            BalanceKind::KeyLimit => "key_limit",
            BalanceKind::Ledger => "ledger",
        }
    }

    /// The kind of that name, if there is one.
    pub fn from_name(name: &str) -> Option<BalanceKind> {
        BalanceKind::ALL
            .into_iter()
            .find(|kind| kind.as_str() == name)
    }
}

/// The vendors that tell a balance, by the provider's name.
pub const VENDORS: [&str; 16] = [
    "deepgram",
    "deepinfra",
    "deepseek",
    "elevenlabs",
    "fal",
    "luma",
    "moonshot",
    "novita",
    "openrouter",
    "runpod",
    "runway",
    "siliconflow",
    "stability",
    "stepfun",
    "vast",
    "xai",
];

/// The billing API of a provider; `None` if it has none.
pub fn api(provider: &str) -> Option<&'static dyn BalanceApi> {
    Some(match provider {
        "deepgram" => &deepgram::Deepgram,
        "deepinfra" => &deepinfra::DeepInfra,
        "deepseek" => &deepseek::DeepSeek,
        "elevenlabs" => &elevenlabs::ElevenLabs,
        "fal" => &fal::Fal,
        "luma" => &luma::Luma,
        "moonshot" => &moonshot::Moonshot,
        "novita" => &novita::Novita,
        "openrouter" => &openrouter::OpenRouter,
        "runpod" => &runpod::RunPod,
        "runway" => &runway::Runway,
        "siliconflow" => &siliconflow::SiliconFlow,
        "stability" => &stability::Stability,
        "stepfun" => &stepfun::StepFun,
        "vast" => &vast::Vast,
        "xai" => &xai::Xai,
        _ => return None,
    })
}

/// Where an account's calls go: the host in place of the vendor's own, if any, and the currency
/// of what is answered there. `billing_url` is what the configuration names for this purpose,
/// `upstream` what it names for the traffic: a URL of the vendor's own is then one of its traffic
/// hosts, and tells the domain alone; any other one is where all calls are to go.
pub fn place<'a>(
    api: &dyn BalanceApi,
    billing_url: Option<&'a str>,
    upstream: Option<&'a str>,
) -> (Option<&'a str>, &'static str) {
    let domains = api.domains();
    let usual = domains.first();
    let of = |url: &str| domains.iter().find(|domain| domain.has(url));
    let currency = |domain: Option<&Domain>| domain.or(usual).map_or("USD", |it| it.currency);
    match (billing_url, upstream) {
        (Some(url), _) => (Some(url), currency(of(url))),
        (None, Some(url)) => match of(url) {
            // The calls name the usual hosts themselves.
            Some(domain) if usual.is_some_and(|it| it.host == domain.host) => {
                (None, domain.currency)
            }
            Some(domain) => (Some(domain.host), domain.currency),
            None => (Some(url), currency(None)),
        },
        (None, None) => (None, currency(None)),
    }
}

impl Domain {
    /// Whether a URL's host is of this domain.
    pub(crate) fn has(&self, url: &str) -> bool {
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        let host = rest.split(['/', ':', '?']).next().unwrap_or_default();
        let above = host.strip_suffix(self.name);
        above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
    }
}

/// One prepaid balance.
fn prepaid(currency: &str, amount: Decimal) -> Next {
    Next::Balances(vec![Balance {
        kind: BalanceKind::Prepaid,
        currency: currency.to_owned(),
        amount: Some(amount),
    }])
}

/// A document of a success.
pub(crate) fn document<T: DeserializeOwned>(answer: &Answer) -> Result<T, Fault> {
    serde_json::from_slice(answer.success()?).map_err(|error| {
        // The error of the types names a field; that of the syntax would quote what was sent.
        Fault::malformed(match error.classify() {
            serde_json::error::Category::Data => "a member is absent or of another type",
            _ => "it is not JSON",
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vendor_has_an_api_with_a_domain() {
        for vendor in VENDORS {
            let domains = api(vendor).unwrap().domains();
            assert!(domains[0].has(domains[0].host), "{vendor}");
        }
        assert!(api("replicate").is_none());
    }

    #[test]
    fn calls_go_to_the_vendor_unless_another_place_is_named() {
        let moonshot = api("moonshot").unwrap();
        let xai = api("xai").unwrap();
        let here = "http://127.0.0.1:9";
        for (api, billing_url, upstream, place_and_currency) in [
            (moonshot, None, None, (None, "USD")),
            (
                moonshot,
                None,
                Some("https://api.moonshot.cn/v1"),
                (Some("https://api.moonshot.cn"), "CNY"),
            ),
            (moonshot, None, Some(here), (Some(here), "USD")),
            (
                moonshot,
                Some(here),
                Some("https://api.moonshot.cn"),
                (Some(here), "USD"),
            ),
            // Its traffic goes to another host than its bills.
            (xai, None, Some("https://api.x.ai"), (None, "USD")),
            (
                xai,
                None,
                Some("https://api.example-x.ai"),
                (Some("https://api.example-x.ai"), "USD"),
            ),
        ] {
            assert_eq!(
                place(api, billing_url, upstream),
                place_and_currency,
                "{upstream:?}"
            );
        }
    }
}
