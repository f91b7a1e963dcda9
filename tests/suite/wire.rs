//! Wire formats: what holds for any bytes, cut anywhere, and that hostile ones stay in bounds.

// For the lints: everything here is a test.
#![cfg(test)]

#[path = "../fuzz/properties.rs"]
pub(crate) mod properties;

use std::io::Write;

use http::Method;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use serde_json::{Value, json};
use taffrail::wire::inflate::{Decoding, Inflater, OUTPUT_BYTES_MAX, RATIO_FREE_BYTES};
use taffrail::wire::json::{Path, Step, Want};

/// Properties run on a fixed seed, so that a failure is the same for everyone.
pub(crate) fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0x7AFF_7A11),
        ..ProptestConfig::default()
    }
}

const KEYS: &[&str] = &[
    "a",
    "b",
    "usage",
    "choices",
    "",
    "ключ",
    "\u{1F600}",
    "with \"quotes\"",
];

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => prop::sample::select(KEYS).prop_map(String::from),
        1 => any::<String>(),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(|number| json!(number)),
        any::<f64>().prop_map(|number| json!(number)),
        any::<String>().prop_map(Value::String),
        "[a-z ]{0,40}".prop_map(Value::String),
    ];
    leaf.prop_recursive(6, 60, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
            prop::collection::vec((key(), inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// A document as some writer might put it: compact or not, letters escaped or not.
fn document() -> impl Strategy<Value = Vec<u8>> {
    (value(), any::<bool>(), any::<bool>()).prop_map(|(value, is_pretty, is_escaped)| {
        let text = if is_pretty {
            serde_json::to_string_pretty(&value).unwrap()
        } else {
            value.to_string()
        };
        let text = if is_escaped {
            escape_letters(&text)
        } else {
            text
        };
        text.into_bytes()
    })
}

/// Escapes some characters inside strings, those beyond the first plane as surrogates.
fn escape_letters(text: &str) -> String {
    let (mut escaped, mut in_string, mut after_backslash) = (String::new(), false, false);
    for character in text.chars() {
        let is_plain = in_string && !after_backslash && !matches!(character, '"' | '\\');
        if is_plain && (character == 'u' || character == 'a' || !character.is_ascii()) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                escaped += &format!("\\u{unit:04x}");
            }
        } else {
            in_string ^= character == '"' && !after_backslash;
            escaped.push(character);
        }
        after_backslash = character == '\\' && !after_backslash;
    }
    escaped
}

fn paths() -> impl Strategy<Value = &'static [Path]> {
    let step = prop_oneof![
        prop::sample::select(KEYS).prop_map(Step::Key),
        Just(Step::Each),
    ];
    let want = prop_oneof![
        prop::sample::select(vec![0, 1, 5, 40, 10_000]).prop_map(Want::Text),
        Just(Want::Kind),
        Just(Want::Chars),
        Just(Want::Count),
    ];
    let path = (prop::collection::vec(step, 0..4), want).prop_map(|(steps, want)| Path {
        steps: steps.leak(),
        want,
    });
    prop::collection::vec(path, 0..12).prop_map(|paths| &*paths.leak())
}

/// Bytes with a few of them changed, removed or added.
pub(crate) fn damaged(bytes: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let damage = (
        any::<prop::sample::Index>(),
        0..4u8,
        prop::sample::select(&b"{}[]\",:\\u0-1eE.tn \n\x01\xff"[..]),
    );
    (bytes, prop::collection::vec(damage, 1..4)).prop_map(|(mut bytes, damages)| {
        for (index, how, byte) in damages {
            let at = index.index(bytes.len() + 1);
            match how {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, byte),
                _ if at == bytes.len() => bytes.push(byte),
                2 => bytes[at] = byte,
                _ => {
                    bytes.remove(at);
                }
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(config(600))]

    #[test]
    fn picked_values_are_those_that_serde_json_reads(
        paths in paths(), document in document(), seed: u64,
    ) {
        properties::picker(paths, &document, seed);
    }

    #[test]
    fn a_damaged_document_is_judged_as_serde_json_does(
        paths in paths(), document in damaged(document()), seed: u64,
    ) {
        properties::picker(paths, &document, seed);
    }

    #[test]
    fn garbage_is_judged_as_serde_json_does(
        paths in paths(), document in "[\\[\\]{}\",:\\\\u0-1eE.tn \n]{0,30}", seed: u64,
    ) {
        properties::picker(paths, document.as_bytes(), seed);
    }

    #[test]
    fn streams_decode_to_the_events_of_the_standard(
        stream in "((data|event|id|retry|dat|)(:| :|: |)[a-z:{}\u{feff} ]{0,8}(\n|\r|\r\n|\n\n|\r\r|\r\n\r\n|)){0,12}",
        has_mark: bool,
        seed: u64,
    ) {
        let stream = if has_mark { "\u{feff}".to_owned() + &stream } else { stream };
        properties::sse(stream.as_bytes(), seed);
    }

    #[test]
    fn events_survive_being_framed(
        events in prop::collection::vec(("[a-z_.]{0,130}", "([^\r]|\n){0,60}"), 0..8),
        newline in prop::sample::select(vec!["\n", "\r", "\r\n"]),
        seed: u64,
    ) {
        let mut stream = String::new();
        for (name, data) in &events {
            stream += &format!("event: {name}\n");
            for line in data.split('\n') {
                stream += &format!("data: {line}\n");
            }
            stream += "\n";
        }
        let stream = stream.replace('\n', newline);
        let expected: Vec<(Vec<u8>, Vec<u8>)> = events
            .iter()
            .map(|(name, data)| (name.bytes().take(128).collect(), data.clone().into_bytes()))
            .collect();
        prop_assert_eq!(properties::sse(stream.as_bytes(), seed), expected);
    }

    #[test]
    fn form_fields_survive_being_framed(
        parts in prop::collection::vec(
            (prop::sample::select(vec!["model", "size", "other"]), any::<bool>(), "(\r|\n|-|b|[a-z]){0,12}"),
            0..6,
        ),
        seed: u64,
    ) {
        let mut form = String::new();
        let mut expected = Vec::new();
        for (name, is_file, value) in &parts {
            // A value must not contain the delimiter.
            let value = value.replace("\r\n--b", "");
            let file = if *is_file { "; filename=\"f\"" } else { "" };
            form += &format!(
                "--b\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n{value}\r\n"
            );
            if let Some(index) = properties::FIELDS.iter().position(|field| field == name)
                && !is_file
                && !value.starts_with("--b")
            {
                expected.push((index, value.into_bytes()));
            } else if value.starts_with("--b") {
                // Then it would be a delimiter, and this case says nothing.
                return Ok(());
            }
        }
        form += "--b--\r\n";
        prop_assert_eq!(properties::multipart("b", form.as_bytes(), seed), expected);
    }

    #[test]
    fn broken_forms_are_read_alike_wherever_they_are_cut(
        form in "(--b|\r\n|\r|\n|--|Content-Disposition: form-data; name=|\"model\"|; filename=x|[a-z\"\\\\;=]{0,4}){0,30}",
        seed: u64,
    ) {
        properties::multipart("b", form.as_bytes(), seed);
    }
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn encoded_bodies_decode_alike_wherever_they_are_cut(
        content in prop::collection::vec("[a-z]{1,30}", 0..400).prop_map(|words| words.concat().into_bytes()),
        flip in prop::option::of(any::<prop::sample::Index>()),
        seed: u64,
    ) {
        for (coding, encode) in ENCODERS {
            let mut body = encode(&content);
            match flip {
                None => {
                    let pieces = properties::cut(&body, seed);
                    prop_assert_eq!(properties::decode(coding, &pieces), (content.clone(), Decoding::Ok));
                }
                Some(index) if !body.is_empty() => {
                    let at = index.index(body.len());
                    body[at] ^= 0x10;
                }
                Some(_) => {}
            }
            properties::inflate(&body, seed);
        }
    }

    #[test]
    fn garbage_in_any_coding_stays_in_bounds(body: Vec<u8>, seed: u64) {
        properties::inflate(&body, seed);
    }
}

/// JSON of the words that billing and price APIs use, in places where they do not belong.
fn answers() -> impl Strategy<Value = Vec<u8>> {
    let word = prop::sample::select(vec![
        "data",
        "error",
        "message",
        "id",
        "usage",
        "total_cost",
        "is_byok",
        "credits",
        "balance",
        "currency",
        "USD",
        "cost",
        "cost_total",
        "billing_events",
        "request_id",
        "gen-1",
        "next_cursor",
        "has_more",
        "time_series",
        "bucket",
        "results",
        "amount",
        "value",
        "date",
        "2026-11-21",
        "2026-11-21T00:00:00Z",
        "prices",
        "endpoint_id",
        "unit_price",
        "pricing",
        "prompt",
        "total_credits",
        "total_usage",
        "limit_remaining",
        "next_page",
        "start_time",
        "a/b",
    ]);
    let number = prop::sample::select(vec![
        "0",
        "-1",
        "1e-7",
        "79228162514264337593543950335",
        "1e400",
        "-0.0",
        "0.1",
        "1758000000",
    ]);
    let leaf = prop_oneof![
        word.clone().prop_map(|word| format!("{word:?}")),
        number.clone().prop_map(str::to_owned),
        number.prop_map(|number| format!("{number:?}")),
        prop::sample::select(vec!["null", "true", "false", "[]", "{}", "\"\\u0000\""])
            .prop_map(str::to_owned),
    ];
    let nested = leaf.prop_recursive(5, 40, 5, move |inner| {
        let member =
            (word.clone(), inner.clone()).prop_map(|(name, value)| format!("{name:?}:{value}"));
        prop_oneof![
            prop::collection::vec(inner, 0..5).prop_map(|all| format!("[{}]", all.join(","))),
            prop::collection::vec(member, 0..5).prop_map(|all| format!("{{{}}}", all.join(","))),
        ]
    });
    nested.prop_map(String::into_bytes)
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn no_answer_breaks_who_reads_balances_bills_or_prices(
        body in prop_oneof![answers(), any::<Vec<u8>>()],
        cut: prop::sample::Index,
        seed: u64,
    ) {
        for body in [&body[..], &body[..cut.index(body.len() + 1)]] {
            properties::balances(body, seed);
            properties::bills(body, seed);
            properties::prices(body, seed);
        }
    }
}

/// Inputs of the fuzz targets, among them what once failed there.
#[test]
fn the_seeds_of_the_fuzz_targets_hold() {
    let mut seen = 0;
    for (target, check) in SEEDED {
        for seed in std::fs::read_dir(format!("tests/fuzz/seeds/{target}")).unwrap() {
            let input = std::fs::read(seed.unwrap().path()).unwrap();
            let (seed, bytes) = input.split_first_chunk().unwrap();
            check(bytes, u64::from_le_bytes(*seed));
            seen += 1;
        }
    }
    assert!(seen > SEEDED.len());
}

type Check = fn(&[u8], u64);

const SEEDED: &[(&str, Check)] = &[
    ("picker", |bytes, seed| {
        properties::picker(properties::PATHS, bytes, seed)
    }),
    ("sse", |bytes, seed| drop(properties::sse(bytes, seed))),
    ("http1", |bytes, seed| {
        drop(properties::http1(&Method::POST, bytes, seed));
        drop(properties::http1(&Method::HEAD, bytes, seed));
    }),
    ("inflate", properties::inflate),
    ("multipart", |bytes, seed| {
        drop(properties::multipart("b", bytes, seed))
    }),
    ("rewrite", |bytes, seed| {
        properties::request(bytes, seed);
        properties::response(bytes, seed);
        properties::job_urls(bytes, seed);
    }),
    ("balances", properties::balances),
    ("bills", properties::bills),
    ("prices", properties::prices),
    ("jobs", |bytes, seed| {
        properties::job_meters(bytes, seed);
    }),
];

type Encode = fn(&[u8]) -> Vec<u8>;

const ENCODERS: &[(&str, Encode)] = &[
    ("gzip", |content| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }),
    ("deflate", |content| {
        let mut encoder =
            flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }),
    ("br", |content| {
        let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 20);
        encoder.write_all(content).unwrap();
        encoder.into_inner()
    }),
    ("zstd", |content| zstd::encode_all(content, 3).unwrap()),
];

/// How a bomb ends, how much it gave and how much of it was read.
fn explode(coding: &str, bomb: &[u8], piece_bytes: usize) -> (Decoding, u64) {
    let mut inflater = Inflater::new(Some(coding));
    let mut output_bytes = 0;
    for piece in bomb.chunks(piece_bytes) {
        inflater.push(piece, &mut |bytes| {
            output_bytes += u64::try_from(bytes.len()).unwrap()
        });
    }
    inflater.end();
    (inflater.status(), output_bytes)
}

#[test]
fn bombs_are_defused_early_and_alike_wherever_they_are_cut() {
    let zeros = vec![0; 8 << 20];
    for (coding, encode) in ENCODERS {
        let bomb = encode(&zeros);
        let whole = explode(coding, &bomb, usize::MAX);
        assert_eq!(
            whole,
            (Decoding::TooLarge, RATIO_FREE_BYTES + (64 << 10)),
            "{coding}"
        );
        for piece_bytes in [1, 7, 1000] {
            assert_eq!(
                explode(coding, &bomb, piece_bytes),
                whole,
                "{coding}, {piece_bytes}"
            );
        }
    }
}

#[test]
fn expansion_is_free_up_to_its_threshold() {
    for (above, expected) in [(0, Decoding::Ok), (64 << 10, Decoding::TooLarge)] {
        let size = RATIO_FREE_BYTES + above;
        let zeros = vec![0; usize::try_from(size).unwrap()];
        for (coding, encode) in ENCODERS {
            assert_eq!(
                explode(coding, &encode(&zeros), 100),
                (expected, size),
                "{coding}"
            );
        }
    }
}

#[test]
fn output_is_capped_to_the_byte() {
    // Incompressible, so that only the cap on the output counts.
    let mut state = 1u64;
    let mut block = Vec::with_capacity(1 << 20);
    while block.len() < 1 << 20 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        block.extend_from_slice(&(state >> 16).to_le_bytes());
    }
    let blocks = OUTPUT_BYTES_MAX >> 20;
    for extra in [0, 1] {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        for _ in 0..blocks {
            encoder.write_all(&block).unwrap();
        }
        encoder.write_all(&block[..extra]).unwrap();
        let body = encoder.finish().unwrap();
        let expected = if extra == 0 {
            Decoding::Ok
        } else {
            Decoding::TooLarge
        };
        assert_eq!(
            explode("zstd", &body, 1 << 16),
            (expected, OUTPUT_BYTES_MAX),
            "{extra}"
        );
    }
}

#[test]
fn bombs_of_many_members_are_defused_too() {
    let member = |coding: &str| {
        let (_, encode) = ENCODERS.iter().find(|(name, _)| *name == coding).unwrap();
        encode(&vec![0; 100_000])
    };
    for coding in ["gzip", "zstd"] {
        let bomb = member(coding).repeat(1000);
        let (status, output_bytes) = explode(coding, &bomb, 4096);
        assert_eq!(status, Decoding::TooLarge, "{coding}");
        assert!(
            output_bytes <= 2 * RATIO_FREE_BYTES,
            "{coding}: {output_bytes}"
        );
    }
}
