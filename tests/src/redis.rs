//! Real Redis servers: a cluster of six nodes (three primaries, each with a replica) or one standalone server, whose
//! processes the scenarios kill, freeze and start again, and whose slots they move.
//!
//! The files of a node stay when it is killed, as a server's disk does.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::certificates::Certificates;
use crate::common::lock;
use crate::deployment::REDIS_PASSWORD;
use crate::process::{Ports, Program, eventually};
use crate::relay::{RELAYED, Scissors, relay};
use crate::resp::{Redis, Reply};
use crate::storage_doc;

/// Redis Cluster's slots.
pub const SLOTS: u16 = 16_384;
/// Three primaries, then a replica of each.
const NODES: usize = 6;
const PRIMARIES: usize = 3;
/// A node that starts answers within this, also on a busy machine with an append-only file to read.
const PATIENCE: Duration = Duration::from_secs(30);

/// How the servers run.
#[derive(Clone, Copy, Debug)]
pub struct RedisOptions {
    /// How long a node may be silent until the others count it as failed.
    pub node_timeout: Duration,
    /// `appendonly yes` and `noeviction`, as the durability promise asks; false: neither.
    pub durable: bool,
    /// `appendfsync always`, where the default may leave out the last two seconds when a node dies.
    pub fsync_always: bool,
    /// `requirepass` and `masterauth`.
    pub password: Option<&'static str>,
    /// Gateways log in as the user that docs/storage.md gives them.
    pub documented_user: bool,
    /// Gateways, and the nodes among themselves, speak TLS.
    pub tls: bool,
    /// The second gateway reaches the nodes through relays that can cut it off.
    pub relayed: bool,
}

impl Default for RedisOptions {
    fn default() -> RedisOptions {
        // Where nobody dies, nobody should be taken for dead on a busy machine.
        RedisOptions {
            node_timeout: Duration::from_secs(5),
            durable: true,
            fsync_always: false,
            password: None,
            documented_user: false,
            tls: false,
            relayed: false,
        }
    }
}

/// One server: its files, and its process while it runs.
struct Server {
    /// Where the scenarios ask it.
    port: u16,
    /// Where gateways and other nodes do: the same, or a port of its own for TLS.
    served: u16,
    bus: u16,
    /// Its name in the cluster.
    id: String,
    program: Mutex<Option<Program>>,
    /// SIGSTOPped: it runs and answers nobody.
    frozen: AtomicBool,
}

/// Six nodes in a cluster, until it is dropped.
pub struct Cluster {
    servers: Vec<Server>,
    options: RedisOptions,
    scissors: Scissors,
    certificates: Option<Certificates>,
    folder: TempDir,
}

impl Cluster {
    /// Starts the nodes and forms the cluster; it takes writes and every replica is in step when this returns.
    pub fn start(options: RedisOptions) -> Result<Cluster> {
        let folder = tempfile::Builder::new().prefix("edgekeep-redis-").tempdir()?;
        let mut cluster = Cluster {
            servers: Vec::new(),
            options,
            scissors: Scissors::default(),
            certificates: certificates(&options, &folder)?,
            folder,
        };
        for _ in 0..NODES {
            let port = Ports::free()?;
            if options.relayed {
                relay(port, &cluster.scissors)?;
            }
            cluster.servers.push(Server {
                port,
                served: if options.tls { Ports::free()? } else { port },
                bus: Ports::free()?,
                id: String::new(),
                program: Mutex::new(None),
                frozen: AtomicBool::new(false),
            });
        }
        for node in 0..NODES {
            cluster.spawn(node)?;
        }
        for node in 0..NODES {
            cluster.wait_for_answers(node)?;
            let id = cluster.call(node, &["CLUSTER", "MYID"])?.text()?.to_owned();
            cluster.servers.get_mut(node).context("a node")?.id = id;
        }
        cluster.form().context("form the cluster")?;
        Ok(cluster)
    }

    fn form(&self) -> Result<()> {
        for node in 0..NODES {
            // Different from the start, or primaries would have to settle it among themselves first.
            self.call(node, &["CLUSTER", "SET-CONFIG-EPOCH", &(node + 1).to_string()])?;
        }
        let share = usize::from(SLOTS) / PRIMARIES;
        for node in 0..PRIMARIES {
            let last = if node + 1 == PRIMARIES { usize::from(SLOTS) } else { share * (node + 1) } - 1;
            self.call(node, &["CLUSTER", "ADDSLOTSRANGE", &(share * node).to_string(), &last.to_string()])?;
        }
        for (node, server) in self.servers.iter().enumerate() {
            for other in 0..node {
                let (port, bus) = (server.served.to_string(), server.bus.to_string());
                self.call(other, &["CLUSTER", "MEET", "127.0.0.1", &port, &bus])?;
            }
        }
        eventually("every node knows every other", PATIENCE, || {
            for node in 0..NODES {
                let known = self.call(node, &["CLUSTER", "NODES"])?.text()?.to_owned();
                if known.lines().count() < NODES || known.contains("handshake") {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        for (node, server) in self.servers.iter().take(PRIMARIES).enumerate() {
            self.call(node + PRIMARIES, &["CLUSTER", "REPLICATE", &server.id])?;
        }
        self.wait_until_whole(PATIENCE)
    }

    fn spawn(&self, node: usize) -> Result<()> {
        let server = self.server(node)?;
        let folder = self.folder.path().join(node.to_string());
        std::fs::create_dir_all(&folder)?;
        let mut command = redis_server(server.port, &self.options)?;
        if let Some(certificates) = &self.certificates {
            speak_tls(&mut command, server.served, certificates);
            command.args(["--tls-cluster", "yes", "--tls-replication", "yes"]);
        }
        command.args(["--cluster-enabled", "yes", "--cluster-port", &server.bus.to_string()]);
        command.args(["--cluster-node-timeout", &self.options.node_timeout.as_millis().to_string()]);
        if self.options.relayed {
            // Clients go on with the host that they were given.
            command.args(["--cluster-preferred-endpoint-type", "unknown-endpoint"]);
        }
        // A replica that was cut off for long still takes over: the other node of its shard is dead.
        command.args(["--cluster-replica-validity-factor", "0"]);
        command.arg("--dir").arg(&folder);
        let log = self.folder.path().join(format!("{node}.log"));
        server.frozen.store(false, Ordering::Release);
        *lock(&server.program) = Some(Program::start("a Redis node", &mut command, &log, None)?);
        Ok(())
    }

    fn wait_for_answers(&self, node: usize) -> Result<()> {
        let server = self.server(node)?;
        let mut program = lock(&server.program);
        let program = program.as_mut().context("the node does not run")?;
        program.wait_until(PATIENCE, || self.call(node, &["PING"]).is_ok())
    }

    /// The addresses of all nodes.
    pub fn addresses(&self) -> Vec<String> {
        self.servers.iter().map(|server| address(&self.options, Ipv4Addr::LOCALHOST, server.served)).collect()
    }

    /// Those that lead through relays, where there are any.
    pub fn relayed_addresses(&self) -> Vec<String> {
        let host = if self.options.relayed { RELAYED } else { Ipv4Addr::LOCALHOST };
        self.servers.iter().map(|server| address(&self.options, host, server.served)).collect()
    }

    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    pub fn nodes(&self) -> RangeInclusive<usize> {
        0..=NODES - 1
    }

    /// One command at one node.
    pub fn call(&self, node: usize, command: &[&str]) -> Result<Reply> {
        Redis::connect(self.server(node)?.port, self.options.password)?.call(command)
    }

    /// One command at the primary of a key's slot.
    pub fn at(&self, key: &str, command: &[&str]) -> Result<Reply> {
        self.call(self.primary_of(self.slot_of(key)?)?, command)
    }

    /// A key's slot, as Redis itself computes it.
    pub fn slot_of(&self, key: &str) -> Result<u16> {
        let node = self.running().next().context("no node runs")?;
        Ok(u16::try_from(self.call(node, &["CLUSTER", "KEYSLOT", key])?.integer()?)?)
    }

    /// Every key of the cluster, from its primaries.
    pub fn keys(&self) -> Result<BTreeSet<String>> {
        let mut keys = BTreeSet::new();
        for node in self.primaries()? {
            keys.extend(self.call(node, &["KEYS", "*"])?.texts()?);
        }
        Ok(keys)
    }

    /// Those that serve slots now.
    pub fn primaries(&self) -> Result<Vec<usize>> {
        let views = self.views()?;
        let view = views.first().context("no node runs")?;
        let serving = view.iter().filter(|line| line.is_primary && !line.failed && !line.slots.is_empty());
        serving.map(|line| self.node_named(&line.id)).collect()
    }

    /// The node that serves a slot, when all running nodes agree.
    pub fn primary_of(&self, slot: u16) -> Result<usize> {
        let mut serving = BTreeSet::new();
        for view in self.views()? {
            let line = view.iter().find(|line| line.is_primary && line.slots.iter().any(|held| held.contains(&slot)));
            serving.insert(self.node_named(&line.with_context(|| format!("nobody serves slot {slot}"))?.id)?);
        }
        ensure!(serving.len() == 1, "slot {slot} is served by {serving:?}: the nodes do not agree");
        serving.first().copied().context("no node runs")
    }

    /// The running replica of a primary.
    pub fn replica_of(&self, primary: usize) -> Result<usize> {
        let id = &self.server(primary)?.id;
        let views = self.views()?;
        let view = views.first().context("no node runs")?;
        let line = view.iter().find(|line| line.replica_of.as_ref() == Some(id) && !line.failed);
        self.node_named(&line.with_context(|| format!("node {primary} has no replica"))?.id)
    }

    /// `kill -9`.
    pub fn kill(&self, node: usize) -> Result<()> {
        lock(&self.server(node)?.program).take().context("the node does not run")?.kill()
    }

    /// Starts a killed node with what its disk holds.
    pub fn restart(&self, node: usize) -> Result<()> {
        self.spawn(node)?;
        self.wait_for_answers(node)
    }

    /// Breaks a replica's link to its primary: it lives, votes, and falls behind. Works where there is a password, which
    /// the replica is made to forget.
    pub fn hold_back(&self, replica: usize, primary: usize) -> Result<()> {
        ensure!(self.options.password.is_some(), "this cluster has no password to forget");
        self.call(replica, &["CONFIG", "SET", "masterauth", "forgotten"])?;
        self.call(primary, &["CLIENT", "KILL", "TYPE", "replica"])?;
        eventually("the link is down", PATIENCE, || {
            Ok(self.call(replica, &["INFO", "replication"])?.text()?.contains("master_link_status:down"))
        })
    }

    /// The replica may follow a primary again.
    pub fn let_follow(&self, replica: usize) -> Result<()> {
        let password = self.options.password.context("this cluster has no password")?;
        self.call(replica, &["CONFIG", "SET", "masterauth", password]).map(|_| ())
    }

    /// SIGSTOP: connections stay open and nothing is answered.
    pub fn freeze(&self, node: usize) -> Result<()> {
        self.server(node)?.frozen.store(true, Ordering::Release);
        lock(&self.server(node)?.program).as_ref().context("the node does not run")?.freeze();
        Ok(())
    }

    pub fn thaw(&self, node: usize) -> Result<()> {
        lock(&self.server(node)?.program).as_ref().context("the node does not run")?.thaw();
        self.server(node)?.frozen.store(false, Ordering::Release);
        Ok(())
    }

    pub fn freeze_all(&self) -> Result<()> {
        self.nodes().try_for_each(|node| self.freeze(node))
    }

    pub fn thaw_all(&self) -> Result<()> {
        self.nodes().try_for_each(|node| self.thaw(node))
    }

    /// Waits until the dead primary's replica serves its slots.
    pub fn wait_for_failover(&self, dead: usize, patience: Duration) -> Result<()> {
        eventually("a replica takes over", patience, || {
            let Ok(views) = self.views() else { return Ok(false) };
            let dead = &self.server(dead)?.id;
            let over = |view: &Vec<NodeLine>| !view.iter().any(|line| line.id == *dead && !line.slots.is_empty());
            Ok(views.iter().all(over) && self.all_say_ok())
        })
    }

    /// Waits until every node runs, serves, and every replica is in step with its primary.
    pub fn wait_until_whole(&self, patience: Duration) -> Result<()> {
        eventually("the cluster is whole", patience, || {
            Ok(self.running().count() == NODES && self.all_say_ok() && self.replicas_in_step().unwrap_or(false))
        })
    }

    /// Moves slots to another primary while clients go on, as `redis-cli --cluster reshard` does. Each slot stays half
    /// moved for `lingering`, so that clients meet ASK and TRYAGAIN.
    pub fn move_slots(&self, slots: impl IntoIterator<Item = u16>, to: usize, lingering: Duration) -> Result<()> {
        for slot in slots {
            let from = self.primary_of(slot)?;
            if from != to {
                self.move_slot(slot, from, to, lingering).with_context(|| format!("move slot {slot}"))?;
            }
        }
        Ok(())
    }

    fn move_slot(&self, slot: u16, from: usize, to: usize, lingering: Duration) -> Result<()> {
        let (source, destination) = (self.server(from)?, self.server(to)?);
        let (number, port) = (slot.to_string(), destination.served.to_string());
        self.call(to, &["CLUSTER", "SETSLOT", &number, "IMPORTING", &source.id])?;
        self.call(from, &["CLUSTER", "SETSLOT", &number, "MIGRATING", &destination.id])?;
        let mut first = true;
        loop {
            let keys = self.call(from, &["CLUSTER", "GETKEYSINSLOT", &number, "1000"])?.texts()?;
            if keys.is_empty() {
                break;
            }
            // Half of them, a pause, the rest.
            let now = if first { keys.len().div_ceil(2) } else { keys.len() };
            let mut migrate = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000"];
            if let Some(password) = self.options.password {
                migrate.extend(["AUTH", password]);
            }
            migrate.push("KEYS");
            migrate.extend(keys.iter().take(now).map(String::as_str));
            self.call(from, &migrate)?;
            if first {
                thread::sleep(lingering);
                first = false;
            }
        }
        // The new owner first: were the old one told first, nobody would serve it for a moment.
        let others = self.primaries()?.into_iter().filter(|node| *node != to && *node != from);
        for node in [to, from].into_iter().chain(others) {
            self.call(node, &["CLUSTER", "SETSLOT", &number, "NODE", &destination.id])?;
        }
        Ok(())
    }

    /// Cuts off who goes through relays, in silence; `for_good` also with new connections.
    pub fn cut_off(&self, for_good: bool) -> Result<()> {
        ensure!(self.options.relayed, "this cluster has no relays");
        self.scissors.cut(for_good);
        Ok(())
    }

    pub fn mend(&self) {
        self.scissors.mend();
    }

    /// The ends of the nodes' logs, for messages.
    pub fn last_words(&self) -> String {
        self.nodes().fold(String::new(), |all, node| {
            let log = self.folder.path().join(format!("{node}.log"));
            all + &format!("the log of Redis node {node}:\n{}", crate::process::tail(&log))
        })
    }

    fn all_say_ok(&self) -> bool {
        let says_ok =
            |node| -> Result<bool> { Ok(self.call(node, &["CLUSTER", "INFO"])?.text()?.contains("cluster_state:ok")) };
        self.running().all(|node| says_ok(node).unwrap_or(false))
    }

    fn replicas_in_step(&self) -> Result<bool> {
        let mut primaries = 0;
        for node in self.running() {
            let info = self.call(node, &["INFO", "replication"])?.text()?.to_owned();
            let says = |what: &str| info.lines().any(|line| line == what);
            if says("role:master") {
                primaries += 1;
                let replica = info.lines().find(|line| line.starts_with("slave0:")).unwrap_or_default();
                if !says("connected_slaves:1") || !replica.contains("state=online") {
                    return Ok(false);
                }
            } else if !says("master_link_status:up") {
                return Ok(false);
            }
        }
        // And nobody still counts one as failed.
        let failed = self.views()?.iter().flatten().any(|line| line.failed);
        Ok(primaries == PRIMARIES && !failed)
    }

    /// What each running node says of all nodes.
    fn views(&self) -> Result<Vec<Vec<NodeLine>>> {
        let view = |node| self.call(node, &["CLUSTER", "NODES"])?.text()?.lines().map(NodeLine::read).collect();
        self.running().map(view).collect()
    }

    /// Those that run and are not frozen.
    fn running(&self) -> impl Iterator<Item = usize> {
        let runs =
            |(_, server): &(usize, &Server)| lock(&server.program).is_some() && !server.frozen.load(Ordering::Acquire);
        self.servers.iter().enumerate().filter(runs).map(|(node, _)| node)
    }

    fn node_named(&self, id: &str) -> Result<usize> {
        self.servers.iter().position(|server| server.id == id).with_context(|| format!("a stranger: node {id}"))
    }

    fn server(&self, node: usize) -> Result<&Server> {
        self.servers.get(node).with_context(|| format!("there is no node {node}"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.scissors.close();
        for server in &self.servers {
            // Nothing of it is needed any more, and a frozen one would not hear anything gentler.
            if let Some(mut program) = lock(&server.program).take() {
                let _ = program.kill();
            }
        }
    }
}

/// A line of `CLUSTER NODES`.
struct NodeLine {
    id: String,
    is_primary: bool,
    failed: bool,
    replica_of: Option<String>,
    slots: Vec<RangeInclusive<u16>>,
}

impl NodeLine {
    /// `<id> <ip:port@bus> <flags> <primary or -> <ping> <pong> <epoch> <link> <slot> …`
    fn read(line: &str) -> Result<NodeLine> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [id, _, flags, primary, _, _, _, _, slots @ ..] = fields.as_slice() else {
            bail!("not a line of CLUSTER NODES: {line:?}");
        };
        let flags: Vec<&str> = flags.split(',').collect();
        let mut held = Vec::new();
        // In brackets: what is being moved.
        for range in slots.iter().filter(|range| !range.starts_with('[')) {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            held.push(first.parse()?..=last.parse()?);
        }
        Ok(NodeLine {
            id: (*id).to_owned(),
            is_primary: flags.contains(&"master"),
            failed: flags.iter().any(|flag| flag.starts_with("fail")),
            replica_of: (*primary != "-").then(|| (*primary).to_owned()),
            slots: held,
        })
    }
}

/// One Redis without a cluster, until it is dropped.
pub struct Standalone {
    /// As a node's.
    port: u16,
    served: u16,
    options: RedisOptions,
    program: Mutex<Option<Program>>,
    certificates: Option<Certificates>,
    folder: TempDir,
}

impl Standalone {
    pub fn start(options: RedisOptions) -> Result<Standalone> {
        let folder = tempfile::Builder::new().prefix("edgekeep-redis-").tempdir()?;
        let certificates = certificates(&options, &folder)?;
        let port = Ports::free()?;
        let served = if options.tls { Ports::free()? } else { port };
        let standalone = Standalone { port, served, options, program: Mutex::new(None), certificates, folder };
        standalone.restart()?;
        Ok(standalone)
    }

    /// Starts it, with what its disk holds when it was killed before.
    pub fn restart(&self) -> Result<()> {
        let mut command = redis_server(self.port, &self.options)?;
        if let Some(certificates) = &self.certificates {
            speak_tls(&mut command, self.served, certificates);
        }
        command.arg("--dir").arg(self.folder.path());
        let log = self.folder.path().join("redis.log");
        let mut program = Program::start("Redis", &mut command, &log, None)?;
        program.wait_until(PATIENCE, || self.call(&["PING"]).is_ok())?;
        *lock(&self.program) = Some(program);
        Ok(())
    }

    pub fn kill(&self) -> Result<()> {
        lock(&self.program).take().context("Redis does not run")?.kill()
    }

    pub fn address(&self) -> String {
        address(&self.options, Ipv4Addr::LOCALHOST, self.served)
    }

    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    pub fn call(&self, command: &[&str]) -> Result<Reply> {
        Redis::connect(self.port, self.options.password)?.call(command)
    }
}

impl Drop for Standalone {
    fn drop(&mut self) {
        if let Some(mut program) = lock(&self.program).take() {
            let _ = program.kill();
        }
    }
}

fn address(options: &RedisOptions, host: Ipv4Addr, port: u16) -> String {
    let scheme = if options.tls { "rediss" } else { "redis" };
    format!("{scheme}://{host}:{port}")
}

fn certificates(options: &RedisOptions, folder: &TempDir) -> Result<Option<Certificates>> {
    options.tls.then(|| Certificates::make(folder.path())).transpose()
}

fn speak_tls(command: &mut Command, port: u16, certificates: &Certificates) {
    command.args(["--tls-port", &port.to_string(), "--tls-auth-clients", "no"]);
    command.arg("--tls-cert-file").arg(certificates.server());
    command.arg("--tls-key-file").arg(certificates.server_key());
    command.arg("--tls-ca-cert-file").arg(certificates.authority());
}

fn redis_server(port: u16, options: &RedisOptions) -> Result<Command> {
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", &Ipv4Addr::LOCALHOST.to_string(), "--save", ""]);
    let (appendonly, policy) = if options.durable { ("yes", "noeviction") } else { ("no", "allkeys-lru") };
    command.args(["--appendonly", appendonly, "--maxmemory-policy", policy]);
    command.args(["--appendfsync", if options.fsync_always { "always" } else { "everysec" }]);
    // A replica that comes back is in step at once, not after a wait for others.
    command.args(["--repl-diskless-sync-delay", "0"]);
    if let Some(password) = options.password {
        command.args(["--requirepass", password, "--masterauth", password]);
    }
    if options.documented_user {
        command.args(storage_doc::gateway_user(REDIS_PASSWORD)?);
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn quick() -> RedisOptions {
        RedisOptions { node_timeout: Duration::from_millis(1500), ..RedisOptions::default() }
    }

    #[test]
    fn a_cluster_forms_and_survives_the_death_of_a_primary() {
        let begun = Instant::now();
        let cluster = Cluster::start(quick()).unwrap();
        println!("formed within {:?}", begun.elapsed());
        let slot = cluster.slot_of("{a}:key").unwrap();
        assert_eq!(slot, cluster.slot_of("a").unwrap());
        cluster.at("a", &["SET", "a", "kept"]).unwrap();
        let primary = cluster.primary_of(slot).unwrap();
        let replica = cluster.replica_of(primary).unwrap();
        assert_ne!(primary, replica);

        cluster.kill(primary).unwrap();
        cluster.wait_for_failover(primary, PATIENCE).unwrap();
        assert_eq!(cluster.primary_of(slot).unwrap(), replica);
        assert_eq!(cluster.at("a", &["GET", "a"]).unwrap(), Reply::Text("kept".into()));

        cluster.restart(primary).unwrap();
        cluster.wait_until_whole(PATIENCE).unwrap();
        assert_eq!(cluster.replica_of(replica).unwrap(), primary, "the dead one is back as a replica");
    }

    #[test]
    fn slots_move_with_their_keys_and_a_frozen_cluster_comes_back() {
        let cluster = Cluster::start(RedisOptions { password: Some("secret"), relayed: true, ..quick() }).unwrap();
        let slot = cluster.slot_of("moved").unwrap();
        let from = cluster.primary_of(slot).unwrap();
        let to = cluster.primaries().unwrap().into_iter().find(|node| *node != from).unwrap();
        cluster.at("moved", &["SET", "moved", "along"]).unwrap();
        cluster.move_slots([slot], to, Duration::ZERO).unwrap();
        eventually("all know", PATIENCE, || Ok(cluster.primary_of(slot).is_ok_and(|node| node == to))).unwrap();
        assert_eq!(cluster.at("moved", &["GET", "moved"]).unwrap(), Reply::Text("along".into()));

        cluster.freeze_all().unwrap();
        thread::sleep(Duration::from_secs(3));
        cluster.thaw_all().unwrap();
        cluster.wait_until_whole(PATIENCE).unwrap();
        assert_eq!(cluster.at("moved", &["GET", "moved"]).unwrap(), Reply::Text("along".into()));
    }

    #[test]
    fn a_standalone_server_keeps_its_data_over_its_death() {
        let redis = Standalone::start(RedisOptions::default()).unwrap();
        redis.call(&["SET", "a", "kept"]).unwrap();
        redis.kill().unwrap();
        redis.restart().unwrap();
        assert_eq!(redis.call(&["GET", "a"]).unwrap(), Reply::Text("kept".into()));
    }
}
