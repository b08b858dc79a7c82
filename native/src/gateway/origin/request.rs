//! A request's head as an origin gets it: the client's lines that core leaves in, core's own, and one framing, written
//! straight into the bytes to send.

use std::io::Write;

use edgekeep_core::http::HeaderEdits;
use http::header::{CONTENT_LENGTH, EXPECT, HOST, TE, UPGRADE};
use http::request::Parts;
use http_body::Body;

use crate::gateway::upload::Attempt;

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
    pub fn of(body: &Attempt) -> RequestFraming {
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
        out.extend_from_slice(parts.uri.path_and_query().map_or("/", |target| target.as_str()).as_bytes());
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
    value.iter().all(|byte| (*byte >= b' ' && *byte != 0x7f) || *byte == b'\t')
}
