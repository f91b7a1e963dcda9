//! Prices in SQLite. Sums move with the costs of their rows, in one transaction.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use sqlx::QueryBuilder;
use uuid::Uuid;

use crate::clock;
use crate::fault::Outcome;

use super::super::prices::{
    CostChange, CostQuery, NewPriceVersion, PriceRefresh, PriceVersion, VERSIONS_PER_READ,
};
use super::super::query::{Totals, timestamp};
use super::super::row::LogRow;
use super::super::{DecimalSum, StoreError, parse_sum};
use super::{Db, Group, Sqlite, add_to_buckets, add_to_sums, classify, decode_log, push_columns};

/// A version as it is read: number, name, source, moment, changes.
type VersionRow = (i64, String, String, DateTime<Utc>, String);

/// A refresh as it is read: source, moment, what is held back and why.
type RefreshRow = (String, DateTime<Utc>, Option<String>, Option<String>);

/// What the sums need of a row: its group, and its costs before.
type Before = (
    DateTime<Utc>,
    Option<String>,
    String,
    Option<String>,
    String,
    String,
    String,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
);

impl Sqlite {
    pub(in super::super) async fn price_versions(
        &self,
        after: i64,
    ) -> Result<Vec<PriceVersion>, StoreError> {
        let rows: Vec<VersionRow> = sqlx::query_as(
            "select number, version, source, effective_from, catalogue from price_versions \
             where number > ? order by number limit ?",
        )
        .bind(after)
        .bind(VERSIONS_PER_READ)
        .fetch_all(&self.readers)
        .await
        .map_err(classify)?;
        let version = |(number, version, source, effective_from, catalogue)| PriceVersion {
            number,
            version,
            source,
            effective_from,
            catalogue,
        };
        Ok(rows.into_iter().map(version).collect())
    }

    pub(in super::super) async fn add_price_version(
        &self,
        version: &NewPriceVersion<'_>,
    ) -> Result<Option<i64>, StoreError> {
        let writer = self.writer().await?;
        let mut transaction = writer
            .begin_with("begin immediate")
            .await
            .map_err(classify)?;
        let number: Option<i64> = sqlx::query_scalar(
            "insert into price_versions \
                 (version, number, source, effective_from, created_at, catalogue) \
             select iif(exists (select 1 from price_versions where version = ?1), \
                        ?1 || '-' || next, ?1), next, ?2, ?3, ?4, ?5 \
             from (select coalesce(max(number), 0) + 1 as next from price_versions) \
             where ?6 = (select coalesce(max(number), 0) from price_versions where source = ?2) \
             returning number",
        )
        .bind(version.version)
        .bind(version.source)
        .bind(timestamp(version.effective_from))
        .bind(timestamp(clock::wall()))
        .bind(version.catalogue)
        .bind(version.since)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(classify)?;
        transaction.commit().await.map_err(classify)?;
        Ok(number)
    }

    pub(in super::super) async fn note_price_refresh(
        &self,
        source: &str,
        held_back: Option<(&str, &str)>,
    ) -> Result<(), StoreError> {
        let (changes, reason) = held_back.unzip();
        sqlx::query(
            "insert or replace into price_refreshes \
             (source, checked_at, held_back, held_back_reason) values (?, ?, ?, ?)",
        )
        .bind(source)
        .bind(timestamp(clock::wall()))
        .bind(changes)
        .bind(reason)
        .execute(self.writer().await?)
        .await
        .map_err(classify)?;
        Ok(())
    }

    pub(in super::super) async fn price_refreshes(&self) -> Result<Vec<PriceRefresh>, StoreError> {
        let rows: Vec<RefreshRow> = sqlx::query_as(
            "select source, checked_at, held_back, held_back_reason from price_refreshes \
             order by source",
        )
        .fetch_all(&self.readers)
        .await
        .map_err(classify)?;
        let refresh =
            |(source, checked_at, held_back, reason): (_, _, Option<_>, _)| PriceRefresh {
                source,
                checked_at,
                held_back: held_back.zip(reason),
            };
        Ok(rows.into_iter().map(refresh).collect())
    }

    pub(in super::super) async fn costed_rows(
        &self,
        query: &CostQuery,
        after: Option<(DateTime<Utc>, Uuid)>,
        limit: u32,
    ) -> Result<Vec<LogRow>, StoreError> {
        let mut select = QueryBuilder::<Db>::new("select ");
        push_columns(&mut select);
        select.push(" from api_usage_logs where started_at >= ");
        select.push_bind(timestamp(query.since));
        select.push(" and started_at < ");
        select.push_bind(timestamp(query.until)).push(
            " and (cost_source in ('catalog', 'estimated') \
             or unpriced_reason in ('model_unknown', 'price_missing', 'qualifier_unknown'))",
        );
        if let Some(provider) = &query.provider {
            select.push(" and provider = ").push_bind(provider);
        }
        if let Some(model) = &query.model {
            select.push(" and coalesce(model_served, model_requested) = ");
            select.push_bind(model);
        }
        if let Some((started_at, id)) = after {
            select.push(" and (started_at, id) > (");
            select.push_bind(timestamp(started_at)).push(", ");
            select.push_bind(id.hyphenated().to_string()).push(")");
        }
        select.push(" order by started_at, id limit ");
        select.push_bind(i64::from(limit));
        let rows = select.build().fetch_all(&self.readers).await;
        rows.map_err(classify)?.iter().map(decode_log).collect()
    }

    pub(in super::super) async fn recost(&self, changes: &[CostChange]) -> Result<u64, StoreError> {
        let writer = self.writer().await?;
        let mut transaction = writer
            .begin_with("begin immediate")
            .await
            .map_err(classify)?;
        let now = timestamp(clock::wall());
        let mut sums = BTreeMap::new();
        let mut changed = 0;
        for change in changes {
            let id = change.id.hyphenated().to_string();
            let before: Option<Before> = sqlx::query_as(
                "select started_at, namespace, provider, \
                     coalesce(model_served, model_requested), operation, outcome, attribution, \
                     cost_usd, cost_upstream_usd, cost_source, price_version, unpriced_reason \
                 from api_usage_logs where id = ? and cost_source is not 'provider'",
            )
            .bind(&id)
            .fetch_optional(&mut *transaction)
            .await
            .map_err(classify)?;
            let Some(before) = before else { continue };
            let (started_at, namespace, provider, model, operation, outcome, attribution, ..) =
                before;
            let (.., cost, upstream, cost_source, price_version, unpriced_reason) = before;
            let old = cost.as_deref().map(parse_sum).transpose()?;
            let new = DecimalSum::from(change.cost_usd);
            let is_same =
                old == Some(new) && cost_source.as_deref() == Some(change.cost_source.as_str());
            if old != change.old_cost_usd.map(DecimalSum::from) || is_same {
                continue;
            }
            let cost_usd = change.cost_usd.normalize().to_string();
            let cost_upstream_usd = change.cost_upstream_usd.map(|cost| cost.normalize());
            sqlx::query(
                "update api_usage_logs set cost_usd = ?, \
                 cost_upstream_usd = coalesce(?, cost_upstream_usd), cost_source = ?, \
                 price_version = ?, unpriced_reason = null, recosted_at = ? where id = ?",
            )
            .bind(&cost_usd)
            .bind(cost_upstream_usd.map(|cost| cost.to_string()))
            .bind(change.cost_source.as_str())
            .bind(&change.price_version)
            .bind(&now)
            .bind(&id)
            .execute(&mut *transaction)
            .await
            .map_err(classify)?;
            sqlx::query("insert into api_cost_changes values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")
                .bind(&id)
                .bind(change.day)
                .bind(&now)
                .bind(&cost)
                .bind(cost_source)
                .bind(price_version)
                .bind(&unpriced_reason)
                .bind(&cost_usd)
                .bind(change.cost_source.as_str())
                .bind(&change.price_version)
                .execute(&mut *transaction)
                .await
                .map_err(classify)?;
            let group = Group {
                namespace: namespace.unwrap_or_default().into(),
                provider: provider.into(),
                model: model.unwrap_or_default().into(),
                operation: operation.into(),
                outcome_class: Outcome::from_name(&outcome)
                    .ok_or_else(|| StoreError::Unusable("a row's outcome is not readable".into()))?
                    .class()
                    .as_str(),
                attribution: attribution.into(),
            };
            let less = DecimalSum::from(-change.old_cost_usd.unwrap_or(Decimal::ZERO));
            let upstream_before = upstream.as_deref().map(parse_sum).transpose()?;
            let upstream_before = upstream_before.and_then(|sum| sum.rounded(28));
            let totals = Totals {
                requests: 0,
                unpriced_requests: -i64::from(unpriced_reason.is_some()),
                cost_usd: new.checked_add(less),
                cost_upstream_usd: change.cost_upstream_usd.map(|upstream| {
                    DecimalSum::from(upstream.saturating_sub(upstream_before.unwrap_or_default()))
                }),
                ..Totals::default()
            };
            add_to_sums(&mut sums, started_at, group, &totals)?;
            changed += 1;
        }
        add_to_buckets(&mut transaction, sums).await?;
        transaction.commit().await.map_err(classify)?;
        Ok(changed)
    }
}
