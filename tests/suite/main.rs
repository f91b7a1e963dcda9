//! Everything that crosses modules, in one binary that links once.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::string_slice,
    reason = "a test fails by panicking"
)]

mod admin;
mod alerts;
mod backfill;
mod balances;
mod bills;
mod chart;
mod chat_jobs;
mod check;
mod clusters;
mod config;
mod dashboards;
mod demo;
mod drain;
mod exposition;
mod fal;
mod golden;
mod housekeeping;
mod http1;
mod image;
mod injector;
mod jobs;
mod journal;
mod layering;
mod limits;
mod metering;
mod migrate;
mod misbehaviour;
mod observability;
mod outages;
mod poison;
mod postgres;
mod postgres_tls;
mod predictions;
mod price_lists;
mod prices;
mod providers;
mod receipts;
mod reconcile;
mod relay;
mod report;
mod rewrite;
mod schedule;
mod scopes;
mod sdk;
mod server;
mod spend;
mod store;
mod support;
mod tls;
mod tls_listen;
mod torture;
mod wire;
