//! A virtual shell in virtual time: it drives the exchange as the gateway and the Worker do, over a session store in
//! memory and origins that do what a test says. `run` takes a request and returns what its client saw, with every
//! request that an origin saw and every step on the way.

mod abuse;
mod auth;
mod authorize;
mod cache;
mod cookies;
mod edge;
mod events;
mod headers;
mod limits;
mod metrics;
mod oauth;
mod openapi;
mod origins;
mod passive;
mod paths;
mod refresh;
mod request;
mod rotation;
mod sessions;
mod shards;
mod stay;
mod sticky;
mod store;
mod tombstones;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::balance::{Lease, Origin};
use crate::cache::{CacheOp, Intent};
use crate::config::Config;
use crate::http::{drops_set_cookie, is_hop_by_hop};
use crate::session::LoadedSession;
use crate::shard::{HashKind, ShardKey, ShardMap};
use crate::token::{EdgeRole, KeyAlgorithm, KeyRing, parse_jwks, sign_access};
use crate::{Entropy, Millis, UserId};

use request::{Answer, OriginAnswer, PlanSeen, Request, delete, get, post, put};
use store::Store;

/// 2026-09-21T14:13:20Z.
const NOW: Timestamp = Timestamp(1_790_000_000_000);
const SERVICE: &str = "service-secret";
const EDGE: &str = "edge-secret";

/// What an origin does with the next request.
enum Does {
    Answer(u16, Vec<(&'static str, &'static str)>),
    Fail(FailedStage),
    /// As far as that, and then nothing until the time ran out.
    TimeOut(FailedStage),
}

/// Both tokens of a session.
#[derive(Clone, Debug)]
struct Login {
    access: String,
    refresh: String,
    id: SessionId,
}

/// One process, its store and its origins.
struct World {
    rules: Arc<Rules>,
    live: Arc<Live>,
    local: Local,
    keys: KeyRing,
    now: Timestamp,
    store: Store,
    /// By origin id; an origin without a script answers 200.
    scripts: BTreeMap<String, VecDeque<Does>>,
    /// What the queue brings, in order: a place, or the end of patience.
    queue: VecDeque<bool>,
    /// Places that other requests take.
    taken: Vec<Lease>,
    /// Maps that a request for a newer one brings, in order.
    maps: VecDeque<ShardMap>,
    /// A reload that happens while a request waits for a map.
    reloaded: Option<Config>,
    /// What the authority publishes; `None`: it cannot be asked.
    jwks: Option<String>,
    /// What the shared cache answers, in order; then it is down.
    cache: VecDeque<CacheAnswer>,
    cache_ops: Vec<CacheOp>,
    queue_answers: VecDeque<Enqueued>,
    intents: Vec<Intent>,
}

/// What the shell feeds back.
enum Event {
    Body(Body),
    Session(SessionAnswer),
    Stored(StoreOutcome),
    Keys(Option<Arc<Rules>>),
    Map(Option<Arc<Rules>>),
    Ready,
    TimedOut,
    Cached(CacheAnswer),
    Enqueued(Enqueued),
    Answered(OriginAnswer),
    Failed(Failed),
}

/// A request under way, between two steps.
struct Running {
    request: Request,
    exchange: Exchange,
    step: Option<Step>,
    answer: Answer,
    leases: Vec<Lease>,
}

/// The configuration that most tests use. 42 lives on shard_1, 7 on shard_0.
fn configuration() -> Value {
    json!({
        "shards": { "users": { "count": 2, "pins": { "42": "shard_1", "7": "shard_0" } } },
        "pools": [
            { "shard": "shard_0", "origins": [
                { "id": "a", "url": "http://10.1.0.1:9001" },
                { "id": "b", "url": "http://10.1.0.2:9001" },
            ] },
            { "shard": "shard_1", "origins": [{ "id": "c", "url": "http://10.1.0.3:9001" }] },
            { "shard": "shard_2026_*", "origins": [{ "id": "p", "url": "http://10.1.0.4:9001" }] },
        ],
        "cache": { "types": [
            { "name": "user_profile", "ttl": "300s", "strategy": "write_through" },
            { "name": "vector_data", "ttl": "900s", "strategy": "write_behind" },
        ] },
        "balance": { "sticky": { "enabled": false } },
        "routes": [
            { "path": "/health", "auth": "none", "shard": "any" },
            { "path": "/open/{rest..}", "auth": "none", "shard": "any" },
            { "path": "/maybe/{rest..}", "auth": "optional", "shard": "user" },
            { "path": "/token/{rest..}", "auth": "token", "shard": "user" },
            { "path": "/strict/{rest..}", "auth": "strict", "shard": "user" },
            { "path": "/account/{rest..}", "auth": "session", "shard": "user", "pass_token": true },
            { "path": "/users/{user_id}/profile", "shard": "path:user_id", "cache": "user_profile" },
            { "path": "/vectors/{id}", "shard": "user", "cache": "vector_data" },
            { "path": "/photos/{month}/{id}", "shard": "photo:month" },
            { "path": "/upload", "shard": "photo:taken_at" },
            { "path": "/named", "shard": "shard_1" },
            { "path": "/public/{rest..}", "methods": ["GET", "HEAD"], "auth": "session", "shard": "any",
              "timeout": "5s", "cors": { "origins": ["https://app.example"], "credentials": true } },
            { "path": "/{rest..}", "auth": "session", "shard": "user" },
        ],
    })
}

/// Lays `over` over `base`: objects member by member, anything else whole.
fn lay_over(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (name, value) in over {
                lay_over(base.entry(name).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

fn first_map(config: &Config, hash: HashKind) -> ShardMap {
    let pins = config
        .shards
        .users
        .pins
        .iter()
        .map(|(user, shard)| (user.clone(), crate::shard::ShardName::new(&shard.to_string()).unwrap()));
    ShardMap::first(hash, ShardKey([7; 16]), config.shards.users.count as u16, pins.collect())
}

impl World {
    /// The native gateway with [`configuration`].
    fn new() -> World {
        World::with(json!({}))
    }

    /// With these settings laid over [`configuration`].
    fn with(over: Value) -> World {
        World::built(over, Site::Native, InForce { queue: true, ..InForce::default() })
    }

    /// A gateway with the shared cache and write-behind.
    fn cached() -> World {
        World::built(json!({}), Site::Native, InForce { cache: true, write_behind: true, queue: true })
    }

    /// A Worker beside a region, whose store answers as the authority.
    fn at_edge() -> World {
        let over = json!({ "session": { "authority": "https://region.example" } });
        World::built(over, Site::EdgeBesideRegion, InForce { queue: true, ..InForce::default() })
    }

    fn built(over: Value, site: Site, in_force: InForce) -> World {
        let mut value = configuration();
        lay_over(&mut value, over);
        let config = Config::from_json(&value.to_string()).unwrap_or_else(|errors| panic!("{errors:?}"));
        let mut entropy = Entropy::for_tests(1);
        let keys = KeyRing::generate(KeyAlgorithm::EdDsa, &mut entropy, NOW);
        let live = Arc::new(Live::new(&config, &mut entropy));
        let map = first_map(&config, HashKind::Siphash24);
        let own_keys = match site {
            Site::Native => keys.clone(),
            Site::EdgeBesideRegion => keys.edge_export(EdgeRole::BesideRegion),
        };
        let secrets = Secrets::new(Some(SERVICE), Some(EDGE), None);
        let rules = Rules::new(config, site, own_keys, Some(map), secrets, in_force, &live).unwrap();
        World {
            rules: Arc::new(rules),
            live,
            local: Local::new(entropy),
            keys,
            now: NOW,
            store: Store::default(),
            scripts: BTreeMap::new(),
            queue: VecDeque::new(),
            taken: Vec::new(),
            maps: VecDeque::new(),
            reloaded: None,
            jwks: None,
            cache: VecDeque::new(),
            cache_ops: Vec::new(),
            queue_answers: VecDeque::new(),
            intents: Vec::new(),
        }
    }

    /// The same process with other secrets.
    fn with_secrets(mut self, secrets: Secrets) -> World {
        let rules = &self.rules;
        let (config, keys, map) = (rules.config.clone(), rules.keys.clone(), rules.map.clone());
        let rules = Rules::new(config, rules.site, keys, map, secrets, rules.in_force, &self.live);
        self.rules = Arc::new(rules.unwrap());
        self
    }

    /// A reload with another key file.
    fn take_keys(&mut self, keys: KeyRing) {
        let rules = &self.rules;
        let (config, map, secrets) = (rules.config.clone(), rules.map.clone(), rules.secrets.clone());
        let rules = Rules::new(config, rules.site, keys.clone(), map, secrets, rules.in_force, &self.live);
        self.rules = Arc::new(rules.unwrap());
        self.keys = keys;
    }

    /// The same process with another shard map, or none yet.
    fn with_map(mut self, map: Option<ShardMap>) -> World {
        let rules = &self.rules;
        let (config, keys, secrets) = (rules.config.clone(), rules.keys.clone(), rules.secrets.clone());
        let rules = Rules::new(config, rules.site, keys, map, secrets, rules.in_force, &self.live);
        self.rules = Arc::new(rules.unwrap());
        self
    }

    fn pass(&mut self, seconds: u64) {
        self.now = self.now + Millis::from_secs(seconds);
    }

    /// What the origin does next; more calls queue up.
    fn script(&mut self, origin: &str, does: Does) {
        self.scripts.entry(origin.to_owned()).or_default().push_back(does);
    }

    fn origin(&self, id: &str) -> &Origin {
        self.rules.origins().map(|(_, origin)| origin).find(|origin| origin.id.as_str() == id).unwrap()
    }

    /// The process ends and starts again; the store and the key file stay.
    fn restart(&mut self) {
        self.live = Arc::new(Live::new(&self.rules.config, &mut self.local.entropy));
        self.use_keys(self.keys.clone());
    }

    /// The key file changes.
    fn use_keys(&mut self, keys: KeyRing) {
        let rules = &self.rules;
        let (config, map, secrets) = (rules.config.clone(), rules.map.clone(), rules.secrets.clone());
        let rules = Rules::new(config, rules.site, keys.clone(), map, secrets, rules.in_force, &self.live);
        (self.rules, self.keys) = (Arc::new(rules.unwrap()), keys);
    }

    /// Creates a session as the login service does.
    fn log_in(&mut self, user: &str) -> Login {
        let answer = self.run(post("/v1/sessions").bearer(SERVICE).json(&json!({ "user_id": user })));
        assert_eq!(answer.status, 201, "{}", answer.text());
        login(&answer)
    }

    /// Creates a session at the authority of an edge, and a token for it.
    fn log_in_elsewhere(&mut self, user: &str) -> Login {
        let user = UserId::new(user).unwrap();
        let id = crate::session::steer_session_id(&user, &mut self.local.entropy);
        self.store.create(id, &user, self.now);
        Login { access: self.mint(id, user.as_str(), 0), refresh: String::new(), id }
    }

    /// An access token for that session and generation, good for 15 minutes.
    fn mint(&self, id: SessionId, user: &str, generation: u32) -> String {
        self.mint_with(&self.keys, id, user, generation)
    }

    fn mint_with(&self, keys: &KeyRing, id: SessionId, user: &str, generation: u32) -> String {
        let config = &self.rules.config.session;
        let claims = AccessClaims {
            iss: config.issuer.as_str().into(),
            sub: UserId::new(user).unwrap(),
            aud: config.audience.as_str().into(),
            client_id: "app".into(),
            iat: self.now,
            exp: self.now + Millis::from_secs(900),
            jti: "j".into(),
            sid: id,
            generation,
        };
        sign_access(keys, &claims).unwrap()
    }

    /// A refresh with a body, from a device with this `User-Agent`.
    fn refresh(&mut self, token: &str, device: &str) -> Answer {
        let request = post("/v1/sessions/refresh").header("user-agent", device);
        self.run(request.json(&json!({ "refresh_token": token })))
    }

    /// Performs one request to its end.
    #[allow(clippy::needless_pass_by_value, reason = "a request is sent once, and tests read so")]
    fn run(&mut self, request: Request) -> Answer {
        let mut running = self.start(request);
        for _ in 0..50 {
            if let Some(answer) = self.advance(&mut running) {
                return answer;
            }
        }
        panic!("no end: {:?}", running.answer.steps);
    }

    /// Begins a request and performs nothing yet, for tests that interleave several.
    fn start(&mut self, request: Request) -> Running {
        let (rules, live) = (self.rules.clone(), self.live.clone());
        let mut cx = Context { head: &request, now: self.now, local: &mut self.local };
        let (exchange, step) = Exchange::begin(&rules, &live, &mut cx);
        Running { request, exchange, step: Some(step), answer: Answer::default(), leases: Vec::new() }
    }

    /// Performs one step of it; the answer after the last.
    fn advance(&mut self, running: &mut Running) -> Option<Answer> {
        let Running { request, exchange, step, answer, leases } = running;
        let current = step.take().unwrap();
        answer.steps.push(step_name(&current));
        if let Step::Respond(reply) = current {
            let answer = self.responded(exchange, &reply, std::mem::take(answer));
            openapi::must_be_documented(request, &answer, self.rules.config.server.api_prefix.as_str());
            return Some(answer);
        }
        let event = self.perform(current, request, answer, leases);
        let mut cx = Context { head: request, now: self.now, local: &mut self.local };
        *step = Some(match event {
            Event::Body(body) => exchange.body(body, &mut cx),
            Event::Session(session) => exchange.session(session, &mut cx),
            Event::Stored(outcome) => exchange.stored(outcome, &mut cx),
            Event::Keys(rules) => exchange.keys(rules, &mut cx),
            Event::Map(rules) => exchange.map(rules, &mut cx),
            Event::Ready => exchange.ready(&mut cx),
            Event::TimedOut => exchange.timed_out(&mut cx),
            Event::Cached(cached) => exchange.cached(cached, &mut cx),
            Event::Enqueued(outcome) => exchange.enqueued(outcome, &mut cx),
            Event::Answered(head) => {
                let step = exchange.answered(&head, request.replayable, &mut cx);
                answer.origin = Some(head);
                step
            }
            Event::Failed(failed) => exchange.failed(failed, &mut cx),
        });
        None
    }

    fn perform(&mut self, step: Step, request: &Request, answer: &mut Answer, leases: &mut Vec<Lease>) -> Event {
        match step {
            Step::ReadBody { limit } if request.body.len() as u64 > limit => Event::Body(Body::TooLarge),
            Step::ReadBody { .. } if request.leaves => Event::Body(Body::Gone),
            Step::ReadBody { .. } => Event::Body(Body::Bytes(request.body.clone())),
            Step::Session { id, freshness, .. } => {
                answer.loads.push(freshness);
                Event::Session(self.store.load(id, self.now))
            }
            Step::Store(op) => {
                let outcome = self.store.perform(&op, &self.live.near);
                answer.store_ops.push(*op);
                Event::Stored(outcome)
            }
            Step::LoadKeys => Event::Keys(self.jwks.as_ref().map(|jwks| {
                let verifier = self.rules.verifier().with_jwks(&parse_jwks(jwks).unwrap());
                self.rules = Arc::new(self.rules.with_verifier(verifier, &self.live).unwrap());
                self.rules.clone()
            })),
            Step::AwaitKeys { until } => {
                if self.live.awaits_keys(self.now) {
                    self.now = until;
                }
                Event::Keys(Some(self.rules.clone()))
            }
            Step::LoadMap { min_epoch, until } => match self.maps.pop_front() {
                Some(map) => {
                    assert!(map.epoch() >= min_epoch, "the shell waits for {min_epoch}");
                    // A map takes a moment to come.
                    self.pass(3);
                    let rules = &self.rules;
                    let config = self.reloaded.take().unwrap_or_else(|| rules.config.clone());
                    let (keys, secrets) = (rules.keys.clone(), rules.secrets.clone());
                    let rules =
                        Rules::new(config, rules.site, keys, Some(map), secrets, rules.in_force, &self.live).unwrap();
                    self.rules = Arc::new(rules);
                    Event::Map(Some(self.rules.clone()))
                }
                None => {
                    self.now = until;
                    Event::Map(None)
                }
            },
            Step::Cache(op) => {
                self.cache_ops.push(*op);
                Event::Cached(self.cache.pop_front().unwrap_or(CacheAnswer::Unavailable))
            }
            Step::Enqueue(intent) => {
                self.intents.push(*intent);
                Event::Enqueued(self.queue_answers.pop_front().unwrap_or(Enqueued::Unavailable))
            }
            Step::Queue { list, until, .. } => {
                answer.queued_for.push(list);
                match self.queue.pop_front() {
                    Some(true) => {
                        self.taken.clear();
                        Event::Ready
                    }
                    _ => {
                        self.now = until;
                        Event::TimedOut
                    }
                }
            }
            Step::Forward(plan) => self.forward(*plan, request, answer, leases),
            Step::Respond(_) => unreachable!("the last step is not performed"),
        }
    }

    fn forward(&mut self, mut plan: Plan, request: &Request, answer: &mut Answer, leases: &mut Vec<Lease>) -> Event {
        let to = match plan.to {
            Destination::Authority => "authority".to_owned(),
            Destination::Origin { pool, origin } => self.rules.origin(pool, origin).unwrap().id.to_string(),
        };
        leases.extend(plan.lease.take());
        answer.forwarded.push(PlanSeen::new(to.clone(), request, &plan));
        let failed = |stage, timed_out| Failed { stage, timed_out, replayable: request.replayable };
        match self.scripts.get_mut(&to).and_then(VecDeque::pop_front) {
            None => Event::Answered(OriginAnswer::new(200, &[])),
            Some(Does::Answer(status, headers)) => Event::Answered(OriginAnswer::new(status, &headers)),
            Some(Does::Fail(stage)) => Event::Failed(failed(stage, false)),
            Some(Does::TimeOut(stage)) => {
                self.now = self.now + plan.response_timeout;
                Event::Failed(failed(stage, true))
            }
        }
    }

    fn responded(&mut self, exchange: &mut Exchange, reply: &Reply, mut answer: Answer) -> Answer {
        assert_eq!(exchange.status(), reply.status);
        answer.show(reply);
        exchange.head_sent(1_000);
        answer.stay = exchange.stay();
        let after = exchange.finished(Finished::Sent, self.now, &mut self.local);
        answer.tombstones = after.tombstones;
        answer.event = after.event.map(|event| *event);
        if let Some((id, generation)) = after.confirm {
            answer.confirmed = Some((id, generation));
            self.store.perform(&crate::session::StoreOp::Confirm { id, generation }, &self.live.near);
        }
        answer
    }
}

fn login(answer: &Answer) -> Login {
    let body = answer.json();
    let text = |name: &str| body[name].as_str().unwrap_or_else(|| panic!("{name} in {body}")).to_owned();
    Login {
        access: text("access_token"),
        refresh: text("refresh_token"),
        id: SessionId::parse(&text("session_id")).unwrap(),
    }
}

fn step_name(step: &Step) -> &'static str {
    match step {
        Step::ReadBody { .. } => "read_body",
        Step::Session { .. } => "session",
        Step::Store(_) => "store",
        Step::LoadKeys => "load_keys",
        Step::AwaitKeys { .. } => "await_keys",
        Step::Cache(_) => "cache",
        Step::Enqueue(_) => "enqueue",
        Step::Queue { .. } => "queue",
        Step::LoadMap { .. } => "load_map",
        Step::Forward(_) => "forward",
        Step::Respond(_) => "respond",
    }
}
