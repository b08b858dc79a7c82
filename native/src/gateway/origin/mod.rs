//! HTTP/1.1 to an origin, spoken by the task that has the request.
//!
//! hyper's client is a task of its own behind a channel, and takes and gives heads as maps: a third of what a small
//! request costs. Here the head is written from the client's own with core's edits (`request`), the answer is read where
//! it is waited for (`answer`, `framing`), and its body is handed to the client as it comes (`body`). Clients are still
//! hyper's to understand; what comes from an origin is read by `httparse`, as hyper reads it.

mod answer;
mod body;
mod framing;
pub mod pool;
mod request;
mod sending;
mod stream;

use std::cell::RefCell;
use std::io::{Error, ErrorKind, Result};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use edgekeep_core::exchange::FailedStage;
use http::StatusCode;
use http_body::Frame;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::task::coop::unconstrained;

pub use answer::{AnswerHead, Asked};
pub use body::AnswerBody;
pub use request::RequestLines;

use super::upload::Attempt;
use framing::{Framing, Next};
use sending::{SendError, Sending};
use stream::Stream;

/// Heads of answers usually fit, and small bodies with them.
const FIRST_READ: usize = 8 * 1024;
/// A body that fills what is read of it at once is read in larger pieces, up to this size.
const LARGEST_READ: usize = 128 * 1024;

/// A connection, held by whoever has a request on it, and by what goes on sending that request's body after its answer
/// has begun.
pub type Held = Rc<RefCell<Connection>>;

/// One connection, one request at a time.
pub struct Connection {
    stream: Stream,
    /// What came, and was not looked at yet.
    read: BytesMut,
    /// How far it was looked through for the end of a head.
    looked: usize,
    next_read: usize,
    sending: Sending,
    /// What had left before this request, in bytes.
    sent_before: u64,
    /// Something of an answer to the request came.
    heard: bool,
    /// How the rest of the answer's body comes.
    framing: Framing,
    /// Its next request may follow.
    persists: bool,
    /// The request's body broke off while the origin was answering.
    broken: bool,
    /// Who waits for the answer's body while the request's is still being sent.
    reader: Option<Waker>,
}

/// Why an answer's head did not come.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct Failure {
    pub stage: FailedStage,
    why: Error,
}

impl Connection {
    pub fn new(stream: Stream) -> Connection {
        Connection {
            stream,
            read: BytesMut::new(),
            looked: 0,
            next_read: FIRST_READ,
            sending: Sending::default(),
            sent_before: 0,
            heard: false,
            framing: Framing::None,
            persists: true,
            broken: false,
            reader: None,
        }
    }

    /// Whether a kept connection is still there: what came over it unasked, if only its end, makes it useless.
    fn is_usable(&mut self) -> bool {
        let mut byte = [0; 1];
        // Whatever the task has done before: tokio lets one that has done much find nothing anywhere.
        let looking = unconstrained(self.stream.read(&mut byte));
        pin!(looking).poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    /// Lets go of what the next request does not need.
    fn let_go(&mut self) {
        if self.next_read > FIRST_READ {
            self.read = BytesMut::new();
        }
        self.reader = None;
    }

    /// Whether the answer has ended, the whole request was sent, and another one may follow.
    fn is_reusable(&self) -> bool {
        self.persists && self.framing.is_over() && self.sending.is_done() && self.read.is_empty()
    }

    /// Takes the next request, of which nothing is sent yet. An origin that takes nothing of it for so long is left.
    pub fn begin(&mut self, lines: &RequestLines<'_>, body: Attempt, patience: Duration) {
        self.stream.set_patience(patience);
        self.heard = false;
        self.sent_before = self.stream.sent();
        self.next_read = FIRST_READ;
        self.sending.begin(lines, body);
    }

    /// Sends the request, and reads the head of its answer.
    pub fn poll_answer(
        &mut self,
        asked: Asked,
        cx: &mut Context<'_>,
    ) -> Poll<std::result::Result<AnswerHead, Failure>> {
        if !self.sending.is_done() {
            match self.sending.poll(&mut self.stream, cx) {
                Poll::Ready(Ok(())) | Poll::Pending => {}
                Poll::Ready(Err(SendError::Body(error))) => return Poll::Ready(Err(self.failed(Error::other(error)))),
                // It may have answered before it left.
                Poll::Ready(Err(SendError::Io(error))) => {
                    tracing::debug!(%error, "the origin does not take the request");
                    self.give_up_sending();
                }
            }
        }
        loop {
            match answer::read(&mut self.read, &mut self.looked, asked) {
                // What follows on the connection would be the rest of the body to one side only (RFC 9110 §7.8).
                Ok(Some(answered))
                    if answered.head.status == StatusCode::SWITCHING_PROTOCOLS && !self.sending.is_done() =>
                {
                    let why = "it switches protocols before it has the whole request";
                    return Poll::Ready(Err(self.failed(Error::new(ErrorKind::InvalidData, why))));
                }
                Ok(Some(answered)) => {
                    (self.framing, self.persists) = (answered.framing, self.persists && answered.persists);
                    return Poll::Ready(Ok(answered.head));
                }
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(self.failed(Error::new(ErrorKind::InvalidData, error)))),
            }
            match ready!(self.poll_fill(FIRST_READ, cx)) {
                Ok(0) => return Poll::Ready(Err(self.failed(ErrorKind::UnexpectedEof.into()))),
                Ok(_) => self.heard = true,
                Err(error) => return Poll::Ready(Err(self.failed(error))),
            }
        }
    }

    fn failed(&mut self, why: Error) -> Failure {
        let begun = match &self.stream {
            // What waits for the end of the turn must not leave after all: the request may go elsewhere.
            Stream::Plain(stream) => stream.get_ref().withdraw() > self.sent_before,
            // TLS does not say what it has sent when it fails.
            Stream::Encrypted(_) => true,
        };
        let stage = match (self.heard, begun) {
            (true, _) => FailedStage::HeadReceived,
            (false, true) => FailedStage::Sent,
            (false, false) => FailedStage::Unsent,
        };
        Failure { stage, why }
    }

    fn give_up_sending(&mut self) {
        self.sending.give_up();
        self.persists = false;
    }

    /// Goes on sending a body whose answer has begun.
    fn poll_sending(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match ready!(self.sending.poll(&mut self.stream, cx)) {
            Ok(()) => {}
            Err(SendError::Io(error)) if error.kind() != ErrorKind::TimedOut => self.give_up_sending(),
            // It waits for what never comes, or takes nothing of what does.
            Err(SendError::Body(_) | SendError::Io(_)) => {
                self.give_up_sending();
                self.broken = true;
                self.reader.take().into_iter().for_each(Waker::wake);
            }
        }
        Poll::Ready(())
    }

    /// The next piece of the answer's body.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        loop {
            if self.broken {
                return Poll::Ready(Some(Err(ErrorKind::ConnectionAborted.into())));
            }
            let least = match self.framing.next(&mut self.read) {
                Ok(Next::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Next::Trailers(trailers)) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Ok(Next::End) => return Poll::Ready(None),
                Ok(Next::More(most)) => self.next_read.min(most).max(FIRST_READ),
                Err(error) => return Poll::Ready(Some(Err(Error::new(ErrorKind::InvalidData, error)))),
            };
            let read = match self.poll_fill(least, cx) {
                Poll::Ready(read) => read?,
                Poll::Pending => {
                    if !self.sending.is_done() {
                        self.reader = Some(cx.waker().clone());
                    }
                    return Poll::Pending;
                }
            };
            if read == 0 && !self.framing.ends_by_close() {
                return Poll::Ready(Some(Err(ErrorKind::UnexpectedEof.into())));
            }
            if read >= self.next_read {
                self.next_read = (self.next_read * 2).min(LARGEST_READ);
            }
        }
    }

    /// Reads what is there, into about so much room.
    fn poll_fill(&mut self, room: usize, cx: &mut Context<'_>) -> Poll<Result<usize>> {
        if self.read.capacity() - self.read.len() < room / 4 {
            self.read.reserve(room);
        }
        // Nothing is lost with this future, which only passes the call on.
        pin!(self.stream.read_buf(&mut self.read)).poll(cx)
    }
}

/// Gives a connection to an upgrade, from the bytes on that followed the answer's head.
pub struct Upgraded(Held);

impl Upgraded {
    /// How long the origin may take nothing of what it is sent.
    pub fn set_patience(&self, time: Duration) {
        self.0.borrow_mut().stream.set_patience(time);
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let mut connection = self.0.borrow_mut();
        if connection.read.is_empty() {
            return Pin::new(&mut connection.stream).poll_read(cx, buf);
        }
        let length = connection.read.len().min(buf.remaining());
        buf.put_slice(&connection.read[..length]);
        connection.read.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
