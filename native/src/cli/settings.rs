//! From a configuration to what a gateway runs on: rules, live state, store. The same way at start, at a reload and for
//! `check`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edgekeep_core::Entropy;
use edgekeep_core::config::{Config, ShardHash, StoreKind, Strategy};
use edgekeep_core::exchange::{InForce, Live, Rules, Secrets, Site};
use edgekeep_core::shard::{HashKind, ShardKey, ShardMap, ShardName};
use edgekeep_core::token::KeyRing;

use super::{Failure, files};
use crate::gateway::seed;
use crate::store::Store;
use crate::store::redis::{Lifetimes, Login};
use crate::tls::Certificates;

/// A configuration with the folder that its paths are relative to.
#[derive(Clone, Debug)]
pub struct Settings {
    pub config: Config,
    pub base: PathBuf,
}

/// What this gateway performs of what can be configured.
const IN_FORCE: InForce = InForce { cache: false, write_behind: false, queue: true };

impl Settings {
    /// Reads and checks a file; the error has every mistake, a line each.
    pub fn read(path: &Path) -> Result<Settings, Failure> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|e| format!("--config: cannot read {shown}: {e}"))?;
        let config = Config::from_toml(&text).map_err(|errors| format!("{shown} cannot be used:\n{errors}"))?;
        let base = path.parent().map(Path::to_path_buf).unwrap_or_default();
        Ok(Settings { config, base })
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.base.join(relative)
    }

    /// What is configured and cannot be done yet, where going on without it would be a surprise: a refusal.
    pub fn refused(&self) -> Vec<String> {
        let config = &self.config;
        let mut refused = Vec::new();
        let mut refuse = |key: &str, why: &str| refused.push(format!("{key}: {why}"));
        if config.session.authority != edgekeep_core::config::Authority::Local {
            refuse("session.authority", "natively always \"local\"; the edge's is given to `edgekeep config edge`");
        }
        refused
    }

    /// What is configured and not in force yet, where requests are still answered rightly: a warning each.
    fn not_in_force(&self) -> Vec<String> {
        let config = &self.config;
        let default = Config::minimal("http://127.0.0.1").ok();
        let mut named = Vec::new();
        let mut warn = |applies: bool, key: &str, instead: &str| {
            if applies {
                named.push(format!("{key} is not in force yet: {instead}"));
            }
        };
        let cached = config.routes.iter().any(|route| route.cache.is_some());
        warn(cached, "routes.cache and [cache]", "every request is answered by its origin");
        let behind = config.cache.types.iter().any(|kind| kind.strategy == Strategy::WriteBehind);
        warn(behind && cached, "[cache.write_behind]", "writes go straight to the origin");
        let differs = |section: fn(&Config) -> String| default.as_ref().is_none_or(|d| section(config) != section(d));
        let sinks = config.alerts.webhook.is_some() || config.alerts.alertmanager.is_some();
        warn(sinks || differs(|c| format!("{:?}", c.alerts)), "[alerts]", "no alert is raised");
        warn(config.trace.otlp.is_some(), "trace.otlp", "no span is sent");
        named
    }

    /// What is allowed and seldom meant: what is not in force yet, and what a missing secret closes.
    pub fn warnings(&self, secrets: &Secrets) -> Vec<String> {
        let mut warnings = self.not_in_force();
        if !secrets.has_service() {
            let source = &self.config.session.service_token;
            let named = source.env.as_ref().or(source.file.as_ref()).map_or("", String::as_str);
            warnings.push(format!("session.service_token: {named} has none: no session can be created"));
        }
        if !self.config.edge.notify.is_empty() && secrets.edge_credential.is_none() {
            warnings.push("edge.notify: without an edge.credential no Worker is told of a revocation".to_owned());
        }
        warnings
    }

    /// The secrets that the file names, from environment or files.
    pub fn secrets(&self) -> Result<Secrets, Failure> {
        let config = &self.config;
        let service = files::configured(&config.session.service_token, "session.service_token", &self.base)?;
        let edge = files::configured(&config.edge.credential, "edge.credential", &self.base)?;
        let origin = files::configured(&config.balance.origin_key, "balance.origin_key", &self.base)?;
        for (key, values) in [("session.service_token", &service), ("edge.credential", &edge)] {
            // A third one is more likely a secret with a comma in it, whose pieces would each open everything.
            let count = values.iter().flat_map(|values| values.split(',')).filter(|one| !one.trim().is_empty()).count();
            if count > 2 {
                return Err(format!("{key}: found {count} values, allowed: one or two, separated by a comma").into());
            }
        }
        Ok(Secrets::new(service.as_deref(), edge.as_deref(), origin.as_deref()))
    }

    /// The certificates that the file names; the error has every one that cannot be used, a line each.
    pub fn certificates(&self) -> Result<Certificates, Failure> {
        Ok(Certificates::read(&self.config, &self.base).map_err(|errors| errors.join("\n"))?)
    }

    /// The same with the tickets of `old`, so that what its clients began can be resumed.
    pub fn certificates_after(&self, old: &Certificates) -> Result<Certificates, Failure> {
        Ok(old.read_again(&self.config, &self.base).map_err(|errors| errors.join("; "))?)
    }

    /// The admin side's token. Without one it is for this machine only.
    pub fn admin_token(&self) -> Result<Option<Secrets>, Failure> {
        let admin = &self.config.admin;
        let token = files::configured(&admin.token, "admin.token", &self.base)?;
        if token.is_none() && !admin.listen.ip().is_loopback() {
            return Err(format!("admin.listen: {} is not loopback, so admin.token must be set", admin.listen).into());
        }
        // One secret among others: compared as a digest, in constant time.
        Ok(token.map(|token| Secrets::new(Some(&token), None, None)))
    }

    /// The keys to start with. Where several gateways share a store, a missing file is refused and never made: each would
    /// make its own. True: they were made now.
    pub fn keys(&self) -> Result<(KeyRing, bool), Failure> {
        let path = self.path(&self.config.session.keys);
        if self.config.store.kind == StoreKind::Redis && !path.exists() {
            let shown = path.display();
            return Err(format!(
                "session.keys: {shown} does not exist, and store.kind = \"redis\" makes none: all gateways need the same. \
                 Copy another gateway's, or make the first with `edgekeep keys generate --file {shown}`"
            )
            .into());
        }
        files::keys(&path, self.config.session.algorithm)
    }

    pub fn live(&self) -> Result<Live, Failure> {
        Ok(Live::new(&self.config, &mut Entropy::from_seed(seed()?)))
    }

    pub fn store(&self, live: &Live) -> Result<Store, Failure> {
        let config = &self.config.store;
        let timeout = Duration::from_millis(config.timeout.0);
        if config.kind == StoreKind::Embedded {
            return Ok(Store::open_embedded(&self.path(&config.path), live.near.clone(), timeout)?);
        }
        let login = Login {
            seeds: config.nodes.iter().map(|node| format!("{}:{}", node.host, node.port)).collect(),
            cluster: config.cluster,
            tls: config.nodes.iter().any(|node| node.tls),
            username: config.username.clone(),
            password: files::configured(&config.password, "store.password", &self.base)?,
            timeout,
            wait_replicas: config.wait_replicas,
            read_from_replicas: config.read_from_replicas,
            ..Login::default()
        };
        Ok(Store::open_redis(login, live.near.clone(), self.lifetimes())?)
    }

    /// How long what is in Redis lives.
    pub fn lifetimes(&self) -> Lifetimes {
        let session = &self.config.session;
        Lifetimes { dead_mark: session.access_ttl + session.leeway, epoch: session.refresh_ttl }
    }

    /// The shard map that `[shards.users]` makes, with a new key where none is configured.
    pub fn first_shard_map(&self) -> Result<ShardMap, Failure> {
        let users = &self.config.shards.users;
        let key = match self.shard_key()? {
            Some(key) => key,
            None => ShardKey(seed()?.first_chunk().copied().unwrap_or_default()),
        };
        let hash = match users.hash {
            ShardHash::Siphash24 => HashKind::Siphash24,
            ShardHash::Python => HashKind::Python,
        };
        let pins: BTreeMap<_, _> = users
            .pins
            .iter()
            .filter_map(|(user, shard)| Some((user.clone(), ShardName::new(&shard.to_string()).ok()?)))
            .collect();
        Ok(ShardMap::first(hash, key, u16::try_from(users.count).unwrap_or(u16::MAX), pins))
    }

    fn shard_key(&self) -> Result<Option<ShardKey>, Failure> {
        let configured = files::configured(&self.config.shards.users.key, "shards.users.key", &self.base)?;
        let Some(text) = configured else { return Ok(None) };
        let key = ShardKey::from_hex(&text).ok_or("shards.users.key: must be 32 hexadecimal digits".to_owned())?;
        Ok(Some(key))
    }

    /// The stored shard map, or the first one. From then on the stored one rules.
    pub fn shard_map(&self, store: &Store) -> Result<ShardMap, Failure> {
        let first = self.first_shard_map()?;
        let Some(stored) = store.shard_map()? else { return Ok(store.first_shard_map(first)?) };
        if self.shard_key()?.is_some_and(|key| key != *stored.key()) {
            return Err("shards.users.key: the stored map has another key; users would be placed anew".into());
        }
        let differs = stored.count() != first.count() || stored.pins() != first.pins();
        if stored.hash() != first.hash() || (stored.epoch().0 == 1 && differs) {
            tracing::warn!(
                epoch = stored.epoch().0,
                "[shards.users] differs from the stored map, which rules: see `edgekeep shard plan`"
            );
        }
        Ok(stored)
    }

    pub fn rules(&self, keys: KeyRing, map: ShardMap, secrets: Secrets, live: &Live) -> Result<Rules, Failure> {
        Ok(Rules::new(self.config.clone(), Site::Native, keys, Some(map), secrets, IN_FORCE, live)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_third_credential_is_refused_by_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let text = "[session]\nservice_token_file = \"tokens\"\n\
                    [[pools]]\nshard = \"shard_0\"\norigins = [{ id = \"a\", url = \"http://127.0.0.1:9001\" }]";
        let settings = Settings { config: Config::from_toml(text).unwrap(), base: folder.path().to_owned() };
        let with = |values: &[u8]| {
            let _ = std::fs::remove_file(&path);
            files::write_private(&path, values).unwrap();
            settings.secrets().map(|_| ()).map_err(|refused| refused.to_string())
        };
        assert_eq!(with(b"one, two,"), Ok(()));
        assert_eq!(
            with(b"one,two,three"),
            Err("session.service_token: found 3 values, allowed: one or two, separated by a comma".to_owned())
        );
    }

    #[test]
    fn a_missing_secret_is_warned_of_with_what_it_closes() {
        let text = "[session]\nservice_token_env = \"EDGEKEEP_TEST_UNSET\"\n[edge]\nnotify = [\"https://edge.test\"]\n\
                    [[pools]]\nshard = \"shard_0\"\norigins = [{ id = \"a\", url = \"http://127.0.0.1:9001\" }]";
        let settings = Settings { config: Config::from_toml(text).unwrap(), base: PathBuf::new() };
        let warned = settings.warnings(&settings.secrets().unwrap());
        assert_eq!(warned.len(), 2, "{warned:?}");
        assert!(warned[0].contains("EDGEKEEP_TEST_UNSET") && warned[1].starts_with("edge.notify: "), "{warned:?}");
        assert_eq!(settings.warnings(&Secrets::new(Some("service"), Some("edge"), None)), [""; 0]);
    }

    #[test]
    fn gateways_that_share_a_store_are_given_their_keys_and_never_make_them() {
        let folder = tempfile::tempdir().unwrap();
        let text = "[store]\nkind = \"redis\"\nnodes = [\"redis://127.0.0.1:7000\"]\n\
                    [[pools]]\nshard = \"shard_0\"\norigins = [{ id = \"a\", url = \"http://127.0.0.1:9001\" }]";
        let settings = Settings { config: Config::from_toml(text).unwrap(), base: folder.path().to_owned() };
        let refused = settings.keys().unwrap_err().to_string();
        assert!(refused.starts_with("session.keys: ") && refused.contains("does not exist"), "{refused}");
        assert!(!settings.path("data/keys.json").exists());
        files::keys(&settings.path("data/keys.json"), settings.config.session.algorithm).unwrap();
        assert!(!settings.keys().unwrap().1);
    }
}
