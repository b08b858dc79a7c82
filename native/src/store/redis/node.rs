//! One Redis server and our connections to it, kept up for as long as the server is one of ours:
//! - the *feed*: reads for the near cache, with RESP3 tracking on, so that the server tells us on this very connection
//!   when what we read changes; it is asked for a sign of life twice a second, and two seconds without one count as a
//!   disconnect;
//! - the *plain* one: everything else that nobody has to wait for replicas for;
//! - the *writers*: a few connections, each used by one task alone, because a WAIT speaks of the writes of its own
//!   connection only. A writer takes what waits and sends it as one pipeline with one WAIT at its end.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use edgekeep_core::session::NearCache;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, IntoConnectionInfo, Pipeline, ProtocolVersion, PushInfo,
    PushKind, RedisConnectionInfo, RedisError, Value, cmd,
};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::fault::{Fault, fault};
use super::script;
use super::{Counters, Login};

/// Connections for writes per primary: while one waits for its replicas, others send.
const WRITERS: usize = 4;
/// The most scripts in one pipeline.
const GROUP: usize = 128;
/// The most writes that wait for one primary; more are answered `Unavailable` at once.
const QUEUE: usize = 16_384;
/// How long WAIT waits for replicas.
pub const WAIT_MS: u64 = 50;
/// Commands that may wait inside a connection.
const BUFFER: usize = 4_096;
const PING_EVERY: Duration = Duration::from_millis(500);
/// Without a sign of life for so long, a connection counts as cut.
const SILENCE: Duration = Duration::from_secs(2);
const RECONNECT_FIRST: Duration = Duration::from_millis(50);
const RECONNECT_LAST: Duration = Duration::from_secs(1);

/// What a server is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Primary,
    /// Answers reads that fill the near cache.
    Replica,
}

pub type Slots = Vec<RangeInclusive<u16>>;

pub struct Node {
    pub address: String,
    pub role: Role,
    /// Which slots its feed speaks for.
    slots: ArcSwap<Slots>,
    feed: ArcSwapOption<MultiplexedConnection>,
    /// Counts the feeds: the end of one is told late, and must not be taken for the end of the next.
    feeds: AtomicU64,
    plain: ArcSwapOption<MultiplexedConnection>,
    writes: mpsc::Sender<Write>,
    /// A replica whose link is up and which is not behind.
    current: AtomicBool,
    near: Arc<NearCache>,
    login: Arc<Login>,
    counters: Arc<Counters>,
    tasks: std::sync::Mutex<Vec<JoinHandle<()>>>,
}

/// A script to be performed and waited for.
struct Write {
    call: Cmd,
    answer: oneshot::Sender<Result<Written, Fault>>,
}

/// A script's answer, and whether enough replicas have what it wrote.
#[derive(Debug)]
pub struct Written {
    pub reply: Value,
    pub replicated: bool,
}

impl Node {
    /// Starts to connect. Called on the store's runtime.
    pub fn start(
        address: &str,
        role: Role,
        slots: Slots,
        near: Arc<NearCache>,
        login: Arc<Login>,
        counters: Arc<Counters>,
    ) -> Arc<Node> {
        let (writes, queue) = mpsc::channel(QUEUE);
        let node = Arc::new(Node {
            address: address.to_owned(),
            role,
            slots: ArcSwap::from_pointee(slots),
            feed: ArcSwapOption::empty(),
            feeds: AtomicU64::new(0),
            plain: ArcSwapOption::empty(),
            writes,
            current: AtomicBool::new(false),
            near,
            login,
            counters,
            tasks: std::sync::Mutex::default(),
        });
        let mut tasks =
            vec![tokio::spawn(keep(node.clone(), Kind::Feed)), tokio::spawn(keep(node.clone(), Kind::Plain))];
        if role == Role::Primary {
            let queue = Arc::new(Mutex::new(queue));
            tasks.extend((0..WRITERS).map(|_| tokio::spawn(write(node.clone(), queue.clone()))));
        }
        if let Ok(mut kept) = node.tasks.lock() {
            *kept = tasks;
        }
        node
    }

    /// Ends its connections: the server is none of ours any more.
    pub fn stop(&self) {
        for task in self.tasks.lock().map(|mut tasks| std::mem::take(&mut *tasks)).unwrap_or_default() {
            task.abort();
        }
        self.feed.store(None);
        self.plain.store(None);
    }

    pub fn slots(&self) -> Arc<Slots> {
        self.slots.load_full()
    }

    pub fn set_slots(&self, slots: Slots) {
        self.slots.store(Arc::new(slots));
    }

    pub fn feed(&self) -> Option<MultiplexedConnection> {
        self.feed.load().as_deref().cloned()
    }

    pub fn plain(&self) -> Option<MultiplexedConnection> {
        self.plain.load().as_deref().cloned()
    }

    pub fn is_fed(&self) -> bool {
        self.feed.load().is_some()
    }

    /// Whether a replica may answer reads.
    pub fn is_current(&self) -> bool {
        self.current.load(Ordering::Acquire)
    }

    /// A replica that was current and is not any more may have kept invalidations back.
    pub fn set_current(&self, current: bool) {
        if self.current.swap(current, Ordering::AcqRel) && !current {
            self.near.doubted(&self.slots());
        }
    }

    /// Performs a script on this primary and waits for its replicas.
    pub async fn write(&self, call: Cmd) -> Result<Written, Fault> {
        let (answer, written) = oneshot::channel();
        self.writes.try_send(Write { call, answer }).map_err(|_| Fault::Down)?;
        written.await.unwrap_or(Err(Fault::Down))
    }

    /// Commands on the feed: what they read is tracked from now on.
    pub async fn read_tracked(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Fault> {
        send(self.feed().ok_or(Fault::Down)?, pipeline, self.login.timeout).await
    }

    /// Commands whose answers nobody keeps.
    pub async fn ask(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Fault> {
        send(self.plain().ok_or(Fault::Down)?, pipeline, self.login.timeout).await
    }

    fn feed_lost(&self) {
        if self.feed.swap(None).is_some() {
            self.counters.feeds_lost.fetch_add(1, Ordering::Relaxed);
            match self.role {
                Role::Primary => self.near.disconnected(&self.slots()),
                // The primary's feed goes on: only what came from here is in doubt.
                Role::Replica => self.near.doubted(&self.slots()),
            }
            self.current.store(false, Ordering::Release);
            tracing::warn!(server = %self.address, "lost the connection that tells of revocations");
        }
    }
}

pub async fn send(
    mut connection: MultiplexedConnection,
    pipeline: &Pipeline,
    timeout: Duration,
) -> Result<Vec<Value>, Fault> {
    match tokio::time::timeout(timeout, connection.send_packed_commands(pipeline, 0, pipeline.len())).await {
        Ok(Ok(replies)) if replies.len() == pipeline.len() => Ok(replies),
        Ok(Ok(_) | Err(_)) => Err(Fault::Down),
        Err(_) => Err(Fault::TimedOut),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Feed,
    Plain,
}

/// Keeps one connection up.
async fn keep(node: Arc<Node>, kind: Kind) {
    let mut pause = RECONNECT_FIRST;
    loop {
        match open(&node, kind).await {
            Ok(connection) => {
                pause = RECONNECT_FIRST;
                let place = if kind == Kind::Feed { &node.feed } else { &node.plain };
                place.store(Some(Arc::new(connection.clone())));
                if kind == Kind::Feed && node.role == Role::Primary {
                    // From here on the server tells us: reads may be kept.
                    node.near.connected(&node.slots());
                    tracing::debug!(server = %node.address, "told of revocations");
                }
                watch(connection).await;
                if kind == Kind::Feed {
                    node.feed_lost();
                } else {
                    node.plain.store(None);
                }
            }
            Err(error) => {
                node.login.note(&node.address, &error);
                tracing::debug!(server = %node.address, %error, "cannot connect");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RECONNECT_LAST);
    }
}

/// Returns when the connection gave no sign of life for too long.
async fn watch(connection: MultiplexedConnection) {
    let mut alive = Instant::now();
    loop {
        let mut connection = connection.clone();
        let ping = cmd("PING");
        let left = SILENCE.saturating_sub(alive.elapsed());
        match tokio::time::timeout(left, connection.send_packed_command(&ping)).await {
            Ok(Ok(_)) => alive = Instant::now(),
            Ok(Err(_)) | Err(_) => return,
        }
        tokio::time::sleep(PING_EVERY).await;
    }
}

async fn open(node: &Arc<Node>, kind: Kind) -> Result<MultiplexedConnection, RedisError> {
    let mut config = AsyncConnectionConfig::new();
    if kind == Kind::Feed {
        let weak = Arc::downgrade(node);
        let feed = node.feeds.fetch_add(1, Ordering::AcqRel) + 1;
        config = config.set_push_sender(move |push: PushInfo| -> Result<(), ()> {
            if let Some(node) = weak.upgrade() {
                heard(&node, feed, &push);
            }
            Ok(())
        });
    }
    let mut setup = Pipeline::new();
    if kind == Kind::Feed {
        setup.add_command(cmd("CLIENT").arg("TRACKING").arg("ON").clone());
    }
    if node.role == Role::Replica {
        setup.add_command(cmd("READONLY"));
    }
    connect(&node.address, &node.login, config, &setup).await
}

/// What the server says of its own accord, on this feed.
fn heard(node: &Node, feed: u64, push: &PushInfo) {
    match push.kind {
        PushKind::Invalidate => match push.data.first() {
            Some(Value::Array(keys)) => {
                node.counters.invalidations.fetch_add(keys.len() as u64, Ordering::Relaxed);
                for key in keys {
                    if let Value::BulkString(key) = key {
                        node.near.invalidate_key(key);
                    }
                }
            }
            // FLUSHALL or FLUSHDB: everything this server holds.
            _ => node.near.flush_slots(&node.slots()),
        },
        PushKind::Disconnection if node.feeds.load(Ordering::Acquire) == feed => node.feed_lost(),
        _ => {}
    }
}

/// A connection with its set-up done, within the time that a call may take.
pub async fn connect(
    address: &str,
    login: &Login,
    config: AsyncConnectionConfig,
    setup: &Pipeline,
) -> Result<MultiplexedConnection, RedisError> {
    let opening = async {
        let client = Client::open(login.info(address)?)?;
        let config = config
            .set_connection_timeout(Some(login.timeout))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(BUFFER);
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        if !setup.is_empty() {
            for reply in connection.send_packed_commands(setup, 0, setup.len()).await? {
                reply.extract_error()?;
            }
        }
        Ok(connection)
    };
    let timed_out = || RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
    tokio::time::timeout(login.timeout * 2, opening).await.map_err(|_| timed_out())?
}

/// One writer: takes what waits, sends it as one pipeline with a WAIT at its end, answers.
async fn write(node: Arc<Node>, queue: Arc<Mutex<mpsc::Receiver<Write>>>) {
    let mut connection: Option<MultiplexedConnection> = None;
    loop {
        let mut group = {
            let mut queue = queue.lock().await;
            let Some(first) = queue.recv().await else { return };
            let mut group = vec![first];
            while group.len() < GROUP
                && let Ok(more) = queue.try_recv()
            {
                group.push(more);
            }
            group
        };
        // Whoever waited for these has given up and been told that nothing is known.
        group.retain(|write| !write.answer.is_closed());
        if group.is_empty() {
            continue;
        }
        if connection.is_none() {
            let mut setup = Pipeline::new();
            script::all().into_iter().for_each(|script| {
                setup.add_command(script.load());
            });
            match connect(&node.address, &node.login, AsyncConnectionConfig::new(), &setup).await {
                Ok(opened) => connection = Some(opened),
                Err(error) => node.login.note(&node.address, &error),
            }
        }
        let Some(open) = &connection else {
            group.into_iter().for_each(|write| {
                let _ = write.answer.send(Err(Fault::Down));
            });
            continue;
        };
        let wait = node.login.wait_replicas;
        let mut pipeline = Pipeline::with_capacity(group.len() + 1);
        group.iter_mut().for_each(|write| {
            pipeline.add_command(std::mem::take(&mut write.call));
        });
        if wait > 0 {
            pipeline.add_command(cmd("WAIT").arg(wait).arg(WAIT_MS).clone());
        }
        let within = node.login.timeout + Duration::from_millis(WAIT_MS);
        match send(open.clone(), &pipeline, within).await {
            Ok(mut replies) => {
                let acknowledged = if wait > 0 { replies.pop() } else { None };
                let replicated = match acknowledged {
                    None => true,
                    Some(Value::Int(count)) => count >= i64::from(wait),
                    Some(_) => false,
                };
                for (write, reply) in group.into_iter().zip(replies) {
                    let _ = write.answer.send(match fault(&reply) {
                        Some(fault) => Err(fault),
                        None => Ok(Written { reply, replicated }),
                    });
                }
            }
            Err(fault) => {
                // What was sent may still be performed: nothing more may come after it on this connection.
                connection = None;
                group.into_iter().for_each(|write| {
                    let _ = write.answer.send(Err(fault.clone()));
                });
            }
        }
    }
}

impl Login {
    pub(super) fn info(&self, address: &str) -> Result<redis::ConnectionInfo, RedisError> {
        let (host, port) = address.rsplit_once(':').unwrap_or((address, "6379"));
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = port.parse().unwrap_or(6379);
        let mut settings = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3);
        if let Some(username) = &self.username {
            settings = settings.set_username(username);
        }
        if let Some(password) = &self.password {
            settings = settings.set_password(password);
        }
        let address = if self.tls {
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        Ok(address.into_connection_info()?.set_redis_settings(settings))
    }
}
