//! Which origin a request goes to.
//!
//! `origin` holds what is known about one origin and lives across reloads, `lease` counts requests in flight, `choice`
//! picks, `turns` is what a core keeps between two choices, `round_robin` breaks ties fairly, `line` is who waits when all
//! are full, `retry_budget` limits retries, `sticky` makes and reads the cookie that keeps a client where it was.

mod choice;
mod lease;
mod line;
mod origin;
mod retry_budget;
mod round_robin;
mod sticky;
mod turns;

pub use choice::{BalanceRules, Choice, OnNoHealthy, choose, panics};
pub use lease::{Lease, Leases};
pub use line::{Line, Place};
pub use origin::{Admin, Check, Origin, OriginId, OriginState, Pool, Standing};
pub use retry_budget::RetryBudget;
pub use sticky::{Sealed, Sticky, StickyKeys};
pub use turns::Turns;
