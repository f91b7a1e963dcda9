//! What Replicate and fal make: images, videos and text, by models that take their time over it.
//!
//! Pure, but for the lock around the jobs that wait for somebody to ask how they are. What a
//! piece of work consumes, how long it takes and what the vendor charges for it follow from the
//! input alone.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use http::StatusCode;
use rust_decimal::Decimal;
use serde_json::{Value, json};

use super::{Case, Foresight, Vendor, overload_status, quota_status, tokens_of};
use crate::clock;
use crate::demo::dice::Dice;
use crate::fault::Outcome;
use crate::money::Usd;
use crate::record::UnpricedReason;
use crate::usage::{Unit, Usage};

/// The most jobs that a look-alike remembers. Vendors forget them too.
const JOBS_MAX: usize = 1_000;

/// How long a job of a slow vendor stays in the queue.
const SLOW_QUEUE: Duration = Duration::from_secs(20);

/// A model that makes something.
#[derive(Debug)]
pub(super) struct Maker {
    pub(super) vendor: Vendor,
    /// Replicate's `owner/name`, fal's endpoint.
    pub(super) id: &'static str,
    /// Replicate's version; official models hide theirs.
    pub(super) version: &'static str,
    pub(super) makes: Makes,
    price: Price,
    queue_millis: (u64, u64),
    run_millis: (u64, u64),
}

/// What a model makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Makes {
    Text,
    Images,
    /// Videos, and the seconds of each.
    Videos(u64),
}

/// What a vendor charges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Price {
    /// US dollars for a million tokens, in cents: input and output.
    Tokens(i64, i64),
    /// US dollars for an image or a unit, in thousandths.
    Each(i64),
    /// By the second of hardware that no answer names, or at a price that is not public.
    Untold,
}

impl Maker {
    /// The model of that name, if the vendor has it.
    pub(super) fn find(vendor: Vendor, name: &str) -> Option<&'static Maker> {
        MAKERS
            .iter()
            .find(|maker| maker.vendor == vendor && (maker.id == name || maker.version == name))
    }
}

const MAKERS: &[Maker] = &[
    Maker {
        vendor: Vendor::Replicate,
        id: "meta/meta-llama-3-70b-instruct",
        version: "hidden",
        makes: Makes::Text,
        price: Price::Tokens(65, 275),
        queue_millis: (40, 160),
        run_millis: (350, 900),
    },
    Maker {
        vendor: Vendor::Replicate,
        id: "black-forest-labs/flux-schnell",
        version: "hidden",
        makes: Makes::Images,
        price: Price::Each(3),
        queue_millis: (20, 90),
        run_millis: (250, 500),
    },
    Maker {
        vendor: Vendor::Replicate,
        id: "stability-ai/sdxl",
        version: "39ed52f2a78e934b3ba6e2a89f5b1c712de7dfea535525255b1aa35c5565e08b",
        makes: Makes::Images,
        price: Price::Untold,
        queue_millis: (60, 200),
        run_millis: (500, 1_000),
    },
    Maker {
        vendor: Vendor::Fal,
        id: "fal-ai/flux/dev",
        version: "",
        makes: Makes::Images,
        price: Price::Each(25),
        queue_millis: (10, 60),
        run_millis: (400, 900),
    },
    Maker {
        vendor: Vendor::Fal,
        id: "fal-ai/flux/schnell",
        version: "",
        makes: Makes::Images,
        price: Price::Each(3),
        queue_millis: (60, 200),
        run_millis: (200, 500),
    },
    Maker {
        vendor: Vendor::Fal,
        id: "fal-ai/kling-video/v2.1/standard/text-to-video",
        version: "",
        makes: Makes::Videos(5),
        price: Price::Untold,
        queue_millis: (100, 300),
        run_millis: (700, 1_100),
    },
];

/// What fal answers who asks for the prices of endpoints; those without a public price have none.
pub(super) fn price_list(query: &str) -> String {
    let asked = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == "endpoint_id");
    let prices: Vec<Value> = asked
        .filter_map(|(_, id)| {
            let Price::Each(thousandths) = Maker::find(Vendor::Fal, &id)?.price else {
                return None;
            };
            let price = Decimal::new(thousandths, 3).to_string();
            let price: Value = serde_json::from_str(&price).ok()?;
            Some(json!({
                "endpoint_id": id, "unit_price": price, "unit": "megapixels", "currency": "USD",
            }))
        })
        .collect();
    json!({"prices": prices, "has_more": false, "next_cursor": null}).to_string()
}

/// How a piece of work ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Made,
    Failed,
}

/// A piece of work: what was asked for, and what becomes of it.
#[derive(Debug, Clone)]
pub(super) struct Work {
    pub(super) maker: &'static Maker,
    /// The model's input, as it was sent.
    pub(super) input: Value,
    pub(super) fate: Fate,
    pub(super) input_tokens: u64,
    pub(super) output_tokens: u64,
    /// Images, or videos.
    pub(super) count: u64,
    /// What is said, by a model of text.
    pub(super) pieces: Vec<String>,
    pub(super) seed: u64,
    pub(super) queue: Duration,
    pub(super) run_millis: u64,
}

impl Work {
    /// The work that an input asks for.
    pub(super) fn new(maker: &'static Maker, input: Value, case: Case) -> Work {
        let prompt = input.get("prompt").and_then(Value::as_str).unwrap_or("");
        let mut dice = Dice::of(&format!("{} {prompt}", maker.id));
        let count = ["num_images", "num_outputs"]
            .iter()
            .find_map(|key| input.get(key).and_then(Value::as_u64));
        let is_text = maker.makes == Makes::Text;
        let output_tokens = if is_text { dice.between((40, 300)) } else { 0 };
        let queue = dice.between(maker.queue_millis);
        Work {
            maker,
            fate: match case {
                Case::ErrorInStream => Fate::Failed,
                _ => Fate::Made,
            },
            input_tokens: tokens_of(u64::try_from(prompt.chars().count()).unwrap_or(0)),
            output_tokens,
            count: count.unwrap_or(1),
            pieces: (0..output_tokens.div_ceil(12))
                .map(|_| dice.prose(40))
                .collect(),
            seed: dice.between((1, 1 << 32)),
            queue: match case {
                Case::Slow => SLOW_QUEUE,
                _ => Duration::from_millis(queue),
            },
            run_millis: dice.between(maker.run_millis),
            input,
        }
    }

    pub(super) const fn run(&self) -> Duration {
        Duration::from_millis(self.run_millis)
    }

    /// The same as Replicate and fal state it, in seconds.
    pub(super) fn run_seconds(&self) -> Decimal {
        Decimal::from(self.run_millis) / Decimal::from(1_000)
    }

    /// What fal bills: a megapixel or image each, or the seconds of the videos.
    pub(super) const fn units(&self) -> u64 {
        match self.maker.makes {
            Makes::Videos(seconds) => self.count * seconds,
            Makes::Images | Makes::Text => self.count,
        }
    }

    /// What is stated of it once it has ended.
    fn usage(&self) -> Usage {
        let mut usage = Usage::new();
        let is_replicate = self.maker.vendor == Vendor::Replicate;
        if is_replicate {
            usage.set(Unit::ComputeSecond, self.run_seconds());
        }
        if self.fate == Fate::Failed {
            return usage;
        }
        match self.maker.makes {
            Makes::Text => {
                usage.set(Unit::Input, self.input_tokens);
                usage.set(Unit::Output, self.output_tokens);
            }
            // A model that is billed by time states nothing else.
            Makes::Images if is_replicate && self.maker.price == Price::Untold => {}
            Makes::Images => usage.set(Unit::Image, self.count),
            Makes::Videos(_) => {}
        }
        if !is_replicate {
            usage.set(Unit::BillableUnit, self.units());
        }
        usage
    }

    /// What the vendor charges for it, if its price is public; what failed has no output to
    /// charge for.
    fn charged(&self) -> Option<Usd> {
        if self.fate == Fate::Failed {
            return None;
        }
        // Cents for a million tokens are hundred-millionths of a dollar for one.
        let tokens = |price, count| Decimal::new(price, 8) * Decimal::from(count);
        match self.maker.price {
            Price::Tokens(input, output) => Some(Usd::new(
                tokens(input, self.input_tokens) + tokens(output, self.output_tokens),
            )),
            Price::Each(price) => {
                let charged = Decimal::new(price, 3) * Decimal::from(self.units());
                Some(Usd::new(charged))
            }
            Price::Untold => None,
        }
    }

    /// What becomes of it, as a run that the caller waits for or as a job that the caller follows
    /// to its end or, if `is_cancelled`, cancels before it has begun.
    pub(super) fn foresight(&self, case: Case, is_job: bool, is_cancelled: bool) -> Foresight {
        let vendor = self.maker.vendor;
        let ended = |outcome, usage, charged, unpriced| Foresight {
            model: self.maker.id,
            outcome,
            status: StatusCode::OK,
            usage,
            charged,
            unpriced,
        };
        let refused = |outcome, status| Foresight {
            status,
            ..ended(outcome, Usage::new(), None, None)
        };
        match case {
            Case::RateLimited => refused(Outcome::RateLimited, StatusCode::TOO_MANY_REQUESTS),
            Case::QuotaExhausted => refused(Outcome::QuotaExhausted, quota_status(vendor)),
            Case::Overloaded => refused(Outcome::UpstreamError, overload_status(vendor)),
            Case::ErrorInStream if !is_job => {
                refused(Outcome::UpstreamError, StatusCode::INTERNAL_SERVER_ERROR)
            }
            _ if is_cancelled => ended(
                Outcome::ClientCancelled,
                Usage::new(),
                None,
                Some(UnpricedReason::UsageMissing),
            ),
            _ => {
                let (usage, charged) = (self.usage(), self.charged());
                let unpriced = match (self.maker.price, charged) {
                    // What was used before it failed is not told.
                    _ if usage.is_empty() && is_job => Some(UnpricedReason::UsageMissing),
                    _ if usage.is_empty() => None,
                    (_, Some(_)) => None,
                    (Price::Untold, None) => Some(UnpricedReason::ModelUnknown),
                    // Time, which such a model has no price for.
                    (_, None) => Some(UnpricedReason::PriceMissing),
                };
                let outcome = match self.fate {
                    Fate::Made => Outcome::Ok,
                    Fate::Failed => Outcome::JobFailed,
                };
                ended(outcome, usage, charged, unpriced)
            }
        }
    }
}

/// A piece of work that somebody comes back for.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) id: String,
    pub(super) work: Work,
    pub(super) created_at: DateTime<Utc>,
    /// When it was cancelled, which is before it began.
    pub(super) cancelled_at: Option<DateTime<Utc>>,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Queued,
    Running,
    Ended,
    Cancelled,
}

impl Job {
    /// A job that is taken on now.
    pub(super) fn new(id: String, work: Work) -> Job {
        Job {
            id,
            work,
            created_at: clock::wall(),
            cancelled_at: None,
        }
    }

    pub(super) fn started_at(&self) -> DateTime<Utc> {
        self.created_at + self.work.queue
    }

    pub(super) fn completed_at(&self) -> DateTime<Utc> {
        self.started_at() + self.work.run()
    }

    pub(super) fn progress(&self, now: DateTime<Utc>) -> Progress {
        if self.cancelled_at.is_some() {
            Progress::Cancelled
        } else if now >= self.completed_at() {
            Progress::Ended
        } else if now >= self.started_at() {
            Progress::Running
        } else {
            Progress::Queued
        }
    }
}

/// The members of two objects, the second's last.
pub(super) fn merged(mut first: Value, second: Value) -> Value {
    if let (Value::Object(first), Value::Object(second)) = (&mut first, second) {
        first.extend(second);
    }
    first
}

/// A duration as JSON states it, in seconds to the millisecond.
pub(super) fn seconds(duration: Duration) -> Value {
    let millis = u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
    Value::from(f64::from(millis) / 1_000.0)
}

/// The newest jobs of a look-alike.
#[derive(Debug, Default)]
pub(super) struct Jobs(Mutex<VecDeque<Job>>);

impl Jobs {
    /// Remembers a job.
    pub(super) fn add(&self, job: Job) {
        let mut jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if jobs.len() >= JOBS_MAX {
            jobs.pop_front();
        }
        jobs.push_back(job);
    }

    /// The job of that id, if it is remembered.
    pub(super) fn find(&self, id: &str) -> Option<Job> {
        let jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.iter().rev().find(|job| job.id == id).cloned()
    }

    /// Cancels a job, unless it has begun, and tells how it is.
    pub(super) fn cancel(&self, id: &str) -> Option<Job> {
        let mut jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let job = jobs.iter_mut().rev().find(|job| job.id == id)?;
        let now = clock::wall();
        if job.progress(now) == Progress::Queued {
            job.cancelled_at = Some(now);
        }
        Some(job.clone())
    }
}
