//! The price book as it changes: versions that the store has are laid over the catalogue, and new
//! ones come from the providers' own price lists.
//!
//! In: a store, a sender, accounts. Out: a book in force, and versions in the store. A [`Shelf`] is
//! in every process: it looks for versions that it does not have and swaps the book. A [`Refresher`]
//! is in the exporter: it asks the providers, keeps what changed, and holds back what looks wrong. A
//! fault leaves every price as it is.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Days, NaiveTime, TimeDelta, Utc};
use tokio::sync::Mutex;

use super::account::Account;
use super::fetch::Fetcher;
use crate::ask::{Answer, Fault, FaultClass};
use crate::clock;
use crate::metrics::{Metrics, PriceResult};
use crate::price::{
    Changes, Concern, CurrentBook, Layer, OverlayError, PRICE_APIS, PriceApiFacts, PriceBook,
    PriceList, Reading, Rejected, Version, price_api,
};
use crate::proxy::Providers;
use crate::store::{Dimension, NewPriceVersion, Store, StoreError, UsageQuery};

/// For how long prices that were superseded are kept at hand: longer than any request or job takes
/// that is priced by its start.
const HISTORY_DAYS: i64 = 7;

/// How far back traffic is asked for models whose prices an API only tells if they are named.
const TRAFFIC_DAYS: u64 = 30;

/// How many calls one reading of a list may take.
const ASKS_MAX: usize = 200;

/// The pause between two calls: fal limits them strictly.
const ASK_PAUSE: Duration = Duration::from_secs(1);

/// How often a reading of a list waits because the provider wants to be asked less often, and how
/// long at most: what it says (`retry-after`), else [`ASK_PAUSE`].
const LIMITED_MAX: usize = 3;
const LIMITED_PAUSE_MAX: Duration = Duration::from_secs(30);

/// The `source` label of a provider's own list.
const SOURCE: &str = "api";

/// Keeps the book in force up to date with the store.
pub struct Shelf {
    current: Arc<CurrentBook>,
    base: Mutex<Base>,
    overlay: Option<String>,
    metrics: Arc<Metrics>,
}

/// The book without the user's file, and the last version in it.
struct Base {
    book: PriceBook,
    number: i64,
}

impl Shelf {
    /// A shelf with the catalogue under the user's file.
    ///
    /// # Errors
    /// When the file does not hold.
    pub fn new(overlay: Option<String>, metrics: &Arc<Metrics>) -> Result<Shelf, OverlayError> {
        let book = PriceBook::embedded();
        let shelf = Shelf {
            current: Arc::new(CurrentBook::new(with_overlay(&book, overlay.as_deref())?)),
            base: Mutex::new(Base { book, number: 0 }),
            overlay,
            metrics: metrics.clone(),
        };
        shelf.show();
        Ok(shelf)
    }

    /// The book in force.
    pub fn current(&self) -> &Arc<CurrentBook> {
        &self.current
    }

    /// Lays over the book what the store has and it has not.
    ///
    /// # Errors
    /// The store's; what was read until then is in force.
    pub async fn catch_up(&self, store: &Store) -> Result<(), StoreError> {
        let mut base = self.base.lock().await;
        let since = clock::wall() - TimeDelta::days(HISTORY_DAYS);
        let known = base.number;
        let (number, failed) = match lay_versions(store, &mut base.book, known, since).await {
            Ok(number) => (number, None),
            Err((number, error)) => (number, Some(error)),
        };
        if number != known {
            base.number = number;
            match with_overlay(&base.book, self.overlay.as_deref()) {
                Ok(book) => {
                    self.current.replace(book);
                    self.show();
                    tracing::info!(number, "another version of the prices is in force");
                }
                Err(error) => tracing::error!(%error, "the prices stay as they were"),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Catches up again and again, each time between half an `interval` and a whole one after the
    /// time before.
    pub async fn attend(self: Arc<Self>, store: Store, interval: Duration) {
        loop {
            if let Err(error) = self.catch_up(&store).await {
                // That the store is away the drain says already.
                tracing::debug!(%error, "new prices are looked for later");
            }
            let half = u64::try_from(interval.as_millis() / 2).unwrap_or(u64::MAX);
            let (_, chance) = clock::new_id().as_u64_pair();
            let pause = half.saturating_add(chance % half.max(1));
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    /// Shows how many models there are.
    fn show(&self) {
        let (book, now) = (self.current.load(), clock::wall());
        for provider in book.providers() {
            for (layer, models) in book.count(provider, now) {
                if models > 0 || layer == Layer::Catalog {
                    self.metrics.price_models(provider, layer.as_str(), models);
                }
            }
        }
    }
}

fn with_overlay(book: &PriceBook, overlay: Option<&str>) -> Result<PriceBook, OverlayError> {
    match overlay {
        Some(text) => book.clone().with_overlay(text),
        None => Ok(book.clone()),
    }
}

/// Lays every version after a number over a book, and returns the number of the last. One that this
/// build cannot read is passed over, with a line in the log.
///
/// # Errors
/// The store's, with the number that was reached.
pub async fn lay_versions(
    store: &Store,
    book: &mut PriceBook,
    mut number: i64,
    since: DateTime<Utc>,
) -> Result<i64, (i64, StoreError)> {
    loop {
        let versions = store.price_versions(number).await;
        let versions = versions.map_err(|error| (number, error))?;
        if versions.is_empty() {
            return Ok(number);
        }
        for version in versions {
            number = version.number;
            let laid = book.lay(
                Version {
                    name: &version.version,
                    layer: Layer::of_source(&version.source),
                    effective_from: version.effective_from,
                    catalogue: &version.catalogue,
                },
                since,
            );
            if let Err(error) = laid {
                tracing::error!(version = version.version, %error, "prices cannot be read");
            }
        }
    }
}

/// What a source listed last, and the number of its last version.
///
/// # Errors
/// The store's.
pub async fn last_list(store: &Store, source: &str) -> Result<(PriceList, i64), StoreError> {
    let (mut list, mut last, mut number) = (PriceList::default(), 0, 0);
    loop {
        let versions = store.price_versions(number).await?;
        let Some(newest) = versions.last() else {
            return Ok((list, last));
        };
        number = newest.number;
        for version in versions.iter().filter(|version| version.source == source) {
            last = version.number;
            if let Err(error) = list.take_up(&version.catalogue) {
                let unreadable = format!("price version {}: {error}", version.version);
                return Err(StoreError::Unusable(unreadable));
            }
        }
    }
}

/// Whether changes that look wrong are taken all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caution {
    /// They wait for a person's word.
    HoldBack,
    /// A person has given it.
    Accept,
}

/// What became of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing changed.
    Unchanged,
    /// What changed is in force.
    Changed {
        /// The name of the version.
        version: String,
        /// How many models are new or have other prices.
        priced: usize,
        /// How many are listed no more.
        dropped: usize,
    },
    /// What changed looks wrong.
    HeldBack(Vec<Concern>),
    /// There is no key to ask with.
    NoKey,
    /// There was no list.
    Failed(Fault),
}

/// What became of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refreshed {
    /// The provider.
    pub provider: &'static str,
    /// What became of its list.
    pub outcome: Outcome,
    /// How many models it has.
    pub models: usize,
    /// What of it was not taken.
    pub rejected: Vec<Rejected>,
}

/// Whether a refresh did not bring what it should.
pub fn is_failure(refreshed: &Refreshed) -> bool {
    matches!(refreshed.outcome, Outcome::Failed(_) | Outcome::HeldBack(_))
}

/// Reads the providers' own price lists.
pub struct Refresher {
    /// Where versions are kept.
    pub store: Store,
    /// Whose book follows.
    pub shelf: Arc<Shelf>,
    /// Who asks.
    pub fetcher: Fetcher,
    /// Whose keys are used.
    pub accounts: Vec<Account>,
    /// Where the providers are.
    pub providers: Providers,
    /// Where results are counted.
    pub metrics: Arc<Metrics>,
}

impl Refresher {
    /// Reads every list of a provider that is in use: that has an account or had traffic lately. The
    /// others are not called for nothing.
    ///
    /// # Errors
    /// When the store does not answer, which says who is in use.
    pub async fn refresh_used(&self) -> Result<Vec<Refreshed>, StoreError> {
        // Brings the schema up to date, if that is this process's to do.
        self.store.today().await?;
        let used = self.models_of_traffic().await;
        let is_used = |api: &PriceApiFacts| {
            let mut accounts = self.accounts.iter();
            accounts.any(|account| account.provider == api.provider)
                || used.iter().any(|(provider, _)| provider == api.provider)
        };
        Ok(self.refresh_each(is_used, Caution::HoldBack).await)
    }

    /// Reads every list, or that of one provider.
    pub async fn refresh(&self, provider: Option<&str>, caution: Caution) -> Vec<Refreshed> {
        let is_wanted = |api: &PriceApiFacts| provider.is_none_or(|wanted| wanted == api.provider);
        self.refresh_each(is_wanted, caution).await
    }

    /// A failure of one does not stop the others.
    async fn refresh_each(
        &self,
        is_wanted: impl Fn(&PriceApiFacts) -> bool,
        caution: Caution,
    ) -> Vec<Refreshed> {
        let mut refreshed = Vec::new();
        for api in PRICE_APIS.iter().filter(|api| is_wanted(api)) {
            let result = self.refresh_one(api, caution).await;
            let result = result.unwrap_or_else(|fault| Refreshed {
                provider: api.provider,
                outcome: Outcome::Failed(fault),
                models: 0,
                rejected: Vec::new(),
            });
            self.note(&result);
            refreshed.push(result);
        }
        refreshed
    }

    async fn refresh_one(&self, api: &PriceApiFacts, caution: Caution) -> Result<Refreshed, Fault> {
        let done = |outcome, reading: Reading| Refreshed {
            provider: api.provider,
            outcome,
            models: reading.list.len(),
            rejected: reading.rejected,
        };
        // What another process has kept meanwhile is what new prices are compared with.
        self.shelf.catch_up(&self.store).await.map_err(of_store)?;
        if caution == Caution::Accept {
            self.accept(api.provider).await.map_err(of_store)?;
        }
        let mut accounts = self.accounts.iter();
        let account = accounts.find(|it| api.needs_key && it.provider == api.provider);
        let key = match account {
            Some(account) => account.current_key()?,
            None => None,
        };
        if api.needs_key && key.is_none() {
            return Ok(done(Outcome::NoKey, Reading::default()));
        }
        let (before, last) = last_list(&self.store, api.provider)
            .await
            .map_err(of_store)?;
        let models = self.models_of_interest(api.provider).await;
        let Some(mut reader) = price_api(api.provider, &before, &models) else {
            return Err(Fault::new(FaultClass::Unsupported, "no price list"));
        };
        let host = self.providers.get(api.provider);
        let host = host.and_then(|it| it.billing_host());
        let (mut asks, mut limited) = (0, 0);
        while let Some(ask) = reader.ask() {
            if asks > 0 {
                tokio::time::sleep(ASK_PAUSE).await;
            }
            asks += 1;
            if asks > ASKS_MAX {
                return Err(Fault::new(FaultClass::Error, "the list has no end"));
            }
            let answer = self.fetcher.fetch(&ask, host, key.as_ref()).await?;
            match answer.success() {
                Ok(body) => reader
                    .take(body)
                    .map_err(|error| Fault::malformed(&error.to_string()))?,
                Err(fault) if fault.class == FaultClass::RateLimited && limited < LIMITED_MAX => {
                    limited += 1;
                    tokio::time::sleep(wanted_pause(&answer)).await;
                }
                Err(fault) => {
                    let is_about_the_question = [400, 404, 422].contains(&answer.status.as_u16());
                    if !is_about_the_question || !reader.is_refused() {
                        return Err(fault.without(key.as_ref()));
                    }
                }
            }
        }
        let reading = reader
            .finish()
            .map_err(|error| Fault::malformed(&error.to_string()))?;
        let changes = reading.list.changes_since(&before);
        let outcome = self.take(api.provider, &changes, last).await?;
        Ok(done(outcome, reading))
    }

    /// Keeps changes, unless they look wrong.
    async fn take(&self, source: &str, changes: &Changes, last: i64) -> Result<Outcome, Fault> {
        let now = clock::wall();
        let concerns = {
            let book = self.shelf.current.load();
            changes.concerns(Layer::Api, &book, now)
        };
        let concerns = concerns.map_err(|error| Fault::malformed(&error.to_string()))?;
        if !concerns.is_empty() {
            let reason: Vec<String> = concerns.iter().map(Concern::to_string).collect();
            let held_back = (&*changes.to_json(), &*reason.join("\n"));
            let noted = self.store.note_price_refresh(source, Some(held_back));
            noted.await.map_err(of_store)?;
            return Ok(Outcome::HeldBack(concerns));
        }
        let outcome = match changes.is_empty() {
            true => Outcome::Unchanged,
            false => {
                let kept = self.keep(source, changes, last, now).await;
                kept.map_err(of_store)?
            }
        };
        let noted = self.store.note_price_refresh(source, None).await;
        noted.map_err(of_store)?;
        self.shelf.catch_up(&self.store).await.map_err(of_store)?;
        Ok(outcome)
    }

    async fn keep(
        &self,
        source: &str,
        changes: &Changes,
        last: i64,
        now: DateTime<Utc>,
    ) -> Result<Outcome, StoreError> {
        let version = changes.version(source, now);
        let kept = NewPriceVersion {
            version: &version,
            source,
            effective_from: now,
            catalogue: &changes.to_json(),
            since: last,
        };
        // Another exporter may have been first: then its version is what changed.
        Ok(match self.store.add_price_version(&kept).await? {
            None => Outcome::Unchanged,
            Some(_) => Outcome::Changed {
                version,
                priced: changes.priced(),
                dropped: changes.dropped(),
            },
        })
    }

    /// Takes what was held back of a source, as it was shown.
    async fn accept(&self, source: &str) -> Result<(), StoreError> {
        let refreshes = self.store.price_refreshes().await?;
        let refresh = refreshes.into_iter().find(|it| it.source == source);
        let Some((json, _)) = refresh.and_then(|it| it.held_back) else {
            return Ok(());
        };
        let changes = Changes::from_json(&json)
            .map_err(|error| StoreError::Unusable(format!("held-back prices: {error}")))?;
        let (_, last) = last_list(&self.store, source).await?;
        self.keep(source, &changes, last, clock::wall()).await?;
        self.store.note_price_refresh(source, None).await?;
        self.shelf.catch_up(&self.store).await
    }

    /// The models of a provider that are in the book or were used lately.
    async fn models_of_interest(&self, provider: &str) -> Vec<String> {
        let mut models: Vec<String> = {
            let book = self.shelf.current.load();
            let models = book.models(provider);
            models.map(|model| model.name.to_owned()).collect()
        };
        let used = self.models_of_traffic().await;
        let own = used.into_iter().filter(|(of, _)| of == provider);
        models.extend(own.map(|(_, model)| model));
        models
    }

    /// The providers and models that were used lately.
    async fn models_of_traffic(&self) -> Vec<(String, String)> {
        let day = clock::wall().date_naive() - Days::new(TRAFFIC_DAYS);
        let query = UsageQuery {
            since: day.and_time(NaiveTime::MIN).and_utc(),
            by: vec![Dimension::Provider, Dimension::Model],
        };
        match self.store.usage(&query).await {
            Ok(rows) => rows
                .into_iter()
                .filter_map(|row| {
                    let [provider, model] = <[Option<String>; 2]>::try_from(row.group).ok()?;
                    Some((provider?, model.unwrap_or_default()))
                })
                .collect(),
            Err(error) => {
                tracing::warn!(%error, "prices of new models are not asked for");
                Vec::new()
            }
        }
    }

    /// Counts and logs how it ended.
    fn note(&self, refreshed: &Refreshed) {
        let (provider, models) = (refreshed.provider, refreshed.models);
        for Rejected { model, reason } in &refreshed.rejected {
            tracing::debug!(%model, reason, "a price is not taken");
        }
        let rejected = refreshed.rejected.len();
        let mut held_back = 0;
        let result = match &refreshed.outcome {
            Outcome::Unchanged => {
                tracing::info!(provider, models, rejected, "prices are as they were");
                PriceResult::Ok
            }
            Outcome::Changed {
                version,
                priced,
                dropped,
            } => {
                let taken = (models, rejected);
                tracing::info!(provider, ?taken, version, priced, dropped, "prices changed");
                PriceResult::Ok
            }
            Outcome::HeldBack(concerns) => {
                held_back = u64::try_from(concerns.len()).unwrap_or(u64::MAX);
                tracing::warn!(
                    provider,
                    concerns = held_back,
                    first = concerns.first().map(Concern::to_string),
                    "new prices look wrong and are held back; see `taffrail prices diff`"
                );
                PriceResult::HeldBack
            }
            Outcome::NoKey => {
                tracing::debug!(provider, "no account has a key to ask for prices with");
                PriceResult::Skipped
            }
            Outcome::Failed(fault) => {
                tracing::warn!(provider, error = %fault, "prices stay as they are");
                match fault.class {
                    FaultClass::Auth => PriceResult::Auth,
                    FaultClass::RateLimited => PriceResult::RateLimited,
                    FaultClass::Timeout => PriceResult::Timeout,
                    FaultClass::Unsupported | FaultClass::Error => PriceResult::Error,
                }
            }
        };
        let now = clock::wall();
        self.metrics.price_refresh(provider, SOURCE, result, now);
        // A fault says nothing of what waits.
        if matches!(result, PriceResult::Ok | PriceResult::HeldBack) {
            self.metrics.price_held_back(provider, SOURCE, held_back);
        }
    }
}

/// How long a provider wants not to be asked.
fn wanted_pause(answer: &Answer) -> Duration {
    let told = answer.headers.get(http::header::RETRY_AFTER);
    let seconds = told.and_then(|told| told.to_str().ok()?.trim().parse().ok());
    seconds
        .map_or(ASK_PAUSE, Duration::from_secs)
        .min(LIMITED_PAUSE_MAX)
}

fn of_store(error: StoreError) -> Fault {
    Fault::new(FaultClass::Error, error.to_string())
}
