//! Everything that crosses modules, in one binary that links once.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[cfg(test)]
#[cfg(test)]

#[cfg(test)]
#[cfg(test)]

mod admin;
mod check;
mod config;
mod drain;
mod exposition;
mod journal;
mod misbehaviour;
mod prices;
mod relay;
mod report;
mod rewrite;
mod store;
mod support;
mod wire;
