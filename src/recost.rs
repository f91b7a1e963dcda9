//! `taffrail prices recost`: costs of rows computed anew from the price book, some at a time, with
//! their sums, and how far it is.
//!
//! A row does not tell all that its cost may depend on: a size, a region, the parts of a call that
//! used several models. So a cost is computed anew only where the price that it was made with gives
//! the old one again. A cost is never taken away, and one that the provider stated never touched.

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use indicatif::{ProgressBar, ProgressStyle};
use rust_decimal::Decimal;
use uuid::Uuid;

use crate::money::{Usd, parse_decimal};
use crate::price::{PriceBook, Query};
use crate::qualifier::Qualifiers;
use crate::record::{CostSource, Fidelity, Operation};
use crate::store::{CostChange, CostQuery, LogRow, Store, TOKEN_COLUMNS};
use crate::usage::{Unit, Usage};

/// How many rows are read, and changed in one transaction, at a time.
const ROWS_PER_BATCH: u32 = 500;

/// Whether rows are changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// They are.
    Change,
    /// It is only counted what would change.
    DryRun,
}

/// What became of the rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rows that were looked at.
    pub rows: u64,
    /// Those that have another cost now.
    pub changed: u64,
    /// Those among them that had none before.
    pub newly_priced: u64,
    /// Those that the book has no price for.
    pub without_price: u64,
    /// Those whose old cost the row does not explain, so that a new one would be a guess.
    pub unexplained: u64,
    /// What all that changed cost before.
    pub before: Usd,
    /// What it costs now.
    pub after: Usd,
}

/// Costs rows anew. May be interrupted and run again: what is done has nothing left to change.
///
/// # Errors
/// The store's; what was done until then stays.
pub async fn recost(
    store: &Store,
    book: &PriceBook,
    query: &CostQuery,
    mode: Mode,
) -> anyhow::Result<Tally> {
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template(
        "{spinner} {pos} rows, up to {msg}",
    )?);
    let mut tally = Tally::default();
    let mut after: Option<(DateTime<Utc>, Uuid)> = None;
    loop {
        let rows = store
            .costed_rows(query, after, ROWS_PER_BATCH)
            .await
            .context("cannot read the rows")?;
        let Some(last) = rows.last() else { break };
        let place = place(last).context("a row has no start")?;
        after = Some(place);
        let mut changes = Vec::new();
        for row in &rows {
            tally.rows += 1;
            match reconsider(book, row) {
                Verdict::Change(change) => changes.push(change),
                Verdict::Same => {}
                Verdict::WithoutPrice => tally.without_price += 1,
                Verdict::Unexplained => tally.unexplained += 1,
            }
        }
        for change in &changes {
            tally.newly_priced += u64::from(change.old_cost_usd.is_none());
            tally.before = tally.before + Usd::new(change.old_cost_usd.unwrap_or_default());
            tally.after = tally.after + Usd::new(change.cost_usd);
        }
        let count = u64::try_from(changes.len())?;
        tally.changed += match mode {
            Mode::Change if count > 0 => store
                .recost(&changes)
                .await
                .with_context(|| format!("rows before {} are done; run it again", place.0))?,
            _ => count,
        };
        bar.set_message(place.0.to_string());
        bar.inc(u64::try_from(rows.len())?);
    }
    bar.finish_and_clear();
    Ok(tally)
}

enum Verdict {
    Change(CostChange),
    Same,
    WithoutPrice,
    Unexplained,
}

/// What the book says of a row.
fn reconsider(book: &PriceBook, row: &LogRow) -> Verdict {
    let text = |column| row.get(column).as_text();
    let (Some((at, id)), Some(provider)) = (place(row), text("provider")) else {
        return Verdict::Unexplained;
    };
    let model = text("model_served").or(text("model_requested"));
    let (Some(model), Some(operation), Some(usage), Some(day)) = (
        model,
        text("operation").and_then(Operation::from_name),
        usage(row),
        text("day").and_then(|day| day.parse().ok()),
    ) else {
        return Verdict::Unexplained;
    };
    let unknown = Qualifiers::default();
    let query = Query {
        provider,
        model,
        usage: &usage,
        service_tier: text("service_tier"),
        region: None,
        image_variant: None,
        qualifiers: [&unknown, &unknown],
        operation,
        at,
    };
    let new = book.price(&query);
    let Some(cost) = new.cost else {
        return Verdict::WithoutPrice;
    };
    let old = text("cost_usd").and_then(parse_decimal);
    if old == Some(cost.dollars()) {
        return Verdict::Same;
    }
    let depends_on_more = book
        .prices(provider, model)
        .and_then(|prices| prices.at(at))
        .is_none_or(|price| price.depends_on_more_than_usage());
    if let Some(old) = old {
        let version = text("price_version").unwrap_or_default();
        let again = book.price_with(&query, version).cost.map(Usd::dollars);
        // The catalogue of another build is not known here: then the usage must be all there is.
        let is_explained = again.map_or(!depends_on_more, |again| again == old);
        if !is_explained {
            return Verdict::Unexplained;
        }
    }
    let is_sure = text("cost_source") != Some(CostSource::Estimated.as_str())
        && text("fidelity") == Some(Fidelity::Complete.as_str())
        && !new.estimated
        && !(old.is_none() && depends_on_more);
    Verdict::Change(CostChange {
        id,
        day,
        old_cost_usd: old,
        cost_usd: cost.dollars(),
        cost_upstream_usd: None,
        cost_source: match is_sure {
            true => CostSource::Catalog,
            false => CostSource::Estimated,
        },
        price_version: Some(new.version.to_string()),
    })
}

fn place(row: &LogRow) -> Option<(DateTime<Utc>, Uuid)> {
    let started_at = row.get("started_at").as_text()?.parse().ok()?;
    let id = row.get("id").as_text()?.parse().ok()?;
    Some((started_at, id))
}

/// What a row consumed; `None` if that cannot be read.
fn usage(row: &LogRow) -> Option<Usage> {
    let mut usage = Usage::new();
    for (unit, column) in TOKEN_COLUMNS {
        if let Some(tokens) = row.get(column).as_integer() {
            usage.set(*unit, Decimal::from(tokens));
        }
    }
    if let crate::store::Value::Json(units) = row.get("units") {
        let units: serde_json::Map<String, serde_json::Value> = serde_json::from_str(units).ok()?;
        for (name, quantity) in &units {
            let quantity = parse_decimal(quantity.as_str()?)?;
            usage.set(Unit::from_name(name)?, quantity);
        }
    }
    (!usage.is_empty()).then_some(usage)
}
