//! Access tokens as they are issued: JWTs of type `at+jwt` (RFC 9068), signed with the current access key.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use thiserror::Error;

use super::claims::Claim;
use super::keys::KeyRing;
use super::verify::MAX_TOKEN;
use crate::identity::has_control;
use crate::{SessionId, Timestamp, UserId};

/// The longest `client_id` and `jti`, in bytes.
pub(crate) const MAX_TEXT: usize = 128;

/// What an access token says. Times have whole seconds: a fraction is dropped when the token is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessClaims {
    pub iss: Arc<str>,
    pub sub: UserId,
    /// Of a verified token: the audience that it was verified for, one of perhaps several.
    pub aud: Arc<str>,
    /// 1–128 bytes without control characters, as is `jti`.
    pub client_id: Arc<str>,
    pub iat: Timestamp,
    /// The token is dead from this instant on.
    pub exp: Timestamp,
    pub jti: Arc<str>,
    pub sid: SessionId,
    /// `gen`: the refresh counter that this token was issued under.
    pub generation: u32,
}

/// Why no token was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SignError {
    #[error("there is no access key that can sign: an edge beside a region only verifies")]
    NoKey,
    #[error("claim {0} cannot be in a token")]
    Claim(Claim),
    #[error("the token would be longer than {MAX_TOKEN} bytes")]
    TooLong,
}

/// Signs with the current access key. What this returns, a verifier of the same ring, issuer and audience accepts
/// until `exp`.
pub fn sign_access(ring: &KeyRing, claims: &AccessClaims) -> Result<String, SignError> {
    for (claim, text) in [(Claim::ClientId, &claims.client_id), (Claim::Jti, &claims.jti)] {
        if !is_text(text) {
            return Err(SignError::Claim(claim));
        }
    }
    let key = ring.current_access().ok_or(SignError::NoKey)?;
    // Strings and numbers always serialize.
    let json = serde_json::to_vec(claims).unwrap_or_default();
    let mut token = String::with_capacity(key.header.len() + json.len() * 4 / 3 + 92);
    token.push_str(&key.header);
    token.push('.');
    BASE64URL.encode_string(json, &mut token);
    key.sign(&mut token).ok_or(SignError::NoKey)?;
    if token.len() > MAX_TOKEN {
        return Err(SignError::TooLong);
    }
    Ok(token)
}

/// What `client_id` and `jti` may be.
pub(crate) fn is_text(text: &str) -> bool {
    (1..=MAX_TEXT).contains(&text.len()) && !has_control(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Entropy;
    use crate::token::{EdgeRole, KeyAlgorithm, install_jwt_provider};
    use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};
    use serde_json::{Value, json};
    use wasm_bindgen_test::wasm_bindgen_test;

    const NOW: Timestamp = Timestamp(1_750_000_000_000);

    fn claims() -> AccessClaims {
        AccessClaims {
            iss: "edgekeep".into(),
            sub: UserId::new("42").unwrap(),
            aud: "app".into(),
            client_id: "app".into(),
            iat: NOW,
            exp: Timestamp(NOW.0 + 900_999),
            jti: "j-1".into(),
            sid: SessionId([7; 16]),
            generation: 3,
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn another_jwt_library_reads_our_token_with_the_published_key() {
        install_jwt_provider();
        let ring = KeyRing::generate(KeyAlgorithm::EdDsa, &mut Entropy::for_tests(1), NOW);
        let token = sign_access(&ring, &claims()).unwrap();
        let jwks: JwkSet = serde_json::from_str(&ring.public_jwks()).unwrap();
        let mut rules = Validation::new(Algorithm::EdDSA);
        rules.validate_exp = false;
        rules.set_audience(&["app"]);
        let key = DecodingKey::from_jwk(&jwks.keys[0]).unwrap();
        let read = jsonwebtoken::decode::<Value>(&token, &key, &rules).unwrap();
        assert_eq!(read.header.typ.as_deref(), Some("at+jwt"));
        assert_eq!(read.header.kid.as_deref(), Some(ring.current_access().unwrap().kid()));
        let expected = json!({
            "iss": "edgekeep", "sub": "42", "aud": "app", "client_id": "app", "iat": 1_750_000_000,
            "exp": 1_750_000_900, "jti": "j-1", "sid": "07070707-0707-0707-0707-070707070707", "gen": 3,
        });
        assert_eq!(read.claims, expected);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_same_claims_and_keys_give_the_same_bytes() {
        for algorithm in [KeyAlgorithm::EdDsa, KeyAlgorithm::Hs256] {
            let ring = KeyRing::generate(algorithm, &mut Entropy::for_tests(1), NOW);
            assert_eq!(sign_access(&ring, &claims()), sign_access(&ring, &claims()));
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_public_half_signs_nothing() {
        let ring = KeyRing::generate(KeyAlgorithm::EdDsa, &mut Entropy::for_tests(1), NOW);
        assert_eq!(sign_access(&ring.edge_export(EdgeRole::BesideRegion), &claims()), Err(SignError::NoKey));
        assert!(sign_access(&ring.edge_export(EdgeRole::Alone), &claims()).is_ok());
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn what_no_verifier_would_take_is_not_signed() {
        let ring = KeyRing::generate(KeyAlgorithm::Hs256, &mut Entropy::for_tests(1), NOW);
        for text in ["", "a\nb", &"x".repeat(129)] {
            let client = AccessClaims { client_id: text.into(), ..claims() };
            assert_eq!(sign_access(&ring, &client), Err(SignError::Claim(Claim::ClientId)));
            let id = AccessClaims { jti: text.into(), ..claims() };
            assert_eq!(sign_access(&ring, &id), Err(SignError::Claim(Claim::Jti)));
        }
        let long = AccessClaims { aud: "x".repeat(MAX_TOKEN).into(), ..claims() };
        assert_eq!(sign_access(&ring, &long), Err(SignError::TooLong));
    }
}
