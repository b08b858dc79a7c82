//! The near cache before a cluster that revokes, loses connections, moves slots and is flushed, while everything that
//! it has to say arrives late, in any order or never. No interleaving may serve as verified what was revoked once its
//! invalidation, or the disconnect or flush that stands for it, has arrived.
//!
//! The model keeps Redis' rules: a read makes its node watch the keys; the first change after it is announced once, on
//! the connection that read; nothing is announced by a connection that died. The same run with a fault built into the
//! cache must fail, or the simulation would prove nothing.

use super::*;
use crate::session::layout::{epoch_key, index_key, record_key, state_key};
use crate::session::steer_session_id;
use wasm_bindgen_test::wasm_bindgen_test;

const NODES: usize = 3;
const USERS: usize = 5;
const READERS: usize = 6;
const STEPS: usize = 500;

/// A mistake that the cache could have; the simulation must notice each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// A fill looks at nothing that happened since the read began.
    TicketUnchecked,
    /// An invalidation drops the entry and forgets about reads under way.
    InvalidateOnlyRemoves,
    /// FLUSHALL drops the entries and forgets about reads under way.
    FlushOnlyClears,
    /// A user's epoch is nobody's key.
    DeafToEpochs,
    /// Slots that moved are as they were.
    DeafToMoves,
    /// A lost connection changes nothing.
    DeafToLosses,
    /// Reads are filled while nobody would tell of a revocation.
    FillsWhileLost,
    /// Once connected again, all is as before the loss.
    ReconnectVerifies,
    /// Entries never grow old.
    Ageless,
}

/// What a node watches for the gateway: who read it, on which of its connections.
#[derive(Clone, Copy)]
struct Watch {
    node: usize,
    connection: u32,
}

/// A key of the store, as far as invalidations go: one per session (its record and state), one per user (the epoch).
#[derive(Default)]
struct Key {
    watch: Option<Watch>,
    /// Announcements on their way.
    flying: u32,
    /// A change was not announced, or its announcement was lost; what stands for it has not come yet.
    lost: bool,
}

struct Session {
    id: SessionId,
    user: usize,
    key: Key,
    revoked: bool,
    /// It is revoked and the gateway was told, one way or another: it must never be verified again.
    told: bool,
    /// The last fill that was accepted: when it was checked, and what the cache was told since.
    filled: Option<Timestamp>,
    void: bool,
    unverified: bool,
}

struct User {
    id: UserId,
    slot: u16,
    key: Key,
    epoch: u64,
    owner: usize,
    /// Where the gateway believes the slot to be.
    known_owner: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Link {
    Up,
    /// Dead, and nobody has noticed.
    Silent,
    /// Dead, and the cache was told.
    Lost,
}

struct Node {
    link: Link,
    connection: u32,
}

enum About {
    Session(usize),
    User(usize),
    /// Something that the cache does not rest on.
    Noise(usize),
    /// FLUSHALL: no key is named.
    Everything,
}

struct Message {
    node: usize,
    about: About,
    /// The sessions whose end it announces.
    ends: Vec<usize>,
}

enum Reader {
    Idle,
    Begun { session: usize, ticket: Ticket, at: Timestamp },
    Read { session: usize, ticket: Ticket, loaded: LoadedSession },
}

#[derive(Default)]
struct Tally {
    verified: u32,
    unverified: u32,
    refused_fills: u32,
}

struct World {
    fault: Fault,
    cache: NearCache,
    entropy: Entropy,
    now: Timestamp,
    users: Vec<User>,
    sessions: Vec<Session>,
    nodes: Vec<Node>,
    readers: Vec<Reader>,
    messages: Vec<Message>,
    tally: Tally,
}

impl World {
    fn new(seed: u64, fault: Fault) -> World {
        let mut entropy = Entropy::for_tests(seed);
        let users = (0..USERS).map(|n| {
            let id = UserId::new(&format!("user {seed} {n}")).unwrap();
            let slot = session_slot(steer_session_id(&id, &mut Entropy::for_tests(0)));
            let owner = n % NODES;
            User { id, slot, key: Key::default(), epoch: 0, owner, known_owner: owner }
        });
        World {
            fault,
            users: users.collect(),
            cache: NearCache::new(1000, &mut entropy),
            entropy,
            now: Timestamp(1_000_000),
            sessions: Vec::new(),
            nodes: (0..NODES).map(|_| Node { link: Link::Up, connection: 0 }).collect(),
            readers: (0..READERS).map(|_| Reader::Idle).collect(),
            messages: Vec::new(),
            tally: Tally::default(),
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.entropy.below(bound as u64) as usize
    }

    /// One of the ten newest sessions.
    fn some_session(&mut self) -> usize {
        let newest = self.sessions.len().min(10);
        self.sessions.len() - 1 - self.below(newest)
    }

    /// A reader that is there, if any is.
    fn some_reader(&mut self, there: fn(&Reader) -> bool) -> usize {
        let first = self.below(READERS);
        (first..first + READERS).map(|at| at % READERS).find(|at| there(&self.readers[*at])).unwrap_or(first)
    }

    fn step(&mut self) -> Result<(), String> {
        if self.sessions.is_empty() {
            self.create();
        }
        match self.below(100) {
            0..5 => self.create(),
            5..20 => self.begin(),
            20..35 => self.read(),
            35..50 => self.fill()?,
            50..70 => self.find()?,
            70..73 => self.touch(),
            73..77 => self.revoke(),
            77..79 => self.revoke_all(),
            79..89 => self.deliver(),
            89..91 => self.die_silently(),
            91..93 => self.notice_loss(),
            93..95 => self.reconnect(),
            95 => self.flush_node(),
            96 => self.move_slot(),
            97 => {
                let user = self.below(USERS);
                self.learn_owner(user);
            }
            _ => self.now = self.now + Millis(self.entropy.below(15_000)),
        }
        self.note_told();
        Ok(())
    }

    fn create(&mut self) {
        let user = self.below(USERS);
        let id = steer_session_id(&self.users[user].id, &mut self.entropy);
        let key = Key::default();
        let session =
            Session { id, user, key, revoked: false, told: false, filled: None, void: false, unverified: false };
        self.sessions.push(session);
    }

    fn begin(&mut self) {
        let (at, session) = (self.below(READERS), self.some_session());
        let Session { id, user, .. } = self.sessions[session];
        let ticket = self.cache.begin(id, &self.users[user].id);
        self.readers[at] = Reader::Begun { session, ticket, at: self.now };
    }

    fn read(&mut self) {
        let at = self.some_reader(|reader| matches!(reader, Reader::Begun { .. }));
        let Reader::Begun { session, ticket, at: checked_at } = self.readers[at] else { return };
        let user = self.sessions[session].user;
        // Asked at the wrong node, it is sent on, and so learns that the slot moved.
        self.learn_owner(user);
        let node = self.users[user].owner;
        // A node whose connection is dead may still have answered, but watches for nobody.
        let watch = Some(Watch { node, connection: self.nodes[node].connection });
        self.sessions[session].key.watch = watch;
        self.users[user].key.watch = watch;
        let loaded = LoadedSession {
            user: self.users[user].id.clone(),
            epoch: self.users[user].epoch,
            live: !self.sessions[session].revoked,
            expires_at: Timestamp(u64::MAX),
            generation: 0,
            checked_at,
        };
        self.readers[at] = Reader::Read { session, ticket, loaded };
    }

    fn fill(&mut self) -> Result<(), String> {
        let at = self.some_reader(|reader| matches!(reader, Reader::Read { .. }));
        let reader = std::mem::replace(&mut self.readers[at], Reader::Idle);
        let Reader::Read { session, ticket, loaded } = reader else {
            self.readers[at] = reader;
            return Ok(());
        };
        let kept = &mut self.sessions[session];
        let user = &self.users[kept.user];
        let filled = match self.fault {
            Fault::TicketUnchecked => self.cache.fill(&self.cache.begin(kept.id, &user.id), &loaded),
            Fault::FillsWhileLost if self.nodes[user.known_owner].link == Link::Lost => {
                self.cache.connected(&[user.slot..=user.slot]);
                self.cache.fill(&self.cache.begin(kept.id, &user.id), &loaded)
            }
            _ => self.cache.fill(&ticket, &loaded),
        };
        if !filled {
            self.tally.refused_fills += 1;
            return Ok(());
        }
        (kept.filled, kept.void, kept.unverified) = (Some(loaded.checked_at), false, false);
        if self.nodes[user.known_owner].link == Link::Lost {
            return Err("filled while nobody would tell of a revocation".to_owned());
        }
        Ok(())
    }

    fn find(&mut self) -> Result<(), String> {
        let session = self.some_session();
        let kept = &self.sessions[session];
        let user = &self.users[kept.user];
        let now = if self.fault == Fault::Ageless { Timestamp(0) } else { self.now };
        let mut found = self.cache.find(kept.id, &user.id, now);
        if let (Fault::ReconnectVerifies, Found::Unverified(entry)) = (self.fault, found)
            && self.nodes[user.known_owner].link == Link::Up
        {
            found = Found::Verified(entry);
        }
        if found == Found::Nothing {
            return Ok(());
        }
        if kept.filled.is_none_or(|at| self.now.since(at) >= NEAR_MAX_AGE) {
            return Err(format!("session {session} is served 60 s after it was checked"));
        }
        if kept.void {
            return Err(format!("session {session} is served after what it rests on was declared void"));
        }
        if matches!(found, Found::Unverified(_)) {
            self.tally.unverified += 1;
            return Ok(());
        }
        if kept.told {
            return Err(format!("session {session} is served as verified though its end was told"));
        }
        if kept.unverified {
            return Err(format!("session {session} is served as verified though its connection was lost since"));
        }
        self.tally.verified += 1;
        Ok(())
    }

    /// A refresh: the session's key changes, and it lives on.
    fn touch(&mut self) {
        let session = self.some_session();
        self.change(About::Session(session), Vec::new());
        let user = self.sessions[session].user;
        let node = self.users[user].owner;
        if self.nodes[node].link == Link::Up {
            self.messages.push(Message { node, about: About::Noise(user), ends: Vec::new() });
        }
    }

    fn revoke(&mut self) {
        let session = self.some_session();
        self.sessions[session].revoked = true;
        self.change(About::Session(session), vec![session]);
    }

    fn revoke_all(&mut self) {
        let user = self.below(USERS);
        let ended: Vec<usize> = (0..self.sessions.len()).filter(|at| self.sessions[*at].user == user).collect();
        self.users[user].epoch += 1;
        ended.iter().for_each(|at| self.sessions[*at].revoked = true);
        self.change(About::User(user), ended);
    }

    /// A key was written: whoever watches it is told once, if they can be reached.
    fn change(&mut self, about: About, ends: Vec<usize>) {
        let (key, owner) = match about {
            About::Session(at) => {
                let session = &mut self.sessions[at];
                (&mut session.key, self.users[session.user].owner)
            }
            About::User(at) => {
                let user = &mut self.users[at];
                (&mut user.key, user.owner)
            }
            About::Noise(_) | About::Everything => return,
        };
        let Some(watch) = key.watch.take() else { return };
        let node = &self.nodes[watch.node];
        if node.connection != watch.connection {
            // That connection's end was told.
        } else if watch.node == owner && node.link == Link::Up {
            key.flying += 1;
            self.messages.push(Message { node: watch.node, about, ends });
        } else {
            key.lost = true;
        }
    }

    fn key(&mut self, about: &About) -> Option<&mut Key> {
        match *about {
            About::Session(at) => Some(&mut self.sessions[at].key),
            About::User(at) => Some(&mut self.users[at].key),
            About::Noise(_) | About::Everything => None,
        }
    }

    fn deliver(&mut self) {
        if self.messages.is_empty() {
            return;
        }
        let at = self.below(self.messages.len());
        let message = self.messages.swap_remove(at);
        if let Some(key) = self.key(&message.about) {
            key.flying -= 1;
        }
        match message.about {
            About::Session(at) => {
                let id = self.sessions[at].id;
                self.sessions[at].void = true;
                let name = if self.entropy.below(2) == 0 { record_key(id) } else { state_key(id) };
                if self.fault == Fault::InvalidateOnlyRemoves {
                    self.cache.entries.remove(&id);
                } else {
                    self.cache.invalidate_key(name.as_bytes());
                }
            }
            About::User(at) => {
                self.sessions.iter_mut().filter(|session| session.user == at).for_each(|session| session.void = true);
                if self.fault != Fault::DeafToEpochs {
                    self.cache.invalidate_key(epoch_key(&self.users[at].id).as_bytes());
                }
            }
            About::Noise(user) => self.cache.invalidate_key(index_key(&self.users[user].id).as_bytes()),
            About::Everything => {
                self.sessions.iter_mut().for_each(|session| session.void = true);
                if self.fault == Fault::FlushOnlyClears {
                    self.cache.entries.clear();
                } else {
                    self.cache.flush();
                }
                (0..USERS).for_each(|user| self.stands_for_all(user));
            }
        }
        message.ends.into_iter().for_each(|at| self.sessions[at].told = true);
    }

    /// The connection stops, with all that was on its way; nobody notices.
    fn die_silently(&mut self) {
        let node = self.below(NODES);
        if self.nodes[node].link == Link::Up {
            self.nodes[node].link = Link::Silent;
            self.drop_messages(node);
        }
    }

    fn drop_messages(&mut self, node: usize) {
        let (lost, kept) = std::mem::take(&mut self.messages).into_iter().partition(|message| message.node == node);
        self.messages = kept;
        for message in lost {
            if let Some(key) = self.key(&message.about) {
                key.flying -= 1;
                key.lost = true;
            }
            if let About::Everything = message.about {
                message.ends.into_iter().for_each(|at| self.sessions[at].key.lost = true);
            }
        }
    }

    fn notice_loss(&mut self) {
        let node = self.below(NODES);
        if self.nodes[node].link == Link::Lost {
            return;
        }
        self.drop_messages(node);
        self.nodes[node].link = Link::Lost;
        self.nodes[node].connection += 1;
        for user in 0..USERS {
            if self.users[user].known_owner == node {
                self.tell_lost(user);
            }
        }
    }

    fn tell_lost(&mut self, user: usize) {
        let slot = self.users[user].slot;
        if self.fault != Fault::DeafToLosses {
            self.cache.disconnected(&[slot..=slot]);
        }
        self.of_user(user).for_each(|session| session.unverified = true);
        self.stands_for_all(user);
    }

    fn reconnect(&mut self) {
        let node = self.below(NODES);
        if self.nodes[node].link != Link::Lost {
            return;
        }
        self.nodes[node].link = Link::Up;
        let slots: Vec<_> =
            self.users.iter().filter(|user| user.known_owner == node).map(|user| user.slot..=user.slot).collect();
        self.cache.connected(&slots);
    }

    /// FLUSHALL on one node.
    fn flush_node(&mut self) {
        let node = self.below(NODES);
        let ended: Vec<usize> =
            (0..self.sessions.len()).filter(|at| self.users[self.sessions[*at].user].owner == node).collect();
        let up = self.nodes[node].link == Link::Up;
        for at in &ended {
            let session = &mut self.sessions[*at];
            session.revoked = true;
            session.key.watch = None;
            session.key.lost |= !up;
        }
        if up {
            self.messages.push(Message { node, about: About::Everything, ends: ended });
        }
    }

    /// A slot goes to another node; the gateway does not know yet.
    fn move_slot(&mut self) {
        let user = self.below(USERS);
        self.users[user].owner = self.below(NODES);
    }

    /// The gateway learns where a slot is: it is flushed, and follows the new node's connection from now on.
    fn learn_owner(&mut self, user: usize) {
        let User { slot, owner, known_owner, .. } = self.users[user];
        if owner == known_owner {
            return;
        }
        self.users[user].known_owner = owner;
        if self.fault != Fault::DeafToMoves {
            self.cache.flush_slots(&[slot..=slot]);
        }
        self.of_user(user).for_each(|session| session.void = true);
        self.stands_for_all(user);
        if self.nodes[owner].link == Link::Lost {
            self.tell_lost(user);
        } else {
            self.cache.connected(&[slot..=slot]);
        }
    }

    fn of_user(&mut self, user: usize) -> impl Iterator<Item = &mut Session> {
        self.sessions.iter_mut().filter(move |session| session.user == user)
    }

    /// A flush or a loss stands for every announcement that did not come.
    fn stands_for_all(&mut self, user: usize) {
        self.users[user].key.lost = false;
        self.of_user(user).for_each(|session| {
            session.key.lost = false;
            session.told |= session.revoked;
        });
    }

    /// Nothing is under way and nothing was lost: the cache knows all there is to know.
    fn note_told(&mut self) {
        for session in &mut self.sessions {
            let user = &self.users[session.user].key;
            let quiet = |key: &Key| key.flying == 0 && !key.lost;
            let flushed = self.messages.iter().any(|message| matches!(message.about, About::Everything));
            session.told |= session.revoked && quiet(&session.key) && quiet(user) && !flushed;
        }
    }
}

fn run(seed: u64, fault: Fault) -> Result<Tally, String> {
    let mut world = World::new(seed, fault);
    for step in 0..STEPS {
        world.step().map_err(|what| format!("seed {seed}, step {step}: {what}"))?;
    }
    Ok(world.tally)
}

#[wasm_bindgen_test(unsupported = test)]
fn no_interleaving_serves_a_revoked_session_after_the_cache_was_told() {
    let mut sum = Tally::default();
    for seed in 0..400 {
        let tally = run(seed, Fault::None).unwrap();
        sum.verified += tally.verified;
        sum.unverified += tally.unverified;
        sum.refused_fills += tally.refused_fills;
    }
    println!("verified {}, unverified {}, refused fills {}", sum.verified, sum.unverified, sum.refused_fills);
    assert!(sum.verified > 1000 && sum.unverified > 400 && sum.refused_fills > 1000, "a run that proves nothing");
}

#[wasm_bindgen_test(unsupported = test)]
fn the_simulation_notices_every_fault_it_is_there_for() {
    for fault in [
        Fault::TicketUnchecked,
        Fault::InvalidateOnlyRemoves,
        Fault::FlushOnlyClears,
        Fault::DeafToEpochs,
        Fault::DeafToMoves,
        Fault::DeafToLosses,
        Fault::FillsWhileLost,
        Fault::ReconnectVerifies,
        Fault::Ageless,
    ] {
        let noticed = (0..400).find_map(|seed| run(seed, fault).err());
        println!("{fault:?}: {noticed:?}");
        assert!(noticed.is_some(), "{fault:?} goes unnoticed");
    }
}
