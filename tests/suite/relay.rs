//! The proxy between a client and an upstream, one behaviour at a time.

use std::time::Duration;

use bytesize::ByteSize;
use taffrail::fault::Outcome;
use taffrail::proxy::{Config, MeterConfig, OnClientDisconnect};
use taffrail::record::Operation;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::http::{Ending, ask, read_response};
use crate::support::providers::Plain;
use crate::support::sidecar::Sidecar;
use crate::support::upstream::{Act, Upstream, find};

const GET: &[u8] = b"GET /up/x HTTP/1.1\r\nhost: a\r\n\r\n";

fn one_thread() -> Config {
    Config {
        threads: Some(1),
        ..Config::default()
    }
}

fn ok(body: &str) -> Act {
    Act::send(format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ))
}

/// Reads until `wanted` was seen.
async fn read_until(stream: &mut TcpStream, wanted: &[u8]) -> Vec<u8> {
    let mut seen = Vec::new();
    let mut chunk = [0; 4096];
    while find(&seen, wanted).is_none() {
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut chunk)).await;
        match read.expect("nothing comes").expect("the connection broke") {
            0 => panic!("closed after {:?}", String::from_utf8_lossy(&seen)),
            read => seen.extend_from_slice(&chunk[..read]),
        }
    }
    seen
}

/// A request that has reached the provider, whose side the test plays.
struct Reached {
    sidecar: Sidecar,
    listener: TcpListener,
    client: TcpStream,
    provider: TcpStream,
    /// What the provider has got.
    seen: Vec<u8>,
}

/// Sends a request through a sidecar until the provider has got `until`.
async fn reach(request: &[u8], until: &[u8]) -> Reached {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sidecar = Sidecar::start(listener.local_addr().unwrap(), Plain::new());
    let mut client = TcpStream::connect(sidecar.address).await.unwrap();
    client.write_all(request).await.unwrap();
    let (mut provider, _) = listener.accept().await.unwrap();
    let seen = read_until(&mut provider, until).await;
    Reached {
        sidecar,
        listener,
        client,
        provider,
        seen,
    }
}

/// Whether the peer closes within a second.
async fn is_closed_soon(stream: &mut TcpStream) -> bool {
    let mut sink = [0; 4096];
    let closing = async { while matches!(stream.read(&mut sink).await, Ok(read) if read > 0) {} };
    tokio::time::timeout(Duration::from_secs(1), closing)
        .await
        .is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_provider_gets_the_clients_request_less_what_concerns_one_hop() {
    let upstream = Upstream::start(vec![Act::Read, ok("ok"), Act::AwaitClose]).await;
    let sidecar = Sidecar::start(upstream.address, Plain::new());
    let request = b"POST /up/v1/%2e%2E/a%20b?q=%7B&x HTTP/1.1\r\nhost: sidecar\r\n\
        authorization: Bearer sk-1\r\nconnection: keep-alive, x-hop\r\nx-hop: 1\r\n\
        proxy-authorization: Basic x\r\nx-taffrail-feature: search\r\naccept-encoding: gzip, br\r\n\
        user-agent: test\r\ncontent-length: 5\r\n\r\nhello";
    assert_eq!(ask(sidecar.address, request).await.status, 200);
    let seen = upstream.requests().remove(0);
    let seen = String::from_utf8(seen).unwrap();
    let (head, body) = seen.split_once("\r\n\r\n").unwrap();
    let mut lines: Vec<&str> = head.lines().collect();
    assert_eq!(lines.remove(0), "POST /v1/%2e%2E/a%20b?q=%7B&x HTTP/1.1");
    lines.sort_unstable();
    let host = format!("host: {}", upstream.address);
    let expected = [
        "accept-encoding: gzip, br",
        "authorization: Bearer sk-1",
        "content-length: 5",
        host.as_str(),
        "user-agent: test",
    ];
    assert_eq!(lines, expected);
    assert_eq!(body, "hello");
    let record = sidecar.records(1).await.remove(0);
    assert_eq!(record.operation, Operation::Other);
    assert_eq!(record.request_bytes, Some(5));
    assert_eq!(record.response_bytes, Some(2));
    assert!(record.caller.key_fingerprint.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_share_one_upstream_connection_and_pipelining_keeps_their_order() {
    let mut script = Vec::new();
    for index in 0..43 {
        script.push(Act::Read);
        script.push(ok(&format!("answer {index}")));
    }
    let upstream = Upstream::start(script).await;
    let sidecar = Sidecar::start(upstream.address, Plain::new());
    let mut client = TcpStream::connect(sidecar.address).await.unwrap();
    client.write_all(&GET.repeat(3)).await.unwrap();
    let mut pending = Vec::new();
    for index in 0..43 {
        if index >= 3 {
            client.write_all(GET).await.unwrap();
        }
        let seen = read_response(&mut client, &mut pending, false).await;
        assert_eq!(seen.body, format!("answer {index}").into_bytes());
    }
    assert_eq!(upstream.connections(), 1);
    assert_eq!(sidecar.records(43).await.len(), 43);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_before_the_head_closes_the_upstream() {
    let Reached {
        sidecar,
        client,
        mut provider,
        ..
    } = reach(GET, b"\r\n\r\n").await;
    drop(client);
    assert!(
        is_closed_soon(&mut provider).await,
        "the upstream stays open"
    );
    let record = sidecar.records(1).await.remove(0);
    assert_eq!(record.outcome, Outcome::ClientCancelled);
    assert_eq!(record.http_status, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_in_the_middle_closes_the_upstream() {
    let Reached {
        sidecar,
        mut client,
        mut provider,
        ..
    } = reach(GET, b"\r\n\r\n").await;
    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\ndata:1\r\n";
    provider.write_all(head).await.unwrap();
    read_until(&mut client, b"data:1").await;
    drop(client);
    assert!(
        is_closed_soon(&mut provider).await,
        "the upstream stays open"
    );
    let record = sidecar.records(1).await.remove(0);
    assert_eq!(record.outcome, Outcome::ClientCancelled);
    assert_eq!(record.response_bytes, Some(6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_reads_the_response_on_when_the_client_leaves() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let meter = MeterConfig {
        on_client_disconnect: OnClientDisconnect::Drain,
        ..MeterConfig::default()
    };
    let address = listener.local_addr().unwrap();
    let sidecar = Sidecar::start_with(address, Plain::new(), one_thread(), meter);
    let mut client = TcpStream::connect(sidecar.address).await.unwrap();
    client.write_all(GET).await.unwrap();
    let (mut provider, _) = listener.accept().await.unwrap();
    read_until(&mut provider, b"\r\n\r\n").await;
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello";
    provider.write_all(head).await.unwrap();
    read_until(&mut client, b"hello").await;
    drop(client);
    // The client's end has to arrive before the rest of the response does.
    assert!(
        !is_closed_soon(&mut provider).await,
        "the upstream was closed"
    );
    provider.write_all(b"world").await.unwrap();
    let record = sidecar.records(1).await.remove(0);
    assert_eq!(record.outcome, Outcome::ClientCancelled);
    assert_eq!(record.response_bytes, Some(10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_meter_that_panics_changes_nothing_for_the_client() {
    let upstream = Upstream::start(vec![Act::Read, ok("fine"), Act::AwaitClose]).await;
    let sidecar = Sidecar::start(upstream.address, Plain::panicking());
    let request = b"POST /up/x HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}";
    let seen = ask(sidecar.address, request).await;
    assert_eq!(
        (seen.status, seen.body, seen.ending),
        (200, b"fine".to_vec(), Ending::Complete)
    );
    let record = sidecar.records(1).await.remove(0);
    assert_eq!((record.outcome, record.cost_usd), (Outcome::Ok, None));
    assert_eq!(sidecar.sample("taffrail_meter_panics_total"), Some(2.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_answer_reaches_a_client_that_still_uploads() {
    let upstream = Upstream::start_each(vec![
        vec![
            Act::ReadHead,
            Act::send("HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig"),
            Act::Pause(Duration::from_millis(200)),
            Act::Close,
        ],
        vec![Act::Read, ok("ok"), Act::AwaitClose],
    ])
    .await;
    let sidecar = Sidecar::start(upstream.address, Plain::new());
    let mut client = TcpStream::connect(sidecar.address).await.unwrap();
    let head = b"POST /up/x HTTP/1.1\r\nhost: a\r\ncontent-length: 10000000\r\n\r\n";
    client.write_all(head).await.unwrap();
    client.write_all(&[b'a'; 1000]).await.unwrap();
    let seen = read_response(&mut client, &mut Vec::new(), false).await;
    assert_eq!((seen.status, seen.body), (413, b"big".to_vec()));
    // The connection of an unfinished request is not used again.
    assert_eq!(ask(sidecar.address, GET).await.status, 200);
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_streams_while_the_upload_goes_on() {
    let head = b"POST /up/x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n";
    let Reached {
        sidecar,
        mut client,
        mut provider,
        ..
    } = reach(head, b"one").await;
    let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nA\r\n";
    provider.write_all(answer).await.unwrap();
    read_until(&mut client, b"A\r\n").await;
    client.write_all(b"3\r\ntwo\r\n0\r\n\r\n").await.unwrap();
    read_until(&mut provider, b"0\r\n\r\n").await;
    provider.write_all(b"1\r\nB\r\n0\r\n\r\n").await.unwrap();
    read_until(&mut client, b"B\r\n0\r\n\r\n").await;
    let record = sidecar.records(1).await.remove(0);
    assert_eq!(
        (record.outcome, record.request_bytes),
        (Outcome::Ok, Some(6))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_breaks_off_after_its_response_has_begun_is_closed_at_the_provider_too() {
    let head = b"POST /up/x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n";
    let Reached {
        sidecar: _sidecar,
        mut client,
        mut provider,
        ..
    } = reach(head, b"one").await;
    let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nA\r\n";
    provider.write_all(answer).await.unwrap();
    read_until(&mut client, b"A\r\n").await;
    client.write_all(b"no size\r\n").await.unwrap();
    assert!(
        is_closed_soon(&mut provider).await,
        "the provider waits for the rest"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_ends_when_a_provider_that_has_answered_takes_nothing_of_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = Config {
        idle_timeout: Duration::from_millis(300),
        ..Config::default()
    };
    let address = listener.local_addr().unwrap();
    let sidecar = Sidecar::start_with(address, Plain::new(), config, MeterConfig::default());
    let mut client = TcpStream::connect(sidecar.address).await.unwrap();
    let head = b"POST /up/x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    client.write_all(head).await.unwrap();
    let (mut provider, _) = listener.accept().await.unwrap();
    read_until(&mut provider, b"\r\n\r\n").await;
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    provider.write_all(answer).await.unwrap();
    read_until(&mut client, b"ok").await;
    // Far more than the buffers on the way take.
    let uploading = async {
        let chunk = [b"10000\r\n", &[b'a'; 0x10000][..], b"\r\n"].concat();
        while client.write_all(&chunk).await.is_ok() {}
    };
    let ended = tokio::time::timeout(Duration::from_secs(20), uploading).await;
    assert!(ended.is_ok(), "the upload is held for ever");
    assert!(
        is_closed_soon(&mut provider).await,
        "the provider waits for the rest"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_directions_move_when_the_client_reads_only_after_its_upload() {
    const SIZE: usize = 8 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sidecar = Sidecar::start(listener.local_addr().unwrap(), Plain::new());
    tokio::spawn(async move {
        let (mut provider, _) = listener.accept().await.unwrap();
        read_until(&mut provider, b"\r\n\r\n").await;
        let (mut reading, mut writing) = provider.split();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n");
        let write = async {
            writing.write_all(head.as_bytes()).await.unwrap();
            writing.write_all(&vec![b'r'; SIZE]).await.unwrap();
        };
        let read = async {
            let mut sink = vec![0; 1 << 16];
            while reading.read(&mut sink).await.unwrap() > 0 {}
        };
        tokio::join!(write, read);
    });
    let mut client = TcpStream::connect(sidecar.address).await.unwrap();
    let head = format!("POST /up/x HTTP/1.1\r\nhost: a\r\ncontent-length: {SIZE}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let upload = client.write_all(&vec![b'u'; SIZE]).await;
    upload.unwrap();
    let seen = read_response(&mut client, &mut Vec::new(), false).await;
    assert_eq!(
        (seen.status, seen.body.len(), seen.ending),
        (200, SIZE, Ending::Complete)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_body_waits_for_the_providers_100_continue() {
    let head =
        b"POST /up/x HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
    let Reached {
        sidecar,
        mut client,
        mut provider,
        seen,
        ..
    } = reach(head, b"\r\n\r\n").await;
    assert!(find(&seen, b"expect: 100-continue").is_some());
    let mut early = [0; 16];
    let nothing = tokio::time::timeout(Duration::from_millis(100), client.read(&mut early)).await;
    assert!(nothing.is_err(), "100 Continue before the provider said so");
    provider
        .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut client, b"100 Continue\r\n\r\n").await;
    client.write_all(b"hello").await.unwrap();
    read_until(&mut provider, b"hello").await;
    provider
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        .await
        .unwrap();
    read_until(&mut client, b"ok").await;
    assert_eq!(sidecar.records(1).await.remove(0).request_bytes, Some(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_in_place_of_100_continue_spares_the_upload() {
    let upstream = Upstream::start(vec![
        Act::ReadHead,
        Act::send("HTTP/1.1 417 Expectation Failed\r\ncontent-length: 2\r\n\r\nno"),
        Act::AwaitClose,
    ])
    .await;
    let sidecar = Sidecar::start(upstream.address, Plain::new());
    let request =
        b"POST /up/x HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
    let mut client = TcpStream::connect(sidecar.address).await.unwrap();
    client.write_all(request).await.unwrap();
    let seen = read_until(&mut client, b"no").await;
    assert!(
        seen.starts_with(b"HTTP/1.1 417 "),
        "{}",
        String::from_utf8_lossy(&seen)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_is_tunnelled_after_the_providers_101_and_not_before() {
    let request = b"GET /up/v1/realtime?model=m HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\n\
        upgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nEARLY";
    let Reached {
        sidecar,
        mut client,
        mut provider,
        seen,
        ..
    } = reach(request, b"\r\n\r\n").await;
    assert!(find(&seen, b"upgrade: websocket").is_some());
    assert!(
        seen.ends_with(b"\r\n\r\n"),
        "bytes of the tunnel came before the 101"
    );
    let mut early = [0; 16];
    let read = tokio::time::timeout(Duration::from_millis(100), provider.read(&mut early)).await;
    assert!(read.is_err(), "bytes of the tunnel came before the 101");
    let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\n\
        upgrade: websocket\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nHELLO";
    provider.write_all(answer).await.unwrap();
    let seen = read_until(&mut client, b"HELLO").await;
    assert!(seen.starts_with(b"HTTP/1.1 101 "));
    assert!(find(&seen, b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=").is_some());
    read_until(&mut provider, b"EARLY").await;
    client.write_all(b"ping").await.unwrap();
    read_until(&mut provider, b"ping").await;
    provider.write_all(b"pong").await.unwrap();
    read_until(&mut client, b"pong").await;
    drop(client);
    drop(provider);
    let record = sidecar.records(1).await.remove(0);
    assert_eq!(record.http_status, Some(101));
    assert_eq!(
        (record.request_bytes, record.response_bytes),
        (Some(9), Some(9))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_websocket_is_an_ordinary_response() {
    let upstream = Upstream::start(vec![
        Act::ReadHead,
        Act::send("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno"),
        Act::AwaitClose,
    ])
    .await;
    let sidecar = Sidecar::start(upstream.address, Plain::new());
    let request = b"GET /up/ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\n\
        upgrade: websocket\r\nsec-websocket-key: x\r\n\r\n";
    let seen = ask(sidecar.address, request).await;
    assert_eq!((seen.status, seen.body), (403, b"no".to_vec()));
    assert_eq!(sidecar.records(1).await.remove(0).http_status, Some(403));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_stays_silent_ends_as_a_timeout() {
    let config = Config {
        idle_timeout: Duration::from_millis(300),
        ..one_thread()
    };
    let silent = Upstream::start(vec![Act::Read, Act::AwaitClose]).await;
    let meter = MeterConfig::default();
    let sidecar = Sidecar::start_with(silent.address, Plain::new(), config.clone(), meter.clone());
    let seen = ask(sidecar.address, GET).await;
    assert_eq!(seen.status, 504);
    assert_eq!(
        seen.headers["x-taffrail-error"],
        [b"response_timeout".to_vec()]
    );
    assert_eq!(
        sidecar.records(1).await.remove(0).outcome,
        Outcome::UpstreamTimeout
    );

    let head = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel";
    let stalling = Upstream::start(vec![Act::Read, Act::send(head), Act::AwaitClose]).await;
    let sidecar = Sidecar::start_with(stalling.address, Plain::new(), config, meter);
    let seen = ask(sidecar.address, GET).await;
    assert_eq!((seen.status, seen.ending), (200, Ending::Truncated));
    assert_eq!(
        sidecar.records(1).await.remove(0).outcome,
        Outcome::UpstreamTimeout
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_upload_is_no_silence() {
    let config = Config {
        idle_timeout: Duration::from_millis(400),
        ..one_thread()
    };
    let upstream = Upstream::start(vec![Act::Read, ok("ok"), Act::AwaitClose]).await;
    let meter = MeterConfig::default();
    let sidecar = Sidecar::start_with(upstream.address, Plain::new(), config, meter);
    let mut client = TcpStream::connect(sidecar.address).await.unwrap();
    let head = b"POST /up/x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    client.write_all(head).await.unwrap();
    for _ in 0..8 {
        client.write_all(b"1\r\na\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    client.write_all(b"0\r\n\r\n").await.unwrap();
    assert_eq!(
        read_response(&mut client, &mut Vec::new(), false)
            .await
            .status,
        200
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_relayed_is_answered_in_json_with_a_mark() {
    let upstream = Upstream::start(vec![Act::Read, ok("ok")]).await;
    let sidecar = Sidecar::start(upstream.address, Plain::new());
    let long = format!(
        "GET /up/x HTTP/1.1\r\nhost: a\r\nx-long: {}\r\n\r\n",
        "a".repeat(66_000)
    );
    let cases: [(&[u8], u16, &str, &str); 4] = [
        (
            b"GET /nobody/x HTTP/1.1\r\nhost: a\r\n\r\n",
            404,
            "unknown_route",
            "up",
        ),
        (
            b"GET http://evil/up/x HTTP/1.1\r\nhost: a\r\n\r\n",
            400,
            "not_a_forward_proxy",
            "host",
        ),
        (
            b"CONNECT evil:443 HTTP/1.1\r\nhost: a\r\n\r\n",
            400,
            "not_a_forward_proxy",
            "host",
        ),
        (long.as_bytes(), 431, "", ""),
    ];
    for (request, status, kind, in_message) in cases {
        let seen = ask(sidecar.address, request).await;
        assert_eq!(seen.status, status, "{}", String::from_utf8_lossy(request));
        if status == 431 {
            continue;
        }
        assert_eq!(seen.headers["x-taffrail-error"], [kind.as_bytes().to_vec()]);
        let body: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
        assert_eq!(body["error"]["type"], format!("taffrail_{kind}"));
        assert!(
            body["error"]["message"]
                .as_str()
                .unwrap()
                .contains(in_message)
        );
    }
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_upstream_is_a_502() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let sidecar = Sidecar::start(address, Plain::new());
    let seen = ask(sidecar.address, GET).await;
    assert_eq!(seen.status, 502);
    assert_eq!(
        seen.headers["x-taffrail-error"],
        [b"connect_failed".to_vec()]
    );
    let record = sidecar.records(1).await.remove(0);
    assert_eq!(record.outcome, Outcome::NetworkError);
    assert_eq!(record.error_code.as_deref(), Some("connect_failed"));
}

/// Each is refused with nothing sent upstream, or sent as exactly one request in one framing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_smuggled() {
    const SMUGGLED: &str = "GET /up/smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let cases = [
        "content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
        "content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        "content-length: +5\r\n\r\nhello",
        "content-length: 5,5\r\n\r\nhello",
        "content-length: 0x5\r\n\r\nhello",
        "content-length:\r\n\r\n",
        "transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
        "transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        " transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "x-a: b\r\n transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "x-a: b\r\n\tcontent-length: 5\r\n\r\nhello",
        "x-a: b\0\r\n\r\n",
        "x\x01: b\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n5;\n\r\nhello\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n-1\r\n\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n10000000000000000\r\nhello\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n",
    ];
    for case in cases {
        let upstream = Upstream::start(vec![Act::Read, ok("a"), Act::Read, ok("b")]).await;
        let sidecar = Sidecar::start(upstream.address, Plain::new());
        let mut client = TcpStream::connect(sidecar.address).await.unwrap();
        let request = format!("POST /up/x HTTP/1.1\r\nhost: a\r\n{case}{SMUGGLED}");
        client.write_all(request.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // A reset in place of an answer is fine.
        client.read_to_end(&mut answer).await.ok();
        for seen in upstream.requests() {
            let seen = String::from_utf8_lossy(&seen).into_owned();
            let lower = seen.to_ascii_lowercase();
            let framings = lower.matches("content-length:").count()
                + lower.matches("transfer-encoding:").count();
            assert!(framings <= 1, "{case:?} went out as {seen:?}");
            let is_whole = seen.starts_with("POST /x ") || seen.starts_with("GET /smuggled ");
            assert!(is_whole, "{case:?} went out as {seen:?}");
            assert!(!lower.contains("xchunked"), "{case:?} went out as {seen:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_drips_in_is_cut_off_and_an_idle_connection_is_not() {
    let config = Config {
        header_timeout: Duration::from_millis(200),
        ..one_thread()
    };
    let upstream = Upstream::start(vec![Act::Read, ok("a"), Act::Read, ok("b")]).await;
    let meter = MeterConfig::default();
    let sidecar = Sidecar::start_with(upstream.address, Plain::new(), config, meter);
    let mut slow = TcpStream::connect(sidecar.address).await.unwrap();
    slow.write_all(b"GET /up/x HTTP/1.1\r\nhos").await.unwrap();
    assert!(is_closed_soon(&mut slow).await, "a slow head is waited for");

    let mut idle = TcpStream::connect(sidecar.address).await.unwrap();
    let mut pending = Vec::new();
    for body in [b"a", b"b"] {
        tokio::time::sleep(Duration::from_millis(400)).await;
        idle.write_all(GET).await.unwrap();
        assert_eq!(
            read_response(&mut idle, &mut pending, false).await.body,
            body
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_connections_than_the_limit_are_told_so() {
    let config = Config {
        connections_max: 2,
        ..one_thread()
    };
    let upstream = Upstream::start(vec![Act::Read, ok("a"), Act::Read, ok("a")]).await;
    let meter = MeterConfig::default();
    let sidecar = Sidecar::start_with(upstream.address, Plain::new(), config, meter);
    let mut first = TcpStream::connect(sidecar.address).await.unwrap();
    first.write_all(GET).await.unwrap();
    assert_eq!(
        read_response(&mut first, &mut Vec::new(), false)
            .await
            .status,
        200
    );
    let mut second = TcpStream::connect(sidecar.address).await.unwrap();
    second.write_all(GET).await.unwrap();
    assert_eq!(
        read_response(&mut second, &mut Vec::new(), false)
            .await
            .status,
        200
    );
    let mut third = TcpStream::connect(sidecar.address).await.unwrap();
    let refused = read_response(&mut third, &mut Vec::new(), false).await;
    assert_eq!(refused.status, 503);
    assert_eq!(
        refused.headers["x-taffrail-error"],
        [b"too_many_connections".to_vec()]
    );
    let series = "taffrail_connections_refused_total{listener=\"proxy\"}";
    assert_eq!(sidecar.sample(series), Some(1.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_lets_requests_finish_and_new_ones_in_until_traffic_rests() {
    let Reached {
        sidecar,
        listener,
        mut client,
        mut provider,
        ..
    } = reach(GET, b"\r\n\r\n").await;
    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\ndata:1\r\n";
    provider.write_all(head).await.unwrap();
    read_until(&mut client, b"data:1").await;

    let Sidecar {
        address,
        proxy,
        journal,
        ..
    } = sidecar;
    let stopping = tokio::spawn(proxy.stop(Duration::from_secs(30), std::future::pending()));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut late = TcpStream::connect(address).await.unwrap();
    late.write_all(GET).await.unwrap();
    let (mut second, _) = listener.accept().await.unwrap();
    read_until(&mut second, b"\r\n\r\n").await;
    second
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate")
        .await
        .unwrap();
    read_until(&mut late, b"late").await;
    assert!(!stopping.is_finished());
    provider
        .write_all(b"6\r\ndata:2\r\n0\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut client, b"data:2\r\n0\r\n\r\n").await;
    stopping.await.unwrap();
    assert!(
        TcpStream::connect(address).await.is_err(),
        "it still listens"
    );
    let batch = journal.next_batch(10, usize::MAX).unwrap().unwrap();
    assert_eq!(batch.records.len(), 2);
    assert!(
        batch
            .records
            .iter()
            .all(|record| record.outcome == Outcome::Ok)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_outlasts_the_grace_period_is_recorded_as_interrupted() {
    let upstream = Upstream::start(vec![Act::Read, Act::AwaitClose]).await;
    let sidecar = Sidecar::start(upstream.address, Plain::new());
    let mut client = TcpStream::connect(sidecar.address).await.unwrap();
    client.write_all(GET).await.unwrap();
    while sidecar.proxy.under_way() == 0 {
        tokio::task::yield_now().await;
    }
    let Sidecar { proxy, journal, .. } = sidecar;
    proxy
        .stop(Duration::from_millis(100), std::future::pending())
        .await;
    let batch = journal.next_batch(10, usize::MAX).unwrap().unwrap();
    let outcomes: Vec<Outcome> = batch.records.iter().map(|record| record.outcome).collect();
    assert_eq!(outcomes, [Outcome::Interrupted]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_up_to_the_limit_passes_and_a_longer_one_does_not() {
    let config = Config {
        head_bytes_max: ByteSize::kib(16),
        ..one_thread()
    };
    let upstream = Upstream::start(vec![Act::Read, ok("a"), Act::AwaitClose]).await;
    let meter = MeterConfig::default();
    let provider = Plain::new();
    let sidecar = Sidecar::start_with(upstream.address, provider, config, meter);
    for (length, status) in [(15 << 10, 200), ((16 << 10) + 1, 431)] {
        let request = format!(
            "GET /up/x HTTP/1.1\r\nhost: a\r\nx-long: {}\r\n\r\n",
            "a".repeat(length)
        );
        assert_eq!(
            ask(sidecar.address, request.as_bytes()).await.status,
            status
        );
    }
}

/// A pooled connection, and the time that it then stays open with a request on it.
fn breaking_after(pause: Duration) -> Vec<Vec<Act>> {
    vec![
        vec![
            Act::Read,
            ok("warm"),
            Act::Read,
            Act::Pause(pause),
            Act::Close,
        ],
        vec![Act::Read, ok("again"), Act::AwaitClose],
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_the_provider_may_have_worked_on_is_not_sent_again() {
    const POST: &[u8] = b"POST /up/x HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi";
    let (at_once, later) = (Duration::ZERO, Duration::from_millis(900));
    for (request, pause, status, requests) in [
        (POST, at_once, 200, 3),
        (POST, later, 502, 2),
        // A repeated GET costs nothing.
        (GET, later, 200, 3),
    ] {
        let upstream = Upstream::start_each(breaking_after(pause)).await;
        let sidecar = Sidecar::start(upstream.address, Plain::new());
        assert_eq!(ask(sidecar.address, GET).await.status, 200);
        let case = (String::from_utf8_lossy(request), pause);
        assert_eq!(
            ask(sidecar.address, request).await.status,
            status,
            "{case:?}"
        );
        assert_eq!(upstream.requests().len(), requests, "{case:?}");
        let record = sidecar.records(2).await.remove(1);
        assert_eq!(record.outcome == Outcome::Ok, status == 200, "{case:?}");
        let retries = sidecar.sample("taffrail_upstream_retries_total{provider=\"up\"}");
        assert_eq!(
            retries,
            Some(if status == 200 { 1.0 } else { 0.0 }),
            "{case:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_expectation_leaves_no_connection_behind() {
    let request =
        b"POST /up/x HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
    let Reached {
        sidecar: _sidecar,
        mut client,
        mut provider,
        ..
    } = reach(request, b"\r\n\r\n").await;
    let refusal = b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 2\r\n\r\nno";
    provider.write_all(refusal).await.unwrap();
    read_until(&mut client, b"no").await;
    assert!(
        is_closed_soon(&mut provider).await,
        "the upstream stays open"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_in_chunks_reaches_the_provider_whatever_the_method() {
    for method in ["GET", "DELETE", "POST"] {
        let upstream = Upstream::start(vec![Act::Read, ok("ok"), Act::AwaitClose]).await;
        let sidecar = Sidecar::start(upstream.address, Plain::new());
        let request = format!(
            "{method} /up/x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n\
             5\r\nhello\r\n0\r\n\r\n"
        );
        assert_eq!(ask(sidecar.address, request.as_bytes()).await.status, 200);
        let seen = upstream.requests().remove(0);
        assert!(
            seen.ends_with(b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
            "{}",
            String::from_utf8_lossy(&seen)
        );
        assert_eq!(sidecar.records(1).await.remove(0).request_bytes, Some(5));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_of_protocols_that_nobody_asked_for_is_no_response() {
    let upstream = Upstream::start(vec![
        Act::Read,
        Act::send("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
        Act::AwaitClose,
    ])
    .await;
    let sidecar = Sidecar::start(upstream.address, Plain::new());
    let seen = ask(sidecar.address, GET).await;
    assert_eq!(seen.status, 502);
    assert_eq!(
        seen.headers["x-taffrail-error"],
        [b"invalid_response".to_vec()]
    );
    let record = sidecar.records(1).await.remove(0);
    assert_eq!(record.outcome, Outcome::UpstreamError);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_whose_code_panics_at_the_outset_changes_nothing_for_the_client() {
    let upstream = Upstream::start(vec![Act::Read, ok("fine"), Act::AwaitClose]).await;
    let sidecar = Sidecar::start(upstream.address, Plain::panicking_at_the_outset());
    let request = b"POST /up/x HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}";
    let seen = ask(sidecar.address, request).await;
    assert_eq!(
        (seen.status, seen.body, seen.ending),
        (200, b"fine".to_vec(), Ending::Complete)
    );
    let record = sidecar.records(1).await.remove(0);
    assert_eq!(
        (record.outcome, record.route.as_str()),
        (Outcome::Ok, "unknown")
    );
    // The call, its body, the headroom and the response.
    assert_eq!(sidecar.sample("taffrail_meter_panics_total"), Some(4.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_cannot_be_parsed_is_counted() {
    let sidecar = Sidecar::start("127.0.0.1:9".parse().unwrap(), Plain::new());
    let seen = ask(sidecar.address, b"GET /up/x HTTP/1.1\r\nhost\r\n\r\n").await;
    assert_eq!(seen.status, 400);
    let series = "taffrail_proxy_errors_total{reason=\"bad_request\"}";
    let counted = async {
        while sidecar.sample(series) != Some(1.0) {
            tokio::task::yield_now().await;
        }
    };
    let counted = tokio::time::timeout(Duration::from_secs(5), counted).await;
    assert!(counted.is_ok(), "not counted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_that_has_said_its_last_word_is_ok_though_its_client_leaves_or_the_process_ends()
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let openai = taffrail::provider::builtin("openai").unwrap();
    let sidecar = Sidecar::start(listener.local_addr().unwrap(), openai);
    let body = br#"{"model":"m","stream":true,"stream_options":{"include_usage":true}}"#;
    let head = format!(
        "POST /up/v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    let stream = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\"}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}\n\n\
        data: [DONE]\n\n";
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut client = TcpStream::connect(sidecar.address).await.unwrap();
        client.write_all(head.as_bytes()).await.unwrap();
        client.write_all(body).await.unwrap();
        let (mut provider, _) = listener.accept().await.unwrap();
        read_until(&mut provider, b"}}").await;
        provider.write_all(stream.as_bytes()).await.unwrap();
        read_until(&mut client, b"[DONE]").await;
        open.push((client, provider));
    }
    let (client, mut provider) = open.remove(0);
    drop(client);
    assert!(is_closed_soon(&mut provider).await);
    let Sidecar { proxy, journal, .. } = sidecar;
    proxy
        .stop(Duration::from_millis(100), std::future::pending())
        .await;
    let batch = journal.next_batch(10, usize::MAX).unwrap().unwrap();
    let outcomes: Vec<Outcome> = batch.records.iter().map(|record| record.outcome).collect();
    assert_eq!(outcomes, [Outcome::Ok, Outcome::Ok]);
}

/// A websocket through the sidecar: the client's end and the provider's.
async fn websocket(sidecar: &Sidecar, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let mut client = TcpStream::connect(sidecar.address).await.unwrap();
    let request = b"GET /up/ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\n\
        upgrade: websocket\r\nsec-websocket-key: x\r\n\r\n";
    client.write_all(request).await.unwrap();
    let (mut provider, _) = listener.accept().await.unwrap();
    read_until(&mut provider, b"\r\n\r\n").await;
    let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\n\
        upgrade: websocket\r\n\r\nHELLO";
    provider.write_all(answer).await.unwrap();
    read_until(&mut client, b"HELLO").await;
    client.write_all(b"ping").await.unwrap();
    read_until(&mut provider, b"ping").await;
    (client, provider)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_counts_as_a_connection_and_its_record_says_who_broke_it_off() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sidecar = Sidecar::start(listener.local_addr().unwrap(), Plain::new());
    let (client, _provider) = websocket(&sidecar, &listener).await;
    let connections = "taffrail_connections{listener=\"proxy\"}";
    assert_eq!(sidecar.sample(connections), Some(1.0));
    client.set_zero_linger().unwrap();
    drop(client);
    let record = sidecar.records(1).await.remove(0);
    assert_eq!(record.outcome, Outcome::ClientCancelled);

    let (_client, provider) = websocket(&sidecar, &listener).await;
    provider.set_zero_linger().unwrap();
    drop(provider);
    let record = sidecar.records(1).await.remove(0);
    assert_eq!(record.outcome, Outcome::UpstreamTruncated);
    assert_eq!(
        (record.request_bytes, record.response_bytes),
        (Some(4), Some(5))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_ends_when_both_sides_are_silent() {
    let config = Config {
        idle_timeout: Duration::from_millis(300),
        ..one_thread()
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let sidecar = Sidecar::start_with(address, Plain::new(), config, MeterConfig::default());
    let (mut client, mut provider) = websocket(&sidecar, &listener).await;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        client.write_all(b"ping").await.unwrap();
        read_until(&mut provider, b"ping").await;
    }
    assert!(
        is_closed_soon(&mut client).await,
        "the client is waited for"
    );
    assert!(
        is_closed_soon(&mut provider).await,
        "the provider is waited for"
    );
    let record = sidecar.records(1).await.remove(0);
    assert_eq!(
        (record.outcome, record.request_bytes),
        (Outcome::UpstreamTimeout, Some(44))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_end_of_the_process_cuts_off_is_recorded_with_what_was_seen() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let meter = MeterConfig {
        on_client_disconnect: OnClientDisconnect::Drain,
        ..MeterConfig::default()
    };
    let address = listener.local_addr().unwrap();
    let sidecar = Sidecar::start_with(address, Plain::new(), one_thread(), meter);
    let _websocket = websocket(&sidecar, &listener).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut client = TcpStream::connect(sidecar.address).await.unwrap();
        client.write_all(GET).await.unwrap();
        let (mut provider, _) = listener.accept().await.unwrap();
        read_until(&mut provider, b"\r\n\r\n").await;
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello";
        provider.write_all(head).await.unwrap();
        read_until(&mut client, b"hello").await;
        open.push((client, provider));
    }
    // One client has left, and its response is being read on.
    let (client, mut provider) = open.remove(0);
    drop(client);
    assert!(!is_closed_soon(&mut provider).await);
    let Sidecar { proxy, journal, .. } = sidecar;
    proxy
        .stop(Duration::from_millis(100), std::future::pending())
        .await;
    let batch = journal.next_batch(10, usize::MAX).unwrap().unwrap();
    let mut seen: Vec<(Outcome, Option<u16>, Option<u64>)> = batch
        .records
        .iter()
        .map(|record| (record.outcome, record.http_status, record.response_bytes))
        .collect();
    seen.sort_by_key(|(_, status, _)| *status);
    let interrupted = |status| (Outcome::Interrupted, Some(status), Some(5));
    assert_eq!(seen, [interrupted(101), interrupted(200), interrupted(200)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_head_comes_in_while_the_proxy_closes_has_the_grace_period_too() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sidecar = Sidecar::start(listener.local_addr().unwrap(), Plain::new());
    let address = sidecar.address;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET /up/x HTTP/1.1\r\n").await.unwrap();
    let Sidecar { proxy, journal, .. } = sidecar;
    let stopping = tokio::spawn(proxy.stop(Duration::from_secs(60), std::future::pending()));
    let closed = async { while TcpStream::connect(address).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(5), closed)
        .await
        .expect("it still listens");
    client.write_all(b"host: a\r\n\r\n").await.unwrap();
    let (mut provider, _) = listener.accept().await.unwrap();
    read_until(&mut provider, b"\r\n\r\n").await;
    // Longer than the last responses of a proxy at rest may take to leave.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(!stopping.is_finished());
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate";
    provider.write_all(answer).await.unwrap();
    read_until(&mut client, b"late").await;
    stopping.await.unwrap();
    let batch = journal.next_batch(10, usize::MAX).unwrap().unwrap();
    let outcomes: Vec<Outcome> = batch.records.iter().map(|record| record.outcome).collect();
    assert_eq!(outcomes, [Outcome::Ok]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_of_an_upload_come_last_and_nothing_of_it_is_taken_for_the_next_request() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let provider = taffrail::provider::builtin("openai").unwrap();
    let sidecar = Sidecar::start(listener.local_addr().unwrap(), provider);
    let mut client = TcpStream::connect(sidecar.address).await.unwrap();
    let mut connection = None;
    // What the splicer adds at the end is an option in the first body, and blanks in the other.
    for body in [
        r#"{"model":"gpt-4o-mini","stream":true,"messages":[]}"#,
        r#"{"model":"gpt-4o-mini","messages":[]}"#,
    ] {
        let request = format!(
            "POST /up/v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
             te: trailers\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n\
             {:x}\r\n{body}\r\n0\r\nx-sum: abc\r\n\r\n",
            body.len()
        );
        client.write_all(request.as_bytes()).await.unwrap();
        let provider = match &mut connection {
            Some(connection) => connection,
            None => connection.insert(listener.accept().await.unwrap().0),
        };
        let seen = read_until(provider, b"0\r\nx-sum: abc\r\n\r\n").await;
        let seen = String::from_utf8(seen).unwrap();
        assert!(seen.starts_with("POST /v1/chat/completions "), "{seen}");
        assert!(seen.ends_with("\r\n0\r\nx-sum: abc\r\n\r\n"), "{seen}");
        let is_stream = body.contains("stream");
        assert_eq!(seen.contains("include_usage"), is_stream, "{seen}");
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        provider.write_all(answer).await.unwrap();
        let answered = read_response(&mut client, &mut Vec::new(), false).await;
        assert_eq!((answered.status, &answered.body[..]), (200, &b"{}"[..]));
    }
}
