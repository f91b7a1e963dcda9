//! The listener that Kubernetes asks about pods: https in, reviews out. Connections, heads, bodies
//! and waits are bounded by the constants below.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::keeper::Served;
use super::review;
use super::sidecar::Sidecar;
use crate::clock;
use crate::metrics::{HandshakeFault, Listener, Metrics, ReviewResult};
use crate::proxy::ServerTls;

/// Where reviews are sent to.
pub const PATH: &str = "/mutate";
/// How many connections are open at a time; one more is closed at once and counted in
/// `taffrail_connections_refused_total{listener="injector"}`.
pub const CONNECTIONS_MAX: usize = 256;
/// The longest review: the largest object that Kubernetes stores, and what is said around it.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long a client may take for its TLS handshake, for a head, and for a body.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be idle: longer than API servers keep theirs unused.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// How long requests under way may take once the process is to end.
const LINGER_MAX: Duration = Duration::from_secs(5);
/// The pause after an accept that failed, as it does when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The certificate that is shown.
pub(super) enum Identity {
    /// One from files.
    Files(Box<ServerTls>),
    /// One that this process keeps.
    Kept(Served),
}

impl Identity {
    fn config(&self) -> Option<Arc<ServerConfig>> {
        match self {
            Identity::Files(tls) => Some(tls.config(clock::wall())),
            Identity::Kept(served) => served.borrow().clone(),
        }
    }
}

pub(super) struct Server {
    pub(super) sidecar: Sidecar,
    pub(super) own_namespace: String,
    pub(super) identity: Identity,
    pub(super) metrics: Arc<Metrics>,
}

impl Server {
    /// Serves until `stopping`, then finishes what is under way.
    pub(super) async fn serve(self: Arc<Self>, listener: TcpListener, stopping: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stopping.cancelled() => break,
                Some(_ended) = connections.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(_) if connections.len() >= CONNECTIONS_MAX => {
                    self.metrics.connection_refused(Listener::Injector);
                }
                Ok((socket, _)) => {
                    let server = Arc::clone(&self);
                    connections.spawn(server.connection(socket, stopping.clone()));
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a connection of the API server");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    async fn connection(self: Arc<Self>, socket: TcpStream, stopping: CancellationToken) {
        let _open = self.metrics.connection(Listener::Injector);
        let Some(config) = self.identity.config() else {
            tracing::debug!("a connection came before there was a certificate");
            return;
        };
        let handshake = TlsAcceptor::from(config).accept(socket);
        let stream = match timeout(CLIENT_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                self.metrics.handshake_failed(HandshakeFault::Broken);
                tracing::debug!(%error, "a TLS handshake with the injector failed");
                return;
            }
            Err(_) => return self.metrics.handshake_failed(HandshakeFault::Timeout),
        };
        let service = service_fn(|request| {
            let server = Arc::clone(&self);
            async move { Ok::<_, Infallible>(server.respond(request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // Idle time before the head counts.
            .header_read_timeout(IDLE_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stopping.cancelled() => {
                connection.as_mut().graceful_shutdown();
                timeout(LINGER_MAX, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection to the injector broke off");
        }
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != PATH {
            return json_body(StatusCode::NOT_FOUND, &json!({"error": "not found"}));
        }
        if request.method() != Method::POST {
            let error = json!({"error": "method not allowed"});
            return json_body(StatusCode::METHOD_NOT_ALLOWED, &error);
        }
        let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
        let body = match timeout(CLIENT_TIMEOUT, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(_)) => {
                return self.refuse(StatusCode::PAYLOAD_TOO_LARGE, "cannot read the body");
            }
            Err(_) => return self.refuse(StatusCode::REQUEST_TIMEOUT, "the body did not arrive"),
        };
        match review::answer(&body, &self.sidecar, &self.own_namespace) {
            Ok(answer) => {
                self.metrics.injector_review(answer.result, answer.warnings);
                tracing::debug!(
                    result = answer.result.as_str(),
                    "answered an admission review"
                );
                json_body(StatusCode::OK, &answer.body)
            }
            Err(error) => self.refuse(StatusCode::BAD_REQUEST, &error.to_string()),
        }
    }

    fn refuse(&self, status: StatusCode, problem: &str) -> Response<Full<Bytes>> {
        self.metrics.injector_review(ReviewResult::Malformed, 0);
        json_body(status, &json!({"error": problem}))
    }
}

fn json_body(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
