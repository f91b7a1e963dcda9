//! Quantities of Kubernetes: `100m`, `0.5`, `64Mi`, `1e3`.
//!
//! Source: Kubernetes API, `resource.Quantity`, serialization format.

use rust_decimal::Decimal;

/// The most characters that are read: nobody writes more of them.
const CHARS_MAX: usize = 32;

/// The value of a quantity that can be a request or a limit: not negative, no rarity of the format
/// that a 96-bit decimal cannot hold.
pub(super) fn parse(text: &str) -> Option<Decimal> {
    if text.len() > CHARS_MAX {
        return None;
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, suffix) = text.split_at(end.unwrap_or(text.len()));
    let is_number = number.bytes().any(|byte| byte.is_ascii_digit());
    if !is_number || number.matches('.').count() > 1 {
        return None;
    }
    let number: Decimal = format!("0{number}").trim_end_matches('.').parse().ok()?;
    let thousands = |power: u32| Some(Decimal::from(1000_u64.checked_pow(power)?));
    let kibis = |power: u32| Some(Decimal::from(1024_u64.checked_pow(power)?));
    let factor = match suffix {
        "" => Decimal::ONE,
        "n" => Decimal::new(1, 9),
        "u" => Decimal::new(1, 6),
        "m" => Decimal::new(1, 3),
        "k" => thousands(1)?,
        "M" => thousands(2)?,
        "G" => thousands(3)?,
        "T" => thousands(4)?,
        "P" => thousands(5)?,
        "E" => thousands(6)?,
        "Ki" => kibis(1)?,
        "Mi" => kibis(2)?,
        "Gi" => kibis(3)?,
        "Ti" => kibis(4)?,
        "Pi" => kibis(5)?,
        "Ei" => kibis(6)?,
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            match u32::try_from(power) {
                Ok(power) => Decimal::from(10_u64.checked_pow(power)?),
                Err(_) => Decimal::try_new(1, power.unsigned_abs()).ok()?,
            }
        }
    };
    number.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, value) in [
            ("1", "1"),
            ("0.5", "0.5"),
            (".5", "0.5"),
            ("5.", "5"),
            ("100m", "0.1"),
            ("64Mi", "67108864"),
            ("1e3", "1000"),
            ("5E-1", "0.5"),
            ("2E", "2000000000000000000"),
        ] {
            let value: Decimal = value.parse().unwrap();
            assert_eq!(
                parse(text).map(|it| it.normalize()),
                Some(value.normalize()),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_quantity_is_none() {
        for text in [
            "", "m", ".", "1.2.3", "-1", "1 Mi", "64MB", "1e", "lots", "1e99", "9Ei9",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
