//! Upgrades: real WebSocket frames both ways, refusals that pass as the answers that they are, and an end on one side
//! that is one on the other.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use edgekeep_tests::{Deployment, Raw, Then, Visit};

use crate::scenario::Scenario;
use crate::wire::at;

/// How soon an end on one side is one on the other.
const SOON: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(10);

/// The example of RFC 6455 §1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;

pub fn scenarios() -> Vec<Scenario> {
    let mut all = crate::wire![scenario:
        websocket_frames_pass_both_ways,
        a_refused_upgrade_is_an_ordinary_answer,
        an_origin_that_dies_ends_its_clients_websocket,
    ];
    all.extend(crate::wire![native:
        a_client_that_leaves_ends_its_websocket_at_the_origin,
        bytes_that_come_with_the_switch_are_not_lost,
    ]);
    all
}

fn opening(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: {KEY}\r\n\r\n"
    )
}

/// The origin's half of the handshake.
fn accept(visit: &mut Visit) {
    let key = visit.header("sec-websocket-key").unwrap_or_default().to_owned();
    let accept = STANDARD.encode(sha1_smol::Sha1::from(key + GUID).digest().bytes());
    visit.send(
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-accept: {accept}\r\n\r\n"
        )
        .as_bytes(),
    );
}

/// A whole message in one frame; a client's is masked.
fn frame(kind: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    let mut bytes = vec![0x80 | kind];
    match u16::try_from(payload.len()) {
        Ok(short @ 0..=125) => bytes.push(masked | short as u8),
        Ok(length) => {
            bytes.push(masked | 126);
            bytes.extend(length.to_be_bytes());
        }
        Err(_) => {
            bytes.push(masked | 127);
            bytes.extend((payload.len() as u64).to_be_bytes());
        }
    }
    let key = mask.unwrap_or_default();
    bytes.extend(mask.iter().flatten());
    bytes.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

/// The first frame of these bytes, unmasked, and how long it was; `None`: more are needed.
fn first_frame(bytes: &[u8]) -> Option<(u8, Vec<u8>, usize)> {
    let (kind, second) = (*bytes.first()? & 0x0f, *bytes.get(1)?);
    let (length, mut at) = match second & 0x7f {
        126 => (usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?, 10),
        short => (usize::from(short), 2),
    };
    let mut key = [0; 4];
    if second & 0x80 != 0 {
        key.copy_from_slice(bytes.get(at..at + 4)?);
        at += 4;
    }
    let payload = bytes.get(at..at + length)?;
    let payload = payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
    Some((kind, payload, at + length))
}

/// An origin that sends every message back, until it is told to close.
fn echo(visit: &mut Visit) -> Then {
    accept(visit);
    let mut came = Vec::new();
    loop {
        came.extend(visit.take());
        let Some((kind, payload, length)) = first_frame(&came) else {
            if visit.more(PATIENCE) != Some(true) {
                return Then::Close;
            }
            continue;
        };
        came.drain(..length);
        visit.send(&frame(kind, &payload, None));
        if kind == CLOSE || payload == b"die" {
            return Then::Close;
        }
    }
}

struct Socket {
    raw: Raw,
    came: Vec<u8>,
}

impl Socket {
    fn open(d: &Deployment, path: &str) -> Result<Socket> {
        let mut raw = Raw::connect(d.entry())?;
        raw.send(opening(path))?;
        let head = raw.head()?;
        ensure!(head.status == 101, "{}", head.head);
        ensure!(head.header("sec-websocket-accept") == Some(ACCEPT), "{}", head.head);
        ensure!(head.header("upgrade").is_some_and(|name| name.eq_ignore_ascii_case("websocket")), "{}", head.head);
        Ok(Socket { raw, came: Vec::new() })
    }

    fn send(&mut self, kind: u8, payload: &[u8]) -> Result<()> {
        self.raw.send(frame(kind, payload, Some([1, 2, 3, 4])))
    }

    fn next(&mut self) -> Result<(u8, Vec<u8>)> {
        loop {
            if let Some((kind, payload, length)) = first_frame(&self.came) {
                self.came.drain(..length);
                return Ok((kind, payload));
            }
            self.came.extend(self.raw.take(1).context("no frame came")?);
        }
    }
}

fn websocket_frames_pass_both_ways(d: &Deployment) -> Result<()> {
    d.recorder(at::FLOW)?.on("/flow/websocket", echo);
    let mut socket = Socket::open(d, "/flow/websocket")?;
    let long: Vec<u8> = (0..70_000_u32).map(|at| at as u8).collect();
    for (kind, payload) in
        [(TEXT, b"hello".as_slice()), (BINARY, &[0, 255, 128]), (TEXT, b""), (BINARY, &long[..300]), (BINARY, &long)]
    {
        socket.send(kind, payload)?;
        let (echoed, back) = socket.next()?;
        ensure!(
            echoed == kind && back == payload,
            "{} bytes of kind {kind} came back as {}",
            payload.len(),
            back.len()
        );
    }
    socket.send(CLOSE, &[3, 232])?;
    let (kind, payload) = socket.next()?;
    ensure!(kind == CLOSE && payload.starts_with(&[3, 232]), "closed with {kind} {payload:?}");
    Ok(())
}

fn a_refused_upgrade_is_an_ordinary_answer(d: &Deployment) -> Result<()> {
    d.recorder(at::FLOW)?.on("/flow/no-websocket", |visit| visit.answer(403, b"not here"));
    let mut raw = Raw::connect(d.entry())?;
    raw.send(opening("/flow/no-websocket"))?;
    let answer = raw.answer("GET")?;
    ensure!(answer.status == 403 && answer.body == b"not here", "{answer:?}");
    // What is behind the head of a refused upgrade was never a tunnel: the next request is one.
    if d.kind.is_native() {
        raw.send("GET /flow/after-refusal HTTP/1.1\r\nhost: a\r\n\r\n")?;
        ensure!(raw.answer("GET")?.status == 200, "the connection is out of step");
    }
    // And whom the route does not let in never reaches the origin.
    let mut raw = Raw::connect(d.entry())?;
    raw.send(opening("/flow/known/websocket"))?;
    ensure!(raw.answer("GET")?.status == 401, "let in");
    ensure!(d.recorder(at::FLOW)?.tries("/flow/known/websocket") == 0, "it reached the origin");
    Ok(())
}

fn an_origin_that_dies_ends_its_clients_websocket(d: &Deployment) -> Result<()> {
    d.recorder(at::FLOW)?.on("/flow/dying", echo);
    let mut socket = Socket::open(d, "/flow/dying")?;
    socket.send(TEXT, b"die")?;
    ensure!(socket.next()?.1 == b"die", "no echo");
    socket.raw.to_the_end(SOON)?;
    Ok(())
}

fn a_client_that_leaves_ends_its_websocket_at_the_origin(d: &Deployment) -> Result<()> {
    let origin = d.recorder(at::FLOW)?;
    origin.on("/flow/left", echo);
    let mut socket = Socket::open(d, "/flow/left")?;
    socket.send(TEXT, b"here")?;
    ensure!(socket.next()?.1 == b"here", "no echo");
    drop(socket);
    origin.sees_the_end_of("/flow/left", SOON)
}

fn bytes_that_come_with_the_switch_are_not_lost(d: &Deployment) -> Result<()> {
    d.recorder(at::FLOW)?.on("/flow/greeting", |visit| {
        visit.send(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: greet\r\n\r\nhello at once");
        visit.is_left(PATIENCE);
        Then::Close
    });
    let mut raw = Raw::connect(d.entry())?;
    raw.send("GET /flow/greeting HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: greet\r\n\r\n")?;
    let head = raw.head()?;
    ensure!(head.status == 101 && head.header("upgrade") == Some("greet"), "{}", head.head);
    ensure!(raw.take(13)? == b"hello at once", "other bytes");
    Ok(())
}
