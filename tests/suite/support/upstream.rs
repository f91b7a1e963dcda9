//! An upstream that does exactly what its script says, byte by byte.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// One thing that a scripted connection does.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// Reads a request's head and body (by content-length or chunked).
    Read,
    /// Reads a request's head only.
    ReadHead,
    /// Sends these bytes in one write.
    Send(Vec<u8>),
    /// Sends these bytes one by one.
    Drip(Vec<u8>),
    /// Waits.
    Pause(Duration),
    /// Closes with FIN, and ends the script.
    Close,
    /// Closes with RST, and ends the script.
    Reset,
    /// Closes only the sending side.
    HalfClose,
    /// Waits until the peer has closed.
    AwaitClose,
}

impl Act {
    pub(crate) fn send(bytes: impl AsRef<[u8]>) -> Act {
        Act::Send(bytes.as_ref().to_vec())
    }
}

/// A running upstream.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
    connections: Arc<Mutex<usize>>,
}

impl Upstream {
    /// Every connection runs the same script.
    pub(crate) async fn start(script: Vec<Act>) -> Upstream {
        Upstream::start_each(vec![script]).await
    }

    /// The first connection runs the first script and so on; the last one is for all others.
    pub(crate) async fn start_each(scripts: Vec<Vec<Act>>) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(Mutex::new(0));
        let (all_seen, count) = (seen.clone(), connections.clone());
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    return;
                };
                let index = {
                    let mut count = count.lock().unwrap();
                    *count += 1;
                    (*count - 1).min(scripts.len() - 1)
                };
                let script = scripts[index].clone();
                tokio::spawn(play(stream, script, all_seen.clone()));
            }
        });
        Upstream {
            address,
            seen,
            connections,
        }
    }

    /// The requests as they arrived, head and body.
    pub(crate) fn requests(&self) -> Vec<Vec<u8>> {
        self.seen.lock().unwrap().clone()
    }

    /// How many connections were made.
    pub(crate) fn connections(&self) -> usize {
        *self.connections.lock().unwrap()
    }
}

async fn play(mut stream: TcpStream, script: Vec<Act>, seen: Arc<Mutex<Vec<Vec<u8>>>>) {
    stream.set_nodelay(true).unwrap();
    let mut pending = Vec::new();
    for act in script {
        let done = match act {
            Act::Read => read_request(&mut stream, &mut pending, true)
                .await
                .map(|request| {
                    seen.lock().unwrap().push(request);
                }),
            Act::ReadHead => read_request(&mut stream, &mut pending, false)
                .await
                .map(|request| {
                    seen.lock().unwrap().push(request);
                }),
            Act::Send(bytes) => stream.write_all(&bytes).await.ok(),
            Act::Drip(bytes) => {
                let mut done = Some(());
                for byte in bytes {
                    done = done.and(stream.write_all(&[byte]).await.ok());
                    tokio::task::yield_now().await;
                }
                done
            }
            Act::Pause(time) => {
                tokio::time::sleep(time).await;
                Some(())
            }
            Act::Close => return,
            Act::Reset => {
                stream.set_zero_linger().unwrap();
                return;
            }
            Act::HalfClose => stream.shutdown().await.ok(),
            Act::AwaitClose => {
                let mut sink = [0; 4096];
                while matches!(stream.read(&mut sink).await, Ok(read) if read > 0) {}
                Some(())
            }
        };
        if done.is_none() {
            return;
        }
    }
}

/// Reads one request; `None` at the connection's end.
async fn read_request(
    stream: &mut TcpStream,
    pending: &mut Vec<u8>,
    with_body: bool,
) -> Option<Vec<u8>> {
    let mut chunk = vec![0; 64 << 10];
    loop {
        if let Some(head) = find(pending, b"\r\n\r\n") {
            let head = head + 4;
            if !with_body {
                return Some(pending.drain(..head).collect());
            }
            let text = String::from_utf8_lossy(&pending[..head]).to_ascii_lowercase();
            let length = text
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"))
                .and_then(|value| value.trim().parse::<usize>().ok());
            let end = if text.contains("transfer-encoding: chunked") {
                find(&pending[head..], b"0\r\n\r\n").map(|at| head + at + 5)
            } else {
                Some(head + length.unwrap_or(0))
            };
            if let Some(end) = end.filter(|end| *end <= pending.len()) {
                return Some(pending.drain(..end).collect());
            }
        }
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => pending.extend_from_slice(&chunk[..read]),
        }
    }
}

/// Where `needle` begins in `hay`.
pub(crate) fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memmem::find(hay, needle)
}
