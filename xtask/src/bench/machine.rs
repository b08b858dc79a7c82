//! What the machine says: CPU time of a process, how busy a core was, what kind of machine it is.
//!
//! CPU time is read from each thread's `schedstat`, which counts nanoseconds on a core; the tick counters in
//! `/proc/<pid>/stat` are a hundredth of a second coarse, and `/proc/<pid>/schedstat` is the main thread's alone.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};

/// The core of what is measured.
pub const PROXY_CORE: usize = 0;

/// The core of the load and the origin.
pub const LOAD_CORE: usize = 1;

pub fn require_two_cores() -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism()?.get();
    ensure!(cores >= 2, "a benchmark needs two cores: one for the proxy, one for the load and the origin");
    Ok(())
}

/// CPU time that each thread of a process has used so far.
pub struct CpuTime(HashMap<String, Duration>);

impl CpuTime {
    /// # Errors
    /// When the process has ended.
    pub fn of(pid: u32) -> anyhow::Result<CpuTime> {
        let tasks = format!("/proc/{pid}/task");
        let mut threads = HashMap::new();
        for task in fs::read_dir(&tasks).with_context(|| format!("process {pid} has ended"))? {
            let task = task?;
            // A thread may end between the listing and the reading.
            let Ok(schedstat) = fs::read_to_string(task.path().join("schedstat")) else { continue };
            let on_cpu = schedstat.split(' ').next().unwrap_or_default();
            let nanos = on_cpu.trim().parse().with_context(|| format!("{tasks}: schedstat: {schedstat}"))?;
            threads.insert(task.file_name().to_string_lossy().into_owned(), Duration::from_nanos(nanos));
        }
        Ok(CpuTime(threads))
    }

    /// The time used between `earlier` and this sample. A thread that ended in between is missing: no peer here ends
    /// threads under load.
    pub fn since(&self, earlier: &CpuTime) -> Duration {
        let used = |(thread, now): (&String, &Duration)| {
            now.saturating_sub(earlier.0.get(thread).copied().unwrap_or(Duration::ZERO))
        };
        self.0.iter().map(used).sum()
    }
}

/// Ticks that a core spent, from `/proc/stat`.
pub struct CoreTime {
    busy: u64,
    all: u64,
}

impl CoreTime {
    pub fn of(core: usize) -> anyhow::Result<CoreTime> {
        CoreTime::parse(&fs::read_to_string("/proc/stat")?, core)
    }

    fn parse(stat: &str, core: usize) -> anyhow::Result<CoreTime> {
        let name = format!("cpu{core}");
        let line = stat.lines().find(|line| line.split(' ').next() == Some(name.as_str()));
        let fields = line.with_context(|| format!("/proc/stat has no {name}"))?.split_whitespace().skip(1);
        // user nice system idle iowait irq softirq steal; guest time is already part of user.
        let ticks: Vec<u64> = fields.take(8).map(str::parse).collect::<Result<_, _>>()?;
        let idle: u64 = ticks.iter().skip(3).take(2).sum();
        let all: u64 = ticks.iter().sum();
        Ok(CoreTime { busy: all - idle, all })
    }

    /// The busy share between `earlier` and this sample, from 0 to 1.
    pub fn busy_since(&self, earlier: &CoreTime) -> f64 {
        let all = self.all.saturating_sub(earlier.all).max(1);
        self.busy.saturating_sub(earlier.busy) as f64 / all as f64
    }
}

/// The machine as a line for people: processor, cores, kernel.
pub fn description() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{}, {cores} cores, Linux {}", model.unwrap_or("unknown processor"), kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  40 0 20 300 10 0 5 5 0 0\ncpu0 10 0 5 100 5 0 3 2 0 0\ncpu1 30 0 15 200 5 0 2 3 0 0\n";

    #[test]
    fn busy_leaves_out_idle_and_waiting_for_disks() {
        let zero = CoreTime { busy: 0, all: 0 };
        let core = CoreTime::parse(STAT, 0).unwrap();
        assert_eq!((core.busy, core.all), (20, 125));
        assert!((core.busy_since(&zero) - 0.16).abs() < 1e-9);
        assert_eq!(CoreTime::parse(STAT, 1).unwrap().busy, 50);
    }

    #[test]
    fn a_core_that_does_not_exist_is_an_error() {
        assert!(CoreTime::parse(STAT, 2).is_err());
    }

    #[test]
    fn cpu_time_of_this_process_grows_by_what_it_burns() {
        let before = CpuTime::of(std::process::id()).unwrap();
        let start = std::time::Instant::now();
        let mut x = 0_u64;
        while start.elapsed() < Duration::from_millis(50) {
            x = std::hint::black_box(x.wrapping_add(1));
        }
        let burnt = CpuTime::of(std::process::id()).unwrap().since(&before);
        assert!(burnt >= Duration::from_millis(5), "{burnt:?}");
    }

    #[test]
    fn cpu_time_of_an_ended_process_is_an_error() {
        assert!(CpuTime::of(u32::MAX).is_err());
    }
}
