//! What a pod asks of its sidecar, by annotations of its own.
//!
//! Pure: annotations in; what holds of them out, and a warning for each that does not. What the
//! sidecar would refuse at its start, or Kubernetes at the pod's creation, does not get past here.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::quantity;
use super::sidecar::Sidecar;
use crate::metrics::labels::{ATTRIBUTION_LABELS_MAX, LABEL_BYTES_MAX, check_attribution_label};
use crate::store::Dimension;

/// What every annotation and label of ours starts with.
pub const PREFIX: &str = "taffrail.dev/";

/// The annotation that says what the injector did.
pub(super) const STATUS: &str = "taffrail.dev/status";

/// What sets a fixed attribution label of the sidecar.
pub(super) const STATIC_VARIABLE: &str = "TAFFRAIL_ATTRIBUTION__STATIC__";
const ATTRIBUTION_VARIABLE: &str = "TAFFRAIL_ATTRIBUTION__";

/// The annotations for resources, and what each sets.
const RESOURCES: [(&str, &str, &str); 4] = [
    ("cpu-request", "requests", "cpu"),
    ("cpu-limit", "limits", "cpu"),
    ("memory-request", "requests", "memory"),
    ("memory-limit", "limits", "memory"),
];

const ACCEPTED: &str = "accepted are providers, native, image, attribution, cpu-request, \
                        cpu-limit, memory-request and memory-limit";

/// What a pod asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    /// The providers whose SDKs are led to the sidecar.
    pub(super) providers: Option<Vec<String>>,
    pub(super) native: Option<bool>,
    pub(super) image: Option<String>,
    /// Quantities by list (`requests`, `limits`) and resource.
    pub(super) resources: BTreeMap<(&'static str, &'static str), String>,
    /// Fixed attribution labels by their variables.
    pub(super) attribution: BTreeMap<String, String>,
}

/// Reads the annotations of a pod.
pub(super) fn read(annotations: &Map<String, Value>, sidecar: &Sidecar) -> (Wishes, Vec<String>) {
    let mut reader = Reader {
        sidecar,
        wishes: Wishes::default(),
        warnings: Vec::new(),
    };
    for (key, value) in annotations {
        let Some(name) = key.strip_prefix(PREFIX) else {
            continue;
        };
        let value = value.as_str().unwrap_or_default().trim();
        if let Err(problem) = reader.annotation(name, value) {
            reader
                .warnings
                .push(format!("{key} is left out: {problem}"));
        }
    }
    reader.mend_resources();
    (reader.wishes, reader.warnings)
}

struct Reader<'a> {
    sidecar: &'a Sidecar,
    wishes: Wishes,
    warnings: Vec<String>,
}

impl Reader<'_> {
    fn annotation(&mut self, name: &str, value: &str) -> Result<(), String> {
        if let Some((_, list, resource)) = RESOURCES.iter().find(|(own, ..)| *own == name) {
            if quantity::parse(value).is_none() {
                return Err(format!("{value:?} is not a quantity, such as 100m or 64Mi"));
            }
            let resources = &mut self.wishes.resources;
            resources.insert((list, resource), value.to_owned());
            return Ok(());
        }
        match name {
            "status" => {}
            "native" => match value {
                "true" => self.wishes.native = Some(true),
                "false" => self.wishes.native = Some(false),
                _ => return Err(format!("{value:?} is not true or false")),
            },
            "image" if is_image(value) => self.wishes.image = Some(value.to_owned()),
            "image" => return Err(format!("{value:?} is not the name of an image")),
            "providers" => return self.providers(value),
            "attribution" => return self.attribution(value),
            // Of the label of this name, which people take for an annotation.
            "inject" => return Err("it is a label of the pod, not an annotation".to_owned()),
            _ => return Err(format!("it is unknown; {ACCEPTED}")),
        }
        Ok(())
    }

    fn providers(&mut self, value: &str) -> Result<(), String> {
        let known = self.sidecar.known_providers();
        let names = value.split(',').map(str::trim);
        let (names, unknown): (Vec<&str>, Vec<&str>) = names
            .filter(|name| !name.is_empty())
            .partition(|name| known.contains(name));
        if !names.is_empty() {
            let names = names.into_iter().map(str::to_owned).collect();
            self.wishes.providers = Some(names);
        } else if unknown.is_empty() {
            return Err("it names no provider".to_owned());
        }
        if unknown.is_empty() {
            return Ok(());
        }
        let known: Vec<&str> = known.into_iter().collect();
        let (unknown, known) = (unknown.join(", "), known.join(", "));
        Err(format!(
            "{unknown}: no variable is known; known are {known}"
        ))
    }

    fn attribution(&mut self, value: &str) -> Result<(), String> {
        let mut problems = Vec::new();
        let pairs = value.split(',').map(str::trim);
        for pair in pairs.filter(|pair| !pair.is_empty()) {
            match self.label(pair) {
                Ok((variable, value)) => {
                    self.wishes.attribution.insert(variable, value);
                }
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems.join("; "))
        }
    }

    /// The variable and value for `label=value`.
    fn label(&self, pair: &str) -> Result<(String, String), String> {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(format!("{pair:?} is not label=value"));
        };
        let (name, value) = (name.trim(), value.trim());
        check_attribution_label(name).map_err(|error| format!("{name:?} {error}"))?;
        // A variable tells neither case nor where a name with __ ends.
        if name.contains("__") || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(format!("{name:?} has capitals or __ in it"));
        }
        if Dimension::NAMED.iter().any(|own| own.as_str() == name) {
            return Err(format!("{name:?} is a dimension of usage already"));
        }
        if value.is_empty() || value.len() > LABEL_BYTES_MAX {
            return Err(format!(
                "{name:?} needs a value of 1 to {LABEL_BYTES_MAX} bytes"
            ));
        }
        let upper = name.to_ascii_uppercase();
        let variable = format!("{STATIC_VARIABLE}{upper}");
        let header = format!("{ATTRIBUTION_VARIABLE}HEADERS__{upper}");
        if self.sidecar.variables().any(|own| own == header) {
            return Err(format!("{name:?} is given by a header of each request"));
        }
        let own = self.sidecar.variables();
        let own = own.filter(|name| name.starts_with(ATTRIBUTION_VARIABLE));
        let others =
            own.filter(|own| *own != variable && !self.wishes.attribution.contains_key(*own));
        let wished = self
            .wishes
            .attribution
            .keys()
            .filter(|own| **own != variable);
        if others.count() + wished.count() >= ATTRIBUTION_LABELS_MAX {
            return Err(format!(
                "{name:?} is one label more than {ATTRIBUTION_LABELS_MAX}"
            ));
        }
        Ok((variable, value.to_owned()))
    }

    /// A request beyond its limit is a pod that Kubernetes refuses: where a wish makes it one, the
    /// other side follows if the pod says nothing of it, and the wish goes otherwise.
    fn mend_resources(&mut self) {
        for resource in ["cpu", "memory"] {
            let wished = |list| self.wishes.resources.get(&(list, resource)).cloned();
            let (request, limit) = (wished("requests"), wished("limits"));
            let effective = |wish: &Option<String>, list: &str| {
                let text = wish
                    .clone()
                    .or_else(|| self.sidecar.resource(list, resource))?;
                Some((quantity::parse(&text)?, text))
            };
            let (Some(least), Some(most)) =
                (effective(&request, "requests"), effective(&limit, "limits"))
            else {
                continue;
            };
            if least.0 <= most.0 {
                continue;
            }
            let resources = &mut self.wishes.resources;
            match (request, limit) {
                (Some(_), None) => {
                    resources.insert(("limits", resource), least.1);
                }
                (None, Some(_)) => {
                    resources.insert(("requests", resource), most.1);
                }
                _ => {
                    resources.remove(&("requests", resource));
                    resources.remove(&("limits", resource));
                    self.warnings.push(format!(
                        "{PREFIX}{resource}-request and -limit are left out: {} is more than {}",
                        least.1, most.1
                    ));
                }
            }
        }
    }
}

/// Whether a text is a reference to an image: `[host[:port]/]path[:tag][@sha256:digest]`.
///
/// Source: OCI distribution specification, "Pulling manifests", and the reference grammar of
/// github.com/distribution/reference.
fn is_image(text: &str) -> bool {
    const CHARS_MAX: usize = 255;
    const TAG_CHARS_MAX: usize = 128;
    let is_digest = |digest: &str| {
        digest.strip_prefix("sha256:").is_some_and(|hex| {
            hex.len() == 64
                && hex
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        })
    };
    let (text, digest) = match text.split_once('@') {
        Some((text, digest)) => (text, Some(digest)),
        None => (text, None),
    };
    let (name, tag) = match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (text, None),
    };
    let is_tag = |tag: &str| {
        let is_tag_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        (1..=TAG_CHARS_MAX).contains(&tag.len())
            && tag.bytes().all(is_tag_byte)
            && !tag.starts_with(['.', '-'])
    };
    let is_part = |part: &str| {
        let is_edge =
            |byte: Option<u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        is_edge(part.bytes().next())
            && is_edge(part.bytes().last())
            && part
                .bytes()
                .all(|b| is_edge(Some(b)) || b"._-".contains(&b))
    };
    let is_host = |part: &str| {
        let (host, port) = part.split_once(':').unwrap_or((part, "0"));
        let is_host_byte = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
        !host.is_empty() && host.bytes().all(is_host_byte) && port.parse::<u16>().is_ok()
    };
    let is_name = match name.split_once('/') {
        Some((first, rest)) => (is_part(first) || is_host(first)) && rest.split('/').all(is_part),
        None => is_part(name),
    };
    name.len() <= CHARS_MAX && is_name && tag.is_none_or(is_tag) && digest.is_none_or(is_digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_told_from_other_texts() {
        let digest = format!("a/b@sha256:{}", "0".repeat(64));
        for image in [
            "taffrail",
            "taffrail:0.1.0",
            "example.com/team/taffrail:v1.2_3-rc.1",
            "Registry.example:5000/taffrail",
            &digest,
        ] {
            assert!(is_image(image), "{image}");
        }
        for text in [
            "",
            " taffrail",
            "taffrail:",
            "Taffrail",
            "a//b",
            "a/b@sha256:12",
            "a b",
            "example.com:port/taffrail",
            "-a",
            "taffrail:.tag",
        ] {
            assert!(!is_image(text), "{text}");
        }
    }
}
