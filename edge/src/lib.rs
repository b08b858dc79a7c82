//! The Cloudflare Worker: the shell that drives core's decisions on workerd.
//!
//! `entry.js` owns the request and the response; this crate owns every rule. What crosses between them is text, in
//! the form of [`wire`], because one string each way costs less than a handful of small ones or an object's getters:
//!
//! ```text
//! entry.js                                             this crate
//! ready() ────────────────────────────────────────────▶ false when this instance has not started
//!    start(env) ──────────────────────────────────────▶ the names of the headers that matter
//! begin(head, now) ───────────────────────────────────▶ a reply, a plan with an exchange's number, or "go on"
//! fetch(plan), then ready() again
//! answered(number, status, head, now) ────────────────▶ edits to the response's head, or nothing
//! proceed(number, request, env, ctx, outcome) ────────▶ a promise of a response: all that cannot be decided at once
//! afterwards(number, env) ────────────────────────────▶ a promise for `waitUntil`: what may be lost
//! ```
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
//! Dependencies, each for what it is best at: `worker` wraps the platform's bindings, `web-sys` the request and the
//! response, `getrandom` asks `crypto` for the seed.

mod decision;
mod isolate;
mod parked;
mod proceed;
mod wire;

use edgekeep_core::Timestamp;
use wasm_bindgen::prelude::*;
use worker::{Env, console_error, worker_sys};

use crate::decision::Decision;

/// Whether this instance has started; false in a new isolate and after a trap. Called before any call with a string.
#[wasm_bindgen]
pub fn ready() -> bool {
    isolate::with(|_| ()).is_some()
}

/// Prepares this isolate with what `env` binds and a seed from the system.
///
/// Called inside a request, since workerd gives no randomness to a module's global scope. Returns two lines: the names
/// of the request headers that [`begin`] wants and of the response headers that [`answered`] wants, each joined by a
/// comma. Fails with the reason when a binding is missing or wrong.
#[wasm_bindgen]
#[allow(clippy::needless_pass_by_value, reason = "a value handed over by JavaScript")]
pub fn start(env: Env) -> Result<String, JsError> {
    isolate::start(&env).map_err(|error| JsError::new(&error.to_string()))?;
    Ok(format!("{}\n{}", decision::REQUEST_HEADERS.join(","), decision::RESPONSE_HEADERS.join(",")))
}

/// Decides a request from its head (see [`wire::RequestHead`]) at `now` (milliseconds since the epoch). Returns a
/// [`wire`] answer; nothing when the isolate has not started, which [`ready`] tells.
#[wasm_bindgen]
pub fn begin(head: &str, now: f64) -> String {
    let now = timestamp(now);
    isolate::with(|isolate| match decision::begin(isolate, &wire::RequestHead::parse(head), now) {
        Decision::Reply(reply) => reply.encode(),
        Decision::Forward(plan, exchange) => match isolate.parked.park(exchange, now) {
            Some(number) => plan.encode(number),
            None => decision::overloaded().encode(),
        },
        Decision::Proceed(exchange) => match isolate.parked.park(exchange, now) {
            Some(number) => wire::proceed(number),
            None => decision::overloaded().encode(),
        },
    })
    .unwrap_or_default()
}

/// Decides what becomes of an origin's answer, from its status and its named headers. Returns the edits as a [`wire`]
/// answer; nothing when the exchange has to go on asynchronously (or is unknown, which [`proceed`] answers).
#[wasm_bindgen]
pub fn answered(number: f64, status: u16, head: &str, now: f64) -> String {
    let now = timestamp(now);
    isolate::with(|isolate| {
        let exchange = isolate.parked.get(number)?;
        let (edits, due) = decision::answered(exchange, status, &wire::ResponseHead::parse(head), now)?;
        if !due {
            isolate.parked.take(number);
        }
        Some(wire::edits(&edits, due))
    })
    .flatten()
    .unwrap_or_default()
}

/// Carries an exchange on where something has to be awaited. `outcome` is the origin's response when one came,
/// `"timeout"` or the error when none did, and undefined when nothing was sent yet.
#[wasm_bindgen]
pub async fn proceed(
    number: f64,
    request: web_sys::Request,
    env: Env,
    ctx: worker_sys::Context,
    outcome: JsValue,
) -> Result<web_sys::Response, JsValue> {
    let exchange = isolate::with(|isolate| isolate.parked.take(number)).flatten();
    let outcome = proceed::Outcome::from_js(outcome);
    proceed::proceed(exchange, request, env, worker::Context::new(ctx), outcome).await.map_err(JsValue::from)
}

/// What is due once the response's head is on its way. Nothing here may matter when it is lost.
#[wasm_bindgen]
pub async fn afterwards(number: f64, env: Env) {
    let Some(exchange) = isolate::with(|isolate| isolate.parked.take(number)).flatten() else { return };
    if let Err(error) = proceed::afterwards(&exchange, &env) {
        console_error!("afterwards: {error}");
    }
}

/// `Date.now()`, which is a whole number of milliseconds and never negative.
fn timestamp(now: f64) -> Timestamp {
    Timestamp(now as u64)
}
