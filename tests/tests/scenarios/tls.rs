//! TLS to clients: both versions of HTTP by ALPN, sessions that are resumed, and certificates that change while it runs.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use edgekeep_tests::http2::{Http2, run};
use edgekeep_tests::tls::{TlsStream, client, connect};
use edgekeep_tests::{Certificates, Deployment, Gateway, Kind, Origin, Written, eventually, gateway_binary};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::HandshakeKind;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};

use crate::scenario::Scenario;

/// The files that [`Certificates::make`] writes.
const TLS: &str = "tls = { cert = \"server.pem\", key = \"server.key\" }\nheader_timeout = \"1s\"";

pub fn scenarios() -> Vec<Scenario> {
    let all = crate::shared![
        clients_speak_either_http_over_tls,
        a_new_certificate_is_taken_while_connections_go_on,
        sessions_are_resumed_also_after_a_reload,
        a_handshake_that_does_not_end_is_ended,
        who_agrees_to_http2_and_says_nothing_is_not_waited_for,
        a_successor_shows_the_certificate_that_it_found,
        a_certificate_that_cannot_be_used_is_named,
        tls_is_not_switched_off_while_it_runs,
    ];
    // A store has no part in it.
    all.into_iter().map(|scenario| scenario.only(Kind::NativeEmbedded)).collect()
}

fn start() -> Result<(Gateway, Certificates, String)> {
    let folder = tempfile::tempdir()?;
    let certificates = Certificates::make(folder.path())?;
    let rest = Origin::named("a")?.open_to_all();
    Ok((Gateway::start(folder, Written { server: TLS, rest: &rest })?, certificates, rest))
}

/// One request over a connection that stays.
fn ask(stream: &mut TlsStream) -> Result<String> {
    stream.write_all(b"GET /x HTTP/1.1\r\nhost: app.example\r\n\r\n")?;
    let mut read = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&read).into_owned();
        // The origin's body ends with the head that reached it.
        if text.matches("\r\n\r\n").count() >= 2 {
            return Ok(text);
        }
        let mut some = [0; 4096];
        let length = stream.read(&mut some)?;
        ensure!(length > 0, "closed after {text}");
        read.extend_from_slice(&some[..length]);
    }
}

fn shown(stream: &TlsStream) -> Result<CertificateDer<'static>> {
    let chain = stream.conn.peer_certificates().context("no certificate")?;
    Ok(chain.first().context("an empty chain")?.clone().into_owned())
}

fn clients_speak_either_http_over_tls(_: &Deployment) -> Result<()> {
    let (gateway, certificates, _) = start()?;
    for (offered, taken) in [(&["h2", "http/1.1"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&[][..], None)]
    {
        let mut stream = connect(&client(&certificates.authority(), offered)?, gateway.entry)?;
        let protocol = stream.conn.alpn_protocol().map(|protocol| String::from_utf8_lossy(protocol).into_owned());
        ensure!(protocol.as_deref() == taken, "{offered:?}: {protocol:?}");
        if taken != Some("h2") {
            let answer = ask(&mut stream)?;
            ensure!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("x-forwarded-proto: https\r\n"), "{answer}");
        }
    }
    let of_nobody = client(&certificates.authority(), &["smtp"])?;
    ensure!(connect(&of_nobody, gateway.entry).is_err(), "a protocol that is not spoken here");
    run(async {
        let address = gateway.entry.address;
        let connector = TlsConnector::from(client(&certificates.authority(), &["h2"])?);
        let socket = tokio::net::TcpStream::connect(address).await?;
        let stream = connector.connect(ServerName::from(address.ip()), socket).await?;
        let http2 = Http2::over(stream, "https", "app.example").await?;
        let answer = http2.get("/x", &[]).await?;
        ensure!(answer.status == 200 && answer.text().contains("x-forwarded-proto: https\r\n"), "{}", answer.text());
        ensure!(answer.text().contains("host: app.example\r\n"), "{}", answer.text());
        Ok(())
    })?;
    // Who speaks no TLS is not answered in it.
    ensure!(gateway.get("/x").send().is_err());
    Ok(())
}

fn a_new_certificate_is_taken_while_connections_go_on(_: &Deployment) -> Result<()> {
    let (gateway, certificates, rest) = start()?;
    let fresh = || connect(&client(&certificates.authority(), &[])?, gateway.entry);
    let mut before = fresh()?;
    ask(&mut before)?;
    let first = shown(&before)?;
    certificates.sign("server", "127.0.0.1")?;
    gateway.reload(Written { server: TLS, rest: &rest })?;
    eventually("the new one is shown", Duration::from_secs(5), || Ok(shown(&fresh()?)? != first))?;
    ask(&mut before)?;
    let second = shown(&fresh()?)?;

    // The key of another: nothing changes, and the log says why.
    let key = certificates.server_key();
    fs::copy(&key, gateway.folder().join("kept.key"))?;
    certificates.sign("other", "127.0.0.1")?;
    fs::copy(gateway.folder().join("other.key"), &key)?;
    gateway.reload(Written { server: TLS, rest: &rest })?;
    let why = "server.tls: the private key is not that of the certificate";
    eventually("it says why", Duration::from_secs(5), || Ok(gateway.log()?.contains(why)))?;
    ensure!(shown(&fresh()?)? == second);
    ask(&mut fresh()?)?;
    ask(&mut before)?;
    Ok(())
}

fn sessions_are_resumed_also_after_a_reload(_: &Deployment) -> Result<()> {
    let (gateway, certificates, rest) = start()?;
    let config = client(&certificates.authority(), &[])?;
    let mut first = connect(&config, gateway.entry)?;
    // The tickets come with the first answer.
    ask(&mut first)?;
    ensure!(first.conn.handshake_kind() == Some(HandshakeKind::Full));
    let mut second = connect(&config, gateway.entry)?;
    ask(&mut second)?;
    ensure!(second.conn.handshake_kind() == Some(HandshakeKind::Resumed), "{:?}", second.conn.handshake_kind());
    let reloads = || Ok::<_, anyhow::Error>(gateway.log()?.matches("reloaded").count());
    let before = reloads()?;
    gateway.reload(Written { server: TLS, rest: &rest })?;
    eventually("it reads its files again", Duration::from_secs(5), || Ok(reloads()? > before))?;
    let third = connect(&config, gateway.entry)?;
    ensure!(third.conn.handshake_kind() == Some(HandshakeKind::Resumed), "{:?}", third.conn.handshake_kind());
    Ok(())
}

fn a_handshake_that_does_not_end_is_ended(_: &Deployment) -> Result<()> {
    let (gateway, ..) = start()?;
    // Nothing, and the beginning of a record that goes on for long.
    for sent in [&b""[..], &[22, 3, 1, 2, 0, 1]] {
        let mut socket = TcpStream::connect(gateway.entry.address)?;
        socket.write_all(sent)?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        let begun = Instant::now();
        match socket.read(&mut [0; 16]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => anyhow::bail!("{other:?} after {:?}", begun.elapsed()),
        }
        ensure!(begun.elapsed() >= Duration::from_millis(800), "ended after {:?}", begun.elapsed());
    }
    Ok(())
}

fn who_agrees_to_http2_and_says_nothing_is_not_waited_for(_: &Deployment) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let certificates = Certificates::make(folder.path())?;
    let (server, rest) = (format!("{TLS}\nidle_timeout = \"1s\""), Origin::named("a")?.open_to_all());
    let gateway = Gateway::start(folder, Written { server: &server, rest: &rest })?;
    // Nothing, and half of what HTTP/2 begins with.
    for sent in [&b""[..], b"PRI * HT"] {
        let mut stream = connect(&client(&certificates.authority(), &["h2"])?, gateway.entry)?;
        stream.write_all(sent)?;
        stream.flush()?;
        stream.sock.set_read_timeout(Some(Duration::from_secs(5)))?;
        let begun = Instant::now();
        // Its own settings may come before.
        let ended = stream.read_to_end(&mut Vec::new());
        let waits = |error: &std::io::Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
        ensure!(!ended.as_ref().is_err_and(waits), "still open after {:?}", begun.elapsed());
        ensure!(begun.elapsed() >= Duration::from_millis(800), "{ended:?} after {:?}", begun.elapsed());
    }
    Ok(())
}

fn a_successor_shows_the_certificate_that_it_found(_: &Deployment) -> Result<()> {
    let (mut gateway, certificates, _) = start()?;
    let fresh = |gateway: &Gateway| connect(&client(&certificates.authority(), &[])?, gateway.entry);
    let mut before = fresh(&gateway)?;
    ask(&mut before)?;
    let first = shown(&before)?;
    // One that could show none leaves the old one in its place.
    let key = certificates.server_key();
    fs::rename(&key, key.with_extension("away"))?;
    let said = gateway.failed_handover()?;
    ensure!(said.contains("server.tls.key: cannot read "), "{said}");
    ask(&mut before)?;
    fs::rename(key.with_extension("away"), &key)?;

    certificates.sign("server", "127.0.0.1")?;
    gateway.hand_over()?;
    let mut after = fresh(&gateway)?;
    ensure!(shown(&after)? != first, "the old certificate");
    ask(&mut after)?;
    Ok(())
}

fn a_certificate_that_cannot_be_used_is_named(_: &Deployment) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let text = "[server]\nlisten = [\"127.0.0.1:0\"]\ntls = { cert = \"gone.pem\", key = \"gone.key\" }\n\
                [admin]\nlisten = \"127.0.0.1:0\"\n\
                [[pools]]\nshard = \"shard_0\"\norigins = [{ id = \"a\", url = \"http://127.0.0.1:1\" }]\n";
    let file = folder.path().join("edgekeep.toml");
    fs::write(&file, text)?;
    for command in ["check", "serve"] {
        let ended = std::process::Command::new(gateway_binary()?).arg(command).arg("--config").arg(&file).output()?;
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        ensure!(!ended.status.success(), "{command} takes it");
        ensure!(
            said.contains("server.tls.cert: cannot read ") && said.contains("server.tls.key: cannot read "),
            "{said}"
        );
    }
    Ok(())
}

fn tls_is_not_switched_off_while_it_runs(_: &Deployment) -> Result<()> {
    let (gateway, certificates, rest) = start()?;
    gateway.reload(Written { server: "", rest: &rest })?;
    let why = "whether there is server.tls cannot change while running";
    eventually("it says why", Duration::from_secs(5), || Ok(gateway.log()?.contains(why)))?;
    ask(&mut connect(&client(&certificates.authority(), &[])?, gateway.entry)?)?;
    Ok(())
}
