//! An upgraded connection: bytes both ways, counted and unmetered, until one side ends it or
//! both are silent for too long.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};

use crate::provider::End;
use crate::proxy::settle::Settlement;
use crate::proxy::upstream::UpgradedStream;

/// A tunnel, which is settled when it ends and also when it is cut off.
pub(super) struct Tunnel {
    settlement: Settlement,
    client: Rc<Seen>,
    provider: Rc<Seen>,
}

/// What one side did.
#[derive(Default)]
struct Seen {
    bytes_sent: Cell<u64>,
    has_broken: Cell<bool>,
}

impl Tunnel {
    pub(super) fn new(settlement: Settlement) -> Tunnel {
        Tunnel {
            settlement,
            client: Rc::default(),
            provider: Rc::default(),
        }
    }

    /// Relays until both sides have ended, one breaks off, or both are silent for `silence_max`.
    pub(super) async fn relay(
        mut self,
        client: Upgraded,
        provider: UpgradedStream,
        silence_max: Duration,
    ) {
        let mut client_side = Side::new(TokioIo::new(client), &self.client);
        let mut provider_side = Side::new(provider, &self.provider);
        let copying = copy_bidirectional(&mut client_side, &mut provider_side);
        let end = tokio::select! {
            copied = copying => match copied {
                Ok(_) => End::Complete,
                Err(_) if self.client.has_broken.get() => End::Cancelled,
                Err(_) => End::Truncated,
            },
            () = self.silence(silence_max) => End::TimedOut,
        };
        self.count();
        self.settlement.finish(end);
    }

    /// Resolves when nothing has moved for that time.
    async fn silence(&self, max: Duration) {
        let moved = || self.client.bytes_sent.get() + self.provider.bytes_sent.get();
        let mut before = None;
        while before != Some(moved()) {
            before = Some(moved());
            tokio::time::sleep(max).await;
        }
    }

    fn count(&mut self) {
        let (up, down) = (
            self.client.bytes_sent.take(),
            self.provider.bytes_sent.take(),
        );
        self.settlement.tunnelled(up, down);
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.count();
    }
}

/// One side's stream, watched.
struct Side<S> {
    stream: S,
    seen: Rc<Seen>,
}

impl<S> Side<S> {
    fn new(stream: S, seen: &Rc<Seen>) -> Side<S> {
        Side {
            stream,
            seen: seen.clone(),
        }
    }

    fn note<T>(&self, moved: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(_)) = moved {
            self.seen.has_broken.set(true);
        }
        moved
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Side<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        let bytes = u64::try_from(buffer.filled().len() - before).unwrap_or(u64::MAX);
        this.seen.bytes_sent.update(|sent| sent + bytes);
        this.note(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Side<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.note(written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        this.note(flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shut = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.note(shut)
    }
}
