//! Who gets in: tokens, sessions, modes, and what the origin is told of it.

use super::*;
use wasm_bindgen_test::wasm_bindgen_test;

#[wasm_bindgen_test(unsupported = test)]
fn on_the_common_path_the_first_step_is_already_the_forward() {
    let mut world = World::new();
    let login = world.log_in("42");
    let first = world.run(get("/feed").bearer(&login.access));
    assert_eq!(first.steps, ["session", "forward", "respond"], "the session is loaded once");
    assert_eq!(first.loads, [Freshness::Cached]);
    let second = world.run(get("/feed").bearer(&login.access));
    assert_eq!(second.steps, ["forward", "respond"]);
    assert_eq!((second.status, second.asked()), (200, vec!["c"]));
    assert_eq!(second.seen().header("x-edgekeep-user"), Some("42"));
    assert_eq!(second.seen().header("x-edgekeep-session"), Some(login.id.to_string().as_str()));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_near_session_is_loaded_again_after_sixty_seconds() {
    let mut world = World::new();
    let login = world.log_in("42");
    world.run(get("/feed").bearer(&login.access));
    world.pass(59);
    assert_eq!(world.run(get("/feed").bearer(&login.access)).steps, ["forward", "respond"]);
    world.pass(1);
    assert_eq!(world.run(get("/feed").bearer(&login.access)).steps, ["session", "forward", "respond"]);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_strict_route_asks_the_primary_every_time() {
    let mut world = World::new();
    let login = world.log_in("42");
    for _ in 0..3 {
        let answer = world.run(get("/strict/x").bearer(&login.access));
        assert_eq!((answer.status, answer.loads), (200, vec![Freshness::Primary]));
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_token_route_never_asks_and_lets_a_revoked_session_in_until_its_token_expires() {
    let mut world = World::new();
    let login = world.log_in("42");
    world.run(delete("/v1/users/42/sessions").bearer(SERVICE));
    let answer = world.run(get("/token/x").bearer(&login.access));
    assert_eq!((answer.status, answer.steps), (200, vec!["forward", "respond"]));
    world.run(get("/feed").bearer(&login.access)).refused(401, "session_ended");
    world.pass(900);
    world.run(get("/token/x").bearer(&login.access)).refused(401, "expired_token");
}

#[wasm_bindgen_test(unsupported = test)]
fn an_optional_route_admits_a_guest_and_refuses_a_bad_token() {
    let mut world = World::new();
    let login = world.log_in("42");
    let guest = world.run(get("/maybe/x"));
    assert_eq!((guest.status, guest.seen().header("x-edgekeep-user")), (200, None));
    let user = world.run(get("/maybe/x").bearer(&login.access));
    assert_eq!(user.seen().header("x-edgekeep-user"), Some("42"));
    assert_eq!(user.asked(), ["c"], "by the session's user, where there is one");
    let bad = world.run(get("/maybe/x").bearer("not.a.token"));
    bad.refused(401, "invalid_token");
    assert!(bad.forwarded.is_empty());
    let other = world.run(get("/maybe/x").header("authorization", "Basic YTpi"));
    assert_eq!(other.seen().header("authorization"), Some("Basic YTpi"), "another scheme is not ours");
}

#[wasm_bindgen_test(unsupported = test)]
fn without_a_credential_a_session_route_answers_with_the_bare_challenge() {
    let mut world = World::new();
    let answer = world.run(get("/feed"));
    answer.refused(401, "missing_credential");
    assert_eq!(answer.header("www-authenticate"), Some("Bearer realm=\"edgekeep\""));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_token_of_other_keys_gets_in_nowhere() {
    let mut world = World::new();
    let login = world.log_in("42");
    let strangers = KeyRing::generate(KeyAlgorithm::EdDsa, &mut Entropy::for_tests(99), NOW);
    let forged = world.mint_with(&strangers, login.id, "42", 0);
    for path in ["/feed", "/token/x", "/strict/x", "/maybe/x", "/account/x"] {
        let answer = world.run(get(path).bearer(&forged));
        answer.refused(401, "invalid_token");
        assert_eq!(answer.steps, ["respond"], "{path}: neither store nor origin is asked");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn on_an_open_route_our_own_token_is_dropped_and_a_foreign_one_passes() {
    let mut world = World::new();
    let login = world.log_in("42");
    let own = world.run(get("/open/x").bearer(&login.access));
    assert_eq!((own.status, own.seen().header("authorization")), (200, None));
    assert_eq!(own.seen().header("x-edgekeep-user"), None, "it is not looked at");
    let foreign = world.run(get("/open/x").bearer("the-application-s-own"));
    assert_eq!(foreign.seen().header("authorization"), Some("Bearer the-application-s-own"));
    world.pass(900);
    let expired = world.run(get("/open/x").bearer(&login.access));
    assert_eq!((expired.status, expired.seen().header("authorization")), (200, None), "an old one is ours too");
    let behind = get("/open/x").bearer("foreign").bearer(&login.access);
    let headers = world.run(behind).seen().header("authorization").map(str::to_owned);
    assert_eq!(headers, None, "nor does it pass behind another one");
}

#[wasm_bindgen_test(unsupported = test)]
fn the_origin_gets_the_token_only_where_the_route_passes_it() {
    let mut world = World::new();
    let login = world.log_in("42");
    let kept = world.run(get("/feed").bearer(&login.access));
    assert_eq!(kept.seen().header("authorization"), None);
    let passed = world.run(get("/account/x").bearer(&login.access));
    let bearer = format!("Bearer {}", login.access);
    assert_eq!(passed.seen().header("authorization"), Some(bearer.as_str()));
    let cookie = world.run(get("/account/x").access_cookie(&login.access));
    assert_eq!(cookie.seen().header("authorization"), Some(bearer.as_str()), "a cookie's token passes as a bearer");
    assert_eq!(cookie.seen().header("cookie"), None);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_session_of_another_user_than_the_tokens_is_refused() {
    let mut world = World::new();
    let login = world.log_in("42");
    let crossed = world.mint(login.id, "43", 0);
    for path in ["/feed", "/strict/x"] {
        world.run(get(path).bearer(&crossed)).refused(401, "session_ended");
    }
    world.run(get("/feed").bearer(&login.access));
    world.run(get("/feed").bearer(&crossed)).refused(401, "session_ended");
}

#[wasm_bindgen_test(unsupported = test)]
fn an_expired_session_lets_nobody_in_even_from_the_near_cache() {
    let mut world = World::with(json!({ "session": { "idle_ttl": "15m" } }));
    let login = world.log_in("42");
    world.pass(860);
    let token = world.mint(login.id, "42", 0);
    assert_eq!(world.run(get("/feed").bearer(&token)).status, 200);
    world.pass(40);
    let late = world.run(get("/feed").bearer(&token));
    late.refused(401, "session_ended");
    assert_eq!(late.steps, ["respond"]);
}

#[wasm_bindgen_test(unsupported = test)]
fn with_the_store_down_a_near_session_still_serves_and_another_one_gets_503() {
    let mut world = World::new();
    let (near, far) = (world.log_in("42"), world.log_in("7"));
    world.run(get("/feed").bearer(&near.access));
    world.store.down = true;
    assert_eq!(world.run(get("/feed").bearer(&near.access)).status, 200);
    let answer = world.run(get("/feed").bearer(&far.access));
    answer.refused(503, "store_unavailable");
    assert_eq!(answer.header("retry-after"), Some("1"));
    world.run(get("/strict/x").bearer(&near.access)).refused(503, "store_unavailable");
}

#[wasm_bindgen_test(unsupported = test)]
fn an_unverified_entry_serves_only_where_allow_cached_says_so() {
    for (policy, status) in [("refuse", 503), ("allow_cached", 200)] {
        let mut world = World::with(json!({ "session": { "on_store_down": policy } }));
        let login = world.log_in("42");
        world.run(get("/feed").bearer(&login.access));
        world.live.near.disconnected(&[0..=16_383]);
        world.store.down = true;
        let answer = world.run(get("/feed").bearer(&login.access));
        assert_eq!((answer.status, answer.steps[0]), (status, "session"), "{policy}: the store is asked first");
        let strict = world.run(get("/strict/x").bearer(&login.access));
        assert_eq!(strict.status, 503, "{policy}: never for strict");
        world.pass(60);
        let late = world.run(get("/feed").bearer(&login.access));
        assert_eq!(late.status, 503, "{policy}: not beyond 60 s after its fill");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn an_unverified_entry_never_outvotes_the_store() {
    let mut world = World::with(json!({ "session": { "on_store_down": "allow_cached" } }));
    let login = world.log_in("42");
    world.run(get("/feed").bearer(&login.access));
    world.live.near.disconnected(&[0..=16_383]);
    let elsewhere = crate::session::NearCache::new(1, &mut Entropy::for_tests(3));
    world.store.perform(&crate::session::StoreOp::Revoke { id: login.id, user: None, now: NOW }, &elsewhere);
    world.run(get("/feed").bearer(&login.access)).refused(401, "session_ended");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_generation_is_confirmed_once_after_its_first_answer() {
    let mut world = World::new();
    let login = world.log_in("42");
    assert_eq!(world.run(get("/feed").bearer(&login.access)).confirmed, None, "generation 0 says nothing new");
    let next = super::login(&world.refresh(&login.refresh, "phone"));
    let first = world.run(get("/token/x").bearer(&next.access));
    assert_eq!(first.confirmed, Some((login.id, 1)), "in token mode too");
    assert_eq!(world.run(get("/feed").bearer(&next.access)).confirmed, None);
    assert_eq!(world.store.state(login.id).seen, 1);
    let open = world.run(get("/open/x").bearer(&world.mint(login.id, "42", 2)));
    assert_eq!(open.confirmed, None, "not where no credential is looked at");
    let refused = world.run(get("/feed").bearer(&world.mint(login.id, "43", 2)));
    assert_eq!(refused.confirmed, None, "nor for who was not admitted");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_credential_that_is_read_in_two_ways_lets_nobody_in_not_even_as_a_guest() {
    let mut world = World::new();
    let login = world.log_in("42");
    for path in ["/feed", "/maybe/x"] {
        let two = get(path).bearer(&login.access).header("authorization", "Bearer forged");
        world.run(two).refused(401, "invalid_token");
        let bytes = [b"Bearer ", login.access.as_bytes(), b"\xe9"].concat();
        world.run(get(path).header_bytes("authorization", &bytes)).refused(401, "invalid_token");
        world.run(get(path).header("authorization", "bearer")).refused(401, "invalid_token");
    }
    let tab = format!("Bearer\t{}", login.access);
    assert_eq!(world.run(get("/feed").header("authorization", &tab)).status, 200);
    let seen = world.run(get("/open/x").header("authorization", &tab));
    assert_eq!(seen.seen().header("authorization"), None, "our own token, whatever stands before it");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_host_that_others_may_read_as_another_one_is_refused() {
    let routes = json!([
        { "path": "/adm/{rest..}", "host": "app.example", "auth": "strict" }, { "path": "/{rest..}", "auth": "none" },
    ]);
    let mut world = World::with(json!({ "routes": routes }));
    world.run(get("/adm/x").host("app.example")).refused(401, "missing_credential");
    for host in
        ["u@app.example", "app.example/", "app.example?x", "app.exampl%65", "app.example#", "app.example\\x", "a b"]
    {
        world.run(get("/adm/x").host(host)).refused(400, "bad_request");
    }
    for host in ["other.example", "a_b.example:8080", "[::1]:80", "192.0.2.1"] {
        assert_eq!(world.run(get("/adm/x").host(host)).status, 200, "{host}");
    }
}
