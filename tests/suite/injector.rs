//! The injector: reviews of pods in, patched pods out, over TLS with a certificate that moves on.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use taffrail::config::{self, Sources};
use taffrail::injector::review::{Answer, answer};
use taffrail::injector::{PATH, Sidecar};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::binary::{Home, Process, Scrape, Server, get};
use crate::support::certificate::issue;
use crate::support::chart::{chart, root, tools};
use crate::support::eventually::eventually;
use crate::support::kubernetes::Cluster;
use crate::support::postgres::{self, Version};
use crate::support::vendor::{Reply, Vendor};

const OWNERS: [&str; 6] = [
    "deployment",
    "job",
    "cronjob",
    "statefulset",
    "bare-pod",
    "unlabelled",
];

fn fixture(name: &str) -> Vec<u8> {
    let path = root().join("tests/fixtures/kubernetes").join(name);
    std::fs::read(path).unwrap()
}

fn review(name: &str) -> Value {
    serde_json::from_slice(&fixture(&format!("{name}.json"))).unwrap()
}

fn sidecar() -> Sidecar {
    Sidecar::parse(&fixture("sidecar.json")).unwrap()
}

/// What the injector answers.
fn ask(review: &Value) -> Answer {
    answer(review.to_string().as_bytes(), &sidecar(), "taffrail").unwrap()
}

fn patch_of(answer: &Value) -> Value {
    let Some(patch) = answer["response"]["patch"].as_str() else {
        return json!([]);
    };
    assert_eq!(answer["response"]["patchType"], "JSONPatch");
    serde_json::from_slice(&STANDARD.decode(patch).unwrap()).unwrap()
}

/// The pod of a review as its answer makes it.
fn patched(review: &Value, answer: &Value) -> Value {
    assert_eq!(answer["response"]["uid"], review["request"]["uid"]);
    assert_eq!(answer["response"]["allowed"], true);
    let mut pod = review["request"]["object"].clone();
    let patch: json_patch::Patch = serde_json::from_value(patch_of(answer)).unwrap();
    json_patch::patch(&mut pod, &patch).unwrap();
    pod
}

/// The pod of a review with annotations, as the injector makes it, and what it warns of.
fn with_annotations(name: &str, annotations: Value) -> (Value, Vec<String>) {
    let mut review = review(name);
    review["request"]["object"]["metadata"]["annotations"] = annotations;
    let answer = ask(&review).body;
    let warnings = serde_json::from_value(answer["response"]["warnings"].clone());
    (patched(&review, &answer), warnings.unwrap_or_default())
}

fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let lists = ["initContainers", "containers"].into_iter();
    let mut all = lists.flat_map(|list| pod["spec"][list].as_array().into_iter().flatten());
    all.find(|it| it["name"] == name)
        .unwrap_or_else(|| panic!("no {name} in {pod}"))
}

fn variable(container: &Value, name: &str) -> Option<String> {
    let env = container["env"].as_array()?;
    let mut found = env.iter().filter(|it| it["name"] == name);
    let value = found.next()?["value"].as_str().map(str::to_owned);
    assert!(found.next().is_none(), "{name} twice");
    value
}

/// What Kubernetes asks of a pod beyond the schema.
fn assert_starts(pod: &Value) {
    let spec = &pod["spec"];
    let list = |key: &str| spec[key].as_array().cloned().unwrap_or_default();
    let all: Vec<Value> = [list("initContainers"), list("containers")].concat();
    let names: BTreeSet<&str> = all.iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), all.len(), "a name twice");
    let volumes = list("volumes");
    let volumes: Vec<&str> = volumes
        .iter()
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    assert_eq!(volumes.len(), volumes.iter().collect::<BTreeSet<_>>().len());
    for container in &all {
        for mount in container["volumeMounts"].as_array().into_iter().flatten() {
            assert!(
                volumes.contains(&mount["name"].as_str().unwrap()),
                "{mount}"
            );
        }
    }
}

/// The sidecar of a pod reads its environment.
fn assert_sidecar_starts(pod: &Value) -> config::Config {
    let env = container(pod, "taffrail")["env"]
        .as_array()
        .unwrap()
        .clone();
    let env = env.iter().map(|variable| {
        let name = OsString::from(variable["name"].as_str().unwrap());
        let value = variable["value"].as_str().unwrap_or("of-the-pod");
        (name, OsString::from(value.replace("$$", "$")))
    });
    let sources = Sources {
        env: env.collect(),
        ..Sources::default()
    };
    config::load(sources)
        .unwrap_or_else(|problems| panic!("{problems}"))
        .config
}

#[test]
fn pods_of_every_owner_get_the_sidecar_and_stay_valid() {
    let mut pods = Vec::new();
    for name in OWNERS {
        let review = review(name);
        let answer = ask(&review);
        assert_eq!(answer.result.as_str(), "injected", "{name}");
        assert_eq!(answer.warnings, 0, "{name}");
        let pod = patched(&review, &answer.body);
        assert_starts(&pod);
        assert_sidecar_starts(&pod);
        let first = &pod["spec"]["initContainers"][0];
        assert_eq!(first["name"], "taffrail", "{name}");
        assert_eq!(first["restartPolicy"], "Always", "{name}");
        assert_eq!(
            first["startupProbe"]["exec"]["command"],
            json!(["/taffrail", "healthcheck"])
        );
        assert_eq!(
            pod["metadata"]["labels"]["taffrail.dev/injected"], "true",
            "{name}"
        );
        // Nothing of the pod's own is lost.
        let own = &review["request"]["object"];
        for list in ["containers", "volumes", "initContainers"] {
            for item in own["spec"][list].as_array().into_iter().flatten() {
                let all = pod["spec"][list].as_array().unwrap();
                let kept = all.iter().find(|it| it["name"] == item["name"]).unwrap();
                for (key, value) in item
                    .as_object()
                    .unwrap()
                    .iter()
                    .filter(|(key, _)| *key != "env")
                {
                    assert_eq!(&kept[key], value, "{name}: {}", item["name"]);
                }
            }
        }
        pods.push(pod);
    }
    // A variable that is set stays; the others are led to the sidecar.
    let fetch = container(&pods[1], "fetch");
    assert_eq!(
        variable(fetch, "OPENAI_BASE_URL").unwrap(),
        "https://gateway.example.com/v1"
    );
    assert_eq!(
        variable(fetch, "ANTHROPIC_BASE_URL").unwrap(),
        "http://127.0.0.1:4800/anthropic"
    );
    for (pod, name) in [(0, "web"), (1, "web"), (3, "exporter"), (4, "shell")] {
        let base = variable(container(&pods[pod], name), "OPENAI_BASE_URL");
        assert_eq!(base.unwrap(), "http://127.0.0.1:4800/openai/v1", "{name}");
    }
    assert_eq!(
        pods[3]["metadata"]["annotations"]["example.com/keep"],
        "this"
    );
    // What is left of the pod's grace period ships the last records.
    let grace =
        |pod: &Value| variable(container(pod, "taffrail"), "TAFFRAIL_PROXY__SHUTDOWN_GRACE");
    assert_eq!(grace(&pods[0]).unwrap(), "23s");
    assert_eq!(grace(&pods[2]).unwrap(), "593s");

    let Some(tools) = tools() else { return };
    assert_eq!(tools.validate(&pods), Vec::<String>::new());
    for name in ["job", "bare-pod"] {
        let review = review(name);
        let patch = patch_of(&ask(&review).body);
        let mut own = review["request"]["object"].clone();
        // kubectl wants a name, which the API server makes up.
        own["metadata"]["name"] = json!("given");
        let mut pod = patched(&review, &ask(&review).body);
        pod["metadata"]["name"] = json!("given");
        assert_eq!(
            tools.kubectl_patch(&own, &patch)["spec"],
            pod["spec"],
            "{name}"
        );
    }
}

#[test]
fn a_pod_is_injected_once() {
    for name in OWNERS {
        let mut review = review(name);
        let pod = patched(&review, &ask(&review).body);
        review["request"]["object"] = pod.clone();
        let again = ask(&review);
        assert_eq!(again.result.as_str(), "already_injected", "{name}");
        assert_eq!(patch_of(&again.body), json!([]), "{name}");
        // A container that another webhook adds later is led to the sidecar too.
        let containers = review["request"]["object"]["spec"]["containers"]
            .as_array_mut()
            .unwrap();
        containers.push(json!({"name": "late", "image": "example.com/late"}));
        let pod = patched(&review, &ask(&review).body);
        assert!(
            variable(container(&pod, "late"), "OPENAI_BASE_URL").is_some(),
            "{name}"
        );
        assert_starts(&pod);
    }
    // A sidecar that the pod brought itself is its own affair.
    let mut review = review("deployment");
    let containers = review["request"]["object"]["spec"]["containers"]
        .as_array_mut()
        .unwrap();
    containers.push(json!({"name": "taffrail", "image": "example.com/own"}));
    assert_eq!(patch_of(&ask(&review).body), json!([]));
}

#[test]
fn pods_that_would_break_are_left_alone() {
    let own = |pointer: &str, value: Value| {
        let mut review = review("deployment");
        let object = &mut review["request"]["object"];
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[key] = value;
        review
    };
    let mut elsewhere = review("deployment");
    elsewhere["request"]["namespace"] = json!("taffrail");
    let mut update = review("deployment");
    update["request"]["operation"] = json!("UPDATE");
    let mut service = review("deployment");
    service["request"]["object"] = json!({"kind": "Service", "metadata": {}, "spec": {}});
    let mut nothing = review("deployment");
    nothing["request"].as_object_mut().unwrap().remove("object");
    let mut plain_job = review("job");
    plain_job["request"]["object"]["metadata"]["annotations"] =
        json!({"taffrail.dev/native": "false"});
    for (result, warnings, review) in [
        (
            "opted_out",
            0,
            own("/metadata/labels", json!({"taffrail.dev/inject": "false"})),
        ),
        ("own_namespace", 0, elsewhere),
        ("host_network", 1, own("/spec/hostNetwork", json!(true))),
        ("windows", 1, own("/spec/os", json!({"name": "windows"}))),
        (
            "windows",
            1,
            own("/spec/nodeSelector", json!({"kubernetes.io/os": "windows"})),
        ),
        (
            "port_in_use",
            1,
            own("/spec/containers/0/ports", json!([{"containerPort": 4800}])),
        ),
        ("never_completes", 1, plain_job),
        ("malformed", 1, update),
        ("malformed", 1, service),
        ("malformed", 1, nothing),
    ] {
        let answer = ask(&review);
        assert_eq!(
            (answer.result.as_str(), answer.warnings),
            (result, warnings)
        );
        assert_eq!(answer.body["response"]["allowed"], true, "{result}");
        assert_eq!(patch_of(&answer.body), json!([]), "{result}");
    }
    for body in [
        "".as_bytes(),
        b"{}",
        b"[]",
        b"\xff\xfe",
        br#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{"uid":"a"}}"#,
        br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":""}}"#,
        br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#,
    ] {
        assert!(answer(body, &sidecar(), "taffrail").is_err());
    }
}

#[test]
fn annotations_say_what_a_pod_wants() {
    let (pod, warnings) = with_annotations(
        "deployment",
        json!({
            "taffrail.dev/providers": "anthropic",
            "taffrail.dev/native": "false",
            "taffrail.dev/image": "example.com/mirror/taffrail:1.2.3",
            "taffrail.dev/cpu-request": "50m",
            "taffrail.dev/memory-request": "512Mi",
            "taffrail.dev/attribution": "team=search, product = a$(POD_NAME)b,tier=42",
            "example.com/other": "untouched",
        }),
    );
    assert_eq!(warnings, Vec::<String>::new());
    let sidecar = container(&pod, "taffrail");
    assert_eq!(sidecar["image"], "example.com/mirror/taffrail:1.2.3");
    assert_eq!(sidecar.get("restartPolicy"), None);
    assert_eq!(pod["spec"]["containers"][1]["name"], "taffrail");
    // The limit follows a request that is beyond it: Kubernetes would refuse the pod.
    assert_eq!(
        sidecar["resources"],
        json!({
            "requests": {"cpu": "50m", "memory": "512Mi"},
            "limits": {"memory": "512Mi"},
        })
    );
    let web = container(&pod, "web");
    assert_eq!(variable(web, "OPENAI_BASE_URL"), None);
    assert!(variable(web, "ANTHROPIC_BASE_URL").is_some());
    let config = assert_sidecar_starts(&pod);
    let fixed = &config.attribution.fixed;
    assert_eq!(fixed["team"], "search");
    assert_eq!(fixed["product"], "a$(POD_NAME)b");
    assert_eq!(fixed["tier"], "42");
    assert_starts(&pod);
}

#[test]
fn annotations_that_do_not_hold_are_left_out_with_a_warning() {
    let (usual, _) = with_annotations("deployment", json!({}));
    for (annotation, value, warning) in [
        ("providers", "open-ai", "known are anthropic, openai"),
        ("providers", " , ", "names no provider"),
        ("native", "yes", "not true or false"),
        ("image", "Not An Image", "not the name of an image"),
        ("cpu-request", "much", "not a quantity"),
        ("memory-limit", "-1Gi", "not a quantity"),
        ("attribution", "team", "not label=value"),
        ("attribution", "model=x", "\"model\" is a label"),
        ("attribution", "namespace=x", "dimension of usage"),
        ("attribution", "Team=x", "capitals"),
        ("attribution", "a__b=x", "capitals or __"),
        ("attribution", "feature=x", "given by a header"),
        ("attribution", "team=", "needs a value"),
        ("inject", "true", "a label of the pod"),
        ("imgae", "x", "unknown; accepted are"),
    ] {
        let name = format!("taffrail.dev/{annotation}");
        let (mut pod, warnings) = with_annotations("deployment", json!({ &name: value }));
        assert_eq!(warnings.len(), 1, "{name}={value}");
        assert!(warnings[0].contains(&name), "{}", warnings[0]);
        assert!(warnings[0].contains(warning), "{}", warnings[0]);
        pod["metadata"] = usual["metadata"].clone();
        assert_eq!(pod, usual, "{name}={value}");
    }
    // What holds beside it stays.
    let labels = "a=1,b=2,c=3,d=4,e=5,f=6,g=7,team=x,nope";
    let (pod, warnings) =
        with_annotations("deployment", json!({"taffrail.dev/attribution": labels}));
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0].contains("one label more than 8"),
        "{}",
        warnings[0]
    );
    assert_eq!(assert_sidecar_starts(&pod).attribution.fixed.len(), 7);
    let (pod, warnings) = with_annotations(
        "deployment",
        json!({"taffrail.dev/memory-request": "2Gi", "taffrail.dev/memory-limit": "1Gi"}),
    );
    assert_eq!(warnings.len(), 1);
    let sidecar = &container(&pod, "taffrail")["resources"];
    assert_eq!(sidecar, &container(&usual, "taffrail")["resources"]);
}

/// A home of an injector beside a cluster.
async fn injector_home(sidecar: &Path) -> (Home, Cluster) {
    let mut home = Home::without_provider();
    let account = home.path().join("account");
    std::fs::create_dir(&account).unwrap();
    let cluster = Cluster::start(&account).await;
    home.set("ROLE", "injector");
    home.set("INJECTOR__LISTEN", "127.0.0.1:0");
    home.set("INJECTOR__SIDECAR_FILE", sidecar.display().to_string());
    home.set("INJECTOR__KUBERNETES_URL", cluster.url());
    home.set(
        "INJECTOR__SERVICE_ACCOUNT_DIR",
        account.display().to_string(),
    );
    home.set("INJECTOR__CHECK_INTERVAL", "100ms");
    home.set("INJECTOR__CERTIFICATE_OVERLAP", "500ms");
    (home, cluster)
}

fn fixture_sidecar() -> PathBuf {
    root().join("tests/fixtures/kubernetes/sidecar.json")
}

/// Where a server listens for reviews.
fn address(log: &str) -> SocketAddr {
    let events = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut addresses = events.filter_map(|event| event["injector"].as_str()?.parse().ok());
    addresses.next().expect("the injector listens")
}

/// Waits for its certificate, without which it is not ready.
async fn ready(process: Process) -> Server {
    eventually("it is ready", async || match admin(&process.log()) {
        Some(address) => get(address, "/-/ready").await.0 == 200,
        None => false,
    })
    .await;
    process.ready().await
}

fn admin(log: &str) -> Option<SocketAddr> {
    let mut events = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.find_map(|event| event["admin"].as_str()?.parse().ok())
}

async fn started(home: &Home) -> (Server, SocketAddr) {
    let server = ready(home.spawn()).await;
    let address = address(&server.process.log());
    (server, address)
}

/// Sends a review as the API server does, on a connection of its own that trusts `bundle` alone.
async fn post(
    address: SocketAddr,
    bundle: &str,
    name: &str,
    body: Vec<u8>,
) -> Result<(u16, Value), String> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(address)
        .await
        .map_err(|it| it.to_string())?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connector = TlsConnector::from(Arc::new(client));
    let stream = connector
        .connect(name, tcp)
        .await
        .map_err(|it| it.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|it| it.to_string())?;
    let driving = tokio::spawn(connection);
    let request = Request::post(format!("{PATH}?timeout=5s"))
        .header("host", "taffrail-injector.taffrail.svc")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    let response = sender
        .send_request(request)
        .await
        .map_err(|it| it.to_string())?;
    let status = response.status().as_u16();
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|it| it.to_string())?;
    driving.abort();
    Ok((status, serde_json::from_slice(&body.to_bytes()).unwrap()))
}

const SERVICE: &str = "taffrail-injector.taffrail.svc";

#[tokio::test]
async fn reviews_are_answered_over_tls_with_a_certificate_of_its_own() {
    let (home, cluster) = injector_home(&fixture_sidecar()).await;
    let (server, address) = started(&home).await;
    let bundle = cluster.ca_bundle().unwrap();
    assert_eq!(cluster.secret("ca.crt").unwrap(), bundle);
    for name in OWNERS {
        let review = review(name);
        let (status, answer) = post(address, &bundle, SERVICE, review.to_string().into())
            .await
            .unwrap();
        assert_eq!(status, 200);
        assert_starts(&patched(&review, &answer));
    }
    for (body, status) in [(b"{}".to_vec(), 400), (vec![b' '; 5 * 1024 * 1024], 413)] {
        // A client that is still sending may see the connection end.
        if let Ok(answer) = post(address, &bundle, SERVICE, body).await {
            assert_eq!(answer.0, status);
        }
    }
    let other = post(address, &bundle, "kubernetes.default.svc", Vec::new()).await;
    assert!(other.unwrap_err().contains("certificate"));
    let scrape = server.scrape().await;
    let reviews =
        |result: &str| scrape.sum("taffrail_injector_reviews_total", &[("result", result)]);
    assert_eq!(reviews("injected"), 6);
    assert_eq!(reviews("malformed"), 2);
    let expiry = scrape.sum(
        "taffrail_injector_certificate_expiry_timestamp_seconds",
        &[],
    );
    let left = i64::try_from(expiry).unwrap() - taffrail::clock::wall().timestamp();
    let days = left / 86_400;
    assert!((89..=90).contains(&days), "{days}");
    let log = server.stop().await;
    assert!(!log.contains("PRIVATE KEY"));
}

#[tokio::test]
async fn a_certificate_moves_on_under_load_without_a_failed_review() {
    let (mut home, cluster) = injector_home(&fixture_sidecar()).await;
    home.set("INJECTOR__CERTIFICATE_LIFETIME", "6s");
    // Two replicas, which agree by the Secret.
    let (one, first) = started(&home).await;
    let (other, second) = started(&home).await;
    eventually("both serve what the Secret holds", async || {
        let Some(bundle) = cluster.ca_bundle() else {
            return false;
        };
        let body = || fixture("deployment.json");
        let (a, b) = tokio::join!(
            post(first, &bundle, SERVICE, body()),
            post(second, &bundle, SERVICE, body())
        );
        a.is_ok() && b.is_ok()
    })
    .await;
    let (asked, turn) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let mut served = BTreeSet::new();
    let load = async || {
        loop {
            let bundle = cluster.ca_bundle().unwrap();
            let replica = [first, second][turn.fetch_add(1, Ordering::Relaxed) % 2];
            let (status, answer) = post(replica, &bundle, SERVICE, fixture("deployment.json"))
                .await
                .unwrap_or_else(|problem| panic!("a review failed: {problem}"));
            assert_eq!(status, 200);
            assert_eq!(answer["response"]["allowed"], true);
            asked.fetch_add(1, Ordering::Relaxed);
        }
    };
    let watch = eventually("three certificates were served", async || {
        served.insert(cluster.secret("tls.crt").unwrap());
        served.len() >= 3
    });
    tokio::select! {
        () = watch => {}
        () = load() => {}
        () = load() => {}
    }
    let asked = asked.load(Ordering::Relaxed);
    eprintln!(
        "{asked} reviews, {} writes, {} conflicts",
        cluster.writes(),
        cluster.conflicts()
    );
    assert!(asked > 100, "{asked}");
    // With the API gone, what is there is served on.
    cluster.set_broken(true);
    let bundle = cluster.ca_bundle().unwrap();
    post(first, &bundle, SERVICE, fixture("job.json"))
        .await
        .unwrap();
    one.once("failed looks are counted", |scrape| {
        failed_looks(scrape) > 0
    })
    .await;
    drop((one, other));
}

fn failed_looks(scrape: &Scrape) -> u64 {
    scrape.sum(
        "taffrail_injector_certificate_checks_total",
        &[("result", "error")],
    )
}

#[tokio::test]
async fn without_the_api_it_is_not_ready_and_gets_ready_by_itself() {
    let (home, cluster) = injector_home(&fixture_sidecar()).await;
    cluster.set_broken(true);
    let process = home.spawn();
    eventually("it says why", async || {
        process
            .log()
            .contains("the API server answers 500 Internal Server Error: etcdserver")
    })
    .await;
    let admin = admin(&process.log()).unwrap();
    assert_eq!(get(admin, "/-/ready").await.0, 503);
    assert_eq!(get(admin, "/-/healthy").await.0, 200);
    cluster.set_broken(false);
    let server = ready(process).await;
    assert!(cluster.ca_bundle().is_some());
    server.stop().await;
}

#[tokio::test]
async fn a_certificate_from_files_is_read_again_when_they_change() {
    let mut home = Home::without_provider();
    let (certificate, key) = (home.path().join("tls.crt"), home.path().join("tls.key"));
    let write = |issued: &crate::support::certificate::Issued| {
        std::fs::write(&key, issued.key.serialize_pem()).unwrap();
        std::fs::write(&certificate, issued.certificate.pem()).unwrap();
    };
    let one = issue(SERVICE);
    write(&one);
    home.set("ROLE", "injector");
    home.set("INJECTOR__CHECK_INTERVAL", "100ms");
    home.set("INJECTOR__LISTEN", "127.0.0.1:0");
    home.set(
        "INJECTOR__SIDECAR_FILE",
        fixture_sidecar().display().to_string(),
    );
    home.set("INJECTOR__TLS_CERT_FILE", certificate.display().to_string());
    home.set("INJECTOR__TLS_KEY_FILE", key.display().to_string());
    let (server, address) = started(&home).await;
    let body = || fixture("deployment.json");
    post(address, &one.authority, SERVICE, body())
        .await
        .unwrap();
    let other = issue(SERVICE);
    write(&other);
    eventually("the new certificate is served", async || {
        post(address, &other.authority, SERVICE, body())
            .await
            .is_ok()
    })
    .await;
    assert!(
        post(address, &one.authority, SERVICE, body())
            .await
            .is_err()
    );
    server.stop().await;
}

/// The environment of a container as the kubelet resolves it.
fn resolved(container: &Value, secrets: &[(&str, &str)]) -> Vec<(String, String)> {
    let env = container["env"].as_array().unwrap().iter();
    env.filter_map(|variable| {
        let name = variable["name"].as_str().unwrap();
        let value = match &variable["valueFrom"] {
            Value::Null => variable["value"].as_str().unwrap().replace("$$", "$"),
            from if !from["fieldRef"].is_null() => match name {
                "POD_NAME" => "web-7d4b9c6f5d-x2k4m".to_owned(),
                _ => "shop".to_owned(),
            },
            from => {
                let wanted = from["secretKeyRef"]["name"].as_str().unwrap();
                secrets
                    .iter()
                    .find(|(name, _)| *name == wanted)?
                    .1
                    .to_owned()
            }
        };
        Some((name.to_owned(), value))
    })
    .collect()
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The whole way: the chart's own sidecar, injected by a review, and the containers of that pod run
/// as processes in the order in which the kubelet runs them.
#[tokio::test]
async fn an_application_in_an_injected_pod_is_metered_and_nothing_is_lost() {
    let Some(tools) = tools() else { return };
    let python = root().join("target/sdk-venv/bin/python");
    let Some(postgres) = postgres::Cluster::shared(Version::Default).await else {
        return;
    };
    if !python.exists() {
        assert_ne!(
            std::env::var("CI").as_deref(),
            Ok("1"),
            "no SDKs: run scripts/test-setup.sh"
        );
        eprintln!("SKIP: no SDKs: run scripts/test-setup.sh");
        return;
    }
    let vendor = Vendor::start(|_| {
        Reply::json(
            json!({
                "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-4o-2024-08-06",
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "ahoy"}}],
                "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
            })
            .to_string(),
        )
    })
    .await;
    let rendered = tools.render_values(
        &chart(),
        &json!({"sidecar": {
            "ports": {"proxy": free_port(), "admin": free_port()},
            "store": {"existingSecret": "taffrail-store"},
            "config": {
                "providers": {"openai": {"upstream": vendor.url()}},
                "store": {"drain": {"batch_delay": "100ms"}},
            },
        }}),
    );
    let map = rendered.find("ConfigMap", "-injector");
    let sidecar = map["data"]["sidecar.json"].as_str().unwrap();
    let mut review = review("deployment");
    review["request"]["object"]["metadata"]["annotations"] =
        json!({"taffrail.dev/attribution": "team=search"});
    let sidecar = Sidecar::parse(sidecar.as_bytes()).unwrap();
    let answer = answer(review.to_string().as_bytes(), &sidecar, "taffrail").unwrap();
    let pod = patched(&review, &answer.body);
    assert_eq!(
        tools.validate(std::slice::from_ref(&pod)),
        Vec::<String>::new()
    );

    let database = postgres.database().await;
    let mut owner = Home::without_provider();
    owner.set("STORE__URL", database.url());
    assert_eq!(owner.run(&["migrate"]).await.code, Some(0));

    // The sidecar first, which the application waits for.
    let volume = tempfile::tempdir().unwrap();
    let taffrail = container(&pod, "taffrail");
    let env = resolved(taffrail, &[("taffrail-store", &database.url())]);
    let program = |words: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_taffrail"));
        command
            .args(words)
            .env_clear()
            .envs(env.clone())
            .current_dir(volume.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        command
    };
    let words: Vec<&str> = taffrail["args"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let mut running = program(&words).spawn().unwrap();
    let probe = taffrail["startupProbe"]["exec"]["command"]
        .as_array()
        .unwrap();
    let probe: Vec<&str> = probe.iter().skip(1).filter_map(Value::as_str).collect();
    eventually("the startup probe succeeds", async || {
        program(&probe).status().await.unwrap().success()
    })
    .await;

    // The application, which knows nothing of it.
    let app = resolved(container(&pod, "web"), &[("openai", "sk-app-key")]);
    let calls = 25;
    let code = format!(
        "import openai\nclient = openai.OpenAI()\nfor _ in range({calls}):\n    answer = client.chat.completions.create(\
         model='gpt-4o', messages=[{{'role': 'user', 'content': 'hi'}}])\n    assert answer.usage.total_tokens == 18\n"
    );
    let output = tokio::process::Command::new(&python)
        .args(["-c", &code])
        .env_clear()
        .envs(app)
        .output()
        .await
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    // The pod ends: the application is gone, then the sidecar is told.
    let id = running.id().unwrap().to_string();
    let told = tokio::process::Command::new("kill")
        .args(["-TERM", &id])
        .status();
    assert!(told.await.unwrap().success());
    let ended = tokio::time::timeout(Duration::from_secs(23), running.wait()).await;
    assert!(ended.expect("within the grace period").unwrap().success());
    let rows = database
        .query(
            "select count(*), count(distinct id), sum(input_tokens), sum(output_tokens), min(namespace), \
             min(pod), min(attribution ->> 'team'), min(outcome) from taffrail.api_usage_logs",
        )
        .await;
    let expected = [
        "25",
        "25",
        "275",
        "175",
        "shop",
        "web-7d4b9c6f5d-x2k4m",
        "search",
        "ok",
    ];
    assert_eq!(rows, [expected.map(str::to_owned).to_vec()]);
}

#[test]
fn an_injector_that_could_not_work_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("sidecar.json");
    std::fs::write(&broken, r#"{"container": {"name": "taffrail"}}"#).unwrap();
    let refused = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter().chain(&[("ROLE", "injector")]);
        let env = pairs.map(|(key, value)| (format!("TAFFRAIL_{key}").into(), (*value).into()));
        let sources = Sources {
            env: env.collect(),
            ..Sources::default()
        };
        config::load(sources).unwrap_err().to_string()
    };
    let file = fixture_sidecar().display().to_string();
    let with = |key, value| refused(&[("INJECTOR__SIDECAR_FILE", file.as_str()), (key, value)]);
    let broken = broken.display().to_string();
    for (problems, words) in [
        (refused(&[]), "there is nothing to inject"),
        (
            refused(&[("INJECTOR__SIDECAR_FILE", &broken)]),
            "missing field `volumes`",
        ),
        (
            with("INJECTOR__TLS_CERT_FILE", "/x"),
            "set without tls_key_file",
        ),
        (with("INJECTOR__CHECK_INTERVAL", "0s"), "more than zero"),
        (
            with("INJECTOR__CERTIFICATE_LIFETIME", "10m"),
            "too short for certificate_overlap",
        ),
        (
            with("INJECTOR__CERTIFICATE_LIFETIME", "100000000y"),
            "10y or less",
        ),
        (
            with("INJECTOR__CERTIFICATE_OVERLAP", "100000000000y"),
            "too short for certificate_overlap",
        ),
    ] {
        assert!(problems.contains(words), "{words} is not in: {problems}");
    }
}
