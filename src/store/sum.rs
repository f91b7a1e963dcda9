//! Exact sums of decimals.
//!
//! A [`Decimal`] has 28 digits: adding a billion dollars and a ten-billionth of one rounds. A sum
//! over rows must not depend on the order of the rows, so sums are kept as a whole part and a
//! fraction of 28 places, in which every decimal and every sum of decimals is exact.

use std::fmt;
use std::str::FromStr;

use rust_decimal::Decimal;
use serde::{Serialize, Serializer};

/// Decimal places of a sum: the most that a [`Decimal`] can have.
const PLACES: usize = 28;

/// One, in units of the fraction.
const ONE: i128 = 10_i128.pow(28);

/// A sum of decimals, exact whatever the order of its terms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DecimalSum {
    /// The largest whole number that is not above the sum.
    whole: i128,
    /// What is left, in units of 10^-28: at least zero and less than [`ONE`].
    fraction: i128,
}

impl DecimalSum {
    /// The sum of nothing.
    pub const ZERO: DecimalSum = DecimalSum {
        whole: 0,
        fraction: 0,
    };

    /// The sum with `other` added; `None` beyond the range of the whole part, which takes more
    /// than a billion of the largest decimals.
    #[must_use]
    pub fn checked_add(self, other: DecimalSum) -> Option<DecimalSum> {
        let fraction = self.fraction + other.fraction;
        // Both are less than one, and a comparison is far cheaper than a division.
        let (carry, fraction) = if fraction >= ONE {
            (1, fraction - ONE)
        } else {
            (0, fraction)
        };
        Some(DecimalSum {
            whole: self.whole.checked_add(other.whole)?.checked_add(carry)?,
            fraction,
        })
    }

    /// The sum as a whole number; `None` if it has a fraction or does not fit.
    pub fn to_i64(self) -> Option<i64> {
        (self.fraction == 0)
            .then(|| i64::try_from(self.whole).ok())
            .flatten()
    }

    /// The sum rounded half to even, for people to read; `None` beyond the range of a
    /// [`Decimal`].
    pub fn rounded(self, places: u32) -> Option<Decimal> {
        // A decimal of 28 places holds any fraction; where the whole part leaves less room for
        // it, the excess lies far beyond what is shown.
        let whole = Decimal::try_from_i128_with_scale(self.whole, 0).ok()?;
        let fraction = Decimal::try_from_i128_with_scale(self.fraction, 28).ok()?;
        whole.checked_add(fraction).map(|sum| sum.round_dp(places))
    }
}

impl From<Decimal> for DecimalSum {
    fn from(decimal: Decimal) -> DecimalSum {
        // Most quantities are whole.
        if decimal.scale() == 0 {
            return DecimalSum {
                whole: decimal.mantissa(),
                fraction: 0,
            };
        }
        let divisor = 10_i128.pow(decimal.scale());
        DecimalSum {
            whole: decimal.mantissa().div_euclid(divisor),
            fraction: decimal.mantissa().rem_euclid(divisor) * (ONE / divisor),
        }
    }
}

impl From<i64> for DecimalSum {
    fn from(whole: i64) -> DecimalSum {
        DecimalSum {
            whole: i128::from(whole),
            fraction: 0,
        }
    }
}

/// Plain form without trailing zeros: `12`, `-0.5`.
impl fmt::Display for DecimalSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_negative = self.whole < 0;
        let (whole, fraction) = if is_negative && self.fraction > 0 {
            ((self.whole + 1).unsigned_abs(), ONE - self.fraction)
        } else {
            (self.whole.unsigned_abs(), self.fraction)
        };
        let sign = if is_negative { "-" } else { "" };
        if fraction == 0 {
            return write!(f, "{sign}{whole}");
        }
        let digits = format!("{fraction:0PLACES$}");
        write!(f, "{sign}{whole}.{}", digits.trim_end_matches('0'))
    }
}

/// The text is not the plain form of a decimal with at most 28 places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a decimal sum")]
pub struct ParseSumError;

impl FromStr for DecimalSum {
    type Err = ParseSumError;

    fn from_str(text: &str) -> Result<DecimalSum, ParseSumError> {
        let (is_negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
        let is_plain =
            |digits: &str| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
        if !is_plain(whole) || !is_plain(fraction) || fraction.len() > PLACES {
            return Err(ParseSumError);
        }
        let whole: i128 = whole.parse().map_err(|_| ParseSumError)?;
        let fraction: i128 = format!("{fraction:0<PLACES$}")
            .parse()
            .map_err(|_| ParseSumError)?;
        Ok(match (is_negative, fraction) {
            (false, _) => DecimalSum { whole, fraction },
            (true, 0) => DecimalSum {
                whole: -whole,
                fraction,
            },
            (true, _) => DecimalSum {
                whole: -whole - 1,
                fraction: ONE - fraction,
            },
        })
    }
}

/// A decimal string, as everywhere where money leaves the process.
impl Serialize for DecimalSum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(text: &str) -> DecimalSum {
        text.parse().unwrap()
    }

    #[test]
    fn terms_of_any_size_add_exactly() {
        let large = Decimal::from_str("1000000000").unwrap();
        let small = Decimal::from_str("0.0000000000000000000000000001").unwrap();
        let total = DecimalSum::from(large).checked_add(small.into()).unwrap();
        assert_eq!(total.to_string(), "1000000000.0000000000000000000000000001");
    }

    #[test]
    fn the_plain_form_is_read_back_and_anything_else_refused() {
        for text in ["0", "12", "-12", "0.5", "-0.5", "-1.25", "7.0000001"] {
            assert_eq!(sum(text).to_string(), text);
        }
        assert_eq!(sum("1.50").to_string(), "1.5");
        for text in [
            "",
            "-",
            ".5",
            "5.",
            "+1",
            "1e3",
            "NaN",
            "1,5",
            "0.00000000000000000000000000001",
        ] {
            assert_eq!(text.parse::<DecimalSum>(), Err(ParseSumError), "{text}");
        }
    }

    #[test]
    fn a_sum_beyond_the_range_is_no_sum() {
        let most = DecimalSum {
            whole: i128::MAX,
            fraction: ONE - 1,
        };
        assert_eq!(
            most.checked_add(DecimalSum {
                whole: 0,
                fraction: 1
            }),
            None
        );
        assert_eq!(most.to_i64(), None);
        assert_eq!(most.rounded(2), None);
    }

    #[test]
    fn rounding_is_half_to_even() {
        assert_eq!(sum("0.125").rounded(2), Some(Decimal::new(12, 2)));
        assert_eq!(sum("-0.135").rounded(2), Some(Decimal::new(-14, 2)));
    }

    proptest! {
        #[test]
        fn a_decimal_survives_and_its_negative_cancels_it(
            mantissa in -79_228_162_514_264_337_593_543_950_335_i128
                ..=79_228_162_514_264_337_593_543_950_335_i128,
            scale in 0_u32..=28,
        ) {
            let decimal = Decimal::from_i128_with_scale(mantissa, scale);
            let sum = DecimalSum::from(decimal);
            prop_assert_eq!(sum.to_string(), decimal.normalize().to_string());
            prop_assert_eq!(sum.to_string().parse(), Ok(sum));
            prop_assert_eq!(sum.checked_add((-decimal).into()), Some(DecimalSum::ZERO));
        }
    }
}
