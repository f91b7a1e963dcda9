//! The `taffrail` command: parses, dispatches, and turns what happened into an exit code.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use chrono::Days;
use taffrail::app::{self, App};
use taffrail::cli::{self, Command, ConfigFormat};
use taffrail::config::{self, Config, Loaded, Role, Sources};
use taffrail::exporter::balances::Filter;
use taffrail::journal::DEAD_LETTER_FILE;
use taffrail::metrics::Metrics;
use taffrail::store::{BalanceReading, Store};
use taffrail::{backfill, check, clock, demo, price_commands, report, telemetry};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err((error, code)) => {
            if error.print().is_err() {
                return ExitCode::from(cli::EXIT_FAILED);
            }
            return ExitCode::from(code);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::new(error).context("cannot start a runtime")),
    };
    match runtime.block_on(dispatch(cli)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => fail(&error),
    }
}

/// Prints an error with everything that led to it, on one line each.
fn fail(error: &anyhow::Error) -> ExitCode {
    // A reader that has gone (`taffrail logs | head`) is no failure to talk about.
    let is_pipe_closed = error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
    });
    if is_pipe_closed {
        return ExitCode::from(cli::EXIT_OK);
    }
    let code = match error.downcast_ref::<config::Problems>() {
        Some(_) => cli::EXIT_USAGE,
        None => cli::EXIT_FAILED,
    };
    let mut stderr = io::stderr().lock();
    let written = writeln!(stderr, "taffrail: {error:#}");
    ExitCode::from(if written.is_ok() {
        code
    } else {
        cli::EXIT_FAILED
    })
}

async fn dispatch(cli: cli::Cli) -> anyhow::Result<u8> {
    let file = cli.config;
    let load = |role: Option<Role>| -> Result<Loaded, config::Problems> {
        config::load(Sources {
            file: file.clone(),
            role,
            env: std::env::vars_os().collect(),
            ..Sources::default()
        })
    };
    match cli.command {
        Command::Run(run) => serve(&load(run.role)?.config).await,
        Command::Demo(options) => {
            demo::run(
                options.seconds,
                demo::Setting {
                    ports: demo::Ports::Usual,
                    store: options.store,
                    role: options.role,
                    history_days: options.history,
                },
            )
            .await?;
            Ok(cli::EXIT_OK)
        }
        Command::Usage(usage) => print_usage(&load(None)?.config, usage).await,
        Command::Logs(logs) => print_logs(&load(None)?.config, logs).await,
        Command::Balances(options) => print_balances(&load(None)?.config, options).await,
        Command::Sync(options) => sync(&load(None)?.config, options).await,
        Command::Reconcile(options) => print_bills(&load(None)?.config, options).await,
        Command::Prices(command) => price_commands::run(&load(None)?.config, command).await,
        Command::Migrate(_) => migrate(&load(None)?.config).await,
        Command::Backfill(days) => make_sums(&load(None)?.config, &days).await,
        Command::Check(_) => {
            let items = check::check(&load(None)?.config).await;
            for item in &items {
                writeln!(io::stdout(), "{item}")?;
            }
            Ok(if check::passed(&items) {
                cli::EXIT_OK
            } else {
                cli::EXIT_FAILED
            })
        }
        Command::Ca(_) => {
            print_authority(&load(None)?.config)?;
            Ok(cli::EXIT_OK)
        }
        Command::Config(config) => {
            let loaded = load(None)?;
            match config.format {
                ConfigFormat::Toml => write!(io::stdout(), "{}", loaded.to_toml())?,
                ConfigFormat::Json => writeln!(io::stdout(), "{:#}", loaded.to_json())?,
            }
            Ok(cli::EXIT_OK)
        }
        Command::Healthcheck(_) => {
            let listen = load(None)?.config.admin.listen;
            check::healthcheck(listen)
                .await
                .map_err(|problem| anyhow::anyhow!(problem))?;
            Ok(cli::EXIT_OK)
        }
    }
}

/// Serves until SIGTERM or SIGINT; a second one ends the waiting for requests under way.
async fn serve(config: &Config) -> anyhow::Result<u8> {
    telemetry::init(&config.log)?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let app = App::start(config)?;
    tracing::info!(
        proxy = app.proxy_address().map(|address| address.to_string()),
        proxy_tls = app.proxy_tls_address().map(|address| address.to_string()),
        injector = app.injector_address().map(|address| address.to_string()),
        admin = %app.admin_address(),
        store = app.store().description(),
        version = env!("CARGO_PKG_VERSION"),
        "serving"
    );
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: requests under way finish first; a second signal cuts them off");
    app.stop(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
    .await?;
    tracing::info!("stopped");
    Ok(cli::EXIT_OK)
}

/// Prints what applications that insist on https are to trust.
fn print_authority(config: &Config) -> anyhow::Result<()> {
    if let Some(path) = &config.proxy.tls_cert_file {
        anyhow::bail!(
            "proxy.tls_cert_file is set, so there is no local authority: applications are to trust \
             who signed {}",
            path.display()
        );
    }
    write!(io::stdout(), "{}", app::authority(&config.proxy)?.pem())?;
    Ok(())
}

async fn print_usage(config: &Config, usage: cli::Usage) -> anyhow::Result<u8> {
    let store = Store::open_read_only(&config.store).await?;
    let request = report::UsageRequest {
        since: usage.since,
        by: usage.by,
        format: usage.format,
        width: report::terminal_width(),
    };
    let mut out = io::stdout().lock();
    report::usage(&store, &request, clock::wall(), &mut out).await?;
    store.close().await;
    Ok(cli::EXIT_OK)
}

async fn print_logs(config: &Config, logs: cli::Logs) -> anyhow::Result<u8> {
    let request = report::LogsRequest {
        limit: (!logs.all).then_some(logs.limit),
        before: logs.before,
        provider: logs.provider,
        outcome: logs.outcome,
        format: logs.format,
        width: report::terminal_width(),
    };
    let mut out = io::stdout().lock();
    if logs.dead_letter {
        let dir = &config.journal.dir;
        let damaged = report::dead_letters(dir, &request, &mut out)?;
        if damaged > 0 {
            let path = dir.join(DEAD_LETTER_FILE);
            writeln!(
                io::stderr(),
                "taffrail: lines of {} that cannot be understood: {damaged}",
                path.display()
            )?;
        }
        return Ok(cli::EXIT_OK);
    }
    let store = Store::open_read_only(&config.store).await?;
    report::logs(&store, &request, &mut out).await?;
    store.close().await;
    Ok(cli::EXIT_OK)
}

async fn print_balances(config: &Config, options: cli::Balances) -> anyhow::Result<u8> {
    let store = Store::open_read_only(&config.store).await?;
    let filter = Filter {
        provider: options.provider,
        account: options.account,
    };
    let mut readings = store.latest_balances().await?;
    store.close().await;
    readings.retain(|it| filter.takes(&it.provider, &it.account));
    write_balances(&readings, options.format)
}

async fn print_bills(config: &Config, options: cli::Reconcile) -> anyhow::Result<u8> {
    let store = Store::open_read_only(&config.store).await?;
    let now = clock::wall();
    let filter = Filter {
        provider: options.provider,
        account: options.account,
    };
    let since = options.since.resolve(now).date_naive();
    let mut rows = store.reconciliations(since).await?;
    store.close().await;
    rows.retain(|it| filter.takes(&it.provider, &it.account));
    let width = report::terminal_width();
    let mut out = io::stdout().lock();
    report::reconcile(&rows, options.format, width, now, &mut out)?;
    Ok(cli::EXIT_OK)
}

async fn sync(config: &Config, options: cli::Sync) -> anyhow::Result<u8> {
    let filter = Filter {
        provider: options.provider,
        account: options.account,
    };
    let mut accounts = config.accounts.iter();
    if !accounts.any(|it| filter.takes(&it.provider, &it.name)) {
        anyhow::bail!("no such account is configured: see [[accounts]] in docs/configuration.md");
    }
    let store = Store::lazy(&config.store)?;
    let metrics = Arc::new(Metrics::new(&config.metrics, &[], &[]));
    let balances = app::read_balances(config, &store, &metrics)?;
    let readings = balances.sync(&filter).await;
    store.close().await;
    if balances.unkept() > 0 {
        writeln!(
            io::stderr(),
            "taffrail: the store did not take what was read; `taffrail check` says why"
        )?;
    }
    write_balances(&readings, options.format)
}

/// Prints readings; the exit code tells whether the last of an account failed.
fn write_balances(readings: &[BalanceReading], format: report::Format) -> anyhow::Result<u8> {
    let width = report::terminal_width();
    let mut out = io::stdout().lock();
    let failed = report::balances(readings, format, width, clock::wall(), &mut out)?;
    Ok(if failed == 0 {
        cli::EXIT_OK
    } else {
        cli::EXIT_FAILED
    })
}

async fn migrate(config: &Config) -> anyhow::Result<u8> {
    let store = Store::lazy(&config.store)?.description();
    Store::migrate(&config.store).await.with_context(|| {
        format!(
            "cannot bring the schema of {store} up to date; mend it, or point `store.url` at \
             another database"
        )
    })?;
    writeln!(io::stdout(), "{store}: the schema is up to date")?;
    Ok(cli::EXIT_OK)
}

async fn make_sums(config: &Config, days: &cli::Backfill) -> anyhow::Result<u8> {
    let until = days.to.unwrap_or(clock::wall().date_naive() + Days::new(1));
    if until <= days.from {
        let from = days.from;
        writeln!(
            io::stderr(),
            "taffrail: there is no day from {from} to before {until}; --to names the day after \
             the last"
        )?;
        return Ok(cli::EXIT_USAGE);
    }
    let store = Store::open_existing(&config.store).await?;
    let buckets = backfill::backfill(&store, days.from, until).await?;
    store.close().await;
    writeln!(
        io::stdout(),
        "{}: the sums from {} to before {until} are made anew, in {buckets} buckets",
        store.description(),
        days.from
    )?;
    Ok(cli::EXIT_OK)
}
