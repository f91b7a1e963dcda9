//! What was spent today and this month: read from the store's sums, shown as a metric.
//!
//! In: a store. Out: `taffrail_spend_usd`. The sums of whole days are all that is read, so a run is
//! cheap however long the month. A group that spent this month and nothing today is shown at 0
//! today; one whose cost nobody knows is not shown.

use std::collections::BTreeMap;

use chrono::{DateTime, Datelike as _, NaiveTime, Utc};

use crate::metrics::{Metrics, Spend, Window};
use crate::store::{DecimalSum, Dimension, Store, StoreError, UsageQuery};

/// Decimal places of what is shown: a thousandth of the cheapest token.
const PLACES: u32 = 12;

/// The costs of groups; `None` where no request of a group has a known one.
type Costs = BTreeMap<Vec<Option<String>>, Option<DecimalSum>>;

/// Reads what was spent since the UTC day and month of the store's clock began, and shows it.
///
/// # Errors
/// [`StoreError::Unavailable`], [`StoreError::TimedOut`] or [`StoreError::Unusable`]; what was
/// shown stays.
pub async fn show_spend(store: &Store, metrics: &Metrics) -> Result<(), StoreError> {
    let today = store.today().await?;
    let first = today.with_day(1).unwrap_or(today);
    let [day, month] = [today, first].map(|date| date.and_time(NaiveTime::MIN).and_utc());
    // In this order, so that a month is never less than its day.
    let day = costs(store, metrics, day).await?;
    let month = costs(store, metrics, month).await?;
    let nothing_today = month
        .iter()
        .filter(|(group, cost)| cost.is_some() && !day.contains_key(*group))
        .map(|(group, _)| (group.clone(), Some(DecimalSum::ZERO)));
    let day = nothing_today.chain(day.clone());
    let groups = of_window(Window::Day, day).chain(of_window(Window::Month, month.clone()));
    metrics.spend(groups.collect());
    Ok(())
}

/// What each group of provider, model and attribution cost since `since`.
async fn costs(
    store: &Store,
    metrics: &Metrics,
    since: DateTime<Utc>,
) -> Result<Costs, StoreError> {
    let attribution = metrics.attribution_labels();
    let by = [Dimension::Provider, Dimension::Model]
        .into_iter()
        .chain(attribution.map(|label| Dimension::Attribution(label.to_owned())))
        .collect();
    let rows = store.usage(&UsageQuery { since, by }).await?;
    let costs = rows.into_iter().map(|row| (row.group, row.totals.cost_usd));
    Ok(costs.collect())
}

fn of_window(
    window: Window,
    costs: impl IntoIterator<Item = (Vec<Option<String>>, Option<DecimalSum>)>,
) -> impl Iterator<Item = Spend> {
    costs.into_iter().filter_map(move |(group, cost)| {
        let usd = cost?.rounded(PLACES)?;
        let mut group = group.into_iter();
        Some(Spend {
            window,
            provider: group.next()??,
            model: group.next()?,
            attribution: group.collect(),
            usd,
        })
    })
}
