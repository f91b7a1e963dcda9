//! Azure OpenAI and Foundry: OpenAI's dialect below `/openai` and `/models`, with the model named
//! by a deployment in the path, and Anthropic's below `/anthropic`.
//!
//! <https://learn.microsoft.com/azure/ai-services/openai/reference>

use std::borrow::Cow;

use http::HeaderMap;

use super::response::Vendor;
use super::route::{self, Segments};
use super::{
    Call, Meter, Provider, RateLimit, RequestHead, RequestReader, ResponseHead, anthropic,
    anthropic_batch, chat, common_rate_limits, request,
};

/// Route, configuration key and label.
pub(crate) const NAME: &str = "azure";

/// The provider. Each customer has an own host, so there is no default upstream.
pub(crate) struct Azure;

static VENDOR: Vendor = Vendor {
    request_id_headers: &["apim-request-id", "x-request-id"],
    refine: |_| None,
};

/// The paths below which a dialect begins; `{deployment}` names the model.
const BASES: [&str; 5] = [
    "/openai/deployments/{deployment}",
    "/openai/v1",
    "/openai",
    "/models",
    "/anthropic",
];

impl Provider for Azure {
    fn name(&self) -> &str {
        NAME
    }

    fn default_upstream(&self) -> Option<&'static str> {
        None
    }

    fn recognise(&self, head: RequestHead<'_>) -> Call {
        let segments = Segments::of(head.path);
        let base = BASES.into_iter().find_map(|base| {
            let below = route::strip_base(base, head.path)?;
            Some((base, below))
        });
        let Some((base, path)) = base else {
            return chat::recognise(head);
        };
        let head = RequestHead { path, ..head };
        let mut call = if base == "/anthropic" {
            anthropic::recognise(head)
        } else {
            chat::recognise(head)
        };
        let deployment = if base.ends_with("{deployment}") {
            segments.get(2)
        } else {
            route::query_value(head.query, "deployment")
        };
        call.model = deployment.and_then(route::name).or(call.model);
        if call.route != route::UNKNOWN_ROUTE {
            call.route = Cow::Owned(format!("{base}{}", call.route));
        }
        call
    }

    fn read_request(&self, call: &Call, head: RequestHead<'_>) -> Box<dyn RequestReader> {
        request::reader(call.operation, head)
    }

    fn meter(&self, call: &Call, head: ResponseHead<'_>) -> Box<dyn Meter> {
        if let Some(batch) = anthropic_batch::meter(call, head).filter(|_| is_anthropic(call)) {
            batch
        } else if is_anthropic(call) {
            Box::new(anthropic::meter(call, head, &VENDOR))
        } else {
            Box::new(chat::meter(call, head, &VENDOR))
        }
    }

    fn follow_up(&self, call: &Call, target: &str, job_id: &str) -> Option<String> {
        if is_anthropic(call) {
            anthropic_batch::follow_up(target, job_id)
        } else {
            chat::follow_up(call, target, job_id)
        }
    }

    fn needs_usage_injection(&self, call: &Call) -> bool {
        chat::states_usage_on_demand(call) && !is_anthropic(call)
    }

    fn rate_limits(&self, headers: &HeaderMap) -> Vec<RateLimit> {
        common_rate_limits(headers)
    }
}

fn is_anthropic(call: &Call) -> bool {
    call.route.starts_with("/anthropic/")
}
