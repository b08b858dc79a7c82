//! A relay of TCP connections that can swallow what one process sends and is sent: its peers see an open connection on
//! which nothing comes any more, as when a firewall forgets it or a cable is cut. No packet filter, no privileges.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};

/// How much is passed on at once.
const CHUNK: usize = 64 * 1024;

/// What is cut off, for all relays of a cluster.
#[derive(Clone, Default)]
pub struct Scissors(Arc<(Mutex<Cuts>, Condvar)>);

#[derive(Default)]
struct Cuts {
    /// The clients' ports of the connections that pass nothing on.
    ports: HashSet<u16>,
    /// Processes whose new connections are cut too.
    processes: HashSet<u32>,
    closed: bool,
}

impl Scissors {
    /// Cuts every connection that the process has now; `for_good` also those that it opens from now on.
    pub fn cut(&self, process: u32, for_good: bool) -> Result<()> {
        let ports = ports_of(process)?;
        let mut cuts = self.lock();
        cuts.ports.extend(ports);
        if for_good {
            cuts.processes.insert(process);
        }
        Ok(())
    }

    /// What was held back is passed on, late.
    pub fn mend(&self) {
        let mut cuts = self.lock();
        cuts.ports.clear();
        cuts.processes.clear();
        self.0.1.notify_all();
    }

    /// Ends the relays' threads as soon as they look.
    pub fn close(&self) {
        self.lock().closed = true;
        self.0.1.notify_all();
    }

    fn accepted(&self, port: u16) {
        let mut cuts = self.lock();
        let cut_off = |process: &u32| ports_of(*process).is_ok_and(|ports| ports.contains(&port));
        if cuts.processes.iter().any(cut_off) {
            cuts.ports.insert(port);
        } else {
            // The kernel gives a port again.
            cuts.ports.remove(&port);
        }
    }

    /// Waits while the connection is cut; false when the relay is closed.
    fn may_pass(&self, port: u16) -> bool {
        let mut cuts = self.lock();
        while cuts.ports.contains(&port) && !cuts.closed {
            cuts = self.0.1.wait(cuts).unwrap_or_else(PoisonError::into_inner);
        }
        !cuts.closed
    }

    fn lock(&self) -> MutexGuard<'_, Cuts> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes connections to `port` on to `to`, for as long as the process runs.
pub fn relay(port: u16, to: u16, scissors: &Scissors) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).context("bind a relay")?;
    let scissors = scissors.clone();
    thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(client) = client else { continue };
            if scissors.lock().closed {
                return;
            }
            // A connection that breaks while it is set up is one that broke: its client sees it.
            let _ = pass_on(client, to, &scissors);
        }
    });
    Ok(())
}

fn pass_on(client: TcpStream, to: u16, scissors: &Scissors) -> Result<()> {
    let port = client.peer_addr()?.port();
    scissors.accepted(port);
    let server = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, to)))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    for (from, to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
        let scissors = scissors.clone();
        thread::spawn(move || copy(from, to, port, &scissors));
    }
    Ok(())
}

fn copy(mut from: TcpStream, mut to: TcpStream, port: u16, scissors: &Scissors) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(read) = from.read(&mut buffer) {
        // Also the end of a connection is not passed on while it is cut.
        if !scissors.may_pass(port) || read == 0 || to.write_all(buffer.get(..read).unwrap_or_default()).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// The local ports of a process' TCP connections.
fn ports_of(process: u32) -> Result<HashSet<u16>> {
    let mut inodes = HashSet::new();
    for entry in std::fs::read_dir(format!("/proc/{process}/fd"))? {
        let Ok(target) = std::fs::read_link(entry?.path()) else { continue };
        let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'));
        inodes.extend(inode.map(str::to_owned));
    }
    let mut ports = HashSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        if !Path::new(table).exists() {
            continue;
        }
        for line in std::fs::read_to_string(table)?.lines().skip(1) {
            // "sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …", addresses in hex.
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(inode)) = (fields.get(1), fields.get(9)) else { continue };
            if inodes.contains(*inode)
                && let Some((_, port)) = local.rsplit_once(':')
            {
                ports.insert(u16::from_str_radix(port, 16)?);
            }
        }
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::process::Ports;

    #[test]
    fn a_cut_connection_stays_open_and_says_nothing_until_it_is_mended() {
        let (entry, inner) = (Ports::free().unwrap(), Ports::free().unwrap());
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, inner)).unwrap();
        let scissors = Scissors::default();
        relay(entry, inner, &scissors).unwrap();
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, entry)).unwrap();
        let (mut served, _) = server.accept().unwrap();
        let mut byte = [0];
        client.write_all(b"a").unwrap();
        served.read_exact(&mut byte).unwrap();

        scissors.cut(std::process::id(), true).unwrap();
        client.write_all(b"b").unwrap();
        served.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(served.read(&mut byte).is_err(), "passed through a cut");
        let mut second = TcpStream::connect((Ipv4Addr::LOCALHOST, entry)).unwrap();
        let (mut second_served, _) = server.accept().unwrap();
        second.write_all(b"c").unwrap();
        second_served.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(second_served.read(&mut byte).is_err(), "a new connection passed through a cut");

        scissors.mend();
        let begun = Instant::now();
        served.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        served.read_exact(&mut byte).unwrap();
        assert_eq!((&byte, begun.elapsed().as_secs()), (b"b", 0));
        scissors.close();
    }
}
