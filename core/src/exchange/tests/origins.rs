//! The choice of an origin, and what becomes of a request that fails on the way.

use super::*;
use crate::balance::{Admin, Check};
use wasm_bindgen_test::wasm_bindgen_test;

/// A world with a login whose shard has the origins a and b.
fn two_origins() -> (World, Login) {
    let mut world = World::new();
    let login = world.log_in("7");
    world.run(get("/feed").bearer(&login.access));
    (world, login)
}

fn fail_both(world: &mut World, stage: FailedStage) {
    for origin in ["a", "b"] {
        world.script(origin, Does::Fail(stage));
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_connection_that_fails_is_tried_on_another_origin_whatever_the_method() {
    for method in [get("/feed"), post("/feed"), post("/feed").too_long_to_replay()] {
        let (mut world, login) = two_origins();
        world.script("a", Does::Fail(FailedStage::Connect));
        let request = method.bearer(&login.access);
        let answers: Vec<Answer> = (0..2).map(|_| world.run(request.clone())).collect();
        assert!(answers.iter().all(|answer| answer.status == 200));
        assert!(answers.iter().any(|answer| answer.asked() == ["a", "b"]), "{:?}", answers[0].asked());
        let standing = world.origin("a").state.standing(world.now);
        assert_eq!(standing, crate::balance::Standing::Refused, "the next request goes elsewhere at once");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn when_every_origin_refuses_one_is_still_tried_and_the_answer_is_502() {
    let (mut world, login) = two_origins();
    fail_both(&mut world, FailedStage::Connect);
    let both = world.run(get("/feed").bearer(&login.access));
    both.refused(502, "origin_failed");
    assert_eq!(both.asked().len(), 2);
    fail_both(&mut world, FailedStage::Connect);
    let again = world.run(get("/feed").bearer(&login.access));
    again.refused(502, "origin_failed");
    assert!(!again.asked().is_empty());
    world.scripts.clear();
    assert_eq!(world.run(get("/feed").bearer(&login.access)).status, 200, "and so it is noticed when one is back");
}

#[wasm_bindgen_test(unsupported = test)]
fn no_post_is_sent_twice() {
    for stage in [FailedStage::Sent, FailedStage::HeadReceived] {
        for method in ["POST", "PATCH"] {
            let (mut world, login) = two_origins();
            fail_both(&mut world, stage);
            let answer = world.run(request::request(method, "/feed").bearer(&login.access));
            answer.refused(502, "origin_failed");
            assert_eq!(answer.asked().len(), 1, "{method} {stage:?}");
        }
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn an_idempotent_request_is_sent_again_only_with_nothing_received_and_its_body_at_hand() {
    for (method, stage, replayable, sent) in [
        ("GET", FailedStage::Sent, true, 2),
        ("PUT", FailedStage::Sent, true, 2),
        ("DELETE", FailedStage::Sent, true, 2),
        ("PUT", FailedStage::Sent, false, 1),
        ("PUT", FailedStage::Unsent, false, 1),
        ("GET", FailedStage::HeadReceived, true, 1),
    ] {
        let (mut world, login) = two_origins();
        fail_both(&mut world, stage);
        let mut request = request::request(method, "/feed").bearer(&login.access);
        request.replayable = replayable;
        let answer = world.run(request);
        assert_eq!((answer.status, answer.asked().len()), (502, sent), "{method} {stage:?} {replayable}");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_post_that_was_handed_back_unsent_goes_out_again_even_to_the_only_origin() {
    let mut world = World::new();
    let login = world.log_in("42");
    world.script("c", Does::Fail(FailedStage::Unsent));
    let answer = world.run(post("/feed").bearer(&login.access));
    assert_eq!((answer.status, answer.asked()), (200, vec!["c", "c"]));
    for _ in 0..4 {
        world.script("c", Does::Fail(FailedStage::Unsent));
    }
    let endless = world.run(post("/feed").bearer(&login.access));
    assert_eq!((endless.status, endless.asked().len()), (502, 2), "not for ever");
}

#[wasm_bindgen_test(unsupported = test)]
fn no_answer_in_time_is_504_and_is_not_tried_again() {
    let (mut world, login) = two_origins();
    for origin in ["a", "b"] {
        world.script(origin, Does::TimeOut(FailedStage::Sent));
    }
    let answer = world.run(get("/feed").bearer(&login.access));
    answer.refused(504, "origin_timeout");
    assert_eq!((answer.asked().len(), answer.seen().response_timeout), (1, Millis(30_000)));
    let route = world.run(get("/public/x").bearer(&login.access));
    assert_eq!(route.seen().response_timeout, Millis(5_000), "a route may have a time of its own");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_connection_that_takes_too_long_is_tried_elsewhere() {
    let (mut world, login) = two_origins();
    for origin in ["a", "b"] {
        world.script(origin, Does::TimeOut(FailedStage::Connect));
    }
    let answer = world.run(post("/feed").bearer(&login.access));
    assert_eq!((answer.status, answer.asked().len()), (502, 2));
    assert!(world.origin("a").state.standing(world.now).is_available(), "slow is not refusing");
}

#[wasm_bindgen_test(unsupported = test)]
fn retries_after_something_was_sent_have_a_budget_that_retries_do_not_fill() {
    let (mut world, login) = two_origins();
    let mut retried = 0;
    for _ in 0..60 {
        fail_both(&mut world, FailedStage::Sent);
        retried += world.run(get("/feed").bearer(&login.access)).asked().len() - 1;
        world.scripts.clear();
    }
    // The first three are free, and each request earns a fifth.
    assert!((13..=15).contains(&retried), "{retried} retries of 60 requests");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_reload_brings_no_new_budget() {
    let (mut world, login) = two_origins();
    let mut retried = 0;
    for _ in 0..60 {
        world.use_keys(world.keys.clone());
        fail_both(&mut world, FailedStage::Sent);
        retried += world.run(get("/feed").bearer(&login.access)).asked().len() - 1;
        world.scripts.clear();
    }
    assert!((13..=15).contains(&retried), "{retried} retries of 60 requests");
}

#[wasm_bindgen_test(unsupported = test)]
fn an_origins_own_error_is_passed_on_and_makes_it_less_attractive() {
    let (mut world, login) = two_origins();
    world.script("a", Does::Answer(500, vec![]));
    world.script("b", Does::Answer(500, vec![]));
    let answer = world.run(get("/feed").bearer(&login.access));
    assert_eq!((answer.status, answer.asked().len()), (500, 1));
    let state = &world.origin(&answer.forwarded[0].to).state;
    assert!(state.penalty(world.now) > 1_000);
}

#[wasm_bindgen_test(unsupported = test)]
fn no_origin_that_may_be_tried_is_503() {
    let (mut world, login) = two_origins();
    for origin in ["a", "b"] {
        world.origin(origin).state.set_admin(Admin::Maintenance, world.now);
    }
    let answer = world.run(get("/feed").bearer(&login.access));
    answer.refused(503, "no_origin");
    assert_eq!(answer.header("retry-after"), Some("1"));
}

#[wasm_bindgen_test(unsupported = test)]
fn when_all_checks_fail_the_policy_decides() {
    let spare = json!([
        { "shard": "shard_0", "origins": [{ "id": "a", "url": "http://10.1.0.1:9001" }] },
        { "shard": "shard_1", "origins": [{ "id": "c", "url": "http://10.1.0.3:9001" }] },
        { "name": "spare", "origins": [{ "id": "z", "url": "http://10.1.0.9:9001", "max_connections": 1 }] },
    ]);
    for (policy, status, asked) in [
        (json!("fail_open"), 200, vec!["a"]),
        (json!("fail_closed"), 503, vec![]),
        (json!({ "pool": "spare" }), 200, vec!["z"]),
    ] {
        let mut world = World::with(json!({ "balance": { "on_no_healthy": policy }, "pools": spare.clone() }));
        let login = world.log_in("7");
        world.origin("a").state.set_check(Check::Down, world.now);
        let answer = world.run(get("/feed").bearer(&login.access));
        assert_eq!((answer.status, answer.asked()), (status, asked), "{policy}");
        if policy.is_object() {
            assert_eq!(answer.seen().header("x-edgekeep-shard"), Some("shard_0"), "it stands in for the shard");
            world.taken.push(world.origin("z").lease().unwrap());
            world.queue.push_back(true);
            let waited = world.run(get("/feed").bearer(&login.access));
            assert_eq!((waited.status, waited.queued_for), (200, vec![2]), "in the fallback's own queue");
        }
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_fallback_pool_gives_what_it_has() {
    let origin = |id: &str| json!({ "id": id, "url": "http://10.1.0.9:9001" });
    let pools = json!([
        { "shard": "shard_0", "origins": [origin("a")] },
        { "shard": "shard_1", "origins": [origin("c")] },
        { "name": "spare", "origins": [origin("x"), origin("y"), origin("z")] },
    ]);
    let mut world = World::with(json!({ "balance": { "on_no_healthy": { "pool": "spare" } }, "pools": pools }));
    let login = world.log_in("7");
    let asked = |world: &mut World| {
        let answer = world.run(get("/feed").bearer(&login.access));
        (answer.status, answer.forwarded.first().map(|plan| plan.to.clone()))
    };
    for down in ["a", "x", "y"] {
        world.origin(down).state.set_check(Check::Down, world.now);
    }
    assert_eq!(asked(&mut world).0, 200, "one of three is up");
    world.origin("z").state.set_check(Check::Down, world.now);
    assert_eq!(asked(&mut world).0, 200, "its checks may be wrong");
    for origin in ["x", "y", "z"] {
        world.origin(origin).state.refused(world.now);
        world.script(origin, Does::Fail(FailedStage::Connect));
    }
    let (status, tried) = asked(&mut world);
    assert!(status == 502 && tried.is_some(), "{status} {tried:?}");
}

fn one_place() -> (World, Login) {
    let pools = json!([
        { "shard": "shard_0", "origins": [{ "id": "a", "url": "http://10.1.0.1:9001", "max_connections": 1 }] },
        { "shard": "shard_1", "origins": [{ "id": "c", "url": "http://10.1.0.3:9001", "max_connections": 1 }] },
    ]);
    let mut world = World::with(json!({ "pools": pools }));
    let login = world.log_in("7");
    world.taken.push(world.origin("a").lease().unwrap());
    (world, login)
}

#[wasm_bindgen_test(unsupported = test)]
fn a_full_origin_is_queued_for_until_a_place_is_free() {
    let (mut world, login) = one_place();
    world.queue.push_back(true);
    let answer = world.run(get("/token/x").bearer(&login.access));
    assert_eq!((answer.status, &answer.steps), (200, &vec!["queue", "forward", "respond"]));
    assert_eq!((answer.queued_for, world.origin("a").state.in_flight()), (vec![0], 0), "and its place is given back");
}

/// Drives a request to the queue; whether those behind it may look.
fn is_picky(world: &mut World, request: Request) -> bool {
    let mut running = world.start(request);
    loop {
        match running.step {
            Some(Step::Queue { picky, .. }) => return picky,
            _ => assert!(world.advance(&mut running).is_none(), "it did not have to wait"),
        }
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_retry_that_waits_leaves_to_others_where_it_was_already() {
    let pools = json!([
        { "shard": "shard_0", "origins": [
            { "id": "a", "url": "http://10.1.0.1:9001", "max_connections": 1 },
            { "id": "b", "url": "http://10.1.0.2:9001" },
        ] },
        { "shard": "shard_1", "origins": [{ "id": "c", "url": "http://10.1.0.3:9001" }] },
    ]);
    let mut world = World::with(json!({ "pools": pools }));
    let login = world.log_in("7");
    world.taken.push(world.origin("a").lease().unwrap());
    world.script("b", Does::Fail(FailedStage::Sent));
    assert!(is_picky(&mut world, get("/token/x").bearer(&login.access)));
    let (mut world, login) = one_place();
    assert!(!is_picky(&mut world, get("/token/x").bearer(&login.access)));
}

#[wasm_bindgen_test(unsupported = test)]
fn the_only_origin_is_asked_once_more_also_from_the_queue() {
    for stage in [FailedStage::Sent, FailedStage::Unsent] {
        let over = json!({ "pools": [
            { "shard": "shard_0", "origins": [{ "id": "a", "url": "http://10.1.0.1:9001", "max_connections": 2 }] },
            { "shard": "shard_1", "origins": [{ "id": "c", "url": "http://10.1.0.3:9001" }] },
        ] });
        let mut world = World::with(over);
        let login = world.log_in("7");
        world.script("a", Does::Fail(stage));
        world.queue.push_back(true);
        let mut running = world.start(get("/token/x").bearer(&login.access));
        // Meanwhile others wait, and a retry passes nobody.
        let waiting = world.rules.line(0).join(9);
        let answer = loop {
            if let Some(answer) = world.advance(&mut running) {
                break answer;
            }
        };
        assert_eq!((answer.status, answer.asked()), (200, vec!["a", "a"]), "{stage:?}");
        assert_eq!(answer.queued_for, [0]);
        drop(waiting);
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn whoever_waits_too_long_gets_503() {
    let (mut world, login) = one_place();
    let answer = world.run(get("/token/x").bearer(&login.access));
    answer.refused(503, "queue_full");
    assert_eq!((answer.header("retry-after"), world.now.since(NOW)), (Some("1"), Millis(1_000)));
    assert!(answer.forwarded.is_empty());
}

#[wasm_bindgen_test(unsupported = test)]
fn where_the_shell_has_no_queue_a_full_origin_is_503_at_once() {
    let (world, login) = one_place();
    let rules = &world.rules;
    let (config, map) = (rules.config.clone(), rules.map.clone());
    let (keys, secrets) = (rules.keys.clone(), rules.secrets.clone());
    let rules = Rules::new(config, Site::Native, keys, map, secrets, InForce::default(), &world.live).unwrap();
    let mut world = World { rules: Arc::new(rules), ..world };
    let answer = world.run(get("/token/x").bearer(&login.access));
    answer.refused(503, "queue_full");
    assert_eq!(answer.steps, ["respond"]);
}

#[wasm_bindgen_test(unsupported = test)]
fn any_waits_in_the_queue_of_the_union() {
    let (mut world, _) = one_place();
    world.taken.push(world.origin("c").lease().unwrap());
    world.queue.push_back(true);
    assert_eq!(world.run(get("/open/x")).queued_for, [2], "one beyond the pools");
}

#[wasm_bindgen_test(unsupported = test)]
fn an_origin_that_refused_is_tried_again_after_five_seconds() {
    let mut world = World::new();
    world.origin("a").state.refused(NOW);
    let served =
        |world: &mut World| -> Vec<String> { (0..8).map(|_| world.run(get("/open/x")).seen().to.clone()).collect() };
    assert!(!served(&mut world).contains(&"a".to_owned()), "left alone at first");
    world.pass(5);
    assert!(served(&mut world).contains(&"a".to_owned()), "and then asked again");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_gateway_without_files_blames_no_origin() {
    let (mut world, login) = two_origins();
    for _ in 0..20 {
        let mut running = world.start(post("/feed").bearer(&login.access));
        while !matches!(running.step, Some(Step::Forward(_))) {
            assert!(world.advance(&mut running).is_none());
        }
        let mut cx = Context { head: &running.request, now: world.now, local: &mut world.local };
        running.step = Some(running.exchange.no_room(&mut cx));
        let answer = world.advance(&mut running).unwrap();
        answer.refused(503, "no_origin");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    for origin in ["a", "b"] {
        assert_eq!(world.origin(origin).state.in_flight(), 0);
        assert!(world.origin(origin).state.standing(world.now).is_available());
    }
    assert_eq!(world.run(post("/feed").bearer(&login.access)).status, 200);
}

#[wasm_bindgen_test(unsupported = test)]
fn no_lease_is_ever_lost_whoever_leaves_fails_or_reloads_when() {
    const ORIGINS: [&str; 3] = ["a", "b", "c"];
    let (mut answered, mut most) = (0, 0);
    for seed in 0..30 {
        let mut world = World::new();
        let logins = [world.log_in("7"), world.log_in("42")];
        let mut dice = Entropy::for_tests(seed);
        // Under way, and answered with a body or a tunnel that goes on.
        let (mut running, mut open): (Vec<Running>, Vec<Running>) = (Vec::new(), Vec::new());
        for _ in 0..400 {
            let pick = |dice: &mut Entropy, list: &[Running]| {
                (!list.is_empty()).then(|| dice.below(list.len() as u64) as usize)
            };
            match dice.below(12) {
                0..=3 => {
                    let method = if dice.below(2) == 0 { get("/feed") } else { post("/feed") };
                    let login = &logins[dice.below(2) as usize];
                    running.push(world.start(method.header("upgrade", "websocket").bearer(&login.access)));
                }
                4..=7 => {
                    let Some(at) = pick(&mut dice, &running) else { continue };
                    if world.advance(&mut running[at]).is_some() {
                        answered += 1;
                        open.push(running.swap_remove(at));
                    }
                }
                8 => {
                    // Its client leaves, wherever it is.
                    if let Some(at) = pick(&mut dice, &running) {
                        let mut left = running.swap_remove(at);
                        left.exchange.finished(Finished::Aborted, world.now, &mut world.local);
                    }
                }
                9 => drop(pick(&mut dice, &open).map(|at| open.swap_remove(at))),
                10 => {
                    let origin = ORIGINS[dice.below(3) as usize];
                    world.script(
                        origin,
                        match dice.below(5) {
                            0 => Does::Fail(FailedStage::Connect),
                            1 => Does::Fail(FailedStage::Unsent),
                            2 => Does::Fail(FailedStage::Sent),
                            3 => Does::Fail(FailedStage::HeadReceived),
                            _ => Does::Answer(101, vec![("upgrade", "websocket")]),
                        },
                    );
                }
                _ => world.use_keys(world.keys.clone()),
            }
            let in_plan = |one: &Running| matches!(&one.step, Some(Step::Forward(plan)) if plan.lease.is_some());
            let held = |list: &[Running]| -> usize {
                list.iter().map(|one| one.leases.len() + usize::from(in_plan(one))).sum()
            };
            let counted: u32 = ORIGINS.iter().map(|id| world.origin(id).state.in_flight()).sum();
            assert_eq!(counted as usize, held(&running) + held(&open), "seed {seed}");
            most = most.max(counted);
        }
        drop((running, open));
        let left: Vec<u32> = ORIGINS.iter().map(|id| world.origin(id).state.in_flight()).collect();
        assert_eq!(left, [0, 0, 0], "seed {seed}");
    }
    assert!(answered > 500 && most > 5, "{answered} answers, {most} at once");
}
