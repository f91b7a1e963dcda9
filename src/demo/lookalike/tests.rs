use http_body_util::Full;
use hyper::client::conn::http1;

use super::*;

/// An answer as a client sees it; the body is none if it broke off.
#[derive(Debug)]
struct Seen {
    status: u16,
    headers: HeaderMap,
    body: String,
    is_broken: bool,
}

impl Seen {
    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    /// The JSON of each event, in order.
    fn events(&self) -> Vec<Value> {
        let datas = self
            .body
            .lines()
            .filter_map(|line| line.strip_prefix("data: "));
        let jsons = datas.filter(|data| *data != "[DONE]");
        jsons
            .map(|data| serde_json::from_str(data).unwrap())
            .collect()
    }

    /// The last usage object that is not null, wherever it is.
    fn usage(&self) -> Value {
        let whole = serde_json::from_str(&self.body).map_or_else(|_| self.events(), |v| vec![v]);
        let places = ["/usage", "/response/usage", "/message/usage"];
        let usages = whole
            .iter()
            .flat_map(|json| places.map(|place| json.pointer(place)));
        usages
            .flatten()
            .rfind(|usage| !usage.is_null())
            .cloned()
            .unwrap_or_default()
    }
}

async fn ask(vendor: Vendor, path: &str, body: &str, headers: &[(&'static str, &str)]) -> Seen {
    let lookalike = LookAlike::start(vendor).await.unwrap();
    let (_, upstream) = lookalike.upstreams().next().unwrap();
    ask_at(&upstream, path, body, headers).await
}

async fn ask_at(upstream: &str, path: &str, body: &str, headers: &[(&'static str, &str)]) -> Seen {
    let address = upstream.strip_prefix("http://").unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let _driver = AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) }));
    let mut request = Request::builder().method(if body.is_empty() { "GET" } else { "POST" });
    request = request.uri(path).header("host", "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request
        .body(Full::<bytes::Bytes>::new(body.to_owned().into()))
        .unwrap();
    let (head, mut body) = sender.send_request(request).await.unwrap().into_parts();
    let mut seen = Seen {
        status: head.status.as_u16(),
        headers: head.headers,
        body: String::new(),
        is_broken: false,
    };
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => seen.body += std::str::from_utf8(frame.data_ref().unwrap()).unwrap(),
            Err(_) => seen.is_broken = true,
        }
    }
    seen
}

const KEY: (&str, &str) = ("authorization", "Bearer sk-demo");

fn question(model: &str, rest: &str) -> String {
    format!(
        r#"{{"model":"{model}","max_tokens":30,"messages":[{{"role":"user","content":"Where is the log streamed?"}}]{rest}}}"#
    )
}

/// Every way to ask: vendor, path, body.
fn questions() -> Vec<(Vendor, &'static str, String)> {
    let long = "taffrail ".repeat(800);
    let stream = r#","stream":true"#;
    let usage = r#","stream":true,"stream_options":{"include_usage":true}"#;
    let input = format!(r#"{{"model":"gpt-6.1-sol","input":"{long}""#);
    let system = format!(
        r#","system":[{{"type":"text","text":"{long}","cache_control":{{"type":"ephemeral","ttl":"1h"}}}}]"#
    );
    let (chat, messages, router) = (
        "/v1/chat/completions",
        "/v1/messages",
        "/api/v1/chat/completions",
    );
    let (mini, opus) = ("gpt-4o-mini", "claude-opus-5-5");
    let (llama, gemini) = (
        "meta-llama/llama-3.3-70b-instruct",
        "google/gemini-2.5-flash",
    );
    vec![
        (Vendor::OpenAi, chat, question(mini, "")),
        (Vendor::OpenAi, chat, question(mini, usage)),
        (Vendor::OpenAi, "/v1/responses", format!("{input}}}")),
        (
            Vendor::OpenAi,
            "/v1/responses",
            format!("{input}{stream}}}"),
        ),
        (
            Vendor::OpenAi,
            "/v1/embeddings",
            r#"{"model":"text-embedding-3-small","input":["a","b"]}"#.to_owned(),
        ),
        (Vendor::Anthropic, messages, question(opus, &system)),
        (
            Vendor::Anthropic,
            messages,
            question(opus, &format!("{system}{stream}")),
        ),
        (Vendor::OpenRouter, router, question(llama, "")),
        (Vendor::OpenRouter, router, question(gemini, stream)),
    ]
}

/// Reads a usage object in the vendors' three dialects.
fn read_usage(usage: &Value) -> Usage {
    let count = |pointer: &str| usage.pointer(pointer).and_then(Value::as_u64);
    let first = |pointers: &[&str]| pointers.iter().find_map(|pointer| count(pointer));
    let read = first(&[
        "/prompt_tokens_details/cached_tokens",
        "/input_tokens_details/cached_tokens",
    ]);
    let write = first(&[
        "/prompt_tokens_details/cache_write_tokens",
        "/input_tokens_details/cache_write_tokens",
    ]);
    let outside = first(&["/cache_read_input_tokens"]);
    let input = first(&["/prompt_tokens", "/input_tokens"]).unwrap();
    let reasoning = first(&[
        "/completion_tokens_details/reasoning_tokens",
        "/output_tokens_details/reasoning_tokens",
        "/output_tokens_details/thinking_tokens",
    ])
    .unwrap_or(0);
    let output = first(&["/completion_tokens", "/output_tokens"]).unwrap_or(0);
    let quantities = [
        (Unit::Input, input - read.unwrap_or(0) - write.unwrap_or(0)),
        (Unit::CacheRead, read.or(outside).unwrap_or(0)),
        (Unit::CacheWrite, write.unwrap_or(0)),
        (
            Unit::CacheWrite1h,
            count("/cache_creation_input_tokens").unwrap_or(0),
        ),
        (Unit::Output, output - reasoning),
        (Unit::Reasoning, reasoning),
    ];
    let mut known = Usage::new();
    for (unit, quantity) in quantities {
        if quantity > 0 {
            known.set(unit, quantity);
        }
    }
    known
}

/// Asks every question at once, each of its own look-alike.
async fn ask_all() -> Vec<(Vendor, String, Foresight, Seen)> {
    let asked = questions().into_iter().map(|(vendor, path, body)| {
        tokio::spawn(async move {
            let seen = ask(vendor, path, &body, &[KEY]).await;
            let foresight = foresee(vendor, path, body.as_bytes(), Case::Good, false).unwrap();
            (vendor, body, foresight, seen)
        })
    });
    let mut answered = Vec::new();
    for task in asked.collect::<Vec<_>>() {
        answered.push(task.await.unwrap());
    }
    answered
}

#[tokio::test]
async fn what_is_foreseen_is_what_the_answer_states() {
    for (_, body, foresight, seen) in ask_all().await {
        assert_eq!((seen.status, seen.is_broken), (200, false), "{body}");
        assert_eq!(read_usage(&seen.usage()), foresight.usage, "{body}");
        assert_eq!(foresight.outcome, Outcome::Ok);
        let model = format!(r#""model":"{}""#, foresight.model);
        assert!(seen.body.contains(&model), "{}", seen.body);
    }
}

#[tokio::test]
async fn a_cost_is_stated_by_openrouter_alone_and_holds_both_parties() {
    for (vendor, body, foresight, seen) in ask_all().await {
        let usage = seen.usage();
        let number = |pointer: &str| {
            let number = usage.pointer(pointer).filter(|number| !number.is_null());
            number.map(|number| Usd::from_json_number(&number.to_string()).unwrap())
        };
        let upstream = number("/cost_details/upstream_inference_cost").unwrap_or_default();
        let stated = number("/cost").map(|cost| (cost + upstream).normalize());
        assert_eq!(stated, foresight.charged.map(Usd::normalize), "{body}");
        assert_eq!(stated.is_some(), vendor == Vendor::OpenRouter);
    }
}

/// Asks how a job is, at a URL of the answers', until it has ended.
async fn follow(upstream: &str, url: &Value) -> Value {
    let path = url.as_str().unwrap().strip_prefix(upstream).unwrap();
    loop {
        let seen = ask_at(upstream, path, "", &[KEY]).await;
        let told: Value = serde_json::from_str(&seen.body).unwrap();
        let status = told["status"].as_str().unwrap();
        if !["starting", "processing", "IN_QUEUE", "IN_PROGRESS"].contains(&status) {
            return told;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const LLAMA: &str = "/v1/models/meta/meta-llama-3-70b-instruct/predictions";
const PROMPT: &str = r#"{"input":{"prompt":"Where is the log streamed?"}}"#;

/// What the metrics of a prediction come to.
fn metered(prediction: &Value) -> Usage {
    let metrics = &prediction["metrics"];
    let named = [
        ("predict_time", Unit::ComputeSecond),
        ("input_token_count", Unit::Input),
        ("output_token_count", Unit::Output),
        ("image_count", Unit::Image),
    ];
    let stated = named.iter().filter(|(name, _)| !metrics[*name].is_null());
    stated.fold(Usage::new(), |usage, (name, unit)| {
        let quantity: rust_decimal::Decimal = metrics[*name].to_string().parse().unwrap();
        usage.with(*unit, quantity)
    })
}

#[tokio::test]
async fn a_prediction_is_followed_to_the_end_that_was_foreseen() {
    let lookalike = LookAlike::start(Vendor::Replicate).await.unwrap();
    let (_, upstream) = lookalike.upstreams().next().unwrap();
    let failing = Case::ErrorInStream;
    for (case, status, outcome) in [
        (Case::Good, "succeeded", Outcome::Ok),
        (failing, "failed", Outcome::JobFailed),
    ] {
        let headers = [KEY, (CASE_HEADER, case.as_str())];
        let seen = ask_at(&upstream, LLAMA, PROMPT, &headers).await;
        let created: Value = serde_json::from_str(&seen.body).unwrap();
        assert_eq!((seen.status, &created["status"]), (201, &"starting".into()));
        assert!(created.get("metrics").is_none(), "{created}");
        let ended = follow(&upstream, &created["urls"]["get"]).await;
        assert_eq!(
            (&ended["id"], &ended["status"]),
            (&created["id"], &status.into())
        );
        let foresight = foresee_work(
            Vendor::Replicate,
            LLAMA,
            PROMPT.as_bytes(),
            case,
            true,
            false,
        )
        .unwrap();
        assert_eq!(
            (foresight.outcome, foresight.usage),
            (outcome, metered(&ended))
        );
    }
}

#[tokio::test]
async fn a_prediction_that_is_waited_for_comes_with_its_metrics() {
    let path = "/v1/models/black-forest-labs/flux-schnell/predictions";
    let body = r#"{"input":{"prompt":"a cat","num_outputs":3}}"#;
    let seen = ask(Vendor::Replicate, path, body, &[KEY, ("prefer", "wait")]).await;
    let ended: Value = serde_json::from_str(&seen.body).unwrap();
    assert_eq!((seen.status, &ended["status"]), (201, &"succeeded".into()));
    assert_eq!(seen.header("preference-applied"), "wait");
    let foresight = foresee_work(
        Vendor::Replicate,
        path,
        body.as_bytes(),
        Case::Good,
        true,
        false,
    )
    .unwrap();
    assert_eq!(foresight.usage, metered(&ended));
    assert_eq!(foresight.charged, Usd::from_json_number("0.009"));
}

#[tokio::test]
async fn a_prediction_that_has_not_begun_can_be_cancelled() {
    let lookalike = LookAlike::start(Vendor::Replicate).await.unwrap();
    let (_, upstream) = lookalike.upstreams().next().unwrap();
    let slow = [KEY, (CASE_HEADER, Case::Slow.as_str())];
    let created = ask_at(&upstream, LLAMA, PROMPT, &slow).await;
    let created: Value = serde_json::from_str(&created.body).unwrap();
    let path = created["urls"]["cancel"].as_str().unwrap();
    let path = path.strip_prefix(&upstream).unwrap();
    let cancelled = ask_at(&upstream, path, "{}", &[KEY]).await;
    let cancelled: Value = serde_json::from_str(&cancelled.body).unwrap();
    assert_eq!(cancelled["status"], "canceled");
    assert!(cancelled.get("started_at").is_none(), "{cancelled}");
}

#[tokio::test]
async fn fal_states_what_it_bills_in_a_header_alone() {
    let lookalike = LookAlike::start(Vendor::Fal).await.unwrap();
    let upstreams: Vec<(&str, String)> = lookalike.upstreams().collect();
    let [("fal", run), ("fal-queue", queue)] = &upstreams[..] else {
        panic!("{upstreams:?}");
    };
    let (path, body) = ("/fal-ai/flux/dev", r#"{"prompt":"a cat","num_images":2}"#);
    let foresight =
        foresee_work(Vendor::Fal, path, body.as_bytes(), Case::Good, true, false).unwrap();
    let billed = Usage::new()
        .with(Unit::BillableUnit, 2)
        .with(Unit::Image, 2);
    assert_eq!(foresight.usage, billed);
    assert_eq!(foresight.charged, Usd::from_json_number("0.05"));
    let waited = ask_at(run, path, body, &[KEY]).await;
    assert_eq!(waited.header("x-fal-billable-units"), "2");

    let submitted = ask_at(queue, path, body, &[KEY]).await;
    let submitted: Value = serde_json::from_str(&submitted.body).unwrap();
    assert_eq!(submitted["status"], "IN_QUEUE");
    let own = format!("{queue}/fal-ai/flux/requests/");
    assert!(
        submitted["response_url"]
            .as_str()
            .unwrap()
            .starts_with(&own)
    );
    let ended = follow(queue, &submitted["status_url"]).await;
    assert_eq!(ended["status"], "COMPLETED");
    let result = ended["response_url"].as_str().unwrap();
    let result = ask_at(
        queue,
        result.strip_prefix(queue.as_str()).unwrap(),
        "",
        &[KEY],
    )
    .await;
    assert_eq!(result.header("x-fal-billable-units"), "2");
    let result: Value = serde_json::from_str(&result.body).unwrap();
    assert_eq!(result["images"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn openai_streams_usage_only_if_it_is_asked_for() {
    let body = question("gpt-4o-mini", r#","stream":true"#);
    let seen = ask(Vendor::OpenAi, "/v1/chat/completions", &body, &[KEY]).await;
    assert!(!seen.body.contains("usage"), "{}", seen.body);
    assert!(seen.body.ends_with("data: [DONE]\n\n"));
    assert_eq!(
        seen.header("content-type"),
        "text/event-stream; charset=utf-8"
    );
}

#[tokio::test]
async fn openrouter_comments_before_it_answers() {
    let body = question("google/gemini-2.5-flash", r#","stream":true"#);
    let seen = ask(
        Vendor::OpenRouter,
        "/api/v1/chat/completions",
        &body,
        &[KEY],
    )
    .await;
    assert!(seen.body.starts_with(": OPENROUTER PROCESSING\n\n"));
    let generation = seen.header("x-generation-id");
    assert!(seen.events().iter().all(|event| event["id"] == generation));
}

#[tokio::test]
async fn troubles_look_like_the_vendors_own() {
    let told = |case| [KEY, (CASE_HEADER, Case::as_str(case))];
    let cases = [
        (Case::RateLimited, [429, 429, 429], "rate"),
        (Case::QuotaExhausted, [429, 400, 402], "credit|quota"),
        (
            Case::Overloaded,
            [503, 529, 502],
            "server_error|overloaded_error|provider_unavailable",
        ),
    ];
    for (case, statuses, words) in cases {
        for ((vendor, path, model), status) in [
            (Vendor::OpenAi, "/v1/chat/completions", "gpt-4o-mini"),
            (Vendor::Anthropic, "/v1/messages", "claude-opus-5-5"),
            (
                Vendor::OpenRouter,
                "/api/v1/chat/completions",
                "google/gemini-2.5-flash",
            ),
        ]
        .into_iter()
        .zip(statuses)
        {
            let seen = ask(vendor, path, &question(model, ""), &told(case)).await;
            assert_eq!(seen.status, status, "{vendor:?} {case:?}");
            let body = serde_json::from_str::<Value>(&seen.body).unwrap();
            assert!(body.get("error").is_some());
            assert!(
                words.split('|').any(|word| seen.body.contains(word)),
                "{}",
                seen.body
            );
        }
    }
}

#[tokio::test]
async fn a_stream_can_fail_or_break_in_the_middle() {
    let stream = r#","stream":true"#;
    for (vendor, path, model) in [
        (Vendor::OpenAi, "/v1/chat/completions", "gpt-4o-mini"),
        (Vendor::Anthropic, "/v1/messages", "claude-haiku-5-5"),
        (
            Vendor::OpenRouter,
            "/api/v1/chat/completions",
            "google/gemini-2.5-flash",
        ),
    ] {
        let body = question(model, stream);
        let failing = [KEY, (CASE_HEADER, "error-in-stream")];
        let seen = ask(vendor, path, &body, &failing).await;
        assert_eq!((seen.status, seen.is_broken), (200, false));
        assert!(
            seen.events().last().unwrap().get("error").is_some(),
            "{}",
            seen.body
        );

        let seen = ask(vendor, path, &body, &[KEY, (CASE_HEADER, "truncated")]).await;
        assert_eq!((seen.status, seen.is_broken), (200, true));
        assert!(!seen.events().is_empty());
    }
}

#[tokio::test]
async fn what_cannot_be_answered_is_refused_in_the_vendors_words() {
    let path = "/v1/chat/completions";
    let body = question("gpt-4o-mini", "");
    for (path, body, headers, status) in [
        (path, body.as_str(), &[][..], 401),
        (path, &question("gpt-none", ""), &[KEY], 404),
        (path, &question("text-embedding-3-small", ""), &[KEY], 404),
        (path, "{", &[KEY], 400),
        ("/v1/none", &body, &[KEY], 404),
    ] {
        let seen = ask(Vendor::OpenAi, path, body, headers).await;
        assert_eq!(seen.status, status, "{}", seen.body);
        let body = serde_json::from_str::<Value>(&seen.body).unwrap();
        assert_eq!(body["error"]["type"], "invalid_request_error");
    }
}

#[tokio::test]
async fn models_are_listed() {
    for (vendor, path) in [
        (Vendor::OpenAi, "/v1/models"),
        (Vendor::Anthropic, "/v1/models"),
        (Vendor::OpenRouter, "/api/v1/models"),
    ] {
        let seen = ask(vendor, path, "", &[KEY]).await;
        let body = serde_json::from_str::<Value>(&seen.body).unwrap();
        let listed = body["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|model| &model["id"]);
        assert!(
            listed.eq(Model::all(vendor).map(|model| model.id)),
            "{body}"
        );
    }
}

#[tokio::test]
async fn a_short_answer_is_compressed_for_those_who_accept_it() {
    let body = question("claude-haiku-5-5", "");
    let lookalike = play::Reply::json(StatusCode::OK, body.clone());
    let accepting = HeaderMap::from_iter([(
        http::header::ACCEPT_ENCODING,
        http::HeaderValue::from_static("gzip"),
    )]);
    let response = lookalike.into_response(&accepting);
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let zipped = response.into_body().collect().await.unwrap().to_bytes();
    let mut unzipped = String::new();
    std::io::Read::read_to_string(
        &mut flate2::read::GzDecoder::new(&zipped[..]),
        &mut unzipped,
    )
    .unwrap();
    assert_eq!(unzipped, body);
}
