//! A socket whose other end takes what it is sent, if slowly. A client that takes nothing at all would hold its answer, a
//! place at the origin and a connection there for ever, since its kernel goes on saying that it lives; and an origin that
//! takes nothing of an upload that it has answered already, its client.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::time::Sleep;

/// A socket that fails when nothing that was written could leave for so long. Below TLS, which takes bytes in that it
/// cannot send.
pub struct Patience<S> {
    stream: S,
    time: Duration,
    /// While there is no room: made then, since most sockets never see that.
    full: Option<Pin<Box<Sleep>>>,
}

impl<S> Patience<S> {
    pub fn new(stream: S, time: Duration) -> Patience<S> {
        Patience { stream, time, full: None }
    }

    /// From now on. One that runs goes on.
    pub fn set_time(&mut self, time: Duration) {
        self.time = time;
    }

    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    fn bounded<T>(&mut self, cx: &mut Context<'_>, done: Poll<Result<T>>) -> Poll<Result<T>> {
        if done.is_ready() {
            self.full = None;
            return done;
        }
        // What is dropped behind its loop says its farewell (TLS) without a clock, which there is none of any more.
        if Handle::try_current().is_err() {
            return Poll::Pending;
        }
        let time = self.time;
        let full = self.full.get_or_insert_with(|| Box::pin(tokio::time::sleep(time)));
        full.as_mut().poll(cx).map(|()| Err(Error::new(ErrorKind::TimedOut, "the other end takes nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patience<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patience<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.bounded(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.bounded(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // What counts as written may still wait for room (`batch`).
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.bounded(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.bounded(cx, shut)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::{Instant, sleep, timeout};

    use super::*;

    const TIME: Duration = Duration::from_millis(500);

    /// Holds what was written, until it is let go.
    struct Holding(bool);

    impl AsyncWrite for Holding {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
            if self.0 { Poll::Pending } else { Poll::Ready(Ok(())) }
        }

        fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
            self.poll_flush(cx)
        }
    }

    #[tokio::test]
    async fn a_client_that_does_not_take_what_counts_as_written_is_left_too() {
        for shuts_down in [false, true] {
            let mut socket = Patience::new(Holding(true), TIME);
            socket.write_all(b"last").await.unwrap();
            let begun = Instant::now();
            let ending = async { if shuts_down { socket.shutdown().await } else { socket.flush().await } };
            let failed = timeout(TIME * 10, ending).await.expect("it is waited for").unwrap_err();
            assert_eq!(failed.kind(), ErrorKind::TimedOut);
            assert!(begun.elapsed() >= TIME, "{:?}", begun.elapsed());
        }
    }

    #[test]
    fn what_is_dropped_behind_its_runtime_says_farewell_without_a_clock() {
        let mut socket = Patience::new(Holding(true), TIME);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut socket).poll_shutdown(&mut cx).is_pending());
    }

    #[tokio::test]
    async fn a_client_that_took_all_has_its_whole_time_again() {
        let mut socket = Patience::new(Holding(true), TIME);
        assert!(timeout(TIME / 2, socket.flush()).await.is_err());
        socket.stream.0 = false;
        socket.flush().await.unwrap();
        sleep(TIME).await;
        socket.stream.0 = true;
        assert!(timeout(TIME / 2, socket.flush()).await.is_err());
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_left_after_its_time() {
        let (socket, _client) = duplex(16);
        let mut socket = Patience::new(socket, TIME);
        let begun = Instant::now();
        let failed = socket.write_all(&[0; 17]).await.unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::TimedOut);
        assert!(begun.elapsed() >= TIME, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_client_that_takes_a_byte_in_time_is_waited_for() {
        let (socket, mut client) = duplex(16);
        let mut socket = Patience::new(socket, TIME);
        let reading = async {
            for _ in 0..10 {
                sleep(TIME / 10).await;
                client.read_u8().await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(socket.write_all(&[0; 26]), reading);
        written.unwrap();
        assert!(socket.full.is_none());
    }
}
