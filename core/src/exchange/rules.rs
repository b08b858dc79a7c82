//! What decisions rest on. [`Rules`] is immutable and swapped whole; [`Live`] survives reloads and is shared by all
//! cores; [`Local`] belongs to one core.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::endpoint::Endpoint;
use super::limits::RateLimit;
use super::members::{Addresses, members};
use crate::balance::{
    Admin, BalanceRules, Line, OnNoHealthy, Origin, OriginId, OriginState, Pool, RetryBudget, Sealed, StickyKeys, Turns,
};
use crate::config::{self, Authority, Config, HostPolicy, OriginUrl, PoolConfig, PoolShard};
use crate::health::PoolEjections;
use crate::metrics::Cells;
use crate::route::Router;
use crate::session::{NearCache, RotationRules};
use crate::shard::{Month, PhotoRules, ShardMap};
use crate::token::{KeyKind, KeyRing, SecretKey, TokenCache, Verifier};
use crate::{Entropy, Millis, SessionId, Timestamp};

/// Where the exchange runs: who keeps sessions, and which of its own calls it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// The native gateway, over its own store.
    Native,
    /// A Worker beside a native region, which is its session authority.
    EdgeBesideRegion,
}

/// Which of the configured capabilities this shell performs. What is configured and not in force is named at start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InForce {
    pub cache: bool,
    pub write_behind: bool,
    pub queue: bool,
}

/// Secrets, as digests: they are only ever compared, in constant time and without regard to length.
#[derive(Clone, Default)]
pub struct Secrets {
    service: Vec<[u8; 32]>,
    edge: Vec<[u8; 32]>,
    /// What the Worker itself sends to its authority.
    pub edge_credential: Option<String>,
    /// The key of `x-edgekeep-signature`.
    pub origin_key: Option<Vec<u8>>,
}

impl Secrets {
    /// One or two values each, separated by a comma; empty ones count for nothing.
    pub fn new(service: Option<&str>, edge: Option<&str>, origin_key: Option<&str>) -> Secrets {
        let digests = |values: Option<&str>| {
            values.into_iter().flat_map(|v| v.split(',')).map(str::trim).filter(|v| !v.is_empty()).map(digest).collect()
        };
        Secrets {
            service: digests(service),
            edge: digests(edge),
            edge_credential: edge.and_then(|e| e.split(',').map(str::trim).find(|e| !e.is_empty())).map(str::to_owned),
            origin_key: origin_key.filter(|key| !key.is_empty()).map(|key| key.as_bytes().to_vec()),
        }
    }

    pub fn has_service(&self) -> bool {
        !self.service.is_empty()
    }

    /// Whether this is a service credential.
    pub fn is_service(&self, presented: &str) -> bool {
        is_one_of(&self.service, presented)
    }

    /// Whether this is the edge credential.
    pub fn is_edge(&self, presented: &[u8]) -> bool {
        std::str::from_utf8(presented).is_ok_and(|presented| is_one_of(&self.edge, presented))
    }
}

fn digest(value: &str) -> [u8; 32] {
    Sha256::digest(value).into()
}

fn is_one_of(digests: &[[u8; 32]], presented: &str) -> bool {
    let presented = digest(presented);
    digests.iter().fold(false, |found, one| found | bool::from(one.ct_eq(&presented)))
}

/// The name of the list of all user shards' origins among the lines; no pool has none.
const ANY: &str = "";

/// An immutable whole: configuration, routes, keys and shard map.
pub struct Rules {
    pub config: Config,
    pub site: Site,
    pub in_force: InForce,
    pub(super) router: Router,
    pub(super) keys: KeyRing,
    pub(super) verifier: Verifier,
    pub(super) map: Option<ShardMap>,
    pub(super) secrets: Secrets,
    pub(super) pools: Vec<PoolRules>,
    /// What the names of origins were found to be when the pools were made.
    addresses: Addresses,
    /// By what they serve.
    by_shard: HashMap<PoolShard, usize>,
    /// Where an origin stands: its pool and its index there.
    at: HashMap<OriginId, (usize, usize)>,
    /// The union of all user-shard pools: the choice of `shard = "any"`.
    pub(super) any: Vec<Origin>,
    any_line: Arc<Line>,
    /// For each origin of `any`: its pool and its index there.
    pub(super) any_at: Vec<(usize, usize)>,
    pub(super) fallback: Option<usize>,
    pub balance: BalanceRules,
    pub(super) sticky: StickyKeys,
    pub(super) photos: PhotoRules,
}

/// A pool with what a plan needs to know of it.
pub(super) struct PoolRules {
    /// The user shards or the photo shard or prefix that it serves; none for a fallback.
    pub shard: Option<PoolShard>,
    pub pool: Pool,
    pub endpoints: Vec<Arc<Endpoint>>,
    pub host: Option<Arc<str>>,
    pub budget: Arc<RetryBudget>,
    /// Those that wait for it.
    line: Arc<Line>,
    /// Where its origins begin in `any`, when they stand there.
    any_from: Option<usize>,
}

/// Why rules cannot be made of a configuration that is valid by itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    #[error("routes[{0}] and routes[{1}] have equal rank and match one request")]
    AmbiguousRoutes(usize, usize),
    #[error("shards.photos.from is not a month")]
    BadMonth,
}

impl Rules {
    /// Puts the rules together. `live` keeps each origin's counts over a reload.
    pub fn new(
        config: Config,
        site: Site,
        keys: KeyRing,
        map: Option<ShardMap>,
        secrets: Secrets,
        in_force: InForce,
        live: &Live,
    ) -> Result<Rules, RulesError> {
        Rules::of(config, site, keys, map, secrets, in_force, Addresses::default(), live)
    }

    #[allow(clippy::too_many_arguments, reason = "each part is an owner's, and this is where they come together")]
    fn of(
        config: Config,
        site: Site,
        keys: KeyRing,
        map: Option<ShardMap>,
        secrets: Secrets,
        in_force: InForce,
        addresses: Addresses,
        live: &Live,
    ) -> Result<Rules, RulesError> {
        let router =
            Router::new(&config.routes).map_err(|same| RulesError::AmbiguousRoutes(same.first, same.second))?;
        let verifier = Verifier::new(&keys, &config.session.issuer, &config.session.audience, config.session.leeway);
        let mut pools: Vec<PoolRules> = config.pools.iter().map(|pool| pool_rules(pool, &addresses, live)).collect();
        // The first of two pools that serve the same, though a configuration with two is refused.
        let by_shard = pools.iter().enumerate().rev().filter_map(|(at, pool)| Some((pool.shard?, at))).collect();
        let mut any = Vec::new();
        let mut any_at = Vec::new();
        let mut at = HashMap::new();
        for (number, pool) in pools.iter_mut().enumerate() {
            let in_any = pool.shard.is_some_and(|shard| shard.user_shard().is_some());
            pool.any_from = in_any.then_some(any.len());
            for (index, origin) in pool.pool.origins.iter().enumerate() {
                at.insert(origin.id.clone(), (number, index));
                if in_any {
                    any.push(origin.clone());
                    any_at.push((number, index));
                }
            }
        }
        let fallback = match &config.balance.on_no_healthy {
            config::OnNoHealthy::Pool(name) => {
                config.pools.iter().position(|pool| pool.shard.is_none() && pool.name.as_ref() == Some(name))
            }
            _ => None,
        };
        let balance = BalanceRules {
            slow_start: config.balance.slow_start,
            panic_threshold: config.balance.panic_threshold,
            on_no_healthy: match &config.balance.on_no_healthy {
                config::OnNoHealthy::FailOpen => OnNoHealthy::FailOpen,
                config::OnNoHealthy::FailClosed => OnNoHealthy::FailClosed,
                config::OnNoHealthy::Pool(_) => OnNoHealthy::Fallback,
            },
        };
        let ids: Vec<OriginId> =
            pools.iter().flat_map(|pool| pool.pool.origins.iter().map(|origin| origin.id.clone())).collect();
        let sticky = StickyKeys::new(keys.current_first(KeyKind::Sticky), &ids);
        let from = config.shards.photos.from;
        let photos = PhotoRules {
            from: Month::new(from.year, from.month).ok_or(RulesError::BadMonth)?,
            max_future: config.shards.photos.max_future,
        };
        Ok(Rules {
            config,
            site,
            in_force,
            router,
            keys,
            verifier,
            map,
            secrets,
            pools,
            addresses,
            by_shard,
            at,
            any,
            any_line: live.line(ANY),
            any_at,
            fallback,
            balance,
            sticky,
            photos,
        })
    }

    /// The same rules with another shard map.
    pub fn with_map(&self, map: ShardMap, live: &Live) -> Result<Rules, RulesError> {
        self.rebuilt(self.keys.clone(), Some(map), live).map(|mut rules| {
            rules.verifier = self.verifier.clone();
            rules
        })
    }

    /// The same rules with a verifier that also knows what the authority publishes.
    pub fn with_verifier(&self, verifier: Verifier, live: &Live) -> Result<Rules, RulesError> {
        self.rebuilt(self.keys.clone(), self.map.clone(), live).map(|mut rules| {
            rules.verifier = verifier;
            rules
        })
    }

    /// The same rules with what the names of origins were found to be. Members that are gone get nothing new; what they
    /// have in flight ends with the rules that it began with.
    pub fn with_addresses(&self, addresses: Addresses, live: &Live) -> Result<Rules, RulesError> {
        live.forget_members();
        let (config, secrets) = (self.config.clone(), self.secrets.clone());
        let addresses = addresses.named_in(&config);
        let (keys, map) = (self.keys.clone(), self.map.clone());
        let mut rules = Rules::of(config, self.site, keys, map, secrets, self.in_force, addresses, live)?;
        rules.verifier = self.verifier.clone();
        Ok(rules)
    }

    fn rebuilt(&self, keys: KeyRing, map: Option<ShardMap>, live: &Live) -> Result<Rules, RulesError> {
        let (config, secrets, addresses) = (self.config.clone(), self.secrets.clone(), self.addresses.clone());
        Rules::of(config, self.site, keys, map, secrets, self.in_force, addresses, live)
    }

    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    pub fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    pub fn map(&self) -> Option<&ShardMap> {
        self.map.as_ref()
    }

    pub fn keys(&self) -> &KeyRing {
        &self.keys
    }

    /// Whether Workers are admitted: an edge credential is set.
    pub fn admits_edge(&self) -> bool {
        self.secrets.edge_credential.is_some()
    }

    /// Where a plan's origin listens.
    pub fn url(&self, pool: usize, origin: usize) -> Option<&OriginUrl> {
        Some(&self.endpoint(pool, origin)?.url)
    }

    /// What is connected to for a plan's origin.
    pub fn endpoint(&self, pool: usize, origin: usize) -> Option<&Arc<Endpoint>> {
        self.pools.get(pool)?.endpoints.get(origin)
    }

    /// A plan's origin.
    pub fn origin(&self, pool: usize, origin: usize) -> Option<&Origin> {
        self.pools.get(pool)?.pool.origins.get(origin)
    }

    /// Every origin with its pool, for checks, metrics and the admin API.
    pub fn origins(&self) -> impl Iterator<Item = (&str, &Origin)> {
        self.pools.iter().flat_map(|pool| pool.pool.origins.iter().map(move |origin| (pool.pool.name.as_str(), origin)))
    }

    /// What is shown to a Worker, as to the authority: the edge credential.
    pub fn edge_credential(&self) -> Option<&str> {
        self.secrets.edge_credential.as_deref()
    }

    /// The session authority's URL, at an edge beside a region.
    pub fn authority(&self) -> Option<&config::WebUrl> {
        match &self.config.session.authority {
            Authority::Url(url) => Some(url),
            Authority::Local | Authority::DurableObject => None,
        }
    }

    /// The pool that serves a shard, the closest fit first.
    pub(super) fn pool_of(&self, shard: &str) -> Option<usize> {
        config::ShardName::parse(shard)?.served_by().find_map(|served| self.by_shard.get(&served).copied())
    }

    /// Those that wait for the list `at`: a pool's, or one beyond the pools for `any`.
    pub fn line(&self, at: usize) -> &Arc<Line> {
        self.pools.get(at).map_or(&self.any_line, |pool| &pool.line)
    }

    /// A place at an origin of this pool was given back.
    pub fn place_freed(&self, pool: usize) {
        if let Some(pool) = self.pools.get(pool) {
            pool.line.call();
            if pool.any_from.is_some() {
                self.any_line.call();
            }
        }
    }

    /// Every list's name, none for that of `any`, with how many wait for it.
    pub fn lines(&self) -> impl Iterator<Item = (Option<&str>, usize)> {
        let of_pools = self.pools.iter().map(|pool| (Some(pool.pool.name.as_str()), pool.line.length()));
        of_pools.chain(std::iter::once((None, self.any_line.length())))
    }

    /// Where an origin stands in the list `at`: a pool's, or one beyond the pools for `any`.
    pub(super) fn find(&self, at: usize, id: &OriginId) -> Option<usize> {
        let (pool, index) = *self.at.get(id)?;
        if at < self.pools.len() {
            return (pool == at).then_some(index);
        }
        Some(self.pools.get(pool)?.any_from? + index)
    }

    /// The key and times of the rotation table.
    pub(super) fn rotation(&self) -> Option<RotationRules> {
        Some(RotationRules {
            grace: self.config.session.refresh_grace,
            idle_ttl: self.config.session.idle_ttl,
            key_id: self.keys.current(KeyKind::Refresh)?.id(),
        })
    }

    pub(super) fn refresh_key(&self, id: u8) -> Option<&SecretKey> {
        self.keys.find(KeyKind::Refresh, id)
    }

    /// What a user or session is called in logs: a keyed hash, never the id.
    pub fn log_name(&self, id: &[u8]) -> String {
        let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or_default();
        match self.keys.current(KeyKind::Log) {
            Some(key) => {
                let mac = key.mac(&[b"edgekeep log v1", id]);
                mac.iter().take(8).flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
            }
            None => "-".to_owned(),
        }
    }

    /// What a route is called in logs: its pattern.
    pub(super) fn route_name(&self, index: Option<usize>) -> &str {
        match index.and_then(|index| self.config.routes.get(index)) {
            Some(route) => route.path.as_str(),
            None => "-",
        }
    }
}

fn pool_rules(pool: &PoolConfig, addresses: &Addresses, live: &Live) -> PoolRules {
    let (mut origins, mut endpoints) = (Vec::new(), Vec::new());
    for (at, id, endpoint) in members(pool, addresses) {
        let Some(origin) = pool.origins.get(at) else { continue };
        origins.push(Origin {
            state: live.origin(&id),
            id,
            url: origin.url.to_string(),
            weight: origin.weight,
            max_connections: origin.max_connections,
        });
        endpoints.push(endpoint);
    }
    let name = pool.shard.map(|shard| shard.to_string()).or_else(|| pool.name.clone()).unwrap_or_default();
    PoolRules {
        shard: pool.shard,
        endpoints,
        host: match &pool.host {
            HostPolicy::Preserve => None,
            HostPolicy::Name(name) => Some(name.to_string().into()),
        },
        budget: live.budget(&name),
        line: live.line(&name),
        pool: Pool { name, origins },
        any_from: None,
    }
}

/// What all cores share and a reload keeps.
pub struct Live {
    /// Requests come: an origin that is new joins others under load.
    open: AtomicBool,
    origins: Mutex<BTreeMap<OriginId, Arc<OriginState>>>,
    budgets: Mutex<BTreeMap<String, Arc<RetryBudget>>>,
    lines: Mutex<BTreeMap<String, Arc<Line>>>,
    pub near: Arc<NearCache>,
    pub tokens: TokenCache,
    /// The highest generation already confirmed, by session.
    confirmed: Cache<SessionId, u32>,
    pub(super) refresh_failures: RateLimit,
    pub(super) creates: RateLimit,
    keys_call: Mutex<Option<KeysCall>>,
    pub ejections: PoolEjections,
}

/// The last call to the authority for its keys.
#[derive(Clone, Copy)]
struct KeysCall {
    begun: Timestamp,
    /// When nobody waits for it any longer; the beginning once it has ended.
    awaited_until: Timestamp,
}

/// What a request that meets an unknown key does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeysTurn {
    /// Asks the authority.
    Ask,
    /// Another request is asking: waits for it, at the latest until then.
    Wait(Timestamp),
}

/// At most one fetch of the authority's keys in this time.
const KEYS_EVERY: Millis = Millis(30_000);

/// What such a fetch may take besides its time limit, on a busy isolate. One that has not ended then was given up by the
/// platform.
const KEYS_MARGIN: Millis = Millis(1000);

impl Live {
    /// Caches of the sizes that the configuration gives; they stay as they are over reloads.
    pub fn new(config: &Config, entropy: &mut Entropy) -> Live {
        let sessions = config.session.near_cache as usize;
        Live {
            open: AtomicBool::new(false),
            origins: Mutex::default(),
            budgets: Mutex::default(),
            lines: Mutex::default(),
            near: Arc::new(NearCache::new(sessions, entropy)),
            tokens: TokenCache::new(config.session.token_cache as usize),
            confirmed: Cache::new(sessions.max(1024)),
            refresh_failures: RateLimit::new(entropy),
            creates: RateLimit::new(entropy),
            keys_call: Mutex::default(),
            ejections: PoolEjections::default(),
        }
    }

    /// Requests come from now on. An origin that is new after this, by a reload or as a further address of its name, has
    /// its slow start; those that the gateway starts with have none.
    pub fn open(&self) {
        self.open.store(true, Ordering::Relaxed);
    }

    /// The state of an origin, the same over reloads. A new member of an origin whose others were all taken out is taken
    /// out too: what an operator drains stays drained when its name gets another address.
    pub fn origin(&self, id: &OriginId) -> Arc<OriginState> {
        let mut origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = origins.get(id) {
            return state.clone();
        }
        let state = match self.open.load(Ordering::Relaxed) {
            true => Arc::new(OriginState::joining()),
            false => Arc::default(),
        };
        if id.is_member() {
            let mut orders = members_of(&origins, id.configured()).map(|other| other.admin());
            let order = match orders.next() {
                Some(first) => Some(first).filter(|first| orders.all(|order| order == *first)),
                // The first member comes after the name itself, which stood for it until it was found.
                None => origins.get(id.configured()).map(|named| named.admin()),
            };
            state.set_admin(order.unwrap_or_default(), Timestamp(0));
        }
        origins.insert(id.clone(), state.clone());
        state
    }

    /// The operator's word on one member, or on an origin by the id that the configuration gives: then it counts for every
    /// address of its name, also for those that are gone and still have requests, and for those to come.
    pub fn set_admin(&self, id: &OriginId, admin: Admin, now: Timestamp) {
        let mut origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
        origins.entry(id.clone()).or_default().set_admin(admin, now);
        if !id.is_member() {
            members_of(&origins, id.as_str()).for_each(|member| member.set_admin(admin, now));
        }
    }

    /// Forgets members that no rules and no request have any longer.
    pub(super) fn forget_members(&self) {
        let mut origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
        origins.retain(|id, state| !id.is_member() || Arc::strong_count(state) > 1);
    }

    /// The queue of a list of origins, the same over reloads and new shard maps.
    fn line(&self, list: &str) -> Arc<Line> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.entry(list.to_owned()).or_default().clone()
    }

    /// The retry budget of a pool, the same over reloads and new shard maps.
    fn budget(&self, pool: &str) -> Arc<RetryBudget> {
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        budgets.entry(pool.to_owned()).or_default().clone()
    }

    /// Whether this generation of a session is to be confirmed: once per session and generation. Generation 0 says
    /// nothing new.
    pub(super) fn confirm_due(&self, id: SessionId, generation: u32) -> bool {
        if generation == 0 || self.confirmed.get(&id).is_some_and(|seen| seen >= generation) {
            return false;
        }
        self.confirmed.insert(id, generation);
        true
    }

    /// Whose turn it is to ask for the authority's keys, in a call of at most `timeout`; none when they were asked for
    /// within 30 s and that call has ended.
    pub(super) fn keys_turn(&self, now: Timestamp, timeout: Millis) -> Option<KeysTurn> {
        let mut call = self.keys_call.lock().unwrap_or_else(PoisonError::into_inner);
        match *call {
            Some(last) if now < last.awaited_until => Some(KeysTurn::Wait(last.awaited_until)),
            Some(last) if now.since(last.begun) < KEYS_EVERY => None,
            _ => {
                *call = Some(KeysCall { begun: now, awaited_until: now + timeout + KEYS_MARGIN });
                Some(KeysTurn::Ask)
            }
        }
    }

    /// The call for the authority's keys has ended, whatever came of it.
    pub(super) fn keys_came(&self) {
        if let Some(call) = &mut *self.keys_call.lock().unwrap_or_else(PoisonError::into_inner) {
            call.awaited_until = call.begun;
        }
    }

    /// Whether a call for the authority's keys is under way.
    pub fn awaits_keys(&self, now: Timestamp) -> bool {
        let call = self.keys_call.lock().unwrap_or_else(PoisonError::into_inner);
        call.is_some_and(|call| now < call.awaited_until)
    }
}

/// The known members of an origin that has a name.
fn members_of<'o>(
    origins: &'o BTreeMap<OriginId, Arc<OriginState>>,
    configured: &str,
) -> impl Iterator<Item = &'o Arc<OriginState>> {
    let prefix = format!("{configured}@");
    let from = origins.range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded));
    from.take_while(move |(id, _)| id.as_str().starts_with(&prefix)).map(|(_, state)| state)
}

/// What belongs to one core and is never shared.
pub struct Local {
    pub entropy: Entropy,
    pub metrics: Cells,
    /// By pool; the last is that of `any`.
    turns: Vec<Turns>,
    pub(super) sealed: Sealed,
}

impl Local {
    pub fn new(entropy: Entropy) -> Local {
        Local { entropy, metrics: Cells::default(), turns: Vec::new(), sealed: Sealed::default() }
    }

    pub(super) fn turns(&mut self, at: usize) -> (&mut Turns, &mut Entropy) {
        if self.turns.len() <= at {
            self.turns.resize_with(at + 1, Turns::default);
        }
        (&mut self.turns[at], &mut self.entropy)
    }
}
