//! Throwaway Postgres clusters on loopback, and a PgBouncer before them.
//!
//! Whatever is started here ends with its value, or with the test process, however that ends:
//! its guard is a shell that waits for the end of a pipe which only the test process holds open.
//! A test whose Postgres or PgBouncer is missing gets `None`: it is skipped, loudly, and fails
//! under `CI=1`.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytesize::ByteSize;
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, Row as _};
use sqlx::{ValueRef as _, raw_sql};
use taffrail::clock;
use tokio::sync::OnceCell;

use super::certificate::Issued;
use super::eventually::eventually;

/// The superuser of every cluster.
const USER: &str = "postgres";

/// How long a server may take until it answers.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs its arguments until there is a line on its input, the signal that ends them. Where the
/// input ends without one it ends them by the signal `$2` and removes the directory `$1`.
const GUARD: &str = r#"
    trap '' INT TERM HUP
    dir=$1 default=$2; shift 2
    "$@" </dev/null >>"$dir/log" 2>&1 &
    read -r signal
    kill -s "${signal:-$default}" $!; wait $! 2>/dev/null
    [ -n "$signal" ] || rm -rf "$dir" 2>/dev/null
"#;

/// Runs its arguments with a tmpfs at `$1`, which is gone with them; `$2` are its options.
const ON_SMALL_DISK: &str = r#"mount -t tmpfs -o "$2" tmpfs "$1" && shift 2 && exec "$@""#;

/// Which Postgres.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Version {
    /// The machine's own: on `PATH`, else the newest of Debian's packages.
    #[default]
    Default,
    /// 18, as `scripts/test-setup.sh` puts it into `target`.
    V18,
}

impl Version {
    /// The folder of its programs.
    fn bin(self) -> Option<PathBuf> {
        let found = match self {
            Version::Default => on_path("initdb").or_else(newest_of_debian),
            Version::V18 => NEWEST.clone(),
        };
        found
            .filter(|bin| runs(owned(bin.join("initdb")).arg("--version")))
            .or_else(|| skip(&format!("Postgres ({self:?})")))
    }
}

/// Version 18, where the user that Postgres runs as can reach it: a checkout may lie in a folder of
/// root's alone, and then a copy beside the other temporary files is what runs.
static NEWEST: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/postgres-18");
    let initdb = |folder: &Path| runs(owned(folder.join("bin/initdb")).arg("--version"));
    if initdb(&folder) || !folder.join("bin/initdb").exists() {
        return Some(folder.join("bin"));
    }
    let copy = std::env::temp_dir().join("taffrail-postgres-18");
    if !initdb(&copy) {
        let mut copying = Command::new("cp");
        copying.arg("-rT").arg(&folder).arg(&copy);
        assert!(runs(&mut copying), "cannot copy {}", folder.display());
        let mut opening = Command::new("chmod");
        assert!(runs(opening.args(["-R", "go+rX"]).arg(&copy)));
    }
    Some(copy.join("bin"))
});

pub(super) fn skip<T>(missing: &str) -> Option<T> {
    let problem = format!("no {missing}: run scripts/test-setup.sh");
    assert!(std::env::var("CI").as_deref() != Ok("1"), "{problem}");
    eprintln!("SKIP: {problem}");
    None
}

pub(super) fn runs(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// The folder of a program on `PATH`, links followed.
fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).find_map(|dir| dir.join(name).canonicalize().ok());
    Some(found?.parent()?.to_owned())
}

fn newest_of_debian() -> Option<PathBuf> {
    let installed = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let bins = installed.filter_map(|version| {
        let version = version.ok()?;
        let number: u32 = version.file_name().to_str()?.parse().ok()?;
        let bin = version.path().join("bin");
        bin.join("initdb").exists().then_some((number, bin))
    });
    Some(bins.max()?.1)
}

/// The user and group that servers run as where the tests run as root, which servers refuse.
fn owner() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let ids = |name: &str| {
        let line = users
            .lines()
            .find(|line| line.split(':').next() == Some(name));
        let mut fields = line?.split(':').skip(2).map(|id| id.parse().unwrap());
        Some((fields.next()?, fields.next()?))
    };
    Some(ids("postgres").or_else(|| ids("nobody")).unwrap())
}

/// What is put before a command that must not run as root.
fn as_owner() -> Vec<String> {
    let Some((user, group)) = owner() else {
        return Vec::new();
    };
    let command = format!("setpriv --reuid={user} --regid={group} --clear-groups");
    command.split(' ').map(str::to_owned).collect()
}

/// A command that does not run as root.
fn owned(program: impl AsRef<OsStr>) -> Command {
    let mut command = match as_owner().as_slice() {
        [] => Command::new(program),
        [setpriv, options @ ..] => {
            let mut command = Command::new(setpriv);
            command.args(options).arg(program);
            command
        }
    };
    // The directory of the tests may be closed to its user.
    command.current_dir("/").stdin(Stdio::null());
    command
}

/// A new directory, which nothing but its guard removes.
fn directory() -> PathBuf {
    let dir = tempfile::Builder::new().prefix("taffrail-").tempdir();
    let dir = dir.unwrap().keep();
    give(&dir);
    dir
}

fn give(path: &Path) {
    if let Some((user, group)) = owner() {
        std::os::unix::fs::chown(path, Some(user), Some(group)).unwrap();
    }
}

/// A port that no connection is given by chance, so that a server finds it free again.
pub(super) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let offset = std::process::id() * 64 + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(10_000 + offset % 20_000).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// A server that ends when this is dropped, and takes its directory along.
pub(super) struct Guard {
    shell: Child,
}

impl Guard {
    /// Runs the words, with what they say in the file `log`. `wrapper` is put before all.
    fn start(wrapper: &[String], dir: &Path, signal: &str, words: &[String]) -> Guard {
        let before = [wrapper.to_vec(), as_owner()].concat();
        Guard::start_behind(before, dir, signal, words)
    }

    /// The same as the user of the tests.
    pub(super) fn start_here(dir: &Path, signal: &str, words: &[impl AsRef<str>]) -> Guard {
        Guard::start_behind(Vec::new(), dir, signal, words)
    }

    fn start_behind(
        before: Vec<String>,
        dir: &Path,
        signal: &str,
        words: &[impl AsRef<str>],
    ) -> Guard {
        let mut all = before;
        all.extend(["sh", "-c", GUARD, "sh"].map(str::to_owned));
        all.extend([dir.display().to_string(), signal.to_owned()]);
        all.extend(words.iter().map(|word| word.as_ref().to_owned()));
        let shell = Command::new(&all[0])
            .args(&all[1..])
            .current_dir("/")
            .stdin(Stdio::piped())
            .spawn();
        Guard {
            shell: shell.unwrap(),
        }
    }

    /// Ends the server by a signal and keeps its directory.
    async fn end(mut self, signal: &str) {
        let mut stdin = self.shell.stdin.take().unwrap();
        writeln!(stdin, "{signal}").unwrap();
        eventually("the server ends", async || {
            self.shell.try_wait().unwrap().is_some()
        })
        .await;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        self.shell.wait().ok();
    }
}

/// What a cluster may have beside its settings.
#[derive(Clone, Copy, Default)]
pub(crate) struct Setup<'a> {
    pub(crate) version: Version,
    /// Of `postgresql.conf`; they come after those of the harness, and so before them in rank.
    pub(crate) settings: &'a [(&'a str, &'a str)],
    /// Asked for by SCRAM. Without one everybody is let in.
    pub(crate) password: Option<&'a str>,
    /// Makes the server offer TLS with this certificate.
    pub(crate) certificate: Option<&'a Issued>,
    /// The size of a disk for [`Cluster::database_on_small_disk`]; a database alone takes 8 MiB.
    pub(crate) small_disk: Option<ByteSize>,
}

/// A Postgres server with data of its own.
pub(crate) struct Cluster {
    bin: PathBuf,
    dir: PathBuf,
    /// What the server is run by: a shell that mounts the small disk first.
    wrapper: Vec<String>,
    settings: Vec<String>,
    password: Option<String>,
    port: u16,
    /// While it runs.
    guard: Option<Guard>,
}

impl Cluster {
    /// Starts a cluster for one test, which may stop it.
    pub(crate) async fn start(version: Version, settings: &[(&str, &str)]) -> Option<Cluster> {
        let setup = Setup {
            version,
            settings,
            ..Setup::default()
        };
        Cluster::start_as(setup).await
    }

    /// The cluster of all tests that need no more than a database.
    pub(crate) async fn shared(version: Version) -> Option<&'static Cluster> {
        static CLUSTERS: [OnceCell<Option<Cluster>>; 2] = [const { OnceCell::const_new() }; 2];
        let cluster = &CLUSTERS[version as usize];
        let start = async || Cluster::start(version, &[]).await;
        cluster.get_or_init(start).await.as_ref()
    }

    /// Starts a cluster as it is set up.
    pub(crate) async fn start_as(setup: Setup<'_>) -> Option<Cluster> {
        let bin = setup.version.bin()?;
        let settings = setup.settings.iter();
        let mut cluster = Cluster {
            bin,
            dir: directory(),
            wrapper: Vec::new(),
            settings: settings
                .map(|(key, value)| format!("{key}={value}"))
                .collect(),
            password: setup.password.map(str::to_owned),
            port: free_port(),
            guard: None,
        };
        if let Some(bytes) = setup.small_disk {
            cluster.wrapper = small_disk(&cluster.dir.join("disk"), bytes)?;
        }
        let mut initdb = owned(cluster.bin.join("initdb"));
        initdb
            .args(["--no-sync", "-E", "UTF8", "--locale=C.UTF-8", "-U", USER])
            .arg("-D")
            .arg(cluster.data_dir());
        match &cluster.password {
            Some(password) => {
                let file = cluster.dir.join("password");
                std::fs::write(&file, password).unwrap();
                give(&file);
                initdb.args(["-A", "scram-sha-256", "--pwfile"]).arg(file);
            }
            None => {
                initdb.args(["-A", "trust"]);
            }
        }
        run(initdb).await;
        if let Some(issued) = setup.certificate {
            let (certificate, key) = (issued.certificate.pem(), issued.key.serialize_pem());
            for (name, pem) in [("server.crt", certificate), ("server.key", key)] {
                let file = cluster.data_dir().join(name);
                std::fs::write(&file, pem).unwrap();
                // Postgres refuses a key that others may read.
                std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
                give(&file);
            }
            cluster.settings.push("ssl=on".to_owned());
        }
        cluster.start_again().await;
        Some(cluster)
    }

    /// A hot standby, which answers queries and refuses to write.
    pub(crate) async fn standby(&self) -> Cluster {
        let mut standby = Cluster {
            bin: self.bin.clone(),
            dir: directory(),
            wrapper: Vec::new(),
            settings: self.settings.clone(),
            password: self.password.clone(),
            port: free_port(),
            guard: None,
        };
        let mut backup = owned(self.bin.join("pg_basebackup"));
        backup
            .args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync"])
            .args(["-h", "127.0.0.1", "-U", USER, "-p", &self.port.to_string()])
            .arg("-D")
            .arg(standby.data_dir())
            .env("PGPASSWORD", self.password.as_deref().unwrap_or_default());
        run(backup).await;
        standby.start_again().await;
        standby
    }

    /// Starts the server that was stopped, at the same address, and waits until it answers.
    pub(crate) async fn start_again(&mut self) {
        assert!(self.guard.is_none(), "it runs");
        let own = [
            format!("port={}", self.port),
            "listen_addresses=127.0.0.1".to_owned(),
            format!("unix_socket_directories={}", self.dir.display()),
            "fsync=off".to_owned(),
            "max_connections=200".to_owned(),
        ];
        let mut words = vec![
            self.bin.join("postgres").display().to_string(),
            "-D".to_owned(),
            self.data_dir().display().to_string(),
        ];
        for setting in own.iter().chain(&self.settings) {
            words.extend(["-c".to_owned(), setting.clone()]);
        }
        // An immediate shutdown, by which it leaves nothing behind in memory.
        self.guard = Some(Guard::start(&self.wrapper, &self.dir, "QUIT", &words));
        answers(&self.reach("postgres"), &self.dir).await;
    }

    /// Stops at once, as a crash does: recovery comes with the next start.
    pub(crate) async fn stop_immediate(&mut self) {
        self.guard.take().unwrap().end("QUIT").await;
    }

    /// Stops in order, without waiting for clients.
    pub(crate) async fn stop_fast(&mut self) {
        self.guard.take().unwrap().end("INT").await;
    }

    pub(crate) async fn restart_immediate(&mut self) {
        self.stop_immediate().await;
        self.start_again().await;
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The process id of the server that runs.
    pub(crate) fn id(&self) -> u32 {
        let file = std::fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap();
        file.lines().next().unwrap().parse().unwrap()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Makes a database that no other test has.
    pub(crate) async fn database(&self) -> Database {
        self.database_with("").await
    }

    /// Makes a database whose tables are on the small disk.
    pub(crate) async fn database_on_small_disk(&self) -> Database {
        let disk = self.dir.join("disk");
        let sql = format!("create tablespace small location '{}'", disk.display());
        self.reach("postgres").execute(&sql).await;
        self.database_with("tablespace small").await
    }

    /// The small disk as the server sees it. What is on it is lost when the server stops.
    pub(crate) fn small_disk(&self) -> PathBuf {
        let disk = self.dir.join("disk");
        PathBuf::from(format!("/proc/{}/root{}", self.id(), disk.display()))
    }

    async fn database_with(&self, clause: &str) -> Database {
        let name = format!("test_{}", clock::new_id().simple());
        let sql = format!("create database {name} {clause}");
        self.reach("postgres").execute(&sql).await;
        self.reach(&name)
    }

    /// The schema `taffrail` of a database as statements, by the server's own `pg_dump`.
    pub(crate) async fn dump(&self, database: &Database) -> Option<String> {
        let program = self.bin.join("pg_dump");
        if !program.exists() {
            return skip("pg_dump");
        }
        let mut dump = owned(program);
        dump.args(["--schema-only", "--no-owner", "--schema=taffrail", "-d"])
            .arg(database.url());
        Some(run(dump).await)
    }

    /// Runs a statement again and again by the machine's `pgbench`, which takes little from the
    /// server; returns transactions a second. `None` where it is missing.
    pub(crate) async fn pgbench(
        &self,
        database: &Database,
        statement: &str,
        clients: u64,
        transactions: u64,
    ) -> Option<f64> {
        let program = Version::Default.bin()?.join("pgbench");
        if !program.exists() {
            return skip("pgbench");
        }
        let script = self.dir.join(format!("{}.sql", database.name));
        std::fs::write(&script, statement).unwrap();
        let mut bench = owned(program);
        bench
            .args(["--no-vacuum", "--protocol=prepared", "-f"])
            .arg(&script)
            .args(["-c", &clients.to_string(), "-t", &transactions.to_string()])
            .arg(database.url());
        let said = run(bench).await;
        let rate = said.lines().find_map(|line| line.strip_prefix("tps = "));
        let rate = rate.and_then(|rate| rate.split(' ').next());
        Some(rate.expect(&said).parse().unwrap())
    }

    fn reach(&self, name: &str) -> Database {
        Database {
            name: name.to_owned(),
            password: self.password.clone(),
            address: self.address(),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.guard.take());
        // A server that was stopped has no guard to do it.
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

/// Runs a command to its good end; returns what it wrote to standard output.
async fn run(command: Command) -> String {
    let output = tokio::process::Command::from(command).output().await;
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until a server answers whose log is in that directory.
async fn answers(database: &Database, dir: &Path) {
    let deadline = clock::instant() + START_TIMEOUT;
    while let Err(error) = database.options().connect().await {
        let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
        assert!(clock::instant() < deadline, "{error}: {log}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A way to run a server with a small disk at that place; `None` where this is not possible.
fn small_disk(place: &Path, bytes: ByteSize) -> Option<Vec<String>> {
    std::fs::create_dir(place).unwrap();
    let bytes = bytes.as_u64();
    let (user, group) = owner().unwrap_or_default();
    let options = format!("size={bytes},uid={user},gid={group},mode=700");
    let place = place.display().to_string();
    let mut wrapper: Vec<String> = match owner() {
        Some(_) => vec!["unshare".to_owned(), "-m".to_owned()],
        None => vec!["unshare".to_owned(), "-rm".to_owned()],
    };
    wrapper.extend(["sh", "-c", ON_SMALL_DISK, "sh", &place, &options].map(str::to_owned));
    if owner().is_none() {
        // Who mounts is root in there, and a server refuses that.
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        let back = format!("unshare -U --map-user={user} --map-group={group}");
        wrapper.extend(back.split(' ').map(str::to_owned));
    }
    if runs(Command::new(&wrapper[0]).args(&wrapper[1..]).arg("true")) {
        return Some(wrapper);
    }
    skip("way to mount a tmpfs here (unshare -m, unshare -rm)")
}

/// A database, and the way to it.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    name: String,
    password: Option<String>,
    address: SocketAddr,
}

impl Database {
    /// The same database by another way: a proxy, a pooler, a standby.
    pub(crate) fn through(&self, address: SocketAddr) -> Database {
        Database {
            address,
            ..self.clone()
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn url(&self) -> String {
        let password = self.password.iter().map(|password| format!(":{password}"));
        let password: String = password.collect();
        format!("postgres://{USER}{password}@{}/{}", self.address, self.name)
    }

    fn options(&self) -> PgConnectOptions {
        // PgBouncer refuses a parameter at the start that it does not know.
        let options: PgConnectOptions = self.url().parse().unwrap();
        options.extra_float_digits(None)
    }

    /// A new connection.
    pub(crate) async fn client(&self) -> PgConnection {
        self.options().connect().await.unwrap()
    }

    /// The rows of a simple query, on a connection of its own; NULL is `null`.
    pub(crate) async fn query(&self, sql: &str) -> Vec<Vec<String>> {
        let mut client = self.client().await;
        let rows = raw_sql(AssertSqlSafe(sql)).fetch_all(&mut client).await;
        client.close().await.unwrap();
        rows.unwrap().iter().map(texts).collect()
    }

    /// The same as [`Database::query`], or why it cannot be answered.
    pub(crate) async fn try_query(&self, sql: &str) -> Result<Vec<Vec<String>>, String> {
        let mut client = self.client().await;
        let rows = raw_sql(AssertSqlSafe(sql)).fetch_all(&mut client).await;
        client.close().await.ok();
        let rows = rows.map_err(|error| error.to_string())?;
        Ok(rows.iter().map(texts).collect())
    }

    /// Executes statements on a connection of its own; returns the rows that they touched.
    pub(crate) async fn execute(&self, sql: &str) -> u64 {
        let mut client = self.client().await;
        let done = raw_sql(AssertSqlSafe(sql)).execute(&mut client).await;
        client.close().await.unwrap();
        done.unwrap().rows_affected()
    }
}

/// The values of a row of a simple query, which are texts all.
fn texts(row: &PgRow) -> Vec<String> {
    let value = |index| {
        let value = row.try_get_raw(index).unwrap();
        match value.is_null() {
            true => "null".to_owned(),
            false => value.as_str().unwrap().to_owned(),
        }
    };
    (0..row.len()).map(value).collect()
}

/// A PgBouncer in transaction mode, otherwise with its defaults.
pub(crate) struct PgBouncer {
    admin: Database,
    _guard: Guard,
}

/// What a pool holds, of all users.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pool {
    pub(crate) clients_waiting: u32,
    pub(crate) servers_active: u32,
    pub(crate) servers_idle: u32,
}

impl PgBouncer {
    /// Starts one before a cluster. Settings are those of its section `pgbouncer`.
    pub(crate) async fn start(cluster: &Cluster, settings: &[(&str, &str)]) -> Option<PgBouncer> {
        let bin = on_path("pgbouncer").unwrap_or("/usr/sbin".into());
        let program = bin.join("pgbouncer");
        if !runs(owned(&program).arg("--version")) {
            return skip("PgBouncer");
        }
        let dir = directory();
        let admin = Database {
            name: "pgbouncer".to_owned(),
            password: cluster.password.clone(),
            address: (Ipv4Addr::LOCALHOST, free_port()).into(),
        };
        let users = dir.join("users.txt");
        let password = cluster.password.as_deref().unwrap_or_default();
        std::fs::write(&users, format!("\"{USER}\" \"{password}\"\n")).unwrap();
        let mut config = format!(
            "[databases]\n\
             * = host=127.0.0.1 port={}\n\
             [pgbouncer]\n\
             listen_addr = 127.0.0.1\n\
             listen_port = {}\n\
             unix_socket_dir =\n\
             auth_type = trust\n\
             auth_file = {}\n\
             admin_users = {USER}\n\
             pool_mode = transaction\n",
            cluster.port,
            admin.address.port(),
            users.display()
        );
        for (key, value) in settings {
            config += &format!("{key} = {value}\n");
        }
        let file = dir.join("pgbouncer.ini");
        std::fs::write(&file, config).unwrap();
        let words = [program, file].map(|word| word.display().to_string());
        let guard = Guard::start(&[], &dir, "KILL", &words);
        answers(&admin, &dir).await;
        Some(PgBouncer {
            admin,
            _guard: guard,
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.admin.address
    }

    /// The connections of that database's pool.
    pub(crate) async fn pool(&self, database: &Database) -> Pool {
        let mut client = self.admin.client().await;
        let rows = raw_sql("show pools").fetch_all(&mut client).await.unwrap();
        let text = |row: &PgRow, name| row.try_get_raw(name).unwrap().as_str().unwrap().to_owned();
        let of_database = rows
            .iter()
            .filter(|row| text(row, "database") == database.name);
        let of_database: Vec<&PgRow> = of_database.collect();
        let sum = |name| {
            let values = of_database.iter().map(|row| text(row, name));
            values.map(|value| value.parse::<u32>().unwrap()).sum()
        };
        Pool {
            clients_waiting: sum("cl_waiting"),
            servers_active: sum("sv_active"),
            servers_idle: sum("sv_idle"),
        }
    }
}
