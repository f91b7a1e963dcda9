//! Trying accounts out: what their providers answer, with nothing kept.

use tokio::task::JoinSet;

use super::account::Account;
use crate::ask::Fault;

/// What came of trying an account out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// The provider's name.
    pub provider: String,
    /// The account's name.
    pub account: String,
    /// What was found, or why nothing was, in a line.
    pub found: Result<String, Fault>,
}

/// Tries accounts beside each other; in their order.
pub(super) async fn each<Attempt>(
    accounts: impl Iterator<Item = Account>,
    attempt: impl Fn(Account) -> Attempt,
) -> Vec<Trial>
where
    Attempt: Future<Output = Result<String, Fault>> + Send + 'static,
{
    let mut trials = JoinSet::new();
    for (index, account) in accounts.enumerate() {
        let (provider, name) = (account.provider.clone(), account.name.clone());
        let attempt = attempt(account);
        trials.spawn(async move {
            let trial = Trial {
                provider,
                account: name,
                found: attempt.await,
            };
            (index, trial)
        });
    }
    let mut trials = trials.join_all().await;
    trials.sort_by_key(|(index, _)| *index);
    trials.into_iter().map(|(_, trial)| trial).collect()
}
