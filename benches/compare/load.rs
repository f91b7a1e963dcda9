//! The client: threads with a keep-alive connection each.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::time::Duration;

use memchr::memmem;
use taffrail::clock;
use tokio::time::Instant;

use super::upstream::{Answer, nanos, stamp};

/// How requests are sent.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pattern {
    /// Each connection asks again as soon as it has its answer.
    Closed,
    /// That many requests in a second, whatever the answers do. A request that has to wait for its
    /// connection counts from when it was due.
    Open { per_second: u32 },
}

/// What a slice brought.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) requests: u64,
    pub(crate) elapsed: Duration,
    /// Nanoseconds: of an open pattern from when a request was due to the end of its answer, of
    /// events that come apart from their write by the upstream to their arrival.
    pub(crate) delays: Vec<u64>,
}

/// Loads a server for a while. `begin` runs when every connection has had its first answer.
pub(crate) fn run(
    address: SocketAddr,
    request: &[u8],
    pattern: Pattern,
    connections: u32,
    duration: Duration,
    begin: impl FnOnce(),
) -> Seen {
    // Once when all have had their first answer, once when what `begin` reads has been read.
    let go = Barrier::new(connections as usize + 1);
    let mut seen = Seen::default();
    let mut started = clock::instant();
    std::thread::scope(|scope| {
        let go = &go;
        let load = |number| {
            scope.spawn(move || {
                let mut connection = Connection::open(address);
                connection.ask(request, |_| {});
                go.wait();
                go.wait();
                connection.load(request, pattern, (number, connections), duration)
            })
        };
        let threads: Vec<_> = (0..connections).map(load).collect();
        go.wait();
        begin();
        started = clock::instant();
        go.wait();
        for thread in threads {
            let one = thread.join().unwrap();
            seen.requests += one.requests;
            seen.delays.extend(one.delays);
        }
    });
    seen.elapsed = started.elapsed();
    seen.delays.sort_unstable();
    seen
}

/// Opens streams that stay open as long as they are held.
pub(crate) fn open_streams(address: SocketAddr, prefix: &str, count: usize) -> Vec<TcpStream> {
    let request = Answer::Open.request(prefix);
    let open = |_| {
        let mut connection = Connection::open(address);
        connection.stream.write_all(&request).unwrap();
        while stamp(connection.read()).is_none() {}
        connection.stream
    };
    (0..count).map(open).collect()
}

/// Waits for a listener that is not there yet, and for its first answer.
pub(crate) fn first_answer(address: SocketAddr, request: &[u8]) {
    let deadline = clock::instant() + Duration::from_secs(30);
    while TcpStream::connect(address).is_err() {
        assert!(clock::instant() < deadline, "nobody listens at {address}");
        sleep_until(clock::instant() + Duration::from_micros(200));
    }
    Connection::open(address).ask(request, |_| {});
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    fn open(address: SocketAddr) -> Connection {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        let patience = Some(Duration::from_secs(30));
        stream.set_read_timeout(patience).unwrap();
        Connection {
            stream,
            buffer: vec![0; 64 << 10],
        }
    }

    fn read(&mut self) -> &[u8] {
        let length = self.stream.read(&mut self.buffer).unwrap();
        assert_ne!(length, 0, "the connection was closed");
        &self.buffer[..length]
    }

    /// Asks once and reads the answer to its end.
    fn ask(&mut self, request: &[u8], mut arrived: impl FnMut(&[u8])) {
        self.stream.write_all(request).unwrap();
        let mut head = Vec::new();
        let rest = loop {
            head.extend_from_slice(self.read());
            if let Some(at) = memmem::find(&head, b"\r\n\r\n") {
                break head.split_off(at + 4);
            }
        };
        assert!(
            head.starts_with(b"HTTP/1.1 200 "),
            "{}",
            head.escape_ascii()
        );
        // nginx writes the first letters of the name large.
        let length = memmem::find(&head, b"ength: ").map(|at| {
            let value = head[at + 7..].split(|&byte| byte == b'\r').next();
            let value = std::str::from_utf8(value.unwrap()).unwrap();
            value.parse::<usize>().unwrap()
        });
        arrived(&rest);
        if let Some(length) = length {
            let mut missing = length - rest.len();
            while missing > 0 {
                let bytes = self.read();
                missing -= bytes.len();
                arrived(bytes);
            }
        } else {
            let mut tail = rest;
            while !tail.ends_with(b"\r\n0\r\n\r\n") {
                let bytes = self.read();
                arrived(bytes);
                tail.extend_from_slice(bytes);
                tail.drain(..tail.len().saturating_sub(7));
            }
        }
    }

    fn load(
        &mut self,
        request: &[u8],
        pattern: Pattern,
        (number, connections): (u32, u32),
        duration: Duration,
    ) -> Seen {
        let mut seen = Seen::default();
        let started = clock::instant();
        match pattern {
            Pattern::Closed => {
                while started.elapsed() < duration {
                    self.ask(request, |bytes| {
                        let written = stamp(bytes).filter(|&written| written > 0);
                        seen.delays
                            .extend(written.map(|written| nanos().saturating_sub(written)));
                    });
                    seen.requests += 1;
                }
            }
            Pattern::Open { per_second } => {
                let own = Duration::from_secs(1) / per_second;
                let mut due = started + own * number;
                while due < started + duration {
                    sleep_until(due);
                    self.ask(request, |_| {});
                    seen.delays
                        .push(u64::try_from(due.elapsed().as_nanos()).unwrap());
                    seen.requests += 1;
                    due += own * connections;
                }
            }
        }
        seen
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a thread of its own, and no timer of tokio is finer than a millisecond"
)]
fn sleep_until(when: Instant) {
    std::thread::sleep(when.saturating_duration_since(clock::instant()));
}
