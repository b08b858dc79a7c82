//! Who the application is told that a request comes from: whom Edgekeep admitted, and never whom a client names.

use anyhow::{Context, Result, ensure};

use crate::stand::{Proxy, Stand, Visit};
use crate::witness::Arrived;

/// All that an application believes of Edgekeep.
const IDENTITY: [&str; 7] = [
    "x-edgekeep-user",
    "x-edgekeep-session",
    "x-edgekeep-shard",
    "x-edgekeep-shard-epoch",
    "x-edgekeep-shard-next",
    "x-edgekeep-shard-previous",
    "x-edgekeep-signature",
];

const SPOOFED: &str = "spoofed";

/// Every way in which a client may try to be somebody. Origins that speak CGI, WSGI or PHP read an underscore as a hyphen.
fn spoofs() -> Vec<Vec<(String, String)>> {
    let line = |name: &str| (name.to_owned(), SPOOFED.to_owned());
    let mut all: Vec<Vec<(String, String)>> = Vec::new();
    for name in IDENTITY {
        let mixed = name.replace("edgekeep", "EdgeKeep");
        let partly = name.replacen('-', "_", 1);
        for spelled in [name, &name.to_uppercase(), &mixed, &name.replace('-', "_"), &partly] {
            all.push(vec![line(spelled)]);
            all.push(vec![line(spelled), line(spelled)]);
        }
    }
    all.push(IDENTITY.iter().map(|name| line(name)).collect());
    // A proxy that heeds this would drop its own header, or let the client's be taken for the connection's.
    let named = ("connection".to_owned(), "close, x-edgekeep-user, x-edgekeep-session".to_owned());
    all.push(vec![named.clone()]);
    all.push(vec![named, line("x-edgekeep-user")]);
    all
}

/// What arrived of Edgekeep's names: nothing that the client sent, one value each, and this user.
fn check(arrived: &Arrived, user: &str) -> Result<()> {
    for (name, value) in arrived.all() {
        ensure!(!value.contains(SPOOFED), "{name}: {value} arrived");
        ensure!(name != "connection" || !value.contains("x-edgekeep"), "{name}: {value} arrived");
        let internal = name.replace('_', "-").starts_with("x-edgekeep-");
        ensure!(!internal || IDENTITY.contains(&name), "{name}: {value} arrived");
    }
    ensure!(arrived.one("x-edgekeep-user")? == user, "another user arrived: {arrived:?}");
    let known =
        [arrived.one("x-edgekeep-session")?, arrived.one("x-edgekeep-shard")?, arrived.one("x-edgekeep-shard-epoch")?];
    let expected = if user.is_empty() { known == ["", "", ""] } else { known.iter().all(|value| !value.is_empty()) };
    ensure!(expected, "{arrived:?}");
    for unknown in ["x-edgekeep-shard-next", "x-edgekeep-shard-previous", "x-edgekeep-signature"] {
        ensure!(arrived.one(unknown)?.is_empty(), "{arrived:?}");
    }
    Ok(())
}

fn with<'s>(visit: Visit<'s>, lines: &[(String, String)]) -> Visit<'s> {
    lines.iter().fold(visit, |visit, (name, value)| visit.header(name, value))
}

pub fn the_application_is_told_who_was_admitted(s: &Stand) -> Result<()> {
    let session = s.login("told")?;
    for path in ["/x", "/feed/x", "/account/x", "/shop/x", "/account/x?y=1&z=%2F"] {
        for request in [s.get(path).bearer(&session.access), s.get(path).cookie(&session.access)] {
            let arrived = request.go()?.passed()?;
            check(&arrived, "told").context(path)?;
            ensure!(arrived.target == path.as_bytes(), "{path} arrived as {arrived:?}");
            ensure!(arrived.one("x-edgekeep-session")? == session.id, "{arrived:?}");
            ensure!(arrived.one("x-edgekeep-shard")? == "shard_0", "{arrived:?}");
            ensure!(arrived.one("x-edgekeep-shard-epoch")? == "1", "{arrived:?}");
        }
    }
    for path in ["/public/x", "/shop/x"] {
        check(&s.get(path).go()?.passed()?, "").context(path)?;
    }
    // Where nobody is asked for a token, nobody is known by one.
    check(&s.get("/public/x").bearer(&session.access).go()?.passed()?, "")?;
    // Bytes of a name that no header may have are encoded.
    let named = s.login("ünï code,\"x\"")?;
    check(&s.get("/x").bearer(&named.access).go()?.passed()?, "%C3%BCn%C3%AF%20code,\"x\"")
}

pub fn what_a_client_calls_itself_never_arrives(s: &Stand) -> Result<()> {
    let session = s.login("honest")?;
    for spoof in spoofs() {
        for (path, token, user) in [
            ("/public/x", None, ""),
            ("/public/x", Some(&session.access), ""),
            ("/shop/x", None, ""),
            ("/shop/x", Some(&session.access), "honest"),
            ("/x", Some(&session.access), "honest"),
            ("/account/x", Some(&session.access), "honest"),
        ] {
            let visit = token.map_or_else(|| s.get(path), |token| s.get(path).bearer(token));
            let seen = with(visit, &spoof).go()?;
            seen.passed()
                .and_then(|arrived| check(&arrived, user))
                .with_context(|| format!("{path} with {spoof:?}"))?;
        }
        with(s.get("/x"), &spoof).go()?.refused(401).with_context(|| format!("{spoof:?}"))?;
    }
    Ok(())
}

pub fn the_application_sees_neither_tokens_nor_our_cookies(s: &Stand) -> Result<()> {
    let session = s.login("unseen")?;
    let (at, rt) =
        (format!("__Host-edgekeep-at={}", session.access), format!("__Host-edgekeep-rt={}", session.refresh));
    let secrets = [session.access.as_str(), session.refresh.as_str(), "__Host-edgekeep"];
    let lines: [(&[&str], &[&str]); 8] = [
        (&[&at], &[]),
        (&[&at, &rt], &[]),
        (&["a=1", &at, "b=2", &rt, "c=3"], &["a=1", "b=2", "c=3"]),
        (&[&rt, "a=1", &at], &["a=1"]),
        (&["a=1", &at], &["a=1"]),
        // Names that only begin or end alike are the application's.
        (&["x__Host-edgekeep-at=1", "__Host-edgekeep-ate=2"], &["x__Host-edgekeep-at=1", "__Host-edgekeep-ate=2"]),
        (&["a=1", "b=__Host-edgekeep-at=3"], &["a=1", "b=__Host-edgekeep-at=3"]),
        (&["a", "b=\"x y\""], &["a", "b=\"x y\""]),
    ];
    for path in ["/public/x", "/shop/x"] {
        for (sent, left) in lines {
            // In one line, and each in a line of its own.
            let together = s.get(path).header("cookie", &sent.join("; "));
            let apart = sent.iter().fold(s.get(path), |visit, pair| visit.header("cookie", pair));
            for (visit, lines) in [(together, 1), (apart, sent.len())] {
                let seen = visit.go()?;
                // Envoy joins the lines by commas when it asks, and then no cookie is what it was. Browsers send one line.
                if lines > 1 && s.kind == Proxy::Envoy && seen.answer.status == 401 {
                    seen.refused(401)?;
                    continue;
                }
                let arrived = seen.passed()?;
                let pairs = arrived.headers("cookie").flat_map(|line| line.split(';')).map(str::trim);
                let cookies: Vec<&str> = pairs.filter(|pair| !pair.is_empty()).collect();
                ensure!(cookies == left, "of {sent:?} {cookies:?} arrived");
            }
        }
        // There twice, the same or not: on a route without authentication nobody else looks.
        for twice in [format!("{at}; a=1; {at}"), format!("{rt}; {at}; {rt}"), format!("{at};{at};{rt};{rt}")] {
            let seen = s.get(path).header("cookie", &twice).go()?;
            for arrived in seen.arrived {
                let leaked = arrived.all().any(|(_, value)| secrets.iter().any(|secret| value.contains(secret)));
                ensure!(!leaked, "{arrived:?}");
            }
        }
    }
    for path in ["/public/x", "/shop/x", "/x", "/account/x"] {
        let bearer = format!("Bearer {}", session.access);
        let lower = format!("bearer  {}", session.access);
        for (name, value) in [("authorization", &bearer), ("Authorization", &lower), ("cookie", &at)] {
            let seen = s.get(path).header(name, value).go()?;
            for arrived in seen.arrived {
                let leaked = arrived.all().any(|(_, value)| secrets.iter().any(|secret| value.contains(secret)));
                ensure!(!leaked, "{path}: {arrived:?}");
            }
        }
    }
    // Another scheme is the application's own affair.
    let arrived = s.get("/public/x").header("authorization", "Basic dTpw").go()?.passed()?;
    ensure!(arrived.one("authorization")? == "Basic dTpw", "{arrived:?}");
    Ok(())
}
