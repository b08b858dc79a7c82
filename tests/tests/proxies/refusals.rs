//! What a proxy does not let through, however it is asked.

use anyhow::{Context, Result, ensure};
use base64::Engine;

use crate::stand::{HOST, Proxy, Stand};
use crate::witness::KEY;

pub fn without_a_credential_nothing_arrives(s: &Stand) -> Result<()> {
    for path in ["/x", "/", "/feed/x", "/account/x", "/account", "/publicly", "/v1/authorize", "/_edgekeep"] {
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"] {
            let answer = s.ask(method, path).go()?.refused(if path == "/_edgekeep" && s.kind == Proxy::Nginx {
                404
            } else {
                401
            })?;
            if answer.status == 401 {
                ensure!(answer.header("www-authenticate").is_some_and(|value| value.contains("edgekeep")), "{answer}");
            }
            // HAProxy and Envoy give Edgekeep's own answer, nginx has only its status.
            if s.kind != Proxy::Nginx && method == "GET" {
                ensure!(answer.json()?["code"] == "missing_credential", "{answer}");
            }
        }
    }
    for path in ["/x", "/shop/x", "/feed/x", "/account/x"] {
        for bad in ["a.b.c", "", "x", &"y".repeat(4000)] {
            if path == "/shop/x" && bad.is_empty() {
                continue;
            }
            s.get(path).bearer(bad).go()?.refused(401).with_context(|| format!("{path} with {bad:?}"))?;
        }
    }
    // Of two values one was planted.
    let session = s.login("twice")?;
    let twice = format!("__Host-edgekeep-at={}; __Host-edgekeep-at=other", session.access);
    s.get("/x").header("cookie", &twice).go()?.refused(401)?;
    s.get("/x").header("cookie", &twice.replace("; ", ";")).go()?.refused(401)?;
    s.get("/x").cookie(&session.access).cookie("other").go()?.refused(401)?;
    Ok(())
}

pub fn an_ended_session_is_refused_at_once(s: &Stand) -> Result<()> {
    let session = s.login("ended")?;
    // Known to the near cache, and its token to the cache of verified ones.
    for path in ["/x", "/account/x", "/feed/x", "/shop/x"] {
        s.get(path).bearer(&session.access).go()?.passed()?;
        s.get(path).cookie(&session.access).go()?.passed()?;
    }
    // Through the proxy itself, as a browser logs out.
    let out =
        s.ask("DELETE", "/v1/sessions/current").cookie(&session.access).header("sec-fetch-site", "same-origin").go()?;
    ensure!(out.answer.status == 204 && out.arrived.is_empty(), "{}", out.answer);
    for path in ["/account/x", "/x"] {
        s.get(path).bearer(&session.access).go()?.refused(401)?;
        s.get(path).cookie(&session.access).go()?.refused(401)?;
    }
    // A `token` and an `optional` route wait for the token's end.
    for path in ["/feed/x", "/shop/x"] {
        let arrived = s.get(path).bearer(&session.access).go()?.passed()?;
        ensure!(arrived.one("x-edgekeep-user")? == "ended", "{path}: {arrived:?}");
    }
    Ok(())
}

pub fn a_cross_site_request_with_cookies_is_refused(s: &Stand) -> Result<()> {
    let session = s.login("csrf")?;
    let ours = format!("http://{HOST}");
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        let ask = || s.ask(method, "/feed/x").cookie(&session.access);
        ask().go()?.refused(403).with_context(|| format!("{method} without a word of its site"))?;
        ask().header("sec-fetch-site", "cross-site").header("origin", &ours).go()?.refused(403)?;
        ask().header("sec-fetch-site", "same-site").go()?.refused(403)?;
        ask().header("origin", "http://evil.example").go()?.refused(403)?;
        ask().header("origin", "null").go()?.refused(403)?;
        ask().header("origin", &format!("https://{HOST}")).go()?.refused(403).context("another scheme")?;
        ask().header("sec-fetch-site", "same-origin").go()?.passed()?;
        let arrived = ask().header("origin", &ours).body(b"abc").go()?.passed()?;
        ensure!(arrived.method == method && arrived.body == 3, "{arrived:?}");
        // A token that another site cannot send.
        s.ask(method, "/feed/x").bearer(&session.access).header("sec-fetch-site", "cross-site").go()?.passed()?;
        // What the client says of the original is not the proxy's word.
        for (name, value) in [
            ("x-forwarded-host", "evil.example"),
            ("x-forwarded-method", "GET"),
            ("x-original-method", "GET"),
            ("x-http-method-override", "GET"),
            ("x-forwarded-uri", "/public/x"),
            ("x-original-uri", "/public/x"),
        ] {
            let visit = ask().header("origin", "http://evil.example").header(name, value);
            visit.go()?.refused(403).with_context(|| format!("{method} with {name}"))?;
        }
    }
    for method in ["GET", "HEAD", "OPTIONS"] {
        s.ask(method, "/feed/x").cookie(&session.access).header("sec-fetch-site", "cross-site").go()?.passed()?;
    }
    // A method that nobody knows is unsafe; a proxy may refuse it by itself.
    for method in ["PURGE", "get", "PROPFIND", "GETX"] {
        let seen = s.ask(method, "/feed/x").cookie(&session.access).go()?;
        ensure!(seen.arrived.is_empty() && seen.answer.status >= 400, "{method}: {}", seen.answer);
    }
    Ok(())
}

pub fn a_websocket_of_another_site_is_refused(s: &Stand) -> Result<()> {
    let session = s.login("socket")?;
    let ours = format!("http://{HOST}");
    let handshake = || {
        let visit =
            s.get("/feed/x").cookie(&session.access).header("connection", "Upgrade").header("upgrade", "websocket");
        visit.header("sec-websocket-version", "13").header("sec-websocket-key", KEY)
    };
    handshake().header("origin", "http://evil.example").go()?.refused(403)?;
    handshake().header("sec-fetch-site", "cross-site").header("origin", &ours).go()?.refused(403)?;
    handshake().go()?.refused(403)?;
    let seen = handshake().header("origin", &ours).go()?;
    ensure!(seen.answer.status == 101, "{}", seen.answer);
    let arrived = seen.passed()?;
    ensure!(arrived.one("upgrade")?.eq_ignore_ascii_case("websocket"), "{arrived:?}");
    ensure!(arrived.one("x-edgekeep-user")? == "socket", "{arrived:?}");
    // A tunnel of HTTP/2 would carry requests past the proxy's questions.
    for upgrade in ["h2c", "h2c, websocket", "websocket, h2c", "echo"] {
        let visit =
            s.get("/feed/x").bearer(&session.access).header("upgrade", upgrade).header("http2-settings", "AAMAAABk");
        let visit = visit.header("sec-websocket-version", "13").header("sec-websocket-key", KEY);
        for arrived in visit.header("connection", "Upgrade, HTTP2-Settings").go()?.arrived {
            let to: Vec<&str> = arrived.headers("upgrade").collect();
            ensure!(to.iter().all(|to| to.eq_ignore_ascii_case("websocket")), "{upgrade:?} arrived as {to:?}");
            let named = arrived.headers("connection").any(|names| names.to_ascii_lowercase().contains("http2"));
            ensure!(!named, "{upgrade:?} arrived as {arrived:?}");
        }
    }
    Ok(())
}

pub fn what_the_client_says_it_asked_for_is_not_believed(s: &Stand) -> Result<()> {
    let session = s.login("claims")?;
    for (name, value) in [
        ("x-forwarded-uri", "/public/x"),
        ("x-original-uri", "/public/x"),
        ("x-original-url", "/public/x"),
        ("x-rewrite-url", "/public/x"),
        ("x-envoy-original-path", "/public/x"),
        ("x-forwarded-method", "OPTIONS"),
        ("x-forwarded-host", "other.example"),
        ("x-forwarded-for", "127.0.0.1"),
        ("forwarded", "for=127.0.0.1;host=other.example"),
        ("x-edgekeep-edge", "guessed"),
    ] {
        for times in 1..=2 {
            let claims =
                |method: &str, path: &str| (0..times).fold(s.ask(method, path), |visit, _| visit.header(name, value));
            claims("GET", "/account/x").go()?.refused(401).with_context(|| name.to_owned())?;
            claims("POST", "/feed/x").cookie(&session.access).go()?.refused(403).with_context(|| name.to_owned())?;
            // And an honest request is not disturbed by it.
            claims("GET", "/account/x").bearer(&session.access).go()?.passed().with_context(|| name.to_owned())?;
        }
    }
    Ok(())
}

pub fn a_refresh_is_never_spent_by_a_subrequest(s: &Stand) -> Result<()> {
    let session = s.login("refreshing")?;
    let jar = format!("__Host-edgekeep-rt={}", session.refresh);
    ensure!(counter(&session.refresh)? == 0, "a new session's token");
    for path in ["/x", "/account/x", "/feed/x", "/shop/x", "/public/x"] {
        for method in ["GET", "POST", "OPTIONS"] {
            for _ in 0..4 {
                let visit = s.ask(method, path).header("cookie", &jar).header("sec-fetch-site", "same-origin");
                let seen = visit.go()?;
                let open = path.starts_with("/shop/") || path.starts_with("/public/");
                ensure!(seen.answer.headers("set-cookie").next().is_none(), "{}", seen.answer);
                if open { drop(seen.passed()?) } else { drop(seen.refused(401)?) }
            }
        }
    }
    // Rotated once, by the call that is for it: nothing else has moved the counter.
    let refresh = |jar: &str| {
        let visit = s.post("/v1/sessions/refresh").header("cookie", jar).header("user-agent", "phone");
        visit.header("sec-fetch-site", "same-origin").go()
    };
    let first = refresh(&jar)?.answer.expect(200)?;
    let (in_cookie, _) = first.set_cookie("__Host-edgekeep-rt").context("no new cookie")?;
    ensure!(counter(&in_cookie)? == 1, "rotated {} times", counter(&in_cookie)?);
    let second = refresh(&format!("__Host-edgekeep-rt={in_cookie}"))?.answer.expect(200)?;
    let (in_cookie, _) = second.set_cookie("__Host-edgekeep-rt").context("no new cookie")?;
    ensure!(counter(&in_cookie)? == 2, "{second}");
    // From another site it is not spent either.
    let visit = s.post("/v1/sessions/refresh").header("cookie", &jar).header("sec-fetch-site", "cross-site");
    visit.go()?.answer.expect(403)?;
    Ok(())
}

/// How often the session was rotated, as its refresh token says: `version ‖ sid(16) ‖ counter(u32) ‖ …`.
fn counter(refresh: &str) -> Result<u32> {
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(refresh)?;
    let counter = bytes.get(17..21).context("a short token")?;
    Ok(u32::from_be_bytes(counter.try_into()?))
}

pub fn a_body_arrives_whole(s: &Stand) -> Result<()> {
    let session = s.login("uploading")?;
    let body = vec![b'x'; 300_000];
    let arrived = s.post("/feed/x").bearer(&session.access).body(&body).go()?.passed()?;
    ensure!(arrived.body >= body.len(), "{} bytes arrived", arrived.body);
    // Its client is refused without a byte of it.
    s.post("/account/x").body(&body).go()?.refused(401)?;
    Ok(())
}
