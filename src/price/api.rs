//! The price lists that providers keep themselves: what to ask their APIs, and what the answers
//! mean.
//!
//! Sans-IO: a [`PriceApi`] says what to ask, is shown the body that came, and says what to ask
//! next. It knows no key and no clock. Who sends is `exporter/prices.rs`.

use crate::ask::Ask;

use super::fal::FalPrices;
use super::list::{PriceList, Reading};
use super::openrouter::OpenRouterPrices;
use super::replicate::Deployments;

/// An answer that is no price list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is not JSON of the documented shape.
    #[error("not a price list: {0}")]
    Malformed(String),
    /// It lists nothing, which is no reason to forget every price.
    #[error("the answer lists no model")]
    Empty,
}

/// One reading of a provider's price list.
pub trait PriceApi: Send {
    /// What to ask next; `None` when all was asked.
    fn ask(&self) -> Option<Ask>;

    /// Takes the body of the answer to [`PriceApi::ask`].
    ///
    /// # Errors
    /// When it is not what the API documents; the reading cannot go on then.
    fn take(&mut self, body: &[u8]) -> Result<(), Unreadable>;

    /// Takes note that the API knows nothing of what was asked (400, 404 or 422). Whether it can go
    /// on without: by asking for less, or for something else.
    fn is_refused(&mut self) -> bool;

    /// What was read.
    ///
    /// # Errors
    /// [`Unreadable::Empty`].
    fn finish(self: Box<Self>) -> Result<Reading, Unreadable>;
}

/// A provider that has a price list to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PriceApiFacts {
    /// The provider's name, and that of its versions' source.
    pub provider: &'static str,
    /// Whether it answers to nobody without a key.
    pub needs_key: bool,
}

/// The providers that have one.
pub const PRICE_APIS: &[PriceApiFacts] = &[
    PriceApiFacts {
        provider: "openrouter",
        needs_key: false,
    },
    PriceApiFacts {
        provider: "fal",
        needs_key: true,
    },
    PriceApiFacts {
        provider: "replicate",
        needs_key: true,
    },
];

/// A reading of that provider's list. `before` is what it listed last, and `models` are names that
/// are of interest besides, for an API that only tells of what it is asked for.
pub fn price_api(
    provider: &str,
    before: &PriceList,
    models: &[String],
) -> Option<Box<dyn PriceApi>> {
    match provider {
        "openrouter" => Some(Box::new(OpenRouterPrices::default())),
        "fal" => Some(Box::new(FalPrices::of(before, models))),
        "replicate" => Some(Box::new(Deployments::of(before))),
        _ => None,
    }
}

/// A list, unless it is empty.
pub(super) fn not_empty(reading: Reading) -> Result<Reading, Unreadable> {
    match reading.list.is_empty() {
        true => Err(Unreadable::Empty),
        false => Ok(reading),
    }
}
