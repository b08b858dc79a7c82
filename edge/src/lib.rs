//! The Cloudflare Worker: the shell that drives core's decisions on workerd.
//!
//! `entry.js` owns the request and the response; this crate owns every rule. What crosses between them is text, in
//! the form of [`wire`], because one string each way costs less than a handful of small ones or an object's getters:
//!
//! ```text
//! entry.js                                             this crate
//! ready() ────────────────────────────────────────────▶ false when this instance has not started
//!    start(env, config) ──────────────────────────────▶ the names of the headers that matter
//! begin(head, now) ───────────────────────────────────▶ what to do
//!    "F": fetch, then ready() again
//!       answered(number, status, head, replayable, now) ▶ what to do
//!       failed(number, timedOut, replayable, now) ────▶ what to do
//!    "B": body(number, bytes, now) ───────────────────▶ what to do
//!    "P": proceed(number) ────────────────────────────▶ a promise of what to do: all that cannot be decided at once
//!    "C": the same, also for `waitUntil`
//!    "R", "E": the answer
//! afterwards(number) ─────────────────────────────────▶ a promise for `waitUntil`: what may be lost
//! ```
//!
//! On the common path (token valid, session in the near cache) that is `begin`, one fetch and `answered`.
//!
//! `drive` is that loop, `proceed` what has to be awaited in it, `sessions` what KV keeps, `authority` the region that
//! is asked, `isolate` what lives between requests.
//!
//! **One instance an isolate.** Statics live as long as the wasm instance and are shared by the requests that it
//! serves at the same time, so nothing is borrowed across an await and no request awaits what another one started.
//!
//! **Traps.** A panic aborts: the instance is poisoned, wasm-bindgen's guard notices (`--force-enable-abort-handler`
//! reports any trap to the handler that `worker` registers, which schedules a reset) and the next call into any export
//! gets a fresh instance of the same module, with empty statics. What the old instance had parked is gone: a number
//! from before the reset is unknown to the new one (see [`parked`]) and its request is answered 500, never with another
//! request's exchange.
//!
//! **Why `ready` comes first.** The generated code copies a string argument into the instance *before* its guard may
//! replace the instance, so the first call after a trap must take no string: it would hand the new instance a pointer
//! into the old one's memory. `ready` takes none, and nothing can trap between it and the call that follows.
//!
//! Dependencies, each for what it is best at: `worker` wraps the platform's bindings, `web-sys` fetches, `serde_json`
//! reads KV's and the authority's JSON, `getrandom` asks `crypto` for the seed.

mod authority;
mod drive;
mod head;
mod isolate;
mod kv;
mod log;
mod parked;
mod proceed;
mod sessions;
mod wire;

use wasm_bindgen::prelude::*;
use worker::Env;

use crate::proceed::timestamp;

/// Whether this instance has started; false in a new isolate and after a trap. Called before any call with a string.
#[wasm_bindgen]
pub fn ready() -> bool {
    isolate::with(|_| ()).is_some()
}

/// Prepares this isolate with its configuration, what `env` binds and a seed from the system.
///
/// Called inside a request, since workerd gives no randomness to a module's global scope. Returns two lines: the names
/// of the request headers that [`begin`] wants and of the response headers that [`answered`] wants, each joined by a
/// comma. Fails with the reason when the configuration or a binding is missing or wrong.
#[wasm_bindgen]
#[allow(clippy::needless_pass_by_value, reason = "a value handed over by JavaScript")]
pub fn start(env: Env, config: &str) -> Result<String, JsError> {
    isolate::start(&env, config).map_err(|error| JsError::new(&error.to_string()))?;
    let requests: Vec<&str> = head::request_headers().collect();
    Ok(format!("{}\n{}", requests.join(","), head::RESPONSE_HEADERS.join(",")))
}

/// Decides a request from its head at `now` (milliseconds since the epoch). Returns what to do (see [`wire`]); nothing
/// when the isolate has not started, which [`ready`] tells.
#[wasm_bindgen]
pub fn begin(head: String, now: f64) -> String {
    isolate::with(|isolate| isolate.begin(head, timestamp(now))).unwrap_or_default()
}

/// Decides what becomes of an origin's answer, from its status and its named headers. `replayable`: the request's body
/// can be sent once more.
#[wasm_bindgen]
pub fn answered(number: f64, status: u16, head: &str, replayable: bool, now: f64) -> String {
    let head = head::ResponseHead::parse(status, head);
    isolate::with(|isolate| isolate.answered(number, &head, replayable, timestamp(now))).unwrap_or_default()
}

/// Decides what follows when no response's head came.
#[wasm_bindgen]
pub fn failed(number: f64, timed_out: bool, replayable: bool, now: f64) -> String {
    isolate::with(|isolate| isolate.failed(number, timed_out, replayable, timestamp(now))).unwrap_or_default()
}

/// The request's body broke off, or was none: the client's fault.
#[wasm_bindgen]
pub fn gone(number: f64, now: f64) -> String {
    isolate::with(|isolate| isolate.gone(number, timestamp(now))).unwrap_or_default()
}

/// Hands over the body that was asked for; nothing when it was larger than that.
#[wasm_bindgen]
pub fn body(number: f64, bytes: Option<Vec<u8>>, now: f64) -> String {
    isolate::with(|isolate| isolate.body(number, bytes, timestamp(now))).unwrap_or_default()
}

/// Performs what an exchange waits for, and says what to do then.
#[wasm_bindgen]
pub async fn proceed(number: f64) -> String {
    proceed::proceed(number).await
}

/// What is due once the response's head is on its way. Nothing here may matter when it is lost.
#[wasm_bindgen]
pub async fn afterwards(number: f64) {
    proceed::afterwards(number).await;
}
