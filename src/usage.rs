//! What a request consumed, in disjoint quantities.
//!
//! Every provider has its own convention (cached tokens inside or outside the prompt, reasoning
//! inside or outside the completion); each converts it at its own edge, so that here no two
//! quantities overlap and a sum never counts anything twice. A quantity that was not reported
//! is absent, which is not zero.
//!
//! Within one response usage is a running snapshot: a later one *supersedes* field by field, so
//! there is `supersede` and no `add`. Only the parts of a call that used several models are
//! summed, by [`Usage::total_of`].

use std::fmt;

use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! units {
    ($($(#[$doc:meta])* $variant:ident = $name:literal),+ $(,)?) => {
        /// A kind of quantity. Names are those of the record's columns and of
        /// `taffrail_units_total{unit}`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Unit { $($(#[$doc])* $variant),+ }

        impl Unit {
            /// Every unit, in the order of the declaration.
            pub const ALL: &'static [Unit] = &[$(Unit::$variant),+];

            /// The unit's name in records, prices and metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(Unit::$variant => $name),+ }
            }

            /// The unit of that name, if there is one.
            pub fn from_name(name: &str) -> Option<Unit> {
                match name { $($name => Some(Unit::$variant),)+ _ => None }
            }
        }
    };
}

units! {
    /// Input tokens that no other unit covers: neither cached, nor audio, nor image.
    Input = "input",
    /// Input tokens read from the provider's prompt cache.
    CacheRead = "cache_read",
    /// Input tokens written to a cache that lives five minutes.
    CacheWrite5m = "cache_write_5m",
    /// Input tokens written to a cache that lives one hour.
    CacheWrite1h = "cache_write_1h",
    /// Input tokens written to a cache of another or unstated lifetime.
    CacheWrite = "cache_write",
    /// Output tokens without reasoning, audio and image tokens.
    Output = "output",
    /// Output tokens spent on reasoning.
    Reasoning = "reasoning",
    /// Audio tokens of the input.
    InputAudio = "input_audio",
    /// Audio tokens of the output.
    OutputAudio = "output_audio",
    /// Image tokens of the input.
    InputImage = "input_image",
    /// Image tokens of the output.
    OutputImage = "output_image",
    /// Images made.
    Image = "image",
    /// Megapixels made.
    Megapixel = "megapixel",
    /// Seconds of video made.
    VideoSecond = "video_second",
    /// Seconds of audio read or made.
    AudioSecond = "audio_second",
    /// Seconds of hardware time.
    ComputeSecond = "compute_second",
    /// Characters of input text.
    Character = "character",
    /// Pages read.
    Page = "page",
    /// Web or file searches made by the provider.
    Search = "search",
    /// Requests, where the provider has a price per request.
    Request = "request",
    /// Steps of a training run.
    TrainingStep = "training_step",
    /// The provider's own unit of billing.
    BillableUnit = "billable_unit",
}

impl Unit {
    /// Whether the unit is a kind of token.
    pub const fn is_token(self) -> bool {
        (self as u8) <= (Unit::OutputImage as u8)
    }

    /// Whether the unit is a kind of input token; their sum is the length of the context.
    pub const fn is_input_token(self) -> bool {
        matches!(
            self,
            Unit::Input
                | Unit::CacheRead
                | Unit::CacheWrite5m
                | Unit::CacheWrite1h
                | Unit::CacheWrite
                | Unit::InputAudio
                | Unit::InputImage
        )
    }

    /// The `type` label of `taffrail_tokens_total`, where cache writes are one; `None` if the
    /// unit is not a token.
    pub const fn token_type(self) -> Option<&'static str> {
        match self {
            Unit::CacheWrite5m | Unit::CacheWrite1h | Unit::CacheWrite => Some("cache_write"),
            unit if unit.is_token() => Some(unit.as_str()),
            _ => None,
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

const UNITS: usize = Unit::ALL.len();

/// Quantities by [`Unit`]; absent is not zero.
#[derive(Clone, PartialEq, Eq)]
pub struct Usage {
    quantities: [Option<Decimal>; UNITS],
}

/// What is read from a prompt cache, and what is written to one.
const CACHED: [Unit; 4] = [
    Unit::CacheRead,
    Unit::CacheWrite5m,
    Unit::CacheWrite1h,
    Unit::CacheWrite,
];

impl Default for Usage {
    fn default() -> Usage {
        Usage {
            quantities: [None; UNITS],
        }
    }
}

impl Usage {
    /// A usage of which nothing is known.
    pub fn new() -> Usage {
        Usage::default()
    }

    /// The quantity of `unit`, if known.
    pub fn get(&self, unit: Unit) -> Option<Decimal> {
        self.quantities.get(unit as usize).copied().flatten()
    }

    /// The quantity of a token unit as a whole number, if known and representable.
    pub fn tokens(&self, unit: Unit) -> Option<u64> {
        self.get(unit).and_then(|quantity| quantity.to_u64())
    }

    /// Sets the quantity of `unit`, replacing what was known.
    pub fn set(&mut self, unit: Unit, quantity: impl Into<Decimal>) {
        if let Some(slot) = self.quantities.get_mut(unit as usize) {
            *slot = Some(quantity.into());
        }
    }

    /// The same usage with `unit` set; for literals.
    #[must_use]
    pub fn with(mut self, unit: Unit, quantity: impl Into<Decimal>) -> Usage {
        self.set(unit, quantity);
        self
    }

    /// Forgets the quantity of `unit`.
    pub fn clear(&mut self, unit: Unit) {
        if let Some(slot) = self.quantities.get_mut(unit as usize) {
            *slot = None;
        }
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.quantities.iter().all(Option::is_none)
    }

    /// The known quantities, in the order of [`Unit::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Unit, Decimal)> + '_ {
        Unit::ALL
            .iter()
            .zip(&self.quantities)
            .filter_map(|(unit, quantity)| quantity.map(|quantity| (*unit, quantity)))
    }

    /// Takes over every quantity that `later` knows and keeps the others: the rule for the
    /// running snapshots of one response.
    pub fn supersede(&mut self, later: &Usage) {
        for (unit, quantity) in later.iter() {
            self.set(unit, quantity);
        }
    }

    /// The sum of the parts of a call that used several models. A unit is known if any part
    /// knows it.
    pub fn total_of<'a>(parts: impl IntoIterator<Item = &'a Usage>) -> Usage {
        let mut total = Usage::new();
        for part in parts {
            for (unit, quantity) in part.iter() {
                let sum = total.get(unit).unwrap_or_default().saturating_add(quantity);
                total.set(unit, sum);
            }
        }
        total
    }

    /// All input tokens together (the length of the context), if any kind is known.
    pub fn input_tokens_total(&self) -> Option<Decimal> {
        self.iter()
            .filter(|(unit, _)| unit.is_input_token())
            .map(|(_, quantity)| quantity)
            .reduce(Decimal::saturating_add)
    }

    /// Whether tokens were read from a cache or written to one.
    pub fn has_cached(&self) -> bool {
        let mut cached = CACHED.iter().filter_map(|unit| self.get(*unit));
        cached.any(|quantity| !quantity.is_zero())
    }

    /// The same usage as it would have been without a cache: all that was read from one or written
    /// to one is plain input.
    #[must_use]
    pub fn uncached(&self) -> Usage {
        let mut uncached = self.clone();
        for unit in CACHED {
            if let Some(quantity) = self.get(unit) {
                let input = uncached.get(Unit::Input).unwrap_or_default();
                uncached.set(Unit::Input, input.saturating_add(quantity));
                uncached.clear(unit);
            }
        }
        uncached
    }
}

impl fmt::Debug for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(
                self.iter()
                    .map(|(unit, quantity)| (unit.as_str(), quantity)),
            )
            .finish()
    }
}

/// `{"input":"12","output":"3"}`: decimals as strings, absent units left out.
impl Serialize for Usage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (unit, quantity) in self.iter() {
            map.serialize_entry(unit.as_str(), &quantity)?;
        }
        map.end()
    }
}

/// Units that this version does not know are skipped, so that an older build can read a newer
/// journal.
impl<'de> Deserialize<'de> for Usage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Usage, D::Error> {
        struct Quantities;
        impl<'de> Visitor<'de> for Quantities {
            type Value = Usage;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of units to decimal quantities")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Usage, A::Error> {
                let mut usage = Usage::new();
                while let Some((name, quantity)) = map.next_entry::<String, Decimal>()? {
                    if let Some(unit) = Unit::from_name(&name) {
                        usage.set(unit, quantity);
                    }
                }
                Ok(usage)
            }
        }
        deserializer.deserialize_map(Quantities)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_snapshot_supersedes_field_by_field() {
        let mut usage = Usage::new().with(Unit::Input, 702).with(Unit::Output, 1);
        usage.supersede(&Usage::new().with(Unit::Output, 59));
        assert_eq!(
            usage,
            Usage::new().with(Unit::Input, 702).with(Unit::Output, 59)
        );
    }

    #[test]
    fn absent_is_not_zero() {
        let usage = Usage::new().with(Unit::Output, 0);
        assert_eq!(usage.get(Unit::Output), Some(Decimal::ZERO));
        assert_eq!(usage.get(Unit::Input), None);
    }

    #[test]
    fn usage_survives_its_encoding() {
        let usage = Usage::new()
            .with(Unit::Input, 12)
            .with(Unit::AudioSecond, Decimal::new(95, 1));
        let text = serde_json::to_string(&usage).unwrap();
        assert_eq!(text, r#"{"input":"12","audio_second":"9.5"}"#);
        assert_eq!(serde_json::from_str::<Usage>(&text).unwrap(), usage);
    }

    #[test]
    fn a_unit_of_the_future_is_skipped() {
        let usage: Usage = serde_json::from_str(r#"{"input":"1","parsec":"2"}"#).unwrap();
        assert_eq!(usage, Usage::new().with(Unit::Input, 1));
    }

    #[test]
    fn every_unit_is_found_by_its_name() {
        for unit in Unit::ALL {
            assert_eq!(Unit::from_name(unit.as_str()), Some(*unit));
        }
    }
}
