//! The embedded store: redb in one file, owned by two threads. Writes come in groups: everything that waits is done in
//! one transaction, one fsync makes it durable, and only then is anyone answered. Reads have a thread of their own, so
//! that a validation never waits for somebody's fsync.

use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use edgekeep_core::session::{NearCache, NewSession, RefreshState, SessionRow, StoreOp, StoreOutcome};
use edgekeep_core::shard::ShardMap;
use edgekeep_core::{SessionId, Timestamp, UserId};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction};
use thiserror::Error;
use tokio::sync::oneshot;

use super::{Load, format};
use crate::gateway::clock::now;

/// The original's record: session → JSON. Never rewritten.
const RECORDS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("records");
/// Session → refresh state.
const STATES: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("states");
/// (user, created at, session): a user's sessions in the order of their creation.
const INDEX: TableDefinition<'_, (&str, u64, &[u8; 16]), ()> = TableDefinition::new("index");
/// User → (epoch, when it may be forgotten).
const EPOCHS: TableDefinition<'_, &str, (u64, u64)> = TableDefinition::new("epochs");
/// (when it may be forgotten, user): epochs in the order of their end.
const EPOCH_EXPIRY: TableDefinition<'_, (u64, &str), ()> = TableDefinition::new("epoch_expiry");
/// (absolute expiry, session) → creation time: what to clean up, in order.
const EXPIRY: TableDefinition<'_, (u64, &[u8; 16]), u64> = TableDefinition::new("expiry");
/// Values of which there is one.
const SINGLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("single");
const SHARD_MAP: &str = "shard_map";

/// How many operations may wait; more are answered `Unavailable` at once.
const QUEUE: usize = 65_536;
/// How many operations share one transaction.
const GROUP: usize = 512;
/// How often expired sessions are cleaned up, and how many at a time.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
const SWEEP_SOON: Duration = Duration::from_millis(50);
const SWEEP_AT_MOST: usize = 500;

/// Why the embedded store cannot be used.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error("store.path: cannot make {0}: {1}")]
    Folder(String, std::io::Error),
    #[error("store.path: cannot open {0}: {1}")]
    Open(String, redb::DatabaseError),
    #[error("the embedded store failed: {0}")]
    Store(#[from] Failure),
    #[error("the stored shard map cannot be read: {0}")]
    Map(String),
    #[error("cannot start the store's thread: {0}")]
    Thread(std::io::Error),
}

/// Any error of redb, boxed because they are large.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct Failure(Box<redb::Error>);

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure(Box::new(error.into()))
    }
}

#[derive(Clone)]
pub struct Embedded {
    database: Arc<Database>,
    writes: SyncSender<Write>,
    reads: SyncSender<Read>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

enum Write {
    Op(StoreOp, oneshot::Sender<StoreOutcome>),
    Close,
}

enum Read {
    Op(StoreOp, oneshot::Sender<StoreOutcome>),
    Load(SessionId, Timestamp, oneshot::Sender<Load>),
    Close,
}

impl Embedded {
    pub fn open(path: &Path, near: Arc<NearCache>) -> Result<Embedded, OpenError> {
        if let Some(folder) = path.parent() {
            let make = DirBuilder::new().recursive(true).mode(0o700).create(folder);
            make.map_err(|e| OpenError::Folder(folder.display().to_string(), e))?;
        }
        // It tells who is logged in where. One that is there keeps its mode.
        let make = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        if let Err(error) = make
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(OpenError::Folder(path.display().to_string(), error));
        }
        let database = Arc::new(Database::create(path).map_err(|e| OpenError::Open(path.display().to_string(), e))?);
        make_tables(&database)?;
        let (writes, write_queue) = sync_channel(QUEUE);
        let (reads, read_queue) = sync_channel(QUEUE);
        let writer = Writer { database: database.clone(), near };
        let reader = database.clone();
        let threads = vec![
            spawn("store-write", move || writer.run(&write_queue))?,
            spawn("store-read", move || run_reads(&reader, &read_queue))?,
        ];
        Ok(Embedded { database, writes, reads, threads: Arc::new(Mutex::new(threads)) })
    }

    pub async fn perform(&self, op: StoreOp) -> StoreOutcome {
        let (answer, outcome) = oneshot::channel();
        let sent = match op {
            StoreOp::State(_) | StoreOp::List { .. } => self.reads.try_send(Read::Op(op, answer)).is_ok(),
            _ => self.writes.try_send(Write::Op(op, answer)).is_ok(),
        };
        if !sent {
            return StoreOutcome::Unavailable;
        }
        outcome.await.unwrap_or(StoreOutcome::Unavailable)
    }

    /// Performs an operation that nobody waits for.
    pub fn forget(&self, op: StoreOp) {
        let (answer, _) = oneshot::channel();
        let _ = self.writes.try_send(Write::Op(op, answer));
    }

    pub async fn load(&self, id: SessionId, checked_at: Timestamp) -> Load {
        let (answer, outcome) = oneshot::channel();
        if self.reads.try_send(Read::Load(id, checked_at, answer)).is_err() {
            return Load::Unavailable;
        }
        outcome.await.unwrap_or(Load::Unavailable)
    }

    pub fn shard_map(&self) -> Result<Option<ShardMap>, OpenError> {
        let read = self.database.begin_read().map_err(Failure::from)?;
        let table = read.open_table(SINGLE).map_err(Failure::from)?;
        let Some(bytes) = table.get(SHARD_MAP).map_err(Failure::from)? else { return Ok(None) };
        ShardMap::from_bytes(bytes.value()).map(Some).map_err(|e| OpenError::Map(e.to_string()))
    }

    pub fn put_shard_map(&self, map: &ShardMap) -> Result<(), OpenError> {
        let put = || -> Result<(), Failure> {
            let write = self.database.begin_write()?;
            write.open_table(SINGLE)?.insert(SHARD_MAP, map.to_bytes().as_slice())?;
            write.commit()?;
            Ok(())
        };
        Ok(put()?)
    }

    pub fn close(&self) {
        let _ = self.writes.send(Write::Close);
        let _ = self.reads.send(Read::Close);
        let threads = self.threads.lock().map(|mut threads| std::mem::take(&mut *threads)).unwrap_or_default();
        for thread in threads {
            let _ = thread.join();
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, OpenError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(OpenError::Thread)
}

fn make_tables(database: &Database) -> Result<(), Failure> {
    let write = database.begin_write()?;
    write.open_table(RECORDS)?;
    write.open_table(STATES)?;
    write.open_table(INDEX)?;
    write.open_table(EPOCHS)?;
    write.open_table(EPOCH_EXPIRY)?;
    write.open_table(EXPIRY)?;
    write.open_table(SINGLE)?;
    write.commit()?;
    Ok(())
}

fn run_reads(database: &Database, queue: &Receiver<Read>) {
    while let Ok(read) = queue.recv() {
        match read {
            Read::Close => return,
            Read::Load(id, checked_at, answer) => {
                let load = load(database, id, checked_at).unwrap_or_else(|failure| {
                    tracing::error!(%failure, "the embedded store failed to read a session");
                    Load::Unavailable
                });
                let _ = answer.send(load);
            }
            Read::Op(op, answer) => {
                let outcome = read_op(database, &op).unwrap_or_else(|failure| {
                    tracing::error!(%failure, "the embedded store failed to read");
                    StoreOutcome::Unavailable
                });
                let _ = answer.send(outcome);
            }
        }
    }
}

fn load(database: &Database, id: SessionId, checked_at: Timestamp) -> Result<Load, Failure> {
    let read = database.begin_read()?;
    let Some(state) = decoded(read.open_table(STATES)?.get(&id.0)?.map(|v| v.value().to_vec()), id) else {
        return Ok(Load::Missing);
    };
    let epoch = read.open_table(EPOCHS)?.get(state.user.as_str())?.map_or(0, |v| v.value().0);
    Ok(Load::Loaded(state.loaded(epoch, checked_at)))
}

fn read_op(database: &Database, op: &StoreOp) -> Result<StoreOutcome, Failure> {
    let read = database.begin_read()?;
    let states = read.open_table(STATES)?;
    let epochs = read.open_table(EPOCHS)?;
    match op {
        StoreOp::State(id) => {
            let Some(state) = decoded(states.get(&id.0)?.map(|v| v.value().to_vec()), *id) else {
                return Ok(StoreOutcome::Missing);
            };
            let epoch = epochs.get(state.user.as_str())?.map_or(0, |v| v.value().0);
            Ok(StoreOutcome::State(Box::new(state), epoch))
        }
        StoreOp::List { user, now } => {
            let epoch = epochs.get(user.as_str())?.map_or(0, |v| v.value().0);
            let records = read.open_table(RECORDS)?;
            let mut rows = Vec::new();
            for entry in read.open_table(INDEX)?.range(user_range(user))? {
                let (key, _) = entry?;
                let id = SessionId(*key.value().2);
                let Some(state) = decoded(states.get(&id.0)?.map(|v| v.value().to_vec()), id) else { continue };
                let Some(record) = records.get(&id.0)? else { continue };
                if state.is_live(epoch, *now) {
                    rows.push(SessionRow {
                        id,
                        record: serde_json::from_slice(record.value()).unwrap_or_default(),
                        absolute: state.absolute,
                        idle: state.idle,
                        refreshed_at: state.superseded.first().copied(),
                    });
                }
            }
            Ok(StoreOutcome::Listed(rows))
        }
        _ => Ok(StoreOutcome::Unavailable),
    }
}

fn user_range(user: &UserId) -> std::ops::RangeInclusive<(&str, u64, &'static [u8; 16])> {
    (user.as_str(), 0, &[0; 16])..=(user.as_str(), u64::MAX, &[0xff; 16])
}

fn decoded(bytes: Option<Vec<u8>>, id: SessionId) -> Option<RefreshState> {
    let bytes = bytes?;
    let state = format::decode(&bytes);
    if state.is_none() {
        tracing::error!(bytes = bytes.len(), prefix = id.0[0], "a stored session cannot be read and counts as ended");
    }
    state
}

struct Writer {
    database: Arc<Database>,
    near: Arc<NearCache>,
}

/// What to drop from the near cache once a group is durable.
#[derive(Default)]
struct Dropped {
    sessions: Vec<SessionId>,
    users: Vec<UserId>,
}

impl Writer {
    fn run(&self, queue: &Receiver<Write>) {
        let mut next_sweep = Instant::now();
        loop {
            let wait = next_sweep.saturating_duration_since(Instant::now());
            let mut group = Vec::new();
            let mut closing = false;
            match queue.recv_timeout(wait) {
                Ok(Write::Op(op, answer)) => group.push((op, answer)),
                Ok(Write::Close) | Err(RecvTimeoutError::Disconnected) => closing = true,
                Err(RecvTimeoutError::Timeout) => {}
            }
            while group.len() < GROUP {
                match queue.try_recv() {
                    Ok(Write::Op(op, answer)) => group.push((op, answer)),
                    Ok(Write::Close) => closing = true,
                    Err(_) => break,
                }
            }
            if !group.is_empty() {
                self.perform_group(group);
            }
            if closing {
                return;
            }
            if Instant::now() >= next_sweep {
                let more = self.sweep(now()).unwrap_or_else(|failure| {
                    tracing::error!(%failure, "the embedded store failed to clean up expired sessions");
                    false
                });
                // A long backlog goes in small turns, between which others are served.
                next_sweep = Instant::now() + if more { SWEEP_SOON } else { SWEEP_EVERY };
            }
        }
    }

    /// One transaction, one fsync, then the answers. A failure answers `Unavailable` to all: nothing was written.
    fn perform_group(&self, group: Vec<(StoreOp, oneshot::Sender<StoreOutcome>)>) {
        let (ops, answers): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        match self.commit(&ops) {
            Ok((outcomes, dropped)) => {
                dropped.sessions.into_iter().for_each(|id| self.near.invalidate(id));
                dropped.users.iter().for_each(|user| self.near.invalidate_user(user));
                for (answer, outcome) in answers.into_iter().zip(outcomes) {
                    let _ = answer.send(outcome);
                }
            }
            Err(failure) => {
                tracing::error!(%failure, operations = ops.len(), "the embedded store failed to write");
                for answer in answers {
                    let _ = answer.send(StoreOutcome::Unavailable);
                }
            }
        }
    }

    fn commit(&self, ops: &[StoreOp]) -> Result<(Vec<StoreOutcome>, Dropped), Failure> {
        let mut write = self.database.begin_write()?;
        // A confirmation may be lost: alone it waits for the next group's fsync.
        if ops.iter().all(|op| matches!(op, StoreOp::Confirm { .. })) {
            write.set_durability(Durability::None)?;
        }
        let mut dropped = Dropped::default();
        let outcomes = {
            let mut tables = Tables::open(&write)?;
            ops.iter().map(|op| tables.perform(op, &mut dropped)).collect::<Result<Vec<_>, Failure>>()?
        };
        write.commit()?;
        Ok((outcomes, dropped))
    }

    /// Removes some of what has expired; true when there may be more.
    fn sweep(&self, now: Timestamp) -> Result<bool, Failure> {
        let write = self.database.begin_write()?;
        let (sessions, users) = {
            let mut tables = Tables::open(&write)?;
            let mut sessions = Vec::new();
            for entry in tables.expiry.range(..=(now.0, &[0xff; 16]))?.take(SWEEP_AT_MOST) {
                let (key, _) = entry?;
                sessions.push((key.value().0, SessionId(*key.value().1)));
            }
            let mut users = Vec::new();
            for entry in tables.epoch_expiry.range(..(now.0 + 1, ""))?.take(SWEEP_AT_MOST) {
                let (key, _) = entry?;
                users.push((key.value().0, key.value().1.to_owned()));
            }
            for (absolute, id) in &sessions {
                tables.remove(*id)?;
                // Also where nobody can read any more whose session that was.
                tables.expiry.remove((*absolute, &id.0))?;
            }
            for (until, user) in &users {
                tables.epochs.remove(user.as_str())?;
                tables.epoch_expiry.remove((*until, user.as_str()))?;
            }
            (sessions.len(), users.len())
        };
        if sessions + users == 0 {
            write.abort()?;
            return Ok(false);
        }
        write.commit()?;
        Ok(sessions == SWEEP_AT_MOST || users == SWEEP_AT_MOST)
    }
}

struct Tables<'t> {
    records: Table<'t, &'static [u8; 16], &'static [u8]>,
    states: Table<'t, &'static [u8; 16], &'static [u8]>,
    index: Table<'t, (&'static str, u64, &'static [u8; 16]), ()>,
    epochs: Table<'t, &'static str, (u64, u64)>,
    epoch_expiry: Table<'t, (u64, &'static str), ()>,
    expiry: Table<'t, (u64, &'static [u8; 16]), u64>,
}

impl<'t> Tables<'t> {
    fn open(write: &'t WriteTransaction) -> Result<Tables<'t>, Failure> {
        Ok(Tables {
            records: write.open_table(RECORDS)?,
            states: write.open_table(STATES)?,
            index: write.open_table(INDEX)?,
            epochs: write.open_table(EPOCHS)?,
            epoch_expiry: write.open_table(EPOCH_EXPIRY)?,
            expiry: write.open_table(EXPIRY)?,
        })
    }

    fn perform(&mut self, op: &StoreOp, dropped: &mut Dropped) -> Result<StoreOutcome, Failure> {
        match op {
            StoreOp::Create(new) => self.create(new, dropped),
            StoreOp::Rotate(rotate) => {
                let Some((state, epoch)) = self.state(rotate.id)? else { return Ok(StoreOutcome::Missing) };
                match rotate.apply(&state, epoch) {
                    Some(next) => {
                        self.put_state(rotate.id, &next)?;
                        // Its idle limit moved: a near-cached copy would end too early.
                        dropped.sessions.push(rotate.id);
                        Ok(StoreOutcome::Rotated(Box::new(next)))
                    }
                    None => Ok(StoreOutcome::Mismatch(Box::new(state), epoch)),
                }
            }
            StoreOp::Replace(replace) => {
                let Some((state, epoch)) = self.state(replace.id)? else { return Ok(StoreOutcome::Missing) };
                let Some(next) = replace.apply(&state) else {
                    return Ok(StoreOutcome::Mismatch(Box::new(state), epoch));
                };
                self.put_state(replace.id, &next)?;
                dropped.sessions.push(replace.id);
                Ok(StoreOutcome::Rotated(Box::new(next)))
            }
            StoreOp::Revoke { id, user, .. } => {
                let theirs = match (user, self.state(*id)?) {
                    (Some(user), Some((state, _))) => state.user == *user,
                    (None, Some(_)) => true,
                    (_, None) => false,
                };
                let ended = if theirs { vec![*id] } else { Vec::new() };
                self.end(ended, None, dropped)
            }
            StoreOp::RevokeAll { user, .. } => {
                let members = self.members(user)?;
                let keep_until = members.iter().map(|member| member.absolute.0).max().unwrap_or(0);
                let epoch = self.raise_epoch(user, 1, keep_until)?;
                dropped.users.push(user.clone());
                self.end(members.iter().map(|member| member.id).collect(), Some(epoch), dropped)
            }
            StoreOp::RevokeOthers { user, keep, .. } => {
                let ended = self.members(user)?.iter().map(|member| member.id).filter(|id| id != keep).collect();
                self.end(ended, None, dropped)
            }
            StoreOp::Confirm { id, generation } => {
                if let Some((mut state, _)) = self.state(*id)?
                    && state.seen < *generation
                {
                    // A token cannot have been seen that was never issued.
                    state.seen = (*generation).min(state.counter);
                    self.put_state(*id, &state)?;
                }
                Ok(StoreOutcome::Confirmed)
            }
            StoreOp::State(_) | StoreOp::List { .. } | StoreOp::Bury(_) => Ok(StoreOutcome::Unavailable),
        }
    }

    fn end(
        &mut self,
        ended: Vec<SessionId>,
        epoch: Option<u64>,
        dropped: &mut Dropped,
    ) -> Result<StoreOutcome, Failure> {
        for id in &ended {
            self.remove(*id)?;
        }
        dropped.sessions.extend(&ended);
        Ok(StoreOutcome::Revoked { ended, epoch, replicated: true })
    }

    fn create(&mut self, new: &NewSession, dropped: &mut Dropped) -> Result<StoreOutcome, Failure> {
        if self.states.get(&new.id.0)?.is_some() {
            return Ok(StoreOutcome::Taken);
        }
        let epoch = self.raise_epoch(&new.user, 0, new.absolute.0)?;
        let (members, expired): (Vec<_>, Vec<_>) = self
            .members(&new.user)?
            .into_iter()
            .partition(|member| member.idle > new.created_at && member.absolute > new.created_at);
        // An idle session is over long before its absolute limit: left there, the index would grow with every login.
        for member in &expired {
            self.remove(member.id)?;
        }
        let room = new.max_per_user as usize;
        let mut evicted = Vec::new();
        if members.len() >= room {
            if !new.evict_oldest {
                return Ok(StoreOutcome::Full);
            }
            for member in &members[..=members.len() - room] {
                self.remove(member.id)?;
                evicted.push(member.id);
            }
        }
        dropped.sessions.extend(&evicted);
        self.records.insert(&new.id.0, new.record_json().as_bytes())?;
        self.put_state(new.id, &new.refresh_state(epoch))?;
        self.index.insert((new.user.as_str(), new.created_at.0, &new.id.0), ())?;
        self.expiry.insert((new.absolute.0, &new.id.0), new.created_at.0)?;
        Ok(StoreOutcome::Created { evicted })
    }

    fn state(&self, id: SessionId) -> Result<Option<(RefreshState, u64)>, Failure> {
        let Some(state) = decoded(self.states.get(&id.0)?.map(|v| v.value().to_vec()), id) else { return Ok(None) };
        let epoch = self.epochs.get(state.user.as_str())?.map_or(0, |v| v.value().0);
        Ok(Some((state, epoch)))
    }

    fn put_state(&mut self, id: SessionId, state: &RefreshState) -> Result<(), Failure> {
        self.states.insert(&id.0, format::encode(state).as_slice())?;
        Ok(())
    }

    /// Adds `by` to the user's epoch and keeps it at least until `keep_until`; the epoch as it is then.
    fn raise_epoch(&mut self, user: &UserId, by: u64, keep_until: u64) -> Result<u64, Failure> {
        let (epoch, until) = self.epochs.get(user.as_str())?.map_or((0, 0), |v| v.value());
        let epoch = epoch + by;
        let keep_until = until.max(keep_until);
        self.epochs.insert(user.as_str(), (epoch, keep_until))?;
        self.epoch_expiry.remove((until, user.as_str()))?;
        self.epoch_expiry.insert((keep_until, user.as_str()), ())?;
        Ok(epoch)
    }

    fn members(&self, user: &UserId) -> Result<Vec<Member>, Failure> {
        let mut members = Vec::new();
        for entry in self.index.range(user_range(user))? {
            let id = SessionId(*entry?.0.value().2);
            if let Some((state, _)) = self.state(id)? {
                members.push(Member { id, idle: state.idle, absolute: state.absolute });
            }
        }
        Ok(members)
    }

    /// Every trace of a session. A session that is missing is a session that ended.
    fn remove(&mut self, id: SessionId) -> Result<(), Failure> {
        let Some(bytes) = self.states.remove(&id.0)?.map(|v| v.value().to_vec()) else { return Ok(()) };
        self.records.remove(&id.0)?;
        if let Some(state) = format::decode(&bytes) {
            let created = self.expiry.remove((state.absolute.0, &id.0))?.map(|v| v.value());
            if let Some(created) = created {
                self.index.remove((state.user.as_str(), created, &id.0))?;
            }
        }
        Ok(())
    }
}

struct Member {
    id: SessionId,
    idle: Timestamp,
    absolute: Timestamp,
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use edgekeep_core::session::{Found, NearCache, Rotate};
    use edgekeep_core::shard::{HashKind, ShardKey};
    use edgekeep_core::{Entropy, Millis, UserIdKind};
    use redb::ReadableTableMetadata;

    use super::*;

    struct Opened {
        store: Embedded,
        near: Arc<NearCache>,
        path: std::path::PathBuf,
        _folder: tempfile::TempDir,
    }

    fn open() -> Opened {
        let folder = tempfile::tempdir().unwrap();
        let near = Arc::new(NearCache::new(100, &mut Entropy::for_tests(1)));
        let path = folder.path().join("deep/store.redb");
        Opened { store: Embedded::open(&path, near.clone()).unwrap(), near, path, _folder: folder }
    }

    fn user() -> UserId {
        UserId::new("42").unwrap()
    }

    fn new(id: u8, created: u64) -> Box<NewSession> {
        Box::new(NewSession {
            id: SessionId([id; 16]),
            user: user(),
            user_kind: UserIdKind::Integer,
            device_info: serde_json::json!({"n": id}),
            created_at: Timestamp(created),
            client_id: "app".into(),
            access_ttl: None,
            key_id: 1,
            absolute: Timestamp(u64::MAX / 2),
            idle: Timestamp(u64::MAX / 4),
            max_per_user: 3,
            evict_oldest: true,
        })
    }

    fn revoked(ended: &[u8], epoch: Option<u64>) -> StoreOutcome {
        StoreOutcome::Revoked { ended: ended.iter().map(|id| SessionId([*id; 16])).collect(), epoch, replicated: true }
    }

    async fn ids(store: &Embedded) -> Vec<u8> {
        match store.perform(StoreOp::List { user: user(), now: Timestamp(10) }).await {
            StoreOutcome::Listed(rows) => rows.iter().map(|row| row.id.0[0]).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn rotate(id: u8, presented: u32) -> StoreOp {
        StoreOp::Rotate(Rotate {
            id: SessionId([id; 16]),
            presented,
            now: Timestamp(5),
            key_id: 2,
            device: None,
            idle_ttl: Millis(1_000),
        })
    }

    #[tokio::test]
    async fn the_oldest_session_makes_room_or_the_newest_is_refused() {
        let Opened { store, .. } = open();
        for id in 1..=4 {
            let evicted = if id == 4 { vec![SessionId([1; 16])] } else { Vec::new() };
            let outcome = store.perform(StoreOp::Create(new(id, u64::from(id)))).await;
            assert_eq!(outcome, StoreOutcome::Created { evicted });
        }
        assert_eq!(ids(&store).await, [2, 3, 4]);
        let refusing = Box::new(NewSession { evict_oldest: false, ..*new(5, 5) });
        assert_eq!(store.perform(StoreOp::Create(refusing)).await, StoreOutcome::Full);
        assert_eq!(ids(&store).await, [2, 3, 4]);
    }

    #[tokio::test]
    async fn a_session_that_cannot_be_read_any_more_is_swept_like_any_other() {
        let Opened { store, near, .. } = open();
        let write = store.database.begin_write().unwrap();
        {
            let mut tables = Tables::open(&write).unwrap();
            tables.states.insert(&[9; 16], [0xff; 3].as_slice()).unwrap();
            tables.expiry.insert((5, &[9; 16]), 1).unwrap();
        }
        write.commit().unwrap();
        let writer = Writer { database: store.database.clone(), near };
        writer.sweep(Timestamp(10)).unwrap();
        let write = store.database.begin_write().unwrap();
        let tables = Tables::open(&write).unwrap();
        assert!(tables.states.is_empty().unwrap() && tables.expiry.is_empty().unwrap());
    }

    #[tokio::test]
    async fn nobody_else_can_read_a_new_store() {
        let opened = open();
        for (path, mode) in [(opened.path.as_path(), 0o600), (opened.path.parent().unwrap(), 0o700)] {
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
        }
    }

    #[tokio::test]
    async fn an_id_that_is_taken_is_never_overwritten() {
        let Opened { store, .. } = open();
        store.perform(StoreOp::Create(new(1, 1))).await;
        let other = Box::new(NewSession { user: UserId::new("43").unwrap(), ..*new(1, 2) });
        assert_eq!(store.perform(StoreOp::Create(other)).await, StoreOutcome::Taken);
        assert_eq!(ids(&store).await, [1]);
    }

    #[tokio::test]
    async fn the_index_of_a_user_never_grows_beyond_what_lives() {
        let Opened { store, .. } = open();
        for id in 1..=200 {
            let created = u64::from(id) * 100;
            let idle = Timestamp(created + 50);
            assert_eq!(
                store.perform(StoreOp::Create(Box::new(NewSession { idle, ..*new(id, created) }))).await,
                StoreOutcome::Created { evicted: Vec::new() }
            );
        }
        let op = StoreOp::RevokeAll { user: user(), now: Timestamp(20_000) };
        assert!(
            matches!(store.perform(op).await, StoreOutcome::Revoked { ended, .. } if ended.len() == 1),
            "the last one and no more"
        );
    }

    #[tokio::test]
    async fn logins_of_one_user_at_once_all_stand_in_the_list() {
        let Opened { store, .. } = open();
        let mut waiting = tokio::task::JoinSet::new();
        for id in 1..=40 {
            let store = store.clone();
            let new = Box::new(NewSession { max_per_user: 50, ..*new(id, 7) });
            waiting.spawn(async move { store.perform(StoreOp::Create(new)).await });
        }
        assert!(waiting.join_all().await.iter().all(|outcome| matches!(outcome, StoreOutcome::Created { .. })));
        assert_eq!(ids(&store).await, (1..=40).collect::<Vec<u8>>());
    }

    #[tokio::test]
    async fn an_old_token_is_as_old_after_a_restart() {
        let Opened { store, near, path, _folder } = open();
        store.perform(StoreOp::Create(new(1, 1))).await;
        for presented in 0..3 {
            assert!(matches!(store.perform(rotate(1, presented)).await, StoreOutcome::Rotated(_)));
        }
        store.close();
        drop(store);
        let store = Embedded::open(&path, near).unwrap();
        let StoreOutcome::Mismatch(state, 0) = store.perform(rotate(1, 2)).await else { panic!("must not rotate") };
        assert_eq!((state.counter, state.superseded.len()), (3, 3));
    }

    #[tokio::test]
    async fn a_rotation_applies_once_and_a_second_one_gets_the_state() {
        let Opened { store, .. } = open();
        store.perform(StoreOp::Create(new(1, 1))).await;
        let StoreOutcome::Rotated(state) = store.perform(rotate(1, 0)).await else { panic!("must rotate") };
        assert_eq!((state.counter, state.key_id), (1, 2));
        let StoreOutcome::Mismatch(state, 0) = store.perform(rotate(1, 0)).await else { panic!("must not") };
        assert_eq!(state.counter, 1);
        assert_eq!(store.perform(rotate(9, 0)).await, StoreOutcome::Missing);
    }

    #[tokio::test]
    async fn forty_rotations_of_one_token_rotate_it_once() {
        let Opened { store, .. } = open();
        store.perform(StoreOp::Create(new(1, 1))).await;
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..40 {
            let store = store.clone();
            waiting.spawn(async move { store.perform(rotate(1, 0)).await });
        }
        let outcomes = waiting.join_all().await;
        assert_eq!(outcomes.iter().filter(|o| matches!(o, StoreOutcome::Rotated(_))).count(), 1);
        assert!(outcomes.iter().all(|o| matches!(o, StoreOutcome::Rotated(_) | StoreOutcome::Mismatch(..))));
    }

    #[tokio::test]
    async fn a_revocation_leaves_nothing_behind_and_drops_the_near_copy_before_it_answers() {
        let Opened { store, near, .. } = open();
        store.perform(StoreOp::Create(new(1, 1))).await;
        let Load::Loaded(session) = store.load(SessionId([1; 16]), Timestamp(2)).await else { panic!("must load") };
        near.fill(&near.begin(SessionId([1; 16]), &user()), &session);
        let strangers = StoreOp::Revoke { id: SessionId([1; 16]), user: UserId::new("43").ok(), now: Timestamp(3) };
        assert_eq!(store.perform(strangers).await, revoked(&[], None));
        assert!(matches!(near.find(SessionId([1; 16]), &user(), Timestamp(4)), Found::Verified(_)));
        let op = StoreOp::Revoke { id: SessionId([1; 16]), user: Some(user()), now: Timestamp(3) };
        assert_eq!(store.perform(op.clone()).await, revoked(&[1], None));
        assert_eq!(store.perform(op).await, revoked(&[], None), "ended before");
        assert_eq!(near.find(SessionId([1; 16]), &user(), Timestamp(4)), Found::Nothing);
        assert!(matches!(store.load(SessionId([1; 16]), Timestamp(5)).await, Load::Missing));
        assert!(ids(&store).await.is_empty());
    }

    #[tokio::test]
    async fn revoke_all_raises_the_epoch_and_revoke_others_keeps_one() {
        let Opened { store, .. } = open();
        for id in 1..=3 {
            store.perform(StoreOp::Create(new(id, u64::from(id)))).await;
        }
        let op = StoreOp::RevokeOthers { user: user(), keep: SessionId([2; 16]), now: Timestamp(4) };
        assert_eq!(store.perform(op).await, revoked(&[1, 3], None));
        assert_eq!(ids(&store).await, [2]);
        let op = StoreOp::RevokeAll { user: user(), now: Timestamp(5) };
        assert_eq!(store.perform(op).await, revoked(&[2], Some(1)));
        store.perform(StoreOp::Create(new(7, 6))).await;
        let StoreOutcome::State(state, 1) = store.perform(StoreOp::State(SessionId([7; 16]))).await else {
            panic!("the epoch must be 1")
        };
        assert_eq!(state.epoch, 1, "created under the new epoch");
    }

    #[tokio::test]
    async fn what_was_answered_is_there_after_a_restart_and_expired_sessions_are_swept() {
        let Opened { store, near, path, _folder } = open();
        store.perform(StoreOp::Create(new(1, 1))).await;
        let expiring = Box::new(NewSession { absolute: Timestamp(100), idle: Timestamp(100), ..*new(2, 2) });
        store.perform(StoreOp::Create(expiring)).await;
        let map = ShardMap::first(HashKind::Siphash24, ShardKey([3; 16]), 2, std::collections::BTreeMap::new());
        store.put_shard_map(&map).unwrap();
        store.close();
        drop(store);
        let store = Embedded::open(&path, near).unwrap();
        assert!(matches!(store.load(SessionId([1; 16]), Timestamp(3)).await, Load::Loaded(_)));
        assert_eq!(store.shard_map().unwrap(), Some(map));
        // The first sweep runs at once, with the real time, which is after 100.
        for _ in 0..100 {
            if matches!(store.load(SessionId([2; 16]), Timestamp(3)).await, Load::Missing) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the expired session was not swept");
    }
}
