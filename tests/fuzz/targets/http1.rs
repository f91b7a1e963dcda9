//! Responses of HTTP/1, read alike wherever they are cut.

#![no_main]

#[path = "../properties.rs"]
#[expect(dead_code, reason = "each target checks one of the properties")]
mod properties;

use http::Method;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    // The first bytes decide where the others are cut.
    if let Some((seed, bytes)) = input.split_first_chunk() {
        let seed = u64::from_le_bytes(*seed);
        properties::http1(&Method::POST, bytes, seed);
        properties::http1(&Method::HEAD, bytes, seed);
    }
});
