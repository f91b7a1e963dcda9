//! The drain: moves records from the journal to the store, in batches, for as long as the
//! process lives.
//!
//! A batch leaves the journal only after the store has committed it; a crash in between replays
//! it, and the store counts what it has already as duplicates. A store that is away is tried
//! again for ever; one that is too slow gets smaller batches until it keeps up. A record that the
//! store refuses is found by halving its batch, and put aside as a dead letter, so that it never
//! blocks the others. A store whose schema does not fit keeps everything in the journal and is an
//! alarm.
//!
//! In go a journal, a store and a source of chance; out comes an [`Event`] for every state and
//! number that a metric shows. Nothing here touches the path of a request.

use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::journal::{Batch, DeadLetterError, Journal, Position};
use crate::record::UsageRecord;

use super::{Store, StoreError};

/// How often a dead letter is tried to be written before the record is given up, so that a full
/// disk does not let one bad record keep all others from the store.
const DEAD_LETTER_TRIES_MAX: u32 = 5;

/// How records move from the journal to the store.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The most records of a batch, which is one transaction. When a batch takes the store too
    /// long the next are smaller, down to one record, and grow again once that went well.
    pub batch_records: usize,
    /// The most bytes of a batch, as the journal has them.
    #[schemars(with = "String")]
    pub batch_bytes: ByteSize,
    /// How long the first record of a batch waits for others. A row is visible after this time
    /// and the time of the transaction.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub batch_delay: Duration,
    /// Up to how long to wait before the first retry. The limit doubles with every retry, and the
    /// wait is a random part of it.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub retry_min: Duration,
    /// Up to how long to wait before any later retry.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub retry_max: Duration,
    /// How long the last shipment may take when the process is to end. What is left stays in the
    /// journal for the next start.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub shutdown_timeout: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            batch_records: 500,
            batch_bytes: ByteSize::mib(1),
            batch_delay: Duration::from_millis(200),
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(10),
            shutdown_timeout: Duration::from_secs(5),
        }
    }
}

/// What a batch came to, once the journal has let go of it. The counts add up to the records of
/// the batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shipped {
    /// Rows inserted.
    pub stored: u64,
    /// Records that the store had already.
    pub duplicates: u64,
    /// Records put aside with a reason.
    pub dead_lettered: u64,
    /// Records that the store refused and that could not be put aside either.
    pub lost: u64,
    /// How long the store's transactions took.
    pub duration: Duration,
}

/// Something that a metric shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A batch has left the journal.
    Shipped(Shipped),
    /// Something is going to be tried again after a wait.
    Retry,
    /// The store answers, or no longer does; told when it changes.
    Up(bool),
}

/// Is told every [`Event`]; must not block.
pub type Observer = Arc<dyn Fn(Event) + Send + Sync>;

/// The drain of a journal.
pub struct Drain {
    journal: Arc<Journal>,
    store: Store,
    config: Config,
    observe: Observer,
    backoff: Backoff,
    health: Option<Health>,
    /// How many records the store is given at once: no more than `batch_records`, and fewer
    /// after a timeout.
    records_max: usize,
    /// The batch under way. It is kept over a shutdown, so that no record is counted twice.
    work: Option<Work>,
}

/// A batch under way.
struct Work {
    /// What is left of it; the last piece is next.
    pieces: Vec<Vec<UsageRecord>>,
    /// Refused records to be put aside, and why; the last is next.
    refused: Vec<(UsageRecord, String)>,
    upto: Position,
    share: Share,
    shipped: Shipped,
}

/// What a batch is of the records that were pending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    /// There were none.
    None,
    Part,
    All,
}

/// What is known of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Up,
    /// It will come back by itself.
    Away,
    /// Somebody has to mend it.
    Unusable,
}

/// The process is to end.
struct Cancelled;

impl Drain {
    /// A drain that waits random times, which `seed` makes its own.
    pub fn new(
        journal: Arc<Journal>,
        store: Store,
        config: Config,
        seed: u64,
        observe: Observer,
    ) -> Drain {
        let backoff = Backoff {
            min: config.retry_min,
            max: config.retry_max,
            retries: 0,
            state: seed,
        };
        Drain {
            journal,
            store,
            observe,
            backoff,
            health: None,
            records_max: config.batch_records.max(1),
            config,
            work: None,
        }
    }

    /// Ships until `shutdown`, and then, once more, what there is by then. It ends
    /// `shutdown_timeout` after `shutdown` at the latest, whatever the store is doing.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let journal = Arc::clone(&self.journal);
        let limit = self.config.shutdown_timeout;
        let ship = async {
            while self.ship(&shutdown).await.is_ok() {}
            self.ship_rest().await;
        };
        let is_late = async {
            shutdown.cancelled().await;
            tokio::time::sleep(limit).await;
        };
        tokio::select! {
            () = ship => {}
            () = is_late => tracing::warn!(
                pending = journal.stats().pending_records,
                "the store did not take everything in time; the rest waits in the journal"
            ),
        }
    }

    /// Waits for records, and ships them until a batch is all there is.
    async fn ship(&mut self, shutdown: &CancellationToken) -> Result<(), Cancelled> {
        let journal = Arc::clone(&self.journal);
        or_cancelled(shutdown, journal.wait()).await?;
        or_cancelled(shutdown, tokio::time::sleep(self.config.batch_delay)).await?;
        while self.ship_batch(shutdown).await? == Share::Part {
            if shutdown.is_cancelled() {
                return Err(Cancelled);
            }
        }
        Ok(())
    }

    /// Ships until the journal is empty.
    async fn ship_rest(&mut self) {
        let never = CancellationToken::new();
        while let Ok(Share::Part | Share::All) = self.ship_batch(&never).await {}
    }

    /// Ships one batch.
    async fn ship_batch(&mut self, shutdown: &CancellationToken) -> Result<Share, Cancelled> {
        let mut work = match self.work.take() {
            Some(work) => work,
            None => match self.next_batch(shutdown).await? {
                None => return Ok(Share::None),
                Some(batch) => Work {
                    pieces: vec![batch.records],
                    refused: Vec::new(),
                    upto: batch.upto,
                    share: if batch.is_all {
                        Share::All
                    } else {
                        Share::Part
                    },
                    shipped: Shipped::default(),
                },
            },
        };
        if let Err(cancelled) = self.finish(&mut work, shutdown).await {
            self.work = Some(work);
            return Err(cancelled);
        }
        let (journal, observe) = (Arc::clone(&self.journal), Arc::clone(&self.observe));
        let Work {
            upto,
            share,
            shipped,
            ..
        } = work;
        let committed =
            blocking(move || journal.commit_with(upto, || observe(Event::Shipped(shipped)))).await;
        if let Err(error) = committed {
            // The records come again and are duplicates then.
            tracing::error!(%error, "the journal could not be told what is stored");
        }
        Ok(share)
    }

    async fn next_batch(
        &mut self,
        shutdown: &CancellationToken,
    ) -> Result<Option<Batch>, Cancelled> {
        let max_records = self.records_max;
        let max_bytes = usize::try_from(self.config.batch_bytes.as_u64()).unwrap_or(usize::MAX);
        loop {
            let journal = Arc::clone(&self.journal);
            match blocking(move || journal.next_batch(max_records, max_bytes)).await {
                Ok(Ok(batch)) => {
                    self.backoff.reset();
                    return Ok(batch);
                }
                Ok(Err(error)) => tracing::warn!(%error, "the journal cannot be read"),
                Err(error) => tracing::error!(%error, "the journal cannot be read"),
            }
            self.wait_for_retry(shutdown).await?;
        }
    }

    /// Brings every record of a batch into the store, or aside.
    async fn finish(
        &mut self,
        work: &mut Work,
        shutdown: &CancellationToken,
    ) -> Result<(), Cancelled> {
        loop {
            while let Some((record, reason)) = work.refused.last() {
                match self.put_aside(record, reason, shutdown).await? {
                    Ok(()) => work.shipped.dead_lettered += 1,
                    Err(error) => {
                        tracing::error!(id = %record.id, reason, %error, "a record is lost: the store refuses it and it cannot be put aside");
                        work.shipped.lost += 1;
                    }
                }
                work.refused.pop();
            }
            work.cut(self.records_max);
            let Some(piece) = work.pieces.last() else {
                return Ok(());
            };
            let records = piece.len();
            let started = clock::instant();
            let result = self.store.apply(piece).await;
            match result {
                Ok(applied) => {
                    self.note(Health::Up, None);
                    self.backoff.reset();
                    work.shipped.duration += started.elapsed();
                    work.shipped.stored += applied.stored;
                    work.shipped.duplicates += applied.duplicates;
                    for (index, rejection) in applied.rejected {
                        if let Some(record) = piece.get(index) {
                            work.refused.push((record.clone(), rejection.to_string()));
                        }
                    }
                    work.pieces.pop();
                    if records >= self.records_max {
                        self.records_max = grown(records, self.config.batch_records);
                    }
                }
                Err(StoreError::Rejected(reason)) => {
                    self.note(Health::Up, None);
                    work.divide(reason);
                }
                Err(error) => {
                    let health = if error.is_retryable() {
                        Health::Away
                    } else {
                        Health::Unusable
                    };
                    self.note(health, Some(&error));
                    if let StoreError::TimedOut(_) = error {
                        self.records_max = (records / 2).max(1);
                    }
                    self.wait_for_retry(shutdown).await?;
                }
            }
        }
    }

    /// Writes a dead letter; the inner error means that this is not possible.
    async fn put_aside(
        &mut self,
        record: &UsageRecord,
        reason: &str,
        shutdown: &CancellationToken,
    ) -> Result<Result<(), String>, Cancelled> {
        let mut tries = 1;
        loop {
            let journal = Arc::clone(&self.journal);
            let (record, reason) = (record.clone(), reason.to_owned());
            let error = match blocking(move || journal.dead_letter(&record, &reason)).await {
                Ok(Ok(())) => {
                    self.backoff.reset();
                    return Ok(Ok(()));
                }
                Ok(Err(error @ DeadLetterError::Write(_))) if tries < DEAD_LETTER_TRIES_MAX => {
                    tracing::warn!(%error, "a dead letter cannot be written");
                    tries += 1;
                    self.wait_for_retry(shutdown).await?;
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            return Ok(Err(error));
        }
    }

    /// Tells a change of the store's health, once.
    fn note(&mut self, health: Health, error: Option<&StoreError>) {
        let before = self.health.replace(health);
        if before == Some(health) {
            return;
        }
        let error = error.map(ToString::to_string).unwrap_or_default();
        match health {
            Health::Up if before.is_some() => tracing::info!("the store takes records again"),
            Health::Up => {}
            Health::Away => {
                tracing::warn!(error, "the store is away; records wait in the journal");
            }
            Health::Unusable => {
                tracing::error!(
                    error,
                    "the store needs mending; records wait in the journal"
                );
            }
        }
        let (was_up, is_up) = (
            before.map(|before| before == Health::Up),
            health == Health::Up,
        );
        if was_up != Some(is_up) {
            (self.observe)(Event::Up(is_up));
        }
    }

    async fn wait_for_retry(&mut self, shutdown: &CancellationToken) -> Result<(), Cancelled> {
        (self.observe)(Event::Retry);
        or_cancelled(shutdown, tokio::time::sleep(self.backoff.next_wait())).await
    }
}

impl Work {
    /// Cuts the next piece off from a longer one.
    fn cut(&mut self, records_max: usize) {
        if let Some(piece) = self.pieces.last_mut()
            && piece.len() > records_max
        {
            let first = piece.drain(..records_max).collect();
            self.pieces.push(first);
        }
    }

    /// Halves the piece that the store refused, or takes its only record out.
    fn divide(&mut self, reason: String) {
        let Some(mut piece) = self.pieces.pop() else {
            return;
        };
        if piece.len() > 1 {
            let second = piece.split_off(piece.len() / 2);
            self.pieces.push(second);
            self.pieces.push(piece);
        } else if let Some(record) = piece.pop() {
            self.refused.push((record, reason));
        }
    }
}

/// How many records to give the store after that many went well: a quarter more. Doubling would
/// soon be another timeout, and a timeout costs more than a batch that is somewhat small.
fn grown(records: usize, most: usize) -> usize {
    records
        .saturating_add((records / 4).max(1))
        .min(most.max(1))
}

/// Runs what blocks on a disk where it may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    tokio::task::spawn_blocking(work).await
}

/// Waits for `future`, unless the process is to end.
async fn or_cancelled<T>(
    shutdown: &CancellationToken,
    future: impl Future<Output = T>,
) -> Result<T, Cancelled> {
    shutdown.run_until_cancelled(future).await.ok_or(Cancelled)
}

/// Waits with full jitter: each is a random part of a limit that doubles, so that many drains do
/// not come back to a store all at once.
#[derive(Debug)]
struct Backoff {
    min: Duration,
    max: Duration,
    retries: u32,
    state: u64,
}

impl Backoff {
    fn reset(&mut self) {
        self.retries = 0;
    }

    fn next_wait(&mut self) -> Duration {
        let doublings = self.retries.min(31);
        let limit = self.min.saturating_mul(1 << doublings).min(self.max);
        self.retries = self.retries.saturating_add(1);
        let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.random() % nanos.saturating_add(1).max(1))
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): chance enough for a wait.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_below_a_limit_that_doubles_up_to_the_most() {
        let mut longest = [Duration::ZERO; 12];
        for seed in 0..200 {
            let mut backoff = Backoff {
                min: Duration::from_millis(100),
                max: Duration::from_secs(30),
                retries: 0,
                state: seed,
            };
            for longest in &mut longest {
                *longest = backoff.next_wait().max(*longest);
            }
            backoff.reset();
            assert!(backoff.next_wait() <= Duration::from_millis(100));
        }
        for (retries, longest) in longest.iter().enumerate() {
            let limit = Duration::from_millis(100 << retries).min(Duration::from_secs(30));
            assert!(
                *longest <= limit && *longest > limit / 2,
                "{retries}: {longest:?}"
            );
        }
    }

    #[test]
    fn a_refused_piece_is_halved_down_to_its_record_and_a_long_one_cut() {
        let numbered = |work: &Work| work.pieces.iter().map(Vec::len).collect::<Vec<_>>();
        let record = crate::record::Intent {
            id: uuid::Uuid::nil(),
            started_at: chrono::DateTime::UNIX_EPOCH,
            provider: "openai".into(),
            operation: crate::record::Operation::Chat,
            method: "POST".into(),
            route: "/".into(),
            model_requested: None,
            caller: crate::caller::Caller::default(),
            job: None,
        }
        .interrupted(crate::caller::Instance::default());
        let folder = tempfile::tempdir().unwrap();
        let config = crate::journal::Config {
            dir: folder.path().to_owned(),
            ..crate::journal::Config::default()
        };
        let disk = Arc::new(crate::journal::disk::LocalDisk);
        let (journal, _) = Journal::open_unattended(&config, disk, Arc::new(|_| {})).unwrap();
        journal.record(&record).unwrap();
        let upto = journal.next_batch(1, 1).unwrap().unwrap().upto;
        let mut work = Work {
            pieces: vec![vec![record; 5]],
            refused: Vec::new(),
            upto,
            share: Share::All,
            shipped: Shipped::default(),
        };
        work.divide("why".into());
        assert_eq!(numbered(&work), [3, 2]);
        work.divide("why".into());
        assert_eq!(numbered(&work), [3, 1, 1]);
        work.divide("why".into());
        assert_eq!((numbered(&work), work.refused.len()), (vec![3, 1], 1));
        work.pieces.pop();
        for (records_max, left) in [(3, vec![3]), (2, vec![1, 2]), (1, vec![1, 1, 1])] {
            work.cut(records_max);
            assert_eq!(numbered(&work), left);
        }
    }

    #[test]
    fn batches_grow_from_one_record_to_the_most_and_no_further() {
        let mut sizes = vec![1];
        while let Some(&last) = sizes.last()
            && last < 500
        {
            sizes.push(grown(last, 500));
        }
        assert_eq!(sizes[..10], [1, 2, 3, 4, 5, 6, 7, 8, 10, 12]);
        assert!(sizes.is_sorted() && sizes.len() < 30, "{sizes:?}");
        assert_eq!(grown(500, 500), 500);
        assert_eq!(grown(1, 0), 1);
    }
}
