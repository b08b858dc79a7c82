//! The refresh token: opaque to everyone but its issuer, and nothing secret about it is stored.
//!
//! `version ‖ sid(16) ‖ counter(u32) ‖ key id ‖ HMAC-SHA256 tag(16)`, base64url: 51 characters. A forged one is refused
//! without touching the store, a stolen copy of the store mints none, and the same counter under the same key always
//! gives the same bytes, so that a re-issue is byte-identical.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq;
use thiserror::Error;

use crate::SessionId;
use crate::token::SecretKey;

const VERSION: u8 = 1;
const TAG: usize = 16;
const LENGTH: usize = 1 + 16 + 4 + 1 + TAG;
/// Keeps this tag apart from any other use of the key.
const LABEL: &[u8] = b"edgekeep refresh token v1";

/// What an authentic refresh token says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefreshToken {
    pub session: SessionId,
    pub counter: u32,
    pub key_id: u8,
}

/// Why a refresh token is refused without asking the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RefreshTokenError {
    #[error("the refresh token is malformed")]
    Malformed,
    #[error("the refresh token was made with an unknown key")]
    UnknownKey,
    #[error("the refresh token is not authentic")]
    Forged,
}

impl RefreshTokenError {
    /// For logs.
    pub const fn name(self) -> &'static str {
        match self {
            RefreshTokenError::Malformed => "malformed",
            RefreshTokenError::UnknownKey => "unknown_key",
            RefreshTokenError::Forged => "forged",
        }
    }
}

impl RefreshToken {
    /// `key` must be the refresh key of this token's id.
    pub fn seal(&self, key: &SecretKey) -> String {
        let mut bytes = [0u8; LENGTH];
        bytes[0] = VERSION;
        bytes[1..17].copy_from_slice(&self.session.0);
        bytes[17..21].copy_from_slice(&self.counter.to_be_bytes());
        bytes[21] = self.key_id;
        let tag = tag(key, &bytes[..LENGTH - TAG]);
        bytes[LENGTH - TAG..].copy_from_slice(&tag);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Checks form, key and tag, in constant time for the tag.
    pub fn open<'a>(
        text: &str,
        key: impl FnOnce(u8) -> Option<&'a SecretKey>,
    ) -> Result<RefreshToken, RefreshTokenError> {
        let mut bytes = [0u8; LENGTH];
        match URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) {
            Ok(LENGTH) if bytes[0] == VERSION => {}
            _ => return Err(RefreshTokenError::Malformed),
        }
        let (body, presented) = bytes.split_at(LENGTH - TAG);
        let key_id = body[21];
        let key = key(key_id).ok_or(RefreshTokenError::UnknownKey)?;
        if !bool::from(tag(key, body).ct_eq(presented)) {
            return Err(RefreshTokenError::Forged);
        }
        let mut session = [0; 16];
        session.copy_from_slice(&body[1..17]);
        let mut counter = [0; 4];
        counter.copy_from_slice(&body[17..21]);
        Ok(RefreshToken { session: SessionId(session), counter: u32::from_be_bytes(counter), key_id })
    }
}

fn tag(key: &SecretKey, body: &[u8]) -> [u8; TAG] {
    let mut tag = [0; TAG];
    tag.copy_from_slice(&key.mac(&[LABEL, body])[..TAG]);
    tag
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    use crate::token::{KeyAlgorithm, KeyKind, KeyRing};
    use crate::{Entropy, Timestamp};

    const TOKEN: RefreshToken = RefreshToken { session: SessionId([0xab; 16]), counter: 3, key_id: 1 };

    fn ring(seed: u64) -> KeyRing {
        KeyRing::generate(KeyAlgorithm::Hs256, &mut Entropy::for_tests(seed), Timestamp(0))
    }

    fn open(text: &str, ring: &KeyRing) -> Result<RefreshToken, RefreshTokenError> {
        RefreshToken::open(text, |id| ring.find(KeyKind::Refresh, id))
    }

    fn seal(token: &RefreshToken, ring: &KeyRing) -> String {
        token.seal(ring.current(KeyKind::Refresh).unwrap())
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_token_comes_back_as_it_was_sealed_and_has_51_characters() {
        let ring = ring(1);
        let text = seal(&TOKEN, &ring);
        assert_eq!(text.len(), 51);
        assert_eq!(open(&text, &ring), Ok(TOKEN));
        assert_eq!(text, seal(&TOKEN, &ring), "a re-issue is byte-identical");
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_change_of_any_character_is_refused() {
        let ring = ring(1);
        let text = seal(&TOKEN, &ring);
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            assert!(open(std::str::from_utf8(&bytes).unwrap(), &ring).is_err(), "character {at}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn other_lengths_versions_and_keys_are_refused_with_their_reason() {
        let mine = ring(1);
        let unknown = seal(&RefreshToken { key_id: 8, ..TOKEN }, &mine);
        assert_eq!(open(&unknown, &mine), Err(RefreshTokenError::UnknownKey));
        assert_eq!(open(&seal(&TOKEN, &ring(2)), &mine), Err(RefreshTokenError::Forged));
        for text in ["", "AQ", &"A".repeat(51), &"A".repeat(60), "not base64 ü"] {
            assert_eq!(open(text, &mine), Err(RefreshTokenError::Malformed), "{text}");
        }
    }
}
