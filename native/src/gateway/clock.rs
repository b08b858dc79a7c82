//! The only place of the gateway that reads the clock for core.
//!
//! The kernel's coarse clocks are as old as its last tick, at most 10 ms, and cost a fifth of the exact ones. What is
//! decided with them is counted in seconds, or in milliseconds of patience; latencies are measured exactly elsewhere.

use std::time::Duration;

use edgekeep_core::Timestamp;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// How many milliseconds a coarse clock may be behind: a tick of the slowest kernel.
const BEHIND: u64 = 10;

/// Milliseconds since the epoch.
pub fn now() -> Timestamp {
    Timestamp(millis(clock_gettime(ClockId::RealtimeCoarse)))
}

/// The same to the millisecond: by it a user's sessions stand in the order in which they were made.
pub fn exact() -> Timestamp {
    Timestamp(millis(clock_gettime(ClockId::Realtime)))
}

/// An instant of a clock that never goes back, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(u64);

impl Tick {
    pub fn now() -> Tick {
        Tick(millis(clock_gettime(ClockId::MonotonicCoarse)))
    }

    pub fn elapsed(self) -> Duration {
        Duration::from_millis(Tick::now().0.saturating_sub(self.0))
    }

    /// An instant at which so much time has passed for certain, although this one may be behind.
    pub fn after(self, time: Duration) -> Tick {
        let millis = u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        Tick(self.0.saturating_add(BEHIND).saturating_add(millis))
    }
}

fn millis(time: Timespec) -> u64 {
    let (seconds, nanos) = (u64::try_from(time.tv_sec).unwrap_or(0), u64::try_from(time.tv_nsec).unwrap_or(0));
    seconds * 1000 + nanos / 1_000_000
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn the_coarse_clocks_are_a_tick_behind_at_most() {
        let system = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        let (exact, coarse) = (exact().0, now().0);
        assert!(exact >= system && coarse + 20 >= system, "{exact} or {coarse} is before {system}");
        let (began, tick) = (Instant::now(), Tick::now());
        while tick.elapsed() < Duration::from_millis(50) {
            std::thread::yield_now();
        }
        assert!(began.elapsed() > Duration::from_millis(35), "{:?}", began.elapsed());
    }

    #[test]
    fn a_later_instant_is_never_too_early() {
        assert_eq!(Tick(5).after(Duration::from_micros(1)), Tick(5 + BEHIND + 1));
        assert_eq!(Tick(5).after(Duration::from_millis(1)), Tick(5 + BEHIND + 1));
        assert_eq!(Tick(5).after(Duration::MAX), Tick(u64::MAX));
    }
}
