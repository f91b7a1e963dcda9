//! The URLs of a job, pointed back at the proxy, so that its follow-ups pass through it too.
//!
//! Providers answer a submit with absolute URLs for polls, results and streams, and clients use
//! them as they are. [`JobUrlFilter`] replaces the origin of those URLs in a JSON body as it
//! streams by, and leaves every other byte as it is, wherever the body is cut: only strings at
//! the paths that the provider names, and only origins that have a route. Pure: bytes in, bytes
//! out. What is odd is left alone.

use std::sync::Arc;

use bytes::BufMut;
use memchr::memchr;

use crate::provider::JOB_URL_BYTES_MAX;
use crate::wire::json::{Found, Picker, Selector};

/// The longest rest of a body that is withheld until its string ends.
pub const HELD_BYTES_MAX: usize = JOB_URL_BYTES_MAX;

/// An origin (`https://api.replicate.com`) and what stands in its place
/// (`http://127.0.0.1:4800/replicate`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Scheme, host and port, without a slash at the end.
    pub origin: String,
    /// The URL that leads to the same place through the proxy, without a slash at the end.
    pub replacement: String,
}

/// Points the URLs of one body back at the proxy.
pub struct JobUrlFilter {
    picker: Picker<'static>,
    places: Arc<[Place]>,
    /// What follows the last quotation mark.
    held: Vec<u8>,
    /// Whether more than `held` followed it.
    is_long: bool,
    replaced: u32,
}

impl JobUrlFilter {
    /// A filter for the strings of that selector.
    pub fn new(selector: &'static Selector, places: Arc<[Place]>) -> JobUrlFilter {
        JobUrlFilter {
            picker: Picker::new(selector),
            places,
            held: Vec::new(),
            is_long: false,
            replaced: 0,
        }
    }

    /// Takes the next bytes and appends to `out` what is to be passed on by now.
    pub fn push(&mut self, bytes: &[u8], out: &mut impl BufMut) {
        let mut rest = bytes;
        while let Some(quote) = memchr(b'"', rest) {
            let (piece, after) = rest.split_at(quote + 1);
            rest = after;
            self.piece(piece, out);
        }
        self.picker.push(rest, &mut |_, _| {});
        if self.held.len() + rest.len() > HELD_BYTES_MAX {
            self.is_long = true;
            self.release(out);
        }
        if self.is_long {
            out.put_slice(rest);
        } else {
            self.held.extend_from_slice(rest);
        }
    }

    /// Takes the end of the body and appends the rest.
    pub fn end(&mut self, out: &mut impl BufMut) {
        self.release(out);
    }

    /// How many URLs were replaced.
    pub fn replaced(&self) -> u32 {
        self.replaced
    }

    /// Takes bytes up to a quotation mark. A string that ends there began right after the one
    /// before, unless it has escaped quotation marks in it, which no URL has.
    fn piece(&mut self, piece: &[u8], out: &mut impl BufMut) {
        let length = self.held.len() + piece.len();
        let mut replaced = None;
        let (places, is_long) = (&self.places, self.is_long);
        self.picker.push(piece, &mut |_, found| {
            if let Found::Text(text) = found
                && !is_long
                && text.len() == length + 1
            {
                replaced = replace(text, places);
            }
        });
        match replaced {
            Some(url) => {
                self.held.clear();
                out.put_slice(&url);
                self.replaced += 1;
            }
            None => {
                self.release(out);
                out.put_slice(piece);
            }
        }
        self.is_long = false;
    }

    fn release(&mut self, out: &mut impl BufMut) {
        out.put_slice(&self.held);
        self.held.clear();
    }
}

/// What stands for the JSON string `text`, without its first quotation mark, if it is a URL at one
/// of the places.
fn replace(text: &[u8], places: &[Place]) -> Option<Vec<u8>> {
    let url = text.strip_prefix(b"\"")?;
    places.iter().find_map(|place| {
        let rest = url.strip_prefix(place.origin.as_bytes())?;
        // Not another host whose name begins alike.
        matches!(rest.first(), Some(b'/' | b'?' | b'"')).then(|| {
            let mut replaced = place.replacement.as_bytes().to_vec();
            replaced.extend_from_slice(rest);
            replaced
        })
    })
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::wire::json::Step::{Each, Key};
    use crate::wire::json::{Path, Want};

    const TEXT: Want = Want::Text(HELD_BYTES_MAX);

    static SELECTOR: LazyLock<Selector> = LazyLock::new(|| {
        Selector::new(&[
            Path {
                steps: &[Key("urls"), Key("get")],
                want: TEXT,
            },
            Path {
                steps: &[Key("items"), Each, Key("url")],
                want: TEXT,
            },
        ])
    });

    fn places() -> Arc<[Place]> {
        [
            ("https://api.example.com", "http://127.0.0.1:4800/example"),
            (
                "https://s.example.com",
                "http://127.0.0.1:4800/example/~s.example.com",
            ),
        ]
        .map(|(origin, replacement)| Place {
            origin: origin.to_owned(),
            replacement: replacement.to_owned(),
        })
        .into()
    }

    fn filtered(body: &[u8], cuts: &[usize]) -> Vec<u8> {
        let mut filter = JobUrlFilter::new(&SELECTOR, places());
        let mut out = Vec::new();
        let mut rest = body;
        for cut in cuts {
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            filter.push(piece, &mut out);
            rest = after;
        }
        filter.push(rest, &mut out);
        filter.end(&mut out);
        out
    }

    #[test]
    fn a_url_at_a_named_path_is_replaced_and_nothing_else_is() {
        let body = br#" {"a":"https://api.example.com/x", "urls" : {"get":"https://api.example.com/v1/jobs/1?a=b",
            "cancel":"https://api.example.com/v1/jobs/1/cancel"}, "items":[{"url":"https://s.example.com/f"},
            {"url":"https://s.example.com.evil.test/f"},{"url":"https:\/\/s.example.com\/f"},{"url":"x\"https://s.example.com/"},
            {"url":7}],"urls":{"get":"https://api.example.com"}}
            "#;
        let text = String::from_utf8(body.to_vec()).unwrap();
        let expected = text
            .replace(
                "{\"get\":\"https://api.example.com",
                "{\"get\":\"http://127.0.0.1:4800/example",
            )
            .replace(
                "{\"url\":\"https://s.example.com/f",
                "{\"url\":\"http://127.0.0.1:4800/example/~s.example.com/f",
            );
        for cut in 0..body.len() {
            let out = filtered(body, &[cut]);
            assert_eq!(String::from_utf8(out).unwrap(), expected, "cut at {cut}");
        }
    }

    #[test]
    fn long_strings_pass_at_once() {
        let mut filter = JobUrlFilter::new(&SELECTOR, places());
        let mut out = Vec::new();
        let long = format!(r#"{{"output":"{}"#, "A".repeat(1 << 20));
        filter.push(long.as_bytes(), &mut out);
        assert_eq!(out.len(), long.len());
        filter.push(
            br#"","urls":{"get":"https://api.example.com/1"}}"#,
            &mut out,
        );
        filter.end(&mut out);
        assert!(out.ends_with(br#"","urls":{"get":"http://127.0.0.1:4800/example/1"}}"#));
        assert_eq!(filter.replaced(), 1);
    }
}
