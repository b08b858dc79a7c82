//! A thin reader around a client's socket that tells idle time (no byte of a next head) from header time (a head begun),
//! which hyper's one timer cannot, and that looks at a connection's first bytes to see which HTTP it speaks.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};

use super::batch::FarEnd;

/// What a client begins HTTP/2 with (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Most first heads come whole in one read of this size.
const FIRST_READ: usize = 4096;

/// What a connection is doing, or one stream of HTTP/2, shared with the service, which knows when a request begins and
/// ends. Atomic only because hyper's upgrades ask for `Send`; both sides live on one core.
#[derive(Clone)]
pub struct Activity {
    since: Instant,
    state: Arc<State>,
    /// Of a stream: its connection's.
    connection: Option<Arc<State>>,
}

struct State {
    /// Milliseconds since `since`, at least one, shifted left by two, and what has been done from then on.
    word: AtomicU64,
    /// How many streams are open.
    streams: AtomicU64,
    /// Of a connection whose client may leave unnoticed: HTTP/1 is not read while a request is answered.
    client: OnceLock<FarEnd>,
}

enum Doing {
    /// Waiting for the first byte of a head.
    Idle(Instant),
    /// A head has begun.
    Head(Instant),
    /// A request is being answered: its own timers count. A time beside it: since when a stream's client takes nothing.
    Request,
    /// Its answer may not go on: nothing passes any more.
    Cut,
}

const IDLE: u64 = 0;
const HEAD: u64 = 1;
const REQUEST: u64 = 2;
const CUT: u64 = 3;

impl State {
    fn idle() -> Arc<State> {
        Arc::new(State { word: AtomicU64::new(IDLE), streams: AtomicU64::new(0), client: OnceLock::new() })
    }

    fn note(&self, since: Instant, kind: u64) {
        let millis = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX >> 2).max(1);
        self.word.store(millis << 2 | kind, Ordering::Relaxed);
    }
}

impl Activity {
    fn new() -> Activity {
        Activity { since: Instant::now(), state: State::idle(), connection: None }
    }

    /// Of a new stream of this connection.
    pub fn stream(&self) -> Activity {
        Activity { since: self.since, state: State::idle(), connection: Some(self.state.clone()) }
    }

    pub fn request_began(&self) {
        self.state.word.store(REQUEST, Ordering::Relaxed);
        if let Some(connection) = &self.connection {
            connection.streams.fetch_add(1, Ordering::Relaxed);
            connection.word.store(REQUEST, Ordering::Relaxed);
        }
    }

    pub fn request_ended(&self) {
        // What is cut stays so: nothing more passes, whoever ended the request.
        if !self.is_cut() {
            self.note(IDLE);
        }
        if let Some(connection) = &self.connection
            && connection.streams.fetch_sub(1, Ordering::Relaxed) == 1
        {
            connection.note(self.since, IDLE);
        }
    }

    /// The connection, or the stream, fails at its next turn. Whoever moves it has to be woken.
    pub fn cut(&self) {
        self.state.word.store(CUT, Ordering::Relaxed);
    }

    pub fn is_cut(&self) -> bool {
        self.state.word.load(Ordering::Relaxed) & 3 == CUT
    }

    /// Whether the client has left, or says nothing more, while nobody reads what it sent before.
    pub fn has_client_left(&self) -> bool {
        self.state.client.get().is_some_and(FarEnd::has_ended)
    }

    /// Resolves when no stream has been open for so long.
    pub async fn idle_for(&self, time: Duration) {
        loop {
            let now = Instant::now();
            match self.doing() {
                Doing::Idle(since) if since + time <= now => return,
                Doing::Idle(since) => tokio::time::sleep_until(since + time).await,
                _ => tokio::time::sleep(time).await,
            }
        }
    }

    /// Of a stream: a piece of its answer was handed on, and nobody asks for the next one before that has left; or its
    /// origin has none yet.
    pub fn handed(&self, is_handed: bool) {
        if self.connection.is_none() || self.is_cut() {
            return;
        }
        match is_handed {
            true => self.note(REQUEST),
            false => self.state.word.store(REQUEST, Ordering::Relaxed),
        }
    }

    /// Of a stream: since when its client has not taken what was handed on, the last piece of an answer included.
    pub fn untaken_since(&self) -> Option<Instant> {
        let word = self.state.word.load(Ordering::Relaxed);
        let since = || self.since + Duration::from_millis(word >> 2);
        (word & 3 == IDLE || (word & 3 == REQUEST && word != REQUEST)).then(since)
    }

    fn note(&self, kind: u64) {
        self.state.note(self.since, kind);
    }

    fn doing(&self) -> Doing {
        let word = self.state.word.load(Ordering::Relaxed);
        let since = self.since + Duration::from_millis(word >> 2);
        match word & 3 {
            IDLE => Doing::Idle(since),
            HEAD => Doing::Head(since),
            REQUEST => Doing::Request,
            _ => Doing::Cut,
        }
    }
}

pub struct Socket<S> {
    stream: TokioIo<S>,
    /// What was read to see which HTTP it is, and is still to be read by whom that is for.
    first: Bytes,
    activity: Activity,
    header_timeout: Duration,
    idle_timeout: Duration,
    /// Armed lazily: a deadline that moved on is noticed when it fires.
    timer: Pin<Box<Sleep>>,
    /// Its place among the clients that may be connected, also behind an upgrade.
    _place: Option<OwnedSemaphorePermit>,
}

impl<S: AsyncRead + Unpin> Socket<S> {
    pub fn new(
        stream: S,
        client: FarEnd,
        header_timeout: Duration,
        idle_timeout: Duration,
        place: Option<OwnedSemaphorePermit>,
    ) -> (Socket<S>, Activity) {
        let activity = Activity::new();
        let _ = activity.state.client.set(client);
        let timer = Box::pin(tokio::time::sleep(header_timeout.min(idle_timeout)));
        let (stream, first) = (TokioIo::new(stream), Bytes::new());
        let socket =
            Socket { stream, first, activity: activity.clone(), header_timeout, idle_timeout, timer, _place: place };
        (socket, activity)
    }

    /// Whether the client speaks HTTP/2 without having been asked (RFC 9113 §3.3). Costs HTTP/1 no read of its own: what
    /// was read is what its parser gets first.
    pub async fn begins_http2(&mut self) -> std::io::Result<bool> {
        let mut read = Vec::new();
        loop {
            let more = std::future::poll_fn(|cx| {
                let mut space = [0; FIRST_READ];
                let mut buffer = ReadBuf::new(&mut space);
                ready!(Pin::new(&mut *self).poll_read(cx, buffer.unfilled()))?;
                read.extend_from_slice(buffer.filled());
                Poll::Ready(std::io::Result::Ok(buffer.filled().len()))
            })
            .await?;
            let is_http2 = read.starts_with(PREFACE);
            if is_http2 || more == 0 || !PREFACE.starts_with(&read) {
                self.first = read.into();
                return Ok(is_http2);
            }
        }
    }

    /// From now on somebody else looks at the time: in HTTP/2 a byte that comes need not begin a head, and what is idle
    /// may be told that it ends.
    pub fn without_timers(mut self) -> Socket<S> {
        // Its first bytes looked like a head.
        self.activity.note(IDLE);
        self.activity = Activity::new();
        self.activity.request_began();
        self
    }

    fn deadline(&self) -> Option<Instant> {
        match self.activity.doing() {
            Doing::Idle(since) => Some(since + self.idle_timeout),
            Doing::Head(since) => Some(since + self.header_timeout),
            Doing::Request | Doing::Cut => None,
        }
    }

    fn go_on(&self) -> std::io::Result<()> {
        if self.activity.is_cut() { Err(std::io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }

    /// Whether the time to wait for bytes ran out; otherwise the timer is armed for when it may.
    fn timed_out(&mut self, cx: &mut Context<'_>) -> bool {
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let next = match self.deadline() {
                Some(deadline) if deadline <= now => return true,
                Some(deadline) => deadline,
                None => now + self.header_timeout.min(self.idle_timeout),
            };
            self.timer.as_mut().reset(next);
        }
        // An armed timer may lie beyond a deadline that came nearer: a head that begins late in the idle time.
        if let Some(deadline) = self.deadline()
            && deadline < self.timer.deadline()
        {
            self.timer.as_mut().reset(deadline);
            return self.timer.as_mut().poll(cx).is_ready();
        }
        false
    }
}

impl<S: AsyncRead + Unpin> Read for Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.go_on()?;
        if !self.first.is_empty() {
            let length = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first[..length]);
            self.first.advance(length);
            if self.first.is_empty() {
                self.first = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        match read {
            Poll::Ready(done) => {
                if let Doing::Idle(_) = self.activity.doing() {
                    self.activity.note(HEAD);
                }
                Poll::Ready(done)
            }
            Poll::Pending if self.timed_out(cx) => Poll::Ready(Err(std::io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Write for Socket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        self.go_on()?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.go_on()?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        self.go_on()?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}
