//! Configuration from files and environments: what loads, what is refused and how it is worded,
//! what is shown, and that the documentation tells the same.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use rust_decimal::Decimal;
use taffrail::config::{
    Account, Config, KeyPath, Loaded, Origin, Problems, Role, Secret, Sources, TopUp, load,
};
use taffrail::journal::FsyncInterval;
use taffrail::proxy::{Dialect, OnClientDisconnect, ProviderConfig};
use taffrail::{config, telemetry};

const FIXTURES: &str = "tests/fixtures/config";

/// Loads a fixture, with the environment of the `.env` file beside it.
fn load_fixture(name: &str) -> Result<Loaded, Problems> {
    let file = Path::new(FIXTURES).join(name).with_extension("toml");
    let env = std::fs::read_to_string(file.with_extension("env")).unwrap_or_default();
    let pairs = env.lines().map(|line| line.split_once('=').unwrap());
    load(Sources {
        file: Some(file),
        env: os(pairs),
        ..Sources::default()
    })
}

fn os<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<(OsString, OsString)> {
    let pairs = pairs.into_iter();
    pairs
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

/// Sources without a file, not even one that happens to lie about.
fn nowhere() -> Sources {
    Sources {
        default_file: PathBuf::from("tests/fixtures/config/absent.toml"),
        ..Sources::default()
    }
}

fn fixtures(prefix: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(FIXTURES)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.strip_suffix(".toml").map(str::to_owned))
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names
}

/// Compares with a file that is kept in the repository; `UPDATE_GOLDEN=1` rewrites it.
pub(crate) fn assert_golden(path: &Path, actual: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("{}: {error}, run with UPDATE_GOLDEN=1", path.display()));
    assert_eq!(actual, expected, "{}", path.display());
}

#[test]
fn every_bad_file_is_refused_with_key_origin_and_what_is_accepted() {
    let names = fixtures("bad-");
    assert!(names.len() >= 20, "{names:?}");
    for name in names {
        let problems = load_fixture(&name).expect_err(&name);
        let text = format!("{problems}\n");
        assert!(!text.contains("for-your-eyes"), "{name}: {text}");
        for problem in &problems.0 {
            assert_ne!(problem.origin, Origin::Default, "{name}: {problem}");
            assert!(!problem.accepted.is_empty(), "{name}: {problem}");
        }
        assert_golden(&Path::new(FIXTURES).join(name).with_extension("txt"), &text);
    }
}

#[test]
fn every_good_file_loads_and_is_shown_with_its_origins() {
    for name in fixtures("good-") {
        let loaded = load_fixture(&name).unwrap_or_else(|problems| panic!("{name}: {problems}"));
        let shown = loaded.to_toml();
        for secret in ["for-your-eyes", "from-a-file", "hunter2"] {
            assert!(!shown.contains(secret), "{name}: {shown}");
            assert!(!loaded.to_json().to_string().contains(secret), "{name}");
            assert!(
                !format!("{:?}", loaded.config.accounts).contains(secret),
                "{name}"
            );
        }
        let golden = Path::new(FIXTURES).join(format!("{name}.effective.txt"));
        assert_golden(&golden, &shown);
    }
}

#[test]
fn nothing_configured_is_the_default() {
    let loaded = load(nowhere()).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(
        load_fixture("good-empty").unwrap().config,
        Config::default()
    );
    assert_eq!(
        loaded.origin(&KeyPath::new(["store", "url"])),
        Origin::Default
    );
}

#[test]
fn the_effective_configuration_loads_again_as_itself() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("effective.toml");
    let first = load(Sources {
        env: os([
            ("TAFFRAIL_PROVIDERS__GROQ__DIALECT", "chat"),
            (
                "TAFFRAIL_PROVIDERS__GROQ__UPSTREAM",
                "https://api.groq.com/openai",
            ),
            ("TAFFRAIL_ATTRIBUTION__STATIC__NOTE", "a \"b\" \\ c"),
            ("TAFFRAIL_JOBS__DEADLINE", "36h 5m"),
        ]),
        ..nowhere()
    })
    .unwrap();
    for shown in [first.to_toml(), load(nowhere()).unwrap().to_toml()] {
        std::fs::write(&file, &shown).unwrap();
        let again = load(Sources {
            file: Some(file.clone()),
            ..nowhere()
        })
        .unwrap_or_else(|problems| panic!("{problems}\n{shown}"));
        let values = |loaded: &Loaded| serde_json::to_value(&loaded.config).unwrap();
        let expected = if shown.contains("groq") {
            values(&first)
        } else {
            serde_json::to_value(Config::default()).unwrap()
        };
        assert_eq!(values(&again), expected);
    }
}

#[test]
fn a_full_file_sets_every_value_it_names() {
    let mut expected = Config {
        role: Role::Exporter,
        providers: BTreeMap::from([
            (
                "openai".to_owned(),
                ProviderConfig {
                    upstream: Some("http://127.0.0.1:9999/".to_owned()),
                    ..ProviderConfig::default()
                },
            ),
            (
                "azure".to_owned(),
                ProviderConfig {
                    upstream: Some("https://acme.openai.azure.com".to_owned()),
                    ..ProviderConfig::default()
                },
            ),
            (
                "groq".to_owned(),
                ProviderConfig {
                    upstream: Some("https://api.groq.com/openai".to_owned()),
                    dialect: Some(Dialect::Chat),
                    ..ProviderConfig::default()
                },
            ),
        ]),
        accounts: vec![
            Account {
                provider: "openrouter".to_owned(),
                name: "prod".to_owned(),
                api_key: Some(Secret::new("sk-or-v1-from-a-file")),
                api_key_file: Some(PathBuf::from("tests/fixtures/config/key.txt")),
                warning_below: Some(Decimal::new(505, 1)),
                critical_below: Some(Decimal::from(10)),
                top_ups: vec![
                    TopUp {
                        at: "2026-11-01T00:00:00Z".parse().unwrap(),
                        amount: Decimal::from(100),
                    },
                    TopUp {
                        at: "2026-11-20T10:30:00Z".parse().unwrap(),
                        amount: Decimal::new(-2510, 2),
                    },
                ],
                ..Account::default()
            },
            Account {
                provider: "openrouter".to_owned(),
                name: "staging".to_owned(),
                api_key: Some(Secret::new("sk-or-v1-not-for-your-eyes")),
                ..Account::default()
            },
        ],
        ..Config::default()
    };
    let key_file = Some(PathBuf::from("tests/fixtures/config/key.txt"));
    expected.proxy.listen = "127.0.0.1:4900".parse().unwrap();
    expected.proxy.connect_timeout = Duration::from_secs(3);
    expected.proxy.idle_timeout = Duration::from_secs(1200);
    expected.proxy.threads = Some(2);
    expected.admin.listen = "127.0.0.1:10490".parse().unwrap();
    expected.admin.token_file = key_file.clone();
    expected.journal.dir = PathBuf::from("/var/lib/taffrail/journal");
    expected.journal.max_bytes = ByteSize::mib(64);
    expected.journal.segment_bytes = ByteSize::mib(1);
    expected.journal.fsync_interval = FsyncInterval::Every(Duration::from_secs(1));
    expected.store.url = "postgres://meter:hunter2@db:5432/taffrail".to_owned();
    expected.store.url_file = Some(PathBuf::from("tests/fixtures/config/store-url.txt"));
    expected.metrics.models_per_provider = 50;
    expected.meter.usage_injection = false;
    expected.meter.fingerprint_pepper = Some("sk-or-v1-from-a-file".to_owned());
    expected.meter.fingerprint_pepper_file = key_file.clone();
    expected.meter.on_client_disconnect = OnClientDisconnect::Drain;
    expected.attribution.fixed = BTreeMap::from([("team".to_owned(), "search".to_owned())]);
    let feature = ("feature".to_owned(), "x-taffrail-feature".to_owned());
    expected.attribution.headers = BTreeMap::from([feature]);
    expected.schedule.balances = "0 15 * * * MON-FRI".to_owned();
    expected.schedule.prices = "0 0 4 1 * *".to_owned();
    expected.schedule.housekeeping = "30 */10 * * * *".to_owned();
    expected.jobs.followup_after = Duration::from_secs(300);
    expected.retention.logs = Duration::from_secs(30 * 86_400);
    expected.retention.aggregates = Duration::from_secs(31_557_600);
    expected.log.level = "warn,taffrail::store=debug".to_owned();
    expected.log.format = Some(telemetry::Format::Json);
    assert_eq!(load_fixture("good-full").unwrap().config, expected);
}

#[test]
fn the_environment_wins_over_the_file_key_by_key() {
    let loaded = load_fixture("good-environment").unwrap();
    let config = &loaded.config;
    assert_eq!(config.role, Role::Sidecar);
    assert_eq!(config.journal.max_bytes, ByteSize::mib(256));
    assert_eq!(config.proxy.threads, Some(3));
    assert!(!config.meter.usage_injection);
    let openai = ProviderConfig {
        upstream: Some("http://127.0.0.1:7777".to_owned()),
        billing_url: Some("http://127.0.0.1:9998".to_owned()),
        ..ProviderConfig::default()
    };
    assert_eq!(config.providers.get("openai"), Some(&openai));
    // What reads as a number or a boolean is still text where text is wanted.
    let labels = [("cost_centre", "42"), ("owned", "true"), ("team", "search")];
    let labels = labels.map(|(label, value)| (label.to_owned(), value.to_owned()));
    assert_eq!(config.attribution.fixed, BTreeMap::from(labels));
    // A sidecar does not need the keys of accounts, so that they need not be in its pod.
    assert_eq!(config.accounts[0].api_key, None);
    assert_eq!(config.accounts[1].name, "1");

    for (key, origin) in [
        (
            "providers.openai.upstream",
            "env TAFFRAIL_PROVIDERS__OPENAI__UPSTREAM",
        ),
        (
            "providers.openai.billing_url",
            "file:tests/fixtures/config/good-environment.toml:3",
        ),
        ("providers.groq.dialect", "env TAFFRAIL_PROVIDERS__GROQ"),
        ("accounts.1.name", "env TAFFRAIL_ACCOUNTS"),
        ("log.format", "default"),
    ] {
        let path = KeyPath::new(key.split('.'));
        assert_eq!(loaded.origin(&path).to_string(), origin, "{key}");
    }
}

#[test]
fn the_command_line_wins_over_the_environment() {
    let loaded = load(Sources {
        role: Some(Role::Exporter),
        env: os([("TAFFRAIL_ROLE", "sidecar")]),
        ..nowhere()
    })
    .unwrap();
    assert_eq!(loaded.config.role, Role::Exporter);
    let origin = loaded.origin(&KeyPath::new(["role"]));
    assert_eq!(origin, Origin::Flag("--role"));
}

#[test]
fn a_file_that_is_named_must_be_there_and_the_default_one_need_not() {
    let missing = "tests/fixtures/config/absent.toml";
    let by_flag = load(Sources {
        file: Some(PathBuf::from(missing)),
        env: os([("TAFFRAIL_CONFIG", "tests/fixtures/config/good-full.toml")]),
        ..nowhere()
    });
    let by_variable = load(Sources {
        env: os([("TAFFRAIL_CONFIG", missing)]),
        ..nowhere()
    });
    for (result, origin) in [
        (by_flag, "flag --config"),
        (by_variable, "env TAFFRAIL_CONFIG"),
    ] {
        let text = result.unwrap_err().to_string();
        let expected = format!(
            "1 problem in the configuration\n  {origin}: cannot read {missing}: No such file or \
             directory (os error 2)\n    accepted: the path of a readable TOML file"
        );
        assert_eq!(text, expected);
    }
    // The variable names the file, and is no key itself.
    let named = load(Sources {
        env: os([("TAFFRAIL_CONFIG", "tests/fixtures/config/good-full.toml")]),
        ..nowhere()
    });
    assert_eq!(named.unwrap().config.role, Role::Exporter);
    // The default file is read where it is.
    let found = load(Sources {
        default_file: PathBuf::from("tests/fixtures/config/good-full.toml"),
        ..Sources::default()
    });
    assert_eq!(found.unwrap().config.role, Role::Exporter);
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_text_is_reported() {
    use std::os::unix::ffi::OsStringExt as _;

    let broken = OsString::from_vec(b"sqlite://\xff".to_vec());
    let problems = load(Sources {
        env: vec![("TAFFRAIL_STORE__URL".into(), broken)],
        ..nowhere()
    })
    .unwrap_err();
    assert_eq!(
        problems.to_string(),
        "1 problem in the configuration\n  store.url (env TAFFRAIL_STORE__URL): the value is not \
         UTF-8\n    accepted: UTF-8 text"
    );
}

#[test]
fn problems_of_file_and_environment_come_together() {
    // The file cannot be parsed, and the variable's problem is told all the same.
    let problems = load(Sources {
        file: Some(PathBuf::from("tests/fixtures/config/bad-not-toml.toml")),
        env: os([("TAFFRAIL_ROLE", "worker")]),
        ..nowhere()
    })
    .unwrap_err();
    let keys: Vec<String> = problems.0.iter().map(|p| p.key.to_string()).collect();
    assert_eq!(keys, ["", "role"]);
}

/// Every key of the schema by its dotted path, with `<name>` and `[]` for what the user names.
fn schema_keys(schema: &serde_json::Value, path: &str, keys: &mut Vec<String>) {
    let below = |step: &str| match path {
        "" => step.to_owned(),
        path => format!("{path}.{step}"),
    };
    if let Some(properties) = schema["properties"].as_object() {
        for (name, schema) in properties {
            schema_keys(schema, &below(name), keys);
        }
    } else if schema["additionalProperties"].is_object() {
        schema_keys(&schema["additionalProperties"], &below("<name>"), keys);
    } else if schema["items"].is_object() {
        schema_keys(&schema["items"], &format!("{path}[]"), keys);
    } else if schema["type"] != "object" {
        keys.push(path.to_owned());
    }
}

#[test]
fn the_reference_tells_every_key_and_equals_the_code() {
    let page = config::markdown();
    assert_golden(Path::new("docs/configuration.md"), &page);
    let mut keys = Vec::new();
    schema_keys(&config::json_schema(), "", &mut keys);
    assert!(keys.len() > 30, "{keys:?}");
    for key in keys {
        let (table, name) = key.rsplit_once('.').unwrap_or(("", &key));
        let heading = match table.strip_suffix("[]") {
            _ if table.is_empty() => "\n## Top level\n".to_owned(),
            Some(list) => format!("\n## `[[{}]]`\n", list.replace("[]", "")),
            None => format!("\n## `[{table}]`\n"),
        };
        let (_, section) = page
            .split_once(&heading)
            .unwrap_or_else(|| panic!("{heading}"));
        let section = section.split("\n## ").next().unwrap();
        let row = section
            .lines()
            .find(|line| line.starts_with(&format!("| `{name}` |")))
            .unwrap_or_else(|| panic!("{key} is not in the reference"));
        assert!(!row.ends_with("|  |"), "{key} has no description");
        if !table.ends_with("[]") {
            let variable = key.to_uppercase().replace('.', "__");
            assert!(row.contains(&format!("`TAFFRAIL_{variable}`")), "{row}");
        }
    }
}

#[test]
fn the_example_file_is_complete_and_equals_the_defaults() {
    let file = PathBuf::from("docs/taffrail.example.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let loaded = load(Sources {
        file: Some(file),
        ..nowhere()
    })
    .unwrap();
    assert_eq!(loaded.config, Config::default());

    let mut keys = Vec::new();
    schema_keys(&config::json_schema(), "", &mut keys);
    for key in keys {
        let (table, name) = key.rsplit_once('.').unwrap_or(("", &key));
        if name == "<name>" {
            continue;
        }
        let (_, section) = match table {
            "" => ("", text.as_str()),
            "providers.<name>" => text.split_once("[providers.groq]").unwrap(),
            "accounts[]" => text.split_once("[[accounts]]").unwrap(),
            "accounts[].top_ups[]" => text.split_once("[[accounts.top_ups]]").unwrap(),
            table => text
                .split_once(&format!("\n[{table}]\n"))
                .unwrap_or_else(|| panic!("[{table}] is not in the example")),
        };
        let section = section.split("\n[").next().unwrap();
        let is_line = |line: &str| {
            let line = line.trim_start_matches(['#', ' ']);
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(" = "))
        };
        assert!(section.lines().any(is_line), "{key} is not in the example");
    }
}
