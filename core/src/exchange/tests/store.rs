//! The session store of the virtual shell: what the embedded store does, in memory.

use super::*;
use crate::session::{NearCache, NewSession, RefreshState, SessionRow, StoreOp};

#[derive(Default)]
pub(super) struct Store {
    sessions: BTreeMap<SessionId, Kept>,
    epochs: BTreeMap<UserId, u64>,
    /// Nobody answers.
    pub down: bool,
    /// Fewer replicas than wanted acknowledge.
    pub lagging: bool,
    /// How many ids that are drawn next belong to somebody.
    pub taken: u32,
    /// An ended session leaves a dead mark, as in Redis, instead of nothing.
    pub marks_dead: bool,
}

struct Kept {
    record: Value,
    created_at: Timestamp,
    pub state: RefreshState,
}

impl Store {
    pub fn load(&self, id: SessionId, now: Timestamp) -> SessionAnswer {
        match self.sessions.get(&id) {
            _ if self.down => SessionAnswer::Unavailable,
            None => SessionAnswer::Missing,
            Some(kept) => SessionAnswer::Loaded(self.loaded(kept, now)),
        }
    }

    fn loaded(&self, kept: &Kept, now: Timestamp) -> LoadedSession {
        kept.state.loaded(self.epoch(&kept.state.user), now)
    }

    fn epoch(&self, user: &UserId) -> u64 {
        self.epochs.get(user).copied().unwrap_or(0)
    }

    /// What is stored of a session: for tests that look, or that play a failover.
    pub fn state(&mut self, id: SessionId) -> &mut RefreshState {
        &mut self.sessions.get_mut(&id).unwrap().state
    }

    pub fn holds(&self, id: SessionId) -> bool {
        self.sessions.get(&id).is_some_and(|kept| !kept.state.dead)
    }

    /// All sessions of a user end and nobody has deleted them yet: only the epoch says so.
    pub fn raise_epoch(&mut self, user: &str) {
        *self.epochs.entry(UserId::new(user).unwrap()).or_default() += 1;
    }

    /// A session that another gateway made.
    pub fn create(&mut self, id: SessionId, user: &UserId, now: Timestamp) {
        let new = NewSession {
            id,
            user: user.clone(),
            user_kind: crate::UserIdKind::Text,
            device_info: json!({}),
            created_at: now,
            client_id: "app".into(),
            access_ttl: None,
            key_id: 1,
            absolute: now + Millis::from_secs(86_400),
            idle: now + Millis::from_secs(86_400),
            max_per_user: 50,
            evict_oldest: true,
        };
        self.insert(&new);
    }

    fn insert(&mut self, new: &NewSession) {
        let kept = Kept {
            record: serde_json::from_str(&new.record_json()).unwrap(),
            created_at: new.created_at,
            state: new.refresh_state(self.epoch(&new.user)),
        };
        self.sessions.insert(new.id, kept);
    }

    pub fn perform(&mut self, op: &StoreOp, near: &NearCache) -> StoreOutcome {
        if self.down {
            return StoreOutcome::Unavailable;
        }
        match op {
            StoreOp::Create(new) => self.create_within_limit(new, near),
            StoreOp::Rotate(rotate) => self.write(rotate.id, near, |state, epoch| rotate.apply(state, epoch)),
            StoreOp::Replace(write) => self.write(write.id, near, |state, _| write.apply(state)),
            StoreOp::State(id) => match self.sessions.get(id) {
                None => StoreOutcome::Missing,
                Some(kept) => StoreOutcome::State(Box::new(kept.state.clone()), self.epoch(&kept.state.user)),
            },
            StoreOp::Revoke { id, user, .. } => {
                let theirs =
                    |kept: &Kept| !kept.state.dead && user.as_ref().is_none_or(|user| kept.state.user == *user);
                let found: Vec<SessionId> =
                    self.sessions.get(id).filter(|kept| theirs(kept)).map(|_| *id).into_iter().collect();
                self.end(found, None, near)
            }
            StoreOp::RevokeAll { user, .. } => {
                let epoch = self.epochs.entry(user.clone()).or_default();
                *epoch += 1;
                let epoch = *epoch;
                near.invalidate_user(user);
                self.end(self.of(user), Some(epoch), near)
            }
            StoreOp::RevokeOthers { user, keep, .. } => {
                let found: Vec<SessionId> = self.of(user).into_iter().filter(|id| id != keep).collect();
                self.end(found, None, near)
            }
            StoreOp::List { user, now } => {
                let mut rows: Vec<_> = self.of(user).into_iter().map(|id| (id, &self.sessions[&id])).collect();
                rows.retain(|(_, kept)| kept.state.is_live(self.epoch(user), *now));
                rows.sort_by_key(|(_, kept)| kept.created_at);
                StoreOutcome::Listed(rows.into_iter().map(|(id, kept)| row(id, kept)).collect())
            }
            StoreOp::Confirm { id, generation } => {
                if let Some(kept) = self.sessions.get_mut(id) {
                    kept.state.seen = kept.state.seen.max((*generation).min(kept.state.counter));
                }
                StoreOutcome::Confirmed
            }
            StoreOp::Bury(_) => StoreOutcome::Confirmed,
        }
    }

    fn write(
        &mut self,
        id: SessionId,
        near: &NearCache,
        next: impl FnOnce(&RefreshState, u64) -> Option<RefreshState>,
    ) -> StoreOutcome {
        let Some(kept) = self.sessions.get(&id) else { return StoreOutcome::Missing };
        let epoch = self.epoch(&kept.state.user);
        match next(&kept.state, epoch) {
            None => StoreOutcome::Mismatch(Box::new(kept.state.clone()), epoch),
            Some(state) => {
                *self.state(id) = state.clone();
                near.invalidate(id);
                StoreOutcome::Rotated(Box::new(state))
            }
        }
    }

    fn create_within_limit(&mut self, new: &NewSession, near: &NearCache) -> StoreOutcome {
        if self.taken > 0 || self.sessions.contains_key(&new.id) {
            self.taken = self.taken.saturating_sub(1);
            return StoreOutcome::Taken;
        }
        let mut theirs = self.of(&new.user);
        theirs.sort_by_key(|id| self.sessions[id].created_at);
        let room = new.max_per_user as usize;
        if theirs.len() >= room {
            if !new.evict_oldest {
                return StoreOutcome::Full;
            }
            theirs.truncate(theirs.len() + 1 - room);
        } else {
            theirs.clear();
        }
        self.end(theirs.clone(), None, near);
        self.insert(new);
        StoreOutcome::Created { evicted: theirs }
    }

    fn of(&self, user: &UserId) -> Vec<SessionId> {
        let theirs = self.sessions.iter().filter(|(_, kept)| kept.state.user == *user && !kept.state.dead);
        theirs.map(|(id, _)| *id).collect()
    }

    fn end(&mut self, ended: Vec<SessionId>, epoch: Option<u64>, near: &NearCache) -> StoreOutcome {
        for id in &ended {
            if self.marks_dead {
                self.state(*id).dead = true;
            } else {
                self.sessions.remove(id);
            }
            near.invalidate(*id);
        }
        StoreOutcome::Revoked { ended, epoch, replicated: !self.lagging }
    }
}

fn row(id: SessionId, kept: &Kept) -> SessionRow {
    SessionRow {
        id,
        record: kept.record.clone(),
        absolute: kept.state.absolute,
        idle: kept.state.idle,
        refreshed_at: kept.state.superseded.first().copied(),
    }
}
