//! One core: a runtime of its own, its listening sockets, its connections to origins, and what core keeps per core.
//! What a client's connection is made of is `connection`'s.

use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use edgekeep_core::Entropy;
use edgekeep_core::exchange::{Live, Local, Rules};
use edgekeep_core::metrics::Cells;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::task::LocalSet;

use super::batch::Batch;
use super::connection::converse;
use super::deadlines::Deadlines;
use super::origin::pool::Origins;
use super::streams::{Streams, watch};
use crate::log;
use crate::notify::Notifier;
use crate::store::Store;
use crate::tls::Certificates;

/// How often unused connections to origins are looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// After a failure to accept (no file descriptors left), wait a little instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Which is told so often at most.
const ACCEPT_TOLD: Duration = Duration::from_secs(1);
/// While a core drains, how long a connection may be idle until it is closed, at most half of the whole time. Its client
/// may just be sending: one that does is answered, and told to close.
const LINGER: Duration = Duration::from_millis(500);

/// What a core is asked from outside.
pub enum Message {
    /// A copy of what it counted.
    Cells(oneshot::Sender<Cells>),
    /// Stop accepting, finish what is in flight, at most for so long.
    Drain(Duration, Waiting),
}

/// Connections that wait to be accepted when a gateway drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// The kernel would reset them with their socket: they are taken in.
    Accepted,
    /// A successor has their socket.
    Left,
}

/// What every core gets.
#[derive(Clone)]
pub struct Shared {
    pub rules: Arc<ArcSwap<Rules>>,
    pub live: Arc<Live>,
    pub store: Store,
    pub notify: Notifier,
    pub certificates: Arc<ArcSwap<Certificates>>,
}

pub struct Worker {
    pub rules: Arc<ArcSwap<Rules>>,
    pub live: Arc<Live>,
    pub store: Store,
    pub notify: Notifier,
    pub certificates: Arc<ArcSwap<Certificates>>,
    pub batch: Batch,
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
    /// Set while it drains: how long an idle connection stays open.
    linger: Cell<Option<Duration>>,
}

impl Worker {
    /// Never held over an await: this core's state for the time of one decision.
    pub fn with_local<R>(&self, decide: impl FnOnce(&mut Local) -> R) -> R {
        decide(&mut self.local.borrow_mut())
    }

    /// Resolves when this core drains, also when it does so already.
    pub async fn until_draining(&self) {
        if self.linger.get().is_none() {
            self.draining.notified().await;
        }
    }

    /// Resolves when this core has been draining for as long as an idle connection stays open.
    pub async fn until_lingered(&self) {
        self.until_draining().await;
        tokio::time::sleep(self.linger.get().unwrap_or_default()).await;
    }

    /// While this core drains: how long an idle connection stays open.
    pub fn linger(&self) -> Option<Duration> {
        self.linger.get()
    }

    /// Waits until nothing is in flight, at most for so long.
    async fn is_empty(&self, within: Duration) {
        let empty = async {
            while self.connections.get() > 0 {
                self.empty.notified().await;
            }
        };
        let _ = tokio::time::timeout(within, empty).await;
    }
}

/// Runs one core until it has drained. Blocks its thread.
pub fn run(
    shared: Shared,
    listeners: Vec<std::net::TcpListener>,
    places: Arc<Semaphore>,
    seed: [u8; 32],
    messages: mpsc::UnboundedReceiver<Message>,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let tasks = LocalSet::new();
    tasks.block_on(&runtime, async move {
        let access_log = shared.rules.load().config.log.access && log::takes_access();
        let batch = Batch::default();
        let worker = Rc::new(Worker {
            rules: shared.rules,
            live: shared.live,
            store: shared.store,
            notify: shared.notify,
            certificates: shared.certificates,
            origins: Origins::new(&batch),
            batch: batch.clone(),
            streams: Streams::default(),
            deadlines: Rc::default(),
            access_log,
            local: RefCell::new(Local::new(Entropy::from_seed(seed))),
            connections: Cell::new(0),
            empty: Notify::new(),
            draining: Notify::new(),
            linger: Cell::new(None),
        });
        let mut accepting = Vec::new();
        for listener in listeners {
            let listener = Rc::new(TcpListener::from_std(listener)?);
            accepting
                .push((tokio::task::spawn_local(accept(worker.clone(), listener.clone(), places.clone())), listener));
        }
        tokio::task::spawn_local(async move { batch.send_always().await });
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
        // What blocks the thread is polled at every turn of it, so that is the least there is.
        tokio::task::spawn_local(obey(worker, messages, accepting)).await.map_err(std::io::Error::other)
    })
}

/// Does what is asked from outside, until the core has drained.
async fn obey(
    worker: Rc<Worker>,
    mut messages: mpsc::UnboundedReceiver<Message>,
    mut accepting: Vec<(tokio::task::JoinHandle<()>, Rc<TcpListener>)>,
) {
    let drained = Rc::new(Notify::new());
    loop {
        let message = tokio::select! {
            message = messages.recv() => message,
            () = drained.notified() => None,
        };
        match message {
            None => return,
            Some(Message::Cells(answer)) => {
                let _ = answer.send(worker.with_local(|local| local.metrics.clone()));
            }
            Some(Message::Drain(within, waiting)) => {
                worker.linger.set(Some(LINGER.min(within / 2)));
                for (accepting, listener) in accepting.drain(..) {
                    accepting.abort();
                    // Its handle on the socket goes with it. So this one is the last, and closes right after the last
                    // look: whoever comes in between would be reset.
                    let _ = accepting.await;
                    if waiting == Waiting::Accepted {
                        accept_waiting(&worker, &listener);
                    }
                }
                worker.draining.notify_waiters();
                // Beside this loop, which goes on answering what the core counted.
                let (worker, drained) = (worker.clone(), drained.clone());
                tokio::task::spawn_local(async move {
                    worker.is_empty(within).await;
                    drained.notify_one();
                });
            }
        }
    }
}

async fn accept(worker: Rc<Worker>, listener: Rc<TcpListener>, places: Arc<Semaphore>) {
    let mut told: Option<tokio::time::Instant> = None;
    let mut tell = |why: &dyn std::fmt::Display| {
        if told.is_none_or(|told| told.elapsed() >= ACCEPT_TOLD) {
            tracing::warn!(error = %why, "cannot accept connections: they wait");
            told = Some(tokio::time::Instant::now());
        }
    };
    loop {
        if places.available_permits() == 0 {
            tell(&"as many clients are connected as files are meant for them");
        }
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                tokio::task::spawn_local(converse(worker.clone(), stream, peer, Some(place)));
            }
            Err(error) => {
                tell(&error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Takes in whoever the kernel has accepted already.
fn accept_waiting(worker: &Rc<Worker>, listener: &TcpListener) {
    // Not through the runtime, which knows of connections only since its last look.
    while let Ok((socket, peer)) = SockRef::from(listener).accept() {
        let stream = socket.set_nonblocking(true).and_then(|()| TcpStream::from_std(socket.into()));
        if let (Ok(stream), Some(peer)) = (stream, peer.as_socket()) {
            // The last ones: there is nobody left who could need their place.
            tokio::task::spawn_local(converse(worker.clone(), stream, peer, None));
        }
    }
}

/// A core, held by what it has to finish before it ends: a connection, or a request, which may outlive its connection.
pub struct Counted(Rc<Worker>);

impl Counted {
    pub fn new(worker: Rc<Worker>) -> Counted {
        worker.connections.set(worker.connections.get() + 1);
        Counted(worker)
    }
}

impl Deref for Counted {
    type Target = Worker;

    fn deref(&self) -> &Worker {
        &self.0
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
