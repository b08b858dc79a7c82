//! Paths: tricks are refused before any rule is looked up, and what no rule matches ends here.

use super::request::request;
use super::*;
use wasm_bindgen_test::wasm_bindgen_test;

#[wasm_bindgen_test(unsupported = test)]
fn an_ambiguous_path_is_refused_before_any_route_is_looked_up() {
    let mut world = World::new();
    let login = world.log_in("42");
    for path in [
        "/open/../strict/x",
        "/open/%2e%2e/strict/x",
        "/open/./x",
        "//strict/x",
        "/open//x",
        "/open%2Fx",
        "/open%5Cx",
        "/open/%00",
        "/open/%252e%252e/x",
        "/open/%zz",
    ] {
        let answer = world.run(get(path).bearer(&login.access));
        answer.refused(400, "bad_path");
        assert!(answer.forwarded.is_empty(), "{path}");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn an_encoded_spelling_of_a_strict_path_is_as_strict() {
    let mut world = World::new();
    let login = world.log_in("42");
    assert_eq!(world.run(get("/%73trict/x").bearer(&login.access)).loads, [Freshness::Primary]);
}

#[wasm_bindgen_test(unsupported = test)]
fn what_no_route_matches_is_404() {
    let over =
        json!({ "routes": [{ "path": "/app/{rest..}" }, { "path": "/site", "host": "site.example", "auth": "none" }] });
    let mut world = World::with(over);
    world.run(get("/other")).refused(404, "no_route");
    world.run(get("/site")).refused(404, "no_route");
    assert_eq!(world.run(get("/site").asking_host("site.example:8443")).status, 200);
}

#[wasm_bindgen_test(unsupported = test)]
fn tunnels_and_traces_are_not_proxied() {
    let mut world = World::new();
    for method in ["CONNECT", "TRACE"] {
        let answer = world.run(request(method, "/open/x"));
        answer.refused(405, "method_not_allowed");
        assert!(answer.forwarded.is_empty());
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn own_paths_live_below_the_prefix_and_only_there() {
    let mut world = World::with(json!({ "server": { "api_prefix": "/_edgekeep" } }));
    let create = |path: &str| post(path).bearer(SERVICE).json(&json!({ "user_id": 42 }));
    assert_eq!(world.run(create("/_edgekeep/v1/sessions")).status, 201);
    let elsewhere = world.run(create("/v1/sessions"));
    elsewhere.refused(401, "invalid_token");
}
