//! Whose traffic is whose: which of a provider's requests an account pays for. Pure but for the
//! files that keys are in.

use std::collections::BTreeSet;

use super::account::Account;
use crate::proxy::fingerprint;

/// What each account says is its own, in the order of the accounts.
pub(super) struct Claims<'a> {
    accounts: &'a [Account],
    keys: Vec<BTreeSet<String>>,
}

/// Which of a provider's traffic an account pays for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Share {
    /// All of it: there is no other account.
    All,
    /// That of these keys, which the configuration names.
    Named(BTreeSet<String>),
    /// That of its own key, if it is one of the traffic's: a key for bills alone never shows there.
    Own(BTreeSet<String>),
}

impl Share {
    /// The fingerprints of its keys; `None` are all.
    pub(super) fn keys(&self) -> Option<&BTreeSet<String>> {
        match self {
            Share::All => None,
            Share::Named(keys) | Share::Own(keys) => Some(keys),
        }
    }

    /// Whether traffic of a key is its own.
    pub(super) fn has(&self, key: Option<&str>) -> bool {
        self.keys()
            .is_none_or(|keys| key.is_some_and(|key| keys.contains(key)))
    }
}

impl Claims<'_> {
    /// What accounts claim now: files of keys may have changed.
    pub(super) fn of<'a>(accounts: &'a [Account], pepper: &str) -> Claims<'a> {
        let keys = |account: &Account| {
            let mut own: BTreeSet<String> = account.fingerprints().map(str::to_owned).collect();
            // A key that cannot be read now was told of when it was asked with.
            let key = account.current_key().ok().flatten();
            own.extend(key.and_then(|key| fingerprint(pepper, key.expose())));
            own
        };
        Claims {
            accounts,
            keys: accounts.iter().map(keys).collect(),
        }
    }

    /// The share of an account; `None` if there is no such account.
    pub(super) fn share(&self, index: usize) -> Option<Share> {
        let account = self.accounts.get(index)?;
        let own = self.keys.get(index)?.clone();
        let mut accounts = self.accounts.iter();
        let is_named = account.fingerprints().next().is_some();
        Some(match is_named {
            true => Share::Named(own),
            false if accounts.any(|it| it.provider == account.provider && it != account) => {
                Share::Own(own)
            }
            false => Share::All,
        })
    }

    /// Whether any account of the same provider claims a key.
    pub(super) fn is_claimed(&self, index: usize, key: Option<&str>) -> bool {
        let provider = self.accounts.get(index).map(|account| &account.provider);
        let mut claims = self.accounts.iter().zip(&self.keys);
        key.is_some_and(|key| {
            claims.any(|(account, keys)| Some(&account.provider) == provider && keys.contains(key))
        })
    }
}
