//! Where a peer's CPU time goes: perf's samples of it in a closed loop, and strace's count of its system calls.
//!
//! Call chains are read from stack copies, since neither the standard library nor the peers keep frame pointers. What
//! perf and strace themselves cost falls on what they look at, so nothing is measured meanwhile.

use std::fs;
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

/// Seconds of each of the three looks, and what the load goes on for around them.
const LOOK: f64 = 3.0;
const LOAD: f64 = 5.0 * LOOK;

/// Lines of each list.
const SHOWN: usize = 40;

/// Samples a second: not a divisor of what the kernel's clock does.
const FREQUENCY: &str = "4999";

pub fn run(
    row: &Row,
    peers: &[&'static str],
    programs: &Programs,
    options: &Options,
    dir: &Path,
) -> anyhow::Result<()> {
    let field = Field::prepare(row, programs, dir)?;
    let mut out = String::new();
    for name in peers {
        let peer = field.start(name)?;
        let pid = peer.process.pid().to_string();
        let mut arguments = field.way_of_asking(options.connections);
        arguments.extend(row.expected_length());
        let load = Load { binary: programs.binaries.join("load"), origins: Some(&field.origins_process), arguments };
        let options = Options { warmup: 1.0, seconds: LOAD, ..options.clone() };
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
    perf.args(["record", "-F", FREQUENCY, "--call-graph", "dwarf,4096", "-p", pid, "-o"]).arg(&chains);
    process::run(perf.args(["--", "sleep", &seconds]))?;
    let calls = data.with_extension("calls");
    let mut strace = Command::new("timeout");
    strace.args(["--signal", "INT", &seconds, "strace", "-c", "-f", "-p", pid, "-o"]).arg(&calls);
    // It is ended by a signal, and so fails by what `timeout` says.
    strace.output().context("strace")?;

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
    let calls = fs::read_to_string(&calls).unwrap_or_else(|_| "strace counted nothing\n".to_owned());
    said.push_str(&format!("\nsystem calls in {LOOK} s:\n{calls}"));
    Ok(said)
}
