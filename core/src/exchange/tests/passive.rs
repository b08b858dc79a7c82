//! What live traffic does to an origin's standing.

use super::*;
use crate::balance::Standing;
use wasm_bindgen_test::wasm_bindgen_test;

/// A login whose shard has the origin c alone.
fn one_origin(over: Value) -> (World, Login) {
    let mut world = World::with(over);
    let login = world.log_in("42");
    world.run(get("/feed").bearer(&login.access));
    (world, login)
}

fn standing(world: &World, id: &str) -> Standing {
    world.origin(id).state.standing(world.now)
}

/// A request that an origin has and did not answer yet.
fn sent(world: &mut World, request: Request) -> Running {
    let mut running = world.start(request);
    while !matches!(running.step, Some(Step::Forward(_))) {
        assert!(world.advance(&mut running).is_none());
    }
    running
}

fn fail(world: &mut World, login: &Login, does: impl Fn() -> Does, times: usize) {
    for _ in 0..times {
        world.script("c", does());
        world.run(post("/feed").bearer(&login.access));
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn the_fifth_failure_in_a_row_ejects_and_not_the_fourth() {
    let failures: [fn() -> Does; 4] = [
        || Does::Answer(500, vec![]),
        || Does::Answer(503, vec![]),
        || Does::Fail(FailedStage::Sent),
        || Does::TimeOut(FailedStage::Sent),
    ];
    for does in failures {
        let (mut world, login) = one_origin(json!({}));
        fail(&mut world, &login, does, 4);
        assert_eq!(standing(&world, "c"), Standing::Available);
        fail(&mut world, &login, does, 1);
        assert_eq!(standing(&world, "c"), Standing::Ejected);
        world.pass(100);
        assert_eq!(standing(&world, "c"), Standing::Available);
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn any_answer_below_500_ends_the_row() {
    for status in [200, 302, 404, 429] {
        let (mut world, login) = one_origin(json!({}));
        for _ in 0..3 {
            fail(&mut world, &login, || Does::Answer(500, vec![]), 4);
            fail(&mut world, &login, || Does::Answer(status, vec![]), 1);
        }
        assert_eq!(standing(&world, "c"), Standing::Available, "{status}");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn what_the_origin_is_not_to_blame_for_is_no_failure() {
    let (mut world, login) = one_origin(json!({}));
    let seen = |world: &World| world.origin("c").state.traffic(world.now);
    let before = seen(&world);
    // Handed back unsent, then answered: one good request.
    fail(&mut world, &login, || Does::Fail(FailedStage::Unsent), 8);
    assert_eq!(standing(&world, "c"), Standing::Available);
    assert_eq!((seen(&world).errors, seen(&world).requests), (before.errors, before.requests + 8));
    // Clients whose upload breaks off.
    for _ in 0..8 {
        let request = post("/feed").bearer(&login.access);
        let mut running = sent(&mut world, request);
        let mut cx = Context { head: &running.request, now: world.now, local: &mut world.local };
        assert!(matches!(running.exchange.body_gone(&mut cx), Step::Respond(reply) if reply.status == 400));
    }
    assert_eq!(standing(&world, "c"), Standing::Available);
    assert_eq!(seen(&world).errors, before.errors);
}

#[wasm_bindgen_test(unsupported = test)]
fn at_the_edge_a_streamed_upload_that_takes_too_long_is_nobodys_fault() {
    let errors = |world: &mut World, request: Request| {
        world.script("c", Does::TimeOut(FailedStage::Sent));
        world.run(request);
        world.origin("c").state.traffic(world.now).errors
    };
    let mut edge = World::at_edge();
    let login = edge.log_in_elsewhere("42");
    let mut native = World::new();
    let native_login = native.log_in("42");
    let upload = |login: &Login| post("/feed").bearer(&login.access).too_long_to_replay();
    assert_eq!(errors(&mut edge, upload(&login)), 0);
    assert_eq!(errors(&mut edge, post("/feed").bearer(&login.access)), 1, "its body was there");
    assert_eq!(errors(&mut native, upload(&native_login)), 1, "this shell knows whose turn it was");
}

#[wasm_bindgen_test(unsupported = test)]
fn ejection_can_be_switched_off() {
    let (mut world, login) = one_origin(json!({ "balance": { "ejection": false } }));
    fail(&mut world, &login, || Does::Answer(500, vec![]), 30);
    assert_eq!(standing(&world, "c"), Standing::Available);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_reload_forgets_neither_an_ejection_nor_how_long_the_next_one_is() {
    let (mut world, login) = one_origin(json!({}));
    let reload = |world: &mut World| world.use_keys(world.keys.clone());
    fail(&mut world, &login, || Does::Answer(500, vec![]), 5);
    reload(&mut world);
    assert_eq!(standing(&world, "c"), Standing::Ejected);
    world.pass(30);
    assert_eq!(standing(&world, "c"), Standing::Available);
    reload(&mut world);
    fail(&mut world, &login, || Does::Answer(500, vec![]), 5);
    world.pass(59);
    assert_eq!(standing(&world, "c"), Standing::Ejected, "twice as long");
}

#[wasm_bindgen_test(unsupported = test)]
fn one_of_two_may_be_ejected_and_the_other_stays() {
    let mut world = World::new();
    let login = world.log_in("7");
    for _ in 0..60 {
        for origin in ["a", "b"] {
            world.script(origin, Does::Answer(500, vec![]));
        }
        world.run(get("/feed").bearer(&login.access));
    }
    let out = ["a", "b"].map(|id| standing(&world, id) == Standing::Ejected);
    assert_eq!(out.iter().filter(|out| **out).count(), 1, "{out:?}");
    assert!(world.live.ejections.refused("shard_0") > 0);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_request_that_finds_an_origin_dead_asks_for_a_check_and_a_500_does_not() {
    let (mut world, login) = one_origin(json!({}));
    fail(&mut world, &login, || Does::Answer(500, vec![]), 1);
    assert!(!world.origin("c").state.take_hurry());
    for stage in [FailedStage::Connect, FailedStage::Sent, FailedStage::HeadReceived] {
        fail(&mut world, &login, || Does::Fail(stage), 1);
        assert!(world.origin("c").state.take_hurry(), "{stage:?}");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn slow_answers_degrade_an_origin_but_not_those_to_slow_uploads() {
    let slow = |waited: Option<Millis>, length: &str| {
        let (mut world, login) = one_origin(json!({ "health": { "min_samples": 10 } }));
        for _ in 0..12 {
            let request = post("/feed").bearer(&login.access).header("content-length", length);
            let mut running = sent(&mut world, request);
            world.pass(1);
            if let Some(waited) = waited {
                running.exchange.waited(waited);
            }
            while world.advance(&mut running).is_none() {}
        }
        standing(&world, "c") == Standing::Degraded
    };
    assert!(slow(None, "0"), "no body: the time since it was sent counts");
    assert!(!slow(None, "5"), "nobody knows when the body was sent");
    assert!(!slow(Some(Millis(499)), "5"));
    assert!(slow(Some(Millis(500)), "5"));
}
