//! A dashboard as Grafana reads it: panels, queries, links, and the variables in them.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::support::chart::root;

/// Dashboards by uid.
pub(crate) type Boards = BTreeMap<String, Board>;

pub(crate) struct Board {
    /// The name of its file.
    pub(crate) file: String,
    pub(crate) json: Value,
}

/// Every dashboard of the repository.
pub(crate) fn all() -> Boards {
    let entries = std::fs::read_dir(root().join("grafana")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let files = paths.filter(|path| path.extension().is_some_and(|it| it == "json"));
    let boards = files.map(|path| {
        let text = std::fs::read_to_string(&path).unwrap();
        let file = path.file_name().unwrap().to_str().unwrap();
        let board = Board::new(file, serde_json::from_str(&text).unwrap());
        (board.uid().to_owned(), board)
    });
    boards.collect()
}

pub(crate) fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// A text of an object; empty if it has none.
pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

impl Board {
    pub(crate) fn new(file: &str, json: Value) -> Board {
        let file = file.to_owned();
        Board { file, json }
    }

    pub(crate) fn uid(&self) -> &str {
        text(&self.json, "uid")
    }

    /// All panels, rows and what is folded away in them too.
    pub(crate) fn panels(&self) -> Vec<&Value> {
        let top = list(&self.json, "panels").iter();
        top.flat_map(|panel| [panel].into_iter().chain(list(panel, "panels")))
            .collect()
    }

    /// The panel of that id.
    pub(crate) fn panel(&self, id: &str) -> Option<&Value> {
        let id = id.parse::<u64>().ok()?;
        let mut panels = self.panels().into_iter();
        panels.find(|it| it["id"] == id)
    }

    pub(crate) fn variables(&self) -> &[Value] {
        list(&self.json["templating"], "list")
    }

    pub(crate) fn variable(&self, name: &str) -> Option<&Value> {
        self.variables().iter().find(|it| it["name"] == name)
    }
}

/// Whether a panel only arranges or explains.
pub(crate) fn is_prose(panel: &Value) -> bool {
    ["row", "text"].contains(&text(panel, "type"))
}

/// The URLs that a panel leads to: of its own links, its fields' and their overrides'.
pub(crate) fn links(panel: &Value) -> Vec<&str> {
    let fields = &panel["fieldConfig"];
    let overrides = list(fields, "overrides").iter();
    let of_overrides = overrides
        .flat_map(|it| list(it, "properties"))
        .filter(|property| property["id"] == "links")
        .flat_map(|property| list(property, "value"));
    let all = list(panel, "links")
        .iter()
        .chain(list(&fields["defaults"], "links"))
        .chain(of_overrides);
    all.map(|link| text(link, "url")).collect()
}

/// Where a text asks for a variable: `$name`, or `${name.path:format}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reference<'a> {
    pub(crate) name: &'a str,
    pub(crate) path: &'a str,
    pub(crate) format: &'a str,
    /// As it is written.
    pub(crate) whole: &'a str,
}

/// The variables that a text asks for. What begins with a digit is none, but money.
pub(crate) fn references(text: &str) -> Vec<Reference<'_>> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices('$') {
        let rest = &text[at + 1..];
        let reference = match rest.strip_prefix('{') {
            Some(inside) => {
                let Some((inside, _)) = inside.split_once('}') else {
                    continue;
                };
                let (place, format) = inside.split_once(':').unwrap_or((inside, ""));
                let (name, path) = place.split_once('.').unwrap_or((place, ""));
                let whole = &text[at..at + inside.len() + 3];
                Reference {
                    name,
                    path,
                    format,
                    whole,
                }
            }
            None => {
                let end = rest.find(|it: char| !it.is_ascii_alphanumeric() && it != '_');
                let name = &rest[..end.unwrap_or(rest.len())];
                Reference {
                    name,
                    path: "",
                    format: "",
                    whole: &text[at..=at + name.len()],
                }
            }
        };
        if reference
            .name
            .starts_with(|it: char| it.is_ascii_alphabetic() || it == '_')
        {
            found.push(reference);
        }
    }
    found
}

/// Puts values for variables; what has none stays.
pub(crate) fn substitute(text: &str, value: impl Fn(Reference<'_>) -> Option<String>) -> String {
    let mut result = String::new();
    let mut rest = text;
    for reference in references(text) {
        let (before, after) = rest.split_once(reference.whole).unwrap();
        result += before;
        result += &value(reference).unwrap_or_else(|| reference.whole.to_owned());
        rest = after;
    }
    result + rest
}

/// Every text in a document.
pub(crate) fn texts(value: &Value) -> BTreeSet<&str> {
    match value {
        Value::String(text) => [text.as_str()].into(),
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        Value::Object(fields) => fields.values().flat_map(texts).collect(),
        _ => BTreeSet::new(),
    }
}

#[test]
fn variables_are_found_as_grafana_finds_them() {
    let text = "rate(x{a=~\"$job\"}[$__range]) > $0.10 ${__field.labels.model} ${page:sqlstring}$";
    let found: Vec<_> = references(text)
        .iter()
        .map(|it| (it.name, it.path, it.format, it.whole))
        .collect();
    let expected = [
        ("job", "", "", "$job"),
        ("__range", "", "", "$__range"),
        ("__field", "labels.model", "", "${__field.labels.model}"),
        ("page", "", "sqlstring", "${page:sqlstring}"),
    ];
    assert_eq!(found, expected);
    let put = substitute(text, |it| (it.name == "job").then(|| ".*".to_owned()));
    assert_eq!(put, text.replace("$job", ".*"));
}
