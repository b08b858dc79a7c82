//! The OAuth endpoints: refresh grant, revocation, introspection, in the words of their RFCs.

use super::request::request;
use super::*;
use crate::session::RefreshToken;
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
    for parameter in ["grant_type=refresh_token", "client_id=a&client_id=a", "client_secret=a&client_secret=b"] {
        let twice = format!("grant_type=refresh_token&refresh_token={}&{parameter}", login.refresh);
        assert_eq!(of(&twice), (400, "invalid_request".into()), "{parameter}");
    }
    let json = world.run(post("/oauth/token").json(&json!({ "grant_type": "refresh_token" })));
    assert_eq!(error_of(&json), (400, "invalid_request".into()));
    assert_eq!(world.store.state(login.id).counter, 0, "none of them spent the token");
}

#[wasm_bindgen_test(unsupported = test)]
fn every_answer_may_be_kept_by_nobody_and_describes_itself_in_the_rfcs_characters() {
    let mut world = World::new();
    let login = world.log_in("42");
    let long = "x".repeat(70_000);
    let answers = [
        grant(&mut world, "grant_type=refresh_token&refresh_token=x"),
        grant(&mut world, "grant_type=magic"),
        grant(&mut world, &long),
        world.run(get("/oauth/token")),
        world.run(request("Q\"", "/oauth/revoke")),
        world.run(post("/oauth/introspect").form("token=x")),
        world.run(post("/oauth/introspect").bearer(SERVICE).form("")),
        grant(&mut world, &format!("grant_type=refresh_token&refresh_token={}", login.refresh)),
    ];
    for answer in &answers {
        assert_eq!((answer.header("cache-control"), answer.header("pragma")), (Some("no-store"), Some("no-cache")));
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let body = answer.json();
        let Some(description) = body.get("error_description") else { continue };
        let text = description.as_str().unwrap();
        assert!(!text.is_empty() && text.chars().all(|c| matches!(c, ' '..='~') && c != '"' && c != '\\'), "{text}");
    }
    assert_eq!(answers[2].status, 413);
}

#[wasm_bindgen_test(unsupported = test)]
fn another_method_is_refused_in_oauths_words_too() {
    let mut world = World::new();
    for path in ["/oauth/token", "/oauth/revoke", "/oauth/introspect"] {
        for method in ["GET", "DELETE", "OPTIONS"] {
            let answer = world.run(request(method, path));
            assert_eq!(error_of(&answer), (405, "invalid_request".into()), "{method} {path}");
            assert_eq!(answer.header("allow"), Some("POST"));
        }
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn empty_parameters_are_not_there_and_unknown_ones_are_ignored() {
    let mut world = World::new();
    let login = world.log_in("42");
    let form = format!("grant_type=refresh_token&scope=&client_id=&a=1&a=2&refresh_token={}", login.refresh);
    assert_eq!(grant(&mut world, &form).status, 200);
    assert_eq!(error_of(&grant(&mut world, "grant_type=&refresh_token=x")), (400, "invalid_request".into()));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_scope_was_never_granted_so_none_can_be_asked_for() {
    let mut world = World::new();
    let login = world.log_in("42");
    let form = format!("grant_type=refresh_token&scope=openid&refresh_token={}", login.refresh);
    assert_eq!(error_of(&grant(&mut world, &form)), (400, "invalid_scope".into()));
    assert_eq!(world.store.state(login.id).counter, 0);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_refused_token_is_never_told_why() {
    let mut world = World::new();
    let (ended, others) = (world.log_in("42"), world.log_in("7"));
    let foreign = format!("{}AAAAA", &ended.refresh[..46]);
    world.run(delete("/v1/users/42/sessions").bearer(SERVICE));
    let mut told = Vec::new();
    for form in [
        format!("refresh_token={}", ended.refresh),
        format!("refresh_token={foreign}"),
        "refresh_token=rubbish".to_owned(),
        format!("refresh_token={}", ended.access),
        format!("refresh_token={}&client_id=other", others.refresh),
    ] {
        let answer = grant(&mut world, &format!("grant_type=refresh_token&{form}"));
        told.push((answer.status, answer.text()));
    }
    assert!(told.iter().all(|answer| *answer == told[0]), "{told:?}");
    assert_eq!(told[0].0, 400);
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

#[wasm_bindgen_test(unsupported = test)]
fn a_client_that_sends_a_secret_must_send_a_good_one() {
    let mut world = World::new();
    let login = world.log_in("42");
    let form = format!("grant_type=refresh_token&refresh_token={}", login.refresh);
    for (header, more) in [
        (Some(basic("app", "wrong")), ""),
        (Some("Basic !".to_owned()), ""),
        (Some("Basic YXBw".to_owned()), ""),
        (None, "&client_id=app&client_secret=wrong"),
    ] {
        for path in ["/oauth/token", "/oauth/revoke"] {
            let mut asked = post(path).form(&format!("{form}{more}&token={}", login.refresh));
            if let Some(header) = &header {
                asked = asked.header("authorization", header);
            }
            let answer = world.run(asked);
            assert_eq!(error_of(&answer), (401, "invalid_client".into()), "{path} {header:?} {more}");
            assert_eq!(answer.header("www-authenticate"), Some("Basic realm=\"edgekeep\""));
        }
    }
    let both = post("/oauth/token").header("authorization", &basic("app", SERVICE));
    let answer = world.run(both.form(&format!("{form}&client_secret={SERVICE}")));
    assert_eq!(error_of(&answer), (400, "invalid_request".into()), "two ways at once");
    let other = post("/oauth/token").header("authorization", &basic("app", "")).form(&format!("{form}&client_id=b"));
    assert_eq!(error_of(&world.run(other)), (400, "invalid_request".into()), "two names at once");
    let wrong = post("/oauth/token").header("authorization", &basic("other", "")).form(&form);
    assert_eq!(error_of(&world.run(wrong)), (400, "invalid_grant".into()), "another client's token");
    assert_eq!(world.store.state(login.id).counter, 0, "none of them spent it");
    for (user, secret) in [("app", ""), ("app", SERVICE), ("a%70p", "service%2Dsecret")] {
        let refresh = RefreshToken { counter: world.store.state(login.id).counter, ..opened(&world, &login.refresh) };
        let token = refresh.seal(world.rules.refresh_key(refresh.key_id).unwrap());
        let asked = post("/oauth/token").header("authorization", &basic(user, secret));
        let answer = world.run(asked.form(&format!("grant_type=refresh_token&refresh_token={token}")));
        assert_eq!(answer.status, 200, "{user}:{secret} {}", answer.text());
    }
}

fn opened(world: &World, token: &str) -> RefreshToken {
    RefreshToken::open(token, |id| world.rules.refresh_key(id)).unwrap()
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
    for form in ["hint=x", "token=", "token=a&token=b", "token=a&token_type_hint=b&token_type_hint=b"] {
        let answer = world.run(post("/oauth/revoke").form(form));
        assert_eq!(error_of(&answer), (400, "invalid_request".into()), "{form}");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn another_clients_token_is_not_revoked_and_nobody_is_told() {
    let mut world = World::new();
    let (by_refresh, by_access) = (world.log_in("42"), world.log_in("42"));
    let ended = world.run(post("/oauth/revoke").form("token=rubbish&client_id=other"));
    for (token, id) in [(&by_refresh.refresh, by_refresh.id), (&by_access.access, by_access.id)] {
        let of_another = world.run(post("/oauth/revoke").form(&format!("token={token}&client_id=other")));
        assert_eq!((of_another.status, of_another.text()), (ended.status, ended.text()));
        assert!(world.store.holds(id));
        let own = world.run(post("/oauth/revoke").form(&format!("token={token}&client_id=app")));
        assert_eq!((own.status, own.text()), (ended.status, ended.text()));
        assert!(!world.store.holds(id));
    }
    let served = world.log_in("42");
    let service = post("/oauth/revoke").header("authorization", &basic("login", SERVICE));
    assert_eq!(world.run(service.form(&format!("token={}", served.refresh))).status, 200);
    assert!(!world.store.holds(served.id), "the service may end any");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_revocation_that_could_be_lost_again_is_not_called_one() {
    let mut world = World::new();
    let login = world.log_in("42");
    world.store.lagging = true;
    let answer = world.run(post("/oauth/revoke").form(&format!("token={}", login.refresh)));
    assert_eq!(error_of(&answer), (503, "temporarily_unavailable".into()));
    assert_eq!(answer.header("retry-after"), Some("1"), "RFC 7009 §2.2.1: it may ask again");
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
    assert_eq!((&refresh["active"], &refresh["token_use"]), (&json!(true), &json!("refresh_token")));
    assert_eq!(refresh.get("token_type"), None, "only an access token has one");
    assert_eq!((&access["token_type"], &access["token_use"]), (&json!("Bearer"), &json!("access_token")));
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
    assert_eq!(bare.header("www-authenticate"), Some("Basic realm=\"edgekeep\", Bearer realm=\"edgekeep\""));
    let own = world.run(post("/oauth/introspect").bearer(&login.access).form(&form));
    assert_eq!(error_of(&own), (401, "invalid_client".into()));
    for (user, secret, status) in [("api", SERVICE, 200), ("api", "wrong", 401), ("api", "", 401), (SERVICE, "", 401)] {
        let asked = post("/oauth/introspect").header("authorization", &basic(user, secret));
        assert_eq!(world.run(asked.form(&form)).status, status, "{user}:{secret}");
    }
    let mut closed = World::new().with_secrets(Secrets::new(None, Some(EDGE), None));
    for asked in [post("/oauth/introspect").bearer(SERVICE), post("/oauth/introspect")] {
        assert_eq!(error_of(&closed.run(asked.form(&form))), (403, "unauthorized_client".into()));
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn what_is_not_active_is_told_by_that_word_alone_whatever_it_was() {
    let mut world = World::new();
    let (ended, other) = (world.log_in("42"), world.log_in("7"));
    world.run(delete("/v1/users/42/sessions").bearer(SERVICE));
    let forged = format!("{}AAAAA", &other.refresh[..46]);
    let (body, signature) = other.access.rsplit_once('.').unwrap();
    let resigned = format!("{body}.{}", signature.chars().rev().collect::<String>());
    let mut told = Vec::new();
    for token in [&ended.access, &ended.refresh, &forged, &resigned, "rubbish", &"x".repeat(10_000)] {
        let answer = world.run(post("/oauth/introspect").bearer(SERVICE).form(&format!("token={token}")));
        told.push((answer.status, answer.text()));
    }
    world.pass(15 * 60);
    let expired = world.run(post("/oauth/introspect").bearer(SERVICE).form(&format!("token={}", other.access)));
    told.push((expired.status, expired.text()));
    assert!(told.iter().all(|answer| *answer == (200, r#"{"active":false}"#.to_owned())), "{told:?}");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_worker_whose_authority_is_away_says_so_in_oauths_words() {
    let mut edge = World::at_edge();
    for path in ["/oauth/token", "/oauth/revoke", "/oauth/introspect"] {
        edge.script("authority", Does::Fail(FailedStage::Connect));
        let answer = edge.run(post(path).form("token=x"));
        assert_eq!(error_of(&answer), (503, "temporarily_unavailable".into()), "{path}");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
}
