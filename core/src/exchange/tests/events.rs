//! Every creation, refresh, refusal, revocation and reuse is told, once, without an id.

use super::*;
use crate::metrics::Refresh;
use wasm_bindgen_test::wasm_bindgen_test;

#[track_caller]
fn told(answer: &Answer) -> (SessionHappened, Option<String>, Option<String>) {
    let event = answer.event.clone().unwrap_or_else(|| panic!("nothing was told: {}", answer.text()));
    assert_eq!(event.client, "192.0.2.9".parse().ok());
    (event.what, event.session, event.user)
}

impl World {
    fn named(&self, text: &str) -> Option<String> {
        Some(self.rules.log_name(text.as_bytes()))
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_session_is_told_of_from_its_creation_to_its_end_by_hashed_names() {
    let mut world = World::new();
    let created = world.run(post("/v1/sessions").bearer(SERVICE).json(&json!({ "user_id": "someone" })));
    let login = login(&created);
    let (session, user) = (world.named(&login.id.to_string()), world.named("someone"));
    assert_eq!(session.as_ref().unwrap().len(), 16);
    assert_eq!(told(&created), (SessionHappened::Created { evicted: 0 }, session.clone(), user.clone()));
    let refreshed = world.refresh(&login.refresh, "phone");
    let next = super::login(&refreshed);
    assert_eq!(told(&refreshed), (SessionHappened::Refreshed(Refresh::Rotated), session.clone(), user.clone()));
    let again = world.refresh(&login.refresh, "phone");
    assert_eq!(told(&again).0, SessionHappened::Refreshed(Refresh::Reissued));
    assert_eq!(world.run(get("/feed").bearer(&next.access)).event, None, "a request is no event");
    let out = world.run(delete("/v1/sessions/current").bearer(&next.access));
    let revoked = SessionHappened::Revoked { how: Revoked::One, count: 1, replicated: true };
    assert_eq!(told(&out), (revoked, session.clone(), user.clone()));
    let refused = world.run(get("/feed").bearer(&next.access));
    assert_eq!(told(&refused), (SessionHappened::Refused("session_ended"), session.clone(), user));
    let refused = world.refresh(&next.refresh, "phone");
    assert_eq!(told(&refused), (SessionHappened::Refused("ended"), session, None));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_creation_tells_how_many_sessions_made_room_for_it() {
    let mut world = World::with(json!({ "session": { "max_per_user": 1 } }));
    world.log_in("someone");
    let created = world.run(post("/v1/sessions").bearer(SERVICE).json(&json!({ "user_id": "someone" })));
    assert_eq!(told(&created).0, SessionHappened::Created { evicted: 1 });
    let event = created.event.unwrap();
    assert_eq!((event.name(), event.count()), ("session_created", Some(1)));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_reuse_is_told_as_one_and_names_whom_it_hit() {
    let mut world = World::new();
    let login = world.log_in("someone");
    world.refresh(&login.refresh, "phone");
    world.pass(31);
    world.store.lagging = true;
    let reuse = world.refresh(&login.refresh, "thief");
    let (session, user) = (world.named(&login.id.to_string()), world.named("someone"));
    assert_eq!(told(&reuse), (SessionHappened::Reuse { replicated: false }, session, user));
}

#[wasm_bindgen_test(unsupported = test)]
fn every_revocation_says_which_sessions_it_meant_and_how_many_ended() {
    let mut world = World::new();
    let logins: Vec<Login> = (0..4).map(|_| world.log_in("someone")).collect();
    let revoked = |how, count| SessionHappened::Revoked { how, count, replicated: true };
    let other = world.run(delete(&format!("/v1/sessions/{}", logins[1].id)).bearer(&logins[0].access));
    assert_eq!(
        told(&other),
        (revoked(Revoked::One, 1), world.named(&logins[1].id.to_string()), world.named("someone"))
    );
    let others = world.run(delete("/v1/sessions?except=current").bearer(&logins[0].access));
    assert_eq!(told(&others), (revoked(Revoked::Others, 2), None, world.named("someone")));
    let token = world.run(post("/oauth/revoke").form(&format!("token={}", logins[0].refresh)));
    assert_eq!(told(&token).0, revoked(Revoked::Token, 1));
    let all = world.run(delete("/v1/users/someone/sessions").bearer(SERVICE));
    assert_eq!(told(&all), (revoked(Revoked::All, 0), None, world.named("someone")));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_refusal_is_told_with_its_reason_and_what_was_not_presented_is_none() {
    let mut world = World::with(json!({ "limits": { "refresh_failures": "3/1m", "creates": "1/1h" } }));
    let reason = |answer: &Answer| match told(answer).0 {
        SessionHappened::Refused(why) => why,
        other => panic!("{other:?}"),
    };
    let login = world.log_in("someone");
    let create = || post("/v1/sessions").bearer(SERVICE).json(&json!({ "user_id": 1 }));
    assert_eq!(reason(&world.run(create())), "too_many_requests");
    assert_eq!(reason(&world.run(post("/v1/sessions").bearer("wrong"))), "invalid_token");
    assert_eq!(reason(&world.run(get("/feed").bearer("rubbish"))), "invalid_token");
    assert_eq!(reason(&world.refresh("rubbish", "phone")), "malformed");
    let strangers = KeyRing::generate(KeyAlgorithm::EdDsa, &mut Entropy::for_tests(9), NOW);
    let forged = crate::session::RefreshToken { session: login.id, counter: 0, key_id: 1 };
    let forged = forged.seal(strangers.current(crate::token::KeyKind::Refresh).unwrap());
    assert_eq!(reason(&world.refresh(&forged, "phone")), "forged");
    let grant = format!("grant_type=refresh_token&client_id=other&refresh_token={}", login.refresh);
    assert_eq!(reason(&world.run(post("/oauth/token").form(&grant))), "other_client");
    assert_eq!(reason(&world.refresh("rubbish", "phone")), "too_many_requests");
    assert_eq!(world.run(get("/feed")).event, None, "nothing was presented");
    assert_eq!(world.run(post("/v1/sessions")).event, None);
    world.store.down = true;
    assert_eq!(world.run(get("/strict/x").bearer(&login.access)).event, None, "the store's fault is no refusal");
    world.pass(3_600);
    assert_eq!(world.run(get("/feed").bearer(&login.access)).event, None, "plainly expired");
}
