//! Tables of paths: which operation a path is, and its template for rows.
//!
//! A template is one of the table's own strings, so the set of routes is bounded and holds no
//! ids, whatever a client sends.

use http::Method;

use crate::record::Operation;

/// A path that a provider knows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route {
    /// The method, or `*` for any.
    pub(crate) method: &'static str,
    /// The path, with `{name}` for one segment and a final `*` for any further ones.
    pub(crate) template: &'static str,
    /// The template's segments, and how many there are.
    parts: [&'static str; SEGMENTS_MAX],
    count: usize,
    /// What it is.
    pub(crate) operation: Operation,
}

/// A row of a table. The template is split while compiling, as each request is compared with
/// many.
#[expect(
    clippy::indexing_slicing,
    reason = "evaluated while compiling, where a bad index does not compile"
)]
pub(crate) const fn route(
    method: &'static str,
    template: &'static str,
    operation: Operation,
) -> Route {
    let mut parts = [""; SEGMENTS_MAX];
    let mut count = 0;
    let mut rest = template;
    while !rest.is_empty() {
        let after_slash = rest.split_at(1).1;
        let mut end = 0;
        while end < after_slash.len() && after_slash.as_bytes()[end] != b'/' {
            end += 1;
        }
        (parts[count], rest) = after_slash.split_at(end);
        count += 1;
    }
    Route {
        method,
        template,
        parts,
        count,
        operation,
    }
}

/// The route of everything that no table knows.
pub(crate) const UNKNOWN_ROUTE: &str = "/*";

/// No known path has more segments; a longer one matches only what ends in `*`.
const SEGMENTS_MAX: usize = 12;

/// A path in its segments; empty ones are skipped, so `//v1/models/` is `/v1/models`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segments<'a> {
    parts: [&'a str; SEGMENTS_MAX],
    count: usize,
}

impl<'a> Segments<'a> {
    /// The first segments of `path`.
    pub(crate) fn of(path: &'a str) -> Segments<'a> {
        let mut parts = [""; SEGMENTS_MAX];
        let mut count = 0;
        let segments = path.split('/').filter(|segment| !segment.is_empty());
        for (slot, segment) in parts.iter_mut().zip(segments) {
            *slot = segment;
            count += 1;
        }
        Segments { parts, count }
    }

    /// The segments from `start` on.
    pub(crate) fn from(&self, start: usize) -> &[&'a str] {
        self.parts.get(start..self.count).unwrap_or_default()
    }

    /// The segment at `index`.
    pub(crate) fn get(&self, index: usize) -> Option<&'a str> {
        self.from(index).first().copied()
    }
}

/// The first row of `table` that `method` and `segments` match, once `base` is taken off its
/// template: the operation, and the template without the base.
pub(crate) fn find(
    table: &'static [Route],
    base: &str,
    method: &Method,
    segments: &[&str],
) -> Option<(&'static Route, &'static str)> {
    let base_count = base.matches('/').count();
    table.iter().find_map(|route| {
        let parts = route.parts.get(base_count..route.count)?;
        let is_match =
            matches(parts, segments) && (route.method == "*" || route.method == method.as_str());
        if !is_match {
            return None;
        }
        Some((route, route.template.strip_prefix(base)?))
    })
}

/// What of `path` follows `base`, whose segments match it; `None` if they do not.
pub(crate) fn strip_base<'a>(base: &str, path: &'a str) -> Option<&'a str> {
    let mut rest = path;
    for expected in base.split('/').skip(1) {
        rest = rest.trim_start_matches('/');
        let (segment, after) = match rest.split_once('/') {
            Some((segment, after)) => (segment, after),
            None => (rest, ""),
        };
        if segment.is_empty() || !(expected.starts_with('{') || expected == segment) {
            return None;
        }
        rest = after;
    }
    Some(rest)
}

fn matches(parts: &[&str], segments: &[&str]) -> bool {
    // Most rows differ in length already.
    if parts.len() != segments.len() && parts.last() != Some(&"*") {
        return false;
    }
    let mut segments = segments.iter();
    for expected in parts {
        if *expected == "*" {
            return true;
        }
        match segments.next() {
            Some(segment) if segment == expected || expected.starts_with('{') => {}
            _ => return false,
        }
    }
    segments.next().is_none()
}

/// What a path is that no table knows: reading and deleting never generate anything, at any of
/// these vendors; anything else may.
pub(crate) fn unknown(method: &Method) -> Operation {
    match *method {
        Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE => Operation::Control,
        _ => Operation::Other,
    }
}

/// The value of `name` in a query string, unless it is empty.
pub(crate) fn query_value<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    query?
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, value)| *key == name && !value.is_empty())
        .map(|(_, value)| value)
}

/// A model or deployment name out of a path or query, percent-decoded; `None` if it is longer
/// than [`super::NAME_BYTES_MAX`] or no text.
pub(crate) fn name(encoded: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(encoded.len().min(super::NAME_BYTES_MAX));
    let mut rest = encoded.bytes();
    while let Some(byte) = rest.next() {
        let decoded = match byte {
            b'%' => {
                let high = char::from(rest.next()?).to_digit(16)?;
                let low = char::from(rest.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            byte => byte,
        };
        if bytes.len() == super::NAME_BYTES_MAX {
            return None;
        }
        bytes.push(decoded);
    }
    String::from_utf8(bytes)
        .ok()
        .filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Route] = &[
        route("POST", "/v1/batches/{id}/cancel", Operation::Batch),
        route("*", "/v1/files/*", Operation::Files),
    ];

    fn template(method: &Method, path: &str) -> Option<&'static str> {
        find(TABLE, "", method, Segments::of(path).from(0)).map(|(_, template)| template)
    }

    #[test]
    fn placeholders_match_one_segment_and_a_star_any() {
        assert_eq!(
            template(&Method::POST, "/v1/batches/b_1/cancel"),
            Some("/v1/batches/{id}/cancel")
        );
        assert_eq!(template(&Method::POST, "/v1/batches/b_1/x/cancel"), None);
        assert_eq!(template(&Method::GET, "/v1/batches/b_1/cancel"), None);
        assert_eq!(template(&Method::GET, "//v1/files/"), Some("/v1/files/*"));
        assert_eq!(
            template(&Method::GET, &format!("/v1/files/{}", "a/".repeat(99))),
            Some("/v1/files/*")
        );
    }

    #[test]
    fn a_name_is_decoded_and_bounded() {
        assert_eq!(name("gpt%2D4o").as_deref(), Some("gpt-4o"));
        for bad in ["", "%", "%f", "%zz", "%ff", &"a".repeat(257)] {
            assert_eq!(name(bad), None, "{bad}");
        }
        assert_eq!(name(&"a".repeat(256)).unwrap().len(), 256);
    }

    #[test]
    fn a_query_value_is_found_among_others() {
        assert_eq!(query_value(Some("a=1&model=m&b"), "model"), Some("m"));
        assert_eq!(query_value(Some("model="), "model"), None);
        assert_eq!(query_value(None, "model"), None);
    }
}
