//! What the inputs of image and video models call that which their price depends on.
//!
//! Models of many makers share these words: kling's, veo's, seedance's and others' at fal,
//! Replicate and OpenRouter, by their pages of 2026-09.

use super::object::scalar;
use crate::qualifier::{Qualifier, Qualifiers};
use crate::wire::json::Step::{self, Key};
use crate::wire::json::{Found, Path, Want};

/// The longest value that is read, in bytes.
const VALUE_BYTES_MAX: usize = 32;

type Place = (&'static [Step], Qualifier);

macro_rules! places {
    ($($parent:expr)?) => {
        [
            (&[$($parent,)? Key("resolution")], Qualifier::Resolution),
            (&[$($parent,)? Key("duration")], Qualifier::Seconds),
            (&[$($parent,)? Key("generate_audio")], Qualifier::Audio),
            (&[$($parent,)? Key("generate_audio_switch")], Qualifier::Audio),
            (&[$($parent,)? Key("mode")], Qualifier::Mode),
        ]
    };
}

/// Where they are in a body that is the input.
pub(super) const IN_BODY: [Place; 5] = places!();

/// Where they are in a body with the input in its `input`.
pub(super) const IN_INPUT: [Place; 5] = places!(Key("input"));

/// The paths to these places.
pub(super) fn paths(places: &[Place]) -> impl Iterator<Item = Path> {
    places.iter().map(|(steps, _)| Path {
        steps,
        want: Want::Text(VALUE_BYTES_MAX),
    })
}

/// Takes in what was found at the path of that index.
pub(super) fn found(
    qualifiers: &mut Qualifiers,
    places: &[Place],
    index: usize,
    found: &Found<'_>,
) {
    if let (Some((_, qualifier)), Found::Text(text)) = (places.get(index), found)
        && let Some(value) = scalar(text)
    {
        qualifiers.set(*qualifier, &value);
    }
}
