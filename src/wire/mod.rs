//! Wire formats: bytes in, pieces out.
//!
//! Everything here is sans-IO and independent of how the bytes were cut into chunks: no
//! runtime, no clock, no file. Memory is bounded, and a bound that bites is reported to the
//! caller instead of hiding what follows.

pub mod http1;
pub mod inflate;
pub mod json;
pub mod multipart;
pub mod sse;
