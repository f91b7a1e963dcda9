//! A connection to a provider, and the patience with it.
//!
//! It holds no buffers: what is read goes into one that all connections of the thread share.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::clock;
use crate::proxy::stream::Stream;

/// An open connection to a provider.
pub(super) struct Link {
    /// Shared with the task of an upload that goes on while the response is read.
    pub(super) stream: Rc<RefCell<Stream>>,
    pub(super) silence: Silence,
}

impl Link {
    pub(super) fn new(stream: Stream, idle_timeout: Duration) -> Link {
        Link {
            stream: Rc::new(RefCell::new(stream)),
            silence: Silence::new(idle_timeout),
        }
    }

    /// Reads what there is, up to the size of the buffer; 0 at the end.
    pub(super) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        let mut stream = self.stream.borrow_mut();
        ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// Whether an idle connection is still open and nothing has come over it unasked.
    pub(super) fn is_quiet(&self) -> bool {
        let mut byte = [0];
        let mut cx = Context::from_waker(Waker::noop());
        self.poll_read(&mut cx, &mut byte).is_pending()
    }
}

/// Watches for a provider that falls silent. It has one timer, which is set anew only when it
/// fires and something has come meanwhile.
pub(super) struct Silence {
    limit: Duration,
    since: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Silence {
    pub(super) fn new(limit: Duration) -> Silence {
        Silence {
            limit,
            since: clock::instant(),
            timer: None,
        }
    }

    /// Something came, or is asked for anew.
    pub(super) fn broken(&mut self) {
        self.since = clock::instant();
    }

    /// When the silence began.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// Ready with the limit when it is reached.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        let deadline = self.since + self.limit;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        while timer.as_mut().poll(cx).is_ready() {
            if clock::instant() >= deadline {
                return Poll::Ready(self.limit);
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}
