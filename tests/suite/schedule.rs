//! Periodic work: it runs soon, again and again, never twice at a time, and ends when it is told.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use taffrail::clock;
use taffrail::exporter::schedule::{Ended, Schedule, Task};
use taffrail::metrics::exposition::Format;
use taffrail::metrics::{Config, Metrics};
use tokio::sync::Semaphore;

use crate::support::binary::{Scrape, eventually};

const EVERY_SECOND: &str = "* * * * * *";

fn task<F: Future<Output = Ended> + Send + 'static>(
    name: &'static str,
    cron: &str,
    run: impl Fn() -> F + Send + Sync + 'static,
) -> Task {
    Task {
        name,
        cron: cron.to_owned(),
        jitter: Duration::from_secs(1),
        timeout: None,
        run: Box::new(move || Box::pin(run())),
    }
}

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new(&Config::default(), &[], &[]))
}

fn runs(metrics: &Metrics, task: &str, result: &str) -> u64 {
    let scrape = metrics.encode(Format::Text, clock::instant());
    let scrape = Scrape(String::from_utf8(scrape).unwrap());
    let labels = [("task", task), ("result", result)];
    scrape.sum("taffrail_schedule_runs_total", &labels)
}

#[tokio::test]
async fn a_run_that_is_under_way_is_not_joined_by_another() {
    let metrics = metrics();
    let (gate, is_alone) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicBool::new(true)));
    let (passing, alone) = (gate.clone(), is_alone.clone());
    let slow = task("slow", EVERY_SECOND, move || {
        let (passing, alone) = (passing.clone(), alone.clone());
        async move {
            assert!(alone.swap(false, Ordering::SeqCst));
            passing.acquire().await?.forget();
            alone.store(true, Ordering::SeqCst);
            Ok(())
        }
    });
    let schedule = Schedule::start(vec![slow], &metrics).unwrap();
    eventually("two were skipped", async || {
        runs(&metrics, "slow", "skipped") >= 2
    })
    .await;
    assert_eq!(runs(&metrics, "slow", "ok"), 0);
    gate.add_permits(1);
    eventually("it came to its end and another began", async || {
        runs(&metrics, "slow", "ok") == 1 && !is_alone.load(Ordering::SeqCst)
    })
    .await;
    // That one waits still: it is ended with the rest, and is neither a success nor a failure.
    schedule.stop().await;
    assert_eq!(Arc::strong_count(&gate), 2, "a run goes on");
    assert_eq!(
        (
            runs(&metrics, "slow", "ok"),
            runs(&metrics, "slow", "error")
        ),
        (1, 0)
    );
}

#[tokio::test]
async fn a_run_that_fails_or_panics_is_counted_and_the_next_one_comes() {
    let metrics = metrics();
    let failing = task("failing", EVERY_SECOND, async || {
        Err(anyhow::anyhow!("no luck"))
    });
    let panicking = task("panicking", EVERY_SECOND, async || panic!("no luck"));
    // At its start alone: its time comes on no day soon.
    let yearly = task("yearly", "0 0 0 29 2 *", async || Ok(()));
    let schedule = Schedule::start(vec![failing, panicking, yearly], &metrics).unwrap();
    eventually("each came again", async || {
        runs(&metrics, "failing", "error") >= 2
            && runs(&metrics, "panicking", "error") >= 2
            && runs(&metrics, "yearly", "ok") == 1
    })
    .await;
    schedule.stop().await;
    assert_eq!(runs(&metrics, "failing", "ok"), 0);
}

#[tokio::test]
async fn a_run_that_takes_too_long_has_failed() {
    let metrics = metrics();
    let endless = Task {
        timeout: Some(Duration::from_millis(50)),
        ..task("endless", EVERY_SECOND, std::future::pending)
    };
    let schedule = Schedule::start(vec![endless], &metrics).unwrap();
    eventually("it was ended and came again", async || {
        runs(&metrics, "endless", "error") >= 2
    })
    .await;
    schedule.stop().await;
}

#[tokio::test]
async fn an_expression_that_cannot_be_read_starts_nothing() {
    let bad = task("bad", "every hour", async || Ok(()));
    let error = Schedule::start(vec![bad], &metrics()).err().unwrap();
    assert_eq!(
        error.to_string(),
        "schedule.bad = \"every hour\" is not a cron expression of six fields"
    );
}
