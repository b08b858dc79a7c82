//! The session API: create, list, end, and who may call what.

use super::request::request;
use super::*;
use crate::session::StoreOp;
use wasm_bindgen_test::wasm_bindgen_test;

fn create(world: &mut World, body: &Value) -> Answer {
    world.run(post("/v1/sessions").bearer(SERVICE).json(body))
}

#[wasm_bindgen_test(unsupported = test)]
fn create_answers_201_with_both_tokens_and_is_never_stored_by_anyone() {
    let mut world = World::new();
    let answer = create(&mut world, &json!({ "user_id": 42, "device_info": { "os": "linux" } }));
    assert_eq!(answer.status, 201);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let body = answer.json();
    assert_eq!(body["token_type"], "Bearer");
    assert_eq!(body["refresh_expires_in"].as_u64(), Some(14 * 86_400), "the idle limit comes first");
    let expires_in = body["expires_in"].as_u64().unwrap();
    assert!((855..=900).contains(&expires_in), "15 minutes less up to 5 %: {expires_in}");
    assert!(answer.cookies_set().is_empty(), "cookies are off by default");
    assert_eq!(body.as_object().unwrap().len(), 6);
    let login = login(&answer);
    assert_eq!(world.run(get("/strict/x").bearer(&login.access)).status, 200);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_number_and_its_text_are_one_user() {
    let mut world = World::new();
    create(&mut world, &json!({ "user_id": 42 }));
    create(&mut world, &json!({ "user_id": "42" }));
    let list = world.run(get("/v1/users/42/sessions").bearer(SERVICE)).json();
    assert_eq!(list["sessions"].as_array().unwrap().len(), 2);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_bad_create_is_refused_with_the_name_of_the_field() {
    let mut world = World::new();
    for (body, field) in [
        (json!({}), "user_id"),
        (json!({ "user_id": 1.5 }), "user_id"),
        (json!({ "user_id": null }), "user_id"),
        (json!({ "user_id": "" }), "user_id"),
        (json!({ "user_id": "a\nb" }), "user_id"),
        (json!({ "user_id": "x".repeat(129) }), "user_id"),
        (json!({ "user_id": 1, "device_info": [] }), "device_info"),
        (json!({ "user_id": 1, "device_info": { "note": "x".repeat(4096) } }), "device_info"),
        (json!({ "user_id": 1, "client_id": 5 }), "client_id"),
        (json!({ "user_id": 1, "client_id": "" }), "client_id"),
        (json!({ "user_id": 1, "access_ttl": 0 }), "access_ttl"),
        (json!({ "user_id": 1, "access_ttl": 901 }), "access_ttl"),
        (json!({ "user_id": 1, "access_ttl": "15m" }), "access_ttl"),
        (json!({ "user_id": 1, "role": "admin" }), "role"),
        (json!([1]), "object"),
    ] {
        let answer = create(&mut world, &body);
        answer.refused(400, "bad_request");
        assert!(answer.text().contains(field), "{field}: {}", answer.text());
        assert!(answer.store_ops.is_empty());
    }
    let rubbish = world.run(post("/v1/sessions").bearer(SERVICE).body(b"{\"user_id\": "));
    assert!(rubbish.refused(400, "bad_request").text().contains("line 1"));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_shorter_access_ttl_holds_for_every_later_token_of_the_session() {
    let mut world = World::with(json!({ "session": { "access_ttl_jitter": 0.0 } }));
    let answer = create(&mut world, &json!({ "user_id": 1, "access_ttl": 60 }));
    assert_eq!(answer.json()["expires_in"].as_u64(), Some(60));
    let refreshed = world.refresh(&login(&answer).refresh, "phone");
    assert_eq!(refreshed.json()["expires_in"].as_u64(), Some(60));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_body_that_is_too_large_or_ends_early_creates_nothing() {
    let mut world = World::new();
    let large = post("/v1/sessions").bearer(SERVICE).body(&vec![b' '; 65 * 1024]);
    world.run(large).refused(413, "body_too_large");
    world.run(post("/v1/sessions").bearer(SERVICE).that_leaves()).refused(400, "bad_request");
}

#[wasm_bindgen_test(unsupported = test)]
fn service_calls_need_the_service_credential() {
    let mut world = World::new();
    let login = world.log_in("42");
    let calls: [fn() -> Request; 4] = [
        || post("/v1/sessions"),
        || get("/v1/users/42/sessions"),
        || delete("/v1/users/42/sessions"),
        || get("/v1/shards/users/42"),
    ];
    for call in calls {
        world.run(call()).refused(401, "missing_credential");
        world.run(call().bearer("wrong")).refused(401, "invalid_token");
        world.run(call().bearer(&login.access)).refused(401, "invalid_token");
        world.run(call().bearer(EDGE)).refused(401, "invalid_token");
    }
    assert!(world.store.holds(login.id));
}

#[wasm_bindgen_test(unsupported = test)]
fn without_a_configured_service_token_the_calls_it_opens_are_closed() {
    let mut world = World::new().with_secrets(Secrets::new(None, None, None));
    for call in [post("/v1/sessions"), get("/v1/users/42/sessions"), post("/oauth/introspect")] {
        assert_eq!(world.run(call.clone().bearer("")).status, 403);
        assert_eq!(world.run(call.bearer(SERVICE)).status, 403);
    }
    world.run(post("/v1/edge/validate").header("x-edgekeep-edge", "")).refused(403, "forbidden");
}

#[wasm_bindgen_test(unsupported = test)]
fn two_service_tokens_hold_at_once_for_overlap() {
    let mut world = World::new().with_secrets(Secrets::new(Some("old, new"), None, None));
    for token in ["old", "new"] {
        assert_eq!(world.run(post("/v1/sessions").bearer(token).json(&json!({ "user_id": 1 }))).status, 201);
    }
    assert_eq!(world.run(post("/v1/sessions").bearer("old, new")).status, 401);
}

#[wasm_bindgen_test(unsupported = test)]
fn users_see_their_own_devices_and_which_one_is_this() {
    let mut world = World::new();
    let first = world.log_in("42");
    world.pass(1);
    let second = world.log_in("42");
    world.log_in("7");
    let answer = world.run(get("/v1/sessions").bearer(&second.access));
    assert_eq!((answer.status, &answer.loads), (200, &vec![Freshness::Primary]), "checked as strict");
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let body = answer.json();
    let rows = body["sessions"].as_array().unwrap();
    let seen: Vec<_> = rows.iter().map(|row| (row["session_id"].as_str().unwrap(), row["current"].as_bool())).collect();
    let (first, second) = (first.id.to_string(), second.id.to_string());
    assert_eq!(seen, [(first.as_str(), Some(false)), (second.as_str(), Some(true))], "oldest first, nobody else's");
    assert_eq!(rows[0]["created_at"], "2026-09-21T14:13:20.000000");
    let service = world.run(get("/v1/users/42/sessions").bearer(SERVICE)).json();
    assert_eq!(service["sessions"][0].get("current"), None);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_user_ends_their_own_sessions_and_never_another_users() {
    let mut world = World::new();
    let (mine, mine_too, theirs) = (world.log_in("42"), world.log_in("42"), world.log_in("7"));
    let end = |id: &str| delete(&format!("/v1/sessions/{id}")).bearer(&mine.access);
    assert_eq!(world.run(end(&theirs.id.to_string())).status, 204, "an unknown id and another's look alike");
    assert!(world.store.holds(theirs.id));
    assert_eq!(world.run(end("not-an-id")).status, 204);
    assert_eq!(world.run(end("00000000-0000-4000-8000-000000000000")).status, 204);
    let ended = world.run(end(&mine_too.id.to_string()));
    assert_eq!((ended.status, ended.header("clear-site-data")), (204, None));
    assert!(!world.store.holds(mine_too.id));
    world.run(get("/feed").bearer(&mine_too.access)).refused(401, "session_ended");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_user_ends_all_the_others_and_keeps_this_one() {
    let mut world = World::new();
    let (kept, other, stranger) = (world.log_in("42"), world.log_in("42"), world.log_in("7"));
    world.run(get("/feed").bearer(&other.access));
    assert_eq!(world.run(delete("/v1/sessions?except=current").bearer(&kept.access)).status, 204);
    assert_eq!(world.run(get("/feed").bearer(&kept.access)).status, 200);
    assert_eq!(world.run(get("/feed").bearer(&stranger.access)).status, 200);
    world.run(get("/feed").bearer(&other.access)).refused(401, "session_ended");
    world.run(delete("/v1/sessions").bearer(&kept.access)).refused(400, "bad_request");
    world.run(delete("/v1/sessions?except=none").bearer(&kept.access)).refused(400, "bad_request");
}

#[wasm_bindgen_test(unsupported = test)]
fn logging_out_ends_the_session_and_clears_the_site() {
    let mut world = World::new();
    let login = world.log_in("42");
    let answer = world.run(delete("/v1/sessions/current").bearer(&login.access));
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("clear-site-data"), Some("\"cache\", \"cookies\", \"storage\""));
    assert!(answer.clears_cookies());
    world.run(get("/feed").bearer(&login.access)).refused(401, "session_ended");
    world.refresh(&login.refresh, "phone").refused(401, "invalid_refresh_token");
}

#[wasm_bindgen_test(unsupported = test)]
fn revoking_all_reaches_every_session_of_the_user_and_nobody_elses() {
    let mut world = World::new();
    let (one, two, other) = (world.log_in("42"), world.log_in("42"), world.log_in("7"));
    for login in [&one, &two, &other] {
        world.run(get("/feed").bearer(&login.access));
    }
    assert_eq!(world.run(delete("/v1/users/42/sessions").bearer(SERVICE)).status, 204);
    world.run(get("/feed").bearer(&one.access)).refused(401, "session_ended");
    world.run(get("/feed").bearer(&two.access)).refused(401, "session_ended");
    assert_eq!(world.run(get("/feed").bearer(&other.access)).status, 200);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_revocation_that_replicas_lack_is_accepted_and_says_so() {
    let calls: [fn(&Login, &Login) -> Request; 4] = [
        |me, _| delete("/v1/sessions/current").bearer(&me.access),
        |me, other| delete(&format!("/v1/sessions/{}", other.id)).bearer(&me.access),
        |me, _| delete("/v1/sessions?except=current").bearer(&me.access),
        |_, _| delete("/v1/users/42/sessions").bearer(SERVICE),
    ];
    for call in calls {
        let mut world = World::new();
        let (me, other) = (world.log_in("42"), world.log_in("42"));
        world.store.lagging = true;
        let answer = world.run(call(&me, &other));
        assert_eq!((answer.status, answer.json()), (202, json!({ "replicated": false })), "{:?}", answer.store_ops);
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert!(!world.store.holds(other.id) || !world.store.holds(me.id), "it ended all the same");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_log_out_that_replicas_lack_still_clears_the_site_and_a_revoked_reuse_is_still_refused() {
    let mut world = World::new();
    let (login, stolen) = (world.log_in("42"), world.log_in("42"));
    world.refresh(&stolen.refresh, "phone");
    world.pass(60);
    world.store.lagging = true;
    let answer = world.run(delete("/v1/sessions/current").bearer(&login.access));
    assert!(answer.status == 202 && answer.clears_cookies() && answer.header("clear-site-data").is_some());
    world.refresh(&stolen.refresh, "another").refused(401, "invalid_refresh_token");
    assert!(!world.store.holds(stolen.id));
}

#[wasm_bindgen_test(unsupported = test)]
fn beyond_the_maximum_the_oldest_session_ends_or_the_new_one_is_refused() {
    let mut world = World::with(json!({ "session": { "max_per_user": 2 } }));
    let oldest = world.log_in("42");
    world.pass(1);
    let second = world.log_in("42");
    world.pass(1);
    world.log_in("42");
    assert!(!world.store.holds(oldest.id) && world.store.holds(second.id));
    let mut world = World::with(json!({ "session": { "max_per_user": 1, "on_max": "refuse" } }));
    let kept = world.log_in("42");
    create(&mut world, &json!({ "user_id": "42" })).refused(409, "too_many_sessions");
    assert!(world.store.holds(kept.id));
}

#[wasm_bindgen_test(unsupported = test)]
fn an_identity_with_a_slash_is_named_by_its_encoded_form() {
    let mut world = World::new();
    create(&mut world, &json!({ "user_id": "team/a b" }));
    let answer = world.run(get("/v1/users/team%2Fa%20b/sessions").bearer(SERVICE));
    assert_eq!(answer.json()["sessions"].as_array().unwrap().len(), 1);
    assert!(matches!(&answer.store_ops[0], StoreOp::List { user, .. } if user.as_str() == "team/a b"));
}

#[wasm_bindgen_test(unsupported = test)]
fn an_own_path_answers_405_to_other_methods_and_never_reaches_an_origin() {
    let mut world = World::new();
    let login = world.log_in("42");
    for (method, path) in [
        ("PUT", "/v1/sessions"),
        ("GET", "/v1/sessions/refresh"),
        ("GET", "/v1/sessions/current"),
        ("POST", "/v1/users/42/sessions"),
        ("POST", "/.well-known/jwks.json"),
        ("DELETE", "/v1/shards/photos"),
        ("OPTIONS", "/v1/sessions"),
    ] {
        let answer = world.run(request(method, path).bearer(&login.access));
        answer.refused(405, "method_not_allowed");
        assert!(answer.header("allow").is_some_and(|allow| !allow.contains(method)), "{method} {path}");
        assert!(answer.forwarded.is_empty(), "{method} {path}");
    }
    world.run(get("/v1/Sessions/")).refused(401, "missing_credential");
    world.run(get("/v1/sessions/")).refused(400, "bad_path");
    world.run(get("/v1/%73essions").bearer(SERVICE)).refused(400, "bad_path");
}

#[wasm_bindgen_test(unsupported = test)]
fn with_the_store_down_every_session_call_answers_503_and_never_401() {
    let mut world = World::new();
    let login = world.log_in("42");
    world.store.down = true;
    for call in [
        post("/v1/sessions").bearer(SERVICE).json(&json!({ "user_id": 1 })),
        get("/v1/sessions").bearer(&login.access),
        delete("/v1/sessions/current").bearer(&login.access),
        get("/v1/users/42/sessions").bearer(SERVICE),
        delete("/v1/users/42/sessions").bearer(SERVICE),
        post("/v1/sessions/refresh").json(&json!({ "refresh_token": login.refresh })),
    ] {
        let answer = world.run(call);
        answer.refused(503, "store_unavailable");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn the_public_keys_are_for_everyone_and_verify_what_was_issued() {
    let mut world = World::new();
    let answer = world.run(get("/.well-known/jwks.json"));
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/jwk-set+json")));
    let kid = world.keys.current_access().unwrap().kid().to_owned();
    assert_eq!(answer.json()["keys"][0]["kid"], kid);
    assert_eq!(answer.json()["keys"][0].get("d"), None);
}

#[wasm_bindgen_test(unsupported = test)]
fn the_public_keys_may_be_kept_and_are_not_sent_again_while_they_are_the_same() {
    let mut world = World::new();
    let jwks = || get("/.well-known/jwks.json");
    let answer = world.run(jwks());
    assert_eq!(answer.header("cache-control"), Some("public, max-age=300"));
    let tag = answer.header("etag").unwrap().to_owned();
    assert!(tag.starts_with('"') && tag.ends_with('"') && tag.len() == 26, "{tag}");
    for known in [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
        let again = world.run(jwks().header("if-none-match", &known));
        assert_eq!((again.status, again.header("etag")), (304, Some(tag.as_str())), "{known}");
        assert_eq!(again.header("cache-control"), Some("public, max-age=300"));
        assert_eq!((again.header("content-type"), again.text()), (None, String::new()), "a 304 has no body");
    }
    // A next key is published at once, and all states are in it.
    let next = world.keys.publish_next(KeyAlgorithm::EdDsa, &mut Entropy::for_tests(9), world.now).unwrap();
    world.take_keys(next);
    let changed = world.run(jwks().header("if-none-match", &tag));
    assert_eq!((changed.status, changed.json()["keys"].as_array().unwrap().len()), (200, 2));
    let promoted = world.keys.promote_next(world.now).unwrap();
    world.take_keys(promoted);
    assert_eq!(world.run(jwks()).json()["keys"].as_array().unwrap().len(), 2);
}

#[wasm_bindgen_test(unsupported = test)]
fn shared_keys_are_published_nowhere() {
    let mut world = World::new();
    let shared = KeyRing::generate(KeyAlgorithm::Hs256, &mut Entropy::for_tests(3), world.now);
    world.take_keys(shared);
    let answer = world.run(get("/.well-known/jwks.json"));
    assert_eq!((answer.status, answer.json()), (200, json!({"keys": []})));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_field_that_stands_twice_is_refused() {
    let mut world = World::new();
    let twice = r#"{"user_id": 7, "device_info": {"user_id": 1}, "user_id": 8}"#;
    let answer = world.run(post("/v1/sessions").bearer(SERVICE).body(twice.as_bytes()));
    answer.refused(400, "bad_request");
    assert!(answer.text().contains("user_id") && answer.store_ops.is_empty(), "{}", answer.text());
    let refresh = world.run(post("/v1/sessions/refresh").body(br#"{"refresh_token": "a", "refresh_token": "b"}"#));
    refresh.refused(400, "bad_request");
}
