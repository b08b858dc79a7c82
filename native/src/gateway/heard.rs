//! A connection to an origin that knows whether anything came back over it. hyper does not tell an answer that broke off
//! in its head from one that never began, and only what never began may be asked for again.

use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::SendRequest;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::upload::Attempt;

/// Sends requests, one at a time.
pub struct Sender {
    requests: SendRequest<Attempt>,
    heard: Heard,
}

/// Whether a byte came since the last request was sent. Atomic only because hyper's upgrades ask for `Send`.
#[derive(Clone, Default)]
pub struct Heard(Arc<AtomicBool>);

/// The connection itself.
pub struct Listening<S> {
    stream: S,
    heard: Heard,
}

impl Sender {
    pub fn new(requests: SendRequest<Attempt>, heard: Heard) -> Sender {
        Sender { requests, heard }
    }

    pub fn is_ready(&self) -> bool {
        self.requests.is_ready()
    }

    pub fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    pub fn try_send_request(
        &mut self,
        request: Request<Attempt>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Attempt>>>> + use<> {
        self.heard.0.store(false, Ordering::Relaxed);
        self.requests.try_send_request(request)
    }

    /// Something of an answer came.
    pub fn has_heard(&self) -> bool {
        self.heard.0.load(Ordering::Relaxed)
    }
}

impl<S> Listening<S> {
    pub fn new(stream: S) -> (Listening<S>, Heard) {
        let heard = Heard::default();
        (Listening { stream, heard: heard.clone() }, heard)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Listening<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.heard.0.store(true, Ordering::Relaxed);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Listening<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
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
        bufs: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}
