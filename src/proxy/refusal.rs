//! Answers that Taffrail gives itself, so that an application can tell them from the provider's:
//! JSON, and the header `x-taffrail-error`.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;

use crate::fault::Outcome;
use crate::metrics::ProxyError;
use crate::proxy::upstream::ExchangeError;

/// The header that marks an answer of Taffrail's own.
pub const ERROR_HEADER: &str = "x-taffrail-error";

/// An answer of Taffrail's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// The value of [`ERROR_HEADER`]; `taffrail_` before it is the type in the body.
    pub(super) kind: &'static str,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, kind: &'static str, message: String) -> Refusal {
        Refusal {
            status,
            kind,
            message,
        }
    }

    /// No provider has that route.
    pub(super) fn unknown_route<'a>(names: impl Iterator<Item = &'a str>) -> Refusal {
        let names: Vec<&str> = names.collect();
        Refusal::new(
            StatusCode::NOT_FOUND,
            "unknown_route",
            format!(
                "the first path segment names no provider; configured are: {}",
                names.join(", ")
            ),
        )
    }

    /// There are as many connections as there may be.
    pub(super) fn too_many_connections(max: u32) -> Refusal {
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too_many_connections",
            format!("there are {max} connections already (proxy.connections_max)"),
        )
    }

    /// A plain request came where TLS is spoken.
    pub(super) fn not_tls() -> Refusal {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            "not_tls",
            "this is proxy.tls_listen, where only TLS is spoken: use https here, or http at \
             proxy.listen"
                .to_owned(),
        )
    }

    /// The provider gave no response.
    pub(super) fn no_response(error: &ExchangeError) -> Refusal {
        let (status, kind) = match error {
            ExchangeError::Connect { .. } => (StatusCode::BAD_GATEWAY, "connect_failed"),
            ExchangeError::ConnectTimeout { .. } => {
                (StatusCode::GATEWAY_TIMEOUT, "connect_timeout")
            }
            ExchangeError::Invalid { .. } => (StatusCode::BAD_GATEWAY, "invalid_response"),
            ExchangeError::Broken { .. } => (StatusCode::BAD_GATEWAY, "connection_broken"),
            ExchangeError::ResponseTimeout { .. } => {
                (StatusCode::GATEWAY_TIMEOUT, "response_timeout")
            }
        };
        Refusal::new(status, kind, error.to_string())
    }

    /// The outcome of the request that is answered so.
    pub(super) fn outcome(&self) -> Outcome {
        match self.kind {
            "connect_failed" | "connection_broken" => Outcome::NetworkError,
            "connect_timeout" | "response_timeout" => Outcome::UpstreamTimeout,
            "invalid_response" => Outcome::UpstreamError,
            "client_gone" => Outcome::ClientCancelled,
            _ => Outcome::ProxyError,
        }
    }

    /// Whether the provider may have worked on the request all the same, and bill it.
    pub(super) fn may_have_cost(&self) -> bool {
        matches!(
            self.kind,
            "connection_broken" | "response_timeout" | "invalid_response"
        )
    }

    /// The counter's word for it.
    pub(super) fn reason(&self) -> ProxyError {
        match self.kind {
            "unknown_route" => ProxyError::UnknownProvider,
            "connect_failed" => ProxyError::Unreachable,
            "connect_timeout" | "response_timeout" => ProxyError::Timeout,
            "connection_broken" | "invalid_response" => ProxyError::BadResponse,
            "too_many_connections" => ProxyError::Overloaded,
            _ => ProxyError::BadRequest,
        }
    }

    /// The body.
    pub(super) fn body(&self) -> Bytes {
        let kind = format!("taffrail_{}", self.kind);
        let body = json!({ "error": { "type": kind, "message": self.message } });
        Bytes::from(format!("{body}\n"))
    }

    /// The response.
    pub(super) fn response(&self) -> Response<Bytes> {
        let mut response = Response::new(self.body());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        headers.insert(ERROR_HEADER, HeaderValue::from_static(self.kind));
        response
    }
}
