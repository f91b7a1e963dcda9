//! `taffrail migrate`, by the real binary, and what the migrations come to.

use std::path::Path;

use taffrail::store::{Config, Store};

use crate::config::assert_golden;
use crate::support::binary::Home;
use crate::support::postgres::{Cluster, Version};

/// What it says when it has nothing left to do.
const UP_TO_DATE: &str = "sqlite data/taffrail.db: the schema is up to date\n";

#[tokio::test]
async fn a_database_is_made_once_and_every_later_run_changes_nothing() {
    let mut home = Home::without_provider();
    // The server would leave it to this command.
    home.set("STORE__MIGRATE", "false");
    let ran = home.run(&["logs"]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    let ran = home.run(&["migrate"]).await;
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (Some(0), UP_TO_DATE, "")
    );
    let made = std::fs::read(home.database()).unwrap();
    let ran = home.run(&["migrate"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), UP_TO_DATE));
    assert!(std::fs::read(home.database()).unwrap() == made);
    let ran = home.run(&["logs"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(home.rows().await.len(), 0);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_left_alone_and_named_with_the_way_out() {
    let home = Home::without_provider();
    std::fs::create_dir(home.path().join("data")).unwrap();
    let text = "not a database ".repeat(999);
    std::fs::write(home.database(), &text).unwrap();
    let ran = home.run(&["migrate"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
    assert!(
        ran.stderr.starts_with(
            "taffrail: cannot bring the schema of sqlite data/taffrail.db up to date; mend it, or \
             point `store.url` at another database: the store cannot be used until it is mended: "
        ) && ran.stderr.ends_with("file is not a database\n"),
        "{}",
        ran.stderr
    );
    assert_eq!(std::fs::read_to_string(home.database()).unwrap(), text);
}

#[tokio::test]
async fn a_database_that_cannot_be_made_is_a_failure() {
    let mut home = Home::without_provider();
    home.set("STORE__URL", "sqlite://taffrail.toml/taffrail.db");
    let ran = home.run(&["migrate"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
    assert!(
        ran.stderr
            .starts_with("taffrail: cannot bring the schema of sqlite taffrail.toml/taffrail.db"),
        "{}",
        ran.stderr
    );
}

#[tokio::test]
async fn a_store_of_an_unknown_kind_is_a_wrong_configuration() {
    let mut home = Home::without_provider();
    home.set("STORE__URL", "mysql://localhost/taffrail");
    let ran = home.run(&["migrate"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""));
    assert!(ran.stderr.contains("store.url"), "{}", ran.stderr);
}

#[tokio::test]
async fn a_postgres_is_migrated_by_its_owner_and_left_alone_by_others() {
    let Some(cluster) = Cluster::shared(Version::Default).await else {
        return;
    };
    let database = cluster.database().await;
    let place = format!("postgres {}/{}", cluster.address(), database.name());
    let login = format!("login_of_{}", database.name());
    database
        .execute(&format!("create role {login} login"))
        .await;
    let as_login = database.url().replace("postgres@", &format!("{login}@"));
    let mut home = Home::without_provider();
    home.set("STORE__URL", as_login);
    home.set("STORE__MIGRATE", "false");
    let cannot = format!(
        "taffrail: cannot bring the schema of {place} up to date; mend it, or point `store.url` at \
         another database: the store cannot be used until it is mended: "
    );
    let ran = home.run(&["migrate"]).await;
    let why = format!(
        "permission denied for database {} (SQLSTATE 42501); docs/postgres.md says which login \
         may do what\n",
        database.name()
    );
    assert_eq!((ran.code, ran.stderr), (Some(1), format!("{cannot}{why}")));
    let ran = home.run(&["usage"]).await;
    let older = format!(
        "taffrail: the store cannot be used until it is mended: {place} has no schema or an older \
         one; run `taffrail migrate` as its owner\n"
    );
    assert_eq!((ran.code, ran.stderr), (Some(1), older));

    home.set("STORE__URL", database.url());
    for _ in 0..2 {
        let ran = home.run(&["migrate"]).await;
        let done = format!("{place}: the schema is up to date\n");
        assert_eq!((ran.code, ran.stdout), (Some(0), done), "{}", ran.stderr);
    }

    database
        .execute(
            "insert into taffrail._sqlx_migrations
             select 9999, 'of later', now(), true, '', 0",
        )
        .await;
    let newer = format!(
        "the store cannot be used until it is mended: {place} has the schema of a newer version of \
         taffrail; use that version or a newer one, or point `store.url` at another database\n"
    );
    let ran = home.run(&["logs"]).await;
    assert_eq!(
        (ran.code, ran.stderr),
        (Some(1), format!("taffrail: {newer}"))
    );
    let ran = home.run(&["migrate"]).await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.ends_with(&newer), "{}", ran.stderr);
}

/// What all migrations together make of an empty Postgres, for people to read.
const SCHEMA: &str = "migrations/postgres/schema.sql";

/// A dump without what its program says of itself, its settings and its headings.
fn normalised(dump: &str) -> String {
    let mut lines: Vec<&str> = Vec::new();
    for line in dump.lines() {
        let is_noise = line == "--"
            || ["-- Name: ", "-- Dumped ", "-- PostgreSQL ", "SET ", "\\"]
                .iter()
                .any(|start| line.starts_with(start))
            || line.starts_with("SELECT pg_catalog.set_config(");
        // One empty line is enough.
        let is_repeated = line.is_empty() && lines.last().is_none_or(|last| last.is_empty());
        if is_noise || is_repeated {
            continue;
        }
        lines.push(line);
    }
    lines.join("\n")
}

#[tokio::test]
async fn the_schema_in_one_file_is_what_the_migrations_make() {
    let Some(cluster) = Cluster::shared(Version::Default).await else {
        return;
    };
    let database = cluster.database().await;
    let config = Config {
        url: database.url(),
        ..Config::default()
    };
    Store::migrate(&config).await.unwrap();
    // Of the driver, and not the same everywhere.
    database
        .execute("drop table taffrail._sqlx_migrations")
        .await;
    let major = database
        .query("select current_setting('server_version_num')::int / 10000")
        .await;
    let head = format!(
        "-- Made by the test of this file from the migrations beside it, on Postgres {}; not to be run.\n\n",
        major[0][0]
    );
    let Some(dump) = cluster.dump(&database).await else {
        return;
    };
    let kept = std::fs::read_to_string(SCHEMA).unwrap_or_default();
    if std::env::var_os("UPDATE_GOLDEN").is_none() && !kept.starts_with(&head) {
        eprintln!("{SCHEMA} is of another version of Postgres, which words a schema otherwise");
        return;
    }
    assert_golden(Path::new(SCHEMA), &(head + &normalised(&dump)));
}
