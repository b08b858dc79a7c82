//! Units that must not be confused: an instant with a duration, a ratio (0–1) with a percentage (0–100).
//!
//! The original mixed them (a health limit of 0.01 beside an alert limit of 1 %), so each has a type of its own.

use std::fmt;
use std::ops::{Add, Sub};

/// An instant: milliseconds since the Unix epoch, UTC. Always handed in by the shell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Whole seconds since the epoch, rounded down (JWT's NumericDate).
    pub const fn seconds(self) -> u64 {
        self.0 / 1000
    }

    /// Seconds from `now` until this instant, rounded up and at least 1: a time to live of 0 would mean "gone at once"
    /// to a cookie and "for ever" or an error to a store.
    pub const fn ttl_seconds(self, now: Timestamp) -> u64 {
        let seconds = self.since(now).seconds_up();
        if seconds == 0 { 1 } else { seconds }
    }

    /// How long ago `earlier` was; zero when it lies in the future (clocks step back).
    pub const fn since(self, earlier: Timestamp) -> Millis {
        Millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Millis> for Timestamp {
    type Output = Timestamp;
    fn add(self, span: Millis) -> Timestamp {
        Timestamp(self.0.saturating_add(span.0))
    }
}

impl Sub<Millis> for Timestamp {
    type Output = Timestamp;
    fn sub(self, span: Millis) -> Timestamp {
        Timestamp(self.0.saturating_sub(span.0))
    }
}

/// A span of time in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    pub const ZERO: Millis = Millis(0);

    pub const fn from_secs(seconds: u64) -> Millis {
        Millis(seconds.saturating_mul(1000))
    }

    /// Seconds rounded up, so that a time to live never becomes 0 (a key that expires at once or never).
    pub const fn seconds_up(self) -> u64 {
        self.0.div_ceil(1000)
    }
}

impl Add for Millis {
    type Output = Millis;
    fn add(self, other: Millis) -> Millis {
        Millis(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Millis {
    /// The form the configuration reads: the largest unit that is exact (`15m`, `500ms`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 4] = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
        if self.0 == 0 {
            return f.write_str("0s");
        }
        for (size, unit) in UNITS {
            if self.0.is_multiple_of(size) {
                return write!(f, "{}{unit}", self.0 / size);
            }
        }
        write!(f, "{}ms", self.0)
    }
}

/// A share between 0 and 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Ratio(pub f64);

/// A share between 0 and 100.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Percent(pub f64);

impl From<Ratio> for Percent {
    fn from(ratio: Ratio) -> Percent {
        Percent(ratio.0 * 100.0)
    }
}

/// A number of bytes (`64KiB` in the configuration).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        for (size, unit) in UNITS {
            if self.0 > 0 && self.0.is_multiple_of(size) {
                return write!(f, "{}{unit}", self.0 / size);
            }
        }
        write!(f, "{}B", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    #[wasm_bindgen_test(unsupported = test)]
    fn a_duration_prints_in_its_largest_exact_unit() {
        assert_eq!(Millis(900_000).to_string(), "15m");
        assert_eq!(Millis(1_500).to_string(), "1500ms");
        assert_eq!(Millis(0).to_string(), "0s");
        assert_eq!(Millis(86_400_000 * 30).to_string(), "30d");
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_time_to_live_is_rounded_up_and_never_zero() {
        assert_eq!(Millis(1).seconds_up(), 1);
        assert_eq!(Millis(1000).seconds_up(), 1);
        assert_eq!(Millis(1001).seconds_up(), 2);
        assert_eq!(Timestamp(5_001).ttl_seconds(Timestamp(5_000)), 1);
        assert_eq!(Timestamp(5_000).ttl_seconds(Timestamp(5_000)), 1, "over, and still not 0");
        assert_eq!(Timestamp(4_000).ttl_seconds(Timestamp(5_000)), 1);
        assert_eq!(Timestamp(7_001).ttl_seconds(Timestamp(5_000)), 3);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_clock_that_steps_back_gives_an_age_of_zero() {
        assert_eq!(Timestamp(5).since(Timestamp(9)), Millis::ZERO);
    }
}
