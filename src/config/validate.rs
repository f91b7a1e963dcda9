//! The rules that span keys, or that a type cannot hold. Pure but for files: those that a key
//! names must be readable, since the start would fail on them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use chrono::DateTime;
use http::header::{self, HeaderName};
use rust_decimal::Decimal;

use super::load::read_secret_file;
use super::{Account, Config, KeyPath, Role};
use crate::balance;
use crate::bill;
use crate::exporter::receipts;
use crate::exporter::schedule::cron_parser;
use crate::injector::Sidecar;
use crate::metrics::labels::{
    ATTRIBUTION_LABELS_MAX, LABEL_BYTES_MAX, LabelError, check_attribution_label,
};
use crate::provider;
use crate::proxy::{
    self, AttributionConfig, KEY_FIELDS, Providers, ServerTls, Upstream, UpstreamUrlError,
};
use crate::store::Dimension;
use crate::telemetry;

/// The longest provider name, in characters: it is a path segment of every request.
const PROVIDER_NAME_CHARS_MAX: usize = 32;

/// Headers that carry credentials besides API keys.
const CREDENTIAL_FIELDS: [HeaderName; 2] = [header::PROXY_AUTHORIZATION, header::COOKIE];

/// A rule that does not hold.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Finding {
    pub(super) key: KeyPath,
    pub(super) what: String,
    pub(super) accepted: String,
    /// Another key whose own problem explains this one.
    pub(super) instead: Option<KeyPath>,
}

/// Every rule that does not hold.
pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let mut rules = Rules(Vec::new());
    rules.listeners(config);
    rules.proxy(config);
    rules.tls(&config.proxy);
    rules.admin(config);
    rules.journal(config);
    rules.store(config);
    rules.attribution(&config.attribution);
    rules.providers(&config.providers);
    rules.accounts(config);
    rules.schedule(config);
    rules.reconcile(config);
    rules.receipts(config);
    rules.jobs(config);
    rules.retention(config);
    rules.files(config);
    rules.injector(config);
    rules.log(config);
    rules.0
}

struct Rules(Vec<Finding>);

impl Rules {
    fn add(&mut self, key: KeyPath, what: impl Into<String>, accepted: impl Into<String>) {
        self.0.push(Finding {
            key,
            what: what.into(),
            accepted: accepted.into(),
            instead: None,
        });
    }

    fn listeners(&mut self, config: &Config) {
        if let Some(url) = &config.proxy.public_url {
            self.url(KeyPath::new(["proxy", "public_url"]), url);
        }
        let (proxy, admin) = (config.proxy.listen, config.admin.listen);
        let mut differ = |name: &str, own: SocketAddr, other_name: &str, other: SocketAddr| {
            if overlap(own, other) {
                self.add(
                    KeyPath::new(["proxy", name]),
                    format!("{own} is taken by {other_name} = {other}"),
                    "an address that no other listener has",
                );
            }
        };
        differ("listen", proxy, "admin.listen", admin);
        if let Some(tls) = config.proxy.tls_listen {
            differ("tls_listen", tls, "proxy.listen", proxy);
            differ("tls_listen", tls, "admin.listen", admin);
        }
    }

    fn proxy(&mut self, config: &Config) {
        let proxy = &config.proxy;
        let key = |name: &str| KeyPath::new(["proxy", name]);
        if proxy.threads == Some(0) {
            let accepted = "1 or more, or unset for one per CPU, up to 4";
            self.add(key("threads"), "0 threads relay nothing", accepted);
        }
        for (name, duration) in [
            ("connect_timeout", proxy.connect_timeout),
            ("header_timeout", proxy.header_timeout),
            ("idle_timeout", proxy.idle_timeout),
            ("pool_idle_timeout", proxy.pool_idle_timeout),
        ] {
            self.not_zero(key(name), duration);
        }
        if proxy.connections_max == 0 {
            let accepted = "1 or more";
            self.add(
                key("connections_max"),
                "0 connections serve nobody",
                accepted,
            );
        }
        /// A head with a long key, a trace and a few cookies takes about as much.
        const HEAD_BYTES_MIN: u64 = 8 * 1024;
        if proxy.head_bytes_max.as_u64() < HEAD_BYTES_MIN {
            self.add(
                key("head_bytes_max"),
                format!("{} is too little for a usual head", proxy.head_bytes_max),
                "8KiB or more",
            );
        }
    }

    /// The files of `proxy.tls_listen`.
    fn tls(&mut self, proxy: &proxy::Config) {
        let key = |name: &str| KeyPath::new(["proxy", name]);
        let accepted = "tls_cert_file and tls_key_file together, or neither for a local authority";
        match (&proxy.tls_cert_file, &proxy.tls_key_file) {
            (Some(_), None) => self.add(key("tls_cert_file"), "set without tls_key_file", accepted),
            (None, Some(_)) => self.add(key("tls_key_file"), "set without tls_cert_file", accepted),
            (Some(_), Some(_)) if proxy.tls_listen.is_none() => self.add(
                key("tls_cert_file"),
                "set, but nothing serves it",
                "tls_listen with it, such as \"127.0.0.1:4843\"",
            ),
            (Some(certificate), Some(private)) => {
                let unreadable = [("tls_cert_file", certificate), ("tls_key_file", private)]
                    .into_iter()
                    .filter_map(|(name, path)| Some((name, check_file(path).err()?)));
                let unreadable: Vec<(&str, String)> = unreadable.collect();
                if unreadable.is_empty()
                    && let Err(error) = ServerTls::from_files(certificate, private)
                {
                    let accepted = "a certificate and the private key that it was made for, as PEM";
                    self.add(key("tls_cert_file"), error.to_string(), accepted);
                }
                for (name, what) in unreadable {
                    self.add(key(name), what, "the path of a readable file");
                }
            }
            (None, None) => {}
        }
        if proxy.tls_ca_dir.as_os_str().is_empty() {
            self.add(key("tls_ca_dir"), "empty", "the path of a directory");
        }
    }

    fn admin(&mut self, config: &Config) {
        if let Some(path) = &config.admin.token_file
            && let Err(what) = read_secret_file(path)
        {
            let accepted = "a readable file with the token on one line";
            self.add(KeyPath::new(["admin", "token_file"]), what, accepted);
        }
    }

    fn journal(&mut self, config: &Config) {
        let journal = &config.journal;
        let key = |name: &str| KeyPath::new(["journal", name]);
        if journal.dir.as_os_str().is_empty() {
            self.add(key("dir"), "empty", "the path of a directory");
        }
        if journal.segment_bytes.as_u64() == 0 {
            self.add(
                key("segment_bytes"),
                "0 bytes hold no record",
                "1MiB or more",
            );
        }
        if journal.max_bytes < journal.segment_bytes {
            self.add(
                key("max_bytes"),
                format!(
                    "{} is less than one segment of {}",
                    journal.max_bytes, journal.segment_bytes
                ),
                "segment_bytes or more",
            );
        }
        /// What the journal reads as a segment at most.
        const SEGMENT_BYTES_MAX: u64 = 1 << 30;
        if journal.segment_bytes.as_u64() > SEGMENT_BYTES_MAX {
            self.add(
                key("segment_bytes"),
                format!("{} is more than a segment can be", journal.segment_bytes),
                "1GiB or less",
            );
        }
    }

    fn store(&mut self, config: &Config) {
        let scheme = config.store.url.split_once("://").map(|(scheme, _)| scheme);
        if !matches!(scheme, Some("sqlite" | "postgres" | "postgresql")) {
            self.add(
                KeyPath::new(["store", "url"]),
                "the scheme is unknown",
                "sqlite://… or postgres://…",
            );
        }
    }

    fn attribution(&mut self, attribution: &AttributionConfig) {
        let key = |table: &str, name: &str| KeyPath::new(["attribution", table, name]);
        for (table, labels) in [
            ("static", &attribution.fixed),
            ("headers", &attribution.headers),
        ] {
            for label in labels.keys() {
                if let Err((what, accepted)) = check_label(label) {
                    self.add(key(table, label), what, accepted);
                }
            }
        }
        for (label, value) in &attribution.fixed {
            if value.is_empty() || value.len() > LABEL_BYTES_MAX {
                self.add(
                    key("static", label),
                    "the value is empty or too long",
                    format!("1 to {LABEL_BYTES_MAX} bytes"),
                );
            }
            if attribution.headers.contains_key(label) {
                self.add(
                    key("headers", label),
                    "the label is in attribution.static as well",
                    "a label in one of the two tables",
                );
            }
        }
        for (label, name) in &attribution.headers {
            match HeaderName::from_bytes(name.as_bytes()) {
                Err(_) => self.add(
                    key("headers", label),
                    format!("{name:?} is not the name of a header"),
                    "a name such as \"x-taffrail-feature\"",
                ),
                Ok(name) if KEY_FIELDS.contains(&name) || CREDENTIAL_FIELDS.contains(&name) => {
                    self.add(
                        key("headers", label),
                        format!("{name} carries a credential, which must not become a label"),
                        "a header of your own, such as \"x-taffrail-feature\"",
                    );
                }
                Ok(_) => {}
            }
        }
        let count = attribution.fixed.len() + attribution.headers.len();
        if count > ATTRIBUTION_LABELS_MAX {
            self.add(
                KeyPath::new(["attribution"]),
                format!("{count} labels"),
                format!("{ATTRIBUTION_LABELS_MAX} labels or fewer, each multiplies the series"),
            );
        }
    }

    fn providers(&mut self, providers: &Providers) {
        for (name, provider) in providers {
            let table = KeyPath::new(["providers", name]);
            let built_in = provider::builtin(name);
            if !is_provider_name(name) {
                self.add(
                    table,
                    "not a name that can be a path segment and a label",
                    format!(
                        "lower-case letters, digits, - and _, a letter first, \
                         {PROVIDER_NAME_CHARS_MAX} characters or fewer"
                    ),
                );
                continue;
            }
            if let Some(forwarding) = provider::forwarding(name) {
                self.add(
                    table,
                    "a route without settings of its own",
                    format!(
                        "the upstreams of the hosts that it leads to: {}",
                        forwarding.hosts
                    ),
                );
                continue;
            }
            let default = built_in.as_ref().and_then(|known| known.default_upstream());
            let is_billing_alone = provider.upstream.is_none()
                && provider.dialect.is_none()
                && provider.billing_url.is_some()
                && balance::api(name).is_some();
            if built_in.is_none() && is_billing_alone {
                self.url(
                    table.join("billing_url"),
                    provider.billing_url.as_deref().unwrap_or_default(),
                );
                continue;
            }
            if provider.upstream.is_none() && default.is_none() {
                self.add(
                    table.join("upstream"),
                    "missing, and there is no default for this provider",
                    "a URL, such as \"https://api.example.com/openai\"",
                );
            }
            match (built_in, provider.dialect) {
                (None, None) => self.add(
                    table.join("dialect"),
                    "missing, and the provider is not built in",
                    format!("\"chat\", or a built-in name: {}", built_in_names()),
                ),
                (Some(_), Some(_)) => self.add(
                    table.join("dialect"),
                    "set for a built-in provider, which has its own",
                    "no dialect here, or a name that is not built in",
                ),
                _ => {}
            }
            if let Some(url) = &provider.upstream {
                self.url(table.join("upstream"), url);
            }
            if let Some(url) = &provider.billing_url {
                self.url(table.join("billing_url"), url);
            }
        }
    }

    fn accounts(&mut self, config: &Config) {
        let mut seen: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for (index, account) in config.accounts.iter().enumerate() {
            let table = KeyPath::new(["accounts", &index.to_string()]);
            let name = account.provider.as_str();
            let is_known = match provider::builtin(name) {
                Some(provider) => provider.label() == name,
                None => config.providers.contains_key(name) || balance::api(name).is_some(),
            };
            if name.is_empty() {
                self.add(table.join("provider"), "missing", known_names(config));
            } else if !is_known {
                let what = format!("{:?} is not a known provider", account.provider);
                self.add(table.join("provider"), what, known_names(config));
            }
            if account.name.is_empty() {
                let accepted = "a name, unique for the provider";
                self.add(table.join("name"), "missing", accepted);
            } else if account.name.len() > LABEL_BYTES_MAX {
                let accepted = format!("{LABEL_BYTES_MAX} bytes or fewer");
                self.add(table.join("name"), "too long for a label", accepted);
            } else if let Some(first) = seen.insert((&account.provider, &account.name), index) {
                self.add(
                    table.join("name"),
                    format!("the same provider and name as accounts[{first}]"),
                    "a name that is unique for the provider",
                );
            }
            // Who reads no balances needs no keys.
            let is_keyless = account.api_key.is_none()
                && account.api_key_file.is_none()
                && account.api_key_env.is_none();
            let wants_key = is_known && balance::api(name).is_some();
            if is_keyless && wants_key && config.role.reads_balances() {
                self.0.push(Finding {
                    key: table.join("api_key_file"),
                    what: "missing, and api_key is not set either".to_owned(),
                    accepted: "a file that holds the key that the balance is read with".to_owned(),
                    instead: Some(table.join("api_key")),
                });
            }
            self.top_ups(&table, account);
        }
    }

    fn top_ups(&mut self, table: &KeyPath, account: &Account) {
        for (index, top_up) in account.top_ups.iter().enumerate() {
            let entry = table.join("top_ups").join(index.to_string());
            if top_up.at == DateTime::UNIX_EPOCH {
                let accepted = "a date or a timestamp in quotes, such as \"2026-11-01\"";
                self.add(entry.join("at"), "missing", accepted);
            }
            if top_up.amount.is_zero() {
                let accepted = "an amount, negative for what was paid back";
                self.add(entry.join("amount"), "missing or zero", accepted);
            }
        }
        if let (Some(warning), Some(critical)) = (account.warning_below, account.critical_below)
            && critical > warning
        {
            self.add(
                table.join("critical_below"),
                format!("{critical} is more than warning_below = {warning}"),
                "warning_below or less",
            );
        }
        if let Some(id) = &account.billing_id
            && !id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        {
            let accepted = "letters, digits, - and _";
            self.add(table.join("billing_id"), "not an id", accepted);
        }
        if let Some(currency) = &account.currency
            && !(currency.len() == 3 && currency.bytes().all(|b| b.is_ascii_uppercase()))
        {
            let accepted = "a code of ISO 4217, such as \"USD\"";
            let what = format!("{currency:?} is no code of a currency");
            self.add(table.join("currency"), what, accepted);
        }
    }

    fn schedule(&mut self, config: &Config) {
        let expressions = [
            ("balances", &config.schedule.balances),
            ("prices", &config.schedule.prices),
            ("reconcile", &config.schedule.reconcile),
            ("receipts", &config.schedule.receipts),
            ("housekeeping", &config.schedule.housekeeping),
        ];
        let parser = cron_parser();
        for (name, expression) in expressions {
            let fields = expression.split_whitespace().count();
            if fields != 6 {
                self.add(
                    KeyPath::new(["schedule", name]),
                    format!("{expression:?} has {fields} fields"),
                    CRON_ACCEPTED,
                );
                continue;
            }
            let what = match parser.parse(expression) {
                Ok(cron)
                    if cron
                        .find_next_occurrence(&DateTime::UNIX_EPOCH, true)
                        .is_ok() =>
                {
                    continue;
                }
                Ok(_) => format!("{expression:?} is a time that never comes"),
                Err(error) => format!(
                    "{expression:?} is not a cron expression: {}",
                    lower_case(&error)
                ),
            };
            self.add(KeyPath::new(["schedule", name]), what, CRON_ACCEPTED);
        }
        for (name, duration) in [
            ("timeout", config.schedule.timeout),
            ("call_timeout", config.schedule.call_timeout),
        ] {
            self.not_zero(KeyPath::new(["schedule", name]), duration);
        }
    }

    fn reconcile(&mut self, config: &Config) {
        let days = config.reconcile.days;
        if !(1..=bill::DAYS_MAX).contains(&days) {
            self.add(
                KeyPath::new(["reconcile", "days"]),
                format!("{days} days cannot be asked for at once"),
                format!("1 to {}", bill::DAYS_MAX),
            );
        }
        for (index, account) in config.accounts.iter().enumerate() {
            let table = KeyPath::new(["accounts", &index.to_string()]);
            if account.usd_rate.is_some_and(|rate| rate <= Decimal::ZERO) {
                let accepted = "the US dollars for one of the balance's currency, more than 0";
                self.add(table.join("usd_rate"), "not more than 0", accepted);
            }
            let is_fingerprint =
                |text: &str| text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !account.fingerprints().all(is_fingerprint) {
                // The text may be a key that was meant to be told by its fingerprint.
                let accepted = "16 hex digits each, with spaces between, as `taffrail usage --by key` shows them";
                self.add(table.join("key_fingerprints"), "not fingerprints", accepted);
            }
        }
    }

    fn receipts(&mut self, config: &Config) {
        let receipts = &config.receipts;
        let key = |name: &str| KeyPath::new(["receipts", name]);
        self.not_zero(key("after"), receipts.after);
        if !(1..=30).contains(&receipts.tries) {
            let what = format!("{} is no number of tries", receipts.tries);
            self.add(key("tries"), what, "1 to 30");
        }
        if receipts.lookback <= receipts.after || receipts.lookback > receipts::LOOKBACK_MAX {
            let what = "no row would be asked about, or more than providers tell of";
            self.add(
                key("lookback"),
                what,
                "more than receipts.after, and at most 89d",
            );
        }
    }

    fn jobs(&mut self, config: &Config) {
        let jobs = &config.jobs;
        let key = |name: &str| KeyPath::new(["jobs", name]);
        self.not_zero(key("followup_after"), jobs.followup_after);
        for (name, deadline) in [
            ("deadline", jobs.deadline),
            ("batch_deadline", jobs.batch_deadline),
            ("training_deadline", jobs.training_deadline),
        ] {
            self.not_zero(key(name), deadline);
            let accepted = format!("less than {name}");
            if jobs.followup_after >= deadline && !deadline.is_zero() {
                let problem = format!("not before {name}, so no such job would be followed up");
                self.add(key("followup_after"), problem, &accepted);
            }
            if jobs.join_grace >= deadline && !deadline.is_zero() {
                let problem = format!("not before {name}, so no half would be waited for");
                self.add(key("join_grace"), problem, accepted);
            }
        }
    }

    fn retention(&mut self, config: &Config) {
        /// Rows are dropped by the day.
        const LEAST: Duration = Duration::from_hours(24);
        let retention = &config.retention;
        let key = |name: &str| KeyPath::new(["retention", name]);
        for (name, duration) in [
            ("logs", retention.logs),
            ("aggregates", retention.aggregates),
        ] {
            if duration < LEAST {
                self.add(key(name), "less than a day", "1d or more");
            }
        }
        /// Bills of 30 days are told from readings.
        const LEAST_BALANCES: Duration = Duration::from_hours(31 * 24);
        if retention.balances < LEAST_BALANCES {
            let what = "too short to tell the bills of a month from";
            self.add(key("balances"), what, "31d or more");
        }
        if retention.aggregates < retention.logs {
            self.add(
                key("aggregates"),
                "shorter than logs, which aggregates outlive",
                "logs or more",
            );
        }
    }

    /// Files that are read at start.
    fn files(&mut self, config: &Config) {
        let proxy = &config.proxy;
        for (section, name, file) in [
            ("proxy", "upstream_ca_file", &proxy.upstream_ca_file),
            ("prices", "overlay_file", &config.prices.overlay_file),
        ] {
            if let Some(path) = file
                && let Err(what) = check_file(path)
            {
                let accepted = "the path of a readable file";
                self.add(KeyPath::new([section, name]), what, accepted);
            }
        }
    }

    fn injector(&mut self, config: &Config) {
        let injector = &config.injector;
        let key = |name: &str| KeyPath::new(["injector", name]);
        for (name, duration) in [
            ("certificate_lifetime", injector.certificate_lifetime),
            ("check_interval", injector.check_interval),
        ] {
            self.not_zero(key(name), duration);
        }
        // Renewed when a third is left, which the overlap and a few looks must fit into.
        let looks = injector.check_interval.saturating_mul(2);
        let renewing = injector.certificate_overlap.saturating_add(looks);
        if renewing >= injector.certificate_lifetime / 3 {
            self.add(
                key("certificate_lifetime"),
                "too short for certificate_overlap and check_interval",
                "more than three times certificate_overlap and twice check_interval",
            );
        }
        /// Clients take no certificate that holds for much longer, and calendars end.
        const LIFETIME_MAX: Duration = Duration::from_hours(10 * 365 * 24);
        if injector.certificate_lifetime > LIFETIME_MAX {
            self.add(key("certificate_lifetime"), "too long", "10y or less");
        }
        let accepted = "tls_cert_file and tls_key_file together, or neither";
        match (&injector.tls_cert_file, &injector.tls_key_file) {
            (Some(_), None) => self.add(key("tls_cert_file"), "set without tls_key_file", accepted),
            (None, Some(_)) => self.add(key("tls_key_file"), "set without tls_cert_file", accepted),
            _ => {}
        }
        if config.role != Role::Injector {
            return;
        }
        let what = match &injector.sidecar_file {
            None => "missing, and there is nothing to inject".to_owned(),
            Some(path) => match Sidecar::read(path) {
                Ok(_) => return,
                Err(error) => error.to_string(),
            },
        };
        let accepted = "a JSON file with container, volumes, ports, native, providers and \
                        environment, as the chart makes it";
        self.add(key("sidecar_file"), what, accepted);
    }

    fn log(&mut self, config: &Config) {
        if telemetry::parse_level(&config.log.level).is_err() {
            self.add(
                KeyPath::new(["log", "level"]),
                format!("{:?} is not a filter", config.log.level),
                "error, warn, info, debug, trace, or directives such as \
                 \"info,taffrail::store=debug\"",
            );
        }
    }

    fn not_zero(&mut self, key: KeyPath, duration: Duration) {
        if duration.is_zero() {
            self.add(key, "zero", "more than zero");
        }
    }

    fn url(&mut self, key: KeyPath, url: &str) {
        if let Err(error) = Upstream::parse(url) {
            self.add(key, error.to_string(), UpstreamUrlError::ACCEPTED);
        }
    }
}

const CRON_ACCEPTED: &str = "six fields in UTC: second, minute, hour, day of the month, month, \
                             day of the week; such as \"0 0 */6 * * *\"";

/// A sentence of another library as a part of ours.
fn lower_case(sentence: &impl ToString) -> String {
    let sentence = sentence.to_string();
    sentence.trim_end_matches('.').to_lowercase()
}

/// Whether two listeners cannot both be had. Port 0 is any free one.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let is_any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && one.port() != 0 && (is_any || one.ip() == other.ip())
}

fn check_file(path: &Path) -> Result<(), String> {
    let cannot = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let file = std::fs::File::open(path).map_err(cannot)?;
    if file.metadata().map_err(cannot)?.is_dir() {
        return Err(format!("{} is a directory", path.display()));
    }
    Ok(())
}

/// Whether a label can stand beside ours; if not, what is wrong and what is accepted.
fn check_label(label: &str) -> Result<(), (String, &'static str)> {
    match check_attribution_label(label) {
        Err(LabelError::Malformed) => {
            let accepted = "letters, digits and _, no digit first, not starting with __";
            Err((format!("{label:?} is not a label name"), accepted))
        }
        Err(error @ LabelError::Reserved) => {
            let accepted = "a label that neither Taffrail nor Prometheus sets";
            Err((format!("{label:?} {error}"), accepted))
        }
        Ok(()) if Dimension::NAMED.iter().any(|own| own.as_str() == label) => {
            let accepted = "a label that is no dimension of `taffrail usage --by`";
            Err((
                format!("{label:?} is a dimension of usage already"),
                accepted,
            ))
        }
        Ok(()) => Ok(()),
    }
}

fn is_provider_name(name: &str) -> bool {
    let is_first = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    let is_name_byte =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    is_first && name.len() <= PROVIDER_NAME_CHARS_MAX && name.bytes().all(is_name_byte)
}

fn built_in_names() -> String {
    provider::BUILTIN.join(", ")
}

fn known_names(config: &Config) -> String {
    let declared = config.providers.keys().map(String::as_str);
    let declared = declared.filter(|name| !provider::BUILTIN.contains(name));
    let vendors = provider::BUILTIN
        .iter()
        .copied()
        .filter(|name| provider::builtin(name).is_some_and(|provider| provider.label() == *name));
    let mut names: Vec<&str> = vendors.chain(declared).collect();
    let tell_balances = balance::VENDORS.iter().copied();
    names.extend(tell_balances.filter(|name| !provider::BUILTIN.contains(name)));
    names.dedup();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_break_no_rule() {
        assert_eq!(findings(&Config::default()), []);
    }

    #[test]
    fn listeners_overlap_where_the_system_says_so() {
        let overlap =
            |one: &str, other: &str| overlap(one.parse().unwrap(), other.parse().unwrap());
        assert!(overlap("127.0.0.1:80", "127.0.0.1:80"));
        assert!(overlap("0.0.0.0:80", "127.0.0.1:80"));
        assert!(overlap("127.0.0.1:80", "[::]:80"));
        assert!(!overlap("127.0.0.1:80", "127.0.0.2:80"));
        assert!(!overlap("127.0.0.1:80", "127.0.0.1:81"));
        assert!(!overlap("127.0.0.1:0", "127.0.0.1:0"));
    }
}
