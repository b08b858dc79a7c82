//! Forward-auth: a proxy in front asks whether a request may pass, and takes the identity from the answer.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use edgekeep_tests::{Answer, Deployment, Request, TRUSTED_PROXY};
use serde_json::json;

use crate::scenario::Scenario;

const IDENTITY: [&str; 4] = ["x-edgekeep-user", "x-edgekeep-session", "x-edgekeep-shard", "x-edgekeep-shard-epoch"];

pub fn scenarios() -> Vec<Scenario> {
    crate::shared![
        a_trusted_proxy_gets_the_routes_answer,
        every_answer_carries_all_identity_headers,
        an_ended_session_is_seen_at_once_on_a_strict_route,
        an_ambiguous_original_path_is_refused,
        envoy_puts_the_path_below,
        an_untrusted_caller_cannot_choose_the_route,
        cross_site_requests_are_judged_by_the_original,
        every_method_asks_the_same,
    ]
}

fn ask(d: &Deployment, method: &str, uri: &str) -> Request {
    let request = d.get("/v1/authorize").from(TRUSTED_PROXY);
    request
        .header("x-forwarded-method", method)
        .header("x-forwarded-uri", uri)
        .header("x-forwarded-host", "app.example")
}

/// What else a client could spoof: it is always there too, and empty where a route says nothing of it.
const OTHERS: [&str; 3] = ["x-edgekeep-shard-next", "x-edgekeep-shard-previous", "x-edgekeep-signature"];

/// The identity headers, each of which is always there.
fn identity(answer: &Answer) -> Result<[String; 4]> {
    let mut values = [String::new(), String::new(), String::new(), String::new()];
    for (value, name) in values.iter_mut().zip(IDENTITY) {
        let all: Vec<&str> = answer.headers(name).collect();
        ensure!(all.len() == 1, "{name} is {all:?} in {answer}");
        *value = all.first().context("one")?.to_string();
    }
    for name in OTHERS {
        ensure!(answer.headers(name).eq([""]), "{name} in {answer}");
    }
    Ok(values)
}

fn a_trusted_proxy_gets_the_routes_answer(d: &Deployment) -> Result<()> {
    let session = d.login("forwarded")?;
    for uri in ["/echo/x?y=1", "/echo/token/x", "/echo/account/x", "/echo/optional/x"] {
        let answer = ask(d, "GET", uri).bearer(&session.access).send()?.expect(200)?;
        let [user, id, shard, epoch] = identity(&answer)?;
        ensure!(user == "forwarded" && id == session.id, "{answer}");
        ensure!(shard.starts_with("shard_") && epoch == "1", "{answer}");
    }
    for uri in ["/echo/x", "/echo/token/x", "/echo/account/x"] {
        let answer = ask(d, "GET", uri).send()?;
        answer.problem(401, "missing_credential")?;
        identity(&answer)?;
        ask(d, "GET", uri).bearer("a.b.c").send()?.problem(401, "invalid_token")?;
    }
    for uri in ["/echo/open/x", "/echo/optional/x", "/somewhere"] {
        let answer = ask(d, "GET", uri).send()?.expect(200)?;
        ensure!(identity(&answer)? == ["", "", "", ""], "{answer}");
    }
    // nginx names them so.
    let nginx = d.get("/v1/authorize").from(TRUSTED_PROXY).header("x-original-method", "GET");
    nginx.header("x-original-uri", "/echo/x").send()?.problem(401, "missing_credential")?;
    Ok(())
}

fn every_answer_carries_all_identity_headers(d: &Deployment) -> Result<()> {
    // So that none that a client sent survives the proxy's copy.
    let spoofed = |request: Request| {
        IDENTITY.into_iter().chain(OTHERS).fold(request, |request, name| request.header(name, "admin"))
    };
    for request in [
        ask(d, "GET", "/echo/x"),
        ask(d, "GET", "/echo/open/x"),
        ask(d, "GET", "//account"),
        ask(d, "GET", "/echo/x").bearer("a.b.c"),
        d.get("/v1/authorize"),
    ] {
        let answer = spoofed(request).send()?;
        ensure!(identity(&answer)? == ["", "", "", ""], "{answer}");
    }
    Ok(())
}

fn an_ended_session_is_seen_at_once_on_a_strict_route(d: &Deployment) -> Result<()> {
    let session = d.login("forwarded-end")?;
    ask(d, "GET", "/account/x").bearer(&session.access).send()?.expect(200)?;
    d.delete("/v1/sessions/current").bearer(&session.access).send()?.expect(204)?;
    ask(d, "GET", "/account/x").bearer(&session.access).send()?.problem(401, "session_ended")?;
    Ok(())
}

fn an_ambiguous_original_path_is_refused(d: &Deployment) -> Result<()> {
    for uri in ["//account", "/a/../account", "/account%2fx", "/a/%2e%2e/account/x", "/%2561ccount/x"] {
        ask(d, "GET", uri).send()?.problem(400, "bad_path")?;
    }
    ask(d, "GET", "/%61ccount/x").send()?.problem(401, "missing_credential")?;
    Ok(())
}

fn envoy_puts_the_path_below(d: &Deployment) -> Result<()> {
    let session = d.login("envoy")?;
    let below = |path: &str| d.get(&format!("/v1/authorize{path}")).from(TRUSTED_PROXY);
    below("/echo/x").send()?.problem(401, "missing_credential")?;
    below("/echo/open/x").send()?.expect(200)?;
    let answer = below("/echo/account/x?y=1").bearer(&session.access).send()?.expect(200)?;
    ensure!(identity(&answer)?.first().is_some_and(|user| user == "envoy"), "{answer}");
    below("//account").send()?.problem(400, "bad_path")?;
    Ok(())
}

fn an_untrusted_caller_cannot_choose_the_route(d: &Deployment) -> Result<()> {
    let stranger = Ipv4Addr::new(127, 0, 0, 77);
    let ask = || {
        let request = d.get("/v1/authorize").from(stranger).header("x-forwarded-uri", "/echo/open/x");
        request.header("x-forwarded-method", "GET").header("x-original-uri", "/echo/open/x")
    };
    // Its headers and the path below are not read: without a route the mode is `session`.
    ask().send()?.problem(401, "missing_credential")?;
    d.get("/v1/authorize/echo/open/x").from(stranger).send()?.problem(401, "missing_credential")?;
    let session = d.login("stranger")?;
    ask().bearer(&session.access).send()?.expect(200)?;
    Ok(())
}

fn cross_site_requests_are_judged_by_the_original(d: &Deployment) -> Result<()> {
    let answer = d.create(&json!({ "user_id": "forwarded-csrf" })).send()?.expect(201)?;
    let (access, _) = answer.set_cookie("__Host-edgekeep-at").context("a cookie")?;
    let jar = format!("__Host-edgekeep-at={access}");
    let with_cookie = |request: Request| request.header("cookie", &jar);
    with_cookie(ask(d, "GET", "/echo/x")).send()?.expect(200)?;
    let post = || with_cookie(ask(d, "POST", "/echo/x"));
    post().send()?.problem(403, "cross_site")?;
    post().header("sec-fetch-site", "cross-site").send()?.problem(403, "cross_site")?;
    post().header("sec-fetch-site", "same-origin").send()?.expect(200)?;
    // The original host is the one that the origin of the page is compared with.
    post().header("origin", "http://app.example").send()?.expect(200)?;
    post().header("origin", "http://evil.example").send()?.problem(403, "cross_site")?;
    // Without a method it counts as unsafe.
    let no_method = d.get("/v1/authorize").from(TRUSTED_PROXY).header("x-forwarded-uri", "/echo/x");
    with_cookie(no_method).send()?.problem(403, "cross_site")?;
    Ok(())
}

fn every_method_asks_the_same(d: &Deployment) -> Result<()> {
    let session = d.login("methods")?;
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        let request = d.request(method, "/v1/authorize").from(TRUSTED_PROXY).header("x-forwarded-uri", "/echo/x");
        let request = request.header("x-forwarded-method", method);
        request.bearer(&session.access).send()?.expect(200).context(method)?;
        let request = d.request(method, "/v1/authorize").from(TRUSTED_PROXY).header("x-forwarded-uri", "/echo/x");
        request.header("x-forwarded-method", method).send()?.problem(401, "missing_credential")?;
    }
    Ok(())
}
