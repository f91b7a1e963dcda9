//! The live view: a progress bar and a small table on a terminal, a line now and then elsewhere.
//!
//! Standard error only, so that the report on standard output can be redirected. Colours follow
//! `NO_COLOR` and the terminal. What is shown comes from [`Board`]; nothing here counts.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::board::{Board, Line};
use super::lookalike::Vendor;

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
    length: Duration,
    lines: Vec<ProgressBar>,
}

impl View {
    /// The view that suits standard error, for a demo of that length.
    pub fn new(length: Duration) -> View {
        if !io::stderr().is_terminal() {
            return View::Lines(LINE_INTERVAL.min(length / 2));
        }
        let bars = MultiProgress::new();
        let time = bars.add(ProgressBar::new(millis(length)));
        time.set_style(style("  {bar:30.cyan/black.bright}  {msg}").progress_chars("━╸━"));
        // An empty line, the heading, the vendors and the total.
        let lines = (0..Vendor::ALL.len() + 3)
            .map(|_| {
                let line = bars.add(ProgressBar::new(0));
                line.set_style(style("{wide_msg}"));
                line
            })
            .collect();
        View::Table(Table {
            bars,
            time,
            length,
            lines,
        })
    }

    /// Shows the numbers after `elapsed`.
    pub fn show(&mut self, elapsed: Duration, board: &Board) {
        match self {
            View::Table(table) => table.show(elapsed, board),
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
    fn show(&self, elapsed: Duration, board: &Board) {
        self.time.set_position(millis(elapsed));
        self.time.set_message(clock(elapsed, self.length));
        let mut texts = vec![String::new(), heading()];
        for vendor in Vendor::ALL {
            let line = board.lines.get(vendor.name()).cloned().unwrap_or_default();
            texts.push(row(vendor.name(), &line));
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
        "  {:<10}{:>9}{:>6}{:>7}{:>8}{:>10}{:>8}{:>11}{:>9}",
        "", "requests", "ok", "errors", "gave up", "tokens in", "out", "cost", "TTFT p50"
    )
}

fn row(name: &str, line: &Line) -> String {
    let median = line.first_token_median().map_or_else(
        || "-".to_owned(),
        |median| format!("{} ms", median.as_millis()),
    );
    format!(
        "  {name:<10}{:>9}{:>6}{:>7}{:>8}{:>10}{:>8}{:>11}{median:>9}",
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
        "{} s: {} requests ({} ok, {} failed, {} given up), {} tokens in, {} out, ${:.4}",
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

/// A count in a few characters.
fn short(count: u64) -> String {
    match count {
        0..10_000 => count.to_string(),
        10_000..10_000_000 => format!("{}.{}k", count / 1_000, count / 100 % 10),
        _ => format!("{}.{}M", count / 1_000_000, count / 100_000 % 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_fits_a_terminal_of_80_columns() {
        let line = Line {
            requests: 123_456,
            ok: 99_999,
            errors: 23_456,
            cancelled: 1,
            input_tokens: 9_999_999,
            output_tokens: 9_999,
            cost_usd: 1_234.567_89,
            ..Line::default()
        };
        assert_eq!(heading().len(), 80);
        assert_eq!(
            row("openrouter", &line),
            "  openrouter   123456 99999  23456       1   9999.9k    9999 $1234.5679        -"
        );
    }

    #[test]
    fn counts_stay_short() {
        let shown = [
            0,
            9_999,
            10_000,
            123_456,
            9_999_999,
            10_000_000,
            1_234_567_890,
        ]
        .map(short);
        let expected = [
            "0", "9999", "10.0k", "123.4k", "9999.9k", "10.0M", "1234.5M",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn where_there_is_no_terminal_a_line_says_it_all() {
        let line = line(Duration::from_secs(7), &Line::default());
        let expected = "7 s: 0 requests (0 ok, 0 failed, 0 given up), 0 tokens in, 0 out, $0.0000";
        assert_eq!(line, expected);
    }

    #[test]
    fn the_last_answers_are_waited_for_in_words() {
        let length = Duration::from_secs(20);
        assert_eq!(clock(Duration::from_secs(3), length), "3 s of 20 s");
        assert_eq!(clock(length, length), "waiting for the last answers");
    }
}
