//! The load of `cargo xtask bench sessions`: a login service and its users over keep-alive connections, each of which
//! sends its next request when the last answer was read and found right.
//!
//! Two ways of speaking: `tokens` is Edgekeep's own, `cookies` that of the libraries beside it. What an operation needs
//! (sessions to validate, chains to refresh, users to end) is prepared before the measurement.
//!
//! On standard output: the line `measuring` when it starts, then one line of JSON, as `load` does.

mod connection;
mod dialect;

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use hdrhistogram::Histogram;

use connection::Connection;
use dialect::{Dialect, Paths, Session};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The longest latency told apart, in nanoseconds: a minute.
const MAX_LATENCY: u64 = 60_000_000_000;

/// How long answers may be outstanding after the end before the run is called hung.
const GRACE: Duration = Duration::from_secs(20);

/// What one user does in the mixed load: sessions begun, and for each of them validations and refreshes.
const MIX_SESSIONS: usize = 4;
const MIX_VALIDATIONS: usize = 8;
const MIX_REFRESHES: usize = 2;

#[derive(Parser)]
struct Options {
    #[arg(long)]
    address: SocketAddr,
    #[arg(long)]
    dialect: Dialect,
    /// What a login service authenticates with; only `tokens` has one.
    #[arg(long, default_value = "")]
    service_token: String,
    #[command(flatten)]
    paths: Paths,
    #[arg(long)]
    operation: Operation,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Seconds before the measurement starts; `revoke-all` and `mixed` have none.
    #[arg(long, default_value_t = 0.5)]
    warmup: f64,
    /// Seconds measured; `revoke-all` and `mixed` may end earlier.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Sessions that are validated in turn, or refreshed.
    #[arg(long, default_value_t = 1024)]
    sessions: usize,
    /// Users whose sessions are ended, and how many each has.
    #[arg(long, default_value_t = 2048)]
    users: usize,
    #[arg(long, default_value_t = 3)]
    sessions_per_user: usize,
    /// `mixed`: how many operations, over how many users that come again.
    #[arg(long, default_value_t = 100_000)]
    operations: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Operation {
    Create,
    Validate,
    Refresh,
    RevokeAll,
    /// No load: shows that a changed credential is refused, a refresh works, and an ended session is over.
    Prove,
    /// All of them, over users that come again, until so many operations were done; at the end no session is left.
    Mixed,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, run(options))
}

async fn run(options: Options) -> anyhow::Result<()> {
    ensure!(options.connections > 0, "--connections starts at 1");
    let load = Rc::new(Load::new(options)?);
    if load.options.operation == Operation::Prove {
        return prove(&load).await;
    }
    let mut preparing = Vec::new();
    for client in 0..load.options.connections {
        preparing.push(tokio::task::spawn_local(Client::prepared(Rc::clone(&load), client)));
    }
    let mut ready = Vec::new();
    for client in preparing {
        ready.push(client.await??);
    }

    let timed = !matches!(load.options.operation, Operation::RevokeAll | Operation::Mixed);
    let warmup = Duration::from_secs_f64(if timed { load.options.warmup } else { 0.0 });
    let seconds = Duration::from_secs_f64(load.options.seconds);
    let end = (load.options.operation != Operation::Mixed).then(|| Instant::now() + warmup + seconds);
    let running: Vec<_> =
        ready.into_iter().map(|client| tokio::task::spawn_local(client.drive(Rc::clone(&load), end))).collect();
    if timed {
        tokio::time::sleep(warmup).await;
    }
    load.latencies.borrow_mut().reset();
    let measured_from = Instant::now();
    let cpu_before = own_cpu()?;
    writeln!(std::io::stdout(), "measuring")?;

    let finish = async {
        for client in running {
            client.await??;
        }
        anyhow::Ok(())
    };
    match end {
        Some(end) => tokio::time::timeout_at((end + GRACE).into(), finish)
            .await
            .context("answers are outstanding: the server hangs")??,
        None => finish.await?,
    }
    let elapsed = measured_from.elapsed().as_secs_f64();
    let cpu_seconds = (own_cpu()? - cpu_before).as_secs_f64();

    let latencies = load.latencies.borrow();
    ensure!(!latencies.is_empty(), "no request finished");
    let micros = |quantile: f64| latencies.value_at_quantile(quantile) as f64 / 1000.0;
    let report = serde_json::json!({
        "requests": latencies.len(),
        "seconds": elapsed,
        "cpu_seconds": cpu_seconds,
        "requests_per_second": latencies.len() as f64 / elapsed,
        "latency_us": { "p50": micros(0.5), "p90": micros(0.9), "p99": micros(0.99), "max": micros(1.0) },
        "not_replicated": load.not_replicated.get(),
        "unavailable": load.unavailable.get(),
    });
    writeln!(std::io::stdout(), "{report}")?;
    Ok(())
}

/// The CPU time of this thread, which is the whole load.
fn own_cpu() -> anyhow::Result<Duration> {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = schedstat.split(' ').next().unwrap_or_default().parse().context("schedstat")?;
    Ok(Duration::from_nanos(nanos))
}

/// What all connections of a run share.
struct Load {
    options: Options,
    first_user: u64,
    users: Cell<u64>,
    operations: Cell<u64>,
    latencies: RefCell<Histogram<u64>>,
    /// Revocations answered 202: done, and not yet on enough replicas.
    not_replicated: Cell<u64>,
    /// Answers of 503, each asked again.
    unavailable: Cell<u64>,
}

impl Load {
    fn new(options: Options) -> anyhow::Result<Load> {
        // Users of earlier runs are others: a run makes fewer than 100 a millisecond.
        let first_user = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64 % 1_000_000_000 * 100;
        Ok(Load {
            options,
            first_user,
            users: Cell::new(0),
            operations: Cell::new(0),
            latencies: RefCell::new(Histogram::new_with_bounds(1, MAX_LATENCY, 3)?),
            not_replicated: Cell::new(0),
            unavailable: Cell::new(0),
        })
    }

    /// A user that nobody had before, of 16 bytes.
    fn new_user(&self) -> String {
        let number = self.users.replace(self.users.get() + 1);
        format!("user-{:011}", self.first_user + number)
    }

    /// Counts an operation of the mixed load; false when they are enough.
    fn one_more(&self) -> bool {
        self.operations.set(self.operations.get() + 1);
        self.operations.get() <= self.options.operations
    }

    /// This connection's part of `count`.
    fn part(&self, count: usize, client: usize) -> usize {
        let of = self.options.connections;
        count / of + usize::from(client < count % of)
    }
}

/// One connection with what it works on.
struct Client {
    connection: Connection,
    sessions: Vec<Session>,
    users: Vec<String>,
}

impl Client {
    async fn prepared(load: Rc<Load>, number: usize) -> anyhow::Result<Client> {
        let connection = Connection::open(load.options.address).await?;
        let mut client = Client { connection, sessions: Vec::new(), users: Vec::new() };
        let options = &load.options;
        match options.operation {
            Operation::Create | Operation::Prove => {}
            Operation::Validate | Operation::Refresh => {
                // A connection without a chain of its own would have nothing to send.
                for _ in 0..load.part(options.sessions, number).max(1) {
                    let session = client.create(&load, load.new_user()).await?;
                    client.sessions.push(session);
                }
            }
            Operation::RevokeAll => {
                for _ in 0..load.part(options.users, number) {
                    let user = load.new_user();
                    for _ in 0..options.sessions_per_user {
                        client.create(&load, user.clone()).await?;
                    }
                    client.users.push(user);
                }
            }
            Operation::Mixed => {
                client.users = (0..load.part(options.users, number).max(1)).map(|_| load.new_user()).collect();
            }
        }
        Ok(client)
    }

    async fn drive(mut self, load: Rc<Load>, end: Option<Instant>) -> anyhow::Result<()> {
        let time_left = || end.is_none_or(|end| Instant::now() < end);
        let mut turn = 0;
        match load.options.operation {
            Operation::Prove => {}
            Operation::Create => {
                while time_left() {
                    self.create(&load, load.new_user()).await?;
                }
            }
            Operation::Validate => {
                while time_left() {
                    let at = turn % self.sessions.len();
                    validate(&mut self.connection, &load, &self.sessions[at]).await?;
                    turn += 1;
                }
            }
            Operation::Refresh => {
                while time_left() {
                    let at = turn % self.sessions.len();
                    refresh(&mut self.connection, &load, &mut self.sessions[at]).await?;
                    turn += 1;
                }
            }
            Operation::RevokeAll => {
                while let Some(user) = self.users.pop().filter(|_| time_left()) {
                    self.revoke_all(&load, &user).await?;
                }
            }
            Operation::Mixed => {
                while load.operations.get() < load.options.operations {
                    let user = self.users[turn % self.users.len()].clone();
                    self.mixed(&load, &user).await?;
                    turn += 1;
                }
            }
        }
        Ok(())
    }

    /// One user's day. It always ends with no session left, even when the operations are enough in the middle.
    async fn mixed(&mut self, load: &Load, user: &str) -> anyhow::Result<()> {
        'day: for _ in 0..MIX_SESSIONS {
            if !load.one_more() {
                break;
            }
            let mut session = self.create(load, user.to_owned()).await?;
            for _ in 0..MIX_REFRESHES {
                for _ in 0..MIX_VALIDATIONS / MIX_REFRESHES {
                    if !load.one_more() {
                        break 'day;
                    }
                    validate(&mut self.connection, load, &session).await?;
                }
                if !load.one_more() {
                    break 'day;
                }
                refresh(&mut self.connection, load, &mut session).await?;
            }
        }
        load.one_more();
        self.revoke_all(load, user).await
    }

    async fn create(&mut self, load: &Load, user: String) -> anyhow::Result<Session> {
        let options = &load.options;
        let request = options.dialect.create(&options.paths, &options.service_token, &user);
        let answer = self.connection.ask(&request, &load.latencies, &load.unavailable).await?;
        options.dialect.session(&answer, user)
    }

    async fn revoke_all(&mut self, load: &Load, user: &str) -> anyhow::Result<()> {
        let options = &load.options;
        let request = options.dialect.revoke_all(&options.paths, &options.service_token, user);
        let answer = self.connection.ask(&request, &load.latencies, &load.unavailable).await?;
        if answer.status == 202 {
            load.not_replicated.set(load.not_replicated.get() + 1);
        }
        Ok(())
    }
}

async fn validate(connection: &mut Connection, load: &Load, session: &Session) -> anyhow::Result<()> {
    let request = load.options.dialect.validate(&load.options.paths, session);
    let answer = connection.ask(&request, &load.latencies, &load.unavailable).await?;
    answer.names(&session.user)
}

async fn refresh(connection: &mut Connection, load: &Load, session: &mut Session) -> anyhow::Result<()> {
    let request = load.options.dialect.refresh(&load.options.paths, session);
    let answer = connection.ask(&request, &load.latencies, &load.unavailable).await?;
    load.options.dialect.refreshed(&answer, session)
}

async fn prove(load: &Rc<Load>) -> anyhow::Result<()> {
    let options = &load.options;
    let mut client = Client::prepared(Rc::clone(load), 0).await?;
    let mut session = client.create(load, load.new_user()).await?;
    let another = client.create(load, session.user.clone()).await?;
    let request = |session: &Session| options.dialect.validate(&options.paths, session);

    validate(&mut client.connection, load, &session).await?;
    let changed = request(&session.changed());
    client.connection.refused(&changed, &session.user).await.context("a changed credential is admitted")?;
    refresh(&mut client.connection, load, &mut session).await?;
    validate(&mut client.connection, load, &session).await?;
    client.revoke_all(load, &session.user).await?;
    for ended in [&session, &another] {
        client.connection.refused(&request(ended), &ended.user).await.context("an ended session is admitted")?;
    }
    Ok(())
}
