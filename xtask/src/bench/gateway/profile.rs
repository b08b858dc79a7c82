//! Where a peer's CPU time goes: perf's samples of it, in a closed loop or at `--rate`, and its count of the system calls.
//!
//! Call chains are read from stack copies, since neither the standard library nor the peers keep frame pointers. What
//! perf itself costs falls on what it looks at, so nothing is measured meanwhile.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::super::rounds::Load;
use super::super::{Options, process};
use super::field::{Field, Programs};
use super::rows::Row;
use super::{GatewayOptions, rate_argument};

/// Seconds of each of the three looks, and what the load goes on for around them.
const LOOK: f64 = 3.0;
const LOAD: f64 = 6.0 * LOOK;

/// Lines of each list.
const SHOWN: usize = 40;

/// Samples a second: not a divisor of what the kernel's clock does.
const FREQUENCY: &str = "4999";

pub fn run(
    row: &Row,
    peers: &[&'static str],
    programs: &Programs,
    options: &GatewayOptions,
    dir: &Path,
) -> anyhow::Result<()> {
    let field = Field::prepare(row, programs, dir)?;
    let mut out = String::new();
    for name in peers {
        let peer = field.start(name)?;
        let pid = peer.process.pid().to_string();
        let mut arguments = field.way_of_asking(options.common.connections);
        arguments.extend(row.expected_length());
        arguments.extend(rate_argument(options.rate));
        let load = Load { binary: programs.binaries.join("load"), origins: Some(&field.origins_process), arguments };
        let options = Options { warmup: 1.0, seconds: LOAD, ..options.common.clone() };
        let mut command = process::pinned(&load.command(&peer, &options), field.origins_process.cores);
        let asking = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("cannot start the load")?;
        thread::sleep(Duration::from_secs_f64(options.warmup));
        let said = look(&pid, &dir.join(name));
        let asked = asking.wait_with_output()?;
        ensure!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
        out.push_str(&format!("\n{name}: {} ({})\n{}", peer.what, peer.version, said.context(*name)?));
    }
    std::io::stdout().lock().write_all(out.as_bytes())?;
    Ok(())
}

/// Looks three times, and leaves what perf recorded in `data`.
fn look(pid: &str, data: &Path) -> anyhow::Result<String> {
    let seconds = LOOK.to_string();
    let flat = data.with_extension("perf");
    let chains = data.with_extension("chains.perf");
    let mut perf = Command::new("perf");
    perf.args(["record", "-F", FREQUENCY, "-p", pid, "-o"]).arg(&flat).args(["--", "sleep", &seconds]);
    process::run(&mut perf).context("perf is Debian's linux-perf")?;
    let mut perf = Command::new("perf");
    perf.args(["stat", "-x", ",", "-e", "syscalls:sys_enter_*", "-p", pid, "--", "sleep", &seconds]);
    let calls = process::run(&mut perf)?;
    let mut perf = Command::new("perf");
    perf.args(["record", "-F", FREQUENCY, "--call-graph", "dwarf,4096", "-p", pid, "-o"]).arg(&chains);
    process::run(perf.args(["--", "sleep", &seconds]))?;

    let mut said = String::new();
    for (what, file, how) in [
        ("by program", &flat, ["--no-children", "--sort", "dso"]),
        ("by function, itself", &flat, ["--no-children", "--sort", "sym"]),
        ("by function, with what it calls", &chains, ["--children", "--sort", "sym"]),
    ] {
        let mut perf = Command::new("perf");
        perf.args(["report", "--stdio", "--no-inline", "-g", "none", "-i"]).arg(file).args(how);
        let report = process::run(&mut perf)?;
        let report = String::from_utf8_lossy(&report.stdout);
        let lines = report.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
        said.push_str(&format!("\n{what}:\n"));
        for line in lines.take(SHOWN) {
            said.push_str(&format!("{}\n", line.trim_end()));
        }
    }
    said.push_str("\nsystem calls a second:\n");
    for (name, count) in counts(&String::from_utf8_lossy(&calls.stderr)) {
        said.push_str(&format!("{:>10.0}  {name}\n", count as f64 / LOOK));
    }
    Ok(said)
}

/// What `perf stat -x ,` counted, the most first; what never happened is left out.
fn counts(said: &str) -> Vec<(&str, u64)> {
    let mut counts: Vec<(&str, u64)> = said.lines().filter_map(count).filter(|(_, count)| *count > 0).collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts
}

/// `<count>,<unit>,syscalls:sys_enter_<name>,…`
fn count(line: &str) -> Option<(&str, u64)> {
    let mut fields = line.split(',');
    let count = fields.next()?.parse().ok()?;
    Some((fields.nth(1)?.strip_prefix("syscalls:sys_enter_")?, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_calls_are_listed_the_most_first_without_those_never_made() {
        let said = "12,,syscalls:sys_enter_epoll_wait,3000,100.00,,\n0,,syscalls:sys_enter_read,3000,100.00,,\n\
                    300,,syscalls:sys_enter_writev,3000,100.00,,\n<not counted>,,syscalls:sys_enter_bpf,0,100.00,,\n";
        assert_eq!(counts(said), [("writev", 300), ("epoll_wait", 12)]);
    }
}
