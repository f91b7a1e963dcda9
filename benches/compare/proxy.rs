//! What is compared: no proxy at all, nginx, and Taffrail, each pinned to the proxies' CPU.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::load::first_answer;
use super::support::binary::{Home, Process, Server};
use super::support::postgres::Cluster;
use super::upstream::{Answer, HOST, Upstream};

/// The CPU of the proxies; everything else has the first one.
const PROXY_CPU: &str = "1";
const OTHER_CPU: &str = "0";

/// A way from the client to the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Direct,
    Nginx,
    NginxLog,
    TaffrailSqlite,
    TaffrailPostgres,
    /// The build that `TAFFRAIL_BASELINE` names, with SQLite.
    Baseline,
}

impl Kind {
    pub(crate) const ALL: [Kind; 6] = [
        Kind::Direct,
        Kind::Nginx,
        Kind::NginxLog,
        Kind::TaffrailSqlite,
        Kind::TaffrailPostgres,
        Kind::Baseline,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Direct => "direct",
            Kind::Nginx => "nginx, access_log off",
            Kind::NginxLog => "nginx, JSON access log",
            Kind::TaffrailSqlite => "Taffrail, SQLite",
            Kind::TaffrailPostgres => "Taffrail, Postgres",
            Kind::Baseline => "Taffrail of TAFFRAIL_BASELINE, SQLite",
        }
    }

    /// What comes before the upstream's path.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Kind::Direct | Kind::Nginx | Kind::NginxLog => "",
            Kind::TaffrailSqlite | Kind::TaffrailPostgres | Kind::Baseline => "/openai",
        }
    }
}

/// What the proxies are started with.
pub(crate) struct Setting {
    pub(crate) upstream: Upstream,
    pub(crate) is_tls: bool,
    /// Where there is a Postgres.
    pub(crate) cluster: Option<Cluster>,
    is_pinned: bool,
    baseline: Option<PathBuf>,
    nginx: Option<String>,
}

impl Setting {
    /// Pins this process, and with it all that it starts but the proxies. Says what is missing.
    pub(crate) async fn prepare() -> Setting {
        let own = std::process::id().to_string();
        let is_pinned = Command::new("taskset")
            .args(["-a", "-c", "-p", OTHER_CPU, &own])
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
            && pinned("true").status().is_ok_and(|status| status.success());
        if !is_pinned {
            println!("MISSING: taskset or a second CPU; nothing is pinned");
        }
        let nginx = ["nginx", "/usr/sbin/nginx"].into_iter().find(|program| {
            let version = Command::new(program).arg("-v").output();
            version.is_ok_and(|output| {
                println!("{}", String::from_utf8_lossy(&output.stderr).trim());
                output.status.success()
            })
        });
        if nginx.is_none() {
            println!("MISSING: nginx; ratios are missing with it");
        }
        let settings = [("fsync", "on"), ("shared_buffers", "256MB")];
        let cluster = Cluster::start(Default::default(), &settings).await;
        if cluster.is_none() {
            println!("MISSING: Postgres");
        }
        Setting {
            upstream: Upstream::start(),
            is_tls: false,
            cluster,
            is_pinned,
            baseline: std::env::var_os("TAFFRAIL_BASELINE").map(PathBuf::from),
            nginx: nginx.map(str::to_owned),
        }
    }

    /// The kinds that can be started here.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        let is_there = |kind: &Kind| match kind {
            Kind::Direct => true,
            Kind::Nginx | Kind::NginxLog => self.nginx.is_some(),
            Kind::TaffrailSqlite => true,
            Kind::TaffrailPostgres => self.cluster.is_some(),
            Kind::Baseline => self.baseline.is_some(),
        };
        Kind::ALL.into_iter().filter(is_there).collect()
    }

    /// Sets up a proxy, which does not run yet.
    pub(crate) async fn proxy(&self, kind: Kind) -> Proxy {
        let (address, how) = match kind {
            Kind::Direct => (self.upstream.plain, How::Direct),
            Kind::Nginx | Kind::NginxLog => {
                let address = free_address();
                let dir = self.nginx_dir(address, kind == Kind::NginxLog);
                (address, How::Nginx(dir, None))
            }
            Kind::TaffrailSqlite | Kind::TaffrailPostgres | Kind::Baseline => {
                let address = free_address();
                let home = Box::new(self.home(kind, address).await);
                (address, How::Taffrail(home, None))
            }
        };
        Proxy { kind, address, how }
    }

    fn nginx_dir(&self, address: SocketAddr, has_log: bool) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display();
        let (scheme, upstream) = match self.is_tls {
            false => ("http", self.upstream.plain),
            true => ("https", self.upstream.tls),
        };
        std::fs::write(dir.path().join("ca.pem"), &self.upstream.authority).unwrap();
        let log = match has_log {
            false => "access_log off;".to_owned(),
            true => format!("access_log {path}/access.log json;"),
        };
        let mut config = format!(
            "daemon off; worker_processes 1; worker_rlimit_nofile 8192; pid {path}/pid;
             error_log {path}/error.log;
             events {{ worker_connections 4096; }}
             http {{
                 log_format json escape=json '{{\"time\":\"$time_iso8601\",\"method\":\"$request_method\",\
                     \"uri\":\"$uri\",\"status\":$status,\"bytes\":$body_bytes_sent,\
                     \"request_bytes\":$request_length,\"seconds\":$request_time,\
                     \"upstream_seconds\":\"$upstream_response_time\",\"agent\":\"$http_user_agent\",\
                     \"request_id\":\"$upstream_http_x_request_id\"}}';
                 {log}
                 tcp_nodelay on;
                 upstream provider {{ server {upstream}; keepalive 256; keepalive_requests 1000000; }}
                 server {{
                     listen {address} backlog=4096;
                     keepalive_requests 1000000;
                     location / {{
                         proxy_pass {scheme}://provider;
                         proxy_http_version 1.1;
                         proxy_set_header Connection \"\";
                         proxy_set_header Host {HOST};
                         proxy_buffering off;
                         proxy_read_timeout 600s;
                         proxy_ssl_trusted_certificate {path}/ca.pem;
                         proxy_ssl_verify on;
                         proxy_ssl_name {HOST};
                         proxy_ssl_server_name on;
                         proxy_ssl_protocols TLSv1.3;
                     }}
                 }}\n"
        );
        for module in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            writeln!(config, "{module}_temp_path {path}/{module};").unwrap();
        }
        config.push_str("}\n");
        std::fs::write(dir.path().join("nginx.conf"), config).unwrap();
        dir
    }

    async fn home(&self, kind: Kind, address: SocketAddr) -> Home {
        let upstream = match self.is_tls {
            false => format!("http://{}", self.upstream.plain),
            true => format!("https://{HOST}:{}", self.upstream.tls.port()),
        };
        let mut home = Home::with(&format!("[providers.openai]\nupstream = \"{upstream}\"\n"));
        std::fs::write(home.path().join("ca.pem"), &self.upstream.authority).unwrap();
        home.set("PROXY__UPSTREAM_CA_FILE", "ca.pem");
        home.set("PROXY__LISTEN", address.to_string());
        // As the image sets it.
        home.set_variable("MALLOC_ARENA_MAX", "1");
        if self.is_pinned {
            home.wrap(&["taskset", "-c", PROXY_CPU]);
        }
        if let (Kind::TaffrailPostgres, Some(cluster)) = (kind, &self.cluster) {
            home.set("STORE__URL", cluster.database().await.url());
        }
        if let (Kind::Baseline, Some(binary)) = (kind, &self.baseline) {
            home.binary.clone_from(binary);
        }
        home
    }

    fn start_nginx(&self, dir: &TempDir) -> Nginx {
        let program = self.nginx.as_deref().unwrap();
        let mut command = match self.is_pinned {
            true => pinned(program),
            false => Command::new(program),
        };
        let (config, log) = (dir.path().join("nginx.conf"), dir.path().join("error.log"));
        let child = command.arg("-c").arg(config).arg("-e").arg(log).spawn();
        Nginx(child.unwrap())
    }
}

fn pinned(program: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", PROXY_CPU, program]);
    command
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

/// A proxy, running or not.
pub(crate) struct Proxy {
    pub(crate) kind: Kind,
    pub(crate) address: SocketAddr,
    how: How,
}

enum How {
    Direct,
    Nginx(TempDir, Option<Nginx>),
    Taffrail(Box<Home>, Option<Box<Running>>),
}

enum Running {
    Started(Process),
    Ready(Server),
}

impl Running {
    fn id(&self) -> u32 {
        match self {
            Running::Started(process) => process.id(),
            Running::Ready(server) => server.process.id(),
        }
    }
}

impl Proxy {
    /// Starts the process and does not wait for anything.
    pub(crate) fn spawn(&mut self, setting: &Setting) {
        match &mut self.how {
            How::Direct => {}
            How::Nginx(dir, nginx) => *nginx = Some(setting.start_nginx(dir)),
            How::Taffrail(home, running) => {
                *running = Some(Box::new(Running::Started(home.spawn())));
            }
        }
    }

    /// Starts the process and waits for its first answer.
    pub(crate) async fn start(&mut self, setting: &Setting) {
        match &mut self.how {
            How::Taffrail(home, running) => {
                *running = Some(Box::new(Running::Ready(home.start().await)));
            }
            _ => self.spawn(setting),
        }
        first_answer(self.address, &Answer::Whole.request(self.kind.prefix()));
    }

    /// Waits until nothing is left to do: of Taffrail, until the last row is stored.
    pub(crate) async fn rest(&self) {
        if let How::Taffrail(_, Some(running)) = &self.how
            && let Running::Ready(server) = running.as_ref()
        {
            server.quiet().await;
        }
    }

    /// Ends the process.
    pub(crate) async fn stop(&mut self) {
        match &mut self.how {
            How::Direct => {}
            How::Nginx(_, nginx) => *nginx = None,
            How::Taffrail(_, running) => match running.take().map(|running| *running) {
                Some(Running::Started(process)) => drop(process.kill().await),
                Some(Running::Ready(server)) => drop(server.stop().await),
                None => {}
            },
        }
    }

    /// The process that serves: of nginx, the worker.
    fn id(&self) -> Option<u32> {
        match &self.how {
            How::Direct => None,
            How::Nginx(_, nginx) => nginx.as_ref().map(Nginx::worker),
            How::Taffrail(_, running) => running.as_ref().map(|running| running.id()),
        }
    }

    /// The run time of its threads so far.
    pub(crate) fn cpu(&self) -> Cpu {
        self.id().map(Cpu::of).unwrap_or_default()
    }

    /// Resident bytes: those now, and the most there have been.
    pub(crate) fn resident(&self) -> Option<(u64, u64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()?)).unwrap();
        let bytes = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
            kib.parse::<u64>().unwrap() << 10
        };
        Some((bytes("VmRSS:"), bytes("VmHWM:")))
    }
}

/// A master with its worker. They end when this is dropped.
struct Nginx(Child);

impl Nginx {
    fn worker(&self) -> u32 {
        let id = self.0.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        let child = children.split_whitespace().next();
        child.expect("nginx has no worker").parse().unwrap()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let id = Pid::from_child(&self.0);
        kill_process(id, Signal::TERM).unwrap();
        self.0.wait().unwrap();
    }
}

/// How long the proxies' CPU has been busy, to a hundredth of a second.
pub(crate) fn busy() -> Duration {
    let stat = std::fs::read_to_string("/proc/stat").unwrap();
    let line = stat
        .lines()
        .find_map(|line| line.strip_prefix("cpu")?.strip_prefix(PROXY_CPU));
    let ticks: Vec<u64> = line
        .unwrap_or_default()
        .split_whitespace()
        .map(|ticks| ticks.parse().unwrap())
        .collect();
    // user, nice, system, (idle, iowait,) irq, softirq, steal
    let busy: u64 = [0, 1, 2, 5, 6, 7]
        .iter()
        .filter_map(|&at| ticks.get(at))
        .sum();
    Duration::from_millis(busy * 10)
}

/// The run time of a process's threads, by thread.
#[derive(Debug, Default)]
pub(crate) struct Cpu(BTreeMap<u32, (String, Duration)>);

impl Cpu {
    fn of(id: u32) -> Cpu {
        let mut threads = BTreeMap::new();
        for entry in std::fs::read_dir(format!("/proc/{id}/task")).unwrap() {
            let path = entry.unwrap().path();
            let number = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
            let read = |name: &str| std::fs::read_to_string(path.join(name));
            // A thread may end meanwhile.
            let (Ok(name), Ok(stat)) = (read("comm"), read("schedstat")) else {
                continue;
            };
            let nanos = stat.split(' ').next().unwrap().parse().unwrap();
            let name = name.trim_end().to_owned();
            threads.insert(number, (name, Duration::from_nanos(nanos)));
        }
        Cpu(threads)
    }

    /// What each name's threads took since then.
    pub(crate) fn since(&self, before: &Cpu) -> BTreeMap<String, Duration> {
        let mut taken = BTreeMap::new();
        for (number, (name, now)) in &self.0 {
            let then = before.0.get(number).map_or(Duration::ZERO, |one| one.1);
            *taken.entry(name.clone()).or_default() += now.saturating_sub(then);
        }
        taken
    }
}
