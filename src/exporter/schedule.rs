//! When periodic work runs: named tasks, each with a cron expression of six fields in UTC.
//!
//! In go [`Task`]s; out comes `taffrail_schedule_runs_total` and the time of the last success, by
//! task. A task also runs once when the process starts, never twice at a time, and not on the
//! second: a fleet whose clocks agree would come all at once. A run that fails or panics is logged
//! and counted, and the next one comes all the same.
//!
//! tokio-cron-scheduler knows when; overlap, chance and the end are minded here, because it does
//! not mind them. Its tasks of a fixed interval stop for good after a clock that jumped; those of
//! a cron expression, the only ones used here, do not.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use croner::parser::{CronParser, Seconds, Year};
use tokio::sync::Mutex;
use tokio_cron_scheduler::job::JobCreator;
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock;
use crate::metrics::{Metrics, RunResult};

/// The run at the start begins within this time.
const START_JITTER_MAX: Duration = Duration::from_secs(1);

/// What reads cron expressions as the scheduler does: six fields, and where both days are given, both
/// must match.
pub fn cron_parser() -> CronParser {
    CronParser::builder()
        .seconds(Seconds::Required)
        .year(Year::Disallowed)
        .dom_and_dow(true)
        .build()
}

/// When periodic work runs. Where an expression names days of the month and days of the week, a day
/// must be both.
#[derive(
    Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// When balances are read: a cron expression of six fields, the first one seconds, in UTC.
    pub balances: String,
    /// When prices are refreshed: a cron expression of six fields, in UTC.
    pub prices: String,
    /// When bills are held against what was metered: a cron expression of six fields, in UTC. It
    /// happens when the exporter starts as well.
    pub reconcile: String,
    /// When providers are asked what requests cost whose cost is unknown or an estimate: a cron
    /// expression of six fields, in UTC. It happens when the exporter starts as well.
    pub receipts: String,
    /// When partitions are made ahead and what is too old is dropped: a cron expression of six
    /// fields, in UTC. It happens when the exporter starts as well.
    pub housekeeping: String,
    /// A run begins within this time after the moment that its expression names, so that a fleet
    /// does not come all at once.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub jitter: Duration,
    /// How long a run that reads balances or refreshes prices may take in all.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub timeout: Duration,
    /// How long a single call of a billing or price API may take.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub call_timeout: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            balances: "0 0 */6 * * *".to_owned(),
            prices: "0 30 3 * * *".to_owned(),
            reconcile: "0 40 */6 * * *".to_owned(),
            receipts: "0 5/10 * * * *".to_owned(),
            housekeeping: "0 15 * * * *".to_owned(),
            jitter: Duration::from_secs(5),
            timeout: Duration::from_mins(5),
            call_timeout: Duration::from_secs(20),
        }
    }
}

/// How a run of a task ends.
pub type Ended = anyhow::Result<()>;

/// A run of a task. It may be dropped at any point, when the process is to end.
pub type Run = Pin<Box<dyn Future<Output = Ended> + Send>>;

/// Something that is done again and again.
pub struct Task {
    /// Its name, as the `task` label.
    pub name: &'static str,
    /// When: a cron expression of six fields, the first one seconds, in UTC.
    pub cron: String,
    /// A run begins within this time after the moment that the expression names.
    pub jitter: Duration,
    /// How long a run may take; one that takes longer has failed.
    pub timeout: Option<Duration>,
    /// Does it once.
    pub run: Box<dyn Fn() -> Run + Send + Sync>,
}

/// An expression that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("schedule.{task} = {cron:?} is not a cron expression of six fields")]
pub struct ScheduleError {
    task: &'static str,
    cron: String,
    #[source]
    source: JobSchedulerError,
}

/// Tasks that run by the clock, until [`Schedule::stop`].
pub struct Schedule {
    stopping: CancellationToken,
    runs: TaskTracker,
}

impl Schedule {
    /// Runs every task soon, and from then on by its expression.
    ///
    /// # Errors
    /// An expression that cannot be read; nothing runs then.
    pub fn start(tasks: Vec<Task>, metrics: &Arc<Metrics>) -> Result<Schedule, ScheduleError> {
        let schedule = Schedule {
            stopping: CancellationToken::new(),
            runs: TaskTracker::new(),
        };
        let mut jobs = Vec::with_capacity(tasks.len());
        let mut starting = Vec::with_capacity(tasks.len());
        for task in tasks {
            metrics.schedule_task(task.name);
            let (name, cron, jitter) = (task.name, task.cron.clone(), task.jitter);
            let runner = Arc::new(Runner {
                task,
                idle: Mutex::new(()),
                stopping: schedule.stopping.clone(),
                metrics: metrics.clone(),
            });
            starting.push(runner.clone());
            let runs = schedule.runs.clone();
            let job = Job::new(&cron, move |_, _| {
                runs.spawn(runner.clone().run_within(jitter));
            });
            jobs.push(job.map_err(|source| ScheduleError {
                task: name,
                cron,
                source,
            })?);
        }
        for runner in starting {
            schedule.runs.spawn(runner.run_within(START_JITTER_MAX));
        }
        let stopping = schedule.stopping.clone();
        schedule.runs.spawn(async move {
            if let Err(error) = tick(jobs, stopping).await {
                tracing::error!(%error, "periodic work runs no more; restart to have it");
            }
        });
        Ok(schedule)
    }

    /// Ends what runs, at once, and lets nothing begin any more.
    pub async fn stop(self) {
        self.stopping.cancel();
        self.runs.close();
        self.runs.wait().await;
    }
}

/// Wakes the jobs at their times.
async fn tick(jobs: Vec<Job>, stopping: CancellationToken) -> Result<(), JobSchedulerError> {
    let mut scheduler = JobScheduler::new().await?;
    scheduler.init().await?;
    for job in jobs {
        // As JobScheduler::add, which also logs what concerns nobody.
        JobCreator::add(&scheduler.context(), job).await?;
    }
    scheduler.start().await?;
    stopping.cancelled().await;
    scheduler.shutdown().await
}

/// A task, and what its runs share.
struct Runner {
    task: Task,
    /// Held by the run that is under way.
    idle: Mutex<()>,
    stopping: CancellationToken,
    metrics: Arc<Metrics>,
}

impl Runner {
    /// One run, which begins within `jitter_max`, unless one is under way.
    async fn run_within(self: Arc<Self>, jitter_max: Duration) {
        let name = self.task.name;
        let Ok(_running) = self.idle.try_lock() else {
            tracing::debug!(task = name, "skipped, because it still runs");
            return self.ended(RunResult::Skipped);
        };
        let Some(()) = self.stopping.run_until_cancelled(pause(jitter_max)).await else {
            return;
        };
        // A task of its own, so that a panic in it is an error like any other.
        let (runner, stopping) = (self.clone(), self.stopping.clone());
        let run = async move {
            let run = (runner.task.run)();
            match runner.task.timeout {
                None => run.await,
                Some(limit) => match tokio::time::timeout(limit, run).await {
                    Ok(ended) => ended,
                    Err(_) => anyhow::bail!("it took longer than {limit:?}"),
                },
            }
        };
        match tokio::spawn(stopping.run_until_cancelled_owned(run)).await {
            Ok(Some(Ok(()))) => self.ended(RunResult::Ok),
            Ok(Some(Err(error))) => {
                let error = format!("{error:#}");
                tracing::warn!(task = name, error, "a periodic task failed; it comes again");
                self.ended(RunResult::Error);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(task = name, %error, "a periodic task failed; it comes again");
                self.ended(RunResult::Error);
            }
        }
    }

    fn ended(&self, result: RunResult) {
        let now = clock::wall();
        self.metrics.schedule_run(self.task.name, result, now);
    }
}

/// Waits a random part of a time.
async fn pause(max: Duration) {
    let nanos = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
    let (_, chance) = clock::new_id().as_u64_pair();
    tokio::time::sleep(Duration::from_nanos(chance % nanos.max(1))).await;
}
