//! Alerts: `thresholds` knows which direction is worse and how bad a value is, `machine` goes through Prometheus'
//! states and says what to send.

mod machine;
mod thresholds;

pub use machine::{Alert, AlertEvent, AlertRule, AlertState, EventKind, Reading};
pub use thresholds::{Margin, Severity, ThresholdError, Thresholds};
