//! Sessions in Redis: a cluster, or one standalone server. `docs/storage.md` lists the keys.
//!
//! A call names its user's slot, so it goes to one primary. Redirections and the like are repeated with back-off for a
//! while; a server that is gone, or does not answer in time, ends in `Unavailable`, which becomes 503 and never 401.
//! Repeating is safe: a creation finds its own session, a second rotation is a mismatch that core answers with the same
//! token, and ending a session twice ends it once.

mod call;
mod fault;
#[cfg(feature = "bench")]
pub mod floor;
mod node;
mod script;
mod state;
#[cfg(test)]
mod tests;
mod topology;

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use edgekeep_core::session::{
    NearCache, NewSession, RefreshState, Rotate, RotationWrite, SessionRow, StoreOp, StoreOutcome, epoch_key,
    index_key, record_key, redis_slot, session_slot, state_key, user_tag,
};
use edgekeep_core::shard::ShardMap;
use edgekeep_core::{Millis, SessionId, Timestamp, UserId};
use redis::{Cmd, RedisError, Value, cmd};
use thiserror::Error;
use tokio::sync::oneshot;

use call::{RETRY_LAST, joined};
use fault::{Fault, fault};
use node::{Node, WAIT_MS};
use script::{Answer, Script, arg};
use state::{FIELDS, bytes, integer};
use topology::Topology;

use edgekeep_core::exchange::Freshness;

use super::Load;

/// How long a revocation is repeated, until enough replicas have it, before it is answered without.
const REVOKE_FOR: Duration = Duration::from_secs(1);
/// How often it is repeated after that, in the background.
const REVOKE_AGAIN: Duration = Duration::from_secs(1);
/// Revocations that are repeated in the background at once; more are not, and that is logged.
const REVOKE_MOST: usize = 10_000;
/// How long the list of a user's sessions may change under our hands: logins without end must not keep anyone from
/// ending them all.
const MEMBERS_FOR: Duration = Duration::from_secs(2);
/// How long a start waits for a store that does not answer,
const START_WITHIN: Duration = Duration::from_secs(15);
/// and after what time it says so.
const START_SAID_AFTER: Duration = Duration::from_secs(1);

/// `edgekeep:shard_map`: the users' shard map, as bytes.
const SHARD_MAP: &str = "edgekeep:shard_map";
/// `edgekeep:gateways`: what each live gateway reports.
const GATEWAYS: &str = "edgekeep:gateways";

/// How to reach Redis, and what to ask of it.
#[derive(Debug, Default)]
pub struct Login {
    pub seeds: Vec<String>,
    pub cluster: bool,
    /// `rediss://`: certificates are checked against the system's roots.
    pub tls: bool,
    pub username: Option<String>,
    pub password: Option<String>,
    pub timeout: Duration,
    pub wait_replicas: u32,
    pub read_from_replicas: bool,
    /// Why a server could not be reached lately.
    pub last_error: Mutex<String>,
}

/// How long what is in Redis lives.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// A dead mark: the longest life of an access token.
    pub dead_mark: Millis,
    /// A user's epoch, after their last revoke-all.
    pub epoch: Millis,
}

/// Why the store in Redis cannot be used.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error("cannot start the store's thread: {0}")]
    Thread(std::io::Error),
    #[error("store.nodes: no complete Redis within {within:?}: {reason}")]
    Unreachable { within: Duration, reason: String },
    #[error("store.nodes: Redis refuses what store.username and store.password_env give: {0}")]
    Refused(String),
    #[error("the store in Redis does not answer")]
    Unavailable,
    #[error("the stored shard map cannot be read: {0}")]
    Map(String),
}

/// What the store counts, for metrics.
#[derive(Default)]
pub struct Counters {
    /// Answered without enough replicas: creations, rotations, revocations.
    pub unreplicated: [AtomicU64; 3],
    pub redirected: AtomicU64,
    pub retried: AtomicU64,
    pub unavailable: AtomicU64,
    pub feeds_lost: AtomicU64,
    pub invalidations: AtomicU64,
    pub maps: AtomicU64,
    /// Revocations that are still repeated in the background.
    pub pending: AtomicU64,
}

/// The names of `Counters::unreplicated`.
pub const UNREPLICATED: [&str; 3] = ["create", "rotate", "revoke"];

#[derive(Clone, Copy)]
enum Kind {
    Create = 0,
    Rotate = 1,
    Revoke = 2,
}

#[derive(Clone)]
pub struct Redis {
    topology: Arc<Topology>,
    near: Arc<NearCache>,
    login: Arc<Login>,
    counters: Arc<Counters>,
    lifetimes: Arc<[AtomicU64; 2]>,
    runtime: tokio::runtime::Handle,
    /// Until `close`.
    thread: Arc<Mutex<Option<Thread>>>,
}

/// The store's own thread, and what ends it.
struct Thread {
    end: oneshot::Sender<()>,
    handle: JoinHandle<()>,
}

/// The store did not answer, or cannot.
struct Unavailable;

type Answered<T> = Result<T, Unavailable>;

impl Login {
    /// Remembers why a server could not be reached, for the message of a start that fails.
    fn note(&self, address: &str, error: &RedisError) {
        self.note_text(format!("{address}: {error}"));
    }

    fn note_text(&self, text: String) {
        if let Ok(mut last) = self.last_error.lock() {
            *last = text;
        }
    }

    fn last_error(&self) -> String {
        self.last_error.lock().map(|last| last.clone()).unwrap_or_default()
    }
}

impl Redis {
    /// Connects, and waits until every slot has a primary that answers.
    pub fn open(login: Login, near: Arc<NearCache>, lifetimes: Lifetimes) -> Result<Redis, OpenError> {
        let login = Arc::new(login);
        let counters = Arc::new(Counters::default());
        let topology = Arc::new(Topology::new(near.clone(), login.clone(), counters.clone()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(OpenError::Thread)?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel();
        let keeper = topology.clone();
        let thread = std::thread::Builder::new()
            .name("store-redis".to_owned())
            .spawn(move || {
                runtime.block_on(async move {
                    tokio::select! {
                        () = keeper.keep() => {}
                        _ = ended => {}
                    }
                });
            })
            .map_err(OpenError::Thread)?;
        let store = Redis {
            topology,
            near,
            login,
            counters,
            lifetimes: Arc::new([AtomicU64::new(0), AtomicU64::new(0)]),
            runtime: handle,
            thread: Arc::new(Mutex::new(Some(Thread { end, handle: thread }))),
        };
        store.set_lifetimes(lifetimes);
        let begun = Instant::now();
        let mut said = false;
        while !store.topology.is_complete() {
            if begun.elapsed() > START_WITHIN {
                let reason = store.login.last_error();
                store.close();
                return Err(OpenError::Unreachable { within: START_WITHIN, reason });
            }
            let reason = store.login.last_error();
            if ["WRONGPASS", "NOAUTH", "NOPERM", "AuthenticationFailed"].iter().any(|word| reason.contains(word)) {
                store.close();
                return Err(OpenError::Refused(reason));
            }
            if !said && begun.elapsed() > START_SAID_AFTER {
                tracing::warn!(seeds = ?store.login.seeds, within = ?START_WITHIN, reason, "waiting for Redis");
                said = true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        store.blocking(|store| async move {
            store.look_at_durability().await;
            Ok(())
        })?;
        Ok(store)
    }

    /// After a reload.
    pub fn set_lifetimes(&self, lifetimes: Lifetimes) {
        self.lifetimes[0].store(lifetimes.dead_mark.0.max(1), Ordering::Relaxed);
        self.lifetimes[1].store(lifetimes.epoch.0.max(1), Ordering::Relaxed);
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// For each server its address, and whether its feed is up.
    pub fn servers(&self) -> Vec<(String, bool)> {
        self.topology.nodes().iter().map(|node| (node.address.clone(), node.is_fed())).collect()
    }

    pub async fn perform(&self, op: StoreOp) -> StoreOutcome {
        let outcome = match op {
            StoreOp::Create(new) => self.create(&new).await,
            StoreOp::Rotate(rotate) => self.rotate(&rotate).await,
            StoreOp::Replace(write) => self.replace(&write).await,
            StoreOp::State(id) => self.state(id).await,
            StoreOp::Revoke { id, user, .. } => self.revoke(id, user).await,
            StoreOp::RevokeAll { user, now } => self.revoke_all(user, Ending::All, now).await,
            StoreOp::RevokeOthers { user, keep, now } => self.revoke_all(user, Ending::Others(keep), now).await,
            StoreOp::List { user, now } => self.list(&user, now).await,
            StoreOp::Confirm { id, generation } => self.confirm(id, generation).await,
            StoreOp::Bury(_) => Err(Unavailable),
        };
        outcome.unwrap_or_else(|Unavailable| {
            self.counters.unavailable.fetch_add(1, Ordering::Relaxed);
            StoreOutcome::Unavailable
        })
    }

    /// Notes that a generation was seen; nobody waits.
    pub fn forget(&self, op: StoreOp) {
        let store = self.clone();
        self.runtime.spawn(async move { store.perform(op).await });
    }

    /// One read of everything that decides whether a session lives, on the connection that tells of its changes.
    pub async fn load(&self, id: SessionId, user: &UserId, freshness: Freshness, checked_at: Timestamp) -> Load {
        let slot = session_slot(id);
        // An id that is not steered to this user was never theirs, and no server has both's keys.
        if slot != redis_slot(user_tag(user).as_bytes()) {
            return Load::Missing;
        }
        let pipeline = [Cmd::exists(record_key(id)), fields(id), Cmd::get(epoch_key(user))];
        if self.login.read_from_replicas
            && freshness == Freshness::Cached
            && let Some(replica) = self.topology.replica(slot)
            && let Ok(replies) = replica.read_tracked(&joined(&pipeline)).await
            && replies.iter().all(|reply| fault(reply).is_none())
            && let Load::Loaded(session) = loaded(&replies, checked_at)
            && session.live
        {
            return Load::Loaded(session);
        }
        // A miss at a replica proves nothing: it may be behind.
        match self.read(slot, &pipeline).await {
            Ok((replies, tracked)) => {
                if !tracked {
                    // Nobody will tell of its change: the ticket is void, so that it is not kept.
                    self.near.invalidate(id);
                }
                loaded(&replies, checked_at)
            }
            Err(Unavailable) => {
                self.counters.unavailable.fetch_add(1, Ordering::Relaxed);
                Load::Unavailable
            }
        }
    }

    pub fn shard_map(&self) -> Result<Option<ShardMap>, OpenError> {
        self.blocking(|store| async move {
            let get = [Cmd::get(SHARD_MAP)];
            let (replies, _) =
                store.ask(redis_slot(SHARD_MAP.as_bytes()), &get).await.map_err(|_| OpenError::Unavailable)?;
            let Some(stored) = replies.first().and_then(bytes) else { return Ok(None) };
            ShardMap::from_bytes(stored).map(Some).map_err(|error| OpenError::Map(error.to_string()))
        })
    }

    /// Stores the first map, unless another gateway was faster: the stored one is the answer.
    pub fn first_shard_map(&self, map: &ShardMap) -> Result<ShardMap, OpenError> {
        let text = map.to_bytes();
        self.blocking(|store| async move {
            let set = [cmd("SET").arg(SHARD_MAP).arg(text).arg("NX").clone()];
            store.ask(redis_slot(SHARD_MAP.as_bytes()), &set).await.map_err(|_| OpenError::Unavailable)
        })?;
        self.shard_map()?.ok_or(OpenError::Unavailable)
    }

    /// Reports for this gateway, and answers what all live ones report; an empty report only asks.
    pub async fn exchange_reports(
        &self,
        gateway: &str,
        report: &str,
        lease: Duration,
    ) -> Option<Vec<(String, String)>> {
        let keys = [GATEWAYS.to_owned()];
        let args = [arg(gateway), arg(report), arg(lease.as_millis() as u64)];
        let written = self.script(redis_slot(GATEWAYS.as_bytes()), &script::REPORT, &keys, &args).await.ok()?;
        let texts = Answer::read(written.reply)?.texts();
        Some(texts.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect())
    }

    /// Ends all connections. What was not answered is not known.
    pub fn close(&self) {
        let thread = self.thread.lock().ok().and_then(|mut thread| thread.take());
        if let Some(Thread { end, handle }) = thread {
            let _ = end.send(());
            let _ = handle.join();
        }
    }

    /// Runs on the store's thread; the calling one waits.
    fn blocking<T, F>(&self, run: impl FnOnce(Redis) -> F) -> Result<T, OpenError>
    where
        F: Future<Output = Result<T, OpenError>> + Send + 'static,
        T: Send + 'static,
    {
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        let running = run(self.clone());
        self.runtime.spawn(async move {
            let _ = answer.send(running.await);
        });
        // The store's thread may have ended in the middle.
        answered.recv().unwrap_or(Err(OpenError::Unavailable))
    }

    async fn create(&self, new: &NewSession) -> Answered<StoreOutcome> {
        let slot = session_slot(new.id);
        let mut keys = vec![record_key(new.id), state_key(new.id), index_key(&new.user), epoch_key(&new.user)];
        let mut known: Vec<String> = Vec::new();
        let begun = Instant::now();
        while begun.elapsed() < MEMBERS_FOR {
            keys.truncate(4);
            for member in &known {
                keys.extend(member_keys(member)?);
            }
            let args = script::create_arguments(new, self.lifetimes[0].load(Ordering::Relaxed), &known);
            let written = self.script(slot, &script::CREATE, &keys, &args).await?;
            let answer = Answer::read(written.reply).ok_or(Unavailable)?;
            if answer.is("created") {
                self.count(Kind::Create, written.replicated);
                let evicted: Vec<_> = answer.texts().iter().filter_map(|id| SessionId::parse(id)).collect();
                evicted.iter().for_each(|id| self.near.invalidate(*id));
                return Ok(StoreOutcome::Created { evicted });
            }
            if answer.is("taken") {
                return Ok(StoreOutcome::Taken);
            }
            if answer.is("full") {
                return Ok(StoreOutcome::Full);
            }
            if !answer.is("members") {
                return Err(Unavailable);
            }
            known = answer.texts();
        }
        Err(Unavailable)
    }

    async fn rotate(&self, rotate: &Rotate) -> Answered<StoreOutcome> {
        let args = script::rotate_arguments(rotate);
        self.rotated(rotate.id, &script::ROTATE, &args).await
    }

    async fn replace(&self, write: &RotationWrite) -> Answered<StoreOutcome> {
        let mut args = vec![arg(write.expect.0), arg(write.expect.1), arg(write.state.idle.0)];
        for (field, value) in state::changing(&write.state) {
            args.push(arg(field));
            args.push(value);
        }
        self.rotated(write.id, &script::REPLACE, &args).await
    }

    async fn rotated(&self, id: SessionId, script: &Script, args: &[Vec<u8>]) -> Answered<StoreOutcome> {
        let keys = [record_key(id), state_key(id)];
        let written = self.script(session_slot(id), script, &keys, args).await?;
        let answer = Answer::read(written.reply).ok_or(Unavailable)?;
        if answer.is("missing") {
            return Ok(StoreOutcome::Missing);
        }
        let Some(state) = state::decode(&answer.rest).map(Box::new) else { return Ok(StoreOutcome::Missing) };
        if answer.is("rotated") {
            self.count(Kind::Rotate, written.replicated);
            self.near.invalidate(id);
            return Ok(StoreOutcome::Rotated(state));
        }
        let epoch = self.epoch(id, &state.user).await?;
        Ok(StoreOutcome::Mismatch(state, epoch))
    }

    async fn state(&self, id: SessionId) -> Answered<StoreOutcome> {
        let Some(state) = self.stored_state(id).await? else { return Ok(StoreOutcome::Missing) };
        let epoch = self.epoch(id, &state.user).await?;
        Ok(StoreOutcome::State(Box::new(state), epoch))
    }

    async fn stored_state(&self, id: SessionId) -> Answered<Option<RefreshState>> {
        let commands = [Cmd::exists(record_key(id)), fields(id)];
        let (replies, _) = self.ask(session_slot(id), &commands).await?;
        let [exists, Value::Array(values)] = replies.as_slice() else { return Ok(None) };
        let state = state::decode(values);
        Ok(state.filter(|state| state.dead || integer(exists) == Some(1)))
    }

    async fn epoch(&self, id: SessionId, user: &UserId) -> Answered<u64> {
        let (replies, _) = self.ask(session_slot(id), &[Cmd::get(epoch_key(user))]).await?;
        Ok(replies.first().and_then(integer).unwrap_or(0))
    }

    async fn revoke(&self, id: SessionId, user: Option<UserId>) -> Answered<StoreOutcome> {
        let user = match user {
            Some(user) => user,
            None => match self.stored_state(id).await? {
                Some(state) => state.user,
                None => return Ok(revoked(Vec::new(), None, true)),
            },
        };
        // An id that is not steered to this user was never theirs.
        if session_slot(id) != redis_slot(user_tag(&user).as_bytes()) {
            return Ok(revoked(Vec::new(), None, true));
        }
        let first = self.revoke_once(id, &user).await?;
        self.near.invalidate(id);
        let ended = if first.0 { vec![id] } else { Vec::new() };
        let replicated = self.until_replicated(first.1, || async { Ok(self.revoke_once(id, &user).await?.1) }).await;
        if !replicated {
            let (store, user) = (self.clone(), user.clone());
            self.go_on(move || {
                let (store, user) = (store.clone(), user.clone());
                async move { Ok(store.revoke_once(id, &user).await?.1) }
            });
        }
        Ok(revoked(ended, None, replicated))
    }

    /// Whether it ended now, and whether enough replicas have it.
    async fn revoke_once(&self, id: SessionId, user: &UserId) -> Answered<(bool, bool)> {
        let keys = [record_key(id), state_key(id), index_key(user)];
        let args = [arg(id.to_string()), arg(user.as_str()), arg(self.lifetimes[0].load(Ordering::Relaxed))];
        let written = self.script(session_slot(id), &script::REVOKE, &keys, &args).await?;
        let answer = Answer::read(written.reply).ok_or(Unavailable)?;
        Ok((answer.rest.first().and_then(integer) == Some(1), written.replicated))
    }

    async fn revoke_all(&self, user: UserId, ending: Ending, now: Timestamp) -> Answered<StoreOutcome> {
        let (ended, epoch, replicated) = self.revoke_all_once(&user, ending, now).await?;
        if matches!(ending, Ending::All) {
            self.near.invalidate_user(&user);
        }
        ended.iter().for_each(|id| self.near.invalidate(*id));
        let by_epoch = matches!(ending, Ending::All | Ending::Again(_)).then_some(Ending::Again(epoch));
        let repeat = {
            let (store, ids) = (self.clone(), ended.clone());
            move || {
                let (store, user, ids) = (store.clone(), user.clone(), ids.clone());
                async move {
                    let mut all = true;
                    if let Some(again) = by_epoch {
                        all &= store.revoke_all_once(&user, again, now).await?.2;
                    }
                    // Others that came since are none of this revocation's: one by one what it ended.
                    for id in ids {
                        all &= store.revoke_once(id, &user).await?.1;
                    }
                    Ok(all)
                }
            }
        };
        let replicated = self.until_replicated(replicated, &repeat).await;
        if !replicated {
            self.go_on(repeat);
        }
        let epoch = matches!(ending, Ending::All).then_some(epoch);
        Ok(revoked(ended, epoch, replicated))
    }

    async fn revoke_all_once(
        &self,
        user: &UserId,
        ending: Ending,
        now: Timestamp,
    ) -> Answered<(Vec<SessionId>, u64, bool)> {
        let slot = redis_slot(user_tag(user).as_bytes());
        let (what, which) = match ending {
            Ending::All => ("all", String::new()),
            Ending::Others(keep) => ("others", keep.to_string()),
            Ending::Again(epoch) => ("again", epoch.to_string()),
        };
        let keep_until = now + Millis(self.lifetimes[1].load(Ordering::Relaxed));
        let range = [Cmd::zrange(index_key(user), 0, -1)];
        let (replies, _) = self.ask(slot, &range).await?;
        let mut known = texts(replies.first());
        let begun = Instant::now();
        while begun.elapsed() < MEMBERS_FOR {
            let mut keys = vec![epoch_key(user), index_key(user)];
            for member in &known {
                keys.extend(member_keys(member)?);
            }
            let mut args = vec![
                arg(what),
                arg(&which),
                arg(self.lifetimes[0].load(Ordering::Relaxed)),
                arg(now.0),
                arg(keep_until.0),
                arg(known.len()),
            ];
            args.extend(known.iter().map(arg));
            let written = self.script(slot, &script::REVOKE_ALL, &keys, &args).await?;
            let answer = Answer::read(written.reply).ok_or(Unavailable)?;
            if answer.is("revoked") {
                let epoch = answer.rest.first().and_then(integer).ok_or(Unavailable)?;
                let ended = answer.texts().iter().filter_map(|id| SessionId::parse(id)).collect();
                return Ok((ended, epoch, written.replicated));
            }
            if !answer.is("members") {
                return Err(Unavailable);
            }
            known = answer.texts();
        }
        Err(Unavailable)
    }

    async fn list(&self, user: &UserId, now: Timestamp) -> Answered<StoreOutcome> {
        let slot = redis_slot(user_tag(user).as_bytes());
        let first = [Cmd::zrange(index_key(user), 0, -1), Cmd::get(epoch_key(user))];
        let (replies, _) = self.ask(slot, &first).await?;
        let ids: Vec<SessionId> = texts(replies.first()).iter().filter_map(|id| SessionId::parse(id)).collect();
        let epoch = replies.get(1).and_then(integer).unwrap_or(0);
        if ids.is_empty() {
            return Ok(StoreOutcome::Listed(Vec::new()));
        }
        let commands: Vec<Cmd> = ids.iter().flat_map(|id| [Cmd::get(record_key(*id)), fields(*id)]).collect();
        let (replies, _) = self.ask(slot, &commands).await?;
        let mut rows: Vec<SessionRow> = ids
            .iter()
            .zip(replies.chunks_exact(2))
            .filter_map(|(id, pair)| {
                let [record, Value::Array(values)] = pair else { return None };
                let state = state::decode(values).filter(|state| state.user == *user && state.is_live(epoch, now))?;
                Some(SessionRow {
                    id: *id,
                    record: serde_json::from_slice(bytes(record)?).ok()?,
                    absolute: state.absolute,
                    idle: state.idle,
                    refreshed_at: state.superseded.first().copied(),
                })
            })
            .collect();
        // The index is in the order in which they end, and those lives may have been configured to differ.
        rows.sort_by(|one, other| one.created_at().cmp(other.created_at()));
        Ok(StoreOutcome::Listed(rows))
    }

    async fn confirm(&self, id: SessionId, generation: u32) -> Answered<StoreOutcome> {
        let call = script::CONFIRM.call(&[record_key(id), state_key(id)], &[arg(generation)], false);
        let whole = script::CONFIRM.call(&[record_key(id), state_key(id)], &[arg(generation)], true);
        match self.ask(session_slot(id), &[call]).await {
            Ok((replies, _)) if replies.first().is_some_and(|reply| fault(reply) == Some(Fault::NoScript)) => {
                self.ask(session_slot(id), &[whole]).await?;
            }
            answered => {
                answered?;
            }
        }
        Ok(StoreOutcome::Confirmed)
    }

    fn count(&self, kind: Kind, replicated: bool) {
        if !replicated {
            self.counters.unreplicated[kind as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Repeats a revocation for a while, until enough replicas have it.
    async fn until_replicated<F>(&self, first: bool, again: impl Fn() -> F) -> bool
    where
        F: Future<Output = Answered<bool>>,
    {
        let begun = Instant::now();
        let mut replicated = first;
        while !replicated && begun.elapsed() < REVOKE_FOR {
            tokio::time::sleep(RETRY_LAST / 4).await;
            replicated = again().await.unwrap_or(false);
        }
        self.count(Kind::Revoke, replicated);
        replicated
    }

    /// Goes on with it when it has been answered, for as long as it takes.
    fn go_on<F>(&self, again: impl Fn() -> F + Send + 'static)
    where
        F: Future<Output = Answered<bool>> + Send,
    {
        if self.counters.pending.fetch_add(1, Ordering::AcqRel) >= REVOKE_MOST as u64 {
            self.counters.pending.fetch_sub(1, Ordering::AcqRel);
            tracing::error!("too many revocations wait for replicas: one is not repeated any more");
            return;
        }
        let counters = self.counters.clone();
        self.runtime.spawn(async move {
            while !again().await.unwrap_or(false) {
                tokio::time::sleep(REVOKE_AGAIN).await;
            }
            counters.pending.fetch_sub(1, Ordering::AcqRel);
        });
    }

    /// Says at start what the servers do not promise.
    async fn look_at_durability(&self) {
        let wanted = [("appendonly", "yes"), ("maxmemory-policy", "noeviction")];
        let mut syncs_late = false;
        for node in self.topology.nodes() {
            for (name, value) in wanted {
                match setting(&node, name).await {
                    Some(found) if found == value => {}
                    Some(found) => tracing::warn!(
                        server = %node.address,
                        "Redis runs with {name} {found}: sessions are only safe with {name} {value}"
                    ),
                    None => tracing::warn!(server = %node.address, "Redis does not say what {name} is: see to {value}"),
                }
            }
            syncs_late |= setting(&node, "appendfsync").await.is_some_and(|found| found != "always");
        }
        if syncs_late {
            // Redis' default, and as good as always where a restart waits for the takeover: no reason to warn.
            tracing::info!(
                "Redis runs without appendfsync always: a primary that is back before its replica took over may lack the \
                 last two seconds (docs/storage.md, Durability)"
            );
        }
        let wanted = u64::from(self.login.wait_replicas);
        if self.login.cluster && wanted == 0 {
            tracing::warn!("store.wait_replicas is 0: a failover may lose what was answered");
        }
        for (server, replicas) in self.topology.replicas().await {
            if replicas < wanted {
                tracing::warn!(
                    server,
                    replicas,
                    "Redis has fewer replicas than store.wait_replicas = {wanted}: every write waits for {WAIT_MS} ms in \
                     vain"
                );
            }
        }
    }
}

/// What a server is configured to, if it says so.
async fn setting(node: &Node, name: &str) -> Option<String> {
    let question = joined(&[cmd("CONFIG").arg("GET").arg(name).clone()]);
    let reply = node.ask(&question).await.ok()?.pop()?;
    let (_, found) = reply.as_map_iter()?.next()?;
    bytes(found).map(|found| String::from_utf8_lossy(found).into_owned())
}

/// Which sessions of a user end.
#[derive(Clone, Copy)]
enum Ending {
    All,
    Others(SessionId),
    /// Those older than this epoch: a repetition.
    Again(u64),
}

fn revoked(ended: Vec<SessionId>, epoch: Option<u64>, replicated: bool) -> StoreOutcome {
    StoreOutcome::Revoked { ended, epoch, replicated }
}

fn loaded(replies: &[Value], checked_at: Timestamp) -> Load {
    let [exists, Value::Array(values), epoch] = replies else { return Load::Missing };
    match state::decode(values) {
        Some(state) if integer(exists) == Some(1) => {
            Load::Loaded(state.loaded(integer(epoch).unwrap_or(0), checked_at))
        }
        _ => Load::Missing,
    }
}

fn fields(id: SessionId) -> Cmd {
    let mut read = cmd("HMGET");
    read.arg(state_key(id)).arg(&FIELDS);
    read
}

fn texts(reply: Option<&Value>) -> Vec<String> {
    let Some(Value::Array(values)) = reply else { return Vec::new() };
    values.iter().filter_map(|value| String::from_utf8(bytes(value)?.to_vec()).ok()).collect()
}

fn member_keys(member: &str) -> Answered<[String; 2]> {
    let id = SessionId::parse(member).ok_or(Unavailable)?;
    Ok([record_key(id), state_key(id)])
}
