//! The proxy, Edgekeep and the application each read a path. Whatever one of them makes of a spelling, what arrives must
//! have been admitted by the route that the application would say it falls under.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use edgekeep_tests::is_long;

use crate::stand::{HOST, Stand, fresh_mark};
use crate::witness::{Arrived, MARK};

/// Spellings that have got past an access rule somewhere.
const KNOWN: [&str; 74] = [
    "/public/../account/x",
    "/public/..",
    "/public/../",
    "/public/x/../../account/x",
    "/public/%2e%2e/account/x",
    "/public/%2E%2E/account/x",
    "/public/.%2e/account/x",
    "/public/%2e./account/x",
    "/public/..%2faccount/x",
    "/public/..%2Faccount/x",
    "/public%2f..%2faccount/x",
    "/public/%252e%252e/account/x",
    "/public/..%252faccount/x",
    "/public/..%c0%afaccount/x",
    "/public/..%5caccount/x",
    "/public/..\\account/x",
    "/public\\..\\account\\x",
    "/public/..;/account/x",
    "/public/..;x=1/account/x",
    "/public/..%3b/account/x",
    "/public/..%3f",
    "/public/..%23/account/x",
    "/public/.;/../account/x",
    "/public;/../account/x",
    "/public;x/account/x",
    "/public/x;/../../account/x",
    "/public/./../account/x",
    "/public//../account/x",
    "/public//..//account/x",
    "//account/x",
    "///account/x",
    "//public/../account/x",
    "//public/x",
    "/.//account/x",
    "/./account/x",
    "/account",
    "/account/",
    "/account;x",
    "/account;x/y",
    "/account/x;y",
    "/account%20/x",
    "/account./x",
    "/ACCOUNT/x",
    "/Public/../account/x",
    "/%61ccount/x",
    "/%2561ccount/x",
    "/account%00/x",
    "/public/x%00/../../account/x",
    "/public/%00/../account/x",
    "/public/x?/../../account/x",
    "/public/x?y=?/account/x",
    "/public/?/../account/x",
    "/public?/../account/x",
    "/public%3f/../account/x",
    "/public/x%3f/../../account/x",
    "/public/x#/../../account/x",
    "/public#/../account/x",
    "/account/x#/public/x",
    "/account/x?/public/x",
    "/public/x%23/../../account/x",
    "http://app.example/account/x",
    "http://app.example/public/../account/x",
    "http://app.example//account/x",
    "http://other.example/account/x",
    "http://app.example?/account/x",
    "http://app.example/public/x?http://app.example/account/x",
    "http://app.example",
    "HTTP://app.example/account/x",
    "https://app.example/account/x",
    "http://public/../account/x",
    "public/../account/x",
    "*",
    "/v1/sessions/../../account/x",
    "/v1/sessions%2f..%2f..%2faccount/x",
];

/// What random targets are put together from.
const PARTS: [&[u8]; 40] = [
    b"/",
    b"/",
    b"/",
    b"/",
    b"public",
    b"public",
    b"account",
    b"account",
    b"feed",
    b"shop",
    b"x",
    b".",
    b"..",
    b"..",
    b"%2e",
    b"%2E%2e",
    b"%2f",
    b"%2F",
    b"%5c",
    b"\\",
    b";",
    b";x=1",
    b"%3b",
    b"?",
    b"#",
    b"%23",
    b"%3f",
    b"%00",
    b"%",
    b"%25",
    b"%252e",
    b"%61ccount",
    b"ACCOUNT",
    b"\xff",
    b"\xc3\xa9",
    b"%ff",
    b"@",
    b":",
    b"http://app.example",
    b"v1/sessions",
];

pub fn whatever_arrives_was_admitted_as_what_it_is(s: &Stand) -> Result<()> {
    // It gets past `token` routes alone: whoever sees it on another was let in by the wrong route.
    let ended = s.login("ended-before")?;
    let out = s.ask("DELETE", "/v1/sessions/current").bearer(&ended.access).go()?.answer;
    ensure!(out.status == 204, "{out}");
    let seed = std::env::var("EDGEKEEP_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x5eed_u64);
    eprintln!("{}: seed {seed} (EDGEKEEP_SEED)", s.kind.name());
    let mut random = Random(seed);
    let rounds = if is_long() { 6_000 } else { 250 };
    let made = (0..rounds).map(|_| random.target()).collect::<Vec<_>>();
    let known = KNOWN.iter().map(|target| target.as_bytes().to_vec());
    let (mut asked, mut came) = (0, 0);
    for target in known.chain(made) {
        for (token, admitted) in
            [(None, ["/public", "/shop"].as_slice()), (Some(&ended.access), &["/public", "/shop", "/feed"])]
        {
            asked += 1;
            let shown = String::from_utf8_lossy(&target).into_owned();
            for arrived in send(s, &target, token.map(String::as_str)).with_context(|| shown.clone())? {
                came += 1;
                let plain = arrived.target.starts_with(b"/") || arrived.target == b"*";
                ensure!(plain, "{shown:?} arrived as {:?}", String::from_utf8_lossy(&arrived.target));
                for reading in readings(&arrived.target) {
                    let falls_under = |route: &&str| reading == **route || reading.starts_with(&format!("{route}/"));
                    ensure!(
                        admitted.iter().any(falls_under),
                        "{shown:?} arrived as {:?}, which an application may read as {reading:?}, {}",
                        String::from_utf8_lossy(&arrived.target),
                        if token.is_some() { "with a session that has ended" } else { "without a credential" },
                    );
                }
            }
        }
    }
    let strange = s.witness.strange();
    ensure!(strange.is_empty(), "something else arrived: {strange:?}");
    eprintln!("{}: {asked} requests, {came} arrived", s.kind.name());
    ensure!(came > asked / 50, "only {came} of {asked} arrived: this says nothing");
    Ok(())
}

pub fn a_plain_path_arrives_as_it_was_sent(s: &Stand) -> Result<()> {
    let session = s.login("plain")?;
    for path in [
        "/account/x",
        "/account/",
        "/account",
        "/x?a=b&c=%2F&d=%3F?&e=://",
        "/x?",
        "/caf%C3%A9/a%20b",
        "/a;b=1/c",
        "/a:b@c/~d",
        "/feed/x?next=http://app.example/public/x",
    ] {
        let arrived = s.get(path).bearer(&session.access).go()?.passed().with_context(|| path.to_owned())?;
        ensure!(arrived.target == path.as_bytes(), "{path} arrived as {:?}", String::from_utf8_lossy(&arrived.target));
        ensure!(arrived.one("x-edgekeep-user")? == "plain", "{arrived:?}");
    }
    Ok(())
}

/// Every path that some application reads in a target: as it stands, decoded again and again, with backslashes as
/// slashes, without path parameters, cut at a NUL or a fragment, with dot segments resolved and slashes merged.
fn readings(target: &[u8]) -> Vec<String> {
    let mut path: String = target.iter().copied().map(char::from).collect();
    if let Some((scheme, rest)) = path.split_once("://")
        && !scheme.contains('/')
    {
        path = rest.find('/').map_or_else(|| "/".to_owned(), |at| rest[at..].to_owned());
    }
    let path = path.split('?').next().unwrap_or_default().to_owned();
    let mut texts = vec![path];
    for _ in 0..3 {
        let last = texts.last().cloned().unwrap_or_default();
        texts.push(decoded(&last));
    }
    let mut readings = Vec::new();
    for text in texts {
        for cut in ["", "\0", "#", "?"] {
            let text = if cut.is_empty() { text.as_str() } else { text.split(cut).next().unwrap_or_default() };
            for slashes in [text.to_owned(), text.replace('\\', "/")] {
                let without: Vec<&str> =
                    slashes.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect();
                for reading in [resolved(&slashes), resolved(&without.join("/"))] {
                    if !readings.contains(&reading) {
                        readings.push(reading);
                    }
                }
            }
        }
    }
    readings
}

fn decoded(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        match rest.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &rest[at + 3..];
            }
            None => {
                out.push('%');
                rest = &rest[at + 1..];
            }
        }
    }
    out + rest
}

/// Without dot segments and empty ones, in lower case.
fn resolved(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            name => segments.push(name),
        }
    }
    format!("/{}", segments.join("/")).to_ascii_lowercase()
}

/// Sends a target byte for byte and waits for the head of the answer, or the end: what arrived is kept before that.
fn send(s: &Stand, target: &[u8], token: Option<&str>) -> Result<Vec<Arrived>> {
    let mark = fresh_mark();
    let mut head = [b"GET ", target, b" HTTP/1.1\r\n"].concat();
    head.extend(format!("host: {HOST}\r\nconnection: close\r\n{MARK}: {mark}\r\n").bytes());
    if let Some(token) = token {
        head.extend(format!("authorization: Bearer {token}\r\n").bytes());
    }
    head.extend(b"\r\n");
    let mut socket = TcpStream::connect(s.entry().address)?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    socket.write_all(&head)?;
    let mut answer = Vec::new();
    while memchr::memmem::find(&answer, b"\r\n\r\n").is_none() {
        let mut buffer = [0; 4096];
        match socket.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => answer.extend(buffer.iter().take(read)),
            // What a proxy refuses by a reset is refused.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => bail!("no answer: {error}"),
        }
    }
    Ok(s.witness.arrived(&mark))
}

/// SplitMix64: the same targets from the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound as u64).unwrap_or(0)
    }

    fn target(&mut self) -> Vec<u8> {
        let starts: [&[u8]; 6] = [b"/public/", b"/public/", b"/feed/", b"/shop/", b"/", b"http://app.example/"];
        let mut target = starts.get(self.below(starts.len())).copied().unwrap_or_default().to_vec();
        for _ in 0..self.below(7) {
            target.extend(PARTS.get(self.below(PARTS.len())).copied().unwrap_or_default());
        }
        target
    }
}
