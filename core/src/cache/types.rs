//! Data types: how long an answer lives and what a write does to it. The original's three are constants; configuration
//! adds more.

use std::borrow::Cow;

use crate::units::Millis;

/// What happens on a write; reads are the same for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// A write only removes the entry; the next read fills it.
    LazyLoading,
    /// A write goes to the origin first and then to the cache.
    WriteThrough,
    /// A write is answered once it is durable here and delivered later, in order.
    WriteBehind,
}

impl Strategy {
    pub const ALL: [Strategy; 3] = [Strategy::LazyLoading, Strategy::WriteThrough, Strategy::WriteBehind];

    /// The name in configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Strategy::LazyLoading => "lazy_loading",
            Strategy::WriteThrough => "write_through",
            Strategy::WriteBehind => "write_behind",
        }
    }

    pub fn from_name(name: &str) -> Option<Strategy> {
        Strategy::ALL.into_iter().find(|strategy| strategy.name() == name)
    }
}

/// A kind of data with its time to live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataType {
    pub name: Cow<'static, str>,
    pub ttl: Millis,
    pub strategy: Strategy,
    /// After `ttl`, so long an answer is still given while a new one is fetched (RFC 5861). 0: never.
    pub stale_while_revalidate: Millis,
    /// After `ttl`, so long an answer is still given when the origin fails (RFC 5861). 0: never.
    pub stale_if_error: Millis,
}

/// The original's `user_profile`: 300 s, write-through.
pub const USER_PROFILE: DataType = original("user_profile", 300, Strategy::WriteThrough);
/// The original's `photo_metadata`: 3,600 s, lazy loading.
pub const PHOTO_METADATA: DataType = original("photo_metadata", 3600, Strategy::LazyLoading);
/// The original's `vector_data`: 900 s, write-behind.
pub const VECTOR_DATA: DataType = original("vector_data", 900, Strategy::WriteBehind);

const fn original(name: &'static str, seconds: u64, strategy: Strategy) -> DataType {
    DataType {
        name: Cow::Borrowed(name),
        ttl: Millis::from_secs(seconds),
        strategy,
        stale_while_revalidate: Millis::ZERO,
        stale_if_error: Millis::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    #[wasm_bindgen_test(unsupported = test)]
    fn the_original_types_keep_their_times_and_strategies() {
        for (data_type, text) in [
            (USER_PROFILE, "user_profile 5m write_through"),
            (PHOTO_METADATA, "photo_metadata 1h lazy_loading"),
            (VECTOR_DATA, "vector_data 15m write_behind"),
        ] {
            assert_eq!(format!("{} {} {}", data_type.name, data_type.ttl, data_type.strategy.name()), text);
            assert_eq!(Strategy::from_name(data_type.strategy.name()), Some(data_type.strategy));
        }
        assert_eq!(Strategy::from_name("write_around"), None);
    }
}
