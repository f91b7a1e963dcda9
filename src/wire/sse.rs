//! Server-sent events (WHATWG HTML, section 9.2), decoded without holding an event.
//!
//! The decoder hands out the bytes of an event's data as they arrive, so a line of 50 MB costs
//! no memory. Only a name is kept until it is whole. `id` and `retry` serve reconnection, which
//! is the client's business, and are skipped.

use memchr::memchr2;

/// How much of an event's name is kept; real ones are shorter than 64 bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// A piece of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// The event's name, from its `event` field, at most [`NAME_BYTES_MAX`] bytes of it. A later
    /// one in the same event supersedes it. An event without data shows no name either.
    Name(&'a [u8]),
    /// The next bytes of its data, the lines joined by line feeds; never empty.
    Data(&'a [u8]),
    /// The event is complete.
    End,
}

/// What a call of [`Decoder::line`] consumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    /// The byte order mark at the start of the stream, or a part of it.
    Mark,
    /// A part of a line that has not ended.
    Open {
        /// Whether the line is a comment.
        is_comment: bool,
    },
    /// A line up to its end.
    Ended {
        /// Whether the line is a comment.
        is_comment: bool,
    },
    /// The end of a blank line, which ends an event.
    Blank,
    /// The line feed of a CR LF whose carriage return had already ended the line.
    Tail,
}

/// Splits a stream of server-sent events into pieces.
#[derive(Debug, Default)]
pub struct Decoder {
    at: At,
    /// The bytes of the byte order mark, or of the field's name, that were seen.
    seen: usize,
    field: [u8; FIELD_BYTES_MAX],
    /// The last byte was a carriage return: a line feed that follows belongs to it.
    after_carriage_return: bool,
    /// The name, until the event shows data.
    name: Vec<u8>,
    has_data: bool,
}

/// The longest field name that means anything here (`event`).
const FIELD_BYTES_MAX: usize = 5;

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum At {
    /// The start of the stream, where a byte order mark is skipped.
    #[default]
    Stream,
    /// The start of a line, or inside its field name.
    Field,
    /// After the colon: one space is skipped.
    Colon(Field),
    Value(Field),
    /// A field that means nothing here.
    Ignored,
    Comment,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Data,
    Event,
}

type Sink<'s> = &'s mut dyn FnMut(Piece<'_>);

impl Decoder {
    /// A decoder at the start of a stream.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Takes the next bytes and hands out the pieces in them.
    pub fn push(&mut self, mut bytes: &[u8], piece: &mut dyn FnMut(Piece<'_>)) {
        while !bytes.is_empty() {
            let (consumed, _) = self.line(bytes, piece);
            bytes = bytes.get(consumed..).unwrap_or_default();
        }
    }

    /// Takes the end of the stream. A last event that has data but no blank line after it is
    /// complete too, against the standard: some providers close without the blank line.
    pub fn end(&mut self, piece: &mut dyn FnMut(Piece<'_>)) {
        if matches!(self.at, At::Field | At::Colon(_) | At::Value(_)) {
            self.line_ended(piece);
        }
        self.event_ended(piece);
    }

    /// Takes bytes up to the end of the line, or all if it does not end in them, and tells how
    /// many and what they were. `bytes` must not be empty.
    pub(crate) fn line(&mut self, bytes: &[u8], piece: Sink<'_>) -> (usize, Line) {
        if std::mem::take(&mut self.after_carriage_return) && bytes.first() == Some(&b'\n') {
            return (1, Line::Tail);
        }
        if self.at == At::Stream {
            let mark = self.byte_order_mark(bytes);
            if mark > 0 {
                return (mark, Line::Mark);
            }
        }
        let end = memchr2(b'\n', b'\r', bytes);
        let content = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
        self.content(content, piece);
        let is_comment = self.at == At::Comment;
        let Some(end) = end else {
            return (bytes.len(), Line::Open { is_comment });
        };
        self.after_carriage_return = bytes.get(end) == Some(&b'\r');
        let is_blank = self.at == At::Field && self.seen == 0;
        let line = if is_blank {
            self.event_ended(piece);
            Line::Blank
        } else {
            self.line_ended(piece);
            Line::Ended { is_comment }
        };
        self.at = At::Field;
        self.seen = 0;
        (end + 1, line)
    }

    /// Takes the byte order mark, or what there is of it, and returns how long that is.
    fn byte_order_mark(&mut self, bytes: &[u8]) -> usize {
        let expected = BYTE_ORDER_MARK.get(self.seen..).unwrap_or_default();
        let length = expected
            .iter()
            .zip(bytes)
            .take_while(|(mark, byte)| mark == byte)
            .count();
        self.seen += length;
        if self.seen == BYTE_ORDER_MARK.len() {
            self.at = At::Field;
            self.seen = 0;
        } else if length < bytes.len() {
            // No field that means anything begins with a part of the mark.
            self.at = if self.seen > 0 {
                At::Ignored
            } else {
                At::Field
            };
        }
        length
    }

    /// Takes bytes of a line without its end.
    fn content(&mut self, mut content: &[u8], piece: Sink<'_>) {
        while let Some((&first, rest)) = content.split_first() {
            match self.at {
                At::Field => {
                    content = rest;
                    if first == b':' {
                        self.at = match self.field() {
                            Some(field) => At::Colon(field),
                            None if self.seen == 0 => At::Comment,
                            None => At::Ignored,
                        };
                        if self.at == At::Colon(Field::Data) {
                            self.data_line(piece);
                        }
                    } else if let Some(byte) = self.field.get_mut(self.seen) {
                        *byte = first;
                        self.seen += 1;
                    } else {
                        self.at = At::Ignored;
                    }
                }
                At::Colon(field) => {
                    self.at = At::Value(field);
                    if field == Field::Event {
                        self.name.clear();
                    }
                    if first == b' ' {
                        content = rest;
                    }
                }
                At::Value(Field::Data) => return piece(Piece::Data(content)),
                At::Value(Field::Event) => {
                    let room = NAME_BYTES_MAX.saturating_sub(self.name.len());
                    self.name.extend(content.iter().take(room));
                    return;
                }
                At::Stream | At::Ignored | At::Comment => return,
            }
        }
    }

    /// The field whose name was seen, if it means anything here.
    fn field(&self) -> Option<Field> {
        match self.field.get(..self.seen)? {
            b"data" => Some(Field::Data),
            b"event" => Some(Field::Event),
            _ => None,
        }
    }

    /// A line of data begins.
    fn data_line(&mut self, piece: Sink<'_>) {
        if self.has_data {
            piece(Piece::Data(b"\n"));
        } else {
            self.has_data = true;
            if !self.name.is_empty() {
                piece(Piece::Name(&self.name));
            }
        }
    }

    /// A line that is not blank ends.
    fn line_ended(&mut self, piece: Sink<'_>) {
        let event_field = match self.at {
            // A field without a colon has an empty value.
            At::Field => match self.field() {
                Some(Field::Data) => {
                    self.data_line(piece);
                    false
                }
                Some(Field::Event) => {
                    self.name.clear();
                    true
                }
                None => false,
            },
            At::Colon(Field::Event) => {
                self.name.clear();
                true
            }
            At::Value(Field::Event) => true,
            _ => false,
        };
        if event_field && self.has_data {
            piece(Piece::Name(&self.name));
        }
    }

    fn event_ended(&mut self, piece: Sink<'_>) {
        self.name.clear();
        if std::mem::take(&mut self.has_data) {
            piece(Piece::End);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events as (name, data), the data of an event that did not end as "(open)".
    fn decode(pieces: &[&[u8]]) -> Vec<(String, String)> {
        let mut events = Vec::new();
        let (mut name, mut data) = (Vec::new(), Vec::new());
        let mut note = |piece: Piece<'_>| match piece {
            Piece::Name(bytes) => name = bytes.to_vec(),
            Piece::Data(bytes) => {
                assert_ne!(bytes, b"");
                data.extend_from_slice(bytes);
            }
            Piece::End => {
                let text = |bytes: &mut Vec<u8>| String::from_utf8(std::mem::take(bytes)).unwrap();
                events.push((text(&mut name), text(&mut data)));
            }
        };
        let mut decoder = Decoder::new();
        for piece in pieces {
            decoder.push(piece, &mut note);
        }
        decoder.end(&mut note);
        assert_eq!((name, data), (Vec::new(), Vec::new()), "pieces of no event");
        events
    }

    fn check(stream: &str, expected: &[(&str, &str)]) {
        let bytes = stream.as_bytes();
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, data)| (String::from(*name), String::from(*data)))
            .collect();
        assert_eq!(decode(&[bytes]), expected, "{stream:?}");
        for cut in 0..=bytes.len() {
            let (head, tail) = bytes.split_at(cut);
            assert_eq!(decode(&[head, tail]), expected, "{stream:?} cut at {cut}");
        }
        assert_eq!(
            decode(&bytes.chunks(1).collect::<Vec<_>>()),
            expected,
            "{stream:?} by byte"
        );
    }

    #[test]
    fn every_line_ending_ends_a_line() {
        for newline in ["\n", "\r", "\r\n"] {
            let stream = "event: a\ndata: 1\ndata:2\n\ndata: 3\n\n".replace('\n', newline);
            check(&stream, &[("a", "1\n2"), ("", "3")]);
        }
        check(
            "data: 1\r\n\ndata: 2\n\r\ndata: 3\r\r\n",
            &[("", "1"), ("", "2"), ("", "3")],
        );
    }

    #[test]
    fn values_lose_one_space_and_keep_the_rest() {
        check(
            "data:a\n\ndata: b\n\ndata:  c \n\ndata:: d\n\n",
            &[("", "a"), ("", "b"), ("", " c "), ("", ": d")],
        );
    }

    #[test]
    fn fields_without_a_colon_have_an_empty_value() {
        check("data\n\n", &[("", "")]);
        check("data\ndata\n\n", &[("", "\n")]);
        check("data: a\ndata:\ndata\n\n", &[("", "a\n\n")]);
        check("event: a\nevent\ndata: b\n\n", &[("", "b")]);
    }

    #[test]
    fn comments_and_other_fields_are_skipped() {
        check(
            ": ping\n\n:\nid: 1\nretry: 2\ndatas: x\ndat: x\n data: x\nDATA: x\neventful: x\ndata: a\n\n",
            &[("", "a")],
        );
    }

    #[test]
    fn a_byte_order_mark_is_skipped_only_at_the_start() {
        check("\u{feff}data: a\n\n\u{feff}data: b\n\n", &[("", "a")]);
        check("\u{feff}\u{feff}data: b\n\n", &[]);
        check("\u{feff}\ndata: a\n\n", &[("", "a")]);
        check("\u{feff}: ping\n\ndata: a\n\n", &[("", "a")]);
    }

    #[test]
    fn a_broken_byte_order_mark_spoils_only_its_line() {
        for start in [
            &b"\xef"[..],
            b"\xef\xbb",
            b"\xefdata: x",
            b"\xef\xbbdata: x",
        ] {
            let stream = [start, b"\ndata: a\n\n"].concat();
            let expected = [(String::new(), String::from("a"))];
            assert_eq!(decode(&[&stream]), expected, "{start:?}");
            assert_eq!(
                decode(&stream.chunks(1).collect::<Vec<_>>()),
                expected,
                "{start:?}"
            );
        }
    }

    #[test]
    fn an_event_without_data_is_dropped_with_its_name() {
        check("event: a\n\ndata: b\n\nevent: c\n\n", &[("", "b")]);
    }

    #[test]
    fn the_last_name_of_an_event_counts_wherever_it_stands() {
        check("event: a\nevent: b\ndata: 1\n\n", &[("b", "1")]);
        check("data: 1\nevent: b\n\ndata: 2\n\n", &[("b", "1"), ("", "2")]);
        check("event: a\ndata: 1\nevent: b\n\n", &[("b", "1")]);
        check("event: a\ndata: 1\nevent\n\n", &[("", "1")]);
    }

    #[test]
    fn names_are_cut_at_the_limit() {
        for bytes in [NAME_BYTES_MAX - 1, NAME_BYTES_MAX, NAME_BYTES_MAX + 1] {
            let stream = format!("event: {}\ndata: 1\n\n", "n".repeat(bytes));
            check(&stream, &[(&"n".repeat(bytes.min(NAME_BYTES_MAX)), "1")]);
        }
    }

    #[test]
    fn an_unterminated_last_event_counts_if_it_has_data() {
        check("event: a\ndata: 1", &[("a", "1")]);
        check("data: 1\n", &[("", "1")]);
        check("data", &[("", "")]);
        check("data: 1\nevent: late", &[("late", "1")]);
        check("data: 1\n\nevent: a\ndat", &[("", "1")]);
        check("\u{feff}", &[]);
    }

    #[test]
    fn an_endless_line_is_handed_out_as_it_comes() {
        let mut decoder = Decoder::new();
        let mut bytes = 0;
        decoder.push(b"data: ", &mut |_| {});
        for _ in 0..800 {
            decoder.push(&[b'x'; 65_536], &mut |piece| {
                if let Piece::Data(data) = piece {
                    bytes += data.len();
                }
            });
        }
        assert_eq!(bytes, 800 * 65_536);
    }
}
