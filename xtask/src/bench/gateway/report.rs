//! What the gateway's benchmark found: a table for each row, and the targets, reached or missed.

use std::fmt::Write as _;
use std::io::Write as _;

use serde::Serialize;

use super::super::peer::Peer;
use super::super::report::{Measured, Spread, not_quiet, ratios, write_aligned};
use super::super::rounds::Sample;
use super::super::{Options, machine, tokens};
use super::rows::{MAIN, REFERENCE, ROWS, Row, SCALE};

/// Requests per second in a closed loop are the peer's own only while the load's core is less busy than this.
const LOAD_FULL: f64 = 0.9;

/// The share of the rate under which a peer did not keep up.
const KEPT_UP: f64 = 0.99;

/// What each row but the main one is to reach: CPU time per request beside HAProxy's.
const OTHER_ROWS: f64 = 1.25;

/// What a large configuration may add to a request: nothing but colder caches.
const AT_SCALE: f64 = 1.10;

#[derive(Serialize)]
pub struct Report {
    bench: &'static str,
    machine: String,
    rounds: usize,
    seconds: f64,
    connections: usize,
    tokens: usize,
    rows: Vec<RowReport>,
    targets: Vec<Verdict>,
}

#[derive(Serialize)]
pub struct RowReport {
    name: &'static str,
    what: &'static str,
    /// In a closed loop.
    most: Vec<Measured>,
    /// Requests per second in `at_rate`.
    rate: f64,
    at_rate: Vec<Measured>,
    /// The peer that ratios are relative to.
    against: &'static str,
    /// Peers that could not be measured, each with the reason.
    missing: Vec<String>,
    /// What each peer holds in memory in the end, in MiB.
    resident: Vec<(&'static str, f64)>,
}

/// One of the targets.
struct Target {
    row: &'static str,
    of: &'static str,
    to: &'static str,
    figure: Figure,
    bound: f64,
}

#[derive(Clone, Copy)]
enum Figure {
    Cpu,
    P99,
    Most,
}

#[derive(Serialize)]
struct Verdict {
    target: String,
    bound: String,
    found: Option<Spread>,
    verdict: String,
}

impl RowReport {
    pub fn new(row: &Row, missing: Vec<String>) -> RowReport {
        let (most, at_rate) = (Vec::new(), Vec::new());
        RowReport {
            name: row.name,
            what: row.what,
            most,
            rate: 0.0,
            at_rate,
            against: REFERENCE,
            missing,
            resident: Vec::new(),
        }
    }

    /// What was measured in a closed loop.
    pub fn most(&mut self, peers: &[&Peer], samples: Vec<Vec<Sample>>, against: usize) {
        self.most = measured(peers, samples, against);
    }

    /// What was measured at one rate.
    pub fn at_rate(&mut self, peers: &[&Peer], samples: Vec<Vec<Sample>>, against: usize, rate: f64) {
        self.at_rate = measured(peers, samples, against);
        self.against = peers[against].name;
        self.rate = rate;
    }

    pub fn holds(&mut self, peer: &'static str, mib: f64) {
        self.resident.push((peer, mib));
    }

    fn table(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "\n{}: {}", self.name, self.what)?;
        let against = format!("× {}", self.against);
        if !self.at_rate.is_empty() {
            writeln!(out, "at {:.0} requests/s:", self.rate)?;
            let heads = ["peer", "CPU µs/request", &against, "p50 µs", "p99 µs", &against, "load's core"];
            let mut rows = vec![heads.map(String::from)];
            rows.extend(self.at_rate.iter().map(|peer| {
                [
                    peer.name.to_owned(),
                    peer.cpu_us.show(2),
                    peer.cpu_ratio.show(2),
                    peer.p50_us.show(0),
                    peer.p99_us.show(0),
                    peer.p99_ratio.show(2),
                    percent(peer.load_busy.median),
                ]
            }));
            write_aligned(out, &rows)?;
        }
        if !self.most.is_empty() {
            writeln!(out, "in a closed loop:")?;
            let heads = ["peer", "requests/s", &against, "CPU µs/request", "p99 µs", "load's core"];
            let mut rows = vec![heads.map(String::from)];
            rows.extend(self.most.iter().map(|peer| {
                let full = if peer.load_busy.median >= LOAD_FULL { " (full)" } else { "" };
                [
                    peer.name.to_owned(),
                    peer.requests_per_second.show(0),
                    peer.requests_ratio.show(2),
                    peer.cpu_us.show(2),
                    peer.p99_us.show(0),
                    percent(peer.load_busy.median) + full,
                ]
            }));
            write_aligned(out, &rows)?;
        }
        let resident: Vec<String> = self.resident.iter().map(|(peer, mib)| format!("{peer} {mib:.1}")).collect();
        if !resident.is_empty() {
            writeln!(out, "resident MiB in the end: {}", resident.join(", "))?;
        }
        for missing in &self.missing {
            writeln!(out, "not measured: {missing}")?;
        }
        for peer in &self.at_rate {
            if peer.requests_per_second.median < KEPT_UP * self.rate {
                let most = peer.requests_per_second.median;
                writeln!(out, "note: {} did not keep up: {most:.0} requests/s", peer.name)?;
            }
        }
        Ok(())
    }
}

fn measured(peers: &[&Peer], samples: Vec<Vec<Sample>>, against: usize) -> Vec<Measured> {
    let base = samples[against].clone();
    peers.iter().zip(samples).map(|(peer, samples)| Measured::new(peer, samples, &base)).collect()
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

impl Report {
    pub fn new(options: &Options, rows: Vec<RowReport>) -> Report {
        let targets = targets();
        let measured = |target: &&Target| rows.iter().any(|row| row.name == target.row);
        Report {
            bench: "gateway",
            machine: machine::description(),
            rounds: options.rounds,
            seconds: options.seconds,
            connections: options.connections,
            tokens: tokens::COUNT,
            targets: targets.iter().filter(measured).map(|target| target.judge(&rows)).collect(),
            rows,
        }
    }

    pub fn print(&self, json: bool) -> anyhow::Result<()> {
        let text = if json { serde_json::to_string_pretty(self)? + "\n" } else { self.text()? };
        std::io::stdout().lock().write_all(text.as_bytes())?;
        Ok(())
    }

    fn text(&self) -> Result<String, std::fmt::Error> {
        let mut out = String::new();
        writeln!(out, "\n{}", self.machine)?;
        writeln!(
            out,
            "{} rounds of {} s, {} requests under way at most, {} HS256 tokens in turn, one pinned core each.",
            self.rounds, self.seconds, self.connections, self.tokens
        )?;
        writeln!(out, "Medians of the rounds (lowest–highest); × is taken within each round.")?;
        for row in &self.rows {
            row.table(&mut out)?;
        }

        let mut table = vec![["target", "wanted", "found", ""].map(String::from)];
        table.extend(self.targets.iter().map(|target| {
            let found = target.found.map_or_else(|| "–".to_owned(), |found| found.show(2));
            [target.target.clone(), target.bound.clone(), found, target.verdict.clone()]
        }));
        writeln!(out)?;
        write_aligned(&mut out, &table)?;

        writeln!(out)?;
        let all = || self.rows.iter().flat_map(|row| row.at_rate.iter());
        let mut told = Vec::new();
        for peer in all() {
            if !told.contains(&peer.name) {
                told.push(peer.name);
                writeln!(out, "{}: {} ({})", peer.name, peer.what, peer.version)?;
            }
        }
        let measured: Vec<&Measured> = all().chain(self.rows.iter().flat_map(|row| row.most.iter())).collect();
        if let Some(note) = not_quiet(&measured) {
            writeln!(out, "note: {note}")?;
        }
        Ok(out)
    }
}

fn targets() -> Vec<Target> {
    let main = |of, to, figure, bound| Target { row: MAIN, of, to, figure, bound };
    let mut targets = vec![
        main("full", REFERENCE, Figure::Cpu, 0.80),
        main("full", "envoy", Figure::Cpu, 0.30),
        main("none", "bare", Figure::Cpu, 1.10),
        main("full", "none", Figure::Cpu, 1.20),
        main("full", REFERENCE, Figure::P99, 1.10),
        main("full", REFERENCE, Figure::Most, 1.20),
    ];
    let at_scale = |of, to| Target { row: SCALE, of, to, figure: Figure::Cpu, bound: AT_SCALE };
    targets.extend([at_scale("full-at-scale", "full"), at_scale("any-at-scale", "none")]);
    let others = ROWS.iter().filter(|row| ![MAIN, SCALE].contains(&row.name));
    targets.extend(others.map(|row| Target {
        row: row.name,
        of: "full",
        to: REFERENCE,
        figure: Figure::Cpu,
        bound: OTHER_ROWS,
    }));
    targets
}

impl Target {
    fn judge(&self, rows: &[RowReport]) -> Verdict {
        let (said, sign, figure): (_, _, fn(&Sample) -> f64) = match self.figure {
            Figure::Cpu => ("CPU per request", '≤', |sample| sample.cpu_us),
            Figure::P99 => ("p99", '≤', |sample| sample.p99_us),
            Figure::Most => ("requests/s in a closed loop", '≥', |sample| sample.requests_per_second),
        };
        let target = format!("{}: {said}, {} / {}", self.row, self.of, self.to);
        let bound = format!("{sign} {:.2}", self.bound);
        let pair = rows.iter().find(|row| row.name == self.row).and_then(|row| {
            let peers = if matches!(self.figure, Figure::Most) { &row.most } else { &row.at_rate };
            let find = |name: &str| peers.iter().find(|peer| peer.name == name);
            Some((find(self.of)?, find(self.to)?))
        });
        let Some((of, to)) = pair else {
            return Verdict { target, bound, found: None, verdict: "not measured".to_owned() };
        };
        let found = ratios(&of.samples, &to.samples, figure);
        let reached =
            if matches!(self.figure, Figure::Most) { found.median >= self.bound } else { found.median <= self.bound };
        let mut verdict = if reached { "reached".to_owned() } else { "missed".to_owned() };
        let busiest = of.load_busy.median.max(to.load_busy.median);
        if matches!(self.figure, Figure::Most) && busiest >= LOAD_FULL {
            let _ = write!(verdict, ", but not valid: the load's core was {} busy", percent(busiest));
        }
        Verdict { target, bound, found: Some(found), verdict }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::rounds::Others;
    use super::*;

    fn sample(cpu_us: f64, requests_per_second: f64, load_busy: f64) -> Sample {
        Sample {
            requests: 1,
            requests_per_second,
            cpu_us,
            p50_us: 1.0,
            p99_us: 10.0,
            not_replicated: 0,
            unavailable: 0,
            peer_busy: 1.0,
            load_busy,
            others: Others { on_peer_core: 0.0, on_load_core: 0.0 },
        }
    }

    fn row(ours: &Sample, haproxy: &Sample) -> RowReport {
        let measured = |name, sample: &Sample| {
            Measured::of((name, "", String::new()), vec![sample.clone()], std::slice::from_ref(haproxy))
        };
        let both = || vec![measured("full", ours), measured(REFERENCE, haproxy)];
        RowReport { most: both(), at_rate: both(), rate: 100.0, ..RowReport::new(&ROWS[0], Vec::new()) }
    }

    fn verdict(figure: Figure, bound: f64, row: RowReport) -> String {
        Target { row: MAIN, of: "full", to: REFERENCE, figure, bound }.judge(&[row]).verdict
    }

    #[test]
    fn a_target_is_reached_at_its_bound_and_missed_past_it() {
        let haproxy = sample(10.0, 100.0, 0.5);
        assert_eq!(verdict(Figure::Cpu, 0.8, row(&sample(8.0, 100.0, 0.5), &haproxy)), "reached");
        assert_eq!(verdict(Figure::Cpu, 0.8, row(&sample(8.1, 100.0, 0.5), &haproxy)), "missed");
        assert_eq!(verdict(Figure::Most, 1.2, row(&sample(8.0, 120.0, 0.5), &haproxy)), "reached");
        assert_eq!(verdict(Figure::Most, 1.2, row(&sample(8.0, 119.0, 0.5), &haproxy)), "missed");
    }

    #[test]
    fn the_most_of_a_full_load_is_not_valid() {
        let verdict = verdict(Figure::Most, 1.2, row(&sample(8.0, 130.0, 0.9), &sample(10.0, 100.0, 0.5)));
        assert_eq!(verdict, "reached, but not valid: the load's core was 90 % busy");
    }

    #[test]
    fn a_target_without_its_peer_is_not_measured() {
        let row = row(&sample(8.0, 100.0, 0.5), &sample(10.0, 100.0, 0.5));
        let target = Target { row: MAIN, of: "full", to: "envoy", figure: Figure::Cpu, bound: 0.3 };
        assert_eq!(target.judge(&[row]).verdict, "not measured");
    }
}
