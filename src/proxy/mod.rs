//! The proxy: relays traffic untouched and shows it to the meter.

pub mod rewrite;
