//! The real binary, running.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::books::samples;
use super::http::ask;

/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(20);

/// `taffrail run` on free ports, with its data in a directory of its own.
pub(crate) struct Server {
    pub(crate) proxy: SocketAddr,
    admin: SocketAddr,
    child: Child,
    config: PathBuf,
    dir: TempDir,
    log: JoinHandle<String>,
}

impl Server {
    /// Starts it with `config` beside what it needs for ports and data.
    pub(crate) async fn start(config: &str) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data").display().to_string();
        let path = dir.path().join("taffrail.toml");
        let own = format!(
            "role = \"sidecar\"\nproxy.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"\n\
             journal.dir = \"{data}/journal\"\nstore.url = \"sqlite://{data}/taffrail.db\"\n\
             log.format = \"json\"\nlog.level = \"debug\"\n"
        );
        std::fs::write(&path, own + config).unwrap();
        let mut child = taffrail(&path, &["run"])
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut log = String::new();
        let (proxy, admin) = loop {
            let line = tokio::time::timeout(PATIENCE, lines.next_line()).await;
            let line = line.expect("it does not start").unwrap();
            let line = line.unwrap_or_else(|| panic!("it ended: {log}"));
            log += &(line.clone() + "\n");
            let fields: Value = serde_json::from_str(&line).unwrap_or_default();
            if fields["message"] == "serving" {
                let address = |name: &str| fields[name].as_str().unwrap().parse().unwrap();
                break (address("proxy"), address("admin"));
            }
        };
        let log = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                log += &(line + "\n");
            }
            log
        });
        Server {
            proxy,
            admin,
            child,
            config: path,
            dir,
            log,
        }
    }

    /// The text exposition.
    pub(crate) async fn metrics(&self) -> String {
        let request = b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        let seen = ask(self.admin, request).await;
        assert_eq!(seen.status, 200);
        String::from_utf8(seen.body).unwrap()
    }

    /// Every row, as `taffrail logs` prints it, once `count` are stored.
    pub(crate) async fn rows(&self, count: usize) -> Vec<Value> {
        let stored = async {
            while samples(&self.metrics().await, "taffrail_records_total")
                .iter()
                .find(|(labels, _)| labels["stage"] == "stored")
                .is_none_or(|(_, stored)| *stored < count.into())
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, stored).await.is_err() {
            let rows = logs(&self.config).await;
            let rows: Vec<String> = rows
                .iter()
                .map(|row| format!("{} {}", row["attribution"], row["outcome"]))
                .collect();
            panic!("{} rows of {count}:\n{}", rows.len(), rows.join("\n"));
        }
        logs(&self.config).await
    }

    /// Stops it as Kubernetes does, and returns every row, and everything that it left behind:
    /// its log and the bytes of its files.
    pub(crate) async fn stop(mut self) -> (Vec<Value>, Vec<(String, Vec<u8>)>) {
        let id = self.child.id().unwrap().to_string();
        let killed = Command::new("kill").args(["-TERM", &id]).status().await;
        assert!(killed.unwrap().success());
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let log = self.log.await.unwrap();
        assert!(
            status.expect("it does not stop").unwrap().success(),
            "{log}"
        );
        let rows = logs(&self.config).await;
        let mut left = vec![("the log".to_owned(), log.into_bytes())];
        read_files(&self.dir.path().join("data"), &mut left);
        (rows, left)
    }
}

fn taffrail(config: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taffrail"));
    command.arg("--config").arg(config).args(arguments);
    command.env_clear().stdin(Stdio::null());
    command
}

async fn logs(config: &Path) -> Vec<Value> {
    let arguments = ["logs", "--all", "--format", "json"];
    let Output {
        status,
        stdout,
        stderr,
    } = taffrail(config, &arguments).output().await.unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    let text = String::from_utf8(stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn read_files(folder: &Path, into: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_files(&path, into);
        } else {
            into.push((path.display().to_string(), std::fs::read(&path).unwrap()));
        }
    }
}
