//! The request's body on its way to the provider.
//!
//! A small body is held whole, so that it can be sent again when a pooled connection turns out
//! to be dead; a large one streams through, whatever its size, and is shown to the reader as it
//! passes.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame};
use hyper::body::Incoming;

use crate::provider::{RequestFacts, RequestReader};
use crate::proxy::guard::guarded;
use crate::proxy::rewrite::Splicer;

/// What the meter has seen of the request's body. Shared between the body, which fills it while
/// it streams, and the settlement, which reads it at the end.
pub(super) struct RequestTap {
    reader: Option<Box<dyn RequestReader>>,
    facts: RequestFacts,
    bytes: u64,
    panics: u32,
}

impl RequestTap {
    /// Shows the body to `reader`; without one it panicked when it was made.
    pub(super) fn new(reader: Option<Box<dyn RequestReader>>) -> RequestTap {
        RequestTap {
            panics: u32::from(reader.is_none()),
            reader,
            facts: RequestFacts::default(),
            bytes: 0,
        }
    }

    /// Takes the next bytes of the body. A reader that panics is dropped: the traffic goes on
    /// unread.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.show(|reader| reader.push(bytes));
    }

    /// Takes the end of the body.
    pub(super) fn end(&mut self) {
        self.show(|reader| reader.end());
    }

    fn show(&mut self, step: impl FnOnce(&mut dyn RequestReader)) {
        let Some(mut reader) = self.reader.take() else {
            return;
        };
        match guarded(|| step(reader.as_mut())) {
            Some(()) => self.reader = Some(reader),
            None => self.panics += 1,
        }
    }

    /// What is known by now.
    pub(super) fn facts(&self) -> &RequestFacts {
        self.reader
            .as_ref()
            .map_or(&self.facts, |reader| reader.facts())
    }

    /// Bytes seen so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Notes bytes that passed unread, through an upgraded connection.
    pub(super) fn tunnelled(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// How often the reader panicked.
    pub(super) fn panics(&self) -> u32 {
        self.panics
    }
}

/// A request's body.
pub(super) enum RequestBody {
    /// Held whole; can be sent again.
    Whole(Option<Bytes>),
    /// Streams through.
    Stream(Box<Upload>),
}

/// A body that streams from the client to the provider.
pub(super) struct Upload {
    pub(super) incoming: Incoming,
    pub(super) tap: Rc<RefCell<RequestTap>>,
    pub(super) splicer: Option<Splicer>,
    pub(super) progress: Rc<Progress>,
    /// The trailers, until all that comes before them has been handed over.
    pub(super) trailers: Option<HeaderMap>,
}

/// How far an upload is; read by whoever waits for the response.
#[derive(Default)]
pub(super) struct Progress {
    /// Set when the last byte was handed over.
    pub(super) is_done: Cell<bool>,
    /// Bytes handed over so far.
    pub(super) bytes: Cell<u64>,
    /// Set when the client broke the upload off.
    pub(super) is_broken: Cell<bool>,
    /// Set when the splicer added its option.
    pub(super) is_injected: Cell<bool>,
    /// While set, the body waits: the client wants a `100 Continue` first.
    pub(super) is_held: Cell<bool>,
}

impl Upload {
    /// The next frame; none at the end.
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if self.progress.is_held.get() {
            // The exchange wakes this task when the provider has answered `100 Continue`.
            return Poll::Pending;
        }
        loop {
            if self.progress.is_done.get() {
                let trailers = self.trailers.take().map(Frame::trailers);
                return Poll::Ready(trailers.map(Ok));
            }
            let Some(frame) = ready!(Pin::new(&mut self.incoming).poll_frame(cx)) else {
                let rest = self.end();
                if rest.is_empty() {
                    continue;
                }
                return Poll::Ready(Some(Ok(Frame::data(rest))));
            };
            let mut frame = match frame {
                // What the splicer still holds comes before them.
                Ok(frame) if frame.is_trailers() => {
                    self.trailers = frame.into_trailers().ok();
                    continue;
                }
                Ok(frame) => frame,
                Err(error) => {
                    self.progress.is_broken.set(true);
                    return Poll::Ready(Some(Err(error)));
                }
            };
            if let Some(bytes) = frame.data_mut() {
                let mut tap = self.tap.borrow_mut();
                tap.push(bytes);
                self.progress.bytes.set(tap.bytes());
                drop(tap);
                if let Some(splicer) = &mut self.splicer {
                    let mut out = Vec::with_capacity(bytes.len());
                    splicer.push(bytes, &mut out);
                    if out.is_empty() {
                        continue;
                    }
                    *bytes = Bytes::from(out);
                }
            }
            if self.splicer.is_none() && self.incoming.is_end_stream() {
                self.end();
            }
            return Poll::Ready(Some(Ok(frame)));
        }
    }

    /// Notes the end, and returns what the splicer still held.
    fn end(&mut self) -> Bytes {
        self.tap.borrow_mut().end();
        self.progress.is_done.set(true);
        let mut out = Vec::new();
        if let Some(mut splicer) = self.splicer.take() {
            splicer.end(&mut out);
            self.progress.is_injected.set(splicer.has_injected());
        }
        Bytes::from(out)
    }
}
