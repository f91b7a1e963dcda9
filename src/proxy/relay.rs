//! The response's body on its way to the client: forwarded, then shown to the meter.
//!
//! What one read of the upstream brought leaves as one frame, so that a burst of events costs
//! one write. The last bytes are held until the record is in the journal: a response that the
//! client saw complete is never missing from the books, whatever happens to the process.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use crate::metrics::Rewrite;
use crate::provider::End;
use crate::proxy::inbound::{Piece, UpstreamBody};
use crate::proxy::job_urls::JobUrlFilter;
use crate::proxy::rewrite::UsageEventFilter;
use crate::proxy::settle::Settlement;

/// A frame is released at this size, even if more is at hand: it bounds the memory of a stream
/// and the time of one poll.
const FRAME_BYTES_MAX: usize = 64 << 10;

/// How often a broken body answers "not yet" before it reports the break, so that hyper flushes
/// what it holds. One is not enough: after a pending body hyper polls it a second time in the
/// same pass.
const FLUSH_PASSES: u8 = 3;

/// Why a response's body breaks off at the client.
#[derive(Debug, thiserror::Error)]
pub(super) enum RelayError {
    /// The provider broke it off.
    #[error("the response broke off: {0}")]
    Broken(#[from] io::Error),
    /// The provider fell silent.
    #[error("the provider was silent for {0:?}")]
    Silent(Duration),
}

/// What to do when the client goes away before the end.
#[derive(Debug, Clone, Copy)]
pub(super) struct DrainLimits {
    /// The longest time to read on.
    pub(super) time: Duration,
    /// The most bytes to read on.
    pub(super) bytes: u64,
}

/// A declared change to a body.
pub(super) enum Filter {
    /// Takes out the event that Taffrail asked for.
    UsageEvent(UsageEventFilter),
    /// Points the URLs of a job at the proxy.
    JobUrls(JobUrlFilter),
}

impl Filter {
    fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        match self {
            Filter::UsageEvent(filter) => filter.push(bytes, out),
            Filter::JobUrls(filter) => filter.push(bytes, out),
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        match self {
            Filter::UsageEvent(filter) => filter.end(out),
            Filter::JobUrls(filter) => filter.end(out),
        }
    }
}

/// See the module's text.
pub(super) struct Relay {
    upstream: Option<UpstreamBody>,
    settlement: Settlement,
    filter: Option<Filter>,
    held: Held,
    trailers: Option<HeaderMap>,
    failure: Option<RelayError>,
    flush_passes: u8,
    has_ended: bool,
    drain: Option<DrainLimits>,
}

impl Relay {
    /// Relays a body. With `filter` the events that Taffrail asked for are taken out; with
    /// `drain` the body is read on when the client goes away.
    pub(super) fn new(
        upstream: UpstreamBody,
        settlement: Settlement,
        filter: Option<Filter>,
        drain: Option<DrainLimits>,
    ) -> Relay {
        let mut relay = Relay {
            upstream: Some(upstream),
            settlement,
            filter,
            held: Held::default(),
            trailers: None,
            failure: None,
            flush_passes: 0,
            has_ended: false,
            drain,
        };
        if relay
            .upstream
            .as_ref()
            .is_some_and(UpstreamBody::is_end_stream)
        {
            relay.end();
        }
        relay
    }

    /// A clean end: the record is written, then the connection goes back to the pool.
    fn end(&mut self) {
        self.end_filter();
        self.settlement.finish(End::Complete);
        if let Some(mut upstream) = self.upstream.take() {
            upstream.release();
        }
        self.has_ended = true;
    }

    fn fail(&mut self, end: End, failure: RelayError) {
        self.end_filter();
        self.settlement.finish(end);
        if let Some(mut upstream) = self.upstream.take() {
            upstream.close();
        }
        self.failure = Some(failure);
        self.has_ended = true;
    }

    /// Lets go of what a filter withholds; where a body breaks off, that is not ours to complete.
    fn end_filter(&mut self) {
        let Some(mut filter) = self.filter.take() else {
            return;
        };
        let mut out = Vec::new();
        filter.end(&mut out);
        self.held.push(Bytes::from(out));
        if let Filter::JobUrls(filter) = filter
            && filter.replaced() > 0
        {
            self.settlement.rewritten(Rewrite::JobUrls);
        }
    }

    fn take(&mut self, bytes: Bytes) {
        self.settlement.see(&bytes);
        match &mut self.filter {
            None => self.held.push(bytes),
            Some(filter) => {
                let mut out = Vec::with_capacity(bytes.len());
                filter.push(&bytes, &mut out);
                self.held.push(Bytes::from(out));
            }
        }
    }

    fn poll_ended(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        if !self.held.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(self.held.take()))));
        }
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        if self.failure.is_some() && self.flush_passes < FLUSH_PASSES {
            self.flush_passes += 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(self.failure.take().map(Err))
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = RelayError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        let this = self.get_mut();
        loop {
            let Some(upstream) = this.upstream.as_mut().filter(|_| !this.has_ended) else {
                return this.poll_ended(cx);
            };
            if this.held.len() >= FRAME_BYTES_MAX {
                return Poll::Ready(Some(Ok(Frame::data(this.held.take()))));
            }
            match upstream.poll_piece(cx) {
                Poll::Ready(Piece::Data(bytes)) => {
                    let is_last = upstream.is_end_stream();
                    this.take(bytes);
                    if is_last {
                        this.end();
                    }
                }
                Poll::Ready(Piece::Trailers(trailers)) => {
                    this.trailers = Some(trailers);
                    this.end();
                }
                Poll::Ready(Piece::End) => this.end(),
                Poll::Ready(Piece::Broken(error)) => this.fail(End::Truncated, error.into()),
                Poll::Ready(Piece::Silent(limit)) => {
                    this.fail(End::TimedOut, RelayError::Silent(limit));
                }
                Poll::Pending if !this.held.is_empty() => {
                    return Poll::Ready(Some(Ok(Frame::data(this.held.take()))));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended && self.held.is_empty() && self.trailers.is_none() && self.failure.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let held = u64::try_from(self.held.len()).unwrap_or(u64::MAX);
        match &self.upstream {
            // A filter changes the length.
            Some(_) if self.filter.is_some() => SizeHint::default(),
            Some(upstream) => match upstream.size_hint().exact() {
                Some(rest) => SizeHint::with_exact(rest + held),
                None => SizeHint::default(),
            },
            None if self.failure.is_some() || self.trailers.is_some() => SizeHint::default(),
            None => SizeHint::with_exact(held),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let (Some(limits), Some(mut upstream)) = (self.drain, self.upstream.take()) else {
            return;
        };
        let mut settlement = self.settlement.take();
        tokio::task::spawn_local(async move {
            let mut rest = limits.bytes;
            let read_on = std::future::poll_fn(|cx| {
                loop {
                    match std::task::ready!(upstream.poll_piece(cx)) {
                        Piece::Data(bytes) => {
                            settlement.see(&bytes);
                            rest =
                                rest.saturating_sub(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                            if rest == 0 {
                                return Poll::Ready(());
                            }
                        }
                        Piece::Trailers(_) | Piece::End => {
                            settlement.finish_unread();
                            return Poll::Ready(());
                        }
                        Piece::Broken(_) | Piece::Silent(_) => return Poll::Ready(()),
                    }
                }
            });
            if tokio::time::timeout(limits.time, read_on).await.is_err() {
                tracing::debug!("gave up reading a response that nobody waits for");
            }
        });
    }
}

/// Bytes to be released as one frame. The first piece is kept as it is; only a second one makes
/// a copy.
#[derive(Default)]
struct Held {
    first: Bytes,
    joined: BytesMut,
}

impl Held {
    fn push(&mut self, bytes: Bytes) {
        if self.is_empty() {
            self.first = bytes;
            return;
        }
        if self.joined.is_empty() {
            self.joined.reserve(self.first.len() + bytes.len());
            self.joined.extend_from_slice(&self.first);
            self.first = Bytes::new();
        }
        self.joined.extend_from_slice(&bytes);
    }

    fn take(&mut self) -> Bytes {
        if self.joined.is_empty() {
            std::mem::take(&mut self.first)
        } else {
            self.joined.split().freeze()
        }
    }

    fn len(&self) -> usize {
        self.first.len() + self.joined.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
