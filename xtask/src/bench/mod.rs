//! `cargo xtask bench …`: our cost per request beside the peers', measured in the same run on the same machine.
//!
//! Figures from different runs or machines can't be compared, so no figure stands alone: the peers are started side
//! by side, measured in turn for a few seconds, round after round, and what is reported is the median of the rounds
//! with their spread, and ratios. A peer that is to check tokens is first shown tokens it must refuse.

mod edge;
mod gateway;
pub mod install;
mod machine;
mod ours;
mod peer;
mod process;
mod report;
mod rounds;
pub mod sessions;
mod tokens;

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

#[derive(clap::Subcommand)]
pub enum Bench {
    /// Our gateway, HAProxy, Envoy, nginx and a bare hyper proxy in front of two origins
    Gateway(gateway::GatewayOptions),
    /// Our Worker's `/v1/authorize`, Hono's `jwt`, jose and an empty Worker on one workerd
    Edge(Options),
    /// Sessions on one Redis and a cluster of six: our gateway and store, express-session, better-auth, tower-sessions
    Sessions(sessions::SessionOptions),
}

/// How long and what is measured.
#[derive(Clone, clap::Args)]
pub struct Options {
    /// Rounds; every peer is measured once in each
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds that a peer is measured in a round
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Seconds of load before each measurement
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// Connections that the load keeps busy
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Peers to measure, separated by commas
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// The peer that ratios are relative to; by default ours, or the first that was measured
    #[arg(long)]
    against: Option<String>,
    /// Print one JSON document instead of tables
    #[arg(long)]
    json: bool,
}

impl Bench {
    pub fn run(self) -> anyhow::Result<()> {
        machine::require_two_cores()?;
        match self {
            Bench::Gateway(options) => gateway::run(&options),
            Bench::Edge(options) => edge::run(&options),
            Bench::Sessions(options) => sessions::run(&options),
        }
    }
}

impl Options {
    /// The names to measure out of `known`, in that order.
    fn selection<'a>(&self, known: &[&'a str]) -> anyhow::Result<Vec<&'a str>> {
        ensure!(self.rounds > 0 && self.connections > 0, "--rounds and --connections start at 1");
        ensure!(self.seconds > 0.0 && self.warmup >= 0.0, "--seconds must be positive");
        for wanted in &self.peers {
            ensure!(known.contains(&wanted.as_str()), "--peers {wanted}: not one of {}", known.join(", "));
        }
        if let Some(against) = &self.against {
            ensure!(known.contains(&against.as_str()), "--against {against}: not one of {}", known.join(", "));
        }
        let selected = |name: &&str| self.peers.is_empty() || self.peers.iter().any(|wanted| wanted == name);
        Ok(known.iter().copied().filter(selected).collect())
    }

    /// Peers asked for by name must be measured; of the others, those that can't be installed are named and left out.
    fn asked_by_name(&self) -> bool {
        !self.peers.is_empty()
    }
}

/// The repository's root.
fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    root.map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Where cargo builds, and where tools and runs have their folders.
fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A fresh folder for one run's configurations and logs.
fn run_dir(name: &str) -> anyhow::Result<PathBuf> {
    let dir = target_dir().join("bench").join(name);
    if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(peers: &[&str]) -> Options {
        Options {
            rounds: 1,
            seconds: 1.0,
            warmup: 0.0,
            connections: 1,
            peers: peers.iter().map(|name| String::from(*name)).collect(),
            against: None,
            json: false,
        }
    }

    const KNOWN: [&str; 4] = ["full", "haproxy", "nginx", "bare"];

    #[test]
    fn without_a_choice_every_peer_is_measured() {
        assert_eq!(options(&[]).selection(&KNOWN).unwrap(), KNOWN);
    }

    #[test]
    fn peers_are_chosen_by_name_and_keep_their_order() {
        assert_eq!(options(&["bare", "haproxy"]).selection(&KNOWN).unwrap(), ["haproxy", "bare"]);
    }

    #[test]
    fn an_unknown_peer_is_refused_with_the_known_ones() {
        let error = options(&["hap"]).selection(&KNOWN).unwrap_err().to_string();
        assert!(error.contains("--peers hap:") && error.contains("haproxy"), "{error}");
    }
}
