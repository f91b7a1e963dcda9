//! What an error means: a vendor's words, message and status become an [`Outcome`].
//!
//! The vocabularies of the vendors hardly contradict each other, so there is one table; a
//! vendor whose statuses mean something else refines the outcome in its own file.

use crate::fault::{Outcome, ProviderError, scrub};

/// An error as it was found in a body or an event; empty until something is found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The HTTP status of the response; below 400 for an error inside a stream or a 200.
    pub(crate) status: u16,
    /// The most exact word that the vendor has (OpenRouter's `metadata.error_type`, Anthropic's
    /// `details.error_code`).
    pub(crate) exact: Option<String>,
    /// The `code`, a word or a number.
    pub(crate) code: Option<String>,
    /// The `type`.
    pub(crate) kind: Option<String>,
    /// The message, not yet scrubbed.
    pub(crate) message: Option<String>,
    /// Whether the error says which filter or guardrail was tripped.
    pub(crate) is_flagged: bool,
}

impl Failure {
    /// The error as a row tells it, its outcome refined by `refine`.
    pub(crate) fn conclude(&self, refine: fn(&Failure) -> Option<Outcome>) -> ProviderError {
        ProviderError {
            outcome: refine(self).unwrap_or_else(|| self.outcome()),
            code: self.best_code().map(scrub),
            message: self.message.as_deref().map(scrub),
        }
    }

    /// Whether the message holds `phrase`, which is in lower case.
    pub(crate) fn says(&self, phrase: &str) -> bool {
        self.message
            .as_deref()
            .is_some_and(|message| message.to_ascii_lowercase().contains(phrase))
    }

    /// The vendor's words, the most exact first.
    fn words(&self) -> impl Iterator<Item = &str> {
        [&self.exact, &self.code, &self.kind]
            .into_iter()
            .filter_map(|word| word.as_deref())
    }

    /// The word that a row carries: a word before a number.
    fn best_code(&self) -> Option<&str> {
        self.words()
            .find(|word| word.parse::<u32>().is_err())
            .or_else(|| self.words().next())
    }

    fn outcome(&self) -> Outcome {
        let is_http_error = self.status >= 400;
        if self.status < 500 && BROKE.iter().any(|phrase| self.says(phrase)) {
            return Outcome::QuotaExhausted;
        }
        if self.is_flagged {
            return Outcome::ContentFiltered;
        }
        if let Some(outcome) = self.words().find_map(of_word) {
            return outcome;
        }
        if is_http_error {
            return of_status(self.status);
        }
        // Under a status that says nothing, the words for whose fault it was are all there is.
        self.words()
            .find_map(|word| of_blame(word).or_else(|| of_number(word)))
            .unwrap_or(Outcome::UpstreamError)
    }
}

/// What an HTTP status alone says, with the statuses that only these vendors use.
pub(crate) fn of_status(status: u16) -> Outcome {
    match status {
        // The vendor waited too long for its own model (OpenRouter's 408 and 524).
        408 | 524 => Outcome::UpstreamTimeout,
        // Groq: no flex capacity at the moment.
        498 => Outcome::RateLimited,
        _ => Outcome::from_status(status),
    }
}

/// Messages that say that the account has no credit, where the code does not. Anthropic's is a
/// 400 `invalid_request_error`, OpenRouter's exhausted key a 403.
const BROKE: [&str; 4] = [
    "credit balance is too low",
    "insufficient balance",
    "insufficient credits",
    "key limit exceeded",
];

/// Words that mean the same whatever the status.
fn of_word(word: &str) -> Option<Outcome> {
    Some(match word {
        "insufficient_quota"
        | "insufficient_balance"
        | "billing_hard_limit_reached"
        | "billing_not_active"
        | "billing_error"
        | "payment_required"
        | "exceeded_current_quota_error"
        | "enforced_spend_limit_reached" => Outcome::QuotaExhausted,
        "account_deactivated" => Outcome::AccountLocked,
        "content_filter"
        | "content_policy_violation"
        | "moderation_blocked"
        | "ResponsibleAIPolicyViolation"
        | "refusal" => Outcome::ContentFiltered,
        "rate_limit_exceeded"
        | "rate_limit_error"
        | "rate_limit_reached_error"
        | "too_many_requests" => Outcome::RateLimited,
        "invalid_api_key"
        | "authentication"
        | "authentication_error"
        | "invalid_authentication_error"
        | "permission_denied"
        | "permission_error" => Outcome::AuthError,
        "timeout" | "timeout_error" | "request_timeout" => Outcome::UpstreamTimeout,
        "overloaded_error"
        | "engine_overloaded_error"
        | "provider_overloaded"
        | "provider_unavailable" => Outcome::UpstreamError,
        _ => return None,
    })
}

/// Words for whose fault it was; an HTTP status says it better where there is one.
fn of_blame(word: &str) -> Option<Outcome> {
    Some(match word {
        "invalid_request_error"
        | "invalid_request"
        | "invalid_prompt"
        | "not_found_error"
        | "not_found"
        | "model_not_found"
        | "request_too_large"
        | "payload_too_large"
        | "precondition_failed"
        | "unprocessable"
        | "context_length_exceeded"
        | "max_tokens_exceeded"
        | "token_limit_exceeded"
        | "string_too_long"
        | "tool_use_failed" => Outcome::ClientError,
        word if word.starts_with("invalid_image") => Outcome::ClientError,
        _ => return None,
    })
}

fn of_number(word: &str) -> Option<Outcome> {
    match word.parse().ok()? {
        status @ 400..=599 => Some(of_status(status)),
        _ => None,
    }
}

/// Whether a finish reason means that a filter, guardrail or refusal kept the answer back.
pub(crate) fn is_filter(finish_reason: &str) -> bool {
    ["content_filter", "refusal", "safety", "prohibited_content"]
        .iter()
        .any(|word| finish_reason.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: u16, code: &str, kind: &str, message: &str) -> Outcome {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let failure = Failure {
            status,
            code: some(code),
            kind: some(kind),
            message: some(message),
            ..Failure::default()
        };
        failure.conclude(|_| None).outcome
    }

    #[test]
    fn a_429_without_quota_is_no_rate_limit() {
        assert_eq!(
            outcome(429, "insufficient_quota", "insufficient_quota", ""),
            Outcome::QuotaExhausted
        );
        assert_eq!(
            outcome(429, "rate_limit_exceeded", "requests", ""),
            Outcome::RateLimited
        );
        assert_eq!(outcome(429, "", "", ""), Outcome::RateLimited);
    }

    #[test]
    fn a_status_is_believed_before_words_of_blame() {
        assert_eq!(
            outcome(401, "", "invalid_request_error", "no key"),
            Outcome::AuthError
        );
        assert_eq!(
            outcome(200, "", "invalid_request_error", ""),
            Outcome::ClientError
        );
        assert_eq!(outcome(500, "", "server_error", ""), Outcome::UpstreamError);
        assert_eq!(outcome(200, "", "server_error", ""), Outcome::UpstreamError);
    }

    #[test]
    fn a_number_inside_a_200_is_read_as_a_status() {
        assert_eq!(outcome(200, "402", "", ""), Outcome::QuotaExhausted);
        assert_eq!(outcome(200, "524", "", ""), Outcome::UpstreamTimeout);
        assert_eq!(outcome(200, "7", "", ""), Outcome::UpstreamError);
        assert_eq!(outcome(200, "", "", ""), Outcome::UpstreamError);
    }

    #[test]
    fn an_empty_account_is_told_from_the_message() {
        let low = "Your credit balance is too low to access the Anthropic API.";
        assert_eq!(
            outcome(400, "", "invalid_request_error", low),
            Outcome::QuotaExhausted
        );
    }

    #[test]
    fn a_word_is_carried_before_a_number() {
        let failure = Failure {
            status: 400,
            code: Some("400".into()),
            kind: Some("BadRequestError".into()),
            ..Failure::default()
        };
        assert_eq!(
            failure.conclude(|_| None).code.as_deref(),
            Some("BadRequestError")
        );
    }
}
