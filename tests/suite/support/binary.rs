//! The real binary, in a directory of its own: started, watched, scraped and stopped.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytesize::ByteSize;
use serde_json::Value;
use taffrail::caller::{Caller, Instance};
use taffrail::clock;
use taffrail::fault::Outcome;
use taffrail::journal::disk::LocalDisk;
use taffrail::journal::{self, Journal};
use taffrail::record::{Intent, Operation, UsageRecord};
use taffrail::store::{self, LogQuery, LogRow, Store};
use taffrail::usage::Unit;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::chat::{Ask, MODEL};
pub(crate) use super::eventually::eventually;
use super::eventually::{LOOK_INTERVAL, PATIENCE};
use super::http::{Ending, ask};

/// Whether the long forms of the reliability tests run: under `TAFFRAIL_TORTURE=1`.
pub(crate) fn is_long() -> bool {
    std::env::var_os("TAFFRAIL_TORTURE").is_some_and(|value| value != "0")
}

/// A directory with a configuration, a journal and a store.
pub(crate) struct Home {
    dir: TempDir,
    /// The build that runs, an absolute path.
    pub(crate) binary: PathBuf,
    env: BTreeMap<String, String>,
    /// What is put before the binary: a program that runs its arguments.
    wrapper: Vec<String>,
}

impl Home {
    /// A home whose `openai` is at that address.
    pub(crate) fn new(openai: SocketAddr) -> Home {
        Home::with(&format!(
            "[providers.openai]\nupstream = \"http://{openai}\"\n"
        ))
    }

    /// A home with these tables beside those of ports and data. Listeners are on free ports.
    pub(crate) fn with(tables: &str) -> Home {
        let dir = tempfile::tempdir().unwrap();
        let own = "[proxy]\n\
                   listen = \"127.0.0.1:0\"\n\
                   [admin]\n\
                   listen = \"127.0.0.1:0\"\n\
                   [journal]\n\
                   dir = \"journal\"\n\
                   [store]\n\
                   url = \"sqlite://data/taffrail.db\"\n";
        let config = own.to_owned() + tables;
        std::fs::write(dir.path().join("taffrail.toml"), config).unwrap();
        // Another build of the binary can be put to the tests, as an absolute path.
        let other = std::env::var_os("TAFFRAIL_BINARY");
        let own = || env!("CARGO_BIN_EXE_taffrail").into();
        Home {
            dir,
            binary: other.map_or_else(own, PathBuf::from),
            env: BTreeMap::new(),
            wrapper: Vec::new(),
        }
    }

    /// A home that reaches no provider.
    pub(crate) fn without_provider() -> Home {
        Home::new("127.0.0.1:9".parse().unwrap())
    }

    /// Sets a key, by the name of its variable without `TAFFRAIL_`.
    pub(crate) fn set(&mut self, key: &str, value: impl Into<String>) {
        self.env.insert(format!("TAFFRAIL_{key}"), value.into());
    }

    /// Sets a variable that is none of Taffrail's own.
    pub(crate) fn set_variable(&mut self, name: &str, value: impl Into<String>) {
        self.env.insert(name.to_owned(), value.into());
    }

    /// Runs the binary through another program.
    pub(crate) fn wrap(&mut self, wrapper: &[&str]) {
        self.wrapper = wrapper.iter().map(|&word| word.to_owned()).collect();
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.path().join("journal")
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.path().join("data/taffrail.db")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let wrapper = self.wrapper.iter().map(OsStr::new);
        let mut words = wrapper
            .chain([self.binary.as_os_str()])
            .chain(arguments.iter().map(OsStr::new));
        let mut command = Command::new(words.next().unwrap());
        command
            .args(words)
            .current_dir(self.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(&self.env)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs a command to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Ran {
        let output = tokio::time::timeout(PATIENCE, self.command(arguments).output()).await;
        let output = output.expect("the command does not end").unwrap();
        Ran {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Starts the server and waits until it is ready.
    pub(crate) async fn start(&self) -> Server {
        self.spawn().ready().await
    }

    /// Starts the server.
    pub(crate) fn spawn(&self) -> Process {
        let started = clock::instant();
        let mut child = self
            .command(&["run"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (serving, addresses) = watch::channel(None);
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let written = log.clone();
        let reader = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let event: Value = serde_json::from_str(&line).unwrap_or_default();
                let address = |key: &str| event[key].as_str().and_then(|text| text.parse().ok());
                if event["message"] == "serving" {
                    let admin = address("admin");
                    serving.send_replace(address("proxy").or(admin).zip(admin));
                }
                let mut log = written.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        Process {
            child,
            log,
            reader,
            addresses,
            started,
        }
    }

    /// Fills the journal as a process does that serves requests 0 to `count`; returns its bytes.
    pub(crate) fn fill_journal(&self, count: u64, segment_bytes: ByteSize) -> u64 {
        let journal = self.open_journal(segment_bytes);
        for number in 0..count {
            let (intent, record) = finished(number);
            journal.intent(&intent).unwrap();
            journal.record(&record).unwrap();
        }
        journal.stats().disk_bytes
    }

    /// Puts records into the journal, as a process leaves them that did not reach its store.
    pub(crate) fn leave_in_journal(&self, records: &[UsageRecord]) {
        let journal = self.open_journal(ByteSize::mib(8));
        for record in records {
            journal.record(record).unwrap();
        }
    }

    fn open_journal(&self, segment_bytes: ByteSize) -> Journal {
        let config = journal::Config {
            dir: self.journal(),
            segment_bytes,
            ..journal::Config::default()
        };
        let disk = Arc::new(LocalDisk);
        Journal::open(&config, disk, Arc::new(|_| {})).unwrap().0
    }

    /// The store's rows, all of them, newest first.
    pub(crate) async fn rows(&self) -> Vec<LogRow> {
        let store = Store::open_read_only(&self.store_config()).await.unwrap();
        let mut query = LogQuery {
            limit: 5_000,
            before: None,
            provider: None,
            outcome: None,
        };
        let mut rows = Vec::new();
        loop {
            let page = store.logs(&query).await.unwrap();
            let Some(last) = page.last() else { break };
            query.before = Some(last.get("id").as_text().unwrap().parse().unwrap());
            rows.extend(page);
        }
        store.close().await;
        rows
    }

    /// Every row as `taffrail logs` prints it, newest first.
    pub(crate) async fn logs(&self) -> Vec<Value> {
        let ran = self.run(&["logs", "--all", "--format", "json"]).await;
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        let lines = ran.stdout.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Every file, with its bytes.
    pub(crate) fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        read_files(self.path(), &mut files);
        files
    }

    fn store_config(&self) -> store::Config {
        // A database file is at the same place in every home, however the URL says so.
        let own = || format!("sqlite://{}", self.database().display());
        let set = self.env.get("TAFFRAIL_STORE__URL");
        let server = set.filter(|url| !url.starts_with("sqlite:"));
        store::Config {
            url: server.cloned().unwrap_or_else(own),
            ..store::Config::default()
        }
    }
}

fn read_files(folder: &Path, into: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_files(&path, into);
        } else {
            let bytes = std::fs::read(&path).unwrap();
            into.push((path, bytes));
        }
    }
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// The last line of standard error; lines of the log may come before it.
    pub(crate) fn last_line(&self) -> &str {
        self.stderr.lines().last().unwrap_or_default()
    }
}

/// A server that was started. It is killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    log: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
    addresses: watch::Receiver<Option<(SocketAddr, SocketAddr)>>,
    started: Instant,
}

impl Process {
    /// Waits until both listeners answer.
    pub(crate) async fn ready(mut self) -> Server {
        let serving = self.addresses.wait_for(Option::is_some);
        let serving = tokio::time::timeout(PATIENCE, serving).await;
        let addresses = serving
            .ok()
            .and_then(|found| found.ok().map(|found| *found));
        let Some((proxy, admin)) = addresses.flatten() else {
            panic!("the server does not serve: {}", self.log());
        };
        let answer = get(admin, "/-/ready").await;
        assert_eq!(answer, (200, "ready\n".to_owned()));
        Server {
            startup: self.started.elapsed(),
            process: self,
            proxy,
            admin,
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id().expect("the server has ended")
    }

    /// What it has written to standard error so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Sends SIGKILL and waits for the end.
    pub(crate) async fn kill(mut self) -> String {
        self.child.kill().await.unwrap();
        self.ended().await.1
    }

    /// Waits for the end.
    pub(crate) async fn ended(mut self) -> (ExitStatus, String) {
        let Ok(status) = tokio::time::timeout(PATIENCE, self.child.wait()).await else {
            panic!("the server does not end: {}", self.log());
        };
        self.reader.await.unwrap();
        let log = self.log.lock().unwrap().clone();
        (status.unwrap(), log)
    }
}

/// A server that is ready.
pub(crate) struct Server {
    pub(crate) process: Process,
    /// The admin listener's where there is no proxy.
    pub(crate) proxy: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// From its start to its first answer on `/-/ready`.
    pub(crate) startup: Duration,
}

impl Server {
    /// The proxy's address for TLS, as the log says.
    pub(crate) fn proxy_tls(&self) -> SocketAddr {
        let log = self.process.log();
        let address = log.lines().find_map(|line| {
            let event: Value = serde_json::from_str(line).unwrap_or_default();
            event["proxy_tls"].as_str()?.parse().ok()
        });
        address.expect("the proxy does not speak TLS")
    }

    /// Sends a signal by its name without `SIG`.
    pub(crate) async fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args(["-s", name, &self.process.id().to_string()])
            .status()
            .await;
        assert!(sent.unwrap().success(), "SIG{name} was not sent");
    }

    /// Sends SIGTERM, waits for the end and asserts that it is a good one; returns the log.
    pub(crate) async fn stop(self) -> String {
        self.signal("TERM").await;
        let (status, log) = self.process.ended().await;
        assert_eq!(status.code(), Some(0), "{log}");
        log
    }

    /// A scrape.
    pub(crate) async fn scrape(&self) -> Scrape {
        let (status, text) = get(self.admin, "/metrics").await;
        assert_eq!(status, 200);
        Scrape(text)
    }

    /// Waits until the journal holds no record and every completed one is accounted for.
    pub(crate) async fn quiet(&self) -> Scrape {
        self.once("it is at rest", |scrape| {
            scrape.sum("taffrail_journal_pending_records", &[]) == 0
                && scrape.sum("taffrail_requests_in_flight", &[]) == 0
                && scrape.law_holds()
        })
        .await
    }

    /// Waits until that many records are stored.
    pub(crate) async fn stored(&self, count: usize) -> Scrape {
        let count = u64::try_from(count).unwrap();
        self.once(&format!("{count} records are stored"), |scrape| {
            scrape.stage("stored") >= count
        })
        .await
    }

    /// Scrapes again and again until it holds.
    pub(crate) async fn once(&self, what: &str, holds: impl Fn(&Scrape) -> bool) -> Scrape {
        let deadline = clock::instant() + PATIENCE;
        loop {
            let scrape = self.scrape().await;
            if holds(&scrape) {
                return scrape;
            }
            assert!(clock::instant() < deadline, "never: {what}: {}", scrape.0);
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}

/// Chance that can be repeated: SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn seeded() -> Chance {
        let seed = match std::env::var("TAFFRAIL_SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => clock::new_id().as_u64_pair().1,
        };
        eprintln!("TAFFRAIL_SEED={seed}");
        Chance(seed)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    pub(crate) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// The number of the request that a row is of.
pub(crate) fn number(row: &LogRow) -> u64 {
    let trace_id = row.get("trace_id").as_text().unwrap();
    u64::from_str_radix(trace_id, 16).unwrap() - 1
}

pub(crate) fn outcome(row: &LogRow) -> &str {
    row.get("outcome").as_text().unwrap()
}

/// A finished request, and the intent before it.
fn finished(number: u64) -> (Intent, UsageRecord) {
    let ask = Ask::plain(number);
    let intent = Intent {
        id: clock::new_id(),
        started_at: clock::wall(),
        provider: "openai".into(),
        operation: Operation::Chat,
        method: "POST".into(),
        route: "/v1/chat/completions".into(),
        model_requested: Some(MODEL.into()),
        caller: Caller {
            trace_id: Some(ask.trace_id()),
            ..Caller::default()
        },
        job: None,
    };
    let mut record = intent.clone().interrupted(Instance::default());
    let (input, output) = ask.tokens();
    record.outcome = Outcome::Ok;
    record.http_status = Some(200);
    record.provider_request_id = Some(ask.response_id());
    record.usage.set(Unit::Input, input);
    record.usage.set(Unit::Output, output);
    record.raw_usage = Some(ask.usage().to_string());
    (intent, record)
}

/// Asks the admin listener; returns status and body.
pub(crate) async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    let seen = ask(address, request.as_bytes()).await;
    assert_eq!(seen.ending, Ending::Complete, "{path}");
    (seen.status, String::from_utf8(seen.body).unwrap())
}

/// The text of `/metrics`.
#[derive(Debug)]
pub(crate) struct Scrape(pub(crate) String);

impl Scrape {
    /// The values of a family's samples that have all of these labels.
    fn values<'a>(
        &'a self,
        family: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = f64> + 'a {
        self.0.lines().filter_map(move |line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (name, rest) = series.split_once('{').unwrap_or((series, ""));
            let is_meant = name == family
                && labels
                    .iter()
                    .all(|(label, value)| rest.contains(&format!("{label}=\"{value}\"")));
            is_meant.then(|| value.parse().unwrap())
        })
    }

    /// The sum of whole numbers.
    pub(crate) fn sum(&self, family: &str, labels: &[(&str, &str)]) -> u64 {
        self.values(family, labels)
            .map(|value| format!("{value}").parse::<u64>().unwrap())
            .sum()
    }

    /// The sum of any numbers.
    pub(crate) fn total(&self, family: &str) -> f64 {
        self.values(family, &[]).sum()
    }

    /// Records that reached a stage, for any reason.
    pub(crate) fn stage(&self, stage: &str) -> u64 {
        self.sum("taffrail_records_total", &[("stage", stage)])
    }

    /// Both laws of docs/metrics.md: what completed is journaled or dropped, and what is
    /// journaled is stored, stored before, put aside or pending.
    pub(crate) fn law_holds(&self) -> bool {
        let journaled = [("stage", "journaled"), ("reason", "none")];
        let journaled_here = self.sum("taffrail_records_total", &journaled);
        let pending = self.sum("taffrail_journal_pending_records", &[]);
        let beyond = self.stage("stored") + self.stage("duplicate") + self.stage("dead_lettered");
        self.stage("completed") == journaled_here + self.stage("dropped")
            && self.stage("journaled") == beyond + pending
    }
}
