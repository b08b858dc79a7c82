//! Who is measured over HTTP: our gateway, once as it comes and once with hardly any near cache, and the libraries that
//! a team would use instead. Each is one process on one core, and has shown that it refuses what it must.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::redis::Redis;
use super::{HitOrMiss, Operation, SessionOptions};
use crate::bench::machine::PROXY_CORE;
use crate::bench::process::{self, Running, free_address};
use crate::bench::rounds::{Sample, Subject, measure};
use crate::bench::{install, tokens};

pub const EDGEKEEP: &str = "edgekeep";
pub const EXPRESS: &str = "express-session";
pub const BETTER_AUTH: &str = "better-auth";
pub const TOWER: &str = "tower-sessions";
pub const SERVERS: [&str; 4] = [EDGEKEEP, EXPRESS, BETTER_AUTH, TOWER];

/// The built and installed programs.
pub struct Programs {
    pub edgekeep: PathBuf,
    pub load: PathBuf,
    npm: Option<PathBuf>,
    tower: Option<PathBuf>,
    /// What is measured, each with its versions.
    pub versions: Vec<(&'static str, String)>,
    /// Peers that could not be installed.
    pub missing: Vec<String>,
}

impl Programs {
    pub fn prepare(servers: &[&str]) -> anyhow::Result<Programs> {
        let edgekeep = install::build_with("edgekeep", &["edgekeep"], &["bench"])?.join("edgekeep");
        let load = install::build("edgekeep-tests", &["load_sessions"])?.join("load_sessions");
        let said = process::run(Command::new(&edgekeep).arg("--version"))?;
        let mut versions = vec![(EDGEKEEP, String::from_utf8_lossy(&said.stdout).trim().to_owned())];
        let mut missing = Vec::new();
        let mut npm = None;
        if servers.iter().any(|name| matches!(*name, EXPRESS | BETTER_AUTH)) {
            match install::session_peers() {
                Ok(dir) => {
                    let node = process::run(Command::new("node").arg("--version"))?;
                    let node = String::from_utf8_lossy(&node.stdout).trim().to_owned();
                    let of = |packages: &[&str]| -> anyhow::Result<String> {
                        let versions: Vec<String> =
                            packages.iter().map(|name| install::npm_version(&dir, name)).collect::<Result<_, _>>()?;
                        Ok(format!("{}, Node {node}", versions.join(", ")))
                    };
                    versions.push((EXPRESS, of(&["express", "express-session", "connect-redis", "redis"])?));
                    versions.push((BETTER_AUTH, of(&["better-auth", "redis"])?));
                    npm = Some(dir);
                }
                Err(error) => missing.push(format!("{EXPRESS}, {BETTER_AUTH}: {error:#}")),
            }
        }
        let mut tower = None;
        if servers.contains(&TOWER) {
            match install::tower_peer() {
                Ok(binary) => {
                    versions.push((TOWER, "tower-sessions 0.14, tower-sessions-redis-store 0.16, axum 0.8".to_owned()));
                    tower = Some(binary);
                }
                Err(error) => missing.push(format!("{TOWER}: {error:#}")),
            }
        }
        Ok(Programs { edgekeep, load, npm, tower, versions, missing })
    }

    fn installed(&self, server: &str) -> bool {
        match server {
            EXPRESS | BETTER_AUTH => self.npm.is_some(),
            TOWER => self.tower.is_some(),
            _ => true,
        }
    }
}

/// One server on one store.
pub struct Server {
    pub name: &'static str,
    pub process: Running,
    address: SocketAddr,
    /// How the load speaks to it.
    arguments: Vec<String>,
    /// Our gateway with hardly any near cache: validations that find nothing in it.
    misses: bool,
    /// How much a second of it can be prepared: a slow peer would spend minutes making sessions to end.
    pace: Pace,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    Fast,
    Slow,
}

impl Server {
    /// Starts those of `servers` that are installed, on `redis`, and proves each.
    pub fn start_all(
        servers: &[&'static str],
        programs: &Programs,
        redis: &Redis,
        dir: &Path,
    ) -> anyhow::Result<Vec<Server>> {
        let mut started = Vec::new();
        for &name in servers.iter().filter(|name| programs.installed(name)) {
            if name == EDGEKEEP {
                for near_cache in [100_000, 1] {
                    let settings = Settings { near_cache, ..Settings::default() };
                    started.push(Server::edgekeep(programs, redis, dir, &settings)?);
                }
            } else {
                started.push(Server::peer(name, programs, redis, dir)?);
            }
        }
        for server in &started {
            let mut prove = server.load(programs, "prove");
            process::run(&mut prove).with_context(|| format!("{}\n{}", server.name, server.process.log_tail()))?;
        }
        Ok(started)
    }

    pub fn edgekeep(programs: &Programs, redis: &Redis, dir: &Path, settings: &Settings) -> anyhow::Result<Server> {
        let name = format!("edgekeep-{}-{}", redis.name, settings.near_cache);
        let dir = dir.join(&name);
        fs::create_dir_all(&dir)?;
        let address = free_address()?;
        let config = settings.write(programs, redis, address, &dir)?;
        let service_token = tokens::random_text()?;
        let mut command = Command::new(&programs.edgekeep);
        command.arg("serve").arg("--config").arg(&config).env("EDGEKEEP_SERVICE_TOKEN", &service_token);
        let mut process = Running::start(&name, &command, PROXY_CORE, &dir)?;
        process.wait_for(address)?;
        let arguments = ["--dialect", "tokens", "--service-token", &service_token].map(String::from).to_vec();
        Ok(Server { name: EDGEKEEP, process, address, arguments, misses: settings.near_cache == 1, pace: Pace::Fast })
    }

    fn peer(name: &'static str, programs: &Programs, redis: &Redis, dir: &Path) -> anyhow::Result<Server> {
        let address = free_address()?;
        let (mut command, paths, pace) = match name {
            TOWER => (Command::new(programs.tower.as_ref().context(name)?), PLAIN, Pace::Fast),
            _ => {
                let (script, paths) =
                    if name == EXPRESS { ("express.js", PLAIN) } else { ("better-auth.js", BETTER_AUTH_PATHS) };
                let mut node = Command::new("node");
                node.arg(programs.npm.as_ref().context(name)?.join(script)).env("NODE_ENV", "production");
                (node, paths, Pace::Slow)
            }
        };
        command.env("PORT", address.port().to_string()).env("REDIS", redis.list());
        let mut process = Running::start(&format!("{name}-{}", redis.name), &command, PROXY_CORE, dir)?;
        process.wait_for(address)?;
        let [create, validate, refresh, revoke_all] = paths;
        let arguments = [
            ["--dialect", "cookies"],
            ["--create", create],
            ["--validate", validate],
            ["--refresh", refresh],
            ["--revoke-all", revoke_all],
        ];
        let arguments = arguments.as_flattened().iter().map(|argument| String::from(*argument)).collect();
        Ok(Server { name, process, address, arguments, misses: false, pace })
    }

    /// A peer knows no near cache: each of its validations is beside both of ours.
    pub fn performs(&self, operation: Operation) -> bool {
        match operation {
            Operation::Validate(HitOrMiss::Miss) => self.misses || self.name != EDGEKEEP,
            _ => !self.misses,
        }
    }

    pub fn measure(
        &self,
        programs: &Programs,
        redis: &Redis,
        operation: Operation,
        options: &SessionOptions,
    ) -> anyhow::Result<Sample> {
        let mut load = self.load(programs, operation.word());
        load.args(["--connections", &options.connections.to_string()]);
        load.args(["--warmup", &options.warmup.to_string(), "--seconds", &options.seconds.to_string()]);
        if self.pace == Pace::Slow {
            load.args(["--sessions", "256", "--users", "384"]);
        }
        let beside: Vec<&Running> = redis.processes.iter().collect();
        measure(&load, &Subject::Server(&self.process), &beside)
            .with_context(|| format!("{} {}", self.name, redis.name))
    }

    pub fn load(&self, programs: &Programs, operation: &str) -> Command {
        let mut load = Command::new(&programs.load);
        load.env("RUST_BACKTRACE", "0").args(["--address", &self.address.to_string(), "--operation", operation]);
        load.args(&self.arguments);
        load
    }
}

/// Create, validate, refresh, end all: as `tests/peers/sessions` has them.
const PLAIN: [&str; 4] = ["POST /login", "GET /me", "POST /refresh", "DELETE /users/{user}/sessions"];
const BETTER_AUTH_PATHS: [&str; 4] = [
    "POST /api/auth/login",
    "GET /api/auth/get-session?disableRefresh=true",
    "GET /api/auth/get-session",
    "DELETE /api/auth/users/{user}/sessions",
];

/// What differs between the gateways of a run.
pub struct Settings {
    pub near_cache: usize,
    pub access_ttl: &'static str,
    pub refresh_ttl: &'static str,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { near_cache: 100_000, access_ttl: "15m", refresh_ttl: "30d" }
    }
}

impl Settings {
    /// A configuration with keys beside it. HS256 and no verified-token cache: every signature is checked.
    pub fn write(
        &self,
        programs: &Programs,
        redis: &Redis,
        address: SocketAddr,
        dir: &Path,
    ) -> anyhow::Result<PathBuf> {
        let keys = dir.join("keys.json");
        let mut generate = Command::new(&programs.edgekeep);
        process::run(generate.args(["keys", "generate", "--algorithm", "hs256", "--file"]).arg(&keys))?;
        let config = dir.join("edgekeep.toml");
        let text = format!(
            r#"[server]
listen = ["{address}"]
threads = 1

[admin]
listen = "{admin}"

[session]
algorithm = "HS256"
token_cache = 0
near_cache = {near_cache}
access_ttl = "{access_ttl}"
refresh_ttl = "{refresh_ttl}"
idle_ttl = "{refresh_ttl}"
keys = "keys.json"

[store]
kind = "redis"
nodes = [{nodes}]
cluster = {cluster}
wait_replicas = {wait_replicas}
timeout = "2s"

[limits]
creates = "1000000/1s"

[shards.users]
count = 1

[[pools]]
shard = "shard_0"
origins = [{{ id = "origin", url = "http://127.0.0.1:9" }}]

[log]
level = "warn"
access = false
"#,
            admin = free_address()?,
            near_cache = self.near_cache,
            access_ttl = self.access_ttl,
            refresh_ttl = self.refresh_ttl,
            nodes = redis.nodes(),
            cluster = redis.cluster,
            wait_replicas = redis.wait_replicas,
        );
        fs::write(&config, text).with_context(|| config.display().to_string())?;
        Ok(config)
    }
}
