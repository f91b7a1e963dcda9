//! `taffrail reconcile`: what providers billed against what was metered, what the difference may
//! come from, and what to do next.

use std::collections::BTreeMap;
use std::io;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use serde_json::json;

use super::table::{Footer, Grid, UNKNOWN, printable, thousands};
use super::{Format, write_csv, write_json_line};
use crate::bill::receipt;
use crate::store::Reconciliation;

/// A difference of less than this share of the bill, or of a cent, is rounding.
const ROUNDING_SHARE: Decimal = Decimal::from_parts(1, 0, 0, false, 2);
const ROUNDING_USD: Decimal = Decimal::from_parts(1, 0, 0, false, 2);

/// How long vendors still change a day's bill.
const BILL_SETTLES: TimeDelta = TimeDelta::days(2);

/// What is known of an account over some days.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Account<'a> {
    provider: &'a str,
    account: &'a str,
    /// The first day that is counted, and the day after the last.
    days: Option<(NaiveDate, NaiveDate)>,
    /// How many days are counted: those whose bill and whose traffic are known.
    days_known: usize,
    /// How many are not.
    days_unknown: usize,
    sources: Vec<&'a str>,
    bill: Option<Decimal>,
    metered: Option<Decimal>,
    upstream: Decimal,
    requests: i64,
    unpriced_requests: i64,
    keys: i32,
    unclaimed_keys: i32,
    last_end: Option<DateTime<Utc>>,
    /// What was said of its days, each once, the newest first.
    details: Vec<&'a str>,
}

/// A reason, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cause {
    what: String,
    next: String,
}

/// Writes a line for each account, and what may explain its difference.
///
/// # Errors
/// The writer's.
pub fn reconcile(
    rows: &[Reconciliation],
    format: Format,
    width: Option<u16>,
    now: DateTime<Utc>,
    out: &mut dyn io::Write,
) -> io::Result<()> {
    let mut of_account: BTreeMap<(&str, &str), Vec<&Reconciliation>> = BTreeMap::new();
    for row in rows {
        let key = (row.provider.as_str(), row.account.as_str());
        of_account.entry(key).or_default().push(row);
    }
    let accounts: Vec<Account<'_>> = of_account
        .into_iter()
        .map(|(key, rows)| Account::of(key, &rows))
        .collect();
    match format {
        Format::Json => {
            for account in &accounts {
                write_json_line(out, &account.json(now))?;
            }
            Ok(())
        }
        Format::Csv => {
            let header = [
                "provider",
                "account",
                "from",
                "to",
                "days",
                "days_unknown",
                "source",
                "provider_spend_usd",
                "metered_usd",
                "unmetered_usd",
                "unmetered_share",
                "upstream_usd",
                "requests",
                "unpriced_requests",
                "detail",
            ];
            let header = std::iter::once(header.map(str::to_owned));
            write_csv(out, header.chain(accounts.iter().map(Account::csv)))
        }
        Format::Table if accounts.is_empty() => writeln!(
            out,
            "No bill has been read. Declare accounts as [[accounts]] and run the exporter: it reads \
             the bills of closed UTC days when it starts, and by schedule.reconcile."
        ),
        Format::Table => {
            writeln!(out, "{}", table(&accounts, width))?;
            for account in &accounts {
                let causes = account.causes(now);
                if causes.is_empty() {
                    continue;
                }
                let (provider, name) = (printable(account.provider), printable(account.account));
                writeln!(out, "\n{provider} {name}")?;
                for Cause { what, next } in causes {
                    writeln!(out, "  - {}", printable(&what))?;
                    writeln!(out, "    {}", printable(&next))?;
                }
            }
            Ok(())
        }
    }
}

impl<'a> Account<'a> {
    fn of((provider, account): (&'a str, &'a str), rows: &[&'a Reconciliation]) -> Account<'a> {
        let mut all = Account {
            provider,
            account,
            days: None,
            days_known: 0,
            days_unknown: 0,
            sources: Vec::new(),
            bill: None,
            metered: None,
            upstream: Decimal::ZERO,
            requests: 0,
            unpriced_requests: 0,
            keys: 0,
            unclaimed_keys: 0,
            last_end: None,
            details: Vec::new(),
        };
        for row in rows {
            let metered = row.metered.as_ref();
            let cost = metered.and_then(|own| own.cost_usd);
            match (row.provider_spend_usd, cost) {
                // Sums of the same days only can be held against each other.
                (Some(bill), Some(cost)) => {
                    add(&mut all.bill, bill);
                    add(&mut all.metered, cost);
                    all.days_known += 1;
                    let first = all.days.map_or(row.day, |(first, _)| first.min(row.day));
                    all.days = Some((first, crate::bill::next_day(row.day)));
                    all.last_end = all.last_end.max(Some(row.window.1));
                }
                _ => all.days_unknown += 1,
            }
            if let Some(metered) = metered {
                all.upstream = all
                    .upstream
                    .saturating_add(metered.upstream_usd.unwrap_or_default());
                all.requests += metered.requests;
                all.unpriced_requests += metered.unpriced_requests;
                all.keys = all.keys.max(metered.keys);
                all.unclaimed_keys = all.unclaimed_keys.max(metered.unclaimed_keys);
            }
            if let Some(source) = row.source.as_deref()
                && !all.sources.contains(&source)
            {
                all.sources.push(source);
            }
        }
        for row in rows.iter().rev() {
            if let Some(detail) = row.detail.as_deref()
                && !all.details.contains(&detail)
            {
                all.details.push(detail);
            }
        }
        all
    }

    fn unmetered(&self) -> Option<Decimal> {
        Some(self.bill?.saturating_sub(self.metered?))
    }

    /// The part of the bill that was not metered.
    fn share(&self) -> Option<Decimal> {
        let share = self.unmetered()?.checked_div(self.bill?)?;
        Some(share.round_dp(4).normalize())
    }

    /// Whether the difference is more than rounding.
    fn differs(&self) -> bool {
        let bill = self.bill.unwrap_or_default().abs();
        let rounding = bill.saturating_mul(ROUNDING_SHARE).max(ROUNDING_USD);
        self.unmetered().is_some_and(|own| own.abs() > rounding)
    }

    /// What may explain the difference, or why there is none to explain; likeliest first.
    fn causes(&self, now: DateTime<Utc>) -> Vec<Cause> {
        let mut causes = Vec::new();
        let mut add = |what: String, next: &str| {
            causes.push(Cause {
                what,
                next: next.to_owned(),
            });
        };
        let provider = self.provider;
        for detail in &self.details {
            add(
                (*detail).to_owned(),
                "docs/reconciliation.md says which key and which settings each provider needs",
            );
        }
        let is_over = self.unmetered().is_some_and(|own| own > Decimal::ZERO);
        if self.unpriced_requests > 0 {
            add(
                format!(
                    "{} requests that were seen have no known cost, so less was metered than spent",
                    self.unpriced_requests
                ),
                match receipt::api(provider) {
                    Some(_) => {
                        "`taffrail logs --format json` has their unpriced_reason; the exporter asks \
                         the provider what they cost, by schedule.receipts with the account's key, and \
                         taffrail_receipts_total says what it was told"
                    }
                    None => {
                        "`taffrail logs --format json` has their unpriced_reason; `taffrail prices list` \
                         shows what is priced, and prices.overlay_file adds what is not"
                    }
                },
            );
        }
        if self.differs() && is_over {
            if self.requests == 0 && self.days_known > 0 {
                add(
                    format!(
                        "no request to {provider} was seen at all: its traffic bypasses Taffrail"
                    ),
                    "point the SDK's base URL at the proxy; README.md lists the variables",
                );
            } else {
                add(
                    format!(
                        "traffic that bypasses Taffrail: {} keys were seen here, and the provider \
                         may know more",
                        self.keys
                    ),
                    "hold `taffrail usage --by key` against the provider's own list of keys; whoever \
                     uses the ones that are missing has its base URL elsewhere",
                );
            }
            if self.unclaimed_keys > 0 {
                add(
                    format!(
                        "{} further keys made requests here that no account claims",
                        self.unclaimed_keys
                    ),
                    "add their fingerprints of `taffrail usage --by key` to \
                     accounts[].key_fingerprints of the account that pays for them",
                );
            }
            add(
                "a price that is too low, where the provider states none".to_owned(),
                "hold the provider's bill by model against `taffrail usage --by model`; correct \
                 the price in prices.overlay_file",
            );
        }
        if self.differs() && !is_over {
            let is_recent = self.last_end.is_some_and(|end| now - end < BILL_SETTLES);
            if is_recent {
                add(
                    "a bill that is late: vendors still add to the last days".to_owned(),
                    "look again tomorrow; the exporter reads recent days anew each time",
                );
            }
            add(
                "a price that is too high, such as a discount that Taffrail does not know"
                    .to_owned(),
                "hold the provider's bill by model against `taffrail usage --by model`; put your \
                 rates into prices.overlay_file",
            );
            add(
                "traffic of another account that is counted as this one's".to_owned(),
                "declare that account too, and name the keys of each in accounts[].key_fingerprints",
            );
        }
        if !self.upstream.is_zero() {
            add(
                format!(
                    "another party bills {} USD of these requests (bring your own key), which is in \
                     neither column",
                    self.upstream.normalize()
                ),
                "that party's own bill has it: declare its account as well",
            );
        }
        causes
    }

    fn bounds(&self) -> (Option<String>, Option<String>) {
        self.days
            .map(|(from, to)| (from.to_string(), to.to_string()))
            .unzip()
    }

    fn json(&self, now: DateTime<Utc>) -> serde_json::Value {
        let (from, to) = self.bounds();
        let causes = self.causes(now);
        let causes: Vec<serde_json::Value> = causes
            .iter()
            .map(|own| json!({ "cause": own.what, "next": own.next }))
            .collect();
        json!({
            "provider": self.provider,
            "account": self.account,
            "from": from,
            "to": to,
            "days": self.days_known,
            "days_unknown": self.days_unknown,
            "source": self.source(),
            "provider_spend_usd": plain(self.bill),
            "metered_usd": plain(self.metered),
            "unmetered_usd": plain(self.unmetered()),
            "unmetered_share": self.share().and_then(|share| share.to_f64()),
            "upstream_usd": plain(Some(self.upstream).filter(|own| !own.is_zero())),
            "requests": self.requests,
            "unpriced_requests": self.unpriced_requests,
            "causes": causes,
        })
    }

    fn csv(&self) -> [String; 15] {
        let (from, to) = self.bounds();
        [
            self.provider.to_owned(),
            self.account.to_owned(),
            from.unwrap_or_default(),
            to.unwrap_or_default(),
            self.days_known.to_string(),
            self.days_unknown.to_string(),
            self.source().unwrap_or_default(),
            plain(self.bill).unwrap_or_default(),
            plain(self.metered).unwrap_or_default(),
            plain(self.unmetered()).unwrap_or_default(),
            self.share().map_or(String::new(), |it| it.to_string()),
            plain(Some(self.upstream).filter(|own| !own.is_zero())).unwrap_or_default(),
            self.requests.to_string(),
            self.unpriced_requests.to_string(),
            self.details.join("; "),
        ]
    }

    fn source(&self) -> Option<String> {
        (!self.sources.is_empty()).then(|| self.sources.join(", "))
    }
}

fn add(sum: &mut Option<Decimal>, amount: Decimal) {
    *sum = Some(sum.unwrap_or_default().saturating_add(amount));
}

fn plain(amount: Option<Decimal>) -> Option<String> {
    amount.map(|amount| amount.normalize().to_string())
}

fn table(accounts: &[Account<'_>], width: Option<u16>) -> String {
    let column = |cell: &dyn Fn(&Account<'_>) -> Option<String>| -> Vec<String> {
        let cells = accounts.iter().map(cell);
        cells
            .map(|own| own.unwrap_or_else(|| UNKNOWN.to_owned()))
            .collect()
    };
    let usd = |amount: Option<Decimal>| Some(thousands(&format!("{:.4}", amount?.round_dp(4))));
    let mut grid = Grid::default();
    grid.text(
        "Provider".to_owned(),
        column(&|own| Some(printable(own.provider))),
    );
    grid.text(
        "Account".to_owned(),
        column(&|own| Some(printable(own.account))),
    );
    grid.right(
        "Days",
        column(&|own| {
            Some(match own.days_unknown {
                0 => own.days_known.to_string(),
                unknown => format!("{} of {}", own.days_known, own.days_known + unknown),
            })
        }),
    );
    grid.right("Bill USD", column(&|own| usd(own.bill)));
    grid.right(
        "Metered USD",
        column(&|own| {
            let metered = usd(own.metered)?;
            Some(match own.unpriced_requests {
                0 => metered,
                _ => format!("≥ {metered}"),
            })
        }),
    );
    grid.right("Unmetered USD", column(&|own| usd(own.unmetered())));
    grid.right(
        "Share",
        column(&|own| {
            let percent = own.share()?.saturating_mul(Decimal::ONE_HUNDRED);
            Some(format!("{:.1}%", percent.round_dp(1)))
        }),
    );
    grid.right(
        "Unpriced",
        column(&|own| Some(own.unpriced_requests.to_string())),
    );
    grid.text("Bill from".to_owned(), column(&|own| own.source()));
    grid.render(width, Footer::None)
}
