//! What a Postgres cannot hold, on its way there through the real binary: what is good lands, what
//! is not is put aside with a reason, and nothing waits behind it.

use std::collections::BTreeMap;

use rust_decimal::Decimal;
use serde_json::Value;
use taffrail::clock;
use taffrail::money::Usd;
use taffrail::record::UsageRecord;
use taffrail::usage::Unit;

use crate::postgres::{fresh, sums_kept};
use crate::store::{at, id, record, sums_of_rows};
use crate::support::binary::{Home, number};
use crate::support::chat::Ask;
use crate::support::http::{Ending, ask};
use crate::support::upstream::{Act, Upstream};

/// The requests whose record was put aside, and why.
type PutAside = BTreeMap<u64, String>;

/// What `taffrail logs --dead-letter` says.
async fn put_aside(home: &Home) -> PutAside {
    let ran = home
        .run(&["logs", "--dead-letter", "--all", "--format", "json"])
        .await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let letters = ran.stdout.lines().map(|line| {
        let letter: Value = serde_json::from_str(line).unwrap();
        let trace_id = letter["record"]["trace_id"].as_str().unwrap();
        let number = u64::from_str_radix(trace_id, 16).unwrap() - 1;
        (number, letter["reason"].as_str().unwrap().to_owned())
    });
    letters.collect()
}

/// A response with this model and usage, as bytes between quotes and braces.
fn answer(model: &[u8], usage: &str) -> Vec<Act> {
    let body = [
        br#"{"id":"gen-1","object":"chat.completion","created":253402300800,"model":""#,
        model,
        br#"","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"a"}}],"usage":{"#,
        usage.as_bytes(),
        b"}}",
    ]
    .concat();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    vec![
        Act::Read,
        Act::Send([head.as_bytes(), &body].concat()),
        Act::Close,
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_from_a_provider_lands_or_is_put_aside() {
    let Some(database) = fresh().await else {
        return;
    };
    const MODEL: &str = "openai/gpt-4o-mini";
    let model = MODEL.as_bytes();
    let long = vec![b'm'; 10_000_000];
    let costing = |cost: &str| format!(r#""prompt_tokens":10,"completion_tokens":5,"cost":{cost}"#);
    let counting = |input: &str, output: &str| {
        format!(r#""prompt_tokens":{input},"completion_tokens":{output},"cost":1"#)
    };
    // The model and the usage of a response; the model, input tokens and cost of its row, or why
    // it has none.
    type Landed = [Option<&'static str>; 3];
    let landed = |model, input, cost| Ok([Some(model), Some(input), Some(cost)]);
    let unread = Ok([Some(MODEL), None, None]);
    let most = i64::MAX.to_string();
    let cases: [(&[u8], String, Result<Landed, &str>); 16] = [
        (model, costing("0.25"), landed(MODEL, "10", "0.25")),
        (br"nul\u0000", costing("0.25"), landed("nul", "10", "0.25")),
        (
            br"half\ud800",
            costing("0.25"),
            landed("half\u{fffd}", "10", "0.25"),
        ),
        (
            b"no\xff",
            costing("0.25"),
            landed("no\u{fffd}", "10", "0.25"),
        ),
        (&long, costing("0.25"), Ok([None, Some("10"), Some("0.25")])),
        (
            model,
            costing(r#"0.25,"note":"\u0000\ud800""#),
            landed(MODEL, "10", "0.25"),
        ),
        // What is no JSON is not metered from there on.
        (b"nul\0", costing("0.25"), Ok([None; 3])),
        (model, costing("NaN"), unread),
        (model, costing("-Infinity"), unread),
        // A cost that is no amount is none, and the price list's is taken.
        (model, costing(r#""NaN""#), landed(MODEL, "10", "0.0000045")),
        (model, costing("1e400"), landed(MODEL, "10", "0.0000045")),
        // The most tokens that a column takes, twice: no such column could hold the sum.
        (
            model,
            counting(&most, "5"),
            landed(MODEL, "9223372036854775807", "1"),
        ),
        (
            model,
            counting(&most, "5"),
            landed(MODEL, "9223372036854775807", "1"),
        ),
        (
            model,
            counting("9223372036854775808", "5"),
            Err("input_tokens is beyond the range of its column"),
        ),
        (
            model,
            counting("10", "1.5"),
            Err("output_tokens is not a whole number of tokens"),
        ),
        (
            model,
            counting("1e400", "5"),
            Ok([Some(MODEL), None, Some("1")]),
        ),
    ];
    let scripts = cases.iter().map(|(model, usage, _)| answer(model, usage));
    let upstream = Upstream::start_each(scripts.collect()).await;
    let mut home = Home::with(&format!(
        "[providers.openrouter]\nupstream = \"http://{}\"\n",
        upstream.address
    ));
    home.set("STORE__URL", database.url());
    let server = home.start().await;
    for number in 0..16 {
        let request = String::from_utf8(Ask::plain(number).request()).unwrap();
        let request = request.replace("/openai/v1/", "/openrouter/api/v1/");
        let seen = ask(server.proxy, request.as_bytes()).await;
        assert_eq!((seen.status, seen.ending), (200, Ending::Complete));
    }
    server.quiet().await;
    server.stop().await;

    let mut rows = home.rows().await;
    assert_eq!(sums_kept(&database).await, sums_of_rows(&rows));
    rows.sort_by_key(number);
    let mut aside = put_aside(&home).await;
    let mut rows = rows.iter();
    for (number, (_, usage, expected)) in (0..).zip(cases) {
        let Ok(expected) = expected else {
            assert_eq!(aside.remove(&number).as_deref(), expected.err(), "{usage}");
            continue;
        };
        let row = rows.next().unwrap();
        let input = row
            .get("input_tokens")
            .as_integer()
            .map(|tokens| tokens.to_string());
        let model = row.get("model_served").as_text();
        let cost = row.get("cost_usd").as_text();
        assert_eq!(self::number(row), number, "{usage}");
        assert_eq!([model, input.as_deref(), cost], expected, "{usage}");
    }
    assert_eq!((rows.count(), aside), (0, PutAside::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_in_the_journal_lands_or_is_put_aside() {
    let Some(database) = fresh().await else {
        return;
    };
    let poisons: [fn(&mut UsageRecord); 12] = [
        |_| {},
        |record| record.model_served = Some("nul\0".into()),
        |record| record.model_served = Some("m".repeat(100_000)),
        |record| record.duration_us = Some(u64::MAX),
        |record| record.usage.set(Unit::Output, Decimal::MAX),
        |record| record.usage.set(Unit::Output, Decimal::new(15, 1)),
        |record| record.cost_usd = Some(Usd::new(Decimal::MAX)),
        |record| record.raw_usage = Some(r#"{"cut": "#.into()),
        // These the database alone refuses, with the whole batch.
        |record| record.http_status = Some(u16::MAX),
        |record| record.id = id(at("9999-12-31T23:59:59Z"), 1),
        |record| {
            // No index takes a key of that size, and it cannot be pressed.
            let noise = (0..500).map(|_| clock::new_id().simple().to_string());
            record
                .caller
                .attribution
                .insert("team".into(), noise.collect());
        },
        |_| {},
    ];
    const STRIDE: u64 = 50;
    let records: Vec<UsageRecord> = (0..12 * STRIDE)
        .map(|number| {
            let mut record = record(at("2026-11-23T12:00:00Z"), number);
            record.caller.trace_id = Some(Ask::plain(number).trace_id());
            // Good ones are before, between and behind.
            if number % STRIDE == STRIDE / 2 {
                poisons[usize::try_from(number / STRIDE).unwrap()](&mut record);
            }
            record
        })
        .collect();
    let mut home = Home::without_provider();
    home.set("STORE__URL", database.url());
    home.leave_in_journal(&records);
    let server = home.start().await;
    let scrape = server.quiet().await;
    assert_eq!(scrape.stage("dead_lettered"), 7);
    server.stop().await;
    let expected = [
        (2, "model_served is 100000 bytes long, 65536 is the limit"),
        (3, "duration_us is beyond the range of its column"),
        (4, "output_tokens is beyond the range of its column"),
        (5, "output_tokens is not a whole number of tokens"),
        (8, "out of range for type smallint (SQLSTATE 22003)"),
        (9, "400 days ahead of the database's clock (SQLSTATE 22023)"),
        (10, "(SQLSTATE 54000)"),
    ];
    let aside = put_aside(&home).await;
    assert_eq!(aside.len(), expected.len());
    for ((number, reason), (poison, expected)) in aside.iter().zip(expected) {
        assert_eq!(*number, poison * STRIDE + STRIDE / 2);
        assert!(reason.ends_with(expected), "{reason}");
    }
    let rows = home.rows().await;
    assert_eq!(rows.len(), records.len() - expected.len());
    assert_eq!(sums_kept(&database).await, sums_of_rows(&rows));
}
