//! How many retries a pool may have: a share of its requests, so that a failing pool is not killed by its own retries.
//!
//! Each request earns a share of a retry, each retry costs one. A few may always be made, and no more than some can be
//! saved up.

use std::sync::atomic::{AtomicI64, Ordering};

use crate::Ratio;

/// Thousandths of a retry: what a fresh pool has, and the most that can be saved.
const START: i64 = 3_000;
const MOST: i64 = 100_000;
const ONE: i64 = 1_000;

/// One a pool, shared by all cores.
#[derive(Debug)]
pub struct RetryBudget(AtomicI64);

impl Default for RetryBudget {
    fn default() -> RetryBudget {
        RetryBudget(AtomicI64::new(START))
    }
}

impl RetryBudget {
    /// A request was sent.
    pub fn earn(&self, share: Ratio) {
        let earned = (share.0 * ONE as f64) as i64;
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |saved| Some((saved + earned).min(MOST)));
    }

    /// Takes one retry, if there is one left.
    pub fn take(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |saved| (saved >= ONE).then_some(saved - ONE)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    #[wasm_bindgen_test(unsupported = test)]
    fn retries_are_a_fifth_of_the_requests_beyond_the_first_three() {
        let budget = RetryBudget::default();
        let mut retries = 0;
        for _ in 0..1_000 {
            budget.earn(Ratio(0.2));
            if budget.take() {
                retries += 1;
            }
        }
        assert_eq!(retries, 203);
    }
}
