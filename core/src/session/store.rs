//! The words in which a store is asked: embedded, Redis Cluster or a Durable Object. A store performs, atomically per
//! user, and decides nothing that another store would have to decide again.

use super::record::{NewSession, RefreshState, SessionRow};
use super::rotation::{Rotate, RotationWrite};
use crate::{SessionId, Timestamp, UserId};

/// One atomic operation on sessions.
#[derive(Clone, Debug, PartialEq)]
pub enum StoreOp {
    /// Never overwrites; enforces the maximum per user. → `Created`, `Taken`, `Full`
    Create(Box<NewSession>),
    /// The optimistic rotation (d = 0). → `Rotated`, `Mismatch`, `Missing`
    Rotate(Rotate),
    /// A compare-and-set that core decided on. → `Rotated`, `Mismatch`, `Missing`
    Replace(RotationWrite),
    /// The refresh state of a session, from the primary. → `State`, `Missing`
    State(SessionId),
    /// Ends one session; with `user` only if it is theirs. → `Revoked`
    Revoke { id: SessionId, user: Option<UserId>, now: Timestamp },
    /// Ends all sessions of a user, by raising the epoch. → `Revoked`
    RevokeAll { user: UserId, now: Timestamp },
    /// Ends all sessions of a user but one. → `Revoked`
    RevokeOthers { user: UserId, keep: SessionId, now: Timestamp },
    /// A user's live sessions, oldest first. → `Listed`
    List { user: UserId, now: Timestamp },
    /// Raises the highest generation seen; what it writes may be lost. → `Confirmed`
    Confirm { id: SessionId, generation: u32 },
    /// At the edge: notes what a region revoked, in KV. → `Confirmed`
    Bury(Vec<Tombstone>),
}

/// What a region tells its Workers of a revocation, to be kept until the last token of it has expired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tombstone {
    Session {
        id: SessionId,
        until: Timestamp,
    },
    /// Every session of the user below this epoch.
    User {
        user: UserId,
        epoch: u64,
        until: Timestamp,
    },
}

/// What a store answers.
#[derive(Clone, Debug, PartialEq)]
pub enum StoreOutcome {
    Created {
        /// The user's sessions that made room for it.
        evicted: Vec<SessionId>,
    },
    /// A session of this id is there: nothing was written, and core draws another.
    Taken,
    /// The user has `max_per_user` sessions and `on_max` is `refuse`.
    Full,
    /// The state after the write.
    Rotated(Box<RefreshState>),
    /// Nothing was written: the state as it is, and the user's epoch.
    Mismatch(Box<RefreshState>, u64),
    State(Box<RefreshState>, u64),
    Missing,
    Revoked {
        /// The sessions that ended now: those that had ended before are not named again.
        ended: Vec<SessionId>,
        /// The user's epoch after a `RevokeAll`.
        epoch: Option<u64>,
        /// Enough replicas have it; always true where there are none.
        replicated: bool,
    },
    Listed(Vec<SessionRow>),
    Confirmed,
    /// The store is down or did not answer in time.
    Unavailable,
}
