//! What went wrong in other session systems when two things happened at once, as tests that bear its name; and any
//! interleaving of refreshes, revocations and confirmations.

use super::*;
use crate::metrics::Refresh;
use crate::session::StoreOp;
use crate::token::KeyKind;
use wasm_bindgen_test::wasm_bindgen_test;

fn refreshing(token: &str) -> Request {
    post("/v1/sessions/refresh").header("user-agent", "phone").json(&json!({ "refresh_token": token }))
}

impl World {
    /// Advances until its next step asks the store.
    fn until_the_store(&mut self, request: Request) -> Running {
        let mut running = self.start(request);
        while !matches!(running.step, Some(Step::Store(_))) {
            assert!(self.advance(&mut running).is_none(), "it ended before it asked the store");
        }
        running
    }

    fn finish(&mut self, mut running: Running) -> Answer {
        loop {
            if let Some(answer) = self.advance(&mut running) {
                return answer;
            }
        }
    }

    #[track_caller]
    fn rotated(&mut self, token: &str) -> Login {
        let answer = self.refresh(token, "phone");
        assert_eq!(answer.status, 200, "{}", answer.text());
        login(&answer)
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn two_refreshes_in_the_same_millisecond_rotate_once_and_get_the_same_token() {
    let mut world = World::new();
    let login = world.log_in("42");
    let (one, two) = (refreshing(&login.refresh), refreshing(&login.refresh));
    let (one, two) = (world.until_the_store(one), world.until_the_store(two));
    let (one, two) = (world.finish(one), world.finish(two));
    let (one, two) = (super::login(&one), super::login(&two));
    assert_eq!(one.refresh, two.refresh);
    assert_ne!(one.access, two.access, "each has an access token of its own");
    assert_eq!(world.store.state(login.id).counter, 1);
}

#[wasm_bindgen_test(unsupported = test)]
fn two_refreshes_in_the_same_millisecond_after_a_lost_answer_are_given_it_both() {
    let mut world = World::new();
    let login = world.log_in("42");
    let lost = world.rotated(&login.refresh);
    world.pass(3_600);
    let (one, two) = (refreshing(&login.refresh), refreshing(&login.refresh));
    let (mut one, mut two) = (world.until_the_store(one), world.until_the_store(two));
    // Both learn the state before either writes.
    assert!(world.advance(&mut one).is_none() && world.advance(&mut two).is_none());
    let (one, two) = (world.finish(one), world.finish(two));
    assert_eq!((super::login(&one).refresh, super::login(&two).refresh), (lost.refresh.clone(), lost.refresh));
    assert_eq!(world.store.state(login.id).retries, 1, "one of the three");
}

#[wasm_bindgen_test(unsupported = test)]
fn three_tabs_within_the_grace_all_go_on_with_one_token_whoever_was_first() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut world = World::new();
        let login = world.log_in("42");
        let mut tabs: Vec<_> = (0..3).map(|_| Some(world.until_the_store(refreshing(&login.refresh)))).collect();
        let mut tokens = Vec::new();
        for tab in order {
            world.pass(9);
            let answer = world.finish(tabs[tab].take().unwrap());
            let next = super::login(&answer);
            assert_eq!(world.run(get("/strict/x").bearer(&next.access)).status, 200);
            tokens.push(next.refresh);
        }
        assert!(tokens.iter().all(|token| *token == tokens[0]), "{order:?}");
        world.rotated(&tokens[2]);
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_refresh_that_a_revocation_overtook_is_refused_and_brings_nothing_back() {
    for marks_dead in [false, true] {
        for all in [false, true] {
            let mut world = World::new();
            world.store.marks_dead = marks_dead;
            let login = world.log_in("42");
            let refresh = world.until_the_store(refreshing(&login.refresh));
            let revoked = if all {
                world.run(delete("/v1/users/42/sessions").bearer(SERVICE))
            } else {
                world.run(delete("/v1/sessions/current").bearer(&login.access))
            };
            assert_eq!(revoked.status, 204);
            world.finish(refresh).refused(401, "invalid_refresh_token");
            assert!(!world.store.holds(login.id));
            assert_eq!(world.run(get("/v1/users/42/sessions").bearer(SERVICE)).json()["sessions"], json!([]));
        }
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_second_write_that_a_revocation_overtook_is_refused_too() {
    for marks_dead in [false, true] {
        let mut world = World::new();
        world.store.marks_dead = marks_dead;
        let login = world.log_in("42");
        let access = world.rotated(&login.refresh).access;
        world.pass(60);
        // The lost answer is decided on, and not yet written.
        let mut late = world.until_the_store(refreshing(&login.refresh));
        assert!(world.advance(&mut late).is_none());
        assert!(matches!(&late.step, Some(Step::Store(op)) if matches!(**op, StoreOp::Replace(_))));
        assert_eq!(world.run(delete("/v1/sessions/current").bearer(&access)).status, 204);
        world.finish(late).refused(401, "invalid_refresh_token");
        assert!(!world.store.holds(login.id));
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn tokens_of_a_refresh_that_came_just_before_the_revocation_are_dead() {
    let mut world = World::new();
    let login = world.log_in("42");
    let mut refresh = world.until_the_store(refreshing(&login.refresh));
    assert!(world.advance(&mut refresh).is_none(), "written, and not yet answered");
    assert_eq!(world.run(delete("/v1/users/42/sessions").bearer(SERVICE)).status, 204);
    let next = super::login(&world.finish(refresh));
    world.run(get("/strict/x").bearer(&next.access)).refused(401, "session_ended");
    world.run(get("/feed").bearer(&next.access)).refused(401, "session_ended");
    world.refresh(&next.refresh, "phone").refused(401, "invalid_refresh_token");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_session_created_between_revoke_alls_read_and_its_script_does_not_live() {
    // It was created under the old epoch and is not among those that were deleted.
    let mut world = World::new();
    let login = world.log_in("42");
    world.store.raise_epoch("42");
    world.run(get("/feed").bearer(&login.access)).refused(401, "session_ended");
    world.run(get("/strict/x").bearer(&login.access)).refused(401, "session_ended");
    world.refresh(&login.refresh, "phone").refused(401, "invalid_refresh_token");
    assert_eq!(world.run(get("/v1/users/42/sessions").bearer(SERVICE)).json()["sessions"], json!([]));
    let asked = world.run(post("/oauth/introspect").bearer(SERVICE).form(&format!("token={}", login.access)));
    assert_eq!(asked.json(), json!({ "active": false }));
    let next = world.log_in("42");
    world.rotated(&next.refresh);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_restart_between_two_refreshes_makes_no_old_token_new() {
    let mut world = World::new();
    let login = world.log_in("42");
    let first = world.rotated(&login.refresh);
    world.restart();
    assert_eq!(world.rotated(&login.refresh).refresh, first.refresh, "still within the grace: the same answer");
    let second = world.rotated(&first.refresh);
    world.run(get("/token/x").bearer(&second.access));
    world.restart();
    world.pass(31);
    world.refresh(&first.refresh, "phone").refused(401, "invalid_refresh_token");
    assert!(!world.store.holds(login.id), "reuse is found out across a restart");
    assert_eq!(world.local.metrics.refreshes(Refresh::Reuse), 1);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_store_that_lost_up_to_three_writes_goes_on_and_one_that_lost_four_asks_to_log_in() {
    for lost in 1..=4 {
        let mut world = World::new();
        let mut login = world.log_in("42");
        for _ in 0..3 {
            world.pass(60);
            login = world.rotated(&login.refresh);
        }
        let before = world.store.state(login.id).clone();
        let mut superseded = login.clone();
        for _ in 0..lost {
            world.pass(60);
            superseded = login.clone();
            login = world.rotated(&login.refresh);
        }
        world.run(get("/token/x").bearer(&login.access));
        *world.store.state(login.id) = before.clone();
        let answer = world.refresh(&login.refresh, "phone");
        if lost == 4 {
            answer.refused(401, "invalid_refresh_token");
            assert!(world.store.holds(login.id), "and nothing is revoked");
            continue;
        }
        let next = super::login(&answer);
        assert_eq!(world.store.state(login.id).counter, before.counter + lost + 1);
        assert_eq!(world.local.metrics.refreshes(Refresh::ForwardRecovery), 1);
        world.run(get("/token/x").bearer(&next.access));
        world.pass(31);
        world.refresh(&superseded.refresh, "phone").refused(401, "invalid_refresh_token");
        assert!(!world.store.holds(login.id), "after {lost} lost writes an old token is still reuse");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_lost_write_that_is_made_again_gives_the_same_token() {
    let mut world = World::new();
    let login = world.log_in("42");
    let before = world.store.state(login.id).clone();
    let first = world.rotated(&login.refresh);
    *world.store.state(login.id) = before;
    // A tab that had not heard of it presents the old token: for this store it is the current one.
    assert_eq!(world.rotated(&login.refresh).refresh, first.refresh);
    world.rotated(&first.refresh);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_refresh_key_that_changes_between_attempts_changes_no_answer() {
    let mut world = World::new();
    let login = world.log_in("42");
    let old_key = world.keys.current(KeyKind::Refresh).unwrap().id();
    let first = world.rotated(&login.refresh);
    let keys = world.keys.publish_next(KeyAlgorithm::EdDsa, &mut Entropy::for_tests(5), world.now).unwrap();
    world.use_keys(keys);
    assert_eq!(world.rotated(&login.refresh).refresh, first.refresh, "published");
    let keys = world.keys.promote_next(world.now).unwrap();
    world.use_keys(keys);
    assert_eq!(world.rotated(&login.refresh).refresh, first.refresh, "signed with since then");
    assert_eq!(world.store.state(login.id).key_id, old_key);
    world.pass(3_600);
    assert_eq!(world.rotated(&login.refresh).refresh, first.refresh, "and for a lost answer");
    world.rotated(&first.refresh);
    assert_ne!(world.store.state(login.id).key_id, old_key);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_gateway_without_the_key_of_the_current_token_says_so_and_logs_nobody_out() {
    // Another gateway signed with a key that this one has not been given.
    let mut world = World::new();
    let login = world.log_in("42");
    let first = world.rotated(&login.refresh);
    world.store.state(login.id).key_id = 77;
    let answer = world.refresh(&login.refresh, "phone");
    answer.refused(503, "store_unavailable");
    assert!(answer.text().contains("refresh key 77"), "{}", answer.text());
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert!(world.store.holds(login.id));
    world.rotated(&first.refresh);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_token_whose_key_was_removed_is_refused_without_asking_the_store() {
    let mut world = World::new();
    let login = world.log_in("42");
    world.use_keys(KeyRing::generate(KeyAlgorithm::EdDsa, &mut Entropy::for_tests(6), world.now));
    let answer = world.refresh(&login.refresh, "phone");
    answer.refused(401, "invalid_refresh_token");
    assert!(answer.store_ops.is_empty());
}

#[wasm_bindgen_test(unsupported = test)]
fn a_session_id_that_is_taken_is_drawn_again_and_a_store_where_all_are_taken_is_broken() {
    let mut world = World::new();
    let create = || post("/v1/sessions").bearer(SERVICE).json(&json!({ "user_id": 42 }));
    world.store.taken = 2;
    let answer = world.run(create());
    assert_eq!(answer.status, 201);
    let drawn: Vec<SessionId> = answer
        .store_ops
        .iter()
        .map(|op| match op {
            StoreOp::Create(new) => new.id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(drawn.len(), 3);
    assert!(drawn[0] != drawn[1] && drawn[1] != drawn[2]);
    assert_eq!(login(&answer).id, drawn[2], "the tokens are those of the session that was stored");
    world.rotated(&login(&answer).refresh);
    world.store.taken = 3;
    let broken = world.run(create());
    broken.refused(503, "store_unavailable");
    assert_eq!(broken.store_ops.len(), 3);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_time_to_live_in_the_last_second_is_one_and_no_cookie_is_deleted_by_it() {
    let mut world = World::with(json!({ "session": { "cookies": true, "refresh_ttl": "1h", "idle_ttl": "1h" } }));
    let login = world.log_in("42");
    world.now = world.now + Millis(3_599_999);
    let answer = world.refresh(&login.refresh, "phone");
    let body = answer.json();
    assert_eq!((body["expires_in"].as_u64(), body["refresh_expires_in"].as_u64()), (Some(1), Some(1)));
    let cookies = answer.cookies_set();
    assert_eq!(cookies.len(), 2);
    assert!(cookies.iter().all(|cookie| cookie.contains("Max-Age=1;") || cookie.ends_with("Max-Age=1")), "{cookies:?}");
}

#[wasm_bindgen_test(unsupported = test)]
fn logins_of_one_user_at_once_are_all_listed_and_all_end_together() {
    let mut world = World::new();
    let create = || post("/v1/sessions").bearer(SERVICE).json(&json!({ "user_id": 42 }));
    let waiting: Vec<Running> = (0..20).map(|_| world.until_the_store(create())).collect();
    let logins: Vec<Login> = waiting.into_iter().map(|running| login(&world.finish(running))).collect();
    let list = world.run(get("/v1/users/42/sessions").bearer(SERVICE)).json();
    assert_eq!(list["sessions"].as_array().unwrap().len(), 20);
    assert_eq!(world.run(delete("/v1/users/42/sessions").bearer(SERVICE)).status, 204);
    for login in logins {
        world.run(get("/strict/x").bearer(&login.access)).refused(401, "session_ended");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn no_interleaving_of_tabs_forks_a_session_or_outlives_its_revocation() {
    for seed in 0..300 {
        let mut draw = Entropy::for_tests(seed);
        let mut world = World::new();
        world.store.marks_dead = draw.below(2) == 0;
        let first = world.log_in("42");
        // What the tabs share: the newest token that any of them was given.
        let mut shared = first.clone();
        let mut running: Vec<Running> = Vec::new();
        let mut answered: BTreeMap<u32, String> = BTreeMap::new();
        let mut revoked = false;
        for _ in 0..120 {
            world.now = world.now + Millis(draw.below(700));
            match draw.below(10) {
                0..3 if running.len() < 5 => running.push(world.start(refreshing(&shared.refresh))),
                3 if draw.below(12) == 0 => {
                    revoked = true;
                    assert_eq!(world.run(delete("/v1/users/42/sessions").bearer(SERVICE)).status, 204);
                }
                4 => {
                    let status = world.run(get("/feed").bearer(&shared.access)).status;
                    assert_eq!(status, if revoked { 401 } else { 200 }, "seed {seed}");
                }
                _ if !running.is_empty() => {
                    let at = draw.below(running.len() as u64) as usize;
                    let asks = matches!(running[at].step, Some(Step::Store(_)));
                    let after_the_end = asks && revoked;
                    let Some(answer) = world.advance(&mut running[at]) else {
                        if after_the_end {
                            let respond = running[at].step.as_ref();
                            assert!(
                                matches!(respond, Some(Step::Respond(reply)) if reply.status == 401),
                                "seed {seed}: what asks a revoked session is refused at once"
                            );
                        }
                        continue;
                    };
                    running.swap_remove(at);
                    if answer.status == 401 {
                        assert!(revoked, "seed {seed}: an honest tab was logged out: {}", answer.text());
                        continue;
                    }
                    let next = login(&answer);
                    let token =
                        crate::session::RefreshToken::open(&next.refresh, |id| world.keys.find(KeyKind::Refresh, id));
                    let counter = token.unwrap().counter;
                    let same = answered.entry(counter).or_insert_with(|| next.refresh.clone());
                    assert_eq!(*same, next.refresh, "seed {seed}: two tokens for one counter");
                    shared = next;
                }
                _ => {}
            }
            assert!(!revoked || !world.store.holds(first.id), "seed {seed}: it came back");
        }
        let rotations = world.local.metrics.refreshes(Refresh::Rotated);
        if !revoked {
            assert_eq!(u64::from(world.store.state(first.id).counter), rotations, "seed {seed}");
        }
    }
}
