//! Opening a journal beside tests that start programs.

use std::sync::Arc;

use taffrail::clock;
use taffrail::journal::disk::Disk;
use taffrail::journal::{Config, Journal, OpenError, Recovery};

use super::eventually::PATIENCE;

/// Opens a journal without threads of its own.
///
/// Other tests start programs meanwhile, and until each has replaced its copy of this process, that
/// copy holds the lock of a journal that was closed here.
pub(crate) fn open_journal(config: &Config, disk: &Arc<dyn Disk>) -> (Journal, Recovery) {
    let deadline = clock::instant() + PATIENCE;
    loop {
        match Journal::open_unattended(config, disk.clone(), Arc::new(|_| {})) {
            Err(OpenError::Locked { .. }) if clock::instant() < deadline => {
                std::thread::yield_now();
            }
            opened => return opened.unwrap(),
        }
    }
}
