//! What the gateway counts, as text with OTel's names.

use std::sync::atomic::{AtomicU64, Ordering};

use edgekeep_core::balance::{Origin, Standing, panics};
use edgekeep_core::exchange::Rules;
use edgekeep_core::metrics::{Cells, Exposition, Kind, Refresh, TextFormat};

use super::Admin;
use crate::gateway::clock;
use crate::store::redis::{Redis, UNREPLICATED};

pub fn exposition(admin: &Admin, cores: &[Cells], format: TextFormat) -> String {
    let Admin { shared, reports, .. } = admin;
    let mut sum = Cells::default();
    cores.iter().for_each(|cells| sum.merge(cells));
    let mut out = Exposition::new(format);

    out.family("http_server_requests", Kind::Counter, None, "Answers by the status's class.");
    for class in 1..=5 {
        let label = format!("{class}xx");
        out.sample(&[("http_response_status_class", &label)], sum.by_class[class] as f64);
    }
    out.family(
        "http_server_request_duration_seconds",
        Kind::Histogram,
        Some("seconds"),
        "From the request's head received to the response's head sent.",
    );
    out.histogram(&[], &sum.duration);
    out.family("edgekeep_auth_attempts", Kind::Counter, None, "Requests with a credential, creates and refreshes.");
    out.sample(&[], sum.auth_attempts as f64);
    out.family("edgekeep_auth_admitted", Kind::Counter, None, "Attempts that were admitted.");
    out.sample(&[], sum.auth_successes as f64);
    out.family("edgekeep_refreshes", Kind::Counter, None, "Refreshes by how they came out.");
    for how in Refresh::ALL {
        out.sample(&[("outcome", how.name())], sum.refreshes(how) as f64);
    }
    let help = "Upgraded connections and streams that were closed because their session had ended.";
    out.family("edgekeep_streams_cut", Kind::Counter, None, help);
    out.sample(&[], sum.streams_cut as f64);
    let help = "Lines of the log that nobody read in time, or no disk took.";
    out.family("edgekeep_log_lines_dropped", Kind::Counter, None, help);
    out.sample(&[], crate::log::dropped() as f64);
    let told = shared.notify.counted();
    out.family("edgekeep_edge_tombstones_posted", Kind::Counter, None, "Tombstones that a Worker of edge.notify took.");
    out.sample(&[], told.posted as f64);
    let help = "Tombstones given up: too many waited for a Worker, or their time was over.";
    out.family("edgekeep_edge_tombstones_dropped", Kind::Counter, None, help);
    out.sample(&[], told.dropped as f64);
    let help = "Tombstones that a Worker of edge.notify has not taken yet.";
    out.family("edgekeep_edge_tombstones_pending", Kind::Gauge, None, help);
    out.sample(&[], told.pending as f64);
    out.family("edgekeep_near_cache_sessions", Kind::Gauge, None, "Sessions in the near cache.");
    out.sample(&[], shared.live.near.len() as f64);
    out.family("edgekeep_near_cache_capacity", Kind::Gauge, None, "The most sessions the near cache holds.");
    out.sample(&[], shared.live.near.capacity() as f64);
    out.family("edgekeep_near_cache_bytes", Kind::Gauge, Some("bytes"), "Memory taken by the near cache.");
    out.sample(&[], shared.live.near.memory() as f64);
    out.family("edgekeep_near_cache_lookups", Kind::Counter, None, "Looks into the near cache for a session.");
    out.sample(&[("outcome", "hit")], sum.near_hits as f64);
    out.sample(&[("outcome", "miss")], sum.near_misses as f64);
    out.family("edgekeep_near_cache_invalidations", Kind::Counter, None, "Invalidations and flushes that came.");
    out.sample(&[], shared.live.near.invalidations() as f64);

    if let Some(redis) = shared.store.redis() {
        store_in_redis(&mut out, redis);
    }
    out.family("edgekeep_gateways_live", Kind::Gauge, None, "Gateways that reported to the store within their lease.");
    out.sample(&[], reports.live() as f64);
    out.family(
        "edgekeep_keys_ready",
        Kind::Gauge,
        None,
        "1 while no other gateway signs with a key that this one lacks.",
    );
    out.sample(&[], f64::from(u8::from(reports.readiness().is_ok())));

    let rules = shared.rules.load();
    if let Some(map) = rules.map() {
        out.family("edgekeep_shard_map_epoch", Kind::Gauge, None, "Epoch of the shard map in use.");
        out.sample(&[], map.epoch().0 as f64);
    }
    health(&mut out, admin, &rules);
    out.finish()
}

fn health(out: &mut Exposition, admin: &Admin, rules: &Rules) {
    let (now, checks) = (clock::now(), admin.checker.checks());
    out.family("edgekeep_origin_in_flight", Kind::Gauge, None, "Requests at an origin now.");
    each_origin(rules, |labels, origin| out.sample(labels, f64::from(origin.state.in_flight())));
    out.family("edgekeep_origin_available", Kind::Gauge, None, "1 while an origin gets new requests.");
    each_origin(rules, |labels, origin| {
        out.sample(labels, f64::from(u8::from(origin.state.standing(now).is_available())));
    });
    out.family("edgekeep_origin_state", Kind::StateSet, None, "What an origin is used for, and why not for more.");
    let states = Standing::ALL.map(Standing::name);
    each_origin(rules, |labels, origin| out.states(labels, &states, origin.state.standing(now).name()));
    out.family("edgekeep_origin_checks", Kind::Counter, None, "Active health checks, by how they came out.");
    each_origin(rules, |labels, origin| {
        let counts = checks.counts(&origin.id);
        let [pool, origin] = *labels;
        out.sample(&[pool, origin, ("outcome", "passed")], counts.passed as f64);
        out.sample(&[pool, origin, ("outcome", "failed")], counts.failed as f64);
    });
    out.family("edgekeep_origin_ejections", Kind::Counter, None, "How often live traffic threw an origin out.");
    each_origin(rules, |labels, origin| out.sample(labels, f64::from(origin.state.ejections())));
    let help = "Ejections that did not happen because the pool had no more origins to spare.";
    out.family("edgekeep_pool_ejections_refused", Kind::Counter, None, help);
    for pool in rules.pools() {
        out.sample(&[("pool", &pool.name)], admin.shared.live.ejections.refused(&pool.name) as f64);
    }
    let help = "Requests that wait for a place at a pool whose origins are at max_connections; pool \"any\" is all user shards'.";
    out.family("edgekeep_queue_waiting", Kind::Gauge, None, help);
    for (pool, waiting) in rules.lines() {
        out.sample(&[("pool", pool.unwrap_or("any"))], waiting as f64);
    }
    let help = "1 while fewer than balance.panic_threshold of a pool's origins are available.";
    out.family("edgekeep_pool_panic", Kind::Gauge, None, help);
    for pool in rules.pools() {
        out.sample(&[("pool", &pool.name)], f64::from(u8::from(panics(&pool.origins, now, &rules.balance))));
    }
}

fn each_origin(rules: &Rules, mut sample: impl FnMut(&[(&str, &str); 2], &Origin)) {
    for (pool, origin) in rules.origins() {
        sample(&[("pool", pool), ("origin", origin.id.as_str())], origin);
    }
}

fn store_in_redis(out: &mut Exposition, redis: &Redis) {
    let counters = redis.counters();
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    out.family(
        "edgekeep_store_unreplicated",
        Kind::Counter,
        None,
        "Writes that were answered although fewer than store.wait_replicas have them: a failover may lose them.",
    );
    for (op, counter) in UNREPLICATED.iter().zip(&counters.unreplicated) {
        out.sample(&[("op", op)], read(counter));
    }
    for (name, help, counter) in [
        ("edgekeep_store_redirects", "Redirections by Redis Cluster that were followed.", &counters.redirected),
        ("edgekeep_store_retries", "Calls that were repeated.", &counters.retried),
        ("edgekeep_store_unavailable", "Calls that found no store.", &counters.unavailable),
        ("edgekeep_store_feeds_lost", "Connections for invalidations that were lost.", &counters.feeds_lost),
        ("edgekeep_store_invalidations", "Keys that Redis told of a change.", &counters.invalidations),
        ("edgekeep_store_slot_maps", "Maps of Redis slots that were taken over.", &counters.maps),
    ] {
        out.family(name, Kind::Counter, None, help);
        out.sample(&[], read(counter));
    }
    out.family(
        "edgekeep_store_pending_revocations",
        Kind::Gauge,
        None,
        "Revocations answered 202 that are still being repeated.",
    );
    out.sample(&[], read(&counters.pending));
    out.family("edgekeep_store_server_up", Kind::Gauge, None, "1 while a Redis server tells of revocations.");
    for (server, up) in redis.servers() {
        out.sample(&[("server", &server)], f64::from(u8::from(up)));
    }
}
