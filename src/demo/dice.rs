//! Chance from a seed: the same seed gives the same throws on every machine.
//!
//! Pure. Nothing here may be used where an adversary must not guess the outcome.

/// A sequence of throws (SplitMix64, from Steele, Lea and Flood, "Fast splittable pseudorandom
/// number generators", 2014).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The sequence that belongs to `seed`.
    pub const fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// The sequence that belongs to a text (FNV-1a, 64 bits).
    pub fn of(text: &str) -> Dice {
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Dice(hash)
    }

    /// The next 64 bits.
    pub const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number between two bounds, both included; the lower one if they are the wrong way round.
    pub fn between(&mut self, (low, high): (u64, u64)) -> u64 {
        let span = high.saturating_sub(low).saturating_add(1);
        low + self.bits() % span
    }

    /// True in `percent` of a hundred throws.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.between((0, 99)) < percent
    }

    /// One of `choices`; `None` if there are none.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> Option<&'a T> {
        let count = u64::try_from(choices.len()).ok()?;
        let index = self.bits().checked_rem(count)?;
        choices.get(usize::try_from(index).ok()?)
    }

    /// About `characters` characters of words, for prompts and answers.
    pub fn prose(&mut self, characters: u64) -> String {
        let wanted = usize::try_from(characters).unwrap_or(usize::MAX);
        let mut text = String::new();
        while text.len() < wanted {
            text.push_str(self.pick(WORDS).copied().unwrap_or_default());
            text.push(' ');
        }
        text
    }
}

/// Words that nothing else in the program says, so that a test can look for them where no
/// prompt and no answer may ever be.
pub const WORDS: &[&str] = &[
    "halyard",
    "mizzenmast",
    "bowsprit",
    "gunwale",
    "binnacle",
    "capstan",
    "jib",
    "keelson",
    "lanyard",
    "mooring",
    "oakum",
    "painter",
    "quarterdeck",
    "ratlines",
    "sextant",
    "thwart",
    "topgallant",
    "windlass",
    "yardarm",
    "fathom",
    "fo'c'sle",
    "davit",
    "cleat",
    "bilge",
    "scupper",
    "spanker",
    "staysail",
    "tiller",
    "transom",
    "trysail",
    "martingale",
    "marlinspike",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_fixes_the_throws() {
        // The first outputs of SplitMix64 for the seed 1234567, as published with its reference.
        let mut dice = Dice::new(1_234_567);
        assert_eq!(
            [dice.bits(), dice.bits(), dice.bits()],
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
        assert_ne!(Dice::of("a").bits(), Dice::of("b").bits());
    }

    #[test]
    fn throws_stay_between_their_bounds() {
        let mut dice = Dice::new(1);
        let throws: Vec<u64> = (0..1000).map(|_| dice.between((3, 5))).collect();
        assert!(throws.iter().all(|throw| (3..=5).contains(throw)));
        assert!((3..=5).all(|face| throws.contains(&face)));
        assert_eq!(dice.between((9, 9)), 9);
        assert!(!dice.chance(0) && dice.chance(100));
        assert_eq!(dice.pick::<u8>(&[]), None);
    }

    #[test]
    fn prose_has_about_the_length_asked_for() {
        let text = Dice::new(2).prose(400);
        assert!((400..420).contains(&text.len()), "{}", text.len());
    }
}
