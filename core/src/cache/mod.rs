//! What a cached answer is and how long it may be used: `types` has the data types and strategies, `freshness` the ages,
//! `key` the names of resources and entries, `l1` the memory of one process
//! or isolate, `op` what the exchange asks of a cache.

mod freshness;
mod key;
mod l1;
mod op;
mod types;

pub use freshness::{Freshness, RETRY_AFTER_ERROR, Times, freshness, jittered, may_retry};
pub use key::{CacheKey, EntryScope, Generation, ResourceId};
pub use l1::L1;
pub use op::{CacheAnswer, CacheOp, CachedAnswer, Enqueued, FillTicket, Intent, Wanted};
pub use types::{DataType, PHOTO_METADATA, Strategy, USER_PROFILE, VECTOR_DATA};
