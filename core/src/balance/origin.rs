//! One origin: what the configuration says about it and what this process has learnt.
//!
//! The learnt part, [`OriginState`], is shared by all cores and keyed by the origin's id, so that a reload neither
//! forgets requests in flight nor brings a failing origin back.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::health::{EjectionRules, HealthLimits, Streak, Traffic, TrafficSlots, is_degraded};
use crate::units::{Millis, Timestamp};

/// An origin's name in configuration, metrics and the sticky cookie's tag; unique over all pools. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OriginId(Arc<str>);

impl OriginId {
    pub fn new(text: &str) -> OriginId {
        OriginId(text.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is one address of an origin that has a name: `<id>@<address>`. No configured id has an `@`.
    pub fn is_member(&self) -> bool {
        self.0.contains('@')
    }

    /// The id that the configuration gives.
    pub fn configured(&self) -> &str {
        self.0.split('@').next().unwrap_or_default()
    }
}

impl fmt::Display for OriginId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for OriginId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// An origin as a pool lists it. Cloning shares the state, so one origin may stand in several lists (a shard's pool and
/// the list of all user-shard origins).
#[derive(Clone, Debug)]
pub struct Origin {
    pub id: OriginId,
    pub url: String,
    /// Its share relative to the others, 1 upwards; 0 counts as 1.
    pub weight: u32,
    /// The most requests at once; `None` is unlimited.
    pub max_connections: Option<u32>,
    pub state: Arc<OriginState>,
}

/// Origins that hold the same data: a shard's, or a fallback's.
#[derive(Clone, Debug)]
pub struct Pool {
    /// The shard, or the fallback's name.
    pub name: String,
    pub origins: Vec<Origin>,
}

/// What the operator wants of an origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Admin {
    #[default]
    Ready,
    /// Keeps its sticky clients, gets no new ones.
    Drain,
    /// Gets nothing, not even when nothing else is left.
    Maintenance,
}

/// What the health checks say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Check {
    /// Not checked yet; used like `Up`.
    #[default]
    Unknown,
    Up,
    Down,
}

/// An origin's standing at one instant: what balancing, `/readyz` and the dashboard all show, so that they cannot
/// disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Available,
    /// Available with a quarter of its weight: slow or failing, but not down.
    Degraded,
    Drain,
    Maintenance,
    /// Refused the last connection.
    Refused,
    Down,
    /// Thrown out for failing live traffic, for a time.
    Ejected,
}

impl Standing {
    pub const ALL: [Standing; 7] = [
        Standing::Available,
        Standing::Degraded,
        Standing::Drain,
        Standing::Maintenance,
        Standing::Refused,
        Standing::Down,
        Standing::Ejected,
    ];

    /// Whether new clients are sent there.
    pub const fn is_available(self) -> bool {
        matches!(self, Standing::Available | Standing::Degraded)
    }

    /// Whether a sticky client stays there.
    pub const fn keeps_sticky(self) -> bool {
        matches!(self, Standing::Available | Standing::Degraded | Standing::Drain)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Standing::Available => "up",
            Standing::Degraded => "degraded",
            Standing::Drain => "drain",
            Standing::Maintenance => "maintenance",
            Standing::Refused => "refused",
            Standing::Down => "down",
            Standing::Ejected => "ejected",
        }
    }
}

/// No penalty, in thousandths.
pub(super) const NO_PENALTY: u64 = 1000;
/// The extra load that a first failure pretends, in thousandths: as if four more requests were in flight.
const PENALTY_STEP: u64 = 4_000;
/// The most extra load: no pool keeps a thousand requests in flight on each healthy origin to avoid a failing one.
const PENALTY_CAP: u64 = 1_000_000;
/// Up to a quarter of a request is forgiven at once, so that a pool at rest is shared evenly again 20 s after a
/// single failure.
const PENALTY_FLOOR: u64 = 250;
/// The extra load halves in this time.
const PENALTY_HALF_LIFE: Millis = Millis(5_000);

/// The penalty word: the extra load in the upper 20 bits, the instant it was set, in milliseconds, in the lower 44
/// (until the year 2527). One word, so that two cores never mix one's load with the other's instant.
const INSTANT_BITS: u32 = 44;

const ADMIN_MASK: u32 = 0b0000_0011;
const CHECK_MASK: u32 = 0b0000_1100;
const DEGRADED: u32 = 0b0001_0000;
const REFUSED: u32 = 0b0010_0000;
const HURRIED: u32 = 0b0100_0000;

/// So long an origin that refused a connection is left alone; then a request may find out whether it is back. One that
/// is refused again goes to another origin, so nobody notices.
const REFUSED_FOR: Millis = Millis(5_000);

/// The instant of an origin that warms up from the first look at it.
const NEW: u64 = u64::MAX;

/// What this process knows of an origin. All methods take `&self`; a reader may see one change before another.
#[derive(Debug, Default)]
pub struct OriginState {
    in_flight: AtomicU32,
    /// Admin (bits 0–1), check (2–3), degraded (4), refused (5), hurried (6).
    word: AtomicU32,
    penalty: AtomicU64,
    ejected_until: AtomicU64,
    refused_at: AtomicU64,
    /// When it last came back; 0: it never was away, so it needs no warming up. `NEW` until it is first looked at.
    warm_since: AtomicU64,
    /// How often it was ejected.
    ejections: AtomicU32,
    streak: Streak,
    traffic: TrafficSlots,
}

impl OriginState {
    /// Of an origin that joins others under load: it warms up.
    pub fn joining() -> OriginState {
        OriginState { warm_since: AtomicU64::new(NEW), ..OriginState::default() }
    }

    /// Requests that hold a lease now.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// What the origin may be used for at `now`.
    pub fn standing(&self, now: Timestamp) -> Standing {
        let word = self.word.load(Ordering::Relaxed);
        match admin_of(word) {
            Admin::Maintenance => Standing::Maintenance,
            _ if word & REFUSED != 0 && self.is_refusing(now) => Standing::Refused,
            _ if check_of(word) == Check::Down => Standing::Down,
            _ if self.ejected_until.load(Ordering::Relaxed) > now.0 => Standing::Ejected,
            Admin::Drain => Standing::Drain,
            Admin::Ready if word & DEGRADED != 0 => Standing::Degraded,
            Admin::Ready => Standing::Available,
        }
    }

    pub fn admin(&self) -> Admin {
        admin_of(self.word.load(Ordering::Relaxed))
    }

    pub fn set_admin(&self, admin: Admin, now: Timestamp) {
        self.change(ADMIN_MASK, admin as u32, now);
    }

    pub fn check(&self) -> Check {
        check_of(self.word.load(Ordering::Relaxed))
    }

    /// What the health checks say. `Up` also proves that connections are taken again.
    pub fn set_check(&self, check: Check, now: Timestamp) {
        match check {
            Check::Up => self.change(CHECK_MASK | REFUSED, (check as u32) << 2, now),
            _ => self.change(CHECK_MASK, (check as u32) << 2, now),
        }
    }

    pub fn set_degraded(&self, degraded: bool, now: Timestamp) {
        self.change(DEGRADED, if degraded { DEGRADED } else { 0 }, now);
    }

    /// A connection was refused (by a check or by live traffic): it stays out, also in a panic, until one is taken.
    pub fn refused(&self, now: Timestamp) {
        self.refused_at.store(now.0, Ordering::Relaxed);
        self.change(REFUSED, REFUSED, now);
    }

    fn is_refusing(&self, now: Timestamp) -> bool {
        // Either way: a clock that was set back must not keep it out until it has caught up.
        now.0.abs_diff(self.refused_at.load(Ordering::Relaxed)) < REFUSED_FOR.0
    }

    /// A connection was taken.
    pub fn connected(&self, now: Timestamp) {
        if self.word.load(Ordering::Relaxed) & REFUSED != 0 {
            self.change(REFUSED, 0, now);
        }
    }

    /// Keeps the origin out until then; the slow start follows.
    pub fn eject_until(&self, until: Timestamp) {
        self.ejected_until.store(until.0, Ordering::Relaxed);
        self.warm_since.fetch_max(until.0, Ordering::Relaxed);
        self.ejections.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends an ejection early; the slow start begins now.
    pub fn bring_back(&self, now: Timestamp) {
        self.ejected_until.store(now.0, Ordering::Relaxed);
        self.warm_since.store(now.0, Ordering::Relaxed);
    }

    /// How often it was ejected (a counter).
    pub fn ejections(&self) -> u32 {
        self.ejections.load(Ordering::Relaxed)
    }

    /// `None` when it is not ejected at `now`.
    pub fn ejected_until(&self, now: Timestamp) -> Option<Timestamp> {
        let until = self.ejected_until.load(Ordering::Relaxed);
        (until > now.0).then_some(Timestamp(until))
    }

    /// Counts an attempt that ended, and once a second makes the degraded state anew. True when it is the last of too
    /// many failures in a row: the origin is to be ejected.
    pub fn attempt_ended(&self, failed: bool, took: Millis, limits: &HealthLimits, now: Timestamp) -> bool {
        self.traffic.record(failed, took >= limits.max_latency_p95, now);
        if self.traffic.is_due(now) {
            self.judge(limits, now);
        }
        if !failed {
            self.streak.succeeded();
            return false;
        }
        self.failed(now);
        self.streak.failed(&EjectionRules::default())
    }

    /// Makes the degraded state anew; also to be called where no request comes, for the counts grow old.
    pub fn judge(&self, limits: &HealthLimits, now: Timestamp) {
        let degraded = is_degraded(&self.traffic.sum(now), limits);
        if degraded != self.is_degraded() {
            self.set_degraded(degraded, now);
        }
    }

    pub fn is_degraded(&self) -> bool {
        self.word.load(Ordering::Relaxed) & DEGRADED != 0
    }

    /// This gateway's traffic there in the last five minutes.
    pub fn traffic(&self, now: Timestamp) -> Traffic {
        self.traffic.sum(now)
    }

    /// A request found the origin dead: it is to be checked soon.
    pub fn hurry(&self) {
        if self.word.load(Ordering::Relaxed) & HURRIED == 0 {
            self.word.fetch_or(HURRIED, Ordering::Relaxed);
        }
    }

    /// Whether it was to be checked soon; asked once for each time.
    pub fn take_hurry(&self) -> bool {
        let hurried = self.word.load(Ordering::Relaxed) & HURRIED != 0;
        if hurried {
            self.word.fetch_and(!HURRIED, Ordering::Relaxed);
        }
        hurried
    }

    /// A request failed: the origin looks busier for a while, so that failing fast does not attract traffic.
    ///
    /// Each failure at least doubles what is left of the earlier ones, up to a thousand requests' worth.
    pub fn failed(&self, now: Timestamp) {
        let worse = |word: u64| {
            let extra = decayed(word, now);
            let extra = (extra + extra.max(PENALTY_STEP)).min(PENALTY_CAP);
            Some((extra << INSTANT_BITS) | (now.0 & ((1 << INSTANT_BITS) - 1)))
        };
        // The closure always answers, so the update always happens.
        let _ = self.penalty.fetch_update(Ordering::Relaxed, Ordering::Relaxed, worse);
    }

    /// The factor on the load, in thousandths: 1000 without recent failures.
    pub fn penalty(&self, now: Timestamp) -> u64 {
        match self.penalty.load(Ordering::Relaxed) {
            0 => NO_PENALTY,
            word => NO_PENALTY + decayed(word, now),
        }
    }

    /// The share of its weight that slow start grants, in thousandths: 100 at first, 1000 when `window` has passed
    /// since it came back. An origin that never was away is warm.
    pub fn warmth(&self, now: Timestamp, window: Millis) -> u64 {
        let mut since = self.warm_since.load(Ordering::Relaxed);
        if since == NEW {
            let first = self.warm_since.compare_exchange(NEW, now.0, Ordering::Relaxed, Ordering::Relaxed);
            since = first.map_or_else(|other| other, |_| now.0);
        }
        let elapsed = now.0.saturating_sub(since);
        if since == 0 || elapsed >= window.0 { 1000 } else { (elapsed * 1000 / window.0).max(100) }
    }

    /// Counts a request in unless `max` are in flight already.
    pub(super) fn enter(&self, max: Option<u32>) -> bool {
        let max = max.unwrap_or(u32::MAX);
        let more = |count: u32| (count < max).then(|| count + 1);
        self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    pub(super) fn leave(&self) {
        let before = self.in_flight.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "a lease was given back twice");
    }

    /// Sets the masked bits, and starts warming up when that makes a hidden origin available.
    fn change(&self, mask: u32, bits: u32, now: Timestamp) {
        let set = |word: u32| Some((word & !mask) | bits);
        let before = self.word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, set).unwrap_or(bits);
        let after = (before & !mask) | bits;
        if hidden(before) && !hidden(after) {
            self.warm_since.fetch_max(now.0, Ordering::Relaxed);
        }
    }
}

fn admin_of(word: u32) -> Admin {
    match word & ADMIN_MASK {
        1 => Admin::Drain,
        2 => Admin::Maintenance,
        _ => Admin::Ready,
    }
}

fn check_of(word: u32) -> Check {
    match (word & CHECK_MASK) >> 2 {
        1 => Check::Up,
        2 => Check::Down,
        _ => Check::Unknown,
    }
}

fn hidden(word: u32) -> bool {
    admin_of(word) != Admin::Ready || check_of(word) == Check::Down || word & REFUSED != 0
}

/// What is left at `now` of a penalty word's extra load: halved per half-life, linear in between.
fn decayed(word: u64, now: Timestamp) -> u64 {
    let extra = word >> INSTANT_BITS;
    let elapsed = now.since(Timestamp(word & ((1 << INSTANT_BITS) - 1))).0;
    let (halvings, rest) = (elapsed / PENALTY_HALF_LIFE.0, elapsed % PENALTY_HALF_LIFE.0);
    if halvings >= 20 {
        return 0;
    }
    let extra = extra >> halvings;
    let extra = extra - extra * rest / (2 * PENALTY_HALF_LIFE.0);
    if extra <= PENALTY_FLOOR { 0 } else { extra }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    const NOW: Timestamp = Timestamp(1_790_000_000_000);

    fn after(ms: u64) -> Timestamp {
        NOW + Millis(ms)
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_penalty_grows_with_each_failure_and_halves_every_five_seconds() {
        let state = OriginState::default();
        assert_eq!(state.penalty(NOW), 1000);
        state.failed(NOW);
        assert_eq!(state.penalty(NOW), 5000);
        assert_eq!(state.penalty(after(2_500)), 4000);
        assert_eq!(state.penalty(after(5_000)), 3000);
        assert_eq!(state.penalty(after(10_000)), 2000);
        assert_eq!(state.penalty(after(20_000)), 1000);
        state.failed(NOW);
        assert_eq!(state.penalty(NOW), 9000);
        for _ in 0..50 {
            state.failed(NOW);
        }
        assert_eq!(state.penalty(NOW), 1000 + PENALTY_CAP);
        assert_eq!(state.penalty(after(600_000)), 1000);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_penalty_only_falls_between_failures() {
        let state = OriginState::default();
        (0..9).for_each(|_| state.failed(NOW));
        let mut last = u64::MAX;
        for ms in (0..80_000).step_by(37) {
            let penalty = state.penalty(after(ms));
            assert!(penalty <= last, "at {ms} ms");
            last = penalty;
        }
        assert_eq!(last, 1000);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_clock_that_steps_back_keeps_the_penalty() {
        let state = OriginState::default();
        state.failed(NOW);
        assert_eq!(state.penalty(NOW - Millis(60_000)), 5000);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_clock_that_steps_back_forgets_a_refusal() {
        let state = OriginState::default();
        state.refused(NOW);
        assert_eq!(state.standing(NOW - Millis(4_999)), Standing::Refused);
        assert_eq!(state.standing(NOW - Millis(5_000)), Standing::Available);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_worst_fact_decides_the_standing() {
        let state = OriginState::default();
        assert_eq!(state.standing(NOW), Standing::Available);
        state.set_degraded(true, NOW);
        assert_eq!(state.standing(NOW), Standing::Degraded);
        state.set_admin(Admin::Drain, NOW);
        assert_eq!(state.standing(NOW), Standing::Drain);
        state.eject_until(after(10));
        assert_eq!(state.standing(NOW), Standing::Ejected);
        assert_eq!(state.standing(after(10)), Standing::Drain);
        state.set_check(Check::Down, NOW);
        assert_eq!(state.standing(NOW), Standing::Down);
        state.refused(NOW);
        assert_eq!(state.standing(NOW), Standing::Refused);
        state.set_admin(Admin::Maintenance, NOW);
        assert_eq!(state.standing(NOW), Standing::Maintenance);
        state.set_admin(Admin::Ready, NOW);
        state.set_check(Check::Up, NOW);
        assert_eq!(state.standing(after(10)), Standing::Degraded);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn only_an_origin_that_was_away_warms_up() {
        let (state, window) = (OriginState::default(), Millis(10_000));
        state.set_check(Check::Up, NOW);
        assert_eq!(state.warmth(NOW, window), 1000);
        state.set_check(Check::Down, NOW);
        state.set_check(Check::Up, NOW);
        assert_eq!(state.warmth(NOW, window), 100);
        assert_eq!(state.warmth(after(5_000), window), 500);
        assert_eq!(state.warmth(after(10_000), window), 1000);
        assert_eq!(state.warmth(NOW, Millis::ZERO), 1000);
        state.set_degraded(true, after(20_000));
        state.set_degraded(false, after(20_000));
        assert_eq!(state.warmth(after(20_000), window), 1000);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn an_origin_that_joins_warms_up_from_the_first_look_at_it() {
        let (state, window) = (OriginState::joining(), Millis(10_000));
        // What came before nobody saw.
        state.set_check(Check::Down, NOW);
        state.set_check(Check::Up, NOW);
        assert_eq!(state.warmth(after(60_000), window), 100);
        assert_eq!(state.warmth(after(65_000), window), 500);
        assert_eq!(state.warmth(after(70_000), window), 1000);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn an_ejected_origin_warms_up_from_when_it_is_back() {
        let (state, window) = (OriginState::default(), Millis(10_000));
        state.eject_until(after(30_000));
        assert_eq!(state.standing(after(29_999)), Standing::Ejected);
        assert_eq!(state.warmth(after(35_000), window), 500);
        let early = OriginState::default();
        early.eject_until(after(30_000));
        early.bring_back(after(2_000));
        assert_eq!(early.standing(after(2_000)), Standing::Available);
        assert_eq!(early.warmth(after(7_000), window), 500);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn live_traffic_degrades_an_origin_at_its_limits_and_an_empty_window_restores_it() {
        let limits = HealthLimits::default();
        let fill = |errors: u64, slow: u64| {
            let state = OriginState::default();
            for number in 0..1000 {
                let took = Millis(if number < slow { 500 } else { 499 });
                state.attempt_ended(number < errors, took, &limits, NOW);
            }
            state.judge(&limits, after(1000));
            state
        };
        assert_eq!(fill(9, 50).standing(after(1000)), Standing::Available);
        assert_eq!(fill(0, 51).standing(after(1000)), Standing::Degraded);
        let failing = fill(10, 0);
        failing.bring_back(after(1000));
        assert_eq!(failing.standing(after(1000)), Standing::Degraded);
        failing.judge(&limits, after(300_000));
        assert_eq!(failing.standing(after(300_000)), Standing::Available);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_request_after_the_second_is_enough_to_notice_that_an_origin_is_slow() {
        let (state, limits) = (OriginState::default(), HealthLimits::default());
        (0..200).for_each(|_| assert!(!state.attempt_ended(false, Millis(700), &limits, NOW)));
        assert!(!state.is_degraded(), "looked at with the first request of the second");
        state.attempt_ended(false, Millis(1), &limits, after(1000));
        assert!(state.is_degraded());
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_hurry_is_asked_for_once() {
        let state = OriginState::default();
        assert!(!state.take_hurry());
        state.hurry();
        state.hurry();
        assert_eq!((state.take_hurry(), state.take_hurry()), (true, false));
        assert_eq!(state.standing(NOW), Standing::Available);
    }
}
