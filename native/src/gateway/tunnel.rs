//! An upgraded connection: bytes both ways until either side or the session ends. When one side has ended, the other may
//! still have something to say, but is not waited for in silence: a client that left looks the same, and its place at the
//! origin would be held for ever.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{ErrorKind, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What both sides have done so far.
#[derive(Default)]
struct Seen {
    /// How often something came.
    moved: Cell<u64>,
    /// One side says nothing more.
    ended: Cell<bool>,
}

struct Side<'s, S> {
    stream: S,
    seen: &'s Seen,
}

impl<S: AsyncRead + Unpin> AsyncRead for Side<'_, S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.seen.moved.set(self.seen.moved.get() + 1);
        } else {
            self.seen.ended.set(true);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Side<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Copies until both sides have ended; an error when one has, and the other says nothing for so long, or when it is cut.
pub async fn tunnel(
    client: impl AsyncRead + AsyncWrite + Unpin,
    origin: impl AsyncRead + AsyncWrite + Unpin,
    silence: Duration,
    is_cut: impl Fn() -> bool,
) -> Result<()> {
    let seen = Seen::default();
    let (mut client, mut origin) = (Side { stream: client, seen: &seen }, Side { stream: origin, seen: &seen });
    let mut waits = None;
    let over = poll_fn(|cx| {
        if is_cut() {
            return Poll::Ready(ErrorKind::ConnectionAborted);
        }
        if !seen.ended.get() {
            return Poll::Pending;
        }
        loop {
            let (since, sleep) = waits.get_or_insert_with(|| (seen.moved.get(), Box::pin(tokio::time::sleep(silence))));
            ready!(sleep.as_mut().poll(cx));
            if *since == seen.moved.get() {
                return Poll::Ready(ErrorKind::TimedOut);
            }
            waits = None;
        }
    });
    tokio::select! {
        // What it sees counts in the same turn.
        biased;
        copied = tokio::io::copy_bidirectional(&mut client, &mut origin) => copied.map(drop),
        // Both sides close, since both are dropped.
        why = over => Err(why.into()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::{Instant, sleep};

    use super::*;

    const SILENCE: Duration = Duration::from_millis(300);

    #[tokio::test]
    async fn a_side_that_is_left_alone_is_waited_for_while_it_speaks() {
        let ((mut client, left), (mut origin, right)) = (duplex(64), duplex(64));
        let began = Instant::now();
        let speaking = async {
            client.shutdown().await.unwrap();
            for _ in 0..5 {
                sleep(SILENCE * 2 / 3).await;
                origin.write_all(b"still here").await.unwrap();
            }
            let mut heard = vec![0; 50];
            client.read_exact(&mut heard).await.unwrap();
        };
        let (ended, ()) = tokio::join!(tunnel(left, right, SILENCE, || false), speaking);
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(began.elapsed() >= SILENCE * 10 / 3, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn two_that_say_nothing_are_let_be_until_both_end_or_the_session_does() {
        let ((client, left), (origin, right)) = (duplex(64), duplex(64));
        let leaving = async {
            sleep(SILENCE * 3).await;
            drop((client, origin));
        };
        let (ended, ()) = tokio::join!(tunnel(left, right, SILENCE, || false), leaving);
        ended.unwrap();
        let ((_client, left), (_origin, right)) = (duplex(64), duplex(64));
        let cut = tunnel(left, right, SILENCE, || true).await.unwrap_err();
        assert_eq!(cut.kind(), ErrorKind::ConnectionAborted);
    }
}
