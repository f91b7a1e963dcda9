//! `taffrail demo`: the whole product on one machine, with no key and no server.

pub mod board;
pub mod dice;
pub mod lookalike;
pub mod traffic;
pub mod view;
