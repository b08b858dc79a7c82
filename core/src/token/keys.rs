//! The keys of a deployment and how they are replaced (DESIGN §4, Keys).
//!
//! Four kinds that never share a secret: access keys sign access tokens, refresh keys tag refresh tokens, sticky keys
//! tag the routing cookie, log keys hash what logs may not show. Each key is `next` (published, so that every gateway
//! knows it before it signs), `current` (it signs) or `retired` (it only verifies what it signed).

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use ed25519_dalek::{Signer, SigningKey};
use jsonwebtoken::jwk::{
    AlgorithmParameters, CommonParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm as JwkAlgorithm,
    OctetKeyPairParameters, OctetKeyPairType, PublicKeyUse,
};
use jsonwebtoken::{Algorithm, Header};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::keyfile::KeyError;
use super::provider::{Ed25519Public, Hs256};
use super::roster::{KeyNames, LiveGateway};
use crate::config::Config;
use crate::{Entropy, Millis, Timestamp};

/// What an access key signs with. It belongs to the key and is never taken from a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyAlgorithm {
    /// Ed25519 (RFC 8037): an edge holds only the public half.
    #[default]
    EdDsa,
    /// HMAC-SHA256: whoever verifies can also sign.
    Hs256,
}

impl KeyAlgorithm {
    /// JOSE's name, as in the header's `alg` and in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            KeyAlgorithm::EdDsa => "EdDSA",
            KeyAlgorithm::Hs256 => "HS256",
        }
    }

    pub fn from_name(name: &str) -> Option<KeyAlgorithm> {
        [KeyAlgorithm::EdDsa, KeyAlgorithm::Hs256].into_iter().find(|algorithm| algorithm.name() == name)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    Next,
    Current,
    Retired,
}

impl KeyState {
    pub const fn name(self) -> &'static str {
        match self {
            KeyState::Next => "next",
            KeyState::Current => "current",
            KeyState::Retired => "retired",
        }
    }

    pub fn from_name(name: &str) -> Option<KeyState> {
        [KeyState::Next, KeyState::Current, KeyState::Retired].into_iter().find(|state| state.name() == name)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    Access,
    Refresh,
    Sticky,
    Log,
}

impl KeyKind {
    pub const ALL: [KeyKind; 4] = [KeyKind::Access, KeyKind::Refresh, KeyKind::Sticky, KeyKind::Log];

    /// The kind's member in keys.json.
    pub const fn name(self) -> &'static str {
        match self {
            KeyKind::Access => "access",
            KeyKind::Refresh => "refresh",
            KeyKind::Sticky => "sticky",
            KeyKind::Log => "log",
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// For whom an export is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EdgeRole {
    /// A region issues and refreshes: only what verifies goes (with HS256 that is the secret), and no refresh keys.
    BesideRegion,
    /// The edge issues by itself: everything goes.
    Alone,
}

/// Where a key stands in its rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) state: KeyState,
    pub(super) created: Timestamp,
    /// When it entered its state.
    pub(super) since: Timestamp,
    /// When every live gateway was seen to sign with another key; a retired key's time to stay counts from here.
    pub(super) settled: Option<Timestamp>,
}

impl Standing {
    fn new(state: KeyState, now: Timestamp) -> Standing {
        Standing { state, created: now, since: now, settled: None }
    }

    fn become_state(&mut self, state: KeyState, now: Timestamp) {
        self.state = state;
        self.since = now;
        self.settled = None;
    }

    fn settle(&mut self, signs_somewhere: bool, now: Timestamp) {
        if self.state == KeyState::Retired {
            self.settled = if signs_somewhere { None } else { self.settled.or(Some(now)) };
        }
    }

    fn outlived(&self, now: Timestamp, stay: Millis) -> bool {
        self.state == KeyState::Retired && self.settled.is_some_and(|settled| now >= settled + stay)
    }
}

/// 32 secret bytes, wiped when dropped and never printed.
#[derive(Clone)]
pub(super) struct Secret(Zeroizing<[u8; 32]>);

impl Secret {
    pub(super) fn new(bytes: [u8; 32]) -> Secret {
        Secret(Zeroizing::new(bytes))
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A key that signs access tokens, or only verifies them.
#[derive(Clone)]
pub struct AccessKey {
    pub(super) kid: Arc<str>,
    pub(super) standing: Standing,
    pub(super) material: Material,
    /// The encoded header of every token that this key signs; a verifier knows its own tokens by these bytes.
    pub(super) header: Arc<str>,
}

#[derive(Clone)]
pub(super) enum Material {
    EdDsa { public: Ed25519Public, private: Option<Box<SigningKey>> },
    Hs256 { secret: Secret, mac: Hs256 },
}

impl AccessKey {
    pub(super) fn new(material: Material, standing: Standing) -> AccessKey {
        let (algorithm, kid) = match &material {
            Material::EdDsa { public, .. } => (Algorithm::EdDSA, ed25519_thumbprint(public.x())),
            Material::Hs256 { secret, .. } => (Algorithm::HS256, hs256_thumbprint(secret.bytes())),
        };
        let header = own_header(algorithm, &kid);
        AccessKey { kid: kid.into(), standing, material, header: header.into() }
    }

    pub(super) fn from_seed(algorithm: KeyAlgorithm, seed: [u8; 32], standing: Standing) -> AccessKey {
        AccessKey::new(Material::from_seed(algorithm, Secret::new(seed)), standing)
    }

    /// The RFC 7638 thumbprint, also for HS256: a hash of the secret, which tells nothing about 256 random bits.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    pub fn algorithm(&self) -> KeyAlgorithm {
        match self.material {
            Material::EdDsa { .. } => KeyAlgorithm::EdDsa,
            Material::Hs256 { .. } => KeyAlgorithm::Hs256,
        }
    }

    pub fn state(&self) -> KeyState {
        self.standing.state
    }

    /// Whether it has what signing needs.
    pub fn can_sign(&self) -> bool {
        !matches!(self.material, Material::EdDsa { private: None, .. })
    }

    /// Appends the signature's base64url to `message`. `None`: only the public half is here.
    pub(super) fn sign(&self, message: &mut String) -> Option<()> {
        let bytes = message.as_bytes();
        match &self.material {
            Material::EdDsa { private, .. } => {
                let signature = private.as_ref()?.try_sign(bytes).ok()?;
                message.push('.');
                BASE64URL.encode_string(signature.to_bytes(), message);
            }
            Material::Hs256 { mac, .. } => {
                let tag = mac.tag(&[bytes]);
                message.push('.');
                BASE64URL.encode_string(tag, message);
            }
        }
        Some(())
    }

    fn without_private_half(mut self) -> AccessKey {
        if let Material::EdDsa { private, .. } = &mut self.material {
            *private = None;
        }
        self
    }

    fn jwk(&self) -> Option<Jwk> {
        let Material::EdDsa { public, .. } = &self.material else { return None };
        let common = CommonParameters {
            public_key_use: Some(PublicKeyUse::Signature),
            key_algorithm: Some(JwkAlgorithm::EdDSA),
            key_id: Some(self.kid.to_string()),
            ..CommonParameters::default()
        };
        let algorithm = AlgorithmParameters::OctetKeyPair(OctetKeyPairParameters {
            key_type: OctetKeyPairType::OctetKeyPair,
            curve: EllipticCurve::Ed25519,
            x: BASE64URL.encode(public.x()),
        });
        Some(Jwk { common, algorithm })
    }
}

impl Material {
    pub(super) fn from_seed(algorithm: KeyAlgorithm, seed: Secret) -> Material {
        match algorithm {
            KeyAlgorithm::EdDsa => {
                let private = SigningKey::from_bytes(seed.bytes());
                Material::EdDsa { public: Ed25519Public::of(&private), private: Some(Box::new(private)) }
            }
            KeyAlgorithm::Hs256 => Material::Hs256 { mac: Hs256::from_array(seed.bytes()), secret: seed },
        }
    }
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessKey")
            .field("kid", &self.kid)
            .field("algorithm", &self.algorithm())
            .field("standing", &self.standing)
            .field("can_sign", &self.can_sign())
            .finish_non_exhaustive()
    }
}

/// The header that our own tokens carry, encoded.
fn own_header(algorithm: Algorithm, kid: &str) -> String {
    let header = Header { typ: Some("at+jwt".into()), kid: Some(kid.into()), ..Header::new(algorithm) };
    // Serializing strings cannot fail; if it ever did, an empty text matches no token and the full parse decides.
    BASE64URL.encode(serde_json::to_vec(&header).unwrap_or_default())
}

pub(super) fn ed25519_header(kid: &str) -> String {
    own_header(Algorithm::EdDSA, kid)
}

/// RFC 7638 over RFC 8037's required members.
pub(super) fn ed25519_thumbprint(x: &[u8; 32]) -> String {
    thumbprint(&format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, BASE64URL.encode(x)))
}

fn hs256_thumbprint(secret: &[u8; 32]) -> String {
    thumbprint(&Zeroizing::new(format!(r#"{{"k":"{}","kty":"oct"}}"#, BASE64URL.encode(secret))))
}

fn thumbprint(canonical: &str) -> String {
    BASE64URL.encode(Sha256::digest(canonical))
}

/// A refresh, sticky or log key: a one-byte id, which what it tags carries, and an HMAC-SHA256 key.
#[derive(Clone)]
pub struct SecretKey {
    pub(super) id: u8,
    pub(super) standing: Standing,
    pub(super) secret: Secret,
    mac: Hs256,
}

impl SecretKey {
    pub(super) fn new(id: u8, secret: Secret, standing: Standing) -> SecretKey {
        SecretKey { id, standing, mac: Hs256::from_array(secret.bytes()), secret }
    }

    #[cfg(test)]
    pub(crate) fn for_tests(id: u8, secret: [u8; 32]) -> SecretKey {
        SecretKey::new(id, Secret::new(secret), Standing::new(KeyState::Current, Timestamp(0)))
    }

    pub fn id(&self) -> u8 {
        self.id
    }

    pub fn state(&self) -> KeyState {
        self.standing.state
    }

    /// Its id with a fingerprint of its secret: two key files that were made apart both begin with id 1.
    pub fn name(&self) -> String {
        let fingerprint = self.mac(&[b"edgekeep key name v1"]);
        fingerprint.iter().take(8).fold(format!("{}-", self.id), |name, byte| name + &format!("{byte:02x}"))
    }

    /// HMAC-SHA256 over the parts, one after the other: begin them with a label of the use, and let lengths be fixed.
    pub fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        self.mac.tag(parts)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretKey").field("id", &self.id).field("standing", &self.standing).finish_non_exhaustive()
    }
}

/// How long a retired key must still verify what it signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The longest life of an access token, leeway included.
    pub access: Millis,
    /// `session.refresh_ttl`; log keys stay as long, so that one session's lines can be matched.
    pub refresh: Millis,
    /// `balance.sticky.max_age`.
    pub sticky: Millis,
}

impl Retention {
    /// As a deployment's configuration gives it.
    pub fn new(config: &Config) -> Retention {
        Retention {
            access: config.session.access_ttl + config.session.leeway,
            refresh: config.session.refresh_ttl,
            sticky: config.balance.sticky.max_age,
        }
    }

    /// How long a retired key of this kind stays once nobody signs with it.
    pub fn of(&self, kind: KeyKind) -> Millis {
        match kind {
            KeyKind::Access => self.access,
            KeyKind::Refresh | KeyKind::Log => self.refresh,
            KeyKind::Sticky => self.sticky,
        }
    }
}

/// One line of `edgekeep keys list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRow {
    pub kind: KeyKind,
    /// The `kid`, or the one-byte id in decimal.
    pub id: String,
    pub algorithm: KeyAlgorithm,
    pub state: KeyState,
    pub created: Timestamp,
    /// When it entered its state.
    pub since: Timestamp,
    /// Of a retired key: when every live gateway was seen to sign with another one.
    pub settled: Option<Timestamp>,
    /// False for a public half alone.
    pub can_sign: bool,
}

impl KeyRow {
    /// When this key can go; `None` while it is in use, or while nobody has seen that it is not.
    pub fn may_go_at(&self, retention: &Retention) -> Option<Timestamp> {
        self.settled.map(|settled| settled + retention.of(self.kind))
    }
}

/// All keys of a deployment. At most one of a kind is `next`; one is `current`, except that an edge beside a region
/// has no refresh keys.
#[derive(Clone, Debug)]
pub struct KeyRing {
    pub(super) access: Vec<AccessKey>,
    pub(super) refresh: Vec<SecretKey>,
    pub(super) sticky: Vec<SecretKey>,
    pub(super) log: Vec<SecretKey>,
}

impl KeyRing {
    /// One current key of each kind.
    pub fn generate(algorithm: KeyAlgorithm, entropy: &mut Entropy, now: Timestamp) -> KeyRing {
        let standing = Standing::new(KeyState::Current, now);
        let mut secret = || vec![SecretKey::new(1, Secret::new(entropy.bytes()), standing)];
        let (refresh, sticky, log) = (secret(), secret(), secret());
        KeyRing { access: vec![AccessKey::from_seed(algorithm, entropy.bytes(), standing)], refresh, sticky, log }
    }

    /// Whether this ring can issue sessions: it signs access tokens and tags refresh tokens.
    pub fn can_issue(&self) -> bool {
        self.current_access().is_some_and(AccessKey::can_sign) && self.current(KeyKind::Refresh).is_some()
    }

    pub fn current_access(&self) -> Option<&AccessKey> {
        self.access.iter().find(|key| key.state() == KeyState::Current)
    }

    pub fn access_keys(&self) -> &[AccessKey] {
        &self.access
    }

    /// The refresh, sticky or log key to tag with. None of kind `Access`.
    pub fn current(&self, kind: KeyKind) -> Option<&SecretKey> {
        self.secrets(kind).iter().find(|key| key.state() == KeyState::Current)
    }

    /// All refresh, sticky or log keys, the current one first.
    pub fn current_first(&self, kind: KeyKind) -> impl Iterator<Item = &SecretKey> {
        let others = self.secrets(kind).iter().filter(|key| key.state() != KeyState::Current);
        self.current(kind).into_iter().chain(others)
    }

    /// The refresh, sticky or log key of this id, whatever its state: another gateway may already use the next one.
    pub fn find(&self, kind: KeyKind, id: u8) -> Option<&SecretKey> {
        self.secrets(kind).iter().find(|key| key.id == id)
    }

    pub(super) fn secrets(&self, kind: KeyKind) -> &[SecretKey] {
        match kind {
            KeyKind::Access => &[],
            KeyKind::Refresh => &self.refresh,
            KeyKind::Sticky => &self.sticky,
            KeyKind::Log => &self.log,
        }
    }

    /// First step of a rotation: a next key of every kind, which verifies everywhere before anybody signs with it.
    pub fn publish_next(
        &self,
        algorithm: KeyAlgorithm,
        entropy: &mut Entropy,
        now: Timestamp,
    ) -> Result<KeyRing, KeyError> {
        self.publish_next_of(&KeyKind::ALL, algorithm, entropy, now)
    }

    /// The first step for some kinds only; `algorithm` is that of a new access key.
    pub fn publish_next_of(
        &self,
        kinds: &[KeyKind],
        algorithm: KeyAlgorithm,
        entropy: &mut Entropy,
        now: Timestamp,
    ) -> Result<KeyRing, KeyError> {
        if !self.can_issue() {
            return Err(KeyError::NotIssuing);
        }
        let is_next = |row: &KeyRow| row.state == KeyState::Next && kinds.contains(&row.kind);
        if let Some(row) = self.list().into_iter().find(is_next) {
            return Err(KeyError::NextExists(row.kind));
        }
        let mut ring = self.clone();
        let standing = Standing::new(KeyState::Next, now);
        if kinds.contains(&KeyKind::Access) {
            ring.access.push(AccessKey::from_seed(algorithm, entropy.bytes(), standing));
        }
        for (kind, keys) in ring.secrets_mut().into_iter().filter(|(kind, _)| kinds.contains(kind)) {
            let id = free_id(keys).ok_or(KeyError::NoFreeId(kind))?;
            keys.push(SecretKey::new(id, Secret::new(entropy.bytes()), standing));
        }
        Ok(ring)
    }

    /// Second step, once every live gateway has reported the next keys ([`KeyRing::next_names`] against
    /// [`gateways_lacking`](super::gateways_lacking)): they sign, and the current ones retire.
    pub fn promote_next(&self, now: Timestamp) -> Result<KeyRing, KeyError> {
        self.promote_next_of(&KeyKind::ALL, now)
    }

    /// The second step for some kinds only.
    pub fn promote_next_of(&self, kinds: &[KeyKind], now: Timestamp) -> Result<KeyRing, KeyError> {
        if !self.can_issue() {
            return Err(KeyError::NotIssuing);
        }
        let mut ring = self.clone();
        if kinds.contains(&KeyKind::Access) {
            promote(KeyKind::Access, ring.access.iter_mut().map(|key| &mut key.standing), now)?;
        }
        for (kind, keys) in ring.secrets_mut().into_iter().filter(|(kind, _)| kinds.contains(kind)) {
            promote(kind, keys.iter_mut().map(|key| &mut key.standing), now)?;
        }
        Ok(ring)
    }

    /// Third step: notes which retired keys no live gateway signs with any more. A key's time to stay counts from here,
    /// since a gateway goes on signing with the old one until it has taken up the new file.
    pub fn settle(&self, live: &[LiveGateway], now: Timestamp) -> KeyRing {
        let signs = |kind, name: &str| live.iter().any(|gateway| gateway.report.signs.contains(kind, name));
        let mut ring = self.clone();
        for key in &mut ring.access {
            let signs = signs(KeyKind::Access, &key.kid);
            key.standing.settle(signs, now);
        }
        for (kind, keys) in ring.secrets_mut() {
            for key in keys {
                let signs = signs(kind, &key.name());
                key.standing.settle(signs, now);
            }
        }
        ring
    }

    /// Last step: without the retired keys that nothing alive was signed with.
    pub fn drop_retired(&self, now: Timestamp, retention: &Retention) -> KeyRing {
        let mut ring = self.clone();
        ring.access.retain(|key| !key.standing.outlived(now, retention.of(KeyKind::Access)));
        for (kind, keys) in ring.secrets_mut() {
            keys.retain(|key| !key.standing.outlived(now, retention.of(kind)));
        }
        ring
    }

    /// The names of all keys that it verifies with.
    pub fn names(&self) -> KeyNames {
        self.names_where(|_| true)
    }

    /// The names of the keys that it signs with.
    pub fn signing_names(&self) -> KeyNames {
        self.names_where(|state| state == KeyState::Current)
    }

    /// The names of the next keys of some kinds.
    pub fn next_names(&self, kinds: &[KeyKind]) -> KeyNames {
        let mut names = self.names_where(|state| state == KeyState::Next);
        names.keep_kinds(kinds);
        names
    }

    fn names_where(&self, wanted: impl Fn(KeyState) -> bool) -> KeyNames {
        let access = self.access.iter().filter(|key| wanted(key.state()));
        let mut names: KeyNames = access.map(|key| (KeyKind::Access, key.kid.to_string())).collect();
        for kind in KeyKind::ALL {
            let keys = self.secrets(kind).iter().filter(|key| wanted(key.state()));
            names.extend(keys.map(|key| (kind, key.name())));
        }
        names
    }

    /// The JWK Set (RFC 7517) of all public keys, the next one included. HS256 keys have none and never appear.
    pub fn public_jwks(&self) -> String {
        let set = JwkSet { keys: self.access.iter().filter_map(AccessKey::jwk).collect() };
        serde_json::to_string(&set).unwrap_or_else(|_| r#"{"keys":[]}"#.to_owned())
    }

    /// What the edge is given.
    pub fn edge_export(&self, role: EdgeRole) -> KeyRing {
        match role {
            EdgeRole::Alone => self.clone(),
            EdgeRole::BesideRegion => KeyRing {
                access: self.access.iter().cloned().map(AccessKey::without_private_half).collect(),
                refresh: Vec::new(),
                sticky: self.sticky.clone(),
                log: self.log.clone(),
            },
        }
    }

    /// Every key without its secret, for `keys list`.
    pub fn list(&self) -> Vec<KeyRow> {
        let access = self.access.iter().map(|key| KeyRow {
            kind: KeyKind::Access,
            id: key.kid.to_string(),
            algorithm: key.algorithm(),
            state: key.standing.state,
            created: key.standing.created,
            since: key.standing.since,
            settled: key.standing.settled,
            can_sign: key.can_sign(),
        });
        let secrets = KeyKind::ALL.into_iter().flat_map(|kind| {
            self.secrets(kind).iter().map(move |key| KeyRow {
                kind,
                id: key.id.to_string(),
                algorithm: KeyAlgorithm::Hs256,
                state: key.standing.state,
                created: key.standing.created,
                since: key.standing.since,
                settled: key.standing.settled,
                can_sign: true,
            })
        });
        access.chain(secrets).collect()
    }

    fn secrets_mut(&mut self) -> [(KeyKind, &mut Vec<SecretKey>); 3] {
        [(KeyKind::Refresh, &mut self.refresh), (KeyKind::Sticky, &mut self.sticky), (KeyKind::Log, &mut self.log)]
    }
}

/// The id after the youngest key's, so that an id comes back as late as it can.
fn free_id(keys: &[SecretKey]) -> Option<u8> {
    let last = keys.iter().max_by_key(|key| key.standing.created).map_or(0, |key| key.id);
    (1..=u8::MAX).map(|step| last.wrapping_add(step)).find(|id| keys.iter().all(|key| key.id != *id))
}

fn promote<'a>(
    kind: KeyKind,
    standings: impl Iterator<Item = &'a mut Standing>,
    now: Timestamp,
) -> Result<(), KeyError> {
    let mut promoted = false;
    for standing in standings {
        match standing.state {
            KeyState::Next => {
                standing.become_state(KeyState::Current, now);
                promoted = true;
            }
            KeyState::Current => standing.become_state(KeyState::Retired, now),
            KeyState::Retired => {}
        }
    }
    promoted.then_some(()).ok_or(KeyError::NoNext(kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::GatewayReport;
    use wasm_bindgen_test::wasm_bindgen_test;

    const NOW: Timestamp = Timestamp(1_750_000_000_000);
    const RETENTION: Retention =
        Retention { access: Millis(900_000), refresh: Millis(86_400_000 * 30), sticky: Millis(86_400_000) };

    fn ring(algorithm: KeyAlgorithm) -> KeyRing {
        KeyRing::generate(algorithm, &mut Entropy::for_tests(1), NOW)
    }

    fn states(ring: &KeyRing, kind: KeyKind) -> Vec<KeyState> {
        ring.list().into_iter().filter(|row| row.kind == kind).map(|row| row.state).collect()
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn an_ed25519_thumbprint_is_the_published_one() {
        // RFC 8037 A.3.
        let x = BASE64URL.decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo").unwrap();
        assert_eq!(ed25519_thumbprint(&x.try_into().unwrap()), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_thumbprint_hash_is_the_published_one() {
        // RFC 7638 §3.1: the RSA key's canonical form.
        let canonical = concat!(
            r#"{"e":"AQAB","kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxu"#,
            "hDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY",
            "368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPks",
            r#"INHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"}"#
        );
        assert_eq!(thumbprint(canonical), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn our_thumbprints_are_the_librarys() {
        use jsonwebtoken::EncodingKey;
        use jsonwebtoken::jwk::ThumbprintHash;
        super::super::provider::install();
        let ed = ring(KeyAlgorithm::EdDsa);
        let theirs = ed.access[0].jwk().unwrap().thumbprint(ThumbprintHash::SHA256).unwrap();
        assert_eq!(ed.access[0].kid(), theirs);
        let hs = ring(KeyAlgorithm::Hs256);
        let Material::Hs256 { secret, .. } = &hs.access[0].material else { panic!("not HS256") };
        let jwk = Jwk::from_encoding_key(&EncodingKey::from_secret(secret.bytes()), Algorithm::HS256).unwrap();
        assert_eq!(hs.access[0].kid(), jwk.thumbprint(ThumbprintHash::SHA256).unwrap());
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_rotation_publishes_then_promotes_then_drops_by_age() {
        let mut entropy = Entropy::for_tests(2);
        let published = ring(KeyAlgorithm::EdDsa).publish_next(KeyAlgorithm::Hs256, &mut entropy, NOW).unwrap();
        for kind in KeyKind::ALL {
            assert_eq!(states(&published, kind), [KeyState::Current, KeyState::Next], "{kind}");
        }
        assert_eq!(published.current_access().unwrap().algorithm(), KeyAlgorithm::EdDsa);

        let later = NOW + Millis(60_000);
        let promoted = published.promote_next(later).unwrap();
        for kind in KeyKind::ALL {
            assert_eq!(states(&promoted, kind), [KeyState::Retired, KeyState::Current], "{kind}");
        }
        assert_eq!(promoted.current_access().unwrap().algorithm(), KeyAlgorithm::Hs256);
        assert_eq!(promoted.current(KeyKind::Refresh).unwrap().id(), 2);
        assert_eq!(promoted.find(KeyKind::Refresh, 1).unwrap().state(), KeyState::Retired);

        let unsettled = promoted.drop_retired(later + RETENTION.refresh, &RETENTION);
        assert_eq!(unsettled.list(), promoted.list(), "nobody knows yet that no gateway signs with them");
        let settled = promoted.settle(&[], later).settle(&[], later + Millis(5));
        let left = |at: Timestamp| KeyKind::ALL.map(|kind| states(&settled.drop_retired(at, &RETENTION), kind).len());
        assert_eq!(left(later + Millis(899_999)), [2, 2, 2, 2]);
        assert_eq!(left(later + RETENTION.access), [1, 2, 2, 2]);
        assert_eq!(left(later + RETENTION.sticky), [1, 2, 1, 2]);
        assert_eq!(left(later + RETENTION.refresh), [1, 1, 1, 1]);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn one_kind_rotates_while_the_others_stay() {
        let mut entropy = Entropy::for_tests(2);
        let kinds = [KeyKind::Access, KeyKind::Log];
        let first = ring(KeyAlgorithm::EdDsa);
        let published = first.publish_next_of(&kinds, KeyAlgorithm::EdDsa, &mut entropy, NOW).unwrap();
        assert_eq!(published.next_names(&[KeyKind::Log]).of(KeyKind::Log).len(), 1);
        assert!(published.next_names(&[KeyKind::Sticky]).is_empty());
        // What the others do meanwhile is no obstacle.
        let all = published.publish_next_of(&[KeyKind::Refresh], KeyAlgorithm::EdDsa, &mut entropy, NOW).unwrap();
        let promoted = all.promote_next_of(&kinds, NOW).unwrap();
        let counts = KeyKind::ALL.map(|kind| states(&promoted, kind));
        use KeyState::{Current, Next, Retired};
        assert_eq!(counts, [vec![Retired, Current], vec![Current, Next], vec![Current], vec![Retired, Current]]);
        assert_eq!(promoted.promote_next_of(&kinds, NOW).unwrap_err(), KeyError::NoNext(KeyKind::Access));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_retired_keys_time_counts_only_while_no_gateway_signs_with_it() {
        let old = ring(KeyAlgorithm::EdDsa);
        let published = old.publish_next(KeyAlgorithm::EdDsa, &mut Entropy::for_tests(2), NOW).unwrap();
        let promoted = published.promote_next(NOW).unwrap();
        let at = |ring: &KeyRing| {
            let rows = ring.list();
            rows.iter().find(|row| row.state == KeyState::Retired).unwrap().may_go_at(&RETENTION)
        };
        let gateway = |ring: &KeyRing| LiveGateway {
            id: "b".into(),
            report: GatewayReport { knows: ring.names(), signs: ring.signing_names(), ..GatewayReport::default() },
        };
        let (behind, done) = (gateway(&published), gateway(&promoted));
        let unsettled = promoted.settle(std::slice::from_ref(&behind), NOW + Millis(10));
        assert_eq!(at(&unsettled), None);
        let settled = unsettled.settle(std::slice::from_ref(&done), NOW + Millis(20));
        assert_eq!(at(&settled), Some(NOW + Millis(20) + RETENTION.access));
        // A gateway that comes back with an old file starts the time anew.
        let again = settled.settle(&[done.clone(), behind], NOW + Millis(30));
        assert_eq!(at(&again), None);
        assert_eq!(at(&again.settle(&[done], NOW + Millis(40))), Some(NOW + Millis(40) + RETENTION.access));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn keys_of_two_files_with_one_id_have_two_names() {
        let (mine, theirs) =
            (ring(KeyAlgorithm::Hs256), KeyRing::generate(KeyAlgorithm::Hs256, &mut Entropy::for_tests(9), NOW));
        let name = |ring: &KeyRing| ring.current(KeyKind::Refresh).unwrap().name();
        assert!(name(&mine).starts_with("1-") && name(&theirs).starts_with("1-"));
        assert_ne!(name(&mine), name(&theirs));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn steps_out_of_order_are_refused() {
        let mut entropy = Entropy::for_tests(3);
        let first = ring(KeyAlgorithm::EdDsa);
        assert_eq!(first.promote_next(NOW).unwrap_err(), KeyError::NoNext(KeyKind::Access));
        let published = first.publish_next(KeyAlgorithm::EdDsa, &mut entropy, NOW).unwrap();
        let again = published.publish_next(KeyAlgorithm::EdDsa, &mut entropy, NOW).unwrap_err();
        assert_eq!(again, KeyError::NextExists(KeyKind::Access));
        let edge = first.edge_export(EdgeRole::BesideRegion);
        assert_eq!(edge.publish_next(KeyAlgorithm::EdDsa, &mut entropy, NOW).unwrap_err(), KeyError::NotIssuing);
        assert_eq!(edge.promote_next(NOW).unwrap_err(), KeyError::NotIssuing);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn one_byte_ids_come_back_only_after_all_others() {
        let mut entropy = Entropy::for_tests(4);
        let (mut ring, mut now) = (ring(KeyAlgorithm::Hs256), NOW);
        let mut seen = vec![1];
        for _ in 0..255 {
            now = now + RETENTION.refresh;
            ring = ring.publish_next(KeyAlgorithm::Hs256, &mut entropy, now).unwrap().promote_next(now).unwrap();
            ring = ring.settle(&[], now).drop_retired(now + RETENTION.refresh, &RETENTION);
            seen.push(ring.current(KeyKind::Sticky).unwrap().id());
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 256);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn when_all_ids_are_taken_a_new_key_is_refused() {
        let mut entropy = Entropy::for_tests(5);
        let (mut ring, mut now) = (ring(KeyAlgorithm::Hs256), NOW);
        for _ in 0..255 {
            now = now + Millis(1);
            ring = ring.publish_next(KeyAlgorithm::Hs256, &mut entropy, now).unwrap().promote_next(now).unwrap();
        }
        let full = ring.publish_next(KeyAlgorithm::Hs256, &mut entropy, now).unwrap_err();
        assert_eq!(full, KeyError::NoFreeId(KeyKind::Refresh));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_jwks_has_every_public_key_and_nothing_secret() {
        let mut entropy = Entropy::for_tests(6);
        let mixed = ring(KeyAlgorithm::EdDsa).publish_next(KeyAlgorithm::Hs256, &mut entropy, NOW).unwrap();
        let jwks: serde_json::Value = serde_json::from_str(&mixed.public_jwks()).unwrap();
        let keys = jwks["keys"].as_array().unwrap();
        assert_eq!(keys.len(), 1);
        let names: Vec<_> = keys[0].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names, ["alg", "crv", "kid", "kty", "use", "x"]);
        assert_eq!(keys[0]["kid"], mixed.access[0].kid());
        assert_eq!(ring(KeyAlgorithm::Hs256).public_jwks(), r#"{"keys":[]}"#);
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn an_edge_beside_a_region_cannot_issue_and_one_alone_can() {
        let keys = ring(KeyAlgorithm::EdDsa);
        let beside = keys.edge_export(EdgeRole::BesideRegion);
        assert!(keys.can_issue() && keys.edge_export(EdgeRole::Alone).can_issue());
        assert!(!beside.can_issue() && !beside.access[0].can_sign());
        assert_eq!(KeyKind::ALL.map(|kind| beside.secrets(kind).len()), [0, 0, 1, 1]);
        let shared = ring(KeyAlgorithm::Hs256).edge_export(EdgeRole::BesideRegion);
        assert!(shared.access[0].can_sign() && !shared.can_issue());
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn debug_prints_no_secret() {
        for algorithm in [KeyAlgorithm::EdDsa, KeyAlgorithm::Hs256] {
            let keys = ring(algorithm);
            let printed = format!("{keys:?}");
            let file: serde_json::Value = serde_json::from_str(&keys.to_json()).unwrap();
            let secrets = [&file["access"][0]["d"], &file["access"][0]["k"], &file["refresh"][0]["secret"]];
            for secret in secrets.into_iter().filter_map(|secret| secret.as_str()) {
                assert!(!printed.contains(secret));
                let bytes = format!("{:?}", BASE64URL.decode(secret).unwrap());
                assert!(!printed.contains(bytes.trim_matches(['[', ']'])));
            }
        }
    }
}
