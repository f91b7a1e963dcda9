//! Prices in Postgres: what functions do for whoever may call them, and what their owner reads.

use chrono::{DateTime, Utc};
use sqlx::QueryBuilder;
use sqlx::Row as _;
use uuid::Uuid;

use super::super::StoreError;
use super::super::prices::{
    CostChange, CostQuery, NewPriceVersion, PriceRefresh, PriceVersion, VERSIONS_PER_READ,
};
use super::super::row::LogRow;
use super::{Db, Postgres, classify, decode_log, parse_answer, push_log_columns};

impl Postgres {
    pub(in super::super) async fn price_versions(
        &self,
        after: i64,
    ) -> Result<Vec<PriceVersion>, StoreError> {
        let call = || {
            let mut call = QueryBuilder::new("select taffrail.price_versions_after(");
            call.push_bind(after).push(", ");
            call.push_bind(VERSIONS_PER_READ).push(")");
            self.call::<String>(call)
        };
        let versions = match call().await {
            Err(StoreError::Unusable(_)) => {
                self.prepare().await?;
                call().await?
            }
            versions => versions?,
        };
        parse_answer(&versions)
    }

    pub(in super::super) async fn add_price_version(
        &self,
        version: &NewPriceVersion<'_>,
    ) -> Result<Option<i64>, StoreError> {
        self.prepare().await?;
        let mut call = QueryBuilder::new("select taffrail.add_price_version(");
        call.push_bind(version.version.to_owned()).push(", ");
        call.push_bind(version.source.to_owned()).push(", ");
        call.push_bind(version.effective_from).push(", ");
        call.push_bind(version.catalogue.to_owned()).push(", ");
        call.push_bind(version.since).push(")");
        self.call(call).await
    }

    pub(in super::super) async fn note_price_refresh(
        &self,
        source: &str,
        held_back: Option<(&str, &str)>,
    ) -> Result<(), StoreError> {
        let (changes, reason) = held_back.unzip();
        let mut call = QueryBuilder::new("select taffrail.note_price_refresh(");
        call.push_bind(source.to_owned()).push(", ");
        call.push_bind(changes.map(str::to_owned)).push(", ");
        call.push_bind(reason.map(str::to_owned)).push(")");
        let _noted: bool = self.call(call).await?;
        Ok(())
    }

    pub(in super::super) async fn price_refreshes(&self) -> Result<Vec<PriceRefresh>, StoreError> {
        let select = QueryBuilder::new(
            "select source, checked_at, held_back::text, held_back_reason \
             from taffrail.price_refreshes order by source",
        );
        let rows = self.read(select).await?;
        let refresh = |row: &sqlx::postgres::PgRow| {
            let held_back: Option<String> = row.try_get(2)?;
            let reason: Option<String> = row.try_get(3)?;
            Ok(PriceRefresh {
                source: row.try_get(0)?,
                checked_at: row.try_get(1)?,
                held_back: held_back.zip(reason),
            })
        };
        let rows = rows.iter().map(refresh);
        rows.map(|row| row.map_err(classify)).collect()
    }

    pub(in super::super) async fn costed_rows(
        &self,
        query: &CostQuery,
        after: Option<(DateTime<Utc>, Uuid)>,
        limit: u32,
    ) -> Result<Vec<LogRow>, StoreError> {
        let mut select = QueryBuilder::<Db>::new("select ");
        push_log_columns(&mut select);
        select.push(" from taffrail.api_usage_logs where started_at >= ");
        select.push_bind(query.since).push(" and started_at < ");
        select.push_bind(query.until).push(" and day >= ");
        select
            .push_bind(query.since.date_naive())
            .push(" - 1 and day <= ");
        select.push_bind(query.until.date_naive()).push(
            " + 1 and (cost_source in ('catalog', 'estimated') \
             or unpriced_reason in ('model_unknown', 'price_missing', 'qualifier_unknown'))",
        );
        if let Some(provider) = &query.provider {
            select.push(" and provider = ").push_bind(provider.clone());
        }
        if let Some(model) = &query.model {
            select.push(" and coalesce(model_served, model_requested) = ");
            select.push_bind(model.clone());
        }
        if let Some((started_at, id)) = after {
            select.push(" and (api_usage_logs.started_at, api_usage_logs.id) > (");
            select.push_bind(started_at).push(", ");
            select.push_bind(id).push(")");
        }
        select.push(" order by api_usage_logs.started_at, api_usage_logs.id limit ");
        select.push_bind(i64::from(limit));
        let rows = self.read(select).await?;
        rows.iter().map(decode_log).collect()
    }

    pub(in super::super) async fn recost(&self, changes: &[CostChange]) -> Result<u64, StoreError> {
        let batch = serde_json::to_string(changes)
            .map_err(|error| StoreError::Rejected(error.to_string()))?;
        let mut call = QueryBuilder::new("select taffrail.recost_usage(");
        call.push_bind(batch).push(")");
        let changed: i64 = self.call(call).await?;
        Ok(u64::try_from(changed).unwrap_or_default())
    }
}
