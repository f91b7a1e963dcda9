//! Everything that crosses modules, in one binary that links once.

mod golden;
mod providers;
mod rewrite;
mod wire;
