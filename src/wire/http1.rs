//! Responses of HTTP/1 (RFC 9112): the head, and the body out of its framing.
//!
//! In go the bytes of a connection after a request; out come the head of the final response, the
//! bytes of its body and its trailers. What is accepted is what hyper's client accepts, which the
//! property tests hold it to; only a length beside chunks is dropped here (section 6.3), since a
//! recipient that believed it would cut the body elsewhere.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};

/// The most header fields in one head, of requests and responses alike, and of trailers.
pub const FIELDS_MAX: usize = 100;

/// The most bytes of all chunk extensions of a body, which nobody reads.
const EXTENSION_BYTES_MAX: usize = 16 << 10;

/// The most bytes of trailers.
const TRAILER_BYTES_MAX: usize = 16 << 10;

/// Why bytes are no response.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
pub enum Invalid {
    /// A line of the head or the trailers.
    #[error(transparent)]
    Syntax(#[from] httparse::Error),
    /// The head ends nowhere within the limit.
    #[error("the head is too long")]
    HeadTooLong,
    /// The body's framing, in the head or within the body.
    #[error("{0}")]
    Framing(&'static str),
}

/// The head of a response.
#[derive(Debug)]
pub struct Head {
    /// The status.
    pub status: StatusCode,
    /// HTTP/1.0 or 1.1.
    pub version: Version,
    /// The reason, unless it is the usual one of the status.
    pub reason: Option<Bytes>,
    /// The fields, in their order for each name.
    pub headers: HeaderMap,
    /// Whether the connection can take another request after the body.
    pub keeps_alive: bool,
    /// What follows.
    pub body: Body,
}

/// Reads the head of a response, wherever it is cut, and passes over informational ones.
#[derive(Debug)]
pub struct HeadReader {
    method: Method,
    bytes_max: usize,
    /// The beginning of a head.
    held: Vec<u8>,
    is_begun: bool,
    is_continued: bool,
}

impl HeadReader {
    /// Reads the response to a request of that method.
    pub fn new(method: Method, bytes_max: usize) -> HeadReader {
        HeadReader {
            method,
            bytes_max,
            held: Vec::new(),
            is_begun: false,
            is_continued: false,
        }
    }

    /// Takes the next bytes; returns the head, once it is complete, and how many of these bytes
    /// belong to it. It must not be called again then.
    ///
    /// # Errors
    /// When this is no response.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<(Head, usize)>, Invalid> {
        self.is_begun |= !bytes.is_empty();
        if self.held.is_empty() {
            let (read, head) = self.read(bytes)?;
            if head.is_none() {
                self.hold(bytes.get(read..).unwrap_or_default())?;
            }
            return Ok(head.map(|head| (head, read)));
        }
        let mut held = std::mem::take(&mut self.held);
        let held_before = held.len();
        held.extend_from_slice(bytes);
        let (read, head) = self.read(&held)?;
        if head.is_none() {
            self.hold(held.get(read..).unwrap_or_default())?;
        }
        Ok(head.map(|head| (head, read.saturating_sub(held_before))))
    }

    /// Whether anything has come.
    pub fn is_begun(&self) -> bool {
        self.is_begun
    }

    /// Whether `100 Continue` has come.
    pub fn is_continued(&self) -> bool {
        self.is_continued
    }

    fn hold(&mut self, bytes: &[u8]) -> Result<(), Invalid> {
        if bytes.len() >= self.bytes_max {
            return Err(Invalid::HeadTooLong);
        }
        self.held.extend_from_slice(bytes);
        Ok(())
    }

    /// Reads heads up to the final one; also how many bytes they have.
    fn read(&mut self, bytes: &[u8]) -> Result<(usize, Option<Head>), Invalid> {
        let mut read = 0;
        while let Some(rest) = bytes.get(read..).filter(|rest| !rest.is_empty()) {
            let Some((head, length)) = parse(rest, &self.method)? else {
                break;
            };
            if length > self.bytes_max {
                return Err(Invalid::HeadTooLong);
            }
            read += length;
            let is_final =
                !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS;
            if is_final {
                return Ok((read, Some(head)));
            }
            self.is_continued |= head.status == StatusCode::CONTINUE;
        }
        Ok((read, None))
    }
}

/// Parses one head; also its length.
fn parse(bytes: &[u8], method: &Method) -> Result<Option<(Head, usize)>, Invalid> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        bytes,
        &mut fields,
    )?;
    let httparse::Status::Complete(length) = parsed else {
        return Ok(None);
    };
    let status = response.code.unwrap_or_default();
    let status = StatusCode::from_u16(status).map_err(|_| httparse::Error::Status)?;
    let version = match response.version {
        Some(1) => Version::HTTP_11,
        _ => Version::HTTP_10,
    };
    let reason = response
        .reason
        .filter(|reason| status.canonical_reason() != Some(reason))
        .map(|reason| Bytes::copy_from_slice(reason.as_bytes()));
    let headers = header_map(bytes, length, response.headers)?;
    let body = Body::of(status, version, method, &headers)?;
    let mut head = Head {
        status,
        version,
        reason,
        keeps_alive: keeps_alive(version, &headers) && !matches!(body.framing, Framing::UntilClose),
        headers,
        body,
    };
    if matches!(head.body.framing, Framing::Chunks(_)) {
        head.headers.remove(header::CONTENT_LENGTH);
    }
    Ok(Some((head, length)))
}

/// The fields of a head that takes the first `length` of these bytes. The values share one copy.
fn header_map(
    bytes: &[u8],
    length: usize,
    fields: &[httparse::Header<'_>],
) -> Result<HeaderMap, Invalid> {
    let block = Bytes::copy_from_slice(bytes.get(..length).unwrap_or_default());
    let start = bytes.as_ptr().addr();
    let mut headers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes())
            .map_err(|_| httparse::Error::HeaderName)?;
        let at = field.value.as_ptr().addr().saturating_sub(start);
        // An empty value may point anywhere.
        let value = match field.value.is_empty() {
            true => Bytes::new(),
            false => block.slice(at..at + field.value.len()),
        };
        let value =
            HeaderValue::from_maybe_shared(value).map_err(|_| httparse::Error::HeaderValue)?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// Whether the connection stays open after the response (section 9.3).
fn keeps_alive(version: Version, headers: &HeaderMap) -> bool {
    let says = |token: &str| {
        let mut tokens = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','));
        tokens.any(|listed| listed.trim().eq_ignore_ascii_case(token))
    };
    !says("close") && (version == Version::HTTP_11 || says("keep-alive"))
}

/// The length that a head states; an error when it states several or none that is one.
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Invalid> {
    let mut stated = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        let listed = value.to_str().unwrap_or_default().split(',').map(str::trim);
        for text in listed {
            let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let length = text.parse::<u64>().ok().filter(|_| is_number);
            let is_other = stated.is_some() && stated != length;
            // hyper keeps the two greatest numbers for itself.
            if length.is_none_or(|length| length >= u64::MAX - 1) || is_other {
                return Err(Invalid::Framing("invalid content-length"));
            }
            stated = length;
        }
    }
    Ok(stated)
}

/// The body of a response, taken out of its framing.
#[derive(Debug)]
pub struct Body {
    framing: Framing,
    trailers: Option<HeaderMap>,
}

#[derive(Debug)]
enum Framing {
    /// That many bytes are still to come.
    Length(u64),
    Chunks(Chunks),
    UntilClose,
    Closed,
}

impl Body {
    /// What follows a head (section 6.3).
    fn of(
        status: StatusCode,
        version: Version,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<Body, Invalid> {
        let has_none = status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            || method == Method::HEAD;
        let coding = headers
            .get_all(header::TRANSFER_ENCODING)
            .iter()
            .next_back();
        let framing = match coding {
            _ if has_none => Framing::Length(0),
            Some(_) if version == Version::HTTP_10 => {
                return Err(Invalid::Framing("HTTP/1.0 has no transfer-encoding"));
            }
            Some(coding) if ends_in_chunked(coding) => Framing::Chunks(Chunks::default()),
            Some(_) => Framing::UntilClose,
            None => content_length(headers)?.map_or(Framing::UntilClose, Framing::Length),
        };
        Ok(Body {
            framing,
            trailers: None,
        })
    }

    /// Takes the next bytes of the connection and adds those of the body to `out`. Returns how
    /// many were used: all of them before the end, and fewer when others follow it.
    ///
    /// # Errors
    /// When the framing is broken; what came before that is in `out`.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, Invalid> {
        match &mut self.framing {
            Framing::Length(rest) => {
                let used = usize::try_from(*rest).map_or(bytes.len(), |rest| rest.min(bytes.len()));
                out.reserve_exact(used);
                out.extend_from_slice(bytes.get(..used).unwrap_or_default());
                *rest = rest.saturating_sub(u64::try_from(used).unwrap_or(u64::MAX));
                Ok(used)
            }
            Framing::Chunks(chunks) => {
                out.reserve(bytes.len());
                let used = chunks.push(bytes, out)?;
                if chunks.at == At::End && !chunks.trailers.is_empty() {
                    let lines = std::mem::take(&mut chunks.trailers);
                    self.trailers = Some(trailers(&lines)?);
                }
                Ok(used)
            }
            Framing::UntilClose => {
                out.reserve_exact(bytes.len());
                out.extend_from_slice(bytes);
                Ok(bytes.len())
            }
            Framing::Closed => Ok(0),
        }
    }

    /// Takes the end of the connection.
    ///
    /// # Errors
    /// When the body is not complete.
    pub fn close(&mut self) -> Result<(), Invalid> {
        if let Framing::UntilClose = self.framing {
            self.framing = Framing::Closed;
        }
        match self.is_complete() {
            true => Ok(()),
            false => Err(Invalid::Framing("the connection closed before the end")),
        }
    }

    /// Whether nothing more belongs to it.
    pub fn is_complete(&self) -> bool {
        match &self.framing {
            Framing::Length(rest) => *rest == 0,
            Framing::Chunks(chunks) => chunks.at == At::End,
            Framing::UntilClose => false,
            Framing::Closed => true,
        }
    }

    /// How many bytes are still to come, if the head has said so.
    pub fn rest(&self) -> Option<u64> {
        match &self.framing {
            Framing::Length(rest) => Some(*rest),
            _ => self.is_complete().then_some(0),
        }
    }

    /// Whether there are trailers, which nobody has taken.
    pub fn has_trailers(&self) -> bool {
        self.trailers.is_some()
    }

    /// The trailers, once and after the end.
    pub fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }
}

fn ends_in_chunked(coding: &HeaderValue) -> bool {
    coding
        .to_str()
        .ok()
        .and_then(|codings| codings.rsplit(',').next())
        .is_some_and(|last| last.trim().eq_ignore_ascii_case("chunked"))
}

/// The chunked coding (section 7.1).
#[derive(Debug, Default)]
struct Chunks {
    at: At,
    /// The size while it is read, then what is left of the chunk.
    rest: u64,
    extension_bytes: usize,
    trailers: Vec<u8>,
    trailer_lines: usize,
}

/// What the next byte is part of.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum At {
    /// The first digit of a size.
    #[default]
    Start,
    Size,
    SpaceAfterSize,
    Extension,
    LineFeedAfterSize,
    Data,
    ReturnAfterData,
    LineFeedAfterData,
    /// A trailer's first byte, or the return of the last line.
    LastLine,
    Trailer,
    LineFeedAfterTrailer,
    LastLineFeed,
    End,
}

impl Chunks {
    fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, Invalid> {
        let mut used = 0;
        while let Some(rest) = bytes.get(used..)
            && let Some(&byte) = rest.first()
        {
            match self.at {
                At::End => break,
                At::Data => {
                    let size =
                        usize::try_from(self.rest).map_or(rest.len(), |size| size.min(rest.len()));
                    out.extend_from_slice(rest.get(..size).unwrap_or_default());
                    used += size;
                    self.rest -= u64::try_from(size).unwrap_or(self.rest);
                    if self.rest == 0 {
                        self.at = At::ReturnAfterData;
                    }
                }
                _ => {
                    self.at = self.step(byte)?;
                    used += 1;
                }
            }
        }
        Ok(used)
    }

    /// Takes a byte that is no data.
    fn step(&mut self, byte: u8) -> Result<At, Invalid> {
        let wrong = |what| Err(Invalid::Framing(what));
        Ok(match (self.at, byte) {
            (At::Start | At::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                let size = self.rest.checked_mul(16);
                let size = size.and_then(|size| size.checked_add(digit.into()));
                self.rest = size.ok_or(Invalid::Framing("a chunk's size overflows"))?;
                At::Size
            }
            (At::Size | At::SpaceAfterSize, b' ' | b'\t') => At::SpaceAfterSize,
            (At::Size | At::SpaceAfterSize, b';') => At::Extension,
            (At::Size | At::SpaceAfterSize | At::Extension, b'\r') => At::LineFeedAfterSize,
            (At::Start | At::Size | At::SpaceAfterSize, _) => return wrong("invalid chunk size"),
            // Some take a bare line feed for the end of the line.
            (At::Extension, b'\n') => return wrong("a chunk extension has a line feed"),
            (At::Extension, _) => {
                self.extension_bytes += 1;
                if self.extension_bytes >= EXTENSION_BYTES_MAX {
                    return wrong("the chunk extensions are too long");
                }
                At::Extension
            }
            (At::LineFeedAfterSize, b'\n') if self.rest == 0 => At::LastLine,
            (At::LineFeedAfterSize, b'\n') => At::Data,
            (At::ReturnAfterData, b'\r') => At::LineFeedAfterData,
            (At::LineFeedAfterData, b'\n') => At::Start,
            (At::LastLine, b'\r') => At::LastLineFeed,
            (At::LastLine | At::Trailer, _) => {
                self.trailers.push(byte);
                if self.trailers.len() >= TRAILER_BYTES_MAX {
                    return wrong("the trailers are too long");
                }
                match byte {
                    b'\r' => At::LineFeedAfterTrailer,
                    _ => At::Trailer,
                }
            }
            (At::LineFeedAfterTrailer, b'\n') => {
                if self.trailer_lines >= FIELDS_MAX {
                    return wrong("there are too many trailers");
                }
                self.trailer_lines += 1;
                self.trailers.push(byte);
                At::LastLine
            }
            (At::LastLineFeed, b'\n') => At::End,
            (At::Data | At::End, _) => self.at,
            _ => return wrong("a line of the chunked coding does not end"),
        })
    }
}

fn trailers(lines: &[u8]) -> Result<HeaderMap, Invalid> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let block = [lines, b"\r\n"].concat();
    match httparse::parse_headers(&block, &mut fields)? {
        httparse::Status::Complete((length, fields)) => header_map(&block, length, fields),
        httparse::Status::Partial => Err(Invalid::Framing("the trailers are not complete")),
    }
}
