//! Providers that are not there in the product.

use std::sync::Arc;

use taffrail::fault::Outcome;
use taffrail::provider::{
    Call, End, Meter, Milestone, Provider, RateLimit, Report, RequestFacts, RequestHead,
    RequestReader, ResponseHead,
};
use taffrail::qualifier::Qualifiers;
use taffrail::record::{Fidelity, Operation};

/// A provider that meters nothing, or panics at every chance.
pub(crate) struct Plain {
    panics: Panics,
}

/// Where a provider's code panics.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Panics {
    Nowhere,
    /// In what reads the bytes.
    Reading,
    /// Before there are any.
    Outset,
}

impl Plain {
    pub(crate) fn new() -> Arc<Plain> {
        let panics = Panics::Nowhere;
        Arc::new(Plain { panics })
    }

    pub(crate) fn panicking() -> Arc<Plain> {
        let panics = Panics::Reading;
        Arc::new(Plain { panics })
    }

    pub(crate) fn panicking_at_the_outset() -> Arc<Plain> {
        let panics = Panics::Outset;
        Arc::new(Plain { panics })
    }

    fn begin(&self) {
        let panics = self.panics == Panics::Outset;
        assert!(!panics, "a provider panics on purpose");
    }

    fn reader(&self) -> Box<Reader> {
        self.begin();
        Box::new(Reader {
            panics: self.panics == Panics::Reading,
            facts: RequestFacts::default(),
        })
    }
}

struct Reader {
    panics: bool,
    facts: RequestFacts,
}

impl RequestReader for Reader {
    fn push(&mut self, _: &[u8]) {
        assert!(!self.panics, "a reader panics on purpose");
    }

    fn facts(&self) -> &RequestFacts {
        &self.facts
    }

    fn end(&mut self) {}
}

impl Meter for Reader {
    fn push(&mut self, _: &[u8]) -> Option<Milestone> {
        assert!(!self.panics, "a meter panics on purpose");
        None
    }

    fn finish(self: Box<Self>, end: End, _: &RequestFacts) -> Report {
        Report {
            outcome: match end {
                End::Complete => Outcome::Ok,
                End::Truncated => Outcome::UpstreamTruncated,
                End::Cancelled => Outcome::ClientCancelled,
                End::TimedOut => Outcome::UpstreamTimeout,
            },
            error_code: None,
            error_message: None,
            finish_reason: None,
            model_served: None,
            upstream_provider: None,
            service_tier: None,
            region: None,
            provider_request_id: None,
            image_variant: None,
            qualifiers: Qualifiers::default(),
            parts: Vec::new(),
            stated_cost: None,
            raw_usage: None,
            fidelity: Fidelity::Silent,
            estimated: false,
            job: None,
        }
    }
}

impl Provider for Plain {
    fn name(&self) -> &str {
        "up"
    }

    fn default_upstream(&self) -> Option<&'static str> {
        None
    }

    fn recognise(&self, head: RequestHead<'_>) -> Call {
        self.begin();
        Call {
            operation: Operation::Other,
            route: head.path.to_owned().into(),
            model: None,
            job: None,
        }
    }

    fn read_request(&self, _: &Call, _: RequestHead<'_>) -> Box<dyn RequestReader> {
        self.reader()
    }

    fn meter(&self, _: &Call, _: ResponseHead<'_>) -> Box<dyn Meter> {
        self.reader()
    }

    fn needs_usage_injection(&self, _: &Call) -> bool {
        false
    }

    fn rate_limits(&self, _: &http::HeaderMap) -> Vec<RateLimit> {
        self.begin();
        Vec::new()
    }
}
