//! Which shard a request goes to, and what happens while shards move.

use super::*;
use crate::shard::{Phase, ShardName, Slot};
use wasm_bindgen_test::wasm_bindgen_test;

/// A user who is not pinned, their slot, and the two shards of a move.
struct Moving {
    login: Login,
    slot: Slot,
    from: String,
    to: ShardName,
}

fn moving(world: &mut World) -> Moving {
    let login = world.log_in("alice");
    let map = world.rules.map().unwrap();
    let place = map.place(&UserId::new("alice").unwrap()).unwrap();
    let to = ShardName::user(if place.shard.as_str() == "shard_0" { 1 } else { 0 });
    Moving { login, slot: place.slot, from: place.shard.to_string(), to }
}

/// The map with that slot in each phase, in order.
fn phases(map: &ShardMap, slot: Slot, to: &ShardName) -> [ShardMap; 5] {
    let copying = map.begin_moves(&[(slot, to.clone())]).unwrap();
    let dual_write = copying.advance(&[slot], Phase::DualWrite).unwrap();
    let cutover = dual_write.advance(&[slot], Phase::Cutover).unwrap();
    let drain = cutover.advance(&[slot], Phase::Drain).unwrap();
    let stable = drain.finish(&[slot]).unwrap();
    [copying, dual_write, cutover, drain, stable]
}

#[wasm_bindgen_test(unsupported = test)]
fn a_request_goes_to_its_users_shard() {
    let mut world = World::new();
    for (user, shard, origins) in [("42", "shard_1", ["c", "c"]), ("7", "shard_0", ["a", "b"])] {
        let login = world.log_in(user);
        let answer = world.run(get("/feed").bearer(&login.access));
        assert!(origins.contains(&answer.seen().to.as_str()));
        assert_eq!(answer.seen().header("x-edgekeep-shard"), Some(shard));
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_route_may_place_by_the_user_in_its_path() {
    let mut world = World::new();
    let login = world.log_in("42");
    let answer = world.run(get("/users/7/profile").bearer(&login.access));
    assert_eq!(answer.seen().header("x-edgekeep-shard"), Some("shard_0"), "7's, although 42 asks");
    assert_eq!(answer.seen().header("x-edgekeep-user"), Some("42"), "whether 42 may is the origin's to say");
    let long = format!("/users/{}/profile", "x".repeat(129));
    world.run(get(&long).bearer(&login.access)).refused(400, "bad_identity");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_photo_is_placed_by_its_month_in_path_or_query() {
    let mut world = World::new();
    let login = world.log_in("42");
    let mut shard = |uri: &str| {
        let answer = world.run(get(uri).bearer(&login.access));
        assert_eq!(answer.asked(), ["p"], "{uri}");
        answer.seen().header("x-edgekeep-shard").unwrap().to_owned()
    };
    assert_eq!(shard("/photos/2026-03/cat.jpg"), "shard_2026_3");
    assert_eq!(shard("/upload?x=1&taken_at=2026-03"), "shard_2026_3");
    assert_eq!(shard("/upload?taken_at=2026-04-01T00%3A30%3A00%2B02%3A00"), "shard_2026_3", "UTC decides");
    let mut refused = |uri: &str| world.run(get(uri).bearer(&login.access)).problem();
    let bad = (400, "bad_instant".to_owned());
    assert_eq!(refused("/upload"), bad);
    assert_eq!(refused("/photos/2026-13/x"), bad);
    assert_eq!(refused("/photos/2019-12/x"), bad, "before shards.photos.from");
    assert_eq!(refused("/photos/2027-01/x"), bad, "beyond max_future");
    assert_eq!(refused("/photos/2025-03/x"), (503, "no_pool".to_owned()));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_hot_months_photos_are_spread_over_its_sub_shards_by_path() {
    let mut world = World::new();
    let login = world.log_in("42");
    let map = world.rules.map().unwrap().with_sub_shards(crate::shard::Month::new(2026, 3).unwrap(), 4).unwrap();
    let mut world = world.with_map(Some(map));
    let mut seen = std::collections::BTreeSet::new();
    for photo in 0..40 {
        let uri = format!("/photos/2026-03/{photo}");
        let answer = world.run(get(&uri).bearer(&login.access));
        let shard = answer.seen().header("x-edgekeep-shard").unwrap().to_owned();
        assert_eq!((answer.asked(), shard.starts_with("shard_2026_3_")), (vec!["p"], true));
        let again = world.run(get(&uri).bearer(&login.access));
        assert_eq!(again.seen().header("x-edgekeep-shard"), Some(shard.as_str()));
        seen.insert(shard);
    }
    assert_eq!(seen.len(), 4);
}

#[wasm_bindgen_test(unsupported = test)]
fn any_goes_to_user_shards_and_never_to_photo_or_fallback_pools() {
    let mut world = World::new();
    let mut asked: Vec<(String, String)> = (0..30)
        .map(|_| {
            let answer = world.run(get("/open/x"));
            (answer.seen().to.clone(), answer.seen().header("x-edgekeep-shard").unwrap().to_owned())
        })
        .collect();
    asked.sort();
    asked.dedup();
    let expected = [("a", "shard_0"), ("b", "shard_0"), ("c", "shard_1")].map(|(o, s)| (o.to_owned(), s.to_owned()));
    assert_eq!(asked, expected, "all of them, each with its own shard's name");
    let login = world.log_in("7");
    let named = world.run(get("/named").bearer(&login.access));
    assert_eq!((named.asked(), named.seen().header("x-edgekeep-shard")), (vec!["c"], Some("shard_1")));
}

#[wasm_bindgen_test(unsupported = test)]
fn the_originals_hash_refuses_identities_that_are_no_integers() {
    let world = World::new();
    let map = first_map(&world.rules.config, HashKind::Python);
    let mut world = world.with_map(Some(map));
    let (number, text) = (world.log_in("12"), world.log_in("alice"));
    assert_eq!(world.run(get("/feed").bearer(&number.access)).seen().header("x-edgekeep-shard"), Some("shard_0"));
    world.run(get("/feed").bearer(&text.access)).refused(400, "bad_identity");
    world.run(get("/users/x1/profile").bearer(&number.access)).refused(400, "bad_identity");
}

#[wasm_bindgen_test(unsupported = test)]
fn while_a_slot_moves_its_origin_is_told_of_the_other_shard() {
    let mut world = World::new();
    let Moving { login, slot, from, to } = moving(&mut world);
    let map = world.rules.map().unwrap().clone();
    let [copying, dual_write, _, drain, stable] = phases(&map, slot, &to);
    for (map, shard, next, previous) in [
        (copying, from.as_str(), Some(to.as_str()), None),
        (dual_write, from.as_str(), Some(to.as_str()), None),
        (drain, to.as_str(), None, Some(from.as_str())),
        (stable, to.as_str(), None, None),
    ] {
        let epoch = map.epoch().to_string();
        world = world.with_map(Some(map));
        let answer = world.run(get("/feed").bearer(&login.access));
        let seen = answer.seen();
        assert_eq!(seen.header("x-edgekeep-shard"), Some(shard));
        assert_eq!(seen.header("x-edgekeep-shard-epoch"), Some(epoch.as_str()));
        assert_eq!(seen.header("x-edgekeep-shard-next"), next, "epoch {epoch}");
        assert_eq!(seen.header("x-edgekeep-shard-previous"), previous, "epoch {epoch}");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn in_cutover_a_request_is_held_for_the_next_map_and_then_goes_to_the_new_shard() {
    let mut world = World::new();
    let Moving { login, slot, to, .. } = moving(&mut world);
    let map = world.rules.map().unwrap().clone();
    let [_, _, cutover, drain, _] = phases(&map, slot, &to);
    let mut world = world.with_map(Some(cutover));
    world.maps.push_back(drain);
    let answer = world.run(get("/token/x").bearer(&login.access));
    assert_eq!((answer.status, &answer.steps), (200, &vec!["load_map", "forward", "respond"]));
    assert_eq!(answer.seen().header("x-edgekeep-shard"), Some(to.as_str()));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_cutover_holds_for_five_seconds_in_all_and_then_answers_503() {
    let mut world = World::new();
    let Moving { login, slot, to, .. } = moving(&mut world);
    let map = world.rules.map().unwrap().clone();
    let [_, _, cutover, ..] = phases(&map, slot, &to);
    let mut world = world.with_map(Some(cutover.clone()));
    let answer = world.run(get("/token/x").bearer(&login.access));
    answer.refused(503, "shard_moving");
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert!(answer.forwarded.is_empty());
    assert_eq!(world.now.since(NOW), Millis(5_000));
    // Another slot's change brings a newer map in which this one is still held.
    let newer = cutover.with_sub_shards(crate::shard::Month::new(2026, 3).unwrap(), 2).unwrap();
    world.maps.push_back(newer);
    let before = world.now;
    world.run(get("/token/x").bearer(&login.access)).refused(503, "shard_moving");
    assert_eq!(world.now.since(before), Millis(5_000), "not five seconds for each map");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_misdirected_request_takes_the_newer_map_and_is_sent_once_more() {
    let mut world = World::new();
    let Moving { login, slot, from, to } = moving(&mut world);
    let map = world.rules.map().unwrap().clone();
    let [_, _, _, drain, _] = phases(&map, slot, &to);
    let old: &[&str] = if from == "shard_0" { &["a", "b"] } else { &["c"] };
    for origin in old {
        world.script(origin, Does::Answer(421, vec![]));
    }
    world.maps.push_back(drain);
    let answer = world.run(post("/token/x").bearer(&login.access));
    assert_eq!((answer.status, &answer.steps), (200, &vec!["forward", "load_map", "forward", "respond"]));
    assert_eq!(answer.forwarded[0].header("x-edgekeep-shard"), Some(from.as_str()));
    assert_eq!(answer.seen().header("x-edgekeep-shard"), Some(to.as_str()));
    assert_eq!(answer.seen().header("x-edgekeep-shard-previous"), Some(from.as_str()));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_second_421_or_a_body_that_is_gone_is_503() {
    let mut world = World::new();
    let login = world.log_in("42");
    let newer =
        || World::new().rules.map().unwrap().with_sub_shards(crate::shard::Month::new(2026, 3).unwrap(), 2).unwrap();
    world.script("c", Does::Answer(421, vec![]));
    world.script("c", Does::Answer(421, vec![]));
    world.maps.push_back(newer());
    let twice = world.run(get("/token/x").bearer(&login.access));
    twice.refused(503, "shard_moving");
    assert_eq!(twice.asked(), ["c", "c"]);
    let mut world = World::new();
    let login = world.log_in("42");
    world.script("c", Does::Answer(421, vec![]));
    let gone = world.run(post("/token/x").bearer(&login.access).too_long_to_replay());
    gone.refused(503, "shard_moving");
    assert_eq!((gone.asked(), gone.header("retry-after")), (vec!["c"], Some("1")));
    let mut world = World::new();
    let login = world.log_in("42");
    world.script("c", Does::Answer(421, vec![]));
    world.run(get("/token/x").bearer(&login.access)).refused(503, "shard_moving");
}

#[wasm_bindgen_test(unsupported = test)]
fn where_no_map_decided_a_421_is_the_origins_own_answer() {
    let mut world = World::new();
    let login = world.log_in("7");
    world.script("c", Does::Answer(421, vec![]));
    assert_eq!(world.run(get("/named").bearer(&login.access)).status, 421);
}

#[wasm_bindgen_test(unsupported = test)]
fn applications_ask_where_users_and_photos_live() {
    let mut world = World::new();
    let user = world.run(get("/v1/shards/users/42").bearer(SERVICE)).json();
    assert_eq!((&user["shard"], &user["pinned"], user["epoch"].as_u64()), (&json!("shard_1"), &json!(true), Some(1)));
    let mut ask = |query: &str| world.run(get(&format!("/v1/shards/photos?{query}")).bearer(SERVICE));
    assert_eq!(ask("at=2026-03").json(), json!({ "shards": ["shard_2026_3"] }));
    let range = ask("from=2026-01&to=2026-03").json();
    assert_eq!(range, json!({ "shards": ["shard_2026_1", "shard_2026_2"] }), "half-open and in order");
    ask("at=2026-03&from=2026-01").refused(400, "bad_request");
    ask("").refused(400, "bad_request");
    ask("at=yesterday").refused(400, "bad_instant");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_request_that_waited_through_a_reload_of_the_routes_starts_over() {
    let mut world = World::new();
    let Moving { login, slot, to, .. } = moving(&mut world);
    let map = world.rules.map().unwrap().clone();
    let [_, _, cutover, drain, _] = phases(&map, slot, &to);
    let mut world = world.with_map(Some(cutover));
    world.maps.push_back(drain);
    let mut config = world.rules.config.clone();
    config.routes.reverse();
    world.reloaded = Some(config);
    let answer = world.run(get("/account/x").bearer(&login.access));
    answer.refused(503, "reloaded");
    assert!(answer.forwarded.is_empty(), "nothing goes out under another route's rules");
}
