//! The signatures behind every JWT: HS256 and EdDSA (Ed25519), and nothing else.
//!
//! jsonwebtoken's stock providers bring RSA into the Worker and panic on an `x` shorter than 32 bytes, so this is our
//! own. The same prepared keys serve the request path directly: through the library every call would box a verifier,
//! rebuild the HMAC key and decompress the Ed25519 point again.

use ed25519_dalek::{Signature, SigningKey, VerifyingKey};
use hmac::{Hmac, Mac};
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::jwk::{EllipticCurve, ThumbprintHash};
use jsonwebtoken::signature::{self, Signer, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, EncodingKey};
use sha2::{Digest, Sha256};

/// The shortest HMAC key: the length of the hash (RFC 7518 §3.2).
const MIN_HS256_KEY: usize = 32;
/// What precedes the 32-byte seed in the PKCS#8 v1 form of an Ed25519 key (RFC 8410 §7).
const PKCS8_ED25519: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: new_signer,
    verifier_factory: new_verifier,
    key_utils: KeyUtils {
        rsa_pub_components_from_private_key: |_| Err(ErrorKind::UnsupportedAlgorithm.into()),
        rsa_pub_components_from_public_key: |_| Err(ErrorKind::UnsupportedAlgorithm.into()),
        ec_pub_components_from_private_key: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
        ed_pub_components_from_private_key: ed25519_public,
        compute_digest: digest,
    },
};

/// Makes jsonwebtoken's own functions use this provider, for the whole process. May be called any number of times; a
/// provider that was installed before stays. Edgekeep's own signing and verifying do not depend on it.
pub fn install() {
    let _ = PROVIDER.install_default();
}

/// HMAC-SHA256 with its key schedule done once.
#[derive(Clone)]
pub(crate) struct Hs256(Hmac<Sha256>);

impl Hs256 {
    /// `None` for a key shorter than 32 bytes.
    pub(crate) fn new(secret: &[u8]) -> Option<Hs256> {
        if secret.len() < MIN_HS256_KEY {
            return None;
        }
        Hmac::new_from_slice(secret).ok().map(Hs256)
    }

    /// For a key whose length the type already guarantees.
    pub(crate) fn from_array(secret: &[u8; MIN_HS256_KEY]) -> Hs256 {
        // One SHA-256 block, zero-padded: the same key to HMAC (RFC 2104 §2), in the one form that cannot fail.
        let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
        for (to, from) in block.iter_mut().zip(secret) {
            *to = *from;
        }
        Hs256(<Hmac<Sha256> as hmac::digest::KeyInit>::new(&block))
    }

    /// The tag over the parts, one after the other.
    pub(crate) fn tag(&self, parts: &[&[u8]]) -> [u8; 32] {
        self.over(parts).finalize().into_bytes().into()
    }

    /// Compares in constant time; a tag of another length is wrong.
    pub(crate) fn is_tag(&self, message: &[u8], tag: &[u8]) -> bool {
        self.over(&[message]).verify_slice(tag).is_ok()
    }

    fn over(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        for part in parts {
            mac.update(part);
        }
        mac
    }
}

/// An Ed25519 public key, decompressed once.
#[derive(Clone)]
pub(crate) struct Ed25519Public(VerifyingKey);

impl Ed25519Public {
    /// `None` unless these are 32 bytes, a point on the curve, and not one of small order.
    pub(crate) fn new(x: &[u8]) -> Option<Ed25519Public> {
        let x: &[u8; 32] = x.try_into().ok()?;
        VerifyingKey::from_bytes(x).ok().filter(|key| !key.is_weak()).map(Ed25519Public)
    }

    pub(crate) fn of(private: &SigningKey) -> Ed25519Public {
        Ed25519Public(private.verifying_key())
    }

    pub(crate) fn x(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// `verify_strict`: also refuses an `R` of small order, so one message has one verdict everywhere.
    pub(crate) fn is_signature(&self, message: &[u8], signature: &[u8]) -> bool {
        Signature::from_slice(signature).is_ok_and(|signature| self.0.verify_strict(message, &signature).is_ok())
    }
}

/// Ed25519's private half as jsonwebtoken wants to see it.
struct Ed25519Private(SigningKey);

impl Signer<Vec<u8>> for Hs256 {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        Ok(self.tag(&[message]).to_vec())
    }
}

impl JwtSigner for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl Verifier<Vec<u8>> for Hs256 {
    fn verify(&self, message: &[u8], tag: &Vec<u8>) -> Result<(), signature::Error> {
        self.is_tag(message, tag).then_some(()).ok_or_else(signature::Error::new)
    }
}

impl JwtVerifier for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl Signer<Vec<u8>> for Ed25519Private {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        self.0.try_sign(message).map(|signature: Signature| signature.to_vec())
    }
}

impl JwtSigner for Ed25519Private {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}

impl Verifier<Vec<u8>> for Ed25519Public {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        self.is_signature(message, signature).then_some(()).ok_or_else(signature::Error::new)
    }
}

impl JwtVerifier for Ed25519Public {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}

fn new_signer(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>, Error> {
    match (algorithm, key.family()) {
        (Algorithm::HS256, AlgorithmFamily::Hmac) => {
            let signer = Hs256::new(key.as_bytes()).ok_or(ErrorKind::InvalidKeyFormat)?;
            Ok(Box::new(signer))
        }
        (Algorithm::EdDSA, AlgorithmFamily::Ed) => Ok(Box::new(Ed25519Private(from_pkcs8(key.as_bytes())?))),
        _ => Err(ErrorKind::UnsupportedAlgorithm.into()),
    }
}

fn new_verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
    match (algorithm, key.family()) {
        (Algorithm::HS256, AlgorithmFamily::Hmac) => {
            let verifier = Hs256::new(key.try_get_as_bytes()?).ok_or(ErrorKind::InvalidKeyFormat)?;
            Ok(Box::new(verifier))
        }
        (Algorithm::EdDSA, AlgorithmFamily::Ed) => {
            let verifier = Ed25519Public::new(key.try_get_as_bytes()?).ok_or(ErrorKind::InvalidEddsaKey)?;
            Ok(Box::new(verifier))
        }
        _ => Err(ErrorKind::UnsupportedAlgorithm.into()),
    }
}

/// Reads the one form that Ed25519 private keys have here: PKCS#8 v1, 48 bytes.
fn from_pkcs8(der: &[u8]) -> Result<SigningKey, Error> {
    let seed = der.strip_prefix(&PKCS8_ED25519).and_then(|seed| <&[u8; 32]>::try_from(seed).ok());
    seed.map(SigningKey::from_bytes).ok_or_else(|| ErrorKind::InvalidEddsaKey.into())
}

fn ed25519_public(der: &[u8], curve: &EllipticCurve) -> Result<Vec<u8>, Error> {
    match curve {
        EllipticCurve::Ed25519 => Ok(from_pkcs8(der)?.verifying_key().as_bytes().to_vec()),
        _ => Err(ErrorKind::UnsupportedAlgorithm.into()),
    }
}

// The library's table of functions has this form.
#[allow(clippy::needless_pass_by_value)]
fn digest(data: &[u8], hash: ThumbprintHash) -> Result<Vec<u8>, Error> {
    match hash {
        ThumbprintHash::SHA256 => Ok(Sha256::digest(data).to_vec()),
        _ => Err(ErrorKind::UnsupportedAlgorithm.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
    use jsonwebtoken::{Header, crypto};
    use wasm_bindgen_test::wasm_bindgen_test;

    // RFC 8037 A.1, A.4.
    const ED_D: &str = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A";
    const ED_X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    const ED_SIGNED: &str = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
    const ED_SIGNATURE: &str = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    // RFC 7515 A.1.
    const HS_K: &str = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
    const HS_SIGNED: &str = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    const HS_SIGNATURE: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";

    fn ed_private() -> EncodingKey {
        EncodingKey::from_ed_der(&[&PKCS8_ED25519[..], &B64.decode(ED_D).unwrap()].concat())
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_library_signs_and_verifies_the_published_ed25519_vector_through_this_provider() {
        install();
        install();
        let public = DecodingKey::from_ed_components(ED_X).unwrap();
        let message = ED_SIGNED.as_bytes();
        assert_eq!(crypto::sign(message, &ed_private(), Algorithm::EdDSA).unwrap(), ED_SIGNATURE);
        assert!(crypto::verify(ED_SIGNATURE, message, &public, Algorithm::EdDSA).unwrap());
        assert!(!crypto::verify(ED_SIGNATURE, b"another message", &public, Algorithm::EdDSA).unwrap());
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_library_signs_and_verifies_the_published_hs256_vector_through_this_provider() {
        install();
        let secret = B64.decode(HS_K).unwrap();
        let (sign, check) = (EncodingKey::from_secret(&secret), DecodingKey::from_secret(&secret));
        let message = HS_SIGNED.as_bytes();
        assert_eq!(crypto::sign(message, &sign, Algorithm::HS256).unwrap(), HS_SIGNATURE);
        assert!(crypto::verify(HS_SIGNATURE, message, &check, Algorithm::HS256).unwrap());
        assert!(!crypto::verify(&HS_SIGNATURE[..42], message, &check, Algorithm::HS256).unwrap_or(false));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn keys_of_an_odd_length_are_errors_and_never_panics() {
        install();
        for length in [0, 1, 31, 33, 64] {
            let public = DecodingKey::from_ed_der(&vec![7; length]);
            assert!(crypto::verify(ED_SIGNATURE, b"m", &public, Algorithm::EdDSA).is_err(), "{length}");
            let private = EncodingKey::from_ed_der(&vec![7; length]);
            assert!(crypto::sign(b"m", &private, Algorithm::EdDSA).is_err(), "{length}");
        }
        for length in [0, 31] {
            assert!(crypto::sign(b"m", &EncodingKey::from_secret(&vec![7; length]), Algorithm::HS256).is_err());
            let check = DecodingKey::from_secret(&vec![7; length]);
            assert!(crypto::verify(HS_SIGNATURE, b"m", &check, Algorithm::HS256).is_err());
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_public_point_of_small_order_or_off_the_curve_is_no_key() {
        let identity = [&[1u8][..], &[0; 31]].concat();
        let off_the_curve = [&[2u8][..], &[0; 31]].concat();
        assert!(Ed25519Public::new(&identity).is_none());
        assert!(Ed25519Public::new(&off_the_curve).is_none());
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn every_other_algorithm_is_refused_and_so_is_a_key_of_another_family() {
        install();
        let secret = EncodingKey::from_secret(&[7; 64]);
        for algorithm in [Algorithm::HS384, Algorithm::HS512, Algorithm::EdDSA, Algorithm::RS256, Algorithm::ES256] {
            assert!(crypto::sign(b"m", &secret, algorithm).is_err(), "{algorithm:?}");
            assert!(jsonwebtoken::encode(&Header::new(algorithm), &1, &secret).is_err(), "{algorithm:?}");
        }
        assert!(crypto::sign(b"m", &ed_private(), Algorithm::HS256).is_err());
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_key_given_as_an_array_is_the_same_hmac_key() {
        let secret = [9; 32];
        let message: &[u8] = b"the same";
        assert_eq!(Hs256::from_array(&secret).tag(&[b"the ", b"same"]), Hs256::new(&secret).unwrap().tag(&[message]));
    }
}
