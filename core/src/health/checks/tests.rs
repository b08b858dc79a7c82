//! The machine of the checks, in virtual time.

use std::sync::Arc;

use super::super::ejection::EjectionRules;
use super::*;
use crate::balance::{Admin, OnNoHealthy, Standing};
use crate::units::Ratio;
use wasm_bindgen_test::wasm_bindgen_test;

const NOW: Timestamp = Timestamp(1_790_000_000_000);

/// A process with pools, whose origins answer their checks as a test says.
struct Bench {
    checks: Checks,
    rules: CheckRules,
    pools: Vec<Pool>,
    ejections: PoolEjections,
    now: Timestamp,
    events: Vec<HealthEvent>,
}

fn pool(name: &str, ids: &[&str]) -> Pool {
    let origin = |id: &&str| Origin {
        id: OriginId::new(id),
        url: format!("http://{id}"),
        weight: 1,
        max_connections: None,
        state: Arc::default(),
    };
    Pool { name: name.to_owned(), origins: ids.iter().map(origin).collect() }
}

impl Bench {
    fn new(pools: Vec<Pool>) -> Bench {
        let mut bench = Bench {
            checks: Checks::new(Entropy::for_tests(11)),
            rules: CheckRules::default(),
            pools,
            ejections: PoolEjections::default(),
            now: NOW,
            events: Vec::new(),
        };
        bench.reload();
        bench
    }

    fn reload(&mut self) {
        self.checks.take_up(self.rules, HealthLimits::default(), self.pools.iter(), self.now);
    }

    fn all_due(&mut self) -> Vec<Due> {
        std::iter::from_fn(|| self.checks.next(self.now)).collect()
    }

    fn end(&mut self, due: &Due, outcome: Result<(), CheckFailure>) {
        self.events.extend(self.checks.ended(due, outcome, &self.ejections, self.now));
    }

    /// Goes on for so long, a tick each second; every check ends at once, as `answer` says.
    fn run(&mut self, span: Millis, answer: impl Fn(&str) -> Result<(), CheckFailure>) -> Vec<(Millis, String)> {
        let (begun, end) = (self.now, self.now + span);
        let mut checked = Vec::new();
        let mut tick = self.now;
        while self.now <= end {
            for due in self.all_due() {
                checked.push((self.now.since(begun), due.id.to_string()));
                self.end(&due, answer(due.id.as_str()));
            }
            if self.now >= tick {
                self.tick();
                tick = self.now + Millis(1000);
            }
            self.now = self.checks.next_at().unwrap_or(tick).min(tick);
        }
        self.now = end;
        checked
    }

    fn tick(&mut self) {
        self.events.extend(self.checks.tick(&BalanceRules::default(), self.pools.iter(), self.now));
    }

    fn origin(&self, id: &str) -> &Origin {
        self.pools.iter().flat_map(|pool| &pool.origins).find(|origin| origin.id.as_str() == id).unwrap()
    }

    fn standing(&self, id: &str) -> Standing {
        self.origin(id).state.standing(self.now)
    }

    fn told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.events).iter().map(ToString::to_string).collect()
    }
}

const FAULT: CheckFailure = CheckFailure::Status { found: 500, expected: 200 };

#[wasm_bindgen_test(unsupported = test)]
fn every_origin_is_checked_at_once_and_then_they_spread_over_the_interval() {
    let ids: Vec<String> = (0..200).map(|n| format!("o{n}")).collect();
    let mut bench = Bench::new(vec![pool("p", &ids.iter().map(String::as_str).collect::<Vec<_>>())]);
    let checked = bench.run(Millis(30_000), |_| Ok(()));
    assert!(checked.iter().take(200).all(|(at, _)| *at == Millis::ZERO));
    let seconds: BTreeSet<u64> = checked.iter().skip(200).map(|(at, _)| at.0 / 1000).collect();
    assert!(seconds.len() >= 28, "{seconds:?}");
    assert!((395..=425).contains(&checked.len()), "{} checks", checked.len());
    let later = bench.run(Millis(600_000), |_| Ok(()));
    assert!((200 * 18..=200 * 22).contains(&later.len()), "{} checks in ten minutes", later.len());
    assert!(bench.told().is_empty());
}

#[wasm_bindgen_test(unsupported = test)]
fn the_first_check_decides_and_its_reason_is_told_once() {
    let mut bench = Bench::new(vec![pool("p", &["a", "b", "c"])]);
    bench.run(Millis(0), |id| if id == "a" { Err(FAULT) } else { Ok(()) });
    assert_eq!(bench.standing("a"), Standing::Down);
    assert_eq!(bench.told(), ["origin a is down: status 500, expected 200"]);
    bench.run(Millis(300_000), |id| if id == "a" { Err(FAULT) } else { Ok(()) });
    assert!(bench.told().is_empty());
    assert_eq!(bench.checks.failure(&OriginId::new("a")), Some(&FAULT));
    assert!(bench.checks.counts(&OriginId::new("a")).failed >= 9);
}

#[wasm_bindgen_test(unsupported = test)]
fn detection_and_recovery_keep_their_bounds_whenever_the_origin_breaks() {
    // One interval, then fast ones: 33 + 2 · 5.5 and 33 + 5.5 seconds.
    let (mut latest_down, mut latest_up) = (Millis::ZERO, Millis::ZERO);
    for start in 0..60 {
        let mut bench = Bench::new(vec![pool("p", &["a", "b", "c"])]);
        bench.checks.entropy = Entropy::for_tests(start);
        bench.run(Millis(40_000 + start * 1000), |_| Ok(()));
        let span = |bench: &mut Bench, until: Standing, works: bool| {
            let begun = bench.now;
            while bench.standing("a") != until {
                bench.run(Millis(100), |id| if id == "a" && !works { Err(FAULT) } else { Ok(()) });
                assert!(bench.now.since(begun) < Millis(120_000));
            }
            bench.now.since(begun)
        };
        latest_down = latest_down.max(span(&mut bench, Standing::Down, false));
        latest_up = latest_up.max(span(&mut bench, Standing::Available, true));
        assert_eq!(bench.told(), ["origin a is down: status 500, expected 200", "origin a is up"]);
    }
    assert!((Millis(30_000)..=Millis(44_100)).contains(&latest_down), "{latest_down}");
    assert!((Millis(25_000)..=Millis(38_600)).contains(&latest_up), "{latest_up}");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_slow_check_delays_its_next_one_and_they_never_overlap() {
    let mut bench = Bench::new(vec![pool("p", &["a"])]);
    bench.run(Millis(0), |_| Ok(()));
    bench.now = NOW + Millis(40_000);
    let due = bench.all_due();
    bench.now = NOW + Millis(300_000);
    assert!(bench.all_due().is_empty(), "one is under way");
    bench.end(&due[0], Err(CheckFailure::TimedOut(Millis(5_000))));
    assert_eq!(bench.checks.next_at(), Some(bench.now), "its time was over long ago");
}

#[wasm_bindgen_test(unsupported = test)]
fn never_more_than_the_bound_are_under_way() {
    let ids: Vec<String> = (0..=MOST_CHECKS_AT_ONCE).map(|n| format!("o{n}")).collect();
    let mut bench = Bench::new(vec![pool("p", &ids.iter().map(String::as_str).collect::<Vec<_>>())]);
    let first = bench.all_due();
    assert_eq!((first.len(), bench.checks.next_at()), (MOST_CHECKS_AT_ONCE, None));
    bench.end(&first[0], Ok(()));
    assert_eq!(bench.all_due().len(), 1);
    // A reload does not forget what is under way, whoever it was for.
    bench.pools = vec![pool("p", &["new"])];
    bench.reload();
    assert!(bench.all_due().is_empty());
    bench.end(&first[1], Ok(()));
    assert_eq!(bench.all_due().len(), 1);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_reload_keeps_counters_checks_new_origins_at_once_and_forgets_the_old() {
    let mut bench = Bench::new(vec![pool("p", &["a", "b"])]);
    bench.run(Millis(60_000), |_| Ok(()));
    let (kept, mut other) = (bench.origin("a").clone(), pool("p", &["c"]));
    other.origins.push(kept);
    bench.pools = vec![other];
    bench.reload();
    let due: Vec<String> = bench.all_due().iter().map(|due| due.id.to_string()).collect();
    assert_eq!(due, ["c"]);
    assert_eq!(bench.checks.counts(&OriginId::new("b")), CheckCounts::default());
    assert!(bench.checks.counts(&OriginId::new("a")).passed >= 2);
}

#[wasm_bindgen_test(unsupported = test)]
fn an_origin_that_moves_is_checked_anew_and_a_check_of_its_old_address_says_nothing() {
    let mut bench = Bench::new(vec![pool("p", &["a"])]);
    let old = bench.all_due();
    bench.pools[0].origins[0].url = "http://elsewhere".to_owned();
    bench.reload();
    let new = bench.all_due();
    bench.end(&old[0], Err(FAULT));
    assert_eq!((bench.standing("a"), bench.told().len()), (Standing::Available, 0));
    bench.end(&new[0], Err(FAULT));
    assert_eq!(bench.standing("a"), Standing::Down);
}

#[wasm_bindgen_test(unsupported = test)]
fn another_interval_is_taken_up_at_once() {
    let mut bench = Bench::new(vec![pool("p", &["a"])]);
    bench.run(Millis(60_000), |_| Ok(()));
    bench.rules = CheckRules { interval: Millis(1000), fast_interval: Millis(500), ..bench.rules };
    bench.reload();
    let checked = bench.run(Millis(10_000), |_| Ok(()));
    assert!((9..=12).contains(&checked.len()), "{checked:?}");
    assert!(checked[0].0 <= Millis(550), "{checked:?}");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_request_that_found_an_origin_dead_hurries_its_check() {
    let mut bench = Bench::new(vec![pool("p", &["a"])]);
    bench.run(Millis(31_000), |_| Ok(()));
    let calm = bench.checks.next_at().unwrap();
    bench.origin("a").state.hurry();
    bench.tick();
    let hurried = bench.checks.next_at().unwrap();
    assert!(hurried.since(bench.now) <= Millis(5_500) && hurried <= calm, "{hurried:?} {calm:?}");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_refused_check_keeps_an_origin_out_of_a_panic_and_a_taken_connection_lets_it_in() {
    let mut bench = Bench::new(vec![pool("p", &["a"])]);
    let due = bench.all_due();
    bench.end(&due[0], Err(CheckFailure::Refused));
    assert_eq!(bench.standing("a"), Standing::Refused);
    bench.now = NOW + Millis(1000);
    bench.run(Millis(32_000), |_| Err(FAULT));
    assert_eq!(bench.standing("a"), Standing::Down, "it listens, and is still no good");
    assert_eq!(bench.told()[0], "origin a is down: connection refused");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_good_check_that_began_later_ends_an_ejection() {
    let mut bench = Bench::new(vec![pool("p", &["a", "b"])]);
    let due = bench.all_due();
    bench.now = NOW + Millis(10);
    let origin = bench.origin("a").clone();
    bench.ejections.eject(&bench.pools[0], &origin, bench.now, &EjectionRules::default());
    bench.tick();
    assert_eq!(bench.told(), ["origin a is ejected for 30s: it failed live traffic"]);
    due.iter().for_each(|due| bench.end(due, Ok(())));
    assert_eq!(bench.standing("a"), Standing::Ejected, "that check began before");
    bench.run(Millis(29_000), |_| Ok(()));
    assert_eq!(bench.standing("a"), Standing::Available);
}

#[wasm_bindgen_test(unsupported = test)]
fn an_origin_in_maintenance_is_checked_and_stays_out() {
    let mut bench = Bench::new(vec![pool("p", &["a"])]);
    bench.origin("a").state.set_admin(Admin::Maintenance, NOW);
    bench.run(Millis(0), |_| Err(FAULT));
    assert_eq!((bench.standing("a"), bench.origin("a").state.check()), (Standing::Maintenance, Check::Down));
    bench.run(Millis(90_000), |_| Ok(()));
    assert_eq!((bench.standing("a"), bench.origin("a").state.check()), (Standing::Maintenance, Check::Up));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_panic_is_told_when_it_begins_and_when_it_ends() {
    let mut bench = Bench::new(vec![pool("p", &["a", "b", "c"])]);
    let broken = |id: &str| if id == "c" { Ok(()) } else { Err(FAULT) };
    bench.run(Millis(5_000), broken);
    let told = bench.told();
    assert_eq!(
        told.iter().filter(|line| *line == "pool p panics: 1 of 3 origins are available").count(),
        1,
        "{told:?}"
    );
    bench.run(Millis(90_000), |_| Ok(()));
    assert!(bench.told().contains(&"pool p does not panic any more".to_owned()));
    let off = BalanceRules { panic_threshold: Ratio(0.0), on_no_healthy: OnNoHealthy::FailOpen, ..Default::default() };
    bench.origin("a").state.set_check(Check::Down, bench.now);
    bench.origin("b").state.set_check(Check::Down, bench.now);
    assert!(bench.checks.tick(&off, bench.pools.iter(), bench.now).is_empty());
}

#[wasm_bindgen_test(unsupported = test)]
fn degradation_and_recovery_are_told_by_the_tick_when_no_request_comes() {
    let mut bench = Bench::new(vec![pool("p", &["a"])]);
    bench.run(Millis(1000), |_| Ok(()));
    for _ in 0..100 {
        bench.origin("a").state.attempt_ended(false, Millis(800), &HealthLimits::default(), bench.now);
    }
    bench.run(Millis(2000), |_| Ok(()));
    assert_eq!(bench.told(), ["origin a is degraded: 0 of 100 requests failed, 100 were slow"]);
    bench.run(Millis(300_000), |_| Ok(()));
    assert_eq!(bench.told(), ["origin a is not degraded any more"]);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_clock_that_steps_back_delays_no_check_beyond_an_interval() {
    let mut bench = Bench::new(vec![pool("p", &["a", "b"])]);
    bench.run(Millis(60_000), |_| Ok(()));
    bench.now = NOW - Millis(3_600_000);
    let checked = bench.run(Millis(30_000), |_| Ok(()));
    assert!(checked.len() >= 2, "{checked:?}");
}
