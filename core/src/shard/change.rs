//! The next map from the current one. Every change is a new map with the next epoch; the table moves slot by slot,
//! through the phases, and can be taken back until drain.

use thiserror::Error;

use super::hash::Slot;
use super::map::{Epoch, MAX_SHARDS, Phase, ShardMap, ShardName, SlotMove};
use super::photo::{MAX_SUB_SHARDS, Month};
use crate::identity::UserId;

/// Why a change makes no map.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChangeError {
    #[error("slot {0} is already moving")]
    Moving(Slot),
    #[error("slot {0} is not moving")]
    NotMoving(Slot),
    #[error("slot {slot} is in {phase}, not in the phase before", phase = .phase.name())]
    Phase { slot: Slot, phase: Phase },
    #[error("slot {0} is already drained from its old shard: move it back instead")]
    PastCutover(Slot),
    #[error("slot {0} already belongs to that shard")]
    AlreadyThere(Slot),
    #[error("the hash never gives slot {0}")]
    Unreachable(Slot),
    #[error("{0} is not one of this map's shards")]
    UnknownShard(ShardName),
    #[error("{0} still owns slots or takes part in a move")]
    InUse(ShardName),
    #[error("there are 1 to {MAX_SHARDS} shards")]
    Count,
    #[error("a month has 1 to {MAX_SUB_SHARDS} sub-shards, and never fewer than before")]
    SubShards,
    #[error("nothing would change")]
    Nothing,
}

impl ShardMap {
    /// The fewest slot moves that leave every slot evenly on `count` shards: shards that stay give up only what they
    /// have too much of, in order of slot numbers. Empty when the map is even already.
    ///
    /// Adding the 17th shard moves 1/17 of the slots. Slots that are moving now count where they are going.
    pub fn plan(&self, count: u16) -> Result<Vec<(Slot, ShardName)>, ChangeError> {
        if count == 0 || count > MAX_SHARDS {
            return Err(ChangeError::Count);
        }
        let homes: Vec<(Slot, usize)> = (0..self.modulus()).filter_map(Slot::new).map(|s| (s, self.home(s))).collect();
        let count = usize::from(count);
        let mut held = vec![0usize; count.max(self.shards.len())];
        for (_, home) in &homes {
            held[*home] += 1;
        }
        // The remainder goes to those who hold most, so that they give up one slot fewer.
        let (share, extra) = (homes.len() / count, homes.len() % count);
        let mut by_held: Vec<usize> = (0..count).collect();
        by_held.sort_by_key(|shard| std::cmp::Reverse(held[*shard]));
        let mut quota = vec![0usize; held.len()];
        for (rank, shard) in by_held.into_iter().enumerate() {
            quota[shard] = share + usize::from(rank < extra);
        }
        let mut room: Vec<usize> = quota.iter().zip(&held).map(|(quota, held)| quota.saturating_sub(*held)).collect();
        let mut taker = 0;
        let mut plan = Vec::new();
        for (slot, home) in homes {
            if held[home] <= quota[home] || self.moves.contains_key(&slot) {
                continue;
            }
            while taker < room.len() && room[taker] == 0 {
                taker += 1;
            }
            let Some(left) = room.get_mut(taker) else { break };
            *left -= 1;
            held[home] -= 1;
            plan.push((slot, self.shard_name(taker)));
        }
        Ok(plan)
    }

    /// Starts moving these slots (copying). Shards the map does not have yet are added in order of their numbers.
    pub fn begin_moves(&self, moves: &[(Slot, ShardName)]) -> Result<ShardMap, ChangeError> {
        self.changed(|next| {
            for (slot, to) in moves {
                if slot.number() >= next.modulus {
                    return Err(ChangeError::Unreachable(*slot));
                }
                if next.moves.contains_key(slot) {
                    return Err(ChangeError::Moving(*slot));
                }
                next.admit(to)?;
                let from = next.owner(*slot).clone();
                if from == *to {
                    return Err(ChangeError::AlreadyThere(*slot));
                }
                next.moves.insert(*slot, SlotMove { from, to: to.clone(), phase: Phase::Copying });
            }
            Ok(())
        })
    }

    /// Takes these slots from the phase before into `phase`. From drain on the new shard owns them.
    pub fn advance(&self, slots: &[Slot], phase: Phase) -> Result<ShardMap, ChangeError> {
        self.changed(|next| {
            for slot in slots {
                let moving = next.moves.get_mut(slot).ok_or(ChangeError::NotMoving(*slot))?;
                if moving.phase.next() != Some(phase) {
                    return Err(ChangeError::Phase { slot: *slot, phase: moving.phase });
                }
                moving.phase = phase;
                if phase == Phase::Drain {
                    let to = moving.to.clone();
                    next.give(*slot, &to)?;
                }
            }
            Ok(())
        })
    }

    /// Ends the drain of these slots: they are stable on their new shard.
    pub fn finish(&self, slots: &[Slot]) -> Result<ShardMap, ChangeError> {
        self.changed(|next| {
            for slot in slots {
                match next.moves.remove(slot) {
                    None => return Err(ChangeError::NotMoving(*slot)),
                    Some(moving) if moving.phase != Phase::Drain => {
                        return Err(ChangeError::Phase { slot: *slot, phase: moving.phase });
                    }
                    Some(_) => {}
                }
            }
            Ok(())
        })
    }

    /// Takes a move back before drain: the slots are stable on their old shard, at a higher epoch.
    pub fn roll_back(&self, slots: &[Slot]) -> Result<ShardMap, ChangeError> {
        self.changed(|next| {
            for slot in slots {
                match next.moves.remove(slot) {
                    None => return Err(ChangeError::NotMoving(*slot)),
                    Some(moving) if moving.phase == Phase::Drain => return Err(ChangeError::PastCutover(*slot)),
                    Some(_) => {}
                }
            }
            Ok(())
        })
    }

    /// Drops shards from the end of the list that own nothing any more.
    pub fn shrink(&self, count: u16) -> Result<ShardMap, ChangeError> {
        if count == 0 || count > self.count() {
            return Err(ChangeError::Count);
        }
        self.changed(|next| {
            let gone = next.shards.split_off(usize::from(count));
            for (index, shard) in (usize::from(count)..).zip(gone) {
                let reachable = &next.owners[..usize::from(next.modulus)];
                let owns = reachable.iter().any(|owner| usize::from(*owner) == index);
                if owns || next.moves.values().any(|moving| moving.from == shard || moving.to == shard) {
                    return Err(ChangeError::InUse(shard));
                }
            }
            // Slots past the modulus are never asked for, but must name a shard that exists.
            for owner in next.owners.iter_mut().skip(usize::from(next.modulus)) {
                *owner %= count;
            }
            Ok(())
        })
    }

    /// Sends one user to a shard of any name, or with `None` back to their slot's.
    pub fn with_pin(&self, user: UserId, shard: Option<ShardName>) -> Result<ShardMap, ChangeError> {
        self.changed(|next| {
            match shard {
                Some(shard) => next.pins.insert(user, shard),
                None => next.pins.remove(&user),
            };
            Ok(())
        })
    }

    /// Gives a month sub-shards. Their number never falls: a photo's place would be forgotten.
    pub fn with_sub_shards(&self, month: Month, count: u16) -> Result<ShardMap, ChangeError> {
        let before = self.months.get(&month).copied().unwrap_or(0);
        if count == 0 || count < before || count > MAX_SUB_SHARDS {
            return Err(ChangeError::SubShards);
        }
        self.changed(|next| {
            next.months.insert(month, count);
            Ok(())
        })
    }

    fn changed(&self, change: impl FnOnce(&mut ShardMap) -> Result<(), ChangeError>) -> Result<ShardMap, ChangeError> {
        let mut next = self.clone();
        change(&mut next)?;
        if next == *self {
            return Err(ChangeError::Nothing);
        }
        next.epoch = Epoch(self.epoch.0.saturating_add(1));
        Ok(next.sealed())
    }

    /// The index of the shard where a slot is, or is going to be.
    fn home(&self, slot: Slot) -> usize {
        let settled = usize::from(self.owners.get(slot.index()).copied().unwrap_or(0));
        match self.moves.get(&slot) {
            Some(moving) => self.shards.iter().position(|shard| *shard == moving.to).unwrap_or(settled),
            None => settled,
        }
    }

    fn shard_name(&self, index: usize) -> ShardName {
        self.shards.get(index).cloned().unwrap_or_else(|| ShardName::user(index as u16))
    }

    /// Makes sure that `shard` is in the list: `shard_{n}` brings every number up to n with it.
    fn admit(&mut self, shard: &ShardName) -> Result<(), ChangeError> {
        if self.shards.contains(shard) {
            return Ok(());
        }
        let number = shard.as_str().strip_prefix("shard_").and_then(|digits| digits.parse::<u16>().ok());
        match number {
            Some(number) if number < MAX_SHARDS && ShardName::user(number) == *shard => {
                self.shards.extend((self.count()..=number).map(ShardName::user));
                Ok(())
            }
            _ => Err(ChangeError::UnknownShard(shard.clone())),
        }
    }

    fn give(&mut self, slot: Slot, to: &ShardName) -> Result<(), ChangeError> {
        let index = self.shards.iter().position(|shard| shard == to);
        let index = index.ok_or_else(|| ChangeError::UnknownShard(to.clone()))?;
        if let Some(owner) = self.owners.get_mut(slot.index()) {
            *owner = index as u16;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::hash::{HashKind, SLOTS, ShardKey};
    use super::super::map::Placement;
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    fn map(hash: HashKind, count: u16) -> ShardMap {
        ShardMap::first(hash, ShardKey([7; 16]), count, BTreeMap::new())
    }

    fn carried_out(map: &ShardMap, plan: &[(Slot, ShardName)]) -> ShardMap {
        let slots: Vec<Slot> = plan.iter().map(|(slot, _)| *slot).collect();
        let mut map = map.begin_moves(plan).unwrap();
        for phase in [Phase::DualWrite, Phase::Cutover, Phase::Drain] {
            map = map.advance(&slots, phase).unwrap();
        }
        map.finish(&slots).unwrap()
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_seventeenth_shard_moves_a_seventeenth_of_the_slots_and_leaves_all_even() {
        for hash in [HashKind::Siphash24, HashKind::Python] {
            let before = map(hash, 16);
            let plan = before.plan(17).unwrap();
            assert_eq!(plan.len(), usize::from(SLOTS / 17), "{hash:?}");
            assert!(plan.iter().all(|(_, to)| to.as_str() == "shard_16"));
            let after = carried_out(&before, &plan);
            let counts = after.slot_counts();
            assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
            assert_eq!(after.epoch(), Epoch(6));
            assert!(after.plan(17).unwrap().is_empty());
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_shard_can_be_emptied_and_dropped() {
        for hash in [HashKind::Siphash24, HashKind::Python] {
            let before = map(hash, 3);
            assert_eq!(before.shrink(2), Err(ChangeError::InUse(ShardName::user(2))));
            let plan = before.plan(2).unwrap();
            assert_eq!(plan.len(), usize::from(before.slot_counts()[2]));
            let after = carried_out(&before, &plan).shrink(2).unwrap();
            assert_eq!(after.count(), 2);
            let counts = after.slot_counts();
            assert!(counts[0].abs_diff(counts[1]) <= 1, "{counts:?}");
            assert_eq!(ShardMap::from_bytes(&after.to_bytes()).unwrap(), after);
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn each_phase_sends_requests_where_the_table_of_phases_says() {
        let stable = map(HashKind::Python, 2);
        let user = UserId::new("42").unwrap();
        let slot = stable.slot(&user).unwrap();
        let (a, b) = (ShardName::user(0), ShardName::user(1));
        let at = |shard, next, previous, held| Placement { slot, shard, next, previous, held, pinned: false };

        let mut map = stable.begin_moves(&[(slot, b.clone())]).unwrap();
        assert_eq!(map.place(&user).unwrap(), at(&a, Some(&b), None, false));
        map = map.advance(&[slot], Phase::DualWrite).unwrap();
        assert_eq!(map.place(&user).unwrap(), at(&a, Some(&b), None, false));
        map = map.advance(&[slot], Phase::Cutover).unwrap();
        assert_eq!(map.place(&user).unwrap(), at(&b, None, None, true));
        assert_eq!(map.owner(slot), &a);
        map = map.advance(&[slot], Phase::Drain).unwrap();
        assert_eq!(map.place(&user).unwrap(), at(&b, None, Some(&a), false));
        assert_eq!(map.owner(slot), &b);
        map = map.finish(&[slot]).unwrap();
        assert_eq!(map.place(&user).unwrap(), at(&b, None, None, false));
        assert_eq!(map.epoch(), Epoch(6));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn no_phase_is_skipped_and_a_rollback_is_a_higher_epoch() {
        let stable = map(HashKind::Siphash24, 2);
        let slot = Slot::new(5).unwrap();
        let copying = stable.begin_moves(&[(slot, ShardName::user(1))]).unwrap();
        let refused = copying.advance(&[slot], Phase::Cutover);
        assert_eq!(refused, Err(ChangeError::Phase { slot, phase: Phase::Copying }));
        assert_eq!(copying.finish(&[slot]), Err(ChangeError::Phase { slot, phase: Phase::Copying }));
        assert_eq!(copying.begin_moves(&[(slot, ShardName::user(1))]), Err(ChangeError::Moving(slot)));

        let back = copying.roll_back(&[slot]).unwrap();
        assert_eq!((back.epoch(), back.moves().len()), (Epoch(3), 0));
        assert_eq!(back.owner(slot), stable.owner(slot));

        let drained = [Phase::DualWrite, Phase::Cutover, Phase::Drain]
            .into_iter()
            .fold(copying, |map, phase| map.advance(&[slot], phase).unwrap());
        assert_eq!(drained.roll_back(&[slot]), Err(ChangeError::PastCutover(slot)));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn moves_to_nowhere_or_to_where_a_slot_is_are_refused() {
        let stable = map(HashKind::Python, 3);
        let slot = Slot::new(0).unwrap();
        assert_eq!(stable.begin_moves(&[(slot, ShardName::user(0))]), Err(ChangeError::AlreadyThere(slot)));
        let elsewhere = ShardName::new("elsewhere").unwrap();
        assert_eq!(stable.begin_moves(&[(slot, elsewhere.clone())]), Err(ChangeError::UnknownShard(elsewhere)));
        let last = Slot::new(16_383).unwrap();
        assert_eq!(stable.begin_moves(&[(last, ShardName::user(1))]), Err(ChangeError::Unreachable(last)));
        assert_eq!(stable.begin_moves(&[]), Err(ChangeError::Nothing));
        assert_eq!(stable.plan(0), Err(ChangeError::Count));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_month_never_loses_sub_shards() {
        let month = Month::parse("2026-03").unwrap();
        let map = map(HashKind::Siphash24, 1).with_sub_shards(month, 4).unwrap();
        assert_eq!(map.with_sub_shards(month, 3), Err(ChangeError::SubShards));
        assert_eq!(map.with_sub_shards(month, 8).unwrap().photo_shards(month).len(), 8);
    }
}
