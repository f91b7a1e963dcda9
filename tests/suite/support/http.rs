//! A raw client that notes what came and how it ended.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::upstream::find;

/// How long a response may be silent before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a response ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// As its framing promised.
    Complete,
    /// Before that.
    Truncated,
    /// There was no head.
    NoResponse,
    /// It neither goes on nor ends.
    Stuck,
}

/// A response as an application sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) status: u16,
    /// Without the fields that concern one hop, and without framing.
    pub(crate) headers: BTreeMap<String, Vec<Vec<u8>>>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: BTreeMap<String, Vec<u8>>,
    pub(crate) ending: Ending,
}

/// Sends `request` to `address` on a connection of its own and reads one response.
pub(crate) async fn ask(address: SocketAddr, request: &[u8]) -> Seen {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    // A peer may answer and close before it has read everything.
    stream.write_all(request).await.ok();
    let is_head = request.starts_with(b"HEAD ");
    read_response(&mut stream, &mut Vec::new(), is_head).await
}

/// Sends `request` and leaves as soon as the head and `body_bytes` bytes of the body are there.
pub(crate) async fn ask_and_leave(address: SocketAddr, request: &[u8], body_bytes: usize) -> Seen {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut pending = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        let (seen, _) = parse(&pending, false, true).unwrap();
        if seen.status != 0 && seen.body.len() >= body_bytes {
            return seen;
        }
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut chunk)).await;
        match read.expect("nothing comes").expect("the connection broke") {
            0 => panic!("the response ended after {} bytes", seen.body.len()),
            read => pending.extend_from_slice(&chunk[..read]),
        }
    }
}

/// Reads one response; what follows it stays in `pending`.
pub(crate) async fn read_response(
    stream: &mut (impl AsyncRead + Unpin),
    pending: &mut Vec<u8>,
    is_head: bool,
) -> Seen {
    let mut chunk = vec![0; 64 << 10];
    let mut is_over = false;
    loop {
        if let Some((seen, used)) = parse(pending, is_head, is_over) {
            pending.drain(..used);
            return seen;
        }
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut chunk)).await;
        match read {
            Ok(Ok(read)) if read > 0 => pending.extend_from_slice(&chunk[..read]),
            Ok(_) => is_over = true,
            Err(_) => {
                let (mut seen, _) = parse(pending, is_head, true).unwrap();
                seen.ending = Ending::Stuck;
                return seen;
            }
        }
    }
}

/// The response at the start of `bytes`, and its length; `None` if more is to come.
fn parse(bytes: &[u8], is_head: bool, is_over: bool) -> Option<(Seen, usize)> {
    let none = Seen {
        status: 0,
        headers: BTreeMap::new(),
        body: Vec::new(),
        trailers: BTreeMap::new(),
        ending: Ending::NoResponse,
    };
    let Some(head_length) = find(bytes, b"\r\n\r\n").map(|at| at + 4) else {
        return is_over.then_some((none, bytes.len()));
    };
    let mut lines = bytes[..head_length].split(|byte| *byte == b'\n');
    let status_line = String::from_utf8_lossy(lines.next().unwrap()).into_owned();
    let Some(status) = status_line
        .split_whitespace()
        .nth(1)
        .and_then(|code| code.parse().ok())
    else {
        return Some((none, bytes.len()));
    };
    if (100..200).contains(&status) && status != 101 {
        let rest = &bytes[head_length..];
        return parse(rest, is_head, is_over).map(|(seen, used)| (seen, used + head_length));
    }
    let mut fields: Vec<(String, Vec<u8>)> = Vec::new();
    for line in lines {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if let Some(colon) = line.iter().position(|byte| *byte == b':') {
            let name = String::from_utf8_lossy(&line[..colon]).to_ascii_lowercase();
            fields.push((name, line[colon + 1..].trim_ascii().to_vec()));
        }
    }
    let field = |wanted: &str| {
        fields
            .iter()
            .find(|(name, _)| name == wanted)
            .map(|(_, v)| v)
    };
    let length = field("content-length")
        .and_then(|value| String::from_utf8_lossy(value).parse::<usize>().ok());
    let is_chunked = field("transfer-encoding").is_some_and(|value| value == b"chunked");
    let rest = &bytes[head_length..];
    let mut seen = Seen { status, ..none };
    let used = if is_head || status == 204 || status == 304 || status == 101 {
        seen.ending = Ending::Complete;
        0
    } else if is_chunked {
        let (used, ending) = parse_chunks(rest, &mut seen)?.unzip_or_over(is_over)?;
        seen.ending = ending;
        used
    } else if let Some(length) = length {
        if rest.len() < length && !is_over {
            return None;
        }
        seen.ending = if rest.len() < length {
            Ending::Truncated
        } else {
            Ending::Complete
        };
        seen.body = rest[..length.min(rest.len())].to_vec();
        seen.body.len()
    } else {
        if !is_over {
            return None;
        }
        seen.ending = Ending::Complete;
        seen.body = rest.to_vec();
        rest.len()
    };
    const OF_ONE_HOP: [&str; 6] = [
        "connection",
        "keep-alive",
        "transfer-encoding",
        "content-length",
        "te",
        "date",
    ];
    for (name, value) in fields {
        if !OF_ONE_HOP.contains(&name.as_str()) {
            seen.headers.entry(name).or_default().push(value);
        }
    }
    Some((seen, head_length + used))
}

/// How far a chunked body is.
struct Chunks {
    used: usize,
    /// `None`: more is to come.
    ending: Option<Ending>,
}

impl Chunks {
    fn unzip_or_over(self, is_over: bool) -> Option<(usize, Ending)> {
        match self.ending {
            Some(ending) => Some((self.used, ending)),
            None => is_over.then_some((self.used, Ending::Truncated)),
        }
    }
}

fn parse_chunks(bytes: &[u8], seen: &mut Seen) -> Option<Chunks> {
    let mut at = 0;
    loop {
        let more = Some(Chunks {
            used: at,
            ending: None,
        });
        let broken = Some(Chunks {
            used: bytes.len(),
            ending: Some(Ending::Truncated),
        });
        let Some(line) = find(&bytes[at..], b"\r\n") else {
            return more;
        };
        let size = String::from_utf8_lossy(&bytes[at..at + line]).into_owned();
        let size = size.split(';').next().unwrap_or_default().trim().to_owned();
        let Ok(size) = usize::from_str_radix(&size, 16) else {
            return broken;
        };
        let start = at + line + 2;
        if size == 0 {
            return Some(parse_trailers(bytes, start, seen));
        }
        let Some(end) = start.checked_add(size) else {
            return broken;
        };
        let available = bytes.len().min(end);
        if available < end {
            seen.body
                .extend_from_slice(&bytes[start.min(available)..available]);
            return more;
        }
        match bytes.get(end..end + 2) {
            None => {
                seen.body.extend_from_slice(&bytes[start..end]);
                return more;
            }
            Some(b"\r\n") => {}
            Some(_) => {
                seen.body.extend_from_slice(&bytes[start..end]);
                return broken;
            }
        }
        seen.body.extend_from_slice(&bytes[start..end]);
        at = end + 2;
    }
}

fn parse_trailers(bytes: &[u8], mut at: usize, seen: &mut Seen) -> Chunks {
    loop {
        let Some(line) = find(&bytes[at..], b"\r\n") else {
            return Chunks {
                used: at,
                ending: None,
            };
        };
        if line == 0 {
            return Chunks {
                used: at + 2,
                ending: Some(Ending::Complete),
            };
        }
        let field = String::from_utf8_lossy(&bytes[at..at + line]).into_owned();
        if let Some((name, value)) = field.split_once(':') {
            seen.trailers
                .insert(name.to_ascii_lowercase(), value.trim().as_bytes().to_vec());
        }
        at += line + 2;
    }
}
