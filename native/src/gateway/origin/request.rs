//! A request's head as an origin gets it: the client's lines that core leaves in, core's own, and one framing, written
//! straight into the bytes to send.

use std::io::Write;

use edgekeep_core::http::HeaderEdits;
use http::header::{CONTENT_LENGTH, EXPECT, HOST, TE, UPGRADE};
use http::request::Parts;
use http_body::Body;

/// What a head is written from.
pub struct RequestLines<'a> {
    pub parts: &'a Parts,
    pub edits: &'a HeaderEdits,
    /// Instead of the client's.
    pub host: Option<&'a str>,
    /// Of an origin whose client named no host.
    pub authority: &'a str,
    /// The client's upgrade goes on to the origin.
    pub upgrade: bool,
}

/// How an origin sees where the body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestFraming {
    /// There is none.
    None,
    Length(u64),
    Chunked,
}

impl RequestFraming {
    pub fn of(body: &impl Body) -> RequestFraming {
        match body.size_hint().exact() {
            _ if body.is_end_stream() => RequestFraming::None,
            Some(length) => RequestFraming::Length(length),
            None => RequestFraming::Chunked,
        }
    }
}

impl RequestLines<'_> {
    /// Appends the head. Names and values of the client's are what hyper took for such; what core made of them is looked
    /// at again.
    pub fn write(&self, framing: RequestFraming, out: &mut Vec<u8>) {
        let RequestLines { parts, edits, .. } = self;
        out.extend_from_slice(parts.method.as_str().as_bytes());
        out.push(b' ');
        let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
        // An absolute one may have no path.
        if !target.starts_with(['/', '*']) {
            out.push(b'/');
        }
        out.extend_from_slice(target.as_bytes());
        out.extend_from_slice(b" HTTP/1.1\r\n");
        // A host in the target stands before `Host` (RFC 9112 §3.2.2).
        let named = self.host.or(parts.uri.authority().map(http::uri::Authority::as_str)).map(str::as_bytes);
        let host = named.filter(|host| is_value(host)).or(parts.headers.get(HOST).map(|host| host.as_bytes()));
        line(out, "host", host.unwrap_or(self.authority.as_bytes()));
        for (name, value) in &parts.headers {
            if name != HOST && name != CONTENT_LENGTH && name != EXPECT && edits.keeps(name.as_str()) {
                line(out, name.as_str(), value.as_bytes());
            }
        }
        // Core sets none of a request's names twice.
        for (name, value, _) in edits.lines() {
            if is_value(value) {
                line(out, name, value);
            }
        }
        self.connection(out);
        match framing {
            // Origins may refuse a request without a length whose method has a body (411).
            RequestFraming::None if matches!(parts.method.as_str(), "POST" | "PUT" | "PATCH") => {
                line(out, "content-length", b"0");
            }
            RequestFraming::None => {}
            // Writing to a vector cannot fail.
            RequestFraming::Length(length) => drop(write!(out, "content-length: {length}\r\n")),
            RequestFraming::Chunked => line(out, "transfer-encoding", b"chunked"),
        }
        out.extend_from_slice(b"\r\n");
    }

    /// What is said anew on this connection: an upgrade, or that the client takes trailers.
    fn connection(&self, out: &mut Vec<u8>) {
        let headers = &self.parts.headers;
        if self.upgrade {
            line(out, "connection", b"upgrade");
            if let Some(protocol) = headers.get(UPGRADE) {
                line(out, "upgrade", protocol.as_bytes());
            }
        } else if headers.get(TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers")) {
            line(out, "te", b"trailers");
            line(out, "connection", b"te");
        }
    }
}

fn line(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Whether a value can stand in a line (RFC 9110 §5.5): above all, none ends it.
fn is_value(value: &[u8]) -> bool {
    // Looked at to its end, without a branch: most are values.
    !value.iter().fold(false, |bad, byte| bad | (*byte < b' ') & (*byte != b'\t') | (*byte == 0x7f))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn written(request: http::request::Builder, edits: &HeaderEdits, framing: RequestFraming) -> String {
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let upgrade = parts.headers.get("upgrade").is_some();
        let lines = RequestLines { parts: &parts, edits, host: None, authority: "origin:8080", upgrade };
        let mut out = Vec::new();
        lines.write(framing, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_core_takes_out_is_not_written_and_what_it_sets_stands_once() {
        let request = Request::get("/a?b=c").header("host", "app").header("accept", "x").header("accept", "y");
        let request = request.header("x-edgekeep-user", "spoofed").header("x-named", "1").header("cookie", "a=1");
        let request = request.header("te", "gzip").header("keep-alive", "5").header("expect", "100-continue");
        let mut edits = HeaderEdits::default();
        edits.remove_internal = true;
        edits.remove("x-named");
        edits.set("cookie", "a=2");
        edits.set("x-edgekeep-user", "42");
        edits.add("x-added", "1");
        edits.set("x-bad", "ends\r\nhere: 1");
        assert_eq!(
            written(request, &edits, RequestFraming::None),
            "GET /a?b=c HTTP/1.1\r\nhost: app\r\naccept: x\r\naccept: y\r\ncookie: a=2\r\nx-edgekeep-user: 42\r\n\
             x-added: 1\r\n\r\n"
        );
    }

    #[test]
    fn the_host_is_the_targets_then_the_clients_then_the_origins() {
        let none = HeaderEdits::default();
        for (request, host) in [
            (Request::get("http://target:81/").header("host", "client"), "target:81"),
            (Request::get("/").header("host", "client"), "client"),
            (Request::get("/"), "origin:8080"),
        ] {
            let head = written(request, &none, RequestFraming::None);
            assert_eq!(head, format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n"));
        }
    }

    #[test]
    fn every_target_has_a_path() {
        for (target, sent) in
            [("http://a", "/"), ("http://a?b", "/?b"), ("http://a/b?c", "/b?c"), ("*", "*"), ("a:1", "/")]
        {
            let head =
                written(Request::options(target).header("host", "a"), &HeaderEdits::default(), RequestFraming::None);
            assert!(head.starts_with(&format!("OPTIONS {sent} HTTP/1.1\r\n")), "{target}: {head}");
        }
    }

    #[test]
    fn framing_upgrades_and_trailers_are_said_anew() {
        let none = HeaderEdits::default();
        let lied = || Request::put("/").header("host", "a").header("content-length", "7");
        for (request, framing, rest) in [
            (lied(), RequestFraming::Length(3), "content-length: 3"),
            (lied(), RequestFraming::Chunked, "transfer-encoding: chunked"),
            (lied(), RequestFraming::None, "content-length: 0"),
            (
                lied().header("te", "Trailers").header("connection", "te"),
                RequestFraming::Length(1),
                "te: trailers\r\nconnection: te\r\ncontent-length: 1",
            ),
            (
                lied().header("te", "trailers").header("upgrade", "websocket").header("connection", "upgrade"),
                RequestFraming::None,
                "connection: upgrade\r\nupgrade: websocket\r\ncontent-length: 0",
            ),
        ] {
            assert_eq!(written(request, &none, framing), format!("PUT / HTTP/1.1\r\nhost: a\r\n{rest}\r\n\r\n"));
        }
    }
}
