//! The chart: linted, rendered with every file of `ci`, held to the schemas of Kubernetes and of
//! the Prometheus operator, and to what the code reads.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde_json::{Value, json};
use taffrail::config::{self, Config, Role, Sources};
use taffrail::provider;

use crate::config::assert_golden;
use crate::support::chart::{Rendered, chart, root, tools};

/// What the chart makes of each file of `ci`, by its name.
static CI: LazyLock<Option<BTreeMap<String, Rendered>>> = LazyLock::new(|| {
    let files = files(&chart().join("ci"), "yaml");
    let Value::Object(results) = tools()?.render(&chart(), &files) else {
        panic!("an object")
    };
    let name = |path: String| path.rsplit('/').next().unwrap().to_owned();
    let results = results.into_iter();
    Some(
        results
            .map(|(path, it)| (name(path), Rendered(it)))
            .collect(),
    )
});

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).map(|entries| {
        let paths = entries.map(|entry| entry.unwrap().path());
        paths
            .filter(|path| path.extension().is_some_and(|it| it == extension))
            .collect()
    });
    let mut files: Vec<PathBuf> = entries.unwrap_or_default();
    files.sort();
    files
}

/// The pod of a manifest that has one.
fn pod_spec(manifest: &Value) -> Option<&Value> {
    match manifest["kind"].as_str()? {
        "Pod" => Some(&manifest["spec"]),
        "Deployment" | "Job" => Some(&manifest["spec"]["template"]["spec"]),
        _ => None,
    }
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

#[test]
fn what_the_chart_makes_of_every_file_of_values_is_valid() {
    let (Some(ci), Some(tools)) = (CI.as_ref(), tools()) else {
        return;
    };
    assert!(ci.len() >= 10, "{:?}", ci.keys());
    let mut all = Vec::new();
    for (file, rendered) in ci {
        assert_eq!(rendered.0["lint"], json!([]), "{file}");
        all.extend_from_slice(rendered.manifests());
    }
    assert_eq!(tools.validate(&all), Vec::<String>::new());
    let kinds: BTreeSet<&str> = all.iter().filter_map(|it| it["kind"].as_str()).collect();
    for kind in [
        "Certificate",
        "ClusterRole",
        "ConfigMap",
        "Deployment",
        "Job",
        "MutatingWebhookConfiguration",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "PodMonitor",
        "Secret",
        "Service",
        "ServiceMonitor",
    ] {
        assert!(kinds.contains(kind), "no {kind} in {kinds:?}");
    }
}

#[test]
fn what_is_not_in_a_schema_is_found() {
    let (Some(ci), Some(tools)) = (CI.as_ref(), tools()) else {
        return;
    };
    for (file, kind, pointer) in [
        ("monitoring", "Deployment", "/spec/template/spec"),
        ("monitoring", "ServiceMonitor", "/spec/endpoints/0"),
        ("monitoring", "PodMonitor", "/spec"),
        ("cert-manager", "Certificate", "/spec/privateKey"),
        ("cert-manager", "Issuer", "/spec"),
    ] {
        let mut manifest = ci[&format!("{file}-values.yaml")].find(kind, "").clone();
        manifest.pointer_mut(pointer).unwrap()["surprise"] = json!(true);
        let problems = tools.validate(&[manifest]);
        assert!(
            problems.iter().any(|it| it.contains("surprise")),
            "{kind}: {problems:?}"
        );
    }
    let mut monitor = ci["monitoring-values.yaml"]
        .find("ServiceMonitor", "")
        .clone();
    monitor["spec"]["endpoints"][0]["interval"] = json!("soon");
    assert_eq!(tools.validate(&[monitor]).len(), 1);
}

#[test]
fn bad_values_are_refused_by_their_names() {
    let Some(tools) = tools() else { return };
    let files = files(&root().join("tests/chart/refused"), "yaml");
    assert!(files.len() > 10, "{files:?}");
    let results = tools.render(&chart(), &files);
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        let wanted = text
            .lines()
            .next()
            .unwrap()
            .strip_prefix("# refused: ")
            .unwrap();
        let name = file.display().to_string();
        let Some(refusal) = results[&name]["refused"].as_str() else {
            panic!("{name} is not refused")
        };
        for word in wanted.split(' ') {
            assert!(
                refusal.contains(word),
                "{name}: {word} is not in:\n{refusal}"
            );
        }
    }
}

#[test]
fn every_pod_may_do_as_little_as_it_can() {
    let Some(ci) = CI.as_ref() else { return };
    let mut pods = 0;
    for (file, rendered) in ci {
        let mut injected = Vec::new();
        if let Some(map) = rendered
            .manifests()
            .iter()
            .find(|it| !it["data"]["sidecar.json"].is_null())
        {
            let text = map["data"]["sidecar.json"].as_str().unwrap();
            injected.push(serde_json::from_str::<Value>(text).unwrap()["container"].clone());
        }
        for manifest in rendered.manifests() {
            let Some(spec) = pod_spec(manifest) else {
                continue;
            };
            let name = manifest["metadata"]["name"].as_str().unwrap();
            pods += 1;
            let is_injector = name.ends_with("-injector");
            let has_api = is_injector && !file.starts_with("cert-manager");
            assert_eq!(
                spec["automountServiceAccountToken"], has_api,
                "{file}: {name}"
            );
            assert_eq!(
                spec["securityContext"]["runAsUser"], 65532,
                "{file}: {name}"
            );
            // Keys of accounts are the exporter's alone, and its test's.
            let text = spec.to_string();
            let has_keys = text.contains("openrouter-admin");
            let may = file == "postgres-values.yaml"
                && (name.ends_with("-exporter") || name.ends_with("-test"));
            assert_eq!(has_keys, may, "{file}: {name}");
            injected.extend_from_slice(list(spec, "containers"));
        }
        for container in injected {
            assert_eq!(
                container["securityContext"],
                json!({
                    "runAsNonRoot": true,
                    "runAsUser": 65532,
                    "runAsGroup": 65532,
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                    "seccompProfile": {"type": "RuntimeDefault"},
                }),
                "{file}: {}",
                container["name"]
            );
        }
    }
    assert!(pods > 30, "{pods}");
}

#[test]
fn the_injector_may_touch_its_own_objects_only() {
    let Some(ci) = CI.as_ref() else { return };
    let rendered = &ci["default-values.yaml"];
    let name = "demo-taffrail-injector";
    assert_eq!(
        rendered.find("Role", name)["rules"],
        json!([{
            "apiGroups": [""],
            "resources": ["secrets"],
            "resourceNames": ["demo-taffrail-injector-tls"],
            "verbs": ["get", "update"],
        }])
    );
    assert_eq!(
        rendered.find("ClusterRole", name)["rules"],
        json!([{
            "apiGroups": ["admissionregistration.k8s.io"],
            "resources": ["mutatingwebhookconfigurations"],
            "resourceNames": [name],
            "verbs": ["get", "patch"],
        }])
    );
    // With cert-manager it needs nothing.
    let other = ci["cert-manager-values.yaml"].manifests();
    let kinds: Vec<&Value> = other.iter().map(|it| &it["kind"]).collect();
    for kind in ["Role", "ClusterRole", "ServiceAccount", "Secret"] {
        assert!(kinds.iter().all(|it| *it != kind), "{kind}");
    }
}

#[test]
fn the_webhook_asks_about_labelled_pods_outside_its_own_namespace() {
    let Some(ci) = CI.as_ref() else { return };
    let rendered = &ci["default-values.yaml"];
    let webhooks = &rendered.find("MutatingWebhookConfiguration", "-injector")["webhooks"];
    let others = json!({
        "key": "kubernetes.io/metadata.name",
        "operator": "NotIn",
        "values": ["kube-system", "kube-node-lease", "metering"],
    });
    let label = |operator: &str| json!({"key": "taffrail.dev/inject", "operator": operator});
    let with = |mut expression: Value, value: &str| {
        expression["values"] = json!([value]);
        expression
    };
    assert_eq!(
        webhooks[0]["namespaceSelector"]["matchExpressions"],
        json!([others])
    );
    assert_eq!(
        webhooks[0]["objectSelector"]["matchExpressions"],
        json!([with(label("In"), "true")])
    );
    assert_eq!(
        webhooks[1]["namespaceSelector"]["matchExpressions"],
        json!([others, with(label("In"), "enabled")])
    );
    assert_eq!(
        webhooks[1]["objectSelector"]["matchExpressions"],
        json!([label("DoesNotExist")])
    );
    for webhook in webhooks.as_array().unwrap() {
        assert_eq!(webhook["failurePolicy"], "Ignore");
        assert_eq!(webhook["sideEffects"], "None");
        assert_eq!(
            webhook["clientConfig"]["service"]["path"],
            taffrail::injector::PATH
        );
    }
}

/// What the process of a container reads, with the files that its volumes would bring.
struct Read {
    config: Config,
    _files: tempfile::TempDir,
}

/// Reads the environment of a container as the code does: every variable and value must hold.
fn read(container: &Value, rendered: &Rendered) -> Read {
    let dir = tempfile::tempdir().unwrap();
    let mut env = Vec::new();
    for variable in list(container, "env") {
        let name = variable["name"].as_str().unwrap();
        let value = match variable.get("value") {
            Some(value) => value.as_str().unwrap().replace("$$", "$"),
            None if name == "TAFFRAIL_STORE__URL" => "postgres://user@db.example.com/db".to_owned(),
            None => "of-a-secret".to_owned(),
        };
        // The address of a Service, which the kubelet puts in.
        let value = value.replace("$(DEMO_TAFFRAIL_EXPORTER_SERVICE_HOST)", "10.0.0.1");
        let value = value.replace("$(METER_EXPORTER_SERVICE_HOST)", "10.0.0.1");
        let value = value.replace("/etc/taffrail", dir.path().to_str().unwrap());
        env.push((OsString::from(name), OsString::from(value)));
    }
    // What each mount would bring.
    for path in ["store/url", "accounts/openrouter-prod", "accounts/fal-prod"] {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "postgres://user@db.example.com/db").unwrap();
    }
    for manifest in rendered.manifests() {
        for (name, folder) in [("taffrail.toml", "config"), ("sidecar.json", "injector")] {
            if let Some(text) = manifest["data"][name].as_str() {
                std::fs::create_dir_all(dir.path().join(folder)).unwrap();
                let text = text.replace("/etc/taffrail", dir.path().to_str().unwrap());
                std::fs::write(dir.path().join(folder).join(name), text).unwrap();
            }
        }
    }
    let loaded = config::load(Sources {
        env,
        ..Sources::default()
    });
    let loaded = loaded.unwrap_or_else(|problems| panic!("{}: {problems}", container["name"]));
    Read {
        config: loaded.config,
        _files: dir,
    }
}

#[test]
fn every_variable_and_port_is_one_of_the_code() {
    let Some(ci) = CI.as_ref() else { return };
    let mut roles = BTreeSet::new();
    for (file, rendered) in ci {
        let mut containers = Vec::new();
        for manifest in rendered.manifests() {
            if let Some(spec) = pod_spec(manifest) {
                containers.extend(list(spec, "containers").iter().cloned());
            }
            if let Some(text) = manifest["data"]["sidecar.json"].as_str() {
                let sidecar: Value = serde_json::from_str(text).unwrap();
                let container = &sidecar["container"];
                let config = read(container, rendered).config;
                let ports = json!([config.proxy.listen.port(), config.admin.listen.port()]);
                assert_eq!(sidecar["ports"], ports, "{file}");
                for variable in list(&sidecar, "environment") {
                    let name = variable["provider"].as_str().unwrap();
                    let is_known = provider::builtin(name).is_some();
                    assert!(
                        is_known || config.providers.contains_key(name),
                        "{file}: {name}"
                    );
                    let route = format!("http://{}/{name}", config.proxy.listen);
                    let value = variable["value"].as_str().unwrap();
                    assert!(value.starts_with(&route), "{file}: {value}");
                }
                containers.push(container.clone());
            }
        }
        for container in containers {
            let config = read(&container, rendered).config;
            roles.insert(config.role.as_str());
            let listens = match config.role {
                Role::Injector => vec![config.injector.listen, config.admin.listen],
                Role::Exporter => vec![config.admin.listen],
                Role::All | Role::Sidecar => vec![config.proxy.listen, config.admin.listen],
            };
            let ports = list(&container, "ports").iter();
            let ports: Vec<u64> = ports
                .filter_map(|it| it["containerPort"].as_u64())
                .collect();
            for port in &ports {
                let is_known = listens.iter().any(|it| u64::from(it.port()) == *port);
                assert!(is_known, "{file}: {} has port {port}", container["name"]);
            }
            for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                if let Some(path) = container[probe]["httpGet"]["path"].as_str() {
                    assert!(["/-/healthy", "/-/ready"].contains(&path), "{file}: {path}");
                }
            }
            // What is shared with other pods is not on loopback.
            let is_shared = config.role != Role::Sidecar || container["name"] == "gateway";
            for listen in listens.iter().filter(|_| is_shared && !ports.is_empty()) {
                let is_reached = listen.ip().is_unspecified() || config.role == Role::All;
                assert!(is_reached, "{file}: {} on {listen}", container["name"]);
            }
        }
    }
    let expected = ["all", "exporter", "injector", "sidecar"];
    assert_eq!(roles.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn configuration_in_values_is_what_the_code_reads() {
    let Some(ci) = CI.as_ref() else { return };
    let rendered = &ci["postgres-values.yaml"];
    let exporter = rendered.find("Deployment", "-exporter");
    let container = &exporter["spec"]["template"]["spec"]["containers"][0];
    let config = read(container, rendered).config;
    assert_eq!(config.log.level, "info,taffrail::store=debug");
    assert_eq!(config.metrics.series, 20_000);
    assert_eq!(
        config.retention.logs,
        std::time::Duration::from_hours(30 * 24)
    );
    assert_eq!(
        config.providers["groq"].upstream.as_deref(),
        Some("https://api.groq.com/openai")
    );
    let accounts: Vec<&str> = config
        .accounts
        .iter()
        .map(|it| it.provider.as_str())
        .collect();
    assert_eq!(accounts, ["openrouter", "fal"]);
    assert!(!config.store.migrate);

    let rendered = &ci["sidecar-values.yaml"];
    let map = rendered.find("ConfigMap", "-injector");
    let sidecar: Value =
        serde_json::from_str(map["data"]["sidecar.json"].as_str().unwrap()).unwrap();
    let config = read(&sidecar["container"], rendered).config;
    assert_eq!(config.attribution.fixed["team"], "se$(a)rch");
    assert_eq!(config.attribution.headers["feature"], "x-taffrail-feature");
    assert!(config.meter.control_rows);
    assert_eq!(config.proxy.connections_max, 2000);
}

#[test]
fn the_schema_knows_every_key_of_the_configuration() {
    let path = chart().join("values.schema.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut schema: Value = serde_json::from_str(&text).unwrap();
    schema["definitions"]["config"] = config_schema();
    let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    assert_golden(Path::new("helm/taffrail/values.schema.json"), &text);
}

/// The configuration's schema, as a part of another: without what only its root has.
fn config_schema() -> Value {
    let mut schema = config::json_schema();
    let object = schema.as_object_mut().unwrap();
    for key in ["$schema", "title"] {
        object.remove(key);
    }
    schema
}

#[test]
fn the_readme_is_made_of_the_values() {
    let Some(tools) = tools() else { return };
    assert_golden(Path::new("helm/taffrail/README.md"), &tools.readme());
}

#[test]
fn rules_and_dashboards_in_the_chart_are_those_of_the_repository() {
    for (folder, extension) in [("alerts", "yaml"), ("grafana", "json")] {
        let inside = chart().join("files").join(folder);
        let sources = files(&root().join(folder), extension);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            for stale in files(&inside, extension) {
                std::fs::remove_file(stale).unwrap();
            }
            for source in &sources {
                std::fs::copy(source, inside.join(source.file_name().unwrap())).unwrap();
            }
        }
        let read = |paths: Vec<PathBuf>| -> BTreeMap<String, String> {
            let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
            let text = |path: &Path| std::fs::read_to_string(path).unwrap();
            paths.iter().map(|path| (name(path), text(path))).collect()
        };
        assert_eq!(
            read(files(&inside, extension)),
            read(sources),
            "helm/taffrail/files/{folder} is not {folder}; UPDATE_GOLDEN=1 copies it"
        );
    }
}

/// What a ConfigMap may hold is 1 MiB; what `kubectl apply` keeps of it as an annotation is less.
const CONFIG_MAP_BYTES_MAX: usize = 256 << 10;

#[test]
fn every_dashboard_is_a_config_map_of_its_own() {
    let Some(ci) = CI.as_ref() else { return };
    let rendered = &ci["monitoring-values.yaml"];
    let dashboards = files(&root().join("grafana"), "json");
    assert!(!dashboards.is_empty());
    for path in &dashboards {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let map = rendered.find("ConfigMap", &format!("-dashboard-{name}"));
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(map["data"], json!({format!("{name}.json"): text}), "{name}");
        let bytes = map.to_string().len();
        assert!(bytes < CONFIG_MAP_BYTES_MAX, "{name}: {bytes} bytes");
        let metadata = &map["metadata"];
        assert_eq!(metadata["namespace"], "grafana");
        assert_eq!(metadata["labels"]["dashboards.example.com/load"], "yes");
        assert_eq!(
            metadata["annotations"]["k8s-sidecar-target-directory"],
            "AI"
        );
    }
    let maps = rendered
        .manifests()
        .iter()
        .filter(|it| it["kind"] == "ConfigMap" && it["metadata"]["namespace"] == "grafana");
    assert_eq!(maps.count(), dashboards.len());
}

/// The blocks of a page in a language.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let start = format!("```{language}\n");
    let after = page.split(start.as_str()).skip(1);
    after
        .map(|rest| rest.split("```").next().unwrap())
        .collect()
}

#[test]
fn the_values_of_the_walk_through_are_those_of_the_chart() {
    let Some(tools) = tools() else { return };
    let page = include_str!("../../docs/kubernetes.md");
    let [values] = blocks(page, "yaml")[..] else {
        panic!("one file of values")
    };
    let rendered = tools.render_values(&chart(), &serde_norway::from_str(values).unwrap());
    assert_eq!(rendered.0["lint"], json!([]));
    assert_eq!(tools.validate(rendered.manifests()), Vec::<String>::new());
    for kind in ["ServiceMonitor", "PodMonitor", "PrometheusRule"] {
        rendered.find(kind, "");
    }
}

#[test]
fn every_key_that_a_page_names_is_one_of_the_chart_or_of_the_configuration() {
    let values = std::fs::read_to_string(chart().join("values.yaml")).unwrap();
    let values: Value = serde_norway::from_str(&values).unwrap();
    let configuration = include_str!("../../docs/configuration.md");
    for (page, text) in [
        (
            "docs/kubernetes.md",
            include_str!("../../docs/kubernetes.md"),
        ),
        ("grafana/README.md", include_str!("../../grafana/README.md")),
        (
            "helm/examples/README.md",
            include_str!("../../helm/examples/README.md"),
        ),
    ] {
        let prose: String = text.split("```").step_by(2).collect();
        for quoted in prose.split('`').skip(1).step_by(2) {
            let key = quoted.split(['=', ':']).next().unwrap();
            let mut parts = key.split('.');
            let is_key = |part: &str| {
                part.starts_with(|it: char| it.is_ascii_lowercase())
                    && part
                        .chars()
                        .all(|it| it.is_ascii_alphanumeric() || it == '_')
            };
            let is_file = ["json", "md", "toml", "yaml", "rs"].iter();
            let is_file = is_file.clone().any(|end| key.ends_with(&format!(".{end}")));
            let is_table = key.starts_with("taffrail.");
            if is_file || is_table || !key.contains('.') || !parts.all(is_key) {
                continue;
            }
            let is_value = values
                .pointer(&format!("/{}", key.replace('.', "/")))
                .is_some();
            let variable = format!("`TAFFRAIL_{}`", key.replace('.', "__").to_uppercase());
            let is_configured = configuration.contains(&variable);
            assert!(is_value || is_configured, "{page}: `{quoted}` is no key");
        }
    }
}

#[test]
fn the_commands_of_the_walk_through_hold() {
    let Some(tools) = tools() else { return };
    let page = include_str!("../../docs/kubernetes.md").replace("\\\n", "");
    let commands: Vec<&str> = blocks(&page, "sh")
        .into_iter()
        .flat_map(str::lines)
        .collect();
    let creating = commands
        .iter()
        .filter(|it| it.starts_with("kubectl create "));
    let mut secrets = BTreeSet::new();
    for command in creating.clone() {
        let made = tools.kubectl_create(command);
        if made["kind"] == "Secret" {
            assert!(made["data"]["url"].is_string(), "{command}");
            secrets.insert(made["metadata"]["name"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(creating.count(), 4);
    // They are those that the values name.
    let [values] = blocks(&page, "yaml")[..] else {
        panic!("one file of values")
    };
    for secret in secrets {
        assert!(
            values.contains(&format!("existingSecret: {secret}\n")),
            "{secret}"
        );
    }
    let run = commands.iter().find(|it| it.starts_with("kubectl run "));
    let (_, words) = run.unwrap().split_once(" -- ").unwrap();
    let binary = std::process::Command::new(env!("CARGO_BIN_EXE_taffrail"))
        .args(words.split_whitespace())
        .arg("--help")
        .output()
        .unwrap();
    assert!(binary.status.success(), "{words}: {binary:?}");
}

/// Copies the chart, for a test that changes it.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

#[test]
fn rules_and_dashboards_reach_the_cluster_unchanged() {
    let Some(tools) = tools() else { return };
    let dir = tempfile::tempdir().unwrap();
    copy(&chart(), dir.path());
    let rules = "groups:\n  - name: taffrail\n    rules:\n      - alert: LowBalance\n        \
                 expr: taffrail_balance < 5\n        for: 5m\n        annotations:\n          \
                 summary: \"{{ $labels.account }} has {{ $value }} left\"\n";
    let dashboard = "{\n  \"title\": \"{{provider}} {{`x`}}\",\n  \"uid\": \"taffrail\"\n}\n";
    std::fs::write(dir.path().join("files/alerts/low_balance.yaml"), rules).unwrap();
    std::fs::write(
        dir.path().join("files/grafana/cost_overview.json"),
        dashboard,
    )
    .unwrap();
    let rendered = tools.render_values(
        dir.path(),
        &json!({
            "prometheusRule": {"enabled": true, "labels": {"release": "prometheus"}},
            "dashboards": {
                "enabled": true,
                "label": {"key": "example.com/board", "value": "yes"},
                "folder": "AI",
            },
        }),
    );
    let rule = rendered.find("PrometheusRule", "-low-balance");
    assert_eq!(rule["metadata"]["labels"]["release"], "prometheus");
    let annotations = &rule["spec"]["groups"][0]["rules"][0]["annotations"];
    assert_eq!(
        annotations["summary"],
        "{{ $labels.account }} has {{ $value }} left"
    );
    let board = rendered.find("ConfigMap", "-dashboard-cost-overview");
    assert_eq!(board["data"]["cost_overview.json"], dashboard);
    assert_eq!(board["metadata"]["labels"]["example.com/board"], "yes");
    assert_eq!(board["metadata"]["annotations"]["grafana_folder"], "AI");
    assert_eq!(tools.validate(rendered.manifests()), Vec::<String>::new());
}

#[test]
fn a_change_of_configuration_brings_new_pods() {
    let Some(tools) = tools() else { return };
    let checksum = |level: &str| {
        let values = json!({"exporter": {"config": {"log": {"level": level}}}});
        let rendered = tools.render_values(&chart(), &values);
        let template = &rendered.find("Deployment", "-exporter")["spec"]["template"];
        template["metadata"]["annotations"]["checksum/config"].clone()
    };
    assert_eq!(checksum("info"), checksum("info"));
    assert_ne!(checksum("info"), checksum("debug"));
}

#[test]
fn notes_say_the_next_step() {
    let Some(ci) = CI.as_ref() else { return };
    for (file, words) in [
        ("default-values.yaml", "set store.existingSecret"),
        ("postgres-values.yaml", "nothing scrapes Taffrail yet"),
        ("exporter-only-values.yaml", "nothing scrapes Taffrail yet"),
        (
            "gateway-values.yaml",
            "demo-taffrail-gateway.metering.svc:4800/openai/v1",
        ),
    ] {
        let notes = ci[file].0["notes"].as_str().unwrap();
        assert!(notes.contains(words), "{file}:\n{notes}");
    }
}

#[test]
fn the_sidecar_is_the_same_without_the_webhook() {
    let Some(tools) = tools() else { return };
    let dir = tempfile::tempdir().unwrap();
    copy(&root().join("helm/examples/app"), dir.path());
    copy(&chart(), &dir.path().join("charts/taffrail"));
    let text = tools.text(dir.path(), "deployment.yaml");
    assert_golden(Path::new("helm/examples/plain.yaml"), &text);

    let rendered = tools.render_values(dir.path(), &json!({}));
    assert_eq!(tools.validate(rendered.manifests()), Vec::<String>::new());
    assert_eq!(rendered.manifests().len(), 1, "only the templates are used");
    let spec = &rendered.find("Deployment", "app")["spec"]["template"]["spec"];
    let mut sidecar = spec["initContainers"][0].clone();
    let values = json!({"sidecar": {
        "providers": ["openai", "anthropic"],
        "store": {"existingSecret": "taffrail-store"},
        "config": {"proxy": {"shutdown_grace": "23s"}},
    }});
    let whole = tools.render_values(&chart(), &values);
    let map = whole.find("ConfigMap", "-injector");
    let injected: Value =
        serde_json::from_str(map["data"]["sidecar.json"].as_str().unwrap()).unwrap();
    sidecar.as_object_mut().unwrap().remove("restartPolicy");
    assert_eq!(sidecar, injected["container"]);
    assert_eq!(spec["volumes"], injected["volumes"]);
    let names: Vec<&Value> = list(&spec["containers"][0], "env")
        .iter()
        .map(|it| &it["name"])
        .collect();
    let expected = [
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "OPENAI_API_BASE",
        "ANTHROPIC_BASE_URL",
    ];
    assert_eq!(names, expected);
    read(&sidecar, &rendered);
}
