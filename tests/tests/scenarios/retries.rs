//! When a request is sent once more, and when it must not be: counted at the origins.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use edgekeep_tests::{Deployment, Framing, Then, Visit};

use crate::scenario::Scenario;
use crate::wire::{QUICK_MS, at};

/// `balance.retry_buffer`.
const RETRY_BUFFER: u64 = 64 * 1024;
/// `balance.retry_budget` is a fifth, beyond the three that a fresh pool has.
const RESERVE: usize = 3;

pub fn scenarios() -> Vec<Scenario> {
    let mut all = crate::wire![scenario:
        what_was_sent_and_not_answered_is_asked_once_more_where_that_is_safe,
        no_post_is_ever_sent_twice,
        a_body_beyond_the_retry_buffer_is_not_sent_again,
        a_pool_that_always_fails_is_asked_a_fifth_more_often_at_most,
        a_pool_whose_origins_are_all_dead_answers_502,
        an_answer_that_takes_too_long_is_not_asked_for_again,
    ];
    all.extend(crate::wire![native:
        a_refused_connection_sends_any_method_to_another_origin,
        connections_that_closed_while_nobody_used_them_cost_no_request,
        an_answer_that_broke_off_in_its_head_is_not_asked_for_again,
        a_single_origin_is_asked_once_more_when_its_kept_connection_closed,
    ]);
    all
}

/// Reads a request whole and resets the connection, for the first `times`; answers the others.
fn fails(times: usize) -> impl Fn(&mut Visit) -> Then + Send + Sync + Clone + 'static {
    let left = Arc::new(AtomicUsize::new(times));
    move |visit| {
        visit.body();
        let fails = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        if fails { Then::Reset } else { visit.answer(200, b"at last") }
    }
}

/// What this many retries cost: each is a fifth of a request's, and others use the pool too.
fn earn(d: &Deployment, path: &str, retries: usize) -> Result<()> {
    for _ in 0..retries * 5 {
        d.get(path).send()?.expect(200)?;
    }
    Ok(())
}

/// One script for both origins of the pair.
fn at_pair(
    d: &Deployment,
    path: &str,
    script: &(impl Fn(&mut Visit) -> Then + Send + Sync + Clone + 'static),
) -> Result<()> {
    for number in at::PAIR {
        d.recorder(number)?.on(path, script.clone());
    }
    Ok(())
}

/// How often both of them were asked.
fn tries(d: &Deployment, path: &str) -> Result<[usize; 2]> {
    Ok([d.recorder(at::PAIR[0])?.tries(path), d.recorder(at::PAIR[1])?.tries(path)])
}

fn a_refused_connection_sends_any_method_to_another_origin(d: &Deployment) -> Result<()> {
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "POST", "POST", "POST"] {
        let answer = d.request(method, "/half/any").send()?.expect(200)?;
        ensure!(answer.origin().is_none(), "{answer}");
    }
    ensure!(d.recorder(at::BESIDE_DEAD)?.requests("/half/any")?.len() == 8, "each exactly once");
    Ok(())
}

fn connections_that_closed_while_nobody_used_them_cost_no_request(d: &Deployment) -> Result<()> {
    let origin = d.recorder(at::KEPT)?;
    for round in 0..5 {
        for method in ["GET", "POST", "PATCH"] {
            // Both of the gateway's threads keep some.
            for _ in 0..4 {
                d.get("/kept/warm").send()?.expect(200)?;
            }
            origin.cut();
            std::thread::sleep(Duration::from_millis(20));
            d.request(method, "/kept/after-cut").send()?.expect(200)?;
        }
        ensure!(origin.requests("/kept/after-cut")?.len() == 3 * (round + 1), "each exactly once");
    }
    Ok(())
}

fn a_single_origin_is_asked_once_more_when_its_kept_connection_closed(d: &Deployment) -> Result<()> {
    let origin = d.recorder(at::KEPT)?;
    earn(d, "/kept/warm", 5)?;
    for (method, path, answers) in [
        ("GET", "/kept/get", true),
        ("PUT", "/kept/put", true),
        ("DELETE", "/kept/delete", true),
        ("POST", "/kept/post", false),
        ("PATCH", "/kept/patch", false),
    ] {
        origin.on(path, fails(1));
        let answer = d.request(method, path).send()?;
        if answers {
            answer.expect(200)?;
            ensure!(origin.tries(path) == 2, "{method}: {} tries", origin.tries(path));
        } else {
            answer.problem(502, "origin_failed")?;
            ensure!(origin.tries(path) == 1, "{method}: {} tries", origin.tries(path));
        }
    }
    // Once, and not until it works.
    origin.on("/kept/always", fails(9));
    d.get("/kept/always").send()?.problem(502, "origin_failed")?;
    ensure!(origin.tries("/kept/always") == 2, "{} tries", origin.tries("/kept/always"));
    Ok(())
}

fn what_was_sent_and_not_answered_is_asked_once_more_where_that_is_safe(d: &Deployment) -> Result<()> {
    earn(d, "/pair/warm", 6)?;
    for (method, path) in
        [("GET", "/pair/get"), ("HEAD", "/pair/head"), ("OPTIONS", "/pair/options"), ("DELETE", "/pair/delete")]
    {
        at_pair(d, path, &fails(1))?;
        d.request(method, path).send()?.expect(200)?;
        ensure!(tries(d, path)? == [1, 1], "{method}: {:?}", tries(d, path)?);
    }
    at_pair(d, "/pair/put", &fails(1))?;
    let put = d.request("PUT", "/pair/put").bytes("text/plain", b"once more, whole");
    put.send()?.expect(200)?;
    ensure!(tries(d, "/pair/put")? == [1, 1], "{:?}", tries(d, "/pair/put")?);
    for number in at::PAIR {
        ensure!(d.recorder(number)?.request("/pair/put")?.body == b"once more, whole", "another body");
    }
    Ok(())
}

fn no_post_is_ever_sent_twice(d: &Deployment) -> Result<()> {
    let mut sent = 0;
    for (method, path) in [("POST", "/pair/post"), ("PATCH", "/pair/patch")] {
        at_pair(d, path, &fails(usize::MAX))?;
        for body in ["", "x", "a longer body"] {
            let answer = d.request(method, path).text("text/plain", body).send()?;
            answer.problem(502, "origin_failed")?;
            sent += 1;
            let [a, b] = tries(d, path)?;
            ensure!(a + b == sent, "{method}: {} arrived of {sent}", a + b);
        }
        sent = 0;
    }
    Ok(())
}

fn a_body_beyond_the_retry_buffer_is_not_sent_again(d: &Deployment) -> Result<()> {
    earn(d, "/pair/warm", 3)?;
    for (path, bytes, again) in [("/pair/fits", RETRY_BUFFER, true), ("/pair/exceeds", RETRY_BUFFER + 1, false)] {
        at_pair(d, path, &fails(1))?;
        let answer = d.request("PUT", path).upload(bytes, Framing::ContentLength).send()?;
        let [a, b] = tries(d, path)?;
        if again {
            answer.expect(200)?;
            ensure!(a + b == 2, "{bytes}: {} tries", a + b);
        } else {
            answer.problem(502, "origin_failed")?;
            ensure!(a + b == 1, "{bytes}: {} tries", a + b);
        }
    }
    Ok(())
}

fn a_pool_that_always_fails_is_asked_a_fifth_more_often_at_most(d: &Deployment) -> Result<()> {
    const REQUESTS: usize = 200;
    let origin = d.recorder(at::BUDGET)?;
    origin.on("/budget/x", fails(usize::MAX));
    for _ in 0..REQUESTS {
        d.get("/budget/x").send()?.problem(502, "origin_failed")?;
    }
    let retries = origin.tries("/budget/x").saturating_sub(REQUESTS);
    ensure!(retries <= REQUESTS / 5 + RESERVE, "{retries} retries of {REQUESTS} requests");
    ensure!(retries >= REQUESTS / 5 - RESERVE, "only {retries} retries of {REQUESTS} requests");
    Ok(())
}

fn a_pool_whose_origins_are_all_dead_answers_502(d: &Deployment) -> Result<()> {
    for method in ["GET", "POST", "PUT", "GET", "GET"] {
        d.request(method, "/gone/x").send()?.problem(502, "origin_failed")?;
    }
    Ok(())
}

fn an_answer_that_takes_too_long_is_not_asked_for_again(d: &Deployment) -> Result<()> {
    at_pair(d, "/pair/quick/x", &|visit: &mut Visit| {
        visit.is_left(Duration::from_secs(10));
        Then::Close
    })?;
    let begun = Instant::now();
    d.get("/pair/quick/x").send()?.problem(504, "origin_timeout")?;
    ensure!(begun.elapsed() < Duration::from_millis(QUICK_MS * 2), "after {:?}", begun.elapsed());
    let [a, b] = tries(d, "/pair/quick/x")?;
    ensure!(a + b == 1, "{} tries", a + b);
    Ok(())
}

fn an_answer_that_broke_off_in_its_head_is_not_asked_for_again(d: &Deployment) -> Result<()> {
    // Whatever is not asked again is not for want of a budget.
    earn(d, "/pair/warm", 5)?;
    for (path, part, then) in [
        ("/pair/half-line", "HTTP/1.1 20", Then::Close),
        ("/pair/half-head", "HTTP/1.1 200 OK\r\ncontent-le", Then::Close),
        ("/pair/reset-head", "HTTP/1.1 200 OK\r\ncontent-le", Then::Reset),
        ("/pair/no-answer", "SSH-2.0-OpenSSH\r\n\r\n", Then::Close),
    ] {
        at_pair(d, path, &move |visit: &mut Visit| {
            visit.body();
            visit.send(part.as_bytes());
            // So that the part arrives before the end does.
            std::thread::sleep(Duration::from_millis(100));
            then
        })?;
        d.get(path).send()?.problem(502, "origin_failed")?;
        let [a, b] = tries(d, path)?;
        ensure!(a + b == 1, "{path}: {} tries", a + b);
    }
    Ok(())
}
