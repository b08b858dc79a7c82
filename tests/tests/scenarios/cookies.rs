//! Sessions in cookies: set, used, refreshed, cleared, never shown to an origin, and no help to another site.

use anyhow::{Context, Result, ensure};
use edgekeep_tests::{Answer, Deployment, Kind, PINNED_TO_TWO_ORIGINS, Request, fresh_address};
use serde_json::json;

use crate::scenario::Scenario;

const ACCESS: &str = "__Host-edgekeep-at";
const REFRESH: &str = "__Host-edgekeep-rt";
const STICKY: &str = "DAB_ROUTE";

pub fn scenarios() -> Vec<Scenario> {
    crate::shared![
        a_browser_lives_on_cookies,
        session_cookies_never_reach_an_origin,
        a_passed_token_comes_from_the_cookie,
        a_bearer_token_wins_over_cookies,
        two_values_of_one_cookie_are_refused_and_cleared,
        a_dead_sessions_cookies_are_cleared,
        another_site_cannot_use_a_cookie,
        a_sticky_cookie_is_followed_and_never_reaches_an_origin,
        a_forged_sticky_cookie_is_ignored,
    ]
}

fn login(d: &Deployment, user: &str) -> Result<Answer> {
    d.create(&json!({ "user_id": user })).send()?.expect(201)
}

fn cookie(answer: &Answer, name: &str) -> Result<String> {
    let (value, attributes) = answer.set_cookie(name).with_context(|| format!("no {name} in {answer}"))?;
    for attribute in ["Path=/", "Secure", "HttpOnly", "SameSite=Lax"] {
        ensure!(attributes.split(';').any(|one| one.trim() == attribute), "{name} without {attribute}: {attributes}");
    }
    ensure!(!attributes.contains("Domain"), "a __Host- cookie has no domain: {attributes}");
    Ok(value)
}

fn is_cleared(answer: &Answer) -> Result<()> {
    for name in [ACCESS, REFRESH] {
        let (value, attributes) = answer.set_cookie(name).with_context(|| format!("{name} stays: {answer}"))?;
        ensure!(value.is_empty() && attributes.contains("Max-Age=0"), "{name} stays: {answer}");
    }
    Ok(())
}

/// As a browser sends its own site's requests.
fn same_site(request: Request, cookies: &str) -> Request {
    request.header("cookie", cookies).header("sec-fetch-site", "same-origin").from(fresh_address())
}

fn a_browser_lives_on_cookies(d: &Deployment) -> Result<()> {
    let answer = login(d, "browser")?;
    let (access, refresh) = (cookie(&answer, ACCESS)?, cookie(&answer, REFRESH)?);
    let jar = format!("{ACCESS}={access}; {REFRESH}={refresh}");
    let page = d.get("/echo/x").header("cookie", &jar).send()?.expect(200)?;
    ensure!(page.echoed("x-edgekeep-user")? == ["browser"], "{page}");

    // A refresh without a body uses the cookie; scripts get to see no token.
    let answer = same_site(d.post("/v1/sessions/refresh"), &jar).send()?.expect(200)?;
    let document = answer.json()?;
    ensure!(document["access_token"].is_null() && document["refresh_token"].is_null(), "{answer}");
    let renewed = format!("{ACCESS}={}; {REFRESH}={}", cookie(&answer, ACCESS)?, cookie(&answer, REFRESH)?);
    ensure!(renewed != jar, "nothing was renewed");
    d.get("/echo/account/x").header("cookie", &renewed).send()?.expect(200)?;

    let answer = same_site(d.delete("/v1/sessions/current"), &renewed).send()?.expect(204)?;
    is_cleared(&answer)?;
    ensure!(answer.header("clear-site-data").is_some(), "{answer}");
    is_cleared(&d.get("/echo/account/x").header("cookie", &renewed).send()?.expect(401)?)
}

fn session_cookies_never_reach_an_origin(d: &Deployment) -> Result<()> {
    let answer = login(d, "crumbs")?;
    let (access, refresh) = (cookie(&answer, ACCESS)?, cookie(&answer, REFRESH)?);
    let jar = format!("theme=dark; {ACCESS}={access}; {STICKY}=x; {REFRESH}={refresh}; lang=mi");
    for path in ["/echo/open/x", "/echo/optional/x", "/echo/x", "/echo/account/x"] {
        let answer = d.get(path).header("cookie", &jar).send()?.expect(200)?;
        let arrived = answer.echoed("cookie")?.join("; ");
        ensure!(arrived == "theme=dark; lang=mi", "{path}: {arrived}");
        // Spread over several lines they don't either. A Worker's platform joins the lines by commas, and one behind a
        // comma is cut off, not believed (docs/parity.md).
        let lines = d.get(path).header("cookie", "theme=dark").header("cookie", &format!("{ACCESS}={access}"));
        let answer = lines.header("cookie", &format!("{REFRESH}={refresh}; lang=mi")).send()?;
        if answer.status == 401 && d.kind == Kind::EdgeBesideRegion {
            answer.problem(401, "missing_credential")?;
        } else {
            let arrived = answer.expect(200)?.echoed("cookie")?.join("; ");
            ensure!(arrived == "theme=dark; lang=mi", "{path}: {arrived}");
        }
        // And of ours alone, nothing is left.
        let answer = d.get(path).header("cookie", &format!("{ACCESS}={access}")).send()?.expect(200)?;
        ensure!(answer.echoed("cookie")?.is_empty(), "{path}: {answer}");
    }
    Ok(())
}

fn a_passed_token_comes_from_the_cookie(d: &Deployment) -> Result<()> {
    let access = cookie(&login(d, "passed-cookie")?, ACCESS)?;
    let jar = format!("{ACCESS}={access}");
    let answer = d.get("/echo/account/x").header("cookie", &jar).send()?.expect(200)?;
    ensure!(answer.echoed("authorization")? == [format!("Bearer {access}")], "pass_token: {answer}");
    let answer = d.get("/echo/x").header("cookie", &jar).send()?.expect(200)?;
    ensure!(answer.echoed("authorization")?.is_empty(), "{answer}");
    Ok(())
}

fn a_bearer_token_wins_over_cookies(d: &Deployment) -> Result<()> {
    let cookie = cookie(&login(d, "in-the-cookie")?, ACCESS)?;
    let bearer = d.login("in-the-header")?;
    let answer = d.get("/echo/x").header("cookie", &format!("{ACCESS}={cookie}")).bearer(&bearer.access).send()?;
    ensure!(answer.echoed("x-edgekeep-user")? == ["in-the-header"], "{answer}");
    // A bad one wins too: nobody falls back to another identity.
    let answer = d.get("/echo/x").header("cookie", &format!("{ACCESS}={cookie}")).bearer("a.b.c").send()?;
    answer.problem(401, "invalid_token")?;
    Ok(())
}

fn two_values_of_one_cookie_are_refused_and_cleared(d: &Deployment) -> Result<()> {
    let (mine, planted) = (cookie(&login(d, "mine")?, ACCESS)?, cookie(&login(d, "planted")?, ACCESS)?);
    let answer = d.get("/echo/x").header("cookie", &format!("{ACCESS}={mine}; {ACCESS}={planted}")).send()?;
    answer.problem(401, "invalid_token")?;
    is_cleared(&answer)?;
    // The same value twice is harmless.
    d.get("/echo/x").header("cookie", &format!("{ACCESS}={mine}; {ACCESS}={mine}")).send()?.expect(200)?;
    Ok(())
}

fn a_dead_sessions_cookies_are_cleared(d: &Deployment) -> Result<()> {
    let answer = login(d, "dead-cookies")?;
    let jar = format!("{ACCESS}={}; {REFRESH}={}", cookie(&answer, ACCESS)?, cookie(&answer, REFRESH)?);
    d.service("DELETE", "/v1/users/dead-cookies/sessions").send()?.expect(204)?;
    let answer = d.get("/echo/account/x").header("cookie", &jar).send()?;
    answer.problem(401, "session_ended")?;
    is_cleared(&answer)?;
    let answer = same_site(d.post("/v1/sessions/refresh"), &jar).send()?;
    answer.problem(401, "invalid_refresh_token")?;
    is_cleared(&answer)
}

fn another_site_cannot_use_a_cookie(d: &Deployment) -> Result<()> {
    let answer = login(d, "csrf")?;
    let access = cookie(&answer, ACCESS)?;
    let jar = format!("{ACCESS}={access}; {REFRESH}={}", cookie(&answer, REFRESH)?);
    let own = format!("http://{}", d.entry().address);
    let cases: [(&[(&str, &str)], bool); 10] = [
        (&[("sec-fetch-site", "same-origin")], true),
        (&[("sec-fetch-site", "none")], true),
        (&[("sec-fetch-site", "same-site")], false),
        (&[("sec-fetch-site", "cross-site")], false),
        (&[("sec-fetch-site", "cross-site"), ("origin", "https://app.example")], true),
        (&[("origin", &own)], true),
        (&[("origin", "https://app.example")], true),
        (&[("origin", "https://evil.example")], false),
        (&[("origin", "null")], false),
        (&[], false),
    ];
    for (headers, allowed) in cases {
        for method in ["POST", "PUT", "PATCH", "DELETE"] {
            let mut request = d.request(method, "/echo/x").header("cookie", &jar);
            for (name, value) in headers {
                request = request.header(name, value);
            }
            let answer = request.send()?;
            if allowed {
                answer.expect(200).with_context(|| format!("{headers:?}"))?;
            } else {
                answer.problem(403, "cross_site").with_context(|| format!("{headers:?}"))?;
            }
        }
    }
    // Reading is not asked, and a bearer token cannot be sent by another site.
    d.get("/echo/x").header("cookie", &jar).header("sec-fetch-site", "cross-site").send()?.expect(200)?;
    d.post("/echo/x").bearer(&access).header("sec-fetch-site", "cross-site").send()?.expect(200)?;
    // Our own calls are guarded alike.
    for (method, path) in [("POST", "/v1/sessions/refresh"), ("DELETE", "/v1/sessions/current")] {
        let request = d.request(method, path).header("cookie", &jar).header("sec-fetch-site", "cross-site");
        request.from(fresh_address()).send()?.problem(403, "cross_site")?;
    }
    ensure!(d.is_let_in(&access)?, "another site ended the session");
    Ok(())
}

fn a_sticky_cookie_is_followed_and_never_reaches_an_origin(d: &Deployment) -> Result<()> {
    let session = d.login(PINNED_TO_TWO_ORIGINS)?;
    let first = d.get("/echo/x").bearer(&session.access).send()?.expect(200)?;
    let origin = first.origin().context("no origin")?.to_owned();
    let (value, attributes) = first.set_cookie(STICKY).with_context(|| format!("no {STICKY} in {first}"))?;
    for attribute in ["HttpOnly", "Secure", "SameSite=Lax", "Path=/"] {
        ensure!(attributes.contains(attribute), "{STICKY} without {attribute}: {attributes}");
    }
    ensure!(!value.contains(&origin) || value.len() > 20, "the cookie names its origin: {value}");
    ensure!(!value.contains("127.0.0.1"), "the cookie names an address: {value}");
    for _ in 0..12 {
        let request = d.get("/echo/x").bearer(&session.access).header("cookie", &format!("a=b; {STICKY}={value}"));
        let answer = request.send()?.expect(200)?;
        ensure!(answer.origin() == Some(origin.as_str()), "the cookie is not followed: {answer}");
        ensure!(answer.echoed("cookie")? == ["a=b"], "{answer}");
        ensure!(answer.set_cookie(STICKY).is_none(), "a good cookie is not rewritten: {answer}");
    }
    Ok(())
}

fn a_forged_sticky_cookie_is_ignored(d: &Deployment) -> Result<()> {
    let session = d.login(PINNED_TO_TWO_ORIGINS)?;
    let good = d.get("/echo/x").bearer(&session.access).send()?.expect(200)?;
    let (value, _) = good.set_cookie(STICKY).context("a sticky cookie")?;
    let cut = value.get(..value.len() - 2).unwrap_or_default().to_owned();
    for forged in ["a", "b", "", "127.0.0.1:9001", &cut, &format!("{value}AA")] {
        let request = d.get("/echo/x").bearer(&session.access).header("cookie", &format!("{STICKY}={forged}"));
        let answer = request.send()?.expect(200)?;
        ensure!(answer.set_cookie(STICKY).is_some(), "a forged cookie {forged:?} was followed: {answer}");
    }
    Ok(())
}
