//! Bodies as they move: each piece at once in both directions, answers without one, trailers, and an end on one side that
//! soon is one on the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use edgekeep_tests::{Deployment, Entry, Raw, Then, Visit, eventually};

use crate::scenario::Scenario;
use crate::wire::{HEADER_TIMEOUT_MS, QUICK_MS, at};

/// How soon an end on one side is one on the other.
const SOON: Duration = Duration::from_secs(1);
/// The same where a core looks once a second.
const LOOKED_AT: Duration = Duration::from_secs(3);
/// For a sign that comes at once on a machine that is not busy.
const PATIENCE: Duration = Duration::from_secs(10);
const MIB: usize = 1024 * 1024;

pub fn scenarios() -> Vec<Scenario> {
    let mut all = crate::wire![scenario:
        each_event_arrives_before_the_next_is_sent,
        each_piece_of_an_upload_arrives_before_the_next_is_sent,
        an_answer_to_head_keeps_its_length_and_answers_without_a_body_have_none,
        an_answer_that_breaks_off_is_seen_to_be_cut,
        an_origin_that_does_not_answer_in_the_routes_time_is_a_504_and_is_left,
        the_routes_time_ends_with_the_answers_head,
    ];
    all.extend(crate::wire![native:
        a_100_comes_when_the_body_is_wanted_and_never_before_a_refusal,
        trailers_cannot_carry_identity,
        an_early_answer_passes_while_the_upload_goes_on,
        a_client_that_leaves_before_the_answer_takes_its_request_along,
        a_client_that_leaves_inside_the_answer_takes_its_request_along,
        a_client_that_leaves_inside_its_upload_takes_its_request_along,
        a_client_that_leaves_with_something_unread_takes_its_request_along,
        a_head_that_comes_too_slowly_is_cut_off,
        an_idle_connection_is_closed_and_a_busy_one_is_not,
        an_upload_that_stops_is_given_up,
        an_answer_that_nobody_reads_waits_at_its_origin,
        an_http_1_0_client_gets_no_chunks,
        interim_answers_of_an_origin_are_not_its_answer,
        an_origin_that_answers_and_leaves_without_reading_is_heard,
        a_chunked_answer_arrives_wherever_it_is_cut,
        an_answer_and_an_upload_pass_each_other,
        what_follows_an_answer_is_nobodys,
    ]);
    all
}

/// What a client has seen so far, told to the origin's script.
#[derive(Clone, Default)]
struct Seen(Arc<AtomicUsize>);

impl Seen {
    fn one_more(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    /// Waits until it is so many; false when that takes too long.
    fn reaches(&self, count: usize) -> bool {
        eventually("the other side", PATIENCE, || Ok(self.0.load(Ordering::Acquire) >= count)).is_ok()
    }
}

/// Requests at the pool's origin that are not over.
fn in_flight(d: &Deployment, origin: &str) -> Result<f64> {
    d.metric("edgekeep_origin_in_flight", Some(("origin", origin)))
}

fn each_event_arrives_before_the_next_is_sent(d: &Deployment) -> Result<()> {
    const EVENTS: usize = 5;
    let seen = Seen::default();
    let of_origin = seen.clone();
    d.recorder(at::FLOW)?.on("/flow/events", move |visit| {
        visit.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n");
        for number in 0..EVENTS {
            let event = format!("data: {number}\n\n");
            visit.send(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes());
            if !of_origin.reaches(number + 1) {
                return Then::Reset;
            }
        }
        visit.send(b"0\r\n\r\n");
        Then::Keep
    });
    let mut raw = Raw::connect(d.entry())?;
    raw.send("GET /flow/events HTTP/1.1\r\nhost: a\r\naccept: text/event-stream\r\n\r\n")?;
    let head = raw.head()?;
    ensure!(head.status == 200 && head.header("content-type") == Some("text/event-stream"), "{}", head.head);
    for number in 0..EVENTS {
        let mut event = Vec::new();
        let whole = format!("data: {number}\n\n").into_bytes();
        while event.len() < whole.len() {
            event.extend(raw.chunk()?.context("the events ended")?);
        }
        ensure!(event == whole, "{}", String::from_utf8_lossy(&event));
        seen.one_more();
    }
    ensure!(raw.chunk()?.is_none(), "more events");
    Ok(())
}

fn each_piece_of_an_upload_arrives_before_the_next_is_sent(d: &Deployment) -> Result<()> {
    const PIECES: usize = 4;
    let seen = Seen::default();
    let of_origin = seen.clone();
    d.recorder(at::FLOW)?.on("/flow/pieces", move |visit| {
        let mut came = Vec::new();
        for number in 0..PIECES {
            let piece = format!("piece {number}");
            while memchr::memmem::find(&came, piece.as_bytes()).is_none() {
                came.extend(visit.take());
                if memchr::memmem::find(&came, piece.as_bytes()).is_none() && visit.more(PATIENCE) != Some(true) {
                    return Then::Reset;
                }
            }
            of_origin.one_more();
        }
        visit.answer(200, b"all");
        Then::Close
    });
    let mut raw = Raw::connect(d.entry())?;
    raw.send("POST /flow/pieces HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")?;
    for number in 0..PIECES {
        raw.send(format!("7\r\npiece {number}\r\n"))?;
        ensure!(seen.reaches(number + 1), "piece {number} does not arrive");
    }
    raw.send("0\r\n\r\n")?;
    ensure!(raw.answer("POST")?.body == b"all", "another answer");
    Ok(())
}

fn an_answer_to_head_keeps_its_length_and_answers_without_a_body_have_none(d: &Deployment) -> Result<()> {
    let origin = d.recorder(at::FLOW)?;
    for (path, head) in [
        ("/flow/head", "HTTP/1.1 200 OK\r\ncontent-length: 1234\r\netag: \"x\"\r\n\r\n"),
        ("/flow/204", "HTTP/1.1 204 No Content\r\nx-own: 1\r\n\r\n"),
        ("/flow/304", "HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\n\r\n"),
    ] {
        origin.on(path, move |visit| {
            visit.send(head.as_bytes());
            Then::Keep
        });
    }
    let mut raw = Raw::connect(d.entry())?;
    for (method, path, status) in
        [("HEAD", "/flow/head", 200), ("GET", "/flow/204", 204), ("GET", "/flow/304", 304), ("HEAD", "/flow/204", 204)]
    {
        // On one connection: a body that is none would be read as the next answer.
        raw.send(format!("{method} {path} HTTP/1.1\r\nhost: a\r\n\r\n"))?;
        let answer = raw.answer(method)?;
        ensure!(answer.status == status, "{}", answer.head);
        if path == "/flow/head" {
            ensure!(answer.header("content-length") == Some("1234"), "the length is lost: {}", answer.head);
        }
        if status == 204 {
            ensure!(answer.header("content-length").is_none(), "{}", answer.head);
            ensure!(answer.header("transfer-encoding").is_none(), "{}", answer.head);
        }
        if status == 304 {
            ensure!(answer.header("etag") == Some("\"x\""), "{}", answer.head);
        }
    }
    raw.send("GET /flow/after HTTP/1.1\r\nhost: a\r\n\r\n")?;
    ensure!(raw.answer("GET")?.status == 200, "the connection is out of step");
    Ok(())
}

fn an_answer_that_breaks_off_is_seen_to_be_cut(d: &Deployment) -> Result<()> {
    let origin = d.recorder(at::FLOW)?;
    for (path, head, then) in [
        ("/flow/cut-length", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf", Then::Close),
        ("/flow/reset-length", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf", Then::Reset),
        ("/flow/cut-chunks", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", Then::Close),
        ("/flow/reset-chunks", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", Then::Reset),
    ] {
        // workerd may end chunks that broke off as if they were whole (docs/parity.md).
        if !d.kind.is_native() && path.ends_with("-chunks") {
            continue;
        }
        origin.on(path, move |visit| {
            visit.send(head.as_bytes());
            // So that the head is on its way before the end.
            std::thread::sleep(Duration::from_millis(100));
            then
        });
        let mut raw = Raw::connect(d.entry())?;
        raw.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"))?;
        let head = raw.head()?;
        ensure!(head.status == 200, "{}", head.head);
        let rest = raw.to_the_end(PATIENCE)?;
        ensure!(
            !rest.ends_with(b"0\r\n\r\n") && rest.len() < 100,
            "{path} seems whole: {}",
            String::from_utf8_lossy(&rest)
        );
        ensure!(origin.tries(path) == 1, "{path} was asked again after its head");
    }
    Ok(())
}

fn an_origin_that_does_not_answer_in_the_routes_time_is_a_504_and_is_left(d: &Deployment) -> Result<()> {
    let origin = d.recorder(at::FLOW)?;
    origin.on("/quick/silent", |visit| {
        visit.is_left(PATIENCE);
        Then::Close
    });
    let begun = Instant::now();
    d.get("/quick/silent").send()?.problem(504, "origin_timeout")?;
    let took = begun.elapsed();
    let limit = Duration::from_millis(QUICK_MS);
    ensure!(took >= limit && took < limit + Duration::from_secs(2), "after {took:?}");
    origin.sees_the_end_of("/quick/silent", SOON)?;
    ensure!(origin.tries("/quick/silent") == 1, "asked again");
    Ok(())
}

fn the_routes_time_ends_with_the_answers_head(d: &Deployment) -> Result<()> {
    d.recorder(at::FLOW)?.on("/quick/slow-body", |visit| {
        visit.send(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n");
        for _ in 0..8 {
            std::thread::sleep(Duration::from_millis(QUICK_MS / 4));
            visit.send(b"x");
        }
        Then::Keep
    });
    let answer = d.get("/quick/slow-body").send()?.expect(200)?;
    ensure!(answer.text() == "xxxxxxxx", "{answer}");
    Ok(())
}

fn a_100_comes_when_the_body_is_wanted_and_never_before_a_refusal(d: &Deployment) -> Result<()> {
    let head = |path: &str, length: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n")
    };
    let mut raw = Raw::connect(d.entry())?;
    raw.send(head("/flow/expected", "5"))?;
    let interim = raw.head()?;
    ensure!(interim.status == 100, "no 100: {}", interim.head);
    raw.send("12345")?;
    ensure!(raw.answer("POST")?.status == 200, "no answer after the body");
    ensure!(d.recorder(at::FLOW)?.request("/flow/expected")?.body == b"12345", "another body");
    // Nobody wants the body of what is refused; a client that waits for the 100 need not send it.
    for (path, length, status) in [("/flow/known/x", "5", 401), ("/flow/large", "999999999", 413), ("//x", "5", 400)] {
        let mut raw = Raw::connect(d.entry())?;
        raw.send(head(path, length))?;
        let answer = raw.head()?;
        ensure!(answer.status == status, "expected {status} at once: {}", answer.head);
    }
    Ok(())
}

fn trailers_cannot_carry_identity(d: &Deployment) -> Result<()> {
    let names = ["x-edgekeep-user", "X_Edgekeep_Shard", "x-forwarded-for", "forwarded", "cookie", "x-sum"];
    let trailers: String = names.iter().map(|name| format!("{name}: spoofed\r\n")).collect();
    let mut raw = Raw::connect(d.entry())?;
    raw.send(format!(
        "POST /flow/spoofed HTTP/1.1\r\nhost: a\r\ntrailer: {}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n{trailers}\r\n",
        names.join(", ")
    ))?;
    ensure!(raw.answer("POST")?.status == 200, "no answer");
    let seen = d.recorder(at::FLOW)?.request("/flow/spoofed")?;
    let text = String::from_utf8_lossy(&seen.bytes).to_ascii_lowercase();
    for name in names.iter().filter(|name| **name != "x-sum") {
        ensure!(!text.contains(&format!("{}: spoofed", name.to_ascii_lowercase())), "{text}");
    }
    Ok(())
}

fn an_early_answer_passes_while_the_upload_goes_on(d: &Deployment) -> Result<()> {
    d.recorder(at::FLOW)?.on("/flow/early", |visit| {
        visit.answer(403, b"enough");
        // It reads on a little, as origins do that close in order.
        visit.is_left(PATIENCE);
        Then::Close
    });
    let mut raw = Raw::connect(d.entry())?;
    raw.send("POST /flow/early HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\nthe first bytes")?;
    let answer = raw.answer("POST")?;
    ensure!(answer.status == 403 && answer.body == b"enough", "{answer:?}");
    Ok(())
}

/// Opens a request, waits until its origin has it, lets the client leave as `leave` does, and sees the end of it there.
fn leaves(
    d: &Deployment,
    path: &'static str,
    sent: &str,
    within: Duration,
    begun: impl Fn(&mut Visit) + Send + Sync + 'static,
) -> Result<()> {
    let origin = d.recorder(at::FLOW)?;
    let seen = Seen::default();
    let of_origin = seen.clone();
    origin.on(path, move |visit| {
        begun(visit);
        of_origin.one_more();
        visit.is_left(PATIENCE);
        Then::Close
    });
    let mut raw = Raw::connect(d.entry())?;
    raw.send(sent)?;
    ensure!(seen.reaches(1), "the request does not arrive");
    ensure!(in_flight(d, "counted")? >= 1.0, "no lease is held");
    // Some of the answer, where there is one.
    raw.quiet_after(Duration::from_millis(100))?;
    drop(raw);
    let left = Instant::now();
    origin.sees_the_end_of(path, within)?;
    ensure!(left.elapsed() < within, "the origin's connection lived on for {:?}", left.elapsed());
    Ok(())
}

/// The four below hold leases of one origin, and wait until none of them is left.
fn no_lease_is_left(d: &Deployment) -> Result<()> {
    eventually("the leases are given back", PATIENCE, || Ok(in_flight(d, "counted")? == 0.0))
}

fn a_client_that_leaves_before_the_answer_takes_its_request_along(d: &Deployment) -> Result<()> {
    for method in ["GET", "POST"] {
        let path = if method == "GET" { "/counted/silent-get" } else { "/counted/silent-post" };
        let head = format!("{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi");
        leaves(d, path, &head, SOON, |visit| drop(visit.body()))?;
    }
    no_lease_is_left(d)
}

fn a_client_that_leaves_inside_the_answer_takes_its_request_along(d: &Deployment) -> Result<()> {
    leaves(d, "/counted/half", "GET /counted/half HTTP/1.1\r\nhost: a\r\n\r\n", SOON, |visit| {
        visit.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf");
    })?;
    no_lease_is_left(d)
}

fn a_client_that_leaves_inside_its_upload_takes_its_request_along(d: &Deployment) -> Result<()> {
    let head = "POST /counted/upload HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nhalf";
    leaves(d, "/counted/upload", head, SOON, |_| {})?;
    no_lease_is_left(d)
}

/// Whoever answers a request does not read the next one, nor the end behind it.
fn a_client_that_leaves_with_something_unread_takes_its_request_along(d: &Deployment) -> Result<()> {
    for (path, behind) in
        [("/counted/stray", "\r\n"), ("/counted/next", "GET /counted/next HTTP/1.1\r\nhost: a\r\n\r\n")]
    {
        leaves(d, path, &format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n{behind}"), LOOKED_AT, |visit| {
            visit.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n");
        })?;
    }
    no_lease_is_left(d)
}

fn a_head_that_comes_too_slowly_is_cut_off(d: &Deployment) -> Result<()> {
    let limit = Duration::from_millis(HEADER_TIMEOUT_MS);
    // Nothing after a first part; and byte by byte, which must not buy time.
    for drip in [false, true] {
        let mut raw = Raw::connect(d.entry())?;
        let begun = Instant::now();
        raw.send("GET /flow/slow-head HTTP/1.1\r\nhost: a\r\nx-slow: ")?;
        loop {
            ensure!(begun.elapsed() < limit + Duration::from_secs(2), "still open after {:?}", begun.elapsed());
            if raw.more(Duration::from_millis(100))? == Some(false) {
                break;
            }
            if drip && raw.send("x").is_err() {
                break;
            }
        }
        ensure!(begun.elapsed() >= limit - Duration::from_millis(50), "cut off after {:?}", begun.elapsed());
    }
    ensure!(d.recorder(at::FLOW)?.tries("/flow/slow-head") == 0, "half a head reached the origin");
    Ok(())
}

fn an_idle_connection_is_closed_and_a_busy_one_is_not(d: &Deployment) -> Result<()> {
    d.recorder(at::FLOW)?.on("/flow/longer-than-idle", |visit| {
        std::thread::sleep(Duration::from_millis(4_500));
        visit.answer(200, b"late")
    });
    let mut busy = Raw::connect(d.entry())?;
    busy.send("GET /flow/longer-than-idle HTTP/1.1\r\nhost: a\r\n\r\n")?;
    let mut idle = Raw::connect(d.entry())?;
    idle.send("GET /flow/once HTTP/1.1\r\nhost: a\r\n\r\n")?;
    ensure!(idle.answer("GET")?.status == 200, "no answer");
    let begun = Instant::now();
    ensure!(idle.to_the_end(Duration::from_secs(6))?.is_empty(), "bytes on an idle connection");
    ensure!(begun.elapsed() >= Duration::from_millis(3_900), "closed after {:?}", begun.elapsed());
    // An answer that takes longer than a connection may idle is no idling.
    ensure!(busy.answer("GET")?.body == b"late", "another answer");
    Ok(())
}

fn an_upload_that_stops_is_given_up(d: &Deployment) -> Result<()> {
    let origin = d.recorder(at::FLOW)?;
    let mut raw = Raw::connect(d.entry())?;
    let begun = Instant::now();
    raw.send("POST /quick/stalled HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc")?;
    let answer = raw.answer("POST")?;
    // The client's fault, and nobody else's: no 5xx.
    ensure!((400..500).contains(&answer.status), "{}", answer.head);
    ensure!(begun.elapsed() < Duration::from_millis(QUICK_MS) + Duration::from_secs(2), "{:?}", begun.elapsed());
    origin.sees_the_end_of("/quick/stalled", SOON)?;
    raw.to_the_end(Duration::from_secs(5))?;
    Ok(())
}

fn an_answer_that_nobody_reads_waits_at_its_origin(d: &Deployment) -> Result<()> {
    const ALL: usize = 96 * MIB;
    let sent = Arc::new(AtomicUsize::new(0));
    let of_origin = sent.clone();
    d.recorder(at::FLOW)?.on("/flow/unread", move |visit| {
        visit.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {ALL}\r\n\r\n").as_bytes());
        let piece = vec![b'x'; MIB];
        while of_origin.load(Ordering::Relaxed) < ALL && visit.send(&piece) {
            of_origin.fetch_add(MIB, Ordering::Relaxed);
        }
        Then::Close
    });
    let before = d.peak_memory()?;
    let mut raw = Raw::connect(d.entry())?;
    raw.send("GET /flow/unread HTTP/1.1\r\nhost: a\r\n\r\n")?;
    // Until nothing moves any more.
    let mut last = usize::MAX;
    eventually("the origin waits", PATIENCE, || {
        std::thread::sleep(Duration::from_millis(200));
        let now = sent.load(Ordering::Relaxed);
        Ok(now > 0 && std::mem::replace(&mut last, now) == now)
    })?;
    let sent = sent.load(Ordering::Relaxed);
    ensure!(sent < ALL / 2, "{} MiB were taken from the origin for a client that reads nothing", sent / MIB);
    let growth = d.peak_memory()?.saturating_sub(before);
    ensure!(growth < 16 * 1024, "the peak grew by {growth} KiB");
    ensure!(raw.answer("GET")?.body.len() == ALL, "the body is not whole");
    Ok(())
}

fn an_http_1_0_client_gets_no_chunks(d: &Deployment) -> Result<()> {
    d.recorder(at::FLOW)?.on("/flow/old", |visit| {
        visit.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n");
        Then::Keep
    });
    let mut raw = Raw::connect(d.entry())?;
    raw.send("GET /flow/old HTTP/1.0\r\n\r\n")?;
    let head = raw.head()?;
    ensure!(head.status == 200 && head.header("transfer-encoding").is_none(), "{}", head.head);
    ensure!(raw.to_the_end(PATIENCE)? == b"hi", "another body");
    let seen = d.recorder(at::FLOW)?.request("/flow/old")?;
    // An origin's HTTP/1.1 needs a Host, which such a client need not send.
    ensure!(seen.values("host").len() == 1, "{seen:?}");
    Ok(())
}

fn interim_answers_of_an_origin_are_not_its_answer(d: &Deployment) -> Result<()> {
    d.recorder(at::FLOW)?.on("/flow/hints", |visit| {
        visit.send(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n");
        std::thread::sleep(Duration::from_millis(20));
        visit.send(b"HTTP/1.1 100 Continue\r\n\r\n");
        visit.answer(200, b"final")
    });
    let answer = d.get("/flow/hints").send()?.expect(200)?;
    ensure!(answer.text() == "final", "{answer}");
    Ok(())
}

fn an_origin_that_answers_and_leaves_without_reading_is_heard(d: &Deployment) -> Result<()> {
    const ALL: usize = 4 * MIB;
    let origin = d.recorder(at::FLOW)?;
    origin.on("/flow/leaves", |visit| {
        visit.send(b"HTTP/1.1 413 Said\r\nconnection: close\r\ncontent-length: 6\r\n\r\nenough");
        // With bytes that nobody read, so the gateway's next ones are answered by a reset.
        Then::Reset
    });
    for round in 0..10 {
        let mut raw = Raw::connect(d.entry())?;
        let head = format!("POST /flow/leaves HTTP/1.1\r\nhost: a\r\ncontent-length: {ALL}\r\n\r\n");
        let body = vec![b'x'; ALL];
        let mut twin = raw.twin()?;
        // The gateway need not take all of it either.
        let sending = std::thread::spawn(move || twin.send(head).and_then(|()| twin.send(body)));
        let answer = raw.answer("POST")?;
        ensure!(answer.status == 413 && answer.body == b"enough", "in round {round}: {answer:?}");
        drop(raw);
        let _ = sending.join();
        ensure!(origin.tries("/flow/leaves") == round + 1, "a POST was sent again");
    }
    Ok(())
}

fn a_chunked_answer_arrives_wherever_it_is_cut(d: &Deployment) -> Result<()> {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
        3\r\nabc\r\n00A;ext=\"1\"\r\n0123456789\r\n0\r\nx-sum: 1\r\n\r\n";
    let origin = d.recorder(at::FLOW)?;
    origin.on("/flow/cuts", |visit| {
        let cut = visit.target().split('?').nth(1).and_then(|cut| cut.parse().ok()).unwrap_or(0);
        let (first, rest) = ANSWER.split_at(cut);
        visit.send(first);
        std::thread::sleep(Duration::from_millis(2));
        visit.send(rest);
        Then::Keep
    });
    let mut raw = Raw::connect(d.entry())?;
    for cut in 1..ANSWER.len() {
        raw.send(format!("GET /flow/cuts?{cut} HTTP/1.1\r\nhost: a\r\n\r\n"))?;
        let answer = raw.answer("GET")?;
        ensure!(answer.status == 200 && answer.body == b"abc0123456789", "cut at {cut}: {answer:?}");
    }
    // Each was seen to be over: the next request could take the same connection, if no other scenario's took it.
    let carries = |bytes: &[u8]| memchr::memmem::find(bytes, b"GET /flow/cuts").is_some();
    let connections = origin.recordings().iter().filter(|its| carries(&its.bytes)).count();
    ensure!(connections < ANSWER.len() / 4, "over {connections} connections");
    Ok(())
}

/// Sends a large body to an origin that answers with it as it comes, and reads it back meanwhile.
pub fn comes_back(entry: Entry, path: &str) -> Result<()> {
    const ALL: usize = 8 * MIB;
    let body: Arc<Vec<u8>> = Arc::new((0..ALL).map(|at| (at / 7) as u8).collect());
    let mut raw = Raw::connect(entry)?;
    let (mut twin, sent) = (raw.twin()?, body.clone());
    let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {ALL}\r\n\r\n");
    let sending = std::thread::spawn(move || twin.send(head).and_then(|()| twin.send(&*sent)));
    let answer = raw.answer("POST")?;
    ensure!(answer.status == 200 && answer.body == *body, "{} of {} bytes: {}", answer.body.len(), ALL, answer.head);
    sending.join().ok().context("the sending thread broke")?
}

fn an_answer_and_an_upload_pass_each_other(d: &Deployment) -> Result<()> {
    d.recorder(at::FLOW)?.on("/flow/back", |visit| {
        let length = visit.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        visit.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").as_bytes());
        let mut left: usize = length;
        while left > 0 {
            let came = visit.take();
            left = left.saturating_sub(came.len());
            if !visit.send(&came) || (came.is_empty() && visit.more(PATIENCE) != Some(true)) {
                return Then::Reset;
            }
        }
        Then::Close
    });
    comes_back(d.entry(), "/flow/back")
}

fn what_follows_an_answer_is_nobodys(d: &Deployment) -> Result<()> {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
    const MORE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
    let origin = d.recorder(at::FLOW)?;
    origin.on("/flow/more", |visit| {
        visit.send(&[ANSWER, MORE].concat());
        Then::Keep
    });
    origin.on("/flow/more-later", |visit| {
        visit.send(ANSWER);
        std::thread::sleep(Duration::from_millis(30));
        visit.send(MORE);
        Then::Keep
    });
    // On one connection, so that one core has them all.
    let mut raw = Raw::connect(d.entry())?;
    for path in ["/flow/more", "/flow/more-later"] {
        for _ in 0..5 {
            raw.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"))?;
            let answer = raw.answer("GET")?;
            ensure!(answer.body == b"hi", "{answer:?}");
            std::thread::sleep(Duration::from_millis(80));
            raw.send("GET /flow/after-more HTTP/1.1\r\nhost: a\r\n\r\n")?;
            let answer = raw.answer("GET")?;
            ensure!(answer.status == 200 && answer.body.is_empty(), "another request's answer: {answer:?}");
        }
        origin.sees_the_end_of(path, SOON)?;
    }
    Ok(())
}
