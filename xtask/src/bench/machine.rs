//! What the machine says: CPU time of a process, how busy a core was, what kind of machine it is.
//!
//! CPU time is read from each thread's `schedstat`, which counts nanoseconds on a core; `/proc/<pid>/schedstat` is the
//! main thread's alone. The tick counters in `/proc/<pid>/stat` are a hundredth of a second coarse, but also have the
//! time of threads that have ended.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};

/// Where a process is pinned.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cores(&'static [usize]);

/// The core of what is measured.
pub const PROXY_CORE: Cores = Cores(&[0]);

/// The core of the load and the origins.
pub const LOAD_CORE: Cores = Cores(&[1]);

/// For what is measured with two threads: it, the load and the origins share both.
pub const BOTH_CORES: Cores = Cores(&[0, 1]);

impl Cores {
    /// As `taskset` takes them.
    pub fn list(self) -> String {
        self.0.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
    }
}

pub fn require_two_cores() -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism()?.get();
    ensure!(cores >= 2, "a benchmark needs two cores: one for the proxy, one for the load and the origin");
    Ok(())
}

/// CPU time that a process has used so far: of each thread that lives, and in ticks of all that ever lived.
pub struct CpuTime {
    threads: HashMap<String, Duration>,
    ticks: Duration,
}

/// The unit of `/proc/<pid>/stat`, the same on every Linux that Rust runs on.
const TICK: Duration = Duration::from_millis(10);

impl CpuTime {
    /// # Errors
    /// When the process has ended.
    pub fn of(pid: u32) -> anyhow::Result<CpuTime> {
        let ended = || format!("process {pid} has ended");
        let mut threads = HashMap::new();
        for task in fs::read_dir(format!("/proc/{pid}/task")).with_context(ended)? {
            let task = task?;
            // A thread may end between the listing and the reading.
            let Ok(schedstat) = fs::read_to_string(task.path().join("schedstat")) else { continue };
            let on_cpu = schedstat.split(' ').next().unwrap_or_default();
            let nanos = on_cpu.trim().parse().with_context(|| format!("process {pid}: schedstat: {schedstat}"))?;
            threads.insert(task.file_name().to_string_lossy().into_owned(), Duration::from_nanos(nanos));
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(ended)?;
        Ok(CpuTime { threads, ticks: TICK * user_and_system_ticks(&stat)? })
    }

    /// The time used between `earlier` and this sample: the threads' where no thread has ended in between; otherwise
    /// the ticks tell more, less the two by which they may be ahead.
    pub fn since(&self, earlier: &CpuTime) -> Duration {
        let used = |(thread, now): (&String, &Duration)| {
            now.saturating_sub(earlier.threads.get(thread).copied().unwrap_or(Duration::ZERO))
        };
        let threads: Duration = self.threads.iter().map(used).sum();
        threads.max(self.ticks.saturating_sub(earlier.ticks + 2 * TICK))
    }
}

/// The fields `utime` and `stime`; the name before them may contain anything, so fields count from its end.
fn user_and_system_ticks(stat: &str) -> anyhow::Result<u32> {
    let (_, fields) = stat.rsplit_once(')').context("/proc/<pid>/stat has no name")?;
    let mut ticks = 0;
    for field in fields.split_whitespace().skip(11).take(2) {
        ticks += field.parse::<u32>()?;
    }
    Ok(ticks)
}

/// Ticks that cores spent, from `/proc/stat`.
#[derive(Default)]
pub struct CoreTime {
    busy: u64,
    all: u64,
}

impl CoreTime {
    pub fn of(cores: Cores) -> anyhow::Result<CoreTime> {
        let stat = fs::read_to_string("/proc/stat")?;
        let mut sum = CoreTime::default();
        for core in cores.0 {
            let core = CoreTime::parse(&stat, *core)?;
            sum = CoreTime { busy: sum.busy + core.busy, all: sum.all + core.all };
        }
        Ok(sum)
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
        let zero = CoreTime::default();
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
    fn ticks_are_found_after_a_name_with_spaces_and_brackets() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 100 0 0 0 12 30 0 0 20 0 1 0 5 1000 10";
        assert_eq!(user_and_system_ticks(stat).unwrap(), 42);
    }

    #[test]
    fn time_of_an_ended_thread_is_not_lost() {
        let before = CpuTime::of(std::process::id()).unwrap();
        std::thread::spawn(|| burn(Duration::from_millis(300))).join().unwrap();
        let burnt = CpuTime::of(std::process::id()).unwrap().since(&before);
        assert!(burnt >= Duration::from_millis(40), "{burnt:?}");
    }

    #[test]
    fn cpu_time_of_this_process_grows_by_what_it_burns() {
        let before = CpuTime::of(std::process::id()).unwrap();
        burn(Duration::from_millis(50));
        let burnt = CpuTime::of(std::process::id()).unwrap().since(&before);
        assert!(burnt >= Duration::from_millis(5), "{burnt:?}");
    }

    #[test]
    fn cpu_time_of_an_ended_process_is_an_error() {
        assert!(CpuTime::of(u32::MAX).is_err());
    }

    fn burn(time: Duration) {
        let start = std::time::Instant::now();
        let mut x = 0_u64;
        while start.elapsed() < time {
            x = std::hint::black_box(x.wrapping_add(1));
        }
    }
}
