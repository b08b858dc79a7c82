//! What Workers are told of a revocation, and in which form.

use super::*;
use crate::session::Tombstone;
use wasm_bindgen_test::wasm_bindgen_test;

/// A region that tells a Worker.
fn region() -> World {
    World::with(json!({ "edge": { "notify": ["https://edge.example"] }, "session": { "leeway": "10s" } }))
}

/// 15 minutes of token life and the leeway after the next full second.
fn until(world: &World) -> Timestamp {
    Timestamp(world.now.0.div_ceil(1000) * 1000) + Millis::from_secs(910)
}

#[wasm_bindgen_test(unsupported = test)]
fn every_call_that_ends_sessions_names_them_until_their_last_token_has_expired() {
    let calls: [fn(&Login, &Login) -> Request; 5] = [
        |_, other| delete("/v1/sessions/current").bearer(&other.access),
        |me, other| delete(&format!("/v1/sessions/{}", other.id)).bearer(&me.access),
        |me, _| delete("/v1/sessions?except=current").bearer(&me.access),
        |_, other| post("/oauth/revoke").form(&format!("token={}", other.access)),
        |_, other| post("/oauth/revoke").form(&format!("token={}", other.refresh)),
    ];
    for call in calls {
        let mut world = region();
        let (me, other) = (world.log_in("42"), world.log_in("42"));
        world.log_in("7");
        world.now = world.now + Millis(1);
        let answer = world.run(call(&me, &other));
        let told = Tombstone::Session { id: other.id, until: until(&world) };
        assert_eq!(answer.tombstones, [told], "{:?}", answer.store_ops);
        assert_eq!(world.run(call(&me, &other)).tombstones, [], "it had ended before");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn revoking_all_names_the_user_with_the_new_epoch_and_no_session() {
    let mut world = region();
    for epoch in 1..=2 {
        world.log_in("42");
        world.log_in("42");
        let answer = world.run(delete("/v1/users/42/sessions").bearer(SERVICE));
        let told = Tombstone::User { user: UserId::new("42").unwrap(), epoch, until: until(&world) };
        assert_eq!(answer.tombstones, [told]);
    }
    // A session that the index does not name is below the epoch as well.
    assert_eq!(world.run(delete("/v1/users/nobody/sessions").bearer(SERVICE)).tombstones.len(), 1);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_login_names_the_sessions_that_made_room_for_it() {
    let mut world = World::with(json!({
        "edge": { "notify": ["https://edge.example"] }, "session": { "max_per_user": 1, "leeway": "10s" },
    }));
    let first = world.log_in("42");
    let answer = world.run(post("/v1/sessions").bearer(SERVICE).json(&json!({ "user_id": 42 })));
    assert_eq!(answer.tombstones, [Tombstone::Session { id: first.id, until: until(&world) }]);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_reuse_names_the_session_that_it_ended() {
    let mut world = region();
    let login = world.log_in("42");
    assert_eq!(world.refresh(&login.refresh, "phone").tombstones, []);
    world.pass(60);
    let answer = world.refresh(&login.refresh, "thief");
    answer.refused(401, "invalid_refresh_token");
    assert_eq!(answer.tombstones, [Tombstone::Session { id: login.id, until: until(&world) }]);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_revocation_that_replicas_lack_is_told_all_the_same_and_one_that_failed_is_not() {
    let mut world = region();
    let login = world.log_in("42");
    world.store.down = true;
    assert_eq!(world.run(delete("/v1/users/42/sessions").bearer(SERVICE)).tombstones, []);
    world.store.down = false;
    world.store.lagging = true;
    let answer = world.run(delete("/v1/sessions/current").bearer(&login.access));
    assert_eq!((answer.status, answer.tombstones.len()), (202, 1));
}

#[wasm_bindgen_test(unsupported = test)]
fn nobody_is_told_where_no_worker_is_named_or_of_another_users_session() {
    let mut world = World::new();
    let login = world.log_in("42");
    assert_eq!(world.run(delete("/v1/sessions/current").bearer(&login.access)).tombstones, []);
    let mut world = region();
    let (mine, theirs) = (world.log_in("42"), world.log_in("7"));
    let answer = world.run(delete(&format!("/v1/sessions/{}", theirs.id)).bearer(&mine.access));
    assert_eq!((answer.status, answer.tombstones), (204, vec![]));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_batch_is_what_a_worker_reads_as_long_as_it_takes_it() {
    let session = |n: u32| Tombstone::Session { id: SessionId(u128::from(n).to_be_bytes()), until: NOW };
    let user = Tombstone::User { user: UserId::new("\"\\\u{fc}").unwrap(), epoch: 3, until: NOW };
    let mut all: Vec<Tombstone> = (0..1500).map(session).collect();
    all.insert(1, user);
    for limit in [0, 1_000, 64 * 1024, usize::MAX] {
        let mut world = World::built(
            json!({ "session": { "authority": "https://region.example" }, "limits": { "json_body": "1MiB" } }),
            Site::EdgeBesideRegion,
            InForce::default(),
        );
        let mut rest = all.as_slice();
        let mut bodies = Vec::new();
        while !rest.is_empty() && bodies.len() < 5 {
            let (body, count) = Tombstone::batch(rest, limit);
            assert!((1..=1000).contains(&count) && (body.len() <= limit || count == 1), "{limit}: {count}");
            let call = post("/v1/edge/tombstones").header("x-edgekeep-edge", EDGE).body(body.as_bytes());
            let answer = world.run(call);
            assert_eq!(answer.status, 204, "{}", answer.text());
            assert_eq!(answer.store_ops, [crate::session::StoreOp::Bury(rest[..count].to_vec())]);
            bodies.push(body.len());
            rest = &rest[count..];
        }
        // As full as they may be: another one would not have fitted.
        assert!(bodies.len() <= 2 || bodies[0] + 100 > limit, "{limit}: {bodies:?}");
    }
}
