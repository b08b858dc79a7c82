//! What KV keeps of sessions, and how far it is believed.
//!
//! `s:<sid>` is a positive entry: what the authority said of a live session, with the instant before it was asked. It
//! is believed until a minute after that instant, wherever it has been since. `t:<sid>` and `u:<user>` are tombstones
//! that a region posted: a session that has ended, and the epoch below which all of a user's have. They stand under
//! keys of their own, since KV has no compare-and-set and a slow reader would overwrite them.

use std::collections::BTreeMap;

use edgekeep_core::session::{LoadedSession, NEAR_MAX_AGE, Tombstone};
use edgekeep_core::{Millis, SessionId, Timestamp, UserId};
use serde_json::{Value, json};

use crate::kv::{Put, Ttl};

/// An isolate writes a session again only after half the bound.
const PUT_EVERY: Millis = Millis(NEAR_MAX_AGE.0 / 2);
/// How many sessions an isolate remembers having written: about 3 MB.
const MOST_PUTS: usize = 20_000;

/// The three keys that a validation reads.
pub fn keys(id: SessionId, user: &UserId) -> [String; 3] {
    [session_key(id), tombstone_key(id), user_key(user)]
}

/// What stands under the keys of [`keys`].
#[derive(Default)]
pub struct Texts {
    pub session: Option<String>,
    pub tombstone: Option<String>,
    pub user: Option<String>,
}

/// What KV knows of a session.
#[derive(Debug, PartialEq, Eq)]
pub enum Known {
    Live(LoadedSession),
    Dead,
    Nothing,
}

/// Judges what KV says about the session of a token of this user and generation. Whatever is unreadable is a miss.
pub fn judge(texts: &Texts, user: &UserId, generation: u32, now: Timestamp) -> Known {
    if texts.tombstone.is_some() {
        return Known::Dead;
    }
    let revoked_below = match &texts.user {
        None => 0,
        Some(epoch) => match epoch.parse() {
            Ok(epoch) => epoch,
            Err(_) => return Known::Nothing,
        },
    };
    let Some(session) = texts.session.as_deref().and_then(read) else { return Known::Nothing };
    let believed = session.user == *user
        && session.epoch >= revoked_below
        && session.generation >= generation
        && session.expires_at > now
        // From the future: a clock runs ahead, and the bound would be longer by as much.
        && session.checked_at <= now
        && now.since(session.checked_at) < NEAR_MAX_AGE;
    if believed { Known::Live(session) } else { Known::Nothing }
}

/// The write of a session that the authority called live.
pub fn put(id: SessionId, session: &LoadedSession) -> Put {
    let text = json!({
        "user": session.user.as_str(),
        "epoch": session.epoch,
        "expires_at": session.expires_at.0,
        "gen": session.generation,
        "checked_at": session.checked_at.0,
    });
    Put { key: session_key(id), text: text.to_string(), ttl: Ttl::at_least(NEAR_MAX_AGE) }
}

/// The write of a tombstone. It stays until the last token of what it ends has expired.
pub fn bury(tombstone: &Tombstone, now: Timestamp) -> Put {
    match tombstone {
        Tombstone::Session { id, until } => {
            Put { key: tombstone_key(*id), text: "ended".to_owned(), ttl: Ttl::at_least(until.since(now)) }
        }
        Tombstone::User { user, epoch, until } => {
            Put { key: user_key(user), text: epoch.to_string(), ttl: Ttl::at_least(until.since(now)) }
        }
    }
}

fn read(text: &str) -> Option<LoadedSession> {
    let value: Value = serde_json::from_str(text).ok()?;
    let number = |name: &str| value.get(name)?.as_u64();
    Some(LoadedSession {
        user: UserId::new(value.get("user")?.as_str()?).ok()?,
        epoch: number("epoch")?,
        live: true,
        expires_at: Timestamp(number("expires_at")?),
        generation: u32::try_from(number("gen")?).ok()?,
        checked_at: Timestamp(number("checked_at")?),
    })
}

fn session_key(id: SessionId) -> String {
    format!("s:{id}")
}

fn tombstone_key(id: SessionId) -> String {
    format!("t:{id}")
}

/// At most 386 bytes; KV takes 512.
fn user_key(user: &UserId) -> String {
    format!("u:{}", user.key_form())
}

/// When this isolate last wrote each session: two maps in turn, so that forgetting the old ones costs nothing.
#[derive(Default)]
pub struct LastPuts {
    current: BTreeMap<SessionId, Timestamp>,
    previous: BTreeMap<SessionId, Timestamp>,
}

impl LastPuts {
    /// Whether the session is to be written now; then not again for half the bound.
    pub fn due(&mut self, id: SessionId, now: Timestamp) -> bool {
        let last = self.current.get(&id).or_else(|| self.previous.get(&id));
        if last.is_some_and(|last| now.since(*last) < PUT_EVERY) {
            return false;
        }
        if self.current.len() >= MOST_PUTS {
            self.previous = std::mem::take(&mut self.current);
        }
        self.current.insert(id, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: SessionId = SessionId([7; 16]);
    const NOW: Timestamp = Timestamp(1_000_000);

    fn user() -> UserId {
        UserId::new("a b").unwrap()
    }

    fn session() -> LoadedSession {
        LoadedSession {
            user: user(),
            epoch: 3,
            live: true,
            expires_at: Timestamp(9_000_000),
            generation: 2,
            checked_at: NOW,
        }
    }

    fn texts(session: &LoadedSession) -> Texts {
        Texts { session: Some(put(ID, session).text), ..Texts::default() }
    }

    #[test]
    fn an_entry_comes_back_as_it_was_written_and_ages_from_before_the_authority_was_asked() {
        let texts = texts(&session());
        assert_eq!(judge(&texts, &user(), 2, NOW), Known::Live(session()));
        assert_eq!(judge(&texts, &user(), 0, NOW + Millis(59_999)), Known::Live(session()));
        assert_eq!(judge(&texts, &user(), 2, NOW + NEAR_MAX_AGE), Known::Nothing);
        assert_eq!(judge(&texts, &user(), 2, NOW - Millis(1_001)), Known::Nothing, "from the future");
    }

    #[test]
    fn an_entry_of_another_user_an_older_generation_or_an_expired_session_is_a_miss() {
        let texts = texts(&session());
        assert_eq!(judge(&texts, &UserId::new("b").unwrap(), 2, NOW), Known::Nothing);
        assert_eq!(judge(&texts, &user(), 3, NOW), Known::Nothing);
        let expired = LoadedSession { expires_at: NOW, ..session() };
        assert_eq!(judge(&self::texts(&expired), &user(), 2, NOW), Known::Nothing);
    }

    #[test]
    fn a_tombstone_beats_an_entry_and_an_epoch_those_below_it() {
        let dead = Texts { tombstone: Some("ended".into()), ..texts(&session()) };
        assert_eq!(judge(&dead, &user(), 2, NOW), Known::Dead);
        let alone = Texts { tombstone: Some(String::new()), ..Texts::default() };
        assert_eq!(judge(&alone, &user(), 2, NOW), Known::Dead);
        for (epoch, known) in [("3", Known::Live(session())), ("4", Known::Nothing), ("x", Known::Nothing)] {
            let texts = Texts { user: Some(epoch.into()), ..texts(&session()) };
            assert_eq!(judge(&texts, &user(), 2, NOW), known, "{epoch}");
        }
    }

    #[test]
    fn what_is_unreadable_is_a_miss() {
        for text in ["", "{}", "[]", r#"{"user":"a b","epoch":-1,"expires_at":9,"gen":0,"checked_at":0}"#, "null"] {
            let texts = Texts { session: Some(text.into()), ..Texts::default() };
            assert_eq!(judge(&texts, &user(), 0, NOW), Known::Nothing, "{text}");
        }
    }

    #[test]
    fn tombstones_are_written_under_keys_of_their_own_for_at_least_a_minute() {
        let until = NOW + Millis::from_secs(900);
        let session = bury(&Tombstone::Session { id: ID, until }, NOW);
        assert_eq!((session.key.as_str(), session.ttl.seconds()), ("t:07070707-0707-0707-0707-070707070707", 900));
        let user = bury(&Tombstone::User { user: user(), epoch: 4, until: NOW }, NOW);
        assert_eq!((user.key.as_str(), user.text.as_str(), user.ttl.seconds()), ("u:a%20b", "4", 60));
        assert_eq!(keys(ID, &self::user()), [put(ID, &self::session()).key, session.key, user.key]);
    }

    #[test]
    fn a_session_is_written_once_in_half_a_minute_and_the_memory_of_it_is_bounded() {
        let mut puts = LastPuts::default();
        assert!(puts.due(ID, NOW));
        assert!(!puts.due(ID, NOW + Millis(29_999)));
        assert!(puts.due(ID, NOW + Millis(30_000)));
        for number in 0..3 * MOST_PUTS as u128 {
            puts.due(SessionId(number.to_be_bytes()), NOW);
        }
        assert!(puts.current.len() + puts.previous.len() <= 2 * MOST_PUTS);
        assert!(!puts.due(SessionId((3 * MOST_PUTS as u128 - 1).to_be_bytes()), NOW));
    }
}
