//! What the exchange asks of the shared cache and of the write-behind queue, and what they answer.

use std::sync::Arc;

use super::freshness::Times;
use super::key::{CacheKey, Generation, ResourceId};
use crate::{Timestamp, UserId};

/// One operation on the shared cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheOp {
    /// Look for an answer. → `Hit`, `Miss`, `Wait`, `Unavailable`
    Read(Wanted),
    /// Wait for the fetch of another request. → `Hit`, `Miss`, `Unavailable`
    Await { wanted: Wanted, until: Timestamp },
    /// Mark the resource: until the mark is lifted or `until` passed, reads and fills bypass the cache. → `Done`,
    /// `Unavailable`
    BeginWrite { resource: ResourceId, until: Timestamp },
    /// Lift the mark, with or without raising the generation. → `Done`, `Unavailable`
    EndWrite { resource: ResourceId, raise: bool },
}

/// An entry as a request wants it. The generation and `Vary` are the cache's to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub resource: ResourceId,
    /// The index of its data type in the configuration.
    pub data_type: usize,
    pub host: String,
    pub query: Option<String>,
    /// `None` on shared routes and for guests.
    pub user: Option<UserId>,
}

/// What the cache answers.
#[derive(Clone, Debug)]
pub enum CacheAnswer {
    Hit(Arc<CachedAnswer>),
    /// Fetch it, and store it under this ticket unless a write came in between.
    Miss(FillTicket),
    /// Another request is fetching it.
    Wait,
    Done,
    Unavailable,
}

/// Permission to store one answer of the generation that the read saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillTicket {
    pub key: CacheKey,
    pub generation: Generation,
}

/// A stored answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedAnswer {
    pub status: u16,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Arc<[u8]>,
    pub times: Times,
}

/// A write to be delivered later, in order per resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    pub resource: ResourceId,
    /// PUT or DELETE.
    pub method: String,
    pub path: String,
    pub query: Option<String>,
    pub user: Option<UserId>,
    pub content_type: Option<Vec<u8>>,
    pub body: Vec<u8>,
}

/// Whether an intent is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enqueued {
    /// With its sequence number.
    Durable(u64),
    Full,
    Unavailable,
}
