//! The upstream half of the relay, behind one seam: [`Upstreams::exchange`].
//!
//! One exchange is a request sent and a response head received; the response's body follows
//! through [`UpstreamBody::poll_piece`]. The hyper connection is owned by that body and driven
//! from it, in the task that serves the client, so that a burst of events that one read brought
//! is seen in one poll instead of one wake-up each. Reading only when the client takes the data
//! is also the backpressure.
//!
//! Idle connections wait in a pool that belongs to one runtime thread, because their sockets are
//! registered with that thread's reactor. They have no task: each is polled once at check-out,
//! which finds the provider's close, and a sweep drops the old ones.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::clock;
use crate::proxy::body::{Progress, RequestBody};
use crate::proxy::stream::Stream;

/// Where a provider's traffic goes.
#[derive(Debug)]
pub struct Upstream {
    host: String,
    port: u16,
    tls: Option<ServerName<'static>>,
    /// The path that every request's path is appended to, without a slash at its end.
    base_path: String,
    host_header: HeaderValue,
}

/// Why an upstream's URL is refused. It does not quote the URL, which may hold a credential.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct UpstreamUrlError(&'static str);

impl UpstreamUrlError {
    /// What is accepted instead.
    pub const ACCEPTED: &str = "http:// or https://, a host, perhaps a port and a path";
}

impl Upstream {
    /// Reads an upstream's URL.
    ///
    /// # Errors
    /// When it is no absolute http or https URL, or has user information, a query or a fragment.
    pub fn parse(url: &str) -> Result<Upstream, UpstreamUrlError> {
        let refuse = |problem| Err(UpstreamUrlError(problem));
        let (is_tls, default_port, rest) = match url.split_once("://") {
            Some(("https", rest)) => (true, 443, rest),
            Some(("http", rest)) => (false, 80, rest),
            Some(_) => return refuse("the scheme is not http or https"),
            None => return refuse("not a URL"),
        };
        if rest.contains('#') {
            return refuse("the URL has a fragment");
        }
        if rest.contains('?') {
            return refuse("the URL has a query");
        }
        if rest.split('/').next().unwrap_or_default().contains('@') {
            return refuse("the URL has a user or password in it");
        }
        let Ok(uri) = url.parse::<Uri>() else {
            return refuse("not a URL");
        };
        let Some(authority) = uri.authority().filter(|it| !it.host().is_empty()) else {
            return refuse("not a URL");
        };
        let after_host = authority.as_str().strip_prefix(authority.host());
        let port = match (after_host, authority.port_u16()) {
            (Some(""), _) => default_port,
            (_, Some(port)) if port > 0 => port,
            _ => return refuse("the port is not a port"),
        };
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let (Ok(name), Ok(host_header)) = (
            ServerName::try_from(host.clone()),
            HeaderValue::from_str(authority.as_str()),
        ) else {
            return refuse("the host is not a name");
        };
        Ok(Upstream {
            host,
            port,
            tls: is_tls.then_some(name),
            base_path: uri.path().trim_end_matches('/').to_owned(),
            host_header,
        })
    }

    /// The value of the `host` header.
    pub(super) fn host_header(&self) -> HeaderValue {
        self.host_header.clone()
    }

    /// The request target at the upstream, for what follows the route prefix.
    pub(super) fn target(&self, path_and_query: &str) -> Result<Uri, http::uri::InvalidUri> {
        let slash = if path_and_query.starts_with('/') {
            ""
        } else {
            "/"
        };
        format!("{}{slash}{path_and_query}", self.base_path).parse()
    }
}

/// Limits of the upstream half.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// For the name look-up, the TCP and the TLS handshake together.
    pub(super) connect_timeout: Duration,
    /// For silence before the response's head.
    pub(super) idle_timeout: Duration,
    /// How long an idle connection is kept.
    pub(super) pool_idle_timeout: Duration,
    /// How many idle connections are kept for each upstream and thread.
    pub(super) pool_idle_max: usize,
    /// The longest head of a response.
    pub(super) head_bytes_max: usize,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    /// Name, TCP or TLS.
    #[error("cannot connect to {host}: {source}")]
    Connect {
        /// The upstream's host.
        host: String,
        /// What failed.
        source: io::Error,
    },
    /// Connecting took too long.
    #[error("cannot connect to {host} within {seconds} s")]
    ConnectTimeout {
        /// The upstream's host.
        host: String,
        /// The limit.
        seconds: u64,
    },
    /// The connection broke before the response's head.
    #[error("the connection to {host} broke before the response: {source}")]
    Broken {
        /// The upstream's host.
        host: String,
        /// What failed.
        source: hyper::Error,
    },
    /// What came is no response to a request.
    #[error("{host} did not answer with a valid response: {problem}")]
    Invalid {
        /// The upstream's host.
        host: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Nothing came.
    #[error("no response from {host} within {seconds} s")]
    ResponseTimeout {
        /// The upstream's host.
        host: String,
        /// The limit.
        seconds: u64,
    },
}

type Connection = http1::Connection<TokioIo<Stream>, RequestBody>;

/// An open connection to an upstream.
struct Link {
    connection: Option<Connection>,
    sender: http1::SendRequest<RequestBody>,
    idle_since: Instant,
}

impl Link {
    /// Lets the connection read and write what it can.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(connection) = &mut self.connection
            && Pin::new(connection).poll(cx).is_ready()
        {
            self.connection = None;
        }
    }

    fn is_reusable(&self) -> bool {
        self.connection.is_some() && self.sender.is_ready()
    }
}

fn idle_context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// A response's head, and its body to be polled.
pub(super) struct Exchanged {
    pub(super) head: http::response::Parts,
    pub(super) body: UpstreamBody,
    /// Whether a dead pooled connection made a second attempt necessary.
    pub(super) is_retried: bool,
}

/// The connections of one runtime thread.
pub(super) struct Upstreams {
    tls: TlsConnector,
    limits: Limits,
    idle: RefCell<HashMap<Arc<str>, Vec<Link>>>,
}

impl Upstreams {
    pub(super) fn new(tls: Arc<rustls::ClientConfig>, limits: Limits) -> Rc<Upstreams> {
        Rc::new(Upstreams {
            tls: TlsConnector::from(tls),
            limits,
            idle: RefCell::default(),
        })
    }

    /// Sends a request of the provider `name` to its upstream and waits for the response's head.
    ///
    /// A pooled connection that turns out to be dead is replaced once by a fresh one, if the
    /// provider cannot have worked on the request.
    pub(super) async fn exchange(
        self: &Rc<Self>,
        name: &Arc<str>,
        upstream: &Upstream,
        request: Request<RequestBody>,
        progress: Option<Rc<Progress>>,
    ) -> Result<Exchanged, ExchangeError> {
        let progress = progress.as_ref();
        let Some(mut link) = self.check_out(name) else {
            let mut link = self.dial(upstream).await?;
            let sent = self.send(upstream, &mut link, request, progress).await;
            let response = sent.map_err(|failed| failed.error)?;
            return Ok(self.exchanged(name, link, response, progress, false));
        };
        let copy = request.body().replay().map(|bytes| {
            let mut copy = Request::new(RequestBody::Whole(Some(bytes)));
            *copy.method_mut() = request.method().clone();
            *copy.uri_mut() = request.uri().clone();
            *copy.headers_mut() = request.headers().clone();
            copy
        });
        let sent_at = clock::instant();
        let failed = match self.send(upstream, &mut link, request, progress).await {
            Ok(response) => return Ok(self.exchanged(name, link, response, progress, false)),
            Err(failed) => failed,
        };
        let again = match (failed.unsent, copy) {
            (Some(unsent), _) => *unsent,
            (None, Some(copy)) if failed.error.is_stale(copy.method(), sent_at.elapsed()) => copy,
            _ => return Err(failed.error),
        };
        let mut link = self.dial(upstream).await?;
        let sent = self.send(upstream, &mut link, again, progress).await;
        let response = sent.map_err(|failed| failed.error)?;
        Ok(self.exchanged(name, link, response, progress, true))
    }

    /// Sends an upgrade request over a connection of its own; the pair of a `101` and the
    /// upgraded stream's promise, or an ordinary response.
    pub(super) async fn exchange_upgrade(
        self: &Rc<Self>,
        name: &Arc<str>,
        upstream: &Upstream,
        request: Request<RequestBody>,
    ) -> Result<(Exchanged, Option<OnUpgrade>), ExchangeError> {
        let Link {
            connection,
            mut sender,
            ..
        } = self.dial(upstream).await?;
        if let Some(connection) = connection {
            tokio::task::spawn_local(connection.with_upgrades());
        }
        let waiting = sender.send_request(request);
        let mut response = tokio::time::timeout(self.limits.idle_timeout, waiting)
            .await
            .map_err(|_| self.response_timeout(upstream))?
            .map_err(|source| broken(upstream, source))?;
        let is_switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let upgrade = is_switched.then(|| hyper::upgrade::on(&mut response));
        let link = Link {
            connection: None,
            sender,
            idle_since: clock::instant(),
        };
        Ok((self.exchanged(name, link, response, None, false), upgrade))
    }

    fn exchanged(
        self: &Rc<Self>,
        name: &Arc<str>,
        mut link: Link,
        response: Response<Incoming>,
        progress: Option<&Rc<Progress>>,
        is_retried: bool,
    ) -> Exchanged {
        let (head, body) = response.into_parts();
        // A body that still waits for `100 Continue` will not be sent any more.
        let is_uploading =
            progress.is_some_and(|progress| !progress.is_done.get() && !progress.is_held.get());
        if is_uploading && let Some(connection) = link.connection.take() {
            // The upload must go on while the client does not read the response, so the
            // connection gets a task of its own and is not pooled afterwards.
            tokio::task::spawn_local(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "upload ended early");
                }
            });
        }
        let body = UpstreamBody {
            link: Some(link),
            body,
            pool: self.clone(),
            name: name.clone(),
        };
        Exchanged {
            head,
            body,
            is_retried,
        }
    }

    async fn send(
        &self,
        upstream: &Upstream,
        link: &mut Link,
        mut request: Request<RequestBody>,
        progress: Option<&Rc<Progress>>,
    ) -> Result<Response<Incoming>, Failed> {
        let continued = expect_continue(&mut request, progress);
        let mut response = pin!(link.sender.try_send_request(request));
        let connection = &mut link.connection;
        let mut seen = 0;
        let mut patience = pin!(tokio::time::sleep(CONTINUE_PATIENCE));
        let mut silence = pin!(tokio::time::sleep(self.limits.idle_timeout));
        poll_fn(|cx| {
            loop {
                if let Some(open) = connection.as_mut()
                    && Pin::new(open).poll(cx).is_ready()
                {
                    *connection = None;
                }
                if let Poll::Ready(response) = response.as_mut().poll(&mut idle_context()) {
                    return Poll::Ready(received(upstream, response));
                }
                if connection.is_none() {
                    // The response future resolves with the connection's end.
                    return response
                        .as_mut()
                        .poll(cx)
                        .map(|response| received(upstream, response));
                }
                if let (Some(continued), Some(progress)) = (&continued, progress)
                    && progress.is_held.get()
                    && (continued.load(Ordering::Relaxed) || patience.as_mut().poll(cx).is_ready())
                {
                    progress.is_held.set(false);
                    continue;
                }
                break;
            }
            while silence.as_mut().poll(cx).is_ready() {
                // An upload that moves is not silence.
                let now_seen = progress.map_or(seen, |progress| progress.bytes.get());
                if now_seen == seen {
                    return Poll::Ready(Err(self.response_timeout(upstream).into()));
                }
                seen = now_seen;
                silence
                    .as_mut()
                    .reset(clock::instant() + self.limits.idle_timeout);
            }
            Poll::Pending
        })
        .await
    }

    fn response_timeout(&self, upstream: &Upstream) -> ExchangeError {
        ExchangeError::ResponseTimeout {
            host: upstream.host.clone(),
            seconds: self.limits.idle_timeout.as_secs(),
        }
    }

    async fn dial(&self, upstream: &Upstream) -> Result<Link, ExchangeError> {
        let limit = self.limits.connect_timeout;
        let stream = tokio::time::timeout(limit, self.connect(upstream))
            .await
            .map_err(|_| ExchangeError::ConnectTimeout {
                host: upstream.host.clone(),
                seconds: limit.as_secs(),
            })?
            .map_err(|source| ExchangeError::Connect {
                host: upstream.host.clone(),
                source,
            })?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(self.limits.head_bytes_max.max(MIN_BUFFER_BYTES))
            .max_headers(HEADERS_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| broken(upstream, source))?;
        Ok(Link {
            connection: Some(connection),
            sender,
            idle_since: clock::instant(),
        })
    }

    async fn connect(&self, upstream: &Upstream) -> io::Result<Stream> {
        let tcp = TcpStream::connect((upstream.host.as_str(), upstream.port)).await?;
        tcp.set_nodelay(true)?;
        match &upstream.tls {
            None => Ok(Stream::Tcp(tcp)),
            Some(name) => {
                let tls = self.tls.connect(name.clone(), tcp).await?;
                Ok(Stream::Tls(Box::new(tls.into())))
            }
        }
    }

    fn check_out(&self, name: &Arc<str>) -> Option<Link> {
        let now = clock::instant();
        let mut idle = self.idle.borrow_mut();
        let links = idle.get_mut(name)?;
        while let Some(mut link) = links.pop() {
            if now.duration_since(link.idle_since) > self.limits.pool_idle_timeout {
                links.clear();
                return None;
            }
            link.drive(&mut idle_context());
            if link.is_reusable() {
                return Some(link);
            }
        }
        None
    }

    fn check_in(&self, name: &Arc<str>, mut link: Link) {
        link.idle_since = clock::instant();
        let mut idle = self.idle.borrow_mut();
        let links = match idle.get_mut(name) {
            Some(links) => links,
            None => idle.entry(name.clone()).or_default(),
        };
        if links.len() < self.limits.pool_idle_max {
            links.push(link);
        }
    }

    /// Drops idle connections that are old or that the provider has closed. To be called now and
    /// then: an idle connection has no task that would notice.
    pub(super) fn sweep(&self) {
        let now = clock::instant();
        for links in self.idle.borrow_mut().values_mut() {
            links.retain_mut(|link| {
                link.drive(&mut idle_context());
                link.is_reusable()
                    && now.duration_since(link.idle_since) <= self.limits.pool_idle_timeout
            });
        }
    }
}

/// How long a body waits for `100 Continue` from a provider that may never send it (RFC 9110,
/// section 10.1.1, forbids to wait for ever).
const CONTINUE_PATIENCE: Duration = Duration::from_secs(1);

/// The smallest buffer that hyper accepts.
pub(super) const MIN_BUFFER_BYTES: usize = 8192;

/// The most header fields in one head, of requests and responses alike.
pub(super) const HEADERS_MAX: usize = 100;

/// A request without a response.
struct Failed {
    error: ExchangeError,
    /// The request, if nothing of it was sent.
    unsent: Option<Box<Request<RequestBody>>>,
}

impl From<ExchangeError> for Failed {
    fn from(error: ExchangeError) -> Failed {
        Failed {
            error,
            unsent: None,
        }
    }
}

/// What hyper's answer to a sent request means.
fn received(
    upstream: &Upstream,
    response: Result<Response<Incoming>, TrySendError<Request<RequestBody>>>,
) -> Result<Response<Incoming>, Failed> {
    match response {
        Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            Err(Failed::from(ExchangeError::Invalid {
                host: upstream.host.clone(),
                problem: "it switches protocols without being asked to".to_owned(),
            }))
        }
        Ok(response) => Ok(response),
        Err(mut failed) => {
            let unsent = failed.take_message().map(Box::new);
            let error = broken(upstream, failed.into_error());
            Err(Failed { error, unsent })
        }
    }
}

fn broken(upstream: &Upstream, source: hyper::Error) -> ExchangeError {
    let host = upstream.host.clone();
    if source.is_parse() {
        ExchangeError::Invalid {
            host,
            problem: source.to_string(),
        }
    } else {
        ExchangeError::Broken { host, source }
    }
}

/// How soon after a request was sent a pooled connection must break to count as one that the
/// provider had closed already. Such a close and the request cross on the wire, so it shows
/// within a round trip; a provider that breaks off later may have worked on the request.
const STALE_TIME: Duration = Duration::from_millis(300);

impl ExchangeError {
    /// Whether a request that went out on a pooled connection can be sent again because the
    /// provider had closed that connection already. The kind of the error cannot tell this from a
    /// provider that dies at work, but the time can; and a method that may be repeated (RFC 9110,
    /// section 9.2.2) costs nothing.
    fn is_stale(&self, method: &Method, elapsed: Duration) -> bool {
        let ExchangeError::Broken { source, .. } = self else {
            return false;
        };
        let is_closed = source.is_closed()
            || source.is_incomplete_message()
            || std::error::Error::source(source)
                .and_then(|source| source.downcast_ref::<io::Error>())
                .is_some_and(|source| {
                    matches!(
                        source.kind(),
                        io::ErrorKind::ConnectionReset
                            | io::ErrorKind::BrokenPipe
                            | io::ErrorKind::ConnectionAborted
                    )
                });
        is_closed && (method.is_idempotent() || elapsed <= STALE_TIME)
    }
}

/// Makes the body of a request with `expect: 100-continue` wait for the provider's word; the
/// flag is set when it comes.
fn expect_continue(
    request: &mut Request<RequestBody>,
    progress: Option<&Rc<Progress>>,
) -> Option<Arc<AtomicBool>> {
    let progress = progress?;
    if !request.headers().contains_key(http::header::EXPECT) {
        return None;
    }
    progress.is_held.set(true);
    let continued = Arc::new(AtomicBool::new(false));
    let flag = continued.clone();
    hyper::ext::on_informational(request, move |informational| {
        if informational.status() == StatusCode::CONTINUE {
            flag.store(true, Ordering::Relaxed);
        }
    });
    Some(continued)
}

/// What came next of a response's body.
pub(super) enum Piece {
    /// Bytes.
    Data(Bytes),
    /// The trailers, after which nothing comes.
    Trailers(HeaderMap),
    /// The end that the framing promised.
    End,
    /// The body broke off.
    Broken(hyper::Error),
}

/// A response's body, which owns the connection that it comes through.
pub(super) struct UpstreamBody {
    link: Option<Link>,
    body: Incoming,
    pool: Rc<Upstreams>,
    name: Arc<str>,
}

impl UpstreamBody {
    /// The next piece. After `Trailers`, `End` or `Broken` it must not be polled again.
    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Piece> {
        let is_driven = match &mut self.link {
            Some(link) if link.connection.is_some() => {
                link.drive(cx);
                true
            }
            _ => false,
        };
        // Only our own drive can fill a driven body, so its waker would wake nobody; the
        // connection was polled last with the real one.
        let frame = if is_driven {
            Pin::new(&mut self.body).poll_frame(&mut idle_context())
        } else {
            Pin::new(&mut self.body).poll_frame(cx)
        };
        match frame {
            Poll::Pending if is_driven && self.link.as_ref().is_some_and(Link::is_over) => {
                // The connection ended in this very drive: ask once more, for its last word.
                Pin::new(&mut self.body).poll_frame(cx).map(Piece::of)
            }
            other => other.map(Piece::of),
        }
    }

    /// Whether nothing more will come.
    pub(super) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    /// The announced length of what is still to come.
    pub(super) fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }

    /// Gives the connection back to the pool if it is in a state for another request. To be
    /// called at a clean end only.
    pub(super) fn release(&mut self) {
        if let Some(mut link) = self.link.take() {
            link.drive(&mut idle_context());
            if link.is_reusable() {
                self.pool.check_in(&self.name, link);
            }
        }
    }

    /// Closes the connection.
    pub(super) fn close(&mut self) {
        self.link = None;
    }
}

impl Link {
    fn is_over(&self) -> bool {
        self.connection.is_none()
    }
}

impl Piece {
    fn of(frame: Option<Result<http_body::Frame<Bytes>, hyper::Error>>) -> Piece {
        match frame {
            None => Piece::End,
            Some(Err(error)) => Piece::Broken(error),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(bytes) => Piece::Data(bytes),
                Err(frame) => frame.into_trailers().map_or(Piece::End, Piece::Trailers),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_a_plain_http_url() {
        for (good, host, port, base_path) in [
            ("http://127.0.0.1:9999", "127.0.0.1", 9999, ""),
            (
                "https://api.groq.com/openai",
                "api.groq.com",
                443,
                "/openai",
            ),
            ("https://api.openai.com/", "api.openai.com", 443, ""),
            ("http://[::1]:8080/v1/", "::1", 8080, "/v1"),
            ("https://[::1]", "::1", 443, ""),
            ("http://my_vllm", "my_vllm", 80, ""),
        ] {
            let upstream = Upstream::parse(good).unwrap();
            let read = (
                upstream.host.as_str(),
                upstream.port,
                upstream.base_path.as_str(),
            );
            assert_eq!(read, (host, port, base_path), "{good}");
        }
        for (bad, problem) in [
            ("api.openai.com", "not a URL"),
            ("https://", "not a URL"),
            ("https:///v1", "not a URL"),
            ("https://a b", "not a URL"),
            ("https://:443", "not a URL"),
            ("ftp://host", "the scheme is not http or https"),
            ("https://host/#x", "the URL has a fragment"),
            ("https://host?x=1", "the URL has a query"),
            ("https://u:p@host", "the URL has a user or password in it"),
            ("https://host:0", "the port is not a port"),
            ("https://host:99999", "the port is not a port"),
            ("http://[::1]:99999", "the port is not a port"),
            ("https://host:", "the port is not a port"),
            ("https://ho_st!", "the host is not a name"),
        ] {
            assert_eq!(
                Upstream::parse(bad).unwrap_err(),
                UpstreamUrlError(problem),
                "{bad}"
            );
        }
    }
}
