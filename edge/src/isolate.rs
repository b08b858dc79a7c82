//! What one isolate keeps between requests: made once by `start`, gone with the wasm instance.
//!
//! Requests that run at the same time share it, on one thread. It is borrowed only inside [`with`], whose closure is
//! synchronous, so nothing of it can be held across an await.

use std::cell::RefCell;
use std::sync::Arc;

use edgekeep_core::balance::Leases;
use edgekeep_core::config::{self, Config, ConfigErrors, SecretSource};
use edgekeep_core::exchange::{InForce, Live, Local, Rules, RulesError, Secrets, Site};
use edgekeep_core::shard::{Adopt, Epoch, ShardMap};
use edgekeep_core::token::{KeyError, KeyRing, PublicKey};
use edgekeep_core::{Entropy, Millis, Timestamp};
use worker::Env;
use worker::kv::KvStore;

use crate::authority::Authority;
use crate::drive::Waiting;
use crate::kv;
use crate::log;
use crate::parked::Parked;
use crate::sessions::LastPuts;

/// The secret binding with the key ring, as `edgekeep keys export --edge` writes it.
const KEYS: &str = "EDGEKEEP_KEYS";

/// A shard map is asked for again after this.
pub const MAP_BELIEVED: Millis = Millis::from_secs(60);

/// What an answer may take besides its time limit: a slow body before it, what is due after it.
const MARGIN: Millis = Millis::from_secs(120);

pub struct Isolate {
    pub rules: Arc<Rules>,
    pub live: Arc<Live>,
    pub local: Local,
    pub authority: Authority,
    pub kv: Option<KvStore>,
    pub parked: Parked<Waiting>,
    pub leases: Leases,
    pub puts: LastPuts,
    /// When this isolate last asked for the shard map.
    pub map_asked_at: Option<Timestamp>,
}

/// Why an isolate cannot start. The text names keys and bindings, never values.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the configuration that this Worker was built with:\n{0}")]
    Config(#[from] ConfigErrors),
    #[error("session.authority must be a region's URL: write the configuration by `edgekeep config edge`")]
    NoAuthority,
    #[error("{0}: the secret binding {1} is not there")]
    NoSecret(&'static str, String),
    #[error("{0}: must name a secret binding (_env): a Worker has no files")]
    NoBinding(&'static str),
    #[error("the secret binding {KEYS}: {0}")]
    Keys(KeyError),
    #[error("{0}")]
    Rules(#[from] RulesError),
    #[error("the system gave no randomness: {0}")]
    Seed(String),
}

impl Isolate {
    /// Puts an isolate together. `secret` reads a secret binding.
    pub fn new(
        config: &str,
        secret: &dyn Fn(&str) -> Option<String>,
        seed: [u8; 32],
        kv: Option<KvStore>,
    ) -> Result<Isolate, StartError> {
        let config = Config::from_json(config)?;
        let config::Authority::Url(url) = &config.session.authority else { return Err(StartError::NoAuthority) };
        let needed = |key: &'static str, source: &SecretSource| {
            let name = source.env.as_deref().ok_or(StartError::NoBinding(key))?;
            secret(name).filter(|value| !value.is_empty()).ok_or(StartError::NoSecret(key, name.to_owned()))
        };
        let credential = needed("edge.credential_env", &config.edge.credential)?;
        let origin_key = match &config.balance.origin_key {
            SecretSource { env: None, file: None } => None,
            source => Some(needed("balance.origin_key_env", source)?),
        };
        let keys = secret(KEYS).ok_or_else(|| StartError::NoSecret("session.keys", KEYS.to_owned()))?;
        let keys = KeyRing::from_json(&keys).map_err(StartError::Keys)?;
        // The service's calls are answered by the authority, with the client's own credential.
        let secrets = Secrets::new(None, Some(&credential), origin_key.as_deref());
        let authority = Authority {
            base: format!("{}{}", url.origin, config.server.api_prefix),
            credential: secrets.edge_credential.clone().unwrap_or_default(),
            timeout: config.store.timeout,
        };
        let longest = config.routes.iter().filter_map(|route| route.timeout).max().unwrap_or_default();
        let patience = longest.max(config.balance.response_timeout) + MARGIN;

        let mut entropy = Entropy::from_seed(seed);
        let [a, b, c, d] = entropy.bytes::<4>();
        let live = Live::new(&config, &mut entropy);
        let rules = Rules::new(config, Site::EdgeBesideRegion, keys, None, secrets, InForce::default(), &live)?;
        Ok(Isolate {
            rules: Arc::new(rules),
            live: Arc::new(live),
            local: Local::new(entropy),
            authority,
            kv,
            parked: Parked::new(u32::from_be_bytes([a, b, c, d]), patience),
            leases: Leases::default(),
            puts: LastPuts::default(),
            map_asked_at: None,
        })
    }

    /// The rules, when their map is at least of this epoch.
    pub fn rules_from(&self, epoch: Epoch) -> Option<Arc<Rules>> {
        self.rules.map().filter(|map| map.epoch() >= epoch).map(|_| self.rules.clone())
    }

    /// Takes a newer map. Epochs never go back, and one of another content under the same epoch is kept out.
    pub fn adopt(&mut self, map: ShardMap) {
        match self.rules.map().map_or(Adopt::Newer, |current| current.adopt(&map)) {
            Adopt::Newer => match self.rules.with_map(map, &self.live) {
                Ok(rules) => self.rules = Arc::new(rules),
                Err(error) => log::error(&error.to_string()),
            },
            Adopt::Conflict => log::error("shard_map_conflict: the authority's map contradicts the one at hand"),
            Adopt::Same | Adopt::Older => {}
        }
    }

    /// Rules that also know these keys of the authority.
    pub fn learn(&mut self, keys: &[PublicKey]) -> Option<Arc<Rules>> {
        let verifier = self.rules.verifier().with_jwks(keys);
        match self.rules.with_verifier(verifier, &self.live) {
            Ok(rules) => {
                self.rules = Arc::new(rules);
                Some(self.rules.clone())
            }
            Err(error) => {
                log::error(&error.to_string());
                None
            }
        }
    }

    /// Whether the map at hand is to be asked for again; then not again for a minute.
    pub fn map_due(&mut self, now: Timestamp) -> bool {
        let due = self.rules.map().is_some() && self.map_asked_at.is_none_or(|at| now.since(at) >= MAP_BELIEVED);
        if due {
            self.map_asked_at = Some(now);
        }
        due
    }
}

thread_local! {
    static ISOLATE: RefCell<Option<Isolate>> = const { RefCell::new(None) };
}

/// Starts this isolate with what `env` binds and a seed from the system. A second call changes nothing.
pub fn start(env: &Env, config: &str) -> Result<(), StartError> {
    if with(|_| ()).is_some() {
        return Ok(());
    }
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| StartError::Seed(error.to_string()))?;
    let kv = match env.kv(kv::BINDING) {
        Ok(kv) => Some(kv),
        Err(_) => {
            log::error("no binding KV: every session is asked for at the authority");
            None
        }
    };
    let secret = |name: &str| env.secret(name).ok().map(|secret| secret.to_string());
    let isolate = Isolate::new(config, &secret, seed, kv)?;
    ISOLATE.with(|slot| {
        if let Ok(mut slot) = slot.try_borrow_mut() {
            *slot = Some(isolate);
        }
    });
    Ok(())
}

/// Runs `work` with this isolate's state; `None` when it has not started.
pub fn with<R>(work: impl FnOnce(&mut Isolate) -> R) -> Option<R> {
    ISOLATE.with(|slot| slot.try_borrow_mut().ok()?.as_mut().map(work))
}
