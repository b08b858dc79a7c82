//! Programs that run beside the scenarios: started, waited for, ended by their id; what they say is kept in a file.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long a process may take to end by itself.
const GRACE: Duration = Duration::from_secs(8);
/// How often a waiting loop looks again.
const GLANCE: Duration = Duration::from_millis(25);
/// Ports are taken from here: below the range that the kernel gives to outgoing connections.
const FIRST_PORT: u16 = 18_000;
const LAST_PORT: u16 = 31_999;

/// Free ports of the loopback, each handed out once in this process.
pub struct Ports;

static HANDED_OUT: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

impl Ports {
    pub fn free() -> Result<u16> {
        let mut handed_out = HANDED_OUT.lock().unwrap_or_else(PoisonError::into_inner);
        let handed_out = handed_out.get_or_insert_default();
        let span = u32::from(LAST_PORT - FIRST_PORT);
        // Two runs at once start in different places.
        let start = std::process::id().wrapping_mul(257) % span;
        for step in 0..span {
            let port = FIRST_PORT + u16::try_from((start + step) % span)?;
            if !handed_out.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                handed_out.insert(port);
                return Ok(port);
            }
        }
        bail!("no port is free between {FIRST_PORT} and {LAST_PORT}")
    }
}

/// Looks again and again until it is so; an error when the time is over.
pub fn eventually(what: &str, patience: Duration, mut look: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    loop {
        if look()? {
            return Ok(());
        }
        if begun.elapsed() > patience {
            bail!("{what}: not within {patience:?}");
        }
        std::thread::sleep(GLANCE);
    }
}

/// What runs now, so that a signal to the scenarios ends it too.
static RUNNING: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// From now on, a signal that ends this process ends the programs that it started first.
pub fn end_programs_with_us() -> Result<()> {
    ctrlc::set_handler(|| {
        for id in running().iter() {
            signal(*id, Signal::KILL);
        }
        std::process::exit(130);
    })?;
    Ok(())
}

fn running() -> MutexGuard<'static, Vec<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn signal(id: u32, signal: Signal) {
    if let Some(id) = i32::try_from(id).ok().and_then(Pid::from_raw) {
        // It may just have ended.
        let _ = kill_process(id, signal);
    }
}

/// Asks a process to read its files again.
pub fn hang_up(id: u32) {
    signal(id, Signal::HUP);
}

/// A program that runs until it is stopped or dropped.
pub struct Program {
    child: Child,
    name: &'static str,
    log: PathBuf,
}

impl Program {
    /// Starts it with its output in `log`, and `input` (which then stays open) as its standard input.
    pub fn start(name: &'static str, command: &mut Command, log: &Path, input: Option<&str>) -> Result<Program> {
        let file = OpenOptions::new().create(true).append(true).open(log)?;
        command.stdout(Stdio::from(file.try_clone()?)).stderr(Stdio::from(file));
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
        running().push(child.id());
        if let (Some(input), Some(stdin)) = (input, child.stdin.as_mut()) {
            writeln!(stdin, "{input}")?;
        }
        Ok(Program { child, name, log: log.to_owned() })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `ready` says so; an error with its log when it ends before.
    pub fn wait_until(&mut self, patience: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}\n{}", self.name, tail(&self.log));
            }
            if ready() {
                return Ok(());
            }
            if begun.elapsed() > patience {
                bail!("{} was not ready within {patience:?}\n{}", self.name, tail(&self.log));
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// `kill -9`, and nothing before it.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGSTOP: it stays, its connections stay, and it does nothing.
    pub fn freeze(&self) {
        signal(self.child.id(), Signal::STOP);
    }

    pub fn thaw(&self) {
        signal(self.child.id(), Signal::CONT);
    }

    /// Asks it to end, and waits for nothing.
    pub fn terminate(&self) {
        signal(self.child.id(), Signal::TERM);
    }

    /// Waits until it has ended by itself.
    pub fn ended(&mut self, patience: Duration) -> Result<ExitStatus> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if begun.elapsed() > patience {
                bail!("{} has not ended within {patience:?}\n{}", self.name, tail(&self.log));
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// Asks it to end, and makes it end when it does not.
    pub fn stop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        drop(self.child.stdin.take());
        signal(self.child.id(), Signal::TERM);
        let begun = Instant::now();
        while begun.elapsed() < GRACE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(GLANCE);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.stop();
        running().retain(|id| *id != self.child.id());
    }
}

/// The end of a log, for messages.
pub fn tail(log: &Path) -> String {
    let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.len().saturating_sub(30);
    lines.iter().skip(start).fold(String::new(), |all, line| all + "  | " + line + "\n")
}

/// The largest resident memory that a process ever had, in KiB.
pub fn peak_memory(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

/// What a process has now: resident memory in KiB, and open files.
pub fn holds(process: u32) -> Result<(u64, usize)> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let resident = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok((resident, std::fs::read_dir(format!("/proc/{process}/fd"))?.count()))
}

/// The children of a process that run this program.
pub fn children(parent: u32, program: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // "id (program) state parent …"; a process that ended meanwhile is no child.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{id}/stat")) else { continue };
        let Some((before, after)) = stat.rsplit_once(')') else { continue };
        let its_parent = after.split_whitespace().nth(1).and_then(|id| id.parse::<u32>().ok());
        if its_parent == Some(parent) && before.split_once('(').is_some_and(|(_, name)| name == program) {
            found.push(id);
        }
    }
    Ok(found)
}
