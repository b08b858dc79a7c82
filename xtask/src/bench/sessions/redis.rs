//! The Redis servers that sessions are kept in: one alone, and a cluster of three primaries with a replica each. Real
//! ones, with `appendonly yes`, all on the load's core.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::bench::machine::LOAD_CORE;
use crate::bench::process::{self, Running, free_address};

const PRIMARIES: usize = 3;

/// How long a cluster may take until all its nodes agree.
const SETTLE: Duration = Duration::from_secs(30);

pub struct Redis {
    pub name: &'static str,
    pub cluster: bool,
    /// How many replicas a write waits for.
    pub wait_replicas: usize,
    addresses: Vec<SocketAddr>,
    pub processes: Vec<Running>,
}

impl Redis {
    pub fn alone(dir: &Path) -> anyhow::Result<Redis> {
        let (address, process) = start("redis", &[], dir)?;
        Ok(Redis {
            name: "redis",
            cluster: false,
            wait_replicas: 0,
            addresses: vec![address],
            processes: vec![process],
        })
    }

    pub fn cluster(dir: &Path) -> anyhow::Result<Redis> {
        let mut redis =
            Redis { name: "cluster", cluster: true, wait_replicas: 1, addresses: Vec::new(), processes: Vec::new() };
        for node in 0..2 * PRIMARIES {
            let bus = free_address()?.port().to_string();
            let own = ["--cluster-enabled", "yes", "--cluster-node-timeout", "5000", "--cluster-port", &bus];
            let (address, process) = start(&format!("node-{node}"), &own, dir)?;
            redis.addresses.push(address);
            redis.processes.push(process);
        }
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]).args(redis.addresses.iter().map(SocketAddr::to_string));
        process::run(create.args(["--cluster-replicas", "1", "--cluster-yes"]))?;
        let deadline = Instant::now() + SETTLE;
        while !redis.settled()? {
            ensure!(Instant::now() < deadline, "the Redis cluster does not settle");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(redis)
    }

    /// Every node sees all slots served and every primary has its replica on line.
    fn settled(&self) -> anyhow::Result<bool> {
        let mut replicas = 0;
        for &address in &self.addresses {
            let cluster = info(address, &["CLUSTER", "INFO"])?;
            if !cluster.contains("cluster_state:ok") || !cluster.contains("cluster_known_nodes:6") {
                return Ok(false);
            }
            replicas += info(address, &["INFO", "replication"])?.matches("state=online").count();
        }
        Ok(replicas == PRIMARIES)
    }

    /// `host:port` of each server, separated by commas.
    pub fn list(&self) -> String {
        let addresses: Vec<String> = self.addresses.iter().map(SocketAddr::to_string).collect();
        addresses.join(",")
    }

    /// The servers as a list of our configuration.
    pub fn nodes(&self) -> String {
        let urls: Vec<String> = self.addresses.iter().map(|address| format!("\"redis://{address}\"")).collect();
        urls.join(", ")
    }

    pub fn first(&self) -> anyhow::Result<SocketAddr> {
        self.addresses.first().copied().context("no servers")
    }

    /// How many keys all primaries hold.
    pub fn keys(&self) -> anyhow::Result<u64> {
        let mut keys = 0;
        for &address in &self.addresses {
            if info(address, &["INFO", "replication"])?.contains("role:master") {
                keys += ask(address, &["DBSIZE"])?.trim_start_matches(':').parse::<u64>().context("DBSIZE")?;
            }
        }
        Ok(keys)
    }

    pub fn version(&self) -> anyhow::Result<String> {
        let server = info(self.first()?, &["INFO", "server"])?;
        let version = server.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or("unknown").trim();
        Ok(format!("Redis {version}"))
    }
}

fn start(name: &str, own: &[&str], dir: &Path) -> anyhow::Result<(SocketAddr, Running)> {
    let address = free_address()?;
    let data = dir.join(name);
    std::fs::create_dir_all(&data)?;
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--appendonly", "yes"]);
    command.args(["--save", "", "--maxmemory-policy", "noeviction", "--dir"]).arg(&data).args(own);
    let mut process = Running::start(name, &command, LOAD_CORE, dir)?;
    process.wait_for(address)?;
    Ok((address, process))
}

/// A command whose answer is a text, as one text.
fn info(address: SocketAddr, command: &[&str]) -> anyhow::Result<String> {
    let mut socket = connect(address)?;
    send(&mut socket, command)?;
    let mut lines = BufReader::new(socket);
    let mut line = String::new();
    lines.read_line(&mut line)?;
    let length = line.trim().strip_prefix('$').with_context(|| format!("{command:?} is answered {line}"))?;
    let mut text = vec![0; length.parse()?];
    std::io::Read::read_exact(&mut lines, &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A command whose answer is one line.
fn ask(address: SocketAddr, command: &[&str]) -> anyhow::Result<String> {
    let mut socket = connect(address)?;
    send(&mut socket, command)?;
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line)?;
    if line.starts_with('-') {
        bail!("{command:?} is answered {line}");
    }
    Ok(line.trim().to_owned())
}

fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(socket)
}

fn send(socket: &mut TcpStream, command: &[&str]) -> anyhow::Result<()> {
    let mut bytes = format!("*{}\r\n", command.len());
    for part in command {
        bytes += &format!("${}\r\n{part}\r\n", part.len());
    }
    Ok(socket.write_all(bytes.as_bytes())?)
}
