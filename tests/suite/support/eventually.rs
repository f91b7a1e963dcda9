//! Waiting for something to happen, and no longer than that takes.

use std::time::Duration;

use taffrail::clock;

/// How long anything may take before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How often a test looks again whether something has happened.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Looks again and again until it holds.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = clock::instant() + PATIENCE;
    while !holds().await {
        assert!(clock::instant() < deadline, "never: {what}");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
