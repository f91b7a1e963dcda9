//! The numbers of the live view, read from Taffrail's own `/metrics` as Prometheus reads them.
//!
//! Pure: the protobuf exposition in, sums by provider out. The cost is a float here, as it is
//! in the exposition; the report that follows is exact.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus_client::encoding::prometheus_protobuf::prometheus_data_model::{
    Bucket, Metric, MetricFamily,
};
use prost::Message;

use crate::fault::{Outcome, OutcomeClass};
use crate::record::Operation;

/// The `Accept` header of a scrape that [`Board::read`] understands.
pub const ACCEPT: &str = "application/vnd.google.protobuf; \
                          proto=io.prometheus.client.MetricFamily; encoding=delimited";

/// What a provider's traffic came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Line {
    /// Requests that ended, and jobs that are settled.
    pub requests: u64,
    /// Requests that were answered.
    pub ok: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Requests that the client gave up.
    pub cancelled: u64,
    /// Input tokens of every kind.
    pub input_tokens: u64,
    /// Output tokens of every kind.
    pub output_tokens: u64,
    /// What it cost, in US dollars.
    pub cost_usd: f64,
    /// Times to the first token: how many were at most so many seconds, by seconds.
    pub(super) first_tokens: Vec<(f64, u64)>,
}

impl Line {
    /// The median time to the first token, interpolated as `histogram_quantile` does; none if
    /// nothing was observed.
    pub fn first_token_median(&self) -> Option<Duration> {
        let (_, all) = self.first_tokens.last()?;
        let half = as_float(*all) / 2.0;
        let mut below = (0.0, 0.0);
        for (bound, count) in &self.first_tokens {
            let count = as_float(*count);
            if count >= half && count > below.1 {
                let share = (half - below.1) / (count - below.1);
                // Beyond the last bound nothing is known but the bound.
                let width = if bound.is_finite() {
                    bound - below.0
                } else {
                    0.0
                };
                return Duration::try_from_secs_f64(below.0 + width * share).ok();
            }
            below = (if bound.is_finite() { *bound } else { below.0 }, count);
        }
        None
    }

    fn add(&mut self, other: &Line) {
        self.requests += other.requests;
        self.ok += other.ok;
        self.errors += other.errors;
        self.cancelled += other.cancelled;
        self.input_tokens += other.input_tokens;
        self.output_tokens += other.output_tokens;
        self.cost_usd += other.cost_usd;
        for (bound, count) in &other.first_tokens {
            self.add_first_tokens(*bound, *count);
        }
    }

    /// Adds a cumulative count; all histograms of one metric have the same bounds.
    fn add_first_tokens(&mut self, bound: f64, count: u64) {
        let found = self
            .first_tokens
            .iter_mut()
            .find(|known| known.0.total_cmp(&bound).is_eq());
        match found {
            Some(known) => known.1 += count,
            None => self.first_tokens.push((bound, count)),
        }
    }
}

/// The lines of the table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Board {
    /// By provider.
    pub lines: BTreeMap<String, Line>,
}

impl Board {
    /// Reads a delimited protobuf exposition; what is not understood is left out.
    pub fn read(mut exposition: &[u8]) -> Board {
        let mut board = Board::default();
        while let Ok(family) = MetricFamily::decode_length_delimited(&mut exposition) {
            for metric in &family.metric {
                board.take(&family.name, metric);
            }
            if exposition.is_empty() {
                break;
            }
        }
        board
    }

    /// The sum of all lines.
    pub fn total(&self) -> Line {
        let mut total = Line::default();
        for line in self.lines.values() {
            total.add(line);
        }
        total
    }

    fn take(&mut self, family: &str, metric: &Metric) {
        let label = |name: &str| {
            let pair = metric.label.iter().find(|pair| pair.name == name);
            pair.map_or("", |pair| pair.value.as_str())
        };
        let value = metric.counter.as_ref().map_or(0.0, |counter| counter.value);
        let line = self.lines.entry(label("provider").to_owned()).or_default();
        match family {
            // The polls of a job are no requests of their own; a job is one once it is settled.
            "taffrail_requests_total" if is_control(label("operation")) => {}
            "taffrail_requests_total" => {
                let count = as_count(value);
                line.requests += count;
                match Outcome::from_name(label("outcome")).map(Outcome::class) {
                    Some(OutcomeClass::Ok) => line.ok += count,
                    Some(OutcomeClass::Cancelled) => line.cancelled += count,
                    Some(OutcomeClass::Error) | None => line.errors += count,
                }
            }
            "taffrail_tokens_total" => match label("type") {
                "output" | "reasoning" | "output_audio" | "output_image" => {
                    line.output_tokens += as_count(value);
                }
                _ => line.input_tokens += as_count(value),
            },
            "taffrail_cost_usd_total" => line.cost_usd += value,
            "taffrail_time_to_first_token_seconds" => {
                let buckets = metric
                    .histogram
                    .iter()
                    .flat_map(|histogram| &histogram.bucket);
                for Bucket {
                    upper_bound,
                    cumulative_count,
                    ..
                } in buckets
                {
                    line.add_first_tokens(*upper_bound, *cumulative_count);
                }
            }
            _ => {}
        }
    }
}

fn is_control(operation: &str) -> bool {
    Operation::from_name(operation).is_some_and(Operation::is_control)
}

/// A counter of whole things as such; the exposition has floats only.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counters of whole things are whole and not negative; the cast saturates"
)]
const fn as_count(value: f64) -> u64 {
    value as u64
}

/// A count for arithmetic on shares.
#[expect(
    clippy::cast_precision_loss,
    reason = "a share of more than 2^53 observations needs no exactness"
)]
const fn as_float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::prometheus_protobuf::prometheus_data_model::{
        Counter, Histogram, LabelPair,
    };

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Vec<LabelPair> {
        let pair = |(name, value): &(&str, &str)| LabelPair {
            name: (*name).to_owned(),
            value: (*value).to_owned(),
        };
        pairs.iter().map(pair).collect()
    }

    fn counter(pairs: &[(&str, &str)], value: f64) -> Metric {
        Metric {
            label: labels(pairs),
            counter: Some(Counter {
                value,
                ..Counter::default()
            }),
            ..Metric::default()
        }
    }

    fn family(name: &str, metric: Vec<Metric>) -> Vec<u8> {
        let family = MetricFamily {
            name: name.to_owned(),
            metric,
            ..MetricFamily::default()
        };
        family.encode_length_delimited_to_vec()
    }

    fn exposition() -> Vec<u8> {
        let openai = ("provider", "openai");
        let bucket = |upper_bound, cumulative_count| Bucket {
            upper_bound,
            cumulative_count,
            ..Bucket::default()
        };
        [
            family("process_open_fds", vec![counter(&[], 3.0)]),
            family(
                "taffrail_requests_total",
                vec![
                    counter(&[openai, ("operation", "chat"), ("outcome", "ok")], 5.0),
                    counter(&[openai, ("operation", "control"), ("outcome", "ok")], 9.0),
                    counter(&[openai, ("outcome", "rate_limited")], 2.0),
                    counter(&[openai, ("outcome", "client_cancelled")], 1.0),
                ],
            ),
            family(
                "taffrail_tokens_total",
                vec![
                    counter(&[openai, ("type", "input")], 100.0),
                    counter(&[openai, ("type", "cache_read")], 50.0),
                    counter(&[openai, ("type", "reasoning")], 7.0),
                ],
            ),
            family(
                "taffrail_cost_usd_total",
                vec![counter(&[openai, ("source", "catalog")], 0.25)],
            ),
            family(
                "taffrail_time_to_first_token_seconds",
                vec![Metric {
                    label: labels(&[openai]),
                    histogram: Some(Histogram {
                        bucket: vec![bucket(0.1, 1), bucket(0.5, 4), bucket(f64::INFINITY, 4)],
                        ..Histogram::default()
                    }),
                    ..Metric::default()
                }],
            ),
        ]
        .concat()
    }

    #[test]
    fn an_exposition_becomes_a_line_by_provider() {
        let board = Board::read(&exposition());
        let line = Line {
            requests: 8,
            ok: 5,
            errors: 2,
            cancelled: 1,
            input_tokens: 150,
            output_tokens: 7,
            cost_usd: 0.25,
            first_tokens: vec![(0.1, 1), (0.5, 4), (f64::INFINITY, 4)],
        };
        assert_eq!(board.lines.get("openai"), Some(&line));
        assert_eq!(board.total(), line);
    }

    #[test]
    fn the_median_is_interpolated_between_bounds() {
        let board = Board::read(&exposition());
        let median = board.total().first_token_median().unwrap();
        // Two of four: one below 0.1 s, and one of three between 0.1 s and 0.5 s.
        assert_eq!(median.as_millis(), 233);
        assert_eq!(Line::default().first_token_median(), None);
    }

    #[test]
    fn a_broken_exposition_is_read_as_far_as_it_goes() {
        let exposition = exposition();
        let cut = &exposition[..exposition.len() - 3];
        assert_eq!(Board::read(cut).total().requests, 8);
        assert_eq!(Board::read(b"# HELP").total(), Line::default());
    }
}
