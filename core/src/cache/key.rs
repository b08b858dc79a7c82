//! The names of what is cached.
//!
//! A *resource* is a data type and a path without its query; it has a generation, and a write raises it, so that every
//! user's and every query's copy dies together. An *entry* is one copy: resource × generation × host × query × user ×
//! the request headers that `Vary` names. Both names are SHA-256 digests over length-prefixed parts, so no part can
//! reach into another and nobody can make two requests share a key.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::identity::UserId;

const RESOURCE_DOMAIN: u8 = 1;
const ENTRY_DOMAIN: u8 = 2;

/// A resource's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceId([u8; 32]);

/// How often a resource was written; entries of lower generations are gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl Generation {
    pub const fn next(self) -> Generation {
        Generation(self.0.saturating_add(1))
    }
}

/// An entry's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheKey([u8; 32]);

/// What tells a resource's entries from each other.
#[derive(Clone, Copy, Debug, Default)]
pub struct EntryScope<'a> {
    /// The host the client asked for, lower-case: two sites with one path never share an entry.
    pub host: &'a str,
    /// The query as it was sent, without `?`; `None` without one, which is not the empty query.
    pub query: Option<&'a str>,
    /// The user whose copy it is; `None` on routes with `shared` and for guests.
    pub user: Option<&'a UserId>,
    /// The request's headers that the stored answer's `Vary` names: lower-case name and value, in any order.
    pub vary: &'a [(&'a str, &'a str)],
}

impl ResourceId {
    /// `path` is the decoded path without its query.
    pub fn new(data_type: &str, path: &str) -> ResourceId {
        let mut digest = Sha256::new_with_prefix([RESOURCE_DOMAIN]);
        part(&mut digest, data_type.as_bytes());
        part(&mut digest, path.as_bytes());
        ResourceId(digest.finalize().into())
    }

    /// The name of one of its entries.
    pub fn entry(&self, generation: Generation, scope: &EntryScope<'_>) -> CacheKey {
        let mut digest = Sha256::new_with_prefix([ENTRY_DOMAIN]);
        digest.update(self.0);
        digest.update(generation.0.to_be_bytes());
        part(&mut digest, scope.host.as_bytes());
        optional(&mut digest, scope.query);
        optional(&mut digest, scope.user.map(UserId::as_str));
        let mut vary = scope.vary.to_vec();
        vary.sort_unstable();
        digest.update((vary.len() as u64).to_be_bytes());
        for (name, value) in vary {
            part(&mut digest, name.as_bytes());
            part(&mut digest, value.as_bytes());
        }
        CacheKey(digest.finalize().into())
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl CacheKey {
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for ResourceId {
    /// 64 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Display for CacheKey {
    /// 64 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

fn hex(bytes: &[u8; 32], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn part(digest: &mut Sha256, bytes: &[u8]) {
    digest.update((bytes.len() as u64).to_be_bytes());
    digest.update(bytes);
}

fn optional(digest: &mut Sha256, text: Option<&str>) {
    digest.update([u8::from(text.is_some())]);
    part(digest, text.unwrap_or("").as_bytes());
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use wasm_bindgen_test::wasm_bindgen_test;

    #[wasm_bindgen_test(unsupported = test)]
    fn every_part_of_a_scope_makes_another_entry() {
        let resource = ResourceId::new("user_profile", "/users/1/profile");
        let (one, two) = (UserId::new("1").unwrap(), UserId::new("2").unwrap());
        let base = EntryScope { host: "a", query: Some("q=1"), user: Some(&one), vary: &[("accept", "x")] };
        let scopes = [
            base,
            EntryScope { host: "b", ..base },
            EntryScope { query: None, ..base },
            EntryScope { query: Some(""), ..base },
            EntryScope { query: Some("q=12"), ..base },
            EntryScope { user: None, ..base },
            EntryScope { user: Some(&two), ..base },
            EntryScope { vary: &[], ..base },
            EntryScope { vary: &[("accept", "")], ..base },
            EntryScope { vary: &[("accept", "x"), ("accept-language", "")], ..base },
            // The same bytes at other borders.
            EntryScope { host: "aq", query: Some("=1"), ..base },
            EntryScope { query: Some("q="), user: Some(&one), vary: &[("1accept", "x")], ..base },
        ];
        let mut keys: HashSet<CacheKey> = scopes.iter().map(|scope| resource.entry(Generation(1), scope)).collect();
        keys.insert(resource.entry(Generation(1).next(), &base));
        keys.insert(ResourceId::new("user_profile", "/users/1").entry(Generation(1), &base));
        assert_eq!(keys.len(), scopes.len() + 2);
        assert_ne!(ResourceId::new("a", "bc"), ResourceId::new("ab", "c"));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn the_order_of_varying_headers_does_not_matter() {
        let resource = ResourceId::new("t", "/");
        let key = |vary| resource.entry(Generation(0), &EntryScope { vary, ..EntryScope::default() });
        assert_eq!(key(&[("a", "1"), ("b", "2")]), key(&[("b", "2"), ("a", "1")]));
        assert_ne!(key(&[("a", "1"), ("b", "2")]), key(&[("a", "2"), ("b", "1")]));
    }

    #[wasm_bindgen_test(unsupported = test)]
    fn a_resource_prints_the_published_digest() {
        // SHA-256 of 01 ‖ be64(12) ‖ "user_profile" ‖ be64(2) ‖ "/a", by a separate script.
        assert_eq!(
            ResourceId::new("user_profile", "/a").to_string(),
            "74de270fd054b1be270f80c512d65e92c1fdf798f234c588f5c78372db5bd7db"
        );
    }
}
