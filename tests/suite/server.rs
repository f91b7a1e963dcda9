//! The real binary at its edges: how it refuses to start, how it goes on when disk or database
//! do not, how it stops, and that no key is in anything that it writes.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;
use sqlx::{Connection as _, SqliteConnection};
use taffrail::clock;
use taffrail::journal::segment::{self, Kind, Piece};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::store::{sums_kept, sums_of_rows};
use crate::support::binary::{Chance, Home, Server, eventually, number, outcome};
use crate::support::chat::{Ask, Chat};
use crate::support::http::{Ending, Seen, ask, read_response};
use crate::support::upstream::{Act, Upstream, find};

/// A response that is under way.
struct Open {
    connection: TcpStream,
    pending: Vec<u8>,
}

impl Open {
    /// Sends a request and waits for the first piece of text of its stream.
    async fn start(proxy: SocketAddr, asked: Ask) -> Open {
        let mut connection = TcpStream::connect(proxy).await.unwrap();
        connection.write_all(&asked.request()).await.unwrap();
        let mut pending = Vec::new();
        while find(&pending, b"mile ").is_none() {
            let read = connection.read_buf(&mut pending).await.unwrap();
            assert!(read > 0, "{}", String::from_utf8_lossy(&pending));
        }
        Open {
            connection,
            pending,
        }
    }

    async fn end(mut self) -> Seen {
        read_response(&mut self.connection, &mut self.pending, false).await
    }
}

/// Sends requests one after the other and asserts that they are served.
pub(crate) async fn serve(server: &Server, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let seen = ask(server.proxy, &Ask::plain(number).request()).await;
        assert_eq!((seen.status, seen.ending), (200, Ending::Complete));
    }
}

/// The numbers of the rows with an outcome.
async fn numbers(home: &Home, with: &str) -> Vec<u64> {
    let rows = home.rows().await;
    let rows = rows.iter().filter(|row| outcome(row) == with);
    let mut numbers: Vec<u64> = rows.map(number).collect();
    numbers.sort_unstable();
    numbers
}

/// Another process that holds the database for itself.
struct Holder(SqliteConnection);

impl Holder {
    async fn of(home: &Home) -> Holder {
        let url = format!("sqlite://{}", home.database().display());
        let mut connection = SqliteConnection::connect(&url).await.unwrap();
        sqlx::query("begin immediate")
            .execute(&mut connection)
            .await
            .unwrap();
        Holder(connection)
    }

    async fn let_go(self) {
        self.0.close().await.unwrap();
    }
}

// Start-up.

#[tokio::test]
async fn a_port_that_is_in_use_is_named_with_its_key() {
    for (key, variable) in [
        ("proxy.listen", "PROXY__LISTEN"),
        ("admin.listen", "ADMIN__LISTEN"),
    ] {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let mut home = Home::without_provider();
        home.set(variable, address.to_string());
        let ran = home.run(&["run"]).await;
        assert_eq!(
            (ran.code, ran.last_line()),
            (
                Some(1),
                format!(
                    "taffrail: cannot listen on {address}: another process does; is Taffrail \
                     running already? Otherwise set {key} to a free address"
                )
                .as_str()
            )
        );
        assert!(
            !home.journal().exists(),
            "the other's journal is left alone"
        );
    }
}

#[tokio::test]
async fn a_journal_directory_that_cannot_be_stops_the_start() {
    let mut home = Home::without_provider();
    let config = home.path().join("taffrail.toml");
    for (dir, error) in [
        (config.join("journal"), "Not a directory (os error 20)"),
        (
            "/proc/taffrail".into(),
            "No such file or directory (os error 2)",
        ),
    ] {
        home.set("JOURNAL__DIR", dir.to_str().unwrap());
        let ran = home.run(&["run"]).await;
        assert_eq!(
            (ran.code, ran.last_line()),
            (
                Some(1),
                format!(
                    "taffrail: cannot use journal directory {}; `journal.dir` must name a \
                     directory that this process may write to: {error}",
                    dir.display()
                )
                .as_str()
            )
        );
    }
}

#[tokio::test]
async fn a_journal_of_another_process_stops_the_start_and_that_one_goes_on() {
    let chat = Chat::start().await;
    let home = Home::new(chat.address);
    let server = home.start().await;
    let ran = home.run(&["run"]).await;
    assert_eq!(
        (ran.code, ran.last_line()),
        (
            Some(1),
            "taffrail: journal directory journal is in use by another process; give each \
             process its own `journal.dir`"
        )
    );
    serve(&server, 0..3).await;
    server.stop().await;
    assert_eq!(numbers(&home, "ok").await, [0, 1, 2]);
}

#[tokio::test]
async fn an_exporter_has_no_journal() {
    let mut home = Home::without_provider();
    home.set("ROLE", "exporter");
    let process = home.spawn();
    eventually("it serves", async || {
        process.log().contains("\"message\":\"serving\"")
    })
    .await;
    process.kill().await;
    assert!(!home.journal().exists(), "there is a journal");
}

#[tokio::test]
async fn every_problem_of_a_configuration_is_listed_with_exit_code_2() {
    let mut home = Home::without_provider();
    home.set("STORE__URL", "mysql://localhost");
    home.set("PRICES__OVERLAY_FILE", "absent.json");
    let config = "[proxy]\nlisten = \"nowhere\"\nthreadz = 2\n[journal]\nmax_bytes = \"much\"\n";
    std::fs::write(home.path().join("taffrail.toml"), config).unwrap();
    let ran = home.run(&["run"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""));
    for part in [
        "proxy.listen",
        "threadz",
        "journal.max_bytes",
        "TAFFRAIL_STORE__URL",
        "absent.json",
    ] {
        assert!(ran.stderr.contains(part), "{part}: {}", ran.stderr);
    }
    let ran = home.run(&["run", "--config", "absent.toml"]).await;
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(ran.stderr.contains("absent.toml"), "{}", ran.stderr);
}

#[tokio::test]
async fn a_price_file_that_is_missing_or_does_not_hold_stops_the_start() {
    let mut home = Home::without_provider();
    home.set("PRICES__OVERLAY_FILE", "prices.json");
    let ran = home.run(&["run"]).await;
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(ran.stderr.contains("prices.overlay_file"), "{}", ran.stderr);
    std::fs::write(home.path().join("prices.json"), "{\"openai\": 7}").unwrap();
    let ran = home.run(&["run"]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(
        ran.stderr.starts_with("taffrail: in prices.json: "),
        "{}",
        ran.stderr
    );
    assert!(!home.journal().exists());
}

// Damage.

/// Damages a segment file in one of several ways.
fn damage(bytes: &mut Vec<u8>, way: u64, chance: &mut Chance) {
    let length = u64::try_from(bytes.len()).unwrap();
    let at = usize::try_from(chance.below(length)).unwrap();
    match way {
        0 => bytes[at] ^= 1 << chance.below(8),
        1 => {
            let end = (at + 5_000).min(bytes.len());
            for byte in &mut bytes[at..end] {
                *byte = u8::try_from(chance.below(256)).unwrap();
            }
        }
        2 => bytes.truncate(at),
        // The header.
        3 => bytes[9] ^= 0x10,
        _ => bytes[at..].fill(0),
    }
}

/// The intact frames of a segment, as kind and id.
fn frames(bytes: &[u8]) -> impl Iterator<Item = (usize, usize, Kind, uuid::Uuid)> + '_ {
    segment::scan(bytes).filter_map(|piece| match piece {
        Piece::Frame { start, end, frame } => Some((start, end, frame.kind, frame.id)),
        _ => None,
    })
}

#[tokio::test]
async fn a_damaged_journal_loses_no_intact_record() {
    let mut chance = Chance::seeded();
    let home = Home::without_provider();
    home.fill_journal(1_000, ByteSize::kib(32));
    let mut paths: Vec<_> = std::fs::read_dir(home.journal())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    paths.sort();
    assert!(paths.len() >= 10, "{} segments", paths.len());
    let (mut records, mut intents) = (BTreeSet::new(), BTreeSet::new());
    for (index, path) in paths.iter().enumerate() {
        let whole = std::fs::read(path).unwrap();
        let mut bytes = whole.clone();
        // Every other one.
        if index % 2 == 1 {
            damage(
                &mut bytes,
                u64::try_from(index / 2).unwrap() % 5,
                &mut chance,
            );
            std::fs::write(path, &bytes).unwrap();
        }
        for (start, end, kind, id) in frames(&whole) {
            // What damage did not touch must be found.
            if bytes.get(start..end) == whole.get(start..end) {
                match kind {
                    Kind::Record => records.insert(id.to_string()),
                    _ => intents.insert(id.to_string()),
                };
            }
        }
    }
    assert!(records.len() < 1_000, "nothing was hit");
    let noise: Vec<u8> = (0..10_000)
        .map(|_| u8::try_from(chance.below(256)).unwrap())
        .collect();
    std::fs::write(home.journal().join("99999999.seg"), &noise).unwrap();
    std::fs::write(home.journal().join("99999998.seg"), []).unwrap();
    std::fs::write(home.journal().join("cursor"), &noise[..100]).unwrap();

    let server = home.start().await;
    let scrape = server.quiet().await;
    let log = server.stop().await;
    assert!(
        log.contains("the journal is damaged; what could not be read is kept aside"),
        "{log}"
    );
    let rows = home.rows().await;
    let ids = |with: &str| -> BTreeSet<String> {
        let rows = rows.iter().filter(|row| outcome(row) == with);
        rows.map(|row| row.get("id").as_text().unwrap().to_owned())
            .collect()
    };
    assert_eq!(ids("ok"), records);
    // A record that is lost while its intent is not leaves a trace.
    let orphans = intents.difference(&records).cloned().collect();
    assert_eq!(ids("interrupted"), orphans);
    assert_eq!(rows.len(), records.len() + orphans.len());
    assert_eq!(sums_kept(home.path()).await, sums_of_rows(&rows));
    assert_eq!(scrape.stage("stored"), u64::try_from(rows.len()).unwrap());
    let aside: Vec<_> = std::fs::read_dir(home.journal())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".seg.bad"))
        .collect();
    assert!(aside.contains(&"99999999.seg.bad".to_owned()), "{aside:?}");
    assert_eq!(
        std::fs::read(home.journal().join("99999999.seg.bad")).unwrap(),
        noise
    );
    let log = home.start().await.stop().await;
    assert!(!log.contains("ERROR"), "{log}");
}

/// Waits for the alarm of a store that has to be mended.
async fn alarm(server: &Server, pending: u64) {
    eventually("the store is an alarm", async || {
        let scrape = server.scrape().await;
        scrape.0.contains("\ntaffrail_store_up 0")
            && scrape.sum("taffrail_journal_pending_records", &[]) == pending
            && scrape.law_holds()
    })
    .await;
    let log = server.process.log();
    let line = log.lines().find(|line| line.contains("needs mending"));
    let line = line.unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("ERROR"), "{line}");
}

#[tokio::test]
async fn a_corrupt_database_is_an_alarm_and_records_wait_until_it_is_moved_away() {
    let chat = Chat::start().await;
    let mut home = Home::new(chat.address);
    home.set("STORE__DRAIN__SHUTDOWN_TIMEOUT", "200ms");
    std::fs::create_dir(home.path().join("data")).unwrap();
    std::fs::write(home.database(), "not a database ".repeat(999)).unwrap();
    let server = home.start().await;
    serve(&server, 0..5).await;
    alarm(&server, 5).await;
    assert!(server.process.log().contains("file is not a database"));
    let log = server.stop().await;
    assert!(log.contains("records wait in the journal"), "{log}");
    let ran = home.run(&["usage"]).await;
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stderr.contains("file is not a database"),
        "{}",
        ran.stderr
    );

    // Moved away, and then a real one that is damaged behind its first page.
    std::fs::rename(home.database(), home.path().join("aside.db")).unwrap();
    let server = home.start().await;
    serve(&server, 5..10).await;
    server.quiet().await;
    server.stop().await;
    assert_eq!(numbers(&home, "ok").await, (0..10).collect::<Vec<_>>());
    let good = std::fs::read(home.database()).unwrap();
    let mut bytes = good.clone();
    bytes[4096..].fill(0x5a);
    std::fs::write(home.database(), bytes).unwrap();
    let server = home.start().await;
    serve(&server, 10..15).await;
    alarm(&server, 5).await;
    assert!(server.process.log().contains("malformed"));
    server.process.kill().await;
    let ran = home.run(&["logs"]).await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("malformed"), "{}", ran.stderr);

    std::fs::write(home.database(), good).unwrap();
    let server = home.start().await;
    server.quiet().await;
    server.stop().await;
    assert_eq!(numbers(&home, "ok").await, (0..15).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_store_that_cannot_be_made_holds_up_nothing() {
    let chat = Chat::start().await;
    let mut home = Home::new(chat.address);
    home.set("STORE__DRAIN__SHUTDOWN_TIMEOUT", "200ms");
    for (round, url) in [
        "sqlite://taffrail.toml/taffrail.db",
        "sqlite:///proc/x/taffrail.db",
    ]
    .into_iter()
    .enumerate()
    {
        let first = 3 * u64::try_from(round).unwrap();
        home.set("STORE__URL", url);
        let server = home.start().await;
        serve(&server, first..first + 3).await;
        eventually("the store is away", async || {
            let scrape = server.scrape().await;
            scrape.0.contains("\ntaffrail_store_up 0") && scrape.law_holds()
        })
        .await;
        let log = server.stop().await;
        assert!(log.contains("the store is away; records wait"), "{log}");
    }
    home.set("STORE__URL", "sqlite://data/taffrail.db");
    let server = home.start().await;
    server.quiet().await;
    server.stop().await;
    assert_eq!(numbers(&home, "ok").await, [0, 1, 2, 3, 4, 5]);
}

// Shutdown.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_lets_open_streams_finish_and_serves_on_until_then() {
    const STREAMS: u64 = 1_000;
    let chat = Chat::start().await;
    let home = Home::new(chat.address);
    let server = home.start().await;
    let mut opening = JoinSet::new();
    for number in 0..STREAMS {
        opening.spawn(Open::start(server.proxy, Ask::held(number)));
    }
    let streams = opening.join_all().await;
    // A client that has said nothing yet does not hold up the end.
    let _silent = TcpStream::connect(server.proxy).await.unwrap();

    server.signal("TERM").await;
    eventually("the signal is heard", async || {
        server
            .process
            .log()
            .contains("stopping: requests under way")
    })
    .await;
    serve(&server, STREAMS..STREAMS + 10).await;
    let released = clock::instant();
    chat.release();
    let mut ending = JoinSet::new();
    for stream in streams {
        ending.spawn(stream.end());
    }
    for seen in ending.join_all().await {
        assert_eq!((seen.status, seen.ending), (200, Ending::Complete));
        assert!(seen.body.ends_with(b"data: [DONE]\n\n"));
    }
    let (status, log) = server.process.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
    let ending = released.elapsed();
    assert!(ending < Duration::from_secs(10), "{ending:?}");
    eprintln!("{STREAMS} streams finished and the process ended in {ending:?}");
    let all: Vec<u64> = (0..STREAMS + 10).collect();
    assert_eq!(numbers(&home, "ok").await, all);
    assert_eq!(home.rows().await.len(), all.len());
}

#[tokio::test]
async fn a_second_signal_cuts_off_what_is_open_and_records_it() {
    let chat = Chat::start().await;
    let home = Home::new(chat.address);
    for (round, (first, second)) in [("TERM", "TERM"), ("INT", "TERM")].into_iter().enumerate() {
        let base = 100 * u64::try_from(round).unwrap();
        let server = home.start().await;
        let mut streams = Vec::new();
        for number in base..base + 20 {
            streams.push(Open::start(server.proxy, Ask::held(number)).await);
        }
        serve(&server, base + 20..base + 40).await;
        // Nor does the end wait for a request whose head never ends.
        let mut halting = TcpStream::connect(server.proxy).await.unwrap();
        halting.write_all(b"GET /openai/v1/mod").await.unwrap();
        server.signal(first).await;
        eventually("the signal is heard", async || {
            server
                .process
                .log()
                .contains("stopping: requests under way")
        })
        .await;
        serve(&server, base + 40..base + 45).await;
        let hurried = clock::instant();
        server.signal(second).await;
        let (status, log) = server.process.ended().await;
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(hurried.elapsed() < Duration::from_secs(2), "{log}");
        for stream in streams {
            assert_eq!(stream.end().await.ending, Ending::Truncated);
        }
    }
    let rows = |from: u64, to: u64| (from..to).chain(100 + from..100 + to).collect::<Vec<_>>();
    assert_eq!(numbers(&home, "ok").await, rows(20, 45));
    assert_eq!(numbers(&home, "interrupted").await, rows(0, 20));
    assert_eq!(home.rows().await.len(), 90);
}

#[tokio::test]
async fn what_a_locked_store_does_not_take_is_shipped_by_the_next_start() {
    let chat = Chat::start().await;
    let mut home = Home::new(chat.address);
    home.set("STORE__BUSY_TIMEOUT", "100ms");
    home.set("STORE__DRAIN__SHUTDOWN_TIMEOUT", "300ms");
    let server = home.start().await;
    serve(&server, 0..10).await;
    server.quiet().await;
    let holder = Holder::of(&home).await;
    serve(&server, 10..30).await;
    let asked = clock::instant();
    let log = server.stop().await;
    assert!(asked.elapsed() < Duration::from_secs(5), "{log}");
    assert!(log.contains("records wait in the journal for the next start"));
    assert_eq!(numbers(&home, "ok").await, (0..10).collect::<Vec<_>>());

    let server = home.start().await;
    serve(&server, 30..35).await;
    holder.let_go().await;
    let scrape = server.quiet().await;
    let recovered = [("stage", "journaled"), ("reason", "recovered")];
    assert_eq!(scrape.sum("taffrail_records_total", &recovered), 20);
    assert_eq!(scrape.stage("stored"), 25);
    server.stop().await;
    assert_eq!(numbers(&home, "ok").await, (0..35).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_books_balance_at_every_scrape() {
    let chat = Chat::start().await;
    let home = Home::new(chat.address);
    let server = home.start().await;
    let mut loads = JoinSet::new();
    for load in 0..4 {
        let proxy = server.proxy;
        loads.spawn(async move {
            for number in 0..300 {
                ask(proxy, &Ask::plain(load * 1_000 + number).request()).await;
            }
        });
    }
    let mut scrapes = 0;
    while loads.try_join_next().is_some() || !loads.is_empty() {
        let scrape = server.scrape().await;
        assert!(scrape.law_holds(), "{scrape:?}");
        scrapes += 1;
    }
    assert!(scrapes > 20, "{scrapes} scrapes");
    assert_eq!(server.quiet().await.stage("stored"), 1_200);
}

#[tokio::test]
async fn a_record_that_rots_in_the_journal_is_told_and_the_books_balance() {
    let chat = Chat::start().await;
    let mut home = Home::new(chat.address);
    home.set("STORE__BUSY_TIMEOUT", "100ms");
    let server = home.start().await;
    serve(&server, 0..1).await;
    server.quiet().await;
    let holder = Holder::of(&home).await;
    // The first batch is read and waits, what comes later is on disk alone.
    serve(&server, 1..2).await;
    eventually("the shipment has begun", async || {
        server.process.log().contains("the store is away")
    })
    .await;
    serve(&server, 2..12).await;
    let segments = std::fs::read_dir(home.journal()).unwrap();
    let segment = segments
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .max()
        .unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    let records = frames(&bytes).filter(|(_, _, kind, _)| *kind == Kind::Record);
    let (_, end, _, _) = records.last().unwrap();
    bytes[end - 1] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    holder.let_go().await;
    let scrape = server.quiet().await;
    assert!(scrape.law_holds(), "{scrape:?}");
    assert_eq!(scrape.stage("stored"), 11);
    let unreadable = [("stage", "dead_lettered"), ("reason", "unreadable")];
    assert_eq!(scrape.sum("taffrail_records_total", &unreadable), 1);
    let bad = [("kind", "bad_frame")];
    assert_eq!(scrape.sum("taffrail_journal_faults_total", &bad), 1);
    assert_eq!(numbers(&home, "ok").await, (0..11).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_locked_store_holds_up_the_end_for_its_time_and_a_second_signal_not_at_all() {
    let chat = Chat::start().await;
    let mut home = Home::new(chat.address);
    home.set("STORE__BUSY_TIMEOUT", "4s");
    let server = home.start().await;
    serve(&server, 0..1).await;
    server.quiet().await;
    // A shipment that has begun waits for the busy timeout.
    let holder = Holder::of(&home).await;
    serve(&server, 1..2).await;
    eventually("the shipment has begun", async || {
        server.process.log().contains("the store is away")
    })
    .await;
    let told = clock::instant();
    server.signal("TERM").await;
    eventually("traffic has ended", async || {
        TcpStream::connect(server.proxy).await.is_err()
    })
    .await;
    server.signal("TERM").await;
    let (status, log) = server.process.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(told.elapsed() < Duration::from_secs(2), "{log}");
    assert!(log.contains("records wait in the journal"), "{log}");

    home.set("STORE__DRAIN__SHUTDOWN_TIMEOUT", "500ms");
    let server = home.start().await;
    serve(&server, 2..3).await;
    let told = clock::instant();
    let log = server.stop().await;
    assert!(told.elapsed() < Duration::from_secs(3), "{log}");
    holder.let_go().await;
    let server = home.start().await;
    server.quiet().await;
    server.stop().await;
    assert_eq!(numbers(&home, "ok").await, [0, 1, 2]);
}

// Secrets.

/// Keys in the shapes that providers give them, each one of its own.
fn canaries() -> Vec<String> {
    let shapes = [
        "sk-proj-",
        "sk-ant-api03-",
        "sk-or-v1-",
        "r8_",
        "AIza",
        "hf_",
        "gsk_",
        "xai-",
        "pplx-",
        "eyJhbGciOi.",
        "ya29.",
        "AKIA",
        "fw_",
        "key-",
        "",
    ];
    (0..40)
        .map(|index| {
            format!(
                "{}C4n4ry{index:02}qTzW8vLk3mXr9Yb",
                shapes[index % shapes.len()]
            )
        })
        .collect()
}

fn response(head: &str, body: &str) -> Vec<Act> {
    let length = body.len();
    let response =
        format!("HTTP/1.1 {head}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    vec![Act::Read, Act::send(response), Act::Close]
}

fn post(target: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {target} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n{headers}\r\n{body}")
}

/// Every file below a directory, read.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        files.push((path.display().to_string(), std::fs::read(&path).unwrap()));
    }
    files
}

#[tokio::test]
async fn no_key_is_in_anything_that_is_written() {
    let keys = canaries();
    let mut unused = keys.iter();
    let mut key = || unused.next().unwrap().as_str();
    let json = "content-type: application/json\r\n";
    let ok = |body: &str| response("200 OK\r\ncontent-type: application/json", body);
    let completion = Ask::plain(1).completion().to_string();

    let headers = format!(
        "authorization: Bearer {}\r\nx-api-key: {}\r\napi-key: {}\r\nx-goog-api-key: {}\r\n\
         xi-api-key: {}\r\nx-fal-key: {}\r\ncookie: session={}\r\nproxy-authorization: Basic {}\r\n\
         x-secret: {}\r\nbaggage: key={}\r\ntraceparent: 00-{}\r\n{json}",
        key(),
        key(),
        key(),
        key(),
        key(),
        key(),
        key(),
        key(),
        key(),
        key(),
        key()
    );
    let target = format!(
        "/openai/v1/chat/completions?key={}&api_key={}",
        key(),
        key()
    );
    let body = format!(
        r#"{{"model":"gpt-4o-mini","messages":[{{"role":"user","content":"{}"}}],"user":"{}","metadata":{{"a":"{}"}},"tools":[{{"x":"{}"}}]}}"#,
        key(),
        key(),
        key(),
        key()
    );
    let mut requests = vec![post(&target, &headers, &body)];
    let secretive = format!(
        "200 OK\r\nset-cookie: k={}\r\nx-session-token: {}\r\ncontent-type: application/json",
        key(),
        key()
    );
    let told = completion.replace("Twelve miles.", key());
    let mut scripts = vec![response(&secretive, &told)];

    // An error that quotes the key and a URL with one.
    let (bearer, quoted, linked) = (key(), key(), key());
    let chat = "/openai/v1/chat/completions";
    let plain = r#"{"model":"gpt-4o-mini","messages":[]}"#;
    requests.push(post(
        chat,
        &format!("authorization: Bearer {bearer}\r\n{json}"),
        plain,
    ));
    let error = format!(
        r#"{{"error":{{"message":"Incorrect API key provided: {quoted}. See https://x.example/?key={linked}","type":"invalid_request_error","code":"invalid_api_key"}}}}"#
    );
    scripts.push(response(
        "401 Unauthorized\r\ncontent-type: application/json",
        &error,
    ));
    // Paths with a key: of a provider's file, of no known call, of no provider.
    for prefix in ["/openai/v1/files/", "/openai/v9/", "/openai/"] {
        requests.push(post(&format!("{prefix}{}/content", key()), json, "{}"));
        scripts.push(ok("{}"));
    }
    requests.push(post(&format!("/{}/v1", key()), json, "{}"));
    requests.push(format!(
        "GET http://x.example/?key={} HTTP/1.1\r\nhost: a\r\n\r\n",
        key()
    ));
    requests.push(format!(
        "GET /openai/v1/models HTTP/1.1\r\nb{{}}d {}\r\n\r\n",
        key()
    ));
    // A stream with an event that is no JSON.
    let stream = format!("data: {{\"id\": {}\n\ndata: [DONE]\n\n", key());
    requests.push(post(
        chat,
        json,
        r#"{"model":"gpt-4o-mini","stream":true,"messages":[]}"#,
    ));
    scripts.push(response(
        "200 OK\r\ncontent-type: text/event-stream",
        &stream,
    ));
    // An upload, and a key as a websocket's protocol.
    let upload = format!(
        "--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"{}\"\r\n\r\n{}\r\n--b--\r\n",
        key(),
        key()
    );
    let form = "content-type: multipart/form-data; boundary=b\r\n";
    requests.push(post("/openai/v1/audio/transcriptions", form, &upload));
    scripts.push(ok(r#"{"text":"miles"}"#));
    requests.push(format!(
        "GET /openai/v1/realtime?model=gpt-4o-realtime-preview HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-protocol: openai-insecure-api-key.{}\r\n\r\n",
        key()
    ));
    scripts.push(response("403 Forbidden", "no"));
    // A response that breaks off, and one that is no HTTP.
    requests.push(post(&format!("{chat}?token={}", key()), json, plain));
    scripts.push(vec![Act::Read, Act::Reset]);
    requests.push(post(&format!("{chat}?token={}", key()), json, plain));
    scripts.push(vec![
        Act::Read,
        Act::send(format!("{}\r\n\r\n", key())),
        Act::Close,
    ]);

    let upstream = Upstream::start_each(scripts).await;
    let mut home = Home::new(upstream.address);
    home.set("LOG__LEVEL", "trace");
    home.set("METER__CONTROL_ROWS", "true");
    // Long enough to look at the records while they wait.
    home.set("STORE__DRAIN__BATCH_DELAY", "1s");
    // A provider that cannot be reached.
    home.set("PROVIDERS__ANTHROPIC__UPSTREAM", "http://127.0.0.1:9");
    requests.push(post(
        &format!("/anthropic/v1/messages?key={}", key()),
        json,
        plain,
    ));
    home.set("METER__FINGERPRINT_PEPPER", key());
    home.set(
        "ACCOUNTS",
        format!(
            "[{{provider=\"openrouter\", name=\"prod\", api_key=\"{}\", admin_key=\"{}\"}}]",
            key(),
            key()
        ),
    );
    assert!(keys.len() - unused.len() >= 20);
    let server = home.start().await;
    let (mut written, mut statuses) = (Vec::new(), Vec::new());
    for request in &requests {
        statuses.push(ask(server.proxy, request.as_bytes()).await.status);
        written.extend(files(&home.journal()));
    }
    // Each met the script that is meant for it; the last one reaches no provider.
    assert_eq!(
        statuses,
        [
            200, 401, 200, 200, 200, 404, 400, 400, 200, 200, 403, 502, 502, 502
        ]
    );
    assert!(
        written
            .iter()
            .any(|(_, bytes)| find(bytes, b"invalid_api_key").is_some()),
        "the journal was never seen with a record"
    );
    let scrape = server.quiet().await;
    written.extend(files(&home.path().join("data")));
    written.push(("metrics".to_owned(), scrape.0.clone().into_bytes()));
    let log = server.stop().await;
    assert!(log.contains("DEBUG"), "{log}");
    written.push(("log".to_owned(), log.into_bytes()));
    written.extend(files(&home.path().join("data")));
    // An exporter, because the check of a proxy would reach for every provider there is.
    home.set("ROLE", "exporter");
    for arguments in [
        &["usage", "--by", "provider,model"][..],
        &["usage", "--format", "json"],
        &["logs"],
        &["logs", "--all", "--format", "json"],
        &["logs", "--format", "csv"],
        &["config"],
        &["config", "--format", "json"],
        &["check"],
    ] {
        let ran = home.run(arguments).await;
        assert!(!ran.stdout.is_empty(), "{arguments:?}: {}", ran.stderr);
        written.push((arguments.join(" "), ran.stdout.into_bytes()));
        written.push((arguments.join(" "), ran.stderr.into_bytes()));
    }
    // What is no secret is found in all of them, so a key would be.
    for (name, sign) in [
        ("metrics", "gpt-4o-mini"),
        ("taffrail.db", "chat/completions"),
        ("logs --all --format json", "invalid_api_key"),
        ("config", "[redacted]"),
    ] {
        let found = written.iter().any(|(written, bytes)| {
            written.ends_with(name) && find(bytes, sign.as_bytes()).is_some()
        });
        assert!(found, "{sign} is not in {name}");
    }
    let mut hits = BTreeSet::new();
    for (name, bytes) in &written {
        for (index, _) in keys.iter().enumerate() {
            // The middle of a key is enough.
            let canary = format!("C4n4ry{index:02}qTzW8");
            if let Some(at) = find(bytes, canary.as_bytes()) {
                let around = &bytes[at.saturating_sub(80)..(at + 40).min(bytes.len())];
                hits.insert(format!("{name}: …{}…", String::from_utf8_lossy(around)));
            }
        }
    }
    assert_eq!(hits, BTreeSet::new());
}

// A full disk.

/// A way to run the binary with a small disk of its own at the journal's place, which is gone
/// with the process; `None` where this is not possible.
async fn small_disk(home: &Home) -> Option<Vec<String>> {
    let script = "mount -t tmpfs -o size=4m tmpfs journal && exec \"$@\"";
    std::fs::create_dir(home.journal()).unwrap();
    for options in ["-m", "-rm"] {
        let wrapper = ["unshare", options, "sh", "-c", script, "sh"];
        let tried = tokio::process::Command::new(wrapper[0])
            .args(&wrapper[1..])
            .arg("true")
            .current_dir(home.path())
            .output();
        if tried.await.is_ok_and(|output| output.status.success()) {
            return Some(wrapper.map(str::to_owned).to_vec());
        }
    }
    eprintln!("SKIP: no tmpfs can be mounted here (unshare -m, unshare -rm)");
    None
}

#[tokio::test]
async fn a_full_disk_fails_no_request_and_what_is_lost_is_counted() {
    let chat = Chat::start().await;
    let mut home = Home::new(chat.address);
    let Some(wrapper) = small_disk(&home).await else {
        return;
    };
    home.wrap(&wrapper.iter().map(String::as_str).collect::<Vec<_>>());
    home.set("JOURNAL__MEMORY_BYTES", "64KiB");
    home.set("STORE__BUSY_TIMEOUT", "100ms");
    home.set("STORE__DRAIN__RETRY_MAX", "200ms");
    let server = home.start().await;
    serve(&server, 0..10).await;
    server.quiet().await;
    // The disk as the process sees it.
    let id = server.process.id();
    let disk = format!("/proc/{id}/root{}", home.journal().display());
    let disk = Path::new(&disk);
    let ballast = disk.join("ballast");
    let full = std::fs::write(&ballast, vec![0; 8 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);

    // With the store up everything is shipped from memory.
    serve(&server, 10..60).await;
    let scrape = server.quiet().await;
    assert!(server.process.log().contains("journal cannot write"));
    assert_eq!((scrape.stage("stored"), scrape.stage("dropped")), (60, 0));

    // With the store away too, memory fills, and what it does not take is counted.
    let holder = Holder::of(&home).await;
    serve(&server, 60..360).await;
    let scrape = server.scrape().await;
    let dropped = scrape.stage("dropped");
    let pending = scrape.sum("taffrail_journal_pending_records", &[]);
    assert!(pending > 50 && dropped > 50, "{pending} {dropped}");
    assert_eq!(pending + dropped, 300);
    assert!(scrape.law_holds());
    holder.let_go().await;
    let scrape = server.quiet().await;
    assert_eq!(scrape.stage("completed"), 360);
    assert_eq!(scrape.stage("dropped"), dropped);
    let failed = [("stage", "dropped"), ("reason", "journal_failed")];
    assert_eq!(scrape.sum("taffrail_records_total", &failed), dropped);
    assert_eq!(scrape.stage("stored"), 360 - dropped);

    // With room again, records are on disk before they are in the store.
    std::fs::remove_file(&ballast).unwrap();
    eventually("the journal writes again", async || {
        let log = server.process.log();
        let count = |message: &str| log.matches(message).count();
        count("journal writes to disk again") == count("journal cannot write")
    })
    .await;
    let holder = Holder::of(&home).await;
    serve(&server, 360..380).await;
    let journaled = files(disk);
    for number in 360..380 {
        // Its length stands before a text.
        let id = Ask::plain(number).response_id();
        let field = [&[u8::try_from(id.len()).unwrap()], id.as_bytes()].concat();
        let is_journaled = journaled
            .iter()
            .any(|(_, bytes)| find(bytes, &field).is_some());
        assert!(is_journaled, "{number}");
    }
    holder.let_go().await;
    server.quiet().await;
    server.stop().await;
    let stored = numbers(&home, "ok").await;
    assert_eq!(u64::try_from(stored.len()).unwrap(), 380 - dropped);
    let rows = home.rows().await;
    assert_eq!(sums_kept(home.path()).await, sums_of_rows(&rows));
}
