//! Deepgram's balances: those of a project, in US dollars or in hours of audio, one for each order;
//! those of one unit are added.
//!
//! Source: developers.deepgram.com, `GET /v1/projects` and `GET /v1/projects/{id}/balances`, read
//! 2026-11-24. The key needs `billing:read`.

use std::collections::BTreeMap;

use rust_decimal::Decimal;
use serde::Deserialize;

use super::exact::Exact;
use super::{Balance, BalanceApi, BalanceKind, Domain, Next, Subject, document};
use crate::ask::{Answer, Ask, Fault, FaultClass, KeyPlace};

const HOST: &str = "https://api.deepgram.com";
const PROJECTS: &str = "/v1/projects";
const KEY: KeyPlace = KeyPlace::Authorization("Token");

/// Deepgram's billing API.
pub(super) struct Deepgram;

#[derive(Deserialize)]
struct Projects {
    projects: Vec<Project>,
}

#[derive(Deserialize)]
struct Project {
    project_id: String,
}

#[derive(Deserialize)]
struct Balances {
    balances: Vec<Order>,
}

#[derive(Deserialize)]
struct Order {
    amount: Exact,
    units: String,
}

/// The balances of a project. Its id comes from an answer or from the configuration, and is put
/// into a path.
fn balances(project: &str) -> Result<Ask, Fault> {
    let is_id = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if project.is_empty() || !project.bytes().all(is_id) {
        return Err(Fault::malformed("the id of the project is none"));
    }
    Ok(Ask::get(HOST, format!("{PROJECTS}/{project}/balances")).key(KEY))
}

impl BalanceApi for Deepgram {
    fn domains(&self) -> &'static [Domain] {
        &[Domain {
            name: "deepgram.com",
            host: HOST,
            currency: "USD",
        }]
    }

    fn key(&self) -> &'static str {
        "a key with the scope billing:read; billing_id = the id of the project, if there are several"
    }

    fn first(&self, subject: &Subject<'_>) -> Result<Ask, Fault> {
        match subject.billing_id {
            Some(project) => balances(project),
            None => Ok(Ask::get(HOST, PROJECTS).key(KEY)),
        }
    }

    fn read(&self, _: &Subject<'_>, asked: &Ask, answer: &Answer) -> Result<Next, Fault> {
        if asked.path == PROJECTS {
            let Projects { projects } = document(answer)?;
            let first = projects.first();
            let first = first.ok_or_else(|| Fault::malformed("it lists no project"))?;
            return balances(&first.project_id).map(Next::Ask);
        }
        let Balances { balances } = document(answer)?;
        let mut sums: BTreeMap<String, Decimal> = BTreeMap::new();
        for Order { amount, units } in balances {
            let currency = match units.as_str() {
                "usd" => "USD".to_owned(),
                "hour" => "hours".to_owned(),
                _ => units,
            };
            let sum = sums.entry(currency).or_default();
            *sum = sum.saturating_add(amount.0);
        }
        if sums.is_empty() {
            return Err(Fault::new(
                FaultClass::Unsupported,
                "the project has no prepaid balance",
            ));
        }
        let balance = |(currency, amount)| Balance {
            kind: BalanceKind::Prepaid,
            currency,
            amount: Some(amount),
        };
        Ok(Next::Balances(sums.into_iter().map(balance).collect()))
    }
}
