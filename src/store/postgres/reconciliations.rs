//! Reconciliations in Postgres: functions see the rows and take in what came of them.

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::{QueryBuilder, Row as _};

use super::super::StoreError;
use super::super::balances::{self, BalanceReading};
use super::super::reconciliations::{KeySpend, Line, Reconciliation, SpendLine};
use super::{Db, Postgres, classify, parse_answer};

impl Postgres {
    pub(in super::super) async fn metered_spend(
        &self,
        provider: &str,
        (from, to): (DateTime<Utc>, DateTime<Utc>),
    ) -> Result<Vec<KeySpend>, StoreError> {
        let mut call = QueryBuilder::new("select taffrail.metered_spend(");
        call.push_bind(provider.to_owned()).push(", ");
        call.push_bind(from).push(", ");
        call.push_bind(to).push(")");
        let lines: String = self.call(call).await?;
        let lines: Vec<SpendLine> = parse_answer(&lines)?;
        lines.into_iter().map(SpendLine::read).collect()
    }

    pub(in super::super) async fn record_reconciliations(
        &self,
        rows: &[Reconciliation],
    ) -> Result<(), StoreError> {
        let lines: Vec<Line> = rows.iter().map(Line::of).collect();
        let lines = serde_json::to_string(&lines)
            .map_err(|error| StoreError::Rejected(error.to_string()))?;
        let mut call = QueryBuilder::new("select taffrail.record_reconciliations(");
        call.push_bind(lines).push(")");
        let _taken: i64 = self.call(call).await?;
        Ok(())
    }

    pub(in super::super) async fn reconciliations(
        &self,
        since: NaiveDate,
    ) -> Result<Vec<Reconciliation>, StoreError> {
        let mut select = QueryBuilder::new(
            "select coalesce(json_agg(json_build_object( \
                 'provider', provider, 'account', account, 'day', day, \
                 'window_start', window_start, 'window_end', window_end, 'read_at', read_at, \
                 'result', result, 'source', source, \
                 'provider_spend_usd', provider_spend_usd::text, 'metered_usd', metered_usd::text, \
                 'unmetered_usd', unmetered_usd::text, 'upstream_usd', upstream_usd::text, \
                 'requests', requests, 'unpriced_requests', unpriced_requests, \
                 'metered_keys', metered_keys, 'unclaimed_keys', unclaimed_keys, 'detail', detail \
             ) order by provider, account, day), '[]')::text \
             from taffrail.api_reconciliations where day >= ",
        );
        select.push_bind(since);
        let lines: Vec<Line> = parse_answer(&self.read_one(select).await?)?;
        lines.into_iter().map(Line::read).collect()
    }

    pub(in super::super) async fn balance_readings(
        &self,
        (provider, account): (&str, &str),
        (from, to): (DateTime<Utc>, DateTime<Utc>),
    ) -> Result<Vec<BalanceReading>, StoreError> {
        let mut select = QueryBuilder::new(
            "select coalesce(json_agg(json_build_object( \
                 'provider', provider, 'account', account, 'slot', slot, 'part', part, \
                 'read_at', read_at, 'result', result, 'kind', kind, 'currency', currency, \
                 'balance', balance::text, 'detail', detail, 'raw', null \
             ) order by slot, part), '[]')::text \
             from taffrail.api_provider_balances where result = 'ok' and provider = ",
        );
        select.push_bind(provider.to_owned());
        select.push(" and account = ").push_bind(account.to_owned());
        select.push(" and read_at >= ").push_bind(from);
        select.push(" and read_at <= ").push_bind(to);
        balances::readings(parse_answer(&self.read_one(select).await?)?)
    }

    /// The one text that a query selects.
    async fn read_one(&self, select: QueryBuilder<Db>) -> Result<String, StoreError> {
        let rows = self.read(select).await?;
        match rows.first() {
            Some(row) => row.try_get(0).map_err(classify),
            None => Ok("[]".to_owned()),
        }
    }
}
