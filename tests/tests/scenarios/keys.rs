//! New keys take the place of old ones while clients go on: every step of docs/keys.md, as an operator types it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use edgekeep_tests::{
    ACCESS_SECONDS, Answer, Deployment, Entry, Forged, Kind, REFRESH_SECONDS, Request, RunningGateway, SERVICE_TOKEN,
    Session, Setup, eventually, fresh_address,
};
use serde_json::{Value, json};

use crate::scenario::Scenario;

const PATIENCE: Duration = Duration::from_secs(20);

/// A Worker asks for public keys at most once in 30 s, so what was published so long ago is in whatever it fetches.
const WORKERS_PAUSE: Duration = Duration::from_secs(31);

pub fn scenarios() -> Vec<Scenario> {
    let short = Setup { short_lives: true, ..Setup::default() };
    let mut all = crate::shared![the_public_keys_are_asked_for_again_with_their_tag];
    let hs256 = Setup { shared_keys: true, ..short };
    for (name, setup) in [
        ("keys_rotate_under_load_and_no_request_fails", short),
        ("shared_keys_rotate_under_load_and_no_request_fails", hs256),
    ] {
        all.push(Scenario::alone(name, setup, |d| rotate_under_load(&Runbook::natively(d)?)).natively());
    }
    let name = "keys_rotate_under_load_behind_a_worker_and_no_request_fails";
    let rotates = |d: &Deployment| rotate_under_load(&Runbook::behind_a_worker(d)?);
    all.push(Scenario::alone(name, short, rotates).only(Kind::EdgeBesideRegion));
    let name = "a_crowd_with_a_key_that_no_worker_knows_yet_gets_in";
    all.push(Scenario::alone(name, Setup::default(), a_crowd_with_a_new_key_gets_in).only(Kind::EdgeBesideRegion));
    all.push(
        Scenario::alone("bad_key_files_change_nothing", Setup::default(), bad_key_files_change_nothing)
            .only(Kind::NativeEmbedded),
    );
    all
}

fn the_public_keys_are_asked_for_again_with_their_tag(d: &Deployment) -> Result<()> {
    let answer = d.get("/.well-known/jwks.json").send()?.expect(200)?;
    ensure!(answer.header("cache-control") == Some("public, max-age=300"), "{answer}");
    let tag = answer.header("etag").context("no etag")?.to_owned();
    for known in [tag.clone(), format!("\"other\", W/{tag}")] {
        let again = d.get("/.well-known/jwks.json").header("if-none-match", &known).send()?.expect(304)?;
        ensure!(again.header("etag") == Some(tag.as_str()) && again.text().is_empty(), "{again}");
    }
    d.get("/.well-known/jwks.json").header("if-none-match", "\"other\"").send()?.expect(200)?;
    Ok(())
}

/// Which keys are replaced, whose they are, and where clients come in meanwhile.
struct Runbook<'d> {
    d: &'d Deployment,
    kinds: &'static [&'static str],
    /// How `keys rotate` is told so.
    options: &'static [&'static str],
    /// The gateways that share a store and a key file.
    gateways: Vec<RunningGateway>,
    entries: Vec<Entry>,
    /// What the operator waits between publishing and signing.
    pause: Duration,
}

impl<'d> Runbook<'d> {
    fn natively(d: &'d Deployment) -> Result<Runbook<'d>> {
        let gateways = d.gateways()?;
        let entries = gateways.iter().map(|gateway| gateway.entry).collect();
        let kinds = &["access", "refresh", "sticky", "log"];
        Ok(Runbook { d, kinds, options: &[], gateways, entries, pause: Duration::ZERO })
    }

    /// The Worker stays as it was deployed, so the keys that it cannot fetch stay too: the sticky ones.
    fn behind_a_worker(d: &'d Deployment) -> Result<Runbook<'d>> {
        let kinds = &["access", "refresh", "log"];
        let options = &["--kind", "access,refresh,log"];
        Ok(Runbook { d, kinds, options, gateways: d.gateways()?, entries: vec![d.entry()], pause: WORKERS_PAUSE })
    }

    /// Whether Workers can fetch all keys that are replaced.
    fn can_be_fetched(&self) -> bool {
        !self.kinds.contains(&"sticky")
    }

    /// `keys rotate` as an operator types it.
    fn rotation(&self, edge_deployed: bool) -> Vec<&'static str> {
        let mut typed = vec!["keys", "rotate", "--config", "edgekeep.toml"];
        typed.extend(self.options);
        typed.extend(edge_deployed.then_some("--edge-deployed"));
        typed
    }

    /// Kind and id of the file's keys in this state, of the kinds that are replaced.
    fn ids(&self, state: &str) -> Result<BTreeSet<(String, String)>> {
        let file: Value = serde_json::from_str(&fs::read_to_string(self.d.key_file())?)?;
        let mut found = BTreeSet::new();
        for kind in self.kinds {
            for key in file[kind].as_array().context("no list of keys")?.iter().filter(|key| key["state"] == state) {
                let id = key["kid"].as_str().map_or_else(|| key["id"].to_string(), str::to_owned);
                found.insert(((*kind).to_owned(), id));
            }
        }
        Ok(found)
    }
}

/// The whole runbook. Clients create, validate, refresh and repeat refreshes all the time, each call at another entry;
/// the first answer that is not a success ends it.
fn rotate_under_load(book: &Runbook<'_>) -> Result<()> {
    let gateways = &book.gateways;
    for gateway in gateways {
        eventually("every gateway sees every other", PATIENCE, || Ok(live(gateway)?.len() == gateways.len()))?;
    }
    let (over, calls) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let (over, calls) = (&over, &calls);
                scope.spawn(move || {
                    let used = use_sessions(book, client, over, calls);
                    // Without its clients the rotation proves nothing.
                    over.store(true, Ordering::Release);
                    used.with_context(|| format!("client {client}"))
                })
            })
            .collect();
        let rotated = rotate(book, &over, &calls);
        over.store(true, Ordering::Release);
        let used: Vec<_> = clients.into_iter().map(thread::ScopedJoinHandle::join).collect();
        for client in used {
            client.unwrap_or_else(|_| anyhow::bail!("a client broke"))?;
        }
        rotated
    })?;
    println!("{} calls, none failed", calls.load(Ordering::Relaxed));
    Ok(())
}

fn rotate(book: &Runbook<'_>, over: &AtomicBool, calls: &AtomicU64) -> Result<()> {
    let Runbook { d, gateways, .. } = book;
    let (first, others) = gateways.split_first().context("a gateway")?;
    let (plainly, deployed) = (book.rotation(false), book.rotation(true));
    let old = book.ids("current")?;
    ensure!(old.len() == book.kinds.len() && book.ids("next")?.is_empty(), "one key of each kind");
    go_on(over, calls)?;

    // Step 1: published, and nobody signs with them.
    let said = succeeds(d, &plainly)?;
    ensure!(said.starts_with("published in data/keys.json"), "{said}");
    let new = book.ids("next")?;
    let (new_kid, old_kid) = (kid(&new)?, kid(&old)?);
    let mut behind: Vec<RunningGateway> = gateways.to_vec();
    while let Some(gateway) = behind.pop() {
        // Nobody signs with a key before every gateway has it.
        let refused = fails(d, &deployed)?;
        ensure!(refused.contains(&format!("gateway {} lacks ", name(&gateway)?)), "{refused}");
        ensure!(refused.matches("\ngateway ").count() == behind.len() + 1, "{refused}");
        gateway.reload();
        eventually("it knows the next keys", PATIENCE, || knows(&gateway, &new_kid))?;
        ensure!(
            kid_of(&login(d, gateway.entry, "published")?)? == old_kid,
            "it signs with a key that is only published"
        );
        go_on(over, calls)?;
    }
    // What is shared is published nowhere.
    let public = |kids: &[&String]| -> BTreeSet<String> {
        if d.signs_with_shared_keys() { BTreeSet::new() } else { kids.iter().map(|kid| (*kid).clone()).collect() }
    };
    ensure!(jwks(first)? == public(&[&old_kid, &new_kid]), "the next key is not published");

    thread::sleep(book.pause);
    go_on(over, calls)?;

    // Step 2: current in the file. A Worker may be in front: what it cannot fetch must have been deployed.
    let said = if book.can_be_fetched() {
        succeeds(d, &plainly)?
    } else {
        let refused = fails(d, &plainly)?;
        ensure!(refused.contains("--edge-deployed"), "{refused}");
        succeeds(d, &deployed)?
    };
    ensure!(said.starts_with("current in data/keys.json"), "{said}");
    ensure!(book.ids("current")? == new && book.ids("retired")? == old, "the wrong keys changed places");
    // The gateways have not read it yet: the old keys' time does not begin.
    let said = succeeds(d, &["keys", "retire", "--config", "edgekeep.toml"])?;
    ensure!(said.matches("a gateway may still sign with it").count() == old.len(), "{said}");

    first.reload();
    eventually("it signs with the new keys", PATIENCE, || signs(first, &new_kid))?;
    go_on(over, calls)?;
    let by_new = login(d, first.entry, "by-new")?;
    ensure!(kid_of(&by_new)? == new_kid, "not signed with the new key");
    for gateway in others {
        // It still signs with the old keys, and verifies the new ones'.
        let by_old = login(d, gateway.entry, "by-old")?;
        ensure!(kid_of(&by_old)? == old_kid, "not signed with the old key");
        for (session, at) in [(&by_new, gateway.entry), (&by_old, first.entry)] {
            let fresh = refresh(d, at, &session.refresh)?;
            validate(at, &fresh.access)?;
            validate(at, &session.access)?;
        }
        let said = succeeds(d, &["keys", "retire", "--config", "edgekeep.toml"])?;
        ensure!(said.contains("a gateway may still sign with it"), "{said}");
        gateway.reload();
        eventually("it signs with the new keys", PATIENCE, || signs(gateway, &new_kid))?;
        go_on(over, calls)?;
    }

    // Step 3: nobody signs with the old keys, so their time begins; what they signed is good till then.
    let said = succeeds(d, &["keys", "retire", "--config", "edgekeep.toml"])?;
    // Where gateways share a store it looks twice, and the time begins with the second look.
    let settled = Instant::now();
    ensure!(said.matches("until ").count() == old.len() && !said.contains("removed"), "{said}");
    ensure!(book.ids("retired")? == old, "a retired key went too soon");
    go_on(over, calls)?;
    until(settled, ACCESS_SECONDS + 1);
    let said = succeeds(d, &["keys", "retire", "--config", "edgekeep.toml"])?;
    let sticky = book.kinds.contains(&"sticky");
    ensure!(said.contains("removed access") && said.contains("removed sticky") == sticky, "{said}");
    ensure!(said.contains("stays   refresh") && said.contains("stays   log"), "{said}");
    for gateway in gateways {
        gateway.reload();
        eventually("the old access key is gone", PATIENCE, || Ok(!knows(gateway, &old_kid)?))?;
        ensure!(jwks(gateway)? == public(&[&new_kid]), "a removed key is still published");
    }
    go_on(over, calls)?;
    until(settled, REFRESH_SECONDS + 1);
    let said = succeeds(d, &["keys", "retire", "--config", "edgekeep.toml"])?;
    ensure!(said.contains("removed refresh") && said.contains("removed log"), "{said}");
    gateways.iter().for_each(RunningGateway::reload);
    ensure!(book.ids("current")? == new && book.ids("retired")?.is_empty(), "old keys are left");
    for gateway in gateways {
        let own = own_report(gateway)?;
        eventually("the old keys are gone", PATIENCE, || {
            Ok(own_report(gateway)?["knows"]["refresh"].as_array().is_some_and(|names| names.len() == 1))
        })
        .with_context(|| own.to_string())?;
        gateway.admin("/readyz").send()?.expect(200)?;
    }
    go_on(over, calls)
}

/// An isolate that has just begun knows the keys of its deployment only, and its first clients all come at once.
fn a_crowd_with_a_new_key_gets_in(d: &Deployment) -> Result<()> {
    let region = *d.gateways()?.first().context("a gateway")?;
    let rotate = ["keys", "rotate", "--config", "edgekeep.toml", "--kind", "access"];
    let book = Runbook { kinds: &["access"], ..Runbook::behind_a_worker(d)? };
    succeeds(d, &rotate)?;
    region.reload();
    let new = kid(&book.ids("next")?)?;
    eventually("it knows the next key", PATIENCE, || knows(&region, &new))?;
    succeeds(d, &rotate)?;
    region.reload();
    eventually("it signs with the new key", PATIENCE, || signs(&region, &new))?;

    let session = login(d, region.entry, "crowd")?;
    ensure!(kid_of(&session)? == new, "not signed with the new key");
    let cookie = format!("__Host-edgekeep-at={}", session.access);
    let start = Barrier::new(24);
    let answers = thread::scope(|scope| {
        let clients: Vec<_> = (0..24)
            .map(|client| {
                let request = d.get("/echo/token/x");
                let request =
                    if client % 2 == 0 { request.bearer(&session.access) } else { request.header("cookie", &cookie) };
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    request.send()
                })
            })
            .collect();
        clients.into_iter().map(thread::ScopedJoinHandle::join).collect::<Vec<_>>()
    });
    for answer in answers {
        answer.unwrap_or_else(|_| anyhow::bail!("a client broke"))?.expect(200)?;
    }
    Ok(())
}

/// Clients make a hundred more calls, or one of them met a failure.
fn go_on(over: &AtomicBool, calls: &AtomicU64) -> Result<()> {
    let before = calls.load(Ordering::Relaxed);
    eventually("the clients go on", PATIENCE, || {
        Ok(over.load(Ordering::Acquire) || calls.load(Ordering::Relaxed) >= before + 100)
    })?;
    ensure!(!over.load(Ordering::Acquire), "a client met a failure");
    Ok(())
}

/// One client after the other session: every call must succeed, at whichever entry.
fn use_sessions(book: &Runbook<'_>, client: usize, over: &AtomicBool, calls: &AtomicU64) -> Result<()> {
    let d = book.d;
    let mut at = book.entries.iter().cycle().skip(client);
    let mut next = || {
        calls.fetch_add(1, Ordering::Relaxed);
        at.next().copied().context("an entry")
    };
    for life in 0.. {
        let mut session = login(d, next()?, &format!("load-{client}-{life}"))?;
        let born = Instant::now();
        while born.elapsed() < Duration::from_secs(REFRESH_SECONDS / 2) {
            if over.load(Ordering::Acquire) {
                return Ok(());
            }
            let issued = Instant::now();
            let fresh = refresh(d, next()?, &session.refresh)?;
            validate(next()?, &fresh.access)?;
            // A tab that lost the race presents the superseded token and gets the same one.
            let again = refresh(d, next()?, &session.refresh)?;
            ensure!(again.refresh == fresh.refresh, "a re-issue gave another refresh token");
            // The access token before is good until it expires.
            if issued.elapsed() < Duration::from_secs(ACCESS_SECONDS / 3) {
                validate(next()?, &again.access)?;
                validate(next()?, &fresh.access)?;
            }
            session = again;
        }
    }
    Ok(())
}

fn login(d: &Deployment, at: Entry, user: &str) -> Result<Session> {
    let request = Request::new(at, "POST", "/v1/sessions").bearer(SERVICE_TOKEN);
    noted(d, &request.json(&json!({ "user_id": user })).send()?.expect(201)?)
}

fn refresh(d: &Deployment, at: Entry, token: &str) -> Result<Session> {
    let request = Request::new(at, "POST", "/v1/sessions/refresh").from(fresh_address());
    noted(d, &request.json(&json!({ "refresh_token": token })).send()?.expect(200)?)
}

fn noted(d: &Deployment, answer: &Answer) -> Result<Session> {
    d.note_secrets(answer);
    Session::from(answer)
}

fn validate(at: Entry, access: &str) -> Result<()> {
    for target in ["/echo/x", "/echo/account/x", "/echo/token/x"] {
        Request::new(at, "GET", target).bearer(access).send()?.expect(200)?;
    }
    let cookie = format!("__Host-edgekeep-at={access}");
    Request::new(at, "GET", "/echo/x").header("cookie", &cookie).send()?.expect(200)?;
    Ok(())
}

fn kid_of(session: &Session) -> Result<String> {
    Ok(Forged::from(&session.access)?.header["kid"].as_str().context("no kid")?.to_owned())
}

fn jwks(at: &RunningGateway) -> Result<BTreeSet<String>> {
    let set = Request::new(at.entry, "GET", "/.well-known/jwks.json").send()?.expect(200)?.json()?;
    let keys = set["keys"].as_array().context("no keys")?;
    Ok(keys.iter().filter_map(|key| Some(key["kid"].as_str()?.to_owned())).collect())
}

/// What is live, as this gateway sees it.
fn live(at: &RunningGateway) -> Result<Vec<Value>> {
    let document = at.admin("/gateways").send()?.expect(200)?.json()?;
    Ok(document["gateways"].as_array().context("no gateways")?.clone())
}

fn name(at: &RunningGateway) -> Result<String> {
    let document = at.admin("/gateways").send()?.expect(200)?.json()?;
    Ok(document["this"].as_str().context("no name")?.to_owned())
}

fn own_report(at: &RunningGateway) -> Result<Value> {
    let name = name(at)?;
    let own = live(at)?.into_iter().find(|row| row["id"] == name.as_str());
    Ok(own.context("it does not report itself")?["report"].clone())
}

fn knows(at: &RunningGateway, kid: &str) -> Result<bool> {
    holds(&own_report(at)?["knows"], kid)
}

fn signs(at: &RunningGateway, kid: &str) -> Result<bool> {
    Ok(holds(&own_report(at)?["signs"], kid)?
        && own_report(at)?["signs"]["access"].as_array().is_some_and(|all| all.len() == 1))
}

fn holds(names: &Value, kid: &str) -> Result<bool> {
    Ok(names["access"].as_array().context("no access keys")?.iter().any(|name| name == kid))
}

fn kid(ids: &BTreeSet<(String, String)>) -> Result<String> {
    let access = ids.iter().find(|(kind, _)| kind == "access");
    Ok(access.context("no access key")?.1.clone())
}

fn succeeds(d: &Deployment, arguments: &[&str]) -> Result<String> {
    let output = d.edgekeep(arguments)?;
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{arguments:?} ended with {}\n{said}{complained}", output.status);
    Ok(said.into_owned())
}

fn fails(d: &Deployment, arguments: &[&str]) -> Result<String> {
    let before = fs::read(d.key_file())?;
    let output = d.edgekeep(arguments)?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(1), "{arguments:?} ended with {}\n{said}", output.status);
    ensure!(fs::read(d.key_file())? == before, "{arguments:?} was refused and changed the keys");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn until(start: Instant, seconds: u64) {
    thread::sleep(Duration::from_secs(seconds).saturating_sub(start.elapsed()));
}

fn bad_key_files_change_nothing(d: &Deployment) -> Result<()> {
    let gateway = *d.gateways()?.first().context("a gateway")?;
    let session = d.login("before")?;
    let (path, good) = (d.key_file(), fs::read(d.key_file())?);
    let reloads = |what: &str| {
        let before = d.gateway_log()?.matches(what).count();
        gateway.reload();
        eventually(what, PATIENCE, || Ok(d.gateway_log()?.matches(what).count() > before))
    };

    fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    reloads("can be read by others (mode 644)")?;
    for command in ["rotate", "retire", "list"] {
        let refused = fails(d, &["keys", command, "--config", "edgekeep.toml"])?;
        ensure!(refused.contains("can be read by others (mode 644)"), "{refused}");
    }
    let refused = fails(d, &["keys", "export", "--edge", "--file", "data/keys.json"])?;
    ensure!(refused.contains("can be read by others (mode 644)"), "{refused}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;

    fs::write(&path, good.get(..good.len() / 2).unwrap_or_default())?;
    reloads("not JSON")?;
    fs::remove_file(&path)?;
    reloads("does not exist")?;
    ensure!(!path.exists(), "a running gateway made keys");

    // All the while nothing changed for anybody.
    ensure!(d.is_let_in(&session.access)?, "the session is gone");
    let session = Session::from(&d.refresh(&session.refresh, "phone")?.expect(200)?)?;
    gateway.admin("/readyz").send()?.expect(200)?;

    fs::write(&path, good)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    reloads("reloaded")?;
    ensure!(d.is_let_in(&session.access)?, "the session is gone");
    Ok(())
}
