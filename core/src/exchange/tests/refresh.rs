//! The rotation table, row by row, through the API.

use super::*;
use crate::metrics::Refresh;
use crate::session::{RefreshToken, StoreOp};
use crate::token::KeyKind;
use wasm_bindgen_test::wasm_bindgen_test;

/// Refreshes and expects a new pair.
#[track_caller]
fn rotated(world: &mut World, token: &str, device: &str) -> Login {
    let answer = world.refresh(token, device);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    login(&answer)
}

/// A token with a good tag and this counter.
fn token(world: &World, login: &Login, counter: u32) -> String {
    let key = world.keys.current(KeyKind::Refresh).unwrap();
    RefreshToken { session: login.id, counter, key_id: key.id() }.seal(key)
}

#[wasm_bindgen_test(unsupported = test)]
fn the_current_token_rotates_in_one_call_to_the_store() {
    let mut world = World::new();
    let login = world.log_in("42");
    let answer = world.refresh(&login.refresh, "phone");
    assert_eq!(answer.steps, ["read_body", "store", "respond"]);
    let next = super::login(&answer);
    assert_eq!(next.id, login.id);
    assert_ne!((&next.refresh, &next.access), (&login.refresh, &login.access));
    assert_eq!(world.run(get("/strict/x").bearer(&next.access)).status, 200);
    assert_eq!(world.run(get("/strict/x").bearer(&login.access)).status, 200, "the old access token ends by itself");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_forged_or_malformed_token_is_refused_without_asking_the_store() {
    let mut world = World::new();
    let login = world.log_in("42");
    let strangers = KeyRing::generate(KeyAlgorithm::EdDsa, &mut Entropy::for_tests(99), NOW);
    let forged = RefreshToken { session: login.id, counter: 0, key_id: 1 };
    let forged = forged.seal(strangers.current(KeyKind::Refresh).unwrap());
    let unknown_key = RefreshToken { session: login.id, counter: 0, key_id: 9 };
    let unknown_key = unknown_key.seal(world.keys.current(KeyKind::Refresh).unwrap());
    for token in ["", "rubbish", &login.access, &forged, &unknown_key] {
        let answer = world.refresh(token, "phone");
        answer.refused(401, "invalid_refresh_token");
        assert!(answer.store_ops.is_empty(), "{token}");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn racing_tabs_get_one_successor_byte_for_byte_and_the_window_does_not_slide() {
    let mut world = World::new();
    let login = world.log_in("42");
    let first = rotated(&mut world, &login.refresh, "phone");
    for _ in 0..3 {
        world.pass(10);
        let again = world.refresh(&login.refresh, "another device");
        assert_eq!(super::login(&again).refresh, first.refresh, "byte-identical");
        assert_eq!(again.store_ops.len(), 1, "nothing is written");
    }
    assert_eq!(world.store.state(login.id).counter, 1);
    assert_eq!(world.local.metrics.refreshes(Refresh::Reissued), 3);
    world.pass(1);
    world.refresh(&login.refresh, "another device").refused(401, "invalid_refresh_token");
    assert!(!world.store.holds(login.id), "31 s after it was superseded, in other hands: reuse");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_re_issue_is_byte_identical_even_after_the_refresh_key_was_replaced() {
    let mut world = World::new();
    let login = world.log_in("42");
    let first = rotated(&mut world, &login.refresh, "phone");
    let mut entropy = Entropy::for_tests(5);
    let keys = world.keys.publish_next(KeyAlgorithm::EdDsa, &mut entropy, world.now).unwrap();
    let keys = keys.promote_next(world.now).unwrap();
    let (config, map) = (world.rules.config.clone(), world.rules.map.clone());
    let secrets = world.rules.secrets.clone();
    let rules = Rules::new(config, Site::Native, keys, map, secrets, world.rules.in_force, &world.live).unwrap();
    world.rules = Arc::new(rules);
    assert_eq!(rotated(&mut world, &login.refresh, "phone").refresh, first.refresh);
    let next = rotated(&mut world, &first.refresh, "phone");
    assert_eq!(world.store.state(login.id).key_id, 2, "a rotation signs with the new key");
    rotated(&mut world, &next.refresh, "phone");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_lost_answer_is_given_again_three_times_and_then_refused_without_revoking() {
    let mut world = World::new();
    let login = world.log_in("42");
    let lost = rotated(&mut world, &login.refresh, "phone");
    world.pass(3_600);
    for _ in 0..3 {
        world.pass(60);
        let again = world.refresh(&login.refresh, "phone");
        assert_eq!(super::login(&again).refresh, lost.refresh);
        assert!(matches!(again.store_ops[1], StoreOp::Replace(_)), "it is counted in the store");
    }
    world.pass(31);
    world.refresh(&login.refresh, "phone").refused(401, "invalid_refresh_token");
    assert!(world.store.holds(login.id));
    assert_eq!(world.local.metrics.refreshes(Refresh::LostAnswer), 3);
    rotated(&mut world, &lost.refresh, "phone");
}

#[wasm_bindgen_test(unsupported = test)]
fn an_old_token_after_its_successor_was_seen_in_use_ends_the_session() {
    let mut world = World::new();
    let login = world.log_in("42");
    let next = rotated(&mut world, &login.refresh, "phone");
    world.run(get("/token/x").bearer(&next.access));
    world.pass(31);
    let reuse = world.refresh(&login.refresh, "phone");
    reuse.refused(401, "invalid_refresh_token");
    assert!(!world.store.holds(login.id));
    assert_eq!(world.local.metrics.refreshes(Refresh::Reuse), 1);
    world.refresh(&next.refresh, "phone").refused(401, "invalid_refresh_token");
    world.run(get("/feed").bearer(&next.access)).refused(401, "session_ended");
}

#[wasm_bindgen_test(unsupported = test)]
fn an_old_token_from_another_device_or_from_two_ago_ends_the_session() {
    let mut world = World::new();
    let login = world.log_in("42");
    rotated(&mut world, &login.refresh, "phone");
    world.pass(31);
    world.refresh(&login.refresh, "thief").refused(401, "invalid_refresh_token");
    assert!(!world.store.holds(login.id));
    let login = world.log_in("42");
    let next = rotated(&mut world, &login.refresh, "phone");
    rotated(&mut world, &next.refresh, "phone");
    world.pass(31);
    world.refresh(&login.refresh, "phone").refused(401, "invalid_refresh_token");
    assert!(!world.store.holds(login.id));
}

#[wasm_bindgen_test(unsupported = test)]
fn without_a_user_agent_a_late_repeat_is_reuse_because_absent_is_different() {
    let mut world = World::new();
    let login = world.log_in("42");
    let bare = || post("/v1/sessions/refresh").json(&json!({ "refresh_token": login.refresh }));
    assert_eq!(world.run(bare()).status, 200);
    world.pass(31);
    world.run(bare()).refused(401, "invalid_refresh_token");
    assert!(!world.store.holds(login.id));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_token_from_the_future_recovers_what_a_failover_lost_up_to_three() {
    let mut world = World::new();
    for ahead in 1..=3 {
        let login = world.log_in("42");
        let lost = token(&world, &login, ahead);
        let next = rotated(&mut world, &lost, "phone");
        assert_eq!(world.store.state(login.id).counter, ahead + 1);
        rotated(&mut world, &next.refresh, "phone");
    }
    assert_eq!(world.local.metrics.refreshes(Refresh::ForwardRecovery), 3);
    let login = world.log_in("42");
    let ahead = token(&world, &login, 4);
    world.refresh(&ahead, "phone").refused(401, "invalid_refresh_token");
    assert!(world.store.holds(login.id), "four ahead is refused, not revoked");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_store_that_is_down_answers_503_and_the_token_is_as_good_afterwards() {
    let mut world = World::new();
    let login = world.log_in("42");
    world.store.down = true;
    for _ in 0..5 {
        let answer = world.refresh(&login.refresh, "phone");
        answer.refused(503, "store_unavailable");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    world.store.down = false;
    rotated(&mut world, &login.refresh, "phone");
}

#[wasm_bindgen_test(unsupported = test)]
fn rotation_moves_the_idle_limit_and_never_the_absolute_one() {
    let mut world = World::with(json!({ "session": { "idle_ttl": "1h", "refresh_ttl": "90m" } }));
    let mut login = world.log_in("42");
    world.pass(3_000);
    let answer = world.refresh(&login.refresh, "phone");
    assert_eq!(answer.json()["refresh_expires_in"].as_u64(), Some(2_400), "90 minutes after the start at the latest");
    login = super::login(&answer);
    world.pass(2_399);
    login = rotated(&mut world, &login.refresh, "phone");
    world.pass(1);
    world.refresh(&login.refresh, "phone").refused(401, "invalid_refresh_token");
    world.run(get("/feed").bearer(&login.access)).refused(401, "expired_token");
}

#[wasm_bindgen_test(unsupported = test)]
fn an_idle_session_is_over_even_for_its_current_token() {
    let mut world = World::with(json!({ "session": { "idle_ttl": "1h" } }));
    let login = world.log_in("42");
    world.pass(3_600);
    world.refresh(&login.refresh, "phone").refused(401, "invalid_refresh_token");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_refresh_names_its_token_in_exactly_one_way() {
    let mut world = World::new();
    let refresh = |body: &Value| post("/v1/sessions/refresh").json(body);
    world.run(post("/v1/sessions/refresh")).refused(401, "missing_credential");
    world.run(refresh(&json!({}))).refused(400, "bad_request");
    world.run(refresh(&json!({ "refresh_token": 5 }))).refused(400, "bad_request");
    world.run(refresh(&json!({ "refresh_token": "x", "user_id": 42 }))).refused(400, "bad_request");
}
