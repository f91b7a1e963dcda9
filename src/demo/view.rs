//! The live view: a progress bar and a small table on a terminal, a line now and then elsewhere.
//!
//! Standard error only, so that the report on standard output can be redirected. Colours follow
//! `NO_COLOR` and the terminal. What is shown comes from [`Board`]; nothing here counts.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::board::{Board, Line};

/// How often a line is printed where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Shows how a demo goes.
pub enum View {
    /// On a terminal.
    Table(Table),
    /// Elsewhere: how long until the next line.
    Lines(Duration),
}

/// The bar and the lines of the table, which are redrawn in place.
pub struct Table {
    bars: MultiProgress,
    time: ProgressBar,
    lines: Vec<ProgressBar>,
}

impl View {
    /// The view that suits standard error, for a demo of that length.
    pub fn new(length: Duration, providers: &[&str]) -> View {
        if !io::stderr().is_terminal() {
            return View::Lines(LINE_INTERVAL.min(length / 2));
        }
        let bars = MultiProgress::new();
        let time = bars.add(ProgressBar::new(millis(length)));
        time.set_style(style("  {bar:30.cyan/black.bright}  {msg}").progress_chars("━╸━"));
        // An empty line, the heading, the providers, the total and an empty line.
        let lines = (0..providers.len() + 4)
            .map(|_| {
                let line = bars.add(ProgressBar::new(0));
                line.set_style(style("{wide_msg}"));
                line
            })
            .collect();
        View::Table(Table { bars, time, lines })
    }

    /// Shows the numbers after `elapsed` of `length`.
    pub fn show(&mut self, elapsed: Duration, length: Duration, board: &Board, providers: &[&str]) {
        match self {
            View::Table(table) => table.show(elapsed, length, board, providers),
            View::Lines(next) if elapsed >= *next => {
                *next += LINE_INTERVAL;
                print(&line(elapsed, &board.total()));
            }
            View::Lines(_) => {}
        }
    }

    /// Leaves the terminal as it was found; the report takes the view's place.
    pub fn clear(&self) {
        if let View::Table(table) = self {
            // A terminal that is gone needs no tidying.
            drop(table.bars.clear());
        }
    }
}

impl Table {
    fn show(&self, elapsed: Duration, length: Duration, board: &Board, providers: &[&str]) {
        self.time.set_position(millis(elapsed));
        self.time.set_message(clock(elapsed, length));
        let mut texts = vec![String::new(), heading()];
        for provider in providers {
            let line = board.lines.get(*provider).cloned().unwrap_or_default();
            texts.push(row(provider, &line));
        }
        texts.push(row("total", &board.total()));
        for (bar, text) in self.lines.iter().zip(texts) {
            bar.set_message(text);
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn print(line: &str) {
    // Progress that cannot be shown is no reason to end the demo.
    drop(writeln!(io::stderr().lock(), "{line}"));
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn clock(elapsed: Duration, length: Duration) -> String {
    match elapsed < length {
        true => format!("{} s of {} s", elapsed.as_secs(), length.as_secs()),
        false => "waiting for the last answers".to_owned(),
    }
}

/// The widths of the columns add up to 80.
fn heading() -> String {
    format!(
        "  {:<11}{:>9}{:>6}{:>7}{:>8}{:>10}{:>8}{:>10}{:>9}",
        "", "requests", "ok", "errors", "gave up", "tokens in", "out", "cost", "TTFT p50"
    )
}

fn row(name: &str, line: &Line) -> String {
    let median = line.first_token_median().map_or_else(
        || "-".to_owned(),
        |median| format!("{} ms", median.as_millis()),
    );
    format!(
        "  {name:<11}{:>9}{:>6}{:>7}{:>8}{:>10}{:>8}{:>10}{median:>9}",
        line.requests,
        line.ok,
        line.errors,
        line.cancelled,
        short(line.input_tokens),
        short(line.output_tokens),
        format!("${:.4}", line.cost_usd),
    )
}

fn line(elapsed: Duration, total: &Line) -> String {
    format!(
        "{} s: {} requests ({} ok, {} errors, {} given up), {} tokens in, {} out, ${:.4}",
        elapsed.as_secs(),
        total.requests,
        total.ok,
        total.errors,
        total.cancelled,
        short(total.input_tokens),
        short(total.output_tokens),
        total.cost_usd,
    )
}

/// A count in at most six characters.
fn short(count: u64) -> String {
    match count {
        0..10_000 => count.to_string(),
        10_000..10_000_000 => format!("{}.{}k", count / 1_000, count / 100 % 10),
        _ => format!("{}.{}M", count / 1_000_000, count / 100_000 % 10),
    }
}
