//! The SQL of panels and variables on a real Postgres, as a login of `taffrail_reader`: with macros
//! and variables put in as Grafana puts them in.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::Value;
use sqlx::{
    AssertSqlSafe, Column as _, Connection as _, Executor as _, PgConnection, Row as _,
    SqlSafeStr as _, Statement as _, TypeInfo as _, ValueRef as _, raw_sql,
};
use taffrail::balance::{Balance, BalanceKind};
use taffrail::clock;
use taffrail::fault::Outcome;
use taffrail::record::{CostSource, UnpricedReason, UsageRecord};
use taffrail::store::{BalanceReading, Config, CostChange, Metered, NewPriceVersion};
use taffrail::store::{Reconciliation, Store};

use super::board::{self, Board, Reference, list, references, substitute, text};
use crate::store::record;
use crate::support::postgres::{Cluster, Database, Version};

/// What a variable stands at.
#[derive(Debug, Clone)]
enum Chosen {
    /// All of them, without a value for that.
    All(Vec<String>),
    One(String),
    /// A pattern for all of them, which is put in as it is.
    AllValue(String),
}

/// What all variables of a dashboard stand at, and its time range.
struct View {
    chosen: BTreeMap<String, Chosen>,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
}

impl View {
    fn set(&mut self, variable: &str, value: &str) {
        let chosen = Chosen::One(value.to_owned());
        assert!(self.chosen.insert(variable.to_owned(), chosen).is_some());
    }

    /// A variable's value, in the form that is asked for (scenes' `formatRegistry`).
    fn value(&self, reference: Reference<'_>) -> Option<String> {
        let values = match self.chosen.get(reference.name)? {
            Chosen::AllValue(pattern) => return Some(pattern.clone()),
            Chosen::All(values) => values.clone(),
            Chosen::One(value) => vec![value.clone()],
        };
        let quoted = |value: &String| format!("'{}'", value.replace('\'', "''"));
        Some(match (reference.format, values.as_slice()) {
            ("sqlstring", values) => values.iter().map(quoted).collect::<Vec<_>>().join(","),
            ("regex", [value]) => value.replace('.', "\\."),
            ("regex", values) => format!("({})", values.join("|").replace('.', "\\.")),
            ("", [value]) => value.clone(),
            (format, _) => panic!("{}: no form {format:?} of several", reference.whole),
        })
    }

    /// The statement that reaches Postgres: variables are Grafana's browser's, macros its server's
    /// (`pkg/tsdb/grafana-postgresql-datasource/macros.go`), whose arguments end at the first
    /// closing parenthesis.
    fn sql(&self, query: &str) -> String {
        let query = substitute(query, |it| self.value(it));
        let [from, to] = [self.from, self.to]
            .map(|time| format!("'{}'", time.to_rfc3339_opts(SecondsFormat::Nanos, true)));
        let mut sql = String::new();
        let mut rest = query.as_str();
        while let Some((before, macro_on)) = rest.split_once("$__") {
            let (call, after) = macro_on.split_once(')').unwrap();
            let (name, argument) = call.split_once('(').unwrap();
            sql += before;
            sql += &match name {
                "timeFilter" => format!("{argument} BETWEEN {from} AND {to}"),
                "timeFrom" => from.clone(),
                "timeTo" => to.clone(),
                other => panic!("no macro is named $__{other}"),
            };
            rest = after;
        }
        sql + rest
    }
}

/// What a statement answers.
struct Answer {
    /// Names and types.
    columns: Vec<(String, String)>,
    /// NULL is nothing.
    rows: Vec<Vec<Option<String>>>,
}

impl Answer {
    fn has(&self, name: &str) -> bool {
        self.columns.iter().any(|(column, _)| column == name)
    }
}

/// What Grafana is to the database.
struct Reader {
    connection: PgConnection,
}

impl Reader {
    async fn of(database: &Database) -> Reader {
        let name = format!("grafana_{}", clock::new_id().simple());
        let sql = format!("create role {name} login in role taffrail_reader");
        database.execute(&sql).await;
        let url = database.url().replace("postgres@", &format!("{name}@"));
        let mut connection = PgConnection::connect(&url).await.unwrap();
        let read_only = raw_sql("set default_transaction_read_only = on");
        read_only.execute(&mut connection).await.unwrap();
        Reader { connection }
    }

    async fn ask(&mut self, sql: &str) -> Result<Answer, String> {
        let describe = |error: sqlx::Error| format!("{error}\n{sql}");
        let statement = self.connection.prepare(AssertSqlSafe(sql).into_sql_str());
        let statement = statement.await.map_err(describe)?;
        let columns = statement.columns().iter();
        let columns = columns.map(|it| (it.name().to_owned(), it.type_info().name().to_owned()));
        let rows = raw_sql(AssertSqlSafe(sql)).fetch_all(&mut self.connection);
        let rows = rows.await.map_err(describe)?;
        let text = |row: &sqlx::postgres::PgRow, index| {
            let value = row.try_get_raw(index).unwrap();
            (!value.is_null()).then(|| value.as_str().unwrap().to_owned())
        };
        let values = |row| (0..columns.len()).map(|index| text(row, index)).collect();
        Ok(Answer {
            rows: rows.iter().map(values).collect(),
            columns: columns.collect(),
        })
    }

    /// What a dashboard shows at first: the variables' queries are asked, everything is chosen.
    async fn open(&mut self, board: &Board) -> View {
        let now = clock::wall();
        let mut view = View {
            chosen: BTreeMap::new(),
            from: now - TimeDelta::hours(24),
            to: now,
        };
        for variable in board.variables() {
            let name = text(variable, "name");
            let current = variable["current"]["value"].as_str().unwrap_or_default();
            let chosen = match (text(variable, "type"), text(variable, "allValue")) {
                ("query", "") => {
                    let query = view.sql(variable["query"].as_str().unwrap());
                    let answer = self.ask(&query).await;
                    let answer =
                        answer.unwrap_or_else(|it| panic!("{}: ${name}: {it}", board.file));
                    let values = answer.rows.into_iter().map(|row| {
                        let value = row.into_iter().next().flatten();
                        value.unwrap_or_else(|| panic!("{}: ${name} offers NULL", board.file))
                    });
                    Chosen::All(values.collect())
                }
                ("query", pattern) => Chosen::AllValue(pattern.to_owned()),
                ("textbox" | "custom", _) => Chosen::One(current.to_owned()),
                _ => continue,
            };
            view.chosen.insert(name.to_owned(), chosen);
        }
        view
    }
}

/// The queries of a dashboard in SQL, with their panels.
fn queries(board: &Board) -> Vec<(&Value, &str)> {
    let panels = board.panels().into_iter();
    let all = panels.flat_map(|panel| list(panel, "targets").iter().map(move |it| (panel, it)));
    all.filter_map(|(panel, target)| Some((panel, target["rawSql"].as_str()?)))
        .collect()
}

/// The columns that a panel counts on are in its answer.
fn missing(panel: &Value, answer: &Answer) -> Vec<String> {
    let mut missing = Vec::new();
    let overrides = list(&panel["fieldConfig"], "overrides").iter();
    let by_name = overrides.filter(|it| it["matcher"]["id"] == "byName");
    let named = by_name.map(|it| text(&it["matcher"], "options"));
    let links = board::links(panel);
    let of_links = links.iter().flat_map(|url| references(url));
    let of_links = of_links.filter_map(|it| it.path.strip_prefix("fields."));
    for name in named.chain(of_links) {
        if !answer.has(name) {
            missing.push(format!("no column {name:?}"));
        }
    }
    for target in list(panel, "targets") {
        if target["format"] != "time_series" {
            continue;
        }
        let of = |name: &str, kind: &str| answer.columns.contains(&(name.into(), kind.into()));
        for (name, kind) in [
            ("time", "TIMESTAMPTZ"),
            ("metric", "TEXT"),
            ("value", "FLOAT8"),
        ] {
            if !of(name, kind) {
                missing.push(format!("no column {name:?} of {kind}"));
            }
        }
    }
    missing
}

const ROWS: u64 = 120;

/// Rows of the last hours, of all kinds.
fn records() -> Vec<UsageRecord> {
    (0..ROWS)
        .map(|number| {
            let start = clock::wall() - TimeDelta::minutes(5 * number.cast_signed() + 1);
            let mut record = record(start, number);
            record.provider = ["openai", "anthropic", "fal"][(number % 3) as usize].into();
            if number % 4 == 0 {
                record.outcome = Outcome::UpstreamError;
                record.http_status = Some(503);
            }
            if number % 5 == 0 {
                record.caller.attribution.clear();
            }
            if number % 7 == 0 {
                record.model_served = None;
                record.model_requested = None;
                record.cost_usd = None;
                record.cost_source = None;
                record.price_version = None;
                record.unpriced_reason = Some(UnpricedReason::ModelMissing);
            }
            record
        })
        .collect()
}

/// A database that was just migrated, and one with something in each table.
async fn databases() -> Option<[Database; 2]> {
    let cluster = Cluster::shared(Version::Default).await?;
    let databases = [cluster.database().await, cluster.database().await];
    let open = async |database: &Database| {
        let config = Config {
            url: database.url(),
            ..Config::default()
        };
        Store::open(&config).await.unwrap()
    };
    open(&databases[0]).await.close().await;
    let store = open(&databases[1]).await;
    let now = clock::wall();
    let mut records = records();
    let mut old = record(now - TimeDelta::days(20), ROWS);
    old.outcome = Outcome::AccountLocked;
    records.push(old);
    store.apply(&records).await.unwrap();
    let row = &records[1];
    let change = CostChange {
        id: row.id,
        day: row.started_at.date_naive(),
        old_cost_usd: row.cost_usd.map(taffrail::money::Usd::dollars),
        cost_usd: "0.5".parse().unwrap(),
        cost_source: CostSource::Catalog,
        cost_upstream_usd: None,
        price_version: Some("2026-11-02".to_owned()),
    };
    assert_eq!(store.recost(&[change]).await.unwrap(), 1);
    let reading = BalanceReading {
        provider: "deepseek".to_owned(),
        account: "main".to_owned(),
        slot: now - TimeDelta::hours(1),
        read_at: now - TimeDelta::hours(1),
        result: "ok".to_owned(),
        balances: vec![Balance {
            kind: BalanceKind::Prepaid,
            currency: "USD".to_owned(),
            amount: Some("12.5".parse().unwrap()),
        }],
        detail: None,
        raw: None,
    };
    assert!(store.record_balance(&reading).await.unwrap());
    let bill = Reconciliation {
        provider: "openai".to_owned(),
        account: "main".to_owned(),
        day: (now - TimeDelta::days(1)).date_naive(),
        window: (now - TimeDelta::days(2), now - TimeDelta::days(1)),
        read_at: now,
        result: "ok".to_owned(),
        source: Some("bill".to_owned()),
        provider_spend_usd: Some("3".parse().unwrap()),
        metered: Some(Metered {
            cost_usd: Some("2".parse().unwrap()),
            upstream_usd: None,
            requests: 10,
            unpriced_requests: 1,
            keys: 1,
            unclaimed_keys: 0,
        }),
        detail: None,
    };
    store.record_reconciliations(&[bill]).await.unwrap();
    let version = NewPriceVersion {
        version: "2026-11-02",
        source: "openrouter",
        effective_from: now,
        catalogue: "{}",
        since: 0,
    };
    assert!(store.add_price_version(&version).await.unwrap().is_some());
    store.note_price_refresh("openrouter", None).await.unwrap();
    store.close().await;
    Some(databases)
}

#[tokio::test]
async fn every_query_answers_on_an_empty_store_and_on_one_with_rows() {
    let Some([empty, filled]) = databases().await else {
        return;
    };
    let mut faults = Vec::new();
    let mut asked = 0;
    for (database, has_rows) in [(&empty, false), (&filled, true)] {
        let mut reader = Reader::of(database).await;
        for board in board::all().values() {
            let view = reader.open(board).await;
            for (panel, query) in queries(board) {
                asked += 1;
                let problems = match reader.ask(&view.sql(query)).await {
                    Err(problem) => vec![problem],
                    Ok(answer) if has_rows && answer.rows.is_empty() => {
                        vec![format!("no row\n{query}")]
                    }
                    Ok(answer) => missing(panel, &answer),
                };
                let problems = problems.into_iter();
                let (file, title) = (&board.file, text(panel, "title"));
                faults.extend(problems.map(|it| format!("{file}: panel {title:?}: {it}")));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(asked >= 20, "{asked}");
}

#[tokio::test]
async fn the_log_shows_each_row_on_one_page_and_finds_it_by_its_id() {
    let Some([_, filled]) = databases().await else {
        return;
    };
    let boards = board::all();
    let board = &boards["taffrail-log"];
    let mut reader = Reader::of(&filled).await;
    let mut view = reader.open(board).await;
    let (_, log) = queries(board)
        .into_iter()
        .find(|(panel, _)| panel["type"] == "table" && text(panel, "title") == "Requests")
        .unwrap();
    let mut ids = async |view: &View| -> Vec<String> {
        let answer = reader.ask(&view.sql(log)).await.unwrap();
        let column = answer.columns.iter().position(|(name, _)| name == "Id");
        let rows = answer.rows.iter();
        rows.map(|row| row[column.unwrap()].clone().unwrap())
            .collect()
    };
    let mut pages = Vec::new();
    for page in ["1", "2", "3", "4"] {
        view.set("page", page);
        pages.push(ids(&view).await);
    }
    let sizes: Vec<usize> = pages.iter().map(Vec::len).collect();
    assert_eq!(sizes, [50, 50, 20, 0]);
    let mut all = pages.concat();
    assert!(all.is_sorted_by(|one, next| one > next), "newest first");
    all.dedup();
    assert_eq!(all.len(), 120);
    // What people write instead of a page is the first one, and does no harm.
    for page in ["", "0", "-1", "x' or 'y'='y"] {
        view.set("page", page);
        assert_eq!(ids(&view).await, pages[0], "{page:?}");
    }
    view.set("page", "999999999999");
    assert!(ids(&view).await.is_empty());
    view.set("page", "1");
    for (variable, value, expected) in [
        ("size", "500", 120),
        ("provider", "fal", 40),
        ("outcome", "upstream_error", 10),
        ("team", "none", 2),
    ] {
        view.set(variable, value);
        assert_eq!(ids(&view).await.len(), expected, "{variable}={value}");
    }
    // "All" is everything, also what the variables' queries are too short-sighted to offer.
    let mut view = reader.open(board).await;
    view.from = view.to - TimeDelta::days(30);
    let Some(Chosen::AllValue(_)) = view.chosen.get("outcome") else {
        panic!("All is a list: rows of outcomes that are not in it are hidden")
    };
    let counted = queries(board)
        .into_iter()
        .find(|(panel, _)| text(panel, "title") == "Rows with these filters");
    let answer = reader.ask(&view.sql(counted.unwrap().1)).await.unwrap();
    assert_eq!(answer.rows, [[Some("121".to_owned())]]);
    view.set("search", &pages[1][7]);
    let answer = reader.ask(&view.sql(log)).await.unwrap();
    assert_eq!(answer.rows.len(), 1);
    view.set("search", "no such id");
    let answer = reader.ask(&view.sql(log)).await.unwrap();
    assert_eq!(answer.rows.len(), 0);
}

#[tokio::test]
async fn what_is_wrong_with_a_query_is_found() {
    let Some([_, filled]) = databases().await else {
        return;
    };
    let mut reader = Reader::of(&filled).await;
    let now = clock::wall();
    let view = View {
        chosen: [("none".to_owned(), Chosen::All(Vec::new()))].into(),
        from: now,
        to: now,
    };
    for (sql, words) in [
        (
            "select colour from taffrail.api_usage_logs",
            "column \"colour\" does not exist",
        ),
        ("select 1 where 'x' in (${none:sqlstring})", "syntax error"),
        (
            "delete from taffrail.api_usage_logs",
            "read-only transaction",
        ),
        ("create temp table mine (id int)", "read-only transaction"),
        ("select * from taffrail.reader_scopes", "permission denied"),
    ] {
        let problem = reader.ask(&view.sql(sql)).await.err().unwrap_or_default();
        assert!(problem.contains(words), "{sql}: {problem:?}");
    }
    let panel = serde_json::json!({
        "fieldConfig": {"overrides": [{"matcher": {"id": "byName", "options": "Cost"}}]},
        "targets": [{"format": "time_series"}],
    });
    let answer = reader
        .ask("select now() as time, 'x' as metric, 1 as value")
        .await;
    let found = missing(&panel, &answer.unwrap());
    assert_eq!(
        found,
        ["no column \"Cost\"", "no column \"value\" of FLOAT8"]
    );
}
