//! Receipts in Postgres: functions find the rows and take in what their costs are.

use chrono::{DateTime, Utc};
use sqlx::QueryBuilder;

use super::super::StoreError;
use super::super::prices::CostChange;
use super::super::receipts::{
    ReceiptTry, TryLine, Uncertain, UncertainLine, UncertainQuery, uncertain,
};
use super::{Postgres, parse_answer};

impl Postgres {
    pub(in super::super) async fn uncertain_costs(
        &self,
        query: &UncertainQuery,
    ) -> Result<Uncertain, StoreError> {
        let integer = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        let mut call = QueryBuilder::new("select taffrail.uncertain_costs(");
        call.push_bind(query.provider.clone()).push(", ");
        call.push_bind(query.since).push(", ");
        call.push_bind(query.until).push(", ");
        call.push_bind(query.keys.clone()).push(", ");
        call.push_bind(integer(query.tries_max)).push(", ");
        call.push_bind(integer(query.limit)).push(")");
        let lines: String = self.call(call).await?;
        uncertain(parse_answer::<Vec<UncertainLine>>(&lines)?)
    }

    pub(in super::super) async fn state_costs(
        &self,
        changes: &[CostChange],
    ) -> Result<u64, StoreError> {
        let batch = serde_json::to_string(changes)
            .map_err(|error| StoreError::Rejected(error.to_string()))?;
        let mut call = QueryBuilder::new("select taffrail.state_costs(");
        call.push_bind(batch).push(")");
        let changed: i64 = self.call(call).await?;
        Ok(u64::try_from(changed).unwrap_or_default())
    }

    pub(in super::super) async fn note_receipt_tries(
        &self,
        tries: &[ReceiptTry],
        forget_before: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let lines: Vec<TryLine> = tries.iter().map(TryLine::of).collect();
        let lines = serde_json::to_string(&lines)
            .map_err(|error| StoreError::Rejected(error.to_string()))?;
        let mut call = QueryBuilder::new("select taffrail.note_receipt_tries(");
        call.push_bind(lines).push(", ");
        call.push_bind(forget_before).push(")");
        let _noted: i64 = self.call(call).await?;
        Ok(())
    }
}
