//! Rates and the arithmetic of one model's price.
//!
//! In: a usage and the circumstances of the call. Out: exact dollars, or the first quantity that
//! has no rate. What stands in for what, and what is an estimate, is decided here and nowhere
//! else; docs/prices.md states the same rules for people.

use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, NaiveTime, Utc};
use rust_decimal::Decimal;

use crate::money::{Usd, parse_decimal};
use crate::qualifier::{Qualifier, Qualifiers};
use crate::record::Operation;
use crate::usage::{Unit, Usage};

use super::Missing;

/// How many of a unit a published price is for: a million tokens or characters, else one.
const PER_MILLION: Decimal = Decimal::from_parts(1_000_000, 0, 0, false, 0);

/// Service tiers that are the standard one, as vendors spell it in requests and responses.
const STANDARD_TIERS: [&str; 4] = ["standard", "default", "auto", "on_demand"];

/// Regions that do not change a price, as vendors spell it in responses.
const STANDARD_REGIONS: [&str; 2] = ["global", "not_available"];

/// Whether prices of `unit` are published by the million.
pub const fn is_priced_per_million(unit: Unit) -> bool {
    unit.is_token() || matches!(unit, Unit::Character)
}

/// What one unit costs, in US dollars; exact, also where a second is a sixtieth of a price.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    amount: Decimal,
    per: Decimal,
}

impl Rate {
    /// Reads a published price of `unit`: a decimal or a fraction such as `0.36/3600`, for a
    /// million tokens or characters and for one of any other unit. `None` if it is neither, or
    /// negative.
    pub fn published(unit: Unit, text: &str) -> Option<Rate> {
        let (amount, per) = match text.split_once('/') {
            Some((amount, per)) => (parse_decimal(amount)?, parse_decimal(per)?),
            None => (parse_decimal(text)?, Decimal::ONE),
        };
        if amount.is_sign_negative() && !amount.is_zero() || per <= Decimal::ZERO {
            return None;
        }
        let per = if is_priced_per_million(unit) {
            per.checked_mul(PER_MILLION)?
        } else {
            per
        };
        // Dividing once here keeps the division out of every call, where it loses nothing.
        let quotient = amount.checked_div(per)?;
        let is_exact = quotient.scale() < 20 && quotient.checked_mul(per)? == amount;
        Some(if is_exact {
            Rate {
                amount: quotient.normalize(),
                per: Decimal::ONE,
            }
        } else {
            Rate { amount, per }
        })
    }

    /// The dollars for `quantity`; `None` if they do not fit a decimal.
    pub fn times(self, quantity: Decimal) -> Option<Decimal> {
        let amount = self.amount.checked_mul(quantity)?;
        if self.per == Decimal::ONE {
            Some(amount)
        } else {
            amount.checked_div(self.per)
        }
    }

    /// The price as it is published: of a million tokens or characters, of one of any other unit.
    pub fn as_published(self, unit: Unit) -> Usd {
        let count = if is_priced_per_million(unit) {
            PER_MILLION
        } else {
            Decimal::ONE
        };
        Usd::new(self.times(count).unwrap_or(Decimal::MAX)).normalize()
    }
}

/// Rates by unit: few, so a scan beats a map.
pub(super) type Rates = Vec<(Unit, Rate)>;

fn find(rates: &Rates, unit: Unit) -> Option<Rate> {
    rates
        .iter()
        .find(|(listed, _)| *listed == unit)
        .map(|(_, rate)| *rate)
}

/// Rates that depend on the length of the context.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RateSet {
    /// The rates of any request.
    pub(super) base: Rates,
    /// Rates of requests with more input tokens than the limit, longest limit first. They hold
    /// for all tokens of such a request, not for those beyond the limit only.
    pub(super) above: Vec<(Decimal, Rates)>,
}

impl RateSet {
    fn rate(&self, unit: Unit, context: Decimal) -> Option<Rate> {
        self.above
            .iter()
            .filter(|(limit, _)| context > *limit)
            .find_map(|(_, rates)| find(rates, unit))
            .or_else(|| find(&self.base, unit))
    }

    fn is_empty(&self) -> bool {
        self.base.is_empty() && self.above.is_empty()
    }
}

/// Hours of the day, in UTC, from the first up to the second; may cross midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hours(pub(super) NaiveTime, pub(super) NaiveTime);

impl Hours {
    fn contain(self, time: NaiveTime) -> bool {
        if self.0 <= self.1 {
            self.0 <= time && time < self.1
        } else {
            self.0 <= time || time < self.1
        }
    }
}

/// Which kind of list a price is from; of two that hold at the same time, the later kind's wins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layer {
    /// The catalogue that is built in.
    #[default]
    Catalog,
    /// A list that somebody brought in from a file.
    Import,
    /// The provider's own list, as its API states it.
    Api,
    /// The user's file.
    Overlay,
}

impl Layer {
    /// Every kind, the weakest first.
    pub const ALL: [Layer; 4] = [Layer::Catalog, Layer::Import, Layer::Api, Layer::Overlay];

    /// The name, as the `source` label of metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Layer::Catalog => "catalog",
            Layer::Import => "import",
            Layer::Api => "api",
            Layer::Overlay => "overlay",
        }
    }
}

/// A circumstance that rates are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Condition {
    /// The qualifier has this value, in the form of [`Qualifier::read`].
    Is(Qualifier, Box<str>),
    /// The clip is not longer.
    UpToSeconds(Decimal),
    /// That was asked.
    Of(Operation),
}

pub(super) type Conditions = Vec<Condition>;

impl Condition {
    /// Whether it holds; `None` where that is not known.
    fn holds(&self, terms: &Terms<'_>) -> Option<bool> {
        match self {
            Condition::Is(qualifier, value) => Some(terms.qualifier(*qualifier)? == &**value),
            Condition::UpToSeconds(limit) => {
                let seconds = parse_decimal(terms.qualifier(Qualifier::Seconds)?)?;
                Some(seconds <= *limit)
            }
            Condition::Of(operation) => Some(terms.operation == *operation),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Condition::Is(qualifier, value) => write!(f, "{qualifier}={value}"),
            Condition::UpToSeconds(limit) => write!(f, "{}<={limit}", Qualifier::Seconds),
            Condition::Of(operation) => write!(f, "{OPERATION}={operation}"),
        }
    }
}

/// The key of a condition on the operation.
pub(super) const OPERATION: &str = "operation";

/// What a model costs while a condition holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Price {
    pub(super) layer: Layer,
    /// The version of the list that it is from.
    pub(super) version: Arc<str>,
    pub(super) from: Option<DateTime<Utc>>,
    pub(super) hours: Option<Hours>,
    pub(super) standard: RateSet,
    /// Rates by size and quality of an image, or resolution of a video.
    pub(super) variants: Vec<(Box<str>, Rates)>,
    /// Rates by what was asked for: the first of which every condition holds.
    pub(super) when: Vec<(Conditions, Rates)>,
    /// Rates by service tier; what a tier does not list costs what it costs in the standard one.
    pub(super) tiers: Vec<(Box<str>, RateSet)>,
    /// Factors on the token rates by region.
    pub(super) regions: Vec<(Box<str>, Decimal)>,
    /// Units whose rate is the commonest of several that the usage cannot tell apart.
    pub(super) estimate: Vec<Unit>,
    /// What the provider's own unit of billing is. It stands in for that unit in a usage that
    /// does not state it.
    pub(super) billable_unit_is: Option<Unit>,
}

/// The circumstances of a call that its price depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms<'a> {
    pub(super) service_tier: Option<&'a str>,
    pub(super) region: Option<&'a str>,
    pub(super) variant: Option<&'a str>,
    /// The first to know a qualifier tells it.
    pub(super) qualifiers: [&'a Qualifiers; 2],
    pub(super) operation: Operation,
}

impl Terms<'_> {
    fn qualifier(&self, qualifier: Qualifier) -> Option<&str> {
        self.qualifiers.iter().find_map(|it| it.get(qualifier))
    }

    /// Whether the usage is of many requests, each with a context of its own.
    fn is_sum(&self) -> bool {
        self.operation == Operation::Batch
    }
}

/// What a usage costs, and whether a rate stood in for one that is not listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) dollars: Decimal,
    pub(super) estimated: bool,
}

/// The terms, resolved against one price.
struct Sheet<'a> {
    price: &'a Price,
    tier: Option<&'a RateSet>,
    variant: Option<&'a Rates>,
    has_unlisted_variant: bool,
    /// Those of `when` that hold.
    qualified: Option<&'a Rates>,
    /// Whether a qualifier would have to be known to tell which of `when` hold.
    is_undecided: bool,
    /// The unit that is billed at the rate of billing units, as none are stated.
    billed: Option<Unit>,
    factor: Decimal,
    /// Tier and region were either listed or standard.
    is_listed: bool,
    context: Decimal,
}

impl Price {
    /// The kind of list that the price is from.
    pub fn layer(&self) -> Layer {
        self.layer
    }

    /// The version of that list, as rows name it.
    pub fn version(&self) -> &Arc<str> {
        &self.version
    }

    /// Whether both ask the same for the same, wherever they are from and whenever they begin.
    pub(super) fn costs_the_same(&self, other: &Price) -> bool {
        let alike = Price {
            layer: other.layer,
            version: other.version.clone(),
            from: other.from,
            ..self.clone()
        };
        alike == *other
    }

    /// When the price begins; `None` if it always held.
    pub fn from(&self) -> Option<DateTime<Utc>> {
        self.from
    }

    /// Whether the price holds at certain hours of the day only.
    pub fn is_hourly(&self) -> bool {
        self.hours.is_some()
    }

    /// The rate of `unit` for a request with `context` input tokens in a service tier (`None` is
    /// the standard one), if it is listed; without what stands in for it.
    pub fn rate(&self, unit: Unit, service_tier: Option<&str>, context: Decimal) -> Option<Rate> {
        service_tier
            .and_then(|name| self.tier(name))
            .and_then(|tier| tier.rate(unit, context))
            .or_else(|| self.standard.rate(unit, context))
    }

    /// The listed service tiers besides the standard one.
    pub fn service_tiers(&self) -> impl Iterator<Item = &str> {
        self.tiers.iter().map(|(name, _)| &**name)
    }

    /// The limits, in input tokens, above which other standard rates hold; longest first.
    pub fn context_limits(&self) -> impl Iterator<Item = Decimal> + '_ {
        self.standard.above.iter().map(|(limit, _)| *limit)
    }

    /// Whether the price depends on what a row does not tell: a size, a quality, a region.
    pub fn depends_on_more_than_usage(&self) -> bool {
        !self.variants.is_empty() || !self.regions.is_empty() || !self.when.is_empty()
    }

    /// The rates by what was asked for, each with its conditions (`resolution=720p audio=false`).
    pub fn qualified_rates(&self) -> impl Iterator<Item = (String, Unit, Rate)> {
        self.when.iter().flat_map(|(conditions, rates)| {
            let conditions: Vec<String> = conditions.iter().map(Condition::to_string).collect();
            let conditions = conditions.join(" ");
            rates
                .iter()
                .map(move |(unit, rate)| (conditions.clone(), *unit, *rate))
        })
    }

    /// The rates by size and quality of an image, or resolution of a video.
    pub fn variant_rates(&self) -> impl Iterator<Item = (&str, Unit, Rate)> {
        self.variants.iter().flat_map(|(name, rates)| {
            rates
                .iter()
                .map(move |(unit, rate)| (&**name, *unit, *rate))
        })
    }

    pub(super) fn is_active(&self, at: DateTime<Utc>) -> bool {
        self.from.is_none_or(|from| from <= at)
            && self.hours.is_none_or(|hours| hours.contain(at.time()))
    }

    pub(super) fn always_holds(&self) -> bool {
        self.from.is_none() && self.hours.is_none()
    }

    pub(super) fn has_rates(&self) -> bool {
        !self.standard.is_empty() || !self.variants.is_empty() || !self.when.is_empty()
    }

    fn tier(&self, name: &str) -> Option<&RateSet> {
        self.tiers
            .iter()
            .find(|(listed, _)| listed.eq_ignore_ascii_case(name))
            .map(|(_, rates)| rates)
    }

    /// Whether one of the requests that a usage is the sum of can have had a longer context than
    /// the rates of any hold for.
    fn may_be_above(&self, tier: Option<&RateSet>, usage: &Usage) -> bool {
        let sum = usage.input_tokens_total().unwrap_or_default();
        let sets = [Some(&self.standard), tier];
        let mut limits = sets.into_iter().flatten().flat_map(|set| &set.above);
        limits.any(|(limit, _)| sum > *limit)
    }

    /// The rates whose conditions hold, `Ok(None)` if none are; `Err` where that cannot be told.
    fn qualified(&self, terms: &Terms<'_>) -> Result<Option<&Rates>, ()> {
        for (conditions, rates) in &self.when {
            let mut is_known = true;
            let mut is_ruled_out = false;
            for condition in conditions {
                match condition.holds(terms) {
                    Some(holds) => is_ruled_out |= !holds,
                    None => is_known = false,
                }
            }
            match (is_ruled_out, is_known) {
                (true, _) => {}
                (false, true) => return Ok(Some(rates)),
                (false, false) => return Err(()),
            }
        }
        Ok(None)
    }

    fn sheet<'a>(&'a self, terms: Terms<'_>, usage: &Usage) -> Sheet<'a> {
        let is_one_of = |names: &[&str], name: &str| {
            names
                .iter()
                .any(|standard| standard.eq_ignore_ascii_case(name))
        };
        let tier = terms.service_tier.and_then(|name| self.tier(name));
        let factor = terms.region.and_then(|name| {
            self.regions
                .iter()
                .find(|(listed, _)| listed.eq_ignore_ascii_case(name))
                .map(|(_, factor)| *factor)
        });
        let variant = terms.variant.and_then(|name| {
            self.variants
                .iter()
                .find(|(listed, _)| listed.eq_ignore_ascii_case(name))
                .map(|(_, rates)| rates)
        });
        let is_tier_listed = tier.is_some()
            || terms
                .service_tier
                .is_none_or(|name| is_one_of(&STANDARD_TIERS, name));
        let is_region_listed = factor.is_some()
            || terms
                .region
                .is_none_or(|name| is_one_of(&STANDARD_REGIONS, name));
        let qualified = self.qualified(&terms);
        Sheet {
            price: self,
            tier,
            variant,
            has_unlisted_variant: terms.variant.is_some() && variant.is_none(),
            qualified: qualified.ok().flatten(),
            is_undecided: qualified.is_err(),
            billed: self
                .billable_unit_is
                .filter(|_| usage.get(Unit::BillableUnit).is_none()),
            factor: factor.unwrap_or(Decimal::ONE),
            is_listed: is_tier_listed && is_region_listed,
            context: match terms.is_sum() {
                true => Decimal::ZERO,
                false => usage.input_tokens_total().unwrap_or_default(),
            },
        }
    }

    /// What `usage` costs; `Err` is the first quantity without a rate.
    pub(super) fn cost(&self, usage: &Usage, terms: Terms<'_>) -> Result<Cost, Missing> {
        let sheet = self.sheet(terms, usage);
        let is_size_unknown = terms.variant.is_none() && !self.variants.is_empty();
        let missing = match sheet.is_undecided || is_size_unknown {
            true => Missing::Qualifier,
            false => Missing::Unit,
        };
        let mut tokens = Decimal::ZERO;
        let mut others = Decimal::ZERO;
        let mut estimated = terms.is_sum() && self.may_be_above(sheet.tier, usage);
        for (unit, quantity) in usage.iter().filter(|(_, quantity)| !quantity.is_zero()) {
            let Some((rate, is_stand_in)) = sheet.rate(unit) else {
                if sheet.is_measured_otherwise(unit, usage) {
                    continue;
                }
                return Err(missing(unit));
            };
            let sum = if unit.is_token() {
                &mut tokens
            } else {
                &mut others
            };
            // A negative quantity is a provider's mistake that no price makes right.
            *sum = Some(quantity)
                .filter(|quantity| quantity.is_sign_positive())
                .and_then(|quantity| rate.times(quantity))
                .and_then(|dollars| sum.checked_add(dollars))
                .ok_or(Missing::Unit(unit))?;
            estimated |= is_stand_in || !sheet.is_listed;
        }
        let dollars = tokens
            .checked_mul(sheet.factor)
            .and_then(|tokens| tokens.checked_add(others))
            .ok_or(Missing::Unit(Unit::Input))?
            .normalize();
        Ok(Cost { dollars, estimated })
    }
}

impl Sheet<'_> {
    /// The rate of `unit`, and whether it stands in for one that is not listed.
    fn rate(&self, unit: Unit) -> Option<(Rate, bool)> {
        let chosen = [self.variant, self.qualified].into_iter().flatten();
        if let Some(rate) = chosen.into_iter().find_map(|rates| find(rates, unit)) {
            return Some((rate, false));
        }
        let is_by_variant = || {
            let mut variants = self.price.variants.iter();
            variants.any(|(_, rates)| find(rates, unit).is_some())
        };
        let is_qualified = || {
            let mut when = self.price.when.iter();
            when.any(|(_, rates)| find(rates, unit).is_some())
        };
        let is_stand_in = self.price.estimate.contains(&unit)
            || self.has_unlisted_variant && !unit.is_token() && is_by_variant()
            || self.is_undecided && is_qualified();
        let listed = |unit| {
            self.tier
                .and_then(|tier| tier.rate(unit, self.context))
                .or_else(|| self.price.standard.rate(unit, self.context))
        };
        if let Some(rate) = listed(unit).or_else(|| billed_as(unit).and_then(listed)) {
            return Some((rate, is_stand_in));
        }
        let is_billed = self.billed == Some(unit);
        let rate = is_billed.then(|| listed(Unit::BillableUnit)).flatten()?;
        Some((rate, true))
    }

    /// Whether `unit`, which has no rate, only measures what the usage states in another unit
    /// that has one: images besides megapixels, seconds besides audio tokens.
    fn is_measured_otherwise(&self, unit: Unit, usage: &Usage) -> bool {
        usage.iter().any(|(other, quantity)| {
            // No billing units at all is a statement: the provider bills nothing.
            let is_stated = !quantity.is_zero() || other == Unit::BillableUnit;
            is_stated && measures_the_same(unit, other) && self.rate(other).is_some()
        })
    }
}

/// The unit at whose rate vendors bill `unit` when they publish none for it.
///
/// Reasoning is billed as output by every vendor that reports it. A cache write of unstated
/// lifetime is the five-minute one, the default where lifetimes are sold. Image tokens of a
/// prompt are plain input unless priced apart. Cached and audio tokens have no such rule: they
/// cost anything from a fortieth of the input rate to twelve times it.
const fn billed_as(unit: Unit) -> Option<Unit> {
    match unit {
        Unit::Reasoning => Some(Unit::Output),
        Unit::CacheWrite => Some(Unit::CacheWrite5m),
        Unit::InputImage => Some(Unit::Input),
        _ => None,
    }
}

/// Whether `unit` can be another measure of what `other` counts, so that a model billed by
/// `other` owes nothing for it.
const fn measures_the_same(unit: Unit, other: Unit) -> bool {
    // The provider's own units of billing are the whole bill.
    if matches!(other, Unit::BillableUnit) {
        return true;
    }
    match unit {
        Unit::ComputeSecond | Unit::Request | Unit::BillableUnit => true,
        Unit::Image | Unit::Megapixel => is_yardstick(other) || matches!(other, Unit::OutputImage),
        Unit::AudioSecond => {
            is_yardstick(other) || matches!(other, Unit::InputAudio | Unit::OutputAudio)
        }
        Unit::Character => is_yardstick(other) || matches!(other, Unit::Input | Unit::OutputAudio),
        Unit::VideoSecond | Unit::Page | Unit::TrainingStep => is_yardstick(other),
        _ => false,
    }
}

/// Units that measure a piece of work: a vendor bills by one of them.
const fn is_yardstick(unit: Unit) -> bool {
    !unit.is_token() && !matches!(unit, Unit::Search | Unit::Request)
}

/// The prices of one model, by date and hour.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelPrices {
    /// The last one that is active holds.
    pub(super) prices: Vec<Price>,
}

impl ModelPrices {
    /// The price that holds at a time; `None` before the first one began.
    pub fn at(&self, at: DateTime<Utc>) -> Option<&Price> {
        self.prices.iter().rev().find(|price| price.is_active(at))
    }

    /// The price of a version that holds at a time, if nothing had superseded it.
    pub(super) fn of_version(&self, version: &str, at: DateTime<Utc>) -> Option<&Price> {
        let mut prices = self.prices.iter().rev();
        prices.find(|price| *price.version == *version && price.is_active(at))
    }

    /// These prices, followed by `new` from a time on; `None` if nothing is different then. Prices
    /// of a stronger kind of list stay over `new`, and what holds only before `since` is let go.
    pub(super) fn with_later(
        &self,
        new: &ModelPrices,
        from: DateTime<Utc>,
        since: DateTime<Utc>,
    ) -> Option<ModelPrices> {
        let layer = new.prices.first()?.layer;
        if let [only] = &*new.prices
            && !only.is_hourly()
            && self.prices.iter().all(|old| {
                old.layer <= layer && !old.is_hourly() && old.from.is_none_or(|begin| begin <= from)
            })
            && self.at(from).is_some_and(|old| old.costs_the_same(only))
        {
            return None;
        }
        let dated = new.prices.iter().map(|price| Price {
            from: Some(price.from.map_or(from, |begin| begin.max(from))),
            ..price.clone()
        });
        let position = self.prices.partition_point(|old| old.layer <= layer);
        let mut prices = self.prices.clone();
        prices.splice(position..position, dated);
        // Of the same kind of list only the last one that began by then is ever asked for.
        let superseding = prices.iter().rposition(|price| {
            let has_begun = price.from.is_some_and(|from| from <= since);
            price.layer == layer && has_begun && !price.is_hourly()
        });
        let mut index = 0;
        prices.retain(|price| {
            let is_kept = price.layer != layer || superseding.is_none_or(|last| index >= last);
            index += 1;
            is_kept
        });
        Some(ModelPrices { prices })
    }

    /// Every price: the last one that is active holds.
    pub fn all(&self) -> impl Iterator<Item = &Price> {
        self.prices.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dec(text: &str) -> Decimal {
        parse_decimal(text).unwrap()
    }

    #[test]
    fn a_price_by_the_hour_is_exact_by_the_second() {
        let rate = Rate::published(Unit::AudioSecond, "3/3600").unwrap();
        assert_eq!(rate.times(dec("3600")), Some(dec("3")));
        assert_eq!(rate.times(dec("6")), Some(dec("0.005")));
    }

    #[test]
    fn a_token_price_is_for_a_million() {
        let rate = Rate::published(Unit::Input, "0.15").unwrap();
        assert_eq!(rate.times(dec("1")), Some(dec("0.00000015")));
        assert_eq!(rate.as_published(Unit::Input).dollars(), dec("0.15"));
    }

    #[test]
    fn what_is_no_price_is_refused() {
        for text in ["", "-1", "1/0", "1/-2", "1/2/3", "free", "NaN"] {
            assert_eq!(Rate::published(Unit::Input, text), None, "{text}");
        }
        assert!(Rate::published(Unit::Input, "0").is_some());
    }

    #[test]
    fn hours_may_cross_midnight() {
        let time = |text: &str| text.parse::<NaiveTime>().unwrap();
        let night = Hours(time("16:30:00"), time("00:30:00"));
        assert!(night.contain(time("16:30:00")) && night.contain(time("00:29:59")));
        assert!(!night.contain(time("00:30:00")) && !night.contain(time("16:29:59")));
    }

    #[test]
    fn a_unit_stands_in_for_billing_units_that_nobody_stated() {
        let rate = Rate::published(Unit::BillableUnit, "0.025").unwrap();
        let price = |billable_unit_is| Price {
            standard: RateSet {
                base: vec![(Unit::BillableUnit, rate)],
                above: Vec::new(),
            },
            billable_unit_is,
            ..Price::default()
        };
        let by_megapixel = price(Some(Unit::Megapixel));
        let none = Qualifiers::default();
        let terms = Terms {
            service_tier: None,
            region: None,
            variant: None,
            qualifiers: [&none, &none],
            operation: Operation::Prediction,
        };
        let cost = |price: &Price, usage: Usage| {
            let cost = price.cost(&usage, terms)?;
            Ok((cost.dollars, cost.estimated))
        };
        let seen = Usage::new().with(Unit::Image, 2).with(Unit::Megapixel, 4);
        assert_eq!(cost(&by_megapixel, seen.clone()), Ok((dec("0.1"), true)));
        // What is stated wins, and nothing is charged twice.
        let stated = seen.clone().with(Unit::BillableUnit, dec("3.008"));
        assert_eq!(cost(&by_megapixel, stated), Ok((dec("0.0752"), false)));
        let free = seen.clone().with(Unit::BillableUnit, 0);
        assert_eq!(cost(&by_megapixel, free), Ok((dec("0"), false)));
        let written = Usage::new()
            .with(Unit::BillableUnit, 1)
            .with(Unit::Input, 12);
        assert_eq!(cost(&by_megapixel, written), Ok((dec("0.025"), false)));
        // Without the name of the unit nothing is guessed.
        assert_eq!(cost(&price(None), seen), Err(Missing::Unit(Unit::Image)));
        let images = Usage::new().with(Unit::Image, 2);
        assert_eq!(cost(&by_megapixel, images), Err(Missing::Unit(Unit::Image)));
    }

    #[test]
    fn only_what_vendors_bill_alike_stands_in() {
        for unit in Unit::ALL {
            assert_ne!(billed_as(*unit), Some(*unit));
        }
        for strict in [
            Unit::CacheRead,
            Unit::CacheWrite1h,
            Unit::InputAudio,
            Unit::OutputAudio,
            Unit::OutputImage,
        ] {
            assert_eq!(billed_as(strict), None);
        }
    }
}
