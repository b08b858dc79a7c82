//! A client's socket whose client takes what it is sent, if slowly. One that takes nothing at all would hold its answer,
//! a place at the origin and a connection there for ever, since its kernel goes on saying that it lives.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
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

    fn bounded(&mut self, cx: &mut Context<'_>, written: Poll<Result<usize>>) -> Poll<Result<usize>> {
        if written.is_ready() {
            self.full = None;
            return written;
        }
        let time = self.time;
        let full = self.full.get_or_insert_with(|| Box::pin(tokio::time::sleep(time)));
        full.as_mut().poll(cx).map(|()| Err(Error::new(ErrorKind::TimedOut, "the client takes nothing")))
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

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::{Instant, sleep};

    use super::*;

    const TIME: Duration = Duration::from_millis(500);

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
