//! The admin listener: metrics, probes, a landing page, and the two actions that change state.
//!
//! Requests come in from Prometheus, the kubelet and people; answers go out and nothing else
//! happens, but for `POST /-/sync` and `POST /-/reload`, which run what the wiring passed in and
//! need the token of [`Config::token_file`] from everywhere but loopback. The listener serves no
//! configuration, no rows and no secrets. Readiness says that the proxy listens and never looks
//! at the store, so that a database that is down takes no pod out of service.
//!
//! Every connection, head, body and wait is bounded by a constant below.

use std::convert::Infallible;
use std::future::Future;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use sha2::Sha256;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::metrics::exposition::{Format, accepts_gzip};
use crate::metrics::{Listener, Metrics};

/// How many connections are open at a time; one more is closed at once and counted in
/// `taffrail_connections_refused_total{listener="admin"}`.
pub const CONNECTIONS_MAX: usize = 64;
/// How long a client may take to send the head of a request, idle time before it included.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest head of a request; a longer one is answered with 431.
pub const HEADER_BYTES_MAX: usize = 16 * 1024;
/// The longest body of a request, all of which is ignored; a longer one is answered with 413.
pub const BODY_BYTES_MAX: usize = 16 * 1024;
/// How long a client may take to send a body; a slower one is answered with 408.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may last, which bounds what a client that reads slowly can hold.
pub const CONNECTION_AGE_MAX: Duration = Duration::from_secs(600);
/// How long a connection may go on after its age or a shutdown has ended it.
pub const LINGER_MAX: Duration = Duration::from_secs(5);
/// How many scrapes are rendered at a time; further ones wait.
pub const SCRAPES_MAX: usize = 2;
/// The shortest answer that is compressed.
const GZIP_BYTES_MIN: usize = 1024;
/// The pause after an accept that failed, as it does when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The admin listener.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address and port of metrics, probes and the landing page.
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// File with the bearer token that `POST /-/sync` and `POST /-/reload` need when the caller is
    /// not on loopback; without it they are refused to such callers. It is read at each such
    /// request, so that it can be rotated.
    pub token_file: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 10_480)),
            token_file: None,
        }
    }
}

/// How an action ended.
#[derive(Debug, Clone, PartialEq)]
pub struct ActionResult {
    /// Whether it did what it should: 200, otherwise 500.
    pub succeeded: bool,
    /// The JSON body of the answer.
    pub body: serde_json::Value,
}

/// Something that a `POST` starts. It is given the query of the request, and runs to its end even
/// if the caller goes away.
pub type Action =
    Arc<dyn Fn(Option<String>) -> Pin<Box<dyn Future<Output = ActionResult> + Send>> + Send + Sync>;

/// Lines for the landing page: a name and a value each.
pub type Info = Arc<dyn Fn() -> Vec<(String, String)> + Send + Sync>;

/// What the listener serves.
#[derive(Clone)]
pub struct State {
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Whether the proxy listens.
    pub ready: Arc<AtomicBool>,
    /// The state that the landing page shows, none of it secret.
    pub info: Info,
    /// `POST /-/sync`; without it the endpoint does not exist.
    pub sync: Option<Action>,
    /// `POST /-/reload`; without it the endpoint does not exist.
    pub reload: Option<Action>,
    /// [`Config::token_file`].
    pub token_file: Option<PathBuf>,
}

struct Server {
    state: State,
    scrapes: Semaphore,
}

/// Serves `state` on `listener` until `shutdown` is cancelled and the open connections have ended,
/// which they must within [`LINGER_MAX`].
pub async fn serve(listener: TcpListener, state: State, shutdown: CancellationToken) {
    let server = Arc::new(Server {
        state,
        scrapes: Semaphore::new(SCRAPES_MAX),
    });
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok(_) if connections.len() >= CONNECTIONS_MAX => {
                server.state.metrics.connection_refused(Listener::Admin);
            }
            Ok((stream, peer)) => {
                let server = Arc::clone(&server);
                connections.spawn(server.connection(stream, peer.ip(), shutdown.clone()));
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection on the admin listener");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

impl Server {
    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        peer: IpAddr,
        shutdown: CancellationToken,
    ) {
        let _open = self.state.metrics.connection(Listener::Admin);
        let service = service_fn(|request| {
            let server = Arc::clone(&self);
            async move { Ok::<_, Infallible>(server.respond(request, peer).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(HEADER_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = shutdown.cancelled() => None,
            () = sleep(CONNECTION_AGE_MAX) => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                timeout(LINGER_MAX, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection to the admin listener broke off");
        }
    }

    async fn respond(&self, request: Request<Incoming>, peer: IpAddr) -> Response<Full<Bytes>> {
        let mut response = match request.uri().path() {
            "/" => reading(&request, || self.landing_page()),
            "/-/healthy" => reading(&request, || plain(StatusCode::OK, "healthy\n")),
            "/-/ready" => reading(&request, || self.readiness()),
            "/metrics" if is_reading(request.method()) => self.scrape(request.headers()).await,
            "/metrics" => method_not_allowed("GET, HEAD"),
            "/-/sync" => self.act(self.state.sync.as_ref(), request, peer).await,
            "/-/reload" => self.act(self.state.reload.as_ref(), request, peer).await,
            _ => self.not_found(),
        };
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        );
        response
    }

    fn readiness(&self) -> Response<Full<Bytes>> {
        if self.state.ready.load(Ordering::Acquire) {
            plain(StatusCode::OK, "ready\n")
        } else {
            plain(StatusCode::SERVICE_UNAVAILABLE, "starting\n")
        }
    }

    /// The exposition, rendered away from the threads that relay traffic.
    async fn scrape(&self, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let format = Format::negotiate(&joined(headers, header::ACCEPT));
        let is_compressed = accepts_gzip(&joined(headers, header::ACCEPT_ENCODING));
        let metrics = Arc::clone(&self.state.metrics);
        let now = clock::instant();
        let Ok(_turn) = self.scrapes.acquire().await else {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n");
        };
        let rendered = tokio::task::spawn_blocking(move || {
            let body = metrics.encode(format, now);
            match is_compressed.then(|| gzip(&body)).flatten() {
                Some(compressed) => (compressed, true),
                None => (body, false),
            }
        });
        let Ok((body, is_compressed)) = rendered.await else {
            return plain(
                StatusCode::INTERNAL_SERVER_ERROR,
                "cannot render the metrics\n",
            );
        };
        let mut response = content(StatusCode::OK, format.content_type(), body);
        let headers = response.headers_mut();
        headers.insert(
            header::VARY,
            HeaderValue::from_static("accept, accept-encoding"),
        );
        if is_compressed {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }

    async fn act(
        &self,
        action: Option<&Action>,
        request: Request<Incoming>,
        peer: IpAddr,
    ) -> Response<Full<Bytes>> {
        let Some(action) = action else {
            return self.not_found();
        };
        if request.method() != Method::POST {
            return method_not_allowed("POST");
        }
        if let Err(refusal) = self.authorise(request.headers(), peer).await {
            return *refusal;
        }
        let query = request.uri().query().map(str::to_owned);
        let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
        match timeout(BODY_TIMEOUT, body).await {
            Ok(Ok(_ignored)) => {}
            Ok(Err(_)) => return failure(StatusCode::PAYLOAD_TOO_LARGE, "the body is too long"),
            Err(_) => return failure(StatusCode::REQUEST_TIMEOUT, "the body did not arrive"),
        }
        match tokio::spawn(action(query)).await {
            Ok(result) if result.succeeded => json_body(StatusCode::OK, &result.body),
            Ok(result) => json_body(StatusCode::INTERNAL_SERVER_ERROR, &result.body),
            Err(_) => failure(StatusCode::INTERNAL_SERVER_ERROR, "the action did not end"),
        }
    }

    /// Whether the caller may change state.
    async fn authorise(
        &self,
        headers: &HeaderMap,
        peer: IpAddr,
    ) -> Result<(), Box<Response<Full<Bytes>>>> {
        let refuse = |status, message| Err(Box::new(failure(status, message)));
        // A browser on this machine is on loopback too, and sends this header with every POST.
        if headers.contains_key(header::ORIGIN) {
            return refuse(StatusCode::FORBIDDEN, "requests from web pages are refused");
        }
        // What another proxy relays comes from that proxy's caller.
        let is_relayed = headers.contains_key(header::FORWARDED)
            || headers.contains_key(HeaderName::from_static("x-forwarded-for"));
        if is_local(peer) && !is_relayed {
            return Ok(());
        }
        let Some(token_file) = &self.state.token_file else {
            return refuse(
                StatusCode::FORBIDDEN,
                "only callers on loopback are served, because no admin.token_file is configured",
            );
        };
        let token = match tokio::fs::read_to_string(token_file).await {
            Ok(token) if !token.trim().is_empty() => token,
            Ok(_) => {
                tracing::warn!(file = %token_file.display(), "the admin token file is empty");
                return refuse(StatusCode::FORBIDDEN, "the admin token cannot be read");
            }
            Err(error) => {
                tracing::warn!(file = %token_file.display(), %error, "cannot read the admin token file");
                return refuse(StatusCode::FORBIDDEN, "the admin token cannot be read");
            }
        };
        let presented = headers.get(header::AUTHORIZATION).and_then(bearer_token);
        if presented.is_some_and(|presented| is_same_secret(presented, token.trim())) {
            return Ok(());
        }
        let mut refusal = failure(
            StatusCode::UNAUTHORIZED,
            "the bearer token is wrong or absent",
        );
        let challenge = HeaderValue::from_static("Bearer");
        refusal
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, challenge);
        Err(Box::new(refusal))
    }

    fn endpoints(&self) -> Vec<&'static str> {
        let mut endpoints = vec!["GET /", "GET /metrics", "GET /-/healthy", "GET /-/ready"];
        endpoints.extend(self.state.sync.as_ref().map(|_| "POST /-/sync"));
        endpoints.extend(self.state.reload.as_ref().map(|_| "POST /-/reload"));
        endpoints
    }

    fn not_found(&self) -> Response<Full<Bytes>> {
        let body = json!({ "error": "not found", "endpoints": self.endpoints() });
        json_body(StatusCode::NOT_FOUND, &body)
    }

    fn landing_page(&self) -> Response<Full<Bytes>> {
        let is_ready = self.state.ready.load(Ordering::Acquire);
        let mut rows = vec![
            ("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            (
                "state".to_owned(),
                if is_ready { "ready" } else { "starting" }.to_owned(),
            ),
        ];
        rows.extend((self.state.info)());
        let rows: String = rows
            .iter()
            .map(|(name, value)| {
                let (name, value) = (escape_html(name), escape_html(value));
                format!("<tr><th>{name}</th><td>{value}</td></tr>\n")
            })
            .collect();
        let links: String = self
            .endpoints()
            .iter()
            .map(|endpoint| match endpoint.strip_prefix("GET ") {
                Some(path) => format!("<li><a href=\"{path}\">{path}</a></li>\n"),
                None => format!("<li>{endpoint}</li>\n"),
            })
            .collect();
        let page = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>Taffrail</title></head>\n\
             <body>\n<h1>Taffrail</h1>\n<p>Meters AI-provider API traffic.</p>\n\
             <table>\n{rows}</table>\n<ul>\n{links}</ul>\n</body>\n</html>\n"
        );
        let mut response = content(StatusCode::OK, "text/html; charset=utf-8", page);
        response.headers_mut().insert(
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"),
        );
        response
    }
}

/// Whether `peer` is this machine itself. Only the usual loopback addresses count: a service mesh
/// delivers what comes from outside from others of that range (Istio from 127.0.0.6).
fn is_local(peer: IpAddr) -> bool {
    let peer = peer.to_canonical();
    peer == IpAddr::V4(Ipv4Addr::LOCALHOST) || peer == IpAddr::V6(Ipv6Addr::LOCALHOST)
}

/// The token of an `Authorization: Bearer` header. Source: RFC 6750, section 2.1.
fn bearer_token(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Compares in a time that says nothing of where two secrets differ or how long they are: what is
/// compared is an HMAC of each, by the library's constant-time check.
fn is_same_secret(presented: &str, expected: &str) -> bool {
    let code = |secret: &str| {
        let key = b"taffrail admin token";
        Hmac::<Sha256>::new_from_slice(key).map(|mac| mac.chain_update(secret.as_bytes()))
    };
    match (code(presented), code(expected)) {
        (Ok(presented), Ok(expected)) => {
            presented.verify(&expected.finalize().into_bytes()).is_ok()
        }
        _ => false,
    }
}

fn is_reading(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

/// The answer of an endpoint that is only read.
fn reading(
    request: &Request<Incoming>,
    answer: impl FnOnce() -> Response<Full<Bytes>>,
) -> Response<Full<Bytes>> {
    if is_reading(request.method()) {
        answer()
    } else {
        method_not_allowed("GET, HEAD")
    }
}

fn method_not_allowed(allowed: &'static str) -> Response<Full<Bytes>> {
    let mut response = failure(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
    let allowed = HeaderValue::from_static(allowed);
    response.headers_mut().insert(header::ALLOW, allowed);
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    content(status, "text/plain; charset=utf-8", text)
}

fn failure(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    json_body(status, &json!({ "error": message }))
}

fn json_body(status: StatusCode, body: &serde_json::Value) -> Response<Full<Bytes>> {
    content(status, "application/json", format!("{body}\n"))
}

fn content(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}

/// All lines of a header as one list.
fn joined(headers: &HeaderMap, name: HeaderName) -> String {
    let lines = headers.get_all(name).iter();
    let lines: Vec<&str> = lines.filter_map(|line| line.to_str().ok()).collect();
    lines.join(",")
}

/// `body` compressed, unless it is too short to be worth it.
fn gzip(body: &[u8]) -> Option<Vec<u8>> {
    if body.len() < GZIP_BYTES_MIN {
        return None;
    }
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body).ok()?;
    encoder.finish().ok()
}

fn escape_html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_usual_loopback_addresses_are_local() {
        for local in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            assert!(is_local(local.parse().unwrap()), "{local}");
        }
        for other in ["127.0.0.6", "10.0.0.1", "0.0.0.0", "::", "::ffff:10.0.0.1"] {
            assert!(!is_local(other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn secrets_are_the_same_or_not() {
        assert!(is_same_secret("correct horse", "correct horse"));
        for wrong in ["", "correct", "correct horse ", "Correct horse"] {
            assert!(!is_same_secret(wrong, "correct horse"), "{wrong}");
        }
    }

    #[test]
    fn a_bearer_token_is_read_from_its_header() {
        let token = |value| bearer_token(&HeaderValue::from_static(value)).map(str::to_owned);
        assert_eq!(token("Bearer abc"), Some("abc".to_owned()));
        assert_eq!(token("bearer  abc"), Some("abc".to_owned()));
        assert_eq!(token("Basic abc"), None);
        assert_eq!(token("Bearer"), None);
    }

    #[test]
    fn html_is_escaped() {
        assert_eq!(
            escape_html("<a href='x'>&\""),
            "&lt;a href=&#39;x&#39;&gt;&amp;&quot;"
        );
    }
}
