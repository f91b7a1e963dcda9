//! The injector: puts the sidecar into pods of Kubernetes when they are created, so that an
//! application is metered without a change to it or to its manifests.
//!
//! In: admission reviews of pods, over https. Out: reviews that allow the pod, with the patch that
//! adds the sidecar. A pod is never refused and never broken: what does not hold is left out, and
//! the review says so in a warning.
//!
//! `review` is a body in and a body out, `patch` a pod in and a JSON Patch out, `annotations` what
//! a pod asks for, `sidecar` what is injected: all of them pure. `server` listens; `certificate`
//! makes certificates, `keeper` keeps them in a Secret and their authority in the webhook's
//! configuration, by the few calls of `kubernetes`.

mod annotations;
mod certificate;
mod keeper;
mod kubernetes;
mod patch;
mod quantity;
pub mod review;
mod server;
mod sidecar;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::proxy::ServerTls;
use keeper::Keeper;
use server::{Identity, Server};

pub use annotations::PREFIX;
pub use server::{BODY_BYTES_MAX, CONNECTIONS_MAX, PATH};
pub use sidecar::Sidecar;

/// How long the listener goes on after a shutdown began: the API server learns by then that this
/// process is to be called no more.
const LEAVE_TIME: Duration = Duration::from_secs(5);

/// The injector of the sidecar in Kubernetes.
#[derive(
    Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The address at which Kubernetes asks what to put into a pod, by https.
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// What is put into pods: a JSON file with the container, its volumes and the variables that
    /// lead SDKs to it, as the chart makes it. The role `injector` needs it.
    pub sidecar_file: Option<PathBuf>,
    /// The certificate for `listen` (PEM), where something else takes care of it, as cert-manager
    /// does. It is read again when the file changes. Unset, the injector makes its own, keeps it
    /// in `secret`, renews it, and tells `webhook` whom to trust.
    pub tls_cert_file: Option<PathBuf>,
    /// The private key of the certificate in `tls_cert_file` (PEM).
    pub tls_key_file: Option<PathBuf>,
    /// The Service that Kubernetes reaches the injector by: the name in the certificate.
    pub service: String,
    /// The Secret of the certificate that the injector makes, in its own namespace. It must be
    /// there, and may be empty.
    pub secret: String,
    /// The MutatingWebhookConfiguration that is told whom to trust.
    pub webhook: String,
    /// How long a certificate that the injector makes holds. It is renewed when a third of that is
    /// left.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub certificate_lifetime: Duration,
    /// How long a new certificate is trusted before it is served: every API server knows it then.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub certificate_overlap: Duration,
    /// How often the certificate, its Secret and the webhook's configuration are looked at.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub check_interval: Duration,
    /// The API server. Unset, it is the one of the cluster that the process runs in.
    pub kubernetes_url: Option<String>,
    /// The directory with the `token`, `namespace` and `ca.crt` of the service account.
    pub service_account_dir: PathBuf,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: SocketAddr::from(([0, 0, 0, 0], 10_443)),
            sidecar_file: None,
            tls_cert_file: None,
            tls_key_file: None,
            service: "taffrail-injector".to_owned(),
            secret: "taffrail-injector-tls".to_owned(),
            webhook: "taffrail-injector".to_owned(),
            certificate_lifetime: Duration::from_hours(90 * 24),
            certificate_overlap: Duration::from_mins(5),
            check_interval: Duration::from_secs(15),
            kubernetes_url: None,
            service_account_dir: PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount"),
        }
    }
}

/// A running injector.
pub struct Injector {
    address: SocketAddr,
    stopping: CancellationToken,
    serving: JoinHandle<()>,
    keeping: JoinHandle<()>,
}

impl Injector {
    /// Starts serving reviews on a listener. `ready` becomes true when there is a certificate to
    /// serve them with. `own_namespace` is where the injector runs, whose pods it leaves alone.
    ///
    /// # Errors
    /// When `sidecar_file` or a certificate's file does not hold, or the process has no service
    /// account where it needs one.
    pub fn start(
        config: &Config,
        listener: std::net::TcpListener,
        own_namespace: Option<String>,
        ready: &Arc<AtomicBool>,
        metrics: &Arc<Metrics>,
    ) -> io::Result<Injector> {
        let sidecar = match &config.sidecar_file {
            Some(path) => Sidecar::read(path)?,
            None => return Err(io::Error::other("injector.sidecar_file is not set")),
        };
        let (identity, keeper) = match (&config.tls_cert_file, &config.tls_key_file) {
            (Some(certificate), Some(key)) => {
                let tls = ServerTls::from_files(certificate, key)?;
                let keeper = Keeper::of_file(config, certificate, ready, metrics);
                (Identity::Files(Box::new(tls)), keeper)
            }
            _ => {
                let (keeper, served) = Keeper::of_secret(config, ready, metrics)?;
                (Identity::Kept(served), keeper)
            }
        };
        let own_namespace = own_namespace.or_else(|| namespace(&config.service_account_dir));
        let server = Arc::new(Server {
            sidecar,
            own_namespace: own_namespace.unwrap_or_default(),
            identity,
            metrics: metrics.clone(),
        });
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let stopping = CancellationToken::new();
        let serving = tokio::spawn(server.serve(listener, stopping.clone()));
        let keeping = tokio::spawn(keeper.attend());
        Ok(Injector {
            address,
            stopping,
            serving,
            keeping,
        })
    }

    /// The listener's address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers on for a while, since the API server does not know yet that it is to call another,
    /// then finishes what is under way. `hurry` cuts the while short.
    pub async fn stop(self, hurry: impl Future<Output = ()>) {
        tokio::select! {
            () = tokio::time::sleep(LEAVE_TIME) => {}
            () = hurry => {}
        }
        self.stopping.cancel();
        if let Err(error) = self.serving.await {
            tracing::error!(%error, "the injector's listener broke off");
        }
        self.keeping.abort();
    }
}

/// The namespace of the service account.
fn namespace(dir: &Path) -> Option<String> {
    let text = std::fs::read_to_string(dir.join("namespace")).ok()?;
    Some(text.trim().to_owned())
}
