//! The one change to what is relayed: asking for usage where a provider sends none otherwise.
//!
//! OpenAI-style chat streams state usage only if `stream_options.include_usage` asks for it.
//! The option is put into the request ([`inject_usage`], or [`Splicer`] for a body that streams
//! through), and the one event that it adds is taken out of the response again
//! ([`UsageEventFilter`]), so that the application gets what it would have got. All other bytes
//! stay as they are, wherever they are cut. Pure: bytes in, bytes out. What is odd is left
//! alone; none of this ever fails a request.

use std::sync::LazyLock;

use bytes::BufMut;
use memchr::memchr2;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::wire::json::{Found, Kind, Path, Picker, Selector, Status, Step, Want};
use crate::wire::sse::{Decoder, Line, Piece};

/// The member that asks for usage, as it follows others.
const OPTION: &[u8] = br#","stream_options":{"include_usage":true}"#;

/// Asks for usage in a request's body that is wholly in memory.
///
/// Returns the new body, or `None` if the body is to be sent as it is: if it is not a JSON
/// object with `"stream":true`, says something about `include_usage` already, or is odd in any
/// way (malformed, duplicate members, options of another type). `null` options count as absent.
pub fn inject_usage(body: &[u8]) -> Option<Vec<u8>> {
    // Serde would read a struct from an array too.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    let request: StreamRequest<'_> = serde_json::from_slice(body).ok()?;
    if !request.stream {
        return None;
    }
    let Some(options) = request.stream_options else {
        let end = body.trim_ascii_end().len().checked_sub(1)?;
        return splice(body, end, end, OPTION);
    };
    let start = options
        .get()
        .as_ptr()
        .addr()
        .checked_sub(body.as_ptr().addr())?;
    if options.get() == "null" {
        return splice(
            body,
            start,
            start + options.get().len(),
            br#"{"include_usage":true}"#,
        );
    }
    if !options.get().starts_with('{') {
        return None;
    }
    let options: StreamOptions<'_> = serde_json::from_str(options.get()).ok()?;
    if options.include_usage.is_some() {
        return None;
    }
    let is_empty = body.get(start + 1..)?.trim_ascii_start().first() == Some(&b'}');
    let member: &[u8] = if is_empty {
        br#""include_usage":true"#
    } else {
        br#""include_usage":true,"#
    };
    splice(body, start + 1, start + 1, member)
}

/// The members that matter; a duplicate of one is an error.
#[derive(Deserialize)]
struct StreamRequest<'b> {
    stream: bool,
    #[serde(borrow, default, deserialize_with = "present")]
    stream_options: Option<&'b RawValue>,
}

#[derive(Deserialize)]
struct StreamOptions<'b> {
    #[serde(borrow, default, deserialize_with = "present")]
    include_usage: Option<&'b RawValue>,
}

/// Keeps `null` apart from absence.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// The body with the bytes from `start` to `end` replaced.
fn splice(body: &[u8], start: usize, end: usize, replacement: &[u8]) -> Option<Vec<u8>> {
    let (head, tail) = (body.get(..start)?, body.get(end..)?);
    Some([head, replacement, tail].concat())
}

/// Whether a byte is white space in JSON (RFC 8259, section 2), which the form feed is not.
fn is_space(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// How much white space behind the body's final brace is waited for. Real bodies end in a line
/// break at most.
const TAIL_BYTES_MAX: usize = 1024;

/// Asks for usage in a request's body that streams through.
///
/// The length of the body must be announced before it is known whether it wants the option, so
/// the result is always [`Splicer::EXTRA_BYTES`] longer: by the option in front of the final
/// brace, or else by as many spaces behind the end, which mean nothing in JSON. Bytes are passed
/// on as they come, except the final brace and white space behind it.
#[derive(Debug)]
pub struct Splicer {
    picker: Picker<'static>,
    is_object: bool,
    /// Whether every `stream` member so far was `true`; `None` before the first.
    stream: Option<bool>,
    has_options: bool,
    /// The final brace and the white space behind it.
    held: Vec<u8>,
    state: SplicerState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SplicerState {
    Reading,
    /// The document has ended and is to get the option.
    Holding,
    /// The body is not to get the option: the padding comes last.
    Padding,
    Ended {
        has_injected: bool,
    },
}

static REQUEST: LazyLock<Selector> = LazyLock::new(|| Selector::new(REQUEST_PATHS));
const REQUEST_PATHS: &[Path] = &[
    Path {
        steps: &[],
        want: Want::Kind,
    },
    Path {
        steps: &[Step::Key("stream")],
        want: Want::Text(4),
    },
    Path {
        steps: &[Step::Key("stream_options")],
        want: Want::Kind,
    },
];

impl Splicer {
    /// By how much the body grows, whatever is in it.
    pub const EXTRA_BYTES: usize = OPTION.len();

    /// A splicer for one body.
    pub fn new() -> Splicer {
        Splicer {
            picker: Picker::new(&REQUEST),
            is_object: false,
            stream: None,
            has_options: false,
            held: Vec::new(),
            state: SplicerState::Reading,
        }
    }

    /// Takes the next bytes and appends to `out` what can be sent.
    pub fn push(&mut self, bytes: &[u8], out: &mut impl BufMut) {
        match self.state {
            SplicerState::Reading => {
                let end = self.read(bytes);
                if self.picker.status() != Status::Complete {
                    out.put_slice(bytes);
                } else if self.wants_option() {
                    let last = end.saturating_sub(1);
                    let (head, tail) = bytes.split_at_checked(last).unwrap_or((bytes, &[]));
                    out.put_slice(head);
                    self.state = SplicerState::Holding;
                    self.hold(tail, out);
                } else {
                    self.state = SplicerState::Padding;
                    out.put_slice(bytes);
                }
            }
            SplicerState::Holding => self.hold(bytes, out),
            SplicerState::Padding | SplicerState::Ended { .. } => out.put_slice(bytes),
        }
    }

    /// Takes the end of the body and appends the rest.
    pub fn end(&mut self, out: &mut impl BufMut) {
        let has_injected = self.state == SplicerState::Holding;
        match self.state {
            SplicerState::Holding => {
                out.put_slice(OPTION);
                out.put_slice(&self.held);
                self.held.clear();
            }
            SplicerState::Reading | SplicerState::Padding => {
                out.put_bytes(b' ', Splicer::EXTRA_BYTES);
            }
            SplicerState::Ended { .. } => return,
        }
        self.state = SplicerState::Ended { has_injected };
    }

    /// Whether the option was put in; known once the body has ended.
    pub fn has_injected(&self) -> bool {
        self.state == SplicerState::Ended { has_injected: true }
    }

    /// Reads on in the document and returns where it ended.
    fn read(&mut self, bytes: &[u8]) -> usize {
        let Splicer {
            picker,
            is_object,
            stream,
            has_options,
            ..
        } = self;
        picker.scan(bytes, &mut |path, found| match (path, found) {
            (0, Found::Kind { kind, .. }) => *is_object = kind == Kind::Object,
            (1, found) => {
                *stream = Some(stream.is_none() && found == Found::Text(b"true"));
            }
            _ => *has_options = true,
        })
    }

    fn wants_option(&self) -> bool {
        self.is_object && self.stream == Some(true) && !self.has_options
    }

    fn hold(&mut self, bytes: &[u8], out: &mut impl BufMut) {
        // Behind the brace only white space is in order.
        let is_space = bytes
            .iter()
            .skip(usize::from(self.held.is_empty()))
            .all(is_space);
        if is_space && self.held.len() + bytes.len() <= TAIL_BYTES_MAX {
            self.held.extend_from_slice(bytes);
        } else {
            self.state = SplicerState::Padding;
            out.put_slice(&self.held);
            self.held.clear();
            out.put_slice(bytes);
        }
    }
}

impl Default for Splicer {
    fn default() -> Splicer {
        Splicer::new()
    }
}

/// How much of an event is held while it may be the one to remove. Real ones have less than
/// 2 KiB.
pub const EVENT_BYTES_MAX: usize = 64 << 10;

/// Removes from a stream of server-sent events those that were asked for by the injected
/// option: whose data is a JSON object with empty `choices` and a `usage` object.
///
/// An event is held only until it is known not to be such a one. Comments stay, also those
/// inside an event that is removed. The stream must not be encoded.
#[derive(Debug)]
pub struct UsageEventFilter {
    decoder: Decoder,
    picker: Picker<'static>,
    suspicion: Suspicion,
    /// Whether the event at hand is being held, because it may be one to remove.
    is_holding: bool,
    /// The event so far, from its first line that is no comment.
    held: Vec<u8>,
    /// The last line ended an event that was removed; the line feed of its CR LF goes with it.
    is_tail_removed: bool,
    removed: u32,
}

/// What the event's data showed so far.
#[derive(Debug, Clone, Copy, Default)]
struct Suspicion {
    has_no_choices: bool,
    has_usage: bool,
    /// Something that the event to remove has not.
    is_cleared: bool,
}

static EVENT: LazyLock<Selector> = LazyLock::new(|| Selector::new(EVENT_PATHS));
const EVENT_PATHS: &[Path] = &[
    Path {
        steps: &[],
        want: Want::Kind,
    },
    Path {
        steps: &[Step::Key("choices")],
        want: Want::Kind,
    },
    Path {
        steps: &[Step::Key("usage")],
        want: Want::Kind,
    },
];

impl Suspicion {
    fn see(&mut self, path: usize, kind: Kind, empty: bool) {
        match (path, kind) {
            (0, Kind::Object) => {}
            (1, Kind::Array) if empty => self.has_no_choices = true,
            (2, Kind::Object) => self.has_usage = true,
            _ => self.is_cleared = true,
        }
    }
}

impl UsageEventFilter {
    /// A filter at the start of a stream.
    pub fn new() -> UsageEventFilter {
        UsageEventFilter {
            decoder: Decoder::new(),
            picker: Picker::new(&EVENT),
            suspicion: Suspicion::default(),
            is_holding: true,
            held: Vec::new(),
            is_tail_removed: false,
            removed: 0,
        }
    }

    /// Takes the next bytes and appends to `out` what is to be passed on by now.
    pub fn push(&mut self, bytes: &[u8], out: &mut impl BufMut) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (consumed, line) = self.read(rest);
            let (bytes, after) = rest.split_at_checked(consumed).unwrap_or((rest, &[]));
            rest = after;
            self.take(bytes, line, out);
        }
    }

    /// Takes the end of the stream and appends the rest. An event of usage that lacks the blank
    /// line at its end is removed too.
    pub fn end(&mut self, out: &mut impl BufMut) {
        if self.is_usage() {
            self.remove(out);
        } else {
            self.release(out);
        }
    }

    /// How many events were removed.
    pub fn removed(&self) -> u32 {
        self.removed
    }

    /// Reads up to the end of a line.
    fn read(&mut self, bytes: &[u8]) -> (usize, Line) {
        let UsageEventFilter {
            decoder,
            picker,
            suspicion,
            is_holding,
            ..
        } = self;
        decoder.line(bytes, &mut |piece| {
            let Piece::Data(data) = piece else {
                return;
            };
            if !*is_holding {
                return;
            }
            let used = picker.scan(data, &mut |path, found| {
                if let Found::Kind { kind, empty } = found {
                    suspicion.see(path, kind, empty);
                }
            });
            let is_junk = !data.get(used..).unwrap_or_default().iter().all(is_space);
            let is_malformed = matches!(picker.status(), Status::Malformed | Status::TooDeep);
            suspicion.is_cleared |= is_junk || is_malformed;
        })
    }

    /// Takes a line, or a part of one, that was read.
    fn take(&mut self, bytes: &[u8], line: Line, out: &mut impl BufMut) {
        let is_tail_removed = std::mem::take(&mut self.is_tail_removed);
        match line {
            Line::Tail if is_tail_removed => {}
            Line::Blank => {
                self.hold(bytes, out);
                if self.is_usage() {
                    self.remove(out);
                    self.is_tail_removed = true;
                }
                self.release(out);
                self.is_holding = true;
                self.picker.reset();
                self.suspicion = Suspicion::default();
            }
            // A comment ahead of the event's lines stays whatever the event is.
            Line::Mark
            | Line::Tail
            | Line::Open { is_comment: true }
            | Line::Ended { is_comment: true }
                if self.held.is_empty() =>
            {
                out.put_slice(bytes);
            }
            _ => self.hold(bytes, out),
        }
    }

    /// Holds bytes of the event, or passes them on if it is known not to be one to remove.
    fn hold(&mut self, bytes: &[u8], out: &mut impl BufMut) {
        self.is_holding &=
            !self.suspicion.is_cleared && self.held.len() + bytes.len() <= EVENT_BYTES_MAX;
        if self.is_holding {
            self.held.extend_from_slice(bytes);
        } else {
            self.release(out);
            out.put_slice(bytes);
        }
    }

    fn is_usage(&self) -> bool {
        let Suspicion {
            has_no_choices,
            has_usage,
            is_cleared,
        } = self.suspicion;
        self.is_holding
            && self.picker.status() == Status::Complete
            && has_no_choices
            && has_usage
            && !is_cleared
    }

    fn release(&mut self, out: &mut impl BufMut) {
        out.put_slice(&self.held);
        self.held.clear();
    }

    /// Drops the event that is held, all but comments.
    fn remove(&mut self, out: &mut impl BufMut) {
        self.removed += 1;
        let mut rest = &self.held[..];
        while !rest.is_empty() {
            let end = match memchr2(b'\n', b'\r', rest) {
                Some(at) if rest.get(at..at + 2) == Some(b"\r\n") => at + 2,
                Some(at) => at + 1,
                None => rest.len(),
            };
            let (line, after) = rest.split_at_checked(end).unwrap_or((rest, &[]));
            if line.starts_with(b":") {
                out.put_slice(line);
            }
            rest = after;
        }
        self.held.clear();
    }
}

impl Default for UsageEventFilter {
    fn default() -> UsageEventFilter {
        UsageEventFilter::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn injected(body: &str) -> Option<String> {
        inject_usage(body.as_bytes()).map(|body| String::from_utf8(body).unwrap())
    }

    /// The result of the splicer, the same for every single cut.
    fn spliced(body: &str) -> (String, bool) {
        let run = |pieces: &[&[u8]]| {
            let mut splicer = Splicer::new();
            let mut out = Vec::new();
            for piece in pieces {
                splicer.push(piece, &mut out);
            }
            splicer.end(&mut out);
            (String::from_utf8(out).unwrap(), splicer.has_injected())
        };
        let bytes = body.as_bytes();
        let whole = run(&[bytes]);
        assert_eq!(whole.0.len(), body.len() + Splicer::EXTRA_BYTES, "{body}");
        for cut in 0..=bytes.len() {
            let (head, tail) = bytes.split_at(cut);
            assert_eq!(run(&[head, tail]), whole, "{body:?} cut at {cut}");
        }
        assert_eq!(
            run(&bytes.chunks(1).collect::<Vec<_>>()),
            whole,
            "{body:?} by byte"
        );
        whole
    }

    #[test]
    fn a_stream_request_without_the_option_gets_it() {
        for (body, expected) in [
            (
                r#"{"model":"m","stream":true}"#,
                r#"{"model":"m","stream":true,"stream_options":{"include_usage":true}}"#,
            ),
            (
                " { \"stream\" : true ,\n\"x\":[{}] \n} \n",
                " { \"stream\" : true ,\n\"x\":[{}] \n,\"stream_options\":{\"include_usage\":true}} \n",
            ),
            (
                r#"{"str\u0065am":true,"messages":[{"stream_options":1,"stream":false}]}"#,
                r#"{"str\u0065am":true,"messages":[{"stream_options":1,"stream":false}],"stream_options":{"include_usage":true}}"#,
            ),
        ] {
            assert_eq!(injected(body).as_deref(), Some(expected));
            assert_eq!(spliced(body), (expected.into(), true));
        }
    }

    #[test]
    fn options_that_lack_the_member_get_it() {
        for (body, expected) in [
            (
                r#"{"stream_options":{},"stream":true}"#,
                r#"{"stream_options":{"include_usage":true},"stream":true}"#,
            ),
            (
                r#"{"stream_options" : { } ,"stream":true}"#,
                r#"{"stream_options" : {"include_usage":true } ,"stream":true}"#,
            ),
            (
                r#"{"stream":true,"stream_options": {"a":{"include_usage":true}}}"#,
                r#"{"stream":true,"stream_options": {"include_usage":true,"a":{"include_usage":true}}}"#,
            ),
            (
                r#"{"stream_options": null ,"stream":true}"#,
                r#"{"stream_options": {"include_usage":true} ,"stream":true}"#,
            ),
        ] {
            assert_eq!(injected(body).as_deref(), Some(expected));
        }
    }

    #[test]
    fn what_does_not_want_the_option_or_is_odd_stays_as_it_is() {
        for body in [
            "",
            " ",
            "{}",
            "[true]",
            "true",
            "12",
            "x",
            r#"{"stream":false}"#,
            r#"{"stream":null}"#,
            r#"{"stream":"true"}"#,
            r#"{"stream":1}"#,
            r#"{"model":"m"}"#,
            r#"{"stream":true,"stream":true}"#,
            r#"{"stream":true"#,
            r#"{"stream":true}}"#,
            r#"{"stream":true} x"#,
            r#"{"stream":true,}"#,
            r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":false}}"#,
            r#"{"stream":true,"stream_options":{"include_us\u0061ge":null}}"#,
            r#"{"stream":true,"stream_options":[]}"#,
            r#"{"stream":true,"stream_options":"x"}"#,
            r#"{"stream":true,"stream_options":{},"stream_options":{}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":true,"include_usage":true}}"#,
        ] {
            assert_eq!(injected(body), None, "{body}");
            let padded = body.to_owned() + &" ".repeat(Splicer::EXTRA_BYTES);
            assert_eq!(spliced(body), (padded, false), "{body}");
        }
    }

    #[test]
    fn the_splicer_holds_only_the_final_brace_and_white_space() {
        let body = "{\"stream\":true, \"x\":{\"y\":[\"}\"]}}\n ";
        let mut splicer = Splicer::new();
        let mut out = Vec::new();
        for (index, byte) in body.bytes().enumerate() {
            splicer.push(&[byte], &mut out);
            assert_eq!(out, &body.as_bytes()[..(index + 1).min(body.len() - 3)]);
        }
    }

    #[test]
    fn the_splicer_waits_for_the_end_up_to_a_limit() {
        for (spaces, expected) in [
            (TAIL_BYTES_MAX - 2, true),
            (TAIL_BYTES_MAX - 1, true),
            (TAIL_BYTES_MAX, false),
        ] {
            let body = format!("{{\"stream\":true}}{}", " ".repeat(spaces));
            assert_eq!(spliced(&body).1, expected, "{spaces}");
        }
    }

    /// What the filter lets pass and how much it removed, the same for every single cut.
    fn filtered(stream: &str) -> (String, u32) {
        let run = |pieces: &[&[u8]]| {
            let mut filter = UsageEventFilter::new();
            let mut out = Vec::new();
            for piece in pieces {
                filter.push(piece, &mut out);
            }
            filter.end(&mut out);
            (String::from_utf8(out).unwrap(), filter.removed())
        };
        let bytes = stream.as_bytes();
        let whole = run(&[bytes]);
        for cut in 0..=bytes.len() {
            let (head, tail) = bytes.split_at(cut);
            assert_eq!(run(&[head, tail]), whole, "{stream:?} cut at {cut}");
        }
        assert_eq!(
            run(&bytes.chunks(1).collect::<Vec<_>>()),
            whole,
            "{stream:?} by byte"
        );
        whole
    }

    const USAGE: &str = r#"{"id":"x","choices":[],"usage":{"total_tokens":3}}"#;
    const CHUNK: &str = r#"{"id":"x","choices":[{"delta":{"content":"a"}}],"usage":null}"#;

    #[test]
    fn only_the_events_of_usage_are_removed() {
        for newline in ["\n", "\r", "\r\n"] {
            let chunk = format!(": ping\ndata: {CHUNK}\n\n").replace('\n', newline);
            let done = "data: [DONE]\n\n".replace('\n', newline);
            let usage =
                format!("event: x\nid: 1\ndata: {USAGE}\nretry: 2\n\n").replace('\n', newline);
            let stream = [&*usage, &chunk, &usage, &usage, &done, &usage].concat();
            assert_eq!(
                filtered(&stream),
                ([chunk, done].concat(), 4),
                "{newline:?}"
            );
        }
    }

    #[test]
    fn comments_and_the_byte_order_mark_stay_when_an_event_is_removed() {
        for newline in ["\n", "\r", "\r\n"] {
            let stream = format!(": a\ndata: {USAGE}\n: b\n:\nid: 1\n\n: c\n\n");
            let stream = "\u{feff}".to_owned() + &stream.replace('\n', newline);
            let kept = "\u{feff}".to_owned() + &": a\n: b\n:\n: c\n\n".replace('\n', newline);
            assert_eq!(filtered(&stream), (kept, 1), "{newline:?}");
        }
    }

    #[test]
    fn other_events_stay_to_the_byte() {
        for event in [
            r#"data: {"choices":[],"prompt_filter_results":[{}]}"#,
            r#"data: {"choices":[],"usage":null}"#,
            r#"data: {"choices":[{"delta":{}}],"usage":{"total_tokens":3}}"#,
            r#"data: {"choices":{},"usage":{}}"#,
            r#"data: {"usage":{}}"#,
            r#"data: {"usage":{},"choices":null}"#,
            r#"data: {"choices":[],"usage":{},"choices":[1]}"#,
            r#"data: {"choices":[],"usage":{}} x"#,
            "data: {\"choices\":[],\"usage\":{}}\u{c}",
            r#"data: {"choices":[],"usage":{},}"#,
            r#"data: {"choices":[],"usage":{}"#,
            r#"data: {"x":{"choices":[],"usage":{}}}"#,
            r#"data: [{"choices":[],"usage":{}}]"#,
            r#"date: {"choices":[],"usage":{}}"#,
            r#": {"choices":[],"usage":{}}"#,
            "data: [DONE]",
            "data",
            "event: x",
            "",
        ] {
            for end in ["", "\n", "\n\n", "\r\n\r\n", "\n\n\n\r\r\n"] {
                let stream = format!("{event}{end}");
                assert_eq!(filtered(&stream), (stream, 0));
            }
        }
    }

    #[test]
    fn an_event_of_usage_is_removed_however_it_is_written() {
        for event in [
            r#"data:{"usage":{},"choices":[ ]}"#,
            "data: {\"usage\":{}, \ndata: \"choices\" : []\ndata: } ",
            r#"data: {"us\u0061ge":{"a":[1]},"choices":[],"choices":[]}"#,
        ] {
            for end in ["", "\n", "\n\n", "\r\n\r\n", "\r\r", "\n\r\n"] {
                let stream = format!("data: x\n\n{event}{end}");
                assert_eq!(
                    filtered(&stream),
                    ("data: x\n\n".into(), 1),
                    "{event:?} {end:?}"
                );
            }
        }
    }

    #[test]
    fn an_event_is_passed_on_as_soon_as_it_is_known_to_be_another() {
        let mut filter = UsageEventFilter::new();
        let mut out = Vec::new();
        filter.push(br#"data: {"id":"x","choices":["#, &mut out);
        assert_eq!(out, b"");
        filter.push(b"{", &mut out);
        assert_eq!(out, br#"data: {"id":"x","choices":[{"#);
        filter.push(b"\"delta", &mut out);
        assert_eq!(out, br#"data: {"id":"x","choices":[{"delta"#);
        out.clear();
        filter.push(b"\":1}]}\n\n: p", &mut out);
        assert_eq!(out, b"\":1}]}\n\n: p");
    }

    #[test]
    fn an_event_is_held_up_to_a_limit() {
        for (bytes, removed) in [
            (EVENT_BYTES_MAX - 1, 1),
            (EVENT_BYTES_MAX, 1),
            (EVENT_BYTES_MAX + 1, 0),
        ] {
            let frame = format!("data: {USAGE}\n\n");
            let padding = " ".repeat(bytes - frame.len());
            let stream = format!("data: {padding}{USAGE}\n\n");
            assert_eq!(stream.len(), bytes);
            for size in [1, 1000, bytes] {
                let mut filter = UsageEventFilter::new();
                let mut out = Vec::new();
                for piece in stream.as_bytes().chunks(size) {
                    filter.push(piece, &mut out);
                    assert!(filter.held.len() <= EVENT_BYTES_MAX);
                }
                filter.end(&mut out);
                assert_eq!(filter.removed(), removed, "{bytes} in pieces of {size}");
                let expected = if removed == 0 { stream.as_bytes() } else { b"" };
                assert!(out == expected, "{bytes} in pieces of {size}");
            }
        }
    }
}
