//! Replicate's deployments: `GET /v1/deployments`, which needs a key and tells of its account's.
//!
//! Replicate lists no prices. A deployment says which hardware it runs on, and the catalogue what a
//! second of that costs, so that it is listed as costing the same. A deployment that is gone stays
//! as it was: nothing more is billed for it. Source: replicate.com/docs/reference/http, 2026-11.

use serde::Deserialize;
use serde_json::Value;

use super::api::{PriceApi, Unreadable};
use super::list::{ModelName, PriceList, Reading};
use crate::ask::Ask;

const PROVIDER: &str = "replicate";

const HOST: &str = "https://api.replicate.com";

const DEPLOYMENTS: &str = "/v1/deployments";

#[derive(Deserialize)]
struct Answer {
    results: Vec<Value>,
    #[serde(default)]
    next: Option<String>,
}

/// A reading of the deployments of an account.
#[derive(Debug)]
pub(super) struct Deployments {
    /// The path of the next page.
    next: Option<String>,
    before: PriceList,
    reading: Reading,
}

impl Deployments {
    pub(super) fn of(before: &PriceList) -> Deployments {
        Deployments {
            next: Some(DEPLOYMENTS.to_owned()),
            before: before.clone(),
            reading: Reading::default(),
        }
    }
}

impl PriceApi for Deployments {
    fn ask(&self) -> Option<Ask> {
        Some(Ask::get(HOST, self.next.as_ref()?))
    }

    fn take(&mut self, body: &[u8]) -> Result<(), Unreadable> {
        let answer: Answer = serde_json::from_slice(body)
            .map_err(|error| Unreadable::Malformed(error.to_string()))?;
        for deployment in &answer.results {
            let text = |path: &str| deployment.pointer(path).and_then(Value::as_str);
            let names = (text("/owner"), text("/name"));
            let name = match names {
                (Some(owner), Some(name)) => format!("{owner}/{name}"),
                _ => String::new(),
            };
            let name = ModelName::new(PROVIDER, name);
            match text("/current_release/configuration/hardware") {
                Some(hardware) => self.reading.take(name, hardware.into()),
                None => self.reading.reject(name, "on no stated hardware"),
            }
        }
        let next = answer.next.as_deref().and_then(page);
        // The same page again would have no end.
        self.next = next.filter(|next| self.next.as_ref() != Some(next));
        Ok(())
    }

    fn is_refused(&mut self) -> bool {
        false
    }

    /// An account without deployments is no fault.
    fn finish(mut self: Box<Self>) -> Result<Reading, Unreadable> {
        for name in self.before.names() {
            let entry = self.before.entry(name);
            let is_gone = self.reading.list.entry(name).is_none();
            if let Some(entry) = entry.filter(|_| is_gone)
                && let Ok(entry) = serde_json::from_str(entry)
            {
                self.reading.take(name.clone(), entry);
            }
        }
        Ok(self.reading)
    }
}

/// The path of a page, from its URL.
fn page(url: &str) -> Option<String> {
    let path = url.strip_prefix(HOST)?;
    let cursor = path.strip_prefix(DEPLOYMENTS)?.strip_prefix('?')?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.=~%&".contains(c);
    (cursor.len() <= 1024 && cursor.chars().all(is_plain)).then(|| path.to_owned())
}
