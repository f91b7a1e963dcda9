//! Answers of billing APIs: no panic, no text of more than a line, no key that goes elsewhere.

#![no_main]

#[path = "../properties.rs"]
#[expect(dead_code, reason = "each target checks one of the properties")]
mod properties;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    // The first bytes decide the status of the answer.
    if let Some((seed, bytes)) = input.split_first_chunk() {
        properties::balances(bytes, u64::from_le_bytes(*seed));
    }
});
