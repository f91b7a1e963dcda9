//! Splits a response's body into the documents that hold values: one of JSON, or one for each
//! event. Memory is constant: no body and no event is held.

use http::header::CONTENT_TYPE;

use super::ResponseHead;
use crate::record::Operation;
use crate::wire::json::{Found, Picker, Selector, Status};
use crate::wire::sse::{Decoder, Piece};

/// What a [`Source`] shows the documents of a body to.
pub(crate) trait Documents {
    /// The first byte has told whether the body is a stream of events.
    fn framed(&mut self, is_streamed: bool);
    /// A value was found, at the path of that index.
    fn found(&mut self, index: usize, found: Found<'_>);
    /// The event at hand has that name.
    fn named(&mut self, name: &[u8]);
    /// The body is whole: the one document of JSON, or a stream up to its `[DONE]`. Told before
    /// the end of that document.
    fn marked(&mut self);
    /// The document at hand has ended.
    fn ended(&mut self, status: Status);
}

/// The data of the event that ends a stream of the OpenAI family.
const DONE: &[u8; 6] = b"[DONE]";

/// A body on its way into its documents.
pub(crate) struct Source {
    framing: Framing,
    decoder: Decoder,
    document: Document,
}

/// Reads the one document of a JSON body, or that of each event.
struct Document {
    picker: Picker<'static>,
    /// The first bytes of the event's data, and how many there are in all.
    start: [u8; DONE.len()],
    length: usize,
}

/// How a body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// The first byte that is no white space will tell; until then, what the type says.
    Undecided(Text),
    /// One document.
    Json,
    /// A stream of events, each with a document.
    Events,
    /// Nothing that could be read.
    Opaque,
}

/// What a type says of a body that is text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Text {
    Json,
    Events,
    Other,
}

impl Framing {
    /// What the type says of the response to a call of that operation.
    pub(crate) fn of(head: ResponseHead<'_>, operation: Operation) -> Framing {
        let content_type = head.headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
        let Some(content_type) = content_type else {
            return Framing::Undecided(Text::Json);
        };
        let essence = content_type
            .split(|byte| *byte == b';')
            .next()
            .unwrap_or_default()
            .trim_ascii()
            .to_ascii_lowercase();
        match essence.as_slice() {
            b"text/event-stream" => Framing::Undecided(Text::Events),
            essence if essence.ends_with(b"json") => Framing::Undecided(Text::Json),
            // Some servers send JSON or events as plain text; a transcript is plain text.
            b"text/plain" if operation != Operation::Transcription => {
                Framing::Undecided(Text::Json)
            }
            essence if essence.starts_with(b"text/") => Framing::Undecided(Text::Other),
            _ => Framing::Opaque,
        }
    }

    /// Whether it is a stream, as far as the type says.
    pub(crate) fn is_stream(self) -> bool {
        self == Framing::Undecided(Text::Events)
    }

    /// What the first byte says. Errors come as JSON under the type of a stream, and streams
    /// under the type of JSON.
    fn decide(text: Text, first: u8) -> Framing {
        match (text, first) {
            (_, b'{' | b'[') => Framing::Json,
            // `data:`, `event:`, `id:`, `retry:` or a comment; no JSON document begins so.
            (Text::Events, _) | (Text::Json, b'd' | b'e' | b'i' | b'r' | b':') => Framing::Events,
            (Text::Json, _) => Framing::Json,
            (Text::Other, _) => Framing::Opaque,
        }
    }
}

/// White space and the bytes of a byte order mark: what may come before the first real byte.
/// Long answers are kept alive with white space in front of the JSON (OpenRouter, DeepSeek).
fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | 0xEF | 0xBB | 0xBF)
}

impl Source {
    /// A body of that framing, in whose documents `selector` finds values.
    pub(crate) fn new(framing: Framing, selector: &'static Selector) -> Source {
        Source {
            framing,
            decoder: Decoder::new(),
            document: Document {
                picker: Picker::new(selector),
                start: [0; DONE.len()],
                length: 0,
            },
        }
    }

    /// Takes the next bytes of the body.
    pub(crate) fn push(&mut self, mut bytes: &[u8], documents: &mut impl Documents) {
        if let Framing::Undecided(text) = self.framing {
            let Some(first) = bytes.iter().position(|byte| !is_blank(*byte)) else {
                return;
            };
            bytes = bytes.get(first..).unwrap_or_default();
            if let Some(byte) = bytes.first() {
                self.framing = Framing::decide(text, *byte);
                documents.framed(self.framing == Framing::Events);
            }
        }
        let Source {
            framing,
            decoder,
            document,
        } = self;
        match framing {
            Framing::Json => document.push(bytes, documents),
            Framing::Events => {
                decoder.push(bytes, &mut |piece| document.piece(piece, documents));
            }
            Framing::Opaque | Framing::Undecided(_) => {}
        }
    }

    /// Takes the end of the body, whole or not.
    pub(crate) fn end(self, documents: &mut impl Documents) {
        let Source {
            framing,
            mut decoder,
            mut document,
        } = self;
        match framing {
            Framing::Json => {
                let status = document.end(documents);
                if status == Status::Complete {
                    documents.marked();
                }
                documents.ended(status);
            }
            // The last event may lack its blank line, or be half of one.
            Framing::Events => decoder.end(&mut |piece| document.piece(piece, documents)),
            Framing::Opaque | Framing::Undecided(_) => {}
        }
    }
}

impl Document {
    fn push(&mut self, bytes: &[u8], documents: &mut impl Documents) {
        self.picker
            .push(bytes, &mut |index, found| documents.found(index, found));
    }

    fn end(&mut self, documents: &mut impl Documents) -> Status {
        self.picker
            .end(&mut |index, found| documents.found(index, found))
    }

    fn piece(&mut self, piece: Piece<'_>, documents: &mut impl Documents) {
        match piece {
            Piece::Name(name) => documents.named(name),
            Piece::Data(bytes) => {
                let free = self.start.get_mut(self.length..).unwrap_or_default();
                for (slot, byte) in free.iter_mut().zip(bytes) {
                    *slot = *byte;
                }
                self.length += bytes.len();
                self.push(bytes, documents);
            }
            Piece::End => {
                let status = self.end(documents);
                self.picker.reset();
                let is_done = self.length >= DONE.len() && self.start == *DONE;
                self.length = 0;
                if is_done {
                    documents.marked();
                    documents.ended(Status::Empty);
                } else {
                    documents.ended(status);
                }
            }
        }
    }
}
