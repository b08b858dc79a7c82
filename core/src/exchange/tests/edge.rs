//! A Worker beside a region, and what the region answers its Workers.

use super::*;
use crate::session::StoreOp;
use wasm_bindgen_test::wasm_bindgen_test;

#[wasm_bindgen_test(unsupported = test)]
fn the_session_api_is_passed_to_the_authority_with_the_edge_credential() {
    let mut world = World::at_edge();
    for call in [
        post("/v1/sessions").bearer(SERVICE),
        post("/v1/sessions/refresh"),
        get("/v1/sessions").bearer("token"),
        delete("/v1/users/42/sessions").bearer(SERVICE),
        post("/oauth/token"),
        get("/.well-known/jwks.json"),
        get("/v1/shards/users/42").bearer(SERVICE),
    ] {
        let authorization = call.headers.iter().find(|(name, _)| name == "authorization").map(|(_, v)| v.clone());
        let answer = world.run(call.header("x-edgekeep-edge", "guessed").header("x-edgekeep-user", "root"));
        assert_eq!((answer.status, answer.asked()), (200, vec!["authority"]));
        let seen = answer.seen();
        assert_eq!(seen.header("x-edgekeep-edge"), Some(EDGE));
        assert_eq!(seen.header("x-edgekeep-user"), None);
        assert_eq!(seen.header("authorization").map(str::to_owned), authorization, "the client's own credential");
        assert_eq!(seen.header("x-forwarded-for"), Some("192.0.2.9"));
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn the_authoritys_cookies_pass_and_its_silence_is_503() {
    let mut world = World::at_edge();
    world.script(
        "authority",
        Does::Answer(201, vec![("set-cookie", "__Host-edgekeep-at=x"), ("x-edgekeep-debug", "y")]),
    );
    let answer = world.run(post("/v1/sessions").bearer(SERVICE));
    assert_eq!((answer.status, answer.cookies_set()), (201, vec!["__Host-edgekeep-at=x"]));
    assert_eq!(answer.header("x-edgekeep-debug"), None);
    world.script("authority", Does::Fail(FailedStage::Connect));
    let silent = world.run(post("/v1/sessions/refresh"));
    silent.refused(503, "authority_unavailable");
    assert_eq!(silent.header("retry-after"), Some("1"));
}

#[wasm_bindgen_test(unsupported = test)]
fn the_calls_that_the_edge_credential_opens_do_not_exist_at_the_edge() {
    let mut world = World::at_edge();
    for call in [post("/v1/edge/validate"), post("/v1/edge/confirm"), get("/v1/edge/shard-map")] {
        let answer = world.run(call.header("x-edgekeep-edge", EDGE));
        answer.refused(404, "not_found");
        assert!(answer.forwarded.is_empty(), "it would lend the Worker's credential to its client");
    }
    let mut region = World::new();
    region.run(post("/v1/edge/tombstones").header("x-edgekeep-edge", EDGE)).refused(404, "not_found");
}

#[wasm_bindgen_test(unsupported = test)]
fn an_unknown_key_is_fetched_once_in_thirty_seconds_before_the_401() {
    let mut world = World::at_edge();
    let login = world.log_in_elsewhere("42");
    let mut entropy = Entropy::for_tests(7);
    world.keys = world.keys.publish_next(KeyAlgorithm::EdDsa, &mut entropy, world.now).unwrap();
    world.keys = world.keys.promote_next(world.now).unwrap();
    let token = world.mint(login.id, "42", 0);
    let unreachable = world.run(get("/token/x").bearer(&token));
    assert_eq!((unreachable.status, &unreachable.steps[0]), (401, &"load_keys"));
    world.jwks = Some(world.keys.public_jwks());
    world.pass(29);
    assert_eq!(world.run(get("/token/x").bearer(&token)).steps, ["respond"], "not again so soon");
    world.pass(1);
    let fetched = world.run(get("/token/x").bearer(&token));
    assert_eq!((fetched.status, fetched.steps), (200, vec!["load_keys", "forward", "respond"]));
    assert_eq!(world.run(get("/token/x").bearer(&token)).steps, ["forward", "respond"]);
    assert_eq!(world.run(get("/token/x").bearer(&login.access)).status, 200, "the key from before still holds");
}

#[wasm_bindgen_test(unsupported = test)]
fn those_who_come_while_keys_are_fetched_wait_for_them() {
    let mut world = World::at_edge();
    let (old, mut entropy) = (world.keys.clone(), Entropy::for_tests(7));
    let published = old.publish_next(KeyAlgorithm::EdDsa, &mut entropy, world.now).unwrap();
    let new = published.promote_next(world.now).unwrap();
    let token = world.mint_with(&new, SessionId([7; 16]), "42", 0);
    for (jwks, status) in [(None, 401), (Some(new.public_jwks()), 200)] {
        world.jwks = jwks;
        world.pass(30);
        let mut first = world.start(get("/token/x").bearer(&token));
        let mut second = world.start(get("/token/x").access_cookie(&token));
        while first.step.as_ref().is_some_and(|step| matches!(step, Step::LoadKeys)) {
            world.advance(&mut first);
        }
        let answer = std::iter::repeat_with(|| world.advance(&mut second)).find_map(|answer| answer).unwrap();
        assert_eq!((answer.steps[0], answer.status), ("await_keys", status));
        assert!(answer.cookies_set().is_empty());
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_fetch_of_keys_that_never_ends_is_waited_for_only_so_long_and_begun_again_after_thirty_seconds() {
    let mut world = World::at_edge();
    let strangers = KeyRing::generate(KeyAlgorithm::EdDsa, &mut Entropy::for_tests(99), NOW);
    let token = world.mint_with(&strangers, SessionId([7; 16]), "42", 0);
    let _given_up = world.start(get("/token/x").bearer(&token));
    let begun = world.now;
    let waited = world.run(get("/token/x").bearer(&token));
    assert_eq!((waited.status, waited.steps), (401, vec!["await_keys", "respond"]));
    assert_eq!(world.now, begun + world.rules.config.store.timeout + Millis(1000));
    assert_eq!(world.run(get("/token/x").bearer(&token)).steps, ["respond"]);
    world.now = begun + Millis::from_secs(30);
    assert_eq!(world.run(get("/token/x").bearer(&token)).steps, ["load_keys", "respond"]);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_native_gateway_asks_nobody_for_keys() {
    let mut world = World::new();
    let login = world.log_in("42");
    let strangers = KeyRing::generate(KeyAlgorithm::EdDsa, &mut Entropy::for_tests(99), NOW);
    let token = world.mint_with(&strangers, login.id, "42", 0);
    assert_eq!(world.run(get("/token/x").bearer(&token)).steps, ["respond"]);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_browser_keeps_its_cookies_when_its_key_is_not_known_yet() {
    for mut world in [World::at_edge(), World::new()] {
        let strangers = KeyRing::generate(KeyAlgorithm::EdDsa, &mut Entropy::for_tests(99), NOW);
        let token = world.mint_with(&strangers, SessionId([7; 16]), "42", 0);
        // At the edge the first one asks in vain, and for 30 s nobody asks again.
        for _ in 0..2 {
            let answer = world.run(get("/token/x").access_cookie(&token));
            answer.refused(401, "invalid_token");
            assert!(answer.cookies_set().is_empty(), "the key may have been made a moment ago: {answer:?}");
        }
        let forged = world.run(get("/token/x").access_cookie("rubbish"));
        assert!(forged.clears_cookies(), "what no key could have signed goes");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn without_a_map_a_fresh_isolate_loads_one_and_says_503_when_it_cannot() {
    let mut world = World::at_edge();
    let login = world.log_in_elsewhere("42");
    let map = world.rules.map().cloned().unwrap();
    let mut world = world.with_map(None);
    world.run(get("/token/x").bearer(&login.access)).refused(503, "authority_unavailable");
    world.maps.push_back(map);
    let answer = world.run(get("/token/x").bearer(&login.access));
    assert_eq!((answer.status, answer.steps), (200, vec!["load_map", "forward", "respond"]));
    assert_eq!(answer.forwarded[0].to, "c");
    assert_eq!(world.run(get("/open/x")).steps, ["forward", "respond"], "any needs no map");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_higher_generation_than_the_near_entrys_is_a_miss_at_the_edge_only() {
    let mut world = World::at_edge();
    let login = world.log_in_elsewhere("42");
    let at = |world: &World, generation| get("/feed").bearer(&world.mint(login.id, "42", generation));
    assert_eq!(world.run(at(&world, 0)).steps[0], "session");
    assert_eq!(world.run(at(&world, 0)).steps, ["forward", "respond"]);
    let newer = world.run(at(&world, 1));
    assert_eq!(newer.steps[0], "session", "the authority gets to know it");
    assert_eq!(newer.confirmed, None, "which asking about the session has told it");
    let again = world.run(at(&world, 1));
    assert_eq!((again.steps, again.confirmed), (vec!["forward", "respond"], None));
    let mut region = World::new();
    let login = region.log_in("42");
    region.run(get("/feed").bearer(&login.access));
    let newer = get("/feed").bearer(&region.mint(login.id, "42", 1));
    assert_eq!(region.run(newer).steps, ["forward", "respond"]);
}

#[wasm_bindgen_test(unsupported = test)]
fn an_authority_that_is_down_is_503_at_the_edge() {
    let mut world = World::at_edge();
    let login = world.log_in_elsewhere("42");
    world.store.down = true;
    let answer = world.run(get("/feed").bearer(&login.access));
    answer.refused(503, "authority_unavailable");
    assert_eq!(answer.header("retry-after"), Some("1"));
}

#[wasm_bindgen_test(unsupported = test)]
fn tombstones_empty_the_isolates_own_cache() {
    let mut world = World::at_edge();
    let (one, two) = (world.log_in_elsewhere("42"), world.log_in_elsewhere("7"));
    for login in [&one, &two] {
        world.run(get("/feed").bearer(&login.access));
    }
    let until = world.now.0 + 900_000;
    let rows = json!({ "tombstones": [
        { "sid": one.id.to_string(), "until": until }, { "user": "7", "epoch": 1, "until": until },
    ] });
    let told = post("/v1/edge/tombstones").header("x-edgekeep-edge", EDGE).json(&rows);
    let answer = world.run(told);
    assert_eq!(answer.status, 204);
    assert!(matches!(&answer.store_ops[0], StoreOp::Bury(rows) if rows.len() == 2));
    for login in [&one, &two] {
        assert_eq!(world.run(get("/feed").bearer(&login.access)).steps[0], "session");
    }
    world.run(post("/v1/edge/tombstones").json(&rows)).refused(403, "forbidden");
    let bad =
        post("/v1/edge/tombstones").header("x-edgekeep-edge", EDGE).json(&json!({ "tombstones": [{ "sid": 5 }] }));
    world.run(bad).refused(400, "bad_request");
}

#[wasm_bindgen_test(unsupported = test)]
fn the_region_validates_for_a_worker_and_confirms_what_it_saw() {
    let mut world = World::new();
    let login = world.log_in("42");
    world.refresh(&login.refresh, "phone");
    let ask = |sub: &str, generation: u32| {
        let body = json!({ "sid": login.id.to_string(), "sub": sub, "gen": generation });
        post("/v1/edge/validate").header("x-edgekeep-edge", EDGE).json(&body)
    };
    let answer = world.run(ask("42", 1));
    assert_eq!((answer.status, &answer.loads), (200, &vec![Freshness::Primary]));
    let body = answer.json();
    assert_eq!((&body["live"], body["epoch"].as_u64()), (&json!(true), Some(0)));
    assert_eq!(body["expires_at"].as_u64(), Some(world.store.state(login.id).idle.0));
    assert_eq!((answer.confirmed, world.store.state(login.id).seen), (Some((login.id, 1)), 1));
    let other = world.run(ask("43", 1));
    assert_eq!((other.json(), other.confirmed), (json!({ "live": false }), None));
    world.run(delete("/v1/users/42/sessions").bearer(SERVICE));
    assert_eq!(world.run(ask("42", 1)).json(), json!({ "live": false }));
    world.store.down = true;
    world.run(ask("42", 1)).refused(503, "store_unavailable");
}

#[wasm_bindgen_test(unsupported = test)]
fn the_edge_calls_are_closed_to_everyone_else() {
    let mut world = World::new();
    for call in [post("/v1/edge/validate"), post("/v1/edge/confirm"), get("/v1/edge/shard-map")] {
        world.run(call.clone()).refused(403, "forbidden");
        world.run(call.clone().header("x-edgekeep-edge", "guessed")).refused(403, "forbidden");
        world.run(call.bearer(SERVICE)).refused(403, "forbidden");
    }
    let service = world.run(post("/v1/sessions").header("x-edgekeep-edge", EDGE));
    service.refused(401, "missing_credential");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_worker_confirms_by_itself_and_takes_the_map_with_its_key() {
    let mut world = World::new();
    let login = world.log_in("42");
    world.refresh(&login.refresh, "phone");
    let body = json!({ "sid": login.id.to_string(), "gen": 1 });
    let confirmed = world.run(post("/v1/edge/confirm").header("x-edgekeep-edge", EDGE).json(&body));
    assert_eq!((confirmed.status, world.store.state(login.id).seen), (204, 1));
    let answer = world.run(get("/v1/edge/shard-map").header("x-edgekeep-edge", EDGE));
    assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")));
    assert_eq!(ShardMap::from_json(&answer.text()).unwrap(), *world.rules.map().unwrap());
}

#[wasm_bindgen_test(unsupported = test)]
fn the_edge_credential_makes_a_workers_word_about_the_client_believed() {
    let mut world = World::new();
    let login = world.log_in("42");
    let through = |credential: &str| {
        let request = get("/feed").bearer(&login.access).from("203.0.113.50").header("x-edgekeep-edge", credential);
        request.header("x-forwarded-for", "198.51.100.7")
    };
    let worker = world.run(through(EDGE));
    assert_eq!(worker.seen().header("x-forwarded-for"), Some("198.51.100.7, 203.0.113.50"));
    assert_eq!(worker.seen().header("x-edgekeep-edge"), None, "the credential goes no further");
    let stranger = world.run(through("guessed"));
    assert_eq!(stranger.seen().header("x-forwarded-for"), Some("203.0.113.50"));
}
