//! A gateway from start to end: takes over the listening sockets or opens them, starts the cores, reports to the other
//! gateways and serves the admin side on the control thread, reloads on SIGHUP, and when it has to go (SIGTERM, Ctrl-C, a
//! successor) finishes what is in flight.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use edgekeep_core::Entropy;
use edgekeep_core::config::StoreKind;
use edgekeep_core::exchange::{Live, Secrets};
use rustix::process::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::settings::Settings;
use super::{Failure, files};
use crate::admin::{Admin, serve_admin};
use crate::checks::Checker;
use crate::gateway::listen::{Passed, Sockets};
use crate::gateway::{Gateway, Shared, Waiting, cores, seed};
use crate::handover::{self, Host, Predecessor, Successor};
use crate::log;
use crate::notify;
use crate::reports::Reports;
use crate::resolve::Names;
use crate::store::{OpenError, Store};

/// How long a gateway that ends goes on telling Workers of revocations.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// What a predecessor may take beyond its drain to end and free the store.
const TO_END: Duration = Duration::from_secs(5);
/// How often a successor looks whether the store is free.
const STORE_LOOK: Duration = Duration::from_millis(10);

/// How to start.
pub struct Start {
    pub settings: Settings,
    pub secrets: Secrets,
    /// The file to read again on SIGHUP, if the configuration came from one.
    pub file: Option<PathBuf>,
    /// Take the place of the gateway that runs, if one does.
    pub takeover: bool,
}

/// Why a gateway ends.
enum End {
    Asked,
    Replaced(Successor),
    Failed(String),
}

/// Runs until a signal or a successor ends it. `ready` is called once requests are answered; `beside` runs along, and
/// ends the gateway with its error if it fails.
pub fn run(
    start: Start,
    ready: impl FnOnce(&Settings),
    beside: impl Future<Output = Result<(), Failure>> + 'static,
) -> Result<(), Failure> {
    let Start { settings, secrets, file, takeover } = start;
    let refused = settings.refused();
    if !refused.is_empty() {
        return Err(format!("this configuration asks for what is not built yet:\n{}", refused.join("\n")).into());
    }
    // Before there are threads: it takes systemd's variables out of the environment.
    let passed = by_systemd()?;
    let _log = log::start(&settings.config.log);
    raise_file_limit();
    for warning in settings.warnings(&secrets) {
        tracing::warn!("{warning}");
    }
    let config = &settings.config;
    let admin_token = settings.admin_token()?;
    let handover_at = handover::path(&settings.path(&config.session.keys), config.admin.listen.port());
    let (predecessor, passed) = match takeover {
        true if !passed.sockets.is_empty() => {
            return Err("--takeover: systemd passed sockets (LISTEN_FDS): there is nothing to take over".into());
        }
        true => Predecessor::ask(&handover_at)?.map_or((None, passed), |(old, passed)| (Some(old), passed)),
        false => (None, passed),
    };
    let threads = cores(config.server.threads);
    let sockets = Rc::new(Sockets::open(&config.server.listen, config.admin.listen, threads, passed)?);
    let (keys, fresh) = match &predecessor {
        // As at a reload, a mistyped path must not log everybody out.
        Some(_) => (files::existing_keys(&settings.path(&config.session.keys))?, false),
        None => settings.keys()?,
    };
    if fresh {
        tracing::info!(path = %settings.path(&config.session.keys).display(), "made a new key file");
    }
    let certificates = Arc::new(ArcSwap::from_pointee(settings.certificates()?));
    let live = Arc::new(settings.live()?);
    if predecessor.is_some() {
        // What is wrong with them is better known while the old one still serves.
        settings.rules(keys.clone(), settings.first_shard_map()?, secrets.clone(), &live)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before a successor waits for its store, which may take as long as the old gateway drains: a SIGHUP in that time is
    // answered after it, and does not end the process.
    let mut hangup = {
        let _inside = runtime.enter();
        signal(SignalKind::hangup())?
    };
    let (store, predecessor) = store(&settings, &live, predecessor)?;
    let map = settings.shard_map(&store)?;
    let rules = Arc::new(ArcSwap::from_pointee(settings.rules(keys, map, secrets, &live)?));
    let (notify, revocations) = notify::channel();
    let shared = Shared { rules, live, certificates, store, notify };

    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async move {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut names = Names::new(&shared);
        names.resolve().await;
        shared.live.open();
        let gateway = Arc::new(Gateway::start(&shared, &sockets)?);
        tokio::task::spawn_local(names.run());
        tokio::task::spawn_local(revocations.post(shared.rules.clone(), Entropy::from_seed(seed()?)));
        let reports = Rc::new(Reports::new(&shared, settings.config.admin.listen.port())?);
        let reporting = reports.clone();
        tokio::task::spawn_local(async move { reporting.run().await });
        let checker = Rc::new(Checker::new(&shared)?);
        tokio::task::spawn_local(checker.clone().run());
        let admin = Admin {
            shared: shared.clone(),
            gateway: gateway.clone(),
            reports: reports.clone(),
            checker,
            token: admin_token,
        };
        let admin_listener = tokio::net::TcpListener::from_std(sockets.for_admin()?)?;
        let admin = tokio::task::spawn_local(serve_admin(Rc::new(admin), admin_listener));
        let beside = tokio::task::spawn_local(async move { beside.await.map_err(|e| e.to_string()) });
        let mut beside = std::pin::pin!(beside);
        if let Some(predecessor) = predecessor {
            predecessor.ready(false);
        }
        let mut successor = tokio::task::spawn_local(successor(handover_at, sockets, shared.clone()));
        let mut no_successor = false;
        tracing::info!(listen = ?settings.config.server.listen, admin = %settings.config.admin.listen, "ready");
        tell_systemd(&[NotifyState::MainPid(std::process::id()), NotifyState::Ready]);
        ready(&settings);
        let end = loop {
            tokio::select! {
                _ = terminate.recv() => break End::Asked,
                _ = interrupt.recv() => break End::Asked,
                _ = hangup.recv() => reload(&settings, file.as_ref(), &shared, &reports).await,
                came = &mut successor, if !no_successor => match came {
                    Ok(successor) => break End::Replaced(successor),
                    Err(error) => {
                        tracing::error!(%error, "no successor can take over");
                        no_successor = true;
                    }
                },
                ended = beside.as_mut() => break match ended {
                    Ok(Err(error)) => End::Failed(error),
                    Err(error) => End::Failed(error.to_string()),
                    Ok(Ok(())) => End::Asked,
                },
            }
        };
        let within = drain_timeout(&shared);
        let waiting = match &end {
            End::Replaced(successor) => {
                tracing::info!(?within, successor = successor.pid, "a successor is ready: draining");
                tell_systemd(&[NotifyState::MainPid(successor.pid)]);
                if !successor.waits_for_store {
                    admin.abort();
                }
                Waiting::Left
            }
            End::Asked | End::Failed(_) => {
                tracing::info!(?within, "draining");
                tell_systemd(&[NotifyState::Stopping]);
                // Its handles on the sockets go before the cores': then these know who was waiting when the port closed.
                successor.abort();
                if !no_successor {
                    let _ = (&mut successor).await;
                }
                Waiting::Accepted
            }
        };
        gateway.drain(within, waiting);
        // The control thread goes on meanwhile: /readyz says that it drains, and a second signal ends the wait. Not the
        // runtime's thread, for which the runtime would wait in the end.
        let (over, drained) = oneshot::channel();
        std::thread::Builder::new().name("drain".to_owned()).spawn(move || {
            gateway.join();
            let _ = over.send(());
        })?;
        tokio::select! {
            _ = drained => tracing::info!("drained"),
            _ = terminate.recv() => tracing::warn!("a second signal: not waiting any longer"),
            _ = interrupt.recv() => tracing::warn!("a second signal: not waiting any longer"),
        }
        // What was revoked last is told still; Workers that do not answer find out by themselves.
        let _ = tokio::time::timeout(LAST_WORDS, shared.notify.settled()).await;
        shared.store.close();
        match end {
            End::Failed(error) => Err(error.into()),
            End::Asked | End::Replaced(_) => Ok(()),
        }
    })
}

/// As the rules in force say: a reload may change it.
fn drain_timeout(shared: &Shared) -> Duration {
    Duration::from_millis(shared.rules.load().config.server.drain_timeout.0)
}

/// Waits for a successor; for ever, where there is no way for one to come in.
async fn successor(at: PathBuf, sockets: Rc<Sockets>, shared: Shared) -> Successor {
    match Host::open(&at) {
        Ok(host) => host.successor(&sockets, || drain_timeout(&shared)).await,
        Err(error) => {
            tracing::warn!(path = %at.display(), %error, "no successor can take over (--takeover)");
            std::future::pending().await
        }
    }
}

/// The store. The embedded one may be open in one process only: a predecessor is told to go, and its end awaited; its
/// clients wait in the sockets meanwhile.
fn store(
    settings: &Settings,
    live: &Live,
    predecessor: Option<Predecessor>,
) -> Result<(Store, Option<Predecessor>), Failure> {
    let predecessor = match predecessor {
        Some(predecessor) if settings.config.store.kind == StoreKind::Embedded => predecessor,
        other => return Ok((settings.store(live)?, other)),
    };
    let (begun, patience) = (Instant::now(), predecessor.drain + LAST_WORDS + TO_END);
    predecessor.ready(true);
    loop {
        match settings.store(live) {
            Err(error) if is_open_elsewhere(&error) && begun.elapsed() < patience => std::thread::sleep(STORE_LOOK),
            opened => return Ok((opened?, None)),
        }
    }
}

fn is_open_elsewhere(error: &Failure) -> bool {
    error.downcast_ref::<OpenError>().is_some_and(OpenError::is_open_elsewhere)
}

/// The sockets that systemd passed, each matched by its address: their names say nothing more.
fn by_systemd() -> Result<Passed, Failure> {
    let mut given = listenfd::ListenFd::from_env();
    let mut sockets = Vec::new();
    for number in 0..given.len() {
        let taken = given.take_tcp_listener(number);
        sockets.extend(taken.map_err(|error| format!("LISTEN_FDS: {error}: only TCP sockets can be used"))?);
    }
    Ok(Passed { from: "systemd (LISTEN_FDS)", sockets })
}

/// Nothing, where no service manager listens.
fn tell_systemd(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

/// As many open files as may be: each connection is one, and the usual limit of 1024 is for programs that use `select`.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit on open files stays as it is");
    }
}

/// New rules from the file, if it is good and asks for nothing that a running gateway cannot change.
async fn reload(current: &Settings, file: Option<&PathBuf>, shared: &Shared, reports: &Reports) {
    let now = NotifyState::monotonic_usec_now();
    tell_systemd(&[Some(NotifyState::Reloading), now.ok()].into_iter().flatten().collect::<Vec<_>>());
    match try_reload(current, file, shared, reports).await {
        Ok(()) => tracing::info!("reloaded"),
        Err(error) => tracing::error!(%error, "not reloaded: everything stays as it is"),
    }
    tell_systemd(&[NotifyState::Ready]);
}

async fn try_reload(
    current: &Settings,
    file: Option<&PathBuf>,
    shared: &Shared,
    reports: &Reports,
) -> Result<(), Failure> {
    let file = file.ok_or("there is no configuration file to read again")?;
    let new = Settings::read(file)?;
    let refused = new.refused();
    if !refused.is_empty() {
        return Err(refused.join("; ").into());
    }
    let (old_server, new_server) = (&current.config.server, &new.config.server);
    let changed = [
        (old_server.listen != new_server.listen, "server.listen"),
        (old_server.threads != new_server.threads, "server.threads"),
        (old_server.max_header_bytes != new_server.max_header_bytes, "server.max_header_bytes"),
        (old_server.tls.is_some() != new_server.tls.is_some(), "whether there is server.tls"),
        (old_server.proxy_protocol != new_server.proxy_protocol, "server.proxy_protocol"),
        (current.config.admin != new.config.admin, "admin"),
        (current.config.store != new.config.store, "store"),
        (current.config.session.near_cache != new.config.session.near_cache, "session.near_cache"),
        (current.config.session.token_cache != new.config.session.token_cache, "session.token_cache"),
        (current.config.log != new.config.log, "log"),
        (current.config.shards.users != new.config.shards.users, "shards.users"),
    ];
    if let Some((_, key)) = changed.iter().find(|(changed, _)| *changed) {
        return Err(format!("{key} cannot change while running: restart").into());
    }
    // A running gateway never makes keys: a mistyped path would log everybody out.
    let keys = files::existing_keys(&new.path(&new.config.session.keys))?;
    let secrets = new.secrets()?;
    let warnings = new.warnings(&secrets);
    let certificates = Arc::new(new.certificates_after(&shared.certificates.load())?);
    // Not before every other gateway can verify what these keys sign.
    let swap = || -> Result<(), Failure> {
        let map = shared.rules.load().map().cloned().ok_or("there is no shard map")?;
        let addresses = shared.rules.load().addresses().clone();
        let rules = new.rules(keys.clone(), map, secrets, &shared.live)?.with_addresses(addresses, &shared.live)?;
        shared.certificates.store(certificates);
        shared.rules.store(Arc::new(rules));
        Ok(())
    };
    reports.take_up(&keys, swap).await?;
    if let Some(redis) = shared.store.redis() {
        redis.set_lifetimes(new.lifetimes());
    }
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(())
}
