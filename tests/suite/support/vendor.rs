//! An upstream whose answers are a function of what it is asked.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::upstream::find;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    /// Without its framing.
    pub(crate) body: Vec<u8>,
    /// Whether the body came to the end that its framing promised.
    pub(crate) is_whole: bool,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The body as JSON; null if it is none.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// How a body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Length,
    Chunked,
    UntilClose,
}

/// What follows the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    /// The end that the framing promised.
    Complete,
    /// A closed connection in the place of that end.
    CutOff,
    /// Nothing, until the peer closes.
    Silent,
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    /// `200 OK`
    pub(crate) status: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) framing: Framing,
    pub(crate) finish: Finish,
}

impl Reply {
    pub(crate) fn json(body: impl Into<Vec<u8>>) -> Reply {
        Reply {
            status: "200 OK".to_owned(),
            headers: vec![("content-type".to_owned(), "application/json".to_owned())],
            body: body.into(),
            framing: Framing::Length,
            finish: Finish::Complete,
        }
    }

    pub(crate) fn events(body: impl Into<Vec<u8>>) -> Reply {
        Reply {
            headers: vec![(
                "content-type".to_owned(),
                "text/event-stream; charset=utf-8".to_owned(),
            )],
            framing: Framing::Chunked,
            ..Reply::json(body)
        }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Reply {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn finish(mut self, finish: Finish) -> Reply {
        self.finish = finish;
        self
    }

    fn has_body(&self) -> bool {
        !self.status.starts_with("101")
    }

    /// What goes over the wire, in the pieces that are written at once: the head, then an event
    /// each, or a kilobyte.
    fn pieces(&self) -> Vec<Vec<u8>> {
        let mut head = format!("HTTP/1.1 {}\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        let announced = self.body.len() + usize::from(self.finish != Finish::Complete);
        match self.framing {
            _ if !self.has_body() => head += "connection: upgrade\r\n",
            Framing::Length => head += &format!("content-length: {announced}\r\n"),
            Framing::Chunked => head += "transfer-encoding: chunked\r\n",
            Framing::UntilClose => head += "connection: close\r\n",
        }
        head += "\r\n";
        let mut pieces = vec![head.into_bytes()];
        let mut rest = self.body.as_slice();
        while !rest.is_empty() {
            let event = find(rest, b"\n\n").map_or(rest.len(), |at| at + 2);
            let (piece, after) = rest.split_at(event.min(1024));
            rest = after;
            pieces.push(match self.framing {
                Framing::Chunked => {
                    let size = format!("{:x}\r\n", piece.len());
                    [size.as_bytes(), piece, b"\r\n"].concat()
                }
                _ => piece.to_vec(),
            });
        }
        let has_end = self.has_body() && self.finish == Finish::Complete;
        if self.framing == Framing::Chunked && has_end {
            pieces.push(b"0\r\n\r\n".to_vec());
        }
        pieces
    }
}

type Answer = dyn Fn(&Asked) -> Reply + Send + Sync;

/// A running upstream.
pub(crate) struct Vendor {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Vendor {
    pub(crate) async fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Vendor {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answer): (_, Arc<Answer>) = (asked.clone(), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, answer.clone(), log.clone()));
            }
        });
        Vendor { address, asked }
    }

    /// Answers each request by the value of a header.
    pub(crate) async fn start_by(header: &'static str, replies: HashMap<String, Reply>) -> Vendor {
        Vendor::start(move |asked| {
            let name = asked.header(header).unwrap_or_default();
            replies
                .get(name)
                .unwrap_or_else(|| panic!("no reply {name:?}"))
                .clone()
        })
        .await
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests so far, in the order of their arrival.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, answer: Arc<Answer>, log: Arc<Mutex<Vec<Asked>>>) {
    stream.set_nodelay(true).unwrap();
    let mut pending = Vec::new();
    while let Some(asked) = read(&mut stream, &mut pending).await {
        let is_whole = asked.is_whole;
        let reply = is_whole.then(|| answer(&asked));
        log.lock().unwrap().push(asked);
        let Some(reply) = reply else { return };
        for piece in reply.pieces() {
            if stream.write_all(&piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        let is_last = reply.framing == Framing::UntilClose || !reply.has_body();
        match reply.finish {
            Finish::Complete if !is_last => {}
            Finish::Complete | Finish::CutOff => return,
            Finish::Silent => {
                let mut sink = [0; 1024];
                while matches!(stream.read(&mut sink).await, Ok(read) if read > 0) {}
                return;
            }
        }
    }
}

/// Reads one request; `None` when the peer closes before it begins.
async fn read(stream: &mut TcpStream, pending: &mut Vec<u8>) -> Option<Asked> {
    let mut chunk = vec![0; 64 << 10];
    let mut is_over = false;
    loop {
        if let Some((asked, used)) = parse(pending)
            && (asked.is_whole || is_over)
        {
            pending.drain(..used);
            return Some(asked);
        }
        if is_over {
            return None;
        }
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => is_over = true,
            Ok(read) => pending.extend_from_slice(&chunk[..read]),
        }
    }
}

/// The request at the start of `bytes` and its length; `None` before its head is there.
pub(crate) fn parse(bytes: &[u8]) -> Option<(Asked, usize)> {
    let head_length = find(bytes, b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..head_length]).into_owned();
    let mut lines = head.lines();
    let mut words = lines.next()?.split(' ').map(str::to_owned);
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let rest = &bytes[head_length..];
    let length = headers
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    let is_chunked = headers.get("transfer-encoding").map(String::as_str) == Some("chunked");
    let (body, used, is_whole) = match is_chunked {
        true => unchunk(rest),
        false => {
            let used = rest.len().min(length);
            (rest[..used].to_vec(), used, used == length)
        }
    };
    let asked = Asked {
        method: words.next()?,
        target: words.next()?,
        headers,
        body,
        is_whole,
    };
    Some((asked, head_length + used))
}

/// The content of a chunked body, its length on the wire, and whether its end is there.
fn unchunk(bytes: &[u8]) -> (Vec<u8>, usize, bool) {
    let mut body = Vec::new();
    let mut at = 0;
    while let Some(line) = find(&bytes[at..], b"\r\n") {
        let size = std::str::from_utf8(&bytes[at..at + line]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        let start = at + line + 2;
        let end = start + size + 2;
        if bytes.len() < end {
            body.extend_from_slice(&bytes[start..bytes.len().min(start + size)]);
            break;
        }
        body.extend_from_slice(&bytes[start..start + size]);
        at = end;
        if size == 0 {
            return (body, at, true);
        }
    }
    (body, bytes.len(), false)
}
