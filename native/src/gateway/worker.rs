//! One core: a runtime of its own, its listening sockets, its connections to origins, and what core keeps per core.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use edgekeep_core::Entropy;
use edgekeep_core::exchange::{Live, Local, Rules};
use edgekeep_core::http::Peer;
use edgekeep_core::metrics::Cells;
use http::header::CONNECTION;
use http::{HeaderValue, StatusCode};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::LocalSet;

use super::origins::Origins;
use super::service::serve;
use super::socket::Socket;
use super::streams::{Streams, watch};
use crate::log::{self, AccessLine};
use crate::notify::Notifier;
use crate::store::Store;

/// How often unused connections to origins are looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// After a failure to accept (no file descriptors left), wait a little instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Which is told so often at most.
const ACCEPT_TOLD: Duration = Duration::from_secs(1);
/// While a core drains, how long a connection may be idle until it is closed, at most half of the whole time. Its client
/// may just be sending: one that does is answered, and told to close.
const LINGER: Duration = Duration::from_millis(500);
/// How often a connection of a draining core is looked at.
const LINGER_LOOK: Duration = Duration::from_millis(50);

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
}

pub struct Worker {
    pub rules: Arc<ArcSwap<Rules>>,
    pub live: Arc<Live>,
    pub store: Store,
    pub notify: Notifier,
    pub origins: Origins,
    pub streams: Streams,
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
    seed: [u8; 32],
    mut messages: mpsc::UnboundedReceiver<Message>,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let tasks = LocalSet::new();
    tasks.block_on(&runtime, async move {
        let access_log = shared.rules.load().config.log.access && log::takes_access();
        let worker = Rc::new(Worker {
            rules: shared.rules,
            live: shared.live,
            store: shared.store,
            notify: shared.notify,
            origins: Origins::default(),
            streams: Streams::default(),
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
            accepting.push((tokio::task::spawn_local(accept(worker.clone(), listener.clone())), listener));
        }
        let sweeper = worker.clone();
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(SWEEP_EVERY).await;
                sweeper.origins.sweep();
            }
        });
        tokio::task::spawn_local(watch(worker.clone()));
        let drained = Rc::new(Notify::new());
        loop {
            let message = tokio::select! {
                message = messages.recv() => message,
                () = drained.notified() => None,
            };
            match message {
                None => return Ok(()),
                Some(Message::Cells(answer)) => {
                    let _ = answer.send(worker.with_local(|local| local.metrics.clone()));
                }
                Some(Message::Drain(within, waiting)) => {
                    worker.linger.set(Some(LINGER.min(within / 2)));
                    for (accepting, listener) in accepting.drain(..) {
                        accepting.abort();
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
    })
}

async fn accept(worker: Rc<Worker>, listener: Rc<TcpListener>) {
    let mut told: Option<tokio::time::Instant> = None;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                tokio::task::spawn_local(converse(worker.clone(), stream, peer));
            }
            Err(error) => {
                if told.is_none_or(|told| told.elapsed() >= ACCEPT_TOLD) {
                    tracing::warn!(%error, "cannot accept connections: they wait");
                    told = Some(tokio::time::Instant::now());
                }
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
            tokio::task::spawn_local(converse(worker.clone(), stream, peer));
        }
    }
}

/// One connection, until either side ends it.
async fn converse(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr) {
    let _counted = Counted::new(worker.clone());
    // Without it a small answer may wait for the client's acknowledgement.
    let _ = stream.set_nodelay(true);
    let (header_timeout, idle_timeout, max_header) = {
        let rules = worker.rules.load();
        let server = &rules.config.server;
        (server.header_timeout, server.idle_timeout, server.max_header_bytes)
    };
    let (socket, activity) =
        Socket::new(stream, Duration::from_millis(header_timeout.0), Duration::from_millis(idle_timeout.0));
    let peer = Peer { ip: Some(peer.ip().to_canonical()), secure: false };
    let service = service_fn(|request| {
        let (worker, activity) = (&worker, &activity);
        // Called within: a future that is captured and then awaited takes its place twice.
        async move {
            let mut response = serve(worker.clone(), peer, activity.clone(), request).await?;
            if worker.linger.get().is_some() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .half_close(false)
        .max_buf_size(usize::try_from(max_header.0).unwrap_or(usize::MAX).max(8192))
        .serve_connection(socket, service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    if worker.linger.get().is_none() {
        tokio::select! {
            biased;
            ended = connection.as_mut() => return log_end(&worker, peer.ip, ended),
            () = worker.draining.notified() => {}
        }
    }
    // From now on each answer is the last of its connection. One that stays idle gets none.
    let (begun, linger) = (tokio::time::Instant::now(), worker.linger.get().unwrap_or_default());
    while begun.elapsed() < linger || !activity.is_idle_for(linger) {
        tokio::select! {
            biased;
            ended = connection.as_mut() => return log_end(&worker, peer.ip, ended),
            () = tokio::time::sleep(LINGER_LOOK) => {}
        }
    }
    connection.as_mut().graceful_shutdown();
    log_end(&worker, peer.ip, connection.await);
}

fn log_end(worker: &Worker, client: Option<IpAddr>, ended: hyper::Result<()>) {
    let Err(error) = ended else { return };
    tracing::debug!(%error, "a client's connection ended early");
    // What hyper could not read it has answered itself: requests that no exchange knows.
    if worker.access_log && error.is_parse() {
        let status = if error.is_parse_too_large() {
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
        } else {
            StatusCode::BAD_REQUEST
        };
        log::access(AccessLine::unread(client, status.as_u16()));
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
