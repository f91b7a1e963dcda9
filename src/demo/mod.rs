//! `taffrail demo`: the whole product on one machine, with no key and no server.
//!
//! Look-alikes of five vendors, the real proxy in front of them, a few applications that all
//! talk at once, and the embedded store in a temporary folder. A live view while it runs, then
//! the report of `taffrail usage`, held to what the clients counted themselves, then what to try
//! next. Nothing leaves the machine, and the folder goes when the demo ends.

pub mod audit;
pub mod board;
pub mod dice;
pub mod history;
pub mod lookalike;
pub mod traffic;
pub mod view;

use std::fs::Permissions;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::board::Board;
use self::history::History;
use self::lookalike::billing::Billing;
use self::lookalike::{CASE_HEADER, Case, LookAlike, Vendor};
use self::traffic::{Counts, FEATURE_HEADER, FEATURE_LABEL, TEAM_HEADER, TEAM_LABEL};
use self::view::View;
use crate::app::{self, App};
use crate::clock;
use crate::config::{self, Config, Role, Sources};
use crate::report::{self, Since, UsageRequest};
use crate::store::{Store, UsageQuery};
use crate::telemetry;

/// How long the clients keep asking in a demo that does not end by itself.
const TRAFFIC_TIME: Duration = Duration::from_secs(20);

/// How long before its end a demo stops asking, so that the last answers arrive in time.
const LAST_ANSWERS_TIME: Duration = Duration::from_secs(2);

/// How often the live view is brought up to date.
const VIEW_INTERVAL: Duration = Duration::from_millis(250);

/// How long to wait for the last rows to reach the store.
const ROWS_TIME: Duration = Duration::from_secs(10);

/// How often the store is asked whether they have.
const ROWS_INTERVAL: Duration = Duration::from_millis(50);

/// The largest answer of the admin listener that is read.
const SCRAPE_BYTES_MAX: usize = 16 << 20;

/// A day of a demo is short: what runs by the hour elsewhere runs by the minute here.
const SCHEDULE: &str = r#"[schedule]
balances = "*/15 * * * * *"
prices = "5/20 * * * * *"
reconcile = "10/20 * * * * *"
jitter = "1s"

[reconcile]
lag = "1m"
days = 30
"#;

/// Accounts of every kind: told by an API in dollars and in another currency, kept as a ledger,
/// with enough in them, with little, and with next to nothing.
const ACCOUNTS: &str = r#"
[[accounts]]
provider = "openrouter"
name = "prod"
api_key = "demo-openrouter-management"
warning_below = 100
critical_below = 20

[[accounts]]
provider = "fal"
name = "studio"
api_key = "demo-fal-admin"
warning_below = 80
critical_below = 10

[[accounts]]
provider = "deepseek"
name = "evals"
api_key = "deepseek-demo"
warning_below = 200

[[accounts]]
provider = "openai"
name = "org"
admin_key = "demo-openai-admin"
warning_below = 50
top_ups = [{ at = "2026-01-01", amount = 400 }]

[[accounts]]
provider = "anthropic"
name = "main"
admin_key = "demo-anthropic-admin"
warning_below = 50
top_ups = [{ at = "2026-01-01", amount = 300 }]

[[accounts]]
provider = "replicate"
name = "team"
warning_below = 25
critical_below = 10
top_ups = [{ at = "2026-01-01", amount = 8 }]
"#;

/// Which requests the clients make; any number does.
const SEED: u64 = 4_800;

/// Runs the demo: until Ctrl-C, or for that many seconds.
///
/// # Errors
///
/// If something cannot be started, the report cannot be written, or the rows are not what the
/// clients counted.
pub async fn run(seconds: Option<u64>, setting: Setting) -> anyhow::Result<()> {
    let mut interrupts = Interrupts::new()?;
    let demo = Demo::start(setting).await?;
    telemetry::init(&demo.config.log)?;
    say(&format!(
        "Look-alikes of OpenAI, Anthropic, OpenRouter, Replicate and fal; nothing leaves\n\
         this machine.\n\
         \x20 proxy    http://{}\n\
         \x20 metrics  http://{}/metrics\n",
        demo.proxy(),
        demo.admin(),
    ));
    let shown = demo.show(seconds, &mut interrupts).await;
    demo.stop().await?;
    shown
}

/// Tells the person at the keyboard how it goes; standard output is for the report.
fn say(text: &str) {
    // Nobody may be listening, which is no reason to stop.
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// The signals that end a program: Ctrl-C and SIGTERM.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    came: bool,
}

impl Interrupts {
    fn new() -> anyhow::Result<Interrupts> {
        Ok(Interrupts {
            interrupt: signal(SignalKind::interrupt()).context("cannot wait for signals")?,
            terminate: signal(SignalKind::terminate()).context("cannot wait for signals")?,
            came: false,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        self.came = true;
    }
}

/// What a demo is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Setting {
    /// Where it listens.
    pub ports: Ports,
    /// The database that rows go to; unset, an embedded one that ends with the demo.
    pub store: Option<String>,
    /// Everything, or a sidecar alone beside a demo with the same store.
    pub role: Role,
    /// How many days before today there are rows and bills of.
    pub history_days: u32,
}

/// Where a demo listens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ports {
    /// Where Taffrail listens by default, or anywhere if that is taken.
    Usual,
    /// Anywhere.
    #[default]
    Any,
}

impl Ports {
    fn choose(self, usual: u16, what: &str) -> SocketAddr {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, usual));
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        match self {
            Ports::Any => anywhere,
            Ports::Usual if std::net::TcpListener::bind(address).is_ok() => address,
            Ports::Usual => {
                say(&format!(
                    "{address} is taken; {what} listens on another port."
                ));
                anywhere
            }
        }
    }
}

/// A demo that is up.
pub struct Demo {
    folder: TempDir,
    config: Config,
    app: App,
    proxy: SocketAddr,
    started_at: DateTime<Utc>,
    _lookalikes: Vec<LookAlike>,
    _billing: Billing,
}

impl Demo {
    /// Starts the look-alikes and Taffrail in front of them.
    ///
    /// # Errors
    ///
    /// If there is no room for a temporary folder, no port, the store cannot be used, or Taffrail
    /// does not start.
    pub async fn start(setting: Setting) -> anyhow::Result<Demo> {
        let folder = tempfile::Builder::new()
            .prefix("taffrail-demo-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .context("cannot make a temporary folder")?;
        let mut lookalikes = Vec::new();
        for vendor in Vendor::ALL {
            let started = LookAlike::start(vendor).await;
            lookalikes.push(started.context("cannot start a look-alike")?);
        }
        let history = History::before(clock::wall().date_naive(), setting.history_days);
        let billing = Billing::start(history.clone()).await;
        let billing = billing.context("cannot start a look-alike")?;
        let file = config_file(folder.path());
        let addresses = (
            setting.ports.choose(4800, "the proxy"),
            setting.ports.choose(10480, "the admin listener"),
        );
        let text = config_text(folder.path(), addresses, &setting, &lookalikes, &billing)?;
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        let sources = Sources {
            file: Some(file),
            ..Sources::default()
        };
        let config = config::load(sources)?.config;
        if setting.role == Role::All {
            let store = Store::open(&config.store).await;
            let store = store.context("cannot open the store of the demo")?;
            history
                .write(&store)
                .await
                .context("cannot write the days before today")?;
            store.close().await;
        }
        let app = App::start(&config)?;
        let proxy = app.proxy_address().context("there is no proxy")?;
        Ok(Demo {
            folder,
            config,
            app,
            proxy,
            started_at: clock::wall(),
            _lookalikes: lookalikes,
            _billing: billing,
        })
    }

    /// The address of the proxy.
    pub const fn proxy(&self) -> SocketAddr {
        self.proxy
    }

    /// The address of the admin listener.
    pub fn admin(&self) -> SocketAddr {
        self.app.admin_address()
    }

    /// The folder that holds configuration, journal and store.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Traffic, report, and what to try next.
    async fn show(&self, seconds: Option<u64>, interrupts: &mut Interrupts) -> anyhow::Result<()> {
        let length = seconds.map(Duration::from_secs);
        let Some(counts) = self.perform(length, interrupts).await? else {
            return Ok(());
        };
        let differences = self.differences(&counts).await?;
        let mut out = io::stdout();
        self.report(&mut out).await?;
        writeln!(out, "{}", verdict(&counts, &differences))?;
        if seconds.is_none() && !interrupts.came {
            self.suggest(&mut out)?;
            interrupts.next().await;
        }
        match differences.is_empty() {
            true => Ok(()),
            false => bail!("the rows are not what the clients counted"),
        }
    }

    /// Lets the clients ask and shows how it goes; `None` if a second interrupt cut it short.
    async fn perform(
        &self,
        length: Option<Duration>,
        interrupts: &mut Interrupts,
    ) -> anyhow::Result<Option<Counts>> {
        let length = length.unwrap_or(TRAFFIC_TIME);
        let asking = length.saturating_sub(LAST_ANSWERS_TIME).max(length / 2);
        let (started, stop) = (clock::instant(), CancellationToken::new());
        let mut traffic = AbortOnDropHandle::new(tokio::spawn(traffic::run(
            self.proxy(),
            SEED,
            started + asking,
            stop.clone(),
        )));
        let mut view = View::new(length);
        let mut ticks = interval(VIEW_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let counts = loop {
            tokio::select! {
                counts = &mut traffic => break Some(counts.context("the traffic ended badly")?),
                () = interrupts.next() => {
                    if stop.is_cancelled() {
                        break None;
                    }
                    stop.cancel();
                }
                _ = ticks.tick() => {
                    let elapsed = match stop.is_cancelled() {
                        true => length,
                        false => started.elapsed(),
                    };
                    view.show(elapsed, &self.board().await?);
                }
            }
        };
        view.clear();
        Ok(counts)
    }

    /// The numbers of `/metrics`.
    async fn board(&self) -> anyhow::Result<Board> {
        let exposition = scrape(self.admin()).await.context("cannot read /metrics")?;
        Ok(Board::read(&exposition))
    }

    async fn open_store(&self) -> anyhow::Result<Store> {
        let store = Store::open_read_only(&self.config.store).await;
        store.context("cannot open the store of the demo")
    }

    /// What the rows say otherwise than the clients; the last rows are waited for.
    ///
    /// # Errors
    ///
    /// If the store cannot be read.
    pub async fn differences(&self, counts: &Counts) -> anyhow::Result<Vec<String>> {
        let store = self.open_store().await?;
        let query = UsageQuery {
            since: self.started_at,
            by: audit::dimensions(),
        };
        let instance = app::instance().instance;
        let deadline = clock::instant() + ROWS_TIME;
        let differences = loop {
            let differences = audit::differences(counts, &store.usage(&query).await?, &instance);
            if differences.is_empty() || clock::instant() > deadline {
                break differences;
            }
            sleep(ROWS_INTERVAL).await;
        };
        store.close().await;
        let surprises = counts.surprises.iter().cloned();
        Ok(surprises.chain(differences).collect())
    }

    /// Writes what `taffrail usage --by provider,model` writes.
    ///
    /// # Errors
    ///
    /// If the store cannot be read or the report not written.
    pub async fn report(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let store = self.open_store().await?;
        let request = UsageRequest {
            since: Since::At(self.started_at),
            width: report::terminal_width(),
            ..UsageRequest::default()
        };
        report::usage(&store, &request, clock::wall(), out).await?;
        store.close().await;
        Ok(())
    }

    /// Commands that work while the demo is up, each with what it is for. `program` is how
    /// Taffrail is called.
    pub fn suggestions(&self, program: &str) -> Vec<(&'static str, String)> {
        let (proxy, admin) = (self.proxy(), self.admin());
        let (program, config) = (shell_word(program), config_file(self.folder()));
        let config = shell_word(&config.display().to_string());
        let ask = |case: &str| {
            format!(
                "curl -sN http://{proxy}/openai/v1/chat/completions \\\n    \
                 -H 'authorization: Bearer sk-demo' -H 'content-type: application/json' \\\n    \
                 -H '{FEATURE_HEADER}: mine'{case} \\\n    \
                 -d '{{\"model\":\"gpt-4o-mini\",\"stream\":true,\n         \
                 \"messages\":[{{\"role\":\"user\",\"content\":\"Ahoy!\"}}]}}'"
            )
        };
        let look = |arguments: &str| format!("{program} {arguments} \\\n    --config {config}");
        vec![
            ("Ask something yourself, through the proxy:", ask("")),
            (
                "The same on a bad day (or quota-exhausted, overloaded, truncated, …):",
                ask(&format!(
                    " -H '{CASE_HEADER}: {}'",
                    Case::RateLimited.as_str()
                )),
            ),
            ("The rows of both, newest first:", look("logs --limit 2")),
            (
                "Who spent what:",
                look(&format!("usage --by {FEATURE_LABEL},provider")),
            ),
            (
                "What Prometheus sees:",
                format!("curl -s http://{admin}/metrics | grep ^taffrail_cost_usd_total"),
            ),
        ]
    }

    fn suggest(&self, out: &mut dyn Write) -> io::Result<()> {
        let program = std::env::args().next();
        let program = program.unwrap_or_else(|| "taffrail".to_owned());
        writeln!(out, "\nThe demo is still up. Try:")?;
        for (purpose, command) in self.suggestions(&program) {
            writeln!(out, "\n  {purpose}\n  {command}")?;
        }
        let (admin, folder) = (self.admin(), self.folder().display());
        writeln!(out, "\nAll of it in a browser: http://{admin}/")?;
        writeln!(out, "Ctrl-C ends the demo and removes {folder}.")
    }

    /// Stops everything and removes the folder.
    ///
    /// # Errors
    ///
    /// If the journal cannot be written or the folder not be removed.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.app.stop(std::future::ready(())).await?;
        let path = self.folder.path().to_owned();
        let closed = self.folder.close();
        closed.with_context(|| format!("cannot remove {}", path.display()))
    }
}

/// How the clients' count compares, in a sentence or in as many lines as there are differences.
fn verdict(counts: &Counts, differences: &[String]) -> String {
    if differences.is_empty() {
        return format!(
            "The clients counted the same: {} requests, token for token and unit for unit.\n\
             Jobs count once, however often they were asked for: {} times.",
            counts.requests(),
            counts.polls
        );
    }
    format!(
        "The clients counted otherwise:\n  {}",
        differences.join("\n  ")
    )
}

fn config_file(folder: &Path) -> PathBuf {
    folder.join("taffrail.toml")
}

/// The configuration of a demo, as a file, so that other commands can be pointed at it.
fn config_text(
    folder: &Path,
    (proxy, admin): (SocketAddr, SocketAddr),
    setting: &Setting,
    lookalikes: &[LookAlike],
    billing: &Billing,
) -> anyhow::Result<String> {
    let text = |path: &Path| {
        let path = path
            .to_str()
            .context("the temporary folder's path is not UTF-8")?;
        // A JSON string is a TOML string too.
        anyhow::Ok(serde_json::Value::from(path).to_string())
    };
    let journal = text(&folder.join("journal"))?;
    let embedded = || format!("sqlite://{}", folder.join("taffrail.db").display());
    let store = text(Path::new(&setting.store.clone().unwrap_or_else(embedded)))?;
    let role = setting.role.as_str();
    let mut config = format!(
        "role = \"{role}\"\n\n\
         [proxy]\nlisten = \"{proxy}\"\nshutdown_grace = \"1s\"\n\n\
         [admin]\nlisten = \"{admin}\"\n\n\
         [journal]\ndir = {journal}\n\n\
         [store]\nurl = {store}\n\n\
         [attribution]\nheaders = {{ {FEATURE_LABEL} = \"{FEATURE_HEADER}\", \
         {TEAM_LABEL} = \"{TEAM_HEADER}\" }}\n\n\
         [log]\nlevel = \"warn\"\n\n{SCHEDULE}"
    );
    for lookalike in lookalikes {
        for (route, upstream) in lookalike.upstreams() {
            config.push_str(&format!(
                "\n[providers.{route}]\nupstream = \"{upstream}\"\n"
            ));
            if Billing::VENDORS.contains(&route) {
                config.push_str(&format!("billing_url = \"{}\"\n", billing.url()));
            }
        }
    }
    // It has an account and no traffic.
    config.push_str(&format!(
        "\n[providers.deepseek]\nbilling_url = \"{}\"\n",
        billing.url()
    ));
    config.push_str(ACCOUNTS);
    Ok(config)
}

/// A word of a command line, quoted if the shell would read anything into it.
fn shell_word(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// Reads `/metrics` in the form that [`Board::read`] understands.
async fn scrape(admin: SocketAddr) -> anyhow::Result<Bytes> {
    let stream = TcpStream::connect(admin).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its end is seen by the request.
    let _driver = AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) }));
    let request = Request::get("/metrics")
        .header(header::HOST, admin.to_string())
        .header(header::ACCEPT, board::ACCEPT)
        .body(Empty::<Bytes>::new())?;
    let body = sender.send_request(request).await?.into_body();
    let body = http_body_util::Limited::new(body, SCRAPE_BYTES_MAX);
    match body.collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => anyhow::bail!("{error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_the_shell_needs_it() {
        assert_eq!(
            shell_word("./target/debug/taffrail"),
            "./target/debug/taffrail"
        );
        assert_eq!(shell_word("/tmp/a b"), "'/tmp/a b'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word(""), "''");
    }

    #[tokio::test]
    async fn the_configuration_of_a_demo_holds() {
        let folder = tempfile::tempdir().unwrap();
        let lookalike = LookAlike::start(Vendor::OpenAi).await.unwrap();
        let (proxy, admin) = (
            "127.0.0.1:1".parse().unwrap(),
            "127.0.0.1:2".parse().unwrap(),
        );
        let (_, upstream) = lookalike.upstreams().next().unwrap();
        let billing = Billing::start(History::default()).await.unwrap();
        let setting = Setting::default();
        let text = config_text(
            folder.path(),
            (proxy, admin),
            &setting,
            &[lookalike],
            &billing,
        );
        let text = text.unwrap();
        std::fs::write(config_file(folder.path()), text).unwrap();
        let sources = Sources {
            file: Some(config_file(folder.path())),
            ..Sources::default()
        };
        let config = config::load(sources).unwrap().config;
        assert_eq!((config.proxy.listen, config.admin.listen), (proxy, admin));
        assert_eq!(config.providers["openai"].upstream, Some(upstream));
        assert_eq!(config.attribution.headers[FEATURE_LABEL], FEATURE_HEADER);
        assert!(config.store.url.ends_with("/taffrail.db"));
        assert_eq!(config.providers["openai"].billing_url, Some(billing.url()));
        assert_eq!(config.accounts.len(), 6);
    }
}
