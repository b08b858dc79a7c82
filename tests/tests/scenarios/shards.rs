//! Where a user's requests go.

use std::collections::BTreeMap;
use std::thread;

use anyhow::{Context, Result, ensure};
use edgekeep_tests::{Answer, Deployment, PINNED_TO_ONE_ORIGIN, PINNED_TO_TWO_ORIGINS, Request};

use crate::scenario::Scenario;

/// As many users as the promise names.
const USERS: usize = 1000;
const CLIENTS: usize = 8;

pub fn scenarios() -> Vec<Scenario> {
    crate::shared![
        a_thousand_users_reach_the_same_shard_at_the_edge_and_natively,
        a_pinned_user_stays_on_the_named_shard,
        the_user_in_a_path_decides_where_the_route_says_so,
        a_named_shard_is_where_everybody_goes,
        a_pool_shares_its_requests_between_origins,
        photos_go_to_the_shard_of_their_month,
        applications_ask_for_placements,
    ]
}

fn a_thousand_users_reach_the_same_shard_at_the_edge_and_natively(d: &Deployment) -> Result<()> {
    let counted = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| scope.spawn(move || (client..USERS).step_by(CLIENTS).map(|n| placed_alike(d, n)).collect()))
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().unwrap_or_else(|_| anyhow::bail!("a client broke")))
            .collect::<Result<Vec<Vec<String>>>>()
    })?;
    let mut users: BTreeMap<String, usize> = BTreeMap::new();
    for shard in counted.into_iter().flatten() {
        *users.entry(shard).or_default() += 1;
    }
    ensure!(users.values().sum::<usize>() == USERS, "{users:?}");
    // SipHash spreads evenly: 500 ± 80 is more than five standard deviations.
    ensure!(users.len() == 2 && users.values().all(|count| (420..=580).contains(count)), "{users:?}");
    Ok(())
}

/// The shard of one user, by the deployment's entry, by its region and by the placement call.
fn placed_alike(d: &Deployment, number: usize) -> Result<String> {
    // Names of every kind: numbers, addresses, other scripts.
    let user = match number % 4 {
        0 => format!("{number}"),
        1 => format!("user-{number}@example.org"),
        2 => format!("пользователь {number}"),
        _ => format!("-{number}/%2F"),
    };
    let session = d.login(&user)?;
    let shard_of = |request: Request| -> Result<(String, String)> {
        let answer = request.bearer(&session.access).send()?.expect(200)?;
        let origin = answer.origin().context("no origin")?;
        let shard = one(&answer, "x-edgekeep-shard")?;
        let expected: &[&str] = if shard == "shard_0" { &["a", "b"] } else { &["c"] };
        ensure!(expected.contains(&origin), "{shard} was answered by {origin}");
        Ok((shard, one(&answer, "x-edgekeep-shard-epoch")?))
    };
    let here = shard_of(d.get("/echo/token/x"))?;
    let natively = shard_of(d.region("GET", "/echo/token/x"))?;
    ensure!(here == natively, "{user} is on {here:?} here and on {natively:?} natively");
    let said = d.service("GET", &format!("/v1/shards/users/{}", in_path(&user))).send()?.expect(200)?.json()?;
    ensure!(said["shard"] == here.0.as_str() && said["user_id"] == user.as_str(), "{user}: {said}, but {here:?}");
    ensure!(said["epoch"] == here.1.parse::<u64>()?, "{user}: {said}, but {here:?}");
    Ok(here.0)
}

fn a_pinned_user_stays_on_the_named_shard(d: &Deployment) -> Result<()> {
    for (user, shard) in [(PINNED_TO_TWO_ORIGINS, "shard_0"), (PINNED_TO_ONE_ORIGIN, "shard_1")] {
        let session = d.login(user)?;
        let answer = d.get("/echo/x").bearer(&session.access).send()?.expect(200)?;
        ensure!(one(&answer, "x-edgekeep-shard")? == shard, "{user}: {answer}");
        let said = d.service("GET", &format!("/v1/shards/users/{user}")).send()?.expect(200)?.json()?;
        ensure!(said["pinned"] == true && said["shard"] == shard, "{said}");
    }
    Ok(())
}

fn the_user_in_a_path_decides_where_the_route_says_so(d: &Deployment) -> Result<()> {
    let session = d.login("reader")?;
    for (user, shard) in [(PINNED_TO_TWO_ORIGINS, "shard_0"), (PINNED_TO_ONE_ORIGIN, "shard_1")] {
        let answer = d.get(&format!("/echo/of/{user}")).bearer(&session.access).send()?.expect(200)?;
        ensure!(one(&answer, "x-edgekeep-shard")? == shard, "{answer}");
        ensure!(one(&answer, "x-edgekeep-user")? == "reader", "who asks stays who asks: {answer}");
    }
    let long = "x".repeat(129);
    d.get(&format!("/echo/of/{long}")).bearer(&session.access).send()?.problem(400, "bad_identity")?;
    Ok(())
}

fn a_named_shard_is_where_everybody_goes(d: &Deployment) -> Result<()> {
    let session = d.login(PINNED_TO_TWO_ORIGINS)?;
    let answer = d.get("/echo/one-shard/x").bearer(&session.access).send()?.expect(200)?;
    ensure!(one(&answer, "x-edgekeep-shard")? == "shard_1" && answer.origin() == Some("c"), "{answer}");
    Ok(())
}

fn a_pool_shares_its_requests_between_origins(d: &Deployment) -> Result<()> {
    let session = d.login(PINNED_TO_TWO_ORIGINS)?;
    let mut answered: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..40 {
        let answer = d.get("/echo/x").bearer(&session.access).send()?.expect(200)?;
        *answered.entry(answer.origin().unwrap_or_default().to_owned()).or_default() += 1;
    }
    let shares = ["a", "b"].map(|origin| answered.get(origin).copied().unwrap_or_default());
    ensure!(shares.iter().sum::<usize>() == 40 && shares.iter().all(|share| *share >= 8), "{answered:?}");
    Ok(())
}

fn photos_go_to_the_shard_of_their_month(d: &Deployment) -> Result<()> {
    let session = d.login("photographer")?;
    let answer = d.get("/photos/2024-05/beach.jpg").bearer(&session.access).send()?;
    ensure!(answer.origin() == Some("a"), "{answer}");
    // The instant counts in UTC: by then it is June there, whose only origin is dead.
    let late = d.get("/photos/2024-05-31T23:30:00-02:00/beach.jpg").bearer(&session.access).send()?;
    late.problem(502, "origin_failed")?;
    d.get("/photos/2024-07/x").bearer(&session.access).send()?.problem(503, "no_pool")?;
    for month in ["2019-12", "2999-01", "2024-13", "yesterday"] {
        d.get(&format!("/photos/{month}/x")).bearer(&session.access).send()?.problem(400, "bad_instant")?;
    }
    Ok(())
}

fn applications_ask_for_placements(d: &Deployment) -> Result<()> {
    let asked = |query: &str| d.service("GET", &format!("/v1/shards/photos?{query}")).send();
    let at = asked("at=2024-05-31T23:30:00-02:00")?.expect(200)?.json()?;
    ensure!(at["shards"] == serde_json::json!(["shard_2024_6"]), "{at}");
    let range = asked("from=2024-11&to=2025-02")?.expect(200)?.json()?;
    ensure!(range["shards"] == serde_json::json!(["shard_2024_11", "shard_2024_12", "shard_2025_1"]), "{range}");
    asked("at=1999-01")?.problem(400, "bad_instant")?;
    asked("")?.problem(400, "bad_request")?;
    d.get("/v1/shards/photos?at=2024-05").send()?.problem(401, "missing_credential")?;
    Ok(())
}

/// The only value of a header that reached the origin.
fn one(answer: &Answer, name: &str) -> Result<String> {
    let values = answer.echoed(name)?;
    ensure!(values.len() == 1, "{name} is {values:?} in {answer}");
    values.into_iter().next().context("one value")
}

fn in_path(user: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    user.bytes().map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
