//! Bodies stream through in both directions, whatever their length, and are never held in memory.

use std::io::{Read, Write};

use anyhow::{Context, Result, ensure};
use edgekeep_tests::{Deployment, Framing, Kind, PINNED_TO_ONE_ORIGIN, pattern_checksum};
use serde_json::json;

use crate::scenario::Scenario;

const MIB: u64 = 1024 * 1024;
/// What 400 MiB that pass through may add to a process's peak. A gateway's buffers are far smaller; workerd's are the
/// platform's, and its heap is collected when it likes.
const NATIVE_GROWTH_KIB: u64 = 24 * 1024;
const WORKERD_GROWTH_KIB: u64 = 96 * 1024;

pub fn scenarios() -> Vec<Scenario> {
    let mut all = crate::shared![
        small_bodies_arrive_whole,
        a_body_over_the_limit_is_refused,
        answers_without_a_body_stay_so,
        many_bodies_at_once_do_not_mix,
        a_get_with_a_body_is_a_get,
    ];
    all.push(Scenario::alone(
        "bodies_of_100_mib_stream_both_ways_with_flat_memory",
        edgekeep_tests::Setup::default(),
        bodies_of_100_mib_stream_both_ways_with_flat_memory,
    ));
    // At the edge the platform reads the body.
    all.push(
        Scenario::shared("a_body_that_is_none_is_the_clients_fault", a_body_that_is_none_is_the_clients_fault)
            .natively(),
    );
    all
}

fn a_body_that_is_none_is_the_clients_fault(d: &Deployment) -> Result<()> {
    let session = d.login("broken-body")?;
    let post = || d.post("/echo/x").bearer(&session.access).header("transfer-encoding", "chunked");
    for _ in 0..10 {
        let mut socket = post().begin()?;
        socket.write_all(b"3\r\nabc\r\nzz\r\n")?;
        let mut answer = String::new();
        // The connection is closed behind the answer, at times so hard that the rest cannot be read.
        let _ = socket.read_to_string(&mut answer);
        ensure!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    d.get("/echo/x").bearer(&session.access).send()?.expect(200)?;
    Ok(())
}

fn a_get_with_a_body_is_a_get(d: &Deployment) -> Result<()> {
    let session = d.login("get-with-body")?;
    for framing in [Framing::ContentLength, Framing::Chunked] {
        let list = d.get("/v1/sessions").bearer(&session.access).upload(300, framing).send()?.expect(200)?;
        ensure!(list.json()?["sessions"].as_array().is_some_and(|sessions| sessions.len() == 1), "{list}");
        let seen = d.get("/echo/x").bearer(&session.access).upload(300, framing).send()?.expect(200)?;
        // docs/parity.md: a Worker's platform sends no body with a GET.
        let arrives = if d.kind.is_native() { 300 } else { 0 };
        ensure!(seen.json()?["body"]["length"] == arrives, "{seen}");
    }
    Ok(())
}

fn small_bodies_arrive_whole(d: &Deployment) -> Result<()> {
    let session = d.login("small-bodies")?;
    for bytes in [0, 1, 250, 64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, MIB] {
        for framing in [Framing::ContentLength, Framing::Chunked] {
            up(d, &session.access, bytes, framing).with_context(|| format!("{bytes} bytes up, {framing:?}"))?;
            down(d, &session.access, bytes, framing).with_context(|| format!("{bytes} bytes down, {framing:?}"))?;
        }
    }
    Ok(())
}

fn bodies_of_100_mib_stream_both_ways_with_flat_memory(d: &Deployment) -> Result<()> {
    let session = d.login("large-bodies")?;
    // Warm first, so that what is measured is the bodies'.
    for framing in [Framing::ContentLength, Framing::Chunked] {
        up(d, &session.access, MIB, framing)?;
        down(d, &session.access, MIB, framing)?;
    }
    let before = d.peak_memory()?;
    for framing in [Framing::ContentLength, Framing::Chunked] {
        up(d, &session.access, 100 * MIB, framing).with_context(|| format!("up, {framing:?}"))?;
        down(d, &session.access, 100 * MIB, framing).with_context(|| format!("down, {framing:?}"))?;
    }
    let growth = d.peak_memory()?.saturating_sub(before);
    let bound = match d.kind {
        Kind::NativeEmbedded | Kind::NativeRedis => NATIVE_GROWTH_KIB,
        Kind::EdgeBesideRegion => WORKERD_GROWTH_KIB,
    };
    ensure!(growth <= bound, "the peak grew by {growth} KiB, from {before} KiB");
    Ok(())
}

fn up(d: &Deployment, token: &str, bytes: u64, framing: Framing) -> Result<()> {
    let answer = d.post("/stream/0").bearer(token).upload(bytes, framing).send()?.expect(200)?;
    let document = answer.json()?;
    ensure!(document["received"] == bytes && document["fnv1a"] == pattern_checksum(bytes), "{answer}");
    Ok(())
}

fn down(d: &Deployment, token: &str, bytes: u64, framing: Framing) -> Result<()> {
    let framed = if framing == Framing::Chunked { "?framing=chunked" } else { "" };
    let answer = d.get(&format!("/stream/{bytes}{framed}")).bearer(token).send()?.expect(200)?;
    ensure!(answer.tally.length == bytes, "{} of {bytes} bytes", answer.tally.length);
    ensure!(answer.tally.checksum() == pattern_checksum(bytes), "other bytes");
    if framing == Framing::ContentLength {
        ensure!(answer.header("content-length") == Some(bytes.to_string().as_str()), "the length is lost");
    }
    Ok(())
}

fn a_body_over_the_limit_is_refused(d: &Deployment) -> Result<()> {
    let session = d.login("too-large")?;
    // limits.body = "100MiB", told beforehand; limits.json_body = "64KiB".
    let answer = d.post("/stream/0").bearer(&session.access).upload(100 * MIB + 1, Framing::ContentLength).send()?;
    answer.problem(413, "body_too_large")?;
    let padding = "x".repeat(70_000);
    d.create(&json!({ "user_id": "x", "device_info": { "x": padding } })).send()?.problem(413, "body_too_large")?;
    Ok(())
}

fn answers_without_a_body_stay_so(d: &Deployment) -> Result<()> {
    let session = d.login("no-body")?;
    for status in [204, 205, 304] {
        let answer = d.get(&format!("/status/{status}")).bearer(&session.access).send()?.expect(status)?;
        ensure!(answer.tally.length == 0, "{answer}");
    }
    let answer = d.request("HEAD", "/stream/1000").bearer(&session.access).send()?.expect(200)?;
    ensure!(answer.tally.length == 0, "{answer}");
    let refused = d.request("HEAD", "/echo/x").send()?.expect(401)?;
    ensure!(refused.header("www-authenticate").is_some() && refused.tally.length == 0, "{refused}");
    Ok(())
}

fn many_bodies_at_once_do_not_mix(d: &Deployment) -> Result<()> {
    let session = d.login(PINNED_TO_ONE_ORIGIN)?;
    std::thread::scope(|scope| {
        let clients: Vec<_> = (1..=16)
            .map(|n| {
                let token = &session.access;
                scope.spawn(move || {
                    up(d, token, n * 10_007, Framing::Chunked).and(down(d, token, n * 9_973, Framing::Chunked))
                })
            })
            .collect();
        clients.into_iter().try_for_each(|client| client.join().unwrap_or_else(|_| anyhow::bail!("a client broke")))
    })
}
