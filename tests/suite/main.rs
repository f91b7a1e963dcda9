//! Everything that crosses modules, in one binary that links once.

mod check;
mod config;
mod journal;
mod misbehaviour;
mod prices;
mod report;
mod rewrite;
mod store;
mod support;
mod wire;
