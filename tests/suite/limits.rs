//! What a sidecar may cost: writes for events, memory for streams and for bodies of any size,
//! and descriptors. Through the real binary; the counts and bounds hold on any machine.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use taffrail::store::LogRow;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::binary::{Home, Server, eventually, is_long};
use crate::support::bulk::{Bulk, Document, Framing};
use crate::support::chat::{Ask, Chat};
use crate::support::http::{Ending, read_response};
use crate::support::memory::Memory;
use crate::support::trace::Trace;
use crate::support::upstream::{Act, Upstream, find};

/// How much a body of any size may add to the memory of the process.
const BODY_GROWTH_MAX: u64 = 4 << 20;

/// How much a large event or a response that is to be decoded may add.
const EVENT_GROWTH_MAX: u64 = 8 << 20;

/// How much an open stream may hold, in a build that is not optimised.
const STREAM_BYTES_MAX: u64 = 128 << 10;

/// How many sockets a server has open, those that listen included.
fn sockets(server: &Server) -> usize {
    let path = format!("/proc/{}/fd", server.process.id());
    std::fs::read_dir(path)
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .count()
}

/// The soft limit of open files of a process.
fn soft_limit(id: u32) -> u64 {
    let limits = std::fs::read_to_string(format!("/proc/{id}/limits")).unwrap();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.unwrap().split_whitespace().next().unwrap();
    soft.parse().unwrap()
}

/// A column of all rows, which there must be as many of.
async fn column(home: &Home, server: &Server, name: &str, count: usize) -> Vec<String> {
    server.quiet().await;
    let rows = home.rows().await;
    assert_eq!(rows.len(), count);
    let text = |row: &LogRow| row.get(name).as_text().unwrap_or_default().to_owned();
    rows.iter().map(text).collect()
}

/// Some 275 bytes of stream, as chat providers send them.
fn event(number: usize) -> Vec<u8> {
    let padding = "x".repeat(60);
    format!(
        "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\
         \"model\":\"gpt-4o-mini\",\"system_fingerprint\":\"fp_1\",\"choices\":[{{\"index\":0,\
         \"delta\":{{\"content\":\"{number:03} {padding}\"}},\"finish_reason\":null}}]}}\n\n"
    )
    .into_bytes()
}

fn chunk(data: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}

const STREAM_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
    transfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n";
const STREAM_END: &[u8] = b"0\r\nx-sum: 7\r\n\r\n";

/// Asks for a stream; the body asks for usage itself, so that nothing is added or removed.
fn stream_request() -> Vec<u8> {
    let body = r#"{"model":"gpt-4o-mini","stream":true,"stream_options":{"include_usage":true}}"#;
    format!(
        "POST /openai/v1/chat/completions HTTP/1.1\r\nhost: a\r\nte: trailers\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Reads until what was read ends with that.
async fn read_to(stream: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while !seen.ends_with(end) {
        let read = tokio::time::timeout(Duration::from_secs(30), stream.read(&mut buffer)).await;
        let read = read.expect("nothing comes").unwrap();
        assert!(
            read > 0,
            "closed after {:?}",
            String::from_utf8_lossy(&seen)
        );
        seen.extend_from_slice(&buffer[..read]);
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_come_together_leave_together() {
    const EVENTS: usize = 100;
    const WRITES_MAX: usize = 10;
    let events: Vec<Vec<u8>> = (0..EVENTS).map(event).collect();
    let burst: Vec<u8> = events.iter().flat_map(|event| chunk(event)).collect();
    let whole = Act::Send([STREAM_HEAD, &burst, STREAM_END].concat());
    let broken = Act::Send([STREAM_HEAD, &burst].concat());
    let script = vec![
        Act::Read,
        whole.clone(),
        Act::Read,
        whole,
        Act::Read,
        broken,
        Act::Close,
    ];
    let upstream = Upstream::start(script).await;
    let home = Home::new(upstream.address);
    let server = home.start().await;
    let mut client = TcpStream::connect(server.proxy).await.unwrap();
    let port = client.local_addr().unwrap().port();
    let mut pending = Vec::new();

    // The first response opens the connection to the provider.
    client.write_all(&stream_request()).await.unwrap();
    let first = read_response(&mut client, &mut pending, false).await;
    for ending in [Ending::Complete, Ending::Truncated] {
        let Some(trace) = Trace::attach("events_that_come_together_leave_together", &server).await
        else {
            return;
        };
        client.write_all(&stream_request()).await.unwrap();
        let seen = read_response(&mut client, &mut pending, false).await;
        let writes = trace.writes_to(port).await;
        assert_eq!(seen.ending, ending);
        assert_eq!(seen.body, events.concat());
        if ending == Ending::Complete {
            assert_eq!(seen, first);
            assert_eq!(seen.trailers["x-sum"], b"7");
        }
        assert!(
            (1..=WRITES_MAX).contains(&writes),
            "{writes} writes, {ending:?}"
        );
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_comes_alone_leaves_at_once_in_one_write() {
    const EVENTS: usize = 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let home = Home::new(listener.local_addr().unwrap());
    let server = home.start().await;
    let mut client = TcpStream::connect(server.proxy).await.unwrap();
    let port = client.local_addr().unwrap().port();
    let name = "an_event_that_comes_alone_leaves_at_once_in_one_write";
    let Some(trace) = Trace::attach(name, &server).await else {
        return;
    };
    client.write_all(&stream_request()).await.unwrap();
    let (mut provider, _) = listener.accept().await.unwrap();
    provider.set_nodelay(true).unwrap();
    read_to(&mut provider, b"}}").await;

    provider.write_all(STREAM_HEAD).await.unwrap();
    read_to(&mut client, b"\r\n\r\n").await;
    for number in 0..EVENTS {
        // The next one is sent only after this one has come.
        let chunk = chunk(&event(number));
        provider.write_all(&chunk).await.unwrap();
        let seen = read_to(&mut client, b"\r\n").await;
        assert!(find(&seen, &event(number)).is_some(), "{number}");
    }
    provider.write_all(STREAM_END).await.unwrap();
    assert_eq!(read_to(&mut client, b"\r\n\r\n").await, STREAM_END);
    // One for the head, one for each event, one for the end.
    assert_eq!(trace.writes_to(port).await, 1 + EVENTS + 1);
    drop(provider);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_slow_streams_all_end_well() {
    const STREAMS: u64 = 1000;
    const WARM_UP: u64 = 100;
    taffrail::proxy::descriptors::provide(4000).unwrap();
    let upstream = Chat::start().await;
    let mut home = Home::new(upstream.address);
    // Twice as many sockets are needed; an idle connection to the provider is no stream's.
    home.wrap(&["prlimit", "--nofile=1024:"]);
    home.set("PROXY__POOL_IDLE_MAX", "0");
    let server = home.start().await;
    let memory = Memory::of(&server);
    let baseline = sockets(&server);

    let ask = |number, pace, is_held| Ask {
        events: 6,
        pace: Duration::from_millis(pace),
        is_held,
        asks_usage: number % 2 == 0,
        ..Ask::plain(number)
    };
    // A hundred streams warm up what is shared.
    let warm_up = (0..WARM_UP).map(async |number| {
        let mut client = open(server.proxy, ask(number, 10, false)).await;
        finish(&mut client).await
    });
    let ends = futures_util::future::join_all(warm_up).await;
    assert!(ends.iter().all(|end| *end == Ending::Complete));
    server.quiet().await;
    let idle = memory.resident();

    let clients =
        (WARM_UP..WARM_UP + STREAMS).map(|number| open(server.proxy, ask(number, 400, true)));
    let mut clients = futures_util::future::join_all(clients).await;
    // Every stream has its head and its first event, and waits.
    let held = memory.resident().saturating_sub(idle) / STREAMS;
    eprintln!("{held} bytes for each of {STREAMS} open streams, {idle} bytes before");
    assert_eq!(
        server
            .scrape()
            .await
            .sum("taffrail_requests_in_flight", &[]),
        STREAMS
    );
    assert!(held < STREAM_BYTES_MAX, "{held} bytes a stream");

    upstream.release();
    let ends = futures_util::future::join_all(clients.iter_mut().map(finish)).await;
    assert!(ends.iter().all(|end| *end == Ending::Complete));
    drop(clients);
    let count = usize::try_from(WARM_UP + STREAMS).unwrap();
    let outcomes = column(&home, &server, "outcome", count).await;
    assert_eq!(outcomes, vec!["ok"; count]);
    eventually("the sockets are closed", async || {
        sockets(&server) <= baseline
    })
    .await;
    server.stop().await;
}

/// A client with an open stream, and what has come of it.
type Client = (TcpStream, Vec<u8>);

/// Sends a request and waits for the first event.
async fn open(proxy: SocketAddr, ask: Ask) -> Client {
    let mut client = TcpStream::connect(proxy).await.unwrap();
    client.write_all(&ask.request()).await.unwrap();
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while find(&seen, b"\ndata: ").is_none() {
        let read = client.read(&mut buffer).await.unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..read]);
    }
    (client, seen)
}

/// Reads the stream to its end.
async fn finish((client, seen): &mut Client) -> Ending {
    read_response(client, seen, false).await.ending
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn descriptors_are_raised_as_far_as_connections_need() {
    let mut home = Home::without_provider();
    home.wrap(&["prlimit", "--nofile=256:"]);
    home.set("PROXY__CONNECTIONS_MAX", "100");
    let server = home.start().await;
    assert_eq!(soft_limit(server.process.id()), 712);
    let log = server.stop().await;
    assert!(!log.contains("open files"), "{log}");

    home.wrap(&["prlimit", "--nofile=256:300"]);
    let server = home.start().await;
    assert_eq!(soft_limit(server.process.id()), 300);
    let log = server.stop().await;
    assert!(log.contains("fewer open files"), "{log}");
}

/// A prompt, which is read in full for the model that stands behind it.
const PROMPT: Document = Document {
    head: r#"{"messages":[{"role":"user","content":""#,
    tail: r#""}],"model":"gpt-4o-mini"}"#,
    filler: 0,
};

/// An image, with the usage behind it.
const IMAGE: Document = Document {
    head: r#"{"created":1,"data":[{"b64_json":""#,
    tail: r#""}],"usage":{"input_tokens":10,"output_tokens":20,"total_tokens":30}}"#,
    filler: 0,
};

/// One event, and the usage behind it.
const EVENT: Document = Document {
    head: "data: {\"model\":\"gpt-4o-mini\",\"choices\":[{\"delta\":{\"content\":\"",
    tail: "\"},\"finish_reason\":\"stop\"}]}\n\ndata: {\"choices\":[],\"usage\":\
           {\"prompt_tokens\":10,\"completion_tokens\":20}}\n\ndata: [DONE]\n\n",
    filler: 0,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_any_size_adds_no_memory() {
    let bytes = if is_long() { 1 << 30 } else { 128 << 20 };
    let bulk = Bulk::start().await;
    let mut home = Home::new(bulk.address);
    // So that the provider gets what the client sends, to the byte.
    home.set("METER__USAGE_INJECTION", "false");
    let server = home.start().await;
    let memory = Memory::of(&server);
    let (prompt, image) = (PROMPT.filled(bytes), IMAGE.filled(bytes));
    for framing in [Framing::Length, Framing::Chunked] {
        let upload = async || {
            let sent = bulk.upload(server.proxy, prompt, framing).await;
            assert_eq!(sent, prompt.print());
        };
        upload().await;
        let growth = memory.growth(upload()).await;
        eprintln!("upload, {framing:?}: {growth} bytes");
        assert!(growth <= BODY_GROWTH_MAX, "{growth} bytes, {framing:?}");

        let download = async || {
            let came = bulk
                .download(server.proxy, "images/generations", image, framing)
                .await;
            assert_eq!(came, image.print());
        };
        download().await;
        let growth = memory.growth(download()).await;
        eprintln!("download, {framing:?}: {growth} bytes");
        assert!(growth <= BODY_GROWTH_MAX, "{growth} bytes, {framing:?}");
    }
    let fidelities = column(&home, &server, "fidelity", 8).await;
    assert_eq!(fidelities, ["complete"; 8]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_of_fifty_megabytes_adds_no_memory_and_is_metered() {
    let bulk = Bulk::start().await;
    let home = Home::new(bulk.address);
    let server = home.start().await;
    let memory = Memory::of(&server);
    let event = EVENT.filled(50_000_000);
    let download = async || {
        let came = bulk
            .download(server.proxy, "chat/completions", event, Framing::Chunked)
            .await;
        assert_eq!(came, event.print());
    };
    download().await;
    let growth = memory.growth(download()).await;
    eprintln!("event: {growth} bytes");
    assert!(growth <= EVENT_GROWTH_MAX, "{growth} bytes");
    let fidelities = column(&home, &server, "fidelity", 2).await;
    assert_eq!(fidelities, ["complete"; 2]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_that_explodes_when_decoded_passes_as_it_is() {
    let bulk = Bulk::start().await;
    let home = Home::new(bulk.address);
    let server = home.start().await;
    let memory = Memory::of(&server);
    let image = IMAGE.filled(256 << 20);
    for coding in ["gzip", "br", "zstd"] {
        let bomb = Bytes::from(image.encoded(coding));
        let download = async || {
            let came = bulk.download_encoded(server.proxy, coding, &bomb).await;
            assert!(came == bomb, "{coding}");
        };
        download().await;
        let growth = memory.growth(download()).await;
        eprintln!("{coding}: {growth} bytes for {} bytes", bomb.len());
        assert!(growth <= EVENT_GROWTH_MAX, "{growth} bytes, {coding}");
    }
    let fidelities = column(&home, &server, "fidelity", 6).await;
    assert_eq!(fidelities, ["undecodable"; 6]);
    server.stop().await;
}
