//! Workers KV: a cache that any request may find empty, slow or broken, and never the truth.
//!
//! Values are text and cross as text: `worker`'s own serialisation would turn a number into an object here, since core
//! reads JSON with arbitrary precision.

use edgekeep_core::Millis;
use worker::kv::KvStore;

use crate::log;

/// The binding's name in wrangler.toml.
pub const BINDING: &str = "KV";

/// How long a colo may answer from its own copy, in seconds: the platform's least.
const CACHE_TTL: u64 = 30;

/// A time to live that KV accepts: at least 60 seconds, and a 32-bit number of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ttl(u64);

impl Ttl {
    /// This long, or the least that KV takes.
    pub fn at_least(span: Millis) -> Ttl {
        Ttl(span.seconds_up().clamp(60, i32::MAX as u64))
    }

    pub fn seconds(self) -> u64 {
        self.0
    }
}

/// A write to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    pub key: String,
    pub text: String,
    pub ttl: Ttl,
}

/// Several values at once, in the order of their keys. Without KV, or when it fails, nothing is there.
pub async fn get<const N: usize>(store: &KvStore, keys: &[String; N]) -> [Option<String>; N] {
    match store.get_bulk(keys).cache_ttl(CACHE_TTL).text().await {
        Ok(mut found) => keys.each_ref().map(|key| found.remove(key).flatten()),
        Err(error) => {
            log::error(&format!("KV: {error}"));
            [const { None }; N]
        }
    }
}

/// Writes one value. `false` when KV did not take it.
pub async fn put(store: &KvStore, put: &Put) -> bool {
    let done = match store.put(&put.key, put.text.as_str()) {
        Ok(write) => write.expiration_ttl(put.ttl.seconds()).execute().await,
        Err(error) => Err(error),
    };
    if let Err(error) = &done {
        log::error(&format!("KV: {error}"));
    }
    done.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_live_is_never_one_that_kv_refuses() {
        for (span, seconds) in [(0, 60), (60_001, 61), (900_000, 900), (u64::MAX, i32::MAX as u64)] {
            assert_eq!(Ttl::at_least(Millis(span)).seconds(), seconds);
        }
    }
}
