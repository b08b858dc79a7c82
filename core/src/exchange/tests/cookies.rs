//! Cookies: tokens in them, cross-site requests, and what an origin may see and set.

use super::request::request;
use super::*;
use wasm_bindgen_test::wasm_bindgen_test;

fn with_cookies() -> World {
    World::with(json!({ "session": { "cookies": true, "csrf_origins": ["https://admin.example"] } }))
}

#[wasm_bindgen_test(unsupported = test)]
fn create_and_refresh_set_both_cookies_where_they_are_switched_on() {
    let mut world = with_cookies();
    let created = world.run(post("/v1/sessions").bearer(SERVICE).json(&json!({ "user_id": 42 })));
    let login = login(&created);
    let cookies = created.cookies_set();
    assert_eq!(cookies.len(), 2);
    assert!(cookies[0].starts_with(&format!("__Host-edgekeep-at={}; Max-Age=", login.access)), "{}", cookies[0]);
    assert!(cookies[1].starts_with(&format!("__Host-edgekeep-rt={}; Max-Age=1209600;", login.refresh)));
    for cookie in cookies {
        for attribute in ["Path=/", "Secure", "HttpOnly", "SameSite=Lax"] {
            assert!(cookie.split("; ").any(|part| part == attribute), "{attribute} in {cookie}");
        }
    }
    let refreshed = world.run(
        post("/v1/sessions/refresh")
            .cookie(&format!("__Host-edgekeep-rt={}", login.refresh))
            .header("sec-fetch-site", "same-origin"),
    );
    assert_eq!((refreshed.status, refreshed.cookies_set().len()), (200, 2));
    assert_eq!(refreshed.json().get("refresh_token"), None, "what lives in HttpOnly cookies is not shown to scripts");
    assert_eq!(World::new().log_in("42").access.split('.').count(), 3);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_refresh_by_cookie_is_answered_by_cookie_so_that_no_token_is_lost() {
    let mut world = World::new();
    let login = world.log_in("42");
    let answer = world.run(
        post("/v1/sessions/refresh")
            .cookie(&format!("__Host-edgekeep-rt={}", login.refresh))
            .header("sec-fetch-site", "same-origin"),
    );
    assert_eq!((answer.status, answer.cookies_set().len()), (200, 2), "although session.cookies is off now");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_cookie_authenticates_and_is_taken_out_before_the_origin() {
    let mut world = with_cookies();
    let login = world.log_in("42");
    let cookies =
        format!("theme=dark; __Host-edgekeep-at={}; __Host-edgekeep-rt=x; DAB_ROUTE=y; lang=de", login.access);
    let answer = world.run(get("/feed").cookie(&cookies));
    assert_eq!(answer.seen().header("x-edgekeep-user"), Some("42"));
    assert_eq!(answer.seen().header("cookie"), Some("theme=dark; lang=de"));
    let open = world.run(get("/open/x").cookie(&cookies));
    assert_eq!(open.seen().header("cookie"), Some("theme=dark; lang=de"), "on an open route too");
}

#[wasm_bindgen_test(unsupported = test)]
fn authorization_wins_over_cookies() {
    let mut world = with_cookies();
    let (one, other) = (world.log_in("42"), world.log_in("7"));
    let answer = world.run(post("/feed").bearer(&one.access).access_cookie(&other.access));
    assert_eq!(answer.seen().header("x-edgekeep-user"), Some("42"), "and no other site could have sent it");
    let conflicting = get("/feed").bearer(&one.access).cookie("__Host-edgekeep-at=a; __Host-edgekeep-at=b");
    assert_eq!(world.run(conflicting).status, 200);
}

#[wasm_bindgen_test(unsupported = test)]
fn two_different_values_of_one_cookie_are_refused_and_both_cleared() {
    let mut world = with_cookies();
    let login = world.log_in("42");
    let planted = world.run(get("/feed").access_cookie(&login.access).access_cookie("planted"));
    planted.refused(401, "invalid_token");
    assert!(planted.clears_cookies());
    let same = world.run(get("/feed").access_cookie(&login.access).access_cookie(&login.access));
    assert_eq!(same.status, 200);
    let refresh = world.run(
        post("/v1/sessions/refresh")
            .cookie(&format!("__Host-edgekeep-rt={}; __Host-edgekeep-rt=planted", login.refresh))
            .header("sec-fetch-site", "same-origin"),
    );
    refresh.refused(401, "invalid_token");
    assert!(refresh.clears_cookies());
}

#[wasm_bindgen_test(unsupported = test)]
fn a_dead_cookie_is_cleared_and_an_expired_one_kept_for_its_refresh() {
    let mut world = with_cookies();
    let login = world.log_in("42");
    world.run(delete("/v1/users/42/sessions").bearer(SERVICE));
    let ended = world.run(get("/feed").access_cookie(&login.access));
    ended.refused(401, "session_ended");
    assert!(ended.clears_cookies());
    let bad = world.run(get("/feed").access_cookie("rubbish"));
    bad.refused(401, "invalid_token");
    assert!(bad.clears_cookies());
    world.pass(900);
    let expired = world.run(get("/feed").access_cookie(&login.access));
    expired.refused(401, "expired_token");
    assert!(expired.cookies_set().is_empty());
    assert!(world.run(get("/feed").bearer("rubbish")).cookies_set().is_empty(), "a bearer token clears nothing");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_cookie_authorises_an_unsafe_request_only_from_the_same_site() {
    let mut world = with_cookies();
    let login = world.log_in("42");
    let mut send = |headers: &[(&str, &str)]| {
        let start = post("/feed").access_cookie(&login.access);
        let request = headers.iter().fold(start, |request, (name, value)| request.header(name, value));
        world.run(request).status
    };
    assert_eq!(send(&[("sec-fetch-site", "same-origin")]), 200);
    assert_eq!(send(&[("sec-fetch-site", "none")]), 200);
    assert_eq!(send(&[("sec-fetch-site", "cross-site"), ("origin", "https://evil.example")]), 403);
    assert_eq!(send(&[("sec-fetch-site", "same-site"), ("origin", "https://app.example")]), 403);
    assert_eq!(send(&[("origin", "https://app.example")]), 200, "scheme and host of the request itself");
    assert_eq!(send(&[("origin", "http://app.example")]), 403);
    assert_eq!(send(&[("origin", "https://admin.example")]), 200, "listed");
    assert_eq!(send(&[("sec-fetch-site", "cross-site"), ("origin", "https://admin.example")]), 200);
    assert_eq!(send(&[("origin", "null")]), 403);
    assert_eq!(send(&[("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")]), 403);
    assert_eq!(send(&[("origin", "https://app.example"), ("origin", "https://evil.example")]), 403);
    assert_eq!(send(&[]), 403);
}

#[wasm_bindgen_test(unsupported = test)]
fn reading_methods_need_no_proof_and_an_upgrade_always_does() {
    let mut world = with_cookies();
    let login = world.log_in("42");
    for method in ["GET", "HEAD", "OPTIONS"] {
        let cross = request(method, "/feed").access_cookie(&login.access).header("sec-fetch-site", "cross-site");
        assert_eq!(world.run(cross).status, 200, "{method}");
    }
    let upgrade = |site| {
        let request = get("/live").access_cookie(&login.access).header("connection", "upgrade");
        request.header("upgrade", "websocket").header("sec-fetch-site", site)
    };
    let refused = world.run(upgrade("cross-site"));
    refused.refused(403, "cross_site");
    assert!(refused.forwarded.is_empty());
    assert!(world.run(upgrade("same-origin")).seen().upgrade);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_refresh_by_cookie_from_another_site_is_refused_and_spends_nothing() {
    let mut world = with_cookies();
    let login = world.log_in("42");
    let cookie = format!("__Host-edgekeep-rt={}", login.refresh);
    let refused = world.run(post("/v1/sessions/refresh").cookie(&cookie).header("sec-fetch-site", "cross-site"));
    refused.refused(403, "cross_site");
    assert!(refused.store_ops.is_empty());
    assert_eq!(world.store.state(login.id).counter, 0);
}

#[wasm_bindgen_test(unsupported = test)]
fn another_site_cannot_log_a_browser_in_with_a_token_of_its_own() {
    let body = |token: &str| format!("{{\"refresh_token\":\"{token}\"}}");
    for cookies in [true, false] {
        let mut world = World::with(json!({ "session": { "cookies": cookies } }));
        let theirs = world.log_in("attacker");
        let post = || post("/v1/sessions/refresh").header("content-type", "text/plain");
        let planted = post().body(body(&theirs.refresh).as_bytes());
        for header in [("sec-fetch-site", "cross-site"), ("origin", "https://evil.example")] {
            let answer = world.run(planted.clone().header(header.0, header.1));
            if cookies {
                answer.refused(403, "cross_site");
                assert!(answer.store_ops.is_empty() && answer.cookies_set().is_empty());
            } else {
                assert_eq!((answer.status, answer.cookies_set().len()), (200, 0), "no cookie, no harm");
            }
        }
        // The login service relays what it was given, and no browser stands behind it.
        let relayed = world.run(planted);
        assert_eq!((relayed.status, relayed.cookies_set().len()), (200, if cookies { 2 } else { 0 }));
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_refresh_cookie_that_is_refused_while_its_session_lives_is_not_cleared() {
    let mut world = with_cookies();
    let login = world.log_in("42");
    let refresh = |world: &mut World| {
        let cookie = format!("__Host-edgekeep-rt={}", login.refresh);
        world.run(
            post("/v1/sessions/refresh")
                .cookie(&cookie)
                .header("sec-fetch-site", "same-origin")
                .header("user-agent", "phone"),
        )
    };
    assert_eq!(refresh(&mut world).status, 200);
    // Its answer was lost, and so are those to three repeats.
    for _ in 0..3 {
        world.pass(31);
        assert_eq!(refresh(&mut world).status, 200);
    }
    world.pass(31);
    let refused = refresh(&mut world);
    refused.refused(401, "invalid_refresh_token");
    assert!(refused.cookies_set().is_empty(), "another tab may just have been given the session's token");
    world.run(delete("/v1/users/42/sessions").bearer(SERVICE));
    let ended = refresh(&mut world);
    ended.refused(401, "invalid_refresh_token");
    assert!(ended.clears_cookies());
}

#[wasm_bindgen_test(unsupported = test)]
fn an_origin_cannot_set_our_cookies_but_its_own() {
    let mut world = World::new();
    world.script(
        "a",
        Does::Answer(
            200,
            vec![
                ("set-cookie", "__Host-edgekeep-at=planted; Path=/"),
                ("set-cookie", "dab_route=planted"),
                ("set-cookie", "cart=1"),
            ],
        ),
    );
    let login = world.log_in("7");
    let answer = world.run(get("/feed").bearer(&login.access));
    assert_eq!(answer.cookies_set(), ["cart=1"]);
}
