//! Keeps the injector's certificate: in its Secret, in the webhook's configuration and in what is
//! served.
//!
//! Every process of the injector does the same, and none leads: who finds something to do writes
//! it on the condition that the Secret is as it was read, and who comes second reads again.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::ServerConfig;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::certificate::{Held, Terms, expiry, step};
use super::kubernetes::{Client, Error};
use super::{Config, namespace};
use crate::clock;
use crate::metrics::{Metrics, RunResult};

/// The longest pause after a look that failed.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How often one look reads a Secret anew that others change.
const CONFLICTS_MAX: usize = 5;

/// What is served; nothing before the first certificate is there.
pub(super) type Served = watch::Receiver<Option<Arc<ServerConfig>>>;

/// Keeps a certificate.
pub(super) struct Keeper {
    source: Source,
    interval: Duration,
    ready: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
}

enum Source {
    /// Somebody else does; its expiry is shown.
    File(PathBuf),
    Secret(Box<Secret>),
}

struct Secret {
    client: Client,
    secret_path: String,
    webhook_path: String,
    terms: Terms,
    /// The certificate that is served, as PEM.
    certificate: String,
    serve: watch::Sender<Option<Arc<ServerConfig>>>,
}

impl Keeper {
    /// For a certificate that something else keeps in a file.
    pub(super) fn of_file(
        config: &Config,
        certificate: &Path,
        ready: &Arc<AtomicBool>,
        metrics: &Arc<Metrics>,
    ) -> Keeper {
        Keeper {
            source: Source::File(certificate.to_owned()),
            interval: config.check_interval,
            ready: ready.clone(),
            metrics: metrics.clone(),
        }
    }

    /// For a certificate that this process makes and keeps in a Secret.
    pub(super) fn of_secret(
        config: &Config,
        ready: &Arc<AtomicBool>,
        metrics: &Arc<Metrics>,
    ) -> io::Result<(Keeper, Served)> {
        let client = Client::new(
            config.kubernetes_url.as_deref(),
            &config.service_account_dir,
        )?;
        let namespace = namespace(&config.service_account_dir).ok_or_else(|| {
            let dir = config.service_account_dir.display();
            let problem = format!("{dir}: no service account, so the namespace is unknown");
            io::Error::new(io::ErrorKind::NotFound, problem)
        })?;
        let (serve, served) = watch::channel(None);
        let secret = Secret {
            client,
            secret_path: format!("/api/v1/namespaces/{namespace}/secrets/{}", config.secret),
            webhook_path: format!(
                "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{}",
                config.webhook
            ),
            terms: Terms {
                name: format!("{}.{namespace}.svc", config.service),
                lifetime: config.certificate_lifetime,
                overlap: config.certificate_overlap,
            },
            certificate: String::new(),
            serve,
        };
        let keeper = Keeper {
            source: Source::Secret(Box::new(secret)),
            interval: config.check_interval,
            ready: ready.clone(),
            metrics: metrics.clone(),
        };
        Ok((keeper, served))
    }

    /// Keeps it until dropped.
    pub(super) async fn attend(mut self) {
        loop {
            let pause = match self.look().await {
                Ok(()) => {
                    self.metrics.injector_certificate_check(RunResult::Ok);
                    self.ready.store(true, Ordering::Release);
                    self.interval
                }
                Err(error) => {
                    self.metrics.injector_certificate_check(RunResult::Error);
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "cannot look after the injector's certificate; what is served is served on"
                    );
                    self.interval.min(RETRY_MAX)
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn look(&mut self) -> anyhow::Result<()> {
        let expiry = match &mut self.source {
            Source::File(path) => expiry(&tokio::fs::read(path).await?)?,
            Source::Secret(secret) => {
                let held = secret.look().await?;
                held.expiry()?
            }
        };
        self.metrics.injector_certificate_expiry(expiry);
        Ok(())
    }
}

impl Secret {
    /// Brings Secret, webhook and listener up to date.
    async fn look(&mut self) -> anyhow::Result<Held> {
        for _ in 0..CONFLICTS_MAX {
            let mut object = self.client.get(&self.secret_path).await?;
            let held = Held::from_data(&data(&object));
            // Published first: a certificate is served only once its authority is trusted.
            let was_published = match &held {
                Some(held) => match self.publish(held).await {
                    Err(Error::Conflict) => continue,
                    published => published?,
                },
                None => false,
            };
            let now = clock::wall();
            let held = match step(held.as_ref(), was_published, &self.terms, now)? {
                Some(changed) => {
                    if let Some(members) = object.as_object_mut() {
                        members.insert("data".to_owned(), encoded(&changed));
                    }
                    match self.client.put(&self.secret_path, &object).await {
                        Err(Error::Conflict) => continue,
                        written => written?,
                    };
                    tracing::info!("the injector's certificate moves on; its Secret is written");
                    match self.publish(&changed).await {
                        Err(Error::Conflict) => continue,
                        published => published?,
                    };
                    changed
                }
                // Made of nothing, if there was nothing.
                None => match held {
                    Some(held) => held,
                    None => continue,
                },
            };
            if held.certificate() != self.certificate {
                let config = held.server(&self.terms.name, now)?;
                self.serve.send_replace(Some(config));
                held.certificate().clone_into(&mut self.certificate);
                tracing::info!(expiry = %held.expiry()?, "the injector serves a new certificate");
            }
            return Ok(held);
        }
        anyhow::bail!("others change the Secret or the webhook's configuration all the time")
    }

    /// Tells the webhook's configuration whom to trust; whether it was told already.
    async fn publish(&self, held: &Held) -> Result<bool, Error> {
        let bundle = Value::String(STANDARD.encode(held.bundle()));
        let configuration = self.client.get(&self.webhook_path).await?;
        let webhooks = configuration.get("webhooks").and_then(Value::as_array);
        let webhooks = webhooks.map(Vec::as_slice).unwrap_or_default();
        let pointer = "/clientConfig/caBundle";
        let is_told = |webhook: &Value| webhook.pointer(pointer) == Some(&bundle);
        let untold = (0..).zip(webhooks).filter(|(_, webhook)| !is_told(webhook));
        let untold: Vec<usize> = untold.map(|(index, _)| index).collect();
        if untold.is_empty() {
            return Ok(true);
        }
        let version = configuration.pointer("/metadata/resourceVersion");
        let mut patch =
            vec![json!({"op": "test", "path": "/metadata/resourceVersion", "value": version})];
        patch.extend(untold.into_iter().map(|index| {
            let path = format!("/webhooks/{index}{pointer}");
            json!({"op": "add", "path": path, "value": bundle})
        }));
        self.client
            .patch(&self.webhook_path, &Value::Array(patch))
            .await?;
        tracing::info!("the webhook's configuration is told whom to trust");
        Ok(false)
    }
}

/// The data of a Secret, decoded.
fn data(object: &Value) -> BTreeMap<String, Vec<u8>> {
    let data = object.get("data").and_then(Value::as_object);
    let data = data.into_iter().flatten();
    data.filter_map(|(key, value)| Some((key.clone(), STANDARD.decode(value.as_str()?).ok()?)))
        .collect()
}

fn encoded(held: &Held) -> Value {
    let data = held.to_data().into_iter();
    let data = data.map(|(key, text)| (key.to_owned(), Value::String(STANDARD.encode(text))));
    Value::Object(data.collect::<Map<String, Value>>())
}
