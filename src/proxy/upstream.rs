//! The upstream half of the relay, behind one seam: [`Upstreams::exchange`].
//!
//! One exchange is a request sent and a response head received; the response's body follows
//! through [`UpstreamBody::poll_piece`]. Both are driven from the task that serves the client, so
//! that a burst of events that one read brought leaves in one write. An upload whose response has
//! begun gets a task of its own.
//!
//! Idle connections wait in a pool that belongs to one runtime thread, because their sockets are
//! registered with that thread's reactor. They have no task: each is read from once at check-out,
//! which finds the provider's close, and a sweep drops the old ones.

use std::cell::{RefCell, RefMut};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, Uri};
use hyper::ext::ReasonPhrase;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWrite as _, Chain, Join, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use crate::clock;
use crate::proxy::body::Progress;
use crate::proxy::inbound::{Read, Source, UpstreamBody};
use crate::proxy::link::{Link, Silence};
use crate::proxy::outbound::{Outbound, SendError};
use crate::proxy::stream::Stream;
use crate::wire::http1::{self, Head, HeadReader, Invalid};

/// How much is read at once, of all connections of a thread into one buffer.
const READ_BYTES: usize = 64 << 10;

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
        source: io::Error,
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

/// A response's head, and its body to be polled.
pub(super) struct Exchanged {
    pub(super) head: http::response::Parts,
    pub(super) body: UpstreamBody,
    /// Whether a dead pooled connection made a second attempt necessary.
    pub(super) is_retried: bool,
}

/// The answer to a request for another protocol.
pub(super) enum Switched {
    /// `101`, and the connection.
    Yes(http::response::Parts, UpgradedStream),
    /// An ordinary response.
    No(Box<Exchanged>),
}

/// A connection on which HTTP is over, with what came behind the response's head.
pub(super) type UpgradedStream =
    Join<Chain<io::Cursor<Bytes>, ReadHalf<Stream>>, WriteHalf<Stream>>;

/// The head of a response, and what came with it.
struct Received {
    head: Head,
    first: Read,
    /// Whether the connection took the request, as far as that had gone.
    is_sound: bool,
}

/// A request without a response.
struct Failed {
    error: ExchangeError,
    /// Whether anything of a response came.
    is_begun: bool,
}

/// The connections of one runtime thread.
pub(super) struct Upstreams {
    tls: TlsConnector,
    limits: Limits,
    idle: RefCell<HashMap<Arc<str>, Vec<Link>>>,
    buffer: RefCell<Box<[u8]>>,
}

impl Upstreams {
    pub(super) fn new(tls: Arc<rustls::ClientConfig>, limits: Limits) -> Rc<Upstreams> {
        Rc::new(Upstreams {
            tls: TlsConnector::from(tls),
            limits,
            idle: RefCell::default(),
            buffer: RefCell::new(vec![0; READ_BYTES].into()),
        })
    }

    /// What is read into. What is in it is nobody's when a poll is over.
    pub(super) fn buffer(&self) -> RefMut<'_, Box<[u8]>> {
        self.buffer.borrow_mut()
    }

    /// Sends a request of the provider `name` to its upstream and waits for the response's head.
    ///
    /// A pooled connection that turns out to be dead is replaced once by a fresh one, if the
    /// provider cannot have worked on the request.
    pub(super) async fn exchange(
        self: &Rc<Self>,
        name: &Arc<str>,
        upstream: &Upstream,
        mut request: Outbound,
        progress: Option<&Progress>,
    ) -> Result<Exchanged, ExchangeError> {
        let mut is_retried = false;
        let mut sent = None;
        if let Some(mut link) = self.check_out(name) {
            match self.send(upstream, &mut link, &mut request, progress).await {
                Ok(received) => sent = Some((link, received)),
                Err(failed) if failed.can_be_repeated(&mut request, &link) => is_retried = true,
                Err(failed) => return Err(failed.error),
            }
        }
        let (link, received) = match sent {
            Some(sent) => sent,
            None => self.send_anew(upstream, &mut request, progress).await?,
        };
        if received.head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(ExchangeError::Invalid {
                host: upstream.host.clone(),
                problem: "it switches protocols without being asked to".to_owned(),
            });
        }
        let mut exchanged = self.exchanged(name, link, request, received, progress);
        exchanged.is_retried = is_retried;
        Ok(exchanged)
    }

    /// Sends an upgrade request over a connection of its own.
    pub(super) async fn exchange_upgrade(
        self: &Rc<Self>,
        name: &Arc<str>,
        upstream: &Upstream,
        mut request: Outbound,
    ) -> Result<Switched, ExchangeError> {
        let (link, received) = self.send_anew(upstream, &mut request, None).await?;
        if received.head.status != StatusCode::SWITCHING_PROTOCOLS {
            let exchanged = self.exchanged(name, link, request, received, None);
            return Ok(Switched::No(Box::new(exchanged)));
        }
        let Some(stream) = Rc::into_inner(link.stream).map(RefCell::into_inner) else {
            return Err(broken(upstream, io::ErrorKind::ResourceBusy.into()));
        };
        let (reader, writer) = tokio::io::split(stream);
        let reader = io::Cursor::new(received.first.behind).chain(reader);
        let stream = tokio::io::join(reader, writer);
        Ok(Switched::Yes(parts(received.head).0, stream))
    }

    fn exchanged(
        self: &Rc<Self>,
        name: &Arc<str>,
        link: Link,
        request: Outbound,
        received: Received,
        progress: Option<&Progress>,
    ) -> Exchanged {
        let is_sent = request.is_sent();
        // A body that still waits for `100 Continue` will not be sent any more.
        let is_held = progress.is_some_and(|progress| progress.is_held.get());
        let uploads = received.is_sound && !is_sent && !is_held;
        let upload = uploads.then(|| {
            let (stream, silence) = (link.stream.clone(), Silence::new(self.limits.idle_timeout));
            AbortOnDropHandle::new(tokio::task::spawn_local(upload(request, stream, silence)))
        });
        let is_reusable = received.is_sound && is_sent && received.head.keeps_alive;
        let (head, body) = parts(received.head);
        let body = Source {
            link,
            is_reusable,
            upload,
            pool: self.clone(),
            name: name.clone(),
        }
        .body(body, received.first);
        Exchanged {
            head,
            body,
            is_retried: false,
        }
    }

    /// Sends over a new connection.
    async fn send_anew(
        &self,
        upstream: &Upstream,
        request: &mut Outbound,
        progress: Option<&Progress>,
    ) -> Result<(Link, Received), ExchangeError> {
        let mut link = self.dial(upstream).await?;
        match self.send(upstream, &mut link, request, progress).await {
            Ok(received) => Ok((link, received)),
            Err(failed) => Err(failed.error),
        }
    }

    async fn send(
        &self,
        upstream: &Upstream,
        link: &mut Link,
        request: &mut Outbound,
        progress: Option<&Progress>,
    ) -> Result<Received, Failed> {
        let mut reader = HeadReader::new(request.method().clone(), self.limits.head_bytes_max);
        let mut patience = None;
        if request.is_expecting()
            && let Some(progress) = progress
        {
            progress.is_held.set(true);
            patience = Some(Box::pin(tokio::time::sleep(CONTINUE_PATIENCE)));
        }
        let mut write_error = None;
        let mut seen = 0;
        link.silence.broken();
        poll_fn(|cx| {
            loop {
                if write_error.is_none()
                    && let Poll::Ready(Err(error)) =
                        request.poll_send(cx, &mut link.stream.borrow_mut())
                {
                    match error {
                        // There may be a response all the same.
                        SendError::Connection(error) => write_error = Some(error),
                        SendError::Body(error) => {
                            let error = broken(upstream, io::Error::other(error));
                            return Poll::Ready(Err(Failed::for_good(error)));
                        }
                    }
                }
                match self.poll_head(cx, link, &mut reader) {
                    Poll::Pending => {}
                    Poll::Ready(Ok((head, first))) => {
                        return Poll::Ready(Ok(Received {
                            head,
                            first,
                            is_sound: write_error.is_none(),
                        }));
                    }
                    Poll::Ready(Err(HeadError::Invalid(invalid))) => {
                        return Poll::Ready(Err(Failed::for_good(ExchangeError::Invalid {
                            host: upstream.host.clone(),
                            problem: invalid.to_string(),
                        })));
                    }
                    Poll::Ready(Err(HeadError::Read(error))) => {
                        return Poll::Ready(Err(Failed {
                            error: broken(upstream, write_error.take().unwrap_or(error)),
                            is_begun: reader.is_begun(),
                        }));
                    }
                }
                if let (Some(timer), Some(progress)) = (&mut patience, progress)
                    && progress.is_held.get()
                    && (reader.is_continued() || timer.as_mut().poll(cx).is_ready())
                {
                    progress.is_held.set(false);
                    continue;
                }
                break;
            }
            // An upload that moves is not silence.
            let sent = progress.map_or(0, |progress| progress.bytes.get());
            if sent != seen {
                seen = sent;
                link.silence.broken();
            }
            link.silence.poll(cx).map(|limit| {
                Err(Failed::for_good(ExchangeError::ResponseTimeout {
                    host: upstream.host.clone(),
                    seconds: limit.as_secs(),
                }))
            })
        })
        .await
    }

    /// Reads until the head is complete; what came behind it in the same read is taken too.
    fn poll_head(
        &self,
        cx: &mut Context<'_>,
        link: &Link,
        reader: &mut HeadReader,
    ) -> Poll<Result<(Head, Read), HeadError>> {
        let mut buffer = self.buffer();
        loop {
            let size = ready!(link.poll_read(cx, &mut buffer)).map_err(HeadError::Read)?;
            if size == 0 {
                let error = io::Error::new(io::ErrorKind::UnexpectedEof, "it was closed");
                return Poll::Ready(Err(HeadError::Read(error)));
            }
            let read = buffer.get(..size).unwrap_or_default();
            if let Some((mut head, used)) = reader.push(read).map_err(HeadError::Invalid)? {
                let first = Read::of(&mut head.body, read.get(used..).unwrap_or_default());
                return Poll::Ready(Ok((head, first)));
            }
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
        Ok(Link::new(stream, self.limits.idle_timeout))
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
        while let Some(link) = links.pop() {
            if now.duration_since(link.silence.since()) > self.limits.pool_idle_timeout {
                links.clear();
                return None;
            }
            if link.is_quiet() {
                return Some(link);
            }
        }
        None
    }

    /// Takes a connection on which nothing is under way.
    pub(super) fn check_in(&self, name: &Arc<str>, mut link: Link) {
        link.silence.broken();
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
        let limit = self.limits.pool_idle_timeout;
        for links in self.idle.borrow_mut().values_mut() {
            links.retain(|link| {
                link.is_quiet() && now.duration_since(link.silence.since()) <= limit
            });
        }
    }
}

/// How long a body waits for `100 Continue` from a provider that may never send it (RFC 9110,
/// section 10.1.1, forbids to wait for ever).
const CONTINUE_PATIENCE: Duration = Duration::from_secs(1);

/// Why no head came.
enum HeadError {
    Invalid(Invalid),
    Read(io::Error),
}

impl Failed {
    fn for_good(error: ExchangeError) -> Failed {
        Failed {
            error,
            is_begun: true,
        }
    }

    /// Whether the request can be sent again, for which it is made ready.
    fn can_be_repeated(&self, request: &mut Outbound, link: &Link) -> bool {
        if self.is_begun {
            return false;
        }
        let elapsed = link.silence.since().elapsed();
        let is_stale = request.is_untouched() || self.error.is_stale(request.method(), elapsed);
        is_stale && request.rewind()
    }
}

/// Sends the rest of a request whose response has begun, for as long as it gets on.
async fn upload(mut request: Outbound, stream: Rc<RefCell<Stream>>, mut silence: Silence) {
    let mut written = 0;
    let sending = poll_fn(|cx| {
        if let Poll::Ready(sent) = request.poll_send(cx, &mut stream.borrow_mut()) {
            return Poll::Ready(sent);
        }
        if request.written() > written {
            written = request.written();
            silence.broken();
        }
        let timed_out = |_| Err(SendError::Connection(io::ErrorKind::TimedOut.into()));
        silence.poll(cx).map(timed_out)
    });
    let Err(error) = sending.await else { return };
    tracing::debug!(?error, "an upload ended early");
    // Otherwise the provider would wait for the rest.
    let closing = poll_fn(|cx| Pin::new(&mut *stream.borrow_mut()).poll_shutdown(cx));
    if let Err(error) = closing.await {
        tracing::debug!(%error, "a connection was closed already");
    }
}

fn broken(upstream: &Upstream, source: io::Error) -> ExchangeError {
    let host = upstream.host.clone();
    ExchangeError::Broken { host, source }
}

/// A head as hyper's server takes it, and the body that follows.
fn parts(head: Head) -> (http::response::Parts, http1::Body) {
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = head.status;
    parts.version = head.version;
    parts.headers = head.headers;
    if let Some(reason) = head.reason
        && let Ok(reason) = ReasonPhrase::try_from(reason)
    {
        parts.extensions.insert(reason);
    }
    (parts, head.body)
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
        let is_closed = matches!(
            source.kind(),
            io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionAborted
        );
        is_closed && (method.is_idempotent() || elapsed <= STALE_TIME)
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
