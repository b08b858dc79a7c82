//! One alert's life, on Prometheus' semantics: inactive, pending while the breach is younger than `for`, firing, and
//! resolved once. Severity changes in place: a warning that becomes critical is the same alert and waits for nothing.
//!
//! No data is a state of its own: it neither fires nor resolves, because a gateway that measures nothing knows nothing.
//! What to send comes out as values; the shell has the sinks.

use super::thresholds::{Margin, Severity, ThresholdError, Thresholds};
use crate::units::{Millis, Percent, Timestamp};

/// With fewer auth attempts in a window a success rate is chance.
const AUTH_FLOOR: u64 = 20;
/// With fewer requests in a window an error rate or a percentile is chance.
const HTTP_FLOOR: u64 = 50;
/// So many evaluations in a row without data are said aloud.
const ABSENT_AFTER: u32 = 5;
/// A resolved alert is sent again for so long, as Prometheus does: a receiver may have missed it.
const RESOLVED_RETENTION: Millis = Millis::from_secs(15 * 60);

/// When one metric's alert fires and what is sent.
#[derive(Clone, Debug, PartialEq)]
pub struct AlertRule {
    pub name: String,
    pub thresholds: Thresholds,
    /// How long a breach lasts before it fires (`for`).
    pub pending_for: Millis,
    /// A reading with fewer samples is no data.
    pub min_samples: u64,
    /// How often a firing alert is sent again.
    pub resend: Millis,
    /// How often the rule is evaluated; with `resend` it says how long a receiver may trust what was sent.
    pub interval: Millis,
}

impl AlertRule {
    /// With `for` 0 and Prometheus' minute for evaluating and sending again.
    pub fn new(name: &str, thresholds: Thresholds, min_samples: u64) -> AlertRule {
        let minute = Millis::from_secs(60);
        AlertRule {
            name: name.to_owned(),
            thresholds,
            pending_for: Millis::ZERO,
            min_samples,
            resend: minute,
            interval: minute,
        }
    }

    /// Percent of auth attempts admitted; lower is worse.
    pub fn auth_success_rate(warning: Percent, critical: Percent) -> Result<AlertRule, ThresholdError> {
        let thresholds = Thresholds::lower_is_worse(warning.0, critical.0, Margin::Points(0.5))?;
        Ok(AlertRule::new("auth_success_rate", thresholds, AUTH_FLOOR))
    }

    /// The 95th percentile in milliseconds; higher is worse.
    pub fn api_latency(warning: Millis, critical: Millis) -> Result<AlertRule, ThresholdError> {
        let thresholds = Thresholds::higher_is_worse(warning.0 as f64, critical.0 as f64, Margin::Share(0.05))?;
        Ok(AlertRule::new("api_latency", thresholds, HTTP_FLOOR))
    }

    /// Percent of requests answered with 500 and above; higher is worse.
    pub fn error_rate(warning: Percent, critical: Percent) -> Result<AlertRule, ThresholdError> {
        let thresholds = Thresholds::higher_is_worse(warning.0, critical.0, Margin::Share(0.1))?;
        Ok(AlertRule::new("error_rate", thresholds, HTTP_FLOOR))
    }
}

/// What was measured for one evaluation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// `None` when nothing was measured.
    pub value: Option<f64>,
    /// How many events the value stands for.
    pub samples: u64,
}

/// Where an alert stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AlertState {
    #[default]
    Inactive,
    Pending {
        severity: Severity,
        active_at: Timestamp,
    },
    Firing {
        severity: Severity,
        active_at: Timestamp,
        fired_at: Timestamp,
    },
    /// Over, and still sent again for a while.
    Resolved {
        severity: Severity,
        fired_at: Timestamp,
        resolved_at: Timestamp,
    },
}

/// What happened in an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Fired,
    /// A warning became critical.
    Escalated,
    /// Critical became a warning.
    Eased,
    Resolved,
    /// Firing or resolved as before; for receivers that forget.
    Resent,
    /// No data for some evaluations; sent once. The alert is as it was.
    NoData,
    /// Data again after [`EventKind::NoData`].
    DataBack,
}

/// Something to send.
#[derive(Clone, Debug, PartialEq)]
pub struct AlertEvent {
    pub kind: EventKind,
    /// The alert after the evaluation.
    pub state: AlertState,
    /// The last value that counted.
    pub value: Option<f64>,
    /// The threshold of the alert's severity; `None` when it is inactive or pending.
    pub threshold: Option<f64>,
    pub at: Timestamp,
    /// While firing: until when a receiver that hears nothing more may believe it (four intervals). When resolved: since
    /// when it is over.
    pub ends_at: Timestamp,
}

/// One alert. Evaluated every interval with a reading.
#[derive(Clone, Debug, Default)]
pub struct Alert {
    state: AlertState,
    last_value: Option<f64>,
    last_sent: Timestamp,
    /// Evaluations in a row without data.
    without_data: u32,
}

impl Alert {
    /// Takes a reading into account and says what to send: mostly nothing, seldom two events.
    pub fn evaluate(&mut self, rule: &AlertRule, reading: Reading, now: Timestamp) -> Vec<AlertEvent> {
        let mut events = Vec::new();
        let value = reading.value.filter(|value| value.is_finite() && reading.samples >= rule.min_samples);
        let Some(value) = value else {
            self.without_data = self.without_data.saturating_add(1);
            if self.without_data == ABSENT_AFTER {
                events.push(self.event(EventKind::NoData, rule, now));
            }
            self.resend(rule, now, &mut events);
            return events;
        };
        self.last_value = Some(value);
        if std::mem::take(&mut self.without_data) >= ABSENT_AFTER {
            events.push(self.event(EventKind::DataBack, rule, now));
        }
        match self.step(rule, value, now) {
            Some(kind) => {
                self.last_sent = now;
                events.push(self.event(kind, rule, now));
            }
            None => self.resend(rule, now, &mut events),
        }
        events
    }

    pub fn state(&self) -> AlertState {
        self.state
    }

    /// Whether the last evaluation had no data.
    pub fn is_without_data(&self) -> bool {
        self.without_data > 0
    }

    pub fn last_value(&self) -> Option<f64> {
        self.last_value
    }

    /// Moves to the next state; the answer is what to send at once.
    fn step(&mut self, rule: &AlertRule, value: f64, now: Timestamp) -> Option<EventKind> {
        let current = match self.state {
            AlertState::Firing { severity, .. } => Some(severity),
            _ => None,
        };
        match (self.state, rule.thresholds.severity(value, current)) {
            (AlertState::Firing { severity: before, active_at, fired_at }, Some(severity)) => {
                self.state = AlertState::Firing { severity, active_at, fired_at };
                match severity.cmp(&before) {
                    std::cmp::Ordering::Greater => Some(EventKind::Escalated),
                    std::cmp::Ordering::Less => Some(EventKind::Eased),
                    std::cmp::Ordering::Equal => None,
                }
            }
            (AlertState::Firing { severity, fired_at, .. }, None) => {
                self.state = AlertState::Resolved { severity, fired_at, resolved_at: now };
                Some(EventKind::Resolved)
            }
            (AlertState::Pending { .. }, None) => {
                self.state = AlertState::Inactive;
                None
            }
            (state, Some(severity)) => {
                let active_at = match state {
                    AlertState::Pending { active_at, .. } => active_at,
                    _ => now,
                };
                if now.since(active_at) >= rule.pending_for {
                    self.state = AlertState::Firing { severity, active_at, fired_at: now };
                    Some(EventKind::Fired)
                } else {
                    self.state = AlertState::Pending { severity, active_at };
                    None
                }
            }
            (AlertState::Inactive | AlertState::Resolved { .. }, None) => None,
        }
    }

    /// Sends a firing alert again, with or without data, and a resolved one for a while.
    fn resend(&mut self, rule: &AlertRule, now: Timestamp, events: &mut Vec<AlertEvent>) {
        match self.state {
            AlertState::Inactive | AlertState::Pending { .. } => return,
            AlertState::Resolved { resolved_at, .. } if now.since(resolved_at) >= RESOLVED_RETENTION => {
                self.state = AlertState::Inactive;
                return;
            }
            AlertState::Firing { .. } | AlertState::Resolved { .. } => {}
        }
        if now.since(self.last_sent) >= rule.resend {
            self.last_sent = now;
            events.push(self.event(EventKind::Resent, rule, now));
        }
    }

    fn event(&self, kind: EventKind, rule: &AlertRule, now: Timestamp) -> AlertEvent {
        let (severity, ends_at) = match self.state {
            AlertState::Resolved { severity, resolved_at, .. } => (Some(severity), resolved_at),
            AlertState::Firing { severity, .. } => {
                (Some(severity), now + Millis(rule.resend.max(rule.interval).0.saturating_mul(4)))
            }
            AlertState::Inactive | AlertState::Pending { .. } => (None, now),
        };
        let threshold = severity.map(|severity| rule.thresholds.limit(severity));
        AlertEvent { kind, state: self.state, value: self.last_value, threshold, at: now, ends_at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    /// An alert and its clock: one evaluation a minute.
    struct Bench {
        alert: Alert,
        rule: AlertRule,
        minute: u64,
    }

    impl Bench {
        fn latency(pending_for: u64) -> Bench {
            let rule = AlertRule::api_latency(Millis(500), Millis(1000)).unwrap();
            // Nothing is sent again within these tests, unless they say so.
            let rule =
                AlertRule { pending_for: Millis::from_secs(pending_for), resend: Millis::from_secs(3600), ..rule };
            Bench { alert: Alert::default(), rule, minute: 0 }
        }

        fn now(&self) -> Timestamp {
            Timestamp(self.minute * 60_000)
        }

        fn read(&mut self, reading: Reading) -> Vec<EventKind> {
            self.minute += 1;
            let events = self.alert.evaluate(&self.rule, reading, Timestamp(self.minute * 60_000));
            events.iter().map(|event| event.kind).collect()
        }

        fn value(&mut self, value: f64) -> Vec<EventKind> {
            self.read(Reading { value: Some(value), samples: 1000 })
        }

        fn nothing(&mut self) -> Vec<EventKind> {
            self.read(Reading::default())
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn without_for_a_breach_fires_at_once_and_resolves_once() {
        let mut bench = Bench::latency(0);
        assert_eq!(bench.value(499.0), []);
        assert_eq!(bench.value(500.0), [EventKind::Fired]);
        assert_eq!(bench.value(501.0), []);
        assert_eq!(bench.value(400.0), [EventKind::Resolved]);
        assert_eq!(bench.value(400.0), []);
        assert_eq!(bench.value(1000.0), [EventKind::Fired]);
        assert!(matches!(bench.alert.state(), AlertState::Firing { severity: Severity::Critical, .. }));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_breach_is_pending_until_it_is_as_old_as_for() {
        let mut bench = Bench::latency(120);
        assert_eq!(bench.value(600.0), []);
        assert_eq!(bench.value(600.0), []);
        assert!(matches!(bench.alert.state(), AlertState::Pending { active_at: Timestamp(60_000), .. }));
        assert_eq!(bench.value(600.0), [EventKind::Fired]);
        let (active_at, fired_at) = (Timestamp(60_000), Timestamp(180_000));
        assert_eq!(bench.alert.state(), AlertState::Firing { severity: Severity::Warning, active_at, fired_at });
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_pending_alert_that_clears_is_dropped_silently_and_starts_over() {
        let mut bench = Bench::latency(120);
        for _ in 0..5 {
            assert_eq!(bench.value(600.0), []);
            assert_eq!(bench.value(600.0), []);
            // The margin is for firing alerts only.
            assert_eq!(bench.value(499.0), []);
            assert_eq!(bench.alert.state(), AlertState::Inactive);
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_for_shorter_than_the_interval_fires_at_the_next_evaluation() {
        let mut bench = Bench::latency(10);
        assert_eq!(bench.value(600.0), []);
        assert_eq!(bench.value(600.0), [EventKind::Fired]);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn severity_changes_in_place_and_waits_for_nothing() {
        let mut bench = Bench::latency(60);
        bench.value(600.0);
        assert_eq!(bench.value(600.0), [EventKind::Fired]);
        let fired = bench.now();
        assert_eq!(bench.value(1000.0), [EventKind::Escalated]);
        assert_eq!(bench.value(950.0), []);
        assert_eq!(bench.value(949.0), [EventKind::Eased]);
        assert_eq!(bench.value(480.0), []);
        assert_eq!(bench.value(474.0), [EventKind::Resolved]);
        let AlertState::Resolved { fired_at, .. } = bench.alert.state() else { panic!("not resolved") };
        assert_eq!(fired_at, fired);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_pending_breach_that_gets_worse_keeps_its_beginning() {
        let mut bench = Bench::latency(60);
        assert_eq!(bench.value(600.0), []);
        assert_eq!(bench.value(2000.0), [EventKind::Fired]);
        assert!(matches!(bench.alert.state(), AlertState::Firing { severity: Severity::Critical, .. }));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn no_data_resolves_nothing_fires_nothing_and_is_said_after_five_evaluations() {
        let mut bench = Bench::latency(60);
        bench.value(600.0);
        assert_eq!(bench.nothing(), []);
        assert!(bench.alert.is_without_data());
        assert!(matches!(bench.alert.state(), AlertState::Pending { .. }));
        assert_eq!(bench.value(600.0), [EventKind::Fired]);
        for _ in 0..4 {
            assert_eq!(bench.nothing(), []);
        }
        assert_eq!(bench.nothing(), [EventKind::NoData]);
        assert_eq!(bench.nothing(), []);
        assert!(matches!(bench.alert.state(), AlertState::Firing { .. }));
        assert_eq!(bench.value(100.0), [EventKind::DataBack, EventKind::Resolved]);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn too_few_samples_and_values_that_are_no_number_are_no_data() {
        let mut bench = Bench::latency(0);
        assert_eq!(bench.read(Reading { value: Some(9000.0), samples: 49 }), []);
        assert!(bench.alert.is_without_data());
        assert_eq!(bench.value(f64::NAN), []);
        assert!(bench.alert.is_without_data());
        assert_eq!(bench.read(Reading { value: Some(9000.0), samples: 50 }), [EventKind::Fired]);

        let auth = AlertRule::auth_success_rate(Percent(95.0), Percent(90.0)).unwrap();
        let mut bench = Bench { alert: Alert::default(), rule: auth, minute: 0 };
        assert_eq!(bench.read(Reading { value: Some(0.0), samples: 19 }), []);
        assert_eq!(bench.read(Reading { value: Some(95.0), samples: 20 }), [EventKind::Fired]);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn firing_is_sent_again_each_minute_and_resolved_for_fifteen() {
        let mut bench = Bench::latency(0);
        bench.rule.resend = Millis::from_secs(60);
        assert_eq!(bench.value(600.0), [EventKind::Fired]);
        assert_eq!(bench.value(600.0), [EventKind::Resent]);
        assert_eq!(bench.nothing(), [EventKind::Resent]);
        assert_eq!(bench.value(100.0), [EventKind::Resolved]);
        for _ in 0..14 {
            assert_eq!(bench.value(100.0), [EventKind::Resent]);
        }
        assert_eq!(bench.value(100.0), []);
        assert_eq!(bench.alert.state(), AlertState::Inactive);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn an_event_carries_what_a_receiver_needs() {
        let mut alert = Alert::default();
        let rule = AlertRule::error_rate(Percent(1.0), Percent(5.0)).unwrap();
        let reading = |value| Reading { value: Some(value), samples: 100 };
        let fired = alert.evaluate(&rule, reading(1.0), Timestamp(1_000)).remove(0);
        assert_eq!((fired.value, fired.threshold, fired.ends_at), (Some(1.0), Some(1.0), Timestamp(241_000)));
        let resolved = alert.evaluate(&rule, reading(0.5), Timestamp(61_000)).remove(0);
        assert_eq!((resolved.kind, resolved.ends_at), (EventKind::Resolved, Timestamp(61_000)));
    }
}
