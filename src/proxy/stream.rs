//! The sockets on both sides: plain or TLS towards the provider, and the client's, with the
//! time limits that HTTP itself does not set.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsStream;

use crate::clock;

/// A connection, to a provider or from a client.
pub(super) enum Stream {
    /// Plain.
    Tcp(TcpStream),
    /// TLS, shaken hands on.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, buffers),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, buffers),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Tcp(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// What a client's connection is doing; shared between its socket and its service.
#[derive(Debug, Default)]
pub(super) struct Phase(AtomicU8);

const WAITING: u8 = 0;
const HEAD: u8 = 1;
const SERVING: u8 = 2;

impl Phase {
    /// A request's head is complete.
    pub(super) fn serve(&self) {
        self.0.store(SERVING, Ordering::Relaxed);
    }

    /// The response is over; the connection waits for the next request.
    pub(super) fn wait(&self) {
        self.0.store(WAITING, Ordering::Relaxed);
    }
}

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClientLimits {
    /// From the first byte of a request's head to its last.
    pub(super) header_timeout: Duration,
    /// For silence between requests, and for a client that does not take what is written to it.
    pub(super) idle_timeout: Duration,
}

/// A client's socket, with what is to live as long as it does. hyper has one timer for both the
/// wait for a request and the reading of its head, and none for a client that stops reading; here
/// each has its own limit.
pub(super) struct ClientStream<G> {
    socket: Stream,
    phase: Arc<Phase>,
    limits: ClientLimits,
    /// What the connection waits for, and until when.
    read_deadline: Option<(u8, Instant)>,
    read_timer: Option<Pin<Box<Sleep>>>,
    write_limit: Option<Pin<Box<Sleep>>>,
    _guard: G,
}

impl<G> ClientStream<G> {
    pub(super) fn new(
        socket: Stream,
        phase: Arc<Phase>,
        limits: ClientLimits,
        guard: G,
    ) -> ClientStream<G> {
        ClientStream {
            socket,
            phase,
            limits,
            read_deadline: None,
            read_timer: None,
            write_limit: None,
            _guard: guard,
        }
    }

    /// Whether the time for what the connection is doing is over. The timer is set anew only
    /// where it would fire too late; where it fires too early, the deadline is looked at.
    fn poll_read_limit(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let phase = self.phase.0.load(Ordering::Relaxed);
        let limit = match phase {
            WAITING => self.limits.idle_timeout,
            HEAD => self.limits.header_timeout,
            _ => {
                self.read_deadline = None;
                return Poll::Pending;
            }
        };
        let deadline = match self.read_deadline {
            Some((waits_for, deadline)) if waits_for == phase => deadline,
            _ => clock::instant() + limit,
        };
        self.read_deadline = Some((phase, deadline));
        let timer = self
            .read_timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if clock::instant() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    fn poll_written<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_limit = None;
            return written;
        }
        let limit = self.limits.idle_timeout;
        let sleep = self
            .write_limit
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(clock::instant() + limit)));
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(Err(timed_out("the client does not read")))
    }
}

fn timed_out(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, message)
}

impl<G: Unpin> AsyncRead for ClientStream<G> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.socket).poll_read(cx, buffer);
        if read.is_pending() {
            ready!(this.poll_read_limit(cx));
            return Poll::Ready(Err(timed_out("the client sends no request")));
        }
        if buffer.filled().len() > before {
            let from_waiting =
                this.phase
                    .0
                    .compare_exchange(WAITING, HEAD, Ordering::Relaxed, Ordering::Relaxed);
            if from_waiting.is_ok() {
                this.read_deadline = None;
            }
        }
        read
    }
}

impl<G: Unpin> AsyncWrite for ClientStream<G> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write(cx, bytes);
        this.poll_written(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write_vectored(cx, buffers);
        this.poll_written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // With TLS, what was written may be under way still.
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.socket).poll_flush(cx);
        this.poll_written(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shut_down = Pin::new(&mut this.socket).poll_shutdown(cx);
        this.poll_written(cx, shut_down)
    }
}
