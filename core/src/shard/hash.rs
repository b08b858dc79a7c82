//! From an identity to a slot. Two hashes exist: a keyed one that nobody can aim, and the original's, so that an
//! existing deployment starts without moving anyone.
//!
//! Bytes are hashed, never `std::hash::Hash`, whose output is promised to nobody.

use std::fmt;
use std::hash::Hasher;

use siphasher::sip::SipHasher24;

use crate::identity::{MAX_USER_DIGITS, UserId};

/// How many slots there are. A power of two, so that the keyed hash's low 14 bits are a slot.
pub const SLOTS: u16 = 16_384;

/// Tells a user's hash from a photo path's under the same key.
const USER_DOMAIN: u8 = 0x01;
const PHOTO_DOMAIN: u8 = 0x02;

/// CPython's modulus for the hash of integers on 64-bit systems (`sys.hash_info.modulus`), a Mersenne prime.
const PYTHON_MODULUS: u128 = (1 << 61) - 1;

/// A slot of Edgekeep's shard map, `0..16384`. Not one of Redis' slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// `None` from 16,384 upwards.
    pub const fn new(number: u16) -> Option<Slot> {
        if number < SLOTS { Some(Slot(number)) } else { None }
    }

    pub const fn number(self) -> u16 {
        self.0
    }

    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Which function a map places users with; fixed for the life of a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HashKind {
    /// SipHash-2-4 under the map's key.
    Siphash24,
    /// The original's `hash(user_id) % num_shards` on CPython, 64 bits.
    Python,
}

impl HashKind {
    /// The name in configuration and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            HashKind::Siphash24 => "siphash24",
            HashKind::Python => "python",
        }
    }

    pub fn from_name(name: &str) -> Option<HashKind> {
        [HashKind::Siphash24, HashKind::Python].into_iter().find(|kind| kind.name() == name)
    }
}

/// The map's 128-bit key. Whoever knows it can choose identities that share a slot, so it prints as nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ShardKey(pub [u8; 16]);

impl ShardKey {
    /// From 32 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<ShardKey> {
        let bytes = text.as_bytes();
        if bytes.len() != 32 {
            return None;
        }
        let mut key = [0; 16];
        for (out, pair) in key.iter_mut().zip(bytes.chunks_exact(2)) {
            let (high, low) = (char::from(pair[0]).to_digit(16)?, char::from(pair[1]).to_digit(16)?);
            *out = (high * 16 + low) as u8;
        }
        Some(ShardKey(key))
    }

    /// 32 lower-case hexadecimal digits: for the stored map only.
    pub fn to_hex(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for ShardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShardKey(…)")
    }
}

/// SipHash-2-4 over 0x01 ‖ the identity's UTF-8.
pub(super) fn user_hash(key: &ShardKey, user: &UserId) -> u64 {
    keyed(key, USER_DOMAIN, user.as_str().as_bytes())
}

/// SipHash-2-4 over 0x02 ‖ the decoded request path.
pub(super) fn photo_hash(key: &ShardKey, path: &str) -> u64 {
    keyed(key, PHOTO_DOMAIN, path.as_bytes())
}

fn keyed(key: &ShardKey, domain: u8, bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher24::new_with_key(&key.0);
    hasher.write(&[domain]);
    hasher.write(bytes);
    hasher.finish()
}

/// CPython's `hash(n)` of an integer given as text: sign·(|n| mod (2⁶¹−1)), where −1 becomes −2.
///
/// `None` unless the text is a canonical decimal integer of at most 39 digits: no plus sign, leading zero or `-0`.
pub(super) fn python_hash(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let negative = digits.len() != text.len();
    if digits.is_empty() || digits.len() > MAX_USER_DIGITS || (digits.starts_with('0') && text != "0") {
        return None;
    }
    let mut residue: u128 = 0;
    for byte in digits.bytes() {
        if !byte.is_ascii_digit() {
            return None;
        }
        residue = (residue * 10 + u128::from(byte - b'0')) % PYTHON_MODULUS;
    }
    let hash = if negative { -(residue as i64) } else { residue as i64 };
    Some(if hash == -1 { -2 } else { hash })
}

/// `hash mod modulus`, never negative, as Python's `%`.
pub(super) fn python_slot(hash: i64, modulus: u16) -> Slot {
    Slot(hash.rem_euclid(i64::from(modulus.clamp(1, SLOTS))) as u16)
}

/// The low 14 bits.
pub(super) fn sip_slot(hash: u64) -> Slot {
    Slot((hash & u64::from(SLOTS - 1)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    /// 00 01 … 0f, the key of the published vectors.
    fn published_key() -> ShardKey {
        ShardKey(std::array::from_fn(|i| i as u8))
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn siphash_gives_the_vector_of_its_paper() {
        // Aumasson and Bernstein, "SipHash", appendix A: key 00…0f, message 00…0e.
        let message: Vec<u8> = (0..15).collect();
        assert_eq!(SipHasher24::new_with_key(&published_key().0).hash(&message), 0xa129_ca61_49be_45e5);
        assert_eq!(keyed(&published_key(), 0, &message[1..]), 0xa129_ca61_49be_45e5);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn users_fall_into_the_published_slots() {
        // Computed by a second implementation, written from the paper.
        let long = "x".repeat(128);
        let vectors: [(&str, u64, u16); 8] = [
            ("1", 0xe14f_343f_d4b2_3107, 12_551),
            ("42", 0x478e_7782_be2f_4027, 39),
            ("-7", 0xcdbd_8e97_ec41_c4f8, 1_272),
            ("alice", 0x5192_e014_0c33_1168, 4_456),
            ("a", 0xb260_02f6_b51e_fe73, 15_987),
            ("ünï@example.org", 0xa232_4821_6a51_2473, 9_331),
            ("0b8f5c1e-4a1b-4c3d-8e2f-000000012345", 0x6cb1_6f92_8a72_d511, 5_393),
            (&long, 0x5675_7db4_c368_e9a2, 10_658),
        ];
        for (text, hash, slot) in vectors {
            let user = UserId::new(text).unwrap();
            assert_eq!(user_hash(&published_key(), &user), hash, "{text}");
            assert_eq!(sip_slot(hash).number(), slot, "{text}");
        }
        assert_eq!(photo_hash(&published_key(), "/photos/2026-03/ü"), 0x3507_401b_3503_1ab9);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn integers_hash_as_in_cpython() {
        // (n, hash(n), hash(n) % S for counts 1, 3, 1000) printed by CPython 3 on a 64-bit system.
        let vectors: [(&str, i64, [u16; 3]); 23] = [
            ("0", 0, [0, 0, 0]),
            ("1", 1, [1, 1, 1]),
            ("-1", -2, [16382, 16381, 15998]),
            ("-2", -2, [16382, 16381, 15998]),
            ("42", 42, [42, 42, 42]),
            ("-42", -42, [16342, 16341, 15958]),
            ("2305843009213693951", 0, [0, 0, 0]),
            ("-2305843009213693951", 0, [0, 0, 0]),
            ("2305843009213693952", 1, [1, 1, 1]),
            ("-2305843009213693952", -2, [16382, 16381, 15998]),
            ("2305843009213693950", 2305843009213693950, [16382, 30, 13950]),
            ("-2305843009213693950", -2305843009213693950, [2, 16353, 2050]),
            ("4611686018427387902", 0, [0, 0, 0]),
            ("4611686018427387901", 2305843009213693950, [16382, 30, 13950]),
            ("-4611686018427387903", -2, [16382, 16381, 15998]),
            ("100000000000000000000000000000000000000", 244469275760665571, [9187, 1550, 9571]),
            ("999999999999999999999999999999999999999", 138849748392961758, [9950, 15468, 1758]),
            ("-999999999999999999999999999999999999999", -138849748392961758, [6434, 915, 14242]),
            ("9223372036854775808", 4, [4, 4, 4]),
            ("-9223372036854775808", -4, [16380, 16379, 15996]),
            ("170141183460469231731687303715884105727", 31, [31, 31, 31]),
            ("123456789012345678901234567890", 248789772095949448, [2696, 3406, 13448]),
            ("-123456789012345678901234567890", -248789772095949448, [13688, 12977, 2552]),
        ];
        for (text, hash, slots) in vectors {
            assert_eq!(python_hash(text), Some(hash), "{text}");
            for (count, slot) in [1u16, 3, 1000].into_iter().zip(slots) {
                let modulus = count * (SLOTS / count);
                assert_eq!(python_slot(hash, modulus).number(), slot, "{text} over {count}");
                assert_eq!(i64::from(slot % count), hash.rem_euclid(i64::from(count)), "{text} over {count}");
            }
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn what_is_not_a_canonical_integer_has_no_python_hash() {
        let forty = "1".repeat(40);
        for text in ["", "-", "+1", "01", "-0", "-01", "00", "1.0", "1e3", " 1", "1 ", "a", "--1", "١", &forty] {
            assert_eq!(python_hash(text), None, "{text:?}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_key_reads_32_hex_digits_and_never_prints() {
        let key = ShardKey::from_hex("000102030405060708090A0b0c0d0e0f").unwrap();
        assert_eq!(key, published_key());
        assert_eq!(ShardKey::from_hex(&key.to_hex()), Some(key));
        assert_eq!(ShardKey::from_hex("00"), None);
        assert_eq!(ShardKey::from_hex(&"g".repeat(32)), None);
        assert!(!format!("{key:?}").contains('1'));
    }
}
