//! TLS towards providers: verified, or the request is refused.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::PrivateKeyDer;
use taffrail::fault::Outcome;
use taffrail::proxy::{Config, MeterConfig, tls_config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::certificate::{Issued, issue};
use crate::support::http::ask;
use crate::support::providers::Plain;
use crate::support::sidecar::Sidecar;

const GET: &[u8] = b"GET /up/x HTTP/1.1\r\nhost: a\r\n\r\n";

/// The acceptor of a server with this certificate.
fn acceptor(issued: &Issued) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![issued.certificate.der().clone()],
            PrivateKeyDer::Pkcs8(issued.key.serialize_der().into()),
        )
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// Answers every request on every connection with `ok`; the address, and how many connections
/// were made.
async fn serve(acceptor: TlsAcceptor) -> (SocketAddr, Arc<std::sync::atomic::AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, count) = (acceptor.clone(), count.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let mut request = vec![0; 4096];
                while matches!(stream.read(&mut request).await, Ok(read) if read > 0) {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    stream.write_all(answer).await.unwrap();
                    stream.flush().await.unwrap();
                }
            });
        }
    });
    (address, connections)
}

fn sidecar(upstream: &str, authority: Option<&str>, config: Config) -> Sidecar {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    let tls = match authority {
        Some(pem) => {
            std::fs::write(&path, pem).unwrap();
            tls_config(Some(&path)).unwrap()
        }
        None => tls_config(None).unwrap(),
    };
    Sidecar::start_at(upstream, Plain::new(), config, MeterConfig::default(), tls)
}

fn one_thread() -> Config {
    Config {
        threads: Some(1),
        ..Config::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_a_trusted_authority_is_accepted_and_the_connection_reused() {
    let issued = issue("localhost");
    let (address, connections) = serve(acceptor(&issued)).await;
    let url = format!("https://localhost:{}", address.port());
    let sidecar = sidecar(&url, Some(&issued.authority), one_thread());
    for _ in 0..3 {
        let seen = ask(sidecar.address, GET).await;
        assert_eq!((seen.status, seen.body), (200, b"ok".to_vec()));
    }
    assert_eq!(connections.load(std::sync::atomic::Ordering::Relaxed), 1);
    for record in sidecar.records(3).await {
        assert_eq!(record.outcome, Outcome::Ok);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_does_not_hold_is_a_502_and_no_request_leaves() {
    let other = issue("localhost");
    for (name, authority) in [
        ("localhost", None),
        ("localhost", Some(other.authority.as_str())),
        ("elsewhere.example", Some("own")),
    ] {
        let issued = issue(name);
        let (address, connections) = serve(acceptor(&issued)).await;
        let authority = match authority {
            Some("own") => Some(issued.authority.as_str()),
            authority => authority,
        };
        let url = format!("https://localhost:{}", address.port());
        let sidecar = sidecar(&url, authority, one_thread());
        let seen = ask(sidecar.address, GET).await;
        assert_eq!(seen.status, 502);
        assert_eq!(
            seen.headers["x-taffrail-error"],
            [b"connect_failed".to_vec()]
        );
        let message = String::from_utf8(seen.body).unwrap();
        assert!(message.contains("certificate"), "{message}");
        assert_eq!(
            sidecar.records(1).await.remove(0).outcome,
            Outcome::NetworkError
        );
        assert_eq!(connections.load(std::sync::atomic::Ordering::Relaxed), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_that_never_ends_is_a_504() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!(
        "https://localhost:{}",
        listener.local_addr().unwrap().port()
    );
    let config = Config {
        connect_timeout: Duration::from_millis(200),
        ..one_thread()
    };
    let sidecar = sidecar(&url, None, config);
    let seen = ask(sidecar.address, GET).await;
    assert_eq!(seen.status, 504);
    assert_eq!(
        seen.headers["x-taffrail-error"],
        [b"connect_timeout".to_vec()]
    );
    assert_eq!(
        sidecar.records(1).await.remove(0).outcome,
        Outcome::UpstreamTimeout
    );
}
