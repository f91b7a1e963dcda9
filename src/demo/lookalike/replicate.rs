//! Replicate's bytes: predictions, from their create to their end.
//!
//! Source: <https://replicate.com/docs/reference/http>, as of 2026-11. A job is the same object
//! in every answer about it; its metrics come with its end, its cost never. Only jobs that have
//! not begun can be cancelled here.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use super::play::Reply;
use super::work::{Fate, Job, Maker, Makes, Progress, Work, merged, seconds};
use super::{Case, Refusal, Site, Stamp, Vendor, has_key, overload_status, quota_status};
use crate::clock;

/// How long a create takes that does not wait for the end.
const CREATE_TIME: Duration = Duration::from_millis(15);

/// The work that a create asks for.
pub(super) fn order(path: &str, body: &[u8], case: Case) -> Result<Work, Refusal> {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let body = || serde_json::from_slice::<Value>(body).map_err(|_| Refusal::Malformed);
    let (name, mut body) = match segments[..] {
        ["v1", "predictions"] => {
            let body = body()?;
            let version = body.get("version").and_then(Value::as_str);
            (version.ok_or(Refusal::Malformed)?.to_owned(), body)
        }
        ["v1", "models", owner, name, "predictions"] => (format!("{owner}/{name}"), body()?),
        _ => return Err(Refusal::NoSuchPath),
    };
    let maker = Maker::find(Vendor::Replicate, &name).ok_or(Refusal::NoSuchModel(name))?;
    let input = body.get_mut("input").map(Value::take);
    Ok(Work::new(maker, input.ok_or(Refusal::Malformed)?, case))
}

pub(super) fn reply(site: &Site, head: &Parts, body: &[u8], stamp: &Stamp) -> Reply {
    if !has_key(&head.headers) {
        return refuse(&Refusal::NoKey);
    }
    let path = head.uri.path();
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let found = match (head.method.as_str(), &segments[..]) {
        ("GET", ["v1", "predictions", id]) => site.jobs.find(id),
        ("POST", ["v1", "predictions", id, "cancel"]) => site.jobs.cancel(id),
        ("POST", _) => return create(site, head, body, stamp),
        _ => None,
    };
    match found {
        Some(job) => signed(Reply::json(StatusCode::OK, prediction(site, &job))),
        None => refuse(&Refusal::NoSuchPath),
    }
}

fn create(site: &Site, head: &Parts, body: &[u8], stamp: &Stamp) -> Reply {
    let case = Case::of(&head.headers);
    let work = match order(head.uri.path(), body, case) {
        Ok(work) => work,
        Err(refusal) => return refuse(&refusal),
    };
    match case {
        Case::RateLimited => {
            return problem(
                StatusCode::TOO_MANY_REQUESTS,
                &json!({
                    "detail": "Request was throttled. Your rate limit resets in ~30s.",
                    "status": 429,
                    "retry_after": 30,
                }),
            )
            .with("retry-after", "30")
            .with("ratelimit-remaining", "0")
            .with("ratelimit-reset", "30");
        }
        Case::QuotaExhausted => {
            let detail = "You have insufficient credit to run this model. Go to \
                          https://replicate.com/account/billing#billing to purchase credit. Once \
                          you purchase credit, please wait a few minutes before trying again.";
            return titled(
                quota_status(Vendor::Replicate),
                "Insufficient credit",
                detail,
            );
        }
        Case::Overloaded => {
            let page =
                "<html><head><title>502 Bad Gateway</title></head><body>cloudflare</body></html>";
            return Reply::json(overload_status(Vendor::Replicate), page.to_owned())
                .with("content-type", "text/html; charset=UTF-8");
        }
        _ => {}
    }
    let job = Job::new(id(stamp), work);
    site.jobs.add(job.clone());
    if !waits(&head.headers) {
        let mut reply = signed(Reply::json(StatusCode::CREATED, prediction(site, &job)));
        reply.latency = CREATE_TIME;
        return reply;
    }
    let text = prediction_at(site, &job, job.completed_at());
    let mut reply = signed(Reply::json(StatusCode::CREATED, text));
    reply.latency = job.work.queue + job.work.run();
    reply.with("preference-applied", "wait")
}

/// Whether the caller wants the end in the answer to the create.
fn waits(headers: &HeaderMap) -> bool {
    headers
        .get("prefer")
        .is_some_and(|value| value.as_bytes().starts_with(b"wait"))
}

pub(super) fn refuse(refusal: &Refusal) -> Reply {
    match refusal {
        Refusal::NoSuchPath => titled(
            StatusCode::NOT_FOUND,
            "Not Found",
            "The requested resource could not be found.",
        ),
        Refusal::NoKey => titled(
            StatusCode::UNAUTHORIZED,
            "Unauthenticated",
            "You did not pass a valid authentication token",
        ),
        Refusal::TooLong => titled(
            StatusCode::PAYLOAD_TOO_LARGE,
            "Payload too large",
            "The request is too large.",
        ),
        Refusal::Malformed => titled(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Input validation failed",
            "- input: Invalid type. Expected: object\n",
        ),
        Refusal::NoSuchModel(_) => titled(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid version or not permitted",
            "The specified version does not exist (or perhaps you don't have permission to use \
             it?)",
        ),
    }
}

fn titled(status: StatusCode, title: &str, detail: &str) -> Reply {
    let problem = json!({"title": title, "detail": detail, "status": status.as_u16()});
    self::problem(status, &problem)
}

fn problem(status: StatusCode, problem: &Value) -> Reply {
    Reply::json(status, problem.to_string()).with("content-type", "application/problem+json")
}

/// The headers that every good answer carries.
fn signed(reply: Reply) -> Reply {
    reply
        .with("ratelimit-remaining", "599")
        .with("ratelimit-reset", "1")
}

/// An id of 26 characters.
fn id(stamp: &Stamp) -> String {
    stamp.id.chars().rev().take(26).collect()
}

fn prediction(site: &Site, job: &Job) -> String {
    prediction_at(site, job, clock::wall())
}

/// The object of a job, as it is at that time.
fn prediction_at(site: &Site, job: &Job, now: DateTime<Utc>) -> String {
    let (work, progress) = (&job.work, job.progress(now));
    let is_made = progress == Progress::Ended && work.fate == Fate::Made;
    let has_failed = progress == Progress::Ended && work.fate == Fate::Failed;
    let text = |time: DateTime<Utc>| Value::from(time.to_rfc3339_opts(SecondsFormat::Millis, true));
    let own = format!("{}/v1/predictions/{}", site.origin, job.id);
    let prediction = json!({
        "id": job.id,
        "model": work.maker.id,
        "version": work.maker.version,
        "input": work.input,
        "logs": "",
        "output": if is_made { output(job) } else { Value::Null },
        "data_removed": false,
        "error": if has_failed { Value::from("Model out of memory (E1001)") } else { Value::Null },
        "source": "api",
        "status": match progress {
            Progress::Queued => "starting",
            Progress::Running => "processing",
            Progress::Ended if has_failed => "failed",
            Progress::Ended => "succeeded",
            Progress::Cancelled => "canceled",
        },
        "created_at": text(job.created_at),
        "urls": {
            "cancel": format!("{own}/cancel"),
            "get": own,
            "web": format!("https://replicate.com/p/{}", job.id),
        },
    });
    let times = match (progress, job.cancelled_at) {
        (Progress::Running, _) => json!({"started_at": text(job.started_at())}),
        (Progress::Ended, _) => json!({
            "started_at": text(job.started_at()),
            "completed_at": text(job.completed_at()),
            "metrics": metrics(work),
        }),
        (_, Some(cancelled_at)) => json!({"completed_at": text(cancelled_at), "metrics": {}}),
        (_, None) => json!({}),
    };
    merged(prediction, times).to_string()
}

fn output(job: &Job) -> Value {
    let work = &job.work;
    match work.maker.makes {
        Makes::Text => Value::from(work.pieces.clone()),
        Makes::Images | Makes::Videos(_) => (0..work.count)
            .map(|index| {
                format!(
                    "https://replicate.delivery/xezq/{}/out-{index}.webp",
                    job.id
                )
            })
            .collect(),
    }
}

/// What an ended job states that it consumed.
fn metrics(work: &Work) -> Value {
    let times = json!({
        "predict_time": seconds(work.run()),
        "total_time": seconds(work.queue + work.run()),
    });
    let counts = match work.maker.makes {
        _ if work.fate == Fate::Failed => json!({}),
        Makes::Text => json!({
            "input_token_count": work.input_tokens,
            "output_token_count": work.output_tokens,
            "time_to_first_token": seconds(work.run() / 8),
        }),
        // The models that are billed by the image count their images.
        Makes::Images if work.maker.version == "hidden" => json!({"image_count": work.count}),
        Makes::Images | Makes::Videos(_) => json!({}),
    };
    merged(times, counts)
}
