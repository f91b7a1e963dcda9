//! Providers that are not there in the product.

use std::sync::Arc;

use taffrail::fault::Outcome;
use taffrail::provider::{
    Call, End, Meter, Milestone, Provider, RateLimit, Report, RequestFacts, RequestHead,
    RequestReader, ResponseHead,
};
use taffrail::record::{Fidelity, Operation};

/// A provider that meters nothing, or panics at every chance.
pub(crate) struct Plain {
    pub(crate) panics: bool,
}

impl Plain {
    pub(crate) fn new() -> Arc<Plain> {
        Arc::new(Plain { panics: false })
    }

    pub(crate) fn panicking() -> Arc<Plain> {
        Arc::new(Plain { panics: true })
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
            parts: Vec::new(),
            stated_cost: None,
            raw_usage: None,
            fidelity: Fidelity::Silent,
            estimated: false,
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
        Call {
            operation: Operation::Other,
            route: head.path.to_owned().into(),
            model: None,
        }
    }

    fn read_request(&self, _: &Call, _: RequestHead<'_>) -> Box<dyn RequestReader> {
        Box::new(Reader {
            panics: self.panics,
            facts: RequestFacts::default(),
        })
    }

    fn meter(&self, _: &Call, _: ResponseHead<'_>) -> Box<dyn Meter> {
        Box::new(Reader {
            panics: self.panics,
            facts: RequestFacts::default(),
        })
    }

    fn needs_usage_injection(&self, _: &Call) -> bool {
        false
    }

    fn rate_limits(&self, _: &http::HeaderMap) -> Vec<RateLimit> {
        Vec::new()
    }
}
