//! What must hold of the wire formats and rewrites for any bytes, cut anywhere, and of whoever reads
//! the answers of billing and price APIs.
//!
//! The property tests of the suite feed these functions with likely inputs, the fuzz targets
//! with unlikely ones. Each compares with a plain reading of the whole, mostly by serde_json.

use std::borrow::Cow;
use std::sync::LazyLock;

use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use taffrail::ask::{Answer, Ask, Fault};
use taffrail::balance::{self, Next, Subject};
use taffrail::bill::{self, Period, receipt};
use taffrail::price::{PRICE_APIS, PriceList, import, price_api};
use taffrail::provider::{self, End, JobStage, RequestHead, ResponseHead};
use taffrail::proxy::job_urls::{JobUrlFilter, Place};
use taffrail::proxy::rewrite::{Splicer, UsageEventFilter, inject_usage};
use taffrail::qualifier::Qualifier;
use taffrail::wire::http1::HeadReader;
use taffrail::wire::inflate::{Decoding, Inflater, OUTPUT_BYTES_MAX};
use taffrail::wire::json::{
    Found, Kind, MAX_DEPTH, Path, Picker, Selector, Status, Step, Want, decimal_of, text_of,
};
use taffrail::wire::multipart::{FieldReader, VALUE_BYTES_MAX};
use taffrail::wire::sse::{Decoder, NAME_BYTES_MAX, Piece};

/// Cuts into pieces of sizes that the seed decides; some are empty.
pub(crate) fn cut(bytes: &[u8], seed: u64) -> Vec<&[u8]> {
    let mut state = seed;
    let mut rest = bytes;
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let size = match state >> 60 {
            0..=7 => state >> 33 & 3,
            8..=13 => state >> 33 & 31,
            _ => state >> 33 & 1023,
        };
        let size = usize::try_from(size).unwrap().min(rest.len());
        let (piece, after) = rest.split_at(size);
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// Every way to cut that a property tries: whole, as the seed says, byte by byte.
fn ways(bytes: &[u8], seed: u64) -> [Vec<&[u8]>; 3] {
    [vec![bytes], cut(bytes, seed), bytes.chunks(1).collect()]
}

/// Calls `run` on every way to cut, checks that the results agree and returns the result.
fn agreed<T: PartialEq + std::fmt::Debug>(
    bytes: &[u8],
    seed: u64,
    run: impl Fn(&[&[u8]]) -> T,
) -> T {
    let [whole, some, single] = ways(bytes, seed).map(|pieces| run(&pieces));
    assert_eq!(
        whole,
        some,
        "cut by {seed}: {:?}",
        String::from_utf8_lossy(bytes)
    );
    assert_eq!(
        whole,
        single,
        "cut into bytes: {:?}",
        String::from_utf8_lossy(bytes)
    );
    whole
}

// The picker.

/// A [`Found`] that owns its text.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fact {
    Text(Vec<u8>),
    TooLong,
    Kind(Kind, bool),
    Count(u64),
}

impl Fact {
    fn of(found: Found<'_>) -> Fact {
        match found {
            Found::Text(text) => Fact::Text(text.to_vec()),
            Found::TooLong => Fact::TooLong,
            Found::Kind { kind, empty } => Fact::Kind(kind, empty),
            Found::Count(count) => Fact::Count(count),
        }
    }
}

/// Paths of every kind, to the same and to nested values.
pub(crate) const PATHS: &[Path] = &[
    Path {
        steps: &[],
        want: Want::Kind,
    },
    Path {
        steps: &[],
        want: Want::Text(40),
    },
    Path {
        steps: &[Step::Key("a")],
        want: Want::Text(8),
    },
    Path {
        steps: &[Step::Key("a")],
        want: Want::Chars,
    },
    Path {
        steps: &[Step::Key("a"), Step::Each],
        want: Want::Kind,
    },
    Path {
        steps: &[Step::Key("a"), Step::Each, Step::Key("b")],
        want: Want::Text(2),
    },
    Path {
        steps: &[Step::Key("\u{1F600}\n")],
        want: Want::Text(100),
    },
    Path {
        steps: &[Step::Each],
        want: Want::Chars,
    },
    Path {
        steps: &[Step::Each, Step::Each],
        want: Want::Count,
    },
    Path {
        steps: &[Step::Key("b")],
        want: Want::Count,
    },
];

/// The picker reports what serde_json reads, in the order that is documented, and never calls a
/// document complete that serde_json refuses.
pub(crate) fn picker(paths: &[Path], document: &[u8], seed: u64) {
    let selector = Selector::new(paths);
    let (facts, status) = agreed(document, seed, |pieces| {
        let mut picker = Picker::new(&selector);
        let mut facts = Vec::new();
        let mut note = |path, found: Found<'_>| facts.push((path, Fact::of(found)));
        let mut used = 0;
        for piece in pieces {
            used += picker.scan(piece, &mut note);
        }
        let status = picker.end(&mut note);
        (
            facts,
            (status, (status == Status::Complete).then_some(used)),
        )
    });

    // Nothing is reported beyond its limit.
    for (path, fact) in &facts {
        if let (Fact::Text(text), Want::Text(limit)) = (fact, paths[*path].want) {
            assert!(text.len() <= limit);
        }
        // Reading it on never panics, whatever it is.
        if let Fact::Text(text) = fact {
            drop((text_of(text), decimal_of(text)));
        }
    }

    let (status, used) = status;
    if "\u{feff}".as_bytes().starts_with(document) {
        // serde_json knows no byte order mark, whole or cut.
        let is_cut = matches!(document.len(), 1 | 2);
        let expected = if is_cut {
            Status::Partial
        } else {
            Status::Empty
        };
        assert_eq!((facts, status), (Vec::new(), expected));
        return;
    }
    let json = document
        .strip_prefix("\u{feff}".as_bytes())
        .unwrap_or(document);
    let verdict = serde_json::from_slice::<IgnoredAny>(json);
    let shown = String::from_utf8_lossy(document);
    match status {
        Status::Complete => {
            let own = &json[..used.unwrap() - (document.len() - json.len())];
            assert!(
                serde_json::from_slice::<IgnoredAny>(own).is_ok(),
                "complete: {shown:?}"
            );
            let expected = expected(paths, own);
            if let Some(expected) = expected {
                assert_eq!(facts, expected, "{shown:?}");
            }
        }
        Status::Partial | Status::Empty => {
            // Of a number that was cut behind its point, serde_json says that it is none.
            let longer = serde_json::from_slice::<IgnoredAny>(&[json, b"0"].concat());
            let is_start = |error: serde_json::Error| error.is_eof();
            let is_number_cut = longer.map_or_else(is_start, |_| true);
            assert!(
                verdict.is_err_and(|error| error.is_eof() || is_number_cut),
                "{status:?}: {shown:?}"
            );
        }
        Status::Malformed => assert!(verdict.is_err(), "malformed: {shown:?}"),
        Status::TooDeep => {
            let opened = document
                .iter()
                .filter(|byte| matches!(byte, b'[' | b'{'))
                .count();
            assert!(opened > MAX_DEPTH);
        }
    }
}

/// What should be found in a whole document; `None` where serde_json cannot tell, for lone
/// surrogates and invalid UTF-8.
fn expected(paths: &[Path], document: &[u8]) -> Option<Vec<(usize, Fact)>> {
    let root: &RawValue = serde_json::from_slice(document).ok()?;
    let mut facts = Vec::new();
    let all: Vec<usize> = (0..paths.len()).collect();
    expect_value(paths, &all, 0, root.get(), &mut facts)?;
    Some(facts)
}

/// Adds what should be found in a value that the first `depth` steps of these paths lead to.
fn expect_value(
    paths: &[Path],
    reaching: &[usize],
    depth: usize,
    text: &str,
    facts: &mut Vec<(usize, Fact)>,
) -> Option<()> {
    let (here, deeper): (Vec<usize>, Vec<usize>) = reaching
        .iter()
        .partition(|path| paths[**path].steps.len() == depth);
    let kind = match text.as_bytes()[0] {
        b'n' => Kind::Null,
        b't' | b'f' => Kind::Bool,
        b'"' => Kind::String,
        b'[' => Kind::Array,
        b'{' => Kind::Object,
        _ => Kind::Number,
    };
    let mut is_empty = false;
    let mut inner = Vec::new();
    let mut count = None;
    match kind {
        Kind::String => {
            is_empty = text == "\"\"";
            let wants_chars = here.iter().any(|path| paths[*path].want == Want::Chars);
            if wants_chars {
                let content: Cow<'_, str> = serde_json::from_str(text).ok()?;
                count = Some(u64::try_from(content.chars().count()).unwrap());
                assert_eq!(text_of(text.as_bytes()), Some(content));
            }
        }
        Kind::Array => {
            let elements: Vec<&RawValue> = serde_json::from_str(text).ok()?;
            is_empty = elements.is_empty();
            count = Some(u64::try_from(elements.len()).unwrap());
            for element in elements {
                let further: Vec<usize> = deeper
                    .iter()
                    .copied()
                    .filter(|path| paths[*path].steps[depth] == Step::Each)
                    .collect();
                expect_value(paths, &further, depth + 1, element.get(), &mut inner)?;
            }
        }
        Kind::Object => {
            let Members(members) = serde_json::from_str(text).ok()?;
            is_empty = members.is_empty();
            for (key, value) in members {
                let leads =
                    |step: Step| matches!(step, Step::Key(wanted) if wanted == key.as_str());
                let further: Vec<usize> = deeper
                    .iter()
                    .copied()
                    .filter(|path| leads(paths[*path].steps[depth]))
                    .collect();
                expect_value(paths, &further, depth + 1, value.get(), &mut inner)?;
            }
        }
        Kind::Null | Kind::Bool | Kind::Number => {}
    }
    let is_scalar = matches!(kind, Kind::Null | Kind::Bool | Kind::Number);
    for &path in here
        .iter()
        .filter(|path| !is_scalar && paths[**path].want == Want::Kind)
    {
        facts.push((path, Fact::Kind(kind, is_empty)));
    }
    facts.append(&mut inner);
    for &path in &here {
        let fact = match paths[path].want {
            Want::Text(limit) if text.len() > limit => Fact::TooLong,
            Want::Text(_) => Fact::Text(text.into()),
            Want::Kind if is_scalar => Fact::Kind(kind, false),
            Want::Chars if kind == Kind::String => Fact::Count(count.unwrap()),
            Want::Count if kind == Kind::Array => Fact::Count(count.unwrap()),
            Want::Kind | Want::Chars | Want::Count => continue,
        };
        facts.push((path, fact));
    }
    Some(())
}

/// The members of an object in order, duplicates kept.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Vec<(String, &'de RawValue)>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(All).map(Members)
    }
}

// Server-sent events.

/// An event: name and data.
type Event = (Vec<u8>, Vec<u8>);

/// A response as its reader sees it.
#[derive(Debug, PartialEq)]
pub(crate) struct Reply {
    pub(crate) version: Version,
    pub(crate) status: StatusCode,
    pub(crate) reason: Option<Vec<u8>>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    /// None if the body broke off.
    pub(crate) trailers: Option<HeaderMap>,
}

/// The longest head that [`http1`] takes.
pub(crate) const HEAD_BYTES_MAX: usize = 8192;

/// What a connection brings after a request with that method, until it closes. No body is longer
/// than what came.
pub(crate) fn http1(method: &Method, bytes: &[u8], seed: u64) -> Option<Reply> {
    agreed(bytes, seed, |pieces| {
        let mut reader = HeadReader::new(method.clone(), HEAD_BYTES_MAX);
        let (mut head, mut body, mut is_sound) = (None, Vec::new(), true);
        for mut piece in pieces.iter().copied() {
            if head.is_none() {
                let Ok(read) = reader.push(piece) else { break };
                let Some((new, used)) = read else { continue };
                head = Some(new);
                piece = &piece[used..];
            }
            if let Some(head) = &mut head
                && is_sound
            {
                let used = head.body.push(piece, &mut body);
                assert!(used.is_err() || used == Ok(piece.len()) || head.body.is_complete());
                is_sound = used.is_ok();
            }
        }
        assert!(body.len() <= bytes.len());
        let mut head = head?;
        let is_sound = is_sound && head.body.close().is_ok();
        let trailers = is_sound.then(|| head.body.take_trailers().unwrap_or_default());
        Some(Reply {
            version: head.version,
            status: head.status,
            reason: head.reason.map(|reason| reason.to_vec()),
            headers: head.headers,
            body,
            trailers,
        })
    })
}

/// The decoder's pieces put together are the events that a plain reading of the standard gives,
/// and an unterminated last one.
pub(crate) fn sse(stream: &[u8], seed: u64) -> Vec<Event> {
    let events = agreed(stream, seed, |pieces| {
        let mut events = Vec::new();
        let (mut name, mut data) = (Vec::new(), Vec::new());
        let mut note = |piece: Piece<'_>| match piece {
            Piece::Name(bytes) => name = bytes.to_vec(),
            Piece::Data(bytes) => {
                assert!(!bytes.is_empty());
                data.extend_from_slice(bytes);
            }
            Piece::End => {
                events.push((std::mem::take(&mut name), std::mem::take(&mut data)));
            }
        };
        let mut decoder = Decoder::new();
        for piece in pieces {
            decoder.push(piece, &mut note);
        }
        decoder.end(&mut note);
        assert_eq!((name, data), Event::default(), "pieces of no event");
        events
    });
    assert_eq!(
        events,
        plain_events(stream),
        "{:?}",
        String::from_utf8_lossy(stream)
    );
    events
}

/// The lines of a stream with their ends.
fn lines(stream: &[u8]) -> Vec<(&[u8], &[u8])> {
    let mut lines = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
        let end = end.unwrap_or(rest.len());
        let (line, after) = rest.split_at(end);
        let newline = if after.starts_with(b"\r\n") {
            2
        } else {
            after.len().min(1)
        };
        let (newline, after) = after.split_at(newline);
        lines.push((line, newline));
        rest = after;
    }
    lines
}

/// A line's field and value; a comment has no field name.
fn field(line: &[u8]) -> (&[u8], &[u8]) {
    match line.iter().position(|byte| *byte == b':') {
        Some(colon) => {
            let value = &line[colon + 1..];
            (&line[..colon], value.strip_prefix(b" ").unwrap_or(value))
        }
        None => (line, b""),
    }
}

fn plain_events(stream: &[u8]) -> Vec<Event> {
    let stream = stream.strip_prefix("\u{feff}".as_bytes()).unwrap_or(stream);
    let mut events = Vec::new();
    let (mut name, mut data): (Vec<u8>, Option<Vec<u8>>) = (Vec::new(), None);
    for (line, _) in lines(stream).into_iter().chain([(&b""[..], &b""[..])]) {
        if line.is_empty() {
            let name = std::mem::take(&mut name);
            if let Some(data) = data.take() {
                events.push((name, data));
            }
            continue;
        }
        match field(line) {
            (b"event", value) => name = value[..value.len().min(NAME_BYTES_MAX)].to_vec(),
            (b"data", value) => match &mut data {
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
                None => data = Some(value.to_vec()),
            },
            _ => {}
        }
    }
    events
}

// Content codings.

/// The codings that are read, by name.
pub(crate) const CODINGS: &[&str] = &["gzip", "deflate", "br", "zstd", "identity"];

/// Garbage never panics and never yields more than the cap, and what is decodable does not
/// depend on the cuts. Of what is not, the part before the fault may.
pub(crate) fn inflate(body: &[u8], seed: u64) {
    for coding in CODINGS {
        let [whole, some, single] = ways(body, seed).map(|pieces| decode(coding, &pieces));
        for (output, status) in [&some, &single] {
            assert_eq!(*status, whole.1, "{coding}");
            match status {
                Decoding::Undecodable => {
                    let shorter = output.len().min(whole.0.len());
                    assert!(output[..shorter] == whole.0[..shorter], "{coding}");
                }
                Decoding::Ok | Decoding::TooLarge => assert!(*output == whole.0, "{coding}"),
            }
        }
    }
}

/// What an encoded body decodes to.
pub(crate) fn decode(coding: &str, pieces: &[&[u8]]) -> (Vec<u8>, Decoding) {
    let mut inflater = Inflater::new(Some(coding));
    let mut output = Vec::new();
    for piece in pieces {
        inflater.push(piece, &mut |bytes| output.extend_from_slice(bytes));
    }
    inflater.end();
    assert!(coding == "identity" || output.len() <= usize::try_from(OUTPUT_BYTES_MAX).unwrap());
    (output, inflater.status())
}

// Forms.

/// The fields that the properties ask for.
pub(crate) const FIELDS: &[&str] = &["model", "size"];

/// What is read of a form does not depend on the cuts and keeps to the limit.
pub(crate) fn multipart(boundary: &str, body: &[u8], seed: u64) -> Vec<(usize, Vec<u8>)> {
    let content_type = format!("multipart/form-data; boundary={boundary}");
    let (fields, _, _) = agreed(body, seed, |pieces| {
        let mut fields = Vec::new();
        let Some(mut reader) = FieldReader::new(&content_type, FIELDS) else {
            return (fields, 0, false);
        };
        for piece in pieces {
            reader.push(piece, &mut |field, value| {
                fields.push((field, value.to_vec()))
            });
        }
        (fields, reader.fields_too_long(), reader.is_complete())
    });
    for (field, value) in &fields {
        assert!(*field < FIELDS.len() && value.len() <= VALUE_BYTES_MAX);
    }
    fields
}

// Rewrites.

/// A request changes by the option alone, in memory and streaming alike.
pub(crate) fn request(body: &[u8], seed: u64) -> bool {
    let shown = String::from_utf8_lossy(body);
    let injected = inject_usage(body);
    if let Some(injected) = &injected {
        let before: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let after: serde_json::Value = serde_json::from_slice(injected).unwrap_or_default();
        // Deeper than serde_json follows, only the bytes are compared.
        if !before.is_null() {
            let mut expected = before.clone();
            assert_eq!(expected["stream"], true, "{shown:?}");
            assert!(
                expected["stream_options"].get("include_usage").is_none(),
                "{shown:?}"
            );
            expected["stream_options"]["include_usage"] = true.into();
            assert_eq!(after, expected, "{shown:?}");
        }
        let same = |(one, other): &(&u8, &u8)| one == other;
        let head = body.iter().zip(injected).take_while(same).count();
        let tail = body
            .iter()
            .rev()
            .zip(injected.iter().rev())
            .take_while(same)
            .count();
        assert!(head + tail >= body.len() - b"null".len(), "{shown:?}");
    }

    let (out, has_injected) = agreed(body, seed, |pieces| {
        let mut splicer = Splicer::new();
        let (mut out, mut taken) = (Vec::new(), 0);
        for piece in pieces {
            splicer.push(piece, &mut out);
            taken += piece.len();
            assert!(out.len() <= taken && out.len() + 1024 >= taken);
        }
        splicer.end(&mut out);
        (out, splicer.has_injected())
    });
    assert_eq!(out.len(), body.len() + Splicer::EXTRA_BYTES);
    if has_injected {
        if let Some(injected) = injected {
            assert_eq!(out, injected, "{shown:?}");
        }
        let json = out.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&out);
        assert!(
            serde_json::from_slice::<IgnoredAny>(json).is_ok(),
            "{shown:?}"
        );
    } else {
        let padded = [body, &b" ".repeat(Splicer::EXTRA_BYTES)].concat();
        assert_eq!(out, padded, "{shown:?}");
    }
    has_injected
}

/// A response loses the events of usage, and nothing else.
pub(crate) fn response(stream: &[u8], seed: u64) -> u32 {
    let (out, removed) = agreed(stream, seed, |pieces| {
        let mut filter = UsageEventFilter::new();
        let mut out = Vec::new();
        for piece in pieces {
            filter.push(piece, &mut out);
        }
        filter.end(&mut out);
        (out, filter.removed())
    });
    let (expected, expected_removed) = plainly_filtered(stream);
    let shown = String::from_utf8_lossy(stream);
    assert_eq!(removed, expected_removed, "{shown:?}");
    assert_eq!(
        String::from_utf8_lossy(&out),
        String::from_utf8_lossy(&expected),
        "{shown:?}"
    );
    removed
}

fn plainly_filtered(stream: &[u8]) -> (Vec<u8>, u32) {
    let (mark, text) = match stream.strip_prefix("\u{feff}".as_bytes()) {
        Some(text) => (&stream[..3], text),
        None => (&b""[..], stream),
    };
    let mut out = mark.to_vec();
    let mut removed = 0;
    let mut block: Vec<(&[u8], &[u8])> = Vec::new();
    for (line, newline) in lines(text) {
        block.push((line, newline));
        if line.is_empty() {
            removed += filter_block(&block, &mut out);
            block.clear();
        }
    }
    removed += filter_block(&block, &mut out);
    (out, removed)
}

/// Adds a block of lines, or only its comments if it is an event of usage.
fn filter_block(block: &[(&[u8], &[u8])], out: &mut Vec<u8>) -> u32 {
    let lines: Vec<&[u8]> = block
        .iter()
        .filter(|(line, _)| field(line).0 == b"data")
        .map(|(line, _)| field(line).1)
        .collect();
    let is_usage = is_usage(&lines.join(&b'\n'));
    for (line, newline) in block {
        if !is_usage || line.starts_with(b":") {
            out.extend_from_slice(line);
            out.extend_from_slice(newline);
        }
    }
    u32::from(is_usage)
}

/// Whether data is an object of which every `choices` is an empty array and every `usage` an
/// object, and that has both.
fn is_usage(data: &[u8]) -> bool {
    const PATHS: &[Path] = &[
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
    let data = data.strip_prefix("\u{feff}".as_bytes()).unwrap_or(data);
    if serde_json::from_slice::<IgnoredAny>(data).is_err() {
        return false;
    }
    // The picker is held to serde_json by its own property; here it reads keys that serde_json
    // refuses.
    let selector = Selector::new(PATHS);
    let mut picker = Picker::new(&selector);
    let mut facts = [Vec::new(), Vec::new(), Vec::new()];
    picker.push(data, &mut |path, found| facts[path].push(Fact::of(found)));
    let [root, choices, usage] = facts;
    let is_kind = |fact: &Fact, wanted| matches!(fact, Fact::Kind(kind, _) if *kind == wanted);
    picker.end(&mut |_, _| {}) == Status::Complete
        && root.iter().all(|fact| is_kind(fact, Kind::Object))
        && !choices.is_empty()
        && choices
            .iter()
            .all(|fact| *fact == Fact::Kind(Kind::Array, true))
        && !usage.is_empty()
        && usage.iter().all(|fact| is_kind(fact, Kind::Object))
}

// The URLs of jobs.

static JOB_URLS: LazyLock<Selector> = LazyLock::new(|| {
    Selector::new(&[Path {
        steps: &[Step::Key("u"), Step::Each],
        want: Want::Text(2048),
    }])
});

/// The URLs of a body are replaced where they are to be, whatever the body is and wherever it is cut,
/// and nothing else is. Returns how many were replaced.
pub(crate) fn job_urls(bytes: &[u8], seed: u64) -> u32 {
    const ORIGIN: &str = "a://b";
    const OWN: &str = "c://dd/e";
    let (out, replaced) = agreed(bytes, seed, |pieces| {
        let place = Place {
            origin: ORIGIN.to_owned(),
            replacement: OWN.to_owned(),
        };
        let mut filter = JobUrlFilter::new(&JOB_URLS, [place].into());
        let mut out = Vec::new();
        for piece in pieces {
            filter.push(piece, &mut out);
        }
        filter.end(&mut out);
        (out, filter.replaced())
    });
    if replaced == 0 {
        assert_eq!(out, bytes);
    }
    let longer = (OWN.len() - ORIGIN.len()) * usize::try_from(replaced).unwrap();
    assert_eq!(out.len(), bytes.len() + longer);
    // What the body means is what it meant, but for those URLs.
    let Ok(mut meant) = serde_json::from_slice::<serde_json::Value>(bytes) else {
        return replaced;
    };
    let Ok(means) = serde_json::from_slice::<serde_json::Value>(&out) else {
        panic!("no JSON any more: {:?}", String::from_utf8_lossy(&out));
    };
    let urls = |value: &serde_json::Value| value.get("u").and_then(|urls| urls.as_array().cloned());
    let (before, after) = (urls(&meant), urls(&means));
    if let (Some(before), Some(after)) = (&before, &after) {
        for (before, after) in before.iter().zip(after) {
            let rest = before.as_str().and_then(|url| url.strip_prefix(ORIGIN));
            let is_place = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?']));
            match after.as_str().and_then(|url| url.strip_prefix(OWN)) {
                Some(own) => assert!(before == after || is_place && rest == Some(own)),
                // One that is written with escapes stays as it is.
                None => assert_eq!(before, after),
            }
        }
    }
    if let (Some(urls), Some(after)) = (meant.get_mut("u"), after) {
        *urls = after.into();
    }
    assert_eq!(meant, means);
    replaced
}

// Answers of billing and price APIs.

/// An answer with these bytes, of a status that the seed chooses.
fn answer(bytes: &[u8], seed: u64) -> Answer {
    let status = [200, 200, 200, 404, 403, 429][usize::try_from(seed % 6).unwrap()];
    Answer {
        status: http::StatusCode::from_u16(status).unwrap(),
        headers: http::HeaderMap::new(),
        body: bytes::Bytes::copy_from_slice(bytes),
    }
}

/// A text of an error is one line, and no longer than what is kept.
fn is_a_line(fault: &Fault) {
    let own = fault.clone().without(None);
    assert!(!own.detail.contains(['\n', '\r', '\0']), "{}", own.detail);
}

/// Whatever comes next goes where the first call went: no answer leads a key elsewhere.
fn stays(first: &Ask, next: Option<&Ask>) {
    if let Some(next) = next {
        assert_eq!((next.host, &next.key), (first.host, &first.key));
    }
}

/// Whoever reads balances.
pub(crate) fn balances(bytes: &[u8], seed: u64) {
    let answer = answer(bytes, seed);
    for vendor in balance::VENDORS {
        let api = balance::api(vendor).unwrap();
        let subject = Subject {
            billing_id: Some("team"),
            currency: "USD",
        };
        let first = api.first(&subject).unwrap();
        let told = api.read(&subject, &first, &answer);
        assert_eq!(told, api.read(&subject, &first, &answer), "{vendor}");
        match told {
            Ok(Next::Balances(balances)) => {
                assert!(balances.iter().all(|it| !it.currency.is_empty()))
            }
            // fal and OpenRouter have a second place to ask at, which is theirs.
            Ok(Next::Ask(next)) => {
                let host = next.host.trim_start_matches("https://");
                let mut domains = api.domains().iter();
                let is_theirs =
                    domains.any(|it| host == it.name || host.ends_with(&format!(".{}", it.name)));
                assert!(is_theirs, "{vendor}: {host}");
            }
            Err(fault) => is_a_line(&fault),
        }
    }
    let _kept = balance::scrubbed(bytes, None);
}

/// Whoever reads bills and receipts.
pub(crate) fn bills(bytes: &[u8], seed: u64) {
    let answer = answer(bytes, seed);
    let day = |text: &str| text.parse().unwrap();
    let period = Period {
        from: day("2026-11-20"),
        to: day("2026-11-23"),
    };
    for vendor in bill::VENDORS {
        let api = bill::api(vendor).unwrap();
        let first = api.first(period, None);
        match api.read(period, &first, &answer) {
            Ok(page) => {
                assert!(page.days.keys().all(|day| period.has(*day)), "{vendor}");
                stays(&first, page.next.as_ref());
            }
            Err(fault) => is_a_line(&fault),
        }
    }
    for vendor in receipt::VENDORS {
        let api = receipt::api(vendor).unwrap();
        let ids = ["gen-1"];
        let first = api.first(&ids, "2026-11-20T00:00:00Z".parse().unwrap());
        match api.read(&ids, &first, &answer) {
            Ok(page) => {
                stays(&first, page.next.as_ref());
                let mut receipts = receipt::Receipts::default();
                page.lines.into_iter().for_each(|line| receipts.add(line));
                if let receipt::Receipt::Clear(cost) = receipts.of("gen-1") {
                    assert!(cost.total >= taffrail::money::Usd::ZERO);
                }
            }
            Err(fault) => is_a_line(&fault),
        }
    }
}

/// Whoever reads price lists.
pub(crate) fn prices(bytes: &[u8], _: u64) {
    for facts in PRICE_APIS {
        let models = ["a/b".to_owned()];
        let mut api = price_api(facts.provider, &PriceList::default(), &models).unwrap();
        let first = api.ask().unwrap();
        if api.take(bytes).is_ok() {
            stays(&first, api.ask().as_ref());
        }
        let _refused = api.is_refused();
        let _read = api.finish().is_ok();
    }
    let _imported = import(&String::from_utf8_lossy(bytes)).is_ok();
}

// The meters of jobs.

/// A call of each kind to the vendors of jobs: whose route it is, its method and path.
const JOB_CALLS: [(&str, Method, &str); 12] = [
    ("replicate", Method::POST, "/v1/predictions"),
    ("replicate", Method::GET, "/v1/predictions/p1"),
    ("replicate", Method::POST, "/v1/predictions/p1/cancel"),
    (
        "replicate",
        Method::POST,
        "/v1/deployments/acme/app/predictions",
    ),
    ("replicate", Method::GET, "/v1/trainings/t1"),
    ("replicate-stream", Method::GET, "/v1/files/f1"),
    ("fal", Method::POST, "/fal-ai/flux/dev"),
    ("fal", Method::POST, "/fal-ai/flux/dev/stream"),
    ("fal-queue", Method::POST, "/fal-ai/flux/dev"),
    ("fal-queue", Method::GET, "/fal-ai/flux/requests/r1/status"),
    (
        "fal-queue",
        Method::GET,
        "/fal-ai/flux/requests/r1/status/stream",
    ),
    ("fal-queue", Method::GET, "/fal-ai/flux/requests/r1"),
];

/// What the header of fal's billing units may say.
const UNITS: [&str; 8] = ["", "1", "0", "3.008", "-2", "1e999", "NaN", "one"];

const STATUSES: [u16; 7] = [200, 201, 202, 400, 403, 422, 502];

/// A report of these bytes as the answer to a call, and what a reader makes of them as its request,
/// depend on neither how they are cut nor how often they are read; no quantity is below zero, no
/// text is endless, and what costs nothing by itself reports nothing but a job. The seed chooses
/// the call. Returns how far the job is that the answer tells of.
pub(crate) fn job_meters(bytes: &[u8], seed: u64) -> Option<JobStage> {
    let choose = |count: usize, shift: u32| {
        let chance = usize::try_from(seed.rotate_right(shift) & 0xffff).unwrap();
        chance % count
    };
    let (route, method, path) = &JOB_CALLS[choose(JOB_CALLS.len(), 0)];
    let provider = provider::builtin(route).unwrap();
    let mut asked = HeaderMap::new();
    if path.contains("stream") || path.contains("/files/") {
        asked.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
    }
    let head = RequestHead {
        method,
        path,
        query: None,
        headers: &asked,
    };
    let call = provider.recognise(head);
    let request = agreed(bytes, seed, |pieces| {
        let mut reader = provider.read_request(&call, head);
        pieces.iter().for_each(|piece| reader.push(piece));
        reader.end();
        reader.facts().clone()
    });
    let types = ["application/json", "text/event-stream", "text/html"];
    let content_type = HeaderValue::from_static(types[choose(types.len(), 16)]);
    let mut headers: HeaderMap = [(CONTENT_TYPE, content_type)].into_iter().collect();
    let units = UNITS[choose(UNITS.len(), 32)];
    if !units.is_empty() {
        headers.insert("x-fal-billable-units", HeaderValue::from_static(units));
    }
    let status = StatusCode::from_u16(STATUSES[choose(STATUSES.len(), 48)]).unwrap();
    let ends = [End::Complete, End::Truncated, End::Cancelled, End::TimedOut];
    let report = agreed(bytes, seed, |pieces| {
        let head = ResponseHead {
            status,
            headers: &headers,
        };
        let mut meter = provider.meter(&call, head);
        let mut milestones = 0;
        for piece in pieces {
            milestones += u32::from(meter.push(piece).is_some());
        }
        assert!(milestones <= 1, "{call:?}");
        meter.finish(ends[choose(ends.len(), 24)], &request)
    });
    for (unit, quantity) in report.parts.iter().flat_map(|part| part.usage.iter()) {
        assert!(!quantity.is_sign_negative(), "{unit} {quantity}");
    }
    for qualifiers in [&report.qualifiers, &request.qualifiers] {
        for qualifier in Qualifier::ALL {
            assert!(qualifiers.get(qualifier).is_none_or(|it| it.len() <= 40));
        }
    }
    if call.operation.is_control() && call.job.is_none() {
        assert_eq!((report.parts.len(), &report.job), (0, &None), "{call:?}");
    }
    let job = report.job?;
    assert!(!job.id.is_empty() && job.id.len() <= provider::NAME_BYTES_MAX);
    Some(job.stage)
}
