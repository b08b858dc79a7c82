//! Limits: 429 with the time to wait.

use super::*;
use wasm_bindgen_test::wasm_bindgen_test;

#[wasm_bindgen_test(unsupported = test)]
fn failed_refreshes_are_limited_by_client_address() {
    let mut world = World::with(json!({ "limits": { "refresh_failures": "3/1m" } }));
    let login = world.log_in("42");
    let attempt =
        |ip: &str, token: &str| post("/v1/sessions/refresh").from(ip).json(&json!({ "refresh_token": token }));
    for _ in 0..3 {
        world.run(attempt("192.0.2.1", "rubbish")).refused(401, "invalid_refresh_token");
    }
    let limited = world.run(attempt("192.0.2.1", &login.refresh));
    limited.refused(429, "too_many_requests");
    let wait: u64 = limited.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait));
    let grant = post("/oauth/token").from("192.0.2.1").form("grant_type=refresh_token&refresh_token=x");
    let oauth = world.run(grant);
    assert_eq!((oauth.status, oauth.header("retry-after").is_some()), (429, true));
    let next = login_of(&world.run(attempt("192.0.2.2", &login.refresh)));
    world.pass(wait);
    assert_eq!(world.run(attempt("192.0.2.1", &next.refresh)).status, 200, "a new window");
}

fn login_of(answer: &Answer) -> Login {
    assert_eq!(answer.status, 200, "another address has its own: {}", answer.text());
    login(answer)
}

#[wasm_bindgen_test(unsupported = test)]
fn refreshes_that_succeed_or_meet_a_store_that_is_down_count_for_nothing() {
    let mut world = World::with(json!({ "limits": { "refresh_failures": "2/1m" } }));
    let mut login = world.log_in("42");
    world.store.down = true;
    for _ in 0..5 {
        assert_eq!(world.refresh(&login.refresh, "phone").status, 503);
    }
    world.store.down = false;
    for _ in 0..5 {
        login = login_of(&world.refresh(&login.refresh, "phone"));
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn creates_are_limited_by_service_credential() {
    let mut world = World::with(json!({ "limits": { "creates": "2/1s" } }));
    let create =
        |credential: &str| post("/v1/sessions").header("authorization", credential).json(&json!({ "user_id": 1 }));
    let bearer = format!("Bearer {SERVICE}");
    assert_eq!(world.run(create(&bearer)).status, 201);
    assert_eq!(world.run(create(&bearer)).status, 201);
    let limited = world.run(create(&bearer));
    limited.refused(429, "too_many_requests");
    assert_eq!(limited.header("retry-after"), Some("1"));
    assert_eq!(world.run(create(&format!("bearer  {SERVICE}"))).status, 429, "another spelling is the same credential");
    world.pass(1);
    assert_eq!(world.run(create(&bearer)).status, 201);
}
