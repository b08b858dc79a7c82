//! Everything one core counts. The admin side asks each core for a copy and merges them.

use super::counters::{Counters, Finished};
use super::exposition::BucketCounts;
use super::window::{FIVE_MINUTES, Merge, Windows};
use crate::Timestamp;

/// How a refresh came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refresh {
    Rotated,
    /// Superseded within the grace: the current token again.
    Reissued,
    /// A lost answer, given again.
    LostAnswer,
    /// The store had lost writes.
    ForwardRecovery,
    /// A copy in other hands: the session was revoked.
    Reuse,
}

impl Refresh {
    pub const ALL: [Refresh; 5] =
        [Refresh::Rotated, Refresh::Reissued, Refresh::LostAnswer, Refresh::ForwardRecovery, Refresh::Reuse];

    /// The value of the metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Refresh::Rotated => "rotated",
            Refresh::Reissued => "reissued",
            Refresh::LostAnswer => "lost_answer",
            Refresh::ForwardRecovery => "forward_recovery",
            Refresh::Reuse => "reuse",
        }
    }
}

/// One core's counts since its start, and its last minutes.
#[derive(Clone, Debug)]
pub struct Cells {
    pub windows: Windows<Counters>,
    /// Seconds from head to head, in OTel's buckets.
    pub duration: BucketCounts,
    /// By the status's first digit; 0 is an answer that was never sent.
    pub by_class: [u64; 6],
    pub auth_attempts: u64,
    pub auth_successes: u64,
    /// Upgraded connections and streams that ended with their session.
    pub streams_cut: u64,
    refreshes: [u64; Refresh::ALL.len()],
    /// Looks into the near cache that spared a call to the store, and those that did not.
    pub near_hits: u64,
    pub near_misses: u64,
}

impl Default for Cells {
    fn default() -> Cells {
        Cells {
            windows: Windows::new(FIVE_MINUTES),
            duration: BucketCounts::default(),
            by_class: [0; 6],
            auth_attempts: 0,
            auth_successes: 0,
            streams_cut: 0,
            refreshes: [0; Refresh::ALL.len()],
            near_hits: 0,
            near_misses: 0,
        }
    }
}

impl Cells {
    pub fn request(&mut self, request: &Finished, now: Timestamp) {
        use super::counters::AuthResult;
        self.windows.count(now, |counters| counters.count(request));
        self.auth_attempts += u64::from(request.auth != AuthResult::NotAttempted);
        self.auth_successes += u64::from(request.auth == AuthResult::Admitted);
        if let Some(count) = self.by_class.get_mut(usize::from(request.status / 100)) {
            *count += 1;
        }
        if let Some(micros) = request.head_micros
            && !request.upgraded
        {
            self.duration.record(micros);
        }
    }

    pub fn refresh(&mut self, how: Refresh) {
        self.refreshes[how as usize] += 1;
    }

    /// A look into the near cache: counted here and not there, so that cores share nothing on a hit.
    pub fn near(&mut self, hit: bool) {
        self.near_hits += u64::from(hit);
        self.near_misses += u64::from(!hit);
    }

    pub fn refreshes(&self, how: Refresh) -> u64 {
        self.refreshes[how as usize]
    }

    /// Adds another core's totals; windows are merged by whoever reads them.
    pub fn merge(&mut self, other: &Cells) {
        self.duration.merge(&other.duration);
        self.auth_attempts += other.auth_attempts;
        self.auth_successes += other.auth_successes;
        self.streams_cut += other.streams_cut;
        self.near_hits += other.near_hits;
        self.near_misses += other.near_misses;
        self.by_class.iter_mut().zip(other.by_class).for_each(|(sum, one)| *sum += one);
        self.refreshes.iter_mut().zip(other.refreshes).for_each(|(sum, one)| *sum += one);
    }
}

#[cfg(test)]
mod tests {
    use super::super::counters::AuthResult;
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    #[wasm_bindgen_test(unsupported = test)]
    fn cores_add_up() {
        let mut one = Cells::default();
        let request =
            Finished { status: 200, auth: AuthResult::Admitted, head_micros: Some(900), ..Finished::default() };
        one.request(&request, Timestamp(1));
        one.refresh(Refresh::Reuse);
        one.near(true);
        one.near(false);
        let mut sum = one.clone();
        sum.merge(&one);
        assert_eq!((sum.by_class[2], sum.auth_successes, sum.duration.count()), (2, 2, 2));
        assert_eq!((sum.near_hits, sum.near_misses), (2, 2));
        assert_eq!((sum.refreshes(Refresh::Reuse), sum.refreshes(Refresh::Rotated)), (2, 0));
    }
}
