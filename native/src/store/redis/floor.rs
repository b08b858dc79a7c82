//! The floor of the store's cost, for `edgekeep bench floor`: the same scripts with the same keys and arguments, and the
//! same WAIT, over plain sockets. No reconnecting, no redirections, no deadlines, no decoding: whoever asks this little
//! has nothing to lose.
//!
//! Every worker has a connection of its own to each primary, so a WAIT speaks of its worker's write alone.

#![allow(clippy::await_holding_refcell_ref, reason = "a worker's connections are its own: nobody else borrows them")]

use std::cell::RefCell;

use edgekeep_core::config::StoreConfig;
use edgekeep_core::session::{
    NewSession, Rotate, epoch_key, index_key, record_key, redis_slot, session_slot, state_key, user_tag,
};
use edgekeep_core::{Millis, SessionId, UserId};
use redis::{Cmd, Value, cmd};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::node::WAIT_MS;
use super::script::{self, arg};
use super::state::{bytes, integer};
use super::{fields, member_keys};

/// As the default configuration has them.
const DEAD_MARK: Millis = Millis(15 * 60_000);
const EPOCH: Millis = Millis(30 * 86_400_000);

/// Why the floor is none.
#[derive(Debug, Error)]
pub enum FloorError {
    #[error("store.nodes: {0}")]
    Socket(#[from] std::io::Error),
    #[error("store.nodes: {0}")]
    Redis(#[from] redis::RedisError),
    #[error("{0} is answered with {1}")]
    Answer(&'static str, String),
}

/// By worker, then by primary.
pub struct Floor {
    workers: Vec<Vec<RefCell<Connection>>>,
    /// The primary of each range of slots.
    slots: Vec<(u16, u16, usize)>,
    wait: Vec<u8>,
}

struct Connection {
    socket: TcpStream,
    buffer: Vec<u8>,
}

impl Floor {
    /// Connections for `workers` tasks to every primary, which know the scripts.
    pub async fn connect(store: &StoreConfig, workers: usize) -> Result<Floor, FloorError> {
        let seed = store.nodes.first().ok_or(FloorError::Answer("store.nodes", "nothing".to_owned()))?;
        let seed = format!("{}:{}", seed.host, seed.port);
        let (primaries, slots) = if store.cluster { primaries(&seed).await? } else { (vec![seed], Vec::new()) };
        let mut floor = Floor { workers: Vec::new(), slots, wait: Vec::new() };
        if store.wait_replicas > 0 {
            floor.wait = cmd("WAIT").arg(store.wait_replicas).arg(WAIT_MS).get_packed_command();
        }
        for _ in 0..workers {
            let mut connections = Vec::new();
            for primary in &primaries {
                let socket = TcpStream::connect(primary).await?;
                socket.set_nodelay(true)?;
                connections.push(RefCell::new(Connection { socket, buffer: Vec::with_capacity(8 * 1024) }));
            }
            floor.workers.push(connections);
        }
        for connection in floor.workers.first().into_iter().flatten() {
            for script in script::all() {
                let load = script.load().get_packed_command();
                connection.borrow_mut().ask(&load, 1).await?;
            }
        }
        Ok(floor)
    }

    pub async fn create(&self, worker: usize, new: NewSession) -> Result<(), FloorError> {
        let keys = [record_key(new.id), state_key(new.id), index_key(&new.user), epoch_key(&new.user)];
        let args = script::create_arguments(&new, DEAD_MARK.0, &[]);
        self.write(worker, session_slot(new.id), &script::CREATE.call(&keys, &args, false), "created").await
    }

    pub async fn validate(&self, worker: usize, id: SessionId, user: &UserId) -> Result<(), FloorError> {
        let mut request = cmd("EXISTS").arg(record_key(id)).get_packed_command();
        request.extend(fields(id).get_packed_command());
        request.extend(cmd("GET").arg(epoch_key(user)).get_packed_command());
        let connection = self.connection(worker, session_slot(id));
        let mut connection = connection.borrow_mut();
        let answer = connection.ask(&request, 3).await?;
        expect("EXISTS", answer, b":1\r\n")
    }

    pub async fn rotate(&self, worker: usize, rotate: Rotate) -> Result<(), FloorError> {
        let keys = [record_key(rotate.id), state_key(rotate.id)];
        let args = script::rotate_arguments(&rotate);
        self.write(worker, session_slot(rotate.id), &script::ROTATE.call(&keys, &args, false), "rotated").await
    }

    pub async fn revoke_all(&self, worker: usize, user: &UserId, now: u64) -> Result<(), FloorError> {
        let slot = redis_slot(user_tag(user).as_bytes());
        let members = {
            let range = cmd("ZRANGE").arg(index_key(user)).arg(0).arg(-1).get_packed_command();
            let mut connection = self.connection(worker, slot).borrow_mut();
            let answer = connection.ask(&range, 1).await?;
            super::texts(redis::parse_redis_value(answer).ok().as_ref())
        };
        let mut keys = vec![epoch_key(user), index_key(user)];
        for member in &members {
            let of = member_keys(member).map_err(|_| FloorError::Answer("ZRANGE", member.clone()))?;
            keys.extend(of);
        }
        let mut args = vec![arg("all"), arg(""), arg(DEAD_MARK.0), arg(now), arg(now + EPOCH.0), arg(members.len())];
        args.extend(members.iter().map(arg));
        self.write(worker, slot, &script::REVOKE_ALL.call(&keys, &args, false), "revoked").await
    }

    async fn write(&self, worker: usize, slot: u16, call: &Cmd, word: &'static str) -> Result<(), FloorError> {
        let mut request = call.get_packed_command();
        request.extend(&self.wait);
        let mut connection = self.connection(worker, slot).borrow_mut();
        let answer = connection.ask(&request, 1 + usize::from(!self.wait.is_empty())).await?;
        // An array that begins with the word.
        let at = answer.iter().position(|byte| *byte == b'$').unwrap_or(0);
        expect(word, &answer[at..], format!("${}\r\n{word}\r\n", word.len()).as_bytes())
    }

    fn connection(&self, worker: usize, slot: u16) -> &RefCell<Connection> {
        let at = self.slots.iter().find(|(first, last, _)| (*first..=*last).contains(&slot)).map_or(0, |(.., at)| *at);
        &self.workers[worker][at]
    }
}

fn expect(what: &'static str, answer: &[u8], start: &[u8]) -> Result<(), FloorError> {
    if answer.starts_with(start) {
        return Ok(());
    }
    Err(FloorError::Answer(what, String::from_utf8_lossy(answer).into_owned()))
}

/// The primaries of a cluster, and which of them has which slots.
async fn primaries(seed: &str) -> Result<(Vec<String>, Vec<(u16, u16, usize)>), FloorError> {
    let mut connection = redis::Client::open(format!("redis://{seed}"))?.get_multiplexed_async_connection().await?;
    let ranges: Vec<Value> = cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await?;
    let (mut primaries, mut slots) = (Vec::new(), Vec::new());
    for range in &ranges {
        let Value::Array(range) = range else { continue };
        let [first, last, Value::Array(primary), ..] = range.as_slice() else { continue };
        let [host, port, ..] = primary.as_slice() else { continue };
        let (Some(first), Some(last), Some(host), Some(port)) =
            (integer(first), integer(last), bytes(host), integer(port))
        else {
            continue;
        };
        let address = format!("{}:{port}", String::from_utf8_lossy(host));
        let at = primaries.iter().position(|known| *known == address).unwrap_or_else(|| {
            primaries.push(address);
            primaries.len() - 1
        });
        slots.push((first as u16, last as u16, at));
    }
    Ok((primaries, slots))
}

impl Connection {
    /// Sends and returns the bytes of so many replies.
    async fn ask(&mut self, request: &[u8], replies: usize) -> Result<&[u8], FloorError> {
        self.buffer.clear();
        self.socket.write_all(request).await?;
        while end_of(&self.buffer, replies).is_none() {
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                return Err(FloorError::Socket(std::io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(&self.buffer)
    }
}

/// Where so many RESP2 replies end.
fn end_of(buffer: &[u8], replies: usize) -> Option<usize> {
    let mut left = replies;
    let mut at = 0;
    while left > 0 {
        let line = at + buffer.get(at..)?.windows(2).position(|pair| pair == b"\r\n")?;
        // −1 says that there is nothing.
        let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<i64>().ok();
        let (kind, text) = (buffer[at], &buffer[at + 1..line]);
        left -= 1;
        at = line + 2;
        match kind {
            b'$' => at += usize::try_from(number(text)?).map_or(0, |length| length + 2),
            b'*' => left += usize::try_from(number(text)?).unwrap_or(0),
            _ => {}
        }
    }
    (at <= buffer.len()).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::end_of;

    #[test]
    fn replies_end_where_they_say() {
        let replies = b"*3\r\n$7\r\ncreated\r\n:0\r\n$-1\r\n:1\r\n";
        assert_eq!(end_of(replies, 2), Some(replies.len()));
        assert_eq!(end_of(replies, 1), Some(replies.len() - 4));
        assert_eq!(end_of(&replies[..replies.len() - 1], 2), None);
        assert_eq!(end_of(&replies[..9], 1), None);
    }
}
