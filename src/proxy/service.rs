//! One request, from its head to the response that goes back.

use std::borrow::Cow;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::clock;
use crate::metrics::Rewrite;
use crate::provider::{self, Call, Forwarding, JobCall, RequestHead};
use crate::proxy::body::{Progress, RequestBody, RequestTap, Upload};
use crate::proxy::guard::guarded;
use crate::proxy::headers::{head_bytes, is_websocket_upgrade, lists, strip_hop_by_hop};
use crate::proxy::identity::{Identity, strip_own_fields};
use crate::proxy::job_urls::{JobUrlFilter, Place};
use crate::proxy::outbound::Outbound;
use crate::proxy::refusal::Refusal;
use crate::proxy::relay::Filter;
use crate::proxy::relay::{DrainLimits, Relay, RelayError};
use crate::proxy::rewrite::{self, Splicer, UsageEventFilter};
use crate::proxy::route::{Route, Routes};
use crate::proxy::settle::{Books, Opening, Settlement, Submit, is_event_stream};
use crate::proxy::stream::Phase;
use crate::proxy::tunnel::Tunnel;
use crate::proxy::upstream::{Exchanged, Switched, Upstreams};
use crate::record::{Intent, Operation};
use crate::wire::json::Selector;

/// A body up to this size is read in full before the request goes out: it can then be sent
/// again on a fresh connection, and its model is known from the start.
const WHOLE_BODY_BYTES_MAX: u64 = 64 << 10;

/// A call whose provider's code panicked over it.
const UNRECOGNISED: Call = Call {
    operation: Operation::Other,
    route: Cow::Borrowed("unknown"),
    model: None,
    job: None,
};

/// What a worker needs to serve requests.
pub(super) struct Service {
    pub(super) routes: Arc<Routes>,
    pub(super) places: Arc<[Place]>,
    pub(super) upstreams: Rc<Upstreams>,
    pub(super) books: Rc<Books>,
    pub(super) identity: Identity,
    pub(super) head_bytes_max: usize,
    pub(super) idle_timeout: Duration,
    pub(super) drain: Option<DrainLimits>,
}

/// The body of a response: relayed, or Taffrail's own.
pub(super) enum ResponseBody {
    /// The provider's.
    Relay(Box<Relay>),
    /// Taffrail's own, or none.
    Own(Option<Bytes>),
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = RelayError;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        match self.get_mut() {
            ResponseBody::Relay(relay) => std::pin::Pin::new(relay.as_mut()).poll_frame(cx),
            ResponseBody::Own(bytes) => {
                std::task::Poll::Ready(bytes.take().map(Frame::data).map(Ok))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ResponseBody::Relay(relay) => relay.is_end_stream(),
            ResponseBody::Own(bytes) => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Relay(relay) => relay.size_hint(),
            ResponseBody::Own(bytes) => SizeHint::with_exact(
                bytes
                    .as_ref()
                    .map_or(0, |bytes| u64::try_from(bytes.len()).unwrap_or(u64::MAX)),
            ),
        }
    }
}

impl From<Refusal> for Response<ResponseBody> {
    fn from(refusal: Refusal) -> Response<ResponseBody> {
        refusal.response().map(|body| ResponseBody::Own(Some(body)))
    }
}

impl Service {
    /// Serves one request. There is always a response.
    pub(super) async fn serve(
        &self,
        request: Request<Incoming>,
        phase: Arc<Phase>,
    ) -> Response<ResponseBody> {
        let started = clock::instant();
        phase.serve();
        match self.admit(&request) {
            Ok((route, path)) => self.relay(started, route, path, request, phase).await,
            Err(refusal) => {
                phase.wait();
                self.books.ledger.metrics().proxy_error(refusal.reason());
                refusal.into()
            }
        }
    }

    /// Finds the route of a request, or says why there is none.
    fn admit(&self, request: &Request<Incoming>) -> Result<(Arc<Route>, String), Refusal> {
        if request.method() == Method::CONNECT || request.uri().authority().is_some() {
            return Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                "not_a_forward_proxy",
                "the request names a host; send it to /<provider>/<path> instead".to_owned(),
            ));
        }
        let bytes = head_bytes(request.headers()) + request.uri().path().len();
        if bytes > self.head_bytes_max {
            return Err(Refusal::new(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "head_too_large",
                format!(
                    "the head has {bytes} bytes; accepted are {}",
                    self.head_bytes_max
                ),
            ));
        }
        let path = request.uri().path();
        if let Some(forwarding) = provider::forwarding(path.trim_matches('/')) {
            return self.forward(forwarding, request.headers());
        }
        let found = self.routes.find(path);
        let (route, path) = found
            .ok_or_else(|| Refusal::unknown_route(self.routes.names().map(|name| name.as_ref())))?;
        let target = match request.uri().query() {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        Ok((route.clone(), target))
    }

    /// Finds the route of a request that names its URL in a header. The header chooses among the
    /// routes that there are, and nothing else.
    fn forward(
        &self,
        forwarding: &Forwarding,
        headers: &HeaderMap,
    ) -> Result<(Arc<Route>, String), Refusal> {
        let mut urls = headers.get_all(&forwarding.header).iter();
        let url = match (urls.next(), urls.next()) {
            (Some(url), None) => url.to_str().ok(),
            _ => None,
        };
        let found = url.and_then(|url| {
            let (name, target) = (forwarding.resolve)(url)?;
            Some((self.routes.named(name)?.clone(), target.to_owned()))
        });
        found.ok_or_else(|| {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                "bad_target",
                format!(
                    "the header {} must be given once, and hold an https URL without user and \
                     port at one of these hosts: {}",
                    forwarding.header, forwarding.hosts
                ),
            )
        })
    }

    async fn relay(
        &self,
        started: Instant,
        route: Arc<Route>,
        target: String,
        request: Request<Incoming>,
        phase: Arc<Phase>,
    ) -> Response<ResponseBody> {
        let (mut head, incoming) = request.into_parts();
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target.as_str(), None),
        };
        let asked = RequestHead {
            method: &head.method,
            path,
            query,
            headers: &head.headers,
        };
        let provider = &route.provider;
        let call = guarded(|| provider.recognise(asked)).unwrap_or_else(|| {
            self.books.ledger.metrics().meter_panic();
            UNRECOGNISED
        });
        let reader = guarded(|| provider.read_request(&call, asked));
        let tap = Rc::new(RefCell::new(RequestTap::new(reader)));
        let mut settlement = Settlement::open(
            self.books.clone(),
            Intent {
                id: clock::new_id(),
                started_at: clock::wall(),
                provider: route.label.clone(),
                operation: call.operation,
                method: head.method.to_string(),
                route: call.route.to_string(),
                model_requested: call.model.clone(),
                caller: self.identity.caller(&head.headers),
                job: None,
            },
            Opening {
                started,
                provider: route.provider.clone(),
                name: route.label.clone(),
                call: call.clone(),
                submit: submit_to_keep(&call, &target, &head.headers),
                request: tap.clone(),
                _in_flight: self.books.ledger.metrics().in_flight(&route.label),
                phase,
            },
        );
        let Ok(uri) = route.upstream.target(&target) else {
            return self.refuse(
                &mut settlement,
                Refusal::new(
                    StatusCode::BAD_REQUEST,
                    "bad_path",
                    "the path cannot be sent to the provider".to_owned(),
                ),
            );
        };
        let is_upgrade = is_websocket_upgrade(&head.headers);
        let client_upgrade = is_upgrade
            .then(|| head.extensions.remove::<hyper::upgrade::OnUpgrade>())
            .flatten();
        let may_inject = !is_upgrade && self.may_inject(&route, &call, &head.headers);

        strip_hop_by_hop(&mut head.headers);
        strip_own_fields(&mut head.headers);
        head.headers
            .insert(header::HOST, route.upstream.host_header());
        let job_urls = self.job_urls(&route, &call);
        if job_urls.is_some() {
            ask_for_identity(&mut head.headers);
        }
        let before_body = started.elapsed();

        let body = match self
            .body(&mut head.headers, incoming, &tap, may_inject)
            .await
        {
            Ok(body) => body,
            Err(refusal) => return self.refuse(&mut settlement, refusal),
        };
        let resumed = clock::instant();
        settlement.intend();
        if client_upgrade.is_some() {
            name_websocket(&mut head.headers);
        }
        let outgoing = Outbound::new(head.method, &uri, &head.headers, body.body);
        drop(head.headers);
        settlement.sent(before_body + resumed.elapsed());

        if let Some(client_upgrade) = client_upgrade {
            return self
                .upgrade(&route, settlement, outgoing, client_upgrade)
                .await;
        }
        let progress = body.progress;
        let exchanged = self
            .upstreams
            .exchange(&route.name, &route.upstream, outgoing, progress.as_deref())
            .await;
        match exchanged {
            Ok(exchanged) => self.respond(&route, settlement, exchanged, &body.injection, job_urls),
            Err(error) => {
                // A client that breaks off its own upload is gone, whatever the connection says.
                let is_client_gone = progress.is_some_and(|progress| progress.is_broken.get());
                let mut refusal = Refusal::no_response(&error);
                if is_client_gone {
                    refusal.kind = "client_gone";
                }
                self.refuse(&mut settlement, refusal)
            }
        }
    }

    /// Whether the option that makes a stream state its usage may be added to this call.
    fn may_inject(&self, route: &Route, call: &Call, headers: &HeaderMap) -> bool {
        route.usage_injection
            && is_json(headers)
            && !headers.contains_key(header::CONTENT_ENCODING)
            && guarded(|| route.provider.needs_usage_injection(call)).unwrap_or(false)
    }

    /// Where the answer to this call holds URLs that are to be pointed at the proxy.
    fn job_urls(&self, route: &Route, call: &Call) -> Option<&'static Selector> {
        if self.places.is_empty() {
            return None;
        }
        guarded(|| route.provider.job_urls(call)).flatten()
    }

    /// Prepares the request's body: whole if it is small, streaming otherwise.
    async fn body(
        &self,
        headers: &mut HeaderMap,
        incoming: Incoming,
        tap: &Rc<RefCell<RequestTap>>,
        may_inject: bool,
    ) -> Result<Outgoing, Refusal> {
        let length = incoming.size_hint().exact();
        let is_small = length.is_some_and(|length| length <= WHOLE_BODY_BYTES_MAX);
        let is_awaited = length != Some(0) && headers.contains_key(header::EXPECT);
        if is_small && !is_awaited {
            let collected = tokio::time::timeout(self.idle_timeout, incoming.collect()).await;
            let Ok(Ok(collected)) = collected else {
                return Err(Refusal::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "client_gone",
                    "the request's body did not arrive".to_owned(),
                ));
            };
            let bytes = collected.to_bytes();
            let mut tap = tap.borrow_mut();
            tap.push(&bytes);
            tap.end();
            // The reader knows by now whether it is a stream; most are not, and need no look.
            let may_inject = may_inject && tap.facts().stream == Some(true);
            let injected = may_inject.then(|| rewrite::inject_usage(&bytes)).flatten();
            let injection = if injected.is_some() {
                Injection::Done
            } else {
                Injection::None
            };
            if injected.is_some() {
                ask_for_identity(headers);
                headers.remove(header::CONTENT_LENGTH);
            }
            let bytes = injected.map_or(bytes, Bytes::from);
            let body = RequestBody::Whole((!bytes.is_empty()).then_some(bytes));
            return Ok(Outgoing {
                body,
                progress: None,
                injection,
            });
        }
        if length.is_none() {
            // Without it hyper would take a GET to have no body.
            headers.insert(
                header::TRANSFER_ENCODING,
                HeaderValue::from_static("chunked"),
            );
        }
        let progress = Rc::new(Progress::default());
        let splicer = may_inject.then(Splicer::new);
        if splicer.is_some() {
            ask_for_identity(headers);
            if let Some(length) = length {
                let extra = u64::try_from(Splicer::EXTRA_BYTES).unwrap_or_default();
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length + extra));
            }
        }
        let injection = match splicer {
            Some(_) => Injection::Streaming(progress.clone()),
            None => Injection::None,
        };
        let upload = Upload {
            incoming,
            tap: tap.clone(),
            splicer,
            progress: progress.clone(),
            trailers: None,
        };
        let body = RequestBody::Stream(Box::new(upload));
        Ok(Outgoing {
            body,
            progress: Some(progress),
            injection,
        })
    }

    /// Turns what came from the provider into the response.
    fn respond(
        &self,
        route: &Route,
        mut settlement: Settlement,
        exchanged: Exchanged,
        injection: &Injection,
        job_urls: Option<&'static Selector>,
    ) -> Response<ResponseBody> {
        let Exchanged {
            mut head,
            body,
            is_retried,
        } = exchanged;
        let metrics = self.books.ledger.metrics();
        if is_retried {
            metrics.upstream_retry(&route.label);
        }
        settlement.head(head.status, &head.headers);
        let is_injected = injection.is_done();
        if is_injected {
            metrics.rewrite(&route.label, Rewrite::UsageInjection);
        } else if matches!(injection, Injection::Streaming(_)) {
            metrics.rewrite(&route.label, Rewrite::Padding);
        }
        let is_plain = !head.headers.contains_key(header::CONTENT_ENCODING);
        let filter = if is_injected && is_plain && is_event_stream(&head.headers) {
            Some(Filter::UsageEvent(UsageEventFilter::new()))
        } else if is_plain && is_json(&head.headers) {
            let urls = job_urls.map(|urls| JobUrlFilter::new(urls, self.places.clone()));
            urls.map(Filter::JobUrls)
        } else {
            None
        };
        if filter.is_some() {
            head.headers.remove(header::CONTENT_LENGTH);
        }
        strip_hop_by_hop(&mut head.headers);
        let relay = Relay::new(body, settlement, filter, self.drain);
        Response::from_parts(head, ResponseBody::Relay(Box::new(relay)))
    }

    /// Relays a websocket: the tunnel opens only after the provider's `101`, and until then the
    /// client's bytes stay where they are.
    async fn upgrade(
        &self,
        route: &Arc<Route>,
        mut settlement: Settlement,
        request: Outbound,
        client: hyper::upgrade::OnUpgrade,
    ) -> Response<ResponseBody> {
        let switched = self
            .upstreams
            .exchange_upgrade(&route.name, &route.upstream, request)
            .await;
        let (mut head, provider) = match switched {
            Ok(Switched::Yes(head, provider)) => (head, provider),
            Ok(Switched::No(exchanged)) => {
                return self.respond(route, settlement, *exchanged, &Injection::None, None);
            }
            Err(error) => return self.refuse(&mut settlement, Refusal::no_response(&error)),
        };
        settlement.head(head.status, &head.headers);
        strip_hop_by_hop(&mut head.headers);
        name_websocket(&mut head.headers);
        let silence_max = self.idle_timeout;
        tokio::task::spawn_local(async move {
            let tunnel = Tunnel::new(settlement);
            if let Ok(client) = client.await {
                tunnel.relay(client, provider, silence_max).await;
            }
        });
        Response::from_parts(head, ResponseBody::Own(None))
    }

    /// Answers in the provider's place.
    fn refuse(&self, settlement: &mut Settlement, refusal: Refusal) -> Response<ResponseBody> {
        self.books.ledger.metrics().proxy_error(refusal.reason());
        settlement.fail(&refusal);
        refusal.into()
    }
}

/// A request's body, ready to go.
struct Outgoing {
    body: RequestBody,
    progress: Option<Rc<Progress>>,
    injection: Injection,
}

/// Whether the option was added to the request.
enum Injection {
    None,
    Done,
    /// Known once the body has passed.
    Streaming(Rc<Progress>),
}

impl Injection {
    fn is_done(&self) -> bool {
        match self {
            Injection::None => false,
            Injection::Done => true,
            Injection::Streaming(progress) => progress.is_injected.get(),
        }
    }
}

/// The headers without which a vendor does not answer: keys, and Anthropic's version of its API.
static HEADERS_OF_SUBMITS: [HeaderName; 4] = [
    header::AUTHORIZATION,
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("anthropic-version"),
];

/// What is kept to ask for a job later, if the call submits one.
fn submit_to_keep(call: &Call, target: &str, headers: &HeaderMap) -> Option<Submit> {
    if call.job != Some(JobCall::Submit) {
        return None;
    }
    let kept = HEADERS_OF_SUBMITS.iter().filter_map(|name| {
        let mut value = headers.get(name)?.clone();
        value.set_sensitive(true);
        Some((name.clone(), value))
    });
    Some(Submit {
        target: target.to_owned(),
        headers: kept.collect(),
    })
}

/// Whether a body is JSON, by its head.
fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| lists(value, "application/json"))
}

/// The two fields that turn a connection into a websocket's.
fn name_websocket(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

/// What is to be changed in a response must not be compressed.
fn ask_for_identity(headers: &mut HeaderMap) {
    headers.insert(
        header::ACCEPT_ENCODING,
        HeaderValue::from_static("identity"),
    );
}
