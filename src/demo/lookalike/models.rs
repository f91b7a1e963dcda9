//! The models that the look-alikes serve: how fast and how talkative each is, and what
//! OpenRouter charges for it.
//!
//! Names are ones that the vendors sell and the price catalogue knows. Speeds are plausible and
//! the same on every machine.

use rust_decimal::Decimal;

use super::Vendor;

/// A model of a look-alike.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) vendor: Vendor,
    /// The name that a request asks for.
    pub(super) id: &'static str,
    /// The name that the answer states: a dated snapshot, where the vendor has one.
    pub(super) served: &'static str,
    /// The range of output tokens; (0, 0) is a model of embeddings.
    pub(super) output_tokens: (u64, u64),
    /// How much of the output is reasoning.
    pub(super) reasoning_percent: u64,
    /// Whether writes to the prompt cache have a price of their own (OpenAI's newer models).
    pub(super) states_cache_writes: bool,
    /// The range of the time to the first token.
    pub(super) first_token_millis: (u64, u64),
    /// The range of the time between two pieces of the answer.
    pub(super) pace_millis: (u64, u64),
    /// OpenRouter's terms for it.
    pub(super) route: Option<Route>,
}

/// OpenRouter's terms for a model.
#[derive(Debug)]
pub(super) struct Route {
    /// Who runs it.
    pub(super) upstream: &'static str,
    /// US dollars for a million tokens, in cents: uncached input, cached input, output.
    pub(super) cents_per_million: (i64, i64, i64),
    /// Whether the caller's own key at the upstream pays; OpenRouter then charges 5 % of it.
    pub(super) is_byok: bool,
}

impl Model {
    /// The model of that name, if the vendor has it.
    pub(super) fn find(vendor: Vendor, id: &str) -> Option<&'static Model> {
        MODELS
            .iter()
            .find(|model| model.vendor == vendor && (model.id == id || model.served == id))
    }

    /// Every model of a vendor.
    pub(super) fn all(vendor: Vendor) -> impl Iterator<Item = &'static Model> {
        MODELS.iter().filter(move |model| model.vendor == vendor)
    }

    /// Whether it makes embeddings instead of text.
    pub(super) const fn is_embedding(&self) -> bool {
        self.output_tokens.1 == 0
    }
}

impl Route {
    /// What the tokens cost at the upstream: input and output.
    pub(super) fn upstream_cost(
        &self,
        uncached: u64,
        cached: u64,
        output: u64,
    ) -> (Decimal, Decimal) {
        let (uncached_price, cached_price, output_price) = self.cents_per_million;
        // Cents for a million tokens are hundred-millionths of a dollar for one.
        let dollars = |price, tokens| Decimal::new(price, 8) * Decimal::from(tokens);
        (
            dollars(uncached_price, uncached) + dollars(cached_price, cached),
            dollars(output_price, output),
        )
    }
}

const TEXT: Model = Model {
    vendor: Vendor::OpenAi,
    id: "",
    served: "",
    output_tokens: (40, 400),
    reasoning_percent: 0,
    states_cache_writes: false,
    first_token_millis: (120, 320),
    pace_millis: (8, 24),
    route: None,
};

const MODELS: &[Model] = &[
    Model {
        id: "gpt-6.1-sol",
        served: "gpt-6.1-sol",
        output_tokens: (150, 700),
        reasoning_percent: 45,
        states_cache_writes: true,
        first_token_millis: (250, 600),
        ..TEXT
    },
    Model {
        id: "gpt-6-luna",
        served: "gpt-6-luna",
        output_tokens: (40, 260),
        states_cache_writes: true,
        first_token_millis: (90, 220),
        pace_millis: (5, 14),
        ..TEXT
    },
    Model {
        id: "gpt-4o-mini",
        served: "gpt-4o-mini-2024-07-18",
        output_tokens: (60, 360),
        ..TEXT
    },
    Model {
        id: "text-embedding-3-small",
        served: "text-embedding-3-small",
        output_tokens: (0, 0),
        first_token_millis: (30, 90),
        ..TEXT
    },
    Model {
        vendor: Vendor::Anthropic,
        id: "claude-opus-5-5",
        served: "claude-opus-5-5",
        output_tokens: (200, 500),
        reasoning_percent: 30,
        // The slow one: thinks for a second and writes without haste.
        first_token_millis: (800, 1300),
        pace_millis: (15, 30),
        ..TEXT
    },
    Model {
        vendor: Vendor::Anthropic,
        id: "claude-sonnet-5-5",
        served: "claude-sonnet-5-5",
        output_tokens: (120, 600),
        first_token_millis: (200, 500),
        ..TEXT
    },
    Model {
        vendor: Vendor::Anthropic,
        id: "claude-haiku-5-5",
        served: "claude-haiku-5-5",
        output_tokens: (50, 300),
        first_token_millis: (100, 260),
        pace_millis: (5, 15),
        ..TEXT
    },
    Model {
        vendor: Vendor::OpenRouter,
        id: "anthropic/claude-sonnet-5.5",
        served: "anthropic/claude-sonnet-5.5",
        output_tokens: (120, 500),
        first_token_millis: (250, 550),
        route: Some(Route {
            upstream: "Amazon Bedrock",
            cents_per_million: (200, 10, 1000),
            is_byok: false,
        }),
        ..TEXT
    },
    Model {
        vendor: Vendor::OpenRouter,
        id: "google/gemini-2.5-flash",
        served: "google/gemini-2.5-flash",
        output_tokens: (60, 400),
        reasoning_percent: 20,
        route: Some(Route {
            upstream: "Google",
            cents_per_million: (30, 3, 250),
            is_byok: true,
        }),
        ..TEXT
    },
    Model {
        vendor: Vendor::OpenRouter,
        id: "meta-llama/llama-3.3-70b-instruct",
        served: "meta-llama/llama-3.3-70b-instruct",
        output_tokens: (60, 300),
        pace_millis: (4, 10),
        route: Some(Route {
            upstream: "DeepInfra",
            cents_per_million: (59, 29, 79),
            is_byok: false,
        }),
        ..TEXT
    },
];
