//! Bills and receipts: no panic, no day of another period, no key that goes elsewhere.

#![no_main]

#[path = "../properties.rs"]
#[expect(dead_code, reason = "each target checks one of the properties")]
mod properties;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    // The first bytes decide the status of the answer.
    if let Some((seed, bytes)) = input.split_first_chunk() {
        properties::bills(bytes, u64::from_le_bytes(*seed));
    }
});
