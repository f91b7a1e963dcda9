//! TLS towards Postgres: a verified server gets the rows, and any other gets nothing.

use std::net::SocketAddr;
use std::path::PathBuf;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::postgres::count;
use crate::server::serve;
use crate::support::binary::{Home, eventually};
use crate::support::certificate::{Issued, expired, issue, self_signed};
use crate::support::chat::Chat;
use crate::support::postgres::{Cluster, Database, Setup};

/// What asks a server for TLS (the Postgres manual, message formats: SSLRequest).
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Of the user of all clusters here.
const PASSWORD: &str = "s3cret";

/// The URL of a database by the name of its host, and with the certificate in `authority`.
struct Way {
    url: String,
    _dir: TempDir,
}

impl Way {
    fn to(database: &Database, authority: Option<&str>) -> Way {
        let dir = tempfile::tempdir().unwrap();
        let mut url = database.url().replace("127.0.0.1", "localhost") + "?sslmode=verify-full";
        if let Some(pem) = authority {
            let file: PathBuf = dir.path().join("ca.pem");
            std::fs::write(&file, pem).unwrap();
            url += &format!("&sslrootcert={}", file.display());
        }
        Way { url, _dir: dir }
    }
}

async fn cluster(certificate: Option<&Issued>) -> Option<Cluster> {
    let setup = Setup {
        password: Some(PASSWORD),
        certificate,
        ..Setup::default()
    };
    Cluster::start_as(setup).await
}

/// A home whose store is reached that way.
fn home(chat: &Chat, url: &str) -> Home {
    let mut home = Home::new(chat.address);
    home.set("STORE__URL", url);
    home.set("STORE__CONNECT_TIMEOUT", "5s");
    home.set("STORE__DRAIN__RETRY_MAX", "100ms");
    home.set("STORE__DRAIN__SHUTDOWN_TIMEOUT", "10ms");
    home
}

#[tokio::test]
async fn rows_land_over_tls_at_a_server_whose_certificate_holds() {
    let issued = issue("localhost");
    let Some(cluster) = cluster(Some(&issued)).await else {
        return;
    };
    let database = cluster.database().await;
    let way = Way::to(&database, Some(&issued.authority));
    let chat = Chat::start().await;
    let home = home(&chat, &way.url);
    let server = home.start().await;
    serve(&server, 0..20).await;
    assert_eq!(server.quiet().await.stage("stored"), 20);
    let encrypted = "select bool_and(ssl)::int::bigint \
        from pg_stat_ssl join pg_stat_activity using (pid) where application_name = 'taffrail'";
    assert_eq!(count(&database, encrypted).await, 1);
    server.stop().await;
    let rows = "select count(*) from taffrail.api_usage_logs";
    assert_eq!(count(&database, rows).await, 20);
    let ran = home.run(&["check"]).await;
    assert!(ran.stdout.contains("answers"), "{}", ran.stdout);
    let ran = home.run(&["logs", "--format", "csv"]).await;
    assert_eq!((ran.code, ran.stdout.lines().count()), (Some(0), 21));
}

/// Serves traffic while the store is at `url`; asserts that nothing reaches it, that the log and
/// `taffrail check` tell why, and that the records are in the journal.
async fn assert_refused(url: &str, told: &str) {
    let chat = Chat::start().await;
    let home = home(&chat, url);
    let server = home.start().await;
    serve(&server, 0..3).await;
    eventually(&format!("the log tells: {told}"), async || {
        // The metric follows the line.
        server.process.log().contains(told)
            && server.scrape().await.0.contains("\ntaffrail_store_up 0")
    })
    .await;
    // Housekeeping may have been the first to be refused.
    eventually("the store is away", async || {
        server.scrape().await.0.contains("\ntaffrail_store_up 0")
    })
    .await;
    let scrape = server.scrape().await;
    assert_eq!(scrape.sum("taffrail_journal_pending_records", &[]), 3);
    assert_eq!(scrape.stage("stored"), 0);
    let log = server.stop().await;
    assert!(!log.contains(PASSWORD), "{log}");
    let ran = home.run(&["check"]).await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.stdout.contains(told), "{}", ran.stdout);
}

#[tokio::test]
async fn a_certificate_that_does_not_hold_gets_no_row_and_is_named() {
    let (own, stranger) = (issue("localhost"), issue("elsewhere.example"));
    let (alone, old) = (self_signed("localhost"), expired("localhost"));
    let cases = [
        (
            &stranger,
            Some(&stranger.authority),
            "certificate not valid for name",
        ),
        (&own, Some(&stranger.authority), "UnknownIssuer"),
        (&alone, None, "UnknownIssuer"),
        (&old, Some(&old.authority), "certificate expired"),
    ];
    for (issued, authority, told) in cases {
        let Some(cluster) = cluster(Some(issued)).await else {
            return;
        };
        let database = cluster.database().await;
        let way = Way::to(&database, authority.map(String::as_str));
        assert_refused(&way.url, told).await;
        assert_eq!(
            count(&database, "select count(to_regnamespace('taffrail'))").await,
            0
        );
    }
}

#[tokio::test]
async fn a_server_without_tls_gets_no_row_where_it_is_asked_for() {
    let Some(cluster) = cluster(None).await else {
        return;
    };
    let database = cluster.database().await;
    let way = Way::to(&database, None);
    assert_refused(&way.url, "no TLS: server does not support TLS").await;
    let made = "select count(to_regnamespace('taffrail'))";
    assert_eq!(count(&database, made).await, 0);
}

/// Answers every connection with `answer`, and reports what the client sent until it left.
async fn impostor(answer: &'static [u8]) -> (SocketAddr, tokio::sync::mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (report, reports) = tokio::sync::mpsc::channel(1_000);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut got = vec![0; SSL_REQUEST.len()];
            stream.read_exact(&mut got).await.unwrap();
            stream.write_all(answer).await.unwrap();
            stream.read_to_end(&mut got).await.ok();
            report.send(got).await.unwrap();
        }
    });
    (address, reports)
}

#[tokio::test]
async fn who_says_that_there_is_no_tls_learns_neither_name_nor_password() {
    let (address, mut reports) = impostor(b"N").await;
    let url = format!(
        "postgres://me:{PASSWORD}@localhost:{}/x?sslmode=verify-full",
        address.port()
    );
    assert_refused(&url, "no TLS: server does not support TLS").await;
    let mut connections = 0;
    while let Ok(sent) = reports.try_recv() {
        assert_eq!(sent, SSL_REQUEST);
        connections += 1;
    }
    assert!(connections > 1, "{connections}");
}
