//! The shard map: an explicit table from slot to shard, with an epoch that never goes back and a checksum that shows
//! when two nodes disagree.
//!
//! The table is explicit because hashing slots onto shards leaves shares uneven by some percent, and because growing
//! then means moving named slots, one phase at a time, not recomputing everyone's place.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use super::hash::{HashKind, SLOTS, ShardKey, Slot, photo_hash, python_hash, python_slot, sip_slot, user_hash};
use super::photo::{Month, PhotoShard};
use crate::identity::UserId;

/// As many shards as there are slots.
pub const MAX_SHARDS: u16 = SLOTS;

/// The longest shard name in bytes.
const MAX_NAME: usize = 64;

/// The version of a map. The first is 1; a change is always a higher one, a rollback included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A shard's name: 1–64 of `A-Za-z0-9._-`, cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardName(Arc<str>);

/// A text that cannot name a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("must be 1 to 64 of the characters A-Z, a-z, 0-9, '.', '_' and '-'")]
pub struct ShardNameError;

impl ShardName {
    pub fn new(text: &str) -> Result<ShardName, ShardNameError> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if text.is_empty() || text.len() > MAX_NAME || !text.bytes().all(fits) {
            return Err(ShardNameError);
        }
        Ok(ShardName(text.into()))
    }

    /// `shard_{number}`: the original's name of a user shard.
    pub fn user(number: u16) -> ShardName {
        ShardName(format!("shard_{number}").into())
    }

    pub(super) fn photo(shard: &PhotoShard) -> ShardName {
        ShardName(shard.to_string().into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ShardName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for ShardName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Where a moving slot stands. A slot that is not moving has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// A driver copies; requests go to the old shard.
    Copying,
    /// The old shard applies each write to the new one before it answers.
    DualWrite,
    /// Nobody is asked: requests are held for a moment.
    Cutover,
    /// Requests go to the new shard, which reads the old one on a miss.
    Drain,
}

impl Phase {
    pub const ALL: [Phase; 4] = [Phase::Copying, Phase::DualWrite, Phase::Cutover, Phase::Drain];

    /// The name in JSON, logs and the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Copying => "copying",
            Phase::DualWrite => "dual_write",
            Phase::Cutover => "cutover",
            Phase::Drain => "drain",
        }
    }

    pub fn from_name(name: &str) -> Option<Phase> {
        Phase::ALL.into_iter().find(|phase| phase.name() == name)
    }

    /// The phase after this one; `None` after drain, when the slot is stable again.
    pub const fn next(self) -> Option<Phase> {
        match self {
            Phase::Copying => Some(Phase::DualWrite),
            Phase::DualWrite => Some(Phase::Cutover),
            Phase::Cutover => Some(Phase::Drain),
            Phase::Drain => None,
        }
    }
}

/// One slot on its way from one shard to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotMove {
    pub from: ShardName,
    pub to: ShardName,
    pub phase: Phase,
}

/// A map as every node holds it: immutable. `change` makes the next one, `encoding` reads and writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardMap {
    pub(super) epoch: Epoch,
    pub(super) hash: HashKind,
    pub(super) key: ShardKey,
    /// How many of the hash's values are slots: 16,384, or S = count₁·⌊16384/count₁⌋ of the first epoch for `python`.
    pub(super) modulus: u16,
    /// User shards in order of their numbers; `owners` points into it.
    pub(super) shards: Vec<ShardName>,
    /// Exactly 16,384 indices. A moving slot's owner is the old shard up to cutover, the new one from drain on.
    pub(super) owners: Vec<u16>,
    pub(super) pins: BTreeMap<UserId, ShardName>,
    pub(super) moves: BTreeMap<Slot, SlotMove>,
    /// How many sub-shards a hot month has; a month without an entry has none.
    pub(super) months: BTreeMap<Month, u16>,
    /// SHA-256 over the canonical bytes, see `encoding`.
    pub(super) checksum: [u8; 32],
}

/// Where a user's requests go at this epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement<'a> {
    /// The slot of the user's hash, also for a pinned user, who does not follow it.
    pub slot: Slot,
    /// The shard to ask. While `held` it is the one that will be asked afterwards.
    pub shard: &'a ShardName,
    /// Copying and dual_write: where the slot is moving to (`next=` to the origin).
    pub next: Option<&'a ShardName>,
    /// Drain: where the slot came from (`previous=` to the origin).
    pub previous: Option<&'a ShardName>,
    /// Cutover: the request waits for a newer map and is then placed again.
    pub held: bool,
    /// The user is pinned, so slot moves do not concern them.
    pub pinned: bool,
}

/// Why a user has no place: the client's fault, 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PlaceError {
    #[error("this deployment's user ids are integers of at most 39 digits in canonical decimal form")]
    NotAnInteger,
}

/// What to do with a map that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adopt {
    /// Take it.
    Newer,
    /// It is the one at hand.
    Same,
    /// Keep the one at hand: epochs never go back.
    Older,
    /// Keep the one at hand and raise `shard_map_conflict`: one epoch, two contents, or another hash or key.
    Conflict,
}

impl ShardMap {
    /// Epoch 1: `shard_0` … `shard_{count−1}`, with every slot given out evenly (a difference of one slot at most).
    ///
    /// `count` is brought into `1..=16384`. Under `siphash24` each shard owns one run of slots; under `python` slot s
    /// belongs to s mod count, which is the original's placement exactly.
    pub fn first(hash: HashKind, key: ShardKey, count: u16, pins: BTreeMap<UserId, ShardName>) -> ShardMap {
        let count = count.clamp(1, MAX_SHARDS);
        let (modulus, owners) = match hash {
            HashKind::Siphash24 => {
                (SLOTS, (0..SLOTS).map(|s| (u32::from(s) * u32::from(count) / u32::from(SLOTS)) as u16).collect())
            }
            HashKind::Python => (count * (SLOTS / count), (0..SLOTS).map(|s| s % count).collect()),
        };
        let map = ShardMap {
            epoch: Epoch(1),
            hash,
            key,
            modulus,
            shards: (0..count).map(ShardName::user).collect(),
            owners,
            pins,
            moves: BTreeMap::new(),
            months: BTreeMap::new(),
            checksum: [0; 32],
        };
        map.sealed()
    }

    /// Where this user's requests go.
    pub fn place(&self, user: &UserId) -> Result<Placement<'_>, PlaceError> {
        let slot = self.slot(user)?;
        let still = |shard, pinned| Placement { slot, shard, next: None, previous: None, held: false, pinned };
        if !self.pins.is_empty()
            && let Some(shard) = self.pins.get(user)
        {
            return Ok(still(shard, true));
        }
        let Some(moving) = self.moves.get(&slot) else {
            return Ok(still(self.owner(slot), false));
        };
        let (from, to) = (&moving.from, &moving.to);
        Ok(match moving.phase {
            Phase::Copying | Phase::DualWrite => Placement { next: Some(to), ..still(from, false) },
            Phase::Cutover => Placement { held: true, ..still(to, false) },
            Phase::Drain => Placement { previous: Some(from), ..still(to, false) },
        })
    }

    /// The slot of a user's hash.
    pub fn slot(&self, user: &UserId) -> Result<Slot, PlaceError> {
        match self.hash {
            HashKind::Siphash24 => Ok(sip_slot(user_hash(&self.key, user))),
            HashKind::Python => {
                let hash = python_hash(user.as_str()).ok_or(PlaceError::NotAnInteger)?;
                Ok(python_slot(hash, self.modulus))
            }
        }
    }

    /// The shard that owns a slot: the old one up to cutover, the new one from drain on.
    pub fn owner(&self, slot: Slot) -> &ShardName {
        // Both tables are checked whenever a map is made: 16,384 owners, each an index into a list that is not empty.
        let owner = self.owners.get(slot.index()).copied().unwrap_or(0);
        &self.shards[usize::from(owner).min(self.shards.len() - 1)]
    }

    /// The photo shard of a path in that month: one of the month's sub-shards when it has some.
    pub fn place_photo(&self, month: Month, decoded_path: &str) -> ShardName {
        let sub = self.months.get(&month).map(|count| {
            let hash = photo_hash(&self.key, decoded_path);
            (hash % u64::from((*count).max(1))) as u16
        });
        ShardName::photo(&PhotoShard { month, sub })
    }

    /// The shards of one month: its sub-shards in order when it has some, else the month's own.
    pub fn photo_shards(&self, month: Month) -> Vec<ShardName> {
        match self.months.get(&month) {
            None => vec![ShardName::photo(&PhotoShard { month, sub: None })],
            Some(count) => (0..*count).map(|sub| ShardName::photo(&PhotoShard { month, sub: Some(sub) })).collect(),
        }
    }

    /// Whether `new` may take the place of `self`.
    pub fn adopt(&self, new: &ShardMap) -> Adopt {
        if (self.hash, self.key, self.modulus) != (new.hash, new.key, new.modulus) {
            return Adopt::Conflict;
        }
        match new.epoch.cmp(&self.epoch) {
            std::cmp::Ordering::Greater => Adopt::Newer,
            std::cmp::Ordering::Less => Adopt::Older,
            std::cmp::Ordering::Equal if new.checksum == self.checksum => Adopt::Same,
            std::cmp::Ordering::Equal => Adopt::Conflict,
        }
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub fn hash(&self) -> HashKind {
        self.hash
    }

    pub fn key(&self) -> &ShardKey {
        &self.key
    }

    /// User shards, in order of their numbers.
    pub fn shards(&self) -> &[ShardName] {
        &self.shards
    }

    pub fn count(&self) -> u16 {
        self.shards.len() as u16
    }

    /// How many slots the hash reaches: 16,384, or fewer under `python`.
    pub fn modulus(&self) -> u16 {
        self.modulus
    }

    pub fn pins(&self) -> &BTreeMap<UserId, ShardName> {
        &self.pins
    }

    pub fn moves(&self) -> &BTreeMap<Slot, SlotMove> {
        &self.moves
    }

    pub fn months(&self) -> &BTreeMap<Month, u16> {
        &self.months
    }

    pub fn checksum(&self) -> &[u8; 32] {
        &self.checksum
    }

    /// How many of the slots that the hash reaches each shard owns, in the order of [`ShardMap::shards`].
    pub fn slot_counts(&self) -> Vec<u16> {
        let mut counts = vec![0; self.shards.len()];
        for owner in self.owners.iter().take(usize::from(self.modulus)) {
            if let Some(count) = counts.get_mut(usize::from(*owner)) {
                *count += 1;
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::Entropy;
    use wasm_bindgen_test::wasm_bindgen_test;

    const KEY: ShardKey = ShardKey([7; 16]);

    fn map(hash: HashKind, count: u16) -> ShardMap {
        ShardMap::first(hash, KEY, count, BTreeMap::new())
    }

    fn user(text: &str) -> UserId {
        UserId::new(text).unwrap()
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_first_map_gives_every_shard_the_same_number_of_slots_give_or_take_one() {
        for hash in [HashKind::Siphash24, HashKind::Python] {
            for count in [1, 2, 3, 7, 16, 17, 1000, 5000, 16_384] {
                let counts = map(hash, count).slot_counts();
                assert_eq!(counts.len(), usize::from(count));
                let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
                assert!(most - least <= 1, "{hash:?} {count}: {least}..{most}");
                assert!(*least >= 1);
            }
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_python_map_places_every_integer_where_the_original_did() {
        let mut entropy = Entropy::for_tests(3);
        for count in [1u16, 2, 3, 5, 16, 100, 9999] {
            let map = map(HashKind::Python, count);
            for _ in 0..200 {
                let number = (entropy.next_u64() >> entropy.below(60)) as i64 % ((1 << 61) - 1);
                let hash = if number == -1 { -2 } else { number };
                let expected = format!("shard_{}", hash.rem_euclid(i64::from(count)));
                assert_eq!(map.place(&user(&number.to_string())).unwrap().shard.as_str(), expected);
            }
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_python_map_refuses_identities_that_are_not_integers_even_when_pinned() {
        let pins = BTreeMap::from([(user("alice"), ShardName::user(1)), (user("42"), ShardName::user(1))]);
        let map = ShardMap::first(HashKind::Python, KEY, 2, pins);
        assert_eq!(map.place(&user("alice")), Err(PlaceError::NotAnInteger));
        let pinned = map.place(&user("42")).unwrap();
        assert_eq!((pinned.shard.as_str(), pinned.pinned), ("shard_1", true));
        assert_eq!(map.place(&user("44")).unwrap().shard.as_str(), "shard_0");
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn keyed_placement_spreads_sequential_users() {
        let map = map(HashKind::Siphash24, 4);
        let mut shares = BTreeMap::new();
        for number in 0..4000 {
            *shares.entry(map.place(&user(&number.to_string())).unwrap().shard.clone()).or_insert(0) += 1;
        }
        assert!(shares.values().all(|share| (850..1150).contains(share)), "{shares:?}");
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn epochs_never_go_back_and_one_epoch_has_one_content() {
        let one = map(HashKind::Siphash24, 2);
        let two = one.with_pin(user("42"), Some(ShardName::user(0))).unwrap();
        let other_two = one.with_pin(user("42"), Some(ShardName::user(1))).unwrap();
        assert_eq!(one.adopt(&two), Adopt::Newer);
        assert_eq!(two.adopt(&two.clone()), Adopt::Same);
        assert_eq!(two.adopt(&one), Adopt::Older);
        assert_eq!(two.adopt(&other_two), Adopt::Conflict);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_map_under_another_key_or_hash_is_never_adopted() {
        let one = map(HashKind::Siphash24, 2);
        let pinned = |map: &ShardMap| map.with_pin(user("42"), Some(ShardName::user(0))).unwrap();
        let other_key = pinned(&ShardMap::first(HashKind::Siphash24, ShardKey([8; 16]), 2, BTreeMap::new()));
        let other_hash = pinned(&map(HashKind::Python, 2));
        assert_eq!(one.adopt(&other_key), Adopt::Conflict);
        assert_eq!(one.adopt(&other_hash), Adopt::Conflict);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_shard_name_has_only_harmless_characters() {
        assert!(ShardName::new("shard_2026_3").is_ok());
        for bad in ["", "a b", "a/b", "ü", "a\n", &"x".repeat(65)] {
            assert_eq!(ShardName::new(bad), Err(ShardNameError), "{bad:?}");
        }
    }
}
