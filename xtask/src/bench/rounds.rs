//! Interleaved rounds: every peer for a few seconds, then all again, so that what the machine does besides falls on
//! all of them alike. Each round starts with another peer.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use super::Options;
use super::machine::{BOTH_CORES, CoreTime, CpuTime, LOAD_CORE, PROXY_CORE};
use super::peer::Peer;
use super::process::{self, Running};

/// One peer in one round.
#[derive(Clone, Serialize)]
pub struct Sample {
    pub requests: u64,
    pub requests_per_second: f64,
    /// CPU time of all the peer's threads per finished request, in µs.
    pub cpu_us: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// Answers that came before enough replicas had what was written; of interest to stores alone.
    #[serde(skip_serializing_if = "nothing")]
    pub not_replicated: u64,
    /// Answers of 503 that were asked again.
    #[serde(skip_serializing_if = "nothing")]
    pub unavailable: u64,
    /// The share of its core that the peer used. Well under 1: something else held it back.
    pub peer_busy: f64,
    /// The share of their core that the load and the origin used. At 1 they are the limit.
    pub load_busy: f64,
    /// The shares of both cores that others used. Well over 0: the machine was not quiet.
    pub others: Others,
}

#[derive(Clone, Copy, Serialize)]
pub struct Others {
    pub on_peer_core: f64,
    pub on_load_core: f64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn nothing(count: &u64) -> bool {
    *count == 0
}

/// The load generator, as built from `tests/`.
pub struct Load<'a> {
    pub binary: PathBuf,
    /// The origins on its core, if there are any.
    pub origins: Option<&'a Running>,
    /// What else it is told.
    pub arguments: Vec<String>,
}

/// All samples, by peer and by round.
pub fn interleave(
    peers: &[&Peer],
    rounds: usize,
    measure: impl Fn(&Peer) -> anyhow::Result<Sample>,
) -> anyhow::Result<Vec<Vec<Sample>>> {
    let mut samples: Vec<Vec<Sample>> = peers.iter().map(|_| Vec::with_capacity(rounds)).collect();
    for round in 0..rounds {
        for turn in 0..peers.len() {
            let at = (round + turn) % peers.len();
            let sample = measure(peers[at])?;
            eprintln!(
                "round {}/{rounds}  {:<14} {:>7.2} µs CPU/request  {:>8.0} requests/s",
                round + 1,
                peers[at].name,
                sample.cpu_us,
                sample.requests_per_second
            );
            samples[at].push(sample);
        }
    }
    Ok(samples)
}

/// What the load prints at its end.
#[derive(Deserialize)]
struct Finished {
    requests: u64,
    requests_per_second: f64,
    cpu_seconds: f64,
    latency_us: Latency,
    #[serde(default)]
    not_replicated: u64,
    #[serde(default)]
    unavailable: u64,
}

#[derive(Deserialize)]
struct Latency {
    p50: f64,
    p99: f64,
}

impl Load<'_> {
    pub fn measure(&self, peer: &Peer, options: &Options) -> anyhow::Result<Sample> {
        let beside: Vec<&Running> = self.origins.into_iter().collect();
        measure(&self.command(peer, options), &Subject::Server(&peer.process), &beside)
            .with_context(|| peer.name.to_owned())
    }

    pub fn command(&self, peer: &Peer, options: &Options) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .env("RUST_BACKTRACE", "0")
            .args(["--address", &peer.address.to_string()])
            .args(["--path", &peer.path])
            .arg("--tokens")
            .arg(&peer.tokens)
            .args(["--warmup", &options.warmup.to_string()])
            .args(["--seconds", &options.seconds.to_string()])
            .args(&self.arguments);
        for (name, value) in &peer.headers {
            command.args(["--header", &format!("{name}: {value}")]);
        }
        if let Some(body) = &peer.body {
            command.args(["--expect-body", body]);
        }
        command
    }
}

/// Whose CPU time is counted.
pub enum Subject<'a> {
    /// A server on the peers' core, while a load on the other core asks it.
    Server(&'a Running),
    /// The command itself, on the peers' core: it has no server but what stands beside.
    Itself,
}

/// Runs `command`, which says `measuring` when its warm-up is over, and its figures when it is done. `beside` is what
/// shares the load's core with it.
pub fn measure(command: &Command, subject: &Subject<'_>, beside: &[&Running]) -> anyhow::Result<Sample> {
    let shared = matches!(subject, Subject::Server(server) if server.cores == BOTH_CORES);
    let (peer_cores, load_cores) = if shared { (BOTH_CORES, BOTH_CORES) } else { (PROXY_CORE, LOAD_CORE) };
    let own_cores = match subject {
        Subject::Server(_) => load_cores,
        Subject::Itself => peer_cores,
    };
    let mut child = process::pinned(command, own_cores)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start the load")?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();

    let subject_pid = match subject {
        Subject::Server(server) => server.pid(),
        Subject::Itself => child.id(),
    };
    let log = || match subject {
        Subject::Server(server) => server.log_tail(),
        Subject::Itself => String::new(),
    };
    let sample = || -> anyhow::Result<Counters> {
        Ok(Counters {
            at: Instant::now(),
            peer: CpuTime::of(subject_pid)?,
            beside: beside.iter().map(|process| CpuTime::of(process.pid())).collect::<Result<_, _>>()?,
            peer_core: CoreTime::of(peer_cores)?,
            load_core: CoreTime::of(load_cores)?,
        })
    };

    // A process that has ended has no counters: what it wrote says why, so it is looked at first.
    let started = lines.next().transpose()?;
    let before = sample();
    let finished = lines.next().transpose()?;
    let after = sample();
    let mut errors = String::new();
    child.stderr.take().context("no output")?.read_to_string(&mut errors)?;
    let status = child.wait()?;
    ensure!(status.success(), "{}\n{}", errors.trim(), log());
    ensure!(started.as_deref() == Some("measuring"), "the load said {started:?}");
    let (before, after) = (before.with_context(log)?, after.with_context(log)?);
    let finished: Finished = serde_json::from_str(&finished.context("the load gave no figures")?)?;

    let wall = (after.at - before.at).as_secs_f64();
    let cpu = after.peer.since(&before.peer).as_secs_f64();
    let peer_busy = cpu / wall;
    let used = |(after, before): (&CpuTime, &CpuTime)| after.since(before).as_secs_f64();
    let beside: f64 = after.beside.iter().zip(&before.beside).map(used).sum();
    let load = match subject {
        Subject::Server(_) => finished.cpu_seconds,
        Subject::Itself => 0.0,
    };
    let load_busy = (load + beside) / wall;
    let on_peer_core = after.peer_core.busy_since(&before.peer_core);
    let on_load_core = after.load_core.busy_since(&before.load_core);
    // Both cores' are one figure then: half of each one's use falls on either.
    let together = (peer_busy + load_busy) / 2.0;
    let (peer_part, load_part) = if shared { (together, together) } else { (peer_busy, load_busy) };
    Ok(Sample {
        requests: finished.requests,
        requests_per_second: finished.requests_per_second,
        cpu_us: cpu * 1e6 / finished.requests as f64,
        p50_us: finished.latency_us.p50,
        p99_us: finished.latency_us.p99,
        not_replicated: finished.not_replicated,
        unavailable: finished.unavailable,
        peer_busy,
        load_busy,
        others: Others {
            on_peer_core: (on_peer_core - peer_part).max(0.0),
            on_load_core: (on_load_core - load_part).max(0.0),
        },
    })
}

/// All counters at one moment.
struct Counters {
    at: Instant,
    peer: CpuTime,
    beside: Vec<CpuTime>,
    peer_core: CoreTime,
    load_core: CoreTime,
}
