//! Playing an answer: bytes with pauses between them, and an end that may be a break.

use std::collections::VecDeque;
use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use super::{Answer, Case};

/// An answer, ready to be played.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// How long the head takes.
    pub(super) latency: Duration,
    pub(super) body: Play,
}

impl Reply {
    /// An answer in one piece.
    pub(super) fn json(status: StatusCode, text: String) -> Reply {
        let reply = Reply {
            status,
            headers: HeaderMap::new(),
            latency: Duration::ZERO,
            body: Play::whole(text.into()),
        };
        reply.with("content-type", "application/json")
    }

    /// An answer in one piece that takes as long as the same answer takes to be streamed.
    pub(super) fn unary(answer: &Answer, case: Case, text: String) -> Reply {
        let mut reply = Reply::json(StatusCode::OK, text);
        let pieces = u32::try_from(answer.pieces.len()).unwrap_or(u32::MAX);
        let pace = Duration::from_millis(answer.pace.0).saturating_mul(pieces);
        reply.latency = answer.first_token + slowed(case, pace);
        if case == Case::Truncated {
            reply.body = reply.body.broken_half_way();
        }
        reply
    }

    /// An answer as a stream of events.
    pub(super) fn stream(answer: &Answer, case: Case, events: Events) -> Reply {
        let reply = Reply {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            latency: answer.first_token / 2,
            body: Play::events(answer, case, events),
        };
        reply.with("cache-control", "no-cache")
    }

    /// The same answer with one more header, if it can be one.
    #[must_use]
    pub(super) fn with(mut self, name: &str, value: impl AsRef<str>) -> Reply {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value.as_ref())) {
            self.headers.insert(name, value);
        }
        self
    }

    /// The response to a request with those headers.
    pub(super) fn into_response(mut self, request: &HeaderMap) -> Response<Play> {
        let accepts_gzip = request
            .get(header::ACCEPT_ENCODING)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.contains("gzip"));
        if accepts_gzip && let Some(zipped) = self.body.gzipped() {
            self.body = zipped;
            self = self.with("content-encoding", "gzip");
        }
        let mut response = Response::new(self.body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

/// The events of a streamed answer, by what they are for.
#[derive(Debug)]
pub(super) struct Events {
    /// Before the first token.
    pub(super) opening: Vec<String>,
    /// A piece of the answer each.
    pub(super) deltas: Vec<String>,
    /// After the last token.
    pub(super) closing: Vec<String>,
    /// Instead of the rest, if the vendor fails in the middle.
    pub(super) failure: Vec<String>,
}

fn slowed(case: Case, pause: Duration) -> Duration {
    match case {
        Case::Slow => pause * 4,
        _ => pause,
    }
}

/// A body that is played: pieces with a pause before each.
#[derive(Debug)]
pub(super) struct Play {
    pieces: VecDeque<(Duration, Bytes)>,
    pause: Option<Pin<Box<Sleep>>>,
    breaks: bool,
}

/// The look-alike broke the connection on purpose.
#[derive(Debug, thiserror::Error)]
#[error("the look-alike breaks off here")]
pub(super) struct Broken;

impl Play {
    fn whole(bytes: Bytes) -> Play {
        Play {
            pieces: VecDeque::from([(Duration::ZERO, bytes)]),
            pause: None,
            breaks: false,
        }
    }

    fn events(answer: &Answer, case: Case, events: Events) -> Play {
        let mut dice = answer.dice.clone();
        let count = events.deltas.len();
        // The percentage of the pieces that are played before it ends badly, if it does.
        let played = match case {
            Case::ErrorInStream => count * 2 / 5,
            Case::Truncated => count * 3 / 5,
            _ => count,
        };
        let mut pieces = VecDeque::new();
        for event in events.opening {
            pieces.push_back((Duration::ZERO, event.into()));
        }
        for (index, event) in events.deltas.into_iter().take(played).enumerate() {
            let pause = match index {
                0 => answer.first_token / 2,
                _ => slowed(case, Duration::from_millis(dice.between(answer.pace))),
            };
            pieces.push_back((pause, event.into()));
        }
        let ending = match case {
            Case::ErrorInStream => events.failure,
            Case::Truncated => Vec::new(),
            _ => events.closing,
        };
        for event in ending {
            pieces.push_back((Duration::ZERO, event.into()));
        }
        Play {
            pieces,
            pause: None,
            breaks: case == Case::Truncated,
        }
    }

    fn broken_half_way(mut self) -> Play {
        for (_, bytes) in &mut self.pieces {
            bytes.truncate(bytes.len() / 2);
        }
        self.breaks = true;
        self
    }

    /// The same body compressed, if it comes in one piece.
    fn gzipped(&self) -> Option<Play> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(self.only_piece()?).ok()?;
        encoder
            .finish()
            .ok()
            .map(|zipped| Play::whole(zipped.into()))
    }

    /// The body, if it comes in one piece and does not break.
    fn only_piece(&self) -> Option<&Bytes> {
        let (_, bytes) = self.pieces.front()?;
        (self.pieces.len() == 1 && !self.breaks).then_some(bytes)
    }
}

/// The pause before a break, so that what was played has left the machine.
const PAUSE_BEFORE_BREAK: Duration = Duration::from_millis(20);

impl Body for Play {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if self.pause.is_none() {
            let pause = match self.pieces.front() {
                Some((pause, _)) => *pause,
                None if self.breaks => PAUSE_BEFORE_BREAK,
                None => return Poll::Ready(None),
            };
            if !pause.is_zero() {
                self.pause = Some(Box::pin(tokio::time::sleep(pause)));
            }
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(context));
            self.pause = None;
        }
        Poll::Ready(match self.pieces.pop_front() {
            Some((_, bytes)) => Some(Ok(Frame::data(bytes))),
            None => Some(Err(Broken)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && !self.breaks
    }

    fn size_hint(&self) -> SizeHint {
        let length = self
            .only_piece()
            .and_then(|bytes| u64::try_from(bytes.len()).ok());
        length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
