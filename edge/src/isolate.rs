//! What one isolate keeps between requests: made once by `start`, gone with the wasm instance.
//!
//! Requests that run at the same time share it, on one thread. It is borrowed only inside [`with`], whose closure is
//! synchronous, so nothing of it can be held across an await.

use std::cell::RefCell;

use edgekeep_core::Entropy;
use worker::Env;

use crate::decision::{Exchange, Settings};
use crate::parked::Parked;

pub struct Isolate {
    pub settings: Settings,
    pub entropy: Entropy,
    pub parked: Parked<Exchange>,
}

thread_local! {
    static ISOLATE: RefCell<Option<Isolate>> = const { RefCell::new(None) };
}

/// Reads the bindings and seeds the entropy. A second call changes nothing.
pub fn start(env: &Env) -> Result<(), worker::Error> {
    if with(|_| ()).is_some() {
        return Ok(());
    }
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| worker::Error::RustError(error.to_string()))?;
    let mut entropy = Entropy::from_seed(seed);
    let [a, b, c, d] = entropy.bytes::<4>();
    let isolate =
        Isolate { settings: Settings::from_env(env), entropy, parked: Parked::new(u32::from_be_bytes([a, b, c, d])) };
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
