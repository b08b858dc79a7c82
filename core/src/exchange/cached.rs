//! Where the cache stands in the way of a request: before the origin for a read, around it for a write, instead of it
//! for a write-behind. A cache that is down stands in nobody's way.

use super::{Awaiting, Context, Decided, Exchange, Purpose, Reply, ReplyBody, Step};
use crate::cache::{CacheAnswer, CacheOp, CachedAnswer, Enqueued, FillTicket, Intent, ResourceId, Wanted};
use crate::config::{CacheType, RouteConfig, Strategy, WhenFull};
use crate::http::{AnswerHead, Problem, ProblemCode};
use crate::route::CanonicalPath;
use crate::{Millis, Timestamp};

/// A mark outlives the origin's answer by this much, so that a crash in between is noticed after it (DESIGN §7).
const MARK_MARGIN: Millis = Millis(5_000);

/// What the cache was asked so far.
#[derive(Debug, Default)]
pub(super) struct Progress {
    asked: bool,
    ticket: Option<FillTicket>,
    marked: Option<ResourceId>,
}

/// A cache operation under way.
#[derive(Debug)]
pub(super) enum Pending {
    Read(Wanted),
    Mark(ResourceId),
    /// The write is done: this is what the client gets.
    Finish(Result<Box<Reply>, Problem>),
}

impl Exchange {
    /// The cache's part before an origin is chosen; `None` when the request goes on.
    pub(super) fn before_origin(&mut self, cx: &mut Context<'_>) -> Result<Option<Step>, Problem> {
        if self.forward.cache.asked || !self.rules.in_force.cache {
            return Ok(None);
        }
        self.forward.cache.asked = true;
        let rules = self.rules.clone();
        let Some((route, data_type, kind)) = self.cached_route(&rules) else { return Ok(None) };
        let path =
            CanonicalPath::parse(cx.head.path()).map_err(|e| Problem::new(ProblemCode::BadPath, e.to_string()))?;
        let resource = ResourceId::new(kind.name.as_str(), path.as_str());
        match cx.head.method() {
            "GET" | "HEAD" => {
                if bypasses(cx) || self.shows_foreign_credential(cx) {
                    return Ok(None);
                }
                let user = self.identity.as_ref().filter(|_| !route.shared).map(|id| id.claims.sub.clone());
                let wanted = Wanted {
                    resource,
                    data_type,
                    host: self.client.host.to_ascii_lowercase(),
                    query: cx.head.query().map(str::to_owned),
                    user,
                };
                self.awaiting = Awaiting::Cache(Pending::Read(wanted.clone()));
                Ok(Some(Step::Cache(Box::new(CacheOp::Read(wanted)))))
            }
            "PUT" | "DELETE" if kind.strategy == Strategy::WriteBehind && rules.in_force.write_behind => {
                // What has no shard could never be delivered; a slot in cutover is no reason to refuse.
                let _ = self.placement(cx)?;
                self.awaiting = Awaiting::Enqueued;
                Ok(Some(Step::ReadBody { limit: rules.config.cache.max_entry.0 }))
            }
            "OPTIONS" => Ok(None),
            _ => Ok(Some(self.begin_write(route, resource, cx))),
        }
    }

    fn begin_write(&mut self, route: &RouteConfig, resource: ResourceId, cx: &Context<'_>) -> Step {
        let timeout = route.timeout.unwrap_or(self.rules.config.balance.response_timeout);
        let until = cx.now + timeout + MARK_MARGIN;
        self.awaiting = Awaiting::Cache(Pending::Mark(resource));
        Step::Cache(Box::new(CacheOp::BeginWrite { resource, until }))
    }

    /// A credential that goes to the origin unread: its answer is for nobody else (RFC 9111 §3.5).
    fn shows_foreign_credential(&self, cx: &Context<'_>) -> bool {
        self.identity.is_none() && !self.forward.drop_authorization && cx.head.header("authorization").is_some()
    }

    fn cached_route<'r>(&self, rules: &'r super::Rules) -> Option<(&'r RouteConfig, usize, &'r CacheType)> {
        let Purpose::Route { index, .. } = self.purpose else { return None };
        let route = rules.config.routes.get(index)?;
        let name = route.cache.as_ref()?;
        let at = rules.config.cache.types.iter().position(|kind| kind.name == *name)?;
        Some((route, at, rules.config.cache.types.get(at)?))
    }

    pub(super) fn cache_answered(&mut self, pending: Pending, answer: CacheAnswer, cx: &mut Context<'_>) -> Decided {
        match (pending, answer) {
            (Pending::Read(_), CacheAnswer::Hit(hit)) => Ok(hit_answer(&hit, cx.now)),
            (Pending::Read(_), CacheAnswer::Miss(ticket)) => {
                self.forward.cache.ticket = Some(ticket);
                self.place(cx)
            }
            (Pending::Read(wanted), CacheAnswer::Wait) => {
                let until = cx.now + self.rules.config.balance.response_timeout;
                self.awaiting = Awaiting::Cache(Pending::Read(wanted.clone()));
                Ok(Step::Cache(Box::new(CacheOp::Await { wanted, until })))
            }
            (Pending::Mark(resource), CacheAnswer::Done) => {
                self.forward.cache.marked = Some(resource);
                self.place(cx)
            }
            (Pending::Finish(Ok(reply)), _) => Ok(Step::Respond(reply)),
            (Pending::Finish(Err(problem)), _) => Err(problem),
            (Pending::Read(_) | Pending::Mark(_), _) => self.place(cx),
        }
    }

    /// The origin answered: a read may be kept, a write ends its mark before the client hears of it.
    pub(super) fn after_origin(&mut self, answer: &dyn AnswerHead, mut reply: Reply, cx: &mut Context<'_>) -> Decided {
        if let Some(resource) = self.forward.cache.marked.take() {
            // A definite refusal changed nothing; of anything else we cannot be sure.
            let raise = self.forward.failed || !(400..500).contains(&answer.status());
            return Ok(self.end_write(resource, raise, Ok(Box::new(reply))));
        }
        // An answer to HEAD lacks the body that a GET would get from the cache.
        if let (Some(ticket), ReplyBody::Origin, "GET") =
            (self.forward.cache.ticket.take(), &reply.body, cx.head.method())
        {
            reply.fill = Some(ticket);
        }
        Ok(Step::Respond(Box::new(reply)))
    }

    /// A write that is refused here: what no origin was asked for changed nothing, anything else may have happened.
    pub(super) fn refused_write(&mut self, problem: Problem) -> Decided {
        match self.forward.cache.marked.take() {
            Some(resource) => {
                let raise = self.forward.may_have_happened();
                Ok(self.end_write(resource, raise, Err(problem)))
            }
            None => Err(problem),
        }
    }

    fn end_write(&mut self, resource: ResourceId, raise: bool, then: Result<Box<Reply>, Problem>) -> Step {
        self.awaiting = Awaiting::Cache(Pending::Finish(then));
        Step::Cache(Box::new(CacheOp::EndWrite { resource, raise }))
    }

    /// The body of a write-behind came.
    pub(super) fn write_behind(&mut self, body: Vec<u8>, cx: &mut Context<'_>) -> Decided {
        let rules = self.rules.clone();
        let Some((_, _, kind)) = self.cached_route(&rules) else { return Err(super::unexpected()) };
        let path =
            CanonicalPath::parse(cx.head.path()).map_err(|e| Problem::new(ProblemCode::BadPath, e.to_string()))?;
        let intent = Intent {
            resource: ResourceId::new(kind.name.as_str(), path.as_str()),
            method: cx.head.method().to_owned(),
            path: cx.head.path().to_owned(),
            query: cx.head.query().map(str::to_owned),
            user: self.identity.as_ref().map(|identity| identity.claims.sub.clone()),
            content_type: cx.head.header("content-type").map(<[u8]>::to_vec),
            body,
        };
        self.awaiting = Awaiting::Enqueued;
        Ok(Step::Enqueue(Box::new(intent)))
    }

    /// 202 only once the intent is durable.
    pub(super) fn intent_enqueued(&mut self, outcome: Enqueued, cx: &mut Context<'_>) -> Decided {
        match outcome {
            Enqueued::Durable(sequence) => {
                let mut reply = Reply::json(202, &serde_json::json!({ "sequence": sequence }));
                reply.head.set("cache-control", "no-store");
                Ok(Step::Respond(Box::new(reply)))
            }
            Enqueued::Full if self.rules.config.cache.write_behind.when_full == WhenFull::WriteThrough => {
                let rules = self.rules.clone();
                let Some((route, _, kind)) = self.cached_route(&rules) else { return Err(super::unexpected()) };
                let path = CanonicalPath::parse(cx.head.path())
                    .map_err(|e| Problem::new(ProblemCode::BadPath, e.to_string()))?;
                Ok(self.begin_write(route, ResourceId::new(kind.name.as_str(), path.as_str()), cx))
            }
            Enqueued::Full => {
                Err(Problem::new(ProblemCode::QueueFull, "the write-behind queue is full").retry_after(1))
            }
            Enqueued::Unavailable => {
                Err(Problem::new(ProblemCode::StoreUnavailable, "the write could not be made durable").retry_after(1))
            }
        }
    }
}

fn hit_answer(hit: &CachedAnswer, now: Timestamp) -> Step {
    let mut reply = Reply { status: hit.status, ..Reply::empty(hit.status) };
    let age = now.since(hit.times.stored_at).0 / 1000;
    reply.head.set("age", age.to_string());
    reply.head.set(
        "cache-status",
        format!("edgekeep; hit; ttl={}", hit.times.ttl.0 / 1000 - age.min(hit.times.ttl.0 / 1000)),
    );
    reply.body = ReplyBody::Cached(std::sync::Arc::new(hit.clone()));
    Step::Respond(Box::new(reply))
}

/// The client insists on the origin (RFC 9111 §5.2.1).
fn bypasses(cx: &Context<'_>) -> bool {
    cx.head.header("cache-control").is_some_and(|value| {
        value.split(|b| *b == b',').any(|directive| {
            matches!(directive.trim_ascii(), d if d.eq_ignore_ascii_case(b"no-cache") || d.eq_ignore_ascii_case(b"no-store"))
        })
    })
}
