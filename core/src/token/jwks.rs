//! Reading the authority's JWK Set (RFC 7517) at the edge, which asks for it once when a token names an unknown key.
//!
//! Only Ed25519 public keys are taken. Keys of a type not known here are left out, as RFC 7517 §5 asks, so that a newer
//! authority can publish more; anything that looks like a mistake refuses the whole set.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use serde_json::{Map, Value};
use thiserror::Error;

use super::keys::{ed25519_header, ed25519_thumbprint};
use super::provider::Ed25519Public;

/// The most keys in a set; an authority has one current key, one next, and a few retired ones.
pub const MAX_JWKS_KEYS: usize = 32;
/// The members that only private and symmetric keys have (RFC 7518 §6.2.2, §6.3.2, §6.4).
const PRIVATE_MEMBERS: [&str; 8] = ["d", "k", "p", "q", "dp", "dq", "qi", "oth"];

/// A public key under its own thumbprint.
#[derive(Clone)]
pub struct PublicKey {
    pub(super) kid: Arc<str>,
    pub(super) key: Ed25519Public,
    pub(super) header: Arc<str>,
}

impl PublicKey {
    pub fn kid(&self) -> &str {
        &self.kid
    }
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PublicKey").field(&self.kid).finish()
    }
}

/// Why a JWK Set is refused. The number is the key's place in it, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum JwksError {
    #[error("not JSON with a list \"keys\"")]
    Json,
    #[error("more than {MAX_JWKS_KEYS} keys")]
    TooMany,
    #[error("key {0} is not an object")]
    NotAnObject(usize),
    #[error("key {0} has a private member")]
    Private(usize),
    #[error("key {0} is not an Ed25519 public key")]
    Point(usize),
    #[error("key {0} is Ed25519 for another algorithm")]
    Algorithm(usize),
    #[error("key {0} has a kid that is not its thumbprint")]
    Thumbprint(usize),
    #[error("key {0} has the kid of an earlier key")]
    Repeated(usize),
}

/// Reads a JWK Set. The result may be empty: an authority with HS256 keys publishes none.
pub fn parse_jwks(text: &str) -> Result<Vec<PublicKey>, JwksError> {
    let root: Value = serde_json::from_str(text).map_err(|_| JwksError::Json)?;
    let list = root.get("keys").and_then(Value::as_array).ok_or(JwksError::Json)?;
    if list.len() > MAX_JWKS_KEYS {
        return Err(JwksError::TooMany);
    }
    let mut keys: Vec<PublicKey> = Vec::new();
    for (place, value) in list.iter().enumerate() {
        let jwk = value.as_object().ok_or(JwksError::NotAnObject(place))?;
        let Some(key) = public_key(jwk, place)? else { continue };
        if keys.iter().any(|earlier| earlier.kid == key.kid) {
            return Err(JwksError::Repeated(place));
        }
        keys.push(key);
    }
    Ok(keys)
}

/// `None` for a key that is not meant for us: another type or curve, or not for signatures.
fn public_key(jwk: &Map<String, Value>, place: usize) -> Result<Option<PublicKey>, JwksError> {
    if PRIVATE_MEMBERS.iter().any(|member| jwk.contains_key(*member)) {
        return Err(JwksError::Private(place));
    }
    let is = |name: &str, text: &str| jwk.get(name).is_some_and(|value| value == text);
    let unless_absent = |name: &str, text: &str| !jwk.contains_key(name) || is(name, text);
    if !is("kty", "OKP") || !is("crv", "Ed25519") || !unless_absent("use", "sig") {
        return Ok(None);
    }
    // RFC 9864 gives EdDSA with this curve a name of its own.
    if !unless_absent("alg", "EdDSA") && !is("alg", "Ed25519") {
        return Err(JwksError::Algorithm(place));
    }
    let x = jwk.get("x").and_then(Value::as_str).and_then(|x| BASE64URL.decode(x).ok());
    let key = x.and_then(|x| Ed25519Public::new(&x)).ok_or(JwksError::Point(place))?;
    let kid = ed25519_thumbprint(key.x());
    if !is("kid", &kid) {
        return Err(JwksError::Thumbprint(place));
    }
    Ok(Some(PublicKey { header: ed25519_header(&kid).into(), kid: kid.into(), key }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::AccessClaims;
    use crate::token::{EdgeRole, KeyAlgorithm, KeyRing, TokenError, Verifier, sign_access};
    use crate::{Entropy, Millis, SessionId, Timestamp, UserId};
    use serde_json::json;
    use wasm_bindgen_test::wasm_bindgen_test;

    const NOW: Timestamp = Timestamp(1_750_000_000_000);

    fn ring(seed: u64) -> KeyRing {
        KeyRing::generate(KeyAlgorithm::EdDsa, &mut Entropy::for_tests(seed), NOW)
    }

    fn token(ring: &KeyRing) -> String {
        let claims = AccessClaims {
            iss: "edgekeep".into(),
            sub: UserId::new("42").unwrap(),
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

    /// The published key after one edit.
    fn edited(edit: impl FnOnce(&mut Value)) -> Result<Vec<PublicKey>, JwksError> {
        let mut set = serde_json::from_str(&ring(1).public_jwks()).unwrap();
        edit(&mut set);
        parse_jwks(&set.to_string())
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn an_edge_that_does_not_know_the_key_knows_it_after_one_fetch() {
        let (old, new) = (ring(1), ring(2));
        let edge = Verifier::new(&old.edge_export(EdgeRole::BesideRegion), "edgekeep", "app", Millis::ZERO);
        assert_eq!(edge.verify(&token(&new), NOW).unwrap_err(), TokenError::UnknownKey);
        let edge = edge.with_jwks(&parse_jwks(&new.public_jwks()).unwrap());
        assert!(edge.verify(&token(&new), NOW).is_ok() && edge.verify(&token(&old), NOW).is_ok());
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_later_set_replaces_the_earlier_one_and_never_the_rings_own_keys() {
        let edge = Verifier::new(&ring(1), "edgekeep", "app", Millis::ZERO);
        let edge = edge.with_jwks(&parse_jwks(&ring(2).public_jwks()).unwrap());
        let edge = edge.with_jwks(&parse_jwks(&ring(3).public_jwks()).unwrap());
        assert_eq!(edge.verify(&token(&ring(2)), NOW).unwrap_err(), TokenError::UnknownKey);
        assert!(edge.with_jwks(&[]).verify(&token(&ring(1)), NOW).is_ok());
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_published_example_key_is_read() {
        // RFC 8037 A.2, with the kid of A.3.
        let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
            "kid": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"});
        let keys = parse_jwks(&json!({ "keys": [jwk] }).to_string()).unwrap();
        assert_eq!(keys[0].kid(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn keys_of_other_types_and_uses_are_left_out() {
        assert_eq!(edited(|_| {}).unwrap().len(), 1);
        assert!(edited(|set| set["keys"][0]["kty"] = json!("EC")).unwrap().is_empty());
        assert!(edited(|set| set["keys"][0]["crv"] = json!("X25519")).unwrap().is_empty());
        assert!(edited(|set| set["keys"][0]["use"] = json!("enc")).unwrap().is_empty());
        assert!(parse_jwks(r#"{"keys":[]}"#).unwrap().is_empty());
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_set_with_a_mistake_is_refused_whole() {
        let cases = [
            (parse_jwks("").unwrap_err(), JwksError::Json),
            (parse_jwks(r#"{"keys":{}}"#).unwrap_err(), JwksError::Json),
            (edited(|set| set["keys"][0] = json!("key")).unwrap_err(), JwksError::NotAnObject(0)),
            (edited(|set| set["keys"][0]["d"] = json!("AA")).unwrap_err(), JwksError::Private(0)),
            (edited(|set| set["keys"][0] = json!({"kty": "oct", "k": "AA"})).unwrap_err(), JwksError::Private(0)),
            (edited(|set| set["keys"][0]["alg"] = json!("HS256")).unwrap_err(), JwksError::Algorithm(0)),
            (edited(|set| set["keys"][0]["x"] = json!("AAAA")).unwrap_err(), JwksError::Point(0)),
            (edited(|set| set["keys"][0]["x"] = json!(BASE64URL.encode([0; 32]))).unwrap_err(), JwksError::Point(0)),
            (edited(|set| set["keys"][0]["kid"] = json!("me")).unwrap_err(), JwksError::Thumbprint(0)),
            (
                edited(|set| {
                    let key = set["keys"][0].clone();
                    set["keys"].as_array_mut().unwrap().push(key);
                })
                .unwrap_err(),
                JwksError::Repeated(1),
            ),
            (edited(|set| set["keys"] = json!(vec![json!({"kty": "EC"}); 33])).unwrap_err(), JwksError::TooMany),
        ];
        for (found, expected) in cases {
            assert_eq!(found, expected);
        }
    }
}
