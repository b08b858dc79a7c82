//! A gateway from start to end: starts the cores, reports to the other gateways and serves the admin side on the control
//! thread, reloads on SIGHUP, and on SIGTERM or Ctrl-C finishes what is in flight.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use edgekeep_core::Entropy;
use edgekeep_core::exchange::Secrets;
use tokio::signal::unix::{SignalKind, signal};

use super::settings::Settings;
use super::{Failure, files, log};
use crate::admin::{Admin, serve_admin};
use crate::gateway::{Gateway, Shared, listen, seed};
use crate::notify;
use crate::reports::Reports;
use crate::resolve::Names;

/// How long a gateway that ends goes on telling Workers of revocations.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How to start.
pub struct Start {
    pub settings: Settings,
    pub secrets: Secrets,
    /// The file to read again on SIGHUP, if the configuration came from one.
    pub file: Option<PathBuf>,
}

/// Runs until a signal ends it. `ready` is called once requests are answered; `beside` runs along, and ends the gateway
/// with its error if it fails.
pub fn run(
    start: Start,
    ready: impl FnOnce(&Settings),
    beside: impl Future<Output = Result<(), Failure>> + 'static,
) -> Result<(), Failure> {
    let Start { settings, secrets, file } = start;
    let refused = settings.refused();
    if !refused.is_empty() {
        return Err(format!("this configuration asks for what is not built yet:\n{}", refused.join("\n")).into());
    }
    let _log = log::start(&settings.config.log);
    for warning in settings.not_in_force() {
        tracing::warn!("{warning}");
    }
    let (admin_listener, admin_token) = admin_side(&settings)?;
    let certificates = Arc::new(ArcSwap::from_pointee(settings.certificates()?));
    let (keys, fresh) = settings.keys()?;
    if fresh {
        tracing::info!(path = %settings.path(&settings.config.session.keys).display(), "made a new key file");
    }
    let live = Arc::new(settings.live()?);
    let store = settings.store(&live)?;
    let map = settings.shard_map(&store)?;
    let rules = Arc::new(ArcSwap::from_pointee(settings.rules(keys, map, secrets, &live)?));
    if !settings.config.edge.notify.is_empty() && rules.load().edge_credential().is_none() {
        tracing::warn!("edge.notify: without an edge credential (edge.credential) no Worker is told of a revocation");
    }
    let (notify, revocations) = notify::channel();
    let shared = Shared { rules, live, certificates, store, notify };

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async move {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut hangup = signal(SignalKind::hangup())?;
        let mut names = Names::new(&shared);
        names.resolve().await;
        let gateway = Arc::new(Gateway::start(&shared)?);
        tokio::task::spawn_local(names.run());
        tokio::task::spawn_local(revocations.post(shared.rules.clone(), Entropy::from_seed(seed()?)));
        let reports = Rc::new(Reports::new(&shared, settings.config.admin.listen.port())?);
        let reporting = reports.clone();
        tokio::task::spawn_local(async move { reporting.run().await });
        let admin =
            Admin { shared: shared.clone(), gateway: gateway.clone(), reports: reports.clone(), token: admin_token };
        tokio::task::spawn_local(serve_admin(Rc::new(admin), tokio::net::TcpListener::from_std(admin_listener)?));
        let beside = tokio::task::spawn_local(async move { beside.await.map_err(|e| e.to_string()) });
        let mut beside = std::pin::pin!(beside);
        tracing::info!(listen = ?settings.config.server.listen, admin = %settings.config.admin.listen, "ready");
        ready(&settings);
        let mut failed = None;
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => reload(&settings, file.as_ref(), &shared, &reports).await,
                ended = beside.as_mut(), if failed.is_none() && !beside.is_finished() => match ended {
                    Ok(Err(error)) => { failed = Some(error); break }
                    Err(error) => { failed = Some(error.to_string()); break }
                    Ok(Ok(())) => break,
                },
            }
        }
        let within = Duration::from_millis(settings.config.server.drain_timeout.0);
        tracing::info!(?within, "draining");
        gateway.drain(within);
        // The control thread goes on meanwhile: /readyz says that it drains, and a second signal ends the wait.
        tokio::select! {
            _ = tokio::task::spawn_blocking(move || gateway.join()) => {}
            _ = terminate.recv() => tracing::warn!("a second signal: not waiting any longer"),
            _ = interrupt.recv() => tracing::warn!("a second signal: not waiting any longer"),
        }
        // What was revoked last is told still; Workers that do not answer find out by themselves.
        let _ = tokio::time::timeout(LAST_WORDS, shared.notify.settled()).await;
        shared.store.close();
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    })
}

/// The admin side's listener, and its token. Without a token it is for this machine only.
fn admin_side(settings: &Settings) -> Result<(std::net::TcpListener, Option<Secrets>), Failure> {
    let admin = &settings.config.admin;
    let token = files::configured(&admin.token, "admin.token", &settings.base)?;
    if token.is_none() && !admin.listen.ip().is_loopback() {
        return Err(format!("admin.listen: {} is not loopback, so admin.token must be set", admin.listen).into());
    }
    // One secret among others: compared as a digest, in constant time.
    Ok((listen::bind_one(admin.listen)?, token.map(|token| Secrets::new(Some(&token), None, None))))
}

/// New rules from the file, if it is good and asks for nothing that a running gateway cannot change.
async fn reload(current: &Settings, file: Option<&PathBuf>, shared: &Shared, reports: &Reports) {
    match try_reload(current, file, shared, reports).await {
        Ok(()) => tracing::info!("reloaded"),
        Err(error) => tracing::error!(%error, "not reloaded: everything stays as it is"),
    }
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
    for warning in new.not_in_force() {
        tracing::warn!("{warning}");
    }
    Ok(())
}
