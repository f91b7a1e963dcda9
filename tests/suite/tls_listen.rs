//! https from the proxy: the same bytes and the same rows, for who trusts its authority, and a
//! quick end for whoever does not get that far.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use chrono::{NaiveDate, NaiveTime};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::golden::{Fixture, fixtures};
use crate::support::binary::{Home, Server};
use crate::support::certificate::{Issued, issue, issue_between};
use crate::support::eventually::eventually;
use crate::support::http::{Ending, Seen, ask, read_response};
use crate::support::vendor::{Framing, Reply, Vendor};

/// A vendor whose answers are a fixture's, and a home whose proxy speaks TLS to it.
async fn home(fixture: &str) -> (Vendor, Home, Vec<u8>) {
    let fixture = fixtures("openai")
        .into_iter()
        .find(|known| known.name() == fixture)
        .unwrap();
    let request = request(&fixture);
    let reply = reply(&fixture);
    let vendor = Vendor::start(move |_| reply.clone()).await;
    let mut home = Home::new(vendor.address);
    home.set("PROXY__TLS_LISTEN", "127.0.0.1:0");
    home.set("LOG__FORMAT", "json");
    (vendor, home, request)
}

fn request(fixture: &Fixture) -> Vec<u8> {
    let message = &fixture.request;
    let (method, rest) = message.start.split_once(' ').unwrap();
    let mut head = format!("{method} /openai{rest}\r\nhost: a\r\n");
    for (name, value) in &message.headers {
        head += &format!("{name}: {}\r\n", value.to_str().unwrap());
    }
    head += &format!("content-length: {}\r\n\r\n", message.body.len());
    [head.as_bytes(), &message.body].concat()
}

fn reply(fixture: &Fixture) -> Reply {
    let message = &fixture.response;
    let fields = message.headers.iter();
    Reply {
        headers: fields
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect(),
        framing: Framing::Chunked,
        ..Reply::json(message.body.clone())
    }
}

/// What `taffrail ca` prints.
async fn authority(home: &Home) -> String {
    let ran = home.run(&["ca"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    ran.stdout
}

/// A connection to the server by a client that trusts these certificates (PEM).
async fn connect(
    address: SocketAddr,
    authority: &str,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    connect_by(address, authority, name, rustls::DEFAULT_VERSIONS).await
}

async fn connect_by(
    address: SocketAddr,
    authority: &str,
    name: &str,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
}

async fn ask_by(stream: &mut TlsStream<TcpStream>, request: &[u8]) -> Seen {
    stream.write_all(request).await.unwrap();
    read_response(stream, &mut Vec::new(), false).await
}

fn failures(reason: &str) -> String {
    format!("taffrail_tls_handshake_failures_total{{reason=\"{reason}\"}}")
}

/// Waits until that many handshakes failed for a reason; no other may have.
async fn failed(server: &Server, reason: &str, count: u64) {
    let family = "taffrail_tls_handshake_failures_total";
    let what = format!("{} {count}", failures(reason));
    let scrape = server
        .once(&what, |scrape| {
            scrape.sum(family, &[("reason", reason)]) == count
        })
        .await;
    assert_eq!(scrape.sum(family, &[]), count, "{}", scrape.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_trusts_the_authority_gets_the_same_bytes_and_each_request_its_row() {
    for fixture in ["chat-whole", "chat-stream-usage-in-last-event"] {
        let (_vendor, home, request) = home(fixture).await;
        let server = home.start().await;
        let address = server.proxy_tls();
        let plain = ask(server.proxy, &request).await;
        assert_eq!(plain.ending, Ending::Complete, "{fixture}");
        let authority = authority(&home).await;
        for (name, version) in [
            ("localhost", &rustls::version::TLS13),
            ("localhost", &rustls::version::TLS12),
            ("127.0.0.1", &rustls::version::TLS13),
            ("::1", &rustls::version::TLS13),
        ] {
            let stream = connect_by(address, &authority, name, &[version]).await;
            let mut stream = stream.unwrap_or_else(|error| panic!("{name}: {error}"));
            let session = stream.get_ref().1;
            assert_eq!(session.alpn_protocol(), Some(&b"http/1.1"[..]));
            assert_eq!(ask_by(&mut stream, &request).await, plain, "{fixture}");
            // The connection is kept, as without TLS.
            assert_eq!(ask_by(&mut stream, &request).await, plain, "{fixture}");
        }
        server.stored(9).await;
        let rows = home.logs().await;
        let facts: BTreeSet<String> = rows
            .iter()
            .map(|row| {
                let keys = [
                    "outcome",
                    "model_served",
                    "input_tokens",
                    "output_tokens",
                    "cost_usd",
                ];
                keys.map(|key| row[key].to_string()).join(" ")
            })
            .collect();
        assert_eq!((rows.len(), facts.len()), (9, 1), "{facts:?}");
        let scrape = server.quiet().await;
        assert!(
            scrape
                .0
                .contains("taffrail_connections{listener=\"proxy_tls\"} 0")
        );
        assert_eq!(scrape.sum("taffrail_tls_handshake_failures_total", &[]), 0);
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_trust_it_is_counted_and_not_logged() {
    let (vendor, home, _) = home("chat-whole").await;
    let other = issue("localhost");
    let server = home.start().await;
    let address = server.proxy_tls();
    let error = connect(address, &other.authority, "localhost").await;
    assert!(error.unwrap_err().to_string().contains("UnknownIssuer"));
    failed(&server, "refused", 1).await;
    // A probe that connects and says nothing is no failure.
    drop(TcpStream::connect(address).await.unwrap());
    let authority = authority(&home).await;
    let elsewhere = connect(address, &authority, "elsewhere.example").await;
    assert!(elsewhere.is_err());
    failed(&server, "refused", 2).await;
    assert_eq!(vendor.asked().len(), 0);
    let log = server.stop().await;
    assert!(!log.contains("handshake"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_authority_is_made_once_by_whoever_comes_first() {
    let (_vendor, home, _) = home("chat-whole").await;
    let (one, other) = tokio::join!(authority(&home), authority(&home));
    assert_eq!(one, other);
    assert!(one.starts_with("-----BEGIN CERTIFICATE-----\n"), "{one}");
    let dir = home.path().join("taffrail-data/ca");
    let key = std::fs::metadata(dir.join("ca.key")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&dir).unwrap() {
        names.push(entry.unwrap().file_name());
    }
    names.sort();
    assert_eq!(names, ["ca.key", "ca.pem"]);
    // The server uses it, after a restart as well.
    for _ in 0..2 {
        let server = home.start().await;
        let address = server.proxy_tls();
        connect(address, &one, "localhost").await.unwrap();
        server.stop().await;
    }
    assert_eq!(authority(&home).await, one);
}

/// Puts a certificate where the configuration names it, each file in one piece.
fn install(home: &Home, issued: &Issued) {
    for (name, text) in [
        ("tls.crt", issued.certificate.pem()),
        ("tls.key", issued.key.serialize_pem()),
    ] {
        let new = home.path().join(format!("{name}.new"));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, home.path().join(name)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_from_files_is_exchanged_without_a_restart() {
    let (_vendor, mut home, request) = home("chat-whole").await;
    home.set("PROXY__TLS_CERT_FILE", "tls.crt");
    home.set("PROXY__TLS_KEY_FILE", "tls.key");
    let day = |text: &str| -> NaiveDate { text.parse().unwrap() };
    let (since, until) = (day("2026-01-01"), day("2099-01-01"));
    let first = issue("proxy.example");
    let second = issue_between("proxy.example", since, until);
    install(&home, &first);
    let server = home.start().await;
    let expires = "taffrail_tls_certificate_expiry_timestamp_seconds";
    let in_2099 = until.and_time(NaiveTime::MIN).and_utc().timestamp();
    let in_2099 = u64::try_from(in_2099).unwrap();
    assert!(server.scrape().await.sum(expires, &[]) > in_2099);
    let address = server.proxy_tls();
    let trusting = |issued: &Issued| {
        let authority = issued.authority.clone();
        async move { connect(address, &authority, "proxy.example").await }
    };
    let mut before = trusting(&first).await.unwrap();
    let answer = ask_by(&mut before, &request).await;
    assert_eq!(answer.status, 200);

    // Half an exchange: the new certificate does not go with the old key.
    let path = home.path().join("tls.crt");
    std::fs::write(&path, second.certificate.pem()).unwrap();
    trusting(&first).await.unwrap();
    trusting(&first).await.unwrap();
    install(&home, &second);
    let mut after = trusting(&second).await.unwrap();
    assert_eq!(ask_by(&mut after, &request).await, answer);
    assert!(trusting(&first).await.is_err());
    // What is open stays open, and no file is no reason to stop.
    assert_eq!(ask_by(&mut before, &request).await, answer);
    std::fs::remove_file(&path).unwrap();
    trusting(&second).await.unwrap();
    assert_eq!(server.scrape().await.sum(expires, &[]), in_2099);

    let no_authority = home.run(&["ca"]).await;
    assert_eq!(no_authority.code, Some(2), "{no_authority:?}");
    install(&home, &second);
    let no_authority = home.run(&["ca"]).await;
    assert_eq!(no_authority.code, Some(1));
    assert!(no_authority.stderr.contains("proxy.tls_cert_file is set"));
    assert!(!Path::new(&home.path().join("taffrail-data")).exists());
    let log = server.stop().await;
    assert_eq!(log.matches("is renewed").count(), 1, "{log}");
    assert_eq!(log.matches("cannot renew").count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_another_certificate_is_refused_at_the_start() {
    let (_vendor, mut home, _) = home("chat-whole").await;
    home.set("PROXY__TLS_CERT_FILE", "tls.crt");
    home.set("PROXY__TLS_KEY_FILE", "tls.key");
    install(&home, &issue("proxy.example"));
    let other = issue("proxy.example").key.serialize_pem();
    std::fs::write(home.path().join("tls.key"), other).unwrap();
    for command in ["run", "check"] {
        let ran = home.run(&[command]).await;
        assert_eq!(ran.code, Some(2), "{ran:?}");
        for part in [
            "proxy.tls_cert_file",
            "tls.key: not a key for tls.crt",
            "accepted: ",
        ] {
            assert!(ran.stderr.contains(part), "{part}: {}", ran.stderr);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_http_is_told_to_use_https() {
    let (vendor, mut home, request) = home("chat-whole").await;
    let server = home.start().await;
    let address = server.proxy_tls();
    for body_bytes in [0, 40_000] {
        let request = [request.as_slice(), &vec![b'x'; body_bytes]].concat();
        let seen = ask(address, &request).await;
        assert_eq!((seen.status, seen.ending), (400, Ending::Complete));
        assert_eq!(seen.headers["x-taffrail-error"], [b"not_tls".to_vec()]);
        let body = String::from_utf8(seen.body).unwrap();
        assert!(body.contains("https"), "{body}");
    }
    failed(&server, "not_tls", 2).await;
    assert_eq!(vendor.asked().len(), 0);
    // `taffrail check` beside it knows whose port that is.
    home.set("PROXY__TLS_LISTEN", address.to_string());
    let ran = home.run(&["check"]).await;
    let items: Vec<&str> = ran.stdout.lines().collect();
    for (name, found) in [
        ("proxy.tls_listen", "is served by Taffrail already"),
        ("proxy.tls_ca_dir", "./taffrail-data/ca is writable"),
    ] {
        let item = items.iter().find(|item| item.contains(name)).unwrap();
        assert!(item.starts_with("ok ") && item.contains(found), "{item}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_that_never_ends_is_ended() {
    let (_vendor, mut home, request) = home("chat-whole").await;
    home.set("PROXY__HEADER_TIMEOUT", "300ms");
    home.set("PROXY__CONNECTIONS_MAX", "1");
    let server = home.start().await;
    let address = server.proxy_tls();
    let labels = [("listener", "proxy_tls")];
    // The header of a handshake record of 512 bytes, and then nothing; and nothing at all.
    for first in [&[22, 3, 1, 2, 0][..], &[]] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(first).await.unwrap();
        let mut end = Vec::new();
        stream.read_to_end(&mut end).await.unwrap();
        assert_eq!(end, b"");
        server
            .once("its place is free", |scrape| {
                scrape.sum("taffrail_connections", &labels) == 0
            })
            .await;
    }
    failed(&server, "timeout", 2).await;

    // While a handshake lasts, it has one of the places, which plain connections have as well.
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(&[22]).await.unwrap();
    server
        .once("the handshake has a place", |scrape| {
            scrape.sum("taffrail_connections", &labels) == 1
        })
        .await;
    let refused = TcpStream::connect(address).await.unwrap().read_u8().await;
    assert!(refused.is_err());
    assert_eq!(ask(server.proxy, &request).await.status, 503);
    assert_eq!(slow.read(&mut [0]).await.unwrap(), 0);
    eventually("the place is free again", async || {
        ask(server.proxy, &request).await.status == 200
    })
    .await;
    let scrape = server.scrape().await;
    let refused = |listener| {
        let labels = [("listener", listener)];
        scrape.sum("taffrail_connections_refused_total", &labels)
    };
    assert_eq!(refused("proxy_tls"), 1);
    assert!(refused("proxy") >= 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_connections_are_served_side_by_side() {
    let (_vendor, home, request) = home("chat-stream-usage-in-last-event").await;
    let server = home.start().await;
    let address = server.proxy_tls();
    let authority = authority(&home).await;
    let expected = ask(server.proxy, &request).await;
    let mut streams = Vec::new();
    for _ in 0..100 {
        streams.push(connect(address, &authority, "localhost").await.unwrap());
    }
    let scrape = server.scrape().await;
    let labels = [("listener", "proxy_tls")];
    assert_eq!(scrape.sum("taffrail_connections", &labels), 100);
    let mut asking = tokio::task::JoinSet::new();
    for mut stream in streams {
        let request = request.clone();
        asking.spawn(async move {
            let first = ask_by(&mut stream, &request).await;
            (first, ask_by(&mut stream, &request).await)
        });
    }
    for (first, second) in asking.join_all().await {
        assert_eq!(first, expected);
        assert_eq!(second, expected);
    }
    server.stored(201).await;
    assert_eq!(home.logs().await.len(), 201);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_is_tunnelled_through_tls() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut home = Home::new(listener.local_addr().unwrap());
    home.set("PROXY__TLS_LISTEN", "127.0.0.1:0");
    home.set("LOG__FORMAT", "json");
    let server = home.start().await;
    let authority = authority(&home).await;
    let client = connect(server.proxy_tls(), &authority, "localhost").await;
    let mut client = client.unwrap();
    let request = b"GET /openai/v1/realtime HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\n\
        upgrade: websocket\r\nsec-websocket-key: x\r\n\r\n";
    client.write_all(request).await.unwrap();
    let (mut vendor, _) = listener.accept().await.unwrap();
    let mut seen = [0; 4096];
    assert!(vendor.read(&mut seen).await.unwrap() > 0);
    let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\n\
        upgrade: websocket\r\n\r\nHELLO";
    vendor.write_all(answer).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"HELLO") {
        head.push(client.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "));
    // More than the buffers between hold, both ways.
    let bytes = vec![7; 1 << 20];
    let mut echo = vec![0; bytes.len()];
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_vendor, mut to_vendor) = vendor.split();
    let echoing = tokio::io::copy(&mut from_vendor, &mut to_vendor);
    let sending = async {
        to_client.write_all(&bytes).await.unwrap();
        to_client.flush().await.unwrap();
    };
    let asking = async { tokio::join!(sending, from_client.read_exact(&mut echo)).1 };
    tokio::select! {
        copied = echoing => panic!("the tunnel ended after {copied:?}"),
        read = asking => { read.unwrap(); }
    }
    assert!(echo == bytes);
    drop((from_client, to_client));
    server.stored(1).await;
    server.stop().await;
}
