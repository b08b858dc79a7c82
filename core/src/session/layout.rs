//! The names of the keys that Redis holds of sessions: the one place where they stand.
//!
//! Stores build them, scripts are handed them, and the near cache reads them back from an invalidation. All keys of a
//! user lie in one Redis slot, because the ids are steered there (see `steer`) and the braces name what is hashed.

use crate::identity::percent_decode;
use crate::{SessionId, UserId};

const RECORD: &str = "session:";
const OPEN_STATE: &str = "{session:";
const CLOSE_STATE: &str = "}:rt";
const OPEN_USER: &str = "{user:";
const CLOSE_INDEX: &str = "}:sessions";
const CLOSE_EPOCH: &str = "}:epoch";

/// `session:<uuid>`: the original's record, never rewritten.
pub fn record_key(id: SessionId) -> String {
    format!("{RECORD}{id}")
}

/// `{session:<uuid>}:rt`: the refresh state beside it.
pub fn state_key(id: SessionId) -> String {
    format!("{OPEN_STATE}{id}{CLOSE_STATE}")
}

/// `{user:<U>}:sessions`: the ids of a user's sessions.
pub fn index_key(user: &UserId) -> String {
    format!("{OPEN_USER}{}{CLOSE_INDEX}", user.key_form())
}

/// `{user:<U>}:epoch`: raised when all sessions of a user end.
pub fn epoch_key(user: &UserId) -> String {
    format!("{OPEN_USER}{}{CLOSE_EPOCH}", user.key_form())
}

/// `user:<U>`: what `index_key` and `epoch_key` are hashed by.
pub fn user_tag(user: &UserId) -> String {
    format!("user:{}", user.key_form())
}

/// A key of the layout, read back from its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionKey {
    Record(SessionId),
    State(SessionId),
    Index(UserId),
    Epoch(UserId),
}

impl SessionKey {
    /// `None` for a name that is none of ours.
    pub fn parse(name: &[u8]) -> Option<SessionKey> {
        let name = std::str::from_utf8(name).ok()?;
        if let Some(id) = name.strip_prefix(RECORD) {
            return SessionId::parse(id).map(SessionKey::Record);
        }
        if let Some(id) = name.strip_prefix(OPEN_STATE).and_then(|rest| rest.strip_suffix(CLOSE_STATE)) {
            return SessionId::parse(id).map(SessionKey::State);
        }
        let rest = name.strip_prefix(OPEN_USER)?;
        if let Some(user) = rest.strip_suffix(CLOSE_EPOCH) {
            return user_of(user).map(SessionKey::Epoch);
        }
        user_of(rest.strip_suffix(CLOSE_INDEX)?).map(SessionKey::Index)
    }
}

/// The user of `<U>`, which must be as `key_form` writes it: another spelling is another key.
fn user_of(key_form: &str) -> Option<UserId> {
    let user = UserId::new(&percent_decode(key_form)?).ok()?;
    (user.key_form() == key_form).then_some(user)
}

#[cfg(test)]
mod tests {
    use super::super::steer::{redis_slot, session_slot};
    use super::*;
    use crate::Entropy;
    use wasm_bindgen_test::wasm_bindgen_test;

    #[wasm_bindgen_test(unsupported = test)]
    fn the_names_are_the_documented_ones_and_are_read_back() {
        let id = SessionId::parse("0b8f5c1e-4a1b-4c3d-8e2f-000000012345").unwrap();
        let user = UserId::new("a b{ü}%").unwrap();
        let names = [
            (record_key(id), "session:0b8f5c1e-4a1b-4c3d-8e2f-000000012345", SessionKey::Record(id)),
            (state_key(id), "{session:0b8f5c1e-4a1b-4c3d-8e2f-000000012345}:rt", SessionKey::State(id)),
            (index_key(&user), "{user:a%20b%7B%C3%BC%7D%25}:sessions", SessionKey::Index(user.clone())),
            (epoch_key(&user), "{user:a%20b%7B%C3%BC%7D%25}:epoch", SessionKey::Epoch(user.clone())),
        ];
        for (built, written, key) in names {
            assert_eq!(built, written);
            assert_eq!(SessionKey::parse(written.as_bytes()), Some(key));
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_name_that_nobody_here_wrote_is_no_key_of_ours() {
        for name in [
            "",
            "session:",
            "session:0b8f5c1e4a1b4c3d8e2f000000012345",
            "{session:0b8f5c1e-4a1b-4c3d-8e2f-000000012345}",
            "{user:42}:other",
            "{user:}:epoch",
            "{user:a%2}:epoch",
            "{user:a%zz}:epoch",
            "{user:%ff}:epoch",
            "{user:%61}:epoch",
            "{user:%0A}:epoch",
            "user:42",
        ] {
            assert_eq!(SessionKey::parse(name.as_bytes()), None, "{name}");
        }
        assert_eq!(SessionKey::parse(b"{user:\xff}:epoch"), None);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn all_keys_of_a_user_lie_in_one_slot() {
        let mut entropy = Entropy::for_tests(9);
        let user = UserId::new("a b{ü}%").unwrap();
        let id = super::super::steer::steer_session_id(&user, &mut entropy);
        let slot = session_slot(id);
        assert_eq!(redis_slot(record_key(id).as_bytes()), slot);
        assert_eq!(redis_slot(user_tag(&user).as_bytes()), slot, "what the braces hold is what is hashed");
    }
}
