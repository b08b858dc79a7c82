//! Exchanges that wait for `entry.js` to come back with an answer, by number.
//!
//! They are owned values, bounded, each with a deadline, since a client that leaves is never heard of again: its
//! request is simply not carried on, and nothing here would ever be dropped.

use std::collections::BTreeMap;

use edgekeep_core::{Millis, Timestamp};

/// How many exchanges may wait in one isolate. A few kilobytes each: well under the isolate's 128 MB.
const LIMIT: usize = 10_000;

/// Exchanges by number.
pub struct Parked<T> {
    waiting: BTreeMap<u64, (Timestamp, T)>,
    next: u64,
    patience: Millis,
}

impl<T> Parked<T> {
    /// Forgets after `patience`. `start` is random, so that a number given out before the instance was reset means
    /// nothing to the next one. The numbers stay below 2⁵³, where JavaScript's are exact.
    pub fn new(start: u32, patience: Millis) -> Parked<T> {
        Parked { waiting: BTreeMap::new(), next: u64::from(start) << 20, patience }
    }

    /// Keeps an exchange and returns its number. When too many wait the oldest goes: its client is the least likely to be
    /// there still, and abandoned requests must not keep new ones out.
    pub fn park(&mut self, value: T, now: Timestamp) -> u64 {
        // Numbers ascend and so do deadlines: whatever has been forgotten is in front.
        while self.waiting.first_entry().is_some_and(|first| first.get().0 <= now) {
            self.waiting.pop_first();
        }
        if self.waiting.len() >= LIMIT {
            self.waiting.pop_first();
        }
        let number = self.next;
        self.next += 1;
        self.waiting.insert(number, (now + self.patience, value));
        number
    }

    pub fn take(&mut self, number: f64) -> Option<T> {
        self.waiting.remove(&exact(number)?).map(|(_, value)| value)
    }
}

/// A number as JavaScript hands it back; `None` for what was never a number of ours.
fn exact(number: f64) -> Option<u64> {
    ((0.0..=9_007_199_254_740_991.0).contains(&number) && number.fract() == 0.0).then_some(number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Millis = Millis(1000);

    #[test]
    fn a_number_is_good_once_and_only_in_the_instance_that_gave_it() {
        let mut parked = Parked::new(1, PATIENCE);
        let number = parked.park("a", Timestamp(0)) as f64;
        assert_eq!(Parked::<&str>::new(2, PATIENCE).take(number), None);
        assert_eq!(parked.take(number), Some("a"));
        assert_eq!(parked.take(number), None);
        for never in [-1.0, 0.5, f64::NAN, f64::INFINITY] {
            assert_eq!(parked.take(never), None);
        }
    }

    #[test]
    fn what_was_forgotten_makes_room() {
        let mut parked = Parked::new(u32::MAX, PATIENCE);
        let first = parked.park((), Timestamp(0));
        for _ in 1..LIMIT {
            parked.park((), Timestamp(0));
        }
        parked.park((), Timestamp(0));
        assert_eq!(parked.waiting.len(), LIMIT);
        assert_eq!(parked.take(first as f64), None, "the oldest made room");
        let number = parked.park((), Timestamp(0) + PATIENCE);
        assert!(number < 1 << 53);
        assert_eq!(parked.waiting.len(), 1);
    }
}
