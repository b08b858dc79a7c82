//! A name server whose answers change when a scenario says so: A records over UDP, and no more of DNS than that
//! (RFC 1035 §4.1).

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::Result;

use crate::common::{local, lock};
use crate::process::Ports;

/// What it answers to a name that it was told nothing of.
const NO_SUCH_NAME: u8 = 3;
const FAILED: u8 = 2;
const A: u16 = 1;

/// Runs as long as the process.
pub struct Dns {
    pub address: SocketAddr,
    names: Arc<Mutex<HashMap<String, Option<Vec<Ipv4Addr>>>>>,
}

impl Dns {
    pub fn start() -> Result<Dns> {
        let socket = UdpSocket::bind(local(Ports::free()?))?;
        let dns = Dns { address: socket.local_addr()?, names: Arc::default() };
        let names = dns.names.clone();
        thread::spawn(move || {
            let mut query = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut query) {
                if let Some(answer) = query.get(..length).and_then(|query| answer(query, &lock(&names))) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Ok(dns)
    }

    /// From now on the name has these addresses.
    pub fn set(&self, name: &str, addresses: &[Ipv4Addr]) {
        lock(&self.names).insert(name.to_owned(), Some(addresses.to_vec()));
    }

    /// From now on it is answered SERVFAIL.
    pub fn fail(&self, name: &str) {
        lock(&self.names).insert(name.to_owned(), None);
    }

    /// From now on there is no such name.
    pub fn forget(&self, name: &str) {
        lock(&self.names).remove(name);
    }
}

fn answer(query: &[u8], names: &HashMap<String, Option<Vec<Ipv4Addr>>>) -> Option<Vec<u8>> {
    let (id, mut at, mut labels) = (query.get(..2)?, 12, Vec::new());
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    let question = query.get(12..at + 4)?;
    let (code, addresses) = match names.get(&labels.join(".")) {
        None => (NO_SUCH_NAME, &[][..]),
        Some(None) => (FAILED, &[][..]),
        Some(Some(addresses)) => (0, if kind == A { addresses.as_slice() } else { &[] }),
    };
    let count = u16::try_from(addresses.len()).ok()?.to_be_bytes();
    let mut answer = id.to_vec();
    // An answer with authority to a question that asked for recursion, and one question.
    answer.extend([0x85, 0x80 | code, 0, 1, count[0], count[1], 0, 0, 0, 0]);
    answer.extend(question);
    for address in addresses {
        // The question's name, A, IN, no time to live, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}
