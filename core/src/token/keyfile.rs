//! `keys.json`: the one form in which keys are stored, carried and bound to a Worker.
//!
//! ```json
//! {
//!   "version": 1,
//!   "access": [
//!     { "kid": "…", "alg": "EdDSA", "state": "current", "created": "2026-01-31T12:00:00.000Z", "since": "…",
//!       "x": "…", "d": "…" },
//!     { "kid": "…", "alg": "HS256", "state": "retired", "created": "…", "since": "…", "k": "…" }
//!   ],
//!   "refresh": [ { "id": 1, "state": "current", "created": "…", "since": "…", "secret": "…" } ],
//!   "sticky": [ … ],
//!   "log": [ … ]
//! }
//! ```
//!
//! `x`, `d`, `k` and `secret` are 32 bytes each in base64url without padding, as in a JWK; without `d` a key only
//! verifies. `since` is when the key entered its state; a retired key also has `settled` once every live gateway was seen to
//! sign with another one. Times are RFC 3339. Everything is checked when it is read: an
//! unknown member, a `kid` that is not the thumbprint, an `x` that is not `d`'s, two keys with one secret.
//! It is walked by hand because serde's errors quote what they found, and that may be a secret.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use chrono::DateTime;
use ed25519_dalek::SigningKey;
use serde::Serialize;
use serde_json::{Map, Value};
use thiserror::Error;

use super::keys::{AccessKey, KeyAlgorithm, KeyKind, KeyRing, KeyState, Material, Secret, SecretKey, Standing};
use super::provider::{Ed25519Public, Hs256};
use crate::Timestamp;

const VERSION: u64 = 1;

/// Why keys cannot be read or rotated. Never holds what was found: it may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KeyError {
    #[error("not JSON, at line {line}, column {column}")]
    Json { line: usize, column: usize },
    /// `path` as in `access[0].kid`.
    #[error("{path}: {fault}")]
    Field { path: String, fault: FieldFault },
    #[error("a next {0} key is already published: promote it first")]
    NextExists(KeyKind),
    #[error("no next {0} key is published")]
    NoNext(KeyKind),
    #[error("all 256 ids of {0} keys are taken: drop retired ones first")]
    NoFreeId(KeyKind),
    #[error("these keys only verify; rotate those of the gateway that issues")]
    NotIssuing,
}

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FieldFault {
    #[error("is missing")]
    Missing,
    #[error("must be {0}")]
    Type(&'static str),
    #[error("has a member that is not known; allowed are {0}")]
    Unknown(&'static str),
    #[error("must be 1, the version of this format")]
    Version,
    #[error("must be \"EdDSA\" or \"HS256\"")]
    Algorithm,
    #[error("must be \"next\", \"current\" or \"retired\"")]
    State,
    #[error("must be an RFC 3339 time since 1970")]
    Time,
    #[error("stands only at a retired key")]
    Settled,
    #[error("must be 32 bytes in base64url without padding")]
    Bytes,
    #[error("must be an Ed25519 public key")]
    Point,
    #[error("is not the public half of \"d\"")]
    Pair,
    #[error("is not the key's RFC 7638 thumbprint")]
    Thumbprint,
    #[error("stands at another key too")]
    Repeated,
    #[error("holds a secret that another key has too")]
    SharedSecret,
    #[error("must have exactly one current key, found {0}")]
    Currents(usize),
    #[error("must have at most one next key, found {0}")]
    Nexts(usize),
}

impl KeyRing {
    /// Reads and checks a `keys.json`, or an edge's export of it.
    pub fn from_json(text: &str) -> Result<KeyRing, KeyError> {
        let root: Value = serde_json::from_str(text)
            .map_err(|error| KeyError::Json { line: error.line(), column: error.column() })?;
        let root = Object::of(String::new(), &root, "version, access, refresh, sticky, log")?;
        if root.need("version")?.as_u64() != Some(VERSION) {
            return Err(root.fault("version", FieldFault::Version));
        }
        let mut ring = KeyRing { access: root.list("access", access_key)?, ..KeyRing::empty() };
        ring.refresh = root.list("refresh", secret_key)?;
        ring.sticky = root.list("sticky", secret_key)?;
        ring.log = root.list("log", secret_key)?;
        ring.check()?;
        Ok(ring)
    }

    /// The file's text, secrets included.
    pub fn to_json(&self) -> String {
        let file = File {
            version: VERSION,
            access: self.access.iter().map(AccessRow::from).collect(),
            refresh: self.refresh.iter().map(SecretRow::from).collect(),
            sticky: self.sticky.iter().map(SecretRow::from).collect(),
            log: self.log.iter().map(SecretRow::from).collect(),
        };
        // Maps of strings and numbers always serialize.
        serde_json::to_string_pretty(&file).unwrap_or_default()
    }

    fn empty() -> KeyRing {
        KeyRing { access: Vec::new(), refresh: Vec::new(), sticky: Vec::new(), log: Vec::new() }
    }

    /// What must hold between keys.
    fn check(&self) -> Result<(), KeyError> {
        let fault = |path: String, fault| Err(KeyError::Field { path, fault });
        for kind in KeyKind::ALL {
            let rows: Vec<_> = self.list().into_iter().filter(|row| row.kind == kind).collect();
            for (index, row) in rows.iter().enumerate() {
                if rows.iter().take(index).any(|earlier| earlier.id == row.id) {
                    let name = if kind == KeyKind::Access { "kid" } else { "id" };
                    return fault(format!("{kind}[{index}].{name}"), FieldFault::Repeated);
                }
            }
            let count = |state| rows.iter().filter(|row| row.state == state).count();
            let (currents, nexts) = (count(KeyState::Current), count(KeyState::Next));
            if currents != 1 && !(rows.is_empty() && kind == KeyKind::Refresh) {
                return fault(kind.to_string(), FieldFault::Currents(currents));
            }
            if nexts > 1 {
                return fault(kind.to_string(), FieldFault::Nexts(nexts));
            }
        }
        let mut secrets: Vec<[u8; 32]> = Vec::new();
        for (path, secret) in self.all_secrets() {
            if secrets.contains(&secret) {
                return fault(path, FieldFault::SharedSecret);
            }
            secrets.push(secret);
        }
        Ok(())
    }

    fn all_secrets(&self) -> Vec<(String, [u8; 32])> {
        let access = self.access.iter().enumerate().filter_map(|(index, key)| match &key.material {
            Material::EdDsa { private, .. } => Some((format!("access[{index}].d"), private.as_ref()?.to_bytes())),
            Material::Hs256 { secret, .. } => Some((format!("access[{index}].k"), *secret.bytes())),
        });
        let secrets = KeyKind::ALL.into_iter().flat_map(|kind| {
            let path = move |index| format!("{kind}[{index}].secret");
            self.secrets(kind).iter().enumerate().map(move |(index, key)| (path(index), *key.secret.bytes()))
        });
        access.chain(secrets).collect()
    }
}

fn access_key(object: &Object<'_>) -> Result<AccessKey, KeyError> {
    let standing = standing(object)?;
    let algorithm = KeyAlgorithm::from_name(object.text("alg")?);
    let material = match algorithm.ok_or_else(|| object.fault("alg", FieldFault::Algorithm))? {
        KeyAlgorithm::EdDsa => {
            object.only("kid, alg, state, created, since, settled, x, d")?;
            let public = Ed25519Public::new(object.secret("x")?.bytes());
            let public = public.ok_or_else(|| object.fault("x", FieldFault::Point))?;
            let private = match object.map.get("d") {
                Some(_) => Some(Box::new(SigningKey::from_bytes(object.secret("d")?.bytes()))),
                None => None,
            };
            if private.as_ref().is_some_and(|private| private.verifying_key().as_bytes() != public.x()) {
                return Err(object.fault("x", FieldFault::Pair));
            }
            Material::EdDsa { public, private }
        }
        KeyAlgorithm::Hs256 => {
            object.only("kid, alg, state, created, since, settled, k")?;
            let secret = object.secret("k")?;
            Material::Hs256 { mac: Hs256::from_array(secret.bytes()), secret }
        }
    };
    let key = AccessKey::new(material, standing);
    if object.text("kid")? != key.kid() {
        return Err(object.fault("kid", FieldFault::Thumbprint));
    }
    Ok(key)
}

fn secret_key(object: &Object<'_>) -> Result<SecretKey, KeyError> {
    object.only("id, state, created, since, settled, secret")?;
    let id = object.need("id")?.as_u64().and_then(|id| u8::try_from(id).ok());
    let id = id.ok_or_else(|| object.fault("id", FieldFault::Type("an integer from 0 to 255")))?;
    Ok(SecretKey::new(id, object.secret("secret")?, standing(object)?))
}

fn standing(object: &Object<'_>) -> Result<Standing, KeyError> {
    let state = KeyState::from_name(object.text("state")?);
    let state = state.ok_or_else(|| object.fault("state", FieldFault::State))?;
    let settled = object.map.contains_key("settled").then(|| object.time("settled")).transpose()?;
    if settled.is_some() && state != KeyState::Retired {
        return Err(object.fault("settled", FieldFault::Settled));
    }
    Ok(Standing { state, created: object.time("created")?, since: object.time("since")?, settled })
}

/// A JSON object and where it stands in the file.
struct Object<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    fn of(path: String, value: &'a Value, allowed: &'static str) -> Result<Object<'a>, KeyError> {
        let Some(map) = value.as_object() else {
            let path = if path.is_empty() { "the file".to_owned() } else { path };
            return Err(KeyError::Field { path, fault: FieldFault::Type("an object") });
        };
        let object = Object { path, map };
        if !allowed.is_empty() {
            object.only(allowed)?;
        }
        Ok(object)
    }

    /// Refuses a member whose name is not among `allowed`, without repeating the name.
    fn only(&self, allowed: &'static str) -> Result<(), KeyError> {
        if self.map.keys().all(|name| allowed.split(", ").any(|known| known == name)) {
            return Ok(());
        }
        let path = if self.path.is_empty() { "the file".to_owned() } else { self.path.clone() };
        Err(KeyError::Field { path, fault: FieldFault::Unknown(allowed) })
    }

    fn fault(&self, name: &str, fault: FieldFault) -> KeyError {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        KeyError::Field { path, fault }
    }

    fn need(&self, name: &str) -> Result<&'a Value, KeyError> {
        self.map.get(name).ok_or_else(|| self.fault(name, FieldFault::Missing))
    }

    fn text(&self, name: &str) -> Result<&'a str, KeyError> {
        self.need(name)?.as_str().ok_or_else(|| self.fault(name, FieldFault::Type("a string")))
    }

    fn secret(&self, name: &str) -> Result<Secret, KeyError> {
        let mut bytes = [0; 33];
        match BASE64URL.decode_slice(self.text(name)?, &mut bytes) {
            Ok(32) => {
                let [secret @ .., _] = bytes;
                Ok(Secret::new(secret))
            }
            _ => Err(self.fault(name, FieldFault::Bytes)),
        }
    }

    fn time(&self, name: &str) -> Result<Timestamp, KeyError> {
        let time = DateTime::parse_from_rfc3339(self.text(name)?).ok();
        let millis = time.and_then(|time| u64::try_from(time.timestamp_millis()).ok());
        millis.map(Timestamp).ok_or_else(|| self.fault(name, FieldFault::Time))
    }

    fn list<T>(&self, name: &str, read: fn(&Object<'_>) -> Result<T, KeyError>) -> Result<Vec<T>, KeyError> {
        let list = self.need(name)?.as_array().ok_or_else(|| self.fault(name, FieldFault::Type("a list")))?;
        let item = |(index, value)| read(&Object::of(format!("{name}[{index}]"), value, "")?);
        list.iter().enumerate().map(item).collect()
    }
}

#[derive(Serialize)]
struct File<'a> {
    version: u64,
    access: Vec<AccessRow<'a>>,
    refresh: Vec<SecretRow>,
    sticky: Vec<SecretRow>,
    log: Vec<SecretRow>,
}

#[derive(Serialize)]
struct AccessRow<'a> {
    kid: &'a str,
    alg: &'static str,
    #[serde(flatten)]
    standing: StandingRow,
    #[serde(skip_serializing_if = "Option::is_none")]
    x: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    d: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    k: Option<String>,
}

#[derive(Serialize)]
struct SecretRow {
    id: u8,
    #[serde(flatten)]
    standing: StandingRow,
    secret: String,
}

#[derive(Serialize)]
struct StandingRow {
    state: &'static str,
    created: String,
    since: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    settled: Option<String>,
}

impl<'a> From<&'a AccessKey> for AccessRow<'a> {
    fn from(key: &'a AccessKey) -> AccessRow<'a> {
        let (x, d, k) = match &key.material {
            Material::EdDsa { public, private } => {
                (Some(BASE64URL.encode(public.x())), private.as_ref().map(|d| BASE64URL.encode(d.as_bytes())), None)
            }
            Material::Hs256 { secret, .. } => (None, None, Some(BASE64URL.encode(secret.bytes()))),
        };
        AccessRow { kid: &key.kid, alg: key.algorithm().name(), standing: key.standing.into(), x, d, k }
    }
}

impl From<&SecretKey> for SecretRow {
    fn from(key: &SecretKey) -> SecretRow {
        SecretRow { id: key.id, standing: key.standing.into(), secret: BASE64URL.encode(key.secret.bytes()) }
    }
}

impl From<Standing> for StandingRow {
    fn from(standing: Standing) -> StandingRow {
        let Standing { state, created, since, settled } = standing;
        let settled = settled.map(Timestamp::to_rfc3339);
        StandingRow { state: state.name(), created: created.to_rfc3339(), since: since.to_rfc3339(), settled }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::EdgeRole;
    use crate::{Entropy, Millis};
    use serde_json::json;
    use wasm_bindgen_test::wasm_bindgen_test;

    const NOW: Timestamp = Timestamp(1_750_000_000_123);

    fn ring(algorithm: KeyAlgorithm) -> KeyRing {
        KeyRing::generate(algorithm, &mut Entropy::for_tests(1), NOW)
    }

    /// Reads the file after one edit.
    fn edited(algorithm: KeyAlgorithm, edit: impl FnOnce(&mut Value)) -> Result<KeyRing, KeyError> {
        let mut file = serde_json::from_str(&ring(algorithm).to_json()).unwrap();
        edit(&mut file);
        KeyRing::from_json(&file.to_string())
    }

    fn fault(algorithm: KeyAlgorithm, edit: impl FnOnce(&mut Value)) -> (String, FieldFault) {
        match edited(algorithm, edit).unwrap_err() {
            KeyError::Field { path, fault } => (path, fault),
            other => panic!("{other}"),
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn what_is_written_is_read_back_whole() {
        for seed in 0..20 {
            let mut entropy = Entropy::for_tests(seed);
            let algorithm = [KeyAlgorithm::EdDsa, KeyAlgorithm::Hs256][seed as usize % 2];
            let ring = KeyRing::generate(algorithm, &mut entropy, NOW)
                .publish_next(KeyAlgorithm::EdDsa, &mut entropy, NOW + Millis(5))
                .and_then(|ring| ring.promote_next(NOW + Millis(9)))
                .and_then(|ring| ring.publish_next(KeyAlgorithm::Hs256, &mut entropy, NOW + Millis(12)))
                .unwrap()
                .settle(&[], NOW + Millis(15));
            for ring in [ring.edge_export(EdgeRole::BesideRegion), ring] {
                let again = KeyRing::from_json(&ring.to_json()).unwrap();
                assert_eq!(again.to_json(), ring.to_json(), "seed {seed}");
                assert_eq!(again.list(), ring.list(), "seed {seed}");
            }
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn an_edge_beside_a_region_gets_no_private_key() {
        let text = ring(KeyAlgorithm::EdDsa).edge_export(EdgeRole::BesideRegion).to_json();
        let file: Value = serde_json::from_str(&text).unwrap();
        assert!(file["access"][0].get("d").is_none() && file["access"][0].get("x").is_some());
        assert_eq!(file["refresh"], json!([]));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_broken_file_is_named_by_line_and_nothing_of_it_is_repeated() {
        let error = KeyRing::from_json("{\n \"access\": [ hunter2").unwrap_err();
        assert!(matches!(error, KeyError::Json { line: 2, .. }));
        let text = ring(KeyAlgorithm::Hs256).to_json();
        let secret = serde_json::from_str::<Value>(&text).unwrap()["access"][0]["k"].as_str().unwrap().to_owned();
        let errors = [
            KeyRing::from_json(&text[..text.len() / 2]).unwrap_err(),
            edited(KeyAlgorithm::Hs256, |file| file["access"][0]["alg"] = json!(secret)).unwrap_err(),
            edited(KeyAlgorithm::Hs256, |file| file["access"][0][&secret] = json!(1)).unwrap_err(),
            edited(KeyAlgorithm::Hs256, |file| file["version"] = json!(secret)).unwrap_err(),
            edited(KeyAlgorithm::Hs256, |file| file["refresh"][0]["id"] = json!(secret)).unwrap_err(),
            edited(KeyAlgorithm::Hs256, |file| file["refresh"][0]["secret"] = json!(format!("{secret}="))).unwrap_err(),
        ];
        for error in errors {
            assert!(!error.to_string().contains(&secret) && !format!("{error:?}").contains(&secret), "{error}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn each_broken_field_is_named_with_its_path() {
        use KeyAlgorithm::{EdDsa, Hs256};
        let other = ring(EdDsa).publish_next(EdDsa, &mut Entropy::for_tests(2), NOW).unwrap().to_json();
        let other: Value = serde_json::from_str(&other).unwrap();
        let cases: Vec<((String, FieldFault), &str, FieldFault)> = vec![
            (fault(EdDsa, |f| f["version"] = json!(2)), "version", FieldFault::Version),
            (fault(EdDsa, |f| *f = json!([])), "the file", FieldFault::Type("an object")),
            (fault(EdDsa, |f| f["access"] = json!({})), "access", FieldFault::Type("a list")),
            (fault(EdDsa, |f| f["log"] = json!([1])), "log[0]", FieldFault::Type("an object")),
            (fault(EdDsa, |f| f["access"][0]["x"] = json!("AA")), "access[0].x", FieldFault::Bytes),
            (fault(EdDsa, |f| f["access"][0]["x"] = json!(7)), "access[0].x", FieldFault::Type("a string")),
            (
                fault(EdDsa, |f| f["access"][0]["x"] = json!(BASE64URL.encode([0; 32]))),
                "access[0].x",
                FieldFault::Point,
            ),
            (fault(EdDsa, |f| f["access"][0]["x"] = other["access"][1]["x"].clone()), "access[0].x", FieldFault::Pair),
            (fault(EdDsa, |f| f["access"][0]["kid"] = json!("k")), "access[0].kid", FieldFault::Thumbprint),
            (fault(EdDsa, |f| f["access"][0]["alg"] = json!("none")), "access[0].alg", FieldFault::Algorithm),
            (fault(EdDsa, |f| f["access"][0]["state"] = json!("old")), "access[0].state", FieldFault::State),
            (
                fault(EdDsa, |f| f["sticky"][0]["created"] = json!("1969-01-01T00:00:00Z")),
                "sticky[0].created",
                FieldFault::Time,
            ),
            (
                fault(Hs256, |f| f["log"][0]["settled"] = json!("2026-01-31T12:00:00Z")),
                "log[0].settled",
                FieldFault::Settled,
            ),
            (fault(Hs256, |f| f["access"][0]["k"] = Value::Null), "access[0].k", FieldFault::Type("a string")),
            (
                fault(Hs256, |f| drop(f["access"][0].as_object_mut().unwrap().remove("k"))),
                "access[0].k",
                FieldFault::Missing,
            ),
            (
                fault(Hs256, |f| f["refresh"][0]["id"] = json!(256)),
                "refresh[0].id",
                FieldFault::Type("an integer from 0 to 255"),
            ),
            (
                fault(Hs256, |f| f["log"][0]["secret"] = f["access"][0]["k"].clone()),
                "log[0].secret",
                FieldFault::SharedSecret,
            ),
            (
                fault(Hs256, |f| {
                    let key = f["refresh"][0].clone();
                    f["refresh"].as_array_mut().unwrap().push(key);
                }),
                "refresh[1].id",
                FieldFault::Repeated,
            ),
            (fault(Hs256, |f| f["log"][0]["state"] = json!("next")), "log", FieldFault::Currents(0)),
            (fault(Hs256, |f| f["sticky"] = json!([])), "sticky", FieldFault::Currents(0)),
        ];
        for ((path, found), expected_path, expected) in cases {
            assert_eq!((path.as_str(), found), (expected_path, expected));
        }
    }
}
