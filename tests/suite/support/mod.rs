//! What several suites need: a scripted upstream, a sidecar around it, a raw client, and the real
//! binary.

pub(crate) mod binary;
pub(crate) mod books;
pub(crate) mod bulk;
pub(crate) mod certificate;
pub(crate) mod chart;
pub(crate) mod chat;
pub(crate) mod eventually;
pub(crate) mod fault;
pub(crate) mod http;
pub(crate) mod journal;
pub(crate) mod kubernetes;
pub(crate) mod load;
pub(crate) mod memory;
pub(crate) mod postgres;
pub(crate) mod promql;
pub(crate) mod providers;
pub(crate) mod sidecar;
pub(crate) mod stand;
pub(crate) mod trace;
pub(crate) mod upstream;
pub(crate) mod vendor;
