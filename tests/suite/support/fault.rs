//! A TCP proxy on loopback that breaks connections at a byte of the caller's choice.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// Who sends the bytes of a direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sender {
    Client,
    Server,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Forward,
    Stall,
    Refuse,
}

/// The running proxy. It and all of its connections end when it is dropped.
pub(crate) struct FaultProxy {
    address: SocketAddr,
    state: Arc<State>,
    listening: JoinHandle<()>,
}

struct State {
    mode: watch::Sender<Mode>,
    cuts: Mutex<VecDeque<(Sender, u64)>>,
    passed: [AtomicU64; 2],
}

impl FaultProxy {
    /// Listens on a free port and forwards to that address.
    pub(crate) async fn start(target: SocketAddr) -> FaultProxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            mode: watch::Sender::new(Mode::Forward),
            cuts: Mutex::default(),
            passed: Default::default(),
        });
        let listening = tokio::spawn(listen(listener, target, state.clone()));
        FaultProxy {
            address,
            state,
            listening,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Arms a cut: the next connection that has none ends once `bytes` of that sender's have
    /// passed. The receiver gets all of them and then the connection's end; the sender a reset.
    pub(crate) fn cut_after(&self, sender: Sender, bytes: u64) {
        self.state.cuts.lock().unwrap().push_back((sender, bytes));
    }

    /// Cuts that no connection has taken yet.
    pub(crate) fn cuts_left(&self) -> usize {
        self.state.cuts.lock().unwrap().len()
    }

    /// Resets every connection: those there are, and new ones at once.
    pub(crate) fn refuse(&self, refuse: bool) {
        self.set(if refuse { Mode::Refuse } else { Mode::Forward });
    }

    /// Accepts connections and holds back what is sent on any.
    pub(crate) fn stall(&self, stall: bool) {
        self.set(if stall { Mode::Stall } else { Mode::Forward });
    }

    /// The bytes of that sender's which have passed so far, of all connections.
    pub(crate) fn passed(&self, sender: Sender) -> u64 {
        self.state.passed[sender as usize].load(Ordering::Relaxed)
    }

    fn set(&self, mode: Mode) {
        self.state.mode.send_replace(mode);
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn listen(listener: TcpListener, target: SocketAddr, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        if *state.mode.borrow() == Mode::Refuse {
            client.set_zero_linger().unwrap();
            continue;
        }
        let cut = state.cuts.lock().unwrap().pop_front();
        connections.spawn(forward(client, target, cut, state.clone()));
        while connections.try_join_next().is_some() {}
    }
}

/// Forwards until both sides have ended, or the connection is cut, refused or broken.
async fn forward(
    mut client: TcpStream,
    target: SocketAddr,
    cut: Option<(Sender, u64)>,
    state: Arc<State>,
) {
    let Ok(mut server) = TcpStream::connect(target).await else {
        client.set_zero_linger().ok();
        return;
    };
    let limit = |sender| match cut {
        Some((cut, bytes)) if cut == sender => bytes,
        _ => u64::MAX,
    };
    let (by_client, by_server) = (limit(Sender::Client), limit(Sender::Server));
    let mut mode = state.mode.subscribe();
    let ended = {
        client.set_nodelay(true).ok();
        server.set_nodelay(true).ok();
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let both = futures_util::future::try_join(
            pump(from_client, to_server, by_client, Sender::Client, &state),
            pump(from_server, to_client, by_server, Sender::Server, &state),
        );
        tokio::select! {
            ended = both => ended.map(|_| ()),
            _ = mode.wait_for(|mode| *mode == Mode::Refuse) => Err(Broken::Wholly),
        }
    };
    let (sender, mut receiver) = match ended {
        Ok(()) => return,
        Err(Broken::Wholly) => {
            client.set_zero_linger().ok();
            server.set_zero_linger().ok();
            return;
        }
        Err(Broken::By(Sender::Client)) => (client, server),
        Err(Broken::By(Sender::Server)) => (server, client),
    };
    sender.set_zero_linger().ok();
    drop(sender);
    // A close with bytes unread would be a reset, which can overtake the last bytes sent.
    receiver.shutdown().await.ok();
    tokio::io::copy(&mut receiver, &mut tokio::io::sink())
        .await
        .ok();
}

/// How a connection ended that was not closed by both sides.
enum Broken {
    /// All that this sender may send has passed.
    By(Sender),
    Wholly,
}

/// Forwards one direction to its end.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    limit: u64,
    sender: Sender,
    state: &State,
) -> Result<(), Broken> {
    let mut mode = state.mode.subscribe();
    let mut chunk = vec![0; 16 << 10];
    let mut left = limit;
    while left > 0 {
        let most = usize::try_from(left).map_or(chunk.len(), |left| left.min(chunk.len()));
        let read = from.read(&mut chunk[..most]).await;
        let read = read.map_err(|_| Broken::Wholly)?;
        if read == 0 {
            to.shutdown().await.ok();
            return Ok(());
        }
        mode.wait_for(|mode| *mode == Mode::Forward).await.ok();
        let written = to.write_all(&chunk[..read]).await;
        written.map_err(|_| Broken::Wholly)?;
        let read = u64::try_from(read).unwrap();
        left -= read;
        state.passed[sender as usize].fetch_add(read, Ordering::Relaxed);
    }
    Err(Broken::By(sender))
}
