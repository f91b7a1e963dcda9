//! The price book: published prices in, exact dollars out; names that match and names that must
//! not; the overlay; and the embedded catalogue itself.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests; a literal that does not parse is a broken test"
)]

use std::collections::{BTreeSet, HashSet};
use std::process::Command;
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use proptest::prelude::*;
use rust_decimal::Decimal;

use taffrail::money::{Usd, parse_decimal};
use taffrail::price::{Layer, Missing, PriceBook, Priced, Query, Version};
use taffrail::qualifier::{Qualifier, Qualifiers};
use taffrail::record::Operation;
use taffrail::usage::{Unit, Usage};

const CATALOGUE: &str = include_str!("../../src/price/catalog.json");

static BOOK: LazyLock<PriceBook> = LazyLock::new(PriceBook::embedded);

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn today() -> DateTime<Utc> {
    at("2026-11-24T05:00:00Z")
}

fn dec(text: &str) -> Decimal {
    parse_decimal(text).unwrap()
}

fn usage<const N: usize>(quantities: [(Unit, u64); N]) -> Usage {
    let mut usage = Usage::new();
    for (unit, quantity) in quantities {
        usage.set(unit, quantity);
    }
    usage
}

static NOTHING: LazyLock<Qualifiers> = LazyLock::new(Qualifiers::default);

fn query<'a>(provider: &'a str, model: &'a str, usage: &'a Usage) -> Query<'a> {
    Query {
        provider,
        model,
        usage,
        service_tier: None,
        region: None,
        image_variant: None,
        qualifiers: [&NOTHING, &NOTHING],
        operation: Operation::Chat,
        at: today(),
    }
}

fn priced(cost: &str, estimated: bool) -> Priced {
    Priced {
        cost: Some(Usd::new(dec(cost).normalize())),
        version: BOOK.version().into(),
        missing: None,
        estimated,
    }
}

fn unpriced(missing: Option<Missing>) -> Priced {
    Priced {
        cost: None,
        version: BOOK.version().into(),
        missing,
        estimated: false,
    }
}

// Published prices, by hand. Rates are in dollars per million tokens.

#[test]
fn openai_models_cost_what_their_price_list_says() {
    use Unit::{CacheRead, CacheWrite, Input, Output, Reasoning, Search};
    let book = &*BOOK;
    let price = |model: &str, usage: Usage| book.price(&query("openai", model, &usage));
    let tier = |model: &str, tier: &str, usage: Usage| {
        book.price(&Query {
            service_tier: Some(tier),
            ..query("openai", model, &usage)
        })
    };
    // 1000 × 0.15 + 500 × 0.075 + 200 × 0.60 = 150 + 37.5 + 120
    let mini = usage([(Input, 1000), (CacheRead, 500), (Output, 200)]);
    assert_eq!(
        price("gpt-4o-mini-2024-07-18", mini),
        priced("0.0003075", false)
    );
    let cached = usage([(Input, 1000), (CacheRead, 1000), (Output, 100)]);
    // 1000 × 2.50 + 1000 × 1.25 + 100 × 10 = 2500 + 1250 + 1000
    assert_eq!(price("gpt-4o", cached.clone()), priced("0.00475", false));
    assert_eq!(
        tier("gpt-4o", "default", cached.clone()),
        priced("0.00475", false)
    );
    // 1000 × 4.25 + 1000 × 2.125 + 100 × 17 = 4250 + 2125 + 1700
    assert_eq!(
        tier("gpt-4o", "priority", cached.clone()),
        priced("0.008075", false)
    );
    // Batch lists no cached rate, so the standard one holds: 1000 × 1.25 + 1000 × 1.25 + 100 × 5
    assert_eq!(tier("gpt-4o", "batch", cached), priced("0.003", false));
    // Reasoning is output: 10000 × 1.25 + (500 + 4500) × 10 = 12500 + 50000
    let thought = usage([(Input, 10_000), (Output, 500), (Reasoning, 4_500)]);
    assert_eq!(price("gpt-5", thought.clone()), priced("0.0625", false));
    // Flex is half of it.
    assert_eq!(tier("gpt-5", "flex", thought), priced("0.03125", false));
    // 1000 × 2 + 90000 × 0.10 + 9000 × 2.50 + 1000 × 10 = 2000 + 9000 + 22500 + 10000
    let written = usage([
        (Input, 1000),
        (CacheRead, 90_000),
        (CacheWrite, 9000),
        (Output, 1000),
    ]);
    assert_eq!(price("gpt-6.1-sol", written), priced("0.0435", false));
    // One million tokens at 0.02.
    assert_eq!(
        price("text-embedding-3-small", usage([(Input, 1_000_000)])),
        priced("0.02", false)
    );
    // (1000 × 2 + 1000 × 10) × 1.1, and a search at 10 for a thousand, which no region changes.
    let searched = usage([(Input, 1000), (Output, 1000), (Search, 1)]);
    assert_eq!(
        book.price(&Query {
            region: Some("us"),
            ..query("openai", "gpt-6-sol", &searched)
        }),
        priced("0.0232", false)
    );
    // Preview search is 25 for a thousand, and the snapshot is not gpt-4o-mini's.
    assert_eq!(
        price(
            "gpt-4o-mini-search-preview-2025-03-11",
            usage([(Input, 0), (Search, 2)])
        ),
        priced("0.05", false)
    );
    // Fine-tuned: 1000 × 3.75 + 1000 × 15, not gpt-4o's 2.50 and 10.
    let tuned = usage([(Input, 1000), (Output, 1000)]);
    assert_eq!(
        price("ft:gpt-4o-2024-08-06:acme:support:7p4lURel", tuned),
        priced("0.01875", false)
    );
}

const BY_WHAT_IS_ASKED: &str = r#"
[models.studio.film]
when = [
    { resolution = "720p", audio = true, video_second = 0.06 },
    { resolution = "720p", audio = false, video_second = "0.045" },
    { resolution = "1080P", video_second = 0.09 },
]

[models.studio.clip]
when = [
    { resolution = "768p", seconds = 6, billable_unit = 0.28 },
    { resolution = "768p", seconds = 10, billable_unit = 0.56 },
]

[models.studio.sketch]
image = 0.01
when = [{ resolution = "4k", image = 0.04 }]

[models.studio.llama]
compute_second = 0.001
when = [{ operation = "training", compute_second = 0.0015 }]
"#;

fn qualifiers<const N: usize>(values: [(Qualifier, &str); N]) -> Qualifiers {
    let mut qualifiers = Qualifiers::default();
    for (qualifier, value) in values {
        qualifiers.set(qualifier, value);
    }
    qualifiers
}

#[test]
fn a_price_depends_on_what_was_asked_for_and_is_unknown_where_that_is() {
    use Qualifier::{Audio, Resolution, Seconds};
    use Unit::{BillableUnit, ComputeSecond, Image, VideoSecond};
    let book = BOOK.clone().with_overlay(BY_WHAT_IS_ASKED).unwrap();
    let cost = |model, usage: &Usage, stated: Qualifiers, asked: Qualifiers| {
        let priced = book.price(&Query {
            qualifiers: [&stated, &asked],
            operation: Operation::Prediction,
            ..query("studio", model, usage)
        });
        (
            priced.cost.map(|cost| cost.to_string()),
            priced.missing,
            priced.estimated,
        )
    };
    let exactly = |cost: &str| (Some(cost.to_owned()), None, false);
    let unknown = |unit| (None, Some(Missing::Qualifier(unit)), false);
    let nothing = Qualifiers::default;

    let film = usage([(VideoSecond, 5), (ComputeSecond, 80)]);
    let hd = || qualifiers([(Resolution, "720p")]);
    for (asked, expected) in [
        (
            qualifiers([(Resolution, "720p"), (Audio, "true")]),
            exactly("0.3"),
        ),
        (
            qualifiers([(Resolution, "720p"), (Audio, "false")]),
            exactly("0.225"),
        ),
        // Whether there is sound makes no difference here.
        (qualifiers([(Resolution, "1080p")]), exactly("0.45")),
        (hd(), unknown(VideoSecond)),
        (nothing(), unknown(VideoSecond)),
        // It is known, and not listed.
        (
            qualifiers([(Resolution, "4k")]),
            (None, Some(Missing::Unit(VideoSecond)), false),
        ),
    ] {
        assert_eq!(
            cost("film", &film, nothing(), asked.clone()),
            expected,
            "{asked:?}"
        );
    }
    // What the provider states wins, and each may know what the other does not.
    let stated = qualifiers([(Resolution, "1080p")]);
    assert_eq!(cost("film", &film, stated, hd()), exactly("0.45"));
    let silent = qualifiers([(Audio, "false")]);
    assert_eq!(cost("film", &film, silent, hd()), exactly("0.225"));

    let clip = usage([(BillableUnit, 1), (VideoSecond, 6)]);
    for (seconds, expected) in [
        ("6", exactly("0.28")),
        ("6.04", exactly("0.28")),
        ("8s", exactly("0.56")),
        ("12", (None, Some(Missing::Unit(VideoSecond)), false)),
    ] {
        let asked = qualifiers([(Resolution, "768p"), (Seconds, seconds)]);
        assert_eq!(cost("clip", &clip, nothing(), asked), expected, "{seconds}");
    }

    // A plain rate is that of everything else; where it cannot be told, it is an estimate.
    let two = usage([(Image, 2)]);
    for (resolution, cents, is_estimated) in [
        ("4k", "0.08", false),
        ("1k", "0.02", false),
        ("", "0.02", true),
    ] {
        let asked = qualifiers([(Resolution, resolution)]);
        let expected = (Some(cents.to_owned()), None, is_estimated);
        assert_eq!(
            cost("sketch", &two, nothing(), asked),
            expected,
            "{resolution}"
        );
    }

    let minute = usage([(ComputeSecond, 60)]);
    assert_eq!(
        cost("llama", &minute, nothing(), nothing()),
        exactly("0.06")
    );
    let training = book.price(&Query {
        operation: Operation::Training,
        ..query("studio", "llama", &minute)
    });
    assert_eq!(training.cost, Some(Usd::new(dec("0.09"))));
    assert_eq!(
        Missing::Qualifier(VideoSecond).reason().as_str(),
        "qualifier_unknown"
    );
}

#[test]
fn replicates_time_and_videos_cost_what_its_pages_say() {
    use Qualifier::{Resolution, Seconds};
    use Unit::{BillableUnit, ComputeSecond, VideoSecond};
    let time = usage([(ComputeSecond, 10)]);
    for (model, cost) in [
        ("openai/whisper", "0.00225"),
        ("sczhou/codeformer", "0.00975"),
        ("genmoai/mochi-1", "0.01525"),
        ("tmappdev/lang-segment-anything", "0.014"),
    ] {
        let priced = BOOK.price(&query("replicate", model, &time));
        assert_eq!(priced.cost, Some(Usd::new(dec(cost))), "{model}");
        assert!(!priced.estimated);
        assert_eq!(&*priced.version, BOOK.version());
    }
    let clip = usage([(ComputeSecond, 90), (VideoSecond, 10), (BillableUnit, 1)]);
    let asked = qualifiers([(Resolution, "768P"), (Seconds, "10")]);
    for (model, cost) in [
        ("minimax/hailuo-2.3", "0.56"),
        ("wan-video/wan-2.5-i2v-fast", ""),
    ] {
        let priced = BOOK.price(&Query {
            qualifiers: [&NOTHING, &asked],
            ..query("replicate", model, &clip)
        });
        let known = priced.cost.map(|cost| cost.to_string());
        assert_eq!(known.unwrap_or_default(), cost, "{model}");
    }
}

#[test]
fn a_size_that_is_not_known_is_no_missing_price() {
    let image = usage([(Unit::Image, 1)]);
    let priced = BOOK.price(&query("openai", "dall-e-3", &image));
    assert_eq!(priced.missing, Some(Missing::Qualifier(Unit::Image)));
}

#[test]
fn other_media_of_openai_cost_what_their_price_list_says() {
    use Unit::{
        AudioSecond, CacheRead, Character, Image, Input, InputAudio, InputImage, Output,
        OutputAudio, OutputImage, VideoSecond,
    };
    let book = &*BOOK;
    let price = |model: &str, usage: Usage| book.price(&query("openai", model, &usage));
    let variant = |model: &str, variant: &str, usage: Usage| {
        book.price(&Query {
            image_variant: Some(variant),
            ..query("openai", model, &usage)
        })
    };
    // 100 × 4 + 1000 × 32 + 50 × 24 + 500 × 64 = 400 + 32000 + 1200 + 32000
    let spoken = usage([
        (Input, 100),
        (InputAudio, 1000),
        (Output, 50),
        (OutputAudio, 500),
    ]);
    assert_eq!(price("gpt-realtime-2", spoken), priced("0.0656", false));
    // Cached text costs 0.40, a cached image 0.50, and the usage does not say which it was.
    assert_eq!(
        price("gpt-realtime-2", usage([(CacheRead, 1000)])),
        priced("0.0004", true)
    );
    // 50 × 5 + 1000 × 8 + 1056 × 32; the image is counted in its tokens.
    let drawn = usage([
        (Input, 50),
        (InputImage, 1000),
        (OutputImage, 1056),
        (Image, 1),
    ]);
    assert_eq!(price("gpt-image-1.5", drawn), priced("0.042042", false));
    // Ninety seconds at 0.006 a minute.
    assert_eq!(
        price("whisper-1", usage([(AudioSecond, 90)])),
        priced("0.009", false)
    );
    // An hour at 0.017 a minute: no digit is lost although a second is 0.00028333….
    assert_eq!(
        price("gpt-live-transcribe", usage([(AudioSecond, 3600)])),
        priced("1.02", false)
    );
    // 1500 × 6 + 200 × 10
    assert_eq!(
        price(
            "gpt-4o-transcribe",
            usage([(InputAudio, 1500), (Output, 200)])
        ),
        priced("0.011", false)
    );
    // 4000 characters at 15 a million.
    assert_eq!(
        price("tts-1", usage([(Character, 4000)])),
        priced("0.06", false)
    );
    assert_eq!(
        variant("dall-e-3", "1024x1792/hd", usage([(Image, 2)])),
        priced("0.24", false)
    );
    assert_eq!(
        variant("dall-e-3", "640x480", usage([(Image, 2)])),
        unpriced(Some(Missing::Unit(Image)))
    );
    // Eight seconds at 0.30, or at 0.50 in the larger size; of another size it is a guess.
    let filmed = usage([(VideoSecond, 8)]);
    assert_eq!(price("sora-2-pro", filmed.clone()), priced("2.4", false));
    assert_eq!(
        variant("sora-2-pro", "1792x1024", filmed.clone()),
        priced("4", false)
    );
    assert_eq!(
        variant("sora-2-pro", "720x720", filmed),
        priced("2.4", true)
    );
}

#[test]
fn claude_costs_what_its_price_list_says() {
    use Unit::{CacheRead, CacheWrite, CacheWrite1h, CacheWrite5m, Input, Output, Search};
    let book = &*BOOK;
    let price = |model: &str, usage: Usage| book.price(&query("anthropic", model, &usage));
    let tier = |model: &str, tier: &str, usage: Usage| {
        book.price(&Query {
            service_tier: Some(tier),
            ..query("anthropic", model, &usage)
        })
    };
    // 6 × 3 + 574 × 3.75 + 20443 × 0.30 + 489 × 15 = 18 + 2152.5 + 6132.9 + 7335
    let cached = usage([
        (Input, 6),
        (CacheWrite5m, 574),
        (CacheRead, 20_443),
        (Output, 489),
    ]);
    assert_eq!(
        price("claude-sonnet-4-5-20250929", cached),
        priced("0.0156384", false)
    );
    // Cache reads count to the context: 150000 × 6 + 60000 × 0.60 + 1000 × 22.50
    let long = usage([(Input, 150_000), (CacheRead, 60_000), (Output, 1000)]);
    assert_eq!(price("claude-sonnet-4-5", long), priced("0.9585", false));
    // Fast, an hour's cache: 1000 × 8 + 10000 × 16 + 1000 × 40
    let fast = usage([(Input, 1000), (CacheWrite1h, 10_000), (Output, 1000)]);
    assert_eq!(
        tier("claude-opus-5-5", "fast", fast),
        priced("0.208", false)
    );
    // (1000 × 5 + 1000 × 25) × 1.1 + 3 × 0.01
    let searched = usage([(Input, 1000), (Output, 1000), (Search, 3)]);
    assert_eq!(
        book.price(&Query {
            region: Some("us"),
            ..query("anthropic", "claude-opus-4-6", &searched)
        }),
        priced("0.063", false)
    );
    assert_eq!(
        book.price(&Query {
            region: Some("global"),
            ..query("anthropic", "claude-opus-4-6", &searched)
        }),
        priced("0.06", false)
    );
    // Batch above 100k tokens: 100001 × 0.25 + 1000 × 1.25
    let batch = usage([(Input, 100_001), (Output, 1000)]);
    assert_eq!(
        tier("claude-haiku-5-5", "batch", batch),
        priced("0.02625025", false)
    );
    // A write of unstated lifetime is the five-minute one: 1000 × 1.25
    assert_eq!(
        price("claude-haiku-4-5", usage([(CacheWrite, 1000)])),
        priced("0.00125", false)
    );
    // No public price: standard rates, marked as an estimate. 1000 × 3 + 100 × 15
    assert_eq!(
        tier(
            "claude-sonnet-4-6",
            "priority",
            usage([(Input, 1000), (Output, 100)])
        ),
        priced("0.0045", true)
    );
}

#[test]
fn other_vendors_cost_what_their_price_lists_say() {
    use Unit::{AudioSecond, Input, Output};
    let book = &*BOOK;
    let chat = usage([(Input, 1000), (Output, 100)]);
    let price = |provider, model| book.price(&query(provider, model, &chat));
    // 1000 × 3 + 100 × 15
    for name in [
        "anthropic/claude-sonnet-4.5",
        "anthropic/claude-4.5-sonnet-20250929",
    ] {
        assert_eq!(price("openrouter", name), priced("0.0045", false), "{name}");
    }
    assert_eq!(
        price("openrouter", "anthropic/claude-sonnet-4.5:nitro"),
        priced("0.0045", true)
    );
    assert_eq!(
        price("openrouter", "deepseek/deepseek-r1:free"),
        priced("0", false)
    );
    // Azure charges OpenAI's price for what it does not list itself: 1000 × 2 + 100 × 10
    assert_eq!(price("azure", "gpt-6.1-sol"), priced("0.003", false));
    // Vertex charges Anthropic's: 1000 × 4 + 100 × 20
    assert_eq!(
        price("vertex", "claude-opus-5-5@20260921"),
        priced("0.006", false)
    );
    // An hour at 0.111.
    let heard = usage([(AudioSecond, 3600)]);
    assert_eq!(
        book.price(&query("groq", "whisper-large-v3", &heard)),
        priced("0.111", false)
    );
}

#[test]
fn jobs_of_replicate_cost_what_their_metrics_or_their_hardware_say() {
    use Unit::{BillableUnit, ComputeSecond, Image, Input, Output, VideoSecond};
    let document = include_str!("../../docs/prices.md");
    let (_, section) = document.split_once("## Replicate").unwrap();
    let overlay = section.split("```").nth(1).unwrap();
    let overlay = overlay.strip_prefix("toml").unwrap();
    let told = BOOK.clone().with_overlay(overlay).unwrap();
    let seconds = |text: &str| Usage::new().with(ComputeSecond, dec(text));
    let cost = |book: &PriceBook, model: &str, usage: &Usage| {
        let priced = book.price(&query("replicate", model, usage));
        match priced.cost {
            Some(cost) => Ok((cost.to_string(), priced.estimated)),
            None => Err(priced.missing.unwrap()),
        }
    };
    let dollars = |text: &str| Ok((text.to_owned(), false));

    // What a job makes is billed, and the time beside it is not: 39 × 0.05 + 149 × 0.25
    let said = seconds("2.1").with(Input, 39).with(Output, 149);
    let llama = "meta/meta-llama-3-8b-instruct";
    assert_eq!(cost(&BOOK, llama, &said), dollars("0.0000392"));
    let painted = seconds("0.432").with(Image, 2);
    let schnell = "black-forest-labs/flux-schnell";
    assert_eq!(cost(&BOOK, schnell, &painted), dollars("0.006"));
    let filmed = seconds("121.5").with(BillableUnit, 1).with(VideoSecond, 6);
    assert_eq!(cost(&told, "minimax/video-01", &filmed), dollars("0.5"));

    // Seconds cost nothing that could be told until the hardware is.
    let painted = seconds("4.484541").with(Image, 1);
    let sdxl = "stability-ai/sdxl";
    assert_eq!(cost(&BOOK, sdxl, &painted), Err(Missing::Model));
    // 4.484541 × 0.000975
    assert_eq!(cost(&told, sdxl, &painted), dollars("0.004372427475"));
    // 4.484541 × 0.000725
    assert_eq!(
        cost(&told, "acme/my-app-image-generator", &painted),
        dollars("0.003251292225")
    );
    // 2.1 × 0.0014
    assert_eq!(cost(&told, "acme/my-llama", &said), dollars("0.00294"));
    assert_eq!(
        cost(&BOOK, llama, &seconds("1.5")),
        Err(Missing::Unit(ComputeSecond))
    );
}

#[test]
fn a_price_holds_from_its_day_and_in_its_hours() {
    use Unit::{Input, Output};
    let book = &*BOOK;
    let chat = usage([(Input, 100_000), (Output, 10_000)]);
    let price = |provider, model, time: &str| {
        book.price(&Query {
            at: at(time),
            ..query(provider, model, &chat)
        })
    };
    for (provider, model, time, cost) in [
        // 100000 × 1 + 10000 × 6, then × 0.20 and × 1.20.
        ("openai", "gpt-5.6-luna", "2026-07-29T23:59:59Z", "0.16"),
        ("openai", "gpt-5.6-luna", "2026-07-30T00:00:00Z", "0.032"),
        // An introductory price ends: 100000 × 0.75 + 10000 × 3.75, then twice that.
        (
            "gemini",
            "gemini-3.8-flash",
            "2026-12-31T23:59:59Z",
            "0.1125",
        ),
        (
            "gemini",
            "gemini-3.8-flash",
            "2027-01-01T00:00:00Z",
            "0.225",
        ),
        // Off peak 100000 × 0.66 + 10000 × 1.98; at the peak twice that.
        (
            "deepseek",
            "deepseek-v4-pro",
            "2026-11-24T00:59:59Z",
            "0.0858",
        ),
        (
            "deepseek",
            "deepseek-v4-pro",
            "2026-11-24T01:00:00Z",
            "0.1716",
        ),
        (
            "deepseek",
            "deepseek-v4-pro",
            "2026-11-24T04:00:00Z",
            "0.0858",
        ),
    ] {
        assert_eq!(
            price(provider, model, time),
            priced(cost, false),
            "{model} {time}"
        );
    }
}

#[test]
fn the_long_context_rate_holds_for_all_tokens_above_the_limit_only() {
    use Unit::{Input, Output};
    let book = &*BOOK;
    let cost = |tier: Option<&str>, tokens: u64| {
        let usage = usage([(Input, tokens), (Output, 1000)]);
        let priced = book.price(&Query {
            service_tier: tier,
            ..query("openai", "gpt-5.4", &usage)
        });
        priced.cost.unwrap().to_string()
    };
    // Tokens × 2.50 + 1000 × 15 up to 272000, tokens × 5 + 1000 × 22.50 above.
    assert_eq!(cost(None, 271_999), "0.6949975");
    assert_eq!(cost(None, 272_000), "0.695");
    assert_eq!(cost(None, 272_001), "1.382505");
    // Priority lists one rate for every length: 300000 × 5 + 1000 × 30.
    assert_eq!(cost(Some("priority"), 300_000), "1.53");
}

// What has no price.

#[test]
fn absent_is_not_zero() {
    use Unit::{CacheRead, Image, Input, InputAudio, Output, Search};
    let book = &*BOOK;
    let price = |provider, model, usage: Usage| book.price(&query(provider, model, &usage));
    assert_eq!(price("openai", "gpt-4o", Usage::new()), unpriced(None));
    assert_eq!(
        price("openai", "gpt-4o", usage([(Input, 0)])),
        priced("0", false)
    );
    assert_eq!(
        price("openai", "no-such-model", usage([(Input, 1)])),
        unpriced(Some(Missing::Model))
    );
    assert_eq!(
        price("no-such-provider", "gpt-4o", usage([(Input, 1)])),
        unpriced(Some(Missing::Model))
    );
    // Neither cached nor audio tokens are ever charged as plain input.
    assert_eq!(
        price("openai", "gpt-5-pro", usage([(Input, 1), (CacheRead, 1)])),
        unpriced(Some(Missing::Unit(CacheRead)))
    );
    assert_eq!(
        price("openai", "gpt-4o", usage([(Input, 1), (InputAudio, 1)])),
        unpriced(Some(Missing::Unit(InputAudio)))
    );
    // A zero needs no rate.
    assert_eq!(
        price("openai", "gpt-5-pro", usage([(Input, 1), (CacheRead, 0)])),
        priced("0.000015", false)
    );
    // Images are not paid for by the tokens of the prompt.
    assert_eq!(
        price(
            "openai",
            "gpt-4o",
            usage([(Input, 9), (Output, 9), (Image, 1)])
        ),
        unpriced(Some(Missing::Unit(Image)))
    );
    assert_eq!(
        price(
            "anthropic",
            "claude-3-haiku",
            usage([(Input, 9), (Search, 1)])
        ),
        unpriced(Some(Missing::Unit(Search)))
    );
    // A price of zero is a price.
    assert_eq!(
        price("openai", "omni-moderation-latest", usage([(Input, 12)])),
        priced("0", false)
    );
    // A negative quantity is a mistake that must not lower a bill.
    let negative = Usage::new().with(Input, 5).with(Output, -5);
    assert_eq!(
        price("openai", "gpt-4o", negative),
        unpriced(Some(Missing::Unit(Output)))
    );
    let absurd = Usage::new()
        .with(Input, Decimal::MAX)
        .with(Output, Decimal::MAX);
    let absurd = price("openai", "gpt-4o", absurd);
    assert!(absurd.cost.is_none() || absurd.cost > Some(Usd::ZERO));
}

// Names.

#[test]
fn a_name_finds_its_own_model() {
    let book = &*BOOK;
    for (provider, name, model) in [
        ("openai", "gpt-4o-mini", "gpt-4o-mini"),
        ("openai", "gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("openai", "gpt-4o-2024-11-20", "gpt-4o"),
        ("openai", "gpt-4o-2024-05-13", "gpt-4o-2024-05-13"),
        ("openai", "gpt-4-0613", "gpt-4"),
        ("openai", "gpt-4.1-nano-2025-04-14", "gpt-4.1-nano"),
        ("openai", "gpt-5-chat-latest", "gpt-5"),
        ("openai", "gpt-5.1-codex-max", "gpt-5.1"),
        ("openai", "gpt-5.6", "gpt-5.6-sol"),
        ("openai", "codex-mini-latest", "codex-mini"),
        ("openai", "o3-2025-04-16", "o3"),
        ("openai", "gpt-realtime-2025-08-28", "gpt-realtime"),
        (
            "openai",
            "ft:gpt-4o-mini-2024-07-18:acme::id",
            "ft:gpt-4o-mini",
        ),
        (
            "anthropic",
            "claude-sonnet-4-5-20250929",
            "claude-sonnet-4-5",
        ),
        ("anthropic", "claude-sonnet-4-20250514", "claude-sonnet-4"),
        ("anthropic", "claude-opus-4-1-20250805", "claude-opus-4-1"),
        (
            "anthropic",
            "claude-3-5-haiku-20241022",
            "claude-3-5-haiku-latest",
        ),
        ("anthropic", "claude-haiku-4.5", "claude-haiku-4-5"),
        ("anthropic", "claude-opus-5-5-20260921", "claude-opus-5-5"),
        ("openrouter", "openai/gpt-4o-mini", "openai/gpt-4o-mini"),
        (
            "openrouter",
            "openai/gpt-4o-mini:floor",
            "openai/gpt-4o-mini",
        ),
        ("azure", "gpt-5.6-sol-2026-08-21", "gpt-5.6-sol"),
    ] {
        let found = book.prices(provider, name);
        assert!(found.is_some(), "{provider} {name}");
        assert_eq!(found, book.prices(provider, model), "{provider} {name}");
    }
}

#[test]
fn a_name_that_only_looks_alike_finds_nothing_or_its_own() {
    let book = &*BOOK;
    for (provider, name) in [
        ("openai", "gpt-4o-mini-"),
        ("openai", "gpt-4o-mini-turbo"),
        ("openai", "gpt-4o-mini-2024-07-18-preview"),
        ("openai", "gpt-4o-mini-20240718x"),
        ("openai", "gpt-4o-mini-2024-13-18"),
        ("openai", "gpt-4o-mini-latest-latest"),
        ("openai", "GPT-4o"),
        ("openai", " gpt-4o"),
        ("openai", "openai/gpt-4o"),
        ("openai", "gpt-4o:nitro"),
        ("openai", "ft:gpt-5:acme:x:id"),
        ("openai", "ft:gpt-4o-mini-2024-07-18:acme"),
        ("openai", "gpt"),
        ("openai", ""),
        ("openai", "*"),
        ("anthropic", "claude"),
        ("anthropic", "claude-sonnet-4-5-v2"),
        ("anthropic", "claude-sonnet-4-5-20250929-v1:0"),
        ("anthropic", "anthropic/claude-sonnet-4.5"),
        ("openrouter", "gpt-4o-mini-x"),
        ("openrouter", "openai/gpt-4o-mini:online"),
        ("openrouter", "openai/gpt-4o-mini:beta"),
        ("azure", "my-gpt-4o"),
    ] {
        assert_eq!(book.prices(provider, name), None, "{provider} {name}");
    }
    for (name, other) in [
        ("gpt-4o-mini-tts", "gpt-4o-mini"),
        ("gpt-4o-mini-transcribe", "gpt-4o-mini"),
        ("gpt-4o-audio-preview", "gpt-4o"),
        ("gpt-4o-mini", "gpt-4o"),
        ("gpt-5.1-codex-mini", "gpt-5.1"),
        ("gpt-5-pro", "gpt-5"),
        ("gpt-4", "gpt-4o"),
        ("ft:gpt-4o-2024-08-06:acme:x:id", "gpt-4o"),
    ] {
        let found = book.prices("openai", name);
        assert!(found.is_some(), "{name}");
        assert_ne!(found, book.prices("openai", other), "{name}");
    }
}

/// Every listed name with its provider.
static NAMES: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
    BOOK.providers()
        .flat_map(|provider| {
            let models = BOOK.models(provider);
            models.map(move |model| (provider.to_owned(), model.name.to_owned()))
        })
        .collect()
});

/// The suffixes that may be stripped, written down a second time.
fn is_strict_suffix(provider: &str, suffix: &str) -> bool {
    let mut shape = String::new();
    for character in suffix.chars() {
        shape.push(if character.is_ascii_digit() {
            '0'
        } else {
            character
        });
    }
    let routed = provider == "openrouter"
        && [":nitro", ":floor", ":exacto"]
            .iter()
            .any(|variant| suffix.ends_with(variant));
    routed
        || suffix.ends_with("-latest")
        || ["-0000-00-00", "-00000000", "@00000000"]
            .iter()
            .any(|date| shape.ends_with(date))
}

proptest! {
    #[test]
    fn a_random_suffix_never_matches(
        index in any::<prop::sample::Index>(),
        suffix in "[-a-z0-9._:@/]{1,12}",
    ) {
        let (provider, name) = index.get(&NAMES);
        let longer = format!("{name}{suffix}");
        // The longer name may itself be listed, there or by a provider whose prices are charged.
        prop_assume!(NAMES.iter().all(|(_, listed)| *listed != longer));
        prop_assume!(!is_strict_suffix(provider, &longer));
        prop_assert_eq!(BOOK.prices(provider, &longer), None);
    }
}

// Laws.

const LAW_MODELS: [(&str, &str); 6] = [
    ("openai", "gpt-5.4"),
    ("openai", "gpt-6-sol"),
    ("openai", "gpt-realtime-2"),
    ("anthropic", "claude-sonnet-4-5"),
    ("anthropic", "claude-haiku-5-5"),
    ("gemini", "gemini-2.5-pro"),
];

fn quantities() -> impl Strategy<Value = Vec<(Unit, u64)>> {
    let unit = prop::sample::select(Unit::ALL);
    prop::collection::vec((unit, 0..400_000u64), 0..8)
}

/// The dollars for the quantities that the model has a rate for.
fn dollars(model: (&str, &str), quantities: &[(Unit, u64)]) -> Decimal {
    let mut usage = Usage::new();
    usage.set(Unit::Input, 0);
    for (unit, quantity) in quantities {
        let alone = Usage::new().with(*unit, 1);
        let rated = BOOK.price(&query(model.0, model.1, &alone)).cost.is_some();
        if rated {
            usage.set(*unit, *quantity);
        }
    }
    let priced = BOOK.price(&query(model.0, model.1, &usage));
    assert_eq!(priced.missing, None);
    priced.cost.unwrap().dollars()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn more_of_a_unit_never_costs_less(
        model in prop::sample::select(&LAW_MODELS[..]),
        mut quantities in quantities(),
        index in any::<prop::sample::Index>(),
        more in 1..400_000u64,
    ) {
        let less = dollars(model, &quantities);
        if !quantities.is_empty() {
            let (unit, _) = *index.get(&quantities);
            let total = quantities.iter().rfind(|(other, _)| *other == unit).unwrap().1 + more;
            quantities.push((unit, total));
        }
        prop_assert!(dollars(model, &quantities) >= less);
    }

    #[test]
    fn disjoint_quantities_add_up_below_the_first_context_limit(
        model in prop::sample::select(&LAW_MODELS[..]),
        input in 0..20_000u64,
        output in 0..900_000u64,
        read in 0..20_000u64,
        reasoning in 0..900_000u64,
    ) {
        let parts = [
            (Unit::Input, input),
            (Unit::CacheRead, read),
            (Unit::Output, output),
            (Unit::Reasoning, reasoning),
        ];
        let sum: Decimal = parts.iter().map(|part| dollars(model, &[*part])).sum();
        prop_assert_eq!(dollars(model, &parts), sum);
    }

    #[test]
    fn none_of_a_unit_adds_nothing(
        model in prop::sample::select(&LAW_MODELS[..]),
        quantities in quantities(),
    ) {
        let book = &*BOOK;
        let mut usage = Usage::new();
        for (unit, quantity) in &quantities {
            usage.set(*unit, *quantity);
        }
        let before = book.price(&query(model.0, model.1, &usage));
        for unit in Unit::ALL {
            if usage.get(*unit).is_none() && !usage.is_empty() {
                usage.set(*unit, 0);
            }
        }
        prop_assert_eq!(book.price(&query(model.0, model.1, &usage)), before);
    }

    #[test]
    fn the_context_limit_is_where_the_list_says(
        limit in 1..1_000_000u64,
        distance in 0..1_000_000u64,
    ) {
        let overlay = format!(
            "[models.mine.m]\ninput = 1\nabove = [{{ tokens = {limit}, input = 3 }}]\n"
        );
        let book = BOOK.clone().with_overlay(&overlay).unwrap();
        let rate = |tokens: u64| {
            let usage = usage([(Unit::Input, tokens)]);
            let cost = book.price(&query("mine", "m", &usage)).cost.unwrap().dollars();
            cost * Decimal::from(1_000_000u64) / Decimal::from(tokens.max(1))
        };
        prop_assert_eq!(rate(limit), Decimal::ONE);
        prop_assert_eq!(rate(limit + 1), Decimal::from(3));
        prop_assert_eq!(rate(limit + 1 + distance), Decimal::from(3));
        prop_assert!(rate(limit.saturating_sub(distance).max(1)) == Decimal::ONE);
    }

    #[test]
    fn an_overlay_of_any_text_is_read_or_refused(text in "\\PC{0,200}") {
        match BOOK.clone().with_overlay(&text) {
            Ok(book) => prop_assert!(!book.version().is_empty()),
            Err(error) => prop_assert!(!error.problems.is_empty()),
        }
    }
}

// The overlay.

#[test]
fn an_overlay_adds_and_replaces_models_and_names() {
    use Unit::{CacheRead, Input, Output};
    let book = &*BOOK;
    let overlay = r#"
        [models.openai."gpt-4o"]             # a negotiated price
        input = 2.0
        output = "8"
        tiers.batch = { input = 1, output = 4 }

        [models.azure]
        chat-prod = "gpt-6.1-sol-2026-09-29" # a deployment's name

        [models.ollama."*"]
        input = 0
        output = 0

        [models.whisperer.v1]
        audio_second = "0.36/3600"
    "#;
    let own = book.clone().with_overlay(overlay).unwrap();
    let chat = usage([(Input, 1000), (Output, 100)]);
    let cost = |provider, model, usage: &Usage| {
        own.price(&query(provider, model, usage))
            .cost
            .map(|cost| cost.to_string())
    };
    // 1000 × 2 + 100 × 8, for the snapshot and for the names that cost the same, too.
    for name in ["gpt-4o", "gpt-4o-2024-11-20"] {
        assert_eq!(cost("openai", name, &chat), Some("0.0028".to_owned()));
    }
    // The entry replaces the model's prices as a whole.
    let cached = usage([(Input, 1000), (CacheRead, 1)]);
    assert_eq!(
        own.price(&query("openai", "gpt-4o", &cached)).missing,
        Some(Missing::Unit(CacheRead))
    );
    assert_eq!(cost("azure", "chat-prod", &chat), Some("0.003".to_owned()));
    assert_eq!(cost("ollama", "anything:7b", &chat), Some("0".to_owned()));
    assert_eq!(
        cost("whisperer", "v1", &usage([(Unit::AudioSecond, 60)])),
        Some("0.006".to_owned())
    );
    assert_eq!(
        book.prices("openai", "gpt-4o-mini"),
        own.prices("openai", "gpt-4o-mini")
    );
}

#[test]
fn an_overlay_with_a_date_leaves_the_past_alone() {
    let overlay = r#"
        [[models.openai."gpt-4o-mini"]]
        from = "2027-01-01"
        input = 1
        [[models.openai."gpt-4o-mini"]]
        from = "2027-06-01"
        hours = "22:00-06:00"
        input = 0.5
    "#;
    let book = BOOK.clone().with_overlay(overlay).unwrap();
    let million = usage([(Unit::Input, 1_000_000)]);
    for (time, cost) in [
        ("2026-12-31T23:59:59Z", "0.15"),
        ("2027-01-01T00:00:00Z", "1"),
        ("2027-06-01T23:00:00Z", "0.5"),
        ("2027-06-01T12:00:00Z", "1"),
    ] {
        let priced = book.price(&Query {
            at: at(time),
            ..query("openai", "gpt-4o-mini", &million)
        });
        assert_eq!(priced.cost.unwrap().to_string(), cost, "{time}");
    }
}

#[test]
fn a_row_names_the_list_that_its_price_is_from() {
    let million = usage([(Unit::Input, 1_000_000)]);
    let version = |text: &str, model: &str| {
        let book = BOOK.clone().with_overlay(text).unwrap();
        book.price(&query("openai", model, &million)).version
    };
    let overlay = "[models.openai.m]\ninput = 1\n";
    let own = version(overlay, "m");
    assert!(own.starts_with("overlay-") && own.len() == "overlay-12345678".len());
    assert_eq!(version(overlay, "m"), own);
    assert_ne!(version("[models.openai.m]\ninput = 2\n", "m"), own);
    assert_eq!(&*version(overlay, "gpt-4o"), BOOK.version());
}

/// The catalogue with lists over it: name, kind, moment, changes.
fn laid(lists: &[(&str, Layer, &str, &str)]) -> PriceBook {
    let mut book = BOOK.clone();
    for (name, layer, effective_from, catalogue) in lists {
        let version = Version {
            name,
            layer: *layer,
            effective_from: at(effective_from),
            catalogue,
        };
        book.lay(version, at("2026-11-01T00:00:00Z")).unwrap();
    }
    book
}

/// What a million input tokens cost at a time, and the version that says so.
fn million_at(book: &PriceBook, model: &str, time: &str) -> Option<(String, String)> {
    let million = usage([(Unit::Input, 1_000_000)]);
    let priced = book.price(&Query {
        at: at(time),
        ..query("openrouter", model, &million)
    });
    Some((priced.cost?.to_string(), priced.version.to_string()))
}

const MORNING: &str = "2026-11-24T08:00:00Z";
const NOON: &str = "2026-11-24T12:00:00Z";
const EVENING: &str = "2026-11-24T18:00:00Z";

#[test]
fn a_version_holds_from_its_moment_and_what_was_before_stays() {
    let book = laid(&[
        (
            "v1",
            Layer::Api,
            MORNING,
            r#"{"openrouter":{"a/b":{"input":"1"}}}"#,
        ),
        (
            "v2",
            Layer::Api,
            NOON,
            r#"{"openrouter":{"a/b":{"input":"2"},"openai/gpt-4o-mini":{"input":"7"}}}"#,
        ),
        ("v3", Layer::Api, EVENING, r#"{"openrouter":{"a/b":null}}"#),
    ]);
    let found = |cost: &str, version: &str| Some((cost.to_owned(), version.to_owned()));
    // Nothing is known from before the first price of a model.
    assert_eq!(
        million_at(&book, "a/b", "2026-11-20T00:00:00Z"),
        found("1", "v1")
    );
    assert_eq!(
        million_at(&book, "a/b", "2026-11-24T11:59:59Z"),
        found("1", "v1")
    );
    assert_eq!(million_at(&book, "a/b", NOON), found("2", "v2"));
    // What is listed no more keeps its last price.
    assert_eq!(
        million_at(&book, "a/b", "2026-11-25T00:00:00Z"),
        found("2", "v2")
    );
    let of_catalogue = found("0.15", BOOK.version());
    assert_eq!(
        million_at(&book, "openai/gpt-4o-mini", MORNING),
        of_catalogue
    );
    assert_eq!(
        million_at(&book, "openai/gpt-4o-mini", NOON),
        found("7", "v2")
    );
    // The version of a row is found again, although another has superseded it.
    let million = usage([(Unit::Input, 1_000_000)]);
    let later = Query {
        at: at(EVENING),
        ..query("openrouter", "a/b", &million)
    };
    assert_eq!(book.price_with(&later, "v1").cost.unwrap().to_string(), "1");
    assert_eq!(book.price_with(&later, "v9").cost, None);
}

#[test]
fn of_lists_that_hold_at_once_the_stronger_kind_wins() {
    let import = |price: &str| {
        format!(r#"{{"openrouter":{{"a/b":{{"input":"{price}"}},"a/c":{{"input":"{price}"}}}}}}"#)
    };
    let (early, late) = (import("1"), import("2"));
    let api = r#"{"openrouter":{"a/b":{"input":"5"}}}"#;
    let book = laid(&[
        ("i1", Layer::Import, MORNING, &early),
        ("p1", Layer::Api, NOON, api),
        ("i2", Layer::Import, EVENING, &late),
    ]);
    let version = |model: &str, time: &str| million_at(&book, model, time).unwrap().1;
    assert_eq!(version("a/b", MORNING), "i1");
    assert_eq!(version("a/b", NOON), "p1");
    assert_eq!(version("a/b", EVENING), "p1");
    assert_eq!(version("a/c", EVENING), "i2");
    let book = book
        .with_overlay("[models.openrouter.\"a/b\"]\ninput = 9\n")
        .unwrap();
    assert_eq!(million_at(&book, "a/b", MORNING).unwrap().0, "9");
}

#[test]
fn a_list_that_says_what_is_known_changes_nothing() {
    let same = r#"{"openrouter":{"openai/gpt-4o-mini":{"input":"0.15","cache_read":"0.075","output":"0.6"}}}"#;
    let book = laid(&[("v1", Layer::Api, MORNING, same)]);
    let version = million_at(&book, "openai/gpt-4o-mini", EVENING).unwrap().1;
    assert_eq!(version, BOOK.version());
}

#[test]
fn what_was_superseded_long_ago_is_let_go() {
    let mut book = BOOK.clone();
    for day in 1..=20 {
        let catalogue = format!(r#"{{"openrouter":{{"a/b":{{"input":"{day}"}}}}}}"#);
        let effective_from = at(&format!("2026-11-{day:02}T00:00:00Z"));
        let version = Version {
            name: &format!("v{day}"),
            layer: Layer::Api,
            effective_from,
            catalogue: &catalogue,
        };
        book.lay(version, effective_from - chrono::TimeDelta::days(3))
            .unwrap();
    }
    let prices = book.prices("openrouter", "a/b").unwrap();
    assert_eq!(prices.all().count(), 4);
    assert_eq!(
        million_at(&book, "a/b", "2026-11-17T12:00:00Z").unwrap().1,
        "v17"
    );
}

#[test]
fn an_overlay_is_refused_with_every_key_that_is_wrong() {
    let overlay = r#"
        colour = "blue"
        [models.openai."gpt-4o"]
        inputs = 1
        output = -1
        from = 2026-01-01
        hours = "late"
        regions = { us = 0 }
        tiers.batch = { input = "cheap", speed = 1 }
        above = [{ tokens = 1.5, input = 1 }]
        estimate = ["price"]
        billable_unit_is = "pixel"
        [models.openai.empty]
        source = "nowhere"
        [models.azure]
        chat-prod = "gpt-99"
        number = 1
    
        [models.openai.sora]
        when = [
            { video_second = 1 },
            { resolution = "720p" },
            { audio = "loud", video_second = 1 },
            { seconds = "long", video_second = 1 },
            { operation = "dancing", video_second = 1 },
            { resolution = "720p", video_second = 1, colour = 1 },
        ]
    "#;
    let error = BOOK.clone().with_overlay(overlay).unwrap_err();
    let keys: Vec<&str> = error.problems.iter().map(|p| p.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "colour",
            "models.azure.number",
            "models.openai.empty",
            "models.openai.gpt-4o.above.0.tokens",
            "models.openai.gpt-4o.billable_unit_is",
            "models.openai.gpt-4o.estimate",
            "models.openai.gpt-4o.from",
            "models.openai.gpt-4o.hours",
            "models.openai.gpt-4o.inputs",
            "models.openai.gpt-4o.output",
            "models.openai.gpt-4o.regions.us",
            "models.openai.gpt-4o.tiers.batch.input",
            "models.openai.gpt-4o.tiers.batch.speed",
            "models.openai.sora.when.0",
            "models.openai.sora.when.1",
            "models.openai.sora.when.2.audio",
            "models.openai.sora.when.3.seconds",
            "models.openai.sora.when.4.operation",
            "models.openai.sora.when.5.colour",
        ]
    );
    let shown = error.to_string();
    assert_eq!(shown.lines().count(), keys.len());
    for line in [
        "colour: unknown key; accepted: models",
        "models.openai.gpt-4o.regions.us: not a factor; accepted: a number above zero, such as 1.1",
    ] {
        assert!(shown.contains(line), "{shown}");
    }
}

#[test]
fn a_name_that_leads_nowhere_or_in_a_circle_is_refused() {
    let overlay = "[models.openai]\na = \"b\"\nb = \"a\"\nc = \"no-such-model\"\nd = \"gpt-4o\"\n";
    let error = BOOK.clone().with_overlay(overlay).unwrap_err();
    let keys: Vec<&str> = error.problems.iter().map(|p| p.key.as_str()).collect();
    assert_eq!(
        keys,
        ["models.openai.a", "models.openai.b", "models.openai.c"]
    );
}

#[test]
fn an_overlay_that_is_no_toml_is_refused_with_the_position() {
    let error = BOOK
        .clone()
        .with_overlay("[models.openai.m]\ninput = \n")
        .unwrap_err();
    let shown = error.to_string();
    assert_eq!(shown.lines().count(), 1, "{shown}");
    assert!(shown.contains("line 2"), "{shown}");
}

#[test]
fn the_documented_overlay_is_accepted_and_priced() {
    let document = include_str!("../../docs/prices.md");
    let overlay = document
        .split("```toml")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .unwrap();
    let book = BOOK.clone().with_overlay(overlay).unwrap();
    let painted = usage([(Unit::Image, 3)]);
    let priced = book.price(&Query {
        image_variant: Some("1024x1024/hd"),
        ..query("studio", "painter", &painted)
    });
    assert_eq!(priced.cost, Some(Usd::new(dec("0.24"))));
    let sketched = usage([(Unit::Image, 1), (Unit::Megapixel, 2)]);
    let priced = book.price(&query("fal", "acme/sketch", &sketched));
    assert_eq!(priced.cost, Some(Usd::new(dec("0.05"))));
    assert!(priced.estimated);
    for unit in Unit::ALL {
        assert!(document.contains(&format!("`{unit}`")), "{unit}");
    }
}

// The catalogue.

#[test]
fn the_catalogue_lists_every_name_once_and_with_its_source() {
    let mut provider = "";
    let mut seen = HashSet::new();
    let mut models = 0;
    for line in CATALOGUE.lines().skip(2) {
        let Some(name) = line
            .strip_prefix('"')
            .and_then(|rest| rest.split('"').next())
        else {
            continue;
        };
        if line.ends_with("\"models\":{") {
            provider = name;
            continue;
        }
        if line.starts_with("\"providers\"") {
            continue;
        }
        models += 1;
        assert!(seen.insert((provider, name)), "{provider} {name} twice");
        let is_same_as = line.trim_end_matches(',').ends_with('"');
        assert!(
            is_same_as || line.contains("\"source\":\""),
            "{provider} {name}"
        );
    }
    let book = &*BOOK;
    let listed: usize = book.providers().map(|p| book.models(p).count()).sum();
    assert_eq!(
        listed, models,
        "every line is a model, and every name leads to prices"
    );
    assert!(CATALOGUE.len() < 600_000, "{}", CATALOGUE.len());
    for source in ["\"g\":\"genai-prices ", "\"l\":\"litellm "] {
        assert!(CATALOGUE.contains(source));
    }
}

#[test]
fn the_catalogue_has_the_models_in_use() {
    let book = &*BOOK;
    for (provider, names) in [
        (
            "openai",
            "gpt-4.1 gpt-4.1-mini gpt-4o gpt-4o-mini gpt-5 gpt-5-mini gpt-5-nano gpt-5.1 gpt-5.2 \
             gpt-5.4 gpt-5.5 gpt-5.6-sol gpt-6-astra gpt-6-luna gpt-6-sol gpt-6.1-sol \
             gpt-6.1-terra o3 o4-mini o3-deep-research gpt-audio gpt-realtime-2.1 gpt-image-2 \
             text-embedding-3-large whisper-1 tts-1 sora-2",
        ),
        (
            "anthropic",
            "claude-3-haiku claude-haiku-4-5 claude-haiku-5-5 claude-sonnet-4-5 \
             claude-sonnet-4-6 claude-sonnet-5 claude-sonnet-5-5 claude-opus-4-1 claude-opus-4-5 \
             claude-opus-4-8 claude-opus-5 claude-opus-5-5 claude-fable-5-2 claude-mythos-5-2",
        ),
    ] {
        for name in names.split_whitespace() {
            assert!(book.prices(provider, name).is_some(), "{provider} {name}");
        }
    }
    let providers: BTreeSet<&str> = book.providers().collect();
    for provider in [
        "azure",
        "bedrock",
        "cohere",
        "deepseek",
        "fireworks",
        "gemini",
        "groq",
        "mistral",
        "moonshot",
        "openrouter",
        "perplexity",
        "together",
        "vertex",
        "xai",
    ] {
        assert!(providers.contains(provider), "{provider}");
    }
}

#[test]
fn the_catalogue_makes_sense() {
    /// Listed so by the vendor or its sources: a discounted tier that is dearer than standard.
    const DEARER: [(&str, &str); 0] = [];
    let book = &*BOOK;
    let mut wrong = Vec::new();
    for provider in book.providers() {
        for model in book.models(provider) {
            for price in model.prices.all() {
                let mut contexts = vec![Decimal::ZERO];
                contexts.extend(price.context_limits().map(|limit| limit + Decimal::ONE));
                let mut tiers = vec![None];
                tiers.extend(price.service_tiers().map(Some));
                for context in contexts {
                    for tier in &tiers {
                        let rate = |unit| {
                            let rate = price.rate(unit, *tier, context)?;
                            Some(rate.as_published(unit))
                        };
                        let at = format!("{provider} {} {tier:?} {context}", model.name);
                        if rate(Unit::CacheRead)
                            .zip(rate(Unit::Input))
                            .is_some_and(|(read, input)| read > input)
                        {
                            wrong.push(format!("{at}: cache_read above input"));
                        }
                        for unit in Unit::ALL {
                            if rate(*unit).is_some_and(|rate| rate < Usd::ZERO) {
                                wrong.push(format!("{at}: negative {unit}"));
                            }
                            let standard = price.rate(*unit, None, context);
                            let standard = standard.map(|rate| rate.as_published(*unit));
                            if matches!(tier, Some("batch" | "flex"))
                                && rate(*unit) > standard
                                && !DEARER.contains(&(provider, model.name))
                            {
                                wrong.push(format!("{at}: {unit} above standard"));
                            }
                        }
                    }
                }
                let has_rate = Unit::ALL
                    .iter()
                    .any(|unit| price.rate(*unit, None, Decimal::ZERO).is_some());
                let is_bare = price.variant_rates().next().is_none()
                    && price.qualified_rates().next().is_none();
                if !has_rate && is_bare {
                    wrong.push(format!("{provider} {}: no rate", model.name));
                }
                // A piece of work is billed once: by its tokens or by the piece.
                let has = |unit| price.rate(unit, None, Decimal::ZERO).is_some();
                if has(Unit::Image) && (has(Unit::OutputImage) || has(Unit::Megapixel)) {
                    wrong.push(format!("{provider} {}: images twice", model.name));
                }
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn the_catalogue_is_what_its_script_builds() {
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/scripts/build_price_catalogue.py"
    );
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let output = match Command::new(&python).args([script, "--check"]).output() {
        Ok(output) => output,
        Err(error) => {
            eprintln!("SKIP the_catalogue_is_what_its_script_builds: {python}: {error}");
            return;
        }
    };
    let said = String::from_utf8_lossy(&output.stderr);
    // The script's exit code for sources that are missing or of another version.
    if output.status.code() == Some(3) {
        eprintln!("SKIP the_catalogue_is_what_its_script_builds: {said}");
        return;
    }
    assert!(output.status.success(), "{said}");
}
