//! `edgekeep bench`: what `cargo xtask bench sessions` runs to measure the store without HTTP, and the floor beside it.
//! Hidden, and only there with the feature `bench`.
//!
//! Both print the line `measuring` when the measurement begins and one line of JSON at its end, as the loads of the
//! benchmark do. What an operation needs is prepared before.

#![allow(clippy::print_stdout, reason = "the answer of this command is its output")]

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueEnum};
use edgekeep_core::exchange::Freshness;
use edgekeep_core::session::{Device, NewSession, Rotate, StoreOp, StoreOutcome, steer_session_id};
use edgekeep_core::{Entropy, Millis, SessionId, UserId, UserIdKind};

use super::Failure;
use super::settings::Settings;
use crate::gateway::clock::now;
use crate::gateway::seed;
use crate::store::redis::floor::Floor;
use crate::store::{Load, Store};

const REFRESH_TTL: Millis = Millis(30 * 86_400_000);
const IDLE_TTL: Millis = Millis(14 * 86_400_000);

#[derive(Subcommand)]
pub enum Bench {
    /// The store's operations, called as the gateway calls them
    Library(Options),
    /// The same scripts and waits from a client that does nothing else
    Floor(Options),
}

#[derive(Args)]
pub struct Options {
    /// The configuration file; its store is asked
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[arg(long)]
    operation: Operation,
    /// Operations under way at any time
    #[arg(long, default_value_t = 64)]
    concurrency: usize,
    #[arg(long, default_value_t = 0.5)]
    warmup: f64,
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Sessions that are read in turn or rotated
    #[arg(long, default_value_t = 1024)]
    sessions: usize,
    /// Users whose sessions are ended, with three sessions each
    #[arg(long, default_value_t = 4096)]
    users: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Operation {
    Create,
    Validate,
    Refresh,
    RevokeAll,
}

const SESSIONS_PER_USER: usize = 3;

pub fn run(bench: &Bench) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = tokio::task::LocalSet::new();
    match bench {
        Bench::Library(options) => {
            let settings = Settings::read(&options.config)?;
            let live = settings.live()?;
            let store = settings.store(&live)?;
            tasks.block_on(&runtime, measure(options, Rc::new(Library(store))))
        }
        Bench::Floor(options) => {
            let settings = Settings::read(&options.config)?;
            tasks.block_on(&runtime, async {
                let floor = Floor::connect(&settings.config.store, options.concurrency).await?;
                measure(options, Rc::new(floor)).await
            })
        }
    }
}

/// What is measured. `worker` tells the tasks apart: the floor has connections for each.
pub trait Asked: 'static {
    async fn create(&self, worker: usize, new: NewSession) -> Result<(), Failure>;
    async fn validate(&self, worker: usize, id: SessionId, user: &UserId) -> Result<(), Failure>;
    async fn rotate(&self, worker: usize, rotate: Rotate) -> Result<(), Failure>;
    /// `sessions`: what the user has.
    async fn revoke_all(&self, worker: usize, user: &UserId, sessions: usize) -> Result<(), Failure>;
}

struct Library(Store);

impl Asked for Library {
    async fn create(&self, _: usize, new: NewSession) -> Result<(), Failure> {
        match self.0.perform(StoreOp::Create(Box::new(new))).await {
            StoreOutcome::Created { .. } => Ok(()),
            other => Err(format!("create: {other:?}").into()),
        }
    }

    async fn validate(&self, _: usize, id: SessionId, user: &UserId) -> Result<(), Failure> {
        match self.0.load(id, user, Freshness::Cached, now()).await {
            Load::Loaded(session) if session.live && session.user == *user => Ok(()),
            other => Err(format!("load: {other:?}").into()),
        }
    }

    async fn rotate(&self, _: usize, rotate: Rotate) -> Result<(), Failure> {
        match self.0.perform(StoreOp::Rotate(rotate)).await {
            StoreOutcome::Rotated(_) => Ok(()),
            other => Err(format!("rotate: {other:?}").into()),
        }
    }

    async fn revoke_all(&self, _: usize, user: &UserId, sessions: usize) -> Result<(), Failure> {
        match self.0.perform(StoreOp::RevokeAll { user: user.clone(), now: now() }).await {
            StoreOutcome::Revoked { ended, .. } if ended.len() == sessions => Ok(()),
            other => Err(format!("revoke all: {other:?}").into()),
        }
    }
}

impl Asked for Floor {
    async fn create(&self, worker: usize, new: NewSession) -> Result<(), Failure> {
        Ok(Floor::create(self, worker, new).await?)
    }

    async fn validate(&self, worker: usize, id: SessionId, user: &UserId) -> Result<(), Failure> {
        Ok(Floor::validate(self, worker, id, user).await?)
    }

    async fn rotate(&self, worker: usize, rotate: Rotate) -> Result<(), Failure> {
        Ok(Floor::rotate(self, worker, rotate).await?)
    }

    async fn revoke_all(&self, worker: usize, user: &UserId, _: usize) -> Result<(), Failure> {
        Ok(Floor::revoke_all(self, worker, user, now().0).await?)
    }
}

/// What all tasks share.
struct Shared<A> {
    asked: Rc<A>,
    operation: Operation,
    entropy: RefCell<Entropy>,
    /// Chosen at random, so that users of earlier runs are others.
    first_user: u64,
    users: Cell<u64>,
    micros: RefCell<Vec<u32>>,
}

/// One task with what it works on.
#[derive(Default)]
struct Worker {
    number: usize,
    sessions: Vec<(UserId, SessionId, u32)>,
    users: Vec<UserId>,
}

async fn measure<A: Asked>(options: &Options, asked: Rc<A>) -> Result<(), Failure> {
    let mut entropy = Entropy::from_seed(seed()?);
    let shared = Rc::new(Shared {
        asked,
        operation: options.operation,
        first_user: entropy.below(90_000_000_000),
        entropy: RefCell::new(entropy),
        users: Cell::new(0),
        micros: RefCell::new(Vec::with_capacity(1 << 20)),
    });
    let part =
        |count: usize, worker: usize| count / options.concurrency + usize::from(worker < count % options.concurrency);
    let mut preparing = Vec::new();
    for number in 0..options.concurrency {
        let (sessions, users) = (part(options.sessions, number).max(1), part(options.users, number));
        preparing.push(tokio::task::spawn_local(Worker::prepared(shared.clone(), number, sessions, users)));
    }
    let mut ready = Vec::new();
    for worker in preparing {
        ready.push(worker.await??);
    }

    let timed = options.operation != Operation::RevokeAll;
    let warmup = Duration::from_secs_f64(if timed { options.warmup } else { 0.0 });
    let end = Instant::now() + warmup + Duration::from_secs_f64(options.seconds);
    let running: Vec<_> =
        ready.into_iter().map(|worker| tokio::task::spawn_local(worker.drive(shared.clone(), end))).collect();
    if timed {
        tokio::time::sleep(warmup).await;
    }
    shared.micros.borrow_mut().clear();
    let begun = Instant::now();
    println!("measuring");
    for worker in running {
        worker.await??;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let mut micros = shared.micros.borrow_mut();
    micros.sort_unstable();
    let at = |quantile: f64| micros.get(((micros.len() as f64 - 1.0) * quantile) as usize).copied().unwrap_or(0);
    let figures = serde_json::json!({
        "requests": micros.len(),
        "seconds": seconds,
        // Counted from outside, with all threads.
        "cpu_seconds": 0.0,
        "requests_per_second": micros.len() as f64 / seconds,
        "latency_us": { "p50": at(0.5), "p99": at(0.99), "max": at(1.0) },
    });
    println!("{figures}");
    Ok(())
}

impl<A: Asked> Shared<A> {
    /// A user that nobody had before, of 16 bytes.
    fn new_user(&self) -> Result<UserId, Failure> {
        let number = self.users.replace(self.users.get() + 1);
        Ok(UserId::new(&format!("user-{:011}", self.first_user + number))?)
    }

    fn new_session(&self, user: &UserId) -> NewSession {
        let created_at = now();
        NewSession {
            id: steer_session_id(user, &mut self.entropy.borrow_mut()),
            user: user.clone(),
            user_kind: UserIdKind::Text,
            device_info: serde_json::json!({}),
            created_at,
            client_id: "app".into(),
            access_ttl: None,
            key_id: 1,
            absolute: created_at + REFRESH_TTL,
            idle: created_at + IDLE_TTL,
            max_per_user: 50,
            evict_oldest: true,
        }
    }

    fn note(&self, begun: Instant) {
        self.micros.borrow_mut().push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
}

impl Worker {
    async fn prepared<A: Asked>(
        shared: Rc<Shared<A>>,
        number: usize,
        sessions: usize,
        users: usize,
    ) -> Result<Worker, Failure> {
        let mut worker = Worker { number, ..Worker::default() };
        match shared.operation {
            Operation::Create => {}
            Operation::Validate | Operation::Refresh => {
                for _ in 0..sessions {
                    let user = shared.new_user()?;
                    let new = shared.new_session(&user);
                    worker.sessions.push((user, new.id, 0));
                    shared.asked.create(number, new).await?;
                }
            }
            Operation::RevokeAll => {
                for _ in 0..users {
                    let user = shared.new_user()?;
                    for _ in 0..SESSIONS_PER_USER {
                        shared.asked.create(number, shared.new_session(&user)).await?;
                    }
                    worker.users.push(user);
                }
            }
        }
        Ok(worker)
    }

    async fn drive<A: Asked>(mut self, shared: Rc<Shared<A>>, end: Instant) -> Result<(), Failure> {
        let device = Some(Device::from_user_agent(b"edgekeep-load"));
        let mut turn = 0;
        while Instant::now() < end {
            let begun = Instant::now();
            match shared.operation {
                Operation::Create => {
                    let user = shared.new_user()?;
                    shared.asked.create(self.number, shared.new_session(&user)).await?;
                }
                Operation::Validate => {
                    let (user, id, _) = &self.sessions[turn % self.sessions.len()];
                    shared.asked.validate(self.number, *id, user).await?;
                }
                Operation::Refresh => {
                    let at = turn % self.sessions.len();
                    let (_, id, counter) = &mut self.sessions[at];
                    let rotate =
                        Rotate { id: *id, presented: *counter, now: now(), key_id: 1, device, idle_ttl: IDLE_TTL };
                    shared.asked.rotate(self.number, rotate).await?;
                    *counter += 1;
                }
                Operation::RevokeAll => {
                    let Some(user) = self.users.pop() else { break };
                    shared.asked.revoke_all(self.number, &user, SESSIONS_PER_USER).await?;
                }
            }
            shared.note(begun);
            turn += 1;
        }
        Ok(())
    }
}
