//! What is counted: `histogram` for latencies, `window` for the last minutes, `counters` for what a request counts as,
//! `exposition` for writing it all as text.

mod cells;
mod counters;
mod exposition;
mod histogram;
mod window;

pub use cells::{Cells, Refresh};
pub use counters::{AuthResult, Counters, Finished};
pub use exposition::{BUCKETS, BucketCounts, Exposition, Kind, TextFormat};
pub use histogram::Histogram;
pub use window::{FIVE_MINUTES, Merge, WINDOW, Windows};
