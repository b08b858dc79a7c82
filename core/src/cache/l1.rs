//! The first cache: the memory of one process, or of one isolate at the edge.
//!
//! `quick_cache` bounds it by bytes and chooses what to evict; it knows no time, so an entry carries the instant of its
//! death and is gone then, whether or not anyone evicted it.

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::key::CacheKey;
use crate::units::{ByteSize, Timestamp};

/// What an entry costs besides its value: key, times and the cache's own bookkeeping.
const OVERHEAD: u64 = 160;
/// An average entry, for the first size of the tables.
const TYPICAL_ENTRY: u64 = 4096;

/// Values by key, at most so many bytes of them. `&self` throughout: all cores share it.
pub struct L1<V> {
    cache: Cache<CacheKey, Entry<V>, ByBytes>,
}

#[derive(Clone)]
struct Entry<V> {
    value: V,
    bytes: u64,
    dead_at: Timestamp,
}

#[derive(Clone)]
struct ByBytes;

impl<V> Weighter<CacheKey, Entry<V>> for ByBytes {
    fn weight(&self, _: &CacheKey, entry: &Entry<V>) -> u64 {
        entry.bytes.saturating_add(OVERHEAD)
    }
}

impl<V: Clone> L1<V> {
    /// Holds at most `memory` bytes. It is divided into parts, so one entry larger than a part is not kept.
    pub fn new(memory: ByteSize) -> L1<V> {
        let entries = (memory.0 / TYPICAL_ENTRY).clamp(16, 1 << 20) as usize;
        L1 { cache: Cache::with_weighter(entries, memory.0, ByBytes) }
    }

    /// A value that is not dead at `now`; stale ones are given too, since their times decide (see `freshness`).
    pub fn get(&self, key: &CacheKey, now: Timestamp) -> Option<V> {
        let entry = self.cache.get(key)?;
        if now < entry.dead_at {
            return Some(entry.value);
        }
        // Only the dead entry that was seen: another core may have filled it anew.
        self.cache.remove_if(key, |entry| now >= entry.dead_at);
        None
    }

    /// Keeps a value of so many bytes until `dead_at`. Cloning `value` must be cheap (`Bytes`, `Arc`).
    pub fn insert(&self, key: CacheKey, value: V, bytes: ByteSize, dead_at: Timestamp) {
        self.cache.insert(key, Entry { value, bytes: bytes.0, dead_at });
    }

    pub fn remove(&self, key: &CacheKey) {
        self.cache.remove(key);
    }

    pub fn clear(&self) {
        self.cache.clear();
    }

    /// Entries, those included that are dead and not yet noticed.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    /// The bytes in use, overhead included.
    pub fn used(&self) -> ByteSize {
        ByteSize(self.cache.weight())
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::{EntryScope, Generation, ResourceId};
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    const NOW: Timestamp = Timestamp(1000);

    fn key(number: u64) -> CacheKey {
        ResourceId::new("t", "/").entry(Generation(number), &EntryScope::default())
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn an_entry_is_gone_at_the_instant_of_its_death() {
        let l1 = L1::new(ByteSize(1 << 20));
        l1.insert(key(1), "value", ByteSize(5), Timestamp(2000));
        assert_eq!(l1.get(&key(1), Timestamp(1999)), Some("value"));
        assert_eq!(l1.get(&key(1), Timestamp(2000)), None);
        assert!(l1.is_empty());
        assert_eq!(l1.get(&key(1), NOW), None);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn memory_stays_bounded_whatever_is_stored() {
        let l1 = L1::new(ByteSize(1 << 20));
        for number in 0..5000 {
            l1.insert(key(number), number, ByteSize(1000 + number % 700), Timestamp(u64::MAX));
            assert!(l1.used() <= ByteSize(1 << 20));
        }
        assert!(l1.len() > 300 && l1.len() < 1000, "{}", l1.len());
        l1.insert(key(9999), 0, ByteSize(1 << 30), Timestamp(u64::MAX));
        assert_eq!(l1.get(&key(9999), NOW), None);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn removing_and_clearing_forget() {
        let l1 = L1::new(ByteSize(1 << 20));
        (0..3).for_each(|number| l1.insert(key(number), number, ByteSize(10), Timestamp(5000)));
        l1.remove(&key(1));
        assert_eq!([0, 1, 2].map(|number| l1.get(&key(number), NOW)), [Some(0), None, Some(2)]);
        assert_eq!(l1.used(), ByteSize(2 * (10 + OVERHEAD)));
        l1.clear();
        assert!(l1.is_empty());
    }
}
