//! Clients that go on asking while something happens to the gateway: some keep their connections, as browsers and
//! libraries do, some come with a new one each time. They repeat nothing, and every request must be answered 200.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::client::{Entry, read_some};
use crate::common::lock;
use crate::wire::Head;

/// How many milliseconds the clients pause between two requests. The last two wait longer than a draining gateway leaves an idle
/// connection open, or nearly so.
const PAUSES: [u64; 6] = [0, 1, 2, 5, 100, 400];
/// Clients that open a connection for each request, and their pause.
const COMERS: usize = 3;
const BETWEEN_COMERS: Duration = Duration::from_millis(3);
/// Longer than a handover may keep a new connection waiting.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the clients saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub answers: u64,
    /// Connections that ended between two requests, as the gateway may end them.
    pub reconnects: u64,
    pub longest: Duration,
}

impl Figures {
    fn add(&mut self, other: Figures) {
        self.answers += other.answers;
        self.reconnects += other.reconnects;
        self.longest = self.longest.max(other.longest);
    }
}

/// Lets the clients send these requests in turn for as long as `meanwhile` takes, and a little longer. The first wrong
/// answer of any client is the error.
pub fn under_load(entry: Entry, requests: &[String], meanwhile: impl FnOnce() -> Result<()>) -> Result<Figures> {
    let over = AtomicBool::new(false);
    let all = std::sync::Mutex::new(Figures::default());
    thread::scope(|scope| {
        let keepers = PAUSES.into_iter().map(|pause| (Duration::from_millis(pause), true));
        let comers = std::iter::repeat_n((BETWEEN_COMERS, false), COMERS);
        let clients: Vec<_> = keepers
            .chain(comers)
            .enumerate()
            .map(|(number, (pause, keeps))| {
                let (over, all) = (&over, &all);
                scope.spawn(move || -> Result<()> {
                    let mut client = Kept::new(entry);
                    for request in requests.iter().cycle().skip(number) {
                        if over.load(Ordering::Acquire) {
                            break;
                        }
                        if !keeps {
                            client.leave();
                        }
                        let (status, body) = client.ask(request)?;
                        ensure!(status == 200, "{status}: {}", String::from_utf8_lossy(&body));
                        thread::sleep(pause);
                    }
                    lock(all).add(client.figures);
                    Ok(())
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(200));
        let done = meanwhile();
        if done.is_ok() {
            thread::sleep(Duration::from_millis(500));
        }
        over.store(true, Ordering::Release);
        let mut outcome = done;
        for client in clients {
            let asked = client.join().unwrap_or_else(|_| bail!("a client broke"));
            outcome = outcome.and(asked.context("a request failed under load"));
        }
        outcome
    })?;
    Ok(*lock(&all))
}

/// A client that keeps its connection until the gateway ends it.
pub struct Kept {
    entry: Entry,
    socket: Option<TcpStream>,
    pub figures: Figures,
}

impl Kept {
    pub fn new(entry: Entry) -> Kept {
        Kept { entry, socket: None, figures: Figures::default() }
    }

    /// Closes the connection.
    pub fn leave(&mut self) {
        self.socket = None;
    }

    /// Sends one request, and reads its answer. The connection is opened anew when there is none, or when it was closed
    /// before this request; one that closes instead of answering is an error.
    pub fn ask(&mut self, request: &str) -> Result<(u16, Vec<u8>)> {
        let begun = Instant::now();
        let mut socket = match self.socket.take() {
            Some(socket) if !is_closed(&socket)? => socket,
            closed => {
                self.figures.reconnects += u64::from(closed.is_some());
                let socket = TcpStream::connect_timeout(&self.entry.address, PATIENCE).context("cannot connect")?;
                socket.set_nodelay(true)?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket
            }
        };
        socket.write_all(request.as_bytes()).context("cannot send")?;
        let mut read = Vec::new();
        let (head, end) = loop {
            if let Some(head) = Head::parse(&read)?
                && let Some(end) = head.end(&read)
            {
                break (head, end);
            }
            let count = read_some(&mut socket, &mut read).context("no answer")?;
            ensure!(count > 0, "the connection closed where an answer was due: {:?}", String::from_utf8_lossy(&read));
        };
        ensure!(read.len() == end, "more than an answer");
        if head.close {
            self.figures.reconnects += 1;
        } else {
            self.socket = Some(socket);
        }
        self.figures.answers += 1;
        self.figures.longest = self.figures.longest.max(begun.elapsed());
        Ok((head.status, read.split_off(head.len)))
    }
}

/// Whether the other side has closed a connection on which nothing is due.
fn is_closed(socket: &TcpStream) -> Result<bool> {
    socket.set_nonblocking(true)?;
    let looked = socket.peek(&mut [0]);
    socket.set_nonblocking(false)?;
    match looked {
        Ok(0) => Ok(true),
        Ok(_) => bail!("bytes where none were due"),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(true),
        Err(error) => Err(error.into()),
    }
}
