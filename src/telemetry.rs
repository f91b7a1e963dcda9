//! Taffrail's own log: where it goes, how it looks, and what a panic leaves in it.
//!
//! In: the `log` section of the configuration. Out: a global subscriber that writes to standard
//! error, once per process. Nothing here may write a request's content: a panic's message is
//! withheld unless it is a literal of the source.

use std::io::IsTerminal;
use std::panic::PanicHookInfo;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;

/// Taffrail's own log, on standard error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The least level that is logged: `error`, `warn`, `info`, `debug` or `trace`, or directives
    /// such as `info,taffrail::store=debug`. Requests are logged at `debug`.
    pub level: String,
    /// `text` for people, `json` for machines. Unset, it is `text` on a terminal and `json`
    /// elsewhere.
    pub format: Option<Format>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: None,
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The level is no filter.
    #[error("log.level is not a filter")]
    Level(#[source] tracing_subscriber::filter::ParseError),
    /// Another subscriber is installed already.
    #[error("logging is already set up")]
    AlreadySetUp(#[source] tracing_subscriber::util::TryInitError),
}

/// Reads `log.level`.
pub fn parse_level(level: &str) -> Result<Targets, Error> {
    level.parse().map_err(Error::Level)
}

/// Sends the process's log to standard error, and reports panics through it. Once per process.
pub fn init(config: &Config) -> Result<(), Error> {
    use tracing_subscriber::util::SubscriberInitExt;

    subscriber(config, std::io::stderr, std::io::stderr().is_terminal())?
        .try_init()
        .map_err(Error::AlreadySetUp)?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// The subscriber of a configuration; `is_terminal` decides the format if it is unset, and the
/// colours.
fn subscriber<W>(
    config: &Config,
    writer: W,
    is_terminal: bool,
) -> Result<Box<dyn tracing::Subscriber + Send + Sync>, Error>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(is_terminal);
    let format = config.format.unwrap_or(if is_terminal {
        Format::Text
    } else {
        Format::Json
    });
    let layer = match format {
        Format::Text => layer.boxed(),
        Format::Json => layer
            .with_ansi(false)
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .boxed(),
    };
    let level = parse_level(&config.level)?;
    Ok(Box::new(
        tracing_subscriber::registry().with(layer).with(level),
    ))
}

/// Logs a panic as an error with its place.
///
/// A message that was formatted at run time can quote what was being read, so only a literal is
/// shown.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(ToString::to_string);
    let thread = std::thread::current();
    tracing::error!(
        location = location.as_deref().unwrap_or("unknown"),
        thread = thread.name().unwrap_or("unnamed"),
        reason = panic_reason(panic.payload()),
        "a task panicked"
    );
}

/// The message of a panic, if it is a literal of the source.
fn panic_reason(payload: &(dyn std::any::Any + Send)) -> &'static str {
    payload
        .downcast_ref::<&'static str>()
        .copied()
        .unwrap_or("withheld, it was formatted at run time")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Keeps what was logged.
    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(config: &Config, is_terminal: bool, act: impl FnOnce()) -> String {
        let memory = Memory::default();
        let writer = memory.clone();
        let subscriber = subscriber(config, move || writer.clone(), is_terminal).unwrap();
        tracing::subscriber::with_default(subscriber, act);
        let bytes = memory.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_format_follows_the_terminal_unless_it_is_set() {
        let act = || tracing::info!(records = 3, "batch stored");
        let unset = Config::default();
        let text = Config {
            format: Some(Format::Text),
            ..Config::default()
        };
        let json: serde_json::Value = serde_json::from_str(&logged(&unset, false, act)).unwrap();
        assert_eq!(json["message"], "batch stored");
        assert_eq!(json["records"], 3);
        assert!(logged(&unset, true, act).contains("batch stored"));
        assert!(serde_json::from_str::<serde_json::Value>(&logged(&unset, true, act)).is_err());
        assert!(serde_json::from_str::<serde_json::Value>(&logged(&text, false, act)).is_err());
    }

    #[test]
    fn the_level_filters_by_module() {
        let config = Config {
            level: "warn,taffrail::store=debug".to_owned(),
            format: None,
        };
        let text = logged(&config, true, || {
            tracing::info!(target: "taffrail::proxy", "hidden");
            tracing::debug!(target: "taffrail::store", "shown");
        });
        assert!(text.contains("shown") && !text.contains("hidden"), "{text}");
        assert!(parse_level("info,taffrail=loud").is_err());
    }

    #[test]
    fn a_log_line_cannot_carry_terminal_controls() {
        for format in [Format::Text, Format::Json] {
            let config = Config {
                level: "info".to_owned(),
                format: Some(format),
            };
            let text = logged(&config, false, || {
                tracing::info!(path = "\u{1b}[31mred\n2026 fake line", "seen");
            });
            assert!(!text.contains('\u{1b}'), "{text:?}");
            assert_eq!(text.lines().count(), 1, "{text:?}");
        }
    }

    #[test]
    fn a_panic_shows_literals_and_withholds_the_rest() {
        let key = "sk-secret";
        let literal = std::panic::catch_unwind(|| panic!("index held by the caller")).unwrap_err();
        let formatted = std::panic::catch_unwind(|| panic!("cannot read {key}")).unwrap_err();
        assert_eq!(panic_reason(&*literal), "index held by the caller");
        assert_eq!(
            panic_reason(&*formatted),
            "withheld, it was formatted at run time"
        );
    }
}
