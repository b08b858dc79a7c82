//! What is kept of a session: the original's record, the refresh state beside it, and what a validation reads.

use std::sync::Arc;

use chrono::DateTime;
use serde_json::{Value, json};

use super::rotation::Device;
use crate::{Millis, SessionId, Timestamp, UserId, UserIdKind};

/// Everything a store needs to create a session. The store adds the user's epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSession {
    pub id: SessionId,
    pub user: UserId,
    pub user_kind: UserIdKind,
    /// A JSON value of at most 4 KiB, kept as it came.
    pub device_info: Value,
    pub created_at: Timestamp,
    pub client_id: Arc<str>,
    /// Shorter than `session.access_ttl` when the creator asked for it.
    pub access_ttl: Option<Millis>,
    /// The refresh key that signs the first token (counter 0).
    pub key_id: u8,
    pub absolute: Timestamp,
    pub idle: Timestamp,
    pub max_per_user: u32,
    /// At the maximum: end the oldest (true) or refuse (false).
    pub evict_oldest: bool,
}

impl NewSession {
    /// The original's record under `session:<uuid>`: `user_id`, `device_info`, `created_at`. Never rewritten.
    pub fn record_json(&self) -> String {
        let user_id = match self.user_kind {
            UserIdKind::Text => Value::from(self.user.as_str()),
            // An integer identity is a JSON number by construction; text is the safe answer if it ever is not.
            UserIdKind::Integer => {
                serde_json::from_str(self.user.as_str()).unwrap_or_else(|_| Value::from(self.user.as_str()))
            }
        };
        json!({"user_id": user_id, "device_info": self.device_info, "created_at": created_at_text(self.created_at)})
            .to_string()
    }

    /// The refresh state of a fresh session under `epoch`.
    pub fn refresh_state(&self, epoch: u64) -> RefreshState {
        RefreshState {
            user: self.user.clone(),
            client_id: self.client_id.clone(),
            access_ttl: self.access_ttl,
            counter: 0,
            key_id: self.key_id,
            superseded: Vec::new(),
            seen: 0,
            retries: 0,
            reissued: None,
            device: None,
            epoch,
            absolute: self.absolute,
            idle: self.idle,
            dead: false,
        }
    }
}

/// `YYYY-MM-DDTHH:MM:SS.ffffff` in UTC: Python's `isoformat()`, as the original wrote it.
pub fn created_at_text(at: Timestamp) -> String {
    i64::try_from(at.0)
        .ok()
        .and_then(DateTime::from_timestamp_millis)
        .unwrap_or_default()
        .format("%Y-%m-%dT%H:%M:%S%.6f")
        .to_string()
}

/// The mutable half of a session: what decides whether it lives and which refresh token is current.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefreshState {
    pub user: UserId,
    pub client_id: Arc<str>,
    pub access_ttl: Option<Millis>,
    /// `n`: the counter of the current refresh token.
    pub counter: u32,
    /// The key that signed the current token, so that a re-issue is byte-identical.
    pub key_id: u8,
    /// When the last tokens were superseded, newest first, at most eight.
    pub superseded: Vec<Timestamp>,
    /// `c`: the highest generation that an access token was seen with.
    pub seen: u32,
    /// How often the current token was re-issued for a lost answer.
    pub retries: u8,
    /// When that was last done.
    pub reissued: Option<Timestamp>,
    /// The device of the last rotation.
    pub device: Option<Device>,
    /// The user's epoch when the session was created.
    pub epoch: u64,
    pub absolute: Timestamp,
    pub idle: Timestamp,
    pub dead: bool,
}

impl RefreshState {
    /// Whether the session is neither ended nor expired, and not older than the user's last revoke-all.
    pub fn is_live(&self, user_epoch: u64, now: Timestamp) -> bool {
        !self.dead && self.epoch >= user_epoch && now < self.idle && now < self.absolute
    }

    /// What a validation needs of it.
    pub fn loaded(&self, user_epoch: u64, checked_at: Timestamp) -> LoadedSession {
        LoadedSession {
            user: self.user.clone(),
            epoch: self.epoch,
            live: !self.dead && self.epoch >= user_epoch,
            expires_at: self.idle.min(self.absolute),
            generation: self.counter,
            checked_at,
        }
    }
}

/// A session as a validation reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedSession {
    pub user: UserId,
    pub epoch: u64,
    /// Neither ended nor revoked with all of its user's sessions.
    pub live: bool,
    /// The earlier of the idle and the absolute limit.
    pub expires_at: Timestamp,
    /// The highest generation known when it was read.
    pub generation: u32,
    /// When the store was asked (taken before the call).
    pub checked_at: Timestamp,
}

/// One line of a user's list of devices.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionRow {
    pub id: SessionId,
    /// The record as stored: the original's JSON object.
    pub record: Value,
    pub absolute: Timestamp,
    pub idle: Timestamp,
    /// When it was last refreshed, if ever.
    pub refreshed_at: Option<Timestamp>,
}

impl SessionRow {
    /// As the record tells it, which sorts by time.
    pub fn created_at(&self) -> &str {
        self.record.get("created_at").and_then(Value::as_str).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    fn new_session(kind: UserIdKind) -> NewSession {
        NewSession {
            id: SessionId([1; 16]),
            user: UserId::new("42").unwrap(),
            user_kind: kind,
            device_info: json!({"os": "linux"}),
            created_at: Timestamp(1_700_000_000_123),
            client_id: "app".into(),
            access_ttl: None,
            key_id: 1,
            absolute: Timestamp(2_000),
            idle: Timestamp(1_000),
            max_per_user: 50,
            evict_oldest: true,
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_record_is_the_originals_and_keeps_the_identitys_type() {
        let record: Value = serde_json::from_str(&new_session(UserIdKind::Integer).record_json()).unwrap();
        assert_eq!(
            record,
            json!({"user_id": 42, "device_info": {"os": "linux"}, "created_at": "2023-11-14T22:13:20.123000"})
        );
        let record: Value = serde_json::from_str(&new_session(UserIdKind::Text).record_json()).unwrap();
        assert_eq!(record["user_id"], json!("42"));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_session_dies_at_its_limits_by_its_mark_and_by_a_newer_epoch() {
        let state = new_session(UserIdKind::Text).refresh_state(3);
        assert!(state.is_live(3, Timestamp(999)));
        assert!(!state.is_live(3, Timestamp(1_000)), "idle limit");
        assert!(!state.is_live(4, Timestamp(0)), "revoke-all raised the epoch");
        assert!(!RefreshState { dead: true, ..state.clone() }.is_live(3, Timestamp(0)));
        assert_eq!(state.loaded(3, Timestamp(5)).expires_at, Timestamp(1_000));
    }
}
