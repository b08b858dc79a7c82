//! An origin of a scenario's own, in its process: it records every byte that it is sent, and answers, waits, closes or
//! resets as the scenario says. The demo origins show what a good origin sees; this one shows what stood on the wire.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::SockRef;

use crate::common::{local, lock};
use crate::framing::{Message, strict};
use crate::process::eventually;

/// Longer than anything that is waited for here; then a connection is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// What health checks ask: answered, and not recorded.
const HEALTH: &str = "GET /health ";

/// What becomes of the connection after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The next request may come.
    Keep,
    /// Closed in order, after what was sent.
    Close,
    /// Cut: a peer that waits for bytes finds the connection reset.
    Reset,
}

type Script = Arc<dyn Fn(&mut Visit) -> Then + Send + Sync>;

/// What came over one connection.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    pub bytes: Vec<u8>,
    /// When the other side closed it, or this one.
    pub ended: Option<Instant>,
}

#[derive(Default)]
struct Inner {
    scripts: Mutex<HashMap<String, Script>>,
    recordings: Mutex<Vec<Recording>>,
    /// What is open now, to be cut when the origin dies.
    open: Mutex<HashMap<usize, TcpStream>>,
    ends: AtomicBool,
}

/// The origin. It dies when it is dropped.
pub struct Recorder {
    pub port: u16,
    inner: Arc<Inner>,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

impl Recorder {
    pub fn start(port: u16) -> Result<Recorder> {
        let recorder = Recorder { port, inner: Arc::default(), accepting: Mutex::new(None) };
        recorder.revive()?;
        Ok(recorder)
    }

    /// Listens again after [`Recorder::die`].
    pub fn revive(&self) -> Result<()> {
        self.inner.ends.store(false, Ordering::Release);
        let listener = TcpListener::bind(local(self.port)).with_context(|| format!("listen on {}", self.port))?;
        let inner = self.inner.clone();
        *lock(&self.accepting) = Some(spawn(move || accept(&inner, &listener)));
        Ok(())
    }

    /// Refuses connections from now on, and cuts those that are open.
    pub fn die(&self) {
        let Some(accepting) = lock(&self.accepting).take() else { return };
        self.inner.ends.store(true, Ordering::Release);
        // Wakes the one that waits for a connection.
        drop(TcpStream::connect(local(self.port)));
        let _ = accepting.join();
        self.cut();
    }

    /// Closes every connection that is open, as a restart does.
    pub fn cut(&self) {
        for socket in lock(&self.inner.open).values() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// How a path, without its query, is answered. Others get an empty 200.
    pub fn on(&self, path: &str, script: impl Fn(&mut Visit) -> Then + Send + Sync + 'static) {
        lock(&self.inner.scripts).insert(path.to_owned(), Arc::new(script));
    }

    pub fn recordings(&self) -> Vec<Recording> {
        lock(&self.inner.recordings).clone()
    }

    /// Every request whose path is this, as a strict reader finds them in the bytes of all connections.
    pub fn requests(&self, path: &str) -> Result<Vec<Message>> {
        let mut found = Vec::new();
        for recording in self.recordings() {
            let read = strict(&recording.bytes);
            ensure!(read.fault.is_none(), "{:?} in {:?}", read.fault, String::from_utf8_lossy(&recording.bytes));
            found.extend(read.messages.into_iter().filter(|message| message.path() == path));
        }
        Ok(found)
    }

    /// The only request whose path is this.
    pub fn request(&self, path: &str) -> Result<Message> {
        let mut all = self.requests(path)?;
        ensure!(all.len() == 1, "{} requests for {path}", all.len());
        all.pop().context("no request")
    }

    /// How many connections carried a request for this path, whole or not.
    pub fn tries(&self, path: &str) -> usize {
        let line = format!(" {path} HTTP/1.1\r\n");
        let holds = |recording: &Recording| memchr::memmem::find_iter(&recording.bytes, line.as_bytes()).count();
        self.recordings().iter().map(holds).sum()
    }

    /// Waits until the connection that carried this path has ended.
    pub fn sees_the_end_of(&self, path: &str, within: Duration) -> Result<()> {
        let line = format!(" {path} HTTP/1.1\r\n");
        eventually(&format!("the origin's connection with {path} ends"), within, || {
            let all = self.recordings();
            let mut its = all.iter().filter(|r| memchr::memmem::find(&r.bytes, line.as_bytes()).is_some()).peekable();
            Ok(its.peek().is_some() && its.all(|recording| recording.ended.is_some()))
        })
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.die();
    }
}

fn accept(inner: &Arc<Inner>, listener: &TcpListener) {
    for (number, socket) in listener.incoming().enumerate() {
        if inner.ends.load(Ordering::Acquire) {
            return;
        }
        let Ok(socket) = socket else { continue };
        let inner = inner.clone();
        spawn(move || converse(&inner, number, socket));
    }
}

fn converse(inner: &Arc<Inner>, number: usize, socket: TcpStream) {
    let _ = socket.set_nodelay(true);
    if let Ok(copy) = socket.try_clone() {
        lock(&inner.open).insert(number, copy);
    }
    let mut visit = Visit {
        inner: inner.clone(),
        socket,
        recording: None,
        read: Vec::new(),
        head: String::new(),
        has_body: false,
        turn: 0,
    };
    let how = visit.all_requests();
    lock(&inner.open).remove(&number);
    match how {
        Then::Reset => _ = SockRef::from(&visit.socket).set_linger(Some(Duration::ZERO)),
        _ => {
            let _ = visit.socket.shutdown(Shutdown::Write);
            // What still comes is recorded too, and unread bytes would make a reset of it.
            while visit.more(Duration::from_millis(500)) == Some(true) {}
        }
    }
    visit.ended();
}

/// A request that is being answered.
pub struct Visit {
    inner: Arc<Inner>,
    socket: TcpStream,
    /// Which recording is this connection's: from its first byte on.
    recording: Option<usize>,
    read: Vec<u8>,
    /// The request's head, its empty line included.
    pub head: String,
    /// Its body was not read yet.
    has_body: bool,
    /// How many requests this connection carried before.
    pub turn: usize,
}

impl Visit {
    fn all_requests(&mut self) -> Then {
        while self.next_head() {
            if self.head.starts_with(HEALTH) {
                self.answer(200, b"ok");
                continue;
            }
            let path = self.target().split('?').next().unwrap_or_default().to_owned();
            let script = lock(&self.inner.scripts).get(&path).cloned();
            let then = match script {
                Some(script) => script(self),
                None => {
                    self.body();
                    self.answer(200, b"")
                }
            };
            if then != Then::Keep {
                return then;
            }
            self.body();
            self.turn += 1;
        }
        Then::Close
    }

    /// Reads up to the end of a head; false when the connection ends before.
    fn next_head(&mut self) -> bool {
        loop {
            if let Some(end) = memchr::memmem::find(&self.read, b"\r\n\r\n") {
                let rest = self.read.split_off(end + 4);
                self.head = String::from_utf8_lossy(&self.read).into_owned();
                self.read = rest;
                self.has_body = true;
                return true;
            }
            // A kept connection may wait for long.
            if self.more(PATIENCE * 4) != Some(true) {
                return false;
            }
        }
    }

    /// Reads what comes next: `Some(false)` when the other side has closed, `None` when nothing came in this time.
    pub fn more(&mut self, within: Duration) -> Option<bool> {
        let mut buffer = vec![0; 64 * 1024];
        let _ = self.socket.set_read_timeout(Some(within.max(Duration::from_millis(1))));
        match self.socket.read(&mut buffer) {
            Ok(0) => Some(false),
            Ok(count) => {
                buffer.truncate(count);
                self.record(&buffer);
                self.read.extend_from_slice(&buffer);
                Some(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(_) => Some(false),
        }
    }

    fn record(&mut self, bytes: &[u8]) {
        let mut recordings = lock(&self.inner.recordings);
        if self.recording.is_none() {
            if bytes.starts_with(HEALTH.as_bytes()) {
                return;
            }
            self.recording = Some(recordings.len());
            recordings.push(Recording::default());
        }
        if let Some(recording) = self.recording.and_then(|at| recordings.get_mut(at)) {
            recording.bytes.extend_from_slice(bytes);
        }
    }

    fn ended(&self) {
        if let Some(recording) = self.recording.and_then(|at| lock(&self.inner.recordings).get_mut(at).map(|_| at)) {
            lock(&self.inner.recordings)[recording].ended = Some(Instant::now());
        }
    }

    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// The value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (n, value) = line.split_once(':')?;
            n.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// Reads the whole body and gives it as it came, chunks and all; only the first call finds it.
    pub fn body(&mut self) -> Vec<u8> {
        if !std::mem::take(&mut self.has_body) {
            return Vec::new();
        }
        let length = self.header("content-length").and_then(|length| length.parse::<usize>().ok()).unwrap_or(0);
        let chunked = self.header("transfer-encoding").is_some();
        loop {
            let end = match chunked {
                false => (self.read.len() >= length).then_some(length),
                true => end_of_chunks(&self.read),
            };
            if let Some(end) = end {
                let rest = self.read.split_off(end);
                return std::mem::replace(&mut self.read, rest);
            }
            if self.more(PATIENCE) != Some(true) {
                return std::mem::take(&mut self.read);
            }
        }
    }

    /// What was read beyond the head and not taken yet.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.read)
    }

    /// Sends bytes as they are; false when the other side is gone.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.socket.write_all(bytes).is_ok()
    }

    /// A whole answer of a known length.
    pub fn answer(&mut self, status: u16, body: &[u8]) -> Then {
        let head = format!("HTTP/1.1 {status} Said\r\ncontent-length: {}\r\n\r\n", body.len());
        self.send(&[head.as_bytes(), body].concat());
        Then::Keep
    }

    /// Waits until the other side has closed; false when it still stands after this time.
    pub fn is_left(&mut self, within: Duration) -> bool {
        let end = Instant::now() + within;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            if self.more(left) == Some(false) {
                return true;
            }
        }
    }
}

/// Where chunks and trailers end.
fn end_of_chunks(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line = memchr::memmem::find(bytes.get(at..)?, b"\r\n")?;
        let size = std::str::from_utf8(bytes.get(at..at + line)?).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        at += line + 2;
        if size == 0 {
            // Trailers, if any, and the empty line.
            loop {
                let line = memchr::memmem::find(bytes.get(at..)?, b"\r\n")?;
                at += line + 2;
                if line == 0 {
                    return Some(at);
                }
            }
        }
        at += size + 2;
    }
}
