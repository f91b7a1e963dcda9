//! ElevenLabs' credits: what is left of the characters of the current period. Not money.
//!
//! Source: elevenlabs.io/docs, `GET /v1/user/subscription`, read 2026-11-24.

use super::exact::Exact;
use super::{BalanceApi, Domain, Next, Subject, document, prepaid};
use crate::ask::{Answer, Ask, Fault, KeyPlace};
use http::HeaderName;
use serde::Deserialize;

const HOST: &str = "https://api.elevenlabs.io";

/// ElevenLabs's billing API.
pub(super) struct ElevenLabs;

#[derive(Deserialize)]
struct Document {
    character_count: Exact,
    character_limit: Exact,
}

impl BalanceApi for ElevenLabs {
    fn domains(&self) -> &'static [Domain] {
        &[Domain {
            name: "elevenlabs.io",
            host: HOST,
            currency: "credits",
        }]
    }

    fn key(&self) -> &'static str {
        "a key with the permission user_read"
    }

    fn first(&self, _: &Subject<'_>) -> Result<Ask, Fault> {
        Ok(Ask::get(HOST, "/v1/user/subscription")
            .key(KeyPlace::Header(HeaderName::from_static("xi-api-key"))))
    }

    fn read(&self, subject: &Subject<'_>, _: &Ask, answer: &Answer) -> Result<Next, Fault> {
        let document: Document = document(answer)?;
        Ok(prepaid(
            subject.currency,
            document
                .character_limit
                .0
                .saturating_sub(document.character_count.0),
        ))
    }
}
