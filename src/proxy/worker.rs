//! The threads that serve traffic, and how they start and stop.
//!
//! Each thread has a runtime of its own and everything that a request needs, so that a request
//! never changes threads and takes no lock but the journal's.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::LocalSet;
use tokio_rustls::{TlsAcceptor, TlsStream};

use crate::caller::Instance;
use crate::clock;
use crate::ledger::Ledger;
use crate::metrics::{Connection, HandshakeFault, Listener, ProxyError};
use crate::price::CurrentBook;
use crate::proxy::certificate::ServerTls;
use crate::proxy::identity::Identity;
use crate::proxy::job_urls::Place;
use crate::proxy::jobs::Jobs;
use crate::proxy::refusal::Refusal;
use crate::proxy::relay::DrainLimits;
use crate::proxy::route::Routes;
use crate::proxy::service::Service;
use crate::proxy::settle::Books;
use crate::proxy::stream::{ClientLimits, ClientStream, Phase, Stream};
use crate::proxy::upstream::{Limits, Upstreams};
use crate::proxy::{AttributionConfig, Config, MeterConfig, OnClientDisconnect};
use crate::wire::http1::FIELDS_MAX;

/// The smallest buffer that hyper accepts.
const MIN_BUFFER_BYTES: usize = 8192;

/// How often idle upstream connections are looked over.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How long accepting pauses after it failed, as it does when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long traffic must rest before a stopping proxy closes its listener.
const QUIET_TIME: Duration = Duration::from_millis(200);

/// How long the last responses may take to leave once nothing is under way any more.
const FLUSH_TIME: Duration = Duration::from_secs(5);

/// How long, and for how many bytes, a client is listened to that is not served.
const LINGER_TIME: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 64 << 10;

/// How often a stopping proxy looks at what is under way.
const WATCH_STEP: Duration = Duration::from_millis(10);

/// The most threads that an unset `threads` makes.
const AUTO_THREADS_MAX: usize = 4;

/// What the proxy is made of.
pub struct ProxyParts {
    /// Listener and limits.
    pub config: Config,
    /// What is done for metering.
    pub meter: MeterConfig,
    /// Whom requests are attributed to.
    pub attribution: AttributionConfig,
    /// Keys the fingerprints.
    pub pepper: String,
    /// Where requests go.
    pub routes: Routes,
    /// What the URLs of jobs are replaced by; none if they stay as they are.
    pub places: Arc<[Place]>,
    /// Where finished requests are entered.
    pub ledger: Ledger,
    /// What they cost.
    pub prices: Arc<CurrentBook>,
    /// Where this process runs.
    pub instance: Instance,
    /// The jobs that are not settled.
    pub jobs: Arc<Jobs>,
    /// TLS towards providers.
    pub tls: Arc<rustls::ClientConfig>,
    /// For applications that insist on https.
    pub tls_listener: Option<TlsListener>,
}

/// A listener that speaks TLS.
pub struct TlsListener {
    /// Bound.
    pub listener: std::net::TcpListener,
    /// What applications are shown.
    pub tls: Arc<ServerTls>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serving,
    /// No new connections; open ones end after their response.
    Closing,
    /// Everything ends now.
    Aborting,
}

/// What the threads share.
struct Shared {
    config: Config,
    meter: MeterConfig,
    attribution: AttributionConfig,
    pepper: String,
    routes: Arc<Routes>,
    places: Arc<[Place]>,
    ledger: Ledger,
    prices: Arc<CurrentBook>,
    instance: Instance,
    jobs: Arc<Jobs>,
    tls: Arc<rustls::ClientConfig>,
    server_tls: Option<Arc<ServerTls>>,
    is_aborting: Arc<AtomicBool>,
    under_way: Arc<AtomicUsize>,
    connections: AtomicU32,
}

/// A running proxy.
pub struct Proxy {
    address: SocketAddr,
    tls_address: Option<SocketAddr>,
    stage: watch::Sender<Stage>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Proxy {
    /// Starts serving on a bound listener.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be made.
    pub fn start(listener: std::net::TcpListener, parts: ProxyParts) -> io::Result<Proxy> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let (tls_listener, server_tls) = match parts.tls_listener {
            None => (None, None),
            Some(TlsListener { listener, tls }) => (Some(listener), Some(tls)),
        };
        let mut tls_address = None;
        if let Some(listener) = &tls_listener {
            tls_address = Some(listener.local_addr()?);
            listener.set_nonblocking(true)?;
        }
        let count = match parts.config.threads {
            None => std::thread::available_parallelism()?
                .get()
                .min(AUTO_THREADS_MAX),
            Some(count) => usize::from(count).max(1),
        };
        let (stage, _) = watch::channel(Stage::Serving);
        let shared = Arc::new(Shared {
            config: parts.config,
            meter: parts.meter,
            attribution: parts.attribution,
            pepper: parts.pepper,
            routes: Arc::new(parts.routes),
            places: parts.places,
            ledger: parts.ledger,
            prices: parts.prices,
            instance: parts.instance,
            jobs: parts.jobs,
            tls: parts.tls,
            server_tls,
            is_aborting: Arc::new(AtomicBool::new(false)),
            under_way: Arc::new(AtomicUsize::new(0)),
            connections: AtomicU32::new(0),
        });
        let mut threads = Vec::with_capacity(count);
        for index in 0..count {
            let listener = listener.try_clone()?;
            let tls_listener = match &tls_listener {
                None => None,
                Some(listener) => Some(listener.try_clone()?),
            };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let (shared, stage) = (shared.clone(), stage.subscribe());
            let thread = std::thread::Builder::new()
                .name(format!("proxy-{index}"))
                .spawn(move || {
                    let local = LocalSet::new();
                    let serving = serve(listener, tls_listener, shared, stage);
                    let served = local.block_on(&runtime, serving);
                    drop(local);
                    // The look-up of a name may hang for minutes, and nobody waits for it now.
                    runtime.shutdown_background();
                    if let Err(error) = served {
                        tracing::error!(%error, "a proxy thread ended");
                    }
                })?;
            threads.push(thread);
        }
        Ok(Proxy {
            address,
            tls_address,
            stage,
            shared,
            threads,
        })
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address that it listens on for TLS.
    pub fn tls_address(&self) -> Option<SocketAddr> {
        self.tls_address
    }

    /// Requests under way.
    pub fn under_way(&self) -> usize {
        self.shared.under_way.load(Ordering::Relaxed)
    }

    /// Stops: goes on serving, new connections included, until traffic rests; then closes. When
    /// `grace` is over or `hurry` resolves, what is still under way is cut off and recorded as
    /// interrupted.
    pub async fn stop(self, grace: Duration, hurry: impl Future<Output = ()>) {
        let finishing = async {
            self.rest(QUIET_TIME).await;
            self.stage.send_replace(Stage::Closing);
            // A request whose head was on its way by then is served like any other.
            tokio::select! {
                () = self.closed() => {}
                () = self.rest(FLUSH_TIME) => {}
            }
        };
        tokio::select! {
            () = finishing => {}
            () = tokio::time::sleep(grace) => {
                tracing::warn!(under_way = self.under_way(), "the grace period is over");
            }
            () = hurry => {}
        }
        self.shared.is_aborting.store(true, Ordering::Relaxed);
        self.stage.send_replace(Stage::Aborting);
        for thread in self.threads {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("a proxy thread panicked");
            }
        }
    }

    /// Resolves when nothing was under way for that time.
    async fn rest(&self, time: Duration) {
        let mut quiet = Duration::ZERO;
        while quiet < time {
            tokio::time::sleep(WATCH_STEP).await;
            quiet = if self.under_way() == 0 {
                quiet + WATCH_STEP
            } else {
                Duration::ZERO
            };
        }
    }

    /// Resolves when no connection is open.
    async fn closed(&self) {
        while self.shared.connections.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(WATCH_STEP).await;
        }
    }
}

/// One thread's life.
async fn serve(
    listener: std::net::TcpListener,
    tls_listener: Option<std::net::TcpListener>,
    shared: Arc<Shared>,
    mut stage: watch::Receiver<Stage>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let tls_listener = tls_listener.map(TcpListener::from_std).transpose()?;
    let service = Rc::new(service(&shared));
    let watched = stage.clone();
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted.map(|(socket, _)| {
                accept(socket, &shared, &service, &watched);
            }),
            accepted = accept_on(tls_listener.as_ref()) => accepted.map(|socket| {
                accept_tls(socket, &shared, &service, &watched);
            }),
            _ = sweep.tick() => {
                service.upstreams.sweep();
                Ok(())
            }
            changed = stage.wait_for(|stage| *stage != Stage::Serving) => {
                drop(changed);
                break;
            }
        };
        if let Err(error) = accepted {
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
    drop((listener, tls_listener));
    // The connections' tasks run until the stage says otherwise; returning drops them.
    drop(stage.wait_for(|stage| *stage == Stage::Aborting).await);
    Ok(())
}

/// The next connection of a listener that may not be there.
async fn accept_on(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(socket, _)| socket),
        None => std::future::pending().await,
    }
}

fn service(shared: &Arc<Shared>) -> Service {
    let config = &shared.config;
    let head_bytes_max = usize::try_from(config.head_bytes_max.as_u64()).unwrap_or(usize::MAX);
    let limits = Limits {
        connect_timeout: config.connect_timeout,
        idle_timeout: config.idle_timeout,
        pool_idle_timeout: config.pool_idle_timeout,
        pool_idle_max: config.pool_idle_max.into(),
        head_bytes_max,
    };
    let drain = match shared.meter.on_client_disconnect {
        OnClientDisconnect::Cancel => None,
        OnClientDisconnect::Drain => Some(DrainLimits {
            time: shared.meter.drain_timeout,
            bytes: shared.meter.drain_max_bytes.as_u64(),
        }),
    };
    Service {
        routes: shared.routes.clone(),
        places: shared.places.clone(),
        upstreams: Upstreams::new(shared.tls.clone(), limits),
        books: Rc::new(Books {
            ledger: shared.ledger.clone(),
            prices: shared.prices.clone(),
            instance: shared.instance.clone(),
            jobs: shared.jobs.clone(),
            control_rows: shared.meter.control_rows,
            is_aborting: shared.is_aborting.clone(),
            under_way: shared.under_way.clone(),
        }),
        identity: Identity::new(&shared.attribution, &shared.pepper),
        head_bytes_max,
        idle_timeout: config.idle_timeout,
        drain,
    }
}

/// Counts a connection for as long as it lives, as a tunnel too.
struct Counted {
    shared: Arc<Shared>,
    _gauge: Connection,
}

impl Counted {
    /// One more connection, unless there are too many.
    fn new(shared: &Arc<Shared>, listener: Listener) -> Option<Counted> {
        let max = shared.config.connections_max;
        let counted =
            shared
                .connections
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                    (count < max).then_some(count + 1)
                });
        if counted.is_err() {
            shared.ledger.metrics().connection_refused(listener);
            return None;
        }
        let gauge = shared.ledger.metrics().connection(listener);
        Some(Counted {
            shared: shared.clone(),
            _gauge: gauge,
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

fn accept(
    socket: TcpStream,
    shared: &Arc<Shared>,
    service: &Rc<Service>,
    stage: &watch::Receiver<Stage>,
) {
    let Some(counted) = Counted::new(shared, Listener::Proxy) else {
        let refusal = Refusal::too_many_connections(shared.config.connections_max);
        let mut socket = socket;
        tokio::task::spawn_local(async move { turn_away(&mut socket, refusal).await });
        return;
    };
    speed_up(&socket);
    attend(Stream::Tcp(socket), counted, shared, service, stage);
}

/// As [`accept`], with TLS. The handshake is done beside other connections.
fn accept_tls(
    socket: TcpStream,
    shared: &Arc<Shared>,
    service: &Rc<Service>,
    stage: &watch::Receiver<Stage>,
) {
    // Above the limit a handshake would be more than the refusal is worth.
    let Some(counted) = Counted::new(shared, Listener::ProxyTls) else {
        return;
    };
    speed_up(&socket);
    let (shared, service, stage) = (shared.clone(), service.clone(), stage.clone());
    tokio::task::spawn_local(async move {
        let mut stopping = stage.clone();
        let shaking_hands = tokio::time::timeout(
            shared.config.header_timeout,
            shake_hands(socket, shared.server_tls.as_deref()),
        );
        let fault = tokio::select! {
            shaken = shaking_hands => match shaken {
                Ok(Ok(Some(stream))) => {
                    let stream = Stream::Tls(Box::new(stream));
                    attend(stream, counted, &shared, &service, &stage);
                    return;
                }
                Ok(Ok(None)) => return,
                Ok(Err(fault)) => fault,
                Err(_) => HandshakeFault::Timeout,
            },
            changed = stopping.wait_for(|stage| *stage != Stage::Serving) => {
                drop(changed);
                return;
            }
        };
        shared.ledger.metrics().handshake_failed(fault);
        tracing::debug!(fault = fault.as_str(), "a client's TLS handshake failed");
    });
}

/// The server's half of a TLS handshake; `None` for a client that leaves without a word, as
/// probes do.
async fn shake_hands(
    mut socket: TcpStream,
    tls: Option<&ServerTls>,
) -> Result<Option<TlsStream<TcpStream>>, HandshakeFault> {
    /// The first byte of a handshake record (RFC 8446, section 5.1).
    const HANDSHAKE: u8 = 22;

    let mut first = [0];
    match socket.peek(&mut first).await {
        Ok(1) => {}
        Ok(_) | Err(_) => return Ok(None),
    }
    let Some(tls) = tls else { return Ok(None) };
    if first != [HANDSHAKE] {
        turn_away(&mut socket, Refusal::not_tls()).await;
        // A close on top of unread bytes would be a reset, which can overtake the answer.
        let (mut rest, mut sink) = (socket.take(LINGER_BYTES), tokio::io::sink());
        let lingering = tokio::io::copy(&mut rest, &mut sink);
        drop(tokio::time::timeout(LINGER_TIME, lingering).await);
        return Err(HandshakeFault::NotTls);
    }
    let acceptor = TlsAcceptor::from(tls.config(clock::wall()));
    match acceptor.accept(socket).await {
        Ok(stream) => Ok(Some(stream.into())),
        Err(error) => {
            tracing::debug!(%error, "a client's TLS handshake failed");
            let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
            Err(match cause {
                Some(rustls::Error::AlertReceived(_)) => HandshakeFault::Refused,
                _ => HandshakeFault::Broken,
            })
        }
    }
}

fn speed_up(socket: &TcpStream) {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
}

/// Serves a connection until it ends.
fn attend(
    socket: Stream,
    counted: Counted,
    shared: &Arc<Shared>,
    service: &Rc<Service>,
    stage: &watch::Receiver<Stage>,
) {
    let phase = Arc::new(Phase::default());
    let limits = ClientLimits {
        header_timeout: shared.config.header_timeout,
        idle_timeout: shared.config.idle_timeout,
    };
    let stream = TokioIo::new(ClientStream::new(socket, phase.clone(), limits, counted));
    let buffer_bytes = service.head_bytes_max.max(MIN_BUFFER_BYTES);
    let service = service.clone();
    let answering = service_fn(move |request| {
        let (service, phase) = (service.clone(), phase.clone());
        async move { Ok::<_, Infallible>(service.serve(request, phase).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // The socket has the limits: hyper has one timer for waiting and reading alike.
        .header_read_timeout(None)
        .max_buf_size(buffer_bytes)
        .max_headers(FIELDS_MAX)
        .auto_date_header(false)
        .serve_connection(stream, answering)
        .with_upgrades();
    let (mut stage, shared) = (stage.clone(), shared.clone());
    tokio::task::spawn_local(async move {
        let mut connection = pin!(connection);
        let mut has_been_told = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        // hyper has refused it by itself.
                        if error.is_parse() {
                            shared.ledger.metrics().proxy_error(ProxyError::BadRequest);
                        }
                        tracing::debug!(%error, "a client connection ended");
                    }
                    return;
                }
                changed = stage.wait_for(|stage| *stage != Stage::Serving), if !has_been_told => {
                    drop(changed);
                    has_been_told = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    });
}

/// Tells a client in plain HTTP why it is not served.
async fn turn_away(socket: &mut TcpStream, refusal: Refusal) {
    let body = refusal.body();
    let head = format!(
        "HTTP/1.1 {}\r\ncontent-type: application/json\r\n{}: {}\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        refusal.status,
        crate::proxy::ERROR_HEADER,
        refusal.kind,
        body.len(),
    );
    let written = async {
        socket.write_all(head.as_bytes()).await?;
        socket.write_all(&body).await?;
        socket.shutdown().await
    };
    if let Err(error) = written.await {
        tracing::debug!(%error, "a refused client did not wait for the answer");
    }
}
