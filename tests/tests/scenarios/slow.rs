//! Clients that are slow: whoever takes a little of an answer now and then is waited for, whoever takes nothing for
//! `server.idle_timeout` is left, and its place at the origin is free again.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use edgekeep_tests::http2::{Http2, run};
use edgekeep_tests::tls::{client, connect};
use edgekeep_tests::{Certificates, Deployment, Gateway, Kind, Origin, Raw, Written, eventually};

use crate::scenario::Scenario;

/// `server.idle_timeout` here.
const PATIENCE: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(10);
const TLS: &str = "tls = { cert = \"server.pem\", key = \"server.key\" }";

pub fn scenarios() -> Vec<Scenario> {
    let all = crate::shared![
        who_takes_nothing_is_left,
        who_takes_nothing_of_an_upgraded_connection_is_left,
        who_takes_nothing_through_tls_is_left,
        a_stream_of_http2_that_is_not_read_is_left_alone,
        who_takes_a_little_is_waited_for,
        a_client_that_left_a_websocket_gives_its_place_back,
    ];
    // A store has no part in it.
    all.into_iter().map(|scenario| scenario.only(Kind::NativeEmbedded)).collect()
}

/// A gateway before an origin that sends without an end, and for how many it does.
fn start(tls: &str) -> Result<(Gateway, Certificates, Arc<AtomicUsize>)> {
    let sending = Arc::new(AtomicUsize::new(0));
    let of_origin = sending.clone();
    let origin = Origin::start(move |mut connection| {
        let mut head = vec![0; 4096];
        let length = connection.read(&mut head)?;
        let head = String::from_utf8_lossy(&head[..length]).to_ascii_lowercase();
        let answer: &[u8] = if head.contains("upgrade: bytes") {
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: bytes\r\n\r\n"
        } else {
            b"HTTP/1.1 200 OK\r\n\r\n"
        };
        of_origin.fetch_add(1, Ordering::Relaxed);
        let sent = connection.write_all(answer).and_then(|()| {
            loop {
                connection.write_all(&[b'x'; 64 * 1024])?;
            }
        });
        of_origin.fetch_sub(1, Ordering::Relaxed);
        Ok(sent?)
    })?;
    let folder = tempfile::tempdir()?;
    let certificates = Certificates::make(folder.path())?;
    let server = format!("idle_timeout = \"{}ms\"\n{tls}", PATIENCE.as_millis());
    Ok((Gateway::start(folder, Written { server: &server, rest: &origin.open_to_all() })?, certificates, sending))
}

/// The answer has begun and nobody takes it: it ends, not before its time, and holds nothing any more.
fn is_left(gateway: &Gateway, sending: &AtomicUsize) -> Result<()> {
    let begun = Instant::now();
    eventually("the answer begins", SOON, || Ok(sending.load(Ordering::Relaxed) == 1))?;
    eventually("the origin is left", SOON, || Ok(sending.load(Ordering::Relaxed) == 0))?;
    ensure!(begun.elapsed() >= PATIENCE - Duration::from_millis(100), "left after {:?}", begun.elapsed());
    eventually("its place is free", SOON, || {
        let metrics = gateway.metrics()?;
        let line = metrics.lines().find(|line| line.starts_with("edgekeep_origin_in_flight"));
        Ok(line.context("no such metric")?.ends_with(" 0"))
    })
}

fn who_takes_nothing_is_left(_: &Deployment) -> Result<()> {
    let (gateway, _, sending) = start("")?;
    let mut raw = Raw::connect(gateway.entry)?;
    raw.send("GET /x HTTP/1.1\r\nhost: h\r\n\r\n")?;
    is_left(&gateway, &sending)
}

fn who_takes_nothing_of_an_upgraded_connection_is_left(_: &Deployment) -> Result<()> {
    let (gateway, _, sending) = start("")?;
    let mut raw = Raw::connect(gateway.entry)?;
    raw.send("GET /x HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: bytes\r\n\r\n")?;
    ensure!(raw.head()?.status == 101);
    is_left(&gateway, &sending)
}

fn who_takes_nothing_through_tls_is_left(_: &Deployment) -> Result<()> {
    let (gateway, certificates, sending) = start(TLS)?;
    let mut stream = connect(&client(&certificates.authority(), &["http/1.1"])?, gateway.entry)?;
    stream.write_all(b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n")?;
    is_left(&gateway, &sending)
}

fn a_stream_of_http2_that_is_not_read_is_left_alone(_: &Deployment) -> Result<()> {
    let (gateway, _, sending) = start("")?;
    run(async {
        let http2 = Http2::connect(gateway.entry).await?;
        // Its window is full soon, while the connection's has room.
        let unread = http2.begin(http2.request("GET", "/x", &[])?, false).await?.0.await?;
        let begun = Instant::now();
        let (mut read, mut taken) = (http2.begin(http2.request("GET", "/y", &[])?, false).await?.0.await?, 0);
        while begun.elapsed() < 3 * PATIENCE {
            let data = read.body_mut().data().await.context("the other stream ended")??;
            read.body_mut().flow_control().release_capacity(data.len())?;
            taken += data.len();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        ensure!(taken > 64 * 1024, "only {taken} bytes came");
        ensure!(sending.load(Ordering::Relaxed) == 1, "{} are sent to", sending.load(Ordering::Relaxed));
        let mut unread = unread.into_body();
        let ended = loop {
            match unread.data().await.context("it ended as if it were whole")? {
                Ok(data) => unread.flow_control().release_capacity(data.len())?,
                Err(error) => break error,
            }
        };
        ensure!(ended.is_reset(), "{ended}");
        Ok(())
    })
}

fn who_takes_a_little_is_waited_for(_: &Deployment) -> Result<()> {
    let (gateway, _, sending) = start("")?;
    let mut raw = Raw::connect(gateway.entry)?;
    raw.send("GET /x HTTP/1.1\r\nhost: h\r\n\r\n")?;
    let begun = Instant::now();
    while begun.elapsed() < 3 * PATIENCE {
        ensure!(raw.more(SOON)? == Some(true), "it ended after {:?}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    ensure!(sending.load(Ordering::Relaxed) == 1);
    Ok(())
}

fn a_client_that_left_a_websocket_gives_its_place_back(_: &Deployment) -> Result<()> {
    let careless = Origin::start(|mut connection| {
        let _ = connection.read(&mut [0; 4096])?;
        connection.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")?;
        // It never looks whether anybody is there.
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    })?;
    let server = format!("idle_timeout = \"{}ms\"", PATIENCE.as_millis());
    let gateway = Gateway::start(tempfile::tempdir()?, Written { server: &server, rest: &careless.open_to_all() })?;
    let in_flight = |count: &str| -> Result<bool> {
        let metrics = gateway.metrics()?;
        let line = metrics.lines().find(|line| line.starts_with("edgekeep_origin_in_flight"));
        Ok(line.context("no such metric")?.ends_with(count))
    };
    let mut raw = Raw::connect(gateway.entry)?;
    raw.send("GET /x HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")?;
    ensure!(raw.head()?.status == 101);
    // While both are there, nobody has to say anything.
    std::thread::sleep(PATIENCE * 3 / 2);
    ensure!(in_flight(" 1")?, "{}", gateway.metrics()?);
    drop(raw);
    eventually("its place at the origin is free", SOON, || in_flight(" 0"))
}
