//! The OAuth endpoints: refresh grant, revocation, introspection, in the words of their RFCs.

use super::*;
use wasm_bindgen_test::wasm_bindgen_test;

fn grant(world: &mut World, form: &str) -> Answer {
    world.run(post("/oauth/token").header("user-agent", "phone").form(form))
}

fn error_of(answer: &Answer) -> (u16, String) {
    (answer.status, answer.json()["error"].as_str().unwrap_or_default().to_owned())
}

#[wasm_bindgen_test(unsupported = test)]
fn the_refresh_grant_rotates_and_answers_as_rfc_6749_says() {
    let mut world = World::new();
    let login = world.log_in("42");
    let answer = grant(&mut world, &format!("grant_type=refresh_token&refresh_token={}", login.refresh));
    assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")));
    let body = answer.json();
    let mut members: Vec<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
    members.sort_unstable();
    assert_eq!(members, ["access_token", "expires_in", "refresh_token", "token_type"]);
    assert_eq!(world.run(get("/feed").bearer(body["access_token"].as_str().unwrap())).status, 200);
    let named =
        format!("grant_type=refresh_token&client_id=app&refresh_token={}", body["refresh_token"].as_str().unwrap());
    assert_eq!(grant(&mut world, &named).status, 200);
}

#[wasm_bindgen_test(unsupported = test)]
fn refusals_of_the_grant_carry_the_rfcs_codes() {
    let mut world = World::new();
    let login = world.log_in("42");
    let mut of = |form: &str| error_of(&grant(&mut world, form));
    assert_eq!(of("grant_type=password&username=a&password=b"), (400, "unsupported_grant_type".into()));
    assert_eq!(of("refresh_token=x"), (400, "invalid_request".into()));
    assert_eq!(of("grant_type=refresh_token"), (400, "invalid_request".into()));
    assert_eq!(of("grant_type=refresh_token&refresh_token=rubbish"), (400, "invalid_grant".into()));
    let twice = format!("grant_type=refresh_token&refresh_token=x&refresh_token={}", login.refresh);
    assert_eq!(of(&twice), (400, "invalid_request".into()));
    let json = world.run(post("/oauth/token").json(&json!({ "grant_type": "refresh_token" })));
    assert_eq!(error_of(&json), (415, "invalid_request".into()));
}

#[wasm_bindgen_test(unsupported = test)]
fn another_clients_token_is_refused_and_not_spent() {
    let mut world = World::new();
    let login = world.log_in("42");
    let stolen = format!("grant_type=refresh_token&client_id=other&refresh_token={}", login.refresh);
    assert_eq!(error_of(&grant(&mut world, &stolen)), (400, "invalid_grant".into()));
    assert_eq!(world.store.state(login.id).counter, 0);
    assert!(world.store.holds(login.id));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_store_that_is_down_is_temporarily_unavailable_and_no_bad_grant() {
    let mut world = World::new();
    let login = world.log_in("42");
    world.store.down = true;
    let answer = grant(&mut world, &format!("grant_type=refresh_token&refresh_token={}", login.refresh));
    assert_eq!(error_of(&answer), (503, "temporarily_unavailable".into()));
    assert_eq!(answer.header("retry-after"), Some("1"));
}

#[wasm_bindgen_test(unsupported = test)]
fn revocation_gives_the_same_answer_for_every_token() {
    let mut world = World::new();
    let (by_refresh, by_access) = (world.log_in("42"), world.log_in("42"));
    let mut answers = Vec::new();
    for token in [&by_refresh.refresh, &by_access.access, &by_refresh.refresh, "rubbish", "a.b.c"] {
        let answer = world.run(post("/oauth/revoke").form(&format!("token={token}&token_type_hint=whatever")));
        answers.push((answer.status, answer.text(), answer.header("cache-control").map(str::to_owned)));
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(answers[0].0, 200);
    assert!(!world.store.holds(by_refresh.id) && !world.store.holds(by_access.id));
    // A client of RFC 7009 knows no 202: replicas that lag change nothing about the answer.
    let lagging = world.log_in("42");
    world.store.lagging = true;
    let answer = world.run(post("/oauth/revoke").form(&format!("token={}", lagging.refresh)));
    assert_eq!((answer.status, &answer.text()), (200, &answers[0].1));
    assert!(!world.store.holds(lagging.id));
    let missing = world.run(post("/oauth/revoke").form("hint=x"));
    assert_eq!(error_of(&missing), (400, "invalid_request".into()));
}

#[wasm_bindgen_test(unsupported = test)]
fn introspection_tells_the_service_what_is_active_and_nothing_else_of_the_rest() {
    let mut world = World::new();
    let login = world.log_in("42");
    let mut ask = |token: &str| {
        let answer = world.run(post("/oauth/introspect").bearer(SERVICE).form(&format!("token={token}")));
        assert_eq!(answer.status, 200);
        (answer.json(), answer.steps)
    };
    let (access, steps) = ask(&login.access);
    assert_eq!(steps, ["read_body", "store", "respond"], "the primary's state decides");
    assert_eq!((&access["active"], &access["sub"]), (&json!(true), &json!("42")));
    assert_eq!((&access["sid"], &access["client_id"]), (&json!(login.id.to_string()), &json!("app")));
    let (refresh, _) = ask(&login.refresh);
    assert_eq!((&refresh["active"], &refresh["token_type"]), (&json!(true), &json!("refresh_token")));
    assert_eq!(ask("rubbish").0, json!({ "active": false }));
    world.refresh(&login.refresh, "phone");
    let mut ask =
        |token: &str| world.run(post("/oauth/introspect").bearer(SERVICE).form(&format!("token={token}"))).json();
    assert_eq!(ask(&login.refresh), json!({ "active": false }), "a superseded one");
    assert_eq!(ask(&login.access)["active"], json!(true));
    world.run(delete("/v1/users/42/sessions").bearer(SERVICE));
    let gone = world.run(post("/oauth/introspect").bearer(SERVICE).form(&format!("token={}", login.access)));
    assert_eq!(gone.json(), json!({ "active": false }));
}

#[wasm_bindgen_test(unsupported = test)]
fn introspection_is_for_the_service_alone() {
    let mut world = World::new();
    let login = world.log_in("42");
    let form = format!("token={}", login.access);
    let bare = world.run(post("/oauth/introspect").form(&form));
    assert_eq!(error_of(&bare), (401, "invalid_client".into()));
    assert!(bare.header("www-authenticate").is_some());
    let own = world.run(post("/oauth/introspect").bearer(&login.access).form(&form));
    assert_eq!(error_of(&own), (401, "invalid_client".into()));
}
