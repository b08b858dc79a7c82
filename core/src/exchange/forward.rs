//! Where a request goes and what becomes of it: shard, origin, head, retry, answer.

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::passive::{Ended, took};
use super::{Awaiting, Context, Decided, Destination, Exchange, Failed, FailedStage, Plan, Purpose, Reply, ReplyBody};
use super::{Step, own};
use crate::balance::{Choice, Lease, OnNoHealthy, Origin, OriginId, Standing, Sticky, choose};
use crate::config::{RouteConfig, ShardRule};
use crate::http::{
    AnswerHead, Cookie, Head, HeaderEdits, Problem, ProblemCode, forwarded_headers, push_decimal, request_id,
    strip_request, strip_response, traceparent, without_cookies,
};
use crate::route::{CanonicalPath, RouteMatch};
use crate::shard::{Epoch, ShardName};
use crate::{Millis, SessionId, Timestamp, UserId};

/// How long a request waits for a newer shard map, in a cutover or after a 421 (DESIGN §6).
const MAP_WAIT: Millis = Millis(5_000);
/// How often a choice is made anew because other cores took the last place meanwhile.
const LOST_RACES: u8 = 4;

/// What is known of the way so far.
#[derive(Debug, Default)]
pub(super) struct Forward {
    /// The bearer token on a `none` route is one of ours.
    pub drop_authorization: bool,
    placed: Option<Placed>,
    current: Option<Current>,
    tried: Vec<OriginId>,
    /// The one that was tried may be asked once more where there is no other: a kept connection that closed just then says
    /// nothing about its origin.
    same_again: bool,
    queue_until: Option<Timestamp>,
    /// The end of the wait for a map, however many maps come in it.
    map_until: Option<Timestamp>,
    /// An attempt ended without an answer.
    pub failed: bool,
    /// A newer map was already asked for after a 421.
    misdirected: bool,
    /// The answer names its origin in the sticky cookie.
    set_sticky: bool,
    pub cache: super::cached::Progress,
    /// For how long the origin has had the whole request, where the shell knows.
    pub waited: Option<Millis>,
}

impl Forward {
    /// The attempt under way is given up: its origin may have acted on what it got.
    pub fn give_up(&mut self) {
        self.failed |= self.current.take().is_some();
    }

    /// The attempt under way never began.
    pub fn take_back(&mut self) {
        self.current = None;
    }

    /// Whether an origin may have acted on the request although none said so.
    pub fn may_have_happened(&self) -> bool {
        self.failed || self.current.is_some()
    }
}

/// The shard of a request.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    /// A pool, or none for the union of all user-shard pools.
    pool: Option<usize>,
    shard: Option<ShardName>,
    next: Option<ShardName>,
    previous: Option<ShardName>,
    /// The epoch of the map that decided, when one did.
    epoch: Option<Epoch>,
}

#[derive(Clone, Debug)]
struct Current {
    pool: usize,
    origin: usize,
    id: OriginId,
    /// When the request was sent there.
    began: Timestamp,
}

/// Why a map was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum MapFor {
    /// There is none yet, at a fresh edge.
    First,
    /// The slot is in cutover: nobody answers for it until the next epoch.
    Cutover,
    /// The origin said that the slot is no longer its own.
    Misdirected,
}

/// The user or instant in path or query that the route places by.
pub(super) fn shard_key(route: &RouteConfig, found: &RouteMatch<'_>, head: &dyn Head) -> Option<String> {
    match &route.shard {
        ShardRule::Path(name) => found.param(name).map(str::to_owned),
        ShardRule::Photo(name) => found.param(name).map(str::to_owned).or_else(|| {
            let query = head.query()?;
            form_urlencoded::parse(query.as_bytes()).find(|(n, _)| n == name.as_str()).map(|(_, v)| v.into_owned())
        }),
        ShardRule::User | ShardRule::Named(_) | ShardRule::Any => None,
    }
}

impl Exchange {
    /// Finds the shard and sends the request there, or asks the cache first.
    pub(super) fn place(&mut self, cx: &mut Context<'_>) -> Decided {
        if let Some(step) = self.before_origin(cx)? {
            return Ok(step);
        }
        match self.placement(cx)? {
            Ok(placed) => {
                self.forward.placed = Some(placed);
                self.send(cx)
            }
            Err(wait) => Ok(wait),
        }
    }

    /// The shard by the route's rule; or the wait for a map.
    pub(super) fn placement(&mut self, cx: &mut Context<'_>) -> Result<Result<Placed, Step>, Problem> {
        let Purpose::Route { index, key } = &self.purpose else { return Err(super::unexpected()) };
        let rules = self.rules.clone();
        let Some(route) = rules.config.routes.get(*index) else { return Err(super::unexpected()) };
        let anywhere = Placed { pool: None, shard: None, next: None, previous: None, epoch: None };
        match (&route.shard, key) {
            (ShardRule::Any, _) => Ok(Ok(anywhere)),
            (ShardRule::Named(shard), _) => {
                let shard = ShardName::new(&shard.to_string()).map_err(|_| super::unexpected())?;
                Ok(Ok(self.on_shard(&shard)?))
            }
            (ShardRule::User, _) => match &self.identity {
                Some(identity) => {
                    let user = identity.claims.sub.clone();
                    self.on_user_shard(&user, cx)
                }
                None => Ok(Ok(anywhere)),
            },
            (ShardRule::Path(name), Some(key)) => {
                let user = UserId::new(key)
                    .map_err(|e| Problem::new(ProblemCode::BadIdentity, format!("{{{name}}} in the path {e}")))?;
                self.on_user_shard(&user, cx)
            }
            (ShardRule::Photo(name), Some(key)) => {
                let month = rules
                    .photos
                    .month(key, cx.now)
                    .map_err(|e| Problem::new(ProblemCode::BadInstant, format!("{name}: {e}")))?;
                let Some(map) = &rules.map else { return self.load_map(MapFor::First, Epoch(1), cx).map(Err) };
                let path = CanonicalPath::parse(cx.head.path())
                    .map_err(|e| Problem::new(ProblemCode::BadPath, e.to_string()))?;
                let shard = map.place_photo(month, path.as_str());
                Ok(Ok(self.on_shard(&shard)?))
            }
            (ShardRule::Photo(name), None) => Err(Problem::new(
                ProblemCode::BadInstant,
                format!("{name} is required: an RFC 3339 instant or YYYY-MM"),
            )),
            (ShardRule::Path(_), None) => Err(super::unexpected()),
        }
    }

    fn on_user_shard(&mut self, user: &UserId, cx: &Context<'_>) -> Result<Result<Placed, Step>, Problem> {
        let rules = self.rules.clone();
        let Some(map) = &rules.map else { return self.load_map(MapFor::First, Epoch(1), cx).map(Err) };
        let placement = map.place(user).map_err(|e| Problem::new(ProblemCode::BadIdentity, e.to_string()))?;
        if placement.held {
            return self.load_map(MapFor::Cutover, Epoch(map.epoch().0 + 1), cx).map(Err);
        }
        let mut placed = self.on_shard(placement.shard)?;
        placed.next = placement.next.cloned();
        placed.previous = placement.previous.cloned();
        placed.epoch = Some(map.epoch());
        Ok(Ok(placed))
    }

    fn on_shard(&self, shard: &ShardName) -> Result<Placed, Problem> {
        let Some(pool) = self.rules.pool_of(shard.as_str()) else {
            return Err(Problem::new(ProblemCode::NoPool, format!("no pool serves {shard}")).retry_after(30));
        };
        Ok(Placed { pool: Some(pool), shard: Some(shard.clone()), next: None, previous: None, epoch: None })
    }

    fn load_map(&mut self, reason: MapFor, min_epoch: Epoch, cx: &Context<'_>) -> Decided {
        let until = *self.forward.map_until.get_or_insert(cx.now + MAP_WAIT);
        if cx.now >= until {
            return Err(self.without_map(reason));
        }
        self.awaiting = Awaiting::Map(reason);
        Ok(Step::LoadMap { min_epoch, until })
    }

    fn without_map(&self, reason: MapFor) -> Problem {
        match reason {
            MapFor::First => self.store_unavailable(),
            MapFor::Cutover | MapFor::Misdirected => {
                Problem::new(ProblemCode::ShardMoving, "its data is being moved; try again").retry_after(1)
            }
        }
    }

    pub(super) fn map_loaded(
        &mut self,
        reason: MapFor,
        rules: Option<std::sync::Arc<super::Rules>>,
        cx: &mut Context<'_>,
    ) -> Decided {
        let Some(rules) = rules else { return Err(self.without_map(reason)) };
        self.take_rules(rules)?;
        self.place(cx)
    }

    /// Chooses an origin and sends the request there.
    pub(super) fn send(&mut self, cx: &mut Context<'_>) -> Decided {
        let Some(placed) = self.forward.placed.clone() else { return Err(super::unexpected()) };
        match self.pick(&placed, cx) {
            Picked::Origin { pool, origin, lease } => {
                let rules = self.rules.clone();
                let Some(chosen) = rules.origin(pool, origin) else { return Err(super::unexpected()) };
                let Some(of) = rules.pools.get(pool) else { return Err(super::unexpected()) };
                // Requests earn retries; retries earn none.
                if !self.forward.failed {
                    of.budget.earn(rules.config.balance.retry_budget);
                }
                self.forward.current = Some(Current { pool, origin, id: chosen.id.clone(), began: cx.now });
                let of_pool = of.shard.is_some().then_some(of.pool.name.as_str());
                let shard = placed.shard.as_ref().map(ShardName::as_str).or(of_pool);
                let plan = self.plan(&placed, shard, (pool, origin), lease, cx)?;
                self.forward.map_until = None;
                self.awaiting = Awaiting::Answer;
                Ok(Step::Forward(Box::new(plan)))
            }
            Picked::Full { list } => {
                let until = *self.forward.queue_until.get_or_insert(cx.now + self.rules.config.balance.queue_timeout);
                if !self.rules.in_force.queue || cx.now >= until {
                    return Err(
                        Problem::new(ProblemCode::QueueFull, "every origin is at max_connections").retry_after(1)
                    );
                }
                self.awaiting = Awaiting::Queue;
                let room = self.rules.config.balance.queue_max as usize * origins_of(&self.rules, list).len();
                Ok(Step::Queue { list, until, room, picky: !self.forward.tried.is_empty() })
            }
            Picked::Nothing if self.forward.tried.is_empty() => {
                Err(Problem::new(ProblemCode::NoOrigin, "no origin of the shard may be tried").retry_after(1))
            }
            Picked::Nothing => Err(Problem::new(ProblemCode::OriginFailed, "no origin could be reached")),
        }
    }

    fn pick(&mut self, placed: &Placed, cx: &mut Context<'_>) -> Picked {
        let is_first = self.forward.tried.is_empty();
        match self.pick_once(placed, is_first, cx) {
            Picked::Nothing if self.forward.same_again => self.pick_once(placed, true, cx),
            Picked::Full { .. } if self.forward.same_again && !self.rules.in_force.queue => {
                self.pick_once(placed, true, cx)
            }
            picked => picked,
        }
    }

    /// Among all origins, or among those that were not tried yet.
    fn pick_once(&mut self, placed: &Placed, among_all: bool, cx: &mut Context<'_>) -> Picked {
        let rules = self.rules.clone();
        let any = rules.pools.len();
        let mut at = placed.pool.unwrap_or(any);
        let is_new = self.forward.queue_until.is_none() && rules.in_force.queue;
        let others_wait = |at: usize| is_new && rules.line(at).length() > 0;
        if among_all && rules.config.balance.sticky.enabled {
            match self.follow_sticky(at, others_wait(at), cx) {
                Followed::Taken(index, lease) => {
                    let (pool, origin) = located(&rules, at, index);
                    return Picked::Origin { pool, origin, lease };
                }
                Followed::Overflow => self.forward.set_sticky = false,
                Followed::Repick => self.forward.set_sticky = true,
            }
        }
        let mut balance = rules.balance;
        for _ in 0..LOST_RACES {
            // Nobody passes those who wait.
            if others_wait(at) {
                return Picked::Full { list: at };
            }
            let (turns, entropy) = cx.local.turns(at);
            let origins = origins_of(&rules, at);
            let excluded = if among_all { &[] } else { self.forward.tried.as_slice() };
            match choose(origins, turns, entropy, cx.now, &balance, excluded) {
                Choice::Origin { index, panic } => {
                    // Never names an origin that is only tried because all are down.
                    self.forward.set_sticky &= !panic;
                    if let Some(lease) = origins.get(index).and_then(Origin::lease) {
                        let (pool, origin) = located(&rules, at, index);
                        return Picked::Origin { pool, origin, lease };
                    }
                }
                Choice::Full => return Picked::Full { list: at },
                Choice::Fallback => match rules.fallback {
                    Some(fallback) if fallback != at => {
                        at = fallback;
                        // Nothing stands behind it: what it has is used, however little that is.
                        balance.on_no_healthy = OnNoHealthy::FailOpen;
                        self.forward.set_sticky = false;
                    }
                    _ => return Picked::Nothing,
                },
                Choice::None => return Picked::Nothing,
            }
        }
        Picked::Full { list: at }
    }

    fn follow_sticky(&self, at: usize, others_wait: bool, cx: &Context<'_>) -> Followed {
        let Cookie::Value(value) = &self.cookies.sticky else { return Followed::Repick };
        let max_age = self.rules.config.balance.sticky.max_age;
        let Sticky::Origin(id) = self.rules.sticky.open(value, cx.now, max_age) else { return Followed::Repick };
        let Some(index) = self.rules.find(at, &id) else { return Followed::Repick };
        let Some(origin) = origins_of(&self.rules, at).get(index) else { return Followed::Repick };
        let standing = origin.state.standing(cx.now);
        if !standing.keeps_sticky() {
            return Followed::Repick;
        }
        // Those who wait get nothing of an origin that drains: there its client passes nobody.
        if others_wait && standing != Standing::Drain {
            return Followed::Overflow;
        }
        match origin.lease() {
            Some(lease) => Followed::Taken(index, lease),
            None => Followed::Overflow,
        }
    }

    fn plan(
        &self,
        placed: &Placed,
        shard: Option<&str>,
        (pool, origin): (usize, usize),
        lease: Lease,
        cx: &mut Context<'_>,
    ) -> Result<Plan, Problem> {
        let Purpose::Route { index, .. } = &self.purpose else { return Err(super::unexpected()) };
        let Some(route) = self.rules.config.routes.get(*index) else { return Err(super::unexpected()) };
        let mut head = HeaderEdits::roomy();
        strip_request(cx.head, &mut head);
        forwarded_headers(cx.head, &self.client, &mut head);
        request_id(cx.head, &mut cx.local.entropy, &mut head);
        traceparent(cx.head, &mut cx.local.entropy, &mut head);
        self.identify(placed, shard, &mut head, cx);
        self.strip_credentials(route, &mut head, cx);
        let config = &self.rules.config.balance;
        Ok(Plan {
            to: Destination::Origin { pool, origin },
            lease: Some(lease),
            head,
            host: self.rules.pools.get(pool).and_then(|pool| pool.host.clone()),
            connect_timeout: config.connect_timeout,
            response_timeout: route.timeout.unwrap_or(config.response_timeout),
            upgrade: cx.head.header("upgrade").is_some_and(|protocols| !offers_h2c(protocols)),
            retry_buffer: config.retry_buffer.0,
        })
    }

    fn identify(&self, placed: &Placed, shard: Option<&str>, head: &mut HeaderEdits, cx: &Context<'_>) {
        let claims = self.identity.as_ref().map(|identity| &identity.claims);
        let mut text = [0; SessionId::TEXT];
        let user = claims.map(|claims| claims.sub.header_form()).unwrap_or_default();
        let session = claims.map(|claims| claims.sid.write(&mut text)).unwrap_or_default();
        if self.rules.secrets.origin_key.is_some() {
            let shard = shard.unwrap_or_default();
            head.set("x-edgekeep-signature", self.signature(&user, session, shard, cx));
        }
        if !user.is_empty() {
            head.set("x-edgekeep-user", &*user);
            head.set("x-edgekeep-session", session);
        }
        if let Some(shard) = shard {
            head.set("x-edgekeep-shard", shard);
        }
        if let Some(map) = &self.rules.map {
            head.set_with("x-edgekeep-shard-epoch", |value| push_decimal(map.epoch().0, value));
        }
        if let Some(next) = &placed.next {
            head.set("x-edgekeep-shard-next", next.as_str());
        }
        if let Some(previous) = &placed.previous {
            head.set("x-edgekeep-shard-previous", previous.as_str());
        }
    }

    /// `t=…,v1=…`: HMAC-SHA256 over the lines t, method, path, user, session, shard, so that an origin can check that a
    /// request came through Edgekeep.
    fn signature(&self, user: &str, session: &str, shard: &str, cx: &Context<'_>) -> String {
        let t = cx.now.seconds();
        let key = self.rules.secrets.origin_key.as_deref().unwrap_or_default();
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return String::new() };
        mac.update(format!("{t}\n{}\n{}\n{user}\n{session}\n{shard}", cx.head.method(), cx.head.path()).as_bytes());
        let tag: String = mac.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect();
        format!("t={t},v1={tag}")
    }

    /// Tokens stay here unless the route passes them on; Edgekeep's cookies never pass.
    fn strip_credentials(&self, route: &RouteConfig, head: &mut HeaderEdits, cx: &Context<'_>) {
        let from_cookie = self.identity.as_ref().map(|identity| identity.from_cookie);
        match from_cookie {
            Some(false) if !route.pass_token => head.remove("authorization"),
            Some(true) if route.pass_token => {
                if let Cookie::Value(token) = &self.cookies.access {
                    head.set("authorization", format!("Bearer {token}"));
                }
            }
            None if self.forward.drop_authorization && !route.pass_token => head.remove("authorization"),
            _ => {}
        }
        if self.cookies.any {
            match without_cookies(cx.head, &self.rules.config.balance.sticky.cookie_name) {
                Some(rest) => head.set("cookie", rest),
                None => head.remove("cookie"),
            }
        }
    }

    pub(super) fn origin_answered(
        &mut self,
        answer: &dyn AnswerHead,
        replayable: bool,
        cx: &mut Context<'_>,
    ) -> Decided {
        let Some(current) = self.forward.current.clone() else { return Ok(authority_answer(answer)) };
        let status = answer.status();
        self.attempt_ended(&current, Ended::Answered(status), cx);
        if status == 421
            && let Some(epoch) = self.forward.placed.as_ref().and_then(|placed| placed.epoch)
        {
            return self.misdirected(epoch, replayable, cx);
        }
        let mut head = HeaderEdits::default();
        strip_response(answer, &mut head);
        head.filter_set_cookie = answer.header("set-cookie").is_some();
        if self.forward.set_sticky {
            self.set_sticky(&current.id, &mut head, cx);
        }
        let body = if status == 101 { ReplyBody::Upgrade } else { ReplyBody::Origin };
        self.after_origin(answer, Reply { status, head, body, fill: None }, cx)
    }

    /// The answer names its origin. Within a second all its clients get the same line, which costs a signature only once.
    fn set_sticky(&self, origin: &OriginId, head: &mut HeaderEdits, cx: &mut Context<'_>) {
        let rules = &self.rules;
        let line = cx.local.sealed.line(origin, cx.now, &rules.sticky, || {
            let sticky = &rules.config.balance.sticky;
            let value = rules.sticky.seal(origin, cx.now)?;
            let (name, max_age) = (&sticky.cookie_name, sticky.max_age.seconds_up());
            Some(format!("{name}={value}; Max-Age={max_age}; Path=/; HttpOnly; Secure; SameSite=Lax"))
        });
        if let Some(line) = line {
            head.add("set-cookie", line);
        }
    }

    /// 421 before any effect: the map at hand is older than the origin's.
    fn misdirected(&mut self, epoch: Epoch, replayable: bool, cx: &mut Context<'_>) -> Decided {
        self.forward.current = None;
        if self.forward.misdirected || !replayable {
            return Err(self.without_map(MapFor::Misdirected));
        }
        self.forward.misdirected = true;
        self.load_map(MapFor::Misdirected, Epoch(epoch.0 + 1), cx)
    }

    pub(super) fn origin_failed(&mut self, failed: Failed, cx: &mut Context<'_>) -> Decided {
        let Some(current) = self.forward.current.take() else { return Err(self.store_unavailable()) };
        self.forward.failed = true;
        self.attempt_ended(&current, Ended::Failed(failed), cx);
        let nothing_sent = matches!(failed.stage, FailedStage::Connect | FailedStage::Unsent);
        let again = match failed.stage {
            FailedStage::Connect => true,
            // Some of its body may have been read to be sent.
            FailedStage::Unsent => failed.replayable,
            FailedStage::Sent => {
                !failed.timed_out
                    && failed.replayable
                    && is_idempotent(cx.head.method())
                    && self.may_retry(current.pool)
            }
            FailedStage::HeadReceived => false,
        };
        if again && self.forward.tried.len() < self.most_attempts() {
            self.forward.same_again = failed.stage != FailedStage::Connect && self.forward.tried.is_empty();
            self.forward.tried.push(current.id);
            self.forward.set_sticky = self.rules.config.balance.sticky.enabled;
            return self.send(cx);
        }
        if failed.timed_out && !nothing_sent {
            return Err(Problem::new(ProblemCode::OriginTimeout, "no answer within the time limit"));
        }
        Err(Problem::new(ProblemCode::OriginFailed, "the connection to the origin failed"))
    }

    fn attempt_ended(&mut self, current: &Current, ended: Ended, cx: &Context<'_>) {
        let took = took(self.forward.waited.take(), current.began, cx.head, cx.now);
        self.rules.attempt_ended(&self.live, (current.pool, current.origin), ended, took, cx.now);
    }

    fn most_attempts(&self) -> usize {
        const MOST: usize = 5;
        let origins = match self.forward.placed.as_ref().and_then(|placed| placed.pool) {
            Some(pool) => self.rules.pools.get(pool).map_or(0, |pool| pool.pool.origins.len()),
            None => self.rules.any.len(),
        };
        origins.clamp(1, MOST)
    }

    fn may_retry(&self, pool: usize) -> bool {
        self.rules.pools.get(pool).is_some_and(|pool| pool.budget.take())
    }

    /// At the edge: the session API belongs to the authority, which checks the client's own credential.
    pub(super) fn pass_to_authority(&mut self, cx: &mut Context<'_>) -> Decided {
        if self.rules.authority().is_none() {
            return Err(own::not_found());
        }
        let mut head = HeaderEdits::default();
        strip_request(cx.head, &mut head);
        forwarded_headers(cx.head, &self.client, &mut head);
        if let Some(credential) = &self.rules.secrets.edge_credential {
            head.set("x-edgekeep-edge", credential.as_str());
        }
        let config = &self.rules.config.balance;
        self.awaiting = Awaiting::Answer;
        Ok(Step::Forward(Box::new(Plan {
            to: Destination::Authority,
            lease: None,
            head,
            host: None,
            connect_timeout: config.connect_timeout,
            response_timeout: config.response_timeout,
            upgrade: false,
            retry_buffer: 0,
        })))
    }
}

enum Picked {
    Origin {
        pool: usize,
        origin: usize,
        lease: Lease,
    },
    /// Every origin of this list is full: a pool, or one beyond the pools for the union of `any`.
    Full {
        list: usize,
    },
    Nothing,
}

enum Followed {
    Taken(usize, Lease),
    /// Its origin is full: go elsewhere, and leave the cookie as it is.
    Overflow,
    /// No cookie that can be followed: choose, and write a new one.
    Repick,
}

fn origins_of(rules: &super::Rules, at: usize) -> &[Origin] {
    rules.pools.get(at).map_or(rules.any.as_slice(), |pool| pool.pool.origins.as_slice())
}

/// Pool and index of an origin of the list `at`.
fn located(rules: &super::Rules, at: usize, index: usize) -> (usize, usize) {
    if at < rules.pools.len() { (at, index) } else { rules.any_at.get(index).copied().unwrap_or((0, 0)) }
}

/// The authority's answer, as it is.
fn authority_answer(answer: &dyn AnswerHead) -> Step {
    let mut head = HeaderEdits::default();
    strip_response(answer, &mut head);
    Step::Respond(Box::new(Reply { status: answer.status(), head, body: ReplyBody::Origin, fill: None }))
}

/// After an upgrade to h2c the client would speak HTTP/2 with the origin itself, past every rule. RFC 9113 dropped it.
fn offers_h2c(protocols: &[u8]) -> bool {
    protocols.split(|b| *b == b',').any(|protocol| protocol.trim_ascii().eq_ignore_ascii_case(b"h2c"))
}

/// RFC 9110 §9.2.2.
fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "PUT" | "DELETE")
}
