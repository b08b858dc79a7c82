//! A service manager as systemd is one to a socket-activated service, for scenarios: it opens sockets, starts the
//! program with them (LISTEN_FDS, LISTEN_PID), says what the program tells it (NOTIFY_SOCKET), and starts it again when it
//! has ended. SIGTERM ends the program, and so brings the next one; when standard input closes, both end.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use edgekeep_tests::lock;
use rustix::process::{Pid, Signal, kill_process};

#[derive(Parser)]
struct Options {
    /// Open these and restart the program when it ends
    #[arg(long)]
    listen: Vec<SocketAddr>,
    /// Set LISTEN_PID, which only the process itself knows before it is the program, and become it
    #[arg(long, hide = true)]
    sockets: Option<usize>,
    #[arg(last = true, required = true)]
    program: Vec<String>,
}

/// The first of the passed sockets, as sd_listen_fds(3) says.
const FIRST: i32 = 3;

static PROGRAM: Mutex<Option<Child>> = Mutex::new(None);
/// No next one: whoever started this is done with it, or gone.
static ENDING: AtomicBool = AtomicBool::new(false);

fn main() -> Result<()> {
    let options = Options::parse();
    let (program, arguments) = options.program.split_first().context("no program")?;
    if let Some(sockets) = options.sockets {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("LISTEN_FDS", sockets.to_string())
            .env("LISTEN_PID", std::process::id().to_string());
        return Err(command.exec().into());
    }
    let mut kept = Vec::new();
    for (address, number) in options.listen.iter().zip(FIRST..) {
        let socket = TcpListener::bind(address)?;
        ensure!(socket.as_raw_fd() == number, "fd {} where {number} was expected", socket.as_raw_fd());
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::empty())?;
        kept.push(socket);
    }
    let folder = tempfile::tempdir()?;
    let notify = folder.path().join("notify");
    let notified = UnixDatagram::bind(&notify)?;
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(length) = notified.recv(&mut buffer) {
            for line in String::from_utf8_lossy(&buffer[..length]).lines() {
                eprintln!("notified: {line}");
            }
        }
    });
    ctrlc::set_handler(end_program)?;
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        ENDING.store(true, Ordering::Release);
        end_program();
    });
    let own = std::env::current_exe()?;
    while !ENDING.load(Ordering::Acquire) {
        let mut command = Command::new(&own);
        command.args(["--sockets", &kept.len().to_string(), "--"]).args(&options.program).env("NOTIFY_SOCKET", &notify);
        *lock(&PROGRAM) = Some(command.spawn()?);
        let status = loop {
            std::thread::sleep(Duration::from_millis(20));
            let mut program = lock(&PROGRAM);
            let Some(child) = program.as_mut() else { bail!("no program") };
            if let Some(status) = child.try_wait()? {
                break status;
            }
        };
        ensure!(status.success(), "the program ended with {status}");
    }
    Ok(())
}

fn end_program() {
    let id = lock(&PROGRAM).as_ref().and_then(|child| Pid::from_raw(i32::try_from(child.id()).ok()?));
    if let Some(id) = id {
        let _ = kill_process(id, Signal::TERM);
    }
}
