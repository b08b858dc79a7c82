//! Whether an origin works: `counter` turns checks into up and down, `checks` says when and whom to check, `traffic`
//! counts what live requests saw, `composite` is the original's rule and the degraded state made of it, `ejection`
//! throws out origins that fail live traffic.

mod checks;
mod composite;
mod counter;
mod ejection;
mod traffic;

pub use checks::{CheckCounts, CheckFailure, Checks, Due, HealthEvent, MOST_CHECKS_AT_ONCE};
pub use composite::{HealthLimits, is_degraded, is_healthy};
pub use counter::{CheckRules, HealthCounter};
pub use ejection::{EjectionRules, Ejections, PoolEjections, Streak};
pub use traffic::{Traffic, TrafficSlots};
