//! Everything that crosses modules, in one binary that links once.

mod check;
mod config;
mod journal;
mod store;
