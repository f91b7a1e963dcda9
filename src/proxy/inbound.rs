//! A response's body on its way from the provider, out of its framing.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::SizeHint;
use tokio_util::task::AbortOnDropHandle;

use crate::proxy::link::Link;
use crate::proxy::upstream::Upstreams;
use crate::wire::http1;

/// What came next of a response's body.
pub(super) enum Piece {
    /// The bytes that one read brought.
    Data(Bytes),
    /// The trailers, after which nothing comes.
    Trailers(HeaderMap),
    /// The end that the framing promised.
    End,
    /// The body broke off.
    Broken(io::Error),
    /// Nothing has come for that time.
    Silent(Duration),
}

/// Where a body comes from.
pub(super) struct Source {
    pub(super) link: Link,
    /// Whether the connection takes another request after the end, as far as the head and the
    /// request tell.
    pub(super) is_reusable: bool,
    /// The rest of the request, if its response came early.
    pub(super) upload: Option<AbortOnDropHandle<()>>,
    pub(super) pool: Rc<Upstreams>,
    pub(super) name: Arc<str>,
}

impl Source {
    /// The body, of which `first` has come.
    pub(super) fn body(self, body: http1::Body, first: Read) -> UpstreamBody {
        UpstreamBody {
            body,
            link: Some(self.link),
            is_reusable: self.is_reusable && first.behind.is_empty(),
            first: first.data,
            fault: first.fault,
            upload: self.upload,
            pool: self.pool,
            name: self.name,
        }
    }
}

/// What one read brought of a body.
pub(super) struct Read {
    data: Bytes,
    fault: Option<io::Error>,
    /// What came behind the body's end.
    pub(super) behind: Bytes,
}

impl Read {
    /// Takes the body out of what was read.
    pub(super) fn of(body: &mut http1::Body, read: &[u8]) -> Read {
        let mut data = Vec::new();
        let (used, fault) = match body.push(read, &mut data) {
            Ok(used) => (used, None),
            Err(error) => (read.len(), Some(invalid(error))),
        };
        Read {
            data: Bytes::from(data),
            fault,
            behind: Bytes::copy_from_slice(read.get(used..).unwrap_or_default()),
        }
    }
}

/// A response's body, which owns the connection that it comes through. Reading only when the
/// client takes the data is the backpressure.
pub(super) struct UpstreamBody {
    link: Option<Link>,
    body: http1::Body,
    /// What was read and not asked for yet.
    first: Bytes,
    /// Why nothing comes any more, to be told after `first`.
    fault: Option<io::Error>,
    is_reusable: bool,
    upload: Option<AbortOnDropHandle<()>>,
    pool: Rc<Upstreams>,
    name: Arc<str>,
}

impl UpstreamBody {
    /// The next piece. After the last it must not be polled again.
    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Piece> {
        loop {
            if !self.first.is_empty() {
                return Poll::Ready(Piece::Data(std::mem::take(&mut self.first)));
            }
            if let Some(trailers) = self.body.take_trailers() {
                return Poll::Ready(Piece::Trailers(trailers));
            }
            if let Some(error) = self.fault.take() {
                return Poll::Ready(Piece::Broken(error));
            }
            let Some(link) = self.link.as_mut().filter(|_| !self.body.is_complete()) else {
                return Poll::Ready(Piece::End);
            };
            let pool = self.pool.clone();
            let mut buffer = pool.buffer();
            match link.poll_read(cx, &mut buffer) {
                Poll::Pending => return link.silence.poll(cx).map(Piece::Silent),
                Poll::Ready(Err(error)) => return Poll::Ready(Piece::Broken(error)),
                Poll::Ready(Ok(0)) => {
                    let closed = self.body.close();
                    self.fault = closed.err().map(invalid);
                }
                Poll::Ready(Ok(size)) => {
                    link.silence.broken();
                    let read = Read::of(&mut self.body, buffer.get(..size).unwrap_or_default());
                    self.is_reusable &= read.behind.is_empty();
                    self.first = read.data;
                    self.fault = read.fault;
                }
            }
        }
    }

    /// Whether nothing more will come.
    pub(super) fn is_end_stream(&self) -> bool {
        self.first.is_empty()
            && self.fault.is_none()
            && self.body.is_complete()
            && !self.body.has_trailers()
    }

    /// The announced length of what is still to come.
    pub(super) fn size_hint(&self) -> SizeHint {
        let first = u64::try_from(self.first.len()).unwrap_or(u64::MAX);
        match self.body.rest() {
            Some(rest) if !self.body.has_trailers() => {
                SizeHint::with_exact(rest.saturating_add(first))
            }
            _ => SizeHint::default(),
        }
    }

    /// Gives the connection back to the pool if it is in a state for another request. To be
    /// called at a clean end only. What is left of the request goes on.
    pub(super) fn release(&mut self) {
        if let Some(upload) = self.upload.take() {
            drop(upload.detach());
        }
        if let Some(link) = self.link.take()
            && self.is_reusable
        {
            self.pool.check_in(&self.name, link);
        }
    }

    /// Closes the connection.
    pub(super) fn close(&mut self) {
        self.upload = None;
        self.link = None;
    }
}

fn invalid(error: http1::Invalid) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
