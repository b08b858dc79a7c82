//! How gateways get into Redis: with a password, as the user that docs/storage.md gives them and with no more rights than
//! that, by TLS.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use edgekeep_tests::storage_doc::GATEWAY_USER;
use edgekeep_tests::{Deployment, Entry, Kind, REDIS_PASSWORD, RedisOptions, Request, Session, Setup, eventually};

use crate::scenario::Scenario;

/// How soon another gateway knows of a revocation, and of another gateway.
const SOON: Duration = Duration::from_secs(3);

/// Shorter than what the gateway waits for keys in motion.
const HALF_MOVED: Duration = Duration::from_secs(1);

pub fn scenarios() -> Vec<Scenario> {
    let with = |redis| Setup { roomy: true, redis, ..Setup::default() };
    let password = with(RedisOptions { password: Some(REDIS_PASSWORD), ..RedisOptions::default() });
    let user = with(RedisOptions { documented_user: true, ..RedisOptions::default() });
    let tls = with(RedisOptions { tls: true, ..RedisOptions::default() });
    let alone = |name, setup, play| Scenario::alone(name, setup, play).only(Kind::NativeRedis);
    vec![
        alone("a_store_with_a_password", password, a_store_with_a_password),
        alone(
            "the_documented_user_may_do_what_gateways_do",
            Setup { read_from_replicas: true, ..user },
            the_documented_user_may_do_what_gateways_do,
        ),
        alone(
            "the_documented_user_is_enough_for_a_standalone_server",
            Setup { standalone: true, ..user },
            the_documented_user_may_do_what_gateways_do,
        ),
        alone("a_cluster_is_reached_by_tls", Setup { read_from_replicas: true, ..tls }, a_store_is_reached_by_tls),
        alone("a_standalone_server_is_reached_by_tls", Setup { standalone: true, ..tls }, a_store_is_reached_by_tls),
    ]
}

fn a_store_with_a_password(d: &Deployment) -> Result<()> {
    let said = d.refused_start("EDGEKEEP_REDIS_PASSWORD", "not the password")?;
    ensure!(said.contains("store.password_env"), "the key is not named: {said}");
    ensure!(!said.contains("not the password"), "the password is told: {said}");
    let session = d.login("with-a-password")?;
    let session = Session::from(&d.refresh(&session.refresh, "phone")?.expect(200)?)?;
    let second = d.second()?;
    Request::new(second, "GET", "/echo/x").bearer(&session.access).send()?.expect(200)?;
    d.delete("/v1/sessions/current").bearer(&session.access).send()?.expect(204)?;
    ensure!(!d.is_let_in(&session.access)?, "the session lives on");
    Ok(())
}

fn the_documented_user_may_do_what_gateways_do(d: &Deployment) -> Result<()> {
    let second = d.second()?;
    for clients in d.each_redis(&["CLIENT", "LIST", "TYPE", "normal"])? {
        let clients = clients.text()?.to_owned();
        let is_ours = |line: &&str| line.contains(&format!(" user={GATEWAY_USER} "));
        // The other one is who asks.
        ensure!(clients.lines().filter(is_ours).count() + 1 == clients.lines().count(), "others too:\n{clients}");
    }
    live_through_everything(d, "permitted", second)?;
    // As texts where a server forgot the scripts.
    d.each_redis(&["SCRIPT", "FLUSH"])?;
    live_through_everything(d, "forgotten", second)?;
    if !d.setup.standalone {
        // And while a slot moves, when servers send each other's clients around.
        let cluster = d.cluster()?;
        let slot = cluster.slot_of("user:moving")?;
        d.login("moving")?;
        let from = cluster.primary_of(slot)?;
        let to = cluster.primaries()?.into_iter().find(|node| *node != from).context("another primary")?;
        let before = d.metric("edgekeep_store_redirects_total", None)?;
        thread::scope(|scope| {
            let moved = scope.spawn(|| cluster.move_slots([slot], to, HALF_MOVED));
            thread::sleep(HALF_MOVED / 3);
            live_through_everything(d, "moving", second)?;
            moved.join().map_err(|_| anyhow!("the mover broke"))?
        })?;
        ensure!(d.metric("edgekeep_store_redirects_total", None)? > before, "nobody was sent anywhere");
    }
    for gateway in d.gateways()? {
        gateway.admin("/readyz").send()?.expect(200)?;
    }
    // Whatever was refused, by itself or inside a script, stands there.
    for refused in d.each_redis(&["ACL", "LOG"])? {
        ensure!(refused.array()?.is_empty(), "refused: {refused:?}");
    }
    let log = d.gateway_log()?;
    // One of the deployment's pools is dead, which its checks say.
    let warns = log.lines().any(|line| line.contains(" WARN ") && !line.contains(" edgekeep::checks: "));
    ensure!(!warns, "the gateway warns:\n{log}");
    Ok(())
}

fn a_store_is_reached_by_tls(d: &Deployment) -> Result<()> {
    // Nobody whom this machine trusts has signed the servers' certificates.
    let said = d.refused_start("SSL_CERT_FILE", d.certificates()?.stranger())?;
    ensure!(said.contains("store.nodes") && said.contains("certificate"), "the reason is not told: {said}");
    // Its authority is named: with that, sessions live as over any store.
    let second = d.second()?;
    live_through_everything(d, "by-tls", second)
}

/// Every operation on sessions, and two gateways that know of each other.
fn live_through_everything(d: &Deployment, user: &str, second: Entry) -> Result<()> {
    let ask = |session: &Session| Request::new(second, "GET", "/echo/x").bearer(&session.access).send();
    let [first, other, last] = [d.login(user)?, d.login(user)?, d.login(user)?];
    ask(&first)?.expect(200)?;
    let first = Session::from(&d.refresh(&first.refresh, "phone")?.expect(200)?)?;
    ask(&first)?.expect(200)?;
    ensure!(d.is_let_in(&first.access)?, "a refreshed session is refused");
    let list = d.service("GET", &format!("/v1/users/{user}/sessions")).send()?.expect(200)?.json()?;
    ensure!(list["sessions"].as_array().is_some_and(|rows| rows.len() >= 3), "{list}");
    d.delete(&format!("/v1/sessions/{}", other.id)).bearer(&first.access).send()?.expect(204)?;
    d.delete("/v1/sessions?except=current").bearer(&first.access).send()?.expect(204)?;
    ensure!(!d.is_let_in(&other.access)? && !d.is_let_in(&last.access)?, "what was ended gets in");
    d.service("DELETE", &format!("/v1/users/{user}/sessions")).send()?.expect(204)?;
    eventually("the other gateway sees it", SOON, || Ok(ask(&first)?.status == 401))?;
    eventually("the gateways know of each other", SOON, || Ok(d.metric("edgekeep_gateways_live", None)? == 4.0))
}
