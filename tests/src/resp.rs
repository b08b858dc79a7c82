//! Redis' protocol as plainly as it goes: one command, one reply, on a blocking socket. The scenarios look at what the
//! gateway stored with a client that shares no code with the gateway's.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// A frozen node answers nothing; whoever asks it should not wait for ever.
const PATIENCE: Duration = Duration::from_secs(5);

/// A reply, as RESP2 has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Text(String),
    Integer(i64),
    Array(Vec<Reply>),
    Nothing,
}

impl Reply {
    pub fn text(&self) -> Result<&str> {
        match self {
            Reply::Text(text) => Ok(text),
            other => bail!("expected text, found {other:?}"),
        }
    }

    pub fn integer(&self) -> Result<i64> {
        match self {
            Reply::Integer(integer) => Ok(*integer),
            other => bail!("expected an integer, found {other:?}"),
        }
    }

    pub fn array(&self) -> Result<&[Reply]> {
        match self {
            Reply::Array(items) => Ok(items),
            other => bail!("expected an array, found {other:?}"),
        }
    }

    /// An array of text.
    pub fn texts(&self) -> Result<Vec<String>> {
        self.array()?.iter().map(|item| Ok(item.text()?.to_owned())).collect()
    }
}

/// A connection to one Redis server of the loopback.
pub struct Redis {
    reader: BufReader<TcpStream>,
    port: u16,
}

impl Redis {
    pub fn connect(port: u16, password: Option<&str>) -> Result<Redis> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let mut redis = Redis { reader: BufReader::new(socket), port };
        if let Some(password) = password {
            redis.call(&["AUTH", password])?;
        }
        Ok(redis)
    }

    /// An error reply is an error here.
    pub fn call(&mut self, command: &[&str]) -> Result<Reply> {
        let port = self.port;
        self.exchange(command).with_context(|| format!("{} at the Redis on port {port}", command.join(" ")))
    }

    fn exchange(&mut self, command: &[&str]) -> Result<Reply> {
        let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
        for part in command {
            bytes.extend(format!("${}\r\n{part}\r\n", part.len()).into_bytes());
        }
        self.reader.get_mut().write_all(&bytes)?;
        self.reply()
    }

    fn reply(&mut self) -> Result<Reply> {
        let mut line = String::new();
        ensure!(self.reader.read_line(&mut line)? > 0, "the connection was closed");
        let line = line.trim_end();
        let (kind, rest) = line.split_at_checked(1).context("an empty reply")?;
        Ok(match kind {
            "+" => Reply::Text(rest.to_owned()),
            "-" => bail!("{rest}"),
            ":" => Reply::Integer(rest.parse()?),
            "$" | "*" if rest == "-1" => Reply::Nothing,
            "$" => {
                let mut text = vec![0; rest.parse::<usize>()? + 2];
                self.reader.read_exact(&mut text)?;
                text.truncate(text.len() - 2);
                Reply::Text(String::from_utf8_lossy(&text).into_owned())
            }
            "*" => Reply::Array((0..rest.parse::<usize>()?).map(|_| self.reply()).collect::<Result<_>>()?),
            _ => bail!("not a reply: {line:?}"),
        })
    }
}
