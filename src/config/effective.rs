//! The effective configuration, as `taffrail config` prints it: every value with its origin, and
//! no secret.

use serde_json::{Map, Value, json};

use super::{KeyPath, Loaded, Origin, REDACTED, reference};

impl Loaded {
    /// The configuration as TOML, each value followed by a comment with its origin. What has no
    /// value is a comment too.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        self.push_table(&mut text, &KeyPath::new([""; 0]), &self.redacted());
        text.trim_start().to_owned()
    }

    /// The configuration as a JSON object: key, then value and origin.
    pub fn to_json(&self) -> Value {
        let mut entries = Map::new();
        self.collect(&mut entries, &KeyPath::new([""; 0]), &self.redacted());
        Value::Object(entries)
    }

    /// The values, with secrets replaced.
    fn redacted(&self) -> Value {
        let mut values = serde_json::to_value(&self.config).unwrap_or_default();
        if let Some(Value::String(url)) = values.pointer_mut("/store/url") {
            *url = redact_url(url);
        }
        if let Some(pepper @ Value::String(_)) = values.pointer_mut("/meter/fingerprint_pepper") {
            *pepper = Value::from(REDACTED);
        }
        values
    }

    fn push_table(&self, text: &mut String, path: &KeyPath, table: &Value) {
        let members = members(path, table);
        for (name, value) in &members {
            let origin = self.origin(&path.join(name));
            match value {
                Value::Null => text.push_str(&format!("# {name} is unset\n")),
                Value::Object(_) => {}
                Value::Array(list) if !list.is_empty() => {}
                value => text.push_str(&format!("{} = {value}  # {origin}\n", toml_key(name))),
            }
        }
        for (name, value) in &members {
            let path = path.join(name);
            let heading = heading(&path);
            match value {
                Value::Object(_) => {
                    text.push_str(&format!("\n[{heading}]\n"));
                    self.push_table(text, &path, value);
                }
                Value::Array(list) => {
                    for (index, element) in list.iter().enumerate() {
                        text.push_str(&format!("\n[[{heading}]]\n"));
                        self.push_table(text, &path.join(index.to_string()), element);
                    }
                }
                _ => {}
            }
        }
    }

    fn collect(&self, entries: &mut Map<String, Value>, path: &KeyPath, value: &Value) {
        match value {
            Value::Object(table) if !table.is_empty() => {
                for (name, value) in members(path, value) {
                    self.collect(entries, &path.join(name), &value);
                }
            }
            Value::Array(list) if !list.is_empty() => {
                for (index, value) in list.iter().enumerate() {
                    self.collect(entries, &path.join(index.to_string()), value);
                }
            }
            value => {
                let origin = match self.origin(path) {
                    Origin::Default => json!({ "kind": "default" }),
                    Origin::File { path, line } => {
                        json!({ "kind": "file", "path": path, "line": line })
                    }
                    Origin::Env(variable) => json!({ "kind": "env", "variable": variable }),
                    Origin::Flag(flag) => json!({ "kind": "flag", "flag": flag }),
                    Origin::SecretFile(path) => json!({ "kind": "secret_file", "path": path }),
                };
                let entry = json!({ "value": value, "origin": origin });
                entries.insert(path.to_string(), entry);
            }
        }
    }
}

/// The members of a table, in the order of the declaration where there is one; a key without a
/// value is there as null.
fn members(path: &KeyPath, table: &Value) -> Vec<(String, Value)> {
    let Value::Object(table) = table else {
        return Vec::new();
    };
    let names = reference::names(path.steps());
    if names.is_empty() {
        let members = table.iter();
        return members
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
    }
    let member = |name: &&str| {
        let value = table.get(*name).cloned().unwrap_or_default();
        ((*name).to_owned(), value)
    };
    names.iter().map(member).collect()
}

/// A table's heading: its path without the numbers of list elements.
fn heading(path: &KeyPath) -> String {
    let is_name = |step: &&String| !step.bytes().all(|byte| byte.is_ascii_digit());
    let names = path.steps().iter().filter(is_name);
    names
        .map(|name| toml_key(name))
        .collect::<Vec<_>>()
        .join(".")
}

fn toml_key(name: &str) -> String {
    toml_edit::Key::new(name).display_repr().into_owned()
}

/// A URL without its password, wherever it is written in it.
///
/// The password may itself hold `@`, `/` or `?`, so everything from the first colon after the
/// scheme to the last `@` goes.
pub(super) fn redact_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return REDACTED.to_owned();
    };
    let rest = match rest.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((name, _password)) => format!("{name}:{REDACTED}@{host}"),
            None => rest.to_owned(),
        },
        None => rest.to_owned(),
    };
    let (place, query) = match rest.split_once('?') {
        Some((place, query)) => (place, Some(query)),
        None => (rest.as_str(), None),
    };
    let mut redacted = format!("{scheme}://{place}");
    for (index, parameter) in query.into_iter().flat_map(|q| q.split('&')).enumerate() {
        redacted.push(if index == 0 { '?' } else { '&' });
        match parameter.split_once('=') {
            Some((name, _)) if name.to_ascii_lowercase().contains("password") => {
                redacted.push_str(&format!("{name}={REDACTED}"));
            }
            _ => redacted.push_str(parameter),
        }
    }
    redacted
}

#[cfg(test)]
mod tests {
    use super::redact_url;

    #[test]
    fn a_url_is_shown_without_its_password() {
        for (url, shown) in [
            (
                "sqlite://./taffrail-data/taffrail.db",
                "sqlite://./taffrail-data/taffrail.db",
            ),
            (
                "postgres://meter:hunter2@db:5432/taffrail?sslmode=verify-full",
                "postgres://meter:[redacted]@db:5432/taffrail?sslmode=verify-full",
            ),
            (
                "postgres://meter@db/taffrail",
                "postgres://meter@db/taffrail",
            ),
            (
                "postgres://u:p@ss/w?rd@db/x",
                "postgres://u:[redacted]@db/x",
            ),
            (
                "postgres://db/x?user=u&password=p",
                "postgres://db/x?user=u&password=[redacted]",
            ),
            ("hunter2", "[redacted]"),
        ] {
            assert_eq!(redact_url(url), shown);
        }
    }
}
