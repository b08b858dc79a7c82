//! Verified tokens, remembered: a client sends one token some hundred times, and its signature is the same each time.
//!
//! Keyed by SHA-256 of the whole token, so that nothing a client chooses can collide and no token stays in memory. Only
//! good tokens come in. An entry is believed only under the keys and rules that verified it: it carries the verifier's
//! tag, so after a rotation, a JWKS fetch or a reload it is a miss, and a removed key's tokens die with the key.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use quick_cache::UnitWeighter;
use quick_cache::sync::{Cache, DefaultLifecycle};
use sha2::{Digest, Sha256};

use super::access::AccessClaims;
use super::verify::{MAX_TOKEN, TokenError, Verifier};
use crate::Timestamp;

/// The verified-token cache of a process or isolate. `Sync`; survives reloads.
pub struct TokenCache(Option<Cache<TokenHash, Entry, UnitWeighter, DigestHashing>>);

#[derive(Clone)]
struct Entry {
    verified_by: [u8; 16],
    claims: Arc<AccessClaims>,
}

impl TokenCache {
    /// For about `capacity` tokens (`session.token_cache`); 0 keeps none.
    pub fn new(capacity: usize) -> TokenCache {
        TokenCache(
            (capacity > 0).then(|| {
                Cache::with(capacity, capacity as u64, UnitWeighter, DigestHashing, DefaultLifecycle::default())
            }),
        )
    }

    /// [`Verifier::verify`], with the same answers.
    pub fn verify(&self, verifier: &Verifier, token: &str, now: Timestamp) -> Result<Arc<AccessClaims>, TokenError> {
        let Some(cache) = &self.0 else { return verifier.verify(token, now).map(Arc::new) };
        if token.len() > MAX_TOKEN {
            return Err(TokenError::TooLong);
        }
        let hash = TokenHash(Sha256::digest(token).into());
        if let Some(entry) = cache.get(&hash).filter(|entry| entry.verified_by == verifier.tag()) {
            return match verifier.check_times(&entry.claims, now) {
                Ok(()) => Ok(entry.claims),
                Err(error) => {
                    cache.remove(&hash);
                    Err(error)
                }
            };
        }
        let claims = Arc::new(verifier.verify(token, now)?);
        cache.insert(hash, Entry { verified_by: verifier.tag(), claims: claims.clone() });
        Ok(claims)
    }

    /// How many tokens are remembered, expired ones that nobody asked for included.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, Cache::len)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Debug for TokenCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenCache").field("len", &self.len()).finish()
    }
}

#[derive(PartialEq, Eq)]
struct TokenHash([u8; 32]);

impl Hash for TokenHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        state.write_u64(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
    }
}

/// The key is a hash already: its first bytes are as good as any. Nobody can fill the cache with tokens of his choice,
/// because only signed ones come in.
#[derive(Clone, Copy, Default)]
struct DigestHashing;

impl BuildHasher for DigestHashing {
    type Hasher = FirstBytes;
    fn build_hasher(&self) -> FirstBytes {
        FirstBytes(0)
    }
}

struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::{KeyAlgorithm, KeyRing, Retention, sign_access};
    use crate::{Entropy, Millis, SessionId, UserId};
    use wasm_bindgen_test::wasm_bindgen_test;

    const NOW: Timestamp = Timestamp(1_750_000_000_000);

    fn ring() -> KeyRing {
        KeyRing::generate(KeyAlgorithm::EdDsa, &mut Entropy::for_tests(1), NOW)
    }

    fn verifier(ring: &KeyRing) -> Verifier {
        Verifier::new(ring, "edgekeep", "app", Millis::ZERO)
    }

    fn token(ring: &KeyRing, user: &str) -> String {
        let claims = AccessClaims {
            iss: "edgekeep".into(),
            sub: UserId::new(user).unwrap(),
            aud: "app".into(),
            client_id: "app".into(),
            iat: NOW,
            exp: NOW + Millis(900_000),
            jti: "j".into(),
            sid: SessionId([7; 16]),
            generation: 0,
        };
        sign_access(ring, &claims).unwrap()
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_good_token_is_remembered_and_answered_alike() {
        let (cache, verifier, token) = (TokenCache::new(100), verifier(&ring()), token(&ring(), "42"));
        let first = cache.verify(&verifier, &token, NOW).unwrap();
        let second = cache.verify(&verifier, &token, NOW).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(*first, verifier.verify(&token, NOW).unwrap());
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_bad_token_is_never_remembered() {
        let (cache, verifier) = (TokenCache::new(100), verifier(&ring()));
        let token = token(&ring(), "42");
        for bad in [&token[..token.len() - 1], "a.b.c", "", &"a".repeat(MAX_TOKEN + 1)] {
            assert_eq!(cache.verify(&verifier, bad, NOW).unwrap_err(), verifier.verify(bad, NOW).unwrap_err());
        }
        assert!(cache.is_empty());
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn an_entry_is_gone_at_exp_to_the_millisecond() {
        let (cache, verifier, token) = (TokenCache::new(100), verifier(&ring()), token(&ring(), "42"));
        cache.verify(&verifier, &token, NOW).unwrap();
        assert!(cache.verify(&verifier, &token, NOW + Millis(899_999)).is_ok());
        assert_eq!(cache.len(), 1);
        assert_eq!(cache.verify(&verifier, &token, NOW + Millis(900_000)).unwrap_err(), TokenError::Expired);
        assert!(cache.is_empty());
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_removed_keys_tokens_do_not_outlive_it() {
        let (cache, first) = (TokenCache::new(100), ring());
        let token = token(&first, "42");
        cache.verify(&verifier(&first), &token, NOW).unwrap();
        let mut entropy = Entropy::for_tests(2);
        let rotated = first.publish_next(KeyAlgorithm::EdDsa, &mut entropy, NOW).unwrap().promote_next(NOW).unwrap();
        assert!(cache.verify(&verifier(&rotated), &token, NOW).is_ok());
        let none = Retention { access: Millis::ZERO, refresh: Millis::ZERO, sticky: Millis::ZERO };
        let dropped = verifier(&rotated.settle(&[], NOW).drop_retired(NOW, &none));
        assert_eq!(cache.verify(&dropped, &token, NOW).unwrap_err(), TokenError::UnknownKey);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn another_issuer_audience_or_leeway_is_another_verifier() {
        let (cache, ring) = (TokenCache::new(100), ring());
        let token = token(&ring, "42");
        cache.verify(&verifier(&ring), &token, NOW).unwrap();
        let other = Verifier::new(&ring, "edgekeep", "other", Millis::ZERO);
        assert_eq!(cache.verify(&other, &token, NOW).unwrap_err(), TokenError::Audience);
        let other = Verifier::new(&ring, "other", "app", Millis::ZERO);
        assert_eq!(cache.verify(&other, &token, NOW).unwrap_err(), TokenError::Issuer);
        assert_ne!(verifier(&ring).tag(), Verifier::new(&ring, "edgekeep", "app", Millis(1)).tag());
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_count_is_bounded_and_zero_turns_it_off() {
        let ring = KeyRing::generate(KeyAlgorithm::Hs256, &mut Entropy::for_tests(1), NOW);
        let (verifier, small, off) = (verifier(&ring), TokenCache::new(20), TokenCache::new(0));
        for user in 0..200 {
            let token = token(&ring, &user.to_string());
            assert!(small.verify(&verifier, &token, NOW).is_ok() && off.verify(&verifier, &token, NOW).is_ok());
        }
        assert!(!small.is_empty() && small.len() <= 20);
        assert!(off.is_empty());
    }
}
