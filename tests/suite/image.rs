//! The image: its Dockerfile linted, and built without a daemon out of the binary under test.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use taffrail::config::Config;

use crate::support::chart::{root, tools};

/// Whether a program is there; without it a test is skipped, or fails in CI.
fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    let is_ci = std::env::var("CI").as_deref() == Ok("1");
    assert!(found || !is_ci, "no {program}: run scripts/test-setup.sh");
    if !found {
        eprintln!("SKIP: no {program}: run scripts/test-setup.sh");
    }
    found
}

#[test]
fn the_dockerfile_has_no_lint() {
    if tools().is_none() {
        return;
    }
    let hadolint = root().join("target/chart-venv/bin/hadolint");
    let ran = Command::new(hadolint)
        .arg(root().join("Dockerfile"))
        .output()
        .unwrap();
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stdout)
    );
}

#[test]
fn the_dockerfile_copies_what_the_build_needs() {
    let text = std::fs::read_to_string(root().join("Dockerfile")).unwrap();
    let ignored = std::fs::read_to_string(root().join(".dockerignore")).unwrap();
    let copied = text
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|it| !it.starts_with("--"));
    let copied: Vec<&str> = copied
        .flat_map(|it| it.rsplit_once(' ').unwrap().0.split(' '))
        .collect();
    for name in &copied {
        assert!(root().join(name).exists(), "{name}");
        assert!(
            ignored.lines().any(|line| line == format!("!{name}")),
            "{name} is ignored"
        );
    }
    for name in ["Cargo.toml", "Cargo.lock", "src", "migrations"] {
        assert!(copied.contains(&name), "{name}");
    }
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("ARG RUST_VERSION="));
    let number = |text: &str| {
        text.split('.')
            .map(|it| it.parse().unwrap())
            .collect::<Vec<u32>>()
    };
    assert!(number(version.unwrap()) >= number(env!("CARGO_PKG_RUST_VERSION")));
}

#[test]
fn the_image_is_one_binary_that_runs_as_nobody() {
    if !has("buildah") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let own = std::fs::metadata(dir.path()).unwrap();
    if std::os::unix::fs::MetadataExt::uid(&own) != 0 {
        eprintln!("SKIP: only root can build an image here");
        return;
    }
    let context = dir.path().join("context");
    std::fs::create_dir_all(context.join("data")).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_taffrail"), context.join("taffrail")).unwrap();
    let buildah = |arguments: &[&str]| -> String {
        let storage = |name: &str| dir.path().join(name).display().to_string();
        let ran = Command::new("buildah")
            .args([
                "--storage-driver",
                "vfs",
                "--root",
                &storage("root"),
                "--runroot",
                &storage("run"),
            ])
            .args(arguments)
            .current_dir(root())
            .output()
            .unwrap();
        assert!(
            ran.status.success(),
            "{}",
            String::from_utf8_lossy(&ran.stderr)
        );
        String::from_utf8(ran.stdout).unwrap()
    };
    let build = format!("build={}", context.display());
    buildah(&[
        "bud",
        "--isolation",
        "chroot",
        "--format",
        "docker",
        "--build-context",
        &build,
        "--build-arg",
        "TARGETARCH=amd64",
        "--build-arg",
        "REVISION=abc",
        "--tag",
        "taffrail:test",
        ".",
    ]);
    let image: Value =
        serde_json::from_str(&buildah(&["inspect", "--type", "image", "taffrail:test"])).unwrap();
    let config = &image["Docker"]["config"];
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["Entrypoint"], json!(["/taffrail"]));
    assert_eq!(config["Cmd"], json!(["run"]));
    assert_eq!(config["WorkingDir"], "/var/lib/taffrail");
    assert_eq!(
        config["Healthcheck"]["Test"],
        json!(["CMD", "/taffrail", "healthcheck"])
    );
    let labels = &config["Labels"];
    assert_eq!(
        labels["org.opencontainers.image.version"],
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(labels["org.opencontainers.image.revision"], "abc");
    let defaults = Config::default();
    let listens = [
        defaults.proxy.listen,
        defaults.admin.listen,
        defaults.injector.listen,
    ];
    let ports = listens.map(|it| (format!("{}/tcp", it.port()), json!({})));
    assert_eq!(
        config["ExposedPorts"],
        json!(ports.into_iter().collect::<serde_json::Map<_, _>>())
    );
    // Nothing else is in it.
    let container = buildah(&["from", "taffrail:test"]);
    let mounted = buildah(&["mount", container.trim()]);
    let mut files = Vec::new();
    list(
        Path::new(mounted.trim()),
        Path::new(mounted.trim()),
        &mut files,
    );
    assert_eq!(files, ["taffrail", "var", "var/lib", "var/lib/taffrail"]);
}

/// Every path below a directory, but for the places that a container is run with.
fn list(top: &Path, dir: &Path, into: &mut Vec<String>) {
    let mut entries: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|it| it.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        let name = path.strip_prefix(top).unwrap().display().to_string();
        let is_place = ["dev", "etc", "proc", "run", "sys"].contains(&name.as_str());
        if is_place {
            continue;
        }
        into.push(name);
        if path.is_dir() {
            list(top, &path, into);
        }
    }
}
