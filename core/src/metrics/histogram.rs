//! A log-linear histogram of microseconds: 32 equal steps to each power of two, so a value is known to 1/32 (3.1 %) from
//! 1 µs to 19 hours, with additions only.
//!
//! Merging adds counts, so it does not matter which core or isolate saw which request, or in which order they are put
//! together. Values below 32 µs are exact.

use super::window::Merge;
use crate::units::{Millis, Ratio};

/// 2⁵ steps an octave.
const STEP_BITS: u32 = 5;
const STEPS: usize = 1 << STEP_BITS;
/// Values from 2³⁶ µs (19 hours) share the last bucket.
const TOP_BITS: u32 = 36;
const MAX_BUCKETS: usize = (TOP_BITS - STEP_BITS + 1) as usize * STEPS;

/// Counts of values by bucket; grows as far as values need, 8 KiB at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Without zeros at the end, so that equal content is equal.
    buckets: Vec<u64>,
    count: u64,
    sum: u64,
    /// Meaningless while `count` is 0.
    min: u64,
    max: u64,
}

impl Histogram {
    /// Counts one value in microseconds.
    pub fn record(&mut self, micros: u64) {
        let index = bucket_of(micros);
        if index >= self.buckets.len() {
            self.buckets.resize(index + 1, 0);
        }
        if let Some(bucket) = self.buckets.get_mut(index) {
            *bucket += 1;
        }
        self.min = if self.count == 0 { micros } else { self.min.min(micros) };
        self.max = self.max.max(micros);
        self.count += 1;
        self.sum = self.sum.saturating_add(micros);
    }

    /// The value in microseconds that this share of all values does not exceed, known to 1/32; `None` without values.
    ///
    /// The middle of the bucket, but never outside of what was recorded: equal values are given back exactly.
    pub fn quantile(&self, share: Ratio) -> Option<u64> {
        if self.count == 0 {
            return None;
        }
        // The value of this rank, counted from 1; NaN becomes the lowest.
        let rank = ((share.0.clamp(0.0, 1.0) * self.count as f64).ceil() as u64).clamp(1, self.count);
        let mut seen = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            seen += bucket;
            if seen >= rank {
                return Some(middle_of(index).clamp(self.min, self.max));
            }
        }
        Some(self.max)
    }

    /// The 95th percentile rounded down to milliseconds; 0 without values.
    pub fn p95(&self) -> Millis {
        Millis(self.quantile(Ratio(0.95)).unwrap_or(0) / 1000)
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// In microseconds.
    pub fn sum(&self) -> u64 {
        self.sum
    }
}

impl Merge for Histogram {
    fn merge(&mut self, other: &Histogram) {
        if other.count == 0 {
            return;
        }
        if self.buckets.len() < other.buckets.len() {
            self.buckets.resize(other.buckets.len(), 0);
        }
        for (bucket, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *bucket += more;
        }
        self.min = if self.count == 0 { other.min } else { self.min.min(other.min) };
        self.max = self.max.max(other.max);
        self.count += other.count;
        self.sum = self.sum.saturating_add(other.sum);
    }
}

fn bucket_of(value: u64) -> usize {
    let octave = value.checked_ilog2().unwrap_or(0);
    if octave < STEP_BITS {
        return value as usize;
    }
    let step = (value >> (octave - STEP_BITS)) as usize - STEPS;
    ((octave - STEP_BITS + 1) as usize * STEPS + step).min(MAX_BUCKETS - 1)
}

fn middle_of(index: usize) -> u64 {
    if index < STEPS {
        return index as u64;
    }
    let shift = (index / STEPS - 1) as u32;
    let low = ((STEPS + index % STEPS) as u64) << shift;
    low + (1 << shift) / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::Entropy;
    use wasm_bindgen_test::wasm_bindgen_test;

    fn of(values: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        values.iter().for_each(|value| histogram.record(*value));
        histogram
    }

    /// Streams of several shapes, up to the top of the range.
    fn stream(entropy: &mut Entropy, shape: u64, count: usize) -> Vec<u64> {
        let draw = |entropy: &mut Entropy| match shape {
            0 => entropy.below(1_000_000),
            1 => 777_777,
            2 => [900, 1_900_000][entropy.below(2) as usize],
            3 => entropy.next_u64() >> (28 + entropy.below(36)),
            _ => (1 << entropy.below(36)) - entropy.below(2),
        };
        (0..count).map(|_| draw(entropy)).collect()
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn every_quantile_is_within_a_thirty_second_of_the_sorted_answer() {
        let mut entropy = Entropy::for_tests(29);
        for shape in 0..5 {
            for count in [1, 2, 19, 1000] {
                let mut values = stream(&mut entropy, shape, count);
                let histogram = of(&values);
                values.sort_unstable();
                for share in [0.0, 0.01, 0.5, 0.9, 0.95, 0.99, 1.0] {
                    let rank = ((share * count as f64).ceil() as usize).clamp(1, count);
                    let (exact, found) = (values[rank - 1], histogram.quantile(Ratio(share)).unwrap());
                    assert!(exact.abs_diff(found) * 32 <= exact, "shape {shape}, {share}: {exact} {found}");
                }
            }
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn merging_is_as_recording_everything_in_one_in_any_order() {
        let mut entropy = Entropy::for_tests(31);
        for shape in 0..5 {
            let parts: Vec<Vec<u64>> = (0..3).map(|part| stream(&mut entropy, shape, 100 * part)).collect();
            let mut forward = Histogram::default();
            parts.iter().for_each(|part| forward.merge(&of(part)));
            let mut backward = Histogram::default();
            parts.iter().rev().for_each(|part| backward.merge(&of(part)));
            assert_eq!(forward, of(&parts.concat()));
            assert_eq!(forward, backward);
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn buckets_follow_each_other_without_gaps() {
        let mut last = 0;
        for value in (0..100_000).chain((17..36).flat_map(|bits| [(1 << bits) - 1, 1 << bits])) {
            let index = bucket_of(value);
            assert!(index == last || index == last + 1 || value > 100_000, "{value}");
            assert_eq!(bucket_of(middle_of(index)), index, "{value}");
            last = index;
        }
        assert_eq!(bucket_of((1 << TOP_BITS) - 1), MAX_BUCKETS - 1);
        assert_eq!(bucket_of(u64::MAX), MAX_BUCKETS - 1);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn an_empty_histogram_has_no_quantile_and_the_limits_are_exact_for_equal_values() {
        assert_eq!(Histogram::default().quantile(Ratio(0.95)), None);
        assert_eq!(Histogram::default().p95(), Millis::ZERO);
        for millis in [499, 500, 501, 999, 1000, 1001] {
            assert_eq!(of(&[millis * 1000; 50]).p95(), Millis(millis));
        }
    }
}
