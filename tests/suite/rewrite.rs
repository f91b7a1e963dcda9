//! Rewrites: what holds for any request and any stream, cut anywhere.

// For the lints: everything here is a test.
#![cfg(test)]

use proptest::prelude::*;

use crate::wire::{config, properties};

/// A member of a request, as text.
fn member() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        r#""stream":true"#,
        r#""stream" : true"#,
        r#""str\u0065am":true"#,
        r#""stream":false"#,
        r#""stream":null"#,
        r#""stream_options":null"#,
        r#""stream_options":{}"#,
        r#""stream_options":{ "include_obfuscation" : false }"#,
        r#""stream_options":{"include_usage":true}"#,
        r#""stream_options":{"include_usage":false,"x":1}"#,
        r#""stream_options":[1]"#,
        r#""messages":[{"content":"\"stream\":true}","stream":true}]"#,
        r#""max_tokens":1"#,
        r#""model":"gpt""#,
    ])
    .prop_map(String::from)
}

fn body() -> impl Strategy<Value = String> {
    let members = prop::collection::vec(member(), 0..5);
    (members, "[ \n]{0,3}", "[ \n\t\r]{0,3}").prop_map(|(members, before, after)| {
        format!("{before}{{{}{before}}}{after}", members.join(", "))
    })
}

const EVENTS: &[&str] = &[
    r#"data: {"id":"1","choices":[{"delta":{"content":"a"}}],"usage":null}"#,
    r#"data: {"id":"1","choices":[],"usage":{"total_tokens":1}}"#,
    r#"data:{"usage":{},"choices":[]}"#,
    r#"data: {"choices":[],"prompt_filter_results":[]}"#,
    r#"data: {"choices":[{}],"usage":{"total_tokens":1}}"#,
    "data: {\"choices\":[],\ndata: \"usage\":{}}",
    "data: [DONE]",
    "data",
    "event: usage",
    "id: 7",
    ": ping",
    ":",
    r#"data: {"choices":[],"usage":{}} trailing"#,
    r#"data: {"choices":[],"us"#,
    "\u{feff}data: x",
];

fn stream() -> impl Strategy<Value = String> {
    let newline = prop::sample::select(vec!["\n", "\r", "\r\n"]);
    let line = (prop::sample::select(EVENTS), 1..4usize, newline);
    (prop::collection::vec(line, 0..10), any::<bool>(), 0..3usize).prop_map(
        |(lines, has_mark, missing)| {
            let mut stream = String::from(if has_mark { "\u{feff}" } else { "" });
            for (line, newlines, newline) in lines {
                stream += &line.replace('\n', newline);
                stream += &newline.repeat(newlines);
            }
            let end = stream.len() - missing.min(stream.len());
            if stream.is_char_boundary(end) {
                stream.truncate(end);
            }
            stream
        },
    )
}

proptest! {
    #![proptest_config(config(1500))]

    #[test]
    fn a_request_changes_by_the_option_alone(body in body(), seed: u64) {
        properties::request(body.as_bytes(), seed);
    }

    #[test]
    fn a_damaged_request_is_never_made_worse(
        body in body(), at: prop::sample::Index, with in "[{}\",: tr\\\\]{0,2}", seed: u64,
    ) {
        let mut body = body.into_bytes();
        let at = at.index(body.len());
        body.splice(at..=at, with.bytes());
        properties::request(&body, seed);
    }

    #[test]
    fn a_response_loses_the_events_of_usage_alone(stream in stream(), seed: u64) {
        properties::response(stream.as_bytes(), seed);
    }

    #[test]
    fn the_urls_of_a_job_change_where_they_may_and_nothing_else_does(
        pieces in prop::collection::vec(prop::sample::select(PIECES), 0..14), seed: u64,
    ) {
        properties::job_urls(pieces.concat().as_bytes(), seed);
    }
}

/// Pieces of bodies with URLs in them.
const PIECES: &[&str] = &[
    r#"{"u":["#,
    r#"],"x":""#,
    r#""a://b""#,
    r#""a://b/1?c""#,
    r#""a://bc""#,
    "a://b/",
    r#"\""#,
    "\"",
    ",",
    "]}",
    "é",
    " ",
];

#[test]
fn the_properties_reach_both_verdicts() {
    assert!(properties::request(br#"{"stream":true}"#, 1));
    assert!(!properties::request(br#"{"stream":false}"#, 1));
    assert_eq!(
        properties::response(b"data: {\"choices\":[],\"usage\":{}}\n\ndata: x\n\n", 1),
        1
    );
    assert_eq!(properties::response(b"data: x\n\n", 1), 0);
    let urls = br#"{"u":["a://b/1","a://bc","a://b",{"u":["a://b/2"]}],"x":"a://b/3"}"#;
    assert_eq!(properties::job_urls(urls, 1), 2);
}

#[test]
fn a_body_of_many_megabytes_streams_through_the_splicer() {
    let image = "A".repeat(20 << 20);
    let body = format!(r#"{{"stream":true,"messages":[{{"image":"{image}"}}]}}"#);
    assert!(properties::cut(body.as_bytes(), 5).len() > 1000);
    let mut splicer = taffrail::proxy::rewrite::Splicer::new();
    let (mut out, mut taken) = (bytes::BytesMut::new(), 0);
    for piece in body.as_bytes().chunks(16 << 10) {
        splicer.push(piece, &mut out);
        taken += piece.len();
        assert!(taken - out.len() <= 1);
    }
    splicer.end(&mut out);
    assert!(splicer.has_injected());
    let expected =
        body.strip_suffix('}').unwrap().to_owned() + r#","stream_options":{"include_usage":true}}"#;
    assert!(out == expected.as_bytes());
}
