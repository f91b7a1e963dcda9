//! How a request ended: the outcome taxonomy of rows and metrics.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a request ended, as the `outcome` column and label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The provider answered and the answer arrived in full.
    Ok,
    /// The provider refused the request as wrong (4xx without a more exact outcome).
    ClientError,
    /// The key is missing, unknown or not allowed to do this.
    AuthError,
    /// Too many requests or tokens for now; a later retry can succeed.
    RateLimited,
    /// The account has no credit or quota left.
    QuotaExhausted,
    /// The account is locked or suspended.
    AccountLocked,
    /// A filter, guardrail or refusal kept the answer back.
    ContentFiltered,
    /// The provider failed (5xx or an error inside a stream).
    UpstreamError,
    /// The provider did not answer, or fell silent, within the limit.
    UpstreamTimeout,
    /// The provider could not be reached: name, connection or TLS.
    NetworkError,
    /// The answer broke off before its end.
    UpstreamTruncated,
    /// The client went away before the end.
    ClientCancelled,
    /// Taffrail itself ended while the request was under way.
    Interrupted,
    /// The job ran and failed.
    JobFailed,
    /// The job's end was never seen.
    Unresolved,
    /// Taffrail could not relay the request.
    ProxyError,
}

/// The coarse outcome on histograms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OutcomeClass {
    /// The answer arrived.
    Ok,
    /// It did not, or it was an error.
    Error,
    /// The client went away.
    Cancelled,
}

impl Outcome {
    /// Every outcome, in the order of the taxonomy.
    pub const ALL: &'static [Outcome] = &[
        Outcome::Ok,
        Outcome::ClientError,
        Outcome::AuthError,
        Outcome::RateLimited,
        Outcome::QuotaExhausted,
        Outcome::AccountLocked,
        Outcome::ContentFiltered,
        Outcome::UpstreamError,
        Outcome::UpstreamTimeout,
        Outcome::NetworkError,
        Outcome::UpstreamTruncated,
        Outcome::ClientCancelled,
        Outcome::Interrupted,
        Outcome::JobFailed,
        Outcome::Unresolved,
        Outcome::ProxyError,
    ];

    /// The name in rows and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::ClientError => "client_error",
            Outcome::AuthError => "auth_error",
            Outcome::RateLimited => "rate_limited",
            Outcome::QuotaExhausted => "quota_exhausted",
            Outcome::AccountLocked => "account_locked",
            Outcome::ContentFiltered => "content_filtered",
            Outcome::UpstreamError => "upstream_error",
            Outcome::UpstreamTimeout => "upstream_timeout",
            Outcome::NetworkError => "network_error",
            Outcome::UpstreamTruncated => "upstream_truncated",
            Outcome::ClientCancelled => "client_cancelled",
            Outcome::Interrupted => "interrupted",
            Outcome::JobFailed => "job_failed",
            Outcome::Unresolved => "unresolved",
            Outcome::ProxyError => "proxy_error",
        }
    }

    /// The outcome of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Outcome> {
        Outcome::ALL
            .iter()
            .copied()
            .find(|outcome| outcome.as_str() == name)
    }

    /// The coarse outcome.
    pub const fn class(self) -> OutcomeClass {
        match self {
            Outcome::Ok | Outcome::ContentFiltered => OutcomeClass::Ok,
            Outcome::ClientCancelled => OutcomeClass::Cancelled,
            _ => OutcomeClass::Error,
        }
    }

    /// What an HTTP status alone says; a provider's file refines it from the body.
    pub const fn from_status(status: u16) -> Outcome {
        match status {
            0..=399 => Outcome::Ok,
            401 | 403 => Outcome::AuthError,
            402 => Outcome::QuotaExhausted,
            429 => Outcome::RateLimited,
            400..=499 => Outcome::ClientError,
            504 => Outcome::UpstreamTimeout,
            _ => Outcome::UpstreamError,
        }
    }
}

impl OutcomeClass {
    /// Every class.
    pub const ALL: &'static [OutcomeClass] = &[
        OutcomeClass::Ok,
        OutcomeClass::Error,
        OutcomeClass::Cancelled,
    ];

    /// The label value.
    pub const fn as_str(self) -> &'static str {
        match self {
            OutcomeClass::Ok => "ok",
            OutcomeClass::Error => "error",
            OutcomeClass::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error as the provider stated it, in a body or inside a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderError {
    /// What it means.
    pub outcome: Outcome,
    /// The provider's own code or type.
    pub code: Option<String>,
    /// The provider's message, scrubbed by [`scrub`].
    pub message: Option<String>,
}

/// The longest error message that a row keeps, in characters.
pub const ERROR_MESSAGE_CHARS_MAX: usize = 256;

/// Makes a provider's message fit for a row: credentials replaced, control characters removed,
/// length capped at [`ERROR_MESSAGE_CHARS_MAX`].
///
/// Providers quote keys in their messages ("Incorrect API key provided: sk-abc…") and URLs with
/// `?key=` in them, so every word that looks like a credential becomes `[redacted]`.
pub fn scrub(message: &str) -> String {
    let mut scrubbed = String::with_capacity(message.len().min(ERROR_MESSAGE_CHARS_MAX));
    let mut length = 0;
    for (index, word) in message.split(' ').enumerate() {
        let word = if looks_like_a_credential(word) {
            "[redacted]"
        } else {
            word
        };
        let space = if index > 0 { " " } else { "" };
        for character in space.chars().chain(word.chars()) {
            if length == ERROR_MESSAGE_CHARS_MAX {
                return scrubbed;
            }
            // C0, C1 and the bidirectional overrides could rewrite what a terminal shows.
            let hidden = matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            let shown = if character.is_control() || hidden {
                ' '
            } else {
                character
            };
            scrubbed.push(shown);
            length += 1;
        }
    }
    scrubbed
}

/// Whether a word holds a long run of key characters, a known key prefix or a query secret.
fn looks_like_a_credential(word: &str) -> bool {
    const PREFIXES: [&str; 12] = [
        "sk-", "sk_", "r8_", "AIza", "ya29.", "xai-", "gsk_", "hf_", "fw_", "pplx-", "eyJ", "AKIA",
    ];
    const QUERY: [&str; 6] = [
        "key=",
        "token=",
        "sig=",
        "signature=",
        "secret=",
        "password=",
    ];
    let lower = word.to_ascii_lowercase();
    if QUERY.iter().any(|name| lower.contains(name)) {
        return true;
    }
    let is_key_character = |c: char| c.is_ascii_alphanumeric() || "-_.:*".contains(c);
    word.split(|c: char| !is_key_character(c)).any(|run| {
        let prefixed = PREFIXES.iter().any(|prefix| run.contains(prefix)) && run.len() >= 8;
        let digits = run.chars().filter(char::is_ascii_digit).count();
        let letters = run.chars().filter(char::is_ascii_alphabetic).count();
        prefixed || (run.len() >= 32 && digits >= 4 && letters >= 4)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_messages_are_redacted() {
        let message = "Incorrect API key provided: sk-proj-abc123def. See https://x.example/?key=1";
        assert_eq!(
            scrub(message),
            "Incorrect API key provided: [redacted] See [redacted]"
        );
        assert_eq!(
            scrub("ids like gpt-4o-mini-2024-07-18 stay"),
            "ids like gpt-4o-mini-2024-07-18 stay"
        );
    }

    #[test]
    fn a_message_is_capped_and_free_of_controls() {
        let long = format!("a\u{1b}[31m\u{202e}b{}", "x y ".repeat(200));
        let scrubbed = scrub(&long);
        assert_eq!(scrubbed.chars().count(), ERROR_MESSAGE_CHARS_MAX);
        assert!(!scrubbed.chars().any(|c| c.is_control() || c == '\u{202e}'));
    }

    #[test]
    fn every_outcome_is_found_by_its_name() {
        for outcome in Outcome::ALL {
            assert_eq!(Outcome::from_name(outcome.as_str()), Some(*outcome));
        }
    }
}
