//! Upgraded connections and streams end within five seconds of their session's end, natively (DESIGN §4).

#![allow(clippy::print_stdout, reason = "a measurement prints its figures")]

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use edgekeep_tests::{Deployment, Ended, Kind, Open, PINNED_WITH_STREAMS, Request, Session};
use serde_json::json;

use crate::revocation::REVOCATIONS;
use crate::scenario::Scenario;

/// The bound, from the revocation's answer.
const BOUND: Duration = Duration::from_secs(5);

pub fn scenarios() -> Vec<Scenario> {
    let all = crate::shared![
        upgraded_connections_end_within_five_seconds_of_their_session,
        events_end_within_five_seconds_of_their_session_and_are_seen_to_be_cut,
        a_download_that_nobody_reads_ends_with_its_session,
        an_upload_ends_with_its_session,
        a_token_routes_connection_ends_when_its_token_has_expired_and_its_session_too,
    ];
    // A Worker hands upgraded connections and bodies over to the platform: docs/parity.md.
    let mut all: Vec<_> = all.into_iter().map(|scenario| scenario.except(Kind::EdgeBesideRegion)).collect();
    let name = "what_is_open_at_one_gateway_ends_with_a_session_that_another_ends";
    all.push(Scenario::shared(name, what_is_open_at_one_gateway_ends).only(Kind::NativeRedis));
    all
}

fn upgrade(request: Request, session: &Session) -> Result<Open> {
    let open = request.bearer(&session.access).header("connection", "upgrade").header("upgrade", "echo").open()?;
    ensure!(open.status == 101, "not upgraded: {}", open.status);
    Ok(open)
}

/// Opens one answer for each revocation, with one of another user; all that end, end within the bound and as they
/// should, and the other user's goes on.
fn end_within_the_bound(
    d: &Deployment,
    name: &str,
    how: Ended,
    mut open: impl FnMut(&Session) -> Result<Open>,
) -> Result<()> {
    let stranger = d.login(&format!("{name}-stranger"))?;
    let mut strangers = open(&stranger)?;
    let mut revoked = Vec::new();
    for (at, (what, revocation)) in REVOCATIONS.iter().enumerate() {
        let user = format!("{name}-{at}");
        let (own, other) = (d.login(&user)?, d.login(&user)?);
        let mut stream = open(&own)?;
        ensure!(stream.watch(Duration::from_millis(300))? == Ended::NotYet, "{what}: it ended before");
        let answer = revocation(d, &user, &own, &other).send()?;
        ensure!(answer.status == 204 || answer.status == 200, "{answer}");
        revoked.push((what, stream, Instant::now()));
    }
    let mut longest = Duration::ZERO;
    for (what, mut stream, since) in revoked {
        let (_, ended) = stream.until_its_end(BOUND.saturating_sub(since.elapsed()))?;
        ensure!(ended == how, "{what}: {ended:?}");
        longest = longest.max(since.elapsed());
    }
    println!("{name}: ended at most {longest:?} after the revocation");
    ensure!(strangers.watch(Duration::from_secs(2))? == Ended::NotYet, "another user's ended too");
    Ok(())
}

fn upgraded_connections_end_within_five_seconds_of_their_session(d: &Deployment) -> Result<()> {
    for (name, path) in [("ws-session", "/ws/x"), ("ws-strict", "/ws/account/x")] {
        end_within_the_bound(d, name, Ended::Cut, |session| {
            let mut open = upgrade(d.get(path), session)?;
            open.echoes(b"as WebSockets do")?;
            Ok(open)
        })?;
    }
    Ok(())
}

fn events_end_within_five_seconds_of_their_session_and_are_seen_to_be_cut(d: &Deployment) -> Result<()> {
    // Whether something is sent all the time, or nothing in a long while.
    for (name, path) in [("events", "/events/50"), ("rare-events", "/events/60000")] {
        end_within_the_bound(d, name, Ended::Cut, |session| d.get(path).bearer(&session.access).open())?;
    }
    Ok(())
}

fn what_is_open_at_one_gateway_ends(d: &Deployment) -> Result<()> {
    let second = d.second()?;
    for (name, path) in [("ws-elsewhere", "/ws/x"), ("ws-strict-elsewhere", "/ws/account/x")] {
        end_within_the_bound(d, name, Ended::Cut, |session| upgrade(d.get(path).at(second), session))?;
    }
    let events = |session: &Session| d.get("/events/50").at(second).bearer(&session.access).open();
    end_within_the_bound(d, "events-elsewhere", Ended::Cut, events)
}

fn a_download_that_nobody_reads_ends_with_its_session(d: &Deployment) -> Result<()> {
    let session = d.login(PINNED_WITH_STREAMS)?;
    // More than all buffers on the way.
    let mut open = d.get("/stream/2000000000?framing=chunked").bearer(&session.access).open()?;
    std::thread::sleep(Duration::from_millis(500));
    d.delete("/v1/sessions/current").bearer(&session.access).send()?.expect(204)?;
    std::thread::sleep(BOUND);
    let (_, ended) = open.until_its_end(Duration::from_secs(20))?;
    ensure!(ended == Ended::Cut, "it went on to its end");
    Ok(())
}

fn an_upload_ends_with_its_session(d: &Deployment) -> Result<()> {
    let session = d.login(PINNED_WITH_STREAMS)?;
    let head = d.post("/stream/0").bearer(&session.access).header("content-length", "1000000");
    let mut socket = head.begin()?;
    for _ in 0..15 {
        socket.write_all(b"ten bytes.")?;
        std::thread::sleep(Duration::from_millis(100));
    }
    d.delete("/v1/sessions/current").bearer(&session.access).send()?.expect(204)?;
    let revoked = Instant::now();
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    while revoked.elapsed() < BOUND {
        let ended = match socket.read(&mut [0; 1]) {
            Ok(0) => true,
            Ok(_) => anyhow::bail!("an answer to half an upload"),
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        };
        if ended || socket.write_all(b"ten bytes.").is_err() {
            return Ok(());
        }
    }
    anyhow::bail!("the upload goes on")
}

fn a_token_routes_connection_ends_when_its_token_has_expired_and_its_session_too(d: &Deployment) -> Result<()> {
    const TTL: u64 = 4;
    let begun = Instant::now();
    let ended = d.login_with(&json!({ "user_id": "ws-token-ended", "access_ttl": TTL }))?;
    let kept = d.login_with(&json!({ "user_id": "ws-token-kept", "access_ttl": TTL }))?;
    let (mut ends, mut stays) = (upgrade(d.get("/ws/token/x"), &ended)?, upgrade(d.get("/ws/token/x"), &kept)?);
    d.service("DELETE", "/v1/users/ws-token-ended/sessions").send()?.expect(204)?;
    // The token counts whole seconds and its life is jittered, so it expires up to two earlier.
    let before = Duration::from_secs(TTL - 2).saturating_sub(begun.elapsed());
    ensure!(ends.watch(before)? == Ended::NotYet, "ended before its token");
    ends.until_its_end(Duration::from_secs(TTL) + BOUND)?;
    ensure!(begun.elapsed() >= Duration::from_secs(TTL - 2), "ended before its token: {:?}", begun.elapsed());
    std::thread::sleep(Duration::from_secs(TTL + 2).saturating_sub(begun.elapsed()));
    stays.echoes(b"whose session lives, beyond its token")
}
