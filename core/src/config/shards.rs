//! The names of shards as the configuration writes them: `shard_1` for users, `shard_2026_3` for a month of photos,
//! `shard_2026_*` for many months.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

use super::error::{Errors, found, quoted};
use super::setting::{Setting, Text};
use crate::UserId;

/// The most user shards: each owns at least one of the 16,384 slots.
pub const MAX_USER_SHARDS: u32 = 16_384;

/// One shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ShardName {
    /// `shard_<n>`, below [`MAX_USER_SHARDS`]
    User(u32),
    /// `shard_<year>_<month>`, and `shard_<year>_<month>_<k>` for a part of a hot month
    Photo { year: u16, month: u8, part: Option<u32> },
}

impl ShardName {
    /// Reads a name; a month may be padded (`shard_2026_03`).
    pub fn parse(text: &str) -> Option<ShardName> {
        let mut parts = text.strip_prefix("shard_")?.split('_');
        let first = parts.next()?;
        let Some(month) = parts.next() else {
            return number(first).filter(|n| *n < MAX_USER_SHARDS).map(ShardName::User);
        };
        let part = match parts.next() {
            None => None,
            Some(part) => Some(number(part)?),
        };
        let good = parts.next().is_none();
        good.then_some(ShardName::Photo { year: year(first)?, month: self::month(month)?, part })
    }
}

impl ShardName {
    /// What a pool may serve to serve this shard, the closest first. A month's pool also serves the parts of that month.
    pub fn served_by(self) -> impl Iterator<Item = PoolShard> {
        let wider = match self {
            ShardName::User(_) => None,
            ShardName::Photo { year, month, .. } => Some([
                PoolShard::One(ShardName::Photo { year, month, part: None }),
                PoolShard::Year(year),
                PoolShard::Photos,
            ]),
        };
        std::iter::once(PoolShard::One(self)).chain(wider.into_iter().flatten())
    }
}

impl fmt::Display for ShardName {
    /// The canonical form: the month unpadded, as in the original.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ShardName::User(n) => write!(f, "shard_{n}"),
            ShardName::Photo { year, month, part: None } => write!(f, "shard_{year}_{month}"),
            ShardName::Photo { year, month, part: Some(part) } => write!(f, "shard_{year}_{month}_{part}"),
        }
    }
}

impl Text for ShardName {
    fn allowed() -> String {
        "shard_<n> | shard_<year>_<month> | shard_<year>_<month>_<part>".to_owned()
    }

    fn parse(text: &str) -> Option<ShardName> {
        ShardName::parse(text)
    }
}

/// What a pool serves: one shard, or the photo shards below a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PoolShard {
    One(ShardName),
    /// `shard_*`: all photo shards
    Photos,
    /// `shard_<year>_*`
    Year(u16),
}

impl PoolShard {
    /// The user shard that it serves, if it serves one.
    pub fn user_shard(&self) -> Option<u32> {
        match self {
            PoolShard::One(ShardName::User(n)) => Some(*n),
            _ => None,
        }
    }
}

impl fmt::Display for PoolShard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PoolShard::One(shard) => shard.fmt(f),
            PoolShard::Photos => f.write_str("shard_*"),
            PoolShard::Year(year) => write!(f, "shard_{year}_*"),
        }
    }
}

impl Text for PoolShard {
    fn allowed() -> String {
        format!("{} | shard_<year>_* | shard_*", <ShardName as Text>::allowed())
    }

    fn parse(text: &str) -> Option<PoolShard> {
        match text.strip_suffix("_*") {
            None => ShardName::parse(text).map(PoolShard::One),
            Some("shard") => Some(PoolShard::Photos),
            Some(prefix) => year(prefix.strip_prefix("shard_")?).map(PoolShard::Year),
        }
    }
}

/// Digits without leading zeros.
fn number(text: &str) -> Option<u32> {
    let canonical = text == "0" || !text.starts_with('0');
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| canonical && digits)
}

fn year(text: &str) -> Option<u16> {
    number(text).and_then(|year| u16::try_from(year).ok()).filter(|year| (1970..=9999).contains(year))
}

fn month(text: &str) -> Option<u8> {
    let unpadded = text.strip_prefix('0').filter(|rest| rest.len() == 1).unwrap_or(text);
    number(unpadded).and_then(|month| u8::try_from(month).ok()).filter(|month| (1..=12).contains(month))
}

/// `pins`: users by their identity, each with a shard of its own choice.
impl Setting for BTreeMap<UserId, ShardName> {
    fn allowed() -> String {
        "a table of user identities, each with a shard: { \"42\" = \"shard_1\" }".to_owned()
    }

    fn read(value: &Value, path: &str, errors: &mut Errors) -> Option<Self> {
        let Value::Object(map) = value else {
            errors.add(path, found(value), Self::allowed());
            return None;
        };
        let mut pins = BTreeMap::new();
        for (user, shard) in map {
            let path = super::setting::join(path, user);
            let shard = <ShardName as Setting>::read(shard, &path, errors);
            match UserId::new(user) {
                Ok(user) => pins.extend(shard.map(|shard| (user, shard))),
                Err(reason) => errors.add(path, quoted(user), format!("an identity: it {reason}")),
            }
        }
        Some(pins)
    }

    fn write(&self) -> Value {
        let entry = |(user, shard): (&UserId, &ShardName)| (user.to_string(), Value::String(shard.to_string()));
        Value::Object(self.iter().map(entry).collect::<Map<_, _>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    fn served_by(shard: &str) -> Vec<String> {
        ShardName::parse(shard).unwrap().served_by().map(|pool| pool.to_string()).collect()
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_shards_name_has_one_canonical_form() {
        for (text, canonical) in [
            ("shard_0", "shard_0"),
            ("shard_16383", "shard_16383"),
            ("shard_2026_3", "shard_2026_3"),
            ("shard_2026_03", "shard_2026_3"),
            ("shard_2026_12_4", "shard_2026_12_4"),
        ] {
            assert_eq!(ShardName::parse(text).unwrap().to_string(), canonical);
        }
        for text in [
            "",
            "shard",
            "shard_",
            "shard_x",
            "shard_01",
            "shard_16384",
            "shard_-1",
            "shard_2026_13",
            "shard_2026_0",
            "shard_2026_003",
            "shard_2026_3_",
            "shard_2026_3_01",
            "shard_2026_3_1_1",
            "shard_1969_1",
            "Shard_1",
            "eu",
        ] {
            assert_eq!(ShardName::parse(text), None, "{text}");
        }
        for text in ["shard_1_*_*", "shard_20*", "shard_202_*", "*", "shard_2026_3_*"] {
            assert_eq!(<PoolShard as Text>::parse(text), None, "{text}");
        }
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_closest_pool_is_the_shards_own_then_its_months_then_its_years() {
        assert_eq!(served_by("shard_2026_3_1"), ["shard_2026_3_1", "shard_2026_3", "shard_2026_*", "shard_*"]);
        assert_eq!(served_by("shard_2026_3"), ["shard_2026_3", "shard_2026_3", "shard_2026_*", "shard_*"]);
        assert_eq!(served_by("shard_1"), ["shard_1"]);
    }
}
