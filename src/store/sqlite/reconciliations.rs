//! Reconciliations in SQLite, which sums in the program.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};
use futures_util::TryStreamExt;
use sqlx::QueryBuilder;

use super::super::StoreError;
use super::super::balances::{self, BalanceReading, Part};
use super::super::query::timestamp;
use super::super::reconciliations::{COLUMNS, KeySpend, Line, Reconciliation};
use super::super::{DecimalSum, parse_sum};
use super::{Db, Sqlite, classify};

/// What a row tells of its cost: the key, the costs, and whether it is unpriced.
type CostRow = (Option<String>, Option<String>, Option<String>, bool);

impl Sqlite {
    pub(in super::super) async fn metered_spend(
        &self,
        provider: &str,
        (from, to): (DateTime<Utc>, DateTime<Utc>),
    ) -> Result<Vec<KeySpend>, StoreError> {
        let mut rows = sqlx::query_as::<_, CostRow>(
            "select key_fingerprint, cost_usd, cost_upstream_usd, unpriced_reason is not null \
             from api_usage_logs where provider = ? and started_at >= ? and started_at < ?",
        )
        .bind(provider)
        .bind(timestamp(from))
        .bind(timestamp(to))
        .fetch(&self.readers);
        let mut keys: BTreeMap<Option<String>, KeySpend> = BTreeMap::new();
        while let Some((key, cost, upstream, is_unpriced)) =
            rows.try_next().await.map_err(classify)?
        {
            let spend = keys.entry(key.clone()).or_insert(KeySpend {
                key_fingerprint: key,
                requests: 0,
                unpriced_requests: 0,
                cost_usd: None,
                cost_upstream_usd: None,
            });
            spend.requests += 1;
            spend.unpriced_requests += i64::from(is_unpriced);
            add(&mut spend.cost_usd, cost)?;
            add(&mut spend.cost_upstream_usd, upstream)?;
        }
        Ok(keys.into_values().collect())
    }

    pub(in super::super) async fn record_reconciliations(
        &self,
        rows: &[Reconciliation],
    ) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut insert = QueryBuilder::<Db>::new(format!(
            "insert into api_reconciliations ({}) ",
            COLUMNS.join(", ")
        ));
        insert.push_values(rows.iter().map(Line::of), |mut values, line| {
            values
                .push_bind(line.provider)
                .push_bind(line.account)
                .push_bind(line.day)
                .push_bind(line.window_start)
                .push_bind(line.window_end)
                .push_bind(line.read_at)
                .push_bind(line.result)
                .push_bind(line.source)
                .push_bind(line.provider_spend_usd)
                .push_bind(line.metered_usd)
                .push_bind(line.unmetered_usd)
                .push_bind(line.upstream_usd)
                .push_bind(line.requests)
                .push_bind(line.unpriced_requests)
                .push_bind(line.metered_keys)
                .push_bind(line.unclaimed_keys)
                .push_bind(line.detail);
        });
        insert.push(" on conflict (provider, account, day) do update set ");
        let mut updates = insert.separated(", ");
        for column in COLUMNS.iter().skip(3) {
            updates.push(format_args!("{column} = excluded.{column}"));
        }
        insert.push(" where excluded.result = 'ok' or api_reconciliations.result <> 'ok'");
        let writer = self.writer().await?;
        insert.build().execute(writer).await.map_err(classify)?;
        Ok(())
    }

    pub(in super::super) async fn reconciliations(
        &self,
        since: NaiveDate,
    ) -> Result<Vec<Reconciliation>, StoreError> {
        let mut select = QueryBuilder::<Db>::new(format!(
            "select {} from api_reconciliations where day >= ",
            COLUMNS.join(", ")
        ));
        select.push_bind(since.to_string());
        select.push(" order by provider, account, day");
        let lines: Vec<Line> = select
            .build_query_as()
            .fetch_all(&self.readers)
            .await
            .map_err(classify)?;
        lines.into_iter().map(Line::read).collect()
    }

    pub(in super::super) async fn balance_readings(
        &self,
        (provider, account): (&str, &str),
        (from, to): (DateTime<Utc>, DateTime<Utc>),
    ) -> Result<Vec<BalanceReading>, StoreError> {
        let parts: Vec<Part> = sqlx::query_as(
            "select provider, account, slot, part, read_at, result, kind, currency, balance, \
             detail, null as raw from api_provider_balances \
             where result = 'ok' and provider = ? and account = ? and read_at >= ? \
             and read_at <= ? order by slot, part",
        )
        .bind(provider)
        .bind(account)
        .bind(timestamp(from))
        .bind(timestamp(to))
        .fetch_all(&self.readers)
        .await
        .map_err(classify)?;
        balances::readings(parts)
    }
}

/// Adds what is known to a sum.
fn add(sum: &mut Option<DecimalSum>, amount: Option<String>) -> Result<(), StoreError> {
    if let Some(amount) = amount {
        let all = sum.unwrap_or_default().checked_add(parse_sum(&amount)?);
        let all = all.ok_or_else(|| StoreError::Rejected("a sum leaves its range".to_owned()))?;
        *sum = Some(all);
    }
    Ok(())
}
