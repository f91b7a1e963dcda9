//! Tables for people: columns, alignment, what goes when the terminal is narrow, and how amounts
//! and foreign texts are shown.

use std::io;

use chrono::{DateTime, Utc};
use comfy_table::{Cell, TableStyle};
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, LineStyle, Table};
use rust_decimal::Decimal;

use crate::store::{DecimalSum, Totals};

/// What stands for an unknown value in a table.
pub(super) const UNKNOWN: &str = "—";

/// The width of the terminal that standard output is, if it is one.
pub fn terminal_width() -> Option<u16> {
    Table::new().width()
}

/// A cost in a table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    pub(super) known: Option<DecimalSum>,
    /// Whether requests of unknown cost are missing from it.
    pub(super) is_partial: bool,
}

impl Cost {
    pub(super) fn of(totals: &Totals) -> Cost {
        Cost {
            known: totals.cost_usd,
            is_partial: totals.cost_usd.is_some() && totals.unpriced_requests > 0,
        }
    }
}

/// Decimal places of a cost: never less than cents, never more than a millionth.
const COST_PLACES: std::ops::RangeInclusive<u32> = 2..=6;

/// The most decimal places of a quantity.
const QUANTITY_PLACES_MAX: u32 = 3;

/// The places at which the smallest of the amounts still has two digits, so that a column of
/// amounts is aligned on its points and hides none of them.
fn cost_places(amounts: impl Iterator<Item = DecimalSum>) -> u32 {
    let smallest = amounts
        .filter_map(|amount| amount.rounded(28))
        .map(|amount| amount.abs())
        .filter(|amount| !amount.is_zero())
        .min();
    let Some(smallest) = smallest else {
        return *COST_PLACES.start();
    };
    COST_PLACES
        .clone()
        .find(|places| smallest * Decimal::from(10_u64.pow(*places)) >= Decimal::TEN)
        .unwrap_or(*COST_PLACES.end())
}

/// An amount at that many places; one that is too small to show is not shown as zero.
fn shown_amount(amount: DecimalSum, places: u32) -> String {
    let Some(rounded) = amount.rounded(places) else {
        return amount.to_string();
    };
    if rounded.is_zero() && amount != DecimalSum::ZERO {
        let least = Decimal::new(1, places);
        return if amount > DecimalSum::ZERO {
            format!("<{least}")
        } else {
            format!(">-{least}")
        };
    }
    let places = usize::try_from(places).unwrap_or_default();
    thousands(&format!("{rounded:.places$}"))
}

/// A plain decimal with its whole digits in groups of three: `-1,234,567.8901`.
pub(super) fn thousands(number: &str) -> String {
    let (sign, digits) = match number.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", number),
    };
    let (whole, fraction) = match digits.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (digits, None),
    };
    let mut grouped = String::from(sign);
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if let Some(fraction) = fraction {
        grouped.push('.');
        grouped.push_str(fraction);
    }
    grouped
}

/// A text from outside, without what could rewrite the terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|character| {
            let hidden = matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if character.is_control() || hidden {
                '\u{fffd}'
            } else {
                character
            }
        })
        .collect()
}

pub(super) fn shown_time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S").to_string()
}

/// Whether the last row of a table sums the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Footer {
    None,
    Total,
}

/// A table column by column.
#[derive(Debug, Default)]
pub(super) struct Grid {
    columns: Vec<GridColumn>,
}

#[derive(Debug)]
struct GridColumn {
    heading: String,
    alignment: CellAlignment,
    /// Whether its texts may be broken to fit a narrow terminal.
    can_wrap: bool,
    cells: Vec<String>,
}

impl GridColumn {
    /// The characters that it needs at least.
    fn width_min(&self) -> usize {
        let lines = self.heading.lines();
        let lines = lines.chain(self.cells.iter().map(String::as_str));
        let width = lines.map(|line| line.chars().count()).max().unwrap_or(0);
        if self.can_wrap {
            return width.min(usize::from(WRAPPED_WIDTH_MIN));
        }
        width
    }
}

/// The width in characters that a text keeps when it is broken.
const WRAPPED_WIDTH_MIN: u16 = 16;

/// Characters between two columns.
const GAP: u16 = 2;

impl Grid {
    pub(super) fn text(&mut self, heading: String, cells: Vec<String>) {
        self.columns.push(GridColumn {
            heading,
            alignment: CellAlignment::Left,
            can_wrap: false,
            cells,
        });
    }

    pub(super) fn wrapping_text(&mut self, heading: String, cells: Vec<String>) {
        self.text(heading, cells);
        if let Some(column) = self.columns.last_mut() {
            column.can_wrap = true;
        }
    }

    /// Right-aligned, never broken: a number broken in two is another number.
    pub(super) fn right(&mut self, heading: &str, cells: Vec<String>) {
        self.columns.push(GridColumn {
            heading: heading.to_owned(),
            alignment: CellAlignment::Right,
            can_wrap: false,
            cells,
        });
    }

    pub(super) fn numbers(
        &mut self,
        heading: &str,
        numbers: impl Iterator<Item = Option<DecimalSum>>,
    ) {
        let numbers: Vec<Option<DecimalSum>> = numbers.collect();
        // As many places as the numbers need, the same for all.
        let places = numbers
            .iter()
            .flatten()
            .filter_map(|number| number.rounded(QUANTITY_PLACES_MAX))
            .map(|number| number.normalize().scale())
            .max()
            .unwrap_or(0);
        let cells = numbers.iter().map(|number| match number {
            Some(number) => shown_amount(*number, places),
            None => UNKNOWN.to_owned(),
        });
        self.right(heading, cells.collect());
    }

    pub(super) fn costs(&mut self, heading: &str, costs: impl Iterator<Item = Cost>) {
        let costs: Vec<Cost> = costs.collect();
        let places = cost_places(costs.iter().filter_map(|cost| cost.known));
        let cells = costs.iter().map(|cost| match cost.known {
            Some(amount) if cost.is_partial => format!("≥ {}", shown_amount(amount, places)),
            Some(amount) => shown_amount(amount, places),
            None => UNKNOWN.to_owned(),
        });
        self.right(heading, cells.collect());
    }

    /// Drops columns in the given order until the table fits the width; the headings of those
    /// that had to go.
    pub(super) fn fit(&mut self, width: Option<u16>, expendable: &[&str]) -> Vec<String> {
        let Some(width) = width.map(usize::from) else {
            return Vec::new();
        };
        let mut left_out = Vec::new();
        for heading in expendable {
            if self.width_min() <= width {
                break;
            }
            let before = self.columns.len();
            self.columns.retain(|column| column.heading != *heading);
            if self.columns.len() < before {
                left_out.push((*heading).to_owned());
            }
        }
        left_out
    }

    fn width_min(&self) -> usize {
        let gaps = self.columns.len().saturating_sub(1) * usize::from(GAP);
        let columns = self.columns.iter().map(GridColumn::width_min);
        columns.sum::<usize>() + gaps
    }

    pub(super) fn render(&self, width: Option<u16>, footer: Footer) -> String {
        let mut table = Table::new();
        let rule = LineStyle::none().fill('─');
        table.load_style(TableStyle::new().header_separator(rule));
        table.force_no_tty();
        table.set_header(self.columns.iter().map(|column| Cell::new(&column.heading)));
        let rows = self.columns.first().map_or(0, |column| column.cells.len());
        for row in 0..rows {
            let cells = self.columns.iter().map(|column| column.cells.get(row));
            table.add_row(cells.map(|cell| Cell::new(cell.map_or("", String::as_str))));
        }
        let last = self.columns.len().saturating_sub(1);
        for (index, (column, look)) in self.columns.iter().zip(table.column_iter_mut()).enumerate()
        {
            look.set_cell_alignment(column.alignment);
            look.set_padding((0, if index < last { GAP } else { 0 }));
            if !column.can_wrap {
                look.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        if let Some(width) = width {
            table.set_content_arrangement(ContentArrangement::Dynamic);
            table.set_width(width);
        }
        let mut lines: Vec<String> = table
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect();
        if footer == Footer::Total {
            let is_rule = |line: &&String| line.starts_with('─');
            let rule = lines.iter().find(is_rule).cloned();
            let total = lines.iter().rposition(|line| line.starts_with("Total"));
            if let (Some(rule), Some(total)) = (rule, total) {
                lines.insert(total, rule);
            }
        }
        lines.join("\n")
    }
}

/// Says which columns a narrow terminal has no room for.
pub(super) fn write_left_out(out: &mut dyn io::Write, headings: &[String]) -> io::Result<()> {
    if headings.is_empty() {
        return Ok(());
    }
    let headings: Vec<String> = headings
        .iter()
        .map(|heading| heading.replace('\n', " ").to_lowercase())
        .collect();
    writeln!(
        out,
        "\nLeft out to fit the terminal (`--format json` has them):\n{}.",
        headings.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(text: &str) -> DecimalSum {
        text.parse().unwrap()
    }

    #[test]
    fn digits_are_grouped_in_threes() {
        for (plain, shown) in [
            ("0", "0"),
            ("999", "999"),
            ("1000", "1,000"),
            ("-1234567.8901", "-1,234,567.8901"),
        ] {
            assert_eq!(thousands(plain), shown);
        }
    }

    #[test]
    fn a_column_of_costs_shows_its_smallest_with_two_digits() {
        let places = |texts: &[&str]| cost_places(texts.iter().map(|text| sum(text)));
        assert_eq!(places(&[]), 2);
        assert_eq!(places(&["0", "12.3456"]), 2);
        assert_eq!(places(&["12.3456", "0.099"]), 3);
        assert_eq!(places(&["12.3456", "0.00012"]), 5);
        assert_eq!(places(&["0.0000000001"]), 6);
    }

    #[test]
    fn an_amount_too_small_to_show_is_not_shown_as_zero() {
        assert_eq!(shown_amount(sum("0.0000001"), 6), "<0.000001");
        assert_eq!(shown_amount(sum("-0.0000001"), 6), ">-0.000001");
        assert_eq!(shown_amount(sum("0"), 6), "0.000000");
        assert_eq!(shown_amount(sum("1234.5"), 2), "1,234.50");
    }

    #[test]
    fn what_could_rewrite_a_terminal_is_not_printed() {
        assert_eq!(
            printable("gpt\u{1b}[2J\u{202e}-4o"),
            "gpt\u{fffd}[2J\u{fffd}-4o"
        );
    }
}
