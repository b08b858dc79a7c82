//! From samples to what is read: medians with their spread and ratios, as a table for people or JSON for scripts.
//!
//! Ratios are taken within each round and then their median, so a slow minute of the machine, which both sides of a
//! ratio saw, cancels out.

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::Context;
use serde::Serialize;

use super::peer::Peer;
use super::rounds::Sample;
use super::{Options, machine};

/// From this share on, the load's core counts as full.
pub const LOAD_FULL: f64 = 0.95;

/// From this share on, others' use of a core is pointed out.
pub const OTHERS_NOTICED: f64 = 0.1;

/// What a run found.
#[derive(Serialize)]
pub struct Report {
    pub bench: &'static str,
    machine: String,
    rounds: usize,
    seconds: f64,
    connections: usize,
    tokens: usize,
    /// The peer that ratios are relative to.
    against: &'static str,
    peers: Vec<Measured>,
    /// Peers that could not be measured, each with the reason.
    pub missing: Vec<String>,
    /// What shipping each costs, where that is of interest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<Size>,
}

/// A peer's figures.
#[derive(Serialize)]
pub struct Measured {
    pub name: &'static str,
    pub what: &'static str,
    pub version: String,
    pub cpu_us: Spread,
    pub requests_per_second: Spread,
    pub p50_us: Spread,
    pub p99_us: Spread,
    peer_busy: Spread,
    pub load_busy: Spread,
    others_on_peer_core: Spread,
    others_on_load_core: Spread,
    /// This peer's figure divided by that of the peer which it is compared with.
    pub cpu_ratio: Spread,
    pub requests_ratio: Spread,
    pub p99_ratio: Spread,
    pub samples: Vec<Sample>,
}

/// A file's size in bytes.
#[derive(Serialize)]
pub struct Size {
    pub what: String,
    pub raw: u64,
    pub gzipped: u64,
}

/// The median of the rounds between the lowest and the highest.
#[derive(Clone, Copy, Serialize)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Report {
    /// `ours`: the peer that ratios are relative to when nobody chose one and it was measured.
    pub fn new(
        bench: &'static str,
        ours: &str,
        options: &Options,
        peers: &[&Peer],
        samples: Vec<Vec<Sample>>,
    ) -> anyhow::Result<Report> {
        let position = |name: &str| peers.iter().position(|peer| peer.name == name);
        let against = match &options.against {
            Some(name) => position(name).with_context(|| format!("--against {name}: it was not measured"))?,
            None => position(ours).unwrap_or(0),
        };
        let base = samples.get(against).context("nothing was measured")?.clone();
        let measured = peers.iter().zip(samples).map(|(peer, samples)| Measured::new(peer, samples, &base));
        Ok(Report {
            bench,
            machine: machine::description(),
            rounds: options.rounds,
            seconds: options.seconds,
            connections: options.connections,
            tokens: super::tokens::COUNT,
            against: peers[against].name,
            peers: measured.collect(),
            missing: Vec::new(),
            sizes: Vec::new(),
        })
    }

    pub fn print(&self, json: bool) -> anyhow::Result<()> {
        let text = if json { serde_json::to_string_pretty(self)? + "\n" } else { self.table()? };
        std::io::stdout().lock().write_all(text.as_bytes())?;
        Ok(())
    }

    fn table(&self) -> anyhow::Result<String> {
        let mut out = String::new();
        writeln!(out, "\n{}", self.machine)?;
        writeln!(
            out,
            "{} rounds of {} s, {} connections in a closed loop, {} HS256 tokens in turn, one pinned core each.",
            self.rounds, self.seconds, self.connections, self.tokens
        )?;
        writeln!(out, "Medians of the rounds (lowest–highest); × is relative to {}.\n", self.against)?;

        let heads = ["peer", "CPU µs/request", "×", "requests/s", "×", "p99 µs", "core", "load's core"];
        let mut rows = vec![heads.map(String::from)];
        rows.extend(self.peers.iter().map(Measured::row));
        write_aligned(&mut out, &rows)?;

        writeln!(out)?;
        for peer in &self.peers {
            writeln!(out, "{}: {} ({})", peer.name, peer.what, peer.version)?;
        }
        for size in &self.sizes {
            writeln!(out, "{}: {} bytes, gzipped {}", size.what, size.raw, size.gzipped)?;
        }
        for missing in &self.missing {
            writeln!(out, "not measured: {missing}")?;
        }
        for note in self.notes() {
            writeln!(out, "note: {note}")?;
        }
        Ok(out)
    }

    /// What a reader must know before believing the figures.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for peer in self.peers.iter().filter(|peer| peer.load_busy.median >= LOAD_FULL) {
            notes.push(format!("{}: the load was the limit, so its requests/s and p99 are the load's", peer.name));
        }
        notes.extend(not_quiet(&self.peers.iter().collect::<Vec<_>>()));
        notes
    }
}

/// Says so when other work was noticed beside what was measured.
pub fn not_quiet(peers: &[&Measured]) -> Option<String> {
    let most = |others: fn(&Measured) -> Spread| peers.iter().map(|peer| others(peer).high).fold(0.0, f64::max);
    let peer_core = most(|peer| peer.others_on_peer_core);
    let load_core = most(|peer| peer.others_on_load_core);
    (peer_core.max(load_core) >= OTHERS_NOTICED).then(|| {
        format!(
            "the machine was not quiet: other work took up to {:.0} % of the peers' core and {:.0} % of the load's during \
             a measurement; that costs requests/s and p99 most, CPU per request less, ratios least",
            peer_core * 100.0,
            load_core * 100.0
        )
    })
}

impl Measured {
    /// `base`: the samples, of the same rounds, of the peer that ratios are relative to.
    pub fn new(peer: &Peer, samples: Vec<Sample>, base: &[Sample]) -> Measured {
        Measured::of((peer.name, peer.what, peer.version.clone()), samples, base)
    }

    /// The same of a peer of this name, description and version.
    pub fn of(peer: (&'static str, &'static str, String), samples: Vec<Sample>, base: &[Sample]) -> Measured {
        let (name, what, version) = peer;
        let spread = |figure: fn(&Sample) -> f64| Spread::of(samples.iter().map(figure));
        let ratio = |figure: fn(&Sample) -> f64| ratios(&samples, base, figure);
        Measured {
            name,
            what,
            version,
            cpu_us: spread(|sample| sample.cpu_us),
            requests_per_second: spread(|sample| sample.requests_per_second),
            p50_us: spread(|sample| sample.p50_us),
            p99_us: spread(|sample| sample.p99_us),
            peer_busy: spread(|sample| sample.peer_busy),
            load_busy: spread(|sample| sample.load_busy),
            others_on_peer_core: spread(|sample| sample.others.on_peer_core),
            others_on_load_core: spread(|sample| sample.others.on_load_core),
            cpu_ratio: ratio(|sample| sample.cpu_us),
            requests_ratio: ratio(|sample| sample.requests_per_second),
            p99_ratio: ratio(|sample| sample.p99_us),
            samples,
        }
    }

    fn row(&self) -> [String; 8] {
        [
            self.name.to_owned(),
            self.cpu_us.show(2),
            self.cpu_ratio.show(2),
            self.requests_per_second.show(0),
            self.requests_ratio.show(2),
            self.p99_us.show(0),
            format!("{:.0} %", self.peer_busy.median * 100.0),
            format!("{:.0} %", self.load_busy.median * 100.0),
        ]
    }
}

/// `figure` of the first divided by that of the second, round by round.
pub fn ratios(of: &[Sample], to: &[Sample], figure: fn(&Sample) -> f64) -> Spread {
    Spread::of(of.iter().zip(to).map(|(of, to)| figure(of) / figure(to)))
}

impl Spread {
    pub fn of(values: impl Iterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let last = values.len().saturating_sub(1);
        Spread { median: (at(last / 2) + at(last.div_ceil(2))) / 2.0, low: at(0), high: at(last) }
    }

    pub fn show(&self, decimals: usize) -> String {
        format!("{:.decimals$} ({:.decimals$}–{:.decimals$})", self.median, self.low, self.high)
    }
}

/// The first column to the left, the others to the right.
pub fn write_aligned<const N: usize>(out: &mut String, rows: &[[String; N]]) -> std::fmt::Result {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            if column == 0 {
                write!(out, "{cell:<width$}")?;
            } else {
                write!(out, "  {cell:>width$}")?;
            }
        }
        out.push('\n');
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_both_middles() {
        let odd = Spread::of([3.0, 1.0, 2.0].into_iter());
        assert_eq!((odd.median, odd.low, odd.high), (2.0, 1.0, 3.0));
        assert!((Spread::of([4.0, 1.0, 2.0, 3.0].into_iter()).median - 2.5).abs() < 1e-9);
        assert!((Spread::of([7.0].into_iter()).median - 7.0).abs() < 1e-9);
    }

    #[test]
    fn columns_line_up_whatever_their_bytes() {
        let rows = [["a", "1 µs"], ["bcd", "100 µs"]].map(|row| row.map(String::from));
        let mut out = String::new();
        write_aligned(&mut out, &rows).unwrap();
        assert_eq!(out, "a      1 µs\nbcd  100 µs\n");
    }
}
