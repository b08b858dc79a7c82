//! What a connection to an origin is made of.

use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client::TlsStream;

use crate::gateway::batch::Batched;
use crate::gateway::patience::Patience;

pub enum Stream {
    Plain(Patience<Batched>),
    Encrypted(Box<TlsStream<Patience<Batched>>>),
}

impl Stream {
    /// Bytes that have left so far, encrypted ones where they are.
    pub fn sent(&self) -> u64 {
        match self {
            Stream::Plain(stream) => stream.get_ref().sent(),
            Stream::Encrypted(stream) => stream.get_ref().0.get_ref().sent(),
        }
    }

    /// How long the origin may take nothing of what it is sent.
    pub fn set_patience(&mut self, time: Duration) {
        match self {
            Stream::Plain(stream) => stream.set_time(time),
            Stream::Encrypted(stream) => stream.get_mut().0.set_time(time),
        }
    }
}

impl Drop for Stream {
    /// To TLS an end that was not said is one that somebody between may have made (RFC 8446 §6.1).
    fn drop(&mut self) {
        if let Stream::Encrypted(stream) = self {
            // What does not leave at once is not waited for.
            let _ = Pin::new(stream).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
    }
}

/// The same call on whichever it is.
macro_rules! either {
    ($stream:expr, $call:ident($($argument:expr),*)) => {
        match $stream.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).$call($($argument),*),
            Stream::Encrypted(stream) => Pin::new(stream).$call($($argument),*),
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        either!(self, poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        either!(self, poll_write(cx, buf))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<Result<usize>> {
        either!(self, poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Encrypted(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        either!(self, poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        either!(self, poll_shutdown(cx))
    }
}
