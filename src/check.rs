//! `taffrail check` and `taffrail healthcheck`: whether the configuration works out here and now.
//!
//! In: a configuration that loaded. Out: one item per thing that the server needs, with what is
//! wrong and how to mend it. Nothing is changed but that the directories of journal and store are
//! made, as the server would make them; what providers are asked costs nothing: balances, a bill, a
//! receipt of a request that nobody made.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::ask::FaultClass;
use crate::clock;
use crate::config::{Config, Role};
use crate::exporter::fetch::Fetcher;
use crate::exporter::trial::Trial;
use crate::exporter::{balances, receipts, reconcile};
use crate::provider;
use crate::proxy::{self, ERROR_HEADER, Validity, tls_config};
use crate::store::{self, Store, StoreError};

/// How long an upstream may take to be resolved, connected to and shaken hands with.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a listener on this machine may take to answer.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(2);
/// The path of the liveness probe.
const HEALTHY_PATH: &str = "/-/healthy";

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// As it should be.
    Ok,
    /// As it should be, and not for long.
    Warn,
    /// The server would not work.
    Fail,
    /// Not needed, or not known to be needed.
    Skip,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
            Status::Skip => "skip",
        })
    }
}

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// How it ended.
    pub status: Status,
    /// What was tried: a key, or the name of an upstream.
    pub name: String,
    /// What was found, and for a failure how to mend it.
    pub detail: String,
}

impl Item {
    /// A check of that name, ok or failed.
    pub fn of(name: impl Into<String>, result: Result<String, String>) -> Item {
        let (status, detail) = match result {
            Ok(detail) => (Status::Ok, detail),
            Err(detail) => (Status::Fail, detail),
        };
        Item {
            status,
            name: name.into(),
            detail,
        }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:4} {:24} {}", self.status, self.name, self.detail)
    }
}

/// Whether the server would work now.
pub fn passed(items: &[Item]) -> bool {
    items.iter().all(|item| item.status != Status::Fail)
}

/// Tries out a configuration.
pub async fn check(config: &Config) -> Vec<Item> {
    // It would not be here if it did not hold.
    let mut items = vec![Item::of("configuration", Ok("holds".to_owned()))];
    items.push(Item::of("admin.listen", admin_port(config).await));
    if !config.role.relays_traffic() {
        let role = config.role.as_str();
        let detail = format!("the role is {role}, which relays no traffic");
        let tls = config.proxy.tls_listen.map(|_| "proxy.tls_listen");
        for name in ["proxy.listen", "journal.dir", "upstreams"]
            .into_iter()
            .chain(tls)
        {
            items.push(Item {
                status: Status::Skip,
                name: name.to_owned(),
                detail: detail.clone(),
            });
        }
    } else {
        items.push(Item::of(
            "proxy.listen",
            proxy_port(config.proxy.listen).await,
        ));
        if let Some(address) = config.proxy.tls_listen {
            items.push(Item::of("proxy.tls_listen", proxy_port(address).await));
            items.push(certificate(&config.proxy, clock::wall()));
        }
        items.push(Item::of("journal.dir", journal_dir(&config.journal.dir)));
    }
    items.push(match config.role {
        Role::Injector => Item {
            status: Status::Skip,
            name: "store.url".to_owned(),
            detail: "the role is injector, which keeps no rows".to_owned(),
        },
        _ => Item::of("store.url", store(&config.store).await),
    });
    if config.role.relays_traffic() {
        items.extend(upstreams(config).await);
    }
    if config.role != Role::Sidecar {
        items.extend(accounts(config).await);
    }
    items
}

/// The APIs that tell balance, bill and receipts of every account, with its keys.
async fn accounts(config: &Config) -> Vec<Item> {
    let sender = tls_config(config.proxy.upstream_ca_file.as_deref())
        .map_err(anyhow::Error::from)
        .and_then(|tls| Fetcher::new(&tls, config.schedule.call_timeout));
    let fetcher = match sender {
        Ok(fetcher) => fetcher,
        Err(error) => return vec![Item::of("accounts", Err(error.to_string()))],
    };
    let (accounts, providers) = (&config.accounts, &config.providers);
    let (balances, bills, receipts) = tokio::join!(
        balances::try_out(accounts, providers, &fetcher),
        reconcile::try_out(accounts, providers, &fetcher),
        receipts::try_out(accounts, providers, &fetcher),
    );
    let items = |kind: &'static str, key: &'static str, trials: Vec<Trial>| {
        let item = move |trial: Trial| of_trial(kind, key, trial);
        trials.into_iter().map(item)
    };
    items("balance", "api_key_file", balances)
        .chain(items("bill", "admin_key_file", bills))
        .chain(items("receipt", "api_key_file or admin_key_file", receipts))
        .collect()
}

/// What came of an account, and which key it is about.
fn of_trial(kind: &str, key: &str, trial: Trial) -> Item {
    let (status, detail) = match trial.found {
        Ok(found) => (Status::Ok, found),
        Err(fault) if fault.class == FaultClass::Unsupported => (Status::Skip, fault.detail),
        Err(fault) => (
            Status::Fail,
            format!("{}; {}", fault.detail, mend(fault.class, key)),
        ),
    };
    Item {
        status,
        name: format!("{kind} {}/{}", trial.provider, trial.account),
        detail,
    }
}

/// What to do about a billing API that tells nothing.
fn mend(class: FaultClass, key: &str) -> String {
    match class {
        FaultClass::Auth => {
            let docs = "docs/balances.md and docs/reconciliation.md say where to get it";
            return format!("put such a key into {key}; {docs}");
        }
        FaultClass::RateLimited => "try again later, or ask less often in [schedule]",
        FaultClass::Timeout => "check egress rules, or raise schedule.call_timeout",
        FaultClass::Unsupported | FaultClass::Error => {
            "check the account's keys in [[accounts]], providers.*.billing_url and egress rules"
        }
    }
    .to_owned()
}

/// Asks the admin listener of this machine whether the server is healthy.
///
/// # Errors
/// What was found instead, in a line.
pub async fn healthcheck(admin_listen: SocketAddr) -> Result<(), String> {
    let address = reachable(admin_listen);
    match get(address, HEALTHY_PATH).await {
        Ok(answer) if answer.status() == http::StatusCode::OK => Ok(()),
        Ok(answer) => {
            let status = answer.status();
            Err(format!("http://{address}{HEALTHY_PATH} answers {status}"))
        }
        Err(error) => Err(format!("http://{address}{HEALTHY_PATH}: {error}")),
    }
}

/// Where a listener can be reached from this machine.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// A request to a listener on this machine.
async fn get(address: SocketAddr, path: &str) -> Result<http::Response<()>, String> {
    let exchange = async {
        let stream = TcpStream::connect(address)
            .await
            .map_err(|e| e.to_string())?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let request = http::Request::get(path)
            .header(http::header::HOST, address.to_string())
            .header(http::header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let answer = async {
            let answer = sender.send_request(request).await;
            // The body, if any, is of no interest, and goes with the connection.
            answer
                .map(|answer| answer.map(drop))
                .map_err(|e| e.to_string())
        };
        // The connection does the work; the answer ends it.
        tokio::select! {
            answer = answer => answer,
            error = async {
                match connection.await {
                    Ok(()) => std::future::pending().await,
                    Err(error) => error.to_string(),
                }
            } => Err(error),
        }
    };
    timeout(LOCAL_TIMEOUT, exchange)
        .await
        .unwrap_or_else(|_| Err(format!("no answer in {LOCAL_TIMEOUT:?}")))
}

async fn admin_port(config: &Config) -> Result<String, String> {
    let address = config.admin.listen;
    match free_port(address).await {
        Ok(free) => Ok(free),
        Err(taken) => match healthcheck(address).await {
            Ok(()) => Ok(format!("{address} is served by Taffrail already")),
            Err(_) => Err(taken),
        },
    }
}

async fn proxy_port(address: SocketAddr) -> Result<String, String> {
    let taken = match free_port(address).await {
        Ok(free) => return Ok(free),
        Err(taken) => taken,
    };
    // A path that names no provider gets an answer of the proxy's own.
    let is_ours = match get(reachable(address), "/").await {
        Ok(answer) => answer.headers().contains_key(ERROR_HEADER),
        Err(_) => false,
    };
    if is_ours {
        Ok(format!("{address} is served by Taffrail already"))
    } else {
        Err(taken)
    }
}

async fn free_port(address: SocketAddr) -> Result<String, String> {
    let mend = match TcpListener::bind(address).await {
        Ok(_listener) => return Ok(format!("{address} is free")),
        Err(error) => match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another process has it: stop that one or choose another port".to_owned()
            }
            io::ErrorKind::AddrNotAvailable => {
                "this machine has no such address: use one it has, or 0.0.0.0".to_owned()
            }
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 need a privilege: choose a higher one".to_owned()
            }
            _ => error.to_string(),
        },
    };
    Err(format!("{address} cannot be listened on, {mend}"))
}

/// What applications that insist on https would be shown.
fn certificate(proxy: &proxy::Config, now: DateTime<Utc>) -> Item {
    if let Some(path) = &proxy.tls_cert_file {
        let (status, detail) = certificate_file(path, now);
        return Item {
            status,
            name: "proxy.tls_cert_file".to_owned(),
            detail,
        };
    }
    let dir = &proxy.tls_ca_dir;
    let result = match write_in(dir) {
        Ok(()) => Ok(format!(
            "{} is writable; `taffrail ca` prints what applications are to trust",
            dir.display()
        )),
        Err(error) => Err(format!(
            "cannot write in {}: {error}; mount a writable volume there or set proxy.tls_ca_dir",
            dir.display()
        )),
    };
    Item::of("proxy.tls_ca_dir", result)
}

/// How long the certificate in a file holds. That the key goes with it was seen when the
/// configuration was read.
fn certificate_file(path: &Path, now: DateTime<Utc>) -> (Status, String) {
    const MEND: &str = "renew it and put the new one in its place: it is read again, without a \
                        restart";
    let path_shown = path.display();
    let validity = std::fs::read(path).and_then(|pem| Validity::of_pem(&pem));
    let Validity { since, until } = match validity {
        Ok(validity) => validity,
        Err(error) => return (Status::Fail, format!("{path_shown}: {error}")),
    };
    let day = |time: DateTime<Utc>| time.format("%Y-%m-%d %H:%M UTC").to_string();
    if until <= now {
        let over = format!(
            "{path_shown} expired on {}, so applications refuse it",
            day(until)
        );
        return (Status::Fail, format!("{over}; {MEND}"));
    }
    if since > now {
        let early = format!("{path_shown} holds from {} on, not yet", day(since));
        let mend = "check the clock of this machine, or wait";
        return (Status::Fail, format!("{early}; {mend}"));
    }
    let holds = format!("{path_shown} holds until {}", day(until));
    match (Validity { since, until }).ends_soon(now) {
        true => (Status::Warn, format!("{holds}, which is soon; {MEND}")),
        false => (Status::Ok, format!("{holds}, with its key")),
    }
}

fn journal_dir(dir: &Path) -> Result<String, String> {
    match write_in(dir) {
        Ok(()) => Ok(format!("{} is writable", dir.display())),
        Err(error) => Err(format!(
            "cannot write in {}: {error}; mount a writable volume there or set journal.dir",
            dir.display()
        )),
    }
}

/// Makes, writes, syncs and removes a file in a directory, which is made if it is missing.
fn write_in(dir: &Path) -> io::Result<()> {
    let probe = dir.join(format!(".check-{}", std::process::id()));
    let attempt = || -> io::Result<()> {
        std::fs::create_dir_all(dir)?;
        let mut file = std::fs::File::create(&probe)?;
        file.write_all(b"taffrail check")?;
        file.sync_all()
    };
    let written = attempt();
    match std::fs::remove_file(&probe) {
        Err(error) if written.is_ok() => Err(error),
        _ => written,
    }
}

/// Whether the store answers, or can be made.
async fn store(config: &store::Config) -> Result<String, String> {
    let store = match Store::open_read_only(config).await {
        Ok(store) => store,
        Err(StoreError::Missing(path)) => {
            let dir = path.parent().unwrap_or(Path::new("."));
            let dir = if dir.as_os_str().is_empty() {
                Path::new(".")
            } else {
                dir
            };
            return match write_in(dir) {
                Ok(()) => Ok(format!(
                    "{} will be made at the first start",
                    path.display()
                )),
                Err(error) => Err(format!(
                    "cannot make {}: {error}; mount a writable volume there or set store.url",
                    path.display()
                )),
            };
        }
        Err(error) => return Err(error.to_string()),
    };
    let answer = store.ping().await;
    let description = store.description();
    store.close().await;
    match answer {
        Ok(()) => Ok(format!("{description} answers")),
        Err(error) => Err(error.to_string()),
    }
}

/// Every upstream that requests can go to.
async fn upstreams(config: &Config) -> Vec<Item> {
    let tls = match tls_config(config.proxy.upstream_ca_file.as_deref()) {
        Ok(tls) => TlsConnector::from(tls),
        Err(error) => {
            let mend = "it must hold certificates in PEM";
            return vec![Item::of(
                "proxy.upstream_ca_file",
                Err(format!("{error}; {mend}")),
            )];
        }
    };
    // All at once: with the network down each one takes its whole timeout.
    let mut tasks = tokio::task::JoinSet::new();
    for (index, target) in targets(config).into_iter().enumerate() {
        let tls = tls.clone();
        tasks.spawn(async move {
            let attempt = timeout(UPSTREAM_TIMEOUT, connect(&target.upstream, tls));
            let result = attempt.await.unwrap_or_else(|_| {
                Err(format!(
                    "no connection in {UPSTREAM_TIMEOUT:?}; check firewall and network policy"
                ))
            });
            (index, target.item(result))
        });
    }
    let mut items = tasks.join_all().await;
    items.sort_by_key(|(index, _)| *index);
    items.into_iter().map(|(_, item)| item).collect()
}

/// An upstream that requests can go to.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    provider: String,
    upstream: String,
    /// Whether the configuration names the provider, so that it is surely wanted.
    is_named: bool,
}

impl Target {
    fn item(self, result: Result<&'static str, String>) -> Item {
        let (status, found) = match result {
            Ok(found) => (Status::Ok, found.to_owned()),
            Err(error) if self.is_named => (Status::Fail, error),
            Err(error) => {
                let status = Status::Skip;
                (
                    status,
                    format!("{error}; matters only if you use this provider"),
                )
            }
        };
        Item {
            status,
            name: format!("upstream {}", self.provider),
            detail: format!("{}: {found}", self.upstream),
        }
    }
}

/// Every upstream that requests can go to, by provider.
fn targets(config: &Config) -> Vec<Target> {
    let defaults = provider::BUILTIN.iter().filter_map(|name| {
        let upstream = provider::builtin(name)?.default_upstream()?;
        Some((*name, upstream))
    });
    let mut upstreams: BTreeMap<&str, &str> = defaults.collect();
    for (name, provider) in &config.providers {
        if let Some(upstream) = &provider.upstream {
            upstreams.insert(name, upstream);
        }
    }
    let is_named = |name: &str| {
        let mut accounts = config.accounts.iter();
        config.providers.contains_key(name) || accounts.any(|account| account.provider == name)
    };
    let target = |(name, upstream): (&str, &str)| Target {
        provider: name.to_owned(),
        upstream: upstream.to_owned(),
        is_named: is_named(name),
    };
    upstreams.into_iter().map(target).collect()
}

/// Resolves an upstream, connects to it and shakes hands.
async fn connect(upstream: &str, tls: TlsConnector) -> Result<&'static str, String> {
    let uri: http::Uri = upstream.parse().map_err(|_| "not a URL".to_owned())?;
    let is_tls = uri.scheme() == Some(&http::uri::Scheme::HTTPS);
    let host = uri.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port))
        .await
        .map_err(|error| format!("the name does not resolve: {error}; check DNS"))?
        .collect();
    let stream = TcpStream::connect(addresses.as_slice())
        .await
        .map_err(|error| format!("cannot connect: {error}; check egress rules"))?;
    if !is_tls {
        return Ok("accepts connections, without TLS");
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|_| "not a host name".to_owned())?;
    tls.connect(name, stream).await.map_err(|error| {
        format!(
            "TLS failed: {error}; if a proxy of your own re-signs traffic, name its authority in \
             proxy.upstream_ca_file"
        )
    })?;
    Ok("accepts connections, certificate verified")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unspecified_address_is_reached_by_loopback() {
        for (listen, reached) in [
            ("0.0.0.0:10480", "127.0.0.1:10480"),
            ("[::]:10480", "[::1]:10480"),
            ("10.1.2.3:10480", "10.1.2.3:10480"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()), reached.parse().unwrap());
        }
    }

    #[test]
    fn an_upstream_that_nobody_asked_for_may_be_out_of_reach() {
        let mut config = Config::default();
        let groq = crate::proxy::ProviderConfig {
            upstream: Some("http://127.0.0.1:1".to_owned()),
            ..Default::default()
        };
        config.providers.insert("groq".to_owned(), groq);
        config.accounts.push(crate::config::Account {
            provider: "openai".to_owned(),
            ..Default::default()
        });
        let failed: Vec<(String, Status)> = targets(&config)
            .into_iter()
            .map(|target| target.item(Err("cannot connect".to_owned())))
            .map(|item| (item.name, item.status))
            .collect();
        let expected = [
            ("upstream anthropic", Status::Skip),
            ("upstream fal", Status::Skip),
            ("upstream fal-queue", Status::Skip),
            ("upstream fal-rest", Status::Skip),
            ("upstream groq", Status::Fail),
            ("upstream openai", Status::Fail),
            ("upstream openrouter", Status::Skip),
            ("upstream replicate", Status::Skip),
            ("upstream replicate-stream", Status::Skip),
        ];
        assert_eq!(
            failed,
            expected.map(|(name, status)| (name.to_owned(), status))
        );
    }

    #[test]
    fn an_item_is_one_line() {
        let item = Item::of("proxy.listen", Err("127.0.0.1:80 is taken".to_owned()));
        assert_eq!(
            item.to_string(),
            "FAIL proxy.listen             127.0.0.1:80 is taken"
        );
        assert!(!passed(&[item]));
    }
}
