//! `taffrail backfill`: makes sums anew from rows, a day at a time, and shows how far it is.

use anyhow::Context as _;
use chrono::NaiveDate;
use indicatif::{ProgressBar, ProgressStyle};

use crate::store::Store;

/// Makes the sums of the days from `from` to before `until` anew, and returns how many buckets
/// they are in now. On a terminal, a bar on standard error shows how far it is.
///
/// # Errors
/// The first of the store's; the days before the one that it names are done.
pub async fn backfill(store: &Store, from: NaiveDate, until: NaiveDate) -> anyhow::Result<u64> {
    let days = || from.iter_days().take_while(|day| *day < until);
    let bar = ProgressBar::new(u64::try_from(days().count())?);
    let style = "{msg}  {bar:30.cyan/black.bright}  {pos} of {len} days, {eta} left";
    bar.set_style(ProgressStyle::with_template(style)?.progress_chars("━╸━"));
    let mut buckets = 0;
    for day in days() {
        bar.set_message(day.to_string());
        buckets += store
            .backfill(day)
            .await
            .with_context(|| format!("cannot make the sums of {day} anew"))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(buckets)
}
