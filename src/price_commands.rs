//! `taffrail prices …`: what the command line asks of the price book, wired together and told.

use std::io::{self, Write};
use std::sync::Arc;

use anyhow::Context as _;
use chrono::{DateTime, NaiveTime, Utc};

use crate::app;
use crate::cli::{self, EXIT_FAILED, EXIT_OK};
use crate::clock;
use crate::config::Config;
use crate::exporter::prices::{Caution, Outcome, Refreshed, is_failure, last_list};
use crate::metrics::Metrics;
use crate::price::{Changes, Layer, PriceBook, Reading, Rejected, Version, import};
use crate::recost::{self, Mode};
use crate::report::{self, PricesRequest};
use crate::store::{CostQuery, NewPriceVersion, Store, StoreError};

/// How many models that were not taken are named; the others are counted.
const REJECTED_SHOWN_MAX: usize = 20;

/// `taffrail prices …`; returns the exit code.
///
/// # Errors
/// When the store, a file or the output fails.
pub async fn run(config: &Config, command: cli::Prices) -> anyhow::Result<u8> {
    match command {
        cli::Prices::List(options) => list(config, &options).await,
        cli::Prices::Refresh(options) => refresh(config, &options).await,
        cli::Prices::Diff(options) => diff(config, &options).await,
        cli::Prices::Import(options) => bring_in(config, &options).await,
        cli::Prices::Recost(options) => cost_anew(config, &options).await,
    }
}

async fn list(config: &Config, options: &cli::PricesList) -> anyhow::Result<u8> {
    let now = clock::wall();
    let store = match Store::open_read_only(&config.store).await {
        Ok(store) => Some(store),
        Err(StoreError::Missing(_)) => None,
        Err(error) => {
            let what = "taffrail: only built-in prices and those of the overlay are listed";
            writeln!(io::stderr(), "{what}: {error}")?;
            None
        }
    };
    let book = app::price_book(config, store.as_ref(), now).await?;
    let request = PricesRequest {
        provider: options.provider.clone(),
        model: options.model.clone(),
        format: options.format,
        width: report::terminal_width(),
    };
    report::prices(&book, &request, now, &mut io::stdout().lock())?;
    Ok(EXIT_OK)
}

async fn refresh(config: &Config, options: &cli::PricesRefresh) -> anyhow::Result<u8> {
    let store = Store::open(&config.store).await?;
    let metrics = Arc::new(Metrics::new(&config.metrics, &[], &[]));
    let shelf = Arc::new(app::price_shelf(config, &metrics)?);
    let refresher = app::price_refresher(config, &store, &shelf, &metrics)?;
    let caution = match options.accept {
        true => Caution::Accept,
        false => Caution::HoldBack,
    };
    let refreshed = refresher
        .refresh(options.provider.as_deref(), caution)
        .await;
    store.close().await;
    let mut out = io::stdout().lock();
    for source in &refreshed {
        tell(source, &mut out)?;
    }
    Ok(match refreshed.iter().any(is_failure) {
        true => EXIT_FAILED,
        false => EXIT_OK,
    })
}

fn tell(source: &Refreshed, out: &mut dyn Write) -> io::Result<()> {
    let (provider, models) = (source.provider, source.models);
    match &source.outcome {
        Outcome::Unchanged => {
            writeln!(out, "{provider}: {models} models, prices are as they were")?;
        }
        Outcome::Changed {
            version,
            priced,
            dropped,
        } => writeln!(
            out,
            "{provider}: {models} models, {priced} new or with other prices, {dropped} listed no \
             more; version {version}"
        )?,
        Outcome::HeldBack(concerns) => {
            writeln!(
                out,
                "{provider}: HELD BACK; if it is right, run `taffrail prices refresh --provider \
                 {provider} --accept`"
            )?;
            for concern in concerns {
                writeln!(out, "  {concern}")?;
            }
        }
        Outcome::NoKey => writeln!(
            out,
            "{provider}: skipped, no account of it in [[accounts]] has a key"
        )?,
        Outcome::Failed(fault) => writeln!(out, "{provider}: FAILED: {fault}")?,
    }
    tell_rejected(&source.rejected, out)
}

fn tell_rejected(rejected: &[Rejected], out: &mut dyn Write) -> io::Result<()> {
    for Rejected { model, reason } in rejected.iter().take(REJECTED_SHOWN_MAX) {
        writeln!(out, "  not taken: {model}: {reason}")?;
    }
    match rejected.len().checked_sub(REJECTED_SHOWN_MAX) {
        None | Some(0) => Ok(()),
        Some(more) => writeln!(out, "  not taken: {more} more"),
    }
}

async fn diff(config: &Config, options: &cli::PricesDiff) -> anyhow::Result<u8> {
    let since = options.since.resolve(clock::wall());
    let store = Store::open_read_only(&config.store).await?;
    let mut out = io::stdout().lock();
    let mut book = PriceBook::embedded();
    let mut number = 0;
    let mut shown = 0;
    loop {
        let versions = store.price_versions(number).await?;
        if versions.is_empty() {
            break;
        }
        for version in &versions {
            number = version.number;
            let laid = Version {
                name: &version.version,
                layer: Layer::of_source(&version.source),
                effective_from: version.effective_from,
                catalogue: &version.catalogue,
            };
            let before = book.clone();
            book.lay(laid, version.effective_from)?;
            if version.effective_from >= since {
                let from = version.effective_from.format("%Y-%m-%d %H:%M");
                writeln!(out, "{}, from {from} UTC", version.version)?;
                show_changes(&before, &book, laid, &mut out)?;
                shown += 1;
            }
        }
    }
    for refresh in store.price_refreshes().await? {
        let Some((changes, reason)) = &refresh.held_back else {
            continue;
        };
        writeln!(
            out,
            "HELD BACK: {}, read {} UTC",
            refresh.source,
            refresh.checked_at.format("%Y-%m-%d %H:%M")
        )?;
        for line in reason.lines() {
            writeln!(out, "  looks wrong: {line}")?;
        }
        let held_back = Version {
            name: "held-back",
            layer: Layer::of_source(&refresh.source),
            effective_from: refresh.checked_at,
            catalogue: changes,
        };
        let mut after = book.clone();
        after.lay(held_back, refresh.checked_at)?;
        show_changes(&book, &after, held_back, &mut out)?;
        shown += 1;
    }
    store.close().await;
    if shown == 0 {
        let day = since.format("%Y-%m-%d %H:%M");
        writeln!(
            out,
            "no price has changed since {day} UTC, and none is held back"
        )?;
    }
    Ok(EXIT_OK)
}

fn show_changes(
    before: &PriceBook,
    after: &PriceBook,
    version: Version<'_>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let changes = Changes::from_json(version.catalogue).context("a version is not readable")?;
    for (model, entry) in changes.models() {
        if entry.is_none() {
            writeln!(out, "  {model}: listed no more, keeps its last price")?;
            continue;
        }
        for line in report::price_changes(before, after, model, version.effective_from) {
            writeln!(out, "  {model}: {line}")?;
        }
    }
    Ok(())
}

async fn bring_in(config: &Config, options: &cli::PricesImport) -> anyhow::Result<u8> {
    let path = options.file.display();
    let text =
        std::fs::read_to_string(&options.file).with_context(|| format!("cannot read {path}"))?;
    let imported = import(&text).with_context(|| format!("cannot import {path}"))?;
    let now = clock::wall();
    let effective_from = match options.from {
        None => now,
        Some(day) => day.and_time(NaiveTime::MIN).and_utc(),
    };
    let store = Store::open(&config.store).await?;
    let (before, last) = last_list(&store, imported.source).await?;
    let changes = imported.reading.list.changes_since(&before);
    let book = app::price_book(config, Some(&store), effective_from).await?;
    let concerns = changes.concerns(Layer::Import, &book, effective_from)?;
    let mut out = io::stdout().lock();
    tell_reading(
        imported.source,
        &imported.reading,
        imported.foreign_models,
        &mut out,
    )?;
    writeln!(
        out,
        "{} models are new or have other prices, {} are listed no more",
        changes.priced(),
        changes.dropped()
    )?;
    let code = if !concerns.is_empty() && !options.accept {
        writeln!(
            out,
            "NOT IMPORTED, this looks wrong; if it is right, add --accept:"
        )?;
        for concern in &concerns {
            writeln!(out, "  {concern}")?;
        }
        EXIT_FAILED
    } else if options.dry_run || changes.is_empty() {
        writeln!(out, "nothing was written")?;
        EXIT_OK
    } else {
        let version = changes.version(imported.source, now);
        let kept = NewPriceVersion {
            version: &version,
            source: imported.source,
            effective_from,
            catalogue: &changes.to_json(),
            since: last,
        };
        let number = store.add_price_version(&kept).await?;
        number.context("somebody else imported meanwhile; run it again")?;
        store.note_price_refresh(imported.source, None).await?;
        writeln!(
            out,
            "version {version}; servers follow within prices.poll_interval, and `taffrail prices \
             recost` costs earlier rows anew"
        )?;
        EXIT_OK
    };
    store.close().await;
    Ok(code)
}

fn tell_reading(
    source: &str,
    reading: &Reading,
    foreign_models: u64,
    out: &mut dyn Write,
) -> io::Result<()> {
    writeln!(
        out,
        "{source}: {} models; {foreign_models} of providers that have no name here, {} not taken",
        reading.list.len(),
        reading.rejected.len()
    )?;
    tell_rejected(&reading.rejected, out)?;
    for (field, models) in &reading.passed_over {
        writeln!(out, "  passed over: {field}, of {models} models")?;
    }
    Ok(())
}

async fn cost_anew(config: &Config, options: &cli::PricesRecost) -> anyhow::Result<u8> {
    let now = clock::wall();
    let query = CostQuery {
        since: options.since.resolve(now),
        until: options.until.map_or(now, |until| until.resolve(now)),
        provider: options.provider.clone(),
        model: options.model.clone(),
    };
    if query.until <= query.since {
        writeln!(io::stderr(), "taffrail: --until is not after --since")?;
        return Ok(cli::EXIT_USAGE);
    }
    let store = Store::open_existing(&config.store).await?;
    // Every version counts that held in the window, or was superseded in it.
    let book = app::price_book(config, Some(&store), DateTime::<Utc>::UNIX_EPOCH).await?;
    let mode = match options.dry_run {
        true => Mode::DryRun,
        false => Mode::Change,
    };
    let tally = recost::recost(&store, &book, &query, mode).await?;
    store.close().await;
    let mut out = io::stdout().lock();
    let verb = match mode {
        Mode::Change => "cost",
        Mode::DryRun => "would cost",
    };
    writeln!(
        out,
        "{} rows looked at; {} {verb} something else: {} USD in place of {}",
        tally.rows,
        tally.changed,
        tally.after.normalize(),
        tally.before.normalize()
    )?;
    for (count, what) in [
        (tally.newly_priced, "had no cost before"),
        (tally.without_price, "have no price in the book"),
        (
            tally.unexplained,
            "were left alone, because they do not tell all that their cost depends on",
        ),
    ] {
        if count > 0 {
            writeln!(out, "  {count} {what}")?;
        }
    }
    Ok(EXIT_OK)
}
