//! The application behind the proxy: it says to every request what it is told to say, and keeps the head of each byte
//! for byte. What arrived here is what the tests judge by, not what a proxy claims to have done.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgekeep_tests::Ports;

/// Sent with each request, to find again what arrived of it.
pub const MARK: &str = "x-mark";

/// The handshake of RFC 6455 §1.3: the key that clients send here, and the answer to it, which HAProxy checks.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Longer than any proxy here holds a request that it has begun to send.
const PATIENCE: Duration = Duration::from_secs(20);

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Arrived {
    pub method: String,
    pub target: Vec<u8>,
    /// Names in lower case; a byte is a character.
    headers: Vec<(String, String)>,
    pub body: usize,
}

impl Arrived {
    /// Every value of a header.
    pub fn headers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The one value of a header, or nothing: an empty one says nothing.
    pub fn one<'a>(&'a self, name: &'a str) -> Result<&'a str> {
        let values: Vec<&str> = self.headers(name).collect();
        ensure!(values.len() < 2, "{name} arrived as {values:?}");
        Ok(values.first().copied().unwrap_or_default())
    }

    /// All headers, by name and value.
    pub fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    fn read(socket: &mut TcpStream) -> Result<Arrived> {
        let mut read = Vec::new();
        let end = loop {
            if let Some(end) = memchr::memmem::find(&read, b"\r\n\r\n") {
                break end;
            }
            ensure!(more(socket, &mut read)?, "the head did not end");
        };
        let mut body = read.split_off(end + 4);
        read.truncate(end);
        let mut lines = read.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let first = lines.next().unwrap_or_default();
        let from = first.iter().position(|b| *b == b' ').context("a request line without a target")?;
        let to = first.iter().rposition(|b| *b == b' ').filter(|to| *to > from).context("no version")?;
        let latin1 = |bytes: &[u8]| bytes.iter().copied().map(char::from).collect::<String>();
        let mut arrived = Arrived {
            method: latin1(&first[..from]),
            target: first[from + 1..to].to_owned(),
            headers: Vec::new(),
            body: 0,
        };
        for line in lines {
            let at = line.iter().position(|b| *b == b':').context("a header line without a colon")?;
            arrived.headers.push((latin1(&line[..at]).to_ascii_lowercase(), latin1(line[at + 1..].trim_ascii())));
        }
        if let Ok(length) = arrived.one("content-length")?.parse::<usize>() {
            while body.len() < length && more(socket, &mut body)? {}
        } else if arrived.one("transfer-encoding")? == "chunked" {
            while !body.ends_with(b"0\r\n\r\n") && more(socket, &mut body)? {}
        }
        arrived.body = body.len();
        Ok(arrived)
    }
}

fn more(socket: &mut TcpStream, into: &mut Vec<u8>) -> Result<bool> {
    let mut buffer = [0; 64 * 1024];
    let read = socket.read(&mut buffer)?;
    into.extend(buffer.iter().take(read));
    Ok(read > 0)
}

/// Listens until the process ends.
pub struct Witness {
    pub port: u16,
    log: Arc<Mutex<Log>>,
}

#[derive(Default)]
struct Log {
    by_mark: BTreeMap<String, Vec<Arrived>>,
    /// What was no request, or had no mark.
    strange: Vec<String>,
}

impl Witness {
    pub fn start() -> Result<Witness> {
        let port = Ports::free()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let log = Arc::new(Mutex::new(Log::default()));
        let keep = log.clone();
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let keep = keep.clone();
                thread::spawn(move || attend(socket, &keep));
            }
        });
        Ok(Witness { port, log })
    }

    /// What arrived of the request with this mark.
    pub fn arrived(&self, mark: &str) -> Vec<Arrived> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.by_mark.get(mark).cloned().unwrap_or_default()
    }

    /// What arrived and was nobody's request.
    pub fn strange(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).strange.clone()
    }
}

fn attend(mut socket: TcpStream, log: &Mutex<Log>) {
    let _ = socket.set_read_timeout(Some(PATIENCE));
    let arrived = Arrived::read(&mut socket);
    let answer = match &arrived {
        Ok(arrived) if arrived.headers("upgrade").any(|to| to.eq_ignore_ascii_case("websocket")) => {
            format!(
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
                 sec-websocket-accept: {ACCEPT}\r\n\r\n"
            )
        }
        Ok(_) => "HTTP/1.1 200 OK\r\nx-demo-origin: witness\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".into(),
        Err(_) => "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".into(),
    };
    {
        // Kept before it is answered: whoever has the answer finds it.
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        match arrived {
            // A proxy may open a connection and never use it.
            Err(error) if error.to_string() == "the head did not end" => return,
            Err(error) => log.strange.push(format!("{error:#}")),
            // The gateway looks whether its origin lives.
            Ok(arrived) if arrived.headers("user-agent").any(|agent| agent == "edgekeep-check") => {}
            Ok(arrived) => match arrived.one(MARK).map(str::to_owned) {
                Ok(mark) if !mark.is_empty() => log.by_mark.entry(mark).or_default().push(arrived),
                _ => log.strange.push(format!("{arrived:?}")),
            },
        }
    }
    let _ = socket.write_all(answer.as_bytes());
}
