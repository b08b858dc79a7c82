//! What an origin is told, and what it must never hear.

use anyhow::{Context, Result, ensure};
use edgekeep_tests::{Answer, Deployment, Forged, Kind, TRUSTED_PROXY, fresh_address};
use serde_json::json;

use crate::scenario::Scenario;

/// All of Edgekeep's own headers that an origin may see on these routes.
const OWN: [&str; 4] = ["x-edgekeep-user", "x-edgekeep-session", "x-edgekeep-shard", "x-edgekeep-shard-epoch"];

pub fn scenarios() -> Vec<Scenario> {
    crate::shared![
        spoofed_identity_headers_never_reach_an_origin,
        naming_an_identity_header_in_connection_takes_nothing_away,
        hop_by_hop_headers_end_here,
        the_access_token_stays_here_unless_the_route_passes_it,
        an_open_route_passes_other_tokens_and_keeps_ours,
        an_origin_is_told_who_the_client_is,
        a_client_cannot_claim_to_be_another,
        a_trusted_proxys_word_is_believed,
        every_request_has_an_id_and_a_trace,
        other_headers_pass_both_ways,
    ]
}

fn spoofed_identity_headers_never_reach_an_origin(d: &Deployment) -> Result<()> {
    let session = d.login("honest-user")?;
    let spoofed = [
        ("x-edgekeep-user", "admin"),
        ("X-Edgekeep-User", "root"),
        ("X-EDGEKEEP-SESSION", "00000000-0000-4000-8000-000000000000"),
        ("x-edgekeep-shard", "shard_9"),
        ("x-edgekeep-shard-epoch", "99"),
        ("x-edgekeep-shard-next", "shard_9"),
        ("x-edgekeep-shard-previous", "shard_9"),
        ("x-edgekeep-signature", "t=1,v1=00"),
        ("x-edgekeep-sequence", "1"),
        ("x-edgekeep-edge", "guess"),
        ("X-Edgekeep-Anything-Else", "1"),
        // An origin that speaks CGI reads these as the same names.
        ("x_edgekeep_user", "admin"),
        ("X-Edgekeep_Session", "1"),
        ("x_edgekeep-shard", "shard_9"),
    ];
    for path in ["/echo/open/x", "/echo/optional/x", "/echo/token/x", "/echo/x", "/echo/account/x"] {
        for with_token in [false, true] {
            let mut request = d.get(path);
            for (name, value) in spoofed {
                request = request.header(name, value);
            }
            if with_token {
                request = request.bearer(&session.access);
            } else if !path.contains("/open") && !path.contains("/optional") {
                request.send()?.problem(401, "missing_credential")?;
                continue;
            }
            let answer = request.send()?.expect(200)?;
            only_own(&answer)?;
            let known = with_token && path != "/echo/open/x";
            let (user, id) = if known { (vec!["honest-user"], vec![session.id.as_str()]) } else { (vec![], vec![]) };
            ensure!(answer.echoed("x-edgekeep-user")? == user, "{answer}");
            ensure!(answer.echoed("x-edgekeep-session")? == id, "{answer}");
            ensure!(answer.echoed("x-edgekeep-shard-epoch")?.iter().all(|epoch| epoch == "1"), "{answer}");
            let shard = answer.echoed("x-edgekeep-shard")?;
            ensure!(shard.len() == 1 && shard.iter().all(|shard| shard == "shard_0" || shard == "shard_1"), "{answer}");
        }
    }
    Ok(())
}

fn only_own(answer: &Answer) -> Result<()> {
    for name in answer.echoed_names()? {
        ensure!(
            !name.replace('_', "-").starts_with("x-edgekeep-") || OWN.contains(&name.as_str()),
            "{name} reached the origin: {answer}"
        );
    }
    Ok(())
}

fn naming_an_identity_header_in_connection_takes_nothing_away(d: &Deployment) -> Result<()> {
    let session = d.login("named")?;
    let named = "close, x-edgekeep-user, x-edgekeep-session, x-forwarded-for, x-edgekeep-shard";
    let answer = d.get("/echo/x").bearer(&session.access).header("connection", named).send()?.expect(200)?;
    ensure!(answer.echoed("x-edgekeep-user")? == ["named"], "{answer}");
    ensure!(answer.echoed("x-edgekeep-session")? == [session.id.as_str()], "{answer}");
    ensure!(answer.echoed("x-edgekeep-shard")?.len() == 1 && answer.echoed("x-forwarded-for")?.len() == 1, "{answer}");
    Ok(())
}

fn hop_by_hop_headers_end_here(d: &Deployment) -> Result<()> {
    let request = d
        .get("/echo/open/x")
        .header("connection", "close, x-for-this-hop")
        .header("x-for-this-hop", "1")
        .header("keep-alive", "timeout=5")
        .header("te", "gzip")
        .header("proxy-connection", "keep-alive")
        .header("proxy-authorization", "Basic YTpi")
        .header("proxy-authenticate", "Basic")
        .header("upgrade", "h2c")
        .header("x-for-the-origin", "1");
    let answer = request.send()?.expect(200)?;
    let ended = ["x-for-this-hop", "connection", "keep-alive", "te", "upgrade", "transfer-encoding"];
    for name in ended.into_iter().chain(["proxy-connection", "proxy-authorization", "proxy-authenticate"]) {
        ensure!(answer.echoed(name)?.is_empty(), "{name} reached the origin: {answer}");
    }
    ensure!(answer.echoed("x-for-the-origin")? == ["1"], "{answer}");
    Ok(())
}

fn the_access_token_stays_here_unless_the_route_passes_it(d: &Deployment) -> Result<()> {
    let session = d.login("bearer")?;
    let token = format!("Bearer {}", session.access);
    for path in ["/echo/x", "/echo/token/x", "/echo/optional/x"] {
        let answer = d.get(path).bearer(&session.access).send()?.expect(200)?;
        ensure!(answer.echoed("authorization")?.is_empty(), "the token reached the origin: {answer}");
    }
    let answer = d.get("/echo/account/x").bearer(&session.access).send()?.expect(200)?;
    ensure!(answer.echoed("authorization")? == [token.as_str()], "pass_token: {answer}");
    Ok(())
}

fn an_open_route_passes_other_tokens_and_keeps_ours(d: &Deployment) -> Result<()> {
    let session = d.login("open")?;
    for (value, passes) in [("Bearer of-another-api", true), ("Basic YTpi", true)] {
        let answer = d.get("/echo/open/x").header("authorization", value).send()?.expect(200)?;
        ensure!(answer.echoed("authorization")?.is_empty() != passes, "{value}: {answer}");
    }
    let answer = d.get("/echo/open/x").bearer(&session.access).send()?.expect(200)?;
    ensure!(answer.echoed("authorization")?.is_empty(), "our token reached the origin: {answer}");
    let expired = Forged::from(&session.access)?.claim("iat", json!(1)).claim("exp", json!(2)).signed(&d.access_key()?);
    let answer = d.get("/echo/open/x").bearer(&expired).send()?.expect(200)?;
    ensure!(answer.echoed("authorization")?.is_empty(), "our expired token reached the origin: {answer}");
    Ok(())
}

fn an_origin_is_told_who_the_client_is(d: &Deployment) -> Result<()> {
    let client = fresh_address();
    let answer = d.get("/echo/open/x").from(client).host("app.example").send()?.expect(200)?;
    ensure!(answer.echoed("x-forwarded-for")? == [client.to_string()], "{answer}");
    ensure!(answer.echoed("x-forwarded-proto")? == ["http"], "{answer}");
    ensure!(answer.echoed("x-forwarded-host")? == ["app.example"], "{answer}");
    let forwarded = answer.echoed("forwarded")?;
    let forwarded = forwarded.first().context("no Forwarded")?;
    ensure!(forwarded.contains(&format!("for={client}")) && forwarded.contains("host=\"app.example\""), "{answer}");
    match d.kind {
        Kind::NativeEmbedded | Kind::NativeRedis => ensure!(answer.echoed("host")? == ["app.example"], "{answer}"),
        // A Worker's fetch always names the host of the URL (docs/parity.md).
        Kind::EdgeBesideRegion => {
            let host = answer.echoed("host")?;
            ensure!(host.iter().all(|host| host.starts_with("127.0.0.1:")), "{answer}");
        }
    }
    Ok(())
}

fn a_client_cannot_claim_to_be_another(d: &Deployment) -> Result<()> {
    let client = fresh_address();
    let request = d
        .get("/echo/open/x")
        .from(client)
        .header("x-forwarded-for", "10.0.0.1")
        .header("x-forwarded-proto", "https")
        .header("x-forwarded-host", "bank.example")
        .header("forwarded", "for=10.0.0.1;host=bank.example;proto=https");
    let answer = request.send()?.expect(200)?;
    ensure!(answer.echoed("x-forwarded-for")? == [client.to_string()], "{answer}");
    ensure!(answer.echoed("x-forwarded-proto")? == ["http"], "{answer}");
    for name in ["x-forwarded-host", "forwarded"] {
        ensure!(answer.echoed(name)?.iter().all(|value| !value.contains("bank")), "{name}: {answer}");
        ensure!(answer.echoed(name)?.iter().all(|value| !value.contains("10.0.0.1")), "{name}: {answer}");
    }
    Ok(())
}

fn a_trusted_proxys_word_is_believed(d: &Deployment) -> Result<()> {
    let request = d
        .get("/echo/open/x")
        .from(TRUSTED_PROXY)
        .header("x-forwarded-for", "203.0.113.7")
        .header("x-forwarded-proto", "https")
        .header("x-forwarded-host", "app.example");
    let answer = request.send()?.expect(200)?;
    let hops = answer.echoed("x-forwarded-for")?.join(", ");
    ensure!(hops == format!("203.0.113.7, {TRUSTED_PROXY}"), "the list goes on: {answer}");
    ensure!(answer.echoed("x-forwarded-proto")? == ["https"], "{answer}");
    ensure!(answer.echoed("x-forwarded-host")? == ["app.example"], "{answer}");
    Ok(())
}

fn every_request_has_an_id_and_a_trace(d: &Deployment) -> Result<()> {
    let first = d.get("/echo/open/x").send()?.expect(200)?;
    let second = d.get("/echo/open/x").send()?.expect(200)?;
    for name in ["x-request-id", "traceparent"] {
        ensure!(first.echoed(name)?.len() == 1 && first.echoed(name)? != second.echoed(name)?, "{name}: {first}");
    }
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let request = d.get("/echo/open/x").header("traceparent", &parent).header("x-request-id", "from-the-client-1");
    let answer = request.send()?.expect(200)?;
    let passed = answer.echoed("traceparent")?;
    ensure!(passed.len() == 1 && passed.iter().all(|value| value.contains(trace)), "the trace goes on: {answer}");
    Ok(())
}

fn other_headers_pass_both_ways(d: &Deployment) -> Result<()> {
    let session = d.login("headers")?;
    let request = d
        .get("/echo/x")
        .bearer(&session.access)
        .header("accept-language", "mi, en;q=0.5")
        .header("x-custom", "one")
        .header("x-custom", "two")
        .header("cache-control", "max-age=0")
        .header("if-none-match", "\"abc\"");
    let answer = request.send()?.expect(200)?;
    ensure!(answer.echoed("accept-language")? == ["mi, en;q=0.5"], "{answer}");
    // One line or two mean the same (RFC 9110 §5.3).
    ensure!(answer.echoed("x-custom")?.join(", ") == "one, two", "{answer}");
    ensure!(answer.echoed("if-none-match")? == ["\"abc\""], "{answer}");
    ensure!(answer.echoed("cache-control")? == ["max-age=0"], "{answer}");
    ensure!(answer.header("cache-control") == Some("no-store") && answer.origin().is_some(), "{answer}");
    Ok(())
}
