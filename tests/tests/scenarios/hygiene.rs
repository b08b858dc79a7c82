//! What stands on the wire to an origin, line by line: a head is compared whole, so that nothing else can be in it.

use anyhow::{Context, Result, ensure};
use edgekeep_tests::framing::Message;
use edgekeep_tests::{Deployment, Raw, RawAnswer, TRUSTED_PROXY, Then};

use crate::scenario::Scenario;
use crate::wire::at;

pub fn scenarios() -> Vec<Scenario> {
    let mut all = crate::wire![native:
        a_plain_request_reaches_its_origin_with_exactly_these_lines,
        a_session_adds_its_identity_and_takes_the_credential_away,
        headers_of_one_hop_end_here_in_any_spelling,
        what_connection_names_is_taken_out_but_never_what_the_message_rests_on,
        the_clients_host_is_kept_and_a_pools_own_replaces_it,
        an_absolute_target_rules_over_host,
        a_body_is_framed_anew,
        a_body_of_length_zero_is_one,
        forwarded_lines_of_strangers_are_replaced_and_a_trusted_proxys_go_on,
        our_cookies_are_cut_out_of_every_cookie_line,
        an_origins_answer_loses_what_belongs_to_its_connection,
        an_upgrade_is_passed_on_as_one_and_h2c_is_not,
        expect_never_reaches_an_origin,
        bytes_above_ascii_pass_in_values_and_not_in_targets,
    ];
    all.extend(crate::wire![scenario: an_origins_answer_cannot_set_our_cookies_or_headers]);
    all
}

/// Sends bytes to the gateway and gives the answer.
fn ask(d: &Deployment, bytes: impl AsRef<[u8]>) -> Result<RawAnswer> {
    let mut raw = Raw::connect(d.entry())?;
    raw.send(bytes)?;
    raw.answer("GET")
}

/// The lines of a head, sorted; what differs with every request is masked.
fn lines(message: &Message) -> Vec<String> {
    let head = String::from_utf8_lossy(&message.bytes).into_owned();
    let head = head.split("\r\n\r\n").next().unwrap_or_default().to_owned();
    let mut lines: Vec<String> = head.split("\r\n").skip(1).map(masked).collect();
    lines.sort();
    lines.insert(0, head.split("\r\n").next().unwrap_or_default().to_owned());
    lines
}

fn masked(line: &str) -> String {
    let name = line.split(':').next().unwrap_or_default();
    match name {
        "x-request-id" | "traceparent" | "x-edgekeep-signature" | "x-edgekeep-session" => format!("{name}: *"),
        _ => line.to_owned(),
    }
}

/// What every request to this pool carries besides its own lines.
fn with(first: &str, own: &[&str]) -> Vec<String> {
    let common = [
        "traceparent: *",
        "x-edgekeep-shard-epoch: 1",
        "x-edgekeep-shard: shard_2023_1",
        "x-edgekeep-signature: *",
        "x-request-id: *",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: http",
    ];
    let host = own.iter().find_map(|line| line.strip_prefix("x-forwarded-host: ")).unwrap_or("app.example");
    let mut lines: Vec<String> = common.iter().chain(own).map(|line| (*line).to_owned()).collect();
    if host == "app.example" {
        lines.push("x-forwarded-host: app.example".to_owned());
    }
    if !own.iter().any(|line| line.starts_with("host: ")) {
        lines.push("host: app.example".to_owned());
    }
    lines.push(format!("forwarded: for=127.0.0.1;host=\"{host}\";proto=http"));
    lines.sort();
    lines.insert(0, first.to_owned());
    lines
}

/// Sends a head with these lines, and compares what arrived at the origin for that path.
fn arrives(d: &Deployment, path: &str, sent: &[&str], arrived: &[&str]) -> Result<()> {
    let mut head = format!("GET {path} HTTP/1.1\r\nHost: app.example\r\n");
    for line in sent {
        head += &format!("{line}\r\n");
    }
    let answer = ask(d, head + "\r\n")?;
    ensure!(answer.status == 200, "{}", answer.head);
    let found = lines(&d.recorder(at::HEADS)?.request(path.split('?').next().unwrap_or_default())?);
    let expected = with(&format!("GET {path} HTTP/1.1"), arrived);
    ensure!(found == expected, "arrived: {found:#?}\nexpected: {expected:#?}");
    Ok(())
}

fn a_plain_request_reaches_its_origin_with_exactly_these_lines(d: &Deployment) -> Result<()> {
    arrives(
        d,
        "/heads/plain?q=%2F&r",
        &["Accept: */*", "X-Own: 1", "X-Own: 2"],
        &["accept: */*", "x-own: 1", "x-own: 2"],
    )
}

fn a_session_adds_its_identity_and_takes_the_credential_away(d: &Deployment) -> Result<()> {
    let session = d.login("user of/heads")?;
    let token = format!("Authorization: Bearer {}", session.access);
    let own = ["x-edgekeep-session: *", "x-edgekeep-user: user%20of/heads"];
    arrives(d, "/heads/known/token", &[&token, "x-edgekeep-user: admin"], &own)?;
    let cookie = format!("Cookie: __Host-edgekeep-at={}; theirs=1", session.access);
    arrives(d, "/heads/known/cookie", &[&cookie], &[own[0], own[1], "cookie: theirs=1"])?;
    let passed = token.replace("Authorization", "authorization");
    arrives(d, "/heads/passed/token", &[&token], &[own[0], own[1], &passed])?;
    arrives(d, "/heads/passed/cookie", &[&cookie], &[own[0], own[1], "cookie: theirs=1", &passed])?;
    let seen = d.recorder(at::HEADS)?.request("/heads/known/token")?;
    ensure!(seen.values("x-edgekeep-session") == [session.id.as_str()], "{seen:?}");
    Ok(())
}

fn headers_of_one_hop_end_here_in_any_spelling(d: &Deployment) -> Result<()> {
    let sent = [
        "Connection: keep-alive",
        "Keep-Alive: timeout=5, max=1000",
        "TE: gzip, deflate;q=0.5",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic YTpi",
        "Proxy-Authenticate: Basic",
        "X-Edgekeep-User: admin",
        "x_edgekeep_shard: shard_9",
        "X-EDGEKEEP_SIGNATURE: t=1,v1=00",
        "x-edgekeeper: passes",
    ];
    arrives(d, "/heads/hop", &sent, &["x-edgekeeper: passes"])
}

fn what_connection_names_is_taken_out_but_never_what_the_message_rests_on(d: &Deployment) -> Result<()> {
    let sent = [
        "Connection: x-one , X-TWO,,host",
        "connection: x-three, content-type, x-forwarded-for, x-edgekeep-shard, x-request-id, authorization",
        "X-One: 1",
        "x-two: 2",
        "X-Three: 3",
        "X-Four: 4",
        "Content-Type: text/plain",
        "Authorization: Basic YTpi",
    ];
    arrives(d, "/heads/named", &sent, &["x-four: 4", "content-type: text/plain", "authorization: Basic YTpi"])
}

fn the_clients_host_is_kept_and_a_pools_own_replaces_it(d: &Deployment) -> Result<()> {
    for (path, host) in [("/heads/host", "shop.example:8443"), ("/named/host", "origin.internal")] {
        let answer = ask(d, format!("GET {path} HTTP/1.1\r\nHost: shop.example:8443\r\n\r\n"))?;
        ensure!(answer.status == 200, "{}", answer.head);
        let seen = d.recorder(at::HEADS)?.request(path)?;
        ensure!(seen.values("host") == [host], "{seen:?}");
        ensure!(seen.values("x-forwarded-host") == ["shop.example:8443"], "{seen:?}");
    }
    Ok(())
}

fn an_absolute_target_rules_over_host(d: &Deployment) -> Result<()> {
    // RFC 9112 §3.2.2: a proxy ignores Host then, and sends the target's.
    let answer = ask(d, "GET http://target.example/heads/absolute?x HTTP/1.1\r\nHost: other.example\r\n\r\n")?;
    ensure!(answer.status == 200, "{}", answer.head);
    let seen = d.recorder(at::HEADS)?.request("/heads/absolute")?;
    ensure!(seen.target == "/heads/absolute?x" && seen.values("host") == ["target.example"], "{seen:?}");
    ensure!(seen.values("x-forwarded-host") == ["target.example"], "{seen:?}");
    Ok(())
}

fn a_body_is_framed_anew(d: &Deployment) -> Result<()> {
    let chunked = "POST /heads/chunked HTTP/1.1\r\nHost: app.example\r\ntransfer-encoding: Chunked\r\n\r\n\
        3;name=value\r\nabc\r\n002\r\nde\r\n0\r\n\r\n";
    ensure!(ask(d, chunked)?.status == 200, "chunked");
    let seen = d.recorder(at::HEADS)?.request("/heads/chunked")?;
    ensure!(seen.body == b"abcde" && seen.values("transfer-encoding") == ["chunked"], "{seen:?}");
    ensure!(seen.values("content-length").is_empty(), "{seen:?}");
    // No extension, no leading zeros. The head's ids are by chance.
    let text = String::from_utf8_lossy(&seen.bytes).into_owned();
    let (_, body) = text.split_once("\r\n\r\n").context("no body")?;
    ensure!(!body.contains("name=value") && !body.contains("002"), "{text}");
    // Twice the same length is one, and is sent once.
    let known =
        "POST /heads/known-length HTTP/1.1\r\nHost: app.example\r\nContent-Length: 5\r\ncontent-length: 5\r\n\r\nabcde";
    ensure!(ask(d, known)?.status == 200, "a known length");
    let seen = d.recorder(at::HEADS)?.request("/heads/known-length")?;
    ensure!(seen.body == b"abcde" && seen.values("content-length") == ["5"], "{seen:?}");
    ensure!(seen.values("transfer-encoding").is_empty(), "{seen:?}");
    Ok(())
}

fn a_body_of_length_zero_is_one(d: &Deployment) -> Result<()> {
    // RFC 9110 §8.6: a POST without content says so; what no client said of a GET is not made up.
    for (method, path, sent, arrives) in [
        ("POST", "/heads/empty-post", "Content-Length: 0\r\n", vec!["0"]),
        ("POST", "/heads/bare-post", "", vec!["0"]),
        ("GET", "/heads/empty-get", "", vec![]),
        ("DELETE", "/heads/empty-delete", "", vec![]),
    ] {
        let answer = ask(d, format!("{method} {path} HTTP/1.1\r\nHost: app.example\r\n{sent}\r\n"))?;
        ensure!(answer.status == 200, "{}", answer.head);
        let seen = d.recorder(at::HEADS)?.request(path)?;
        ensure!(seen.values("content-length") == arrives, "{seen:?}");
        ensure!(seen.values("transfer-encoding").is_empty(), "{seen:?}");
    }
    Ok(())
}

fn forwarded_lines_of_strangers_are_replaced_and_a_trusted_proxys_go_on(d: &Deployment) -> Result<()> {
    let sent = [
        "X-Forwarded-For: 10.0.0.1",
        "x-forwarded-for: 10.0.0.2",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: bank.example",
        "Forwarded: for=10.0.0.1;host=bank.example;proto=https",
    ];
    arrives(d, "/heads/stranger", &sent, &[])?;
    let request = d
        .get("/heads/proxy")
        .from(TRUSTED_PROXY)
        .host("app.example")
        .header("x-forwarded-for", "203.0.113.7, 198.51.100.2")
        .header("x-forwarded-proto", "https");
    request.send()?.expect(200)?;
    let seen = d.recorder(at::HEADS)?.request("/heads/proxy")?;
    ensure!(
        seen.values("x-forwarded-for").join(", ") == format!("203.0.113.7, 198.51.100.2, {TRUSTED_PROXY}"),
        "{seen:?}"
    );
    ensure!(seen.values("x-forwarded-proto") == ["https"], "{seen:?}");
    Ok(())
}

fn our_cookies_are_cut_out_of_every_cookie_line(d: &Deployment) -> Result<()> {
    let sent =
        ["Cookie: a=1; DAB_ROUTE=v1.x.y.z; b=2", "Cookie: __Host-edgekeep-rt=secret; c=3", "Cookie: DAB_ROUTE=other"];
    arrives(d, "/heads/cookies", &sent, &["cookie: a=1; b=2; c=3"])?;
    arrives(d, "/heads/own-cookie-only", &["Cookie: DAB_ROUTE=v1.x.y.z"], &[])?;
    // Not ours: a name that only begins like one.
    let theirs = "Cookie: DAB_ROUTE2=x; X__Host-edgekeep-at=y";
    arrives(d, "/heads/their-cookies", &[theirs], &["cookie: DAB_ROUTE2=x; X__Host-edgekeep-at=y"])
}

fn an_origins_answer_loses_what_belongs_to_its_connection(d: &Deployment) -> Result<()> {
    d.recorder(at::HEADS)?.on("/heads/answer", |visit| {
        visit.send(
            b"HTTP/1.1 200 Fine\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\n\
              Proxy-Authenticate: Basic\r\nProxy-Connection: close\r\nUpgrade: h2c\r\nX-Edgekeep-User: spoofed\r\n\
              Content-Type: text/plain\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Own: kept\r\nContent-Length: 2\r\n\r\nhi",
        );
        Then::Keep
    });
    let answer = ask(d, "GET /heads/answer HTTP/1.1\r\nHost: app.example\r\n\r\n")?;
    let mut names: Vec<&str> = answer.head.lines().skip(1).filter_map(|line| line.split(':').next()).collect();
    names.retain(|name| !name.is_empty());
    names.sort_unstable();
    let expected = ["content-length", "content-type", "date", "set-cookie", "set-cookie", "set-cookie", "x-own"];
    ensure!(names == expected, "{}", answer.head);
    ensure!(answer.body == b"hi" && answer.header("x-own") == Some("kept"), "{}", answer.head);
    Ok(())
}

fn an_origins_answer_cannot_set_our_cookies_or_headers(d: &Deployment) -> Result<()> {
    d.recorder(at::HEADS)?.on("/heads/planting", |visit| {
        visit.send(
            b"HTTP/1.1 200 OK\r\nSet-Cookie: __Host-edgekeep-at=planted; Secure; Path=/\r\n\
              Set-Cookie: theirs=1; Path=/, x\r\nset-cookie: __host-edgekeep-rt=planted\r\nSet-Cookie: dab_route=planted\r\n\
              X-Edgekeep-User: planted\r\nContent-Length: 0\r\n\r\n",
        );
        Then::Keep
    });
    let answer = d.get("/heads/planting").send()?.expect(200)?;
    ensure!(answer.header("x-edgekeep-user").is_none(), "{answer}");
    let cookies: Vec<&str> = answer.headers("set-cookie").collect();
    ensure!(cookies.iter().all(|line| !line.contains("planted")), "{answer}");
    ensure!(cookies.contains(&"theirs=1; Path=/, x"), "{answer}");
    let ours = answer.set_cookie("DAB_ROUTE").context("our own sticky cookie")?;
    ensure!(ours.0.starts_with("v1."), "{answer}");
    Ok(())
}

fn an_upgrade_is_passed_on_as_one_and_h2c_is_not(d: &Deployment) -> Result<()> {
    let sent = ["Connection: Upgrade, x-hop", "Upgrade: echo/1", "x-hop: 1"];
    arrives(d, "/heads/upgrade", &sent, &["connection: upgrade", "upgrade: echo/1"])?;
    let settings = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"];
    arrives(d, "/heads/h2c", &settings, &[])
}

fn expect_never_reaches_an_origin(d: &Deployment) -> Result<()> {
    arrives(d, "/heads/expect", &["Expect: 100-continue", "X-Own: 1"], &["x-own: 1"])
}

fn bytes_above_ascii_pass_in_values_and_not_in_targets(d: &Deployment) -> Result<()> {
    let answer = ask(d, b"GET /heads/bytes HTTP/1.1\r\nHost: app.example\r\nX-Own: caf\xe9 \xc3\xa9\r\n\r\n")?;
    ensure!(answer.status == 200, "{}", answer.head);
    let recordings = d.recorder(at::HEADS)?.recordings();
    let line = b"\r\nx-own: caf\xe9 \xc3\xa9\r\n";
    ensure!(recordings.iter().any(|r| r.bytes.windows(line.len()).any(|w| w == line)), "other bytes arrived");
    // A target has none: origins read them as one encoding or another.
    for target in ["/heads/caf\u{e9}", "/heads/x?q=caf\u{e9}"] {
        let answer = ask(d, format!("GET {target} HTTP/1.1\r\nHost: app.example\r\n\r\n"))?;
        ensure!(answer.status == 400, "{target}: {}", answer.head);
    }
    Ok(())
}
