//! Existing OAuth clients: the refresh grant (RFC 6749 §6), revocation (RFC 7009), introspection (RFC 7662).

use anyhow::{Result, ensure};
use edgekeep_tests::{Answer, Deployment, Request, fresh_address};
use serde_json::json;

use crate::scenario::Scenario;

pub fn scenarios() -> Vec<Scenario> {
    crate::shared![
        the_refresh_grant,
        a_bad_grant_is_answered_in_oauths_words,
        either_token_can_be_revoked,
        introspection_tells_the_service_what_a_token_is,
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
    error(&json, 415, "invalid_request")?;
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
