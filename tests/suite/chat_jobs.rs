//! Videos and background responses through the proxy: one row each, whoever asks and however
//! often, and none more for what is no job.

use std::sync::atomic::{AtomicUsize, Ordering};

use chrono::TimeDelta;
use rust_decimal::Decimal;
use taffrail::clock;
use taffrail::fault::Outcome;
use taffrail::provider;
use taffrail::record::{CostSource, Fidelity, Operation, UnpricedReason, UsageRecord};
use taffrail::usage::Unit;

use crate::golden::fixtures;
use crate::support::binary::Home;
use crate::support::books::samples;
use crate::support::http::ask;
use crate::support::sidecar::{Setup, Sidecar, route};
use crate::support::vendor::{Finish, Reply, Vendor};

/// The request of a fixture, as it goes to the proxy, and the answer to it.
pub(crate) fn exchange(folder: &str, case: &str) -> (Vec<u8>, Reply) {
    let fixture = fixtures(folder)
        .into_iter()
        .find(|fixture| fixture.name() == case)
        .unwrap();
    let request = &fixture.request;
    let head = format!(
        "{} /{folder}{} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer sk-1\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        request.word(0),
        request.word(1),
        request.body.len()
    );
    let answer = &fixture.response;
    let is_stream = answer
        .headers
        .get("content-type")
        .is_some_and(|kind| kind == "text/event-stream");
    let mut reply = if is_stream {
        Reply::events(answer.body.clone())
    } else {
        Reply::json(answer.body.clone())
    };
    reply.status = format!("{} Whatever", answer.word(1));
    for (name, value) in &answer.headers {
        if name != "content-type" {
            reply = reply.with(name.as_str(), value.to_str().unwrap());
        }
    }
    ([head.as_bytes(), &request.body].concat(), reply)
}

/// Sends the requests of these fixtures one after the other, each answered as its fixture says but
/// for what `change` changes, and returns the rows that there are then.
async fn rows_but(
    folder: &str,
    cases: &[&str],
    count: usize,
    change: impl Fn(&str, Reply) -> Reply,
) -> (Vec<UsageRecord>, Sidecar) {
    // What is no job makes its row at once, so that no more can be in front of it.
    let last = match folder {
        "openrouter" => "chat-whole",
        "anthropic" => "message-whole-cache",
        _ => "responses-whole",
    };
    let mut requests = Vec::new();
    let mut replies = Vec::new();
    for case in cases.iter().chain([&last]) {
        let (request, reply) = exchange(folder, case);
        requests.push(request);
        replies.push(change(case, reply));
    }
    let next = AtomicUsize::new(0);
    let vendor =
        Vendor::start(move |_| replies[next.fetch_add(1, Ordering::Relaxed)].clone()).await;
    let provider = provider::builtin(folder).unwrap();
    let sidecar = Sidecar::start_setup(Setup::new(vec![route(folder, provider, &vendor.url())]));
    for request in requests {
        ask(sidecar.address, &request).await;
    }
    let mut records = sidecar.records(count + 1).await;
    assert_eq!(records.pop().unwrap().job_id, None);
    (records, sidecar)
}

async fn rows(folder: &str, cases: &[&str], count: usize) -> Vec<UsageRecord> {
    rows_but(folder, cases, count, |_, reply| reply).await.0
}

async fn row(folder: &str, cases: &[&str]) -> UsageRecord {
    rows(folder, cases, 1).await.remove(0)
}

fn cost(record: &UsageRecord) -> Option<String> {
    record.cost_usd.map(|cost| cost.to_string())
}

/// 230 × 0.25 + 22 × 2 dollars for a million.
fn assert_answered(record: &UsageRecord) {
    assert_eq!(record.operation, Operation::Responses);
    assert_eq!(&*record.route, "/v1/responses");
    assert_eq!(record.outcome, Outcome::Ok);
    assert_eq!(record.fidelity, Fidelity::Complete);
    assert_eq!(record.job_id.as_deref(), Some("resp_68a1"));
    assert_eq!(record.model(), Some("gpt-5-mini-2025-08-07"));
    assert_eq!(record.usage.tokens(Unit::Input), Some(230));
    assert_eq!(record.usage.tokens(Unit::Output), Some(22));
    assert_eq!(record.provider_request_id.as_deref(), Some("resp_68a1"));
    assert_eq!(cost(record).as_deref(), Some("0.0001015"));
    assert_eq!(record.cost_source, Some(CostSource::Catalog));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_background_response_makes_one_row_however_often_it_is_asked_for() {
    let cases = [
        "responses-background-queued",
        "responses-background-in-progress",
        "responses-background-poll-truncated",
        "responses-poll-404",
        "responses-background-completed",
        "responses-background-completed",
        "responses-delete",
    ];
    let cut_off = |case: &str, reply: Reply| match case {
        "responses-background-poll-truncated" => reply.finish(Finish::CutOff),
        _ => reply,
    };
    let (records, sidecar) = rows_but("openai", &cases, 1, cut_off).await;
    assert_answered(&records[0]);
    // A call that was told nothing of the job is none of its polls.
    assert_eq!(records[0].polls, Some(3));
    // The polls have not counted its tokens again: 230, and 76 of the last row.
    let counted = samples(&sidecar.exposition(), "taffrail_tokens_total");
    let input = counted
        .iter()
        .filter(|(labels, _)| labels["type"] == "input")
        .map(|(_, value)| *value)
        .sum::<Decimal>();
    assert_eq!(input, Decimal::from(306));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_background_stream_that_is_cut_off_is_settled_by_whoever_asks_next() {
    for (submit, poll) in [
        (
            "responses-background-stream-client-gone",
            "responses-background-attach",
        ),
        (
            "responses-background-stream-truncated",
            "responses-background-completed",
        ),
        (
            "responses-background-unsaid",
            "responses-background-cancel-too-late",
        ),
    ] {
        let cut_off = |case: &str, reply: Reply| match case {
            "responses-background-stream-client-gone" | "responses-background-stream-truncated" => {
                reply.finish(Finish::CutOff)
            }
            _ => reply,
        };
        let (records, _) = rows_but("openai", &[submit, poll], 1, cut_off).await;
        assert_answered(&records[0]);
        assert_eq!(records[0].polls, Some(1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_background_response_that_is_told_at_once_makes_its_row_at_once() {
    let cases = [
        "responses-background-stream",
        "responses-background-completed",
    ];
    let record = row("openai", &cases).await;
    assert_answered(&record);
    assert_eq!(record.polls, None);
    assert!(record.streamed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_background_response_that_does_not_succeed_says_why() {
    let submit = "responses-background-queued";
    let failed = row("openai", &[submit, "responses-background-failed"]).await;
    assert_eq!(failed.outcome, Outcome::JobFailed);
    assert_eq!(failed.error_code.as_deref(), Some("server_error"));
    assert_eq!(cost(&failed), None);
    assert_eq!(failed.unpriced_reason, Some(UnpricedReason::UsageMissing));
    let cancelled = row("openai", &[submit, "responses-background-cancel"]).await;
    assert_eq!(cancelled.outcome, Outcome::ClientCancelled);
    assert_eq!(cancelled.fidelity, Fidelity::Partial);
    assert_eq!(cost(&cancelled), None);
    assert_eq!(
        cancelled.unpriced_reason,
        Some(UnpricedReason::UsageMissing)
    );
    let incomplete = row("openai", &[submit, "responses-background-incomplete"]).await;
    assert_eq!(
        incomplete.finish_reason.as_deref(),
        Some("max_output_tokens")
    );
    assert_eq!(cost(&incomplete).as_deref(), Some("0.0001015"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stored_response_that_is_read_again_makes_no_row() {
    assert_eq!(rows("openai", &["responses-poll"], 0).await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_video_is_charged_when_it_is_made_by_its_seconds_and_size() {
    for (submit, route) in [
        ("video-remix", "/v1/videos/{id}/remix"),
        ("video-edit", "/v1/videos/edits"),
        ("video-extension", "/v1/videos/extensions"),
    ] {
        let cases = [
            submit,
            "video-in-progress",
            "video-completed",
            "video-content",
            "video-completed",
            "video-delete",
        ];
        let record = row("openai", &cases).await;
        assert_eq!(record.operation, Operation::Video);
        assert_eq!(&*record.route, route);
        assert_eq!(record.outcome, Outcome::Ok);
        assert_eq!(record.job_id.as_deref(), Some("video_1"));
        assert_eq!(record.model_requested, None);
        assert_eq!(record.model(), Some("sora-2-pro"));
        assert_eq!(record.polls, Some(2));
        // 8 × 0.5 dollars: the dearer size is in the answer alone.
        assert_eq!(cost(&record).as_deref(), Some("4"));
        assert_eq!(record.cost_source, Some(CostSource::Catalog));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_video_that_is_not_made_says_that_its_cost_is_not_known() {
    for (end, outcome) in [
        ("video-failed", Outcome::JobFailed),
        ("video-blocked", Outcome::ContentFiltered),
    ] {
        let record = row("openai", &["video-create", end]).await;
        assert_eq!(record.outcome, outcome);
        assert!(record.usage.is_empty());
        assert_eq!(cost(&record), None);
        assert_eq!(record.unpriced_reason, Some(UnpricedReason::UsageMissing));
        assert_eq!(record.fidelity, Fidelity::Complete);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_video_behind_a_router_costs_what_its_end_states() {
    let cases = ["video-create", "video-in-progress", "video-poll"];
    let record = row("openrouter", &cases).await;
    assert_eq!(record.operation, Operation::Video);
    assert_eq!(record.model(), Some("google/veo-3"));
    assert_eq!(record.job_id.as_deref(), Some("job-abc"));
    assert_eq!(record.provider_request_id.as_deref(), Some("gen-xyz"));
    assert_eq!(record.http_status, Some(202));
    assert_eq!(record.polls, Some(2));
    assert_eq!(cost(&record).as_deref(), Some("0.5"));
    assert_eq!(record.cost_source, Some(CostSource::Provider));

    let unstated = ["video-create", "video-completed-without-usage"];
    let record = row("openrouter", &unstated).await;
    assert_eq!(record.outcome, Outcome::Ok);
    assert_eq!(record.unpriced_reason, Some(UnpricedReason::UsageMissing));
    let expired = row("openrouter", &["video-create", "video-expired"]).await;
    assert_eq!(expired.outcome, Outcome::JobFailed);
}

#[tokio::test]
async fn the_absolute_urls_of_a_video_lead_back_through_the_proxy() {
    let upstream = Vendor::start(|asked| {
        let own = format!("http://{}", asked.header("host").unwrap());
        Reply::json(format!(
            r#"{{"id":"job-abc","polling_url":"{own}/api/v1/videos/job-abc","status":"completed",
            "unsigned_urls":["{own}/api/v1/videos/job-abc/content?index=0","https://cdn.example/v"]}}"#
        ))
    })
    .await;
    let home = Home::with(&format!(
        "[providers.openrouter]\nupstream = \"{}\"\n",
        upstream.url()
    ));
    let server = home.start().await;
    let request = "GET /openrouter/api/v1/videos/job-abc HTTP/1.1\r\nhost: a\r\n\r\n";
    let seen = ask(server.proxy, request.as_bytes()).await;
    let seen: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
    let own = format!("http://{}/openrouter/api/v1/videos/job-abc", server.proxy);
    assert_eq!(seen["polling_url"], own);
    assert_eq!(
        seen["unsigned_urls"],
        serde_json::json!([format!("{own}/content?index=0"), "https://cdn.example/v"])
    );
}

#[tokio::test]
async fn a_response_that_nobody_asks_for_is_asked_for_by_its_own_path() {
    let (submit, queued) = exchange("openai", "responses-background-queued");
    let (_, completed) = exchange("openai", "responses-background-completed");
    let vendor = Vendor::start(move |asked| match &*asked.method {
        "POST" => queued.clone(),
        _ => completed.clone(),
    })
    .await;
    let mut home = Home::with(&format!(
        "[providers.openai]\nupstream = \"{}\"\n",
        vendor.url()
    ));
    home.set("JOBS__FOLLOWUP_AFTER", "1s");
    let server = home.start().await;
    ask(server.proxy, &submit).await;
    server.stored(1).await;
    server.stop().await;
    let rows = home.logs().await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["outcome"], "ok");
    assert_eq!(rows[0]["cost_usd"], "0.0001015");
    let asked = vendor.asked();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[1].target, "/v1/responses/resp_68a1");
    assert_eq!(asked[1].header("authorization"), Some("Bearer sk-1"));
}

#[tokio::test]
async fn a_follow_up_keeps_the_prefix_the_version_and_the_key_of_its_submit() {
    let (_, queued) = exchange("openai", "responses-background-queued");
    let (_, completed) = exchange("openai", "responses-background-completed");
    let vendor = Vendor::start(move |asked| match &*asked.method {
        "POST" => queued.clone(),
        _ => completed.clone(),
    })
    .await;
    let url = vendor.url();
    let mut home = Home::with(&format!(
        "[providers.azure]\nupstream = \"{url}\"\n\
         [providers.fireworks]\ndialect = \"chat\"\nupstream = \"{url}\"\n"
    ));
    home.set("JOBS__FOLLOWUP_AFTER", "1s");
    let server = home.start().await;
    for (path, key) in [
        ("azure/openai/responses?api-version=preview", "api-key: a"),
        (
            "fireworks/inference/v1/responses",
            "authorization: Bearer f",
        ),
    ] {
        let request = format!(
            "POST /{path} HTTP/1.1\r\nhost: a\r\n{key}\r\ncontent-type: application/json\r\n\
             content-length: 19\r\n\r\n{{\"background\":true}}"
        );
        ask(server.proxy, request.as_bytes()).await;
    }
    server.stored(2).await;
    server.stop().await;
    for row in home.logs().await {
        assert_eq!(row["outcome"], "ok");
    }
    let asked = vendor.asked();
    let mut follow_ups: Vec<_> = asked
        .iter()
        .filter(|asked| asked.method == "GET")
        .map(|asked| {
            let key = ["api-key", "authorization"].map(|name| asked.header(name));
            (asked.target.as_str(), key)
        })
        .collect();
    follow_ups.sort_unstable();
    follow_ups.dedup();
    let expected = [
        (
            "/inference/v1/responses/resp_68a1",
            [None, Some("Bearer f")],
        ),
        (
            "/openai/responses/resp_68a1?api-version=preview",
            [Some("a"), None],
        ),
    ];
    assert_eq!(follow_ups, expected);
}

/// 1000 × 0.075 + 200 × 0.3 dollars for a million: half of the usual price.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_charged_at_its_own_price_when_it_is_over() {
    let cases = [
        "batch-create",
        "batch-in-progress",
        "batch-poll",
        "batch-poll",
    ];
    let record = row("openai", &cases).await;
    assert_eq!(record.operation, Operation::Batch);
    assert_eq!(&*record.route, "/v1/batches");
    assert_eq!(record.outcome, Outcome::Ok);
    assert_eq!(record.job_id.as_deref(), Some("batch_1"));
    assert_eq!(record.service_tier.as_deref(), Some("batch"));
    assert_eq!(record.polls, Some(2));
    assert_eq!(cost(&record).as_deref(), Some("0.000135"));
    assert_eq!(record.cost_source, Some(CostSource::Catalog));

    let cancelled = row("openai", &["batch-create", "batch-cancelled"]).await;
    assert_eq!(cancelled.outcome, Outcome::ClientCancelled);
    assert_eq!(cost(&cancelled).as_deref(), Some("0.0000135"));

    let failed = row("openai", &["batch-create", "batch-failed"]).await;
    assert_eq!(failed.outcome, Outcome::JobFailed);
    assert_eq!(failed.error_code.as_deref(), Some("empty_file"));
    let old = row("openai", &["batch-create", "batch-completed-without-usage"]).await;
    assert_eq!(old.outcome, Outcome::Ok);
    for record in [failed, old] {
        assert_eq!(cost(&record), None);
        assert_eq!(record.unpriced_reason, Some(UnpricedReason::UsageMissing));
    }
}

/// 106 × 1.5 + 44 × 7.5 dollars for a million: half of the usual price.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_usage_is_in_its_results_is_settled_by_whoever_reads_them_whole() {
    let cases = [
        "batch-create",
        "batch-ended",
        "batch-results-truncated",
        "batch-results",
        "batch-results",
    ];
    let cut_off = |case: &str, reply: Reply| match case {
        "batch-results-truncated" => reply.finish(Finish::CutOff),
        _ => reply,
    };
    let (records, sidecar) = rows_but("anthropic", &cases, 1, cut_off).await;
    drop(sidecar);
    let record = &records[0];
    assert_eq!(record.operation, Operation::Batch);
    assert_eq!(record.outcome, Outcome::Ok);
    assert_eq!(record.fidelity, Fidelity::Complete);
    assert_eq!(record.job_id.as_deref(), Some("msgbatch_1"));
    assert_eq!(record.model(), Some("claude-sonnet-4-5-20250929"));
    assert_eq!(record.usage.tokens(Unit::Input), Some(106));
    assert_eq!(record.usage.tokens(Unit::Output), Some(44));
    assert_eq!(cost(record).as_deref(), Some("0.000489"));
    assert_eq!(record.polls, Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_waited_for_beyond_its_own_window_of_a_day() {
    let (records, sidecar) =
        rows_but("openai", &["video-create", "batch-create"], 0, |_, it| it).await;
    assert_eq!(records, []);
    assert_eq!(sidecar.jobs.count(), 2);
    let mut hours = 0;
    for (until, unresolved) in [
        (23, None),
        (25, Some(Operation::Video)),
        (71, None),
        (73, Some(Operation::Batch)),
    ] {
        assert!(hours < until);
        hours = until;
        sidecar.jobs.expire(clock::wall() + TimeDelta::hours(hours));
        let expected = usize::from(unresolved.is_some());
        let records = sidecar.records(expected).await;
        let seen: Vec<(Operation, Outcome)> = records
            .iter()
            .map(|it| (it.operation, it.outcome))
            .collect();
        let expected: Vec<_> = unresolved
            .map(|it| (it, Outcome::Unresolved))
            .into_iter()
            .collect();
        assert_eq!(seen, expected, "after {hours} hours");
    }
    assert_eq!(sidecar.jobs.count(), 0);
}

#[tokio::test]
async fn the_results_of_a_batch_that_nobody_reads_are_read_by_taffrail() {
    let (submit, created) = exchange("anthropic", "batch-create");
    let (_, results) = exchange("anthropic", "batch-results");
    let vendor = Vendor::start(move |asked| match &*asked.method {
        "POST" => created.clone(),
        _ => results.clone(),
    })
    .await;
    let mut home = Home::with(&format!(
        "[providers.anthropic]\nupstream = \"{}\"\n",
        vendor.url()
    ));
    home.set("JOBS__FOLLOWUP_AFTER", "1s");
    let server = home.start().await;
    let submit = String::from_utf8(submit).unwrap();
    let submit = submit.replace(
        "authorization: Bearer sk-1",
        "x-api-key: sk-1\r\nanthropic-version: 2023-06-01",
    );
    ask(server.proxy, submit.as_bytes()).await;
    server.stored(1).await;
    server.stop().await;
    let rows = home.logs().await;
    assert_eq!(rows[0]["cost_usd"], "0.000489");
    let asked = vendor.asked();
    let follow_up = asked.last().unwrap();
    assert_eq!(follow_up.target, "/v1/messages/batches/msgbatch_1/results");
    assert_eq!(follow_up.header("x-api-key"), Some("sk-1"));
    assert_eq!(follow_up.header("anthropic-version"), Some("2023-06-01"));
}
