//! Processes that a benchmark starts: pinned to a core, logged to a file, stopped with the benchmark.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::machine::Cores;

/// How long a process may take until it accepts connections.
const START: Duration = Duration::from_secs(30);

/// A started process. Dropping it kills it; if this task is killed first, the kernel does.
pub struct Running {
    child: Child,
    name: String,
    log: PathBuf,
    pub cores: Cores,
}

impl Running {
    /// Starts `command` on `cores`, with its output in `<dir>/<name>.log`.
    pub fn start(name: &str, command: &Command, cores: Cores, dir: &Path) -> anyhow::Result<Running> {
        let log = dir.join(format!("{name}.log"));
        let output = File::create(&log).with_context(|| log.display().to_string())?;
        let child = pinned(command, cores)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Running { child, name: name.to_owned(), log, cores })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it accepts connections at `address`.
    pub fn wait_for(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let deadline = Instant::now() + START;
        while TcpStream::connect(address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}) before it accepted connections:\n{}", self.name, self.log_tail());
            }
            ensure!(Instant::now() < deadline, "{} accepts no connections:\n{}", self.name, self.log_tail());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The last lines it wrote.
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing can be done about a process that won't die, or that is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `command` on `cores`, killed by the kernel when this process ends. `taskset` and `setpriv` replace themselves by
/// the program, so the process id is the program's.
pub fn pinned(command: &Command, cores: Cores) -> Command {
    let mut pinned = Command::new("taskset");
    pinned.args(["--cpu-list", &cores.list(), "setpriv", "--pdeathsig", "KILL"]);
    pinned.arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => pinned.env(key, value),
            None => pinned.env_remove(key),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        pinned.current_dir(dir);
    }
    pinned
}

/// Runs `command` to its end and returns what it wrote.
///
/// # Errors
/// When it can't be started or fails; the error carries what it wrote.
pub fn run(command: &mut Command) -> anyhow::Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
        bail!("{program} failed ({}):\n{}", output.status, said.join("\n"));
    }
    Ok(output)
}

/// An address on loopback that was free a moment ago.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// The memory that a process has in RAM, in bytes.
pub fn resident(pid: u32) -> anyhow::Result<u64> {
    let status =
        fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid} has ended"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
