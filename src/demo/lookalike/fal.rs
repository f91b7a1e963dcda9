//! fal's bytes: endpoints that are waited for (`fal.run`), and the queue (`queue.fal.run`).
//!
//! Source: <https://fal.ai/docs/model-apis>, as of 2026-11. What a run is billed stands in a
//! header, in units of the endpoint's own. A job's follow-ups go without the further parts of
//! its endpoint's name, so that its result alone cannot be priced.

use std::time::Duration;

use http::StatusCode;
use http::request::Parts;
use serde_json::{Value, json};
use uuid::Uuid;

use super::play::Reply;
use super::work::{Fate, Job, Maker, Makes, Progress, Work, merged, seconds};
use super::{Case, Refusal, Site, Stamp, Vendor, has_key, overload_status, quota_status};
use crate::clock;

/// How long it takes to be put in the queue.
const SUBMIT_TIME: Duration = Duration::from_millis(10);

/// The work that is asked of an endpoint, at either host.
pub(super) fn order(path: &str, body: &[u8], case: Case) -> Result<Work, Refusal> {
    let endpoint = path.trim_matches('/');
    let maker = Maker::find(Vendor::Fal, endpoint)
        .ok_or_else(|| Refusal::NoSuchModel(endpoint.to_owned()))?;
    let input = serde_json::from_slice(body).map_err(|_| Refusal::Malformed)?;
    Ok(Work::new(maker, input, case))
}

pub(super) fn reply(site: &Site, head: &Parts, body: &[u8], stamp: &Stamp) -> Reply {
    if !has_key(&head.headers) {
        return refuse(&Refusal::NoKey);
    }
    let path = head.uri.path();
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (is_queue, method) = (site.route == "fal-queue", head.method.as_str());
    let known = |id: &str| site.jobs.find(id);
    match (method, &segments[..]) {
        ("GET", [_, _, "requests", id, "status"]) if is_queue => match known(id) {
            Some(job) => status(site, &job),
            None => refuse(&Refusal::NoSuchPath),
        },
        ("GET", [_, _, "requests", id]) if is_queue => match known(id) {
            Some(job) => result(&job),
            None => refuse(&Refusal::NoSuchPath),
        },
        ("POST", _) => run(site, head, body, stamp, is_queue),
        _ => refuse(&Refusal::NoSuchPath),
    }
}

fn run(site: &Site, head: &Parts, body: &[u8], stamp: &Stamp, is_queue: bool) -> Reply {
    let case = Case::of(&head.headers);
    let work = match order(head.uri.path(), body, case) {
        Ok(work) => work,
        Err(refusal) => return refuse(&refusal),
    };
    let id = request_id(stamp);
    match case {
        Case::RateLimited => detail(
            StatusCode::TOO_MANY_REQUESTS,
            "Reached the limit of concurrent requests: 2",
        ),
        Case::QuotaExhausted => detail(
            quota_status(Vendor::Fal),
            "User is locked. Reason: Exhausted balance. Top up your balance at \
             fal.ai/dashboard/billing.",
        ),
        Case::Overloaded => infrastructure(
            overload_status(Vendor::Fal),
            "Failed to schedule a runner",
            "runner_scheduling_failure",
        ),
        Case::ErrorInStream if !is_queue => infrastructure(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Internal server error",
            "runner_server_error",
        ),
        _ if is_queue => {
            let job = Job::new(id.clone(), work);
            let submitted = merged(
                json!({"status": "IN_QUEUE", "request_id": id, "queue_position": 0}),
                urls(site, &job),
            );
            site.jobs.add(job);
            let mut reply = Reply::json(StatusCode::OK, submitted.to_string());
            reply.latency = SUBMIT_TIME;
            reply
        }
        _ => {
            let mut reply = output(&work, &id);
            reply.latency = work.queue + work.run();
            reply
        }
    }
    .with("x-fal-request-id", &id)
}

pub(super) fn refuse(refusal: &Refusal) -> Reply {
    match refusal {
        Refusal::NoSuchPath => detail(StatusCode::NOT_FOUND, "Request not found"),
        Refusal::NoKey => detail(
            StatusCode::UNAUTHORIZED,
            "Authentication is required to access this application",
        ),
        Refusal::TooLong => detail(StatusCode::PAYLOAD_TOO_LARGE, "Payload too large"),
        Refusal::Malformed => detail(StatusCode::UNPROCESSABLE_ENTITY, "Invalid JSON"),
        Refusal::NoSuchModel(name) => detail(
            StatusCode::NOT_FOUND,
            &format!("Application \"{name}\" not found"),
        ),
    }
}

fn detail(status: StatusCode, detail: &str) -> Reply {
    Reply::json(status, json!({"detail": detail}).to_string())
}

/// An error of the vendor's own machines.
fn infrastructure(status: StatusCode, detail: &str, kind: &str) -> Reply {
    let error = json!({"detail": detail, "error_type": kind});
    Reply::json(status, error.to_string())
        .with("x-fal-error-type", kind)
        .with("x-fal-retryable", "true")
}

fn request_id(stamp: &Stamp) -> String {
    let id = Uuid::try_parse(&stamp.id).unwrap_or_default();
    id.hyphenated().to_string()
}

/// The URLs of a job's follow-ups.
fn urls(site: &Site, job: &Job) -> Value {
    let mut names = job.work.maker.id.split('/');
    let (owner, alias) = (names.next().unwrap_or(""), names.next().unwrap_or(""));
    let own = format!("{}/{owner}/{alias}/requests/{}", site.origin, job.id);
    json!({
        "response_url": own,
        "status_url": format!("{own}/status"),
        "cancel_url": format!("{own}/cancel"),
    })
}

fn status(site: &Site, job: &Job) -> Reply {
    let (status, told) = match job.progress(clock::wall()) {
        Progress::Queued => {
            let told = json!({"status": "IN_QUEUE", "queue_position": 0});
            (StatusCode::ACCEPTED, told)
        }
        Progress::Running => (StatusCode::ACCEPTED, json!({"status": "IN_PROGRESS"})),
        Progress::Ended | Progress::Cancelled => {
            let run = json!({"inference_time": seconds(job.work.run())});
            let ended = json!({"status": "COMPLETED", "metrics": run});
            let failure = match job.work.fate {
                Fate::Made => json!({}),
                Fate::Failed => json!({
                    "error": "Runner disconnected",
                    "error_type": "runner_disconnected",
                }),
            };
            (StatusCode::OK, merged(ended, failure))
        }
    };
    let told = merged(told, json!({"request_id": job.id}));
    let told = merged(told, urls(site, job)).to_string();
    Reply::json(status, told).with("x-fal-request-id", &job.id)
}

fn result(job: &Job) -> Reply {
    let reply = if job.progress(clock::wall()) != Progress::Ended {
        detail(StatusCode::BAD_REQUEST, "Request is still in progress")
    } else if job.work.fate == Fate::Failed {
        infrastructure(
            StatusCode::SERVICE_UNAVAILABLE,
            "Runner disconnected",
            "runner_disconnected",
        )
    } else {
        output(&job.work, &job.id)
    };
    reply.with("x-fal-request-id", &job.id)
}

/// What was made, with the units that are billed.
fn output(work: &Work, id: &str) -> Reply {
    let made = match work.maker.makes {
        Makes::Videos(_) => json!({
            "video": {
                "url": format!("https://v3.fal.media/files/{id}/output.mp4"),
                "content_type": "video/mp4",
                "file_name": "output.mp4",
                "file_size": 8_034_121,
            },
        }),
        Makes::Images | Makes::Text => {
            let image = |index| {
                json!({
                    "url": format!("https://v3.fal.media/files/{id}/{index}.jpg"),
                    "width": 1024,
                    "height": 768,
                    "content_type": "image/jpeg",
                })
            };
            json!({
                "images": (0..work.count).map(image).collect::<Vec<Value>>(),
                "timings": {"inference": seconds(work.run())},
                "seed": work.seed,
                "has_nsfw_concepts": vec![false; usize::try_from(work.count).unwrap_or(1)],
                "prompt": work.input.get("prompt"),
            })
        }
    };
    Reply::json(StatusCode::OK, made.to_string())
        .with("x-fal-billable-units", work.units().to_string())
}
