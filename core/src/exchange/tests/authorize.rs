//! Forward-auth: what a proxy in front is told, and whom it is believed.

use super::request::request;
use super::*;
use wasm_bindgen_test::wasm_bindgen_test;

const IDENTITY: [&str; 7] = [
    "x-edgekeep-user",
    "x-edgekeep-session",
    "x-edgekeep-shard",
    "x-edgekeep-shard-epoch",
    "x-edgekeep-shard-next",
    "x-edgekeep-shard-previous",
    "x-edgekeep-signature",
];

fn behind_proxies() -> World {
    World::with(json!({ "server": { "trusted_proxies": ["10.0.0.0/8"] }, "session": { "cookies": true } }))
}

/// A call of a proxy that the configuration trusts.
fn ask(uri: &str) -> Request {
    get("/v1/authorize").from("10.0.0.5").header("x-forwarded-method", "GET").header("x-forwarded-uri", uri)
}

#[wasm_bindgen_test(unsupported = test)]
fn an_admitted_request_is_answered_with_who_it_is_and_where_it_belongs() {
    let mut world = behind_proxies();
    let login = world.log_in("42");
    let answer = world.run(ask("/feed?page=2").bearer(&login.access));
    assert_eq!((answer.status, answer.text()), (200, String::new()));
    assert_eq!(answer.header("x-edgekeep-user"), Some("42"));
    assert_eq!(answer.header("x-edgekeep-session"), Some(login.id.to_string().as_str()));
    assert_eq!(answer.header("x-edgekeep-shard"), Some("shard_1"));
    assert_eq!(answer.header("x-edgekeep-shard-epoch"), Some("1"));
    assert_eq!(answer.header("x-edgekeep-shard-next"), Some(""));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert!(answer.forwarded.is_empty());
}

#[wasm_bindgen_test(unsupported = test)]
fn every_answer_carries_all_identity_headers_a_refusal_blank_ones() {
    let mut world = behind_proxies();
    let login = world.log_in("42");
    let mut refused = vec![
        (world.run(ask("/feed")), 401),
        (world.run(ask("/feed").bearer("rubbish")), 401),
        (world.run(ask("/a/../b").bearer(&login.access)), 400),
        (world.run(ask("/maybe/x")), 200),
        (world.run(ask("/open/x").bearer(&login.access)), 200),
        (
            world.run(
                request("POST", "/v1/authorize")
                    .from("10.0.0.5")
                    .header("x-forwarded-uri", "/feed")
                    .access_cookie(&login.access),
            ),
            403,
        ),
    ];
    world.store.down = true;
    refused.push((world.run(ask("/strict/x").bearer(&login.access)), 503));
    for (answer, status) in refused {
        assert_eq!(answer.status, status, "{}", answer.text());
        for name in IDENTITY {
            assert_eq!(answer.header(name), Some(""), "{name} at {status}");
        }
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn the_route_of_the_original_decides_and_not_its_query() {
    let mut world = behind_proxies();
    let login = world.log_in("42");
    world.run(get("/feed").bearer(&login.access));
    assert_eq!(world.run(ask("/feed").bearer(&login.access)).loads, []);
    assert_eq!(world.run(ask("/strict/x").bearer(&login.access)).loads, [Freshness::Primary]);
    assert_eq!(world.run(ask("https://app.example/strict/x?a=b").bearer(&login.access)).loads, [Freshness::Primary]);
    for hidden in [
        "/strict/x?next=https://evil.example/open/x",
        "/strict/x://evil/open/x",
        "/strict/x#://evil/open/x",
        "https://app.example/strict/x?u=http://evil/open/x",
        "https://app.example?/open/x",
    ] {
        let answer = world.run(ask(hidden));
        assert!([400, 401].contains(&answer.status), "{hidden} is no open route: {}", answer.status);
    }
    for fragment in ["/open/x#", "/open/x#/../../strict/x", "/open/x#?y", "https://app.example/open/x#/y"] {
        world.run(ask(fragment)).refused(400, "bad_path");
    }
    assert_eq!(world.run(ask("/open/x?y#z")).status, 200, "in a query it means nothing");
    assert_eq!(world.run(ask("/open/x")).status, 200);
    assert_eq!(world.run(ask("/%73trict/x").bearer(&login.access)).loads, [Freshness::Primary], "decoded once");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_stranger_is_not_believed_and_its_call_counts_as_session() {
    let mut world = behind_proxies();
    let login = world.log_in("42");
    let spoofed = get("/v1/authorize").header("x-forwarded-uri", "/open/x").header("x-forwarded-method", "GET");
    assert_eq!(world.run(spoofed.clone()).status, 401);
    let admitted = world.run(spoofed.bearer(&login.access));
    assert_eq!((admitted.status, admitted.loads), (200, vec![Freshness::Cached]));
    assert_eq!(world.run(get("/v1/authorize/open/x")).status, 401, "nor is a path below");
    let bare = world.run(get("/v1/authorize").from("10.0.0.5").bearer(&login.access));
    assert_eq!(bare.status, 200, "no URI at all: session");
    assert_eq!(world.run(get("/v1/authorize").from("10.0.0.5")).status, 401);
}

#[wasm_bindgen_test(unsupported = test)]
fn envoys_path_below_with_the_calls_own_method_is_the_original() {
    let mut world = behind_proxies();
    let login = world.log_in("42");
    assert_eq!(world.run(get("/v1/authorize/open/x").from("10.0.0.5")).status, 200);
    assert_eq!(
        world.run(get("/v1/authorize/strict/x").from("10.0.0.5").bearer(&login.access)).loads,
        [Freshness::Primary]
    );
    let post = request("POST", "/v1/authorize/feed").from("10.0.0.5").access_cookie(&login.access);
    assert_eq!(world.run(post.clone()).status, 403, "the original is unsafe");
    let claimed = post.header("x-forwarded-method", "GET");
    assert_eq!(world.run(claimed).status, 403, "Envoy does not set that header: it is the client's");
    let claimed = get("/v1/authorize/strict/x").from("10.0.0.5").header("x-forwarded-uri", "/open/x");
    assert_eq!(world.run(claimed).status, 401, "nor that one");
    assert_eq!(world.run(get("/v1/authorize/feed").from("10.0.0.5").access_cookie(&login.access)).status, 200);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_uri_without_a_method_is_unsafe_and_a_methods_csrf_is_the_originals() {
    let mut world = behind_proxies();
    let login = world.log_in("42");
    let call = || get("/v1/authorize").from("10.0.0.5").access_cookie(&login.access);
    world.run(call().header("x-forwarded-uri", "/feed")).refused(403, "cross_site");
    assert_eq!(world.run(call().header("x-original-uri", "/feed").header("x-original-method", "GET")).status, 200);
    let unsafe_one = || call().header("x-forwarded-uri", "/feed").header("x-forwarded-method", "DELETE");
    world.run(unsafe_one()).refused(403, "cross_site");
    assert_eq!(world.run(unsafe_one().header("sec-fetch-site", "same-origin")).status, 200);
    let from_itself = unsafe_one().header("origin", "https://shop.example").header("x-forwarded-host", "shop.example");
    assert_eq!(world.run(from_itself).status, 200, "the original's host counts");
}

#[wasm_bindgen_test(unsupported = test)]
fn forward_auth_confirms_the_generation_it_saw() {
    let mut world = behind_proxies();
    let login = world.log_in("42");
    let next = super::login(&world.refresh(&login.refresh, "phone"));
    assert_eq!(world.run(ask("/feed").bearer(&next.access)).confirmed, Some((login.id, 1)));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_uri_without_a_method_gets_the_strictest_mode_that_any_method_would() {
    let mut world = World::with(json!({
        "server": { "trusted_proxies": ["10.0.0.0/8"] },
        "routes": [
            { "path": "/x", "methods": ["POST"], "auth": "none", "shard": "any" },
            { "path": "/x", "methods": ["DELETE"], "auth": "strict", "shard": "any" },
        ],
    }));
    let login = world.log_in("42");
    let unknown = || get("/v1/authorize").from("10.0.0.5").header("x-forwarded-uri", "/x");
    world.run(unknown()).refused(401, "missing_credential");
    assert_eq!(world.run(unknown().bearer(&login.access)).loads, [Freshness::Primary]);
    assert_eq!(world.run(unknown().header("x-forwarded-method", "POST")).status, 200);
}

#[wasm_bindgen_test(unsupported = test)]
fn the_family_of_headers_that_the_proxy_leaves_alone_cannot_contradict_its_own() {
    let mut world = behind_proxies();
    let asks = || get("/v1/authorize").from("10.0.0.5");
    // nginx sets X-Original-URI and passes the client's X-Forwarded-Uri on, and the other way round.
    for (own, spoofed) in [("x-original-uri", "x-forwarded-uri"), ("x-forwarded-uri", "x-original-uri")] {
        let answer = world.run(asks().header(own, "/strict/x").header(spoofed, "/open/x"));
        answer.refused(403, "forbidden");
        assert_eq!(answer.header("x-edgekeep-user"), Some(""));
    }
    let method = asks().header("x-original-uri", "/open/x").header("x-original-method", "POST");
    world.run(method.header("x-forwarded-method", "GET")).refused(403, "forbidden");
    let same = asks().header("x-original-uri", "/open/x").header("x-forwarded-uri", "/open/x");
    assert_eq!(world.run(same).status, 200);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_uri_that_is_no_text_or_there_twice_is_not_taken_for_none() {
    let mut world = behind_proxies();
    let login = world.log_in("42");
    let asks = || get("/v1/authorize").from("10.0.0.5").bearer(&login.access);
    for name in ["x-original-uri", "x-forwarded-uri", "x-original-method", "x-forwarded-method"] {
        // Without a URI the mode would be `session`, and this is a strict route's.
        let answer = world.run(asks().header_bytes(name, b"/strict/\xff"));
        answer.refused(400, "bad_path");
        assert_eq!((answer.header("x-edgekeep-user"), answer.loads.len()), (Some(""), 0), "{name}");
        // Of two lines one is the client's, and nobody knows which.
        world.run(asks().header(name, "/open/x").header(name, "/strict/x")).refused(403, "forbidden");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_websocket_of_another_site_is_refused_though_the_proxy_left_upgrade_out() {
    let mut world = behind_proxies();
    let login = world.log_in("42");
    let handshake = || ask("/feed").access_cookie(&login.access).header("sec-websocket-version", "13");
    world.run(handshake().header("origin", "https://evil.example")).refused(403, "cross_site");
    world
        .run(handshake().header("upgrade", "websocket").header("sec-fetch-site", "cross-site"))
        .refused(403, "cross_site");
    assert_eq!(world.run(handshake().header("origin", "https://app.example")).status, 200);
}
