//! Everything that crosses modules, in one binary that links once.

mod drain;
mod journal;
mod report;
mod store;
