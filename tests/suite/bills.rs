//! What vendors' bill APIs are asked, and what their answers come to: every conversation of
//! `tests/fixtures/bills`.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use chrono::NaiveDate;
use http::{HeaderMap, StatusCode};
use rust_decimal::Decimal;
use taffrail::ask::{Answer, Ask, Fault, KeyPlace};
use taffrail::bill::{self, BillApi, Period};

/// A call and its answer.
struct Exchange {
    call: Vec<String>,
    answer: Answer,
}

/// Reads a conversation, and what is to come of it.
fn parse(text: &str) -> (Vec<Exchange>, Vec<String>) {
    let mut exchanges: Vec<Exchange> = Vec::new();
    let mut expected = Vec::new();
    let mut is_call = false;
    for line in text.lines() {
        if let Some(call) = line.strip_prefix("> ") {
            if !is_call {
                exchanges.push(Exchange {
                    call: Vec::new(),
                    answer: Answer {
                        status: StatusCode::OK,
                        headers: HeaderMap::new(),
                        body: Bytes::new(),
                    },
                });
            }
            exchanges.last_mut().unwrap().call.push(call.to_owned());
        } else if let Some(status) = line.strip_prefix("< ") {
            exchanges.last_mut().unwrap().answer.status = status.parse().unwrap();
        } else if let Some(line) = line.strip_prefix("= ") {
            expected.push(line.to_owned());
        } else {
            exchanges.last_mut().unwrap().answer.body = Bytes::from(line.to_owned());
        }
        is_call = line.starts_with('>');
    }
    (exchanges, expected)
}

/// A call as it would be sent.
fn sent(ask: &Ask) -> Vec<String> {
    let mut lines = vec![format!("{} {}", ask.method, ask.path)];
    lines.push(match &ask.key {
        KeyPlace::Nowhere => "no key".to_owned(),
        KeyPlace::Authorization(word) => format!("authorization: {word} KEY"),
        KeyPlace::Header(name) => format!("{name}: KEY"),
    });
    let headers = ask.headers.iter();
    lines.extend(headers.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())));
    lines
}

fn converse(
    api: &dyn BillApi,
    exchanges: &[Exchange],
) -> Result<BTreeMap<NaiveDate, Decimal>, Fault> {
    let period = Period {
        from: "2026-11-20".parse().unwrap(),
        to: "2026-11-23".parse().unwrap(),
    };
    let mut days: BTreeMap<NaiveDate, Decimal> = BTreeMap::new();
    let mut next = Some(api.first(period, None));
    for exchange in exchanges {
        let ask = next.expect("nothing more is asked");
        assert_eq!(sent(&ask), exchange.call);
        let page = api.read(period, &ask, &exchange.answer)?;
        for (day, usd) in page.days {
            *days.entry(day).or_default() += usd;
        }
        next = page.next;
    }
    assert_eq!(next, None, "more is asked");
    Ok(days)
}

#[test]
fn every_conversation_comes_to_what_it_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bills");
    for vendor in bill::VENDORS {
        let api = bill::api(vendor).unwrap();
        let mut cases = Vec::new();
        for entry in std::fs::read_dir(root.join(vendor)).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{vendor}/{}", path.file_stem().unwrap().display());
            let (exchanges, expected) = parse(&std::fs::read_to_string(&path).unwrap());
            let told: Vec<String> = match converse(api, &exchanges) {
                Ok(days) => days
                    .iter()
                    .map(|(day, usd)| format!("{day} {}", usd.normalize()))
                    .collect(),
                Err(fault) => vec![format!("{} {}", fault.class.as_str(), fault.detail)],
            };
            assert_eq!(told, expected, "{name}");
            cases.push(name);
        }
        for wanted in ["good", "empty", "forbidden", "malformed", "rate-limited"] {
            let wanted = format!("{vendor}/{wanted}");
            assert!(cases.contains(&wanted), "there is no {wanted}");
        }
    }
}

#[test]
fn an_answer_cut_off_anywhere_is_no_bill() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bills");
    for vendor in bill::VENDORS {
        let text = std::fs::read_to_string(root.join(vendor).join("good.txt")).unwrap();
        let (mut exchanges, _) = parse(&text);
        let body = exchanges[0].answer.body.clone();
        for end in 0..body.len() {
            exchanges[0].answer.body = body.slice(..end);
            let told = converse(bill::api(vendor).unwrap(), &exchanges);
            assert!(told.is_err(), "{vendor} cut at {end}: {told:?}");
        }
    }
}
