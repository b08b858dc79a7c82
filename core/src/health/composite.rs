//! The original's health rule, exactly, and what it is used for here.
//!
//! Taken as "out of service", the rule would switch off a whole overloaded pool, because overload makes every origin
//! slow. So pings alone decide *down*, and the rule's other two conditions, measured on live traffic, make an origin
//! *degraded*: it keeps a quarter of its weight.

use super::traffic::Traffic;
use crate::config::HealthConfig;
use crate::units::{Millis, Ratio};

/// The rule's limits (`[health]`). Healthy is strictly below each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HealthLimits {
    pub expect_status: u16,
    /// A ratio, 0–1: the alerts' thresholds are percentages.
    pub max_error_rate: Ratio,
    pub max_latency_p95: Millis,
    /// With fewer requests nothing is said about an origin: one error in ten requests is no 10 %.
    pub min_samples: u64,
}

impl Default for HealthLimits {
    fn default() -> HealthLimits {
        HealthLimits { expect_status: 200, max_error_rate: Ratio(0.01), max_latency_p95: Millis(500), min_samples: 100 }
    }
}

impl Traffic {
    /// Errors over requests; 0 without requests.
    pub fn error_rate(&self) -> Ratio {
        Ratio(if self.requests == 0 { 0.0 } else { self.errors as f64 / self.requests as f64 })
    }

    /// Whether the 95th percentile (nearest rank) lies below the limit that `slow` was counted with.
    pub fn is_fast(&self) -> bool {
        // ⌈0.95 · n⌉ requests below it are as many as ⌊n / 20⌋ at most that are not.
        self.slow <= self.requests / 20
    }
}

impl From<&HealthConfig> for HealthLimits {
    fn from(config: &HealthConfig) -> HealthLimits {
        HealthLimits {
            expect_status: config.expect_status,
            max_error_rate: config.max_error_rate,
            max_latency_p95: config.max_latency_p95,
            min_samples: u64::from(config.min_samples),
        }
    }
}

/// The original's rule: status 200 and error rate < 0.01 and p95 < 500 ms. A value at its limit is unhealthy.
pub fn is_healthy(status: u16, error_rate: Ratio, latency_p95: Millis, limits: &HealthLimits) -> bool {
    status == limits.expect_status && error_rate < limits.max_error_rate && latency_p95 < limits.max_latency_p95
}

/// Whether an origin that answers its checks is too slow or fails too often for its full weight.
pub fn is_degraded(traffic: &Traffic, limits: &HealthLimits) -> bool {
    // On which side of its limit the percentile lies is all that the rule asks.
    let p95 = if traffic.is_fast() { Millis::ZERO } else { limits.max_latency_p95 };
    traffic.requests >= limits.min_samples && !is_healthy(limits.expect_status, traffic.error_rate(), p95, limits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    #[wasm_bindgen_test(unsupported = test)]
    fn the_original_rule_is_strict_at_every_border() {
        let limits = HealthLimits::default();
        for (status, error_rate, p95, healthy) in [
            (200, 0.0, 0, true),
            (200, 0.0099, 499, true),
            (200, 0.01, 499, false),
            (200, 0.0101, 499, false),
            (200, 0.0099, 500, false),
            (200, 0.0099, 501, false),
            (201, 0.0, 0, false),
            (204, 0.0, 0, false),
            (500, 0.0, 0, false),
            (200, f64::NAN, 0, false),
        ] {
            assert_eq!(is_healthy(status, Ratio(error_rate), Millis(p95), &limits), healthy, "{status} {error_rate}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn one_error_in_a_hundred_is_exactly_the_limit() {
        let limits = HealthLimits::default();
        let traffic = |requests, errors| Traffic { requests, errors, slow: 0 };
        for hundreds in 1..2000u64 {
            assert!(is_degraded(&traffic(hundreds * 100, hundreds), &limits), "{hundreds}");
            assert!(!is_degraded(&traffic(hundreds * 100 + 1, hundreds), &limits), "{hundreds}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn too_few_samples_say_nothing() {
        let limits = HealthLimits::default();
        let traffic = |requests| Traffic { requests, errors: requests, slow: requests };
        assert!(!is_degraded(&Traffic::default(), &limits));
        assert!(!is_degraded(&traffic(99), &limits));
        assert!(is_degraded(&traffic(100), &limits));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_twentieth_of_slow_requests_is_still_below_the_limit_and_one_more_is_not() {
        let limits = HealthLimits::default();
        for requests in 100..2000u64 {
            // The sample of rank ⌈0.95 · n⌉, counted from the fastest.
            let rank = (requests * 95).div_ceil(100);
            for slow in 0..=requests {
                let traffic = Traffic { requests, errors: 0, slow };
                let p95 = if rank <= requests - slow { Millis(499) } else { Millis(500) };
                let healthy = is_healthy(200, Ratio(0.0), p95, &limits);
                assert_eq!(is_degraded(&traffic, &limits), !healthy, "{slow} of {requests}");
            }
        }
    }
}
