//! The journal: an append-only log of intents and records on local disk.
