//! A proxy in this process, around one upstream or several.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use taffrail::caller::Instance;
use taffrail::journal::disk::LocalDisk;
use taffrail::journal::{self, Journal};
use taffrail::ledger::Ledger;
use taffrail::metrics::exposition::Format;
use taffrail::metrics::{self, Metrics};
use taffrail::price::{CurrentBook, PriceBook};
use taffrail::provider::Provider;
use taffrail::proxy::jobs::{self, Jobs};
use taffrail::proxy::{
    AttributionConfig, Config, MeterConfig, Proxy, ProxyParts, Route, Routes, Upstream, tls_config,
};
use taffrail::record::UsageRecord;
use tempfile::TempDir;

/// What a sidecar is made of.
pub(crate) struct Setup {
    pub(crate) routes: Vec<Route>,
    pub(crate) config: Config,
    pub(crate) meter: MeterConfig,
    pub(crate) attribution: AttributionConfig,
    pub(crate) tls: Arc<rustls::ClientConfig>,
}

impl Setup {
    /// One thread and the defaults.
    pub(crate) fn new(routes: Vec<Route>) -> Setup {
        Setup {
            routes,
            config: Config {
                threads: Some(1),
                ..Config::default()
            },
            meter: MeterConfig::default(),
            attribution: AttributionConfig::default(),
            tls: tls_config(None).unwrap(),
        }
    }
}

/// The route `/<name>/…` to the upstream of that URL.
pub(crate) fn route(name: &str, provider: Arc<dyn Provider>, upstream: &str) -> Route {
    let label = match provider.name() == name {
        true => provider.label().into(),
        false => name.into(),
    };
    Route {
        name: name.into(),
        label,
        provider,
        upstream: Upstream::parse(upstream).unwrap(),
        usage_injection: true,
    }
}

/// A running sidecar.
pub(crate) struct Sidecar {
    pub(crate) address: SocketAddr,
    pub(crate) proxy: Proxy,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) jobs: Arc<Jobs>,
    _dir: TempDir,
}

impl Sidecar {
    /// Starts with one route, `/up/…`.
    pub(crate) fn start(upstream: SocketAddr, provider: Arc<dyn Provider>) -> Sidecar {
        let config = Config {
            threads: Some(1),
            ..Config::default()
        };
        Sidecar::start_with(upstream, provider, config, MeterConfig::default())
    }

    pub(crate) fn start_with(
        upstream: SocketAddr,
        provider: Arc<dyn Provider>,
        config: Config,
        meter: MeterConfig,
    ) -> Sidecar {
        let upstream = format!("http://{upstream}");
        Sidecar::start_at(
            &upstream,
            provider,
            config,
            meter,
            tls_config(None).unwrap(),
        )
    }

    /// Starts in front of the upstream of that URL.
    pub(crate) fn start_at(
        upstream: &str,
        provider: Arc<dyn Provider>,
        config: Config,
        meter: MeterConfig,
        tls: Arc<rustls::ClientConfig>,
    ) -> Sidecar {
        let mut setup = Setup::new(vec![route("up", provider, upstream)]);
        setup.config = config;
        setup.meter = meter;
        setup.tls = tls;
        Sidecar::start_setup(setup)
    }

    /// Starts with everything chosen.
    pub(crate) fn start_setup(setup: Setup) -> Sidecar {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let journal = journal::Config {
            dir: dir.path().to_owned(),
            ..journal::Config::default()
        };
        let (journal, _) = Journal::open(&journal, Arc::new(LocalDisk), Arc::new(|_| {})).unwrap();
        let journal = Arc::new(journal);
        let names: Vec<&str> = setup.routes.iter().map(|route| &*route.label).collect();
        let metrics = Arc::new(Metrics::new(
            &metrics::Config::default(),
            &setup.attribution.labels(),
            &names,
        ));
        let ledger = Ledger::new(metrics.clone(), journal.clone());
        let prices = Arc::new(CurrentBook::new(PriceBook::embedded()));
        let jobs = Arc::new(Jobs::new(
            jobs::Config::default(),
            ledger.clone(),
            prices.clone(),
            Instance::default(),
        ));
        let parts = ProxyParts {
            config: setup.config,
            meter: setup.meter,
            attribution: setup.attribution,
            pepper: String::new(),
            routes: Routes::new(setup.routes),
            places: Arc::default(),
            jobs: jobs.clone(),
            ledger,
            prices,
            instance: Instance::default(),
            tls: setup.tls,
            tls_listener: None,
        };
        let proxy = Proxy::start(listener, parts).unwrap();
        Sidecar {
            address: proxy.address(),
            proxy,
            metrics,
            journal,
            jobs,
            _dir: dir,
        }
    }

    /// The records of `count` requests, in the order of their ends; fails if there are not as
    /// many within a few seconds.
    pub(crate) async fn records(&self, count: usize) -> Vec<UsageRecord> {
        let mut records = Vec::new();
        while records.len() < count {
            let waited = tokio::time::timeout(Duration::from_secs(5), self.journal.wait()).await;
            assert!(waited.is_ok(), "{} records of {count}", records.len());
            while let Some(batch) = self.journal.next_batch(1000, usize::MAX).unwrap() {
                records.extend(batch.records);
                self.journal.commit(batch.upto);
            }
        }
        assert_eq!(records.len(), count, "more records than requests");
        records
    }

    /// The value of a sample, by its name and labels as they stand in the text exposition.
    pub(crate) fn sample(&self, series: &str) -> Option<f64> {
        self.exposition()
            .lines()
            .find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
    }

    /// The text exposition.
    pub(crate) fn exposition(&self) -> String {
        let text = self
            .metrics
            .encode(Format::Text, tokio::time::Instant::now());
        String::from_utf8(text).unwrap()
    }
}
