//! What a price can depend on beside the model and the quantities: what was asked for.
//!
//! A second of video has one price in 720p without sound and another in 1080p with it. A qualifier
//! is read from a request, or from what the provider states with the usage; whoever reads it knows
//! the vendor's words for it, a price list knows their values.

use std::collections::BTreeMap;
use std::fmt;

use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

use crate::money::parse_decimal;

/// A kind of circumstance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Qualifier {
    /// Of an image or video, in the vendor's words: `720p`, `4k`.
    Resolution,
    /// What something is made larger to, in the vendor's words.
    Upscale,
    /// Whether a video has sound: `true` or `false`.
    Audio,
    /// The length of a clip, in whole seconds.
    Seconds,
    /// The vendor's word for a way of working: `standard`, `pro`.
    Mode,
    /// The vendor's word for one of several models behind a name.
    Variant,
}

impl Qualifier {
    /// Every kind.
    pub const ALL: [Qualifier; 6] = [
        Qualifier::Resolution,
        Qualifier::Upscale,
        Qualifier::Audio,
        Qualifier::Seconds,
        Qualifier::Mode,
        Qualifier::Variant,
    ];

    /// The name, as the key of a price list.
    pub const fn as_str(self) -> &'static str {
        match self {
            Qualifier::Resolution => "resolution",
            Qualifier::Upscale => "upscale",
            Qualifier::Audio => "audio",
            Qualifier::Seconds => "seconds",
            Qualifier::Mode => "mode",
            Qualifier::Variant => "variant",
        }
    }

    /// The kind of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Qualifier> {
        Qualifier::ALL.into_iter().find(|it| it.as_str() == name)
    }

    /// A value in the form that values are compared in, if it is one: lower case, and whole seconds
    /// without their unit (`8s`). What is measured is not whole: a clip of 5 seconds has 5.04.
    pub fn read(self, value: &str) -> Option<String> {
        let value = value.trim().to_ascii_lowercase();
        match self {
            Qualifier::Seconds => {
                let seconds = parse_decimal(value.strip_suffix('s').unwrap_or(&value))?;
                let is_length = seconds >= Decimal::ZERO;
                is_length.then(|| seconds.round().normalize().to_string())
            }
            Qualifier::Audio => matches!(&*value, "true" | "false").then_some(value),
            _ => (!value.is_empty()).then_some(value),
        }
    }
}

impl fmt::Display for Qualifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The qualifiers that are known of a call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Qualifiers(BTreeMap<Qualifier, String>);

impl Qualifiers {
    /// The value of a qualifier, as [`Qualifier::read`] makes it.
    pub fn get(&self, qualifier: Qualifier) -> Option<&str> {
        self.0.get(&qualifier).map(String::as_str)
    }

    /// Takes a value in; what is none changes nothing.
    pub fn set(&mut self, qualifier: Qualifier, value: &str) {
        if let Some(value) = qualifier.read(value) {
            self.0.insert(qualifier, value);
        }
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_whatever_a_vendor_makes_of_them() {
        for (qualifier, text, value) in [
            (Qualifier::Resolution, " 1080P", Some("1080p")),
            (Qualifier::Seconds, "8s", Some("8")),
            (Qualifier::Seconds, "5.0416", Some("5")),
            (Qualifier::Seconds, "10.0", Some("10")),
            (Qualifier::Seconds, "auto", None),
            (Qualifier::Seconds, "-1", None),
            (Qualifier::Audio, "false", Some("false")),
            (Qualifier::Audio, "https://a/b.mp3", None),
            (Qualifier::Mode, "", None),
        ] {
            assert_eq!(qualifier.read(text).as_deref(), value, "{text}");
        }
    }

    #[test]
    fn every_name_is_read_back() {
        for qualifier in Qualifier::ALL {
            assert_eq!(Qualifier::from_name(qualifier.as_str()), Some(qualifier));
            let json = serde_json::to_string(&qualifier).unwrap();
            assert_eq!(json, format!("\"{qualifier}\""));
        }
    }
}
