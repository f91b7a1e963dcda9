//! Reads one level of a small JSON object or array, in document order, without allocating.
//!
//! For the few objects that a meter keeps whole (a usage object is some hundred bytes, bounded
//! by the selector's limit). Of duplicate keys each is shown, numbers stay text, so that money
//! is never read through a float.

use std::borrow::Cow;
use std::fmt;

use rust_decimal::Decimal;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::value::RawValue;

use crate::wire::json;

/// A key, borrowed unless it holds escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// Shows each member of the object `text` as key and JSON text; false if `text` is no object.
/// Members before a fault are shown.
pub(crate) fn members<'a>(text: &'a str, show: &mut dyn FnMut(&str, &'a str)) -> bool {
    struct Members<'s, 'a>(&'s mut dyn FnMut(&str, &'a str));

    impl<'a> Visitor<'a> for Members<'_, 'a> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
            while let Some((key, value)) = map.next_entry::<Key<'a>, &'a RawValue>()? {
                (self.0)(&key.0, value.get());
            }
            Ok(())
        }
    }

    read(text, |json| json.deserialize_map(Members(show)))
}

/// Shows each element of the array `text` as JSON text; false if `text` is no array.
pub(crate) fn elements<'a>(text: &'a str, show: &mut dyn FnMut(&'a str)) -> bool {
    struct Elements<'s, 'a>(&'s mut dyn FnMut(&'a str));

    impl<'a> Visitor<'a> for Elements<'_, 'a> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }

        fn visit_seq<A: SeqAccess<'a>>(self, mut seq: A) -> Result<(), A::Error> {
            while let Some(value) = seq.next_element::<&'a RawValue>()? {
                (self.0)(value.get());
            }
            Ok(())
        }
    }

    read(text, |json| json.deserialize_seq(Elements(show)))
}

type Json<'a> = serde_json::Deserializer<serde_json::de::StrRead<'a>>;

fn read<'a, E: de::Error>(
    text: &'a str,
    visit: impl FnOnce(&mut Json<'a>) -> Result<(), E>,
) -> bool {
    let mut json = serde_json::Deserializer::from_str(text);
    visit(&mut json).is_ok()
}

/// A quantity: a number that is not negative, or the text of one; `None` for anything else.
pub(crate) fn quantity(text: &str) -> Option<Decimal> {
    json::decimal_of(text.as_bytes())
        .filter(|number| !number.is_sign_negative() || number.is_zero())
        .map(|number| number.normalize())
}

/// Replaces what is known by what `text` says; null and what is no quantity change nothing.
pub(crate) fn supersede(known: &mut Option<Decimal>, text: &str) {
    if let Some(later) = quantity(text) {
        *known = Some(later);
    }
}

/// The text of a JSON string or number; `None` for null, the empty string and everything else.
pub(crate) fn word(text: &[u8]) -> Option<Cow<'_, str>> {
    match text.first()? {
        b'"' => json::text_of(text).filter(|word| !word.is_empty()),
        b'-' | b'0'..=b'9' => std::str::from_utf8(text).ok().map(Cow::Borrowed),
        _ => None,
    }
}

/// As [`word`], or a boolean.
pub(crate) fn scalar(text: &[u8]) -> Option<Cow<'_, str>> {
    match text {
        b"true" => Some(Cow::Borrowed("true")),
        b"false" => Some(Cow::Borrowed("false")),
        _ => word(text),
    }
}

/// Lays the members of `later` over those of `earlier`; a null changes nothing. The result is
/// JSON text if both are.
pub(crate) fn merge(earlier: &str, later: &str) -> String {
    let mut merged: Vec<(String, &str)> = Vec::new();
    for text in [earlier, later] {
        members(
            text,
            &mut |key, value| match merged.iter_mut().find(|(known, _)| known == key) {
                Some((_, known)) if value != "null" => *known = value,
                Some(_) => {}
                None => merged.push((key.to_owned(), value)),
            },
        );
    }
    let members: Vec<String> = merged
        .iter()
        .map(|(key, value)| format!("{}:{value}", serde_json::Value::from(key.as_str())))
        .collect();
    format!("{{{}}}", members.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_in_order_with_duplicates_and_exact_numbers() {
        let mut shown = Vec::new();
        let whole = members(
            r#"{"a": 1.20e-05, "\u0062": {"c": [1, 2]}, "a": null}"#,
            &mut |key, value| shown.push((key.to_owned(), value.to_owned())),
        );
        assert!(whole);
        let shown: Vec<(&str, &str)> = shown.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(
            shown,
            [("a", "1.20e-05"), ("b", r#"{"c": [1, 2]}"#), ("a", "null")]
        );
    }

    #[test]
    fn what_is_no_object_is_said_to_be_none() {
        for text in ["null", "[]", "1", "\"a\"", "", "{\"a\"", "{\"a\":}"] {
            assert!(!members(text, &mut |_, _| {}), "{text}");
        }
        assert!(!elements("{}", &mut |_| {}));
    }

    #[test]
    fn a_quantity_is_a_number_or_its_text_and_never_negative() {
        assert_eq!(quantity("12"), Some(Decimal::from(12)));
        assert_eq!(quantity("\"12\""), Some(Decimal::from(12)));
        assert_eq!(quantity("12.0").unwrap().to_string(), "12");
        for text in ["-1", "null", "true", "\"many\"", "{}", "\"\""] {
            assert_eq!(quantity(text), None, "{text}");
        }
    }

    #[test]
    fn merging_keeps_what_the_later_object_omits_or_nulls() {
        assert_eq!(
            merge(r#"{"a":1,"b":{"c":2}}"#, r#"{"a":3,"b":null,"d":4}"#),
            r#"{"a":3,"b":{"c":2},"d":4}"#
        );
    }
}
