//! A client's connection that is told every byte, and shows every byte that came back: for what a good client never
//! sends, and for what ordinary ones don't look at (interim answers, trailers, when a piece came).

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::client::Entry;

/// Longer than any answer that is still right.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Raw {
    socket: TcpStream,
    read: Vec<u8>,
}

/// One answer as it stood on the wire.
#[derive(Debug)]
pub struct RawAnswer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
    /// The lines after the last chunk.
    pub trailers: String,
}

impl RawAnswer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (n, value) = line.split_once(':')?;
            n.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

impl Raw {
    pub fn connect(entry: Entry) -> Result<Raw> {
        let socket = TcpStream::connect(entry.address).with_context(|| format!("{} is closed", entry.address))?;
        socket.set_nodelay(true)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Raw { socket, read: Vec::new() })
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        Ok(self.socket.write_all(bytes.as_ref())?)
    }

    /// The same connection once more, for a thread that sends while this one reads.
    pub fn twin(&self) -> Result<Raw> {
        Ok(Raw { socket: self.socket.try_clone()?, read: Vec::new() })
    }

    /// Nothing more will be sent.
    pub fn finish(&mut self) -> Result<()> {
        Ok(self.socket.shutdown(Shutdown::Write)?)
    }

    /// Reads what comes within this time: `Some(false)` at the end of the connection, `None` when nothing came.
    pub fn more(&mut self, within: Duration) -> Result<Option<bool>> {
        let mut buffer = vec![0; 64 * 1024];
        self.socket.set_read_timeout(Some(within.max(Duration::from_millis(1))))?;
        match self.socket.read(&mut buffer) {
            Ok(0) => Ok(Some(false)),
            Ok(count) => {
                self.read.extend(buffer.iter().take(count));
                Ok(Some(true))
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => Ok(Some(false)),
            Err(error) => Err(error.into()),
        }
    }

    fn some(&mut self) -> Result<()> {
        match self.more(PATIENCE)? {
            Some(true) => Ok(()),
            Some(false) => bail!("the connection closed after {:?}", String::from_utf8_lossy(&self.read)),
            None => bail!("nothing came after {:?}", String::from_utf8_lossy(&self.read)),
        }
    }

    /// The next head, interim answers included, without its body.
    pub fn head(&mut self) -> Result<RawAnswer> {
        loop {
            if let Some(end) = memchr::memmem::find(&self.read, b"\r\n\r\n") {
                let rest = self.read.split_off(end + 4);
                let head = String::from_utf8_lossy(&self.read).into_owned();
                self.read = rest;
                let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
                let status = status.with_context(|| format!("not an answer: {head:?}"))?;
                return Ok(RawAnswer { status, head, body: Vec::new(), trailers: String::new() });
            }
            self.some()?;
        }
    }

    /// The next whole answer to a method; interim ones before it are an error.
    pub fn answer(&mut self, method: &str) -> Result<RawAnswer> {
        let mut answer = self.head()?;
        ensure!(answer.status >= 200 || answer.status == 101, "an interim answer: {}", answer.head);
        if method == "HEAD" || matches!(answer.status, 101 | 204 | 304) {
            return Ok(answer);
        }
        if answer.header("transfer-encoding").is_some() {
            ensure!(answer.header("content-length").is_none(), "two lengths: {}", answer.head);
            while let Some(chunk) = self.chunk()? {
                answer.body.extend(chunk);
            }
            loop {
                let line = self.line()?;
                if line.is_empty() {
                    return Ok(answer);
                }
                answer.trailers += &line;
                answer.trailers.push('\n');
            }
        }
        match answer.header("content-length").map(str::parse::<usize>) {
            Some(length) => answer.body = self.take(length?)?,
            None => {
                while self.more(PATIENCE)?.context("the body does not end")? {}
                answer.body = std::mem::take(&mut self.read);
            }
        }
        Ok(answer)
    }

    /// The next chunk of a chunked body; `None` is the last one, after which trailers come.
    pub fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
        let line = self.line()?;
        let size = usize::from_str_radix(&line, 16).with_context(|| format!("a chunk of size {line:?}"))?;
        if size == 0 {
            return Ok(None);
        }
        let chunk = self.take(size)?;
        ensure!(self.line()?.is_empty(), "a chunk without its end");
        Ok(Some(chunk))
    }

    pub fn line(&mut self) -> Result<String> {
        loop {
            if let Some(end) = memchr::memmem::find(&self.read, b"\r\n") {
                let rest = self.read.split_off(end + 2);
                let line = String::from_utf8_lossy(&self.read[..end]).into_owned();
                self.read = rest;
                return Ok(line);
            }
            self.some()?;
        }
    }

    /// So many bytes.
    pub fn take(&mut self, count: usize) -> Result<Vec<u8>> {
        while self.read.len() < count {
            self.some()?;
        }
        let rest = self.read.split_off(count);
        Ok(std::mem::replace(&mut self.read, rest))
    }

    /// Reads on to the end of the connection; everything that came, or an error when it goes on.
    pub fn to_the_end(&mut self, within: Duration) -> Result<Vec<u8>> {
        let end = Instant::now() + within;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "still open after {within:?}: {:?}", String::from_utf8_lossy(&self.read));
            if self.more(left)? == Some(false) {
                return Ok(std::mem::take(&mut self.read));
            }
        }
    }

    /// Reads for this long; whether the connection has ended, and everything that came.
    pub fn quiet_after(&mut self, within: Duration) -> Result<(bool, Vec<u8>)> {
        let mut closed = false;
        while !closed {
            match self.more(within)? {
                Some(came) => closed = !came,
                None => break,
            }
        }
        Ok((closed, std::mem::take(&mut self.read)))
    }
}
