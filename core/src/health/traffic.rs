//! What live traffic says of one origin: counts of the last minutes, from which the degraded state follows.
//!
//! Every request writes here, from every core, so there is neither a lock nor a histogram. Whether the 95th percentile
//! lies below a limit needs none: it does exactly when at most a twentieth of the requests took the limit or longer.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::units::{Millis, Timestamp};

/// The span of a slot.
const SLOT: Millis = Millis::from_secs(60);
/// The current minute and the four before it: "the last five minutes".
const SLOTS: usize = 5;
/// How often an origin's state is made anew out of these counts, at most.
const JUDGED_EVERY: Millis = Millis::from_secs(1);

/// What this gateway saw of an origin in the last five minutes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub requests: u64,
    /// Failed attempts and answers of 500 and above.
    pub errors: u64,
    /// Those that took `max_latency_p95` or longer.
    pub slow: u64,
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} requests failed, {} were slow", self.errors, self.requests, self.slow)
    }
}

/// One origin's counts. Methods take `&self`; in the moment in which a minute begins, counts of other cores may be lost.
#[derive(Debug, Default)]
pub struct TrafficSlots {
    slots: [Slot; SLOTS],
    judged_at: AtomicU64,
}

#[derive(Debug, Default)]
struct Slot {
    /// Which minute it counts, since the epoch.
    minute: AtomicU32,
    slow: AtomicU32,
    /// Requests in the lower half, errors in the upper: one write counts both.
    seen: AtomicU64,
}

impl TrafficSlots {
    /// Counts one attempt that ended.
    pub fn record(&self, error: bool, slow: bool, now: Timestamp) {
        let minute = minute_of(now);
        let Some(slot) = self.slots.get(minute as usize % SLOTS) else { return };
        let held = slot.minute.load(Ordering::Relaxed);
        // Whoever opens the minute clears the slot.
        if held != minute && slot.minute.compare_exchange(held, minute, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            slot.seen.store(0, Ordering::Relaxed);
            slot.slow.store(0, Ordering::Relaxed);
        }
        slot.seen.fetch_add(1 | u64::from(error) << 32, Ordering::Relaxed);
        if slow {
            slot.slow.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The sum over the last five minutes, the current one included.
    pub fn sum(&self, now: Timestamp) -> Traffic {
        let minute = minute_of(now);
        let mut sum = Traffic::default();
        for slot in &self.slots {
            let age = minute.checked_sub(slot.minute.load(Ordering::Relaxed));
            if age.is_some_and(|age| (age as usize) < SLOTS) {
                let seen = slot.seen.load(Ordering::Relaxed);
                sum.requests += seen & u64::from(u32::MAX);
                sum.errors += seen >> 32;
                sum.slow += u64::from(slot.slow.load(Ordering::Relaxed));
            }
        }
        sum
    }

    /// Whether it is time to look at the sum again: true for one caller a second.
    pub fn is_due(&self, now: Timestamp) -> bool {
        let last = self.judged_at.load(Ordering::Relaxed);
        // A clock that stepped back must not keep everybody waiting until it has caught up.
        now.0.abs_diff(last) >= JUDGED_EVERY.0
            && self.judged_at.compare_exchange(last, now.0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

fn minute_of(now: Timestamp) -> u32 {
    u32::try_from(now.0 / SLOT.0).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    /// The beginning of a minute.
    const NOW: Timestamp = Timestamp(1_790_000_040_000);

    fn at(seconds: u64) -> Timestamp {
        NOW + Millis::from_secs(seconds)
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn what_was_counted_is_forgotten_when_its_minute_is_five_minutes_old() {
        let slots = TrafficSlots::default();
        assert_eq!(slots.sum(NOW), Traffic::default());
        slots.record(true, false, at(0));
        slots.record(false, true, at(59));
        slots.record(false, false, at(60));
        assert_eq!(slots.sum(at(60)), Traffic { requests: 3, errors: 1, slow: 1 });
        assert_eq!(slots.sum(at(299)), Traffic { requests: 3, errors: 1, slow: 1 });
        assert_eq!(slots.sum(at(300)), Traffic { requests: 1, errors: 0, slow: 0 });
        assert_eq!(slots.sum(at(360)), Traffic::default());
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_slot_that_is_used_again_starts_at_nothing() {
        let slots = TrafficSlots::default();
        (0..10).for_each(|_| slots.record(true, true, at(0)));
        slots.record(false, false, at(300));
        assert_eq!(slots.sum(at(300)), Traffic { requests: 1, errors: 0, slow: 0 });
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_clock_that_steps_back_counts_on() {
        let slots = TrafficSlots::default();
        slots.record(true, false, at(600));
        slots.record(false, false, at(0));
        assert_eq!(slots.sum(at(0)).requests, 1);
        assert!(slots.is_due(at(600)) && slots.is_due(at(0)));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn one_caller_a_second_looks_at_the_sum() {
        let slots = TrafficSlots::default();
        let due = (0..3000).filter(|ms| slots.is_due(NOW + Millis(*ms))).count();
        assert_eq!(due, 3);
    }
}
