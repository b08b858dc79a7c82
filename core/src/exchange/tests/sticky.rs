//! The sticky cookie: set, followed, rewritten, and left alone.

use super::*;
use crate::balance::{Admin, Check};
use wasm_bindgen_test::wasm_bindgen_test;

fn sticky() -> (World, Login) {
    let pools = json!([
        { "shard": "shard_0", "origins": [
            { "id": "a", "url": "http://10.1.0.1:9001", "max_connections": 2 },
            { "id": "b", "url": "http://10.1.0.2:9001", "max_connections": 2 },
        ] },
        { "shard": "shard_1", "origins": [{ "id": "c", "url": "http://10.1.0.3:9001" }] },
    ]);
    let mut world = World::with(json!({ "pools": pools, "balance": { "sticky": { "enabled": true } } }));
    let login = world.log_in("7");
    (world, login)
}

/// The value that an answer sets, if it sets one.
fn value(answer: &Answer) -> Option<String> {
    let cookies = answer.cookies_set();
    let set = cookies.iter().find_map(|cookie| cookie.strip_prefix("DAB_ROUTE="))?;
    Some(set.split(';').next().unwrap().to_owned())
}

fn other(origin: &str) -> &'static str {
    if origin == "a" { "b" } else { "a" }
}

fn visit(world: &mut World, login: &Login, cookie: Option<&str>) -> Answer {
    let request = get("/feed").bearer(&login.access);
    world.run(match cookie {
        Some(value) => request.cookie(&format!("DAB_ROUTE={value}")),
        None => request,
    })
}

#[wasm_bindgen_test(unsupported = test)]
fn the_first_answer_sets_a_cookie_that_is_followed_from_then_on() {
    let (mut world, login) = sticky();
    let first = visit(&mut world, &login, None);
    let cookie = value(&first).unwrap();
    assert!(!cookie.contains("10.1.0"), "never an address");
    let line = first.cookies_set()[0].to_owned();
    assert!(line.ends_with("; Max-Age=86400; Path=/; HttpOnly; Secure; SameSite=Lax"), "{line}");
    for _ in 0..5 {
        let again = visit(&mut world, &login, Some(&cookie));
        assert_eq!(again.asked(), first.asked());
        assert_eq!(again.seen().header("cookie"), None, "the origin does not see it");
        assert_eq!(value(&again), None, "nor is it set again");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn an_origin_that_drains_keeps_its_clients() {
    let (mut world, login) = sticky();
    let first = visit(&mut world, &login, None);
    let (cookie, origin) = (value(&first).unwrap(), first.seen().to.clone());
    world.origin(&origin).state.set_admin(Admin::Drain, world.now);
    assert_eq!(visit(&mut world, &login, Some(&cookie)).asked(), [origin.as_str()]);
    let newcomer = visit(&mut world, &login, None);
    assert_eq!(newcomer.asked(), [other(&origin)]);
}

#[wasm_bindgen_test(unsupported = test)]
fn where_others_wait_nobody_passes_them_but_the_client_of_an_origin_that_drains() {
    let (mut world, login) = sticky();
    let first = visit(&mut world, &login, None);
    let (cookie, origin) = (value(&first).unwrap(), first.seen().to.clone());
    let waiting = world.rules.line(0).join(9).unwrap();
    world.queue.push_back(true);
    let polite = visit(&mut world, &login, Some(&cookie));
    assert_eq!((polite.queued_for.len(), polite.asked(), value(&polite)), (1, vec![origin.as_str()], None));
    // Whoever waits is not let in there, so its clients have nothing to wait for.
    world.origin(&origin).state.set_admin(Admin::Drain, world.now);
    let at_home = visit(&mut world, &login, Some(&cookie));
    assert_eq!((at_home.status, at_home.queued_for.len(), at_home.asked()), (200, 0, vec![origin.as_str()]));
    drop(waiting);
}

#[wasm_bindgen_test(unsupported = test)]
fn clients_that_stay_do_not_disturb_the_shares_of_those_who_come() {
    let origins: Vec<Value> = (1..=4)
        .map(|weight| json!({ "id": format!("o{weight}"), "url": "http://10.1.0.1:9001", "weight": weight }))
        .collect();
    let other = json!({ "shard": "shard_1", "origins": [{ "id": "c", "url": "http://10.1.0.3:9001" }] });
    let pools = json!([{ "shard": "shard_0", "origins": origins }, other]);
    let mut world = World::with(json!({ "pools": pools, "balance": { "sticky": { "enabled": true } } }));
    let login = world.log_in("7");
    let cookie = value(&visit(&mut world, &login, None)).unwrap();
    // To the end of the round.
    (0..9).for_each(|_| drop(visit(&mut world, &login, None)));
    let mut shares = BTreeMap::new();
    for _ in 0..40 {
        visit(&mut world, &login, Some(&cookie));
        visit(&mut world, &login, Some(&cookie));
        *shares.entry(visit(&mut world, &login, None).seen().to.clone()).or_insert(0) += 1;
    }
    assert_eq!(shares.into_values().collect::<Vec<_>>(), [4, 8, 12, 16]);
}

#[wasm_bindgen_test(unsupported = test)]
fn when_its_origin_is_down_another_is_picked_and_the_cookie_rewritten() {
    let (mut world, login) = sticky();
    let first = visit(&mut world, &login, None);
    let (cookie, origin) = (value(&first).unwrap(), first.seen().to.clone());
    world.origin(&origin).state.set_check(Check::Down, world.now);
    let moved = visit(&mut world, &login, Some(&cookie));
    assert_eq!(moved.asked(), [other(&origin)]);
    let rewritten = value(&moved).unwrap();
    world.origin(&origin).state.set_check(Check::Up, world.now);
    let stayed = visit(&mut world, &login, Some(&rewritten));
    assert_eq!(stayed.asked(), [other(&origin)]);
}

#[wasm_bindgen_test(unsupported = test)]
fn when_its_origin_is_full_it_overflows_without_rewriting() {
    let (mut world, login) = sticky();
    let first = visit(&mut world, &login, None);
    let (cookie, origin) = (value(&first).unwrap(), first.seen().to.clone());
    for _ in 0..2 {
        world.taken.push(world.origin(&origin).lease().unwrap());
    }
    let overflow = visit(&mut world, &login, Some(&cookie));
    assert_eq!((overflow.asked(), value(&overflow)), (vec![other(&origin)], None));
    world.taken.clear();
    assert_eq!(visit(&mut world, &login, Some(&cookie)).asked(), [origin.as_str()]);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_cookie_that_is_forged_expired_or_unknown_is_replaced() {
    let (mut world, login) = sticky();
    let cookie = value(&visit(&mut world, &login, None)).unwrap();
    let forged = format!("{}A", &cookie[..cookie.len() - 1]);
    for bad in ["rubbish", forged.as_str(), ""] {
        assert!(value(&visit(&mut world, &login, Some(bad))).is_some(), "{bad:?}");
    }
    world.pass(86_400 - 850);
    let login = world.log_in("7");
    assert_eq!(value(&visit(&mut world, &login, Some(&cookie))), None);
    world.pass(851);
    let login = world.log_in("7");
    assert!(value(&visit(&mut world, &login, Some(&cookie))).is_some(), "24 hours old");
}

#[wasm_bindgen_test(unsupported = test)]
fn it_is_never_set_while_all_are_down() {
    let (mut world, login) = sticky();
    let cookie = value(&visit(&mut world, &login, None)).unwrap();
    for origin in ["a", "b"] {
        world.origin(origin).state.set_check(Check::Down, world.now);
    }
    for cookie in [None, Some(cookie.as_str())] {
        let answer = visit(&mut world, &login, cookie);
        assert_eq!((answer.status, value(&answer)), (200, None));
    }
    for origin in ["a", "b"] {
        world.script(origin, Does::Fail(FailedStage::Connect));
    }
    assert_eq!(value(&visit(&mut world, &login, None)), None);
}

#[wasm_bindgen_test(unsupported = test)]
fn after_a_retry_it_names_who_answered() {
    let (mut world, login) = sticky();
    let first = visit(&mut world, &login, None);
    let (cookie, origin) = (value(&first).unwrap(), first.seen().to.clone());
    world.script(&origin, Does::Fail(FailedStage::Connect));
    let retried = visit(&mut world, &login, Some(&cookie));
    assert_eq!(retried.asked(), [origin.as_str(), other(&origin)]);
    let named = value(&retried).unwrap();
    world.origin(&origin).state.connected(world.now);
    assert_eq!(visit(&mut world, &login, Some(&named)).asked(), [other(&origin)]);
}
