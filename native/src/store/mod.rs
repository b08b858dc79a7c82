//! Where sessions are kept: in a file of our own (`embedded`) or in Redis (`redis`). A store performs core's operations
//! atomically and decides nothing; every call has an end, and what a store does not answer is `Unavailable`.

mod embedded;
mod format;
pub mod redis;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edgekeep_core::exchange::Freshness;
use edgekeep_core::session::{LoadedSession, NearCache, StoreOp, StoreOutcome};
use edgekeep_core::shard::ShardMap;
use edgekeep_core::{SessionId, Timestamp, UserId};
use thiserror::Error;

/// What a read for a validation found.
#[derive(Debug)]
pub enum Load {
    Loaded(LoadedSession),
    Missing,
    Unavailable,
}

/// Why a store cannot be used.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error(transparent)]
    Embedded(#[from] embedded::OpenError),
    #[error(transparent)]
    Redis(#[from] redis::OpenError),
}

impl OpenError {
    /// Another process has the embedded store open.
    pub fn is_open_elsewhere(&self) -> bool {
        let OpenError::Embedded(embedded::OpenError::Open(_, error)) = self else { return false };
        matches!(error, redb::DatabaseError::DatabaseAlreadyOpen)
    }
}

/// A handle on the session store, for every thread.
#[derive(Clone)]
pub struct Store {
    kept: Kept,
    timeout: Duration,
    /// The last report of the one gateway that can have an embedded store open.
    report: Arc<Mutex<Option<(String, String)>>>,
}

#[derive(Clone)]
enum Kept {
    Embedded(embedded::Embedded),
    Redis(redis::Redis),
}

impl Store {
    /// Opens (or makes) the embedded store. Its thread drops what it revoked from `near` before it answers, so that a
    /// revocation is seen by every core at once.
    pub fn open_embedded(path: &Path, near: Arc<NearCache>, timeout: Duration) -> Result<Store, OpenError> {
        Ok(Store { kept: Kept::Embedded(embedded::Embedded::open(path, near)?), timeout, report: Arc::default() })
    }

    /// Whether a process has this embedded store open.
    pub fn is_open_elsewhere(path: &Path) -> bool {
        // Shared and without repair: nothing is changed by asking.
        matches!(redb::ReadOnlyDatabase::open(path), Err(redb::DatabaseError::DatabaseAlreadyOpen))
    }

    /// Connects to Redis, which tells `near` of every change of what was read from it.
    pub fn open_redis(
        login: redis::Login,
        near: Arc<NearCache>,
        lifetimes: redis::Lifetimes,
    ) -> Result<Store, OpenError> {
        let timeout = login.timeout;
        Ok(Store { kept: Kept::Redis(redis::Redis::open(login, near, lifetimes)?), timeout, report: Arc::default() })
    }

    /// Performs an operation. What was answered positively is on disk, or on as many replicas as are waited for.
    pub async fn perform(&self, op: StoreOp) -> StoreOutcome {
        match &self.kept {
            Kept::Embedded(embedded) => {
                tokio::time::timeout(self.timeout, embedded.perform(op)).await.unwrap_or(StoreOutcome::Unavailable)
            }
            Kept::Redis(redis) => redis.perform(op).await,
        }
    }

    /// Reads a session, which a token says is `user`'s, for a validation. `checked_at` was taken before the call.
    pub async fn load(&self, id: SessionId, user: &UserId, freshness: Freshness, checked_at: Timestamp) -> Load {
        match &self.kept {
            // Fresh or not, there is one copy.
            Kept::Embedded(embedded) => {
                tokio::time::timeout(self.timeout, embedded.load(id, checked_at)).await.unwrap_or(Load::Unavailable)
            }
            Kept::Redis(redis) => redis.load(id, user, freshness, checked_at).await,
        }
    }

    /// Notes that a generation was seen; nobody waits, and it may be lost.
    pub fn confirm(&self, id: SessionId, generation: u32) {
        let op = StoreOp::Confirm { id, generation };
        match &self.kept {
            Kept::Embedded(embedded) => embedded.forget(op),
            Kept::Redis(redis) => redis.forget(op),
        }
    }

    /// Reports this gateway for the time of the lease, and reads every live gateway's report (id and JSON), its own
    /// included, in one step: of two that do this, one sees the other. `None`: the store is unavailable.
    pub async fn exchange_reports(&self, id: &str, report: &str, lease: Duration) -> Option<Vec<(String, String)>> {
        match &self.kept {
            Kept::Embedded(_) => {
                *self.report.lock().unwrap_or_else(PoisonError::into_inner) = Some((id.to_owned(), report.to_owned()));
                self.reports().await
            }
            Kept::Redis(redis) => redis.exchange_reports(id, report, lease).await,
        }
    }

    /// The reports of all live gateways, for commands that are none themselves. `None`: the store is unavailable.
    pub async fn reports(&self) -> Option<Vec<(String, String)>> {
        match &self.kept {
            Kept::Embedded(_) => {
                Some(self.report.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect())
            }
            Kept::Redis(redis) => redis.exchange_reports("", "", Duration::ZERO).await,
        }
    }

    /// The stored shard map, if there is one. Blocks.
    pub fn shard_map(&self) -> Result<Option<ShardMap>, OpenError> {
        match &self.kept {
            Kept::Embedded(embedded) => Ok(embedded.shard_map()?),
            Kept::Redis(redis) => Ok(redis.shard_map()?),
        }
    }

    /// Stores the first shard map, durably, and answers the stored one: another gateway may have been faster. Blocks.
    pub fn first_shard_map(&self, map: ShardMap) -> Result<ShardMap, OpenError> {
        match &self.kept {
            Kept::Embedded(embedded) => {
                embedded.put_shard_map(&map)?;
                Ok(map)
            }
            Kept::Redis(redis) => Ok(redis.first_shard_map(&map)?),
        }
    }

    /// What only a store in Redis has to tell.
    pub fn redis(&self) -> Option<&redis::Redis> {
        match &self.kept {
            Kept::Embedded(_) => None,
            Kept::Redis(redis) => Some(redis),
        }
    }

    /// Finishes what was sent and ends the store's threads.
    pub fn close(&self) {
        match &self.kept {
            Kept::Embedded(embedded) => embedded.close(),
            Kept::Redis(redis) => redis.close(),
        }
    }
}
