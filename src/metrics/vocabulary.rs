//! The label values that are known in advance, where no other part of Taffrail has them.

use crate::ask::FaultClass;

/// A set of label values known in advance, with the name of each.
macro_rules! label_values {
    ($(#[$meta:meta])* $type:ident { $($(#[$doc:meta])* $variant:ident = $name:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $type { $($(#[$doc])* $variant),+ }

        impl $type {
            /// Every value.
            pub const ALL: &'static [$type] = &[$($type::$variant),+];

            /// The label value.
            pub const fn as_str(self) -> &'static str {
                match self { $($type::$variant => $name),+ }
            }
        }
    };
}

label_values! {
    /// How far a record got.
    Stage {
        /// Its request ended.
        Completed = "completed",
        /// It is in the journal.
        Journaled = "journaled",
        /// It is lost, for a stated reason.
        Dropped = "dropped",
        /// It is in the store.
        Stored = "stored",
        /// The store had it already.
        Duplicate = "duplicate",
        /// The store refused it for good; it is kept in a file.
        DeadLettered = "dead_lettered",
    }
}

label_values! {
    /// Why a record reached a stage, where there is more than one way.
    Reason {
        /// The usual way.
        None = "none",
        /// It was in the journal already when the process started. Such records count as
        /// journaled by this process too, so that the books balance across a restart.
        Recovered = "recovered",
        /// The journal was at its limit.
        JournalFull = "journal_full",
        /// The journal could not be written.
        JournalFailed = "journal_failed",
        /// The record could not be encoded, or is larger than a journal frame.
        Unencodable = "unencodable",
        /// The journal's frame could not be read back.
        Unreadable = "unreadable",
        /// The store refused it.
        Rejected = "rejected",
        /// The store refused it and the file of dead letters did not take it: it is lost.
        Unwritable = "unwritable",
    }
}

label_values! {
    /// The halves of a request that Taffrail adds time to.
    Phase {
        /// From the request's arrival to its being sent on.
        Request = "request",
        /// From the response's arrival to its being sent on.
        Response = "response",
    }
}

label_values! {
    /// The declared exceptions to relaying bytes untouched.
    Rewrite {
        /// `stream_options.include_usage` was added, and its extra event taken out.
        UsageInjection = "usage_injection",
        /// A large chat request that wanted no such option passed with spaces before its final
        /// brace, because its length had been announced with room for it.
        Padding = "padding",
        /// The URLs of a job were pointed at the proxy.
        JobUrls = "job_urls",
    }
}

label_values! {
    /// A span of time that spend is summed over, up to now, in UTC.
    Window {
        /// Since midnight.
        Day = "day",
        /// Since the first of the month.
        Month = "month",
    }
}

label_values! {
    /// A listener of this process.
    Listener {
        /// The proxy.
        Proxy = "proxy",
        /// The proxy, for applications that insist on https.
        ProxyTls = "proxy_tls",
        /// The admin endpoints.
        Admin = "admin",
        /// The injector's, which Kubernetes asks about pods.
        Injector = "injector",
    }
}

label_values! {
    /// What became of a pod that the injector was asked about.
    ReviewResult {
        /// It has the sidecar now.
        Injected = "injected",
        /// It had the sidecar.
        AlreadyInjected = "already_injected",
        /// Its label says that it wants none.
        OptedOut = "opted_out",
        /// It is in the namespace of the injector.
        OwnNamespace = "own_namespace",
        /// It is on its node's network.
        HostNetwork = "host_network",
        /// It runs on Windows.
        Windows = "windows",
        /// It has a container with a port of the sidecar's.
        PortInUse = "port_in_use",
        /// It is to complete, which a plain sidecar would keep it from.
        NeverCompletes = "never_completes",
        /// What came is no review of a pod's creation.
        Malformed = "malformed",
    }
}

label_values! {
    /// Why a client's TLS handshake failed.
    HandshakeFault {
        /// The client refused: most likely it does not trust the certificate.
        Refused = "refused",
        /// What came was not TLS.
        NotTls = "not_tls",
        /// It took too long.
        Timeout = "timeout",
        /// The client went away, or offered nothing that is acceptable.
        Broken = "broken",
    }
}

label_values! {
    /// Why Taffrail answered a request itself.
    ProxyError {
        /// The path names no provider.
        UnknownProvider = "unknown_provider",
        /// The request is not one that can be relayed.
        BadRequest = "bad_request",
        /// The upstream could not be reached.
        Unreachable = "unreachable",
        /// The upstream did not answer in time.
        Timeout = "timeout",
        /// The upstream's answer was not HTTP, or broke off in its head.
        BadResponse = "bad_response",
        /// A limit of the proxy was reached.
        Overloaded = "overloaded",
        /// The proxy is shutting down.
        ShuttingDown = "shutting_down",
        /// A fault of the proxy itself.
        Internal = "internal",
    }
}

label_values! {
    /// A fault that the journal met and survived.
    JournalFault {
        /// The end of a segment was cut, because a crash had torn its last frame.
        TornTail = "torn_tail",
        /// A frame did not match its checksum.
        BadFrame = "bad_frame",
        /// A write failed.
        Write = "write",
        /// An fsync failed.
        Sync = "sync",
    }
}

label_values! {
    /// How a scheduled run or a fetch ended.
    RunResult {
        /// It did what it should.
        Ok = "ok",
        /// It failed.
        Error = "error",
        /// It was skipped, because the one before was still running or another process had it.
        Skipped = "skipped",
    }
}

label_values! {
    /// A bound on the jobs that a process keeps.
    JobLimit {
        /// Jobs that it submitted and that are not settled.
        Open = "open",
        /// Ends of others' jobs that the store has not taken yet.
        Ends = "ends",
    }
}

label_values! {
    /// How reading a balance ended.
    SyncResult {
        /// There is a balance.
        Ok = "ok",
        /// The key is wrong, or not of the kind that is needed.
        Auth = "auth",
        /// The provider tells no balance.
        Unsupported = "unsupported",
        /// The provider wants to be asked less often.
        RateLimited = "rate_limited",
        /// There was no answer in time.
        Timeout = "timeout",
        /// Anything else.
        Error = "error",
    }
}

impl SyncResult {
    /// How it ended by the class of its fault.
    pub const fn of(class: FaultClass) -> SyncResult {
        match class {
            FaultClass::Auth => SyncResult::Auth,
            FaultClass::RateLimited => SyncResult::RateLimited,
            FaultClass::Timeout => SyncResult::Timeout,
            FaultClass::Unsupported => SyncResult::Unsupported,
            FaultClass::Error => SyncResult::Error,
        }
    }
}

label_values! {
    /// How many of the last closed UTC days.
    BillWindow {
        /// One.
        Day = "1d",
        /// Seven.
        Week = "7d",
        /// Thirty.
        Month = "30d",
    }
}

impl BillWindow {
    /// How many days.
    pub const fn days(self) -> u64 {
        match self {
            BillWindow::Day => 1,
            BillWindow::Week => 7,
            BillWindow::Month => 30,
        }
    }
}

label_values! {
    /// What is kept for a time.
    Retained {
        /// Days of detailed rows.
        LogDays = "log_days",
        /// Hour and day buckets.
        Aggregates = "aggregates",
        /// Jobs that have their row.
        Jobs = "jobs",
        /// Readings of balances, a row for each currency.
        Balances = "balances",
    }
}

label_values! {
    /// What became of a row whose cost its provider was asked for.
    ReceiptResult {
        /// It has the cost that its provider states.
        Settled = "settled",
        /// The provider does not know it, or not yet.
        Missing = "missing",
        /// The provider does not say clearly what it cost.
        Unclear = "unclear",
        /// It was asked about often enough, and is asked about no more.
        GivenUp = "given_up",
        /// It was left for the next run, because this one had made all of its calls.
        Deferred = "deferred",
    }
}

label_values! {
    /// How an attempt to refresh the prices of a source ended.
    PriceResult {
        /// Its list was read, and is in force.
        Ok = "ok",
        /// Its list was read, looks wrong, and waits for a person's word.
        HeldBack = "held_back",
        /// It needs a key, and no account of the provider has one.
        Skipped = "skipped",
        /// The key is wrong.
        Auth = "auth",
        /// The provider wants to be asked less often.
        RateLimited = "rate_limited",
        /// There was no answer in time.
        Timeout = "timeout",
        /// Anything else: no connection, or no price list.
        Error = "error",
    }
}

label_values! {
    /// What can be expected of an account.
    AccountState {
        /// It can be used.
        Ok = "ok",
        /// It has nothing left.
        Exhausted = "exhausted",
        /// The provider has locked it.
        Locked = "locked",
        /// The provider slows it down.
        Throttled = "throttled",
    }
}

label_values! {
    /// How urgent it is that a balance is low.
    Level {
        /// Somebody is to look.
        Warning = "warning",
        /// Somebody is to be woken.
        Critical = "critical",
    }
}

label_values! {
    /// A bound on label values.
    Limit {
        /// A provider that is not configured.
        Providers = "providers",
        /// [`super::Config::models_per_provider`].
        Models = "models",
        /// [`super::Config::attribution_values`].
        AttributionValues = "attribution_values",
        /// [`super::Config::series`].
        Series = "series",
        /// [`super::Config::spend_groups`].
        SpendGroups = "spend_groups",
    }
}
