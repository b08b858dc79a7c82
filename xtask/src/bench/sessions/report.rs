//! From samples to what is read: a table for each store, ratios within the rounds, and every target with what was
//! found.

use std::fmt::Write as _;
use std::io::Write as _;

use serde::Serialize;
use serde_json::Value;

use super::direct::{FLOOR, LIBRARY};
use super::servers::{BETTER_AUTH, EDGEKEEP, EXPRESS, TOWER};
use super::{HitOrMiss, Operation, SessionOptions};
use crate::bench::machine;
use crate::bench::report::{OTHERS_NOTICED, Spread, write_aligned};
use crate::bench::rounds::Sample;

/// What a run found.
#[derive(Serialize)]
pub struct Report {
    bench: &'static str,
    machine: String,
    rounds: usize,
    seconds: f64,
    connections: usize,
    pub versions: Vec<(&'static str, String)>,
    pub rows: Vec<Row>,
    /// Requests a second by store and command.
    pub redis_benchmark: Vec<(&'static str, &'static str, f64)>,
    /// What core's own measurement printed, a JSON object each.
    pub core: Vec<Value>,
    pub missing: Vec<String>,
    targets: Vec<Target>,
}

/// One operation of one of those measured on one store.
#[derive(Serialize)]
pub struct Row {
    pub store: &'static str,
    pub who: &'static str,
    pub operation: Operation,
    pub samples: Vec<Sample>,
}

/// A figure that is to be reached.
#[derive(Serialize)]
struct Target {
    what: String,
    wanted: String,
    found: String,
    met: bool,
}

impl Report {
    pub fn new(options: &SessionOptions) -> Report {
        Report {
            bench: "sessions",
            machine: machine::description(),
            rounds: options.rounds,
            seconds: options.seconds,
            connections: options.connections,
            versions: Vec::new(),
            rows: Vec::new(),
            redis_benchmark: Vec::new(),
            core: Vec::new(),
            missing: Vec::new(),
            targets: Vec::new(),
        }
    }

    pub fn print(mut self, json: bool) -> anyhow::Result<()> {
        self.targets = self.judge();
        let text = if json { serde_json::to_string_pretty(&self)? + "\n" } else { self.text()? };
        std::io::stdout().lock().write_all(text.as_bytes())?;
        Ok(())
    }

    /// Requests a second of `who`'s `operation` divided by those of `than`'s, round by round.
    fn ratio(&self, store: &str, operation: Operation, who: &str, than: &str) -> Option<Spread> {
        let samples = |who: &str| {
            let row = |row: &&Row| row.store == store && row.operation == operation && row.who == who;
            self.rows.iter().find(row).map(|row| &row.samples)
        };
        let (own, other) = (samples(who)?, samples(than)?);
        let ratio = |(own, other): (&Sample, &Sample)| own.requests_per_second / other.requests_per_second;
        Some(Spread::of(own.iter().zip(other).map(ratio)))
    }

    fn text(&self) -> anyhow::Result<String> {
        let mut out = String::new();
        writeln!(out, "\n{}", self.machine)?;
        writeln!(
            out,
            "{} rounds of {} s, {} connections in a closed loop. What is measured has one pinned core; Redis \
             (appendonly yes) and the load share the other.",
            self.rounds, self.seconds, self.connections
        )?;
        writeln!(out, "Medians of the rounds (lowest–highest); × is ours over theirs, taken within each round.\n")?;
        for store in stores(&self.rows) {
            let heads = ["", "operations/s", "ours ×", "CPU µs each", "p50 µs", "p99 µs", "its core", "Redis and load"];
            let mut rows = vec![heads.map(String::from)];
            for operation in Operation::ALL {
                for row in self.rows.iter().filter(|row| row.store == store && row.operation == operation) {
                    rows.push(self.row(row));
                }
            }
            writeln!(out, "On {store}:")?;
            write_aligned(&mut out, &rows)?;
            for (_, command, rate) in self.redis_benchmark.iter().filter(|(on, ..)| *on == store) {
                writeln!(out, "redis-benchmark {command}: {rate:.0}/s")?;
            }
            writeln!(out)?;
        }
        for line in &self.core {
            writeln!(out, "core: {line}")?;
        }
        for (who, version) in &self.versions {
            writeln!(out, "{who}: {version}")?;
        }
        for missing in &self.missing {
            writeln!(out, "not measured: {missing}")?;
        }
        for note in self.notes() {
            writeln!(out, "note: {note}")?;
        }
        writeln!(out)?;
        let mut rows = vec![["target", "wanted", "found", ""].map(String::from)];
        rows.extend(self.targets.iter().map(|target| {
            let verdict = if target.met { "met" } else { "MISSED" };
            [target.what.clone(), target.wanted.clone(), target.found.clone(), verdict.to_owned()]
        }));
        write_aligned(&mut out, &rows)?;
        Ok(out)
    }

    fn row(&self, row: &Row) -> [String; 8] {
        let spread = |figure: fn(&Sample) -> f64| Spread::of(row.samples.iter().map(figure));
        let (ours, theirs) = match row.who {
            EDGEKEEP | LIBRARY => (None, row.who),
            FLOOR => (Some(LIBRARY), row.who),
            _ => (Some(EDGEKEEP), row.who),
        };
        let ratio = ours.and_then(|ours| self.ratio(row.store, row.operation, ours, theirs));
        let percent = |figure: fn(&Sample) -> f64| format!("{:.0} %", spread(figure).median * 100.0);
        [
            format!("{} {}", row.operation.shown(), row.who),
            spread(|sample| sample.requests_per_second).show(0),
            ratio.map(|ratio| ratio.show(2)).unwrap_or_default(),
            spread(|sample| sample.cpu_us).show(1),
            spread(|sample| sample.p50_us).show(0),
            spread(|sample| sample.p99_us).show(0),
            percent(|sample| sample.peer_busy),
            percent(|sample| sample.load_busy),
        ]
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let not_replicated: u64 = self.rows.iter().flat_map(|row| &row.samples).map(|s| s.not_replicated).sum();
        if not_replicated > 0 {
            notes.push(format!("{not_replicated} answers came before enough replicas had what was written"));
        }
        let unavailable: u64 = self.rows.iter().flat_map(|row| &row.samples).map(|s| s.unavailable).sum();
        if unavailable > 0 {
            notes.push(format!("{unavailable} answers were 503 and were asked again"));
        }
        let others = self.rows.iter().flat_map(|row| &row.samples);
        let most = others.map(|s| s.others.on_peer_core.max(s.others.on_load_core)).fold(0.0, f64::max);
        if most >= OTHERS_NOTICED {
            notes.push(format!(
                "the machine was not quiet: other work took up to {:.0} % of a core during a measurement",
                most * 100.0
            ));
        }
        notes
    }

    fn judge(&self) -> Vec<Target> {
        let mut targets = Vec::new();
        let mut at_least = |what: String, wanted: f64, found: Option<Spread>| {
            let Some(found) = found else { return };
            let met = found.median >= wanted;
            targets.push(Target { what, wanted: format!("≥ {wanted} ×"), found: found.show(2), met });
        };
        for store in stores(&self.rows) {
            for operation in [Operation::Create, Operation::Refresh] {
                let what = format!("{store}: library {} beside the floor", operation.shown());
                at_least(what, 0.8, self.ratio(store, operation, LIBRARY, FLOOR));
            }
            for peer in [EXPRESS, BETTER_AUTH] {
                for operation in Operation::ALL {
                    let what = format!("{store}: {} beside {peer}", operation.shown());
                    at_least(what, 3.0, self.ratio(store, operation, EDGEKEEP, peer));
                }
            }
            for hit in [HitOrMiss::Hit, HitOrMiss::Miss] {
                let operation = Operation::Validate(hit);
                let what = format!("{store}: {} beside {TOWER}", operation.shown());
                at_least(what, 1.0, self.ratio(store, operation, EDGEKEEP, TOWER));
            }
        }
        for (name, field, wanted, unit) in CORE_TARGETS {
            let figure = self.core.iter().find_map(|line| {
                (line.get("name")?.as_str()? == name).then(|| line.get(field).and_then(Value::as_f64))?
            });
            if let Some(found) = figure {
                targets.push(Target {
                    what: format!("core: {name}"),
                    wanted: format!("≤ {wanted} {unit}"),
                    found: format!("{found:.2}"),
                    met: found <= wanted,
                });
            }
        }
        targets
    }
}

/// Core's figures with a limit: the line's name, its field, the limit, the unit.
const CORE_TARGETS: [(&str, &str, f64, &str); 2] = [
    ("validate_100k_sessions_over_one_hmac", "ratio", 3.0, "× one HMAC-SHA256 over the same bytes"),
    ("near_cache_bytes_per_session", "bytes", 400.0, "B"),
];

fn stores(rows: &[Row]) -> Vec<&'static str> {
    let mut stores: Vec<&'static str> = Vec::new();
    for row in rows {
        if !stores.contains(&row.store) {
            stores.push(row.store);
        }
    }
    stores
}
