//! `taffrail balances` and `taffrail sync`: what is left in each account, how old that is, and what
//! went wrong.

use std::collections::BTreeMap;
use std::io;

use chrono::{DateTime, SubsecRound, Utc};
use serde_json::json;

use super::table::{Footer, Grid, UNKNOWN, printable, thousands};
use super::{Format, write_csv, write_json_line};
use crate::balance::Balance;
use crate::exporter::balances::is_failure;
use crate::store::BalanceReading;

/// An account in one currency, of which the balance is that of its last reading that succeeded.
struct Line<'a> {
    last: &'a BalanceReading,
    last_ok: Option<&'a BalanceReading>,
    balance: Option<&'a Balance>,
}

/// Writes a line for each account and currency; returns how many accounts failed when they were
/// read last. That a provider tells no balance is no failure.
///
/// # Errors
/// The writer's.
pub fn balances(
    readings: &[BalanceReading],
    format: Format,
    width: Option<u16>,
    now: DateTime<Utc>,
    out: &mut dyn io::Write,
) -> io::Result<usize> {
    let mut accounts: BTreeMap<(&str, &str), Vec<&BalanceReading>> = BTreeMap::new();
    for reading in readings {
        let key = (reading.provider.as_str(), reading.account.as_str());
        accounts.entry(key).or_default().push(reading);
    }
    let mut lines = Vec::new();
    let mut failed = 0;
    for readings in accounts.values() {
        let newest = |is_wanted: &dyn Fn(&BalanceReading) -> bool| {
            let wanted = readings.iter().copied().filter(|own| is_wanted(own));
            wanted.max_by_key(|own| own.read_at)
        };
        let Some(last) = newest(&|_| true) else {
            continue;
        };
        failed += usize::from(is_failure(last));
        let last_ok = newest(&BalanceReading::is_ok);
        let known = last_ok.map_or(&[][..], |reading| &reading.balances);
        let line = |balance| Line {
            last,
            last_ok,
            balance,
        };
        if known.is_empty() {
            lines.push(line(None));
        }
        lines.extend(known.iter().map(|balance| line(Some(balance))));
    }
    match format {
        Format::Json => {
            for line in &lines {
                write_json_line(out, &line.json())?;
            }
        }
        Format::Csv => {
            let header = [
                "provider", "account", "kind", "currency", "balance", "read_at", "result",
                "tried_at", "detail",
            ];
            let header = std::iter::once(header.map(str::to_owned));
            write_csv(out, header.chain(lines.iter().map(Line::csv)))?;
        }
        Format::Table if lines.is_empty() => writeln!(
            out,
            "No balance has been read. Declare accounts as [[accounts]], and run `taffrail sync` or \
             the exporter."
        )?,
        Format::Table => {
            writeln!(out, "{}", table(&lines, width, now))?;
            if failed > 0 {
                let accounts = accounts.len();
                writeln!(out, "\n{failed} of {accounts} accounts could not be read.")?;
            }
        }
    }
    Ok(failed)
}

impl Line<'_> {
    fn amount(&self) -> Option<String> {
        Some(self.balance?.amount?.normalize().to_string())
    }

    fn read_at(&self) -> Option<String> {
        self.last_ok.map(|reading| {
            reading
                .read_at
                .to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
        })
    }

    fn json(&self) -> serde_json::Value {
        let tried_at = self.last.read_at.trunc_subsecs(0);
        json!({
            "provider": self.last.provider,
            "account": self.last.account,
            "kind": self.balance.map(|own| own.kind.as_str()),
            "currency": self.balance.map(|own| own.currency.as_str()),
            "balance": self.amount(),
            "read_at": self.read_at(),
            "result": self.last.result,
            "tried_at": tried_at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            "detail": self.last.detail,
        })
    }

    fn csv(&self) -> [String; 9] {
        let tried_at = self.last.read_at;
        [
            self.last.provider.clone(),
            self.last.account.clone(),
            self.balance
                .map(|own| own.kind.as_str().to_owned())
                .unwrap_or_default(),
            self.balance
                .map(|own| own.currency.clone())
                .unwrap_or_default(),
            self.amount().unwrap_or_default(),
            self.read_at().unwrap_or_default(),
            self.last.result.clone(),
            tried_at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            self.last.detail.clone().unwrap_or_default(),
        ]
    }

    fn shown_amount(&self) -> String {
        match (self.balance, self.amount()) {
            (Some(_), None) => "no limit".to_owned(),
            (_, Some(amount)) => thousands(&with_cents(amount)),
            (None, None) => UNKNOWN.to_owned(),
        }
    }
}

/// A decimal with two places at least, so that money looks like money.
fn with_cents(amount: String) -> String {
    match amount.split_once('.') {
        None => format!("{amount}.00"),
        Some((_, cents)) if cents.len() == 1 => format!("{amount}0"),
        Some(_) => amount,
    }
}

fn table(lines: &[Line<'_>], width: Option<u16>, now: DateTime<Utc>) -> String {
    let mut grid = Grid::default();
    let texts =
        |text: &dyn Fn(&Line<'_>) -> String| lines.iter().map(text).collect::<Vec<String>>();
    grid.text(
        "Provider".to_owned(),
        texts(&|line| printable(&line.last.provider)),
    );
    grid.text(
        "Account".to_owned(),
        texts(&|line| printable(&line.last.account)),
    );
    grid.right("Balance", texts(&|line| line.shown_amount()));
    let of_balance = |text: &dyn Fn(&Balance) -> String| {
        texts(&|line| line.balance.map_or(UNKNOWN.to_owned(), text))
    };
    grid.text(
        "Currency".to_owned(),
        of_balance(&|own| printable(&own.currency)),
    );
    grid.text(
        "Kind".to_owned(),
        of_balance(&|own| own.kind.as_str().to_owned()),
    );
    grid.text(
        "Read".to_owned(),
        texts(&|line| match line.last_ok {
            Some(reading) => age(now, reading.read_at),
            None => UNKNOWN.to_owned(),
        }),
    );
    grid.text(
        "Result".to_owned(),
        texts(&|line| match is_failure(line.last) {
            true => format!("FAILED: {}", line.last.result),
            false => line.last.result.clone(),
        }),
    );
    let notes = texts(&|line| {
        line.last
            .detail
            .as_deref()
            .map(printable)
            .unwrap_or_default()
    });
    grid.wrapping_text("Note".to_owned(), notes);
    grid.fit(width, &["Kind", "Currency"]);
    grid.render(width, Footer::None)
}

/// How long ago something was, in its largest unit.
fn age(now: DateTime<Utc>, at: DateTime<Utc>) -> String {
    let seconds = (now - at).num_seconds();
    match seconds {
        ..5 => "now".to_owned(),
        5..120 => format!("{seconds} s ago"),
        120..7_200 => format!("{} min ago", seconds / 60),
        7_200..172_800 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}
