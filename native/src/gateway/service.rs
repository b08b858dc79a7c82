//! One request: the loop that drives core's exchange and performs its steps.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use edgekeep_core::balance::{Lease, Place};
use edgekeep_core::cache::{CacheAnswer, Enqueued};
use edgekeep_core::exchange::{
    Body as ReadBody, Context, Destination, Endpoint, Exchange, Failed, FailedStage, Finished, Plan, Reply, ReplyBody,
    Rules, SessionAnswer, SessionEvent, Step,
};
use edgekeep_core::http::Peer;
use edgekeep_core::shard::Epoch;
use edgekeep_core::{Millis, Timestamp};
use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::clock::{exact, now};
use super::deadlines::Elapsed;
use super::download::Download;
use super::head::{Names, RequestHead, apply, edit};
use super::origin::pool::ConnectError;
use super::origin::{AnswerBody, AnswerHead, Asked, Held, RequestLines, Upgraded};
use super::socket::Activity;
use super::tunnel::tunnel;
use super::upload::{Turn, Upload};
use super::worker::{Counted, Worker};
use crate::log::{self, AccessLine};
use crate::store::Load;

/// An upload that lasts longer is a stream: it ends with its session.
const GOES_ON: Duration = Duration::from_secs(1);
/// How often the first in a line looks for a place without having been called.
const LINE_LOOK: Duration = Duration::from_millis(50);
/// How often a waiting request looks whether a newer map came.
const MAP_POLL: Duration = Duration::from_millis(50);

/// A request from its begin to the end of its response. Dropped before that end, its client has left: the exchange is
/// finished either way, exactly once.
pub struct Ending {
    worker: Counted,
    exchange: Exchange,
    activity: Activity,
    method: http::Method,
    started: Instant,
    finished: bool,
    /// Held until the response ends.
    lease: Option<(usize, Lease)>,
    listed: Cell<Listed>,
}

/// Whether an answer stands among the core's open ones.
#[derive(Clone, Copy)]
enum Listed {
    NotYet,
    At(u64),
    /// Its body does.
    Answering(u64),
}

impl Ending {
    /// The response was sent to its end.
    pub fn sent(mut self: Box<Self>) {
        self.finish(Finished::Sent);
    }

    /// It was, with an origin's body, whose connection may be used again.
    pub fn answered(self: Box<Self>, body: &mut AnswerBody) {
        if let Some((endpoint, connection)) = body.reusable() {
            self.worker.origins.put(endpoint, connection);
        }
        self.sent();
    }

    /// The answer goes on, moved by this task: from now on it ends with its session.
    pub fn goes_on(&self, waker: &Waker) {
        if let Listed::NotYet = self.listed.get() {
            let (stay, activity) = (self.exchange.stay(), self.activity.clone());
            self.listed.set(Listed::At(self.worker.streams.list(stay, activity, waker.clone())));
        }
    }

    /// Its body goes on: from now on it ends also when its client leaves unnoticed.
    pub fn answers(&self, waker: &Waker) {
        self.goes_on(waker);
        if let Listed::At(number) = self.listed.get() {
            self.worker.streams.answers(number);
            self.listed.set(Listed::Answering(number));
        }
    }

    /// A piece of the answer was handed on, or its origin has none yet.
    pub fn handed(&self, is_handed: bool) {
        self.activity.handed(is_handed);
    }

    /// It goes on in another task, this one.
    fn moved(&self, waker: &Waker) {
        self.goes_on(waker);
        if let Listed::At(number) = self.listed.get() {
            self.worker.streams.moved(number, waker);
        }
    }

    /// The place at the origin is free, and whoever waits for it may look.
    fn give_back(&mut self) {
        if let Some((pool, lease)) = self.lease.take() {
            drop(lease);
            self.exchange.rules().place_freed(pool);
        }
    }

    fn finish(&mut self, how: Finished) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        self.give_back();
        if let Listed::At(number) | Listed::Answering(number) = self.listed.get() {
            self.worker.streams.ended(number);
        }
        self.activity.request_ended();
        let after = self.worker.with_local(|local| self.exchange.finished(how, now(), local));
        if let Some((id, generation)) = after.confirm {
            self.worker.store.confirm(id, generation);
        }
        self.worker.notify.tell(after.tombstones);
        if let Some(event) = after.event {
            log_event(&event);
        }
        if self.worker.access_log {
            log::access(AccessLine::of(log::Request {
                summary: self.exchange.summary(),
                method: self.method.clone(),
                took: self.started.elapsed(),
                aborted: how == Finished::Aborted,
            }));
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.finish(Finished::Aborted);
    }
}

/// Answers one request.
pub async fn serve(
    worker: Rc<Worker>,
    peer: Peer,
    activity: Activity,
    mut request: Request<Incoming>,
) -> Result<Response<Download>, Infallible> {
    activity.request_began();
    let started = Instant::now();
    let upgrade = request.headers().contains_key(UPGRADE).then(|| hyper::upgrade::on(&mut request));
    let (parts, incoming) = request.into_parts();
    let rules = worker.rules.load_full();
    let upload = Upload::new(incoming, rules.config.limits.body.0, parts.version);
    let names = Names::of(&parts);
    let (exchange, step) = worker.with_local(|local| {
        let head = RequestHead { parts: &parts, peer, names };
        let cx = &mut Context { head: &head, now: now(), local };
        if let Some(problem) = head.fault(rules.config.server.max_header_bytes) {
            return Exchange::begin_refused(&rules, &worker.live, problem, cx);
        }
        Exchange::begin(&rules, &worker.live, cx)
    });
    let outlives_client = exchange.outlives_client();
    let ending = Box::new(Ending {
        worker: Counted::new(worker),
        exchange,
        activity,
        method: parts.method.clone(),
        started,
        finished: false,
        lease: None,
        listed: Cell::new(Listed::NotYet),
    });
    // Called where it is awaited, and in boxes what is rare: a future has room for all that it may ever wait for, and is
    // copied when it moves.
    let (mut ending, answer, reply) = if outlives_client {
        Box::pin(in_its_own_task(drive(parts, names, peer, upload, ending, step))).await
    } else {
        drive(parts, names, peer, upload, ending, step).await
    };
    ending.exchange.head_sent(u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX));
    Ok(respond(*reply, answer, upgrade, ending))
}

/// Performs what core asks for until it has decided on an answer.
async fn drive(
    parts: Parts,
    names: Names,
    peer: Peer,
    upload: Upload,
    ending: Box<Ending>,
    step: Step,
) -> (Box<Ending>, Option<Answer>, Box<Reply>) {
    let head = RequestHead { parts: &parts, peer, names };
    let mut drive = Drive {
        head: &head,
        upload: &upload,
        ending,
        answer: None,
        stalled: Cell::new(false),
        without_files: Cell::new(false),
        place: None,
    };
    let reply = drive.drive(step).await;
    (drive.ending, drive.answer, reply)
}

/// Goes on when this future is dropped: hyper drops it as soon as the client has left.
async fn in_its_own_task<T: 'static>(work: impl Future<Output = T> + 'static) -> T {
    match tokio::task::spawn_local(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and this with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// What a load found, in core's words.
pub fn session_answer(load: Load) -> SessionAnswer {
    match load {
        Load::Loaded(session) => SessionAnswer::Loaded(session),
        Load::Missing => SessionAnswer::Missing,
        Load::Unavailable => SessionAnswer::Unavailable,
    }
}

/// An origin's answer.
struct Answer {
    head: AnswerHead,
    body: AnswerBody,
}

struct Drive<'a> {
    head: &'a RequestHead<'a>,
    upload: &'a Upload,
    ending: Box<Ending>,
    answer: Option<Answer>,
    /// The client stopped sending its body: not the origin's fault.
    stalled: Cell<bool>,
    /// The gateway has no file left for a connection: not the origin's fault either.
    without_files: Cell<bool>,
    /// Where it stands while every origin is full.
    place: Option<Place>,
}

impl Drive<'_> {
    async fn drive(&mut self, mut step: Step) -> Box<Reply> {
        loop {
            step = match step {
                Step::Respond(reply) => return reply,
                Step::Forward(plan) => self.forward(plan).await,
                // Core has looked into the near cache.
                Step::Session { id, user, freshness, .. } => {
                    let load = Box::pin(self.ending.worker.store.load(id, &user, freshness, now())).await;
                    let answer = session_answer(load);
                    self.event(|exchange, cx| exchange.session(answer, cx))
                }
                Step::Store(op) => {
                    let outcome = Box::pin(self.ending.worker.store.perform(*op)).await;
                    self.event(|exchange, cx| exchange.stored(outcome, cx))
                }
                Step::ReadBody { limit } => {
                    // A small body of our own calls gets the time of a head.
                    let within = span(self.ending.exchange.rules().config.server.header_timeout);
                    let body = match Box::pin(tokio::time::timeout(within, self.upload.collect(limit))).await {
                        Ok(Ok(Some(bytes))) => ReadBody::Bytes(bytes),
                        Ok(Ok(None)) => ReadBody::TooLarge,
                        Ok(Err(_)) | Err(_) => ReadBody::Gone,
                    };
                    self.event_at(exact(), |exchange, cx| exchange.body(body, cx))
                }
                Step::LoadMap { min_epoch, until } => {
                    // The origin that sent it away has nothing of it meanwhile.
                    self.answer = None;
                    self.ending.give_back();
                    let rules = Box::pin(self.newer_map(min_epoch, until)).await;
                    self.event(|exchange, cx| exchange.map(rules, cx))
                }
                Step::Queue { list, until, room, picky } => {
                    if Box::pin(self.wait_in_line(list, until, room, picky)).await {
                        self.event(Exchange::ready)
                    } else {
                        self.event(Exchange::timed_out)
                    }
                }
                // The native gateway is its own authority, and has neither cache nor write-behind in force yet: core does
                // not ask for what `InForce` leaves out.
                Step::LoadKeys | Step::AwaitKeys { .. } => self.event(|exchange, cx| exchange.keys(None, cx)),
                Step::Cache(_) => self.event(|exchange, cx| exchange.cached(CacheAnswer::Unavailable, cx)),
                Step::Enqueue(_) => self.event(|exchange, cx| exchange.enqueued(Enqueued::Unavailable, cx)),
            };
        }
    }

    fn event(&mut self, feed: impl FnOnce(&mut Exchange, &mut Context<'_>) -> Step) -> Step {
        self.event_at(now(), feed)
    }

    fn event_at(&mut self, now: Timestamp, feed: impl FnOnce(&mut Exchange, &mut Context<'_>) -> Step) -> Step {
        let Ending { worker, exchange, .. } = &mut *self.ending;
        let head = self.head;
        worker.with_local(|local| feed(exchange, &mut Context { head, now, local }))
    }

    /// Whether there may be a place before the time is up. Whoever looked in vain keeps standing where it stands.
    async fn wait_in_line(&mut self, list: usize, until: Timestamp, room: usize, picky: bool) -> bool {
        let line = self.ending.exchange.rules().line(list);
        let place = match self.place.take().filter(|place| place.is_in(line)) {
            Some(place) => {
                if picky {
                    place.pass_on();
                }
                place
            }
            None => match line.join(room) {
                Some(place) => place,
                None => return false,
            },
        };
        let place = self.place.insert(place);
        let deadlines = &self.ending.worker.deadlines;
        loop {
            let rest = until.since(now());
            if rest == Millis::ZERO {
                return false;
            }
            // An origin that comes back makes places too, and calls nobody. The others are called when they are the first.
            let patience = if place.is_first() { span(rest).min(LINE_LOOK) } else { span(rest) };
            let called = pin!(poll_fn(|cx| place.poll_called(cx)));
            match deadlines.within(patience, called).await {
                Ok(()) => return true,
                Err(Elapsed) if place.is_first() => return true,
                Err(Elapsed) => {}
            }
        }
    }

    async fn newer_map(&self, min_epoch: Epoch, until: Timestamp) -> Option<Arc<Rules>> {
        loop {
            let rules = self.ending.worker.rules.load_full();
            if rules.map().is_some_and(|map| map.epoch() >= min_epoch) {
                return Some(rules);
            }
            if now() >= until {
                return None;
            }
            tokio::time::sleep(MAP_POLL).await;
        }
    }

    async fn forward(&mut self, mut plan: Box<Plan>) -> Step {
        self.answer = None;
        self.place = None;
        self.ending.give_back();
        self.ending.lease = match plan.to {
            Destination::Origin { pool, .. } => plan.lease.take().map(|lease| (pool, lease)),
            Destination::Authority => None,
        };
        match self.send(plan).await {
            Ok(answer) => {
                let replayable = self.upload.is_replayable();
                let waited = self.upload.sent_ago();
                let step = self.event(|exchange, cx| {
                    waited.into_iter().for_each(|span| exchange.waited(span));
                    exchange.answered(&answer.head, replayable, cx)
                });
                self.answer = Some(answer);
                step
            }
            Err(failed) => {
                self.ending.give_back();
                if self.upload.is_too_large() {
                    return self.event(|exchange, cx| exchange.body_too_large(cx));
                }
                if self.stalled.get() || self.upload.is_broken() {
                    return self.event(Exchange::body_gone);
                }
                if self.without_files.get() {
                    return self.event(Exchange::no_room);
                }
                self.event(|exchange, cx| exchange.failed(failed, cx))
            }
        }
    }

    async fn send(&self, plan: Box<Plan>) -> Result<Answer, Failed> {
        let failed = |stage, timed_out| Failed { stage, timed_out, replayable: self.upload.is_replayable() };
        let rules = self.ending.exchange.rules().clone();
        let endpoint = match plan.to {
            Destination::Origin { pool, origin } => rules.endpoint(pool, origin),
            Destination::Authority => None,
        };
        let Some(endpoint) = endpoint else { return Err(failed(FailedStage::Connect, false)) };
        let (response_timeout, connect_timeout) = (span(plan.response_timeout), span(plan.connect_timeout));
        let url = &endpoint.url;
        let connection = match self.ending.worker.origins.take(endpoint) {
            Some(connection) => connection,
            None => match Box::pin(self.connect(endpoint, connect_timeout)).await {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::debug!(origin = %url, %error, "no connection to the origin");
                    self.without_files.set(error.is_own());
                    return Err(failed(FailedStage::Connect, matches!(error, ConnectError::TimedOut)));
                }
            },
        };
        let lines = RequestLines {
            parts: self.head.parts,
            edits: &plan.head,
            host: plan.host.as_deref(),
            authority: &url.authority,
            upgrade: plan.upgrade,
        };
        // The origin's time begins with it, and not while there is no connection.
        connection.borrow_mut().begin(&lines, self.upload.attempt(plan.retry_buffer), response_timeout);
        let asked = Asked::of(&self.head.parts.method, plan.upgrade);
        let mut answering = pin!(poll_fn(|cx| connection.borrow_mut().poll_answer(asked, cx)));
        let mut wait = response_timeout.min(GOES_ON);
        // The origin's time begins when it has the whole request; until then each piece has that time.
        let answered = loop {
            match self.ending.worker.deadlines.within(wait, answering.as_mut()).await {
                Ok(answered) => break Ok(answered),
                Err(_) => {
                    if !self.upload.is_ended() {
                        self.ending.goes_on(&this_task().await);
                    }
                    match self.upload.quiet() {
                        (quiet, _) if quiet < response_timeout => wait = response_timeout - quiet,
                        (_, turn) => break Err(turn),
                    }
                }
            }
        };
        match answered {
            Ok(Ok(head)) => Ok(Answer { head, body: AnswerBody::new(connection, endpoint.clone()) }),
            Ok(Err(failure)) => {
                tracing::debug!(origin = %url, error = %failure, stage = ?failure.stage, "the origin did not answer");
                Err(failed(failure.stage, false))
            }
            Err(Turn::Origin) => Err(failed(FailedStage::Sent, true)),
            Err(Turn::Client) => {
                self.stalled.set(true);
                Err(failed(FailedStage::Sent, true))
            }
        }
    }

    async fn connect(&self, endpoint: &Arc<Endpoint>, within: Duration) -> Result<Held, ConnectError> {
        let worker = &self.ending.worker;
        worker.origins.connect(endpoint, &worker.certificates, within).await
    }
}

fn respond(
    reply: Reply,
    answer: Option<Answer>,
    upgrade: Option<OnUpgrade>,
    ending: Box<Ending>,
) -> Response<Download> {
    let Reply { status, head, body, .. } = reply;
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let sticky = ending.exchange.rules().config.balance.sticky.cookie_name.clone();
    match (body, answer) {
        (ReplyBody::Origin, Some(answer)) => {
            let mut headers = answer.head.headers;
            edit(&mut headers, head, &sticky);
            let mut response = Response::new(Download::Origin(answer.body, Some(ending)));
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            response
        }
        (ReplyBody::Upgrade, Some(answer)) => {
            let mut headers = answer.head.headers;
            let protocol = headers.get(UPGRADE).cloned();
            edit(&mut headers, head, &sticky);
            join(upgrade, answer.body.upgraded(), ending);
            let mut response = Response::new(Download::Bytes(None, None));
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
            if let Some(protocol) = protocol {
                response.headers_mut().insert(UPGRADE, protocol);
            }
            response
        }
        (ReplyBody::Bytes(bytes), _) => {
            let mut response = Response::new(Download::Bytes(Some(Bytes::from(bytes)), Some(ending)));
            *response.status_mut() = status;
            apply(response.headers_mut(), head);
            response
        }
        (ReplyBody::Cached(cached), _) => {
            let mut response =
                Response::new(Download::Bytes(Some(Bytes::from_owner(cached.body.clone())), Some(ending)));
            *response.status_mut() = status;
            apply(response.headers_mut(), head);
            response
        }
        (ReplyBody::Origin | ReplyBody::Upgrade, None) => {
            let mut response = Response::new(Download::Bytes(None, Some(ending)));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    }
}

/// One line for what happened to a session; core has named session and user so that a log may.
fn log_event(event: &SessionEvent) {
    tracing::info!(
        target: "session",
        event = event.name(),
        how = event.how(),
        session = event.session,
        user = event.user,
        count = event.count(),
        replicated = event.replicated(),
        client = event.client.map(tracing::field::display),
    );
}

/// Copies bytes both ways; the lease is held as long.
fn join(upgrade: Option<OnUpgrade>, origin: Option<Upgraded>, ending: Box<Ending>) {
    let (Some(client), Some(origin)) = (upgrade, origin) else { return };
    tokio::task::spawn_local(async move {
        ending.moved(&this_task().await);
        let joined: Result<(), Box<dyn std::error::Error>> = async {
            let client = TokioIo::new(client.await?);
            let silence = span(ending.exchange.rules().config.server.idle_timeout);
            origin.set_patience(silence);
            tunnel(client, origin, silence, || ending.activity.is_cut()).await?;
            Ok(())
        }
        .await;
        if joined.is_ok() {
            ending.sent();
        }
    });
}

/// What wakes the task that asks.
async fn this_task() -> Waker {
    poll_fn(|cx| Poll::Ready(cx.waker().clone())).await
}

fn span(millis: Millis) -> Duration {
    Duration::from_millis(millis.0)
}
