//! Reads what a request asks, as JSON or as a form, in constant memory: a prompt or an image of
//! 20 MB is walked over and kept nowhere.

use std::sync::LazyLock;

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};

use super::object::word;
use super::{NAME_BYTES_MAX, RequestFacts, RequestHead, RequestReader, StreamOptions, input};
use crate::record::Operation;
use crate::wire::json::Step::{self, Each, Key};
use crate::wire::json::{Found, Kind, Path, Picker, Selector, Status, Want};
use crate::wire::multipart::FieldReader;

/// A reader for the body of a call of that operation.
pub(crate) fn reader(operation: Operation, head: RequestHead<'_>) -> Box<dyn RequestReader> {
    let body = if operation.is_control() || is_encoded(head.headers) {
        Body::Opaque
    } else {
        Body::of(operation, head.headers)
    };
    Box::new(BodyReader {
        body,
        facts: Facts {
            operation,
            facts: RequestFacts::default(),
            size: None,
            quality: None,
        },
    })
}

/// Clients hardly ever compress requests, and then the facts are in the response.
fn is_encoded(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_ENCODING)
        .is_some_and(|encoding| encoding != "identity")
}

struct BodyReader {
    body: Body,
    facts: Facts,
}

enum Body {
    Json(Picker<'static>),
    Form(FieldReader),
    Opaque,
}

impl Body {
    fn of(operation: Operation, headers: &HeaderMap) -> Body {
        let content_type = headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        match content_type {
            Some(form) if is_form(form) => {
                FieldReader::new(form, FORM_FIELDS).map_or(Body::Opaque, Body::Form)
            }
            // Some clients send JSON without a type or with that of a plain form.
            _ if operation == Operation::Speech => Body::Json(Picker::new(&SPEECH)),
            _ if operation == Operation::Video => Body::Json(Picker::new(&VIDEO)),
            _ => Body::Json(Picker::new(&COMMON)),
        }
    }
}

fn is_form(content_type: &str) -> bool {
    const FORM: &str = "multipart/form-data";
    content_type
        .get(..FORM.len())
        .is_some_and(|essence| essence.eq_ignore_ascii_case(FORM))
}

impl RequestReader for BodyReader {
    fn push(&mut self, bytes: &[u8]) {
        let BodyReader { body, facts } = self;
        match body {
            Body::Json(picker) => {
                picker.push(bytes, &mut |index, found| facts.json_found(index, found));
            }
            Body::Form(reader) => reader.push(bytes, &mut |index, value| {
                facts.field_found(index, value);
            }),
            Body::Opaque => {}
        }
    }

    fn facts(&self) -> &RequestFacts {
        &self.facts.facts
    }

    fn end(&mut self) {
        let BodyReader { body, facts } = self;
        facts.facts.complete = match body {
            Body::Json(picker) => {
                let status = picker.end(&mut |index, found| facts.json_found(index, found));
                status == Status::Complete
            }
            Body::Form(reader) => reader.is_complete(),
            Body::Opaque => false,
        };
    }
}

#[derive(Debug)]
struct Facts {
    operation: Operation,
    facts: RequestFacts,
    size: Option<String>,
    quality: Option<String>,
}

#[derive(Debug, Clone, Copy)]
enum Field {
    Model,
    Models,
    Stream,
    StreamOptions,
    IncludeUsage,
    ServiceTier,
    Count,
    Size,
    Quality,
    Input,
}

/// The fields of the paths, by index; the last is of speech alone.
const FIELDS: [Field; 10] = [
    Field::Model,
    Field::Models,
    Field::Stream,
    Field::StreamOptions,
    Field::IncludeUsage,
    Field::ServiceTier,
    Field::Count,
    Field::Size,
    Field::Quality,
    Field::Input,
];

const fn path(steps: &'static [Step], want: Want) -> Path {
    Path { steps, want }
}

const MODEL: Path = path(&[Key("model")], Want::Text(NAME_BYTES_MAX));
const MODELS: Path = path(&[Key("models"), Each], Want::Text(NAME_BYTES_MAX));
const STREAM: Path = path(&[Key("stream")], Want::Text(8));
const STREAM_OPTIONS: Path = path(&[Key("stream_options")], Want::Kind);
const INCLUDE_USAGE: Path = path(
    &[Key("stream_options"), Key("include_usage")],
    Want::Text(8),
);
const SERVICE_TIER: Path = path(&[Key("service_tier")], Want::Text(NAME_BYTES_MAX));
const COUNT: Path = path(&[Key("n")], Want::Text(16));
const SIZE: Path = path(&[Key("size")], Want::Text(32));
const QUALITY: Path = path(&[Key("quality")], Want::Text(32));
const INPUT: Path = path(&[Key("input")], Want::Chars);

static COMMON: LazyLock<Selector> = LazyLock::new(|| Selector::new(PATHS));
const PATHS: &[Path] = &[
    MODEL,
    MODELS,
    STREAM,
    STREAM_OPTIONS,
    INCLUDE_USAGE,
    SERVICE_TIER,
    COUNT,
    SIZE,
    QUALITY,
];
static SPEECH: LazyLock<Selector> = LazyLock::new(|| Selector::new(SPEECH_PATHS));
const SPEECH_PATHS: &[Path] = &[
    MODEL,
    MODELS,
    STREAM,
    STREAM_OPTIONS,
    INCLUDE_USAGE,
    SERVICE_TIER,
    COUNT,
    SIZE,
    QUALITY,
    INPUT,
];

/// Of a video: what others have, and after it what its price depends on.
static VIDEO: LazyLock<Selector> = LazyLock::new(|| {
    let mut paths = PATHS.to_vec();
    paths.extend(input::paths(&input::IN_BODY));
    Selector::new(&paths)
});

/// The fields of a form, and what they mean by index.
static FORM_FIELDS: &[&str] = &["model", "stream", "service_tier", "n", "size", "quality"];
const FORM_MEANINGS: [Field; 6] = [
    Field::Model,
    Field::Stream,
    Field::ServiceTier,
    Field::Count,
    Field::Size,
    Field::Quality,
];

impl Facts {
    fn json_found(&mut self, index: usize, found: Found<'_>) {
        if self.operation == Operation::Video
            && let Some(index) = index.checked_sub(PATHS.len())
        {
            return input::found(&mut self.facts.qualifiers, &input::IN_BODY, index, &found);
        }
        let Some(field) = FIELDS.get(index) else {
            return;
        };
        match (field, found) {
            (Field::StreamOptions, Found::Kind { kind, .. }) => {
                // Null is as good as absent.
                self.facts.stream_options = (kind != Kind::Null).then_some(StreamOptions {
                    include_usage: None,
                });
            }
            (Field::Input, Found::Count(characters)) => self.facts.characters = Some(characters),
            (Field::IncludeUsage, Found::Text(text)) => {
                if let Some(options) = &mut self.facts.stream_options {
                    options.include_usage = boolean(text);
                }
            }
            (Field::Stream, Found::Text(text)) => self.facts.stream = boolean(text),
            (field, Found::Text(text)) => {
                if let Some(value) = word(text) {
                    self.value_found(*field, &value);
                }
            }
            _ => {}
        }
    }

    fn field_found(&mut self, index: usize, value: &[u8]) {
        let Ok(value) = std::str::from_utf8(value) else {
            return;
        };
        match FORM_MEANINGS.get(index) {
            Some(Field::Stream) => self.facts.stream = boolean(value.as_bytes()),
            Some(field) if !value.is_empty() && value.len() <= NAME_BYTES_MAX => {
                self.value_found(*field, value);
            }
            _ => {}
        }
    }

    fn value_found(&mut self, field: Field, value: &str) {
        let facts = &mut self.facts;
        match field {
            Field::Model => facts.model = Some(value.to_owned()),
            // The first of a list of fallbacks holds where no model is named.
            Field::Models if facts.model.is_none() => facts.model = Some(value.to_owned()),
            Field::ServiceTier => facts.service_tier = Some(value.to_owned()),
            Field::Count if self.operation == Operation::Image => {
                facts.images = value.parse().ok();
            }
            Field::Size => {
                self.size = Some(value.to_owned());
                self.variant_found();
            }
            Field::Quality => {
                self.quality = Some(value.to_owned());
                self.variant_found();
            }
            _ => {}
        }
    }

    /// Size and quality as `1024x1024/hd`; without a size the vendor's default is meant, and
    /// with neither there is no variant.
    fn variant_found(&mut self) {
        if !matches!(self.operation, Operation::Image | Operation::Video) {
            return;
        }
        let size = self.size.as_deref().unwrap_or("default");
        self.facts.image_variant = Some(match &self.quality {
            Some(quality) => format!("{size}/{quality}"),
            None => size.to_owned(),
        });
    }
}

/// A boolean as JSON, or as forms write it.
fn boolean(text: &[u8]) -> Option<bool> {
    match text {
        b"true" | b"True" | b"1" => Some(true),
        b"false" | b"False" | b"0" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, Method};

    fn facts(
        operation: Operation,
        content_type: Option<&'static str>,
        body: &[u8],
    ) -> RequestFacts {
        let mut headers = HeaderMap::new();
        if let Some(content_type) = content_type {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        let head = RequestHead {
            method: &Method::POST,
            path: "/v1/x",
            query: None,
            headers: &headers,
        };
        let mut reader = reader(operation, head);
        for byte in body {
            reader.push(std::slice::from_ref(byte));
        }
        reader.end();
        reader.facts().clone()
    }

    #[test]
    fn a_chat_request_is_read_without_its_type() {
        let body = br#" {"messages":[{"model":"not this"}],"model":"m","stream":true,
            "stream_options":{"include_usage":false},"service_tier":"flex","n":2}"#;
        assert_eq!(
            facts(Operation::Chat, None, body),
            RequestFacts {
                model: Some("m".into()),
                stream: Some(true),
                stream_options: Some(StreamOptions {
                    include_usage: Some(false)
                }),
                service_tier: Some("flex".into()),
                complete: true,
                ..RequestFacts::default()
            }
        );
    }

    #[test]
    fn a_null_is_as_good_as_absent() {
        let body = br#"{"model":null,"stream":null,"stream_options":null,"service_tier":null}"#;
        assert_eq!(
            facts(Operation::Chat, Some("application/json"), body),
            RequestFacts {
                complete: true,
                ..RequestFacts::default()
            }
        );
    }

    #[test]
    fn a_model_wins_over_its_fallbacks_wherever_it_stands() {
        for body in [
            &br#"{"models":["a","b"],"model":"m"}"#[..],
            br#"{"model":"m","models":["a","b"]}"#,
        ] {
            let facts = facts(Operation::Chat, Some("application/json"), body);
            assert_eq!(facts.model.as_deref(), Some("m"));
        }
        let only = br#"{"models":["a","b"]}"#;
        let facts = facts(Operation::Chat, Some("application/json"), only);
        assert_eq!(facts.model.as_deref(), Some("a"));
    }

    #[test]
    fn speech_counts_characters_and_keeps_none() {
        let body = r#"{"input":"zwölf 🎉","model":"tts-1"}"#;
        let facts = facts(Operation::Speech, Some("application/json"), body.as_bytes());
        assert_eq!(facts.characters, Some(7));
    }

    #[test]
    fn a_truncated_or_foreign_body_is_not_complete() {
        for body in [&b"{\"model\":\"m\""[..], b"model=m", b""] {
            assert!(!facts(Operation::Chat, Some("application/json"), body).complete);
        }
    }
}
