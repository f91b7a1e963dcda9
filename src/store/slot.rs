//! A connection to Postgres that callers share, one after the other: made when it is needed, kept
//! for the next, and closed when it was not used for a while.
//!
//! The driver's pool is not this: it opens a second connection while the first is on its way back,
//! asks the server something after every use and without a limit of time, and says only that time
//! is up while a server refuses it.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// How long a farewell may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The place of a connection. Clones are the same place.
#[derive(Debug, Clone, Default)]
pub(super) struct Slot(Arc<Mutex<Option<Kept>>>);

#[derive(Debug)]
struct Kept {
    connection: PgConnection,
    /// Ends it when it has been kept for too long.
    closing: AbortOnDropHandle<()>,
}

/// A slot whose turn it is. The connection is lost unless it is given back, so that a call which
/// is given up leaves none behind that is in the middle of something.
pub(super) struct Turn {
    place: Slot,
    held: OwnedMutexGuard<Option<Kept>>,
}

impl Slot {
    /// Waits for the others; returns the connection as well if there is one.
    pub(super) async fn turn(&self) -> (Turn, Option<PgConnection>) {
        let mut held = Arc::clone(&self.0).lock_owned().await;
        let kept = held.take().map(|kept| kept.connection);
        let place = self.clone();
        (Turn { place, held }, kept)
    }

    /// Closes the connection in order, if whoever uses it is done in time.
    pub(super) async fn close(&self) {
        let closing = async {
            let Some(kept) = self.0.lock().await.take() else {
                return;
            };
            if let Err(error) = kept.connection.close().await {
                tracing::debug!(%error, "a connection to the store was not closed in order");
            }
            // No sooner: it may be what runs this.
            drop(kept.closing);
        };
        if timeout(CLOSE_TIMEOUT, closing).await.is_err() {
            tracing::debug!("a connection to the store was left without a farewell");
        }
    }
}

impl Turn {
    /// Keeps the connection for the next turn, but no longer than that.
    pub(super) fn give_back(mut self, connection: PgConnection, idle_timeout: Duration) {
        // The last of its users takes the connection along.
        let place = Arc::downgrade(&self.place.0);
        let closing = tokio::spawn(async move {
            tokio::time::sleep(idle_timeout).await;
            if let Some(place) = place.upgrade() {
                Slot(place).close().await;
            }
        });
        *self.held = Some(Kept {
            connection,
            closing: AbortOnDropHandle::new(closing),
        });
    }
}
