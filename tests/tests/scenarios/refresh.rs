//! Rotation as clients live it: tabs that race, answers that get lost, tokens that get stolen.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgekeep_tests::{Deployment, GRACE_SECONDS, Session};
use serde_json::json;

use crate::scenario::Scenario;

/// Longer than `session.refresh_grace`.
pub const AFTER_GRACE: Duration = Duration::from_millis(GRACE_SECONDS * 1000 + 600);

pub fn scenarios() -> Vec<Scenario> {
    crate::shared![
        forty_clients_refresh_one_token_at_once,
        a_superseded_token_within_the_grace_gets_the_same_answer,
        a_stolen_token_is_found_out_when_the_thief_was_first,
        a_stolen_token_is_found_out_when_the_user_was_first,
        an_answer_that_was_lost_is_given_again,
        a_client_that_guesses_refresh_tokens_has_to_wait,
    ]
}

fn forty_clients_refresh_one_token_at_once(d: &Deployment) -> Result<()> {
    let session = d.login("forty")?;
    let together = Barrier::new(40);
    let answers: Vec<Result<Session>> = thread::scope(|scope| {
        let clients: Vec<_> = (0..40)
            .map(|_| {
                scope.spawn(|| {
                    together.wait();
                    Session::from(&d.refresh(&session.refresh, "tab")?.expect(200)?)
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap_or_else(|_| anyhow::bail!("a client broke"))).collect()
    });
    let sessions = answers.into_iter().collect::<Result<Vec<_>>>()?;
    let tokens: BTreeSet<&str> = sessions.iter().map(|session| session.refresh.as_str()).collect();
    ensure!(tokens.len() == 1, "{} different refresh tokens", tokens.len());
    for session in &sessions {
        ensure!(d.is_let_in(&session.access)?, "one of the forty was logged out");
    }
    // And the chain goes on from there.
    let next = sessions.first().context("forty answers")?;
    let next = Session::from(&d.refresh(&next.refresh, "tab")?.expect(200)?)?;
    ensure!(d.is_let_in(&next.access)?, "the next refresh fails");
    Ok(())
}

fn a_superseded_token_within_the_grace_gets_the_same_answer(d: &Deployment) -> Result<()> {
    let session = d.login("grace")?;
    let first = Session::from(&d.refresh(&session.refresh, "tab")?.expect(200)?)?;
    let second = Session::from(&d.refresh(&first.refresh, "tab")?.expect(200)?)?;
    // Another device even, and two generations old: still the newest token, and nobody is logged out.
    let again = Session::from(&d.refresh(&session.refresh, "another")?.expect(200)?)?;
    ensure!(again.refresh == second.refresh, "not the current token");
    ensure!(again.access != second.access, "the access token is a new one");
    ensure!(d.is_let_in(&again.access)? && d.is_let_in(&second.access)?, "somebody was logged out");
    Ok(())
}

fn a_stolen_token_is_found_out_when_the_thief_was_first(d: &Deployment) -> Result<()> {
    let session = d.login("victim-1")?;
    let stolen = session.refresh.clone();
    let thief = Session::from(&d.refresh(&stolen, "thief")?.expect(200)?)?;
    ensure!(d.is_let_in(&thief.access)?, "nobody can know yet");
    thread::sleep(AFTER_GRACE);
    // The user's own client comes with the same token: one of the two is a thief, so both are out.
    d.refresh(&session.refresh, "phone")?.problem(401, "invalid_refresh_token")?;
    everybody_is_out(d, &[&session, &thief])
}

fn a_stolen_token_is_found_out_when_the_user_was_first(d: &Deployment) -> Result<()> {
    let session = d.login("victim-2")?;
    let stolen = session.refresh.clone();
    let user = Session::from(&d.refresh(&session.refresh, "phone")?.expect(200)?)?;
    // The new access token was used: the answer did arrive, so the old token can only come from somebody else, even
    // one that looks like the same device.
    d.get("/echo/x").bearer(&user.access).send()?.expect(200)?;
    ensure!(d.is_let_in(&user.access)?, "the session is good before");
    thread::sleep(AFTER_GRACE);
    d.refresh(&stolen, "phone")?.problem(401, "invalid_refresh_token")?;
    everybody_is_out(d, &[&session, &user])
}

fn everybody_is_out(d: &Deployment, sessions: &[&Session]) -> Result<()> {
    for session in sessions {
        ensure!(!d.is_let_in(&session.access)?, "an access token still works");
        d.refresh(&session.refresh, "phone")?.problem(401, "invalid_refresh_token")?;
    }
    Ok(())
}

fn an_answer_that_was_lost_is_given_again(d: &Deployment) -> Result<()> {
    let session = d.login("tunnel")?;
    // The answer never arrives: the train went into a tunnel. Nobody ever uses its access token.
    let lost = Session::from(&d.refresh(&session.refresh, "phone")?.expect(200)?)?;
    for _ in 0..3 {
        thread::sleep(AFTER_GRACE);
        let again = Session::from(&d.refresh(&session.refresh, "phone")?.expect(200)?)?;
        ensure!(again.refresh == lost.refresh, "a lost answer is given again as it was");
    }
    // At most three times; then the token is refused and the session is left alone.
    thread::sleep(AFTER_GRACE);
    d.refresh(&session.refresh, "phone")?.problem(401, "invalid_refresh_token")?;
    ensure!(d.is_let_in(&lost.access)?, "the session was ended");
    Session::from(&d.refresh(&lost.refresh, "phone")?.expect(200)?)?;
    Ok(())
}

fn a_client_that_guesses_refresh_tokens_has_to_wait(d: &Deployment) -> Result<()> {
    let guesser = Ipv4Addr::new(127, 0, 0, 66);
    let guess = |from: Ipv4Addr, token: &str| {
        d.post("/v1/sessions/refresh").from(from).json(&json!({ "refresh_token": token })).send()
    };
    // limits.refresh_failures = "20/1m"; a minute may begin meanwhile.
    let mut refused = 0;
    let limited = loop {
        let answer = guess(guesser, "AAAA")?;
        if answer.status == 429 {
            break answer;
        }
        answer.problem(401, "invalid_refresh_token")?;
        refused += 1;
        ensure!(refused <= 41, "nobody counts");
    };
    ensure!(refused >= 20, "only {refused} guesses were allowed");
    limited.problem(429, "too_many_requests")?;
    let wait = limited.header("retry-after").and_then(|seconds| seconds.parse::<u64>().ok());
    ensure!(wait.is_some_and(|seconds| (1..=60).contains(&seconds)), "{limited}");
    // Its good tokens wait too; everybody else's don't.
    let session = d.login("patient")?;
    guess(guesser, &session.refresh)?.problem(429, "too_many_requests")?;
    guess(Ipv4Addr::new(127, 0, 0, 67), &session.refresh)?.expect(200)?;
    Ok(())
}
