//! OpenAI: the dialect's origin. Everything is in `chat`; here is what is OpenAI's own.

use super::chat::{self, Chat};

/// Route, configuration key and label.
pub(crate) const NAME: &str = "openai";

/// <https://platform.openai.com/docs/api-reference>
const UPSTREAM: &str = "https://api.openai.com";

/// The provider.
pub(crate) fn openai() -> Chat {
    Chat::built_in(NAME, UPSTREAM, &chat::VENDOR)
}
