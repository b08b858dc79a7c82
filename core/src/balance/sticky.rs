//! The sticky cookie: keeps a client on the origin that served it, tells nobody which one that is, and cannot be made
//! up.
//!
//! Value: `v1.<key id>.<base64url(tag 8 ‖ issued 4)>.<base64url(MAC 16)>`. The tag is HMAC-SHA256(key, 0x01 ‖ origin id)
//! cut to 8 bytes, `issued` is in seconds since the epoch (big-endian), and the MAC is HMAC-SHA256(key, 0x02 ‖ all before
//! the last dot) cut to 16 bytes. Tags are made once per configuration, so reading costs one HMAC.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq;

use super::origin::OriginId;
use crate::token::SecretKey;
use crate::units::{Millis, Timestamp};

const TAG: usize = 8;
const MAC: usize = 16;
/// Longer values are not ours.
const MAX_VALUE: usize = 64;
/// A cookie from the future: clocks of two gateways may differ by this much.
const MAX_SKEW: Millis = Millis::from_secs(300);

const TAG_DOMAIN: u8 = 1;
const MAC_DOMAIN: u8 = 2;
const NAME_DOMAIN: u8 = 3;

/// The sticky keys with the tags of all origins under each.
pub struct StickyKeys {
    /// The first signs; all are accepted.
    keys: Vec<KeyTags>,
    /// Stands for the key that signs.
    name: [u8; TAG],
}

struct KeyTags {
    key: SecretKey,
    tags: HashMap<OriginId, [u8; TAG]>,
    origins: HashMap<[u8; TAG], OriginId>,
}

/// What a cookie says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sticky {
    /// This origin served the client last.
    Origin(OriginId),
    /// Not made with any of the keys: ignored and counted.
    Forged,
    /// Older than `max_age`.
    Expired,
    /// Ours, but for an origin that is gone.
    Unknown,
}

impl StickyKeys {
    /// The current key first, then those that are still accepted.
    pub fn new<'k>(keys: impl IntoIterator<Item = &'k SecretKey>, origins: &[OriginId]) -> StickyKeys {
        let keys = keys.into_iter().map(|key| {
            let tags: HashMap<_, _> = origins
                .iter()
                .map(|origin| (origin.clone(), first(&hmac(key, TAG_DOMAIN, origin.as_str().as_bytes()))))
                .collect();
            let origins = tags.iter().map(|(origin, tag)| (*tag, origin.clone())).collect();
            KeyTags { key: key.clone(), tags, origins }
        });
        let keys: Vec<KeyTags> = keys.collect();
        let name = keys.first().map(|keys| first(&hmac(&keys.key, NAME_DOMAIN, &[]))).unwrap_or_default();
        StickyKeys { keys, name }
    }

    /// The cookie's value for an origin; `None` when there is no key or no such origin.
    pub fn seal(&self, origin: &OriginId, now: Timestamp) -> Option<String> {
        let key = self.keys.first()?;
        let mut content = [0; TAG + 4];
        content[..TAG].copy_from_slice(key.tags.get(origin)?);
        content[TAG..].copy_from_slice(&(now.seconds() as u32).to_be_bytes());
        let signed = format!("v1.{}.{}", key.key.id(), URL_SAFE_NO_PAD.encode(content));
        let mac: [u8; MAC] = first(&hmac(&key.key, MAC_DOMAIN, signed.as_bytes()));
        Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac)))
    }

    /// Reads a cookie's value. Anything that is not exactly of this form under one of the keys is forged.
    pub fn open(&self, value: &str, now: Timestamp, max_age: Millis) -> Sticky {
        let Some((key, tag, issued)) = self.verified(value) else { return Sticky::Forged };
        let issued = Timestamp(u64::from(issued) * 1000);
        if now.since(issued) >= max_age || issued.since(now) > MAX_SKEW {
            return Sticky::Expired;
        }
        match key.origins.get(&tag) {
            Some(origin) => Sticky::Origin(origin.clone()),
            None => Sticky::Unknown,
        }
    }

    fn verified(&self, value: &str) -> Option<(&KeyTags, [u8; TAG], u32)> {
        if value.len() > MAX_VALUE {
            return None;
        }
        let (signed, mac) = value.rsplit_once('.')?;
        let (id, content) = signed.strip_prefix("v1.")?.split_once('.')?;
        let key = self.keys.iter().find(|key| key.key.id().to_string() == id)?;
        let mac = URL_SAFE_NO_PAD.decode(mac).ok()?;
        let expected: [u8; MAC] = first(&hmac(&key.key, MAC_DOMAIN, signed.as_bytes()));
        if !bool::from(expected.as_slice().ct_eq(&mac)) {
            return None;
        }
        let content: [u8; TAG + 4] = URL_SAFE_NO_PAD.decode(content).ok()?.try_into().ok()?;
        let (tag, issued) = content.split_first_chunk::<TAG>()?;
        Some((key, *tag, u32::from_be_bytes(*issued.first_chunk()?)))
    }
}

/// What one core sealed in this second, by origin: a cookie's value changes only with the second and the key.
#[derive(Debug, Default)]
pub struct Sealed {
    at: u64,
    key: [u8; TAG],
    lines: HashMap<OriginId, String>,
}

impl Sealed {
    /// The `Set-Cookie` line for an origin, made by `make` when there is none yet. `None` when none can be made.
    pub fn line(
        &mut self,
        origin: &OriginId,
        now: Timestamp,
        keys: &StickyKeys,
        make: impl FnOnce() -> Option<String>,
    ) -> Option<&str> {
        if self.at != now.seconds() || self.key != keys.name {
            (self.at, self.key) = (now.seconds(), keys.name);
            self.lines.clear();
        }
        if !self.lines.contains_key(origin) {
            self.lines.insert(origin.clone(), make()?);
        }
        self.lines.get(origin).map(String::as_str)
    }
}

fn hmac(key: &SecretKey, domain: u8, message: &[u8]) -> [u8; 32] {
    key.mac(&[&[domain], message])
}

fn first<const N: usize>(bytes: &[u8; 32]) -> [u8; N] {
    std::array::from_fn(|i| bytes[i])
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    const NOW: Timestamp = Timestamp(1_790_000_000_000);
    const DAY: Millis = Millis::from_secs(86_400);

    fn key(id: u8, byte: u8) -> SecretKey {
        SecretKey::for_tests(id, [byte; 32])
    }

    fn ids() -> Vec<OriginId> {
        ["a", "b", "c"].into_iter().map(OriginId::new).collect()
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_sealed_cookie_names_its_origin_and_does_not_show_it() {
        let ids = [OriginId::new("10.0.0.7:9001"), OriginId::new("b")];
        let keys = StickyKeys::new(&[key(3, 1)], &ids);
        let value = keys.seal(&ids[0], NOW).unwrap();
        assert!(value.len() <= MAX_VALUE && value.starts_with("v1.3.") && !value.contains("9001"), "{value}");
        assert_eq!(keys.open(&value, NOW, DAY), Sticky::Origin(ids[0].clone()));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_cookie_changed_in_any_character_is_forged() {
        let keys = StickyKeys::new(&[key(0, 1)], &ids());
        let value = keys.seal(&ids()[1], NOW).unwrap();
        for at in 0..value.len() {
            for replacement in ['A', 'z', '.', '0'] {
                let mut broken: Vec<char> = value.chars().collect();
                if broken[at] != replacement {
                    broken[at] = replacement;
                    let broken: String = broken.into_iter().collect();
                    assert_eq!(keys.open(&broken, NOW, DAY), Sticky::Forged, "{broken}");
                }
            }
            assert_eq!(keys.open(&value[..at], NOW, DAY), Sticky::Forged);
        }
        assert_eq!(keys.open(&format!("{value}A"), NOW, DAY), Sticky::Forged);
        assert_eq!(keys.open(&"v1.0.".repeat(50), NOW, DAY), Sticky::Forged);
        assert_eq!(keys.open("", NOW, DAY), Sticky::Forged);
        let others = StickyKeys::new(&[key(0, 2)], &ids());
        assert_eq!(others.open(&value, NOW, DAY), Sticky::Forged);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_cookie_ends_at_its_age_and_at_a_far_future() {
        let keys = StickyKeys::new(&[key(0, 1)], &ids());
        let value = keys.seal(&ids()[0], NOW).unwrap();
        let read = |now| keys.open(&value, now, DAY);
        assert!(matches!(read(NOW + Millis(86_399_999)), Sticky::Origin(_)));
        assert_eq!(read(NOW + DAY), Sticky::Expired);
        assert!(matches!(read(NOW - MAX_SKEW), Sticky::Origin(_)));
        assert_eq!(read(NOW - MAX_SKEW - Millis(1)), Sticky::Expired);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn an_origin_that_is_gone_is_unknown_and_an_old_key_still_counts() {
        let (old, new) = (key(1, 1), key(2, 2));
        let value = StickyKeys::new([&old], &ids()).seal(&ids()[2], NOW).unwrap();
        let rotated = StickyKeys::new([&new, &old], &ids());
        assert_eq!(rotated.open(&value, NOW, DAY), Sticky::Origin(ids()[2].clone()));
        assert!(rotated.seal(&ids()[2], NOW).unwrap().starts_with("v1.2."));
        let smaller = StickyKeys::new([&new, &old], &ids()[..2]);
        assert_eq!(smaller.open(&value, NOW, DAY), Sticky::Unknown);
        assert_eq!(smaller.seal(&ids()[2], NOW), None);
        assert_eq!(StickyKeys::new([&new], &ids()).open(&value, NOW, DAY), Sticky::Forged);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_line_is_sealed_once_a_second_and_anew_for_another_key() {
        let (old, new) = (StickyKeys::new([&key(1, 1)], &ids()), StickyKeys::new([&key(1, 2)], &ids()));
        let (mut sealed, mut made) = (Sealed::default(), 0);
        let mut line = |origin: usize, now: Timestamp, keys: &StickyKeys| {
            let make = || {
                made += 1;
                keys.seal(&ids()[origin], now)
            };
            (sealed.line(&ids()[origin], now, keys, make).map(str::to_owned), made)
        };
        let second = Timestamp(NOW.0 / 1000 * 1000);
        let first = line(0, second, &old);
        assert_eq!(line(0, second + Millis(999), &old), first);
        assert_eq!(line(1, second, &old).1, 2);
        assert_eq!(line(0, second + Millis(1000), &old).1, 3);
        assert_eq!(line(0, second + Millis(1000), &new).1, 4, "the same key id, another key");
        assert_eq!(line(0, second + Millis(1000), &StickyKeys::new([], &ids())), (None, 5));
    }
}
