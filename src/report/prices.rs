//! `taffrail prices list`: what a request of now would be priced with.

use std::io;

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde_json::{Map, Value, json};

use super::table::{Footer, Grid, UNKNOWN};
use super::{Format, write_csv, write_json_line};
use crate::price::{ModelEntry, ModelName, Price, PriceBook, Rate, is_priced_per_million};
use crate::usage::Unit;

/// What `taffrail prices list` is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PricesRequest {
    /// Only prices of this provider.
    pub provider: Option<String>,
    /// Only models whose name contains this text.
    pub model: Option<String>,
    /// How to write it.
    pub format: Format,
    /// The width to fit a table in, in characters; `None` for as wide as it gets.
    pub width: Option<u16>,
}

/// The columns of their own, with the units that they show, first one known first.
const COLUMNS: [(&str, &[Unit]); 5] = [
    ("Input", &[Unit::Input]),
    ("Cache read", &[Unit::CacheRead]),
    ("Cache write", &[Unit::CacheWrite5m, Unit::CacheWrite]),
    ("Cache write 1h", &[Unit::CacheWrite1h]),
    ("Output", &[Unit::Output]),
];

/// Writes the prices that hold at `now`.
///
/// # Errors
/// The writer's.
pub fn prices(
    book: &PriceBook,
    request: &PricesRequest,
    now: DateTime<Utc>,
    out: &mut dyn io::Write,
) -> io::Result<()> {
    let mut listed: Vec<(&str, ModelEntry<'_>, &Price)> = book
        .providers()
        .filter(|provider| {
            request
                .provider
                .as_deref()
                .is_none_or(|wanted| wanted == *provider)
        })
        .flat_map(|provider| book.models(provider).map(move |model| (provider, model)))
        .filter(|(_, model)| {
            request
                .model
                .as_deref()
                .is_none_or(|wanted| model.name.contains(wanted))
        })
        .filter_map(|(provider, model)| Some((provider, model, model.prices.at(now)?)))
        .collect();
    listed.sort_by_key(|(provider, model, _)| (*provider, model.name));
    match request.format {
        Format::Json => {
            for (provider, model, price) in &listed {
                write_json_line(out, &line(provider, model, price))?;
            }
            Ok(())
        }
        Format::Csv => {
            let header = ["provider", "model", "unit", "service_tier", "usd", "per"];
            let header = std::iter::once(header.map(str::to_owned).to_vec());
            let rows = listed.iter().flat_map(|(provider, model, price)| {
                let tiers = std::iter::once(None).chain(price.service_tiers().map(Some));
                tiers.flat_map(move |tier| {
                    rates(price, tier).map(move |(unit, rate)| {
                        vec![
                            (*provider).to_owned(),
                            model.name.to_owned(),
                            unit.as_str().to_owned(),
                            tier.unwrap_or("standard").to_owned(),
                            shown(rate, unit),
                            per(unit).to_owned(),
                        ]
                    })
                })
            });
            write_csv(out, header.chain(rows))
        }
        Format::Table if listed.is_empty() => writeln!(
            out,
            "No price matches. `taffrail prices list` without options lists them all; \
             prices.overlay_file adds your own."
        ),
        Format::Table => {
            write!(out, "{}", table(&listed, request.width))?;
            writeln!(
                out,
                "\n\nUSD a million tokens or characters, or one of the named unit. {UNKNOWN} is \
                 not listed. Catalogue {}.",
                book.version()
            )
        }
    }
}

/// How the price of a model differs between two books at a time, a line for each rate.
pub fn price_changes(
    before: &PriceBook,
    after: &PriceBook,
    model: &ModelName,
    at: DateTime<Utc>,
) -> Vec<String> {
    let price = |book: &PriceBook| {
        let prices = book.prices(&model.provider, &model.model)?;
        prices.at(at).cloned()
    };
    let (Some(new), old) = (price(after), price(before)) else {
        return Vec::new();
    };
    if old
        .as_ref()
        .is_some_and(|old| old.version() == new.version())
    {
        return Vec::new();
    }
    let rate = |price: &Price, unit| {
        let rate = price.rate(unit, None, Decimal::ZERO);
        rate.map_or(UNKNOWN.to_owned(), |rate| shown(rate, unit))
    };
    let lines: Vec<String> = Unit::ALL
        .iter()
        .filter_map(|unit| {
            let old = old
                .as_ref()
                .map_or(UNKNOWN.to_owned(), |old| rate(old, *unit));
            let new = rate(&new, *unit);
            (old != new).then(|| format!("{unit} {old} -> {new}"))
        })
        .collect();
    match lines.is_empty() {
        true => vec!["other terms for the same rates".to_owned()],
        false => lines,
    }
}

/// The listed rates of a tier (`None` is the standard one), for requests of any length.
fn rates<'a>(price: &'a Price, tier: Option<&'a str>) -> impl Iterator<Item = (Unit, Rate)> + 'a {
    Unit::ALL
        .iter()
        .filter_map(move |unit| Some((*unit, price.rate(*unit, tier, Decimal::ZERO)?)))
}

fn shown(rate: Rate, unit: Unit) -> String {
    rate.as_published(unit).normalize().to_string()
}

fn per(unit: Unit) -> &'static str {
    if is_priced_per_million(unit) {
        "1000000"
    } else {
        "1"
    }
}

fn line(provider: &str, model: &ModelEntry<'_>, price: &Price) -> Value {
    let object = |tier| -> Map<String, Value> {
        rates(price, tier)
            .map(|(unit, rate)| (unit.as_str().to_owned(), Value::from(shown(rate, unit))))
            .collect()
    };
    let tiers: Map<String, Value> = price
        .service_tiers()
        .map(|tier| (tier.to_owned(), object(Some(tier)).into()))
        .collect();
    let variants: Vec<Value> = price
        .variant_rates()
        .map(|(variant, unit, rate)| {
            json!({ "variant": variant, "unit": unit.as_str(), "usd": shown(rate, unit) })
        })
        .collect();
    let when: Vec<Value> = price
        .qualified_rates()
        .map(|(conditions, unit, rate)| {
            json!({ "when": conditions, "unit": unit.as_str(), "usd": shown(rate, unit) })
        })
        .collect();
    json!({
        "provider": provider,
        "model": model.name,
        "same_as": model.same_as,
        "version": &**price.version(),
        "usd": object(None),
        "service_tiers": tiers,
        "variants": variants,
        "when": when,
    })
}

fn table(listed: &[(&str, ModelEntry<'_>, &Price)], width: Option<u16>) -> String {
    let mut grid = Grid::default();
    let texts = |text: &dyn Fn(&(&str, ModelEntry<'_>, &Price)) -> String| {
        listed.iter().map(text).collect::<Vec<String>>()
    };
    grid.text(
        "Provider".to_owned(),
        texts(&|(provider, ..)| (*provider).to_owned()),
    );
    grid.wrapping_text(
        "Model".to_owned(),
        texts(&|(_, model, _)| model.name.to_owned()),
    );
    for (heading, units) in COLUMNS {
        let cells = texts(&|(.., price)| {
            units
                .iter()
                .find_map(|unit| Some(shown(price.rate(*unit, None, Decimal::ZERO)?, *unit)))
                .unwrap_or_else(|| UNKNOWN.to_owned())
        });
        grid.right(heading, cells);
    }
    let others = texts(&|(.., price)| {
        rates(price, None)
            .filter(|(unit, _)| !COLUMNS.iter().any(|(_, units)| units.contains(unit)))
            .map(|(unit, rate)| format!("{unit} {}", shown(rate, unit)))
            .chain(price.qualified_rates().map(|(conditions, unit, rate)| {
                format!("{unit} {} when {conditions}", shown(rate, unit))
            }))
            .chain(
                price
                    .context_limits()
                    .map(|limit| format!("more above {limit} tokens")),
            )
            .collect::<Vec<String>>()
            .join(", ")
    });
    grid.wrapping_text("Other".to_owned(), others);
    let tiers = texts(&|(.., price)| price.service_tiers().collect::<Vec<&str>>().join(", "));
    grid.wrapping_text("Tiers".to_owned(), tiers);
    grid.fit(width, &["Tiers", "Cache write 1h", "Other", "Cache write"]);
    grid.render(width, Footer::None)
}
