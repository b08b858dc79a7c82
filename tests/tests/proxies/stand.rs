//! A proxy with Edgekeep beside it and an application behind it: real processes, run from the files in `examples/` with
//! nothing in them changed but the ports (and, for nginx, where it buffers: Debian's folders are root's).

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgekeep_tests::{
    Answer, Entry, Ports, Program, Request, SERVICE_TOKEN, Session, eventually, gateway_binary, local, lock, root, tail,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;

use crate::witness::{Arrived, MARK, Witness};

/// How long a process may take until it answers, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The application's name, as clients ask for it.
pub const HOST: &str = "app.example";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proxy {
    Nginx,
    Haproxy,
    Envoy,
}

impl Proxy {
    pub const ALL: [Proxy; 3] = [Proxy::Nginx, Proxy::Haproxy, Proxy::Envoy];

    /// As it stands before the names of tests.
    pub fn name(self) -> &'static str {
        match self {
            Proxy::Nginx => "nginx",
            Proxy::Haproxy => "haproxy",
            Proxy::Envoy => "envoy",
        }
    }

    /// Its files in `examples/`; the first is the one that it is started with.
    fn files(self) -> &'static [&'static str] {
        match self {
            Proxy::Nginx => &["nginx.conf"],
            Proxy::Haproxy => &["haproxy.cfg", "haproxy-edgekeep.lua"],
            Proxy::Envoy => &["envoy.yaml"],
        }
    }

    /// An address as its file writes it.
    fn address(self, port: u16) -> String {
        match self {
            Proxy::Nginx | Proxy::Haproxy => format!("127.0.0.1:{port}"),
            Proxy::Envoy => format!("port_value: {port} "),
        }
    }

    /// How it runs in the foreground, from a folder.
    fn command(self, folder: &Path) -> Result<Command> {
        let file = folder.join(self.files().first().copied().unwrap_or_default());
        let mut command = Command::new(self.program()?);
        match self {
            Proxy::Nginx => {
                let globals = "daemon off; master_process off; pid nginx.pid; error_log stderr;";
                command.arg("-p").arg(folder).arg("-c").arg(file).args(["-e", "stderr", "-g", globals]);
            }
            Proxy::Haproxy => {
                command.arg("-db").arg("-f").arg(file);
            }
            Proxy::Envoy => {
                command.arg("-c").arg(file).args(["--concurrency", "1", "--use-dynamic-base-id", "-l", "warning"]);
            }
        }
        Ok(command)
    }

    fn program(self) -> Result<PathBuf> {
        if self != Proxy::Envoy {
            return Ok(self.name().into());
        }
        if let Some(named) = std::env::var_os("EDGEKEEP_ENVOY") {
            return Ok(named.into());
        }
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
        let brought = target.join("tools/envoy/envoy/_bin/envoy");
        ensure!(
            brought.is_file(),
            "Envoy is missing: `cargo xtask test proxies` brings it, or name it in EDGEKEEP_ENVOY"
        );
        Ok(brought)
    }
}

/// What the examples call the ports.
const CLIENTS: u16 = 8000;
const EDGEKEEP: u16 = 8080;
const ADMIN: u16 = 9090;
const APP: u16 = 9001;

/// A file to put in place of an example's, to see what happens then.
pub type Other = (&'static str, &'static str);

/// One proxy, with all that belongs to it, until it is dropped.
pub struct Stand {
    pub kind: Proxy,
    pub witness: Witness,
    clients: u16,
    gateway_port: u16,
    admin_port: u16,
    proxy: Mutex<Option<Program>>,
    gateway: Mutex<Option<Program>>,
    origins: Mutex<Option<Program>>,
    folder: TempDir,
}

impl Stand {
    pub fn start(kind: Proxy) -> Result<Stand> {
        Stand::start_with(kind, None, None)
    }

    /// With Edgekeep's demo origin as the application: it keeps data, and knows nothing of proxies.
    pub fn start_before_demo(kind: Proxy) -> Result<Stand> {
        Stand::start_with(kind, Some([Ports::free()?, Ports::free()?, Ports::free()?]), None)
    }

    pub fn start_with(kind: Proxy, demo: Option<[u16; 3]>, other: Option<Other>) -> Result<Stand> {
        let stand = Stand {
            kind,
            witness: Witness::start()?,
            clients: Ports::free()?,
            gateway_port: Ports::free()?,
            admin_port: Ports::free()?,
            proxy: Mutex::new(None),
            gateway: Mutex::new(None),
            origins: Mutex::new(None),
            folder: tempfile::Builder::new().prefix("edgekeep-proxy-").tempdir()?,
        };
        let app = demo.map_or(stand.witness.port, |[first, ..]| first);
        stand.write("edgekeep.toml", None, &|port| format!("127.0.0.1:{port}"), &[EDGEKEEP, ADMIN, APP], app)?;
        for file in kind.files() {
            let ports: &[u16] = if file.ends_with(".lua") { &[] } else { &[CLIENTS, EDGEKEEP, APP] };
            let other = other.filter(|(name, _)| name == file).map(|(_, text)| text);
            stand.write(file, other, &|port| kind.address(port), ports, app)?;
        }
        if let Some(ports) = demo {
            let mut command = Command::new(gateway_binary()?);
            command.arg("origins");
            for port in ports {
                command.args(["--listen", &local(port).to_string()]);
            }
            command.arg("--data").arg(stand.folder.path());
            *lock(&stand.origins) = Some(stand.run("the application", command, app)?);
        }
        stand.start_gateway()?;
        let proxy = stand.run(kind.name(), kind.command(stand.folder.path())?, stand.clients);
        let brings = || format!("{} does not run: `cargo xtask test proxies` brings it", kind.name());
        *lock(&stand.proxy) = Some(proxy.with_context(brings)?);
        Ok(stand)
    }

    /// Copies an example, with these ports replaced: each must stand in it.
    fn write(
        &self,
        name: &str,
        other: Option<&str>,
        written: &dyn Fn(u16) -> String,
        ports: &[u16],
        app: u16,
    ) -> Result<()> {
        let example = root().join("examples").join(name);
        let mut text = match other {
            Some(text) => text.to_owned(),
            None => fs::read_to_string(&example).with_context(|| example.display().to_string())?,
        };
        for port in ports {
            let ours = match *port {
                CLIENTS => self.clients,
                EDGEKEEP => self.gateway_port,
                ADMIN => self.admin_port,
                _ => app,
            };
            ensure!(text.contains(&written(*port)), "{name} has no {:?} to replace", written(*port));
            text = text.replace(&written(*port), &written(ours));
        }
        if name == "nginx.conf" {
            ensure!(text.contains("\nhttp {\n"), "{name} has no http block");
            let buffers =
                ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|of| format!("{of}_temp_path {of};\n"));
            text = text.replace("\nhttp {\n", &format!("\nhttp {{\n{}", buffers.concat()));
        }
        fs::write(self.folder.path().join(name), text)?;
        Ok(())
    }

    pub fn start_gateway(&self) -> Result<()> {
        let mut command = Command::new(gateway_binary()?);
        command.args(["serve", "--config"]).arg(self.folder.path().join("edgekeep.toml"));
        command.env("EDGEKEEP_SERVICE_TOKEN", SERVICE_TOKEN);
        *lock(&self.gateway) = Some(self.run("edgekeep", command, self.gateway_port)?);
        Ok(())
    }

    pub fn kill_gateway(&self) -> Result<()> {
        lock(&self.gateway).take().context("Edgekeep does not run")?.kill()
    }

    /// From now on it keeps its sockets and answers nothing.
    pub fn freeze_gateway(&self) -> Result<()> {
        let id = self.signal_gateway(Signal::STOP)?;
        // Its threads stop one after the other.
        eventually("every thread stands still", PATIENCE, || {
            for thread in fs::read_dir(format!("/proc/{id}/task"))? {
                let stat = fs::read_to_string(thread?.path().join("stat"))?;
                if !stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T")) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    pub fn thaw_gateway(&self) -> Result<()> {
        self.signal_gateway(Signal::CONT).map(drop)
    }

    fn signal_gateway(&self, signal: Signal) -> Result<u32> {
        let id = lock(&self.gateway).as_ref().context("Edgekeep does not run")?.id();
        kill_process(Pid::from_raw(i32::try_from(id)?).context("no process id")?, signal)?;
        Ok(id)
    }

    fn run(&self, name: &'static str, mut command: Command, port: u16) -> Result<Program> {
        let log = self.log(name);
        command.current_dir(self.folder.path());
        let mut program = lasting(move || Program::start(name, &mut command, &log, None))?;
        program.wait_until(PATIENCE, || TcpStream::connect(local(port)).is_ok())?;
        Ok(program)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.log"))
    }

    /// The ends of the logs, for messages.
    pub fn last_words(&self) -> String {
        [self.kind.name(), "edgekeep"]
            .iter()
            .fold(String::new(), |all, name| all + &format!("the log of {name}:\n{}", tail(&self.log(name))))
    }

    /// A new session, made by the login service, which speaks to Edgekeep directly.
    pub fn login(&self, user: &str) -> Result<Session> {
        let entry = Entry { address: local(self.gateway_port), behind_platform: false };
        let request = Request::new(entry, "POST", "/v1/sessions").bearer(SERVICE_TOKEN);
        Session::from(&request.json(&json!({ "user_id": user })).send()?.expect(201)?)
    }

    /// Where clients come in.
    pub fn entry(&self) -> Entry {
        Entry { address: local(self.clients), behind_platform: false }
    }

    /// A request through the proxy.
    pub fn ask(&self, method: &str, target: &str) -> Visit<'_> {
        let mark = fresh_mark();
        let request = Request::new(self.entry(), method, target).host(HOST).header(MARK, &mark);
        Visit { stand: self, request, mark }
    }

    pub fn get(&self, target: &str) -> Visit<'_> {
        self.ask("GET", target)
    }

    pub fn post(&self, target: &str) -> Visit<'_> {
        self.ask("POST", target)
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        // A stopped process hears no TERM.
        let _ = self.thaw_gateway();
        for program in [&self.proxy, &self.gateway, &self.origins] {
            drop(lock(program).take());
        }
    }
}

/// A mark that no other request has.
pub fn fresh_mark() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("m{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A request through the proxy, being made.
#[must_use]
pub struct Visit<'s> {
    stand: &'s Stand,
    request: Request,
    mark: String,
}

impl Visit<'_> {
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    /// With the cookie that holds the access token, as a browser sends it.
    pub fn cookie(self, token: &str) -> Self {
        self.header("cookie", &format!("__Host-edgekeep-at={token}"))
    }

    pub fn body(mut self, bytes: &[u8]) -> Self {
        self.request = self.request.bytes("application/octet-stream", bytes);
        self
    }

    pub fn json(mut self, text: &str) -> Self {
        self.request = self.request.text("application/json", text);
        self
    }

    /// Sends it and says what was answered and what arrived.
    pub fn go(self) -> Result<Seen> {
        let answer = self.request.send()?;
        Ok(Seen { answer, arrived: self.stand.witness.arrived(&self.mark) })
    }
}

/// What became of a request.
pub struct Seen {
    pub answer: Answer,
    pub arrived: Vec<Arrived>,
}

impl Seen {
    /// It arrived, once.
    pub fn passed(self) -> Result<Arrived> {
        ensure!(matches!(self.answer.status, 101 | 200), "not let through: {}", self.answer);
        let mut arrived = self.arrived;
        ensure!(arrived.len() == 1, "arrived {} times: {}", arrived.len(), self.answer);
        arrived.pop().context("one")
    }

    /// Nothing of it arrived, and this was answered.
    pub fn refused(self, status: u16) -> Result<Answer> {
        ensure!(self.arrived.is_empty(), "it arrived: {:?}\n{}", self.arrived, self.answer);
        self.answer.expect(status)
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Runs it on a thread that lasts as long as the process: Envoy asks the kernel to be ended with the thread that started
/// it, and a test's thread ends with its tests.
fn lasting<T: Send + 'static>(job: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    static STARTER: LazyLock<mpsc::Sender<Job>> = LazyLock::new(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        thread::spawn(move || jobs.iter().for_each(|job| job()));
        sender
    });
    let (done, result) = mpsc::channel();
    STARTER.send(Box::new(move || drop(done.send(job())))).ok().context("the starting thread is gone")?;
    result.recv().context("the starting thread broke")?
}
