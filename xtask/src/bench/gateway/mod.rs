//! `cargo xtask bench gateway`: what a proxied and checked request costs here and at the peers.
//!
//! Ours does its full job; HAProxy and Envoy do what they can of it; nginx, a bare hyper proxy of our own shape and our
//! own gateway without checks are floors. All have the same two origins and the same load, and each runs alone on its
//! core while the load and the origins share another. In each row of `rows` the most that they give is found in a
//! closed loop; then all are asked at one rate, a share of HAProxy's most, where what a request costs and how long it
//! takes can be compared.

mod field;
mod profile;
mod proof;
mod report;
mod rows;

use std::path::Path;

use anyhow::{Context, ensure};

use super::ours::Ours;
use super::peer::Peer;
use super::rounds::{Load, Sample, interleave};
use super::{Options, install, process, run_dir};
use field::{Field, Programs};
use report::{Report, RowReport};
use rows::{MAIN, PEERS, REFERENCE, Row};

/// The share of HAProxy's most at which all are asked: busy, and not full.
const SHARE: f64 = 0.7;

/// Rounds in which the most of the reference alone is found.
const ROUNDS_FOR_RATE: usize = 2;

#[derive(clap::Args)]
pub struct GatewayOptions {
    #[command(flatten)]
    common: Options,
    /// Rows to measure, separated by commas: small, tls, http2, body-64k, body-1m, upload-64k, new-connection,
    /// tls-handshake, two-threads, scale
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Requests per second at which all are asked, instead of 70 % of what HAProxy gives at most in the row
    #[arg(long)]
    rate: Option<f64>,
    /// Show where the CPU time of the peers goes, by perf, in a closed loop or at `--rate`, instead of
    /// measuring
    #[arg(long)]
    profile: bool,
}

pub fn run(options: &GatewayOptions) -> anyhow::Result<()> {
    let selection = options.common.selection(&PEERS)?;
    let rows = rows::select(&options.rows)?;
    ensure!(options.rate.is_none_or(|rate| rate >= 1.0), "--rate starts at 1");
    let binaries = install::build("edgekeep-tests", &["load", "bench_origin", "bench_certificates", "bare_proxy"])?;
    let needs_ours =
        selection.iter().any(|name| matches!(*name, "full" | "token" | "none" | "full-at-scale" | "any-at-scale"));
    let programs = Programs { binaries, ours: needs_ours.then(Ours::build).transpose()? };
    let dir = run_dir("gateway")?;
    if options.profile {
        let row = rows.first().context("no row")?;
        return profile::run(row, &selection, &programs, options, &dir);
    }

    let mut reports = Vec::new();
    for row in &rows {
        let peers: Vec<&'static str> = row.peers.iter().copied().filter(|name| selection.contains(name)).collect();
        if peers.is_empty() {
            continue;
        }
        eprintln!("{}: {}", row.name, row.what);
        reports.push(measure(row, &peers, &programs, options, &dir).with_context(|| row.name)?);
    }
    Report::new(&options.common, reports).print(options.common.json)
}

fn measure(
    row: &Row,
    names: &[&'static str],
    programs: &Programs,
    options: &GatewayOptions,
    dir: &Path,
) -> anyhow::Result<RowReport> {
    let field = Field::prepare(row, programs, dir)?;
    let mut peers = Vec::new();
    let mut missing = Vec::new();
    for name in names {
        match field.start(name) {
            Ok(peer) => peers.push(peer),
            Err(error) if options.common.asked_by_name() => return Err(error.context(*name)),
            Err(error) => {
                eprintln!("{name}: left out");
                missing.push(format!("{name}: {error:#}"));
            }
        }
    }
    let mut report = RowReport::new(row, missing);
    let against = match &options.common.against {
        Some(name) => position(&peers, name).with_context(|| format!("--against {name}: it is not measured"))?,
        None => position(&peers, REFERENCE).unwrap_or(0),
    };
    if peers.is_empty() {
        return Ok(report);
    }

    let measure = |peers: &[&Peer], rounds: usize, rate: Option<f64>| {
        let mut arguments = field.way_of_asking(options.common.connections);
        arguments.extend(row.expected_length());
        arguments.extend(rate_argument(rate));
        let binary = programs.binaries.join("load");
        let load = Load { binary, origins: Some(&field.origins_process), arguments };
        interleave(peers, rounds, |peer| load.measure(peer, &options.common))
    };
    let all: Vec<&Peer> = peers.iter().collect();
    let rounds = options.common.rounds;
    let most = if row.name == MAIN {
        let most = measure(&all, rounds, None)?;
        let reference = most[against].clone();
        report.most(&all, most, against);
        reference
    } else {
        measure(&all[against..=against], rounds.min(ROUNDS_FOR_RATE), None)?.concat()
    };
    let rate = options.rate.unwrap_or_else(|| (SHARE * highest(&most)).floor().max(1.0));
    eprintln!("{}: {rate:.0} requests/s for all", row.name);
    report.at_rate(&all, measure(&all, rounds, Some(rate))?, against, rate);
    for peer in &all {
        report.holds(peer.name, process::resident(peer.process.pid())? as f64 / f64::from(1 << 20));
    }
    Ok(report)
}

fn rate_argument(rate: Option<f64>) -> Vec<String> {
    rate.map(|rate| ["--rate".to_owned(), rate.to_string()]).into_iter().flatten().collect()
}

fn position(peers: &[Peer], name: &str) -> Option<usize> {
    peers.iter().position(|peer| peer.name == name)
}

/// What something else on the machine takes makes the rate lower, never higher: the highest is nearest to the truth.
fn highest(samples: &[Sample]) -> f64 {
    samples.iter().map(|sample| sample.requests_per_second).fold(0.0, f64::max)
}
