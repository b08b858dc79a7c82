//! Limits at their edges, and answers that tell nobody what is there.

use super::*;
use wasm_bindgen_test::wasm_bindgen_test;

fn create(world: &mut World, body: &Value) -> Answer {
    world.run(post("/v1/sessions").bearer(SERVICE).json(body))
}

/// Everything of an answer that a client could tell two cases apart by.
fn seen(answer: &Answer) -> (u16, String, Vec<Option<String>>) {
    const HEADERS: [&str; 6] =
        ["content-type", "cache-control", "www-authenticate", "retry-after", "clear-site-data", "pragma"];
    (answer.status, answer.text(), HEADERS.map(|name| answer.header(name).map(str::to_owned)).to_vec())
}

#[wasm_bindgen_test(unsupported = test)]
fn a_length_over_the_limit_or_over_64_bits_is_refused() {
    let mut world = World::with(json!({ "limits": { "body": "1KiB" } }));
    let sent = |length: &'static str| post("/open/x").header("content-length", length);
    assert_eq!(world.run(sent("1024")).status, 200);
    for length in ["1025", "18446744073709551615", "18446744073709551616", "18446744073709551621", "x", "5, 5", "-1"] {
        world.run(sent(length)).refused(413, "body_too_large");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn fields_are_taken_up_to_their_last_byte_and_refused_one_beyond() {
    let mut world = World::new();
    // {"n":"…"} is 8 bytes around its text.
    for (length, status) in [(4096, 201), (4097, 400)] {
        let device_info = json!({ "n": "x".repeat(length - 8) });
        assert_eq!(device_info.to_string().len(), length);
        assert_eq!(create(&mut world, &json!({ "user_id": 1, "device_info": device_info })).status, status);
    }
    for (length, status) in [(128, 201), (129, 400)] {
        assert_eq!(create(&mut world, &json!({ "user_id": 1, "client_id": "c".repeat(length) })).status, status);
        assert_eq!(create(&mut world, &json!({ "user_id": "u".repeat(length) })).status, status);
        // Bytes, not characters.
        assert_eq!(
            create(&mut world, &json!({ "user_id": "ü".repeat(length / 2) + &"u".repeat(length % 2) })).status,
            status
        );
        let path = format!("/v1/users/{}/sessions", "u".repeat(length));
        assert_eq!(world.run(get(&path).bearer(SERVICE)).status, if status == 201 { 200 } else { 400 });
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_body_is_read_up_to_exactly_limits_json_body() {
    let mut world = World::with(json!({ "limits": { "json_body": "8KiB" } }));
    let padded = |length: usize| {
        let mut body = json!({ "user_id": 1 }).to_string();
        body.push_str(&" ".repeat(length - body.len()));
        post("/v1/sessions").bearer(SERVICE).body(body.as_bytes())
    };
    assert_eq!(world.run(padded(8 * 1024)).status, 201);
    world.run(padded(8 * 1024 + 1)).refused(413, "body_too_large");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_user_at_the_maximum_loses_the_oldest_session_or_gets_no_new_one() {
    for (policy, status) in [("evict_oldest", 201), ("refuse", 409)] {
        let mut world = World::with(json!({ "session": { "max_per_user": 2, "on_max": policy } }));
        let oldest = world.log_in("42");
        world.pass(1);
        let second = world.log_in("42");
        world.pass(1);
        let third = create(&mut world, &json!({ "user_id": 42 }));
        assert_eq!(third.status, status, "{policy}: the third of two");
        let evicted = status == 201;
        assert_eq!(world.run(get("/strict/x").bearer(&oldest.access)).status, if evicted { 401 } else { 200 });
        assert_eq!(world.run(get("/strict/x").bearer(&second.access)).status, 200);
        if !evicted {
            third.refused(409, "too_many_sessions");
            assert_eq!(world.run(delete("/v1/sessions/current").bearer(&oldest.access)).status, 204);
            assert_eq!(create(&mut world, &json!({ "user_id": 42 })).status, 201, "there is room again");
        }
        assert_eq!(create(&mut world, &json!({ "user_id": 7 })).status, 201, "another user has a count of their own");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn ending_a_session_answers_the_same_whether_it_was_there_or_not() {
    for marks_dead in [false, true] {
        let mut world = World::new();
        world.store.marks_dead = marks_dead;
        let (me, mine, ended, theirs) = (world.log_in("42"), world.log_in("42"), world.log_in("42"), world.log_in("7"));
        assert_eq!(world.run(delete("/v1/sessions/current").bearer(&ended.access)).status, 204);
        let unknown = crate::session::steer_session_id(&UserId::new("42").unwrap(), &mut Entropy::for_tests(8));
        let mut end = |id: &str| seen(&world.run(delete(&format!("/v1/sessions/{id}")).bearer(&me.access)));
        let known = end(&mine.id.to_string());
        assert_eq!(known.0, 204);
        for id in [ended.id.to_string(), theirs.id.to_string(), unknown.to_string(), "no-session-id".to_owned()] {
            assert_eq!(end(&id), known, "{id}");
        }
        assert!(world.store.holds(theirs.id), "and nobody ends another's session");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_refresh_answers_the_same_for_an_unknown_an_ended_and_an_expired_session() {
    for request in [
        (|token: &str| post("/v1/sessions/refresh").header("user-agent", "x").json(&json!({ "refresh_token": token })))
            as fn(&str) -> Request,
        |token| post("/oauth/token").form(&format!("grant_type=refresh_token&refresh_token={token}")),
        |token| post("/oauth/token").form(&format!("grant_type=refresh_token&client_id=other&refresh_token={token}")),
    ] {
        for marks_dead in [false, true] {
            let mut world = World::with(json!({ "session": { "idle_ttl": "1h" } }));
            world.store.marks_dead = marks_dead;
            let expired = world.log_in("42");
            world.pass(3_600);
            let ended = world.log_in("42");
            assert_eq!(world.run(delete("/v1/sessions/current").bearer(&ended.access)).status, 204);
            let id = crate::session::steer_session_id(&UserId::new("9").unwrap(), &mut Entropy::for_tests(8));
            let key = world.keys.current(crate::token::KeyKind::Refresh).unwrap();
            let token = crate::session::RefreshToken { session: id, counter: 0, key_id: key.id() };
            let unknown = token.seal(key);
            let unknown = seen(&world.run(request(&unknown)));
            assert!(unknown.0 == 400 || unknown.0 == 401, "{unknown:?}");
            assert_eq!(seen(&world.run(request(&ended.refresh))), unknown, "ended");
            assert_eq!(seen(&world.run(request(&expired.refresh))), unknown, "expired");
        }
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn revocation_and_introspection_answer_the_same_for_what_is_unknown_ended_or_rubbish() {
    for marks_dead in [false, true] {
        let mut world = World::new();
        world.store.marks_dead = marks_dead;
        let (good, ended) = (world.log_in("42"), world.log_in("42"));
        assert_eq!(world.run(delete("/v1/sessions/current").bearer(&ended.access)).status, 204);
        let inactive = ["rubbish", &ended.access, &ended.refresh]
            .map(|token| seen(&world.run(post("/oauth/introspect").bearer(SERVICE).form(&format!("token={token}")))));
        assert_eq!((inactive[0].0, inactive[0].1.as_str()), (200, "{\"active\":false}"));
        assert!(inactive.iter().all(|answer| *answer == inactive[0]), "{inactive:?}");
        let revoked = ["rubbish", &ended.refresh, &ended.access, &good.refresh, &good.refresh]
            .map(|token| seen(&world.run(post("/oauth/revoke").form(&format!("token={token}")))));
        assert_eq!(revoked[0].0, 200);
        assert!(revoked.iter().all(|answer| *answer == revoked[0]), "{revoked:?}");
        assert!(!world.store.holds(good.id));
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_request_answers_the_same_for_an_unknown_and_an_ended_session() {
    for marks_dead in [false, true] {
        let mut world = World::new();
        world.store.marks_dead = marks_dead;
        let ended = world.log_in("42");
        assert_eq!(world.run(delete("/v1/sessions/current").bearer(&ended.access)).status, 204);
        let id = crate::session::steer_session_id(&UserId::new("42").unwrap(), &mut Entropy::for_tests(8));
        let unknown = world.mint(id, "42", 0);
        let elsewhere = world.log_in("7");
        let strangers = world.mint(elsewhere.id, "42", 0);
        for path in ["/feed", "/strict/x", "/v1/sessions", "/v1/authorize"] {
            let expected = seen(&world.run(get(path).bearer(&unknown)));
            assert_eq!(expected.0, 401, "{path}");
            assert_eq!(seen(&world.run(get(path).bearer(&ended.access))), expected, "{path}");
            assert_eq!(seen(&world.run(get(path).bearer(&strangers))), expected, "{path}: another user's session");
        }
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_credential_is_only_itself_whole() {
    let mut world = World::new();
    for wrong in ["service-secre", "service-secret2", "Service-secret", "", " ", "service-secret,"] {
        let answer = world.run(post("/v1/sessions").bearer(wrong).json(&json!({ "user_id": 1 })));
        assert_eq!(answer.status, 401, "{wrong:?}");
    }
    for wrong in ["edge-secre", "edge-secret ", "EDGE-SECRET", SERVICE, ""] {
        let answer = world.run(post("/v1/edge/validate").header("x-edgekeep-edge", wrong).json(&json!({})));
        assert_eq!(answer.status, 403, "{wrong:?}");
    }
}
