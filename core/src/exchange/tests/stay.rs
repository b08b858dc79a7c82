//! Answers that go on after their head: what they rest on, how often the store is asked, and when they end.

use super::*;
use wasm_bindgen_test::wasm_bindgen_test;

/// An answer that goes on, with how often the store was asked about it.
struct Open {
    stay: Stay,
    asked: u32,
}

impl World {
    fn open(&mut self, path: &str, login: &Login) -> Open {
        let answer = self.run(get(path).bearer(&login.access));
        assert_eq!(answer.status, 200, "{}", answer.text());
        Open { stay: answer.stay.unwrap(), asked: 0 }
    }

    /// A look, as the shell does it every second: whether the answer may go on.
    fn goes_on(&mut self, open: &mut Open) -> bool {
        let Some(question) = open.stay.look(&self.live.near, self.now) else { return true };
        let ticket = question.ticket;
        open.asked += 1;
        let answer = self.store.load(ticket.id(), self.now);
        open.stay.answered(&ticket, &answer, &self.live.near, self.now)
    }

    /// A look each second for so long, until it ends.
    fn seconds_until_the_end(&mut self, open: &mut Open, at_most: u64) -> Option<u64> {
        (0..at_most).find(|_| {
            let ended = !self.goes_on(open);
            self.pass(u64::from(!ended));
            ended
        })
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_stream_of_a_session_or_strict_route_ends_at_the_first_look_after_a_revocation() {
    let revocations: [fn(&Login, &Login) -> Request; 4] = [
        |own, _| delete("/v1/sessions/current").bearer(&own.access),
        |own, other| delete(&format!("/v1/sessions/{}", own.id)).bearer(&other.access),
        |_, other| delete("/v1/sessions?except=current").bearer(&other.access),
        |_, _| delete("/v1/users/42/sessions").bearer(SERVICE),
    ];
    for path in ["/feed", "/strict/feed"] {
        for revocation in revocations {
            let mut world = World::new();
            let (own, other, stranger) = (world.log_in("42"), world.log_in("42"), world.log_in("7"));
            let mut open = world.open(path, &own);
            let mut strangers = world.open(path, &stranger);
            world.pass(5);
            assert!(world.goes_on(&mut open) && world.goes_on(&mut strangers));
            assert_eq!(world.run(revocation(&own, &other)).status, 204);
            assert!(!world.goes_on(&mut open), "{path}");
            assert!(world.goes_on(&mut strangers), "{path}");
        }
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn the_store_is_asked_once_a_minute_however_full_the_near_cache_is() {
    let mut world = World::with(json!({ "session": { "near_cache": 1 } }));
    let login = world.log_in("42");
    let mut open = world.open("/feed", &login);
    for second in 0..300 {
        let other = world.log_in(&format!("other-{second}"));
        world.run(get("/feed").bearer(&other.access));
        assert!(world.goes_on(&mut open));
        world.pass(1);
    }
    // Once more for each stranger's invalidation that shares a cell with it, of which there are none here.
    assert!((4..=6).contains(&open.asked), "{}", open.asked);
}

#[wasm_bindgen_test(unsupported = test)]
fn a_stream_ends_with_its_session_and_goes_on_when_that_was_refreshed() {
    let mut world = World::with(json!({ "session": { "idle_ttl": "15m" } }));
    let (login, refreshed) = (world.log_in("42"), world.log_in("42"));
    let mut open = world.open("/feed", &login);
    let mut kept = world.open("/feed", &refreshed);
    world.pass(890);
    assert!(world.goes_on(&mut open) && world.goes_on(&mut kept));
    assert_eq!(world.refresh(&refreshed.refresh, "phone").status, 200);
    assert_eq!(world.seconds_until_the_end(&mut open, 60), Some(10));
    assert_eq!(world.seconds_until_the_end(&mut kept, 2_000), Some(890), "15 minutes from the refresh");
}

#[wasm_bindgen_test(unsupported = test)]
fn a_stream_of_a_token_route_rests_on_the_token_and_then_on_the_session() {
    for path in ["/token/feed", "/maybe/feed"] {
        let mut world = World::with(json!({ "session": { "leeway": "5s" } }));
        let (ended, kept) = (world.log_in("42"), world.log_in("7"));
        let mut streams = [world.open(path, &ended), world.open(path, &kept)];
        world.run(delete("/v1/users/42/sessions").bearer(SERVICE));
        // 855 to 900 seconds of token life, and the leeway.
        world.pass(850);
        assert!(streams.iter_mut().all(|open| world.goes_on(open)));
        assert!(streams.iter().all(|open| open.asked == 0), "as on the route itself, nobody is asked");
        let [ended, kept] = &mut streams;
        let seconds = world.seconds_until_the_end(ended, 100).unwrap();
        assert!((10..=55).contains(&seconds), "{path}: {seconds}");
        assert_eq!(world.seconds_until_the_end(kept, 200), None, "{path}: its session lives");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn while_the_store_is_down_streams_go_on_and_the_first_answer_decides() {
    for on_store_down in ["refuse", "allow_cached"] {
        let mut world = World::with(json!({ "session": { "on_store_down": on_store_down } }));
        let (ended, kept) = (world.log_in("42"), world.log_in("7"));
        let mut streams = [world.open("/feed", &ended), world.open("/strict/feed", &kept)];
        world.run(delete("/v1/users/42/sessions").bearer(SERVICE));
        world.live.near.disconnected(&[0..=16_383]);
        world.store.down = true;
        for open in &mut streams {
            assert_eq!(world.seconds_until_the_end(open, 30), None);
        }
        world.store.down = false;
        let [ended, kept] = &mut streams;
        assert!(!world.goes_on(ended));
        assert!(world.goes_on(kept));
        world.live.near.connected(&[0..=16_383]);
        assert!(world.goes_on(kept));
        let asked = kept.asked;
        assert!(world.goes_on(kept));
        assert_eq!(kept.asked, asked, "believed again, since invalidations arrive again");
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_session_that_is_another_users_by_now_ends_the_stream() {
    let mut world = World::new();
    let login = world.log_in("42");
    let mut open = world.open("/feed", &login);
    world.store.state(login.id).user = UserId::new("7").unwrap();
    world.pass(61);
    assert!(!world.goes_on(&mut open));
}

#[wasm_bindgen_test(unsupported = test)]
fn nothing_else_is_looked_after() {
    let mut world = World::new();
    let login = world.log_in("42");
    for request in [
        get("/open/feed").bearer(&login.access),
        get("/open/feed"),
        get("/maybe/feed"),
        get("/v1/sessions").bearer(&login.access),
        get("/v1/authorize").bearer(&login.access),
        get("/feed"),
    ] {
        assert!(world.run(request).stay.is_none());
    }
}

#[wasm_bindgen_test(unsupported = test)]
fn a_session_that_may_have_ended_is_asked_about_before_those_of_a_server_that_is_gone() {
    let mut world = World::new();
    let (ended, cut_off) = (world.log_in("42"), world.log_in("42"));
    let (mut ended_open, mut cut_off_open) = (world.open("/feed", &ended), world.open("/feed", &cut_off));
    world.live.near.disconnected(&[0..=16_383]);
    world.live.near.invalidate(ended.id);
    let is_urgent = |open: &mut Open| open.stay.look(&world.live.near, world.now).unwrap().is_urgent;
    assert!(is_urgent(&mut ended_open) && !is_urgent(&mut cut_off_open));
}
