//! What several suites need: a scripted upstream, a sidecar around it and a raw client.

pub(crate) mod books;
pub(crate) mod http;
pub(crate) mod providers;
pub(crate) mod server;
pub(crate) mod sidecar;
pub(crate) mod upstream;
pub(crate) mod vendor;
