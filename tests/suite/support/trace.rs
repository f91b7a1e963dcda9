//! Counts the system calls by which a server writes, with strace.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::binary::Server;

/// A running strace.
pub(crate) struct Trace {
    strace: Child,
    output: PathBuf,
    _dir: TempDir,
}

impl Trace {
    /// Attaches to all threads of a server. Where that is not possible, the test of that name is
    /// skipped, or fails with `CI=1`.
    pub(crate) async fn attach(test: &str, server: &Server) -> Option<Trace> {
        match Trace::try_attach(server).await {
            Ok(trace) => Some(trace),
            Err(problem) => {
                assert!(std::env::var_os("CI").is_none(), "{problem}");
                eprintln!("SKIP {test}: {problem}");
                None
            }
        }
    }

    async fn try_attach(server: &Server) -> Result<Trace, String> {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("calls");
        let mut strace = Command::new("strace")
            .args(["-f", "-yy", "-e", "trace=write,writev,sendto,sendmsg"])
            .arg("-p")
            .arg(server.process.id().to_string())
            .arg("-o")
            .arg(&output)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("strace: {error}"))?;
        let mut said = BufReader::new(strace.stderr.take().unwrap()).lines();
        let first = tokio::time::timeout(Duration::from_secs(30), said.next_line()).await;
        let first = first.expect("strace says nothing").unwrap();
        let first = first.unwrap_or_else(|| "strace ended".to_owned());
        if !first.contains("attached") {
            return Err(first);
        }
        // It says one thing more at its end, and must not break off at that.
        tokio::spawn(async move { while let Ok(Some(_)) = said.next_line().await {} });
        Ok(Trace {
            strace,
            output,
            _dir: dir,
        })
    }

    /// Detaches, and tells how many writes to that port of the client's there were.
    pub(crate) async fn writes_to(mut self, port: u16) -> usize {
        let id = self.strace.id().unwrap().to_string();
        let asked = Command::new("kill").args(["-s", "INT", &id]).status();
        assert!(asked.await.unwrap().success());
        self.strace.wait().await.unwrap();
        let calls = std::fs::read_to_string(&self.output).unwrap();
        let peer = format!("->127.0.0.1:{port}]>");
        // A call that another thread's interrupts is told in two lines, of which the second does
        // not name the socket.
        calls.lines().filter(|line| line.contains(&peer)).count()
    }
}
