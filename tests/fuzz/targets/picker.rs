//! The picker against serde_json.

#![no_main]

#[path = "../properties.rs"]
#[expect(dead_code, reason = "each target checks one of the properties")]
mod properties;

use taffrail::wire::json::{Path, Step, Want};

/// Paths of every kind, to the same and to nested values.
const PATHS: &[Path] = &[
    Path {
        steps: &[],
        want: Want::Kind,
    },
    Path {
        steps: &[],
        want: Want::Text(40),
    },
    Path {
        steps: &[Step::Key("a")],
        want: Want::Text(8),
    },
    Path {
        steps: &[Step::Key("a")],
        want: Want::Chars,
    },
    Path {
        steps: &[Step::Key("a"), Step::Each],
        want: Want::Kind,
    },
    Path {
        steps: &[Step::Key("a"), Step::Each, Step::Key("b")],
        want: Want::Text(2),
    },
    Path {
        steps: &[Step::Key("\u{1F600}\n")],
        want: Want::Text(100),
    },
    Path {
        steps: &[Step::Each],
        want: Want::Chars,
    },
    Path {
        steps: &[Step::Each, Step::Each],
        want: Want::Count,
    },
    Path {
        steps: &[Step::Key("b")],
        want: Want::Count,
    },
];

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    // The first bytes decide where the others are cut.
    if let Some((seed, bytes)) = input.split_first_chunk() {
        let seed = u64::from_le_bytes(*seed);
        properties::picker(PATHS, bytes, seed);
    }
});
