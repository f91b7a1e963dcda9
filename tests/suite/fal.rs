//! fal has several hosts, a client that tells a proxy in a header where a request goes, and jobs
//! whose end is told in two places.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use serde_json::Value;
use taffrail::clock;
use taffrail::fault::Outcome;
use taffrail::provider;
use taffrail::record::{Operation, UnpricedReason, UsageRecord};
use taffrail::usage::{Unit, Usage};

use crate::chat_jobs::exchange;
use crate::support::books::samples;
use crate::support::http::{Seen, ask};
use crate::support::sidecar::{Setup, Sidecar, route};
use crate::support::vendor::{Reply, Vendor};

/// A sidecar in front of an upstream for each host.
struct Fal {
    sidecar: Sidecar,
    /// `fal.run`, `queue.fal.run` and `rest.fal.ai`.
    hosts: [Vendor; 3],
}

const ROUTES: [&str; 3] = ["fal", "fal-queue", "fal-rest"];

impl Fal {
    async fn start() -> Fal {
        let run = Vendor::start(|_| {
            Reply::json(r#"{"images":[{"width":512,"height":512}]}"#)
                .with("x-fal-billable-units", "2.5")
        });
        let queue = Vendor::start(|_| Reply::json(r#"{"status":"IN_QUEUE","request_id":"4711"}"#));
        let rest = Vendor::start(|_| Reply::json("{}"));
        let hosts = [run.await, queue.await, rest.await];
        let routes = ROUTES.iter().zip(&hosts).map(|(name, host)| {
            let provider = provider::builtin(name).unwrap();
            route(name, provider, &host.url())
        });
        let sidecar = Sidecar::start_setup(Setup::new(routes.collect()));
        Fal { sidecar, hosts }
    }

    /// Posts to `path` with these header lines.
    async fn post(&self, path: &str, headers: &[&str]) -> Seen {
        let mut request =
            format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n");
        for line in headers {
            request += line;
            request += "\r\n";
        }
        request += "content-length: 2\r\n\r\n{}";
        ask(self.sidecar.address, request.as_bytes()).await
    }

    /// What each host was asked for.
    fn asked(&self) -> [Vec<String>; 3] {
        self.hosts
            .each_ref()
            .map(|host| host.asked().into_iter().map(|asked| asked.target).collect())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_host_has_a_route_and_all_have_one_name() {
    let fal = Fal::start().await;
    // Twice, so that connections are taken up again: each by its own route.
    for _ in 0..2 {
        for name in ROUTES {
            let path = format!("/{name}/fal-ai/flux/dev?x=1");
            assert_eq!(fal.post(&path, &[]).await.status, 200);
        }
    }
    let target = || vec!["/fal-ai/flux/dev?x=1".to_owned(); 2];
    assert_eq!(fal.asked(), [target(), target(), target()]);
    // A job that was submitted makes its row when it is settled.
    let records = fal.sidecar.records(4).await;
    for record in &records {
        assert_eq!(&*record.provider, "fal");
    }
    let counted = samples(&fal.sidecar.exposition(), "taffrail_units_total");
    let units = counted.iter().filter(|(labels, value)| {
        labels["unit"] == "billable_unit" && !value.is_zero() && labels["provider"] == "fal"
    });
    let units: Vec<String> = units.map(|(_, value)| value.to_string()).collect();
    assert_eq!(units, ["5"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_in_a_header_goes_to_the_upstream_of_its_host() {
    let fal = Fal::start().await;
    for (path, url) in [
        ("/fal-proxy", "https://fal.run/fal-ai/flux/dev"),
        (
            "/fal-proxy/",
            "https://queue.fal.run/fal-ai/flux/dev?fal_webhook=https://x.example/",
        ),
        // What is asked of the proxy itself is not the target's.
        (
            "/fal-proxy?x=1",
            "https://rest.fal.ai/storage/upload/initiate?storage_type=a",
        ),
    ] {
        let header = format!("x-fal-target-url: {url}");
        assert_eq!(fal.post(path, &[&header]).await.status, 200, "{url}");
    }
    let expected = [
        "/fal-ai/flux/dev",
        "/fal-ai/flux/dev?fal_webhook=https://x.example/",
        "/storage/upload/initiate?storage_type=a",
    ];
    assert_eq!(fal.asked(), expected.map(|target| vec![target.to_owned()]));
    // Neither an upload nor a job that has not ended makes a row.
    let records = fal.sidecar.records(1).await;
    for record in &records {
        let seen = (
            &*record.provider,
            &*record.route,
            record.model_requested.as_deref(),
        );
        assert_eq!(seen, ("fal", "/{endpoint}", Some("fal-ai/flux/dev")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_anywhere_else_is_refused_and_nothing_is_sent() {
    let fal = Fal::start().await;
    let evil = fal.hosts[0].url();
    let hostile = [
        "",
        "/fal-ai/flux/dev",
        "fal.run/fal-ai/flux/dev",
        "//fal.run/x",
        // Another scheme.
        "http://fal.run/x",
        "HTTPS://fal.run/x",
        "wss://fal.run/x",
        "file://fal.run/x",
        " https://example.com/x",
        // Another host.
        "https://example.com/x",
        "https://fal.run.example.com/x",
        "https://examplefal.run/x",
        "https://fal.ai/x",
        "https://evil.fal.run/x",
        "https://evil.fal.ai/x",
        "https://example.com/https://fal.run/x",
        "https://example.com?https://fal.run/x",
        "https://example.com#https://fal.run/x",
        "https://127.0.0.1/x",
        "https://[::1]/x",
        "https://[::ffff:127.0.0.1]/x",
        "https://169.254.169.254/latest/meta-data/",
        "https://2130706433/x",
        "https://localhost/x",
        &evil,
        // A user.
        "https://fal.run@example.com/x",
        "https://fal.run:443@example.com/x",
        "https://user@fal.run/x",
        "https://user:password@fal.run/x",
        "https://@fal.run/x",
        // A port.
        "https://fal.run:443/x",
        "https://fal.run:/x",
        "https://fal.run:8443/x",
        // The same host, in another spelling.
        "https://fal.run./x",
        "https://FAL.RUN/x",
        "https://Queue.fal.run/x",
        "https://%66al.run/x",
        "https://fal%2Erun/x",
        "https://fal.run%2f@example.com/x",
        "https://fal.run%00.example.com/x",
        "https:///fal.run/x",
        "https:/fal.run/x",
        "https:fal.run/x",
        "https:\\\\fal.run\\x",
        "https://fal.run\\@example.com/x",
        "https://example.com\\@fal.run/x",
        "https://fal.run\t/x",
        "https://fal.run",
        "https://fal.run?x=/",
        "https://fal.run#/x",
        "https://fal.run/x#@example.com/",
        // Two in one.
        "https://fal.run/x, https://fal.run/y z",
    ];
    for url in hostile {
        let seen = fal
            .post("/fal-proxy", &[&format!("x-fal-target-url: {url}")])
            .await;
        assert_eq!(seen.status, 400, "{url:?}");
        let body: Value = serde_json::from_slice(&seen.body).unwrap();
        let kind = body["error"]["type"].as_str().unwrap();
        assert!(
            ["taffrail_bad_target", "taffrail_bad_path"].contains(&kind),
            "{url:?}: {body}"
        );
    }
    let good = "x-fal-target-url: https://fal.run/a/b";
    for headers in [
        &[][..],
        &[good, good],
        &[good, "X-Fal-Target-Url: https://example.com/"],
    ] {
        let seen = fal.post("/fal-proxy", headers).await;
        assert_eq!(seen.status, 400, "{headers:?}");
        let body = String::from_utf8(seen.body).unwrap();
        assert!(
            body.contains("fal.run, queue.fal.run, rest.fal.ai"),
            "{body}"
        );
    }
    // Only the whole path is that route, and a target means nothing anywhere else.
    assert_eq!(fal.post("/fal-proxy/a/b", &[good]).await.status, 404);
    assert_eq!(fal.asked(), [vec![], vec![], vec![]] as [Vec<String>; 3]);
    let elsewhere = "x-fal-target-url: https://queue.fal.run/a/b";
    assert_eq!(fal.post("/fal/fal-ai/flux", &[elsewhere]).await.status, 200);
    assert_eq!(fal.asked()[0], ["/fal-ai/flux"]);
}

/// The job of the fixtures.
const JOB: &str = "764cabcf-b745-4b3e-ae38-1200304cf45b";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_makes_one_row_of_its_submit_its_status_and_its_result() {
    const SUBMIT: &str =
        r#"{"status":"IN_QUEUE","request_id":"764cabcf-b745-4b3e-ae38-1200304cf45b"}"#;
    let statuses = std::sync::Mutex::new(
        [
            r#"{"status":"COMPLETED","metrics":{"inference_time":3.7}}"#,
            r#"{"status":"IN_PROGRESS"}"#,
            r#"{"status":"IN_QUEUE","queue_position":0}"#,
        ]
        .to_vec(),
    );
    let queue = Vendor::start(move |asked| match asked.method.as_str() {
        "POST" => Reply::json(SUBMIT),
        _ if asked.target.ends_with("/status") => {
            Reply::json(statuses.lock().unwrap().pop().unwrap())
        }
        _ => Reply::json(r#"{"images":[{"width":512,"height":512}]}"#)
            .with("x-fal-billable-units", "2"),
    })
    .await;
    let provider = provider::builtin("fal-queue").unwrap();
    let routes = vec![route("fal-queue", provider, &queue.url())];
    let sidecar = Sidecar::start_setup(Setup::new(routes));
    let request = |method: &str, path: &str| {
        format!("{method} /fal-queue/fal-ai/flux/{path} HTTP/1.1\r\nhost: a\r\n\r\n")
    };
    // The submit names the whole endpoint, what follows only its first two names.
    ask(sidecar.address, request("POST", "schnell").as_bytes()).await;
    for tail in ["/status", "/status", "/status", "", "", "/response"] {
        let follow = request("GET", &format!("requests/{JOB}{tail}"));
        assert_eq!(ask(sidecar.address, follow.as_bytes()).await.status, 200);
    }
    let record = sidecar.records(1).await.remove(0);
    assert_eq!(record.operation, Operation::Prediction);
    assert_eq!(record.outcome, Outcome::Ok);
    assert_eq!(record.model(), Some("fal-ai/flux/schnell"));
    assert_eq!(record.job_id.as_deref(), Some(JOB));
    assert_eq!(record.polls, Some(4));
    let run = record.run_us.map(Duration::from_micros);
    assert_eq!(run, Some(Duration::from_millis(3700)));
    let expected = Usage::new()
        .with(Unit::BillableUnit, 2)
        .with(Unit::Image, 1);
    assert_eq!(record.usage, expected);
    let cost = record.cost_usd.map(|cost| cost.to_string());
    assert_eq!(cost.as_deref(), Some("0.006"));
}

/// What becomes of a job after those calls; none of them is answered with its result.
async fn row_after(cases: &[&str]) -> UsageRecord {
    let (requests, replies): (Vec<_>, Vec<_>) =
        cases.iter().map(|case| exchange("fal-queue", case)).unzip();
    let next = AtomicUsize::new(0);
    let queue = Vendor::start(move |_| replies[next.fetch_add(1, Ordering::Relaxed)].clone()).await;
    let provider = provider::builtin("fal-queue").unwrap();
    let routes = vec![route("fal-queue", provider, &queue.url())];
    let sidecar = Sidecar::start_setup(Setup::new(routes));
    for request in requests {
        ask(sidecar.address, &request).await;
    }
    // A job whose result nobody fetches is settled by what its status told.
    sidecar.jobs.expire(clock::wall() + TimeDelta::hours(2));
    sidecar.records(1).await.remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_stopped_makes_one_row_and_so_does_one_whose_status_is_streamed() {
    let stopped = row_after(&[
        "submit",
        "cancel",
        "status-completed-cancelled",
        "status-completed-cancelled",
        "cancel-too-late",
    ])
    .await;
    assert_eq!(stopped.job_id.as_deref(), Some(JOB));
    assert_eq!(stopped.outcome, Outcome::ClientCancelled);
    assert_eq!(stopped.model(), Some("fal-ai/flux/dev"));
    assert_eq!(stopped.polls, Some(2));
    assert_eq!(stopped.cost_usd, None);
    assert_eq!(stopped.unpriced_reason, Some(UnpricedReason::UsageMissing));

    let streamed = row_after(&["submit", "status-stream"]).await;
    assert_eq!(streamed.job_id.as_deref(), Some(JOB));
    assert_eq!(streamed.outcome, Outcome::Ok);
    assert_eq!(streamed.run_us, Some(2_250_000));
    assert_eq!(streamed.polls, Some(1));
    assert_eq!(streamed.unpriced_reason, Some(UnpricedReason::UsageMissing));
}
