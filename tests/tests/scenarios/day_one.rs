//! What users meet on the day they adopt Edgekeep: browsers of other sites, guests, routes by method, host and instant,
//! and an origin that checks who sent a request.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use edgekeep_tests::framing::Message;
use edgekeep_tests::{Answer, Deployment, Forged, ORIGIN_KEY, root};
use serde_json::json;

use crate::scenario::Scenario;
use crate::wire::at;

pub fn scenarios() -> Vec<Scenario> {
    crate::wire![scenario:
        a_preflight_is_answered_here_where_the_route_has_cors,
        a_preflight_from_a_site_that_is_not_listed_gets_no_permission,
        without_cors_a_preflight_goes_to_the_origin_and_nobody_is_known_there,
        answers_say_which_site_may_read_them,
        any_site_may_read_what_all_may,
        guests_get_in_where_a_session_is_optional_and_bad_tokens_do_not,
        a_route_may_be_narrowed_to_methods_and_to_a_host,
        a_photo_goes_where_its_instant_says,
        a_signature_is_verified_in_two_languages_and_a_forgery_is_refused,
    ]
}

const SITE: &str = "https://app.example";

/// The preflight of a browser.
fn preflight(d: &Deployment, path: &str, site: &str) -> Result<Answer> {
    let request = d.request("OPTIONS", path).header("origin", site).header("access-control-request-method", "PUT");
    request.header("access-control-request-headers", "authorization, x-own").send()
}

/// The headers that a browser asks about, as `name: value`.
fn permission(answer: &Answer) -> Vec<String> {
    let head = answer.head().iter();
    let named = head.filter(|(name, _)| name.to_ascii_lowercase().starts_with("access-control-"));
    let mut lines: Vec<String> = named.map(|(name, value)| format!("{}: {value}", name.to_ascii_lowercase())).collect();
    lines.sort();
    lines
}

fn varies_by_origin(answer: &Answer) -> bool {
    answer.headers("vary").any(|line| line.split(',').any(|name| name.trim().eq_ignore_ascii_case("origin")))
}

fn a_preflight_is_answered_here_where_the_route_has_cors(d: &Deployment) -> Result<()> {
    for site in [SITE, "https://admin.example"] {
        let answer = preflight(d, "/day/cors/x", site)?.expect(204)?;
        let expected = [
            "access-control-allow-credentials: true".to_owned(),
            "access-control-allow-headers: authorization, x-own".to_owned(),
            "access-control-allow-methods: PUT".to_owned(),
            format!("access-control-allow-origin: {site}"),
            "access-control-max-age: 600".to_owned(),
        ];
        ensure!(permission(&answer) == expected, "{answer}");
        ensure!(varies_by_origin(&answer) && answer.body.is_empty(), "{answer}");
    }
    ensure!(d.recorder(at::DAY)?.tries("/day/cors/x") == 0, "a preflight reached the origin");
    // OPTIONS that is no preflight is a request as any other.
    d.request("OPTIONS", "/day/cors/x").header("origin", SITE).send()?.problem(401, "missing_credential")?;
    Ok(())
}

fn a_preflight_from_a_site_that_is_not_listed_gets_no_permission(d: &Deployment) -> Result<()> {
    for site in [
        "https://evil.example",
        "http://app.example",
        "https://app.example.evil.example",
        "https://app.example:444",
        "null",
    ] {
        let answer = preflight(d, "/day/cors/evil", site)?.expect(204)?;
        ensure!(permission(&answer).is_empty() && varies_by_origin(&answer), "{site}: {answer}");
    }
    ensure!(d.recorder(at::DAY)?.tries("/day/cors/evil") == 0, "a preflight reached the origin");
    Ok(())
}

fn without_cors_a_preflight_goes_to_the_origin_and_nobody_is_known_there(d: &Deployment) -> Result<()> {
    let origin = d.recorder(at::DAY)?;
    origin.on("/day/own-cors", |visit| {
        visit.send(b"HTTP/1.1 204 No Content\r\naccess-control-allow-origin: https://theirs.example\r\n\r\n");
        edgekeep_tests::Then::Keep
    });
    let session = d.login("preflight")?;
    // Browsers send no credentials with one; whoever does gains nothing.
    for token in [None, Some(&session.access)] {
        let mut request =
            d.request("OPTIONS", "/day/own-cors").header("origin", SITE).header("access-control-request-method", "PUT");
        if let Some(token) = token {
            request = request.bearer(token);
        }
        let answer = request.send()?.expect(204)?;
        ensure!(permission(&answer) == ["access-control-allow-origin: https://theirs.example"], "{answer}");
    }
    for seen in origin.requests("/day/own-cors")? {
        ensure!(seen.method == "OPTIONS" && seen.values("access-control-request-method") == ["PUT"], "{seen:?}");
        for name in ["x-edgekeep-user", "x-edgekeep-session", "authorization"] {
            ensure!(seen.values(name).is_empty(), "{name}: {seen:?}");
        }
    }
    // The request itself is asked for its session.
    d.request("PUT", "/day/own-cors").header("origin", SITE).send()?.problem(401, "missing_credential")?;
    Ok(())
}

fn answers_say_which_site_may_read_them(d: &Deployment) -> Result<()> {
    let origin = d.recorder(at::DAY)?;
    origin.on("/day/cors/answer", |visit| {
        visit.send(
            b"HTTP/1.1 200 OK\r\naccess-control-allow-origin: https://theirs.example\r\nvary: accept\r\n\
              content-length: 2\r\n\r\nhi",
        );
        edgekeep_tests::Then::Keep
    });
    let session = d.login("cors")?;
    let get = |site: &str| d.get("/day/cors/answer").bearer(&session.access).header("origin", site);
    let allowed = ["access-control-allow-credentials: true", "access-control-allow-origin: https://app.example"];
    let answer = get(SITE).send()?.expect(200)?;
    ensure!(permission(&answer) == allowed && varies_by_origin(&answer), "{answer}");
    ensure!(answer.headers("vary").any(|line| line.contains("accept")), "the origin's own Vary is lost: {answer}");
    // A refusal can be read too: otherwise a page never learns that it has to log in.
    let refused = d.get("/day/cors/answer").header("origin", SITE).send()?;
    refused.problem(401, "missing_credential")?;
    ensure!(permission(&refused) == allowed, "{refused}");
    // The route's rule is the only one: an origin cannot let in whom it does not list.
    let answer = get("https://theirs.example").send()?.expect(200)?;
    ensure!(permission(&answer).is_empty() && varies_by_origin(&answer), "{answer}");
    let answer = d.get("/day/cors/answer").bearer(&session.access).send()?.expect(200)?;
    ensure!(permission(&answer).is_empty() && varies_by_origin(&answer), "{answer}");
    Ok(())
}

fn any_site_may_read_what_all_may(d: &Deployment) -> Result<()> {
    let answer = preflight(d, "/day/shared/x", "https://anybody.example")?.expect(204)?;
    ensure!(!permission(&answer).iter().any(|line| line.contains("credentials")), "{answer}");
    let answer = d.get("/day/shared/x").header("origin", "https://anybody.example").send()?.expect(200)?;
    let allowed = answer.header("access-control-allow-origin").context("no permission")?;
    ensure!(matches!(allowed, "*" | "https://anybody.example"), "{answer}");
    ensure!(answer.header("access-control-allow-credentials").is_none(), "{answer}");
    Ok(())
}

fn guests_get_in_where_a_session_is_optional_and_bad_tokens_do_not(d: &Deployment) -> Result<()> {
    let origin = d.recorder(at::DAY)?;
    d.get("/day/optional/guest").header("x-edgekeep-user", "admin").send()?.expect(200)?;
    let seen = origin.request("/day/optional/guest")?;
    for name in ["x-edgekeep-user", "x-edgekeep-session"] {
        ensure!(seen.values(name).is_empty(), "a guest with {name}: {seen:?}");
    }
    let session = d.login("member")?;
    d.get("/day/optional/member").bearer(&session.access).send()?.expect(200)?;
    let seen = origin.request("/day/optional/member")?;
    ensure!(seen.values("x-edgekeep-user") == ["member"], "{seen:?}");
    ensure!(seen.values("x-edgekeep-session") == [session.id.as_str()], "{seen:?}");
    ensure!(seen.values("authorization").is_empty(), "{seen:?}");
    let expired = Forged::from(&session.access)?.claim("iat", json!(1)).claim("exp", json!(2)).signed(&d.access_key()?);
    for (token, code) in [("a.b.c", "invalid_token"), (&expired, "expired_token"), ("", "invalid_token")] {
        d.get("/day/optional/bad").bearer(token).send()?.problem(401, code)?;
    }
    d.get("/day/optional/bad").header("cookie", "__Host-edgekeep-at=forged").send()?.problem(401, "invalid_token")?;
    ensure!(origin.tries("/day/optional/bad") == 0, "a bad token got in");
    Ok(())
}

fn a_route_may_be_narrowed_to_methods_and_to_a_host(d: &Deployment) -> Result<()> {
    for (method, status) in [("GET", 200), ("HEAD", 200), ("POST", 401), ("PUT", 401), ("DELETE", 401)] {
        let answer = d.request(method, "/day/methods/x").send()?;
        ensure!(answer.status == status, "expected {status}: {answer}");
    }
    for (host, status) in [
        ("open.example", 200),
        ("OPEN.example", 200),
        ("open.example:8080", 200),
        ("other.example", 401),
        ("x.open.example", 401),
    ] {
        let answer = d.get("/day/of-host/x").host(host).send()?;
        ensure!(answer.status == status, "{host}: expected {status}: {answer}");
    }
    Ok(())
}

fn a_photo_goes_where_its_instant_says(d: &Deployment) -> Result<()> {
    for (at, shard) in [
        ("2023-11", "shard_2023_11"),
        ("2023-12-31T23:59:59Z", "shard_2023_12"),
        // UTC decides.
        ("2024-01-01T00:30:00%2B01:00", "shard_2023_12"),
        ("2023-11-30T23:30:00-01:00", "shard_2023_12"),
    ] {
        d.get(&format!("/day/photo?at={at}")).send()?.expect(200)?;
        let all = photos(d)?;
        let seen = all.iter().rev().find(|seen| seen.target.ends_with(at)).context("it did not arrive")?;
        ensure!(seen.values("x-edgekeep-shard") == [shard], "{at}: {seen:?}");
    }
    for bad in
        ["/day/photo", "/day/photo?at=", "/day/photo?at=yesterday", "/day/photo?at=2023-13", "/day/photo?at=1999-01"]
    {
        d.get(bad).send()?.problem(400, "bad_instant")?;
    }
    d.get("/day/photo?at=2021-01").send()?.problem(503, "no_pool")?;
    Ok(())
}

fn photos(d: &Deployment) -> Result<Vec<Message>> {
    d.recorder(at::DAY)?.requests("/day/photo")
}

/// Whether an example lets a request in: its head goes to standard input.
fn verified(program: &str, script: &str, request: &[u8], key: &str, max_age: &str) -> Result<bool> {
    let mut child = Command::new(program)
        .arg(root().join("examples/signature").join(script))
        .env("EDGEKEEP_ORIGIN_KEY", key)
        .env("MAX_AGE", max_age)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program} does not start"))?;
    child.stdin.take().context("no standard input")?.write_all(request)?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match (output.status.code(), said.as_str()) {
        (Some(0), "accepted") => Ok(true),
        (Some(1), refused) if refused.starts_with("refused: ") => Ok(false),
        other => anyhow::bail!("{script}: {other:?} {}", String::from_utf8_lossy(&output.stderr)),
    }
}

fn a_signature_is_verified_in_two_languages_and_a_forgery_is_refused(d: &Deployment) -> Result<()> {
    let origin = d.recorder(at::DAY)?;
    let session = d.login("signed for ö")?;
    d.request("PUT", "/day/signed/%C3%B6?q=1").bearer(&session.access).send()?.expect(200)?;
    d.get("/day/shared/signed").send()?.expect(200)?;
    let good = String::from_utf8(origin.request("/day/signed/%C3%B6")?.bytes)?;
    let guest = String::from_utf8(origin.request("/day/shared/signed")?.bytes)?;
    let user = "x-edgekeep-user: signed%20for%20%C3%B6\r\n";
    let session_line = format!("x-edgekeep-session: {}\r\n", session.id);
    ensure!(good.contains(user) && good.contains(&session_line), "{good}");
    let signature = good.lines().find(|line| line.starts_with("x-edgekeep-signature: ")).context("no signature")?;
    let issued = signature.split(['=', ',']).nth(1).context("no t")?.to_owned();
    let newer = format!("t={}", issued.parse::<u64>()? + 1);
    let forgeries = [
        ("another method", good.replacen("PUT ", "POST ", 1)),
        ("another path", good.replacen("/day/signed", "/day/signed2", 1)),
        ("another user", good.replace("signed%20for", "admin")),
        ("no user", good.replace(user, "")),
        ("two users", good.replace(user, &format!("{user}x-edgekeep-user: admin\r\n"))),
        ("a user for a guest", guest.replacen("\r\n", "\r\nx-edgekeep-user: admin\r\n", 1)),
        ("another session", good.replace(&session.id, "00000000-0000-4000-8000-000000000000")),
        ("another shard", good.replace("shard_2023_11", "shard_2023_12")),
        ("another time", good.replace(&format!("t={issued}"), &newer)),
        ("no signature", good.replace(&format!("{signature}\r\n"), "")),
        ("two signatures", good.replace(signature, &format!("{signature}\r\n{signature}"))),
        ("an empty tag", good.replace(signature, &format!("x-edgekeep-signature: t={issued},v1="))),
        ("no tag", good.replace(signature, &format!("x-edgekeep-signature: t={issued}"))),
        ("not hex", good.replace(signature, &format!("x-edgekeep-signature: t={issued},v1={}", "ö".repeat(32)))),
        ("not a time", good.replace(&format!("t={issued}"), "t=now")),
    ];
    for (program, script) in [("python3", "verify.py"), ("node", "verify.mjs")] {
        for request in [&good, &guest] {
            ensure!(verified(program, script, request.as_bytes(), ORIGIN_KEY, "300")?, "{script} refuses {request}");
            ensure!(!verified(program, script, request.as_bytes(), "another key", "300")?, "{script}: another key");
        }
        for (what, request) in &forgeries {
            ensure!(*request != good && *request != guest, "{what} changes nothing");
            ensure!(!verified(program, script, request.as_bytes(), ORIGIN_KEY, "300")?, "{script} accepts {what}");
        }
    }
    // A copy that comes too late is refused, good as it is.
    std::thread::sleep(std::time::Duration::from_millis(2_100));
    for (program, script) in [("python3", "verify.py"), ("node", "verify.mjs")] {
        ensure!(!verified(program, script, good.as_bytes(), ORIGIN_KEY, "1")?, "{script} accepts an old one");
        ensure!(verified(program, script, good.as_bytes(), ORIGIN_KEY, "300")?, "{script} refuses it");
    }
    Ok(())
}
