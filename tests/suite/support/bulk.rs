//! Bodies of any size, made and checked as they stream.

use std::convert::Infallible;
use std::io::Write as _;
use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, header};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How much is sent at a time.
const BLOCK_BYTES: usize = 64 << 10;

/// A JSON document or a stream around a long string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Document {
    pub(crate) head: &'static str,
    pub(crate) tail: &'static str,
    /// The bytes of the string.
    pub(crate) filler: usize,
}

/// The length of a body and its CRC-32C.
pub(crate) type Print = (usize, u32);

impl Document {
    pub(crate) fn filled(self, filler: usize) -> Document {
        Document { filler, ..self }
    }

    fn length(self) -> usize {
        self.head.len() + self.filler + self.tail.len()
    }

    fn blocks(self) -> impl Iterator<Item = Bytes> + Send {
        let pattern: Bytes = (b'a'..=b'z').cycle().take(BLOCK_BYTES).collect();
        let whole = std::iter::repeat_n(pattern.clone(), self.filler / BLOCK_BYTES);
        let rest = pattern.slice(..self.filler % BLOCK_BYTES);
        std::iter::once(Bytes::from_static(self.head.as_bytes()))
            .chain(whole)
            .chain([rest, Bytes::from_static(self.tail.as_bytes())])
    }

    pub(crate) fn print(self) -> Print {
        let crc = self
            .blocks()
            .fold(0, |crc, block| crc32c::crc32c_append(crc, &block));
        (self.length(), crc)
    }

    /// The document in a content coding.
    pub(crate) fn encoded(self, coding: &str) -> Vec<u8> {
        let mut out = Vec::new();
        let write = |writer: &mut dyn std::io::Write| {
            for block in self.blocks() {
                writer.write_all(&block).unwrap();
            }
        };
        match coding {
            "gzip" => {
                let mut encoder =
                    flate2::write::GzEncoder::new(&mut out, flate2::Compression::fast());
                write(&mut encoder);
                encoder.finish().unwrap();
            }
            "br" => {
                let mut encoder = brotli::CompressorWriter::new(&mut out, BLOCK_BYTES, 3, 22);
                write(&mut encoder);
                encoder.flush().unwrap();
            }
            "zstd" => {
                let mut encoder = zstd::stream::write::Encoder::new(&mut out, 3).unwrap();
                encoder.window_log(23).unwrap();
                write(&mut encoder);
                encoder.finish().unwrap();
            }
            _ => panic!("{coding}"),
        }
        out
    }
}

/// How the end of a body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Length,
    Chunked,
}

/// What the next download brings.
#[derive(Debug, Clone)]
enum Answer {
    Document(Document, Framing),
    Encoded(String, Bytes),
}

type Sent = UnsyncBoxBody<Bytes, Infallible>;

/// A provider that takes and sends large bodies.
pub(crate) struct Bulk {
    pub(crate) address: SocketAddr,
    answer: watch::Sender<Option<Answer>>,
    received: watch::Receiver<Print>,
}

impl Bulk {
    pub(crate) async fn start() -> Bulk {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (answer, answers) = watch::channel(None);
        let (receive, received) = watch::channel((0, 0));
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    return;
                };
                let (answers, receive) = (answers.clone(), receive.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (answers, receive) = (answers.clone(), receive.clone());
                    async move {
                        let came = print(request.into_body(), None).await;
                        receive.send_replace(came);
                        Ok::<_, Infallible>(respond(answers.borrow().clone()))
                    }
                });
                let served = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move { served.await.ok() });
            }
        });
        Bulk {
            address,
            answer,
            received,
        }
    }

    /// Sends a prompt through the proxy; returns what the provider has got.
    pub(crate) async fn upload(
        &self,
        proxy: SocketAddr,
        document: Document,
        framing: Framing,
    ) -> Print {
        self.answer.send_replace(None);
        let mut request = request("chat/completions", body(document));
        if framing == Framing::Length {
            let length = document.length().into();
            request.headers_mut().insert(header::CONTENT_LENGTH, length);
        }
        let response = send(proxy, request).await;
        assert_eq!(response.status(), 200);
        print(response.into_body(), None).await;
        *self.received.borrow()
    }

    /// Gets a document through the proxy; returns what the client has got.
    pub(crate) async fn download(
        &self,
        proxy: SocketAddr,
        path: &str,
        document: Document,
        framing: Framing,
    ) -> Print {
        let answer = Answer::Document(document, framing);
        self.answer.send_replace(Some(answer));
        let asked = Full::new(Bytes::from_static(ASKED.as_bytes())).boxed_unsync();
        let response = send(proxy, request(path, asked)).await;
        assert_eq!(response.status(), 200);
        print(response.into_body(), None).await
    }

    /// Gets an encoded body through the proxy, as it is.
    pub(crate) async fn download_encoded(
        &self,
        proxy: SocketAddr,
        coding: &str,
        encoded: &Bytes,
    ) -> Vec<u8> {
        let answer = Answer::Encoded(coding.to_owned(), encoded.clone());
        self.answer.send_replace(Some(answer));
        let asked = Full::new(Bytes::from_static(ASKED.as_bytes())).boxed_unsync();
        let response = send(proxy, request("images/generations", asked)).await;
        assert_eq!(response.headers()[header::CONTENT_ENCODING], coding);
        let mut came = Vec::new();
        print(response.into_body(), Some(&mut came)).await;
        came
    }
}

/// A small request; a stream states its usage because it is asked for.
const ASKED: &str =
    r#"{"model":"gpt-4o-mini","stream":true,"stream_options":{"include_usage":true}}"#;

fn request(path: &str, body: Sent) -> Request<Sent> {
    Request::post(format!("/openai/v1/{path}"))
        .header(header::HOST, "proxy")
        .header(header::CONTENT_TYPE, "application/json")
        .body(body)
        .unwrap()
}

fn respond(answer: Option<Answer>) -> Response<Sent> {
    const SMALL: &str = r#"{"model":"gpt-4o-mini","choices":[{"finish_reason":"stop"}],
        "usage":{"prompt_tokens":10,"completion_tokens":20}}"#;
    let response = Response::builder();
    let response = match answer {
        None => response
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from_static(SMALL.as_bytes())).boxed_unsync()),
        Some(Answer::Encoded(coding, bytes)) => response
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONTENT_ENCODING, coding)
            .body(Full::new(bytes).boxed_unsync()),
        Some(Answer::Document(document, framing)) => {
            let content_type = if document.head.starts_with("data:") {
                "text/event-stream"
            } else {
                "application/json"
            };
            let response = response.header(header::CONTENT_TYPE, content_type);
            match framing {
                Framing::Length => response.header(header::CONTENT_LENGTH, document.length()),
                Framing::Chunked => response,
            }
            .body(body(document))
        }
    };
    response.unwrap()
}

fn body(document: Document) -> Sent {
    let frames = document
        .blocks()
        .filter(|block| !block.is_empty())
        .map(|block| Ok(Frame::data(block)));
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}

/// Sends a request on a connection of its own.
async fn send(proxy: SocketAddr, request: Request<Sent>) -> Response<Incoming> {
    let stream = TcpStream::connect(proxy).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(async move { connection.await.ok() });
    sender.send_request(request).await.unwrap()
}

/// Reads a body to its end, and keeps it if asked to.
async fn print(mut body: Incoming, mut kept: Option<&mut Vec<u8>>) -> Print {
    let mut print = (0, 0);
    while !body.is_end_stream() {
        let Some(frame) = body.frame().await else {
            break;
        };
        let data = frame.expect("the body broke off").into_data();
        let data = data.unwrap_or_default();
        print = (print.0 + data.len(), crc32c::crc32c_append(print.1, &data));
        if let Some(kept) = &mut kept {
            kept.extend_from_slice(&data);
        }
    }
    print
}
