//! Jobs of which this process sees one end and another process the other one: what each knows is
//! exchanged through the store, and the one that submitted the job makes its row.
//!
//! Until the store has it, the end of another's job is an open intent in the journal, as a submit
//! is, so that neither a restart nor a store that is away loses it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::caller::Caller;
use crate::clock;
use crate::metrics::{JobLimit, KeptJob};
use crate::price::PriceBook;
use crate::provider::{JobStage, job_operation};
use crate::record::{Intent, Job, JobEnd, JobHalf, UsageRecord};
use crate::store::{JobNews, JobQuery, Store, StoreError};

use super::{Jobs, Key, OPEN_MAX, is_older, row};

/// How long a job is open before other processes are told of it. Most end sooner.
const TELLING_AGE: Duration = Duration::from_secs(3);

/// How often jobs are exchanged, and how often at least while the store is away.
const INTERVAL: Duration = Duration::from_secs(2);
const INTERVAL_MAX: Duration = Duration::from_secs(30);

/// How many jobs the store is told of by one call.
const JOBS_PER_CALL: usize = 500;

/// The store is asked for a job's end again after this part of the job's age.
const PART_OF_AGE: u32 = 16;

/// How many jobs are remembered that are over.
const OVER_MAX: usize = 10_000;

/// What is known of jobs that this process need not, or need no longer, settle.
#[derive(Default)]
pub(super) struct Others {
    /// Ends of jobs that another process submitted, until the store has them.
    ends: HashMap<Key, End>,
    /// What was last learnt of jobs that need nothing more: a later look that tells no more is no
    /// news. The second map is of older ones.
    over: [HashMap<Key, JobStage>; 2],
}

/// The end of another's job, as an intent that stays open until the store has it.
struct End {
    intent: Intent,
    /// Counts it as waiting.
    _kept: KeptJob,
}

impl Others {
    /// Remembers a job of which nothing more than that stage needs to be told.
    pub(super) fn remember(&mut self, key: Key, stage: JobStage) {
        let [recent, older] = &mut self.over;
        if recent.len() >= OVER_MAX / 2 {
            *older = std::mem::take(recent);
        }
        recent.insert(key, stage);
    }

    /// Whether a look at the job that tells of that stage is news.
    fn is_news(&self, key: &Key, stage: JobStage) -> bool {
        let known = self.ends.get(key).and_then(|end| end_of(&end.intent));
        let known = known.and_then(|end| end.report.job.as_ref());
        let over = self.over.iter().find_map(|jobs| jobs.get(key));
        let known = known.map(|view| view.stage).max(over.copied());
        known.is_none_or(|known| known < stage)
    }
}

fn end_of(intent: &Intent) -> Option<&JobEnd> {
    intent.job.as_ref()?.end.as_deref()
}

impl Jobs {
    /// Goes on with the end of another's job, which was not told before the last process ended.
    pub(super) fn restore_end(&self, intent: Intent) {
        if let Some(job) = &intent.job {
            let key = (intent.provider.clone(), job.id.clone());
            let end = self.waiting(intent);
            self.others().ends.insert(key, end);
        }
    }

    fn waiting(&self, intent: Intent) -> End {
        End {
            _kept: self.ledger.metrics().job_end_waiting(&intent.provider),
            intent,
        }
    }

    /// Keeps what `call` was told of the end of a job that this process did not submit.
    pub(super) fn keep_end(&self, key: Key, call: &UsageRecord, stage: JobStage, end: JobEnd) {
        let mut others = self.others();
        if stage == JobStage::Open || !others.is_news(&key, stage) {
            return;
        }
        let mut end = end;
        let earlier = others.ends.remove(&key).map(|end| end.intent);
        // The same intent, so that there is one to close.
        let id = earlier
            .as_ref()
            .map_or_else(clock::new_id, |intent| intent.id);
        if let Some(job) = earlier.and_then(|intent| intent.job)
            && let Some(earlier) = job.end
        {
            end = super::settled(Some(*earlier), end);
        }
        let intent = Intent {
            id,
            started_at: call.started_at,
            provider: call.provider.clone(),
            operation: job_operation(&call.route),
            method: call.method.clone(),
            route: call.route.clone(),
            model_requested: call.model_requested.clone(),
            // Whoever fetches a job need not be the one who pays for it.
            caller: Caller::default(),
            job: Some(Job {
                id: key.1.clone(),
                http_status: call.http_status,
                end: Some(Box::new(end.clone())),
                ..Job::default()
            }),
        };
        if others.ends.len() >= OPEN_MAX {
            others.remember(key, stage);
            drop(others);
            self.ledger.metrics().job_limited(JobLimit::Ends);
            tracing::warn!(
                ends_max = OPEN_MAX,
                "too many ends of jobs wait for the store; this one becomes a row of its own"
            );
            self.record(intent, None, Some(end));
            return;
        }
        self.ledger.begin(&intent);
        let end = self.waiting(intent);
        others.ends.insert(key, end);
    }

    /// Tells the store of jobs that have been open for longer than `age`, and of ends that wait for
    /// whoever submitted their job; settles what others have seen the end of. Calls nobody if
    /// there are none.
    ///
    /// # Errors
    ///
    /// As [`Store::exchange_jobs`]. What was not told is told by the next call.
    pub async fn exchange(
        self: &Arc<Jobs>,
        store: &Store,
        age: Duration,
    ) -> Result<(), StoreError> {
        for asked in self.questions(clock::wall(), age).chunks(JOBS_PER_CALL) {
            let news = store.exchange_jobs(asked).await?;
            let (jobs, asked) = (self.clone(), asked.to_vec());
            // It writes to the journal.
            tokio::task::spawn_blocking(move || jobs.learn(asked, news))
                .await
                .ok();
        }
        Ok(())
    }

    /// What to ask the store now.
    fn questions(&self, now: DateTime<Utc>, age: Duration) -> Vec<JobQuery> {
        let others = self.others();
        let ends = others.ends.iter().filter(|(_, end)| {
            // Soon after an end there may come a view that tells all.
            end_of(&end.intent).is_some_and(|end| end.is_settled() || is_older(now, end.at, age))
        });
        let mut questions: Vec<JobQuery> = ends
            .map(|(key, end)| self.question(key, Some(&end.intent)))
            .collect();
        for (key, job) in self.lock().iter() {
            let is_due = match job.exchanged_at {
                None => is_older(now, job.intent.started_at, age),
                Some(at) => {
                    let age = now.signed_duration_since(job.intent.started_at).to_std();
                    is_older(now, at, age.unwrap_or_default() / PART_OF_AGE)
                }
            };
            // The store takes one half of a job at a time.
            if is_due && !others.ends.contains_key(key) {
                let is_told = job.exchanged_at.is_some();
                questions.push(self.question(key, (!is_told).then_some(&job.intent)));
            }
        }
        questions
    }

    fn question(&self, (provider, job_id): &Key, intent: Option<&Intent>) -> JobQuery {
        JobQuery {
            provider: provider.to_string(),
            job_id: job_id.clone(),
            half: intent.map(|intent| JobHalf {
                instance: self.instance.clone(),
                deadline_at: match end_of(intent) {
                    None => self.config.deadline_at(intent),
                    Some(_) => None,
                },
                intent: intent.clone(),
            }),
        }
    }

    /// Takes in what the store has answered to these questions.
    fn learn(&self, asked: Vec<JobQuery>, news: Vec<JobNews>) {
        let now = clock::wall();
        for JobQuery {
            provider,
            job_id,
            half,
        } in asked
        {
            let key = (provider.into(), job_id);
            match half {
                Some(half) if half.end().is_some() => self.delivered(key, &half.intent),
                _ => {
                    if let Some(job) = self.lock().get_mut(&key) {
                        job.exchanged_at = Some(now);
                    }
                }
            }
        }
        for news in news {
            self.learn_of(
                (news.provider.into(), news.job_id),
                news.is_recorded,
                news.end,
            );
        }
    }

    /// The store has the end of another's job.
    fn delivered(&self, key: Key, told: &Intent) {
        let mut others = self.others();
        // Unless more was seen meanwhile, which is yet to be told.
        if others.ends.get(&key).map(|end| &end.intent) != Some(told) {
            return;
        }
        others.ends.remove(&key);
        let view = end_of(told).and_then(|end| end.report.job.as_ref());
        let stage = view.map_or(JobStage::Ended, |view| view.stage);
        others.remember(key, stage);
        drop(others);
        self.ledger.abandon(told.id);
    }

    /// There is news of a job that this process has submitted.
    fn learn_of(&self, key: Key, is_recorded: bool, end: Option<JobHalf>) {
        let mut jobs = self.lock();
        if is_recorded {
            let Some(job) = jobs.remove(&key) else { return };
            drop(jobs);
            self.others().remember(key, JobStage::Settled);
            self.ledger.abandon(job.intent.id);
            return;
        }
        let end = end.and_then(|half| half.intent.job).and_then(|job| job.end);
        let (Some(end), Some(job)) = (end, jobs.get_mut(&key)) else {
            return;
        };
        // The other process was asked for it as well, nobody knows how often.
        job.polls = None;
        if !end.is_settled() {
            job.ended.get_or_insert(*end);
            return;
        }
        let Some(mut job) = jobs.remove(&key) else {
            return;
        };
        drop(jobs);
        job.ended = Some(super::settled(job.ended.take(), *end));
        self.settle(job);
    }
}

/// Exchanges jobs with other processes, for ever.
pub async fn attend(jobs: Arc<Jobs>, store: Store) {
    let mut interval = INTERVAL;
    loop {
        tokio::time::sleep(interval).await;
        interval = match jobs.exchange(&store, TELLING_AGE).await {
            Ok(()) => INTERVAL,
            Err(error) => {
                // That the store is away the drain says already.
                match error.is_retryable() {
                    true => tracing::debug!(%error, "jobs are exchanged later"),
                    false => tracing::error!(%error, "jobs cannot be exchanged"),
                }
                (2 * interval).min(INTERVAL_MAX)
            }
        };
    }
}

/// The row of a job whose processes are gone, of what they told of it; `None` if that is nothing.
pub fn row_of_halves(
    prices: &PriceBook,
    submit: Option<JobHalf>,
    end: Option<JobHalf>,
) -> Option<UsageRecord> {
    let seen = end.as_ref().and_then(JobHalf::end).cloned();
    let JobHalf {
        instance, intent, ..
    } = submit.or(end)?;
    Some(row(prices, instance, intent, None, seen))
}
