//! What the tests of the Postgres store stand on: clusters, pooler and fault proxy do as they say.

use std::net::SocketAddr;
use std::path::Path;

use bytesize::ByteSize;
use sqlx::{Connection as _, Executor as _, Row as _, raw_sql};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::binary::{Chance, eventually};
use crate::support::fault::{FaultProxy, Sender};
use crate::support::postgres::{Cluster, PgBouncer, Pool, Setup, Version};

fn sqlstate(error: sqlx::Error) -> String {
    let error = error.into_database_error().unwrap();
    error.code().unwrap().into_owned()
}

#[tokio::test]
async fn both_versions_answer() {
    for version in [Version::Default, Version::V18] {
        let Some(cluster) = Cluster::shared(version).await else {
            continue;
        };
        let database = cluster.database().await;
        let rows = database.query("select version(), null").await;
        let said = &rows[0][0];
        eprintln!("{said}");
        assert!(said.starts_with("PostgreSQL 1"), "{said}");
        let is_18 = said.starts_with("PostgreSQL 18.");
        assert!(is_18 || matches!(version, Version::Default), "{said}");
        assert_eq!(rows[0][1], "null");
    }
}

#[tokio::test]
async fn databases_of_one_cluster_share_nothing() {
    let Some(cluster) = Cluster::shared(Version::Default).await else {
        return;
    };
    let (one, two) = (cluster.database().await, cluster.database().await);
    one.execute("create table own (id int)").await;
    two.execute("create table own (id int)").await;
    assert_eq!(one.execute("insert into own values (1), (2)").await, 2);
    assert!(two.query("select * from own").await.is_empty());
}

#[tokio::test]
async fn a_cluster_that_is_stopped_keeps_its_data_and_its_address() {
    let settings = [("fsync", "on"), ("wal_level", "logical")];
    let Some(mut cluster) = Cluster::start(Version::Default, &settings).await else {
        return;
    };
    let database = cluster.database().await;
    database.execute("create table kept (id int)").await;
    database.execute("insert into kept values (1)").await;
    let mut client = database.client().await;
    cluster.restart_immediate().await;
    assert!(client.ping().await.is_err());
    database.execute("insert into kept values (2)").await;
    let mut client = database.client().await;
    cluster.stop_fast().await;
    assert!(client.ping().await.is_err());
    let refused = TcpStream::connect(cluster.address()).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    cluster.start_again().await;
    let kept = database.query("select id from kept order by id").await;
    assert_eq!(kept, [["1"], ["2"]]);
    for (key, value) in settings {
        assert_eq!(database.query(&format!("show {key}")).await, [[value]]);
    }
}

#[tokio::test]
async fn a_cluster_with_a_password_asks_for_it() {
    let setup = Setup {
        password: Some("s3cret"),
        ..Setup::default()
    };
    let Some(cluster) = Cluster::start_as(setup).await else {
        return;
    };
    let database = cluster.database().await;
    let url = database.url();
    assert_eq!(database.query("select 1").await, [["1"]]);
    let wrong = url.replace("s3cret", "guess");
    let error = sqlx::PgConnection::connect(&wrong).await.unwrap_err();
    assert_eq!(sqlstate(error), "28P01");
}

#[tokio::test]
async fn a_standby_answers_and_refuses_to_write() {
    let Some(cluster) = Cluster::start(Version::Default, &[]).await else {
        return;
    };
    let standby = cluster.standby().await;
    let database = cluster.database().await;
    database.execute("create table copied (id int)").await;
    let copied = database.through(standby.address());
    eventually("the table is on the standby", async || {
        let found = "select count(*) from pg_database where datname = current_database()";
        let Ok(mut client) = sqlx::PgConnection::connect(&copied.url()).await else {
            return false;
        };
        client.fetch_one(found).await.is_ok() && client.fetch_all("table copied").await.is_ok()
    })
    .await;
    let mut client = copied.client().await;
    let error = client.execute("insert into copied values (1)").await;
    assert_eq!(sqlstate(error.unwrap_err()), "25006");
}

#[tokio::test]
async fn a_small_disk_fills_and_has_room_again() {
    let setup = Setup {
        small_disk: Some(ByteSize::mib(16)),
        ..Setup::default()
    };
    let Some(cluster) = Cluster::start_as(setup).await else {
        return;
    };
    let database = cluster.database_on_small_disk().await;
    database.execute("create table big (filling text)").await;
    let ballast = cluster.small_disk().join("ballast");
    let full = std::fs::write(&ballast, vec![0; 16 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let fill = "insert into big select repeat('x', 1000) from generate_series(1, 1000)";
    let mut client = database.client().await;
    let error = client.execute(fill).await.unwrap_err();
    assert_eq!(sqlstate(error), "53100");
    std::fs::remove_file(ballast).unwrap();
    assert_eq!(client.execute(fill).await.unwrap().rows_affected(), 1000);
}

#[tokio::test]
async fn nothing_outlives_a_cluster_that_is_dropped() {
    let Some(cluster) = Cluster::start(Version::Default, &[]).await else {
        return;
    };
    let database = cluster.database().await;
    let mut client = database.client().await;
    let row = client.fetch_one("select pg_backend_pid()").await.unwrap();
    let backend: i32 = row.get(0);
    let postmaster = format!("/proc/{}", cluster.id());
    let backend = format!("/proc/{backend}");
    let dir = cluster.data_dir();
    let paths = [Path::new(&postmaster), Path::new(&backend), &dir];
    assert_eq!(paths.map(Path::exists), [true; 3]);
    drop(cluster);
    assert_eq!(paths.map(Path::exists), [false; 3]);
}

#[tokio::test]
async fn a_pooler_shares_few_connections_among_transactions() {
    let Some(cluster) = Cluster::shared(Version::Default).await else {
        return;
    };
    let settings = [("max_db_connections", "1")];
    let Some(bouncer) = PgBouncer::start(cluster, &settings).await else {
        return;
    };
    let direct = cluster.database().await;
    let pooled = direct.through(bouncer.address());
    let pool = async || bouncer.pool(&pooled).await;
    pooled.execute("create table passed (id int)").await;
    let (mut one, mut two) = (pooled.client().await, pooled.client().await);
    let mut transaction = one.begin().await.unwrap();
    let insert = raw_sql("insert into passed values (1)");
    transaction.execute(insert).await.unwrap();
    let second = tokio::spawn(async move {
        two.execute("insert into passed values (2)").await.unwrap();
        two
    });
    let held = Pool {
        clients_waiting: 1,
        servers_active: 1,
        servers_idle: 0,
    };
    eventually("the second waits", async || pool().await == held).await;
    assert!(direct.query("select id from passed").await.is_empty());
    transaction.commit().await.unwrap();
    let _two = second.await.unwrap();
    let passed = direct.query("select id from passed order by id").await;
    assert_eq!(passed, [["1"], ["2"]]);
    let idle = Pool {
        clients_waiting: 0,
        servers_active: 0,
        servers_idle: 1,
    };
    eventually("nobody waits", async || pool().await == idle).await;
    // It does not know the parameter that the driver sends of itself.
    let error = sqlx::PgConnection::connect(&pooled.url()).await;
    assert_eq!(sqlstate(error.unwrap_err()), "08P01");
}

/// A peer that sends back whatever it gets, and reports what one connection brought it.
async fn echo() -> (SocketAddr, tokio::sync::mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (report, reports) = tokio::sync::mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (mut got, mut chunk) = (Vec::new(), vec![0; 4096]);
            while let Ok(read @ 1..) = stream.read(&mut chunk).await {
                got.extend_from_slice(&chunk[..read]);
                if stream.write_all(&chunk[..read]).await.is_err() {
                    break;
                }
            }
            report.send(got).await.unwrap();
        }
    });
    (address, reports)
}

/// Sends all of `bytes`, as far as that is possible, and returns what came back before the end.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> (Vec<u8>, std::io::Result<()>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut from, mut to) = stream.into_split();
    let sending = async {
        to.write_all(bytes).await?;
        to.shutdown().await
    };
    let mut got = Vec::new();
    let (sent, read) = tokio::join!(sending, from.read_to_end(&mut got));
    (got, sent.and(read.map(|_| ())))
}

#[tokio::test]
async fn a_fault_proxy_cuts_at_exactly_the_byte_asked_for() {
    let (target, mut reports) = echo().await;
    let proxy = FaultProxy::start(target).await;
    let mut chance = Chance::seeded();
    let bytes: Vec<u8> = (0..100_000u32).map(|at| at.to_le_bytes()[0]).collect();
    let (got, end) = exchange(proxy.address(), &bytes).await;
    end.unwrap();
    assert!(got == bytes && reports.recv().await.unwrap() == bytes);
    for round in 0..500 {
        let cut = match round {
            0 => 0,
            1 => bytes.len() - 1,
            _ => usize::try_from(chance.below(100_000)).unwrap(),
        };
        let cut_bytes = u64::try_from(cut).unwrap();
        let sender = [Sender::Client, Sender::Server][round % 2];
        let before = proxy.passed(sender);
        proxy.cut_after(sender, cut_bytes);
        let (got, end) = exchange(proxy.address(), &bytes).await;
        let reported = reports.recv().await.unwrap();
        assert!(bytes.starts_with(&got) && bytes.starts_with(&reported));
        assert_eq!(proxy.passed(sender) - before, cut_bytes);
        match sender {
            // The client cannot know it, but the server has all that was to pass.
            Sender::Client => {
                assert_eq!(reported.len(), cut, "{sender:?}");
                end.unwrap_err();
            }
            Sender::Server => assert_eq!(got.len(), cut, "{sender:?}"),
        }
    }
    assert_eq!(proxy.cuts_left(), 0);
    exchange(proxy.address(), b"whole again").await.1.unwrap();
}

#[tokio::test]
async fn a_fault_proxy_refuses_and_stalls_and_lets_go() {
    let Some(cluster) = Cluster::shared(Version::Default).await else {
        return;
    };
    let direct = cluster.database().await;
    let proxy = FaultProxy::start(cluster.address()).await;
    let proxied = direct.through(proxy.address());
    let mut client = proxied.client().await;
    proxy.stall(true);
    let stalled = tokio::spawn(async move {
        client.ping().await.unwrap();
        client
    });
    let connecting = tokio::spawn(async move { proxied.client().await });
    // The server answers others meanwhile, often enough for these to have had their turn.
    for _ in 0..20 {
        assert_eq!(direct.query("select 1").await, [["1"]]);
    }
    assert!(!stalled.is_finished() && !connecting.is_finished());
    proxy.stall(false);
    let mut client = stalled.await.unwrap();
    connecting.await.unwrap().ping().await.unwrap();
    proxy.refuse(true);
    client.ping().await.unwrap_err();
    let through = direct.through(proxy.address());
    sqlx::PgConnection::connect(&through.url())
        .await
        .unwrap_err();
    proxy.refuse(false);
    assert_eq!(through.query("select 1").await, [["1"]]);
}
