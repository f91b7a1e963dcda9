//! The raw answer as it is kept: what it says, without anything that could be a key.

use serde_json::Value;

use crate::fault::scrub;
use crate::secret::{REDACTED, Secret};

/// The longest answer that is kept; a longer one is not.
pub const RAW_BYTES_MAX: usize = 16 << 10;

/// Members whose values are never kept, by a part of their name. OpenRouter's `label` shows a
/// part of the key; names, mails and addresses are of no use here.
const HIDDEN: [&str; 11] = [
    "key", "token", "secret", "label", "password", "hash", "mail", "phone", "user", "name",
    "creator",
];

/// An answer as JSON without anything that could be a key: members with telling names are
/// redacted, and every text is scrubbed of what looks like a key, and of `key` itself. `None` if it
/// is not JSON or is longer than [`RAW_BYTES_MAX`].
pub fn scrubbed(body: &[u8], key: Option<&Secret>) -> Option<String> {
    if body.len() > RAW_BYTES_MAX {
        return None;
    }
    let mut document: Value = serde_json::from_slice(body).ok()?;
    clean(&mut document, key.map(Secret::expose));
    Some(document.to_string())
}

fn clean(value: &mut Value, key: Option<&str>) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                let name = name.to_ascii_lowercase();
                let is_hidden = HIDDEN.iter().any(|part| name.contains(part));
                if is_hidden && value.is_string() {
                    *value = REDACTED.into();
                } else {
                    clean(value, key);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| clean(value, key)),
        Value::String(text) => {
            *text = match key {
                Some(key) if !key.is_empty() && text.contains(key) => REDACTED.to_owned(),
                _ => scrub(text),
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_like_a_key_is_kept() {
        let key = Secret::new("plain-words-as-a-key");
        let body = br#"{"data":{"label":"sk-or-v1-abc...def","limit_remaining":74.5,
            "said":"you sent plain-words-as-a-key","more":["sk-live-0123456789abcdef0123456789"],
            "api_key_id":"x","usage":25.5,"is_free_tier":false}}"#;
        let kept = scrubbed(body, Some(&key)).unwrap();
        for hidden in ["abc...def", "plain-words", "0123456789abcdef", "\"x\""] {
            assert!(!kept.contains(hidden), "{kept}");
        }
        assert!(kept.contains("\"limit_remaining\":74.5"), "{kept}");
        assert_eq!(scrubbed(b"<html>", None), None);
        let long = vec![b' '; RAW_BYTES_MAX + 1];
        assert_eq!(scrubbed(&long, None), None);
    }
}
