//! Asynchronous jobs that have been accepted and are not settled yet.
//!
//! A job is several exchanges: its submit, polls, and one that is the first to tell all there is
//! to know of it. Each is counted as a control call when it happens; the job makes one row, when
//! it is settled, with the id and the caller of its submit. Until then its intent stays open in
//! the journal, so that a restart goes on with it. `exchange` is about jobs whose ends are seen by
//! different processes.

mod exchange;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use http::HeaderMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::caller::Instance;
use crate::clock;
use crate::fault::Outcome;
use crate::ledger::Ledger;
use crate::metrics::{JobLimit, KeptJob};
use crate::price::{CurrentBook, PriceBook};
use crate::provider::{End, JobStage, JobView, Report};
use crate::proxy::costing::{self, Asked};
use crate::qualifier::Qualifiers;
use crate::record::{Intent, JobEnd, Operation, UsageRecord};

use exchange::Others;
pub use exchange::{attend, row_of_halves};

/// The most jobs that are kept open. One more is recorded as unresolved at once.
const OPEN_MAX: usize = 10_000;

/// Asynchronous jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long a job may go without anyone asking for its end before Taffrail asks itself.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub followup_after: Duration,
    /// How long the half of a job that one process saw waits for the half of another, before the
    /// exporter records what is known; and how long a job that ended waits for its result.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub join_grace: Duration,
    /// The age at which a job whose end was never seen is recorded as `unresolved`: predictions,
    /// queued runs, videos, background responses.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub deadline: Duration,
    /// As `deadline`, for batches, whose own window is a day (`completion_window` of OpenAI's, the
    /// expiry of Anthropic's): Azure's may go on after it, and whoever reads results may take time.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub batch_deadline: Duration,
    /// As `deadline`, for trainings.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub training_deadline: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            followup_after: Duration::from_mins(10),
            join_grace: Duration::from_hours(1),
            deadline: Duration::from_hours(24),
            batch_deadline: Duration::from_hours(72),
            training_deadline: Duration::from_hours(72),
        }
    }
}

impl Config {
    /// The age at which a job of that kind is given up.
    pub fn deadline_of(&self, operation: Operation) -> Duration {
        match operation {
            Operation::Batch => self.batch_deadline,
            Operation::Training => self.training_deadline,
            _ => self.deadline,
        }
    }

    /// When a job is given up, of which that is the intent of its submit; `None` is never.
    fn deadline_at(&self, submit: &Intent) -> Option<DateTime<Utc>> {
        let age = TimeDelta::from_std(self.deadline_of(submit.operation)).ok()?;
        submit.started_at.checked_add_signed(age)
    }
}

/// The open jobs of a process.
pub struct Jobs {
    config: Config,
    ledger: Ledger,
    prices: Arc<CurrentBook>,
    instance: Instance,
    open: Mutex<HashMap<Key, Open>>,
    /// Locked before `open` where both are.
    others: Mutex<Others>,
}

/// Provider and job id.
type Key = (Arc<str>, String);

/// An open job.
struct Open {
    intent: Intent,
    /// How Taffrail can ask for it; unknown after a restart, since keys are kept nowhere.
    follow_up: Option<FollowUp>,
    /// When somebody last asked for it, or submitted it.
    asked_at: DateTime<Utc>,
    /// How often it was asked for; unknown after a restart.
    polls: Option<u32>,
    /// When it was seen to have ended, and what that view told, which was not all.
    ended: Option<JobEnd>,
    /// When the store, which has its intent then, was last asked for its end.
    exchanged_at: Option<DateTime<Utc>>,
    /// Counts it as open.
    _kept: KeptJob,
}

/// A request, through the proxy, that asks how a job is.
#[derive(Debug, Clone)]
pub struct FollowUp {
    /// The path, with the route, and the query.
    pub path: String,
    /// The submitter's key and what goes with it, in memory alone.
    pub headers: HeaderMap,
}

impl Jobs {
    /// No jobs yet.
    pub fn new(
        config: Config,
        ledger: Ledger,
        prices: Arc<CurrentBook>,
        instance: Instance,
    ) -> Jobs {
        Jobs {
            config,
            ledger,
            prices,
            instance,
            open: Mutex::default(),
            others: Mutex::default(),
        }
    }

    /// Goes on with a job of the last process, whose intent is in the journal.
    pub fn restore(&self, intent: Intent) {
        match &intent.job {
            Some(job) if job.end.is_some() => self.restore_end(intent),
            _ => self.open(intent, None, None, None),
        }
    }

    /// How many jobs are open.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Takes on a job that was accepted: the intent of its submit, with the job. `ended` is what was
    /// told if it has ended already and that was not all.
    pub(super) fn accept(
        &self,
        intent: Intent,
        ended: Option<Report>,
        follow_up: Option<FollowUp>,
    ) {
        self.open(intent, Some(0), ended, follow_up);
    }

    fn open(
        &self,
        intent: Intent,
        polls: Option<u32>,
        ended: Option<Report>,
        follow_up: Option<FollowUp>,
    ) {
        let Some(job) = &intent.job else { return };
        let key = (intent.provider.clone(), job.id.clone());
        let mut jobs = self.lock();
        if jobs.contains_key(&key) {
            // A submit that was sent again, to a provider who knows it again.
            drop(jobs);
            self.ledger.abandon(intent.id);
            return;
        }
        let now = clock::wall();
        let job = Open {
            intent,
            follow_up,
            asked_at: now,
            polls,
            ended: ended.map(|report| JobEnd { at: now, report }),
            exchanged_at: None,
            _kept: self.ledger.metrics().job_open(&key.0),
        };
        if jobs.len() >= OPEN_MAX {
            drop(jobs);
            self.ledger.metrics().job_limited(JobLimit::Open);
            tracing::warn!(
                job_id = key.1,
                open_max = OPEN_MAX,
                "too many jobs are open; this one is recorded as unresolved"
            );
            self.settle(job);
            return;
        }
        // Before anybody can see its end: what closes the intent must come after it.
        self.ledger.begin(&job.intent);
        jobs.insert(key, job);
    }

    /// Takes in what `call`, which asked for a job, was told. What is told of the end of a job that
    /// this process did not submit is kept for the one that did.
    pub(super) fn see(&self, call: &UsageRecord, view: JobView, report: Report) {
        let key = (call.provider.clone(), view.id);
        let now = clock::wall();
        let end = JobEnd { at: now, report };
        let mut jobs = self.lock();
        let Some(job) = jobs.get_mut(&key) else {
            drop(jobs);
            self.keep_end(key, call, view.stage, end);
            return;
        };
        job.polls = job.polls.map(|polls| polls.saturating_add(1));
        job.asked_at = now;
        match view.stage {
            JobStage::Open => {}
            JobStage::Ended => {
                job.ended.get_or_insert(end);
            }
            JobStage::Settled => {
                let job = jobs.remove(&key);
                drop(jobs);
                if let Some(mut job) = job {
                    job.ended = Some(settled(job.ended.take(), end));
                    self.settle(job);
                }
            }
        }
    }

    /// Records the jobs that nothing more will be learnt of: those that ended and whose result
    /// nobody fetched in time, and those that have reached the deadline.
    pub fn expire(&self, now: DateTime<Utc>) {
        let is_older = |since, limit| is_older(now, since, limit);
        let expired: Vec<Open> = self
            .lock()
            .extract_if(|_, job| {
                let has_ended = |end: &JobEnd| is_older(end.at, self.config.join_grace);
                job.ended.as_ref().is_some_and(has_ended)
                    || is_older(
                        job.intent.started_at,
                        self.config.deadline_of(job.intent.operation),
                    )
            })
            .map(|(_, job)| job)
            .collect();
        for job in expired {
            self.settle(job);
        }
    }

    /// What to ask for the jobs that nobody has asked for in a while. Each counts as asked for now.
    pub fn due(&self, now: DateTime<Utc>) -> Vec<FollowUp> {
        self.lock()
            .values_mut()
            .filter(|job| is_older(now, job.asked_at, self.config.followup_after))
            .filter_map(|job| {
                job.asked_at = now;
                job.follow_up.clone()
            })
            .collect()
    }

    /// Makes the job's row.
    fn settle(&self, job: Open) {
        self.record(job.intent, job.polls, job.ended);
    }

    fn record(&self, intent: Intent, polls: Option<u32>, ended: Option<JobEnd>) {
        if let Some(accepted) = &intent.job {
            let key = (intent.provider.clone(), accepted.id.clone());
            self.others().remember(key, JobStage::Settled);
        }
        let prices = self.prices.load();
        let record = row(&prices, self.instance.clone(), intent, polls, ended);
        self.ledger.complete(&record);
    }

    /// A poisoned lock is taken all the same: a panic elsewhere must not stop the metering.
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn others(&self) -> MutexGuard<'_, Others> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_older(now: DateTime<Utc>, since: DateTime<Utc>, limit: Duration) -> bool {
    let age = now.signed_duration_since(since).to_std();
    age.is_ok_and(|age| age >= limit)
}

/// The row of a job: of its submit, or of the call that saw its end where that is all there is.
fn row(
    prices: &PriceBook,
    instance: Instance,
    intent: Intent,
    polls: Option<u32>,
    ended: Option<JobEnd>,
) -> UsageRecord {
    let job = intent.job.as_ref();
    let has_submit = job.is_none_or(|job| job.end.is_none());
    let (image_variant, qualifiers) = match job {
        Some(job) => (job.image_variant.clone(), job.qualifiers.clone()),
        None => (None, Qualifiers::default()),
    };
    let mut record = intent.interrupted(instance);
    record.polls = polls;
    record.outcome = Outcome::Unresolved;
    if let Some(JobEnd { at, report }) = ended {
        let duration = at.signed_duration_since(record.started_at).to_std();
        record.duration_us = duration.ok().filter(|_| has_submit).map(clock::micros);
        record.unpriced_reason = None;
        let asked = Asked {
            image_variant: image_variant.as_deref(),
            qualifiers: &qualifiers,
        };
        costing::enter(prices, &mut record, report, asked);
        if record.cost_usd.is_none() && record.unpriced_reason.is_none() {
            record.unpriced_reason = costing::unpriced_without_usage(&record, End::Complete);
        }
    }
    record
}

/// The end of a job that the later of two views settles. An earlier one may have told when it ended
/// and how long it ran, which the one with its usage need not repeat.
fn settled(earlier: Option<JobEnd>, mut later: JobEnd) -> JobEnd {
    let Some(earlier) = earlier else {
        return later;
    };
    if let (Some(view), Some(earlier)) = (&mut later.report.job, earlier.report.job) {
        view.queue = view.queue.or(earlier.queue);
        view.run = view.run.or(earlier.run);
    }
    later.at = earlier.at;
    later
}
