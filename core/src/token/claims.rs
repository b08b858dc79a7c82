//! An access token's claims as JSON: written in one order, read in one pass without copying what is only compared.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeStruct, Serializer};

use super::access::AccessClaims;
use super::members::{Broken, Others, Text, fill};

/// The claims that a verifier looks at. `Nbf` is never issued and optional; the others must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    Iss,
    Sub,
    Aud,
    ClientId,
    Iat,
    Exp,
    Nbf,
    Jti,
    Sid,
    Gen,
}

impl Claim {
    pub const fn name(self) -> &'static str {
        match self {
            Claim::Iss => "iss",
            Claim::Sub => "sub",
            Claim::Aud => "aud",
            Claim::ClientId => "client_id",
            Claim::Iat => "iat",
            Claim::Exp => "exp",
            Claim::Nbf => "nbf",
            Claim::Jti => "jti",
            Claim::Sid => "sid",
            Claim::Gen => "gen",
        }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for AccessClaims {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut claims = serializer.serialize_struct("AccessClaims", 9)?;
        claims.serialize_field("iss", &*self.iss)?;
        claims.serialize_field("sub", self.sub.as_str())?;
        claims.serialize_field("aud", &*self.aud)?;
        claims.serialize_field("client_id", &*self.client_id)?;
        claims.serialize_field("iat", &self.iat.seconds())?;
        claims.serialize_field("exp", &self.exp.seconds())?;
        claims.serialize_field("jti", &*self.jti)?;
        claims.serialize_field("sid", &format_args!("{}", self.sid))?;
        claims.serialize_field("gen", &self.generation)?;
        claims.end()
    }
}

/// What a token claims, not yet believed.
#[derive(Default)]
pub(super) struct RawClaims<'de> {
    pub(super) iss: Option<Text<'de>>,
    pub(super) sub: Option<Text<'de>>,
    pub(super) aud: Option<Audience<'de>>,
    pub(super) client_id: Option<Text<'de>>,
    pub(super) iat: Option<u64>,
    pub(super) exp: Option<u64>,
    pub(super) nbf: Option<u64>,
    pub(super) jti: Option<Text<'de>>,
    pub(super) sid: Option<Text<'de>>,
    pub(super) generation: Option<u32>,
}

/// One audience, or several (RFC 7519 §4.1.3).
pub(super) enum Audience<'de> {
    One(Text<'de>),
    Several(Vec<Text<'de>>),
}

impl Audience<'_> {
    pub(super) fn contains(&self, ours: &str) -> bool {
        match self {
            Audience::One(only) => only.0 == ours,
            Audience::Several(all) => all.iter().any(|one| one.0 == ours),
        }
    }
}

impl<'de> RawClaims<'de> {
    /// One JSON object and nothing after it. The inner `None` is a text that is no JSON object at all.
    pub(super) fn read(json: &'de str) -> Result<RawClaims<'de>, Option<Broken<Claim>>> {
        let (mut raw, mut broken) = (RawClaims::default(), None);
        let mut reader = serde_json::Deserializer::from_str(json);
        let visitor = ClaimsVisitor { raw: &mut raw, broken: &mut broken };
        match reader.deserialize_map(visitor).and_then(|()| reader.end()) {
            Ok(()) => Ok(raw),
            Err(_) => Err(broken),
        }
    }
}

struct ClaimsVisitor<'s, 'de> {
    raw: &'s mut RawClaims<'de>,
    broken: &'s mut Option<Broken<Claim>>,
}

impl<'de> Visitor<'de> for ClaimsVisitor<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of claims")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let ClaimsVisitor { raw, broken } = self;
        let map = &mut map;
        let mut others = Others::default();
        while let Some(Text(name)) = map.next_key()? {
            match &*name {
                "iss" => fill(&mut raw.iss, map, Claim::Iss, broken)?,
                "sub" => fill(&mut raw.sub, map, Claim::Sub, broken)?,
                "aud" => fill(&mut raw.aud, map, Claim::Aud, broken)?,
                "client_id" => fill(&mut raw.client_id, map, Claim::ClientId, broken)?,
                "iat" => fill(&mut raw.iat, map, Claim::Iat, broken)?,
                "exp" => fill(&mut raw.exp, map, Claim::Exp, broken)?,
                "nbf" => fill(&mut raw.nbf, map, Claim::Nbf, broken)?,
                "jti" => fill(&mut raw.jti, map, Claim::Jti, broken)?,
                "sid" => fill(&mut raw.sid, map, Claim::Sid, broken)?,
                "gen" => fill(&mut raw.generation, map, Claim::Gen, broken)?,
                _ => others.skip(name, map, broken)?,
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Audience<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Audience<'de>, D::Error> {
        struct AudienceVisitor;
        impl<'de> Visitor<'de> for AudienceVisitor {
            type Value = Audience<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Audience<'de>, E> {
                Ok(Audience::One(Text(text.into())))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Audience<'de>, E> {
                Ok(Audience::One(Text(text.to_owned().into())))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Audience<'de>, A::Error> {
                let mut all = Vec::new();
                while let Some(text) = list.next_element()? {
                    all.push(text);
                }
                Ok(Audience::Several(all))
            }
        }
        deserializer.deserialize_any(AudienceVisitor)
    }
}

/// The members of a token's header that decide something; `jku`, `x5u` and `jwk` are skipped, never followed.
#[derive(Default)]
pub(super) struct RawHeader<'de> {
    pub(super) alg: Option<Text<'de>>,
    pub(super) typ: Option<Text<'de>>,
    pub(super) kid: Option<Text<'de>>,
    /// Present, whatever its value.
    pub(super) crit: Option<IgnoredAny>,
    pub(super) b64: Option<IgnoredAny>,
}

/// Which header member has another type than a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderMember {
    Alg,
    Typ,
    Kid,
    Crit,
    B64,
}

impl<'de> RawHeader<'de> {
    pub(super) fn read(json: &'de str) -> Result<RawHeader<'de>, Option<Broken<HeaderMember>>> {
        let (mut raw, mut broken) = (RawHeader::default(), None);
        let mut reader = serde_json::Deserializer::from_str(json);
        let visitor = HeaderVisitor { raw: &mut raw, broken: &mut broken };
        match reader.deserialize_map(visitor).and_then(|()| reader.end()) {
            Ok(()) => Ok(raw),
            Err(_) => Err(broken),
        }
    }
}

struct HeaderVisitor<'s, 'de> {
    raw: &'s mut RawHeader<'de>,
    broken: &'s mut Option<Broken<HeaderMember>>,
}

impl<'de> Visitor<'de> for HeaderVisitor<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of header parameters")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let HeaderVisitor { raw, broken } = self;
        let map = &mut map;
        let mut others = Others::default();
        while let Some(Text(name)) = map.next_key()? {
            match &*name {
                "alg" => fill(&mut raw.alg, map, HeaderMember::Alg, broken)?,
                "typ" => fill(&mut raw.typ, map, HeaderMember::Typ, broken)?,
                "kid" => fill(&mut raw.kid, map, HeaderMember::Kid, broken)?,
                "crit" => fill(&mut raw.crit, map, HeaderMember::Crit, broken)?,
                "b64" => fill(&mut raw.b64, map, HeaderMember::B64, broken)?,
                _ => others.skip(name, map, broken)?,
            }
        }
        Ok(())
    }
}
