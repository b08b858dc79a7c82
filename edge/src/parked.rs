//! Exchanges that wait for `entry.js` to come back with an answer, by number.
//!
//! They are owned values, bounded, each with a deadline, since a client that leaves is never heard of again: its
//! request is simply not carried on, and nothing here would ever be dropped.

use std::collections::BTreeMap;

use edgekeep_core::{Millis, Timestamp};

/// How many exchanges may wait in one isolate. A few kilobytes each besides their text: well under the isolate's 128 MB.
const LIMIT: usize = 10_000;

/// How many bytes of text may wait with them: a client chooses how long its headers are, up to the platform's 128 KiB.
/// A quarter of the isolate's 128 MB, since an exchange may hold a copy of its cookies too; room for 256 of the longest.
const TEXT_LIMIT: usize = 32 << 20;

/// What may wait.
pub trait Weighed {
    /// The bytes of text that it holds, as its client chose.
    fn text_bytes(&self) -> usize;
}

/// Exchanges by number.
pub struct Parked<T> {
    waiting: BTreeMap<u64, Place<T>>,
    /// The sum of what waits.
    text_bytes: usize,
    next: u64,
    patience: Millis,
}

struct Place<T> {
    until: Timestamp,
    /// As it was weighed, so that the sum stays right.
    text_bytes: usize,
    value: T,
}

impl<T: Weighed> Parked<T> {
    /// Forgets after `patience`. `start` is random, so that a number given out before the instance was reset means
    /// nothing to the next one. The numbers stay below 2⁵³, where JavaScript's are exact.
    pub fn new(start: u32, patience: Millis) -> Parked<T> {
        Parked { waiting: BTreeMap::new(), text_bytes: 0, next: u64::from(start) << 20, patience }
    }

    /// Keeps an exchange and returns its number. When too many wait, or too much text, the oldest go: their clients are
    /// the least likely to be there still, and abandoned requests must not keep new ones out.
    pub fn park(&mut self, value: T, now: Timestamp) -> u64 {
        let text_bytes = value.text_bytes();
        // Numbers ascend and so do deadlines: whatever has been forgotten is in front.
        while let Some((_, oldest)) = self.waiting.first_key_value() {
            let full = self.waiting.len() >= LIMIT || self.text_bytes + text_bytes > TEXT_LIMIT;
            if oldest.until > now && !full {
                break;
            }
            self.text_bytes -= oldest.text_bytes;
            self.waiting.pop_first();
        }
        let number = self.next;
        self.next += 1;
        self.text_bytes += text_bytes;
        self.waiting.insert(number, Place { until: now + self.patience, text_bytes, value });
        number
    }

    pub fn take(&mut self, number: f64) -> Option<T> {
        let place = self.waiting.remove(&exact(number)?)?;
        self.text_bytes -= place.text_bytes;
        Some(place.value)
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
    /// The longest headers that the platform lets through.
    const LONGEST: usize = 128 << 10;

    impl Weighed for usize {
        fn text_bytes(&self) -> usize {
            *self
        }
    }

    #[test]
    fn a_number_is_good_once_and_only_in_the_instance_that_gave_it() {
        let mut parked = Parked::new(1, PATIENCE);
        let number = parked.park(7, Timestamp(0)) as f64;
        assert_eq!(Parked::<usize>::new(2, PATIENCE).take(number), None);
        assert_eq!(parked.take(number), Some(7));
        assert_eq!(parked.take(number), None);
        for never in [-1.0, 0.5, f64::NAN, f64::INFINITY] {
            assert_eq!(parked.take(never), None);
        }
    }

    #[test]
    fn what_was_forgotten_makes_room() {
        let mut parked = Parked::new(u32::MAX, PATIENCE);
        let first = parked.park(1, Timestamp(0));
        for _ in 1..LIMIT {
            parked.park(1, Timestamp(0));
        }
        parked.park(1, Timestamp(0));
        assert_eq!((parked.waiting.len(), parked.text_bytes), (LIMIT, LIMIT));
        assert_eq!(parked.take(first as f64), None, "the oldest made room");
        let number = parked.park(1, Timestamp(0) + PATIENCE);
        assert!(number < 1 << 53);
        assert_eq!((parked.waiting.len(), parked.text_bytes), (1, 1));
    }

    #[test]
    fn long_heads_that_nobody_comes_back_for_never_fill_the_isolate() {
        let mut parked = Parked::new(0, PATIENCE);
        let first = parked.park(LONGEST, Timestamp(0)) as f64;
        let second = parked.park(LONGEST, Timestamp(0)) as f64;
        for _ in 2..TEXT_LIMIT / LONGEST {
            parked.park(LONGEST, Timestamp(0));
        }
        assert_eq!(parked.text_bytes, TEXT_LIMIT, "to the last byte");
        assert_eq!(parked.take(first), Some(LONGEST), "and none has gone");
        parked.park(LONGEST, Timestamp(0));
        parked.park(1, Timestamp(0));
        assert_eq!(parked.take(second), None, "one byte more, and the oldest goes");
        assert_eq!(parked.text_bytes, TEXT_LIMIT - LONGEST + 1);
        let alone = parked.park(TEXT_LIMIT + 1, Timestamp(0)) as f64;
        assert_eq!(parked.waiting.len(), 1, "a head that no platform lets through waits alone");
        parked.take(alone);
        assert_eq!(parked.text_bytes, 0);
    }
}
