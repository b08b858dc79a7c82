//! What an entry may be used for at its age.
//!
//! Early refresh is XFetch (Vattani, Chierichetti, Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", VLDB
//! 2015): refresh when now − δ·β·ln(r) ≥ expiry. ln(r) is never positive, so the minus sign moves the clock forward;
//! the other sign would never refresh early, and a test pins it.

use crate::entropy::Entropy;
use crate::units::{Millis, Ratio, Timestamp};

/// After a failed refresh a stale entry is used for so long before the origin is asked again.
pub const RETRY_AFTER_ERROR: Millis = Millis::from_secs(10);

/// What an entry knows about its times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    pub stored_at: Timestamp,
    /// With its jitter.
    pub ttl: Millis,
    /// How long the fetch took: what costs more is refreshed earlier (δ).
    pub delta: Millis,
    pub stale_while_revalidate: Millis,
    pub stale_if_error: Millis,
}

impl Times {
    /// The first instant at which the entry is stale.
    pub fn expires_at(&self) -> Timestamp {
        self.stored_at + self.ttl
    }

    /// The first instant at which the entry is of no use at all.
    pub fn dead_at(&self) -> Timestamp {
        self.expires_at() + self.stale_while_revalidate.max(self.stale_if_error)
    }
}

/// What to do with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Use it.
    Fresh,
    /// Use it, and fetch a new one afterwards, although it is fresh.
    RefreshEarly,
    /// Use it, and fetch a new one afterwards.
    StaleWhileRevalidate,
    /// Fetch; use it when the origin fails.
    StaleIfError,
    /// Fetch; it is of no use.
    Dead,
}

/// What an entry may be used for at `now`, with `draw` uniform in (0, 1] (see [`Entropy::unit`]) and β = 1, the paper's
/// default. A draw outside of that never refreshes early.
pub fn freshness(times: &Times, now: Timestamp, draw: f64) -> Freshness {
    let expiry = times.expires_at();
    if now < expiry {
        let ahead = if draw > 0.0 && draw <= 1.0 { -(times.delta.0 as f64) * draw.ln() } else { 0.0 };
        return if ahead >= (expiry.0 - now.0) as f64 { Freshness::RefreshEarly } else { Freshness::Fresh };
    }
    if now < expiry + times.stale_while_revalidate {
        Freshness::StaleWhileRevalidate
    } else if now < expiry + times.stale_if_error {
        Freshness::StaleIfError
    } else {
        Freshness::Dead
    }
}

/// Whether the origin may be asked again for a stale entry whose last refresh failed at `failed_at`.
pub fn may_retry(failed_at: Option<Timestamp>, now: Timestamp) -> bool {
    failed_at.is_none_or(|failed_at| now >= failed_at + RETRY_AFTER_ERROR)
}

/// A time to live shortened by up to `jitter` of itself, so that entries filled together do not expire together. Never
/// longer than configured; never applied to stale windows.
pub fn jittered(ttl: Millis, jitter: Ratio, entropy: &mut Entropy) -> Millis {
    let most = (ttl.0 as f64 * jitter.0.clamp(0.0, 1.0)) as u64;
    Millis(ttl.0 - entropy.below(most.saturating_add(1)).min(ttl.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    const TIMES: Times = Times {
        stored_at: Timestamp(1_000_000),
        ttl: Millis(10_000),
        delta: Millis(200),
        stale_while_revalidate: Millis(1_000),
        stale_if_error: Millis(5_000),
    };

    fn at(age: u64, draw: f64) -> Freshness {
        freshness(&TIMES, TIMES.stored_at + Millis(age), draw)
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn each_window_begins_and_ends_at_its_exact_instant() {
        assert_eq!(at(0, 1.0), Freshness::Fresh);
        assert_eq!(at(9_999, 1.0), Freshness::Fresh);
        assert_eq!(at(10_000, 1.0), Freshness::StaleWhileRevalidate);
        assert_eq!(at(10_999, 1.0), Freshness::StaleWhileRevalidate);
        assert_eq!(at(11_000, 1.0), Freshness::StaleIfError);
        assert_eq!(at(14_999, 1.0), Freshness::StaleIfError);
        assert_eq!(at(15_000, 1.0), Freshness::Dead);
        assert_eq!(TIMES.dead_at(), TIMES.stored_at + Millis(15_000));
        let plain = Times { stale_while_revalidate: Millis::ZERO, stale_if_error: Millis::ZERO, ..TIMES };
        assert_eq!(freshness(&plain, TIMES.expires_at(), 1.0), Freshness::Dead);
        assert_eq!(freshness(&TIMES, Timestamp(0), 0.5), Freshness::Fresh);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_sign_of_early_refresh_is_minus() {
        // δ = 200 ms and r = e⁻¹ look 200 ms ahead: due from 200 ms before expiry, not earlier and not after it.
        let draw = (-1.0f64).exp();
        assert_eq!(at(9_799, draw), Freshness::Fresh);
        assert_eq!(at(9_801, draw), Freshness::RefreshEarly);
        // A smaller draw looks further ahead, and r = 1 not at all.
        assert_eq!(at(9_000, (-5.1f64).exp()), Freshness::RefreshEarly);
        assert_eq!(at(9_999, 1.0), Freshness::Fresh);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn early_refresh_is_as_likely_as_the_paper_says() {
        let mut entropy = Entropy::for_tests(37);
        for (before, expected) in [(100u64, (-0.5f64).exp()), (200, (-1.0f64).exp()), (600, (-3.0f64).exp())] {
            let due = (0..20_000).filter(|_| at(10_000 - before, entropy.unit()) == Freshness::RefreshEarly).count();
            let found = due as f64 / 20_000.0;
            assert!((found - expected).abs() < 0.012, "{before} ms before: {found}, not {expected}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn an_impossible_draw_never_refreshes_early() {
        for draw in [0.0, -1.0, 1.5, f64::NAN, f64::INFINITY] {
            assert_eq!(at(9_999, draw), Freshness::Fresh, "{draw}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn jitter_only_shortens_and_by_no_more_than_its_share() {
        let mut entropy = Entropy::for_tests(41);
        let drawn: Vec<u64> = (0..2000).map(|_| jittered(Millis(10_000), Ratio(0.1), &mut entropy).0).collect();
        let (least, most) = (drawn.iter().min().unwrap(), drawn.iter().max().unwrap());
        assert!((9_000..9_020).contains(least) && (9_980..=10_000).contains(most), "{least}..{most}");
        assert_eq!(jittered(Millis(10_000), Ratio(0.0), &mut entropy), Millis(10_000));
        assert_eq!(jittered(Millis::ZERO, Ratio(1.0), &mut entropy), Millis::ZERO);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_failed_refresh_is_not_repeated_at_once() {
        assert!(may_retry(None, Timestamp(0)));
        assert!(!may_retry(Some(Timestamp(5)), Timestamp(10_004)));
        assert!(may_retry(Some(Timestamp(5)), Timestamp(10_005)));
    }
}
