//! The only place of the gateway that reads the clock for core.

use std::time::{SystemTime, UNIX_EPOCH};

use edgekeep_core::Timestamp;

/// Milliseconds since the epoch.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
