//! A request on its way to the provider: HTTP/1.1 on the wire (RFC 9112), written as far as the
//! connection takes it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, HeaderName, Method, Uri, header};
use tokio::io::AsyncWrite as _;

use crate::proxy::body::{RequestBody, Upload};
use crate::proxy::stream::Stream;

/// The bytes of a request line and of each field beside what is known of their lengths.
const LINE_BYTES: usize = 32;

/// Why a request is not sent.
#[derive(Debug)]
pub(super) enum SendError {
    /// The connection does not take it.
    Connection(io::Error),
    /// The client broke its body off.
    Body(hyper::Error),
}

/// See the module's text.
pub(super) struct Outbound {
    method: Method,
    is_expecting: bool,
    /// The head, with the body if that is held whole.
    start: Bytes,
    /// What is to be written next.
    next: Bytes,
    written: u64,
    upload: Option<ChunkedUpload>,
}

/// A body that streams, and how it is framed.
struct ChunkedUpload {
    upload: Box<Upload>,
    /// The trailers that the head announces; none for a body whose length is stated.
    trailers: Option<Vec<HeaderName>>,
    is_over: bool,
}

impl Outbound {
    /// A request with what the provider is to see. A body that streams is sent in chunks if
    /// `headers` say so, and has the stated length otherwise.
    pub(super) fn new(
        method: Method,
        target: &Uri,
        headers: &HeaderMap,
        body: RequestBody,
    ) -> Outbound {
        let is_chunked = headers.contains_key(header::TRANSFER_ENCODING);
        let (whole, upload) = match body {
            RequestBody::Whole(bytes) => (bytes.unwrap_or_default(), None),
            RequestBody::Stream(upload) => {
                let upload = ChunkedUpload {
                    upload,
                    trailers: is_chunked.then(|| announced_trailers(headers)),
                    is_over: false,
                };
                (Bytes::new(), Some(upload))
            }
        };
        let lines = headers
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len() + 4);
        let target = target
            .path_and_query()
            .map_or("/", |target| target.as_str());
        let head_bytes = lines.sum::<usize>() + target.len() + 2 * LINE_BYTES;
        let mut start = Vec::with_capacity(head_bytes + whole.len());
        for part in [method.as_str(), " ", target, " HTTP/1.1\r\n"] {
            start.extend_from_slice(part.as_bytes());
        }
        for (name, value) in headers {
            if is_chunked && name == header::CONTENT_LENGTH {
                continue;
            }
            start.extend_from_slice(name.as_str().as_bytes());
            start.extend_from_slice(b": ");
            start.extend_from_slice(value.as_bytes());
            start.extend_from_slice(b"\r\n");
        }
        if !whole.is_empty() && !headers.contains_key(header::CONTENT_LENGTH) {
            start.extend_from_slice(format!("content-length: {}\r\n", whole.len()).as_bytes());
        }
        start.extend_from_slice(b"\r\n");
        start.extend_from_slice(&whole);
        let start = Bytes::from(start);
        Outbound {
            method,
            is_expecting: upload.is_some() && headers.contains_key(header::EXPECT),
            next: start.clone(),
            start,
            written: 0,
            upload,
        }
    }

    pub(super) fn method(&self) -> &Method {
        &self.method
    }

    /// Whether the body waits for `100 Continue`.
    pub(super) fn is_expecting(&self) -> bool {
        self.is_expecting
    }

    /// Whether all of it has been handed to the connection.
    pub(super) fn is_sent(&self) -> bool {
        self.next.is_empty() && self.upload.is_none()
    }

    /// How many bytes the connection has taken, those of a second attempt too.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Whether nothing of it has been handed to the connection.
    pub(super) fn is_untouched(&self) -> bool {
        self.next.len() == self.start.len() && self.start.as_ptr() == self.next.as_ptr()
    }

    /// Starts again from the beginning, if that is still there.
    pub(super) fn rewind(&mut self) -> bool {
        let is_possible = self.upload.is_none() || self.is_untouched();
        if is_possible {
            self.next = self.start.clone();
        }
        is_possible
    }

    /// Writes what the connection takes; ready when all of it is written.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
    ) -> Poll<Result<(), SendError>> {
        loop {
            while !self.next.is_empty() {
                let written = ready!(Pin::new(&mut *stream).poll_write(cx, &self.next));
                match written.map_err(SendError::Connection)? {
                    0 => {
                        let error = io::ErrorKind::WriteZero.into();
                        return Poll::Ready(Err(SendError::Connection(error)));
                    }
                    written => {
                        self.next.advance(written);
                        self.written += u64::try_from(written).unwrap_or_default();
                    }
                }
            }
            if let Some(upload) = &mut self.upload
                && let Poll::Ready(next) = upload.poll_next(cx)
            {
                match next.map_err(SendError::Body)? {
                    Some(next) => self.next = next,
                    None => self.upload = None,
                }
                continue;
            }
            // With TLS, what was written may be under way still.
            let flushed = ready!(Pin::new(&mut *stream).poll_flush(cx));
            flushed.map_err(SendError::Connection)?;
            return match self.upload {
                Some(_) => Poll::Pending,
                None => Poll::Ready(Ok(())),
            };
        }
    }
}

impl ChunkedUpload {
    /// What is to be written next; none at the end.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, hyper::Error>> {
        let frame = match ready!(self.upload.poll_frame(cx)) {
            Some(frame) => frame?,
            None if self.is_over || self.trailers.is_none() => return Poll::Ready(Ok(None)),
            None => {
                self.is_over = true;
                return Poll::Ready(Ok(Some(Bytes::from_static(b"0\r\n\r\n"))));
            }
        };
        if self.is_over {
            // Behind the last chunk it would be taken for the next request.
            return Poll::Ready(Ok(Some(Bytes::new())));
        }
        let Some(announced) = &self.trailers else {
            return Poll::Ready(Ok(Some(frame.into_data().unwrap_or_default())));
        };
        let bytes = match frame.into_data() {
            // An empty chunk would be the last.
            Ok(data) if data.is_empty() => Vec::new(),
            Ok(data) => {
                let mut chunk = format!("{:x}\r\n", data.len()).into_bytes();
                chunk.reserve_exact(data.len() + 2);
                chunk.extend_from_slice(&data);
                chunk.extend_from_slice(b"\r\n");
                chunk
            }
            Err(frame) => {
                self.is_over = true;
                let mut last = b"0\r\n".to_vec();
                for (name, value) in &frame.into_trailers().unwrap_or_default() {
                    if announced.contains(name) {
                        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                            last.extend_from_slice(part);
                        }
                    }
                }
                last.extend_from_slice(b"\r\n");
                last
            }
        };
        Poll::Ready(Ok(Some(Bytes::from(bytes))))
    }
}

/// The trailers that a head announces, less those that must not come after the fact (RFC 9110,
/// section 6.5.1).
fn announced_trailers(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(header::TRAILER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| !FORBIDDEN_TRAILERS.contains(name))
        .collect()
}

/// What frames, routes or secures a message.
static FORBIDDEN_TRAILERS: [HeaderName; 12] = [
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::HOST,
    header::MAX_FORWARDS,
    header::SET_COOKIE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
];
