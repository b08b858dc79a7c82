//! A relay of TCP connections that can swallow what is sent: its peers see an open connection on which nothing comes any
//! more, as when a firewall forgets it or a cable is cut. No packet filter, no privileges.
//!
//! Relays listen on another loopback address than the servers, under the same ports: who was given that address is cut
//! off, and nobody else.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};

/// Where relays listen.
pub const RELAYED: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// How much is passed on at once.
const CHUNK: usize = 64 * 1024;

/// What is cut off, for all relays of a cluster.
#[derive(Clone, Default)]
pub struct Scissors(Arc<(Mutex<Cuts>, Condvar)>);

#[derive(Default)]
struct Cuts {
    /// How many connections there were.
    accepted: u64,
    /// Those before this one pass nothing on.
    cut_before: u64,
    closed: bool,
}

impl Scissors {
    /// Cuts every connection there is; `for_good` also those to come.
    pub fn cut(&self, for_good: bool) {
        let mut cuts = self.lock();
        cuts.cut_before = if for_good { u64::MAX } else { cuts.accepted };
    }

    /// What was held back is passed on, late.
    pub fn mend(&self) {
        self.lock().cut_before = 0;
        self.0.1.notify_all();
    }

    /// Ends the relays' threads as soon as they look.
    pub fn close(&self) {
        self.lock().closed = true;
        self.0.1.notify_all();
    }

    fn accepted(&self) -> u64 {
        let mut cuts = self.lock();
        cuts.accepted += 1;
        cuts.accepted - 1
    }

    /// Waits while the connection is cut; false when the relay is closed.
    fn may_pass(&self, connection: u64) -> bool {
        let mut cuts = self.lock();
        while connection < cuts.cut_before && !cuts.closed {
            cuts = self.0.1.wait(cuts).unwrap_or_else(PoisonError::into_inner);
        }
        !cuts.closed
    }

    fn lock(&self) -> MutexGuard<'_, Cuts> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes connections to a port on to the same port of 127.0.0.1, for as long as the process runs.
pub fn relay(port: u16, scissors: &Scissors) -> Result<()> {
    let listener = TcpListener::bind((RELAYED, port)).context("bind a relay")?;
    let scissors = scissors.clone();
    thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(client) = client else { continue };
            if scissors.lock().closed {
                return;
            }
            // A connection that breaks while it is set up is one that broke: its client sees it.
            let _ = pass_on(client, port, &scissors);
        }
    });
    Ok(())
}

fn pass_on(client: TcpStream, port: u16, scissors: &Scissors) -> Result<()> {
    let connection = scissors.accepted();
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    for (from, to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
        let scissors = scissors.clone();
        thread::spawn(move || copy(from, to, connection, &scissors));
    }
    Ok(())
}

fn copy(mut from: TcpStream, mut to: TcpStream, connection: u64, scissors: &Scissors) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(read) = from.read(&mut buffer) {
        // Also the end of a connection is not passed on while it is cut.
        let passes = scissors.may_pass(connection) && read > 0;
        if !passes || to.write_all(buffer.get(..read).unwrap_or_default()).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::process::Ports;

    fn passes(from: &mut TcpStream, to: &mut TcpStream, byte: u8) -> bool {
        let mut read = [0];
        from.write_all(&[byte]).unwrap();
        to.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        to.read_exact(&mut read).is_ok() && read == [byte]
    }

    #[test]
    fn a_cut_connection_stays_open_and_says_nothing_until_it_is_mended() {
        let port = Ports::free().unwrap();
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let scissors = Scissors::default();
        relay(port, &scissors).unwrap();
        let connect = || {
            let client = TcpStream::connect((RELAYED, port)).unwrap();
            (client, server.accept().unwrap().0)
        };
        let (mut client, mut served) = connect();
        assert!(passes(&mut client, &mut served, b'a'));

        scissors.cut(false);
        assert!(!passes(&mut client, &mut served, b'b'), "passed through a cut");
        assert!(!passes(&mut served, &mut client, b'c'), "passed back through a cut");
        let (mut second, mut second_served) = connect();
        assert!(passes(&mut second, &mut second_served, b'd'), "a new connection was cut too");
        scissors.cut(true);
        let (mut third, mut third_served) = connect();
        assert!(!passes(&mut third, &mut third_served, b'e'), "a new connection passed through a cut for good");

        scissors.mend();
        for (socket, held) in [(&mut served, b'b'), (&mut client, b'c'), (&mut third_served, b'e')] {
            let mut read = [0];
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            socket.read_exact(&mut read).unwrap();
            assert_eq!(read, [held], "what was held back comes late");
        }
        scissors.close();
    }
}
