//! What a billing or price API is asked, and what it answers: plain values, so that whoever
//! understands a vendor's API needs no network, and whoever sends needs no vendor.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::fault::scrub;
use crate::secret::{REDACTED, Secret};

/// The longest text of a fault that is kept, in characters.
pub const DETAIL_CHARS_MAX: usize = 300;

/// One call of a billing or price API. It holds no secret: the sender puts the key where
/// [`KeyPlace`] says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The method.
    pub method: Method,
    /// The vendor's host as a URL without a final slash, unless the configuration names another.
    pub host: &'static str,
    /// The path, from its slash, with the query.
    pub path: String,
    /// Where the key goes.
    pub key: KeyPlace,
    /// Further headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body, of the type that a header names.
    pub body: Bytes,
}

/// Where the key of an account goes in a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyPlace {
    /// The call needs none.
    Nowhere,
    /// In `Authorization`, after this word: `Bearer`, `Key`, `Token`.
    Authorization(&'static str),
    /// In this header, alone.
    Header(HeaderName),
}

impl Ask {
    /// A `GET` with the key as a bearer token.
    pub fn get(host: &'static str, path: impl Into<String>) -> Ask {
        Ask {
            method: Method::GET,
            host,
            path: path.into(),
            key: KeyPlace::Authorization("Bearer"),
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }

    /// The same with the key in another place.
    #[must_use]
    pub fn key(self, key: KeyPlace) -> Ask {
        Ask { key, ..self }
    }

    /// The same with one more header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &'static str) -> Ask {
        self.headers.push((
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        ));
        self
    }

    /// A `POST` of JSON with the key as a bearer token.
    pub fn post_json(host: &'static str, path: impl Into<String>, body: &'static str) -> Ask {
        Ask {
            method: Method::POST,
            body: Bytes::from_static(body.as_bytes()),
            ..Ask::get(host, path)
        }
        .header("content-type", "application/json")
    }
}

/// What was answered, whatever the status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, whole.
    pub body: Bytes,
}

impl Answer {
    /// The body of a success; what any other status means otherwise, by the status alone.
    ///
    /// # Errors
    /// The class of the status, with what the vendor says of it, scrubbed.
    pub fn success(&self) -> Result<&[u8], Fault> {
        let class = match self.status.as_u16() {
            200..=299 => return Ok(&self.body),
            401 | 403 => FaultClass::Auth,
            404 | 405 | 410 => FaultClass::Unsupported,
            408 | 504 => FaultClass::Timeout,
            429 => FaultClass::RateLimited,
            _ => FaultClass::Error,
        };
        let status = self.status.as_u16();
        Err(Fault::new(
            class,
            match vendor_message(&self.body) {
                Some(message) => format!("HTTP {status}: {message}"),
                None => format!("HTTP {status}"),
            },
        ))
    }
}

/// What a vendor's error body says, at the places where vendors say it.
fn vendor_message(body: &[u8]) -> Option<String> {
    let document: serde_json::Value = serde_json::from_slice(body).ok()?;
    let text = [
        "/error/message",
        "/message",
        "/detail",
        "/detail/message",
        "/error",
        "/err_msg",
        "/errors/0",
        "/errors/0/message",
        "/title",
    ]
    .iter()
    .find_map(|place| document.pointer(place)?.as_str())?;
    Some(scrub(text))
}

/// Why a call brought nothing, by what is done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FaultClass {
    /// Give another key.
    Auth,
    /// Ask less often.
    RateLimited,
    /// Wait.
    Timeout,
    /// Do not ask: there is nothing.
    Unsupported,
    /// Look into it.
    Error,
}

impl FaultClass {
    /// The name in labels and rows.
    pub const fn as_str(self) -> &'static str {
        match self {
            FaultClass::Auth => "auth",
            FaultClass::RateLimited => "rate_limited",
            FaultClass::Timeout => "timeout",
            FaultClass::Unsupported => "unsupported",
            FaultClass::Error => "error",
        }
    }
}

/// Why a call brought nothing. Its text is one line without a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Fault {
    /// What is done about it.
    pub class: FaultClass,
    /// What happened.
    pub detail: String,
}

impl Fault {
    /// A fault of a class. What a vendor wrote must have been scrubbed.
    pub fn new(class: FaultClass, detail: impl Into<String>) -> Fault {
        Fault {
            class,
            detail: detail.into(),
        }
    }

    /// Scrubbed, without the key that was asked with, should a vendor quote it in an odd form.
    pub fn without(mut self, key: Option<&Secret>) -> Fault {
        self.detail = scrub(&self.detail);
        if let Some(key) = key.map(Secret::expose).filter(|key| !key.is_empty()) {
            self.detail = self.detail.replace(key, REDACTED);
        }
        self
    }

    /// With what helps: a key of the kind that is `wanted`, if this is about the key.
    pub fn helped(mut self, wanted: &str) -> Fault {
        if self.class == FaultClass::Auth {
            self.detail = format!("{}; wanted is {wanted}", self.detail);
        }
        self
    }

    /// An answer that is not what it should be.
    pub fn malformed(what: &str) -> Fault {
        Fault::new(
            FaultClass::Error,
            format!("the answer is not as documented: {what}"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &'static str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    #[test]
    fn a_status_has_a_class_and_the_vendors_words() {
        assert_eq!(answer(204, "").success(), Ok(&b""[..]));
        for (status, body, class, detail) in [
            (
                403,
                r#"{"error":{"message":"Only management keys can perform this operation","code":403}}"#,
                FaultClass::Auth,
                "HTTP 403: Only management keys can perform this operation",
            ),
            (429, "slow down", FaultClass::RateLimited, "HTTP 429"),
            (
                404,
                r#"{"detail":"The requested resource could not be found.","status":404}"#,
                FaultClass::Unsupported,
                "HTTP 404: The requested resource could not be found.",
            ),
            (504, "<html>", FaultClass::Timeout, "HTTP 504"),
            (302, "", FaultClass::Error, "HTTP 302"),
            (500, r#"{"error":7}"#, FaultClass::Error, "HTTP 500"),
        ] {
            let fault = answer(status, body).success().unwrap_err();
            assert_eq!((fault.class, fault.detail.as_str()), (class, detail));
        }
    }
}
