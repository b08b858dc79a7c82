//! When something is down: origins, the authority, the gateway itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgekeep_tests::{Deployment, Kind, Session, Setup, eventually, is_long};

use crate::scenario::Scenario;

pub fn scenarios() -> Vec<Scenario> {
    let mut all =
        crate::shared![a_dead_origin_gives_502, a_slow_origin_gives_504, an_origins_own_errors_pass_as_they_are,];
    let name = "origins_that_die_and_come_back";
    all.push(Scenario::alone(name, Setup::default(), origins_that_die_and_come_back));
    all.push(
        Scenario::alone("a_dead_authority_gives_503", Setup::default(), a_dead_authority_gives_503)
            .only(Kind::EdgeBesideRegion),
    );
    all.push(
        Scenario::alone("what_was_answered_survives_kill_9", Setup::default(), what_was_answered_survives_kill_9)
            .natively(),
    );
    all.push(Scenario::alone(
        "no_secret_stands_in_a_talkative_log",
        Setup { talkative: true, ..Setup::default() },
        no_secret_stands_in_a_talkative_log,
    ));
    all
}

fn a_dead_origin_gives_502(d: &Deployment) -> Result<()> {
    let session = d.login("dead-origin")?;
    // Again and again: also once it is known to be dead.
    for method in ["GET", "POST", "GET", "PUT", "GET"] {
        let answer = d.request(method, "/photos/2024-06/x").bearer(&session.access).send()?;
        answer.problem(502, "origin_failed")?;
    }
    Ok(())
}

fn a_slow_origin_gives_504(d: &Deployment) -> Result<()> {
    let session = d.login("slow-origin")?;
    d.get("/slow/2500").bearer(&session.access).send()?.problem(504, "origin_timeout")?;
    d.get("/slow/10").bearer(&session.access).send()?.expect(200)?;
    Ok(())
}

fn an_origins_own_errors_pass_as_they_are(d: &Deployment) -> Result<()> {
    let session = d.login("own-errors")?;
    for status in [400, 401, 403, 404, 409, 418, 429, 500, 501, 502, 503] {
        let answer = d.get(&format!("/status/{status}")).bearer(&session.access).send()?.expect(status)?;
        ensure!(answer.origin().is_some(), "{answer}");
    }
    Ok(())
}

fn origins_that_die_and_come_back(d: &Deployment) -> Result<()> {
    let session = d.login("resilient")?;
    d.get("/echo/x").bearer(&session.access).send()?.expect(200)?;
    d.stop_origins();
    for _ in 0..4 {
        d.get("/echo/x").bearer(&session.access).send()?.problem(502, "origin_failed")?;
        d.post("/echo/x").bearer(&session.access).send()?.problem(502, "origin_failed")?;
        thread::sleep(Duration::from_millis(700));
    }
    // Sessions don't need them.
    let session = Session::from(&d.refresh(&session.refresh, "")?.expect(200)?)?;
    d.start_origins()?;
    eventually("the origins are tried again", Duration::from_secs(20), || {
        Ok(d.get("/echo/x").bearer(&session.access).send()?.status == 200)
    })
}

fn a_dead_authority_gives_503(d: &Deployment) -> Result<()> {
    let known = d.login("known")?;
    let unknown = d.login("unknown")?;
    d.get("/echo/x").bearer(&known.access).send()?.expect(200)?;
    d.kill_gateway()?;
    // What needs the authority says so, and that trying again is safe.
    d.get("/echo/x").bearer(&unknown.access).send()?.problem(503, "authority_unavailable")?;
    d.get("/echo/account/x").bearer(&known.access).send()?.problem(503, "authority_unavailable")?;
    d.refresh(&known.refresh, "")?.problem(503, "authority_unavailable")?;
    d.get("/v1/sessions").bearer(&known.access).send()?.problem(503, "authority_unavailable")?;
    // What does not need it goes on, and a bad token is no better than before.
    d.get("/echo/open/x").send()?.expect(200)?;
    d.get("/echo/token/x").bearer(&unknown.access).send()?.expect(200)?;
    d.get("/echo/x").bearer(&known.access).send()?.expect(200)?;
    d.get("/echo/x").send()?.problem(401, "missing_credential")?;
    d.get("/echo/x").bearer("a.b.c").send()?.problem(401, "invalid_token")?;
    // When it is back, nobody was logged out: the refresh token above is still the current one.
    d.start_gateway()?;
    ensure!(d.is_let_in(&known.access)?, "the session is gone");
    Session::from(&d.refresh(&known.refresh, "")?.expect(200)?)?;
    Ok(())
}

fn what_was_answered_survives_kill_9(d: &Deployment) -> Result<()> {
    let rounds = if is_long() { 200 } else { 4 };
    for round in 0..rounds {
        one_kill(d, round).with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

/// Clients create, refresh and end sessions until the gateway is killed under them; what was answered is still so.
fn one_kill(d: &Deployment, round: usize) -> Result<()> {
    let killed = AtomicBool::new(false);
    let lives: Vec<Result<Life>> = thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let killed = &killed;
                scope.spawn(move || Life::lived_until(killed, d, &format!("kill-{round}-{client}")))
            })
            .collect();
        thread::sleep(Duration::from_millis(150 + 37 * (round as u64 % 7)));
        let kill = d.kill_gateway();
        killed.store(true, Ordering::Release);
        let mut lives: Vec<_> = clients
            .into_iter()
            .map(|client| client.join().unwrap_or_else(|_| anyhow::bail!("a client broke")))
            .collect();
        lives.extend(kill.err().map(Err));
        lives
    });
    d.start_gateway()?;
    let mut created = 0;
    for life in lives {
        let life = life?;
        created += life.alive.len() + life.refreshed.len() + life.ended.len();
        for session in newest(&life.alive) {
            ensure!(d.is_let_in(&session.access)?, "a session that was answered 201 is gone");
        }
        for session in newest(&life.refreshed) {
            ensure!(d.is_let_in(&session.access)?, "a refreshed session is gone");
            // Its token is the current one: the store did not go back.
            Session::from(&d.refresh(&session.refresh, "client")?.expect(200)?)?;
        }
        for session in newest(&life.ended) {
            ensure!(!d.is_let_in(&session.access)?, "a session whose end was answered 204 lives again");
        }
    }
    ensure!(created > 0, "nothing was answered before the kill");
    Ok(())
}

/// Those that were answered last are the ones that a kill could take; older ones were committed with or before them.
fn newest(sessions: &[Session]) -> impl Iterator<Item = &Session> {
    sessions.iter().rev().take(20)
}

/// What one client was answered. A call that was under way when the gateway died counts for nothing.
#[derive(Default)]
struct Life {
    alive: Vec<Session>,
    refreshed: Vec<Session>,
    ended: Vec<Session>,
}

impl Life {
    fn lived_until(killed: &AtomicBool, d: &Deployment, name: &str) -> Result<Life> {
        let mut life = Life::default();
        for turn in 0.. {
            let Ok(session) = d.login(&format!("{name}-{turn}")) else { break };
            match turn % 3 {
                0 => life.alive.push(session),
                1 => match d.refresh(&session.refresh, "client") {
                    Ok(answer) => life.refreshed.push(Session::from(&answer.expect(200)?)?),
                    Err(_) => break,
                },
                _ => match d.delete("/v1/sessions/current").bearer(&session.access).send() {
                    Ok(answer) => {
                        answer.expect(204)?;
                        life.ended.push(session);
                    }
                    Err(_) => break,
                },
            }
        }
        eventually("the kill", Duration::from_secs(10), || Ok(killed.load(Ordering::Acquire)))?;
        Ok(life)
    }
}

fn no_secret_stands_in_a_talkative_log(d: &Deployment) -> Result<()> {
    let session = d.login("quiet")?;
    for path in ["/echo/x", "/echo/account/x", "/echo/open/x", "/photos/2024-06/x"] {
        d.get(path).bearer(&session.access).send()?;
        d.get(path).bearer(&format!("{}x", session.access)).send()?;
        // A careless client puts its token into the query.
        d.get(&format!("{path}?access_token={}", session.access)).send()?;
    }
    let refreshed = Session::from(&d.refresh(&session.refresh, "phone")?.expect(200)?)?;
    d.post("/oauth/revoke").form(&[("token", &refreshed.refresh)]).send()?.expect(200)?;
    d.refresh(&refreshed.refresh, "phone")?.expect(401)?;
    d.post("/v1/sessions").bearer("wrong").send()?.expect(401)?;
    // The search of the logs follows every scenario that has a deployment of its own.
    Ok(())
}
