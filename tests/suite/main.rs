//! Everything that crosses modules, in one binary that links once.

mod config;
mod journal;
mod store;
mod rewrite;
mod wire;
mod prices;
mod report;
mod check;
