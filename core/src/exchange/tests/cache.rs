//! The cache's places: before a read, around a write, instead of a write.

use super::*;
use crate::cache::{CachedAnswer, FillTicket, Generation, ResourceId, Times};
use wasm_bindgen_test::wasm_bindgen_test;

fn cached() -> (World, Login) {
    let mut world = World::cached();
    let login = world.log_in("42");
    world.run(get("/feed").bearer(&login.access));
    (world, login)
}

fn hit() -> CacheAnswer {
    let times = Times { stored_at: NOW, ttl: Millis(300_000), ..Times::default() };
    CacheAnswer::Hit(Arc::new(CachedAnswer { status: 200, headers: vec![], body: (*b"cached").into(), times }))
}

fn ticket() -> FillTicket {
    let resource = ResourceId::new("user_profile", "/users/42/profile");
    FillTicket { key: resource.entry(Generation(1), &Default::default()), generation: Generation(1) }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_hit_is_answered_without_an_origin_and_says_how_old_it_is() {
    let (mut world, login) = cached();
    world.cache.push_back(hit());
    world.pass(10);
    let answer = world.run(get("/users/42/profile").bearer(&login.access));
    assert_eq!(
        (answer.status, answer.text(), answer.steps.clone()),
        (200, "cached".to_owned(), vec!["cache", "respond"])
    );
    assert_eq!((answer.header("age"), answer.header("cache-status")), (Some("10"), Some("edgekeep; hit; ttl=290")));
}

#[wasm_bindgen_test(unsupported = test)]
fn nobody_reads_the_cache_before_they_were_admitted() {
    let mut world = World::cached();
    world.cache.push_back(hit());
    world.run(get("/users/42/profile")).refused(401, "missing_credential");
    assert!(world.cache_ops.is_empty());
}

#[wasm_bindgen_test(unsupported = test)]
fn an_entry_belongs_to_the_user_who_asks_and_to_the_query_as_sent() {
    let (mut world, login) = cached();
    world.run(get("/users/7/profile?a=1").bearer(&login.access));
    let CacheOp::Read(wanted) = &world.cache_ops[0] else { panic!("{:?}", world.cache_ops) };
    assert_eq!(wanted.resource, ResourceId::new("user_profile", "/users/7/profile"));
    assert_eq!(wanted.user.as_ref().map(UserId::as_str), Some("42"), "who asks, not whose profile it is");
    assert_eq!((wanted.query.as_deref(), wanted.host.as_str()), (Some("a=1"), "app.example"));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_miss_is_fetched_and_its_answer_kept_under_the_ticket() {
    let (mut world, login) = cached();
    world.cache.push_back(CacheAnswer::Miss(ticket()));
    let answer = world.run(get("/users/42/profile").bearer(&login.access));
    assert_eq!((answer.steps, answer.fill), (vec!["cache", "forward", "respond"], true));
    world.cache.push_back(CacheAnswer::Miss(ticket()));
    let head = world.run(request::request("HEAD", "/users/42/profile").bearer(&login.access));
    assert!(!head.fill, "an answer without its body answers no GET");
}

#[wasm_bindgen_test(unsupported = test)]
fn whoever_comes_second_waits_for_the_first_ones_fetch() {
    let (mut world, login) = cached();
    world.cache.extend([CacheAnswer::Wait, hit()]);
    let answer = world.run(get("/users/42/profile").bearer(&login.access));
    assert_eq!((answer.steps, answer.status), (vec!["cache", "cache", "respond"], 200));
    assert!(matches!(world.cache_ops[1], CacheOp::Await { until, .. } if until == NOW + Millis(30_000)));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_cache_that_is_down_stands_in_nobodys_way() {
    let (mut world, login) = cached();
    world.cache.push_back(CacheAnswer::Unavailable);
    let read = world.run(get("/users/42/profile").bearer(&login.access));
    assert_eq!((read.steps, read.fill), (vec!["cache", "forward", "respond"], false));
    let write = world.run(post("/users/42/profile").bearer(&login.access));
    assert_eq!((write.status, write.steps), (200, vec!["cache", "forward", "respond"]));
}

#[wasm_bindgen_test(unsupported = test)]
fn a_client_that_wants_the_origin_gets_it() {
    let (mut world, login) = cached();
    for control in ["no-cache", "max-age=0, No-Store"] {
        let answer = world.run(get("/users/42/profile").bearer(&login.access).header("cache-control", control));
        assert_eq!(answer.steps, ["forward", "respond"], "{control}");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn an_answer_to_a_foreign_credential_is_nobody_elses() {
    let over = json!({ "routes": [{ "path": "/{rest..}", "auth": "none", "shard": "any", "cache": "user_profile" }] });
    let mut world = World::built(over, Site::Native, InForce { cache: true, write_behind: true, queue: true });
    let foreign = world.run(get("/x").bearer("the-application-s-own"));
    assert_eq!(foreign.steps, ["forward", "respond"], "RFC 9111 §3.5");
    assert_eq!(world.run(get("/x")).steps, ["cache", "forward", "respond"]);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_write_marks_its_resource_and_its_end_raises_lifts_or_raises_on_failure() {
    let resource = ResourceId::new("user_profile", "/users/42/profile");
    let outcomes: [(Does, bool, u16); 8] = [
        (Does::Answer(200, vec![]), true, 200),
        (Does::Answer(204, vec![]), true, 204),
        (Does::Answer(302, vec![]), true, 302),
        (Does::Answer(409, vec![]), false, 409),
        (Does::Answer(500, vec![]), true, 500),
        (Does::Fail(FailedStage::Sent), true, 502),
        (Does::TimeOut(FailedStage::Sent), true, 504),
        (Does::Fail(FailedStage::Connect), true, 502),
    ];
    for (does, raised, status) in outcomes {
        let (mut world, login) = cached();
        world.cache.extend([CacheAnswer::Done, CacheAnswer::Done]);
        world.script("c", does);
        let answer = world.run(post("/users/42/profile").bearer(&login.access));
        assert_eq!(answer.status, status);
        assert_eq!(answer.steps, ["cache", "forward", "cache", "respond"], "the end comes before the answer");
        let until = NOW + Millis(35_000);
        assert_eq!(
            world.cache_ops,
            [CacheOp::BeginWrite { resource, until }, CacheOp::EndWrite { resource, raise: raised },]
        );
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_write_that_never_reached_an_origin_lifts_its_mark() {
    let (mut world, login) = cached();
    world.cache.extend([CacheAnswer::Done, CacheAnswer::Done]);
    world.origin("c").state.set_admin(crate::balance::Admin::Maintenance, NOW);
    let answer = world.run(post("/users/42/profile").bearer(&login.access));
    answer.refused(503, "no_origin");
    assert!(matches!(world.cache_ops[1], CacheOp::EndWrite { raise: false, .. }), "{:?}", world.cache_ops);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_write_that_may_have_happened_raises_even_when_its_retry_found_no_origin() {
    let (mut world, login) = cached();
    world.cache.extend([CacheAnswer::Done, CacheAnswer::Done]);
    world.script("c", Does::Answer(421, vec![]));
    let misdirected = world.run(put("/users/42/profile").bearer(&login.access));
    misdirected.refused(503, "shard_moving");
    assert!(matches!(world.cache_ops[1], CacheOp::EndWrite { raise: false, .. }), "421 is before any effect");
    world.cache_ops.clear();
    world.cache.extend([CacheAnswer::Done, CacheAnswer::Done]);
    world.script("c", Does::Fail(FailedStage::Sent));
    world.script("c", Does::Fail(FailedStage::Sent));
    let lost = world.run(put("/users/42/profile").bearer(&login.access));
    assert_eq!(lost.status, 502);
    assert!(matches!(world.cache_ops[1], CacheOp::EndWrite { raise: true, .. }), "{:?}", world.cache_ops);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_write_behind_is_accepted_only_once_it_is_durable() {
    let (mut world, login) = cached();
    world.queue_answers.push_back(Enqueued::Durable(17));
    let answer = world.run(put("/vectors/9?v=2").bearer(&login.access).json(&json!({ "x": 1 })));
    assert_eq!((answer.status, answer.json()), (202, json!({ "sequence": 17 })));
    assert_eq!(answer.steps, ["read_body", "enqueue", "respond"]);
    let intent = &world.intents[0];
    assert_eq!(
        (intent.method.as_str(), intent.path.as_str(), intent.query.as_deref()),
        ("PUT", "/vectors/9", Some("v=2"))
    );
    assert_eq!(intent.user.as_ref().map(UserId::as_str), Some("42"));
    assert_eq!(
        (intent.body.as_slice(), intent.content_type.as_deref()),
        (&b"{\"x\":1}"[..], Some(&b"application/json"[..]))
    );
    world.queue_answers.push_back(Enqueued::Unavailable);
    world.run(delete("/vectors/9").bearer(&login.access)).refused(503, "store_unavailable");
    let large = put("/vectors/9").bearer(&login.access).body(&vec![0; (1 << 20) + 1]);
    world.run(large).refused(413, "body_too_large");
    let post = world.run(post("/vectors/9").bearer(&login.access));
    assert_eq!(post.steps, ["cache", "forward", "respond"], "other methods pass through");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_write_behind_that_could_never_be_delivered_is_refused_at_once() {
    let over = json!({ "routes": [{ "path": "/u/{id}", "shard": "path:id", "cache": "vector_data" }] });
    let mut world = World::built(over, Site::Native, InForce { cache: true, write_behind: true, queue: true });
    let login = world.log_in("42");
    let long = format!("/u/{}", "x".repeat(129));
    world.run(put(&long).bearer(&login.access)).refused(400, "bad_identity");
    assert!(world.intents.is_empty());
}

#[wasm_bindgen_test(unsupported = test)]
fn a_full_write_behind_queue_follows_its_policy() {
    for (policy, status) in [("refuse", 503), ("block", 503), ("write_through", 200)] {
        let over = json!({ "cache": { "write_behind": { "when_full": policy } } });
        let mut world = World::built(over, Site::Native, InForce { cache: true, write_behind: true, queue: true });
        let login = world.log_in("42");
        world.queue_answers.push_back(Enqueued::Full);
        world.cache.extend([CacheAnswer::Done, CacheAnswer::Done]);
        let answer = world.run(put("/vectors/9").bearer(&login.access));
        assert_eq!(answer.status, status, "{policy}");
        if policy == "write_through" {
            let tail = &answer.steps[answer.steps.len() - 4..];
            assert_eq!(tail, ["cache", "forward", "cache", "respond"], "with its mark, as any write");
        } else {
            assert_eq!(answer.header("retry-after"), Some("1"));
        }
    }
}
