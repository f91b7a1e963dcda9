//! What keeps a fault in metering away from traffic.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs a step of metering; `None` means that it panicked. What it worked on must not be used
/// again then.
pub(super) fn guarded<T>(step: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(step)).ok()
}
