//! Origins over https: whom a pool trusts, what it shows, and what is said when that does not fit.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use edgekeep_tests::tls::server;
use edgekeep_tests::{Certificates, Deployment, Gateway, Kind, Origin, Written, answer_heads, eventually};
use tokio_rustls::rustls::{ServerConnection, StreamOwned};

use crate::scenario::Scenario;

pub fn scenarios() -> Vec<Scenario> {
    let all = crate::shared![
        an_origin_of_a_private_authority_answers,
        upgrades_pass_through_tls,
        an_origin_that_is_not_trusted_is_502_and_the_log_says_why,
        a_certificate_must_be_for_the_host_or_the_name_that_is_configured,
        an_origin_that_asks_for_a_certificate_is_shown_the_pools,
        a_trusted_authority_is_read_again,
        sessions_with_an_origin_are_resumed,
        the_time_to_connect_is_not_taken_from_the_origins,
        an_answer_and_an_upload_pass_each_other_through_tls,
    ];
    // A store has no part in it.
    all.into_iter().map(|scenario| scenario.only(Kind::NativeEmbedded)).collect()
}

fn rest(origin: &Origin, tls: &str) -> String {
    format!(
        "[[pools]]\nshard = \"shard_0\"\norigins = [{{ id = \"a\", url = \"https://{}\" }}]\n{tls}\n\n\
         [[routes]]\npath = \"/{{rest..}}\"\nauth = \"none\"\n",
        origin.address
    )
}

/// A gateway whose pool has this `tls`, before an origin that shows what stands in the folder's `file`; with an
/// authority, only to clients of that.
fn start(tls: &str, file: &str, asks: bool) -> Result<(Gateway, Certificates, Origin)> {
    let folder = tempfile::tempdir()?;
    let certificates = Certificates::make(folder.path())?;
    certificates.sign("named", "origin.internal")?;
    certificates.sign("gateway", "gateway.internal")?;
    let clients = certificates.authority();
    let config = server(&folder.path().join(file), asks.then_some(clients.as_path()))?;
    let origin = Origin::encrypted("a", config)?;
    let rest = rest(&origin, tls);
    Ok((Gateway::start(folder, Written { server: "", rest: &rest })?, certificates, origin))
}

const TRUSTS: &str = "tls = { ca = \"authority.pem\" }";

fn an_origin_of_a_private_authority_answers(_: &Deployment) -> Result<()> {
    let (gateway, ..) = start(TRUSTS, "server.both", false)?;
    for _ in 0..3 {
        let answer = gateway.get("/x").host("app.example").send()?.expect(200)?;
        ensure!(answer.text().starts_with("a\nGET /x HTTP/1.1\r\n"), "{answer}");
        ensure!(answer.text().contains("host: app.example\r\n"), "{answer}");
        ensure!(answer.text().contains("x-forwarded-proto: http\r\n"), "the client's own scheme: {answer}");
    }
    Ok(())
}

fn upgrades_pass_through_tls(_: &Deployment) -> Result<()> {
    let (gateway, ..) = start(TRUSTS, "server.both", false)?;
    let mut open = gateway.get("/ws").header("connection", "upgrade").header("upgrade", "echo").open()?;
    ensure!(open.status == 101);
    open.echoes(b"as WebSockets do")
}

/// 502, and a line that says so.
fn is_refused(gateway: &Gateway, why: &str) -> Result<()> {
    gateway.get("/x").send()?.problem(502, "origin_failed")?;
    // The log is written by a thread of its own.
    eventually("the log says why", Duration::from_secs(5), || {
        let log = gateway.log()?;
        Ok(log.lines().any(|line| line.contains("WARN") && line.contains("TLS: ") && line.contains(why)))
    })
}

fn an_origin_that_is_not_trusted_is_502_and_the_log_says_why(_: &Deployment) -> Result<()> {
    let (gateway, ..) = start("tls = { ca = \"stranger.pem\" }", "server.both", false)?;
    is_refused(&gateway, "UnknownIssuer")?;
    for _ in 0..20 {
        gateway.get("/x").send()?.problem(502, "origin_failed")?;
    }
    let said = gateway.log()?.matches("UnknownIssuer").count();
    ensure!(said <= 2, "said {said} times");
    Ok(())
}

fn a_certificate_must_be_for_the_host_or_the_name_that_is_configured(_: &Deployment) -> Result<()> {
    let (gateway, ..) = start(TRUSTS, "named.both", false)?;
    is_refused(&gateway, "not valid for name")?;
    let named = "tls = { ca = \"authority.pem\", server_name = \"origin.internal\" }";
    let (gateway, ..) = start(named, "named.both", false)?;
    gateway.get("/x").send()?.expect(200)?;
    Ok(())
}

fn an_origin_that_asks_for_a_certificate_is_shown_the_pools(_: &Deployment) -> Result<()> {
    let (gateway, ..) = start(TRUSTS, "server.both", true)?;
    let answer = gateway.get("/x").send()?;
    ensure!(answer.status == 502, "{answer}");
    let shows = "tls = { ca = \"authority.pem\", client_cert = \"gateway.both\" }";
    let (gateway, ..) = start(shows, "server.both", true)?;
    gateway.get("/x").send()?.expect(200)?;
    Ok(())
}

fn a_trusted_authority_is_read_again(_: &Deployment) -> Result<()> {
    let (gateway, certificates, origin) = start("tls = { ca = \"stranger.pem\" }", "server.both", false)?;
    gateway.get("/x").send()?.problem(502, "origin_failed")?;
    std::fs::copy(certificates.authority(), certificates.stranger())?;
    gateway.reload(Written { server: "", rest: &rest(&origin, "tls = { ca = \"stranger.pem\" }") })?;
    eventually("it trusts the origin", Duration::from_secs(10), || Ok(gateway.get("/x").send()?.status == 200))
}

fn sessions_with_an_origin_are_resumed(_: &Deployment) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let certificates = Certificates::make(folder.path())?;
    let config = server(&folder.path().join("server.both"), None)?;
    drop(certificates);
    // Says of each connection how it began, and closes it.
    let origin = Origin::start(move |connection| {
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config))?, connection);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        let kind = format!("{:?}", stream.conn.handshake_kind());
        let length = kind.len();
        write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{kind}")?;
        stream.conn.send_close_notify();
        answer_heads(stream, "late")
    })?;
    let rest = rest(&origin, TRUSTS);
    let gateway = Gateway::start(folder, Written { server: "", rest: &rest })?;
    eventually("a session is resumed", Duration::from_secs(5), || {
        Ok(gateway.get("/x").send()?.text() == "Some(Resumed)")
    })
}

fn the_time_to_connect_is_not_taken_from_the_origins(_: &Deployment) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let certificates = Certificates::make(folder.path())?;
    let config = server(&folder.path().join("server.both"), None)?;
    drop(certificates);
    let origin = Origin::start(move |connection| {
        std::thread::sleep(Duration::from_millis(800));
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config))?, connection);
        Read::read(&mut stream, &mut [0; 4096])?;
        std::thread::sleep(Duration::from_millis(1300));
        write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")?;
        stream.conn.send_close_notify();
        stream.flush()?;
        Ok(())
    })?;
    let rest = rest(&origin, TRUSTS).replace("auth = \"none\"", "auth = \"none\"\ntimeout = \"1500ms\"")
        + "\n[balance]\nconnect_timeout = \"5s\"\n";
    let gateway = Gateway::start(folder, Written { server: "", rest: &rest })?;
    let answer = gateway.get("/x").send()?.expect(200)?;
    ensure!(answer.text() == "ok", "{answer}");
    Ok(())
}

fn an_answer_and_an_upload_pass_each_other_through_tls(_: &Deployment) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let certificates = Certificates::make(folder.path())?;
    let config = server(&folder.path().join("server.both"), None)?;
    drop(certificates);
    let ends = Arc::new(AtomicUsize::new(0));
    let said = ends.clone();
    let origin = Origin::start(move |connection| {
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config))?, connection);
        let (mut read, mut some) = (Vec::new(), vec![0; 64 * 1024]);
        let head = loop {
            if let Some(head) = memchr::memmem::find(&read, b"\r\n\r\n") {
                break head + 4;
            }
            let count = stream.read(&mut some)?;
            ensure!(count > 0, "no request");
            read.extend_from_slice(&some[..count]);
        };
        let body = read.split_off(head);
        let text = String::from_utf8(read)?;
        if !text.starts_with("POST /back ") {
            write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")?;
            return Ok(stream.flush()?);
        }
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or_default();
        write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n")?;
        stream.write_all(&body)?;
        let mut left = length.parse::<usize>()? - body.len();
        while left > 0 {
            let count = stream.read(&mut some)?;
            ensure!(count > 0, "the upload ended");
            stream.write_all(&some[..count])?;
            left -= count;
        }
        // An end that TLS does not say is an error here.
        if stream.read(&mut some)? == 0 {
            said.fetch_add(1, Ordering::Release);
        }
        Ok(())
    })?;
    let rest = rest(&origin, TRUSTS);
    let gateway = Gateway::start(folder, Written { server: "", rest: &rest })?;
    crate::flow::comes_back(gateway.entry, "/back")?;
    eventually("the gateway says that it closes", Duration::from_secs(2), || Ok(ends.load(Ordering::Acquire) == 1))
}
