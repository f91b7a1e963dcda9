//! How many admission reviews the injector answers: the pure answer alone, and over TLS on
//! connections that are kept, as an API server keeps them. Client and server share the process; run
//! it on one core by `taskset --cpu-list 0 cargo bench --locked --bench injector`.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and fails by panicking"
)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use taffrail::clock;
use taffrail::injector::{Config, Injector, PATH, Sidecar, review};
use taffrail::metrics::{self, Metrics};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const REVIEWS: u32 = 20_000;
const CONNECTIONS: u32 = 4;

fn main() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kubernetes");
    let body = Bytes::from(std::fs::read(fixtures.join("deployment.json")).unwrap());
    let sidecar_file = fixtures.join("sidecar.json");
    let sidecar = Sidecar::read(&sidecar_file).unwrap();
    let started = clock::instant();
    for _ in 0..REVIEWS {
        let answer = review::answer(&body, &sidecar, "taffrail").unwrap();
        std::hint::black_box(answer.body.to_string());
    }
    report("answers alone", started.elapsed());

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(over_tls(sidecar_file, body));
}

async fn over_tls(sidecar_file: std::path::PathBuf, body: Bytes) {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let config = Config {
        sidecar_file: Some(sidecar_file),
        tls_cert_file: Some(certificate),
        tls_key_file: Some(key),
        ..Config::default()
    };
    let metrics = Arc::new(Metrics::new(&metrics::Config::default(), &[], &[]));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let ready = Arc::new(AtomicBool::new(false));
    let injector = Injector::start(&config, listener, None, &ready, &metrics).unwrap();
    let address = injector.address();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(made.cert)).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(client));
    let started = clock::instant();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (connector, body) = (connector.clone(), body.clone());
        clients.spawn(async move {
            let tcp = TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            let stream = connector.connect(name, tcp).await.unwrap();
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream))
                    .await
                    .unwrap();
            let driving = async { connection.await.unwrap() };
            let asking = async {
                for _ in 0..REVIEWS / CONNECTIONS {
                    let request = Request::post(PATH)
                        .header("host", "localhost")
                        .body(Full::new(body.clone()))
                        .unwrap();
                    let response = sender.send_request(request).await.unwrap();
                    assert_eq!(response.status(), 200);
                    response.into_body().collect().await.unwrap();
                }
                drop(sender);
            };
            tokio::join!(driving, asking);
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    report("over TLS, client included", started.elapsed());
    injector.stop(std::future::ready(())).await;
}

fn report(what: &str, elapsed: Duration) {
    let each = elapsed / REVIEWS;
    let rate = f64::from(REVIEWS) / elapsed.as_secs_f64();
    println!("{what}: {rate:.0} reviews a second, {each:?} each");
}
