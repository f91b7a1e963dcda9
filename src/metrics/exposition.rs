//! The three exposition formats and the choice between them.
//!
//! One model, the library's protobuf form, is sorted and then written as text 0.0.4, OpenMetrics
//! 1.0.0 or delimited protobuf, so that the three say the same in the same order. The bounds of
//! buckets are written as OpenMetrics has them (`le="1.0"`) in both texts: Prometheus makes the
//! same labels from the protobuf form, and so a server that changes the format sees no new series.
//!
//! Sources: Prometheus, "Exposition formats" (text 0.0.4 and protobuf); OpenMetrics 1.0.0,
//! "Text format" and "Numbers"; RFC 9110, section 12.5.1 (Accept).

use prometheus_client::encoding::prometheus_protobuf::prometheus_data_model::{
    Histogram, LabelPair, MetricFamily, MetricType,
};
use prost::Message;

/// A format of the exposition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4, which is what a request without preference gets.
    Text,
    /// OpenMetrics text 1.0.0.
    OpenMetrics,
    /// Protobuf: `io.prometheus.client.MetricFamily` messages, each after its length.
    Protobuf,
}

impl Format {
    /// Every format, the preferred ones first among those that a request likes alike.
    pub const ALL: &'static [Format] = &[Format::Text, Format::OpenMetrics, Format::Protobuf];

    /// The exact value of the `Content-Type` header; a server of version 3 refuses a scrape
    /// without it.
    pub const fn content_type(self) -> &'static str {
        match self {
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Protobuf => {
                "application/vnd.google.protobuf; \
                 proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }

    /// The format that an `Accept` header asks for: the one of the highest weight, then the one
    /// that is named most exactly, then the one that is named first.
    ///
    /// A format's weight is that of the most exact range that names it. Versions that are not
    /// offered (OpenMetrics 0.0.1, text 1.0.0) do not match. A header that allows none of the
    /// formats gets the default all the same, as RFC 9110 permits, because a scrape in the wrong
    /// format says more than a 406.
    pub fn negotiate(accept: &str) -> Format {
        let ranges: Vec<MediaRange> = split(accept, ',').filter_map(MediaRange::parse).collect();
        let mut best = (Match::NONE, Format::Text);
        for format in Format::ALL {
            let matches = ranges.iter().enumerate().filter_map(|(index, range)| {
                let precision = range.precision(*format)?;
                Some(Match {
                    weight: range.weight,
                    precision,
                    earliness: usize::MAX - index,
                })
            });
            let found = matches.max_by_key(|found| (found.precision, found.earliness));
            if let Some(found) = found.filter(|found| *found > best.0 && found.weight > 0) {
                best = (found, *format);
            }
        }
        best.1
    }
}

/// How well a format suits a request; the order of the fields is the order of comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Match {
    /// In thousandths.
    weight: u16,
    precision: u8,
    earliness: usize,
}

impl Match {
    const NONE: Match = Match {
        weight: 0,
        precision: 0,
        earliness: 0,
    };
}

/// One range of an `Accept` header.
#[derive(Debug)]
struct MediaRange {
    /// `type/subtype`, in lower case.
    essence: String,
    /// Names in lower case, values without quotes; `q` is not among them.
    parameters: Vec<(String, String)>,
    /// In thousandths.
    weight: u16,
}

impl MediaRange {
    /// Reads a range; `None` if it is malformed, which then counts for nothing.
    fn parse(text: &str) -> Option<MediaRange> {
        let mut pieces = split(text, ';');
        let essence = pieces.next()?.trim().to_ascii_lowercase();
        let (kind, subtype) = essence.split_once('/')?;
        if kind.is_empty() || subtype.is_empty() {
            return None;
        }
        let mut range = MediaRange {
            essence,
            parameters: Vec::new(),
            weight: 1000,
        };
        for piece in pieces.filter(|piece| !piece.trim().is_empty()) {
            let (name, value) = piece.split_once('=')?;
            let (name, value) = (name.trim().to_ascii_lowercase(), unquote(value.trim()));
            if name == "q" {
                range.weight = weight(&value)?;
            } else {
                range.parameters.push((name, value));
            }
        }
        Some(range)
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(key, _)| key == name)?;
        Some(found.1.as_str())
    }

    /// How exactly the range names `format`; `None` if it does not.
    fn precision(&self, format: Format) -> Option<u8> {
        let version = |offered: &str| match self.parameter("version") {
            Some(version) => (version == offered).then_some(3),
            None => Some(2),
        };
        match (self.essence.as_str(), format) {
            ("*/*", _) => Some(0),
            ("text/*", Format::Text) => Some(1),
            ("application/*", Format::OpenMetrics | Format::Protobuf) => Some(1),
            ("text/plain", Format::Text) => version("0.0.4"),
            ("application/openmetrics-text", Format::OpenMetrics) => version("1.0.0"),
            ("application/vnd.google.protobuf", Format::Protobuf) => {
                let is_ours = self.parameter("proto") == Some("io.prometheus.client.MetricFamily")
                    && self.parameter("encoding") == Some("delimited");
                is_ours.then_some(3)
            }
            _ => None,
        }
    }
}

/// A weight in thousandths: `0` to `1` with at most three decimals; `None` if it is not one.
fn weight(text: &str) -> Option<u16> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    if decimals.len() > 3 || !decimals.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let thousandths: u16 = format!("{decimals:0<3}").parse().ok()?;
    match whole {
        "0" => Some(thousandths),
        "1" if thousandths == 0 => Some(1000),
        _ => None,
    }
}

/// Splits at `separator` outside quoted strings.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.split(move |c: char| {
        if is_escaped {
            is_escaped = false;
        } else if c == '\\' && is_quoted {
            is_escaped = true;
        } else if c == '"' {
            is_quoted = !is_quoted;
        }
        c == separator && !is_quoted
    })
}

/// The text of a quoted string, or the token as it is.
fn unquote(value: &str) -> String {
    match value
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
    {
        Some(quoted) => quoted.replace('\\', ""),
        None => value.to_owned(),
    }
}

/// Whether an `Accept-Encoding` header allows gzip.
pub fn accepts_gzip(accept_encoding: &str) -> bool {
    let mut any = None;
    for piece in accept_encoding.split(',') {
        let (coding, parameter) = piece.split_once(';').unwrap_or((piece, ""));
        let weight = match parameter.trim().split_once('=') {
            Some((name, value)) if name.trim().eq_ignore_ascii_case("q") => weight(value.trim()),
            _ => Some(1000),
        };
        let is_allowed = weight.is_some_and(|weight| weight > 0);
        match coding.trim() {
            "*" => any = Some(is_allowed),
            coding if coding.eq_ignore_ascii_case("gzip") => return is_allowed,
            _ => {}
        }
    }
    any.unwrap_or(false)
}

/// Writes `families` in `format`, the series of each family in the order of their labels.
pub(super) fn render(mut families: Vec<MetricFamily>, format: Format) -> Vec<u8> {
    for family in &mut families {
        family
            .metric
            .sort_by(|a, b| pairs(&a.label).cmp(pairs(&b.label)));
    }
    match format {
        Format::Text => text(&families, Dialect::Prometheus).into_bytes(),
        Format::OpenMetrics => text(&families, Dialect::OpenMetrics).into_bytes(),
        Format::Protobuf => families
            .iter()
            .flat_map(Message::encode_length_delimited_to_vec)
            .collect(),
    }
}

fn pairs(labels: &[LabelPair]) -> impl Iterator<Item = (&str, &str)> {
    labels
        .iter()
        .map(|label| (label.name.as_str(), label.value.as_str()))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Prometheus,
    OpenMetrics,
}

fn text(families: &[MetricFamily], dialect: Dialect) -> String {
    let mut out = String::new();
    for family in families {
        let kind = match family.r#type() {
            MetricType::Counter => "counter",
            MetricType::Gauge => "gauge",
            MetricType::Histogram => "histogram",
            // The catalogue has no other types.
            _ => "untyped",
        };
        // OpenMetrics names the family, and the samples of a counter add the suffix.
        let described = match dialect {
            Dialect::OpenMetrics => family.name.trim_end_matches("_total"),
            Dialect::Prometheus => &family.name,
        };
        out.push_str("# HELP ");
        out.push_str(described);
        out.push(' ');
        escape(&mut out, &family.help, dialect == Dialect::OpenMetrics);
        out.push_str("\n# TYPE ");
        out.push_str(described);
        out.push(' ');
        out.push_str(kind);
        out.push('\n');
        for metric in &family.metric {
            if let Some(histogram) = &metric.histogram {
                histogram_samples(&mut out, &family.name, &metric.label, histogram);
            }
            let counter = metric.counter.as_ref().map(|counter| counter.value);
            let gauge = metric.gauge.as_ref().map(|gauge| gauge.value);
            if let Some(value) = counter.or(gauge) {
                sample(
                    &mut out,
                    &family.name,
                    "",
                    &metric.label,
                    None,
                    &number(value),
                );
            }
        }
    }
    if dialect == Dialect::OpenMetrics {
        out.push_str("# EOF\n");
    }
    out
}

fn histogram_samples(out: &mut String, name: &str, labels: &[LabelPair], histogram: &Histogram) {
    for bucket in &histogram.bucket {
        let bound = bound(bucket.upper_bound);
        let count = bucket.cumulative_count.to_string();
        sample(out, name, "_bucket", labels, Some(&bound), &count);
    }
    sample(
        out,
        name,
        "_sum",
        labels,
        None,
        &number(histogram.sample_sum),
    );
    let count = histogram.sample_count.to_string();
    sample(out, name, "_count", labels, None, &count);
}

fn sample(
    out: &mut String,
    name: &str,
    suffix: &str,
    labels: &[LabelPair],
    bound: Option<&str>,
    value: &str,
) {
    out.push_str(name);
    out.push_str(suffix);
    let mut separator = '{';
    for (name, value) in pairs(labels).chain(bound.map(|bound| ("le", bound))) {
        out.push(separator);
        out.push_str(name);
        out.push_str("=\"");
        escape(out, value, true);
        out.push('"');
        separator = ',';
    }
    if separator == ',' {
        out.push('}');
    }
    out.push(' ');
    out.push_str(value);
    out.push('\n');
}

/// Escapes a label value, or a help text, in which text 0.0.4 leaves quotes alone.
fn escape(out: &mut String, text: &str, quotes: bool) {
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            other => out.push(other),
        }
    }
}

/// A value, as the shortest decimal that reads back the same.
fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else {
        value.to_string()
    }
}

/// The upper bound of a bucket in the canonical form of OpenMetrics, which is what Prometheus
/// makes of the protobuf form: whole numbers with `.0`, small ones with an exponent of two
/// digits (`2.5e-05`).
fn bound(value: f64) -> String {
    let mut text = number(value);
    if value != 0.0 && value.abs() < 1e-4 {
        text = format!("{value:e}");
        if let Some((digits, exponent)) = text.split_once("e-") {
            text = format!("{digits}e-{exponent:0>2}");
        }
    } else if value.is_finite() && !text.contains('.') {
        text.push_str(".0");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_format_of_an_accept_header_is_chosen() {
        use Format::{OpenMetrics, Protobuf, Text};
        let protobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
        let cases: &[(&str, Format)] = &[
            ("", Text),
            ("*/*", Text),
            ("text/*", Text),
            ("application/*", OpenMetrics),
            ("text/plain", Text),
            ("text/plain;version=0.0.4", Text),
            ("TEXT/PLAIN; Version=0.0.4", Text),
            ("application/openmetrics-text", OpenMetrics),
            (
                "application/openmetrics-text; version=\"1.0.0\"",
                OpenMetrics,
            ),
            ("application/openmetrics-text;version=0.0.1", Text),
            (
                "application/openmetrics-text;version=0.0.1, */*;q=0.1",
                Text,
            ),
            ("application/openmetrics-text, */*", OpenMetrics),
            (
                "application/openmetrics-text;q=0.5, text/plain;q=0.4",
                OpenMetrics,
            ),
            ("application/openmetrics-text;q=0.4, text/plain;q=0.5", Text),
            ("application/openmetrics-text, text/plain", OpenMetrics),
            ("text/plain, application/openmetrics-text", Text),
            // The most exact range sets the weight.
            (
                "application/openmetrics-text;version=1.0.0;q=0.1, application/openmetrics-text;q=0.9, text/plain;q=0.5",
                Text,
            ),
            (
                "*/*, application/openmetrics-text;q=0, text/plain;q=0",
                Protobuf,
            ),
            ("application/openmetrics-text;q=0", Text),
            ("image/png", Text),
            // Without its parameters it could be any message.
            ("application/vnd.google.protobuf", Text),
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text",
                Text,
            ),
            (protobuf, Protobuf),
            // Malformed ranges count for nothing.
            (
                "application/openmetrics-text;q=high, text/plain;q=0.1",
                Text,
            ),
            ("application/openmetrics-text;q=1.5, text/plain;q=0.1", Text),
            (
                "openmetrics, ;, /, application/openmetrics-text;q=0.001",
                OpenMetrics,
            ),
            // A browser.
            (
                "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
                Text,
            ),
            // Prometheus 2.42, plain and with native histograms.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                OpenMetrics,
            ),
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Protobuf,
            ),
            // Prometheus 3.
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
                OpenMetrics,
            ),
            (
                "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.1",
                Text,
            ),
        ];
        for (accept, expected) in cases {
            assert_eq!(Format::negotiate(accept), *expected, "{accept}");
        }
    }

    #[test]
    fn every_content_type_asks_for_its_own_format() {
        for format in Format::ALL {
            assert_eq!(Format::negotiate(format.content_type()), *format);
        }
    }

    #[test]
    fn gzip_is_used_where_it_is_accepted() {
        for accept in [
            "gzip",
            "GZip;q=0.5",
            "br, gzip",
            "*",
            "identity;q=0.5, *;q=0.1",
        ] {
            assert!(accepts_gzip(accept), "{accept}");
        }
        for accept in [
            "",
            "br",
            "gzip;q=0",
            "*, gzip;q=0",
            "*;q=0",
            "gzip;q=x",
            "x-gzip2",
        ] {
            assert!(!accepts_gzip(accept), "{accept}");
        }
    }

    #[test]
    fn bounds_are_written_as_prometheus_writes_them() {
        let cases = [
            (0.000_025, "2.5e-05"),
            (0.000_05, "5e-05"),
            (0.000_1, "0.0001"),
            (0.25, "0.25"),
            (1.0, "1.0"),
            (86_400.0, "86400.0"),
            (0.0, "0.0"),
            (f64::INFINITY, "+Inf"),
        ];
        for (value, expected) in cases {
            assert_eq!(bound(value), expected);
        }
    }

    #[test]
    fn values_are_written_in_full() {
        let cases = [
            (0.0, "0"),
            (3.0, "3"),
            (0.000_012, "0.000012"),
            (1_700_000_000.5, "1700000000.5"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
        ];
        for (value, expected) in cases {
            assert_eq!(number(value), expected);
        }
    }
}
