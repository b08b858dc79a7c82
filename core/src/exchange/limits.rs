//! Rate limits: how often something may happen per client address or credential, in windows, counted in this process.
//! Bounded in memory: the least used counters are forgotten first, which only ever lets somebody through.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::sync::Cache;
use siphasher::sip::SipHasher13;

use crate::{Entropy, Millis, Timestamp};

/// How many addresses or credentials are counted at once.
const COUNTERS: usize = 16_384;

/// One limit: at most `count` in each window of `per`.
pub struct RateLimit {
    counters: Cache<u64, Arc<Counter>>,
    key: [u8; 16],
}

/// Window number and count in one word, so that they change together.
struct Counter(AtomicU64);

impl RateLimit {
    pub fn new(entropy: &mut Entropy) -> RateLimit {
        RateLimit { counters: Cache::new(COUNTERS), key: entropy.bytes() }
    }

    /// Counts one event of `who`; the seconds to wait when it is one too many.
    pub fn count(&self, who: &[u8], count: u32, per: Millis, now: Timestamp) -> Result<(), u64> {
        let (window, left) = window(per, now);
        let counter = self.counter(who);
        let mut allowed = false;
        let _ = counter.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            let so_far = if (word >> 32) as u32 == window { word as u32 } else { 0 };
            allowed = so_far < count;
            allowed.then(|| u64::from(window) << 32 | u64::from(so_far + 1))
        });
        if allowed { Ok(()) } else { Err(left) }
    }

    /// Whether `who` has used up its window, without counting.
    pub fn exhausted(&self, who: &[u8], count: u32, per: Millis, now: Timestamp) -> Option<u64> {
        let (window, left) = window(per, now);
        let word = self.counters.get(&self.slot(who))?.0.load(Ordering::Acquire);
        ((word >> 32) as u32 == window && word as u32 >= count).then_some(left)
    }

    fn counter(&self, who: &[u8]) -> Arc<Counter> {
        let slot = self.slot(who);
        if let Some(counter) = self.counters.get(&slot) {
            return counter;
        }
        let counter = Arc::new(Counter(AtomicU64::new(0)));
        self.counters.insert(slot, counter.clone());
        counter
    }

    fn slot(&self, who: &[u8]) -> u64 {
        SipHasher13::new_with_key(&self.key).hash(who)
    }
}

/// The number of the current window and the seconds until the next.
fn window(per: Millis, now: Timestamp) -> (u32, u64) {
    let per = per.0.max(1);
    ((now.0 / per) as u32, Millis(per - now.0 % per).seconds_up())
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    #[wasm_bindgen_test(unsupported = test)]
    fn the_count_is_exact_and_a_new_window_starts_over() {
        let limit = RateLimit::new(&mut Entropy::for_tests(1));
        let per = Millis::from_secs(60);
        for _ in 0..3 {
            assert_eq!(limit.count(b"a", 3, per, Timestamp(10_000)), Ok(()));
        }
        assert_eq!(limit.count(b"a", 3, per, Timestamp(10_000)), Err(50));
        assert_eq!(limit.exhausted(b"a", 3, per, Timestamp(10_000)), Some(50));
        assert_eq!(limit.count(b"b", 3, per, Timestamp(10_000)), Ok(()), "another client has its own");
        assert_eq!(limit.exhausted(b"a", 3, per, Timestamp(60_000)), None);
        assert_eq!(limit.count(b"a", 3, per, Timestamp(60_000)), Ok(()));
    }
}
