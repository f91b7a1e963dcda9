//! Looks after open jobs: asks for those that nobody asks for, and gives up on those that are
//! too old.
//!
//! A follow-up is an ordinary request to the proxy's own listener, so that it is relayed, metered
//! and settled as if the application had sent it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::clock;
use crate::proxy::jobs::{FollowUp, Jobs};

/// How often open jobs are looked over.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long an answer may take; the next round asks again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Looks after jobs, for ever. `proxy` is the listener of the proxy.
pub async fn attend(jobs: Arc<Jobs>, proxy: SocketAddr) {
    let proxy = reachable(proxy);
    loop {
        tokio::time::sleep(INTERVAL).await;
        let now = clock::wall();
        for follow_up in jobs.due(now) {
            match timeout(ANSWER_TIMEOUT, ask(proxy, &follow_up)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a job could not be asked for"),
                Err(_) => tracing::debug!("a job was asked for and gave no answer"),
            }
        }
        let jobs = jobs.clone();
        // It may write to the journal.
        let expired = tokio::task::spawn_blocking(move || jobs.expire(now)).await;
        if let Err(error) = expired {
            tracing::error!(%error, "open jobs could not be looked over");
        }
    }
}

/// Asks, and reads the answer to its end.
async fn ask(proxy: SocketAddr, follow_up: &FollowUp) -> anyhow::Result<()> {
    let stream = TcpStream::connect(proxy).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::get(&follow_up.path)
        .header(header::HOST, proxy.to_string())
        .header(
            header::USER_AGENT,
            concat!("taffrail/", env!("CARGO_PKG_VERSION")),
        );
    if let Some(headers) = request.headers_mut() {
        headers.extend(follow_up.headers.clone());
    }
    let request = request.body(Empty::<Bytes>::new())?;
    let asking = async {
        let mut body = sender.send_request(request).await?.into_body();
        while let Some(frame) = body.frame().await {
            drop(frame?);
        }
        anyhow::Ok(())
    };
    // The connection has nothing more to say once the answer is there.
    tokio::select! {
        biased;
        answered = asking => answered,
        ended = connection => Ok(ended?),
    }
}

/// Where a listener on that address is reached from this machine.
pub fn reachable(mut listener: SocketAddr) -> SocketAddr {
    if listener.ip().is_unspecified() {
        listener.set_ip(match listener {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    listener
}
