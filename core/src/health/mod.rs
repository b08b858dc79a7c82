//! Whether an origin works: `counter` turns checks into up and down, `composite` is the original's rule and the
//! degraded state made of it, `ejection` throws out origins that fail live traffic.

mod composite;
mod counter;
mod ejection;

pub use composite::{HealthLimits, Traffic, is_degraded, is_healthy};
pub use counter::{CheckRules, HealthCounter};
pub use ejection::{EjectionRules, Ejections, Streak};
