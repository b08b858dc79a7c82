//! One keep-alive connection: a request out, its whole answer in, the time it took noted. A 503 is asked again
//! and counted, as a client would; any other answer that is no success ends the run.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use edgekeep_tests::wire::Head;
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A store that stalled for a moment is back within a second or two; one that is not is down.
const UNAVAILABLE_TRIES: usize = 40;
const UNAVAILABLE_PAUSE: Duration = Duration::from_millis(50);

pub struct Connection {
    address: SocketAddr,
    socket: TcpStream,
    buffer: Vec<u8>,
}

/// An answer of status 2xx.
pub struct Answer<'a> {
    pub status: u16,
    bytes: &'a [u8],
}

impl Connection {
    pub async fn open(address: SocketAddr) -> anyhow::Result<Connection> {
        Ok(Connection { address, socket: connect(address).await?, buffer: Vec::with_capacity(8 * 1024) })
    }

    /// Sends, and sends again where the answer is 503, which counts in `unavailable`.
    pub async fn ask(
        &mut self,
        request: &[u8],
        latencies: &RefCell<Histogram<u64>>,
        unavailable: &Cell<u64>,
    ) -> anyhow::Result<Answer<'_>> {
        let sent_at = Instant::now();
        let mut tries = 0;
        let (head, end) = loop {
            self.socket.write_all(request).await.context("cannot send")?;
            let (head, end) = self.read().await?;
            if head.close {
                self.socket = connect(self.address).await?;
            }
            if head.status != 503 || tries == UNAVAILABLE_TRIES {
                break (head, end);
            }
            tries += 1;
            unavailable.set(unavailable.get() + 1);
            tokio::time::sleep(UNAVAILABLE_PAUSE).await;
        };
        latencies.borrow_mut().saturating_record(sent_at.elapsed().as_nanos() as u64);
        let bytes = &self.buffer[..end];
        ensure!(
            (200..300).contains(&head.status) && self.buffer.len() == end,
            "{}\nis answered with\n{}",
            String::from_utf8_lossy(request),
            String::from_utf8_lossy(&self.buffer)
        );
        Ok(Answer { status: head.status, bytes })
    }

    /// Sends a validation that must not be admitted: 401, or an answer that does not name the user.
    pub async fn refused(&mut self, request: &[u8], user: &str) -> anyhow::Result<()> {
        self.socket.write_all(request).await.context("cannot send")?;
        let (head, _) = self.read().await?;
        let answer = String::from_utf8_lossy(&self.buffer);
        ensure!(head.status == 401 || head.status == 200 && !answer.contains(user), "{answer}");
        if head.close {
            self.socket = connect(self.address).await?;
        }
        Ok(())
    }

    async fn read(&mut self) -> anyhow::Result<(Head, usize)> {
        self.buffer.clear();
        let mut head = None;
        loop {
            ensure!(self.socket.read_buf(&mut self.buffer).await? > 0, "the connection closed before an answer's end");
            if head.is_none() {
                head = Head::parse(&self.buffer)?;
            }
            if let Some(end) = head.as_ref().and_then(|head| head.end(&self.buffer)) {
                return head.map(|head| (head, end)).context("no head");
            }
        }
    }
}

async fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let socket = TcpStream::connect(address).await.context("cannot connect")?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

impl Answer<'_> {
    /// What stands between `before` and `after`, anywhere in head or body.
    pub fn between(&self, before: &str, after: &[u8]) -> Option<&str> {
        let start = memchr::memmem::find(self.bytes, before.as_bytes())? + before.len();
        let length = self.bytes[start..].iter().position(|byte| after.contains(byte))?;
        std::str::from_utf8(&self.bytes[start..start + length]).ok()
    }

    /// That the user it is about is this one.
    pub fn names(&self, user: &str) -> anyhow::Result<()> {
        ensure!(memchr::memmem::find(self.bytes, user.as_bytes()).is_some(), "not {user}'s: {self}");
        Ok(())
    }
}

impl std::fmt::Display for Answer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.bytes))
    }
}
