//! One request in is never two requests out: framings that two readers may read in two ways are sent byte for byte, and
//! what the origin was sent is read by a strict reader and by careless ones.
//!
//! Behind each of them stands a second request, for a route that lets nobody in. Judged by the gateway it never reaches
//! the origin, so whoever finds it there has found a request that was smuggled.

#![allow(clippy::print_stdout, reason = "seeds, for whoever reads the run")]

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use edgekeep_tests::framing::{Prefers, lenient, strict};
use edgekeep_tests::{Deployment, Raw, Recorder};

use crate::scenario::Scenario;
use crate::wire::at;

/// How long a connection must say nothing until it is taken for waiting.
const QUIET: Duration = Duration::from_millis(400);
/// How many connections are tried at once.
const AT_ONCE: usize = 8;
/// Rounds of the mutations: enough that each mutation meets each head some times.
const ROUNDS: usize = 400;

pub fn scenarios() -> Vec<Scenario> {
    let mut all = crate::wire![scenario:
        one_request_in_is_never_two_requests_out,
        mutations_of_bad_framings_are_never_two_requests,
    ];
    all.extend(crate::wire![native:
        after_a_request_with_both_lengths_the_connection_closes,
        pipelined_requests_are_answered_in_order_and_each_is_judged,
    ]);
    all
}

/// What the native gateway makes of a case. At the edge the platform reads first, and may refuse more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Makes {
    /// A 4xx or a closed connection; the origin sees nothing.
    Refused,
    /// Exactly one whole request.
    One,
    /// The request does not end: at most a part of it goes out.
    Part,
}

use Makes::{One, Part, Refused};

/// The second request: what it asks for is forbidden to whoever has no session.
const SECOND: &str = "GET /framing/second/{n} HTTP/1.1\r\nHost: app.example\r\n\r\n";

/// Name, head and body. `{n}` is the case's number, `{second}` the second request, `{in}` its length in hex.
const CASES: [(&str, &str, Makes); 81] = [
    // Both lengths.
    (
        "CL then TE",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{second}",
        One,
    ),
    (
        "TE then CL",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{second}",
        One,
    ),
    (
        "TE then a bad CL",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: x\r\n\r\n0\r\n\r\n{second}",
        One,
    ),
    (
        "CL over the chunks",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 90\r\nTransfer-Encoding: chunked\r\n\r\n{in}\r\n{second}\r\n0\r\n\r\n",
        One,
    ),
    (
        "CL 0 and TE",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n{in}\r\n{second}\r\n0\r\n\r\n",
        One,
    ),
    // Spellings of Transfer-Encoding.
    (
        "xchunked",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{second}",
        Refused,
    ),
    (
        "xchunked and CL",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{second}",
        Refused,
    ),
    (
        "chunkedx",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunkedx\r\n\r\n0\r\n\r\n{second}",
        Refused,
    ),
    ("identity", "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n{second}", Refused),
    (
        "identity and CL",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc{second}",
        Refused,
    ),
    (
        "chunked, identity",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{second}",
        Refused,
    ),
    (
        "chunked, then identity",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n{second}",
        Refused,
    ),
    (
        "chunked;x",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;x\r\n\r\n0\r\n\r\n{second}",
        Refused,
    ),
    (
        "quoted",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n{second}",
        Refused,
    ),
    ("empty", "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n{second}", Refused),
    (
        "empty and CL",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{second}",
        Refused,
    ),
    (
        "a trailing comma",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked,\r\n\r\n0\r\n\r\n{second}",
        Refused,
    ),
    (
        "a vertical tab",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n{second}",
        Refused,
    ),
    (
        "a NUL",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\0\r\n\r\n0\r\n\r\n{second}",
        Refused,
    ),
    (
        "a tab after it",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\t\r\n\r\n0\r\n\r\n{second}",
        One,
    ),
    ("CHUNKED", "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n{second}", One),
    (
        "a space before the colon",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n{second}",
        Refused,
    ),
    (
        "a tab before the colon",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n{second}",
        Refused,
    ),
    (
        "a space before the name",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{second}",
        Refused,
    ),
    (
        "a folded value",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{second}",
        Refused,
    ),
    (
        "a folded line",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nX: y\r\n Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{second}",
        Refused,
    ),
    (
        "HTTP/1.0 with TE",
        "POST /framing/{n} HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{second}",
        Refused,
    ),
    (
        "HTTP/1.0 with TE and CL",
        "POST /framing/{n} HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{second}",
        Refused,
    ),
    (
        "HTTP/1.0 with identity",
        "POST /framing/{n} HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nTransfer-Encoding: identity\r\n\r\n{second}",
        Refused,
    ),
    // Spellings of Content-Length.
    (
        "two different CL",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 0\r\n\r\nabcde{second}",
        Refused,
    ),
    (
        "two different CL, the other way",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\nabcde{second}",
        Refused,
    ),
    (
        "two equal CL",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nabcde{second}",
        One,
    ),
    (
        "a list of equal CL",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 5,5\r\n\r\nabcde{second}",
        Refused,
    ),
    (
        "a list of different CL",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 0\r\n\r\nabcde{second}",
        Refused,
    ),
    ("CL +5", "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nabcde{second}", Refused),
    ("CL -5", "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\nabcde{second}", Refused),
    ("CL 0x5", "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nabcde{second}", Refused),
    ("CL 5.0", "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 5.0\r\n\r\nabcde{second}", Refused),
    ("CL 5e0", "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 5e0\r\n\r\nabcde{second}", Refused),
    ("CL 5 5", "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 5 5\r\n\r\nabcde{second}", Refused),
    ("CL 5_0", "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 5_0\r\n\r\nabcde{second}", Refused),
    ("CL empty", "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nabcde{second}", Refused),
    (
        "CL over 64 bits",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551621\r\n\r\nabcde{second}",
        Refused,
    ),
    (
        "CL of 2^64-1",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551615\r\n\r\nabcde{second}",
        Refused,
    ),
    (
        "CL over the limit",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\nabcde{second}",
        Refused,
    ),
    ("CL with a NUL", "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\0\r\n\r\nabcde{second}", Refused),
    (
        "CL with a space before the colon",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\nabcde{second}",
        Refused,
    ),
    ("CL 005", "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 005\r\n\r\nabcde{second}", One),
    ("CL within the second request", "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n{second}", One),
    (
        "CL longer than what comes",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n{second}",
        Part,
    ),
    // Chunks.
    (
        "a chunk extension",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\n{second}",
        One,
    ),
    (
        "a line feed in an extension",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;\nxx\r\nabc\r\n0\r\n\r\n{second}",
        Part,
    ),
    (
        "a chunk that a line feed ends",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n{second}",
        Part,
    ),
    (
        "a chunk size over 64 bits",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000003\r\nabc\r\n0\r\n\r\n{second}",
        Part,
    ),
    (
        "a chunk size of 2^64-1",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc\r\n0\r\n\r\n{second}",
        Part,
    ),
    (
        "a chunk size 0x3",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n{second}",
        Part,
    ),
    (
        "a chunk size +3",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n{second}",
        Part,
    ),
    (
        "a chunk size -3",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n{second}",
        Part,
    ),
    (
        "a chunk size 1_0",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1_0\r\nabc\r\n0\r\n\r\n{second}",
        Part,
    ),
    (
        "a chunk without a size",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\r\nabc\r\n0\r\n\r\n{second}",
        Part,
    ),
    (
        "a chunk longer than its size",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n{second}",
        Part,
    ),
    (
        "two bytes for a chunk's end",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcXX0\r\n\r\n{second}",
        Part,
    ),
    (
        "no end of the last chunk",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n{second}",
        Part,
    ),
    (
        "a lone carriage return after a size",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\rabc\r\n0\r\n\r\n{second}",
        Part,
    ),
    (
        "a second request in a trailer",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n{second}",
        One,
    ),
    // Lines.
    ("a lone line feed after the first line", "GET /framing/{n} HTTP/1.1\nHost: a\r\n\r\n{second}", One),
    ("lone line feeds", "POST /framing/{n} HTTP/1.1\nHost: a\nContent-Length: 3\n\nabc{second}", One),
    (
        "a carriage return in a name",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nX\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{second}",
        Refused,
    ),
    (
        "a carriage return in a value",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nX: y\rTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{second}",
        Refused,
    ),
    ("a line feed and an end in a value", "GET /framing/{n} HTTP/1.1\r\nHost: a\r\nX: y\n\r\n{second}", One),
    ("a NUL in a name", "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent\0-Length: 5\r\n\r\nabcde{second}", Refused),
    (
        "a line without a colon",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length 5\r\n\r\nabcde{second}",
        Refused,
    ),
    (
        "an underscore",
        "POST /framing/{n} HTTP/1.1\r\nHost: a\r\nContent_Length: 999\r\nTransfer_Encoding: chunked\r\n\r\n{second}",
        One,
    ),
    // The first line.
    ("two Hosts", "GET /framing/{n} HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n{second}", Refused),
    ("no Host", "GET /framing/{n} HTTP/1.1\r\nX: y\r\n\r\n{second}", Refused),
    ("HTTP/0.9", "GET /framing/{n}\r\n\r\n{second}", Refused),
    ("HTTP/2.0 in HTTP/1", "GET /framing/{n} HTTP/2.0\r\nHost: a\r\n\r\n{second}", Refused),
    ("a method with a line", "GET\r\n/framing/{n} HTTP/1.1\r\nHost: a\r\n\r\n{second}", Refused),
    ("a target with a space", "GET /framing/{n} x HTTP/1.1\r\nHost: a\r\n\r\n{second}", Refused),
    // With a body where none is expected, and before an upgrade was accepted (CVE-2026-2833).
    ("a GET with a body", "GET /framing/{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\nGET / H{second}", One),
    (
        "bytes behind an upgrade",
        "GET /framing/{n} HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n{second}",
        One,
    ),
];

/// The bytes of a case.
fn bytes_of(template: &str, number: usize) -> Vec<u8> {
    let second = SECOND.replace("{n}", &number.to_string());
    let length = format!("{:x}", second.len());
    template.replace("{second}", &second).replace("{in}", &length).replace("{n}", &number.to_string()).into_bytes()
}

/// Sends bytes over a connection of their own; whether it was closed, and what came back.
fn tell(d: &Deployment, bytes: &[u8], quiet: Duration) -> Result<(bool, Vec<u8>)> {
    let mut raw = Raw::connect(d.entry())?;
    // A refusal may close the connection under the last bytes.
    let _ = raw.send(bytes);
    raw.quiet_after(quiet)
}

/// Does it for all of them, some at once.
fn each<T: Send>(count: usize, one: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let one = &one;
    let parts: Vec<Result<Vec<T>>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE)
            .map(|worker| scope.spawn(move || (worker..count).step_by(AT_ONCE).map(one).collect()))
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| bail!("a client broke"))).collect()
    });
    Ok(parts.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// How often each path was asked for, where every reader finds the same; an error where a request was smuggled.
///
/// At the edge the platform writes what an origin is sent: it lets bytes above ASCII and control characters
/// stand in headers, which says nothing of where a request ends.
fn what_the_origin_saw(d: &Deployment) -> Result<HashMap<String, usize>> {
    let mut seen = HashMap::new();
    for recording in d.recorder(at::FRAMING)?.recordings() {
        let shown = || String::from_utf8_lossy(&recording.bytes).into_owned();
        let bytes: Vec<u8> = match d.kind.is_native() {
            true => recording.bytes.clone(),
            false => recording
                .bytes
                .iter()
                .map(|byte| if byte.is_ascii_graphic() || b" \t\r\n".contains(byte) { *byte } else { b'x' })
                .collect(),
        };
        let read = strict(&bytes);
        ensure!(read.fault.is_none(), "{:?}: {}", read.fault, shown());
        for prefers in [Prefers::Length, Prefers::Chunks] {
            let careless = lenient(&bytes, prefers);
            ensure!(careless.get(..read.messages.len()) == Some(&read.messages[..]), "two readings: {}", shown());
            ensure!(careless.len() <= read.messages.len() + 1, "more than the strict reader finds: {}", shown());
            for message in careless {
                ensure!(!message.path().starts_with("/framing/second/"), "smuggled: {}", shown());
            }
        }
        for message in read.messages {
            *seen.entry(message.path().to_owned()).or_default() += 1;
        }
    }
    Ok(seen)
}

fn one_request_in_is_never_two_requests_out(d: &Deployment) -> Result<()> {
    let origin = d.recorder(at::FRAMING)?;
    let all = each(CASES.len(), |number| {
        let (name, template, makes) = CASES[number];
        let (closed, answer) = tell(d, &bytes_of(template, number), QUIET).with_context(|| name.to_owned())?;
        Ok((number, name, makes, closed, String::from_utf8_lossy(&answer).into_owned()))
    })?;
    let seen = what_the_origin_saw(d)?;
    let mut faults = Vec::new();
    for (number, name, makes, closed, answer) in all {
        let count = seen.get(&format!("/framing/{number}")).copied().unwrap_or(0);
        let is_refusal = answer.starts_with("HTTP/1.1 4") || (answer.is_empty() && closed);
        let is_right = match makes {
            One => count == 1 && answer.starts_with("HTTP/1.1 200 "),
            Refused => count == 0 && is_refusal && tried(origin, number) == 0,
            Part => count == 0 && !answer.starts_with("HTTP/1.1 2"),
        };
        let is_right = is_right || (!d.kind.is_native() && count <= 1);
        if !is_right {
            faults.push(format!("{name}: {makes:?}, but {count} at the origin and {answer:?}"));
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

fn tried(origin: &Recorder, number: usize) -> usize {
    origin.tries(&format!("/framing/{number}"))
}

fn after_a_request_with_both_lengths_the_connection_closes(d: &Deployment) -> Result<()> {
    for lengths in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding: chunked\r\nContent-Length: 0",
    ] {
        let mut raw = Raw::connect(d.entry())?;
        raw.send(format!("POST /framing/both HTTP/1.1\r\nHost: a\r\n{lengths}\r\n\r\n0\r\n\r\n"))?;
        let answer = raw.answer("POST")?;
        ensure!(answer.status == 200 && answer.header("connection") == Some("close"), "{}", answer.head);
        ensure!(raw.to_the_end(Duration::from_secs(2))?.is_empty(), "bytes after the answer");
    }
    Ok(())
}

fn pipelined_requests_are_answered_in_order_and_each_is_judged(d: &Deployment) -> Result<()> {
    let mut raw = Raw::connect(d.entry())?;
    raw.send(
        "POST /framing/first HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
         GET /framing/second/0 HTTP/1.1\r\nHost: a\r\n\r\n\
         POST /framing/third HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
         GET /framing/fourth HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    )?;
    for (method, status) in [("POST", 200), ("GET", 401), ("POST", 200), ("GET", 200)] {
        let answer = raw.answer(method)?;
        ensure!(answer.status == status, "expected {status}: {}", answer.head);
    }
    ensure!(raw.to_the_end(Duration::from_secs(2))?.is_empty(), "bytes after the last answer");
    let origin = d.recorder(at::FRAMING)?;
    for path in ["/framing/first", "/framing/third", "/framing/fourth"] {
        origin.request(path)?;
    }
    ensure!(origin.requests("/framing/second/0")?.is_empty(), "what was refused reached the origin");
    Ok(())
}

/// Pieces that change how a head is read.
const PIECES: [&str; 24] = [
    "\r\n",
    "\n",
    "\r",
    "\0",
    " ",
    "\t",
    "\x0b",
    ":",
    ",",
    ";",
    "0\r\n\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Content-Length: 4\r\n",
    "Content-Length: 0\r\n",
    "transfer-encoding: identity\r\n",
    "chunked",
    "+",
    "-",
    "0x",
    "HTTP/1.0",
    "Connection: close, content-length\r\n",
    "Upgrade: h2c\r\n",
    "Expect: 100-continue\r\n",
    "\u{e9}",
];

/// Where the mutated requests go.
const MUTATED: &str = "/framing/mutated/request/{n}";

fn mutations_of_bad_framings_are_never_two_requests(d: &Deployment) -> Result<()> {
    let seed = match std::env::var("EDGEKEEP_SEED") {
        Ok(seed) => seed.parse().context("EDGEKEEP_SEED is a number")?,
        Err(_) => std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos() as u64,
    };
    println!("mutations of framings: EDGEKEEP_SEED={seed}");
    let rounds = if d.kind.is_native() { ROUNDS } else { ROUNDS / 4 };
    let play = || -> Result<()> {
        each(rounds, |round| {
            let mut draw = Draw(seed ^ (round as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let (_, template, _) = CASES[draw.below(CASES.len())];
            // So far from the cases' own paths that no mutation makes one of them.
            let mut bytes = bytes_of(&template.replace("/framing/{n}", MUTATED), round);
            for _ in 0..=draw.below(3) {
                mutate(&mut bytes, &mut draw);
            }
            tell(d, &bytes, Duration::from_millis(60)).map(drop)
        })?;
        for (path, count) in what_the_origin_saw(d)? {
            // A mutation may give the second request another name, and so make an ordinary one of it.
            ensure!(count <= 2 || !path.starts_with("/framing/mutated/"), "{path}: {count} requests from one");
        }
        Ok(())
    };
    play().with_context(|| format!("EDGEKEEP_SEED={seed}"))
}

fn mutate(bytes: &mut Vec<u8>, draw: &mut Draw) {
    let at = draw.below(bytes.len().max(1));
    match draw.below(4) {
        0 => {
            let piece = PIECES[draw.below(PIECES.len())];
            bytes.splice(at..at, piece.bytes());
        }
        1 => {
            let end = (at + 1 + draw.below(4)).min(bytes.len());
            bytes.drain(at..end);
        }
        2 => bytes[at] = draw.below(256) as u8,
        _ => {
            let end = (at + 1 + draw.below(30)).min(bytes.len());
            let again = bytes[at..end].to_vec();
            bytes.splice(at..at, again);
        }
    }
}

/// splitmix64.
struct Draw(u64);

impl Draw {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) % most as u64) as usize
    }
}
