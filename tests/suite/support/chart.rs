//! The chart, linted, rendered and validated by the tools that `scripts/test-setup.sh` installs.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// The versions of Kubernetes that manifests are held to: the oldest with native sidecars on, the
/// first with them for good, and the newest that is known.
pub(crate) const VERSIONS: [&str; 3] = ["1.29", "1.33", "1.37"];

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The chart itself.
pub(crate) fn chart() -> PathBuf {
    root().join("helm/taffrail")
}

/// The tools; without them a test is skipped, or fails in CI.
pub(crate) fn tools() -> Option<Tools> {
    let bin = root().join("target/chart-venv/bin");
    if bin.join("python").exists() && root().join("target/chart-venv/stamp").exists() {
        return Some(Tools { bin });
    }
    let is_ci = std::env::var("CI").as_deref() == Ok("1");
    assert!(!is_ci, "no tools for the chart: run scripts/test-setup.sh");
    eprintln!("SKIP: no tools for the chart: run scripts/test-setup.sh");
    None
}

pub(crate) struct Tools {
    bin: PathBuf,
}

impl Tools {
    /// What the chart makes of each file of values.
    pub(crate) fn render(&self, chart: &Path, values: &[PathBuf]) -> Value {
        let values = values.iter().map(|path| path.display().to_string());
        let arguments = ["render".to_owned(), chart.display().to_string()].into_iter();
        let arguments: Vec<String> = arguments.chain(values).collect();
        serde_json::from_str(&self.script(&arguments, "")).unwrap()
    }

    /// What the chart makes of values.
    pub(crate) fn render_values(&self, chart: &Path, values: &Value) -> Rendered {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("values.yaml");
        // JSON is YAML.
        std::fs::write(&file, values.to_string()).unwrap();
        let mut results = self.render(chart, std::slice::from_ref(&file));
        Rendered(results[file.to_str().unwrap()].take())
    }

    /// What is wrong with manifests.
    pub(crate) fn validate(&self, manifests: &[Value]) -> Vec<String> {
        let arguments = ["validate"].into_iter().chain(VERSIONS);
        let arguments: Vec<String> = arguments.map(str::to_owned).collect();
        let manifests = serde_json::to_string(manifests).unwrap();
        serde_json::from_str(&self.script(&arguments, &manifests)).unwrap()
    }

    /// What a template of a chart renders to.
    pub(crate) fn text(&self, chart: &Path, template: &str) -> String {
        let arguments = ["text", chart.to_str().unwrap(), template].map(str::to_owned);
        self.script(&arguments, "")
    }

    /// The chart's README.
    pub(crate) fn readme(&self) -> String {
        let arguments = ["readme".to_owned(), chart().display().to_string()];
        self.script(&arguments, "")
    }

    /// Where documents, by their names, are not as a JSON Schema wants them.
    pub(crate) fn conform(&self, schema: &Path, documents: &Value) -> Vec<String> {
        let arguments = ["conform".to_owned(), schema.display().to_string()];
        serde_json::from_str(&self.script(&arguments, &documents.to_string())).unwrap()
    }

    /// Applies a JSON Patch to a manifest as kubectl does.
    pub(crate) fn kubectl_patch(&self, manifest: &Value, patch: &Value) -> Value {
        let mut command = Command::new(self.bin.join("kubectl"));
        let patch = patch.to_string();
        command.args([
            "patch",
            "--local",
            "--type=json",
            "-o",
            "json",
            "-f",
            "-",
            "-p",
        ]);
        serde_json::from_str(&run(command.arg(patch), &manifest.to_string())).unwrap()
    }

    fn script(&self, arguments: &[String], input: &str) -> String {
        let mut command = Command::new(self.bin.join("python"));
        command.arg(root().join("tests/chart/chart.py"));
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        run(command.args(arguments), input)
    }
}

/// What the chart made of values.
pub(crate) struct Rendered(pub(crate) Value);

impl Rendered {
    pub(crate) fn manifests(&self) -> &[Value] {
        assert_eq!(self.0.get("refused"), None);
        self.0["manifests"].as_array().unwrap()
    }

    /// The manifest of that kind whose name ends so.
    pub(crate) fn find(&self, kind: &str, end: &str) -> &Value {
        let is_it = |manifest: &&Value| {
            let name = manifest["metadata"]["name"].as_str().unwrap();
            manifest["kind"] == kind && name.ends_with(end)
        };
        let found = self.manifests().iter().find(is_it);
        found.unwrap_or_else(|| panic!("no {kind} …{end}"))
    }
}

fn run(command: &mut Command, input: &str) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let feeding = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}
