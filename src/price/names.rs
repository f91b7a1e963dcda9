//! Which other name a model's name may stand for.
//!
//! Matching is exact but for suffixes of a strict form, and only when the shorter name is listed.
//! There is no prefix or fuzzy matching: `gpt-4o-mini-tts` is not `gpt-4o-mini`, and a wrong
//! price is worse than none.

/// OpenRouter's routing variants: they choose among the hosts of the same model, so that its
/// listed price is an estimate.
const ROUTING_VARIANTS: [&str; 3] = [":nitro", ":floor", ":exacto"];

/// `name` without a strict date or `-latest` suffix; `None` if it has neither.
///
/// Dates are `-YYYY-MM-DD` (OpenAI), `-YYYYMMDD` (Anthropic, OpenRouter) and `@YYYYMMDD`
/// (Vertex), of this century.
pub(super) fn without_snapshot(name: &str) -> Option<&str> {
    let stem = match name.strip_suffix("-latest") {
        Some(stem) => stem,
        None => [11, 9].into_iter().find_map(|length| {
            let (stem, suffix) = name.split_at_checked(name.len().checked_sub(length)?)?;
            is_date_suffix(suffix).then_some(stem)
        })?,
    };
    (!stem.is_empty()).then_some(stem)
}

fn is_date_suffix(suffix: &str) -> bool {
    let digits = |range| {
        suffix
            .get(range)
            .filter(|text: &&str| text.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|text| text.parse::<u32>().ok())
    };
    let (year, month, day) = match suffix.as_bytes() {
        [b'-', _, _, _, _, b'-', _, _, b'-', _, _] => (digits(1..5), digits(6..8), digits(9..11)),
        [b'-' | b'@', _, _, _, _, _, _, _, _] => (digits(1..5), digits(5..7), digits(7..9)),
        _ => return false,
    };
    matches!(year, Some(2000..=2099))
        && matches!(month, Some(1..=12))
        && matches!(day, Some(1..=31))
}

/// The model that a fine-tuned one is charged as: `ft:gpt-4o-2024-08-06` of
/// `ft:gpt-4o-2024-08-06:org:suffix:id`; `None` for any other form.
pub(super) fn fine_tuned_base(name: &str) -> Option<&str> {
    let rest = name.strip_prefix("ft:")?;
    let mut fields = rest.split(':');
    let base = fields.next().filter(|base| !base.is_empty())?;
    let (_org, _suffix, id) = (fields.next()?, fields.next()?, fields.next()?);
    (!id.is_empty() && fields.next().is_none()).then_some(())?;
    name.get(.."ft:".len() + base.len())
}

/// `name` without a routing variant of OpenRouter's; `None` if it has none.
pub(super) fn without_routing(name: &str) -> Option<&str> {
    ROUTING_VARIANTS
        .into_iter()
        .find_map(|variant| name.strip_suffix(variant))
        .filter(|stem| !stem.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strict_date_or_latest_is_stripped() {
        for (name, stem) in [
            ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
            ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
            ("claude-sonnet-4-5@20250929", "claude-sonnet-4-5"),
            ("claude-3-5-haiku-latest", "claude-3-5-haiku"),
        ] {
            assert_eq!(without_snapshot(name), Some(stem), "{name}");
        }
    }

    #[test]
    fn nothing_else_is_stripped() {
        for name in [
            "gpt-4o-mini-tts",
            "gpt-4-0613",
            "gpt-4o-2024-13-01",
            "gpt-4o-2024-00-10",
            "gpt-4o-1999-01-01",
            "gpt-4o-2024-1-1",
            "gpt-4o_2024-01-01",
            "gpt-4o-20240132",
            "gpt-4o-+0240101",
            "gpt-4olatest",
            "gpt-4o-latest-",
            "-latest",
            "-2024-07-18",
            "gpt-4o-2024-07-18:free",
            "модель-2024-0718",
            "",
        ] {
            assert_eq!(without_snapshot(name), None, "{name}");
        }
    }

    #[test]
    fn a_fine_tuned_name_is_cut_at_its_base_in_full_form_only() {
        assert_eq!(
            fine_tuned_base("ft:gpt-4o-mini-2024-07-18:acme:support:7p4lURel"),
            Some("ft:gpt-4o-mini-2024-07-18")
        );
        assert_eq!(
            fine_tuned_base("ft:gpt-3.5-turbo:acme::7p4lURel"),
            Some("ft:gpt-3.5-turbo")
        );
        for name in [
            "gpt-4o",
            "ft:",
            "ft:gpt-4o",
            "ft:gpt-4o:acme",
            "ft:gpt-4o:acme:x:",
            "ft:gpt-4o:acme:x:id:more",
            "ft::acme:x:id",
        ] {
            assert_eq!(fine_tuned_base(name), None, "{name}");
        }
    }

    #[test]
    fn routing_variants_are_the_known_ones() {
        assert_eq!(
            without_routing("openai/gpt-4o:nitro"),
            Some("openai/gpt-4o")
        );
        for name in ["openai/gpt-4o:free", "openai/gpt-4o:online", ":nitro", "a"] {
            assert_eq!(without_routing(name), None, "{name}");
        }
    }
}
