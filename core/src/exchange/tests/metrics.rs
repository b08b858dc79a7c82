//! What a finished request counts as.

use super::*;
use wasm_bindgen_test::wasm_bindgen_test;

/// Attempts and successes that one request adds.
fn counted(world: &mut World, request: Request) -> (u64, u64) {
    let before = (world.local.metrics.auth_attempts, world.local.metrics.auth_successes);
    world.run(request);
    (world.local.metrics.auth_attempts - before.0, world.local.metrics.auth_successes - before.1)
}

const NEITHER: (u64, u64) = (0, 0);
const FAILURE: (u64, u64) = (1, 0);
const SUCCESS: (u64, u64) = (1, 1);

#[wasm_bindgen_test(unsupported = test)]
fn an_attempt_is_a_credential_and_its_success_an_admission() {
    let mut world = World::new();
    let login = world.log_in("42");
    let crossed = world.mint(login.id, "43", 0);
    let of = |world: &mut World, request: Request| counted(world, request);
    assert_eq!(of(&mut world, get("/feed").bearer(&login.access)), SUCCESS);
    assert_eq!(of(&mut world, get("/maybe/x").bearer(&login.access)), SUCCESS);
    assert_eq!(of(&mut world, get("/feed").bearer("rubbish")), FAILURE);
    assert_eq!(of(&mut world, get("/feed").bearer(&crossed)), FAILURE);
    assert_eq!(of(&mut world, get("/feed").cookie("__Host-edgekeep-at=a; __Host-edgekeep-at=b")), FAILURE);
    assert_eq!(of(&mut world, post("/feed").access_cookie(&login.access)), FAILURE, "cross-site");
    assert_eq!(of(&mut world, get("/feed")), NEITHER, "a missing credential");
    assert_eq!(of(&mut world, get("/maybe/x")), NEITHER);
    assert_eq!(of(&mut world, get("/open/x").bearer(&login.access)), NEITHER, "not looked at");
    assert_eq!(of(&mut world, get("/v1/authorize").bearer(&login.access)), SUCCESS);
    world.pass(900);
    assert_eq!(of(&mut world, get("/feed").bearer(&login.access)), NEITHER, "plainly expired");
}

#[wasm_bindgen_test(unsupported = test)]
fn creates_refreshes_and_service_calls_are_attempts() {
    let mut world = World::new();
    let login = world.log_in("42");
    let create = |body: Value| post("/v1/sessions").bearer(SERVICE).json(&body);
    assert_eq!(counted(&mut world, create(json!({ "user_id": 1 }))), SUCCESS);
    assert_eq!(counted(&mut world, create(json!({}))), FAILURE);
    assert_eq!(counted(&mut world, post("/v1/sessions").bearer("wrong")), FAILURE);
    assert_eq!(counted(&mut world, post("/v1/sessions")), NEITHER);
    assert_eq!(counted(&mut world, get("/v1/users/1/sessions").bearer(SERVICE)), SUCCESS);
    assert_eq!(counted(&mut world, get("/v1/users/1/sessions").bearer("wrong")), FAILURE);
    let refresh = |token: &str| post("/v1/sessions/refresh").json(&json!({ "refresh_token": token }));
    assert_eq!(counted(&mut world, refresh("rubbish")), FAILURE);
    assert_eq!(counted(&mut world, refresh(&login.refresh)), SUCCESS);
    assert_eq!(counted(&mut world, post("/v1/sessions/refresh")), NEITHER);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_credential_that_could_not_be_checked_was_not_admitted() {
    let mut world = World::new();
    let login = world.log_in("42");
    world.store.down = true;
    assert_eq!(counted(&mut world, get("/feed").bearer(&login.access)), FAILURE);
    assert_eq!(
        counted(&mut world, post("/v1/sessions/refresh").json(&json!({ "refresh_token": login.refresh }))),
        FAILURE
    );
}

#[wasm_bindgen_test(unsupported = test)]
fn errors_are_final_answers_ours_included_but_for_health_paths() {
    let mut world = World::new();
    let login = world.log_in("42");
    let errors = |world: &World| {
        let window = world.local.metrics.windows.latest(world.now, 1);
        (window.requests, window.errors)
    };
    let (requests, _) = errors(&world);
    world.script("c", Does::Answer(503, vec![]));
    world.run(get("/feed").bearer(&login.access));
    assert_eq!(errors(&world), (requests + 1, 1));
    world.script("c", Does::Fail(FailedStage::Sent));
    world.run(post("/feed").bearer(&login.access));
    assert_eq!(errors(&world), (requests + 2, 2), "our own 502");
    world.run(get("/feed"));
    assert_eq!(errors(&world), (requests + 3, 2), "a 401 is no error");
    for origin in ["a", "b", "c"] {
        world.script(origin, Does::Answer(500, vec![]));
    }
    world.run(get("/health"));
    assert_eq!(errors(&world), (requests + 3, 2), "a probe counts as neither");
}

#[wasm_bindgen_test(unsupported = test)]
fn each_refresh_is_counted_once_by_how_it_came_out() {
    use crate::metrics::Refresh;
    let mut world = World::new();
    let login = world.log_in("42");
    for (token, how) in [(&login.refresh, Refresh::Rotated), (&login.refresh, Refresh::Reissued)] {
        world.refresh(token, "phone");
        assert_eq!(world.local.metrics.refreshes(how), 1);
    }
    let named =
        post("/oauth/token").form(&format!("grant_type=refresh_token&client_id=app&refresh_token={}", login.refresh));
    world.run(named);
    assert_eq!(world.local.metrics.refreshes(Refresh::Reissued), 2);
}
