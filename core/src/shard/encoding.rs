//! How a map is written: canonical bytes, which one map has exactly one of and which the checksum covers, and JSON,
//! which the stores and the edge read. Both hold the key: who stores or sends them keeps them private.
//!
//! Canonical bytes, all numbers big-endian: `"EKSM"`, version u8 = 1, epoch u64, hash u8 (1 siphash24, 2 python),
//! key [16], modulus u16, shard count u16, each shard's name (length u8, bytes), 16,384 owners u16, pin count u32, each
//! pin (identity length u8, bytes, shard name length u8, bytes) in order of the identities' bytes, move count u16, each
//! move (slot u16, from u16, to u16, phase u8 = 0–3) in order of slots, month count u16, each month (year u16, month u8,
//! sub-shards u16) in order of time. The checksum is SHA-256 over these bytes and follows them in `to_bytes`.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;

use super::hash::{HashKind, SLOTS, ShardKey, Slot};
use super::map::{Epoch, MAX_SHARDS, Phase, ShardMap, ShardName, SlotMove};
use super::photo::{MAX_SUB_SHARDS, Month};
use crate::identity::UserId;

const MAGIC: &[u8; 5] = b"EKSM\x01";

/// Why bytes or JSON are not a shard map.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MapError {
    #[error("not a shard map of a known version")]
    Format,
    #[error("cut short, or with bytes left over")]
    Length,
    #[error("not the JSON of a shard map: {0}")]
    Json(String),
    #[error("the checksum does not fit the content")]
    Checksum,
    #[error("{0} is not possible")]
    Value(&'static str),
}

impl ShardMap {
    /// The canonical bytes and the checksum after them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.canonical();
        out.extend_from_slice(&self.checksum);
        out
    }

    /// Reads what [`ShardMap::to_bytes`] wrote; anything that is not canonical is refused.
    pub fn from_bytes(bytes: &[u8]) -> Result<ShardMap, MapError> {
        let (content, checksum) = bytes.split_last_chunk::<32>().ok_or(MapError::Length)?;
        let mut reader = Reader(content);
        if reader.take::<5>()? != *MAGIC {
            return Err(MapError::Format);
        }
        if !bool::from(Sha256::digest(content).as_slice().ct_eq(checksum)) {
            return Err(MapError::Checksum);
        }
        let epoch = Epoch(u64::from_be_bytes(reader.take()?));
        let hash = match reader.u8()? {
            1 => HashKind::Siphash24,
            2 => HashKind::Python,
            _ => return Err(MapError::Value("hash")),
        };
        let key = ShardKey(reader.take()?);
        let modulus = reader.u16()?;
        let mut shards = Vec::new();
        for _ in 0..reader.u16()? {
            shards.push(reader.name()?);
        }
        let owners = (0..SLOTS).map(|_| reader.u16()).collect::<Result<Vec<_>, _>>()?;
        let mut pins = BTreeMap::new();
        for _ in 0..u32::from_be_bytes(reader.take()?) {
            let user = UserId::new(reader.text()?).map_err(|_| MapError::Value("a pinned identity"))?;
            pins.insert(user, reader.name()?);
        }
        let mut moves = BTreeMap::new();
        for _ in 0..reader.u16()? {
            let slot = Slot::new(reader.u16()?).ok_or(MapError::Value("a moving slot"))?;
            let (from, to) = (named(&shards, reader.u16()?)?, named(&shards, reader.u16()?)?);
            let phase = *Phase::ALL.get(usize::from(reader.u8()?)).ok_or(MapError::Value("a phase"))?;
            moves.insert(slot, SlotMove { from, to, phase });
        }
        let mut months = BTreeMap::new();
        for _ in 0..reader.u16()? {
            let month = Month::new(reader.u16()?, reader.u8()?).ok_or(MapError::Value("a month"))?;
            months.insert(month, reader.u16()?);
        }
        if !reader.0.is_empty() {
            return Err(MapError::Length);
        }
        let map = ShardMap { epoch, hash, key, modulus, shards, owners, pins, moves, months, checksum: *checksum }
            .checked()?;
        // A duplicate or an entry out of order would be a second writing of the same map.
        if map.canonical() == content { Ok(map) } else { Err(MapError::Format) }
    }

    /// JSON with the owners as base64 of the u16 table. Holds the key and the checksum.
    pub fn to_json(&self) -> String {
        let owners: Vec<u8> = self.owners.iter().flat_map(|owner| owner.to_be_bytes()).collect();
        let json = MapJson {
            epoch: self.epoch.0,
            hash: self.hash.name().to_owned(),
            key: self.key.to_hex(),
            count: self.count(),
            modulus: self.modulus,
            shards: self.shards.iter().map(ToString::to_string).collect(),
            owners: STANDARD.encode(owners),
            pins: self.pins.iter().map(|(user, shard)| (user.to_string(), shard.to_string())).collect(),
            moves: self.moves.iter().map(|(slot, moving)| (slot.number(), MoveJson::from(moving))).collect(),
            months: self.months.iter().map(|(month, count)| (month.to_string(), *count)).collect(),
            checksum: hex(&self.checksum),
        };
        // Strings and numbers only: writing them cannot fail.
        serde_json::to_string(&json).unwrap_or_default()
    }

    /// Reads what [`ShardMap::to_json`] wrote and verifies the checksum.
    pub fn from_json(text: &str) -> Result<ShardMap, MapError> {
        let json: MapJson = serde_json::from_str(text).map_err(|error| MapError::Json(error.to_string()))?;
        let name = |text: &str| ShardName::new(text).map_err(|_| MapError::Value("a shard's name"));
        let owners = STANDARD.decode(&json.owners).map_err(|_| MapError::Value("owners"))?;
        if owners.len() != 2 * usize::from(SLOTS) || json.shards.len() != usize::from(json.count) {
            return Err(MapError::Length);
        }
        let mut map = ShardMap {
            epoch: Epoch(json.epoch),
            hash: HashKind::from_name(&json.hash).ok_or(MapError::Value("hash"))?,
            key: ShardKey::from_hex(&json.key).ok_or(MapError::Value("key"))?,
            modulus: json.modulus,
            shards: json.shards.iter().map(|text| name(text)).collect::<Result<_, _>>()?,
            owners: owners.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect(),
            pins: BTreeMap::new(),
            moves: BTreeMap::new(),
            months: BTreeMap::new(),
            checksum: [0; 32],
        };
        for (user, shard) in &json.pins {
            let user = UserId::new(user).map_err(|_| MapError::Value("a pinned identity"))?;
            map.pins.insert(user, name(shard)?);
        }
        for (slot, moving) in &json.moves {
            let slot = Slot::new(*slot).ok_or(MapError::Value("a moving slot"))?;
            let phase = Phase::from_name(&moving.phase).ok_or(MapError::Value("a phase"))?;
            map.moves.insert(slot, SlotMove { from: name(&moving.from)?, to: name(&moving.to)?, phase });
        }
        for (month, count) in &json.months {
            map.months.insert(Month::parse(month).ok_or(MapError::Value("a month"))?, *count);
        }
        let map = map.checked()?.sealed();
        if hex(&map.checksum) == json.checksum { Ok(map) } else { Err(MapError::Checksum) }
    }

    /// With the checksum of its content.
    pub(super) fn sealed(mut self) -> ShardMap {
        self.checksum = Sha256::digest(self.canonical()).into();
        self
    }

    fn canonical(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(MAGIC.len() + 64 + 2 * usize::from(SLOTS) + 16 * self.shards.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.epoch.0.to_be_bytes());
        out.push(match self.hash {
            HashKind::Siphash24 => 1,
            HashKind::Python => 2,
        });
        out.extend_from_slice(&self.key.0);
        out.extend_from_slice(&self.modulus.to_be_bytes());
        out.extend_from_slice(&self.count().to_be_bytes());
        let text = |out: &mut Vec<u8>, text: &str| {
            out.push(text.len() as u8);
            out.extend_from_slice(text.as_bytes());
        };
        for shard in &self.shards {
            text(&mut out, shard.as_str());
        }
        for owner in &self.owners {
            out.extend_from_slice(&owner.to_be_bytes());
        }
        out.extend_from_slice(&(self.pins.len() as u32).to_be_bytes());
        for (user, shard) in &self.pins {
            text(&mut out, user.as_str());
            text(&mut out, shard.as_str());
        }
        out.extend_from_slice(&(self.moves.len() as u16).to_be_bytes());
        let index = |name: &ShardName| self.shards.iter().position(|shard| shard == name).unwrap_or(usize::MAX) as u16;
        for (slot, moving) in &self.moves {
            for number in [slot.number(), index(&moving.from), index(&moving.to)] {
                out.extend_from_slice(&number.to_be_bytes());
            }
            out.push(moving.phase as u8);
        }
        out.extend_from_slice(&(self.months.len() as u16).to_be_bytes());
        for (month, count) in &self.months {
            out.extend_from_slice(&month.year().to_be_bytes());
            out.push(month.number());
            out.extend_from_slice(&count.to_be_bytes());
        }
        out
    }

    /// What every other function relies on.
    fn checked(self) -> Result<ShardMap, MapError> {
        let shards = self.shards.len();
        let unique: std::collections::BTreeSet<_> = self.shards.iter().collect();
        if shards == 0 || shards > usize::from(MAX_SHARDS) || unique.len() != shards {
            return Err(MapError::Value("the list of shards"));
        }
        if self.epoch.0 == 0 {
            return Err(MapError::Value("epoch 0"));
        }
        let whole = self.hash == HashKind::Siphash24;
        if self.modulus == 0 || self.modulus > SLOTS || (whole && self.modulus != SLOTS) {
            return Err(MapError::Value("modulus"));
        }
        if self.owners.len() != usize::from(SLOTS) || self.owners.iter().any(|owner| usize::from(*owner) >= shards) {
            return Err(MapError::Value("an owner"));
        }
        for (slot, moving) in &self.moves {
            let owner = if moving.phase == Phase::Drain { &moving.to } else { &moving.from };
            let known = unique.contains(&moving.from) && unique.contains(&moving.to);
            if slot.number() >= self.modulus || !known || moving.from == moving.to || self.owner(*slot) != owner {
                return Err(MapError::Value("a move"));
            }
        }
        if self.months.len() > usize::from(u16::MAX)
            || self.months.values().any(|count| *count == 0 || *count > MAX_SUB_SHARDS)
        {
            return Err(MapError::Value("a month's sub-shards"));
        }
        Ok(self)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MapJson {
    epoch: u64,
    hash: String,
    key: String,
    count: u16,
    modulus: u16,
    shards: Vec<String>,
    owners: String,
    pins: BTreeMap<String, String>,
    moves: BTreeMap<u16, MoveJson>,
    months: BTreeMap<String, u16>,
    checksum: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MoveJson {
    from: String,
    to: String,
    phase: String,
}

impl From<&SlotMove> for MoveJson {
    fn from(moving: &SlotMove) -> MoveJson {
        MoveJson { from: moving.from.to_string(), to: moving.to.to_string(), phase: moving.phase.name().to_owned() }
    }
}

/// Takes bytes from the front, never past the end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], MapError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(MapError::Length)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, MapError> {
        Ok(self.take::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, MapError> {
        Ok(u16::from_be_bytes(self.take()?))
    }

    fn text(&mut self) -> Result<&'a str, MapError> {
        let length = usize::from(self.u8()?);
        let (head, rest) = self.0.split_at_checked(length).ok_or(MapError::Length)?;
        self.0 = rest;
        std::str::from_utf8(head).map_err(|_| MapError::Value("a text that is not UTF-8"))
    }

    fn name(&mut self) -> Result<ShardName, MapError> {
        ShardName::new(self.text()?).map_err(|_| MapError::Value("a shard's name"))
    }
}

fn named(shards: &[ShardName], index: u16) -> Result<ShardName, MapError> {
    shards.get(usize::from(index)).cloned().ok_or(MapError::Value("a move's shard"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::Entropy;
    use wasm_bindgen_test::wasm_bindgen_test;

    fn eventful(hash: HashKind) -> ShardMap {
        let user = |text: &str| UserId::new(text).unwrap();
        let pins = BTreeMap::from([(user("42"), ShardName::user(1)), (user("ü"), ShardName::new("vip").unwrap())]);
        let map = ShardMap::first(hash, ShardKey([9; 16]), 3, pins);
        let slots = [Slot::new(0).unwrap(), Slot::new(9).unwrap()];
        let map = map.begin_moves(&[(slots[0], ShardName::user(3)), (slots[1], ShardName::user(2))]).unwrap();
        let map = map.advance(&slots[..1], Phase::DualWrite).unwrap();
        map.with_sub_shards(Month::parse("2026-03").unwrap(), 4).unwrap()
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_map_survives_bytes_and_json_unchanged() {
        for hash in [HashKind::Siphash24, HashKind::Python] {
            let map = eventful(hash);
            assert_eq!(ShardMap::from_bytes(&map.to_bytes()).unwrap(), map);
            assert_eq!(ShardMap::from_json(&map.to_json()).unwrap(), map);
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_first_map_of_two_shards_has_the_published_checksum() {
        let map = ShardMap::first(HashKind::Python, ShardKey([0; 16]), 2, BTreeMap::new());
        // SHA-256 of the documented bytes, put together by a separate script.
        assert_eq!(hex(map.checksum()), "1a1068946beed8a2aa1c9783bcb5e84e18398136c3add46f1b4b1685e6bd5224");
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn any_flipped_bit_and_any_cut_is_refused() {
        let bytes = eventful(HashKind::Siphash24).to_bytes();
        let mut entropy = Entropy::for_tests(11);
        for _ in 0..200 {
            let mut broken = bytes.clone();
            let at = entropy.below(bytes.len() as u64) as usize;
            broken[at] ^= 1 << entropy.below(8);
            assert!(ShardMap::from_bytes(&broken).is_err(), "byte {at}");
            assert!(ShardMap::from_bytes(&bytes[..at]).is_err(), "cut at {at}");
        }
        assert_eq!(ShardMap::from_bytes(&[]), Err(MapError::Length));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn content_that_cannot_be_is_refused_even_with_a_good_checksum() {
        fn refused(what: &'static str, damage: impl FnOnce(&mut ShardMap)) {
            let mut map = eventful(HashKind::Siphash24);
            damage(&mut map);
            let map = map.sealed();
            assert_eq!(ShardMap::from_bytes(&map.to_bytes()), Err(MapError::Value(what)));
            assert_eq!(ShardMap::from_json(&map.to_json()), Err(MapError::Value(what)));
        }
        refused("an owner", |map| map.owners[3] = 77);
        refused("modulus", |map| map.modulus = 100);
        refused("epoch 0", |map| map.epoch = Epoch(0));
        refused("the list of shards", |map| map.shards[1] = map.shards[0].clone());
        refused("a month's sub-shards", |map| map.months.values_mut().for_each(|count| *count = 0));
        refused("a move", |map| map.moves.values_mut().for_each(|moving| moving.phase = Phase::Drain));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn json_whose_content_was_edited_is_refused() {
        let json = eventful(HashKind::Siphash24).to_json();
        let edited = json.replace("\"42\":\"shard_1\"", "\"42\":\"shard_0\"");
        assert_ne!(json, edited);
        assert_eq!(ShardMap::from_json(&edited), Err(MapError::Checksum));
        assert!(matches!(ShardMap::from_json("{}"), Err(MapError::Json(_))));
    }
}
