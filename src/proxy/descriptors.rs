//! File descriptors: a proxied request holds two, and many systems allow a process 1,024 at
//! first and far more on demand.

use rustix::io::Result;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a process holds besides the sockets of its traffic: journal, store, admin listener and
/// idle connections to providers.
const RESERVE: u64 = 512;

/// What came of asking for descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// How many `proxy.connections_max` needs: for each connection of an application one to the
    /// provider, and some for the process itself.
    pub needed: u64,
    /// How many the process may open now.
    pub allowed: u64,
}

impl Descriptors {
    /// Whether every connection that is accepted can be served.
    pub fn suffice(&self) -> bool {
        self.allowed >= self.needed
    }
}

/// Raises the process's soft limit as far as so many connections need and the hard limit allows.
/// A limit that suffices is left alone.
///
/// # Errors
/// When the system refuses.
pub fn provide(connections_max: u32) -> Result<Descriptors> {
    let needed = 2 * u64::from(connections_max) + RESERVE;
    let limits = getrlimit(Resource::Nofile);
    let (current, wanted) = (limits.current, raised(limits, needed));
    if wanted != current {
        let raised = Rlimit {
            current: wanted,
            maximum: limits.maximum,
        };
        setrlimit(Resource::Nofile, raised)?;
    }
    Ok(Descriptors {
        needed,
        allowed: wanted.unwrap_or(u64::MAX),
    })
}

/// The soft limit that is wanted; `None` is no limit, as in [`Rlimit`].
fn raised(limits: Rlimit, needed: u64) -> Option<u64> {
    let current = limits.current?;
    Some(current.max(needed.min(limits.maximum.unwrap_or(u64::MAX))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_raised_as_far_as_needed_and_allowed() {
        let raised = |current, maximum, needed| raised(Rlimit { current, maximum }, needed);
        assert_eq!(raised(Some(1024), Some(4096), 2000), Some(2000));
        assert_eq!(raised(Some(1024), Some(4096), 5000), Some(4096));
        assert_eq!(raised(Some(1024), None, 5000), Some(5000));
        assert_eq!(raised(Some(1024), Some(4096), 100), Some(1024));
        assert_eq!(raised(None, None, 100), None);
    }
}
