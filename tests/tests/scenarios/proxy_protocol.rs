//! Behind a proxy that passes bytes on: who the client is stands before its first byte, and only a trusted proxy is
//! believed.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use edgekeep_tests::http2::{Http2, run};
use edgekeep_tests::tls::client;
use edgekeep_tests::{Certificates, Deployment, Gateway, Kind, Origin, TRUSTED_PROXY, Written};
use socket2::{Domain, Socket, Type};
use tokio_rustls::rustls::{ClientConnection, StreamOwned, pki_types::ServerName};

use crate::scenario::Scenario;

pub fn scenarios() -> Vec<Scenario> {
    let all = crate::shared![
        a_trusted_proxy_names_the_client_in_both_versions,
        a_proxy_that_speaks_for_itself_is_the_client,
        nobody_else_is_let_in,
        a_header_that_is_none_or_does_not_end_is_not_waited_for,
        tls_and_http2_follow_the_header,
        a_gateway_that_ends_answers_whom_a_proxy_was_just_introducing,
    ];
    // A store has no part in it.
    all.into_iter().map(|scenario| scenario.only(Kind::NativeEmbedded)).collect()
}

fn start(tls: &str) -> Result<(Gateway, Certificates)> {
    let folder = tempfile::tempdir()?;
    let certificates = Certificates::make(folder.path())?;
    let server =
        format!("proxy_protocol = true\ntrusted_proxies = [\"{TRUSTED_PROXY}\"]\nheader_timeout = \"1s\"\n{tls}");
    let rest = Origin::named("a")?.open_to_all();
    Ok((Gateway::start(folder, Written { server: &server, rest: &rest })?, certificates))
}

fn connect(gateway: &Gateway, from: Ipv4Addr) -> Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(IpAddr::V4(from), 0).into())?;
    socket.connect(&gateway.entry.address.into())?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(stream)
}

const REQUEST: &[u8] = b"GET /x HTTP/1.1\r\nhost: h\r\nx-forwarded-for: 203.0.113.1\r\nconnection: close\r\n\r\n";

/// What is answered to these bytes.
fn answer(gateway: &Gateway, from: Ipv4Addr, bytes: &[u8]) -> Result<String> {
    let mut stream = connect(gateway, from)?;
    stream.write_all(bytes)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Version 2, of a client over TCP and IPv4.
fn version_2(client: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend(client);
    header.extend([127, 0, 0, 1, 0x10, 0, 0x1f, 0x90]);
    header
}

fn a_trusted_proxy_names_the_client_in_both_versions(_: &Deployment) -> Result<()> {
    let (gateway, _) = start("")?;
    for (header, is_client) in [
        (b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 80\r\n".to_vec(), "192.0.2.7"),
        (b"PROXY TCP6 2001:db8::7 ::1 4711 80\r\n".to_vec(), "2001:db8::7"),
        (version_2([192, 0, 2, 8]), "192.0.2.8"),
    ] {
        let answer = answer(&gateway, TRUSTED_PROXY, &[&header, REQUEST].concat())?;
        // What the client itself claims is believed no more than without a proxy.
        ensure!(answer.contains(&format!("x-forwarded-for: {is_client}\r\n")), "{answer}");
    }
    Ok(())
}

fn a_proxy_that_speaks_for_itself_is_the_client(_: &Deployment) -> Result<()> {
    let (gateway, _) = start("")?;
    for header in [&b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"[..], b"PROXY UNKNOWN\r\n"] {
        let answer = answer(&gateway, TRUSTED_PROXY, &[header, REQUEST].concat())?;
        // It is a trusted proxy, whose list goes on.
        ensure!(answer.contains(&format!("x-forwarded-for: 203.0.113.1, {TRUSTED_PROXY}\r\n")), "{answer}");
    }
    Ok(())
}

fn is_closed(stream: &mut TcpStream) -> Result<bool> {
    match stream.read(&mut [0; 16]) {
        Ok(read) => Ok(read == 0),
        Err(error) => Ok(matches!(error.kind(), ErrorKind::ConnectionReset)),
    }
}

fn nobody_else_is_let_in(_: &Deployment) -> Result<()> {
    let (gateway, _) = start("")?;
    for bytes in [[b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 80\r\n", REQUEST].concat(), REQUEST.to_vec()] {
        let mut stream = connect(&gateway, Ipv4Addr::LOCALHOST)?;
        // It may be closed before.
        let _ = stream.write_all(&bytes);
        ensure!(is_closed(&mut stream)?, "a stranger was answered");
    }
    Ok(())
}

fn a_header_that_is_none_or_does_not_end_is_not_waited_for(_: &Deployment) -> Result<()> {
    let (gateway, _) = start("")?;
    let mut stream = connect(&gateway, TRUSTED_PROXY)?;
    stream.write_all(REQUEST)?;
    ensure!(is_closed(&mut stream)?, "a request without a header was answered");
    for begun in [&b""[..], b"PROXY TCP4 192.0.2.7 ", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"] {
        let mut stream = connect(&gateway, TRUSTED_PROXY)?;
        stream.write_all(begun)?;
        let since = Instant::now();
        ensure!(is_closed(&mut stream)?, "{begun:?} was answered");
        let waited = since.elapsed();
        ensure!(waited > Duration::from_millis(800) && waited < Duration::from_secs(5), "{begun:?}: {waited:?}");
    }
    Ok(())
}

fn tls_and_http2_follow_the_header(_: &Deployment) -> Result<()> {
    let (gateway, certificates) = start("tls = { cert = \"server.pem\", key = \"server.key\" }")?;
    let mut socket = connect(&gateway, TRUSTED_PROXY)?;
    socket.write_all(&version_2([192, 0, 2, 9]))?;
    let name = ServerName::from(gateway.entry.address.ip());
    let tls = ClientConnection::new(client(&certificates.authority(), &["http/1.1"])?, name)?;
    let mut stream = StreamOwned::new(tls, socket);
    stream.write_all(REQUEST)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.contains("x-forwarded-for: 192.0.2.9\r\n"), "{answer}");
    ensure!(answer.contains("x-forwarded-proto: https\r\n"), "{answer}");

    let (gateway, _) = start("")?;
    run(async {
        let mut socket = connect(&gateway, TRUSTED_PROXY)?;
        socket.write_all(&version_2([192, 0, 2, 10]))?;
        socket.set_nonblocking(true)?;
        let http2 = Http2::over(tokio::net::TcpStream::from_std(socket)?, "http", "app.example").await?;
        for _ in 0..2 {
            let answer = http2.get("/x", &[]).await?;
            ensure!(answer.text().contains("x-forwarded-for: 192.0.2.10\r\n"), "{}", answer.text());
        }
        Ok(())
    })
}

fn a_gateway_that_ends_answers_whom_a_proxy_was_just_introducing(_: &Deployment) -> Result<()> {
    let (gateway, _) = start("")?;
    let header = b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 80\r\n";
    let begun: Vec<_> = (0..3).map(|_| connect(&gateway, TRUSTED_PROXY)).collect::<Result<_>>()?;
    // Accepted, and nothing has come.
    std::thread::sleep(Duration::from_millis(100));
    gateway.terminate();
    std::thread::sleep(Duration::from_millis(100));
    for mut stream in begun {
        stream.write_all(&[header, REQUEST].concat())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
    }
    Ok(())
}
