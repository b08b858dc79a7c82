//! A native gateway of a scenario's own, with the configuration that it writes, before origins of its own: threads that
//! say what reached them.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::client::{Entry, Request, read_some};
use crate::common::local;
use crate::deployment::{ADMIN_TOKEN, SERVICE_TOKEN, gateway_binary};
use crate::process::{Ports, Program, hang_up};

/// How long a gateway may take until it answers, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A gateway that runs until it is dropped.
pub struct Gateway {
    program: Program,
    pub entry: Entry,
    admin: Entry,
    file: PathBuf,
    log: PathBuf,
    folder: TempDir,
}

/// What stands in its file besides addresses and paths.
#[derive(Clone, Copy, Default)]
pub struct Written<'a> {
    /// Keys of `[server]`.
    pub server: &'a str,
    /// Everything after it: pools, routes and other sections.
    pub rest: &'a str,
}

impl Gateway {
    /// Starts it in a folder, where the files stand that its configuration names.
    pub fn start(folder: TempDir, written: Written<'_>) -> Result<Gateway> {
        let (clients, admin) = (local(Ports::free()?), local(Ports::free()?));
        let (file, log) = (folder.path().join("edgekeep.toml"), folder.path().join("gateway.log"));
        fs::write(&file, text(clients, admin, written))?;
        let mut program = Program::start("the gateway", &mut serve(&file)?, &log, None)?;
        let entry = |address| Entry { address, behind_platform: false };
        let (entry, admin) = (entry(clients), entry(admin));
        program.wait_until(PATIENCE, || is_ready(admin))?;
        Ok(Gateway { program, entry, admin, file, log, folder })
    }

    /// Starts a successor that takes over, and waits until this has ended and that one serves.
    pub fn hand_over(&mut self) -> Result<()> {
        let mut successor = Program::start("the successor", serve(&self.file)?.arg("--takeover"), &self.log, None)?;
        let ended = self.program.ended(PATIENCE)?;
        ensure!(ended.success(), "the old gateway ended with {ended}");
        let admin = self.admin;
        successor.wait_until(PATIENCE, || is_ready(admin))?;
        self.program = successor;
        Ok(())
    }

    /// What a successor says that cannot take over.
    pub fn failed_handover(&self) -> Result<String> {
        let ended = serve(&self.file)?.arg("--takeover").output()?;
        ensure!(!ended.status.success(), "it took over");
        Ok(String::from_utf8_lossy(&ended.stderr).into_owned())
    }

    /// Writes its file anew and asks it to read that.
    pub fn reload(&self, written: Written<'_>) -> Result<()> {
        fs::write(&self.file, text(self.entry.address, self.admin.address, written))?;
        hang_up(self.program.id());
        Ok(())
    }

    /// Asks it to end; it drains.
    pub fn terminate(&self) {
        self.program.terminate();
    }

    pub fn get(&self, target: &str) -> Request {
        Request::new(self.entry, "GET", target)
    }

    pub fn metrics(&self) -> Result<String> {
        Ok(Request::new(self.admin, "GET", "/metrics").bearer(ADMIN_TOKEN).send()?.expect(200)?.text())
    }

    /// Status and output of `edgekeep origin …` for this gateway.
    pub fn origin(&self, arguments: &[&str]) -> Result<(i32, String)> {
        let mut command = Command::new(gateway_binary()?);
        command.arg("origin").args(arguments).arg("--config").arg(&self.file).env("EDGEKEEP_ADMIN_TOKEN", ADMIN_TOKEN);
        let output = command.output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned()))
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).context("no log")
    }

    /// Its resident memory now, in KiB.
    pub fn memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.program.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse()?)
    }
}

fn serve(file: &Path) -> Result<Command> {
    let mut command = Command::new(gateway_binary()?);
    command.args(["serve", "--config"]).arg(file);
    command.env("EDGEKEEP_SERVICE_TOKEN", SERVICE_TOKEN).env("EDGEKEEP_ADMIN_TOKEN", ADMIN_TOKEN);
    Ok(command)
}

fn is_ready(admin: Entry) -> bool {
    Request::new(admin, "GET", "/readyz").send().is_ok_and(|answer| answer.status == 200)
}

fn text(clients: SocketAddr, admin: SocketAddr, written: Written<'_>) -> String {
    let Written { server, rest } = written;
    format!(
        "[server]\nlisten = [\"{clients}\"]\nthreads = 1\n{server}\n\n[admin]\nlisten = \"{admin}\"\n\n\
         [store]\npath = \"edgekeep.redb\"\n\n[session]\nkeys = \"keys.json\"\n\n{rest}\n"
    )
}

/// An origin of a scenario's own: each connection is a thread, for as long as the process runs.
pub struct Origin {
    pub address: SocketAddr,
}

impl Origin {
    /// `talk` has each connection.
    pub fn start(talk: impl Fn(TcpStream) -> Result<()> + Send + Sync + 'static) -> Result<Origin> {
        Origin::listening(local(Ports::free()?), talk)
    }

    /// The same at an address that is chosen.
    pub fn listening(
        address: SocketAddr,
        talk: impl Fn(TcpStream) -> Result<()> + Send + Sync + 'static,
    ) -> Result<Origin> {
        let listener = TcpListener::bind(address)?;
        let talk = Arc::new(talk);
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let talk = talk.clone();
                // A connection that breaks is one that the other side closed.
                thread::spawn(move || drop(talk(connection)));
            }
        });
        Ok(Origin { address })
    }

    /// A pool of this origin alone, and a route to it that is open to everybody.
    pub fn open_to_all(&self) -> String {
        format!(
            "[[pools]]\nshard = \"shard_0\"\norigins = [{{ id = \"a\", url = \"http://{}\" }}]\n\n\
             [[routes]]\npath = \"/{{rest..}}\"\nauth = \"none\"\n",
            self.address
        )
    }

    /// Answers each request with its own name and the request's head.
    pub fn named(name: &str) -> Result<Origin> {
        let name = name.to_owned();
        Origin::start(move |connection| answer_heads(connection, &name))
    }

    /// The same on another loopback address and a port that is given.
    pub fn named_at(name: &str, ip: Ipv4Addr, port: u16) -> Result<Origin> {
        let name = name.to_owned();
        Origin::listening((ip, port).into(), move |connection| answer_heads(connection, &name))
    }

    /// The same over TLS.
    pub fn encrypted(name: &str, config: Arc<ServerConfig>) -> Result<Origin> {
        let name = name.to_owned();
        Origin::start(move |connection| {
            let tls = ServerConnection::new(config.clone())?;
            answer_heads(StreamOwned::new(tls, connection), &name)
        })
    }
}

/// Answers each request without a body by the origin's name and the request's head; `Upgrade: echo` is granted.
pub fn answer_heads(mut connection: impl Read + Write, name: &str) -> Result<()> {
    let mut read = Vec::new();
    loop {
        let Some(end) = memchr::memmem::find(&read, b"\r\n\r\n") else {
            if read_some(&mut connection, &mut read)? == 0 {
                return Ok(());
            }
            continue;
        };
        let rest = read.split_off(end + 4);
        let head = String::from_utf8_lossy(&read).into_owned();
        read = rest;
        if head.to_ascii_lowercase().contains("upgrade: echo") {
            connection
                .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")?;
            loop {
                connection.write_all(&read)?;
                connection.flush()?;
                read.clear();
                if read_some(&mut connection, &mut read)? == 0 {
                    return Ok(());
                }
            }
        }
        let body = format!("{name}\n{head}");
        let length = body.len();
        connection.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}").as_bytes())?;
        connection.flush()?;
    }
}
