//! The sticky cookie in every case of DESIGN §8 but draining, which needs the admin side (`health::`).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edgekeep_tests::{Answer, Deployment, Kind, Own, Recorder, Request, Setup, Then, eventually};

use crate::scenario::Scenario;
use crate::wire::{STICKY_SECONDS, at};

const STICKY: &str = "DAB_ROUTE";

/// What is found in the file: the origin that goes.
const GOES: &str = "leaves-a";
const DAY: u64 = 86_400;

static OWN: Own = Own {
    recorders: 2,
    server: "",
    balance: "",
    sticky: "",
    text: r#"
[[pools]]
shard = "shard_2023_1"
origins = [
  { id = "leaves-a", url = "http://127.0.0.1:<0>" },
  { id = "leaves-b", url = "http://127.0.0.1:<1>" },
]

[[routes]]
path = "/leaves/{rest..}"
auth = "none"
shard = "shard_2023_1"
"#,
    native: "",
};

pub fn scenarios() -> Vec<Scenario> {
    let setup = Setup { own: Some(&OWN), ..Setup::default() };
    let name = "a_cookie_whose_origin_is_gone_is_replaced";
    let mut all =
        vec![Scenario::alone(name, setup, a_cookie_whose_origin_is_gone_is_replaced).except(Kind::NativeRedis)];
    all.extend(crate::wire![scenario:
        a_followed_cookie_is_not_written_again,
        forged_cookies_and_those_of_other_pools_are_replaced,
        an_expired_cookie_is_replaced,
        a_cookie_whose_origin_is_down_leads_to_another_and_is_rewritten,
        a_cookie_whose_origin_is_full_stays_as_it_is,
        nobody_gets_a_cookie_when_all_are_down,
        after_a_retry_the_cookie_names_who_answered,
    ]);
    all
}

/// An origin that says who it is.
fn names_itself(origin: &Recorder, path: &str, name: &'static str) {
    origin.on(path, move |visit| visit.answer(200, name.as_bytes()));
}

fn with_cookie(request: Request, value: &str) -> Request {
    request.header("cookie", &format!("{STICKY}={value}"))
}

/// Its cookie, whoever it names.
fn cookie(answer: &Answer) -> Result<String> {
    lasting(answer, STICKY_SECONDS)
}

fn lasting(answer: &Answer, seconds: u64) -> Result<String> {
    let max_age = format!("Max-Age={seconds}");
    let (value, attributes) = answer.set_cookie(STICKY).with_context(|| format!("no {STICKY}: {answer}"))?;
    for attribute in ["HttpOnly", "Secure", "SameSite=Lax", "Path=/", &max_age] {
        ensure!(attributes.split("; ").any(|a| a == attribute), "{STICKY} without {attribute}: {attributes}");
    }
    Ok(value)
}

/// Asks until this origin answers, and gives its cookie.
fn cookie_of(d: &Deployment, path: &str, name: &str) -> Result<String> {
    for _ in 0..20 {
        let answer = d.get(path).send()?.expect(200)?;
        if answer.text() == name {
            return cookie(&answer);
        }
    }
    anyhow::bail!("{name} does not answer")
}

fn a_followed_cookie_is_not_written_again(d: &Deployment) -> Result<()> {
    let [a, b] = at::STICKY;
    for (number, name) in [(a, "a"), (b, "b")] {
        names_itself(d.recorder(number)?, "/sticky/who", name);
    }
    for name in ["a", "b"] {
        let value = cookie_of(d, "/sticky/who", name)?;
        for _ in 0..6 {
            let answer = with_cookie(d.get("/sticky/who"), &value).send()?.expect(200)?;
            ensure!(answer.text() == name && answer.set_cookie(STICKY).is_none(), "{answer}");
        }
    }
    Ok(())
}

fn forged_cookies_and_those_of_other_pools_are_replaced(d: &Deployment) -> Result<()> {
    let good = cookie(&d.get("/sticky/forged").send()?.expect(200)?)?;
    let elsewhere = cookie(&d.get("/late/forged").send()?.expect(200)?)?;
    let mut parts: Vec<&str> = good.split('.').collect();
    let other_mac = elsewhere.rsplit('.').next().unwrap_or_default();
    *parts.last_mut().context("a cookie without parts")? = other_mac;
    let mixed = parts.join(".");
    let long = format!("{good}{}", "A".repeat(5000));
    let another_version = good.replacen("v1", "v2", 1);
    for value in [elsewhere.as_str(), &mixed, &long, &another_version, "sticky-a", "v1...", "\"\""] {
        let answer = with_cookie(d.get("/sticky/forged"), value).send()?.expect(200)?;
        cookie(&answer).with_context(|| format!("{value} was followed"))?;
    }
    Ok(())
}

fn an_expired_cookie_is_replaced(d: &Deployment) -> Result<()> {
    let value = cookie(&d.get("/sticky/expired").send()?.expect(200)?)?;
    let answer = with_cookie(d.get("/sticky/expired"), &value).send()?.expect(200)?;
    ensure!(answer.set_cookie(STICKY).is_none(), "a good one is replaced: {answer}");
    std::thread::sleep(Duration::from_secs(STICKY_SECONDS));
    let answer = with_cookie(d.get("/sticky/expired"), &value).send()?.expect(200)?;
    ensure!(cookie(&answer)? != value, "{answer}");
    Ok(())
}

fn a_cookie_whose_origin_is_down_leads_to_another_and_is_rewritten(d: &Deployment) -> Result<()> {
    let [a, b] = at::DYING;
    for (number, name) in [(a, "a"), (b, "b")] {
        names_itself(d.recorder(number)?, "/dying/who", name);
    }
    let value = cookie_of(d, "/dying/who", "a")?;
    d.recorder(a)?.die();
    let answer = with_cookie(d.get("/dying/who"), &value).send()?.expect(200)?;
    ensure!(answer.text() == "b", "{answer}");
    let rewritten = cookie(&answer)?;
    let answer = with_cookie(d.get("/dying/who"), &rewritten).send()?.expect(200)?;
    ensure!(answer.text() == "b" && answer.set_cookie(STICKY).is_none(), "{answer}");
    // Back again, the new cookie goes on: nobody is moved twice.
    d.recorder(a)?.revive()?;
    let answer = with_cookie(d.get("/dying/who"), &rewritten).send()?.expect(200)?;
    ensure!(answer.text() == "b", "{answer}");
    Ok(())
}

fn a_cookie_whose_origin_is_full_stays_as_it_is(d: &Deployment) -> Result<()> {
    let [a, b] = at::FULL;
    for (number, name) in [(a, "a"), (b, "b")] {
        names_itself(d.recorder(number)?, "/full/who", name);
    }
    let value = cookie_of(d, "/full/who", "a")?;
    let (holding, release) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    for number in at::FULL {
        let (holding, release) = (holding.clone(), release.clone());
        d.recorder(number)?.on("/full/held", move |visit| {
            holding.fetch_add(1, Ordering::Release);
            let released = || Ok(release.load(Ordering::Acquire));
            let _ = eventually("it is released", Duration::from_secs(10), released);
            visit.answer(200, b"held")
        });
    }
    let held = |count: usize| {
        eventually("the origin is busy", Duration::from_secs(5), || Ok(holding.load(Ordering::Acquire) == count))
    };
    std::thread::scope(|scope| -> Result<()> {
        let first = scope.spawn(|| with_cookie(d.get("/full/held"), &value).send());
        let outcome = (|| {
            held(1)?;
            // Its own is busy: the other one answers, and the client stays where it belongs.
            let answer = with_cookie(d.get("/full/who"), &value).send()?.expect(200)?;
            ensure!(answer.text() == "b", "{answer}");
            ensure!(answer.set_cookie(STICKY).is_none(), "an overflow moved the client: {answer}");
            let second = scope.spawn(|| d.get("/full/held").send());
            held(2)?;
            let answer = with_cookie(d.get("/full/who"), &value).send()?;
            answer.problem(503, "queue_full")?;
            ensure!(answer.set_cookie(STICKY).is_none(), "{answer}");
            release.store(true, Ordering::Release);
            second.join().map_err(|_| anyhow::anyhow!("a client broke"))??.expect(200)?;
            Ok(())
        })();
        release.store(true, Ordering::Release);
        first.join().map_err(|_| anyhow::anyhow!("a client broke"))??.expect(200)?;
        outcome
    })?;
    let answer = with_cookie(d.get("/full/who"), &value).send()?.expect(200)?;
    ensure!(answer.text() == "a" && answer.set_cookie(STICKY).is_none(), "{answer}");
    Ok(())
}

fn nobody_gets_a_cookie_when_all_are_down(d: &Deployment) -> Result<()> {
    let good = cookie(&d.get("/sticky/any").send()?.expect(200)?)?;
    for _ in 0..3 {
        for request in [d.get("/gone/y"), with_cookie(d.get("/gone/y"), &good)] {
            let answer = request.send()?;
            answer.problem(502, "origin_failed")?;
            ensure!(answer.set_cookie(STICKY).is_none(), "{answer}");
        }
    }
    Ok(())
}

fn after_a_retry_the_cookie_names_who_answered(d: &Deployment) -> Result<()> {
    for (number, name) in at::LATE.into_iter().zip(["a", "b"]) {
        names_itself(d.recorder(number)?, "/late/who", name);
    }
    // So that the budget has retries to spare.
    for _ in 0..10 {
        d.get("/late/who").send()?.expect(200)?;
    }
    for name in ["a", "b"] {
        let path = format!("/late/once/{name}");
        let value = cookie_of(d, "/late/who", name)?;
        for (number, own) in at::LATE.into_iter().zip(["a", "b"]) {
            d.recorder(number)?.on(
                &path,
                move |visit| {
                    if own == name { Then::Reset } else { visit.answer(200, own.as_bytes()) }
                },
            );
        }
        let answer = with_cookie(d.get(&path), &value).send()?.expect(200)?;
        ensure!(answer.text() != name, "{answer}");
        let named = cookie(&answer)?;
        let followed = with_cookie(d.get("/late/who"), &named).send()?.expect(200)?;
        ensure!(followed.text() == answer.text(), "the cookie of {answer} leads to {followed}");
    }
    Ok(())
}

fn a_cookie_whose_origin_is_gone_is_replaced(d: &Deployment) -> Result<()> {
    names_itself(d.recorder(0)?, "/leaves/who", "a");
    names_itself(d.recorder(1)?, "/leaves/who", "b");
    let mut cookies = HashMap::new();
    for _ in 0..4 {
        let answer = d.get("/leaves/who").send()?.expect(200)?;
        cookies.insert(answer.text(), lasting(&answer, DAY)?);
    }
    let [of_a, of_b] = ["a", "b"].map(|name| cookies.get(name).context("an origin that nobody reaches"));
    let with = |value: &str| with_cookie(d.get("/leaves/who"), value).send()?.expect(200);
    d.change_configuration(|text| {
        text.lines().filter(|line| !line.contains(GOES)).map(|line| line.to_owned() + "\n").collect()
    })?;
    if d.kind.is_native() {
        d.reload()?;
    } else {
        d.deploy_worker_again()?;
    }
    let answer = with(of_a?)?;
    ensure!(answer.text() == "b", "{answer}");
    let replaced = lasting(&answer, DAY)?;
    // Those that name who stayed are as good as before.
    for value in [&replaced, of_b?] {
        let answer = with(value)?;
        ensure!(answer.text() == "b" && answer.set_cookie(STICKY).is_none(), "{answer}");
    }
    Ok(())
}
