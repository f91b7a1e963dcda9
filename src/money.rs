//! US dollars, exact.
//!
//! Money is a decimal end to end; a float exists only inside the Prometheus exposition.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, Mul, Sub};
use std::str::FromStr;

use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

/// An amount of US dollars, exact to 28 digits. Serialised as a decimal string.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Usd(Decimal);

impl Usd {
    /// No money; a known price of zero, which is not an unknown one.
    pub const ZERO: Usd = Usd(Decimal::ZERO);

    /// That many dollars.
    pub const fn new(dollars: Decimal) -> Usd {
        Usd(dollars)
    }

    /// The amount in dollars.
    pub const fn dollars(self) -> Decimal {
        self.0
    }

    /// Reads a JSON number or the text of one, exponent form included (`1.2e-05`).
    pub fn from_json_number(text: &str) -> Option<Usd> {
        parse_decimal(text).map(Usd)
    }

    /// The amount without trailing zeros, so that equal amounts print alike.
    #[must_use]
    pub fn normalize(self) -> Usd {
        Usd(self.0.normalize())
    }
}

/// Reads a decimal in plain or exponent form; `None` if it is not a number or does not fit.
/// A value too small for 28 decimal places is rounded.
pub fn parse_decimal(text: &str) -> Option<Decimal> {
    let text = text.trim();
    if text.contains(['e', 'E']) {
        Decimal::from_scientific(text).ok()
    } else {
        Decimal::from_str(text).ok()
    }
}

impl Add for Usd {
    type Output = Usd;
    fn add(self, other: Usd) -> Usd {
        Usd(self.0.saturating_add(other.0))
    }
}

impl Sub for Usd {
    type Output = Usd;
    fn sub(self, other: Usd) -> Usd {
        Usd(self.0.saturating_sub(other.0))
    }
}

/// Dollars a unit times a quantity.
impl Mul<Decimal> for Usd {
    type Output = Usd;
    fn mul(self, quantity: Decimal) -> Usd {
        Usd(self.0.saturating_mul(quantity))
    }
}

impl Sum for Usd {
    fn sum<I: Iterator<Item = Usd>>(amounts: I) -> Usd {
        amounts.fold(Usd::ZERO, Add::add)
    }
}

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponent_form_is_read_exactly() {
        assert_eq!(
            Usd::from_json_number("1.2e-05"),
            Usd::from_json_number("0.000012")
        );
        assert_eq!(Usd::from_json_number("-3E2").unwrap().to_string(), "-300");
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in ["", "null", "NaN", "1e", "0x1", "1e400", "\"1\""] {
            assert_eq!(Usd::from_json_number(text), None, "{text}");
        }
    }

    #[test]
    fn ten_cents_three_times_is_thirty_cents() {
        let ten: Usd = Usd::from_json_number("0.1").unwrap();
        assert_eq!(
            [ten, ten, ten].into_iter().sum::<Usd>(),
            Usd::from_json_number("0.3").unwrap()
        );
    }
}
