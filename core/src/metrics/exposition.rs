//! Metrics as text: Prometheus 0.0.4, and OpenMetrics 1.0 as a variant of it.
//!
//! They differ in the family name of counters, units, canonical floats, state sets and the final line. Names are OTel's
//! with Prometheus' rules applied: `http.server.request.duration` in seconds is `http_server_request_duration_seconds`.
//! Families must be written one after the other; label values may hold anything.

use std::fmt::Write;

use super::window::Merge;

/// The bucket edges of OTel's `http.server.request.duration`, in microseconds. 500 ms and 1 s, the alerts' thresholds,
/// are among them.
pub const BUCKETS: [u64; 14] = [
    5_000, 10_000, 25_000, 50_000, 75_000, 100_000, 250_000, 500_000, 750_000, 1_000_000, 2_500_000, 5_000_000,
    7_500_000, 10_000_000,
];

/// Exact counts at the standard edges: the other histogram's buckets do not end there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BucketCounts {
    /// Up to and including each edge, not cumulative; the last is what lies above all.
    counts: [u64; BUCKETS.len() + 1],
    sum_micros: u64,
}

impl BucketCounts {
    /// Counts one value in microseconds.
    pub fn record(&mut self, micros: u64) {
        let index = BUCKETS.partition_point(|edge| *edge < micros);
        if let Some(count) = self.counts.get_mut(index) {
            *count += 1;
        }
        self.sum_micros = self.sum_micros.saturating_add(micros);
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

impl Merge for BucketCounts {
    fn merge(&mut self, other: &BucketCounts) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.sum_micros = self.sum_micros.saturating_add(other.sum_micros);
    }
}

/// Which of the two texts is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TextFormat {
    #[default]
    Prometheus,
    OpenMetrics,
}

impl TextFormat {
    /// By the `Accept` header: OpenMetrics when it is asked for with at least the weight of plain text.
    pub fn negotiate(accept: &str) -> TextFormat {
        let (mut plain, mut open) = (0.0, 0.0);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or("").to_ascii_lowercase();
            let (mut weight, mut known) = (1.0, true);
            for parameter in parts {
                match parameter.split_once('=') {
                    Some(("q", text)) => weight = text.trim().parse::<f64>().unwrap_or(0.0).clamp(0.0, 1.0),
                    Some(("version", version)) if media == "application/openmetrics-text" => {
                        known = matches!(version.trim_matches('"'), "1.0.0" | "0.0.1");
                    }
                    _ => {}
                }
            }
            match media.as_str() {
                "application/openmetrics-text" if known => open = weight.max(open),
                "text/plain" | "text/*" | "*/*" => plain = weight.max(plain),
                _ => {}
            }
        }
        if open > 0.0 && open >= plain { TextFormat::OpenMetrics } else { TextFormat::Prometheus }
    }

    pub const fn content_type(self) -> &'static str {
        match self {
            TextFormat::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            TextFormat::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// What a family is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows. The name is given without `_total`.
    Counter,
    Gauge,
    /// One of several states is 1, the others are 0.
    StateSet,
    Histogram,
}

/// Writes one text. Each family's samples follow its [`Exposition::family`].
#[derive(Debug)]
pub struct Exposition {
    format: TextFormat,
    out: String,
    name: String,
    kind: Kind,
}

impl Exposition {
    pub fn new(format: TextFormat) -> Exposition {
        Exposition { format, out: String::with_capacity(4096), name: String::new(), kind: Kind::Gauge }
    }

    /// Begins a family. `name` ends in the unit, if it has one (`_seconds`); a counter's has no `_total`.
    pub fn family(&mut self, name: &str, kind: Kind, unit: Option<&str>, help: &str) {
        self.name = name.to_owned();
        self.kind = kind;
        let open = self.format == TextFormat::OpenMetrics;
        let suffix = if kind == Kind::Counter && !open { "_total" } else { "" };
        let type_name = match kind {
            Kind::Counter => "counter",
            Kind::StateSet if open => "stateset",
            Kind::Gauge | Kind::StateSet => "gauge",
            Kind::Histogram => "histogram",
        };
        let _ = writeln!(self.out, "# TYPE {name}{suffix} {type_name}");
        if let (true, Some(unit)) = (open, unit) {
            let _ = writeln!(self.out, "# UNIT {name} {unit}");
        }
        let _ = write!(self.out, "# HELP {name}{suffix} ");
        escape(&mut self.out, help, open);
        self.out.push('\n');
    }

    /// One sample of a counter or a gauge.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        let suffix = if self.kind == Kind::Counter { "_total" } else { "" };
        self.line(suffix, labels, None, value);
    }

    /// One sample for each state; the label is the family's name, as OpenMetrics has it.
    pub fn states(&mut self, labels: &[(&str, &str)], states: &[&str], current: &str) {
        let name = self.name.clone();
        for state in states {
            self.line("", labels, Some((&name, state)), f64::from(u8::from(*state == current)));
        }
    }

    /// A histogram in seconds.
    pub fn histogram(&mut self, labels: &[(&str, &str)], counts: &BucketCounts) {
        let mut below = 0;
        for (edge, count) in BUCKETS.iter().zip(&counts.counts) {
            below += count;
            let edge = self.number(*edge as f64 / 1e6, true);
            self.line("_bucket", labels, Some(("le", &edge)), below as f64);
        }
        let all = counts.count() as f64;
        self.line("_bucket", labels, Some(("le", "+Inf")), all);
        self.line("_sum", labels, None, counts.sum_micros as f64 / 1e6);
        self.line("_count", labels, None, all);
    }

    /// The whole text.
    pub fn finish(mut self) -> String {
        if self.format == TextFormat::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], last: Option<(&str, &str)>, value: f64) {
        let _ = write!(self.out, "{}{suffix}", self.name);
        let mut separator = '{';
        for (name, value) in labels.iter().copied().chain(last) {
            let _ = write!(self.out, "{separator}{name}=\"");
            escape(&mut self.out, value, true);
            self.out.push('"');
            separator = ',';
        }
        if separator == ',' {
            self.out.push('}');
        }
        let value = self.number(value, false);
        let _ = writeln!(self.out, " {value}");
    }

    /// A number as both texts read it. As a label, OpenMetrics wants whole numbers with `.0`.
    fn number(&self, value: f64, label: bool) -> String {
        if value.is_nan() {
            "NaN".to_owned()
        } else if value.is_infinite() {
            (if value > 0.0 { "+Inf" } else { "-Inf" }).to_owned()
        } else if label && self.format == TextFormat::OpenMetrics {
            format!("{value:?}")
        } else {
            value.to_string()
        }
    }
}

/// Backslash and line feed are escaped everywhere, quotes where the text is quoted.
fn escape(out: &mut String, text: &str, quotes: bool) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            _ => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    fn written(format: TextFormat) -> String {
        let mut text = Exposition::new(format);
        text.family("edgekeep_auth_attempts", Kind::Counter, None, "Requests with a \"credential\".\nTwo \\ lines.");
        text.sample(&[("result", "admitted")], 3.0);
        text.family("edgekeep_origin_state", Kind::StateSet, None, "What an origin is used for.");
        text.states(&[("origin", "a\"\\\n")], &["up", "down"], "down");
        text.family("process_resident_memory_bytes", Kind::Gauge, Some("bytes"), "Memory.");
        text.sample(&[], 0.5);
        text.finish()
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_plain_text_is_prometheus_0_0_4() {
        assert_eq!(
            written(TextFormat::Prometheus),
            r#"# TYPE edgekeep_auth_attempts_total counter
# HELP edgekeep_auth_attempts_total Requests with a "credential".\nTwo \\ lines.
edgekeep_auth_attempts_total{result="admitted"} 3
# TYPE edgekeep_origin_state gauge
# HELP edgekeep_origin_state What an origin is used for.
edgekeep_origin_state{origin="a\"\\\n",edgekeep_origin_state="up"} 0
edgekeep_origin_state{origin="a\"\\\n",edgekeep_origin_state="down"} 1
# TYPE process_resident_memory_bytes gauge
# HELP process_resident_memory_bytes Memory.
process_resident_memory_bytes 0.5
"#
        );
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn openmetrics_differs_where_its_standard_does() {
        assert_eq!(
            written(TextFormat::OpenMetrics),
            r#"# TYPE edgekeep_auth_attempts counter
# HELP edgekeep_auth_attempts Requests with a \"credential\".\nTwo \\ lines.
edgekeep_auth_attempts_total{result="admitted"} 3
# TYPE edgekeep_origin_state stateset
# HELP edgekeep_origin_state What an origin is used for.
edgekeep_origin_state{origin="a\"\\\n",edgekeep_origin_state="up"} 0
edgekeep_origin_state{origin="a\"\\\n",edgekeep_origin_state="down"} 1
# TYPE process_resident_memory_bytes gauge
# UNIT process_resident_memory_bytes bytes
# HELP process_resident_memory_bytes Memory.
process_resident_memory_bytes 0.5
# EOF
"#
        );
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn histogram_buckets_are_cumulative_and_include_their_edge() {
        let mut counts = BucketCounts::default();
        for micros in [0, 5_000, 5_001, 500_000, 500_001, 1_000_000, 10_000_001] {
            counts.record(micros);
        }
        let mut text = Exposition::new(TextFormat::OpenMetrics);
        text.family("http_server_request_duration_seconds", Kind::Histogram, Some("seconds"), "Latency.");
        text.histogram(&[("http_route", "/a")], &counts);
        let text = text.finish();
        let name = "http_server_request_duration_seconds";
        for line in [
            r#"_bucket{http_route="/a",le="0.005"} 2"#,
            r#"_bucket{http_route="/a",le="0.01"} 3"#,
            r#"_bucket{http_route="/a",le="0.5"} 4"#,
            r#"_bucket{http_route="/a",le="0.75"} 5"#,
            r#"_bucket{http_route="/a",le="1.0"} 6"#,
            r#"_bucket{http_route="/a",le="10.0"} 6"#,
            r#"_bucket{http_route="/a",le="+Inf"} 7"#,
            r#"_count{http_route="/a"} 7"#,
            r#"_sum{http_route="/a"} 12.010003"#,
        ] {
            assert!(text.lines().any(|found| found == format!("{name}{line}")), "{line} in\n{text}");
        }
        let mut plain = Exposition::new(TextFormat::Prometheus);
        plain.family("d_seconds", Kind::Histogram, Some("seconds"), "Latency.");
        plain.histogram(&[], &counts);
        assert!(plain.finish().contains("d_seconds_bucket{le=\"1\"} 6\n"));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_format_is_what_the_scraper_prefers() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;\
                          q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, format) in [
            (prometheus, TextFormat::OpenMetrics),
            ("", TextFormat::Prometheus),
            ("*/*", TextFormat::Prometheus),
            ("text/plain", TextFormat::Prometheus),
            ("application/openmetrics-text", TextFormat::OpenMetrics),
            ("application/openmetrics-text; version=2.0.0, text/plain;q=0.1", TextFormat::Prometheus),
            ("application/openmetrics-text;q=0.1, text/plain", TextFormat::Prometheus),
            ("application/openmetrics-text;q=0", TextFormat::Prometheus),
            ("text/html", TextFormat::Prometheus),
        ] {
            assert_eq!(TextFormat::negotiate(accept), format, "{accept}");
        }
        assert!(TextFormat::OpenMetrics.content_type().contains("version=1.0.0"));
    }
}
