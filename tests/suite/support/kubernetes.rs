//! A look-alike of the Kubernetes API: a Secret and a webhook's configuration, with versions that
//! conflict, behind TLS and a token.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use taffrail::proxy::server_config;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::certificate::issue;

const TOKEN: &str = "service-account-token";
pub(crate) const SECRET: &str = "/api/v1/namespaces/taffrail/secrets/taffrail-injector-tls";
pub(crate) const WEBHOOK: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/taffrail-injector";

/// The API server of a cluster.
pub(crate) struct Cluster {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    objects: BTreeMap<String, Value>,
    version: u64,
    /// Whether calls are answered with 500.
    is_broken: bool,
    /// How often an object was replaced or patched.
    writes: usize,
    conflicts: usize,
}

impl Cluster {
    /// Starts one with an empty Secret and a configuration of two webhooks, and fills the directory
    /// of a service account.
    pub(crate) async fn start(service_account: &Path) -> Cluster {
        let issued = issue("localhost");
        std::fs::write(service_account.join("ca.crt"), &issued.authority).unwrap();
        std::fs::write(service_account.join("token"), format!("{TOKEN}\n")).unwrap();
        std::fs::write(service_account.join("namespace"), "taffrail").unwrap();
        let chain =
            vec![CertificateDer::from_pem_slice(issued.certificate.pem().as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(issued.key.serialize_pem().as_bytes()).unwrap();
        let acceptor = TlsAcceptor::from(server_config(chain, key).unwrap());
        let webhook =
            |name: &str| json!({"name": name, "clientConfig": {"service": {"name": "x"}}});
        let objects = BTreeMap::from([
            (
                SECRET.to_owned(),
                json!({"kind": "Secret", "metadata": {"resourceVersion": "1"}, "type": "Opaque"}),
            ),
            (
                WEBHOOK.to_owned(),
                json!({
                    "kind": "MutatingWebhookConfiguration",
                    "metadata": {"resourceVersion": "1"},
                    "webhooks": [webhook("pod.taffrail.dev"), webhook("namespace.taffrail.dev")],
                }),
            ),
        ]);
        let state = Arc::new(Mutex::new(State {
            objects,
            version: 1,
            is_broken: false,
            writes: 0,
            conflicts: 0,
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = state.clone();
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (acceptor, state) = (acceptor.clone(), served.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(socket).await else {
                        return;
                    };
                    let service = service_fn(move |request| answer(request, state.clone()));
                    let http = hyper::server::conn::http1::Builder::new();
                    drop(http.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Cluster { address, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// Whom the webhooks' configuration says to trust, as PEM: the same for all.
    pub(crate) fn ca_bundle(&self) -> Option<String> {
        let state = self.state.lock().unwrap();
        let webhooks = state.objects[WEBHOOK]["webhooks"].as_array().unwrap();
        let bundles: Vec<&Value> = webhooks
            .iter()
            .map(|it| &it["clientConfig"]["caBundle"])
            .collect();
        assert!(bundles.iter().all(|it| *it == bundles[0]));
        let decoded = STANDARD.decode(bundles[0].as_str()?).unwrap();
        Some(String::from_utf8(decoded).unwrap())
    }

    /// An entry of the Secret.
    pub(crate) fn secret(&self, key: &str) -> Option<String> {
        let state = self.state.lock().unwrap();
        let decoded = STANDARD
            .decode(state.objects[SECRET]["data"][key].as_str()?)
            .unwrap();
        Some(String::from_utf8(decoded).unwrap())
    }

    /// From now on calls fail, or do not.
    pub(crate) fn set_broken(&self, is_broken: bool) {
        self.state.lock().unwrap().is_broken = is_broken;
    }

    pub(crate) fn conflicts(&self) -> usize {
        self.state.lock().unwrap().conflicts
    }

    pub(crate) fn writes(&self) -> usize {
        self.state.lock().unwrap().writes
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let (status, answer) = state.lock().unwrap().answer(&head, &body);
    let mut response = Response::new(Full::new(Bytes::from(answer.to_string())));
    *response.status_mut() = status;
    Ok(response)
}

impl State {
    fn answer(&mut self, head: &http::request::Parts, body: &[u8]) -> (StatusCode, Value) {
        let status =
            |code: StatusCode, message: &str| (code, json!({"kind": "Status", "message": message}));
        if self.is_broken {
            return status(
                StatusCode::INTERNAL_SERVER_ERROR,
                "etcdserver: request timed out",
            );
        }
        let token = head
            .headers
            .get("authorization")
            .and_then(|it| it.to_str().ok());
        if token != Some(&format!("Bearer {TOKEN}")) {
            return status(StatusCode::UNAUTHORIZED, "Unauthorized");
        }
        let path = head.uri.path().to_owned();
        let Some(object) = self.objects.get(&path).cloned() else {
            return status(StatusCode::FORBIDDEN, "forbidden: not among its rights");
        };
        let changed = match (head.method.clone(), path.as_str()) {
            (Method::GET, _) => return (StatusCode::OK, object),
            (Method::PUT, SECRET) => {
                let changed: Value = serde_json::from_slice(body).unwrap();
                if changed["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
                    self.conflicts += 1;
                    return status(StatusCode::CONFLICT, "the object has been modified");
                }
                changed
            }
            (Method::PATCH, WEBHOOK) => {
                assert_eq!(head.headers["content-type"], "application/json-patch+json");
                let patch: json_patch::Patch = serde_json::from_slice(body).unwrap();
                let mut changed = object;
                if json_patch::patch(&mut changed, &patch).is_err() {
                    self.conflicts += 1;
                    return status(
                        StatusCode::UNPROCESSABLE_ENTITY,
                        "the test of a patch failed",
                    );
                }
                changed
            }
            _ => return status(StatusCode::FORBIDDEN, "forbidden: not among its rights"),
        };
        self.version += 1;
        self.writes += 1;
        let mut changed = changed;
        changed["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(path, changed.clone());
        (StatusCode::OK, changed)
    }
}
