//! The wiring: the only file that knows every module. Builds the parts from the configuration,
//! connects them, and takes them down in the order that loses nothing.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow};
use chrono::{DateTime, Utc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::admin;
use crate::caller::Instance;
use crate::clock;
use crate::config::{Config, Role};
use crate::exporter::balances::{self, Balances, Filter, SyncLine};
use crate::exporter::fetch::Fetcher;
use crate::exporter::housekeeping::keep_house;
use crate::exporter::jobs::record_overdue;
use crate::exporter::parts::Parts;
use crate::exporter::prices::{Refresher, Shelf, is_failure, lay_versions};
use crate::exporter::receipts::Collector;
use crate::exporter::reconcile::Reconciler;
use crate::exporter::schedule::{Schedule, Task};
use crate::exporter::spend::show_spend;
use crate::injector::Injector;
use crate::journal::disk::LocalDisk;
use crate::journal::{Journal, Recovery};
use crate::ledger::Ledger;
use crate::metrics::{JournalFault, JournalReading, Metrics, Reason, Stage, process};
use crate::price::{CurrentBook, PriceBook};
use crate::provider;
use crate::proxy::follow_up;
use crate::proxy::job_urls::Place;
use crate::proxy::jobs::{self, Jobs};
use crate::proxy::{
    self, Authority, Proxy, ProxyParts, Route, Routes, ServerTls, TlsListener, Upstream,
    descriptors, tls_config,
};
use crate::store::Store;
use crate::store::drain::{Drain, Event, Shipped};

/// How long the last shipment may take once the process is told to hurry.
const HURRIED_SHIPPING_TIME: Duration = Duration::from_secs(1);

/// When jobs whose processes are gone are looked for: every minute.
const OVERDUE_JOBS_CRON: &str = "30 * * * * *";

/// When it is looked whether a balance is due, and what others have read: every minute.
const BALANCE_WATCH_CRON: &str = "20 * * * * *";

/// When what was spent is read anew: four times a minute, as often as it is scraped.
const SPEND_CRON: &str = "5/15 * * * * *";

/// A running server.
pub struct App {
    traffic: Option<Traffic>,
    schedule: Option<Schedule>,
    looking_for_prices: Option<AbortOnDropHandle<()>>,
    injector: Option<Injector>,
    admin_address: SocketAddr,
    ready: Arc<AtomicBool>,
    store: Store,
    metrics: Arc<Metrics>,
    serving_admin: CancellationToken,
    admin: JoinHandle<()>,
}

impl App {
    /// Starts everything that the role asks for, within a runtime. When this returns, the
    /// listeners accept.
    ///
    /// # Errors
    /// When a listener, the journal or a configured file cannot be opened. The state of the
    /// store is no reason: records wait in the journal.
    pub fn start(config: &Config) -> anyhow::Result<App> {
        let routes = routes(config)?;
        let vendors: BTreeSet<&str> = routes.iter().map(|route| &*route.label).collect();
        let vendors: Vec<&str> = vendors.into_iter().collect();
        let labels = config.attribution.labels();
        let metrics = Arc::new(Metrics::new(&config.metrics, &labels, &vendors));
        let shelf = Arc::new(price_shelf(config, &metrics)?);
        let prices = shelf.current().clone();
        metrics.on_scrape(Box::new(|metrics| metrics.process(&process::read())));
        // The ports come first: that another process runs is the likeliest trouble, and then its
        // journal is not this one's to touch.
        let proxy_listener = match config.role.relays_traffic() {
            true => Some(bind(config.proxy.listen, "proxy.listen")?),
            false => None,
        };
        let injector_listener = match config.role {
            Role::Injector => Some(bind(config.injector.listen, "injector.listen")?),
            Role::All | Role::Sidecar | Role::Exporter => None,
        };
        let tls_listener = match config.proxy.tls_listen {
            Some(address) if proxy_listener.is_some() => Some(bind(address, "proxy.tls_listen")?),
            _ => None,
        };
        let admin_listener = bind(config.admin.listen, "admin.listen")?;
        let admin_address = admin_listener.local_addr()?;
        if proxy_listener.is_some() {
            provide_descriptors(config.proxy.connections_max);
        }
        let store = Store::lazy(&config.store)?;
        let tls_listener = match tls_listener {
            None => None,
            Some(listener) => {
                let tls = Arc::new(server_tls(&config.proxy)?);
                show_expiry(&tls, &metrics);
                Some(TlsListener { listener, tls })
            }
        };
        let traffic = match proxy_listener {
            None => None,
            Some(listener) => Some(Traffic::start(
                config,
                (listener, tls_listener),
                routes,
                prices.clone(),
                &metrics,
                &store,
            )?),
        };
        let mut syncing = None;
        let schedule = match config.role {
            Role::All | Role::Exporter => {
                let mut tasks = tasks(config, &store, &prices, &metrics);
                let refresher = price_refresher(config, &store, &shelf, &metrics)?;
                tasks.push(price_task(config, refresher));
                if !config.accounts.is_empty() {
                    let own = Arc::new(read_balances(config, &store, &metrics)?);
                    tasks.extend(balance_tasks(config, &own));
                    tasks.push(reconcile_task(config, &store, &metrics)?);
                    tasks.push(receipts_task(config, &store, &metrics)?);
                    syncing = Some(sync_action(own));
                }
                Some(Schedule::start(tasks, &metrics)?)
            }
            Role::Sidecar | Role::Injector => None,
        };
        // An injector is ready with its certificate, everything else once it listens.
        let ready = Arc::new(AtomicBool::new(injector_listener.is_none()));
        let injector = match injector_listener {
            None => None,
            Some(listener) => {
                metrics.injector();
                let namespace = instance().namespace.map(|name| name.to_string());
                let (config, ready) = (&config.injector, &ready);
                let injector = Injector::start(config, listener, namespace, ready, &metrics);
                Some(injector.context("cannot start the injector")?)
            }
        };
        // An injector prices nothing and needs no store.
        let looking_for_prices = injector.is_none().then(|| {
            let attending = shelf.attend(store.clone(), config.prices.poll_interval);
            AbortOnDropHandle::new(tokio::spawn(attending))
        });
        let serving_admin = CancellationToken::new();
        let state = admin::State {
            metrics: metrics.clone(),
            ready: ready.clone(),
            info: info(config, traffic.as_ref(), &store),
            sync: syncing,
            reload: None,
            token_file: config.admin.token_file.clone(),
        };
        admin_listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(admin_listener)?;
        let admin = tokio::spawn(admin::serve(listener, state, serving_admin.clone()));
        Ok(App {
            traffic,
            schedule,
            looking_for_prices,
            injector,
            admin_address,
            ready,
            store,
            metrics,
            serving_admin,
            admin,
        })
    }

    /// The proxy's address, if this role has one.
    pub fn proxy_address(&self) -> Option<SocketAddr> {
        self.traffic.as_ref().map(|traffic| traffic.proxy.address())
    }

    /// The proxy's address for TLS, if it has one.
    pub fn proxy_tls_address(&self) -> Option<SocketAddr> {
        self.traffic
            .as_ref()
            .and_then(|traffic| traffic.proxy.tls_address())
    }

    /// The injector's address, if this role has one.
    pub fn injector_address(&self) -> Option<SocketAddr> {
        self.injector.as_ref().map(Injector::address)
    }

    /// The admin listener's address.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// The metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The store that the rows go to.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Stops in the order that loses nothing: periodic work ends at once, traffic finishes, the
    /// journal is made durable, the drain ships the rest. `hurry` cuts the waiting short: for
    /// traffic, and then for the store; what that does not take waits in the journal.
    ///
    /// # Errors
    /// When the journal cannot be made durable.
    pub async fn stop(self, hurry: impl Future<Output = ()>) -> anyhow::Result<()> {
        let hurried = CancellationToken::new();
        let listen = async {
            hurry.await;
            hurried.cancel();
            std::future::pending().await
        };
        tokio::select! {
            stopped = self.wind_down(&hurried) => stopped,
            stopped = listen => stopped,
        }
    }

    async fn wind_down(self, hurried: &CancellationToken) -> anyhow::Result<()> {
        drop(self.looking_for_prices);
        if let Some(schedule) = self.schedule {
            schedule.stop().await;
        }
        if let Some(injector) = self.injector {
            self.ready.store(false, Ordering::Relaxed);
            injector.stop(hurried.cancelled()).await;
        }
        let stopped = match self.traffic {
            Some(traffic) => traffic.stop(&self.store, hurried, &self.ready).await,
            None => {
                self.store.close().await;
                Ok(())
            }
        };
        self.serving_admin.cancel();
        self.admin.await?;
        stopped
    }
}

/// What relays traffic and brings its records to the store.
struct Traffic {
    proxy: Proxy,
    grace: Duration,
    journal: Arc<Journal>,
    draining: CancellationToken,
    drain: JoinHandle<()>,
    jobs: Arc<Jobs>,
    following_up: JoinHandle<()>,
    exchanging: JoinHandle<()>,
}

impl Traffic {
    fn start(
        config: &Config,
        (listener, tls_listener): (std::net::TcpListener, Option<TlsListener>),
        routes: Routes,
        prices: Arc<CurrentBook>,
        metrics: &Arc<Metrics>,
        store: &Store,
    ) -> anyhow::Result<Traffic> {
        let tls = tls_config(config.proxy.upstream_ca_file.as_deref())
            .context("cannot use proxy.upstream_ca_file")?;
        let on_fsync = {
            let metrics = metrics.clone();
            Arc::new(move |duration| metrics.journal_fsync(duration))
        };
        let places = places(config, &routes, listener.local_addr()?);
        let (journal, recovery) = Journal::open(&config.journal, Arc::new(LocalDisk), on_fsync)?;
        let journal = Arc::new(journal);
        let instance = instance();
        let ledger = Ledger::new(metrics.clone(), journal.clone());
        let jobs = Arc::new(Jobs::new(
            config.jobs.clone(),
            ledger.clone(),
            prices.clone(),
            instance.clone(),
        ));
        let torn_tails = recovery.torn_tails;
        recover(recovery, &ledger, &jobs, &instance);
        let bytes_max = config.journal.max_bytes.as_u64();
        metrics.watch_journal(journal_watch(&journal, bytes_max, torn_tails));

        let draining = CancellationToken::new();
        let drain = Drain::new(
            journal.clone(),
            store.clone(),
            config.store.drain.clone(),
            clock::new_id().as_u64_pair().1,
            store_observer(metrics),
        );
        let drain = tokio::spawn(drain.run(draining.clone()));
        let parts = ProxyParts {
            config: config.proxy.clone(),
            meter: config.meter.clone(),
            attribution: config.attribution.clone(),
            pepper: config.meter.fingerprint_pepper.clone().unwrap_or_default(),
            routes,
            places,
            ledger,
            prices,
            instance,
            jobs: jobs.clone(),
            tls,
            tls_listener,
        };
        let proxy = Proxy::start(listener, parts)?;
        let following_up = tokio::spawn(follow_up::attend(jobs.clone(), proxy.address()));
        let exchanging = tokio::spawn(jobs::attend(jobs.clone(), store.clone()));
        Ok(Traffic {
            proxy,
            grace: config.proxy.shutdown_grace,
            journal,
            draining,
            drain,
            jobs,
            following_up,
            exchanging,
        })
    }

    /// As [`App::stop`]; `ready` becomes false when nothing is served any more.
    async fn stop(
        self,
        store: &Store,
        hurried: &CancellationToken,
        ready: &AtomicBool,
    ) -> anyhow::Result<()> {
        self.proxy.stop(self.grace, hurried.cancelled()).await;
        self.following_up.abort();
        self.exchanging.abort();
        ready.store(false, Ordering::Relaxed);
        let journal = self.journal.clone();
        let synced = tokio::task::spawn_blocking(move || journal.sync()).await?;
        self.draining.cancel();
        let shipped = async {
            // The disk may not outlive the process: other processes shall know of its jobs.
            let told = self.jobs.exchange(store, Duration::ZERO);
            let (told, drained) = tokio::join!(told, self.drain);
            if let Err(error) = told {
                tracing::warn!(%error, "jobs wait in the journal for the next start");
            }
            drained?;
            store.close().await;
            anyhow::Ok(())
        };
        let is_late = async {
            hurried.cancelled().await;
            tokio::time::sleep(HURRIED_SHIPPING_TIME).await;
        };
        tokio::select! {
            shipped = shipped => shipped?,
            () = is_late => tracing::warn!("the store is not waited for"),
        }
        let pending = self.journal.stats().pending_records;
        if pending > 0 {
            tracing::warn!(pending, "records wait in the journal for the next start");
        }
        synced.context("the journal is not durable")
    }
}

/// What the exporter does by the clock.
fn tasks(
    config: &Config,
    store: &Store,
    prices: &Arc<CurrentBook>,
    metrics: &Arc<Metrics>,
) -> Vec<Task> {
    metrics.retention();
    let (of_house, dropped) = (store.clone(), metrics.clone());
    let retention = Arc::new(config.retention.clone());
    let housekeeping = Task {
        name: "housekeeping",
        cron: config.schedule.housekeeping.clone(),
        jitter: config.schedule.jitter,
        timeout: None,
        run: Box::new(move || {
            let (store, metrics) = (of_house.clone(), dropped.clone());
            let retention = retention.clone();
            Box::pin(async move { Ok(keep_house(&store, &retention, &metrics).await?) })
        }),
    };
    let jitter = config.schedule.jitter;
    let (of_spend, shown) = (store.clone(), metrics.clone());
    let spend = Task {
        name: "spend",
        cron: SPEND_CRON.to_owned(),
        jitter: Duration::ZERO,
        timeout: Some(config.schedule.timeout),
        run: Box::new(move || {
            let (store, metrics) = (of_spend.clone(), shown.clone());
            Box::pin(async move { Ok(show_spend(&store, &metrics).await?) })
        }),
    };
    let (store, config) = (store.clone(), Arc::new(config.jobs.clone()));
    let (prices, metrics) = (prices.clone(), metrics.clone());
    let overdue_jobs = Task {
        name: "overdue_jobs",
        cron: OVERDUE_JOBS_CRON.to_owned(),
        jitter,
        timeout: None,
        run: Box::new(move || {
            let (store, config) = (store.clone(), config.clone());
            let (prices, metrics) = (prices.clone(), metrics.clone());
            Box::pin(async move { Ok(record_overdue(&store, &config, &prices, &metrics).await?) })
        }),
    };
    vec![housekeeping, overdue_jobs, spend]
}

/// The price book in force, which follows the store.
///
/// # Errors
/// When the overlay cannot be read or does not hold.
pub fn price_shelf(config: &Config, metrics: &Arc<Metrics>) -> anyhow::Result<Shelf> {
    let path = config.prices.overlay_file.as_deref();
    let overlay = path.map(read_overlay).transpose()?;
    Shelf::new(overlay, metrics)
        .with_context(|| format!("in {}", path.unwrap_or(Path::new("")).display()))
}

/// What reads the providers' own price lists.
///
/// # Errors
/// When the certificates of `proxy.upstream_ca_file` cannot be read.
pub fn price_refresher(
    config: &Config,
    store: &Store,
    shelf: &Arc<Shelf>,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Refresher> {
    Ok(Refresher {
        store: store.clone(),
        shelf: shelf.clone(),
        fetcher: fetcher(config)?,
        accounts: config.accounts.clone(),
        providers: config.providers.clone(),
        metrics: metrics.clone(),
    })
}

fn price_task(config: &Config, refresher: Refresher) -> Task {
    let refresher = Arc::new(refresher);
    Task {
        name: "prices",
        cron: config.schedule.prices.clone(),
        jitter: config.schedule.jitter,
        timeout: Some(config.schedule.timeout),
        run: Box::new(move || {
            let refresher = refresher.clone();
            Box::pin(async move {
                let refreshed = refresher.refresh_used().await?;
                let failed = refreshed.iter().filter(|it| is_failure(it)).count();
                anyhow::ensure!(failed == 0, "{failed} price lists were not taken");
                Ok(())
            })
        }),
    }
}

/// What reads balances.
///
/// # Errors
/// When the certificates of `proxy.upstream_ca_file` cannot be read.
pub fn read_balances(
    config: &Config,
    store: &Store,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Balances> {
    let own = balances::Config {
        cron: config.schedule.balances.clone(),
        rows_kept: config.retention.logs,
    };
    Ok(Balances::new(parts(config, store, metrics, own)?))
}

/// What a task on accounts needs.
fn parts<C>(
    config: &Config,
    store: &Store,
    metrics: &Arc<Metrics>,
    own: C,
) -> anyhow::Result<Parts<C>> {
    Ok(Parts {
        accounts: config.accounts.clone(),
        providers: config.providers.clone(),
        fetcher: fetcher(config)?,
        store: store.clone(),
        metrics: metrics.clone(),
        timeout: config.schedule.timeout,
        holder: holder(),
        pepper: config.meter.fingerprint_pepper.clone().unwrap_or_default(),
        config: own,
    })
}

/// The sender of calls to billing and price APIs.
fn fetcher(config: &Config) -> anyhow::Result<Fetcher> {
    let tls = tls_config(config.proxy.upstream_ca_file.as_deref())
        .context("cannot use proxy.upstream_ca_file")?;
    Fetcher::new(&tls, config.schedule.call_timeout)
}

/// Reading balances by the clock. What is due is read at its moment; a look every minute shows
/// what others have read, and finds what is still due when whoever was at it is gone.
fn balance_tasks(config: &Config, balances: &Arc<Balances>) -> [Task; 2] {
    let task = |name, cron: &str, jitter| {
        let balances = balances.clone();
        Task {
            name,
            cron: cron.to_owned(),
            jitter,
            timeout: Some(config.schedule.timeout),
            run: Box::new(move || {
                let balances = balances.clone();
                Box::pin(async move { balances.run().await })
            }),
        }
    };
    [
        task(
            "balances",
            &config.schedule.balances,
            config.schedule.jitter,
        ),
        task("balance_watch", BALANCE_WATCH_CRON, Duration::from_secs(5)),
    ]
}

/// Holding bills against what was metered by the clock.
fn reconcile_task(config: &Config, store: &Store, metrics: &Arc<Metrics>) -> anyhow::Result<Task> {
    let reconciler = Arc::new(Reconciler::new(parts(
        config,
        store,
        metrics,
        config.reconcile.clone(),
    )?));
    Ok(Task {
        name: "reconcile",
        cron: config.schedule.reconcile.clone(),
        jitter: config.schedule.jitter,
        timeout: Some(config.schedule.timeout),
        run: Box::new(move || {
            let reconciler = reconciler.clone();
            Box::pin(async move { reconciler.run().await })
        }),
    })
}

/// Asking for receipts by the clock.
fn receipts_task(config: &Config, store: &Store, metrics: &Arc<Metrics>) -> anyhow::Result<Task> {
    let collector = Arc::new(Collector::new(parts(
        config,
        store,
        metrics,
        config.receipts.clone(),
    )?));
    Ok(Task {
        name: "receipts",
        cron: config.schedule.receipts.clone(),
        jitter: config.schedule.jitter,
        timeout: Some(config.schedule.timeout),
        run: Box::new(move || {
            let collector = collector.clone();
            Box::pin(async move { collector.run().await })
        }),
    })
}

/// What this process is called in leases.
fn holder() -> String {
    format!("{}/{}", instance().instance, clock::new_id().simple())
}

/// `POST /-/sync`: as `taffrail sync`, with `?provider=` and `?account=`.
fn sync_action(balances: Arc<Balances>) -> admin::Action {
    Arc::new(move |query| {
        let balances = balances.clone();
        Box::pin(async move {
            let filter = filter(query.as_deref().unwrap_or_default());
            let readings = balances.sync(&filter).await;
            let lines: Vec<SyncLine<'_>> = readings.iter().map(SyncLine::of).collect();
            let failed = readings
                .iter()
                .filter(|it| balances::is_failure(it))
                .count();
            admin::ActionResult {
                succeeded: failed == 0,
                body: serde_json::json!({ "accounts": lines, "failed": failed }),
            }
        })
    })
}

/// The accounts that a query means.
fn filter(query: &str) -> Filter {
    let value = |name: &str| {
        let mut pairs = form_urlencoded::parse(query.as_bytes());
        pairs.find_map(|(own, value)| (own == name).then(|| value.into_owned()))
    };
    Filter {
        provider: value("provider"),
        account: value("account"),
    }
}

/// What applications that insist on https are shown.
fn server_tls(config: &proxy::Config) -> anyhow::Result<ServerTls> {
    if let (Some(certificate), Some(key)) = (&config.tls_cert_file, &config.tls_key_file) {
        return ServerTls::from_files(certificate, key)
            .context("cannot use proxy.tls_cert_file and proxy.tls_key_file");
    }
    let authority = authority(config)?;
    tracing::info!(
        names = authority.names().join(", "),
        dir = %authority.dir().display(),
        "a local authority vouches for proxy.tls_listen; `taffrail ca` prints its certificate"
    );
    ServerTls::from_authority(authority, clock::wall()).context("proxy.tls_listen")
}

/// Shows in each scrape when the certificate that is served then expires.
fn show_expiry(tls: &Arc<ServerTls>, metrics: &Metrics) {
    let tls = tls.clone();
    metrics.on_scrape(Box::new(move |metrics| {
        metrics.tls_certificate_expiry(tls.validity(clock::wall()).until);
    }));
}

/// The local certificate authority, which is made if it is missing.
///
/// # Errors
/// When its directory cannot be read or written, or it does not hold.
pub fn authority(config: &proxy::Config) -> anyhow::Result<Authority> {
    let listen = config.tls_listen.map(|address| address.ip());
    let names: Vec<String> = std::env::var("POD_NAME")
        .into_iter()
        .chain(host_name())
        .chain(
            listen
                .filter(|ip| !ip.is_unspecified())
                .map(|ip| ip.to_string()),
        )
        .collect();
    Authority::open(&config.tls_ca_dir, &names, clock::wall()).context("proxy.tls_ca_dir")
}

fn bind(address: SocketAddr, key: &str) -> anyhow::Result<std::net::TcpListener> {
    std::net::TcpListener::bind(address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => anyhow!(
            "cannot listen on {address}: another process does; is Taffrail running already? \
             Otherwise set {key} to a free address"
        ),
        io::ErrorKind::AddrNotAvailable => anyhow!(
            "cannot listen on {address}: this machine has no such address; set {key} to one of \
             its own"
        ),
        _ => anyhow!("cannot listen on {address} ({key}): {error}"),
    })
}

/// Sees to it that as many connections as are accepted can be served; says so if they cannot.
fn provide_descriptors(connections_max: u32) {
    match descriptors::provide(connections_max) {
        Ok(provided) if provided.suffice() => {}
        Ok(provided) => tracing::warn!(
            allowed = provided.allowed,
            needed = provided.needed,
            "the system allows fewer open files than proxy.connections_max can need; raise its \
             limit (ulimit -n) or lower the key"
        ),
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
}

/// The routes: built-in providers that have an upstream, and the declared ones.
fn routes(config: &Config) -> anyhow::Result<Routes> {
    let mut routes = Vec::new();
    let built_in = provider::BUILTIN.iter().copied();
    let declared = config.providers.keys().map(String::as_str);
    for name in built_in.chain(declared.filter(|name| !provider::BUILTIN.contains(name))) {
        let provider = provider::builtin(name).unwrap_or_else(|| provider::chat_dialect(name));
        let settings = config.providers.get(name);
        let configured = settings.and_then(|settings| settings.upstream.as_deref());
        let Some(url) = configured.or(provider.default_upstream()) else {
            continue;
        };
        let upstream =
            Upstream::parse(url).with_context(|| format!("providers.{name}.upstream"))?;
        routes.push(Route {
            name: name.into(),
            label: provider.label().into(),
            provider,
            upstream,
            usage_injection: settings
                .and_then(|settings| settings.usage_injection)
                .unwrap_or(config.meter.usage_injection),
        });
    }
    Ok(Routes::new(routes))
}

/// What the URLs of jobs are replaced by: the hosts of the routes, by the proxy's own address.
fn places(config: &Config, routes: &Routes, listen: SocketAddr) -> Arc<[Place]> {
    if !config.meter.rewrite_job_urls {
        return Arc::default();
    }
    let own = match &config.proxy.public_url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => format!("http://{}", follow_up::reachable(listen)),
    };
    let place = |route: &Route, url: &str| Place {
        origin: url.trim_end_matches('/').to_owned(),
        replacement: format!("{own}/{}", route.name),
    };
    let of_route = |route: &Arc<Route>| {
        let configured = config.providers.get(&*route.name);
        let configured = configured.and_then(|settings| settings.upstream.as_deref());
        [configured, route.provider.default_upstream()]
            .into_iter()
            .flatten()
            .map(|url| place(route, url))
            .collect::<Vec<_>>()
    };
    routes.iter().flat_map(of_route).collect()
}

/// The price book that held from `since` on: the embedded catalogue, the versions that the store
/// has, if there is one, and the configured overlay.
///
/// # Errors
/// When the overlay cannot be read or does not hold, or the store does not answer.
pub async fn price_book(
    config: &Config,
    store: Option<&Store>,
    since: DateTime<Utc>,
) -> anyhow::Result<PriceBook> {
    let mut book = PriceBook::embedded();
    if let Some(store) = store {
        let laid = lay_versions(store, &mut book, 0, since).await;
        laid.map_err(|(_, error)| error)?;
    }
    let Some(path) = config.prices.overlay_file.as_deref() else {
        return Ok(book);
    };
    book.with_overlay(&read_overlay(path)?)
        .with_context(|| format!("in {}", path.display()))
}

fn read_overlay(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path)
        .with_context(|| format!("cannot read prices.overlay_file {}", path.display()))
}

/// Where this process runs, as the downward API and the host tell it.
pub fn instance() -> Instance {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let pod = variable("POD_NAME");
    Instance {
        instance: pod
            .clone()
            .or_else(host_name)
            .unwrap_or_else(|| "unknown".to_owned())
            .into(),
        namespace: variable("POD_NAMESPACE").map(Into::into),
        pod: pod.map(Into::into),
    }
}

fn host_name() -> Option<String> {
    let variable = std::env::var("HOSTNAME").ok();
    variable.filter(|name| !name.is_empty()).or_else(|| {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
        Some(name.trim().to_owned())
    })
}

/// Takes over what the last process left in the journal: its records are pending, its jobs go on,
/// and its requests under way become records of their own.
fn recover(recovery: Recovery, ledger: &Ledger, jobs: &Jobs, instance: &Instance) {
    let metrics = ledger.metrics();
    metrics.records(Stage::Journaled, Reason::Recovered, recovery.records);
    let (open_jobs, interrupted): (Vec<_>, Vec<_>) = recovery
        .orphans
        .into_iter()
        .partition(|orphan| orphan.job.is_some());
    let (open_jobs_count, interrupted_count) = (open_jobs.len(), interrupted.len());
    for job in open_jobs {
        jobs.restore(job);
    }
    for intent in interrupted {
        ledger.complete(&intent.interrupted(instance.clone()));
    }
    if recovery.records > 0 || interrupted_count > 0 || open_jobs_count > 0 {
        tracing::info!(
            records = recovery.records,
            interrupted = interrupted_count,
            open_jobs = open_jobs_count,
            "took over what the last process left in the journal"
        );
    }
    let damage = recovery.quarantined_frames + recovery.unreadable_segments;
    if damage > 0 || recovery.foreign_segments > 0 {
        tracing::error!(
            quarantined_frames = recovery.quarantined_frames,
            unreadable_segments = recovery.unreadable_segments,
            foreign_segments = recovery.foreign_segments,
            "the journal is damaged; what could not be read is kept aside in its directory"
        );
    }
}

/// What a scrape shows of the journal.
fn journal_watch(
    journal: &Arc<Journal>,
    bytes_max: u64,
    torn_tails: u64,
) -> crate::metrics::JournalWatch {
    let journal = journal.clone();
    Box::new(move |look| {
        let stats = journal.stats_with(look);
        let age = stats.oldest_record_at.map(|oldest| {
            clock::wall()
                .signed_duration_since(oldest)
                .to_std()
                .unwrap_or_default()
        });
        JournalReading {
            pending_records: stats.pending_records,
            unreadable_records: stats.unreadable_records_total,
            faults: vec![
                (JournalFault::TornTail, torn_tails),
                (JournalFault::BadFrame, stats.quarantined_frames_total),
                (JournalFault::Write, stats.write_errors_total),
                (JournalFault::Sync, stats.fsync_errors_total),
            ],
            bytes: stats.disk_bytes,
            bytes_max,
            oldest_record_age: age,
        }
    })
}

fn store_observer(metrics: &Arc<Metrics>) -> crate::store::drain::Observer {
    let metrics = metrics.clone();
    Arc::new(move |event| match event {
        Event::Up(is_up) => metrics.store_up(is_up),
        Event::Retry => metrics.store_retry(),
        Event::Shipped(Shipped {
            stored,
            duplicates,
            dead_lettered,
            lost,
            duration,
        }) => {
            metrics.records(Stage::Stored, Reason::None, stored);
            metrics.records(Stage::Duplicate, Reason::None, duplicates);
            metrics.records(Stage::DeadLettered, Reason::Rejected, dead_lettered);
            metrics.records(Stage::DeadLettered, Reason::Unwritable, lost);
            metrics.store_batch(duration);
        }
    })
}

/// The lines of the landing page.
fn info(config: &Config, traffic: Option<&Traffic>, store: &Store) -> admin::Info {
    let role = config.role.as_str();
    let store = store.description();
    let traffic = traffic.map(|traffic| (traffic.proxy.address(), traffic.journal.clone()));
    Arc::new(move || {
        let mut lines = vec![
            ("role".to_owned(), role.to_owned()),
            ("store".to_owned(), store.clone()),
        ];
        if let Some((proxy, journal)) = &traffic {
            lines.push(("proxy".to_owned(), format!("http://{proxy}/<provider>/…")));
            let stats = journal.stats();
            lines.push((
                "journal".to_owned(),
                format!(
                    "{} records pending, {} bytes",
                    stats.pending_records, stats.disk_bytes
                ),
            ));
        }
        lines
    })
}
