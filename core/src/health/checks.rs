//! The active checks of all origins: whom to check and when, and what follows from how a check ended.
//!
//! A machine without sockets. A shell asks for what is due ([`Checks::next`]), performs it, tells how it ended
//! ([`Checks::ended`]), and calls [`Checks::tick`] each second. The counters belong to origins' ids: a reload keeps
//! them, checks new origins at once and forgets those that are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::composite::HealthLimits;
use super::counter::{CheckRules, HealthCounter};
use super::ejection::PoolEjections;
use super::traffic::Traffic;
use crate::balance::{BalanceRules, Check, Origin, OriginId, Pool, panics};
use crate::entropy::Entropy;
use crate::units::{Millis, Timestamp};

/// The most checks under way at once: thousands of origins must not take as many sockets. Others wait, the one that is
/// due longest first.
pub const MOST_CHECKS_AT_ONCE: usize = 256;

/// The checks of one process.
pub struct Checks {
    rules: CheckRules,
    limits: HealthLimits,
    origins: BTreeMap<OriginId, Checked>,
    /// Those that no check is under way for.
    due: BTreeSet<(Timestamp, OriginId)>,
    running: usize,
    runs: u64,
    panicking: BTreeSet<String>,
    ticked_at: Timestamp,
    entropy: Entropy,
}

/// One origin's checks.
struct Checked {
    pool: String,
    origin: Origin,
    counter: HealthCounter,
    next: Next,
    counts: CheckCounts,
    /// Why the last check failed; none after a success.
    failure: Option<CheckFailure>,
    /// What was told of it last.
    ejections: u32,
    degraded: bool,
}

#[derive(Clone, Copy)]
enum Next {
    At(Timestamp),
    /// The number of the check that is under way.
    Running(u64),
}

/// A check to perform now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    pub id: OriginId,
    began: Timestamp,
    run: u64,
}

/// How often an origin was checked (counters).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckCounts {
    pub passed: u64,
    pub failed: u64,
}

/// Why a check failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckFailure {
    #[error("connection refused")]
    Refused,
    #[error("cannot connect: {0}")]
    Unreachable(String),
    #[error("no answer within {0}")]
    TimedOut(Millis),
    #[error("status {found}, expected {expected}")]
    Status { found: u16, expected: u16 },
    #[error("health.body_contains is not in the first {0} bytes of its body")]
    Body(usize),
    #[error("its answer broke off: {0}")]
    Broken(String),
}

/// Something to tell the operator, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthEvent {
    Up(OriginId),
    Down(OriginId, CheckFailure),
    Ejected(OriginId, Millis),
    Degraded(OriginId, Traffic),
    Recovered(OriginId),
    PanicBegan { pool: String, available: usize, of: usize },
    PanicEnded { pool: String },
}

impl HealthEvent {
    /// Whether something got worse.
    pub const fn is_bad(&self) -> bool {
        !matches!(self, HealthEvent::Up(_) | HealthEvent::Recovered(_) | HealthEvent::PanicEnded { .. })
    }
}

impl fmt::Display for HealthEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HealthEvent::Up(id) => write!(f, "origin {id} is up"),
            HealthEvent::Down(id, why) => write!(f, "origin {id} is down: {why}"),
            HealthEvent::Ejected(id, span) => write!(f, "origin {id} is ejected for {span}: it failed live traffic"),
            HealthEvent::Degraded(id, traffic) => write!(f, "origin {id} is degraded: {traffic}"),
            HealthEvent::Recovered(id) => write!(f, "origin {id} is not degraded any more"),
            HealthEvent::PanicBegan { pool, available, of } => {
                write!(f, "pool {pool} panics: {available} of {of} origins are available")
            }
            HealthEvent::PanicEnded { pool } => write!(f, "pool {pool} does not panic any more"),
        }
    }
}

impl Checks {
    pub fn new(entropy: Entropy) -> Checks {
        Checks {
            rules: CheckRules::default(),
            limits: HealthLimits::default(),
            origins: BTreeMap::new(),
            due: BTreeSet::new(),
            running: 0,
            runs: 0,
            panicking: BTreeSet::new(),
            ticked_at: Timestamp(0),
            entropy,
        }
    }

    /// The configuration, at start and after each reload.
    pub fn take_up<'p>(
        &mut self,
        rules: CheckRules,
        limits: HealthLimits,
        pools: impl Iterator<Item = &'p Pool>,
        now: Timestamp,
    ) {
        let changed = std::mem::replace(&mut self.rules, rules) != rules;
        let expected = std::mem::replace(&mut self.limits, limits).expect_status != limits.expect_status;
        let mut before = std::mem::take(&mut self.origins);
        self.due.clear();
        for pool in pools {
            for origin in &pool.origins {
                // At another address it is another server.
                let kept = before.remove(&origin.id).filter(|kept| kept.origin.url == origin.url);
                let mut checked = match kept {
                    Some(kept) => Checked { pool: pool.name.clone(), origin: origin.clone(), ..kept },
                    None => Checked::new(pool, origin, now),
                };
                if let Next::At(at) = &mut checked.next {
                    if changed || expected {
                        *at = (*at).min(checked.counter.next_check(&self.rules, true, now, &mut self.entropy));
                    }
                    self.due.insert((*at, origin.id.clone()));
                }
                self.origins.insert(origin.id.clone(), checked);
            }
        }
        self.panicking.retain(|pool| self.origins.values().any(|checked| checked.pool == *pool));
    }

    /// A check that is due and may begin; to be asked until there is none.
    pub fn next(&mut self, now: Timestamp) -> Option<Due> {
        if self.next_at()? > now {
            return None;
        }
        let (_, id) = self.due.pop_first()?;
        self.runs += 1;
        self.running += 1;
        self.origins.get_mut(&id)?.next = Next::Running(self.runs);
        Some(Due { id, began: now, run: self.runs })
    }

    /// When to ask for the next check; none while as many as may be are under way.
    pub fn next_at(&self) -> Option<Timestamp> {
        let (at, _) = self.due.first()?;
        (self.running < MOST_CHECKS_AT_ONCE).then_some(*at)
    }

    /// A check ended. Of an origin that is gone, or stands elsewhere now, it says nothing.
    pub fn ended(
        &mut self,
        due: &Due,
        outcome: Result<(), CheckFailure>,
        ejections: &PoolEjections,
        now: Timestamp,
    ) -> Option<HealthEvent> {
        self.running = self.running.saturating_sub(1);
        let checked = self.origins.get_mut(&due.id)?;
        if !matches!(checked.next, Next::Running(run) if run == due.run) {
            return None;
        }
        let (state, first) = (&checked.origin.state, checked.counts == CheckCounts::default());
        match &outcome {
            Ok(()) => {
                checked.counts.passed += 1;
                state.connected(now);
                ejections.check_succeeded(&checked.pool, &checked.origin, due.began, now);
            }
            Err(failure) => {
                checked.counts.failed += 1;
                match failure {
                    CheckFailure::Refused => state.refused(now),
                    CheckFailure::Unreachable(_) | CheckFailure::TimedOut(_) => {}
                    CheckFailure::Status { .. } | CheckFailure::Body(_) | CheckFailure::Broken(_) => {
                        state.connected(now);
                    }
                }
            }
        }
        let changed = checked.counter.observe(outcome.is_ok(), &self.rules);
        if let Some(check) = changed {
            state.set_check(check, now);
        }
        checked.failure = outcome.err();
        let next = if first {
            // All began together; from now on they are spread over the interval.
            due.began + Millis(1 + self.entropy.below(self.rules.interval.0))
        } else {
            checked.counter.next_check(&self.rules, false, due.began, &mut self.entropy)
        };
        let next = next.max(now);
        checked.next = Next::At(next);
        self.due.insert((next, due.id.clone()));
        match (changed?, &checked.failure) {
            // Nobody waits for the news that what was used from the beginning works.
            (Check::Up, _) if first => None,
            (Check::Up, _) => Some(HealthEvent::Up(due.id.clone())),
            (_, Some(failure)) => Some(HealthEvent::Down(due.id.clone(), failure.clone())),
            _ => None,
        }
    }

    /// To be called each second: judges traffic where none comes, checks soon what failed a request, and says what
    /// changed since.
    pub fn tick<'p>(
        &mut self,
        rules: &BalanceRules,
        pools: impl Iterator<Item = &'p Pool>,
        now: Timestamp,
    ) -> Vec<HealthEvent> {
        let mut events = Vec::new();
        if now < std::mem::replace(&mut self.ticked_at, now) {
            self.spread_anew(now);
        }
        for (id, checked) in &mut self.origins {
            let state = &checked.origin.state;
            state.judge(&self.limits, now);
            let (degraded, ejections) = (state.is_degraded(), state.ejections());
            if std::mem::replace(&mut checked.degraded, degraded) != degraded {
                events.push(match degraded {
                    true => HealthEvent::Degraded(id.clone(), state.traffic(now)),
                    false => HealthEvent::Recovered(id.clone()),
                });
            }
            if std::mem::replace(&mut checked.ejections, ejections) != ejections
                && let Some(until) = state.ejected_until(now)
            {
                events.push(HealthEvent::Ejected(id.clone(), until.since(now)));
            }
            if let Next::At(at) = checked.next
                && state.take_hurry()
            {
                let soon = checked.counter.next_check(&self.rules, true, now, &mut self.entropy);
                if soon < at {
                    self.due.remove(&(at, id.clone()));
                    self.due.insert((soon, id.clone()));
                    checked.next = Next::At(soon);
                }
            }
        }
        for pool in pools {
            let panics = panics(&pool.origins, now, rules);
            if panics && self.panicking.insert(pool.name.clone()) {
                let available = pool.origins.iter().filter(|o| o.state.standing(now).is_available()).count();
                events.push(HealthEvent::PanicBegan { pool: pool.name.clone(), available, of: pool.origins.len() });
            } else if !panics && self.panicking.remove(&pool.name) {
                events.push(HealthEvent::PanicEnded { pool: pool.name.clone() });
            }
        }
        events
    }

    /// The clock stepped back: nobody is to wait until it has caught up.
    fn spread_anew(&mut self, now: Timestamp) {
        self.due.clear();
        for (id, checked) in &mut self.origins {
            if let Next::At(at) = &mut checked.next {
                *at = now + Millis(self.entropy.below(self.rules.interval.0));
                self.due.insert((*at, id.clone()));
            }
        }
    }

    /// Why the last check of an origin failed; none when it succeeded, or there was none.
    pub fn failure(&self, id: &OriginId) -> Option<&CheckFailure> {
        self.origins.get(id)?.failure.as_ref()
    }

    pub fn counts(&self, id: &OriginId) -> CheckCounts {
        self.origins.get(id).map(|checked| checked.counts).unwrap_or_default()
    }
}

impl Checked {
    fn new(pool: &Pool, origin: &Origin, now: Timestamp) -> Checked {
        Checked {
            pool: pool.name.clone(),
            origin: origin.clone(),
            counter: HealthCounter::default(),
            next: Next::At(now),
            counts: CheckCounts::default(),
            failure: None,
            ejections: origin.state.ejections(),
            degraded: origin.state.is_degraded(),
        }
    }
}

#[cfg(test)]
mod tests;
