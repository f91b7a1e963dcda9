//! What was spent between two readings of a prepaid balance: what it fell by, with what was paid in
//! meanwhile.
//!
//! Between two readings that follow each other a balance falls by what was spent, and rises by what
//! was paid in. A rise is a payment: the declared one of that day, or else one that nobody declared,
//! of which only the least amount is known, since what was spent before it came is hidden by it.

use chrono::{DateTime, NaiveDate, NaiveTime, TimeDelta, Utc};
use rust_decimal::Decimal;

use super::{midnight, next_day};

/// How far from a day's beginning or end a reading may be and still stand for it. Readings come
/// every six hours; those of a day then have its midnights on both sides.
pub const SLACK: TimeDelta = TimeDelta::hours(3);

/// A reading of a balance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// When it was read.
    pub at: DateTime<Utc>,
    /// What was left.
    pub balance: Decimal,
}

/// A declared payment into an account, negative for what was paid back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payment {
    /// When it was made; the first moment of a day stands for any moment of that day.
    pub at: DateTime<Utc>,
    /// How much.
    pub amount: Decimal,
}

/// What was spent on a day, in the currency of the balance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drop {
    /// The first reading of the day.
    pub from: DateTime<Utc>,
    /// The last one.
    pub to: DateTime<Utc>,
    /// What was spent between them.
    pub spent: Decimal,
    /// What the balance rose by without a declared payment. It is taken for one of that amount:
    /// what was spent while it came is not in `spent`.
    pub undeclared: Decimal,
}

/// What was spent on a day; `None` if no readings stand for its beginning and its end. `snapshots`
/// are in the order of time.
pub fn of_day(day: NaiveDate, snapshots: &[Snapshot], payments: &[Payment]) -> Option<Drop> {
    let first = nearest(snapshots, midnight(day))?;
    let last = nearest(snapshots, midnight(next_day(day)))?;
    let within = snapshots.get(first..=last).filter(|own| own.len() > 1)?;
    // Each payment is used once, wherever on its day the balance rose.
    let mut declared: Vec<Payment> = payments
        .iter()
        .filter(|own| own.at.date_naive() == day && !own.amount.is_zero())
        .copied()
        .collect();
    let mut spent = Decimal::ZERO;
    let mut undeclared = Decimal::ZERO;
    for pair in within.windows(2) {
        let [before, after] = pair else { continue };
        let fall = before.balance.saturating_sub(after.balance);
        if !fall.is_sign_negative() || fall.is_zero() {
            spent = spent.saturating_add(fall);
            continue;
        }
        // The smallest payment that explains the rise.
        let rise = -fall;
        let matching = (0..declared.len())
            .filter(|index| declared.get(*index).is_some_and(|own| own.amount >= rise))
            .min_by_key(|index| declared.get(*index).map(|own| own.amount));
        match matching.map(|index| declared.swap_remove(index)) {
            Some(payment) => spent = spent.saturating_add(payment.amount.saturating_sub(rise)),
            None => undeclared = undeclared.saturating_add(rise),
        }
    }
    // What was paid in while more than that was spent made the balance fall less. Several that
    // came at once made one rise.
    let unused = declared
        .iter()
        .fold(Decimal::ZERO, |sum, own| sum.saturating_add(own.amount));
    let explained = undeclared.min(unused.max(Decimal::ZERO));
    undeclared = undeclared.saturating_sub(explained);
    spent = spent.saturating_add(unused.saturating_sub(explained));
    Some(Drop {
        from: within.first()?.at,
        to: within.last()?.at,
        spent,
        undeclared,
    })
}

/// The reading that stands for a moment: the nearest within [`SLACK`].
fn nearest(snapshots: &[Snapshot], moment: DateTime<Utc>) -> Option<usize> {
    let distance = |own: &Snapshot| (own.at - moment).abs();
    let near = snapshots.iter().enumerate();
    let near = near.filter(|(_, own)| distance(own) <= SLACK);
    near.min_by_key(|(_, own)| distance(own))
        .map(|(index, _)| index)
}

/// From when to when readings of these days are of use.
pub fn reach(from: NaiveDate, to: NaiveDate) -> (DateTime<Utc>, DateTime<Utc>) {
    let moment = |day: NaiveDate| day.and_time(NaiveTime::MIN).and_utc();
    (moment(from) - SLACK, moment(to) + SLACK)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn amount(text: &str) -> Decimal {
        text.parse().unwrap()
    }

    const DAY: &str = "2026-11-23";

    /// Readings of the day at these hours, where 24 is the next midnight.
    fn readings(balances: &[(i64, &str)]) -> Vec<Snapshot> {
        balances
            .iter()
            .map(|(hour, balance)| Snapshot {
                at: at("2026-11-23T00:00:02Z") + TimeDelta::hours(*hour),
                balance: amount(balance),
            })
            .collect()
    }

    fn payments(amounts: &[(&str, &str)]) -> Vec<Payment> {
        amounts
            .iter()
            .map(|(time, paid)| Payment {
                at: at(time),
                amount: amount(paid),
            })
            .collect()
    }

    fn told(balances: &[(i64, &str)], paid: &[(&str, &str)]) -> Option<(String, String)> {
        let drop = of_day(DAY.parse().unwrap(), &readings(balances), &payments(paid))?;
        let text = |amount: Decimal| amount.normalize().to_string();
        Some((text(drop.spent), text(drop.undeclared)))
    }

    fn spent(spent: &str, undeclared: &str) -> Option<(String, String)> {
        Some((spent.to_owned(), undeclared.to_owned()))
    }

    #[test]
    fn a_balance_falls_by_what_is_spent() {
        let falling = [
            (-6, "60"),
            (0, "50"),
            (6, "49.5"),
            (12, "45"),
            (24, "40.25"),
        ];
        assert_eq!(told(&falling, &[]), spent("9.75", "0"));
        assert_eq!(told(&[(0, "5"), (24, "5")], &[]), spent("0", "0"));
    }

    #[test]
    fn a_declared_payment_is_added_wherever_on_its_day_it_came() {
        let risen = [(0, "10"), (6, "8"), (12, "57"), (24, "56")];
        for time in ["2026-11-23T00:00:00Z", "2026-11-23T09:00:00Z"] {
            assert_eq!(told(&risen, &[(time, "50")]), spent("4", "0"), "{time}");
        }
        // Of another day.
        let before = [("2026-11-22T00:00:00Z", "50")];
        assert_eq!(told(&risen, &before), spent("3", "49"));
        // More was spent than paid in, so nothing rose.
        let fallen = [(0, "100"), (24, "90")];
        let paid = [("2026-11-23T00:00:00Z", "20")];
        assert_eq!(told(&fallen, &paid), spent("30", "0"));
        // Two came at once.
        let risen = [(0, "10"), (24, "57")];
        let paid = [
            ("2026-11-23T01:00:00Z", "20"),
            ("2026-11-23T02:00:00Z", "30"),
        ];
        assert_eq!(told(&risen, &paid), spent("3", "0"));
        // Some was paid back.
        let paid = [("2026-11-23T00:00:00Z", "-5")];
        assert_eq!(told(&[(0, "10"), (24, "4")], &paid), spent("1", "0"));
    }

    #[test]
    fn a_rise_that_nobody_declared_is_taken_for_a_payment() {
        assert_eq!(
            told(&[(0, "10"), (6, "8"), (12, "57"), (24, "56")], &[]),
            spent("3", "49")
        );
    }

    #[test]
    fn a_day_without_readings_at_its_ends_is_unknown() {
        assert_eq!(told(&[], &[]), None);
        assert_eq!(told(&[(0, "10"), (12, "5")], &[]), None);
        assert_eq!(told(&[(12, "10"), (24, "5")], &[]), None);
        assert_eq!(told(&[(4, "10"), (24, "5")], &[]), None);
        assert_eq!(told(&[(2, "10"), (22, "5")], &[]), spent("5", "0"));
    }
}
