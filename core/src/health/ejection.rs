//! Passive ejection: an origin that fails five requests in a row is thrown out for a while, without waiting for checks.
//! Numbers and rules are those of Envoy's outlier detection.
//!
//! The count of failures ([`Streak`]) is an atomic beside the origin, because every request touches it. The rare
//! decision ([`Ejections`], one a pool) is taken under the one lock of [`PoolEjections`], which nobody touches before a
//! row of failures is full.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::balance::{Origin, OriginId, Pool};
use crate::units::{Millis, Ratio, Timestamp};

/// When an origin is thrown out, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EjectionRules {
    /// Failures in a row.
    pub consecutive: u32,
    /// An origin that stays in for so long has one ejection forgiven.
    pub interval: Millis,
    /// The n-th ejection lasts n times this …
    pub base: Millis,
    /// … and at most this.
    pub max: Millis,
    /// At most this share of a pool is out at once, but one origin always may be.
    pub max_share: Ratio,
}

impl Default for EjectionRules {
    fn default() -> EjectionRules {
        EjectionRules {
            consecutive: 5,
            interval: Millis::from_secs(10),
            base: Millis::from_secs(30),
            max: Millis::from_secs(300),
            max_share: Ratio(0.1),
        }
    }
}

/// One origin's failures in a row.
#[derive(Debug, Default)]
pub struct Streak(AtomicU32);

impl Streak {
    /// Any good answer ends the row.
    pub fn succeeded(&self) {
        // Most requests succeed: reading first keeps the cache line shared.
        if self.0.load(Ordering::Relaxed) != 0 {
            self.0.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a failure. `true` when the row is full: the caller asks [`Ejections::eject`], and a new row begins.
    pub fn failed(&self, rules: &EjectionRules) -> bool {
        let limit = rules.consecutive.max(1);
        let next = |count: u32| Some(if count + 1 >= limit { 0 } else { count + 1 });
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok_and(|before| before + 1 >= limit)
    }
}

/// The ejections of one pool.
#[derive(Clone, Debug, Default)]
pub struct Ejections {
    origins: BTreeMap<OriginId, Ejected>,
    refused: u64,
}

#[derive(Clone, Copy, Debug)]
struct Ejected {
    /// How many are not forgiven: the multiplier of the next stay outside.
    times: u32,
    /// When it was thrown out last.
    at: Timestamp,
    until: Timestamp,
    /// From when on the next forgiveness is counted.
    since: Timestamp,
}

impl Ejections {
    /// Throws an origin out of a pool of `hosts`. The answer is the instant until when; `None` when it is out already
    /// or the pool has no more to spare. Those that the pool has lost meanwhile (`is_host`) take nobody's place.
    pub fn eject(
        &mut self,
        id: &OriginId,
        hosts: usize,
        is_host: impl Fn(&OriginId) -> bool,
        now: Timestamp,
        rules: &EjectionRules,
    ) -> Option<Timestamp> {
        self.tick(now, rules);
        if self.origins.get(id).is_some_and(|ejected| ejected.until > now) {
            return None;
        }
        let out = self.origins.iter().filter(|(id, ejected)| ejected.until > now && is_host(id)).count();
        if out > 0 && (out + 1) as f64 > rules.max_share.0 * hosts as f64 {
            self.refused += 1;
            return None;
        }
        let times = self.origins.get(id).map_or(0, |ejected| ejected.times);
        // Beyond the longest stay the multiplier stops, or it would take hours to be forgiven.
        let times = if rules.base.0.saturating_mul(u64::from(times)) < rules.max.0 { times + 1 } else { times };
        let until = now + Millis(rules.base.0.saturating_mul(u64::from(times))).min(rules.max);
        self.origins.insert(id.clone(), Ejected { times, at: now, until, since: until });
        Some(until)
    }

    /// A check that began at `began` succeeded: an origin that was thrown out before comes back at once. `true` when it
    /// was out.
    pub fn check_succeeded(&mut self, id: &OriginId, began: Timestamp, now: Timestamp) -> bool {
        match self.origins.get_mut(id) {
            // A clock that was set back must not keep it out until it has caught up.
            Some(ejected) if ejected.until > now && (ejected.at <= began || ejected.at > now) => {
                (ejected.until, ejected.since) = (now, now);
                true
            }
            _ => false,
        }
    }

    /// Forgives one ejection for each interval that an origin stayed in. May be called at any time.
    pub fn tick(&mut self, now: Timestamp, rules: &EjectionRules) {
        let interval = rules.interval.0.max(1);
        self.origins.retain(|_, ejected| {
            let intervals = now.since(ejected.since).0 / interval;
            ejected.since = ejected.since + Millis(intervals.saturating_mul(interval));
            ejected.times = ejected.times.saturating_sub(u32::try_from(intervals).unwrap_or(u32::MAX));
            ejected.times > 0 || ejected.until > now
        });
    }

    /// How many are out at `now`.
    pub fn ejected(&self, now: Timestamp) -> usize {
        self.origins.values().filter(|ejected| ejected.until > now).count()
    }

    /// How many ejections were refused because the pool had no more to spare (a counter).
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

/// The ejections of all pools, kept over reloads.
#[derive(Debug, Default)]
pub struct PoolEjections(Mutex<BTreeMap<String, Ejections>>);

impl PoolEjections {
    /// Throws out an origin of a pool that failed too often in a row, if the pool can spare it.
    pub fn eject(&self, pool: &Pool, origin: &Origin, now: Timestamp, rules: &EjectionRules) {
        let mut pools = self.pools();
        let ejections = match pools.get_mut(&pool.name) {
            Some(ejections) => ejections,
            None => pools.entry(pool.name.clone()).or_default(),
        };
        let is_host = |id: &OriginId| pool.origins.iter().any(|host| host.id == *id);
        if let Some(until) = ejections.eject(&origin.id, pool.origins.len(), is_host, now, rules) {
            origin.state.eject_until(until);
        }
    }

    /// A check that began at `began` succeeded.
    pub fn check_succeeded(&self, pool: &str, origin: &Origin, began: Timestamp, now: Timestamp) {
        if origin.state.ejected_until(now).is_some()
            && let Some(ejections) = self.pools().get_mut(pool)
            && ejections.check_succeeded(&origin.id, began, now)
        {
            origin.state.bring_back(now);
        }
    }

    /// How many ejections of a pool's origins were refused (a counter).
    pub fn refused(&self, pool: &str) -> u64 {
        self.pools().get(pool).map_or(0, Ejections::refused)
    }

    fn pools(&self) -> MutexGuard<'_, BTreeMap<String, Ejections>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn id(number: usize) -> OriginId {
        OriginId::new(&number.to_string())
    }

    fn after(seconds: u64) -> Timestamp {
        NOW + Millis::from_secs(seconds)
    }

    fn eject(ejections: &mut Ejections, id: &OriginId, hosts: usize, now: Timestamp) -> Option<Timestamp> {
        ejections.eject(id, hosts, |_| true, now, &EjectionRules::default())
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn five_failures_in_a_row_and_no_fewer_fill_the_row() {
        let (streak, rules) = (Streak::default(), EjectionRules::default());
        for _ in 0..10 {
            assert_eq!((0..4).map(|_| streak.failed(&rules)).collect::<Vec<_>>(), [false; 4]);
            streak.succeeded();
        }
        assert_eq!((0..10).filter(|_| streak.failed(&rules)).count(), 2);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn each_stay_outside_is_longer_up_to_five_minutes() {
        let mut ejections = Ejections::default();
        let mut now = NOW;
        for seconds in [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300] {
            let until = eject(&mut ejections, &id(1), 1, now).unwrap();
            assert_eq!(until.since(now), Millis::from_secs(seconds));
            assert_eq!(eject(&mut ejections, &id(1), 1, now), None);
            now = until;
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn an_ejection_is_forgiven_for_each_interval_inside() {
        let (mut ejections, rules) = (Ejections::default(), EjectionRules::default());
        eject(&mut ejections, &id(1), 1, NOW);
        eject(&mut ejections, &id(1), 1, after(30));
        // Back at 90 s with two on the account; at 100 s one is forgiven, so the next is the second again.
        assert_eq!(eject(&mut ejections, &id(1), 1, after(105)), Some(after(165)));
        // Two more intervals inside forgive the rest.
        assert_eq!(eject(&mut ejections, &id(1), 1, after(185)), Some(after(215)));
        ejections.tick(after(225), &rules);
        assert!(ejections.origins.is_empty());
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn at_most_a_tenth_of_a_pool_is_out_but_one_always_may_be() {
        for (hosts, most) in [(1, 1), (2, 1), (9, 1), (19, 1), (20, 2), (29, 2), (30, 3), (100, 10)] {
            let mut ejections = Ejections::default();
            let out = (0..hosts).filter(|host| eject(&mut ejections, &id(*host), hosts, NOW).is_some()).count();
            assert_eq!((out, ejections.ejected(NOW)), (most, most), "{hosts} hosts");
            assert_eq!(ejections.refused(), (hosts - most) as u64);
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_good_check_brings_an_origin_back_at_once() {
        let mut ejections = Ejections::default();
        eject(&mut ejections, &id(1), 3, NOW);
        assert!(!ejections.check_succeeded(&id(1), NOW - Millis(1), after(4)), "it says nothing of what came later");
        assert!(ejections.check_succeeded(&id(1), after(4), after(5)));
        assert!(!ejections.check_succeeded(&id(1), after(4), after(5)));
        assert_eq!(ejections.ejected(after(5)), 0);
        assert_eq!(eject(&mut ejections, &id(1), 3, after(6)), Some(after(66)));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn one_that_the_pool_has_lost_takes_nobodys_place() {
        let (mut ejections, rules) = (Ejections::default(), EjectionRules::default());
        assert!(eject(&mut ejections, &id(1), 3, NOW).is_some());
        assert_eq!(eject(&mut ejections, &id(2), 3, NOW), None);
        assert!(ejections.eject(&id(2), 2, |host| *host != id(1), NOW, &rules).is_some());
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_clock_that_was_set_back_keeps_nobody_out() {
        let mut ejections = Ejections::default();
        eject(&mut ejections, &id(1), 3, after(86_400));
        assert!(ejections.check_succeeded(&id(1), after(4), after(5)));
        assert_eq!(ejections.ejected(after(5)), 0);
    }
}
