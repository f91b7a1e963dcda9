//! Jobs that are submitted through one process and fetched through another, by the real binary: one
//! row, with the submitter's caller and the fetcher's usage.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{Days, TimeDelta};
use serde_json::Value;
use taffrail::caller::{Caller, Instance};
use taffrail::clock;
use taffrail::fault::Outcome;
use taffrail::provider;
use taffrail::qualifier::Qualifiers;
use taffrail::record::{
    Fidelity, Intent, Job, JobEnd, JobHalf, JobStage, JobView, Operation, Report, UsageRecord,
};
use taffrail::store::{Applied, Config, JobNews, JobQuery, Store};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::golden::fixtures;
use crate::outages::DIFFERENCES;
use crate::postgres::{count, fresh};
use crate::support::binary::{Home, Server, eventually};
use crate::support::http::ask;
use crate::support::postgres::{Cluster, Database, Version};
use crate::support::sidecar::Sidecar;
use crate::support::vendor::{Reply, Vendor};

/// The job of Replicate's fixtures, and its model.
const PREDICTION: &str = "gm3qorzdhgbfurvjtvhg6dckhu";
const MODEL: &str = "meta/meta-llama-3-8b-instruct";

/// The job of fal's fixtures.
const QUEUED: &str = "764cabcf-b745-4b3e-ae38-1200304cf45b";

/// What a fixture's response is.
fn reply(provider: &str, case: &str) -> Reply {
    let fixtures = fixtures(provider);
    let fixture = fixtures.iter().find(|fixture| fixture.name() == case);
    let response = &fixture.unwrap().response;
    let mut reply = Reply::json(response.body.clone());
    if let Some(units) = response.headers.get("x-fal-billable-units") {
        reply = reply.with("x-fal-billable-units", units.to_str().unwrap());
    }
    reply
}

/// Vendors with one job each, which goes on until it is told to end.
struct Vendors {
    replicate: Vendor,
    fal: Vendor,
    is_over: Arc<AtomicBool>,
}

impl Vendors {
    async fn start() -> Vendors {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        let cases = ["create-model", "get-processing", "get-succeeded-tokens"];
        let [create, open, end] = cases.map(|case| reply("replicate", case));
        let replicate = Vendor::start(move |asked| match asked.method.as_str() {
            "POST" => create.clone(),
            _ if over.load(Ordering::Relaxed) => end.clone(),
            _ => open.clone(),
        });
        let cases = ["submit", "status-completed", "result"];
        let [submit, status, result] = cases.map(|case| reply("fal-queue", case));
        let fal = Vendor::start(move |asked| match asked.method.as_str() {
            "POST" => submit.clone(),
            _ if asked.target.ends_with("/status") => status.clone(),
            _ => result.clone(),
        });
        Vendors {
            replicate: replicate.await,
            fal: fal.await,
            is_over,
        }
    }

    /// A home of that team, with the store at `url`.
    fn home(&self, team: &str, url: &str, tables: &str) -> Home {
        let mut home = Home::with(&format!(
            "[providers.replicate]\nupstream = \"{}\"\n\
             [providers.fal-queue]\nupstream = \"{}\"\n\
             [attribution]\nstatic = {{ team = \"{team}\" }}\n{tables}",
            self.replicate.url(),
            self.fal.url(),
        ));
        home.set("STORE__URL", url);
        home
    }

    /// Homes of the teams `web` and `worker` whose store is one file.
    async fn homes_of_a_file(&self) -> (Home, Home) {
        let mut web = self.home("web", "", "");
        let url = format!("sqlite://{}", web.database().display());
        web.set("STORE__URL", &url);
        Store::migrate(&config(&url)).await.unwrap();
        let worker = self.home("worker", &url, "");
        (web, worker)
    }

    fn end_the_prediction(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// A database that is ready to be read.
async fn database() -> Option<Database> {
    let database = fresh().await?;
    Store::migrate(&config(&database.url())).await.unwrap();
    Some(database)
}

fn config(url: &str) -> Config {
    Config {
        url: url.to_owned(),
        ..Config::default()
    }
}

async fn send(server: &Server, method: &str, path: &str, key: &str) {
    let body = if method == "POST" {
        r#"{"input":{"prompt":"Say hi."}}"#
    } else {
        ""
    };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let status = ask(server.proxy, request.as_bytes()).await.status;
    assert!([200, 201].contains(&status), "{method} {path}: {status}");
}

async fn predict(server: &Server) {
    let path = format!("/replicate/v1/models/{MODEL}/predictions");
    send(server, "POST", &path, "r8_submitter").await;
}

async fn poll(server: &Server) {
    let path = format!("/replicate/v1/predictions/{PREDICTION}");
    send(server, "GET", &path, "r8_fetcher").await;
}

/// Submits to fal's queue.
async fn queue(server: &Server) {
    send(
        server,
        "POST",
        "/fal-queue/fal-ai/flux/schnell",
        "submitter",
    )
    .await;
}

/// Asks fal how the job is and, once it has ended, for its result, as fal's client does.
async fn fetch(server: &Server) {
    let path = format!("/fal-queue/fal-ai/flux/requests/{QUEUED}");
    send(server, "GET", &format!("{path}/status"), "fetcher").await;
    send(server, "GET", &path, "fetcher").await;
}

/// Waits for rows; returns the one that there is.
async fn one_row(home: &Home) -> Value {
    let mut rows = Vec::new();
    eventually("there is a row", async || {
        rows = home.logs().await;
        !rows.is_empty()
    })
    .await;
    assert_eq!(rows.len(), 1, "{rows:#?}");
    rows.remove(0)
}

fn texts<'a>(row: &'a Value, columns: &[&str]) -> Vec<Option<&'a str>> {
    columns.iter().map(|&column| row[column].as_str()).collect()
}

/// The submitter's caller and model, and the usage that the end told.
fn assert_is_the_prediction(row: &Value) {
    let columns = ["provider", "operation", "outcome", "job_id", "cost_usd"];
    assert_eq!(
        texts(row, &columns),
        [
            Some("replicate"),
            Some("prediction"),
            Some("ok"),
            Some(PREDICTION),
            Some("0.0000392"),
        ]
    );
    assert_eq!(row["model_requested"], MODEL);
    assert_eq!(row["route"], "/v1/models/{owner}/{name}/predictions");
    assert_eq!(row["attribution"]["team"], "web");
    assert!(row["key_fingerprint"].is_string(), "{row:#}");
    assert_eq!(row["input_tokens"], 39);
    assert_eq!(row["output_tokens"], 149);
    assert_eq!(row["run_us"], 2_100_000);
}

fn assert_is_the_queued_one(row: &Value) {
    let columns = ["provider", "operation", "outcome", "job_id", "cost_usd"];
    assert_eq!(
        texts(row, &columns),
        [
            Some("fal"),
            Some("prediction"),
            Some("ok"),
            Some(QUEUED),
            Some("0.003"),
        ]
    );
    assert_eq!(row["model_requested"], "fal-ai/flux/schnell");
    assert_eq!(row["attribution"]["team"], "web");
    assert_eq!(row["run_us"], 3_700_000);
    // Two processes were asked for it.
    assert_eq!(row["polls"], Value::Null);
}

/// Every job has its row, and no half is left.
async fn assert_all_is_recorded(database: &Database, jobs: i64) {
    let recorded = "select count(*) from taffrail.api_jobs
        where recorded_at is not null and submit_half is null and end_half is null";
    assert_eq!(count(database, recorded).await, jobs);
    let all = "select count(*) from taffrail.api_jobs";
    assert_eq!(count(database, all).await, jobs);
    assert_eq!(count(database, DIFFERENCES).await, 0);
}

/// Submits a prediction through one process, polls it 200 times through two of which one is killed
/// on the way, and holds the store to have one row of it.
async fn poll_and_kill(vendors: &Vendors, web: &Home, worker: &Home) {
    let (mut submitter, fetcher) = (web.start().await, worker.start().await);
    predict(&submitter).await;
    for round in 0..99 {
        if round == 50 {
            submitter.process.kill().await;
            submitter = web.start().await;
        }
        poll(&submitter).await;
        poll(&fetcher).await;
    }
    assert_eq!(web.logs().await.len(), 0);
    let open = async || submitter.scrape().await.sum("taffrail_jobs_open", &[]);
    assert_eq!(open().await, 1);
    vendors.end_the_prediction();
    for _ in 0..2 {
        poll(&fetcher).await;
    }
    let row = one_row(web).await;
    assert_eq!(open().await, 0);
    assert_is_the_prediction(&row);
    assert_eq!(row["polls"], Value::Null);
    // Late looks are no news, whoever takes them.
    poll(&submitter).await;
    poll(&fetcher).await;
    fetcher.stop().await;
    submitter.stop().await;
    assert_eq!(one_row(web).await, row);
}

#[tokio::test]
async fn a_prediction_polled_through_two_processes_of_which_one_is_killed_makes_one_row() {
    let Some(database) = database().await else {
        return;
    };
    let vendors = Vendors::start().await;
    let web = vendors.home("web", &database.url(), "");
    let worker = vendors.home("worker", &database.url(), "");
    poll_and_kill(&vendors, &web, &worker).await;
    assert_all_is_recorded(&database, 1).await;
}

#[tokio::test]
async fn so_does_one_of_two_processes_that_share_a_file() {
    let vendors = Vendors::start().await;
    let (web, worker) = vendors.homes_of_a_file().await;
    poll_and_kill(&vendors, &web, &worker).await;
}

#[tokio::test]
async fn jobs_whose_ends_go_to_a_webhook_are_settled_by_follow_ups() {
    const HOOK: &str = "https://hooks.example/?token=canary";
    let vendors = Vendors::start().await;
    let home = vendors.home("web", "", "[jobs]\nfollowup_after = \"1s\"\n");
    let server = home.start().await;
    vendors.end_the_prediction();
    let submit = async |path: String, body: String| {
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer a\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        ask(server.proxy, request.as_bytes()).await;
    };
    let input = format!(r#"{{"input":{{"prompt":"Say hi."}},"webhook":"{HOOK}"}}"#);
    submit(format!("/replicate/v1/models/{MODEL}/predictions"), input).await;
    let path = format!("/fal-queue/fal-ai/flux/schnell?fal_webhook={HOOK}");
    submit(path, r#"{"prompt":"a cat"}"#.to_owned()).await;
    server.stored(2).await;
    server.stop().await;
    let mut rows = home.logs().await;
    rows.sort_by_key(|row| row["provider"].to_string());
    let [queued, prediction] = rows.as_slice() else {
        panic!("{rows:#?}")
    };
    let facts = ["outcome", "job_id", "cost_usd"];
    let expected = [Some("ok"), Some(QUEUED), Some("0.003")];
    assert_eq!(texts(queued, &facts), expected);
    let expected = [Some("ok"), Some(PREDICTION), Some("0.0000392")];
    assert_eq!(texts(prediction, &facts), expected);
    for (path, bytes) in home.files() {
        let holds = memchr::memmem::find(&bytes, b"canary").is_some();
        assert!(!holds, "{}", path.display());
    }
}

#[tokio::test]
async fn a_job_beyond_the_limit_is_unresolved_at_once_and_counted() {
    let sidecar = Sidecar::start(
        "127.0.0.1:9".parse().unwrap(),
        provider::builtin("replicate").unwrap(),
    );
    let restore = |number: u32, stage| {
        let half = half(&number.to_string(), stage).half.unwrap();
        sidecar.jobs.restore(half.intent);
    };
    let limited = || sidecar.sample(r#"taffrail_jobs_limited_total{limit="open"}"#);
    (0..10_000).for_each(|number| restore(number, None));
    assert_eq!((sidecar.jobs.count(), limited()), (10_000, Some(0.0)));
    restore(10_000, None);
    assert_eq!((sidecar.jobs.count(), limited()), (10_000, Some(1.0)));
    let records = sidecar.records(1).await;
    assert_eq!(records[0].outcome, Outcome::Unresolved);
    assert_eq!(records[0].job_id.as_deref(), Some("10000"));
}

#[tokio::test]
async fn both_processes_see_the_end_and_there_is_one_row() {
    let Some(database) = database().await else {
        return;
    };
    let vendors = Vendors::start().await;
    let web = vendors.home("web", &database.url(), "");
    let worker = vendors.home("worker", &database.url(), "");
    let (submitter, fetcher) = (web.start().await, worker.start().await);
    predict(&submitter).await;
    poll(&submitter).await;
    vendors.end_the_prediction();
    poll(&fetcher).await;
    poll(&submitter).await;
    // What waits is told at the end, if not before.
    fetcher.stop().await;
    submitter.stop().await;
    let row = one_row(&web).await;
    assert_is_the_prediction(&row);
    assert_eq!(row["polls"], 2);
    assert_all_is_recorded(&database, 1).await;
}

#[tokio::test]
async fn a_queued_job_is_submitted_through_one_process_and_fetched_through_another() {
    let Some(database) = database().await else {
        return;
    };
    let vendors = Vendors::start().await;
    let web = vendors.home("web", &database.url(), "");
    let worker = vendors.home("worker", &database.url(), "");
    let (submitter, fetcher) = (web.start().await, worker.start().await);
    queue(&submitter).await;
    fetch(&fetcher).await;
    assert_is_the_queued_one(&one_row(&web).await);
    let scrape = submitter.quiet().await;
    let cost = scrape.total("taffrail_cost_usd_total");
    assert!((cost - 0.003).abs() < 1e-12, "{cost}");
    assert!(
        fetcher
            .scrape()
            .await
            .total("taffrail_cost_usd_total")
            .abs()
            < 1e-12
    );
    submitter.stop().await;
    fetcher.stop().await;
    assert_all_is_recorded(&database, 1).await;
}

#[tokio::test]
async fn two_processes_that_share_a_file_make_one_row() {
    let vendors = Vendors::start().await;
    let (web, worker) = vendors.homes_of_a_file().await;
    let (submitter, fetcher) = (web.start().await, worker.start().await);
    queue(&submitter).await;
    predict(&submitter).await;
    poll(&submitter).await;
    vendors.end_the_prediction();
    fetch(&fetcher).await;
    poll(&fetcher).await;
    let mut rows = Vec::new();
    eventually("there is a row for each", async || {
        rows = web.logs().await;
        rows.len() >= 2
    })
    .await;
    fetch(&submitter).await;
    poll(&fetcher).await;
    submitter.stop().await;
    fetcher.stop().await;
    assert_eq!(web.logs().await, rows);
    let [prediction, queued] = rows.as_slice() else {
        panic!("{rows:#?}")
    };
    assert_is_the_prediction(prediction);
    assert_is_the_queued_one(queued);
}

#[tokio::test]
async fn ends_that_are_seen_while_the_store_is_away_are_joined_after_its_return() {
    let Some(mut cluster) = Cluster::start(Version::Default, &[]).await else {
        return;
    };
    let database = cluster.database().await;
    Store::migrate(&config(&database.url())).await.unwrap();
    let vendors = Vendors::start().await;
    let web = vendors.home("web", &database.url(), "");
    let worker = vendors.home("worker", &database.url(), "");
    cluster.stop_fast().await;
    let (submitter, fetcher) = (web.start().await, worker.start().await);
    queue(&submitter).await;
    fetch(&fetcher).await;
    let waiting =
        async |server: &Server| server.scrape().await.sum("taffrail_job_ends_waiting", &[]);
    assert_eq!(waiting(&fetcher).await, 1);
    // The halves are in the journals.
    submitter.process.kill().await;
    fetcher.process.kill().await;
    let (submitter, fetcher) = (web.start().await, worker.start().await);
    cluster.start_again().await;
    assert_is_the_queued_one(&one_row(&web).await);
    assert_eq!(waiting(&fetcher).await, 0);
    submitter.stop().await;
    fetcher.stop().await;
    assert_all_is_recorded(&database, 1).await;
}

#[tokio::test]
async fn an_exporter_records_the_jobs_of_processes_that_are_gone() {
    const GRACE: &str = "[jobs]\njoin_grace = \"1s\"\n";
    let Some(database) = database().await else {
        return;
    };
    let vendors = Vendors::start().await;
    let mut web = vendors.home("web", &database.url(), GRACE);
    web.set("ROLE", "sidecar");
    let mut worker = vendors.home("worker", &database.url(), GRACE);
    worker.set("ROLE", "sidecar");
    let submitter = web.start().await;
    queue(&submitter).await;
    // It tells what it knows of when it is stopped, and never comes back.
    submitter.stop().await;
    let fetcher = worker.start().await;
    fetch(&fetcher).await;
    // A job that nobody has submitted through Taffrail.
    vendors.end_the_prediction();
    poll(&fetcher).await;
    fetcher.stop().await;
    let waited = "select count(*) from taffrail.api_jobs
        where end_half is not null and recorded_at is null and updated_at < now() - interval '1 s'";
    eventually("the ends have waited", async || {
        count(&database, waited).await == 2
    })
    .await;
    assert_eq!(web.logs().await.len(), 0);
    let mut exporter = vendors.home("exporter", &database.url(), GRACE);
    exporter.set("ROLE", "exporter");
    // Two at a time do no harm.
    let servers = (exporter.start().await, exporter.start().await);
    let mut rows = Vec::new();
    eventually("there is a row for each", async || {
        rows = web.logs().await;
        rows.len() >= 2
    })
    .await;
    let ok = [("task", "overdue_jobs"), ("result", "ok")];
    for server in [servers.0, servers.1] {
        server
            .once("overdue jobs were looked for", |scrape| {
                scrape.sum("taffrail_schedule_runs_total", &ok) > 0
            })
            .await;
        server.stop().await;
    }
    assert_eq!(web.logs().await, rows);
    let [prediction, queued] = rows.as_slice() else {
        panic!("{rows:#?}")
    };
    assert_is_the_queued_one(queued);
    // All that its end told, and nobody's.
    assert_eq!(prediction["job_id"], PREDICTION);
    assert_eq!(prediction["cost_usd"], "0.0000392");
    assert_eq!(prediction["attribution"], serde_json::json!({}));
    assert_eq!(prediction["key_fingerprint"], Value::Null);
    assert_eq!(prediction["duration_us"], Value::Null);
    assert_all_is_recorded(&database, 2).await;
    // Whoever asks for it later makes no second row.
    let fetcher = worker.start().await;
    poll(&fetcher).await;
    fetcher.stop().await;
    assert_eq!(web.logs().await, rows);
    assert_all_is_recorded(&database, 2).await;
}

#[tokio::test]
async fn a_job_that_nobody_fetches_ends_unresolved_although_its_process_is_gone() {
    const GRACE: &str = "[jobs]\njoin_grace = \"1s\"\n";
    let Some(database) = database().await else {
        return;
    };
    let vendors = Vendors::start().await;
    let mut web = vendors.home("web", &database.url(), GRACE);
    web.set("JOBS__FOLLOWUP_AFTER", "3s");
    web.set("JOBS__DEADLINE", "4s");
    let submitter = web.start().await;
    predict(&submitter).await;
    // It tells its deadline with the job.
    submitter.stop().await;
    let late = "select count(*) from taffrail.api_jobs
        where submit_half is not null and deadline_at < now() - interval '1 s'";
    eventually("it is too late", async || count(&database, late).await == 1).await;
    let mut exporter = vendors.home("exporter", &database.url(), GRACE);
    exporter.set("ROLE", "exporter");
    let server = exporter.start().await;
    let row = one_row(&web).await;
    assert_eq!(row["outcome"], "unresolved");
    assert_eq!(row["unpriced_reason"], "incomplete");
    assert_eq!(row["attribution"]["team"], "web");
    // A process that comes back learns that the job has its row.
    web.set("JOBS__DEADLINE", "24h");
    let submitter = web.start().await;
    vendors.end_the_prediction();
    submitter.stop().await;
    server.stop().await;
    assert_eq!(one_row(&web).await, row);
    assert_all_is_recorded(&database, 1).await;
}

/// A half of that job: its submit or, with a stage, its end.
fn half(job_id: &str, stage: Option<JobStage>) -> JobQuery {
    let now = clock::wall();
    let report = |stage| Report {
        outcome: Outcome::Ok,
        error_code: None,
        // Postgres has no text with this in it.
        error_message: Some("\0".to_owned()),
        finish_reason: None,
        model_served: None,
        upstream_provider: None,
        service_tier: None,
        region: None,
        provider_request_id: None,
        image_variant: None,
        qualifiers: Qualifiers::default(),
        parts: Vec::new(),
        stated_cost: None,
        raw_usage: Some(r#"{"a":"\u0000"}"#.to_owned()),
        fidelity: Fidelity::Complete,
        estimated: false,
        job: Some(JobView {
            id: job_id.to_owned(),
            stage,
            queue: None,
            run: None,
        }),
    };
    let end = stage.map(|stage| JobEnd {
        at: now,
        report: report(stage),
    });
    let intent = Intent {
        id: clock::new_id(),
        started_at: now,
        provider: "replicate".into(),
        operation: Operation::Prediction,
        method: "POST".into(),
        route: "/v1/predictions".into(),
        model_requested: None,
        caller: Caller::default(),
        job: Some(Job {
            id: job_id.to_owned(),
            end: end.map(Box::new),
            ..Job::default()
        }),
    };
    JobQuery {
        provider: "replicate".to_owned(),
        job_id: job_id.to_owned(),
        half: Some(JobHalf {
            instance: Instance::default(),
            deadline_at: (stage.is_none()).then_some(now + TimeDelta::hours(1)),
            intent,
        }),
    }
}

fn row_of(query: &JobQuery) -> UsageRecord {
    let half = query.half.clone().unwrap();
    half.intent.interrupted(half.instance)
}

/// Each kind of store, new.
async fn stores() -> (Vec<Store>, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", dir.path().join("taffrail.db").display());
    let mut stores = vec![Store::open(&config(&url)).await.unwrap()];
    if let Some(database) = fresh().await {
        stores.push(Store::open(&config(&database.url())).await.unwrap());
    }
    (stores, dir)
}

#[tokio::test]
async fn the_first_end_that_tells_all_is_kept_until_the_job_has_its_row() {
    let (stores, _dir) = stores().await;
    for store in stores {
        let submit = half("a", None);
        let ask = JobQuery {
            half: None,
            ..submit.clone()
        };
        let asks = [ask.clone(), half("b", None)];
        let news = async |asked: &[JobQuery]| store.exchange_jobs(asked).await.unwrap();
        assert_eq!(news(&asks).await, []);
        let ended = half("a", Some(JobStage::Ended));
        let [first, second] = [(); 2].map(|()| half("a", Some(JobStage::Settled)));
        for (told, kept) in [(&ended, &ended), (&first, &first), (&second, &first)] {
            // It is told again where the answer was lost.
            for _ in 0..2 {
                assert_eq!(news(std::slice::from_ref(told)).await, []);
            }
            let expected = JobNews {
                provider: "replicate".to_owned(),
                job_id: "a".to_owned(),
                is_recorded: false,
                end: kept.half.clone(),
            };
            assert_eq!(news(&asks).await, [expected]);
        }
        // Only what waits in vain is anybody else's.
        let hour = Duration::from_hours(1);
        assert_eq!(store.overdue_jobs(hour).await.unwrap(), []);
        let of_end = store.overdue_jobs(Duration::ZERO).await.unwrap();
        assert_eq!(of_end.len(), 1);
        assert_eq!((&of_end[0].submit, &of_end[0].end), (&None, &first.half));
        assert_eq!(news(std::slice::from_ref(&submit)).await.len(), 1);
        news(&[half("a", None)]).await;
        let mut late = half("c", None);
        late.half.as_mut().unwrap().deadline_at = Some(clock::wall());
        news(&[late]).await;
        let overdue = store.overdue_jobs(Duration::ZERO).await.unwrap();
        // Of those whose end nobody has seen only the one whose deadline is over.
        assert_eq!(overdue.len(), 2);
        let of_both = overdue.iter().find(|job| job.end.is_some()).unwrap();
        assert_eq!((&of_both.submit, &of_both.end), (&submit.half, &first.half));

        // A job has one row, and looks at it may have theirs.
        let mut look = row_of(&second);
        look.id = clock::new_id();
        look.operation = Operation::Control;
        for (record, stored) in [
            (row_of(&submit), 1),
            (row_of(&submit), 0),
            (row_of(&second), 0),
            (look, 1),
        ] {
            let applied = store.apply(&[record]).await.unwrap();
            let expected = Applied {
                stored,
                duplicates: 1 - stored,
                rejected: Vec::new(),
            };
            assert_eq!(applied, expected);
        }
        let both = [row_of(&half("b", None)), row_of(&half("b", None))];
        assert_eq!(store.apply(&both).await.unwrap().stored, 1);
        news(std::slice::from_ref(&second)).await;
        let told = news(&[ask, half("b", None)]).await;
        assert_eq!(told.len(), 2);
        assert!(
            told.iter()
                .all(|news| news.is_recorded && news.end.is_none())
        );
        let late = row_of(&half("c", None));
        assert_eq!(store.apply(&[late]).await.unwrap().stored, 1);
        assert_eq!(store.overdue_jobs(Duration::ZERO).await.unwrap(), []);

        let today = store.today().await.unwrap();
        for (before, dropped) in [(today, 0), (today + Days::new(1), 3), (today, 0)] {
            assert_eq!(store.drop_jobs(before).await.unwrap(), dropped);
        }
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn processes_that_meet_at_the_same_jobs_do_not_block_each_other() {
    let Some(database) = database().await else {
        return;
    };
    let mut processes = JoinSet::new();
    for process in 0..6 {
        let store = Store::open(&config(&database.url())).await.unwrap();
        processes.spawn(async move {
            for round in 0..20 {
                let jobs = (0..40).map(|number| {
                    let job_id = format!("{round}-{number}");
                    let stage = (number % 3 == process % 3).then_some(JobStage::Settled);
                    half(&job_id, stage)
                });
                let mut jobs: Vec<JobQuery> = jobs.collect();
                if process % 2 == 0 {
                    jobs.reverse();
                }
                store.exchange_jobs(&jobs).await.unwrap();
                let records: Vec<UsageRecord> = jobs.iter().map(row_of).collect();
                store.apply(&records).await.unwrap();
            }
            store.close().await;
        });
    }
    processes.join_all().await;
    let rows = "select count(*) from taffrail.api_usage_logs";
    assert_eq!(count(&database, rows).await, 20 * 40);
    assert_all_is_recorded(&database, 20 * 40).await;
}
