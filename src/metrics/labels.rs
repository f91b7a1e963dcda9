//! Labels: sets with names known only at run time, and bounds on their values.
//!
//! Attribution labels are named by configuration, so label sets are lists of pairs and not
//! structs. Values that come from traffic pass through [`clean`] and a `Names` table, which
//! takes a limited number of them; everything beyond is `other`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

/// The value of a label whose own value is beyond a limit.
pub const OTHER: &str = "other";

/// The value of the model label where no model is known.
pub const UNKNOWN: &str = "unknown";

/// The longest label value, in bytes; what is longer is cut.
pub const LABEL_BYTES_MAX: usize = 128;

/// How many attribution labels can be configured.
pub const ATTRIBUTION_LABELS_MAX: usize = 8;

/// Label names that attribution cannot take: our own, the reserved ones of Prometheus, and those
/// that Prometheus sets on every target.
const RESERVED: &[&str] = &[
    "account",
    "code",
    "currency",
    "effect",
    "fidelity",
    "instance",
    "job",
    "kind",
    "le",
    "level",
    "limit",
    "listener",
    "model",
    "operation",
    "outcome",
    "phase",
    "provider",
    "quantile",
    "reason",
    "result",
    "source",
    "stage",
    "state",
    "task",
    "type",
    "unit",
    "version",
    "window",
];

/// Why a name cannot be an attribution label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// The name is not a Prometheus label name.
    #[error("is not a label name: letters, digits and _ only, not starting with a digit or __")]
    Malformed,
    /// The name has a meaning already.
    #[error("is a label that Taffrail or Prometheus sets itself")]
    Reserved,
}

/// Whether `name` can be an attribution label.
///
/// # Errors
/// Says why it cannot.
pub fn check_attribution_label(name: &str) -> Result<(), LabelError> {
    let well_formed = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && !name.starts_with("__")
        && (1..=LABEL_BYTES_MAX).contains(&name.len());
    if !well_formed {
        Err(LabelError::Malformed)
    } else if RESERVED.contains(&name) {
        Err(LabelError::Reserved)
    } else {
        Ok(())
    }
}

/// A value fit for a label: no control or direction characters, no blanks around it, at most
/// [`LABEL_BYTES_MAX`] bytes. Borrowed if it is fit already.
pub fn clean(value: &str) -> Cow<'_, str> {
    let value = value.trim();
    let is_hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    if value.len() <= LABEL_BYTES_MAX && !value.contains(is_hidden) {
        return Cow::Borrowed(value);
    }
    let mut cleaned = String::with_capacity(LABEL_BYTES_MAX);
    for character in value.chars().filter(|c| !is_hidden(*c)) {
        if cleaned.len() + character.len_utf8() > LABEL_BYTES_MAX {
            break;
        }
        cleaned.push(character);
    }
    Cow::Owned(cleaned.trim().to_owned())
}

/// Where a value stands in its table: a number of its own, or one of the two constants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Slot(u32);

impl Slot {
    /// There is no value.
    pub(super) const ABSENT: Slot = Slot(u32::MAX);
    /// The table is full.
    pub(super) const OTHER: Slot = Slot(u32::MAX - 1);
}

/// The values that one label has taken, up to a limit; first come, first served.
#[derive(Debug, Default)]
pub(super) struct Names {
    slots: RwLock<HashMap<Box<str>, Slot>>,
}

impl Names {
    /// The slot of `value`, taking a new one while there are fewer than `limit`.
    pub(super) fn slot(&self, value: &str, limit: usize) -> Slot {
        // Values in the table are clean, so one that is found needs no cleaning.
        if let Some(slot) = self.find(value, usize::MAX) {
            return slot;
        }
        let value = clean(value);
        if value.is_empty() {
            return Slot::ABSENT;
        }
        if let Some(slot) = self.find(&value, limit) {
            return slot;
        }
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(value.as_ref()) {
            return *slot;
        }
        let count = slots.len();
        match u32::try_from(count).map(Slot) {
            Ok(slot) if count < limit && slot != Slot::OTHER => {
                slots.insert(value.into(), slot);
                slot
            }
            _ => Slot::OTHER,
        }
    }

    /// The slot of a value that is in the table, or that has no place in it because it is full.
    fn find(&self, value: &str, limit: usize) -> Option<Slot> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let other = (slots.len() >= limit).then_some(Slot::OTHER);
        slots.get(value).copied().or(other)
    }
}

/// The label set of one series.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Labels(Arc<[(Arc<str>, Box<str>)]>);

impl Labels {
    /// The set of `names` with `values`, pair by pair.
    pub(super) fn new(names: &[Arc<str>], values: &[&str]) -> Labels {
        debug_assert_eq!(names.len(), values.len(), "every label has a value");
        let pairs = names.iter().zip(values);
        Labels(
            pairs
                .map(|(name, value)| (Arc::clone(name), Box::from(*value)))
                .collect(),
        )
    }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        for (name, value) in self.0.iter() {
            (name.as_ref(), value.as_ref()).encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs = self.0.iter().map(|(name, value)| (name, value));
        f.debug_map().entries(pairs).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fit_value_is_taken_as_it_is() {
        for value in ["gpt-4o-mini", "meta/llama-3:70b \"x\"", "模型"] {
            assert!(matches!(clean(value), Cow::Borrowed(same) if same == value));
        }
    }

    #[test]
    fn an_unfit_value_is_cut_and_cleaned() {
        assert_eq!(clean(" a\u{1b}[31m\u{202e}b\n\u{85} "), "a[31mb");
        assert_eq!(clean("\n\t"), "");
        assert_eq!(clean(&"x".repeat(129)), "x".repeat(128));
        assert_eq!(clean(&"é".repeat(65)), "é".repeat(64));
        assert_eq!(clean(&format!("x{}", "é".repeat(64))).len(), 127);
    }

    #[test]
    fn a_table_takes_values_up_to_its_limit() {
        let names = Names::default();
        assert_eq!(names.slot("a", 2), Slot(0));
        assert_eq!(names.slot(" b ", 2), Slot(1));
        assert_eq!(names.slot("c", 2), Slot::OTHER);
        assert_eq!(names.slot("b", 2), Slot(1));
        assert_eq!(names.slot("b\n", 2), Slot(1));
        assert_eq!(names.slot("", 2), Slot::ABSENT);
        assert_eq!(names.slot("c", 3), Slot(2));
    }

    #[test]
    fn attribution_labels_are_checked() {
        assert_eq!(check_attribution_label("team"), Ok(()));
        assert_eq!(check_attribution_label("cost_centre_2"), Ok(()));
        for name in ["", "2nd", "__name__", "cost-centre", "équipe", "a b"] {
            assert_eq!(
                check_attribution_label(name),
                Err(LabelError::Malformed),
                "{name}"
            );
        }
        for name in ["provider", "le", "job"] {
            assert_eq!(
                check_attribution_label(name),
                Err(LabelError::Reserved),
                "{name}"
            );
        }
    }

    #[test]
    fn every_label_of_the_catalogue_is_reserved() {
        for family in super::super::catalogue::ALL {
            for label in family.labels {
                assert_eq!(check_attribution_label(label), Err(LabelError::Reserved));
            }
        }
    }
}
