//! How Redis holds a session's refresh state: a hash of short fields, small enough for Redis' compact encoding. The
//! scripts know the same names (`scripts/*.lua`).

use edgekeep_core::session::{Device, RefreshState};
use edgekeep_core::{Millis, Timestamp, UserId};
use redis::Value;

/// The fields in the order in which scripts answer them.
pub const FIELDS: [&str; 14] = [
    "n", "key", "times", "c", "retries", "device", "user", "epoch", "abs", "idle", "dead", "client", "ttl", "reissued",
];

/// A time in `times` takes six bytes: milliseconds until the year 10889.
const TIME: usize = 6;

/// All fields but `epoch`, which the store adds, and `dead`.
pub fn whole(state: &RefreshState) -> Vec<(&'static str, Vec<u8>)> {
    let mut fields = changing(state);
    fields.push(("user", state.user.as_str().into()));
    fields.push(("abs", number(state.absolute.0)));
    fields.push(("client", state.client_id.as_bytes().into()));
    if let Some(ttl) = state.access_ttl {
        fields.push(("ttl", number(ttl.0)));
    }
    fields
}

/// The fields that a rotation changes.
pub fn changing(state: &RefreshState) -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("n", number(u64::from(state.counter))),
        ("key", number(u64::from(state.key_id))),
        ("times", state.superseded.iter().flat_map(|at| packed(*at)).collect()),
        ("c", number(u64::from(state.seen))),
        ("retries", number(u64::from(state.retries))),
        ("device", state.device.map(|device| device.0.to_vec()).unwrap_or_default()),
        ("idle", number(state.idle.0)),
        ("reissued", state.reissued.map(|at| number(at.0)).unwrap_or_default()),
    ]
}

pub fn packed(at: Timestamp) -> [u8; TIME] {
    let mut bytes = [0; TIME];
    bytes.copy_from_slice(&at.0.to_be_bytes()[8 - TIME..]);
    bytes
}

/// The state of `FIELDS`' values. `None` when they are no state of ours: the session counts as missing.
pub fn decode(values: &[Value]) -> Option<RefreshState> {
    let [n, key, times, seen, retries, device, user, epoch, absolute, idle, dead, client, ttl, reissued] = values
    else {
        return None;
    };
    let times = bytes(times)?;
    let device = match bytes(device)? {
        [] => None,
        digest => Some(Device(digest.try_into().ok()?)),
    };
    Some(RefreshState {
        user: UserId::new(std::str::from_utf8(bytes(user)?).ok()?).ok()?,
        client_id: std::str::from_utf8(bytes(client)?).ok()?.into(),
        access_ttl: integer(ttl).map(Millis),
        counter: u32::try_from(integer(n)?).ok()?,
        key_id: u8::try_from(integer(key)?).ok()?,
        superseded: times.chunks_exact(TIME).map(unpacked).collect(),
        seen: u32::try_from(integer(seen)?).ok()?,
        retries: u8::try_from(integer(retries)?).ok()?,
        reissued: integer(reissued).map(Timestamp),
        device,
        epoch: integer(epoch)?,
        absolute: Timestamp(integer(absolute)?),
        idle: Timestamp(integer(idle)?),
        dead: bytes(dead).is_some(),
    })
}

fn unpacked(bytes: &[u8]) -> Timestamp {
    Timestamp(bytes.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)))
}

fn number(value: u64) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// A string's bytes; `None` for anything else, and for a field that is not there.
pub fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

/// An integer, or a string that is one.
pub fn integer(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => std::str::from_utf8(bytes(value)?).ok()?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(state: &RefreshState, epoch: u64) -> Vec<Value> {
        let mut fields = whole(state);
        fields.push(("epoch", number(epoch)));
        if state.dead {
            fields.push(("dead", b"1".to_vec()));
        }
        FIELDS
            .iter()
            .map(|name| match fields.iter().find(|(field, _)| field == name) {
                Some((_, bytes)) => Value::BulkString(bytes.clone()),
                None => Value::Nil,
            })
            .collect()
    }

    #[test]
    fn a_state_comes_back_as_it_was_written() {
        let full = RefreshState {
            user: UserId::new("ü 42").unwrap(),
            client_id: "app".into(),
            access_ttl: Some(Millis(5)),
            counter: u32::MAX,
            key_id: 2,
            superseded: (0..8).map(|n| Timestamp(1_700_000_000_000 + n)).collect(),
            seen: 6,
            retries: 1,
            reissued: Some(Timestamp(1_700_000_000_500)),
            device: Some(Device([9; 32])),
            epoch: 4,
            absolute: Timestamp(1_800_000_000_000),
            idle: Timestamp(1_700_000_000_900),
            dead: false,
        };
        let bare = RefreshState {
            access_ttl: None,
            superseded: Vec::new(),
            reissued: None,
            device: None,
            dead: true,
            counter: 0,
            ..full.clone()
        };
        for state in [full, bare] {
            assert_eq!(decode(&values(&state, 4)), Some(state));
        }
    }

    #[test]
    fn what_is_no_state_counts_as_missing() {
        assert_eq!(decode(&[]), None);
        assert_eq!(decode(&vec![Value::Nil; FIELDS.len()]), None);
    }
}
