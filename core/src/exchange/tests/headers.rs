//! What an origin sees of a request, and a client of an answer.

use super::request::request;
use super::*;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use wasm_bindgen_test::wasm_bindgen_test;

#[wasm_bindgen_test(unsupported = test)]
fn identity_comes_from_the_session_and_never_from_the_client() {
    let mut world = World::new();
    let login = world.log_in("7");
    let spoofed = |request: Request| {
        ["user", "session", "shard", "shard-epoch", "shard-next", "signature", "anything"]
            .iter()
            .fold(request, |request, name| request.header(&format!("x-edgekeep-{name}"), "spoofed"))
    };
    let answer = world.run(spoofed(get("/feed").bearer(&login.access)));
    let seen = answer.seen();
    assert_eq!((seen.header("x-edgekeep-user"), seen.header("x-edgekeep-shard")), (Some("7"), Some("shard_0")));
    assert_eq!(seen.header("x-edgekeep-shard-epoch"), Some("1"));
    for name in ["x-edgekeep-shard-next", "x-edgekeep-signature", "x-edgekeep-anything"] {
        assert_eq!(seen.header(name), None, "{name}");
    }
    let guest = world.run(spoofed(get("/open/x")));
    assert_eq!((guest.seen().header("x-edgekeep-user"), guest.seen().header("x-edgekeep-session")), (None, None));
}

#[wasm_bindgen_test(unsupported = test)]
fn an_identity_outside_ascii_is_percent_encoded() {
    let mut world = World::new();
    let login = world.log_in("zoë smith");
    let answer = world.run(get("/feed").bearer(&login.access));
    assert_eq!(answer.seen().header("x-edgekeep-user"), Some("zo%C3%AB%20smith"));
}

#[wasm_bindgen_test(unsupported = test)]
fn hop_by_hop_headers_and_those_that_connection_names_do_not_pass() {
    let mut world = World::new();
    let login = world.log_in("7");
    let answer = world.run(
        get("/feed")
            .bearer(&login.access)
            .header("connection", "close, X-Private, x-edgekeep-user, content-type")
            .header("x-private", "1")
            .header("content-type", "text/plain")
            .header("te", "trailers")
            .header("accept", "*/*"),
    );
    let seen = answer.seen();
    for gone in ["connection", "x-private", "te"] {
        assert_eq!(seen.header(gone), None, "{gone}");
    }
    assert_eq!(seen.header("accept"), Some("*/*"));
    assert_eq!(seen.header("content-type"), Some("text/plain"), "naming it takes no meaning away");
    assert_eq!(seen.header("x-edgekeep-user"), Some("7"), "nor the identity");
}

#[wasm_bindgen_test(unsupported = test)]
fn the_origin_learns_who_asked_and_by_which_way() {
    let mut world = World::with(json!({ "server": { "trusted_proxies": ["10.0.0.0/8"] } }));
    let stranger = world.run(
        get("/open/x")
            .header("x-forwarded-for", "1.2.3.4")
            .header("forwarded", "for=1.2.3.4")
            .header("x-forwarded-proto", "http"),
    );
    let seen = stranger.seen();
    assert_eq!(seen.header("x-forwarded-for"), Some("192.0.2.9"), "what a stranger claims is replaced");
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
    assert_eq!(seen.header("x-forwarded-host"), Some("app.example"));
    assert_eq!(seen.header("forwarded"), Some("for=192.0.2.9;host=\"app.example\";proto=https"));
    let proxied = world.run(get("/open/x").from("10.0.0.5").header("x-forwarded-for", "1.2.3.4"));
    assert_eq!(proxied.seen().header("x-forwarded-for"), Some("1.2.3.4, 10.0.0.5"));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_request_keeps_its_names_and_gets_them_where_it_has_none() {
    let mut world = World::new();
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let named = world.run(get("/open/x").header("x-request-id", "req-1").header("traceparent", trace));
    assert_eq!(named.seen().header("x-request-id"), Some("req-1"));
    let continued = named.seen().header("traceparent").unwrap();
    assert!(continued.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && continued.ends_with("-01"));
    assert_ne!(continued, trace, "with a new parent");
    let bare = world.run(get("/open/x").header("x-request-id", "not visible\u{e9}"));
    assert_eq!(bare.seen().header("x-request-id").unwrap().len(), 32);
    assert_eq!(bare.seen().header("traceparent").unwrap().len(), 55);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_signed_request_can_be_checked_by_its_origin() {
    let mut world = World::new().with_secrets(Secrets::new(Some(SERVICE), None, Some("origin key")));
    let login = world.log_in("7");
    let answer = world.run(put("/feed?page=2").bearer(&login.access));
    let seconds = NOW.seconds();
    let mut mac = Hmac::<Sha256>::new_from_slice(b"origin key").unwrap();
    mac.update(format!("{seconds}\nPUT\n/feed\n7\n{}\nshard_0", login.id).as_bytes());
    let tag: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(answer.seen().header("x-edgekeep-signature"), Some(format!("t={seconds},v1={tag}").as_str()));
    let guest = world.run(get("/open/x"));
    assert!(
        guest.seen().header("x-edgekeep-signature").is_some(),
        "that it came through Edgekeep holds for guests too"
    );
}

#[wasm_bindgen_test(unsupported = test)]
fn a_pool_may_name_the_host_that_its_origins_want() {
    let over = json!({ "pools": [
        { "shard": "shard_0", "host": "internal.example", "origins": [{ "id": "a", "url": "http://10.1.0.1:9001" }] },
        { "shard": "shard_1", "origins": [{ "id": "c", "url": "http://10.1.0.3:9001" }] },
    ] });
    let mut world = World::with(over);
    let (named, kept) = (world.log_in("7"), world.log_in("42"));
    let answer = world.run(get("/feed").bearer(&named.access));
    assert_eq!(answer.seen().host.as_deref(), Some("internal.example"));
    assert_eq!(answer.seen().header("x-forwarded-host"), Some("app.example"));
    assert_eq!(world.run(get("/feed").bearer(&kept.access)).seen().host, None);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_clients_answer_has_none_of_the_connections_headers() {
    let mut world = World::new();
    let headers = vec![
        ("connection", "keep-alive, x-hop"),
        ("x-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("x-edgekeep-user", "7"),
        ("etag", "\"1\""),
    ];
    world.script("c", Does::Answer(200, headers));
    let login = world.log_in("42");
    let answer = world.run(get("/feed").bearer(&login.access));
    for gone in ["connection", "x-hop", "keep-alive", "x-edgekeep-user"] {
        assert_eq!(answer.header(gone), None, "{gone}");
    }
    assert_eq!(answer.header("etag"), Some("\"1\""));
}

#[wasm_bindgen_test(unsupported = test)]
fn an_upgrade_passes_and_h2c_does_not() {
    let mut world = World::new();
    world.script("c", Does::Answer(101, vec![]));
    let login = world.log_in("42");
    let upgrade =
        |protocol| get("/live").bearer(&login.access).header("connection", "upgrade").header("upgrade", protocol);
    let answer = world.run(upgrade("websocket"));
    assert!(answer.seen().upgrade && answer.upgraded);
    assert_eq!(answer.status, 101);
    for hidden in ["h2c", "H2C", "websocket, h2c"] {
        assert!(!world.run(upgrade(hidden)).seen().upgrade, "{hidden} would carry requests past the gateway");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_preflight_is_answered_where_the_route_has_cors() {
    let mut world = World::new();
    let preflight = |origin: &str, method: &str| {
        let request = request("OPTIONS", "/public/x").header("origin", origin);
        request
            .header("access-control-request-method", method)
            .header("access-control-request-headers", "authorization")
    };
    let allowed = world.run(preflight("https://app.example", "GET"));
    assert_eq!((allowed.status, allowed.steps), (204, vec!["respond"]));
    let allowed = world.run(preflight("https://app.example", "GET"));
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(allowed.header("access-control-allow-methods"), Some("GET"));
    assert_eq!(allowed.header("access-control-allow-headers"), Some("authorization"));
    assert_eq!(allowed.header("access-control-allow-credentials"), Some("true"));
    assert_eq!(allowed.header("vary"), Some("origin"));
    let stranger = world.run(preflight("https://evil.example", "GET"));
    assert_eq!((stranger.status, stranger.header("access-control-allow-origin")), (204, None));
    assert_eq!(stranger.header("access-control-allow-methods"), None);
}

#[wasm_bindgen_test(unsupported = test)]
fn answers_and_refusals_on_a_cors_route_can_be_read_by_listed_origins() {
    let mut world = World::new();
    let login = world.log_in("7");
    let refused = world.run(get("/public/x").header("origin", "https://app.example"));
    refused.refused(401, "missing_credential");
    assert_eq!(refused.header("access-control-allow-origin"), Some("https://app.example"));
    let answer = world.run(get("/public/x").header("origin", "https://app.example").bearer(&login.access));
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"));
    let stranger = world.run(get("/public/x").header("origin", "https://evil.example").bearer(&login.access));
    assert_eq!((stranger.status, stranger.header("access-control-allow-origin")), (200, None));
    // The route's rule is the only one: the origin server's own is not added to it.
    let own =
        vec![("access-control-allow-origin", "https://evil.example"), ("access-control-allow-credentials", "true")];
    for origin in ["a", "b", "c"] {
        world.script(origin, Does::Answer(200, own.clone()));
    }
    let stranger = world.run(get("/public/x").header("origin", "https://evil.example").bearer(&login.access));
    assert_eq!(stranger.header("access-control-allow-origin"), None);
    assert_eq!(stranger.header("access-control-allow-credentials"), None);
}

#[wasm_bindgen_test(unsupported = test)]
fn without_cors_a_preflight_goes_to_the_origin_unauthenticated_and_without_our_token() {
    let mut world = World::new();
    let login = world.log_in("42");
    let preflight = || {
        let request = request("OPTIONS", "/feed").header("origin", "https://app.example");
        request.header("access-control-request-method", "DELETE")
    };
    let answer = world.run(preflight());
    assert_eq!((answer.status, answer.steps), (200, vec!["forward", "respond"]));
    let smuggled = world.run(preflight().bearer(&login.access));
    assert_eq!(smuggled.seen().header("authorization"), None);
    assert_eq!(smuggled.seen().header("x-edgekeep-user"), None);
    let plain = world.run(request("OPTIONS", "/feed").header("origin", "https://app.example"));
    plain.refused(401, "missing_credential");
}
