//! One core: a runtime of its own, its listening sockets, its connections to origins, and what core keeps per core.
//! What a client's connection is made of is `connection`'s.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use edgekeep_core::Entropy;
use edgekeep_core::exchange::{Exchange, Finished, Live, Local, Rules};
use edgekeep_core::metrics::Cells;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::LocalSet;

use super::connection::converse;
use super::deadlines::Deadlines;
use super::origins::Origins;
use super::streams::{Streams, watch};
use crate::notify::Notifier;
use crate::store::Store;
use crate::tls::Certificates;

/// How often unused connections to origins are looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// After a failure to accept (no file descriptors left), wait a little instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// What a core is asked from outside.
pub enum Message {
    /// A copy of what it counted.
    Cells(oneshot::Sender<Cells>),
    /// Stop accepting, finish what is in flight, at most for so long.
    Drain(Duration),
}

/// What every core gets.
#[derive(Clone)]
pub struct Shared {
    pub rules: Arc<ArcSwap<Rules>>,
    pub live: Arc<Live>,
    pub certificates: Arc<ArcSwap<Certificates>>,
    pub store: Store,
    pub notify: Notifier,
}

pub struct Worker {
    pub rules: Arc<ArcSwap<Rules>>,
    pub live: Arc<Live>,
    pub certificates: Arc<ArcSwap<Certificates>>,
    pub store: Store,
    pub notify: Notifier,
    pub origins: Origins,
    pub streams: Streams,
    pub deadlines: Rc<Deadlines>,
    pub access_log: bool,
    local: RefCell<Local>,
    connections: Cell<usize>,
    /// Told when the last connection of a draining core ended.
    empty: Notify,
    /// Told once, when the core drains.
    draining: Notify,
    is_draining: Cell<bool>,
}

impl Worker {
    /// Never held over an await: this core's state for the time of one decision.
    pub fn with_local<R>(&self, decide: impl FnOnce(&mut Local) -> R) -> R {
        decide(&mut self.local.borrow_mut())
    }

    /// Resolves when this core drains, also when it does so already.
    pub async fn until_draining(&self) {
        if !self.is_draining.get() {
            self.draining.notified().await;
        }
    }

    pub fn log_access(&self, exchange: &Exchange, method: &http::Method, how: Finished, took: Duration) {
        tracing::info!(
            target: "access",
            client = exchange.client().ip.map(tracing::field::display),
            %method,
            route = exchange.route(),
            status = exchange.status(),
            user = exchange.user_log_name(),
            micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            aborted = (how == Finished::Aborted).then_some(true),
        );
    }
}

/// Runs one core until it has drained. Blocks its thread.
pub fn run(
    shared: Shared,
    listeners: Vec<std::net::TcpListener>,
    seed: [u8; 32],
    mut messages: mpsc::UnboundedReceiver<Message>,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let tasks = LocalSet::new();
    tasks.block_on(&runtime, async move {
        let access_log = shared.rules.load().config.log.access;
        let worker = Rc::new(Worker {
            rules: shared.rules,
            live: shared.live,
            certificates: shared.certificates,
            store: shared.store,
            notify: shared.notify,
            origins: Origins::default(),
            streams: Streams::default(),
            deadlines: Rc::default(),
            access_log,
            local: RefCell::new(Local::new(Entropy::from_seed(seed))),
            connections: Cell::new(0),
            empty: Notify::new(),
            draining: Notify::new(),
            is_draining: Cell::new(false),
        });
        let mut accepting = Vec::new();
        for listener in listeners {
            let listener = TcpListener::from_std(listener)?;
            accepting.push(tokio::task::spawn_local(accept(worker.clone(), listener)));
        }
        let sweeper = worker.clone();
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(SWEEP_EVERY).await;
                sweeper.origins.sweep();
            }
        });
        tokio::task::spawn_local(watch(worker.clone()));
        let deadlines = worker.deadlines.clone();
        tokio::task::spawn_local(async move { deadlines.watch().await });
        while let Some(message) = messages.recv().await {
            match message {
                Message::Cells(answer) => {
                    let _ = answer.send(worker.with_local(|local| local.metrics.clone()));
                }
                Message::Drain(within) => {
                    accepting.iter().for_each(tokio::task::JoinHandle::abort);
                    worker.is_draining.set(true);
                    worker.draining.notify_waiters();
                    let empty = async {
                        while worker.connections.get() > 0 {
                            worker.empty.notified().await;
                        }
                    };
                    let _ = tokio::time::timeout(within, empty).await;
                    break;
                }
            }
        }
        Ok(())
    })
}

async fn accept(worker: Rc<Worker>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                tokio::task::spawn_local(converse(worker.clone(), stream, peer));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Counts a connection for as long as it lives.
pub struct Counted(Rc<Worker>);

impl Counted {
    pub fn new(worker: Rc<Worker>) -> Counted {
        worker.connections.set(worker.connections.get() + 1);
        Counted(worker)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
        if self.0.connections.get() == 0 {
            self.0.empty.notify_waiters();
            self.0.empty.notify_one();
        }
    }
}
