//! What is injected: the container with its volumes, and the variables that lead SDKs to it.
//!
//! The chart renders it once, for the injector, for its library template and for plain manifests,
//! so that a pod is the same whichever way the sidecar came into it.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

/// What is injected.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sidecar {
    /// The container, as a pod has it. Its name tells pods that have it already.
    pub(super) container: Map<String, Value>,
    /// The volumes that it mounts; a pod that has one of that name keeps its own.
    pub(super) volumes: Vec<Value>,
    /// The ports that it listens on in the pod.
    pub(super) ports: Vec<u16>,
    /// Whether it is a native sidecar, unless the pod says otherwise.
    pub(super) native: bool,
    /// The providers whose variables are set, unless the pod says otherwise; all if it is empty.
    pub(super) providers: Vec<String>,
    /// The variables that lead SDKs to it.
    pub(super) environment: Vec<Variable>,
}

/// A variable that leads the SDK of a provider to the sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Variable {
    /// The provider, as routes and configuration name it.
    pub(super) provider: String,
    pub(super) name: String,
    pub(super) value: String,
}

impl Sidecar {
    /// Reads what is injected.
    ///
    /// # Errors
    /// When it is not of that form.
    pub fn parse(json: &[u8]) -> io::Result<Sidecar> {
        let invalid = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
        let sidecar: Sidecar =
            serde_json::from_slice(json).map_err(|error| invalid(error.to_string()))?;
        for key in ["name", "image"] {
            if sidecar.text(key).is_none_or(str::is_empty) {
                return Err(invalid(format!("the container has no {key}")));
            }
        }
        if let Some(name) = sidecar
            .providers
            .iter()
            .find(|name| !sidecar.known_providers().contains(name.as_str()))
        {
            return Err(invalid(format!("no variable is for the provider {name:?}")));
        }
        Ok(sidecar)
    }

    /// Reads what is injected from a file.
    ///
    /// # Errors
    /// When the file cannot be read or does not hold, with its name.
    pub fn read(path: &Path) -> io::Result<Sidecar> {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        Sidecar::parse(&std::fs::read(path).map_err(named)?).map_err(named)
    }

    /// The container's name.
    pub(super) fn name(&self) -> &str {
        self.text("name").unwrap_or_default()
    }

    /// The providers that variables are for.
    pub(super) fn known_providers(&self) -> BTreeSet<&str> {
        let names = self.environment.iter();
        names.map(|variable| variable.provider.as_str()).collect()
    }

    /// The names of the container's own variables.
    pub(super) fn variables(&self) -> impl Iterator<Item = &str> {
        let own = self.container.get("env").and_then(Value::as_array);
        own.into_iter()
            .flatten()
            .filter_map(|variable| variable.get("name")?.as_str())
    }

    /// A quantity of the container's resources: of `requests` or `limits`, `cpu` or `memory`.
    pub(super) fn resource(&self, list: &str, resource: &str) -> Option<String> {
        let resources = self.container.get("resources")?;
        match resources.get(list)?.get(resource)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.container.get(key)?.as_str()
    }
}
