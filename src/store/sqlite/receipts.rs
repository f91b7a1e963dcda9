//! Receipts in SQLite.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::QueryBuilder;

use super::super::StoreError;
use super::super::query::timestamp;
use super::super::receipts::{ReceiptTry, Uncertain, UncertainLine, UncertainQuery, uncertain};
use super::{Db, Sqlite, classify};
use crate::clock;

impl Sqlite {
    pub(in super::super) async fn uncertain_costs(
        &self,
        query: &UncertainQuery,
    ) -> Result<Uncertain, StoreError> {
        let mut select = QueryBuilder::<Db>::new(
            "select logs.id, day, started_at, provider_request_id, job_id, cost_usd, \
                 coalesce(tries, 0) as tries, count(*) over () as all_rows \
             from api_usage_logs as logs \
             left join api_receipt_tries as known on known.id = logs.id \
             where (unpriced_reason is not null or cost_source = 'estimated') \
                 and coalesce(job_id, provider_request_id) is not null and provider = ",
        );
        select
            .push_bind(&query.provider)
            .push(" and started_at >= ");
        select.push_bind(timestamp(query.since));
        select.push(" and started_at < ");
        select.push_bind(timestamp(query.until));
        select.push(" and coalesce(tries, 0) < ");
        select.push_bind(i64::from(query.tries_max));
        select.push(" and (next_at is null or next_at <= ");
        select.push_bind(timestamp(clock::wall())).push(")");
        if let Some(keys) = &query.keys {
            select.push(" and key_fingerprint in (");
            let mut list = select.separated(", ");
            for key in keys {
                list.push_bind(key);
            }
            select.push(")");
        }
        select.push(" order by coalesce(tries, 0), started_at, logs.id limit ");
        select.push_bind(i64::from(query.limit));
        let lines: Vec<UncertainLine> = select
            .build_query_as()
            .fetch_all(&self.readers)
            .await
            .map_err(classify)?;
        uncertain(lines)
    }

    pub(in super::super) async fn note_receipt_tries(
        &self,
        tries: &[ReceiptTry],
        forget_before: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let writer = self.writer().await?;
        let mut transaction = writer
            .begin_with("begin immediate")
            .await
            .map_err(classify)?;
        let now = clock::wall();
        for told in tries {
            let pause = TimeDelta::from_std(told.pause).unwrap_or(TimeDelta::MAX);
            let next_at = now.checked_add_signed(pause).unwrap_or(now);
            sqlx::query(
                "insert into api_receipt_tries (id, tries, asked_at, next_at) \
                 values (?, ?, ?, ?) \
                 on conflict (id) do update set tries = excluded.tries, \
                     asked_at = excluded.asked_at, next_at = excluded.next_at",
            )
            .bind(told.id.hyphenated().to_string())
            .bind(i64::from(told.tries))
            .bind(timestamp(now))
            .bind(timestamp(next_at))
            .execute(&mut *transaction)
            .await
            .map_err(classify)?;
        }
        sqlx::query("delete from api_receipt_tries where asked_at < ?")
            .bind(timestamp(forget_before))
            .execute(&mut *transaction)
            .await
            .map_err(classify)?;
        transaction.commit().await.map_err(classify)
    }
}
