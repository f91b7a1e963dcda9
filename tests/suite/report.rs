//! `taffrail usage` and `taffrail logs` on a store with known rows, and on a journal with known dead
//! letters; the outputs are golden files.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail as tests do"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rust_decimal::Decimal;
use serde_json::Value;
use taffrail::fault::Outcome;
use taffrail::journal::disk::LocalDisk;
use taffrail::journal::{self, DEAD_LETTER_FILE, DeadLetter, Journal};
use taffrail::money::Usd;
use taffrail::record::{CostSource, Operation, UnpricedReason, UsageRecord};
use taffrail::report::{
    self, Format, LOGS_LIMIT_MAX, LogsRequest, ReportError, Since, UsageRequest,
};
use taffrail::store::{Dimension, Store};
use taffrail::usage::{Unit, Usage};
use tempfile::TempDir;

use crate::store::{at, config, record};
use crate::support::binary::{Home, Ran};

/// Compares with a file in tests/golden, or rewrites it if `UPDATE_GOLDEN` is set.
fn assert_golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/report")
        .join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        return;
    }
    match std::fs::read_to_string(&path) {
        Ok(golden) => assert_eq!(text, golden, "{name} differs; UPDATE_GOLDEN=1 rewrites it"),
        Err(error) => panic!("cannot read {}: {error}", path.display()),
    }
}

fn now() -> DateTime<Utc> {
    at("2026-11-24T05:06:07Z")
}

/// Five hours of traffic of three providers: priced, unpriced, failed, cancelled, free.
fn traffic() -> Vec<UsageRecord> {
    let start = at("2026-11-23T22:10:00Z");
    let mut records = Vec::new();
    for number in 0..30_u64 {
        let minutes = i64::try_from(number * 11).unwrap();
        let mut record = record(start + TimeDelta::minutes(minutes), number);
        match number % 10 {
            0 => {
                record.provider = "fal".into();
                record.operation = Operation::Image;
                record.route = "/fal-ai/flux/schnell".into();
                record.model_requested = Some("fal-ai/flux/schnell".into());
                record.model_served = None;
                record.service_tier = None;
                record.streamed = false;
                record.usage = Usage::new()
                    .with(Unit::Image, 4)
                    .with(Unit::Megapixel, Decimal::new(42, 1));
                record.raw_usage = None;
                record.first_token_us = None;
                record.cost_usd = Usd::from_json_number("0.0126");
                record.cost_source = Some(CostSource::Estimated);
            }
            1 | 2 => {
                record.provider = "anthropic".into();
                record.route = "/v1/messages".into();
                record.model_requested = Some("claude-sonnet-4-5".into());
                record.model_served = Some("claude-sonnet-4-5-20250929".into());
                record.usage = Usage::new()
                    .with(Unit::Input, 12_345)
                    .with(Unit::CacheRead, 100_000)
                    .with(Unit::CacheWrite5m, 2_000)
                    .with(Unit::CacheWrite1h, 500)
                    .with(Unit::Output, 1_234);
                record.cost_usd = Usd::from_json_number("0.1031955");
                record.cost_upstream_usd = (number == 1).then_some(Usd::ZERO);
            }
            3 => {
                record.model_served = Some("gpt-brand-new".into());
                record.cost_usd = None;
                record.cost_source = None;
                record.price_version = None;
                record.unpriced_reason = Some(UnpricedReason::ModelUnknown);
                record.caller.attribution.clear();
            }
            4 => {
                record.outcome = Outcome::RateLimited;
                record.http_status = Some(429);
                record.error_code = Some("rate_limit_exceeded".into());
                record.error_message = Some("Rate limit reached, \"slow\" down\nplease".into());
                record.model_served = None;
                record.usage = Usage::new();
                record.raw_usage = None;
                record.cost_usd = Some(Usd::ZERO);
                record.first_token_us = None;
            }
            5 => {
                record.outcome = Outcome::ClientCancelled;
                record.usage = Usage::new();
                record.raw_usage = None;
                record.cost_usd = None;
                record.cost_source = None;
                record.unpriced_reason = Some(UnpricedReason::Incomplete);
                record.duration_us = None;
            }
            _ => {}
        }
        records.push(record);
    }
    records
}

async fn store_with(records: &[UsageRecord]) -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&config(folder.path())).await.unwrap();
    store.apply(records).await.unwrap();
    (folder, store)
}

/// The report, with the folder of the store replaced by a fixed one.
fn fixed(folder: &TempDir, out: Vec<u8>) -> String {
    let text = String::from_utf8(out).unwrap();
    text.replace(&folder.path().display().to_string(), "/var/lib/taffrail")
}

async fn usage(records: &[UsageRecord], request: UsageRequest) -> String {
    let (folder, store) = store_with(records).await;
    let mut out = Vec::new();
    report::usage(&store, &request, now(), &mut out)
        .await
        .unwrap();
    fixed(&folder, out)
}

async fn logs(records: &[UsageRecord], request: LogsRequest) -> String {
    let (folder, store) = store_with(records).await;
    let mut out = Vec::new();
    report::logs(&store, &request, &mut out).await.unwrap();
    fixed(&folder, out)
}

#[tokio::test]
async fn usage_in_each_format() {
    for (format, name) in [
        (Format::Table, "usage.txt"),
        (Format::Json, "usage.jsonl"),
        (Format::Csv, "usage.csv"),
    ] {
        let request = UsageRequest {
            format,
            ..UsageRequest::default()
        };
        assert_golden(name, &usage(&traffic(), request).await);
    }
}

#[tokio::test]
async fn usage_by_time_is_in_the_order_of_time() {
    let request = UsageRequest {
        by: vec![Dimension::Hour, Dimension::Attribution("team".into())],
        since: Since::At(at("2026-11-24T00:30:00Z")),
        ..UsageRequest::default()
    };
    assert_golden(
        "usage_by_hour_and_team.txt",
        &usage(&traffic(), request).await,
    );
}

#[tokio::test]
async fn usage_in_a_narrow_terminal_loses_columns_before_numbers_wrap() {
    let request = UsageRequest {
        by: vec![Dimension::Outcome, Dimension::Model, Dimension::Key],
        width: Some(110),
        ..UsageRequest::default()
    };
    let text = usage(&traffic(), request).await;
    for line in text.lines() {
        assert!(line.chars().count() <= 110, "{line}");
    }
    assert_golden("usage_narrow.txt", &text);
}

#[tokio::test]
async fn usage_without_requests_says_what_to_do() {
    let request = UsageRequest {
        since: Since::Ago(Duration::from_secs(60)),
        ..UsageRequest::default()
    };
    assert_golden("usage_empty.txt", &usage(&traffic(), request.clone()).await);
    let lines = UsageRequest {
        format: Format::Json,
        ..request
    };
    assert_eq!(usage(&traffic(), lines).await, "");
}

#[tokio::test]
async fn a_label_that_no_request_ever_had_is_refused_with_those_in_use() {
    let (_folder, store) = store_with(&traffic()).await;
    let request = |label: &str| UsageRequest {
        by: vec![Dimension::Attribution(label.into())],
        ..UsageRequest::default()
    };
    let mut out = Vec::new();
    let error = report::usage(&store, &request("taem"), now(), &mut out)
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "`taem` is not a dimension: accepted are provider, model, operation, outcome, day, hour, \
         key, instance, namespace, service_tier and the attribution labels in use: team"
    );
    assert_eq!(out, b"");
    report::usage(&store, &request("team"), now(), &mut out)
        .await
        .unwrap();
}

#[tokio::test]
async fn logs_in_each_format() {
    for (format, name) in [
        (Format::Table, "logs.txt"),
        (Format::Json, "logs.jsonl"),
        (Format::Csv, "logs.csv"),
    ] {
        let request = LogsRequest {
            format,
            limit: Some(10),
            ..LogsRequest::default()
        };
        assert_golden(name, &logs(&traffic(), request).await);
    }
}

#[tokio::test]
async fn logs_in_a_narrow_terminal_lose_columns_before_they_wrap() {
    let request = LogsRequest {
        width: Some(100),
        limit: Some(10),
        ..LogsRequest::default()
    };
    let text = logs(&traffic(), request).await;
    for line in text.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
    assert_golden("logs_narrow.txt", &text);
}

#[tokio::test]
async fn all_rows_are_written_page_by_page() {
    let start = at("2026-11-23T22:10:00Z");
    let many: Vec<UsageRecord> = (0..2_345)
        .map(|number| {
            record(
                start + TimeDelta::seconds(number / 7),
                number.unsigned_abs(),
            )
        })
        .collect();
    let request = |format, limit| LogsRequest {
        format,
        limit,
        ..LogsRequest::default()
    };
    let all = logs(&many, request(Format::Json, None)).await;
    assert_eq!(all.lines().count(), 2_345);
    let limited = logs(&many, request(Format::Json, Some(1_500))).await;
    assert_eq!(limited.lines().count(), 1_500);
    assert!(all.starts_with(&limited));
    let csv = logs(&many, request(Format::Csv, None)).await;
    assert_eq!(csv.lines().count(), 2_346);
    let table = logs(&many, request(Format::Table, Some(LOGS_LIMIT_MAX))).await;
    assert_eq!(table.matches("gpt-4o-mini-2024-07-18").count(), 2_345);
}

#[tokio::test]
async fn logs_without_rows_say_what_to_do() {
    let fal = LogsRequest {
        provider: Some("replicate".into()),
        ..LogsRequest::default()
    };
    assert_eq!(
        logs(&traffic(), fal).await,
        "No such requests, sqlite /var/lib/taffrail/data/taffrail.db. Leave out `--provider` and \
         `--outcome` to see whether there are others.\n"
    );
    assert_eq!(
        logs(&[], LogsRequest::default()).await,
        "No such requests, sqlite /var/lib/taffrail/data/taffrail.db. Send a request through the \
         proxy; `taffrail run` shows where it listens.\n"
    );
}

#[tokio::test]
async fn a_limit_is_taken_at_its_bounds_and_refused_beyond() {
    let (_folder, store) = store_with(&[]).await;
    for (limit, is_accepted) in [(0, false), (1, true), (10_000, true), (10_001, false)] {
        let request = LogsRequest {
            limit: Some(limit),
            ..LogsRequest::default()
        };
        let result = report::logs(&store, &request, &mut Vec::new()).await;
        assert_eq!(result.is_ok(), is_accepted, "{limit}");
        if let Err(error) = result {
            assert!(matches!(error, ReportError::Limit(refused) if refused == limit));
        }
    }
}

/// Why the store refused the records below.
const REASONS: [&str; 3] = [
    "model_served is 70000 bytes long, 65536 is the limit",
    "error returned from database: (code 275) CHECK constraint failed: http_status",
    "a quantity has more than 28 places,\nsays \u{1b}[31mthe \"store\"",
];

/// Seven dead letters, oldest first; the last one is of the same record as the first one.
fn letters() -> Vec<DeadLetter> {
    let mut letters: Vec<DeadLetter> = traffic()
        .into_iter()
        .take(6)
        .zip(REASONS.into_iter().cycle())
        .map(|(record, reason)| DeadLetter {
            at: record.started_at + TimeDelta::milliseconds(2_500),
            reason: reason.to_owned(),
            record,
        })
        .collect();
    letters.push(DeadLetter {
        at: at("2026-11-24T05:00:00Z"),
        ..letters[0].clone()
    });
    letters
}

/// A journal's directory with these lines as its dead letters.
fn journal_with(lines: &[String]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(DEAD_LETTER_FILE), lines.concat()).unwrap();
    folder
}

fn line(letter: &DeadLetter) -> String {
    serde_json::to_string(letter).unwrap() + "\n"
}

/// The report on these dead letters.
fn dead_letters(letters: &[DeadLetter], request: &LogsRequest) -> String {
    let folder = journal_with(&letters.iter().map(line).collect::<Vec<_>>());
    let mut out = Vec::new();
    let damaged = report::dead_letters(folder.path(), request, &mut out).unwrap();
    assert_eq!(damaged, 0);
    fixed(&folder, out)
}

#[test]
fn dead_letters_in_each_format() {
    for (format, name) in [
        (Format::Table, "dead_letters.txt"),
        (Format::Json, "dead_letters.jsonl"),
        (Format::Csv, "dead_letters.csv"),
    ] {
        let request = LogsRequest {
            format,
            ..LogsRequest::default()
        };
        assert_golden(name, &dead_letters(&letters(), &request));
    }
}

#[test]
fn a_dead_letter_in_json_is_the_whole_letter() {
    let request = LogsRequest {
        format: Format::Json,
        ..LogsRequest::default()
    };
    let text = dead_letters(&letters(), &request);
    let written: Vec<DeadLetter> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let mut newest_first = letters().split_off(1);
    newest_first.reverse();
    assert_eq!(written, newest_first);
}

#[test]
fn dead_letters_in_a_narrow_terminal_lose_columns_before_they_wrap() {
    let request = LogsRequest {
        width: Some(80),
        ..LogsRequest::default()
    };
    let text = dead_letters(&letters(), &request);
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    assert_golden("dead_letters_narrow.txt", &text);
}

#[test]
fn dead_letters_are_chosen_as_rows_are() {
    let all = letters();
    let id = |index: usize| all[index].record.id;
    let chosen = |request: LogsRequest| -> Vec<uuid::Uuid> {
        let format = Format::Json;
        let text = dead_letters(&all, &LogsRequest { format, ..request });
        text.lines()
            .map(|line| serde_json::from_str::<DeadLetter>(line).unwrap())
            .map(|letter| letter.record.id)
            .collect()
    };
    let any = LogsRequest::default;
    assert_eq!(chosen(any()), [id(0), id(5), id(4), id(3), id(2), id(1)]);
    assert_eq!(
        chosen(LogsRequest {
            limit: Some(2),
            ..any()
        }),
        [id(0), id(5)]
    );
    assert_eq!(
        chosen(LogsRequest {
            limit: Some(2),
            before: Some(id(5)),
            ..any()
        }),
        [id(4), id(3)]
    );
    assert_eq!(
        chosen(LogsRequest {
            limit: None,
            provider: Some("anthropic".into()),
            ..any()
        }),
        [id(2), id(1)]
    );
    assert_eq!(
        chosen(LogsRequest {
            outcome: Some(Outcome::RateLimited),
            ..any()
        }),
        [id(4)]
    );
}

#[test]
fn a_page_of_dead_letters_says_where_the_next_one_begins() {
    let page = LogsRequest {
        limit: Some(5),
        ..LogsRequest::default()
    };
    let last = letters()[2].record.id;
    let next = format!("Older ones: `taffrail logs --dead-letter --before {last}`\n");
    let text = dead_letters(&letters(), &page);
    assert!(text.ends_with(&next), "{text}");
    let whole = LogsRequest {
        limit: Some(6),
        ..page
    };
    let text = dead_letters(&letters(), &whole);
    assert!(!text.contains("--before"), "{text}");
}

#[test]
fn without_dead_letters_there_is_a_line_that_says_so() {
    assert_eq!(
        dead_letters(&[], &LogsRequest::default()),
        "No dead letters in /var/lib/taffrail: the store has refused no record.\n"
    );
    let replicate = LogsRequest {
        provider: Some("replicate".into()),
        ..LogsRequest::default()
    };
    assert_eq!(
        dead_letters(&letters(), &replicate),
        "No such dead letters in /var/lib/taffrail. Leave out `--provider` and `--outcome` to see \
         whether there are others.\n"
    );
    let oldest = LogsRequest {
        before: Some(letters()[1].record.id),
        ..LogsRequest::default()
    };
    assert_eq!(
        dead_letters(&letters(), &oldest),
        "No older dead letters in /var/lib/taffrail.\n"
    );
}

#[test]
fn what_cannot_be_a_report_on_dead_letters_is_an_error() {
    let folder = journal_with(&[line(&letters()[0])]);
    let error = |request: LogsRequest| {
        report::dead_letters(folder.path(), &request, &mut Vec::new())
            .unwrap_err()
            .to_string()
    };
    for limit in [0, 10_001] {
        let limit = Some(limit);
        assert!(
            error(LogsRequest {
                limit,
                ..LogsRequest::default()
            })
            .contains("accepted are 1 to 10000")
        );
    }
    let unknown = letters()[3].record.id;
    assert_eq!(
        error(LogsRequest {
            before: Some(unknown),
            ..LogsRequest::default()
        }),
        format!("no dead letter has the id {unknown}")
    );
    // Opening a folder succeeds; reading it fails, every time.
    let path = folder.path().join(DEAD_LETTER_FILE);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert_eq!(
        error(LogsRequest::default()),
        format!("cannot read {}", path.display())
    );
}

// By the real binary.

/// Puts records aside as the drain does.
fn put_aside(home: &Home, records: &[UsageRecord]) {
    let config = journal::Config {
        dir: home.journal(),
        ..journal::Config::default()
    };
    let (journal, _) = Journal::open(&config, Arc::new(LocalDisk), Arc::new(|_| {})).unwrap();
    for (record, reason) in records.iter().zip(REASONS.into_iter().cycle()) {
        journal.dead_letter(record, reason).unwrap();
    }
}

#[tokio::test]
async fn the_command_shows_dead_letters_without_a_store() {
    let home = Home::without_provider();
    let asked = async |options: &[&str]| -> Ran {
        home.run(&[&["logs", "--dead-letter"], options].concat())
            .await
    };
    let ran = asked(&[]).await;
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (
            Some(0),
            "No dead letters in journal: the store has refused no record.\n",
            ""
        )
    );
    let records: Vec<UsageRecord> = traffic().into_iter().take(4).collect();
    put_aside(&home, &records);
    let ran = asked(&["--limit", "2", "--provider", "anthropic"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert!(
        ran.stdout
            .starts_with("Dead letters, newest first, journal\n\nPut aside (UTC)"),
        "{}",
        ran.stdout
    );
    let rows: Vec<&str> = ran
        .stdout
        .lines()
        .filter(|line| line.contains(" anthropic "))
        .collect();
    assert_eq!(rows.len(), 2, "{}", ran.stdout);
    for (row, index) in rows.into_iter().zip([2, 1]) {
        assert!(row.contains(&records[index].id.to_string()), "{row}");
        assert!(row.contains(" claude-sonnet-4-5-20250929 "), "{row}");
        assert!(row.ends_with(&printed(REASONS[index])), "{row}");
    }

    let ran = asked(&["--all", "--format", "json"]).await;
    let written: Vec<Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(written.len(), 4);
    for (letter, index) in written.iter().zip([3, 2, 1, 0]) {
        assert_eq!(letter["reason"], REASONS[index % 3]);
        assert_eq!(
            letter["record"],
            serde_json::to_value(&records[index]).unwrap()
        );
        assert!(
            letter["at"]
                .as_str()
                .unwrap()
                .parse::<DateTime<Utc>>()
                .is_ok()
        );
    }
    assert!(!home.database().exists(), "no store is made for it");
}

/// A text as a table shows it: control characters replaced.
fn printed(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

#[tokio::test]
async fn damaged_lines_are_counted_and_the_others_shown() {
    let home = Home::without_provider();
    put_aside(&home, &traffic()[..1]);
    let path = home.journal().join(DEAD_LETTER_FILE);
    let whole = std::fs::read(&path).unwrap();
    let mut bytes = b"\xff\xfe\n{\"at\": 7}\n".to_vec();
    bytes.extend_from_slice(&whole);
    // Cut off by a full disk.
    bytes.extend_from_slice(&whole[..whole.len() / 2]);
    std::fs::write(&path, bytes).unwrap();
    let ran = home
        .run(&["logs", "--dead-letter", "--format", "json"])
        .await;
    assert_eq!(ran.code, Some(0));
    assert_eq!(ran.stdout.as_bytes(), whole);
    assert_eq!(
        ran.stderr,
        "taffrail: lines of journal/dead-letters.jsonl that cannot be understood: 3\n"
    );
}
