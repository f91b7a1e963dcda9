//! Taffrail meters AI-provider API traffic: a reverse-proxy sidecar that writes a row per
//! request, counts requests, tokens and cost for Prometheus, and never changes or delays what
//! the application gets.
//!
//! Bytes flow through, facts flow out, and every import points to an earlier group; see
//! ARCHITECTURE.md for the map.

// 1. Vocabulary.
pub mod ask;
pub mod caller;
pub mod fault;
pub mod money;
pub mod qualifier;
pub mod record;
pub mod secret;
pub mod usage;

// 2. Wire formats (pure).
pub mod wire;

// 3. Providers (pure).
pub mod provider;

// 4. Prices, balances and bills (pure).
pub mod balance;
pub mod bill;
pub mod price;

// 5. Records.
pub mod clock;
pub mod journal;
pub mod ledger;
pub mod metrics;
pub mod store;

// 6. Traffic.
pub mod proxy;

// 7. The exporter.
pub mod exporter;

// 8. The injector.
pub mod injector;

// 9. The rim.
pub mod admin;
pub mod backfill;
pub mod check;
pub mod cli;
pub mod config;
pub mod recost;
pub mod report;
pub mod telemetry;

// The wiring.
pub mod app;
pub mod demo;
pub mod price_commands;
