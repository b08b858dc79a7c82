//! The loop that drives core's exchange, one event a call: `entry.js` performs what the returned text says and calls
//! again. Everything here is synchronous; what has to be awaited is in `proceed`.

use std::sync::Arc;

use edgekeep_core::balance::Lease;
use edgekeep_core::cache::{CacheAnswer, Enqueued};
use edgekeep_core::exchange::{
    Body, Context, Destination, Exchange, Failed, FailedStage, Finished, Plan, Reply, ReplyBody, Rules, SessionAnswer,
    Step,
};
use edgekeep_core::http::{Problem, ProblemCode};
use edgekeep_core::session::StoreOutcome;
use edgekeep_core::{Millis, SessionId, Timestamp};

use crate::head::{RequestHead, ResponseHead};
use crate::isolate::Isolate;
use crate::kv::Put;
use crate::wire::{self, Ending};

/// How long after an answer is due its place at the origin is given back, whatever became of it.
const LEASE_MARGIN: Millis = Millis::from_secs(5);

/// An exchange between two calls.
pub struct Waiting {
    exchange: Exchange,
    head: RequestHead,
    begun: Timestamp,
    /// What is to be awaited, when that is why it waits.
    pub step: Option<Step>,
    /// The place at the origin that is asked.
    lease: Option<(Timestamp, u64)>,
    pub due: Vec<Due>,
}

/// What is done after the answer, and may be lost.
#[derive(Debug, PartialEq, Eq)]
pub enum Due {
    Put(Put),
    Confirm(SessionId, u32),
    RefreshMap,
}

/// What came of a step that was awaited.
pub enum Event {
    Session(SessionAnswer),
    Stored(StoreOutcome),
    Keys(Option<Arc<Rules>>),
    Map(Option<Arc<Rules>>),
    Cached(CacheAnswer),
    Enqueued(Enqueued),
    QueueTimedOut,
}

impl Isolate {
    /// A request's head came.
    pub fn begin(&mut self, head: String, now: Timestamp) -> String {
        self.leases.expire(now);
        let head = RequestHead::parse(head);
        let (rules, live) = (self.rules.clone(), self.live.clone());
        let (exchange, step) = Exchange::begin(&rules, &live, &mut self.context(&head, now));
        let waiting = Waiting { exchange, head, begun: now, step: None, lease: None, due: Vec::new() };
        self.settle(waiting, step, None, now)
    }

    /// An origin's response head came. `replayable`: the whole request body is still at hand.
    pub fn answered(&mut self, number: f64, head: &ResponseHead<'_>, replayable: bool, now: Timestamp) -> String {
        self.on(number, Some(head), now, |exchange, cx| exchange.answered(head, replayable, cx))
    }

    /// An origin did not answer. workerd tells no connection that was refused from one that was cut, so the request
    /// counts as sent: only what may be repeated is sent again.
    pub fn failed(&mut self, number: f64, timed_out: bool, replayable: bool, now: Timestamp) -> String {
        let failed = Failed { stage: FailedStage::Sent, timed_out, replayable };
        self.on(number, None, now, |exchange, cx| exchange.failed(failed, cx))
    }

    /// The body that was asked for came; `None` when it is larger than that.
    pub fn body(&mut self, number: f64, body: Option<Vec<u8>>, now: Timestamp) -> String {
        let body = body.map_or(Body::TooLarge, Body::Bytes);
        self.on(number, None, now, |exchange, cx| exchange.body(body, cx))
    }

    /// What was awaited came.
    pub fn resume(&mut self, mut waiting: Waiting, event: Event, now: Timestamp) -> String {
        let cx = &mut Context { head: &waiting.head, now, local: &mut self.local };
        let exchange = &mut waiting.exchange;
        let step = match event {
            Event::Session(answer) => exchange.session(answer, cx),
            Event::Stored(outcome) => exchange.stored(outcome, cx),
            Event::Keys(rules) => exchange.keys(rules, cx),
            Event::Map(rules) => exchange.map(rules, cx),
            Event::Cached(answer) => exchange.cached(answer, cx),
            Event::Enqueued(outcome) => exchange.enqueued(outcome, cx),
            Event::QueueTimedOut => exchange.timed_out(cx),
        };
        self.settle(waiting, step, None, now)
    }

    fn context<'a>(&'a mut self, head: &'a RequestHead, now: Timestamp) -> Context<'a> {
        Context { head, now, local: &mut self.local }
    }

    fn on(
        &mut self,
        number: f64,
        answer: Option<&ResponseHead<'_>>,
        now: Timestamp,
        event: impl FnOnce(&mut Exchange, &mut Context<'_>) -> Step,
    ) -> String {
        let Some(mut waiting) = self.parked.take(number) else { return interrupted() };
        if let Some(lease) = waiting.lease.take() {
            self.leases.release(lease);
        }
        self.leases.expire(now);
        let step = event(&mut waiting.exchange, &mut self.context(&waiting.head, now));
        self.settle(waiting, step, answer, now)
    }

    /// Says what `entry.js` does next, and keeps the exchange until it comes back.
    fn settle(&mut self, waiting: Waiting, step: Step, answer: Option<&ResponseHead<'_>>, now: Timestamp) -> String {
        match step {
            Step::Respond(reply) => self.end(waiting, *reply, answer, now),
            Step::Forward(plan) => self.forward(waiting, *plan, now),
            Step::ReadBody { limit } => match self.parked.park(waiting, now) {
                Some(number) => wire::body(number, limit),
                None => overloaded(),
            },
            step => match self.parked.park(Waiting { step: Some(step), ..waiting }, now) {
                Some(number) => wire::proceed(number),
                None => overloaded(),
            },
        }
    }

    fn forward(&mut self, mut waiting: Waiting, mut plan: Plan, now: Timestamp) -> String {
        let rules = waiting.exchange.rules();
        let base = match plan.to {
            Destination::Origin { pool, origin } => rules.url(pool, origin),
            Destination::Authority => rules.authority().map(|url| &url.origin),
        };
        let Some(base) = base else { return refusal(&Problem::new(ProblemCode::Internal, "")) };
        let url = format!("{base}{}", waiting.head.path_and_query());
        if let Some(lease) = plan.lease.take() {
            waiting.lease = Some(self.hold(lease, now + plan.response_timeout + LEASE_MARGIN));
        }
        let lease = waiting.lease;
        let Some(number) = self.parked.park(waiting, now) else {
            if let Some(lease) = lease {
                self.leases.release(lease);
            }
            return overloaded();
        };
        let (timeout, buffer) = (plan.response_timeout.0, plan.retry_buffer);
        wire::Forward { number, timeout, buffer, url: &url, edits: &plan.head }.encode()
    }

    fn hold(&mut self, lease: Lease, deadline: Timestamp) -> (Timestamp, u64) {
        self.leases.hold(lease, deadline)
    }

    fn end(&mut self, mut waiting: Waiting, reply: Reply, answer: Option<&ResponseHead<'_>>, now: Timestamp) -> String {
        let took = now.since(waiting.begun);
        waiting.exchange.head_sent(took.0.saturating_mul(1000));
        let after = waiting.exchange.finished(Finished::Sent, now, &mut self.local);
        waiting.due.extend(after.confirm.map(|(id, generation)| Due::Confirm(id, generation)));
        if self.map_due(now) {
            waiting.due.push(Due::RefreshMap);
        }
        let route = waiting.exchange.route().to_owned();
        let sticky = waiting.exchange.rules().config.balance.sticky.cookie_name.clone();
        let due = (!waiting.due.is_empty()).then(|| self.parked.park(waiting, now)).flatten();
        let ending = Ending { due, took_ms: took.0, route: &route };
        match (reply.body, answer) {
            (ReplyBody::Bytes(bytes), _) => wire::reply(reply.status, &reply.head, &bytes, &ending),
            (ReplyBody::Origin | ReplyBody::Upgrade, Some(answer)) => {
                wire::response_edits(&reply.head, answer.set_cookie(), &sticky, &ending)
            }
            // No answer is at hand, and nothing is cached here yet: a fault of ours.
            (ReplyBody::Origin | ReplyBody::Upgrade | ReplyBody::Cached(_), _) => {
                refusal(&Problem::new(ProblemCode::Internal, ""))
            }
        }
    }
}

/// The exchange is unknown: the instance that began it is gone, or it waited for too long.
pub fn interrupted() -> String {
    refusal(&Problem::new(ProblemCode::Internal, "the request was interrupted"))
}

/// Too many exchanges wait in this isolate.
fn overloaded() -> String {
    refusal(&Problem::new(ProblemCode::QueueFull, "too many requests are under way").retry_after(1))
}

/// A refusal outside of any exchange.
fn refusal(problem: &Problem) -> String {
    let reply = Reply::problem(problem);
    let body = problem.body();
    wire::reply(reply.status, &reply.head, body.as_bytes(), &Ending { due: None, took_ms: 0, route: "-" })
}
