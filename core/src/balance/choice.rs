//! The choice among a pool's origins: least connections by weight, with a penalty for failing.
//!
//! The load of an origin is (in_flight + 1) · penalty / weight, compared as cross products. When every candidate is
//! idle, these loads would send everything to the heaviest, so then, as for ties, smooth weighted round-robin decides
//! and shares are exactly the weights. Above 64 origins two candidates are drawn and the less loaded of them wins,
//! which keeps gateways from all running to one origin, and costs the same however many there are.

use super::origin::{Admin, NO_PENALTY, Origin, OriginId, Standing};
use super::turns::{Census, Turns};
use crate::entropy::Entropy;
use crate::units::{Millis, Ratio, Timestamp};

/// Up to this many origins all are compared.
pub(super) const FULL_SCAN: usize = 64;
/// How often one of a long list is drawn before all are looked at: where half are candidates, as they are outside of a
/// panic, a choice in a hundred million comes to that.
const DRAWS: usize = 32;

/// A degraded origin keeps this share of its weight, in thousandths.
const DEGRADED_SHARE: u64 = 250;

/// What `[balance]` says about choosing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BalanceRules {
    /// How long an origin that came back takes to reach its full weight; 0 switches it off.
    pub slow_start: Millis,
    /// With less than this share of the ready origins available, `on_no_healthy` takes over; 0 switches it off.
    pub panic_threshold: Ratio,
    pub on_no_healthy: OnNoHealthy,
}

impl Default for BalanceRules {
    fn default() -> BalanceRules {
        BalanceRules { slow_start: Millis::ZERO, panic_threshold: Ratio(0.5), on_no_healthy: OnNoHealthy::FailOpen }
    }
}

/// What happens when too few origins are available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnNoHealthy {
    /// Down and ejected origins are used too.
    FailOpen,
    /// Nothing is sent.
    FailClosed,
    /// The fallback pool is used.
    Fallback,
}

/// The answer of [`choose`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The index in the pool. `panic`: chosen although too few are available, or because all refuse connections.
    Origin { index: usize, panic: bool },
    /// Origins may be tried, but each has `max_connections` in flight: wait in the queue.
    Full,
    /// Choose again in the fallback pool.
    Fallback,
    /// Nothing may be tried: 503.
    None,
}

/// Chooses among `origins`: a pool's, or the clones of several pools' for `shard = "any"`.
///
/// `turns` belongs to this list on this core. `excluded` are the origins that this request tried already; such a
/// retry leaves the round as it is. The caller takes the lease and, when another core was faster, chooses again.
pub fn choose(
    origins: &[Origin],
    turns: &mut Turns,
    entropy: &mut Entropy,
    now: Timestamp,
    rules: &BalanceRules,
    excluded: &[OriginId],
) -> Choice {
    turns.fit(origins);
    let census = turns.census(origins, now);
    let panic = census.panics(rules.panic_threshold);
    if panic {
        match rules.on_no_healthy {
            OnNoHealthy::FailOpen => {}
            OnNoHealthy::FailClosed if census.only_refuse() => {}
            OnNoHealthy::FailClosed => return Choice::None,
            OnNoHealthy::Fallback => return Choice::Fallback,
        }
    }
    let open = panic && rules.on_no_healthy == OnNoHealthy::FailOpen;
    let usable = |origin: &Origin| match origin.state.standing(now) {
        Standing::Available | Standing::Degraded => true,
        Standing::Down | Standing::Ejected => open && origin.state.admin() == Admin::Ready,
        Standing::Drain | Standing::Maintenance | Standing::Refused => false,
    };
    let field = Field { origins, now, rules, excluded };
    match field.pick(turns, entropy, usable) {
        Pick::One(index) => Choice::Origin { index, panic },
        Pick::Full => Choice::Full,
        // A long list's census may be a moment old.
        Pick::None if Census::of(origins, now).only_refuse() => {
            let refusing = |origin: &Origin| origin.state.admin() == Admin::Ready;
            match field.pick(turns, entropy, refusing) {
                Pick::One(index) => Choice::Origin { index, panic: true },
                Pick::Full => Choice::Full,
                Pick::None => Choice::None,
            }
        }
        Pick::None => Choice::None,
    }
}

/// Whether too few of the origins that the operator left in are available.
pub fn panics(origins: &[Origin], now: Timestamp, rules: &BalanceRules) -> bool {
    Census::of(origins, now).panics(rules.panic_threshold)
}

/// What all steps of one choice look at.
struct Field<'a> {
    origins: &'a [Origin],
    now: Timestamp,
    rules: &'a BalanceRules,
    excluded: &'a [OriginId],
}

enum Pick {
    One(usize),
    Full,
    None,
}

/// An origin's load as a fraction, so that comparing needs no division.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    in_flight: u32,
    penalty: u64,
    weight: u64,
}

impl Load {
    fn cmp(&self, other: &Load) -> std::cmp::Ordering {
        // At most 2³²·2²¹·2⁴² each: far from overflowing 128 bits.
        let busy = |load: &Load| (u128::from(load.in_flight) + 1) * u128::from(load.penalty);
        (busy(self) * u128::from(other.weight)).cmp(&(busy(other) * u128::from(self.weight)))
    }
}

impl Field<'_> {
    fn pick(&self, turns: &mut Turns, entropy: &mut Entropy, usable: impl Fn(&Origin) -> bool) -> Pick {
        let allowed = |origin: &Origin| usable(origin) && !self.excluded.contains(&origin.id);
        if self.origins.len() > FULL_SCAN
            && let Some(drawn) = self.draw(entropy, |origin| allowed(origin) && is_free(origin))
        {
            return Pick::One(drawn);
        }
        // One look at each: other cores change the counts meanwhile.
        let Turns { round_robin, loads, .. } = turns;
        let mut any = false;
        let slow = self.slows(|origin| allowed(origin) && is_free(origin));
        loads.clear();
        for (index, origin) in self.origins.iter().enumerate().filter(|(_, origin)| allowed(origin)) {
            any = true;
            if is_free(origin) {
                loads.push((index, self.load(origin, slow)));
            }
        }
        let Some((_, least)) = loads.iter().min_by(|(_, a), (_, b)| a.cmp(b)) else {
            return if any { Pick::Full } else { Pick::None };
        };
        if self.origins.len() > FULL_SCAN {
            return two_choices(loads, entropy).map_or(Pick::None, Pick::One);
        }
        let resting = loads.iter().all(|(_, load)| load.in_flight == 0);
        let calmest = loads.iter().map(|(_, load)| load.penalty).min().unwrap_or(NO_PENALTY);
        let is_tied = |load: &Load| if resting { load.penalty == calmest } else { load.cmp(least).is_eq() };
        let tied = loads.iter().filter(|(_, load)| is_tied(load)).map(|(index, load)| (*index, load.weight));
        let turn = if self.excluded.is_empty() { round_robin.pick(tied) } else { round_robin.peek(tied) };
        turn.map_or(Pick::None, Pick::One)
    }

    fn load(&self, origin: &Origin, slow: bool) -> Load {
        let state = &origin.state;
        let mut weight = u64::from(origin.weight.max(1)) * 1000;
        if state.standing(self.now) == Standing::Degraded {
            weight = weight * DEGRADED_SHARE / 1000;
        }
        if slow {
            weight = weight * state.warmth(self.now, self.rules.slow_start) / 1000;
        }
        Load { in_flight: state.in_flight(), penalty: state.penalty(self.now), weight: weight.max(1) }
    }

    /// Two different candidates drawn from all; the less loaded wins, the first drawn on a tie. `None`: too few of the
    /// origins are candidates to be met by chance.
    fn draw(&self, entropy: &mut Entropy, candidate: impl Fn(&Origin) -> bool) -> Option<usize> {
        let mut first: Option<(usize, &Origin)> = None;
        for _ in 0..DRAWS {
            let index = entropy.below(self.origins.len() as u64) as usize;
            let Some(origin) = self.origins.get(index).filter(|origin| candidate(origin)) else { continue };
            match first {
                None => first = Some((index, origin)),
                Some((drawn, _)) if drawn == index => {}
                Some((drawn, other)) => {
                    let slow = self.is_warm(other) || self.is_warm(origin);
                    let is_less = self.load(origin, slow).cmp(&self.load(other, slow)).is_lt();
                    return Some(if is_less { index } else { drawn });
                }
            }
        }
        None
    }

    /// Slow start holds only while another candidate is warm: a pool that came back whole has nobody to spare it.
    fn slows(&self, candidate: impl Fn(&Origin) -> bool) -> bool {
        self.rules.slow_start > Millis::ZERO
            && self.origins.iter().any(|origin| candidate(origin) && self.is_warm(origin))
    }

    fn is_warm(&self, origin: &Origin) -> bool {
        origin.state.warmth(self.now, self.rules.slow_start) >= 1000
    }
}

fn is_free(origin: &Origin) -> bool {
    origin.max_connections.is_none_or(|max| origin.state.in_flight() < max)
}

/// Two different ones at random; the less loaded wins, the first drawn on a tie.
fn two_choices(loads: &[(usize, Load)], entropy: &mut Entropy) -> Option<usize> {
    let first = entropy.below(loads.len() as u64) as usize;
    let mut second = entropy.below(loads.len().saturating_sub(1) as u64) as usize;
    second += usize::from(second >= first);
    let (drawn, load) = loads.get(first)?;
    match loads.get(second) {
        Some((other, less)) if less.cmp(load).is_lt() => Some(*other),
        _ => Some(*drawn),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::lease::Lease;
    use super::super::origin::Check;
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    const NOW: Timestamp = Timestamp(1_790_000_000_000);

    /// A pool and one core's view of it.
    struct Bench {
        origins: Vec<Origin>,
        turns: Turns,
        entropy: Entropy,
        rules: BalanceRules,
        now: Timestamp,
    }

    impl Bench {
        fn new(weights: &[u32]) -> Bench {
            let origin = |(index, weight): (usize, &u32)| Origin {
                id: OriginId::new(&format!("o{index}")),
                url: format!("http://127.0.0.1:{index}"),
                weight: *weight,
                max_connections: None,
                state: Arc::default(),
            };
            Bench {
                origins: weights.iter().enumerate().map(origin).collect(),
                turns: Turns::default(),
                entropy: Entropy::for_tests(5),
                rules: BalanceRules::default(),
                now: NOW,
            }
        }

        fn choose(&mut self, excluded: &[OriginId]) -> Choice {
            let Bench { origins, turns, entropy, rules, now } = self;
            choose(origins, turns, entropy, *now, rules, excluded)
        }

        fn index(&mut self) -> usize {
            match self.choose(&[]) {
                Choice::Origin { index, .. } => index,
                other => panic!("{other:?}"),
            }
        }

        fn arrive(&mut self) -> Lease {
            let index = self.index();
            self.origins[index].lease().unwrap()
        }

        /// How often each is chosen when every request ends before the next begins.
        fn shares(&mut self, picks: usize) -> Vec<usize> {
            let mut shares = vec![0; self.origins.len()];
            for _ in 0..picks {
                let index = self.index();
                let _lease = self.origins[index].lease().unwrap();
                shares[index] += 1;
            }
            shares
        }

        fn state(&self, index: usize) -> &crate::balance::OriginState {
            &self.origins[index].state
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn arrivals_keep_every_origin_within_one_request_of_its_share() {
        let mut entropy = Entropy::for_tests(17);
        for _ in 0..20 {
            let count = 1 + entropy.below(8) as usize;
            let weights: Vec<u32> = (0..count).map(|_| 1 + entropy.below(5) as u32).collect();
            let mut bench = Bench::new(&weights);
            let mut leases = Vec::new();
            for _ in 0..300 {
                leases.push(bench.arrive());
                let loads = || bench.origins.iter().map(|o| f64::from(o.state.in_flight()) / f64::from(o.weight));
                let (least, most) = (loads().fold(f64::MAX, f64::min), loads().fold(0.0, f64::max));
                assert!(most - least <= 1.0 + 1e-9, "{weights:?}: {least}..{most}");
            }
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn without_load_shares_are_exactly_the_weights() {
        assert_eq!(Bench::new(&[1, 2, 3, 4]).shares(100), [10, 20, 30, 40]);
        assert_eq!(Bench::new(&[1, 1, 1]).shares(9), [3, 3, 3]);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn sticky_requests_and_retries_do_not_disturb_the_round() {
        let mut bench = Bench::new(&[1, 2, 3, 4]);
        let mut shares = [0; 4];
        for round in 0..40 {
            // A sticky request takes its lease without a choice; a retry chooses past the origin it tried.
            drop(bench.origins[round % 4].lease());
            let tried = [bench.origins[round % 3].id.clone()];
            assert_ne!(bench.choose(&tried), Choice::Origin { index: round % 3, panic: false });
            shares[bench.index()] += 1;
        }
        assert_eq!(shares, [4, 8, 12, 16]);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn failing_fast_attracts_nothing() {
        let mut bench = Bench::new(&[1, 1, 1]);
        let mut failing = 0;
        let mut leases = std::collections::VecDeque::new();
        for tick in 0..3000 {
            bench.now = NOW + Millis(tick);
            let index = bench.index();
            if index == 0 {
                // Answers at once, with a failure.
                failing += 1;
                bench.state(0).failed(bench.now);
            } else {
                leases.push_back(bench.origins[index].lease().unwrap());
            }
            if leases.len() > 40 {
                leases.pop_front();
            }
        }
        assert!(failing <= 6, "{failing} of 3000");
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_failed_origin_is_shared_with_again_when_its_penalty_is_gone() {
        let mut bench = Bench::new(&[1, 1]);
        bench.state(0).failed(NOW);
        assert_eq!(bench.shares(10), [0, 10]);
        bench.now = NOW + Millis::from_secs(21);
        assert_eq!(bench.shares(10), [5, 5]);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn full_origins_are_passed_over_and_a_full_pool_says_so() {
        let mut bench = Bench::new(&[1, 1]);
        bench.origins[0].max_connections = Some(1);
        bench.origins[1].max_connections = Some(3);
        let leases: Vec<Lease> = (0..4).map(|_| bench.arrive()).collect();
        assert_eq!((bench.state(0).in_flight(), bench.state(1).in_flight()), (1, 3));
        assert_eq!(bench.choose(&[]), Choice::Full);
        drop(leases);
        assert!(matches!(bench.choose(&[]), Choice::Origin { .. }));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn draining_and_maintained_origins_get_nothing_new() {
        let mut bench = Bench::new(&[1, 1, 1]);
        bench.state(0).set_admin(Admin::Drain, NOW);
        bench.state(1).set_admin(Admin::Maintenance, NOW);
        assert_eq!(bench.shares(5), [0, 0, 5]);
        // What the operator took out does not count as missing.
        assert_eq!(bench.choose(&[]), Choice::Origin { index: 2, panic: false });
        bench.state(2).set_admin(Admin::Drain, NOW);
        assert_eq!(bench.choose(&[]), Choice::None);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_degraded_origin_keeps_a_quarter_of_its_weight() {
        let mut bench = Bench::new(&[1, 1]);
        bench.state(0).set_degraded(true, NOW);
        assert_eq!(bench.shares(50), [10, 40]);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn panic_begins_below_the_threshold_and_not_at_it() {
        let mut bench = Bench::new(&[1, 1, 1, 1]);
        bench.state(0).set_check(Check::Down, NOW);
        bench.state(1).eject_until(NOW + Millis(1));
        assert_eq!(bench.shares(4), [0, 0, 2, 2]);
        bench.state(2).set_check(Check::Down, NOW);
        assert!(matches!(bench.choose(&[]), Choice::Origin { panic: true, .. }));
        assert!(bench.shares(40).iter().all(|share| *share == 10));
        bench.rules.on_no_healthy = OnNoHealthy::FailClosed;
        assert_eq!(bench.choose(&[]), Choice::None);
        bench.rules.on_no_healthy = OnNoHealthy::Fallback;
        assert_eq!(bench.choose(&[]), Choice::Fallback);
        bench.rules.panic_threshold = Ratio(0.0);
        assert_eq!(bench.choose(&[]), Choice::Origin { index: 3, panic: false });
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn maintenance_and_refusing_origins_stay_out_even_in_a_panic() {
        let mut bench = Bench::new(&[1, 1, 1]);
        bench.state(0).set_admin(Admin::Maintenance, NOW);
        bench.state(1).refused(NOW);
        bench.state(2).set_check(Check::Down, NOW);
        assert_eq!(bench.shares(6), [0, 0, 6]);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_pool_whose_only_origins_refuse_still_tries_one() {
        for mode in [OnNoHealthy::FailOpen, OnNoHealthy::FailClosed] {
            let mut bench = Bench::new(&[1, 1, 1]);
            bench.rules.on_no_healthy = mode;
            bench.state(0).refused(NOW);
            bench.state(1).refused(NOW);
            bench.state(2).set_admin(Admin::Maintenance, NOW);
            assert_eq!(bench.shares(4), [2, 2, 0], "{mode:?}");
            let tried = [bench.origins[0].id.clone()];
            assert_eq!(bench.choose(&tried), Choice::Origin { index: 1, panic: true });
            let tried = [tried[0].clone(), bench.origins[1].id.clone()];
            assert_eq!(bench.choose(&tried), Choice::None);
            bench.state(1).connected(NOW);
            assert_eq!(bench.shares(4), [0, 4, 0], "{mode:?}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn an_origin_that_came_back_starts_slowly_while_another_is_warm() {
        let mut bench = Bench::new(&[1, 1]);
        bench.rules.slow_start = Millis(10_000);
        bench.state(0).set_check(Check::Down, NOW);
        bench.state(0).set_check(Check::Up, NOW);
        assert_eq!(bench.shares(22), [2, 20]);
        bench.now = NOW + Millis(5_000);
        assert_eq!(bench.shares(30), [10, 20]);
        bench.now = NOW + Millis(10_000);
        assert_eq!(bench.shares(10), [5, 5]);
        // Both fresh: nobody is spared.
        bench.now = NOW + Millis(20_000);
        for index in 0..2 {
            bench.state(index).set_check(Check::Down, bench.now);
            bench.state(index).set_check(Check::Up, bench.now);
        }
        assert_eq!(bench.shares(10), [5, 5]);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn above_64_origins_two_are_drawn_and_the_load_stays_even() {
        let mut bench = Bench::new(&[1; 100]);
        let leases: Vec<Lease> = (0..10_000).map(|_| bench.arrive()).collect();
        let counts: Vec<u32> = bench.origins.iter().map(|origin| origin.state.in_flight()).collect();
        // Two choices keep the fullest within log log n of the mean; one random choice would be about 30 above it.
        assert!(counts.iter().all(|count| (92..=105).contains(count)), "{counts:?}");
        drop(leases);
        for index in 1..100 {
            bench.state(index).set_check(Check::Down, NOW);
        }
        bench.rules.panic_threshold = Ratio(0.0);
        assert_eq!(bench.index(), 0);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn an_empty_pool_has_nothing_to_choose() {
        assert_eq!(Bench::new(&[]).choose(&[]), Choice::None);
    }
}
