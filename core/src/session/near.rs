//! The near cache: sessions this process validated lately, so that a request costs no round trip.
//!
//! The danger of such a cache is a fill that an invalidation overtook: the value was read, the session was revoked,
//! the revocation arrived, and only then the old value was stored. So a read is begun with a ticket that notes the
//! state of three counters, and every later look at the entry compares them again: one cell for the session, one for
//! its user, one for everything. An invalidation only raises a cell; it needs no index and cannot come too early.
//! Cells are shared by hash, so an invalidation may also drop a few strangers: they are simply read again.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, UnitWeighter};
use siphasher::sip::SipHasher13;

use super::record::LoadedSession;
use crate::{Entropy, Millis, SessionId, Timestamp, UserId};

/// Entries are believed for this long after the store was asked, whatever else happens.
pub const MAX_AGE: Millis = Millis(60_000);

/// A power of two; 64 KiB each for sessions and users.
const CELLS: usize = 16_384;

/// Positive entries only, bounded by count. `Sync`: one for the process.
pub struct NearCache {
    entries: Cache<SessionId, NearEntry, UnitWeighter, Keyed, DefaultLifecycle<SessionId, NearEntry>>,
    sessions: Box<[AtomicU32]>,
    users: Box<[AtomicU32]>,
    /// Raised by `flush`: every entry and every ticket is void.
    flushed: AtomicU32,
    /// Raised by `disconnected`: entries from before are unverified.
    disconnects: AtomicU32,
    connected: AtomicBool,
    hash: Keyed,
}

/// What is kept of a validated session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearEntry {
    pub user: UserId,
    pub epoch: u64,
    pub expires_at: Timestamp,
    pub generation: u32,
    pub checked_at: Timestamp,
    stamp: Stamp,
}

/// The counters as a read saw them before it asked the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    session: u32,
    user: u32,
    flushed: u32,
    disconnects: u32,
}

/// Permission to store the answer of a read, unless an invalidation comes in between.
#[derive(Clone, Debug)]
pub struct Ticket {
    id: SessionId,
    user: UserId,
    stamp: Stamp,
}

impl Ticket {
    /// The session that the store is asked about.
    pub fn id(&self) -> SessionId {
        self.id
    }
}

/// What a look into the near cache finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// As good as the store's own answer.
    Verified(NearEntry),
    /// From before the invalidation channel was lost: only `on_store_down = "allow_cached"` may use it.
    Unverified(NearEntry),
    Nothing,
}

impl NearCache {
    /// For at most `capacity` sessions (at least 1).
    pub fn new(capacity: usize, entropy: &mut Entropy) -> NearCache {
        let hash = Keyed { key: entropy.bytes() };
        let capacity = capacity.max(1);
        let cells = || (0..CELLS).map(|_| AtomicU32::new(0)).collect();
        let options =
            OptionsBuilder::new().estimated_items_capacity(capacity.min(1024)).weight_capacity(capacity as u64).build();
        let entries = match options {
            Ok(options) => Cache::with_options(options, UnitWeighter, hash.clone(), DefaultLifecycle::default()),
            Err(_) => Cache::with(1024, capacity as u64, UnitWeighter, hash.clone(), DefaultLifecycle::default()),
        };
        NearCache {
            entries,
            sessions: cells(),
            users: cells(),
            flushed: AtomicU32::new(0),
            disconnects: AtomicU32::new(0),
            connected: AtomicBool::new(true),
            hash,
        }
    }

    /// What is known of `id`, which a token says is `user`'s.
    pub fn find(&self, id: SessionId, user: &UserId, now: Timestamp) -> Found {
        let Some(entry) = self.entries.get(&id) else { return Found::Nothing };
        let current = self.stamp(id, user);
        let void = entry.stamp.session != current.session
            || entry.stamp.user != current.user
            || entry.stamp.flushed != current.flushed
            || now.since(entry.checked_at) >= MAX_AGE
            || entry.user != *user;
        if void {
            self.entries.remove(&id);
            return Found::Nothing;
        }
        if entry.stamp.disconnects != current.disconnects {
            return Found::Unverified(entry);
        }
        Found::Verified(entry)
    }

    /// Before the store is asked about `id`.
    pub fn begin(&self, id: SessionId, user: &UserId) -> Ticket {
        Ticket { id, user: user.clone(), stamp: self.stamp(id, user) }
    }

    /// Whether what an entry says still holds, in the cache or not: nothing was invalidated since, and it is not too old.
    pub fn holds(&self, id: SessionId, entry: &NearEntry, now: Timestamp) -> bool {
        entry.stamp == self.stamp(id, &entry.user) && now.since(entry.checked_at) < MAX_AGE
    }

    /// Stores the answer; false when an invalidation, a flush or a disconnect came in between, or there is nothing
    /// positive to keep.
    pub fn fill(&self, ticket: &Ticket, loaded: &LoadedSession) -> bool {
        self.keep(ticket, loaded).is_some()
    }

    /// As `fill`, with the entry that was stored.
    pub fn keep(&self, ticket: &Ticket, loaded: &LoadedSession) -> Option<NearEntry> {
        let fresh = self.connected.load(Ordering::Acquire)
            && loaded.live
            && loaded.user == ticket.user
            && ticket.stamp == self.stamp(ticket.id, &ticket.user);
        if !fresh {
            return None;
        }
        let entry = NearEntry {
            user: loaded.user.clone(),
            epoch: loaded.epoch,
            expires_at: loaded.expires_at,
            generation: loaded.generation,
            checked_at: loaded.checked_at,
            stamp: ticket.stamp,
        };
        self.entries.insert(ticket.id, entry.clone());
        Some(entry)
    }

    /// One session changed.
    pub fn invalidate(&self, id: SessionId) {
        self.session_cell(id).fetch_add(1, Ordering::AcqRel);
        self.entries.remove(&id);
    }

    /// A user's epoch changed: every entry of theirs is void.
    pub fn invalidate_user(&self, user: &UserId) {
        self.user_cell(user).fetch_add(1, Ordering::AcqRel);
    }

    /// Everything is void, with every ticket: FLUSHALL, or slots moved to another node.
    pub fn flush(&self) {
        self.flushed.fetch_add(1, Ordering::AcqRel);
        self.entries.clear();
    }

    /// The invalidation channel is lost: entries become unverified and nothing is filled until `connected`.
    pub fn disconnected(&self) {
        self.connected.store(false, Ordering::Release);
        self.disconnects.fetch_add(1, Ordering::AcqRel);
    }

    /// The invalidation channel is up again. Entries from before stay unverified.
    pub fn connected(&self) {
        self.connected.store(true, Ordering::Release);
    }

    /// Entries held, for metrics.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn stamp(&self, id: SessionId, user: &UserId) -> Stamp {
        Stamp {
            session: self.session_cell(id).load(Ordering::Acquire),
            user: self.user_cell(user).load(Ordering::Acquire),
            flushed: self.flushed.load(Ordering::Acquire),
            disconnects: self.disconnects.load(Ordering::Acquire),
        }
    }

    fn session_cell(&self, id: SessionId) -> &AtomicU32 {
        &self.sessions[self.hash.of(&id.0) % CELLS]
    }

    fn user_cell(&self, user: &UserId) -> &AtomicU32 {
        &self.users[self.hash.of(user.as_str().as_bytes()) % CELLS]
    }
}

/// SipHash-1-3 under a random key, so that nobody who picks ids can make them collide.
#[derive(Clone)]
struct Keyed {
    key: [u8; 16],
}

impl Keyed {
    fn of(&self, bytes: &[u8]) -> usize {
        SipHasher13::new_with_key(&self.key).hash(bytes) as usize
    }
}

impl std::hash::BuildHasher for Keyed {
    type Hasher = SipHasher13;
    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_key(&self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    const ID: SessionId = SessionId([1; 16]);

    fn cache() -> NearCache {
        NearCache::new(100, &mut Entropy::for_tests(1))
    }

    fn user() -> UserId {
        UserId::new("42").unwrap()
    }

    fn loaded(at: u64) -> LoadedSession {
        LoadedSession {
            user: user(),
            epoch: 1,
            live: true,
            expires_at: Timestamp(1_000_000),
            generation: 0,
            checked_at: Timestamp(at),
        }
    }

    fn filled(cache: &NearCache) {
        let ticket = cache.begin(ID, &user());
        assert!(cache.fill(&ticket, &loaded(0)));
        assert!(matches!(cache.find(ID, &user(), Timestamp(1)), Found::Verified(_)));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn an_entry_is_found_for_sixty_seconds_and_only_for_its_user() {
        let cache = cache();
        filled(&cache);
        assert!(matches!(cache.find(ID, &user(), Timestamp(59_999)), Found::Verified(_)));
        assert_eq!(cache.find(ID, &user(), Timestamp(60_000)), Found::Nothing);
        filled(&cache);
        assert_eq!(cache.find(ID, &UserId::new("43").unwrap(), Timestamp(1)), Found::Nothing);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_fill_that_an_invalidation_overtook_is_refused() {
        for invalidate in [
            (|c: &NearCache| c.invalidate(ID)) as fn(&NearCache),
            |c| c.invalidate_user(&user()),
            NearCache::flush,
            NearCache::disconnected,
        ] {
            let cache = cache();
            let ticket = cache.begin(ID, &user());
            invalidate(&cache);
            assert!(!cache.fill(&ticket, &loaded(0)));
            assert_eq!(cache.find(ID, &user(), Timestamp(1)), Found::Nothing);
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn an_invalidation_drops_what_was_filled() {
        for invalidate in
            [(|c: &NearCache| c.invalidate(ID)) as fn(&NearCache), |c| c.invalidate_user(&user()), NearCache::flush]
        {
            let cache = cache();
            filled(&cache);
            invalidate(&cache);
            assert_eq!(cache.find(ID, &user(), Timestamp(1)), Found::Nothing);
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_disconnect_leaves_entries_unverified_and_refuses_fills_until_connected() {
        let cache = cache();
        filled(&cache);
        cache.disconnected();
        assert!(matches!(cache.find(ID, &user(), Timestamp(1)), Found::Unverified(_)));
        let ticket = cache.begin(ID, &user());
        assert!(!cache.fill(&ticket, &loaded(0)), "nobody would tell us of a revocation");
        cache.connected();
        assert!(matches!(cache.find(ID, &user(), Timestamp(1)), Found::Unverified(_)));
        filled(&cache);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn what_was_kept_holds_without_a_place_in_the_cache_until_an_invalidation_or_a_minute_later() {
        for invalidate in [
            (|c: &NearCache| c.invalidate(ID)) as fn(&NearCache),
            |c| c.invalidate_user(&user()),
            NearCache::flush,
            NearCache::disconnected,
        ] {
            let cache = cache();
            let kept = cache.keep(&cache.begin(ID, &user()), &loaded(0)).unwrap();
            cache.entries.clear();
            assert_eq!(cache.find(ID, &user(), Timestamp(1)), Found::Nothing, "evicted");
            assert!(cache.holds(ID, &kept, Timestamp(59_999)));
            assert!(!cache.holds(ID, &kept, Timestamp(60_000)));
            invalidate(&cache);
            assert!(!cache.holds(ID, &kept, Timestamp(1)));
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn nothing_dead_is_kept_and_the_number_of_entries_is_bounded() {
        let cache = cache();
        let ticket = cache.begin(ID, &user());
        assert!(!cache.fill(&ticket, &LoadedSession { live: false, ..loaded(0) }));
        let strangers = LoadedSession { user: UserId::new("43").unwrap(), ..loaded(0) };
        assert!(!cache.fill(&ticket, &strangers), "the session of another user than the token's");
        let mut entropy = Entropy::for_tests(2);
        for _ in 0..10_000 {
            let id = SessionId(entropy.bytes());
            let ticket = cache.begin(id, &user());
            cache.fill(&ticket, &loaded(0));
        }
        assert!(cache.len() <= 110, "{}", cache.len());
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn no_interleaving_serves_a_session_after_its_invalidation_arrived() {
        // One session, several readers at different points of begin → read → fill, revocations in between.
        for seed in 0..500 {
            let mut entropy = Entropy::for_tests(seed);
            let cache = cache();
            let mut revoked_at_version = 0u32; // how many invalidations arrived
            let mut readers: Vec<Option<(Ticket, u32)>> = vec![None; 4];
            let mut filled_version = None;
            for step in 0..60 {
                let who = entropy.below(4) as usize;
                match entropy.below(4) {
                    0 => readers[who] = Some((cache.begin(ID, &user()), revoked_at_version)),
                    1 => {
                        if let Some((ticket, version)) = readers[who].take()
                            && cache.fill(&ticket, &loaded(step))
                        {
                            filled_version = Some(version);
                        }
                    }
                    2 => {
                        match entropy.below(3) {
                            0 => cache.invalidate(ID),
                            1 => cache.invalidate_user(&user()),
                            _ => cache.flush(),
                        }
                        revoked_at_version += 1;
                    }
                    _ => {
                        if let Found::Verified(_) = cache.find(ID, &user(), Timestamp(step)) {
                            assert_eq!(filled_version, Some(revoked_at_version), "seed {seed}");
                        }
                    }
                }
            }
        }
    }
}
