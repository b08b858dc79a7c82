//! Warning and critical, for metrics where more is worse and for those where less is.
//!
//! A value at its threshold breaches it: health asks for strictly better, so its opposite includes the border. Once an
//! alert fires, a value has to be better than the threshold by a margin before it clears, so that one hovering around
//! it does not ring every minute.

use thiserror::Error;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    Warning,
    Critical,
}

impl Severity {
    pub const fn name(self) -> &'static str {
        match self {
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// How far beyond a threshold a value has to come back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Margin {
    /// A share of the threshold: 0.05 of 1000 clears below 950.
    Share(f64),
    /// Points of a percentage, at most half of what is left up to 100: 0.5 at 90 clears above 90.5.
    Points(f64),
}

/// Both thresholds of a metric, with their direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    higher_is_worse: bool,
    warning: Level,
    critical: Level,
}

/// Where a severity begins and where it ends again.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Level {
    breach: f64,
    clear: f64,
}

/// Two thresholds that cannot belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ThresholdError {
    #[error("critical must not be {direction} than warning", direction = if *.higher_is_worse { "lower" } else { "higher" })]
    Order { higher_is_worse: bool },
    #[error("must be a finite number")]
    NotFinite,
}

impl Thresholds {
    /// For latencies and error rates: breached from the threshold upwards.
    pub fn higher_is_worse(warning: f64, critical: f64, margin: Margin) -> Result<Thresholds, ThresholdError> {
        Thresholds::checked(true, warning, critical, margin)
    }

    /// For success rates: breached from the threshold downwards.
    pub fn lower_is_worse(warning: f64, critical: f64, margin: Margin) -> Result<Thresholds, ThresholdError> {
        Thresholds::checked(false, warning, critical, margin)
    }

    fn checked(
        higher_is_worse: bool,
        warning: f64,
        critical: f64,
        margin: Margin,
    ) -> Result<Thresholds, ThresholdError> {
        if !warning.is_finite() || !critical.is_finite() {
            return Err(ThresholdError::NotFinite);
        }
        if (critical < warning) == higher_is_worse && critical != warning {
            return Err(ThresholdError::Order { higher_is_worse });
        }
        let level = |breach: f64| {
            let back = match margin {
                Margin::Share(share) => breach.abs() * share,
                Margin::Points(points) => points.min((100.0 - breach).max(0.0) / 2.0),
            };
            Level { breach, clear: if higher_is_worse { breach - back } else { breach + back } }
        };
        Ok(Thresholds { higher_is_worse, warning: level(warning), critical: level(critical) })
    }

    /// How bad a value is by itself.
    pub fn breach(&self, value: f64) -> Option<Severity> {
        self.severity(value, None)
    }

    /// How bad a value is for an alert that fires with `current`: a severity stays until its margin is passed.
    pub fn severity(&self, value: f64, current: Option<Severity>) -> Option<Severity> {
        let holds = |level: &Level, firing: bool| {
            self.at_least_as_bad(value, level.breach) || (firing && !self.better(value, level.clear))
        };
        if holds(&self.critical, current == Some(Severity::Critical)) {
            Some(Severity::Critical)
        } else if holds(&self.warning, current.is_some()) {
            Some(Severity::Warning)
        } else {
            None
        }
    }

    /// The threshold of a severity.
    pub fn limit(&self, severity: Severity) -> f64 {
        match severity {
            Severity::Warning => self.warning.breach,
            Severity::Critical => self.critical.breach,
        }
    }

    fn at_least_as_bad(&self, value: f64, limit: f64) -> bool {
        if self.higher_is_worse { value >= limit } else { value <= limit }
    }

    fn better(&self, value: f64, limit: f64) -> bool {
        if self.higher_is_worse { value < limit } else { value > limit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    use Severity::{Critical, Warning};

    fn auth() -> Thresholds {
        Thresholds::lower_is_worse(95.0, 90.0, Margin::Points(0.5)).unwrap()
    }

    fn latency() -> Thresholds {
        Thresholds::higher_is_worse(500.0, 1000.0, Margin::Share(0.05)).unwrap()
    }

    fn errors() -> Thresholds {
        Thresholds::higher_is_worse(1.0, 5.0, Margin::Share(0.1)).unwrap()
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_value_at_its_threshold_breaches_it() {
        for (thresholds, value, severity) in [
            (auth(), 95.01, None),
            (auth(), 95.0, Some(Warning)),
            (auth(), 94.99, Some(Warning)),
            (auth(), 90.01, Some(Warning)),
            (auth(), 90.0, Some(Critical)),
            (auth(), 89.99, Some(Critical)),
            (latency(), 499.0, None),
            (latency(), 500.0, Some(Warning)),
            (latency(), 501.0, Some(Warning)),
            (latency(), 999.0, Some(Warning)),
            (latency(), 1000.0, Some(Critical)),
            (latency(), 1001.0, Some(Critical)),
            (errors(), 0.99, None),
            (errors(), 1.0, Some(Warning)),
            (errors(), 1.01, Some(Warning)),
            (errors(), 4.99, Some(Warning)),
            (errors(), 5.0, Some(Critical)),
        ] {
            assert_eq!(thresholds.breach(value), severity, "{value} against {thresholds:?}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_firing_severity_clears_only_beyond_its_margin() {
        for (thresholds, value, current, severity) in [
            (latency(), 950.0, Critical, Some(Critical)),
            (latency(), 949.9, Critical, Some(Warning)),
            (latency(), 475.0, Warning, Some(Warning)),
            (latency(), 474.9, Warning, None),
            (latency(), 474.9, Critical, None),
            (auth(), 90.5, Critical, Some(Critical)),
            (auth(), 90.51, Critical, Some(Warning)),
            (auth(), 95.5, Warning, Some(Warning)),
            (auth(), 95.51, Warning, None),
            (errors(), 4.5, Critical, Some(Critical)),
            (errors(), 4.49, Critical, Some(Warning)),
            (errors(), 0.9, Warning, Some(Warning)),
            (errors(), 0.89, Warning, None),
            (latency(), 999.0, Warning, Some(Warning)),
        ] {
            assert_eq!(thresholds.severity(value, Some(current)), severity, "{value} after {current:?}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_success_rate_near_100_can_still_clear() {
        let strict = Thresholds::lower_is_worse(99.9, 99.0, Margin::Points(0.5)).unwrap();
        assert_eq!(strict.severity(100.0, Some(Warning)), None);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn thresholds_on_the_wrong_side_are_refused() {
        let margin = Margin::Share(0.0);
        assert!(Thresholds::higher_is_worse(5.0, 1.0, margin).is_err());
        assert!(Thresholds::lower_is_worse(90.0, 95.0, margin).is_err());
        assert!(Thresholds::higher_is_worse(1.0, 1.0, margin).is_ok());
        assert_eq!(Thresholds::lower_is_worse(f64::NAN, 1.0, margin), Err(ThresholdError::NotFinite));
    }
}
