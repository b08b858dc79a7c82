//! From single checks to up and down: HAProxy's counter (`src/check.c`), so that one lost packet changes nothing.
//!
//! One number, 0..rise+fall−1; up from `rise` upwards. A failure takes one away, and one that leaves less than `rise`
//! takes all; a success adds one, and one that reaches `rise` fills up. So a success while falling restores the whole
//! credit and a failure while rising loses it. Unlike HAProxy, the very first check decides alone: a new origin does
//! not wait a minute for its first request, nor does a dead one get traffic for that long.

use crate::balance::Check;
use crate::config::HealthConfig;
use crate::entropy::Entropy;
use crate::units::{Millis, Timestamp};

/// When checks happen and how many decide (`[health]`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckRules {
    pub interval: Millis,
    /// While the state is changing.
    pub fast_interval: Millis,
    /// Successes in a row that bring a down origin up (`healthy_threshold`); 0 counts as 1.
    pub rise: u32,
    /// Failures in a row that bring an up origin down (`unhealthy_threshold`); 0 counts as 1.
    pub fall: u32,
}

impl Default for CheckRules {
    fn default() -> CheckRules {
        CheckRules { interval: Millis::from_secs(30), fast_interval: Millis::from_secs(5), rise: 2, fall: 3 }
    }
}

impl From<&HealthConfig> for CheckRules {
    fn from(config: &HealthConfig) -> CheckRules {
        CheckRules {
            interval: config.interval,
            fast_interval: config.fast_interval,
            rise: config.healthy_threshold,
            fall: config.unhealthy_threshold,
        }
    }
}

/// One origin's counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HealthCounter {
    /// `None` before the first check.
    health: Option<u32>,
}

impl HealthCounter {
    /// Counts one check. The answer is the new state when it changed, the first check's included.
    pub fn observe(&mut self, success: bool, rules: &CheckRules) -> Option<Check> {
        let before = self.check(rules);
        let (rise, full) = bounds(rules);
        self.health = Some(match (self.health, success) {
            (None, true) => full,
            (None, false) => 0,
            (Some(health), true) => {
                let health = (health + 1).min(full);
                if health >= rise { full } else { health }
            }
            (Some(health), false) => {
                let health = health.min(full).saturating_sub(1);
                if health < rise { 0 } else { health }
            }
        });
        let after = self.check(rules);
        (before != after).then_some(after)
    }

    pub fn check(&self, rules: &CheckRules) -> Check {
        match self.health {
            None => Check::Unknown,
            Some(health) if health >= bounds(rules).0 => Check::Up,
            Some(_) => Check::Down,
        }
    }

    /// Whether the last checks speak against the state without having changed it yet.
    pub fn in_transition(&self, rules: &CheckRules) -> bool {
        self.health.is_some_and(|health| health > 0 && health < bounds(rules).1)
    }

    /// When to check next, after a check that began at `began`: after the interval, or the fast one in transition or when
    /// `hurried` (live traffic just saw a failure), ±10 %, so that gateways that started together do not check together.
    pub fn next_check(&self, rules: &CheckRules, hurried: bool, began: Timestamp, entropy: &mut Entropy) -> Timestamp {
        let fast = hurried || self.in_transition(rules);
        let span = if fast { rules.fast_interval.min(rules.interval) } else { rules.interval };
        let jitter = span.0 / 10;
        began + Millis((span.0 - jitter).saturating_add(entropy.below(2 * jitter + 1)))
    }
}

/// `rise` and the highest count.
fn bounds(rules: &CheckRules) -> (u32, u32) {
    let (rise, fall) = (rules.rise.max(1), rules.fall.max(1));
    (rise, rise.saturating_add(fall) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    fn run(rules: &CheckRules, checks: &str) -> (HealthCounter, String) {
        let mut counter = HealthCounter::default();
        let mut seen = String::new();
        for check in checks.chars() {
            counter.observe(check == '+', rules);
            seen.push(if counter.check(rules) == Check::Up { 'U' } else { 'D' });
        }
        (counter, seen)
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn states_change_as_in_haproxy_with_rise_2_and_fall_3() {
        let rules = CheckRules::default();
        for (checks, states) in [
            ("+", "U"),
            ("-", "D"),
            ("+---", "UUUD"),
            ("+--+--+", "UUUUUUU"),
            ("-+-+-++", "DDDDDDU"),
            ("-++--+---", "DDUUUUUUD"),
            ("+---+---++", "UUUDDDDDDU"),
        ] {
            assert_eq!(run(&rules, checks).1, states, "{checks}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn any_sequence_obeys_the_thresholds() {
        let mut entropy = Entropy::for_tests(23);
        for _ in 0..200 {
            let (rise, fall) = (1 + entropy.below(4) as u32, 1 + entropy.below(4) as u32);
            let rules = CheckRules { rise, fall, ..CheckRules::default() };
            let mut counter = HealthCounter::default();
            let (mut good, mut bad) = (0, 0);
            for step in 0..100 {
                let success = entropy.below(2) == 0;
                (good, bad) = if success { (good + 1, 0) } else { (0, bad + 1) };
                let changed = counter.observe(success, &rules);
                let check = counter.check(&rules);
                assert!(good < rise || check == Check::Up);
                assert!(bad < fall || check == Check::Down);
                match changed {
                    Some(Check::Up) => assert!(success && (step == 0 || good == rise)),
                    Some(Check::Down) => assert!(!success && (step == 0 || bad == fall)),
                    other => assert_eq!(other, None),
                }
                assert!(counter.health.unwrap() < rise + fall);
            }
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_changing_state_is_checked_faster_and_every_interval_is_jittered_by_a_tenth() {
        let rules = CheckRules::default();
        let mut entropy = Entropy::for_tests(1);
        let mut span = |checks: &str, hurried: bool| {
            let counter = run(&rules, checks).0;
            let spans = (0..500).map(|_| counter.next_check(&rules, hurried, Timestamp(1000), &mut entropy).0 - 1000);
            let spans: Vec<u64> = spans.collect();
            (*spans.iter().min().unwrap(), *spans.iter().max().unwrap())
        };
        for (checks, hurried, base) in [
            ("", false, 30_000),
            ("+", false, 30_000),
            ("+-", false, 5_000),
            ("+--", false, 5_000),
            ("+---", false, 30_000),
            ("-+", false, 5_000),
            ("-++", false, 30_000),
            ("+", true, 5_000),
        ] {
            let (least, most) = span(checks, hurried);
            assert!(least >= base * 9 / 10 && most <= base * 11 / 10, "{checks}: {least}..{most}");
            assert!(least < base * 93 / 100 && most > base * 107 / 100, "{checks}: {least}..{most}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_reload_that_lowers_the_thresholds_keeps_the_counter_in_range() {
        let mut counter = run(&CheckRules { rise: 5, fall: 5, ..CheckRules::default() }, "+").0;
        let rules = CheckRules { rise: 1, fall: 1, ..CheckRules::default() };
        assert_eq!(counter.observe(false, &rules), Some(Check::Down));
    }
}
