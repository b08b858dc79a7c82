//! Who gets in: the rules of an access token (DESIGN §4; RFC 9068 §4, RFC 8725), in one order, with one error a rule.
//!
//! Every request passes here, so the common token costs little: a header that is byte for byte the one our own keys
//! sign needs no parsing, keys are prepared once, and claims are read in one pass from a buffer on the stack. Any
//! other header is parsed in full, under the same rules. Signature first, claims after; *expired* is the last rule of
//! all, so that it means: a good token, only too old.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::access::{AccessClaims, is_text};
use super::claims::{Claim, HeaderMember, RawClaims, RawHeader};
use super::jwks::PublicKey;
use super::keys::{AccessKey, KeyAlgorithm, KeyRing, Material};
use super::members::{Broken, Text};
use super::provider::{Ed25519Public, Hs256};
use crate::{Millis, SessionId, Timestamp, UserId};

/// The longest token in bytes; a longer one is refused unread.
pub const MAX_TOKEN: usize = 8 * 1024;
/// How far in the future `iat` may lie, beyond the leeway: clocks of one deployment differ by less, and a token from
/// further ahead would outlive its `access_ttl` here.
const MAX_CLOCK_DIFFERENCE: Millis = Millis::from_secs(60);
/// Encoded claims up to this length, four times our usual, are decoded on the stack.
const INLINE_CLAIMS: usize = 1024;

/// The rule that a token broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TokenError {
    #[error("longer than {MAX_TOKEN} bytes")]
    TooLong,
    #[error("has a character outside A-Z a-z 0-9 - _ .")]
    Character,
    #[error("has not exactly three parts")]
    Parts,
    #[error("{0}: {1}")]
    Malformed(Part, Fault),
    #[error("names critical extensions")]
    Critical,
    #[error("has a b64 header")]
    Unencoded,
    #[error("is not of type at+jwt")]
    Type,
    #[error("names no key")]
    NoKeyId,
    /// The signature was not looked at: at the edge the authority's JWKS may know this key.
    #[error("names a key that is not known")]
    UnknownKey,
    #[error("is not signed with its key's algorithm")]
    Algorithm,
    #[error("has a wrong signature")]
    Signature,
    #[error("claim {0} is missing")]
    Missing(Claim),
    #[error("claim {0} is malformed")]
    BadClaim(Claim),
    #[error("is another issuer's")]
    Issuer,
    #[error("is meant for another audience")]
    Audience,
    #[error("was issued in the future")]
    IssuedInFuture,
    #[error("is not valid yet")]
    NotYet,
    /// Good in every other way: DESIGN §9 counts it neither as success nor as failure.
    #[error("has expired")]
    Expired,
}

/// Which part of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Header,
    Claims,
    Signature,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Part::Header => "header",
            Part::Claims => "claims",
            Part::Signature => "signature",
        })
    }
}

/// How a part is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// Also for bits after the end that are not zero: each token has one spelling.
    #[error("not canonical base64url")]
    Base64,
    #[error("not a JSON object")]
    Json,
    #[error("a name stands twice")]
    Duplicate,
}

/// Verifies access tokens for one issuer and audience. Immutable: build a new one when keys or configuration change.
#[derive(Clone)]
pub struct Verifier {
    issuer: Arc<str>,
    audience: Arc<str>,
    leeway: Millis,
    keys: Vec<VerifyKey>,
    tag: [u8; 16],
}

/// A key of any state; a retired one still verifies.
#[derive(Clone)]
struct VerifyKey {
    kid: Arc<str>,
    /// The encoded header of this key's own tokens.
    header: Arc<str>,
    check: Check,
    /// From a JWKS rather than the key ring.
    fetched: bool,
}

#[derive(Clone)]
enum Check {
    EdDsa(Ed25519Public),
    Hs256(Hs256),
}

impl Verifier {
    /// `leeway` shifts `exp`, `nbf` and `iat` in the token's favour.
    pub fn new(ring: &KeyRing, issuer: &str, audience: &str, leeway: Millis) -> Verifier {
        let keys = ring.access_keys().iter().map(VerifyKey::from).collect();
        Verifier { issuer: issuer.into(), audience: audience.into(), leeway, keys, tag: [0; 16] }.tagged()
    }

    /// This verifier with the keys of a JWKS beside the ring's own, in place of those of an earlier JWKS. A key that
    /// the ring has stays the ring's.
    pub fn with_jwks(&self, fetched: &[PublicKey]) -> Verifier {
        let mut keys: Vec<_> = self.keys.iter().filter(|key| !key.fetched).cloned().collect();
        for key in fetched {
            if keys.iter().all(|known| known.kid != key.kid) {
                keys.push(VerifyKey::from(key));
            }
        }
        Verifier { keys, ..self.clone() }.tagged()
    }

    /// Verifies all of `token` as of `now`. The error is the first rule broken.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<AccessClaims, TokenError> {
        self.verify_parts(token, now).map_err(|error| broken_form(token).unwrap_or(error))
    }

    /// Whether a token says that one of these keys signed it. Nobody else issues tokens that name our keys, so this
    /// tells ours from the application's own without the cost of a signature.
    pub fn names_our_key(&self, token: &str) -> bool {
        token.split('.').next().is_some_and(|header| self.key_for(header).is_ok())
    }

    /// The rules of a token's form are looked at only when something else is wrong: a token that passes keeps them, since
    /// each part was decoded, or was equal to what our keys sign.
    fn verify_parts(&self, token: &str, now: Timestamp) -> Result<AccessClaims, TokenError> {
        let parts = Parts::of(token)?;
        let key = self.key_for(parts.header)?;
        key.check(&parts)?;
        if parts.claims.len() <= INLINE_CLAIMS {
            let mut buffer = [0; INLINE_CLAIMS / 4 * 3];
            let length = BASE64URL.decode_slice(parts.claims, &mut buffer);
            let length = length.map_err(|_| TokenError::Malformed(Part::Claims, Fault::Base64))?;
            return self.claims(buffer.get(..length).unwrap_or_default(), now);
        }
        let json = BASE64URL.decode(parts.claims).map_err(|_| TokenError::Malformed(Part::Claims, Fault::Base64))?;
        self.claims(&json, now)
    }

    /// The rules that time can break, for claims that were verified before.
    pub(super) fn check_times(&self, claims: &AccessClaims, now: Timestamp) -> Result<(), TokenError> {
        if claims.iat > now + self.leeway + MAX_CLOCK_DIFFERENCE {
            return Err(TokenError::IssuedInFuture);
        }
        if claims.exp + self.leeway <= now {
            return Err(TokenError::Expired);
        }
        Ok(())
    }

    /// Names these keys and rules: two verifiers of one tag accept the same tokens.
    pub(super) fn tag(&self) -> [u8; 16] {
        self.tag
    }

    fn key_for(&self, encoded: &str) -> Result<&VerifyKey, TokenError> {
        if let Some(key) = self.keys.iter().find(|key| *key.header == *encoded) {
            return Ok(key);
        }
        let json = BASE64URL.decode(encoded).map_err(|_| TokenError::Malformed(Part::Header, Fault::Base64))?;
        let json = std::str::from_utf8(&json).map_err(|_| TokenError::Malformed(Part::Header, Fault::Json))?;
        let header = RawHeader::read(json).map_err(header_error)?;
        if header.crit.is_some() {
            return Err(TokenError::Critical);
        }
        if header.b64.is_some() {
            return Err(TokenError::Unencoded);
        }
        if !header.typ.is_some_and(|typ| is_access_type(&typ.0)) {
            return Err(TokenError::Type);
        }
        let kid = header.kid.ok_or(TokenError::NoKeyId)?.0;
        let key = self.keys.iter().find(|key| *key.kid == *kid).ok_or(TokenError::UnknownKey)?;
        if header.alg.is_none_or(|alg| alg.0 != key.algorithm().name()) {
            return Err(TokenError::Algorithm);
        }
        Ok(key)
    }

    fn claims(&self, json: &[u8], now: Timestamp) -> Result<AccessClaims, TokenError> {
        // Once for all of it costs less than for each string.
        let json = std::str::from_utf8(json).map_err(|_| TokenError::Malformed(Part::Claims, Fault::Json))?;
        let raw = RawClaims::read(json).map_err(claims_error)?;
        if needed(raw.iss, Claim::Iss)?.0 != *self.issuer {
            return Err(TokenError::Issuer);
        }
        if !needed(raw.aud, Claim::Aud)?.contains(&self.audience) {
            return Err(TokenError::Audience);
        }
        let sub = needed(raw.sub, Claim::Sub)?.0;
        let sid = needed(raw.sid, Claim::Sid)?.0;
        let claims = AccessClaims {
            iss: self.issuer.clone(),
            sub: UserId::new(&sub).map_err(|_| TokenError::BadClaim(Claim::Sub))?,
            aud: self.audience.clone(),
            client_id: self.text(raw.client_id, Claim::ClientId)?,
            iat: date(needed(raw.iat, Claim::Iat)?),
            exp: date(needed(raw.exp, Claim::Exp)?),
            jti: self.text(raw.jti, Claim::Jti)?,
            sid: SessionId::parse(&sid).ok_or(TokenError::BadClaim(Claim::Sid))?,
            generation: needed(raw.generation, Claim::Gen)?,
        };
        if raw.nbf.is_some_and(|nbf| date(nbf) > now + self.leeway) {
            return Err(TokenError::NotYet);
        }
        self.check_times(&claims, now)?;
        Ok(claims)
    }

    fn text(&self, raw: Option<Text<'_>>, claim: Claim) -> Result<Arc<str>, TokenError> {
        let text = needed(raw, claim)?.0;
        if !is_text(&text) {
            return Err(TokenError::BadClaim(claim));
        }
        // The usual client_id is the audience: share it.
        if *text == *self.audience { Ok(self.audience.clone()) } else { Ok((&*text).into()) }
    }

    fn tagged(mut self) -> Verifier {
        let mut hash = Sha256::new();
        hash.update(self.leeway.0.to_be_bytes());
        // A kid is a hash of its key, so it stands for the key here.
        let kids = self.keys.iter().map(|key| &*key.kid);
        for text in [&*self.issuer, &*self.audience].into_iter().chain(kids) {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
        let [tag @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _]: [u8; 32] = hash.finalize().into();
        self.tag = tag;
        self
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kids: Vec<_> = self.keys.iter().map(|key| &key.kid).collect();
        f.debug_struct("Verifier")
            .field("issuer", &self.issuer)
            .field("audience", &self.audience)
            .field("kids", &kids)
            .finish()
    }
}

impl VerifyKey {
    fn algorithm(&self) -> KeyAlgorithm {
        match self.check {
            Check::EdDsa(_) => KeyAlgorithm::EdDsa,
            Check::Hs256(_) => KeyAlgorithm::Hs256,
        }
    }

    fn check(&self, parts: &Parts<'_>) -> Result<(), TokenError> {
        // 64 bytes, the longest signature here, and what base64 may need beside them.
        let mut buffer = [0; 72];
        if parts.signature.len() > 90 {
            return Err(TokenError::Signature);
        }
        let length = BASE64URL.decode_slice(parts.signature, &mut buffer);
        let length = length.map_err(|_| TokenError::Malformed(Part::Signature, Fault::Base64))?;
        let signature = buffer.get(..length).unwrap_or_default();
        let message = parts.signed.as_bytes();
        let good = match &self.check {
            Check::EdDsa(key) => key.is_signature(message, signature),
            Check::Hs256(key) => key.is_tag(message, signature),
        };
        if good { Ok(()) } else { Err(TokenError::Signature) }
    }
}

impl From<&AccessKey> for VerifyKey {
    fn from(key: &AccessKey) -> VerifyKey {
        let check = match &key.material {
            Material::EdDsa { public, .. } => Check::EdDsa(public.clone()),
            Material::Hs256 { mac, .. } => Check::Hs256(mac.clone()),
        };
        VerifyKey { kid: key.kid.clone(), header: key.header.clone(), check, fetched: false }
    }
}

impl From<&PublicKey> for VerifyKey {
    fn from(key: &PublicKey) -> VerifyKey {
        VerifyKey {
            kid: key.kid.clone(),
            header: key.header.clone(),
            check: Check::EdDsa(key.key.clone()),
            fetched: true,
        }
    }
}

/// A token cut at its dots.
struct Parts<'a> {
    /// Header, dot and claims: what is signed.
    signed: &'a str,
    header: &'a str,
    claims: &'a str,
    signature: &'a str,
}

impl<'a> Parts<'a> {
    /// Cuts a token at its first and its last dot.
    fn of(token: &'a str) -> Result<Parts<'a>, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::TooLong);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Parts)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Parts)?;
        Ok(Parts { signed, header, claims, signature })
    }
}

/// Which rule of its form a token breaks, if any.
fn broken_form(token: &str) -> Option<TokenError> {
    if token.len() > MAX_TOKEN {
        return Some(TokenError::TooLong);
    }
    if !token.bytes().all(is_token_byte) {
        return Some(TokenError::Character);
    }
    (token.bytes().filter(|byte| *byte == b'.').count() != 2).then_some(TokenError::Parts)
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() | (byte == b'-') | (byte == b'_') | (byte == b'.')
}

/// RFC 9068 §4; compared as a media type, whose `application/` may be left out (RFC 7515 §4.1.9).
fn is_access_type(typ: &str) -> bool {
    const PREFIX: &str = "application/";
    let short = match typ.get(..PREFIX.len()) {
        Some(prefix) if prefix.eq_ignore_ascii_case(PREFIX) => typ.get(PREFIX.len()..).unwrap_or_default(),
        _ => typ,
    };
    short.eq_ignore_ascii_case("at+jwt")
}

fn needed<T>(claim: Option<T>, name: Claim) -> Result<T, TokenError> {
    claim.ok_or(TokenError::Missing(name))
}

/// A NumericDate in whole seconds. One beyond the end of time stands at its end.
fn date(seconds: u64) -> Timestamp {
    Timestamp(seconds.saturating_mul(1000))
}

fn header_error(broken: Option<Broken<HeaderMember>>) -> TokenError {
    match broken {
        None => TokenError::Malformed(Part::Header, Fault::Json),
        Some(Broken::Duplicate) => TokenError::Malformed(Part::Header, Fault::Duplicate),
        Some(Broken::Member(HeaderMember::Alg)) => TokenError::Algorithm,
        Some(Broken::Member(HeaderMember::Typ)) => TokenError::Type,
        Some(Broken::Member(HeaderMember::Kid)) => TokenError::NoKeyId,
        Some(Broken::Member(HeaderMember::Crit)) => TokenError::Critical,
        Some(Broken::Member(HeaderMember::B64)) => TokenError::Unencoded,
    }
}

fn claims_error(broken: Option<Broken<Claim>>) -> TokenError {
    match broken {
        None => TokenError::Malformed(Part::Claims, Fault::Json),
        Some(Broken::Duplicate) => TokenError::Malformed(Part::Claims, Fault::Duplicate),
        Some(Broken::Member(claim)) => TokenError::BadClaim(claim),
    }
}

#[cfg(test)]
mod tests;
