//! Layers in, a configuration or every problem out.
//!
//! The layers are merged by figment and read into the types. A value that does not fit is
//! reported with its place, taken out, and the rest is read again, so that one start shows all
//! of them. Rules that span keys follow once the types hold.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use figment::error::Kind;
use figment::providers::{Format, Serialized, Toml};
use figment::value::{Dict, Value};
use figment::{Figment, Profile, Provider};
use toml_edit::{ImDocument, Item};

use super::{Config, Role, Secret, reference, validate};

/// What every variable of the environment starts with.
pub const ENV_PREFIX: &str = "TAFFRAIL_";
/// The variable that names the configuration file.
pub const CONFIG_VARIABLE: &str = "TAFFRAIL_CONFIG";
/// The file that is read if none is named and it exists.
pub const DEFAULT_FILE: &str = "taffrail.toml";
/// The longest file that a key or URL is read from: they are a line; a device or a log that is
/// named by mistake is not.
const SECRET_FILE_BYTES_MAX: u64 = 64 * 1024;

/// Where configuration comes from, besides the defaults.
#[derive(Clone)]
pub struct Sources {
    /// The file that `--config` names.
    pub file: Option<PathBuf>,
    /// The file that is read if none is named and it exists.
    pub default_file: PathBuf,
    /// The role that `--role` names.
    pub role: Option<Role>,
    /// The environment.
    pub env: Vec<(OsString, OsString)>,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            file: None,
            default_file: PathBuf::from(DEFAULT_FILE),
            role: None,
            env: Vec::new(),
        }
    }
}

/// The place of a value: `proxy.listen`, `accounts[0].name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyPath(Vec<String>);

impl KeyPath {
    /// A path of these steps.
    pub fn new<S: Into<String>>(steps: impl IntoIterator<Item = S>) -> Self {
        Self(steps.into_iter().map(Into::into).collect())
    }

    /// The steps from the top.
    pub fn steps(&self) -> &[String] {
        &self.0
    }

    /// The path one step below.
    pub fn join(&self, step: impl Into<String>) -> Self {
        let mut steps = self.0.clone();
        steps.push(step.into());
        Self(steps)
    }

    /// The path one step above; `None` at the top.
    pub fn parent(&self) -> Option<Self> {
        let (_, above) = self.0.split_last()?;
        Some(Self(above.to_vec()))
    }

    /// The last step.
    pub fn last(&self) -> &str {
        self.0.last().map_or("", String::as_str)
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.0.iter().enumerate() {
            let is_index = index > 0 && step.bytes().all(|byte| byte.is_ascii_digit());
            match (is_index, index) {
                (true, _) => write!(f, "[{step}]")?,
                (false, 0) => f.write_str(step)?,
                (false, _) => write!(f, ".{step}")?,
            }
        }
        Ok(())
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A line of the configuration file.
    File {
        /// The file as it was named.
        path: PathBuf,
        /// The line, from 1, where it is known.
        line: Option<usize>,
    },
    /// A variable of the environment.
    Env(String),
    /// An option of the command line.
    Flag(&'static str),
    /// A file that holds this value alone.
    SecretFile(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File {
                path,
                line: Some(line),
            } => write!(f, "file:{}:{line}", path.display()),
            Origin::File { path, line: None } => write!(f, "file:{}", path.display()),
            Origin::Env(variable) => write!(f, "env {variable}"),
            Origin::Flag(flag) => write!(f, "flag {flag}"),
            Origin::SecretFile(path) => write!(f, "file:{}", path.display()),
        }
    }
}

/// Something that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key; empty where the whole file is concerned.
    pub key: KeyPath,
    /// Where the value came from.
    pub origin: Origin,
    /// What is wrong, never with a secret in it.
    pub what: String,
    /// What is accepted.
    pub accepted: String,
}

impl Problem {
    /// Sorts problems as the user meets them: down the file, then the environment.
    fn place(&self) -> (u8, usize, KeyPath) {
        let (rank, line) = match &self.origin {
            Origin::File { line, .. } => (0, line.unwrap_or_default()),
            Origin::Env(_) => (1, 0),
            Origin::Default | Origin::Flag(_) | Origin::SecretFile(_) => (2, 0),
        };
        (rank, line, self.key.clone())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.steps().is_empty() {
            write!(f, "{}: {}", self.origin, self.what)?;
        } else {
            write!(f, "{} ({}): {}", self.key, self.origin, self.what)?;
        }
        write!(f, "\n    accepted: {}", self.accepted)
    }
}

/// Everything that is wrong with the configuration; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("1 problem in the configuration")?,
            count => write!(f, "{count} problems in the configuration")?,
        }
        self.0
            .iter()
            .try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// A configuration that holds, and where each value of it came from.
#[derive(Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    layers: Layers,
}

/// Shows nothing: the values and the texts that they were read from hold secrets.
impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").finish_non_exhaustive()
    }
}

impl Loaded {
    /// Where the value of a key came from.
    pub fn origin(&self, key: &KeyPath) -> Origin {
        self.layers.origin(key)
    }
}

/// Reads the configuration.
///
/// # Errors
/// Every problem at once: a file that cannot be read, unknown keys, values that do not fit and
/// combinations that cannot work.
pub fn load(sources: Sources) -> Result<Loaded, Problems> {
    let mut problems = Vec::new();
    let variables = sources.env.clone();
    let env = Environment::read(sources.env, &mut problems);
    let named = sources
        .file
        .map(|path| (path, Origin::Flag("--config")))
        .or_else(|| {
            let origin = Origin::Env(CONFIG_VARIABLE.to_owned());
            env.config_file.clone().map(|path| (path, origin))
        });
    let file = match named {
        Some((path, origin)) => FileLayer::read(path, Some(origin), &mut problems),
        None => FileLayer::read(sources.default_file, None, &mut problems),
    };
    let is_file_broken = problems.iter().any(|problem| {
        let is_whole_file = problem.key.steps().is_empty();
        is_whole_file && !matches!(&problem.origin, Origin::Env(name) if name != CONFIG_VARIABLE)
    });
    let mut layers = Layers {
        file,
        env,
        role: sources.role,
        secret_files: BTreeMap::new(),
    };
    let mut config = layers.extract(&mut problems);
    // What a broken file would have said is unknown, so rules that span keys would only mislead.
    if !is_file_broken {
        layers.read_secrets(&mut config, &variables, &mut problems);
        for finding in validate::findings(&config) {
            let is_known = |key: &KeyPath| problems.iter().any(|problem| problem.key == *key);
            if !is_known(&finding.key) && !finding.instead.as_ref().is_some_and(is_known) {
                problems.push(Problem {
                    origin: layers.nearest_origin(&finding.key),
                    key: finding.key,
                    what: finding.what,
                    accepted: finding.accepted,
                });
            }
        }
    }
    if problems.is_empty() {
        Ok(Loaded { config, layers })
    } else {
        problems.sort_by_key(Problem::place);
        Err(Problems(problems))
    }
}

/// What each source said.
#[derive(Clone)]
struct Layers {
    file: Option<FileLayer>,
    env: Environment,
    role: Option<Role>,
    secret_files: BTreeMap<KeyPath, PathBuf>,
}

impl Layers {
    /// The values of all layers in one tree.
    fn merged(&self) -> Value {
        let mut figment = Figment::new();
        if let Some(file) = &self.file {
            figment = figment.merge(Serialized::defaults(&file.values));
        }
        figment = figment.merge(Serialized::defaults(&self.env.values));
        if let Some(role) = self.role {
            figment = figment.merge(Serialized::default("role", role));
        }
        // The layers are dictionaries that parsed already, so merging them cannot fail.
        let values = figment
            .data()
            .ok()
            .and_then(|mut profiles| profiles.remove(&Profile::Default))
            .unwrap_or_default();
        Value::from(values)
    }

    /// Reads the merged values into the types; what does not fit becomes a problem and its
    /// default.
    fn extract(&self, problems: &mut Vec<Problem>) -> Config {
        let mut values = self.merged();
        self.refuse_numbers_as_choices(&mut values, problems);
        loop {
            let error = match values.deserialize::<Config>() {
                Ok(config) => return config,
                Err(error) => error,
            };
            let key = KeyPath(error.path);
            // A variable is text; where `42` was read as a number but text is wanted, it stays
            // text.
            if let Some(text) = self.env.text_at(&key)
                && let Some(value) = find_mut(&mut values, key.steps())
                && !matches!(value, Value::String(..))
            {
                *value = Value::from(text);
                continue;
            }
            problems.push(self.problem(&key, &error.kind, find(&values, key.steps())));
            if !remove(&mut values, key.steps()) {
                return Config::default();
            }
        }
    }

    /// Reports numbers where a choice is named: serde would take them for the choice's position.
    fn refuse_numbers_as_choices(&self, values: &mut Value, problems: &mut Vec<Problem>) {
        let mut refused = Vec::new();
        walk(values, &mut Vec::new(), &mut |steps, value| {
            if matches!(value, Value::Num(..)) && reference::is_choice(steps) {
                refused.push((KeyPath::new(steps), value.clone()));
            }
        });
        for (key, value) in refused {
            let kind = Kind::InvalidType(value.to_actual(), String::new());
            problems.push(self.problem(&key, &kind, Some(&value)));
            remove(values, key.steps());
        }
    }

    /// Words an error of the types.
    fn problem(&self, key: &KeyPath, kind: &Kind, value: Option<&Value>) -> Problem {
        let (what, accepted) = match kind {
            Kind::UnknownField(name, siblings) => {
                let what = match self.suggestion(key, name, siblings) {
                    Some(suggestion) => format!("unknown key, did you mean {suggestion}"),
                    None => "unknown key".to_owned(),
                };
                (what, siblings.join(", "))
            }
            Kind::MissingField(name) => {
                (format!("{name} is missing"), format!("a table with {name}"))
            }
            _ => {
                let found = shown(key, value);
                let described = reference::find(key.steps());
                let what = match (&described, kind) {
                    (Some(described), _) => format!("{found} is not {}", described.kind.noun()),
                    (None, Kind::Message(message)) if !reference::is_secret(key.steps()) => {
                        message.clone()
                    }
                    (None, _) => format!("{found} does not fit"),
                };
                let accepted = described.map_or_else(
                    || "see docs/configuration.md".to_owned(),
                    |described| described.accepted(),
                );
                (what, accepted)
            }
        };
        Problem {
            key: key.clone(),
            origin: self.nearest_origin(key),
            what,
            accepted,
        }
    }

    /// The key that was probably meant.
    fn suggestion(&self, key: &KeyPath, name: &str, siblings: &[&str]) -> Option<String> {
        if let Some(variable) = self.env.variable(key) {
            let meant = reference::variable_like(variable);
            if meant.is_some() {
                return meant;
            }
        }
        let edits_max = (name.chars().count() / 3).max(1);
        siblings
            .iter()
            .map(|sibling| (strsim::damerau_levenshtein(name, sibling), sibling))
            .filter(|(edits, _)| *edits <= edits_max)
            .min()
            .map(|(_, sibling)| (*sibling).to_owned())
    }

    /// Where the value of a key came from.
    fn origin(&self, key: &KeyPath) -> Origin {
        if self.role.is_some() && key.last() == "role" && key.steps().len() == 1 {
            return Origin::Flag("--role");
        }
        if let Some(path) = self.secret_files.get(key) {
            return Origin::SecretFile(path.clone());
        }
        if let Some(variable) = self.env.variable(key) {
            return Origin::Env(variable.to_owned());
        }
        match &self.file {
            Some(file) if find_in(&file.values, key.steps()).is_some() => Origin::File {
                path: file.path.clone(),
                line: file.line(key.steps()),
            },
            _ => Origin::Default,
        }
    }

    /// The same, or where the table around it came from if the key itself is not set.
    fn nearest_origin(&self, key: &KeyPath) -> Origin {
        let mut key = key.clone();
        loop {
            let origin = self.origin(&key);
            if origin != Origin::Default {
                return origin;
            }
            match key.parent() {
                Some(above) if !above.steps().is_empty() => key = above,
                _ => return Origin::Default,
            }
        }
    }

    /// Replaces what `*_file` and `*_env` keys name by what the files and variables hold.
    fn read_secrets(
        &mut self,
        config: &mut Config,
        variables: &[(OsString, OsString)],
        problems: &mut Vec<Problem>,
    ) {
        if let Some(path) = config.store.url_file.clone() {
            let key = KeyPath::new(["store", "url"]);
            if let Some(text) = self.read_secret(&key, &path, problems) {
                config.store.url = text;
            }
        }
        if let Some(path) = config.meter.fingerprint_pepper_file.clone() {
            let key = KeyPath::new(["meter", "fingerprint_pepper"]);
            if let Some(text) = self.read_secret(&key, &path, problems) {
                config.meter.fingerprint_pepper = Some(text);
            }
        }
        // Only the exporter reads balances, and other pods need not hold the keys for it.
        if !config.role.reads_balances() {
            return;
        }
        for (index, account) in config.accounts.iter_mut().enumerate() {
            if let Some(path) = account.admin_key_file.clone() {
                let key = KeyPath::new(["accounts", &index.to_string(), "admin_key"]);
                if let Some(text) = self.read_secret(&key, &path, problems) {
                    account.admin_key = Some(Secret::new(text));
                }
            }
            if let Some(path) = account.api_key_file.clone() {
                let key = KeyPath::new(["accounts", &index.to_string(), "api_key"]);
                if let Some(text) = self.read_secret(&key, &path, problems) {
                    account.api_key = Some(Secret::new(text));
                }
            } else if let Some(name) = &account.api_key_env
                && account.api_key.is_none()
            {
                let found = variables.iter().find(|(own, _)| own.to_str() == Some(name));
                let text = found.and_then(|(_, text)| text.to_str()).map(str::trim);
                match text {
                    Some(text) if !text.is_empty() => account.api_key = Some(Secret::new(text)),
                    _ => {
                        let key = KeyPath::new(["accounts", &index.to_string(), "api_key_env"]);
                        problems.push(Problem {
                            origin: self.nearest_origin(&key),
                            key,
                            what: format!("the variable {name} is not set"),
                            accepted: "a variable of the environment that holds the key".to_owned(),
                        });
                    }
                }
            }
        }
    }

    /// Reads the file that `<key>_file` names, unless `<key>` is set as well.
    fn read_secret(
        &mut self,
        key: &KeyPath,
        path: &Path,
        problems: &mut Vec<Problem>,
    ) -> Option<String> {
        let file_name = format!("{}_file", key.last());
        let file_key = key.parent()?.join(&file_name);
        let result = if self.origin(key) == Origin::Default {
            read_secret_file(path)
        } else {
            Err(format!("{} is set as well", key.last()))
        };
        match result {
            Ok(text) => {
                self.secret_files.insert(key.clone(), path.to_owned());
                Some(text)
            }
            Err(what) => {
                problems.push(Problem {
                    origin: self.nearest_origin(&file_key),
                    key: file_key,
                    what,
                    accepted: format!(
                        "either {} or {file_name}, the latter a readable file with one line",
                        key.last()
                    ),
                });
                None
            }
        }
    }
}

/// The text of a file that holds one secret, without the white space around it; the error says
/// what is wrong with the file.
pub(super) fn read_secret_file(path: &Path) -> Result<String, String> {
    let cannot = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let mut text = String::new();
    std::fs::File::open(path)
        .map_err(cannot)?
        .take(SECRET_FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(cannot)?;
    let text = text.trim();
    if text.is_empty() {
        return Err(format!("{} is empty", path.display()));
    }
    if text.lines().nth(1).is_some() {
        return Err(format!("{} has more than one line", path.display()));
    }
    Ok(text.to_owned())
}

/// The configuration file.
#[derive(Clone)]
struct FileLayer {
    path: PathBuf,
    values: Dict,
    document: ImDocument<String>,
}

impl FileLayer {
    /// Reads and parses a file. `named_by` says who asked for it; without, it may be missing.
    fn read(
        path: PathBuf,
        named_by: Option<Origin>,
        problems: &mut Vec<Problem>,
    ) -> Option<FileLayer> {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) => {
                let is_missing = error.kind() == std::io::ErrorKind::NotFound;
                if named_by.is_some() || !is_missing {
                    problems.push(Problem {
                        key: KeyPath(Vec::new()),
                        origin: named_by.unwrap_or(Origin::Default),
                        what: format!("cannot read {}: {error}", path.display()),
                        accepted: "the path of a readable TOML file".to_owned(),
                    });
                }
                return None;
            }
        };
        // The parsers' own renderings quote the line, which may hold a secret.
        let mut broken = |span: Option<std::ops::Range<usize>>, message: &str| {
            let message = message.lines().collect::<Vec<_>>().join(", ");
            problems.push(Problem {
                key: KeyPath(Vec::new()),
                origin: Origin::File {
                    path: path.clone(),
                    line: span.map(|span| line_of(&text, span.start)),
                },
                what: format!("not TOML: {message}"),
                accepted: "TOML 1.0, see docs/taffrail.example.toml".to_owned(),
            });
        };
        let values = match Toml::from_str::<Dict>(&text) {
            Ok(values) => values,
            Err(error) => {
                broken(error.span(), error.message());
                return None;
            }
        };
        match ImDocument::parse(text.clone()) {
            Ok(document) => Some(FileLayer {
                path,
                values,
                document,
            }),
            Err(error) => {
                broken(error.span(), error.message());
                None
            }
        }
    }

    /// The line of a key.
    fn line(&self, steps: &[String]) -> Option<usize> {
        let mut item = self.document.as_item();
        let mut span = None;
        for step in steps {
            (span, item) = step_into(item, step)?;
        }
        span.map(|span| line_of(self.document.raw(), span.start))
    }
}

/// The item one step below, and where it is written.
fn step_into<'a>(item: &'a Item, step: &str) -> Option<(Option<std::ops::Range<usize>>, &'a Item)> {
    match item.as_table_like() {
        Some(table) => {
            let (key, item) = table.get_key_value(step)?;
            Some((key.span().or_else(|| item.span()), item))
        }
        None => {
            let item = item.get(step.parse::<usize>().ok()?)?;
            Some((item.span(), item))
        }
    }
}

/// The line, from 1, of a byte offset.
fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// The variables of the environment that configure Taffrail.
#[derive(Clone, Default)]
struct Environment {
    /// The file that [`CONFIG_VARIABLE`] names.
    config_file: Option<PathBuf>,
    values: Dict,
    variables: BTreeMap<KeyPath, Variable>,
}

#[derive(Clone)]
struct Variable {
    name: String,
    text: String,
}

impl Environment {
    /// Takes the variables with our prefix. One that is empty counts as unset.
    fn read(pairs: Vec<(OsString, OsString)>, problems: &mut Vec<Problem>) -> Environment {
        let mut environment = Environment::default();
        let mut variables: Vec<(String, OsString)> = pairs
            .into_iter()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| name.starts_with(ENV_PREFIX) && !is_service_link(name))
            .collect();
        // A variable for a table comes before those for its members, so that these win.
        variables.sort();
        for (name, value) in variables {
            if name == CONFIG_VARIABLE {
                environment.config_file = (!value.is_empty()).then(|| PathBuf::from(value));
                continue;
            }
            let steps = name
                .strip_prefix(ENV_PREFIX)
                .unwrap_or_default()
                .split("__");
            let key = KeyPath(steps.map(str::to_ascii_lowercase).collect());
            if key.steps().iter().any(String::is_empty) {
                problems.push(Problem {
                    key: KeyPath(Vec::new()),
                    origin: Origin::Env(name),
                    what: "the variable names no key".to_owned(),
                    accepted: format!("{ENV_PREFIX} and a key, with __ between levels"),
                });
                continue;
            }
            let Ok(text) = value.into_string() else {
                problems.push(Problem {
                    key,
                    origin: Origin::Env(name),
                    what: "the value is not UTF-8".to_owned(),
                    accepted: "UTF-8 text".to_owned(),
                });
                continue;
            };
            if text.trim().is_empty() {
                continue;
            }
            // What is nothing else is text, so parsing as a value is infallible.
            let Ok(value) = text.parse::<Value>();
            insert(&mut environment.values, key.steps(), value);
            environment.variables.insert(key, Variable { name, text });
        }
        environment
    }

    /// The variable that gave a key its value.
    fn variable(&self, key: &KeyPath) -> Option<&str> {
        find_in(&self.values, key.steps())?;
        let above = std::iter::successors(Some(key.clone()), KeyPath::parent);
        let whole = above.filter_map(|key| self.variables.get(&key)).next();
        let member = || {
            let mut members = self.variables.iter();
            members.find(|(path, _)| path.steps().starts_with(key.steps()))
        };
        whole
            .or_else(|| member().map(|(_, variable)| variable))
            .map(|variable| variable.name.as_str())
    }

    /// The text of the variable for exactly this key.
    fn text_at(&self, key: &KeyPath) -> Option<&str> {
        self.variables.get(key).map(|variable| variable.text.trim())
    }
}

/// Whether Kubernetes put the variable there for a Service named `taffrail` or `taffrail-…`:
/// `TAFFRAIL_SERVICE_HOST`, `TAFFRAIL_PORT_4800_TCP_ADDR` and the like.
///
/// Source: Kubernetes, "Service", section "Environment variables".
fn is_service_link(name: &str) -> bool {
    if name.contains("__") {
        return false;
    }
    let words: Vec<&str> = name.split('_').collect();
    let is_number = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let is_link = |tail: &[&str]| match tail {
        ["SERVICE", "HOST" | "PORT"] | ["PORT"] => true,
        ["SERVICE", "PORT", _name, ..] => true,
        ["PORT", port, "TCP" | "UDP" | "SCTP"] => is_number(port),
        [
            "PORT",
            port,
            "TCP" | "UDP" | "SCTP",
            "PROTO" | "PORT" | "ADDR",
        ] => is_number(port),
        _ => false,
    };
    (1..words.len()).any(|start| words.get(start..).is_some_and(is_link))
}

/// A value as a problem may show it: scalars that are no secret in full, others by their kind.
fn shown(key: &KeyPath, value: Option<&Value>) -> String {
    /// Enough to recognise a value by.
    const SHOWN_CHARS_MAX: usize = 80;

    let is_secret = reference::is_secret(key.steps());
    let is_leaf = reference::find(key.steps()).is_some_and(|key| key.kind.is_scalar());
    match value {
        Some(Value::Dict(..)) => "a table".to_owned(),
        Some(Value::Array(..)) => "a list".to_owned(),
        Some(_) if is_secret || !is_leaf => "the value".to_owned(),
        Some(Value::String(_, text)) => {
            let shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
            format!("{shown:?}")
        }
        Some(Value::Char(_, text)) => format!("{:?}", text.to_string()),
        Some(Value::Bool(_, value)) => value.to_string(),
        Some(Value::Num(_, number)) => {
            match (number.to_i128(), number.to_u128(), number.to_f64()) {
                (Some(number), _, _) => number.to_string(),
                (_, Some(number), _) => number.to_string(),
                (_, _, Some(number)) => number.to_string(),
                _ => "the number".to_owned(),
            }
        }
        Some(Value::Empty(..)) | None => "nothing".to_owned(),
    }
}

fn find<'a>(value: &'a Value, steps: &[String]) -> Option<&'a Value> {
    steps.iter().try_fold(value, |value, step| match value {
        Value::Dict(_, dict) => dict.get(step),
        Value::Array(_, array) => array.get(step.parse::<usize>().ok()?),
        _ => None,
    })
}

fn find_in<'a>(dict: &'a Dict, steps: &[String]) -> Option<&'a Value> {
    let (first, rest) = steps.split_first()?;
    find(dict.get(first)?, rest)
}

fn find_mut<'a>(value: &'a mut Value, steps: &[String]) -> Option<&'a mut Value> {
    steps.iter().try_fold(value, |value, step| match value {
        Value::Dict(_, dict) => dict.get_mut(step),
        Value::Array(_, array) => array.get_mut(step.parse::<usize>().ok()?),
        _ => None,
    })
}

/// Calls `visit` for every value below, leaves and tables alike.
fn walk(value: &Value, steps: &mut Vec<String>, visit: &mut impl FnMut(&[String], &Value)) {
    visit(steps, value);
    let members: Vec<(String, &Value)> = match value {
        Value::Dict(_, dict) => dict
            .iter()
            .map(|(key, value)| (key.clone(), value))
            .collect(),
        Value::Array(_, array) => {
            let numbered = array.iter().enumerate();
            numbered
                .map(|(index, value)| (index.to_string(), value))
                .collect()
        }
        _ => Vec::new(),
    };
    for (step, member) in members {
        steps.push(step);
        walk(member, steps, visit);
        steps.pop();
    }
}

/// Sets the value at a path, making tables on the way.
fn insert(dict: &mut Dict, steps: &[String], value: Value) {
    let Some((first, rest)) = steps.split_first() else {
        return;
    };
    if rest.is_empty() {
        dict.insert(first.clone(), value);
        return;
    }
    let below = dict
        .entry(first.clone())
        .or_insert_with(|| Value::from(Dict::new()));
    if !matches!(below, Value::Dict(..)) {
        *below = Value::from(Dict::new());
    }
    if let Value::Dict(_, below) = below {
        insert(below, rest, value);
    }
}

/// Takes out the value at a path; an element of a list takes its whole list along, so that the
/// others keep their numbers. False if there is nothing there.
fn remove(value: &mut Value, steps: &[String]) -> bool {
    let Some((last, above)) = steps.split_last() else {
        return false;
    };
    match find_mut(value, above) {
        Some(Value::Dict(_, dict)) => dict.remove(last).is_some(),
        _ => remove(value, above),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_links_of_kubernetes_are_told_from_keys() {
        for link in [
            "TAFFRAIL_SERVICE_HOST",
            "TAFFRAIL_SERVICE_PORT",
            "TAFFRAIL_SERVICE_PORT_HTTP_METRICS",
            "TAFFRAIL_PORT",
            "TAFFRAIL_PORT_4800_TCP",
            "TAFFRAIL_PORT_4800_TCP_ADDR",
            "TAFFRAIL_EXPORTER_SERVICE_HOST",
            "TAFFRAIL_EXPORTER_PORT_10480_TCP_PROTO",
        ] {
            assert!(is_service_link(link), "{link}");
        }
        for key in [
            "TAFFRAIL_ROLE",
            "TAFFRAIL_STORE_URL",
            "TAFFRAIL_STORE__URL",
            "TAFFRAIL_ADMIN__PORT",
            "TAFFRAIL_PORT_TCP",
        ] {
            assert!(!is_service_link(key), "{key}");
        }
    }

    #[test]
    fn a_list_loses_all_elements_at_once() {
        let mut value: Value = "{a=[1,2],b={c=3}}".parse().unwrap();
        assert!(remove(&mut value, KeyPath::new(["a", "1"]).steps()));
        assert!(remove(&mut value, KeyPath::new(["b", "c"]).steps()));
        assert!(!remove(&mut value, KeyPath::new(["b", "c"]).steps()));
        assert_eq!(value, "{b={}}".parse().unwrap());
    }
}
