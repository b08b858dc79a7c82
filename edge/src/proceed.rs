//! The asynchronous way: whatever of an exchange waits for KV or for the authority. One step a call; nothing of the
//! isolate is borrowed across an await, and nobody waits for what another request started.

use std::time::Duration;

use edgekeep_core::cache::{CacheAnswer, Enqueued};
use edgekeep_core::exchange::{Freshness, Rules, SessionAnswer, Step};
use edgekeep_core::session::{StoreOp, StoreOutcome, Tombstone};
use edgekeep_core::shard::{Epoch, ShardMap};
use edgekeep_core::token::parse_jwks;
use edgekeep_core::{Millis, SessionId, Timestamp, UserId};
use js_sys::{Array, Promise};
use std::sync::Arc;
use wasm_bindgen::JsValue;
use wasm_bindgen_futures::{JsFuture, future_to_promise};
use worker::Delay;
use worker::kv::KvStore;

use crate::authority::Authority;
use crate::drive::{Due, Event, Waiting, interrupted};
use crate::isolate::{MAP_BELIEVED, with};
use crate::kv::{self, Put, Ttl};
use crate::log;
use crate::sessions::{self, Known, Texts};

/// How often a map of a later epoch is asked for while a request waits for it.
const MAP_EVERY: Millis = Millis(500);
const MAP_KEY: &str = "map";
/// How often a request looks whether another one has learned the authority's keys: a call takes some tens of
/// milliseconds.
const KEYS_GLANCE: Millis = Millis(20);

/// Performs the step that an exchange waits for and drives it on.
pub async fn proceed(number: f64) -> String {
    let Some(mut waiting) = with(|isolate| isolate.parked.take(number)).flatten() else { return interrupted() };
    let Some(step) = waiting.step.take() else { return interrupted() };
    let event = perform(step, &mut waiting).await;
    with(|isolate| isolate.resume(waiting, event, now())).unwrap_or_else(interrupted)
}

/// What is due after an answer.
pub async fn afterwards(number: f64) {
    let Some(waiting) = with(|isolate| isolate.parked.take(number)).flatten() else { return };
    let Some((authority, store)) = reach() else { return };
    for due in waiting.due {
        match due {
            Due::Put(put) => {
                if let Some(store) = &store {
                    kv::put(store, &put).await;
                }
            }
            Due::Confirm(id, generation) => authority.confirm(id, generation).await,
            Due::RefreshMap => {
                if let Some(put) = load_map(&authority, store.as_ref(), None).await
                    && let Some(store) = &store
                {
                    kv::put(store, &put).await;
                }
            }
        }
    }
}

async fn perform(step: Step, waiting: &mut Waiting) -> Event {
    let Some((authority, store)) = reach() else { return Event::Session(SessionAnswer::Unavailable) };
    match step {
        Step::Session { id, user, generation, freshness } => {
            let store = store.filter(|_| freshness == Freshness::Cached);
            Event::Session(load_session(&authority, store.as_ref(), id, &user, generation, &mut waiting.due).await)
        }
        Step::LoadMap { min_epoch, until } => {
            Event::Map(wait_for_map(&authority, store.as_ref(), min_epoch, until, &mut waiting.due).await)
        }
        Step::LoadKeys => Event::Keys(load_keys(&authority).await),
        Step::AwaitKeys { until } => Event::Keys(wait_for_keys(until).await),
        Step::Store(op) => match *op {
            StoreOp::Bury(tombstones) => Event::Stored(bury(store.as_ref(), &tombstones).await),
            // Sessions belong to the authority; core passes their calls on.
            _ => Event::Stored(StoreOutcome::Unavailable),
        },
        // Neither is in force here.
        Step::Cache(_) => Event::Cached(CacheAnswer::Unavailable),
        Step::Enqueue(_) => Event::Enqueued(Enqueued::Unavailable),
        // `entry.js` performs the others; a queue is not in force.
        Step::Queue { .. } | Step::ReadBody { .. } | Step::Forward(_) | Step::Respond(_) => Event::QueueTimedOut,
    }
}

/// From KV when `store` is given and knows it, else from the authority.
async fn load_session(
    authority: &Authority,
    store: Option<&KvStore>,
    id: SessionId,
    user: &UserId,
    generation: u32,
    due: &mut Vec<Due>,
) -> SessionAnswer {
    if let Some(store) = store {
        let [session, tombstone, epoch] = kv::get(store, &sessions::keys(id, user)).await;
        match sessions::judge(&Texts { session, tombstone, user: epoch }, user, generation, now()) {
            Known::Live(session) => return SessionAnswer::Loaded(session),
            Known::Dead => return SessionAnswer::Missing,
            Known::Nothing => {}
        }
    }
    let asked_at = now();
    let answer = authority.validate(id, user, generation, asked_at).await;
    if let SessionAnswer::Loaded(session) = &answer
        && store.is_some()
        && with(|isolate| isolate.puts.due(id, asked_at)) == Some(true)
    {
        due.push(Due::Put(sessions::put(id, session)));
    }
    answer
}

/// Rules with a map of at least this epoch; asks until then.
async fn wait_for_map(
    authority: &Authority,
    store: Option<&KvStore>,
    min_epoch: Epoch,
    until: Timestamp,
    due: &mut Vec<Due>,
) -> Option<Arc<Rules>> {
    // KV may hold the first map; a newer one than the one at hand is asked of the authority itself.
    let mut store = store.filter(|_| min_epoch <= Epoch(1));
    loop {
        if let Some(rules) = with(|isolate| isolate.rules_from(min_epoch)).flatten() {
            return Some(rules);
        }
        if let Some(put) = load_map(authority, store.take(), Some(now())).await {
            due.push(Due::Put(put));
        }
        if let Some(rules) = with(|isolate| isolate.rules_from(min_epoch)).flatten() {
            return Some(rules);
        }
        if now() + MAP_EVERY >= until {
            return None;
        }
        Delay::from(Duration::from_millis(MAP_EVERY.0)).await;
    }
}

/// Takes the map that KV has or else the authority's. Returns what KV is to be given.
async fn load_map(authority: &Authority, store: Option<&KvStore>, asked_at: Option<Timestamp>) -> Option<Put> {
    let asked_at = asked_at.unwrap_or_else(now);
    if let Some(store) = store {
        let [text] = kv::get(store, &[MAP_KEY.to_owned()]).await;
        if let Some((checked_at, map)) = text.as_deref().and_then(kept_map)
            && asked_at.since(checked_at) < MAP_BELIEVED
        {
            with(|isolate| {
                isolate.adopt(map);
                isolate.map_asked_at = Some(checked_at);
            });
            return None;
        }
    }
    let text = authority.shard_map().await?;
    match ShardMap::from_json(&text) {
        Ok(map) => {
            with(|isolate| {
                isolate.adopt(map);
                isolate.map_asked_at = Some(asked_at);
            });
            let ttl = Ttl::at_least(MAP_BELIEVED);
            Some(Put { key: MAP_KEY.to_owned(), text: format!("{}\n{text}", asked_at.0), ttl })
        }
        Err(error) => {
            log::error(&format!("the authority's shard map: {error}"));
            None
        }
    }
}

/// A map in KV: when the authority was asked for it, and its JSON.
fn kept_map(text: &str) -> Option<(Timestamp, ShardMap)> {
    let (checked_at, map) = text.split_once('\n')?;
    Some((Timestamp(checked_at.parse().ok()?), ShardMap::from_json(map).ok()?))
}

async fn load_keys(authority: &Authority) -> Option<Arc<Rules>> {
    let text = authority.jwks().await?;
    match parse_jwks(&text) {
        Ok(keys) => with(|isolate| isolate.learn(&keys)).flatten(),
        Err(error) => {
            log::error(&format!("the authority's keys: {error}"));
            None
        }
    }
}

/// The rules once another request has learned the authority's keys, or could not. A timer of its own looks again and
/// again: nothing of that other request is awaited.
async fn wait_for_keys(until: Timestamp) -> Option<Arc<Rules>> {
    while now() < until && with(|isolate| isolate.live.awaits_keys(now())) == Some(true) {
        Delay::from(Duration::from_millis(KEYS_GLANCE.0)).await;
    }
    with(|isolate| isolate.rules.clone())
}

/// All or nothing: the region sends the whole list again. The platform runs a few writes at a time.
async fn bury(store: Option<&KvStore>, tombstones: &[Tombstone]) -> StoreOutcome {
    let Some(store) = store else { return StoreOutcome::Unavailable };
    let now = now();
    let writes: Array = tombstones
        .iter()
        .map(|tombstone| {
            let (store, put) = (store.clone(), sessions::bury(tombstone, now));
            future_to_promise(async move {
                if kv::put(&store, &put).await { Ok(JsValue::TRUE) } else { Err(JsValue::FALSE) }
            })
        })
        .collect();
    match JsFuture::from(Promise::all(&writes)).await {
        Ok(_) => StoreOutcome::Confirmed,
        Err(_) => StoreOutcome::Unavailable,
    }
}

/// What the isolate reaches outside.
fn reach() -> Option<(Authority, Option<KvStore>)> {
    with(|isolate| (isolate.authority.clone(), isolate.kv.clone()))
}

fn now() -> Timestamp {
    timestamp(js_sys::Date::now())
}

/// `Date.now()`, which is a whole number of milliseconds and never negative.
pub fn timestamp(now: f64) -> Timestamp {
    Timestamp(now as u64)
}
