//! Everything that crosses modules, in one binary that links once.

mod report;
mod store;
