//! Who a request comes from: the key's fingerprint, the attribution and the trace.

use std::collections::BTreeMap;

use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::caller::{Caller, parse_traceparent};

/// The longest attribution value, in characters.
const ATTRIBUTION_CHARS_MAX: usize = 128;

/// The fields that carry API keys, of all providers. Their values leave in the request alone.
pub const KEY_FIELDS: [HeaderName; 6] = [
    header::AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("xi-api-key"),
    HeaderName::from_static("x-goog-api-key"),
    HeaderName::from_static("x-fal-key"),
];

/// Whom requests are attributed to. Each name becomes a metric label and a key of a row's
/// `attribution`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AttributionConfig {
    /// Labels with a fixed value, such as `team = "search"`.
    #[serde(rename = "static")]
    pub fixed: BTreeMap<String, String>,
    /// Labels whose value a request header gives, such as `feature = "x-taffrail-feature"`.
    /// Headers that begin with `x-taffrail-` are not sent on to the provider.
    pub headers: BTreeMap<String, String>,
}

impl AttributionConfig {
    /// The names of the labels, sorted.
    pub fn labels(&self) -> Vec<String> {
        let mut labels: Vec<String> = self
            .fixed
            .keys()
            .chain(self.headers.keys())
            .cloned()
            .collect();
        labels.sort();
        labels.dedup();
        labels
    }
}

/// Tells callers apart.
pub(super) struct Identity {
    fixed: BTreeMap<String, String>,
    headers: Vec<(String, HeaderName)>,
    mac: Hmac<Sha256>,
}

impl Identity {
    /// Uses `pepper` to key the fingerprints. Header names that are none are passed over; the
    /// configuration has been checked before.
    pub(super) fn new(config: &AttributionConfig, pepper: &str) -> Identity {
        let headers = config
            .headers
            .iter()
            .filter_map(|(label, name)| Some((label.clone(), name.parse().ok()?)))
            .collect();
        Identity {
            fixed: config.fixed.clone(),
            headers,
            mac: keyed(pepper),
        }
    }

    /// What a request's head says of its sender.
    pub(super) fn caller(&self, headers: &HeaderMap) -> Caller {
        let mut attribution = self.fixed.clone();
        for (label, name) in &self.headers {
            if let Some(value) = headers.get(name).and_then(|value| value.to_str().ok()) {
                let value: String = value
                    .chars()
                    .filter(|character| !character.is_control())
                    .take(ATTRIBUTION_CHARS_MAX)
                    .collect();
                attribution.insert(label.clone(), value);
            }
        }
        let trace = headers
            .get("traceparent")
            .and_then(|value| value.to_str().ok())
            .and_then(parse_traceparent);
        let (trace_id, span_id) = trace.unzip();
        Caller {
            key_fingerprint: self.fingerprint(headers),
            attribution,
            trace_id,
            span_id,
        }
    }

    /// The first eight bytes of the HMAC of the key, in hex.
    fn fingerprint(&self, headers: &HeaderMap) -> Option<String> {
        let value = KEY_FIELDS
            .iter()
            .find_map(|name| headers.get(name))?
            .as_bytes();
        // `Bearer sk-…`, `Token …`, `Key …`: the scheme is not part of the key.
        let key = match value.iter().position(|byte| *byte == b' ') {
            Some(space) => value.get(space + 1..).unwrap_or_default().trim_ascii(),
            None => value,
        };
        digest(self.mac.clone(), key)
    }
}

/// The fingerprint that requests with this key have.
pub fn fingerprint(pepper: &str, key: &str) -> Option<String> {
    digest(keyed(pepper), key.as_bytes())
}

fn keyed(pepper: &str) -> Hmac<Sha256> {
    // HMAC takes keys of any length, so this never fails.
    Hmac::<Sha256>::new_from_slice(pepper.as_bytes())
        .unwrap_or_else(|_| Hmac::<Sha256>::new(&Default::default()))
}

fn digest(mut mac: Hmac<Sha256>, key: &[u8]) -> Option<String> {
    mac.update(key);
    let digest = mac.finalize().into_bytes();
    let first = u64::from_be_bytes(*digest.first_chunk()?);
    Some(format!("{first:016x}"))
}

/// Removes the fields that are meant for Taffrail alone.
pub(super) fn strip_own_fields(headers: &mut HeaderMap) {
    let own: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("x-taffrail-"))
        .cloned()
        .collect();
    for name in &own {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AttributionConfig {
        AttributionConfig {
            fixed: BTreeMap::from([("team".to_owned(), "search".to_owned())]),
            headers: BTreeMap::from([("feature".to_owned(), "x-taffrail-feature".to_owned())]),
        }
    }

    #[test]
    fn one_key_has_one_fingerprint_whatever_carries_it() {
        let identity = Identity::new(&config(), "pepper");
        let fingerprint = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            identity.caller(&headers).key_fingerprint
        };
        let bearer = fingerprint("authorization", "Bearer sk-1");
        assert_eq!(bearer, fingerprint("x-api-key", "sk-1"));
        assert_ne!(bearer, fingerprint("x-api-key", "sk-2"));
        assert_eq!(bearer.unwrap().len(), 16);
        assert_eq!(identity.caller(&HeaderMap::new()).key_fingerprint, None);
    }

    #[test]
    fn attribution_comes_from_configuration_and_headers() {
        let identity = Identity::new(&config(), "");
        let mut headers = HeaderMap::new();
        headers.insert("x-taffrail-feature", "chat".parse().unwrap());
        let caller = identity.caller(&headers);
        let expected = [("feature", "chat"), ("team", "search")];
        let expected = expected
            .map(|(label, value)| (label.to_owned(), value.to_owned()))
            .into();
        assert_eq!(caller.attribution, expected);
        strip_own_fields(&mut headers);
        assert!(headers.is_empty());
    }
}
