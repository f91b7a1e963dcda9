//! The meters of Replicate and fal: no panic, no dependence on cuts, nothing below zero.

#![no_main]

#[path = "../properties.rs"]
#[expect(dead_code, reason = "each target checks one of the properties")]
mod properties;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    // The first bytes choose the call, and where the others are cut.
    if let Some((seed, bytes)) = input.split_first_chunk() {
        let seed = u64::from_le_bytes(*seed);
        properties::job_meters(bytes, seed);
    }
});
