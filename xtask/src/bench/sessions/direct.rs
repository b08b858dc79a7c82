//! Library calls beside their floor: our store, asked in its own process without HTTP, and a bare client that sends the
//! very same scripts and waits over plain sockets. And `redis-benchmark`, for what these servers do with commands that
//! do nothing.

use std::path::Path;
use std::process::Command;

use anyhow::Context;

use super::redis::Redis;
use super::servers::{Programs, Settings};
use super::{Operation, SessionOptions};
use crate::bench::machine::PROXY_CORE;
use crate::bench::process::{self, Running, free_address};
use crate::bench::rounds::{Sample, Subject, measure};

pub const LIBRARY: &str = "library";
pub const FLOOR: &str = "floor";

/// What asks a store directly.
pub struct Direct {
    config: std::path::PathBuf,
}

impl Direct {
    pub fn prepare(programs: &Programs, redis: &Redis, dir: &Path) -> anyhow::Result<Direct> {
        let dir = dir.join(format!("direct-{}", redis.name));
        std::fs::create_dir_all(&dir)?;
        Ok(Direct { config: Settings::default().write(programs, redis, free_address()?, &dir)? })
    }

    /// `who` is `library` or `floor`.
    pub fn measure(
        &self,
        who: &str,
        programs: &Programs,
        redis: &Redis,
        operation: Operation,
        options: &SessionOptions,
    ) -> anyhow::Result<Sample> {
        let mut command = Command::new(&programs.edgekeep);
        command.env("RUST_BACKTRACE", "0").args(["bench", who, "--operation", operation.word(), "--config"]);
        command.arg(&self.config).args(["--concurrency", &options.connections.to_string()]);
        command.args(["--warmup", &options.warmup.to_string(), "--seconds", &options.seconds.to_string()]);
        let beside: Vec<&Running> = redis.processes.iter().collect();
        measure(&command, &Subject::Itself, &beside).with_context(|| format!("{who} {}", redis.name))
    }
}

/// Requests a second that `redis-benchmark` gets from these servers, by command.
pub fn redis_benchmark(redis: &Redis, options: &SessionOptions) -> anyhow::Result<Vec<(&'static str, f64)>> {
    let address = redis.first()?;
    let requests = (40_000.0 * options.seconds).max(2_000.0) as u64;
    let run = |command: &[&str]| -> anyhow::Result<f64> {
        let mut benchmark = Command::new("redis-benchmark");
        benchmark.args(["-h", "127.0.0.1", "-p", &address.port().to_string(), "--csv"]);
        benchmark.args(["-c", &options.connections.to_string(), "-n", &requests.to_string(), "-r", "1000000"]);
        if redis.cluster {
            benchmark.arg("--cluster");
        }
        let output = process::run(&mut process::pinned(benchmark.args(command), PROXY_CORE))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        rate(&text).with_context(|| format!("redis-benchmark wrote {text}"))
    };
    let script = "return redis.call('SET', KEYS[1], ARGV[1])";
    // In a cluster `{tag}` is what it replaces to choose a node.
    Ok(vec![
        ("SET", run(&["SET", "{tag}:__rand_int__", "value"])?),
        ("EVAL of a SET", run(&["EVAL", script, "1", "{tag}:__rand_int__", "value"])?),
    ])
}

/// The second value of the last line of values in quotes, which is the rate.
fn rate(csv: &str) -> Option<f64> {
    let line = csv.lines().rev().find(|line| line.matches("\",\"").count() > 1)?;
    // The name before it is the command, which may have commas and quotes of its own.
    let mut values = line.rsplit("\",\"");
    values.nth(6)?.trim_matches('"').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::rate;

    #[test]
    fn the_rate_is_found_behind_a_command_with_commas() {
        let csv = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\"p95_latency_ms\",\
                   \"p99_latency_ms\",\"max_latency_ms\"\n\"EVAL return f(a, \"b\",\"c\") 1\",\"33333.33\",\"1.5\",\
                   \"0.1\",\"1.4\",\"2.0\",\"3.0\",\"4.0\"\n";
        assert_eq!(rate(csv), Some(33333.33));
        assert_eq!(rate("nothing"), None);
    }
}
