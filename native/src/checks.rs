//! Active health checks, on the control thread: core says which origin is due, this connects and asks.
//!
//! Each check has a connection of its own, closed afterwards: one that is kept alive would tell of an origin that takes
//! no new ones any more.

use std::cell::{Ref, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use edgekeep_core::balance::OriginId;
use edgekeep_core::config::{HealthConfig, HealthType};
use edgekeep_core::exchange::{Endpoint, Rules};
use edgekeep_core::health::{CheckFailure, CheckRules, Checks, Due, HealthEvent, HealthLimits};
use edgekeep_core::{Entropy, Millis, Timestamp};
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::{HeaderValue, Request};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

use crate::gateway::origin::pool::{dial, encrypt};
use crate::gateway::{Shared, clock, seed};
use crate::tls::Certificates;

/// How often core looks at live traffic, and this at whether there was a reload.
const TICK: Millis = Millis::from_secs(1);
/// How much of an answer is searched for `health.body_contains`.
const MOST_READ: usize = 64 * 1024;

/// The checks of this process.
pub struct Checker {
    shared: Shared,
    checks: RefCell<Checks>,
    /// A check ended, so another one may begin.
    ended: Notify,
}

/// Whom a check asks.
struct Target {
    endpoint: Arc<Endpoint>,
    host: HeaderValue,
}

/// What the loop works with until the next reload.
struct Round {
    rules: Arc<Rules>,
    targets: HashMap<OriginId, Rc<Target>>,
    health: Rc<HealthConfig>,
}

impl Checker {
    pub fn new(shared: &Shared) -> Result<Checker, getrandom::Error> {
        let checks = RefCell::new(Checks::new(Entropy::from_seed(seed()?)));
        Ok(Checker { shared: shared.clone(), checks, ended: Notify::new() })
    }

    /// What core keeps of the checks, for the admin side.
    pub fn checks(&self) -> Ref<'_, Checks> {
        self.checks.borrow()
    }

    /// Checks for ever.
    pub async fn run(self: Rc<Self>) {
        let mut round = self.take_up();
        let mut tick_at = clock::now();
        loop {
            if !Arc::ptr_eq(&round.rules, &self.shared.rules.load()) {
                round = self.take_up();
            }
            let now = clock::now();
            // A clock that stepped back must not stop the ticks.
            if now >= tick_at || tick_at.since(now) > TICK {
                let events = self.checks.borrow_mut().tick(&round.rules.balance, round.rules.pools(), now);
                events.iter().for_each(tell);
                tick_at = now + TICK;
            }
            self.begin_due(&round, now);
            let next = self.checks.borrow().next_at().map_or(tick_at, |at| at.min(tick_at));
            let wait = Duration::from_millis(next.since(now).0.max(1));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.ended.notified() => {}
            }
        }
    }

    fn take_up(&self) -> Round {
        let rules = self.shared.rules.load_full();
        let health = &rules.config.health;
        self.checks.borrow_mut().take_up(
            CheckRules::from(health),
            HealthLimits::from(health),
            rules.pools(),
            clock::now(),
        );
        let target = |endpoint: &Arc<Endpoint>, host: Option<&Arc<str>>| {
            let host = host.map_or(endpoint.url.authority.as_str(), |host| host);
            // A host of the configuration, which was read as one.
            let host = HeaderValue::from_str(host).unwrap_or(HeaderValue::from_static(""));
            Rc::new(Target { endpoint: endpoint.clone(), host })
        };
        let targets = rules.check_targets().map(|(origin, at, host)| (origin.id.clone(), target(at, host))).collect();
        Round { targets, health: Rc::new(health.clone()), rules }
    }

    fn begin_due(self: &Rc<Self>, round: &Round, now: Timestamp) {
        loop {
            let Some(due) = self.checks.borrow_mut().next(now) else { return };
            let Some(target) = round.targets.get(&due.id).cloned() else { continue };
            let (checker, health) = (self.clone(), round.health.clone());
            let certificates = self.shared.certificates.load_full();
            tokio::task::spawn_local(async move {
                let within = Duration::from_millis(health.timeout.0);
                let outcome = match tokio::time::timeout(within, check(&target, &health, &certificates)).await {
                    Ok(outcome) => outcome,
                    Err(_) => Err(CheckFailure::TimedOut(health.timeout)),
                };
                checker.done(&due, outcome);
            });
        }
    }

    fn done(&self, due: &Due, outcome: Result<(), CheckFailure>) {
        let ejections = &self.shared.live.ejections;
        let event = self.checks.borrow_mut().ended(due, outcome, ejections, clock::now());
        event.iter().for_each(tell);
        self.ended.notify_one();
    }
}

fn tell(event: &HealthEvent) {
    match event.is_bad() {
        true => tracing::warn!("{event}"),
        false => tracing::info!("{event}"),
    }
}

/// Over a connection of its own.
async fn check(target: &Target, health: &HealthConfig, certificates: &Certificates) -> Result<(), CheckFailure> {
    let stream = dial(&target.endpoint).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => CheckFailure::Refused,
        _ => CheckFailure::Unreachable(error.to_string()),
    })?;
    match health.r#type {
        HealthType::Tcp => Ok(()),
        HealthType::Http if target.endpoint.is_encrypted() => {
            let stream = encrypt(stream, &target.endpoint, certificates).await;
            let stream = stream.map_err(|error| CheckFailure::Unreachable(error.to_string()))?;
            ask(stream, target, health).await
        }
        HealthType::Http => ask(stream, target, health).await,
    }
}

async fn ask<S>(stream: S, target: &Target, health: &HealthConfig) -> Result<(), CheckFailure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |error: hyper::Error| CheckFailure::Broken(error.to_string());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let mut request = Request::new(Empty::<Bytes>::new());
    // A path of the configuration, which was read as one.
    *request.uri_mut() = health.path.parse().unwrap_or_default();
    let headers = request.headers_mut();
    headers.insert(HOST, target.host.clone());
    headers.insert(USER_AGENT, HeaderValue::from_static("edgekeep-check"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let asked = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let (found, expected) = (response.status().as_u16(), health.expect_status);
        if found != expected {
            return Err(CheckFailure::Status { found, expected });
        }
        match &health.body_contains {
            Some(text) => search(response.into_body(), text).await,
            None => Ok(()),
        }
    };
    let mut connection = std::pin::pin!(connection);
    let mut asked = std::pin::pin!(asked);
    // Both in this task, so that the socket is closed when the time limit drops it. The connection may end before its
    // last bytes are looked at.
    tokio::select! {
        outcome = asked.as_mut() => outcome,
        _ = connection.as_mut() => asked.await,
    }
}

async fn search(mut body: Incoming, text: &str) -> Result<(), CheckFailure> {
    let mut read = Vec::new();
    while read.len() < MOST_READ {
        let Some(frame) = body.frame().await else { break };
        let frame = frame.map_err(|error| CheckFailure::Broken(error.to_string()))?;
        if let Some(data) = frame.data_ref() {
            read.extend(data.iter().take(MOST_READ - read.len()));
        }
    }
    if String::from_utf8_lossy(&read).contains(text) { Ok(()) } else { Err(CheckFailure::Body(MOST_READ)) }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::Path;

    use edgekeep_core::config::Config;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::LocalSet;

    use super::*;

    /// How a check of an origin with this answer ends, and what the origin was asked.
    async fn checked(answer: Vec<u8>, health: &HealthConfig) -> (Result<(), CheckFailure>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (target, certificates) = target(listener.local_addr().unwrap());
        let origin = tokio::task::spawn_local(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && socket.read_buf(&mut head).await.unwrap() > 0 {}
            // The check may have seen enough.
            let _ = socket.write_all(&answer).await;
            String::from_utf8(head).unwrap()
        });
        (check(&target, health, &certificates).await, origin.await.unwrap())
    }

    fn target(at: SocketAddr) -> (Target, Certificates) {
        let config = Config::minimal(&format!("http://{at}")).unwrap();
        let pool = &config.pools[0];
        let endpoint = Arc::new(Endpoint::new(&pool.origins[0].url, None, pool));
        let host = HeaderValue::from_static("app.example");
        (Target { endpoint, host }, Certificates::read(&config, Path::new("")).unwrap())
    }

    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, test)
    }

    fn answer(status: u16, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 {status} Said\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    #[test]
    fn a_check_is_one_request_on_a_connection_of_its_own() {
        let health = HealthConfig { path: "/up?deep=1".to_owned(), ..HealthConfig::default() };
        let (outcome, asked) = run(checked(answer(200, ""), &health));
        assert_eq!(outcome, Ok(()));
        let lines: Vec<&str> = asked.trim_end().split("\r\n").collect();
        assert_eq!(
            lines,
            ["GET /up?deep=1 HTTP/1.1", "host: app.example", "user-agent: edgekeep-check", "connection: close"]
        );
    }

    #[test]
    fn the_status_must_be_the_expected_one() {
        let health = HealthConfig { expect_status: 204, ..HealthConfig::default() };
        assert_eq!(run(checked(answer(204, ""), &health)).0, Ok(()));
        assert_eq!(run(checked(answer(200, ""), &health)).0, Err(CheckFailure::Status { found: 200, expected: 204 }));
        let broken = run(checked(Vec::new(), &health)).0;
        assert!(matches!(broken, Err(CheckFailure::Broken(_))), "{broken:?}");
    }

    #[test]
    fn the_text_must_stand_within_the_first_64_kib_of_the_body() {
        let health = HealthConfig { body_contains: Some("ready".to_owned()), ..HealthConfig::default() };
        let body = |before: usize| answer(200, &("x".repeat(before) + "ready" + &"y".repeat(100)));
        assert_eq!(run(checked(body(MOST_READ - 5), &health)).0, Ok(()));
        assert_eq!(run(checked(body(MOST_READ - 4), &health)).0, Err(CheckFailure::Body(MOST_READ)));
        assert_eq!(run(checked(answer(200, "read"), &health)).0, Err(CheckFailure::Body(MOST_READ)));
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nre\r\n3\r\nady\r\n0\r\n\r\n";
        assert_eq!(run(checked(chunked.into(), &health)).0, Ok(()));
    }

    #[test]
    fn a_tcp_check_asks_nothing_and_a_closed_port_refuses() {
        let health = HealthConfig { r#type: HealthType::Tcp, ..HealthConfig::default() };
        assert_eq!(run(checked(Vec::new(), &health)), (Ok(()), String::new()));
        run(async {
            // A port that was free a moment ago.
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let (target, certificates) = target(free);
            assert_eq!(check(&target, &health, &certificates).await, Err(CheckFailure::Refused));
        });
    }
}
