//! The price book: a usage in, exact dollars out.
//!
//! Pure: the catalogue is built in, versions of other lists and the user's overlay come in as
//! text, and the time is an argument. A cost is never guessed: a model or a quantity without a
//! price gives no cost and says what is missing, and a price of zero is a price. What a provider
//! states as its own cost wins over this book; that is decided by the caller.
//!
//! A list goes over what is there from a moment on: what was charged before stays as it was, and
//! each price knows the version of the list that it is from. Of lists that hold at the same time
//! the user's file wins, then a provider's own API, then what was imported, then the catalogue.
//!
//! `catalog` reads our own form of a list, `rates` holds the arithmetic, `names` says which name
//! stands for which. `list` is what a source lists and how two such lists differ; `api` what to
//! ask a provider's API and how to read its answer, `import` reads the files of others, `number`
//! their figures. `current` is the book in force. For people: docs/prices.md.

mod api;
mod catalog;
mod current;
mod fal;
mod genai_prices;
mod import;
mod list;
mod litellm;
mod names;
mod number;
mod openrouter;
mod rates;

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

use crate::money::Usd;
use crate::qualifier::Qualifiers;
use crate::record::{Operation, UnpricedReason};
use crate::usage::{Unit, Usage};

pub use api::{PRICE_APIS, PriceApi, PriceApiFacts, Unreadable, price_api};
use catalog::{Entry, Key, ProviderEntries, Reader};
pub use catalog::{OverlayError, Problem};
pub use current::CurrentBook;
pub use import::{ImportError, Imported, import};
pub use list::{Changes, Concern, ModelName, PriceList, Reading, Rejected};
use rates::Terms;
pub use rates::{Layer, ModelPrices, Price, Rate, is_priced_per_million};

/// The name of an overlay's entry that prices every model of its provider that is not listed.
pub const ANY_MODEL: &str = "*";

/// How many names may point to one another before one has prices; more is a circle.
const SAME_AS_HOPS_MAX: usize = 4;

/// What is to be priced.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The provider's name: route, configuration key and label alike.
    pub provider: &'a str,
    /// The model, as served if that is known.
    pub model: &'a str,
    /// What was consumed.
    pub usage: &'a Usage,
    /// The tier that is billed, in the provider's own word; `None` is the standard one.
    pub service_tier: Option<&'a str>,
    /// A region that changes the price (`us`).
    pub region: Option<&'a str>,
    /// Size and quality of an image (`1024x1024/hd`), or resolution of a video.
    pub image_variant: Option<&'a str>,
    /// What else was asked for, as the response states it and as the request did: the first to
    /// know a qualifier tells it.
    pub qualifiers: [&'a Qualifiers; 2],
    /// What was asked. The usage of a batch is the sum of many requests: how long the context of
    /// each was is not known then, and where a price depends on it the cost is an estimate.
    pub operation: Operation,
    /// When the request started.
    pub at: DateTime<Utc>,
}

/// The answer to a [`Query`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Priced {
    /// The cost; `None` is unknown, or an empty usage.
    pub cost: Option<Usd>,
    /// The version of the list that the price is from, for the record; the catalogue's where there
    /// is no price.
    pub version: Arc<str>,
    /// What has no price; `None` beside a cost, and for an empty usage.
    pub missing: Option<Missing>,
    /// Whether a rate stood in for one that is not listed, so that the cost is an estimate.
    pub estimated: bool,
}

/// What has no price.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The model is not listed for the provider, or not yet sold at the time.
    Model,
    /// The model is listed, a quantity that was used is not, or is negative.
    Unit(Unit),
    /// What that quantity costs depends on something that is not known: a resolution, a size.
    Qualifier(Unit),
}

impl Missing {
    /// The reason in records and metrics.
    pub const fn reason(self) -> UnpricedReason {
        match self {
            Missing::Model => UnpricedReason::ModelUnknown,
            Missing::Unit(_) => UnpricedReason::PriceMissing,
            Missing::Qualifier(_) => UnpricedReason::QualifierUnknown,
        }
    }
}

/// A model in the book.
#[derive(Debug, Clone, Copy)]
pub struct ModelEntry<'a> {
    /// Its name at the provider.
    pub name: &'a str,
    /// The name of the model that it costs the same as, if that is how it is listed.
    pub same_as: Option<&'a str>,
    /// What it costs.
    pub prices: &'a ModelPrices,
}

#[derive(Debug, Clone, Default)]
struct ProviderPrices {
    falls_back_to: Vec<Box<str>>,
    models: HashMap<Box<str>, Entry>,
}

/// Prices of models by provider; immutable, so that one can be swapped for another. A copy shares
/// the providers that are the same.
#[derive(Debug, Clone)]
pub struct PriceBook {
    version: Arc<str>,
    providers: HashMap<Box<str>, Arc<ProviderPrices>>,
}

impl Layer {
    /// The kind of list that a source keeps.
    pub fn of_source(source: &str) -> Layer {
        match PRICE_APIS.iter().any(|api| api.provider == source) {
            true => Layer::Api,
            false => Layer::Import,
        }
    }
}

/// A version of a list, as it is kept.
#[derive(Debug, Clone, Copy)]
pub struct Version<'a> {
    /// Its name, as rows name it.
    pub name: &'a str,
    /// The kind of list.
    pub layer: Layer,
    /// From when its prices hold, where the model had others before.
    pub effective_from: DateTime<Utc>,
    /// What changed with it: [`Changes::to_json`].
    pub catalogue: &'a str,
}

impl PriceBook {
    /// The catalogue that is built in.
    pub fn embedded() -> PriceBook {
        #[expect(
            clippy::expect_used,
            reason = "the text is a constant, and a test reads it"
        )]
        let (version, entries) =
            catalog::read_catalogue(catalog::EMBEDDED).expect("the embedded catalogue is valid");
        let mut book = PriceBook {
            version,
            providers: HashMap::new(),
        };
        book.insert(entries);
        book
    }

    /// This book with the user's prices over it; they replace a model's prices as a whole.
    ///
    /// # Errors
    /// Every key of the text that is not accepted, at once.
    pub fn with_overlay(mut self, text: &str) -> Result<PriceBook, OverlayError> {
        let version: Arc<str> = format!("overlay-{}", digest(text)).into();
        let entries = catalog::read_overlay(&version, text)?;
        let mut names: Vec<(String, String)> = Vec::new();
        for provider in &entries {
            for (model, entry) in &provider.models {
                if matches!(entry, Entry::SameAs(_)) {
                    names.push((provider.name.clone(), model.clone()));
                }
            }
        }
        self.insert(entries);
        let mut reader = Reader::default();
        for (provider, model) in &names {
            if self.known(provider, model, SAME_AS_HOPS_MAX).is_none() {
                let root = Key::ROOT;
                let models = root.then("models");
                let provider = models.then(provider);
                reader.problem(
                    &provider.then(model),
                    "leads to no listed model",
                    "the name of a model of this provider in the catalogue or this file",
                );
            }
        }
        reader.finish(())?;
        Ok(self)
    }

    /// Lays a version of a list over this book. A model that had other prices keeps them for the
    /// time before; the first price of a model holds for all time, since nothing better is known,
    /// and a model that is listed no more keeps its last one. What nobody will ask for, because it
    /// was superseded before `since`, is let go.
    ///
    /// # Errors
    /// Every key of the version's text that is not accepted; the book is as it was.
    pub fn lay(&mut self, version: Version<'_>, since: DateTime<Utc>) -> Result<(), OverlayError> {
        let name: Arc<str> = version.name.into();
        for listed in catalog::read_list(version.layer, &name, version.catalogue)? {
            let laid: Vec<(Box<str>, Entry)> = listed
                .models
                .into_iter()
                .filter_map(|(model, entry)| {
                    let Entry::Prices(new) = entry else {
                        return None;
                    };
                    let known = self.known(&listed.name, &model, SAME_AS_HOPS_MAX);
                    let laid = match known {
                        None => new,
                        Some((old, _)) => {
                            Arc::new(old.with_later(&new, version.effective_from, since)?)
                        }
                    };
                    Some((model.into_boxed_str(), Entry::Prices(laid)))
                })
                .collect();
            if !laid.is_empty() {
                let provider = self.providers.entry(listed.name.into()).or_default();
                Arc::make_mut(provider).models.extend(laid);
            }
        }
        Ok(())
    }

    fn insert(&mut self, entries: Vec<ProviderEntries>) {
        for provider in entries {
            // What was charged before a dated price of the new list begins stays as it was.
            let models: Vec<(String, Entry)> = provider
                .models
                .into_iter()
                .map(|(name, entry)| match entry {
                    Entry::Prices(new) if !new.prices.iter().any(Price::always_holds) => {
                        let old = self.known(&provider.name, &name, SAME_AS_HOPS_MAX);
                        let old = old.map(|(prices, _)| prices);
                        let entry = Entry::Prices(following(old, &new));
                        (name, entry)
                    }
                    entry => (name, entry),
                })
                .collect();
            if models.is_empty() && provider.falls_back_to.is_empty() {
                continue;
            }
            let listed = self.providers.entry(provider.name.into()).or_default();
            let listed = Arc::make_mut(listed);
            listed.falls_back_to.extend(provider.falls_back_to);
            let models = models
                .into_iter()
                .map(|(name, entry)| (name.into_boxed_str(), entry));
            listed.models.extend(models);
        }
    }

    /// The version of the catalogue that is built in: its date and hash.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Prices a usage. Does not allocate when the model is listed under its exact name.
    pub fn price(&self, query: &Query<'_>) -> Priced {
        self.price_by(query, |prices| prices.at(query.at))
    }

    /// Prices a usage as with the version of that name, if the book has its price of the model.
    pub fn price_with(&self, query: &Query<'_>, version: &str) -> Priced {
        self.price_by(query, |prices| prices.of_version(version, query.at))
    }

    fn price_by<'a>(
        &'a self,
        query: &Query<'_>,
        choose: impl FnOnce(&'a ModelPrices) -> Option<&'a Price>,
    ) -> Priced {
        let mut priced = Priced {
            cost: None,
            version: Arc::clone(&self.version),
            missing: None,
            estimated: false,
        };
        if query.usage.is_empty() {
            return priced;
        }
        let found = self.find(query.provider, query.model);
        let price = found.and_then(|(prices, is_stand_in)| Some((choose(prices)?, is_stand_in)));
        let Some((price, is_stand_in)) = price else {
            priced.missing = Some(Missing::Model);
            return priced;
        };
        priced.version = price.version.clone();
        let terms = Terms {
            service_tier: query.service_tier,
            region: query.region,
            variant: query.image_variant,
            qualifiers: query.qualifiers,
            operation: query.operation,
        };
        match price.cost(query.usage, terms) {
            Ok(cost) => {
                priced.cost = Some(Usd::new(cost.dollars));
                priced.estimated = cost.estimated || is_stand_in;
            }
            Err(missing) => priced.missing = Some(missing),
        }
        priced
    }

    /// The prices of a model, if one is listed for its name or for a name that it stands for.
    pub fn prices(&self, provider: &str, model: &str) -> Option<&ModelPrices> {
        self.find(provider, model).map(|(prices, _)| prices)
    }

    /// How many models of a provider have a price at a time, by the kind of list that it is from.
    pub fn count(&self, provider: &str, at: DateTime<Utc>) -> [(Layer, u64); 4] {
        let mut counts = Layer::ALL.map(|layer| (layer, 0));
        for model in self.models(provider) {
            if let Some(price) = model.prices.at(at) {
                for (layer, count) in &mut counts {
                    *count += u64::from(*layer == price.layer);
                }
            }
        }
        counts
    }

    /// The providers, by name.
    pub fn providers(&self) -> impl Iterator<Item = &str> {
        let mut names: Vec<&str> = self.providers.keys().map(|name| &**name).collect();
        names.sort_unstable();
        names.into_iter()
    }

    /// The models that are listed for a provider, by name.
    pub fn models(&self, provider: &str) -> impl Iterator<Item = ModelEntry<'_>> {
        let listed = self.providers.get_key_value(provider);
        let mut entries: Vec<ModelEntry<'_>> = listed
            .into_iter()
            .flat_map(|(provider, listed)| {
                listed.models.iter().filter_map(|(name, entry)| {
                    Some(ModelEntry {
                        name,
                        same_as: match entry {
                            Entry::Prices(_) => None,
                            Entry::SameAs(name) => Some(name),
                        },
                        prices: self.known(provider, name, SAME_AS_HOPS_MAX)?.0,
                    })
                })
            })
            .collect();
        entries.sort_unstable_by_key(|entry| entry.name);
        entries.into_iter()
    }

    /// The prices that a model is charged at, and whether they are an estimate.
    fn find(&self, provider: &str, model: &str) -> Option<(&ModelPrices, bool)> {
        self.known(provider, model, SAME_AS_HOPS_MAX).or_else(|| {
            match self.providers.get(provider)?.models.get(ANY_MODEL)? {
                Entry::Prices(prices) => Some((&**prices, false)),
                Entry::SameAs(name) => self.known(provider, name, SAME_AS_HOPS_MAX),
            }
        })
    }

    /// The prices under that name, or under the name that it stands for.
    fn known(&self, provider: &str, model: &str, hops: usize) -> Option<(&ModelPrices, bool)> {
        if let Some(found) = self.listed(provider, model, hops) {
            return Some(found);
        }
        let snapshot = |name| {
            let stem = names::without_snapshot(name)?;
            self.listed(provider, stem, hops)
        };
        let either = |name| self.listed(provider, name, hops).or_else(|| snapshot(name));
        if model.starts_with("ft:") {
            return either(names::fine_tuned_base(model)?);
        }
        if provider == "openrouter"
            && let Some(routed) = names::without_routing(model)
        {
            return either(routed).map(|(prices, _)| (prices, true));
        }
        snapshot(model)
    }

    /// The prices under exactly that name, of the provider or of one whose prices it charges.
    fn listed(&self, provider: &str, model: &str, hops: usize) -> Option<(&ModelPrices, bool)> {
        let listed = self.providers.get(provider)?;
        match listed.models.get(model) {
            Some(Entry::Prices(prices)) => Some((prices, false)),
            Some(Entry::SameAs(name)) => self.known(provider, name, hops.checked_sub(1)?),
            None => {
                let hops = hops.checked_sub(1)?;
                let mut others = listed.falls_back_to.iter();
                others.find_map(|other| self.listed(other, model, hops))
            }
        }
    }
}

/// `new`, preceded by `old` for the times before its first price and outside its hours.
fn following(old: Option<&ModelPrices>, new: &ModelPrices) -> Arc<ModelPrices> {
    let old = old.into_iter().flat_map(ModelPrices::all);
    Arc::new(ModelPrices {
        prices: old.chain(new.all()).cloned().collect(),
    })
}

/// The first eight hexadecimal digits of a text's hash: what tells two versions of a day apart.
pub(crate) fn digest(text: &str) -> String {
    let mut digest = String::new();
    for byte in Sha256::digest(text.as_bytes()).iter().take(4) {
        // Writing to a String cannot fail.
        write!(digest, "{byte:02x}").unwrap_or_default();
    }
    digest
}
