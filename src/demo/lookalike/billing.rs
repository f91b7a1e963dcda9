//! The billing and price APIs of the vendors, all at one host: what is left in accounts, what closed
//! days cost, and what models are sold for.
//!
//! Sources are named in `balance/*.rs`, `bill/*.rs` and `price/*.rs`, which these answers are read
//! by. A balance falls as time goes by; a bill is what the [`History`] says, and for some vendors a
//! little more: that of traffic which nobody metered.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Days, NaiveDate, SecondsFormat, Utc};
use http::request::Parts;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rust_decimal::Decimal;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::{openrouter, origin, work};
use crate::clock;
use crate::demo::history::History;

/// How many closed days a bill tells.
const DAYS: u64 = 30;

/// What was in the accounts when the demo began, and what goes in a minute.
const OPENROUTER: Credit = Credit(250, 40);
const FAL: Credit = Credit(60, 90);
const DEEPSEEK: Credit = Credit(310, 15);

/// Dollars (or what the account is in) at the beginning, and cents that go in a minute.
struct Credit(i64, i64);

impl Credit {
    /// What is left after so long, to the cent.
    fn after(&self, seconds: i64) -> Decimal {
        let Credit(dollars, cents) = self;
        let spent = Decimal::new(cents * seconds / 60, 2);
        (Decimal::from(*dollars) - spent).max(Decimal::ZERO)
    }
}

/// A host that bills; it stops when it is dropped.
#[derive(Debug)]
pub struct Billing {
    address: SocketAddr,
    _accept: AbortOnDropHandle<()>,
}

/// What the host knows.
struct Books {
    history: History,
    since: DateTime<Utc>,
}

impl Billing {
    /// The vendors that it stands for, by Taffrail's names.
    pub const VENDORS: [&str; 5] = ["openrouter", "fal", "openai", "anthropic", "deepseek"];

    /// Starts it on a free port of loopback.
    ///
    /// # Errors
    ///
    /// If no port can be had.
    pub async fn start(history: History) -> io::Result<Billing> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let since = clock::wall();
        let books = Arc::new(Books { history, since });
        let accept = tokio::spawn(accept(listener, books));
        Ok(Billing {
            address,
            _accept: AbortOnDropHandle::new(accept),
        })
    }

    /// The URL that stands for the vendors' own.
    pub fn url(&self) -> String {
        origin(self.address)
    }
}

async fn accept(listener: TcpListener, books: Arc<Books>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // Without a connection there is no answer, which is a vendor's bad day as well.
            Ok((stream, _)) = listener.accept() => {
                let books = Arc::clone(&books);
                let service = service_fn(move |request: Request<Incoming>| {
                    let (head, _) = request.into_parts();
                    let response = respond(&books, &head);
                    async move { Ok::<_, Infallible>(response) }
                });
                let serving = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                connections.spawn(async move { drop(serving.await) });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

fn respond(books: &Books, head: &Parts) -> Response<Full<Bytes>> {
    let now = clock::wall();
    let (status, body) = match books.reply(head.uri.path(), head.uri.query(), now) {
        Some(body) => (StatusCode::OK, body),
        None => (StatusCode::NOT_FOUND, r#"{"error":"not found"}"#.to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

impl Books {
    fn reply(&self, path: &str, query: Option<&str>, now: DateTime<Utc>) -> Option<String> {
        let seconds = (now - self.since).num_seconds();
        let today = now.date_naive();
        let reply = match path {
            "/api/v1/credits" => json!({"data": {
                "total_credits": OPENROUTER.0,
                "total_usage": number(Decimal::from(OPENROUTER.0) - OPENROUTER.after(seconds)),
            }}),
            "/v1/account/billing" => json!({"username": "demo", "credits": {
                "current_balance": number(FAL.after(seconds)), "currency": "USD",
            }}),
            "/user/balance" => json!({"is_available": true, "balance_infos": [{
                "currency": "CNY",
                "total_balance": DEEPSEEK.after(seconds).to_string(),
                "granted_balance": "0.00",
                "topped_up_balance": DEEPSEEK.after(seconds).to_string(),
            }]}),
            "/api/v1/activity" => json!({"data": self.days("openrouter", 104, today)
                .map(|(day, usd)| json!({"date": day, "usage": number(usd)}))
                .collect::<Value>()}),
            "/v1/models/usage" => json!({"has_more": false, "next_cursor": null, "time_series":
                self.days("fal", 112, today).map(|(day, usd)| json!({
                    "bucket": start(day),
                    "results": [{"cost_total": number(usd), "currency": "USD"}],
                })).collect::<Value>()}),
            "/v1/organization/costs" => {
                json!({"object": "page", "has_more": false, "next_page": null,
                "data": self.days("openai", 100, today).map(|(day, usd)| json!({
                    "object": "bucket",
                    "start_time": start(day).timestamp(),
                    "results": [{"amount": {"value": number(usd), "currency": "usd"}}],
                })).collect::<Value>()})
            }
            "/v1/organizations/cost_report" => json!({"has_more": false, "next_page": null,
                "data": self.days("anthropic", 101, today).map(|(day, usd)| json!({
                    "starting_at": start(day).to_rfc3339_opts(SecondsFormat::Secs, true),
                    "results": [{"currency": "USD", "amount": (usd * Decimal::ONE_HUNDRED).to_string()}],
                })).collect::<Value>()}),
            "/api/v1/models" => return Some(openrouter::price_list(now.timestamp())),
            "/v1/models/pricing" => return Some(work::price_list(query.unwrap_or_default())),
            _ => return None,
        };
        Some(reply.to_string())
    }

    /// The bill of the last closed days: so many hundredths of what was metered.
    fn days(
        &self,
        provider: &str,
        percent: i64,
        today: NaiveDate,
    ) -> impl Iterator<Item = (NaiveDate, Decimal)> {
        let days = (1..=DAYS).filter_map(move |ago| today.checked_sub_days(Days::new(ago)));
        days.map(move |day| {
            let metered = self.history.spent(provider, day);
            (day, metered * Decimal::new(percent, 2))
        })
    }
}

fn start(day: NaiveDate) -> DateTime<Utc> {
    day.and_time(chrono::NaiveTime::MIN).and_utc()
}

/// A decimal as a JSON number with all its digits.
fn number(decimal: Decimal) -> Value {
    let number = serde_json::from_str(&decimal.normalize().to_string());
    number.unwrap_or(Value::Null)
}
