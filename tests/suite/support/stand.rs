//! What the dashboards show, and what shows them: the binary under the traffic of its demo, with
//! its rows in Postgres, a Prometheus that scrapes it with the rules of `alerts/`, an Alertmanager,
//! and the page of `grafana/viewer` in Chromium.
//!
//! One for all tests, because it takes seconds to have something to show; whatever it starts ends
//! with the test process. A stand whose tools are missing is `None`: its tests are skipped, loudly,
//! and fail under `CI=1`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use taffrail::clock;
use tokio::sync::OnceCell;

use super::chart::root;
use super::eventually::eventually;
use super::http::ask;
use super::postgres::{Cluster, Database, Guard, Version, free_port, runs, skip};

/// How often everything happens that happens by the clock.
const INTERVAL: &str = "1s";

/// All of it, running.
pub(crate) struct Stand {
    database: Database,
    prometheus: SocketAddr,
    alertmanager: SocketAddr,
    _guards: Vec<Guard>,
}

impl Stand {
    /// The stand of all tests.
    pub(crate) async fn shared() -> Option<&'static Stand> {
        static STAND: OnceCell<Option<Stand>> = OnceCell::const_new();
        STAND.get_or_init(Stand::start).await.as_ref()
    }

    async fn start() -> Option<Stand> {
        for program in ["prometheus", "prometheus-alertmanager"] {
            if !runs(Command::new(program).arg("--version")) {
                return skip(program);
            }
        }
        let database = Cluster::shared(Version::Default).await?.database().await;
        let mut guards = Vec::new();
        let demo = start_demo(&database, &mut guards).await;
        let alertmanager = start_alertmanager(&mut guards).await;
        let prometheus = start_prometheus(demo, alertmanager, &mut guards).await;
        Some(Stand {
            database,
            prometheus,
            alertmanager,
            _guards: guards,
        })
    }

    /// The rows of a query, as who may only read sees them.
    pub(crate) async fn read(&self, sql: &str) -> Result<Vec<Vec<String>>, String> {
        self.database
            .try_query(&format!("set role taffrail_reader; {sql}"))
            .await
    }

    /// The series that answer an expression: now, or over the last minute.
    pub(crate) async fn prometheus_query(
        &self,
        expr: &str,
        is_instant: bool,
    ) -> Result<Vec<Value>, String> {
        let now = clock::wall().timestamp();
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("query", expr);
        let path = match is_instant {
            true => "query",
            false => {
                query.append_pair("start", &(now - 60).to_string());
                query.append_pair("end", &now.to_string());
                query.append_pair("step", "5");
                "query_range"
            }
        };
        let answer = get(
            self.prometheus,
            &format!("/api/v1/{path}?{}", query.finish()),
        )
        .await;
        match &answer["data"] {
            Value::Null => Err(answer["error"].to_string()),
            data if data["resultType"] == "scalar" => {
                Ok(vec![serde_json::json!({"value": data["result"]})])
            }
            data => Ok(data["result"].as_array().unwrap().clone()),
        }
    }

    /// The alerts that Alertmanager has.
    pub(crate) async fn alerts(&self) -> Vec<Value> {
        get(self.alertmanager, "/api/v2/alerts")
            .await
            .as_array()
            .unwrap()
            .clone()
    }

    /// What became of each panel of each dashboard, drawn in Chromium; `None` without the tools.
    pub(crate) async fn draw(&self) -> Option<Vec<Value>> {
        let viewer = root().join("target/viewer");
        if !viewer.join("node_modules").exists() {
            return skip("page for the dashboards");
        }
        if !runs(Command::new("chromium").arg("--version")) {
            return skip("chromium");
        }
        let output = tokio::process::Command::new(root().join("grafana/viewer/run.sh"))
            .arg("check")
            .args(["--prometheus", &format!("http://{}", self.prometheus)])
            .args(["--postgres", &self.database.url()])
            .kill_on_drop(true)
            .output()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        Some(serde_json::from_slice(&output.stdout).unwrap())
    }
}

/// The answer to a GET, as JSON.
async fn get(address: SocketAddr, path: &str) -> Value {
    let head = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    let seen = ask(address, head.as_bytes()).await;
    let text = String::from_utf8_lossy(&seen.body);
    serde_json::from_slice(&seen.body).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
}

/// A folder that the guard of what runs in it removes.
fn folder() -> PathBuf {
    let dir = tempfile::Builder::new().prefix("taffrail-stand-").tempdir();
    dir.unwrap().keep()
}

async fn is_ready(address: SocketAddr) {
    eventually("it is ready", async || {
        if tokio::net::TcpStream::connect(address).await.is_err() {
            return false;
        }
        let head = format!("GET /-/ready HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        ask(address, head.as_bytes()).await.status == 200
    })
    .await;
}

/// Starts the demo; returns where its metrics are.
async fn start_demo(database: &Database, guards: &mut Vec<Guard>) -> SocketAddr {
    let dir = folder();
    let words = [
        // Of the port that it has by default, another demo on this machine knows nothing.
        "env",
        "POD_NAMESPACE=shop",
        "POD_NAME=shop-0",
        env!("CARGO_BIN_EXE_taffrail"),
        "demo",
        "--seconds",
        "3600",
        "--history",
        "14",
        "--store",
        &database.url(),
    ];
    guards.push(Guard::start_here(&dir, "TERM", &words));
    let mut address = None;
    eventually("the demo says where it is", async || {
        let said = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
        let line = said
            .lines()
            .find_map(|line| line.trim().strip_prefix("metrics  http://"));
        address = line.and_then(|line| line.strip_suffix("/metrics")?.parse().ok());
        address.is_some()
    })
    .await;
    address.unwrap()
}

async fn start_alertmanager(guards: &mut Vec<Guard>) -> SocketAddr {
    let (dir, address) = (
        folder(),
        SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())),
    );
    let file = dir.join("alertmanager.yml");
    std::fs::write(
        &file,
        "route: {receiver: nobody}\nreceivers: [{name: nobody}]\n",
    )
    .unwrap();
    let words = [
        "prometheus-alertmanager".to_owned(),
        format!("--config.file={}", file.display()),
        format!("--storage.path={}", dir.display()),
        format!("--web.listen-address={address}"),
        "--cluster.listen-address=".to_owned(),
    ];
    guards.push(Guard::start_here(&dir, "TERM", &words));
    is_ready(address).await;
    address
}

async fn start_prometheus(
    demo: SocketAddr,
    alertmanager: SocketAddr,
    guards: &mut Vec<Guard>,
) -> SocketAddr {
    let (dir, address) = (
        folder(),
        SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())),
    );
    for name in ["rules", "alerts", "budgets"] {
        let text = std::fs::read_to_string(root().join(format!("alerts/{name}.yaml"))).unwrap();
        std::fs::write(dir.join(format!("{name}.yaml")), hurried(&text)).unwrap();
    }
    let file = dir.join("prometheus.yml");
    let config = format!(
        "global: {{scrape_interval: {INTERVAL}, evaluation_interval: {INTERVAL}}}\n\
         rule_files: [rules.yaml, alerts.yaml, budgets.yaml]\n\
         alerting: {{alertmanagers: [{{static_configs: [{{targets: ['{alertmanager}']}}]}}]}}\n\
         scrape_configs:\n\
         - job_name: taffrail\n  \
           static_configs: [{{targets: ['{demo}'], labels: {{namespace: shop}}}}]\n"
    );
    std::fs::write(&file, config).unwrap();
    let words = [
        "prometheus".to_owned(),
        format!("--config.file={}", file.display()),
        format!("--storage.tsdb.path={}", dir.join("data").display()),
        format!("--web.listen-address={address}"),
    ];
    guards.push(Guard::start_here(&dir, "TERM", &words));
    is_ready(address).await;
    address
}

/// Rules that wait for nothing: a test has no five minutes.
fn hurried(rules: &str) -> String {
    let lines = rules
        .lines()
        .map(|line| match line.trim_start().strip_prefix("for: ") {
            Some(_) => line.split("for: ").next().unwrap_or_default().to_owned() + "for: 0s",
            None => line.to_owned(),
        });
    lines.collect::<Vec<_>>().join("\n")
}
