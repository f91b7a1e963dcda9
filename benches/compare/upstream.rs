//! A fast upstream that speaks as a chat provider does, on one thread, plain and over TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use memchr::memmem;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use taffrail::clock;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_rustls::TlsAcceptor;

use super::support::certificate::issue;

/// The name in the upstream's certificate.
pub(crate) const HOST: &str = "localhost";

/// Events of a stream that carry text; two more end it.
const TEXTS: usize = 100;
pub(crate) const EVENTS: u64 = 102;

/// Between the events of a stream that come apart.
const PACE: Duration = Duration::from_millis(5);

/// What a request asks for, by its header `x-answer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A JSON document of 1.4 KB.
    Whole,
    /// A stream whose events leave in one write, a chunk each.
    Together,
    /// A stream with one write for each event, [`PACE`] apart, each with the time of its write.
    Apart,
    /// A stream that stays open after its first event.
    Open,
}

impl Answer {
    /// The request's bytes, 900 or so, as an SDK sends them.
    pub(crate) fn request(self, prefix: &str) -> Vec<u8> {
        let stream = match self {
            Answer::Whole => "",
            _ => ",\"stream\":true,\"stream_options\":{\"include_usage\":true}",
        };
        let question = "How far has the ship run since noon, by the log? ".repeat(10);
        let body = format!(
            "{{\"model\":\"gpt-4o-mini\",\"messages\":[{{\"role\":\"user\",\"content\":\
             \"{question}\"}}],\"temperature\":0.2{stream}}}"
        );
        format!(
            "POST {prefix}/v1/chat/completions HTTP/1.1\r\nhost: {HOST}\r\n\
             accept: application/json\r\ncontent-type: application/json\r\n\
             user-agent: OpenAI/Python 1.99.1\r\nx-stainless-lang: python\r\n\
             authorization: Bearer sk-proj-4eC39HqLyjWDarjtT1zdp7dc\r\nx-answer: {self:?}\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }
}

/// Where the upstream listens.
#[derive(Debug, Clone)]
pub(crate) struct Upstream {
    pub(crate) plain: SocketAddr,
    pub(crate) tls: SocketAddr,
    /// Who vouches for its certificate (PEM).
    pub(crate) authority: String,
}

impl Upstream {
    /// Starts the thread, which ends with the process.
    pub(crate) fn start() -> Upstream {
        let issued = issue(HOST);
        let key = PrivateKeyDer::Pkcs8(issued.key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![issued.certificate.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listeners = [(); 2].map(|()| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        });
        let [plain, tls] = listeners.each_ref().map(|one| one.local_addr().unwrap());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(async {
                let [plain, tls] = listeners.map(|one| TcpListener::from_std(one).unwrap());
                tokio::join!(accept(plain, None), accept(tls, Some(acceptor)))
            })
        });
        Upstream {
            plain,
            tls,
            authority: issued.authority,
        }
    }
}

/// Nanoseconds since the first call, by the clock that stamps events.
pub(crate) fn nanos() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(clock::instant);
    u64::try_from(START.elapsed().as_nanos()).unwrap()
}

/// When the last event in these bytes was written, in [`nanos`].
pub(crate) fn stamp(bytes: &[u8]) -> Option<u64> {
    let at = memchr::memrchr(b'@', bytes)? + 1;
    std::str::from_utf8(bytes.get(at..at + 16)?)
        .ok()?
        .parse()
        .ok()
}

async fn accept(listener: TcpListener, acceptor: Option<TlsAcceptor>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let acceptor = acceptor.clone();
        // Whoever goes away ends the task with an error that says so.
        tokio::spawn(async move {
            match acceptor {
                Some(acceptor) => serve(acceptor.accept(stream).await?).await,
                None => serve(stream).await,
            }
        });
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    static WHOLE: LazyLock<Vec<u8>> = LazyLock::new(whole);
    static TOGETHER: LazyLock<Vec<u8>> = LazyLock::new(together);
    let mut buffer = BytesMut::with_capacity(16 << 10);
    loop {
        let (answer, length) = loop {
            if let Some(found) = parse(&buffer) {
                break found;
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        buffer.advance(length);
        match answer {
            Answer::Whole => stream.write_all(&WHOLE).await?,
            Answer::Together => stream.write_all(&TOGETHER).await?,
            Answer::Apart => apart(&mut stream).await?,
            Answer::Open => {
                let start = [STREAM_HEAD.as_bytes(), &text(0)].concat();
                stream.write_all(&start).await?;
            }
        }
        stream.flush().await?;
    }
}

/// The answer wanted by the request at the start, and the request's length, once it is complete.
fn parse(bytes: &[u8]) -> Option<(Answer, usize)> {
    let head = memmem::find(bytes, b"\r\n\r\n")? + 4;
    let value = |name: &[u8]| {
        let start = memmem::find(&bytes[..head], name).unwrap() + name.len();
        let length = memchr::memchr(b'\r', &bytes[start..]).unwrap();
        std::str::from_utf8(&bytes[start..start + length]).unwrap()
    };
    // nginx writes the first letters of the name large.
    let length = head + value(b"ength: ").parse::<usize>().unwrap();
    let answer = match value(b"x-answer: ") {
        "Whole" => Answer::Whole,
        "Together" => Answer::Together,
        "Apart" => Answer::Apart,
        "Open" => Answer::Open,
        other => panic!("no answer is called {other}"),
    };
    (bytes.len() >= length).then_some((answer, length))
}

fn whole() -> Vec<u8> {
    let text = "Since noon the log has run out forty-two miles and a half. ".repeat(12);
    let body = format!(
        "{{\"id\":\"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG\",\"object\":\"chat.completion\",\
         \"created\":1741570283,\"model\":\"gpt-4o-mini-2024-07-18\",\"choices\":[{{\"index\":0,\
         \"message\":{{\"role\":\"assistant\",\"content\":\"{text}\",\"refusal\":null,\
         \"annotations\":[]}},\"logprobs\":null,\"finish_reason\":\"stop\"}}],{USAGE},\
         \"service_tier\":\"default\",\"system_fingerprint\":\"fp_06737a9306\"}}"
    );
    format!(
        "HTTP/1.1 200 OK\r\ndate: Sun, 09 Mar 2025 16:44:43 GMT\r\n\
         content-type: application/json\r\nx-request-id: req_fd0fb8b1e0e6de0c\r\n\
         openai-processing-ms: 431\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

const USAGE: &str = "\"usage\":{\"prompt_tokens\":1117,\"completion_tokens\":46,\
    \"total_tokens\":1163,\"prompt_tokens_details\":{\"cached_tokens\":0,\"audio_tokens\":0},\
    \"completion_tokens_details\":{\"reasoning_tokens\":0,\"audio_tokens\":0,\
    \"accepted_prediction_tokens\":0,\"rejected_prediction_tokens\":0}}";

const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
    x-request-id: req_fd0fb8b1e0e6de0c\r\ntransfer-encoding: chunked\r\n\r\n";

fn together() -> Vec<u8> {
    let texts = (0..TEXTS).flat_map(|_| text(0));
    STREAM_HEAD.bytes().chain(texts).chain(end()).collect()
}

async fn apart(stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    stream.write_all(STREAM_HEAD.as_bytes()).await?;
    let mut ticks = tokio::time::interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for _ in 0..TEXTS {
        ticks.tick().await;
        stream.write_all(&text(nanos())).await?;
        stream.flush().await?;
    }
    stream.write_all(&end()).await
}

/// An event of some 300 bytes, as a chunk.
fn text(stamp: u64) -> Vec<u8> {
    event(&format!(
        "\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"@{stamp:016}\"}},\
         \"logprobs\":null,\"finish_reason\":null}}],\"usage\":null"
    ))
}

fn event(fields: &str) -> Vec<u8> {
    chunk(&format!(
        "data: {{\"id\":\"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG\",\"object\":\
         \"chat.completion.chunk\",\"created\":1741570283,\"model\":\"gpt-4o-mini-2024-07-18\",\
         \"service_tier\":\"default\",\"system_fingerprint\":\"fp_06737a9306\",{fields}}}\n\n"
    ))
}

fn end() -> Vec<u8> {
    let usage = event(&format!("\"choices\":[],{USAGE}"));
    [usage, chunk("data: [DONE]\n\n"), b"0\r\n\r\n".to_vec()].concat()
}

fn chunk(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}
