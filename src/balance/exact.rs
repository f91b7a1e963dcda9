//! Amounts as vendors write them: numbers or texts of numbers, read digit by digit.

use std::borrow::Cow;

use rust_decimal::Decimal;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::money::parse_decimal;

/// An exact amount, from a JSON number or the text of one. Never by way of a float.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exact(pub(crate) Decimal);

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Exact, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let text: Cow<'_, str> = match raw.get().starts_with('"') {
            true => serde_json::from_str::<String>(raw.get())
                .map_err(D::Error::custom)?
                .into(),
            false => raw.get().into(),
        };
        parse_decimal(&text)
            .map(Exact)
            .ok_or_else(|| D::Error::custom("not an amount"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_keeps_its_digits() {
        for (json, amount) in [
            ("24.5031", "24.5031"),
            ("\"88.8800\"", "88.8800"),
            ("-799", "-799"),
            ("123456789.12345678901", "123456789.12345678901"),
            ("1.2e-05", "0.000012"),
        ] {
            let Exact(read) = serde_json::from_str(json).unwrap();
            assert_eq!(read.to_string(), amount, "{json}");
        }
        for json in ["null", "true", "\"\"", "\"much\"", "{}", "[1]"] {
            assert!(serde_json::from_str::<Exact>(json).is_err(), "{json}");
        }
    }
}
