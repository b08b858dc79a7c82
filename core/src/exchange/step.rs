//! The vocabulary between the exchange and a shell: what is asked for, and what comes back.

use std::sync::Arc;

use super::event::SessionEvent;
use crate::balance::Lease;
use crate::cache::{CacheOp, CachedAnswer, FillTicket, Intent};
use crate::http::{HeaderEdits, Problem};
use crate::session::{LoadedSession, StoreOp, Tombstone};
use crate::shard::Epoch;
use crate::{Millis, SessionId, Timestamp};

/// What the shell does next. Everything but `Respond` comes back as the event of the same name.
#[derive(Debug)]
pub enum Step {
    /// Read the request body, at most `limit` bytes of it. → `body`
    ReadBody { limit: u64 },
    /// Load a session: from the nearest copy the shell trusts, or from the primary. → `session`
    Session { id: SessionId, user: crate::UserId, generation: u32, freshness: Freshness },
    /// Perform a session operation. → `stored`
    Store(Box<StoreOp>),
    /// Ask the authority for its public keys (at the edge, after an unknown `kid`). Others wait for it, so it must come
    /// to its end although the client leaves. → `keys`
    LoadKeys,
    /// Wait while another request asks for them: as long as [`Live::awaits_keys`](super::Live::awaits_keys), and no
    /// longer than until then. → `keys`
    AwaitKeys { until: Timestamp },
    /// Look into or write to the shared cache. → `cached`
    Cache(Box<CacheOp>),
    /// Make a write-behind intent durable. → `enqueued`
    Enqueue(Box<Intent>),
    /// Wait for a place at one of a list's origins: a pool's, or one beyond the pools for `any`. At most `room` may wait
    /// there. `picky`: it was at some of the origins already, which others may use although it stands before them.
    /// → `ready` each time when there may be one, or `timed_out`
    Queue { list: usize, until: Timestamp, room: usize, picky: bool },
    /// Wait for a shard map of at least this epoch. → `map`
    LoadMap { min_epoch: Epoch, until: Timestamp },
    /// Send the request to an origin. → `answered` or `failed`
    Forward(Box<Plan>),
    /// Answer the client. The last step.
    Respond(Box<Reply>),
}

/// How fresh a session has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Any copy within the documented bounds.
    Cached,
    /// The store's primary itself.
    Primary,
}

/// A request body that core asked for.
#[derive(Debug)]
pub enum Body {
    Bytes(Vec<u8>),
    TooLarge,
    /// The client left before it was complete.
    Gone,
}

/// What a load of a session found.
#[derive(Clone, Debug)]
pub enum SessionAnswer {
    Loaded(LoadedSession),
    Missing,
    Unavailable,
}

/// How a request is sent on.
#[derive(Debug)]
pub struct Plan {
    pub to: Destination,
    /// Held until the response body ends (natively) or its deadline passes (at the edge).
    pub lease: Option<Lease>,
    /// Edits of the client's head.
    pub head: HeaderEdits,
    /// The `Host` to send; `None` keeps the client's. The edge always sends the origin URL's.
    pub host: Option<Arc<str>>,
    pub connect_timeout: Millis,
    /// Until the response head.
    pub response_timeout: Millis,
    /// The client asks for a protocol upgrade, and it is passed on.
    pub upgrade: bool,
    /// Keep this many bytes of the body: a longer one is not replayable.
    pub retry_buffer: u64,
}

/// Where a request is sent: an index into the rules, or the session authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    Origin { pool: usize, origin: usize },
    Authority,
}

/// How far a request came that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailedStage {
    /// No connection was made.
    Connect,
    /// The request was handed back: nothing was sent.
    Unsent,
    /// Some of it may have been sent.
    Sent,
    /// The head came, but not in a form that can be passed on.
    HeadReceived,
}

/// A request that an origin did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    pub stage: FailedStage,
    /// It ran into `connect_timeout` or `response_timeout`.
    pub timed_out: bool,
    /// The whole body is still at hand.
    pub replayable: bool,
}

/// What the client gets.
#[derive(Debug)]
pub struct Reply {
    /// 100–599. For `Origin` and `Upgrade`, the origin's.
    pub status: u16,
    /// For `Bytes` and `Cached`: the headers. For `Origin` and `Upgrade`: edits of the origin's.
    pub head: HeaderEdits,
    pub body: ReplyBody,
    /// Keep the origin's answer under this ticket while it streams.
    pub fill: Option<FillTicket>,
}

#[derive(Debug)]
pub enum ReplyBody {
    Bytes(Vec<u8>),
    /// An answer from cache.
    Cached(Arc<CachedAnswer>),
    /// The origin's body, streamed.
    Origin,
    /// The origin switched protocols: join both connections.
    Upgrade,
}

/// How the response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finished {
    Sent,
    /// The client left.
    Aborted,
}

/// What may be done after the answer, and may be lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct After {
    /// Tell the store that this session's generation was seen.
    pub confirm: Option<(SessionId, u32)>,
    /// Tell the Workers of `edge.notify`, again and again until they have it or the tombstone's time is over. Without it
    /// they see the revocation within their bound of 60 s.
    pub tombstones: Vec<Tombstone>,
    /// What happened to a session, for the log.
    pub event: Option<Box<SessionEvent>>,
}

impl Reply {
    /// A JSON answer.
    pub fn json(status: u16, document: &serde_json::Value) -> Reply {
        let mut head = HeaderEdits::default();
        head.set("content-type", "application/json");
        Reply { status, head, body: ReplyBody::Bytes(document.to_string().into_bytes()), fill: None }
    }

    /// An answer without a body.
    pub fn empty(status: u16) -> Reply {
        Reply { status, head: HeaderEdits::default(), body: ReplyBody::Bytes(Vec::new()), fill: None }
    }

    /// A refusal.
    pub fn problem(problem: &Problem) -> Reply {
        let mut head = HeaderEdits::default();
        head.set("content-type", "application/problem+json");
        head.set("cache-control", "no-store");
        if let Some(challenge) = problem.challenge() {
            head.set("www-authenticate", challenge);
        }
        if let Some(seconds) = problem.retry_after {
            head.set("retry-after", seconds.to_string());
        }
        if let Some(methods) = problem.allow {
            head.set("allow", methods);
        }
        if problem.clear_cookies {
            super::cookies::clear(&mut head);
        }
        Reply { status: problem.status(), head, body: ReplyBody::Bytes(problem.body().into_bytes()), fill: None }
    }
}
