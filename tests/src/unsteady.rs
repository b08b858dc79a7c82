//! An origin that breaks on demand: it fails its checks, its traffic or both, in every way in which servers do.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::SockRef;

use crate::common::{local, lock};

/// How often a waiting thread looks whether it is to end.
const GLANCE: Duration = Duration::from_millis(10);
const MAX_HEAD: usize = 64 * 1024;

/// What an origin does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    /// 200 at once.
    Works,
    Answers(u16),
    /// 200 after this time.
    Waits(Duration),
    /// Takes the request and says nothing.
    Hangs,
    /// Takes the request and resets the connection.
    Resets,
    /// 200 and 500 in turn.
    Flaps,
}

/// Runs until it is stopped or dropped. Its answers name it as the demo origins do.
pub struct UnsteadyOrigin {
    name: &'static str,
    port: u16,
    habits: Arc<Habits>,
    running: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

struct Habits {
    name: &'static str,
    /// With `/health`.
    checks: Mutex<Does>,
    /// With everything else.
    traffic: Mutex<Does>,
    turns: AtomicU64,
}

impl UnsteadyOrigin {
    pub fn start(name: &'static str, port: u16) -> Result<UnsteadyOrigin> {
        let habits = Habits {
            name,
            checks: Mutex::new(Does::Works),
            traffic: Mutex::new(Does::Works),
            turns: AtomicU64::new(0),
        };
        let mut origin = UnsteadyOrigin { name, port, habits: Arc::new(habits), running: None };
        origin.go_on()?;
        Ok(origin)
    }

    /// What it does with checks and with traffic from now on.
    pub fn set(&self, checks: Does, traffic: Does) {
        *lock(&self.habits.checks) = checks;
        *lock(&self.habits.traffic) = traffic;
    }

    /// As if the process had died: connections are cut, new ones are refused.
    pub fn stop(&mut self) {
        if let Some((end, thread)) = self.running.take() {
            end.store(true, Ordering::Release);
            let _ = thread.join();
        }
    }

    /// Listens again.
    pub fn go_on(&mut self) -> Result<()> {
        let listener = TcpListener::bind(local(self.port)).with_context(|| format!("origin {}", self.name))?;
        listener.set_nonblocking(true)?;
        let end = Arc::new(AtomicBool::new(false));
        let (ending, habits) = (end.clone(), self.habits.clone());
        self.running = Some((end, std::thread::spawn(move || accept(&listener, &ending, &habits))));
        Ok(())
    }
}

impl Drop for UnsteadyOrigin {
    fn drop(&mut self) {
        self.stop();
    }
}

fn accept(listener: &TcpListener, end: &Arc<AtomicBool>, habits: &Arc<Habits>) {
    let mut connections = Vec::new();
    while !end.load(Ordering::Acquire) {
        match listener.accept() {
            Ok((socket, _)) => {
                let (end, habits) = (end.clone(), habits.clone());
                connections.push(std::thread::spawn(move || {
                    // How a client's connection ends is the client's business.
                    let _ = serve(socket, &end, &habits);
                }));
            }
            Err(_) => std::thread::sleep(GLANCE),
        }
    }
    for connection in connections {
        let _ = connection.join();
    }
}

fn serve(mut socket: TcpStream, end: &AtomicBool, habits: &Habits) -> std::io::Result<()> {
    socket.set_nonblocking(false)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(GLANCE))?;
    let mut read = Vec::new();
    while let Some(head) = next_head(&mut socket, &mut read, end)? {
        let is_check = head.split_whitespace().nth(1).is_some_and(|target| target.starts_with("/health"));
        let does = *lock(if is_check { &habits.checks } else { &habits.traffic });
        let status = match does {
            Does::Works => 200,
            Does::Answers(status) => status,
            Does::Waits(span) => {
                std::thread::sleep(span);
                200
            }
            Does::Hangs => {
                next_head(&mut socket, &mut Vec::new(), end)?;
                return Ok(());
            }
            Does::Resets => return SockRef::from(&socket).set_linger(Some(Duration::ZERO)),
            Does::Flaps if habits.turns.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) => 200,
            Does::Flaps => 500,
        };
        write!(socket, "HTTP/1.1 {status} Said\r\nx-demo-origin: {}\r\ncontent-length: 2\r\n\r\nok", habits.name)?;
    }
    Ok(())
}

/// The next request's head; none when the client has closed, or this origin ends.
fn next_head(socket: &mut TcpStream, read: &mut Vec<u8>, end: &AtomicBool) -> std::io::Result<Option<String>> {
    let mut buffer = [0; 4096];
    loop {
        if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = read.split_off(at + 4);
            return Ok(Some(String::from_utf8_lossy(&std::mem::replace(read, rest)).into_owned()));
        }
        if end.load(Ordering::Acquire) || read.len() > MAX_HEAD {
            return Ok(None);
        }
        match socket.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(count) => read.extend(buffer.iter().take(count)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
}
