//! The shape of the crate: every import points to an earlier group or to the same one, and the
//! pure groups name no runtime, no clock, no file and no network.

use std::path::{Path, PathBuf};

/// The groups in the order of ARCHITECTURE.md.
const GROUPS: [(&str, &[&str]); 10] = [
    (
        "vocabulary",
        &[
            "ask",
            "caller",
            "fault",
            "money",
            "qualifier",
            "record",
            "secret",
            "usage",
        ],
    ),
    ("wire", &["wire"]),
    ("provider", &["provider"]),
    ("price", &["balance", "bill", "price"]),
    (
        "records",
        &["clock", "journal", "ledger", "metrics", "store"],
    ),
    ("traffic", &["proxy"]),
    ("exporter", &["exporter"]),
    ("injector", &["injector"]),
    (
        "rim",
        &[
            "admin",
            "backfill",
            "check",
            "cli",
            "config",
            "recost",
            "report",
            "telemetry",
        ],
    ),
    ("wiring", &["app", "demo", "lib", "main", "price_commands"]),
];

/// The first group that may wait, read a clock or open a file.
const FIRST_IMPURE: usize = 4;

/// What a pure module must not name.
const IMPURE: [&str; 12] = [
    "tokio",
    "hyper",
    "sqlx",
    "reqwest",
    "rustls",
    "std::fs",
    "std::net",
    "std::env",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "Utc::now",
];

fn group_of(module: &str) -> usize {
    GROUPS
        .iter()
        .position(|(_, modules)| modules.contains(&module))
        .unwrap_or_else(|| panic!("src/{module} belongs to no group of ARCHITECTURE.md"))
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The text of a file without comments and without its tests, which may reach further.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]").next().unwrap();
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<&str>>()
        .join("\n")
}

/// The modules that follow `crate::`, alone or in braces.
fn crate_modules(code: &str) -> impl Iterator<Item = &str> {
    code.match_indices("crate::").flat_map(|(at, name)| {
        let rest = &code[at + name.len()..];
        let list = match rest.strip_prefix('{') {
            Some(list) => &list[..list.find('}').unwrap()],
            None => rest.split([',', ';']).next().unwrap(),
        };
        list.split(',').map(|path| {
            let path = path.trim_start();
            let end = path.find(|c: char| !c.is_alphanumeric() && c != '_');
            &path[..end.unwrap_or(path.len())]
        })
    })
}

#[test]
fn every_import_points_to_an_earlier_group() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 40, "only {} files found", files.len());
    let mut problems = Vec::new();
    for file in files {
        let inside = file.strip_prefix(&root).unwrap();
        let first = inside
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_string_lossy()
            .into_owned();
        let module = first.trim_end_matches(".rs");
        let group = group_of(module);
        let code = code(&file);
        for imported in crate_modules(&code).filter(|module| !module.is_empty()) {
            if group_of(imported) > group {
                problems.push(format!("{} imports {imported}", inside.display()));
            }
        }
        if group < FIRST_IMPURE {
            for name in IMPURE {
                if code.contains(name) {
                    problems.push(format!("{} is pure and names {name}", inside.display()));
                }
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
