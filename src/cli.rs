//! The command line: what can be asked, and what the exit codes mean. Parsing only; the wiring
//! acts on it.

use std::ffi::OsString;
use std::path::PathBuf;

use chrono::NaiveDate;
use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use uuid::Uuid;

use crate::config::Role;
use crate::fault::Outcome;
use crate::report::{Format, LOGS_LIMIT_DEFAULT, LOGS_LIMIT_MAX, Since};
use crate::store::Dimension;

/// The exit code of a command that did what was asked.
pub const EXIT_OK: u8 = 0;
/// The exit code of a command that failed, or whose answer is no.
pub const EXIT_FAILED: u8 = 1;
/// The exit code of a wrong command line or configuration.
pub const EXIT_USAGE: u8 = 2;

const EXAMPLES: &str = "\
Examples:
  taffrail demo                       the whole product on this machine, without a key
  taffrail run                        proxy on 127.0.0.1:4800, metrics on :10480
  curl http://127.0.0.1:4800/openai/v1/models -H \"authorization: Bearer $OPENAI_API_KEY\"
  taffrail usage --since 24h --by provider,model
  taffrail check                      tries out configuration, ports, store and upstreams

Exit codes: 0 done, 1 failed, 2 wrong command line or configuration.";

/// Meters AI-provider API traffic and exposes it to Prometheus.
#[derive(Debug, Clone, PartialEq, Parser)]
#[command(name = "taffrail", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    /// The configuration file [env: TAFFRAIL_CONFIG] [default: taffrail.toml, if there is one].
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum Command {
    /// Run the server.
    Run(Run),
    /// Show the whole product on this machine, with look-alike providers and no key.
    Demo(Demo),
    /// Show what was spent.
    Usage(Usage),
    /// Show the detailed rows, newest first.
    Logs(Logs),
    /// Show the balances that were read last.
    Balances(Balances),
    /// Read the balances of accounts now, once.
    Sync(Sync),
    /// Show what providers billed against what was metered.
    Reconcile(Reconcile),
    /// Look into the price book, bring it up to date, and cost rows anew.
    #[command(subcommand)]
    Prices(Prices),
    /// Bring the store's schema up to date.
    Migrate(Migrate),
    /// Make the sums of days anew from their rows.
    Backfill(Backfill),
    /// Try out the configuration: ports, journal, store, upstreams and accounts.
    Check(Check),
    /// Print the certificate of the local authority, for SDKs that insist on https.
    Ca(Ca),
    /// Show the effective configuration and where each value comes from.
    Config(Config),
    /// Ask the server on this machine whether it is healthy.
    Healthcheck(Healthcheck),
}

/// `taffrail run`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
Examples:
  taffrail run                        everything, for one machine
  taffrail run --role sidecar         beside an application: proxy, meter, journal, drain
  taffrail run --role exporter        once per fleet: balances, prices, retention
  taffrail run --role injector        in Kubernetes: puts the sidecar into pods

Point an SDK at the proxy:
  OPENAI_BASE_URL=http://127.0.0.1:4800/openai/v1
  ANTHROPIC_BASE_URL=http://127.0.0.1:4800/anthropic

SIGTERM lets requests in flight finish for proxy.shutdown_grace, then ends the server.")]
pub struct Run {
    /// What this process does, in place of `role` in the configuration.
    #[arg(long, value_enum)]
    pub role: Option<Role>,
}

/// `taffrail demo`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
Examples:
  taffrail demo                       until Ctrl-C
  taffrail demo --seconds 20          ends by itself

Nothing leaves this machine: the providers are look-alikes on loopback.")]
pub struct Demo {
    /// Seconds after which the demo ends by itself.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: Option<u64>,
    /// The database that rows go to, in place of an embedded one: postgres://user@host:port/database.
    #[arg(long, value_name = "URL")]
    pub store: Option<String>,
    /// What to be: all, or a sidecar alone beside a demo that shares its --store.
    #[arg(long, value_name = "ROLE", default_value = "all")]
    pub role: Role,
    /// How many days before today to have rows and bills of.
    #[arg(long, value_name = "DAYS", default_value_t = 7,
          value_parser = clap::value_parser!(u32).range(..=60))]
    pub history: u32,
}

/// `taffrail usage`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
Examples:
  taffrail usage                                  the last 24 hours by provider and model
  taffrail usage --since 30d --by day             one line per day
  taffrail usage --since 7d --by team,provider    by an attribution label
  taffrail usage --format csv > usage.csv")]
pub struct Usage {
    /// How far back: a duration (90m, 24h, 30d), a date or a timestamp.
    #[arg(long, value_name = "WHEN", default_value = "24h")]
    pub since: Since,
    /// What to group by: provider, model, operation, outcome, day, hour, key, instance,
    /// namespace, service_tier, and attribution labels.
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "provider,model"
    )]
    pub by: Vec<Dimension>,
    /// How to print it.
    #[arg(long, default_value_t, value_parser = format_parser())]
    pub format: Format,
}

/// `taffrail logs`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
Examples:
  taffrail logs --limit 20
  taffrail logs --outcome rate_limited --provider openai
  taffrail logs --before 01930e3b-0000-7000-8000-000000000000     the page after that row
  taffrail logs --all --format json | jq .cost_usd                one object a line
  taffrail logs --dead-letter                                     what the store refused, and why")]
pub struct Logs {
    /// Rows at most, up to 10,000.
    #[arg(
        long,
        value_name = "N",
        default_value_t = LOGS_LIMIT_DEFAULT,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(LOGS_LIMIT_MAX)),
        conflicts_with = "all"
    )]
    pub limit: u32,
    /// All rows.
    #[arg(long)]
    pub all: bool,
    /// Only rows older than the row of this id: the next page.
    #[arg(long, value_name = "ID")]
    pub before: Option<Uuid>,
    /// Only rows of this provider.
    #[arg(long, value_name = "NAME")]
    pub provider: Option<String>,
    /// Only rows that ended like this.
    #[arg(long, value_name = "OUTCOME", value_parser = outcome_parser())]
    pub outcome: Option<Outcome>,
    /// The records that the store refused, from the journal's directory, in place of rows; needs
    /// no store.
    #[arg(long)]
    pub dead_letter: bool,
    /// How to print them.
    #[arg(long, default_value_t, value_parser = format_parser())]
    pub format: Format,
}

/// `taffrail balances`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
From the store, which the exporter keeps them in; asks no provider. Exit code 1 if the last reading
of an account failed; its balance is then the one before, with its age.

Examples:
  taffrail balances
  taffrail balances --provider openrouter
  taffrail balances --format json | jq -r 'select(.balance != null) | .balance'")]
pub struct Balances {
    /// Only accounts of this provider.
    #[arg(long, value_name = "NAME")]
    pub provider: Option<String>,
    /// Only accounts of this name.
    #[arg(long, value_name = "NAME")]
    pub account: Option<String>,
    /// How to print them.
    #[arg(long, default_value_t, value_parser = format_parser())]
    pub format: Format,
}

/// `taffrail sync`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
Asks the billing API of each account, prints what came of it, and keeps it in the store. One that
fails does not stop the others; exit code 1 if any failed. A server that runs shows what was read
within a minute. Over HTTP: POST /-/sync of the admin listener.

Examples:
  taffrail sync
  taffrail sync --provider fal --account prod
  taffrail sync --format json")]
pub struct Sync {
    /// Only accounts of this provider.
    #[arg(long, value_name = "NAME")]
    pub provider: Option<String>,
    /// Only accounts of this name.
    #[arg(long, value_name = "NAME")]
    pub account: Option<String>,
    /// How to print it.
    #[arg(long, default_value_t, value_parser = format_parser())]
    pub format: Format,
}

/// `taffrail reconcile`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
From the store, which the exporter keeps the bills of closed UTC days in; asks no provider. For each
account the bill, what was metered, what was not, and what that may come from, with what to do next.
docs/reconciliation.md has what each provider tells.

Examples:
  taffrail reconcile
  taffrail reconcile --since 30d --provider openrouter
  taffrail reconcile --format json | jq 'select(.unmetered_share > 0.05)'")]
pub struct Reconcile {
    /// How far back: a duration (7d, 30d), a date or a timestamp. Whole UTC days count.
    #[arg(long, value_name = "WHEN", default_value = "8d")]
    pub since: Since,
    /// Only accounts of this provider.
    #[arg(long, value_name = "NAME")]
    pub provider: Option<String>,
    /// Only accounts of this name.
    #[arg(long, value_name = "NAME")]
    pub account: Option<String>,
    /// How to print it.
    #[arg(long, default_value_t, value_parser = format_parser())]
    pub format: Format,
}

/// `taffrail prices`.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Prices {
    /// List the prices in effect.
    List(PricesList),
    /// Ask the providers for their price lists now.
    Refresh(PricesRefresh),
    /// Show which prices changed, and which new ones are held back.
    Diff(PricesDiff),
    /// Bring in LiteLLM's or genai-prices' price list from a file.
    Import(PricesImport),
    /// Compute the costs of rows anew.
    Recost(PricesRecost),
}

/// `taffrail prices refresh`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
Reads OpenRouter's models API, which needs no key, and fal's pricing API, which needs the key of an
account in [[accounts]]. The exporter does the same by schedule.prices. What changed holds from now
on; rows keep the price that they were costed with. Servers follow within prices.poll_interval.

A list that would change a price more than tenfold, from or to zero, or that has lost more than a
fifth of its models, is held back: `taffrail prices diff` shows it, --accept takes it as shown.

Examples:
  taffrail prices refresh
  taffrail prices refresh --provider openrouter --accept")]
pub struct PricesRefresh {
    /// Only the list of this provider.
    #[arg(long, value_name = "NAME", value_parser = ["openrouter", "fal"])]
    pub provider: Option<String>,
    /// Take what is held back.
    #[arg(long)]
    pub accept: bool,
}

/// `taffrail prices diff`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
One line for each model and rate: what it was and what it is, in US dollars for a million tokens or
characters, or for one of anything else.

Examples:
  taffrail prices diff
  taffrail prices diff --since 30d")]
pub struct PricesDiff {
    /// Versions since then: a duration (24h, 30d), a date or a timestamp.
    #[arg(long, value_name = "WHEN", default_value = "7d")]
    pub since: Since,
}

/// `taffrail prices import`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
The format is told by the file's shape. Models are taken under the names that the file spells out;
nothing is matched by likeness. What is not understood is counted and said, never guessed. Imported
prices go over the built-in catalogue, under a provider's own list and under prices.overlay_file.

Examples:
  taffrail prices import model_prices_and_context_window.json
  taffrail prices import data.json --from 2026-11-01 --dry-run")]
pub struct PricesImport {
    /// LiteLLM's model_prices_and_context_window.json or genai-prices' data.json.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The day from which new prices of known models hold; now if not given.
    #[arg(long, value_name = "DAY", value_parser = day)]
    pub from: Option<NaiveDate>,
    /// Take it even if prices change more than tenfold or many models are missing.
    #[arg(long)]
    pub accept: bool,
    /// Only say what would change.
    #[arg(long)]
    pub dry_run: bool,
}

/// `taffrail prices recost`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
For each row the price that held at its start, of the version in effect then. Rows without a cost
for lack of a price get one. The sums move with the rows, and api_cost_changes keeps what was. Costs
that a provider stated are never touched, none is taken away, and a row whose old cost cannot be
computed again from what it tells (a size, a region) is left alone and counted.

May be interrupted and run again. On Postgres, run it as the owner of the schema.

Examples:
  taffrail prices recost --since 7d --dry-run
  taffrail prices recost --since 2026-11-01 --until 2026-12-01 --provider fal")]
pub struct PricesRecost {
    /// Rows that started since then: a duration (24h, 30d), a date or a timestamp.
    #[arg(long, value_name = "WHEN")]
    pub since: Since,
    /// Rows that started before then; now if not given.
    #[arg(long, value_name = "WHEN")]
    pub until: Option<Since>,
    /// Only rows of this provider.
    #[arg(long, value_name = "NAME")]
    pub provider: Option<String>,
    /// Only rows of this model, by its full name.
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Only say what would change.
    #[arg(long)]
    pub dry_run: bool,
}

/// `taffrail prices list`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
Examples:
  taffrail prices list --provider openai
  taffrail prices list --model gpt-4o --format json")]
pub struct PricesList {
    /// Only prices of this provider.
    #[arg(long, value_name = "NAME")]
    pub provider: Option<String>,
    /// Only models whose name contains this text.
    #[arg(long, value_name = "TEXT")]
    pub model: Option<String>,
    /// How to print them.
    #[arg(long, default_value_t, value_parser = format_parser())]
    pub format: Format,
}

/// `taffrail migrate`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
For stores with `store.migrate = false`, where the server never changes the schema; otherwise it
does the same when it starts. Creates what is missing, but not a database of Postgres; keeps every
row, and may be run again at any time. On Postgres, run it as the owner of the schema.

Examples:
  taffrail migrate
  TAFFRAIL_STORE__URL=sqlite:///var/lib/taffrail/taffrail.db taffrail migrate
  TAFFRAIL_STORE__URL=postgres://taffrail_owner@db.example.com/observability taffrail migrate")]
pub struct Migrate {}

/// `taffrail backfill`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
Sums are made with the rows and need no help; this is for rows that were changed or brought in by
other means. Each day is made anew in one transaction, so that it may be run beside servers that
write, interrupted and run again. Days whose rows are gone by retention are refused: their sums are
all that is left of them. On Postgres, run it as the owner of the schema.

Examples:
  taffrail backfill --from 2026-11-01 --to 2026-12-01        November
  taffrail backfill --from 2026-11-24                        from that day on, today included")]
pub struct Backfill {
    /// The first day, in UTC.
    #[arg(long, value_name = "DAY", value_parser = day)]
    pub from: NaiveDate,
    /// The day to stop before; tomorrow if not given.
    #[arg(long, value_name = "DAY", value_parser = day)]
    pub to: Option<NaiveDate>,
}

/// `taffrail check`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
One line per item: ok, FAIL with what to do about it, or skip with the reason. Exit code 1 if an
item failed, 2 if the configuration does not hold. Upstreams are resolved and connected to, with TLS,
and sent nothing; of accounts the billing APIs are asked, with the configured keys.

Examples:
  taffrail check
  taffrail check --config /etc/taffrail/taffrail.toml")]
pub struct Check {}

/// `taffrail ca`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
For applications whose SDK insists on https, as fal's Python client does: `proxy.tls_listen` serves
them with a certificate of a local authority. It is made in `proxy.tls_ca_dir` if it is missing, on
this machine alone, and can vouch for this machine's own names only. An application trusts it by

  Python (httpx, requests)   SSL_CERT_FILE and REQUESTS_CA_BUNDLE, which replace the public ones
  Node                       NODE_EXTRA_CA_CERTS, which adds to them
  curl                       --cacert

Where the application calls other hosts too, give Python both in one file.

Examples:
  taffrail ca > taffrail-ca.pem
  cat /etc/ssl/certs/ca-certificates.crt taffrail-ca.pem > bundle.pem
  SSL_CERT_FILE=bundle.pem FAL_RUN_HOST=localhost:4843/fal \\
    FAL_QUEUE_RUN_HOST=localhost:4843/fal-queue python app.py
  NODE_EXTRA_CA_CERTS=taffrail-ca.pem node app.js")]
pub struct Ca {}

/// `taffrail config`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
Secrets are shown as [redacted]. Every key is described in docs/configuration.md.

Examples:
  taffrail config
  TAFFRAIL_PROXY__LISTEN=127.0.0.1:4900 taffrail config | grep listen
  taffrail config --format json | jq '.\"store.url\".origin'")]
pub struct Config {
    /// How to print it.
    #[arg(long, value_enum, default_value_t)]
    pub format: ConfigFormat,
}

/// `taffrail healthcheck`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
For images without a shell. Asks /-/healthy of the admin listener that the configuration names.

Example, in a Dockerfile:
  HEALTHCHECK CMD [\"/taffrail\", \"healthcheck\"]")]
pub struct Healthcheck {}

/// How the configuration is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ConfigFormat {
    /// TOML with the origins as comments.
    #[default]
    Toml,
    /// A JSON object of keys, each with value and origin.
    Json,
}

/// Reads a command line.
///
/// # Errors
/// What to print, on standard output for `--help` and `--version`, and the exit code.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, (clap::Error, u8)> {
    Cli::try_parse_from(arguments).map_err(|error| {
        let code = if error.use_stderr() {
            EXIT_USAGE
        } else {
            EXIT_OK
        };
        (error, code)
    })
}

fn day(text: &str) -> Result<NaiveDate, &'static str> {
    text.parse()
        .map_err(|_| "accepted is a day, as in 2026-11-24")
}

fn format_parser() -> impl clap::builder::TypedValueParser<Value = Format> {
    PossibleValuesParser::new(Format::ALL.iter().map(|format| format.as_str()))
        .try_map(|name| name.parse::<Format>())
}

fn outcome_parser() -> impl clap::builder::TypedValueParser<Value = Outcome> {
    PossibleValuesParser::new(Outcome::ALL.iter().map(|outcome| outcome.as_str()))
        .try_map(|name| Outcome::from_name(&name).ok_or("not an outcome"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Cli, (clap::Error, u8)> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn command(line: &str) -> Command {
        parsed(line).unwrap().command
    }

    fn exit_code(line: &str) -> u8 {
        parsed(line).unwrap_err().1
    }

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn options_have_the_documented_defaults() {
        assert_eq!(
            command("taffrail usage"),
            Command::Usage(Usage {
                since: Since::Ago(std::time::Duration::from_hours(24)),
                by: vec![Dimension::Provider, Dimension::Model],
                format: Format::Table,
            })
        );
        assert_eq!(
            command("taffrail logs"),
            Command::Logs(Logs {
                limit: 50,
                all: false,
                before: None,
                provider: None,
                outcome: None,
                dead_letter: false,
                format: Format::Table,
            })
        );
        assert_eq!(
            parsed("taffrail run --config x.toml --role sidecar").unwrap(),
            Cli {
                config: Some(PathBuf::from("x.toml")),
                command: Command::Run(Run {
                    role: Some(Role::Sidecar)
                }),
            }
        );
    }

    #[test]
    fn limits_hold_at_their_edges() {
        for good in ["--limit 1", "--limit 10000", "--all"] {
            assert!(parsed(&format!("taffrail logs {good}")).is_ok(), "{good}");
        }
        for bad in [
            "logs --limit 0",
            "logs --limit 10001",
            "logs --all --limit 5",
            "logs --before 17",
            "logs --outcome fine",
            "usage --since 0s",
            "usage --since yesterday",
            "usage --by provider,the-moon",
            "demo --seconds 0",
            "run --role both",
            "backfill",
            "backfill --from november",
            "backfill --from 2026-02-30",
        ] {
            assert_eq!(exit_code(&format!("taffrail {bad}")), EXIT_USAGE, "{bad}");
        }
    }

    #[test]
    fn help_succeeds_and_a_missing_command_does_not() {
        assert_eq!(exit_code("taffrail --help"), EXIT_OK);
        assert_eq!(exit_code("taffrail --version"), EXIT_OK);
        assert_eq!(exit_code("taffrail"), EXIT_USAGE);
        assert_eq!(exit_code("taffrail polish"), EXIT_USAGE);
    }

    #[test]
    fn every_command_teaches_by_example() {
        use clap::CommandFactory as _;
        for command in Cli::command().get_subcommands() {
            let leaves: Vec<_> = command.get_subcommands().collect();
            let leaves = if leaves.is_empty() {
                vec![command]
            } else {
                leaves
            };
            for leaf in leaves {
                let help = leaf.get_after_help().unwrap().to_string();
                assert!(help.contains("Example"), "{}", leaf.get_name());
            }
        }
    }
}
