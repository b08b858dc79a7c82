//! One request, written byte for byte: the target is never normalised, headers stand as given, and each request has a
//! connection of its own.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use base64::Engine;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::answer::{Answer, Tally, read_head};

/// Longer than any answer that is still right: a 504 comes after the route's half second, a drain after one.
const PATIENCE: Duration = Duration::from_secs(60);

/// The pattern of the demo origins' `/stream`: 0, 1, … 250, 0, 1, …
const PERIOD: usize = 251;

/// Where clients come in.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub address: SocketAddr,
    /// A Worker is told its client's address by the platform in front of it, not by the connection.
    pub behind_platform: bool,
}

/// How the length of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    ContentLength,
    Chunked,
}

enum Body {
    None,
    Bytes(Vec<u8>),
    /// So many bytes of the pattern, made as they are sent.
    Pattern(u64, Framing),
}

/// A request being written.
#[must_use]
pub struct Request {
    entry: Entry,
    method: String,
    target: String,
    host: Option<String>,
    headers: Vec<(String, String)>,
    body: Body,
    from: Option<Ipv4Addr>,
}

impl Request {
    pub fn new(entry: Entry, method: &str, target: &str) -> Request {
        Request {
            entry,
            method: method.to_owned(),
            target: target.to_owned(),
            host: None,
            headers: Vec::new(),
            body: Body::None,
            from: None,
        }
    }

    /// Through another entry.
    pub fn at(mut self, entry: Entry) -> Request {
        self.entry = entry;
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Request {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn bearer(self, token: &str) -> Request {
        self.header("authorization", &format!("Bearer {token}"))
    }

    /// A client's credentials as RFC 6749 §2.3.1 also allows them.
    pub fn basic(self, user: &str, password: &str) -> Request {
        let both = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        self.header("authorization", &format!("Basic {both}"))
    }

    /// Another `Host` than the address.
    pub fn host(mut self, host: &str) -> Request {
        self.host = Some(host.to_owned());
        self
    }

    pub fn json(self, document: &Value) -> Request {
        self.text("application/json", &document.to_string())
    }

    pub fn form(self, fields: &[(&str, &str)]) -> Request {
        let pairs: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={}", form_text(value))).collect();
        self.text("application/x-www-form-urlencoded", &pairs.join("&"))
    }

    pub fn text(self, content_type: &str, body: &str) -> Request {
        self.bytes(content_type, body.as_bytes())
    }

    pub fn bytes(mut self, content_type: &str, body: &[u8]) -> Request {
        self.body = Body::Bytes(body.to_vec());
        self.header("content-type", content_type)
    }

    /// A body of so many bytes.
    pub fn upload(mut self, bytes: u64, framing: Framing) -> Request {
        self.body = Body::Pattern(bytes, framing);
        self.header("content-type", "application/octet-stream")
    }

    /// As if the client had this address: the connection comes from it, or the platform says so.
    pub fn from(mut self, address: Ipv4Addr) -> Request {
        self.from = Some(address);
        self
    }

    /// Sends it and reads the whole answer. A status is never an error here.
    pub fn send(self) -> Result<Answer> {
        let what = format!("{} {}", self.method, self.target.chars().take(120).collect::<String>());
        self.exchange(&what).with_context(|| format!("{what} got no answer"))
    }

    /// Sends it and reads the answer's head only: the connection stays open.
    pub fn open(self) -> Result<Open> {
        let what = format!("{} {}", self.method, self.target);
        let mut socket = self.connected()?;
        self.write_to(&mut socket)?;
        Open::read(socket, &what).with_context(|| format!("{what} got no answer"))
    }

    /// The head, and nothing of the body: the caller sends that, as slowly as it likes.
    pub fn begin(self) -> Result<TcpStream> {
        let mut socket = self.connected()?;
        self.write_to(&mut socket)?;
        Ok(socket)
    }

    fn connected(&self) -> Result<TcpStream> {
        let socket = self.connect()?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(socket)
    }

    fn exchange(self, what: &str) -> Result<Answer> {
        let mut socket = self.connected()?;
        // A refusal may come before all was sent; then the connection closes under the rest, and the answer counts.
        let sent = self.write_to(&mut socket);
        match Answer::read(&mut socket, what, self.method == "HEAD") {
            Ok(answer) => Ok(answer),
            Err(error) => Err(match sent {
                Ok(()) => error,
                Err(unsent) => error.context(format!("and it could not be sent: {unsent}")),
            }),
        }
    }

    fn connect(&self) -> Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        if let Some(from) = self.from
            && !self.entry.behind_platform
        {
            socket.bind(&SocketAddr::new(IpAddr::V4(from), 0).into())?;
        }
        socket
            .connect_timeout(&self.entry.address.into(), PATIENCE)
            .with_context(|| format!("nobody listens on {}", self.entry.address))?;
        Ok(socket.into())
    }

    fn write_to(&self, socket: &mut impl Write) -> std::io::Result<()> {
        let host = self.host.clone().unwrap_or_else(|| self.entry.address.to_string());
        let mut head = format!("{} {} HTTP/1.1\r\nhost: {host}\r\n", self.method, self.target);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("connection")) {
            head.push_str("connection: close\r\n");
        }
        if let Some(from) = self.from
            && self.entry.behind_platform
        {
            head.push_str(&format!("cf-connecting-ip: {from}\r\n"));
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match &self.body {
            Body::None if matches!(self.method.as_str(), "GET" | "HEAD" | "DELETE" | "OPTIONS") => {}
            // Told by the caller, who sends the body.
            Body::None if self.headers.iter().any(|(name, _)| name == "content-length") => {}
            Body::None => head.push_str("content-length: 0\r\n"),
            Body::Bytes(bytes) => head.push_str(&format!("content-length: {}\r\n", bytes.len())),
            Body::Pattern(bytes, Framing::ContentLength) => head.push_str(&format!("content-length: {bytes}\r\n")),
            Body::Pattern(_, Framing::Chunked) => head.push_str("transfer-encoding: chunked\r\n"),
        }
        head.push_str("\r\n");
        socket.write_all(head.as_bytes())?;
        match &self.body {
            Body::None => {}
            Body::Bytes(bytes) => socket.write_all(bytes)?,
            Body::Pattern(bytes, framing) => write_pattern(socket, *bytes, *framing)?,
        }
        socket.flush()
    }
}

fn write_pattern(socket: &mut impl Write, bytes: u64, framing: Framing) -> std::io::Result<()> {
    for part in pattern(bytes) {
        if framing == Framing::Chunked {
            write!(socket, "{:x}\r\n", part.len())?;
        }
        socket.write_all(&part)?;
        if framing == Framing::Chunked {
            socket.write_all(b"\r\n")?;
        }
    }
    if framing == Framing::Chunked {
        socket.write_all(b"0\r\n\r\n")?;
    }
    Ok(())
}

/// The pattern in parts; each part starts at a multiple of the period.
fn pattern(bytes: u64) -> impl Iterator<Item = Vec<u8>> {
    let chunk: Vec<u8> = (0..PERIOD * 256).map(|at| (at % PERIOD) as u8).collect();
    let mut left = bytes;
    std::iter::from_fn(move || {
        let length = usize::try_from(left).map_or(chunk.len(), |left| left.min(chunk.len()));
        left -= length as u64;
        (length > 0).then(|| chunk.iter().take(length).copied().collect())
    })
}

/// FNV-1a of so many bytes of the pattern, as the demo origins write it.
pub fn pattern_checksum(bytes: u64) -> String {
    let mut tally = Tally::default();
    pattern(bytes).for_each(|part| tally.add(&part));
    tally.checksum()
}

fn form_text(value: &str) -> String {
    let mut out = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// An answer that goes on: an upgraded connection, or a body that is read as it comes.
pub struct Open {
    pub status: u16,
    socket: TcpStream,
    read: Vec<u8>,
    /// The body is in chunks, and these are not taken off.
    chunked: bool,
}

/// How an answer that goes on ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It still goes on.
    NotYet,
    /// As its framing says: the whole answer came.
    Complete,
    /// Before that: the client knows that something is missing.
    Cut,
}

impl Open {
    fn read(mut socket: TcpStream, what: &str) -> Result<Open> {
        let mut read = Vec::new();
        let head = read_head(&mut socket, &mut read)?;
        let chunked = head.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("transfer-encoding"));
        anyhow::ensure!(head.status < 300, "{what} → {}: {}", head.status, String::from_utf8_lossy(&head.rest));
        Ok(Open { status: head.status, socket, read: head.rest, chunked })
    }

    /// Sends bytes over an upgraded connection and waits until they are back from an origin that echoes.
    pub fn echoes(&mut self, bytes: &[u8]) -> Result<()> {
        self.read.clear();
        self.socket.write_all(bytes)?;
        while self.read.len() < bytes.len() {
            let read = read_some(&mut self.socket, &mut self.read)?;
            anyhow::ensure!(read > 0, "the connection closed after {:?}", self.read);
        }
        anyhow::ensure!(self.read == bytes, "sent {bytes:?}, got {:?}", self.read);
        Ok(())
    }

    /// Takes what comes within this time; how the answer stands then.
    pub fn watch(&mut self, within: Duration) -> Result<Ended> {
        let end = Instant::now() + within;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Ended::NotYet);
            }
            self.socket.set_read_timeout(Some(left))?;
            self.read.drain(..self.read.len().saturating_sub(8));
            match read_some(&mut self.socket, &mut self.read) {
                Ok(0) if self.chunked && self.read.ends_with(b"0\r\n\r\n") => return Ok(Ended::Complete),
                Ok(0) => return Ok(Ended::Cut),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                // Closed with bytes under way.
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                    return Ok(Ended::Cut);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// How long it still goes on, and how it ends; an error when that is longer than `at_most`.
    pub fn until_its_end(&mut self, at_most: Duration) -> Result<(Duration, Ended)> {
        let begun = Instant::now();
        let ended = self.watch(at_most)?;
        anyhow::ensure!(ended != Ended::NotYet, "it still goes on after {at_most:?}");
        Ok((begun.elapsed(), ended))
    }
}

/// A connection that reads exactly what is there: used by [`Answer`].
pub(crate) fn read_some(socket: &mut impl Read, into: &mut Vec<u8>) -> std::io::Result<usize> {
    let mut buffer = vec![0; 64 * 1024];
    let read = socket.read(&mut buffer)?;
    into.extend(buffer.iter().take(read));
    Ok(read)
}
