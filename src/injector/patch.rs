//! A pod in, a JSON Patch out (RFC 6902) that puts the sidecar into it. Pure.
//!
//! Patching a pod that is patched already changes nothing, but for containers that came later and
//! whose SDKs are not led to the sidecar yet.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::annotations::{self, STATUS, Wishes};
use super::sidecar::{Sidecar, Variable};
use crate::metrics::ReviewResult;

/// The label by which pods ask for the sidecar, or for none.
pub(super) const INJECT_LABEL: &str = "taffrail.dev/inject";
/// The label of pods that have it, for monitors to select.
const INJECTED_LABEL: &str = "taffrail.dev/injected";

/// What Kubernetes gives a pod to stop, unless it says otherwise.
const TERMINATION_GRACE_SECONDS: u64 = 30;
/// What the sidecar needs of it after the last request: `store.drain.shutdown_timeout` and a bit.
const SHIPPING_SECONDS: u64 = 7;
const GRACE_VARIABLE: &str = "TAFFRAIL_PROXY__SHUTDOWN_GRACE";

/// What becomes of a pod.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    pub(super) result: ReviewResult,
    /// Operations of the patch, in order.
    pub(super) operations: Vec<Value>,
    pub(super) warnings: Vec<String>,
}

impl Plan {
    fn leave(result: ReviewResult) -> Plan {
        Plan {
            result,
            operations: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn leave_because(result: ReviewResult, reason: &str) -> Plan {
        Plan {
            warnings: vec![format!("no taffrail sidecar is injected: {reason}")],
            ..Plan::leave(result)
        }
    }
}

/// What becomes of a pod that is created in a namespace.
pub(super) fn plan(pod: &Value, namespace: &str, own_namespace: &str, sidecar: &Sidecar) -> Plan {
    let pod = Pod(pod);
    if pod.metadata("labels").get(INJECT_LABEL) == Some(&json!("false")) {
        return Plan::leave(ReviewResult::OptedOut);
    }
    if !own_namespace.is_empty() && namespace == own_namespace {
        return Plan::leave(ReviewResult::OwnNamespace);
    }
    if pod.container_names().any(|name| name == sidecar.name()) {
        return add_variables(&pod, sidecar);
    }
    let (wishes, warnings) = annotations::read(pod.metadata("annotations"), sidecar);
    let is_native = wishes.native.unwrap_or(sidecar.native);
    if let Some((result, reason)) = obstacle(&pod, is_native, sidecar) {
        return Plan::leave_because(result, reason);
    }
    let mut operations = variables(&pod, &wishes, sidecar);
    operations.push(container(&pod, &wishes, is_native, sidecar));
    operations.extend(volumes(&pod, sidecar));
    operations.push(pod.member("labels", INJECTED_LABEL, "true"));
    operations.push(pod.member("annotations", STATUS, env!("CARGO_PKG_VERSION")));
    Plan {
        result: ReviewResult::Injected,
        operations,
        warnings,
    }
}

/// Why a pod would not work with the sidecar in it.
fn obstacle(
    pod: &Pod<'_>,
    is_native: bool,
    sidecar: &Sidecar,
) -> Option<(ReviewResult, &'static str)> {
    let spec = |key: &str| pod.spec().get(key);
    let is_windows = spec("os").and_then(|os| os.get("name")) == Some(&json!("windows"))
        || spec("nodeSelector").and_then(|labels| labels.get("kubernetes.io/os"))
            == Some(&json!("windows"));
    let is_restarted = matches!(spec("restartPolicy"), None | Some(Value::Null))
        || spec("restartPolicy") == Some(&json!("Always"));
    if spec("hostNetwork") == Some(&Value::Bool(true)) {
        Some((
            ReviewResult::HostNetwork,
            "the pod is on its node's network, where its ports could be another's",
        ))
    } else if is_windows {
        Some((ReviewResult::Windows, "the pod runs on Windows"))
    } else if pod
        .ports()
        .any(|port| sidecar.ports.iter().any(|own| u64::from(*own) == port))
    {
        Some((
            ReviewResult::PortInUse,
            "a container of the pod has its port",
        ))
    } else if !is_native && !is_restarted {
        Some((
            ReviewResult::NeverCompletes,
            "the pod is to complete, which a sidecar that is not native would keep it from",
        ))
    } else {
        None
    }
}

/// For a pod that has the sidecar: what containers that came after it lack.
fn add_variables(pod: &Pod<'_>, sidecar: &Sidecar) -> Plan {
    let mut plan = Plan::leave(ReviewResult::AlreadyInjected);
    // A sidecar that somebody else put there may lead SDKs where it wants.
    if pod.metadata("annotations").contains_key(STATUS) {
        let (wishes, _) = annotations::read(pod.metadata("annotations"), sidecar);
        plan.operations = variables(pod, &wishes, sidecar);
    }
    plan
}

/// The variables for SDKs, in every container that does not set them itself.
fn variables(pod: &Pod<'_>, wishes: &Wishes, sidecar: &Sidecar) -> Vec<Value> {
    let providers = wishes.providers.as_ref().unwrap_or(&sidecar.providers);
    let wanted: Vec<&Variable> = sidecar
        .environment
        .iter()
        .filter(|variable| providers.is_empty() || providers.contains(&variable.provider))
        .collect();
    let mut operations = Vec::new();
    for list in ["initContainers", "containers"] {
        for (index, container) in pod.list(list).iter().enumerate() {
            if container.get("name").and_then(Value::as_str) == Some(sidecar.name()) {
                continue;
            }
            let own = container.get("env").and_then(Value::as_array);
            let is_set = |name: &str| {
                let names = own.into_iter().flatten();
                names.filter_map(|it| it.get("name")).any(|it| it == name)
            };
            let missing: Vec<Value> = wanted
                .iter()
                .filter(|variable| !is_set(&variable.name))
                .map(|variable| json!({"name": variable.name, "value": variable.value}))
                .collect();
            let path = format!("/spec/{list}/{index}/env");
            match own {
                _ if missing.is_empty() => {}
                None => operations.push(add(path, Value::Array(missing))),
                Some(_) => {
                    let path = format!("{path}/-");
                    operations.extend(missing.into_iter().map(|it| add(path.clone(), it)));
                }
            }
        }
    }
    operations
}

/// The container: before every other where it is native, so that what they call passes through it.
fn container(pod: &Pod<'_>, wishes: &Wishes, is_native: bool, sidecar: &Sidecar) -> Value {
    let mut container = sidecar.container.clone();
    if let Some(image) = &wishes.image {
        container.insert("image".to_owned(), json!(image));
    }
    for ((list, resource), quantity) in &wishes.resources {
        let resources = object(&mut container, "resources");
        object(resources, list).insert((*resource).to_owned(), json!(quantity));
    }
    let own = container.remove("env");
    let mut env = match own {
        Some(Value::Array(env)) => env,
        _ => Vec::new(),
    };
    env.retain(|variable| {
        let name = variable.get("name").and_then(Value::as_str);
        name.is_none_or(|name| !wishes.attribution.contains_key(name))
    });
    let wished = wishes.attribution.iter();
    env.extend(wished.map(|(name, value)| json!({"name": name, "value": verbatim(value)})));
    if sidecar.variables().all(|name| name != GRACE_VARIABLE) {
        let grace = format!("{}s", grace_seconds(pod));
        env.push(json!({"name": GRACE_VARIABLE, "value": grace}));
    }
    container.insert("env".to_owned(), Value::Array(env));
    if !is_native {
        return add("/spec/containers/-".to_owned(), Value::Object(container));
    }
    container.insert("restartPolicy".to_owned(), json!("Always"));
    match pod.spec().get("initContainers") {
        Some(Value::Array(_)) => add(
            "/spec/initContainers/0".to_owned(),
            Value::Object(container),
        ),
        _ => add("/spec/initContainers".to_owned(), json!([container])),
    }
}

/// How long requests under way may take once the pod is to stop, so that their records can still
/// be shipped.
fn grace_seconds(pod: &Pod<'_>) -> u64 {
    let whole = pod.spec().get("terminationGracePeriodSeconds");
    let whole = whole
        .and_then(Value::as_u64)
        .unwrap_or(TERMINATION_GRACE_SECONDS);
    whole.saturating_sub(SHIPPING_SECONDS).max(1)
}

/// A value of a variable in which Kubernetes replaces nothing: it reads `$(NAME)` as a reference,
/// and `$$` as a dollar.
fn verbatim(value: &str) -> String {
    value.replace('$', "$$")
}

fn volumes(pod: &Pod<'_>, sidecar: &Sidecar) -> Vec<Value> {
    let own = pod.list("volumes");
    let is_there = |volume: &&Value| own.iter().any(|it| it.get("name") == volume.get("name"));
    let missing: Vec<Value> = sidecar
        .volumes
        .iter()
        .filter(|volume| !is_there(volume))
        .cloned()
        .collect();
    match pod.spec().get("volumes") {
        _ if missing.is_empty() => Vec::new(),
        Some(Value::Array(_)) => {
            let path = || "/spec/volumes/-".to_owned();
            missing.into_iter().map(|it| add(path(), it)).collect()
        }
        _ => vec![add("/spec/volumes".to_owned(), Value::Array(missing))],
    }
}

struct Pod<'a>(&'a Value);

static NOTHING: Value = Value::Null;

impl<'a> Pod<'a> {
    fn spec(&self) -> &'a Value {
        self.0.get("spec").unwrap_or(&NOTHING)
    }

    fn list(&self, key: &str) -> &'a [Value] {
        let list = self.spec().get(key).and_then(Value::as_array);
        list.map_or(&[], Vec::as_slice)
    }

    /// The pod's labels or annotations.
    fn metadata(&self, key: &str) -> &'a Map<String, Value> {
        static NONE: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
        let metadata = self.0.get("metadata").and_then(|it| it.get(key));
        metadata.and_then(Value::as_object).unwrap_or(&NONE)
    }

    fn containers(&self) -> impl Iterator<Item = &'a Value> {
        let init = self.list("initContainers").iter();
        init.chain(self.list("containers"))
    }

    fn container_names(&self) -> impl Iterator<Item = &'a str> {
        self.containers()
            .filter_map(|container| container.get("name")?.as_str())
    }

    fn ports(&self) -> impl Iterator<Item = u64> {
        let lists = self
            .containers()
            .filter_map(|it| it.get("ports")?.as_array());
        lists
            .flatten()
            .filter_map(|port| port.get("containerPort")?.as_u64())
    }

    /// Sets a label or an annotation.
    fn member(&self, key: &str, name: &str, value: &str) -> Value {
        let metadata = self.0.get("metadata").and_then(|it| it.get(key));
        if metadata.is_some_and(Value::is_object) {
            // RFC 6901, section 3.
            let name = name.replace('~', "~0").replace('/', "~1");
            add(format!("/metadata/{key}/{name}"), json!(value))
        } else {
            add(format!("/metadata/{key}"), json!({ name: value }))
        }
    }
}

/// The object under a key, which is made if it is not there.
fn object<'a>(parent: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = parent.entry(key).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    #[expect(clippy::expect_used, reason = "it was made an object above")]
    value.as_object_mut().expect("it is an object")
}

fn add(path: String, value: Value) -> Value {
    json!({"op": "add", "path": path, "value": value})
}
