//! A deployment of Edgekeep, made of real processes: three demo origins, a native gateway over the embedded store or
//! over Redis, and for the edge a Worker under workerd in front, whose authority that gateway is.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::answer::Answer;
use crate::certificates::Certificates;
use crate::client::{Entry, Request};
use crate::common::{local, lock, root};
use crate::config::{self, PortsOf, RECORDERS, Setup};
use crate::forge::AccessKey;
use crate::process::{Ports, Program, children, eventually, hang_up, peak_memory, tail};
use crate::recorder::Recorder;
use crate::redis::{Cluster, Standalone};
use crate::resp::Reply;
use crate::unsteady::UnsteadyOrigin;

/// The credentials of every deployment under test; none may ever stand in a log.
pub const SERVICE_TOKEN: &str = "service-credential-of-the-scenarios";
pub const EDGE_TOKEN: &str = "edge-credential-of-the-scenarios";
pub const ADMIN_TOKEN: &str = "admin-credential-of-the-scenarios";
/// What gateways sign their requests to origins with, where a setup says so.
pub const ORIGIN_KEY: &str = "origin-key-of-the-scenarios";
/// The password of a Redis that has one.
pub const REDIS_PASSWORD: &str = "password-of-the-scenarios";

/// The programs under test, by the names of their logs.
const LOGS: [&str; 4] = ["gateway", "second", "refused", "worker"];

/// How long a process may take until it answers, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a scenario runs against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A native gateway over its embedded store.
    NativeEmbedded,
    /// A native gateway over a Redis Cluster of six nodes, or over one server where the setup says so.
    NativeRedis,
    /// A Worker beside a native region, which is its authority.
    EdgeBesideRegion,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::NativeEmbedded, Kind::NativeRedis, Kind::EdgeBesideRegion];
    /// Those whose clients talk to the native gateway.
    pub const NATIVE: [Kind; 2] = [Kind::NativeEmbedded, Kind::NativeRedis];

    /// As it stands before the names of tests.
    pub fn name(self) -> &'static str {
        match self {
            Kind::NativeEmbedded => "native_embedded",
            Kind::NativeRedis => "native_redis",
            Kind::EdgeBesideRegion => "edge_beside_region",
        }
    }

    pub fn is_native(self) -> bool {
        Kind::NATIVE.contains(&self)
    }
}

/// The servers of a deployment's session store, where it has any.
enum Store {
    Embedded,
    Cluster(Box<Cluster>),
    Standalone(Box<Standalone>),
}

impl Store {
    fn start(kind: Kind, setup: Setup) -> Result<Store> {
        Ok(match kind {
            Kind::NativeEmbedded | Kind::EdgeBesideRegion => Store::Embedded,
            Kind::NativeRedis if setup.standalone => Store::Standalone(Box::new(Standalone::start(setup.redis)?)),
            Kind::NativeRedis => Store::Cluster(Box::new(Cluster::start(setup.redis)?)),
        })
    }

    fn addresses(&self) -> Vec<String> {
        match self {
            Store::Embedded => Vec::new(),
            Store::Cluster(cluster) => cluster.addresses(),
            Store::Standalone(redis) => vec![redis.address()],
        }
    }

    fn certificates(&self) -> Option<&Certificates> {
        match self {
            Store::Embedded => None,
            Store::Cluster(cluster) => cluster.certificates(),
            Store::Standalone(redis) => redis.certificates(),
        }
    }

    /// As the second gateway finds them.
    fn addresses_for_second(&self) -> Vec<String> {
        match self {
            Store::Cluster(cluster) => cluster.relayed_addresses(),
            _ => self.addresses(),
        }
    }
}

/// One of the native gateways of a deployment.
#[derive(Clone, Copy, Debug)]
pub struct RunningGateway {
    pub entry: Entry,
    admin: Entry,
    process: u32,
}

impl RunningGateway {
    /// Asks it to read its configuration and keys again.
    pub fn reload(&self) {
        hang_up(self.process);
    }

    pub fn admin(&self, target: &str) -> Request {
        Request::new(self.admin, "GET", target).bearer(ADMIN_TOKEN)
    }
}

/// A deployment that runs until it is dropped.
pub struct Deployment {
    pub kind: Kind,
    pub setup: Setup,
    ports: PortsOf,
    /// In the order in which they are stopped: clients before what they need.
    worker: Mutex<Option<Program>>,
    second: Mutex<Option<Program>>,
    gateway: Mutex<Option<Program>>,
    origins: Mutex<Option<Program>>,
    unsteady: Mutex<Option<[UnsteadyOrigin; 4]>>,
    store: Store,
    recorders: Vec<Recorder>,
    /// Every token that was given out: none may stand in a log.
    given_out: Mutex<BTreeSet<String>>,
    folder: TempDir,
}

impl Deployment {
    pub fn start(kind: Kind, setup: Setup) -> Result<Deployment> {
        let mut recorders = [0; RECORDERS];
        for port in recorders.iter_mut().take(setup.own.map_or(0, |own| own.recorders)) {
            *port = Ports::free()?;
        }
        let ports = PortsOf {
            gateway: Ports::free()?,
            admin: Ports::free()?,
            second: Ports::free()?,
            second_admin: Ports::free()?,
            origins: [Ports::free()?, Ports::free()?, Ports::free()?],
            dead: Ports::free()?,
            unsteady: [Ports::free()?, Ports::free()?, Ports::free()?, Ports::free()?],
            worker: Ports::free()?,
            recorders,
        };
        let folder = tempfile::Builder::new().prefix("edgekeep-scenario-").tempdir()?;
        fs::create_dir(folder.path().join("data"))?;
        fs::create_dir(folder.path().join("demo"))?;
        let store = Store::start(kind, setup)?;
        let first = config::region(&ports, kind, setup, &store.addresses());
        fs::write(folder.path().join("edgekeep.toml"), first)?;
        let of_second = PortsOf { gateway: ports.second, admin: ports.second_admin, ..ports };
        let second = config::region(&of_second, kind, setup, &store.addresses_for_second());
        fs::write(folder.path().join("second.toml"), second)?;
        let deployment = Deployment {
            kind,
            setup,
            ports,
            worker: Mutex::new(None),
            second: Mutex::new(None),
            gateway: Mutex::new(None),
            origins: Mutex::new(None),
            unsteady: Mutex::new(None),
            store,
            recorders: recorders.into_iter().filter(|port| *port > 0).map(Recorder::start).collect::<Result<_>>()?,
            given_out: Mutex::new(BTreeSet::new()),
            folder,
        };
        if kind == Kind::NativeRedis {
            deployment.generate_keys()?;
        }
        deployment.start_origins()?;
        if setup.unsteady.is_some() {
            let [u0, u1, u2, s] = ports.unsteady;
            let start = UnsteadyOrigin::start;
            *lock(&deployment.unsteady) = Some([start("u0", u0)?, start("u1", u1)?, start("u2", u2)?, start("s", s)?]);
        }
        deployment.start_gateway()?;
        if kind == Kind::EdgeBesideRegion {
            deployment.start_worker().context("start the Worker")?;
        }
        Ok(deployment)
    }

    /// A request to where clients come in.
    pub fn request(&self, method: &str, target: &str) -> Request {
        Request::new(self.entry(), method, target)
    }

    pub fn get(&self, target: &str) -> Request {
        self.request("GET", target)
    }

    pub fn post(&self, target: &str) -> Request {
        self.request("POST", target)
    }

    pub fn delete(&self, target: &str) -> Request {
        self.request("DELETE", target)
    }

    /// A request to the native gateway itself, also where a Worker stands in front of it.
    pub fn region(&self, method: &str, target: &str) -> Request {
        Request::new(self.region_entry(), method, target)
    }

    /// A request to the admin side.
    pub fn admin(&self, method: &str, target: &str) -> Request {
        Request::new(Entry { address: local(self.ports.admin), behind_platform: false }, method, target)
    }

    /// A request to the admin side by who may change something there.
    pub fn operator(&self, method: &str, target: &str) -> Request {
        self.admin(method, target).bearer(ADMIN_TOKEN)
    }

    pub fn entry(&self) -> Entry {
        match self.kind {
            Kind::NativeEmbedded | Kind::NativeRedis => self.region_entry(),
            Kind::EdgeBesideRegion => Entry { address: local(self.ports.worker), behind_platform: true },
        }
    }

    /// A recording origin of the setup's.
    pub fn recorder(&self, number: usize) -> Result<&Recorder> {
        self.recorders.get(number).with_context(|| format!("the setup has no recording origin {number}"))
    }

    fn region_entry(&self) -> Entry {
        Entry { address: local(self.ports.gateway), behind_platform: false }
    }

    /// The native gateways, each by itself.
    pub fn gateways(&self) -> Result<Vec<RunningGateway>> {
        let process = lock(&self.gateway).as_ref().context("the gateway does not run")?.id();
        let admin = |port| Entry { address: local(port), behind_platform: false };
        let mut gateways = vec![RunningGateway { entry: self.region_entry(), admin: admin(self.ports.admin), process }];
        if self.kind == Kind::NativeRedis {
            let entry = self.second()?;
            let process = lock(&self.second).as_ref().context("the second gateway does not run")?.id();
            gateways.push(RunningGateway { entry, admin: admin(self.ports.second_admin), process });
        }
        Ok(gateways)
    }

    /// Runs the command line in the deployment's folder, where `edgekeep.toml` is the gateway's configuration.
    pub fn edgekeep(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(gateway_binary()?);
        self.with_credentials(command.args(arguments));
        Ok(command.output()?)
    }

    /// The key file of all gateways.
    pub fn key_file(&self) -> PathBuf {
        self.folder.path().join("data/keys.json")
    }

    pub fn signs_with_shared_keys(&self) -> bool {
        self.setup.shared_keys
    }

    /// Keys that the deployment signs with.
    pub fn access_key(&self) -> Result<AccessKey> {
        let text = fs::read_to_string(self.folder.path().join("data/keys.json")).context("read keys.json")?;
        AccessKey::current(&serde_json::from_str(&text)?)
    }

    pub fn start_origins(&self) -> Result<()> {
        let mut command = Command::new(gateway_binary()?);
        command.arg("origins");
        for port in self.ports.origins {
            command.args(["--listen", &local(port).to_string()]);
        }
        command.arg("--data").arg(self.folder.path().join("demo"));
        let mut origins = Program::start("the origins", &mut command, &self.log("origins"), None)?;
        origins.wait_until(PATIENCE, || self.ports.origins.iter().all(|port| answers(*port, "/health")))?;
        *lock(&self.origins) = Some(origins);
        Ok(())
    }

    /// The origins of [`Setup::unsteady`]: `u0`, `u1`, `u2` and `s`, the spare one. To be asked for once.
    pub fn unsteady_origins(&self) -> Result<[UnsteadyOrigin; 4]> {
        lock(&self.unsteady).take().context("they are gone, or the setup has none")
    }

    pub fn stop_origins(&self) {
        drop(lock(&self.origins).take());
    }

    /// Starts the gateway, with what it kept when it ran before.
    pub fn start_gateway(&self) -> Result<()> {
        let mut command = self.serve("edgekeep.toml")?;
        let mut gateway = Program::start("the gateway", &mut command, &self.log("gateway"), None)?;
        gateway.wait_until(PATIENCE, || answers(self.ports.admin, "/readyz"))?;
        *lock(&self.gateway) = Some(gateway);
        Ok(())
    }

    /// The gateway's process.
    pub fn gateway_process(&self) -> Result<u32> {
        Ok(lock(&self.gateway).as_ref().context("the gateway does not run")?.id())
    }

    /// Changes the gateway's file, which it reads at its next start or reload.
    pub fn change_configuration(&self, change: impl FnOnce(String) -> String) -> Result<()> {
        let file = self.folder.path().join("edgekeep.toml");
        let (old, new) = (fs::read_to_string(&file)?, file.with_extension("new"));
        fs::write(&new, change(old))?;
        Ok(fs::rename(new, file)?)
    }

    /// Asks the gateway to read its file again; the line that says how that went.
    pub fn reload(&self) -> Result<String> {
        let said = |log: &str| log.lines().filter(|line| line.contains("reloaded")).map(str::to_owned).collect();
        let before: Vec<String> = said(&self.gateway_log()?);
        hang_up(self.gateway_process()?);
        let mut now: Vec<String> = Vec::new();
        eventually("the reload", PATIENCE, || {
            now = said(&self.gateway_log()?);
            Ok(now.len() > before.len())
        })?;
        now.pop().context("nothing was said of the reload")
    }

    /// Starts a successor that takes over from the gateway, and waits until this has ended and that one serves.
    pub fn hand_over(&self) -> Result<()> {
        self.hand_over_while(|_| Ok(()))
    }

    /// The same; what is to happen meanwhile gets the successor's process.
    pub fn hand_over_while(&self, meanwhile: impl FnOnce(u32) -> Result<()>) -> Result<()> {
        let mut command = self.serve("edgekeep.toml")?;
        let mut successor = Program::start("the successor", command.arg("--takeover"), &self.log("gateway"), None)?;
        meanwhile(successor.id())?;
        let mut old = lock(&self.gateway).take().context("the gateway does not run")?;
        let ended = old.ended(PATIENCE)?;
        ensure!(ended.success(), "the old gateway ended with {ended}");
        successor.wait_until(PATIENCE, || answers(self.ports.admin, "/readyz"))?;
        *lock(&self.gateway) = Some(successor);
        Ok(())
    }

    /// What a successor says that cannot take over.
    pub fn failed_handover(&self) -> Result<String> {
        let mut command = self.serve("edgekeep.toml")?;
        let log = self.log("refused");
        let mut successor = Program::start("the successor", command.arg("--takeover"), &log, None)?;
        ensure!(!successor.ended(PATIENCE)?.success(), "it took over");
        Ok(fs::read_to_string(log)?)
    }

    /// Asks the gateway to end; [`Deployment::gateway_ended`] waits for that.
    pub fn terminate_gateway(&self) -> Result<()> {
        lock(&self.gateway).as_ref().context("the gateway does not run")?.terminate();
        Ok(())
    }

    /// Waits until the gateway has ended by itself, well.
    pub fn gateway_ended(&self, patience: Duration) -> Result<()> {
        let mut gateway = lock(&self.gateway).take().context("the gateway does not run")?;
        let ended = gateway.ended(patience)?;
        ensure!(ended.success(), "the gateway ended with {ended}");
        Ok(())
    }

    /// Lets another program start the gateway: its arguments come last.
    pub fn start_gateway_by(&self, launcher: &mut Command) -> Result<()> {
        launcher.arg(gateway_binary()?).args(["serve", "--config"]).arg(self.folder.path().join("edgekeep.toml"));
        self.with_credentials(launcher);
        let mut started = Program::start("the launcher", launcher, &self.log("gateway"), Some("go"))?;
        started.wait_until(PATIENCE, || answers(self.ports.admin, "/readyz"))?;
        *lock(&self.gateway) = Some(started);
        Ok(())
    }

    /// Addresses of the gateway: its clients' and its admin side's.
    pub fn addresses(&self) -> (SocketAddr, SocketAddr) {
        (local(self.ports.gateway), local(self.ports.admin))
    }

    /// Where clients of a second gateway come in: another process over the same store and with the same keys. The first
    /// call starts it.
    pub fn second(&self) -> Result<Entry> {
        ensure!(self.kind == Kind::NativeRedis, "two gateways share a store only over Redis");
        let mut second = lock(&self.second);
        if second.is_none() {
            let mut command = self.serve("second.toml")?;
            let mut started = Program::start("the second gateway", &mut command, &self.log("second"), None)?;
            started.wait_until(PATIENCE, || answers(self.ports.second_admin, "/readyz"))?;
            *second = Some(started);
        }
        Ok(Entry { address: local(self.ports.second), behind_platform: false })
    }

    /// What the gateway says when it ends by itself instead of serving, with a variable of another value.
    pub fn refused_start(&self, variable: &str, value: impl AsRef<OsStr>) -> Result<String> {
        let mut command = self.serve("second.toml")?;
        command.env(variable, value);
        let mut refused = Program::start("the gateway", &mut command, &self.log("refused"), None)?;
        match refused.wait_until(PATIENCE, || answers(self.ports.second_admin, "/readyz")) {
            Ok(()) => bail!("it serves"),
            Err(error) => Ok(error.to_string()),
        }
    }

    fn serve(&self, file: &str) -> Result<Command> {
        let mut command = Command::new(gateway_binary()?);
        command.args(["serve", "--config"]).arg(self.folder.path().join(file));
        self.with_credentials(&mut command);
        Ok(command)
    }

    /// Gateways that share a store are given their keys; they never make them.
    fn generate_keys(&self) -> Result<()> {
        let mut command = Command::new(gateway_binary()?);
        command.args(["keys", "generate", "--file"]).arg(self.key_file());
        command.args(["--algorithm", if self.setup.shared_keys { "hs256" } else { "eddsa" }]);
        let made = command.output()?;
        ensure!(made.status.success(), "`edgekeep keys generate`: {}", String::from_utf8_lossy(&made.stderr));
        Ok(())
    }

    /// The six nodes under the gateway.
    pub fn cluster(&self) -> Result<&Cluster> {
        match &self.store {
            Store::Cluster(cluster) => Ok(cluster),
            _ => bail!("this deployment has no Redis Cluster"),
        }
    }

    pub fn standalone(&self) -> Result<&Standalone> {
        match &self.store {
            Store::Standalone(redis) => Ok(redis),
            _ => bail!("this deployment has no standalone Redis"),
        }
    }

    /// The certificates of its store's servers, which the gateways trust.
    pub fn certificates(&self) -> Result<&Certificates> {
        self.store.certificates().context("this deployment's store speaks no TLS")
    }

    /// One command at every Redis server under the gateway.
    pub fn each_redis(&self, command: &[&str]) -> Result<Vec<Reply>> {
        match &self.store {
            Store::Embedded => bail!("this deployment has no Redis"),
            Store::Cluster(cluster) => cluster.nodes().map(|node| cluster.call(node, command)).collect(),
            Store::Standalone(redis) => Ok(vec![redis.call(command)?]),
        }
    }

    /// The sum of a metric's samples at every gateway that runs; with `label`, of those that carry it.
    pub fn metric(&self, name: &str, label: Option<(&str, &str)>) -> Result<f64> {
        let mut ports = vec![self.ports.admin];
        if lock(&self.second).is_some() {
            ports.push(self.ports.second_admin);
        }
        let wanted = label.map(|(name, value)| format!("{name}=\"{value}\""));
        let mut sum = 0.0;
        for port in ports {
            let entry = Entry { address: local(port), behind_platform: false };
            let text = Request::new(entry, "GET", "/metrics").bearer(ADMIN_TOKEN).send()?.expect(200)?.text();
            let samples = text.lines().filter_map(|line| Some((line.strip_prefix(name)?, line)));
            for (rest, line) in samples.filter(|(rest, _)| rest.starts_with(['{', ' '])) {
                if wanted.as_ref().is_none_or(|wanted| rest.contains(wanted)) {
                    let value = line.rsplit(' ').next().unwrap_or_default();
                    sum += value.parse::<f64>().with_context(|| format!("not a sample: {line}"))?;
                }
            }
        }
        Ok(sum)
    }

    /// `kill -9` of the gateway.
    pub fn kill_gateway(&self) -> Result<()> {
        let mut gateway = lock(&self.gateway).take().context("the gateway does not run")?;
        gateway.kill()
    }

    /// Replaces the Worker by one with the file as it is now.
    pub fn deploy_worker_again(&self) -> Result<()> {
        drop(lock(&self.worker).take());
        self.start_worker()
    }

    fn start_worker(&self) -> Result<()> {
        let module = std::env::var_os("EDGEKEEP_WORKER").map_or_else(|| root().join("edge/dist/worker.js"), Into::into);
        ensure!(module.is_file(), "{} is missing: run `cargo xtask edge build`", module.display());
        let out = self.folder.path().join("edge");
        fs::create_dir_all(&out)?;
        let mut command = Command::new(gateway_binary()?);
        command.args(["config", "edge", "--dev", "--config"]).arg(self.folder.path().join("edgekeep.toml"));
        command.args(["--authority", &format!("http://{}", local(self.ports.gateway)), "--out"]).arg(&out);
        self.with_credentials(&mut command);
        let made = command.output()?;
        if !made.status.success() {
            bail!("`edgekeep config edge` ended with {}\n{}", made.status, String::from_utf8_lossy(&made.stderr));
        }
        let mut bindings = secrets_file(&fs::read_to_string(self.folder.path().join(".dev.vars"))?);
        bindings["EDGEKEEP_CONFIG"] = Value::from(fs::read_to_string(out.join("config.json"))?);
        let options = json!({ "module": module, "port": self.ports.worker, "bindings": bindings });

        let mut command = Command::new("node");
        command.arg(root().join("tests/workerd.mjs")).current_dir(root());
        for (name, value) in [("CLOUDFLARE_CF_FETCH_ENABLED", "false"), ("WRANGLER_SEND_METRICS", "false")] {
            command.env(name, value);
        }
        let log = self.log("worker");
        // One that ran before has said so too.
        let said = || fs::read_to_string(&log).unwrap_or_default().matches("ready at ").count();
        let before = said();
        let mut worker = Program::start("the Worker", &mut command, &log, Some(&options.to_string()))?;
        worker.wait_until(PATIENCE, || said() > before)?;
        *lock(&self.worker) = Some(worker);
        Ok(())
    }

    fn with_credentials(&self, command: &mut Command) {
        command
            .env("EDGEKEEP_SERVICE_TOKEN", SERVICE_TOKEN)
            .env("EDGEKEEP_EDGE_TOKEN", EDGE_TOKEN)
            .env("EDGEKEEP_ADMIN_TOKEN", ADMIN_TOKEN)
            .env("EDGEKEEP_REDIS_PASSWORD", REDIS_PASSWORD)
            .env("EDGEKEEP_ORIGIN_KEY", ORIGIN_KEY)
            .current_dir(self.folder.path());
        if let Some(certificates) = self.store.certificates() {
            command.env("SSL_CERT_FILE", certificates.authority());
        }
    }

    /// The most memory that the process which clients talk to ever had, in KiB.
    pub fn peak_memory(&self) -> Result<u64> {
        match self.kind {
            Kind::NativeEmbedded | Kind::NativeRedis => {
                peak_memory(lock(&self.gateway).as_ref().context("no gateway")?.id())
            }
            Kind::EdgeBesideRegion => {
                let node = lock(&self.worker).as_ref().context("no Worker")?.id();
                let workerd = children(node, "workerd")?;
                peak_memory(*workerd.first().context("node runs no workerd")?)
            }
        }
    }

    /// Remembers what must never stand in a log.
    pub fn note_secrets(&self, answer: &Answer) {
        let Ok(document) = answer.json() else { return };
        let mut given_out = lock(&self.given_out);
        for name in ["access_token", "refresh_token"] {
            if let Some(token) = document[name].as_str() {
                given_out.insert(token.to_owned());
            }
        }
    }

    /// What the logs should not hold: a secret, a token, a panic, a stack trace.
    pub fn faults_in_logs(&self) -> Result<Vec<String>> {
        let mut faults = Vec::new();
        for name in LOGS {
            let text = fs::read(self.log(name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let secrets = self.secrets_in(&text)?;
            faults.extend(secrets.into_iter().map(|what| format!("the log of the {name} holds {what}")));
            for words in ["panicked at", "stack backtrace", "RuntimeError", "wasm-function", "    at "] {
                if let Some(line) = text.lines().find(|line| line.contains(words)) {
                    faults.push(format!("the log of the {name} says {words:?}: {line}"));
                }
            }
        }
        faults.dedup();
        Ok(faults)
    }

    /// Which secrets stand in a text: credentials, keys, tokens that were given out.
    pub fn secrets_in(&self, text: &str) -> Result<Vec<String>> {
        let mut secrets: Vec<(String, String)> = vec![
            ("the service credential".to_owned(), SERVICE_TOKEN.to_owned()),
            ("the edge credential".to_owned(), EDGE_TOKEN.to_owned()),
            ("the admin credential".to_owned(), ADMIN_TOKEN.to_owned()),
            ("the password of Redis".to_owned(), REDIS_PASSWORD.to_owned()),
            ("the origins' key".to_owned(), ORIGIN_KEY.to_owned()),
        ];
        let keys: Value = serde_json::from_str(&fs::read_to_string(self.folder.path().join("data/keys.json"))?)?;
        for kind in ["access", "refresh", "sticky", "log"] {
            for key in keys[kind].as_array().into_iter().flatten() {
                for name in ["d", "k", "secret"] {
                    if let Some(secret) = key[name].as_str() {
                        secrets.push((format!("a secret of the {kind} keys"), secret.to_owned()));
                    }
                }
            }
        }
        let found = secrets.into_iter().filter(|(_, secret)| text.contains(secret.as_str()));
        let mut found: Vec<String> = found.map(|(what, _)| what).collect();
        // Word by word: there may be very many tokens.
        let given_out = lock(&self.given_out);
        let is_of_tokens = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if text.split(|c| !is_of_tokens(c)).any(|word| given_out.contains(word.trim_end_matches('.'))) {
            found.push("a token".to_owned());
        }
        Ok(found)
    }

    /// The ends of the logs, for messages.
    pub fn last_words(&self) -> String {
        let mut text = String::new();
        for name in LOGS {
            let log = self.log(name);
            if log.exists() {
                text += &format!("the log of the {name}:\n{}", tail(&log));
            }
        }
        if let Store::Cluster(cluster) = &self.store {
            text += &cluster.last_words();
        }
        text
    }

    /// What the gateway has said so far. Its lines come a moment after what they tell of.
    pub fn gateway_log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.log("gateway"))?).into_owned())
    }

    /// What the gateway, and at the edge the Worker, told of sessions, each line as the native log writes it.
    pub fn session_events(&self) -> Result<Vec<String>> {
        let native = self.gateway_log()?;
        let mut told: Vec<String> = native.lines().filter(|line| line.contains(" session: ")).map(Into::into).collect();
        let worker = fs::read(self.log("worker")).unwrap_or_default();
        for line in String::from_utf8_lossy(&worker).lines() {
            if let Ok(event) = serde_json::from_str::<Value>(line) {
                told.push(format!("the Worker: {} how={} {line}", event["event"], event["how"]));
            }
        }
        Ok(told)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.log"))
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        for program in [&self.worker, &self.second, &self.gateway, &self.origins] {
            drop(lock(program).take());
        }
    }
}

fn answers(port: u16, path: &str) -> bool {
    let entry = Entry { address: local(port), behind_platform: false };
    Request::new(entry, "GET", path).send().is_ok_and(|answer| answer.status == 200)
}

/// The gateway under test: `EDGEKEEP_BIN`, or the newest profile that was built here.
pub fn gateway_binary() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("EDGEKEEP_BIN") {
        return Ok(named.into());
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let built = [target.join("ci/edgekeep"), target.join("debug/edgekeep")];
    let found = built.into_iter().find(|program| program.is_file());
    found.context("no gateway is built: `cargo build --package edgekeep`, or name one in EDGEKEEP_BIN")
}

/// Reads `NAME=VALUE` lines as wrangler does, with or without quotes around the value.
fn secrets_file(text: &str) -> Value {
    let mut values = json!({});
    for line in text.lines() {
        let Some((name, value)) = line.split_once('=') else { continue };
        let value = value.trim();
        let quoted = ['\'', '"', '`'].into_iter().find_map(|q| value.strip_prefix(q)?.strip_suffix(q));
        values[name.trim()] = Value::from(quoted.unwrap_or(value));
    }
    values
}
