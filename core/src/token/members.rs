//! Reading the members of a JSON object strictly: names and texts borrowed where they can be, and a name that comes
//! twice is refused (RFC 7515 §4, RFC 7519 §4 let a verifier choose; two readers must never see two tokens).

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

/// A JSON string, borrowed unless it has escapes.
pub(super) struct Text<'de>(pub(super) Cow<'de, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text<'de>, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// What broke while an object was read; serde's own errors cannot carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken<M> {
    /// This member has another type or range.
    Member(M),
    /// A name stands twice.
    Duplicate,
}

/// Reads `member`'s value into its slot. A filled slot is a duplicate.
#[inline]
pub(super) fn fill<'de, A, T, M>(
    slot: &mut Option<T>,
    map: &mut A,
    member: M,
    broken: &mut Option<Broken<M>>,
) -> Result<(), A::Error>
where
    A: MapAccess<'de>,
    T: Deserialize<'de>,
{
    if slot.is_some() {
        return Err(duplicate(broken));
    }
    match map.next_value() {
        Ok(value) => *slot = Some(value),
        Err(error) => {
            *broken = Some(Broken::Member(member));
            return Err(error);
        }
    }
    Ok(())
}

/// The members that mean nothing here: skipped, but each only once.
#[derive(Default)]
pub(super) struct Others<'de>(BTreeSet<Cow<'de, str>>);

impl<'de> Others<'de> {
    pub(super) fn skip<A, M>(
        &mut self,
        name: Cow<'de, str>,
        map: &mut A,
        broken: &mut Option<Broken<M>>,
    ) -> Result<(), A::Error>
    where
        A: MapAccess<'de>,
    {
        if !self.0.insert(name) {
            return Err(duplicate(broken));
        }
        map.next_value::<IgnoredAny>().map(|_| ())
    }
}

fn duplicate<E: Error, M>(broken: &mut Option<Broken<M>>) -> E {
    *broken = Some(Broken::Duplicate);
    E::custom("a name stands twice")
}
