//! Ids that lie in their user's Redis slot.
//!
//! Redis Cluster runs a script only on keys of one slot. CRC16 is linear over GF(2), so of the 2¹⁸ ways to set the
//! low three bits of a UUID's last six hex digits exactly sixteen put `session:<uuid>` into any wanted slot, and they
//! are found by elimination instead of trial. The id stays a valid UUIDv4; it discloses the 14 bits of the slot.

use super::layout::user_tag;
use crate::{Entropy, SessionId, UserId};

/// Free bits: the low three of each of the last six hex digits.
const FREE_BITS: usize = 18;
/// Redis Cluster has 2¹⁴ slots.
const SLOT_BITS: usize = 14;
const SLOT_MASK: u16 = (1 << SLOT_BITS) - 1;
/// How many slots Redis Cluster has.
pub const REDIS_SLOTS: usize = 1 << SLOT_BITS;
/// `session:` and the 36 characters of a hyphenated UUID.
const KEY_LENGTH: usize = 44;

/// The Redis slot of a key without a hash tag: CRC16/XMODEM mod 16384 (Redis Cluster specification).
pub fn redis_slot(key: &[u8]) -> u16 {
    crc16(0, key) & SLOT_MASK
}

/// The Redis slot of all keys of a session, and of its user if the id was steered. Allocates nothing.
pub fn session_slot(id: SessionId) -> u16 {
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    let text = uuid::Uuid::from_bytes(id.0).hyphenated().encode_lower(&mut text);
    crc16(AFTER_PREFIX, text.as_bytes()) & SLOT_MASK
}

/// A random UUIDv4 whose `session:<uuid>` has the Redis slot of `user:<U>`; one of the sixteen at random.
pub fn steer_session_id(user: &UserId, entropy: &mut Entropy) -> SessionId {
    let mut bytes: [u8; 16] = entropy.bytes();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    for byte in &mut bytes[13..] {
        *byte = 0;
    }
    let wanted = redis_slot(user_tag(user).as_bytes());
    let have = session_slot(SessionId(bytes));
    let mut choice = SOLVER.particular((wanted ^ have) & SLOT_MASK);
    let pick = entropy.next_u64();
    for (bit, kernel) in SOLVER.kernel.iter().enumerate() {
        if pick >> bit & 1 == 1 {
            choice ^= kernel;
        }
    }
    for digit in 0..6 {
        let value = (choice >> (3 * digit) & 7) as u8;
        // Digit 0 is the last one; even digits are a byte's low nibble.
        bytes[15 - digit / 2] |= if digit % 2 == 0 { value } else { value << 4 };
    }
    SessionId(bytes)
}

/// The checksum's state after `session:`.
const AFTER_PREFIX: u16 = crc16(0, b"session:");

/// The checksum of each byte: a table, because every miss of the near cache asks for a slot.
static TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 != 0 { (crc << 1) ^ 0x1021 } else { crc << 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

const fn crc16(mut crc: u16, bytes: &[u8]) -> u16 {
    let mut i = 0;
    while i < bytes.len() {
        crc = (crc << 8) ^ TABLE[((crc >> 8) ^ bytes[i] as u16) as usize];
        i += 1;
    }
    crc
}

/// What flipping each free bit does to the slot, brought to echelon form at compile time.
struct Solver {
    /// For each slot bit: the combination of free bits that flips it and no other.
    unit: [u32; SLOT_BITS],
    /// Combinations of free bits that leave the slot as it is; they span the sixteen solutions.
    kernel: [u32; FREE_BITS - SLOT_BITS],
}

static SOLVER: Solver = Solver::solve();

impl Solver {
    const fn solve() -> Solver {
        // Rows of (effect on the slot, combination of free bits). CRC16 of a difference pattern is its effect,
        // because XMODEM starts from 0.
        let mut effect = [0u16; FREE_BITS];
        let mut combination = [0u32; FREE_BITS];
        let mut bit = 0;
        while bit < FREE_BITS {
            let mut difference = [0u8; KEY_LENGTH];
            difference[KEY_LENGTH - 1 - bit / 3] = 1 << (bit % 3);
            effect[bit] = crc16(0, &difference) & SLOT_MASK;
            combination[bit] = 1 << bit;
            bit += 1;
        }
        // Gauss-Jordan over GF(2): row `column` ends with exactly that slot bit.
        let mut column = 0;
        while column < SLOT_BITS {
            let mut pivot = column;
            while effect[pivot] >> column & 1 == 0 {
                pivot += 1;
            }
            (effect[column], effect[pivot]) = (effect[pivot], effect[column]);
            (combination[column], combination[pivot]) = (combination[pivot], combination[column]);
            let mut row = 0;
            while row < FREE_BITS {
                if row != column && effect[row] >> column & 1 == 1 {
                    effect[row] ^= effect[column];
                    combination[row] ^= combination[column];
                }
                row += 1;
            }
            column += 1;
        }
        let mut solver = Solver { unit: [0; SLOT_BITS], kernel: [0; FREE_BITS - SLOT_BITS] };
        let mut row = 0;
        while row < FREE_BITS {
            if row < SLOT_BITS {
                solver.unit[row] = combination[row];
            } else {
                solver.kernel[row - SLOT_BITS] = combination[row];
            }
            row += 1;
        }
        solver
    }

    /// One combination of free bits whose effect is `difference`.
    fn particular(&self, difference: u16) -> u32 {
        self.unit.iter().enumerate().filter(|(bit, _)| difference >> bit & 1 == 1).fold(0, |acc, (_, unit)| acc ^ unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use wasm_bindgen_test::wasm_bindgen_test;

    #[wasm_bindgen_test(unsupported = test)]
    fn the_checksum_is_redis_clusters() {
        assert_eq!(crc16(0, b"123456789"), 0x31c3);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn every_session_id_lies_in_its_users_slot_and_is_a_uuid_v4() {
        let mut entropy = Entropy::for_tests(3);
        for n in 0..2_000u32 {
            let user = UserId::new(&format!("user {n} ü")).unwrap();
            let id = steer_session_id(&user, &mut entropy);
            let wanted = redis_slot(format!("user:{}", user.key_form()).as_bytes());
            assert_eq!(redis_slot(format!("session:{id}").as_bytes()), wanted);
            assert_eq!(session_slot(id), wanted);
            let text = id.to_string();
            assert_eq!(text.as_bytes()[14], b'4');
            assert!(b"89ab".contains(&text.as_bytes()[19]));
            assert!(text[30..].bytes().all(|digit| (b'0'..=b'7').contains(&digit)));
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn exactly_sixteen_endings_reach_a_slot_and_each_is_taken() {
        let kernel: BTreeSet<u32> = (0u32..16)
            .map(|pick| SOLVER.kernel.iter().enumerate().filter(|(b, _)| pick >> b & 1 == 1).fold(0, |a, (_, k)| a ^ k))
            .collect();
        assert_eq!(kernel.len(), 16);
        let user = UserId::new("42").unwrap();
        let mut entropy = Entropy::for_tests(4);
        let picks: BTreeSet<u64> = (0..400)
            .map(|_| {
                let id = steer_session_id(&user, &mut entropy);
                u64::from(id.0[15] & 7)
            })
            .collect();
        assert!(picks.len() > 1, "the ending is drawn at random");
    }
}
