//! What stands in Redis, read with a plain client after real calls: the keys, types, lifetimes and slots that
//! docs/storage.md promises to whoever shares the store, and nothing that would let its thief in.

use std::collections::BTreeSet;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use edgekeep_tests::storage_doc::refresh_state_fields;
use edgekeep_tests::{Cluster, Deployment, Kind, Session, Setup};
use serde_json::{Value, json};

use crate::refresh::AFTER_GRACE;
use crate::scenario::Scenario;

const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// session.refresh_ttl: the absolute limit.
const REFRESH_TTL_MS: i64 = 30 * DAY_MS;
/// session.idle_ttl.
const IDLE_TTL_MS: i64 = 14 * DAY_MS;
/// session.access_ttl: how long a dead mark stays.
const ACCESS_TTL_MS: i64 = 15 * 60 * 1000;
/// How long a call and the look at what it left may take; also what rounding up may add.
const A_WHILE_MS: i64 = 60 * 1000;

pub fn scenarios() -> Vec<Scenario> {
    let roomy = Setup { roomy: true, ..Setup::default() };
    let shared = |name, play| Scenario::shared(name, play).only(Kind::NativeRedis);
    vec![
        shared("a_session_is_stored_as_documented", a_session_is_stored_as_documented),
        shared("a_refresh_state_has_the_documented_fields", a_refresh_state_has_the_documented_fields),
        shared("an_ended_session_leaves_a_mark_for_as_long_as_its_tokens", an_ended_session_leaves_a_mark),
        shared("an_index_does_not_grow_for_ever", an_index_does_not_grow_for_ever),
        Scenario::alone("a_dump_of_the_store_lets_nobody_in", roomy, a_dump_of_the_store_lets_nobody_in)
            .only(Kind::NativeRedis),
    ]
}

fn record_key(session: &Session) -> String {
    format!("session:{}", session.id)
}

fn state_key(session: &Session) -> String {
    format!("{{session:{}}}:rt", session.id)
}

/// `user` as it stands in keys.
fn index_key(user: &str) -> String {
    format!("{{user:{user}}}:sessions")
}

fn epoch_key(user: &str) -> String {
    format!("{{user:{user}}}:epoch")
}

fn a_session_is_stored_as_documented(d: &Deployment) -> Result<()> {
    let cluster = d.cluster()?;
    let device = json!({ "os": "linux", "name": "Zoë's {phone}" });
    let number: Value = serde_json::from_str("4711")?;
    let as_number = d.login_with(&json!({ "user_id": number, "device_info": device }))?;
    let as_text = d.login_with(&json!({ "user_id": "stored/as ö{x}" }))?;
    for (session, user, user_id, device) in [
        (&as_number, "4711", number, device),
        (&as_text, "stored%2Fas%20%C3%B6%7Bx%7D", json!("stored/as ö{x}"), json!({})),
    ] {
        // The original's record, with its fields and nothing else.
        let record = record_key(session);
        let stored: Value = serde_json::from_str(cluster.at(&record, &["GET", &record])?.text()?)?;
        let created_at = stored["created_at"].as_str().context("created_at")?;
        ensure!(stored == json!({ "user_id": user_id, "device_info": device, "created_at": created_at }), "{stored}");
        let shape: String = created_at.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        ensure!(shape == "0000-00-00T00:00:00.000000", "created_at: {created_at}");

        // Types.
        let (state, index) = (state_key(session), index_key(user));
        for (key, kind) in [(&record, "string"), (&state, "hash"), (&index, "zset")] {
            let found = cluster.at(key, &["TYPE", key])?;
            ensure!(found.text()? == kind, "{key} is a {found:?} and not a {kind}");
        }

        // The index holds the absolute expiry, in milliseconds; index and record stay until then, the refresh state
        // until the idle limit.
        let absolute: i64 = cluster.at(&index, &["ZSCORE", &index, &session.id])?.text()?.parse()?;
        let left = absolute - now_ms()?;
        ensure!((REFRESH_TTL_MS - A_WHILE_MS..=REFRESH_TTL_MS).contains(&left), "absolute expiry in {left} ms");
        let idle = absolute - REFRESH_TTL_MS + IDLE_TTL_MS;
        for (key, limit) in [(&record, absolute), (&index, absolute), (&state, idle)] {
            let expires = cluster.at(key, &["PEXPIRETIME", key])?.integer()?;
            ensure!(expires > 0, "{key} never expires");
            // Rounded up: never before the session does.
            ensure!((limit..=limit + A_WHILE_MS).contains(&expires), "{key} expires at {expires}, not at {limit}");
        }
        // Nobody ever revoked all of this user's sessions: there is nothing to remember.
        let epoch = epoch_key(user);
        ensure!(cluster.at(&epoch, &["EXISTS", &epoch])?.integer()? == 0, "{epoch} was made by a login");

        // One slot for everything of a user, reached by the id's last six digits alone.
        let slot = cluster.slot_of(&format!("user:{user}"))?;
        for key in [&record, &state, &index, &epoch] {
            ensure!(cluster.slot_of(key)? == slot, "{key} is in another slot than its user");
        }
        let steered = session.id.chars().rev().take(6).all(|digit| ('0'..='7').contains(&digit));
        ensure!(steered, "the last six digits of {}", session.id);
        ensure!(session.id.chars().nth(14) == Some('4'), "{} is no UUIDv4", session.id);
    }
    // A rotation moves the idle limit and nothing else.
    let (record, state) = (record_key(&as_text), state_key(&as_text));
    let of_record = || -> Result<_> { Ok((look(cluster, &record, "GET")?, look_at_expiry(cluster, &record)?)) };
    let (before, idle) = (of_record()?, look_at_expiry(cluster, &state)?);
    Session::from(&d.refresh(&as_text.refresh, "phone")?.expect(200)?)?;
    ensure!(of_record()? == before, "a rotation rewrote the record: {before:?}");
    let moved = look_at_expiry(cluster, &state)?;
    ensure!((idle + 1..idle + A_WHILE_MS).contains(&moved), "the idle limit went from {idle} to {moved}");
    let index = index_key("stored%2Fas%20%C3%B6%7Bx%7D");
    let absolute: i64 = cluster.at(&index, &["ZSCORE", &index, &as_text.id])?.text()?.parse()?;
    ensure!(absolute == before.1, "a rotation moved the absolute limit to {absolute}");
    Ok(())
}

fn a_refresh_state_has_the_documented_fields(d: &Deployment) -> Result<()> {
    let cluster = d.cluster()?;
    let documented = refresh_state_fields()?;
    let has_all_but = |session: &Session, absent: &[&str], when: &str| -> Result<()> {
        let state = state_key(session);
        let found: BTreeSet<String> = cluster.at(&state, &["HKEYS", &state])?.texts()?.into_iter().collect();
        let expected = documented.iter().filter(|field| !absent.contains(&field.as_str())).cloned().collect();
        ensure!(found == expected, "{when}: found {found:?}, documented {expected:?}");
        Ok(())
    };
    let session = d.login("fields")?;
    has_all_but(&session, &["ttl", "dead"], "created")?;
    let shorter = d.login_with(&json!({ "user_id": "fields", "access_ttl": 600 }))?;
    has_all_but(&shorter, &["dead"], "created with a shorter life")?;

    let next = Session::from(&d.refresh(&session.refresh, "phone")?.expect(200)?)?;
    has_all_but(&session, &["ttl", "dead"], "rotated")?;
    thread::sleep(AFTER_GRACE);
    let again = Session::from(&d.refresh(&session.refresh, "phone")?.expect(200)?)?;
    ensure!(again.refresh == next.refresh, "no lost answer");
    has_all_but(&session, &["ttl", "dead"], "given again")?;
    let state = state_key(&session);
    let reissued: i64 = cluster.at(&state, &["HGET", &state, "reissued"])?.text()?.parse()?;
    ensure!((0..A_WHILE_MS).contains(&(now_ms()? - reissued)), "given again at {reissued}");
    ensure!(cluster.at(&state, &["HGET", &state, "retries"])?.text()? == "1", "not counted");
    Session::from(&d.refresh(&next.refresh, "phone")?.expect(200)?)?;
    has_all_but(&session, &["ttl", "dead"], "rotated again")?;

    d.service("DELETE", "/v1/users/fields/sessions").send()?.expect(204)?;
    has_all_but(&session, &["ttl"], "ended")?;
    has_all_but(&shorter, &[], "ended")
}

fn look_at_expiry(cluster: &Cluster, key: &str) -> Result<i64> {
    cluster.at(key, &["PEXPIRETIME", key])?.integer()
}

fn look(cluster: &Cluster, key: &str, command: &str) -> Result<String> {
    Ok(cluster.at(key, &[command, key])?.text()?.to_owned())
}

fn an_ended_session_leaves_a_mark(d: &Deployment) -> Result<()> {
    let cluster = d.cluster()?;
    let [one, other, last] = [d.login("marked")?, d.login("marked")?, d.login("marked")?];
    let exists = |key: &str| -> Result<bool> { Ok(cluster.at(key, &["EXISTS", key])?.integer()? == 1) };
    let is_marked = |session: &Session| -> Result<()> {
        let (record, state) = (record_key(session), state_key(session));
        ensure!(!exists(&record)?, "{record} is still there");
        let left = cluster.at(&state, &["PTTL", &state])?.integer()?;
        // As long as an access token of it may be around.
        ensure!(left > 0 && left <= ACCESS_TTL_MS + A_WHILE_MS, "the dead mark stays for {left} ms");
        Ok(())
    };
    let index = index_key("marked");
    let indexed = || -> Result<Vec<String>> { cluster.at(&index, &["ZRANGE", &index, "0", "-1"])?.texts() };

    d.delete("/v1/sessions/current").bearer(&one.access).send()?.expect(204)?;
    is_marked(&one)?;
    let mut left = vec![other.id.clone(), last.id.clone()];
    let mut found = indexed()?;
    left.sort();
    found.sort();
    ensure!(found == left, "the index: {found:?}");
    d.delete(&format!("/v1/sessions/{}", other.id)).bearer(&last.access).send()?.expect(204)?;
    is_marked(&other)?;
    ensure!(indexed()? == [last.id.clone()], "the index: {:?}", indexed()?);

    d.service("DELETE", "/v1/users/marked/sessions").send()?.expect(204)?;
    is_marked(&last)?;
    ensure!(!exists(&index)?, "an empty index is left");
    let epoch = epoch_key("marked");
    ensure!(look(cluster, &epoch, "GET")? == "1", "the epoch was not raised");
    let forgotten = look_at_expiry(cluster, &epoch)?;
    ensure!(forgotten - now_ms()? > REFRESH_TTL_MS - A_WHILE_MS, "the epoch is forgotten at {forgotten}");
    // It outlives every session that is made under it.
    let later = d.login("marked")?;
    let absolute = look_at_expiry(cluster, &record_key(&later))?;
    let forgotten = look_at_expiry(cluster, &epoch)?;
    ensure!(forgotten >= absolute, "the epoch is forgotten at {forgotten}, before a session that ends at {absolute}");
    ensure!(look(cluster, &epoch, "GET")? == "1", "a login changed the epoch");
    Ok(())
}

fn an_index_does_not_grow_for_ever(d: &Deployment) -> Result<()> {
    let cluster = d.cluster()?;
    let index = index_key("a-year-old");
    d.login("a-year-old")?;
    // As a year of logins leaves it: sessions that expired long ago.
    let long_ago = (now_ms()? - 300 * DAY_MS).to_string();
    let ids: Vec<String> = (0..50).map(|n| format!("00000000-0000-4000-8000-{n:012}")).collect();
    let mut command = vec!["ZADD", index.as_str()];
    for id in &ids {
        command.extend([long_ago.as_str(), id]);
    }
    cluster.at(&index, &command)?;
    d.login("a-year-old")?;
    let found = cluster.at(&index, &["ZCARD", &index])?.integer()?;
    ensure!(found == 2, "{found} entries for two sessions");
    let list = d.service("GET", "/v1/users/a-year-old/sessions").send()?.expect(200)?.json()?;
    ensure!(list["sessions"].as_array().is_some_and(|rows| rows.len() == 2), "{list}");
    Ok(())
}

fn a_dump_of_the_store_lets_nobody_in(d: &Deployment) -> Result<()> {
    let cluster = d.cluster()?;
    for user in ["dumped-1", "dumped-2", "dumped-3"] {
        let session = d.login(user)?;
        let session = Session::from(&d.refresh(&session.refresh, "phone")?.expect(200)?)?;
        d.get("/echo/x").bearer(&session.access).send()?.expect(200)?;
        d.delete("/v1/sessions/current").bearer(&d.login(user)?.access).send()?.expect(204)?;
        d.service("DELETE", &format!("/v1/users/{user}/sessions")).send()?.expect(204)?;
        d.login(user)?;
    }
    let mut dump = String::new();
    for key in cluster.keys()? {
        let kind = look(cluster, &key, "TYPE")?;
        let values = match kind.as_str() {
            "string" => vec![look(cluster, &key, "GET")?],
            "hash" => cluster.at(&key, &["HGETALL", &key])?.texts()?,
            "zset" => cluster.at(&key, &["ZRANGE", &key, "0", "-1"])?.texts()?,
            "set" => cluster.at(&key, &["SMEMBERS", &key])?.texts()?,
            _ => anyhow::bail!("{key} is a {kind}, which docs/storage.md does not name"),
        };
        dump += &format!("{key}\n{}\n", values.join("\n"));
        let of_users = key.starts_with("session:") || key.starts_with("{session:") || key.starts_with("{user:");
        if of_users {
            let left = cluster.at(&key, &["PTTL", &key])?.integer()?;
            ensure!(left > 0, "{key} stays for ever");
            continue;
        }
        // Of the gateways themselves; each is documented.
        ensure!(key.starts_with("edgekeep:") || key.starts_with("{edgekeep"), "an undocumented key: {key}");
    }
    ensure!(dump.contains("dumped-1"), "nothing was dumped");
    let secrets = d.secrets_in(&dump)?;
    ensure!(secrets.is_empty(), "the store holds {}", secrets.join(", "));
    Ok(())
}

fn now_ms() -> Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}
