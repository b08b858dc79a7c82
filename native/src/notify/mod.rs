//! Tells the Workers of `edge.notify` what was revoked, so that they need not find out within their 60 s.
//!
//! The data path only puts tombstones into a channel. On the control thread each Worker has a queue of its own, so that
//! one which is down holds up none of the others: a call at a time, as many tombstones in it as a Worker takes, tried
//! again with back-off until it is taken or the tombstones' time is over. Nothing rests on it: queues are bounded,
//! what falls out is counted, and a gateway that is killed forgets them; the bound of 60 s holds all the same.

mod client;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use edgekeep_core::Entropy;
use edgekeep_core::config::WebUrl;
use edgekeep_core::exchange::Rules;
use edgekeep_core::session::Tombstone;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::gateway::clock::now;
use client::Client;

/// Revocations that wait for the control thread.
const CHANNEL: usize = 8192;
/// Tombstones that wait for one Worker: about 10 MB. Beyond, the oldest goes: its 60 s are over first.
const MOST_WAITING: usize = 100_000;
/// A call that takes longer has failed.
const CALL_WITHIN: Duration = Duration::from_secs(10);
/// The first wait after a failure; each further one is twice as long, up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_LAST: Duration = Duration::from_secs(15);

/// The data path's end.
#[derive(Clone)]
pub struct Notifier {
    revocations: mpsc::Sender<Vec<Tombstone>>,
    counts: Arc<Counts>,
}

/// What became of tombstones, over all Workers.
#[derive(Default)]
pub struct Counts {
    posted: AtomicU64,
    pending: AtomicU64,
    dropped: AtomicU64,
}

/// A copy of [`Counts`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Taken by a Worker.
    pub posted: u64,
    /// Not taken yet.
    pub pending: u64,
    /// Given up: too many waited, or their time was over.
    pub dropped: u64,
}

/// The control thread's end.
pub struct Revocations {
    revocations: mpsc::Receiver<Vec<Tombstone>>,
    counts: Arc<Counts>,
}

pub fn channel() -> (Notifier, Revocations) {
    let (sender, receiver) = mpsc::channel(CHANNEL);
    let counts = Arc::<Counts>::default();
    (Notifier { revocations: sender, counts: counts.clone() }, Revocations { revocations: receiver, counts })
}

impl Notifier {
    /// Passes tombstones on; never waits.
    pub fn tell(&self, tombstones: Vec<Tombstone>) {
        let count = tombstones.len() as u64;
        if count == 0 {
            return;
        }
        self.counts.pending.fetch_add(count, Ordering::Relaxed);
        if self.revocations.try_send(tombstones).is_err() {
            self.counts.gave_up(count);
        }
    }

    pub fn counted(&self) -> Counted {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Counts { posted, pending, dropped } = &*self.counts;
        Counted { posted: read(posted), pending: read(pending), dropped: read(dropped) }
    }

    /// Waits until nothing is pending.
    pub async fn settled(&self) {
        while self.counted().pending > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Counts {
    fn gave_up(&self, count: u64) {
        self.pending.fetch_sub(count, Ordering::Relaxed);
        self.dropped.fetch_add(count, Ordering::Relaxed);
    }
}

impl Revocations {
    /// Posts until the data path is gone. Needs a `LocalSet`.
    pub async fn post(mut self, rules: Arc<ArcSwap<Rules>>, mut entropy: Entropy) {
        let mut workers: HashMap<WebUrl, Worker> = HashMap::new();
        while let Some(tombstones) = self.revocations.recv().await {
            let current = rules.load_full();
            let named = &current.config.edge.notify;
            workers.retain(|url, worker| named.contains(url) && !worker.task.is_finished());
            for url in named {
                let queue = match workers.get(url) {
                    Some(worker) => &worker.queue,
                    None => {
                        let entropy = Entropy::from_seed(entropy.bytes());
                        let worker = Worker::start(url.clone(), rules.clone(), self.counts.clone(), entropy);
                        &workers.entry(url.clone()).or_insert(worker).queue
                    }
                };
                queue.push(&tombstones);
            }
            self.counts.pending.fetch_sub(tombstones.len() as u64, Ordering::Relaxed);
        }
    }
}

/// A Worker that is told. Dropped, it is told no longer.
struct Worker {
    queue: Rc<Queue>,
    task: JoinHandle<()>,
}

impl Worker {
    fn start(url: WebUrl, rules: Arc<ArcSwap<Rules>>, counts: Arc<Counts>, entropy: Entropy) -> Worker {
        let queue = Rc::new(Queue { waiting: RefCell::default(), gone: Cell::new(0), came: Notify::new(), counts });
        Worker { queue: queue.clone(), task: tokio::task::spawn_local(post_all(url, queue, rules, entropy)) }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
        self.queue.give_up_all();
    }
}

/// What one Worker has not taken yet, oldest first.
struct Queue {
    waiting: RefCell<VecDeque<Tombstone>>,
    /// How many were there before the first that waits.
    gone: Cell<u64>,
    came: Notify,
    counts: Arc<Counts>,
}

impl Queue {
    fn push(&self, tombstones: &[Tombstone]) {
        let mut waiting = self.waiting.borrow_mut();
        waiting.extend(tombstones.iter().cloned());
        self.counts.pending.fetch_add(tombstones.len() as u64, Ordering::Relaxed);
        let over = waiting.len().saturating_sub(MOST_WAITING);
        waiting.drain(..over);
        self.gone.set(self.gone.get() + over as u64);
        self.counts.gave_up(over as u64);
        self.came.notify_one();
    }

    /// The next call's body, without tombstones whose time is over, and the number up to which it goes.
    fn batch(&self, max_bytes: usize) -> Option<(String, u64)> {
        let mut waiting = self.waiting.borrow_mut();
        let now = now();
        while waiting.front().is_some_and(|tombstone| tombstone.until() <= now) {
            waiting.pop_front();
            self.gone.set(self.gone.get() + 1);
            self.counts.gave_up(1);
        }
        if waiting.is_empty() {
            return None;
        }
        let (body, count) = Tombstone::batch(waiting.iter(), max_bytes);
        Some((body, self.gone.get() + count as u64))
    }

    /// A call was taken. Some of what was in it may have fallen out meanwhile.
    fn taken(&self, up_to: u64) {
        let count = up_to.saturating_sub(self.gone.get());
        self.waiting.borrow_mut().drain(..count as usize);
        self.gone.set(self.gone.get() + count);
        self.counts.pending.fetch_sub(count, Ordering::Relaxed);
        self.counts.posted.fetch_add(count, Ordering::Relaxed);
    }

    fn give_up_all(&self) {
        let mut waiting = self.waiting.borrow_mut();
        self.counts.gave_up(waiting.len() as u64);
        waiting.clear();
    }
}

async fn post_all(url: WebUrl, queue: Rc<Queue>, rules: Arc<ArcSwap<Rules>>, mut entropy: Entropy) {
    let mut client = Client::new(&url);
    let mut failures = 0;
    loop {
        let current = rules.load_full();
        if !current.config.edge.notify.contains(&url) {
            // A reload removed it. Should another one name it again, the next revocation starts anew.
            queue.give_up_all();
            return;
        }
        // What a Worker reads of a call of its own: its configuration is made from this one.
        let max_bytes = usize::try_from(current.config.limits.json_body.0).unwrap_or(usize::MAX);
        let Some((body, up_to)) = queue.batch(max_bytes) else {
            queue.came.notified().await;
            continue;
        };
        let prefix = current.config.server.api_prefix.as_str();
        let call = client.post(prefix, current.edge_credential(), body);
        let failed = match tokio::time::timeout(CALL_WITHIN, call).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("no answer within 10 s".to_owned()),
        };
        match failed {
            None => {
                queue.taken(up_to);
                if failures > 0 {
                    tracing::info!(worker = %url.origin, failures, "a Worker takes tombstones again");
                }
                failures = 0;
            }
            Some(error) => {
                client.close();
                if failures == 0 {
                    let pending = queue.waiting.borrow().len();
                    tracing::warn!(worker = %url.origin, %error, pending, "a Worker does not take tombstones: trying on");
                }
                tokio::time::sleep(pause(failures, entropy.unit())).await;
                failures += 1;
            }
        }
    }
}

/// The wait after so many failures before: doubled each time, and up to a fifth shorter, so that gateways which lost one
/// Worker do not come back to it at once.
fn pause(failures: u32, chance: f64) -> Duration {
    let full = RETRY_FIRST.saturating_mul(1 << failures.min(10)).min(RETRY_LAST);
    full.mul_f64(1.0 - 0.2 * chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests;
