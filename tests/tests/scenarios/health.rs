//! Origins that break in every way in which servers do: how long until nobody is sent there, how long until they are
//! used again, and what the operator can do (docs/health.md).

#![allow(clippy::print_stdout, reason = "a measurement prints its figures")]

use std::collections::BTreeMap;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use edgekeep_tests::{
    Answer, Deployment, Does, Entry, Kind, Ports, Program, Request, Setup, Unsteady, UnsteadyOrigin, eventually,
    gateway_binary, local, tail,
};
use serde_json::Value;

use crate::scenario::Scenario;

/// Between checks where times are looked at, in milliseconds.
const INTERVAL: u64 = 400;
const FAST_INTERVAL: u64 = 100;
const TIMEOUT: u64 = 250;
/// What a busy machine adds to a time.
const SLACK: Duration = Duration::from_millis(1500);
/// Longer than anything takes that is only waited for.
const PATIENCE: Duration = Duration::from_secs(20);

const CHECKED: Unsteady = Unsteady {
    interval: INTERVAL,
    fast_interval: FAST_INTERVAL,
    timeout: TIMEOUT,
    on_no_healthy: "\"fail_open\"",
    max_latency: 500,
};
const UNCHECKED: Unsteady = Unsteady { interval: 120_000, fast_interval: 60_000, timeout: 5_000, ..CHECKED };

pub fn scenarios() -> Vec<Scenario> {
    let alone =
        |name, unsteady, play| Scenario::alone(name, Setup { unsteady: Some(unsteady), ..Setup::default() }, play);
    let closed = Unsteady { on_no_healthy: "\"fail_closed\"", ..CHECKED };
    let spare = Unsteady { on_no_healthy: "{ pool = \"spare\" }", ..CHECKED };
    let slow = Unsteady { max_latency: 60, ..UNCHECKED };
    vec![
        alone("breakdowns_and_recoveries_are_noticed_in_time", CHECKED, breakdowns_and_recoveries_are_noticed_in_time)
            .natively(),
        alone("live_traffic_ejects_one_origin_and_not_two", UNCHECKED, live_traffic_ejects_one_origin_and_not_two),
        alone("a_slow_origin_keeps_a_quarter_of_its_share", slow, a_slow_origin_keeps_a_quarter_of_its_share),
        alone("in_a_panic_unhealthy_origins_are_used", CHECKED, in_a_panic_unhealthy_origins_are_used)
            .only(Kind::NativeEmbedded),
        alone("a_closed_pool_answers_503", closed, a_closed_pool_answers_503).only(Kind::NativeEmbedded),
        alone("a_fallback_pool_stands_in", spare, a_fallback_pool_stands_in).only(Kind::NativeEmbedded),
        alone("an_origin_is_drained_and_taken_out", UNCHECKED, an_origin_is_drained_and_taken_out).natively(),
        Scenario::shared("without_a_token_nothing_can_be_changed", without_a_token_nothing_can_be_changed)
            .only(Kind::NativeEmbedded),
    ]
}

fn breakdowns_and_recoveries_are_noticed_in_time(d: &Deployment) -> Result<()> {
    let [mut u0, _u1, _u2, _s] = works(d)?;
    let timeout = Duration::from_millis(TIMEOUT);
    let slow = Does::Waits(timeout * 2);
    for (what, checks, takes) in [
        ("stops", None, Duration::ZERO),
        ("hangs", Some(Does::Hangs), timeout),
        ("answers 500", Some(Does::Answers(500)), Duration::ZERO),
        ("is slow", Some(slow), timeout),
        ("resets", Some(Does::Resets), Duration::ZERO),
    ] {
        let begun = Instant::now();
        match checks {
            Some(checks) => u0.set(checks, Does::Works),
            None => u0.stop(),
        }
        until_check(d, "u0", "down").context(what)?;
        let noticed = begun.elapsed();
        // docs/health.md: one interval, then fast ones, each ± 10 %; and the check that decides.
        let interval = Duration::from_millis(INTERVAL * 11 / 10);
        let fast = Duration::from_millis(FAST_INTERVAL * 11 / 10);
        let at_most = interval + 2 * fast.max(takes) + takes;
        ensure!(noticed <= at_most + SLACK, "{what}: noticed after {noticed:?}, documented: {at_most:?}");
        let row = origin(d, "u0")?;
        ensure!(row["reason"].is_string(), "{row}");
        // Nobody meets it any more.
        for _ in 0..6 {
            let answer = d.get("/unsteady/x").send()?.expect(200)?;
            ensure!(answer.origin() != Some("u0"), "{what}: {answer}");
        }
        let begun = Instant::now();
        u0.set(Does::Works, Does::Works);
        if checks.is_none() {
            u0.go_on()?;
        }
        until_check(d, "u0", "up").context(what)?;
        let back = begun.elapsed();
        // A check that was under way still fails.
        let at_most = interval + fast + takes;
        ensure!(back <= at_most + SLACK, "{what}: back after {back:?}, documented: {at_most:?}");
        println!("an origin that {what}: down after {noticed:.2?}, up again after {back:.2?}");
        ensure!(reaches(d, "u0")?, "{what}: it gets nothing although it is up");
    }
    // Every second check fails: never three in a row.
    let failed = || -> Result<u64> { origin(d, "u0")?["checks"]["failed"].as_u64().context("no count of checks") };
    let before = failed()?;
    u0.set(Does::Flaps, Does::Works);
    let end = Instant::now() + Duration::from_millis(2500);
    while Instant::now() < end {
        let row = origin(d, "u0")?;
        ensure!(row["check"] == "up", "it flaps, and so do we: {row}");
    }
    ensure!(failed()? >= before + 3, "it was hardly checked");
    Ok(())
}

fn live_traffic_ejects_one_origin_and_not_two(d: &Deployment) -> Result<()> {
    let origins = works(d)?;
    // Penalties lead new clients elsewhere: it is the sticky ones who meet five failures in a row.
    let (first, second) = (sticky(d, "u0")?, sticky(d, "u1")?);
    let with = |cookie: &str| d.get("/unsteady/x").header("cookie", cookie).send();
    origins[0].set(Does::Works, Does::Answers(503));
    for _ in 0..5 {
        let answer = with(&first)?.expect(503)?;
        ensure!(answer.origin() == Some("u0"), "{answer}");
    }
    let moved = with(&first)?.expect(200)?;
    ensure!(moved.origin() != Some("u0") && moved.set_cookie("DAB_ROUTE").is_some(), "not picked anew: {moved}");
    for _ in 0..12 {
        ensure!(d.get("/unsteady/x").send()?.expect(200)?.origin() != Some("u0"), "it is ejected and gets requests");
    }
    // One of three is all that may be out.
    origins[1].set(Does::Works, Does::Answers(500));
    for _ in 0..12 {
        let answer = with(&second)?.expect(500)?;
        ensure!(answer.origin() == Some("u1"), "{answer}");
    }
    if d.kind.is_native() {
        let (out, kept) = (origin(d, "u0")?, origin(d, "u1")?);
        ensure!(out["state"] == "ejected" && out["reason"].as_str().is_some_and(|why| why.contains("until")), "{out}");
        ensure!(kept["state"] != "ejected" && kept["check"] == "up", "{kept}");
        ensure!(d.metric("edgekeep_origin_ejections_total", Some(("origin", "u0")))? == 1.0);
        ensure!(d.metric("edgekeep_pool_ejections_refused_total", Some(("pool", "shard_2024_8")))? >= 1.0);
        // A client that breaks off is nobody's failure.
        let third = sticky(d, "u2")?;
        origins[2].set(Does::Works, Does::Hangs);
        for _ in 0..6 {
            let client = d.get("/unsteady/x").header("cookie", &third).begin()?;
            eventually("its request is at u2", PATIENCE, || Ok(origin(d, "u2")?["in_flight"] == 1))?;
            drop(client);
            eventually("its request is gone", PATIENCE, || Ok(origin(d, "u2")?["in_flight"] == 0))?;
        }
        let errors = |id: &str| -> Result<Value> { Ok(origin(d, id)?["last_five_minutes"]["errors"].clone()) };
        let counted = [errors("u0")?, errors("u1")?, errors("u2")?];
        ensure!(counted == [5, 12, 0], "{counted:?}");
    }
    Ok(())
}

fn a_slow_origin_keeps_a_quarter_of_its_share(d: &Deployment) -> Result<()> {
    let origins = works(d)?;
    let cookie = sticky(d, "u0")?;
    origins[0].set(Does::Works, Does::Waits(Duration::from_millis(90)));
    for _ in 0..21 {
        let answer = d.get("/unsteady/x").header("cookie", &cookie).send()?.expect(200)?;
        ensure!(answer.origin() == Some("u0"), "{answer}");
    }
    // Its state is made anew with the first request of a second.
    thread::sleep(Duration::from_millis(1100));
    d.get("/unsteady/x").header("cookie", &cookie).send()?.expect(200)?;
    let mut shares: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..27 {
        let answer = d.get("/unsteady/x").send()?.expect(200)?;
        *shares.entry(answer.origin().unwrap_or_default().to_owned()).or_default() += 1;
    }
    // Exactly a ninth for each core's own round; the first round of a core may be cut.
    let share = shares.get("u0").copied().unwrap_or(0);
    ensure!((1..=5).contains(&share), "{shares:?}");
    if d.kind.is_native() {
        let row = origin(d, "u0")?;
        ensure!(row["state"] == "degraded", "{row}");
        ensure!(row["reason"].as_str().is_some_and(|why| why.contains("were slow")), "{row}");
    }
    Ok(())
}

fn in_a_panic_unhealthy_origins_are_used(d: &Deployment) -> Result<()> {
    let origins = works(d)?;
    break_checks(d, &origins)?;
    let mut met = BTreeMap::new();
    for _ in 0..12 {
        let answer = d.get("/unsteady/x").send()?.expect(200)?;
        ensure!(answer.set_cookie("DAB_ROUTE").is_none(), "a cookie names an origin that is down: {answer}");
        *met.entry(answer.origin().unwrap_or_default().to_owned()).or_insert(0) += 1;
    }
    ensure!(met.len() == 3, "{met:?}");
    mend_checks(d, &origins)
}

fn a_closed_pool_answers_503(d: &Deployment) -> Result<()> {
    let origins = works(d)?;
    break_checks(d, &origins)?;
    for _ in 0..3 {
        d.get("/unsteady/x").send()?.problem(503, "no_origin")?;
    }
    mend_checks(d, &origins)
}

fn a_fallback_pool_stands_in(d: &Deployment) -> Result<()> {
    let origins = works(d)?;
    break_checks(d, &origins)?;
    for _ in 0..6 {
        let answer = d.get("/unsteady/x").send()?.expect(200)?;
        ensure!(answer.origin() == Some("s") && answer.set_cookie("DAB_ROUTE").is_none(), "{answer}");
    }
    mend_checks(d, &origins)
}

/// The pool is in a panic, and its own traffic would still work.
fn break_checks(d: &Deployment, origins: &[UnsteadyOrigin; 4]) -> Result<()> {
    origins.iter().take(3).for_each(|origin| origin.set(Does::Answers(500), Does::Works));
    ["u0", "u1", "u2"].iter().try_for_each(|id| until_check(d, id, "down"))?;
    ensure!(panics(d)?, "no panic is told");
    Ok(())
}

fn mend_checks(d: &Deployment, origins: &[UnsteadyOrigin; 4]) -> Result<()> {
    origins.iter().for_each(|origin| origin.set(Does::Works, Does::Works));
    ["u0", "u1", "u2"].iter().try_for_each(|id| until_check(d, id, "up"))?;
    ensure!(!panics(d)?, "the panic does not end");
    ensure!(reaches(d, "u0")? && reaches(d, "u1")?, "they are up and get nothing");
    Ok(())
}

fn panics(d: &Deployment) -> Result<bool> {
    Ok(d.metric("edgekeep_pool_panic", Some(("pool", "shard_2024_8")))? == 1.0)
}

fn an_origin_is_drained_and_taken_out(d: &Deployment) -> Result<()> {
    let origins = works(d)?;
    let cookie = sticky(d, "u0")?;
    let with_cookie = || d.get("/unsteady/x").header("cookie", &cookie).send();
    origins[0].set(Does::Works, Does::Waits(Duration::from_millis(1500)));
    thread::scope(|scope| -> Result<()> {
        let long = scope.spawn(with_cookie);
        eventually("a request is at u0", PATIENCE, || Ok(origin(d, "u0")?["in_flight"] == 1))?;
        // Not empty in time: a status of its own, and it drains on.
        let impatient = command(d, &["drain", "u0", "--wait", "200ms"])?;
        ensure!(impatient.0 == 3 && impatient.2.contains("u0 has 1 requests in flight"), "{impatient:?}");
        let patient = command(d, &["drain", "u0", "--wait", "20s"])?;
        ensure!(patient.0 == 0 && patient.1.contains("u0 is empty"), "{patient:?}");
        ensure!(long.is_finished() || origin(d, "u0")?["in_flight"] == 0, "it was not empty");
        let answer = long.join().map_err(|_| anyhow::anyhow!("the client broke"))??.expect(200)?;
        ensure!(answer.origin() == Some("u0"), "a drained request ends where it began: {answer}");
        Ok(())
    })?;
    origins[0].set(Does::Works, Does::Works);
    // Who was there stays, nobody new comes; a reload does not forget it.
    for gateway in d.gateways()?.iter().take(1) {
        gateway.reload();
    }
    thread::sleep(Duration::from_millis(300));
    ensure!(with_cookie()?.expect(200)?.origin() == Some("u0"), "its sticky client was sent away");
    ensure!(!reaches(d, "u0")?, "it drains and gets new clients");
    let list = command(d, &["list"])?;
    ensure!(list.0 == 0 && list.1.lines().any(|line| line.contains("u0") && line.contains("drain")), "{list:?}");

    let out = command(d, &["maintenance", "u0"])?;
    ensure!(out.0 == 0 && out.1.starts_with("u0 is set to maintenance"), "{out:?}");
    let moved = with_cookie()?.expect(200)?;
    ensure!(moved.origin() != Some("u0") && moved.set_cookie("DAB_ROUTE").is_some(), "{moved}");
    ensure!(origin(d, "u0")?["check"] == "up", "an origin in maintenance is checked like any");
    let back = command(d, &["ready", "u0"])?;
    ensure!(back.0 == 0 && reaches(d, "u0")?, "{back:?}");

    let unknown = command(d, &["drain", "nobody"])?;
    ensure!(unknown.0 == 1 && unknown.2.contains("no origin has the id \"nobody\"; there are a, b, c"), "{unknown:?}");
    d.admin("POST", "/origins/u0/drain").send()?.expect(401)?;
    d.admin("POST", "/origins/u0/drain").bearer("wrong").send()?.expect(401)?;
    d.admin("GET", "/origins").send()?.expect(401)?;
    d.admin("GET", "/origins/u0/drain").send()?.expect(405)?;
    d.admin("POST", "/origins/u0/explode").send()?.expect(404)?;
    ensure!(origin(d, "u0")?["set_to"] == "ready", "a refused call changed something");
    Ok(())
}

/// A gateway that was given an origin and nothing else.
fn without_a_token_nothing_can_be_changed(_: &Deployment) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (listen, admin) = (local(Ports::free()?), local(Ports::free()?));
    let mut command = Command::new(gateway_binary()?);
    command.args(["serve", "--origin", &format!("http://{}", local(Ports::free()?))]);
    command.args(["--listen", &listen.to_string(), "--admin", &admin.to_string(), "--data"]).arg(folder.path());
    command.env_remove("EDGEKEEP_ADMIN_TOKEN");
    let mut gateway = Program::start("a small gateway", &mut command, &folder.path().join("log"), None)?;
    let ask = |method: &str, target: &str| {
        Request::new(Entry { address: admin, behind_platform: false }, method, target).send()
    };
    gateway.wait_until(PATIENCE, || ask("GET", "/readyz").is_ok_and(|answer| answer.status == 200))?;
    let mut id = String::new();
    eventually("its origin is found dead", PATIENCE, || {
        let row = ask("GET", "/origins")?.expect(200)?.json()?["origins"][0].take();
        id = row["id"].as_str().unwrap_or_default().to_owned();
        Ok(row["check"] == "down" && row["reason"] == "connection refused")
    })?;
    let refused = ask("POST", &format!("/origins/{id}/drain"))?.expect(403)?;
    ensure!(refused.text().contains("admin.token is not set"), "{refused}");
    let said = || tail(&folder.path().join("log"));
    eventually("its panic is told", PATIENCE, || Ok(said().contains("panics: 0 of 1 origins are available")))?;
    let line = format!("origin {id} is down: connection refused");
    ensure!(said().matches(&line).count() == 1, "not told once:\n{}", said());
    Ok(())
}

/// All four origins, once the gateway has found them up.
fn works(d: &Deployment) -> Result<[UnsteadyOrigin; 4]> {
    let origins = d.unsteady_origins()?;
    ["u0", "u1", "u2", "s"].iter().try_for_each(|id| until_check(d, id, "up"))?;
    Ok(origins)
}

/// What the admin side of the native gateway says of an origin.
fn origin(d: &Deployment, id: &str) -> Result<Value> {
    let document = d.operator("GET", "/origins").send()?.expect(200)?.json()?;
    let rows = document["origins"].as_array().context("no list of origins")?;
    rows.iter().find(|row| row["id"] == id).cloned().with_context(|| format!("no origin {id}"))
}

fn until_check(d: &Deployment, id: &str, check: &str) -> Result<()> {
    eventually(&format!("the checks find {id} {check}"), PATIENCE, || Ok(origin(d, id)?["check"] == check))
}

/// Whether a new client is sent there, of as many as make sure of it.
fn reaches(d: &Deployment, id: &str) -> Result<bool> {
    for _ in 0..12 {
        if d.get("/unsteady/x").send()?.expect(200)?.origin() == Some(id) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The cookie of a client that stays with an origin.
fn sticky(d: &Deployment, id: &str) -> Result<String> {
    for _ in 0..30 {
        let answer: Answer = d.get("/unsteady/x").send()?.expect(200)?;
        if answer.origin() == Some(id) {
            let (value, _) = answer.set_cookie("DAB_ROUTE").with_context(|| format!("no cookie: {answer}"))?;
            return Ok(format!("DAB_ROUTE={value}"));
        }
    }
    bail!("nobody is sent to {id}")
}

/// Exit status, output and errors of `edgekeep origin …`.
fn command(d: &Deployment, arguments: &[&str]) -> Result<(i32, String, String)> {
    let line: Vec<&str> =
        ["origin"].into_iter().chain(arguments.iter().copied()).chain(["--config", "edgekeep.toml"]).collect();
    let output = d.edgekeep(&line)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr)))
}
