//! What keys there are: their types, defaults, variables and meaning, read from the schema that
//! the types' own doc comments make. Problems and docs/configuration.md speak from it.

use std::fmt::Write;
use std::str::FromStr as _;
use std::sync::LazyLock;
use std::time::Duration;

use bytesize::ByteSize;
use figment::error::Kind as ErrorKind;
use figment::value::{Dict, Value as Tree};
use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::{Config, ENV_PREFIX, KeyPath};

/// The step that stands for any name in a table that the user fills.
const ANY_NAME: &str = "<name>";
/// The step that stands for any element of a list.
const ANY_ELEMENT: &str = "[]";

/// The member of a schema with which a part says what a key accepts, where the type does not.
const ACCEPTED: &str = "x-accepted";

/// Keys whose values are shown nowhere.
const SECRETS: &[&[&str]] = &[
    &["store", "url"],
    &["meter", "fingerprint_pepper"],
    &["accounts", ANY_ELEMENT, "api_key"],
    &["accounts", ANY_ELEMENT, "admin_key"],
];

static KEYS: LazyLock<Vec<Key>> = LazyLock::new(keys);

/// A key, or a table of keys.
#[derive(Debug, Clone)]
pub(super) struct Key {
    path: Vec<String>,
    /// What values it takes.
    pub(super) kind: Kind,
    default: Option<Value>,
    /// What is accepted, in the part's own words.
    accepted: Option<String>,
    description: String,
}

/// What values a key takes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Table,
    /// A table that the user fills, of texts or of tables.
    Map,
    List,
    Choice(Vec<String>),
    Bool,
    /// A whole number from, and to, these limits.
    Integer(u64, u64),
    Duration,
    Size,
    Address,
    Url,
    Path,
    Cron,
    Number,
    Time,
    Text,
}

impl Kind {
    /// The kind in a sentence, with its article.
    pub(super) fn noun(&self) -> &'static str {
        match self {
            Kind::Table | Kind::Map => "a table",
            Kind::List => "a list of tables",
            Kind::Choice(_) => "one of the choices",
            Kind::Bool => "true or false",
            Kind::Integer(..) => "a whole number in range",
            Kind::Duration => "a duration",
            Kind::Size => "a size",
            Kind::Address => "an address with a port",
            Kind::Url => "a URL",
            Kind::Path => "a path",
            Kind::Cron => "a cron expression",
            Kind::Number => "a number",
            Kind::Time => "a date or a timestamp",
            Kind::Text => "text",
        }
    }

    /// Whether one value fits, instead of a table or list.
    pub(super) fn is_scalar(&self) -> bool {
        !matches!(self, Kind::Table | Kind::Map | Kind::List)
    }

    /// The kind in the reference.
    fn label(&self) -> String {
        match self {
            Kind::Table => "table".to_owned(),
            Kind::Map => "table of names".to_owned(),
            Kind::List => "list of tables".to_owned(),
            Kind::Choice(choices) => {
                let quoted: Vec<String> = choices.iter().map(|c| format!("`\"{c}\"`")).collect();
                quoted.join(" or ")
            }
            Kind::Bool => "boolean".to_owned(),
            Kind::Integer(..) => "integer".to_owned(),
            Kind::Cron => "cron expression".to_owned(),
            Kind::Number => "number".to_owned(),
            Kind::Time => "date or timestamp".to_owned(),
            Kind::Url => "URL".to_owned(),
            Kind::Duration => "duration".to_owned(),
            Kind::Size => "size".to_owned(),
            Kind::Address => "address".to_owned(),
            Kind::Path => "path".to_owned(),
            Kind::Text => "text".to_owned(),
        }
    }
}

impl Key {
    /// What is accepted, in a sentence of a problem.
    pub(super) fn accepted(&self) -> String {
        if let Some(accepted) = &self.accepted {
            return accepted.clone();
        }
        let form = match &self.kind {
            Kind::Choice(choices) => {
                let quoted: Vec<String> = choices.iter().map(|c| format!("{c:?}")).collect();
                return quoted.join(" or ");
            }
            Kind::Duration => "a number with a unit (ms, s, m, h, d, y)",
            Kind::Size => "a number of bytes, or one with a unit (KiB, MiB, GiB, kB, MB, GB)",
            Kind::Address => "an IP address and a port",
            Kind::Time => "a date or a timestamp in quotes, such as \"2026-11-01\"",
            Kind::List => "a list of tables, as [[accounts]] in the file or [{…}] in a variable",
            Kind::Integer(least, most) => {
                return match *most {
                    u64::MAX => format!("a whole number from {least}"),
                    most => format!("a whole number from {least} to {most}"),
                };
            }
            kind => kind.noun(),
        };
        match &self.default {
            Some(Value::String(default)) if !default.is_empty() => {
                format!("{form}, such as {default:?}")
            }
            _ => form.to_owned(),
        }
    }

    /// The variable that sets the key; `None` for members of a list, which is set as a whole.
    fn variable(&self) -> Option<String> {
        let steps: Option<Vec<String>> = self
            .path
            .iter()
            .map(|step| (step != ANY_ELEMENT).then(|| step.to_ascii_uppercase()))
            .collect();
        Some(format!("{ENV_PREFIX}{}", steps?.join("__")))
    }

    fn matches(&self, steps: &[String]) -> bool {
        let is_match =
            |(own, step): (&String, &String)| own == step || own == ANY_NAME || own == ANY_ELEMENT;
        self.path.len() == steps.len() && self.path.iter().zip(steps).all(is_match)
    }
}

/// The key at a path.
pub(super) fn find(steps: &[String]) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.matches(steps))
}

/// Whether a key takes one of a few names.
pub(super) fn is_choice(steps: &[String]) -> bool {
    find(steps).is_some_and(|key| matches!(key.kind, Kind::Choice(_)))
}

/// Whether a key's value must be shown nowhere.
pub(super) fn is_secret(steps: &[String]) -> bool {
    SECRETS.iter().any(|secret| {
        secret.len() == steps.len()
            && secret
                .iter()
                .zip(steps)
                .all(|(own, step)| own == step || *own == ANY_ELEMENT)
    })
}

/// The variable that was probably meant by one with other underscores.
pub(super) fn variable_like(name: &str) -> Option<String> {
    let words = |name: &str| -> Vec<String> {
        let words = name.split('_').filter(|word| !word.is_empty());
        words.map(str::to_ascii_uppercase).collect()
    };
    KEYS.iter()
        .filter_map(Key::variable)
        .find(|variable| variable != name && words(variable) == words(name))
}

/// The names in the table at a path, in the order of the declaration.
pub(super) fn names(steps: &[String]) -> &'static [&'static str] {
    // Every table refuses unknown keys, and in doing so names the known ones.
    let unknown = Tree::from(Dict::from([("?".to_owned(), Tree::from(0_u8))]));
    let tree = steps.iter().rev().fold(unknown, |below, step| {
        if step == ANY_ELEMENT || step.bytes().all(|byte| byte.is_ascii_digit()) {
            Tree::from(vec![below])
        } else {
            Tree::from(Dict::from([(step.clone(), below)]))
        }
    });
    match tree.deserialize::<Config>() {
        Err(figment::Error {
            kind: ErrorKind::UnknownField(_, names),
            ..
        }) => names,
        _ => &[],
    }
}

/// The JSON Schema of the configuration.
pub fn json_schema() -> Value {
    SchemaSettings::draft2020_12()
        .with(|settings| settings.inline_subschemas = true)
        .into_generator()
        .into_root_schema_for::<Config>()
        .to_value()
}

/// Every key and table, in the order of the declaration.
fn keys() -> Vec<Key> {
    let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
    let mut keys = Vec::new();
    collect(&json_schema(), Some(&defaults), &[], &mut keys);
    keys
}

/// Adds what a schema describes, and everything below it.
fn collect(schema: &Value, default: Option<&Value>, path: &[String], keys: &mut Vec<Key>) {
    let kind = kind_of(schema, default, path);
    if !path.is_empty() {
        keys.push(Key {
            path: path.to_vec(),
            kind,
            default: default.filter(|default| !default.is_null()).cloned(),
            accepted: schema
                .get(ACCEPTED)
                .and_then(Value::as_str)
                .map(str::to_owned),
            description: description(schema),
        });
    }
    let parent_text = schema.get("description");
    let below = |step: &str| [path, &[step.to_owned()]].concat();
    if let Some(properties) = schema.get("properties") {
        for name in names(path) {
            if let Some(schema) = properties.get(*name) {
                let default = default.and_then(|default| default.get(*name));
                collect(schema, default, &below(name), keys);
            }
        }
    } else if let Some(schema @ Value::Object(_)) = schema.get("additionalProperties") {
        // What is filled with plain values is described by its table.
        let mut element = schema.clone();
        if let (Value::Object(element), Some(text)) = (&mut element, parent_text) {
            element.entry("description").or_insert(text.clone());
        }
        collect(&element, None, &below(ANY_NAME), keys);
    } else if let Some(schema) = schema.get("items") {
        collect(schema, None, &below(ANY_ELEMENT), keys);
    }
}

/// The text of a schema as one line.
fn description(schema: &Value) -> String {
    let text = schema.get("description").and_then(Value::as_str);
    let words: Vec<&str> = text.unwrap_or_default().split_whitespace().collect();
    words.join(" ")
}

/// What values a schema takes. JSON knows text where we know durations, sizes and so on: these
/// are told by the key's name, or by what its default reads as.
fn kind_of(schema: &Value, default: Option<&Value>, path: &[String]) -> Kind {
    let choices = choices(schema);
    if !choices.is_empty() {
        return Kind::Choice(choices);
    }
    let is = |kind: &str| match schema.get("type") {
        Some(Value::String(own)) => own == kind,
        Some(Value::Array(own)) => own.iter().any(|own| own == kind),
        _ => false,
    };
    if is("object") {
        return match schema.get("additionalProperties") {
            Some(Value::Object(_)) => Kind::Map,
            _ => Kind::Table,
        };
    }
    if is("array") {
        return Kind::List;
    }
    if is("boolean") {
        return Kind::Bool;
    }
    if is("integer") {
        let least = schema.get("minimum").and_then(Value::as_u64);
        let most = match schema.get("format").and_then(Value::as_str) {
            Some("uint8") => u64::from(u8::MAX),
            Some("uint16") => u64::from(u16::MAX),
            Some("uint32") => u64::from(u32::MAX),
            _ => u64::MAX,
        };
        let most = schema
            .get("maximum")
            .and_then(Value::as_u64)
            .unwrap_or(most);
        return Kind::Integer(least.unwrap_or_default(), most);
    }
    if is("number") {
        return Kind::Number;
    }
    let name = path.last().map_or("", String::as_str);
    let default = default.and_then(Value::as_str).unwrap_or_default();
    if croner::Cron::from_str(default).is_ok() {
        Kind::Cron
    } else if name == "dir" || name.ends_with("_dir") || name.ends_with("_file") {
        Kind::Path
    } else if name == "at" {
        Kind::Time
    } else if name == "listen" || name.ends_with("_listen") {
        Kind::Address
    } else if name == "url" || name == "upstream" || name.ends_with("_url") {
        Kind::Url
    } else if humantime::parse_duration(default).is_ok_and(|d| d > Duration::ZERO) {
        Kind::Duration
    } else if default.parse::<ByteSize>().is_ok() {
        Kind::Size
    } else {
        Kind::Text
    }
}

/// The names that a schema of an enum takes.
fn choices(schema: &Value) -> Vec<String> {
    let list = |name: &str| {
        schema
            .get(name)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    };
    let named = list("enum")
        .chain(schema.get("const"))
        .filter_map(Value::as_str);
    let nested = list("oneOf").chain(list("anyOf")).flat_map(choices);
    named.map(str::to_owned).chain(nested).collect()
}

/// The configuration reference, docs/configuration.md.
pub fn markdown() -> String {
    let mut page = String::from(INTRODUCTION);
    let is_element = |key: &Key| key.path.last().is_some_and(|step| step == ANY_ELEMENT);
    let tables = KEYS
        .iter()
        .filter(|key| !key.kind.is_scalar() && !is_element(key));
    page.push_str("\n## Top level\n");
    push_table(&mut page, &[]);
    for table in tables {
        let title = table.path.iter().filter(|step| *step != ANY_ELEMENT);
        let title = KeyPath::new(title.cloned());
        let heading = match table.kind {
            Kind::List => format!("[[{title}]]"),
            _ => format!("[{title}]"),
        };
        push_section(&mut page, &heading, table);
    }
    page
}

fn push_section(page: &mut String, heading: &str, table: &Key) {
    page.push_str(&format!("\n## `{heading}`\n\n{}\n", table.description));
    let mut path = table.path.clone();
    if table.kind == Kind::List {
        path.push(ANY_ELEMENT.to_owned());
    }
    push_table(page, &path);
}

/// The scalars directly below a path, as a table of the page.
fn push_table(page: &mut String, path: &[String]) {
    let rows: Vec<&Key> = KEYS
        .iter()
        .filter(|key| key.path.len() == path.len() + 1 && key.path.starts_with(path))
        .filter(|key| key.kind.is_scalar())
        .collect();
    if rows.is_empty() {
        return;
    }
    page.push_str("\n| key | type | default | variable | meaning |\n|---|---|---|---|---|\n");
    for key in rows {
        let default = match &key.default {
            None => "unset".to_owned(),
            Some(Value::String(text)) if text.is_empty() => "unset".to_owned(),
            Some(default) => format!("`{default}`"),
        };
        let variable = match key.variable() {
            Some(variable) => format!("`{variable}`"),
            None => "–".to_owned(),
        };
        let description = key.description.replace('|', "\\|");
        let (name, label) = (key.path.last().map_or("", String::as_str), key.kind.label());
        // Writing to a string cannot fail.
        _ = writeln!(
            page,
            "| `{name}` | {label} | {default} | {variable} | {description} |"
        );
    }
}

const INTRODUCTION: &str = "\
# Configuration

This page is made from the types in the code; a test holds the two equal.

Taffrail reads, each over the one before:

1. the defaults below, which work on a laptop as they are;
2. a TOML file: the one that `--config` or `TAFFRAIL_CONFIG` names, which must exist, or
   `./taffrail.toml` if there is one;
3. the environment: `TAFFRAIL_` and the key, with `__` between levels, as in
   `TAFFRAIL_STORE__URL`. An empty variable counts as unset. A list is given as a whole:
   `TAFFRAIL_ACCOUNTS='[{provider=\"openrouter\", name=\"prod\"}]'`. The variables that Kubernetes
   sets for a Service named `taffrail` are ignored;
4. the command line: `taffrail run --role`.

Unknown keys, values that do not fit and combinations that cannot work stop the start; all of
them are reported at once, each with its origin and with what is accepted. `taffrail config`
shows the effective values with their origins, and `taffrail check` tries them out.

Durations are a number and a unit: `200ms`, `10s`, `15m`, `24h`, `90d`, `3y`. Sizes are bytes or
a number and a unit: `64KiB`, `1GiB`. Relative paths start at the working directory. Secrets can
be given as a file: `api_key_file` in place of `api_key`, `url_file` in place of `url`; white
space around the text in the file is ignored. `docs/taffrail.example.toml` is a file to start
from.
";
