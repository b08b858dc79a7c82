//! How the embedded store writes a session's refresh state: JSON with short names and a version, so that a later
//! release can read what this one wrote.

use edgekeep_core::session::{Device, RefreshState};
use edgekeep_core::{Millis, Timestamp, UserId};
use serde::{Deserialize, Serialize};

const VERSION: u8 = 1;

#[derive(Serialize, Deserialize)]
struct Stored {
    v: u8,
    user: String,
    client: String,
    ttl: Option<u64>,
    n: u32,
    key: u8,
    times: Vec<u64>,
    seen: u32,
    retries: u8,
    /// What an earlier release wrote has none.
    #[serde(default)]
    reissued: Option<u64>,
    device: Option<[u8; 32]>,
    epoch: u64,
    abs: u64,
    idle: u64,
    dead: bool,
}

pub fn encode(state: &RefreshState) -> Vec<u8> {
    let stored = Stored {
        v: VERSION,
        user: state.user.as_str().to_owned(),
        client: state.client_id.to_string(),
        ttl: state.access_ttl.map(|ttl| ttl.0),
        n: state.counter,
        key: state.key_id,
        times: state.superseded.iter().map(|at| at.0).collect(),
        seen: state.seen,
        retries: state.retries,
        reissued: state.reissued.map(|at| at.0),
        device: state.device.map(|device| device.0),
        epoch: state.epoch,
        abs: state.absolute.0,
        idle: state.idle.0,
        dead: state.dead,
    };
    // A struct of numbers and strings always serializes.
    serde_json::to_vec(&stored).unwrap_or_default()
}

/// `None` when the bytes are not a state of a known version: the session counts as missing, and that is logged.
pub fn decode(bytes: &[u8]) -> Option<RefreshState> {
    let stored: Stored = serde_json::from_slice(bytes).ok().filter(|stored: &Stored| stored.v == VERSION)?;
    Some(RefreshState {
        user: UserId::new(&stored.user).ok()?,
        client_id: stored.client.into(),
        access_ttl: stored.ttl.map(Millis),
        counter: stored.n,
        key_id: stored.key,
        superseded: stored.times.into_iter().map(Timestamp).collect(),
        seen: stored.seen,
        retries: stored.retries,
        reissued: stored.reissued.map(Timestamp),
        device: stored.device.map(Device),
        epoch: stored.epoch,
        absolute: Timestamp(stored.abs),
        idle: Timestamp(stored.idle),
        dead: stored.dead,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_back_as_it_was_written() {
        let state = RefreshState {
            user: UserId::new("ü 42").unwrap(),
            client_id: "app".into(),
            access_ttl: Some(Millis(5)),
            counter: 7,
            key_id: 2,
            superseded: vec![Timestamp(3), Timestamp(2)],
            seen: 6,
            retries: 1,
            reissued: Some(Timestamp(4)),
            device: Some(Device([9; 32])),
            epoch: 4,
            absolute: Timestamp(1_000),
            idle: Timestamp(900),
            dead: false,
        };
        assert_eq!(decode(&encode(&state)), Some(state));
        assert_eq!(decode(b"{\"v\":2}"), None);
        assert_eq!(decode(b""), None);
    }
}
