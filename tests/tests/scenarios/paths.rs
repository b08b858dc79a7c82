//! Spellings of paths that mean one thing here and another at an origin. The catch-all route asks for nothing, so
//! whatever slips past the strict one reaches an origin and shows it.

use anyhow::{Context, Result, ensure};
use edgekeep_tests::{Deployment, SERVICE_TOKEN};
use serde_json::json;

use crate::scenario::Scenario;

pub fn scenarios() -> Vec<Scenario> {
    let mut all = crate::shared![
        no_spelling_slips_past_a_strict_route,
        a_plain_spelling_still_gets_through,
        our_own_paths_have_one_spelling,
        what_is_not_ours_below_v1_is_for_the_routes,
        trace_is_refused,
    ];
    all.push(
        Scenario::shared("an_absolute_target_is_the_same_request", an_absolute_target_is_the_same_request).natively(),
    );
    all.push(Scenario::shared("a_second_host_is_refused", a_second_host_is_refused).natively());
    all.push(Scenario::shared("connect_is_refused", connect_is_refused).natively());
    all
}

/// Which refusal each spelling gets natively: 400 where it could mean two things, 401 where it can only mean `/account`.
const SPELLINGS: [(&str, u16); 30] = [
    ("/account", 401),
    ("/account/", 401),
    ("/account/x", 401),
    ("/account/x?y=/../..", 401),
    ("/%61ccount/x", 401),
    ("/acc%6funt", 401),
    ("/account/%78", 401),
    ("//account", 400),
    ("//account/x", 400),
    ("/account//x", 400),
    ("/account/x//", 400),
    ("/a/../account", 400),
    ("/a/../account/x", 400),
    ("/./account/x", 400),
    ("/account/./x", 400),
    ("/a/%2e%2e/account/x", 400),
    ("/a/%2E./account/x", 400),
    ("/%2e/account/x", 400),
    ("/a/..;/account/x", 400),
    ("/account%2fx", 400),
    ("/account%2Fx", 400),
    ("/a%2f..%2faccount/x", 400),
    ("/account%5cx", 400),
    ("/account\\x", 400),
    ("/\\account/x", 400),
    ("/%2561ccount/x", 400),
    ("/account%252fx", 400),
    ("/account/%00", 400),
    ("/account/%zz", 400),
    ("/account/x%", 400),
];

fn no_spelling_slips_past_a_strict_route(d: &Deployment) -> Result<()> {
    let ended = d.login("slippery")?;
    d.delete("/v1/sessions/current").bearer(&ended.access).send()?.expect(204)?;
    for (path, natively) in SPELLINGS {
        for method in ["GET", "POST", "DELETE"] {
            let answer = d.request(method, path).send()?;
            ensure!(answer.origin().is_none(), "{path} slipped past: {answer}");
            // A platform in front of a Worker may resolve dots and backslashes before the Worker sees them; what is
            // left is then judged as what it has become.
            let exact = d.kind.is_native() || answer.status != 401;
            ensure!(answer.status == natively || !exact, "expected {natively}: {answer}");
            let code = if answer.status == 400 { "bad_path" } else { "missing_credential" };
            answer.problem(answer.status, code)?;
            // Nor with a token that only the strict route sees through.
            let answer = d.request(method, path).bearer(&ended.access).send()?;
            ensure!(answer.origin().is_none() && matches!(answer.status, 400 | 401), "{path} slipped past: {answer}");
        }
    }
    Ok(())
}

fn a_plain_spelling_still_gets_through(d: &Deployment) -> Result<()> {
    let session = d.login("honest")?;
    for path in ["/account/x", "/%61ccount/x", "/account/%C3%B6/a+b", "/account/a%20b", "/account/a,b;c=d"] {
        let answer = d.get(path).bearer(&session.access).send()?;
        // The demo origin knows no such path: its own 404 says that the request arrived.
        ensure!(answer.origin().is_some() && answer.status == 404, "{answer}");
    }
    // The origin gets the path as it was sent, decoded by nobody.
    let answer = d.get("/echo/%C3%B6/a%20b?q=%2F..%2F").bearer(&session.access).send()?.expect(200)?;
    let document = answer.json()?;
    ensure!(document["path"] == "/echo/%C3%B6/a%20b" && document["query"] == "q=%2F..%2F", "{answer}");
    Ok(())
}

fn our_own_paths_have_one_spelling(d: &Deployment) -> Result<()> {
    // Passed on, these would hand the service credential to an origin.
    for path in ["/v1/%73essions", "/v1/sessions/", "/%761/sessions", "/v1/users/x/%73essions", "/oauth/tok%65n"] {
        let answer = d.post(path).bearer(SERVICE_TOKEN).json(&json!({ "user_id": "x" })).send()?;
        answer.problem(400, "bad_path")?;
    }
    for path in ["//v1/sessions", "/v1//sessions", "/a/../v1/sessions"] {
        let answer = d.post(path).bearer("not-the-credential").json(&json!({ "user_id": "x" })).send()?;
        ensure!(answer.origin().is_none() && matches!(answer.status, 400 | 401), "{answer}");
    }
    Ok(())
}

fn what_is_not_ours_below_v1_is_for_the_routes(d: &Deployment) -> Result<()> {
    for path in ["/v1", "/v1/photos", "/v1/sessionsx", "/v1/users/x/sessions/y", "/oauth/authorize", "/.well-known/x"] {
        let answer = d.get(path).send()?;
        ensure!(answer.origin().is_some() && answer.status == 404, "{answer}");
    }
    Ok(())
}

fn an_absolute_target_is_the_same_request(d: &Deployment) -> Result<()> {
    let answer = d.get("http://elsewhere.example/account/x").send()?;
    ensure!(answer.origin().is_none(), "{answer}");
    answer.problem(401, "missing_credential")?;
    Ok(())
}

/// RFC 9112 §3.2: an origin might take the other one.
fn a_second_host_is_refused(d: &Deployment) -> Result<()> {
    d.get("/echo/open/x").header("host", "other.example").send()?.problem(400, "bad_request")?;
    Ok(())
}

fn connect_is_refused(d: &Deployment) -> Result<()> {
    d.request("CONNECT", "example.org:80").send()?.problem(405, "method_not_allowed")?;
    Ok(())
}

fn trace_is_refused(d: &Deployment) -> Result<()> {
    d.request("TRACE", "/echo/open/x").send()?.problem(405, "method_not_allowed")?;
    let origin = d.get("/echo/open/x").send()?.origin().map(str::to_owned);
    origin.context("an ordinary request gets through")?;
    Ok(())
}
