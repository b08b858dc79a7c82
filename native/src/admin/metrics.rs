//! What the gateway counts, as text with OTel's names.

use edgekeep_core::metrics::{Cells, Exposition, Kind, Refresh, TextFormat};

use crate::gateway::{Shared, clock};
use crate::reports::Reports;

pub fn exposition(shared: &Shared, reports: &Reports, cores: &[Cells], format: TextFormat) -> String {
    let mut sum = Cells::default();
    cores.iter().for_each(|cells| sum.merge(cells));
    let now = clock::now();
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
    out.family("edgekeep_near_cache_sessions", Kind::Gauge, None, "Sessions in the near cache.");
    out.sample(&[], shared.live.near.len() as f64);
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
    out.family("edgekeep_origin_in_flight", Kind::Gauge, None, "Requests at an origin now.");
    for (pool, origin) in rules.origins() {
        let labels = [("pool", pool), ("origin", origin.id.as_str())];
        out.sample(&labels, f64::from(origin.state.in_flight()));
    }
    out.family("edgekeep_origin_available", Kind::Gauge, None, "1 while an origin gets new requests.");
    for (pool, origin) in rules.origins() {
        let labels = [("pool", pool), ("origin", origin.id.as_str())];
        out.sample(&labels, f64::from(u8::from(origin.state.standing(now).is_available())));
    }
    out.finish()
}
