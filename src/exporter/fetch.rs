//! The only sender of calls to billing and price APIs.
//!
//! In: an [`Ask`], where to send it and the key. Out: the whole answer, whatever its status, or a
//! [`Fault`] with a class. Nothing is tried twice: the next run of the schedule is the retry. A
//! redirect is followed on the same host only, so that no key goes elsewhere. No URL, key or body
//! is ever in an error or in the log.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::{HeaderValue, header};
use reqwest::redirect::Policy;

use crate::ask::{Answer, Ask, Fault, FaultClass, KeyPlace};
use crate::secret::Secret;

/// The longest answer that is read. The longest that is known, OpenRouter's list of models, is a
/// tenth of it.
pub const BODY_BYTES_MAX: usize = 16 << 20;

/// How many redirects are followed, all on one host.
const REDIRECTS_MAX: usize = 3;

/// Calls billing and price APIs.
#[derive(Debug, Clone)]
pub struct Fetcher {
    client: reqwest::Client,
    timeout: Duration,
}

impl Fetcher {
    /// A sender that trusts as `tls` says and gives a call `timeout` from its name look-up to the
    /// last byte of its answer.
    ///
    /// # Errors
    /// When the client cannot be made of this configuration of TLS.
    pub fn new(tls: &Arc<rustls::ClientConfig>, timeout: Duration) -> anyhow::Result<Fetcher> {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured((**tls).clone())
            .redirect(Policy::custom(|attempt| {
                let origin = |url: &reqwest::Url| url.origin();
                let is_elsewhere = attempt
                    .previous()
                    .first()
                    .is_none_or(|first| origin(first) != origin(attempt.url()));
                if is_elsewhere {
                    attempt.error("a redirect to another host")
                } else if attempt.previous().len() > REDIRECTS_MAX {
                    attempt.error("too many redirects")
                } else {
                    attempt.follow()
                }
            }))
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .user_agent(concat!("taffrail/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Fetcher { client, timeout })
    }

    /// Sends a call to `host`, or to the vendor's own, with a key where the call wants one.
    ///
    /// # Errors
    /// When there is no whole answer: no connection, too slow, too long; or no key to send.
    pub async fn fetch(
        &self,
        ask: &Ask,
        host: Option<&str>,
        key: Option<&Secret>,
    ) -> Result<Answer, Fault> {
        let host = host.unwrap_or(ask.host).trim_end_matches('/');
        let mut request = self
            .client
            .request(ask.method.clone(), format!("{host}{}", ask.path))
            .header(header::ACCEPT, "application/json")
            .body(ask.body.clone());
        if let Some((name, value)) = key_header(&ask.key, key)? {
            request = request.header(name, value);
        }
        for (name, value) in &ask.headers {
            request = request.header(name, value);
        }
        match tokio::time::timeout(self.timeout, exchange(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(Fault::new(
                FaultClass::Timeout,
                format!(
                    "no whole answer in {}",
                    humantime::format_duration(self.timeout)
                ),
            )),
        }
    }
}

/// The header that carries the key, marked so that no library logs it.
fn key_header(
    place: &KeyPlace,
    key: Option<&Secret>,
) -> Result<Option<(header::HeaderName, HeaderValue)>, Fault> {
    let no_key = || Fault::new(FaultClass::Auth, "the account has no key");
    let (name, text) = match place {
        KeyPlace::Nowhere => return Ok(None),
        KeyPlace::Authorization(scheme) => {
            let key = key.ok_or_else(no_key)?.expose();
            (header::AUTHORIZATION, format!("{scheme} {key}"))
        }
        KeyPlace::Header(name) => (name.clone(), key.ok_or_else(no_key)?.expose().to_owned()),
    };
    let mut value = HeaderValue::try_from(text).map_err(|_| {
        Fault::new(
            FaultClass::Auth,
            "the key has characters that cannot be sent in a header",
        )
    })?;
    value.set_sensitive(true);
    Ok(Some((name, value)))
}

async fn exchange(request: reqwest::RequestBuilder) -> Result<Answer, Fault> {
    let mut response = request.send().await.map_err(fault)?;
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(fault)? {
        if body.len() + chunk.len() > BODY_BYTES_MAX {
            let detail = format!("the answer is longer than {BODY_BYTES_MAX} bytes");
            return Err(Fault::new(FaultClass::Error, detail));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer {
        status: response.status(),
        headers: std::mem::take(response.headers_mut()),
        body: body.freeze(),
    })
}

/// What went wrong on the way. The innermost cause is what a person can act on; the outer ones
/// name our own layers, and the URL.
fn fault(error: reqwest::Error) -> Fault {
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let detail = if error.is_connect() {
        format!("cannot connect: {cause}")
    } else {
        cause.to_string()
    };
    Fault::new(FaultClass::Error, detail)
}
