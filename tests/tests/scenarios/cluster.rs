//! Sessions on a Redis Cluster of six real nodes, `appendonly yes`, while a crowd uses two gateways over it: a primary
//! dies, a replica dies, everything freezes, slots move, connections fall silent. Nothing that was promised is lost,
//! nobody is logged out because the store is down, and nothing has to be restarted.

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use edgekeep_tests::{
    Cluster, Deployment, Entry, Kind, REDIS_PASSWORD, RedisOptions, Request, Session, Setup, eventually, is_long,
};
use serde_json::json;

use crate::crowd::{self, SEEN_WITHIN};
use crate::scenario::Scenario;

/// A failover on a busy machine: the nodes' timeout, an election, the news of it.
const FAILOVER: Duration = Duration::from_secs(30);
/// When a primary falls, what it had answered until then is counted within this; nobody takes over that soon.
const ON_ITS_WAY: Duration = Duration::from_millis(300);
/// After the store is well again, everything is served within this, with no restart.
const RECOVERY: Duration = Duration::from_secs(10);

pub fn scenarios() -> Vec<Scenario> {
    // Nodes that notice a death soon.
    let redis = RedisOptions { node_timeout: Duration::from_millis(1500), ..RedisOptions::default() };
    let setup = Setup { roomy: true, redis, ..Setup::default() };
    let calm = Setup { roomy: true, ..Setup::default() };
    let cut = Setup { redis: RedisOptions { relayed: true, ..RedisOptions::default() }, ..calm };
    let behind = Setup { redis: RedisOptions { password: Some(REDIS_PASSWORD), ..redis }, ..setup };
    let restarting = Setup { redis: RedisOptions { fsync_always: true, ..redis }, ..setup };
    let fragile = Setup { redis: RedisOptions { durable: false, ..RedisOptions::default() }, ..calm };
    let alone = |name, setup, play| Scenario::alone(name, setup, play).only(Kind::NativeRedis);
    vec![
        alone("primaries_die_under_load", setup, primaries_die_under_load),
        alone("a_primary_dies_whose_replica_was_behind", behind, a_primary_dies_whose_replica_was_behind),
        alone("a_primary_restarts_at_once", restarting, a_primary_restarts_at_once),
        alone("a_replica_dies_under_load", setup, a_replica_dies_under_load),
        alone("a_primary_that_hangs_is_replaced_and_comes_back", setup, a_primary_that_hangs_is_replaced),
        alone("the_whole_cluster_freezes_under_load", setup, the_whole_cluster_freezes_under_load),
        alone(
            "a_frozen_cluster_leaves_session_routes_closed",
            Setup { allow_cached: false, ..calm },
            a_frozen_cluster_leaves_session_routes_closed,
        ),
        alone(
            "a_frozen_cluster_leaves_known_sessions_in_when_allowed",
            Setup { allow_cached: true, ..calm },
            a_frozen_cluster_leaves_known_sessions_in_when_allowed,
        ),
        alone("slots_move_under_load", calm, slots_move_under_load),
        alone("a_silent_cut_shows_within_three_seconds", cut, a_silent_cut_shows_within_three_seconds),
        alone("connections_that_fall_silent_are_replaced", cut, connections_that_fall_silent_are_replaced),
        alone("a_flushed_store_lets_nobody_in", calm, a_flushed_store_lets_nobody_in),
        alone("scripts_that_the_store_forgot_are_sent_again", calm, scripts_that_the_store_forgot_are_sent_again),
        alone(
            "replicas_never_refuse_a_fresh_session_nor_hide_a_revocation",
            Setup { read_from_replicas: true, ..setup },
            replicas_never_refuse_a_fresh_session_nor_hide_a_revocation,
        ),
        alone("one_standalone_server_is_enough", Setup { standalone: true, ..calm }, one_standalone_server_is_enough),
        alone("a_store_that_may_forget_is_warned_about", fragile, a_store_that_may_forget_is_warned_about),
        Scenario::alone("concurrent_logins_are_all_listed", calm, concurrent_logins_are_all_listed).natively(),
        Scenario::alone("no_session_survives_revoke_all", calm, no_session_survives_revoke_all).natively(),
    ]
}

/// Sessions whose creation or rotation too few replicas confirmed: the only ones that a failover may take.
fn unreplicated(d: &Deployment) -> Result<u64> {
    let count = |op| d.metric("edgekeep_store_unreplicated_total", Some(("op", op)));
    // A whole number, counted.
    Ok((count("create")? + count("rotate")?).round() as u64)
}

/// What happens to a primary, and, once its replica took over, what makes the cluster whole again.
struct Fall {
    strike: fn(&Cluster, usize) -> Result<()>,
    mend: fn(&Cluster, usize) -> Result<()>,
}

/// How many sessions were at risk, and how many were lost.
struct Toll {
    at_risk: u64,
    lost: u64,
}

/// Primaries fall under load, round after round. Only what too few replicas had when their primary fell may be lost: a
/// successor without a replica answers a lot that nobody confirms, and keeps all of it.
fn primaries_fall(d: &Deployment, name: &str, rounds: usize, fall: &Fall) -> Result<Toll> {
    let cluster = d.cluster()?;
    let mut while_whole = unreplicated(d)?;
    let mut at_risk = 0;
    let books = crowd::during(d, name, || {
        for round in 0..rounds {
            // Each time another shard's.
            let primaries = cluster.primaries()?;
            let primary = *primaries.get(round % primaries.len()).context("a primary")?;
            (fall.strike)(cluster, primary)?;
            thread::sleep(ON_ITS_WAY);
            at_risk += unreplicated(d)? - while_whole;
            cluster.wait_for_failover(primary, FAILOVER)?;
            thread::sleep(Duration::from_secs(1));
            (fall.mend)(cluster, primary)?;
            cluster.wait_until_whole(FAILOVER)?;
            while_whole = unreplicated(d)?;
            thread::sleep(Duration::from_secs(1));
        }
        Ok(())
    })?;
    ensure!(books.refused > 0, "a primary fell and it was not even noticed");
    Ok(Toll { at_risk, lost: books.settle(d, at_risk)? })
}

fn primaries_die_under_load(d: &Deployment) -> Result<()> {
    let fall = Fall { strike: Cluster::kill, mend: Cluster::restart };
    primaries_fall(d, "primaries", if is_long() { 20 } else { 1 }, &fall).map(drop)
}

fn a_primary_that_hangs_is_replaced(d: &Deployment) -> Result<()> {
    // Its connections stay open: only the nodes' timeout tells. It wakes up as a primary that was deposed, with whatever
    // was sent to it meanwhile.
    let fall = Fall { strike: Cluster::freeze, mend: Cluster::thaw };
    primaries_fall(d, "hanging", 1, &fall).map(drop)
}

/// The failover that does lose writes: the replica's link was broken for a while before its primary died. What it lacks
/// was answered as such.
fn a_primary_dies_whose_replica_was_behind(d: &Deployment) -> Result<()> {
    let fall = Fall {
        strike: |cluster, primary| {
            cluster.hold_back(cluster.replica_of(primary)?, primary)?;
            thread::sleep(Duration::from_secs(2));
            cluster.kill(primary)
        },
        mend: |cluster, dead| {
            // Whoever was held back is a primary now, and follows the next one that takes over from it.
            cluster.primaries()?.into_iter().try_for_each(|primary| cluster.let_follow(primary))?;
            cluster.restart(dead)
        },
    };
    let Toll { at_risk, lost } = primaries_fall(d, "behind", if is_long() { 6 } else { 1 }, &fall)?;
    ensure!(at_risk > 0 && lost > 0, "{at_risk} at risk and {lost} lost: nothing was lost, and so nothing is proven");
    Ok(())
}

/// Dead and back before anyone takes over. With `appendfsync always` its disk has everything; with `everysec` it may lack
/// the last two seconds, and its replica then throws away what it had more.
fn a_primary_restarts_at_once(d: &Deployment) -> Result<()> {
    let cluster = d.cluster()?;
    ensure!(!d.gateway_log()?.contains("appendfsync"), "told of a risk that is not there");
    let books = crowd::during(d, "at-once", || {
        for primary in cluster.primaries()? {
            cluster.kill(primary)?;
            cluster.restart(primary)?;
            cluster.wait_until_whole(FAILOVER)?;
            thread::sleep(Duration::from_secs(1));
        }
        Ok(())
    })?;
    books.settle(d, 0)?;
    Ok(())
}

fn a_replica_dies_under_load(d: &Deployment) -> Result<()> {
    let cluster = d.cluster()?;
    let before = unreplicated(d)?;
    let books = crowd::during(d, "replica", || {
        let primary = cluster.primary_of(cluster.slot_of("user:replica-0-0")?)?;
        let replica = cluster.replica_of(primary)?;
        cluster.kill(replica)?;
        thread::sleep(Duration::from_secs(4));
        cluster.restart(replica)?;
        cluster.wait_until_whole(FAILOVER)?;
        thread::sleep(Duration::from_secs(1));
        Ok(())
    })?;
    ensure!(unreplicated(d)? > before, "nobody counted what no replica confirmed");
    ensure!(books.unreplicated_ends > 0, "a revocation that no replica confirmed was answered 204");
    // The primaries lived all the time.
    books.settle(d, 0)?;
    Ok(())
}

fn the_whole_cluster_freezes_under_load(d: &Deployment) -> Result<()> {
    let cluster = d.cluster()?;
    let before = unreplicated(d)?;
    let mut at_risk = 0;
    let books = crowd::during(d, "frozen", || {
        cluster.freeze_all()?;
        thread::sleep(Duration::from_secs(5));
        at_risk = unreplicated(d)? - before;
        cluster.thaw_all()?;
        cluster.wait_until_whole(FAILOVER)?;
        thread::sleep(Duration::from_secs(1));
        Ok(())
    })?;
    ensure!(books.refused > 0, "a frozen cluster was not even noticed");
    books.settle(d, at_risk)?;
    Ok(())
}

fn a_frozen_cluster_leaves_session_routes_closed(d: &Deployment) -> Result<()> {
    frozen(d, 503)
}

fn a_frozen_cluster_leaves_known_sessions_in_when_allowed(d: &Deployment) -> Result<()> {
    frozen(d, 200)
}

/// What each mode answers while no node answers: `known` is the status for a session in the near cache.
fn frozen(d: &Deployment, known: u16) -> Result<()> {
    let cluster = d.cluster()?;
    let [used, unused] = [d.login("frozen-used")?, d.login("frozen-unused")?];
    d.get("/echo/x").bearer(&used.access).send()?.expect(200)?;
    cluster.freeze_all()?;
    // Until the pings stay unanswered for two seconds, the near cache may be believed.
    thread::sleep(SEEN_WITHIN + Duration::from_millis(500));
    let status = |path: &str, session: &Session| -> Result<u16> {
        let answer = d.get(path).bearer(&session.access).send()?;
        if answer.status == 503 {
            answer.problem(503, "store_unavailable")?;
        }
        Ok(answer.status)
    };
    for _ in 0..5 {
        for session in [&used, &unused] {
            ensure!(status("/echo/token/x", session)? == 200, "a token route needs the store");
            ensure!(status("/echo/account/x", session)? == 503, "a strict route was answered without the store");
        }
        let (found, unknown) = (status("/echo/x", &used)?, status("/echo/x", &unused)?);
        ensure!(found == known, "a session route for a known session: expected {known}, found {found}");
        ensure!(unknown == 503, "a session route for an unknown session: expected 503, found {unknown}");
    }
    d.refresh(&used.refresh, "phone")?.problem(503, "store_unavailable")?;
    d.create(&json!({ "user_id": "frozen-new" })).send()?.problem(503, "store_unavailable")?;
    d.service("DELETE", "/v1/users/frozen-nobody/sessions").send()?.problem(503, "store_unavailable")?;

    cluster.thaw_all()?;
    eventually("everything is served again", RECOVERY + FAILOVER, || {
        Ok(status("/echo/x", &used)? == 200 && status("/echo/account/x", &unused)? == 200)
    })?;
    // Repeating the token was safe.
    Session::from(&d.refresh(&used.refresh, "phone")?.expect(200)?)?;
    Ok(())
}

fn slots_move_under_load(d: &Deployment) -> Result<()> {
    let cluster = d.cluster()?;
    let books = crowd::during(d, "moving", || {
        // The slots in which the crowd's sessions are, and a range around one of them.
        let mut slots = BTreeSet::new();
        for user in crowd::users("moving") {
            slots.insert(cluster.slot_of(&format!("user:{user}"))?);
        }
        let first = *slots.first().context("a slot")?;
        let primaries = cluster.primaries()?;
        let to = |slot: u16| -> Result<usize> {
            let from = cluster.primary_of(slot)?;
            let at = primaries.iter().position(|node| *node == from).context("a primary")?;
            primaries.get((at + 1) % primaries.len()).copied().context("another primary")
        };
        for slot in slots.iter().copied() {
            cluster.move_slots([slot], to(slot)?, Duration::from_millis(200))?;
        }
        let around = (first.saturating_sub(20)..first + 20).filter(|slot| !slots.contains(slot));
        cluster.move_slots(around, to(first)?, Duration::ZERO)?;
        thread::sleep(Duration::from_secs(1));
        Ok(())
    })?;
    // Nobody died.
    books.settle(d, 0)?;
    Ok(())
}

/// A session that the gateway at `entry` keeps in its near cache.
fn known_at(d: &Deployment, entry: Entry, user: &str) -> Result<Session> {
    let session = d.login(user)?;
    for _ in 0..3 {
        Request::new(entry, "GET", "/echo/x").bearer(&session.access).send()?.expect(200)?;
    }
    Ok(session)
}

/// Tries a session route until the bound and a while longer: how long the session got in.
fn gets_in_for(entry: Entry, session: &Session) -> Result<Duration> {
    let begun = Instant::now();
    let mut last = Duration::ZERO;
    while begun.elapsed() < SEEN_WITHIN * 2 {
        let asked = begun.elapsed();
        let answer = Request::new(entry, "GET", "/echo/x").bearer(&session.access).send()?;
        match answer.status {
            200 => last = asked,
            401 => {
                answer.problem(401, "session_ended")?;
            }
            _ => {
                answer.problem(503, "store_unavailable")?;
            }
        }
        thread::sleep(Duration::from_millis(25));
    }
    Ok(last)
}

fn a_silent_cut_shows_within_three_seconds(d: &Deployment) -> Result<()> {
    let (cluster, second) = (d.cluster()?, d.second()?);
    let sessions: Vec<Session> = (0..6).map(|n| known_at(d, second, &format!("silent-{n}"))).collect::<Result<_>>()?;
    let (live, ended) = sessions.split_first().context("sessions")?;
    cluster.cut_off(true)?;
    for session in ended {
        d.delete("/v1/sessions/current").bearer(&session.access).send()?.expect(204)?;
    }
    let longest = thread::scope(|scope| {
        let tries: Vec<_> = ended.iter().map(|session| scope.spawn(move || gets_in_for(second, session))).collect();
        let tries = tries.into_iter().map(|one| one.join().unwrap_or_else(|_| Err(anyhow!("a client broke"))));
        tries.collect::<Result<Vec<_>>>()
    })?;
    let longest = longest.into_iter().max().unwrap_or_default();
    eprintln!("after a silent cut an ended session got in for {longest:?}");
    ensure!(longest <= SEEN_WITHIN, "an ended session got in for {longest:?} after a silent cut");
    // Cut off, the second gateway still serves what needs no store, and refuses nobody for good.
    let ask = |path: &str, session: &Session| Request::new(second, "GET", path).bearer(&session.access).send();
    ask("/echo/token/x", live)?.expect(200)?;
    ask("/echo/x", live)?.problem(503, "store_unavailable")?;
    cluster.mend();
    eventually("the second gateway is back", RECOVERY, || Ok(ask("/echo/x", live)?.status == 200))?;
    for session in ended {
        ask("/echo/x", session)?.problem(401, "session_ended")?;
    }
    Ok(())
}

fn connections_that_fall_silent_are_replaced(d: &Deployment) -> Result<()> {
    let (cluster, second) = (d.cluster()?, d.second()?);
    let live = known_at(d, second, "replaced-live")?;
    let ended = known_at(d, second, "replaced-ended")?;
    // What is open says nothing any more; new connections would work.
    cluster.cut_off(false)?;
    d.delete("/v1/sessions/current").bearer(&ended.access).send()?.expect(204)?;
    let longest = gets_in_for(second, &ended)?;
    ensure!(longest <= SEEN_WITHIN, "an ended session got in for {longest:?} after a silent cut");
    let ask = |session: &Session| Request::new(second, "GET", "/echo/x").bearer(&session.access).send();
    eventually("new connections are made", RECOVERY, || Ok(ask(&live)?.status == 200))?;
    ask(&ended)?.problem(401, "session_ended")?;
    // And those are tracked again.
    let again = known_at(d, second, "replaced-again")?;
    d.delete("/v1/sessions/current").bearer(&again.access).send()?.expect(204)?;
    eventually("a revocation is seen", Duration::from_secs(1), || Ok(ask(&again)?.status == 401))?;
    cluster.mend();
    Ok(())
}

fn a_flushed_store_lets_nobody_in(d: &Deployment) -> Result<()> {
    let (cluster, second) = (d.cluster()?, d.second()?);
    let sessions: Vec<Session> = (0..6).map(|n| known_at(d, second, &format!("flushed-{n}"))).collect::<Result<_>>()?;
    for primary in cluster.primaries()? {
        cluster.call(primary, &["FLUSHALL"])?;
    }
    for session in &sessions {
        eventually("nobody gets in", Duration::from_secs(1), || {
            let answer = Request::new(second, "GET", "/echo/x").bearer(&session.access).send()?;
            Ok(answer.status != 200)
        })?;
        let answer = Request::new(second, "GET", "/echo/x").bearer(&session.access).send()?;
        answer.problem(401, "session_ended")?;
        d.refresh(&session.refresh, "phone")?.problem(401, "invalid_refresh_token")?;
    }
    // The store is empty and well: new sessions are made as ever.
    let session = known_at(d, second, "flushed-later")?;
    ensure!(d.is_let_in(&session.access)?, "a session of the time after is refused");
    Ok(())
}

fn scripts_that_the_store_forgot_are_sent_again(d: &Deployment) -> Result<()> {
    let cluster = d.cluster()?;
    for round in 0..3 {
        let user = format!("forgotten-{round}");
        let forget = || cluster.nodes().try_for_each(|node| cluster.call(node, &["SCRIPT", "FLUSH"]).map(|_| ()));
        forget()?;
        let session = d.login(&user)?;
        forget()?;
        let session = Session::from(&d.refresh(&session.refresh, "phone")?.expect(200)?)?;
        forget()?;
        ensure!(d.is_let_in(&session.access)?, "the session is gone");
        forget()?;
        d.service("GET", &format!("/v1/users/{user}/sessions")).send()?.expect(200)?;
        let other = d.login(&user)?;
        forget()?;
        d.delete("/v1/sessions/current").bearer(&other.access).send()?.expect(204)?;
        forget()?;
        d.service("DELETE", &format!("/v1/users/{user}/sessions")).send()?.expect(204)?;
        ensure!(!d.is_let_in(&session.access)? && !d.is_let_in(&other.access)?, "a revocation did nothing");
    }
    Ok(())
}

fn replicas_never_refuse_a_fresh_session_nor_hide_a_revocation(d: &Deployment) -> Result<()> {
    let (cluster, second) = (d.cluster()?, d.second()?);
    let ask = |session: &Session| Request::new(second, "GET", "/echo/x").bearer(&session.access).send();
    let fresh = |round: usize| -> Result<Session> {
        let session = d.login(&format!("fresh-{}", round % 40))?;
        ask(&session)?.expect(200).context("a session as fresh as that")?;
        Ok(session)
    };
    let mut sessions = (0..200).map(fresh).collect::<Result<Vec<_>>>()?;

    let mut longest = Duration::ZERO;
    for session in sessions.split_off(180) {
        d.delete("/v1/sessions/current").bearer(&session.access).send()?.expect(204)?;
        let ended = Instant::now();
        eventually("a revocation is seen", SEEN_WITHIN, || Ok(ask(&session)?.status == 401))?;
        longest = longest.max(ended.elapsed());
    }
    eprintln!("reading replicas, a revocation was seen within {longest:?}");

    // A replica that hangs behind: what it does not have is no reason for a 401, and what it still has is no reason to
    // let an ended session in.
    let primaries = cluster.primaries()?;
    let replicas = primaries.into_iter().map(|primary| cluster.replica_of(primary)).collect::<Result<Vec<_>>>()?;
    replicas.iter().try_for_each(|replica| cluster.freeze(*replica))?;
    for (round, session) in sessions.iter().enumerate().take(20) {
        let answer = d.delete("/v1/sessions/current").bearer(&session.access).send()?;
        ensure!(answer.status == 202, "no replica can confirm: {answer}");
        eventually("a revocation is seen", SEEN_WITHIN, || Ok(ask(session)?.status != 200))?;
        let session = d.login(&format!("behind-{round}"))?;
        eventually("a fresh session gets in", SEEN_WITHIN, || {
            let answer = ask(&session)?;
            if answer.status == 503 {
                answer.problem(503, "store_unavailable")?;
                return Ok(false);
            }
            answer.expect(200).map(|_| true)
        })?;
    }
    cluster.thaw_all()?;
    cluster.wait_until_whole(FAILOVER)
}

fn one_standalone_server_is_enough(d: &Deployment) -> Result<()> {
    let redis = d.standalone()?;
    let second = d.second()?;
    let ask = |session: &Session| Request::new(second, "GET", "/echo/x").bearer(&session.access).send();
    let (kept, ended) = (known_at(d, second, "alone-kept")?, known_at(d, second, "alone-ended")?);
    let kept = Session::from(&d.refresh(&kept.refresh, "phone")?.expect(200)?)?;
    d.delete("/v1/sessions/current").bearer(&ended.access).send()?.expect(204)?;
    eventually("the other gateway sees it", Duration::from_secs(1), || Ok(ask(&ended)?.status == 401))?;

    redis.kill()?;
    d.refresh(&kept.refresh, "phone")?.problem(503, "store_unavailable")?;
    d.get("/echo/account/x").bearer(&kept.access).send()?.problem(503, "store_unavailable")?;
    eventually("session routes are closed", SEEN_WITHIN, || Ok(ask(&kept)?.status == 503))?;
    redis.restart()?;
    eventually("everything is served again", RECOVERY, || {
        Ok(ask(&kept)?.status == 200 && d.get("/echo/account/x").bearer(&kept.access).send()?.status == 200)
    })?;
    ensure!(!d.is_let_in(&ended.access)?, "a revocation was forgotten over the restart");
    let kept = Session::from(&d.refresh(&kept.refresh, "phone")?.expect(200)?)?;
    d.service("DELETE", "/v1/users/alone-kept/sessions").send()?.expect(204)?;
    eventually("the other gateway sees it", Duration::from_secs(1), || Ok(ask(&kept)?.status == 401))
}

fn a_store_that_may_forget_is_warned_about(d: &Deployment) -> Result<()> {
    let log = d.gateway_log()?;
    for what in ["appendonly", "noeviction"] {
        let warned = log.lines().any(|line| line.contains("WARN") && line.contains(what));
        ensure!(warned, "no warning names {what}:\n{log}");
    }
    // Redis' default is told, once, and no warning.
    let told: Vec<_> = log.lines().filter(|line| line.contains("appendfsync")).collect();
    ensure!(told.len() == 1 && told.iter().all(|line| line.contains("INFO")), "{told:?}");
    // It serves all the same.
    ensure!(d.is_let_in(&d.login("brave")?.access)?, "a new session is refused");
    Ok(())
}

fn concurrent_logins_are_all_listed(d: &Deployment) -> Result<()> {
    let (devices, each) = (16, 8);
    let together = Barrier::new(devices);
    let ids: Vec<Result<Vec<String>>> = thread::scope(|scope| {
        let logins: Vec<_> = (0..devices)
            .map(|_| {
                scope.spawn(|| {
                    together.wait();
                    (0..each).map(|_| Ok(d.login("everywhere")?.id)).collect()
                })
            })
            .collect();
        logins.into_iter().map(|login| login.join().unwrap_or_else(|_| bail!("a client broke"))).collect()
    });
    let made: BTreeSet<String> = ids.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    let list = d.service("GET", "/v1/users/everywhere/sessions").send()?.expect(200)?.json()?;
    let rows = list["sessions"].as_array().context("sessions")?;
    let listed: BTreeSet<String> =
        rows.iter().filter_map(|row| row["session_id"].as_str().map(str::to_owned)).collect();
    ensure!(made.len() == devices * each, "{} sessions were made", made.len());
    ensure!(listed == made, "{} of {} are listed", listed.len(), made.len());
    Ok(())
}

/// A login and when it was asked for and answered.
struct Login {
    session: Session,
    asked: Instant,
    answered: Instant,
}

fn no_session_survives_revoke_all(d: &Deployment) -> Result<()> {
    let over = AtomicBool::new(false);
    let (logins, calls) = thread::scope(|scope| -> Result<_> {
        let clients: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| -> Result<Vec<Login>> {
                    let mut made = Vec::new();
                    while !over.load(Ordering::Acquire) {
                        let asked = Instant::now();
                        let session = d.login("revoked-again")?;
                        made.push(Login { session, asked, answered: Instant::now() });
                    }
                    Ok(made)
                })
            })
            .collect();
        let mut calls = Vec::new();
        let mut revoke = || -> Result<()> {
            for _ in 0..8 {
                thread::sleep(Duration::from_millis(150));
                let asked = Instant::now();
                d.service("DELETE", "/v1/users/revoked-again/sessions").send()?.expect(204)?;
                calls.push((asked, Instant::now()));
            }
            thread::sleep(Duration::from_millis(150));
            Ok(())
        };
        let revoked = revoke();
        over.store(true, Ordering::Release);
        let mut logins = Vec::new();
        for client in clients {
            logins.extend(client.join().unwrap_or_else(|_| bail!("a client broke"))?);
        }
        revoked.map(|()| (logins, calls))
    })?;
    let mut live = BTreeSet::new();
    let (mut dead, mut after) = (0, 0);
    for Login { session, asked, answered } in &logins {
        let is_in = d.is_let_in(&session.access)?;
        if is_in {
            live.insert(session.id.clone());
        }
        if calls.iter().any(|(began, _)| answered < began) {
            dead += 1;
            ensure!(!is_in, "a session that existed when revoke_all ran survived it");
        } else if calls.iter().all(|(_, ended)| asked > ended) {
            after += 1;
            ensure!(is_in, "a session of the time after revoke_all is dead");
        }
    }
    ensure!(dead > 0 && after > 0, "{dead} before, {after} after: nothing is proven");
    // Those that were made meanwhile are one or the other, and the list says which.
    let list = d.service("GET", "/v1/users/revoked-again/sessions").send()?.expect(200)?.json()?;
    let rows = list["sessions"].as_array().context("sessions")?;
    let listed: BTreeSet<String> =
        rows.iter().filter_map(|row| row["session_id"].as_str().map(str::to_owned)).collect();
    ensure!(listed == live, "listed and let in differ: {listed:?} and {live:?}");
    Ok(())
}
