//! The line of a request: what it was for, how it came out and how long it took, in text or JSON as tracing writes its
//! own. No raw path, no header and no id: of those a log could be robbed.

use std::fmt::Display;
use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

use chrono::DateTime;
use edgekeep_core::Timestamp;
use edgekeep_core::config::LogFormat;
use edgekeep_core::exchange::Summary;

use crate::gateway::clock::now;

/// A record of a request, on its way to becoming a line.
pub struct AccessLine {
    at: Timestamp,
    client: Option<IpAddr>,
    status: u16,
    /// Nothing is known of a request that could not be read.
    request: Option<Request>,
}

/// A request that was read.
pub struct Request {
    pub summary: Summary,
    pub method: http::Method,
    /// From the request's head received to the answer's end.
    pub took: Duration,
    /// It did not come to its end: the client left, the origin broke off, or it was cut.
    pub aborted: bool,
}

impl AccessLine {
    pub fn of(request: Request) -> AccessLine {
        let Summary { client, status, .. } = request.summary;
        AccessLine { at: now(), client, status, request: Some(request) }
    }

    /// What came was no request, and was answered so.
    pub fn unread(client: Option<IpAddr>, status: u16) -> AccessLine {
        AccessLine { at: now(), client, status, request: None }
    }

    /// As a line at the end of `out`.
    pub(super) fn write(&self, format: LogFormat, clock: &mut Clock, out: &mut Vec<u8>) {
        let mut line = Fields::begin(format, clock.text(self.at), "INFO", "access", "", out);
        if let Some(client) = self.client {
            line.plain("client", client);
        }
        match &self.request {
            None => {
                line.text("route", "-");
                line.number("status", self.status.into());
            }
            Some(request) => {
                line.plain("method", &request.method);
                line.text("route", request.summary.route());
                line.number("status", self.status.into());
                if let Some(user) = request.summary.user() {
                    line.text("user", &user);
                }
                line.number("micros", u64::try_from(request.took.as_micros()).unwrap_or(u64::MAX));
                if request.aborted {
                    line.raw("aborted", "true");
                }
            }
        }
        line.end();
    }
}

/// Says how many lines are missing before this one.
pub(super) fn write_dropped(format: LogFormat, clock: &mut Clock, count: u64, out: &mut Vec<u8>) {
    let message = "lines were dropped";
    let mut line = Fields::begin(format, clock.text(now()), "WARN", "log", message, out);
    line.number("count", count);
    line.end();
}

/// A line as tracing's two formats have it, field by field.
struct Fields<'a> {
    format: LogFormat,
    target: &'static str,
    out: &'a mut Vec<u8>,
}

impl<'a> Fields<'a> {
    fn begin(
        format: LogFormat,
        time: &str,
        level: &'static str,
        target: &'static str,
        message: &'static str,
        out: &'a mut Vec<u8>,
    ) -> Fields<'a> {
        let mut line = Fields { format, target, out };
        match format {
            LogFormat::Text => {
                line.put(format_args!("{time} {level:>5} {target}:"));
                if !message.is_empty() {
                    line.put(format_args!(" {message}"));
                }
            }
            LogFormat::Json => {
                line.put(format_args!("{{\"timestamp\":\"{time}\",\"level\":\"{level}\""));
                if !message.is_empty() {
                    line.text("message", message);
                }
            }
        }
        line
    }

    /// Writing to a vector does not fail.
    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        let _ = self.out.write_fmt(text);
    }

    /// A value that is text in JSON, and has no character that would need escaping.
    fn plain(&mut self, name: &str, value: impl Display) {
        match self.format {
            LogFormat::Text => self.put(format_args!(" {name}={value}")),
            LogFormat::Json => self.put(format_args!(",\"{name}\":\"{value}\"")),
        }
    }

    fn text(&mut self, name: &str, value: &str) {
        match self.format {
            LogFormat::Text => self.put(format_args!(" {name}={value:?}")),
            LogFormat::Json => {
                self.put(format_args!(",\"{name}\":"));
                let _ = serde_json::to_writer(&mut *self.out, value);
            }
        }
    }

    fn number(&mut self, name: &str, value: u64) {
        self.raw(name, value);
    }

    /// Written alike in both.
    fn raw(&mut self, name: &str, value: impl Display) {
        match self.format {
            LogFormat::Text => self.put(format_args!(" {name}={value}")),
            LogFormat::Json => self.put(format_args!(",\"{name}\":{value}")),
        }
    }

    fn end(mut self) {
        if self.format == LogFormat::Json {
            let target = self.target;
            self.put(format_args!(",\"target\":\"{target}\"}}"));
        }
        self.out.push(b'\n');
    }
}

/// A time as text, RFC 3339 in UTC. The part down to the second is made once a second.
#[derive(Default)]
pub(super) struct Clock {
    second: u64,
    /// Of that second.
    prefix: String,
    text: String,
}

impl Clock {
    fn text(&mut self, at: Timestamp) -> &str {
        let (second, millis) = (at.0 / 1000, at.0 % 1000);
        if second != self.second || self.prefix.is_empty() {
            let time = i64::try_from(second).ok().and_then(|second| DateTime::from_timestamp(second, 0));
            self.prefix = time.unwrap_or_default().format("%Y-%m-%dT%H:%M:%S").to_string();
            self.second = second;
        }
        self.text.clear();
        self.text.push_str(&self.prefix);
        let _ = std::fmt::Write::write_fmt(&mut self.text, format_args!(".{millis:03}Z"));
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_as_tracings_do_in_both_formats() {
        let line = AccessLine { at: Timestamp(1_767_225_599_007), ..AccessLine::unread("192.0.2.1".parse().ok(), 400) };
        let written = |format| {
            let mut out = Vec::new();
            line.write(format, &mut Clock::default(), &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            written(LogFormat::Text),
            "2025-12-31T23:59:59.007Z  INFO access: client=192.0.2.1 route=\"-\" status=400\n"
        );
        assert_eq!(
            written(LogFormat::Json),
            "{\"timestamp\":\"2025-12-31T23:59:59.007Z\",\"level\":\"INFO\",\"client\":\"192.0.2.1\",\"route\":\"-\",\
             \"status\":400,\"target\":\"access\"}\n"
        );
    }

    #[test]
    fn text_from_outside_cannot_end_its_field() {
        let mut out = Vec::new();
        let mut line = Fields::begin(LogFormat::Json, "t", "INFO", "access", "", &mut out);
        line.text("route", "/a\"b\nc");
        line.end();
        let text = String::from_utf8(out).unwrap();
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["route"], "/a\"b\nc");
        let mut out = Vec::new();
        let mut line = Fields::begin(LogFormat::Text, "t", "INFO", "access", "", &mut out);
        line.text("route", "/a\"b\nc");
        line.end();
        assert_eq!(String::from_utf8(out).unwrap(), "t  INFO access: route=\"/a\\\"b\\nc\"\n");
    }

    #[test]
    fn each_second_has_its_own_prefix() {
        let mut clock = Clock::default();
        assert_eq!(clock.text(Timestamp(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(clock.text(Timestamp(999)), "1970-01-01T00:00:00.999Z");
        assert_eq!(clock.text(Timestamp(1000)), "1970-01-01T00:00:01.000Z");
    }
}
