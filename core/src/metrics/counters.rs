//! What one finished request counts as. The three rates that alerts look at are defined here and nowhere else.
//!
//! - An *auth attempt* is a request that presents a credential, a create or a refresh; it succeeds when it is admitted.
//!   A missing credential and a plainly expired access token are neither.
//! - `error_rate` is final answers of 500 and above, ours included, over all requests but health paths and those whose
//!   client left.
//! - `api_latency` runs from the request's head received to the response's head sent, without upgrades and health paths.

use super::histogram::Histogram;
use super::window::Merge;
use crate::units::{Percent, Ratio};

/// How a request fared with authentication.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuthResult {
    /// No credential, or an access token that had plainly expired.
    #[default]
    NotAttempted,
    Admitted,
    Refused,
}

/// What is known when a request is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Finished {
    /// The final status, ours or the origin's.
    pub status: u16,
    pub auth: AuthResult,
    /// From head to head, in microseconds; `None` when no head was sent.
    pub head_micros: Option<u64>,
    /// A probe of a health path.
    pub health_path: bool,
    /// The client left before its answer was complete.
    pub aborted: bool,
    /// WebSocket and the like: it lasts as long as it is used.
    pub upgraded: bool,
}

/// What is counted in one window, on one core.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Those that `error_rate` is over.
    pub requests: u64,
    pub errors: u64,
    pub auth_attempts: u64,
    pub auth_successes: u64,
    pub latency: Histogram,
}

impl Counters {
    pub fn count(&mut self, request: &Finished) {
        if !request.health_path && !request.aborted {
            self.requests += 1;
            self.errors += u64::from(request.status >= 500);
        }
        self.auth_attempts += u64::from(request.auth != AuthResult::NotAttempted);
        self.auth_successes += u64::from(request.auth == AuthResult::Admitted);
        if let Some(micros) = request.head_micros
            && !request.upgraded
            && !request.health_path
        {
            self.latency.record(micros);
        }
    }

    /// `None` without requests: no data is not 0 %.
    pub fn error_rate(&self) -> Option<Percent> {
        share(self.errors, self.requests)
    }

    /// `None` without attempts: no data is not 100 %.
    pub fn auth_success_rate(&self) -> Option<Percent> {
        share(self.auth_successes, self.auth_attempts)
    }

    /// The 95th percentile in milliseconds, with its fraction; `None` without requests.
    pub fn latency_p95_ms(&self) -> Option<f64> {
        self.latency.quantile(Ratio(0.95)).map(|micros| micros as f64 / 1000.0)
    }
}

impl Merge for Counters {
    fn merge(&mut self, other: &Counters) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.auth_attempts += other.auth_attempts;
        self.auth_successes += other.auth_successes;
        self.latency.merge(&other.latency);
    }
}

/// Multiplied before it is divided, so that 1 of 100 is exactly 1 %.
fn share(part: u64, whole: u64) -> Option<Percent> {
    (whole > 0).then(|| Percent(part as f64 * 100.0 / whole as f64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    fn counted(requests: &[Finished]) -> Counters {
        let mut counters = Counters::default();
        requests.iter().for_each(|request| counters.count(request));
        counters
    }

    fn answer(status: u16) -> Finished {
        Finished { status, head_micros: Some(1000), ..Finished::default() }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn errors_are_final_answers_from_500_up_over_requests_that_count() {
        let counters = counted(&[
            answer(200),
            answer(404),
            answer(499),
            answer(500),
            answer(503),
            Finished { health_path: true, ..answer(503) },
            Finished { aborted: true, ..answer(502) },
        ]);
        assert_eq!((counters.requests, counters.errors), (5, 2));
        assert_eq!(counters.error_rate(), Some(Percent(40.0)));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn only_presented_credentials_are_attempts() {
        let with = |auth| Finished { auth, ..answer(200) };
        let counters = counted(&[
            with(AuthResult::NotAttempted),
            with(AuthResult::Admitted),
            with(AuthResult::Admitted),
            with(AuthResult::Admitted),
            with(AuthResult::Refused),
        ]);
        assert_eq!((counters.auth_attempts, counters.auth_successes), (4, 3));
        assert_eq!(counters.auth_success_rate(), Some(Percent(75.0)));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn latency_leaves_out_upgrades_probes_and_requests_without_an_answer() {
        let counters = counted(&[
            answer(200),
            Finished { upgraded: true, head_micros: Some(9_000_000), ..answer(101) },
            Finished { health_path: true, ..answer(200) },
            Finished { head_micros: None, aborted: true, ..answer(499) },
        ]);
        assert_eq!((counters.latency.count(), counters.latency_p95_ms()), (1, Some(1.0)));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn no_data_is_no_rate() {
        let counters = Counters::default();
        assert_eq!((counters.error_rate(), counters.auth_success_rate()), (None, None));
        assert_eq!(counters.latency_p95_ms(), None);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn one_percent_is_exactly_one_percent_at_every_size() {
        for hundreds in 1..5000 {
            assert_eq!(share(hundreds, hundreds * 100), Some(Percent(1.0)));
            assert_eq!(share(hundreds * 95, hundreds * 100), Some(Percent(95.0)));
        }
    }
}
