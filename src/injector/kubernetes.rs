//! The few calls of the Kubernetes API that the injector needs: a Secret, and the configuration of
//! the webhook. A connection for each call: there are a few a minute.
//!
//! The token is read for every call, because Kubernetes replaces it every hour.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// How long a call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer: the largest object that Kubernetes stores is a bit over one MiB.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Somebody else changed the object meanwhile: read it again.
    #[error("the object has been changed meanwhile")]
    Conflict,
    /// Kubernetes refused; the reason is its own.
    #[error("the API server answers {0}: {1}")]
    Refused(StatusCode, String),
    /// There was no answer.
    #[error("cannot reach the API server")]
    Unreachable(#[from] io::Error),
}

/// A connection to come.
trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

/// The API server of a cluster.
#[derive(Clone)]
pub(super) struct Client {
    host: String,
    port: u16,
    /// Without it the calls are plain, as to `kubectl proxy`.
    tls: Option<Arc<ClientConfig>>,
    token_file: PathBuf,
}

impl Client {
    /// The API server at a URL, or that of the cluster around this process.
    ///
    /// # Errors
    /// When there is no cluster around it, or its authority cannot be read.
    pub(super) fn new(url: Option<&str>, service_account: &Path) -> io::Result<Client> {
        let invalid = |problem: &str| io::Error::new(io::ErrorKind::InvalidInput, problem);
        let url = match url {
            Some(url) => url.to_owned(),
            None => {
                let variable = |name| {
                    std::env::var(name).map_err(|_| invalid(
                    "not in a cluster: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are \
                     not set; set injector.kubernetes_url, or injector.tls_cert_file and \
                     injector.tls_key_file",
                ))
                };
                let host: String = variable("KUBERNETES_SERVICE_HOST")?;
                let port: String = variable("KUBERNETES_SERVICE_PORT")?;
                match host.contains(':') {
                    true => format!("https://[{host}]:{port}"),
                    false => format!("https://{host}:{port}"),
                }
            }
        };
        let uri: Uri = url
            .parse()
            .map_err(|_| invalid("injector.kubernetes_url is no URL"))?;
        let host = uri
            .host()
            .ok_or_else(|| invalid("injector.kubernetes_url has no host"))?;
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => {
                return Err(invalid(
                    "injector.kubernetes_url is not https:// or http://",
                ));
            }
        };
        let tls = match is_tls {
            true => Some(tls(&service_account.join("ca.crt"))?),
            false => None,
        };
        Ok(Client {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 }),
            tls,
            token_file: service_account.join("token"),
        })
    }

    /// Reads an object.
    ///
    /// # Errors
    /// As [`Error`].
    pub(super) async fn get(&self, path: &str) -> Result<Value, Error> {
        self.call(Method::GET, path, "application/json", None).await
    }

    /// Replaces an object, unless it was changed since it was read.
    ///
    /// # Errors
    /// As [`Error`].
    pub(super) async fn put(&self, path: &str, object: &Value) -> Result<Value, Error> {
        let body = Some(object.to_string());
        self.call(Method::PUT, path, "application/json", body).await
    }

    /// Changes an object by a JSON Patch, whose tests say what it must be like.
    ///
    /// # Errors
    /// As [`Error`].
    pub(super) async fn patch(&self, path: &str, patch: &Value) -> Result<Value, Error> {
        let body = Some(patch.to_string());
        let kind = "application/json-patch+json";
        match self.call(Method::PATCH, path, kind, body).await {
            // A test that does not hold.
            Err(Error::Refused(StatusCode::UNPROCESSABLE_ENTITY, _)) => Err(Error::Conflict),
            answer => answer,
        }
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: Option<String>,
    ) -> Result<Value, Error> {
        let call = self.exchange(method, path, content_type, body.unwrap_or_default());
        let late = || io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
        let (status, body) = timeout(CALL_TIMEOUT, call).await.map_err(|_| late())??;
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        if status.is_success() {
            return Ok(answer);
        }
        if status == StatusCode::CONFLICT {
            return Err(Error::Conflict);
        }
        let message = answer.get("message").and_then(Value::as_str);
        Err(Error::Refused(
            status,
            message.unwrap_or("no reason given").to_owned(),
        ))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: String,
    ) -> io::Result<(StatusCode, Bytes)> {
        let token = tokio::fs::read_to_string(&self.token_file)
            .await
            .map_err(|error| {
                let file = self.token_file.display();
                io::Error::new(error.kind(), format!("{file}: {error}"))
            })?;
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let socket: Box<dyn Socket> = match &self.tls {
            None => Box::new(tcp),
            Some(tls) => {
                let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
                let connector = TlsConnector::from(tls.clone());
                Box::new(connector.connect(name, tcp).await?)
            }
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket))
            .await
            .map_err(io::Error::other)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, format!("{}:{}", self.host, self.port))
            .header(header::AUTHORIZATION, format!("Bearer {}", token.trim()))
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, content_type)
            .header(
                header::USER_AGENT,
                concat!("taffrail/", env!("CARGO_PKG_VERSION")),
            )
            .header(header::CONNECTION, "close")
            .body(Full::new(Bytes::from(body)))
            .map_err(io::Error::other)?;
        let answer = async {
            let answer = sender
                .send_request(request)
                .await
                .map_err(io::Error::other)?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect();
            let body = body.await.map_err(io::Error::other)?.to_bytes();
            Ok((status, body))
        };
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            ended = connection => {
                ended.map_err(io::Error::other)?;
                answer.await
            }
        }
    }
}

/// Trust in the authority of the cluster, and in no other.
fn tls(authority: &Path) -> io::Result<Arc<ClientConfig>> {
    let named = |problem: String| {
        let problem = format!("{}: {problem}", authority.display());
        io::Error::new(io::ErrorKind::InvalidData, problem)
    };
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(authority);
    for certificate in certificates.map_err(|error| named(error.to_string()))? {
        let certificate = certificate.map_err(|error| named(error.to_string()))?;
        roots
            .add(certificate)
            .map_err(|error| named(error.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
