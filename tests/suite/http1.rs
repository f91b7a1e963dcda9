//! The reader of responses is held to hyper's client: the same answer, or none by both.

use http::{HeaderMap, Method, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use taffrail::wire::http1::FIELDS_MAX;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::wire::properties::{self, HEAD_BYTES_MAX, Reply};
use crate::wire::{config, damaged};

/// What hyper reads.
async fn hypers(method: &Method, bytes: &[u8]) -> Option<Reply> {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let bytes = bytes.to_vec();
    let serving = async move {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            if far.read_buf(&mut request).await.unwrap() == 0 {
                return;
            }
        }
        // A client that has seen enough goes away.
        if far.write_all(&bytes).await.is_ok() && far.shutdown().await.is_ok() {
            tokio::io::copy(&mut far, &mut tokio::io::sink())
                .await
                .unwrap();
        }
    };
    let asking = async {
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(FIELDS_MAX)
            .handshake(TokioIo::new(near))
            .await
            .unwrap();
        let request = http::Request::builder()
            .method(method.clone())
            .header(header::HOST, "a")
            .body(Empty::<Bytes>::new())
            .unwrap();
        let receiving = async {
            let (head, mut body) = sender.send_request(request).await.ok()?.into_parts();
            let (mut seen, mut trailers) = (Vec::new(), Some(HeaderMap::new()));
            while let Some(frame) = body.frame().await {
                match frame.map(|frame| frame.into_data()) {
                    Ok(Ok(data)) => seen.extend_from_slice(&data),
                    Ok(Err(frame)) => trailers = Some(frame.into_trailers().unwrap()),
                    Err(_) => trailers = None,
                }
            }
            let reason = head.extensions.get::<hyper::ext::ReasonPhrase>();
            Some(Reply {
                version: head.version,
                status: head.status,
                reason: reason.map(|reason| reason.as_bytes().to_vec()),
                headers: head.headers,
                body: seen,
                trailers,
            })
        };
        // Whatever ends the connection is told by the response, too.
        let (received, _) = tokio::join!(receiving, connection);
        received
    };
    let ((), answer) = tokio::join!(serving, asking);
    answer
}

/// Compares the two.
fn agree(method: &Method, bytes: &[u8], seed: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let mut expected = runtime.unwrap().block_on(hypers(method, bytes));
    let own = properties::http1(method, bytes, seed);
    // The one difference: a length beside chunks is dropped.
    if let (Some(expected), Some(own)) = (&mut expected, &own)
        && expected.headers.contains_key(header::TRANSFER_ENCODING)
        && !own.headers.contains_key(header::CONTENT_LENGTH)
    {
        expected.headers.remove(header::CONTENT_LENGTH);
    }
    assert_eq!(own, expected, "{}", bytes.escape_ascii());
}

fn method() -> impl Strategy<Value = Method> {
    prop::sample::select(vec![Method::POST, Method::GET, Method::HEAD])
}

/// Mostly right, and everything that frames a body.
fn head() -> impl Strategy<Value = String> {
    let version = prop::sample::select(vec!["1.1", "1.1", "1.1", "1.0", "1.2", "2"]);
    let status = prop::sample::select(vec![
        "200 OK",
        "200 OK",
        "200",
        "200 Fine",
        "204 No Content",
        "304 x",
        "404 Not Found",
        "101 x",
        "099 x",
        "599 \u{e9}",
        "1000 x",
    ]);
    let field = prop::sample::select(vec![
        "content-length: 5",
        "Content-Length: 5",
        "content-length: 7",
        "content-length: 5, 5",
        "content-length: 0",
        "content-length: ",
        "content-length: +5",
        "content-length: 005",
        "content-length: 18446744073709551615",
        "content-length: 99999999999999999999",
        "transfer-encoding: chunked",
        "transfer-encoding: chunked",
        "Transfer-Encoding: gzip, Chunked",
        "transfer-encoding: chunked, gzip",
        "transfer-encoding: gzip",
        "transfer-encoding: ",
        "connection: close",
        "connection: keep-alive",
        "x-a: b",
        "x-a: c",
        "x-empty:",
        "x y: z",
        "x-space:  a b  ",
        "set-cookie: a=1",
        "trailer: x-sum",
        " folded",
        "x-obs: \u{e9}",
        ":",
    ]);
    let informational = prop::sample::select(vec![
        "",
        "",
        "",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 103 x\r\nlink: a\r\n\r\n",
        "\r\n",
    ]);
    let newline = prop::sample::select(vec!["\r\n", "\r\n", "\r\n", "\n"]);
    let fields = prop::collection::vec(field, 0..5);
    (informational, version, status, fields, newline).prop_map(
        |(informational, version, status, fields, newline)| {
            let mut head = format!("{informational}HTTP/{version} {status}{newline}");
            for field in fields {
                head += &format!("{field}{newline}");
            }
            head + newline
        },
    )
}

fn body() -> impl Strategy<Value = String> {
    let chunk = (
        prop::sample::select(vec!["", "", "", "0", "00000000000000000"]),
        prop::sample::select(vec!["", "", "", ";a=b", " ;a", "\t", ";a\n", "x"]),
        "[a-z\r\n]{1,20}",
    )
        .prop_map(|(zeros, extension, data)| {
            format!("{zeros}{:X}{extension}\r\n{data}\r\n", data.len())
        });
    let chunks = prop::collection::vec(chunk, 0..5).prop_map(|chunks| chunks.concat());
    let last = prop::sample::select(vec![
        "0\r\n\r\n",
        "0\r\n\r\n",
        "0\r\n\r\n",
        "00;a\r\n\r\n",
        "0\r\nx-sum: 9\r\n\r\n",
        "0\r\nx-sum: 9\r\nx-sum: 1\r\n\r\njunk",
        "0\r\nx y: 9\r\n\r\n",
        "0\r\n",
        "",
        "fffffffffffffffff\r\n",
        "0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        "0\n\n",
        "\r\n",
    ]);
    prop_oneof![
        3 => (chunks, last).prop_map(|(chunks, last)| chunks + last),
        2 => prop::sample::select(vec!["hello", "hell", "hello, world", ""]).prop_map(String::from),
    ]
}

fn response() -> impl Strategy<Value = Vec<u8>> {
    // One character is one byte.
    (head(), body()).prop_map(|(head, body)| {
        let both = head + &body;
        both.chars().map(|c| u8::try_from(c).unwrap()).collect()
    })
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn responses_are_read_as_hyper_reads_them(
        method in method(), response in response(), seed: u64,
    ) {
        agree(&method, &response, seed);
    }

    #[test]
    fn damaged_responses_are_judged_as_hyper_does(
        method in method(), response in damaged(response()), seed: u64,
    ) {
        agree(&method, &response, seed);
    }
}

#[test]
fn what_is_too_long_is_refused_as_by_hyper() {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let fields = |count: usize| "x: 1\r\n".repeat(count);
    for response in [
        format!("HTTP/1.1 200 OK\r\n{}\r\n", fields(FIELDS_MAX)),
        format!("HTTP/1.1 200 OK\r\n{}\r\n", fields(FIELDS_MAX + 1)),
        format!(
            "HTTP/1.1 200 OK\r\nx: {}\r\n\r\n",
            "a".repeat(HEAD_BYTES_MAX)
        ),
        format!("{chunked}5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(10_000)),
        format!("{chunked}5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(20_000)),
        format!("{chunked}0\r\n{}\r\n", fields(FIELDS_MAX)),
        format!("{chunked}0\r\n{}\r\n", fields(FIELDS_MAX + 1)),
        format!("{chunked}0\r\nx: {}\r\n\r\n", "a".repeat(20_000)),
    ] {
        agree(&Method::GET, response.as_bytes(), 1);
    }
}

#[test]
fn a_length_beside_chunks_is_dropped() {
    let bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n\
                  5\r\nhello\r\n0\r\n\r\n";
    let answer = properties::http1(&Method::GET, bytes, 1).unwrap();
    assert_eq!(answer.headers.get(header::CONTENT_LENGTH), None);
    assert_eq!(answer.body, b"hello");
}
