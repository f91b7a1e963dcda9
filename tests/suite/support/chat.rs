//! A chat provider on loopback that does what each request's metadata asks for, and knows which
//! requests it has received.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// The model that answers; it has a price.
pub(crate) const MODEL: &str = "gpt-4o-mini";

/// A request, told from all others by its number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask {
    pub(crate) number: u64,
    /// How many pieces of text the stream has; 0 is a response that is no stream.
    pub(crate) events: u64,
    /// Between the pieces, or before the response.
    pub(crate) pace: Duration,
    /// The response ends only after [`Chat::release`].
    pub(crate) is_held: bool,
    /// Whether the request asks for the usage itself.
    pub(crate) asks_usage: bool,
}

impl Ask {
    /// A request that is answered at once.
    pub(crate) fn plain(number: u64) -> Ask {
        Ask {
            number,
            events: 0,
            pace: Duration::ZERO,
            is_held: false,
            asks_usage: false,
        }
    }

    /// A stream that waits for its release after the first piece of text.
    pub(crate) fn held(number: u64) -> Ask {
        Ask {
            events: 3,
            is_held: true,
            ..Ask::plain(number)
        }
    }

    /// The trace that the request belongs to; no other request does.
    pub(crate) fn trace_id(self) -> String {
        format!("{:032x}", self.number + 1)
    }

    /// The tokens of its prompt and of its answer.
    pub(crate) fn tokens(self) -> (u64, u64) {
        (100 + self.number % 1009, 10 + self.number % 503)
    }

    /// The provider's id for the response.
    pub(crate) fn response_id(self) -> String {
        format!("chatcmpl-{}", self.number)
    }

    fn body(self) -> Value {
        let mut body = json!({
            "model": MODEL,
            "messages": [{ "role": "user", "content": "How far?" }],
            "stream": self.events > 0,
            "metadata": {
                "number": self.number,
                "events": self.events,
                "pace_ms": u64::try_from(self.pace.as_millis()).unwrap(),
                "is_held": self.is_held,
            },
        });
        if self.asks_usage {
            body["stream_options"] = json!({ "include_usage": true });
        }
        body
    }

    /// The request's bytes, for the proxy.
    pub(crate) fn request(self) -> Vec<u8> {
        let body = self.body().to_string();
        format!(
            "POST /openai/v1/chat/completions HTTP/1.1\r\nhost: proxy\r\n\
             content-type: application/json\r\nauthorization: Bearer sk-test\r\n\
             traceparent: 00-{}-00f067aa0ba902b7-01\r\ncontent-length: {}\r\n\r\n{body}",
            self.trace_id(),
            body.len()
        )
        .into_bytes()
    }

    /// The provider's usage object.
    pub(crate) fn usage(self) -> Value {
        let (input, output) = self.tokens();
        json!({
            "prompt_tokens": input,
            "completion_tokens": output,
            "total_tokens": input + output,
        })
    }

    /// The response that is no stream.
    pub(crate) fn completion(self) -> Value {
        json!({
            "id": self.response_id(),
            "object": "chat.completion",
            "created": 1_760_000_000,
            "model": MODEL,
            "choices": [{
                "index": 0,
                "message": { "role": "assistant", "content": "Twelve miles." },
                "finish_reason": "stop",
            }],
            "usage": self.usage(),
        })
    }

    /// The events of the stream, each with its blank line.
    fn chunks(self) -> Vec<Bytes> {
        let chunk = |choices: Value, usage: Value| {
            let chunk = json!({
                "id": self.response_id(),
                "object": "chat.completion.chunk",
                "created": 1_760_000_000,
                "model": MODEL,
                "choices": choices,
                "usage": usage,
            });
            Bytes::from(format!("data: {chunk}\n\n"))
        };
        let text = json!([{ "index": 0, "delta": { "content": "mile " }, "finish_reason": null }]);
        let stop = json!([{ "index": 0, "delta": {}, "finish_reason": "stop" }]);
        let mut chunks: Vec<Bytes> = (0..self.events)
            .map(|_| chunk(text.clone(), Value::Null))
            .collect();
        chunks.push(chunk(stop, Value::Null));
        chunks.push(chunk(json!([]), self.usage()));
        chunks.push(Bytes::from_static(b"data: [DONE]\n\n"));
        chunks
    }
}

/// A running provider.
pub(crate) struct Chat {
    pub(crate) address: SocketAddr,
    released: watch::Sender<bool>,
    received: Arc<Mutex<BTreeSet<u64>>>,
}

impl Chat {
    pub(crate) async fn start() -> Chat {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (released, watched) = watch::channel(false);
        let received = Arc::new(Mutex::new(BTreeSet::new()));
        let noted = received.clone();
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    return;
                };
                stream.set_nodelay(true).unwrap();
                let (watched, noted) = (watched.clone(), noted.clone());
                let service =
                    service_fn(move |request| answer(request, watched.clone(), noted.clone()));
                let served = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                // A proxy that was killed breaks its connections.
                tokio::spawn(async move { served.await.ok() });
            }
        });
        Chat {
            address,
            released,
            received,
        }
    }

    /// Lets every held response go on.
    pub(crate) fn release(&self) {
        self.released.send_replace(true);
    }

    /// The numbers of the requests that came.
    pub(crate) fn received(&self) -> BTreeSet<u64> {
        self.received.lock().unwrap().clone()
    }
}

async fn answer(
    request: Request<Incoming>,
    mut released: watch::Receiver<bool>,
    received: Arc<Mutex<BTreeSet<u64>>>,
) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let told = &body["metadata"];
    let number = |key: &str| told[key].as_u64().unwrap();
    let ask = Ask {
        number: number("number"),
        events: number("events"),
        pace: Duration::from_millis(number("pace_ms")),
        is_held: told["is_held"].as_bool().unwrap(),
        asks_usage: body["stream_options"]["include_usage"] == true,
    };
    received.lock().unwrap().insert(ask.number);
    if ask.events == 0 {
        pause(ask.pace).await;
        if ask.is_held {
            released.wait_for(|is_released| *is_released).await.ok();
        }
        let body = Full::new(Bytes::from(ask.completion().to_string()));
        let response = Response::builder()
            .header("content-type", "application/json")
            .body(body.boxed_unsync());
        return Ok(response.unwrap());
    }
    let mut chunks = ask.chunks();
    if !ask.asks_usage {
        chunks.remove(chunks.len() - 2);
    }
    let chunks = chunks.into_iter().enumerate();
    let frames = stream::unfold(
        (chunks, released),
        move |(mut chunks, mut released)| async move {
            let (index, chunk) = chunks.next()?;
            if index > 0 {
                pause(ask.pace).await;
                if ask.is_held {
                    released.wait_for(|is_released| *is_released).await.ok();
                }
            }
            Some((Ok::<_, Infallible>(Frame::data(chunk)), (chunks, released)))
        },
    );
    let response = Response::builder()
        .header("content-type", "text/event-stream")
        .body(StreamBody::new(frames).boxed_unsync());
    Ok(response.unwrap())
}

/// Waits; no time is not a tick of the timer.
async fn pause(pace: Duration) {
    if !pace.is_zero() {
        tokio::time::sleep(pace).await;
    }
}
