//! Price lists of others, brought in from a file: LiteLLM's and genai-prices'.
//!
//! In: the text of the file. Out: what of it this crate has a rate for, under the names that it
//! is called by here, and what was passed over. Which format a file has its shape says: an object
//! by model for LiteLLM, an array of providers for genai-prices.

use serde_json::Value;

use super::list::Reading;
use super::{genai_prices, litellm};

/// Our provider, its ids in genai-prices, its ids in LiteLLM, and the prefixes that LiteLLM puts
/// before its model names; as in `scripts/build_price_catalogue.py`.
pub(super) struct Names {
    pub(super) provider: &'static str,
    pub(super) genai_prices: &'static [&'static str],
    pub(super) litellm: &'static [&'static str],
    pub(super) prefixes: &'static [&'static str],
}

const fn names(
    provider: &'static str,
    genai_prices: &'static [&'static str],
    litellm: &'static [&'static str],
    prefixes: &'static [&'static str],
) -> Names {
    Names {
        provider,
        genai_prices,
        litellm,
        prefixes,
    }
}

/// The providers that a list can name.
#[rustfmt::skip]
pub(super) const NAMES: &[Names] = &[
    names("anthropic", &["anthropic"], &["anthropic"], &[]),
    names("azure", &["azure"], &["azure"], &["azure/"]),
    names("bedrock", &[], &["bedrock", "bedrock_converse"], &[]),
    names("cerebras", &["cerebras"], &["cerebras"], &["cerebras/"]),
    names("cohere", &["cohere"], &["cohere", "cohere_chat"], &["cohere/"]),
    names("deepgram", &[], &["deepgram"], &["deepgram/"]),
    names("deepinfra", &[], &["deepinfra"], &["deepinfra/"]),
    names("deepseek", &["deepseek"], &["deepseek"], &["deepseek/"]),
    names("elevenlabs", &["elevenlabs"], &["elevenlabs"], &["elevenlabs/"]),
    names("fireworks", &["fireworks"], &["fireworks_ai", "fireworks_ai-embedding-models"], &["fireworks_ai/"]),
    names("gemini", &["google"], &["gemini"], &["gemini/"]),
    names("groq", &["groq"], &["groq"], &["groq/"]),
    names("mistral", &["mistral"], &["mistral"], &["mistral/"]),
    names("moonshot", &["moonshotai"], &["moonshot"], &["moonshot/"]),
    names("novita", &["novita"], &["novita"], &["novita/"]),
    names("openai", &["openai"], &["openai", "text-completion-openai"], &["openai/", "text-completion-openai/"]),
    names("openrouter", &["openrouter"], &[], &[]),
    names("perplexity", &["perplexity"], &["perplexity"], &["perplexity/"]),
    names("replicate", &[], &["replicate"], &["replicate/"]),
    names("together", &["together"], &["together_ai"], &["together_ai/"]),
    names("voyage", &["voyageai"], &["voyage"], &["voyage/"]),
    names("xai", &["x-ai"], &["xai"], &["xai/"]),
    names("zai", &["zai"], &["zai"], &["zai/"]),
];

/// A file that is no price list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// It is not JSON.
    #[error("not JSON: {0}")]
    NotJson(String),
    /// It is JSON of neither shape.
    #[error(
        "neither LiteLLM's price file (an object by model) nor genai-prices' (an array of providers)"
    )]
    UnknownShape,
    /// It lists no model of a provider that is known here.
    #[error("it lists no price that is understood here")]
    Empty,
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Whose list it is, as the version's source: `litellm` or `genai-prices`.
    pub source: &'static str,
    /// What was read.
    pub reading: Reading,
    /// Models of providers that have no name here.
    pub foreign_models: u64,
}

/// Reads a file.
///
/// # Errors
/// When it is no price list.
pub fn import(text: &str) -> Result<Imported, ImportError> {
    let file: Value =
        serde_json::from_str(text).map_err(|error| ImportError::NotJson(error.to_string()))?;
    let imported = match &file {
        Value::Object(models) => litellm::read(models),
        Value::Array(providers) => genai_prices::read(providers),
        _ => None,
    };
    let imported = imported.ok_or(ImportError::UnknownShape)?;
    match imported.reading.list.is_empty() {
        true => Err(ImportError::Empty),
        false => Ok(imported),
    }
}
