//! What processes tell each other of jobs through the store.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::record::JobHalf;

use super::query::timestamp;

/// A job that the store is asked about, and what it is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobQuery {
    /// The provider's name.
    pub provider: String,
    /// The provider's id of the job.
    pub job_id: String,
    /// What this process knows of it; `None` once the store has it.
    pub half: Option<JobHalf>,
}

/// What others know of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobNews {
    /// The provider's name.
    pub provider: String,
    /// The provider's id of the job.
    pub job_id: String,
    /// Whether the job has its row.
    pub is_recorded: bool,
    /// What another process has seen of its end.
    pub end: Option<JobHalf>,
}

/// A job without a row that nobody is going to settle any more. One half at least is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverdueJob {
    /// What the process that submitted it knows.
    pub submit: Option<JobHalf>,
    /// What the process that saw its end knows.
    pub end: Option<JobHalf>,
}

/// A [`JobQuery`] as the store takes it. Halves are text, which the store does not read.
#[derive(Debug, Serialize)]
pub(super) struct Told<'a> {
    pub(super) provider: Cow<'a, str>,
    pub(super) job_id: Cow<'a, str>,
    pub(super) id: Option<String>,
    pub(super) submitted_at: Option<String>,
    pub(super) deadline_at: Option<String>,
    pub(super) ended_at: Option<String>,
    pub(super) is_settled: Option<bool>,
    pub(super) submit_half: Option<String>,
    pub(super) end_half: Option<String>,
}

impl<'a> Told<'a> {
    pub(super) fn of(query: &'a JobQuery) -> Told<'a> {
        let half = query.half.as_ref();
        let end = half.and_then(JobHalf::end);
        let text = half.and_then(|half| serde_json::to_string(half).ok());
        let (submit_half, end_half) = match end {
            None => (text, None),
            Some(_) => (None, text),
        };
        let submit = half.filter(|_| end.is_none());
        Told {
            provider: bare(&query.provider),
            job_id: bare(&query.job_id),
            id: half.map(|half| half.intent.id.hyphenated().to_string()),
            submitted_at: submit.map(|half| timestamp(half.intent.started_at)),
            deadline_at: submit.and_then(|half| half.deadline_at).map(timestamp),
            ended_at: end.map(|end| timestamp(end.at)),
            is_settled: end.map(|end| end.is_settled()),
            submit_half,
            end_half,
        }
    }
}

/// A text as rows have it, without NUL bytes, which Postgres cannot hold.
pub(super) fn bare(text: &str) -> Cow<'_, str> {
    match text.contains('\0') {
        true => text.replace('\0', "").into(),
        false => text.into(),
    }
}

/// A [`JobNews`] as the store answers it.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    pub(super) provider: String,
    pub(super) job_id: String,
    pub(super) is_recorded: bool,
    pub(super) end_half: Option<String>,
}

impl Answer {
    pub(super) fn news(self) -> JobNews {
        JobNews {
            provider: self.provider,
            job_id: self.job_id,
            is_recorded: self.is_recorded,
            end: parse(self.end_half.as_deref()),
        }
    }
}

/// An [`OverdueJob`] as the store answers it.
#[derive(Debug, Deserialize)]
pub(super) struct Overdue {
    pub(super) submit_half: Option<String>,
    pub(super) end_half: Option<String>,
}

impl Overdue {
    pub(super) fn job(self) -> OverdueJob {
        OverdueJob {
            submit: parse(self.submit_half.as_deref()),
            end: parse(self.end_half.as_deref()),
        }
    }
}

/// A half; `None` as well if it is of a newer version that words it otherwise.
fn parse(half: Option<&str>) -> Option<JobHalf> {
    let half = serde_json::from_str(half?);
    half.inspect_err(|error| tracing::warn!(%error, "a half of a job is not readable"))
        .ok()
}
