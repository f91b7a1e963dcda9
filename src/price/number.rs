//! Figures in the lists of others: numbers or texts of numbers, of one unit, a thousand or a
//! million, and which of them can be a price at all.

use rust_decimal::Decimal;
use serde_json::Value;

use super::rates::is_priced_per_million;
use crate::money::parse_decimal;
use crate::usage::Unit;

/// The digits that a figure is taken to: floats carry noise in the sixteenth.
const DIGITS: u32 = 12;

/// The dearest that a million tokens or characters, and one of anything else, can be, in US
/// dollars: a hundred times what the dearest known ones cost. Above it a figure has the wrong unit.
const PER_MILLION_MAX: Decimal = Decimal::from_parts(100_000, 0, 0, false, 0);
const EACH_MAX: Decimal = Decimal::from_parts(10_000, 0, 0, false, 0);

/// Why a figure is no price.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoPrice {
    #[error("not a number")]
    NotANumber,
    #[error("negative")]
    Negative,
    #[error("too dear to be a price")]
    Absurd,
}

/// A number, or the text of one.
pub(super) fn decimal(value: &Value) -> Option<Decimal> {
    match value {
        Value::Number(number) => parse_decimal(&number.to_string()),
        Value::String(text) => parse_decimal(text),
        _ => None,
    }
}

/// The price of one `unit` as our lists have it: of a million tokens or characters, of one of
/// anything else.
pub(super) fn per_one(unit: Unit, value: &Value) -> Result<Decimal, NoPrice> {
    let amount = decimal(value).ok_or(NoPrice::NotANumber)?;
    let amount = match is_priced_per_million(unit) {
        true => amount.checked_mul(Decimal::from(1_000_000)),
        false => Some(amount),
    };
    checked(unit, amount.ok_or(NoPrice::Absurd)?)
}

/// As [`per_one`], of a figure that is for as many as our lists have it for.
pub(super) fn as_listed(unit: Unit, value: &Value) -> Result<Decimal, NoPrice> {
    checked(unit, decimal(value).ok_or(NoPrice::NotANumber)?)
}

fn checked(unit: Unit, amount: Decimal) -> Result<Decimal, NoPrice> {
    let max = match is_priced_per_million(unit) {
        true => PER_MILLION_MAX,
        false => EACH_MAX,
    };
    if amount.is_sign_negative() && !amount.is_zero() {
        return Err(NoPrice::Negative);
    }
    if amount > max {
        return Err(NoPrice::Absurd);
    }
    Ok(amount.round_sf(DIGITS).unwrap_or(amount).normalize())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_price_a_token_becomes_one_a_million() {
        for (value, shown) in [
            (json!("0.0000025"), "2.5"),
            (json!(1.5e-7), "0.15"),
            (json!("4.9999999999999996e-8"), "0.05"),
            (json!("0"), "0"),
            (json!("1e-06"), "1"),
            (json!("0.1"), "100000"),
        ] {
            assert_eq!(per_one(Unit::Input, &value).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_cannot_be_a_price_is_refused() {
        for (value, why) in [
            (json!("-1"), NoPrice::Negative),
            (json!(-0.5), NoPrice::Negative),
            (json!("free"), NoPrice::NotANumber),
            (json!(null), NoPrice::NotANumber),
            (json!([1]), NoPrice::NotANumber),
            (json!("0.100001"), NoPrice::Absurd),
            (json!(1e300), NoPrice::NotANumber),
        ] {
            assert_eq!(per_one(Unit::Input, &value), Err(why), "{value}");
        }
        assert!(per_one(Unit::Image, &json!(10_000)).is_ok());
        assert_eq!(per_one(Unit::Image, &json!(10_001)), Err(NoPrice::Absurd));
    }
}
