//! Running other programs: in the foreground, with their output kept, or beside us in a process group of their own,
//! which is ended by its id and never by a name.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

/// How long a process may take to end by itself.
const GRACE: Duration = Duration::from_secs(10);

/// How often a waiting loop looks again.
const GLANCE: Duration = Duration::from_millis(50);

/// The groups that run beside us, so that a signal to us ends them too.
static GROUPS: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// The workspace's root, wherever the task was typed.
pub fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// Where cargo builds.
pub fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A program run at the workspace's root.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// Cargo, the one that runs us.
pub fn cargo() -> Command {
    command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs to its end with our own output; an error when it fails.
pub fn run(command: &mut Command) -> Result<()> {
    announce(command);
    let status = command.status().with_context(|| format!("cannot run `{}`", written(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", written(command));
    }
    Ok(())
}

/// Runs quietly and returns what it printed; an error with its complaints when it fails.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run `{}`", written(command)))?;
    if !output.status.success() {
        bail!("`{}` ended with {}\n{}", written(command), output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs to its end, shows its output as it comes and keeps it. Only its standard output is kept.
pub fn tee(command: &mut Command) -> Result<(ExitStatus, String)> {
    announce(command);
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run `{}`", written(command)))?;
    let mut kept = String::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            kept.push_str(&line);
            kept.push('\n');
        }
    }
    Ok((child.wait()?, kept))
}

/// Whether a program is found on PATH.
pub fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// A program that runs beside us, with everything it starts, until it is stopped or dropped.
pub struct Running {
    child: Child,
    group: Option<Pid>,
    name: String,
}

impl Running {
    /// Starts it in a process group of its own, with no standard input.
    pub fn start(command: &mut Command) -> Result<Running> {
        announce(command);
        let child = command
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run `{}`", written(command)))?;
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        if let Some(group) = group {
            groups().push(group);
        }
        Ok(Running { child, group, name: command.get_program().to_string_lossy().into_owned() })
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let status = self.child.wait()?;
        self.forget();
        Ok(status)
    }

    /// Waits until something listens on this port of the loopback; an error when the program ends before or the time
    /// is over.
    pub fn wait_for_port(&mut self, port: u16, patience: Duration) -> Result<()> {
        self.wait_until(&format!("listens on port {port}"), patience, || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
        })
    }

    /// Waits until `http://127.0.0.1:PORT/PATH` answers with a status below 500.
    pub fn wait_for_url(&mut self, port: u16, path: &str, patience: Duration) -> Result<()> {
        self.wait_for_port(port, patience)?;
        self.wait_until(&format!("answers http://127.0.0.1:{port}{path}"), patience, || {
            status_of(port, path).is_ok_and(|status| status < 500)
        })
    }

    fn wait_until(&mut self, what: &str, patience: Duration, mut done: impl FnMut() -> bool) -> Result<()> {
        let begun = Instant::now();
        while !done() {
            if let Some(status) = self.child.try_wait()? {
                self.forget();
                bail!("{} ended with {status} before it {what}", self.name);
            }
            if begun.elapsed() > patience {
                bail!("{} has not come so far that it {what} within {patience:?}", self.name);
            }
            thread::sleep(GLANCE);
        }
        Ok(())
    }

    /// Asks the group to end, and ends it when it does not.
    pub fn stop(&mut self) {
        let Some(group) = self.group else { return };
        // The group may be gone already: then there is nothing to end.
        let _ = kill_process_group(group, Signal::TERM);
        let begun = Instant::now();
        while begun.elapsed() < GRACE && matches!(self.child.try_wait(), Ok(None)) {
            thread::sleep(GLANCE);
        }
        // Also what the first process left behind in its group.
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.child.wait();
        self.forget();
    }

    fn forget(&mut self) {
        if let Some(group) = self.group.take() {
            groups().retain(|&other| other != group);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A terminal's Ctrl-C reaches only our own group: pass it on to the others, then end.
pub fn stop_everything_on_a_signal() -> Result<()> {
    ctrlc::set_handler(|| {
        for &group in groups().iter() {
            let _ = kill_process_group(group, Signal::TERM);
        }
        std::process::exit(130);
    })?;
    Ok(())
}

/// A port of the loopback that was free a moment ago.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The status that `http://127.0.0.1:PORT/PATH` answers with.
pub fn status_of(port: u16, path: &str) -> Result<u16> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n")?;
    let mut line = String::new();
    BufReader::new(stream.take(1024)).read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.with_context(|| format!("not an HTTP answer: {line:?}"))
}

fn groups() -> std::sync::MutexGuard<'static, Vec<Pid>> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn announce(command: &Command) {
    println!("$ {}", written(command));
    let _ = io::stdout().flush();
}

/// As it would be typed at the root: programs inside the workspace by their relative path.
fn written(command: &Command) -> String {
    let root = format!("{}/", root().display());
    let mut line = String::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            let _ = write!(line, "{}={} ", name.to_string_lossy(), value.to_string_lossy().replace(&root, ""));
        }
    }
    let program = command.get_program().to_string_lossy();
    // `cargo` is known by its full path when it runs us.
    let known = if program.ends_with("/cargo") { "cargo".into() } else { program.replace(&root, "") };
    line.push_str(&known);
    for argument in command.get_args() {
        let _ = write!(line, " {}", argument.to_string_lossy().replace(&root, ""));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stopping_ends_the_whole_group() {
        let port = free_port().unwrap();
        let mut command = command("sh");
        command.args(["-c", "sleep 300 & echo $! > \"$FILE\"; wait"]);
        let file = std::env::temp_dir().join(format!("edgekeep-xtask-{port}"));
        let mut running = Running::start(command.env("FILE", &file)).unwrap();
        while !std::fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n')) {
            thread::sleep(GLANCE);
        }
        let grandchild: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        running.stop();
        let _ = std::fs::remove_file(&file);
        let gone = || {
            // An orphan may be left as a zombie where nothing reaps it.
            std::fs::read_to_string(format!("/proc/{grandchild}/stat")).map_or(true, |stat| stat.contains(") Z "))
        };
        for _ in 0..100 {
            if gone() {
                return;
            }
            thread::sleep(GLANCE);
        }
        panic!("process {grandchild} is still there");
    }

    #[test]
    fn waiting_tells_an_early_end_from_a_late_start() {
        let mut ended = Running::start(&mut command("false")).unwrap();
        let error = ended.wait_for_port(free_port().unwrap(), Duration::from_secs(5)).unwrap_err();
        assert!(error.to_string().contains("ended with"), "{error}");
        let mut silent = Running::start(command("sleep").arg("60")).unwrap();
        let error = silent.wait_for_port(free_port().unwrap(), Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("within"), "{error}");
    }
}
