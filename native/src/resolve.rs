//! The names of origins, resolved on the control thread each `balance.resolve_interval`: by the system, or by the server
//! that `balance.resolver` names. What was found becomes rules in core; requests never wait for a name.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use edgekeep_core::exchange::Addresses;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{Resolver, TokioResolver};
use tokio::task::JoinSet;

use crate::gateway::Shared;

/// How long one name may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether a reload brought new names.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Names that are asked for at once.
const AT_ONCE: usize = 16;

pub struct Names {
    shared: Shared,
    /// Those that were asked for, with the server that was asked.
    known: (BTreeSet<String>, Option<SocketAddr>),
    server: Option<Arc<TokioResolver>>,
    asked: Instant,
    /// Those that were not found last time.
    missing: HashSet<String>,
}

impl Names {
    pub fn new(shared: &Shared) -> Names {
        let known = (BTreeSet::new(), None);
        Names { shared: shared.clone(), known, server: None, asked: Instant::now(), missing: HashSet::new() }
    }

    /// Resolves them as long as the gateway runs.
    pub async fn run(mut self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let interval = Duration::from_millis(self.shared.rules.load().config.balance.resolve_interval.0);
            if self.asked.elapsed() >= interval || self.wanted() != self.known {
                self.resolve().await;
            }
        }
    }

    fn wanted(&self) -> (BTreeSet<String>, Option<SocketAddr>) {
        let rules = self.shared.rules.load();
        let names = Addresses::names(&rules.config).into_iter().map(str::to_owned).collect();
        (names, rules.config.balance.resolver)
    }

    /// Resolves every name once, and puts the rules in force that follow from it.
    pub async fn resolve(&mut self) {
        let wanted = self.wanted();
        if wanted.1 != self.known.1 {
            self.server = wanted.1.and_then(resolver);
        }
        self.known = wanted;
        self.asked = Instant::now();
        let (mut asking, mut answers) = (JoinSet::new(), Vec::new());
        for name in self.known.0.clone() {
            if asking.len() >= AT_ONCE {
                answers.extend(asking.join_next().await);
            }
            let server = self.server.clone();
            asking.spawn_local(async move {
                let found = tokio::time::timeout(PATIENCE, ask(server, &name)).await;
                let found = found.unwrap_or_else(|_| Err("no answer".to_owned()));
                (name, found)
            });
        }
        answers.extend(asking.join_all().await.into_iter().map(Ok));
        // What a reload puts in force meanwhile is not awaited between here and the end.
        let rules = self.shared.rules.load_full();
        let mut addresses = rules.addresses().clone();
        let mut changed = false;
        for (name, found) in answers.into_iter().flatten() {
            changed |= self.take(&mut addresses, &name, found);
        }
        if changed {
            match rules.with_addresses(addresses, &self.shared.live) {
                Ok(rules) => self.shared.rules.store(Arc::new(rules)),
                Err(error) => tracing::error!(%error, "new addresses of origins are not used"),
            }
        }
    }

    /// True when the name has other addresses than before.
    fn take(&mut self, addresses: &mut Addresses, name: &str, found: Result<Vec<IpAddr>, String>) -> bool {
        let error = match found {
            Ok(found) if !found.is_empty() => {
                self.missing.remove(name);
                let changed = addresses.found(name, found);
                if changed {
                    tracing::info!(name, addresses = ?addresses.of(name), "an origin's name has other addresses");
                }
                return changed;
            }
            Ok(_) => "it has no address".to_owned(),
            Err(error) => error,
        };
        // Once, until it is found again.
        if self.missing.insert(name.to_owned()) {
            let kept = addresses.of(name);
            tracing::warn!(name, error, ?kept, "an origin's name is not found: what was found last is used");
        }
        false
    }
}

async fn ask(server: Option<Arc<TokioResolver>>, name: &str) -> Result<Vec<IpAddr>, String> {
    match server {
        None => {
            let found = tokio::net::lookup_host((name, 0)).await.map_err(|error| error.to_string())?;
            Ok(found.map(|address| address.ip()).collect())
        }
        // With its root, so that nothing is tried behind it.
        Some(server) => {
            let found = server.lookup_ip(format!("{name}.")).await.map_err(|error| error.to_string())?;
            Ok(found.iter().collect())
        }
    }
}

/// Asks this server alone, and each time anew: the interval is the operator's.
fn resolver(address: SocketAddr) -> Option<Arc<TokioResolver>> {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    let server = NameServerConfig::new(address.ip(), true, connections.into());
    let mut options = ResolverOpts::default();
    options.cache_size = 0;
    options.timeout = PATIENCE / 3;
    options.use_hosts_file = hickory_resolver::config::ResolveHosts::Never;
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
    let built = Resolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options).build();
    match built {
        Ok(resolver) => Some(Arc::new(resolver)),
        Err(error) => {
            tracing::error!(%error, "balance.resolver cannot be used: the system's resolver is asked");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_knows_this_machine_and_says_when_it_knows_nothing() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            assert!(ask(None, "localhost").await.unwrap().iter().all(IpAddr::is_loopback));
            assert!(ask(None, "no-such-name.invalid").await.is_err());
        });
    }
}
