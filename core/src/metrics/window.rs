//! Counting by the minute: a ring of 60-second windows that forgets by itself.
//!
//! Windows begin at whole minutes of the epoch, so that windows of two cores cover the same time and can be merged.

use crate::units::{Millis, Timestamp};

/// The length of a window.
pub const WINDOW: Millis = Millis::from_secs(60);
/// How many windows make the five minutes that health looks at.
pub const FIVE_MINUTES: usize = 5;

/// Something that adds up, in any order.
pub trait Merge: Default {
    fn merge(&mut self, other: &Self);
}

/// The current window and the `N` before it.
#[derive(Clone, Debug)]
pub struct Windows<T> {
    /// The number of the minute and what was counted in it, at minute mod length.
    ring: Vec<(u64, T)>,
}

impl<T: Merge> Windows<T> {
    /// Keeps the current window and `past` complete ones.
    pub fn new(past: usize) -> Windows<T> {
        Windows { ring: (0..past + 1).map(|_| (0, T::default())).collect() }
    }

    /// Counts in the window of `now`. A clock that steps back by more than is kept starts the window over.
    pub fn count(&mut self, now: Timestamp, count: impl FnOnce(&mut T)) {
        let minute = minute(now);
        let length = self.ring.len() as u64;
        // `new` makes at least one place.
        if let Some(place) = self.ring.get_mut((minute % length) as usize) {
            if place.0 != minute {
                *place = (minute, T::default());
            }
            count(&mut place.1);
        }
    }

    /// The last complete window.
    pub fn previous(&self, now: Timestamp) -> T {
        self.merged(minute(now).saturating_sub(1), 1)
    }

    /// The current window with those before it: `count` in all.
    pub fn latest(&self, now: Timestamp, count: usize) -> T {
        self.merged(minute(now), count)
    }

    fn merged(&self, last: u64, count: usize) -> T {
        let mut out = T::default();
        let first = (last + 1).saturating_sub(count as u64);
        for (minute, content) in &self.ring {
            if (first..=last).contains(minute) {
                out.merge(content);
            }
        }
        out
    }
}

fn minute(now: Timestamp) -> u64 {
    now.0 / WINDOW.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    #[derive(Default, Debug, PartialEq)]
    struct Sum(u64);

    impl Merge for Sum {
        fn merge(&mut self, other: &Sum) {
            self.0 += other.0;
        }
    }

    fn at(minute: u64, second: u64) -> Timestamp {
        Timestamp(1_790_000_040_000) + Millis::from_secs(minute * 60 + second)
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn five_windows_hold_the_current_minute_and_four_before() {
        let mut windows = Windows::new(FIVE_MINUTES);
        for minute in 0..8 {
            windows.count(at(minute, 0), |sum: &mut Sum| sum.0 += 1 << minute);
            windows.count(at(minute, 59), |sum| sum.0 += 1 << minute);
        }
        assert_eq!(windows.latest(at(7, 59), 1), Sum(2 << 7));
        assert_eq!(windows.previous(at(7, 59)), Sum(2 << 6));
        assert_eq!(windows.latest(at(7, 59), FIVE_MINUTES), Sum(2 * 0b1111_1000));
        assert_eq!(windows.previous(at(8, 0)), Sum(2 << 7));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn what_is_older_is_forgotten_even_when_nothing_was_counted_since() {
        let mut windows = Windows::new(FIVE_MINUTES);
        windows.count(at(0, 0), |sum: &mut Sum| sum.0 += 1);
        assert_eq!(windows.latest(at(4, 59), FIVE_MINUTES), Sum(1));
        assert_eq!(windows.latest(at(5, 0), FIVE_MINUTES), Sum(0));
        windows.count(at(6, 0), |sum| sum.0 += 10);
        assert_eq!(windows.latest(at(6, 0), 6), Sum(10));
    }
}
