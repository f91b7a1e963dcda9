//! The admin listener, spoken to over real connections.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use taffrail::admin::{self, Action, ActionResult, CONNECTIONS_MAX, State};
use taffrail::metrics::exposition::Format;
use taffrail::metrics::{Config, Metrics};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::exposition::{chat, has_tool};

/// A listener under test.
struct Admin {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    ready: Arc<AtomicBool>,
    shutdown: CancellationToken,
    served: JoinHandle<()>,
}

/// An answer: status, headers with names in lower case, body.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> serde_json::Value {
        assert_eq!(self.headers["content-type"], "application/json");
        serde_json::from_slice(&self.body).unwrap()
    }
}

async fn start(change: impl FnOnce(&mut State)) -> Admin {
    start_on("127.0.0.1:0", change).await
}

async fn start_on(listen: &str, change: impl FnOnce(&mut State)) -> Admin {
    let metrics = Arc::new(Metrics::new(&Config::default(), &[], &["openai"]));
    metrics.observe(&chat("openai", "gpt-4o-mini"));
    let ready = Arc::new(AtomicBool::new(true));
    let mut state = State {
        metrics: Arc::clone(&metrics),
        ready: Arc::clone(&ready),
        info: Arc::new(|| vec![("store".to_owned(), "<sqlite>".to_owned())]),
        sync: None,
        reload: None,
        token_file: None,
    };
    change(&mut state);
    let listener = TcpListener::bind(listen).await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let served = tokio::spawn(admin::serve(listener, state, shutdown.clone()));
    Admin {
        address,
        metrics,
        ready,
        shutdown,
        served,
    }
}

impl Admin {
    /// Sends a head, and a body, on a connection of its own and reads the answer to its end.
    async fn send(&self, head: &str, body: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("{head}\r\nhost: admin\r\nconnection: close\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        parse(&bytes)
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(&format!("GET {path} HTTP/1.1"), "").await
    }

    async fn post(&self, path: &str, headers: &str) -> Answer {
        let head = format!("POST {path} HTTP/1.1\r\ncontent-length: 0{headers}");
        self.send(&head, "").await
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.served.await.unwrap();
    }
}

fn parse(bytes: &[u8]) -> Answer {
    let end = bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    let headers = lines.map(|line| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_ascii_lowercase(), value.to_owned())
    });
    Answer {
        status: status.parse().unwrap(),
        headers: headers.collect(),
        body: bytes[end + 4..].to_vec(),
    }
}

/// An action that counts its runs and answers with its query.
fn counted(runs: &Arc<AtomicUsize>, succeeded: bool) -> Action {
    let runs = Arc::clone(runs);
    Arc::new(move |query| {
        let runs = Arc::clone(&runs);
        Box::pin(async move {
            runs.fetch_add(1, Ordering::SeqCst);
            ActionResult {
                succeeded,
                body: json!({ "query": query }),
            }
        })
    })
}

#[tokio::test]
async fn the_landing_page_links_what_there_is() {
    let runs = Arc::default();
    let admin = start(|state| state.sync = Some(counted(&runs, true))).await;
    let page = admin.get("/").await;
    assert_eq!(page.status, 200);
    assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
    let text = page.text();
    for part in [
        "<a href=\"/metrics\">/metrics</a>",
        "<a href=\"/-/ready\">/-/ready</a>",
        "<li>POST /-/sync</li>",
        env!("CARGO_PKG_VERSION"),
        "<td>&lt;sqlite&gt;</td>",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("/-/reload"));
    admin.stop().await;
}

#[tokio::test]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let admin = start(|_| {}).await;
    let protobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
    for (accept, format) in [
        ("text/plain", Format::Text),
        (
            "application/openmetrics-text; version=1.0.0",
            Format::OpenMetrics,
        ),
        (protobuf, Format::Protobuf),
    ] {
        let answer = admin
            .send(
                &format!("GET /metrics?x=1 HTTP/1.1\r\naccept: {accept}"),
                "",
            )
            .await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers["content-type"], format.content_type());
        assert_eq!(answer.headers["vary"], "accept, accept-encoding");
        // The connection that asks is counted in the answer, and is open no more here.
        let connection = admin.metrics.connection(taffrail::metrics::Listener::Admin);
        let expected = admin.metrics.encode(format, taffrail::clock::instant());
        drop(connection);
        assert_eq!(answer.body, expected, "{format:?}");
    }
    // Two header lines are one list.
    let two =
        "GET /metrics HTTP/1.1\r\naccept: text/plain;q=0.5\r\naccept: application/openmetrics-text";
    let content_type = &admin.send(two, "").await.headers["content-type"];
    assert_eq!(content_type, Format::OpenMetrics.content_type());
    admin.stop().await;
}

#[tokio::test]
async fn metrics_are_compressed_where_that_is_accepted() {
    let admin = start(|_| {}).await;
    let plain = admin.get("/metrics").await;
    assert_eq!(plain.headers.get("content-encoding"), None);
    let gzip = "GET /metrics HTTP/1.1\r\naccept-encoding: br, gzip;q=0.5";
    let compressed = admin.send(gzip, "").await;
    assert_eq!(compressed.headers["content-encoding"], "gzip");
    assert!(compressed.body.len() * 5 < plain.body.len());
    let mut text = String::new();
    let mut decoder = flate2::read::GzDecoder::new(&compressed.body[..]);
    decoder.read_to_string(&mut text).unwrap();
    assert_eq!(text, plain.text());
    admin.stop().await;
}

#[tokio::test]
async fn readiness_follows_the_proxy_and_health_does_not() {
    let admin = start(|_| {}).await;
    for is_ready in [false, true] {
        admin.ready.store(is_ready, Ordering::SeqCst);
        let (ready, healthy) = (admin.get("/-/ready").await, admin.get("/-/healthy").await);
        let expected = if is_ready {
            (200, "ready\n")
        } else {
            (503, "starting\n")
        };
        assert_eq!((ready.status, ready.text()), expected);
        assert_eq!((healthy.status, healthy.text()), (200, "healthy\n"));
    }
    admin.stop().await;
}

#[tokio::test]
async fn head_is_get_without_a_body() {
    let admin = start(|_| {}).await;
    for path in ["/", "/metrics", "/-/healthy", "/-/ready"] {
        let get = admin.get(path).await;
        let head = admin.send(&format!("HEAD {path} HTTP/1.1"), "").await;
        assert_eq!((head.status, head.body.len()), (get.status, 0), "{path}");
        let length = get.body.len().to_string();
        assert_eq!(head.headers["content-length"], length, "{path}");
    }
    admin.stop().await;
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let runs = Arc::default();
    let admin = start(|state| state.sync = Some(counted(&runs, true))).await;
    let expected = json!({
        "error": "not found",
        "endpoints": ["GET /", "GET /metrics", "GET /-/healthy", "GET /-/ready", "POST /-/sync"],
    });
    for path in ["/favicon.ico", "/metrics/", "//", "/-/reload", "/-/sync/"] {
        let answer = admin.get(path).await;
        assert_eq!(
            (answer.status, answer.json()),
            (404, expected.clone()),
            "{path}"
        );
    }
    for (path, allow) in [
        ("/", "GET, HEAD"),
        ("/metrics", "GET, HEAD"),
        ("/-/healthy", "GET, HEAD"),
        ("/-/ready", "GET, HEAD"),
    ] {
        let answer = admin.post(path, "").await;
        assert_eq!(answer.status, 405, "{path}");
        assert_eq!(answer.headers["allow"], allow, "{path}");
    }
    let answer = admin.get("/-/sync").await;
    assert_eq!(
        (answer.status, answer.headers["allow"].as_str()),
        (405, "POST")
    );
    assert_eq!(runs.load(Ordering::SeqCst), 0);
    admin.stop().await;
}

#[tokio::test]
async fn a_caller_on_loopback_may_act() {
    let (synced, reloaded) = (Arc::default(), Arc::default());
    let admin = start(|state| {
        state.sync = Some(counted(&synced, true));
        state.reload = Some(counted(&reloaded, false));
    })
    .await;
    let sync = admin.post("/-/sync?provider=fal", "").await;
    assert_eq!(
        (sync.status, sync.json()),
        (200, json!({ "query": "provider=fal" }))
    );
    let reload = admin.post("/-/reload", "").await;
    assert_eq!(
        (reload.status, reload.json()),
        (500, json!({ "query": null }))
    );
    let runs = (
        synced.load(Ordering::SeqCst),
        reloaded.load(Ordering::SeqCst),
    );
    assert_eq!(runs, (1, 1));
    admin.stop().await;
}

#[tokio::test]
async fn what_a_page_or_a_proxy_sends_is_not_from_loopback() {
    let runs = Arc::default();
    let admin = start(|state| state.sync = Some(counted(&runs, true))).await;
    for headers in [
        "\r\norigin: http://evil.example",
        "\r\nx-forwarded-for: 127.0.0.1",
        "\r\nforwarded: for=127.0.0.1",
    ] {
        assert_eq!(
            admin.post("/-/sync", headers).await.status,
            403,
            "{headers}"
        );
    }
    assert_eq!(runs.load(Ordering::SeqCst), 0);
    admin.stop().await;
}

fn token_file(token: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, token).unwrap();
    (dir, file)
}

#[tokio::test]
async fn other_callers_need_the_token() {
    let (_dir, file) = token_file("correct-horse\n");
    let runs = Arc::default();
    let admin = start(|state| {
        state.sync = Some(counted(&runs, true));
        state.token_file = Some(file.clone());
    })
    .await;
    // To the listener this caller is not local, as one that comes through a proxy.
    let post = async |authorization: &str| {
        let headers = format!("\r\nx-forwarded-for: 10.0.0.1{authorization}");
        let answer = admin.post("/-/sync", &headers).await;
        (
            answer.status,
            answer.headers.get("www-authenticate").cloned(),
        )
    };
    let challenged = (401, Some("Bearer".to_owned()));
    assert_eq!(post("").await, challenged);
    assert_eq!(
        post("\r\nauthorization: Bearer wrong-horse").await,
        challenged
    );
    assert_eq!(
        post("\r\nauthorization: Basic correct-horse").await,
        challenged
    );
    assert_eq!(post("\r\nauthorization: Bearer").await, challenged);
    assert_eq!(runs.load(Ordering::SeqCst), 0);
    assert_eq!(
        post("\r\nauthorization: Bearer correct-horse").await,
        (200, None)
    );

    std::fs::write(&file, "rotated").unwrap();
    assert_eq!(
        post("\r\nauthorization: Bearer correct-horse").await,
        challenged
    );
    assert_eq!(post("\r\nauthorization: bearer rotated").await, (200, None));

    // An empty or unreadable file lets nobody in.
    std::fs::write(&file, "\n").unwrap();
    assert_eq!(post("\r\nauthorization: Bearer ").await, (403, None));
    std::fs::remove_file(&file).unwrap();
    assert_eq!(post("\r\nauthorization: Bearer rotated").await, (403, None));
    assert_eq!(runs.load(Ordering::SeqCst), 2);
    admin.stop().await;
}

#[tokio::test]
async fn a_mesh_address_of_the_loopback_range_needs_the_token() {
    let runs = Arc::default();
    let admin = start_on("127.0.0.1:0", |state| {
        state.sync = Some(counted(&runs, true))
    })
    .await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.6:0".parse().unwrap()).unwrap();
    let mut stream = socket.connect(admin.address).await.unwrap();
    let request =
        "POST /-/sync HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(parse(&bytes).status, 403);
    assert_eq!(runs.load(Ordering::SeqCst), 0);
    admin.stop().await;
}

#[tokio::test]
async fn heads_and_bodies_are_bounded() {
    let runs = Arc::default();
    let admin = start(|state| state.sync = Some(counted(&runs, true))).await;
    let long = "x".repeat(admin::HEADER_BYTES_MAX);
    assert_eq!(admin.get(&format!("/{long}")).await.status, 431);

    let body = "x".repeat(admin::BODY_BYTES_MAX + 1);
    let head = format!("POST /-/sync HTTP/1.1\r\ncontent-length: {}", body.len());
    assert_eq!(admin.send(&head, &body).await.status, 413);
    let chunked = "POST /-/sync HTTP/1.1\r\ntransfer-encoding: chunked";
    let chunks = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    assert_eq!(admin.send(chunked, &chunks).await.status, 413);
    assert_eq!(runs.load(Ordering::SeqCst), 0);

    let body = "x".repeat(admin::BODY_BYTES_MAX);
    let head = format!("POST /-/sync HTTP/1.1\r\ncontent-length: {}", body.len());
    assert_eq!(admin.send(&head, &body).await.status, 200);
    admin.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_nothing_is_let_go() {
    let admin = start(|_| {}).await;
    let started = tokio::time::Instant::now();
    let mut stream = TcpStream::connect(admin.address).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n")
        .await
        .unwrap();
    let mut bytes = Vec::new();
    // However the connection ends: what counts is that it does.
    drop(stream.read_to_end(&mut bytes).await);
    assert!(started.elapsed() >= admin::HEADER_TIMEOUT);
    assert!(started.elapsed() < admin::HEADER_TIMEOUT * 2);
    admin.stop().await;
}

#[tokio::test]
async fn one_connection_too_many_is_refused_and_counted() {
    let admin = start(|_| {}).await;
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut stream = BufReader::new(TcpStream::connect(admin.address).await.unwrap());
        // An answered request shows that the connection was accepted.
        stream
            .write_all(b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        assert_eq!(line, "HTTP/1.1 200 OK\r\n");
        open.push(stream);
    }
    let counts = || {
        let now = taffrail::clock::instant();
        let text = String::from_utf8(admin.metrics.encode(Format::Text, now)).unwrap();
        let value = |name: &str| {
            let series = format!("{name}{{listener=\"admin\"}} ");
            let mut lines = text.lines();
            lines
                .find_map(|line| line.strip_prefix(&series))
                .map(str::to_owned)
                .unwrap()
        };
        [
            value("taffrail_connections"),
            value("taffrail_connections_refused_total"),
        ]
    };
    assert_eq!(counts(), [CONNECTIONS_MAX.to_string(), "0".to_owned()]);
    let mut refused = TcpStream::connect(admin.address).await.unwrap();
    let mut bytes = Vec::new();
    assert_eq!(refused.read_to_end(&mut bytes).await.unwrap(), 0);
    assert_eq!(counts(), [CONNECTIONS_MAX.to_string(), "1".to_owned()]);
    drop(open);
    admin.stop().await;
}

#[tokio::test]
async fn an_action_runs_to_its_end_though_its_caller_left() {
    let (started, mut wait_for_start) = tokio::sync::mpsc::channel::<()>(1);
    let (finish, wait_for_finish) = tokio::sync::oneshot::channel::<()>();
    let (done, wait_for_done) = tokio::sync::oneshot::channel::<()>();
    let parts = Arc::new(std::sync::Mutex::new(Some((wait_for_finish, done))));
    let admin = start(|state| {
        state.reload = Some(Arc::new(move |_| {
            let (finish, done) = parts.lock().unwrap().take().unwrap();
            let started = started.clone();
            Box::pin(async move {
                started.send(()).await.unwrap();
                finish.await.unwrap();
                done.send(()).unwrap();
                ActionResult {
                    succeeded: true,
                    body: json!({}),
                }
            })
        }));
    })
    .await;
    let mut stream = TcpStream::connect(admin.address).await.unwrap();
    let request = b"POST /-/reload HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";
    stream.write_all(request).await.unwrap();
    wait_for_start.recv().await.unwrap();
    drop(stream);
    admin.stop().await;
    finish.send(()).unwrap();
    wait_for_done.await.unwrap();
}

#[test]
fn the_configuration_has_a_default_and_refuses_unknown_keys() {
    let read = |text: &str| serde_json::from_str::<admin::Config>(text);
    assert_eq!(read("{}").unwrap(), admin::Config::default());
    assert_eq!(
        admin::Config::default().listen,
        "0.0.0.0:10480".parse().unwrap()
    );
    let config = read(r#"{"listen": "[::1]:1", "token_file": "/t"}"#).unwrap();
    assert_eq!(config.listen, "[::1]:1".parse().unwrap());
    assert_eq!(config.token_file.as_deref(), Some(Path::new("/t")));
    assert!(read(r#"{"listn": "[::1]:1"}"#).is_err());
}

/// A Prometheus that is killed when the test ends.
struct Prometheus {
    process: Child,
    address: String,
    _dir: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Prometheus {
    /// Starts a server that scrapes `target`.
    async fn start(target: SocketAddr, options: &[&str]) -> Prometheus {
        let dir = tempfile::tempdir().unwrap();
        let config = format!(
            "global: {{scrape_interval: 250ms, scrape_timeout: 250ms}}\n\
             scrape_configs: [{{job_name: taffrail, static_configs: [{{targets: ['{target}']}}]}}]\n"
        );
        let file = dir.path().join("prometheus.yaml");
        std::fs::write(&file, config).unwrap();
        let data = dir.path().join("data");
        let mut process = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", data.display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .args(options)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = process.stderr.take().unwrap();
        // The log names the port that the system chose; reading on keeps the pipe from filling up.
        let (send, receive) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let mut send = Some(send);
            for line in std::io::BufRead::lines(std::io::BufReader::new(stderr)) {
                let line = line.unwrap_or_default();
                if let Some((_, address)) = line.split_once("msg=\"Listening on\" address=")
                    && let Some(send) = send.take()
                {
                    drop(send.send(address.to_owned()));
                }
            }
        });
        Prometheus {
            process,
            address: receive.await.unwrap(),
            _dir: dir,
        }
    }

    async fn query(&self, path: &str) -> serde_json::Value {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        let request = format!("GET /api/v1/{path} HTTP/1.0\r\nhost: prometheus\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        serde_json::from_slice(&parse(&bytes).body).unwrap_or_default()
    }

    /// The series of the metrics under test, once a scrape has succeeded: name and labels.
    async fn series(&self) -> Vec<BTreeMap<String, String>> {
        let up = until(async || {
            let up = self.query("query?query=up").await;
            (up["data"]["result"][0]["value"][1] == "1").then_some(())
        });
        up.await;
        let found = self.query("series?match[]={job=\"taffrail\"}").await;
        let mut series: Vec<BTreeMap<String, String>> =
            serde_json::from_value(found["data"].clone()).unwrap();
        series.retain(|labels| {
            let name = &labels["__name__"];
            name.starts_with("taffrail_") || name.starts_with("process_")
        });
        series.sort();
        series
    }
}

/// Asks again until there is an answer; another process cannot be waited for in any other way.
async fn until<T>(ask: impl AsyncFn() -> Option<T>) -> T {
    let asked = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, asked)
        .await
        .expect("Prometheus scraped nothing in time")
}

/// The server asks for OpenMetrics by itself, and for protobuf with native histograms enabled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_prometheus_sees_the_same_series_in_text_and_protobuf() {
    if !has_tool("prometheus") {
        return;
    }
    let admin = start(|_| {}).await;
    let (text, protobuf) = tokio::join!(
        Prometheus::start(admin.address, &[]),
        Prometheus::start(admin.address, &["--enable-feature=native-histograms"]),
    );
    let (text_series, protobuf_series) = tokio::join!(text.series(), protobuf.series());
    assert!(text_series.len() > 100, "{}", text_series.len());
    let normal = |series: &[BTreeMap<String, String>]| {
        let mut series = series.to_vec();
        for labels in &mut series {
            labels.remove("instance");
        }
        series
    };
    assert_eq!(normal(&text_series), normal(&protobuf_series));
    let query = "query?query=taffrail_cost_usd_total";
    for prometheus in [&text, &protobuf] {
        let cost = prometheus.query(query).await;
        assert_eq!(cost["data"]["result"][0]["value"][1], "0.000123");
    }
    drop((text, protobuf));
    admin.stop().await;
}
