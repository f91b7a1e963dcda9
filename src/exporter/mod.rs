//! What runs by the clock, once for a fleet, and has nothing to do with a request: the
//! store's housekeeping, the rows of jobs whose processes are gone, balances, bills, receipts and
//! prices, and what was spent.
//!
//! [`schedule`] says when, the other modules what. They are given a store and their own
//! configuration; how a run ended is a metric and a line in the log, never an error of somebody
//! else. Nothing here may hold up the drain.

pub mod account;
pub mod balances;
pub mod fetch;
pub mod housekeeping;
pub mod jobs;
pub mod parts;
pub mod prices;
pub mod receipts;
pub mod reconcile;
pub mod schedule;
pub mod spend;
mod standing;
mod traffic;
pub mod trial;
