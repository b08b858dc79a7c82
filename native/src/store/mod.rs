//! Where sessions are kept. A store performs core's operations atomically and decides nothing; the data path only ever
//! sends it a message and waits, at most `store.timeout`.

mod embedded;
mod format;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
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
    /// The last report of the one gateway that can have an embedded store open.
    report: Arc<Mutex<Option<(String, String)>>>,
}

impl Store {
    /// Opens (or makes) the embedded store. Its thread drops what it revoked from `near` before it answers, so that a
    /// revocation is seen by every core at once.
    pub fn open_embedded(path: &Path, near: Arc<NearCache>, timeout: Duration) -> Result<Store, OpenError> {
        Ok(Store { embedded: embedded::Embedded::open(path, near)?, timeout, report: Arc::default() })
    }

    /// Whether a process has this embedded store open.
    pub fn is_open_elsewhere(path: &Path) -> bool {
        // Shared and without repair: nothing is changed by asking.
        matches!(redb::ReadOnlyDatabase::open(path), Err(redb::DatabaseError::DatabaseAlreadyOpen))
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

    /// Reports this gateway for the time of the lease, and reads every live gateway's report (id and JSON), its own
    /// included, in one step: of two that do this, one sees the other. `None`: the store is unavailable.
    pub async fn exchange_reports(&self, id: &str, report: &str, _lease: Duration) -> Option<Vec<(String, String)>> {
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = Some((id.to_owned(), report.to_owned()));
        self.reports().await
    }

    /// The reports of all live gateways, for commands that are none themselves. `None`: the store is unavailable.
    pub async fn reports(&self) -> Option<Vec<(String, String)>> {
        Some(self.report.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect())
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
