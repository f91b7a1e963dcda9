//! Which header fields cross the proxy (RFC 9110, section 7.6.1).

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Fields that concern one hop only.
const HOP_BY_HOP: [HeaderName; 5] = [
    header::CONNECTION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// Removes what concerns one hop only: the fixed fields, everything that `connection` names, and
/// `proxy-*`. `te: trailers` is kept, since trailers are relayed, and `trailer` with it.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // Most heads have none of them, and one look at each name tells.
    if !headers.keys().any(concerns_one_hop) {
        return;
    }
    let wants_trailers = headers
        .get_all(header::TE)
        .iter()
        .any(|value| lists(value, "trailers"));
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // Framing fields are not the sender's to name away.
        .filter(|name| {
            !matches!(
                *name,
                header::CONTENT_LENGTH | header::HOST | header::TRAILER
            )
        })
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    let proxy: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("proxy-"))
        .cloned()
        .collect();
    for name in &proxy {
        headers.remove(name);
    }
    if wants_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Whether a field of that name is removed, or names others that are.
fn concerns_one_hop(name: &HeaderName) -> bool {
    let name = name.as_str();
    matches!(
        name,
        "connection" | "te" | "transfer-encoding" | "upgrade" | "keep-alive"
    ) || name.starts_with("proxy-")
}

/// Whether a comma-separated field lists that token, in any case.
pub(super) fn lists(value: &HeaderValue, token: &str) -> bool {
    value.to_str().is_ok_and(|value| {
        value
            .split([',', ';'])
            .any(|listed| listed.trim().eq_ignore_ascii_case(token))
    })
}

/// Whether the request asks to become a websocket (RFC 6455, section 4.1).
pub(super) fn is_websocket_upgrade(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .any(|value| lists(value, "upgrade"))
        && headers
            .get_all(header::UPGRADE)
            .iter()
            .any(|value| lists(value, "websocket"))
}

/// Bytes of a head's fields as they are on the wire.
pub(super) fn head_bytes(headers: &HeaderMap) -> usize {
    headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    #[test]
    fn hop_by_hop_fields_are_stripped_and_others_stay() {
        let mut map = headers(&[
            ("connection", "close, X-Private, content-length"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "Basic x"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers, deflate"),
            ("upgrade", "h2c"),
            ("content-length", "3"),
            ("authorization", "Bearer x"),
            ("trailer", "x-sum"),
        ]);
        strip_hop_by_hop(&mut map);
        let expected = headers(&[
            ("content-length", "3"),
            ("authorization", "Bearer x"),
            ("trailer", "x-sum"),
            ("te", "trailers"),
        ]);
        assert_eq!(map, expected);
    }

    #[test]
    fn every_field_of_one_hop_is_noticed() {
        assert!(HOP_BY_HOP.iter().all(concerns_one_hop));
        assert!(concerns_one_hop(&header::PROXY_AUTHORIZATION));
        assert!(!concerns_one_hop(&header::CONTENT_LENGTH));
    }

    #[test]
    fn only_a_websocket_is_an_upgrade() {
        let websocket = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
        ]);
        assert!(is_websocket_upgrade(&websocket));
        assert!(!is_websocket_upgrade(&headers(&[
            ("connection", "upgrade"),
            ("upgrade", "h2c")
        ])));
        assert!(!is_websocket_upgrade(&headers(&[("upgrade", "websocket")])));
    }
}
