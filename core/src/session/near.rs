//! The near cache: sessions this process validated lately, so that a request costs no round trip.
//!
//! The danger of such a cache is a fill that an invalidation overtook: the value was read, the session was revoked,
//! the revocation arrived, and only then the old value was stored. So a read is begun with a ticket that notes the
//! state of three counters, and every later look at the entry compares them again: one cell for the session, one for
//! its user, one for its Redis slot. An invalidation only raises a cell; it needs no index and cannot come too early.
//! Cells of sessions and users are shared by hash, so an invalidation may also drop a few strangers: they are simply
//! read again. Slots have a cell each, so that a lost node leaves the sessions of all others as they were.

use std::hash::{BuildHasher, Hasher};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, UnitWeighter};
use siphasher::sip::SipHasher13;

use super::layout::SessionKey;
use super::record::LoadedSession;
use super::steer::{REDIS_SLOTS, session_slot};
use crate::{Entropy, Millis, SessionId, Timestamp, UserId};

/// Entries are believed for this long after the store was asked, whatever else happens; at the edge those in KV too.
pub const NEAR_MAX_AGE: Millis = Millis(60_000);

/// A power of two; 64 KiB each for sessions and users.
const CELLS: usize = 16_384;

/// Positive entries only, bounded by count. `Sync`: one for the process.
pub struct NearCache {
    entries: Cache<SessionId, Kept, UnitWeighter, MixKey, DefaultLifecycle<SessionId, Kept>>,
    capacity: usize,
    sessions: Box<[AtomicU32]>,
    users: Box<[AtomicU32]>,
    slots: Box<[SlotCell]>,
    invalidations: AtomicU64,
    mix: MixKey,
    /// SipHash-1-3 under a random key, so that nobody who picks a user id can make it collide with another.
    user_key: [u8; 16],
}

/// What is known of a validated session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NearEntry {
    pub expires_at: Timestamp,
    pub checked_at: Timestamp,
    pub generation: u32,
}

/// An entry as it is stored: no pointer in it, and with its key and the cache's own words just one line of memory, so
/// that a hit costs one place there.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed(4))]
pub struct Kept {
    /// The user, as 64 keyed bits: the token that is held against it was signed here and names its user itself.
    user: UserTag,
    checked_at: Timestamp,
    /// Milliseconds from `checked_at` to the session's end. One beyond this type's is as good: nothing is believed
    /// longer than [`NEAR_MAX_AGE`].
    expires_in: u32,
    generation: u32,
    stamp: Stamp,
    slot: u16,
}

impl Kept {
    fn entry(&self) -> NearEntry {
        NearEntry {
            expires_at: self.checked_at + Millis(u64::from(self.expires_in)),
            checked_at: self.checked_at,
            generation: self.generation,
        }
    }
}

/// The counters as a read saw them before it asked the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    /// Invalidations of the session's cell, of its user's and of its slot together: none of them ever counts down, so
    /// the sum is the same only if each is.
    invalidations: u32,
    /// The slot's channel.
    link: Link,
}

/// Permission to store the answer of a read, unless an invalidation comes in between.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    id: SessionId,
    user: UserTag,
    slot: u16,
    stamp: Stamp,
}

impl Ticket {
    /// The session that the store is asked about.
    pub fn id(&self) -> SessionId {
        self.id
    }
}

/// What a look into the near cache finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
        let mix = MixKey(entropy.next_u64(), entropy.next_u64());
        let capacity = capacity.max(1);
        let cells = || (0..CELLS).map(|_| AtomicU32::new(0)).collect();
        let options =
            OptionsBuilder::new().estimated_items_capacity(capacity.min(1024)).weight_capacity(capacity as u64).build();
        let entries = match options {
            Ok(options) => Cache::with_options(options, UnitWeighter, mix, DefaultLifecycle::default()),
            Err(_) => Cache::with(1024, capacity as u64, UnitWeighter, mix, DefaultLifecycle::default()),
        };
        NearCache {
            entries,
            capacity,
            sessions: cells(),
            users: cells(),
            slots: (0..REDIS_SLOTS).map(|_| SlotCell::default()).collect(),
            invalidations: AtomicU64::new(0),
            mix,
            user_key: entropy.bytes(),
        }
    }

    /// What is known of `id`, which a token says is `user`'s.
    pub fn find(&self, id: SessionId, user: &UserId, now: Timestamp) -> Found {
        let Some(kept) = self.entries.get(&id) else { return Found::Nothing };
        let user = self.user_tag(user);
        let (stamp, current) = (kept.stamp, self.stamp(id, user, kept.slot));
        let void = { kept.user } != user
            || stamp.invalidations != current.invalidations
            || now.since(kept.checked_at) >= NEAR_MAX_AGE;
        if void {
            self.entries.remove(&id);
            return Found::Nothing;
        }
        if stamp.link != current.link {
            return Found::Unverified(kept.entry());
        }
        Found::Verified(kept.entry())
    }

    /// Before the store is asked about `id`.
    pub fn begin(&self, id: SessionId, user: &UserId) -> Ticket {
        let (user, slot) = (self.user_tag(user), session_slot(id));
        Ticket { id, user, slot, stamp: self.stamp(id, user, slot) }
    }

    /// Whether what was kept still holds, in the cache or not: nothing was invalidated since, and it is not too old.
    pub fn holds(&self, id: SessionId, kept: &Kept, now: Timestamp) -> bool {
        self.stamp(id, kept.user, kept.slot) == { kept.stamp }
            && now < kept.entry().expires_at
            && now.since(kept.checked_at) < NEAR_MAX_AGE
    }

    /// Stores the answer; false when an invalidation, a flush or a disconnect came in between, nobody would tell of a
    /// revocation, or there is nothing positive to keep.
    pub fn fill(&self, ticket: &Ticket, loaded: &LoadedSession) -> bool {
        self.keep(ticket, loaded).is_some()
    }

    /// As `fill`, with what was stored.
    pub fn keep(&self, ticket: &Ticket, loaded: &LoadedSession) -> Option<Kept> {
        let fresh = loaded.live
            && ticket.stamp.link.is_connected()
            && self.user_tag(&loaded.user) == ticket.user
            && ticket.stamp == self.stamp(ticket.id, ticket.user, ticket.slot);
        if !fresh {
            return None;
        }
        // An invalidation from here on finds the stamp old, and so voids what is stored after it.
        let kept = Kept {
            user: ticket.user,
            checked_at: loaded.checked_at,
            expires_in: u32::try_from(loaded.expires_at.since(loaded.checked_at).0).unwrap_or(u32::MAX),
            generation: loaded.generation,
            stamp: ticket.stamp,
            slot: ticket.slot,
        };
        self.entries.insert(ticket.id, kept);
        Some(kept)
    }

    /// One session changed.
    pub fn invalidate(&self, id: SessionId) {
        self.session_cell(id).fetch_add(1, Ordering::AcqRel);
        self.entries.remove(&id);
        self.invalidations.fetch_add(1, Ordering::Relaxed);
    }

    /// A user's epoch changed: every entry of theirs is void.
    pub fn invalidate_user(&self, user: &UserId) {
        self.user_cell(self.user_tag(user)).fetch_add(1, Ordering::AcqRel);
        self.invalidations.fetch_add(1, Ordering::Relaxed);
    }

    /// A Redis key changed: what rests on it is void. The index of a user, and a key that is none of ours, say nothing
    /// about any entry.
    pub fn invalidate_key(&self, key: &[u8]) {
        match SessionKey::parse(key) {
            Some(SessionKey::Record(id) | SessionKey::State(id)) => self.invalidate(id),
            Some(SessionKey::Epoch(user)) => self.invalidate_user(&user),
            Some(SessionKey::Index(_)) | None => {}
        }
    }

    /// Everything is void, with every ticket: FLUSHALL.
    pub fn flush(&self) {
        self.slots.iter().for_each(SlotCell::void);
        self.entries.clear();
        self.invalidations.fetch_add(1, Ordering::Relaxed);
    }

    /// Entries and tickets of these Redis slots are void: they moved to another node.
    pub fn flush_slots(&self, slots: &[RangeInclusive<u16>]) {
        self.each_slot(slots, SlotCell::void);
        self.invalidations.fetch_add(1, Ordering::Relaxed);
    }

    /// The invalidation channel of these Redis slots is lost: their entries become unverified and nothing of them is
    /// filled until `connected`. Saying it twice needs `connected` once.
    pub fn disconnected(&self, slots: &[RangeInclusive<u16>]) {
        self.each_slot(slots, SlotCell::disconnect);
    }

    /// The invalidation channel of these Redis slots is up again. Entries and tickets from before stay unverified.
    pub fn connected(&self, slots: &[RangeInclusive<u16>]) {
        self.each_slot(slots, SlotCell::connect);
    }

    /// Some of what was read of these Redis slots may have changed without a word (a replica that fell behind): their
    /// entries become unverified, and their tickets void. Whether the channel is up stays as it is.
    pub fn doubted(&self, slots: &[RangeInclusive<u16>]) {
        self.each_slot(slots, SlotCell::doubt);
    }

    /// Entries held, for metrics.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The most entries held.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Invalidations and flushes since the start, for metrics.
    pub fn invalidations(&self) -> u64 {
        self.invalidations.load(Ordering::Relaxed)
    }

    /// Bytes taken, cells included, without the allocator's own.
    pub fn memory(&self) -> usize {
        self.entries.memory_used().total()
            + size_of_val(&*self.sessions)
            + size_of_val(&*self.users)
            + size_of_val(&*self.slots)
    }

    fn each_slot(&self, slots: &[RangeInclusive<u16>], change: fn(&SlotCell)) {
        for range in slots {
            let end = (usize::from(*range.end()) + 1).min(REDIS_SLOTS);
            self.slots.get(usize::from(*range.start())..end).into_iter().flatten().for_each(change);
        }
    }

    fn stamp(&self, id: SessionId, user: UserTag, slot: u16) -> Stamp {
        let session = self.session_cell(id).load(Ordering::Acquire);
        let user = self.user_cell(user).load(Ordering::Acquire);
        let SlotState { voided, link } = self.slots[usize::from(slot) % REDIS_SLOTS].state();
        Stamp { invalidations: session.wrapping_add(user).wrapping_add(voided), link }
    }

    fn session_cell(&self, id: SessionId) -> &AtomicU32 {
        &self.sessions[self.mix.of(&id.0) as usize % CELLS]
    }

    fn user_cell(&self, user: UserTag) -> &AtomicU32 {
        &self.users[user.0 as usize % CELLS]
    }

    fn user_tag(&self, user: &UserId) -> UserTag {
        UserTag(SipHasher13::new_with_key(&self.user_key).hash(user.as_str().as_bytes()))
    }
}

/// A user's id as a keyed hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct UserTag(u64);

/// One Redis slot: how often it was voided (high half), and the state of its invalidation channel (low half), which is
/// odd while the channel is lost and never the same again after a loss.
#[derive(Default)]
struct SlotCell(AtomicU64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SlotState {
    voided: u32,
    link: Link,
}

/// The state of an invalidation channel: odd while it is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Link(u32);

impl Link {
    fn is_connected(self) -> bool {
        self.0.is_multiple_of(2)
    }

    fn after(self, steps: u32) -> Link {
        Link(self.0.wrapping_add(steps))
    }
}

impl SlotCell {
    fn state(&self) -> SlotState {
        let both = self.0.load(Ordering::Acquire);
        SlotState { voided: (both >> 32) as u32, link: Link(both as u32) }
    }

    fn void(&self) {
        self.change(|state| SlotState { voided: state.voided.wrapping_add(1), ..state });
    }

    fn disconnect(&self) {
        self.change(|state| {
            // Lost once more while lost: a ticket taken in between must not pass for a newer one.
            let step = if state.link.is_connected() { 1 } else { 2 };
            SlotState { link: state.link.after(step), ..state }
        });
    }

    fn doubt(&self) {
        self.change(|state| SlotState { link: state.link.after(2), ..state });
    }

    fn connect(&self) {
        self.change(|state| SlotState { link: state.link.after(u32::from(!state.link.is_connected())), ..state });
    }

    fn change(&self, next: impl Fn(SlotState) -> SlotState) {
        let update = |both: u64| {
            let state = next(SlotState { voided: (both >> 32) as u32, link: Link(both as u32) });
            Some(u64::from(state.voided) << 32 | u64::from(state.link.0))
        };
        // It always has a next value, so it cannot fail.
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, update);
    }
}

/// Two random words to mix ids with. Ids are drawn at random and only signed ones get here, so a multiplication is as
/// good as SipHash and costs a third of it.
#[derive(Clone, Copy)]
struct MixKey(u64, u64);

impl MixKey {
    fn of(self, bytes: &[u8]) -> u64 {
        let mut mix = self.build_hasher();
        mix.write(bytes);
        mix.finish()
    }
}

impl BuildHasher for MixKey {
    type Hasher = Mix;
    fn build_hasher(&self) -> Mix {
        Mix { state: self.0, factor: self.1 | 1 }
    }
}

struct Mix {
    state: u64,
    factor: u64,
}

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            let product = u128::from(self.state ^ u64::from_le_bytes(word)) * u128::from(self.factor);
            self.state = product as u64 ^ (product >> 64) as u64;
        }
    }

    fn finish(&self) -> u64 {
        self.state
    }
}

#[cfg(test)]
mod simulation;
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
            |c| c.disconnected(&[0..=16_383]),
            |c| c.flush_slots(&[0..=16_383]),
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
        cache.disconnected(&[0..=16_383]);
        assert!(matches!(cache.find(ID, &user(), Timestamp(1)), Found::Unverified(_)));
        let ticket = cache.begin(ID, &user());
        assert!(!cache.fill(&ticket, &loaded(0)), "nobody would tell us of a revocation");
        cache.connected(&[0..=16_383]);
        assert!(matches!(cache.find(ID, &user(), Timestamp(1)), Found::Unverified(_)));
        filled(&cache);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_doubt_makes_entries_unverified_and_tickets_void_and_leaves_the_channel_as_it_is() {
        let cache = cache();
        filled(&cache);
        let ticket = cache.begin(ID, &user());
        cache.doubted(&[0..=16_383]);
        assert!(matches!(cache.find(ID, &user(), Timestamp(1)), Found::Unverified(_)));
        assert!(!cache.fill(&ticket, &loaded(0)));
        filled(&cache);
        cache.disconnected(&[0..=16_383]);
        cache.doubted(&[0..=16_383]);
        assert!(!cache.fill(&cache.begin(ID, &user()), &loaded(0)), "still lost");
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn what_was_kept_holds_without_a_place_in_the_cache_until_an_invalidation_or_a_minute_later() {
        for invalidate in [
            (|c: &NearCache| c.invalidate(ID)) as fn(&NearCache),
            |c| c.invalidate_user(&user()),
            NearCache::flush,
            |c| c.disconnected(&[0..=16_383]),
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
    fn a_lost_node_leaves_the_sessions_of_other_slots_verified() {
        let cache = cache();
        let slot = session_slot(ID);
        filled(&cache);
        let others = [0..=slot - 1, slot + 1..=16_383];
        cache.disconnected(&others);
        cache.flush_slots(&others);
        assert!(matches!(cache.find(ID, &user(), Timestamp(1)), Found::Verified(_)));
        cache.disconnected(&[slot..=slot]);
        cache.connected(&others);
        assert!(matches!(cache.find(ID, &user(), Timestamp(1)), Found::Unverified(_)));
        assert!(!cache.fill(&cache.begin(ID, &user()), &loaded(0)), "its own slot is still lost");
        cache.connected(&[slot..=slot]);
        filled(&cache);
        cache.flush_slots(&[slot..=slot]);
        assert_eq!(cache.find(ID, &user(), Timestamp(1)), Found::Nothing);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_ticket_from_before_or_during_a_loss_is_void_after_it() {
        let all = [0..=16_383];
        let cache = cache();
        let before = cache.begin(ID, &user());
        cache.disconnected(&all);
        let during = cache.begin(ID, &user());
        cache.disconnected(&all);
        cache.connected(&all);
        assert!(!cache.fill(&before, &loaded(0)));
        assert!(!cache.fill(&during, &loaded(0)));
        filled(&cache);
        cache.connected(&all);
        assert!(matches!(cache.find(ID, &user(), Timestamp(1)), Found::Verified(_)), "saying it twice changes nothing");
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_name_of_a_changed_key_voids_what_rests_on_it_and_nothing_else() {
        for name in [format!("session:{ID}"), format!("{{session:{ID}}}:rt"), "{user:42}:epoch".to_owned()] {
            let cache = cache();
            filled(&cache);
            for other in ["{user:42}:sessions", "session:nonsense", "other", "", "{user:43}:epoch"] {
                cache.invalidate_key(other.as_bytes());
            }
            assert!(matches!(cache.find(ID, &user(), Timestamp(1)), Found::Verified(_)), "{name}");
            let ticket = cache.begin(ID, &user());
            cache.invalidate_key(name.as_bytes());
            assert_eq!(cache.find(ID, &user(), Timestamp(1)), Found::Nothing, "{name}");
            assert!(!cache.fill(&ticket, &loaded(0)), "{name}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_range_ends_at_the_last_slot_and_an_empty_one_means_nothing() {
        let cache = cache();
        filled(&cache);
        #[allow(clippy::reversed_empty_ranges)]
        cache.disconnected(&[16_384..=u16::MAX, 9..=4]);
        assert!(matches!(cache.find(ID, &user(), Timestamp(1)), Found::Verified(_)));
        cache.disconnected(&[0..=u16::MAX]);
        assert!(matches!(cache.find(ID, &user(), Timestamp(1)), Found::Unverified(_)));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_session_that_lives_longer_than_an_entry_can_say_is_kept_like_any_other() {
        let cache = cache();
        for days in [1, 49, 50, 3_650] {
            let expires_at = Timestamp(1) + Millis::from_secs(days * 86_400);
            let session = LoadedSession { expires_at, ..loaded(1) };
            assert!(cache.fill(&cache.begin(ID, &user()), &session));
            let Found::Verified(entry) = cache.find(ID, &user(), Timestamp(60_000)) else { panic!("{days}") };
            assert!(entry.expires_at > Timestamp(1) + NEAR_MAX_AGE && entry.expires_at <= expires_at);
        }
        let short = LoadedSession { expires_at: Timestamp(1_234), ..loaded(1) };
        assert!(cache.fill(&cache.begin(ID, &user()), &short));
        let Found::Verified(entry) = cache.find(ID, &user(), Timestamp(2)) else { panic!() };
        assert_eq!(entry.expires_at, Timestamp(1_234), "to the millisecond");
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn an_entry_leaves_room_in_a_line_of_memory_for_its_key_and_the_caches_own_words() {
        assert_eq!(size_of::<Kept>(), 36);
    }
}
