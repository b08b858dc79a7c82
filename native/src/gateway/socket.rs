//! A thin reader around a client's socket that tells idle time (no byte of a next head) from header time (a head begun),
//! which hyper's one timer cannot.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// What the connection is doing, shared with the service, which knows when a request begins and ends. Atomic only because
/// hyper's upgrades ask for `Send`; both sides live on one core.
#[derive(Clone)]
pub struct Activity {
    since: Instant,
    /// Milliseconds since `since`, shifted left by two, and what has been done from then on.
    word: Arc<AtomicU64>,
}

enum Doing {
    /// Waiting for the first byte of a head.
    Idle(Instant),
    /// A head has begun.
    Head(Instant),
    /// A request is being answered: its own timers count.
    Request,
    /// Its answer may not go on: nothing passes any more.
    Cut,
}

const IDLE: u64 = 0;
const HEAD: u64 = 1;
const REQUEST: u64 = 2;
const CUT: u64 = 3;

impl Activity {
    fn new() -> Activity {
        Activity { since: Instant::now(), word: Arc::new(AtomicU64::new(IDLE)) }
    }

    pub fn request_began(&self) {
        self.word.store(REQUEST, Ordering::Relaxed);
    }

    pub fn request_ended(&self) {
        self.note(IDLE);
    }

    /// The connection fails at its next turn. Whoever moves it has to be woken.
    pub fn cut(&self) {
        self.word.store(CUT, Ordering::Relaxed);
    }

    pub fn is_cut(&self) -> bool {
        self.word.load(Ordering::Relaxed) & 3 == CUT
    }

    /// No byte of a next head for so long.
    pub fn is_idle_for(&self, span: Duration) -> bool {
        matches!(self.doing(), Doing::Idle(since) if since.elapsed() >= span)
    }

    fn note(&self, kind: u64) {
        let millis = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX >> 2);
        self.word.store(millis << 2 | kind, Ordering::Relaxed);
    }

    fn doing(&self) -> Doing {
        let word = self.word.load(Ordering::Relaxed);
        let since = self.since + Duration::from_millis(word >> 2);
        match word & 3 {
            IDLE => Doing::Idle(since),
            HEAD => Doing::Head(since),
            REQUEST => Doing::Request,
            _ => Doing::Cut,
        }
    }
}

pub struct Socket {
    stream: TokioIo<TcpStream>,
    activity: Activity,
    header_timeout: Duration,
    idle_timeout: Duration,
    /// Armed lazily: a deadline that moved on is noticed when it fires.
    timer: Pin<Box<Sleep>>,
}

impl Socket {
    pub fn new(stream: TcpStream, header_timeout: Duration, idle_timeout: Duration) -> (Socket, Activity) {
        let activity = Activity::new();
        let timer = Box::pin(tokio::time::sleep(header_timeout.min(idle_timeout)));
        let stream = TokioIo::new(stream);
        (Socket { stream, activity: activity.clone(), header_timeout, idle_timeout, timer }, activity)
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

impl Read for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<std::io::Result<()>> {
        self.go_on()?;
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

impl Write for Socket {
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
