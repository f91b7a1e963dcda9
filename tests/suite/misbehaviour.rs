//! Whatever the upstream does, the client sees the same bytes and the same kind of ending as
//! without the sidecar: each scenario runs twice, directly and through it.

use std::time::Duration;

use taffrail::fault::Outcome;

use crate::support::http::{Ending, Seen, ask, read_response};
use crate::support::providers::Plain;
use crate::support::sidecar::Sidecar;
use crate::support::upstream::{Act, Upstream};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const GET: &str = "GET /x HTTP/1.1\r\nhost: a\r\nte: trailers\r\n\r\n";
const HEAD: &str = "HEAD /x HTTP/1.1\r\nhost: a\r\n\r\n";
const POST: &str = "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello";

/// What must come of a scenario through the sidecar.
enum Expect {
    /// The same as directly.
    Same,
    /// There is no response to relay: the sidecar's own 502 in its place.
    BadGateway,
    /// The head is beyond what hyper takes for HTTP, or beyond the limits: 502 although a lenient
    /// client reads it.
    Refused,
}

struct Scenario {
    name: &'static str,
    request: &'static str,
    script: Vec<Act>,
    expect: Expect,
}

fn scenario(name: &'static str, request: &'static str, script: Vec<Act>) -> Scenario {
    let mut all = vec![Act::Read];
    all.extend(script);
    Scenario {
        name,
        request,
        script: all,
        expect: Expect::Same,
    }
}

impl Scenario {
    fn bad_gateway(mut self) -> Scenario {
        self.expect = Expect::BadGateway;
        self
    }

    fn refused(mut self) -> Scenario {
        self.expect = Expect::Refused;
        self
    }
}

fn ok(rest: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n{rest}").into_bytes()
}

fn pause() -> Act {
    Act::Pause(Duration::from_millis(30))
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn scenarios() -> Vec<Scenario> {
    use Act::{Close, HalfClose, Read, Reset};
    let send = |bytes: &str| Act::send(bytes);
    let response = |rest: &str| Act::Send(ok(rest));
    let chunked = "transfer-encoding: chunked\r\n\r\n";
    let big_chunk = {
        let mut bytes = ok("transfer-encoding: chunked\r\n\r\n");
        for index in 0..80 {
            bytes.extend(format!("{:x}\r\n", 65_536).bytes());
            bytes.extend(std::iter::repeat_n(b'a' + (index % 26), 65_536));
            bytes.extend(b"\r\n");
        }
        bytes.extend(b"0\r\n\r\n");
        bytes
    };
    let gzip = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xcbH\xcd\xc9\xc9\x07\x00\x86\xa6\x106\x05\x00\x00\x00";
    let mut gzipped = ok("content-encoding: gzip\r\ncontent-length: 25\r\n\r\n");
    gzipped.extend_from_slice(gzip);
    let mut latin1 = ok("content-length: 0\r\nx-name: ");
    latin1.extend_from_slice(b"caf\xe9\r\n\r\n");
    let many_fields: String = (0..90).map(|index| format!("x-{index}: v\r\n")).collect();
    let too_many_fields: String = (0..150).map(|index| format!("x-{index}: v\r\n")).collect();
    vec![
        scenario(
            "length",
            GET,
            vec![response("content-length: 5\r\n\r\nhello"), Close],
        ),
        scenario(
            "length, kept open",
            GET,
            vec![
                response("content-length: 5\r\n\r\nhello"),
                Read,
                response("content-length: 5\r\n\r\nhello"),
                Act::AwaitClose,
            ],
        ),
        scenario(
            "length, byte by byte",
            GET,
            vec![Act::Drip(ok("content-length: 5\r\n\r\nhello")), Close],
        ),
        scenario(
            "body apart from head",
            GET,
            vec![
                response("content-length: 5\r\n\r\n"),
                pause(),
                send("hello"),
                Close,
            ],
        ),
        scenario(
            "body in two parts",
            GET,
            vec![
                response("content-length: 5\r\n\r\nhe"),
                pause(),
                send("llo"),
                Close,
            ],
        ),
        scenario(
            "post",
            POST,
            vec![response("content-length: 2\r\n\r\nok"), Close],
        ),
        scenario(
            "chunked",
            GET,
            vec![
                response(&format!("{chunked}5\r\nhello\r\n0\r\n\r\n")),
                Close,
            ],
        ),
        scenario(
            "chunked, byte by byte",
            GET,
            vec![
                Act::Drip(ok(&format!("{chunked}5\r\nhello\r\n3\r\nyou\r\n0\r\n\r\n"))),
                Close,
            ],
        ),
        scenario(
            "chunked, terminator late",
            GET,
            vec![
                response(&format!("{chunked}5\r\nhello\r\n")),
                pause(),
                send("0\r\n\r\n"),
                Close,
            ],
        ),
        scenario(
            "chunk extensions",
            GET,
            vec![
                response(&format!("{chunked}5;a=b;c=\"d\"\r\nhello\r\n0;e\r\n\r\n")),
                Close,
            ],
        ),
        scenario(
            "trailers",
            GET,
            vec![
                response(&format!(
                    "trailer: x-sum\r\n{chunked}5\r\nhello\r\n0\r\nx-sum: 9\r\n\r\n"
                )),
                Close,
            ],
        ),
        scenario(
            "trailers, late",
            GET,
            vec![
                response(&format!("trailer: x-sum, x-two\r\n{chunked}5\r\nhello\r\n")),
                pause(),
                send("0\r\nx-sum: 9\r\nx-two: 2\r\n\r\n"),
                Close,
            ],
        ),
        scenario(
            "empty chunked",
            GET,
            vec![response(&format!("{chunked}0\r\n\r\n")), Close],
        ),
        scenario(
            "upper-case chunk size",
            GET,
            vec![
                response(&format!("{chunked}A\r\n0123456789\r\n00\r\n\r\n")),
                Close,
            ],
        ),
        scenario("until close", GET, vec![response("\r\nhello"), Close]),
        scenario(
            "until close, in parts",
            GET,
            vec![response("\r\nhel"), pause(), send("lo"), pause(), Close],
        ),
        scenario("until close, empty", GET, vec![response("\r\n"), Close]),
        scenario(
            "length zero",
            GET,
            vec![response("content-length: 0\r\n\r\n"), Close],
        ),
        scenario(
            "204",
            GET,
            vec![send("HTTP/1.1 204 No Content\r\nx-a: 1\r\n\r\n"), Close],
        ),
        scenario(
            "204, kept open",
            GET,
            vec![
                send("HTTP/1.1 204 No Content\r\nx-a: 1\r\n\r\n"),
                Read,
                send("HTTP/1.1 204 No Content\r\nx-a: 1\r\n\r\n"),
                Act::AwaitClose,
            ],
        ),
        scenario(
            "304 with a length",
            GET,
            vec![
                send("HTTP/1.1 304 Not Modified\r\netag: \"1\"\r\ncontent-length: 5\r\n\r\n"),
                Close,
            ],
        ),
        scenario(
            "head with a length",
            HEAD,
            vec![response("content-length: 5\r\n\r\n"), Close],
        ),
        scenario("head, chunked", HEAD, vec![response(chunked), Close]),
        scenario(
            "100 first",
            POST,
            vec![
                send("HTTP/1.1 100 Continue\r\n\r\n"),
                response("content-length: 2\r\n\r\nok"),
                Close,
            ],
        ),
        scenario(
            "103 first",
            GET,
            vec![
                send("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"),
                pause(),
                response("content-length: 2\r\n\r\nok"),
                Close,
            ],
        ),
        scenario(
            "100 and 103 first",
            POST,
            vec![
                send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n"),
                response("content-length: 2\r\n\r\nok"),
                Close,
            ],
        ),
        scenario("reset before the head", GET, vec![Reset]).bad_gateway(),
        scenario("close before the head", GET, vec![Close]).bad_gateway(),
        scenario(
            "reset within the head",
            GET,
            vec![send("HTTP/1.1 200 OK\r\ncont"), pause(), Reset],
        )
        .bad_gateway(),
        scenario(
            "close within the head",
            GET,
            vec![send("HTTP/1.1 200 OK\r\ncont"), pause(), Close],
        )
        .bad_gateway(),
        scenario(
            "reset after the head",
            GET,
            vec![response("content-length: 5\r\n\r\n"), pause(), Reset],
        ),
        scenario(
            "close after the head",
            GET,
            vec![response("content-length: 5\r\n\r\n"), pause(), Close],
        ),
        scenario(
            "close within the body",
            GET,
            vec![response("content-length: 5\r\n\r\nhel"), Close],
        ),
        scenario(
            "reset within the body",
            GET,
            vec![response("content-length: 5\r\n\r\nhel"), pause(), Reset],
        ),
        scenario(
            "close before the last byte",
            GET,
            vec![response("content-length: 5\r\n\r\nhell"), pause(), Close],
        ),
        scenario(
            "reset after the body",
            GET,
            vec![response("content-length: 5\r\n\r\nhello"), pause(), Reset],
        ),
        scenario(
            "half-close after the body",
            GET,
            vec![
                response("content-length: 5\r\n\r\nhello"),
                HalfClose,
                Act::AwaitClose,
            ],
        ),
        scenario(
            "close before the terminator",
            GET,
            vec![response(&format!("{chunked}5\r\nhello\r\n")), Close],
        ),
        scenario(
            "close before the terminator, later",
            GET,
            vec![
                response(&format!("{chunked}5\r\nhello\r\n")),
                pause(),
                Close,
            ],
        ),
        scenario(
            "reset before the terminator",
            GET,
            vec![
                response(&format!("{chunked}5\r\nhello\r\n")),
                pause(),
                Reset,
            ],
        ),
        scenario(
            "close within a chunk",
            GET,
            vec![response(&format!("{chunked}5\r\nhel")), Close],
        ),
        scenario(
            "close within a chunk size",
            GET,
            vec![response(&format!("{chunked}5\r\nhello\r\n1")), Close],
        ),
        scenario(
            "close within the trailers",
            GET,
            vec![
                response(&format!(
                    "trailer: x-sum\r\n{chunked}5\r\nhello\r\n0\r\nx-su"
                )),
                Close,
            ],
        ),
        scenario(
            "no chunk size",
            GET,
            vec![
                response(&format!("{chunked}5\r\nhello\r\nzz\r\n")),
                pause(),
                Close,
            ],
        ),
        scenario(
            "chunk size overflows",
            GET,
            vec![
                response(&format!("{chunked}5\r\nhello\r\nfffffffffffffffff\r\n")),
                pause(),
                Close,
            ],
        ),
        scenario(
            "no line end after a chunk",
            GET,
            vec![
                response(&format!("{chunked}5\r\nhelloXX0\r\n\r\n")),
                pause(),
                Close,
            ],
        ),
        scenario(
            "junk after the length",
            GET,
            vec![response("content-length: 5\r\n\r\nhelloJUNK"), Close],
        ),
        scenario(
            "junk after the terminator",
            GET,
            vec![
                response(&format!("{chunked}5\r\nhello\r\n0\r\n\r\nJUNK")),
                Close,
            ],
        ),
        scenario(
            "second response unasked",
            GET,
            vec![
                response(
                    "content-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
                ),
                Close,
            ],
        ),
        scenario(
            "the same length twice",
            GET,
            vec![
                response("content-length: 5\r\ncontent-length: 5\r\n\r\nhello"),
                Close,
            ],
        ),
        scenario(
            "two lengths",
            GET,
            vec![
                response("content-length: 5\r\ncontent-length: 6\r\n\r\nhello"),
                Close,
            ],
        )
        .refused(),
        scenario(
            "length is no number",
            GET,
            vec![response("content-length: -5\r\n\r\nhello"), Close],
        )
        .refused(),
        scenario(
            "HTTP/1.0 with a length",
            GET,
            vec![
                send("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello"),
                Close,
            ],
        ),
        scenario(
            "HTTP/1.0 until close",
            GET,
            vec![send("HTTP/1.0 200 OK\r\n\r\nhello"), Close],
        ),
        scenario(
            "HTTP/1.0 keep-alive",
            GET,
            vec![
                send("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\nhello"),
                Read,
                send("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\nhello"),
                Act::AwaitClose,
            ],
        ),
        scenario(
            "no reason phrase",
            GET,
            vec![send("HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok"), Close],
        ),
        scenario(
            "status 299",
            GET,
            vec![
                send("HTTP/1.1 299 Odd\r\ncontent-length: 2\r\n\r\nok"),
                Close,
            ],
        ),
        scenario(
            "status 599",
            GET,
            vec![
                send("HTTP/1.1 599 Odd\r\ncontent-length: 2\r\n\r\nok"),
                Close,
            ],
        ),
        scenario(
            "redirect is not followed",
            GET,
            vec![
                send(
                    "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
                ),
                Close,
            ],
        ),
        scenario(
            "429",
            POST,
            vec![
                send(
                    "HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\nx-ratelimit-remaining-requests: 0\r\ncontent-length: 2\r\n\r\n{}",
                ),
                Close,
            ],
        ),
        scenario(
            "500 until close",
            POST,
            vec![send("HTTP/1.1 500 Oh\r\n\r\n<html>"), Close],
        ),
        scenario(
            "garbage",
            GET,
            vec![send("SSH-2.0-OpenSSH_9\r\n\r\n"), Close],
        )
        .bad_gateway(),
        scenario(
            "field name with a space",
            GET,
            vec![
                response("bad name: 1\r\ncontent-length: 2\r\n\r\nok"),
                Close,
            ],
        )
        .refused(),
        scenario(
            "NUL in a field",
            GET,
            vec![response("x-a: a\0b\r\ncontent-length: 2\r\n\r\nok"), Close],
        )
        .refused(),
        scenario(
            "90 fields",
            GET,
            vec![
                response(&format!("{many_fields}content-length: 2\r\n\r\nok")),
                Close,
            ],
        ),
        scenario(
            "150 fields",
            GET,
            vec![
                response(&format!("{too_many_fields}content-length: 2\r\n\r\nok")),
                Close,
            ],
        )
        .refused(),
        scenario(
            "10 MB head",
            GET,
            vec![
                response(&format!(
                    "x-a: {}\r\ncontent-length: 2\r\n\r\nok",
                    "a".repeat(10_000_000)
                )),
                Close,
            ],
        )
        .refused(),
        scenario(
            "cookies in order",
            GET,
            vec![
                response(
                    "set-cookie: b=2\r\nset-cookie: a=1\r\nset-cookie: c=3\r\ncontent-length: 2\r\n\r\nok",
                ),
                Close,
            ],
        ),
        scenario(
            "empty field",
            GET,
            vec![response("x-empty:\r\ncontent-length: 2\r\n\r\nok"), Close],
        ),
        scenario(
            "field that is no UTF-8",
            GET,
            vec![Act::Send(latin1), Close],
        ),
        scenario("gzip stays gzip", GET, vec![Act::Send(gzipped), Close]),
        scenario(
            "events apart",
            GET,
            vec![
                response(chunked),
                send("6\r\ndata:1\r\n"),
                pause(),
                send("6\r\ndata:2\r\n"),
                pause(),
                send("0\r\n\r\n"),
                Close,
            ],
        ),
        scenario(
            "event and cut together",
            GET,
            vec![response(&format!("{chunked}6\r\ndata:1\r\n")), Close],
        ),
        scenario(
            "event and reset together",
            GET,
            vec![
                response(chunked),
                pause(),
                send("6\r\ndata:1\r\n"),
                Act::Pause(Duration::from_millis(1)),
                Close,
            ],
        ),
        scenario("5 MB in chunks", GET, vec![Act::Send(big_chunk), Close]),
        scenario(
            "a stall in the middle",
            GET,
            vec![
                response("content-length: 5\r\n\r\nhe"),
                Act::Pause(Duration::from_millis(700)),
                send("llo"),
                Close,
            ],
        ),
        Scenario {
            name: "answer before the request is read",
            request: POST,
            script: vec![
                Act::ReadHead,
                response("content-length: 2\r\nconnection: close\r\n\r\nok"),
                pause(),
                Close,
            ],
            expect: Expect::Same,
        },
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_sees_what_it_would_see_without_the_sidecar() {
    let scenarios = scenarios();
    assert!(scenarios.len() >= 60, "{} scenarios", scenarios.len());
    let mut runs = JoinSet::new();
    for scenario in scenarios {
        runs.spawn(run(scenario));
    }
    let failures: Vec<String> = runs.join_all().await.into_iter().flatten().collect();
    assert!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

/// Runs a scenario both ways; the problems found.
async fn run(scenario: Scenario) -> Vec<String> {
    let Scenario {
        name,
        request,
        script,
        expect,
    } = scenario;
    let upstream = Upstream::start(script).await;
    let direct = ask(upstream.address, request.as_bytes()).await;
    let sidecar = Sidecar::start(upstream.address, Plain::new());
    let through = request.replace("/x", "/up/x");
    let relayed = ask(sidecar.address, through.as_bytes()).await;
    let mut problems = Vec::new();
    match expect {
        Expect::Same if direct == relayed && direct.ending != Ending::Stuck => {}
        Expect::Same => {
            problems.push(format!(
                "{name}: directly {}, relayed {}",
                show(&direct),
                show(&relayed)
            ));
        }
        Expect::BadGateway if direct.ending != Ending::NoResponse => {
            problems.push(format!("{name}: there is a response: {}", show(&direct)));
        }
        Expect::BadGateway | Expect::Refused => {
            if relayed.status != 502 || !relayed.headers.contains_key("x-taffrail-error") {
                problems.push(format!("{name}: no 502 of our own: {}", show(&relayed)));
            }
        }
    }
    // The next request must not suffer, whatever state the last one left behind.
    let again = ask(sidecar.address, through.as_bytes()).await;
    if again != relayed {
        problems.push(format!(
            "{name}, again: {} then {}",
            show(&relayed),
            show(&again)
        ));
    }
    for record in sidecar.records(2).await {
        let is_right = match relayed.ending {
            _ if relayed.status == 502 => {
                matches!(
                    record.outcome,
                    Outcome::NetworkError | Outcome::UpstreamError
                )
            }
            Ending::Truncated => record.outcome == Outcome::UpstreamTruncated,
            _ => record.outcome == Outcome::Ok,
        };
        if !is_right {
            problems.push(format!(
                "{name}: outcome {} of {}",
                record.outcome,
                show(&relayed)
            ));
        }
        let bytes = u64::try_from(relayed.body.len()).unwrap();
        if relayed.status != 502 && record.response_bytes != Some(bytes) {
            problems.push(format!(
                "{name}: {:?} bytes of {bytes}",
                record.response_bytes
            ));
        }
    }
    problems
}

fn show(seen: &Seen) -> String {
    let body = String::from_utf8_lossy(&seen.body[..seen.body.len().min(120)]).into_owned();
    format!(
        "{} {:?} {:?} {body:?} ({} bytes) {:?}",
        seen.status,
        seen.ending,
        seen.headers.keys().collect::<Vec<_>>(),
        seen.body.len(),
        seen.trailers
    )
}

/// The connection of a finished response is used again, and a stale one is replaced unseen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooled_connection_is_reused_and_a_stale_one_replaced() {
    let answer = Act::Send(ok("content-length: 2\r\n\r\nok"));
    let upstream = Upstream::start_each(vec![
        vec![
            Act::Read,
            answer.clone(),
            Act::Read,
            answer.clone(),
            Act::Read,
            Act::Close,
        ],
        vec![Act::Read, answer, Act::AwaitClose],
    ])
    .await;
    let sidecar = Sidecar::start(upstream.address, Plain::new());
    let mut client = TcpStream::connect(sidecar.address).await.unwrap();
    let mut pending = Vec::new();
    for connections in [1, 1, 2] {
        client
            .write_all(POST.replace("/x", "/up/x").as_bytes())
            .await
            .unwrap();
        let seen = read_response(&mut client, &mut pending, false).await;
        assert_eq!((seen.status, seen.body.as_slice()), (200, b"ok".as_slice()));
        assert_eq!(upstream.connections(), connections);
    }
}
