//! `taffrail check` and `taffrail healthcheck` against listeners on loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use chrono::TimeDelta;
use taffrail::check::{Item, Status, check, healthcheck, passed};
use taffrail::clock;
use taffrail::config::{Config, Role};
use taffrail::provider;
use taffrail::proxy::ProviderConfig;
use taffrail::store::Store;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::support::certificate::issue_between;

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A listener that answers every request alike.
async fn answering(status: &str, body: &str) -> SocketAddr {
    let (listener, address) = listener().await;
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0_u8; 1024];
            // A bare connection attempt sends nothing and hangs up.
            if stream.read(&mut head).await.is_ok_and(|count| count > 0) {
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    });
    address
}

/// An address that refuses connections.
async fn closed() -> SocketAddr {
    listener().await.1
}

/// A TLS listener, and the PEM of its certificate.
async fn tls() -> (SocketAddr, String) {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // A client that does not trust us ends the handshake.
            drop(acceptor.accept(stream).await);
        }
    });
    (address, cert.pem())
}

/// A configuration whose every upstream, listener and file is on this machine.
fn on_loopback(dir: &Path, upstream: SocketAddr) -> Config {
    let mut config = Config::default();
    config.proxy.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config.admin.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config.journal.dir = dir.join("journal");
    config.store.url = format!("sqlite://{}", dir.join("store/t.db").display());
    for name in provider::BUILTIN {
        let provider = ProviderConfig {
            upstream: Some(format!("http://{upstream}")),
            ..ProviderConfig::default()
        };
        config.providers.insert((*name).to_owned(), provider);
    }
    config
}

fn find<'a>(items: &'a [Item], name: &str) -> &'a Item {
    items.iter().find(|item| item.name == name).unwrap()
}

fn status(items: &[Item], name: &str) -> Status {
    find(items, name).status
}

#[tokio::test]
async fn everything_in_order_passes() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = answering("200 OK", "").await;
    let config = on_loopback(dir.path(), upstream);
    let items = check(&config).await;
    let seen: Vec<(&str, Status)> = items.iter().map(|i| (i.name.as_str(), i.status)).collect();
    let expected = [
        "configuration",
        "admin.listen",
        "proxy.listen",
        "journal.dir",
        "store.url",
        "upstream anthropic",
        "upstream azure",
        "upstream fal",
        "upstream fal-queue",
        "upstream fal-rest",
        "upstream openai",
        "upstream openrouter",
        "upstream replicate",
        "upstream replicate-stream",
    ];
    assert_eq!(seen, expected.map(|name| (name, Status::Ok)));
    assert!(passed(&items));
    // Nothing is left behind but the directory itself.
    let left = std::fs::read_dir(&config.journal.dir).unwrap().count();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn what_fails_says_so_and_how_to_mend_it() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = answering("200 OK", "").await;
    let mut config = on_loopback(dir.path(), upstream);
    // Another server has the ports, the directory is a file, an upstream is gone.
    let stranger = answering("404 Not Found", "nothing here").await;
    config.admin.listen = stranger;
    config.proxy.listen = answering("200 OK", "hello").await;
    let blocker = dir.path().join("file");
    std::fs::write(&blocker, "").unwrap();
    config.journal.dir = blocker.join("journal");
    config.store.url = format!("sqlite://{}", blocker.join("t.db").display());
    let gone = closed().await;
    config.providers.get_mut("openai").unwrap().upstream = Some(format!("http://{gone}"));
    // A label of more than 63 characters fails to resolve without asking anyone.
    let unknown = format!("http://{}.example", "a".repeat(64));
    config.providers.get_mut("azure").unwrap().upstream = Some(unknown);

    let items = check(&config).await;
    assert!(!passed(&items));
    for (name, hint) in [
        ("admin.listen", "another process has it"),
        ("proxy.listen", "another process has it"),
        ("journal.dir", "set journal.dir"),
        ("store.url", "set store.url"),
        ("upstream openai", "check egress rules"),
        ("upstream azure", "check DNS"),
    ] {
        let item = find(&items, name);
        assert_eq!(item.status, Status::Fail, "{item}");
        assert!(item.detail.contains(hint), "{item}");
    }
    assert_eq!(status(&items, "upstream anthropic"), Status::Ok);
}

#[tokio::test]
async fn ports_that_taffrail_itself_serves_are_fine() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = on_loopback(dir.path(), answering("200 OK", "").await);
    config.admin.listen = answering("200 OK", "ok").await;
    let refusal = "404 Not Found\r\nx-taffrail-error: unknown_route";
    config.proxy.listen = answering(refusal, "{}").await;
    let items = check(&config).await;
    for name in ["admin.listen", "proxy.listen"] {
        let item = find(&items, name);
        assert_eq!(item.status, Status::Ok, "{item}");
        assert!(item.detail.contains("served by Taffrail already"), "{item}");
    }
}

#[tokio::test]
async fn certificates_of_upstreams_are_verified() {
    let dir = tempfile::tempdir().unwrap();
    let (address, pem) = tls().await;
    let mut config = on_loopback(dir.path(), answering("200 OK", "").await);
    let url = |host: &str| Some(format!("https://{host}:{}", address.port()));
    config.providers.get_mut("openai").unwrap().upstream = url("localhost");
    config.providers.get_mut("azure").unwrap().upstream = url("127.0.0.1");

    let items = check(&config).await;
    let item = find(&items, "upstream openai");
    assert_eq!(item.status, Status::Fail, "{item}");
    assert!(item.detail.contains("proxy.upstream_ca_file"), "{item}");

    let ca_file = dir.path().join("ca.pem");
    std::fs::write(&ca_file, pem).unwrap();
    config.proxy.upstream_ca_file = Some(ca_file.clone());
    let items = check(&config).await;
    assert_eq!(status(&items, "upstream openai"), Status::Ok);
    // The certificate is for another name.
    assert_eq!(status(&items, "upstream azure"), Status::Fail);

    std::fs::write(&ca_file, "no certificate").unwrap();
    let items = check(&config).await;
    let item = find(&items, "proxy.upstream_ca_file");
    assert_eq!(item.status, Status::Fail, "{item}");
}

#[tokio::test]
async fn a_certificate_that_ends_soon_is_warned_of_and_one_that_does_not_hold_fails() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = on_loopback(dir.path(), answering("200 OK", "").await);
    config.proxy.tls_listen = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let path = dir.path().join("tls.crt");
    config.proxy.tls_cert_file = Some(path.clone());
    let today = clock::wall().date_naive();
    let day = |days: i64| today + TimeDelta::days(days);
    for (since, until, status, words) in [
        (-30, 60, Status::Ok, "holds until "),
        (-80, 10, Status::Warn, ", which is soon; renew it"),
        (-90, -1, Status::Fail, "expired on "),
        (2, 90, Status::Fail, "check the clock"),
    ] {
        let issued = issue_between("proxy.example", day(since), day(until));
        std::fs::write(&path, issued.certificate.pem()).unwrap();
        let items = check(&config).await;
        let item = find(&items, "proxy.tls_cert_file");
        assert_eq!(item.status, status, "{item}");
        assert!(item.detail.contains(words), "{item}");
        let is_usable = matches!(status, Status::Ok | Status::Warn);
        assert_eq!(passed(&items), is_usable, "{item}");
        if is_usable {
            assert!(item.detail.contains(&day(until).to_string()), "{item}");
        }
    }
}

#[tokio::test]
async fn a_store_that_is_there_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = on_loopback(dir.path(), answering("200 OK", "").await);
    let before = find(&check(&config).await, "store.url").clone();
    assert!(
        before.detail.ends_with("will be made at the first start"),
        "{before}"
    );

    Store::open(&config.store).await.unwrap().close().await;
    let after = find(&check(&config).await, "store.url").clone();
    assert_eq!(after.status, Status::Ok, "{after}");
    assert!(after.detail.ends_with(" answers"), "{after}");

    std::fs::write(
        dir.path().join("store/t.db"),
        "not a database, but long enough",
    )
    .unwrap();
    let damaged = find(&check(&config).await, "store.url").clone();
    assert_eq!(damaged.status, Status::Fail, "{damaged}");

    config.store.url = "mysql://meter:hunter2@db/taffrail".to_owned();
    let unknown = find(&check(&config).await, "store.url").clone();
    assert_eq!(unknown.status, Status::Fail, "{unknown}");
    assert!(!unknown.to_string().contains("hunter2"), "{unknown}");
}

#[tokio::test]
async fn an_exporter_needs_no_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = on_loopback(dir.path(), closed().await);
    config.role = Role::Exporter;
    let items = check(&config).await;
    let seen: Vec<(&str, Status)> = items.iter().map(|i| (i.name.as_str(), i.status)).collect();
    assert_eq!(
        seen,
        [
            ("configuration", Status::Ok),
            ("admin.listen", Status::Ok),
            ("proxy.listen", Status::Skip),
            ("journal.dir", Status::Skip),
            ("upstreams", Status::Skip),
            ("store.url", Status::Ok),
        ]
    );
    assert!(!config.journal.dir.exists());
}

#[tokio::test]
async fn health_is_asked_of_this_machine() {
    let healthy = answering("200 OK", "ok").await;
    let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, healthy.port()));
    assert_eq!(healthcheck(everywhere).await, Ok(()));

    let sick = answering("503 Service Unavailable", "stopping").await;
    assert_eq!(
        healthcheck(sick).await,
        Err(format!(
            "http://{sick}/-/healthy answers 503 Service Unavailable"
        ))
    );
    let gone = closed().await;
    let error = healthcheck(gone).await.unwrap_err();
    assert!(
        error.starts_with(&format!("http://{gone}/-/healthy: ")),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_never_answers_is_not_healthy() {
    let (listener, address) = listener().await;
    let silent = tokio::spawn(async move {
        let held = listener.accept().await.unwrap();
        std::future::pending::<()>().await;
        drop(held);
    });
    let error = healthcheck(address).await.unwrap_err();
    assert_eq!(
        error,
        format!("http://{address}/-/healthy: no answer in 2s")
    );
    silent.abort();
}
