//! HTTP/2 to clients, with prior knowledge on the listener that also speaks HTTP/1.1: what one connection carries at
//! once, what a stream is when it becomes a request of HTTP/1.1, and what a client that misbehaves gets.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use edgekeep_tests::http2::{Http2, raw, reset_within, run, upload_reset, whole};
use edgekeep_tests::{
    Deployment, Entry, Gateway, Kind, Origin, PINNED_WITH_STREAMS, Written, answer_heads, eventually,
};
use h2::Reason;
use serde_json::Value;

use crate::scenario::Scenario;

/// As in `streams.rs`, from the revocation's answer.
const BOUND: Duration = Duration::from_secs(5);
/// What the gateway lets be open at once.
const STREAMS: usize = 256;

pub fn scenarios() -> Vec<Scenario> {
    let shared = crate::shared![
        one_connection_carries_many_requests_at_once,
        a_stream_ends_with_its_session_and_the_others_go_on,
        a_stream_that_nobody_reads_and_an_upload_end_with_their_session,
        a_request_is_to_its_origin_what_it_would_have_been_in_http1,
        two_different_hosts_are_refused,
        bodies_pass_both_ways,
        a_head_beyond_the_limit_is_refused_and_the_connection_goes_on,
        what_is_not_allowed_in_a_head_resets_its_stream,
        a_client_that_resets_all_it_begins_is_sent_away,
        a_head_without_an_end_is_not_read_for_ever,
        curl_gets_an_answer,
    ];
    let mut all: Vec<_> = shared.into_iter().map(Scenario::natively).collect();
    for (name, play) in [
        ("trailers_pass_both_ways", trailers_pass_both_ways as fn(&Deployment) -> Result<()>),
        (
            "an_upload_that_is_reset_without_an_error_is_not_whole",
            an_upload_that_is_reset_without_an_error_is_not_whole,
        ),
        ("an_idle_connection_is_told_that_it_ends", an_idle_connection_is_told_that_it_ends),
        ("a_gateway_that_ends_finishes_what_was_begun", a_gateway_that_ends_finishes_what_was_begun),
        ("every_stream_has_one_line_also_when_it_is_cut", every_stream_has_one_line_also_when_it_is_cut),
    ] {
        all.push(Scenario::shared(name, play).only(Kind::NativeEmbedded));
    }
    all
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// A gateway of its own before one origin, with an open route for everything.
fn before(origin: &Origin, server: &str) -> Result<Gateway> {
    Gateway::start(tempfile::tempdir()?, Written { server, rest: &origin.open_to_all() })
}

fn one_connection_carries_many_requests_at_once(d: &Deployment) -> Result<()> {
    let token = bearer(&d.login(PINNED_WITH_STREAMS)?.access);
    run(async {
        let http2 = Http2::connect(d.entry()).await?;
        http2.get("/echo/open/x", &[]).await?;
        ensure!(http2.most_streams() == STREAMS, "{} at once", http2.most_streams());
        // Answers without an end, and beside them as many more as there may be.
        let mut endless = Vec::new();
        for _ in 0..20 {
            let request = http2.request("GET", "/events/50", &[("authorization", &token)])?;
            endless.push(http2.begin(request, false).await?.0.await?);
        }
        let mut asked = Vec::new();
        for at in 0..STREAMS - 20 {
            let request = http2.request("GET", &format!("/echo/{at}"), &[("authorization", &token)])?;
            asked.push((at, http2.begin(request, false).await?.0));
        }
        for (at, answer) in asked {
            let answer = whole(answer).await?;
            let echo: Value = serde_json::from_slice(&answer.body)?;
            ensure!(answer.status == 200 && echo["path"] == format!("/echo/{at}"), "{}", answer.text());
        }
        for mut answer in endless {
            let more = answer.body_mut().data().await.context("an endless answer ended")??;
            ensure!(answer.status() == 200 && !more.is_empty());
        }
        Ok(())
    })
}

fn a_stream_ends_with_its_session_and_the_others_go_on(d: &Deployment) -> Result<()> {
    let (ends, stays) = (d.login("h2-ends")?, d.login("h2-stays")?);
    run(async {
        let http2 = Http2::connect(d.entry()).await?;
        let mut open = Vec::new();
        for session in [&ends, &stays] {
            let request = http2.request("GET", "/events/50", &[("authorization", &bearer(&session.access))])?;
            open.push(http2.begin(request, false).await?.0.await?.into_body());
        }
        ensure!(reset_within(&mut open[0], Duration::from_millis(300)).await?.is_none(), "it ended before");
        d.delete("/v1/sessions/current").bearer(&ends.access).send()?.expect(204)?;
        let reason = reset_within(&mut open[0], BOUND).await?;
        ensure!(reason == Some(Reason::CANCEL), "it goes on, or ended by {reason:?}");
        ensure!(reset_within(&mut open[1], Duration::from_secs(1)).await?.is_none(), "another user's ended too");
        let answer = http2.get("/echo/x", &[("authorization", &bearer(&stays.access))]).await?;
        ensure!(answer.status == 200, "{}", answer.text());
        Ok(())
    })
}

fn a_stream_that_nobody_reads_and_an_upload_end_with_their_session(d: &Deployment) -> Result<()> {
    let session = d.login(PINNED_WITH_STREAMS)?;
    let token = bearer(&session.access);
    run(async {
        let http2 = Http2::connect(d.entry()).await?;
        let request = http2.request("GET", "/stream/2000000000?framing=chunked", &[("authorization", &token)])?;
        let mut unread = http2.begin(request, false).await?.0.await?.into_body();
        let request = http2.request("POST", "/stream/0", &[("authorization", &token)])?;
        let (_answer, mut upload) = http2.begin(request, true).await?;
        for _ in 0..15 {
            upload.send_data(Bytes::from_static(b"ten bytes."), false)?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        d.delete("/v1/sessions/current").bearer(&session.access).send()?.expect(204)?;
        let revoked = Instant::now();
        let reason = tokio::time::timeout(BOUND, upload_reset(&mut upload)).await.context("the upload goes on")??;
        ensure!(reason == Reason::CANCEL, "the upload ended by {reason:?}");
        tokio::time::sleep(BOUND.saturating_sub(revoked.elapsed())).await;
        // What had come until then, and no more.
        ensure!(reset_within(&mut unread, Duration::from_secs(2)).await?.is_some(), "what nobody reads goes on");
        Ok(())
    })
}

fn a_request_is_to_its_origin_what_it_would_have_been_in_http1(d: &Deployment) -> Result<()> {
    run(async {
        let http2 = Http2::connect(d.entry()).await?;
        let headers = [("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers"), ("x-of-client", "1")];
        let answer = http2.get("/echo/open/x?y=z", &headers).await?;
        ensure!(answer.status == 200, "{}", answer.text());
        let echo: Value = serde_json::from_slice(&answer.body)?;
        let host = d.entry().address.to_string();
        ensure!(echo["headers"]["host"] == serde_json::json!([host]), "{echo}");
        ensure!(echo["headers"]["cookie"] == serde_json::json!(["a=1; b=2"]), "{echo}");
        ensure!(echo["headers"]["x-of-client"] == serde_json::json!(["1"]), "{echo}");
        ensure!(echo["headers"]["x-forwarded-proto"] == serde_json::json!(["http"]), "{echo}");
        ensure!(echo["query"] == "y=z" && echo["method"] == "GET", "{echo}");
        for name in ["connection", "transfer-encoding", "keep-alive", "upgrade"] {
            ensure!(!answer.headers.contains_key(name), "{name} in HTTP/2: {:?}", answer.headers);
        }
        let head = http2.ask(http2.request("HEAD", "/echo/open/x", &[])?).await?;
        ensure!(head.status == 200 && head.body.is_empty() && head.headers.contains_key("content-length"));
        Ok(())
    })
}

fn two_different_hosts_are_refused(d: &Deployment) -> Result<()> {
    run(async {
        let http2 = Http2::connect(d.entry()).await?;
        let refused = http2.get("/echo/open/x", &[("host", "other.example")]).await?;
        ensure!(refused.status == 400 && refused.text().contains("bad_request"), "{}", refused.text());
        let same = http2.get("/echo/open/x", &[("host", &d.entry().address.to_string())]).await?;
        ensure!(same.status == 200, "{}", same.text());
        Ok(())
    })
}

fn bodies_pass_both_ways(d: &Deployment) -> Result<()> {
    const LENGTH: usize = 3_000_000;
    let token = bearer(&d.login(PINNED_WITH_STREAMS)?.access);
    run(async {
        let http2 = Http2::connect(d.entry()).await?;
        for framing in ["length", "chunked"] {
            let target = format!("/stream/{LENGTH}?framing={framing}");
            let request = http2.request("POST", &target, &[("authorization", &token)])?;
            let (answer, mut upload) = http2.begin(request, true).await?;
            let sending = async {
                let mut left = LENGTH;
                while left > 0 {
                    upload.reserve_capacity(left.min(16_384));
                    let room = std::future::poll_fn(|cx| upload.poll_capacity(cx)).await.context("closed")??;
                    let now = room.min(left);
                    left -= now;
                    upload.send_data(Bytes::from(vec![7; now]), left == 0)?;
                }
                anyhow::Ok(())
            };
            let (sent, answer) = tokio::join!(sending, whole(answer));
            let answer = answer?;
            sent?;
            ensure!(answer.status == 200 && answer.body.len() == LENGTH, "{} bytes", answer.body.len());
            let received = answer.headers.get("x-demo-received").context("not counted")?.to_str()?;
            ensure!(received == LENGTH.to_string(), "{received} bytes arrived");
        }
        Ok(())
    })
}

fn a_head_beyond_the_limit_is_refused_and_the_connection_goes_on(d: &Deployment) -> Result<()> {
    run(async {
        let http2 = Http2::connect(d.entry()).await?;
        // Known to this client only after the first answer.
        http2.get("/echo/open/x", &[]).await?;
        let answer = http2.get("/echo/open/x", &[("x-long", &"x".repeat(60_000))]).await?;
        ensure!(answer.status == 200, "{}", answer.text());
        let refused = http2.get("/echo/open/x", &[("x-long", &"x".repeat(66_000))]).await?;
        ensure!(refused.status == 431, "{}", refused.status);
        ensure!(http2.get("/echo/open/x", &[]).await?.status == 200);
        Ok(())
    })
}

/// What the gateway answers to these bytes until one of these kinds comes, it closes the connection, or nothing comes for
/// a second.
fn answers_to(entry: Entry, bytes: &[u8], until: &[u8]) -> Result<Vec<(u8, Vec<u8>)>> {
    let mut socket = TcpStream::connect(entry.address)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.set_write_timeout(Some(Duration::from_secs(10)))?;
    // It may close while it is still written to.
    let _ = socket.write_all(bytes);
    let (mut read, mut some) = (Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = socket.read(&mut some) {
        read.extend_from_slice(&some[..length]);
        if raw::frames(&read).iter().any(|(kind, _)| until.contains(kind)) {
            break;
        }
    }
    Ok(raw::frames(&read))
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn request_head(path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [(":method", "GET"), (":scheme", "http"), (":authority", "h.example"), (":path", path)];
    pseudo.iter().chain(fields).flat_map(|(name, value)| raw::field(name, value)).collect()
}

fn what_is_not_allowed_in_a_head_resets_its_stream(d: &Deployment) -> Result<()> {
    let forbidden: [(&str, &str); 9] = [
        ("connection", "x-of-client"),
        ("transfer-encoding", "chunked"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("X-Upper", "1"),
        (":path", "/echo/open/again"),
        (":unknown", "1"),
    ];
    for field in forbidden {
        let mut bytes = raw::beginning();
        bytes.extend(raw::frame(HEADERS, END_STREAM | END_HEADERS, 1, &request_head("/echo/open/x", &[field])));
        let frames = answers_to(d.entry(), &bytes, &[HEADERS, RST_STREAM, GOAWAY])?;
        let is_refused = |(kind, payload): &(u8, Vec<u8>)| match *kind {
            RST_STREAM => true,
            GOAWAY => !payload.ends_with(&[0; 4]),
            _ => false,
        };
        ensure!(frames.iter().any(is_refused), "{field:?} passed: {frames:?}");
        ensure!(frames.iter().all(|(kind, _)| *kind != HEADERS), "{field:?} was answered: {frames:?}");
    }
    Ok(())
}

/// CVE-2023-44487.
fn a_client_that_resets_all_it_begins_is_sent_away(d: &Deployment) -> Result<()> {
    let mut bytes = raw::beginning();
    for at in 0..4000_u32 {
        let stream = 2 * at + 1;
        bytes.extend(raw::frame(HEADERS, END_STREAM | END_HEADERS, stream, &request_head("/echo/open/x", &[])));
        bytes.extend(raw::frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    }
    let frames = answers_to(d.entry(), &bytes, &[GOAWAY])?;
    let (_, payload) = frames.iter().find(|(kind, _)| *kind == GOAWAY).context("it may go on")?;
    // ENHANCE_YOUR_CALM.
    ensure!(payload.get(4..8) == Some(&11_u32.to_be_bytes()), "{payload:?}");
    d.get("/echo/open/x").send()?.expect(200)?;
    Ok(())
}

/// CVE-2024-27316.
fn a_head_without_an_end_is_not_read_for_ever(d: &Deployment) -> Result<()> {
    let mut bytes = raw::beginning();
    bytes.extend(raw::frame(HEADERS, END_STREAM, 1, &request_head("/echo/open/x", &[])));
    let piece: Vec<u8> = (0..100).flat_map(|_| raw::field("x-more", &"x".repeat(100))).collect();
    for _ in 0..1000 {
        bytes.extend(raw::frame(CONTINUATION, 0, 1, &piece));
    }
    let frames = answers_to(d.entry(), &bytes, &[GOAWAY])?;
    ensure!(frames.iter().any(|(kind, _)| *kind == GOAWAY), "it is still read: {frames:?}");
    d.get("/echo/open/x").send()?.expect(200)?;
    Ok(())
}

fn an_upload_that_is_reset_without_an_error_is_not_whole(_: &Deployment) -> Result<()> {
    let came = Arc::new(Mutex::new(Vec::new()));
    let of_origin = came.clone();
    let origin = Origin::start(move |mut connection| {
        let mut bytes = Vec::new();
        let _ = connection.read_to_end(&mut bytes);
        of_origin.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
        Ok(())
    })?;
    let gateway = before(&origin, "")?;
    for (path, fields) in [("/reset/chunks", &[][..]), ("/reset/length", &[("content-length", "10")])] {
        let mut socket = TcpStream::connect(gateway.entry.address)?;
        let mut bytes = raw::beginning();
        bytes.extend(raw::frame(HEADERS, END_HEADERS, 1, &request_head(path, fields)));
        bytes.extend(raw::frame(DATA, 0, 1, b"half"));
        socket.write_all(&bytes)?;
        std::thread::sleep(Duration::from_millis(200));
        socket.write_all(&raw::frame(RST_STREAM, 0, 1, &[0; 4]))?;
        let mut sent = String::new();
        eventually("the origin's connection ends", BOUND, || {
            let came = came.lock().unwrap_or_else(PoisonError::into_inner);
            let its = came.iter().map(|bytes| String::from_utf8_lossy(bytes)).find(|text| text.contains(path));
            sent = its.unwrap_or_default().into_owned();
            Ok(!sent.is_empty())
        })?;
        ensure!(sent.contains("half"), "nothing of it was sent: {sent}");
        ensure!(!sent.ends_with("0\r\n\r\n"), "half an upload was ended as if it were whole: {sent}");
    }
    Ok(())
}

fn curl_gets_an_answer(d: &Deployment) -> Result<()> {
    let url = format!("http://{}/echo/open/x", d.entry().address);
    let written = Command::new("curl")
        .args(["--silent", "--http2-prior-knowledge", "--write-out", "%{http_version} %{http_code}", "--output"])
        .args(["/dev/null", &url])
        .output()?;
    let said = String::from_utf8_lossy(&written.stdout).into_owned();
    ensure!(said == "2 200", "{said} {}", String::from_utf8_lossy(&written.stderr));
    Ok(())
}

/// In HTTP/1.1 an answer has trailers only for whom says that it takes them.
fn trailers_pass_both_ways(_: &Deployment) -> Result<()> {
    let origin = Origin::start(|mut connection| {
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\n") || !String::from_utf8_lossy(&read).contains("\r\n0\r\n") {
            let mut some = [0; 4096];
            let length = connection.read(&mut some)?;
            ensure!(length > 0, "the request ended early");
            read.extend_from_slice(&some[..length]);
        }
        let text = String::from_utf8_lossy(&read).to_ascii_lowercase();
        let (_, sent) = text.split_once("\r\n0\r\n").context("no last chunk")?;
        let sent = sent.trim().replace("\r\n", ",");
        let asks = text.contains("\r\nte: trailers\r\n");
        write!(
            connection,
            "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\ntrailer: x-after\r\nx-got: {sent}\r\n\
             x-asks: {asks}\r\n\r\n\
             2\r\nhi\r\n0\r\nx-after: 42\r\n\r\n"
        )?;
        Ok(())
    })?;
    let gateway = before(&origin, "")?;
    run(async {
        let http2 = Http2::connect(gateway.entry).await?;
        let request = http2.request("POST", "/x", &[("trailer", "x-before"), ("te", "trailers")])?;
        let (answer, mut upload) = http2.begin(request, true).await?;
        upload.send_data(Bytes::from_static(b"body"), false)?;
        upload.send_trailers([("x-before".parse()?, "41".parse()?)].into_iter().collect())?;
        let answer = whole(answer).await?;
        ensure!(answer.status == 200 && answer.body == b"hi", "{}", answer.text());
        ensure!(answer.headers.get("x-got").is_some_and(|got| got == "x-before: 41"), "{:?}", answer.headers);
        ensure!(answer.headers.get("x-asks").is_some_and(|asks| asks == "true"), "{:?}", answer.headers);
        let trailers = answer.trailers.context("no trailers")?;
        ensure!(trailers.get("x-after").is_some_and(|after| after == "42"), "{trailers:?}");
        Ok(())
    })?;
    for (headers, comes) in [("te: trailers\r\nconnection: te, close\r\n", true), ("connection: close\r\n", false)] {
        let mut socket = TcpStream::connect(gateway.entry.address)?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(
            socket,
            "POST /x HTTP/1.1\r\nhost: h\r\n{headers}trailer: x-before\r\ntransfer-encoding: chunked\r\n\r\n\
             4\r\nbody\r\n0\r\nx-before: 41\r\n\r\n"
        )?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        ensure!(answer.contains("x-got: x-before: 41\r\n"), "{answer}");
        ensure!(answer.ends_with("0\r\nx-after: 42\r\n\r\n") == comes, "{answer}");
    }
    Ok(())
}

fn an_idle_connection_is_told_that_it_ends(_: &Deployment) -> Result<()> {
    let gateway = before(&Origin::named("a")?, "idle_timeout = \"1s\"\nheader_timeout = \"500ms\"")?;
    let mut socket = TcpStream::connect(gateway.entry.address)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut bytes = raw::beginning();
    bytes.extend(raw::frame(HEADERS, END_STREAM | END_HEADERS, 1, &request_head("/x", &[])));
    socket.write_all(&bytes)?;
    let begun = Instant::now();
    let (mut read, mut some) = (Vec::new(), [0; 4096]);
    while raw::frames(&read).iter().all(|(kind, _)| *kind != GOAWAY) {
        // A byte that comes while nothing is asked, such as an answer to a ping, begins no head.
        if begun.elapsed() < Duration::from_millis(500) {
            socket.write_all(&raw::frame(6, 1, 0, &[0; 8]))?;
        }
        let length = socket.read(&mut some)?;
        ensure!(length > 0, "it closed without a word after {:?}", begun.elapsed());
        read.extend_from_slice(&some[..length]);
    }
    ensure!(begun.elapsed() >= Duration::from_millis(900), "idle after {:?}", begun.elapsed());
    // Whoever says nothing at all is not waited for longer than for a head.
    let mut silent = TcpStream::connect(gateway.entry.address)?;
    silent.write_all(b"PRI * HT")?;
    silent.set_read_timeout(Some(Duration::from_secs(5)))?;
    let ended = silent.read(&mut some);
    ensure!(matches!(ended, Ok(0)) || ended.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
    Ok(())
}

fn a_gateway_that_ends_finishes_what_was_begun(_: &Deployment) -> Result<()> {
    let origin = Origin::start(|connection| {
        std::thread::sleep(Duration::from_secs(1));
        answer_heads(connection, "slow")
    })?;
    let gateway = before(&origin, "")?;
    run(async {
        let (http2, idle) = (Http2::connect(gateway.entry).await?, Http2::connect(gateway.entry).await?);
        let request = http2.request("GET", "/x", &[])?;
        let (begun, _) = http2.begin(request, false).await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        gateway.terminate();
        let answer = whole(begun).await?;
        ensure!(answer.status == 200 && answer.text().starts_with("slow"), "{}", answer.text());
        ensure!(!answer.headers.contains_key("connection"), "{:?}", answer.headers);
        ensure!(idle.get("/x", &[]).await.is_err(), "a request was taken after the end");
        Ok(())
    })?;
    eventually("it ends", Duration::from_secs(10), || Ok(TcpStream::connect(gateway.entry.address).is_err()))
}

fn every_stream_has_one_line_also_when_it_is_cut(_: &Deployment) -> Result<()> {
    // Says its head at once, and the rest never.
    let origin = Origin::start(|mut connection| {
        let mut read = vec![0; 4096];
        let length = connection.read(&mut read)?;
        if read[..length].starts_with(b"GET /whole ") {
            write!(connection, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")?;
            return Ok(());
        }
        write!(connection, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")?;
        connection.read_exact(&mut [0])?;
        Ok(())
    })?;
    let gateway = before(&origin, "drain_timeout = \"1s\"")?;
    run(async {
        let http2 = Http2::connect(gateway.entry).await?;
        for _ in 0..3 {
            ensure!(http2.get("/whole", &[]).await?.body == b"ok");
        }
        let leaves = http2.begin(http2.request("GET", "/left", &[])?, false).await?.0.await?;
        drop(leaves);
        let mut cut = http2.begin(http2.request("GET", "/cut", &[])?, false).await?.0.await?.into_body();
        gateway.terminate();
        let ended = tokio::time::timeout(Duration::from_secs(5), cut.data()).await.context("it goes on")?;
        ensure!(ended.is_none_or(|data| data.is_err()), "an answer that was cut is whole");
        Ok(())
    })?;
    eventually("all lines", Duration::from_secs(5), || Ok(gateway.log()?.contains(" drained")))?;
    let log = gateway.log()?;
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(" access: ")).collect();
    let aborted = lines.iter().filter(|line| line.contains("aborted=true")).count();
    ensure!(lines.len() == 5 && aborted == 2, "{lines:#?}");
    ensure!(lines.iter().all(|line| line.contains("method=GET") && line.contains("status=200")), "{lines:#?}");
    Ok(())
}
