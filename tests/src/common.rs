//! Small things that every test of this package needs, and what such tests share with each other.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::Result;
use rustix::process::{Resource, getrlimit, setrlimit};

/// Whether this run is the long form.
pub fn is_long() -> bool {
    std::env::var_os("EDGEKEEP_LONG").is_some()
}

/// The workspace's root.
pub fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// As many open files as this process, and what it starts, may have.
pub fn raise_file_limit() -> Result<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    Ok(limit.current.unwrap_or(u64::MAX))
}

/// A port of this machine.
pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Also after a test that held it has failed.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Slot<T> = Arc<OnceLock<Result<Arc<T>, String>>>;

/// What tests share: one of each kind, started by the first test that asks for it.
pub struct Stage<K, T>(Arc<Mutex<BTreeMap<K, Slot<T>>>>);

impl<K, T> Clone for Stage<K, T> {
    fn clone(&self) -> Self {
        Stage(self.0.clone())
    }
}

impl<K, T> Default for Stage<K, T> {
    fn default() -> Self {
        Stage(Arc::default())
    }
}

impl<K: Ord, T> Stage<K, T> {
    /// The one of this kind; why it did not start, to every test that asks.
    pub fn of(&self, kind: K, start: impl FnOnce() -> Result<T>) -> Result<Arc<T>, String> {
        let slot = lock(&self.0).entry(kind).or_default().clone();
        slot.get_or_init(|| start().map(Arc::new).map_err(|error| format!("{error:#}"))).clone()
    }

    /// Takes away those that started: each ends when the caller drops it.
    pub fn close(&self) -> Vec<(K, Arc<T>)> {
        let slots = std::mem::take(&mut *lock(&self.0));
        slots.into_iter().filter_map(|(kind, slot)| Some((kind, slot.get()?.clone().ok()?))).collect()
    }
}
