//! `cargo xtask bench sessions`: what creating, validating, refreshing and ending sessions costs on one Redis and on a
//! cluster of six, over HTTP beside the libraries a team would use instead, and as library calls beside a bare client
//! that sends the same scripts.
//!
//! What is measured has one core for itself, Redis and the load share the other. So a fast server is held back by Redis
//! before its own core is full: the CPU time per operation stands beside the rate for that reason.

mod direct;
mod redis;
mod report;
mod servers;
mod soak;

use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use serde::{Serialize, Serializer};

use super::{process, root, run_dir, target_dir};
use direct::{Direct, FLOOR, LIBRARY};
use redis::Redis;
use report::{Report, Row};
use servers::{Programs, SERVERS, Server};

const SOAK_OPERATIONS: u64 = 5_000_000;
const SOAK_CONNECTIONS: usize = 64;

/// How long and what is measured.
#[derive(clap::Args)]
pub struct SessionOptions {
    /// Rounds; everything is measured once in each
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of one measurement
    #[arg(long, default_value_t = 1.2)]
    seconds: f64,
    /// Seconds of load before each measurement
    #[arg(long, default_value_t = 0.3)]
    warmup: f64,
    /// Requests under way at any time
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Stores, separated by commas
    #[arg(long, value_delimiter = ',', default_values = ["redis", "cluster"])]
    stores: Vec<String>,
    /// Servers over HTTP, separated by commas
    #[arg(long, value_delimiter = ',', default_values = SERVERS)]
    servers: Vec<String>,
    /// Operations, separated by commas
    #[arg(long, value_delimiter = ',', default_values = ["create", "validate", "refresh", "revoke-all"])]
    operations: Vec<String>,
    /// Parts to run, separated by commas
    #[arg(long, value_delimiter = ',', default_values = ["http", "direct", "core"])]
    parts: Vec<String>,
    /// Instead: so many operations on the gateway, and fail when its memory or the keys in Redis have grown
    #[arg(long, value_name = "OPERATIONS", num_args = 0..=1, default_missing_value = "5000000")]
    soak: Option<u64>,
    /// Print one JSON document instead of tables
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Validate(HitOrMiss),
    Refresh,
    RevokeAll,
}

/// Whether our near cache has what is validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HitOrMiss {
    Hit,
    Miss,
}

impl Operation {
    const ALL: [Operation; 5] = [
        Operation::Create,
        Operation::Validate(HitOrMiss::Hit),
        Operation::Validate(HitOrMiss::Miss),
        Operation::Refresh,
        Operation::RevokeAll,
    ];

    /// As the load calls it.
    fn word(self) -> &'static str {
        match self {
            Operation::Create => "create",
            Operation::Validate(_) => "validate",
            Operation::Refresh => "refresh",
            Operation::RevokeAll => "revoke-all",
        }
    }

    fn shown(self) -> &'static str {
        match self {
            Operation::Validate(HitOrMiss::Hit) => "validate (hit)",
            Operation::Validate(HitOrMiss::Miss) => "validate (miss)",
            other => other.word(),
        }
    }
}

impl SessionOptions {
    fn chosen_operations(&self) -> impl Iterator<Item = Operation> {
        Operation::ALL.into_iter().filter(|operation| self.operations.iter().any(|word| word == operation.word()))
    }
}

impl Serialize for Operation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.shown())
    }
}

pub fn run(options: &SessionOptions) -> anyhow::Result<()> {
    ensure!(options.rounds > 0 && options.connections > 0, "--rounds and --connections start at 1");
    ensure!(options.seconds > 0.0 && options.warmup >= 0.0, "--seconds must be positive");
    let servers = chosen("--servers", &options.servers, &SERVERS)?;
    let stores = chosen("--stores", &options.stores, &["redis", "cluster"])?;
    let parts = chosen("--parts", &options.parts, &["http", "direct", "core"])?;
    chosen("--operations", &options.operations, &Operation::ALL.map(Operation::word))?;
    let dir = run_dir("sessions")?;
    if let Some(operations) = options.soak {
        let store = stores.last().copied().unwrap_or("cluster");
        return soaked(store, operations, options.connections, &dir);
    }

    let mut report = Report::new(options);
    if parts.iter().any(|part| *part != "core") {
        let programs = Programs::prepare(if parts.contains(&"http") { &servers } else { &[] })?;
        for store in stores {
            let redis = start(store, &dir)?;
            report.versions.retain(|(who, _)| *who != "Redis");
            report.versions.push(("Redis", redis.version()?));
            if parts.contains(&"http") {
                report.rows.extend(over_http(&servers, &programs, &redis, options, &dir)?);
            }
            if parts.contains(&"direct") {
                report.rows.extend(directly(&programs, &redis, options, &dir)?);
                let rates = direct::redis_benchmark(&redis, options)?;
                report.redis_benchmark.extend(rates.into_iter().map(|(command, rate)| (redis.name, command, rate)));
            }
        }
        report.versions.extend(programs.versions);
        report.missing = programs.missing;
    }
    if parts.contains(&"core") {
        match core_figures() {
            Ok(figures) => report.core = figures,
            Err(error) => report.missing.push(format!("core: {error:#}")),
        }
    }
    report.print(options.json)
}

/// The soak as `cargo xtask test --long` runs it: on the cluster, 5 million operations.
pub fn soak() -> anyhow::Result<()> {
    super::machine::require_two_cores()?;
    soaked("cluster", SOAK_OPERATIONS, SOAK_CONNECTIONS, &run_dir("soak")?)
}

fn soaked(store: &str, operations: u64, connections: usize, dir: &Path) -> anyhow::Result<()> {
    let programs = Programs::prepare(&[])?;
    soak::run(&programs, &start(store, dir)?, operations, connections, dir)
}

/// Those of `known` that were asked for, in that order.
fn chosen<'a>(option: &str, asked: &[String], known: &[&'a str]) -> anyhow::Result<Vec<&'a str>> {
    for name in asked {
        ensure!(known.contains(&name.as_str()), "{option} {name}: not one of {}", known.join(", "));
    }
    Ok(known.iter().copied().filter(|name| asked.iter().any(|asked| asked == name)).collect())
}

fn start(store: &str, dir: &Path) -> anyhow::Result<Redis> {
    eprintln!("starting {store}");
    if store == "redis" { Redis::alone(dir) } else { Redis::cluster(dir) }
}

/// Every server, operation by operation, round after round. Each round begins with another server.
fn over_http(
    servers: &[&'static str],
    programs: &Programs,
    redis: &Redis,
    options: &SessionOptions,
    dir: &Path,
) -> anyhow::Result<Vec<Row>> {
    let servers = Server::start_all(servers, programs, redis, dir)?;
    let mut rows = Vec::new();
    for operation in options.chosen_operations() {
        let performing: Vec<&Server> = servers.iter().filter(|server| server.performs(operation)).collect();
        let row = |server: &&Server| Row { store: redis.name, who: server.name, operation, samples: Vec::new() };
        let first = rows.len();
        rows.extend(performing.iter().map(row));
        for round in 0..options.rounds {
            for turn in 0..performing.len() {
                let at = (round + turn) % performing.len();
                let sample = performing[at].measure(programs, redis, operation, options)?;
                progress(redis, operation, performing[at].name, round, &sample);
                rows[first + at].samples.push(sample);
            }
        }
    }
    Ok(rows)
}

fn directly(programs: &Programs, redis: &Redis, options: &SessionOptions, dir: &Path) -> anyhow::Result<Vec<Row>> {
    let direct = Direct::prepare(programs, redis, dir)?;
    let mut rows = Vec::new();
    // A hit in the near cache asks no store: core's own measurement has it.
    for operation in options.chosen_operations().filter(|op| *op != Operation::Validate(HitOrMiss::Hit)) {
        let who = [LIBRARY, FLOOR];
        let first = rows.len();
        rows.extend(who.map(|who| Row { store: redis.name, who, operation, samples: Vec::new() }));
        for round in 0..options.rounds {
            for turn in 0..who.len() {
                let at = (round + turn) % who.len();
                let sample = direct.measure(who[at], programs, redis, operation, options)?;
                progress(redis, operation, who[at], round, &sample);
                rows[first + at].samples.push(sample);
            }
        }
    }
    Ok(rows)
}

fn progress(redis: &Redis, operation: Operation, who: &str, round: usize, sample: &super::rounds::Sample) {
    eprintln!(
        "{:<8} {:<15} {who:<16} round {}  {:>8.0}/s  {:>7.1} µs CPU",
        redis.name,
        operation.shown(),
        round + 1,
        sample.requests_per_second,
        sample.cpu_us
    );
}

/// What `core/examples/validation.rs` prints: validation of many tokens beside one HMAC each, and the near cache's
/// memory.
fn core_figures() -> anyhow::Result<Vec<serde_json::Value>> {
    eprintln!("building validation");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).args(["build", "--release", "--package", "edgekeep-core", "--example", "validation"]);
    process::run(&mut cargo)?;
    let example = Command::new(target_dir().join("release/examples/validation"));
    let output = process::run(&mut process::pinned(&example, super::machine::PROXY_CORE))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_refused_and_order_is_ours() {
        let asked = ["cluster", "redis"].map(String::from);
        assert_eq!(chosen("--stores", &asked, &["redis", "cluster"]).unwrap(), ["redis", "cluster"]);
        let error = chosen("--stores", &["disk".to_owned()], &["redis"]).unwrap_err().to_string();
        assert!(error.contains("disk") && error.contains("redis"), "{error}");
    }
}
