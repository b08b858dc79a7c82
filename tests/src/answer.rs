//! An answer, and what scenarios say about answers. A long body is counted and summed but not kept.

use std::io::Read;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::client::read_some;

/// How much of a body is kept; the rest is only counted.
const KEPT: usize = 1024 * 1024;
/// A head is read until its empty line; a longer one is no answer of ours.
const MAX_HEAD: usize = 256 * 1024;

/// What must stand in no answer: words of a panic or a stack trace, ours or the Worker's.
const NEVER_SAID: [&str; 7] =
    ["panicked at", "RUST_BACKTRACE", "stack backtrace", "unreachable", "wasm-function", "    at ", ".rs:"];

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// The request's method and target, for messages.
    what: String,
    pub status: u16,
    headers: Vec<(String, String)>,
    /// The first mebibyte of the body.
    pub body: Vec<u8>,
    /// Of the whole body.
    pub tally: Tally,
}

/// Length and checksum of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    pub length: u64,
    fnv1a: u64,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally { length: 0, fnv1a: 0xcbf2_9ce4_8422_2325 }
    }
}

impl Tally {
    pub fn add(&mut self, data: &[u8]) {
        self.length += data.len() as u64;
        for byte in data {
            self.fnv1a = (self.fnv1a ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// FNV-1a, 64 bits as 16 hex digits.
    pub fn checksum(&self) -> String {
        format!("{:016x}", self.fnv1a)
    }
}

#[derive(Clone, Copy)]
enum Length {
    None,
    Known(u64),
    Chunked,
    ToTheEnd,
}

impl Answer {
    pub(crate) fn read(socket: &mut impl Read, what: &str, to_head: bool) -> Result<Answer> {
        let mut read = Vec::new();
        loop {
            let Head { status, headers, rest } = read_head(socket, &mut read)?;
            read = rest;
            if (100..200).contains(&status) && status != 101 {
                continue;
            }
            let length = length_of(status, &headers, to_head)?;
            let mut answer =
                Answer { what: what.to_owned(), status, headers, body: Vec::new(), tally: Tally::default() };
            answer.read_body(socket, read, length)?;
            answer.check_words()?;
            return Ok(answer);
        }
    }

    fn read_body(&mut self, socket: &mut impl Read, mut rest: Vec<u8>, length: Length) -> Result<()> {
        match length {
            Length::None => ensure!(rest.is_empty(), "{}: bytes after an answer without a body", self.what),
            Length::Known(total) => {
                let mut left = total;
                loop {
                    let now = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
                    let after = rest.split_off(now);
                    left -= now as u64;
                    self.take(&rest);
                    if left == 0 {
                        ensure!(after.is_empty(), "{}: bytes after the end of the body", self.what);
                        break;
                    }
                    rest.clear();
                    ensure!(read_some(socket, &mut rest)? > 0, "{}: the body ended {left} bytes early", self.what);
                }
            }
            Length::Chunked => loop {
                let line = read_line(socket, &mut rest)?;
                let size = line.split(';').next().unwrap_or_default().trim();
                let mut left = usize::from_str_radix(size, 16).with_context(|| format!("bad chunk size {size:?}"))?;
                if left == 0 {
                    while !read_line(socket, &mut rest)?.is_empty() {}
                    break;
                }
                while left > 0 {
                    if rest.is_empty() {
                        ensure!(read_some(socket, &mut rest)? > 0, "{}: a chunk ended early", self.what);
                    }
                    let after = rest.split_off(left.min(rest.len()));
                    left -= rest.len();
                    self.take(&rest);
                    rest = after;
                }
                ensure!(read_line(socket, &mut rest)?.is_empty(), "{}: a chunk without its end", self.what);
            },
            Length::ToTheEnd => loop {
                self.take(&rest);
                rest.clear();
                if read_some(socket, &mut rest)? == 0 {
                    break;
                }
            },
        }
        Ok(())
    }

    fn take(&mut self, data: &[u8]) {
        self.tally.add(data);
        let room = KEPT.saturating_sub(self.body.len());
        self.body.extend(data.iter().take(room));
    }

    /// Never a panic or a stack trace in an answer, whatever the scenario is about.
    fn check_words(&self) -> Result<()> {
        let text = self.text();
        for words in NEVER_SAID {
            // What the client sent comes back from /echo, and files of bytes hold anything.
            if self.header("x-demo-origin").is_none() && text.contains(words) {
                bail!("{}: the answer says {words:?}: {text}", self.what);
            }
        }
        Ok(())
    }

    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers(name).next()
    }

    /// Every line of the head, with names as they came.
    pub fn head(&self) -> &[(String, String)] {
        &self.headers
    }

    pub fn headers(&self, name: &str) -> impl Iterator<Item = &str> {
        self.headers.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The value of a cookie that the answer sets, and its attributes.
    pub fn set_cookie(&self, name: &str) -> Option<(String, String)> {
        self.headers("set-cookie").find_map(|line| {
            let (pair, attributes) = line.split_once(';').unwrap_or((line, ""));
            let (n, value) = pair.split_once('=')?;
            (n.trim() == name).then(|| (value.trim().to_owned(), attributes.trim().to_owned()))
        })
    }

    /// Which demo origin answered; `None` when it was Edgekeep itself.
    pub fn origin(&self) -> Option<&str> {
        self.header("x-demo-origin")
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("not JSON: {self}"))
    }

    pub fn expect(self, status: u16) -> Result<Answer> {
        ensure!(self.status == status, "expected {status}, found {self}");
        Ok(self)
    }

    /// A problem document of Edgekeep's own (RFC 9457), with what belongs to its status.
    pub fn problem(&self, status: u16, code: &str) -> Result<Value> {
        ensure!(self.status == status, "expected {status} {code}, found {self}");
        ensure!(self.origin().is_none(), "{self} came from an origin");
        ensure!(self.header("content-type") == Some("application/problem+json"), "no problem document: {self}");
        ensure!(self.header("cache-control") == Some("no-store"), "a refusal that may be stored: {self}");
        let document = self.json()?;
        ensure!(document["code"] == code, "expected {code}, found {self}");
        ensure!(document["type"] == format!("urn:edgekeep:problem:{code}"), "type of {self}");
        ensure!(document["status"] == status, "status of {self}");
        ensure!(document["title"].as_str().is_some_and(|title| !title.is_empty()), "title of {self}");
        match (status, code) {
            (401, "missing_credential") => {
                ensure!(self.header("www-authenticate") == Some("Bearer realm=\"edgekeep\""), "challenge of {self}");
            }
            (401, _) => {
                let challenge = self.header("www-authenticate").unwrap_or_default();
                ensure!(challenge.starts_with("Bearer ") && challenge.contains("error=\"invalid_token\""), "{self}");
            }
            (503, _) => {
                let seconds = self.header("retry-after").and_then(|seconds| seconds.parse::<u64>().ok());
                ensure!(seconds.is_some_and(|seconds| seconds >= 1), "Retry-After of {self}");
            }
            _ => ensure!(self.header("www-authenticate").is_none(), "a challenge on {self}"),
        }
        Ok(document)
    }

    /// The values of a header that reached the origin, from an answer of `/echo`.
    pub fn echoed(&self, name: &str) -> Result<Vec<String>> {
        let document = self.json()?;
        let values = document["headers"][name].as_array().cloned().unwrap_or_default();
        Ok(values.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect())
    }

    /// The names of all headers that reached the origin.
    pub fn echoed_names(&self) -> Result<Vec<String>> {
        let document = self.json()?;
        Ok(document["headers"].as_object().context("no echo")?.keys().cloned().collect())
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text: String = self.text().chars().take(600).collect();
        writeln!(f, "{} → {}", self.what, self.status)?;
        for (name, value) in &self.headers {
            writeln!(f, "  {name}: {value}")?;
        }
        write!(f, "  {text}")
    }
}

pub(crate) struct Head {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// What was read beyond it.
    pub rest: Vec<u8>,
}

pub(crate) fn read_head(socket: &mut impl Read, read: &mut Vec<u8>) -> Result<Head> {
    loop {
        if let Some(end) = memchr::memmem::find(read, b"\r\n\r\n") {
            let rest = read.split_off(end + 4);
            let mut headers = vec![httparse::EMPTY_HEADER; 256];
            let mut response = httparse::Response::new(&mut headers);
            response.parse(read)?;
            let named = response.headers.iter();
            let headers = named
                .map(|header| (header.name.to_owned(), String::from_utf8_lossy(header.value).into_owned()))
                .collect();
            return Ok(Head { status: response.code.context("no status")?, headers, rest });
        }
        ensure!(read.len() < MAX_HEAD, "the answer's head does not end");
        ensure!(read_some(socket, read)? > 0, "the connection closed after {} bytes of a head", read.len());
    }
}

fn length_of(status: u16, headers: &[(String, String)], to_head: bool) -> Result<Length> {
    let value = |name: &str| headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str());
    if to_head || status == 204 || status == 304 || status == 101 {
        return Ok(Length::None);
    }
    if value("transfer-encoding").is_some() {
        ensure!(value("content-length").is_none(), "an answer with two framings");
        return Ok(Length::Chunked);
    }
    Ok(match value("content-length") {
        Some(length) => Length::Known(length.parse()?),
        None => Length::ToTheEnd,
    })
}

fn read_line(socket: &mut impl Read, rest: &mut Vec<u8>) -> Result<String> {
    loop {
        if let Some(end) = memchr::memmem::find(rest, b"\r\n") {
            let after = rest.split_off(end + 2);
            let line = String::from_utf8_lossy(rest.get(..end).unwrap_or_default()).into_owned();
            *rest = after;
            return Ok(line);
        }
        ensure!(read_some(socket, rest)? > 0, "the answer ended inside a chunk's frame");
    }
}
