//! A session's whole life, from the login service's call to its end.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use edgekeep_tests::{Deployment, Forged, Session, Setup};
use serde_json::{Value, json};

use crate::scenario::Scenario;

/// `session.near_cache`, where it is to be full soon.
const NEAR_CACHE: u32 = 24;

pub fn scenarios() -> Vec<Scenario> {
    let mut all = crate::shared![
        the_whole_life_of_a_session,
        a_user_sees_own_devices_and_ends_one,
        a_user_ends_all_other_sessions,
        ending_an_unknown_id_is_no_error,
        nobody_ends_the_session_of_someone_else,
        the_service_lists_and_revokes_all_of_a_user,
        an_integer_and_its_text_are_one_user,
        an_access_token_can_be_given_a_shorter_life,
        the_oldest_session_makes_room_for_one_too_many,
        public_keys_are_published_and_nothing_else,
    ];
    let full = Setup { refuse_at_max: true, ..Setup::default() };
    let name = "concurrent_logins_never_exceed_the_maximum";
    all.push(Scenario::alone(name, full, concurrent_logins_never_exceed_the_maximum).natively());
    let small = Setup { near_cache: Some(NEAR_CACHE), ..Setup::default() };
    let name = "the_near_cache_counts_what_it_keeps_and_keeps_no_more_than_it_may";
    all.push(Scenario::alone(name, small, the_near_cache_counts_what_it_keeps).natively());
    all
}

fn the_whole_life_of_a_session(d: &Deployment) -> Result<()> {
    // The login service checked a password, and asks for a session.
    let session = d.login_with(&json!({ "user_id": "ada", "device_info": { "name": "Ada's phone" } }))?;
    ensure!((855..=900).contains(&session.expires_in), "15 minutes, at most 5 % less: {}", session.expires_in);
    let token = Forged::from(&session.access)?;
    ensure!(token.header["typ"] == "at+jwt" && token.header["alg"] == "EdDSA", "{}", token.header);
    for (claim, value) in [("iss", "edgekeep"), ("aud", "app"), ("client_id", "app"), ("sub", "ada")] {
        ensure!(token.claims[claim] == value, "{claim} in {}", token.claims);
    }
    ensure!(token.claims["sid"] == session.id.as_str(), "sid in {}", token.claims);

    // The application uses it, and its origin is told who it is.
    let answer = d.get("/echo/me?x=1").bearer(&session.access).send()?.expect(200)?;
    ensure!(answer.echoed("x-edgekeep-user")? == ["ada"], "{answer}");
    ensure!(answer.echoed("x-edgekeep-session")? == [session.id.as_str()], "{answer}");
    let document = answer.json()?;
    ensure!(document["path"] == "/echo/me" && document["query"] == "x=1", "{answer}");

    // It is refreshed before it expires; the old access token stays good until then, the old refresh token for a moment.
    let refreshed = Session::from(&d.refresh(&session.refresh, "phone")?.expect(200)?)?;
    ensure!(refreshed.id == session.id, "a refresh keeps the session");
    ensure!(refreshed.refresh != session.refresh && refreshed.access != session.access, "and changes both tokens");
    ensure!(d.is_let_in(&refreshed.access)? && d.is_let_in(&session.access)?, "both access tokens are good");

    // The user looks at the devices.
    let list = own_sessions(d, &refreshed)?;
    ensure!(list.len() == 1, "{list:?}");
    let row = list.first().context("a row")?;
    ensure!(row["session_id"] == session.id.as_str() && row["current"] == true, "{row}");
    ensure!(row["device_info"] == json!({ "name": "Ada's phone" }), "{row}");
    let created = row["created_at"].as_str().context("created_at")?;
    ensure!(created.len() == "2026-01-31T12:00:00.000000".len() && created.as_bytes().get(10) == Some(&b'T'), "{row}");

    // And logs out: the browser forgets everything, every token of the session is dead.
    let answer = d.delete("/v1/sessions/current").bearer(&refreshed.access).send()?.expect(204)?;
    let cleared = answer.header("clear-site-data").unwrap_or_default();
    for what in ["\"cache\"", "\"cookies\"", "\"storage\""] {
        ensure!(cleared.contains(what), "Clear-Site-Data: {cleared}");
    }
    for token in [&session.access, &refreshed.access] {
        d.get("/echo/account/me").bearer(token).send()?.problem(401, "session_ended")?;
    }
    d.refresh(&refreshed.refresh, "phone")?.problem(401, "invalid_refresh_token")?;
    Ok(())
}

fn a_user_sees_own_devices_and_ends_one(d: &Deployment) -> Result<()> {
    let phone = d.login_with(&json!({ "user_id": "bea", "device_info": { "name": "phone" } }))?;
    // Who came first is known to the millisecond.
    thread::sleep(Duration::from_millis(5));
    let laptop = d.login_with(&json!({ "user_id": "bea", "device_info": { "name": "laptop" } }))?;
    let list = own_sessions(d, &laptop)?;
    let shown: Vec<(&str, bool)> =
        list.iter().filter_map(|row| Some((row["device_info"]["name"].as_str()?, row["current"].as_bool()?))).collect();
    ensure!(shown == [("phone", false), ("laptop", true)], "oldest first: {list:?}");

    d.delete(&format!("/v1/sessions/{}", phone.id)).bearer(&laptop.access).send()?.expect(204)?;
    ensure!(!d.is_let_in(&phone.access)?, "the phone is out");
    ensure!(d.is_let_in(&laptop.access)?, "the laptop is not");
    ensure!(own_sessions(d, &laptop)?.len() == 1, "and stands alone in the list");
    Ok(())
}

fn a_user_ends_all_other_sessions(d: &Deployment) -> Result<()> {
    let old = [d.login("cai")?, d.login("cai")?];
    let current = d.login("cai")?;
    d.delete("/v1/sessions").bearer(&current.access).send()?.problem(400, "bad_request")?;
    d.delete("/v1/sessions?except=current").bearer(&current.access).send()?.expect(204)?;
    for session in &old {
        ensure!(!d.is_let_in(&session.access)?, "an older session still gets in");
        d.refresh(&session.refresh, "")?.problem(401, "invalid_refresh_token")?;
    }
    ensure!(d.is_let_in(&current.access)?, "the current session was ended too");
    Ok(())
}

fn ending_an_unknown_id_is_no_error(d: &Deployment) -> Result<()> {
    let session = d.login("dov")?;
    for id in ["7f2c1d1e-5b0a-4c3f-9d57-8f5f6d3a1b20", "not-an-id", "%2F..%2F"] {
        d.delete(&format!("/v1/sessions/{id}")).bearer(&session.access).send()?.expect(204)?;
    }
    ensure!(d.is_let_in(&session.access)?, "nothing was ended");
    Ok(())
}

fn nobody_ends_the_session_of_someone_else(d: &Deployment) -> Result<()> {
    let (eve, mallory) = (d.login("eve")?, d.login("mallory")?);
    // The same answer as for an id that never was: nothing is told about others.
    d.delete(&format!("/v1/sessions/{}", eve.id)).bearer(&mallory.access).send()?.expect(204)?;
    ensure!(d.is_let_in(&eve.access)?, "a stranger ended the session");
    Session::from(&d.refresh(&eve.refresh, "")?.expect(200)?)?;
    Ok(())
}

fn the_service_lists_and_revokes_all_of_a_user(d: &Deployment) -> Result<()> {
    // A name that has to be encoded in a path, and holds a slash.
    let (user, path) = ("org/fay ö", "/v1/users/org%2Ffay%20%C3%B6/sessions");
    let sessions = [d.login(user)?, d.login(user)?];
    let other = d.login("gil")?;
    let list = d.service("GET", path).send()?.expect(200)?.json()?;
    let ids: Vec<&str> = list["sessions"].as_array().context("sessions")?.iter().filter_map(id_of).collect();
    ensure!(ids == [sessions[0].id.as_str(), sessions[1].id.as_str()], "{list}");

    d.request("GET", path).send()?.problem(401, "missing_credential")?;
    d.request("DELETE", path).bearer(&sessions[0].access).send()?.problem(401, "invalid_token")?;
    ensure!(d.is_let_in(&sessions[0].access)?, "only the service may do that");

    d.service("DELETE", path).send()?.expect(204)?;
    for session in &sessions {
        ensure!(!d.is_let_in(&session.access)?, "a session outlived revoke all");
        d.refresh(&session.refresh, "")?.problem(401, "invalid_refresh_token")?;
    }
    let list = d.service("GET", path).send()?.expect(200)?.json()?;
    ensure!(list["sessions"] == json!([]), "{list}");
    ensure!(d.is_let_in(&other.access)?, "another user was hit");
    // A later session of the same user lives.
    ensure!(d.is_let_in(&d.login(user)?.access)?, "the user is locked out for good");
    Ok(())
}

fn an_integer_and_its_text_are_one_user(d: &Deployment) -> Result<()> {
    let big = "123456789012345678901234567890123456789";
    let number: Value = serde_json::from_str(big)?;
    let as_number = d.login_with(&json!({ "user_id": number }))?;
    let as_text = d.login(big)?;
    ensure!(Forged::from(&as_number.access)?.claims["sub"] == big, "the number went through a float");
    let list = d.service("GET", &format!("/v1/users/{big}/sessions")).send()?.expect(200)?.json()?;
    ensure!(list["sessions"].as_array().is_some_and(|list| list.len() == 2), "{list}");
    let shard = |session: &Session| -> Result<Vec<String>> {
        d.get("/echo/x").bearer(&session.access).send()?.expect(200)?.echoed("x-edgekeep-shard")
    };
    ensure!(shard(&as_number)? == shard(&as_text)?, "and is on one shard");
    Ok(())
}

fn an_access_token_can_be_given_a_shorter_life(d: &Deployment) -> Result<()> {
    let session = d.login_with(&json!({ "user_id": "hal", "access_ttl": 1 }))?;
    ensure!(session.expires_in == 1, "{}", session.expires_in);
    thread::sleep(Duration::from_millis(2100));
    for path in ["/echo/token/x", "/echo/x", "/echo/account/x", "/echo/optional/x"] {
        d.get(path).bearer(&session.access).send()?.problem(401, "expired_token")?;
    }
    // The session itself lives on: it is refreshed, for as short a time.
    let refreshed = Session::from(&d.refresh(&session.refresh, "")?.expect(200)?)?;
    ensure!(refreshed.expires_in == 1, "{}", refreshed.expires_in);
    Ok(())
}

fn the_oldest_session_makes_room_for_one_too_many(d: &Deployment) -> Result<()> {
    // session.max_per_user = 3, session.on_max = "evict_oldest"
    let first = d.login("ida")?;
    thread::sleep(Duration::from_millis(5));
    let rest = [d.login("ida")?, d.login("ida")?, d.login("ida")?];
    ensure!(!d.is_let_in(&first.access)?, "the first of four still lives");
    for session in &rest {
        ensure!(d.is_let_in(&session.access)?, "a newer one was ended");
    }
    Ok(())
}

fn concurrent_logins_never_exceed_the_maximum(d: &Deployment) -> Result<()> {
    // session.max_per_user = 3, session.on_max = "refuse"
    const MOST: usize = 3;
    let gateways = d.gateways()?;
    for round in 0..5 {
        let user = format!("full-{round}");
        let log_in = |at: usize| -> Result<Option<Session>> {
            let answer = d.create(&json!({ "user_id": user })).at(gateways[at % gateways.len()].entry).send()?;
            if answer.status == 409 {
                return answer.problem(409, "too_many_sessions").map(|_| None);
            }
            let answer = answer.expect(201)?;
            d.note_secrets(&answer);
            Session::from(&answer).map(Some)
        };
        let together = Barrier::new(16);
        let answers: Vec<_> = thread::scope(|scope| {
            let client = |at: usize| {
                let (together, log_in) = (&together, &log_in);
                scope.spawn(move || {
                    together.wait();
                    log_in(at)
                })
            };
            let clients: Vec<_> = (0..16).map(client).collect();
            clients.into_iter().map(|client| client.join().unwrap_or_else(|_| bail!("a client broke"))).collect()
        });
        let made: Vec<Session> = answers.into_iter().filter_map(Result::transpose).collect::<Result<_>>()?;
        ensure!(made.len() == MOST, "{} logins were let in at once", made.len());
        let (first, others) = made.split_first().context("a session")?;
        for session in &made {
            ensure!(d.is_let_in(&session.access)?, "who was there before had to go");
        }
        ensure!(own_sessions(d, first)?.len() == MOST, "the list");
        // One that ends makes room for one.
        for session in others {
            d.delete("/v1/sessions/current").bearer(&session.access).send()?.expect(204)?;
            ensure!(log_in(round)?.is_some(), "there is room");
            ensure!(log_in(round + 1)?.is_none(), "there is none");
        }
        ensure!(own_sessions(d, first)?.len() == MOST, "the list");
    }
    Ok(())
}

fn the_near_cache_counts_what_it_keeps(d: &Deployment) -> Result<()> {
    let figure = |what: &str| d.metric(&format!("edgekeep_near_cache_{what}"), None);
    let most = f64::from(NEAR_CACHE);
    ensure!(figure("capacity")? == most, "session.near_cache");
    ensure!(figure("sessions")? == 0.0, "sessions before anybody came");
    let use_one = |number: u32| -> Result<Session> {
        let session = d.login(&format!("near-{number}"))?;
        for _ in 0..3 {
            d.get("/echo/x").bearer(&session.access).send()?.expect(200)?;
        }
        Ok(session)
    };
    let half = NEAR_CACHE / 2;
    let sessions = (0..half).map(use_one).collect::<Result<Vec<_>>>()?;
    ensure!(figure("sessions")? == f64::from(half), "{} for {half} sessions", figure("sessions")?);
    ensure!(figure("bytes")? > 0.0, "of no size");
    let ended = sessions.first().context("a session")?;
    d.delete("/v1/sessions/current").bearer(&ended.access).send()?.expect(204)?;
    ensure!(figure("sessions")? == f64::from(half - 1), "{} without one", figure("sessions")?);
    // Many more than it may keep: some make room, and all get in.
    for number in half..NEAR_CACHE * 3 {
        use_one(number)?;
        let kept = figure("sessions")?;
        ensure!((f64::from(half - 1)..=most).contains(&kept), "{kept} of at most {most}");
    }
    for session in sessions.iter().skip(1) {
        d.get("/echo/x").bearer(&session.access).send()?.expect(200)?;
    }
    Ok(())
}

fn public_keys_are_published_and_nothing_else(d: &Deployment) -> Result<()> {
    let answer = d.get("/.well-known/jwks.json").send()?.expect(200)?;
    ensure!(answer.header("content-type") == Some("application/jwk-set+json"), "{answer}");
    ensure!(answer.header("cache-control").is_some_and(|value| value.contains("max-age=")), "{answer}");
    let keys = answer.json()?;
    let keys = keys["keys"].as_array().context("keys")?;
    let own = d.access_key()?;
    ensure!(keys.iter().any(|key| key["kid"] == own.kid.as_str() && key["kty"] == "OKP"), "{answer}");
    for key in keys {
        for private in ["d", "k", "p", "q"] {
            ensure!(key.get(private).is_none(), "a private member is published: {answer}");
        }
    }
    Ok(())
}

fn own_sessions(d: &Deployment, session: &Session) -> Result<Vec<Value>> {
    let answer = d.get("/v1/sessions").bearer(&session.access).send()?.expect(200)?;
    ensure!(answer.header("cache-control") == Some("no-store"), "{answer}");
    Ok(answer.json()?["sessions"].as_array().context("sessions")?.clone())
}

fn id_of(row: &Value) -> Option<&str> {
    row["session_id"].as_str()
}
