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
use crate::log;
use crate::parked::Weighed;
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

impl Weighed for Waiting {
    fn text_bytes(&self) -> usize {
        self.head.text_bytes()
    }
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

    /// The client's body broke off, or was none.
    pub fn gone(&mut self, number: f64, now: Timestamp) -> String {
        self.on(number, None, now, Exchange::body_gone)
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
            Step::ReadBody { limit } => wire::body(self.parked.park(waiting, now), limit),
            Step::LoadKeys => wire::complete(self.parked.park(Waiting { step: Some(step), ..waiting }, now)),
            step => wire::proceed(self.parked.park(Waiting { step: Some(step), ..waiting }, now)),
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
        let number = self.parked.park(waiting, now);
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
        if let Some(event) = after.event {
            log::event(&event);
        }
        waiting.due.extend(after.confirm.map(|(id, generation)| Due::Confirm(id, generation)));
        if self.map_due(now) {
            waiting.due.push(Due::RefreshMap);
        }
        let route = waiting.exchange.route().to_owned();
        let sticky = waiting.exchange.rules().config.balance.sticky.cookie_name.clone();
        let due = (!waiting.due.is_empty()).then(|| self.parked.park(waiting, now));
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

/// A refusal outside of any exchange.
fn refusal(problem: &Problem) -> String {
    let reply = Reply::problem(problem);
    let body = problem.body();
    wire::reply(reply.status, &reply.head, body.as_bytes(), &Ending { due: None, took_ms: 0, route: "-" })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use edgekeep_core::exchange::Freshness;
    use edgekeep_core::session::LoadedSession;
    use edgekeep_core::shard::{HashKind, ShardKey, ShardMap, ShardName};
    use edgekeep_core::token::{AccessClaims, EdgeRole, KeyAlgorithm, KeyRing, parse_jwks, sign_access};
    use edgekeep_core::{Entropy, UserId};

    use super::*;
    use crate::head::request_headers;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);
    const ID: SessionId = SessionId([7; 16]);

    const CONFIG: &str = r#"{
        "session": {"authority": "https://region.example", "cookies": true},
        "server": {"api_prefix": "/auth"},
        "balance": {"sticky": {"enabled": false}},
        "shards": {"users": {"count": 2}},
        "pools": [
            {"shard": "shard_0", "origins": [{"id": "a", "url": "https://a.example"}]},
            {"shard": "shard_1", "origins": [
                {"id": "b", "url": "https://b.example", "max_connections": 1},
                {"id": "c", "url": "https://c.example", "max_connections": 1}
            ]}
        ],
        "routes": [
            {"path": "/open/{rest..}", "auth": "none", "shard": "shard_1", "timeout": "2s"},
            {"path": "/token", "auth": "token"},
            {"path": "/strict", "auth": "strict"},
            {"path": "/{rest..}"}
        ]
    }"#;

    struct Edge {
        isolate: Isolate,
        keys: KeyRing,
    }

    fn edge() -> Edge {
        let keys = KeyRing::generate(KeyAlgorithm::EdDsa, &mut Entropy::for_tests(1), NOW);
        let exported = keys.edge_export(EdgeRole::BesideRegion).to_json();
        let secret = |name: &str| match name {
            "EDGEKEEP_KEYS" => Some(exported.clone()),
            "EDGEKEEP_EDGE_TOKEN" => Some("new, old".to_owned()),
            _ => None,
        };
        Edge { isolate: Isolate::new(CONFIG, &secret, [5; 32], None).unwrap(), keys }
    }

    /// 42 lives on shard_0 in epoch 1, and is pinned to shard_1 in epoch 2.
    fn maps() -> (ShardMap, ShardMap) {
        let user = UserId::new("42").unwrap();
        let pins = BTreeMap::from([(user.clone(), ShardName::user(0))]);
        let first = ShardMap::first(HashKind::Siphash24, ShardKey([1; 16]), 2, pins);
        let second = first.with_pin(user, Some(ShardName::user(1))).unwrap();
        (first, second)
    }

    impl Edge {
        fn token(&self, generation: u32) -> String {
            let claims = AccessClaims {
                iss: "edgekeep".into(),
                sub: UserId::new("42").unwrap(),
                aud: "app".into(),
                client_id: "app".into(),
                iat: NOW,
                exp: NOW + Millis::from_secs(900),
                jti: "1".into(),
                sid: ID,
                generation,
            };
            format!("Bearer {}", sign_access(&self.keys, &claims).unwrap())
        }

        fn begin(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> String {
            let mut text = format!("{method}\nhttps://edge.example{path}");
            for name in request_headers() {
                text.push('\n');
                if let Some((_, value)) = headers.iter().find(|(n, _)| *n == name) {
                    text.push('=');
                    text.push_str(value);
                }
            }
            self.isolate.begin(text, NOW)
        }

        /// Answers what an exchange waits for.
        fn resume(&mut self, order: &str, answer: impl FnOnce(&mut Isolate, Step) -> Event) -> String {
            let mut waiting = self.isolate.parked.take(number(order)).unwrap();
            let step = waiting.step.take().unwrap();
            let event = answer(&mut self.isolate, step);
            self.isolate.resume(waiting, event, NOW)
        }

        fn answer(&mut self, order: &str, status: u16, replayable: bool) -> String {
            self.isolate.answered(number(order), &ResponseHead::parse(status, "\n"), replayable, NOW)
        }

        fn due(&mut self, answer: &str) -> Vec<Due> {
            match answer.lines().next().and_then(|line| line[1..].split(' ').next_back()) {
                Some("-") | None => Vec::new(),
                Some(due) => self.isolate.parked.take(due.parse().unwrap()).unwrap().due,
            }
        }
    }

    fn number(order: &str) -> f64 {
        order[1..].split([' ', '\n']).next().unwrap().parse().unwrap()
    }

    fn url(order: &str) -> &str {
        assert!(order.starts_with('F'), "{order}");
        order.lines().nth(1).unwrap()
    }

    fn live(generation: u32) -> SessionAnswer {
        SessionAnswer::Loaded(LoadedSession {
            user: UserId::new("42").unwrap(),
            epoch: 0,
            live: true,
            expires_at: NOW + Millis::from_secs(9999),
            generation,
            checked_at: NOW,
        })
    }

    fn session(generation: u32) -> impl FnOnce(&mut Isolate, Step) -> Event {
        move |_, step| {
            assert!(matches!(step, Step::Session { freshness: Freshness::Cached, .. }), "{step:?}");
            Event::Session(live(generation))
        }
    }

    fn map(map: ShardMap) -> impl FnOnce(&mut Isolate, Step) -> Event {
        move |isolate, step| {
            let Step::LoadMap { min_epoch, .. } = step else { panic!("{step:?}") };
            isolate.adopt(map);
            Event::Map(isolate.rules_from(min_epoch))
        }
    }

    #[test]
    fn a_first_request_asks_for_session_and_map_and_the_next_one_goes_straight_on() {
        let mut edge = edge();
        let token = edge.token(0);
        let bearer = [("authorization", token.as_str()), ("cf-connecting-ip", "192.0.2.7")];
        let order = edge.begin("GET", "/a?b=c", &bearer);
        let order = edge.resume(&order, session(0));
        let order = edge.resume(&order, map(maps().0));
        assert_eq!(url(&order), "https://a.example/a?b=c");
        for line in ["*x-edgekeep-", "-authorization", "=x-edgekeep-user:42", "=x-edgekeep-shard:shard_0"] {
            assert!(order.lines().any(|l| l == line), "{line} in {order}");
        }
        assert!(order.contains("=x-forwarded-for:192.0.2.7\n") && order.contains("=x-forwarded-proto:https"));
        let answer = edge.answer(&order, 200, true);
        assert_eq!(answer.lines().nth(1), Some("0 /{rest..}"));
        assert_eq!(
            edge.due(&answer),
            [Due::RefreshMap],
            "it came from elsewhere, at an unknown time; and nothing to confirm"
        );

        let order = edge.begin("GET", "/a", &bearer);
        assert_eq!(url(&order), "https://a.example/a");
        let answer = edge.answer(&order, 200, true);
        assert!(answer.starts_with("E-\n"), "{answer}");
        let newer = edge.token(1);
        let order = edge.begin("GET", "/a", &[("authorization", &newer)]);
        assert!(order.starts_with('P'), "a generation that the authority has not been told of: {order}");
    }

    #[test]
    fn a_token_route_confirms_the_generation_after_the_answer_once() {
        let mut edge = edge();
        edge.isolate.adopt(maps().0);
        edge.isolate.map_asked_at = Some(NOW);
        let token = edge.token(3);
        for due in [vec![Due::Confirm(ID, 3)], vec![]] {
            let order = edge.begin("GET", "/token", &[("authorization", &token)]);
            let answer = edge.answer(&order, 200, true);
            assert_eq!(edge.due(&answer), due);
        }
    }

    #[test]
    fn one_request_fetches_a_new_key_to_the_end_and_those_that_come_meanwhile_wait() {
        let mut edge = edge();
        edge.isolate.adopt(maps().0);
        edge.keys = KeyRing::generate(KeyAlgorithm::EdDsa, &mut Entropy::for_tests(2), NOW);
        let jwks = parse_jwks(&edge.keys.public_jwks()).unwrap();
        let token = edge.token(0);
        let bearer = [("authorization", token.as_str())];
        let [first, second] = [edge.begin("GET", "/token", &bearer), edge.begin("GET", "/token", &bearer)];
        assert!(first.starts_with('C') && second.starts_with('P'), "{first} {second}");
        let first = edge.resume(&first, |isolate, step| {
            assert!(matches!(step, Step::LoadKeys) && isolate.live.awaits_keys(NOW), "{step:?}");
            Event::Keys(isolate.learn(&jwks))
        });
        let second = edge.resume(&second, |isolate, step| {
            assert!(matches!(step, Step::AwaitKeys { .. }) && !isolate.live.awaits_keys(NOW), "{step:?}");
            Event::Keys(Some(isolate.rules.clone()))
        });
        assert!(first.starts_with('F') && second.starts_with('F'), "{first} {second}");
    }

    #[test]
    fn a_421_takes_the_newer_map_and_asks_the_new_shard_once() {
        let mut edge = edge();
        let (first, second) = maps();
        edge.isolate.adopt(first);
        let token = edge.token(0);
        let order = edge.begin("POST", "/a", &[("authorization", &token)]);
        let order = edge.resume(&order, session(0));
        assert_eq!(url(&order), "https://a.example/a");
        let order = edge.answer(&order, 421, true);
        let order = edge.resume(&order, map(second.clone()));
        assert!(url(&order).starts_with("https://b.example") || url(&order).starts_with("https://c.example"));
        let answer = edge.answer(&order, 421, true);
        assert!(answer.starts_with("R503 "), "{answer}");

        let order = edge.begin("POST", "/a", &[("authorization", &token)]);
        let answer = edge.answer(&order, 421, false);
        assert!(answer.starts_with("R503 ") && answer.contains("shard_moving"), "a body that is gone: {answer}");
        edge.isolate.adopt(maps().0);
        assert_eq!(edge.isolate.rules.map().map(ShardMap::epoch), Some(second.epoch()), "epochs never go back");
    }

    #[test]
    fn a_place_at_an_origin_is_given_back_with_the_answer_or_at_its_deadline() {
        let mut edge = edge();
        let one = edge.begin("GET", "/open/1", &[]);
        let two = edge.begin("GET", "/open/2", &[]);
        assert_ne!(url(&one).get(..17), url(&two).get(..17));
        let full = edge.begin("GET", "/open/3", &[]);
        assert!(full.starts_with("R503 ") && full.contains("queue_full"), "{full}");
        edge.answer(&one, 200, true);
        assert!(edge.begin("GET", "/open/4", &[]).starts_with('F'));
        // Two clients left, and nobody says so.
        let later = NOW + Millis::from_secs(7);
        let head = "GET\nhttps://edge.example/open/5".to_owned();
        assert!(edge.isolate.begin(head, later).starts_with('F'), "2s and 5s more");
    }

    #[test]
    fn a_failed_attempt_goes_elsewhere_only_when_it_may_be_repeated() {
        let mut edge = edge();
        for (method, replayable, timed_out, next) in [
            ("GET", true, false, "F"),
            ("POST", true, false, "R502"),
            ("PUT", false, false, "R502"),
            ("GET", true, true, "R504"),
        ] {
            let order = edge.begin(method, "/open/x", &[]);
            let after = edge.isolate.failed(number(&order), timed_out, replayable, NOW);
            assert!(after.starts_with(next), "{method}: {after}");
            if next == "F" {
                assert_ne!(url(&order), url(&after));
                edge.answer(&after, 200, true);
            }
            assert!(edge.isolate.leases.is_empty());
        }
    }

    #[test]
    fn the_session_api_goes_to_the_region_and_what_the_edge_credential_opens_never_does() {
        let mut edge = edge();
        let order = edge.begin("POST", "/auth/v1/sessions/refresh?x", &[("x-edgekeep-edge", "forged")]);
        assert_eq!(url(&order), "https://region.example/auth/v1/sessions/refresh?x");
        assert!(order.contains("\n*x-edgekeep-\n") && order.contains("\n=x-edgekeep-edge:new"), "{order}");
        let cookie = "\n\n__Host-edgekeep-at=theirs; Path=/";
        let answer = edge.isolate.answered(number(&order), &ResponseHead::parse(200, cookie), false, NOW);
        assert!(!answer.contains("set-cookie"), "the region's cookies pass: {answer}");
        for path in ["validate", "confirm", "shard-map"] {
            let answer = edge.begin("POST", &format!("/auth/v1/edge/{path}"), &[("x-edgekeep-edge", "new")]);
            assert!(answer.starts_with("R404 "), "{path}: {answer}");
        }
        assert_eq!(edge.isolate.authority.base, "https://region.example/auth");
    }

    #[test]
    fn tombstones_are_read_stored_and_void_what_the_isolate_knows() {
        let mut edge = edge();
        edge.isolate.adopt(maps().0);
        let token = edge.token(0);
        let order = edge.begin("GET", "/a", &[("authorization", &token)]);
        let order = edge.resume(&order, session(0));
        edge.answer(&order, 200, true);
        assert!(edge.begin("POST", "/auth/v1/edge/tombstones", &[]).starts_with("R403 "));
        let order = edge.begin("POST", "/auth/v1/edge/tombstones", &[("x-edgekeep-edge", "old")]);
        assert!(order.starts_with('B') && order.ends_with(" 65536"), "{order}");
        let body = format!(r#"{{"tombstones":[{{"sid":"{ID}","until":{}}}]}}"#, NOW.0);
        let order = edge.isolate.body(number(&order), Some(body.into_bytes()), NOW);
        let answer = edge.resume(&order, |_, step| {
            assert!(matches!(step, Step::Store(_)));
            Event::Stored(StoreOutcome::Confirmed)
        });
        assert!(answer.starts_with("R204 "), "{answer}");
        assert!(edge.begin("GET", "/a", &[("authorization", &token)]).starts_with('P'), "asked again");
    }

    #[test]
    fn an_authority_that_is_down_is_503_and_never_401() {
        let mut edge = edge();
        let token = edge.token(0);
        for path in ["/a", "/strict"] {
            let order = edge.begin("GET", path, &[("authorization", &token)]);
            let answer = edge.resume(&order, |_, _| Event::Session(SessionAnswer::Unavailable));
            assert!(answer.starts_with("R503 ") && answer.contains("=retry-after:1"), "{answer}");
        }
    }

    #[test]
    fn a_number_that_nobody_knows_is_an_error_of_ours() {
        let mut edge = edge();
        for answer in [
            edge.isolate.failed(3.0, false, true, NOW),
            edge.isolate.body(f64::NAN, None, NOW),
            edge.answer("F9 0 0", 200, true),
        ] {
            assert!(answer.starts_with("R500 -\n"), "{answer}");
        }
    }

    #[test]
    fn an_isolate_that_cannot_start_names_the_key_and_never_the_secret() {
        let none = |_: &str| None;
        let start = |config: &str, secret: &dyn Fn(&str) -> Option<String>| {
            Isolate::new(config, secret, [0; 32], None).err().unwrap().to_string()
        };
        assert!(start("{\"pools\": 3}", &none).contains("pools"));
        assert!(start(&CONFIG.replace("https://region.example", "local"), &none).contains("session.authority"));
        assert!(start(CONFIG, &none).contains("edge.credential_env"));
        let bad = |name: &str| Some(if name == "EDGEKEEP_KEYS" { "hunter2".to_owned() } else { "x".to_owned() });
        let error = start(CONFIG, &bad);
        assert!(error.contains("EDGEKEEP_KEYS") && !error.contains("hunter2"), "{error}");
    }
}
