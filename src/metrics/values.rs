//! Values of metrics that the client library does not have: exact sums, and counters that are
//! read from elsewhere.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};
use rust_decimal::Decimal;

/// A counter whose sum is an exact decimal, for money and other fractional quantities; it becomes
/// a float in the exposition only.
///
/// The sum holds 28 significant digits. Amounts have at most 28 decimal places and are added as
/// they are, so parts far below a pico-dollar are kept; only digits beyond the 28th of the sum
/// are rounded, half to even: at a million dollars spent that is the 22nd decimal place.
#[derive(Debug, Clone, Default)]
pub(super) struct ExactCounter(Arc<Mutex<Decimal>>);

impl ExactCounter {
    /// Adds `amount`. A negative one is left out, because a counter that falls looks like a
    /// restart.
    pub(super) fn add(&self, amount: Decimal) {
        if amount > Decimal::ZERO {
            let mut sum = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *sum = sum.saturating_add(amount);
        }
    }

    fn sum(&self) -> Decimal {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TypedMetric for ExactCounter {
    const TYPE: MetricType = MetricType::Counter;
}

impl EncodeMetric for ExactCounter {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_counter::<NoLabelSet, _, u64>(&float_of(self.sum()), None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// The float nearest to `decimal`. It goes through text because that conversion is correctly
/// rounded and therefore monotonic: a counter never seems to fall.
fn float_of(decimal: Decimal) -> f64 {
    decimal.to_string().parse().unwrap_or(f64::NAN)
}

/// A counter whose total is kept elsewhere and read at each scrape.
#[derive(Debug, Clone, Default)]
pub(super) struct ReadCounter(Arc<AtomicU64>);

impl ReadCounter {
    /// Sets the total that was read.
    pub(super) fn set(&self, total: f64) {
        self.0.store(total.to_bits(), Ordering::Relaxed);
    }
}

impl TypedMetric for ReadCounter {
    const TYPE: MetricType = MetricType::Counter;
}

impl EncodeMetric for ReadCounter {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let total = f64::from_bits(self.0.load(Ordering::Relaxed));
        encoder.encode_counter::<NoLabelSet, _, u64>(&total, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(text: &str) -> Decimal {
        text.parse().unwrap()
    }

    #[test]
    fn small_parts_of_a_large_sum_are_kept() {
        let counter = ExactCounter::default();
        counter.add(decimal("1000000"));
        for _ in 0..1000 {
            counter.add(decimal("0.000000000000000001"));
        }
        assert_eq!(counter.sum(), decimal("1000000.000000000000001"));
    }

    #[test]
    fn amounts_of_28_decimal_places_are_added() {
        let counter = ExactCounter::default();
        counter.add(decimal("0.0000000000000000000000000001"));
        counter.add(decimal("0.1"));
        assert_eq!(counter.sum(), decimal("0.1000000000000000000000000001"));
        counter.add(decimal("123456"));
        assert_eq!(counter.sum(), decimal("123456.1"));
    }

    #[test]
    fn a_sum_never_falls() {
        let counter = ExactCounter::default();
        counter.add(decimal("2.5"));
        counter.add(decimal("-1"));
        counter.add(Decimal::ZERO);
        assert_eq!(counter.sum(), decimal("2.5"));
        counter.add(Decimal::MAX);
        counter.add(Decimal::MAX);
        assert_eq!(counter.sum(), Decimal::MAX);
    }

    #[test]
    fn the_float_is_the_nearest_one() {
        for text in [
            "0.1",
            "0.3",
            "1234.5678",
            "0.000012",
            "79228162514264.337593543950335",
        ] {
            let expected: f64 = text.parse().unwrap();
            assert_eq!(float_of(decimal(text)).to_bits(), expected.to_bits());
        }
    }
}
