//! Existing OAuth clients: the refresh grant (RFC 6749 §6), revocation (RFC 7009), introspection (RFC 7662).

use anyhow::{Result, ensure};
use edgekeep_tests::{AccessKey, Answer, Deployment, Forged, Request, SERVICE_TOKEN, fresh_address};
use serde_json::json;

use crate::scenario::Scenario;

pub fn scenarios() -> Vec<Scenario> {
    crate::shared![
        the_refresh_grant,
        a_bad_grant_is_answered_in_oauths_words,
        either_token_can_be_revoked,
        introspection_tells_the_service_what_a_token_is,
        every_bad_token_gets_the_same_answer_byte_for_byte,
    ]
}

fn token(d: &Deployment, fields: &[(&str, &str)]) -> Request {
    d.post("/oauth/token").from(fresh_address()).form(fields)
}

/// RFC 6749 §5.2.
fn error(answer: &Answer, status: u16, code: &str) -> Result<()> {
    ensure!(answer.status == status, "expected {status} {code}: {answer}");
    ensure!(answer.header("content-type") == Some("application/json"), "{answer}");
    ensure!(answer.header("cache-control") == Some("no-store"), "{answer}");
    ensure!(answer.json()?["error"] == code, "expected {code}: {answer}");
    Ok(())
}

fn the_refresh_grant(d: &Deployment) -> Result<()> {
    let session = d.login("oauth")?;
    let answer =
        token(d, &[("grant_type", "refresh_token"), ("refresh_token", &session.refresh)]).send()?.expect(200)?;
    ensure!(answer.header("cache-control") == Some("no-store"), "{answer}");
    let body = answer.json()?;
    ensure!(body["token_type"] == "Bearer" && body["expires_in"].as_u64().is_some(), "{answer}");
    let mut members: Vec<&str> = body.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    members.sort_unstable();
    ensure!(members == ["access_token", "expires_in", "refresh_token", "token_type"], "{answer}");
    ensure!(d.is_let_in(body["access_token"].as_str().unwrap_or_default())?, "{answer}");
    let next = body["refresh_token"].as_str().unwrap_or_default();
    let fields = [("grant_type", "refresh_token"), ("refresh_token", next), ("client_id", "app")];
    token(d, &fields).send()?.expect(200)?;
    Ok(())
}

fn a_bad_grant_is_answered_in_oauths_words(d: &Deployment) -> Result<()> {
    let session = d.login_with(&json!({ "user_id": "oauth-bad", "client_id": "mobile" }))?;
    error(&token(d, &[("grant_type", "password"), ("username", "x")]).send()?, 400, "unsupported_grant_type")?;
    error(&token(d, &[("refresh_token", &session.refresh)]).send()?, 400, "invalid_request")?;
    error(&token(d, &[("grant_type", "refresh_token")]).send()?, 400, "invalid_request")?;
    let good = [("grant_type", "refresh_token"), ("refresh_token", session.refresh.as_str())];
    error(&token(d, &[good[0], ("refresh_token", "x")]).send()?, 400, "invalid_grant")?;
    error(&token(d, &[good[0], good[1], good[1]]).send()?, 400, "invalid_request")?;
    error(&token(d, &[good[0], good[1], ("client_id", "web")]).send()?, 400, "invalid_grant")?;
    let json = d.post("/oauth/token").from(fresh_address()).json(&json!({ "grant_type": "refresh_token" })).send()?;
    error(&json, 400, "invalid_request")?;
    error(&token(d, &[good[0], good[1], ("scope", "openid")]).send()?, 400, "invalid_scope")?;
    error(&token(d, &[good[0], good[1], ("client_secret", "x")]).send()?, 401, "invalid_client")?;
    let named = token(d, &[good[0], good[1]]).basic("mobile", "x").send()?;
    ensure!(named.header("www-authenticate") == Some("Basic realm=\"edgekeep\""), "{named}");
    error(&named, 401, "invalid_client")?;
    let get = d.get("/oauth/token").send()?;
    ensure!(get.header("allow") == Some("POST"), "{get}");
    error(&get, 405, "invalid_request")?;
    // None of that used the token up.
    token(d, &[good[0], good[1], ("client_id", "mobile")]).send()?.expect(200)?;
    Ok(())
}

fn either_token_can_be_revoked(d: &Deployment) -> Result<()> {
    for by_refresh in [false, true] {
        let session = d.login("oauth-revoke")?;
        let (token, hint) =
            if by_refresh { (&session.refresh, "refresh_token") } else { (&session.access, "access_token") };
        let revoke = || d.post("/oauth/revoke").form(&[("token", token), ("token_type_hint", hint)]).send();
        revoke()?.expect(200)?;
        ensure!(!d.is_let_in(&session.access)?, "{hint}: still let in");
        d.refresh(&session.refresh, "")?.problem(401, "invalid_refresh_token")?;
        // A dead, an unknown and a broken token get the same answer.
        revoke()?.expect(200)?;
    }
    for token in ["x", "a.b.c"] {
        d.post("/oauth/revoke").form(&[("token", token)]).send()?.expect(200)?;
    }
    error(&d.post("/oauth/revoke").form(&[("x", "y")]).send()?, 400, "invalid_request")
}

fn introspection_tells_the_service_what_a_token_is(d: &Deployment) -> Result<()> {
    let session = d.login("introspected")?;
    let ask = |token: &str| d.service("POST", "/oauth/introspect").form(&[("token", token)]).send()?.expect(200);
    let access = ask(&session.access)?.json()?;
    for (name, value) in [("sub", "introspected"), ("iss", "edgekeep"), ("aud", "app"), ("client_id", "app")] {
        ensure!(access[name] == value, "{name}: {access}");
    }
    ensure!(access["active"] == true && access["sid"] == session.id.as_str(), "{access}");
    ensure!(access["exp"].as_u64() > access["iat"].as_u64(), "{access}");
    let refresh = ask(&session.refresh)?.json()?;
    ensure!(refresh["active"] == true && refresh["sub"] == "introspected", "{refresh}");
    // Nobody takes it for an access token.
    ensure!(refresh.get("token_type").is_none() && refresh["token_use"] == "refresh_token", "{refresh}");
    let as_client = d.post("/oauth/introspect").basic("api", SERVICE_TOKEN).form(&[("token", &session.access)]);
    ensure!(as_client.send()?.expect(200)?.json()?["active"] == true, "the credential as a client's secret");
    let inactive = json!({ "active": false });
    for token in ["x", "a.b.c", ""] {
        let answer = d.service("POST", "/oauth/introspect").form(&[("token", token)]).send()?;
        ensure!(answer.status == 400 || answer.json()? == inactive, "{answer}");
    }
    let next = d.refresh(&session.refresh, "")?.expect(200)?.json()?;
    ensure!(ask(&session.refresh)?.json()? == inactive, "a superseded refresh token");
    d.delete("/v1/sessions/current").bearer(&session.access).send()?.expect(204)?;
    ensure!(ask(&session.access)?.json()? == inactive, "an ended session's access token");
    ensure!(ask(next["refresh_token"].as_str().unwrap_or_default())?.json()? == inactive, "and its refresh token");
    // A token says nothing to those who may not ask.
    let other = d.login("introspected-2")?;
    for request in [d.post("/oauth/introspect"), d.post("/oauth/introspect").bearer(&other.access)] {
        let answer = request.form(&[("token", &other.access)]).send()?;
        error(&answer, 401, "invalid_client")?;
        ensure!(answer.header("www-authenticate").is_some(), "{answer}");
    }
    Ok(())
}

/// Ended, unknown, malformed, somebody else's: a token that is not good says nothing about itself, whoever asks.
fn every_bad_token_gets_the_same_answer_byte_for_byte(d: &Deployment) -> Result<()> {
    let (ended, other) =
        (d.login("same-ended")?, d.login_with(&json!({ "user_id": "same-other", "client_id": "web" }))?);
    d.service("DELETE", "/v1/users/same-ended/sessions").send()?.expect(204)?;
    let forged = Forged::from(&other.access)?;
    let unknown = forged.clone().claim("sid", json!("0b8f7e1c-27a5-4f0e-9d3c-5a1b2c3d4567")).signed(&d.access_key()?);
    let foreign = forged.signed(&AccessKey::of_a_stranger());
    let tampered = format!("{}AAAAA", other.refresh.get(..46).unwrap_or_default());
    let bad = [&ended.access, &ended.refresh, &unknown, &foreign, &tampered, "rubbish", "a.b.c"];

    let grant = |token: &str| {
        self::token(d, &[("grant_type", "refresh_token"), ("refresh_token", token), ("client_id", "app")]).send()
    };
    let revoke = |token: &str| d.post("/oauth/revoke").form(&[("token", token), ("client_id", "app")]).send();
    let introspect = |token: &str| d.service("POST", "/oauth/introspect").form(&[("token", token)]).send();
    let same = |what: &str, ask: &dyn Fn(&str) -> Result<Answer>, more: &[&str]| -> Result<Answer> {
        let first = ask("rubbish")?;
        for token in bad.iter().chain(more) {
            let answer = ask(token)?;
            ensure!(telling(&answer) == telling(&first), "{what}: {answer}\nis told apart from {first}");
        }
        Ok(first)
    };
    // Another client's token is as bad as any.
    error(&same("token", &grant, &[&other.refresh])?, 400, "invalid_grant")?;
    let revoked = same("revoke", &revoke, &[&other.refresh, &other.access])?.expect(200)?;
    ensure!(d.is_let_in(&other.access)?, "revoked by a client that is not its own");
    let inactive = same("introspect", &introspect, &[])?.expect(200)?;
    ensure!(inactive.body == br#"{"active":false}"#, "{inactive}");
    // A good token is revoked without another word.
    let own = d.post("/oauth/revoke").form(&[("token", other.refresh.as_str()), ("client_id", "web")]).send()?;
    ensure!(telling(&own) == telling(&revoked), "{own}\nis told apart from {revoked}");
    ensure!(!d.is_let_in(&other.access)?, "still let in");
    Ok(())
}

/// All of an answer but what differs between any two of them.
fn telling(answer: &Answer) -> (u16, Vec<(String, String)>, Vec<u8>) {
    let varies = |name: &str| ["date", "x-request-id", "cf-ray"].contains(&name);
    let lines = answer.head().iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
    let mut headers: Vec<_> = lines.filter(|(name, _)| !varies(name)).collect();
    headers.sort();
    (answer.status, headers, answer.body.clone())
}
