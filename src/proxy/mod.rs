//! The proxy: relays what applications ask of their providers, and meters it on the way.
//!
//! `worker` accepts connections, `certificate` has what those with TLS are shown, `service` serves one request, `upstream` is the half towards
//! the provider behind the one seam `exchange`, `relay` brings the response back and `settle`
//! turns what was seen into a record. `rewrite` holds the declared exceptions to "untouched".
//!
//! Nothing here decides about traffic, and nothing here waits for a store.

mod authority;
mod body;
mod certificate;
mod costing;
pub mod descriptors;
pub mod follow_up;
mod guard;
mod headers;
mod identity;
mod inbound;
pub mod job_urls;
pub mod jobs;
mod link;
mod outbound;
mod refusal;
mod relay;
pub mod rewrite;
mod route;
mod service;
mod settle;
mod stream;
mod tls;
mod tunnel;
mod upstream;
mod worker;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use authority::Authority;
pub use certificate::{ServerTls, Validity, server_config};
pub use identity::{AttributionConfig, KEY_FIELDS, fingerprint};
pub use refusal::ERROR_HEADER;
pub use route::{Route, Routes};
pub use tls::tls_config;
pub use upstream::{Upstream, UpstreamUrlError};
pub use worker::{Proxy, ProxyParts, TlsListener};

/// The proxy's listener and limits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The address that applications send their requests to.
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// The URL at which applications reach the proxy, for the URLs of jobs that are pointed back
    /// at it. Unset, it is `listen` as seen from this machine.
    pub public_url: Option<String>,
    /// The address for applications whose SDK insists on https, as fal's Python client does. It
    /// serves what `listen` serves, and is not listened on unless it is set.
    #[schemars(with = "Option<String>")]
    pub tls_listen: Option<SocketAddr>,
    /// The certificate for `tls_listen`, with those between it and its authority (PEM). It is
    /// read again when the file changes. Unset, a local authority is made in `tls_ca_dir`, and
    /// `taffrail ca` prints what applications are to trust.
    pub tls_cert_file: Option<PathBuf>,
    /// The private key of the certificate in `tls_cert_file` (PEM).
    pub tls_key_file: Option<PathBuf>,
    /// The directory of the local authority, which is constrained to the names of this machine.
    /// Who can read its key can pose as them.
    pub tls_ca_dir: PathBuf,
    /// Threads that serve traffic, each with its own connections to providers. Unset, there is
    /// one for each CPU, up to 4.
    pub threads: Option<u16>,
    /// Connections from applications at a time, with and without TLS; further ones are answered
    /// with 503, those with TLS closed.
    pub connections_max: u32,
    /// The longest head of a request or response.
    #[schemars(with = "String")]
    pub head_bytes_max: ByteSize,
    /// For the name look-up, the TCP and the TLS handshake with a provider together.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub connect_timeout: Duration,
    /// From the first byte of a request's head to its last, and for a client's TLS handshake.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub header_timeout: Duration,
    /// The longest silence: of a provider before or within a response, of a client between
    /// requests or while it does not take what is sent to it, of both sides of a websocket.
    /// Reasoning models are silent for minutes. There is no limit on the whole of a request.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub idle_timeout: Duration,
    /// How long an unused connection to a provider is kept.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub pool_idle_timeout: Duration,
    /// How many unused connections are kept for each provider and thread.
    pub pool_idle_max: u16,
    /// How long requests under way may take to finish after SIGTERM.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub shutdown_grace: Duration,
    /// Certificates (PEM) that are trusted towards upstreams beside the public ones.
    pub upstream_ca_file: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 4800)),
            public_url: None,
            tls_listen: None,
            tls_cert_file: None,
            tls_key_file: None,
            tls_ca_dir: PathBuf::from("./taffrail-data/ca"),
            threads: None,
            connections_max: 10_000,
            head_bytes_max: ByteSize::kib(64),
            connect_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(15 * 60),
            pool_idle_timeout: Duration::from_secs(30),
            pool_idle_max: 64,
            shutdown_grace: Duration::from_secs(300),
            upstream_ca_file: None,
        }
    }
}

/// What is done for metering beyond looking on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MeterConfig {
    /// Whether `stream_options.include_usage` is added to chat streams that would otherwise
    /// state no usage. The extra event that it causes is taken out again.
    pub usage_injection: bool,
    /// Whether the absolute URLs of a job (`urls.get`, `status_url` and the like) are pointed back at
    /// the proxy, so that its polls and its result pass through it too.
    pub rewrite_job_urls: bool,
    /// What happens to a request whose client goes away.
    pub on_client_disconnect: OnClientDisconnect,
    /// The longest time that a response is read on for with `on_client_disconnect = "drain"`.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub drain_timeout: Duration,
    /// The most bytes that are read on for with `on_client_disconnect = "drain"`.
    #[schemars(with = "String")]
    pub drain_max_bytes: ByteSize,
    /// Whether control calls (model lists, files, polls) make rows too.
    pub control_rows: bool,
    /// Keys the HMAC that makes fingerprints of API keys, so that nobody can compute them from a
    /// list of keys. With the same value, all pods give a key the same fingerprint.
    pub fingerprint_pepper: Option<String>,
    /// A file that holds `fingerprint_pepper`.
    pub fingerprint_pepper_file: Option<PathBuf>,
}

impl Default for MeterConfig {
    fn default() -> MeterConfig {
        MeterConfig {
            usage_injection: true,
            rewrite_job_urls: true,
            on_client_disconnect: OnClientDisconnect::Cancel,
            drain_timeout: Duration::from_secs(10 * 60),
            drain_max_bytes: ByteSize::mib(64),
            control_rows: false,
            fingerprint_pepper: None,
            fingerprint_pepper_file: None,
        }
    }
}

/// What happens to a request whose client goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnClientDisconnect {
    /// The call to the provider is cancelled at once: a meter does not change the bill.
    Cancel,
    /// The response is read to its end, within limits, so that its usage is known.
    Drain,
}

/// Where a provider's traffic goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ProviderConfig {
    /// The upstream's URL. Built-in providers have a default; a declared one needs it.
    pub upstream: Option<String>,
    /// How a declared provider speaks: `chat` is the OpenAI-compatible dialect.
    pub dialect: Option<Dialect>,
    /// Overrides `meter.usage_injection` for this provider.
    pub usage_injection: Option<bool>,
    /// The host of the provider's billing API. When only `upstream` is set, billing calls go
    /// there too.
    pub billing_url: Option<String>,
}

impl ProviderConfig {
    /// Where billing and price calls go in place of the vendor's own hosts.
    pub fn billing_host(&self) -> Option<&str> {
        self.billing_url.as_deref().or(self.upstream.as_deref())
    }
}

/// How a declared provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// OpenAI-compatible.
    Chat,
}

/// Providers by name.
pub type Providers = BTreeMap<String, ProviderConfig>;
