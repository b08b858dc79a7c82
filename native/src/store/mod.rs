//! Where sessions are kept. A store performs core's operations atomically and decides nothing; the data path only ever
//! sends it a message and waits, at most `store.timeout`.

mod embedded;
mod format;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use edgekeep_core::session::{LoadedSession, NearCache, StoreOp, StoreOutcome};
use edgekeep_core::shard::ShardMap;
use edgekeep_core::{SessionId, Timestamp};

pub use embedded::OpenError;

/// What a read for a validation found.
#[derive(Debug)]
pub enum Load {
    Loaded(LoadedSession),
    Missing,
    Unavailable,
}

/// A handle on the session store, for every thread.
#[derive(Clone)]
pub struct Store {
    embedded: embedded::Embedded,
    timeout: Duration,
}

impl Store {
    /// Opens (or makes) the embedded store. Its thread drops what it revoked from `near` before it answers, so that a
    /// revocation is seen by every core at once.
    pub fn open_embedded(path: &Path, near: Arc<NearCache>, timeout: Duration) -> Result<Store, OpenError> {
        Ok(Store { embedded: embedded::Embedded::open(path, near)?, timeout })
    }

    /// Performs an operation. What was answered positively is on disk.
    pub async fn perform(&self, op: StoreOp) -> StoreOutcome {
        let answer = self.embedded.perform(op);
        tokio::time::timeout(self.timeout, answer).await.unwrap_or(StoreOutcome::Unavailable)
    }

    /// Reads a session for a validation. `checked_at` was taken before the call.
    pub async fn load(&self, id: SessionId, checked_at: Timestamp) -> Load {
        let answer = self.embedded.load(id, checked_at);
        tokio::time::timeout(self.timeout, answer).await.unwrap_or(Load::Unavailable)
    }

    /// Notes that a generation was seen; nobody waits, and it may be lost.
    pub fn confirm(&self, id: SessionId, generation: u32) {
        self.embedded.forget(StoreOp::Confirm { id, generation });
    }

    /// The stored shard map, if there is one.
    pub fn shard_map(&self) -> Result<Option<ShardMap>, OpenError> {
        self.embedded.shard_map()
    }

    /// Stores a shard map; durable when this returns.
    pub fn put_shard_map(&self, map: &ShardMap) -> Result<(), OpenError> {
        self.embedded.put_shard_map(map)
    }

    /// Finishes what was sent and ends the store's threads.
    pub fn close(&self) {
        self.embedded.close();
    }
}
