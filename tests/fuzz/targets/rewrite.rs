//! Rewrites of requests and responses: nothing changes but what is meant to.

#![no_main]

#[path = "../properties.rs"]
#[expect(dead_code, reason = "each target checks one of the properties")]
mod properties;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    // The first bytes decide where the others are cut.
    if let Some((seed, bytes)) = input.split_first_chunk() {
        let seed = u64::from_le_bytes(*seed);
        properties::request(bytes, seed);
        properties::response(bytes, seed);
        properties::job_urls(bytes, seed);
    }
});
