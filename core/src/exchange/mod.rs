//! One request, from its head to its answer: the spine that both shells drive.
//!
//! [`Exchange::begin`] decides as far as it can without any effect and returns the first [`Step`]. The shell performs
//! it and feeds the event of the same name, until `Respond`. Whatever a promise rests on is a step before `Respond`;
//! what may be lost comes out of [`Exchange::finished`]. On the common path (token valid, session in the near cache)
//! the first step is already `Forward`.
//!
//! `admit` says who gets in, `forward` where a request goes and what becomes of it, `cached` when the cache answers,
//! `sessions`, `oauth`, `internal` and `openapi` answer Edgekeep's own paths, `authorize` speaks to a proxy in front, `stay`
//! says how long an answer may go on.

mod admit;
mod authorize;
mod cached;
mod cookies;
mod cors;
mod endpoint;
mod event;
mod forward;
mod internal;
mod limits;
mod members;
mod oauth;
mod openapi;
mod own;
mod passive;
mod rules;
mod sessions;
mod stay;
mod step;
mod summary;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::cache::{CacheAnswer, Enqueued};
use crate::http::{AnswerHead, Client, Cookies, Head, Problem, ProblemCode, is_host, resolve_client};
use crate::metrics::{AuthResult, Finished as Counted};
use crate::route::{CanonicalPath, own_path};
use crate::session::{StoreOutcome, Tombstone};
use crate::token::AccessClaims;
use crate::{SessionId, Timestamp};

pub use endpoint::Endpoint;
pub use event::{Revoked, SessionEvent, SessionHappened};
pub use members::Addresses;
pub use rules::{InForce, Live, Local, Rules, RulesError, Secrets, Site};
pub use stay::{Question, Stay};
pub use step::{
    After, Body, Destination, Failed, FailedStage, Finished, Freshness, Plan, Reply, ReplyBody, SessionAnswer, Step,
};
pub use summary::Summary;

/// Headers that core may ask a request for. A shell that has to name them beforehand passes exactly these.
pub const REQUEST_HEADERS: &[&str] = &[
    "authorization",
    "cookie",
    "origin",
    "sec-fetch-site",
    "sec-websocket-version",
    "user-agent",
    "upgrade",
    "connection",
    "content-type",
    "content-length",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-method",
    "x-forwarded-uri",
    "x-original-method",
    "x-original-uri",
    "forwarded",
    "x-request-id",
    "traceparent",
    "x-edgekeep-edge",
    "access-control-request-method",
    "access-control-request-headers",
    "cache-control",
    "if-none-match",
];

/// What every event needs: the request's head, the time, and what belongs to this core.
pub struct Context<'a> {
    pub head: &'a dyn Head,
    pub now: Timestamp,
    pub local: &'a mut Local,
}

/// A request under way. Owned values only: it can be parked between events.
pub struct Exchange {
    rules: Arc<Rules>,
    live: Arc<Live>,
    client: Client,
    cookies: Cookies,
    purpose: Purpose,
    identity: Option<Identity>,
    awaiting: Awaiting,
    forward: forward::Forward,
    /// Counts as an attempt to authenticate, and whether it was admitted (DESIGN §9).
    attempt: Option<bool>,
    /// A generation to confirm after the answer.
    confirm: Option<(SessionId, u32)>,
    /// What Workers are told of a revocation.
    tombstones: Vec<Tombstone>,
    /// What happened to a session, for the log. Nothing on the common path.
    noted: Option<Box<event::Noted>>,
    status: u16,
    head_micros: Option<u64>,
}

/// What the request is for.
#[derive(Debug)]
enum Purpose {
    /// Refused before it was known.
    Unknown,
    Route {
        index: usize,
        key: Option<String>,
    },
    Authorize(authorize::Original),
    Own(own::Call),
}

/// Who was admitted.
#[derive(Clone, Debug)]
struct Identity {
    claims: Arc<AccessClaims>,
    from_cookie: bool,
}

/// The event that comes next.
#[derive(Debug)]
enum Awaiting {
    Nothing,
    Body,
    Session(admit::Pending),
    /// A session that a Worker asks about, which a token says is this user's.
    Validate(crate::UserId),
    Stored(own::Stored),
    Keys(rules::KeysTurn),
    Map(forward::MapFor),
    Queue,
    Answer,
    Cache(cached::Pending),
    Enqueued,
}

/// Either the next step or the refusal that ends the exchange.
type Decided = Result<Step, Problem>;

impl Exchange {
    /// Decides about a request as far as that needs no effect.
    pub fn begin(rules: &Arc<Rules>, live: &Arc<Live>, cx: &mut Context<'_>) -> (Exchange, Step) {
        let mut exchange = Exchange::new(rules, live, cx);
        let decided = exchange.first(cx);
        let step = exchange.step(decided, cx);
        (exchange, step)
    }

    /// A request that the shell itself has to refuse, for what core does not see of it.
    pub fn begin_refused(
        rules: &Arc<Rules>,
        live: &Arc<Live>,
        problem: Problem,
        cx: &mut Context<'_>,
    ) -> (Exchange, Step) {
        let mut exchange = Exchange::new(rules, live, cx);
        let step = exchange.step(Err(problem), cx);
        (exchange, step)
    }

    fn new(rules: &Arc<Rules>, live: &Arc<Live>, cx: &Context<'_>) -> Exchange {
        let edge = cx.head.header("x-edgekeep-edge");
        // The edge credential proves that the peer is our Worker: a proxy whose word about the client is believed.
        let proven = rules.site == Site::Native && edge.is_some_and(|credential| rules.secrets.is_edge(credential));
        Exchange {
            rules: rules.clone(),
            live: live.clone(),
            client: resolve_client(cx.head, &rules.config.server.trusted_proxies, proven),
            cookies: Cookies::default(),
            purpose: Purpose::Unknown,
            identity: None,
            awaiting: Awaiting::Nothing,
            forward: forward::Forward::default(),
            attempt: None,
            confirm: None,
            tombstones: Vec::new(),
            noted: None,
            status: 0,
            head_micros: None,
        }
    }

    fn first(&mut self, cx: &mut Context<'_>) -> Decided {
        let rules = self.rules.clone();
        let head = cx.head;
        if !is_host(&self.client.host) {
            return Err(Problem::new(ProblemCode::BadRequest, "Host is neither a name nor an address"));
        }
        if matches!(head.method(), "CONNECT" | "TRACE") {
            let mut problem = Problem::new(ProblemCode::MethodNotAllowed, "CONNECT and TRACE are not proxied");
            let own = own_path(head.path(), rules.config.server.api_prefix.as_str());
            problem.allow = Some(own.map_or(own::ANY_METHOD, |own| own::allowed_methods(&own)));
            return Err(problem);
        }
        if let Some(path) = own_path(head.path(), rules.config.server.api_prefix.as_str()) {
            self.cookies = crate::http::read_cookies(head, &rules.config.balance.sticky.cookie_name);
            return self.own(path, cx);
        }
        let path = CanonicalPath::parse(head.path()).map_err(|e| Problem::new(ProblemCode::BadPath, e.to_string()))?;
        let host = Some(self.client.host.as_str()).filter(|host| !host.is_empty());
        let preflight = cors::preflight_method(head);
        let method = preflight.unwrap_or(head.method());
        let Some(found) = rules.router.find(method, host, &path) else {
            return Err(Problem::new(ProblemCode::NoRoute, "no route matches this method, host and path"));
        };
        let Some(route) = rules.config.routes.get(found.index) else {
            return Err(Problem::new(ProblemCode::NoRoute, ""));
        };
        let key = forward::shard_key(route, &found, head);
        self.purpose = Purpose::Route { index: found.index, key };
        self.cookies = crate::http::read_cookies(head, &rules.config.balance.sticky.cookie_name);
        // What is no length of 64 bits is larger than any limit; an origin might read it as a small one.
        let length = head.header("content-length").map(|length| length_of(length).unwrap_or(u64::MAX));
        if length.is_some_and(|length| length > rules.config.limits.body.0) {
            return Err(body_too_large());
        }
        if preflight.is_some() {
            if let Some(rule) = &route.cors {
                return Ok(cors::answer_preflight(rule, head));
            }
            self.note_own_token(cx);
            return self.place(cx);
        }
        self.admit(route.auth, cx)
    }

    /// The request body that was asked for.
    pub fn body(&mut self, body: Body, cx: &mut Context<'_>) -> Step {
        let decided = match (std::mem::replace(&mut self.awaiting, Awaiting::Nothing), body) {
            (Awaiting::Body, Body::Bytes(bytes)) => self.own_body(&bytes, cx),
            (Awaiting::Enqueued, Body::Bytes(bytes)) => self.write_behind(bytes, cx),
            (Awaiting::Enqueued, Body::TooLarge) => {
                Err(Problem::new(ProblemCode::BodyTooLarge, "larger than cache.max_entry"))
            }
            (Awaiting::Body, Body::TooLarge) => {
                Err(Problem::new(ProblemCode::BodyTooLarge, "larger than limits.json_body"))
            }
            (Awaiting::Body | Awaiting::Enqueued, Body::Gone) => {
                Err(Problem::new(ProblemCode::BadRequest, "the body ended early"))
            }
            _ => Err(unexpected()),
        };
        self.step(decided, cx)
    }

    /// The session that was asked for.
    pub fn session(&mut self, answer: SessionAnswer, cx: &mut Context<'_>) -> Step {
        let decided = match std::mem::replace(&mut self.awaiting, Awaiting::Nothing) {
            Awaiting::Session(pending) => self.loaded(&pending, answer, cx),
            Awaiting::Validate(user) => self.edge_validated(&user, answer, cx),
            _ => Err(unexpected()),
        };
        self.step(decided, cx)
    }

    /// The outcome of a store operation.
    pub fn stored(&mut self, outcome: StoreOutcome, cx: &mut Context<'_>) -> Step {
        let decided = match std::mem::replace(&mut self.awaiting, Awaiting::Nothing) {
            Awaiting::Stored(stored) => self.own_stored(stored, outcome, cx),
            _ => Err(unexpected()),
        };
        self.step(decided, cx)
    }

    /// Rules whose verifier knows the authority's keys, or `None` when it could not be asked.
    pub fn keys(&mut self, rules: Option<Arc<Rules>>, cx: &mut Context<'_>) -> Step {
        let decided = match std::mem::replace(&mut self.awaiting, Awaiting::Nothing) {
            Awaiting::Keys(turn) => {
                if turn == rules::KeysTurn::Ask {
                    self.live.keys_came();
                }
                match rules.map_or(Ok(()), |rules| self.take_rules(rules)) {
                    Ok(()) => self.admit_again(cx),
                    Err(problem) => Err(problem),
                }
            }
            _ => Err(unexpected()),
        };
        self.step(decided, cx)
    }

    /// Rules with a newer map, or `None` when none came in time.
    pub fn map(&mut self, rules: Option<Arc<Rules>>, cx: &mut Context<'_>) -> Step {
        let decided = match std::mem::replace(&mut self.awaiting, Awaiting::Nothing) {
            Awaiting::Map(reason) => self.map_loaded(reason, rules, cx),
            _ => Err(unexpected()),
        };
        self.step(decided, cx)
    }

    /// A place at one of the pool's origins may be free.
    pub fn ready(&mut self, cx: &mut Context<'_>) -> Step {
        let decided = match std::mem::replace(&mut self.awaiting, Awaiting::Nothing) {
            Awaiting::Queue => self.place(cx),
            _ => Err(unexpected()),
        };
        self.step(decided, cx)
    }

    /// The queue was full, or its time ran out.
    pub fn timed_out(&mut self, cx: &mut Context<'_>) -> Step {
        self.awaiting = Awaiting::Nothing;
        let problem = Problem::new(ProblemCode::QueueFull, "no origin had room in time").retry_after(1);
        self.step(Err(problem), cx)
    }

    /// The shared cache's answer.
    pub fn cached(&mut self, answer: CacheAnswer, cx: &mut Context<'_>) -> Step {
        let decided = match std::mem::replace(&mut self.awaiting, Awaiting::Nothing) {
            Awaiting::Cache(pending) => self.cache_answered(pending, answer, cx),
            _ => Err(unexpected()),
        };
        self.step(decided, cx)
    }

    /// Whether an intent is durable.
    pub fn enqueued(&mut self, outcome: Enqueued, cx: &mut Context<'_>) -> Step {
        let decided = match std::mem::replace(&mut self.awaiting, Awaiting::Nothing) {
            Awaiting::Enqueued => self.intent_enqueued(outcome, cx),
            _ => Err(unexpected()),
        };
        self.step(decided, cx)
    }

    /// An origin's response head.
    pub fn answered(&mut self, answer: &dyn AnswerHead, replayable: bool, cx: &mut Context<'_>) -> Step {
        let decided = match std::mem::replace(&mut self.awaiting, Awaiting::Nothing) {
            Awaiting::Answer => self.origin_answered(answer, replayable, cx),
            _ => Err(unexpected()),
        };
        self.step(decided, cx)
    }

    /// An origin that did not answer.
    pub fn failed(&mut self, failed: Failed, cx: &mut Context<'_>) -> Step {
        let decided = match std::mem::replace(&mut self.awaiting, Awaiting::Nothing) {
            Awaiting::Answer => self.origin_failed(failed, cx),
            _ => Err(unexpected()),
        };
        self.step(decided, cx)
    }

    /// The response head goes out: what `api_latency` measures to. `micros` since the request's head came.
    pub fn head_sent(&mut self, micros: u64) {
        self.head_micros = Some(micros);
    }

    /// The client stopped sending its request body.
    pub fn body_gone(&mut self, cx: &mut Context<'_>) -> Step {
        self.awaiting = Awaiting::Nothing;
        self.forward.give_up();
        self.step(Err(Problem::new(ProblemCode::BadRequest, "the body did not come to its end")), cx)
    }

    /// The gateway itself has no room for a connection to the origin, which is not to blame.
    pub fn no_room(&mut self, cx: &mut Context<'_>) -> Step {
        self.awaiting = Awaiting::Nothing;
        self.forward.take_back();
        let problem = Problem::new(ProblemCode::NoOrigin, "the gateway has no file left for a connection");
        self.step(Err(problem.retry_after(1)), cx)
    }

    /// The request body grew beyond `limits.body` on its way to the origin.
    pub fn body_too_large(&mut self, cx: &mut Context<'_>) -> Step {
        self.awaiting = Awaiting::Nothing;
        self.forward.give_up();
        self.step(Err(body_too_large()), cx)
    }

    /// Whether the exchange goes on when its client has left: what it does to sessions takes more than one step, and the
    /// last tells the log and the Workers of it.
    pub fn outlives_client(&self) -> bool {
        matches!(&self.purpose, Purpose::Own(call) if call.is_change())
    }

    /// The end, once: what may be done now, and may be lost.
    pub fn finished(&mut self, how: Finished, now: Timestamp, local: &mut Local) -> After {
        let confirm = self.confirm.take().filter(|(id, generation)| self.live.confirm_due(*id, *generation));
        let counted = Counted {
            status: self.status,
            auth: match self.attempt {
                None => AuthResult::NotAttempted,
                Some(true) => AuthResult::Admitted,
                Some(false) => AuthResult::Refused,
            },
            head_micros: self.head_micros,
            health_path: self.is_health_path(),
            aborted: how == Finished::Aborted,
            upgraded: self.status == 101,
        };
        local.metrics.request(&counted, now);
        After { confirm, tombstones: std::mem::take(&mut self.tombstones), event: self.take_event() }
    }

    /// A route to exactly the path that the checks ask for.
    fn is_health_path(&self) -> bool {
        self.route() == self.rules.config.health.path
    }

    /// The status that was decided; 0 before `Respond`.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The pattern of the route, for logs: never the raw path.
    pub fn route(&self) -> &str {
        self.rules.route_name(self.route_index())
    }

    pub fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    /// Goes on under newer rules. What was decided under the old routes does not hold under others: such a request,
    /// which waited through a reload, starts over at its client.
    fn take_rules(&mut self, rules: Arc<Rules>) -> Result<(), Problem> {
        if !Arc::ptr_eq(&self.rules, &rules) && self.rules.config.routes != rules.config.routes {
            return Err(Problem::new(ProblemCode::Reloaded, "the configuration changed; try again").retry_after(1));
        }
        self.rules = rules;
        Ok(())
    }

    fn route_index(&self) -> Option<usize> {
        match self.purpose {
            Purpose::Route { index, .. } => Some(index),
            _ => None,
        }
    }

    /// Turns a refusal into the last step, and notes what the client gets. A write that was marked ends its mark first.
    fn step(&mut self, decided: Decided, cx: &mut Context<'_>) -> Step {
        let mut step = match decided {
            Ok(step) => step,
            Err(problem) => match self.refused_write(problem) {
                Ok(end_write) => end_write,
                Err(problem) => {
                    self.note_refusal(problem.code);
                    self.refuse(&problem)
                }
            },
        };
        if let Step::Respond(reply) = &mut step {
            self.awaiting = Awaiting::Nothing;
            self.status = reply.status;
            if let Some(rule) = self.route_index().and_then(|at| self.rules.config.routes.get(at)?.cors.as_ref()) {
                cors::allow(rule, cx.head, &mut reply.head);
            }
        }
        step
    }

    fn refuse(&self, problem: &Problem) -> Step {
        if let Purpose::Own(call) = &self.purpose
            && call.speaks_oauth()
        {
            return oauth::error(problem, *call == own::Call::OauthIntrospect);
        }
        let mut reply = Reply::problem(problem);
        if let Purpose::Authorize(_) = self.purpose {
            authorize::blank_identity(&mut reply.head);
        }
        Step::Respond(Box::new(reply))
    }
}

fn length_of(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn body_too_large() -> Problem {
    Problem::new(ProblemCode::BodyTooLarge, "larger than limits.body")
}

/// A shell fed an event that was not asked for: a fault of ours, and no reason to stop the process.
fn unexpected() -> Problem {
    Problem::new(ProblemCode::Internal, "")
}
