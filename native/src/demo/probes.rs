//! Paths that show or provoke something: what reached the origin (`/echo`), long bodies (`/stream`), statuses
//! (`/status`), waiting (`/slow`), an upgraded connection (`/ws`) and an answer without an end (`/events`).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Either};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, UPGRADE};
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

use super::answer::{Answer, Refusal, empty, json, problem};

/// How many bytes of the request's body arrived, on every answer of `/stream`.
const RECEIVED: HeaderName = HeaderName::from_static("x-demo-received");

/// The longest wait of `/slow` in milliseconds.
const MAX_WAIT: u64 = 600_000;

/// Bytes 0, 1, … 250, 0, 1, …: the period is prime, so lost, repeated or swapped blocks of any usual size show.
const PERIOD: usize = 251;
static CHUNK: LazyLock<Bytes> = LazyLock::new(|| (0..PERIOD * 256).map(|at| (at % PERIOD) as u8).collect());

/// What arrived, as JSON.
pub async fn echo(origin: &str, request: &mut Request<Incoming>) -> Result<Answer, Refusal> {
    let body = tally(request.body_mut()).await?;
    let mut answer = json(
        StatusCode::OK,
        &json!({
            "origin": origin,
            "method": request.method().as_str(),
            "path": request.uri().path(),
            "query": request.uri().query(),
            "headers": header_lists(request.headers()),
            "body": { "length": body.length, "fnv1a": body.checksum() },
        }),
    );
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(answer)
}

/// Every header by its lower-case name, with its values in order. A byte is one character (ISO 8859-1), so none is
/// lost or replaced.
fn header_lists(headers: &HeaderMap) -> BTreeMap<&str, Vec<String>> {
    let mut lists: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        let text = value.as_bytes().iter().copied().map(char::from).collect();
        lists.entry(name.as_str()).or_default().push(text);
    }
    lists
}

/// Reads the request's body to its end, then answers `bytes` bytes. With `?framing=chunked` the length is not told.
/// An upload to `/stream/0` is answered with its length and checksum as JSON.
pub async fn stream(bytes: &str, request: &mut Request<Incoming>) -> Result<Answer, Refusal> {
    let received = tally(request.body_mut()).await?;
    let bytes: u64 = bytes.parse().map_err(|_| Refusal::Number("a number of bytes"))?;
    let mut answer = if bytes == 0 && !matches!(*request.method(), Method::GET | Method::HEAD) {
        json(StatusCode::OK, &json!({ "received": received.length, "fnv1a": received.checksum() }))
    } else {
        let mut answer = empty(StatusCode::OK);
        let length_known = request.uri().query() != Some("framing=chunked");
        *answer.body_mut() = Either::Right(Either::Left(Pattern { left: bytes, length_known }));
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        answer
    };
    answer.headers_mut().insert(RECEIVED, HeaderValue::from(received.length));
    Ok(answer)
}

/// The status asked for, 200 to 599, after the request's body was read.
pub async fn status(origin: &str, code: &str, request: &mut Request<Incoming>) -> Result<Answer, Refusal> {
    tally(request.body_mut()).await?;
    let code = code.parse().ok().filter(|code| (200..=599).contains(code));
    let status =
        code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Refusal::Number("a status, 200 to 599"))?;
    Ok(match status.as_u16() {
        // These have no content (RFC 9110 §15).
        204 | 205 | 304 => empty(status),
        400.. => problem(status, None),
        code => json(status, &json!({ "status": code, "origin": origin })),
    })
}

/// 200 after so many milliseconds.
pub async fn slow(origin: &str, millis: &str, request: &mut Request<Incoming>) -> Result<Answer, Refusal> {
    tally(request.body_mut()).await?;
    let millis = millis.parse().ok().filter(|millis| *millis <= MAX_WAIT);
    let millis = millis.ok_or(Refusal::Number("milliseconds, 0 to 600000"))?;
    tokio::time::sleep(Duration::from_millis(millis)).await;
    Ok(json(StatusCode::OK, &json!({ "waited_ms": millis, "origin": origin })))
}

/// Switches to a protocol that sends every byte back, until either side or the origin ends.
pub fn upgrade(request: &mut Request<Incoming>, mut ended: watch::Receiver<()>) -> Result<Answer, Refusal> {
    let wanted = request.headers().get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"echo"));
    if !wanted || request.method() != Method::GET {
        return Err(Refusal::NoUpgrade);
    }
    let upgrading = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrading.await else { return };
        let (mut reading, mut writing) = tokio::io::split(TokioIo::new(upgraded));
        tokio::select! {
            _ = tokio::io::copy(&mut reading, &mut writing) => {}
            _ = ended.changed() => {}
        }
        // The other side may be gone, which is an end as well.
        let _ = writing.shutdown().await;
    });
    let mut answer = empty(StatusCode::SWITCHING_PROTOCOLS);
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    answer.headers_mut().insert(UPGRADE, HeaderValue::from_static("echo"));
    Ok(answer)
}

/// A body of `left` more bytes of the pattern, made as it is sent.
pub struct Pattern {
    left: u64,
    length_known: bool,
}

impl Body for Pattern {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let length = usize::try_from(self.left).map_or(CHUNK.len(), |left| left.min(CHUNK.len()));
        self.left -= length as u64;
        Poll::Ready(Some(Ok(Frame::data(CHUNK.slice(..length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        if self.length_known { SizeHint::with_exact(self.left) } else { SizeHint::default() }
    }
}

/// Server-sent events, one in so many milliseconds, until the client leaves.
pub fn events(millis: &str) -> Result<Answer, Refusal> {
    let millis = millis.parse().ok().filter(|millis| (1..=MAX_WAIT).contains(millis));
    let millis = millis.ok_or(Refusal::Number("milliseconds, 1 to 600000"))?;
    let mut answer = empty(StatusCode::OK);
    let ticks = tokio::time::interval(Duration::from_millis(millis));
    *answer.body_mut() = Either::Right(Either::Right(Events { ticks, sent: 0 }));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(answer)
}

/// A body of numbered events, the first at once.
pub struct Events {
    ticks: tokio::time::Interval,
    sent: u64,
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.ticks.poll_tick(cx).map(|_| {
            self.sent += 1;
            Some(Ok(Frame::data(Bytes::from(format!("data: {}\n\n", self.sent)))))
        })
    }
}

/// Length and checksum of a body that was read but not kept.
pub struct Tally {
    pub length: u64,
    fnv1a: u64,
}

impl Tally {
    pub fn new() -> Tally {
        // FNV-1a's offset basis for 64 bits.
        Tally { length: 0, fnv1a: 0xcbf2_9ce4_8422_2325 }
    }

    pub fn add(&mut self, data: &[u8]) {
        self.length += data.len() as u64;
        for byte in data {
            self.fnv1a = (self.fnv1a ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// FNV-1a over all bytes, 64 bits as 16 hex digits.
    pub fn checksum(&self) -> String {
        format!("{:016x}", self.fnv1a)
    }
}

/// Reads what is left of a body.
pub async fn tally(body: &mut Incoming) -> Result<Tally, Refusal> {
    let mut tally = Tally::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(Refusal::Body)?.into_data() {
            tally.add(&data);
        }
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_published_fnv_1a_however_the_bytes_are_cut() {
        // Vectors of the FNV reference code.
        for (text, sum) in [("", "cbf29ce484222325"), ("a", "af63dc4c8601ec8c"), ("foobar", "85944171f73967e8")] {
            let mut tally = Tally::new();
            text.as_bytes().chunks(2).for_each(|part| tally.add(part));
            assert_eq!((tally.length, tally.checksum().as_str()), (text.len() as u64, sum));
        }
    }
}
