//! Which server has which slots, and how that is kept up to date.
//!
//! redis-rs' cluster client follows redirections by itself and hides them, and sends a bare WAIT to every primary. The
//! near cache must know of both: a reply that was obtained by ASK may not be kept, and a WAIT has to follow its writes
//! on their own connection. So the map of slots is ours, and redis-rs is what speaks to each server.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use edgekeep_core::session::NearCache;
use redis::{Pipeline, Value, cmd};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::node::{Node, Role, Slots, connect};
use super::state::bytes;
use super::{Counters, Login};

/// All slots of a cluster, and of a standalone server, which has no other.
pub const SLOTS: usize = 16_384;
/// How often the map of slots and the replicas' offsets are asked for, in any case.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// However many calls find that the map is old, it is not asked for more often than this.
const ASK_AT_MOST_EVERY: Duration = Duration::from_millis(50);
/// How long the other servers' maps are waited for, once one is there.
const OTHERS_WITHIN: Duration = Duration::from_millis(20);
const NOBODY: u16 = u16::MAX;

/// The servers and the slots, as known now.
pub struct Topology {
    current: ArcSwap<Map>,
    /// Told when a call found that the map is old.
    stale: Notify,
    near: Arc<NearCache>,
    login: Arc<Login>,
    counters: Arc<Counters>,
}

/// Immutable: replaced as a whole.
#[derive(Default)]
struct Map {
    nodes: Vec<Arc<Node>>,
    /// For each slot its primary's and its replica's place in `nodes`.
    primary: Vec<u16>,
    replica: Vec<u16>,
    ranges: Vec<Range>,
}

/// Slots that lie together, as CLUSTER SLOTS tells of them: the primary first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    first: u16,
    last: u16,
    primary: String,
    replicas: Vec<String>,
}

/// A map, and how much is to be given for it.
struct Told {
    ranges: Vec<Range>,
    /// The server stands with the majority of its cluster. One that is cut off from it goes on telling of the past.
    whole: bool,
    /// The highest epoch that the server has heard of: who won an election has it first.
    epoch: u64,
}

impl Told {
    /// The answers to CLUSTER SLOTS and CLUSTER INFO.
    fn read(replies: &[Value], asked: &str) -> Option<Told> {
        let info = replies.get(1).and_then(text).unwrap_or_default();
        Some(Told {
            ranges: read(replies.first()?, asked)?,
            whole: named(info, "cluster_state") == Some("ok"),
            epoch: field(info, "cluster_current_epoch").unwrap_or(0),
        })
    }

    /// The first of equals stays.
    fn better(best: Option<Told>, told: Told) -> Option<Told> {
        match best {
            Some(best) if (best.whole, best.epoch) >= (told.whole, told.epoch) => Some(best),
            _ => Some(told),
        }
    }
}

impl Topology {
    pub fn new(near: Arc<NearCache>, login: Arc<Login>, counters: Arc<Counters>) -> Topology {
        // Until a feed is up nobody would tell us of a revocation.
        near.disconnected(&[0..=SLOTS as u16 - 1]);
        Topology { current: ArcSwap::default(), stale: Notify::new(), near, login, counters }
    }

    pub fn primary(&self, slot: u16) -> Option<Arc<Node>> {
        let map = self.current.load();
        map.nodes.get(usize::from(*map.primary.get(usize::from(slot))?)).cloned()
    }

    /// A replica that may answer for this slot now.
    pub fn replica(&self, slot: u16) -> Option<Arc<Node>> {
        let map = self.current.load();
        let node = map.nodes.get(usize::from(*map.replica.get(usize::from(slot))?))?;
        (node.is_current() && node.is_fed()).then(|| node.clone())
    }

    pub fn node(&self, address: &str) -> Option<Arc<Node>> {
        self.current.load().nodes.iter().find(|node| node.address == address).cloned()
    }

    pub fn nodes(&self) -> Vec<Arc<Node>> {
        self.current.load().nodes.clone()
    }

    /// Whether every slot has a primary that answers.
    pub fn is_complete(&self) -> bool {
        let map = self.current.load();
        map.primary.len() == SLOTS
            && map.primary.iter().all(|at| *at != NOBODY)
            && map.nodes.iter().all(|node| node.role != Role::Primary || (node.is_fed() && node.plain().is_some()))
    }

    pub fn is_stale(&self) {
        self.stale.notify_one();
    }

    /// Keeps the map up to date, for ever.
    pub async fn keep(&self) {
        let mut offsets = HashMap::new();
        loop {
            match self.ask().await {
                Some(ranges) => self.apply(ranges),
                None => tracing::debug!("no server tells the map of slots"),
            }
            if self.login.read_from_replicas {
                offsets = self.judge_replicas(&offsets).await;
            }
            tokio::time::sleep(ASK_AT_MOST_EVERY).await;
            let _ = tokio::time::timeout(ASK_EVERY - ASK_AT_MOST_EVERY, self.stale.notified()).await;
        }
    }

    /// The map as the servers tell it: those that we know or, where none of them stands in a whole cluster, those that
    /// are configured.
    async fn ask(&self) -> Option<Vec<Range>> {
        if !self.login.cluster {
            let primary = self.login.seeds.first()?.clone();
            return Some(vec![Range { first: 0, last: SLOTS as u16 - 1, primary, replicas: Vec::new() }]);
        }
        let mut question = Pipeline::new();
        question.add_command(cmd("CLUSTER").arg("SLOTS").clone());
        question.add_command(cmd("CLUSTER").arg("INFO").clone());
        let mut best = self.ask_known(&question).await;
        for seed in &self.login.seeds {
            if best.as_ref().is_some_and(|told| told.whole) {
                break;
            }
            match connect(seed, &self.login, redis::AsyncConnectionConfig::new(), &Pipeline::new()).await {
                Ok(connection) => match super::node::send(connection, &question, self.login.timeout).await {
                    Ok(replies) => match Told::read(&replies, seed) {
                        Some(told) => best = Told::better(best, told),
                        None => self.login.note_text(format!("{seed}: answers no map of slots: {:?}", replies.first())),
                    },
                    Err(fault) => self.login.note_text(format!("{seed}: {fault:?}")),
                },
                Err(error) => self.login.note(seed, &error),
            }
        }
        best.map(|told| told.ranges)
    }

    /// All at once, so that a server which does not answer holds nobody up: whoever answers soon after the first is
    /// heard too.
    async fn ask_known(&self, question: &Pipeline) -> Option<Told> {
        let mut asked = JoinSet::new();
        for node in self.nodes() {
            let question = question.clone();
            asked.spawn(async move { Told::read(&node.ask(&question).await.ok()?, &node.address) });
        }
        let mut best: Option<Told> = None;
        let mut until = Instant::now() + self.login.timeout * 2;
        while let Ok(Some(answered)) = tokio::time::timeout_at(until.into(), asked.join_next()).await {
            let Ok(Some(told)) = answered else { continue };
            if told.whole {
                until = until.min(Instant::now() + OTHERS_WITHIN);
            }
            best = Told::better(best, told);
        }
        best
    }

    /// Takes over a map. What moved to another server is flushed: its invalidations came, or did not, from the old one.
    fn apply(&self, ranges: Vec<Range>) {
        let old = self.current.load_full();
        if ranges == old.ranges {
            return;
        }
        let mut wanted: HashMap<(String, Role), Slots> = HashMap::new();
        for range in &ranges {
            let slots = range.first..=range.last;
            wanted.entry((range.primary.clone(), Role::Primary)).or_default().push(slots.clone());
            if self.login.read_from_replicas
                && let Some(replica) = range.replicas.first()
            {
                wanted.entry((replica.clone(), Role::Replica)).or_default().push(slots);
            }
        }
        let mut nodes = Vec::new();
        let mut new = Vec::new();
        // What replicas had answered for and do not any more.
        let mut unread: Slots = Vec::new();
        let mut kept: HashMap<(String, Role), Arc<Node>> =
            old.nodes.iter().map(|node| ((node.address.clone(), node.role), node.clone())).collect();
        for ((address, role), slots) in wanted {
            match kept.remove(&(address.clone(), role)) {
                Some(node) => {
                    let before = node.slots();
                    node.set_slots(slots);
                    if *before != *node.slots() {
                        match role {
                            // Its feed is up or down for the slots that it has now.
                            Role::Primary if node.is_fed() => self.near.connected(&node.slots()),
                            Role::Primary => self.near.disconnected(&node.slots()),
                            Role::Replica => unread.extend(before.iter().cloned()),
                        }
                    }
                    nodes.push(node);
                }
                None => new.push((address, role, slots)),
            }
        }
        for (address, role, slots) in new {
            if role == Role::Primary {
                self.near.disconnected(&slots);
            }
            nodes.push(Node::start(
                &address,
                role,
                slots,
                self.near.clone(),
                self.login.clone(),
                self.counters.clone(),
            ));
        }
        let place = |address: &str, role: Role| {
            let at = nodes.iter().position(|node| node.address == address && node.role == role);
            at.and_then(|at| u16::try_from(at).ok()).unwrap_or(NOBODY)
        };
        let (mut primary, mut replica) = (vec![NOBODY; SLOTS], vec![NOBODY; SLOTS]);
        for range in &ranges {
            let slots = usize::from(range.first)..=usize::from(range.last).min(SLOTS - 1);
            primary[slots.clone()].fill(place(&range.primary, Role::Primary));
            if let Some(address) = range.replicas.first() {
                replica[slots].fill(place(address, Role::Replica));
            }
        }
        let moved = moved(&old, &primary, &nodes);
        let complete = !primary.contains(&NOBODY);
        self.current.store(Arc::new(Map { nodes, primary, replica, ranges }));
        // After the new map is in place, so that no reader can begin on the old server and keep what it read.
        if !moved.is_empty() {
            self.near.flush_slots(&moved);
        }
        for gone in kept.into_values() {
            if gone.role == Role::Replica {
                unread.extend(gone.slots().iter().cloned());
            }
            gone.stop();
        }
        // The primary was never asked for what they answered, and tells of no change of it.
        self.near.doubted(&unread);
        self.counters.maps.fetch_add(1, Ordering::Relaxed);
        tracing::info!(complete, "took over a map of Redis slots");
    }

    /// How many replicas each primary has, as it says.
    pub async fn replicas(&self) -> Vec<(String, u64)> {
        let mut question = Pipeline::new();
        question.add_command(cmd("INFO").arg("replication").clone());
        let mut replicas = Vec::new();
        for node in self.nodes().into_iter().filter(|node| node.role == Role::Primary) {
            if let Ok(replies) = node.ask(&question).await
                && let Some(count) = replies.first().and_then(text).and_then(|info| field(info, "connected_slaves"))
            {
                replicas.push((node.address.clone(), count));
            }
        }
        replicas
    }

    /// Which replicas answer reads: the link is up, and their offset has reached what their primary's was at the
    /// previous look. Answers what the primaries' are now.
    async fn judge_replicas(&self, before: &HashMap<String, u64>) -> HashMap<String, u64> {
        let mut question = Pipeline::new();
        question.add_command(cmd("INFO").arg("replication").clone());
        let mut offsets = HashMap::new();
        for node in self.nodes() {
            let info = node.ask(&question).await.ok().and_then(|replies| Some(text(replies.first()?)?.to_owned()));
            let info = info.unwrap_or_default();
            if node.role == Role::Primary {
                offsets.extend(field(&info, "master_repl_offset").map(|offset| (node.address.clone(), offset)));
                continue;
            }
            let up = named(&info, "master_link_status") == Some("up");
            let primary = named(&info, "master_host").zip(named(&info, "master_port"));
            let wanted = primary.and_then(|(host, port)| before.get(&format!("{host}:{port}")));
            let reached = wanted.zip(field(&info, "slave_repl_offset")).is_some_and(|(wanted, own)| own >= *wanted);
            node.set_current(up && reached);
        }
        offsets
    }
}

/// The slots whose primary is another server than before.
fn moved(old: &Map, primary: &[u16], nodes: &[Arc<Node>]) -> Slots {
    let mut moved: Slots = Vec::new();
    for (slot, at) in primary.iter().enumerate() {
        let before = old.primary.get(slot).and_then(|at| old.nodes.get(usize::from(*at))).map(|node| &node.address);
        let after = nodes.get(usize::from(*at)).map(|node| &node.address);
        if before.is_none() || before == after {
            continue;
        }
        let slot = slot as u16;
        match moved.last_mut() {
            Some(range) if *range.end() + 1 == slot => *range = *range.start()..=slot,
            _ => moved.push(slot..=slot),
        }
    }
    moved
}

/// Reads CLUSTER SLOTS. `asked` gives the host where a server does not know its own.
fn read(reply: &Value, asked: &str) -> Option<Vec<Range>> {
    let Value::Array(rows) = reply else { return None };
    let own_host = asked.rsplit_once(':').map_or(asked, |(host, _)| host);
    let address = |value: &Value| -> Option<String> {
        let Value::Array(server) = value else { return None };
        let host = server.first().and_then(text).filter(|host| !host.is_empty() && *host != "?").unwrap_or(own_host);
        let Some(Value::Int(port)) = server.get(1) else { return None };
        Some(if host.contains(':') && !host.starts_with('[') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        })
    };
    let mut ranges = Vec::new();
    for row in rows {
        let Value::Array(row) = row else { return None };
        let (Some(Value::Int(first)), Some(Value::Int(last))) = (row.first(), row.get(1)) else { return None };
        let mut servers = row.iter().skip(2).filter_map(address);
        let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
        if usize::from(last) >= SLOTS || first > last {
            return None;
        }
        let primary = servers.next()?;
        // Servers name the replicas in orders of their own.
        let mut replicas: Vec<String> = servers.collect();
        replicas.sort_unstable();
        ranges.push(Range { first, last, primary, replicas });
    }
    ranges.sort_by_key(|range| range.first);
    (!ranges.is_empty()).then_some(ranges)
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::VerbatimString { text, .. } => Some(text),
        _ => std::str::from_utf8(bytes(value)?).ok(),
    }
}

fn named<'i>(info: &'i str, name: &str) -> Option<&'i str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn field(info: &str, name: &str) -> Option<u64> {
    named(info, name)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use edgekeep_core::session::{Found, LoadedSession, steer_session_id};
    use edgekeep_core::{Entropy, Timestamp, UserId};
    use redis::parse_redis_value;

    use super::*;

    #[test]
    fn a_map_of_slots_is_read_with_its_primaries_and_replicas() {
        let reply = b"*2\r\n*4\r\n:8192\r\n:16383\r\n*3\r\n$9\r\n127.0.0.1\r\n:7001\r\n$1\r\na\r\n*3\r\n$9\r\n127.0.0.1\r\n:7003\r\n$1\r\nb\r\n*3\r\n:0\r\n:8191\r\n*3\r\n$0\r\n\r\n:7000\r\n$1\r\nc\r\n";
        let ranges = read(&parse_redis_value(reply).unwrap(), "10.0.0.9:7000").unwrap();
        assert_eq!(ranges.len(), 2);
        assert_eq!((ranges[0].first, ranges[0].last, ranges[0].primary.as_str()), (0, 8191, "10.0.0.9:7000"));
        assert_eq!(ranges[1].replicas, ["127.0.0.1:7003"]);
        assert_eq!(read(&Value::Nil, "a:1"), None);
        assert_eq!(read(&Value::Array(Vec::new()), "a:1"), None, "a server that knows no slot is no witness");
    }

    #[test]
    fn servers_that_name_replicas_in_other_orders_tell_one_map() {
        let server = |port: i64| Value::Array(vec![Value::BulkString(b"h".to_vec()), Value::Int(port)]);
        let told = |ports: [i64; 3]| {
            let row = [Value::Int(0), Value::Int(16_383)].into_iter().chain(ports.map(server));
            read(&Value::Array(vec![Value::Array(row.collect())]), "h:1").unwrap()
        };
        assert_eq!(told([1, 2, 3]), told([1, 3, 2]));
        assert_ne!(told([1, 2, 3]), told([2, 1, 3]));
    }

    #[test]
    fn a_server_that_is_cut_off_from_its_cluster_is_believed_last() {
        let told = |primary: &str, state: &str, epoch: u64| {
            let server = Value::Array(vec![Value::BulkString(primary.into()), Value::Int(1)]);
            let row = Value::Array(vec![Value::Int(0), Value::Int(16_383), server]);
            let info = format!("cluster_state:{state}\r\ncluster_current_epoch:{epoch}\r\n");
            Told::read(&[Value::Array(vec![row]), Value::BulkString(info.into())], "asked:1").unwrap()
        };
        let believed = |all: [Told; 2]| all.into_iter().fold(None, Told::better).unwrap().ranges[0].primary.clone();
        for cut_off in [6, 9] {
            assert_eq!(believed([told("old", "fail", cut_off), told("new", "ok", 7)]), "new:1");
            assert_eq!(believed([told("new", "ok", 7), told("old", "fail", cut_off)]), "new:1");
        }
        assert_eq!(believed([told("old", "ok", 6), told("new", "ok", 7)]), "new:1");
    }

    #[tokio::test]
    async fn what_came_from_a_replica_that_is_not_read_any_more_is_unverified() {
        let mut entropy = Entropy::from_seed([1; 32]);
        let near = Arc::new(NearCache::new(10, &mut entropy));
        let login = Login { cluster: true, read_from_replicas: true, ..Login::default() };
        let topology = Topology::new(near.clone(), Arc::new(login), Arc::default());
        // Nobody listens there: the feed is said to be up below.
        let map = |replica: &str| {
            vec![Range { first: 0, last: 16_383, primary: "127.0.0.1:1".into(), replicas: vec![replica.into()] }]
        };
        topology.apply(map("127.0.0.1:2"));
        near.connected(&[0..=16_383]);
        let (user, now) = (UserId::new("42").unwrap(), Timestamp(1));
        let id = steer_session_id(&user, &mut entropy);
        let session = LoadedSession {
            user: user.clone(),
            epoch: 0,
            live: true,
            expires_at: Timestamp(9),
            generation: 0,
            checked_at: now,
        };
        assert!(near.fill(&near.begin(id, &user), &session));
        topology.apply(map("127.0.0.1:3"));
        assert!(matches!(near.find(id, &user, now), Found::Unverified(_)));
        assert!(near.fill(&near.begin(id, &user), &session), "the primary's feed is as it was");
        topology.nodes().iter().for_each(|node| node.stop());
    }

    #[test]
    fn what_a_replica_says_of_itself_is_found() {
        let info =
            "# Replication\r\nrole:slave\r\nmaster_host:127.0.0.1\r\nmaster_link_status:up\r\nslave_repl_offset:42\r\n";
        assert_eq!(field(info, "slave_repl_offset"), Some(42));
        assert_eq!(named(info, "master_host"), Some("127.0.0.1"));
        assert_eq!(field(info, "master_repl_offset"), None);
    }
}
