//! The text fields of `multipart/form-data` (RFC 7578), in constant memory.
//!
//! Uploads of audio and images name their model in a small field beside a large file. The
//! reader reports the values of the fields it was asked for and skips everything else, files of
//! any size included, wherever the body was cut.

use std::borrow::Cow;
use std::mem::take;

use memchr::memchr;

/// The largest value that is reported; model names and sizes stay below 200 bytes.
pub const VALUE_BYTES_MAX: usize = 1024;

/// The longest header line of a part that is read; a longer one is skipped.
pub const HEADER_BYTES_MAX: usize = 1024;

/// The longest boundary (RFC 2046, section 5.1.1).
pub const BOUNDARY_BYTES_MAX: usize = 70;

/// Reports the values of text fields of a form that arrives in pieces.
#[derive(Debug)]
pub struct FieldReader {
    wanted: &'static [&'static str],
    /// Line break, two hyphens, boundary: what ends a part.
    delimiter: Vec<u8>,
    at: At,
    /// How much of the delimiter the last bytes are.
    matched: usize,
    /// How much of what matched is the line break before the content, not content.
    borrowed: usize,
    /// The part at hand, if it is a field that is wanted.
    field: Option<usize>,
    /// Whether the part at hand names a file.
    is_file: bool,
    /// The header line, or the value, so far.
    kept: Vec<u8>,
    is_too_long: bool,
    fields_too_long: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before the first delimiter, or in a part's content.
    Content,
    /// Behind a delimiter, where a line break or two hyphens follow.
    Delimiter {
        /// The last byte was a hyphen.
        after_hyphen: bool,
    },
    Header,
    /// Behind the last delimiter.
    End,
}

impl FieldReader {
    /// A reader of these fields for a body of that content type; `None` if that is not
    /// `multipart/form-data` or has no usable boundary.
    pub fn new(content_type: &str, wanted: &'static [&'static str]) -> Option<FieldReader> {
        let (kind, parameters) = content_type.split_once(';')?;
        if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
            return None;
        }
        let boundary = parameter(parameters.as_bytes(), "boundary")?;
        let is_usable = (1..=BOUNDARY_BYTES_MAX).contains(&boundary.len())
            && boundary.iter().all(|byte| (b' '..=b'~').contains(byte));
        if !is_usable {
            return None;
        }
        Some(FieldReader {
            wanted,
            delimiter: [b"\r\n--", boundary.as_ref()].concat(),
            at: At::Content,
            // The first delimiter needs no line break before it if it starts the body.
            matched: LINE_BREAK_BYTES,
            borrowed: LINE_BREAK_BYTES,
            field: None,
            is_file: false,
            kept: Vec::new(),
            is_too_long: false,
            fields_too_long: 0,
        })
    }

    /// Takes the next bytes and reports the wanted fields that ended in them: the index of the
    /// name, and the value. A field that occurs twice is reported twice.
    pub fn push(&mut self, bytes: &[u8], found: &mut dyn FnMut(usize, &[u8])) {
        let mut rest = bytes;
        while let Some((&first, after)) = rest.split_first() {
            rest = match self.at {
                At::Content => self.content(rest, found),
                At::Delimiter { after_hyphen } => {
                    self.at = match first {
                        b'-' if after_hyphen => At::End,
                        b'-' => At::Delimiter { after_hyphen: true },
                        b'\n' => self.begin_part(),
                        // White space may pad the line (RFC 2046, section 5.1.1).
                        _ => At::Delimiter {
                            after_hyphen: false,
                        },
                    };
                    after
                }
                At::Header => self.header(rest),
                At::End => return,
            };
        }
    }

    /// Whether the delimiter that ends the whole form was seen.
    pub fn is_complete(&self) -> bool {
        self.at == At::End
    }

    /// How many wanted fields were not reported because they exceed [`VALUE_BYTES_MAX`].
    pub fn fields_too_long(&self) -> u64 {
        self.fields_too_long
    }

    fn begin_part(&mut self) -> At {
        self.field = None;
        self.is_file = false;
        self.kept.clear();
        self.is_too_long = false;
        At::Header
    }

    /// Takes content up to the next delimiter and returns what follows.
    fn content<'b>(&mut self, bytes: &'b [u8], found: &mut dyn FnMut(usize, &[u8])) -> &'b [u8] {
        let mut rest = bytes;
        while let Some((&first, after)) = rest.split_first() {
            if self.matched == 0 {
                let run = memchr(b'\r', rest).unwrap_or(rest.len());
                let (run, after) = rest.split_at_checked(run).unwrap_or((rest, &[]));
                self.keep_value(run);
                rest = after.get(1..).unwrap_or_default();
                self.matched = usize::from(!after.is_empty());
            } else if self.delimiter.get(self.matched) == Some(&first) {
                rest = after;
                self.matched += 1;
                if self.matched == self.delimiter.len() {
                    self.matched = 0;
                    self.borrowed = 0;
                    self.report(found);
                    self.at = At::Delimiter {
                        after_hyphen: false,
                    };
                    return rest;
                }
            } else {
                // What looked like a delimiter is content. No part of it but its first byte can
                // begin another, because only that is a carriage return.
                let (from, to) = (take(&mut self.borrowed), take(&mut self.matched));
                let matched = take(&mut self.delimiter);
                self.keep_value(matched.get(from..to).unwrap_or_default());
                self.delimiter = matched;
            }
        }
        rest
    }

    fn keep_value(&mut self, run: &[u8]) {
        if self.field.is_none() || self.is_too_long {
            return;
        }
        if self.kept.len() + run.len() > VALUE_BYTES_MAX {
            self.is_too_long = true;
        } else {
            self.kept.extend_from_slice(run);
        }
    }

    fn report(&mut self, found: &mut dyn FnMut(usize, &[u8])) {
        match self.field.take() {
            Some(_) if self.is_too_long => self.fields_too_long += 1,
            Some(field) => found(field, &self.kept),
            None => {}
        }
    }

    /// Takes a part's header up to the end of its line and returns what follows.
    fn header<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let end = memchr(b'\n', bytes);
        let line = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
        if self.kept.len() + line.len() > HEADER_BYTES_MAX {
            self.is_too_long = true;
        } else {
            self.kept.extend_from_slice(line);
        }
        let Some(end) = end else {
            return &[];
        };
        let line = take(&mut self.kept);
        let line_text = line.strip_suffix(b"\r").unwrap_or(&line);
        if line_text.is_empty() && !self.is_too_long {
            self.at = At::Content;
            // A part without content has its delimiter right behind the headers.
            self.matched = LINE_BREAK_BYTES;
            self.borrowed = LINE_BREAK_BYTES;
            if self.is_file {
                self.field = None;
            }
        } else if !self.is_too_long {
            self.disposition(line_text);
        }
        self.kept = line;
        self.kept.clear();
        self.is_too_long = false;
        bytes.get(end + 1..).unwrap_or_default()
    }

    /// Takes the line of a header, of which only `Content-Disposition` matters.
    fn disposition(&mut self, line: &[u8]) {
        let Some(colon) = memchr(b':', line) else {
            return;
        };
        let (name, value) = line.split_at_checked(colon).unwrap_or((line, &[]));
        if !name.eq_ignore_ascii_case(b"content-disposition") {
            return;
        }
        let Some(semicolon) = memchr(b';', value) else {
            return;
        };
        let parameters = value.get(semicolon + 1..).unwrap_or_default();
        self.is_file = parameter(parameters, "filename")
            .or(parameter(parameters, "filename*"))
            .is_some();
        self.field = parameter(parameters, "name").and_then(|name| {
            self.wanted
                .iter()
                .position(|wanted| wanted.as_bytes() == name.as_ref())
        });
    }
}

/// The length of the line break that a delimiter begins with.
const LINE_BREAK_BYTES: usize = 2;

/// The value of a parameter in a list of them (RFC 9110, section 5.6.6), unquoted; names ignore
/// case.
fn parameter<'b>(parameters: &'b [u8], wanted: &str) -> Option<Cow<'b, [u8]>> {
    let mut rest = parameters;
    while !rest.is_empty() {
        let (name, after) = match memchr::memchr2(b'=', b';', rest) {
            Some(at) if rest.get(at) == Some(&b'=') => rest.split_at_checked(at)?,
            Some(at) => {
                rest = rest.get(at + 1..)?;
                continue;
            }
            None => return None,
        };
        let value = after.get(1..)?.trim_ascii_start();
        let (value, after) = match value.strip_prefix(b"\"") {
            Some(quoted) => unquote(quoted),
            None => {
                let end = memchr(b';', value).unwrap_or(value.len());
                let (value, after) = value.split_at_checked(end)?;
                (Cow::Borrowed(value.trim_ascii_end()), after)
            }
        };
        if name.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes()) {
            return Some(value);
        }
        let end = memchr(b';', after).map_or(after.len(), |semicolon| semicolon + 1);
        rest = after.get(end..)?;
    }
    None
}

/// The content of a quoted string, given what follows its opening quote, and what follows it.
fn unquote(quoted: &[u8]) -> (Cow<'_, [u8]>, &[u8]) {
    let mut content = Vec::new();
    let mut rest = quoted;
    while let Some((&byte, after)) = rest.split_first() {
        match (byte, after.split_first()) {
            (b'"', _) => return (Cow::Owned(content), after),
            (b'\\', Some((&escaped, after))) => {
                content.push(escaped);
                rest = after;
            }
            _ => {
                content.push(byte);
                rest = after;
            }
        }
    }
    (Cow::Owned(content), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: &[&str] = &["model", "size"];

    /// The fields found, how many were too long, and whether the form ended.
    type Seen = (Vec<(usize, String)>, u64, bool);

    fn read(content_type: &str, pieces: &[&[u8]]) -> Seen {
        let mut reader = FieldReader::new(content_type, WANTED).unwrap();
        let mut fields = Vec::new();
        for piece in pieces {
            reader.push(piece, &mut |index, value| {
                fields.push((index, String::from_utf8_lossy(value).into_owned()));
            });
        }
        (fields, reader.fields_too_long(), reader.is_complete())
    }

    fn check(body: &str, expected: &[(usize, &str)], is_complete: bool) {
        let content_type = "multipart/form-data; boundary=XYZ";
        let fields: Vec<_> = expected
            .iter()
            .map(|(index, value)| (*index, String::from(*value)))
            .collect();
        let expected: Seen = (fields, 0, is_complete);
        let bytes = body.as_bytes();
        assert_eq!(read(content_type, &[bytes]), expected, "{body:?}");
        for cut in 0..=bytes.len() {
            let (head, tail) = bytes.split_at(cut);
            assert_eq!(
                read(content_type, &[head, tail]),
                expected,
                "{body:?} cut at {cut}"
            );
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(read(content_type, &single), expected, "{body:?} by byte");
    }

    #[test]
    fn wanted_fields_are_read_and_files_are_skipped() {
        check(
            "--XYZ\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.mp3\"\r\n\
             Content-Type: audio/mpeg\r\n\r\nID3\r\n--XY\r\n\r\r\n-- \n--XYZ-ish? no: \r\n--XY\r\n\
             --XYZ\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n\
             --XYZ\r\nContent-Disposition: form-data; name=\"other\"\r\n\r\nx\r\n\
             --XYZ\r\ncontent-disposition:form-data;NAME=size\r\n\r\n\r\n--XY\r\r\n\r\n\
             --XYZ--\r\nepilogue --XYZ\r\n",
            &[(0, "whisper-1"), (1, "\r\n--XY\r\r\n")],
            true,
        );
    }

    #[test]
    fn a_preamble_padding_and_empty_values_are_read() {
        check(
            "preamble\r\n--XYZ \t\r\nX: y\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n\
             \r\n--XYZ\r\nContent-Disposition: form-data; name=\"size\"\r\n\r\n--XYZ--",
            &[(0, ""), (1, "")],
            true,
        );
    }

    #[test]
    fn a_file_is_no_field_even_under_a_wanted_name() {
        check(
            "--XYZ\r\nContent-Disposition: form-data; filename=\"\"; name=\"model\"\r\n\r\nx\r\n\
             --XYZ\r\nContent-Disposition: form-data; name=\"model\"; filename*=UTF-8''x\r\n\r\nx\r\n\
             --XYZ--",
            &[],
            true,
        );
    }

    #[test]
    fn names_are_unquoted() {
        check(
            "--XYZ\r\nContent-Disposition: form-data; x=\"; name=\\\"size\\\"\"; name=\"mod\\el\"\r\n\
             \r\ngpt\r\n--XYZ--",
            &[(0, "gpt")],
            true,
        );
    }

    #[test]
    fn a_form_that_was_cut_is_not_complete() {
        check(
            "--XYZ\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\ngp",
            &[],
            false,
        );
        check(
            "--XYZ\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\ngpt\r\n--XYZ-",
            &[(0, "gpt")],
            false,
        );
        check("", &[], false);
    }

    #[test]
    fn values_are_read_up_to_the_limit_and_counted_beyond() {
        for (bytes, reported) in [
            (VALUE_BYTES_MAX - 1, true),
            (VALUE_BYTES_MAX, true),
            (VALUE_BYTES_MAX + 1, false),
        ] {
            let value = "v".repeat(bytes);
            let body = format!(
                "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{value}\r\n--b--"
            );
            let fields = if reported {
                vec![(0, value)]
            } else {
                Vec::new()
            };
            let expected = (fields, u64::from(!reported), true);
            let content_type = "multipart/form-data; boundary=b";
            assert_eq!(read(content_type, &[body.as_bytes()]), expected);
            let single: Vec<&[u8]> = body.as_bytes().chunks(1).collect();
            assert_eq!(read(content_type, &single), expected);
        }
    }

    #[test]
    fn an_oversized_header_line_is_skipped_and_the_next_is_read() {
        let body = format!(
            "--b\r\nX: {}\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\ngpt\r\n--b--",
            "x".repeat(HEADER_BYTES_MAX)
        );
        let expected = (vec![(0, String::from("gpt"))], 0, true);
        let content_type = "multipart/form-data; boundary=b";
        assert_eq!(read(content_type, &[body.as_bytes()]), expected);
        let single: Vec<&[u8]> = body.as_bytes().chunks(1).collect();
        assert_eq!(read(content_type, &single), expected);
    }

    #[test]
    fn the_boundary_comes_from_the_content_type() {
        let boundary = |content_type: &str| {
            FieldReader::new(content_type, WANTED)
                .map(|reader| String::from_utf8(reader.delimiter).unwrap())
        };
        let some = |text: &str| Some(format!("\r\n--{text}"));
        assert_eq!(boundary("multipart/form-data; boundary=abc"), some("abc"));
        assert_eq!(
            boundary("Multipart/Form-Data;charset=x; Boundary=\"a b;c\" "),
            some("a b;c")
        );
        assert_eq!(
            boundary("multipart/form-data; boundary=abc ; x=y"),
            some("abc")
        );
        assert_eq!(
            boundary(&format!("multipart/form-data; boundary={}", "b".repeat(70))),
            some(&"b".repeat(70))
        );
        for refused in [
            "",
            "multipart/form-data",
            "multipart/form-data;",
            "multipart/form-data; boundary=",
            "multipart/form-data; boundary=\"\"",
            "multipart/form-data; boundary=\"a\rb\"",
            "multipart/form-data; x=boundary",
            "multipart/mixed; boundary=abc",
            "application/json; boundary=abc",
        ] {
            assert_eq!(boundary(refused), None, "{refused}");
        }
        assert_eq!(
            boundary(&format!("multipart/form-data; boundary={}", "b".repeat(71))),
            None
        );
    }
}
