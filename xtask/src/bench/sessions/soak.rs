//! The soak: millions of operations over users that come again, on one gateway and the cluster, with short lives so
//! that everything that ends also goes. It fails when the gateway's memory grew after it had seen every user, and when
//! Redis holds more at the end than what may outlive a session.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::redis::Redis;
use super::servers::{Programs, Server, Settings};
use crate::bench::machine::LOAD_CORE;
use crate::bench::process;

/// Users that come again and again.
const USERS: u64 = 4_000;

/// A dead mark stands for so long.
const ACCESS_TTL: Duration = Duration::from_secs(10);

/// An epoch stands for so long after its user's last sign.
const REFRESH_TTL: Duration = Duration::from_secs(3600);

/// How often memory and keys are looked at.
const EVERY: Duration = Duration::from_secs(2);

/// The first part of the run fills caches, queues and the allocator's arenas.
const WARM: f64 = 0.3;

/// How much the memory may be above what it was when everything was warm: an allocator gives back late.
const SLACK: f64 = 1.05;
const SLACK_BYTES: u64 = 4 << 20;

/// Keys that are not of users: the gateway's report, the shard map.
const OTHER_KEYS: u64 = 16;

struct Look {
    at: f64,
    resident: u64,
    keys: u64,
}

pub fn run(programs: &Programs, redis: &Redis, operations: u64, connections: usize, dir: &Path) -> anyhow::Result<()> {
    // Small, so that it is full early.
    let settings = Settings { near_cache: 10_000, access_ttl: "10s", refresh_ttl: "1h" };
    let server = Server::edgekeep(programs, redis, dir, &settings)?;
    let mut load = server.load(programs, "mixed");
    load.args(["--connections", &connections.to_string()]);
    load.args(["--users", &USERS.to_string(), "--operations", &operations.to_string()]);
    eprintln!("{operations} operations over {USERS} users on {}", redis.name);
    let started = Instant::now();
    let mut child = process::pinned(&load, LOAD_CORE)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start the load")?;
    let mut looks = Vec::new();
    while child.try_wait()?.is_none() {
        std::thread::sleep(EVERY);
        let look = Look {
            at: started.elapsed().as_secs_f64(),
            resident: process::resident(server.process.pid())?,
            keys: redis.keys()?,
        };
        if looks.len() % 5 == 0 {
            eprintln!("{:>5.0} s  {:>6.1} MiB resident  {:>8} keys", look.at, mebibytes(look.resident), look.keys);
        }
        looks.push(look);
    }
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stderr).trim(),
        server.process.log_tail()
    );
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let figures: serde_json::Value = serde_json::from_str(said.lines().last().context("the load gave no figures")?)?;

    // Redis drops what has expired when it comes by.
    let allowed = USERS + OTHER_KEYS;
    let deadline = Instant::now() + ACCESS_TTL + Duration::from_secs(60);
    let mut left = redis.keys()?;
    while left > allowed && Instant::now() < deadline {
        std::thread::sleep(EVERY);
        left = redis.keys()?;
    }

    let warm_from = started.elapsed().as_secs_f64().min(looks.last().map_or(0.0, |look| look.at)) * WARM;
    let warm: Vec<&Look> = looks.iter().filter(|look| look.at >= warm_from).collect();
    ensure!(warm.len() >= 8, "too short for a judgement: {} looks after the warm-up", warm.len());
    // The medians of the first and the last quarter: a moment's high does not count.
    let quarter = warm.len() / 4;
    let (early, late) = (&warm[..quarter], &warm[warm.len() - quarter..]);
    let resident = |looks: &[&Look]| median(looks.iter().map(|look| look.resident).collect());
    let keys = |looks: &[&Look]| median(looks.iter().map(|look| look.keys).collect());
    println!("load: {figures}");
    println!(
        "gateway: {:.1} MiB resident after the warm-up, {:.1} MiB at the end; Redis: {} keys, then {}; {left} left of \
         {USERS} users, whose epochs stand for {} min",
        mebibytes(resident(early)),
        mebibytes(resident(late)),
        keys(early),
        keys(late),
        REFRESH_TTL.as_secs() / 60
    );
    let allowed_memory = (resident(early) as f64 * SLACK) as u64 + SLACK_BYTES;
    if resident(late) > allowed_memory {
        bail!("the gateway's memory grew");
    }
    ensure!(keys(late) as f64 <= keys(early) as f64 * 1.25 + 1_000.0, "the keys in Redis grew while sessions did not");
    ensure!(left <= allowed, "{left} keys are left where at most {allowed} may be");
    println!("no growth");
    Ok(())
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
